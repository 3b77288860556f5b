//! Owns the statements on messages and samples apart from leasing, each written for many rows at once, and how a row
//! becomes a delivery. Called inside the writer's transaction, which they neither begin nor commit. Never waits.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection, sqlite::SqliteRow};

use super::{
    super::{DETAIL_MAX, Death, Delivery, Depth, Ladder, Receipt, SAMPLES_MAX, Source, burial::headers},
    leases::Leased,
    work::Sample,
};
use crate::{
    message::{EVENT_TYPE_MAX, Message, MessageId, Origin},
    text::clean,
    time::Millis,
};

pub(super) type Result<T> = std::result::Result<T, sqlx::Error>;

/// The most rows in one statement of several rows.
const ROWS_MAX: usize = 64;

/// Appends messages to the events queue, in this order.
pub(super) async fn append(db: &mut SqliteConnection, messages: &[&Message], now: Millis) -> Result<()> {
    if messages.is_empty() {
        return Ok(());
    }
    let last: Option<i64> = sqlx::query_scalar("SELECT seq FROM sqlite_sequence WHERE name = 'messages'")
        .fetch_optional(&mut *db)
        .await?;
    let mut rows: Vec<(i64, &Message)> = (last.unwrap_or(0) + 1..).zip(messages.iter().copied()).collect();
    while !rows.is_empty() {
        // Powers of two, so that a handful of statements is prepared once and serves all numbers of rows.
        let count = (1 << rows.len().ilog2()).min(ROWS_MAX);
        let chunk: Vec<_> = rows.drain(..count).collect();
        let mut insert = QueryBuilder::<Sqlite>::new(
            "INSERT INTO messages (id, message_id, event_type, received_at, attempt, waits, round, traceparent, size,
                available_at, origin) ",
        );
        insert.push_values(&chunk, |mut row, (id, message)| {
            row.push_bind(*id)
                .push_bind(message.id.as_str().to_owned())
                .push_bind(message.event_type.clone())
                .push_bind(message.received_at)
                .push_bind(message.attempt)
                .push_bind(message.waits)
                .push_bind(message.round)
                .push_bind(message.traceparent.clone())
                .push_bind(i64::try_from(message.body.len()).unwrap_or(i64::MAX))
                .push_bind(now)
                .push_bind(message.origin.as_str());
        });
        insert.build().execute(&mut *db).await?;
        let mut insert = QueryBuilder::<Sqlite>::new("INSERT INTO bodies (id, body) ");
        insert.push_values(&chunk, |mut row, (id, message)| {
            row.push_bind(*id).push_bind(message.body.to_vec());
        });
        insert.build().execute(&mut *db).await?;
    }
    Ok(())
}

pub(super) fn delivery(row: &SqliteRow, source: Source) -> Result<Delivery> {
    let body = Bytes::from(row.try_get::<Vec<u8>, _>(10)?);
    let message = Message {
        id: stored_id(row.try_get(3)?, &body),
        origin: Origin::of(row.try_get(14)?),
        event_type: row.try_get(4)?,
        received_at: row.try_get(5)?,
        attempt: row.try_get(6)?,
        waits: row.try_get(7)?,
        round: row.try_get(8)?,
        traceparent: row.try_get(9)?,
        body,
    };
    let death = match source {
        Source::Dead => Some(Box::new(death(row, &message)?)),
        Source::Events | Source::Rejections => None,
    };
    Ok(Delivery {
        message,
        earlier: row.try_get::<u32, _>(2)?.saturating_sub(1),
        receipt: Receipt { generation: row.try_get(1)?, tag: row.try_get(0)? },
        death,
    })
}

