//! Owns reading users for people. Never writes: its connections cannot.

use sqlx::{Row as _, SqlitePool, sqlite::SqliteRow, types::Json};

use super::uuid;
use crate::{
    message::PROBE,
    store::{
        Former, PastEvent, StoreError, Totals, User, UserHistory, UserQuery,
        reference::{EVENTS_MAX, PAGE_MAX, Reference},
    },
};

macro_rules! users { ($rest:literal) => { concat!(
    "SELECT id, clerk_id, email, clerk_email, email_verified, phone, username, first_name, last_name, image_url, \
     external_id, public_metadata, private_metadata, unsafe_metadata, banned, locked, subscription_tier, \
     credits_balance, last_sign_in_at, clerk_created_at, clerk_updated_at, version, deleted_at, created_at, \
     updated_at FROM users ", $rest)
} }

// Uuids of version 7 sort by the time they were made, so the newest rows come first. SQLite's lower() knows ASCII only:
// a name outside of it is also found where it is written in the same case.
const PAGE: &str = users!(
    "WHERE (?1 OR deleted_at IS NULL) AND (?2 IS NULL OR id < ?2) AND (?3 IS NULL \
     OR instr(lower(clerk_id), ?3) OR instr(email_key, ?3) OR instr(lower(username), ?3) OR instr(username, ?4) \
     OR instr(lower(coalesce(first_name || ' ', '') || coalesce(last_name, '')), ?3) \
     OR instr(coalesce(first_name || ' ', '') || coalesce(last_name, ''), ?4)) ORDER BY id DESC LIMIT ?5"
);

pub(super) async fn users(pool: &SqlitePool, query: &UserQuery) -> Result<Vec<User>, StoreError> {
    let rows = sqlx::query(PAGE)
        .bind(query.deleted)
        .bind(query.after.map(|id| id.to_string()))
        .bind(query.text.as_ref().map(|text| text.to_lowercase()))
        .bind(&query.text)
        .bind(query.limit.min(PAGE_MAX))
        .fetch_all(pool)
        .await?;
    Ok(rows.iter().map(user_of).collect::<Result<_, _>>()?)
}

pub(super) async fn user(pool: &SqlitePool, reference: &str) -> Result<Option<UserHistory>, StoreError> {
    let Some(reference) = Reference::parse(reference) else { return Ok(None) };
    // An id before a Clerk id before a former id before an address; of the claimants of an address who shows it, then
    // who is alive, then the newest.
    let row = sqlx::query(users!(
        "WHERE id = ?1 OR clerk_id = ?2 OR email_key = ?3 \
         OR id = (SELECT user_id FROM former_clerk_ids WHERE clerk_id = ?2) \
         ORDER BY coalesce(id = ?1, false) DESC, clerk_id = ?2 DESC, \
         coalesce(id = (SELECT user_id FROM former_clerk_ids WHERE clerk_id = ?2), false) DESC, \
         email IS NOT NULL DESC, deleted_at IS NULL DESC, version DESC, id DESC LIMIT 1"
    ))
    .bind(reference.id.map(|id| id.to_string()))
    .bind(&reference.text)
    .bind(&reference.key)
    .fetch_optional(pool)
    .await?;
    let user = row.as_ref().map(user_of).transpose()?;
    let former = sqlx::query(
        "SELECT clerk_id, user_id, deleted_at FROM former_clerk_ids \
         WHERE user_id = ?1 OR clerk_id = ?2 ORDER BY deleted_at, clerk_id",
    )
    .bind(user.as_ref().map(|user| user.id.to_string()))
    .bind(user.is_none().then_some(&reference.text))
    .fetch_all(pool)
    .await?;
    let former = former.iter().map(former_of).collect::<Result<Vec<_>, _>>()?;
    if user.is_none() && former.is_empty() {
        return Ok(None);
    }
    let ids: Vec<&str> = user
        .iter()
        .map(|user| user.clerk_id.as_str())
        .chain(former.iter().map(|former| former.clerk_id.as_str()))
        .collect();
    let events = sqlx::query(
        "SELECT * FROM (SELECT message_id, event_type, clerk_id, outcome, event_at, received_at, processed_at \
         FROM inbox WHERE clerk_id IN (SELECT value FROM json_each(?1)) \
         ORDER BY processed_at DESC, event_at DESC, message_id DESC LIMIT ?2) \
         ORDER BY processed_at, event_at, message_id",
    )
    .bind(Json(ids))
    .bind(EVENTS_MAX)
    .fetch_all(pool)
    .await?;
    let events = events.iter().map(event_of).collect::<Result<_, _>>()?;
    Ok(Some(UserHistory { user, former, events }))
}

