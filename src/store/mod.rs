//! Owns the seam to the database: what every backend promises, in words, and the one place that picks a backend.
//!
//! The contract, which `tests/store.rs` holds against both backends:
//!
//! - [`Batches::apply`] folds a batch in one transaction: inbox rows and user rows commit together or not at all.
//! - A message whose id is in the inbox is a duplicate and changes nothing, also twice in one batch.
//! - Batches that run at the same time, in any process, end as if they had run one after the other. A race that the
//!   database resolves by an error is [`Class::Transient`].
//! - An error says what class it is of. An error of the driver that is not known is an outage; a code of the database that
//!   is not known is [`Class::Unclear`], and evidence decides.
//! - Every call is answered within its limit, over connections that work again once those that have fallen silent are
//!   given up; and goes on when its caller does not wait for it any more.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

use self::watchdog::Watched;
use crate::{
    datafile::Examined,
    rules::{Event, Outcome, subscriptions::tiers::Tiers, users::Policy},
    time::Millis,
};

/// The time of a statement on SQLite, as times are written there.
macro_rules! now {
    () => {
        "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
    };
}

pub mod accounts;
mod clock;
mod columns;
mod entry;
mod errors;
mod filter;
pub mod housekeeping;
pub mod letters;
mod migrations;
pub mod operations;
mod people;
mod plain;
pub mod postgres;
pub mod processes;
mod questions;
mod retry;
pub mod sessions;
pub mod sqlite;
mod subscriptions;
pub mod sync;
pub mod tiers;
mod times;
mod unit;
mod users;
pub mod visitors;
mod watchdog;

pub use people::{Former, PastEvent, Totals, User, UserHistory, UserQuery, Users};

/// What a worker needs: batches go in.
#[async_trait]
pub trait Batches: Send + Sync + fmt::Debug {
    /// Folds a batch in one transaction and tells the outcome of each message, in the order given. The dead letters of
    /// messages that took effect, now or before, are `applied` with it.
    ///
    /// # Errors
    /// Nothing was changed, or (a connection lost during COMMIT) it is unknown; running the batch again is right.
    async fn apply(&self, batch: Arc<[Incoming]>) -> Result<Vec<Outcome>, StoreError>;

    /// Whether the database answers and takes our writes, within a few seconds: writes a row of ours, has the database
    /// check all that [`apply`](Self::apply) would run, and leaves nothing behind.
    async fn ready(&self) -> Result<(), StoreError>;
}

/// The tables themselves.
#[async_trait]
pub trait Schema: Send + Sync {
    /// Brings the schema up to this binary's version. Safe to run from several processes at once.
    /// Returns the names of the migrations that it applied.
    ///
    /// # Errors
    /// [`StoreError`], of class [`Class::Unusable`] where a table of ours exists that is not ours.
    async fn migrate(&self) -> Result<Vec<String>, StoreError>;

    /// Whether the schema is what this binary needs; a newer one is accepted.
    ///
    /// # Errors
    /// [`Class::Unusable`] with a hint where it is missing, older or not ours; else what the database says.
    async fn check_schema(&self) -> Result<(), StoreError>;

    /// The same, and whether the database has all else that a worker needs.
    ///
    /// # Errors
    /// As [`check_schema`](Self::check_schema); [`Class::Unusable`] where something else is missing.
    async fn check_for_work(&self) -> Result<(), StoreError> {
        self.check_schema().await
    }
}

/// What `doctor` looks at.
#[async_trait]
pub trait Diagnosis: Send + Sync {
    /// Folds and saves a batch as [`Batches::apply`] does, and takes all of it back: what an application's triggers,
    /// policies and constraints say to it.
    async fn rehearse(&self, batch: Arc<[Incoming]>) -> Result<(), StoreError>;

    /// Roles that anybody on the internet can have where the schema is served as an API, and that may read our tables.
    /// None where the database has no roles.
    async fn strangers(&self) -> Result<Vec<Stranger>, StoreError>;

    /// Reads the database through, for so long, where it is a file of ours; `None` where it is a server's.
    ///
    /// # Errors
    /// It is damaged.
    async fn examine(&self, limit: Duration) -> Result<Option<Examined>, StoreError>;
}

/// The whole store, as the process opens it. Each room takes the part of it that it needs.
#[async_trait]
pub trait Store:
    Batches
    + Users
    + accounts::Accounts
    + Schema
    + Diagnosis
    + letters::Letters
    + housekeeping::Rejections
    + housekeeping::Housekeeping
    + sync::SyncTables
    + tiers::UserTiers
    + processes::Processes
    + operations::OperationLog
{
    /// Closes the connections, within a few seconds.
    async fn close(&self);
}

