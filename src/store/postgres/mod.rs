//! Owns the PostgreSQL store: its connections, its schema, and trying a batch again after a race.
//! Never touches the rules, which are `roster`'s, nor rows: `apply` tries a batch, `load` and `save` are its two ends,
//! `read` is for people; `letters` answers about dead letters, `capture` takes them in, `replay` is what people do to
//! them, `settle` what their messages' effect does, `prune` what time does, `erase` what a changed policy does.

mod apply;
mod capture;
mod erase;
mod letters;
mod load;
mod probe;
mod prune;
mod read;
mod replay;
mod save;
mod settle;
mod strangers;

use std::{collections::BTreeSet, fmt, str::FromStr, sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{
    AssertSqlSafe, ConnectOptions, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use super::{
    Incoming, Store, StoreConfig, StoreError, Stranger, Totals, User, UserHistory, UserQuery, errors,
    migrations, watchdog::Backend,
};
use crate::{
    config::Secret,
    roster::{Outcome, Policy},
};

/// How long a caller waits for a connection.
const ACQUIRE: Duration = Duration::from_secs(4);

/// What foreign tables are answered with.
const HINT: &str = "set HEADCOUNT_SCHEMA to a schema of its own, such as headcount";

/// Users in a PostgreSQL database.
pub struct PostgresStore {
    pool: PgPool,
    schema: String,
    policy: Policy,
    default_credits: i64,
}

impl fmt::Debug for PostgresStore {
    // The pool's own would show the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = self.pool.connect_options();
        write!(f, "PostgreSQL at {}:{}, schema {}", options.get_host(), options.get_port(), self.schema)
    }
}

impl PostgresStore {
    /// Prepares connections to the database; the first is made when it is needed.
    ///
    /// # Errors
    /// [`super::Class::Unusable`] where `url` is none.
    pub fn open(url: &Secret, schema: &str, config: &StoreConfig) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(url.expose()).map_err(|error| {
            errors::unusable(
                format!("DATABASE_URL cannot be used: {error}"),
                "write postgres://user:password@host:5432/database, with special characters as %XX",
            )
        })?;
        let options = options
            .application_name("headcount")
            .options([
                // Nothing but our schema: a table of the same name elsewhere is never ours.
                ("search_path", quoted(schema).as_str()),
                ("statement_timeout", "30s"),
                // Well within the worker's watchdog: a row that an application keeps locked is no frozen database.
                ("lock_timeout", "3s"),
                // A transaction whose client fell silent keeps its locks for so long; one of ours is never idle.
                ("idle_in_transaction_session_timeout", "10s"),
                // And its session goes after a minute.
                ("tcp_keepalives_idle", "30"),
                ("tcp_keepalives_interval", "10"),
                ("tcp_keepalives_count", "3"),
            ])
            .disable_statement_logging();
        Ok(Self {
            pool: pool(options, config.connections.max(2)),
            schema: schema.to_owned(),
            policy: config.policy,
            default_credits: config.default_credits,
        })
    }

    fn place(&self) -> String {
        format!("schema {} of the database", self.schema)
    }
}

impl Backend for PostgresStore {
    const ANSWER: Duration = Duration::from_secs(10);

    fn renewed(&self) -> Option<Self> {
        Some(Self {
            pool: pool(
                self.pool.connect_options().as_ref().clone(),
                self.pool.options().get_max_connections(),
            ),
            schema: self.schema.clone(),
            policy: self.policy,
            default_credits: self.default_credits,
        })
    }

    fn connections(&self) -> usize {
        self.pool.options().get_max_connections() as usize
    }

