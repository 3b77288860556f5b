//! Owns what an event is, whatever it is about, and what can become of one. Each family of events has a module of its own
//! with the rules that turn its events into rows: pure code, no I/O, no clock, no SQL.

use serde::Serialize;
use uuid::Uuid;

use crate::time::Millis;

pub mod sessions;
pub mod subscriptions;
pub mod users;

/// Which of two pieces of news about a session or a subscription item is newer. Ordered field by field, as written here.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// `updated_at`, or the envelope's time where that is missing.
    pub at: Millis,
    /// The envelope's `timestamp` (0 where missing).
    pub sent: Millis,
    /// The last tie-breaker.
    pub message_id: String,
}

/// A webhook, parsed, on its way into a fold.
#[derive(Clone, Debug)]
pub struct Event {
    /// The webhook's id, for ties.
    pub message_id: String,
    /// What it says.
    pub change: Change,
    /// An id for the row that this event may create (at most one).
    pub fresh_row: Uuid,
    /// It has waited long enough for another account's news.
    pub patience_over: bool,
}

/// What an event changes, by its family.
#[derive(Clone, Debug)]
pub enum Change {
    /// `user.*`
    User(users::Change),
    /// `session.*`
    Session(Box<sessions::News>),
    /// `subscription.*`, `subscriptionItem.*`
    Subscription(Box<subscriptions::News>),
    /// Any other event type: recorded as ignored.
    Other,
}

impl Change {
    /// The account that the event is about; `None` for types that are ignored.
    pub fn clerk_id(&self) -> Option<&str> {
        match self {
            Self::User(change) => Some(change.clerk_id()),
            Self::Session(news) => Some(&news.clerk_id),
            Self::Subscription(news) => Some(&news.payer),
            Self::Other => None,
        }
    }

    /// Clerk's time of the event, where it has one that matters.
    pub fn at(&self) -> Option<Millis> {
        match self {
            Self::User(change) => Some(change.at()),
            Self::Session(news) => Some(news.version.at),
            Self::Subscription(news) => Some(news.at),
            Self::Other => None,
        }
    }

    /// The event deletes its account.
    pub fn deletes(&self) -> bool {
        match self {
            Self::User(change) => matches!(change, users::Change::Delete { .. }),
            Self::Session(_) | Self::Subscription(_) | Self::Other => false,
        }
    }

    /// No family has rules for the event.
    pub fn is_ignored(&self) -> bool {
        matches!(self, Self::Other)
    }
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A new row.
    Created,
    /// A row's mirror was replaced.
    Updated,
    /// A row, or an id that had none yet, is deleted from now on.
    Deleted,
    /// A returning user got the deleted account's row back.
    Relinked,
    /// A user who was deleted here lives again, because Clerk's API knows the account and a person asked for it.
    Revived,
    /// Older than what is known; changed nothing.
    Stale,
    /// The same message had taken effect before.
    Duplicate,
    /// Not about a user.
    Ignored,
    /// Another account's news is probably on its way; comes back later. Leaves no inbox row.
    Waiting,
    /// Went to the dead letters. Leaves no inbox row.
    Buried,
}

impl Outcome {
    /// Every outcome, in the order of the documentation.
    pub const ALL: [Self; 10] = [
        Self::Created,
        Self::Updated,
        Self::Deleted,
        Self::Relinked,
        Self::Revived,
        Self::Stale,
        Self::Duplicate,
        Self::Ignored,
        Self::Waiting,
        Self::Buried,
    ];

    /// The stable name: in the inbox, in metrics, in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Deleted => "deleted",
            Self::Relinked => "relinked",
            Self::Revived => "revived",
            Self::Stale => "stale",
            Self::Duplicate => "duplicate",
            Self::Ignored => "ignored",
            Self::Waiting => "waiting",
            Self::Buried => "buried",
        }
    }

    /// Final outcomes are recorded in the inbox, in the transaction of their effect.
    pub fn is_final(self) -> bool {
        match self {
            Self::Created
            | Self::Updated
            | Self::Deleted
            | Self::Relinked
            | Self::Revived
            | Self::Stale
            | Self::Ignored => true,
            Self::Duplicate | Self::Waiting | Self::Buried => false,
        }
    }
}
