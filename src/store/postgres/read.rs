//! Owns reading users for people. Never takes a lock, never writes.

use chrono::{DateTime, Utc};
use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::connections::Tx;
use crate::{
    message::PROBE,
    store::{
        Former, PastEvent, StoreError, Totals, User, UserHistory, UserQuery,
        batch::rfc3339,
        reference::{EVENTS_MAX, PAGE_MAX, Reference},
    },
};

macro_rules! users { ($rest:literal) => { concat!(
    "SELECT id, clerk_id, email, clerk_email, email_verified, phone, username, first_name, last_name, image_url, \
     external_id, public_metadata, private_metadata, unsafe_metadata, banned, locked, subscription_tier, \
     credits_balance, last_sign_in_at, clerk_created_at, clerk_updated_at, version, deleted_at, created_at, \
     updated_at FROM users ", $rest)
} }

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
    let rows = sqlx::query(PAGE)
        .bind(query.deleted)
        .bind(query.after)
        .bind(query.text.as_ref().map(|text| text.to_lowercase()))
        .bind(i64::from(query.limit.min(PAGE_MAX)))
        .fetch_all(&mut *tx)
        .await?;
    Ok(rows.iter().map(user_of).collect::<Result<_, _>>()?)
}

pub(super) async fn user(tx: &mut Tx, reference: &str) -> Result<Option<UserHistory>, StoreError> {
    let Some(reference) = Reference::parse(reference) else { return Ok(None) };
    // An id before a Clerk id before a former id before an address; of the claimants of an address who shows it, then
    // who is alive, then the newest.
    let row = sqlx::query(users!(
        "WHERE id = $1 OR clerk_id = $2 OR email_key = $3 \
         OR id = (SELECT user_id FROM former_clerk_ids WHERE clerk_id = $2) \
         ORDER BY coalesce(id = $1, false) DESC, clerk_id = $2 DESC, \
         coalesce(id = (SELECT user_id FROM former_clerk_ids WHERE clerk_id = $2), false) DESC, \
         email IS NOT NULL DESC, deleted_at IS NULL DESC, version DESC, id DESC LIMIT 1"
    ))
    .bind(reference.id)
    .bind(&reference.text)
    .bind(&reference.key)
    .fetch_optional(&mut *tx)
    .await?;
    let user = row.as_ref().map(user_of).transpose()?;
    let former = sqlx::query(
        "SELECT clerk_id, user_id, deleted_at FROM former_clerk_ids \
         WHERE user_id = $1 OR clerk_id = $2 ORDER BY deleted_at, clerk_id",
    )
    .bind(user.as_ref().map(|user| user.id))
    .bind(user.is_none().then_some(&reference.text))
    .fetch_all(&mut *tx)
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
    // Materialized, so that a user of few events is not looked for in the whole inbox by its order in time.
    let events = sqlx::query(
        "WITH mine AS MATERIALIZED (SELECT message_id, event_type, clerk_id, outcome, event_at, received_at, \
         processed_at FROM inbox WHERE clerk_id = ANY($1)) \
         SELECT * FROM (SELECT * FROM mine ORDER BY processed_at DESC, event_at DESC, message_id DESC LIMIT $2) AS newest \
         ORDER BY processed_at, event_at, message_id",
    )
    .bind(ids)
    .bind(i64::from(EVENTS_MAX))
    .fetch_all(&mut *tx)
    .await?;
    let events = events.iter().map(event_of).collect::<Result<_, _>>()?;
    Ok(Some(UserHistory { user, former, events }))
}

/// The largest table of users, in bytes, that is counted row by row: that takes well under a second.
const COUNTED: i64 = 128 * 1024 * 1024;

/// The last webhook that Clerk sent: an older ingress queues what `doctor` asks with.
const LAST: &str =
    "SELECT processed_at, received_at FROM inbox WHERE event_type <> $1 ORDER BY processed_at DESC LIMIT 1";

pub(super) async fn totals(tx: &mut Tx) -> Result<Totals, StoreError> {
    let estimate = estimated(tx).await?;
    let last: Option<(DateTime<Utc>, DateTime<Utc>)> =
        sqlx::query_as(LAST).bind(PROBE).fetch_optional(&mut *tx).await?;
    let (processed, received) =
        last.map(|(processed, received)| (rfc3339(processed), rfc3339(received))).unzip();
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

fn user_of(row: &PgRow) -> Result<User, sqlx::Error> {
    let time = |column| Ok::<_, sqlx::Error>(row.try_get::<Option<DateTime<Utc>>, _>(column)?.map(rfc3339));
    Ok(User {
        id: row.try_get("id")?,
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
        public_metadata: row.try_get("public_metadata")?,
        private_metadata: row.try_get("private_metadata")?,
        unsafe_metadata: row.try_get("unsafe_metadata")?,
        banned: row.try_get("banned")?,
        locked: row.try_get("locked")?,
        subscription_tier: row.try_get("subscription_tier")?,
        credits_balance: row.try_get("credits_balance")?,
        last_sign_in_at: time("last_sign_in_at")?,
        clerk_created_at: time("clerk_created_at")?,
        clerk_updated_at: time("clerk_updated_at")?,
        version: row.try_get("version")?,
        deleted_at: time("deleted_at")?,
        created_at: rfc3339(row.try_get("created_at")?),
        updated_at: rfc3339(row.try_get("updated_at")?),
    })
}

fn former_of(row: &PgRow) -> Result<Former, sqlx::Error> {
    Ok(Former {
        clerk_id: row.try_get("clerk_id")?,
        user_id: row.try_get::<Option<Uuid>, _>("user_id")?,
        deleted_at: rfc3339(row.try_get("deleted_at")?),
    })
}

fn event_of(row: &PgRow) -> Result<PastEvent, sqlx::Error> {
    Ok(PastEvent {
        message_id: row.try_get("message_id")?,
        event_type: row.try_get("event_type")?,
        clerk_id: row.try_get("clerk_id")?,
        outcome: row.try_get("outcome")?,
        event_at: row.try_get::<Option<DateTime<Utc>>, _>("event_at")?.map(rfc3339),
        received_at: rfc3339(row.try_get("received_at")?),
        processed_at: rfc3339(row.try_get("processed_at")?),
    })
}
