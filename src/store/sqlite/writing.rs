//! Owns a transaction on the one connection that writes. Promises that the connection is fit for the next one, or
//! closed.
//!
//! SQLite ends some transactions by itself, when the disk is full for one; sqlx's own `Transaction` would go on
//! believing in it and refuse to begin another on that connection.

use std::{sync::Arc, time::Duration};

use sqlx::{Sqlite, SqliteConnection, SqlitePool, pool::PoolConnection};

use super::file;
use crate::{
    datafile::{DataFile, connection},
    store::{StoreError, errors},
};

/// How long other processes' transactions are waited for. SQLite gives up after each `BUSY`; a busy neighbour
/// leaves the lock free for less than a millisecond between two commits, so that one such wait may miss it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Dropped before its end, it closes the connection, which rolls back.
pub(in crate::store) struct Writing {
    connection: Option<PoolConnection<Sqlite>>,
    file: Arc<DataFile>,
}

impl Writing {
    /// Waits for its turn in this process, then among processes.
    pub(super) async fn begin(file: &Arc<DataFile>, writer: &SqlitePool) -> Result<Self, StoreError> {
        file.check().map_err(file::unusable)?;
        let connection = Some(writer.acquire().await?);
        let mut writing = Self { connection, file: Arc::clone(file) };
        match connection::begin(writing.connection()?, PATIENCE).await {
            Ok(()) => Ok(writing),
            Err(error) => Err(writing.blame(error.into())),
        }
    }

    pub(in crate::store) fn connection(&mut self) -> Result<&mut SqliteConnection, StoreError> {
        self.connection.as_deref_mut().ok_or_else(|| errors::broken("the transaction has ended"))
    }

    /// Commits what went well and rolls the rest back.
    pub(super) async fn end<T>(mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        let result = result.map_err(|error| self.blame(error));
        let result = result.and_then(|value| self.file.check().map_err(file::unusable).map(|()| value));
        let statement = if result.is_ok() { "COMMIT" } else { "ROLLBACK" };
        // The boundary: inbox and users become durable together.
        let ended = sqlx::raw_sql(statement).execute(self.connection()?).await;
        match ended {
            Ok(_) => {
                drop(self.connection.take());
                // Look before answering: what went into a file that was taken away meanwhile is lost with this process.
                result.and_then(|value| self.file.check().map_err(file::unusable).map(|()| value))
            }
            Err(error) => result.and_then(|_| Err(self.blame(error.into()))),
        }
    }

    /// Damage is the file's trouble, whatever the batch was.
    fn blame(&self, error: StoreError) -> StoreError {
        if !file::is_damage(&error) {
            return error;
        }
        self.file.damaged(&error.message);
        self.file.trouble().map_or(error, file::unusable)
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            drop(connection.detach());
        }
    }
}