/// The last webhook that Clerk sent: an older ingress queues what `doctor` asks with.
const LAST: &str =
    "SELECT processed_at, received_at FROM inbox WHERE event_type <> ?1 ORDER BY processed_at DESC LIMIT 1";

pub(super) async fn totals(pool: &SqlitePool) -> Result<Totals, StoreError> {
    let (live, deleted): (i64, i64) = sqlx::query_as(
        "SELECT count(*) FILTER (WHERE deleted_at IS NULL), count(*) FILTER (WHERE deleted_at IS NOT NULL) FROM users",
    )
    .fetch_one(pool)
    .await?;
    let last: Option<(String, String)> = sqlx::query_as(LAST).bind(PROBE).fetch_optional(pool).await?;
    let (processed, received) = last.unzip();
    Ok(Totals {
        live_users: live.unsigned_abs(),
        deleted_users: deleted.unsigned_abs(),
        estimated: false,
        last_processed_at: processed,
        last_received_at: received,
    })
}

fn user_of(row: &SqliteRow) -> Result<User, sqlx::Error> {
    let json = |column| {
        let text: Option<String> = row.try_get(column)?;
        Ok::<_, sqlx::Error>(
            text.map(|text| serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text))),
        )
    };
    Ok(User {
        id: uuid(row, "id")?,
        clerk_id: row.try_get("clerk_id")?,
        email: row.try_get("email")?,
        clerk_email: row.try_get("clerk_email")?,
        email_verified: row.try_get("email_verified")?,
        phone: row.try_get("phone")?,
        username: row.try_get("username")?,
        first_name: row.try_get("first_name")?,
        last_name: row.try_get("last_name")?,
        image_url: row.try_get("image_url")?,
        external_id: row.try_get("external_id")?,
        public_metadata: json("public_metadata")?,
        private_metadata: json("private_metadata")?,
        unsafe_metadata: json("unsafe_metadata")?,
        banned: row.try_get("banned")?,
        locked: row.try_get("locked")?,
        subscription_tier: row.try_get("subscription_tier")?,
        credits_balance: row.try_get("credits_balance")?,
        last_sign_in_at: row.try_get("last_sign_in_at")?,
        clerk_created_at: row.try_get("clerk_created_at")?,
        clerk_updated_at: row.try_get("clerk_updated_at")?,
        version: row.try_get("version")?,
        deleted_at: row.try_get("deleted_at")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}

fn former_of(row: &SqliteRow) -> Result<Former, sqlx::Error> {
    let has_row = row.try_get::<Option<String>, _>("user_id")?.is_some();
    Ok(Former {
        clerk_id: row.try_get("clerk_id")?,
        user_id: if has_row { Some(uuid(row, "user_id")?) } else { None },
        deleted_at: row.try_get("deleted_at")?,
    })
}

fn event_of(row: &SqliteRow) -> Result<PastEvent, sqlx::Error> {
    Ok(PastEvent {
        message_id: row.try_get("message_id")?,
        event_type: row.try_get("event_type")?,
        clerk_id: row.try_get("clerk_id")?,
        outcome: row.try_get("outcome")?,
        event_at: row.try_get("event_at")?,
        received_at: row.try_get("received_at")?,
        processed_at: row.try_get("processed_at")?,
    })
}
