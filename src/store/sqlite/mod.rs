//! Owns the SQLite store: its file, its connections, its schema, and one try at a batch.
//! One connection writes; BEGIN IMMEDIATE makes batches follow one another, also those of other processes.
//! Never touches the rules, which are `roster`'s, nor rows: `load` and `save` are the two ends of a batch, `read` is
//! for people; `letters` answers about dead letters, `capture` takes them in, `replay` is what people do to them,
//! `settle` what their messages' effect does, `prune` what time does.

/// The time of the statement, as times are written here.
macro_rules! now {
    () => {
        "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
    };
}

mod capture;
mod letters;
mod load;
mod probe;
mod prune;
mod read;
mod replay;
mod save;
mod settle;
mod writing;

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use sqlx::{
    ConnectOptions, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use self::writing::Writing;
use super::{
    Incoming, Store, StoreConfig, StoreError, Totals, User, UserHistory, UserQuery,
    batch::{self, Fresh},
    errors, migrations, retry,
    watchdog::Backend,
};
use crate::roster::{self, Loaded, OnDelete, Outcome, Policy};

/// How long SQLite waits for another process's transaction.
const BUSY: Duration = Duration::from_secs(5);

/// How long a batch waits for those in front of it in this process.
const TURN: Duration = Duration::from_secs(30);

/// What foreign tables are answered with.
const HINT: &str = "name another file in DATABASE_URL, or another directory in HEADCOUNT_DATA_DIR";

/// Users in a SQLite file.
pub struct SqliteStore {
    path: PathBuf,
    writer: SqlitePool,
    readers: SqlitePool,
    policy: Policy,
    default_credits: i64,
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SQLite file {}", self.path.display())
    }
}

impl SqliteStore {
    /// Opens the file, and makes it and its directory where they are missing.
    ///
    /// # Errors
    /// [`super::Class::Unusable`] where that cannot be, or the file is not a database.
    pub async fn open(path: &Path, config: &StoreConfig) -> Result<Self, StoreError> {
        let hint = "check the path and its permissions, or name another directory in HEADCOUNT_DATA_DIR";
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory).map_err(|error| {
                errors::unusable(format!("{} cannot be made: {error}", directory.display()), hint)
            })?;
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .busy_timeout(BUSY)
            .foreign_keys(true)
            .disable_statement_logging();
        let writing = options
            .clone()
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // Each commit is on the disk before it is answered.
            .synchronous(SqliteSynchronous::Full);
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(TURN)
                .idle_timeout(None)
                .max_lifetime(None)
                .test_before_acquire(false)
        };
        let store = Self {
            path: path.to_owned(),
            writer: pool(1).connect_lazy_with(writing),
            readers: pool(4).connect_lazy_with(options.pragma("query_only", "ON")),
            policy: config.policy,
            default_credits: config.default_credits,
        };
        match store.writer.acquire().await.map_err(StoreError::from) {
            // PERM, READONLY, CANTOPEN, NOTADB: no waiting mends these.
            Err(error) if matches!(error.primary_code(), Some(3 | 8 | 14 | 26)) => {
                Err(errors::unusable(format!("{} cannot be opened: {error}", store.place()), hint))
            }
            _ => Ok(store),
        }
    }

    fn place(&self) -> String {
        format!("the file {}", self.path.display())
    }
}

/// One try at a batch.
struct Attempt<'s>(&'s SqliteStore);

impl retry::Attempt for Attempt<'_> {
    async fn run(&mut self, batch: &[Incoming]) -> Result<Vec<Outcome>, StoreError> {
        let mut writing = Writing::begin(&self.0.writer).await?;
        let result = self.0.within(writing.connection()?, batch).await;
        writing.end(result).await
    }
}

