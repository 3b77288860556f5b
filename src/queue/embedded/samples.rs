//! Owns the statements on samples of rejected requests. They are lossy, so their leases are plain: a late settlement
//! may take away what somebody else has read by now. Called inside the writer's transaction. Never touches a message.

use bytes::Bytes;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    super::{Delivery, Receipt, SAMPLES_MAX},
    claims::Claim,
    ledger::{Result, json},
};
use crate::{
    message::{Message, MessageId},
    time::Millis,
};

/// 0 where there is one that no living consumer holds, else null.
pub(super) const ANY: &str = "SELECT MIN(0) FROM (SELECT 1 FROM rejections WHERE lease_owner NOT IN (SELECT id FROM consumers) LIMIT 1)";

/// A sample on its way into the file.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) body: Bytes,
    /// Its share of what may wait in memory; freed with it.
    pub(super) _share: OwnedSemaphorePermit,
}

/// Takes samples in, and drops the oldest beyond the bound.
pub(super) async fn append(db: &mut SqliteConnection, samples: &[Sample], now: Millis) -> Result<()> {
    if samples.is_empty() {
        return Ok(());
    }
    let mut insert = QueryBuilder::<Sqlite>::new("INSERT INTO rejections (received_at, body) ");
    insert.push_values(samples, |mut row, sample| {
        row.push_bind(now).push_bind(sample.body.to_vec());
    });
    insert.build().execute(&mut *db).await?;
    sqlx::query(
        "DELETE FROM rejections WHERE id <= (SELECT id FROM rejections ORDER BY id DESC LIMIT 1 OFFSET ?1)",
    )
    .bind(SAMPLES_MAX)
    .execute(db)
    .await
    .map(drop)
}

/// Leases the oldest samples to a consumer.
pub(super) async fn claim(db: &mut SqliteConnection, consumer: i64, rows: usize) -> Result<Claim> {
    let rows = i64::try_from(rows).unwrap_or(i64::MAX);
    let taken = sqlx::query(
        "UPDATE rejections SET lease_owner = ?1
         WHERE id IN (SELECT id FROM rejections WHERE lease_owner NOT IN (SELECT id FROM consumers) ORDER BY id LIMIT ?2)
         RETURNING id, received_at, body",
    )
    .bind(consumer)
    .bind(rows)
    .fetch_all(db)
    .await?;
    let mut deliveries = taken.iter().map(delivery).collect::<Result<Vec<_>>>()?;
    deliveries.sort_by_key(|delivery| delivery.receipt);
    let more = i64::try_from(deliveries.len()).is_ok_and(|count| count == rows);
    Ok(Claim { deliveries, more, ..Claim::default() })
}

fn delivery(row: &sqlx::sqlite::SqliteRow) -> Result<Delivery> {
    let body = Bytes::from(row.try_get::<Vec<u8>, _>(2)?);
    Ok(Delivery {
        message: Message {
            id: MessageId::of_body(&body),
            event_type: "unknown".into(),
            received_at: row.try_get(1)?,
            attempt: 0,
            waits: 0,
            round: 0,
            traceparent: None,
            body,
        },
        earlier: 0,
        // Leases of messages count from 1: this fits none of them. What a consumer gives back is free when it is gone.
        receipt: Receipt { generation: 0, tag: row.try_get(0)? },
        death: None,
    })
}

/// Removes what was read.
pub(super) async fn settle(db: &mut SqliteConnection, ids: &[u64]) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query("DELETE FROM rejections WHERE id IN (SELECT value FROM json_each(?1))")
        .bind(json(ids)?)
        .execute(db)
        .await
        .map(drop)
}

/// Frees what a consumer holds by the file and not by its own book.
pub(super) async fn reconcile(db: &mut SqliteConnection, consumer: i64, held: &[Receipt]) -> Result<()> {
    sqlx::query(
        "UPDATE rejections SET lease_owner = 0
         WHERE lease_owner = ?1 AND id NOT IN (SELECT value FROM json_each(?2))",
    )
    .bind(consumer)
    .bind(json(&held.iter().map(|receipt| receipt.tag).collect::<Vec<_>>())?)
    .execute(db)
    .await
    .map(drop)
}
