//! Owns the log of operations, and the page of one replay: how far it is, what became of it, and how to pause, resume or stop it.

use std::sync::Arc;

use axum::{Extension, extract::State, response::IntoResponse};
use maud::{Markup, html};
use uuid::Uuid;

use super::super::{
    Answer, Console,
    form::{Fields, Name},
    frame::{Section, View, on_to, sentence},
    parts::{Tone, badge, empty, figure, id, path, said, table, under, user, when},
};
use crate::{
    letters::{
        operations::{
            StartError,
            log::{Entry, Wanted, in_words},
        },
        ramp::STEPS,
        select::parse_time,
    },
    net::Problem,
    ops::access::{Access, Caller},
    store::operations::{Kind, LogPage, Operation, OperationRow, State as Stands, Wish},
    text::number,
    time::now,
};

/// Rows of one page.
const PAGE: u32 = 50;
/// A replay that began less than so long ago has not been taken up yet, in milliseconds.
const FRESH: i64 = 10_000;

/// `GET /operations`
pub(in super::super) async fn list(State(console): State<Arc<Console>>, fields: Fields) -> Answer {
    let since = fields.get("since").map(|since| parse_time(since, now())).transpose()?;
    let owned = |name: &str| fields.get(name).map(str::to_owned);
    let wanted = Wanted { kind: owned("kind"), who: owned("who"), since, after: owned("after") };
    let (filter, after) = wanted.read()?;
    let page = LogPage { limit: PAGE, after };
    let rows = console.api.ask(|store| async move { store.operations(&filter, &page).await }).await?;
    let next = rows.last().filter(|_| rows.len() == PAGE as usize).map(|row| Entry::cursor(&row.place()));
    let chosen = fields.only(&["kind", "who", "since"]);
    let main = html! {
        h1 { "Operations" }
        p.lead { "Who did what, to how many, and what became of it." }
        form.filters action="/operations" method="get" role="search" aria-label="Operations" {
            label { "Kind " select name="kind" {
                option value="" { "any" }
                @for kind in Kind::ALL { option value=(kind.as_str()) selected[fields.get("kind") == Some(kind.as_str())] { (kind.as_str()) } }
            } }
            label { "By (the whole name) " input type="search" name="who" value=(fields.get("who").unwrap_or_default()) maxlength="255"; }
            label { "Since " input type="search" name="since" value=(fields.get("since").unwrap_or_default()) placeholder="2h, 2026-01-31"; }
            button type="submit" { "Show" }
            @if !chosen.is_empty() { a href="/operations" { "Clear" } }
        }
        @if rows.is_empty() {
            (empty("Nothing was done", html! { "Replays, edits, discards, restores, syncs and grants leave a line here, whoever does them and by whichever way." }))
        } @else {
            (table("Operations", &["When", "What", "By", "Which", "How many", "Stands"], html! {
                @for row in &rows { (line(row)) }
            }))
            @if let Some(next) = next { p.more { a href=(path("/operations", &[&chosen[..], &[("after", next.as_str())]].concat())) rel="next" { "Older ones" } } }
        }
    };
    Ok(View::live(Section::Operations, "Operations", main).into_response())
}

fn tone(state: Stands) -> Tone {
    match state {
        Stands::Running => Tone::Plain,
        Stands::Complete => Tone::Good,
        Stands::Paused | Stands::Limit | Stands::Stopped => Tone::Warn,
        Stands::Halted | Stands::Failed => Tone::Bad,
    }
}

fn line(row: &OperationRow) -> Markup {
    let own_page = matches!(row.kind, Kind::Replay);
    html! {
        tr data-row {
            td { @if own_page { a href=(under("/operations", &row.id.to_string())) { (when(row.at)) } } @else { (when(row.at)) } }
            td { (row.kind.as_str()) }
            td { (said(&row.who)) }
            td.long {
                @match (&row.letter_id, &row.clerk_id) {
                    (Some(letter), _) => a href=(under("/dead/letters", &letter.to_string())) { "one letter" },
                    (None, Some(clerk_id)) => (user(clerk_id)),
                    (None, None) => (said(Entry::from(row.clone()).in_words())),
                }
                @if let Some(note) = &row.note { div.muted { (said(note)) } }
            }
            td { (how_many(row)) }
            td.long { (badge(tone(row.state), row.state.as_str())) @if let Some(detail) = &row.detail { " " (said(detail)) } }
        }
    }
}

