//! Owns Clerk's API as a second source of news: whole runs over every user, single users on demand, the search for users who
//! are gone, and the watch. It compares the table with what the API says, and publishes what differs as messages, which take the
//! same way as webhooks. Promises that only the fold changes a user; that nobody is deleted whose absence Clerk has not
//! confirmed, and nobody at all with another instance's key; and that memory does not grow with the number of users.
//!
//! In a run's order: [`owner`] says whose the table is, `lease` lets one run work at a time, `run` goes through the phases,
//! `pull` reads page by page, `place` is where it stands, `take` compares a page, `publish` brings what differs to the queue and waits
//! for it, `patience` says how long, `gone` searches for who is gone. `some` is about single users. [`watch`] notices by itself
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
mod error;
mod gone;
mod lease;
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
    /// Where news is published.
    pub queue: Arc<dyn Queue>,
    /// `HEADCOUNT_WATCH_GRACE`: a change that is younger may still come by webhook, and is no drift.
    pub grace: Duration,
    /// `HEADCOUNT_CLERK_INSTANCE`
    pub instance: Option<String>,
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
    /// It looks for users who are gone: so many rows were looked through.
    Searching(u64),
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
    /// Clerk does not know the user any more.
    Gone,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("gone"),
            Self::Row(Standing::InStep { .. }) => f.write_str("in step"),
            Self::Row(Standing::Missing) => f.write_str("missing"),
            Self::Row(Standing::Outdated) => f.write_str("outdated"),
            Self::Row(Standing::Different(columns)) => write!(f, "different: {}", columns.join(", ")),
            Self::Row(Standing::BuriedAlive) => f.write_str("buried alive"),
        }
    }
}

/// Where a run tells of its progress.
pub type Tell<'t> = &'t (dyn Fn(Told) + Send + std::marker::Sync);
