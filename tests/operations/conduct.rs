//! One process and its replay: how many letters it publishes, when it gives the replay back, and when it lets go.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use headcount::{
    letters::{
        conduct::{Conductor, Done, Manner},
        operations::{NewReplay, Operations},
    },
    message::Message,
    queue::{Depth, Queue, QueueError, Source, Subscription, Trouble},
    store::{
        Backend, Store,
        letters::Status,
        operations::{Ended, Operation, State, Wish},
    },
};
use sqlx::Connection as _;
use tokio::sync::watch;
use uuid::Uuid;

use crate::{
    contract::{by, letter, order},
    stores::{Home, apply, contract, updated},
    support::PATIENCE,
};

contract! {
    a_replay_publishes_no_more_than_its_limit
    a_server_gives_a_paused_replay_back_and_has_room_for_others
    a_stop_is_told_with_who_asked_for_it
    a_lease_that_the_database_does_not_renew_is_given_up_in_time
}

/// A queue whose messages take effect at once, unless it is slow.
struct Applies {
    store: Arc<dyn Store>,
    published: Mutex<Vec<String>>,
    slow: Duration,
}

impl std::fmt::Debug for Applies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Applies")
    }
}

impl Applies {
    fn new(store: &Arc<dyn Store>, slow: Duration) -> Arc<Self> {
        Arc::new(Self { store: store.clone(), published: Mutex::default(), slow })
    }

