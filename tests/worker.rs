//! The worker's loop against a queue and a store that do as a test tells them: who is blamed, what is held, what is
//! settled and when.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

#[macro_use]
#[path = "support/no_letters.rs"]
mod no_letters;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use headcount::{
    message::{Message, MessageId},
    queue::{Action, Delivery, Ladder, Reason, Receipt, Settlement, Subscription},
    roster::Outcome,
    store::{Class, Incoming, Store, StoreError, Totals, User, UserHistory, UserQuery},
    worker::{self, Health, Settings},
};
use tokio::sync::{Notify, watch};

/// A queue in memory that remembers what became of each message.
#[derive(Default)]
struct FakeQueue {
    waiting: Mutex<VecDeque<Delivery>>,
    settled: Mutex<HashMap<String, Action>>,
    order: Mutex<Vec<String>>,
    changed: Notify,
    cancelled: Mutex<bool>,
}

fn created(id: &str) -> String {
    format!(
        r#"{{"data":{{"id":"user_{id}","object":"user","created_at":1,"updated_at":2}},"object":"event","timestamp":1700000000000,"type":"user.created"}}"#
    )
}

fn message(id: &str, body: String) -> Message {
    Message {
        id: MessageId::parse(id).unwrap(),
        event_type: "user.created".into(),
        received_at: 0,
        attempt: 0,
        waits: 0,
        round: 0,
        traceparent: None,
        body: body.into(),
    }
}

impl FakeQueue {
    fn deliver(&self, id: &str, earlier: u32) {
        self.deliver_body(id, earlier, created(id));
    }

    fn deliver_body(&self, id: &str, earlier: u32, body: String) {
        self.deliver_message(message(id, body), earlier);
    }

    fn deliver_message(&self, message: Message, earlier: u32) {
        let receipt = Receipt { generation: 1, tag: 1 };
        self.waiting.lock().unwrap().push_back(Delivery { message, earlier, receipt, death: None });
        self.changed.notify_waiters();
    }

    fn settled(&self) -> HashMap<String, Action> {
        self.settled.lock().unwrap().clone()
    }

    async fn until(&self, wanted: impl Fn(&HashMap<String, Action>) -> bool) {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                if wanted(&self.settled()) {
                    return;
                }
                changed.await;
            }
        };
        let done = tokio::time::timeout(Duration::from_secs(30), waiting).await;
        done.unwrap_or_else(|_| panic!("not settled in time: {:?}", self.settled()));
    }
}

#[async_trait]
impl Subscription for FakeQueue {
    async fn next(&self) -> Option<Delivery> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(delivery) = self.waiting.lock().unwrap().pop_front() {
                return Some(delivery);
            }
            if *self.cancelled.lock().unwrap() {
                return None;
            }
            changed.await;
        }
    }

    async fn settle(&self, settlements: Vec<Settlement>) {
        for Settlement { delivery, action } in settlements {
            let id = delivery.message.id.as_str().to_owned();
            self.order.lock().unwrap().push(id.clone());
            let twice = self.settled.lock().unwrap().insert(id.clone(), action);
            assert!(twice.is_none(), "{id} was settled twice");
        }
        self.changed.notify_waiters();
    }

    fn holds(&self, _: Receipt) -> bool {
        true
    }

    async fn cancel(&self) {
        *self.cancelled.lock().unwrap() = true;
        self.changed.notify_waiters();
    }

    fn trouble(&self) -> Option<String> {
        None
    }
}

type Answer = dyn Fn(&[Incoming]) -> Result<Vec<Outcome>, Class> + Send + Sync;

/// A store that answers as a test says, and remembers the batches it was asked.
struct FakeStore {
    answer: Box<Answer>,
    batches: Mutex<Vec<Vec<String>>>,
    at_once: AtomicUsize,
    frozen: watch::Sender<bool>,
}

impl std::fmt::Debug for FakeStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a fake")
    }
}

