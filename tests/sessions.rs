//! Sessions in the table: whatever the order of their events, they come out as they would on paper, they end with their users, and
//! tokens bring none back. On both stores.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

#[path = "support/stores.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod stores;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use headcount::{
    rules::{
        Change,
        Outcome::*,
        sessions::Status::{self, *},
    },
    store::{
        self, Incoming, Store,
        housekeeping::Retention,
        sessions::{Session, Sighting},
    },
    time::{Millis, now},
};
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use stores::{Home, KEEP, apply, contract, created, deleted, row, session};

contract! {
    sessions_come_out_the_same_in_any_order
    an_end_is_final_and_the_earliest_counts
    a_session_ends_with_its_user_whichever_comes_first
    a_session_has_its_users_row_whichever_comes_first
    a_returning_user_begins_sessions_anew
    who_lives_again_goes_on
    a_session_that_was_seen_is_noted_once_a_minute
    a_token_revives_nothing
    who_is_seen_while_being_deleted_is_not_signed_in
    ended_sessions_are_pruned
    without_sessions_nothing_is_kept
}

/// What is to be told of one session, without a name.
type Line = (Status, Millis, Millis, Option<Millis>);

async fn line(store: &Arc<dyn Store>, clerk_id: &str, id: &str) -> Line {
    let all = store.sessions_of(clerk_id).await.unwrap();
    let one = all.into_iter().find(|session| session.id == id).unwrap_or_else(|| panic!("no session {id}"));
    (one.status, one.created_at, one.last_seen_at, one.ended_at)
}

fn rounds(few: u64, many: u64) -> u64 {
    if std::env::var_os("SOAK").is_some() { many } else { few }
}

/// One life of three users and their sessions, with names of its own.
struct Life {
    users: Vec<String>,
    events: Vec<Incoming>,
}

impl Life {
    fn random(case: u64, rng: &mut StdRng) -> Self {
        let users: Vec<String> = (0..3).map(|n| format!("user_{case}_{n}")).collect();
        let mut events = Vec::new();
        for (n, user) in users.iter().enumerate() {
            if rng.random_bool(0.8) {
                events.push(created(user, 1_000).event());
            }
            if rng.random_bool(0.5) {
                events.push(deleted(user, 1_000 + rng.random_range(0..20)));
            }
            for m in 0..rng.random_range(0..4) {
                let id = format!("sess_{case}_{n}_{m}");
                let began = 1_000 + rng.random_range(0..8);
                for _ in 0..rng.random_range(1..6) {
                    let status = Status::ALL[rng.random_range(0..Status::ALL.len())];
                    let mut event = session(&id, user, status, began + rng.random_range(0..12));
                    if let Change::Session(news) = &mut event.event.change {
                        // Each message id once.
                        event.event.message_id = format!("{case}:{n}:{m}:{}", rng.next_u64());
                        news.version.message_id.clone_from(&event.event.message_id);
                        news.created_at = began;
                    }
                    events.push(event);
                }
            }
        }
        Self { users, events }
    }

    /// The sessions as they have to be, worked out from all of the events at once.
    fn on_paper(&self) -> BTreeMap<String, (String, Line)> {
        let mut gone: BTreeMap<&str, Millis> = BTreeMap::new();
        let mut told: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for event in &self.events {
            match &event.event.change {
                Change::Session(news) => told.entry(&news.id).or_default().push(news),
                change if change.deletes() => {
                    let at = gone.entry(change.clerk_id().unwrap()).or_insert(Millis::MAX);
                    *at = (*at).min(change.at().unwrap());
                }
                _ => {}
            }
        }
        let line = |(id, told): (&str, Vec<&Box<headcount::rules::sessions::News>>)| {
            let newest = told.iter().max_by(|one, other| one.version.cmp(&other.version)).unwrap();
            let own = told.iter().filter(|news| news.status.is_end());
            let own = own.map(|news| (news.version.at, false, news.status));
            let with_user = gone.get(&*newest.clerk_id).map(|at| (*at, true, Ended));
            let end = own.chain(with_user).min();
            let line = (
                end.map_or(newest.status, |end| end.2),
                told.iter().map(|news| news.created_at).min().unwrap(),
                told.iter().map(|news| news.last_seen_at).max().unwrap(),
                end.map(|end| end.0),
            );
            (id.to_owned(), (newest.clerk_id.clone(), line))
        };
        told.into_iter().map(line).collect()
    }
}

