//! Owns the pieces that pages are made of: times, numbers, ids, badges, sparklines, links. Everything from outside goes through
//! [`said`], so that it is shown as text and cannot hide itself or turn the reading direction.

use maud::{Markup, PreEscaped, Render, html};
use url::form_urlencoded;

use crate::{
    terminal::safe,
    text::number,
    time::{Millis, ago, now, rfc3339},
};

/// Text from outside, with what would hide or turn it as visible escapes. The template escapes the rest.
pub(super) fn said(text: impl AsRef<str>) -> String {
    safe(text.as_ref()).into_owned()
}

/// The same; a dash where there is none.
pub(super) fn said_or_dash(text: Option<impl AsRef<str>>) -> Markup {
    html! {
        @match text {
            Some(text) => (said(text)),
            None => span.muted { "–" },
        }
    }
}

/// How long ago, with the exact time and the zone on hover.
pub(super) fn when(at: Millis) -> Markup {
    let exact = rfc3339(at);
    let hover = format!("{} UTC", exact.trim_end_matches('Z').replace('T', " "));
    let text = match ago(at, now()) {
        _ if at > now() + 1000 => format!("in {}", ago(now(), at)),
        text if text == "now" => "just now".to_owned(),
        text => format!("{text} ago"),
    };
    html! { time datetime=(exact) title=(hover) { (text) } }
}

/// The same of a time that is told as RFC 3339.
pub(super) fn when_told(at: &str) -> Markup {
    match chrono::DateTime::parse_from_rfc3339(at) {
        Ok(at) => when(at.timestamp_millis()),
        Err(_) => html! { (said(at)) },
    }
}

/// The same; a dash where there is none.
pub(super) fn when_or_dash(at: Option<&String>) -> Markup {
    at.map_or_else(|| html! { span.muted { "–" } }, |at| when_told(at))
}

/// How grave something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Plain,
    Warn,
    Bad,
}

impl Tone {
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Plain => "plain",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }
}

/// A word that says where something stands.
pub(super) fn badge(tone: Tone, text: impl AsRef<str>) -> Markup {
    html! { span class={ "badge " (tone.class()) } { (said(text)) } }
}

/// An id, whole, with a button that copies it.
pub(super) fn id(text: impl AsRef<str>) -> Markup {
    let text = text.as_ref();
    html! {
        span.id {
            code { (said(text)) }
            button.copy type="button" data-copy=(text) aria-label={ "Copy " (said(text)) } { "copy" }
        }
    }
}

/// A path with a query.
pub(super) fn path(base: &str, pairs: &[(&str, &str)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        query.append_pair(name, value);
    }
    match query.finish() {
        query if query.is_empty() => base.to_owned(),
        query => format!("{base}?{query}"),
    }
}

/// A path that ends with a name from outside.
pub(super) fn under(base: &str, name: &str) -> String {
    // A space as %20 and not as +, which a path does not know.
    let name: String = form_urlencoded::byte_serialize(name.as_bytes()).collect();
    format!("{base}/{}", name.replace('+', "%20"))
}

/// A link to a user.
pub(super) fn user(clerk_id: &str) -> Markup {
    html! { a href=(under("/users", clerk_id)) { code { (said(clerk_id)) } } }
}

/// A number, and what it counts.
pub(super) fn figure(label: &str, value: impl Render, note: Option<Markup>, link: Option<&str>) -> Markup {
    html! {
        div.figure {
            dt { (label) }
            dd {
                @if let Some(link) = link { a href=(link) { (value) } }
                @else { (value) }
                @if let Some(note) = note { small { (note) } }
            }
        }
    }
}

/// Bars, one for each value, the newest at the right.
pub(super) fn spark(label: &str, values: &[u64]) -> Markup {
    const HEIGHT: u64 = 24;
    let most = values.iter().copied().max().unwrap_or_default().max(1);
    let total: u64 = values.iter().sum();
    let width = 4 * values.len();
    let bars = values.iter().enumerate().filter(|(_, value)| **value > 0).map(|(n, value)| {
        // At least a line, so that one of many is seen.
        let height = (value * HEIGHT).div_ceil(most).max(2);
        format!("M{} {}h3v{}h-3z", 4 * n, HEIGHT - height, height)
    });
    let bars: String = bars.collect();
    html! {
        svg.spark role="img" viewBox={ "0 0 " (width) " " (HEIGHT) } preserveAspectRatio="none"
            aria-label={ (label) ": " (number(total)) " in all, at most " (number(if total == 0 { 0 } else { most })) " at a time" } {
            path.base d={ "M0 " (HEIGHT) "h" (width) } {}
            path.bars d=(bars) {}
        }
    }
}

/// What is said where there is nothing to show.
pub(super) fn empty(title: &str, text: Markup) -> Markup {
    html! { div.empty { p.title { (title) } p { (text) } } }
}

/// A command, to copy.
pub(super) fn command(line: &str) -> Markup {
    html! { span.id { code { (said(line)) } button.copy type="button" data-copy=(line) aria-label="Copy the command" { "copy" } } }
}

/// A table that scrolls by itself where the screen is narrow.
pub(super) fn table(label: &str, head: &[&str], rows: Markup) -> Markup {
    html! {
        div.scroll role="region" aria-label={ "Table: " (label) } tabindex="0" {
            table {
                thead { tr { @for name in head { th scope="col" { (name) } } } }
                tbody { (rows) }
            }
        }
    }
}

/// Hidden fields.
pub(super) fn hidden(pairs: &[(&str, &str)]) -> Markup {
    html! { @for (name, value) in pairs { input type="hidden" name=(name) value=(value); } }
}

/// Nothing.
pub(super) fn nothing() -> Markup {
    PreEscaped(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_outside_is_text() {
        let shown = html! { (said("<script>alert(1)</script>\u{202e}\u{1b}[2J")) }.into_string();
        assert_eq!(shown, "&lt;script&gt;alert(1)&lt;/script&gt;\\u{202e}\\u{1b}[2J");
        assert_eq!(under("/users", "a b/../?x#\"<"), "/users/a%20b%2F..%2F%3Fx%23%22%3C");
        assert_eq!(path("/dead", &[("a", "1 2"), ("b", "")]), "/dead?a=1+2");
    }

    #[test]
    fn a_sparkline_says_what_it_shows() {
        let shown = spark("Died", &[0, 1, 1000]).into_string();
        assert!(shown.contains("Died: 1,001 in all, at most 1,000 at a time"), "{shown}");
        assert!(shown.contains("M4 22h3v2h-3zM8 0h3v24h-3z"), "{shown}");
        assert!(spark("Died", &[]).into_string().contains("0 in all"));
    }
}
