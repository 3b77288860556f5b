//! Owns how SQLite is asked, for the embedded queue and the store alike: connecting, taking the write lock among other
//! processes, what its error codes mean, and the connection that is held open while a file is used.
//! Promises that a connection which writes is in WAL mode with `synchronous=FULL`. Never touches a table.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use sqlx::{
    ConnectOptions, Connection, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::Examined;

// SQLite's primary result codes (https://www.sqlite.org/rescode.html).
const PERM: i32 = 3;
const BUSY: i32 = 5;
const READONLY: i32 = 8;
const CORRUPT: i32 = 11;
const CANTOPEN: i32 = 14;
const AUTH: i32 = 23;
const NOTADB: i32 = 26;

/// An extended one.
const SHORT_READ: i32 = 522;

/// What every connection is made with. SQLite itself waits for `busy` for each lock of others.
pub fn options(path: &Path, busy: Duration) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(busy)
        .foreign_keys(true)
        .disable_statement_logging()
}

/// The same for a connection that writes: each commit is on the disk before it is answered.
pub fn options_to_write(path: &Path, busy: Duration) -> SqliteConnectOptions {
    options(path, busy).journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full)
}

/// Connects. Other processes are waited for up to `patience`: going over to WAL takes a lock that SQLite's own busy
/// timeout does not wait for.
///
/// # Errors
/// What SQLite says.
pub async fn connect(
    options: &SqliteConnectOptions,
    patience: Duration,
) -> Result<SqliteConnection, sqlx::Error> {
    let started = Instant::now();
    loop {
        match options.connect().await {
            Err(error) if is_busy(code(&error)) && started.elapsed() < patience => step_aside().await,
            outcome => return outcome,
        }
    }
}

/// Begins a transaction with the write lock. Waits up to `patience` for other processes, in small random steps rather
/// than by SQLite's own, growing ones: a busy neighbour leaves the lock free for less than a millisecond between two
/// commits.
///
/// # Errors
/// What SQLite says.
pub async fn begin(connection: &mut SqliteConnection, patience: Duration) -> Result<(), sqlx::Error> {
    let started = Instant::now();
    loop {
        match sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await {
            Err(error) if is_busy(code(&error)) && started.elapsed() < patience => step_aside().await,
            outcome => return outcome.map(drop),
        }
    }
}

/// A few milliseconds, not the same for two who wait for each other.
async fn step_aside() {
    tokio::time::sleep(Duration::from_micros(rand::random_range(500..3000))).await;
}

/// Reads the whole file through, over a connection of its own, for as long as `limit`.
pub async fn examine(options: &SqliteConnectOptions, limit: Duration) -> Examined {
    let examine = async {
        let mut connection = options.connect().await?;
        let deadline = Instant::now() + limit;
        connection.lock_handle().await?.set_progress_handler(10_000, move || Instant::now() < deadline);
        let found: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut connection).await?;
        connection.lock_handle().await?.remove_progress_handler();
        connection.close().await?;
        Ok::<_, sqlx::Error>(found)
    };
    match examine.await {
        Ok(found) if found == "ok" => Examined::Sound,
        Ok(found) => Examined::Damaged(found),
        Err(error) if is_damage(code(&error)) => Examined::Damaged(say(&error)),
        Err(_) => Examined::Unfinished,
    }
}

/// The connection that is held open while a file is used, so that nobody else's leaving ends the log. It has read from
/// the file.
#[derive(Debug)]
pub struct Anchor {
    connection: SqliteConnection,
    options: SqliteConnectOptions,
    /// Asks whether the file holds anything that has to be saved.
    holds_anything: &'static str,
}

impl Anchor {
    /// Takes a connection that has read, and the options by which others like it are made.
    pub fn new(
        connection: SqliteConnection,
        options: SqliteConnectOptions,
        holds_anything: &'static str,
    ) -> Self {
        Self { connection, options, holds_anything }
    }

    pub(super) async fn examine(&self, limit: Duration) -> Examined {
        examine(&self.options, limit).await
    }

    /// Begins a new write-ahead log, if nothing of the present one is needed any more and nobody reads in it; else `false`.
    pub(super) async fn restart_log(&mut self) -> bool {
        let restarted = sqlx::query_scalar("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut self.connection);
        restarted.await.is_ok_and(|busy: i64| busy == 0)
    }

    /// Copies what the file holds, log included, into a new file. `Ok(false)` where it holds nothing.
    pub(super) async fn copy(&mut self, into: &Path) -> Result<bool, String> {
        let text = |error: sqlx::Error| say(&error);
        let asked = sqlx::query_scalar(self.holds_anything).fetch_one(&mut self.connection);
        let anything: bool = asked.await.map_err(text)?;
        if anything {
            let copied = sqlx::query("VACUUM INTO ?1").bind(into.to_str()).execute(&mut self.connection);
            copied.await.map_err(text)?;
        }
        Ok(anything)
    }

    pub(super) async fn close(self, path: &Path) {
        if let Err(error) = self.connection.close().await {
            tracing::warn!("{} did not close cleanly: {}", path.display(), say(&error));
        }
    }
}

/// SQLite's extended result code; 0 where the error is not SQLite's.
pub fn code(error: &sqlx::Error) -> i32 {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.and_then(|code| code.parse().ok()).unwrap_or(0)
}

fn is_busy(code: i32) -> bool {
    code & 0xff == BUSY
}

/// Whether SQLite cannot make sense of what it reads, or reads less than there has to be.
pub fn is_damage(code: i32) -> bool {
    is_no_database(code) || code == SHORT_READ
}

/// Whether a file that is to be opened is damaged or no database.
pub fn is_no_database(code: i32) -> bool {
    matches!(code & 0xff, CORRUPT | NOTADB)
}

/// Whether a file may not be opened, which no waiting mends.
pub fn is_forbidden(code: i32) -> bool {
    is_write_protected(code) || matches!(code & 0xff, CANTOPEN | AUTH)
}

/// Whether a file may not be written.
pub fn is_write_protected(code: i32) -> bool {
    matches!(code & 0xff, PERM | READONLY)
}

/// An error in few words.
pub fn say(error: &sqlx::Error) -> String {
    error.as_database_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}
