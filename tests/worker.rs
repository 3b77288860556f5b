//! The worker's loop against a queue and a store that the test controls: which message is blamed, what is held, and what is
//! settled when.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use headcount::{
    message::{Message, MessageId, Origin},
    queue::{
        Action, Delivery, Depth, Ladder, Queue, QueueError, Reason, Receipt, Settlement, Source,
        Subscription, Trouble,
    },
    rules::Outcome,
    store::{Batches, Class, Incoming, StoreError},
    worker::{self, Health, Settings},
};
use tokio::sync::{Notify, watch};

/// A queue in memory that keeps the seam's promises and remembers what became of each message. A retry comes back at
/// once, whatever its delay.
#[derive(Debug, Default)]
struct FakeQueue {
    state: Mutex<State>,
    changed: Notify,
    /// The broker takes nothing that is published.
    blocked: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<(Message, u32)>,
    unsettled: BTreeMap<Receipt, (Message, u32)>,
    /// What became of each message in the end.
    settled: HashMap<String, Action>,
    /// Retries in their order.
    retries: Vec<(String, Action)>,
    /// Prefetches that were asked for, in their order.
    subscribed: Vec<u16>,
    most_held: usize,
    generation: u64,
    tag: u64,
}

fn created(id: &str) -> String {
    format!(
        r#"{{"data":{{"id":"user_{id}","object":"user","created_at":1,"updated_at":2}},"object":"event","timestamp":1700000000000,"type":"user.created"}}"#
    )
}

fn message(id: &str, body: String) -> Message {
    Message {
        id: MessageId::parse(id).unwrap(),
        origin: Origin::Webhook,
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
    fn with(count: usize) -> Arc<Self> {
        let queue = Arc::new(Self::default());
        (0..count).for_each(|n| queue.deliver(&format!("m{n}"), 0));
        queue
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn deliver(&self, id: &str, earlier: u32) {
        self.deliver_message(message(id, created(id)), earlier);
    }

    fn deliver_body(&self, id: &str, body: String) {
        self.deliver_message(message(id, body), 0);
    }

    fn deliver_message(&self, message: Message, earlier: u32) {
        self.state().waiting.push_back((message, earlier));
        self.changed.notify_waiters();
    }

    /// As when a connection ends: what is unsettled is delivered again, and nothing of before can be settled.
    fn lose_connection(&self) {
        let mut state = self.state();
        state.generation += 1;
        let lost = std::mem::take(&mut state.unsettled);
        state.waiting.extend(lost.into_values().map(|(message, earlier)| (message, earlier + 1)));
        drop(state);
        self.changed.notify_waiters();
    }

    fn settled(&self) -> HashMap<String, Action> {
        self.state().settled.clone()
    }

    fn held(&self) -> usize {
        self.state().unsettled.len()
    }

    /// Attempts that each message's retries burned; parking burns none.
    fn attempts(&self, id: &str) -> Vec<u32> {
        let of = |(retried, action): &(String, Action)| match action {
            Action::Retry { attempt, .. } if retried == id => Some(*attempt),
            _ => None,
        };
        self.state().retries.iter().filter_map(of).collect()
    }

    fn burned(&self) -> Vec<String> {
        let state = self.state();
        let burned =
            state.retries.iter().filter(|(_, action)| matches!(action, Action::Retry { attempt: 1.., .. }));
        burned.map(|(id, _)| id.clone()).collect()
    }

    async fn until(&self, wanted: impl Fn(&State) -> bool) {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if wanted(&self.state()) {
                    return;
                }
                changed.await;
            }
        };
        let done = tokio::time::timeout(Duration::from_secs(30), waiting).await;
        done.unwrap_or_else(|_| panic!("not in time: {:?}", self.state()));
    }

    async fn until_settled(&self, count: usize) {
        self.until(|state| state.settled.len() == count).await;
    }
}

/// The queue as a worker sees it.
#[derive(Debug)]
struct Shared(Arc<FakeQueue>);

#[async_trait]
impl Queue for Shared {
    async fn publish(&self, _: Message) -> Result<(), QueueError> {
        unreachable!()
    }
    async fn subscribe(&self, _: Source, prefetch: u16) -> Result<Box<dyn Subscription>, QueueError> {
        let generation = {
            let mut state = self.0.state();
            state.subscribed.push(prefetch);
            state.generation += 1;
            state.generation
        };
        let prefetch = AtomicUsize::new(prefetch.into());
        Ok(Box::new(Consumer {
            queue: Arc::clone(&self.0),
            prefetch,
            generation,
            cancelled: AtomicBool::new(false),
        }))
    }
    fn sample(&self, _: bytes::Bytes) {}
    async fn depths(&self) -> Result<Vec<Depth>, QueueError> {
        unreachable!()
    }
    async fn ready(&self) -> Result<(), QueueError> {
        unreachable!()
    }
    fn troubles(&self) -> Vec<Trouble> {
        Vec::new()
    }
    async fn close(&self) {}
}

