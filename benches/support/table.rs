//! Owns a table of users as a person at a prompt has it: counts and edits, on PostgreSQL and embedded.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection, sqlite::SqliteConnectOptions};

use super::Outcome;

/// How long webhooks that were accepted may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A connection.
pub enum Table {
    Postgres(Box<PgConnection>),
    Embedded(Box<SqliteConnection>),
}

impl Table {
    /// The table in an embedded store's directory.
    pub async fn embedded(directory: &Path) -> Outcome<Self> {
        let path = directory.join("headcount.db");
        let options = SqliteConnectOptions::new().filename(path).busy_timeout(Duration::from_secs(30));
        Ok(Self::Embedded(Box::new(SqliteConnection::connect_with(&options).await?)))
    }

    /// One number.
    pub async fn count(&mut self, question: &str) -> Outcome<u64> {
        let question = AssertSqlSafe(question.to_owned());
        let found: i64 = match self {
            Self::Postgres(connection) => sqlx::query_scalar(question).fetch_one(&mut **connection).await?,
            Self::Embedded(connection) => sqlx::query_scalar(question).fetch_one(&mut **connection).await?,
        };
        Ok(found.try_into()?)
    }

    /// Changes something.
    pub async fn execute(&mut self, statement: &str) -> Outcome<()> {
        let statement = sqlx::raw_sql(AssertSqlSafe(statement.to_owned()));
        match self {
            Self::Postgres(connection) => {
                statement.execute(&mut **connection).await?;
            }
            Self::Embedded(connection) => {
                statement.execute(&mut **connection).await?;
            }
        }
        Ok(())
    }

    /// Waits until so many webhooks took effect.
    pub async fn until_applied(&mut self, webhooks: u64) -> Outcome<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let applied = self.count("SELECT count(*) FROM inbox WHERE event_type LIKE 'user.%'").await?;
            if applied >= webhooks {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!("{applied} of {webhooks} webhooks were applied in {PATIENCE:?}").into());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Milliseconds from received to applied, below which this part of the webhooks stays.
    pub async fn latency(&mut self, part: f64) -> Outcome<f64> {
        let times = match self {
            Self::Postgres(_) => "(extract(epoch FROM processed_at - received_at) * 1000)::bigint",
            Self::Embedded(_) => {
                "CAST((unixepoch(processed_at, 'subsec') - unixepoch(received_at, 'subsec')) * 1000 AS INTEGER)"
            }
        };
        let webhooks = self.count("SELECT count(*) FROM inbox WHERE event_type LIKE 'user.%'").await?;
        let place = (webhooks as f64 * part) as u64;
        let question = format!(
            "SELECT {times} AS took FROM inbox WHERE event_type LIKE 'user.%' ORDER BY took LIMIT 1 OFFSET {place}"
        );
        Ok(self.count(&question).await? as f64)
    }
}
