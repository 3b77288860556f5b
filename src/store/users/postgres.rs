//! Owns the statements of the projection on PostgreSQL: each over one array per column.

use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, Executor as _, Postgres, postgres::PgArguments, query::Query};
use uuid::Uuid;

use super::{
    Statements,
    columns::{self, Column, PROFILE, STATE, STORED, Value, list, names},
};
use crate::{
    rules::users::{FormerId, Row},
    store::{
        StoreError,
        postgres::connections::Tx,
        times::{time, time_or_null},
    },
};

const CLAIMED_KEYS: &str = "SELECT clerk_id, email_key FROM users WHERE clerk_id = ANY($1)";

// Locks the rows in the order of their ids, after the advisory locks and in a statement of its own: a statement sees only
// what was committed before it began. An application's foreign keys do not wait for this kind of lock, nor does it wait for
// them: a row's key changes only when it is relinked.
const LOADING: &str =
    "FROM users WHERE clerk_id = ANY($1) OR email_key = ANY($2) ORDER BY id FOR NO KEY UPDATE";

static LOAD: LazyLock<String> = LazyLock::new(|| format!("SELECT {STORED} {LOADING}"));

static LOAD_WITH_PROFILES: LazyLock<String> = LazyLock::new(|| {
    let profile = list(PROFILE, |column| match column.value {
        Value::Json(_) => format!("{name}::text AS {name}", name = column.name),
        _ => column.name.to_owned(),
    });
    format!("SELECT {STORED}, {profile} {LOADING}")
});

const HIDE_EMAIL: &str = "UPDATE users SET email = NULL WHERE id = ANY($1)";

// The only statement that sets a column which a foreign key could refer to. Where the application has a BEFORE UPDATE
// trigger on the table, PostgreSQL takes a lock that foreign keys wait for as soon as such a column is named.
const RELINK: &str = "UPDATE users AS u SET clerk_id = c.clerk_id \
     FROM unnest($1::uuid[], $2::text[]) AS c (id, clerk_id) WHERE u.id = c.id AND u.clerk_id <> c.clerk_id";

static UPDATE: LazyLock<String> = LazyLock::new(|| update(STATE.iter()));

static UPDATE_WITH_PROFILES: LazyLock<String> = LazyLock::new(|| update(whole()));

fn update(written: impl Iterator<Item = &'static Column> + Clone) -> String {
    let set = list(written.clone().filter(|column| !["id", "clerk_id"].contains(&column.name)), |column| {
        format!("{} = {}", column.name, typed(column, "c."))
    });
    // The Clerk id too: where a trigger of the application's has skipped the relink, nothing is written, and that is noticed.
    format!(
        "UPDATE users AS u SET {set}, updated_at = now() FROM unnest({}) AS c ({}) \
         WHERE u.id = c.id AND u.clerk_id = c.clerk_id",
        arrays(written.clone()),
        names(written)
    )
}

static INSERT: LazyLock<String> = LazyLock::new(|| {
    let (names, count) = (names(whole()), whole().count());
    let typed = list(whole(), |column| typed(column, ""));
    format!(
        "INSERT INTO users ({names}, credits_balance) SELECT {typed}, ${} \
         FROM unnest({}) WITH ORDINALITY AS c ({names}, n) ORDER BY n",
        count + 1,
        arrays(whole())
    )
});

const FORGET: &str = "DELETE FROM former_clerk_ids WHERE clerk_id = ANY($1)";

const REMEMBER: &str = "INSERT INTO former_clerk_ids (clerk_id, user_id, deleted_at) \
     SELECT * FROM unnest($1::text[], $2::uuid[], $3::timestamptz[]) ON CONFLICT DO NOTHING";

fn whole() -> impl Iterator<Item = &'static Column> + Clone {
    STATE.iter().chain(PROFILE)
}

/// JSON travels as text.
fn typed(column: &Column, table: &str) -> String {
    match column.value {
        Value::Json(_) => format!("{table}{}::jsonb", column.name),
        _ => format!("{table}{}", column.name),
    }
}

/// `$1::uuid[], $2::text[], …`: one array per column.
fn arrays<'c>(columns: impl Iterator<Item = &'c Column>) -> String {
    let mut number = 0;
    list(columns, |column| {
        number += 1;
        let kind = match column.value {
            Value::Uuid(_) => "uuid",
            Value::Text(_) | Value::Json(_) => "text",
            Value::Flag(_) => "boolean",
            Value::Number(_) => "bigint",
            Value::Small(_) => "smallint",
            Value::Time(_) => "timestamptz",
        };
        format!("${number}::{kind}[]")
    })
}

type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// Binds one array per column, in the order of [`arrays`].
fn bind<'q>(
    statement: Statement<'q>,
    columns: impl Iterator<Item = &'static Column>,
    rows: &[&'q Row],
) -> Result<Statement<'q>, StoreError> {
    let mut statement = statement;
    for column in columns {
        statement = match column.value {
            Value::Uuid(value) => statement.bind(rows.iter().map(|row| value(row)).collect::<Vec<_>>()),
            Value::Text(value) | Value::Json(value) => {
                statement.bind(rows.iter().map(|row| value(row)).collect::<Vec<_>>())
            }
            Value::Flag(value) => statement.bind(rows.iter().map(|row| value(row)).collect::<Vec<_>>()),
            Value::Number(value) => statement.bind(rows.iter().map(|row| value(row)).collect::<Vec<_>>()),
            Value::Small(value) => statement.bind(rows.iter().map(|row| value(row)).collect::<Vec<_>>()),
            Value::Time(value) => {
                let times = rows.iter().map(|row| time_or_null(value(row)));
                statement.bind(times.collect::<Result<Vec<_>, _>>()?)
            }
        };
    }
    Ok(statement)
}

