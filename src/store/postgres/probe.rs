//! Owns the write that tells whether the database takes a batch: one short transaction that asks for the plan of every
//! statement of `apply`, then truly writes a row to the inbox, takes it out again, and commits.
//!
//! Promises that it leaves no row, fires no trigger of the application's on users, waits for a lock for a second at most,
//! and that any number of processes may run it at once.

use uuid::Uuid;

use super::{PostgresStore, load, save, settle};
use crate::{
    rules::users::OnDelete,
    store::{StoreError, errors},
};

const SETTINGS: &str = "SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '3s'";

pub(super) async fn write(store: &PostgresStore) -> Result<(), StoreError> {
    let mut tx = store.connections.begin(SETTINGS).await?;
    // Of its own, so that two that ask at once never meet.
    let message = format!("headcount asks {}", Uuid::now_v7());
    // First, because it says best that the server is a standby or read-only.
    let written = sqlx::query(
        "INSERT INTO inbox (message_id, event_type, outcome, received_at, processed_at) \
         VALUES ($1, '', 'asking', now(), now())",
    )
    .bind(&message)
    .execute(&mut tx)
    .await?;
    let removed =
        sqlx::query("DELETE FROM inbox WHERE message_id = $1").bind(message).execute(&mut tx).await?;
    // A policy or a rule of the application's that hides rows.
    if (written.rows_affected(), removed.rows_affected()) != (1, 1) {
        return Err(errors::hidden());
    }
    load::rehearse(&mut tx).await?;
    save::rehearse(&mut tx, store.default_credits).await?;
    settle::rehearse(&mut tx, store.policy.on_delete == OnDelete::Erase).await?;
    // A disk that is full or a log that cannot be flushed shows itself here at the latest.
    tx.commit().await?;
    Ok(())
}
