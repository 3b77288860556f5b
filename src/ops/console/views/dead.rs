//! Owns the pages that list dead letters: by cause, and one by one.

use std::sync::Arc;

use axum::{Extension, extract::State, response::IntoResponse};
use maud::{Markup, html};

use super::{
    super::{
        Answer, Console,
        form::{FILTERS, Fields, Form},
        frame::{Section, View, on_to},
        parts::{Tone, badge, empty, nothing, path, said, spark, table, under, when},
    },
    users::letter_tone,
};
use crate::{
    letters::select::{cursor, parse_cursor},
    net::Problem,
    ops::{
        access::{Access, Caller},
        api::dead::select,
    },
    queue::Reason,
    store::{
        letters::{Letter, Page, Status},
        operations::OperationRow,
    },
    text::number,
};

/// Letters of one page.
const PAGE: u32 = 50;

/// What a reason means, and what to do, in plain words.
pub(super) fn meaning(reason: &str) -> (&'static str, &'static str) {
    let Some(reason) = Reason::ALL.into_iter().find(|known| known.as_str() == reason) else {
        return (
            "Another program put it here, or a newer headcount.",
            "Read the detail, and replay it once the cause is gone.",
        );
    };
    match reason {
        Reason::InvalidPayload => (
            "The body cannot be read as one of Clerk's webhooks.",
            "Edit the body and send it, or discard it. A replay alone dies again, unless a newer headcount can read it.",
        ),
        Reason::Rejected => (
            "The database refuses what it says, while it takes what others say: a constraint, a trigger or a policy of yours stands against it.",
            "Mend the constraint or the trigger, or edit the body. Then replay one, and the rest when it lives.",
        ),
        Reason::RetriesExhausted => (
            "It lost a race for the same rows at every try.",
            "Replay it: races pass. If it dies again, look for long transactions on the table of users.",
        ),
        Reason::CrashLoop => (
            "It came back unsettled too often: it ends or stalls the workers that take it.",
            "Look at the workers' logs around its deaths. Replay it alone, not with others.",
        ),
        Reason::Unroutable => (
            "The broker had no queue that would take it, or keep it.",
            "Run headcount doctor, which checks the queues. Then replay it.",
        ),
        Reason::OtherInstance => (
            "It comes from another Clerk instance than HEADCOUNT_CLERK_INSTANCE names.",
            "Point the other instance's endpoint elsewhere, and discard it. If the setting is wrong, mend it and replay.",
        ),
    }
}

/// `GET /dead`
pub(in super::super) async fn causes(
    State(console): State<Arc<Console>>,
    Extension(caller): Extension<Caller>,
) -> Answer {
    let all = console.why_died().await?;
    let (causes, notes) = &*all;
    let open: u64 = causes.iter().map(|cause| cause.group.letters).sum();
    let may = caller.access >= Access::Operate;
    let main = html! {
        div.heading {
            h1 { "Dead letters" }
            span.muted { (number(open)) " open, by cause" }
        }
        p { a href=(path("/dead/letters", &[])) { "One by one" } " · " a href=(path("/dead/letters", &[("status", "all")])) { "settled ones too" } }
        @if causes.is_empty() {
            (empty("No letter is open", html! {
                "A webhook that cannot be applied, whatever is tried, comes to rest here with its reason, and waits for you: nothing is lost."
            }))
        }
        ul.cards {
            @for cause in causes.iter() {
                @let (means, todo) = meaning(&cause.group.reason);
                li.card data-row {
                    div.split {
                        div {
                            h2 {
                                a href=(path("/dead/letters", &[("group", &cause.group.id)])) { (crate::text::letters(cause.group.letters)) }
                                " " (badge(Tone::Bad, &cause.group.reason))
                                @if cause.is_new { " " (badge(Tone::Warn, "new since yesterday")) }
                            }
                            @if !cause.group.detail.is_empty() { p.detail { (said(&cause.group.detail)) } }
                            p { (means) }
                            p.muted { (todo) }
                            (note(&cause.group.id, notes.get(&cause.group.id), may))
                            p.muted {
                                "first " @match cause.group.first_died_at { Some(at) => (when(at)), None => "–" }
                                " · last " @match cause.group.last_died_at { Some(at) => (when(at)), None => "–" }
                            }
                        }
                        div.aside {
                            (spark("Deaths per hour, the last day", &cause.hours))
                            span.muted { "the last day" }
                            @if may { a.button href=(path("/dead/replay", &[("group", &cause.group.id)])) { "Replay…" } }
                        }
                    }
                }
            }
        }
    };
    Ok(View::live(Section::Dead, "Dead letters", main).into_response())
}

/// What people wrote about a cause, and where to write it.
fn note(group: &str, note: Option<&OperationRow>, may: bool) -> Markup {
    let text = note.and_then(|row| row.note.as_deref()).unwrap_or_default();
    html! {
        @if let Some(row) = note {
            p.note.plain { (said(text)) " " span.muted { "by " (said(&row.who)) ", " (when(row.at)) } }
        }
        @if may {
            details {
                summary { @if note.is_some() { "Change the note" } @else { "Write a note" } }
                form.actions action="/dead/note" method="post" {
                    input type="hidden" name="group" value=(group);
                    input.wide type="text" name="note" maxlength="1000" value=(text) aria-label="Note on this cause" autocomplete="off";
                    button type="submit" { "Keep it" }
                }
            }
        }
    }
}

