//! Who works on a replay, what it claims, what becomes of its letters: the same on both stores.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use headcount::{
    letters::operations::NewReplay,
    message::Origin,
    store::{
        Store,
        housekeeping::Retention,
        letters::{Actor, Captured, Filter, Status},
        operations::{Ended, Held, Kind, NewOperation, Operation, Outcomes, State, Step, Tick, Wish, Wished},
    },
    time::now,
};
use uuid::Uuid;

use crate::stores::{Home, apply, contract, updated};

contract! {
    one_process_works_on_a_replay_and_a_lost_lease_claims_nothing
    of_many_that_take_a_replay_at_once_one_gets_it
    a_replay_claims_no_letter_twice_and_none_that_another_has_claimed_since
    the_letters_of_a_replay_are_told_by_what_became_of_them
    what_a_dead_replay_left_is_taken_over_and_a_live_ones_is_not
    a_wish_takes_effect_at_once_where_nobody_works
    who_wished_last_is_told_until_it_ends
    a_resume_needs_room_as_a_start_does
    every_replay_that_goes_on_is_listed_beside_the_newest
    four_of_many_that_start_at_once_may_run
    what_the_death_of_a_process_broke_off_is_ended
    operations_that_have_ended_are_forgotten_with_the_letters
    causes_tell_when_their_letters_died
}

const HOUR: i64 = 3_600_000;

pub(crate) fn letter(n: usize) -> Captured {
    Captured {
        message_id: format!("msg_{n:03}"),
        origin: Origin::Webhook,
        round: 0,
        event_type: "user.updated".into(),
        clerk_id: Some(format!("user_{n}")),
        reason: "rejected".into(),
        detail: "no such luck".into(),
        attempts: 7,
        first_seen: now() - HOUR,
        died_at: now() - HOUR + n as i64,
        group: "rejected: no such luck".into(),
        headers: BTreeMap::new(),
        body: Bytes::from_static(b"{}"),
    }
}

pub(crate) fn by(name: &str) -> Actor {
    Actor { name: name.into(), note: Some(format!("{name}'s note")) }
}

pub(crate) fn order(open: u64, halt_at: Option<f64>) -> NewReplay {
    NewReplay {
        filter: Filter { status: Some(Status::Open), ..Filter::default() },
        limit: 1_000,
        rate: None,
        halt_at,
        by: by("ann"),
        open,
        warnings: Vec::new(),
    }
}

async fn begin(store: &Arc<dyn Store>, holder: Option<Uuid>) -> Operation {
    store.begin_operation(&order(10, None).operation(holder)).await.unwrap().unwrap()
}

fn all() -> Filter {
    Filter { status: Some(Status::Open), ..Filter::default() }
}

/// Its lease is over.
async fn expire(home: &Home, id: Uuid) {
    let past = if home.is_postgres() {
        "now() - interval '1 second'"
    } else {
        "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-1 second')"
    };
    home.sql(&format!("UPDATE operations SET held_until = {past} WHERE id = '{id}'")).await;
}

fn tick() -> Tick {
    let step = Step { number: 1, from: 1, died: 0 };
    Tick { state: State::Running, detail: Some("why".into()), published: 3, applied: 2, died: 1, step }
}

fn complete() -> Ended {
    Ended { state: State::Complete, detail: None, published: 0, applied: 0, died: 0 }
}

