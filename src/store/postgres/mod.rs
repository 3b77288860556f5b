//! Owns the PostgreSQL store: its schema, and which room answers which call. `connections` begins transactions, `transaction` is
//! what a batch's transaction does, `read` is for people; `capture` takes dead letters in, `letters` is what people ask about
//! them and do to them, `housekeeping` what time does, `sync` what the statements of sync need.

mod capture;
pub(super) mod connections;
mod housekeeping;
mod letters;
mod read;
mod strangers;
mod sync;
mod transaction;

use std::{collections::BTreeSet, fmt, str::FromStr, sync::Arc, time::Duration};

use async_trait::async_trait;
use connections::{Connections, PEOPLE, Tx, quoted};
use sqlx::{AssertSqlSafe, Executor as _, migrate::MigrateError, postgres::PgConnectOptions};

use super::{
    Batches, Diagnosis, Incoming, PastEvent, Schema, Store, StoreConfig, StoreError, Stranger, Terms, Totals,
    User, UserHistory, UserQuery, Users, errors, migrations, watchdog::Renewable,
};
use crate::{address, datafile::Examined, rules::Outcome, secret::Secret};

/// What foreign tables are answered with.
const HINT: &str = "set HEADCOUNT_SCHEMA to a schema of its own, such as headcount";

/// Users in a PostgreSQL database.
pub struct PostgresStore {
    connections: Connections,
    terms: Terms,
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.connections.fmt(f)
    }
}

impl PostgresStore {
    /// Prepares connections to the database; the first is made when it is needed.
    ///
    /// # Errors
    /// [`super::Class::Unusable`] where `url` is none.
    pub fn open(url: &Secret, schema: &str, config: &StoreConfig) -> Result<Self, StoreError> {
        let address = address::postgres(url.expose())
            .and_then(|address| address.agrees(schema).map(|()| address))
            .map_err(|wrong| errors::unusable(format!("DATABASE_URL {}", wrong.problem), wrong.hint))?;
        let options = PgConnectOptions::from_str(&address.spelled_out()).map_err(|_| {
            errors::unusable("DATABASE_URL cannot be used", "see README.md, addresses, for what it may hold")
        })?;
        Ok(Self {
            connections: Connections::new(options, schema, config.connections.max(2)),
            terms: Terms::of(config),
        })
    }

    fn place(&self) -> String {
        format!("schema {} of the database", self.connections.schema())
    }
}

impl Renewable for PostgresStore {
    const BREAK_OFF: Duration = Duration::from_secs(10);

    fn renewed(&self) -> Option<Self> {
        let connections = self.connections.renewed();
        Some(Self { connections, terms: self.terms.clone() })
    }

    fn connections(&self) -> usize {
        self.connections.most() as usize
    }

    fn end(&self) -> impl Future<Output = ()> + Send {
        self.connections.close()
    }
}

#[async_trait]
impl Batches for PostgresStore {
    async fn apply(&self, batch: Arc<[Incoming]>) -> Result<Vec<Outcome>, StoreError> {
        super::unit::apply(self, &batch).await
    }

    async fn ready(&self) -> Result<(), StoreError> {
        super::unit::ready(self).await
    }
}

#[async_trait]
impl Users for PostgresStore {
    async fn users(&self, query: &UserQuery) -> Result<Vec<User>, StoreError> {
        let mut tx = self.connections.begin(PEOPLE).await?;
        let users = read::users(&mut tx, query).await?;
        tx.commit().await?;
        Ok(users)
    }

    async fn user(&self, reference: &str) -> Result<Option<UserHistory>, StoreError> {
        let mut tx = self.connections.begin(PEOPLE).await?;
        let user = read::user(&mut tx, reference).await?;
        tx.commit().await?;
        Ok(user)
    }

    async fn message(&self, message_id: &str) -> Result<Option<PastEvent>, StoreError> {
        let mut tx = self.connections.begin(PEOPLE).await?;
        let event = read::message(&mut tx, message_id).await?;
        tx.commit().await?;
        Ok(event)
    }

    async fn totals(&self) -> Result<Totals, StoreError> {
        let mut tx = self.connections.begin(PEOPLE).await?;
        let totals = read::totals(&mut tx).await?;
        tx.commit().await?;
        Ok(totals)
    }
}

