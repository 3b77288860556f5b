//! Owns what is kept for a while only in PostgreSQL: samples of rejected requests, and small steps of forgetting. Each
//! step is one statement in the order of an index, passes over what is locked, and holds nothing longer than that.

use std::{collections::BTreeMap, sync::LazyLock, time::Duration};

use async_trait::async_trait;

use super::{PostgresStore, connections::Connections, connections::PEOPLE};
use crate::{
    message::Rejected,
    store::{
        StoreError,
        clock::{self, Belief, Now},
        columns::At,
        housekeeping::{Housekeeping, Pruned, REJECTIONS_MAX, RUNS_KEPT, Rejections, Retention},
        letters::Status,
        plain::{self, PlainRejection},
        questions, retry, unit,
    },
};

const RECORD: &str = "INSERT INTO rejections (id, at, address, reason, headers) \
     SELECT id, at, address, reason, headers::jsonb \
     FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[], $5::text[]) \
     AS c (id, at, address, reason, headers)";

const NEWEST: &str = "SELECT at, address, reason, headers FROM rejections ORDER BY at DESC, id DESC LIMIT $1";

#[async_trait]
impl Rejections for PostgresStore {
    async fn record(&self, samples: &[Rejected]) -> Result<(), StoreError> {
        let samples: Vec<PlainRejection> = samples.iter().map(PlainRejection::of).collect();
        let mut tx = self.connections.begin(PEOPLE).await?;
        sqlx::query(RECORD)
            .bind(samples.iter().map(|sample| sample.id).collect::<Vec<_>>())
            .bind(samples.iter().map(|sample| sample.at).collect::<Vec<_>>())
            .bind(samples.iter().map(|sample| sample.address.as_str()).collect::<Vec<_>>())
            .bind(samples.iter().map(|sample| sample.reason.as_str()).collect::<Vec<_>>())
            .bind(samples.iter().map(|sample| sample.headers.as_str()).collect::<Vec<_>>())
            .execute(&mut tx)
            .await?;
        tx.commit().await
    }

    async fn newest(&self, limit: u32) -> Result<Vec<Rejected>, StoreError> {
        let mut tx = self.connections.begin(PEOPLE).await?;
        let samples = sqlx::query_as(NEWEST).bind(i64::from(limit)).fetch_all(&mut tx).await?;
        tx.commit().await?;
        Ok(samples)
    }
}

#[async_trait]
impl Housekeeping for PostgresStore {
    async fn prune(&self, retention: &Retention, limit: u32) -> Result<Pruned, StoreError> {
        retry::again(|| step(&self.connections, retention, limit)).await
    }

    async fn erase_kept(&self, limit: u32) -> Result<u64, StoreError> {
        unit::erase_kept(self, limit).await
    }

    async fn statuses(&self) -> Result<BTreeMap<Status, u64>, StoreError> {
        questions::statuses(self).await
    }
}

const INBOX: &str = "DELETE FROM inbox WHERE message_id = ANY(ARRAY(SELECT message_id FROM inbox \
     WHERE processed_at < $1 ORDER BY processed_at LIMIT $2 FOR UPDATE SKIP LOCKED))";

const IGNORED: &str = "DELETE FROM inbox WHERE message_id = ANY(ARRAY(SELECT message_id FROM inbox \
     WHERE outcome = 'ignored' AND processed_at < $1 \
     ORDER BY processed_at LIMIT $2 FOR UPDATE SKIP LOCKED))";

/// With their history, which goes where they go.
const LETTERS: &str = "DELETE FROM dead_letters WHERE id = ANY(ARRAY(SELECT id FROM dead_letters \
     WHERE settled_at < $1 ORDER BY settled_at LIMIT $2 FOR UPDATE SKIP LOCKED))";

/// What people did. What has not ended is kept.
const OPERATIONS: &str = "DELETE FROM operations WHERE id = ANY(ARRAY(SELECT id FROM operations \
     WHERE ended_at < $1 ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED))";

const REJECTIONS: &str = "DELETE FROM rejections WHERE id = ANY(ARRAY(SELECT id FROM rejections \
     WHERE at < $1 ORDER BY at, id LIMIT $2 FOR UPDATE SKIP LOCKED))";

