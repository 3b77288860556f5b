//! Whole worlds against real SQLite and real PostgreSQL, with four workers at once: *Mirror* and *Safety* hold there as
//! they do against the pure fold. `SOAK=1` runs many more.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

#[path = "support/stores.rs"]
#[allow(dead_code, reason = "this binary uses a part of it")]
mod stores;
#[path = "worlds/mod.rs"]
mod worlds;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use headcount::{
    rules::{
        Outcome,
        users::{Loaded, OnDelete, Policy, Relink},
    },
    store::{Class, Incoming, Store},
    time::rfc3339,
};
use stores::Home;
use worlds::{
    check::{Broken, may_pass},
    clerk::{self, ClerkWorld, Edit, Log, Table},
    generate::{Dice, POLICIES, any_world, clerk_world},
    history::Fact,
    reference,
};

/// Workers that take batches at the same time, each over a store of its own, as processes would.
const WORKERS: usize = 4;
/// How many tries a webhook waits.
const PATIENCE: u32 = 3;

fn count() -> u64 {
    if std::env::var_os("SOAK").is_some_and(|value| value == "1") { 300 } else { 20 }
}

/// The webhooks that are on their way, each with the number of times it has waited.
type Line = Arc<Mutex<Vec<(Fact, u32)>>>;

async fn work(store: Arc<dyn Store>, line: Line, mut dice: Dice) {
    loop {
        let batch: Vec<(Fact, u32)> = {
            let mut line = line.lock().unwrap();
            let taken = (1 + dice.below(4)).min(line.len());
            (0..taken)
                .map(|_| {
                    let at = dice.below(line.len());
                    line.swap_remove(at)
                })
                .collect()
        };
        if batch.is_empty() {
            return;
        }
        let outcomes = apply(&store, batch.iter().map(|(fact, waits)| (fact, *waits >= PATIENCE))).await;
        let waiting = batch.into_iter().zip(outcomes).filter(|(_, outcome)| *outcome == Outcome::Waiting);
        line.lock().unwrap().extend(waiting.map(|((fact, waits), _)| (fact, waits + 1)));
    }
}

/// One transaction, however often it loses a race.
async fn apply<'f>(store: &Arc<dyn Store>, batch: impl Iterator<Item = (&'f Fact, bool)>) -> Vec<Outcome> {
    let incoming: Arc<[Incoming]> = batch
        .map(|(fact, patience_over)| Incoming {
            event: fact.event(patience_over),
            event_type: "user.updated".into(),
            received_at: 0,
        })
        .collect();
    loop {
        match store.apply(incoming.clone()).await {
            Ok(outcomes) => return outcomes,
            Err(error) => assert!(matches!(error.class, Class::Transient | Class::Unclear), "{error}"),
        }
    }
}

async fn run_world(home: Arc<Home>, seed: u64, policy: Policy) {
    let world = any_world(seed);
    let facts = world.facts();
    let mut dice = Dice::new(seed);
    // Each webhook once or twice, a few of them never.
    let mut line: Vec<(Fact, u32)> = Vec::new();
    let mut delivered: Vec<&Fact> = Vec::new();
    for fact in &facts {
        if dice.one_in(15) {
            continue;
        }
        delivered.push(fact);
        let copies = if dice.one_in(4) { 2 } else { 1 };
        line.extend((0..copies).map(|_| (fact.clone(), 0)));
    }
    dice.shuffle(&mut line);
    let line = Arc::new(Mutex::new(line));
    let first = home.store_with(policy).await;
    let mut workers = Vec::new();
    for worker in 0..WORKERS {
        let store = if worker == 0 { first.clone() } else { home.store_with(policy).await };
        workers.push(tokio::spawn(work(store, line.clone(), Dice::new(seed * 31 + worker as u64))));
    }
    for worker in workers {
        worker.await.unwrap();
    }

    let rows = stores::rows(&first).await;
    let found: BTreeMap<String, _> = rows
        .iter()
        .filter(|row| row.deleted_at.is_none())
        .map(|row| {
            let mirror = (
                row.email.clone(),
                row.clerk_email.clone(),
                row.email_verified,
                row.version,
                row.first_name.clone(),
                row.phone.clone(),
            );
            (row.clerk_id.clone(), mirror)
        })
        .collect();
    let expected: BTreeMap<String, _> = reference::mirror(&delivered)
        .into_iter()
        .map(|(id, mirror)| {
            let profile = mirror.profile;
            (
                id,
                (
                    mirror.email,
                    mirror.clerk_email,
                    mirror.email_verified,
                    mirror.version.0,
                    profile.first_name,
                    profile.phone,
                ),
            )
        })
        .collect();
    assert_eq!(found, expected, "seed {seed}, {policy:?}\n{world}");

    if policy.relink != Relink::Match {
        rows_passed_rightly(&first, &delivered, &world, seed).await;
    }
}

