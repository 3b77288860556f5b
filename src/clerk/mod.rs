//! Owns all that is Clerk's and nothing else: its signatures and secrets, its envelope, its wire types, its API, made-up
//! events in its shape, and a stand-in for its API. Promises that a payload either gives all that the rules read or an
//! error that names the field, and that no error holds a value of the body. Never decides which news wins: that is
//! [`crate::rules`].
//!
//! In a webhook's order: [`signature`] checks it, this file reads its envelope, `user` reads what it says. The body is
//! split, not decoded: an event of another type costs one pass over its bytes. Dispatch is on `type`, never on
//! `data.object`, which Clerk's own examples contradict.

use std::borrow::Cow;

use serde::Deserialize;

pub use self::field::PayloadError;
use self::field::{Field, fields};
use crate::{
    message::{EVENT_TYPE_MAX, MessageId, Origin, PROBE},
    rules::{
        Change, Version,
        users::{self, Source, UpsertKind},
    },
    text::clean,
    time::Millis,
};

pub mod api;
mod billing;
mod field;
mod json;
pub mod made_up;
pub mod secret;
mod session;
pub mod signature;
pub mod stand_in;
pub mod token;
mod user;

/// The event types that are read. Each has a label of its own in the metrics.
pub const TYPES: [&str; 26] = [
    "user.created",
    "user.updated",
    "user.deleted",
    SNAPSHOT,
    GONE,
    "session.created",
    "session.pending",
    "session.ended",
    "session.removed",
    "session.revoked",
    "subscription.created",
    "subscription.updated",
    "subscription.active",
    "subscription.pastDue",
    "subscriptionItem.created",
    "subscriptionItem.updated",
    "subscriptionItem.active",
    "subscriptionItem.canceled",
    "subscriptionItem.upcoming",
    "subscriptionItem.ended",
    "subscriptionItem.abandoned",
    "subscriptionItem.incomplete",
    "subscriptionItem.pastDue",
    "subscriptionItem.expired",
    "subscriptionItem.freeTrialEnding",
    SUBSCRIPTION,
];

/// The type of a user as Clerk's API gave it. Folds like `user.updated`.
pub const SNAPSHOT: &str = "headcount.user";

/// The type of the news that Clerk's API does not know an account any more. Folds like `user.deleted`.
pub const GONE: &str = "headcount.user_gone";

/// The type of a user's subscription items as Clerk's API gave them.
pub const SUBSCRIPTION: &str = "headcount.subscription";

/// What the types of headcount's own news begin with. A webhook has none of them.
const OURS: &str = "headcount.";

/// The longest Clerk id, in bytes.
const ID_MAX: usize = 255;

/// What a webhook says.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// What becomes of an account.
    pub change: Change,
    /// The envelope's `type`, cleaned, at most [`EVENT_TYPE_MAX`] bytes.
    pub event_type: String,
    /// The envelope's `timestamp`: when Clerk sent the event first, or when its API was read.
    pub sent: Option<Millis>,
    /// The envelope's `instance_id`, cleaned: which Clerk instance the event is of.
    pub instance: Option<String>,
}

/// What is known of a message beside its body.
#[derive(Clone, Copy, Debug)]
pub struct Known<'m> {
    /// The version's last tie-breaker.
    pub message_id: &'m MessageId,
    /// Whether it may be headcount's own news.
    pub origin: Origin,
    /// Dates news that has no time of its own.
    pub received_at: Millis,
    /// `HEADCOUNT_KEEP_CLERK_OBJECT`
    pub keep_object: bool,
    /// `HEADCOUNT_SESSIONS`. Without it events about sessions are as any other that headcount does not use.
    pub sessions: bool,
    /// `HEADCOUNT_BILLING`. The same for events about subscriptions.
    pub billing: bool,
}

impl<'m> Known<'m> {
    /// Of a webhook, whose whole object is not kept.
    pub fn webhook(message_id: &'m MessageId, received_at: Millis) -> Self {
        Self {
            message_id,
            origin: Origin::Webhook,
            received_at,
            keep_object: false,
            sessions: true,
            billing: true,
        }
    }
}