struct Consumer {
    queue: Arc<FakeQueue>,
    prefetch: AtomicUsize,
    generation: u64,
    cancelled: AtomicBool,
}

impl Consumer {
    fn take(&self) -> Option<Delivery> {
        let mut state = self.queue.state();
        if state.unsettled.len() >= self.prefetch.load(SeqCst) {
            return None;
        }
        let (message, earlier) = state.waiting.pop_front()?;
        state.tag += 1;
        let receipt = Receipt { generation: state.generation.max(self.generation), tag: state.tag };
        state.unsettled.insert(receipt, (message.clone(), earlier));
        state.most_held = state.most_held.max(state.unsettled.len());
        drop(state);
        self.queue.changed.notify_waiters();
        Some(Delivery { message, earlier, receipt, death: None })
    }
}

#[async_trait]
impl Subscription for Consumer {
    async fn next(&self) -> Option<Delivery> {
        loop {
            let changed = self.queue.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.cancelled.load(SeqCst) {
                return None;
            }
            match self.take() {
                Some(delivery) => return Some(delivery),
                None => changed.await,
            }
        }
    }

    async fn settle(&self, settlements: Vec<Settlement>) {
        for Settlement { delivery, action } in settlements {
            while self.queue.blocked.load(SeqCst) && action != Action::Done {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let id = delivery.message.id.as_str().to_owned();
            let mut state = self.queue.state();
            let Some((mut message, _)) = state.unsettled.remove(&delivery.receipt) else { continue };
            if let Action::Retry { attempt, waits, .. } = &action {
                (message.attempt, message.waits) = (*attempt, *waits);
                state.waiting.push_back((message, 0));
                state.retries.push((id, action));
            } else {
                let twice = state.settled.insert(id.clone(), action);
                assert!(twice.is_none(), "{id} was settled twice");
            }
        }
        self.queue.changed.notify_waiters();
    }

    fn widen(&self, prefetch: u16) {
        self.prefetch.store(prefetch.into(), SeqCst);
        self.queue.state().subscribed.push(prefetch);
        self.queue.changed.notify_waiters();
    }

    fn holds(&self, receipt: Receipt) -> bool {
        self.queue.state().unsettled.contains_key(&receipt)
    }

    async fn cancel(&self) {
        self.cancelled.store(true, SeqCst);
        self.queue.changed.notify_waiters();
    }

    fn trouble(&self) -> Option<String> {
        None
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.queue.lose_connection();
    }
}

type Answer = dyn Fn(&[Incoming]) -> Result<Vec<Outcome>, Class> + Send + Sync;

/// A store that answers as a test says, and remembers the batches it was asked.
struct FakeStore {
    answer: Box<Answer>,
    /// It takes no write at all.
    away: AtomicBool,
    batches: Mutex<Vec<Vec<String>>>,
    /// It answers nothing, which a worker is told at once here and after some seconds in truth.
    frozen: AtomicBool,
    /// What is to fail takes so long.
    hang: Mutex<Duration>,
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
        away: AtomicBool::new(false),
        batches: Mutex::default(),
        frozen: AtomicBool::new(false),
        hang: Mutex::default(),
    })
}

/// Hangs for so long over each batch with a message that is named `hangs…`, and then fails.
fn hanging(hang: Duration) -> Arc<FakeStore> {
    let store = store(|batch| {
        let hangs = batch.iter().any(|incoming| incoming.event.message_id.starts_with("hangs"));
        if hangs { Err(Class::Unclear) } else { all_created(batch) }
    });
    *store.hang.lock().unwrap() = hang;
    store
}

fn all_created(batch: &[Incoming]) -> Result<Vec<Outcome>, Class> {
    Ok(vec![Outcome::Created; batch.len()])
}

fn has(batch: &[Incoming], id: &str) -> bool {
    batch.iter().any(|incoming| incoming.event.message_id == id)
}

fn error(class: Class) -> StoreError {
    let code = if class == Class::Unclear { "P0001" } else { "23514" };
    StoreError { class, code: code.into(), message: "as the test says".into(), hint: None, source: None }
}

