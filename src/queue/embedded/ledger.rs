//! Owns the statements on consumers and messages but for claiming, each written for many rows at once. Called inside
//! the writer's transaction, which they neither begin nor commit. Never waits, never touches a subscription.

use serde::Serialize;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use super::super::{Depth, Ladder, Receipt, Source};
use crate::{message::Message, time::Millis};

pub(super) type Result<T> = std::result::Result<T, sqlx::Error>;

/// The most rows in one statement of several rows.
const ROWS_MAX: usize = 64;

/// Prolongs the leases of consumers that have them, and registers the others: those that are new (`None`), and those
/// whose leases ran out and went to others. Returns the id of each, in their order.
pub(super) async fn prolong(
    db: &mut SqliteConnection,
    consumers: &[(Option<i64>, Source)],
    alive_until: Millis,
) -> Result<Vec<i64>> {
    let known: Vec<i64> = consumers.iter().filter_map(|(id, _)| *id).collect();
    let kept = if known.is_empty() { Vec::new() } else { renew(db, &known, alive_until).await? };
    let mut ids = Vec::with_capacity(consumers.len());
    for (id, source) in consumers {
        ids.push(match id {
            Some(id) if kept.contains(id) => *id,
            _ => register(db, *source, alive_until).await?,
        });
    }
    Ok(ids)
}

/// Registers a consumer: whom leases belong to.
async fn register(db: &mut SqliteConnection, source: Source, alive_until: Millis) -> Result<i64> {
    sqlx::query("INSERT INTO consumers (queue, alive_until) VALUES (?1, ?2) RETURNING id")
        .bind(source.queue())
        .bind(alive_until)
        .fetch_one(db)
        .await?
        .try_get(0)
}

/// Prolongs all leases of these consumers. Returns those that still had them.
async fn renew(db: &mut SqliteConnection, consumers: &[i64], alive_until: Millis) -> Result<Vec<i64>> {
    sqlx::query_scalar(
        "UPDATE consumers SET alive_until = ?2 WHERE id IN (SELECT value FROM json_each(?1)) RETURNING id",
    )
    .bind(json(consumers)?)
    .bind(alive_until)
    .fetch_all(db)
    .await
}

/// Takes back what consumers hold that have not prolonged their leases.
pub(super) async fn expire(db: &mut SqliteConnection, now: Millis) -> Result<()> {
    sqlx::query(
        "UPDATE messages SET lease_owner = NULL
         WHERE lease_owner IN (SELECT id FROM consumers WHERE alive_until < ?1)",
    )
    .bind(now)
    .execute(&mut *db)
    .await?;
    sqlx::query("DELETE FROM consumers WHERE alive_until < ?1").bind(now).execute(db).await.map(drop)
}

/// Mends what a clock stamped that has been set back since: nothing is due later than it would be if it began to wait
/// now. Otherwise messages would lie until the clock has caught up.
pub(super) async fn mend_times(
    db: &mut SqliteConnection,
    ladder: &Ladder,
    now: Millis,
    alive_until: Millis,
) -> Result<()> {
    sqlx::query("UPDATE consumers SET alive_until = ?1 WHERE alive_until > ?1")
        .bind(alive_until)
        .execute(&mut *db)
        .await?;
    // What is leased may come back, and was due already.
    sqlx::query("UPDATE messages SET available_at = ?1 WHERE lease_owner IS NOT NULL AND available_at > ?1")
        .bind(now)
        .execute(&mut *db)
        .await?;
    let rungs = ladder.delays().map(|(name, delay)| (Some(name), super::work::millis(delay)));
    for (rung, delay) in rungs.chain([(None, 0)]) {
        sqlx::query(
            "UPDATE messages SET available_at = ?1
             WHERE queue = 'events' AND lease_owner IS NULL AND available_at > ?1 AND rung IS ?2",
        )
        .bind(now + delay + 1)
        .bind(rung)
        .execute(&mut *db)
        .await?;
    }
    Ok(())
}

/// Unregisters a consumer. What it holds becomes available again, its delivery counted.
pub(super) async fn unregister(db: &mut SqliteConnection, consumer: i64) -> Result<()> {
    sqlx::query("UPDATE messages SET lease_owner = NULL WHERE lease_owner = ?1")
        .bind(consumer)
        .execute(&mut *db)
        .await?;
    sqlx::query("DELETE FROM consumers WHERE id = ?1").bind(consumer).execute(db).await.map(drop)
}

/// Makes available again what nobody has seen: as if it had not been delivered.
pub(super) async fn give_back(db: &mut SqliteConnection, receipts: &[Receipt]) -> Result<()> {
    if receipts.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE messages SET lease_owner = NULL, deliveries = deliveries - 1 FROM json_each(?1) AS j
         WHERE messages.id = j.value ->> 0 AND leases = j.value ->> 1 AND lease_owner IS NOT NULL",
    )
    .bind(json(&receipts.iter().map(|receipt| (receipt.tag, receipt.generation)).collect::<Vec<_>>())?)
    .execute(db)
    .await
    .map(drop)
}

/// Makes available again what a consumer holds by the file and not by its own book: claims whose commit failed for us
/// and had succeeded all the same.
pub(super) async fn reconcile(db: &mut SqliteConnection, consumer: i64, held: &[Receipt]) -> Result<()> {
    sqlx::query(
        "UPDATE messages SET lease_owner = NULL, deliveries = deliveries - 1
         WHERE lease_owner = ?1
           AND (id, leases) NOT IN (SELECT value ->> 0, value ->> 1 FROM json_each(?2))",
    )
    .bind(consumer)
    .bind(json(&held.iter().map(|receipt| (receipt.tag, receipt.generation)).collect::<Vec<_>>())?)
    .execute(db)
    .await
    .map(drop)
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
                available_at) ",
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
                .push_bind(now);
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

/// When the first of all consumers loses its leases.
pub(super) async fn next_expiry(db: &mut SqliteConnection) -> Result<Option<Millis>> {
    sqlx::query_scalar("SELECT MIN(alive_until) FROM consumers").fetch_one(db).await
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
