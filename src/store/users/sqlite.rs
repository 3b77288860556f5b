//! Owns the statements of the projection on SQLite: each over one JSON array of objects.

use std::sync::LazyLock;

use serde_json::{Map, Value as Json, json};
use sqlx::{AssertSqlSafe, types};
use uuid::Uuid;

use super::{
    Statements,
    columns::{self, Column, PROFILE, STATE, STORED, Value, list, names},
};
use crate::{
    rules::users::{FormerId, Row},
    store::{
        StoreError,
        sqlite::writing::Writing,
        times::{rfc3339, time, time_or_null},
    },
    time::Millis,
};

const CLAIMED_KEYS: &str =
    "SELECT clerk_id, email_key FROM users WHERE clerk_id IN (SELECT value FROM json_each(?1))";

const LOADING: &str = "FROM users WHERE clerk_id IN (SELECT value FROM json_each(?1)) \
     OR email_key IN (SELECT value FROM json_each(?2))";

static LOAD: LazyLock<String> = LazyLock::new(|| format!("SELECT {STORED} {LOADING}"));

static LOAD_WITH_PROFILES: LazyLock<String> =
    LazyLock::new(|| format!("SELECT {STORED}, {} {LOADING}", names(PROFILE)));

const HIDE_EMAIL: &str = "UPDATE users SET email = NULL WHERE id IN (SELECT value FROM json_each(?1))";

const RELINK: &str = "UPDATE users SET clerk_id = value->>'clerk_id' FROM json_each(?1) \
     WHERE users.id = value->>'id' AND users.clerk_id <> value->>'clerk_id'";

static UPDATE: LazyLock<String> = LazyLock::new(|| update(STATE.iter()));

static UPDATE_WITH_PROFILES: LazyLock<String> = LazyLock::new(|| update(whole()));

fn update(written: impl Iterator<Item = &'static Column> + Clone) -> String {
    let set = list(written.filter(|column| !["id", "clerk_id"].contains(&column.name)), |column| {
        format!("{} = {}", column.name, value(column))
    });
    // The Clerk id too: where a trigger of the application's has skipped the relink, nothing is written, and that is noticed.
    format!(
        "UPDATE users SET {set}, updated_at = {} FROM json_each(?1) \
         WHERE users.id = value->>'id' AND users.clerk_id = value->>'clerk_id'",
        now!()
    )
}

static INSERT: LazyLock<String> = LazyLock::new(|| {
    format!(
        "INSERT INTO users ({}, credits_balance) SELECT {}, ?2 FROM json_each(?1)",
        names(whole()),
        list(whole(), value)
    )
});

const FORGET: &str = "DELETE FROM former_clerk_ids WHERE clerk_id IN (SELECT value FROM json_each(?1))";

const REMEMBER: &str = "INSERT OR IGNORE INTO former_clerk_ids (clerk_id, user_id, deleted_at) \
     SELECT value->>'clerk_id', value->>'user_id', value->>'deleted_at' FROM json_each(?1)";

fn whole() -> impl Iterator<Item = &'static Column> + Clone {
    STATE.iter().chain(PROFILE)
}

fn value(column: &Column) -> String {
    format!("value->>'{}'", column.name)
}

/// The rows as JSON objects, a member per column.
fn objects(
    rows: &[&Row],
    columns: impl Iterator<Item = &'static Column> + Clone,
) -> Result<types::Json<Vec<Json>>, StoreError> {
    let object = |row: &&Row| {
        let member = |column: &Column| {
            let value = match column.value {
                Value::Uuid(value) => json!(value(row)),
                Value::Text(value) | Value::Json(value) => json!(value(row)),
                Value::Flag(value) => json!(value(row)),
                Value::Number(value) => json!(value(row)),
                Value::Small(value) => json!(value(row)),
                Value::Time(value) => json!(text(value(row))?),
            };
            Ok((column.name.to_owned(), value))
        };
        columns.clone().map(member).collect::<Result<Map<_, _>, StoreError>>().map(Json::Object)
    };
    rows.iter().map(object).collect::<Result<_, _>>().map(types::Json)
}