#[async_trait]
impl Batches for FakeStore {
    async fn apply(&self, batch: Arc<[Incoming]>) -> Result<Vec<Outcome>, StoreError> {
        let ids = batch.iter().map(|incoming| incoming.event.message_id.clone()).collect();
        self.batches.lock().unwrap().push(ids);
        if self.frozen.load(SeqCst) {
            return Err(error(Class::Unanswered));
        }
        if self.away.load(SeqCst) {
            return Err(error(Class::Outage));
        }
        let answer = (self.answer)(&batch).map_err(error);
        let hang = *self.hang.lock().unwrap();
        if answer.is_err() && !hang.is_zero() {
            tokio::time::sleep(hang).await;
        }
        answer
    }
    async fn ready(&self) -> Result<(), StoreError> {
        match (self.frozen.load(SeqCst), self.away.load(SeqCst)) {
            (true, _) => Err(error(Class::Unanswered)),
            (false, true) => Err(error(Class::Outage)),
            (false, false) => Ok(()),
        }
    }
}

fn settings() -> Settings {
    Settings {
        prefetch: 100,
        batch_max: 10,
        batch_wait: Duration::from_millis(5),
        patience: 3,
        ladder: Ladder::default(),
        instance: None,
        keep_object: false,
        sessions: true,
        billing: false,
        silence: Duration::from_millis(300),
    }
}

struct Running {
    health: watch::Receiver<Health>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<Result<(), QueueError>>,
}

impl Running {
    fn start(queue: &Arc<FakeQueue>, store: &Arc<FakeStore>, settings: Settings) -> Self {
        let (health, seen) = watch::channel(Health::default());
        let (stop, stopping) = watch::channel(false);
        let queue = Arc::new(Shared(Arc::clone(queue)));
        let task = tokio::spawn(worker::run(
            queue,
            store.clone(),
            settings,
            worker::Seen::default(),
            health,
            stopping,
        ));
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
            .expect("no panic")
            .expect("the queue can be consumed");
    }
}

fn assert_done(queue: &FakeQueue, but: &[&str]) {
    for (id, action) in queue.settled() {
        assert!(but.contains(&id.as_str()) || action == Action::Done, "{id}: {action:?}");
    }
}

#[track_caller]
fn assert_buried(queue: &FakeQueue, id: &str, reason: Reason) {
    match queue.settled().get(id) {
        Some(Action::Bury(burial)) => assert_eq!(burial.reason, reason, "{}", burial.detail),
        other => panic!("{id}: {other:?}"),
    }
}

#[tokio::test]
async fn a_batch_is_settled_once_and_a_stop_finishes_all_that_was_received() {
    let queue = FakeQueue::with(36);
    let store = store(all_created);
    let running = Running::start(&queue, &store, settings());
    // One is tried with care; then all that may be held is received.
    queue.until(|state| state.subscribed.len() == 2 && state.waiting.is_empty()).await;
    running.stop().await;
    assert_eq!(queue.settled().len(), 36);
    assert_done(&queue, &[]);
    assert!(store.batches.lock().unwrap().iter().all(|batch| batch.len() <= 10));
}

#[tokio::test]
async fn a_batch_of_large_bodies_is_short_and_a_body_of_any_size_passes() {
    let queue = FakeQueue::with(1);
    let body = |bytes: usize| {
        let filler = "x".repeat(bytes);
        format!(r#"{{"data":{{"filler":"{filler}"}},"object":"event","type":"email.created"}}"#)
    };
    (0..8).for_each(|n| queue.deliver_body(&format!("large{n}"), body(1024 * 1024)));
    queue.deliver_body("huge", body(6 * 1024 * 1024));
    let store = store(all_created);
    let running = Running::start(&queue, &store, settings());
    queue.until_settled(10).await;
    running.stop().await;
    let batches = store.batches.lock().unwrap();
    assert!(batches.iter().all(|batch| batch.len() <= 3), "{batches:?}");
    assert!(batches.contains(&vec!["huge".to_owned()]), "{batches:?}");
}

#[tokio::test]
async fn refused_values_are_buried_alone_and_their_neighbours_commit() {
    let queue = FakeQueue::with(11);
    let store = store(|batch| if has(batch, "m6") { Err(Class::Permanent) } else { all_created(batch) });
    let running = Running::start(&queue, &store, settings());
    queue.until_settled(11).await;
    assert_buried(&queue, "m6", Reason::Rejected);
    assert_done(&queue, &["m6"]);
    assert_eq!(queue.attempts("m6"), Vec::<u32>::new());
    running.stop().await;
}

#[tokio::test]
async fn what_fails_alone_climbs_the_ladder_is_buried_and_stops_nobody() {
    for (class, reason) in [(Class::Transient, Reason::RetriesExhausted), (Class::Unclear, Reason::Rejected)]
    {
        let queue = FakeQueue::with(9);
        let store = store(move |batch| if has(batch, "m2") { Err(class) } else { all_created(batch) });
        let running = Running::start(&queue, &store, settings());
        queue.until_settled(9).await;
        assert_buried(&queue, "m2", reason);
        assert_done(&queue, &["m2"]);
        assert_eq!(queue.attempts("m2"), [1, 2, 3, 4, 5, 6]);
        assert_eq!(queue.state().subscribed, [1, 100], "the others were never held up");
        running.stop().await;
    }
}

#[tokio::test]
async fn many_that_hang_take_neither_the_turns_nor_the_places_of_the_others() {
    let queue = FakeQueue::with(1);
    let store = hanging(Duration::from_secs(2));
    let running = Running::start(&queue, &store, Settings { prefetch: 40, ..settings() });
    queue.until_settled(1).await;
    // More than there are places, and more than could be tried in a minute.
    for id in (0..60).map(|n| format!("hangs{n}")) {
        queue.deliver_message(Message { attempt: 1, ..message(&id, created(&id)) }, 0);
    }
    (0..500).for_each(|n| queue.deliver(&format!("good{n}"), 0));
    let begun = Instant::now();
    queue.until_settled(501).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "they were held up for {:?}", begun.elapsed());
    assert_done(&queue, &[]);
    let parked = |state: &State, attempt| {
        let same = |(_, action): &&(String, Action)| matches!(action, Action::Retry { attempt: to, .. } if *to == attempt);
        state.retries.iter().filter(same).count()
    };
    assert!(parked(&queue.state(), 1) > 0, "nothing was set aside, so the test shows nothing");
    queue.until(|state| parked(state, 2) >= 4).await;
    running.stop().await;
}

