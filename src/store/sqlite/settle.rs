//! Owns what taking effect does to a letter: it is applied, and of a deleted user it keeps nothing personal where
//! deletion erases. Part of transactions that are others'.

use sqlx::{SqliteConnection, types::Json};

use crate::store::{StoreError, plain::OURSELVES};

/// Sets the letters of these messages, which are in the inbox, to `applied`, with their outcome. Returns the Clerk ids that they are about.
pub(super) async fn applied(
    tx: &mut SqliteConnection,
    messages: &[impl AsRef<str>],
) -> Result<Vec<String>, StoreError> {
    let messages: Vec<&str> = messages.iter().map(AsRef::as_ref).collect();
    // A question of its own, because nearly always it is all that there is to do.
    let letters: Vec<(String, Option<String>)> = sqlx::query_as(
        "SELECT id, clerk_id FROM dead_letters \
         WHERE message_id IN (SELECT value FROM json_each(?1)) AND status <> 'applied'",
    )
    .bind(Json(messages))
    .fetch_all(&mut *tx)
    .await?;
    if letters.is_empty() {
        return Ok(Vec::new());
    }
    let (ids, users): (Vec<String>, Vec<Option<String>>) = letters.into_iter().unzip();
    mark(tx, ids).await?;
    Ok(users.into_iter().flatten().collect())
}

/// Sets these letters to `applied`, and writes it down.
async fn mark(tx: &mut SqliteConnection, ids: Vec<String>) -> Result<(), StoreError> {
    let ids = Json(ids);
    sqlx::query(concat!(
        "UPDATE dead_letters SET status = 'applied', settled_at = ",
        now!(),
        ", outcome = (SELECT outcome FROM inbox AS i WHERE i.message_id = dead_letters.message_id) WHERE id IN (SELECT value FROM json_each(?1))"
    ))
    .bind(&ids)
    .execute(&mut *tx)
    .await?;
    sqlx::query(concat!(
        "INSERT INTO dead_letter_history (letter_id, at, action, round, by) SELECT id, ",
        now!(),
        ", 'applied', round, ?2 FROM dead_letters WHERE id IN (SELECT value FROM json_each(?1))"
    ))
    .bind(&ids)
    .bind(OURSELVES)
    .execute(tx)
    .await?;
    Ok(())
}

/// Runs the statements above for no letter at all: they need the same tables and columns.
pub(super) async fn rehearse(tx: &mut SqliteConnection) -> Result<(), StoreError> {
    applied(tx, &[""]).await?;
    mark(tx, Vec::new()).await
}

/// Takes what is personal from the settled letters of those of these Clerk ids that are deleted. Only where
/// deletion erases.
pub(super) async fn erase(
    tx: &mut SqliteConnection,
    clerk_ids: &[impl AsRef<str>],
) -> Result<(), StoreError> {
    if clerk_ids.is_empty() {
        return Ok(());
    }
    let clerk_ids: Vec<&str> = clerk_ids.iter().map(AsRef::as_ref).collect();
    let letters: Vec<String> = sqlx::query_scalar(
        "UPDATE dead_letters SET detail = '', grp = reason, search = lower(message_id), erased = 1 \
         WHERE clerk_id IN (SELECT value FROM json_each(?1)) AND NOT erased AND status IN ('applied', 'discarded') \
         AND (EXISTS (SELECT 1 FROM users AS u WHERE u.clerk_id = dead_letters.clerk_id AND u.erased) \
         OR EXISTS (SELECT 1 FROM former_clerk_ids AS f WHERE f.clerk_id = dead_letters.clerk_id)) RETURNING id",
    )
    .bind(Json(clerk_ids))
    .fetch_all(&mut *tx)
    .await?;
    if letters.is_empty() {
        return Ok(());
    }
    let letters = Json(letters);
    for statement in [
        "UPDATE dead_letter_contents SET body = x'', headers = '{}' \
         WHERE letter_id IN (SELECT value FROM json_each(?1))",
        "UPDATE dead_letter_history SET note = NULL \
         WHERE letter_id IN (SELECT value FROM json_each(?1)) AND note IS NOT NULL",
    ] {
        sqlx::query(statement).bind(&letters).execute(&mut *tx).await?;
    }
    Ok(())
}
