//! Owns the write that tells whether the file takes a batch: one transaction that runs every statement of `apply` for no
//! row at all, then truly writes a row to the inbox and takes it out again. Promises that it leaves no row and fires no
//! trigger on users.

use sqlx::SqliteConnection;
use uuid::Uuid;

use super::{load, save, settle};
use crate::store::{StoreError, errors};

pub(super) async fn write(tx: &mut SqliteConnection, default_credits: i64) -> Result<(), StoreError> {
    let message = format!("headcount asks {}", Uuid::now_v7());
    let written = sqlx::query(concat!(
        "INSERT INTO inbox (message_id, event_type, outcome, received_at, processed_at) VALUES (?1, '', 'asking', ",
        now!(),
        ", ",
        now!(),
        ")"
    ))
    .bind(&message)
    .execute(&mut *tx)
    .await?;
    let removed =
        sqlx::query("DELETE FROM inbox WHERE message_id = ?1").bind(message).execute(&mut *tx).await?;
    if (written.rows_affected(), removed.rows_affected()) != (1, 1) {
        return Err(errors::hidden());
    }
    load::rows(tx, &[], &[], true).await?;
    load::remembered(tx, &[], &[]).await?;
    save::rehearse(tx, default_credits).await?;
    settle::rehearse(tx).await
}
