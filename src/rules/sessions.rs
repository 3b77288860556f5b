//! Owns the rules that fold events into sessions, and end them with their users: pure code, no I/O, no clock, no SQL.
//!
//! Promises that whatever the order, duplication and split of the events, the sessions come out the same; that an end is
//! final, and of several ends the earliest counts; and that a session of a deleted user has ended.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::{Outcome, Version};
use crate::time::Millis;

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// Its user is signed in.
    Active,
    /// Its user has still to do something, such as choosing an organization.
    Pending,
    /// It is over: signed out, expired, or its user was deleted.
    Ended,
    /// It is over: its client has signed out of all sessions.
    Removed,
    /// It is over: somebody ended it from elsewhere.
    Revoked,
}

impl Status {
    /// Each status.
    pub const ALL: [Self; 5] = [Self::Active, Self::Pending, Self::Ended, Self::Removed, Self::Revoked];

    /// The stable name: in the table and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Pending => "pending",
            Self::Ended => "ended",
            Self::Removed => "removed",
            Self::Revoked => "revoked",
        }
    }

    /// Whether nobody is signed in by the session any more.
    pub fn is_end(self) -> bool {
        match self {
            Self::Active | Self::Pending => false,
            Self::Ended | Self::Removed | Self::Revoked => true,
        }
    }
}

/// What an event says of a session.
#[derive(Clone, Debug)]
pub struct News {
    /// Clerk's id of the session: `sid` in its tokens.
    pub id: String,
    /// Whose session it is.
    pub clerk_id: String,
    /// Where this stands among the session's news.
    pub version: Version,
    /// What it is from then on. An end came at the version's time.
    pub status: Status,
    /// When it began.
    pub created_at: Millis,
    /// When its user was last seen in it.
    pub last_seen_at: Millis,
}

/// One row of `sessions`: what its own events say, and the deletion of its user apart from that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Clerk's id of the session.
    pub id: String,
    /// Whose session it is.
    pub clerk_id: String,
    /// The row of that account in `users`, as far as it is known.
    pub user_id: Option<Uuid>,
    /// Of the newest event, or of the last token that was issued, if that is newer.
    pub version: Version,
    /// By its own events: of the earliest end, else of the newest event.
    pub own_status: Status,
    /// The earliest that is known.
    pub created_at: Millis,
    /// The latest that is known.
    pub last_seen_at: Millis,
    /// By its own events: the earliest end.
    pub own_ended_at: Option<Millis>,
    /// When its user was deleted, as far as that is known.
    pub user_deleted_at: Option<Millis>,
}

impl Row {
    /// Where the session stands, and when it ended: by itself or with its user, whichever came first.
    pub fn shown(&self) -> (Status, Option<Millis>) {
        match (self.own_ended_at, self.user_deleted_at) {
            (own, Some(deleted)) if own.is_none_or(|own| deleted < own) => (Status::Ended, Some(deleted)),
            (own, _) => (self.own_status, own),
        }
    }
}

/// What the tables say of an account, after the batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Its row, or the one that it had.
    pub user_id: Option<Uuid>,
    /// When it was deleted.
    pub deleted_at: Option<Millis>,
}

/// The sessions to be written, and one outcome per event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folded {
    /// Those that differ from what was loaded, by id.
    pub rows: Vec<Row>,
    /// In the order of the events.
    pub outcomes: Vec<Outcome>,
}

/// Folds what a batch says of sessions and of accounts into the sessions that it touches.
///
/// `loaded` are the sessions that the news is about, and those of the accounts that the batch has changed; `accounts` has every
/// account that either is about.
pub fn fold(loaded: Vec<Row>, accounts: &HashMap<String, Account>, news: &[&News]) -> Folded {
    let before: BTreeMap<String, Row> = loaded.into_iter().map(|row| (row.id.clone(), row)).collect();
    let mut after = before.clone();
    let mut outcomes = Vec::with_capacity(news.len());
    for news in news {
        let outcome = match after.get_mut(&news.id) {
            None => {
                after.insert(news.id.clone(), begun(news));
                Outcome::Created
            }
            Some(row) => match take(row, news) {
                true => Outcome::Updated,
                false => Outcome::Stale,
            },
        };
        outcomes.push(outcome);
    }
    for row in after.values_mut() {
        if let Some(account) = accounts.get(&row.clerk_id) {
            row.user_id = account.user_id;
            row.user_deleted_at = account.deleted_at;
        }
    }
    let changed = after.into_values().filter(|row| before.get(&row.id) != Some(row));
    Folded { rows: changed.collect(), outcomes }
}

fn begun(news: &News) -> Row {
    Row {
        id: news.id.clone(),
        clerk_id: news.clerk_id.clone(),
        user_id: None,
        version: news.version.clone(),
        own_status: news.status,
        created_at: news.created_at,
        last_seen_at: news.last_seen_at,
        own_ended_at: news.status.is_end().then_some(news.version.at),
        user_deleted_at: None,
    }
}

/// Answers whether the session is another one than before, for people.
fn take(row: &mut Row, news: &News) -> bool {
    let before = Row { version: Version::default(), ..row.clone() };
    row.created_at = row.created_at.min(news.created_at);
    row.last_seen_at = row.last_seen_at.max(news.last_seen_at);
    if news.version > row.version {
        row.version = news.version.clone();
        row.clerk_id.clone_from(&news.clerk_id);
        if row.own_ended_at.is_none() {
            row.own_status = news.status;
        }
    }
    if news.status.is_end() {
        let (end, known) = ((news.version.at, news.status), row.own_ended_at.map(|at| (at, row.own_status)));
        if known.is_none_or(|known| end < known) {
            (row.own_ended_at, row.own_status) = (Some(end.0), end.1);
        }
    }
    Row { version: Version::default(), ..row.clone() } != before
}
