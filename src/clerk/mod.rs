//! Owns all that is Clerk's and nothing else: its signatures and secrets, its envelope, its wire types, its API,
//! made-up events in its shape, and a stand-in for its API. Promises that a payload either gives all that the rules read or an error that names the field,
//! and that no error holds a value of the body. Never decides which news wins: that is [`crate::rules`].
//!
//! In a webhook's order: [`signature`] checks it, this file reads its envelope, `user` reads what it says. The body is
//! split, not decoded: an event of another type costs one pass over its bytes. Dispatch is on `type`, never on
//! `data.object`, which Clerk's own examples contradict.

use std::borrow::Cow;

pub use self::field::PayloadError;
use self::field::{Field, fields};
use crate::{
    message::{EVENT_TYPE_MAX, MessageId},
    rules::{
        Change,
        users::{self, UpsertKind},
    },
    text::clean,
    time::Millis,
};

pub mod api;
mod field;
mod json;
pub mod made_up;
pub mod secret;
pub mod signature;
pub mod stand_in;
mod user;

/// The event types that are read. Each has a label of its own in the metrics.
pub const TYPES: [&str; 3] = ["user.created", "user.updated", "user.deleted"];

/// The longest Clerk id, in bytes.
const ID_MAX: usize = 255;

/// What a webhook says.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// What becomes of an account.
    pub change: Change,
    /// The envelope's `type`, cleaned, at most [`EVENT_TYPE_MAX`] bytes.
    pub event_type: String,
    /// The envelope's `timestamp`: when Clerk sent the event first.
    pub sent: Option<Millis>,
}

/// Reads a webhook's body. The message id is the version's last tie-breaker, and the time of receipt dates news that
/// has no time of its own.
///
/// # Errors
/// The body is no Clerk event, or one about a user that lacks what a user needs. The error names the field.
pub fn parse(body: &[u8], message_id: &MessageId, received_at: Millis) -> Result<Parsed, PayloadError> {
    let envelope = Envelope::read(body)?;
    let event_type = envelope.event_type()?;
    let sent = || Field::at("timestamp", envelope.timestamp).time();
    let news = || Ok(user::News { sent: sent()?, message_id, received_at });
    let upsert = |user| Change::User(users::Change::Upsert(user));
    let change = match &*event_type {
        "user.created" => upsert(news()?.upsert(envelope.data, UpsertKind::Created)?),
        "user.updated" => upsert(news()?.upsert(envelope.data, UpsertKind::Updated)?),
        "user.deleted" => news()?.delete(envelope.data)?,
        // Of an event that headcount does not use nothing is asked, not even a sound timestamp.
        _ => Change::Other,
    };
    Ok(Parsed { change, event_type: clean(&event_type, EVENT_TYPE_MAX), sent: sent().unwrap_or_default() })
}

/// The envelope's `type`, cleaned; `unknown` where the body has none. Never fails.
pub fn event_type(body: &[u8]) -> String {
    let kind = Envelope::read(body).and_then(|envelope| envelope.event_type());
    kind.map_or_else(|_| "unknown".into(), |kind| clean(&kind, EVENT_TYPE_MAX))
}

/// The account that a body is about, as far as it tells: its own id in events about users, and `user_id` in those about
/// their sessions, addresses and the like. Never fails.
pub fn whose(body: &[u8]) -> Option<String> {
    fields! { About { id, user_id } }
    let envelope = Envelope::read(body).ok()?;
    let about: About<'_> = Field::at("data", envelope.data).object().ok()??;
    let is_user = envelope.event_type().ok()?.starts_with("user.");
    let id = Field::at("data.id", if is_user { about.id } else { about.user_id }).any_text().ok()??;
    (!id.is_empty()).then(|| clean(&id, ID_MAX))
}

fields! {
    /// What surrounds every event (Clerk: "Webhooks overview, payload structure"). It holds no id of the event: that is
    /// the header `svix-id`.
    Envelope { r#type, timestamp, data }
}

impl<'a> Envelope<'a> {
    fn read(body: &'a [u8]) -> Result<Self, PayloadError> {
        field::body(body)
    }

    /// As it was sent: not yet bounded.
    fn event_type(&self) -> Result<Cow<'a, str>, PayloadError> {
        let kind = Field::at("type", self.r#type);
        kind.any_text()?.filter(|text| !text.is_empty()).ok_or_else(|| kind.error("missing"))
    }
}

#[cfg(test)]
mod tests;