/// The events in another order, some twice, in batches.
fn arranged(events: &[Incoming], rng: &mut StdRng) -> Vec<Vec<Incoming>> {
    let mut all: Vec<Incoming> = events.to_vec();
    for event in events {
        if rng.random_bool(0.2) {
            all.push(event.clone());
        }
    }
    all.shuffle(rng);
    let mut batches = vec![Vec::new()];
    for event in all {
        if rng.random_bool(0.3) {
            batches.push(Vec::new());
        }
        batches.last_mut().unwrap().push(event);
    }
    batches
}

async fn sessions_come_out_the_same_in_any_order(home: Arc<Home>) {
    let store = home.store().await;
    let seed = now().unsigned_abs();
    println!("seed {seed}");
    for case in 0..rounds(60, 1_500) {
        let mut rng = StdRng::seed_from_u64(seed + case);
        let life = Life::random(case, &mut rng);
        let batches = arranged(&life.events, &mut rng);
        for batch in &batches {
            apply(&store, batch.iter().cloned()).await.unwrap();
        }
        let mut found = BTreeMap::new();
        for user in &life.users {
            for Session { id, status, created_at, last_seen_at, ended_at } in
                store.sessions_of(user).await.unwrap()
            {
                found.insert(id, (user.clone(), (status, created_at, last_seen_at, ended_at)));
            }
        }
        assert_eq!(found, life.on_paper(), "case {case} of seed {seed}, in the order {batches:#?}");
    }
    // Each has the row of its account, if that has or had one.
    let strays = "SELECT count(*) FROM sessions AS s WHERE s.user_id IS DISTINCT FROM \
         coalesce((SELECT id FROM users AS u WHERE u.clerk_id = s.clerk_id), \
         (SELECT user_id FROM former_clerk_ids AS f WHERE f.clerk_id = s.clerk_id))";
    assert_eq!(home.number(strays).await, 0);
    assert!(home.number("SELECT count(*) FROM sessions WHERE user_id IS NOT NULL").await > 0);
}

async fn an_end_is_final_and_the_earliest_counts(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [created("ann", 5).event()]).await.unwrap();
    let told = async |status, at| apply(&store, [session("s", "ann", status, at)]).await.unwrap()[0];
    assert_eq!(told(Active, 10).await, Created);
    assert_eq!(told(Pending, 12).await, Updated);
    assert_eq!(line(&store, "ann", "s").await, (Pending, 10, 12, None));
    assert_eq!(told(Active, 11).await, Stale);
    assert_eq!(told(Revoked, 30).await, Updated);
    assert_eq!(told(Active, 40).await, Updated, "it was seen later");
    assert_eq!(line(&store, "ann", "s").await, (Revoked, 10, 40, Some(30)));
    assert_eq!(told(Removed, 35).await, Stale, "a later end is none");
    assert_eq!(told(Ended, 20).await, Updated);
    assert_eq!(line(&store, "ann", "s").await, (Ended, 10, 40, Some(20)));
    let again = apply(&store, [session("s", "ann", Ended, 20)]).await.unwrap();
    assert_eq!(again, [Duplicate]);
}

async fn a_session_ends_with_its_user_whichever_comes_first(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [created("ann", 5).event(), session("s1", "ann", Active, 10)]).await.unwrap();
    apply(&store, [deleted("ann", 20)]).await.unwrap();
    apply(&store, [session("s2", "ann", Active, 15), session("s3", "ann", Removed, 18)]).await.unwrap();
    assert_eq!(line(&store, "ann", "s1").await, (Ended, 10, 10, Some(20)));
    assert_eq!(line(&store, "ann", "s2").await, (Ended, 15, 15, Some(20)));
    assert_eq!(line(&store, "ann", "s3").await, (Removed, 18, 18, Some(18)));
    // Of somebody who is known to be deleted, and never had a row.
    apply(&store, [deleted("bob", 7)]).await.unwrap();
    apply(&store, [session("s4", "bob", Active, 6)]).await.unwrap();
    assert_eq!(line(&store, "bob", "s4").await, (Ended, 6, 6, Some(7)));
    // All in one batch.
    let batch = [session("s5", "cat", Active, 6), deleted("cat", 9), created("cat", 5).event()];
    assert_eq!(apply(&store, batch).await.unwrap(), [Created, Deleted, Created]);
    assert_eq!(line(&store, "cat", "s5").await, (Ended, 6, 6, Some(9)));
}

async fn a_session_has_its_users_row_whichever_comes_first(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [session("s1", "ann", Active, 10)]).await.unwrap();
    assert_eq!(home.number("SELECT count(*) FROM sessions WHERE user_id IS NULL").await, 1);
    apply(&store, [created("ann", 5).event()]).await.unwrap();
    apply(&store, [session("s2", "ann", Active, 11)]).await.unwrap();
    let ours = format!("SELECT count(*) FROM sessions WHERE user_id = '{}'", row(&store, "ann").await.id);
    assert_eq!(home.number(&ours).await, 2);
}