    fn published(&self) -> usize {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[async_trait]
impl Queue for Applies {
    async fn publish(&self, message: Message) -> Result<(), QueueError> {
        tokio::time::sleep(self.slow).await;
        let id = message.id.as_str().to_owned();
        let user = format!("user_{}", id.trim_start_matches("msg_").parse::<u32>().unwrap());
        self.published.lock().unwrap_or_else(PoisonError::into_inner).push(id.clone());
        apply(&self.store, [updated(&user, 5).message(&id).event()]).await.unwrap();
        Ok(())
    }

    fn sample(&self, _: Bytes) {}

    fn troubles(&self) -> Vec<Trouble> {
        Vec::new()
    }

    async fn subscribe(&self, _: Source, _: u16) -> Result<Box<dyn Subscription>, QueueError> {
        Err(QueueError::Unavailable("nobody subscribes here".into()))
    }

    async fn depths(&self) -> Result<Vec<Depth>, QueueError> {
        Ok(Vec::new())
    }

    async fn ready(&self) -> Result<(), QueueError> {
        Ok(())
    }

    async fn close(&self) {}
}

async fn seeded(home: &Home, letters: usize) -> Arc<dyn Store> {
    let store = home.store().await;
    store.capture(&(0..letters).map(letter).collect::<Vec<_>>()).await.unwrap();
    store
}

/// The replay, once it is so.
async fn until(store: &Arc<dyn Store>, id: Uuid, what: &str, so: fn(&Operation) -> bool) -> Operation {
    let began = Instant::now();
    loop {
        match store.operation(id).await.unwrap() {
            Some(operation) if so(&operation) => return operation,
            other => assert!(began.elapsed() < PATIENCE, "never: {what}: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The replay that was begun in a task, once it has claimed so many letters.
async fn claimed(store: &Arc<dyn Store>, least: u64) -> Uuid {
    let began = Instant::now();
    loop {
        match store.replays(1).await.unwrap().first() {
            Some(replay) if replay.claimed >= least => return replay.id,
            other => assert!(began.elapsed() < PATIENCE, "never claimed: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs a replay to its end in this process.
async fn conducted(store: &Arc<dyn Store>, queue: &Arc<Applies>, new: &NewReplay) -> Done {
    let holder = Uuid::now_v7();
    let begun = store.begin_operation(&new.operation(Some(holder))).await.unwrap().unwrap();
    let queue: Arc<dyn Queue> = queue.clone();
    let (_stop, stopped) = watch::channel(false);
    Conductor::new(store, &queue, Manner::Server).run(begun, holder, &|_| {}, &stopped).await.1
}

async fn a_replay_publishes_no_more_than_its_limit(home: Arc<Home>) {
    let store = seeded(&home, 130).await;
    let mut left = 130;
    // In the first step, in the second, exactly at the end of one, in the third, and in the last.
    for (limit, halt_at) in
        [(1, Some(0.1)), (5, Some(0.1)), (11, Some(0.1)), (50, Some(0.1)), (5, None), (58, Some(0.1))]
    {
        let queue = Applies::new(&store, Duration::ZERO);
        let new = NewReplay { limit, ..order(left, halt_at) };
        let Done::Ended(Ended { state, published, .. }) = conducted(&store, &queue, &new).await else {
            panic!("it did not end");
        };
        let expected = (State::Limit, limit, limit as usize);
        assert_eq!((state, published, queue.published()), expected, "limit {limit}");
        left -= limit;
        assert_eq!(store.statuses().await.unwrap().get(&Status::Open).copied().unwrap_or_default(), left);
    }
}

async fn a_server_gives_a_paused_replay_back_and_has_room_for_others(home: Arc<Home>) {
    let store = seeded(&home, 200).await;
    let queue = Applies::new(&store, Duration::ZERO);
    let operations = Arc::new(Operations::new(store.clone(), queue.clone()));
    let (stop, stopped) = watch::channel(false);
    let works = {
        let operations = operations.clone();
        tokio::spawn(async move { operations.run(&stopped).await })
    };
    let slow = NewReplay { rate: Some(1.0), ..order(200, None) };
    let mut paused = Vec::new();
    for _ in 0..4 {
        paused.push(operations.start(&slow).await.unwrap().id);
    }
    for id in &paused {
        until(&store, *id, "it is on its way", |it| it.holder.is_some()).await;
    }
    for id in &paused {
        operations.wish(*id, Wish::Pause, &by("ada")).await.unwrap().unwrap();
    }
    for id in &paused {
        let waits = until(&store, *id, "nobody holds it", |it| it.holder.is_none()).await;
        assert_eq!((waits.state, waits.detail.as_deref()), (State::Paused, Some("paused by ada")));
        assert_eq!(waits.published, waits.letters(), "it tells how far it is");
    }
    let mut others = Vec::new();
    for _ in 0..4 {
        others.push(operations.start(&slow).await.unwrap().id);
    }
    for id in &others {
        until(&store, *id, "it is taken", |it| it.holder.is_some()).await;
    }
    let busy = operations.wish(paused[0], Wish::Run, &by("ada")).await.unwrap_err();
    assert_eq!(busy.to_string(), "4 replays run already");
    operations.wish(others[0], Wish::Stop, &by("ada")).await.unwrap().unwrap();
    until(&store, others[0], "one has ended", |it| it.ended_at.is_some()).await;
    operations.wish(paused[0], Wish::Run, &by("ada")).await.unwrap().unwrap();
    until(&store, paused[0], "it goes on", |it| it.holder.is_some()).await;
    stop.send_replace(true);
    works.await.unwrap();
}

async fn a_stop_is_told_with_who_asked_for_it(home: Arc<Home>) {
    let store = seeded(&home, 50).await;
    let queue = Applies::new(&store, Duration::ZERO);
    let new = NewReplay { rate: Some(10.0), ..order(50, None) };
    let run = {
        let (store, queue) = (store.clone(), queue.clone());
        tokio::spawn(async move { conducted(&store, &queue, &new).await })
    };
    let id = claimed(&store, 3).await;
    store.wish(id, Wish::Stop, &by("ada"), 4).await.unwrap().unwrap();
    let done = run.await.unwrap();
    let Done::Ended(Ended { state, detail, .. }) = done else { panic!("{done:?}") };
    assert_eq!((state, detail.as_deref()), (State::Stopped, Some("stopped by ada")));
    assert_eq!(store.replays(1).await.unwrap()[0].detail.as_deref(), Some("stopped by ada"));
}

/// Keeps everybody from writing to the operations for so long.
async fn lock(backend: Backend, time: Duration) {
    match backend {
        Backend::Postgres { url, schema } => {
            let mut connection = sqlx::PgConnection::connect(url.expose()).await.unwrap();
            let lock = format!("BEGIN; LOCK TABLE {schema}.operations IN EXCLUSIVE MODE");
            sqlx::raw_sql(sqlx::AssertSqlSafe(lock)).execute(&mut connection).await.unwrap();
            tokio::time::sleep(time).await;
            connection.close().await.unwrap();
        }
        Backend::Sqlite { path } => {
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
            let options = options.busy_timeout(Duration::from_secs(5));
            let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
            sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut connection).await.unwrap();
            tokio::time::sleep(time).await;
            connection.close().await.unwrap();
        }
    }
}

async fn a_lease_that_the_database_does_not_renew_is_given_up_in_time(home: Arc<Home>) {
    let store = seeded(&home, 100).await;
    // All are claimed at once, and each takes longer to be published than a lease lasts.
    let queue = Applies::new(&store, Duration::from_secs(15));
    let run = {
        let (store, queue) = (store.clone(), queue.clone());
        tokio::spawn(async move { conducted(&store, &queue, &order(100, None)).await })
    };
    let id = claimed(&store, 100).await;
    // A little less than the lease lasts: a renewal that waits so long comes in time after all, but nobody could know.
    lock(home.backend.clone(), Duration::from_millis(9_300)).await;
    let done = run.await.unwrap();
    assert!(matches!(done, Done::Left), "{done:?}");
    assert_eq!(queue.published(), 0, "it publishes though it may have lost the lease");
    // Whoever takes it next publishes what was claimed.
    assert_eq!(store.unpublished(id, 200).await.unwrap().len(), 100);
}
