//! Owns the file under the store: how it is claimed and opened, and what is done to it while it is looked after.
//! Promises that no connection is ever made to another file of its name. Never touches a row.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::{
    ConnectOptions, Connection, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use crate::{
    datafile::{self, ClaimError, DataFile, Examined, Medium, Trouble},
    store::{StoreError, errors},
};

/// How long SQLite waits for another process's transaction.
const BUSY: Duration = Duration::from_secs(5);

/// How long a batch waits for those in front of it in this process.
const TURN: Duration = Duration::from_secs(30);

/// What a file is answered with that cannot be opened.
const HINT: &str = "check the path and its permissions, or name another directory in HEADCOUNT_DATA_DIR";

/// Claims the file and opens it; makes it and its directory where they are missing.
pub(super) async fn open(path: &Path) -> Result<(Arc<DataFile>, Anchor), StoreError> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        datafile::make_directory(directory).map_err(|error| {
            errors::unusable(format!("{} cannot be made: {error}", directory.display()), HINT)
        })?;
    }
    let claimed = |error: ClaimError| match error.hint() {
        Some(hint) => errors::unusable(error.to_string(), hint),
        None => errors::unusable(format!("the file {} cannot be opened: {error}", path.display()), HINT),
    };
    let explain = |error: StoreError| {
        let cannot = format!("the file {} cannot be opened: {error}", path.display());
        match error.primary_code() {
            // CORRUPT, NOTADB.
            Some(11 | 26) => {
                let message = format!("the file {} is damaged or no database: {error}", path.display());
                let hint = DataFile::hint_on_damage(path);
                errors::unusable(message, format!("{hint}; or name another directory in HEADCOUNT_DATA_DIR"))
            }
            // PERM, READONLY, CANTOPEN: no waiting mends these.
            Some(3 | 8 | 14) => errors::unusable(cannot, HINT),
            _ => error,
        }
    };
    let anchor = async |real: PathBuf| {
        let options = writing(&real);
        let connection = connect(&options.clone().create_if_missing(true)).await.map_err(explain)?;
        Ok(Anchor { connection, options })
    };
    let (file, anchor) = datafile::take_up(path, claimed, anchor).await?;
    Ok((Arc::new(file), anchor))
}

/// A connection that has read: its write-ahead log is there.
async fn connect(options: &SqliteConnectOptions) -> Result<SqliteConnection, StoreError> {
    let started = Instant::now();
    let mut connection = loop {
        match options.connect().await.map_err(StoreError::from) {
            // Going over to WAL takes a lock that the busy timeout does not wait for.
            Err(error) if error.primary_code() == Some(5) && started.elapsed() < BUSY => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            opened => break opened?,
        }
    };
    sqlx::query("SELECT count(*) FROM sqlite_schema").execute(&mut connection).await?;
    Ok(connection)
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(BUSY)
        .foreign_keys(true)
        .disable_statement_logging()
}

fn writing(path: &Path) -> SqliteConnectOptions {
    options(path)
        .journal_mode(SqliteJournalMode::Wal)
        // Each commit is on the disk before it is answered.
        .synchronous(SqliteSynchronous::Full)
}

/// The one connection that writes.
pub(super) fn writer(file: &Arc<DataFile>) -> SqlitePool {
    pool(file, 1, writing(file.real()))
}

/// Those that people read over.
pub(super) fn readers(file: &Arc<DataFile>) -> SqlitePool {
    pool(file, 4, options(file.real()).pragma("query_only", "ON"))
}

fn pool(file: &Arc<DataFile>, connections: u32, options: SqliteConnectOptions) -> SqlitePool {
    let file = Arc::clone(file);
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(TURN)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .after_connect(move |_, _| {
            // To the file that this process uses, and to no other of its name.
            let checked = file.check().map_err(|trouble| sqlx::Error::Configuration(trouble.into()));
            Box::pin(std::future::ready(checked))
        })
        .connect_lazy_with(options)
}

/// What is said of a file that cannot be used at present.
pub(super) fn unusable(trouble: Trouble) -> StoreError {
    StoreError { hint: Some(trouble.hint.clone()), ..errors::broken(trouble.message) }
}

/// Whether SQLite cannot make sense of what it reads (CORRUPT, NOTADB), or reads less than there has to be (522).
pub(super) fn is_damage(error: &StoreError) -> bool {
    matches!(error.primary_code(), Some(11 | 26)) || error.code == "522"
}

/// The connection that stays open, and what is done over it while the file is looked after.
#[derive(Debug)]
pub(super) struct Anchor {
    connection: SqliteConnection,
    options: SqliteConnectOptions,
}

impl Medium for Anchor {
    async fn examine(&mut self, limit: Duration) -> Examined {
        examine(&self.options, limit).await
    }

    async fn restart_log(&mut self) -> bool {
        let restarted = sqlx::query_scalar("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut self.connection);
        restarted.await.is_ok_and(|busy: i64| busy == 0)
    }

    async fn copy(&mut self, into: &Path) -> Result<bool, String> {
        let text = |error: sqlx::Error| StoreError::from(error).message;
        let any: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM sqlite_schema)")
            .fetch_one(&mut self.connection)
            .await
            .map_err(text)?;
        if any {
            let copied = sqlx::query("VACUUM INTO ?1").bind(into.to_str()).execute(&mut self.connection);
            copied.await.map_err(text)?;
        }
        Ok(any)
    }

    async fn close(self) {
        if let Err(error) = self.connection.close().await {
            tracing::warn!("the database file did not close cleanly: {}", StoreError::from(error));
        }
    }
}

/// Reads the whole file through, over a connection of its own, for so long.
pub(super) async fn examine_at(path: &Path, limit: Duration) -> Examined {
    examine(&writing(path), limit).await
}

async fn examine(options: &SqliteConnectOptions, limit: Duration) -> Examined {
    let examine = async {
        let mut connection = options.connect().await?;
        let deadline = Instant::now() + limit;
        connection.lock_handle().await?.set_progress_handler(10_000, move || Instant::now() < deadline);
        let found: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut connection).await?;
        connection.lock_handle().await?.remove_progress_handler();
        connection.close().await?;
        Ok::<_, StoreError>(found)
    };
    match examine.await {
        Ok(found) if found == "ok" => Examined::Sound,
        Ok(found) => Examined::Damaged(found),
        Err(error) if is_damage(&error) => Examined::Damaged(error.message),
        Err(_) => Examined::Unfinished,
    }
}