async fn one_process_works_on_a_replay_and_a_lost_lease_claims_nothing(home: Arc<Home>) {
    let store = home.store().await;
    store.capture(&(0..10).map(letter).collect::<Vec<_>>()).await.unwrap();
    let (ann, bob) = (Uuid::now_v7(), Uuid::now_v7());
    let begun = begin(&store, Some(ann)).await;
    assert_eq!((begun.state, begun.wish, begun.held, begun.expected), (State::Running, Wish::Run, true, 10));
    assert_eq!(begun.order.as_ref().unwrap().filter, all());
    assert!(store.take_replay(bob).await.unwrap().is_none(), "it is held");
    let held = |holder| Held { id: begun.id, holder };
    assert_eq!(store.claim_for(held(ann), &all(), 3, &by("ann")).await.unwrap().len(), 3);
    let ticked = store.tick(begun.id, ann, &tick()).await.unwrap().unwrap();
    assert_eq!((ticked.claimed, ticked.published, ticked.step), (3, 3, tick().step));

    expire(&home, begun.id).await;
    assert!(store.tick(begun.id, ann, &tick()).await.unwrap().is_none(), "it was too late");
    assert!(store.claim_for(held(ann), &all(), 3, &by("ann")).await.unwrap_err().is_over());
    let taken = store.take_replay(bob).await.unwrap().unwrap();
    assert_eq!((taken.id, taken.holder, taken.claimed, taken.step), (begun.id, Some(bob), 3, tick().step));
    assert!(store.claim_for(held(ann), &all(), 3, &by("ann")).await.unwrap_err().is_over());
    assert!(!store.end_operation(begun.id, ann, &complete()).await.unwrap());
    store.give_operation_back(begun.id, ann).await.unwrap();
    assert_eq!(store.operation(begun.id).await.unwrap().unwrap().holder, Some(bob));
    assert_eq!(store.claim_for(held(bob), &all(), 100, &by("ann")).await.unwrap().len(), 7);

    store.give_operation_back(begun.id, bob).await.unwrap();
    let back = store.take_replay(ann).await.unwrap().unwrap();
    assert_eq!((back.claimed, back.state), (10, State::Running));
    assert!(store.end_operation(begun.id, ann, &complete()).await.unwrap());
    let ended = store.operation(begun.id).await.unwrap().unwrap();
    assert_eq!((ended.state, ended.order, ended.holder), (State::Complete, None, None));
    assert!(ended.ended_at.is_some());
    assert!(store.take_replay(bob).await.unwrap().is_none());
    assert!(store.claim_for(held(ann), &all(), 3, &by("ann")).await.unwrap_err().is_over());
}

async fn of_many_that_take_a_replay_at_once_one_gets_it(home: Arc<Home>) {
    let stores = [home.store().await, home.open().await];
    for _ in 0..5 {
        let begun = begin(&stores[0], None).await;
        let tasks: Vec<_> = (0..6)
            .map(|n| {
                let store = stores[n % 2].clone();
                tokio::spawn(async move { store.take_replay(Uuid::now_v7()).await.unwrap() })
            })
            .collect();
        let mut taken = Vec::new();
        for task in tasks {
            taken.extend(task.await.unwrap());
        }
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].id, begun.id);
        assert!(stores[0].end_operation(begun.id, taken[0].holder.unwrap(), &complete()).await.unwrap());
    }
}

async fn a_replay_claims_no_letter_twice_and_none_that_another_has_claimed_since(home: Arc<Home>) {
    let store = home.store().await;
    store.capture(&(0..4).map(letter).collect::<Vec<_>>()).await.unwrap();
    let (ann, bob) = (Uuid::now_v7(), Uuid::now_v7());
    let (one, two) = (begin(&store, Some(ann)).await, begin(&store, Some(bob)).await);
    let claim = async |id, holder, limit| {
        let claims = store.claim_for(Held { id, holder }, &all(), limit, &by("ann")).await.unwrap();
        claims.into_iter().map(|claim| claim.message_id).collect::<Vec<_>>()
    };
    assert_eq!(claim(one.id, ann, 2).await, ["msg_000", "msg_001"]);
    assert_eq!(claim(two.id, bob, 1).await, ["msg_002"]);
    // All of them die again.
    store.capture(&(0..3).map(|n| Captured { round: 1, ..letter(n) }).collect::<Vec<_>>()).await.unwrap();
    assert_eq!(claim(one.id, ann, 10).await, ["msg_003"]);
    assert!(claim(one.id, ann, 10).await.is_empty());
    assert!(claim(two.id, bob, 10).await.is_empty());
    // One that begins later may.
    let three = begin(&store, Some(bob)).await;
    assert_eq!(claim(three.id, bob, 10).await.len(), 3);
}