/// Why it died, with the headers that it would have on a broker.
fn death(row: &SqliteRow, message: &Message) -> Result<Death> {
    let text = |column| Ok::<_, sqlx::Error>(row.try_get::<Option<String>, _>(column)?.unwrap_or_default());
    let (reason, detail) = (clean(&text(11)?, DETAIL_MAX), clean(&text(12)?, DETAIL_MAX));
    let died_at =
        row.try_get::<Option<Millis>, _>(13)?.map_or(message.received_at, |at| at.max(message.received_at));
    let shown = [
        (headers::EVENT_TYPE, clean(&message.event_type, EVENT_TYPE_MAX)),
        (headers::RECEIVED_AT, message.received_at.to_string()),
        (headers::ATTEMPT, message.attempt.to_string()),
        (headers::WAITS, message.waits.to_string()),
        (headers::ROUND, message.round.to_string()),
        (headers::REASON, reason.clone()),
        (headers::DETAIL, detail.clone()),
        (headers::DIED_AT, died_at.to_string()),
    ];
    let origin =
        (message.origin != Origin::Webhook).then(|| (headers::ORIGIN, message.origin.as_str().into()));
    let traceparent = message.traceparent.iter().map(|trace| (headers::TRACEPARENT, trace.clone()));
    let headers: BTreeMap<String, String> = shown
        .into_iter()
        .chain(origin)
        .chain(traceparent)
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    Ok(Death { reason, detail, died_at, headers, counted: true })
}

/// The id as it was published; one made from the body where another hand wrote one that is none.
pub(super) fn stored_id(text: &str, body: &[u8]) -> MessageId {
    MessageId::parse(text).unwrap_or_else(|| MessageId::of_body(body))
}

