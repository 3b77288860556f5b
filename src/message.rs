//! Owns what travels through the queue: a message with its identity and its origin, and what is kept of a request that was
//! turned away. Never looks inside the body.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    digest::{hex, sha256},
    text::{REJECTED_HEADERS, WORD_MAX, clean},
    time::Millis,
};

/// The longest message id, in bytes: what an AMQP short string can carry.
pub const MESSAGE_ID_MAX: usize = 255;

/// The longest event type that travels in a header or is stored, in bytes. Longer ones are cut.
pub const EVENT_TYPE_MAX: usize = 128;

/// The type of the webhook that `doctor` asks an ingress with. It is signed like any other and answered as any other would
/// be now, but never published, counted or kept, because those alert people.
pub const PROBE: &str = "headcount.doctor";

/// The id that the sender gave the webhook (`svix-id`): the same over the sender's retries and replays.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(String);

impl MessageId {
    /// Takes an id of 1 to [`MESSAGE_ID_MAX`] bytes of `A-Z a-z 0-9 . _ : ~ + / = @ -`; `None` for anything else.
    ///
    /// The alphabet keeps quotes and braces out: the signature covers `{id}.{timestamp}.{body}`, and an id that could
    /// hold a piece of JSON would let a captured signature be split at another place.
    pub fn parse(text: &str) -> Option<Self> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._:~+/=@-".contains(&b);
        (!text.is_empty() && text.len() <= MESSAGE_ID_MAX && text.bytes().all(plain))
            .then(|| Self(text.to_owned()))
    }

    /// The id of a message that came without a usable one (published by another hand): made from its body, so that
    /// its redeliveries share it.
    pub fn of_body(body: &[u8]) -> Self {
        Self(format!("body_{}", hex(&sha256(body))))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a message comes from. Only our own code sets it: a body cannot claim to come from Clerk's API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The ingress verified its signature.
    #[default]
    Webhook,
    /// It was read from Clerk's API.
    Api,
}

impl Origin {
    /// The stable name: in headers and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Api => "api",
        }
    }

    /// The origin of this name. Everything else, also what an older headcount left out, is a webhook.
    pub fn of(name: &str) -> Self {
        if name == Self::Api.as_str() { Self::Api } else { Self::Webhook }
    }
}

/// News on its way to the `users` table: a verified webhook, or what was read from Clerk's API.
#[derive(Clone)]
pub struct Message {
    /// The sender's id: what makes a repeat a repeat.
    pub id: MessageId,
    /// Where it comes from.
    pub origin: Origin,
    /// The envelope's `type`, at most [`EVENT_TYPE_MAX`] bytes; for people only, the worker reads the body.
    pub event_type: String,
    /// When the ingress took it in, or when it was read from Clerk's API.
    pub received_at: Millis,
    /// Failed tries so far that burned an attempt.
    pub attempt: u32,
    /// Tries so far that ended in waiting for another account's news; these never bury.
    pub waits: u32,
    /// How often people have replayed it from the dead letters.
    pub round: u32,
    /// W3C trace context of the request, where it had one.
    pub traceparent: Option<String>,
    /// The raw bytes that were signed, untouched; or headcount's own envelope around what Clerk's API gave.
    pub body: Bytes,
}

impl fmt::Debug for Message {
    // The body is personal: it is never printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("id", &self.id)
            .field("origin", &self.origin)
            .field("event_type", &self.event_type)
            .field("attempt", &self.attempt)
            .field("waits", &self.waits)
            .field("round", &self.round)
            .field("bytes", &self.body.len())
            .finish()
    }
}

/// What is kept of a request that the ingress turned away. Never its body, nor any header's value.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Rejected {
    /// When the ingress turned it away.
    pub at: Millis,
    /// The address that it came from, as this machine saw it: often a proxy's.
    pub address: String,
    /// The code that it was answered.
    pub reason: String,
    /// Names of its headers, sorted.
    pub headers: Vec<String>,
}

impl Rejected {
    /// Cleans and bounds its texts: the request is a stranger's, and the queue is open to other hands.
    pub fn bounded<'t>(
        at: Millis,
        address: &str,
        reason: &str,
        headers: impl IntoIterator<Item = &'t str>,
    ) -> Self {
        Self {
            at,
            address: clean(address, WORD_MAX),
            reason: clean(reason, WORD_MAX),
            headers: headers.into_iter().take(REJECTED_HEADERS).map(|name| clean(name, WORD_MAX)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_id_is_short_and_plain() {
        assert!(MessageId::parse("msg_p5jXN8AQM9LWM0D4loKWxJek").is_some());
        assert!(MessageId::parse(&"a".repeat(255)).is_some());
        for bad in ["", " ", "a b", "{\"a\":1}", "é", &"a".repeat(256)] {
            assert!(MessageId::parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn a_body_gives_the_same_id_each_time() {
        assert_eq!(MessageId::of_body(b"x"), MessageId::of_body(b"x"));
        assert!(MessageId::parse(MessageId::of_body(b"x").as_str()).is_some());
    }

    #[test]
    fn debug_never_shows_the_body() {
        let message = Message {
            id: MessageId::of_body(b"secret"),
            origin: Origin::Webhook,
            event_type: "user.created".into(),
            received_at: 0,
            attempt: 0,
            waits: 0,
            round: 0,
            traceparent: None,
            body: Bytes::from_static(b"secret"),
        };
        assert!(!format!("{message:?}").contains("secret"));
    }
}