fn store(
    answer: impl Fn(&[Incoming]) -> Result<Vec<Outcome>, Class> + Send + Sync + 'static,
) -> Arc<FakeStore> {
    Arc::new(FakeStore {
        answer: Box::new(answer),
        batches: Mutex::default(),
        at_once: AtomicUsize::new(0),
        frozen: watch::Sender::new(false),
    })
}

fn all_created(batch: &[Incoming]) -> Result<Vec<Outcome>, Class> {
    Ok(vec![Outcome::Created; batch.len()])
}

fn has(batch: &[Incoming], id: &str) -> bool {
    batch.iter().any(|incoming| incoming.event.message_id == id)
}

no_letters!(FakeStore);

#[async_trait]
impl Store for FakeStore {
    async fn apply(&self, batch: Arc<[Incoming]>) -> Result<Vec<Outcome>, StoreError> {
        let ids = batch.iter().map(|incoming| incoming.event.message_id.clone()).collect();
        self.batches.lock().unwrap().push(ids);
        self.at_once.fetch_add(1, SeqCst);
        headcount::shutdown::until(&self.frozen.subscribe(), |frozen| !*frozen).await;
        self.at_once.fetch_sub(1, SeqCst);
        (self.answer)(&batch).map_err(|class| StoreError {
            class,
            code: if class == Class::Unclear { "55P03" } else { "23514" }.into(),
            message: "as the test says".into(),
            hint: None,
            source: None,
        })
    }
    async fn migrate(&self) -> Result<Vec<String>, StoreError> {
        unreachable!()
    }
    async fn check_schema(&self) -> Result<(), StoreError> {
        unreachable!()
    }
    async fn ready(&self) -> Result<(), StoreError> {
        unreachable!()
    }
    async fn users(&self, _: &UserQuery) -> Result<Vec<User>, StoreError> {
        unreachable!()
    }
    async fn user(&self, _: &str) -> Result<Option<UserHistory>, StoreError> {
        unreachable!()
    }
    async fn totals(&self) -> Result<Totals, StoreError> {
        unreachable!()
    }
    async fn close(&self) {}
}

fn settings() -> Settings {
    Settings {
        batch_max: 10,
        batch_wait: Duration::from_millis(5),
        patience: 3,
        ladder: Ladder::default(),
        watchdog: Duration::from_millis(200),
        hold_limit: Duration::from_secs(600),
        suspicion: Duration::from_millis(300),
    }
}

struct Running {
    health: watch::Receiver<Health>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(queue: Arc<FakeQueue>, store: &Arc<FakeStore>, settings: Settings) -> Self {
        let (health, seen) = watch::channel(Health::default());
        let (stop, stopping) = watch::channel(false);
        let task = tokio::spawn(worker::run(queue, store.clone(), settings, health, stopping));
        Self { health: seen, stop, task }
    }

    async fn until_paused(&mut self, paused: bool) {
        let wait = self.health.wait_for(|health| health.paused.is_some() == paused);
        tokio::time::timeout(Duration::from_secs(30), wait).await.expect("in time").expect("running");
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        tokio::time::timeout(Duration::from_secs(30), self.task)
            .await
            .expect("drains in time")
            .expect("no panic");
    }
}

#[tokio::test]
async fn a_batch_is_settled_once_and_everything_received_is_finished_before_the_end() {
    let queue = Arc::new(FakeQueue::default());
    (0..35).for_each(|n| queue.deliver(&format!("m{n}"), 0));
    let store = store(all_created);
    let running = Running::start(queue.clone(), &store, settings());
    running.stop().await;
    assert_eq!(queue.settled().len(), 35);
    assert!(queue.settled().values().all(|action| *action == Action::Done));
    assert!(store.batches.lock().unwrap().iter().all(|batch| batch.len() <= 10));
}

