//! Owns `queue.db`: where it lies, how it is opened, its tables, and what an error of it means to the caller.
//! Promises that each connection is in WAL mode with `synchronous=FULL`. Never touches a message.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::{
    ConnectOptions, Connection, Row, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::super::QueueError;
use crate::datafile::{self, ClaimError, DataFile, Examined, LOG_LIMIT, Medium, Trouble};

/// The file's name in the data directory.
pub(in crate::queue) const FILE: &str = "queue.db";

/// One step per version; `PRAGMA user_version` tells how many a file has had. Steps only add, so that a binary of
/// before can work on a file of after.
const STEPS: &[&str] = &[
    // 1. Bodies have a table of their own: leasing and settling rewrite a message's row, and must not rewrite its body.
    //    AUTOINCREMENT, because an id must never be used twice: a late settlement would hit a stranger.
    "CREATE TABLE consumers (
        id          INTEGER PRIMARY KEY AUTOINCREMENT,
        alive_until INTEGER NOT NULL
    );
    CREATE TABLE messages (
        id           INTEGER PRIMARY KEY AUTOINCREMENT,
        queue        TEXT    NOT NULL DEFAULT 'events' CHECK (queue IN ('events', 'dead')),
        message_id   TEXT    NOT NULL,
        event_type   TEXT    NOT NULL,
        received_at  INTEGER NOT NULL,
        attempt      INTEGER NOT NULL,
        waits        INTEGER NOT NULL,
        round        INTEGER NOT NULL,
        traceparent  TEXT,
        size         INTEGER NOT NULL,
        available_at INTEGER NOT NULL,
        rung         TEXT,
        lease_owner  INTEGER,
        leases       INTEGER NOT NULL DEFAULT 0,
        deliveries   INTEGER NOT NULL DEFAULT 0,
        reason       TEXT,
        detail       TEXT,
        died_at      INTEGER
    );
    CREATE TABLE bodies (
        id   INTEGER PRIMARY KEY REFERENCES messages (id) ON DELETE CASCADE,
        body BLOB    NOT NULL
    );
    CREATE TABLE probe (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        at INTEGER NOT NULL
    );
    INSERT INTO probe VALUES (1, 0);
    CREATE INDEX messages_waiting ON messages (available_at) WHERE queue = 'events' AND lease_owner IS NULL;
    CREATE INDEX messages_leased ON messages (lease_owner) WHERE lease_owner IS NOT NULL;
    CREATE INDEX messages_dead ON messages (died_at) WHERE queue = 'dead';",
    // 2. The dead can be consumed too. Samples have a table of their own, because the CHECK above knows no third queue
    //    and cannot be altered. A sample is free while no consumer of that id lives (0: none ever does), so that a
    //    binary of before, which takes leases back in `messages` only, frees samples as well.
    "ALTER TABLE consumers ADD COLUMN queue TEXT NOT NULL DEFAULT 'events';
    CREATE INDEX messages_buried ON messages (died_at) WHERE queue = 'dead' AND lease_owner IS NULL;
    CREATE TABLE rejections (
        id          INTEGER PRIMARY KEY AUTOINCREMENT,
        received_at INTEGER NOT NULL,
        body        BLOB    NOT NULL,
        lease_owner INTEGER NOT NULL DEFAULT 0
    );",
];

/// How long SQLite itself waits for a lock of the writer's: not long, because [`begin`] waits better.
const WRITER_BUSY: Duration = Duration::from_millis(20);

/// How long a connection waits for another process's transaction before it says so.
pub(super) const BUSY_PATIENCE: Duration = Duration::from_secs(4);

