//! Owns taking what is personal from users that were deleted while deletions were kept, and from their letters, in small
//! steps. Only where deletion erases.

use sqlx::{AssertSqlSafe, SqliteConnection};

use super::settle;
use crate::store::{StoreError, plain::ERASED_USER};

/// Letters that were settled while deletions were kept.
const LETTERS: &str = "SELECT DISTINCT clerk_id FROM (SELECT clerk_id FROM dead_letters AS l \
     WHERE settled_at IS NOT NULL AND NOT erased \
     AND (EXISTS (SELECT 1 FROM users AS u WHERE u.clerk_id = l.clerk_id AND u.erased) \
     OR EXISTS (SELECT 1 FROM former_clerk_ids AS f WHERE f.clerk_id = l.clerk_id)) LIMIT ?1)";

pub(super) async fn step(tx: &mut SqliteConnection, limit: u32) -> Result<u64, StoreError> {
    // Of those that are tried one at a time one that is refused must not be the first each time.
    let order = if limit == 1 { "random()" } else { "id" };
    let users = format!(
        "UPDATE users SET {ERASED_USER}, updated_at = {} WHERE id IN (SELECT id FROM users \
         WHERE deleted_at IS NOT NULL AND NOT erased ORDER BY {order} LIMIT ?1) RETURNING clerk_id",
        now!()
    );
    let mut ids: Vec<String> =
        sqlx::query_scalar(AssertSqlSafe(users)).bind(limit).fetch_all(&mut *tx).await?;
    if ids.is_empty() {
        ids = sqlx::query_scalar(LETTERS).bind(limit).fetch_all(&mut *tx).await?;
    }
    settle::erase(tx, &ids).await?;
    Ok(ids.len() as u64)
}