/// `POST /dead/note`: without a text it takes the note away.
pub(in super::super) async fn keep_note(
    State(console): State<Arc<Console>>,
    Extension(caller): Extension<Caller>,
    Form(fields): Form,
) -> Answer {
    let selected = select(&console.api, &fields.selection()?, None).await?;
    let group = selected.filter.group.ok_or_else(|| Problem::bad_request("the form names no cause"))?;
    console.note_cause(group, caller.actor("console", fields.get("note"))).await?;
    Ok(on_to("/dead"))
}

/// `GET /dead/letters`
pub(in super::super) async fn list(
    State(console): State<Arc<Console>>,
    Extension(caller): Extension<Caller>,
    fields: Fields,
) -> Answer {
    let selection = fields.selection()?;
    let after = fields.get("after").map(parse_cursor).transpose().map_err(Problem::from)?;
    let selected = select(&console.api, &selection, Some(Status::Open)).await?;
    let (filter, page) = (selected.filter.clone(), Page { limit: PAGE, after });
    let letters = console.api.ask(|store| async move { store.list(&filter, &page).await }).await?;
    let next = letters.last().filter(|_| letters.len() == PAGE as usize).map(cursor);
    let (chosen, standing) = (fields.only(&FILTERS), selected.filter.status);
    let settles = standing != Some(Status::Applied);
    let may = caller.access >= Access::Operate;
    // All of a kind are meant only where somebody says so.
    let all: &[(&str, &str)] = if fields.selects() { &[] } else { &[("all", "yes")] };
    let on = |base: &str, more: &[(&str, &str)]| path(base, &[chosen.as_slice(), more].concat());
    let result = console.result(fields.get("result"));
    let main = html! {
        div.heading { h1 { "Letters" } @if let Some(group) = &selected.filter.group { span.muted { (said(group)) } } }
        @if let Some(result) = result { div.note.good role="status" { (result) } }
        p { a href="/dead" { "By cause" } }
        (filters(&fields))
        @if letters.is_empty() {
            (empty("No letter matches", html! { "Nothing here, or not any more. " a href="/dead/letters" { "Show all that are open" } }))
        } @else {
            form.letters method="get" action="/dead/replay" {
                input type="hidden" name="chosen" value="yes";
                (table("Letters", &["Chosen", "Died", "Type", "User", "Why", "Stands"], html! {
                    @for letter in &letters { (line(letter, may)) }
                }))
                @if may && settles {
                    div.actions.sticky {
                        @if standing != Some(Status::Discarded) {
                            button.primary type="submit" data-verb="r" { "Replay the chosen…" }
                            button type="submit" formaction="/dead/discard" { "Discard the chosen…" }
                        }
                        @if standing.is_none_or(|standing| standing == Status::Discarded) {
                            button type="submit" formaction="/dead/restore" { "Restore the chosen…" }
                        }
                        span.muted { "All that match: " }
                        @if standing == Some(Status::Discarded) { a href=(on("/dead/restore", all)) { "restore…" } }
                        @else { a href=(on("/dead/replay", all)) { "replay…" } a href=(on("/dead/discard", all)) { "discard…" } }
                    }
                }
            }
            @if let Some(next) = next { p.more { a href=(on("/dead/letters", &[("after", next.as_str())])) rel="next" { "Older ones" } } }
        }
    };
    Ok(View::new(Section::Dead, "Letters", main).into_response())
}

fn line(letter: &Letter, may: bool) -> Markup {
    let name = format!("Choose {} of {}", said(&letter.message_id), said(&letter.event_type));
    html! {
        tr data-row {
            td { @if may { input type="checkbox" name="id" value=(letter.id) aria-label=(name); } }
            td { a href=(under("/dead/letters", &letter.id.to_string())) { (when(letter.died_at)) } }
            td { (said(&letter.event_type)) }
            td { @match &letter.clerk_id { Some(id) => (super::super::parts::user(id)), None => (nothing()) } }
            td.long { (badge(Tone::Plain, &letter.reason)) " " (said(&letter.detail)) }
            td { (badge(letter_tone(letter.status), letter.standing())) @if letter.round > 0 { span.muted { " round " (letter.round) } } }
        }
    }
}

/// The filters that are folded away.
const MORE: [&str; 4] = ["type", "user", "since", "until"];

fn filters(fields: &Fields) -> Markup {
    let is = |name: &str, value: &str| fields.get(name).unwrap_or_default() == value;
    let text = |label: &str, name: &str, hint: &str| {
        html! { label { (label) " " input type="search" name=(name) value=(fields.get(name).unwrap_or_default()) placeholder=(hint) maxlength="320"; } }
    };
    html! {
        form.filters action="/dead/letters" method="get" role="search" aria-label="Letters" {
            @if let Some(group) = fields.get("group") { input type="hidden" name="group" value=(group); }
            label { "Status " select name="status" {
                @for status in ["open", "replayed", "applied", "discarded", "all"] {
                    option value=(status) selected[is("status", status) || (status == "open" && fields.get("status").is_none())] { (status) }
                }
            } }
            label { "Reason " select name="reason" {
                option value="" { "any" }
                @for reason in Reason::ALL { option value=(reason.as_str()) selected[is("reason", reason.as_str())] { (reason.as_str()) } }
            } }
            (text("Text", "text", "of the detail or message id"))
            button type="submit" { "Show" }
            @if !fields.only(&FILTERS).is_empty() { a.button href="/dead/letters" { "Clear" } }
            details open[MORE.iter().any(|name| fields.get(name).is_some())] {
                summary { "More filters" }
                div.more-filters {
                    (text("Type", "type", "user.updated"))
                    (text("Clerk id", "user", "user_…"))
                    (text("Died since", "since", "2h, 2026-01-31"))
                    (text("Died before", "until", "1h"))
                }
            }
        }
    }
}
