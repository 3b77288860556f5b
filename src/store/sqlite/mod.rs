//! Owns the SQLite store: its connections, its schema, and which room answers which call. One connection writes; BEGIN
//! IMMEDIATE makes batches follow one another, also those of other processes. `transaction` is what a batch's transaction does,
//! `read` is for people; `capture` takes dead letters in, `letters` is what people ask about them and do to them,
//! `housekeeping` what time does, `sync` what the statements of sync need.

mod capture;
mod file;
mod housekeeping;
mod letters;
mod read;
mod sync;
mod transaction;
pub(super) mod writing;

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
    Batches, Diagnosis, Incoming, PastEvent, Schema, Store, StoreConfig, StoreError, Stranger, Terms, Totals,
    User, UserHistory, UserQuery, Users, migrations, watchdog::Renewable,
};
use crate::{
    datafile::{DataFile, Examined, Guard},
    rules::Outcome,
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
    terms: Terms,
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
            terms: Terms::of(config),
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

impl SqliteStore {
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

impl Renewable for SqliteStore {
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
impl Batches for SqliteStore {
    async fn apply(&self, batch: Arc<[Incoming]>) -> Result<Vec<Outcome>, StoreError> {
        super::unit::apply(self, &batch).await
    }

    async fn ready(&self) -> Result<(), StoreError> {
        super::unit::ready(self).await
    }
}

#[async_trait]
impl Users for SqliteStore {
    async fn users(&self, query: &UserQuery) -> Result<Vec<User>, StoreError> {
        read::users(&self.readers, query).await
    }

    async fn user(&self, reference: &str) -> Result<Option<UserHistory>, StoreError> {
        read::user(&self.readers, reference).await
    }

    async fn message(&self, message_id: &str) -> Result<Option<PastEvent>, StoreError> {
        read::message(&self.readers, message_id).await
    }

    async fn totals(&self) -> Result<Totals, StoreError> {
        read::totals(&self.readers).await
    }
}

#[async_trait]
impl Schema for SqliteStore {
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
}

#[async_trait]
impl Diagnosis for SqliteStore {
    async fn rehearse(&self, batch: Arc<[Incoming]>) -> Result<(), StoreError> {
        super::unit::rehearse(self, &batch).await
    }

    async fn strangers(&self) -> Result<Vec<Stranger>, StoreError> {
        Ok(Vec::new())
    }

    async fn examine(&self, limit: Duration) -> Result<Option<Examined>, StoreError> {
        let examined = file::examine(self.file.real(), limit).await;
        self.file.judge(examined).map(Some).map_err(file::unusable)
    }
}

#[async_trait]
impl Store for SqliteStore {
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
