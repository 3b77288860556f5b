//! Which rows retention deletes, and when.

use super::*;

contract! {
    retention_takes_small_steps
    a_clock_that_leaps_ahead_makes_nothing_be_forgotten_at_once
    ignored_messages_are_forgotten_sooner
    rejections_are_kept_and_bounded
}

/// Moves a clock's readings in the table.
async fn shift(home: &Home, table: &str, columns: &[&str], by: &str) {
    for column in columns {
        let moved = if home.is_postgres() {
            format!("{column} + interval '{by}'")
        } else {
            format!("strftime('%Y-%m-%dT%H:%M:%fZ', {column}, '{by}')")
        };
        home.sql(&format!("UPDATE {table} SET {column} = {moved}")).await;
    }
}

async fn retention_takes_small_steps(home: Arc<Home>) {
    let store = home.store().await;
    capture(&store, (0..12).map(|n| letter(&format!("m{n:02}")))).await;
    apply(&store, (0..5).map(|n| news(&format!("m{n:02}")))).await.unwrap();
    store.discard(&all(), 3, &by("ann")).await.unwrap();
    claim(&store, &all(), 2).await;
    assert!(drain(&store, &KEPT, 100).await.is_empty());
    age(&home, "inbox", "processed_at", "message_id <> 'm04'").await;
    age(&home, "dead_letters", "settled_at", "message_id <> 'm04'").await;
    age(&home, "dead_letters", "died_at", "true").await;
    // Four inbox rows and seven settled letters, at most three of each a step.
    assert_eq!(drain(&store, &KEPT, 3).await, [6, 4, 1]);
    assert_eq!(found(&store, &Filter { status: Some(Status::Applied), ..all() }).await, ["m04"]);
    let left = BTreeMap::from([(Status::Open, 2), (Status::Replayed, 2), (Status::Applied, 1)]);
    assert_eq!(store.statuses().await.unwrap(), left);
    let orphans =
        "SELECT count(*) FROM dead_letter_history WHERE letter_id NOT IN (SELECT id FROM dead_letters)";
    assert_eq!(home.number(orphans).await, 0);
    let orphans =
        "SELECT count(*) FROM dead_letter_contents WHERE letter_id NOT IN (SELECT id FROM dead_letters)";
    assert_eq!(home.number(orphans).await, 0);
    assert_eq!(home.number("SELECT count(*) FROM dead_letter_contents").await, 5);
    assert_eq!(home.number("SELECT count(*) FROM inbox").await, 1);
    assert_eq!(home.number("SELECT count(*) FROM users").await, 5);
    let forever = Retention {
        inbox: Duration::MAX,
        dead: Duration::MAX,
        sessions: Duration::MAX,
        rejections: Duration::MAX,
    };
    assert!(drain(&store, &forever, 100).await.is_empty());
    assert!(drain(&store, &KEPT, 0).await.is_empty());
}

async fn a_clock_that_leaps_ahead_makes_nothing_be_forgotten_at_once(home: Arc<Home>) {
    let store = home.store().await;
    capture(&store, [letter("m1"), letter("m2")]).await;
    apply(&store, [news("m1"), other("m3")]).await.unwrap();
    assert_eq!(store.prune(&KEPT, 10).await.unwrap(), Pruned::default());
    // All that was written before it lies years back by a clock that has leapt.
    shift(&home, "inbox", &["processed_at"], "-4000 days").await;
    shift(&home, "dead_letters", &["settled_at"], "-4000 days").await;
    shift(&home, "retention_clock", &["time", "written_at"], "-4000 days").await;
    for _ in 0..5 {
        let pruned = store.prune(&KEPT, 10).await.unwrap();
        assert_eq!(pruned.rows, 0);
        assert!(pruned.clock_ahead.unwrap() > 3_999 * DAY, "{pruned:?}");
    }
    // Ten minutes go by, and once more.
    for _ in 0..2 {
        shift(&home, "retention_clock", &["written_at"], "-11 minutes").await;
        assert_eq!(store.prune(&KEPT, 10).await.unwrap().rows, 0);
    }
    let an_hour_further = if home.is_postgres() {
        "SELECT (extract(epoch FROM clock_timestamp() - time) / 3600)::bigint FROM retention_clock"
    } else {
        "SELECT CAST((julianday('now') - julianday(time)) * 24 AS INTEGER) FROM retention_clock"
    };
    assert!((4000 * 24 - 4..4000 * 24).contains(&home.number(an_hour_further).await));
    // Put right, the clock is behind what was believed; from then on all is as ever.
    shift(&home, "retention_clock", &["time", "written_at"], "+4100 days").await;
    let pruned = store.prune(&KEPT, 10).await.unwrap();
    assert_eq!((pruned.rows, pruned.clock_ahead), (3, None), "and what is past its retention by now goes");
}

