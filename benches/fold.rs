//! How long a worker's batch of 200 takes to fold, apart from the database: the median of many runs.
//!
//! `cargo bench --bench fold`

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use headcount::rules::{
    Change, Event,
    users::{self, Claim, Loaded, OnDelete, Policy, Profile, Relink, Row, Upsert, UpsertKind, Version, fold},
};
use uuid::Uuid;

const BATCH: u32 = 200;
const RUNS: usize = 501;
const POLICY: Policy = Policy { relink: Relink::Deleted, on_delete: OnDelete::Keep };

fn main() {
    let stored: Vec<Row> = (0..BATCH).map(|user| row(user, &address(user))).collect();
    let gone = |row: &Row| Row { deleted_at: Some(1_000), shown: false, ..row.clone() };
    let crowd = |user| Row { shown: user == BATCH - 1, ..row(user, &address(0)) };

    let updates: Vec<Event> = (0..BATCH).map(|user| upsert(user, 2_000, &address(user))).collect();
    report("updates of 200 users", &stored, &updates);

    let sign_ups: Vec<Event> =
        (0..BATCH).map(|user| upsert(BATCH + user, 2_000, &address(BATCH + user))).collect();
    report("sign-ups of 200 users", &[], &sign_ups);

    let returns: Vec<Event> = (0..BATCH).map(|user| upsert(BATCH + user, 2_000, &address(user))).collect();
    report("200 returning users", &stored.iter().map(gone).collect::<Vec<_>>(), &returns);

    let swaps: Vec<Event> =
        (0..BATCH).map(|user| upsert(user, 2_000, &address((user + 1) % BATCH))).collect();
    report("200 users pass their addresses round", &stored, &swaps);

    let crowded: Vec<Event> = (0..BATCH).map(|user| upsert(user, 2_000, &address(0))).collect();
    report("200 users claim one address", &(0..BATCH).map(crowd).collect::<Vec<_>>(), &crowded);

    let departures: Vec<Event> = (0..BATCH).map(deletion).collect();
    report("200 deletions", &stored, &departures);
}

fn report(what: &str, stored: &[Row], events: &[Event]) {
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let loaded = Loaded { rows: stored.to_vec(), ..Loaded::default() };
            let start = Instant::now();
            let folded = black_box(fold(&POLICY, loaded, black_box(events)));
            let time = start.elapsed();
            drop(folded);
            time
        })
        .collect();
    times.sort_unstable();
    let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or_default();
    println!("{what:<40} median {:>9.1?}   99th percentile {:>9.1?}", at(50), at(99));
}

fn clerk_id(user: u32) -> String {
    format!("user_2yKq7vR9sT1uW3xZ5aB8cD{user:05}")
}

fn address(user: u32) -> String {
    format!("somebody.or.other.{user:05}@example.com")
}

fn version(user: u32, at: i64) -> Version {
    let message_id = format!("msg_2yKq7vR9sT1uW3xZ5aB8cD{user:05}{at}");
    Version { at, sent: at, kind: UpsertKind::Updated, message_id }
}

fn row(user: u32, address: &str) -> Row {
    Row {
        id: Uuid::from_u128(u128::from(user) + 1),
        clerk_id: clerk_id(user),
        version: version(user, 500),
        claim: Some(Claim::new(address, true)),
        shown: true,
        askew: false,
        deleted_at: None,
        erased: false,
        profile: None,
    }
}

fn event(user: u32, at: i64, change: Change) -> Event {
    let message_id = version(user, at).message_id;
    Event {
        message_id,
        change,
        fresh_row: Uuid::from_u128(u128::from(user) + 1_000_000),
        patience_over: false,
    }
}

fn upsert(user: u32, at: i64, address: &str) -> Event {
    let upsert = Upsert {
        clerk_id: clerk_id(user),
        version: version(user, at),
        born: at,
        claim: Some(Claim::new(address, true)),
        profile: Arc::new(Profile { first_name: Some("Ada".into()), ..Profile::default() }),
        source: users::Source::Webhook,
    };
    event(user, at, Change::User(users::Change::Upsert(Box::new(upsert))))
}

fn deletion(user: u32) -> Event {
    event(user, 2_000, Change::User(users::Change::Delete { clerk_id: clerk_id(user), at: 2_000 }))
}