async fn the_letters_of_a_replay_are_told_by_what_became_of_them(home: Arc<Home>) {
    let store = home.store().await;
    store.capture(&(0..6).map(letter).collect::<Vec<_>>()).await.unwrap();
    let ann = Uuid::now_v7();
    let begun = begin(&store, Some(ann)).await;
    let held = Held { id: begun.id, holder: ann };
    let claims = store.claim_for(held, &all(), 5, &by("ann")).await.unwrap();
    let stamps: Vec<_> = claims[..4].iter().map(|claim| (claim.id, claim.round)).collect();
    store.stamp(&stamps).await.unwrap();
    apply(&store, [updated("user_0", 5).message("msg_000").event()]).await.unwrap();
    store.capture(&[1, 2].map(|n| Captured { round: 1, ..letter(n) })).await.unwrap();
    let two = Filter { ids: vec![claims[2].id], ..Filter::default() };
    assert_eq!(store.discard(&two, 1, &by("ann")).await.unwrap(), 1);
    let outcomes = |applied| Outcomes { applied, died: 2, under_way: 2, unstamped: 1 };
    assert_eq!(store.outcomes(begun.id, true).await.unwrap(), outcomes(1));
    assert_eq!(store.outcomes(begun.id, false).await.unwrap(), outcomes(0));
    let left = store.unpublished(begun.id, 10).await.unwrap();
    assert_eq!(left.iter().map(|claim| claim.message_id.as_str()).collect::<Vec<_>>(), ["msg_004"]);

    // Once it has ended, what became of the rest is counted for an hour.
    let end = Ended { published: 4, applied: 1, died: 2, ..complete() };
    store.end_operation(begun.id, ann, &end).await.unwrap();
    apply(&store, [updated("user_3", 5).message("msg_003").event()]).await.unwrap();
    assert!(!store.tidy_operations(true).await.unwrap(), "no replay goes on");
    let counted = store.operation(begun.id).await.unwrap().unwrap();
    assert_eq!((counted.applied, counted.died, counted.published), (2, 2, 4));
}

async fn what_a_dead_replay_left_is_taken_over_and_a_live_ones_is_not(home: Arc<Home>) {
    let store = home.store().await;
    store.capture(&(0..5).map(letter).collect::<Vec<_>>()).await.unwrap();
    let (ann, bob) = (Uuid::now_v7(), Uuid::now_v7());
    let (dead, live) = (begin(&store, Some(ann)).await, begin(&store, Some(bob)).await);
    store.claim_for(Held { id: dead.id, holder: ann }, &all(), 2, &by("ann")).await.unwrap();
    store.claim_for(Held { id: live.id, holder: bob }, &all(), 1, &by("ann")).await.unwrap();
    // By a process that writes nothing down.
    store.claim(&all(), 1, &by("ann")).await.unwrap();
    expire(&home, dead.id).await;
    let next = begin(&store, Some(ann)).await;
    let held = Held { id: next.id, holder: ann };
    let far = now() + HOUR;
    assert_eq!(store.adopt(held, &all(), now() - HOUR, 10).await.unwrap(), 0, "none is so old");
    assert_eq!(store.adopt(held, &all(), far, 2).await.unwrap(), 2);
    assert_eq!(store.adopt(held, &all(), far, 10).await.unwrap(), 1);
    assert_eq!(store.adopt(held, &all(), far, 10).await.unwrap(), 0);
    let operation = store.operation(next.id).await.unwrap().unwrap();
    assert_eq!((operation.taken_up, operation.claimed, operation.letters()), (3, 0, 3));
    assert_eq!(store.unpublished(next.id, 10).await.unwrap().len(), 3);
    assert_eq!(store.unpublished(live.id, 10).await.unwrap().len(), 1);
    let lost = Held { id: dead.id, holder: ann };
    assert!(store.adopt(lost, &all(), far, 10).await.unwrap_err().is_over());
}