#[tokio::test]
async fn a_batch_of_large_bodies_is_short_and_a_body_of_any_size_passes() {
    let queue = Arc::new(FakeQueue::default());
    let body = |bytes: usize| {
        let filler = "x".repeat(bytes);
        format!(r#"{{"data":{{"filler":"{filler}"}},"object":"event","type":"session.created"}}"#)
    };
    (0..8).for_each(|n| queue.deliver_body(&format!("m{n}"), 0, body(1024 * 1024)));
    queue.deliver_body("huge", 0, body(6 * 1024 * 1024));
    let store = store(|batch| Ok(vec![Outcome::Ignored; batch.len()]));
    let running = Running::start(queue.clone(), &store, settings());
    queue.until(|settled| settled.len() == 9).await;
    running.stop().await;
    let batches = store.batches.lock().unwrap();
    assert!(batches.iter().all(|batch| batch.len() <= 3), "{batches:?}");
    assert!(batches.contains(&vec!["huge".to_owned()]), "{batches:?}");
}

#[tokio::test]
async fn a_refused_message_is_buried_alone_and_its_neighbours_commit() {
    let queue = Arc::new(FakeQueue::default());
    (0..10).for_each(|n| queue.deliver(&format!("m{n}"), 0));
    let store = store(|batch| if has(batch, "m6") { Err(Class::Permanent) } else { all_created(batch) });
    let running = Running::start(queue.clone(), &store, settings());
    queue.until(|settled| settled.len() == 10).await;
    for (id, action) in queue.settled() {
        match (id.as_str(), action) {
            ("m6", Action::Bury(burial)) => assert_eq!(burial.reason, Reason::Rejected),
            (id, action) => assert_eq!((id != "m6", action), (true, Action::Done)),
        }
    }
    running.stop().await;
}

#[tokio::test]
async fn a_message_refused_in_silence_is_buried_after_the_suspicion() {
    let queue = Arc::new(FakeQueue::default());
    queue.deliver("lonely", 0);
    let store = store(|_| Err(Class::Permanent));
    let running = Running::start(queue.clone(), &store, settings());
    queue.until(|settled| matches!(settled.get("lonely"), Some(Action::Bury(_)))).await;
    running.stop().await;
}

#[tokio::test]
async fn a_run_of_fifty_refusals_is_an_outage_and_buries_nothing() {
    let queue = Arc::new(FakeQueue::default());
    (0..60).for_each(|n| queue.deliver(&format!("m{n}"), 0));
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let constraint = broken.clone();
    let store =
        store(move |batch| if constraint.load(SeqCst) { Err(Class::Permanent) } else { all_created(batch) });
    let settings = Settings { suspicion: Duration::from_secs(60), ..settings() };
    let mut running = Running::start(queue.clone(), &store, settings);
    running.until_paused(true).await;
    assert_eq!(queue.settled(), HashMap::new());
    broken.store(false, SeqCst);
    queue.until(|settled| settled.len() == 60).await;
    assert!(queue.settled().values().all(|action| *action == Action::Done), "{:?}", queue.settled());
    running.until_paused(false).await;
    running.stop().await;
}

#[tokio::test]
async fn a_locked_row_does_not_end_a_run_of_refusals() {
    let queue = Arc::new(FakeQueue::default());
    (0..60).for_each(|n| queue.deliver(&format!("m{n}"), 0));
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let constraint = broken.clone();
    let store = store(move |batch| match constraint.load(SeqCst) {
        true if batch.len() == 1 && ["m7", "m21", "m35"].iter().any(|id| has(batch, id)) => {
            Err(Class::Unclear)
        }
        true => Err(Class::Permanent),
        false => all_created(batch),
    });
    let settings = Settings { suspicion: Duration::from_secs(60), ..settings() };
    let mut running = Running::start(queue.clone(), &store, settings);
    running.until_paused(true).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(queue.settled(), HashMap::new());
    broken.store(false, SeqCst);
    queue.until(|settled| settled.len() == 60).await;
    assert!(queue.settled().values().all(|action| *action == Action::Done), "{:?}", queue.settled());
    running.stop().await;
}

#[tokio::test]
async fn a_stop_parks_what_somebody_keeps_locked_and_burns_nothing() {
    let queue = Arc::new(FakeQueue::default());
    queue.deliver("m0", 0);
    let store = store(|_| Err(Class::Unclear));
    let settings = Settings { suspicion: Duration::from_secs(60), ..settings() };
    let running = Running::start(queue.clone(), &store, settings);
    while store.batches.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    running.stop().await;
    assert_eq!(queue.settled()["m0"], Action::Retry { rung: 2, attempt: 0, waits: 0 });
}

#[tokio::test]
async fn an_unreadable_body_is_buried_with_the_field_and_counts_in_no_run() {
    let queue = Arc::new(FakeQueue::default());
    queue.deliver_body("broken", 0, "not json".into());
    queue.deliver("good", 0);
    let running = Running::start(queue.clone(), &store(all_created), settings());
    queue.until(|settled| settled.len() == 2).await;
    let Some(Action::Bury(burial)) = queue.settled().remove("broken") else {
        panic!("{:?}", queue.settled())
    };
    assert_eq!(burial.reason, Reason::InvalidPayload);
    assert_eq!(queue.settled()["good"], Action::Done);
    running.stop().await;
}

#[tokio::test]
async fn an_outage_settles_nothing_and_ends_by_itself() {
    let queue = Arc::new(FakeQueue::default());
    (0..25).for_each(|n| queue.deliver(&format!("m{n}"), 0));
    let away = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let database = away.clone();
    let store =
        store(move |batch| if database.load(SeqCst) { Err(Class::Outage) } else { all_created(batch) });
    let mut running = Running::start(queue.clone(), &store, settings());
    running.until_paused(true).await;
    assert_eq!(queue.settled(), HashMap::new());
    away.store(false, SeqCst);
    queue.until(|settled| settled.len() == 25).await;
    assert!(queue.settled().values().all(|action| *action == Action::Done));
    running.stop().await;
}

#[tokio::test]
async fn a_database_that_does_not_answer_is_an_outage_and_the_task_is_left_alone() {
    let queue = Arc::new(FakeQueue::default());
    queue.deliver("m0", 0);
    let store = store(all_created);
    store.frozen.send_replace(true);
    let mut running = Running::start(queue.clone(), &store, settings());
    running.until_paused(true).await;
    queue.deliver("m1", 0);
    store.frozen.send_replace(false);
    queue.until(|settled| settled.len() == 2).await;
    running.until_paused(false).await;
    assert_eq!(store.batches.lock().unwrap().len(), 2, "m0 was asked once and not again");
    running.stop().await;
}

#[tokio::test]
async fn what_is_held_too_long_is_parked_with_its_attempt_unchanged() {
    let queue = Arc::new(FakeQueue::default());
    (0..12).for_each(|n| queue.deliver(&format!("m{n}"), 0));
    let store = store(|_| Err(Class::Outage));
    let settings = Settings { hold_limit: Duration::from_millis(500), ..settings() };
    let running = Running::start(queue.clone(), &store, settings);
    queue.until(|settled| settled.len() == 12).await;
    for action in queue.settled().into_values() {
        assert_eq!(action, Action::Retry { rung: 2, attempt: 0, waits: 0 });
    }
    running.stop().await;
}

#[tokio::test]
async fn what_a_frozen_database_holds_is_parked_too() {
    let queue = Arc::new(FakeQueue::default());
    queue.deliver("m0", 0);
    let store = store(all_created);
    store.frozen.send_replace(true);
    let settings = Settings { hold_limit: Duration::from_millis(500), ..settings() };
    let running = Running::start(queue.clone(), &store, settings);
    queue.until(|settled| settled.get("m0") == Some(&Action::Retry { rung: 2, attempt: 0, waits: 0 })).await;
    assert_eq!(store.at_once.load(SeqCst), 1, "the transaction was cancelled");
    running.stop().await;
}

#[tokio::test]
async fn what_lost_every_race_alone_goes_up_the_ladder() {
    goes_up_the_ladder_alone(Class::Transient).await;
}

#[tokio::test]
async fn what_somebody_keeps_locked_goes_up_the_ladder_and_its_neighbours_commit() {
    goes_up_the_ladder_alone(Class::Unclear).await;
}

async fn goes_up_the_ladder_alone(class: Class) {
    let queue = Arc::new(FakeQueue::default());
    (0..8).for_each(|n| queue.deliver(&format!("m{n}"), 0));
    let store = store(move |batch| if has(batch, "m2") { Err(class) } else { all_created(batch) });
    let running = Running::start(queue.clone(), &store, settings());
    queue.until(|settled| settled.len() == 8).await;
    assert_eq!(queue.settled()["m2"], Action::Retry { rung: 0, attempt: 1, waits: 0 });
    assert_eq!(queue.settled().values().filter(|action| **action == Action::Done).count(), 7);
    running.stop().await;
}

#[tokio::test]
async fn a_table_that_somebody_keeps_locked_is_an_outage_and_burns_nothing() {
    for (count, pauses) in [(25, true), (1, false)] {
        let queue = Arc::new(FakeQueue::default());
        (0..count).for_each(|n| queue.deliver(&format!("m{n}"), 0));
        let locked = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let table = locked.clone();
        let store =
            store(move |batch| if table.load(SeqCst) { Err(Class::Unclear) } else { all_created(batch) });
        let mut running = Running::start(queue.clone(), &store, settings());
        if pauses {
            running.until_paused(true).await;
            // Each try waits for the lock, so there must be few before it is known.
            let tries = store.batches.lock().unwrap().len();
            assert!(tries <= 24, "{tries} tries");
        }
        // Longer than the silence after which refused values would be the message's fault.
        tokio::time::sleep(settings().suspicion * 3).await;
        assert_eq!(queue.settled(), HashMap::new());
        locked.store(false, SeqCst);
        queue.until(|settled| settled.len() == count).await;
        assert!(queue.settled().values().all(|action| *action == Action::Done), "{:?}", queue.settled());
        running.stop().await;
    }
}

#[tokio::test]
async fn what_came_back_or_failed_before_is_tried_alone_and_in_random_order() {
    let queue = Arc::new(FakeQueue::default());
    (0..20).for_each(|n| queue.deliver(&format!("r{n:02}"), 1));
    for id in (20..40).map(|n| format!("r{n:02}")) {
        queue.deliver_message(Message { attempt: 1, ..message(&id, created(&id)) }, 0);
    }
    (0..10).for_each(|n| queue.deliver(&format!("f{n}"), 0));
    let store = store(all_created);
    let running = Running::start(queue.clone(), &store, settings());
    queue.until(|settled| settled.len() == 50).await;
    let batches = store.batches.lock().unwrap().clone();
    assert!(
        batches.iter().all(|batch| batch.len() == 1 || batch.iter().all(|id| id.starts_with('f'))),
        "{batches:?}"
    );
    let returned: Vec<String> = batches.into_iter().flatten().filter(|id| id.starts_with('r')).collect();
    assert!(!returned.is_sorted(), "in the order of arrival");
    running.stop().await;
}

#[tokio::test]
async fn a_worker_stops_at_once_while_the_database_is_away() {
    let queue = Arc::new(FakeQueue::default());
    (0..5).for_each(|n| queue.deliver(&format!("m{n}"), 0));
    let mut running = Running::start(queue.clone(), &store(|_| Err(Class::Outage)), settings());
    running.until_paused(true).await;
    running.stop().await;
    assert_eq!(queue.settled(), HashMap::new());
}
