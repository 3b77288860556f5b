//! Owns taking letters in, with a statement per row: a body is no JSON. Part of a transaction that is the caller's.

use sqlx::SqliteConnection;

use super::transaction::{apply_letters, erase_letters};
use crate::store::{
    StoreError,
    plain::{OURSELVES, Plain},
};

const LETTER: &str = "INSERT INTO dead_letters (id, message_id, round, event_type, clerk_id, reason, detail, attempts, \
     first_seen, died_at, grp, search, origin, status, captured_round) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, 'open', ?3) \
     ON CONFLICT (message_id) DO UPDATE SET round = excluded.round, event_type = excluded.event_type, \
     clerk_id = excluded.clerk_id, reason = excluded.reason, detail = excluded.detail, \
     attempts = excluded.attempts, died_at = excluded.died_at, grp = excluded.grp, search = excluded.search, \
     origin = excluded.origin, status = 'open', captured_round = excluded.round, settled_at = NULL, outcome = NULL, erased = 0 \
     WHERE excluded.round > dead_letters.captured_round RETURNING id";

const CONTENTS: &str = "INSERT INTO dead_letter_contents (letter_id, headers, body) VALUES (?1, ?2, ?3) \
     ON CONFLICT (letter_id) DO UPDATE SET headers = excluded.headers, body = excluded.body";

/// Captures letters: one per message id. Returns the message ids of those that are new.
pub(super) async fn letters(
    tx: &mut SqliteConnection,
    letters: &[Plain<'_>],
    erases: bool,
) -> Result<Vec<String>, StoreError> {
    let mut new = Vec::new();
    for letter in letters {
        let died: Option<String> = sqlx::query_scalar(LETTER)
            .bind(letter.id)
            .bind(&letter.message_id)
            .bind(letter.round)
            .bind(&letter.event_type)
            .bind(&letter.clerk_id)
            .bind(&letter.reason)
            .bind(&letter.detail)
            .bind(letter.attempts)
            .bind(letter.first_seen)
            .bind(letter.died_at)
            .bind(&letter.group)
            .bind(&letter.search)
            .bind(letter.origin)
            .fetch_optional(&mut *tx)
            .await?;
        let Some(id) = died else { continue };
        sqlx::query(CONTENTS).bind(&id).bind(&letter.headers).bind(letter.body).execute(&mut *tx).await?;
        sqlx::query(
            "INSERT INTO dead_letter_history (letter_id, at, action, round, by, note) \
             VALUES (?1, ?2, 'died', ?3, ?4, ?5 || iif(?6 = '', '', ': ' || ?6))",
        )
        .bind(id)
        .bind(letter.died_at)
        .bind(letter.round)
        .bind(OURSELVES)
        .bind(&letter.reason)
        .bind(&letter.detail)
        .execute(&mut *tx)
        .await?;
        new.push(letter.message_id.clone());
    }
    let messages: Vec<&str> = letters.iter().map(|letter| letter.message_id.as_str()).collect();
    let applied: Vec<String> = sqlx::query_scalar(
        "SELECT message_id FROM inbox WHERE message_id IN (SELECT value FROM json_each(?1))",
    )
    .bind(sqlx::types::Json(messages))
    .fetch_all(&mut *tx)
    .await?;
    if applied.is_empty() {
        return Ok(new);
    }
    let users = apply_letters(tx, &applied).await?;
    if erases {
        erase_letters(tx, &users).await?;
    }
    Ok(new)
}