async fn rows_passed_rightly(
    store: &Arc<dyn Store>,
    delivered: &[&Fact],
    world: &impl std::fmt::Display,
    seed: u64,
) {
    for row in &stores::rows(store).await {
        let history = store.user(&row.clerk_id).await.unwrap().unwrap();
        let mut holders: Vec<&str> = history.former.iter().map(|former| former.clerk_id.as_str()).collect();
        holders.push(&row.clerk_id);
        for pair in holders.windows(2) {
            assert!(
                may_pass(delivered, pair[0], pair[1]),
                "seed {seed}: a row passed from {} to {}\n{world}",
                pair[0],
                pair[1]
            );
        }
    }
}

/// A store with its workers, each over a store of its own.
struct Stored {
    home: Arc<Home>,
    workers: Vec<Arc<dyn Store>>,
}

impl Stored {
    async fn new(home: Arc<Home>, policy: Policy) -> Self {
        let mut workers = Vec::new();
        for _ in 0..WORKERS {
            workers.push(home.store_with(policy).await);
        }
        Self { home, workers }
    }
}

impl Table for Stored {
    async fn apply(&mut self, batches: &[Vec<(Fact, bool)>]) -> Result<Vec<Vec<Outcome>>, Broken> {
        let tasks: Vec<_> = batches
            .iter()
            .zip(self.workers.iter().cycle())
            .map(|(batch, store)| {
                let (batch, store) = (batch.clone(), store.clone());
                tokio::spawn(
                    async move { apply(&store, batch.iter().map(|(fact, over)| (fact, *over))).await },
                )
            })
            .collect();
        let mut outcomes = Vec::new();
        for task in tasks {
            outcomes.push(task.await.unwrap());
        }
        Ok(outcomes)
    }

    async fn known(&mut self, clerk_ids: &[String], keys: &[String]) -> Loaded {
        self.workers[0].known(clerk_ids, keys).await.unwrap().loaded
    }

    async fn live(&mut self) -> Vec<String> {
        let rows = stores::rows(&self.workers[0]).await;
        rows.into_iter().filter(|row| row.deleted_at.is_none()).map(|row| row.clerk_id).collect()
    }

    async fn edit(&mut self, clerk_id: &str, edit: Edit, at: i64) {
        let address = format!("{clerk_id}@edited.example.com");
        let set = match edit {
            Edit::Rename => "first_name = 'edited'".to_owned(),
            Edit::Readdress => format!(
                "clerk_email = '{address}', email_key = '{address}', \
                 email = CASE WHEN email IS NOT NULL THEN '{address}' END"
            ),
            Edit::Hide => "email = NULL".into(),
            Edit::Misshow => "email = CASE WHEN email IS NOT NULL THEN 'edited' END".into(),
            Edit::Age => "version = 0".into(),
            Edit::Bury => {
                let at = rfc3339(at);
                format!("deleted_at = coalesce(deleted_at, '{at}')")
            }
            Edit::Remove => {
                return self.home.sql(&format!("DELETE FROM users WHERE clerk_id = '{clerk_id}'")).await;
            }
        };
        self.home.sql(&format!("UPDATE users SET {set} WHERE clerk_id = '{clerk_id}'")).await;
    }

    fn at_once(&self) -> usize {
        WORKERS
    }
}

async fn run_clerk_world(home: Arc<Home>, seed: u64) {
    let edits = seed.is_multiple_of(3);
    let world = ClerkWorld { policy: policy(seed), ..clerk_world(seed, edits) };
    let ran = clerk::run(&world, Stored::new(home, world.policy).await).await;
    let (Log { batches, .. }, stored) = ran.unwrap_or_else(|broken| panic!("seed {seed}\n{world}{broken}"));
    if world.policy.relink != Relink::Match && !edits {
        let delivered: Vec<&Fact> = batches.iter().flatten().map(|(fact, _)| fact).collect();
        rows_passed_rightly(&stored.workers[0], &delivered, &world, seed).await;
    }
}

fn policy(seed: u64) -> Policy {
    // Half of them the default, the others in turn.
    if seed.is_multiple_of(2) {
        Policy { relink: Relink::Deleted, on_delete: OnDelete::Keep }
    } else {
        POLICIES[(seed / 2) as usize % POLICIES.len()]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn worlds_converge_on_sqlite_with_four_workers_at_once() {
    for seed in 0..count() {
        Home::sqlite().await.run(move |home| run_world(home, seed, policy(seed))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn worlds_converge_on_postgresql_with_four_workers_at_once() {
    for seed in 0..count() {
        Home::postgres().await.run(move |home| run_world(home, seed, policy(seed))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn worlds_with_clerk_end_as_clerk_is_on_sqlite() {
    for seed in 0..count() {
        Home::sqlite().await.run(move |home| run_clerk_world(home, seed)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn worlds_with_clerk_end_as_clerk_is_on_postgresql() {
    for seed in 0..count() {
        Home::postgres().await.run(move |home| run_clerk_world(home, seed)).await;
    }
}