/// A parsed message on its way into a batch.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// What it says. Its `message_id` is the inbox's key.
    pub event: Event,
    /// The envelope's type, bounded, for the inbox.
    pub event_type: String,
    /// When the ingress took it in.
    pub received_at: Millis,
}

/// A role that may read tables of ours, and is not meant to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// Its name; `PUBLIC` for everybody.
    pub role: String,
    /// What it may read, sorted.
    pub tables: Vec<String>,
}

/// What a failed call means for the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The values of the batch are refused (SQLSTATE class 22 or 23): the message's fault if it fails alone so.
    Permanent,
    /// A race (deadlock, serialization, unique key): run again at once.
    Transient,
    /// One message's trouble or everybody's, which the code does not tell: a trigger that raises, a policy, a lock that
    /// somebody holds, a statement that takes too long, a table that is missing. Evidence decides.
    Unclear,
    /// The database could not be asked: no connection, shutting down, read-only, out of connections.
    Outage,
    /// The database did not answer in time. Whether the call takes effect is not known; it may still be under way.
    Unanswered,
    /// Ours to mend before anything can work: schema missing, too old, or a table that is not ours; wrong URL.
    Unusable,
}

/// What can go wrong with a store.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StoreError {
    /// What it means for the message.
    pub class: Class,
    /// SQLSTATE, SQLite's extended code, or a word of headcount's; empty where there is none.
    pub code: String,
    /// What happened, without any value of a row.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// The driver's error.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StoreError {
    /// The database could not be asked, or did not answer in time.
    pub fn is_outage(&self) -> bool {
        matches!(self.class, Class::Outage | Class::Unanswered)
    }

    /// What was to be written down is over, or another process's now.
    pub fn is_over(&self) -> bool {
        self.code == errors::OVER
    }

    /// The hint, where there is one, after `before`.
    pub fn hint_after(&self, before: &str) -> String {
        self.hint.as_ref().map(|hint| format!("{before}{hint}")).unwrap_or_default()
    }
}

/// Which store to open.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Where.
    pub backend: Backend,
    /// `HEADCOUNT_RELINK`, `HEADCOUNT_ON_DELETE`
    pub policy: Policy,
    /// `HEADCOUNT_DEFAULT_CREDITS`
    pub default_credits: i64,
    /// `HEADCOUNT_SESSIONS`
    pub sessions: bool,
    /// `HEADCOUNT_BILLING`, `HEADCOUNT_TIERS`, `HEADCOUNT_PAST_DUE`; `None` is off.
    pub billing: Option<Arc<Tiers>>,
    /// Connections to PostgreSQL at most.
    pub connections: u32,
}

impl StoreConfig {
    /// Whether processes of one host only can use it.
    pub fn is_local(&self) -> bool {
        self.backend.file().is_some()
    }
}

/// Where the store is.
#[derive(Clone, Debug)]
pub enum Backend {
    /// A SQLite file; made where missing.
    Sqlite {
        /// Its path.
        path: std::path::PathBuf,
    },
    /// A PostgreSQL database.
    Postgres {
        /// `DATABASE_URL`
        url: crate::secret::Secret,
        /// `HEADCOUNT_SCHEMA`
        schema: String,
    },
}

/// What of it a batch is folded and saved by.
#[derive(Clone, Debug)]
struct Terms {
    policy: Policy,
    default_credits: i64,
    sessions: bool,
    billing: Option<Arc<Tiers>>,
}

impl Terms {
    fn of(config: &StoreConfig) -> Self {
        Self {
            policy: config.policy,
            default_credits: config.default_credits,
            sessions: config.sessions,
            billing: config.billing.clone(),
        }
    }
}

impl Backend {
    /// The file that the store is in, where it is in one.
    pub fn file(&self) -> Option<&std::path::Path> {
        match self {
            Self::Sqlite { path } => Some(path),
            Self::Postgres { .. } => None,
        }
    }
}

/// Opens the store. A database that is merely away is no error: connections are made when needed.
///
/// # Errors
/// [`StoreError`] of class [`Class::Unusable`] where it can never work as configured.
pub async fn open(config: &StoreConfig) -> Result<Arc<dyn Store>, StoreError> {
    Ok(match &config.backend {
        Backend::Sqlite { path } => Arc::new(Watched::new(sqlite::SqliteStore::open(path, config).await?)),
        Backend::Postgres { url, schema } => {
            Arc::new(Watched::new(postgres::PostgresStore::open(url, schema, config)?))
        }
    })
}
