//! Owns how letters, actors and samples are made fit to be stored, so that storing them cannot fail on content: texts
//! without control characters and bounded, numbers and times that both databases hold. Never touches SQL.

use std::{collections::BTreeMap, time::Duration};

use uuid::Uuid;

use super::{
    columns::{At, Id},
    letters::{Actor, Captured, GROUP_MAX, HEADER_NAME_MAX, HEADER_VALUE_MAX, HEADERS_MAX, REASON_MAX},
};
use crate::{
    message::{EVENT_TYPE_MAX, MESSAGE_ID_MAX, Rejected},
    text::clean,
    time::Millis,
};

/// The longest detail and the longest note, in bytes.
pub(super) const DETAIL_MAX: usize = 1_000;
/// The longest Clerk id, name of an actor and address, in bytes.
pub(super) const NAME_MAX: usize = 255;
/// The highest round. It leaves room for as many more.
const ROUND_MAX: u32 = u32::MAX / 2;

/// The actor of what headcount does by itself.
pub(super) const OURSELVES: &str = "headcount";

/// A letter as it is stored.
pub(super) struct Plain<'a> {
    /// For a letter that has no row yet.
    pub(super) id: Id,
    pub(super) message_id: String,
    pub(super) origin: &'static str,
    pub(super) round: i64,
    pub(super) event_type: String,
    pub(super) clerk_id: Option<String>,
    pub(super) reason: String,
    pub(super) detail: String,
    pub(super) attempts: i64,
    pub(super) first_seen: At,
    pub(super) died_at: At,
    pub(super) group: String,
    /// JSON text.
    pub(super) headers: String,
    pub(super) body: &'a [u8],
    pub(super) search: String,
}

impl<'a> Plain<'a> {
    /// One letter per message id, the one of the highest round, in the order of message ids.
    pub(super) fn all(letters: &'a [Captured]) -> Vec<Self> {
        let mut one_each: BTreeMap<String, Self> = BTreeMap::new();
        for letter in letters.iter().map(Self::of) {
            match one_each.get(&letter.message_id) {
                Some(other) if other.round >= letter.round => {}
                _ => drop(one_each.insert(letter.message_id.clone(), letter)),
            }
        }
        one_each.into_values().collect()
    }

    fn of(letter: &'a Captured) -> Self {
        let message_id = clean(&letter.message_id, MESSAGE_ID_MAX);
        let detail = clean(&letter.detail, DETAIL_MAX);
        let headers: BTreeMap<String, String> = letter
            .headers
            .iter()
            .take(HEADERS_MAX)
            .map(|(name, value)| (clean(name, HEADER_NAME_MAX), clean(value, HEADER_VALUE_MAX)))
            .collect();
        Self {
            id: Id(Uuid::now_v7()),
            origin: letter.origin.as_str(),
            round: letter.round.min(ROUND_MAX).into(),
            event_type: clean(&letter.event_type, EVENT_TYPE_MAX),
            clerk_id: letter.clerk_id.as_ref().map(|id| clean(id, NAME_MAX)),
            reason: clean(&letter.reason, REASON_MAX),
            attempts: letter.attempts.into(),
            first_seen: At(letter.first_seen),
            died_at: At(letter.died_at),
            group: clean(&letter.group, GROUP_MAX),
            headers: json(&headers),
            body: &letter.body,
            search: searchable(&detail, &message_id),
            message_id,
            detail,
        }
    }
}

/// The text that [`super::letters::Filter::text`] is looked for in. No stored text holds a line feed.
fn searchable(detail: &str, message_id: &str) -> String {
    format!("{detail}\n{message_id}").to_lowercase()
}

/// A sample as it is stored.
pub(super) struct PlainRejection {
    pub(super) id: Id,
    pub(super) at: At,
    pub(super) address: String,
    pub(super) reason: String,
    /// JSON text.
    pub(super) headers: String,
}

impl PlainRejection {
    pub(super) fn of(sample: &Rejected) -> Self {
        let names = sample.headers.iter().take(HEADERS_MAX).map(|name| clean(name, HEADER_NAME_MAX));
        Self {
            id: Id(Uuid::now_v7()),
            at: At(sample.at),
            address: clean(&sample.address, NAME_MAX),
            reason: clean(&sample.reason, REASON_MAX),
            headers: json(&names.collect::<Vec<_>>()),
        }
    }
}

/// An actor as it is stored.
pub(super) fn actor(by: &Actor) -> (String, Option<String>) {
    (clean(&by.name, NAME_MAX), by.note.as_ref().map(|note| clean(note, DETAIL_MAX)))
}

/// A text to compare with stored ones. `None` where it holds a control character, as no stored text does.
pub(super) fn stored(text: &str) -> Option<&str> {
    (!text.chars().any(char::is_control)).then_some(text)
}

/// The time `age` before `at`.
pub(super) fn earlier(at: Millis, age: Duration) -> At {
    At(at.saturating_sub(Millis::try_from(age.as_millis()).unwrap_or(Millis::MAX)))
}

fn json(value: &impl serde::Serialize) -> String {
    // Texts and lists of them: this cannot fail.
    serde_json::to_string(value).unwrap_or_else(|_| "null".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{message::Origin, store::times::time_in_range};

    fn letter(message_id: &str, round: u32) -> Captured {
        Captured {
            message_id: message_id.into(),
            origin: Origin::Webhook,
            round,
            event_type: "t\0".repeat(100),
            clerk_id: Some("user\u{7}".into()),
            reason: "r".repeat(100),
            detail: "Ü\n".repeat(1_000),
            attempts: u32::MAX,
            first_seen: i64::MIN,
            died_at: i64::MAX,
            group: "é".repeat(200),
            headers: (0..100).map(|n| (format!("h{n:03}\0"), "v\0".repeat(1_000))).collect(),
            body: bytes::Bytes::from_static(b"\0\xff"),
        }
    }

    #[test]
    fn whatever_comes_is_made_to_fit() {
        let letters = [letter("m\r\n", u32::MAX)];
        let plain = &Plain::all(&letters)[0];
        assert_eq!(plain.message_id, "m\u{fffd}\u{fffd}");
        assert_eq!((plain.round, plain.attempts), (2_147_483_647, 4_294_967_295));
        assert_eq!(plain.clerk_id.as_deref(), Some("user\u{fffd}"));
        assert_eq!((plain.event_type.len(), plain.reason.len(), plain.group.len()), (128, 64, 200));
        assert!(plain.detail.len() <= DETAIL_MAX && plain.search.starts_with("ü\u{fffd}"));
        assert_eq!(time_in_range(plain.first_seen.0).to_rfc3339(), "0000-01-01T00:00:00+00:00");
        assert_eq!(time_in_range(plain.died_at.0).to_rfc3339(), "9999-12-31T23:59:59.999+00:00");
        let headers: BTreeMap<String, String> = serde_json::from_str(&plain.headers).unwrap();
        assert_eq!(headers.len(), HEADERS_MAX);
        assert!(headers.values().all(|value| value.len() <= HEADER_VALUE_MAX && !value.contains('\0')));
        assert_eq!(plain.body, b"\0\xff");
    }

    #[test]
    fn of_one_message_the_highest_round_counts_and_of_equals_the_first() {
        let mut letters = [letter("b", 0), letter("a", 1), letter("a", 2), letter("a", 2), letter("a", 0)];
        letters[3].attempts = 1;
        let plain = Plain::all(&letters);
        let seen: Vec<_> =
            plain.iter().map(|it| (it.message_id.as_str(), it.round, it.attempts > 1)).collect();
        assert_eq!(seen, [("a", 2, true), ("b", 0, true)]);
    }
}
