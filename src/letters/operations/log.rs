//! Owns how the log of what people did is asked for and shown, the same for the command line and the API.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::{
    letters::{ramp, select::SelectError},
    store::operations::{Kind, LogFilter, LogPlace, OperationRow, State},
    text::letters,
    time::{Millis, rfc3339},
};

/// What is wanted of the log, as people write it.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Kinds, with commas between them.
    pub kind: Option<String>,
    /// An actor's name.
    pub who: Option<String>,
    /// Only what began at or after this time.
    pub since: Option<Millis>,
    /// The cursor of the last page.
    pub after: Option<String>,
}

impl Wanted {
    /// What it means to the store.
    ///
    /// # Errors
    /// There is no such kind, or the cursor is none.
    pub fn read(self) -> Result<(LogFilter, Option<LogPlace>), SelectError> {
        let kinds = self.kind.iter().flat_map(|kinds| kinds.split(',')).map(|name| {
            let known = Kind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ");
            Kind::parse(name.trim()).ok_or_else(|| SelectError::Unreadable {
                message: format!("{name:?} is no kind of operation"),
                hint: format!("use one of {known}").into(),
            })
        });
        let kinds = kinds.collect::<Result<_, _>>()?;
        let after = self.after.map(|cursor| parse(&cursor)).transpose()?;
        Ok((LogFilter { kinds, who: self.who, since: self.since }, after))
    }
}

fn parse(text: &str) -> Result<LogPlace, SelectError> {
    let read = || {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let mut parts = text.splitn(3, '.');
        let at = parts.next()?.parse().ok()?;
        let id = Uuid::try_parse(parts.next()?).ok()?;
        Some(LogPlace { at, id, kind: Kind::parse(parts.next()?)? })
    };
    read().ok_or_else(|| SelectError::Unreadable {
        message: format!("{text:?} is no cursor"),
        hint: "copy it whole from the last page".into(),
    })
}

/// A row of the log, for people and programs.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Of the operation, the run of sync or the grant.
    pub id: Uuid,
    /// What was done.
    pub kind: Kind,
    /// RFC 3339: when it began.
    pub at: String,
    /// RFC 3339; null until it ends.
    pub ended_at: Option<String>,
    /// Who did it.
    pub who: String,
    /// Why.
    pub note: Option<String>,
    /// What was selected, synced or granted, in people's terms.
    pub what: Value,
    /// The account, where it is about one.
    pub clerk_id: Option<String>,
    /// The letter, where it is about one.
    pub letter_id: Option<Uuid>,
    /// How it stands.
    pub state: State,
    /// Why.
    pub detail: Option<String>,
    /// Letters that were meant; of a sync, users in Clerk.
    pub expected: u64,
    /// Letters that are in the queue again, discarded or restored; of a sync, users that were repaired.
    pub published: u64,
    /// Letters that took effect.
    pub applied: u64,
    /// Letters that died again; of a sync, users that failed.
    pub died: u64,
}

impl Entry {
    /// With this cursor the log goes on after this place. Clients do not look into it.
    pub fn cursor(place: &LogPlace) -> String {
        URL_SAFE_NO_PAD.encode(format!("{}.{}.{}", place.at, place.id.simple(), place.kind.as_str()))
    }

    /// What was selected, in a few words.
    pub fn in_words(&self) -> String {
        in_words(&self.what)
    }
}

/// What was selected, in a few words.
pub fn in_words(what: &Value) -> String {
    let Value::Object(what) = what else { return String::new() };
    let word = |(name, value): (&String, &Value)| match value {
        Value::Number(number) => Some(match (name.as_str(), number.as_f64(), number.as_u64()) {
            ("halt_at", Some(share), _) => {
                format!("step by step, at most {} may die again", ramp::share(share))
            }
            ("rate", Some(rate), _) => format!("at most {rate} per second"),
            ("limit", _, Some(limit)) => format!("at most {}", letters(limit)),
            _ => format!("{name} {number}"),
        }),
        Value::Null | Value::Bool(false) => None,
        Value::Array(_) | Value::Object(_) => None,
        Value::Bool(true) => Some(name.replace('_', " ")),
        Value::String(text) => Some(format!("{name} {text}")),
    };
    what.iter().filter_map(word).collect::<Vec<_>>().join(", ")
}

impl From<OperationRow> for Entry {
    fn from(row: OperationRow) -> Self {
        let mut what = row.what;
        if let Value::Object(what) = &mut what {
            what.remove("warnings");
        }
        Self {
            id: row.id,
            kind: row.kind,
            at: rfc3339(row.at),
            ended_at: row.ended_at.map(rfc3339),
            who: row.who,
            note: row.note,
            what,
            clerk_id: row.clerk_id,
            letter_id: row.letter_id,
            state: row.state,
            detail: row.detail,
            expected: row.expected,
            published: row.published,
            applied: row.applied,
            died: row.died,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_as_it_went() {
        let place = LogPlace { at: 1_760_000_000_123, id: Uuid::now_v7(), kind: Kind::Revoke };
        assert_eq!(parse(&Entry::cursor(&place)).unwrap(), place);
        for bad in ["", "x", "MS54", "////"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn how_a_replay_goes_is_told_in_plain_words() {
        let what = serde_json::json!({
            "halt_at": 0.1, "rate": 20.0, "limit": 1_000, "ids": 3, "type": "user.updated", "dry_run": true, "warnings": ["x"],
        });
        let words = in_words(&what);
        let mut parts: Vec<&str> = words.split(", ").collect();
        parts.sort_unstable();
        assert_eq!(
            parts,
            [
                "at most 1,000 letters",
                "at most 10 % may die again",
                "at most 20 per second",
                "dry run",
                "ids 3",
                "step by step",
                "type user.updated"
            ]
        );
        assert!(words.contains("step by step, at most 10 % may die again"), "{words}");
        assert_eq!(in_words(&serde_json::json!({ "limit": 1 })), "at most 1 letter");
    }

    #[test]
    fn an_unknown_kind_is_named() {
        let wanted = |kind: &str| Wanted { kind: Some(kind.into()), ..Wanted::default() }.read();
        assert_eq!(wanted("replay,grant").unwrap().0.kinds, [Kind::Replay, Kind::Grant]);
        assert!(wanted("replays").unwrap_err().to_string().contains("replays"));
    }
}
