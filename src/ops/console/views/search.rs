//! Owns the search: any id or address leads to the thing itself.

use std::sync::Arc;

use axum::{extract::State, response::IntoResponse};
use maud::{Markup, html};
use uuid::Uuid;

use super::{
    super::{
        Answer, Console,
        form::Fields,
        frame::{Section, View, on_to},
        parts::{badge, command, path, said, under, when_or_dash, when_told},
    },
    users::outcome_tone,
};
use crate::{
    store::{
        PastEvent, UserQuery,
        letters::{Filter, Page},
    },
    text::quoted,
};

/// `GET /search?q=…`
pub(in super::super) async fn find(State(console): State<Arc<Console>>, fields: Fields) -> Answer {
    let Some(wanted) = fields.get("q").map(|text| text.trim().to_owned()) else {
        return Ok(on_to("/users"));
    };
    let api = &console.api;
    let reference = wanted.clone();
    let user = api.ask(|store| async move { store.user(&reference).await }).await?;
    if let Some(found) = &user {
        let id = found.user.as_ref().map_or_else(
            || found.former.first().map(|former| former.clerk_id.clone()),
            |user| Some(user.clerk_id.clone()),
        );
        return Ok(on_to(&under("/users", &id.unwrap_or_else(|| wanted.clone()))));
    }
    let reference = wanted.clone();
    if let Some(letter) = api.ask(|store| async move { store.show(&reference).await }).await? {
        return Ok(on_to(&under("/dead/letters", &letter.letter.id.to_string())));
    }
    if let Ok(id) = Uuid::try_parse(&wanted)
        && console.api.ask(|store| async move { store.operation(id).await }).await?.is_some()
    {
        return Ok(on_to(&under("/operations", &id.to_string())));
    }
    let message = wanted.clone();
    let applied = api.ask(|store| async move { store.message(&message).await }).await?;
    if let Some(event) = applied {
        let about = event.clerk_id.clone().unwrap_or_default();
        let row = api.ask(|store| async move { store.user(&about).await }).await?;
        return Ok(match (row, &event.clerk_id) {
            (Some(_), Some(clerk_id)) => on_to(&format!("{}#{}", under("/users", clerk_id), wanted)),
            _ => View::new(Section::Elsewhere, "A message", settled(&event)).into_response(),
        });
    }
    let about = Filter { clerk_id: Some(wanted.clone()), ..Filter::default() };
    let page = Page { limit: 1, after: None };
    let letters = api.ask(|store| async move { store.list(&about, &page).await }).await?;
    if !letters.is_empty() {
        return Ok(on_to(&path("/dead/letters", &[("user", &wanted), ("status", "all")])));
    }
    let query = UserQuery { limit: 2, after: None, deleted: true, text: Some(wanted.clone()) };
    let named = api.ask(|store| async move { store.users(&query).await }).await?;
    match named.as_slice() {
        [] => Ok(View::new(Section::Elsewhere, "Not found", nobody(&console, &wanted).await)
            .status(http::StatusCode::NOT_FOUND)
            .into_response()),
        [one] => Ok(on_to(&under("/users", &one.clerk_id))),
        _ => Ok(on_to(&path("/users", &[("text", &wanted), ("deleted", "true")]))),
    }
}

/// A message that is about no user of the table.
fn settled(event: &PastEvent) -> Markup {
    html! {
        h1 { "Message " code { (said(&event.message_id)) } }
        p.lead { "It came and was settled. No row of the users table is about it." }
        dl.facts {
            dt { "type" } dd { (said(&event.event_type)) }
            dt { "outcome" } dd { (badge(outcome_tone(&event.outcome), &event.outcome)) }
            @if let Some(clerk_id) = &event.clerk_id { dt { "about" } dd { code { (said(clerk_id)) } } }
            dt { "in Clerk" } dd { (when_or_dash(event.event_at.as_ref())) }
            dt { "received" } dd { (when_told(&event.received_at)) }
            dt { "committed" } dd { (when_told(&event.processed_at)) }
        }
    }
}

/// What is said of an id or address that nothing is known of.
async fn nobody(console: &Console, wanted: &str) -> Markup {
    let moment = console.now().await;
    let last = moment.known.as_ref().ok().and_then(|(overview, _)| {
        let noted = overview.sync.as_ref().and_then(|sync| sync.last_webhook_at.clone());
        noted.or_else(|| overview.users.last_received_at.clone())
    });
    html! {
        h1 { "Never heard of " q { (said(wanted)) } }
        p.lead {
            "No user, former id, message or letter has this id or address. "
            @match &last {
                Some(at) => { "The last webhook came " (when_told(at)) "." }
                None => "No webhook has come yet.",
            }
        }
        @if console.clerk.is_some() {
            p { "A webhook may be on its way, or lost. Clerk itself knows." }
            p { a.button href={ (under("/users", wanted)) "/clerk" } { "Ask Clerk" } }
            p.muted { "To bring the user here at once: " (command(&format!("headcount sync {}", quoted(wanted)))) }
        } @else {
            p.muted { "With CLERK_SECRET_KEY set, this page could ask Clerk." }
        }
        p { a href={ (path("/dead/letters", &[("text", wanted), ("status", "all")])) } { "Search the dead letters for this text" } }
    }
}