#[tokio::test]
async fn a_batch_takes_no_more_than_a_fifth_of_the_prefetch() {
    let queue = FakeQueue::with(200);
    let store = store(all_created);
    let running = Running::start(&queue, &store, Settings { prefetch: 20, batch_max: 200, ..settings() });
    queue.until_settled(200).await;
    let most = store.batches.lock().unwrap().iter().map(Vec::len).max();
    assert_eq!(most, Some(4), "one fills while four are being tried");
    running.stop().await;
}

#[tokio::test]
async fn one_busy_user_who_hangs_delays_the_others_for_seconds_only() {
    beside_a_busy_user_who_hangs(60, settings()).await;
}

#[tokio::test]
async fn one_user_who_hangs_in_nearly_every_part_of_a_batch_delays_the_others_for_seconds_only() {
    beside_a_busy_user_who_hangs(240, Settings { prefetch: 600, batch_max: 120, ..settings() }).await;
}

/// Every tenth of ten times `rounds` messages is of one user, and hangs.
async fn beside_a_busy_user_who_hangs(rounds: usize, settings: Settings) {
    let queue = FakeQueue::with(1);
    let store = hanging(Duration::from_secs(1));
    let silence = Duration::from_secs(5);
    let running = Running::start(&queue, &store, Settings { silence, ..settings });
    queue.until_settled(1).await;
    for n in 0..rounds {
        queue.deliver_body(&format!("hangs{n}"), created("hot"));
        (0..9).for_each(|other| queue.deliver(&format!("good{n}_{other}"), 0));
    }
    let begun = Instant::now();
    let good = |state: &State| state.settled.keys().filter(|id| id.starts_with("good")).count();
    queue.until(|state| good(state) == 9 * rounds).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "they were held up for {:?}", begun.elapsed());
    running.stop().await;
}

#[tokio::test]
async fn one_connection_lost_over_one_message_is_no_outage() {
    let queue = FakeQueue::with(9);
    let store = store(|batch| if has(batch, "m2") { Err(Class::Outage) } else { all_created(batch) });
    let running = Running::start(&queue, &store, settings());
    queue.until_settled(9).await;
    assert_buried(&queue, "m2", Reason::Rejected);
    assert_done(&queue, &["m2"]);
    running.stop().await;
}

#[tokio::test]
async fn a_lone_account_failing_in_silence_is_blamed_if_the_database_worked() {
    let queue = FakeQueue::with(1);
    let store = store(|batch| if has(batch, "lonely") { Err(Class::Permanent) } else { all_created(batch) });
    let mut running = Running::start(&queue, &store, settings());
    queue.until_settled(1).await;
    queue.deliver("lonely", 0);
    queue.until_settled(2).await;
    assert_buried(&queue, "lonely", Reason::Rejected);
    running.until_paused(false).await;
    running.stop().await;
}

#[tokio::test]
async fn a_lone_message_failing_in_silence_is_set_aside_until_others_prove() {
    let queue = FakeQueue::with(1);
    let store = store(|batch| if has(batch, "lonely") { Err(Class::Unclear) } else { all_created(batch) });
    let running = Running::start(&queue, &store, settings());
    queue.until_settled(1).await;
    queue.deliver("lonely", 0);
    queue.until(|state| state.retries.len() >= 3).await;
    assert_eq!((queue.settled().len(), queue.burned()), (1, vec![]));
    assert_eq!(running.health.borrow().paused, None, "it stops nobody");
    (1..9).for_each(|n| queue.deliver(&format!("m{n}"), 0));
    queue.until_settled(10).await;
    assert_buried(&queue, "lonely", Reason::Rejected);
    running.stop().await;
}

