//! Owns `queue.db`: where it lies, how it is opened, its tables, and what an error of it means to the caller.
//! Promises that each connection is in WAL mode with `synchronous=FULL`. Never touches a message.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sqlx::{Row, SqliteConnection, sqlite::SqliteConnectOptions};

use super::super::QueueError;
use crate::datafile::{
    self, Anchor, DataFile, Examined, FileTrouble, LOG_LIMIT, LockError,
    connection::{self, is_forbidden, is_no_database, is_write_protected, say},
};

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
    // 3. Where a message comes from. A binary of before knows webhooks only.
    "ALTER TABLE messages ADD COLUMN origin TEXT NOT NULL DEFAULT 'webhook';",
];

/// How long SQLite itself waits when the writer needs a lock: not long, because [`begin`] waits better.
const WRITER_BUSY: Duration = Duration::from_millis(20);

/// How long a connection waits for another process's transaction before it says so.
pub(super) const BUSY_PATIENCE: Duration = Duration::from_secs(4);

/// Makes the directory and the file ready for use. The connection stays open as long as the file is used.
pub(super) async fn prepare(directory: &Path) -> Result<(Arc<DataFile>, Anchor), QueueError> {
    datafile::make_directory(directory).map_err(|error| unwritable(directory, &error.to_string()))?;
    let explain = |error: sqlx::Error| explain(&error, directory);
    let refused = |error: LockError| match error.hint() {
        Some(hint) => QueueError::Misconfigured { message: error.to_string(), hint },
        None => unwritable(directory, &error.to_string()),
    };
    let anchor = async |path: PathBuf| {
        let options = options(&path, BUSY_PATIENCE);
        let creating = options.clone().create_if_missing(true);
        let mut connection = connection::connect(&creating, BUSY_PATIENCE).await.map_err(explain)?;
        migrate(&mut connection).await.map_err(explain)?;
        // A write-protected file opens well, and fails at its first write: so write now, where the hint is still read.
        match write(&mut connection).await {
            Err(error) if is_write_protected(connection::code(&error)) => return Err(explain(error)),
            // A full disk may have room again soon; the writer goes on trying.
            Err(_) | Ok(()) => {}
        }
        let any = "SELECT EXISTS (SELECT 1 FROM messages) OR EXISTS (SELECT 1 FROM rejections)";
        Ok(Anchor::new(connection, options, any))
    };
    let (file, anchor) = datafile::take_up(&directory.join(FILE), refused, anchor).await?;
    Ok((Arc::new(file), anchor))
}

fn options(path: &Path, busy: Duration) -> SqliteConnectOptions {
    // Never makes a file by itself: where it has gone, an empty one would take its place.
    connection::options_to_write(path, busy)
        .pragma("cache_size", "-16000")
        .pragma("wal_autocheckpoint", "4000")
        .pragma("journal_size_limit", LOG_LIMIT.to_string())
}

/// Opens one more connection to a file that [`prepare`] made, which waits this long for locks of others.
pub(super) async fn open(path: &Path, busy: Duration) -> Result<SqliteConnection, sqlx::Error> {
    connection::connect(&options(path, busy), BUSY_PATIENCE).await
}

/// Reads the whole file through, for as long as `limit`.
pub(super) async fn examine(path: &Path, limit: Duration) -> Examined {
    connection::examine(&options(path, BUSY_PATIENCE), limit).await
}

/// Why a transaction did not come to its end, or is not known to.
#[derive(Debug)]
pub(super) enum Unwritten {
    /// It is not the file that it was, or is damaged.
    File(FileTrouble),
    /// SQLite says so.
    Sql(sqlx::Error),
}

impl From<FileTrouble> for Unwritten {
    fn from(trouble: FileTrouble) -> Self {
        Self::File(trouble)
    }
}

impl From<sqlx::Error> for Unwritten {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

/// The connection, to the file that this process uses and to no other of its name.
pub(super) async fn reach<'a>(
    connection: &'a mut Option<SqliteConnection>,
    file: &DataFile,
) -> Result<&'a mut SqliteConnection, Unwritten> {
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

/// Takes the write lock, and waits for other processes first.
pub(super) async fn begin(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    connection::begin(connection, BUSY_PATIENCE).await
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
pub(super) async fn touch(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE probe SET at = ?1").bind(crate::time::now()).execute(connection).await.map(drop)
}

async fn write(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    begin(connection).await?;
    touch(connection).await?;
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

/// What an error at opening means to the caller.
fn explain(error: &sqlx::Error, directory: &Path) -> QueueError {
    match connection::code(error) {
        code if is_forbidden(code) => unwritable(directory, &say(error)),
        code if is_no_database(code) => QueueError::Misconfigured {
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
