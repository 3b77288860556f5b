//! Owns reading users for people. Never takes a lock, never writes.

use super::connections::Tx;
use crate::{
    message::PROBE,
    store::{
        Former, PastEvent, StoreError, Totals, User, UserHistory, UserQuery,
        columns::Told,
        people::{EVENTS_MAX, LAST, MESSAGE, NAMED, PAGE_MAX, Reference, users},
    },
};

/// Uuids of version 7 sort by the time they were made, so the newest rows come first.
const PAGE: &str = users!(
    "WHERE ($1 OR deleted_at IS NULL) AND ($2::uuid IS NULL OR id < $2) AND ($3::text IS NULL \
     OR strpos(lower(clerk_id), $3) > 0 OR strpos(email_key, $3) > 0 OR strpos(lower(username), $3) > 0 \
     OR strpos(lower(concat_ws(' ', first_name, last_name)), $3) > 0) ORDER BY id DESC LIMIT $4"
);

pub(super) async fn users(tx: &mut Tx, query: &UserQuery) -> Result<Vec<User>, StoreError> {
    // No stored text holds a NUL, and PostgreSQL takes none.
    if query.text.as_ref().is_some_and(|text| text.contains('\0')) {
        return Ok(Vec::new());
    }
    let users = sqlx::query_as(PAGE)
        .bind(query.deleted)
        .bind(query.after)
        .bind(query.text.as_ref().map(|text| text.to_lowercase()))
        .bind(i64::from(query.limit.min(PAGE_MAX)))
        .fetch_all(&mut *tx)
        .await?;
    Ok(users)
}

pub(super) async fn message(tx: &mut Tx, message_id: &str) -> Result<Option<PastEvent>, StoreError> {
    // No stored text holds a NUL, and PostgreSQL takes none.
    if message_id.contains('\0') {
        return Ok(None);
    }
    Ok(sqlx::query_as(MESSAGE).bind(message_id).fetch_optional(tx).await?)
}

pub(super) async fn user(tx: &mut Tx, reference: &str) -> Result<Option<UserHistory>, StoreError> {
    let Some(reference) = Reference::parse(reference) else { return Ok(None) };
    let user: Option<User> = sqlx::query_as(NAMED)
        .bind(reference.id)
        .bind(&reference.text)
        .bind(&reference.key)
        .fetch_optional(&mut *tx)
        .await?;
    let former: Vec<Former> = sqlx::query_as(
        "SELECT clerk_id, user_id, deleted_at FROM former_clerk_ids \
         WHERE user_id = $1 OR clerk_id = $2 ORDER BY deleted_at, clerk_id",
    )
    .bind(user.as_ref().map(|user| user.id))
    .bind(user.is_none().then_some(&reference.text))
    .fetch_all(&mut *tx)
    .await?;
    if user.is_none() && former.is_empty() {
        return Ok(None);
    }
    let ids: Vec<&str> = user
        .iter()
        .map(|user| user.clerk_id.as_str())
        .chain(former.iter().map(|former| former.clerk_id.as_str()))
        .collect();
    // Materialized, so that a user of few events is not looked for in the whole inbox by its order in time.
    let events = sqlx::query_as(
        "WITH mine AS MATERIALIZED (SELECT message_id, event_type, clerk_id, outcome, event_at, received_at, \
         processed_at FROM inbox WHERE clerk_id = ANY($1)) \
         SELECT * FROM (SELECT * FROM mine ORDER BY processed_at DESC, event_at DESC, message_id DESC LIMIT $2) AS newest \
         ORDER BY processed_at, event_at, message_id",
    )
    .bind(ids)
    .bind(i64::from(EVENTS_MAX))
    .fetch_all(&mut *tx)
    .await?;
    Ok(Some(UserHistory { user, former, events }))
}

/// The largest table of users, in bytes, that is counted row by row: that takes well under a second.
const COUNTED: i64 = 128 * 1024 * 1024;

pub(super) async fn totals(tx: &mut Tx) -> Result<Totals, StoreError> {
    let estimate = estimated(tx).await?;
    let last: Option<(Told, Told)> = sqlx::query_as(LAST).bind(PROBE).fetch_optional(&mut *tx).await?;
    let (processed, received) = last.map(|(processed, received)| (processed.0, received.0)).unzip();
    let (live, deleted) = match estimate {
        Some(estimate) => estimate,
        None => {
            sqlx::query_as("SELECT count(*) - count(deleted_at), count(deleted_at) FROM users")
                .fetch_one(&mut *tx)
                .await?
        }
    };
    Ok(Totals {
        live_users: live.unsigned_abs(),
        deleted_users: deleted.unsigned_abs(),
        estimated: estimate.is_some(),
        last_processed_at: processed,
        last_received_at: received,
    })
}

/// About how many users are live and deleted, by the server's statistics, where the table is too large to be read for
/// that: a count would take seconds, and the disk from those who work.
async fn estimated(tx: &mut Tx) -> Result<Option<(i64, i64)>, StoreError> {
    let estimate: Option<(f64, f64)> = sqlx::query_as(
        "SELECT rows * live, rows * (1 - live) FROM (\
         SELECT reltuples::float8 / relpages * (pg_relation_size(c.oid) / current_setting('block_size')::float8) AS rows, \
         coalesce((SELECT null_frac::float8 FROM pg_stats WHERE schemaname = n.nspname \
         AND tablename = 'users' AND attname = 'deleted_at' LIMIT 1), 1) AS live \
         FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace \
         WHERE c.oid = 'users'::regclass AND reltuples > 0 AND relpages > 0 AND pg_relation_size(c.oid) > $1) AS s",
    )
    .bind(COUNTED)
    .fetch_optional(&mut *tx)
    .await?;
    Ok(estimate.map(|(live, deleted)| (live.round() as i64, deleted.round() as i64)))
}