#[tokio::test]
async fn of_a_kind_refused_as_a_whole_nobody_is_blamed_while_others_go_on() {
    let queue = FakeQueue::with(1);
    let broken = Arc::new(AtomicBool::new(true));
    let trigger = broken.clone();
    let store = store(move |batch| {
        let updates = batch.iter().any(|incoming| incoming.event_type == "user.updated");
        if updates && trigger.load(SeqCst) { Err(Class::Unclear) } else { all_created(batch) }
    });
    let mut running = Running::start(&queue, &store, settings());
    queue.until_settled(1).await;
    let updated = |n: usize| created(&format!("u{n}")).replace("user.created", "user.updated");
    (0..20).for_each(|n| queue.deliver_body(&format!("u{n}"), updated(n)));
    // Others go on until each of the kind was set aside.
    let mut others = 1;
    while queue.state().retries.len() < 20 {
        queue.deliver(&format!("m{others}"), 0);
        others += 1;
        queue.until_settled(others).await;
    }
    assert_done(&queue, &[]);
    assert_eq!(queue.burned(), Vec::<String>::new());
    broken.store(false, SeqCst);
    queue.until_settled(others + 20).await;
    assert_done(&queue, &[]);
    running.until_paused(false).await;
    running.stop().await;
}

#[tokio::test]
async fn before_the_database_was_seen_to_work_nobody_is_to_blame() {
    for class in [Class::Permanent, Class::Unclear] {
        let queue = FakeQueue::with(1);
        let store = store(move |batch| if has(batch, "m0") { Err(class) } else { all_created(batch) });
        let mut running = Running::start(&queue, &store, settings());
        running.until_paused(true).await;
        queue.until(|state| state.retries.len() >= 2).await;
        assert_eq!((queue.settled(), queue.burned()), (HashMap::new(), vec![]));
        // Others prove whose trouble it is.
        (1..5).for_each(|n| queue.deliver(&format!("m{n}"), 0));
        queue.until_settled(5).await;
        assert_buried(&queue, "m0", Reason::Rejected);
        running.until_paused(false).await;
        running.stop().await;
    }
}

/// While every message is refused nothing is buried and no attempt is burned, and everything goes on by itself.
async fn refused_by_all(class: Class, count: usize) {
    let queue = FakeQueue::with(5);
    let broken = Arc::new(AtomicBool::new(false));
    let trigger = broken.clone();
    let store = store(move |batch| if trigger.load(SeqCst) { Err(class) } else { all_created(batch) });
    let mut running = Running::start(&queue, &store, settings());
    queue.until_settled(5).await;
    broken.store(true, SeqCst);
    (5..5 + count).for_each(|n| queue.deliver(&format!("m{n}"), 0));
    running.until_paused(true).await;
    // All of it goes back, and from then on one message at a time is looked at.
    queue.until(|state| state.subscribed.iter().filter(|prefetch| **prefetch == 1).count() >= 3).await;
    assert!(queue.held() <= 1, "{} are held", queue.held());
    assert_eq!((queue.settled().len(), queue.burned()), (5, vec![]));
    let probed: BTreeSet<String> = queue.state().retries.iter().map(|(id, _)| id.clone()).collect();
    assert_eq!(probed.len(), count, "each has been given back");
    broken.store(false, SeqCst);
    queue.until_settled(5 + count).await;
    assert_done(&queue, &[]);
    assert_eq!(queue.burned(), Vec::<String>::new());
    assert!(queue.state().waiting.iter().all(|(_, earlier)| *earlier == 0));
    running.until_paused(false).await;
    running.stop().await;
}

#[tokio::test]
async fn what_refuses_everybody_is_an_outage_whatever_it_says() {
    for class in [Class::Permanent, Class::Transient, Class::Unclear] {
        for count in [2, 25] {
            refused_by_all(class, count).await;
        }
    }
}

#[tokio::test]
async fn the_guilty_among_all_who_are_refused_are_told_apart_after_the_outage() {
    let queue = FakeQueue::with(5);
    let broken = Arc::new(AtomicBool::new(false));
    let trigger = broken.clone();
    let store = store(move |batch| match trigger.load(SeqCst) || has(batch, "m9") {
        true => Err(Class::Unclear),
        false => all_created(batch),
    });
    let mut running = Running::start(&queue, &store, settings());
    queue.until_settled(5).await;
    broken.store(true, SeqCst);
    (5..30).for_each(|n| queue.deliver(&format!("m{n}"), 0));
    running.until_paused(true).await;
    broken.store(false, SeqCst);
    queue.until_settled(30).await;
    assert_buried(&queue, "m9", Reason::Rejected);
    assert_done(&queue, &["m9"]);
    assert!(queue.burned().iter().all(|id| id == "m9"), "{:?}", queue.burned());
    running.stop().await;
}

