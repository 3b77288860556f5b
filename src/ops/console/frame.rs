//! Owns what is around each page: the verdict, the search, the way around, and the headers that keep scripts and frames of
//! others out. Also the style and the script, which are in the binary.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Redirect, Response},
};
use http::{HeaderValue, Method, StatusCode, header};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use tokio::time::timeout;

use super::{Console, parts::said, pulse::Moment};
use crate::{
    net::Problem,
    ops::{
        access::{Access, By, Caller},
        verdict::{Level, Verdict},
    },
    text::number,
};

/// No script, style, picture or frame but ours; no form that goes elsewhere.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
     form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
);

/// How long a page may take that only looks, ...
const QUICK: Duration = Duration::from_secs(8);
/// ... and one that asks Clerk, or acts.
const SLOW: Duration = Duration::from_secs(30);
/// How long one may take that only looks, once it is known that no answer comes.
const BRIEF: Duration = Duration::from_millis(1500);

/// The ways from every page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    Overview,
    Users,
    Dead,
    Rejected,
    Flow,
    Sync,
    Operations,
    Processes,
    Elsewhere,
}

/// Each section with its path, its name, and the key that follows `g`.
const SECTIONS: [(Section, &str, &str, char); 8] = [
    (Section::Overview, "/", "Overview", 'o'),
    (Section::Users, "/users", "Users", 'u'),
    (Section::Dead, "/dead", "Dead letters", 'd'),
    (Section::Rejected, "/rejections", "Rejected", 'r'),
    (Section::Flow, "/flow", "Flow", 'f'),
    (Section::Sync, "/sync", "Sync", 's'),
    (Section::Operations, "/operations", "Operations", 'l'),
    (Section::Processes, "/processes", "Processes", 'p'),
];

/// The keys that lead to sections, with where.
pub(super) fn keys() -> impl Iterator<Item = (char, &'static str)> {
    SECTIONS.into_iter().map(|(_, _, name, key)| (key, name))
}

/// What belongs on a page.
#[derive(Clone, Debug)]
pub(super) struct View {
    title: String,
    section: Section,
    main: Markup,
    status: StatusCode,
    /// It is sent again when it changes.
    live: bool,
    /// The moment that it shows.
    moment: Option<Arc<Moment>>,
}

impl View {
    /// A page that stays as it is.
    pub(super) fn new(section: Section, title: impl Into<String>, main: Markup) -> Self {
        Self { title: title.into(), section, main, status: StatusCode::OK, live: false, moment: None }
    }

    /// A page that follows what happens.
    pub(super) fn live(section: Section, title: impl Into<String>, main: Markup) -> Self {
        Self { live: true, ..Self::new(section, title, main) }
    }

    /// A page that shows how things stood at a moment: what is around it shows the same.
    pub(super) fn of_moment(
        section: Section,
        title: impl Into<String>,
        moment: Arc<Moment>,
        main: Markup,
    ) -> Self {
        Self { moment: Some(moment), ..Self::live(section, title, main) }
    }

    /// With another status.
    pub(super) fn status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// Why a request was not done.
    pub(super) fn of_problem(problem: &Problem) -> Self {
        let (what, hint) = problem.says();
        let main = html! {
            h1 { (heading(problem.status())) }
            p.lead { (sentence(what)) }
            @if let Some(hint) = hint { p.muted { (sentence(hint)) } }
            p { a href="/" { "To the overview" } }
        };
        Self::new(Section::Elsewhere, heading(problem.status()), main).status(problem.status())
    }
}

impl IntoResponse for View {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// What an error is called on a page.
fn heading(status: StatusCode) -> &'static str {
    match status {
        StatusCode::NOT_FOUND => "Not found",
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => "Not allowed",
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => "Not possible at the moment",
        StatusCode::CONFLICT => "Nothing was done",
        _ => "That did not work",
    }
}

/// A sentence that begins with a capital and ends with a stop.
pub(super) fn sentence(text: &str) -> String {
    let text = said(text.trim());
    let mut chars = text.chars();
    let begun: String = match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    };
    match begun.ends_with(['.', '!', '?', ':']) {
        true => begun,
        false => format!("{begun}."),
    }
}

/// Marks a request of our own for what belongs on a page, without what is around it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bare;

/// Puts what belongs on a page into its place.
pub(super) async fn framed(State(console): State<Arc<Console>>, request: Request, next: Next) -> Response {
    let bare = request.extensions().get::<Bare>().is_some();
    let caller = request.extensions().get::<Caller>().cloned();
    let path = request.uri().path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    // A page that asks Clerk, or acts, has a limit of its own.
    let is_quick = *request.method() == Method::GET && !path.contains("/clerk");
    let limit = match (is_quick, console.is_unanswered()) {
        (true, true) => BRIEF,
        (true, false) => QUICK,
        (false, _) => SLOW,
    };
    let mut response = match timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => View::of_problem(&Problem::unavailable("there was no answer in time").hint(
            "the database or the queue is slow or stands still; the line above says what is known of it",
        ))
        .into_response(),
    };
    let Some(view) = response.extensions_mut().remove::<View>() else {
        return with_policy(response);
    };
    let text = match bare {
        true => view.main.into_string(),
        false => {
            let moment = match (&view.moment, caller.is_some()) {
                (Some(moment), _) => Some(Arc::clone(moment)),
                (None, true) => Some(console.now().await),
                (None, false) => None,
            };
            let moment = moment.map(|moment| match view.status {
                StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => moment.of_no_answer(),
                _ => moment,
            });
            page(&view, caller.as_ref(), moment.as_deref(), &path).into_string()
        }
    };
    let kind = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
    let (mut head, _) = response.into_parts();
    head.headers.remove(header::CONTENT_LENGTH);
    let mut response = (view.status, kind, text).into_response();
    for (name, value) in &head.headers {
        response.headers_mut().append(name, value.clone());
    }
    with_policy(response)
}