/// Makes the directory and the file ready for use. The connection stays open as long as the file is used.
pub(super) async fn prepare(directory: &Path) -> Result<(Arc<DataFile>, Anchor), QueueError> {
    datafile::make_directory(directory).map_err(|error| unwritable(directory, &error.to_string()))?;
    let explain = |error: sqlx::Error| explain(&error, directory);
    let claimed = |error: ClaimError| match error.hint() {
        Some(hint) => QueueError::Misconfigured { message: error.to_string(), hint },
        None => unwritable(directory, &error.to_string()),
    };
    let anchor = async |path: PathBuf| {
        let mut connection = connect(&path, BUSY_PATIENCE, true).await.map_err(explain)?;
        migrate(&mut connection).await.map_err(explain)?;
        // A write-protected file opens well, and fails at its first write: so write now, where the hint is still read.
        match write_probe(&mut connection).await {
            Err(error) if matches!(primary(&error), READONLY | PERM) => return Err(explain(error)),
            // A full disk may have room again soon; the writer goes on trying.
            Err(_) | Ok(()) => {}
        }
        Ok(Anchor { path, connection })
    };
    let (file, anchor) = datafile::take_up(&directory.join(FILE), claimed, anchor).await?;
    Ok((Arc::new(file), anchor))
}

/// Opens one more connection to a file that [`prepare`] made, which waits this long for locks of others.
pub(super) async fn open(path: &Path, busy: Duration) -> Result<SqliteConnection, sqlx::Error> {
    // Never makes one: where it has gone, an empty file would take its place.
    connect(path, busy, false).await
}

async fn connect(path: &Path, busy: Duration, create: bool) -> Result<SqliteConnection, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(create)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(busy)
        .pragma("cache_size", "-16000")
        .pragma("wal_autocheckpoint", "4000")
        .pragma("journal_size_limit", LOG_LIMIT.to_string())
        .disable_statement_logging();
    let started = Instant::now();
    loop {
        match options.connect().await {
            // Going over to WAL takes a lock that the busy timeout does not wait for.
            Err(error) if is_busy(&error) && started.elapsed() < BUSY_PATIENCE => pause().await,
            outcome => return outcome,
        }
    }
}

/// The connection that stays open, and what is done over it while the file is looked after.
#[derive(Debug)]
pub(super) struct Anchor {
    path: PathBuf,
    connection: SqliteConnection,
}

impl Medium for Anchor {
    async fn examine(&mut self, limit: Duration) -> Examined {
        examine(&self.path, limit).await
    }

    async fn restart_log(&mut self) -> bool {
        let restarted = sqlx::query_scalar("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut self.connection);
        restarted.await.is_ok_and(|busy: i64| busy == 0)
    }

    async fn copy(&mut self, into: &Path) -> Result<bool, String> {
        let text = |error: sqlx::Error| say(&error);
        let any = "SELECT EXISTS (SELECT 1 FROM messages) OR EXISTS (SELECT 1 FROM rejections)";
        let any: bool = sqlx::query_scalar(any).fetch_one(&mut self.connection).await.map_err(text)?;
        if any {
            let copied = sqlx::query("VACUUM INTO ?1").bind(into.to_str()).execute(&mut self.connection);
            copied.await.map_err(text)?;
        }
        Ok(any)
    }

    async fn close(self) {
        if let Err(error) = self.connection.close().await {
            tracing::warn!(%error, "queue.db did not close cleanly");
        }
    }
}

/// Reads the whole file through, over a connection of its own, for so long.
pub(super) async fn examine(path: &Path, limit: Duration) -> Examined {
    let examine = async {
        let mut connection = open(path, BUSY_PATIENCE).await?;
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
        Err(error) if is_damage(&error) => Examined::Damaged(say(&error)),
        Err(_) => Examined::Unfinished,
    }
}

/// Why a transaction did not come to its end, or is not known to.
#[derive(Debug)]
pub(super) enum Failure {
    /// It is not the file that it was, or is damaged.
    File(Trouble),
    /// SQLite says so.
    Sql(sqlx::Error),
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        Self::File(trouble)
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

/// The connection, to the file that this process uses and to no other of its name.
pub(super) async fn reach<'a>(
    connection: &'a mut Option<SqliteConnection>,
    file: &DataFile,
) -> Result<&'a mut SqliteConnection, Failure> {
    file.check()?;
    Ok(match connection {
        Some(open) => open,
        None => {
            let opened = open(file.real(), WRITER_BUSY).await?;
            file.check()?;
            connection.insert(opened)
        }
    })
}

