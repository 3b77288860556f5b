//! What only the embedded queue promises: leases that run out, processes that share a directory, a file that fails.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use headcount::queue::{
    Action, Burial, DELIVERY_LIMIT, PUBLISH_LIMIT, Queue, QueueError, Reason, Source,
    embedded::{EmbeddedQueue, Timing},
};
use sqlx::{Connection, SqliteConnection};

use crate::support::*;

/// A directory of its own for each test.
pub(crate) struct Embedded(tempfile::TempDir);

impl Embedded {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        // A level that does not exist yet: the queue makes its directory.
        self.0.path().join("data")
    }
}

#[async_trait]
impl Harness for Embedded {
    async fn open(&self) -> Arc<dyn Queue> {
        open(&self.path(), Timing::default()).await
    }

    async fn clean_up(&self) {}
}

async fn open(directory: &Path, timing: Timing) -> Arc<dyn Queue> {
    Arc::new(EmbeddedQueue::open_with(directory, ladder(), timing).await.unwrap())
}

/// Another program's connection to the file.
async fn raw(directory: &Path) -> SqliteConnection {
    SqliteConnection::connect(&format!("sqlite://{}", directory.join("queue.db").display())).await.unwrap()
}

/// Leases that nobody prolongs in time: what a process looks like that stands still.
const FROZEN: Timing = Timing {
    lease: Duration::from_millis(300),
    heartbeat: Duration::from_secs(3600),
    poll: Duration::from_secs(3600),
};
const QUICK: Timing = Timing {
    lease: Duration::from_millis(600),
    heartbeat: Duration::from_millis(150),
    poll: Duration::from_millis(50),
};

#[tokio::test]
async fn a_lease_that_runs_out_hands_its_messages_to_another() {
    let directory = Embedded::new();
    let frozen = open(&directory.path(), FROZEN).await;
    let sent = publish(&frozen, 3).await;
    let first = frozen.subscribe(Source::Events, 10).await.unwrap();
    let late = receive(&*first, 3).await;

    let alive = open(&directory.path(), QUICK).await;
    let second = alive.subscribe(Source::Events, 10).await.unwrap();
    let again = receive(&*second, 3).await;
    assert_eq!(ids(&again), sorted(sent));
    assert!(again.iter().all(|delivery| delivery.earlier == 1));

    // The first one wakes up: it holds nothing any more, and once it has looked at the file it knows.
    let [late_receipts, receipts] =
        [&late, &again].map(|them| them.iter().map(|it| it.receipt).collect::<Vec<_>>());
    frozen.ready().await.unwrap();
    assert!(late_receipts.iter().all(|receipt| !first.holds(*receipt)));
    assert!(receipts.iter().all(|receipt| second.holds(*receipt) && !first.holds(*receipt)));
    // Should it settle all the same: that is not its business.
    settle(&*first, late.into_iter().map(|delivery| (delivery, Action::Done))).await;
    holds(&alive, "events", 3).await;
    done(&*second, again).await;
    holds(&alive, "events", 0).await;
}

#[tokio::test]
async fn a_consumer_that_lost_its_leases_goes_on_with_new_ones() {
    let directory = Embedded::new();
    let frozen = open(&directory.path(), FROZEN).await;
    publish(&frozen, 2).await;
    let first = frozen.subscribe(Source::Events, 2).await.unwrap();
    let late = receive(&*first, 2).await;
    let alive = open(&directory.path(), QUICK).await;
    let second = alive.subscribe(Source::Events, 10).await.unwrap();
    let again = receive(&*second, 2).await;
    done(&*second, again).await;
    drop(second);
    // Its settlement finds nothing, and it is a consumer like any other afterwards.
    settle(&*first, late.into_iter().map(|delivery| (delivery, Action::Done))).await;
    let sent = publish(&frozen, 2).await;
    let fresh = receive(&*first, 2).await;
    assert_eq!(ids(&fresh), sorted(sent));
    done(&*first, fresh).await;
    holds(&alive, "events", 0).await;
}

#[tokio::test]
async fn a_heartbeat_keeps_leases_beyond_their_time() {
    let directory = Embedded::new();
    let [one, two] = [open(&directory.path(), QUICK).await, open(&directory.path(), QUICK).await];
    publish(&one, 3).await;
    let first = one.subscribe(Source::Events, 10).await.unwrap();
    let held = receive(&*first, 3).await;
    let second = two.subscribe(Source::Events, 10).await.unwrap();
    let waited = tokio::time::timeout(4 * QUICK.lease, second.next()).await;
    assert!(waited.is_err(), "{waited:?} came although its consumer lives");
    done(&*first, held).await;
    holds(&two, "events", 0).await;
}

