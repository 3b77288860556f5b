//! Owns the page of one letter, whole: why it died and what to do, its body with what is personal hidden until asked, its
//! headers, its rounds; and editing it.

use std::sync::Arc;

use axum::{Extension, extract::State, response::IntoResponse};
use bytes::Bytes;
use maud::{Markup, html};

use super::{
    super::{
        Answer, Console, Refused,
        form::{Fields, Form, Name},
        frame::{Section, View, on_to, sentence},
        mask::masked,
        parts::{Tone, badge, hidden, id, nothing, path, said, table, under, user, when},
    },
    dead::meaning,
    users::{letter_tone, lines},
};
use crate::{
    letters::{
        diff::{self, readable},
        edit::{self, Mended},
        replay::nobody_works,
    },
    net::Problem,
    ops::{
        access::{Access, Caller},
        api::dead::find,
    },
    queue::{Reason, is_plain_header},
    store::letters::{Action, LetterDetail, Status},
    terminal::safe_json,
    text::number,
};

/// `GET /dead/letters/{id}`
pub(in super::super) async fn show(
    State(console): State<Arc<Console>>,
    Name(reference): Name,
    Extension(caller): Extension<Caller>,
    fields: Fields,
) -> Answer {
    let letter = find(&console.api, reference).await?;
    let may = caller.access >= Access::Operate;
    let revealed =
        may && console.is_revealed(letter.letter.id, fields.get("revealed"), &caller.name("console"));
    let title = format!("Letter of {}", said(&letter.letter.event_type));
    let result = console.result(fields.get("result"));
    let main = html! {
        @if let Some(result) = result { div.note.good role="status" { (result) } }
        (heading(&letter))
        (causes(&letter))
        @if may { (actions(&letter)) }
        div.columns {
            div { (body(&letter, revealed, may)) (headers(&letter, revealed)) }
            div { (facts(&letter)) (history(&letter)) }
        }
    };
    Ok(View::live(Section::Dead, title, main).into_response())
}

fn here(letter: &LetterDetail) -> String {
    under("/dead/letters", &letter.letter.id.to_string())
}

fn heading(letter: &LetterDetail) -> Markup {
    let letter = &letter.letter;
    html! {
        p { a href="/dead" { "Dead letters" } " / " a href=(path("/dead/letters", &[("group", &crate::store::letters::group_id(&letter.group))])) { "letters of this cause" } }
        div.heading {
            h1 { (said(&letter.event_type)) }
            (badge(letter_tone(letter.status), letter.standing()))
            @if let Some(clerk_id) = &letter.clerk_id { " about " (user(clerk_id)) }
        }
    }
}

fn causes(letter: &LetterDetail) -> Markup {
    let (means, todo) = meaning(&letter.letter.reason);
    html! {
        div.note.(if letter.letter.status == Status::Open { "bad" } else { "plain" }) {
            p { (badge(Tone::Bad, &letter.letter.reason)) " " strong { (said(&letter.letter.detail)) } }
            p { (means) }
            @if letter.letter.status == Status::Open { p { strong { "What to do: " } (todo) } }
        }
    }
}

fn actions(letter: &LetterDetail) -> Markup {
    let id = letter.letter.id.to_string();
    html! {
        div.actions {
            @match letter.letter.status {
                Status::Open => {
                    // What a replay alone does not mend is edited first.
                    @let edits = letter.letter.reason == Reason::InvalidPayload.as_str();
                    a.button.primary[!edits] href=(path("/dead/replay", &[("id", &id)])) data-verb="r" { "Replay…" }
                    a.button.primary[edits] href={ (here(letter)) "/edit" } { "Edit…" }
                    a.button href=(path("/dead/discard", &[("id", &id)])) { "Discard…" }
                }
                Status::Discarded => a.button href=(path("/dead/restore", &[("id", &id)])) { "Restore…" },
                Status::Replayed => a.button href=(path("/dead/replay", &[("id", &id)])) data-verb="r" { "Publish again…" },
                Status::Applied => (nothing()),
            }
        }
    }
}

