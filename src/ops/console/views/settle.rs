//! Owns the pages that settle letters: each says what it will do and to how many, and does it at the second click, once.

use std::sync::Arc;

use axum::{Extension, extract::State, response::IntoResponse};
use maud::{Markup, html};
use uuid::Uuid;

use super::super::{
    Answer, Console, Refused,
    form::{FILTERS, Fields, Form},
    frame::{Section, View, on_to, sentence},
    parts::{empty, hidden, path, said, table, under},
};
use crate::{
    letters::{operations::NewReplay, ramp::HALT_AT, replay::nobody_works, select::Selection},
    net::Problem,
    ops::{
        access::Caller,
        api::dead::{Counted, counted, select},
    },
    store::{
        letters::{Filter, Status},
        operations::Kind,
    },
    text::{letters, number},
    time::{Millis, now},
};

/// Claims that a preview looks for.
const UNFINISHED: u32 = 50;

/// What is done to letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Replay,
    Discard,
    Restore,
}

impl Verb {
    fn from(self) -> Status {
        match self {
            Self::Replay | Self::Discard => Status::Open,
            Self::Restore => Status::Discarded,
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Replay => "/dead/replay",
            Self::Discard => "/dead/discard",
            Self::Restore => "/dead/restore",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Replay => "Replay",
            Self::Discard => "Discard",
            Self::Restore => "Restore",
        }
    }
}

/// The letters that are meant.
async fn meant(console: &Console, fields: &Fields, verb: Verb) -> Result<(Selection, Filter), Refused> {
    if fields.get("chosen").is_some() && fields.get("id").is_none() {
        return Err(Problem::bad_request("no letter was chosen")
            .hint("go back and choose some, or follow the link to all that match")
            .into());
    }
    if !fields.selects() && fields.get("all").is_none() && fields.get("settled").is_none() {
        return Err(Problem::bad_request("it is not said which letters are meant")
            .hint("choose letters, or a cause, in the list of letters")
            .into());
    }
    let mut selection = fields.selection()?;
    // Whatever the list showed, only these can be settled so.
    selection.status = None;
    let mut filter = select(&console.api, &selection, Some(verb.from())).await?.filter;
    filter.status = Some(verb.from());
    filter.settled_since = fields.number("settled");
    if let Some(before) = fields.number::<Millis>("before") {
        filter.until = Some(filter.until.map_or(before, |until| until.min(before)));
    }
    Ok((selection, filter))
}

/// Letters that a replay has claimed and that may not be in the queue: another replay publishes them again.
async fn unfinished(console: &Console, filter: &Filter, verb: Verb) -> Result<u64, Refused> {
    if verb != Verb::Replay {
        return Ok(0);
    }
    let filter = filter.clone();
    let claims = console.api.ask(|store| async move {
        let before = store.clock().await?;
        store.unstamped(&filter, before, UNFINISHED).await
    });
    Ok(claims.await?.len() as u64)
}

/// What was chosen, in words.
fn chosen(selection: &Selection, fields: &Fields) -> Markup {
    let named = fields.only(&FILTERS);
    let named: Vec<_> = named.iter().filter(|(name, _)| !matches!(*name, "id" | "status")).collect();
    html! {
        @if !selection.ids.is_empty() {
            p { (letters(selection.ids.len() as u64)) " chosen one by one." }
        } @else if named.is_empty() {
            p.note.warn { "No filter: this means every letter of the kind." }
        } @else {
            dl.facts { @for (name, value) in named { dt { (name) } dd { (said(value)) } } }
        }
    }
}

/// Where somebody came from.
fn back(selection: &Selection, fields: &Fields) -> String {
    match selection.ids.as_slice() {
        [id] => under("/dead/letters", id),
        _ => path("/dead/letters", &fields.only(&FILTERS)),
    }
}

fn by(counted: &Counted) -> Markup {
    html! {
        (table("What is meant", &["Type", "Reason", "Letters"], html! {
            @for count in &counted.by {
                tr { td { (said(&count.event_type)) } td { (said(&count.reason)) } td.number { (number(count.letters)) } }
            }
        }))
    }
}

