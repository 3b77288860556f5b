//! What sync needs of the store, tested on both backends.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "so does a test fail"
)]

#[path = "support/stores.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod stores;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use headcount::{
    rules::{Outcome, users::OnDelete, users::Policy},
    store::{
        Store,
        housekeeping::{RUNS_KEPT, Retention},
        sync::{
            Counts, Holder, INSTANCES_MAX, NewRun, Owner, Run, RunResult, Seen, SeenBy, Settled, Taken,
            Unseen,
        },
    },
};
use stores::{Home, KEEP, apply, contract, created, deleted, row, updated};
use uuid::Uuid;

/// An application may write what the driver cannot hold, and would panic at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_that_never_come_are_read_as_the_last_ones() {
    Home::postgres().await.run(endless).await;
}

async fn endless(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [created("ann", 10).event(), created("bob", 10).event()]).await.unwrap();
    home.sql(
        "UPDATE users SET created_at = 'infinity', last_sign_in_at = '-infinity', clerk_created_at = '294000-01-01' \
         WHERE clerk_id = 'ann'; UPDATE users SET deleted_at = 'infinity' WHERE clerk_id = 'bob'",
    )
    .await;
    let known = store.known(&["ann".to_owned(), "bob".to_owned()], &[]).await.unwrap();
    assert_eq!(known.loaded.rows.len(), 2);
    let ann = row(&store, "ann").await;
    assert_eq!(ann.created_at, "9999-12-31T23:59:59.999Z");
    assert_eq!(ann.last_sign_in_at.as_deref(), Some("0000-01-01T00:00:00.000Z"));
    // News of such rows is folded as of any other.
    apply(&store, [updated("ann", 20).named("Ann").event(), deleted("bob", 30)]).await.unwrap();
    assert_eq!(row(&store, "ann").await.username.as_deref(), Some("Ann"));
    assert_eq!(row(&store, "bob").await.deleted_at.as_deref(), Some("1970-01-01T00:00:00.030Z"));
}

contract! {
    known_are_rows_with_profiles_claimants_and_former_ids
    known_are_letters_of_the_api_that_are_open_or_just_discarded
    who_is_live_is_counted_and_told
    a_user_is_named_by_our_id_clerk_id_former_id_and_address
    a_lease_has_one_holder_who_renews_it_and_gives_it_back
    one_of_many_that_want_a_lease_gets_it
    an_expired_lease_is_taken_over_from_whoever_had_it
    only_the_holder_of_a_lease_tells_its_state
    a_run_goes_on_where_the_last_one_of_its_kind_stopped
    runs_that_nobody_can_go_on_with_are_abandoned
    a_run_that_is_over_is_written_down_no_more
    only_the_process_that_has_a_run_writes_it_down
    runs_come_newest_first
    a_user_seen_twice_is_new_once_and_the_last_message_is_noted
    what_became_of_messages_is_told_but_not_of_those_on_their_way
    users_a_run_did_not_see_are_found_in_bounded_steps
    rows_made_or_deleted_during_a_run_are_not_missed_by_it
    absences_are_noted_and_told_page_by_page
    ended_and_left_runs_are_pruned_in_steps
    the_first_instance_owns_the_table_until_another_is_adopted
    of_instances_that_come_or_are_adopted_at_once_one_owns
    more_instances_than_are_remembered_are_ignored
    the_newest_webhook_of_an_instance_or_of_the_owner_is_noted
}

const X: &str = "x@example.com";

fn texts<T: ToString>(texts: impl IntoIterator<Item = T>) -> Vec<String> {
    texts.into_iter().map(|text| text.to_string()).collect()
}