fn body(letter: &LetterDetail, revealed: bool, may: bool) -> Markup {
    let hidden_body = masked(&letter.body);
    html! {
        section #body aria-labelledby="the-body" {
            h2 #the-body { "Body " span.muted { (number(letter.body.len() as u64)) " bytes" } }
            @if letter.body.is_empty() {
                p.muted { "There is none, or it is erased." }
            } @else if revealed {
                p.muted { "Shown whole. The operations say who asked." }
                details open { summary { "Collapse" } pre.body tabindex="0" { (readable(&letter.body).join("\n")) } }
            } @else {
                @match &hidden_body {
                    Some(text) => details open { summary { "Personal values are hidden" } pre.body tabindex="0" { (lines(text)) } },
                    None => p.muted { "It is no JSON, so that all of it is hidden." },
                }
                @if may {
                    form.actions action={ (here(letter)) "/reveal" } method="post" {
                        button type="submit" { "Show the personal values" }
                        span.muted { "The operations will say that you asked." }
                    }
                }
            }
        }
    }
}

fn headers(letter: &LetterDetail, revealed: bool) -> Markup {
    if letter.headers.is_empty() {
        return nothing();
    }
    html! {
        section #headers aria-labelledby="the-headers" {
            h2 #the-headers { "Headers" }
            details { summary { (number(letter.headers.len() as u64)) " of the message, as it died" }
                (table("Headers", &["Name", "Value"], html! {
                    @for (name, value) in &letter.headers { tr { th scope="row" { (said(name)) } td.long { @if revealed || is_plain_header(name) { code { (said(value)) } } @else { span.muted { "•••" } } } } }
                }))
            }
        }
    }
}

fn facts(letter: &LetterDetail) -> Markup {
    let letter = &letter.letter;
    html! {
        section #facts aria-labelledby="the-letter" {
            h2 #the-letter { "The letter" }
            dl.facts {
                dt { "id" } dd { (id(letter.id.to_string())) }
                dt { "message id" } dd { (id(&letter.message_id)) }
                dt { "received" } dd { (when(letter.first_seen)) }
                dt { "died" } dd { (when(letter.died_at)) }
                dt { "tries" } dd { (letter.attempts) " in the last round" }
                dt { "replays" } dd { (letter.round) }
            }
        }
    }
}

fn history(letter: &LetterDetail) -> Markup {
    html! {
        section #history aria-labelledby="the-history" {
            h2 #the-history { "What happened to it" }
            ol.timeline {
                @for entry in letter.history.iter().rev() {
                    @let tone = match entry.action { Action::Died => Tone::Bad, Action::Applied => Tone::Good, _ => Tone::Plain };
                    li.(tone.class()) {
                        p.what { (said(entry.action.as_str())) span.muted { " round " (entry.round) } span.at { (when(entry.at)) } }
                        div.detail { span { "by " (said(&entry.by)) } @if let Some(note) = &entry.note { span { (said(note)) } } }
                    }
                }
            }
        }
    }
}

/// `POST /dead/letters/{id}/reveal`
pub(in super::super) async fn reveal(
    State(console): State<Arc<Console>>,
    Name(reference): Name,
    Extension(caller): Extension<Caller>,
) -> Answer {
    let letter = find(&console.api, reference).await?;
    let by = caller.actor("console", None);
    let key = console.reveal(&letter, by).await?;
    Ok(on_to(&path(&here(&letter), &[("revealed", &key.to_string())])))
}