async fn preview(console: &Console, fields: &Fields, verb: Verb, choices: Markup) -> Answer {
    let (selection, filter) = meant(console, fields, verb).await?;
    let asked_at = now();
    let (counted, unfinished) =
        (counted(&console.api, filter.clone()).await?, unfinished(console, &filter, verb).await?);
    let expected = counted.letters + unfinished;
    let title = format!("{} letters", verb.word());
    if expected == 0 {
        let main = html! {
            h1 { (title) }
            (empty("No letter can be settled so", html! { "Those that were chosen are not " (verb.from().as_str()) " any more. " a href="/operations" { "The operations" } " say what was done with letters lately. " a href="/dead/letters" { "To the letters" } }))
        };
        return Ok(View::new(Section::Dead, title, main).into_response());
    }
    let warning = match verb {
        Verb::Replay => nobody_works(console.api.queue.as_ref()).await,
        Verb::Discard | Verb::Restore => None,
    };
    let main = html! {
        h1 { (verb.word()) " " (letters(expected)) "?" }
        @if unfinished > 0 { p.note.plain { (letters(unfinished)) " of them an earlier replay or edit has claimed, and may not have published." } }
        (chosen(&selection, fields))
        @if let Some(warning) = warning { p.note.warn { (sentence(&warning)) } }
        (by(&counted))
        form.stack action=(verb.path()) method="post" {
            (hidden(&fields.only(&FILTERS)))
            (hidden(&fields.only(&["all", "settled"])))
            (hidden(&[("once", &Uuid::now_v7().to_string()), ("expected", &expected.to_string()), ("before", &asked_at.to_string())]))
            (choices)
            label for="note" { "Note " @if verb == Verb::Discard { span.muted { "(why; it stays with the letters)" } } @else { span.muted { "(optional)" } } }
            input #note type="text" name="note" maxlength="1000" autocomplete="off" required[verb == Verb::Discard];
            div.actions {
                button type="submit" class=(if verb == Verb::Discard { "danger" } else { "primary" }) { (verb.word()) " " (letters(expected)) }
                a href=(back(&selection, fields)) { "Cancel" }
            }
        }
    };
    Ok(View::new(Section::Dead, title, main).into_response())
}

/// `GET /dead/replay`
pub(in super::super) async fn preview_replay(State(console): State<Arc<Console>>, fields: Fields) -> Answer {
    let choices = html! {
        fieldset {
            legend { "How" }
            label.check { input type="radio" name="how" value="ramp" checked; " Step by step: 1, 10, 100, the rest. It stops by itself when more than "
                input.small type="number" name="share" value=(HALT_AT * 100.0) min="0" max="100" aria-label="Share that may die again, in percent"; " % of a step die again, and always when the first letter does." }
            label.check { input type="radio" name="how" value="all"; " All at once." }
            label { "At most per second " input.small type="number" name="rate" min="1" max="1000000" placeholder="any"; }
            label { "At most in all " input.small type="number" name="limit" min="1" placeholder="all"; }
        }
    };
    preview(&console, &fields, Verb::Replay, choices).await
}

/// `GET /dead/discard`
pub(in super::super) async fn preview_discard(State(console): State<Arc<Console>>, fields: Fields) -> Answer {
    let choices = html! { p.muted { "A discarded letter is set aside. It can be restored until HEADCOUNT_DEAD_RETENTION ends it." } };
    preview(&console, &fields, Verb::Discard, choices).await
}

/// `GET /dead/restore`
pub(in super::super) async fn preview_restore(State(console): State<Arc<Console>>, fields: Fields) -> Answer {
    preview(&console, &fields, Verb::Restore, html! {}).await
}

