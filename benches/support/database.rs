//! Owns the stores' side: a database of its own for each scenario, or an embedded store's directory, and what the inbox
//! tells. Rates come from the inbox's own times, so that headcount and the bare loop are read by one rule.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection, sqlite::SqliteConnectOptions};

use super::{Outcome, process::Commits};

/// How long a backlog may take.
const PATIENCE: Duration = Duration::from_secs(900);

/// An inbox to read from.
pub enum Inbox {
    /// Of a PostgreSQL store.
    Postgres(Box<PgConnection>),
    /// Of an embedded store.
    Embedded(Box<SqliteConnection>),
}

impl Inbox {
    /// How many messages are applied.
    pub async fn count(&mut self) -> Outcome<u64> {
        let statement = "SELECT count(*) FROM inbox";
        let found: i64 = match self {
            Self::Postgres(connection) => sqlx::query_scalar(statement).fetch_one(&mut **connection).await?,
            Self::Embedded(connection) => sqlx::query_scalar(statement).fetch_one(&mut **connection).await?,
        };
        Ok(found.try_into()?)
    }

    /// Waits until `count` messages are applied.
    pub async fn until(&mut self, count: u64) -> Outcome<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let asked = Instant::now();
            let found = self.count().await?;
            if found >= count {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!("{found} of {count} messages were applied in {PATIENCE:?}").into());
            }
            // Looking must not cost what is looked at.
            tokio::time::sleep((asked.elapsed() * 100).max(Duration::from_millis(100))).await;
        }
    }

    /// How many were applied per second, from the first batch to the last.
    pub async fn rate(&mut self) -> Outcome<f64> {
        let times = self
            .numbers(
                "SELECT extract(epoch FROM processed_at)::float8 FROM inbox",
                "SELECT unixepoch(processed_at, 'subsec') FROM inbox",
            )
            .await?;
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
        Ok(parts(latencies))
    }

    /// Milliseconds from received to written, a commit earlier than the above, by the inbox's own times.
    pub async fn lag(&mut self) -> Outcome<[f64; 3]> {
        let lags = self
            .numbers(
                "SELECT extract(epoch FROM processed_at - received_at)::float8 * 1000 FROM inbox",
                "SELECT (unixepoch(processed_at, 'subsec') - unixepoch(received_at, 'subsec')) * 1000.0 FROM inbox",
            )
            .await?;
        Ok(parts(lags))
    }

    async fn numbers(&mut self, postgres: &'static str, embedded: &'static str) -> Outcome<Vec<f64>> {
        Ok(match self {
            Self::Postgres(connection) => sqlx::query_scalar(postgres).fetch_all(&mut **connection).await?,
            Self::Embedded(connection) => sqlx::query_scalar(embedded).fetch_all(&mut **connection).await?,
        })
    }
}

/// The median, 99 % and 99.9 %.
fn parts(mut all: Vec<f64>) -> [f64; 3] {
    all.sort_unstable_by(f64::total_cmp);
    let at = |part: usize| all.get(all.len() * part / 1000).copied().unwrap_or_default();
    [at(500), at(990), at(999)]
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

    /// Makes it refuse one message, by a trigger that it has in any case.
    pub async fn refuse(&self, message_id: Option<&str>) -> Outcome<()> {
        let message_id = message_id.unwrap_or("none");
        self.execute(&format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF NEW.version_message_id = '{message_id}' THEN RAISE EXCEPTION 'refused' USING ERRCODE = '40001'; END IF; \
             RETURN NEW; END $$"
        ))
        .await?;
        self.execute(
            "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        .await
    }

    /// Fills the migrated `users` with those whom webhooks are about, as they were before.
    pub async fn fill(&self, users: u64) -> Outcome<()> {
        self.execute(&format!(
            "INSERT INTO users (id, clerk_id, email, clerk_email, email_key, email_verified, version, version_sent, \
             version_kind, version_message_id, first_name, last_name, image_url, public_metadata, private_metadata, \
             unsafe_metadata, banned, locked, last_sign_in_at, clerk_created_at, clerk_updated_at, credits_balance) \
             SELECT gen_random_uuid(), 'user_' || place, email, email, email, true, 1700000000000, 1700000000000, 1, \
             'msg_2filled' || place, 'Ada', 'Lindqvist', 'https://img.example.com/' || repeat('x', 120), \
             '{{\"onboarded\": true, \"roles\": [\"member\"]}}', '{{\"referrer\": \"blog\", \"risk_score\": 7}}', \
             '{{\"newsletter\": true, \"theme\": \"dark\"}}', false, false, now(), now(), now(), 10000 \
             FROM generate_series(0, {users} - 1) AS n, LATERAL (SELECT 'b' || lpad(n::text, 7, '0') AS place) AS places, \
             LATERAL (SELECT place || '@example.com' AS email) AS emails"
        ))
        .await?;
        self.execute("VACUUM ANALYZE users").await?;
        self.execute("CHECKPOINT").await
    }

    /// Runs a statement.
    pub async fn execute(&self, statement: &str) -> Outcome<()> {
        let mut connection = self.connect().await?;
        sqlx::query(AssertSqlSafe(statement.to_owned())).execute(&mut connection).await?;
        Ok(connection.close().await?)
    }

    /// Drops it.
    pub async fn remove(self) -> Outcome<()> {
        server(&format!("DROP DATABASE {} WITH (FORCE)", self.name)).await
    }
}

/// What the server is, and the settings that a large table depends on.
pub async fn about_server() -> Outcome<String> {
    let mut connection = PgConnection::connect(&std::env::var("TEST_DATABASE_URL")?).await?;
    let text = sqlx::query_scalar(
        "SELECT 'PostgreSQL ' || current_setting('server_version') || ' with ' || string_agg(name || ' ' || \
         current_setting(name), ', ' ORDER BY name DESC) FROM pg_settings WHERE name IN ('shared_buffers', 'max_wal_size')",
    )
    .fetch_one(&mut connection)
    .await?;
    connection.close().await?;
    Ok(text)
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
