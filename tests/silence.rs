//! A database whose connections fall silent (no FIN, no RST) while new ones would work, and a database that is frozen and
//! thawed. Every call is answered, and everything works again within a minute.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

#[path = "support/stores.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod stores;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use headcount::{
    clerk::made_up::Person,
    message::{Origin, Rejected},
    rules::Outcome::Created,
    secret::Secret,
    store::{
        self, Backend, Class, Store, StoreConfig, StoreError,
        housekeeping::Retention,
        letters::{Actor, Captured, Filter},
    },
    time::now,
};
use stores::{Home, KEEP, apply, created, updated};
use support::{eventually, process::World, proxy::Proxy, servers::Server};

/// Everything works again within this time.
const AGAIN: Duration = Duration::from_secs(60);
/// A call on the path is answered within this time.
const ANSWER: Duration = Duration::from_secs(11);

async fn open(home: &Home, url: String) -> Arc<dyn Store> {
    let Backend::Postgres { schema, .. } = &home.backend else { panic!("PostgreSQL only") };
    let backend = Backend::Postgres { url: Secret::new(url), schema: schema.clone() };
    store::open(&StoreConfig { backend, ..home.config(KEEP) }).await.unwrap()
}

fn letter(message_id: &str) -> Captured {
    Captured {
        message_id: message_id.into(),
        origin: Origin::Webhook,
        round: 0,
        event_type: "user.created".into(),
        clerk_id: None,
        reason: "invalid_payload".into(),
        detail: "data.id: missing".into(),
        attempts: 1,
        first_seen: now(),
        died_at: now(),
        group: "invalid_payload".into(),
        headers: BTreeMap::new(),
        body: "{}".into(),
    }
}

/// Everything that a process does with its database, once.
async fn everything(store: &Arc<dyn Store>, round: u32) -> Result<(), StoreError> {
    store.ready().await?;
    apply(store, [created(&format!("user_{round}"), 10).event()]).await?;
    store.capture(&[letter(&format!("letter_{round}"))]).await?;
    let sample = Rejected {
        at: now(),
        address: "192.0.2.1".into(),
        reason: "malformed_id".into(),
        headers: Vec::new(),
    };
    store.record(&[sample]).await?;
    let by = Actor { name: "ann".into(), note: None };
    let claims = store.claim(&Filter::default(), 10, &by).await?;
    let claims: Vec<_> = claims.iter().map(|claim| (claim.id, claim.round)).collect();
    store.stamp(&claims).await?;
    let day = Duration::from_secs(24 * 3_600);
    store.prune(&Retention { inbox: day, dead: day, sessions: day, rejections: day }, 10).await?;
    store.totals().await?;
    Ok(())
}

/// Waits until everything works, and returns how long that took.
async fn until_everything_works(store: &Arc<dyn Store>) -> Duration {
    let started = Instant::now();
    let mut round = 1_000;
    loop {
        match everything(store, round).await {
            Ok(()) => return started.elapsed(),
            Err(error) => assert!(started.elapsed() < AGAIN, "still: {error:?}"),
        }
        round += 1;
    }
}