/// What is known of an event about a session or a subscription, beside its `data`.
struct Heard<'m> {
    /// The envelope's `timestamp`.
    sent: Option<Millis>,
    message_id: &'m MessageId,
    received_at: Millis,
}

impl Heard<'_> {
    fn version(&self, at: Millis) -> Version {
        Version { at, sent: self.sent.unwrap_or_default(), message_id: self.message_id.as_str().to_owned() }
    }
}

/// Reads a message's body.
///
/// # Errors
/// The body is no Clerk event, or one about a user, a session or a subscription that lacks what those need, or headcount's own news in
/// a webhook. The error names the field.
pub fn parse(body: &[u8], known: &Known<'_>) -> Result<Parsed, PayloadError> {
    match parse_at_once(body, known) {
        Some(parsed) => Ok(parsed),
        None => parse_in_two(body, known),
    }
}

/// The `type` that ends a body, as Clerk writes it: `…,"type":"user.updated"}`. In a whole body the last brace closes the
/// envelope, so the type is the envelope's.
fn last_type(body: &[u8]) -> Option<&str> {
    let before = body.strip_suffix(b"\"}")?;
    let start = before.len().saturating_sub(EVENT_TYPE_MAX);
    let from = start + before[start..].iter().rposition(|byte| *byte == b'"')? + 1;
    let kind = std::str::from_utf8(&before[from..]).ok()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (body[..from].ends_with(b",\"type\":\"") && !kind.is_empty() && kind.bytes().all(plain)).then_some(kind)
}

/// News of a user in one pass over the body instead of two. `None` where it is anything else, or anything is wrong with it.
fn parse_at_once(body: &[u8], known: &Known<'_>) -> Option<Parsed> {
    if known.origin != Origin::Webhook || known.keep_object {
        return None;
    }
    // Otherwise the pass would be in vain.
    let event_type = last_type(body)?;
    let kind = match event_type {
        "user.created" => UpsertKind::Created,
        "user.updated" => UpsertKind::Updated,
        _ => return None,
    };
    let event: UserEvent<'_> = field::body(body).ok()?;
    let sent = Field::at("timestamp", event.timestamp).time().ok()?;
    let Known { message_id, received_at, .. } = *known;
    let news = user::News { sent, message_id, received_at, source: Source::Webhook, keep_object: false };
    let upsert = news.upsert_of(&event.data, kind, None).ok()?;
    let change = Change::User(users::Change::Upsert(upsert));
    let instance = instance(event.instance_id);
    Some(Parsed { change, event_type: event_type.to_owned(), sent, instance })
}

fn instance(id: field::Raw<'_>) -> Option<String> {
    let instance = Field::at("instance_id", id).any_text().unwrap_or_default();
    instance.map(|id| clean(&id, ID_MAX)).filter(|id| !id.is_empty())
}