async fn a_wish_takes_effect_at_once_where_nobody_works(home: Arc<Home>) {
    let store = home.store().await;
    let ann = Uuid::now_v7();
    let begun = begin(&store, None).await;
    let wish = async |wish| wished(&store, begun.id, wish, "ann").await;
    assert_eq!(wish(Wish::Pause).await.state, State::Paused);
    assert!(store.take_replay(ann).await.unwrap().is_none(), "it is paused");
    assert_eq!(wish(Wish::Run).await.state, State::Running);
    let taken = store.take_replay(ann).await.unwrap().unwrap();
    // Its holder follows.
    let paused = wish(Wish::Pause).await;
    assert_eq!((paused.wish, paused.state), (Wish::Pause, State::Running));
    let told = store.tick(taken.id, ann, &Tick { state: State::Paused, ..tick() }).await.unwrap().unwrap();
    assert_eq!((told.wish, told.state), (Wish::Pause, State::Paused));
    assert_eq!(wish(Wish::Stop).await.state, State::Paused);
    // Its holder dies before it is stopped: whoever takes it ends it.
    expire(&home, taken.id).await;
    let taken = store.take_replay(ann).await.unwrap().unwrap();
    assert_eq!(taken.wish, Wish::Stop);
    store.give_operation_back(taken.id, ann).await.unwrap();
    let stopped = wish(Wish::Stop).await;
    assert_eq!((stopped.state, stopped.order), (State::Stopped, None));
    assert!(stopped.ended_at.is_some());
    assert_eq!(wish(Wish::Run).await.state, State::Stopped, "what has ended stays so");
    assert!(store.wish(Uuid::now_v7(), Wish::Run, &by("ann"), 4).await.unwrap().is_none());
    // One that was to be paused when its process died is paused.
    let begun = begin(&store, Some(ann)).await;
    wished(&store, begun.id, Wish::Pause, "ann").await;
    expire(&home, begun.id).await;
    assert!(store.tidy_operations(false).await.unwrap());
    assert_eq!(store.operation(begun.id).await.unwrap().unwrap().state, State::Paused);
}

async fn wished(store: &Arc<dyn Store>, id: Uuid, wish: Wish, who: &str) -> Operation {
    match store.wish(id, wish, &by(who), 4).await.unwrap() {
        Some(Wished::Noted(operation)) => *operation,
        other => panic!("{other:?}"),
    }
}

async fn who_wished_last_is_told_until_it_ends(home: Arc<Home>) {
    let store = home.store().await;
    let ann = Uuid::now_v7();
    let begun = begin(&store, Some(ann)).await;
    let detail = async || store.operation(begun.id).await.unwrap().unwrap().detail;
    store.tick(begun.id, ann, &tick()).await.unwrap().unwrap();
    assert_eq!(detail().await.as_deref(), Some("why"));
    // Nobody resumes what goes on.
    wished(&store, begun.id, Wish::Run, "bob").await;
    assert_eq!(detail().await.as_deref(), Some("why"));
    wished(&store, begun.id, Wish::Pause, "bob").await;
    // Its holder knows it with the next renewal, and tells of nothing else meanwhile.
    let told = store.tick(begun.id, ann, &tick()).await.unwrap().unwrap();
    assert_eq!(told.detail.as_deref(), Some("paused by bob"));
    store.give_operation_back(begun.id, ann).await.unwrap();
    assert_eq!(wished(&store, begun.id, Wish::Run, "cid").await.detail.as_deref(), Some("resumed by cid"));
    let taken = store.take_replay(ann).await.unwrap().unwrap();
    assert_eq!(taken.detail.as_deref(), Some("resumed by cid"));
    store.tick(begun.id, ann, &tick()).await.unwrap().unwrap();
    assert_eq!(detail().await.as_deref(), Some("why"));
    wished(&store, begun.id, Wish::Pause, "bob").await;
    store.give_operation_back(begun.id, ann).await.unwrap();
    let stopped = wished(&store, begun.id, Wish::Stop, "dan").await;
    assert_eq!((stopped.state, stopped.detail.as_deref()), (State::Stopped, Some("stopped by dan")));
    let still = wished(&store, begun.id, Wish::Run, "eve").await;
    assert_eq!(still.detail.as_deref(), Some("stopped by dan"), "it had ended");
}

async fn a_resume_needs_room_as_a_start_does(home: Arc<Home>) {
    let stores = [home.store().await, home.open().await];
    let store = &stores[0];
    let mut paused = Vec::new();
    for _ in 0..4 {
        let begun = begin(store, None).await;
        wished(store, begun.id, Wish::Pause, "ann").await;
        paused.push(begun.id);
    }
    let start = async || store.begin_operation(&order(1, None).operation(None)).await.unwrap();
    let mut running = Vec::new();
    while let Some(begun) = start().await {
        running.push(begun.id);
    }
    assert_eq!(running.len(), 4, "paused ones do not count");
    for id in &paused {
        assert_eq!(store.wish(*id, Wish::Run, &by("bob"), 4).await.unwrap(), Some(Wished::Busy));
        let still = store.operation(*id).await.unwrap().unwrap();
        assert_eq!((still.state, still.wish), (State::Paused, Wish::Pause));
        assert_eq!(still.detail.as_deref(), Some("paused by ann"));
    }
    // What runs may be resumed all the same, and what is paused be stopped.
    wished(store, running[0], Wish::Run, "bob").await;
    assert_eq!(wished(store, paused.remove(0), Wish::Stop, "bob").await.state, State::Stopped);
    // One ends, and of many that are resumed at once one goes on.
    wished(store, running[0], Wish::Stop, "bob").await;
    let tasks: Vec<_> = (0..9)
        .map(|n| {
            let (store, id) = (stores[n % 2].clone(), paused[n % 3]);
            tokio::spawn(async move { (id, store.wish(id, Wish::Run, &by("bob"), 4).await.unwrap()) })
        })
        .collect();
    let mut resumed = std::collections::BTreeSet::new();
    for task in tasks {
        if let (id, Some(Wished::Noted(_))) = task.await.unwrap() {
            resumed.insert(id);
        }
    }
    assert_eq!(resumed.len(), 1);
    assert!(start().await.is_none());
}