async fn a_returning_user_begins_sessions_anew(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [created("ann", 5).verified("a@example.com").event(), session("s1", "ann", Active, 10)])
        .await
        .unwrap();
    let before = row(&store, "ann").await.id;
    apply(&store, [deleted("ann", 20)]).await.unwrap();
    apply(&store, [session("s2", "eve", Active, 31)]).await.unwrap();
    let back = apply(&store, [created("eve", 30).verified("a@example.com").event()]).await.unwrap();
    assert_eq!((back, row(&store, "eve").await.id), (vec![Relinked], before));
    assert_eq!(line(&store, "ann", "s1").await, (Ended, 10, 10, Some(20)));
    assert_eq!(line(&store, "eve", "s2").await, (Active, 31, 31, None));
    assert_eq!(home.number(&format!("SELECT count(*) FROM sessions WHERE user_id = '{before}'")).await, 2);
}

async fn who_lives_again_goes_on(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [created("ann", 5).event()]).await.unwrap();
    apply(&store, [session("s1", "ann", Active, 10), session("s2", "ann", Ended, 12)]).await.unwrap();
    apply(&store, [deleted("ann", 20)]).await.unwrap();
    let again = revived("ann", 40);
    assert_eq!(apply(&store, [again]).await.unwrap(), [Revived]);
    assert_eq!(line(&store, "ann", "s1").await, (Active, 10, 10, None), "it had ended by mistake");
    assert_eq!(line(&store, "ann", "s2").await, (Ended, 12, 12, Some(12)));
    // What had ended by itself stays so, though the deletion came first.
    apply(&store, [session("s3", "ann", Pending, 41)]).await.unwrap();
    apply(&store, [session("s1", "ann", Revoked, 60), deleted("ann", 50)]).await.unwrap();
    assert_eq!(line(&store, "ann", "s1").await, (Ended, 10, 60, Some(50)));
    let again = revived("ann", 70);
    assert_eq!(apply(&store, [again]).await.unwrap(), [Revived]);
    assert_eq!(line(&store, "ann", "s1").await, (Revoked, 10, 60, Some(60)));
    assert_eq!(line(&store, "ann", "s3").await, (Pending, 41, 41, None));
}

/// News that the account lives after all, as Clerk's API gave it then and a person asked for it.
fn revived(clerk_id: &str, at: Millis) -> Incoming {
    let mut again = created(clerk_id, 5).message(format!("{clerk_id} again at {at}")).event();
    if let Change::User(headcount::rules::users::Change::Upsert(upsert)) = &mut again.event.change {
        upsert.version.sent = at;
        upsert.source = headcount::rules::users::Source::Api { revive: true };
    }
    again
}

fn sighting(id: &str, clerk_id: &str, at: Millis) -> Sighting {
    Sighting { id: id.into(), clerk_id: clerk_id.into(), at, issued_at: at, act: None }
}

