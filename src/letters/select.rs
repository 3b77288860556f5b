//! Owns selections: which letters people mean, as they write it on the command line, in a query or in a request's body.
//! Promises that an unknown id, an unreadable time and an empty selection are errors that say what to do.

use std::{borrow::Cow, sync::Arc};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, NaiveDate};
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::{
    failure::Failure,
    queue::Reason,
    store::{
        StoreError,
        letters::{Filter, Letter, Letters, Status},
    },
    time::Millis,
};

/// Letters as people select them: those that all conditions hold for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// Ids of letters or of messages.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
    /// A group's key, or its id.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// `open`, `replayed`, `applied`, `discarded` or `all`.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// The envelope's type.
    #[serde(rename = "type", deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// A reason's code.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// A Clerk id.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Part of the detail or of the message id.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Died at or after: RFC 3339, a date, or how long ago.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Died before: RFC 3339, a date, or how long ago.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Every letter: what an action without any condition has to say.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

/// Reads a condition that is there. Null is refused: a script whose variable is unset would otherwise select more.
fn given<'de, D: Deserializer<'de>>(value: D) -> Result<Option<String>, D::Error> {
    String::deserialize(value).map(Some)
}

/// What was selected.
#[derive(Clone, Debug)]
pub struct Selected {
    /// What it means to the store.
    pub filter: Filter,
    /// The letters that were named, in the order given.
    pub named: Vec<Letter>,
}

/// Why a selection selects nothing.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// It cannot be understood as it is written.
    #[error("{message}")]
    Unreadable {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: Cow<'static, str>,
    },
    /// No letter is of this group.
    #[error("no group of dead letters has the id or the name {0:?}")]
    UnknownGroup(String),
    /// No letter has this id.
    #[error("no dead letter is known by {0:?}")]
    Unknown(String),
    /// The database does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<SelectError> for Failure {
    fn from(error: SelectError) -> Self {
        let failure = match &error {
            SelectError::Store(error) => return error.into(),
            SelectError::Unreadable { .. } => Self::usage(error.to_string()),
            SelectError::Unknown(_) | SelectError::UnknownGroup(_) => Self::new(error.to_string()),
        };
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl SelectError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Unreadable { hint, .. } => Some(hint),
            Self::UnknownGroup(_) => Some(
                "give the id in the first column of `headcount dead groups --status all`, or its whole name",
            ),
            Self::Unknown(_) => {
                Some("give a letter's id or its message id; `headcount dead list --status all` shows both")
            }
            Self::Store(error) => error.hint.as_deref(),
        }
    }
}

fn unreadable(message: impl Into<String>, hint: impl Into<Cow<'static, str>>) -> SelectError {
    SelectError::Unreadable { message: message.into(), hint: hint.into() }
}

impl Selection {
    /// Whether it names no letter and no condition but a status.
    pub fn is_unconditional(&self) -> bool {
        self.ids.is_empty() && self.conditions().iter().all(|(_, text)| text.is_none())
    }

    fn conditions(&self) -> [(&'static str, Option<&str>); 7] {
        [
            ("group", self.group.as_deref()),
            ("type", self.event_type.as_deref()),
            ("reason", self.reason.as_deref()),
            ("user", self.user.as_deref()),
            ("text", self.text.as_deref()),
            ("since", self.since.as_deref()),
            ("until", self.until.as_deref()),
        ]
    }

    /// Checks a selection of an action: it has to name letters or conditions, or say `all` and nothing else.
    ///
    /// # Errors
    /// It does neither, or both.
    pub fn check_action(&self) -> Result<(), SelectError> {
        match (self.all, self.is_unconditional()) {
            (false, true) => Err(unreadable(
                "nothing is selected",
                "name letters by id, or select by group, reason, type, user, text or time; --all (\"all\": true) means every one",
            )),
            (true, false) => {
                Err(unreadable("\"all\" and a selection exclude each other", "leave one of them out"))
            }
            _ => Ok(()),
        }
    }

    /// What it means to the store. Where it says no status, `status` is meant, but letters named by id are meant whatever
    /// their status.
    ///
    /// # Errors
    /// An unreadable time, status or reason, an unknown id or group, or the database does not answer.
    pub async fn resolve(
        &self,
        letters: &Arc<dyn Letters>,
        status: Option<Status>,
        now: Millis,
    ) -> Result<Selected, SelectError> {
        // A script's variable that is unset must not select everything.
        if let Some((name, _)) = self.conditions().iter().find(|(_, text)| text.is_some_and(str::is_empty)) {
            return Err(unreadable(format!("the {name} is empty"), "give it a value, or leave it out"));
        }
        let status = match self.status.as_deref() {
            None if !self.ids.is_empty() => None,
            None => status,
            Some("all") => None,
            Some(name) => Some(status_named(name)?),
        };
        let time = |text: &Option<String>| text.as_deref().map(|text| parse_time(text, now)).transpose();
        let mut filter = Filter {
            ids: Vec::new(),
            group: group_named(letters, self.group.as_deref()).await?,
            status,
            event_type: self.event_type.clone(),
            reason: reason_named(letters, self.reason.as_deref()).await?,
            clerk_id: self.user.clone(),
            text: self.text.clone(),
            since: time(&self.since)?,
            until: time(&self.until)?,
            settled_since: None,
        };
        let mut named = Vec::with_capacity(self.ids.len());
        for reference in &self.ids {
            let found = letters.show(reference).await?;
            let letter = found.ok_or_else(|| SelectError::Unknown(reference.clone()))?.letter;
            filter.ids.push(letter.id);
            named.push(letter);
        }
        Ok(Selected { filter, named })
    }
}

/// The key of the group that has this id or this key.
async fn group_named(letters: &Arc<dyn Letters>, name: Option<&str>) -> Result<Option<String>, SelectError> {
    let Some(name) = name else { return Ok(None) };
    let mut keys = letters.groups_named(name).await?;
    match (keys.pop(), keys.is_empty()) {
        (None, _) => Err(SelectError::UnknownGroup(name.to_owned())),
        (key, true) => Ok(key),
        (Some(_), false) => Err(unreadable(
            format!("{name:?} is the id of several groups"),
            "give the whole name of the group",
        )),
    }
}

/// One of headcount's own reasons, or one that another hand gave and that a letter died for.
async fn reason_named(letters: &Arc<dyn Letters>, name: Option<&str>) -> Result<Option<String>, SelectError> {
    let Some(name) = name else { return Ok(None) };
    let ours = Reason::ALL.map(Reason::as_str);
    let filter = Filter { reason: Some(name.to_owned()), ..Filter::default() };
    if ours.contains(&name) || letters.count(&filter).await?.iter().any(|count| count.letters > 0) {
        return Ok(Some(name.to_owned()));
    }
    Err(unreadable(format!("{name:?} is no reason that a letter died for"), format!("use {}", one_of(&ours))))
}

/// `a, b or c`.
fn one_of(words: &[&str]) -> String {
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.concat(),
    }
}