/// It could not be asked, or did not answer.
fn is_away(error: &StoreError) -> bool {
    matches!(error.class, Class::Outage | Class::Unanswered)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_whose_connections_fall_silent_answers_and_makes_new_ones() {
    let case = async |home: Arc<Home>| {
        let proxy = Proxy::new(&stores::server());
        let store = open(&home, proxy.url()).await;
        store.migrate().await.unwrap();
        everything(&store, 0).await.unwrap();
        apply(&store, [created("ann", 10).event()]).await.unwrap();
        // Some calls are on their way when it happens, with locks in their transactions, and some connections are idle.
        let asking = (0..8).map(|_| store.ready());
        for asked in futures_util::future::join_all(asking).await {
            asked.unwrap();
        }
        let held = home.hold("SELECT FROM users WHERE clerk_id = 'ann' FOR UPDATE").await;
        let waiting: Vec<_> = (0..3)
            .map(|n| {
                let store = store.clone();
                tokio::spawn(async move { apply(&store, [updated("ann", 20 + n).event()]).await })
            })
            .collect();
        held.holds_up(3).await;
        let started = Instant::now();
        proxy.silence();
        held.let_go().await;
        let again = until_everything_works(&store).await;
        for one in waiting {
            let error = one.await.unwrap().unwrap_err();
            assert!(is_away(&error), "{error:?}");
            assert!(started.elapsed() < ANSWER, "answered after {:?}", started.elapsed());
        }
        // What was on its way is unknown: it is tried again until the locks of the silent sessions are gone.
        loop {
            match apply(&store, [updated("ann", 30).event()]).await {
                Ok(_) => break,
                Err(error) => assert!(started.elapsed() < AGAIN, "still: {error:?}"),
            }
        }
        println!(
            "everything works again after {again:?}, also the silent sessions' user after {:?}",
            started.elapsed()
        );

        // A second silence, in which nothing is on its way.
        everything(&store, 1).await.unwrap();
        proxy.silence();
        let again = until_everything_works(&store).await;
        println!("the second time after {again:?}");
        store.close().await;
    };
    Home::postgres().await.run(|home| async move { case(home).await }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_falls_silent_on_its_way_back_delays_no_close() {
    let case = async |home: Arc<Home>| {
        let proxy = Proxy::new(&stores::server());
        let store = open(&home, proxy.url()).await;
        store.migrate().await.unwrap();
        // The driver tries each connection once more after its call, for as long as it takes.
        store.totals().await.unwrap();
        proxy.silence();
        tokio::time::timeout(ANSWER, store.close()).await.expect("the end");
    };
    Home::postgres().await.run(|home| async move { case(home).await }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_a_frozen_server_answers_and_works_again_when_thawed() {
    let server = Server::postgres();
    works_again_when_thawed(&server, &server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_behind_a_frozen_pooler_answers_and_works_again_when_thawed() {
    let server = Server::postgres();
    let pooler = Server::pgbouncer(&server.url(), "pool_mode=transaction default_pool_size=10");
    works_again_when_thawed(&server, &pooler).await;
}

/// `front` is what the store connects to, and what is frozen: the server, or a pooler in front of it.
async fn works_again_when_thawed(server: &Server, front: &Server) {
    let backend = Backend::Postgres { url: Secret::new(front.url()), schema: "public".into() };
    let config = StoreConfig {
        backend,
        policy: KEEP,
        default_credits: 0,
        sessions: true,
        billing: None,
        connections: 10,
    };
    let store = store::open(&config).await.unwrap();
    store.migrate().await.unwrap();
    everything(&store, 0).await.unwrap();
    // Some calls are on their way, with a row locked before them.
    apply(&store, [created("ann", 10).event()]).await.unwrap();
    let mut holder = <sqlx::PgConnection as sqlx::Connection>::connect(&server.url()).await.unwrap();
    let lock = "BEGIN; SELECT FROM users WHERE clerk_id = 'ann' FOR UPDATE";
    sqlx::raw_sql(lock).execute(&mut holder).await.unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { apply(&store, [updated("ann", 20 + n).event()]).await })
        })
        .collect();
    while waiting_for_locks(&mut holder).await < 3 {
        tokio::task::yield_now().await;
    }
    front.freeze();
    let frozen = Instant::now();
    // More calls than connections, twice: those that are given up must not hold places.
    for _ in 0..2 {
        let started = Instant::now();
        let calls = (0..15).map(|n| {
            let store = store.clone();
            async move { apply(&store, [created(&format!("frozen_{n}"), 10).event()]).await }
        });
        for answer in futures_util::future::join_all(calls).await {
            let error = answer.unwrap_err();
            assert!(is_away(&error), "{error:?}");
        }
        assert!(started.elapsed() < ANSWER, "answered after {:?}", started.elapsed());
    }
    for one in waiting {
        let error = tokio::time::timeout(ANSWER, one).await.expect("an answer").unwrap().unwrap_err();
        assert!(is_away(&error), "{error:?}");
    }
    assert!(frozen.elapsed() < 2 * ANSWER);
    front.thaw();
    drop(holder);
    let again = until_everything_works(&store).await;
    println!("everything works again {again:?} after the thaw");
    assert_eq!(apply(&store, [created("late", 10).event()]).await.unwrap(), [Created]);
    store.close().await;
}

async fn waiting_for_locks(connection: &mut sqlx::PgConnection) -> i64 {
    let question = "SELECT count(*) FROM pg_locks WHERE NOT granted";
    sqlx::query_scalar(question).fetch_one(connection).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_database_connections_under_load_cost_a_worker_under_a_minute() {
    const WEBHOOKS: usize = 4_000;
    let proxy = Proxy::new(&support::servers::url("TEST_DATABASE_URL"));
    let world = World::on(Some(support::servers::url("TEST_AMQP_URL")), Some(proxy.url()));
    assert!(world.run(&["migrate"]).status.success());
    let ingress = world.start(&["ingress"]);
    let worker = world.start(&["worker"]);
    let posting = futures_util::stream::iter(0..WEBHOOKS).for_each_concurrent(50, |n| {
        let poster = ingress.poster();
        async move {
            let body = Person::of(format!("user_{n}"), now()).event("user.created", now()).into();
            assert_eq!(poster.post(&format!("msg_{n}"), body).await.unwrap(), 202);
        }
    });
    // Twice, with batches on their way: the connections that were made after the first silence fall silent too.
    let silences = async {
        let mut applied = 0;
        for _ in 0..2 {
            eventually("some more are applied", async || world.users().await.len() > applied + 50).await;
            proxy.silence();
            applied = world.users().await.len();
        }
        Instant::now()
    };
    let ((), silent) = tokio::join!(posting, silences);
    eventually("everything is applied", async || world.users().await.len() == WEBHOOKS).await;
    assert!(
        silent.elapsed() < AGAIN,
        "applied {:?} after the last silence:\n{}",
        silent.elapsed(),
        worker.log()
    );
    println!("everything is applied {:?} after the last silence", silent.elapsed());
    world.until_drained().await;
    assert!(!worker.log().contains("is buried"), "{}", worker.log());
    worker.stop();
    ingress.stop();
    world.clean_up().await;
}
