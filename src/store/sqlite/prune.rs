//! Owns small steps of forgetting, each in the order of an index.

use sqlx::SqliteConnection;

use super::parse_time;
use crate::store::{
    StoreError,
    batch::rfc3339,
    clock::{self, Belief, Now},
    letters::{Pruned, REJECTIONS_MAX, Retention},
    plain,
};

const INBOX: &str = "DELETE FROM inbox WHERE message_id IN (SELECT message_id FROM inbox \
     WHERE processed_at < ?1 ORDER BY processed_at LIMIT ?2)";

const IGNORED: &str = "DELETE FROM inbox WHERE message_id IN (SELECT message_id FROM inbox \
     WHERE outcome = 'ignored' AND processed_at < ?1 ORDER BY processed_at LIMIT ?2)";

/// With their history, which goes where they go.
const LETTERS: &str = "DELETE FROM dead_letters WHERE id IN (SELECT id FROM dead_letters \
     WHERE settled_at < ?1 ORDER BY settled_at LIMIT ?2)";

const REJECTIONS: &str = "DELETE FROM rejections WHERE id IN (SELECT id FROM rejections \
     WHERE at < ?1 ORDER BY at, id LIMIT ?2)";

const SURPLUS: &str = "DELETE FROM rejections WHERE id IN (SELECT id FROM rejections \
     ORDER BY at DESC, id DESC LIMIT ?2 OFFSET ?1)";

pub(super) async fn step(
    tx: &mut SqliteConnection,
    retention: &Retention,
    limit: u32,
) -> Result<Pruned, StoreError> {
    let now = time(tx).await?;
    let mut gone = 0;
    for (statement, age) in [
        (INBOX, retention.inbox),
        (IGNORED, retention.inbox.min(Retention::IGNORED)),
        (LETTERS, retention.dead),
        (REJECTIONS, retention.rejections),
    ] {
        let step = sqlx::query(statement).bind(rfc3339(plain::earlier(now.time, age))).bind(limit);
        gone += step.execute(&mut *tx).await?.rows_affected();
    }
    let surplus = sqlx::query(SURPLUS).bind(REJECTIONS_MAX).bind(limit);
    let rows = gone + surplus.execute(tx).await?.rows_affected();
    Ok(Pruned { rows, clock_ahead: now.clock_ahead() })
}

/// The time that retention goes by, which is written down for the next time.
async fn time(tx: &mut SqliteConnection) -> Result<Now, StoreError> {
    let last: Option<(String, String)> =
        sqlx::query_as("SELECT time, written_at FROM retention_clock LIMIT 1")
            .fetch_optional(&mut *tx)
            .await?;
    let last = last.map(|(time, written_at)| {
        Ok::<_, sqlx::Error>(Belief {
            time: parse_time("time", &time)?,
            written_at: parse_time("written_at", &written_at)?,
        })
    });
    let now = clock::believe(crate::time::now(), last.transpose()?);
    if let Some(news) = now.news {
        sqlx::query("DELETE FROM retention_clock").execute(&mut *tx).await?;
        sqlx::query("INSERT INTO retention_clock (time, written_at) VALUES (?1, ?2)")
            .bind(rfc3339(plain::time_in_range(news.time)))
            .bind(rfc3339(plain::time_in_range(news.written_at)))
            .execute(tx)
            .await?;
    }
    Ok(now)
}
