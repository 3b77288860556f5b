//! Owns writing what the fold has decided: a constant number of statements, each over one JSON array. Promises an
//! order in which no unique index is ever in the way. Never decides anything.

use serde_json::{Value, json};
use sqlx::{SqliteConnection, types::Json};

use crate::{
    rules::users::{Folded, FormerId, Outcome, Profile, Row},
    store::{
        Incoming, StoreError,
        batch::{Fresh, Writes, kind_to_number, rfc3339, shown_email, time, time_or_null},
        errors,
    },
    time::Millis,
};

/// Writes users, former ids and the inbox.
pub(super) async fn all(
    tx: &mut SqliteConnection,
    default_credits: i64,
    fresh: &Fresh<'_>,
    folded: &Folded,
) -> Result<(), StoreError> {
    let writes = Writes::of(&folded.rows);
    if !writes.yielding.is_empty() {
        let ids: Vec<String> = writes.yielding.iter().map(|row| row.id.to_string()).collect();
        sqlx::query(YIELD).bind(Json(ids)).execute(&mut *tx).await?;
    }
    // Updates before inserts: a relinked row gives up the Clerk id that a new row may then hold.
    if !writes.brief.is_empty() {
        let rows = writes.brief.iter().map(|row| state(row)).collect::<Result<Vec<_>, _>>()?;
        let written = sqlx::query(UPDATE_BRIEF).bind(Json(rows)).execute(&mut *tx).await?.rows_affected();
        errors::all_written(written, writes.brief.len())?;
    }
    if !writes.full.is_empty() {
        let rows = writes.full.iter().map(|row| whole(row)).collect::<Result<Vec<_>, _>>()?;
        let written = sqlx::query(UPDATE_FULL).bind(Json(rows)).execute(&mut *tx).await?.rows_affected();
        errors::all_written(written, writes.full.len())?;
    }
    if !writes.new.is_empty() {
        let rows = writes.new.iter().map(|row| whole(row)).collect::<Result<Vec<_>, _>>()?;
        let insert = sqlx::query(INSERT).bind(Json(rows)).bind(default_credits);
        errors::all_written(insert.execute(&mut *tx).await?.rows_affected(), writes.new.len())?;
    }
    if !folded.former.is_empty() {
        insert_former(tx, &folded.former).await?;
    }
    insert_inbox(tx, &fresh.inbox(&folded.outcomes)).await
}

/// Runs every statement above for no row at all: they need the same tables and columns.
pub(super) async fn rehearse(tx: &mut SqliteConnection, default_credits: i64) -> Result<(), StoreError> {
    let none = Json(Vec::<Value>::new());
    for statement in [YIELD, UPDATE_BRIEF, UPDATE_FULL] {
        sqlx::query(statement).bind(&none).execute(&mut *tx).await?;
    }
    sqlx::query(INSERT).bind(&none).bind(default_credits).execute(&mut *tx).await?;
    insert_former(tx, &[]).await?;
    sqlx::query(INSERT_INBOX).bind(none).execute(tx).await?;
    Ok(())
}

const YIELD: &str = "UPDATE users SET email = NULL WHERE id IN (SELECT value FROM json_each(?1))";

macro_rules! state_columns {
    () => {
        "id, clerk_id, email, clerk_email, email_key, email_verified, version, version_sent, version_kind, \
     version_message_id, deleted_at, erased"
    };
}

macro_rules! state_values {
    () => {
        "value->>'id', value->>'clerk_id', value->>'email', value->>'clerk_email', value->>'email_key', \
     value->>'email_verified', value->>'version', value->>'version_sent', value->>'version_kind', \
     value->>'version_message_id', value->>'deleted_at', value->>'erased'"
    };
}

macro_rules! profile_columns {
    () => {
        "phone, username, first_name, last_name, image_url, external_id, public_metadata, private_metadata, \
     unsafe_metadata, banned, locked, last_sign_in_at, clerk_created_at, clerk_updated_at"
    };
}

macro_rules! profile_values { () => {
    "value->>'phone', value->>'username', value->>'first_name', value->>'last_name', value->>'image_url', \
     value->>'external_id', value->>'public_metadata', value->>'private_metadata', value->>'unsafe_metadata', \
     value->>'banned', value->>'locked', value->>'last_sign_in_at', value->>'clerk_created_at', \
     value->>'clerk_updated_at'"
} }

// `id` stands on both sides, so that one list of columns does for all.
const UPDATE_BRIEF: &str = concat!(
    "UPDATE users SET (",
    state_columns!(),
    ", updated_at) = (",
    state_values!(),
    ", ",
    now!(),
    ") FROM json_each(?1) WHERE users.id = value->>'id'",
);