#[tokio::test]
async fn an_unreadable_body_is_buried_with_the_field_and_proves_nothing() {
    let queue = Arc::new(FakeQueue::default());
    queue.deliver_body("broken", "not json".into());
    queue.deliver("good", 0);
    let running = Running::start(&queue, &store(all_created), settings());
    queue.until_settled(2).await;
    assert_buried(&queue, "broken", Reason::InvalidPayload);
    assert_eq!(queue.settled()["good"], Action::Done);
    running.stop().await;
}

#[tokio::test]
async fn a_worker_takes_no_message_before_the_database_takes_a_write() {
    let queue = FakeQueue::with(25);
    let store = store(all_created);
    store.away.store(true, SeqCst);
    for _ in 0..25 {
        let mut running = Running::start(&queue, &store, settings());
        running.until_paused(true).await;
        running.stop().await;
    }
    assert_eq!(queue.state().subscribed, Vec::<u16>::new());
    store.away.store(false, SeqCst);
    let running = Running::start(&queue, &store, settings());
    queue.until_settled(25).await;
    assert_done(&queue, &[]);
    running.stop().await;
}

#[tokio::test]
async fn a_worker_killed_again_and_again_in_an_outage_burns_few_deliveries() {
    let queue = FakeQueue::with(40);
    let broken = Arc::new(AtomicBool::new(true));
    let trigger = broken.clone();
    let store =
        store(move |batch| if trigger.load(SeqCst) { Err(Class::Unclear) } else { all_created(batch) });
    for n in 0..25 {
        let mut running = Running::start(&queue, &store, settings());
        running.until_paused(true).await;
        tokio::time::sleep(Duration::from_millis(n * 10)).await;
        // As SIGKILL does: nothing is settled, the connection is gone.
        running.task.abort();
        let _ = running.task.await;
    }
    let state = queue.state();
    let most = state.waiting.iter().map(|(_, earlier)| *earlier).max();
    assert!(state.most_held <= 1, "{} were held at a time", state.most_held);
    assert!(most < Some(5), "one was delivered {most:?} times");
    drop(state);
    assert_eq!((queue.settled(), queue.burned()), (HashMap::new(), vec![]));
}

#[tokio::test]
async fn an_outage_gives_everything_back_within_its_time_and_ends_by_itself() {
    let queue = FakeQueue::with(1);
    let store = store(all_created);
    let mut running = Running::start(&queue, &store, settings());
    queue.until_settled(1).await;
    store.away.store(true, SeqCst);
    (1..26).for_each(|n| queue.deliver(&format!("m{n}"), 0));
    running.until_paused(true).await;
    let begun = Instant::now();
    queue.until(|state| state.unsettled.is_empty() && !state.retries.is_empty()).await;
    assert!(begun.elapsed() < settings().silence * 3, "{:?}", begun.elapsed());
    assert_eq!((queue.settled().len(), queue.burned()), (1, vec![]));
    store.away.store(false, SeqCst);
    queue.until_settled(26).await;
    assert_done(&queue, &[]);
    running.until_paused(false).await;
    running.stop().await;
}

#[tokio::test]
async fn a_short_outage_is_sat_out_with_what_is_held() {
    let queue = FakeQueue::with(1);
    let store = store(all_created);
    let settings = Settings { silence: Duration::from_secs(20), ..settings() };
    let mut running = Running::start(&queue, &store, settings);
    queue.until_settled(1).await;
    store.away.store(true, SeqCst);
    (1..26).for_each(|n| queue.deliver(&format!("m{n}"), 0));
    running.until_paused(true).await;
    store.away.store(false, SeqCst);
    queue.until_settled(26).await;
    assert_eq!(queue.state().retries, vec![]);
    running.stop().await;
}

#[tokio::test]
async fn an_unanswered_call_is_an_outage_and_its_transaction_is_left_alone() {
    let queue = FakeQueue::with(1);
    let store = store(all_created);
    let mut running = Running::start(&queue, &store, settings());
    queue.until_settled(1).await;
    store.frozen.store(true, SeqCst);
    (1..6).for_each(|n| queue.deliver(&format!("m{n}"), 0));
    running.until_paused(true).await;
    queue.until(|state| state.unsettled.is_empty() && state.retries.len() >= 5).await;
    assert_eq!(queue.burned(), Vec::<String>::new());
    store.frozen.store(false, SeqCst);
    queue.until_settled(6).await;
    running.until_paused(false).await;
    assert_done(&queue, &[]);
    running.stop().await;
}

