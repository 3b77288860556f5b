//! Owns the SQLite store: its connections, its schema, and one try at a batch.
//! One connection writes; BEGIN IMMEDIATE makes batches follow one another, also those of other processes.
//! Never touches the rules, which are `rules`', nor rows: `load` and `save` are the two ends of a batch, `read` is
//! for people; `letters` answers about dead letters, `capture` takes them in, `replay` is what people do to them,
//! `settle` what their messages' effect does, `prune` what time does, `erase` what a changed policy does.

/// The time of the statement, as times are written here.
macro_rules! now {
    () => {
        "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
    };
}

mod capture;
mod erase;
mod file;
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
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use sqlx::{SqliteConnection, SqlitePool};

use self::writing::Writing;
use super::{
    Incoming, Store, StoreConfig, StoreError, Totals, User, UserHistory, UserQuery,
    batch::{self, Fresh},
    migrations, retry,
    watchdog::Backend,
};
use crate::{
    datafile::{DataFile, Examined, Guard},
    rules::users::{self, Loaded, OnDelete, Outcome, Policy},
};

/// What foreign tables are answered with.
const HINT: &str = "name another file in DATABASE_URL, or another directory in HEADCOUNT_DATA_DIR";

/// Users in a SQLite file.
pub struct SqliteStore {
    path: PathBuf,
    file: Arc<DataFile>,
    guard: Mutex<Option<Guard>>,
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
    /// [`super::Class::Unusable`] where that cannot be, the file is not a database, or processes that run use another
    /// file of this name.
    pub async fn open(path: &Path, config: &StoreConfig) -> Result<Self, StoreError> {
        let (file, anchor) = file::open(path).await?;
        Ok(Self {
            path: path.to_owned(),
            guard: Mutex::new(Some(Guard::start(Arc::clone(&file), anchor))),
            writer: file::writer(&file),
            readers: file::readers(&file),
            file,
            policy: config.policy,
            default_credits: config.default_credits,
        })
    }

    fn place(&self) -> String {
        format!("the file {}", self.path.display())
    }

    /// Begins a transaction of the one writer.
    async fn begin(&self) -> Result<Writing, StoreError> {
        Writing::begin(&self.file, &self.writer).await
    }
}

/// One try at a batch.
struct Attempt<'s>(&'s SqliteStore);

impl retry::Attempt for Attempt<'_> {
    async fn run(&mut self, batch: &[Incoming]) -> Result<Vec<Outcome>, StoreError> {
        let mut writing = self.0.begin().await?;
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
        let folded = users::fold(&self.policy, Loaded { rows, former }, &fresh.events());
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
    const BREAK_OFF: Duration = Duration::from_secs(35);

    fn renewed(&self) -> Option<Self> {
        None
    }

    fn connections(&self) -> usize {
        0
    }

    async fn end(&self) {
        self.readers.close().await;
        self.writer.close().await;
        let guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(guard) = guard {
            guard.stop().await;
        }
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn migrate(&self) -> Result<Vec<String>, StoreError> {
        // One process at a time, until the transaction ends.
        let mut writing = self.begin().await?;
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
        let mut writing = self.begin().await?;
        let written = probe::write(writing.connection()?, self.default_credits).await;
        writing.end(written).await
    }

    async fn rehearse(&self, batch: Arc<[Incoming]>) -> Result<(), StoreError> {
        let mut writing = self.begin().await?;
        // Left without its end, which takes it back.
        self.within(writing.connection()?, &batch).await.map(drop)
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

    async fn examine(&self, limit: Duration) -> Result<Option<Examined>, StoreError> {
        let examined = file::examine(self.file.real(), limit).await;
        self.file.judge(examined).map(Some).map_err(file::unusable)
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
