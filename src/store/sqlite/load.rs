//! Owns reading what a batch touches: its rows, and what is remembered of its messages and Clerk ids. Never writes.

use std::{collections::HashSet, sync::Arc};

use chrono::DateTime;
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow, types::Json};
use uuid::Uuid;

use crate::{
    rules::users::{Claim, Profile, Row, Version},
    store::{StoreError, batch::kind_of_number},
    time::Millis,
};

macro_rules! state { () => {
    "id, clerk_id, version, version_sent, version_kind, version_message_id, clerk_email, email_key, email_verified, \
     email IS NOT NULL AS shown, deleted_at, erased"
} }

macro_rules! profile {
    () => {
        "phone, username, first_name, last_name, image_url, external_id, public_metadata, private_metadata, \
     unsafe_metadata, banned, locked, last_sign_in_at, clerk_created_at, clerk_updated_at"
    };
}

// The rows that the Clerk ids hold, and every row that claims an address which one of those or an event claims.
macro_rules! loading {
    () => {
        " FROM users WHERE clerk_id IN (SELECT value FROM json_each(?1)) OR email_key IN \
     (SELECT value FROM json_each(?2) UNION SELECT email_key FROM users WHERE email_key IS NOT NULL \
     AND clerk_id IN (SELECT value FROM json_each(?1)))"
    };
}

const LOAD: &str = concat!("SELECT ", state!(), loading!());
const LOAD_WITH_PROFILES: &str = concat!("SELECT ", state!(), ", ", profile!(), loading!());

pub(super) async fn rows(
    tx: &mut SqliteConnection,
    ids: &[&str],
    keys: &[&str],
    profiles: bool,
) -> Result<Vec<Row>, StoreError> {
    let query = sqlx::query(if profiles { LOAD_WITH_PROFILES } else { LOAD });
    let rows = query.bind(Json(ids)).bind(Json(keys)).fetch_all(tx).await?;
    rows.iter().map(|row| Ok(self::row(row, profiles)?)).collect()
}

fn row(row: &SqliteRow, profile: bool) -> Result<Row, sqlx::Error> {
    let millis =
        |column| row.try_get::<Option<String>, _>(column)?.map(|text| parse_time(column, &text)).transpose();
    let key: Option<String> = row.try_get("email_key")?;
    let address: Option<String> = row.try_get("clerk_email")?;
    let verified = row.try_get("email_verified")?;
    Ok(Row {
        id: uuid(row, "id")?,
        clerk_id: row.try_get("clerk_id")?,
        version: Version {
            at: row.try_get("version")?,
            sent: row.try_get("version_sent")?,
            kind: kind_of_number(row.try_get("version_kind")?),
            message_id: row.try_get("version_message_id")?,
        },
        claim: key.map(|key| Claim { address: address.unwrap_or_else(|| key.clone()), key, verified }),
        shown: row.try_get("shown")?,
        deleted_at: millis("deleted_at")?,
        erased: row.try_get("erased")?,
        profile: if profile {
            Some(Arc::new(Profile {
                phone: row.try_get("phone")?,
                username: row.try_get("username")?,
                first_name: row.try_get("first_name")?,
                last_name: row.try_get("last_name")?,
                image_url: row.try_get("image_url")?,
                external_id: row.try_get("external_id")?,
                public_metadata: row.try_get("public_metadata")?,
                private_metadata: row.try_get("private_metadata")?,
                unsafe_metadata: row.try_get("unsafe_metadata")?,
                banned: row.try_get("banned")?,
                locked: row.try_get("locked")?,
                last_sign_in_at: millis("last_sign_in_at")?,
                created_at: millis("clerk_created_at")?,
                updated_at: millis("clerk_updated_at")?,
            }))
        } else {
            None
        },
    })
}

/// A uuid, which SQLite keeps as text.
pub(super) fn uuid(row: &SqliteRow, column: &'static str) -> Result<Uuid, sqlx::Error> {
    let text: String = row.try_get(column)?;
    Uuid::parse_str(&text).map_err(|source| unreadable(column, source))
}

/// A time, which SQLite keeps as text.
pub(super) fn parse_time(column: &'static str, text: &str) -> Result<Millis, sqlx::Error> {
    let time = DateTime::parse_from_rfc3339(text).map_err(|source| unreadable(column, source))?;
    Ok(time.timestamp_millis())
}

fn unreadable(column: &str, source: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: Box::new(source) }
}

/// Which messages the inbox has, and which ids are former ids.
pub(super) async fn remembered(
    tx: &mut SqliteConnection,
    messages: &[&str],
    ids: &[&str],
) -> Result<(HashSet<String>, HashSet<String>), StoreError> {
    let known = sqlx::query_scalar(
        "SELECT message_id FROM inbox WHERE message_id IN (SELECT value FROM json_each(?1))",
    )
    .bind(Json(messages))
    .fetch_all(&mut *tx)
    .await?;
    let former = sqlx::query_scalar(
        "SELECT clerk_id FROM former_clerk_ids WHERE clerk_id IN (SELECT value FROM json_each(?1))",
    )
    .bind(Json(ids))
    .fetch_all(tx)
    .await?;
    Ok((known.into_iter().collect(), former.into_iter().collect()))
}