impl SqliteStore {
    async fn within(
        &self,
        tx: &mut SqliteConnection,
        batch: &[Incoming],
    ) -> Result<Vec<Outcome>, StoreError> {
        let ids = batch::clerk_ids(batch);
        let rows = load::rows(tx, &ids, &batch::claim_keys(batch), self.policy.needs_profiles()).await?;
        let (known, former) = load::remembered(tx, &batch::message_ids(batch), &ids).await?;
        let fresh = Fresh::of(batch, &known);
        let folded = roster::fold(&self.policy, Loaded { rows, former }, &fresh.events());
        let outcomes = fresh.outcomes(&folded.outcomes)?;
        save::all(tx, self.default_credits, &fresh, &folded).await?;
        let mut users = settle::applied(tx, &batch::effective(batch, &outcomes)).await?;
        if self.policy.on_delete == OnDelete::Erase {
            users.extend(batch::deleted_ids(batch).into_iter().map(str::to_owned));
            settle::erase(tx, &users).await?;
        }
        Ok(outcomes)
    }

    async fn migrate_within(&self, tx: &mut SqliteConnection) -> Result<Vec<String>, StoreError> {
        let found = Found::look(tx).await?;
        let applied = found.applied.unwrap_or_default();
        migrations::refuse_foreign(found.foreign.as_deref(), &self.place(), HINT)?;
        let pending = migrations::pending(migrations::SQLITE, &applied);
        if !pending.is_empty() {
            migrations::migrator(migrations::SQLITE).run_direct(None, tx, false).await?;
        }
        Ok(pending)
    }
}

impl Backend for SqliteStore {
    // Longer than the waiting for other processes; what is broken off closes its connection.
    const ANSWER: Duration = Duration::from_secs(35);

    fn renewed(&self) -> Option<Self> {
        None
    }

    fn connections(&self) -> usize {
        0
    }

    async fn end(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn migrate(&self) -> Result<Vec<String>, StoreError> {
        // One process at a time, until the transaction ends.
        let mut writing = Writing::begin(&self.writer).await?;
        let result = self.migrate_within(writing.connection()?).await;
        writing.end(result).await
    }

    async fn check_schema(&self) -> Result<(), StoreError> {
        let mut connection = self.readers.acquire().await?;
        let found = Found::look(&mut connection).await?;
        let (applied, foreign) = (found.applied.as_ref(), found.foreign.as_deref());
        migrations::check(migrations::SQLITE, applied, foreign, &self.place(), HINT)
    }

    async fn apply(&self, batch: Arc<[Incoming]>) -> Result<Vec<Outcome>, StoreError> {
        retry::races(&batch, &mut Attempt(self)).await
    }

    async fn ready(&self) -> Result<(), StoreError> {
        let mut writing = Writing::begin(&self.writer).await?;
        let written = probe::write(writing.connection()?, self.default_credits).await;
        writing.end(written).await
    }

    async fn users(&self, query: &UserQuery) -> Result<Vec<User>, StoreError> {
        read::users(&self.readers, query).await
    }

    async fn user(&self, reference: &str) -> Result<Option<UserHistory>, StoreError> {
        read::user(&self.readers, reference).await
    }

    async fn totals(&self) -> Result<Totals, StoreError> {
        read::totals(&self.readers).await
    }

    async fn close(&self) {
        self.end().await;
    }
}

/// What stands in the file.
struct Found {
    /// Migrations that were applied; `None` where there is no record.
    applied: Option<BTreeSet<i64>>,
    /// A table with a name that is still to be ours.
    foreign: Option<String>,
}

impl Found {
    async fn look(connection: &mut SqliteConnection) -> Result<Self, StoreError> {
        let tables: Vec<String> =
            sqlx::query_scalar("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')")
                .fetch_all(&mut *connection)
                .await?;
        let applied = if tables.iter().any(|table| table == migrations::TABLE) {
            let versions = sqlx::query_scalar("SELECT version FROM headcount_migrations WHERE success");
            Some(versions.fetch_all(connection).await?.into_iter().collect())
        } else {
            None
        };
        let to_come = migrations::to_come(applied.as_ref());
        let foreign = tables.into_iter().find(|table| to_come.contains(&table.as_str()));
        Ok(Self { applied, foreign })
    }
}