/// What shall become of leased messages. A receipt of a lease that somebody else has taken over settles nothing, nor
/// one of a message that is in another queue by now. Each can run twice: a commit that failed for us may have succeeded.
#[derive(Debug, Default)]
pub(super) struct Settlements {
    /// (id, leases, queue)
    pub(super) done: Vec<(u64, u64, &'static str)>,
    /// (id, leases, queue, available_at, attempt, waits, rung)
    pub(super) retry: Vec<(u64, u64, &'static str, Millis, u32, u32, String)>,
    /// (id, leases, queue, reason, detail)
    pub(super) bury: Vec<(u64, u64, &'static str, &'static str, String)>,
    /// Samples, by id.
    pub(super) samples: Vec<u64>,
}

/// Settles.
pub(super) async fn settle(db: &mut SqliteConnection, settlements: &Settlements, now: Millis) -> Result<()> {
    if !settlements.done.is_empty() {
        sqlx::query(
            "DELETE FROM messages WHERE id IN (
                SELECT m.id FROM json_each(?1) AS j CROSS JOIN messages AS m ON m.id = j.value ->> 0
                WHERE m.leases = j.value ->> 1 AND m.queue = j.value ->> 2)",
        )
        .bind(json(&settlements.done)?)
        .execute(&mut *db)
        .await?;
    }
    if !settlements.retry.is_empty() {
        sqlx::query(
            "UPDATE messages SET queue = 'events', lease_owner = NULL, deliveries = 0, available_at = j.value ->> 3,
                attempt = j.value ->> 4, waits = j.value ->> 5, rung = j.value ->> 6,
                reason = NULL, detail = NULL, died_at = NULL
             FROM json_each(?1) AS j
             WHERE messages.id = j.value ->> 0 AND leases = j.value ->> 1 AND queue = j.value ->> 2",
        )
        .bind(json(&settlements.retry)?)
        .execute(&mut *db)
        .await?;
    }
    if !settlements.bury.is_empty() {
        sqlx::query(
            "UPDATE messages SET queue = 'dead', lease_owner = NULL, deliveries = 0, rung = NULL,
                reason = j.value ->> 3, detail = j.value ->> 4, died_at = ?2
             FROM json_each(?1) AS j
             WHERE messages.id = j.value ->> 0 AND leases = j.value ->> 1 AND queue = j.value ->> 2",
        )
        .bind(json(&settlements.bury)?)
        .bind(now)
        .execute(&mut *db)
        .await?;
    }
    Ok(())
}

/// How many messages wait, by queue: one statement, so that all counts are of one moment.
pub(super) async fn depths(db: &mut SqliteConnection, ladder: &Ladder, now: Millis) -> Result<Vec<Depth>> {
    let counts: Vec<(String, u64)> = sqlx::query_as(
        "SELECT 'waiting', COUNT(*) FROM messages WHERE queue = 'events' AND lease_owner IS NULL
         UNION ALL SELECT 'leased', COUNT(*) FROM messages WHERE queue = 'events' AND lease_owner IS NOT NULL
         UNION ALL SELECT 'dead', COUNT(*) FROM messages WHERE queue = 'dead'
         UNION ALL SELECT 'rejections', COUNT(*) FROM rejections
         UNION ALL SELECT 'consumers.' || queue, COUNT(*) FROM consumers WHERE alive_until >= ?1 GROUP BY queue
         UNION ALL SELECT 'retry.' || rung, COUNT(*) FROM messages
            WHERE queue = 'events' AND lease_owner IS NULL AND available_at > ?1 AND rung IS NOT NULL GROUP BY rung",
    )
    .bind(now)
    .fetch_all(db)
    .await?;
    let count = |name: &str| counts.iter().find(|(known, _)| known == name).map_or(0, |(_, count)| *count);
    let mut retries: Vec<String> = ladder.delays().map(|(name, _)| format!("retry.{name}")).collect();
    // Rungs of a ladder of before are not forgotten while they hold something.
    for (name, _) in counts.iter().filter(|(name, _)| name.starts_with("retry.")) {
        if !retries.contains(name) {
            retries.push(name.clone());
        }
    }
    let delayed: u64 = retries.iter().map(|name| count(name)).sum();
    let depth = |queue: &str, messages: u64| Depth {
        queue: queue.to_owned(),
        messages,
        consumers: u32::try_from(count(&format!("consumers.{queue}"))).unwrap_or(u32::MAX),
    };
    let mut depths = vec![depth("events", (count("waiting") + count("leased")).saturating_sub(delayed))];
    depths.extend(retries.iter().map(|name| depth(name, count(name))));
    depths.extend(["dead", "rejections"].map(|name| depth(name, count(name))));
    Ok(depths)
}

pub(super) fn json<T: Serialize + ?Sized>(rows: &T) -> Result<String> {
    serde_json::to_string(rows).map_err(|error| sqlx::Error::Encode(error.into()))
}

// Samples are lossy, so their leases are plain: a late settlement may take away what another consumer has read by now.

/// 0 where there is one that no living consumer holds, else null.
pub(super) const ANY_SAMPLE: &str = "SELECT MIN(0) FROM (SELECT 1 FROM rejections WHERE lease_owner NOT IN (SELECT id FROM consumers) LIMIT 1)";

/// Takes samples in, and drops the oldest beyond the bound.
pub(super) async fn append_samples(db: &mut SqliteConnection, samples: &[Sample], now: Millis) -> Result<()> {
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
pub(super) async fn lease_samples(db: &mut SqliteConnection, consumer: i64, rows: usize) -> Result<Leased> {
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
    let mut deliveries = taken.iter().map(sample).collect::<Result<Vec<_>>>()?;
    deliveries.sort_by_key(|delivery| delivery.receipt);
    let more = i64::try_from(deliveries.len()).is_ok_and(|count| count == rows);
    Ok(Leased { deliveries, more, ..Leased::default() })
}

fn sample(row: &SqliteRow) -> Result<Delivery> {
    let body = Bytes::from(row.try_get::<Vec<u8>, _>(2)?);
    Ok(Delivery {
        message: Message {
            id: MessageId::of_body(&body),
            origin: Origin::Webhook,
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
pub(super) async fn settle_samples(db: &mut SqliteConnection, ids: &[u64]) -> Result<()> {
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
pub(super) async fn reconcile_samples(
    db: &mut SqliteConnection,
    consumer: i64,
    held: &[Receipt],
) -> Result<()> {
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