#[tokio::test]
async fn a_stop_in_an_outage_gives_back_what_is_held_and_comes_back_to_nothing() {
    let queue = FakeQueue::with(1);
    let store = store(all_created);
    let settings = Settings { silence: Duration::from_secs(20), ..settings() };
    let mut running = Running::start(&queue, &store, settings);
    queue.until_settled(1).await;
    store.away.store(true, SeqCst);
    (1..20).for_each(|n| queue.deliver(&format!("m{n}"), 0));
    running.until_paused(true).await;
    running.stop().await;
    let state = queue.state();
    assert_eq!(state.waiting.len(), 19);
    assert!(
        state.waiting.iter().all(|(message, earlier)| (message.attempt, *earlier) == (0, 0)),
        "{state:?}"
    );
}

#[tokio::test]
async fn what_must_be_published_waits_for_the_broker_and_delays_no_ack() {
    let queue = FakeQueue::with(1);
    let running = Running::start(&queue, &store(all_created), settings());
    queue.until_settled(1).await;
    queue.blocked.store(true, SeqCst);
    (0..20).for_each(|n| queue.deliver_body(&format!("bad{n}"), "not json".into()));
    (1..2000).for_each(|n| queue.deliver(&format!("m{n}"), 0));
    queue.until_settled(2000).await;
    assert_done(&queue, &[]);
    assert_eq!(queue.held(), 20);
    queue.blocked.store(false, SeqCst);
    queue.until_settled(2020).await;
    running.stop().await;
}

#[tokio::test]
async fn what_belongs_to_an_ended_connection_is_dropped_and_applied_once() {
    let queue = FakeQueue::with(1);
    let store = store(all_created);
    let settings = Settings { silence: Duration::from_secs(20), ..settings() };
    let mut running = Running::start(&queue, &store, settings);
    queue.until_settled(1).await;
    store.away.store(true, SeqCst);
    (1..60).for_each(|n| queue.deliver(&format!("m{n}"), 0));
    running.until_paused(true).await;
    for _ in 0..10 {
        queue.until(|state| state.waiting.is_empty()).await;
        queue.lose_connection();
    }
    store.batches.lock().unwrap().clear();
    store.away.store(false, SeqCst);
    queue.until_settled(60).await;
    let applied: usize = store.batches.lock().unwrap().iter().map(Vec::len).sum();
    assert!(applied <= 60 + 20, "{applied} were applied for 59");
    running.stop().await;
}

#[tokio::test]
async fn what_grows_with_a_batch_is_cured_by_smaller_ones_which_grow_again() {
    let queue = FakeQueue::with(1);
    let room = Arc::new(AtomicUsize::new(3));
    let locks = room.clone();
    let store = store(move |batch| match batch.len() > locks.load(SeqCst) {
        true => Err(Class::Unclear),
        false => all_created(batch),
    });
    let settings = Settings { batch_wait: Duration::from_millis(50), ..settings() };
    let running = Running::start(&queue, &store, settings);
    queue.until_settled(1).await;
    (1..400).for_each(|n| queue.deliver(&format!("m{n}"), 0));
    queue.until_settled(400).await;
    assert_done(&queue, &[]);
    assert_eq!(queue.state().retries, vec![]);
    let failed = store.batches.lock().unwrap().iter().filter(|batch| batch.len() > 3).count();
    assert!(failed < 100, "{failed} batches were too large");
    room.store(10, SeqCst);
    (400..800).for_each(|n| queue.deliver(&format!("m{n}"), 0));
    queue.until_settled(800).await;
    assert!(store.batches.lock().unwrap().iter().any(|batch| batch.len() == 10), "they stay small");
    running.stop().await;
}