const UPDATE_FULL: &str = concat!(
    "UPDATE users SET (",
    state_columns!(),
    ", ",
    profile_columns!(),
    ", updated_at) = (",
    state_values!(),
    ", ",
    profile_values!(),
    ", ",
    now!(),
    ") FROM json_each(?1) WHERE users.id = value->>'id'",
);

const INSERT: &str = concat!(
    "INSERT INTO users (",
    state_columns!(),
    ", ",
    profile_columns!(),
    ", credits_balance) SELECT ",
    state_values!(),
    ", ",
    profile_values!(),
    ", ?2 FROM json_each(?1)",
);

/// The columns that every written row has.
fn state(row: &Row) -> Result<serde_json::Map<String, Value>, StoreError> {
    let claim = row.claim.as_ref();
    let value = json!({
        "id": row.id,
        "clerk_id": row.clerk_id,
        "email": shown_email(row),
        "clerk_email": claim.map(|claim| &claim.address),
        "email_key": claim.map(|claim| &claim.key),
        "email_verified": claim.is_some_and(|claim| claim.verified),
        "version": row.version.at,
        "version_sent": row.version.sent,
        "version_kind": kind_to_number(row.version.kind),
        "version_message_id": row.version.message_id,
        "deleted_at": text(row.deleted_at)?,
        "erased": row.erased,
    });
    Ok(object(value))
}

/// These and all other mirrored columns. A row without a profile has none to show: all null.
fn whole(row: &Row) -> Result<serde_json::Map<String, Value>, StoreError> {
    let mut columns = state(row)?;
    if let Some(profile) = row.profile.as_deref() {
        columns.append(&mut self::profile(profile)?);
    }
    Ok(columns)
}

fn profile(profile: &Profile) -> Result<serde_json::Map<String, Value>, StoreError> {
    Ok(object(json!({
        "phone": profile.phone,
        "username": profile.username,
        "first_name": profile.first_name,
        "last_name": profile.last_name,
        "image_url": profile.image_url,
        "external_id": profile.external_id,
        "public_metadata": profile.public_metadata,
        "private_metadata": profile.private_metadata,
        "unsafe_metadata": profile.unsafe_metadata,
        "banned": profile.banned,
        "locked": profile.locked,
        "last_sign_in_at": text(profile.last_sign_in_at)?,
        "clerk_created_at": text(profile.created_at)?,
        "clerk_updated_at": text(profile.updated_at)?,
    })))
}

fn object(value: Value) -> serde_json::Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => serde_json::Map::new(),
    }
}

fn text(at: Option<Millis>) -> Result<Option<String>, StoreError> {
    Ok(time_or_null(at)?.map(rfc3339))
}

async fn insert_former(tx: &mut SqliteConnection, former: &[FormerId]) -> Result<(), StoreError> {
    let row = |former: &FormerId| {
        let at = rfc3339(time(former.deleted_at)?);
        Ok(json!({ "clerk_id": former.clerk_id, "user_id": former.user_id, "deleted_at": at }))
    };
    let rows = former.iter().map(row).collect::<Result<Vec<_>, StoreError>>()?;
    sqlx::query(
        "INSERT OR IGNORE INTO former_clerk_ids (clerk_id, user_id, deleted_at) \
         SELECT value->>'clerk_id', value->>'user_id', value->>'deleted_at' FROM json_each(?1)",
    )
    .bind(Json(rows))
    .execute(tx)
    .await?;
    Ok(())
}

async fn insert_inbox(tx: &mut SqliteConnection, rows: &[(&Incoming, Outcome)]) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let row = |(incoming, outcome): &(&Incoming, Outcome)| {
        Ok(json!({
            "message_id": incoming.event.message_id,
            "event_type": incoming.event_type,
            "clerk_id": incoming.event.clerk_id(),
            "outcome": outcome.as_str(),
            "event_at": text(incoming.event.at())?,
            "received_at": text(Some(incoming.received_at))?,
        }))
    };
    let rows = rows.iter().map(row).collect::<Result<Vec<_>, StoreError>>()?;
    sqlx::query(INSERT_INBOX).bind(Json(rows)).execute(tx).await?;
    Ok(())
}

const INSERT_INBOX: &str = concat!(
    "INSERT INTO inbox (message_id, event_type, clerk_id, outcome, event_at, received_at, processed_at) \
     SELECT value->>'message_id', value->>'event_type', value->>'clerk_id', value->>'outcome', \
     value->>'event_at', value->>'received_at', ",
    now!(),
    " FROM json_each(?1)"
);