fn how_many(row: &OperationRow) -> Markup {
    let (expected, published) = (number(row.expected), number(row.published));
    html! {
        @match row.kind {
            Kind::Replay | Kind::Edit => {
                (published) " of " (expected)
                @if row.applied > 0 { ", " (number(row.applied)) " applied" }
                @if row.died > 0 { ", " (number(row.died)) " died again" }
            }
            Kind::Discard | Kind::Restore => (published),
            Kind::Sync => { (expected) " users" @if row.published > 0 { ", " (published) " repaired" } @if row.died > 0 { ", " (number(row.died)) " failed" } }
            Kind::Reveal | Kind::Note | Kind::Grant | Kind::Revoke => span.muted { "–" },
        }
    }
}

fn parsed(text: &str) -> Result<Uuid, Problem> {
    Uuid::try_parse(text).map_err(|_| unknown())
}

fn unknown() -> Problem {
    Problem::new(http::StatusCode::NOT_FOUND, "unknown_operation", "no operation has this id")
        .hint("operations are kept for HEADCOUNT_DEAD_RETENTION")
}

/// `GET /operations/{id}`
pub(in super::super) async fn show(
    State(console): State<Arc<Console>>,
    Name(wanted): Name,
    Extension(caller): Extension<Caller>,
) -> Answer {
    let wanted = parsed(&wanted)?;
    let operation = console.operation(wanted).await?.ok_or_else(unknown)?;
    let may = caller.access >= Access::Operate;
    let title = match operation.kind {
        Kind::Replay => "Replay".to_owned(),
        kind => sentence(kind.as_str()).trim_end_matches('.').to_owned(),
    };
    let main = html! {
        p { a href="/operations" { "Operations" } }
        div.heading { h1 { (title) } (badge(tone(operation.state), operation.state.as_str())) (id(operation.id.to_string())) }
        @if let Some(detail) = &operation.detail { p.note.(tone(operation.state).class()) { (sentence(detail)) } }
        @if operation.kind == Kind::Replay { (progress(&operation)) }
        @if may && operation.kind == Kind::Replay && !operation.state.is_over() { (controls(&operation)) }
        (facts(&operation))
        @if operation.kind == Kind::Replay { p { a href=(letters_of(&operation.what)) { "The letters that match now" } } }
    };
    Ok(View::live(Section::Operations, title, main).into_response())
}

/// The list of letters that a selection means.
fn letters_of(what: &serde_json::Value) -> String {
    let text = |name: &str| what[name].as_str().unwrap_or_default();
    let pairs = ["group", "type", "reason", "user", "text", "since", "until"].map(|name| (name, text(name)));
    path("/dead/letters", &[pairs.as_slice(), &[("status", "all")]].concat())
}

/// The steps of a ramp: how many letters each takes.
fn steps() -> impl Iterator<Item = String> {
    STEPS.into_iter().map(number).chain(["the rest".to_owned()])
}

