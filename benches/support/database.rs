//! Owns the stores' side: a database of its own for each scenario, or an embedded store's directory, and what the inbox
//! tells. Rates and latencies come from the inbox's own times, so that headcount and the bare loop are read by one rule.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection, sqlite::SqliteConnectOptions};

use super::Outcome;

/// How long a backlog may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// What an inbox tells.
#[derive(Clone, Copy, Debug)]
pub struct Applied {
    /// Per second, from the first batch to the last.
    pub rate: f64,
    /// Milliseconds from received to the inbox's statement (its COMMIT follows): the median and 99 %.
    pub latency: [f64; 2],
}

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

    /// Reads what was applied.
    pub async fn applied(&mut self) -> Outcome<Applied> {
        let rows: Vec<(f64, f64)> = match self {
            Self::Postgres(connection) => {
                sqlx::query_as(
                    "SELECT extract(epoch FROM processed_at)::float8 * 1000, \
                     extract(epoch FROM processed_at - received_at)::float8 * 1000 FROM inbox",
                )
                .fetch_all(&mut **connection)
                .await?
            }
            Self::Embedded(connection) => {
                sqlx::query_as(
                    "SELECT unixepoch(processed_at, 'subsec') * 1000.0, \
                     (unixepoch(processed_at, 'subsec') - unixepoch(received_at, 'subsec')) * 1000.0 FROM inbox",
                )
                .fetch_all(&mut **connection)
                .await?
            }
        };
        let first = rows.iter().map(|row| row.0).fold(f64::INFINITY, f64::min);
        let last = rows.iter().map(|row| row.0).fold(0.0, f64::max);
        let behind_first = rows.iter().filter(|row| row.0 > first).count();
        let mut latencies: Vec<f64> = rows.iter().map(|row| row.1).collect();
        latencies.sort_unstable_by(f64::total_cmp);
        let at = |part: usize| latencies.get(latencies.len() * part / 100).copied().unwrap_or_default();
        Ok(Applied {
            rate: behind_first as f64 / ((last - first) / 1000.0).max(0.001),
            latency: [at(50), at(99)],
        })
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