async fn a_session_that_was_seen_is_noted_once_a_minute(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [created("ann", 5).event()]).await.unwrap();
    let saw = async |at| store.saw_sessions(&[sighting("s", "ann", at)]).await.unwrap();
    saw(100_000).await;
    assert_eq!(line(&store, "ann", "s").await, (Active, 100_000, 100_000, None));
    saw(159_999).await;
    assert_eq!(line(&store, "ann", "s").await, (Active, 100_000, 100_000, None));
    saw(160_000).await;
    assert_eq!(line(&store, "ann", "s").await, (Active, 100_000, 160_000, None));
    saw(90_000).await;
    assert_eq!(line(&store, "ann", "s").await, (Active, 100_000, 160_000, None));
    // Its webhook comes late.
    assert_eq!(apply(&store, [session("s", "ann", Active, 99_000)]).await.unwrap(), [Updated]);
    assert_eq!(line(&store, "ann", "s").await, (Active, 99_000, 160_000, None));
    // Who acts in the user's place is noted at once, and stays.
    for (at, act) in [(161_000, Some(r#"{"sub":"user_boss"}"#)), (400_000, None)] {
        let seen = Sighting { act: act.map(str::to_owned), ..sighting("s", "ann", at) };
        store.saw_sessions(&[seen]).await.unwrap();
        let noted = home.number("SELECT count(*) FROM sessions WHERE act->>'sub' = 'user_boss'").await;
        assert_eq!(noted, 1, "at {at}");
    }
    assert_eq!(line(&store, "ann", "s").await, (Active, 99_000, 400_000, None));
    // Who was pending, and is signed in by a later token, is active.
    apply(&store, [session("p", "ann", Pending, 450_000)]).await.unwrap();
    store.saw_sessions(&[sighting("p", "ann", 449_000)]).await.unwrap();
    assert_eq!(line(&store, "ann", "p").await, (Pending, 450_000, 450_000, None));
    store.saw_sessions(&[sighting("p", "ann", 451_000)]).await.unwrap();
    assert_eq!(line(&store, "ann", "p").await, (Active, 450_000, 451_000, None));
    assert_eq!(apply(&store, [session("p", "ann", Pending, 440_000)]).await.unwrap(), [Updated]);
    assert_eq!(line(&store, "ann", "p").await, (Active, 440_000, 451_000, None));
    // Many at a time, the same twice, strangers too.
    let many: Vec<_> =
        (0..500).map(|n| sighting(&format!("m{n}"), ["ann", "nobody"][n % 2], 500_000)).collect();
    store.saw_sessions(&many).await.unwrap();
    store.saw_sessions(&many).await.unwrap();
    store.saw_sessions(&[]).await.unwrap();
    assert_eq!(home.number("SELECT count(*) FROM sessions").await, 252);
    assert_eq!(store.sessions_of("ann").await.unwrap().len(), 100);
}

async fn a_token_revives_nothing(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [created("ann", 5).event(), session("s1", "ann", Active, 10)]).await.unwrap();
    apply(&store, [session("s1", "ann", Ended, 20)]).await.unwrap();
    let others = [sighting("s1", "ann", 900_000), sighting("s1", "eve", 900_000)];
    store.saw_sessions(&others).await.unwrap();
    assert_eq!(line(&store, "ann", "s1").await, (Ended, 10, 20, Some(20)));
    let (_, ended) = store.accounts(&["ann".into()], &["s1".into(), "s9".into()]).await.unwrap();
    assert_eq!(ended, [("s1".to_owned(), "ann".to_owned())]);
    apply(&store, [deleted("ann", 30)]).await.unwrap();
    store.saw_sessions(&[sighting("s2", "ann", 900_000)]).await.unwrap();
    assert_eq!(store.sessions_of("ann").await.unwrap().len(), 1);
}

async fn who_is_seen_while_being_deleted_is_not_signed_in(home: Arc<Home>) {
    let store = home.store().await;
    for round in 0..rounds(20, 300) {
        let users: Vec<String> = (0..5).map(|n| format!("user_{round}_{n}")).collect();
        apply(&store, users.iter().map(|user| created(user, 5).event())).await.unwrap();
        let seen: Vec<_> = users.iter().map(|user| sighting(&format!("s_{user}"), user, 1_000)).collect();
        let mut gone: Vec<_> = users.iter().map(|user| deleted(user, 20)).collect();
        gone.reverse();
        let (saw, deleted) = tokio::join!(store.saw_sessions(&seen), apply(&store, gone));
        saw.unwrap();
        deleted.unwrap();
    }
    assert_eq!(home.number("SELECT count(*) FROM sessions WHERE ended_at IS NULL").await, 0);
}

async fn ended_sessions_are_pruned(home: Arc<Home>) {
    const DAY: Duration = Duration::from_secs(24 * 3_600);
    let store = home.store().await;
    let (long, short) = (now() - 91 * 24 * 3_600_000, now() - 24 * 3_600_000);
    apply(&store, [created("ann", 5).event(), session("old", "ann", Active, long)]).await.unwrap();
    let ends = [session("gone", "ann", Ended, long), session("fresh", "ann", Ended, short)];
    apply(&store, ends).await.unwrap();
    let retention = Retention { inbox: DAY, dead: DAY, sessions: 90 * DAY, rejections: DAY };
    assert_eq!(store.prune(&retention, 10).await.unwrap().rows, 1);
    let mut left: Vec<_> =
        store.sessions_of("ann").await.unwrap().into_iter().map(|session| session.id).collect();
    left.sort();
    assert_eq!(left, ["fresh", "old"]);
}

async fn without_sessions_nothing_is_kept(home: Arc<Home>) {
    home.store().await;
    let config = store::StoreConfig { sessions: false, ..home.config(KEEP) };
    let store = store::open(&config).await.unwrap();
    let batch = [created("ann", 5).event(), session("s1", "ann", Active, 10), deleted("ann", 20)];
    assert_eq!(apply(&store, batch).await.unwrap(), [Created, Ignored, Deleted]);
    assert_eq!(home.number("SELECT count(*) FROM sessions").await, 0);
    store.ready().await.unwrap();
}