async fn every_replay_that_goes_on_is_listed_beside_the_newest(home: Arc<Home>) {
    let store = home.store().await;
    let holder = Uuid::now_v7();
    let (old, over) = (begin(&store, None).await, begin(&store, Some(holder)).await);
    store.end_operation(over.id, holder, &complete()).await.unwrap();
    let mut newest = Vec::new();
    for _ in 0..2 {
        let begun = begin(&store, Some(holder)).await;
        store.end_operation(begun.id, holder, &complete()).await.unwrap();
        newest.insert(0, begun.id);
    }
    newest.push(old.id);
    let listed: Vec<_> = store.replays(2).await.unwrap().iter().map(|it| it.id).collect();
    assert_eq!(listed, newest);
}

async fn four_of_many_that_start_at_once_may_run(home: Arc<Home>) {
    let stores = [home.store().await, home.open().await];
    let tasks: Vec<_> = (0..12)
        .map(|n| {
            let store = stores[n % 2].clone();
            tokio::spawn(async move {
                store.begin_operation(&order(1, None).operation(None)).await.unwrap().is_some()
            })
        })
        .collect();
    let mut begun = 0;
    for task in tasks {
        begun += u32::from(task.await.unwrap());
    }
    assert_eq!(begun, 4);
    // A command's own is not held up.
    assert!(begin(&stores[0], Some(Uuid::now_v7())).await.held);
}

async fn what_the_death_of_a_process_broke_off_is_ended(home: Arc<Home>) {
    let store = home.store().await;
    let new = NewOperation {
        kind: Kind::Discard,
        holder: Some(Uuid::now_v7()),
        order: None,
        ..order(3, None).operation(None)
    };
    let begun = store.begin_operation(&NewOperation { most: None, ..new }).await.unwrap().unwrap();
    assert!(!store.tidy_operations(false).await.unwrap());
    assert_eq!(store.operation(begun.id).await.unwrap().unwrap().state, State::Running);
    expire(&home, begun.id).await;
    assert!(!store.tidy_operations(false).await.unwrap());
    let ended = store.operation(begun.id).await.unwrap().unwrap();
    assert_eq!(ended.state, State::Failed);
    assert!(ended.detail.unwrap().contains("process"));
}

async fn operations_that_have_ended_are_forgotten_with_the_letters(home: Arc<Home>) {
    let store = home.store().await;
    let ann = Uuid::now_v7();
    let (over, goes_on) = (begin(&store, Some(ann)).await, begin(&store, Some(ann)).await);
    store.end_operation(over.id, ann, &complete()).await.unwrap();
    let (started, ended) = if home.is_postgres() {
        ("started_at - interval '40 days'", "ended_at - interval '40 days'")
    } else {
        (
            "strftime('%Y-%m-%dT%H:%M:%fZ', started_at, '-40 days')",
            "strftime('%Y-%m-%dT%H:%M:%fZ', ended_at, '-40 days')",
        )
    };
    home.sql(&format!("UPDATE operations SET started_at = {started}, ended_at = {ended}")).await;
    let day = std::time::Duration::from_secs(86_400);
    let retention = |days: u32| Retention { inbox: day, dead: day * days, sessions: day, rejections: day };
    store.prune(&retention(41), 10).await.unwrap();
    assert!(store.operation(over.id).await.unwrap().is_some());
    store.prune(&retention(39), 10).await.unwrap();
    assert!(store.operation(over.id).await.unwrap().is_none());
    assert!(store.operation(goes_on.id).await.unwrap().is_some(), "it has not ended");
}

