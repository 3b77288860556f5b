//! Owns reading what a batch touches: its rows, and what is remembered of its messages and Clerk ids. Takes the rows'
//! locks. Never writes.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, Row as _, postgres::PgRow};

use super::connections::Tx;
use crate::{
    rules::users::{Claim, Profile, Row, Version},
    store::{StoreError, batch::kind_of_number},
};

macro_rules! state { () => {
    "id, clerk_id, version, version_sent, version_kind, version_message_id, clerk_email, email_key, email_verified, \
     email IS NOT NULL AS shown, deleted_at, erased"
} }

macro_rules! profile { () => {
    "phone, username, first_name, last_name, image_url, external_id, public_metadata::text AS public_metadata, \
     private_metadata::text AS private_metadata, unsafe_metadata::text AS unsafe_metadata, banned, locked, \
     last_sign_in_at, clerk_created_at, clerk_updated_at"
} }

// Locks the rows in the order of their ids, after the advisory locks and in a statement of its own: a statement sees
// only what was committed before it began. The lock is the one that an application's foreign keys do not wait for, nor
// make us wait: a row's key changes only when it is relinked.
macro_rules! loading {
    () => {
        " FROM users WHERE clerk_id = ANY($1) OR email_key = ANY($2) ORDER BY id FOR NO KEY UPDATE"
    };
}
const LOAD: &str = concat!("SELECT ", state!(), loading!());
const LOAD_WITH_PROFILES: &str = concat!("SELECT ", state!(), ", ", profile!(), loading!());

pub(super) async fn rows(
    tx: &mut Tx,
    ids: &[&str],
    keys: &BTreeSet<String>,
    profiles: bool,
) -> Result<Vec<Row>, StoreError> {
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let query = sqlx::query(if profiles { LOAD_WITH_PROFILES } else { LOAD });
    let rows = query.bind(ids).bind(keys).fetch_all(tx).await?;
    rows.iter().map(|row| Ok(self::row(row, profiles)?)).collect()
}

/// Asks for the plans of the questions, which need the same tables, columns, rights and locks as the answers.
pub(super) async fn rehearse(tx: &mut Tx) -> Result<(), StoreError> {
    let none: Vec<&str> = Vec::new();
    for question in [LOAD_WITH_PROFILES, REMEMBERED] {
        let plan = sqlx::query(AssertSqlSafe(format!("EXPLAIN {question}")));
        plan.bind(&none).bind(&none).execute(&mut *tx).await?;
    }
    Ok(())
}

fn row(row: &PgRow, profile: bool) -> Result<Row, sqlx::Error> {
    let millis = |column| {
        Ok::<_, sqlx::Error>(row.try_get::<Option<DateTime<Utc>>, _>(column)?.map(|at| at.timestamp_millis()))
    };
    let key: Option<String> = row.try_get("email_key")?;
    let address: Option<String> = row.try_get("clerk_email")?;
    let verified = row.try_get("email_verified")?;
    Ok(Row {
        id: row.try_get("id")?,
        clerk_id: row.try_get("clerk_id")?,
        version: Version {
            at: row.try_get("version")?,
            sent: row.try_get("version_sent")?,
            kind: kind_of_number(row.try_get::<i16, _>("version_kind")?),
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

const REMEMBERED: &str = "SELECT true, message_id FROM inbox WHERE message_id = ANY($1) \
     UNION ALL SELECT false, clerk_id FROM former_clerk_ids WHERE clerk_id = ANY($2)";

/// Which messages the inbox has, and which ids are former ids.
pub(super) async fn remembered(
    tx: &mut Tx,
    messages: &[&str],
    ids: &[&str],
) -> Result<(HashSet<String>, HashSet<String>), StoreError> {
    let rows: Vec<(bool, String)> = sqlx::query_as(REMEMBERED).bind(messages).bind(ids).fetch_all(tx).await?;
    let (known, former): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(message, _)| *message);
    let texts = |pairs: Vec<(bool, String)>| pairs.into_iter().map(|(_, text)| text).collect();
    Ok((texts(known), texts(former)))
}