/// Takes the write lock. Waits for other processes in small random steps rather than by SQLite's own, growing ones:
/// a busy neighbour leaves the lock free for less than a millisecond between two commits.
pub(super) async fn begin(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let started = Instant::now();
    loop {
        match sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await {
            Err(error) if is_busy(&error) && started.elapsed() < BUSY_PATIENCE => pause().await,
            outcome => return outcome.map(drop),
        }
    }
}

/// Commits; with `synchronous=FULL` what was written is on the disk when this returns.
pub(super) async fn commit(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::query("COMMIT").execute(connection).await.map(drop)
}

/// Gives up what was begun.
pub(super) async fn roll_back(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::query("ROLLBACK").execute(connection).await.map(drop)
}

/// Writes something of no meaning, to learn whether writing works.
pub(super) async fn probe(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE probe SET at = ?1").bind(crate::time::now()).execute(connection).await.map(drop)
}

async fn write_probe(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    begin(connection).await?;
    probe(connection).await?;
    commit(connection).await
}

async fn migrate(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    if version(connection).await? >= STEPS.len() {
        return Ok(());
    }
    begin(connection).await?;
    // Asked again under the lock: two processes may open a new directory at once.
    for (index, step) in STEPS.iter().enumerate().skip(version(connection).await?) {
        sqlx::raw_sql(*step).execute(&mut *connection).await?;
        let pragma = format!("PRAGMA user_version = {}", index + 1);
        sqlx::raw_sql(sqlx::AssertSqlSafe(pragma)).execute(&mut *connection).await?;
    }
    commit(connection).await
}

async fn version(connection: &mut SqliteConnection) -> Result<usize, sqlx::Error> {
    let version: i64 = sqlx::query("PRAGMA user_version").fetch_one(connection).await?.try_get(0)?;
    Ok(usize::try_from(version).unwrap_or(0))
}

/// A few milliseconds, not the same for two who wait for each other.
async fn pause() {
    tokio::time::sleep(Duration::from_micros(rand::random_range(500..3000))).await;
}

// SQLite's primary result codes (https://www.sqlite.org/rescode.html).
const PERM: i32 = 3;
const BUSY: i32 = 5;
const READONLY: i32 = 8;
const CORRUPT: i32 = 11;
const CANTOPEN: i32 = 14;
const AUTH: i32 = 23;
const NOTADB: i32 = 26;

// And an extended one.
const SHORT_READ: i32 = 522;

/// The primary result code; 0 where the error is not SQLite's.
fn primary(error: &sqlx::Error) -> i32 {
    extended(error) & 0xff
}

fn extended(error: &sqlx::Error) -> i32 {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .and_then(|code| code.parse::<i32>().ok())
        .unwrap_or(0)
}

/// Whether SQLite cannot make sense of what it reads, or reads less than there has to be.
pub(super) fn is_damage(error: &sqlx::Error) -> bool {
    matches!(primary(error), CORRUPT | NOTADB) || extended(error) == SHORT_READ
}

fn is_busy(error: &sqlx::Error) -> bool {
    primary(error) == BUSY
}

/// An error in few words.
pub(super) fn say(error: &sqlx::Error) -> String {
    error.as_database_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}

/// What an error at opening means to the caller.
fn explain(error: &sqlx::Error, directory: &Path) -> QueueError {
    match primary(error) {
        PERM | READONLY | CANTOPEN | AUTH => unwritable(directory, &say(error)),
        CORRUPT | NOTADB => QueueError::Misconfigured {
            message: format!("{} is damaged or no queue: {}", directory.join(FILE).display(), say(error)),
            hint: format!(
                "{}; or set HEADCOUNT_DATA_DIR to another directory",
                DataFile::hint_on_damage(&directory.join(FILE))
            ),
        },
        _ => QueueError::File(format!("{}: {}", directory.join(FILE).display(), say(error))),
    }
}

fn unwritable(directory: &Path, problem: &str) -> QueueError {
    QueueError::Refused {
        message: format!("the data directory {} cannot be written: {problem}", directory.display()),
        hint: "set HEADCOUNT_DATA_DIR to a directory that this user may write".into(),
    }
}