async fn causes_tell_when_their_letters_died(home: Arc<Home>) {
    let store = home.store().await;
    let now = now();
    let of = |n: usize, group: &str, ago: i64| Captured {
        group: group.into(),
        reason: group.into(),
        died_at: now - ago,
        ..letter(n)
    };
    store
        .capture(&[
            of(0, "new", HOUR / 2),
            of(1, "new", HOUR / 2),
            of(2, "new", 23 * HOUR + HOUR / 2),
            of(3, "old", 3 * HOUR / 2),
            of(4, "old", 30 * HOUR),
            of(5, "old", 40 * HOUR),
            of(6, "old", 100 * HOUR),
            of(7, "settled", HOUR / 2),
            of(8, "settled", 30 * HOUR),
        ])
        .await
        .unwrap();
    let eight = Filter { text: Some("msg_008".into()), ..all() };
    assert_eq!(store.discard(&eight, 1, &by("ann")).await.unwrap(), 1);
    let causes = store.causes(now).await.unwrap();
    let told: Vec<_> = causes
        .iter()
        .map(|cause| {
            let hours = cause.hours.iter().enumerate().filter(|(_, letters)| **letters > 0);
            let hours: Vec<_> = hours.map(|(hour, letters)| (hour, *letters)).collect();
            (cause.group.group.as_str(), cause.group.letters, hours, cause.is_new)
        })
        .collect();
    assert_eq!(
        told,
        [
            ("old", 4, vec![(22, 1)], false),
            ("new", 3, vec![(0, 1), (23, 2)], true),
            ("settled", 1, vec![(23, 1)], false),
        ]
    );
    assert_eq!(causes[0].group.last_died_at, Some(now - 3 * HOUR / 2));
    assert_eq!(causes[0].group.first_died_at, Some(now - 100 * HOUR));
}

/// Run by hand: `cargo nextest run --test operations --run-ignored only a_million`.
mod a_million {
    use super::*;

    async fn letters(home: Arc<Home>) {
        let store = home.store().await;
        let columns = "id, message_id, round, event_type, clerk_id, reason, detail, attempts, first_seen, died_at, grp, status, \
                       captured_round, search, origin";
        home.sql(&match home.is_postgres() {
            true => format!(
                "INSERT INTO dead_letters ({columns}) SELECT gen_random_uuid(), 'msg_' || n, 0, 'user.updated', 'user_' || n, \
                 'rejected', 'detail', 7, now(), now() - (n % 172800) * interval '1 second', 'cause ' || n % 200, 'open', 0, 'x', \
                 'webhook' FROM generate_series(1, 1000000) AS n; ANALYZE dead_letters"
            ),
            false => format!(
                "INSERT INTO dead_letters ({columns}) WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 1000000) \
                 SELECT lower(hex(randomblob(4))) || '-0000-4000-8000-' || printf('%012d', n), 'msg_' || n, 0, 'user.updated', \
                 'user_' || n, 'rejected', 'detail', 7, '2026-01-01T00:00:00.000Z', \
                 strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-' || (n % 172800) || ' seconds'), 'cause ' || (n % 200), 'open', 0, 'x', \
                 'webhook' FROM s"
            ),
        })
        .await;
        if home.is_postgres() {
            // As autovacuum does some time after so many rows came.
            home.sql("VACUUM dead_letters").await;
        }
        for _ in 0..3 {
            let begun = std::time::Instant::now();
            let causes = store.causes(now()).await.unwrap();
            eprintln!("causes: {:?} of {} groups", begun.elapsed(), causes.len());
            assert_eq!(causes.iter().map(|cause| cause.group.letters).sum::<u64>(), 1_000_000);
            let today: u64 = causes.iter().flat_map(|cause| &cause.hours).sum();
            assert!((400_000..600_000).contains(&today), "{today}");
            // SQLite is compiled without optimization where the tests are.
            let bound = if cfg!(debug_assertions) { 5 } else { 1 };
            assert!(begun.elapsed() < std::time::Duration::from_secs(bound));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "takes minutes"]
    async fn letters_on_postgres() {
        Home::postgres().await.run(letters).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "takes minutes"]
    async fn letters_on_sqlite() {
        Home::sqlite().await.run(letters).await;
    }
}
