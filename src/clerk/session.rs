//! Owns what Clerk tells about a session: `data` of `session.created`, `.pending`, `.ended`, `.removed` and `.revoked`, read into
//! what the rules fold. The user object inside is no news about the user. Never looks at the envelope.

use super::{
    Heard,
    field::{Field, PayloadError, Raw, fields},
    user::{content, identity},
};
use crate::rules::sessions::{News, Status};

fields! {
    /// `data` of each of the five, as far as it is kept.
    Session { id, user_id, status, created_at, updated_at, last_active_at }
}

/// What the type of an event makes of its session; `None` for all other types.
pub(super) fn status(event_type: &str) -> Option<Status> {
    match event_type {
        "session.created" => Some(Status::Active),
        "session.pending" => Some(Status::Pending),
        "session.ended" => Some(Status::Ended),
        "session.removed" => Some(Status::Removed),
        "session.revoked" => Some(Status::Revoked),
        _ => None,
    }
}

impl Heard<'_> {
    pub(super) fn session(&self, data: Raw<'_>, by_type: Status) -> Result<News, PayloadError> {
        let session: Session<'_> = content(data)?;
        let id = identity("data.id", session.id)?;
        let clerk_id = identity("data.user_id", session.user_id)?;
        let said = Field::at("data.status", session.status).text()?;
        let created_at = Field::at("data.created_at", session.created_at).time()?;
        let updated_at = Field::at("data.updated_at", session.updated_at).time()?;
        let last_active_at = Field::at("data.last_active_at", session.last_active_at).time()?;
        let at = updated_at.or(self.sent).or(created_at).unwrap_or(self.received_at);
        let created_at = created_at.unwrap_or(at);
        Ok(News {
            id,
            clerk_id,
            version: self.version(at),
            status: as_said(by_type, said.as_deref()),
            created_at,
            last_seen_at: last_active_at.unwrap_or(created_at),
        })
    }
}

/// A session that begins can be told of when it has something to wait for, or when it is over by now.
fn as_said(by_type: Status, said: Option<&str>) -> Status {
    if by_type.is_end() {
        return by_type;
    }
    match said {
        Some("pending") => Status::Pending,
        Some("ended" | "expired" | "abandoned" | "replaced") => Status::Ended,
        Some("removed") => Status::Removed,
        Some("revoked") => Status::Revoked,
        Some(_) | None => by_type,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clerk::{self, Known},
        message::MessageId,
        rules::Change,
        time::Millis,
    };

    const AT: Millis = 1_760_000_000_123;
    const RECEIVED: Millis = AT + 900;

    fn id() -> MessageId {
        MessageId::of_body(b"")
    }

    fn session_of(body: &str) -> Result<News, String> {
        match clerk::parse(body.as_bytes(), &Known::webhook(&id(), RECEIVED))
            .map_err(|error| error.detail)?
            .change
        {
            Change::Session(news) => Ok(*news),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_session_is_read_as_clerk_sends_it() {
        let read = session_of(include_str!("session.created.json")).unwrap();
        assert_eq!(read.id, "sess_3pQQn4FiFMwQSUmjd33qmZ7beAn");
        assert_eq!(read.clerk_id, "user_3semJtesl21dIwkfaBd5FHRgKnF");
        assert_eq!(read.status, Status::Active);
        assert_eq!((read.version.at, read.version.sent), (1_795_600_800_000, 1_795_600_800_030));
        assert_eq!((read.created_at, read.last_seen_at), (1_795_600_800_000, 1_795_600_800_000));
    }

    #[test]
    fn a_session_is_what_its_event_says_and_begins_as_its_data_say() {
        for (event, said, status) in [
            ("created", "null", Status::Active),
            ("created", "\"active\"", Status::Active),
            ("created", "\"pending\"", Status::Pending),
            ("created", "\"something new\"", Status::Active),
            ("created", "\"expired\"", Status::Ended),
            ("created", "\"revoked\"", Status::Revoked),
            ("pending", "\"active\"", Status::Pending),
            ("pending", "\"removed\"", Status::Removed),
            ("ended", "\"active\"", Status::Ended),
            ("ended", "\"abandoned\"", Status::Ended),
            ("removed", "\"ended\"", Status::Removed),
            ("revoked", "null", Status::Revoked),
        ] {
            let data = format!(r#"{{"id":"sess_1","user_id":"user_1","status":{said}}}"#);
            let read = session_of(&format!(r#"{{"type":"session.{event}","timestamp":{AT},"data":{data}}}"#));
            let read = read.unwrap();
            assert_eq!((read.status, read.version.at, read.created_at), (status, AT, AT), "{event} {said}");
        }
    }

    #[test]
    fn a_session_needs_an_id_and_a_user_and_sound_times() {
        for (data, detail) in [
            ("null", "data: missing"),
            (r#"{"user_id":"user_1"}"#, "data.id: missing"),
            (r#"{"id":"sess_1"}"#, "data.user_id: missing"),
            (r#"{"id":"sess_1","user_id":""}"#, "data.user_id: empty"),
            (r#"{"id":"sess 1","user_id":"user_1"}"#, "data.id: holds white space"),
            (r#"{"id":"sess_1","user_id":7}"#, "data.user_id: expected a string, found a number"),
            (
                r#"{"id":"sess_1","user_id":"user_1","updated_at":"now"}"#,
                "data.updated_at: expected a time, found a string",
            ),
        ] {
            let body = format!(r#"{{"type":"session.ended","timestamp":{AT},"data":{data}}}"#);
            assert_eq!(session_of(&body).unwrap_err(), detail);
            let id = id();
            let off = Known { sessions: false, ..Known::webhook(&id, RECEIVED) };
            let parsed = clerk::parse(body.as_bytes(), &off).unwrap();
            assert!(matches!(parsed.change, Change::Other), "{body}");
        }
    }
}