/// Lets a browser load and send nothing from or to elsewhere.
pub(super) fn with_policy(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY);
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    response
}

fn head(title: &str) -> Markup {
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            title { (said(title)) " · headcount" }
            link rel="icon" href="data:,";
            link rel="stylesheet" href="/console.css";
            script src="/console.js" defer {}
        }
    }
}

fn page(view: &View, caller: Option<&Caller>, moment: Option<&Moment>, path: &str) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            (head(&view.title))
            body {
                a.skip href="#main" { "Skip to the page" }
                header.top {
                    a.brand href="/" { "headcount" }
                    @if caller.is_some() {
                        form.search role="search" action="/search" method="get" {
                            label.unseen for="q" { "Search users, letters and messages by id or address" }
                            input #q type="search" name="q" placeholder="Any id or address" autocomplete="off"
                                spellcheck="false" maxlength="320" aria-keyshortcuts="/";
                        }
                        nav.ways aria-label="Sections" { (ways(view.section, moment)) }
                    }
                    (person(caller))
                }
                @if let Some(moment) = moment { (verdict(&moment.verdict)) }
                main #main tabindex="-1" data-live=[view.live.then_some(path)] { (view.main) }
                @if caller.is_some() { footer.foot { (foot(view, moment)) } }
                div #said.unseen role="status" aria-live="polite" {}
            }
        }
    }
}

fn ways(here: Section, moment: Option<&Moment>) -> Markup {
    let open = moment.and_then(Moment::open_letters);
    html! {
        ul {
            @for (section, path, name, key) in SECTIONS {
                li {
                    a href=(path) data-key=(key) aria-current=[(section == here).then_some("page")] {
                        (name)
                        @if let (Section::Dead, Some(open)) = (section, open) {
                            " " span #open.count hidden[open == 0] { (number(open)) span.unseen { " open" } }
                        }
                    }
                }
            }
        }
    }
}

fn person(caller: Option<&Caller>) -> Markup {
    let Some(caller) = caller else { return PreEscaped(String::new()) };
    let By::Session(name) = &caller.by else { return PreEscaped(String::new()) };
    let who = name.as_deref().unwrap_or("Signed in");
    html! {
        form.person action="/sign-out" method="post" {
            span { (said(who)) @if caller.access < Access::Operate { " · look only" } }
            button.quiet type="submit" { "Sign out" }
        }
    }
}

/// The one line that sums up.
pub(super) fn verdict(verdict: &Verdict) -> Markup {
    let tone = match verdict.level {
        Level::Well => "good",
        Level::Attention => "warn",
        Level::Trouble => "bad",
    };
    let word = match verdict.level {
        Level::Well => "All well",
        Level::Attention => "Attention",
        Level::Trouble => "Trouble",
    };
    html! {
        section #verdict.verdict.(tone) aria-label="Verdict" {
            span.dot aria-hidden="true" {}
            span.unseen { (word) ": " }
            a href=(verdict.link) { (said(&verdict.text)) }
        }
    }
}

fn foot(view: &View, moment: Option<&Moment>) -> Markup {
    html! {
        span { "headcount " (env!("CARGO_PKG_VERSION")) }
        @if let Some(moment) = moment { span #as-of { "as of " (super::parts::when(moment.at)) } }
        span.scripted {
            @if view.live { button.quiet #pause type="button" aria-pressed="false" { "Pause live updates" } }
        }
        a href="/keys" { "Keys" span.scripted aria-hidden="true" { " ?" } }
        a href="/api/v1/openapi.json" { "API" }
        a href="/metrics" { "Metrics" }
    }
}

/// A page for somebody who is not let in.
pub(super) fn bare(status: StatusCode, message: &str, sign_in: Option<&str>) -> Markup {
    of_stranger(
        heading(status),
        html! {
            p.lead { (sentence(message)) }
            @if let Some(sign_in) = sign_in { p { a.button href=(sign_in) { "Sign in with that token" } } }
            p { a href="/" { "To the overview" } }
        },
    )
}

/// A page without what is around the others.
pub(super) fn of_stranger(title: &str, main: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            (head(title))
            body {
                header.top { a.brand href="/" { "headcount" } }
                main #main { h1 { (title) } (main) }
            }
        }
    }
}

/// Leads on to a page, after something was done.
pub(super) fn on_to(path: &str) -> Response {
    Redirect::to(path).into_response()
}

pub(super) async fn style() -> Response {
    asset("text/css; charset=utf-8", include_str!("assets/console.css"))
}

pub(super) async fn script() -> Response {
    asset("text/javascript; charset=utf-8", include_str!("assets/console.js"))
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_is_one() {
        for (text, shown) in [
            ("no letter has this id", "No letter has this id."),
            ("Done.", "Done."),
            (" éa\u{202e} ", "Éa\\u{202e}."),
            ("", "."),
        ] {
            assert_eq!(sentence(text), shown);
        }
    }
}
