//! Owns looking at users as a batch about them would load them, with their profiles, but without a lock and for both
//! databases alike. Changes nothing.

use std::collections::BTreeSet;

use sqlx::{FromRow, postgres::PgRow, sqlite::SqliteRow};

use super::columns::{self, PROFILE, STORED, Value, list};
use crate::{
    rules::users::{Loaded, Row},
    store::{
        StoreError,
        columns::At,
        filter::{self, Dialect},
        questions::{Planned, Reading},
    },
};

/// What the table has of these Clerk ids, and of whoever claims the addresses of these keys. `reading` is one snapshot.
pub(in crate::store) async fn look<R: Reading<Db: Dialect>>(
    reading: &mut R,
    clerk_ids: &[String],
    keys: &[String],
) -> Result<Loaded, StoreError> {
    let ids = filter::Value::Texts(clerk_ids);
    let among_ids = R::Db::among("clerk_id", 1);

    // The addresses that the rows of these ids claim too: whoever else claims one matters as well.
    let question = format!("SELECT email_key FROM users WHERE {among_ids} AND email_key IS NOT NULL");
    let claimed: Vec<(String,)> = reading.rows(R::Db::whole(question, [ids])?, Planned::Once).await?;
    let keys: BTreeSet<String> = keys.iter().cloned().chain(claimed.into_iter().map(|(key,)| key)).collect();
    let keys: Vec<String> = keys.into_iter().collect();

    let profile = list(PROFILE, |column| match column.value {
        Value::Json(_) => format!("CAST({name} AS text) AS {name}", name = column.name),
        _ => column.name.to_owned(),
    });
    let question = format!(
        "SELECT {STORED}, {profile} FROM users WHERE {among_ids} OR {}",
        R::Db::among("email_key", 2)
    );
    let question = R::Db::whole(question, [ids, filter::Value::Texts(&keys)])?;
    let rows: Vec<Whole> = reading.rows(question, Planned::Once).await?;

    let question = format!("SELECT clerk_id, deleted_at FROM former_clerk_ids WHERE {among_ids}");
    let former: Vec<(String, At)> = reading.rows(R::Db::whole(question, [ids])?, Planned::Once).await?;
    let former = former.into_iter().map(|(clerk_id, At(at))| (clerk_id, at)).collect();
    Ok(Loaded { rows: rows.into_iter().map(|Whole(row)| row).collect(), former })
}

/// A row with its profile.
struct Whole(Row);

impl FromRow<'_, PgRow> for Whole {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        columns::row(row, true).map(Self)
    }
}

impl FromRow<'_, SqliteRow> for Whole {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        columns::row(row, true).map(Self)
    }
}
