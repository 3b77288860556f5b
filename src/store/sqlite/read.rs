//! Owns reading users for people. Never writes: its connections cannot.

use sqlx::{SqlitePool, types::Json};

use crate::{
    message::PROBE,
    store::{
        Former, PastEvent, StoreError, Totals, User, UserHistory, UserQuery,
        people::{EVENTS_MAX, LAST, MESSAGE, NAMED, PAGE_MAX, Reference, users},
    },
};

// Uuids of version 7 sort by the time they were made, so the newest rows come first. SQLite's lower() knows ASCII only:
// a name outside of it is also found where it is written in the same case.
const PAGE: &str = users!(
    "WHERE (?1 OR deleted_at IS NULL) AND (?2 IS NULL OR id < ?2) AND (?3 IS NULL \
     OR instr(lower(clerk_id), ?3) OR instr(email_key, ?3) OR instr(lower(username), ?3) OR instr(username, ?4) \
     OR instr(lower(coalesce(first_name || ' ', '') || coalesce(last_name, '')), ?3) \
     OR instr(coalesce(first_name || ' ', '') || coalesce(last_name, ''), ?4)) ORDER BY id DESC LIMIT ?5"
);

pub(super) async fn users(pool: &SqlitePool, query: &UserQuery) -> Result<Vec<User>, StoreError> {
    let users = sqlx::query_as(PAGE)
        .bind(query.deleted)
        .bind(query.after.map(|id| id.to_string()))
        .bind(query.text.as_ref().map(|text| text.to_lowercase()))
        .bind(&query.text)
        .bind(query.limit.min(PAGE_MAX))
        .fetch_all(pool)
        .await?;
    Ok(users)
}

pub(super) async fn message(pool: &SqlitePool, message_id: &str) -> Result<Option<PastEvent>, StoreError> {
    Ok(sqlx::query_as(MESSAGE).bind(message_id).fetch_optional(pool).await?)
}

pub(super) async fn user(pool: &SqlitePool, reference: &str) -> Result<Option<UserHistory>, StoreError> {
    let Some(reference) = Reference::parse(reference) else { return Ok(None) };
    let user: Option<User> = sqlx::query_as(NAMED)
        .bind(reference.id.map(|id| id.to_string()))
        .bind(&reference.text)
        .bind(&reference.key)
        .fetch_optional(pool)
        .await?;
    let former: Vec<Former> = sqlx::query_as(
        "SELECT clerk_id, user_id, deleted_at FROM former_clerk_ids \
         WHERE user_id = ?1 OR clerk_id = ?2 ORDER BY deleted_at, clerk_id",
    )
    .bind(user.as_ref().map(|user| user.id.to_string()))
    .bind(user.is_none().then_some(&reference.text))
    .fetch_all(pool)
    .await?;
    if user.is_none() && former.is_empty() {
        return Ok(None);
    }
    let ids: Vec<&str> = user
        .iter()
        .map(|user| user.clerk_id.as_str())
        .chain(former.iter().map(|former| former.clerk_id.as_str()))
        .collect();
    let events = sqlx::query_as(
        "SELECT * FROM (SELECT message_id, event_type, clerk_id, outcome, event_at, received_at, processed_at \
         FROM inbox WHERE clerk_id IN (SELECT value FROM json_each(?1)) \
         ORDER BY processed_at DESC, event_at DESC, message_id DESC LIMIT ?2) \
         ORDER BY processed_at, event_at, message_id",
    )
    .bind(Json(ids))
    .bind(EVENTS_MAX)
    .fetch_all(pool)
    .await?;
    Ok(Some(UserHistory { user, former, events }))
}

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
