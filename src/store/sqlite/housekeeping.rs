//! Owns what is kept for a while only in SQLite: samples of rejected requests, and small steps of forgetting, each in the
//! order of an index.

use std::{collections::BTreeMap, sync::LazyLock, time::Duration};

use async_trait::async_trait;
use sqlx::SqliteConnection;

use super::{SqliteStore, letters::write};
use crate::{
    message::Rejected,
    store::{
        StoreError,
        clock::{self, Belief, Now},
        columns::At,
        housekeeping::{Housekeeping, Pruned, REJECTIONS_MAX, RUNS_KEPT, Rejections, Retention},
        letters::Status,
        plain::{self, PlainRejection},
        questions, unit,
    },
};

const RECORD: &str = "INSERT INTO rejections (id, at, address, reason, headers) VALUES (?1, ?2, ?3, ?4, ?5)";

const NEWEST: &str = "SELECT at, address, reason, headers FROM rejections ORDER BY at DESC, id DESC LIMIT ?1";

#[async_trait]
impl Rejections for SqliteStore {
    async fn record(&self, samples: &[Rejected]) -> Result<(), StoreError> {
        write!(self, |tx| {
            for PlainRejection { id, at, address, reason, headers } in samples.iter().map(PlainRejection::of)
            {
                let record = sqlx::query(RECORD).bind(id).bind(at).bind(address).bind(reason).bind(headers);
                record.execute(&mut *tx).await?;
            }
        })
    }

    async fn newest(&self, limit: u32) -> Result<Vec<Rejected>, StoreError> {
        Ok(sqlx::query_as(NEWEST).bind(limit).fetch_all(&self.readers).await?)
    }
}

#[async_trait]
impl Housekeeping for SqliteStore {
    async fn prune(&self, retention: &Retention, limit: u32) -> Result<Pruned, StoreError> {
        write!(self, |tx| step(tx, retention, limit).await?)
    }

    async fn erase_kept(&self, limit: u32) -> Result<u64, StoreError> {
        unit::erase_kept(self, limit).await
    }

    async fn statuses(&self) -> Result<BTreeMap<Status, u64>, StoreError> {
        questions::statuses(self).await
    }
}

const INBOX: &str = "DELETE FROM inbox WHERE message_id IN (SELECT message_id FROM inbox \
     WHERE processed_at < ?1 ORDER BY processed_at LIMIT ?2)";

const IGNORED: &str = "DELETE FROM inbox WHERE message_id IN (SELECT message_id FROM inbox \
     WHERE outcome = 'ignored' AND processed_at < ?1 ORDER BY processed_at LIMIT ?2)";

/// With their history, which goes where they go.
const LETTERS: &str = "DELETE FROM dead_letters WHERE id IN (SELECT id FROM dead_letters \
     WHERE settled_at < ?1 ORDER BY settled_at LIMIT ?2)";

/// What people did. What has not ended is kept.
const OPERATIONS: &str = "DELETE FROM operations WHERE id IN (SELECT id FROM operations \
     WHERE ended_at < ?1 ORDER BY ended_at LIMIT ?2)";

const REJECTIONS: &str = "DELETE FROM rejections WHERE id IN (SELECT id FROM rejections \
     WHERE at < ?1 ORDER BY at, id LIMIT ?2)";

const SESSIONS: &str = "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions \
     WHERE ended_at < ?1 ORDER BY ended_at LIMIT ?2)";

/// That nobody can claim any more.
const VISITORS: &str = "DELETE FROM anonymous_visitors WHERE id IN (SELECT id FROM anonymous_visitors \
     WHERE claimed_by IS NULL AND expires_at < ?1 ORDER BY expires_at LIMIT ?2)";

/// Of processes that are gone.
const PROCESSES: &str = "DELETE FROM processes WHERE id IN (SELECT id FROM processes \
     WHERE expires_at < ?1 ORDER BY expires_at LIMIT ?2)";

const SURPLUS: &str = "DELETE FROM rejections WHERE id IN (SELECT id FROM rejections \
     ORDER BY at DESC, id DESC LIMIT ?2 OFFSET ?1)";

/// Of runs that ended, or that nobody has gone on with for long. What they had seen is of no use any more.
const SYNC_IDS: &str = "DELETE FROM sync_ids WHERE (run, clerk_id) IN (SELECT run, clerk_id FROM sync_ids \
     WHERE run IN (SELECT id FROM sync_runs WHERE finished_at IS NOT NULL OR updated_at < ?1) LIMIT ?2)";

/// Only those of whose users nothing is left: by their runs these are found.
static SYNC_RUNS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "DELETE FROM sync_runs WHERE id IN (SELECT id FROM sync_runs AS r WHERE started_at < ?1 \
         AND id NOT IN (SELECT id FROM sync_runs ORDER BY started_at DESC, id DESC LIMIT {RUNS_KEPT}) \
         AND NOT EXISTS (SELECT 1 FROM sync_ids WHERE run = r.id) ORDER BY started_at, id LIMIT ?2)"
    )
});

async fn step(tx: &mut SqliteConnection, retention: &Retention, limit: u32) -> Result<Pruned, StoreError> {
    let now = time(tx).await?;
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
        let step = sqlx::query(statement).bind(plain::earlier(now.time, age)).bind(limit);
        gone += step.execute(&mut *tx).await?.rows_affected();
    }
    let surplus = sqlx::query(SURPLUS).bind(REJECTIONS_MAX).bind(limit);
    let rows = gone + surplus.execute(tx).await?.rows_affected();
    Ok(Pruned { rows, clock_ahead: now.clock_ahead() })
}

/// The time that retention goes by, which is written down for the next time.
async fn time(tx: &mut SqliteConnection) -> Result<Now, StoreError> {
    let last: Option<(At, At)> = sqlx::query_as("SELECT time, written_at FROM retention_clock LIMIT 1")
        .fetch_optional(&mut *tx)
        .await?;
    let last = last.map(|(At(time), At(written_at))| Belief { time, written_at });
    let now = clock::believe(crate::time::now(), last);
    if let Some(news) = now.news {
        sqlx::query("DELETE FROM retention_clock").execute(&mut *tx).await?;
        sqlx::query("INSERT INTO retention_clock (time, written_at) VALUES (?1, ?2)")
            .bind(At(news.time))
            .bind(At(news.written_at))
            .execute(tx)
            .await?;
    }
    Ok(now)
}