#[tokio::test]
async fn what_came_back_or_failed_before_is_tried_alone_in_random_order() {
    let queue = FakeQueue::with(1);
    let store = store(all_created);
    let running = Running::start(&queue, &store, settings());
    queue.until(|state| state.subscribed.len() == 2).await;
    (0..20).for_each(|n| queue.deliver(&format!("r{n:02}"), 1));
    for id in (0..20).map(|n| format!("a{n:02}")) {
        queue.deliver_message(Message { attempt: 1, ..message(&id, created(&id)) }, 0);
    }
    (0..10).for_each(|n| queue.deliver(&format!("f{n}"), 0));
    queue.until_settled(51).await;
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
async fn what_has_come_back_too_often_is_buried_untried() {
    let queue = FakeQueue::with(3);
    queue.deliver("hangs", 41);
    let store = store(all_created);
    let running = Running::start(&queue, &store, settings());
    queue.until_settled(4).await;
    assert_buried(&queue, "hangs", Reason::CrashLoop);
    assert!(!store.batches.lock().unwrap().concat().contains(&"hangs".to_owned()));
    running.stop().await;
}

#[tokio::test]
async fn what_is_known_to_fail_makes_no_outage_of_a_start() {
    let queue = Arc::new(FakeQueue::default());
    queue.deliver_message(Message { attempt: 2, ..message("known", created("known")) }, 0);
    let store = store(|batch| if has(batch, "known") { Err(Class::Unclear) } else { all_created(batch) });
    let running = Running::start(&queue, &store, settings());
    queue.until(|state| !state.retries.is_empty()).await;
    assert_eq!(queue.attempts("known")[0], 2, "nothing is proved yet");
    assert_eq!(running.health.borrow().paused, None);
    (0..5).for_each(|n| queue.deliver(&format!("m{n}"), 0));
    queue.until_settled(6).await;
    assert_buried(&queue, "known", Reason::Rejected);
    running.stop().await;
}

#[tokio::test]
async fn a_starting_worker_that_meets_only_what_hangs_first_still_reaches_the_others() {
    let queue = FakeQueue::with(0);
    (0..20).for_each(|n| queue.deliver(&format!("hangs{n}"), 0));
    (0..50).for_each(|n| queue.deliver(&format!("good{n}"), 0));
    let store = hanging(Duration::from_secs(1));
    let silence = Duration::from_secs(5);
    let begun = Instant::now();
    let mut running = Running::start(&queue, &store, Settings { silence, ..settings() });
    queue.until(|state| state.settled.keys().filter(|id| id.starts_with("good")).count() == 50).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "they waited for {:?}", begun.elapsed());
    running.until_paused(false).await;
    running.stop().await;
}

#[tokio::test]
async fn where_everybody_hangs_little_is_held_most_of_the_time() {
    let queue = FakeQueue::with(0);
    // So few that they are given back long before all are taken again.
    (0..3).for_each(|n| queue.deliver(&format!("hangs{n}"), 0));
    let store = hanging(Duration::from_millis(1100));
    let mut running = Running::start(&queue, &store, settings());
    running.until_paused(true).await;
    queue.until(|state| state.subscribed.contains(&100)).await;
    // All are taken again 5 s after this at the earliest.
    let taken = Instant::now();
    queue.until(|state| state.unsettled.is_empty()).await;
    let mut looks = 0;
    while taken.elapsed() < Duration::from_millis(4700) {
        looks += 1;
        assert!(queue.held() <= 1, "{} are held {:?} after all were taken", queue.held(), taken.elapsed());
        assert!(running.health.borrow().paused.is_some(), "nothing was applied");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(looks >= 50, "they were given back too late to tell: {looks}");
    assert_eq!((queue.settled().len(), queue.burned()), (0, vec![]));
    running.stop().await;
}

#[tokio::test]
async fn a_starting_worker_tries_others_before_what_is_known_to_hang() {
    let queue = FakeQueue::with(0);
    for id in (0..10).map(|n| format!("hangs{n}")) {
        queue.deliver_message(Message { attempt: 1, ..message(&id, created(&id)) }, 1);
    }
    (0..5).for_each(|n| queue.deliver(&format!("good{n}"), 0));
    let store = hanging(Duration::from_secs(1));
    let begun = Instant::now();
    let running = Running::start(&queue, &store, settings());
    queue.until_settled(5).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "they waited for {:?}", begun.elapsed());
    running.stop().await;
}

#[tokio::test]
async fn a_starting_worker_tries_others_before_what_came_back_often() {
    let queue = Arc::new(FakeQueue::default());
    queue.deliver("killer", 5);
    (0..30).for_each(|n| queue.deliver(&format!("m{n}"), 0));
    let store = store(all_created);
    let running = Running::start(&queue, &store, settings());
    queue.until_settled(31).await;
    let batches = store.batches.lock().unwrap().clone();
    assert_eq!(batches.last(), Some(&vec!["killer".to_owned()]), "{batches:?}");
    running.stop().await;
    // With nobody else there it is tried all the same.
    let queue = Arc::new(FakeQueue::default());
    queue.deliver("killer", 5);
    let running = Running::start(&queue, &store, settings());
    queue.until_settled(1).await;
    running.stop().await;
}

#[tokio::test]
async fn a_batch_that_is_lost_in_this_process_comes_back() {
    let queue = FakeQueue::with(1);
    let lost = AtomicBool::new(false);
    let store = store(move |batch| match has(batch, "m3") && !lost.swap(true, SeqCst) {
        true => panic!("as the test says"),
        false => all_created(batch),
    });
    let running = Running::start(&queue, &store, settings());
    queue.until_settled(1).await;
    (1..8).for_each(|n| queue.deliver(&format!("m{n}"), 0));
    queue.until_settled(8).await;
    assert_done(&queue, &[]);
    running.stop().await;
}
