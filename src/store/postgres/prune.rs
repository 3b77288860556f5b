//! Owns what is kept for a while only: samples of rejected requests, and small steps of forgetting. Each step is one
//! statement in the order of an index, passes over what is locked, and holds nothing longer than that.

use std::time::Duration;

use sqlx::PgPool;
use uuid::Uuid;

use crate::store::{
    StoreError,
    letters::{REJECTIONS_MAX, Rejected, Retention},
    plain::PlainRejection,
};

pub(super) async fn record(pool: &PgPool, samples: &[Rejected]) -> Result<(), StoreError> {
    let samples: Vec<PlainRejection> = samples.iter().map(PlainRejection::of).collect();
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
    .execute(pool)
    .await?;
    Ok(())
}

const INBOX: &str = "DELETE FROM inbox WHERE message_id = ANY(ARRAY(SELECT message_id FROM inbox \
     WHERE processed_at < now() - make_interval(secs => $1) ORDER BY processed_at LIMIT $2 FOR UPDATE SKIP LOCKED))";

const IGNORED: &str = "DELETE FROM inbox WHERE message_id = ANY(ARRAY(SELECT message_id FROM inbox \
     WHERE outcome = 'ignored' AND processed_at < now() - make_interval(secs => $1) \
     ORDER BY processed_at LIMIT $2 FOR UPDATE SKIP LOCKED))";

/// With their history, which goes where they go.
const LETTERS: &str = "DELETE FROM dead_letters WHERE id = ANY(ARRAY(SELECT id FROM dead_letters \
     WHERE settled_at < now() - make_interval(secs => $1) ORDER BY settled_at LIMIT $2 FOR UPDATE SKIP LOCKED))";

const REJECTIONS: &str = "DELETE FROM rejections WHERE id = ANY(ARRAY(SELECT id FROM rejections \
     WHERE at < now() - make_interval(secs => $1) ORDER BY at, id LIMIT $2 FOR UPDATE SKIP LOCKED))";

const SURPLUS: &str = "DELETE FROM rejections WHERE id = ANY(ARRAY(SELECT id FROM rejections \
     ORDER BY at DESC, id DESC OFFSET $1 LIMIT $2 FOR UPDATE SKIP LOCKED))";

/// Puts one entry in the place of many of the ledger, whose sums stay what they are.
const TALLIES: &str = "WITH gone AS (DELETE FROM dead_letter_tallies WHERE ctid = ANY(ARRAY(\
     SELECT ctid FROM dead_letter_tallies LIMIT 20000 FOR UPDATE SKIP LOCKED)) RETURNING *) \
     INSERT INTO dead_letter_tallies SELECT grp, reason, event_type, status, sum(letters) FROM gone \
     GROUP BY grp, reason, event_type, status HAVING sum(letters) <> 0";

pub(super) async fn step(pool: &PgPool, retention: &Retention, limit: u32) -> Result<u64, StoreError> {
    let limit = i64::from(limit);
    let mut gone = 0;
    for (statement, age) in [
        (INBOX, retention.inbox),
        (IGNORED, retention.inbox.min(Retention::IGNORED)),
        (LETTERS, retention.dead),
        (REJECTIONS, retention.rejections),
    ] {
        gone += sqlx::query(statement).bind(seconds(age)).bind(limit).execute(pool).await?.rows_affected();
    }
    let surplus = sqlx::query(SURPLUS).bind(i64::from(REJECTIONS_MAX)).bind(limit);
    gone += surplus.execute(pool).await?.rows_affected();
    let long: bool = sqlx::query_scalar(
        "SELECT count(*) > 100 + 2 * count(DISTINCT (grp, reason, event_type, status)) FROM dead_letter_tallies",
    )
    .fetch_one(pool)
    .await?;
    if long {
        sqlx::query(TALLIES).execute(pool).await?;
    }
    Ok(gone)
}

/// As PostgreSQL takes it: of at most a thousand years.
fn seconds(age: Duration) -> f64 {
    age.min(Duration::from_secs(1_000 * 366 * 24 * 3_600)).as_secs_f64()
}

pub(super) async fn rejections(pool: &PgPool, limit: u32) -> Result<Vec<Rejected>, StoreError> {
    type Row = (Uuid, chrono::DateTime<chrono::Utc>, String, String, sqlx::types::Json<Vec<String>>);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, at, address, reason, headers FROM rejections ORDER BY at DESC, id DESC LIMIT $1",
    )
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await?;
    let sample = |(_, at, address, reason, headers): Row| Rejected {
        at: at.timestamp_millis(),
        address,
        reason,
        headers: headers.0,
    };
    Ok(rows.into_iter().map(sample).collect())
}
