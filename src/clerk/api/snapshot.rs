//! Owns what is read from Clerk's API as news: the snapshot of a user, that a user is gone, and the messages that carry
//! them. Promises that a snapshot of the same reading is the same message, and that `data` travels as it came.

use std::fmt;

use bytes::Bytes;
use serde_json::{json, value::RawValue};

use super::super::{
    GONE, SNAPSHOT,
    field::{Field, PayloadError, Raw, fields},
    user::{News, identity},
};
use crate::{
    message::{Message, MessageId, Origin},
    rules::users::{Source, Upsert, UpsertKind},
    time::Millis,
};

/// One user as the API gave it.
#[derive(Clone)]
pub struct Snapshot {
    /// `None`: not even the id could be read.
    pub clerk_id: Option<String>,
    /// When the request began, as [`super::Api::now`] tells the time.
    pub read_at: Millis,
    /// `data.created_at`, where it is sound.
    pub created_at: Option<Millis>,
    /// `data.updated_at`, where it is sound.
    pub updated_at: Option<Millis>,
    /// As it will be folded, or why it will be buried.
    pub upsert: Result<Box<Upsert>, PayloadError>,
    /// As it came.
    data: Bytes,
}

fields! {
    /// What is read of a user that cannot be folded.
    Outline { id, created_at, updated_at }
}

fields! {
    /// What tells a whole user from a part of one.
    Parts { deleted, updated_at, email_addresses }
}

/// The normalized addresses that these users claim: what they are compared by, beside their ids.
pub fn keys(users: &[Snapshot]) -> Vec<String> {
    let upserts = users.iter().filter_map(|user| user.upsert.as_ref().ok());
    upserts.filter_map(|upsert| Some(upsert.claim.as_ref()?.key.clone())).collect()
}

/// Whether all is there that Clerk's API gives of a user. A part of one would empty the row.
fn whole(raw: &RawValue) -> Result<(), PayloadError> {
    let Some(parts): Option<Parts<'_>> = Field::at("data", Some(raw)).object()? else { return Ok(()) };
    if Field::at("data.deleted", parts.deleted).flag().ok().flatten() == Some(true) {
        return Err(Field::at("data.deleted", parts.deleted).error("a user who is deleted"));
    }
    for (path, part) in
        [("data.updated_at", parts.updated_at), ("data.email_addresses", parts.email_addresses)]
    {
        if part.is_none_or(|part| part.get() == "null") {
            return Err(Field::at(path, part).error("missing"));
        }
    }
    Ok(())
}

impl Snapshot {
    /// Reads the user that stands at `raw`, a part of `body`.
    pub(super) fn read(body: &Bytes, raw: &RawValue, read_at: Millis, keep_object: bool) -> Self {
        let outline: Option<Outline<'_>> = Field::at("data", Some(raw)).object().ok().flatten();
        let (id, created_at, updated_at) =
            outline.map(|outline| (outline.id, outline.created_at, outline.updated_at)).unwrap_or_default();
        let time = |path, raw: Raw<'_>| Field::at(path, raw).time().ok().flatten();
        let mut snapshot = Self {
            clerk_id: identity("data.id", id).ok(),
            read_at,
            created_at: time("data.created_at", created_at),
            updated_at: time("data.updated_at", updated_at),
            upsert: Err(PayloadError { detail: String::new() }),
            data: body.slice_ref(raw.get().as_bytes()),
        };
        let message_id = snapshot.message_id();
        let news = News {
            sent: Some(read_at),
            message_id: &message_id,
            received_at: read_at,
            source: Source::Api { revive: false },
            keep_object,
        };
        let read = news.upsert(Some(raw), UpsertKind::Updated);
        snapshot.upsert = read.and_then(|upsert| whole(raw).map(|()| upsert));
        snapshot
    }

    /// The id of [`Snapshot::message`]: `api_<clerk id>_<time of reading>`.
    pub fn message_id(&self) -> MessageId {
        match &self.clerk_id {
            Some(id) => message_id(&format!("api_{id}_{}", self.read_at)),
            None => MessageId::of_body(&self.data),
        }
    }

    /// The message that brings it to the table. With `revive` it also brings back a user who is deleted there.
    pub fn message(&self, instance: &str, revive: bool) -> Message {
        let head = json!({ "instance_id": instance, "object": "event", "timestamp": self.read_at, "type": SNAPSHOT });
        let mut body = head.to_string().into_bytes();
        // The closing brace comes back at the end.
        body.pop();
        if revive {
            body.extend_from_slice(b",\"revive\":true");
        }
        body.extend_from_slice(b",\"data\":");
        body.extend_from_slice(&self.data);
        body.push(b'}');
        message(self.message_id(), SNAPSHOT, self.read_at, body)
    }
}

impl fmt::Debug for Snapshot {
    // The user is personal: only who it is and the times are printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("clerk_id", &self.clerk_id)
            .field("read_at", &self.read_at)
            .field("created_at", &self.created_at)
            .field("updated_at", &self.updated_at)
            .field("error", &self.upsert.as_ref().err())
            .field("bytes", &self.data.len())
            .finish()
    }
}

/// The message that Clerk does not know a user any more, as it was confirmed at `confirmed_at`.
pub fn gone(clerk_id: &str, confirmed_at: Millis, instance: &str) -> Message {
    let body = json!({
        "data": { "deleted": true, "id": clerk_id, "object": "user" },
        "instance_id": instance,
        "object": "event",
        "timestamp": confirmed_at,
        "type": GONE,
    });
    let id = message_id(&format!("api_{clerk_id}_gone_{confirmed_at}"));
    message(id, GONE, confirmed_at, body.to_string().into_bytes())
}

/// `text`, or its digest where a Clerk id is too long or too strange for the id of a message.
pub(super) fn message_id(text: &str) -> MessageId {
    MessageId::parse(text).unwrap_or_else(|| MessageId::of_body(text.as_bytes()))
}

pub(super) fn message(id: MessageId, event_type: &str, read_at: Millis, body: Vec<u8>) -> Message {
    Message {
        id,
        origin: Origin::Api,
        event_type: event_type.to_owned(),
        received_at: read_at,
        attempt: 0,
        waits: 0,
        round: 0,
        traceparent: None,
        body: body.into(),
    }
}
