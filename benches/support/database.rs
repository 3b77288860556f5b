//! Owns the stores' side: a database of its own for each scenario, or an embedded store's directory, and what the inbox
//! tells. Rates come from the inbox's own times, so that headcount and the bare loop are read by one rule.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection, sqlite::SqliteConnectOptions};

use super::{Outcome, process::Commits};

/// How long a backlog may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// An inbox to read from.
pub enum Inbox {
    /// Of a PostgreSQL store.
    Postgres(Box<PgConnection>),
    /// Of an embedded store.
    Embedded(Box<SqliteConnection>),
}

impl Inbox {
    /// Waits until `count` messages are applied.
    pub async fn until(&mut self, count: u64) -> Outcome<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let statement = "SELECT count(*) FROM inbox";
            let found: i64 = match self {
                Self::Postgres(connection) => {
                    sqlx::query_scalar(statement).fetch_one(&mut **connection).await?
                }
                Self::Embedded(connection) => {
                    sqlx::query_scalar(statement).fetch_one(&mut **connection).await?
                }
            };
            if found >= i64::try_from(count)? {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!("{found} of {count} messages were applied in {PATIENCE:?}").into());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// How many were applied per second, from the first batch to the last.
    pub async fn rate(&mut self) -> Outcome<f64> {
        let times: Vec<f64> = match self {
            Self::Postgres(connection) => {
                sqlx::query_scalar("SELECT extract(epoch FROM processed_at)::float8 FROM inbox")
                    .fetch_all(&mut **connection)
                    .await?
            }
            Self::Embedded(connection) => {
                sqlx::query_scalar("SELECT unixepoch(processed_at, 'subsec') FROM inbox")
                    .fetch_all(&mut **connection)
                    .await?
            }
        };
        let first = times.iter().copied().fold(f64::INFINITY, f64::min);
        let last = times.iter().copied().fold(0.0, f64::max);
        let behind_first = times.iter().filter(|time| **time > first).count();
        Ok(behind_first as f64 / (last - first).max(0.001))
    }

    /// Milliseconds from received to committed: the median, 99 % and 99.9 %.
    pub async fn latency(&mut self, commits: &Commits) -> Outcome<[f64; 3]> {
        let received: Vec<(String, f64)> = match self {
            Self::Postgres(connection) => {
                let statement =
                    "SELECT message_id, extract(epoch FROM received_at)::float8 * 1000 FROM inbox";
                sqlx::query_as(statement).fetch_all(&mut **connection).await?
            }
            Self::Embedded(connection) => {
                let statement = "SELECT message_id, unixepoch(received_at, 'subsec') * 1000.0 FROM inbox";
                sqlx::query_as(statement).fetch_all(&mut **connection).await?
            }
        };
        let mut latencies = Vec::with_capacity(received.len());
        for (id, received_at) in &received {
            latencies.push(commits.get(id).ok_or("a commit that no worker told of")? - received_at);
        }
        latencies.sort_unstable_by(f64::total_cmp);
        let at = |part: usize| latencies.get(latencies.len() * part / 1000).copied().unwrap_or_default();
        Ok([at(500), at(990), at(999)])
    }
}

/// A database on the server of the run.
pub struct Database {
    /// `DATABASE_URL`
    pub url: String,
    name: String,
}

impl Database {
    /// Creates it, empty.
    pub async fn new(name: &str) -> Outcome<Self> {
        let name = format!("bench_{name}");
        server(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await?;
        server(&format!("CREATE DATABASE {name}")).await?;
        let mut url = url::Url::parse(&std::env::var("TEST_DATABASE_URL")?)?;
        url.set_path(&name);
        Ok(Self { url: url.into(), name })
    }

    /// Its inbox.
    pub async fn inbox(&self) -> Outcome<Inbox> {
        Ok(Inbox::Postgres(Box::new(self.connect().await?)))
    }

    /// A connection to it.
    pub async fn connect(&self) -> Outcome<PgConnection> {
        Ok(PgConnection::connect(&self.url).await?)
    }

    /// Drops it.
    pub async fn remove(self) -> Outcome<()> {
        server(&format!("DROP DATABASE {} WITH (FORCE)", self.name)).await
    }
}

/// The inbox in an embedded store's directory.
pub async fn embedded(directory: &Path) -> Outcome<Inbox> {
    let options = SqliteConnectOptions::new()
        .filename(directory.join("headcount.db"))
        .read_only(true)
        .busy_timeout(Duration::from_secs(5));
    Ok(Inbox::Embedded(Box::new(SqliteConnection::connect_with(&options).await?)))
}

async fn server(statement: &str) -> Outcome<()> {
    let mut connection = PgConnection::connect(&std::env::var("TEST_DATABASE_URL")?).await?;
    sqlx::query(AssertSqlSafe(statement.to_owned())).execute(&mut connection).await?;
    Ok(connection.close().await?)
}