fn progress(operation: &Operation) -> Markup {
    let done = operation.applied + operation.died;
    let under_way = operation.letters().saturating_sub(done);
    let most = operation.expected.max(operation.published).max(1);
    html! {
        section #progress aria-labelledby="how-far" {
            h2 #how-far { "How far it is" }
            @if let Some(halt_at) = operation.what["halt_at"].as_f64() {
                ol.steps {
                    @for (n, step) in steps().enumerate() {
                        @let at = operation.step.number as usize;
                        @let over = operation.state.is_over();
                        li.(if n < at || (n == at && operation.state == Stands::Complete) { "done" } else if n == at { "here" } else { "ahead" })
                            aria-current=[(n == at && !over).then_some("step")] { (step) }
                    }
                }
                p.muted { "It stops by itself when more than " (number((halt_at * 100.0).round() as u64)) " % of a step die again." }
            }
            progress max=(most) value=(done) aria-label="Letters that were applied or died again" { (number(done)) " of " (number(most)) }
            dl.figures {
                (figure("Meant", number(operation.expected), None, None))
                (figure("Published", number(operation.published), None, None))
                (figure("Applied", number(operation.applied), None, None))
                (figure("Died again", number(operation.died), None, None))
                (figure("Under way", number(under_way), None, None))
            }
            @for warning in operation.what["warnings"].as_array().into_iter().flatten().filter_map(|text| text.as_str()) {
                p.note.warn { "At its start: " (sentence(warning)) }
            }
            @if operation.state == Stands::Complete && operation.letters() < operation.expected {
                p.muted { "The others were no longer open: somebody else replayed or settled them meanwhile." }
            }
            @if operation.state == Stands::Running && !operation.held && now() - operation.started_at > FRESH {
                p.muted { "No process works on it at this moment. One with a worker takes it up within seconds." }
            }
        }
    }
}

fn controls(operation: &Operation) -> Markup {
    let here = under("/operations", &operation.id.to_string());
    let button = |action: &str, text: &str, class: &str| {
        html! { form action={ (here) "/" (action) } method="post" { button class=(class) type="submit" { (text) } } }
    };
    html! {
        div.actions {
            @match operation.wish {
                Wish::Run => { (button("pause", "Pause", "")) (button("stop", "Stop", "danger")) }
                Wish::Pause => { (button("resume", "Resume", "primary")) (button("stop", "Stop", "danger")) }
                Wish::Stop => span.muted { "It stops." },
            }
        }
    }
}

fn facts(operation: &Operation) -> Markup {
    html! {
        section #facts aria-labelledby="the-operation" {
            h2 #the-operation { "The operation" }
            dl.facts {
                dt { "by" } dd { (said(&operation.who)) }
                dt { "began" } dd { (when(operation.started_at)) }
                @if let Some(at) = operation.ended_at { dt { "ended" } dd { (when(at)) } }
                dt { "which" } dd { (said(in_words(&operation.what))) }
                @if let Some(note) = &operation.note { dt { "note" } dd { (said(note)) } }
                @if let Some(letter) = operation.letter_id { dt { "letter" } dd { a href=(under("/dead/letters", &letter.to_string())) { code { (letter) } } } }
                @if let Some(order) = &operation.order {
                    @if let Some(rate) = order.rate { dt { "pace" } dd { "at most " (rate) " per second" } }
                }
            }
        }
    }
}

async fn wish(console: &Console, caller: &Caller, wanted: &str, wish: Wish) -> Answer {
    let wanted = parsed(wanted)?;
    let operations = Arc::clone(&console.api.operations);
    let by = caller.actor("console", None);
    let found =
        console.api.ask(|_| async move { StartError::apart(operations.wish(wanted, wish, &by).await) });
    found.await?.map_err(Problem::from)?.ok_or_else(unknown)?;
    Ok(on_to(&under("/operations", &wanted.to_string())))
}

/// `POST /operations/{id}/pause`
pub(in super::super) async fn pause(
    State(console): State<Arc<Console>>,
    Name(id): Name,
    Extension(caller): Extension<Caller>,
) -> Answer {
    wish(&console, &caller, &id, Wish::Pause).await
}

/// `POST /operations/{id}/resume`
pub(in super::super) async fn resume(
    State(console): State<Arc<Console>>,
    Name(id): Name,
    Extension(caller): Extension<Caller>,
) -> Answer {
    wish(&console, &caller, &id, Wish::Run).await
}

/// `POST /operations/{id}/stop`
pub(in super::super) async fn stop(
    State(console): State<Arc<Console>>,
    Name(id): Name,
    Extension(caller): Extension<Caller>,
) -> Answer {
    wish(&console, &caller, &id, Wish::Stop).await
}
