//! Owns leases: which consumers there are, which waiting message goes to which of them, and when leases may be taken back.
//! The statements are called inside the writer's transaction, which they neither begin nor commit. Leases run by the wall
//! clock, the only one that processes share.
//! Promises that after this machine has slept or stood still, or its clock was set forward, other processes get the time to
//! prolong their leases: by the clock those have run out, as ours have, and the others live all the same. Never settles
//! anything but crash loops.

use std::time::{Duration, Instant};

use sqlx::{Row, SqliteConnection};

use super::{
    super::{DELIVERY_LIMIT, Delivery, Ladder, Reason, Receipt, Source, burial::never_settled},
    rows::{self, Result, json},
    work::millis,
};
use crate::{message::MessageId, time::Millis};

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

/// Registers a consumer. Leases belong to consumers.
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
    // A leased message may come back, and was due already.
    sqlx::query("UPDATE messages SET available_at = ?1 WHERE lease_owner IS NOT NULL AND available_at > ?1")
        .bind(now)
        .execute(&mut *db)
        .await?;
    let rungs = ladder.delays().map(|(name, delay)| (Some(name), millis(delay)));
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

/// Makes available again what was leased and never handed out, as if it had not been delivered.
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

/// Makes available again what a consumer holds by the file and not by its own book: leases whose commit failed for us
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

/// When the first of all consumers loses its leases.
pub(super) async fn next_expiry(db: &mut SqliteConnection) -> Result<Option<Millis>> {
    sqlx::query_scalar("SELECT MIN(alive_until) FROM consumers").fetch_one(db).await
}

/// What leasing brought.
#[derive(Debug, Default)]
pub(super) struct Leased {
    /// Leased to the consumer.
    pub(super) deliveries: Vec<Delivery>,
    /// Buried, because they came back unsettled too often.
    pub(super) crash_loops: Vec<MessageId>,
    /// Whether there may be more to lease at once.
    pub(super) more: bool,
}

/// Leases the next messages of a queue to a consumer: at most `rows`, and at most `bytes` of bodies but for the first.
pub(super) async fn lease(
    db: &mut SqliteConnection,
    source: Source,
    consumer: i64,
    (rows, bytes): (usize, usize),
    now: Millis,
) -> Result<Leased> {
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
        Source::Rejections => return rows::lease_samples(db, consumer, rows).await,
    };
    let candidates: Vec<(i64, i64, u32, String)> = candidates.fetch_all(&mut *db).await?;
    let mut leased = Leased { more: candidates.len() == rows, ..Leased::default() };
    let (mut taken, mut looping, mut left) = (Vec::new(), Vec::new(), bytes);
    for (id, size, deliveries, message_id) in candidates {
        let size = usize::try_from(size).unwrap_or(0);
        if deliveries > DELIVERY_LIMIT {
            looping.push((id, never_settled(deliveries)));
            leased.crash_loops.push(rows::stored_id(&message_id, b""));
        } else if taken.is_empty() || size <= left {
            left = left.saturating_sub(size);
            taken.push(id);
        } else {
            leased.more = false;
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
        return Ok(leased);
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
            reason, detail, died_at, origin
         FROM json_each(?1) AS j CROSS JOIN messages AS m ON m.id = j.value JOIN bodies AS b ON b.id = m.id
         ORDER BY j.key",
    )
    .bind(&taken)
    .fetch_all(db)
    .await?;
    leased.deliveries = rows.iter().map(|row| rows::delivery(row, source)).collect::<Result<_>>()?;
    Ok(leased)
}

/// When a message can next be leased from any of these queues; 0 where one can be leased at any time.
pub(super) async fn next_due(db: &mut SqliteConnection, sources: &[Source]) -> Result<Option<Millis>> {
    let mut next: Option<Millis> = None;
    for source in sources {
        let due: Option<Millis> = sqlx::query_scalar(match source {
            Source::Events => "SELECT MIN(available_at) FROM messages WHERE queue = 'events' AND lease_owner IS NULL",
            Source::Dead => "SELECT MIN(0) FROM (SELECT 1 FROM messages WHERE queue = 'dead' AND lease_owner IS NULL LIMIT 1)",
            Source::Rejections => rows::ANY_SAMPLE,
        })
        .fetch_one(&mut *db)
        .await?;
        next = [next, due].into_iter().flatten().min();
    }
    Ok(next)
}

/// How far the clocks may part between two looks, in ms.
const TOLERANCE: Millis = 1000;

/// When this process looked last, and when it may next take leases back.
#[derive(Debug)]
pub(super) struct Pulse {
    looked: Option<(Instant, Millis)>,
    expire_at: Instant,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        Self { looked: None, expire_at: now }
    }

    /// This process runs. Others prolong their leases within `heartbeat` if they run too.
    pub(super) fn beat(&mut self, now: Instant, at: Millis, heartbeat: Duration) {
        if self.looked.replace((now, at)).is_some_and(|before| stood_still(before, (now, at), heartbeat)) {
            self.expire_at = now + heartbeat;
        }
    }

    /// Whether leases that have run out may be taken back.
    pub(super) fn may_expire(&self, now: Instant) -> bool {
        now >= self.expire_at
    }

    /// They were: not again before the next poll.
    pub(super) fn expired(&mut self, now: Instant, poll: Duration) {
        if self.may_expire(now) {
            self.expire_at = now + poll;
        }
    }
}

/// Whether more time has passed than between two looks of a process that runs, by either clock.
fn stood_still(before: (Instant, Millis), now: (Instant, Millis), heartbeat: Duration) -> bool {
    let passed = now.0.saturating_duration_since(before.0);
    let shown = now.1.saturating_sub(before.1);
    passed > heartbeat || shown.saturating_sub(millis(passed)) > TOLERANCE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_or_a_clock_set_forward_is_told_from_a_slow_poll() {
        let heartbeat = Duration::from_secs(10);
        let start = Instant::now();
        for (passed, shown, spares) in [
            (200, 200, false),
            (4_000, 4_900, false),
            // A virtual machine that was paused; a machine that slept; a clock set forward by an hour.
            (40_000, 40_000, true),
            (200, 3_600_200, true),
            (4_000, 5_100, true),
            // A clock set back is for `mend_times`.
            (200, -3_600_000, false),
        ] {
            let mut pulse = Pulse::new(start);
            pulse.beat(start, 1_000_000, heartbeat);
            let now = start + Duration::from_millis(passed);
            pulse.beat(now, 1_000_000 + shown, heartbeat);
            assert_eq!(pulse.may_expire(now), !spares, "{passed} ms, shown {shown}");
            pulse.expired(now, Duration::from_millis(200));
            assert!(!pulse.may_expire(now));
            let later = now + heartbeat;
            pulse.beat(later, 1_000_000 + shown + 10_000, heartbeat);
            assert!(pulse.may_expire(later), "not for ever");
        }
    }

    #[test]
    fn a_process_that_starts_takes_back_at_once_what_a_dead_one_held() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        pulse.beat(start, 1_000_000, Duration::from_secs(10));
        assert!(pulse.may_expire(start));
    }
}