/// `GET /dead/letters/{id}/edit`
pub(in super::super) async fn begin_edit(
    State(console): State<Arc<Console>>,
    Name(reference): Name,
    Extension(caller): Extension<Caller>,
) -> Answer {
    let letter = find(&console.api, reference).await?;
    if letter.letter.status != Status::Open {
        return Err(Problem::conflict("only an open letter can be edited").into());
    }
    // JSON stays the same value. Of what is no JSON nothing can be sent as it is.
    let text = match serde_json::from_slice::<serde::de::IgnoredAny>(&letter.body) {
        Ok(_) => diff::pretty(&letter.body).map(|text| safe_json(&text).into_owned()).unwrap_or_default(),
        Err(_) => readable(&letter.body).join("\n"),
    };
    // An editor shows all that is personal.
    console.reveal(&letter, caller.actor("console", Some("to edit"))).await?;
    Ok(View::new(Section::Dead, "Edit a letter", form(&letter, &text, nothing())).into_response())
}

fn form(letter: &LetterDetail, text: &str, above: Markup) -> Markup {
    html! {
        p { a href=(here(letter)) { "Back to the letter" } }
        h1 { "Edit the body" }
        p.lead { "The message id stays, so that it takes effect once. Nothing is sent before you have seen what differs." }
        (above)
        form.stack action={ (here(letter)) "/edit" } method="post" {
            label for="body" { "Body" }
            textarea #body name="body" rows="24" spellcheck="false" autocomplete="off" { "\n" (text) }
            label for="note" { "Note " span.muted { "(optional)" } }
            input #note type="text" name="note" maxlength="1000" autocomplete="off";
            div.actions { button.primary type="submit" { "See what differs" } a href=(here(letter)) { "Cancel" } }
        }
    }
}

/// `POST /dead/letters/{id}/edit`: shows what differs, and sends it once that was seen.
pub(in super::super) async fn edit(
    State(console): State<Arc<Console>>,
    Name(reference): Name,
    Extension(caller): Extension<Caller>,
    Form(fields): Form,
) -> Answer {
    let letter = find(&console.api, reference).await?;
    // A form's text has the line ends of another time.
    let text = fields.get("body").unwrap_or_default().replace("\r\n", "\n");
    let mended = match edit::check(&letter, Bytes::from(text.clone())) {
        Ok(mended) => mended,
        Err(error) => {
            let problem = Problem::from(error);
            let above = html! { p.note.bad role="alert" { (sentence(problem.says().0)) } };
            let view = View::new(Section::Dead, "Edit a letter", form(&letter, &text, above));
            return Ok(view.status(problem.status()).into_response());
        }
    };
    let note = fields.get("note").unwrap_or_default().to_owned();
    if fields.get("seen").is_none() {
        let mut warnings = mended.warnings.clone();
        warnings.extend(nobody_works(console.api.queue.as_ref()).await);
        let main = confirm(&letter, &mended, &warnings, &text, &note);
        return Ok(View::new(Section::Dead, "Send the edited letter?", main).into_response());
    }
    let (by, back) = (caller.actor("console", Some(&note)), here(&letter));
    let round = console.api.send_edit(letter, mended, by).await.map_err(Refused)?;
    let result = console.keep(html! { p { "Sent: round " (round) " has begun." } }).to_string();
    Ok(on_to(&path(&back, &[("result", &result)])))
}

fn confirm(letter: &LetterDetail, mended: &Mended, warnings: &[String], text: &str, note: &str) -> Markup {
    html! {
        p { a href=(here(letter)) { "Back to the letter" } }
        h1 { "Send this?" }
        @for warning in warnings { p.note.warn { (sentence(warning)) } }
        pre.difference tabindex="0" {
            @for line in &mended.difference {
                @match line {
                    diff::Line::Removed(_) => del { (line.to_string()) },
                    diff::Line::Added(_) => ins { (line.to_string()) },
                    diff::Line::Same(_) | diff::Line::Skipped(_) => span { (line.to_string()) },
                }
                "\n"
            }
        }
        form.actions action={ (here(letter)) "/edit" } method="post" {
            (hidden(&[("body", text), ("note", note), ("seen", "yes")]))
            button.primary type="submit" { "Send it" }
            a href={ (here(letter)) "/edit" } { "Edit again" }
        }
    }
}