fn status_named(name: &str) -> Result<Status, SelectError> {
    Status::parse(name).ok_or_else(|| {
        unreadable(format!("{name:?} is no status"), "use open, replayed, applied, discarded or all")
    })
}

/// A moment: RFC 3339, a date (its midnight in UTC), or how long ago: `2h`, `90m ago`.
///
/// # Errors
/// It is none of these.
pub fn parse_time(text: &str, now: Millis) -> Result<Millis, SelectError> {
    let text = text.trim();
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.timestamp_millis());
    }
    if let Some(midnight) = text.parse::<NaiveDate>().ok().and_then(|date| date.and_hms_opt(0, 0, 0)) {
        return Ok(midnight.and_utc().timestamp_millis());
    }
    let ago = text.strip_suffix("ago").unwrap_or(text).trim();
    let millis = humantime::parse_duration(ago).ok().and_then(|ago| Millis::try_from(ago.as_millis()).ok());
    millis.map(|millis| now.saturating_sub(millis)).ok_or_else(|| {
        unreadable(
            format!("{text:?} is no time"),
            "write 2026-01-31T12:00:00Z, 2026-01-31, or how long ago: 90m, 2h, 3d",
        )
    })
}

/// With this cursor a listing goes on after this letter. Clients do not look into it.
pub fn cursor(letter: &Letter) -> String {
    URL_SAFE_NO_PAD.encode(format!("{}.{}", letter.died_at, letter.id.simple()))
}

/// Reads a [`cursor`].
///
/// # Errors
/// It is none.
pub fn parse_cursor(text: &str) -> Result<(Millis, Uuid), SelectError> {
    let read = || {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let (at, id) = text.split_once('.')?;
        Some((at.parse().ok()?, Uuid::try_parse(id).ok()?))
    };
    read().ok_or_else(|| unreadable(format!("{text:?} is no cursor"), "copy it whole from the last page"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = 1_760_000_000_000; // 2025-10-09T08:53:20Z

    #[test]
    fn a_time_is_a_moment_a_day_or_an_age() {
        for (text, millis) in [
            ("2025-10-09T08:53:20Z", NOW),
            ("2025-10-09T10:53:20.000+02:00", NOW),
            ("2025-10-09", NOW - 32_000_000),
            ("2h", NOW - 7_200_000),
            ("2h ago", NOW - 7_200_000),
            (" 1day 30s ago ", NOW - 86_430_000),
        ] {
            assert_eq!(parse_time(text, NOW).unwrap(), millis, "{text}");
        }
        for text in ["", "yesterday", "2025-13-01", "2h later", "12", "-2h"] {
            let error = parse_time(text, NOW).unwrap_err();
            assert!(error.hint().is_some_and(|hint| hint.contains("2h")), "{text}: {error}");
        }
    }

    #[test]
    fn an_action_has_to_say_what_it_means() {
        let selection = |text: &str| serde_json::from_str::<Selection>(text).unwrap();
        for good in [r#"{"all":true}"#, r#"{"ids":["x"]}"#, r#"{"since":"2h"}"#, r#"{"type":"user.created"}"#]
        {
            assert!(selection(good).check_action().is_ok(), "{good}");
        }
        for bad in ["{}", r#"{"status":"open"}"#, r#"{"all":true,"reason":"rejected"}"#] {
            assert!(selection(bad).check_action().is_err(), "{bad}");
        }
        for bad in [r#"{"typ":"user.created"}"#, r#"{"reason":"rejected","user":null}"#] {
            assert!(serde_json::from_str::<Selection>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cursor_comes_back_as_it_went() {
        let letter = Letter {
            id: Uuid::now_v7(),
            message_id: "msg_1".into(),
            origin: crate::message::Origin::Webhook,
            round: 0,
            event_type: String::new(),
            clerk_id: None,
            reason: String::new(),
            detail: String::new(),
            attempts: 0,
            first_seen: 0,
            died_at: NOW + 123,
            status: Status::Open,
            outcome: None,
            group: String::new(),
        };
        assert_eq!(parse_cursor(&cursor(&letter)).unwrap(), (NOW + 123, letter.id));
        for bad in ["", "x", "MS54", "////"] {
            assert!(parse_cursor(bad).is_err(), "{bad}");
        }
    }
}