#[async_trait]
impl Schema for PostgresStore {
    async fn migrate(&self) -> Result<Vec<String>, StoreError> {
        self.connections.want_two(transaction::lock_id("", "second session", "")).await?;
        let mut tx =
            self.connections.begin("SET LOCAL lock_timeout = '60s'; SET LOCAL statement_timeout = 0").await?;
        let schema = self.connections.schema();
        // One process at a time per schema, until the transaction ends.
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(transaction::lock_id(schema, "migrate", ""))
            .execute(&mut tx)
            .await?;
        // Asked first, because CREATE SCHEMA IF NOT EXISTS wants a right on the database even where it exists.
        let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)")
            .bind(schema)
            .fetch_one(&mut tx)
            .await?;
        if !exists {
            let statement = format!("CREATE SCHEMA {}", quoted(schema));
            tx.execute(AssertSqlSafe(statement))
                .await
                .map_err(|error| errors::of_schema(error.into(), schema))?;
        }
        let found = Found::look(&mut tx, schema).await?;
        let applied = found.applied.unwrap_or_default();
        migrations::refuse_foreign(found.foreign.as_deref(), &self.place(), HINT)?;
        let pending = migrations::pending(migrations::POSTGRES, &applied);
        if !pending.is_empty() {
            migrate(&mut tx).await?;
        }
        tx.commit().await?;
        Ok(pending)
    }

    async fn check_schema(&self) -> Result<(), StoreError> {
        let mut tx = self.connections.begin(PEOPLE).await?;
        let found = Found::look(&mut tx, self.connections.schema()).await?;
        tx.commit().await?;
        let (applied, foreign) = (found.applied.as_ref(), found.foreign.as_deref());
        migrations::check(migrations::POSTGRES, applied, foreign, &self.place(), HINT)
    }

    async fn check_for_work(&self) -> Result<(), StoreError> {
        self.connections.want_two(transaction::lock_id("", "second session", "")).await?;
        self.check_schema().await
    }
}

#[async_trait]
impl Diagnosis for PostgresStore {
    async fn rehearse(&self, batch: Arc<[Incoming]>) -> Result<(), StoreError> {
        super::unit::rehearse(self, &batch).await
    }

    async fn strangers(&self) -> Result<Vec<Stranger>, StoreError> {
        strangers::ask(self).await
    }

    async fn examine(&self, _: Duration) -> Result<Option<Examined>, StoreError> {
        Ok(None)
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn close(&self) {
        self.connections.close().await;
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
    async fn look(tx: &mut Tx, schema: &str) -> Result<Self, StoreError> {
        // Before the record, so that tables of a migration that commits in between are not taken for somebody else's.
        let tables: Vec<String> = sqlx::query_scalar(
            "SELECT name FROM unnest($1::text[]) AS name WHERE to_regclass(format('%I.%I', $2::text, name)) IS NOT NULL",
        )
        .bind(migrations::to_come(None))
        .bind(schema)
        .fetch_all(&mut *tx)
        .await?;
        let recorded: bool =
            sqlx::query_scalar("SELECT to_regclass(format('%I.%I', $1::text, $2::text)) IS NOT NULL")
                .bind(schema)
                .bind(migrations::TABLE)
                .fetch_one(&mut *tx)
                .await?;
        let applied = if recorded {
            let versions = sqlx::query_scalar("SELECT version FROM headcount_migrations WHERE success");
            Some(versions.fetch_all(tx).await?.into_iter().collect())
        } else {
            None
        };
        let to_come = migrations::to_come(applied.as_ref());
        let foreign = tables.into_iter().find(|table| to_come.contains(&table.as_str()));
        Ok(Self { applied, foreign })
    }
}

/// Applies what is missing, and keeps the record as the driver's own migrator does, which would leave prepared statements
/// behind in a pooler's sessions.
async fn migrate(tx: &mut Tx) -> Result<(), StoreError> {
    tx.execute(
        "CREATE TABLE IF NOT EXISTS headcount_migrations (version bigint PRIMARY KEY, description text NOT NULL, \
         installed_on timestamptz NOT NULL DEFAULT now(), success boolean NOT NULL, checksum bytea NOT NULL, \
         execution_time bigint NOT NULL)",
    )
    .await?;
    let known: Vec<(i64, bool, Vec<u8>)> =
        sqlx::query_as("SELECT version, success, checksum FROM headcount_migrations ORDER BY version")
            .fetch_all(&mut *tx)
            .await?;
    if let Some((version, ..)) = known.iter().find(|(_, success, _)| !success) {
        return Err(MigrateError::Dirty(*version).into());
    }
    for migration in migrations::migrator(migrations::POSTGRES).iter() {
        match known.iter().find(|(version, ..)| *version == migration.version) {
            Some((_, _, checksum)) if *checksum == *migration.checksum => {}
            Some(_) => return Err(MigrateError::VersionMismatch(migration.version).into()),
            None => {
                tx.execute(migration.sql.clone()).await?;
                sqlx::query(
                    "INSERT INTO headcount_migrations (version, description, success, checksum, execution_time) \
                     VALUES ($1, $2, true, $3, -1)",
                )
                .bind(migration.version)
                .bind(&*migration.description)
                .bind(&*migration.checksum)
                .execute(&mut *tx)
                .await?;
            }
        }
    }
    Ok(())
}
