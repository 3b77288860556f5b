//! Owns small steps of forgetting, each in the order of an index.

use std::time::Duration;

use sqlx::SqliteConnection;

use crate::{
    message,
    store::{
        StoreError,
        batch::rfc3339,
        letters::{REJECTIONS_MAX, Retention},
        plain,
    },
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
) -> Result<u64, StoreError> {
    let mut gone = 0;
    for (statement, age) in [
        (INBOX, retention.inbox),
        (IGNORED, retention.inbox.min(Retention::IGNORED)),
        (LETTERS, retention.dead),
        (REJECTIONS, retention.rejections),
    ] {
        let step = sqlx::query(statement).bind(before(age)).bind(limit);
        gone += step.execute(&mut *tx).await?.rows_affected();
    }
    let surplus = sqlx::query(SURPLUS).bind(REJECTIONS_MAX).bind(limit);
    Ok(gone + surplus.execute(tx).await?.rows_affected())
}

fn before(age: Duration) -> String {
    let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    rfc3339(plain::time_in_range(message::now().saturating_sub(age)))
}