const SESSIONS: &str = "DELETE FROM sessions WHERE id = ANY(ARRAY(SELECT id FROM sessions \
     WHERE ended_at < $1 ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED))";

/// That nobody can claim any more.
const VISITORS: &str = "DELETE FROM anonymous_visitors WHERE id = ANY(ARRAY(SELECT id FROM anonymous_visitors \
     WHERE claimed_by IS NULL AND expires_at < $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED))";

/// Of processes that are gone.
const PROCESSES: &str = "DELETE FROM processes WHERE id = ANY(ARRAY(SELECT id FROM processes \
     WHERE expires_at < $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED))";

const SURPLUS: &str = "DELETE FROM rejections WHERE id = ANY(ARRAY(SELECT id FROM rejections \
     ORDER BY at DESC, id DESC OFFSET $1 LIMIT $2 FOR UPDATE SKIP LOCKED))";

/// Of runs that ended, or that nobody has gone on with for long. What they had seen is of no use any more.
const SYNC_IDS: &str = "DELETE FROM sync_ids WHERE ctid = ANY(ARRAY(SELECT ctid FROM sync_ids \
     WHERE run = ANY(ARRAY(SELECT id FROM sync_runs WHERE finished_at IS NOT NULL OR updated_at < $1)) \
     LIMIT $2 FOR UPDATE SKIP LOCKED))";

/// Only those of whose users nothing is left: by their runs these are found.
static SYNC_RUNS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "DELETE FROM sync_runs WHERE id = ANY(ARRAY(SELECT id FROM sync_runs AS r WHERE started_at < $1 \
         AND id NOT IN (SELECT id FROM sync_runs ORDER BY started_at DESC, id DESC LIMIT {RUNS_KEPT}) \
         AND NOT EXISTS (SELECT FROM sync_ids WHERE run = r.id) \
         ORDER BY started_at, id LIMIT $2 FOR UPDATE SKIP LOCKED))"
    )
});

/// Puts one tally in the place of many, whose sums stay what they are.
const TALLIES: &str = "WITH gone AS (DELETE FROM dead_letter_tallies WHERE ctid = ANY(ARRAY(\
     SELECT ctid FROM dead_letter_tallies LIMIT 20000 FOR UPDATE SKIP LOCKED)) RETURNING *) \
     INSERT INTO dead_letter_tallies SELECT grp, reason, event_type, status, sum(letters) FROM gone \
     GROUP BY grp, reason, event_type, status HAVING sum(letters) <> 0";

async fn step(connections: &Connections, retention: &Retention, limit: u32) -> Result<Pruned, StoreError> {
    let limit = i64::from(limit);
    let now = time(connections).await?;
    let mut gone = 0;
    for (statement, age) in [
        (INBOX, retention.inbox),
        (IGNORED, retention.inbox.min(Retention::IGNORED)),
        (LETTERS, retention.dead),
        (OPERATIONS, retention.dead),
        (SESSIONS, retention.sessions),
        (VISITORS, Duration::ZERO),
        (REJECTIONS, retention.rejections),
        (PROCESSES, Retention::PROCESSES),
        (SYNC_IDS, Retention::LEFT_RUNS),
        (&SYNC_RUNS, Retention::RUNS),
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
    let (At(clock), time, written_at): (At, Option<At>, Option<At>) = sqlx::query_as(
        "SELECT clock_timestamp(), time, written_at FROM (SELECT) AS one LEFT JOIN retention_clock ON true LIMIT 1",
    )
    .fetch_one(&mut tx)
    .await?;
    let last = time.zip(written_at).map(|(At(time), At(written_at))| Belief { time, written_at });
    let now = clock::believe(clock, last);
    if let Some(news) = now.news {
        // Of processes that write at once, all write the same.
        sqlx::query(
            "WITH known AS (UPDATE retention_clock SET time = $1, written_at = $2 RETURNING 1) \
             INSERT INTO retention_clock (time, written_at) SELECT $1, $2 WHERE NOT EXISTS (SELECT FROM known)",
        )
        .bind(At(news.time))
        .bind(At(news.written_at))
        .execute(&mut tx)
        .await?;
    }
    tx.commit().await?;
    Ok(now)
}