/// Any event: its envelope first, and then what that says it is.
fn parse_in_two(body: &[u8], known: &Known<'_>) -> Result<Parsed, PayloadError> {
    let envelope = Envelope::read(body)?;
    let event_type = envelope.event_type()?;
    let sent = || Field::at("timestamp", envelope.timestamp).time();
    let source = match known.origin {
        Origin::Webhook => Source::Webhook,
        Origin::Api => {
            Source::Api { revive: Field::at("revive", envelope.revive).flag()?.unwrap_or_default() }
        }
    };
    // An older ingress queues what `doctor` asks with, which is nobody's news.
    if known.origin == Origin::Webhook && event_type.starts_with(OURS) && event_type != PROBE {
        return Err(
            Field::at("type", envelope.r#type).error("only headcount itself makes events of this type")
        );
    }
    let Known { message_id, received_at, keep_object, sessions, billing, .. } = *known;
    let heard = || Ok(Heard { sent: sent()?, message_id, received_at });
    let news = || Ok(user::News { sent: sent()?, message_id, received_at, source, keep_object });
    let upsert = |user| Change::User(users::Change::Upsert(user));
    let change = match &*event_type {
        "user.created" => upsert(news()?.upsert(envelope.data, UpsertKind::Created)?),
        "user.updated" | SNAPSHOT => upsert(news()?.upsert(envelope.data, UpsertKind::Updated)?),
        "user.deleted" | GONE => news()?.delete(envelope.data)?,
        kind if sessions && let Some(status) = session::status(kind) => {
            Change::Session(Box::new(heard()?.session(envelope.data, status)?))
        }
        SUBSCRIPTION if billing => Change::Subscription(Box::new(heard()?.reading(&envelope)?)),
        kind if billing && let Some(kind) = billing::Kind::of(kind) => {
            Change::Subscription(Box::new(heard()?.billing(envelope.data, kind)?))
        }
        // Of an event that headcount does not use nothing is asked, not even a sound timestamp.
        _ => Change::Other,
    };
    Ok(Parsed {
        change,
        event_type: clean(&event_type, EVENT_TYPE_MAX),
        sent: sent().unwrap_or_default(),
        instance: instance(envelope.instance_id),
    })
}

/// Whether a body is what `doctor` asks with.
pub fn is_probe(body: &[u8]) -> bool {
    Envelope::read(body).and_then(|envelope| envelope.event_type()).is_ok_and(|kind| kind == PROBE)
}

/// The envelope's `type`, cleaned; `unknown` where the body has none. Never fails. For people, so the end of a body
/// that looks as Clerk writes it is taken at its word.
pub fn event_type(body: &[u8]) -> String {
    if let Some(kind) = last_type(body) {
        return kind.to_owned();
    }
    let kind = Envelope::read(body).and_then(|envelope| envelope.event_type());
    kind.map_or_else(|_| "unknown".into(), |kind| clean(&kind, EVENT_TYPE_MAX))
}

/// The account that a body is about, as far as it tells: its own id in events about users, who pays in those about subscriptions, and
/// `user_id` in those about their sessions, addresses and the like. Never fails.
pub fn whose(body: &[u8]) -> Option<String> {
    fields! { About { id, user_id, payer } }
    let envelope = Envelope::read(body).ok()?;
    let about: About<'_> = Field::at("data", envelope.data).object().ok()??;
    let event_type = envelope.event_type().ok()?;
    let is_user = event_type.starts_with("user.") || [SNAPSHOT, GONE].contains(&&*event_type);
    let payer = match &*event_type {
        SUBSCRIPTION => Field::at("payer", envelope.payer).any_text().ok()?.map(Cow::into_owned),
        _ if is_user => None,
        _ => billing::payer(about.payer).ok(),
    };
    if let Some(payer) = payer {
        return Some(clean(&payer, ID_MAX));
    }
    let id = Field::at("data.id", if is_user { about.id } else { about.user_id }).any_text().ok()??;
    (!id.is_empty()).then(|| clean(&id, ID_MAX))
}

fields! {
    /// What surrounds every event (Clerk: "Webhooks overview, payload structure"). It holds no id of the event: that is
    /// the header `svix-id`. Only headcount's own news has `revive`, `payer` and `unmentioned`.
    Envelope { r#type, timestamp, instance_id, revive, payer, unmentioned, data }
}

/// An event about a user, with its `data` read. It has to be an object.
#[derive(Deserialize)]
#[allow(dead_code, reason = "what is of no use here may not be there twice either, as in Envelope")]
struct UserEvent<'a> {
    #[serde(borrow)]
    revive: field::Raw<'a>,
    #[serde(borrow)]
    payer: field::Raw<'a>,
    #[serde(borrow)]
    unmentioned: field::Raw<'a>,
    #[serde(borrow)]
    r#type: field::Raw<'a>,
    #[serde(borrow)]
    timestamp: field::Raw<'a>,
    #[serde(borrow)]
    instance_id: field::Raw<'a>,
    #[serde(borrow, deserialize_with = "field::of_object")]
    data: user::User<'a>,
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