    fn end(&self) -> impl Future<Output = ()> + Send {
        self.pool.close()
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn migrate(&self) -> Result<Vec<String>, StoreError> {
        let mut tx = self.pool.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
        sqlx::query(
            "SELECT set_config('statement_timeout', '0', true), set_config('lock_timeout', '60s', true)",
        )
        .execute(&mut *tx)
        .await?;
        // One process at a time per schema, until the transaction ends.
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(apply::lock_id(&self.schema, "migrate", ""))
            .execute(&mut *tx)
            .await?;
        // Asked first, because CREATE SCHEMA IF NOT EXISTS wants a right on the database even where it exists.
        let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)")
            .bind(&self.schema)
            .fetch_one(&mut *tx)
            .await?;
        if !exists {
            let statement = format!("CREATE SCHEMA {}", quoted(&self.schema));
            sqlx::query(AssertSqlSafe(statement)).execute(&mut *tx).await?;
        }
        let found = Found::look(&mut tx).await?;
        let applied = found.applied.unwrap_or_default();
        migrations::refuse_foreign(found.foreign.as_deref(), &self.place(), HINT)?;
        let pending = migrations::pending(migrations::POSTGRES, &applied);
        if !pending.is_empty() {
            migrations::migrator(migrations::POSTGRES).run_direct(None, &mut *tx, false).await?;
        }
        tx.commit().await?;
        Ok(pending)
    }

    async fn check_schema(&self) -> Result<(), StoreError> {
        let mut connection = self.pool.acquire().await?;
        let found = Found::look(&mut connection).await?;
        let (applied, foreign) = (found.applied.as_ref(), found.foreign.as_deref());
        migrations::check(migrations::POSTGRES, applied, foreign, &self.place(), HINT)
    }

    async fn apply(&self, batch: Arc<[Incoming]>) -> Result<Vec<Outcome>, StoreError> {
        super::retry::races(&batch, &mut apply::Attempt::new(self)).await
    }

    async fn ready(&self) -> Result<(), StoreError> {
        probe::write(self).await
    }

    async fn rehearse(&self, batch: Arc<[Incoming]>) -> Result<(), StoreError> {
        apply::rehearse(self, &batch).await
    }

    async fn strangers(&self) -> Result<Vec<Stranger>, StoreError> {
        strangers::ask(self).await
    }

    async fn users(&self, query: &UserQuery) -> Result<Vec<User>, StoreError> {
        read::users(&self.pool, query).await
    }

    async fn user(&self, reference: &str) -> Result<Option<UserHistory>, StoreError> {
        read::user(&self.pool, reference).await
    }

    async fn totals(&self) -> Result<Totals, StoreError> {
        read::totals(&self.pool).await
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}

/// What stands in our schema.
struct Found {
    /// Migrations that were applied; `None` where there is no record.
    applied: Option<BTreeSet<i64>>,
    /// A table with a name that is still to be ours.
    foreign: Option<String>,
}

impl Found {
    async fn look(connection: &mut PgConnection) -> Result<Self, StoreError> {
        // Before the record, so that tables of a migration that commits in between are not taken for somebody else's.
        // The search path holds our schema alone, so an unqualified name is a name in it.
        let tables: Vec<String> = sqlx::query_scalar(
            "SELECT name FROM unnest($1::text[]) AS name WHERE to_regclass(name) IS NOT NULL",
        )
        .bind(migrations::to_come(None))
        .fetch_all(&mut *connection)
        .await?;
        let recorded: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
            .bind(migrations::TABLE)
            .fetch_one(&mut *connection)
            .await?;
        let applied = if recorded {
            let versions = sqlx::query_scalar("SELECT version FROM headcount_migrations WHERE success");
            Some(versions.fetch_all(connection).await?.into_iter().collect())
        } else {
            None
        };
        let to_come = migrations::to_come(applied.as_ref());
        let foreign = tables.into_iter().find(|table| to_come.contains(&table.as_str()));
        Ok(Self { applied, foreign })
    }
}

fn pool(options: PgConnectOptions, connections: u32) -> PgPool {
    PgPoolOptions::new().max_connections(connections).acquire_timeout(ACQUIRE).connect_lazy_with(options)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
