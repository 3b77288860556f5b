//! Owns taking what is personal from users that were deleted while deletions were kept, and from their letters: small
//! steps, which pass over what is locked. Only where deletion erases.

use sqlx::AssertSqlSafe;

use super::{PostgresStore, apply::ALONE, settle};
use crate::store::{StoreError, plain::ERASED_USER};

/// Letters that were settled while deletions were kept.
const LETTERS: &str = "SELECT DISTINCT clerk_id FROM (SELECT clerk_id FROM dead_letters AS l \
     WHERE settled_at IS NOT NULL AND NOT erased \
     AND (EXISTS (SELECT FROM users AS u WHERE u.clerk_id = l.clerk_id AND u.erased) \
     OR EXISTS (SELECT FROM former_clerk_ids AS f WHERE f.clerk_id = l.clerk_id)) LIMIT $1) AS found";

pub(super) async fn step(store: &PostgresStore, limit: u32) -> Result<u64, StoreError> {
    let mut tx = store.connections.begin(ALONE).await?;
    // Of those that are tried one at a time one that is refused must not be the first each time.
    let order = if limit == 1 { "random()" } else { "id" };
    let users = format!(
        "WITH picked AS MATERIALIZED (SELECT id FROM users WHERE deleted_at IS NOT NULL AND NOT erased \
         ORDER BY {order} LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED) \
         UPDATE users AS u SET {ERASED_USER}, updated_at = now() FROM picked WHERE u.id = picked.id RETURNING u.clerk_id"
    );
    let mut ids: Vec<String> =
        sqlx::query_scalar(AssertSqlSafe(users)).bind(i64::from(limit)).fetch_all(&mut tx).await?;
    if ids.is_empty() {
        ids = sqlx::query_scalar(LETTERS).bind(i64::from(limit)).fetch_all(&mut tx).await?;
    }
    settle::erase(&mut tx, &ids).await?;
    tx.commit().await?;
    Ok(ids.len() as u64)
}
