//! Owns claiming: which waiting messages go to which consumer, and how a row becomes a delivery. Called inside the
//! writer's transaction, which it neither begins nor commits. Never settles anything but crash loops.

use std::collections::BTreeMap;

use bytes::Bytes;
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{
    super::{DELIVERY_LIMIT, DETAIL_MAX, Death, Delivery, Reason, Receipt, Source, headers},
    ledger::{Result, json},
    samples,
};
use crate::{
    message::{EVENT_TYPE_MAX, Message, MessageId},
    text::clean,
    time::Millis,
};

/// What a claim brought.
#[derive(Debug, Default)]
pub(super) struct Claim {
    /// Leased to the consumer.
    pub(super) deliveries: Vec<Delivery>,
    /// Buried, because they came back unsettled too often.
    pub(super) crash_loops: Vec<MessageId>,
    /// Whether there may be more to claim at once.
    pub(super) more: bool,
}

/// Leases the next messages of a queue to a consumer: at most `rows`, and at most `bytes` of bodies but for the first.
pub(super) async fn claim(
    db: &mut SqliteConnection,
    source: Source,
    consumer: i64,
    (rows, bytes): (usize, usize),
    now: Millis,
) -> Result<Claim> {
    let limit = i64::try_from(rows).unwrap_or(i64::MAX);
    let candidates = match source {
        Source::Events => sqlx::query_as(
            "SELECT id, size, deliveries, message_id FROM messages
             WHERE queue = 'events' AND lease_owner IS NULL AND available_at <= ?1
             ORDER BY available_at, id LIMIT ?2",
        )
        .bind(now)
        .bind(limit),
        // Whatever the clock shows, and however often they came back: nothing but settling takes the dead away.
        Source::Dead => sqlx::query_as(
            "SELECT id, size, 0, message_id FROM messages WHERE queue = 'dead' AND lease_owner IS NULL
             ORDER BY died_at, id LIMIT ?1",
        )
        .bind(limit),
        Source::Rejections => return samples::claim(db, consumer, rows).await,
    };
    let candidates: Vec<(i64, i64, u32, String)> = candidates.fetch_all(&mut *db).await?;
    let mut claim = Claim { more: candidates.len() == rows, ..Claim::default() };
    let (mut taken, mut looping, mut left) = (Vec::new(), Vec::new(), bytes);
    for (id, size, deliveries, message_id) in candidates {
        let size = usize::try_from(size).unwrap_or(0);
        if deliveries > DELIVERY_LIMIT {
            looping.push((
                id,
                format!("it was delivered {deliveries} times and never settled: it kills its workers"),
            ));
            claim.crash_loops.push(stored_id(&message_id, b""));
        } else if taken.is_empty() || size <= left {
            left = left.saturating_sub(size);
            taken.push(id);
        } else {
            claim.more = false;
            break;
        }
    }
    if !looping.is_empty() {
        sqlx::query(
            "UPDATE messages SET queue = 'dead', deliveries = 0, rung = NULL, reason = ?2, detail = j.value ->> 1,
                died_at = ?3
             FROM json_each(?1) AS j WHERE messages.id = j.value ->> 0",
        )
        .bind(json(&looping)?)
        .bind(Reason::CrashLoop.as_str())
        .bind(now)
        .execute(&mut *db)
        .await?;
    }
    if taken.is_empty() {
        return Ok(claim);
    }
    let taken = json(&taken)?;
    sqlx::query(
        "UPDATE messages SET lease_owner = ?2, leases = leases + 1, deliveries = deliveries + 1, rung = NULL
         WHERE id IN (SELECT value FROM json_each(?1))",
    )
    .bind(&taken)
    .bind(consumer)
    .execute(&mut *db)
    .await?;
    let rows = sqlx::query(
        "SELECT m.id, leases, deliveries, message_id, event_type, received_at, attempt, waits, round, traceparent, body,
            reason, detail, died_at
         FROM json_each(?1) AS j CROSS JOIN messages AS m ON m.id = j.value JOIN bodies AS b ON b.id = m.id
         ORDER BY j.key",
    )
    .bind(&taken)
    .fetch_all(db)
    .await?;
    claim.deliveries = rows.iter().map(|row| delivery(row, source)).collect::<Result<_>>()?;
    Ok(claim)
}

fn delivery(row: &SqliteRow, source: Source) -> Result<Delivery> {
    let body = Bytes::from(row.try_get::<Vec<u8>, _>(10)?);
    let message = Message {
        id: stored_id(row.try_get(3)?, &body),
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
    let traceparent = message.traceparent.iter().map(|trace| (headers::TRACEPARENT, trace.clone()));
    let headers: BTreeMap<String, String> =
        shown.into_iter().chain(traceparent).map(|(name, value)| (name.to_owned(), value)).collect();
    Ok(Death { reason, detail, died_at, headers, counted: true })
}

/// The id as it was published; one made from the body where another hand wrote one that is none.
fn stored_id(text: &str, body: &[u8]) -> MessageId {
    MessageId::parse(text).unwrap_or_else(|| MessageId::of_body(body))
}

/// When something that nobody holds can next be claimed from any of these queues; 0 where it waits for no time.
pub(super) async fn next_due(db: &mut SqliteConnection, sources: &[Source]) -> Result<Option<Millis>> {
    let mut next: Option<Millis> = None;
    for source in sources {
        let due: Option<Millis> = sqlx::query_scalar(match source {
            Source::Events => "SELECT MIN(available_at) FROM messages WHERE queue = 'events' AND lease_owner IS NULL",
            Source::Dead => "SELECT MIN(0) FROM (SELECT 1 FROM messages WHERE queue = 'dead' AND lease_owner IS NULL LIMIT 1)",
            Source::Rejections => samples::ANY,
        })
        .fetch_one(&mut *db)
        .await?;
        next = [next, due].into_iter().flatten().min();
    }
    Ok(next)
}