async fn ignored_messages_are_forgotten_sooner(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [other("m1"), other("m2"), other("m3"), news("m4")]).await.unwrap();
    age(&home, "inbox", "processed_at", "message_id <> 'm3'").await;
    let month = Retention { inbox: 30 * DAY, ..KEPT };
    assert_eq!(drain(&store, &month, 10).await, [2]);
    assert_eq!(home.number("SELECT count(*) FROM inbox WHERE message_id IN ('m3', 'm4')").await, 2);
    let hour = Retention { inbox: DAY / 24, ..KEPT };
    age(&home, "inbox", "processed_at", "message_id = 'm3'").await;
    assert_eq!(drain(&store, &hour, 10).await, [2]);
}

async fn rejections_are_kept_and_bounded(home: Arc<Home>) {
    let store = home.store().await;
    let now = headcount::time::now();
    let sample = |n: Millis| Rejected {
        at: now + n,
        address: "203.0.113.9".into(),
        reason: "no_match".into(),
        headers: vec!["host".into(), "svix-id".into()],
    };
    store.record(&[sample(1), sample(3), sample(2)]).await.unwrap();
    assert_eq!(store.newest(2).await.unwrap(), [sample(3), sample(2)]);
    let nasty = "a\0\n\u{fffe}".repeat(1_000);
    let odd =
        Rejected { at: i64::MAX, address: nasty.clone(), reason: nasty.clone(), headers: vec![nasty; 300] };
    store.record(&[odd]).await.unwrap();
    let kept = &store.newest(1).await.unwrap()[0];
    assert!(kept.headers.len() == 64 && !kept.address.contains('\0') && kept.reason.len() <= 64);
    age(&home, "rejections", "at", "reason = 'no_match'").await;
    assert_eq!(drain(&store, &KEPT, 2).await, [2, 1]);
    let many: Vec<_> = (0..10_020).map(sample).collect();
    store.record(&many).await.unwrap();
    assert_eq!(drain(&store, &KEPT, 15).await, [15, 6]);
    assert_eq!(home.number("SELECT count(*) FROM rejections").await, 10_000);
    let newest = store.newest(20_000).await.unwrap();
    assert_eq!((newest[1].at, newest[9_999].at), (now + 10_019, now + 21));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pruning_waits_for_nobody() {
    on_postgres(|home| async move {
        let store = home.store().await;
        capture(&store, [letter("m1"), letter("m2")]).await;
        apply(&store, [news("m1"), news("m2")]).await.unwrap();
        age(&home, "inbox", "processed_at", "true").await;
        age(&home, "dead_letters", "settled_at", "true").await;
        let busy = "SELECT * FROM inbox WHERE message_id = 'm1' FOR UPDATE; \
                    SELECT * FROM dead_letters WHERE message_id = 'm1' FOR UPDATE";
        let held = home.hold(busy).await;
        assert_eq!(drain(&store, &KEPT, 10).await, [2]);
        held.let_go().await;
        assert_eq!(drain(&store, &KEPT, 10).await, [2]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_of_counts_is_summed_up_and_says_the_same() {
    on_postgres(|home| async move {
        let store = home.store().await;
        for n in 0..120 {
            capture(&store, [letter(&format!("m{n}"))]).await;
        }
        assert!(home.number("SELECT count(*) FROM dead_letter_tallies").await >= 120);
        let before = store.groups(&all()).await.unwrap();
        assert_eq!(store.prune(&KEPT, 10).await.unwrap().rows, 0, "it is no row that goes");
        assert_eq!(home.number("SELECT count(*) FROM dead_letter_tallies").await, 1);
        assert_eq!(store.groups(&all()).await.unwrap(), before);
    })
    .await;
}
