//! Owns Clerk's API as a second source of news: whole runs over every user, single users on demand, the search for users who
//! are gone, and the watch. It compares the table with what the API says, and publishes what differs as messages, which take the
//! same way as webhooks. Promises that only the fold changes a user; that nobody is deleted whose absence Clerk has not
//! confirmed, and nobody at all with another instance's key; and that memory does not grow with the number of users.
//!
//! In a run's order: [`owner`] says whose the table is, `lease` lets one run work at a time, `run` goes through the phases,
//! `pull` reads page by page, `place` is where it stands, `take` compares a page, `publish` brings what differs to the queue and waits
//! for it, `patience` says how long, `gone` searches for who is gone, `billing` compares subscriptions, `notes` says what else people should know. `some` is about single users. [`watch`] notices by itself
//! and heals, [`instances`] notes whose webhooks come in.

use std::{fmt, sync::Arc, time::Duration};

use uuid::Uuid;

use crate::{
    clerk::api::Api,
    queue::Queue,
    rules::users::Standing,
    store::{
        Store,
        sync::{Counts, Holder},
    },
    time::Millis,
};

pub mod owner;
mod billing;
mod error;
mod gone;
mod lease;
mod notes;
mod patience;
mod place;
mod publish;
mod pull;
mod run;
mod some;
mod take;
pub mod instances;
pub mod watch;

pub use error::SyncError;
pub use patience::HeldUp;
pub use some::One;

/// The name of the lease of whole runs.
pub const LEASE: &str = "sync";

/// How long something that fails for a passing reason is tried again: database, queue, and Clerk's API.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// What keeping in step needs.
#[derive(Clone, Debug)]
pub struct Sync {
    /// Clerk's API.
    pub api: Api,
    /// The table.
    pub store: Arc<dyn Store>,
    /// Where news is published. A dry run needs none: [`Absent`](crate::queue::Absent).
    pub queue: Arc<dyn Queue>,
    /// `HEADCOUNT_WATCH_GRACE`: a change that is younger may still come by webhook, and is no drift.
    pub grace: Duration,
    /// `HEADCOUNT_CLERK_INSTANCE`
    pub instance: Option<String>,
    /// `HEADCOUNT_BILLING`: subscriptions are kept in step too.
    pub billing: bool,
    /// This process, for the lease.
    pub holder: Holder,
}

/// What a run shall do.
#[derive(Clone, Debug)]
pub struct Order {
    /// Who asks for it, for people.
    pub who: String,
    /// Only look: publish nothing.
    pub dry_run: bool,
    /// Search for users who are gone from Clerk.
    pub deletions: bool,
    /// So many users may be deleted; `None`: 1 % of the live ones, at least 3.
    pub allow_deletions: Option<u64>,
    /// Users who live in Clerk and are deleted here live again.
    pub revive: bool,
    /// Wait until what was published is applied.
    pub wait: bool,
}

impl Order {
    /// A run that repairs everything it may.
    pub fn by(who: impl Into<String>) -> Self {
        Self {
            who: who.into(),
            dry_run: false,
            deletions: true,
            allow_deletions: None,
            revive: false,
            wait: true,
        }
    }
}

/// What a run found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its id in `sync_runs`.
    pub run: Uuid,
    /// The Clerk instance that was read.
    pub instance: String,
    /// When the reading began, by Clerk's clock: what changed before was read.
    pub began: Millis,
    /// It went on where an earlier one stopped.
    pub resumed: bool,
    /// Users.
    pub counts: Counts,
    /// It only looked.
    pub dry_run: bool,
    /// Users whose subscriptions differed; `None` where they could not be compared.
    pub subscriptions: Option<u64>,
    /// Changes that were published, and are not applied yet.
    pub under_way: u64,
    /// What else people should know, a sentence each.
    pub notes: Vec<String>,
}

/// What a run tells on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It goes on with the run that began then.
    Resumed(Millis),
    /// So many users were read, of about so many.
    Read {
        /// So far.
        users: u64,
        /// By Clerk's own count.
        of: u64,
    },
    /// It looks for users who are not in Clerk's list.
    Searching {
        /// Rows that were looked through.
        rows: u64,
        /// Live rows.
        of: u64,
    },
    /// It asks Clerk for each of them.
    Asking {
        /// So far.
        users: u64,
        /// In all.
        of: u64,
    },
    /// It asks once more for each who is gone, and publishes that.
    Confirming {
        /// So far.
        users: u64,
        /// In all.
        of: u64,
    },
    /// It waits until so many messages are applied.
    Applying(u64),
    /// A user differs.
    Differs {
        /// The account.
        clerk_id: String,
        /// How.
        difference: Difference,
    },
    /// A user could not be read, or not be repaired.
    Failed {
        /// The account, where at least its id could be read.
        clerk_id: Option<String>,
        /// In a few words, without a value.
        why: String,
    },
    /// What holds it up at present, in a sentence.
    HeldUp(String),
}

/// How a user differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// No row, or another one than Clerk's.
    Row(Standing),
    /// The user is live here, and Clerk does not know it any more.
    Gone,
    /// The user is not in Clerk's list, and was not asked for.
    Unlisted,
    /// The user is deleted here, and Clerk does not know it either.
    Deleted,
    /// What the user pays for is not as in Clerk.
    Subscription,
}

impl Difference {
    /// The user is not as in Clerk.
    pub fn is_one(&self) -> bool {
        !matches!(self, Self::Row(Standing::InStep { .. } | Standing::Newer(_)) | Self::Deleted)
    }

    /// For people, and in JSON.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Unlisted => "not in Clerk's list",
            Self::Deleted => "deleted, and so in Clerk",
            Self::Subscription => "subscription",
            Self::Row(Standing::InStep { .. }) => "in step",
            Self::Row(Standing::Newer(_)) => "newer here",
            Self::Row(Standing::Missing) => "missing",
            Self::Row(Standing::Outdated(_)) => "outdated",
            Self::Row(Standing::Different(_)) => "different",
            Self::Row(Standing::BuriedAlive) => "buried alive",
        }
    }

    /// The mirrored columns in which the row differs.
    pub fn columns(&self) -> &[&'static str] {
        match self {
            Self::Row(Standing::Outdated(columns) | Standing::Different(columns)) => columns,
            Self::Row(
                Standing::InStep { .. } | Standing::Newer(_) | Standing::Missing | Standing::BuriedAlive,
            )
            | Self::Gone
            | Self::Unlisted
            | Self::Deleted
            | Self::Subscription => &[],
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        match self.columns() {
            [] => Ok(()),
            columns => write!(f, ": {}", columns.join(", ")),
        }
    }
}

/// Where a run tells of its progress.
pub type Tell<'t> = &'t (dyn Fn(Told) + Send + std::marker::Sync);
