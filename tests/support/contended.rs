//! Owns the contended world: few users, fewer addresses, many events, and all workers at once. Whatever order the workers
//! take, the live rows have to equal one fold of all events.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use headcount::{
    rules::{
        Outcome,
        users::{self, Loaded},
    },
    store::{Class, Incoming, Store},
    time::Millis,
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use super::stores::{KEEP, News, created, deleted, rows, updated};

const USERS: usize = 50;
const ADDRESSES: usize = 30;

/// What must not depend on the order: the addresses, versions and names of the live rows.
type Mirror = BTreeMap<String, (Option<String>, Option<String>, bool, Millis, Option<String>)>;

/// Lets `workers` apply `count` events, each of them now and then twice, over `stores`; panics where they do not
/// converge. Returns how often a batch came back as transient.
pub(crate) async fn converge(stores: &[Arc<dyn Store>], workers: usize, count: usize, seed: u64) -> u64 {
    let mut random = StdRng::seed_from_u64(seed);
    let events: Vec<Incoming> = (0..count).map(|index| event(&mut random, index)).collect();
    let mut deliveries = events.clone();
    deliveries.extend(events.iter().filter(|_| random.random_bool(0.1)).cloned());
    for index in (1..deliveries.len()).rev() {
        deliveries.swap(index, random.random_range(0..=index));
    }
    // Each with how often it has waited.
    let line = Arc::new(Mutex::new(deliveries.into_iter().map(|delivery| (delivery, 0)).collect::<Vec<_>>()));
    let tasks: Vec<_> = (0..workers)
        .map(|worker| {
            let (store, line) = (stores[worker % stores.len()].clone(), line.clone());
            tokio::spawn(work(store, line, seed + worker as u64))
        })
        .collect();
    let mut transient = 0;
    for task in tasks {
        transient += task.await.unwrap();
    }

    let in_store: Mirror = rows(&stores[0])
        .await
        .into_iter()
        .filter(|user| user.deleted_at.is_none())
        .map(|user| {
            (user.clerk_id, (user.email, user.clerk_email, user.email_verified, user.version, user.username))
        })
        .collect();
    assert_eq!(in_store, expected(events));
    transient
}

async fn work(store: Arc<dyn Store>, line: Arc<Mutex<Vec<(Incoming, u32)>>>, seed: u64) -> u64 {
    let mut random = StdRng::seed_from_u64(seed);
    let mut transient = 0;
    loop {
        let size = random.random_range(1..=40);
        let batch: Vec<_> = {
            let mut line = line.lock().unwrap();
            let rest = line.len().saturating_sub(size);
            line.split_off(rest)
        };
        if batch.is_empty() {
            return transient;
        }
        let incoming: Arc<[Incoming]> = batch.iter().map(|(incoming, _)| incoming.clone()).collect();
        let outcomes = loop {
            match store.apply(incoming.clone()).await {
                Ok(outcomes) => break outcomes,
                Err(error) if matches!(error.class, Class::Transient | Class::Unclear) => transient += 1,
                Err(error) => panic!("{error:?}"),
            }
        };
        for ((mut incoming, waits), outcome) in batch.into_iter().zip(outcomes) {
            if outcome == Outcome::Waiting {
                incoming.event.patience_over = waits >= 2;
                line.lock().unwrap().insert(0, (incoming, waits + 1));
            }
        }
    }
}

fn event(random: &mut StdRng, index: usize) -> Incoming {
    let user = random.random_range(0..USERS);
    let id = format!("user_{user}");
    // Few moments, so that versions tie.
    let at = random.random_range(1..1_000);
    let address = format!("{}@example.com", random.random_range(0..ADDRESSES));
    let news = |news: News| {
        news.born(user as Millis * 20).message(format!("msg_{index}")).named(&format!("name {index}"))
    };
    match random.next_u32() % 100 {
        0..55 => news(updated(&id, at)).verified(&address).event(),
        55..75 => news(updated(&id, at)).unverified(&address).event(),
        75..85 => news(updated(&id, at)).event(),
        85..99 => news(created(&id, at)).verified(&address).event(),
        _ => deleted(&id, at),
    }
}

fn expected(mut events: Vec<Incoming>) -> Mirror {
    for incoming in &mut events {
        incoming.event.patience_over = true;
    }
    let events: Vec<_> = events.into_iter().map(|incoming| incoming.event).collect();
    let folded = users::fold(&KEEP, Loaded::default(), &events);
    let live = folded.rows.into_iter().map(|changed| changed.row).filter(|row| row.deleted_at.is_none());
    live.map(|row| {
        let address = row.claim.as_ref().map(|claim| claim.address.clone());
        let verified = row.claim.is_some_and(|claim| claim.verified);
        let username = row.profile.and_then(|profile| profile.username.clone());
        (row.clerk_id, (address.clone().filter(|_| row.shown), address, verified, row.version.at, username))
    })
    .collect()
}
