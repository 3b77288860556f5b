//! Owns `queue.db`: where it lies, how it is opened, its tables, and what an error of it means to the caller.
//! Promises that each connection is in WAL mode with `synchronous=FULL`. Never touches a message.

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use sqlx::{
    ConnectOptions, Connection, Row, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::super::QueueError;

/// The file's name in the data directory.
const FILE: &str = "queue.db";

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

/// How long a connection waits for another process's transaction before it says so.
pub(super) const BUSY_PATIENCE: Duration = Duration::from_secs(4);

/// Makes the directory and the file ready for use.
pub(super) async fn prepare(directory: &Path) -> Result<PathBuf, QueueError> {
    make_directory(directory).map_err(|error| unwritable(directory, &error.to_string()))?;
    let path = directory.join(FILE);
    let explain = |error: sqlx::Error| explain(&error, directory);
    let mut connection = open(&path, BUSY_PATIENCE).await.map_err(explain)?;
    migrate(&mut connection).await.map_err(explain)?;
    // A write-protected file opens well, and fails at its first write: so write now, where the hint is still read.
    match write_probe(&mut connection).await {
        Err(error) if matches!(primary(&error), READONLY | PERM) => return Err(explain(error)),
        // A full disk may have room again soon; the writer goes on trying.
        Err(_) | Ok(()) => {}
    }
    connection.close().await.map_err(explain)?;
    Ok(path)
}

/// Opens one more connection to a file that [`prepare`] made, which waits this long for locks of others.
pub(super) async fn open(path: &Path, busy: Duration) -> Result<SqliteConnection, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(busy)
        .pragma("cache_size", "-16000")
        .pragma("wal_autocheckpoint", "4000")
        .pragma("journal_size_limit", "67108864")
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

/// Writes something of no meaning, to learn whether writing works.
pub(super) async fn probe(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE probe SET at = ?1").bind(crate::message::now()).execute(connection).await.map(drop)
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

fn make_directory(directory: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    // Bodies are personal data: nobody else's business.
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
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

/// The primary result code; 0 where the error is not SQLite's.
fn primary(error: &sqlx::Error) -> i32 {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .and_then(|code| code.parse::<i32>().ok())
        .map_or(0, |code| code & 0xff)
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
            hint: "move the file away, or set HEADCOUNT_DATA_DIR to another directory".into(),
        },
        _ => QueueError::Unavailable(format!("{}: {}", directory.join(FILE).display(), say(error))),
    }
}

fn unwritable(directory: &Path, problem: &str) -> QueueError {
    QueueError::Refused {
        message: format!("the data directory {} cannot be written: {problem}", directory.display()),
        hint: "set HEADCOUNT_DATA_DIR to a directory that this user may write".into(),
    }
}
