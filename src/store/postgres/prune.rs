//! Owns what is kept for a while only: samples of rejected requests, and small steps of forgetting. Each step is one
//! statement in the order of an index, passes over what is locked, and holds nothing longer than that.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::connections::{Connections, PEOPLE};
use crate::store::{
    StoreError,
    clock::{self, Belief, Now},
    letters::{Pruned, REJECTIONS_MAX, Rejected, Retention},
    plain::{self, PlainRejection},
};

pub(super) async fn record(connections: &Connections, samples: &[Rejected]) -> Result<(), StoreError> {
    let samples: Vec<PlainRejection> = samples.iter().map(PlainRejection::of).collect();
    let mut tx = connections.begin(PEOPLE).await?;
    sqlx::query(
        "INSERT INTO rejections (id, at, address, reason, headers) SELECT id, at, address, reason, headers::jsonb \
         FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[], $5::text[]) \
         AS c (id, at, address, reason, headers)",
    )
    .bind(samples.iter().map(|sample| sample.id).collect::<Vec<_>>())
    .bind(samples.iter().map(|sample| sample.at).collect::<Vec<_>>())
    .bind(samples.iter().map(|sample| sample.address.as_str()).collect::<Vec<_>>())
    .bind(samples.iter().map(|sample| sample.reason.as_str()).collect::<Vec<_>>())
    .bind(samples.iter().map(|sample| sample.headers.as_str()).collect::<Vec<_>>())
    .execute(&mut tx)
    .await?;
    tx.commit().await
}

const INBOX: &str = "DELETE FROM inbox WHERE message_id = ANY(ARRAY(SELECT message_id FROM inbox \
     WHERE processed_at < $1 ORDER BY processed_at LIMIT $2 FOR UPDATE SKIP LOCKED))";

const IGNORED: &str = "DELETE FROM inbox WHERE message_id = ANY(ARRAY(SELECT message_id FROM inbox \
     WHERE outcome = 'ignored' AND processed_at < $1 \
     ORDER BY processed_at LIMIT $2 FOR UPDATE SKIP LOCKED))";

/// With their history, which goes where they go.
const LETTERS: &str = "DELETE FROM dead_letters WHERE id = ANY(ARRAY(SELECT id FROM dead_letters \
     WHERE settled_at < $1 ORDER BY settled_at LIMIT $2 FOR UPDATE SKIP LOCKED))";

const REJECTIONS: &str = "DELETE FROM rejections WHERE id = ANY(ARRAY(SELECT id FROM rejections \
     WHERE at < $1 ORDER BY at, id LIMIT $2 FOR UPDATE SKIP LOCKED))";

const SURPLUS: &str = "DELETE FROM rejections WHERE id = ANY(ARRAY(SELECT id FROM rejections \
     ORDER BY at DESC, id DESC OFFSET $1 LIMIT $2 FOR UPDATE SKIP LOCKED))";

/// Puts one entry in the place of many of the ledger, whose sums stay what they are.
const TALLIES: &str = "WITH gone AS (DELETE FROM dead_letter_tallies WHERE ctid = ANY(ARRAY(\
     SELECT ctid FROM dead_letter_tallies LIMIT 20000 FOR UPDATE SKIP LOCKED)) RETURNING *) \
     INSERT INTO dead_letter_tallies SELECT grp, reason, event_type, status, sum(letters) FROM gone \
     GROUP BY grp, reason, event_type, status HAVING sum(letters) <> 0";

pub(super) async fn step(
    connections: &Connections,
    retention: &Retention,
    limit: u32,
) -> Result<Pruned, StoreError> {
    let limit = i64::from(limit);
    let now = time(connections).await?;
    let mut gone = 0;
    for (statement, age) in [
        (INBOX, retention.inbox),
        (IGNORED, retention.inbox.min(Retention::IGNORED)),
        (LETTERS, retention.dead),
        (REJECTIONS, retention.rejections),
    ] {
        let before = plain::earlier(now.time, age);
        let mut tx = connections.begin(PEOPLE).await?;
        gone += sqlx::query(statement).bind(before).bind(limit).execute(&mut tx).await?.rows_affected();
        tx.commit().await?;
    }
    let mut tx = connections.begin(PEOPLE).await?;
    let surplus = sqlx::query(SURPLUS).bind(i64::from(REJECTIONS_MAX)).bind(limit);
    gone += surplus.execute(&mut tx).await?.rows_affected();
    tx.commit().await?;
    let mut tx = connections.begin(PEOPLE).await?;
    let long: bool = sqlx::query_scalar(
        "SELECT coalesce(sum(entries) > 100 + 2 * count(*) OR bool_or(letters = 0), false) FROM \
         (SELECT count(*) AS entries, sum(letters) AS letters FROM dead_letter_tallies \
         GROUP BY grp, reason, event_type, status) AS kinds",
    )
    .fetch_one(&mut tx)
    .await?;
    if long {
        sqlx::query(TALLIES).execute(&mut tx).await?;
    }
    tx.commit().await?;
    Ok(Pruned { rows: gone, clock_ahead: now.clock_ahead() })
}

/// The time that retention goes by, which is written down for the next time.
async fn time(connections: &Connections) -> Result<Now, StoreError> {
    let mut tx = connections.begin(PEOPLE).await?;
    type Read = (DateTime<Utc>, Option<DateTime<Utc>>, Option<DateTime<Utc>>);
    let (clock, time, written_at): Read = sqlx::query_as(
        "SELECT clock_timestamp(), time, written_at FROM (SELECT) AS one LEFT JOIN retention_clock ON true LIMIT 1",
    )
    .fetch_one(&mut tx)
    .await?;
    let last = time.zip(written_at).map(|(time, written_at)| Belief {
        time: time.timestamp_millis(),
        written_at: written_at.timestamp_millis(),
    });
    let now = clock::believe(clock.timestamp_millis(), last);
    if let Some(news) = now.news {
        // Of processes that write at once, all write the same.
        sqlx::query(
            "WITH known AS (UPDATE retention_clock SET time = $1, written_at = $2 RETURNING 1) \
             INSERT INTO retention_clock (time, written_at) SELECT $1, $2 WHERE NOT EXISTS (SELECT FROM known)",
        )
        .bind(plain::time_in_range(news.time))
        .bind(plain::time_in_range(news.written_at))
        .execute(&mut tx)
        .await?;
    }
    tx.commit().await?;
    Ok(now)
}

pub(super) async fn rejections(connections: &Connections, limit: u32) -> Result<Vec<Rejected>, StoreError> {
    type Row = (Uuid, DateTime<Utc>, String, String, sqlx::types::Json<Vec<String>>);
    let mut tx = connections.begin(PEOPLE).await?;
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, at, address, reason, headers FROM rejections ORDER BY at DESC, id DESC LIMIT $1",
    )
    .bind(i64::from(limit))
    .fetch_all(&mut tx)
    .await?;
    tx.commit().await?;
    let sample = |(_, at, address, reason, headers): Row| Rejected {
        at: at.timestamp_millis(),
        address,
        reason,
        headers: headers.0,
    };
    Ok(rows.into_iter().map(sample).collect())
}
