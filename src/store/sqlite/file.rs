//! Owns the file under the store: how it is refused and opened, and what is done to it while it is looked after.
//! Promises that no connection is ever made to another file of its name. Never touches a row.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};

use crate::{
    datafile::{
        self, Anchor, DataFile, Examined, FileTrouble, LockError,
        connection::{self, is_forbidden, is_no_database},
    },
    store::{StoreError, errors},
};

/// How long SQLite waits for another process's transaction.
const BUSY: Duration = Duration::from_secs(5);

/// How long a batch waits for those in front of it in this process.
const TURN: Duration = Duration::from_secs(30);

/// What a file is answered with that cannot be opened.
const HINT: &str = "check the path and its permissions; or name another file in DATABASE_URL, or another directory in HEADCOUNT_DATA_DIR";

/// Claims the file and opens it; makes it and its directory where they are missing.
pub(super) async fn open(path: &Path) -> Result<(Arc<DataFile>, Anchor), StoreError> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        datafile::make_directory(directory).map_err(|error| {
            errors::unusable(format!("{} cannot be made: {error}", directory.display()), HINT)
        })?;
    }
    let refused = |error: LockError| match error.hint() {
        Some(hint) => errors::unusable(error.to_string(), hint),
        None => errors::unusable(format!("the file {} cannot be opened: {error}", path.display()), HINT),
    };
    let explain = |error: StoreError| {
        let cannot = format!("the file {} cannot be opened: {error}", path.display());
        match code(&error) {
            code if is_no_database(code) => {
                let message = format!("the file {} is damaged or no database: {error}", path.display());
                let hint = DataFile::hint_on_damage(path);
                errors::unusable(message, format!("{hint}; or name another directory in HEADCOUNT_DATA_DIR"))
            }
            code if is_forbidden(code) => errors::unusable(cannot, HINT),
            _ => error,
        }
    };
    let anchor = async |real: PathBuf| {
        let options = connection::options_to_write(&real, BUSY);
        let connected = connection::connect(&options.clone().create_if_missing(true), BUSY).await;
        let mut connection = connected.map_err(|error| explain(error.into()))?;
        // It has to have read: only then its write-ahead log is there.
        let read = sqlx::query("SELECT count(*) FROM sqlite_schema").execute(&mut connection).await;
        read.map_err(|error| explain(error.into()))?;
        Ok(Anchor::new(connection, options, "SELECT EXISTS (SELECT 1 FROM sqlite_schema)"))
    };
    let (file, anchor) = datafile::take_up(path, refused, anchor).await?;
    Ok((Arc::new(file), anchor))
}

/// The one connection that writes.
pub(super) fn writer(file: &Arc<DataFile>) -> SqlitePool {
    pool(file, 1, connection::options_to_write(file.real(), BUSY))
}

/// Those that people read over.
pub(super) fn readers(file: &Arc<DataFile>) -> SqlitePool {
    pool(file, 4, connection::options(file.real(), BUSY).pragma("query_only", "ON"))
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
pub(super) fn unusable(trouble: FileTrouble) -> StoreError {
    StoreError { hint: Some(trouble.hint.clone()), ..errors::broken(trouble.message) }
}

/// Whether SQLite cannot make sense of what it reads, or reads less than there has to be.
pub(super) fn is_damage(error: &StoreError) -> bool {
    connection::is_damage(code(error))
}

/// SQLite's extended result code; 0 where the error is not SQLite's.
fn code(error: &StoreError) -> i32 {
    error.code.parse().unwrap_or(0)
}

/// Reads the whole file through, for as long as `limit`.
pub(super) async fn examine(path: &Path, limit: Duration) -> Examined {
    connection::examine(&connection::options_to_write(path, BUSY), limit).await
}