#[tokio::test]
async fn processes_that_stood_still_together_take_nothing_from_each_other() {
    let directory = Embedded::new();
    let queues = [open(&directory.path(), QUICK).await, open(&directory.path(), QUICK).await];
    publish(&queues[0], 2).await;
    let mut consumers = Vec::new();
    for queue in &queues {
        let consumer = queue.subscribe(Source::Events, 1).await.unwrap();
        consumers.push((next(&*consumer).await, consumer));
    }
    // The one thread of this test's runtime is that of both: nobody prolongs anything, as when the machine sleeps.
    std::thread::sleep(2 * QUICK.lease);
    for queue in &queues {
        queue.ready().await.unwrap();
    }
    assert!(quiet(&*consumers[0].1).await && quiet(&*consumers[1].1).await, "something was taken over");
    for (delivery, consumer) in consumers {
        assert!(consumer.holds(delivery.receipt), "{} was lost", delivery.message.id);
        done(&*consumer, vec![delivery]).await;
    }
    holds(&queues[0], "events", 0).await;
}

#[tokio::test]
async fn processes_of_one_directory_see_each_other_within_the_poll() {
    let directory = Embedded::new();
    let [one, two] = [Harness::open(&directory).await, Harness::open(&directory).await];
    let subscription = two.subscribe(Source::Events, 10).await.unwrap();
    for _ in 0..5 {
        let sent = publish(&one, 1).await;
        let published = Instant::now();
        let delivery = next(&*subscription).await;
        assert_eq!(id(&delivery), sent[0]);
        // 250 ms are promised; the rest is for a slow machine.
        assert!(published.elapsed() < Duration::from_secs(2), "{:?}", published.elapsed());
        done(&*subscription, vec![delivery]).await;
    }
    holds(&one, "events", 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_publish_and_consume_at_once_lose_and_double_nothing() {
    let directory = Embedded::new();
    let handles = [Harness::open(&directory).await, Harness::open(&directory).await];
    let mut publishing = tokio::task::JoinSet::new();
    for queue in handles.iter().cycle().take(20) {
        let queue = queue.clone();
        publishing.spawn(async move { publish(&queue, 30).await });
    }
    let mut consuming = tokio::task::JoinSet::new();
    for queue in &handles {
        let (queue, subscription) = (queue.clone(), queue.subscribe(Source::Events, 50).await.unwrap());
        consuming.spawn(async move {
            let mut seen = Vec::new();
            while let Ok(Some(delivery)) = tokio::time::timeout(3 * QUIET, subscription.next()).await {
                assert_eq!(delivery.earlier, 0);
                seen.push(id(&delivery));
                done(&*subscription, vec![delivery]).await;
            }
            drop(queue);
            seen
        });
    }
    let sent: Vec<String> = publishing.join_all().await.concat();
    let seen: Vec<String> = consuming.join_all().await.concat();
    assert_eq!(sorted(seen), sorted(sent));
    holds(&handles[0], "events", 0).await;
}

#[tokio::test]
async fn what_nobody_has_seen_is_not_counted_as_delivered() {
    let directory = Embedded::new();
    let queue = Harness::open(&directory).await;
    publish(&queue, 10).await;
    let first = queue.subscribe(Source::Events, 10).await.unwrap();
    let seen = receive(&*first, 4).await;
    drop(first);
    let second = queue.subscribe(Source::Events, 10).await.unwrap();
    for delivery in receive(&*second, 10).await {
        let earlier = u32::from(seen.iter().any(|known| known.message.id == delivery.message.id));
        assert_eq!(delivery.earlier, earlier, "{}", delivery.message.id);
    }
}

#[tokio::test]
async fn a_message_that_kills_its_workers_is_buried_as_a_crash_loop() {
    let directory = Embedded::new();
    let queue = Harness::open(&directory).await;
    let killer = publish(&queue, 1).await.remove(0);
    for earlier in 0..=DELIVERY_LIMIT {
        let subscription = queue.subscribe(Source::Events, 1).await.unwrap();
        let delivery = next(&*subscription).await;
        assert_eq!((id(&delivery), delivery.earlier), (killer.clone(), earlier));
    }
    let harmless = publish(&queue, 1).await.remove(0);
    let subscription = queue.subscribe(Source::Events, 10).await.unwrap();
    assert_eq!(id(&next(&*subscription).await), harmless);
    assert!(quiet(&*subscription).await);
    let dead = queue.subscribe(Source::Dead, 10).await.unwrap();
    let delivery = next(&*dead).await;
    assert_eq!((id(&delivery), delivery.earlier), (killer, 0));
    let death = delivery.death.as_ref().unwrap();
    assert_eq!(death.reason, "crash_loop");
    assert!(death.detail.contains("21 times"), "{}", death.detail);
    done(&*dead, vec![delivery]).await;
    holds(&queue, "dead", 0).await;
}

#[tokio::test]
async fn a_lease_of_the_dead_that_runs_out_hands_them_to_another() {
    let directory = Embedded::new();
    let frozen = open(&directory.path(), FROZEN).await;
    let sent = publish(&frozen, 1).await;
    let events = frozen.subscribe(Source::Events, 1).await.unwrap();
    let delivery = next(&*events).await;
    let burial = Burial { reason: Reason::Rejected, detail: String::new() };
    settle(&*events, [(delivery, Action::Bury(burial))]).await;
    frozen.sample("{}".into());
    let first = frozen.subscribe(Source::Dead, 10).await.unwrap();
    let late = next(&*first).await;
    let samples = frozen.subscribe(Source::Rejections, 10).await.unwrap();
    let _ = next(&*samples).await;

    let alive = open(&directory.path(), QUICK).await;
    let second = alive.subscribe(Source::Dead, 10).await.unwrap();
    let again = next(&*second).await;
    assert_eq!((id(&again), again.earlier), (sent[0].clone(), 1));
    let other_samples = alive.subscribe(Source::Rejections, 10).await.unwrap();
    assert_eq!(next(&*other_samples).await.message.body, "{}");
    // The first one wakes up and settles: the letter stays with the second.
    done(&*first, vec![late]).await;
    holds(&alive, "dead", 1).await;
    done(&*second, vec![again]).await;
    holds(&alive, "dead", 0).await;
}

#[tokio::test]
async fn consumers_are_counted_where_they_consume() {
    let directory = Embedded::new();
    let queue = Harness::open(&directory).await;
    let _events = queue.subscribe(Source::Events, 1).await.unwrap();
    let _dead =
        [queue.subscribe(Source::Dead, 1).await.unwrap(), queue.subscribe(Source::Dead, 1).await.unwrap()];
    queue.ready().await.unwrap();
    let depths = queue.depths().await.unwrap();
    let consumers: Vec<(&str, u32)> =
        depths.iter().map(|depth| (depth.queue.as_str(), depth.consumers)).collect();
    assert_eq!(
        consumers,
        [("events", 1), ("retry.400ms", 0), ("retry.10m", 0), ("dead", 2), ("rejections", 0)]
    );
}

#[tokio::test]
async fn a_file_of_before_is_brought_up_with_its_dead() {
    let directory = Embedded::new();
    let queue = Harness::open(&directory).await;
    let sent = publish(&queue, 1).await;
    let events = queue.subscribe(Source::Events, 1).await.unwrap();
    let delivery = next(&*events).await;
    let burial = Burial { reason: Reason::Rejected, detail: "of before".into() };
    settle(&*events, [(delivery, Action::Bury(burial))]).await;
    queue.close().await;
    // As the first version made it.
    let mut before = raw(&directory.path()).await;
    sqlx::raw_sql(
        "DROP TABLE rejections; DROP INDEX messages_buried; ALTER TABLE consumers DROP COLUMN queue;
         ALTER TABLE messages DROP COLUMN origin; PRAGMA user_version = 1",
    )
    .execute(&mut before)
    .await
    .unwrap();
    before.close().await.unwrap();

    let queue = Harness::open(&directory).await;
    let dead = queue.subscribe(Source::Dead, 1).await.unwrap();
    let delivery = next(&*dead).await;
    assert_eq!(id(&delivery), sent[0]);
    assert_eq!(delivery.death.as_ref().unwrap().detail, "of before");
    done(&*dead, vec![delivery]).await;
    holds(&queue, "dead", 0).await;
    holds(&queue, "rejections", 0).await;
}

#[tokio::test]
async fn done_leaves_no_body_behind() {
    let directory = Embedded::new();
    let queue = Harness::open(&directory).await;
    publish(&queue, 5).await;
    let subscription = queue.subscribe(Source::Events, 10).await.unwrap();
    let deliveries = receive(&*subscription, 5).await;
    done(&*subscription, deliveries).await;
    let left: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM bodies")
        .fetch_one(&mut raw(&directory.path()).await)
        .await
        .unwrap();
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_file_is_answered_in_time_and_outlived() {
    let directory = Embedded::new();
    let queue = Harness::open(&directory).await;
    publish(&queue, 4).await;
    let subscription = Arc::new(queue.subscribe(Source::Events, 10).await.unwrap());
    let held = receive(&**subscription, 4).await;

    let mut other = raw(&directory.path()).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let settling = tokio::spawn({
        let subscription = subscription.clone();
        async move { done(&**subscription, held).await }
    });
    let asked = Instant::now();
    let refused = soon("a refusal", queue.publish(message("{}"))).await;
    assert!(matches!(refused, Err(QueueError::File(_))), "{refused:?}");
    assert!(asked.elapsed() < PUBLISH_LIMIT + Duration::from_secs(2), "{:?}", asked.elapsed());
    assert!(subscription.trouble().is_some());
    let asked = Instant::now();
    assert!(queue.publish(message("{}")).await.is_err());
    // Samples are lost, now and later: nothing of them waits.
    for _ in 0..10_000 {
        queue.sample("{}".into());
    }
    assert!(asked.elapsed() < Duration::from_secs(1), "known trouble is answered at once");

    // A settlement is not given up: it ends as soon as the file can be written again, and not before.
    assert!(!settling.is_finished());
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    soon("the settlement", settling).await.unwrap();
    holds(&queue, "events", 0).await;
    assert_eq!(subscription.trouble(), None);
    holds(&queue, "rejections", 0).await;
    let sent = publish(&queue, 1).await;
    assert_eq!(id(&next(&**subscription).await), sent[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_that_were_committed_unknown_to_their_consumer_come_back() {
    let directory = Embedded::new();
    let queue = Harness::open(&directory).await;
    publish(&queue, 2).await;
    let subscription = queue.subscribe(Source::Events, 1).await.unwrap();
    let held = receive(&*subscription, 1).await;
    // What a claim leaves whose COMMIT reported an error and took place.
    let mut other = raw(&directory.path()).await;
    let changed = sqlx::query(
        "UPDATE messages SET lease_owner = (SELECT MAX(id) FROM consumers), leases = leases + 1,
            deliveries = deliveries + 1
         WHERE lease_owner IS NULL",
    );
    assert_eq!(changed.execute(&mut other).await.unwrap().rows_affected(), 1);
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    assert!(soon("a refusal", queue.publish(message("{}"))).await.is_err());
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    done(&*subscription, held).await;
    let delivery = next(&*subscription).await;
    assert_eq!(delivery.earlier, 0);
    done(&*subscription, vec![delivery]).await;
    holds(&queue, "events", 0).await;
}

#[tokio::test]
async fn an_unwritable_directory_is_refused_with_a_hint() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    // Root may write to a directory whatever its mode; nobody may to the others.
    let read_only = directory.path().join("read-only");
    std::fs::create_dir(&read_only).unwrap();
    let mut unwritable = vec![file.join("below"), file];
    if cfg!(target_os = "linux") {
        unwritable.extend([PathBuf::from("/proc/self/task"), PathBuf::from("/proc/headcount")]);
    }
    let mut permissions = read_only.metadata().unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&read_only, permissions).unwrap();
    if std::fs::write(read_only.join("probe"), "").is_err() {
        unwritable.push(read_only);
    }
    for directory in unwritable {
        let refused = EmbeddedQueue::open(&directory, ladder()).await;
        let Err(error @ QueueError::Refused { .. }) = refused else { panic!("{directory:?}: {refused:?}") };
        assert!(error.hint().unwrap().contains("HEADCOUNT_DATA_DIR"));
        assert!(error.to_string().contains(&directory.display().to_string()), "{error}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_queue_is_named_with_a_hint() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(
        directory.path().join("queue.db"),
        "this is not a database, and long enough to say so".repeat(99),
    )
    .unwrap();
    let refused = EmbeddedQueue::open(directory.path(), ladder()).await;
    let Err(error @ QueueError::Misconfigured { .. }) = refused else { panic!("{refused:?}") };
    assert!(error.hint().unwrap().contains("HEADCOUNT_DATA_DIR"));
}

#[tokio::test]
async fn a_clock_that_was_set_back_holds_nothing_up() {
    let directory = Embedded::new();
    let queue = Harness::open(&directory).await;
    let sent = publish(&queue, 3).await;
    let subscription = queue.subscribe(Source::Events, 1).await.unwrap();
    let retried = next(&*subscription).await;
    settle(&*subscription, [(retried, Action::Retry { rung: 0, attempt: 1, waits: 0 })]).await;
    let mut held = receive(&*subscription, 1).await;
    // All of it was stamped while the clock was a year ahead; one message is held by a consumer that died then.
    queue.close().await;
    let year = 365 * 24 * 3600 * 1000_i64;
    let changed = sqlx::query("UPDATE messages SET available_at = available_at + ?1").bind(year);
    let mut other = raw(&directory.path()).await;
    assert_eq!(changed.execute(&mut other).await.unwrap().rows_affected(), 3);
    let stale = sqlx::query("INSERT INTO consumers (id, alive_until) VALUES (99, ?1)");
    stale.bind(headcount::time::now() + year).execute(&mut other).await.unwrap();
    let leased = sqlx::query("UPDATE messages SET lease_owner = 99 WHERE message_id = ?1");
    leased.bind(id(&held.remove(0))).execute(&mut other).await.unwrap();
    other.close().await.unwrap();

    let queue = open(&directory.path(), QUICK).await;
    let subscription = queue.subscribe(Source::Events, 10).await.unwrap();
    assert_eq!(ids(&receive(&*subscription, 3).await), sorted(sent));
}

#[tokio::test]
async fn a_newer_file_is_accepted() {
    let directory = Embedded::new();
    let queue = Harness::open(&directory).await;
    publish(&queue, 1).await;
    queue.close().await;
    let mut newer = raw(&directory.path()).await;
    sqlx::raw_sql("ALTER TABLE messages ADD COLUMN of_tomorrow TEXT; PRAGMA user_version = 99")
        .execute(&mut newer)
        .await
        .unwrap();
    newer.close().await.unwrap();
    let queue = Harness::open(&directory).await;
    publish(&queue, 1).await;
    let subscription = queue.subscribe(Source::Events, 10).await.unwrap();
    let deliveries = receive(&*subscription, 2).await;
    done(&*subscription, deliveries).await;
    holds(&queue, "events", 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_that_open_a_new_directory_at_once_all_succeed() {
    let directory = Embedded::new();
    let mut opening = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let path = directory.path();
        opening.spawn(async move {
            let queue: Arc<dyn Queue> = Arc::new(EmbeddedQueue::open(&path, ladder()).await.unwrap());
            publish(&queue, 1).await;
        });
    }
    opening.join_all().await;
    holds(&Harness::open(&directory).await, "events", 8).await;
}

#[tokio::test]
async fn big_bodies_never_fill_the_memory() {
    let directory = Embedded::new();
    let queue = Harness::open(&directory).await;
    let body = vec![b'x'; 512 * 1024];
    for _ in 0..140 {
        queue.publish(message(body.clone())).await.unwrap();
    }
    let subscription = queue.subscribe(Source::Events, 600).await.unwrap();
    // 64 MiB are 128 of them.
    let held = receive(&*subscription, 128).await;
    assert!(quiet(&*subscription).await, "more than 64 MiB are held");
    done(&*subscription, held).await;
    let rest = receive(&*subscription, 12).await;
    done(&*subscription, rest).await;
}

#[tokio::test]
async fn samples_that_the_writer_is_behind_with_are_dropped() {
    let directory = Embedded::new();
    let queue = Harness::open(&directory).await;
    // The test's runtime has one thread: the writer does not run before the first await.
    for _ in 0..10_000 {
        queue.sample(vec![b'x'; 2000].into());
    }
    queue.sample(vec![b'x'; 10_000_000].into());
    publish(&queue, 1).await;
    // 256 KiB of 2 KiB each.
    holds(&queue, "rejections", 128).await;
    queue.sample("{}".into());
    holds(&queue, "rejections", 129).await;
}

#[tokio::test]
async fn a_sample_of_a_failed_commit_is_lost() {
    let directory = Embedded::new();
    let queue = Harness::open(&directory).await;
    let mut other = raw(&directory.path()).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    // Both in one commit: the writer does not run before the first await.
    queue.sample("{}".into());
    assert!(soon("a refusal", queue.publish(message("{}"))).await.is_err());
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    soon("the end of the trouble", async {
        while queue.publish(message("{}")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    holds(&queue, "rejections", 0).await;
}
