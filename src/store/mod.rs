//! Owns the seam to the database: what every backend promises, in words, and the one place that picks a backend.
//!
//! The contract, which `tests/store.rs` holds against both backends:
//!
//! - [`Batches::apply`] folds a batch in one transaction: inbox rows and user rows commit together or not at all.
//! - A message whose id is in the inbox is a duplicate and changes nothing, also twice in one batch.
//! - Batches that run at the same time, in any process, end as if they had run one after the other. A race that the
//!   database resolves by an error is [`Class::Transient`].
//! - An error says what class it is of; what is not known is an outage, never the message's fault.
//! - Every call is answered within its limit, over connections that work again once those that have fallen silent are
//!   given up; and goes on when its caller does not wait for it any more.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::Serialize;
use uuid::Uuid;

use self::watchdog::Watched;
use crate::{
    datafile::Examined,
    rules::{Event, Outcome, users::Policy},
    time::Millis,
};

/// The time of a statement on SQLite, as times are written there.
macro_rules! now {
    () => {
        "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
    };
}

mod batch;
mod clock;
mod columns;
mod entry;
mod errors;
mod filter;
pub mod housekeeping;
pub mod letters;
mod migrations;
mod plain;
pub mod postgres;
mod questions;
mod reference;
mod retry;
pub mod sqlite;
mod unit;
mod users;
mod watchdog;

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
    ///
    /// # Errors
    /// [`StoreError`] says why not.
    async fn ready(&self) -> Result<(), StoreError>;
}

/// What people ask about users.
#[async_trait]
pub trait Users: Send + Sync {
    /// One page of users, newest first.
    ///
    /// # Errors
    /// What the database says.
    async fn users(&self, query: &UserQuery) -> Result<Vec<User>, StoreError>;

    /// One user and what happened to it, by our id, a Clerk id (also a former one) or an e-mail address;
    /// `None` where there is none.
    ///
    /// # Errors
    /// What the database says.
    async fn user(&self, reference: &str) -> Result<Option<UserHistory>, StoreError>;

    /// Counts for `status`.
    ///
    /// # Errors
    /// What the database says.
    async fn totals(&self) -> Result<Totals, StoreError>;
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
    ///
    /// # Errors
    /// What the database says to the batch.
    async fn rehearse(&self, batch: Arc<[Incoming]>) -> Result<(), StoreError>;

    /// Roles that anybody on the internet can have where the schema is served as an API, and that may read our tables.
    /// None where the database has no roles.
    ///
    /// # Errors
    /// What the database says.
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
    + Schema
    + Diagnosis
    + letters::Letters
    + housekeeping::Rejections
    + housekeeping::Housekeeping
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

/// Which users to list.
#[derive(Clone, Debug, Default)]
pub struct UserQuery {
    /// At most so many.
    pub limit: u32,
    /// Only rows after this one of the listing (by [`User::id`]).
    pub after: Option<Uuid>,
    /// Deleted rows too.
    pub deleted: bool,
    /// Only where Clerk id, e-mail address, user name or name contains this, without regard to case.
    pub text: Option<String>,
}

/// A row of `users`, for people. Times are RFC 3339 in UTC.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct User {
    /// Ours.
    pub id: Uuid,
    /// Clerk's.
    pub clerk_id: String,
    /// Shown address.
    pub email: Option<String>,
    /// Claimed address.
    pub clerk_email: Option<String>,
    /// Of the claim.
    pub email_verified: bool,
    /// Primary phone number.
    pub phone: Option<String>,
    /// User name.
    pub username: Option<String>,
    /// Given name.
    pub first_name: Option<String>,
    /// Family name.
    pub last_name: Option<String>,
    /// Avatar.
    pub image_url: Option<String>,
    /// The application's id.
    pub external_id: Option<String>,
    /// JSON.
    pub public_metadata: Option<serde_json::Value>,
    /// JSON.
    pub private_metadata: Option<serde_json::Value>,
    /// JSON.
    pub unsafe_metadata: Option<serde_json::Value>,
    /// Banned.
    pub banned: Option<bool>,
    /// Locked.
    pub locked: Option<bool>,
    /// The application's.
    pub subscription_tier: String,
    /// The application's.
    pub credits_balance: i64,
    /// Last sign-in.
    pub last_sign_in_at: Option<String>,
    /// Clerk's.
    pub clerk_created_at: Option<String>,
    /// Clerk's.
    pub clerk_updated_at: Option<String>,
    /// Version of the mirror, milliseconds.
    pub version: Millis,
    /// Deletion, by Clerk's clock.
    pub deleted_at: Option<String>,
    /// Row made, by the database's clock.
    pub created_at: String,
    /// Row changed, by the database's clock.
    pub updated_at: String,
}

/// A user and what happened to it.
#[derive(Clone, Debug, Serialize)]
pub struct UserHistory {
    /// The row; `None` for an id that was deleted before it was ever seen.
    pub user: Option<User>,
    /// Clerk ids that held the row before, oldest first, or the id itself where it was deleted before it was seen.
    pub former: Vec<Former>,
    /// Inbox rows of all these ids, oldest processed first; as far back as `HEADCOUNT_INBOX_RETENTION` reaches.
    pub events: Vec<PastEvent>,
}

/// A Clerk id that is remembered as deleted.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Former {
    /// The id.
    pub clerk_id: String,
    /// The row it had.
    pub user_id: Option<Uuid>,
    /// RFC 3339.
    pub deleted_at: String,
}

/// One message in the inbox. Times are RFC 3339 in UTC.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct PastEvent {
    /// `svix-id`
    pub message_id: String,
    /// The envelope's type.
    pub event_type: String,
    /// The account.
    pub clerk_id: Option<String>,
    /// What became of it.
    pub outcome: String,
    /// By Clerk's clock.
    pub event_at: Option<String>,
    /// By the ingress's clock.
    pub received_at: String,
    /// By the database's clock.
    pub processed_at: String,
}

/// Counts for people.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Totals {
    /// Rows that are not deleted.
    pub live_users: u64,
    /// Rows that are.
    pub deleted_users: u64,
    /// The two are about so many: the table is too large to be counted at a glance.
    pub estimated: bool,
    /// When the newest webhook of Clerk's was processed, RFC 3339.
    pub last_processed_at: Option<String>,
    /// When that one had come in, RFC 3339.
    pub last_received_at: Option<String>,
}

impl Totals {
    /// How long the newest webhook took from its coming in to its commit.
    pub fn lag(&self) -> Option<Duration> {
        let time = |text: &Option<String>| chrono::DateTime::parse_from_rfc3339(text.as_deref()?).ok();
        (time(&self.last_processed_at)? - time(&self.last_received_at)?).to_std().ok()
    }
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
    /// SQLSTATE or SQLite's extended code; empty where there is none.
    pub code: String,
    /// What happened, without any value of a row.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// The driver's error.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
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
#[derive(Clone, Copy, Debug)]
struct Terms {
    policy: Policy,
    default_credits: i64,
}

impl Terms {
    fn of(config: &StoreConfig) -> Self {
        Self { policy: config.policy, default_credits: config.default_credits }
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