/// A number of a form; `None` where it is left out.
fn figure<T: std::str::FromStr>(fields: &Fields, name: &str) -> Result<Option<T>, Problem> {
    let read = |text: &str| {
        text.trim().parse().map_err(|_| {
            Problem::bad_request(format!("the {} has to be a number, not {text:?}", name.replace('_', " ")))
        })
    };
    fields.get(name).map(read).transpose()
}

/// How many letters the page spoke of, as of when: no more are settled than a person has seen.
fn seen(fields: &Fields) -> Result<u64, Problem> {
    match (fields.number("expected"), fields.number::<Millis>("before")) {
        (Some(expected), Some(_)) => Ok(expected),
        _ => Err(Problem::bad_request("the form is not whole: open the page again")),
    }
}

/// `POST /dead/replay`
pub(in super::super) async fn replay(
    State(console): State<Arc<Console>>,
    Extension(caller): Extension<Caller>,
    Form(fields): Form,
) -> Answer {
    let (_, filter) = meant(&console, &fields, Verb::Replay).await?;
    let expected = seen(&fields)?;
    let ramp = match fields.get("how") {
        Some("ramp") | None => true,
        Some("all") => false,
        Some(_) => return Err(Problem::bad_request("a replay goes step by step, or all at once").into()),
    };
    let halt_at = figure::<f64>(&fields, "share")?.map_or(HALT_AT, |percent| percent / 100.0);
    let rate = figure::<f64>(&fields, "rate")?;
    let limit = figure::<u64>(&fields, "limit")?;
    let new = NewReplay {
        filter,
        limit: limit.unwrap_or(u64::MAX),
        rate,
        halt_at: ramp.then_some(halt_at),
        by: caller.actor("console", fields.get("note")),
        // No more than a person has seen, and none that died since.
        open: expected,
        warnings: Vec::new(),
    };
    new.check().map_err(Problem::bad_request)?;
    let work = Arc::clone(&console);
    let page = console.once(fields.once()?, async move { work.start_replay(new).await }).await?;
    Ok(on_to(&page))
}

/// `POST /dead/discard`
pub(in super::super) async fn discard(
    state: State<Arc<Console>>,
    caller: Extension<Caller>,
    Form(fields): Form,
) -> Answer {
    if caller.actor("console", fields.get("note")).note.is_none() {
        return Err(Problem::bad_request("a discarded letter needs a note that says why")
            .hint("go back, and write one")
            .into());
    }
    set_aside(state, caller, fields, Verb::Discard).await
}

/// `POST /dead/restore`
pub(in super::super) async fn restore(
    state: State<Arc<Console>>,
    caller: Extension<Caller>,
    Form(fields): Form,
) -> Answer {
    set_aside(state, caller, fields, Verb::Restore).await
}

async fn set_aside(
    State(console): State<Arc<Console>>,
    Extension(caller): Extension<Caller>,
    fields: Fields,
    verb: Verb,
) -> Answer {
    let (_, filter) = meant(&console, &fields, verb).await?;
    let expected = seen(&fields)?;
    let (by, work) = (caller.actor("console", fields.get("note")), Arc::clone(&console));
    let (once, chosen) = (fields.once()?, fields.clone());
    let deed = async move {
        let kind = if verb == Verb::Discard { Kind::Discard } else { Kind::Restore };
        let (since, told) = work.settle(kind, filter, expected, by).await?;
        let mut chosen = chosen.only(&FILTERS);
        // Only what was discarded just now, not what others discarded before for the same reason.
        let since = since.to_string();
        chosen.retain(|(name, _)| *name != "status");
        let undo = path("/dead/restore", &[chosen.as_slice(), &[("settled", since.as_str())]].concat());
        let result =
            work.keep(html! { (told) @if verb == Verb::Discard { p { a href=(undo) { "Undo…" } } } });
        chosen.retain(|(name, _)| *name != "id");
        let result = result.to_string();
        Ok(path("/dead/letters", &[chosen.as_slice(), &[("result", result.as_str())]].concat()))
    };
    let page = console.once(once, deed).await?;
    Ok(on_to(&page))
}