fn text(at: Option<Millis>) -> Result<Option<String>, StoreError> {
    Ok(time_or_null(at)?.map(rfc3339))
}

impl Statements for Writing {
    async fn claimed_keys(
        &mut self,
        clerk_ids: &[&str],
    ) -> Result<Vec<(String, Option<String>)>, StoreError> {
        let keys = sqlx::query_as(CLAIMED_KEYS).bind(types::Json(clerk_ids));
        Ok(keys.fetch_all(self.connection()?).await?)
    }

    async fn load(
        &mut self,
        clerk_ids: &[&str],
        keys: &[&str],
        profiles: bool,
    ) -> Result<Vec<Row>, StoreError> {
        let load = if profiles { &LOAD_WITH_PROFILES } else { &LOAD };
        let load = sqlx::query(load.as_str()).bind(types::Json(clerk_ids)).bind(types::Json(keys));
        let rows = load.fetch_all(self.connection()?).await?;
        rows.iter().map(|row| Ok(columns::row(row, profiles)?)).collect()
    }

    async fn hide_email(&mut self, rows: &[&Row]) -> Result<(), StoreError> {
        let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        sqlx::query(HIDE_EMAIL).bind(types::Json(ids)).execute(self.connection()?).await?;
        Ok(())
    }

    async fn relink(&mut self, rows: &[&Row]) -> Result<(), StoreError> {
        sqlx::query(RELINK).bind(objects(rows, STATE.iter())?).execute(self.connection()?).await?;
        Ok(())
    }

    async fn update(&mut self, rows: &[&Row], profiles: bool) -> Result<u64, StoreError> {
        let update = match profiles {
            true => sqlx::query(UPDATE_WITH_PROFILES.as_str()).bind(objects(rows, whole())?),
            false => sqlx::query(UPDATE.as_str()).bind(objects(rows, STATE.iter())?),
        };
        Ok(update.execute(self.connection()?).await?.rows_affected())
    }

    async fn insert(&mut self, rows: &[&Row], default_credits: i64) -> Result<u64, StoreError> {
        let insert = sqlx::query(INSERT.as_str()).bind(objects(rows, whole())?).bind(default_credits);
        Ok(insert.execute(self.connection()?).await?.rows_affected())
    }

    async fn remember(&mut self, former: &[&FormerId]) -> Result<(), StoreError> {
        let object = |former: &&FormerId| {
            let at = rfc3339(time(former.deleted_at)?);
            Ok(json!({ "clerk_id": former.clerk_id, "user_id": former.user_id, "deleted_at": at }))
        };
        let former = former.iter().map(object).collect::<Result<Vec<_>, StoreError>>()?;
        sqlx::query(REMEMBER).bind(types::Json(former)).execute(self.connection()?).await?;
        Ok(())
    }

    async fn forget(&mut self, clerk_ids: &[&str]) -> Result<(), StoreError> {
        sqlx::query(FORGET).bind(types::Json(clerk_ids)).execute(self.connection()?).await?;
        Ok(())
    }

    async fn erase_kept(&mut self, limit: u32) -> Result<Vec<String>, StoreError> {
        let order = if limit == 1 { "random()" } else { "id" };
        let erase = format!(
            "UPDATE users SET {}, updated_at = {} WHERE id IN (SELECT id FROM users \
             WHERE deleted_at IS NOT NULL AND NOT erased ORDER BY {order} LIMIT ?1) RETURNING clerk_id",
            columns::erased(),
            now!()
        );
        let erase = sqlx::query_scalar(AssertSqlSafe(erase)).bind(limit);
        Ok(erase.fetch_all(self.connection()?).await?)
    }

    /// Runs the statements for no row at all.
    async fn check_user_statements(&mut self, default_credits: i64) -> Result<(), StoreError> {
        self.claimed_keys(&[]).await?;
        self.load(&[], &[], true).await?;
        self.hide_email(&[]).await?;
        self.relink(&[]).await?;
        self.update(&[], false).await?;
        self.update(&[], true).await?;
        self.insert(&[], default_credits).await?;
        self.remember(&[]).await
    }
}