async fn known_are_rows_with_profiles_claimants_and_former_ids(home: Arc<Home>) {
    let store = home.store().await;
    let batch = [
        created("ann", 10)
            .verified(X)
            .with(|profile| {
                profile.username = Some("ann".into());
                profile.public_metadata = Some(r#"{"a": 1}"#.into());
                profile.banned = Some(true);
                profile.last_sign_in_at = Some(5);
            })
            .event(),
        created("bob", 20).unverified("X@Example.com").event(),
        created("cat", 30).verified("cat@example.com").event(),
        created("dan", 40).event(),
        deleted("eve", 50),
        created("fay", 60).verified("fay@example.com").event(),
        deleted("fay", 70),
        created("fay_2", 80).verified("fay@example.com").event(),
    ];
    apply(&store, batch).await.unwrap();

    let ids = texts(["bob", "eve", "fay", "nobody"]);
    let known = store.known(&ids, &texts(["cat@example.com"])).await.unwrap();
    let mut rows = known.loaded.rows;
    rows.sort_by(|one, other| one.clerk_id.cmp(&other.clerk_id));
    let found: Vec<&str> = rows.iter().map(|row| row.clerk_id.as_str()).collect();
    assert_eq!(found, ["ann", "bob", "cat"], "ann too: bob's row claims her address");
    let profile = rows[0].profile.as_ref().unwrap();
    assert_eq!(profile.username.as_deref(), Some("ann"));
    assert_eq!(profile.public_metadata.as_deref(), Some(r#"{"a": 1}"#));
    assert_eq!((profile.banned, profile.last_sign_in_at), (Some(true), Some(5)));
    assert_eq!((rows[0].shown, rows[1].shown, rows[1].version.at), (true, false, 20));
    let former: BTreeMap<String, i64> = known.loaded.former.into_iter().collect();
    assert_eq!(former, BTreeMap::from([("eve".into(), 50), ("fay".into(), 70)]));
    assert!(known.dead.is_empty());

    if home.is_postgres() {
        let held = home.hold("SELECT FROM users FOR UPDATE").await;
        assert_eq!(store.known(&ids, &[]).await.unwrap().loaded.rows.len(), 2, "it waits for no lock");
        held.let_go().await;
    }
}

/// A dead letter, as another part of headcount leaves it.
async fn letter(home: &Home, message_id: &str, clerk_id: &str, status: &str, outcome: &str, origin: &str) {
    let id = Uuid::now_v7();
    let at = "'2026-01-02T03:04:05.678Z'";
    home.sql(&format!(
        "INSERT INTO dead_letters (id, message_id, round, event_type, clerk_id, reason, detail, attempts, first_seen, \
         died_at, grp, status, captured_round, search, outcome, origin) \
         VALUES ('{id}', '{message_id}', 0, 'headcount.user', '{clerk_id}', 'rejected', '', 1, {at}, {at}, 'rejected', \
         '{status}', 0, '', {outcome}, '{origin}')"
    ))
    .await;
}

async fn known_are_letters_of_the_api_that_are_open_or_just_discarded(home: Arc<Home>) {
    let store = home.store().await;
    for (id, status, origin) in [
        ("ann", "open", "api"),
        ("bob", "open", "webhook"),
        ("cat", "replayed", "api"),
        ("dan", "discarded", "api"),
        ("eve", "open", "api"),
        ("fay", "discarded", "api"),
        ("gil", "applied", "api"),
    ] {
        letter(&home, &format!("m_{id}"), id, status, "NULL", origin).await;
    }
    letter(&home, "m_ann_2", "ann", "open", "NULL", "api").await;
    letter(&home, "m_ann_3", "ann", "replayed", "NULL", "api").await;
    age(&home, "dead_letters", &["first_seen"], 1, "message_id = 'm_ann'").await;
    let now = if home.is_postgres() { "now()" } else { "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')" };
    home.sql(&format!("UPDATE dead_letters SET settled_at = {now} WHERE clerk_id IN ('dan', 'fay', 'gil')"))
        .await;
    age(&home, "dead_letters", &["settled_at"], 1, "clerk_id = 'fay'").await;
    let ids = texts(["ann", "bob", "cat", "dan", "fay", "gil"]);
    let dead = store.known(&ids, &[]).await.unwrap().dead;
    let read_at = 1_767_323_045_678;
    assert_eq!(BTreeMap::from_iter(dead), BTreeMap::from([("ann".into(), read_at), ("dan".into(), read_at)]));
}

async fn who_is_live_is_counted_and_told(home: Arc<Home>) {
    let store = home.store().await;
    assert_eq!(store.live_users().await.unwrap(), 0);
    let batch = (0..5).map(|n| created(&format!("user_{n}"), 10).event());
    apply(&store, batch.chain([deleted("user_3", 20), deleted("nobody", 30)])).await.unwrap();
    assert_eq!(store.live_users().await.unwrap(), 4);
    let mut live = store.live_among(&texts(["user_3", "user_4", "nobody", "user_0"])).await.unwrap();
    live.sort();
    assert_eq!(live, ["user_0", "user_4"]);
    assert!(store.live_among(&[]).await.unwrap().is_empty());
}

async fn a_user_is_named_by_our_id_clerk_id_former_id_and_address(home: Arc<Home>) {
    let store = home.store().await;
    let batch = [
        created("ann", 10).verified(X).event(),
        deleted("ann", 20),
        created("ann_2", 30).verified(X).event(),
    ];
    apply(&store, batch).await.unwrap();
    let id = row(&store, "ann_2").await.id.to_string();
    for reference in [&id, "ann", "ann_2", " X@example.com "] {
        assert_eq!(store.clerk_id_of(reference).await.unwrap().as_deref(), Some("ann_2"), "{reference}");
    }
    for reference in ["", "bob", "\0", "bob@example.com"] {
        assert_eq!(store.clerk_id_of(reference).await.unwrap(), None, "{reference}");
    }
}

fn holder(host: &str) -> Holder {
    Holder { id: Uuid::now_v7(), host: host.into(), process: "worker 7".into() }
}

const HALF_A_MINUTE: Duration = Duration::from_secs(30);

/// Takes the lease `watch`. Answers who has it otherwise.
async fn take(store: &Arc<dyn Store>, by: &Holder) -> Result<(), Option<Uuid>> {
    match store.take_lease("watch", by, HALF_A_MINUTE).await.unwrap() {
        Taken::Ours => Ok(()),
        Taken::Theirs(lease) => Err(lease.holder),
    }
}

async fn a_lease_has_one_holder_who_renews_it_and_gives_it_back(home: Arc<Home>) {
    let store = home.store().await;
    let (ann, bob) = (holder("ann"), holder("bob"));
    assert_eq!(store.lease("watch").await.unwrap(), None);
    assert_eq!(take(&store, &ann).await, Ok(()));
    let first = store.lease("watch").await.unwrap().unwrap();
    assert_eq!(
        (first.holder, first.host.as_str(), first.process.as_str()),
        (Some(ann.id), "ann", "worker 7")
    );
    assert_eq!((first.expires_at - first.taken_at, first.expired), (30_000, false));
    assert_eq!(take(&store, &bob).await, Err(Some(ann.id)));
    assert_eq!(store.take_lease("sync", &bob, HALF_A_MINUTE).await.unwrap(), Taken::Ours);

    expire(&home, "-1").await;
    assert_eq!(take(&store, &ann).await, Ok(()), "late, but nobody else has had it");
    let again = store.lease("watch").await.unwrap().unwrap();
    assert_eq!((again.expires_at - again.taken_at, again.expired), (30_000, false), "taken anew");
    expire(&home, "1").await;
    assert_eq!(take(&store, &ann).await, Ok(()), "a renewal");
    let renewed = store.lease("watch").await.unwrap().unwrap();
    assert_eq!((renewed.taken_at, renewed.expired), (again.taken_at, false));

    store.give_lease_back("watch", bob.id).await.unwrap();
    assert_eq!(take(&store, &bob).await, Err(Some(ann.id)), "it was not bob's");
    store.give_lease_back("watch", ann.id).await.unwrap();
    let back = store.lease("watch").await.unwrap().unwrap();
    assert_eq!((back.holder, back.host.as_str(), back.expired), (None, "ann", true));
    assert_eq!(take(&store, &bob).await, Ok(()), "nobody died");
    assert_eq!(take(&store, &ann).await, Err(Some(bob.id)));
}

/// Sets when the lease ends, in hours from now.
async fn expire(home: &Home, hours: &str) {
    let at = if home.is_postgres() {
        format!("now() + interval '{hours} hours'")
    } else {
        format!("strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '{hours} hours')")
    };
    home.sql(&format!("UPDATE leases SET expires_at = {at} WHERE name = 'watch'")).await;
}

/// Has these holders take the lease at once, through two stores. Answers who got it.
async fn race(stores: &[Arc<dyn Store>; 2], holders: &[Holder]) -> Vec<Uuid> {
    let barrier = Arc::new(tokio::sync::Barrier::new(holders.len()));
    let tasks: Vec<_> = holders
        .iter()
        .cloned()
        .enumerate()
        .map(|(n, by)| {
            let (store, barrier) = (stores[n % 2].clone(), barrier.clone());
            tokio::spawn(async move {
                barrier.wait().await;
                take(&store, &by).await.ok().map(|()| by.id)
            })
        })
        .collect();
    let mut winners = Vec::new();
    for task in tasks {
        winners.extend(task.await.unwrap());
    }
    winners
}

async fn one_of_many_that_want_a_lease_gets_it(home: Arc<Home>) {
    let stores = [home.store().await, home.open().await];
    for _ in 0..20 {
        home.sql("DELETE FROM leases").await;
        let holders: Vec<Holder> = (0..4).map(|_| holder("host")).collect();
        let [winner] = race(&stores, &holders).await.try_into().unwrap();
        let lease = stores[1].lease("watch").await.unwrap().unwrap();
        assert_eq!(lease.holder, Some(winner));
    }
}

async fn an_expired_lease_is_taken_over_from_whoever_had_it(home: Arc<Home>) {
    let stores = [home.store().await, home.open().await];
    let mut last = holder("first");
    assert_eq!(take(&stores[0], &last).await, Ok(()));
    let state = serde_json::json!({ "healed": 3 });
    assert!(stores[0].tell_state("watch", last.id, &state).await.unwrap());
    for _ in 0..10 {
        expire(&home, "-1").await;
        let holders: Vec<Holder> = (0..4).map(|_| holder("next")).collect();
        let [winner] = race(&stores, &holders).await.try_into().unwrap();
        assert_eq!(take(&stores[0], &last).await, Err(Some(winner)), "it is over for the one before");
        last = holders.into_iter().find(|holder| holder.id == winner).unwrap();
    }
    let lease = stores[1].lease("watch").await.unwrap().unwrap();
    assert_eq!(
        (lease.state, lease.host.as_str()),
        (Some(state), "next"),
        "the state stays until another is told"
    );
}

async fn only_the_holder_of_a_lease_tells_its_state(home: Arc<Home>) {
    let store = home.store().await;
    let (ann, bob) = (holder("ann"), holder("bob"));
    let state = serde_json::json!({ "behind": 0, "note": "ü \"quoted\"" });
    assert!(!store.tell_state("watch", ann.id, &state).await.unwrap(), "nobody has it");
    take(&store, &ann).await.unwrap();
    assert!(store.tell_state("watch", ann.id, &state).await.unwrap());
    assert!(!store.tell_state("watch", bob.id, &serde_json::json!(1)).await.unwrap());
    store.give_lease_back("watch", ann.id).await.unwrap();
    assert!(!store.tell_state("watch", ann.id, &serde_json::json!(2)).await.unwrap());
    assert_eq!(store.lease("watch").await.unwrap().unwrap().state, Some(state));
}

fn full(instance_id: &str) -> NewRun {
    NewRun { instance_id: instance_id.into(), who: "ann".into(), dry_run: false, holder: Uuid::from_u128(1) }
}

/// Moves columns of these rows back in time.
async fn age(home: &Home, table: &str, columns: &[&str], days: u32, condition: &str) {
    let set = columns.iter().map(|column| {
        if home.is_postgres() {
            format!("{column} = {column} - interval '{days} days'")
        } else {
            format!("{column} = strftime('%Y-%m-%dT%H:%M:%fZ', {column}, '-{days} days')")
        }
    });
    let set = set.collect::<Vec<_>>().join(", ");
    home.sql(&format!("UPDATE {table} SET {set} WHERE {condition}")).await;
}

async fn a_run_goes_on_where_the_last_one_of_its_kind_stopped(home: Arc<Home>) {
    let store = home.store().await;
    let begun = store.begin_run(&full("ins_1")).await.unwrap();
    assert_eq!((begun.resumed, begun.phase.as_str(), begun.cursor.as_deref()), (false, "", None));
    assert_eq!((begun.counts, begun.result, begun.finished_at), (Counts::default(), None, None));
    assert_eq!((begun.instance_id.as_str(), begun.who.as_str(), begun.dry_run), ("ins_1", "ann", false));

    let counts = Counts {
        clerk: 1,
        in_step: 2,
        missing: 3,
        outdated: 4,
        different: 5,
        gone: 6,
        buried_alive: 7,
        repaired: 8,
        failed: 9,
    };
    let saved = Run {
        phase: "pages".into(),
        cursor: Some(r#"{"after":"user_1"}"#.into()),
        counts,
        result: Some(RunResult::Failed),
        detail: Some("Clerk's API is down\n".into()),
        ..begun.clone()
    };
    store.save_run(&saved).await.unwrap();
    let shown = store.runs(10).await.unwrap();
    assert_eq!(shown[0].detail.as_deref(), Some("Clerk's API is down\u{fffd}"));
    assert_eq!((shown[0].result, shown[0].counts), (Some(RunResult::Failed), counts));

    let dry = store.begin_run(&NewRun { dry_run: true, ..full("ins_1") }).await.unwrap();
    let foreign = store.begin_run(&full("ins_2")).await.unwrap();
    assert_eq!((dry.resumed, foreign.resumed), (false, false), "other kinds");

    let resumed = store.begin_run(&NewRun { who: "bob".into(), ..full("ins_1") }).await.unwrap();
    assert!(resumed.resumed);
    assert_eq!((resumed.id, resumed.started_at), (begun.id, begun.started_at));
    assert_eq!((&resumed.phase, &resumed.cursor, resumed.counts), (&saved.phase, &saved.cursor, counts));
    assert_eq!((resumed.who.as_str(), resumed.result, resumed.detail), ("bob", None, None));
    assert!(resumed.updated_at >= begun.updated_at);
    assert!(store.begin_run(&NewRun { dry_run: true, ..full("ins_1") }).await.unwrap().resumed);

    let done = Run { finished_at: Some(1_767_323_045_678), result: Some(RunResult::Done), ..saved };
    store.save_run(&done).await.unwrap();
    let next = store.begin_run(&full("ins_1")).await.unwrap();
    assert!(!next.resumed && next.id > begun.id, "a finished run is over");
    let over = store.runs(10).await.unwrap().into_iter().find(|run| run.id == begun.id).unwrap();
    assert_eq!((over.finished_at, over.result), (Some(1_767_323_045_678), Some(RunResult::Done)));
}

async fn runs_that_nobody_can_go_on_with_are_abandoned(home: Arc<Home>) {
    let store = home.store().await;
    let old = store.begin_run(&full("ins_1")).await.unwrap();
    let foreign = store.begin_run(&full("ins_2")).await.unwrap();
    age(&home, "sync_runs", &["started_at"], 2, "true").await;
    let fresh_dry = store.begin_run(&NewRun { dry_run: true, ..full("ins_3") }).await.unwrap();
    let new = store.begin_run(&full("ins_1")).await.unwrap();
    assert!(!new.resumed, "the old one began more than a day ago");
    let results = async || {
        let runs = store.runs(10).await.unwrap();
        [&old, &foreign, &fresh_dry, &new]
            .map(|run| runs.iter().find(|other| other.id == run.id).unwrap())
            .map(|run| (run.result, run.finished_at.is_some()))
    };
    let abandoned = (Some(RunResult::Abandoned), true);
    assert_eq!(results().await, [abandoned, abandoned, (None, false), (None, false)]);

    // Of two that could be gone on with, the newer one is; the other is over.
    let twin = store.begin_run(&full("ins_4")).await.unwrap();
    home.sql(&format!(
        "UPDATE sync_runs SET finished_at = NULL, result = NULL, instance_id = 'ins_4' WHERE id = '{}'",
        new.id
    ))
    .await;
    let resumed = store.begin_run(&full("ins_4")).await.unwrap();
    assert_eq!((resumed.id, resumed.resumed), (twin.id, true));
    assert_eq!(results().await[3], abandoned);
}

async fn a_run_that_is_over_is_written_down_no_more(home: Arc<Home>) {
    let store = home.store().await;
    let old = store.begin_run(&full("ins_1")).await.unwrap();
    age(&home, "sync_runs", &["started_at"], 2, "true").await;
    let new = store.begin_run(&full("ins_1")).await.unwrap();
    store.see(&new, &[seen("ann", None)]).await.unwrap();
    let done = Run { finished_at: Some(1), result: Some(RunResult::Done), ..new };
    store.save_run(&done).await.unwrap();
    let told = store.runs(10).await.unwrap();
    for over in [old.clone(), done, Run { id: Uuid::now_v7(), ..old }] {
        let late = Run { finished_at: None, result: None, phase: "late".into(), ..over };
        assert!(store.save_run(&late).await.unwrap_err().is_over());
        let error = store.see(&late, &[seen("bob", None)]).await.unwrap_err();
        assert!(error.is_over() && error.message.contains("the run is over"), "{error}");
    }
    assert_eq!(store.runs(10).await.unwrap(), told);
    assert_eq!(home.number("SELECT count(*) FROM sync_ids").await, 1);
}

async fn only_the_process_that_has_a_run_writes_it_down(home: Arc<Home>) {
    let store = home.store().await;
    let first = store.begin_run(&full("ins_1")).await.unwrap();
    let counts = Counts { clerk: 7, ..Counts::default() };
    let first = Run { counts, phase: "pages".into(), ..first };
    store.see(&first, &[seen("ann", Some("m1"))]).await.unwrap();
    let next = NewRun { holder: Uuid::from_u128(2), ..full("ins_1") };
    let second = store.begin_run(&next).await.unwrap();
    assert!(second.resumed && second.id == first.id);
    assert_eq!((second.counts, second.holder), (counts, next.holder), "what the first one had written");

    let late = Run { counts: Counts { clerk: 9, ..counts }, finished_at: Some(1), ..first };
    assert!(store.save_run(&late).await.unwrap_err().is_over());
    assert!(store.see(&late, &[seen("bob", None)]).await.unwrap_err().is_over());
    assert_eq!(store.new_to(second.id, &texts(["ann", "bob"])).await.unwrap(), ["bob"]);
    store.see(&second, &[seen("bob", None)]).await.unwrap();
    let told = store.runs(1).await.unwrap().remove(0);
    assert_eq!((told.counts, told.finished_at), (counts, None));
}

async fn runs_come_newest_first(home: Arc<Home>) {
    let store = home.store().await;
    let mut begun = Vec::new();
    for n in 0..4 {
        begun.push(store.begin_run(&full(&format!("ins_{n}"))).await.unwrap().id);
    }
    age(&home, "sync_runs", &["started_at"], 1, &format!("id = '{}'", begun[3])).await;
    let shown: Vec<Uuid> = store.runs(3).await.unwrap().iter().map(|run| run.id).collect();
    assert_eq!(shown, [begun[2], begun[1], begun[0]]);
}

async fn begin(store: &Arc<dyn Store>, instance_id: &str) -> Run {
    store.begin_run(&full(instance_id)).await.unwrap()
}

fn seen(clerk_id: &str, message_id: Option<&str>) -> Seen {
    Seen { clerk_id: clerk_id.into(), message_id: message_id.map(str::to_owned) }
}

async fn a_user_seen_twice_is_new_once_and_the_last_message_is_noted(home: Arc<Home>) {
    let store = home.store().await;
    let (begun, others) = (begin(&store, "ins_1").await, begin(&store, "ins_2").await);
    let (run, other) = (begun.id, others.id);
    let page = [seen("ann", Some("m1")), seen("bob", None), seen("ann", None), seen("cat", Some("m2"))];
    let ids = texts(["ann", "bob", "cat", "ann", "dan"]);
    assert_eq!(store.new_to(run, &ids).await.unwrap(), ids);
    let counted = Run { counts: Counts { clerk: 3, ..Counts::default() }, phase: "pages".into(), ..begun };
    store.see(&counted, &page).await.unwrap();
    assert_eq!(store.new_to(run, &ids).await.unwrap(), ["dan"]);
    let written = store.runs(10).await.unwrap().into_iter().find(|other| other.id == run).unwrap();
    assert_eq!((written.counts, written.phase.as_str()), (counted.counts, "pages"), "in one transaction");
    let pairs = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(one, other)| ((*one).to_owned(), (*other).to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(store.outstanding(run, 10).await.unwrap(), pairs(&[("ann", "m1"), ("cat", "m2")]));
    assert_eq!(store.outstanding(run, 1).await.unwrap(), pairs(&[("ann", "m1")]));

    let again = [seen("ann", None), seen("bob", Some("m3")), seen("cat", Some("m4")), seen("dan", None)];
    store.see(&counted, &again).await.unwrap();
    let noted = pairs(&[("ann", "m1"), ("bob", "m3"), ("cat", "m4")]);
    assert_eq!(store.outstanding(run, 10).await.unwrap(), noted);

    store.settle(run, &texts(["ann", "cat", "dan", "nobody"])).await.unwrap();
    assert_eq!(store.outstanding(run, 10).await.unwrap(), pairs(&[("bob", "m3")]));
    assert!(store.outstanding(other, 10).await.unwrap().is_empty());
    assert_eq!(store.new_to(other, &ids).await.unwrap(), ids, "each run sees for itself");
    store.see(&others, &again).await.unwrap();
    store.see(&counted, &[]).await.unwrap();
    assert!(store.new_to(run, &[]).await.unwrap().is_empty());

    let many: Vec<Seen> = (0..1_201).map(|n| seen(&format!("user_{n}"), Some("m\"'\\ü"))).collect();
    store.see(&counted, &many).await.unwrap();
    store.see(&counted, &many).await.unwrap();
    assert_eq!(home.number("SELECT count(*) FROM sync_ids").await, 4 + 4 + 1_201);
    assert_eq!(store.outstanding(run, 5_000).await.unwrap().len(), 1_202);
}

async fn what_became_of_messages_is_told_but_not_of_those_on_their_way(home: Arc<Home>) {
    let store = home.store().await;
    let batch = [
        created("ann", 10).message("m_created").event(),
        updated("ann", 20).message("m_updated").event(),
        created("bob", 10).message("m_odd").event(),
    ];
    apply(&store, batch).await.unwrap();
    apply(&store, [updated("ann", 15).message("m_stale").event()]).await.unwrap();
    home.sql("UPDATE inbox SET outcome = 'transmogrified' WHERE message_id = 'm_odd'").await;
    letter(&home, "m_open", "cat", "open", "NULL", "api").await;
    letter(&home, "m_replayed", "cat", "replayed", "NULL", "api").await;
    letter(&home, "m_discarded", "cat", "discarded", "NULL", "api").await;
    letter(&home, "m_applied", "cat", "applied", "'updated'", "api").await;
    // A worker that has just applied it has not told the letter yet, where an older one is still there.
    letter(&home, "m_stale", "ann", "open", "NULL", "api").await;
    let ids = texts([
        "m_created",
        "m_updated",
        "m_stale",
        "m_odd",
        "m_open",
        "m_replayed",
        "m_discarded",
        "m_applied",
        "m_queued",
    ]);
    let mut settled = store.settled(&ids).await.unwrap();
    settled.sort_by(|one, other| one.0.cmp(&other.0));
    let applied = |outcome| Settled::Applied(Some(outcome));
    let expected = [
        ("m_applied", applied(Outcome::Updated)),
        ("m_created", applied(Outcome::Created)),
        ("m_discarded", Settled::Buried),
        ("m_odd", Settled::Applied(None)),
        ("m_open", Settled::Buried),
        ("m_replayed", Settled::Buried),
        ("m_stale", applied(Outcome::Stale)),
        ("m_updated", applied(Outcome::Updated)),
    ];
    assert_eq!(settled, expected.map(|(message_id, settled)| (message_id.to_owned(), settled)));
}

/// Steps through the table. Answers the steps.
async fn unseen(store: &Arc<dyn Store>, run: Uuid, limit: u32) -> Vec<Unseen> {
    let (mut steps, mut after) = (Vec::new(), None::<String>);
    loop {
        let step = store.unseen(run, after.as_deref(), limit).await.unwrap();
        after.clone_from(&step.scanned_to);
        steps.push(step);
        if after.is_none() {
            return steps;
        }
    }
}

async fn users_a_run_did_not_see_are_found_in_bounded_steps(home: Arc<Home>) {
    let store = home.store().await;
    let id = |n: u32| format!("user_{n:04}");
    for hundred in 0..30 {
        let batch = (0..100).map(|n| created(&id(hundred * 100 + n), 10).event());
        apply(&store, batch).await.unwrap();
    }
    age(&home, "users", &["created_at"], 1, "true").await;
    let (begun, other) = (begin(&store, "ins_1").await, begin(&store, "ins_2").await);
    let run = begun.id;
    let missed = [0, 1, 700, 1_499, 1_500, 2_999].map(id);
    let all: Vec<Seen> =
        (0..3_000).map(|n| seen(&id(n), None)).filter(|seen| !missed.contains(&seen.clerk_id)).collect();
    store.see(&begun, &all).await.unwrap();
    store.see(&other, &[seen(&missed[0], None)]).await.unwrap();

    let steps = unseen(&store, run, 700).await;
    let ends: Vec<Option<String>> = steps.iter().map(|step| step.scanned_to.clone()).collect();
    assert_eq!(ends, [Some(id(699)), Some(id(1_399)), Some(id(2_099)), Some(id(2_799)), None]);
    let found: Vec<String> = steps.into_iter().flat_map(|step| step.clerk_ids).collect();
    assert_eq!(found, missed);
    assert_eq!(unseen(&store, run, 1_500).await.len(), 3, "a last step that is empty");
    assert_eq!(unseen(&store, run, 5_000).await.len(), 1);
    assert!(unseen(&store, Uuid::now_v7(), 5_000).await[0].clerk_ids.is_empty(), "no such run, nobody gone");
}

async fn rows_made_or_deleted_during_a_run_are_not_missed_by_it(home: Arc<Home>) {
    let policy = Policy { on_delete: OnDelete::Erase, ..KEEP };
    let store = home.store_with(policy).await;
    apply(&store, ["ann", "bob", "cat"].map(|id| created(id, 10).event())).await.unwrap();
    age(&home, "users", &["created_at"], 1, "true").await;
    let run = store.begin_run(&full("ins_1")).await.unwrap().id;
    apply(&store, [deleted("bob", 20), created("dan", 30).event()]).await.unwrap();
    let steps = unseen(&store, run, 2).await;
    let found: Vec<String> = steps.into_iter().flat_map(|step| step.clerk_ids).collect();
    assert_eq!(found, ["ann", "cat"]);
}

async fn absences_are_noted_and_told_page_by_page(home: Arc<Home>) {
    let store = home.store().await;
    let begun = begin(&store, "ins_1").await;
    let run = begun.id;
    apply(&store, ["ann", "bob", "cat"].map(|id| created(id, 10).event())).await.unwrap();
    age(&home, "users", &["created_at"], 1, "true").await;
    store.see(&begun, &[seen("bob", Some("m1"))]).await.unwrap();
    for (id, at) in [("cat", 3), ("ann", 1), ("bob", 2), ("ann", 4)] {
        store.note_absent(run, id, at).await.unwrap();
    }
    let page = store.absent(run, None, 2).await.unwrap();
    assert_eq!(page, [("ann".to_owned(), 4), ("bob".to_owned(), 2)]);
    assert_eq!(store.absent(run, Some("bob"), 2).await.unwrap(), [("cat".to_owned(), 3)]);
    assert!(store.absent(run, Some("cat"), 2).await.unwrap().is_empty());
    assert_eq!(store.outstanding(run, 10).await.unwrap().len(), 1, "what was published stays noted");
    assert!(unseen(&store, run, 10).await[0].clerk_ids.is_empty(), "nobody is looked up twice");
}

async fn ended_and_left_runs_are_pruned_in_steps(home: Arc<Home>) {
    let store = home.store().await;
    // As a process leaves it that is killed between two steps of retention.
    let left_behind = async |run: &Run, ids: &[Seen]| {
        for Seen { clerk_id, .. } in ids {
            home.sql(&format!("INSERT INTO sync_ids (run, clerk_id) VALUES ('{}', '{clerk_id}')", run.id))
                .await;
        }
    };
    let forever = Retention {
        inbox: Duration::MAX,
        dead: Duration::MAX,
        sessions: Duration::MAX,
        rejections: Duration::MAX,
    };
    let pruned = async || store.prune(&forever, 10).await.unwrap().rows;
    let ids: Vec<Seen> = (0..15).map(|n| seen(&format!("user_{n:02}"), None)).collect();
    let mut runs = Vec::new();
    for n in 0..3 {
        let run = store.begin_run(&full(&format!("ins_{n}"))).await.unwrap();
        store.see(&run, &ids).await.unwrap();
        runs.push(run);
    }
    let [going, left, ended] = runs.try_into().unwrap();
    assert_eq!(pruned().await, 0);
    age(&home, "sync_runs", &["started_at", "updated_at"], 8, &format!("id = '{}'", left.id)).await;
    let stopped = Run { result: Some(RunResult::Stopped), finished_at: Some(1), ..ended };
    store.save_run(&stopped).await.unwrap();
    assert_eq!([pruned().await, pruned().await, pruned().await, pruned().await], [10, 10, 10, 0]);
    assert_eq!(home.number("SELECT count(*) FROM sync_ids").await, 15);
    let of_going = format!("SELECT count(*) FROM sync_ids WHERE run = '{}'", going.id);
    assert_eq!(home.number(&of_going).await, 15, "those of the run that goes on");
    home.sql("DELETE FROM sync_ids").await;
    assert_eq!(store.runs(10).await.unwrap().len(), 3);

    // A run goes once it is old, is not among the newest, and has nothing left of what it saw.
    left_behind(&stopped, &ids[..1]).await;
    let old = format!("id IN ('{}', '{}')", left.id, stopped.id);
    age(&home, "sync_runs", &["started_at"], 91, &old).await;
    assert_eq!(pruned().await, 1, "what was seen goes, but both are among the newest");
    left_behind(&stopped, &ids).await;
    age(&home, "sync_runs", &["updated_at"], 20, &format!("id = '{}'", going.id)).await;
    for n in 0..RUNS_KEPT {
        let run = store.begin_run(&full(&format!("new_{n}"))).await.unwrap();
        assert!(!run.resumed);
    }
    assert_eq!([pruned().await, pruned().await], [11, 6], "a run goes with the last of what it saw");
    assert_eq!(pruned().await, 0);
    assert_eq!(store.runs(1_000).await.unwrap().len(), RUNS_KEPT as usize + 1);
}

fn owner(owner: &str, others: &[&str]) -> Owner {
    Owner { owner: Some(owner.into()), others: texts(others) }
}

async fn the_first_instance_owns_the_table_until_another_is_adopted(home: Arc<Home>) {
    let store = home.store().await;
    assert!(store.instances().await.unwrap().is_empty());
    assert_eq!(store.saw_instance("ins_1", SeenBy::Webhook).await.unwrap(), owner("ins_1", &[]));
    assert_eq!(store.saw_instance("ins_2", SeenBy::Sync).await.unwrap(), owner("ins_1", &["ins_2"]));
    assert_eq!(store.saw_instance("ins_1", SeenBy::Sync).await.unwrap(), owner("ins_1", &["ins_2"]));
    store.adopt_instance("ins_2").await.unwrap();
    assert_eq!(store.saw_instance("ins_1", SeenBy::Sync).await.unwrap(), owner("ins_2", &["ins_1"]));
    store.adopt_instance("ins_3").await.unwrap();
    store.adopt_instance("ins_3").await.unwrap();
    let rows = store.instances().await.unwrap();
    let shown: Vec<_> =
        rows.iter().map(|row| (row.instance_id.as_str(), row.first_seen_by, row.owner)).collect();
    let expected =
        [("ins_1", SeenBy::Webhook, false), ("ins_2", SeenBy::Sync, false), ("ins_3", SeenBy::Adopted, true)];
    assert_eq!(shown, expected);
    assert!(rows.iter().all(|row| row.first_seen_at > 0 && row.last_webhook_at.is_none()));
}

async fn of_instances_that_come_or_are_adopted_at_once_one_owns(home: Arc<Home>) {
    let stores = [home.store().await, home.open().await];
    for _ in 0..15 {
        home.sql("DELETE FROM instances").await;
        let barrier = Arc::new(tokio::sync::Barrier::new(4));
        let tasks: Vec<_> = (0..4)
            .map(|n| {
                let (store, barrier) = (stores[n % 2].clone(), barrier.clone());
                tokio::spawn(async move {
                    barrier.wait().await;
                    let owner = store.saw_instance(&format!("ins_{n}"), SeenBy::Webhook).await.unwrap();
                    barrier.wait().await;
                    store.adopt_instance(&format!("ins_{}", n / 2)).await.unwrap();
                    owner.owner
                })
            })
            .collect();
        let mut owners = BTreeSet::new();
        for task in tasks {
            owners.insert(task.await.unwrap());
        }
        assert_eq!(owners.len(), 1, "all were told the same");
        assert_eq!(stores[0].instances().await.unwrap().len(), 4, "nobody was left out");
        assert_eq!(home.number("SELECT count(*) FROM instances WHERE owner").await, 1);
    }
}

async fn more_instances_than_are_remembered_are_ignored(home: Arc<Home>) {
    let store = home.store().await;
    for n in 0..INSTANCES_MAX {
        store.saw_instance(&format!("ins_{n:03}"), SeenBy::Webhook).await.unwrap();
    }
    let one_more = store.saw_instance("ins_more", SeenBy::Webhook).await.unwrap();
    assert_eq!((one_more.owner.as_deref(), one_more.others.len()), (Some("ins_000"), 99));
    assert!(!one_more.others.contains(&"ins_more".to_owned()));
    store.adopt_instance("ins_more").await.unwrap();
    let adopted = store.saw_instance("ins_more", SeenBy::Webhook).await.unwrap();
    assert_eq!(adopted.owner.as_deref(), Some("ins_more"), "a person may always name one");
}

async fn the_newest_webhook_of_an_instance_or_of_the_owner_is_noted(home: Arc<Home>) {
    let store = home.store().await;
    store.note_webhook(None, 10).await.unwrap();
    store.note_webhook(Some("ins_1"), 10).await.unwrap();
    assert!(store.instances().await.unwrap().is_empty(), "none is made by it");
    for id in ["ins_1", "ins_2"] {
        store.saw_instance(id, SeenBy::Webhook).await.unwrap();
    }
    for (id, at) in [(None, 20), (Some("ins_1"), 10), (Some("ins_2"), 30), (Some("ins_3"), 40)] {
        store.note_webhook(id, at).await.unwrap();
    }
    let noted: Vec<_> = store.instances().await.unwrap().iter().map(|row| row.last_webhook_at).collect();
    assert_eq!(noted, [Some(20), Some(30)]);
    store.note_webhook(None, 50).await.unwrap();
    let noted: Vec<_> = store.instances().await.unwrap().iter().map(|row| row.last_webhook_at).collect();
    assert_eq!(noted, [Some(50), Some(30)]);
}