fn ids(rows: &[&Row]) -> Vec<Uuid> {
    rows.iter().map(|row| row.id).collect()
}

impl Statements for Tx {
    async fn claimed_keys(
        &mut self,
        clerk_ids: &[&str],
    ) -> Result<Vec<(String, Option<String>)>, StoreError> {
        Ok(sqlx::query_as(CLAIMED_KEYS).bind(clerk_ids).fetch_all(self).await?)
    }

    async fn load(
        &mut self,
        clerk_ids: &[&str],
        keys: &[&str],
        profiles: bool,
    ) -> Result<Vec<Row>, StoreError> {
        self.in_time()?;
        let load = if profiles { &LOAD_WITH_PROFILES } else { &LOAD };
        let rows = sqlx::query(load.as_str()).bind(clerk_ids).bind(keys).fetch_all(self).await?;
        rows.iter().map(|row| Ok(columns::row(row, profiles)?)).collect()
    }

    async fn hide_email(&mut self, rows: &[&Row]) -> Result<(), StoreError> {
        self.in_time()?;
        sqlx::query(HIDE_EMAIL).bind(ids(rows)).execute(self).await?;
        Ok(())
    }

    async fn relink(&mut self, rows: &[&Row]) -> Result<(), StoreError> {
        self.in_time()?;
        let clerk_ids: Vec<&str> = rows.iter().map(|row| row.clerk_id.as_str()).collect();
        sqlx::query(RELINK).bind(ids(rows)).bind(clerk_ids).execute(self).await?;
        Ok(())
    }

    async fn update(&mut self, rows: &[&Row], profiles: bool) -> Result<u64, StoreError> {
        self.in_time()?;
        let update = match profiles {
            true => bind(sqlx::query(UPDATE_WITH_PROFILES.as_str()), whole(), rows)?,
            false => bind(sqlx::query(UPDATE.as_str()), STATE.iter(), rows)?,
        };
        Ok(update.execute(self).await?.rows_affected())
    }

    async fn insert(&mut self, rows: &[&Row], default_credits: i64) -> Result<u64, StoreError> {
        self.in_time()?;
        let insert = bind(sqlx::query(INSERT.as_str()), whole(), rows)?.bind(default_credits);
        Ok(insert.execute(self).await?.rows_affected())
    }

    async fn remember(&mut self, former: &[&FormerId]) -> Result<(), StoreError> {
        self.in_time()?;
        let clerk_ids: Vec<&str> = former.iter().map(|former| former.clerk_id.as_str()).collect();
        let users: Vec<Option<Uuid>> = former.iter().map(|former| former.user_id).collect();
        let times = former.iter().map(|former| time(former.deleted_at)).collect::<Result<Vec<_>, _>>()?;
        sqlx::query(REMEMBER).bind(clerk_ids).bind(users).bind(times).execute(self).await?;
        Ok(())
    }

    async fn forget(&mut self, clerk_ids: &[&str]) -> Result<(), StoreError> {
        self.in_time()?;
        sqlx::query(FORGET).bind(clerk_ids).execute(self).await?;
        Ok(())
    }

    /// Passes over rows that somebody else has locked.
    async fn erase_kept(&mut self, limit: u32) -> Result<Vec<String>, StoreError> {
        let order = if limit == 1 { "random()" } else { "id" };
        let erase = format!(
            "WITH picked AS MATERIALIZED (SELECT id FROM users WHERE deleted_at IS NOT NULL AND NOT erased \
             ORDER BY {order} LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED) \
             UPDATE users AS u SET {}, updated_at = now() FROM picked WHERE u.id = picked.id RETURNING u.clerk_id",
            columns::erased()
        );
        let erase = sqlx::query_scalar(AssertSqlSafe(erase)).bind(i64::from(limit));
        Ok(erase.fetch_all(self).await?)
    }

    /// Asks for the plans, which need what running the statements needs, and fire no trigger of the application's.
    async fn check_user_statements(&mut self, default_credits: i64) -> Result<(), StoreError> {
        let plan = |statement: &str| sqlx::query(AssertSqlSafe(format!("EXPLAIN {statement}")));
        let (texts, uuids, times) = (Vec::<&str>::new(), Vec::<Uuid>::new(), Vec::<DateTime<Utc>>::new());
        let plans = [
            plan(CLAIMED_KEYS).bind(&texts),
            plan(&LOAD_WITH_PROFILES).bind(&texts).bind(&texts),
            plan(HIDE_EMAIL).bind(&uuids),
            plan(RELINK).bind(&uuids).bind(&texts),
            bind(plan(&UPDATE), STATE.iter(), &[])?,
            bind(plan(&UPDATE_WITH_PROFILES), whole(), &[])?,
            bind(plan(&INSERT), whole(), &[])?.bind(default_credits),
            // Not FORGET: reviving a user is rare, and a worker without that right can do all else.
            plan(REMEMBER).bind(&texts).bind(&uuids).bind(&times),
        ];
        for plan in plans {
            self.execute(plan).await?;
        }
        Ok(())
    }
}
