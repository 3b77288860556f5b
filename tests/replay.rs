//! Capture, replay and edit against a queue in memory and letters in SQLite that fail when the test says so: where each
//! message is after each kind of interruption.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub, dead_code)]

#[path = "support/fake_queue.rs"]
mod fake_queue;
#[path = "support/faulty_letters.rs"]
mod faulty_letters;
mod support;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use fake_queue::{FakeQueue, Mode};
use faulty_letters::FaultyLetters;
use headcount::{
    letters::{
        capture,
        edit::{self, EditError},
        replay::{End, Order, Progress, Replayer},
    },
    message::{Message, MessageId, Origin, Rejected},
    queue::{Action, Death, Delivery, Depth, Queue, QueueError, Receipt, Settlement, Source, Subscription},
    rejections,
    store::{
        Class,
        housekeeping::Rejections,
        letters::{Actor, Captured, Filter, Letters, Status},
    },
    time::Millis,
};
use support::eventually;
use tokio::sync::{Notify, watch};

fn captured(n: usize) -> Captured {
    Captured {
        message_id: format!("msg_{n}"),
        origin: Origin::Webhook,
        round: 0,
        event_type: "user.created".into(),
        clerk_id: None,
        reason: "rejected".into(),
        detail: "x".into(),
        attempts: 7,
        first_seen: 1_760_000_000_000,
        died_at: 1_760_000_001_000,
        group: "rejected: x".into(),
        headers: BTreeMap::new(),
        body: Bytes::from(format!(
            r#"{{"type":"user.created","timestamp":1760000000000,"data":{{"id":7,"n":{n}}}}}"#
        )),
    }
}

struct Desk {
    letters: Arc<FaultyLetters>,
    queue: Arc<FakeQueue>,
    replayer: Replayer,
    stop: watch::Sender<bool>,
}

impl Desk {
    async fn with(letters: usize) -> Self {
        let (faulty, queue) = (FaultyLetters::new().await, Arc::new(FakeQueue::new()));
        faulty.capture(&(0..letters).map(captured).collect::<Vec<_>>()).await.unwrap();
        let mut replayer = Replayer::new(faulty.clone(), queue.clone());
        replayer.patience = Duration::ZERO;
        Self { letters: faulty, queue, replayer, stop: watch::Sender::new(false) }
    }

    async fn replay(&self) -> (Progress, End) {
        self.run(&order()).await
    }

    async fn run(&self, order: &Order) -> (Progress, End) {
        self.replayer.run(order, |_, _| {}, &self.stop.subscribe()).await
    }

    /// How often each message was published, by id and round.
    fn published(&self) -> HashMap<(String, u32), usize> {
        let mut published = HashMap::new();
        for message in self.queue.published() {
            *published.entry((message.id.as_str().to_owned(), message.round)).or_default() += 1;
        }
        published
    }

    async fn unstamped(&self) -> usize {
        self.letters.unstamped(&Filter::default(), Millis::MAX, 10_000).await.unwrap().len()
    }
}

fn order() -> Order {
    let by = Actor { name: "tester".into(), note: None };
    Order { filter: Filter::default(), limit: u64::MAX, rate: None, by }
}

#[tokio::test]
async fn a_replay_publishes_each_letter_once_as_a_new_round() {
    let desk = Desk::with(250).await;
    let (report, ended) = desk.replay().await;
    assert!(matches!(ended, End::Complete), "{ended:?}");
    assert_eq!(report, Progress { taken_up: 0, claimed: 250, published: 250, unstamped_left: 0 });
    assert_eq!(desk.published().len(), 250);
    assert_eq!(desk.unstamped().await, 0);
    let first = &desk.queue.published()[0];
    assert_eq!((first.round, first.attempt, first.waits), (1, 0, 0));
    assert_eq!(first.received_at, 1_760_000_000_000);

    let (report, ended) = desk.replay().await;
    assert!(matches!(ended, End::Complete));
    assert_eq!(report, Progress::default());
}

#[tokio::test]
async fn what_dies_again_meanwhile_is_left_for_the_next_replay() {
    let desk = Desk::with(250).await;
    *desk.letters.deadly.lock().unwrap() = true;
    let (report, ended) = desk.run(&Order { rate: Some(1000.0), ..order() }).await;
    assert!(matches!(ended, End::Complete), "{ended:?}");
    assert_eq!((report.claimed, report.published), (250, 250));
    assert!(desk.letters.all().await.iter().all(|letter| (letter.round, letter.status) == (1, Status::Open)));
}

#[tokio::test]
async fn a_limit_is_kept_exactly() {
    let desk = Desk::with(250).await;
    let (report, ended) = desk.run(&Order { limit: 120, ..order() }).await;
    assert!(matches!(ended, End::Limit), "{ended:?}");
    assert_eq!((report.claimed, desk.queue.published().len()), (120, 120));
}

#[tokio::test]
async fn a_failed_publish_leaves_its_claim_for_the_next_replay() {
    let desk = Desk::with(30).await;
    desk.queue.set(Mode::Fail);
    let (report, ended) = desk.replay().await;
    assert!(matches!(ended, End::Queue(_)), "{ended:?}");
    assert_eq!(report, Progress { taken_up: 0, claimed: 30, published: 0, unstamped_left: 30 });
    assert_eq!(desk.unstamped().await, 30);

    desk.queue.set(Mode::Take);
    let (report, ended) = desk.replay().await;
    assert!(matches!(ended, End::Complete), "{ended:?}");
    assert_eq!(report, Progress { taken_up: 30, claimed: 0, published: 30, unstamped_left: 0 });
    // The same round as was claimed: the claim is not made twice.
    assert!(desk.queue.published().iter().all(|message| message.round == 1));
    assert_eq!(desk.unstamped().await, 0);
}

#[tokio::test]
async fn a_short_outage_of_the_queue_is_waited_for() {
    let mut desk = Desk::with(5).await;
    desk.replayer.patience = Duration::from_secs(30);
    desk.queue.set(Mode::Fail);
    let (result, ()) = tokio::join!(desk.replay(), async {
        desk.queue.begun(6).await;
        desk.queue.set(Mode::Take);
    });
    assert!(matches!(result.1, End::Complete), "{result:?}");
    assert_eq!((result.0.published, desk.unstamped().await), (5, 0));
}

#[tokio::test]
async fn a_publication_that_was_not_stamped_is_published_again() {
    let desk = Desk::with(3).await;
    *desk.letters.no_stamps.lock().unwrap() = true;
    let (report, ended) = desk.replay().await;
    assert!(matches!(ended, End::Store(_)), "{ended:?}");
    assert_eq!((report.published, report.unstamped_left), (3, 3));

    *desk.letters.no_stamps.lock().unwrap() = false;
    let (report, _) = desk.replay().await;
    assert_eq!((report.taken_up, report.unstamped_left), (3, 0));
    assert!(desk.published().values().all(|times| *times == 2), "{:?}", desk.published());
}

#[tokio::test]
async fn asked_to_stop_it_finishes_what_it_has_claimed_and_no_more() {
    let desk = Desk::with(1000).await;
    desk.queue.set(Mode::Hold);
    let (result, ()) = tokio::join!(desk.replay(), async {
        desk.queue.begun(10).await;
        desk.stop.send_replace(true);
        desk.queue.set(Mode::Take);
    });
    let (report, ended) = result;
    assert!(matches!(ended, End::Stopped), "{ended:?}");
    assert_eq!((report.claimed, report.published, report.unstamped_left), (100, 100, 0));
    assert_eq!(desk.unstamped().await, 0);

    desk.stop.send_replace(false);
    let (report, _) = desk.replay().await;
    assert_eq!((report.claimed, desk.published().len()), (900, 1000));
    assert!(desk.published().values().all(|times| *times == 1));
}

#[tokio::test]
async fn a_replay_that_dies_anywhere_is_taken_up_again() {
    let desk = Desk::with(300).await;
    desk.queue.set(Mode::Hold);
    let stop = desk.stop.subscribe();
    {
        let order = order();
        let dying = desk.replayer.run(&order, |_, _| {}, &stop);
        tokio::pin!(dying);
        tokio::select! {
            _ = &mut dying => panic!("it cannot end"),
            () = desk.queue.begun(50) => {}
        }
        // Dropped in the middle of a chunk, as a kill would have it.
    }
    assert_eq!(desk.unstamped().await, 100);
    desk.queue.set(Mode::Take);
    let (report, ended) = desk.replay().await;
    assert!(matches!(ended, End::Complete), "{ended:?}");
    assert_eq!((report.taken_up, report.claimed, desk.unstamped().await), (100, 200, 0));
    assert_eq!(desk.published().len(), 300);
}

#[tokio::test]
async fn two_replays_at_once_share_the_letters() {
    let desk = Desk::with(500).await;
    let ((one, one_ended), (two, two_ended)) = tokio::join!(desk.replay(), desk.replay());
    assert!(matches!((one_ended, two_ended), (End::Complete, End::Complete)));
    assert_eq!(one.claimed + two.claimed, 500);
    assert_eq!(desk.published().len(), 500, "each in one round only");
    assert_eq!(desk.unstamped().await, 0);
}

#[tokio::test]
async fn a_rate_is_kept_and_little_is_claimed_ahead_of_it() {
    let desk = Desk::with(40).await;
    let started = tokio::time::Instant::now();
    let most = Mutex::new(0);
    let progress = |report: &Progress, _: &[(uuid::Uuid, u32)]| {
        let mut most = most.lock().unwrap();
        *most = report.unstamped_left.max(*most);
    };
    let order = Order { rate: Some(20.0), ..order() };
    let (report, _) = desk.replayer.run(&order, progress, &desk.stop.subscribe()).await;
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(report.published, 40);
    assert!(seconds >= 1.8, "{seconds}");
    assert_eq!(*most.lock().unwrap(), 20, "a second's worth is claimed at a time");
}

#[tokio::test]
async fn an_edit_is_checked_and_sent_once() {
    let desk = Desk::with(1).await;
    let letter = desk.letters.show("msg_0").await.unwrap().unwrap();
    let refused = edit::check(&letter, Bytes::from_static(br#"{"type":"user.created","data":{}}"#));
    assert!(matches!(&refused, Err(EditError::Refused(why)) if why.contains("data.id")), "{refused:?}");
    assert!(matches!(edit::check(&letter, letter.body.clone()), Err(EditError::Unchanged)));
    let large = Bytes::from(vec![b' '; edit::BODY_MAX + 1]);
    assert!(matches!(edit::check(&letter, large), Err(EditError::Refused(_))));
    assert_eq!(desk.letters.of("msg_0").await.unwrap().status, Status::Open);

    let body =
        Bytes::from_static(br#"{"type":"user.deleted","timestamp":1760000000000,"data":{"id":"user_1"}}"#);
    let mended = edit::check(&letter, body.clone()).unwrap();
    assert!(!mended.difference.is_empty());
    let by = || Actor { name: "tester".into(), note: None };
    let (one, two) = tokio::join!(
        edit::send(&desk.replayer, &letter, mended.clone(), by()),
        edit::send(&desk.replayer, &letter, mended.clone(), by()),
    );
    assert!(
        matches!((&one, &two), (Ok(1), Err(EditError::Gone)) | (Err(EditError::Gone), Ok(1))),
        "{one:?} {two:?}"
    );
    let published = desk.queue.published();
    assert_eq!(published.len(), 1);
    assert_eq!((&published[0].body, published[0].event_type.as_str()), (&body, "user.deleted"));
    assert_eq!(desk.unstamped().await, 0);
}

#[tokio::test]
async fn an_edit_that_cannot_be_published_is_kept_for_the_next_replay() {
    let desk = Desk::with(1).await;
    let letter = desk.letters.show("msg_0").await.unwrap().unwrap();
    let body =
        Bytes::from_static(br#"{"type":"user.deleted","timestamp":1760000000000,"data":{"id":"user_1"}}"#);
    let mended = edit::check(&letter, body.clone()).unwrap();
    desk.queue.set(Mode::Fail);
    let by = Actor { name: "tester".into(), note: None };
    let sent = edit::send(&desk.replayer, &letter, mended, by).await;
    assert!(matches!(sent, Err(EditError::Unpublished(_))), "{sent:?}");
    desk.queue.set(Mode::Take);
    assert_eq!(desk.replay().await.0.taken_up, 1);
    assert_eq!(desk.queue.published()[0].body, body);
}

/// A queue of the dead, in memory: what is not settled when its consumer goes comes back.
#[derive(Debug, Default)]
struct Dead {
    waiting: Mutex<Vec<(Message, Option<Death>)>>,
    changed: Notify,
    subscriptions: Mutex<usize>,
}

struct Consumer {
    dead: Arc<Dead>,
    held: Mutex<HashMap<u64, (Message, Option<Death>)>>,
    cancelled: watch::Sender<bool>,
}

impl Dead {
    fn bury(&self, id: &str, body: &str) {
        let message = Message {
            id: MessageId::parse(id).unwrap(),
            origin: Origin::Webhook,
            event_type: "user.created".into(),
            received_at: 0,
            attempt: 0,
            waits: 0,
            round: 0,
            traceparent: None,
            body: Bytes::copy_from_slice(body.as_bytes()),
        };
        let death = Death {
            reason: "rejected".into(),
            detail: "why".into(),
            died_at: 0,
            headers: BTreeMap::new(),
            counted: true,
        };
        self.waiting.lock().unwrap().push((message, Some(death)));
        self.changed.notify_waiters();
    }

    fn left(&self) -> usize {
        self.waiting.lock().unwrap().len()
    }
}

#[derive(Debug, Clone)]
struct DeadQueue(Arc<Dead>);

#[async_trait]
impl Queue for DeadQueue {
    async fn publish(&self, _: Message) -> Result<(), QueueError> {
        unreachable!()
    }
    async fn subscribe(&self, _: Source, _: u16) -> Result<Box<dyn Subscription>, QueueError> {
        *self.0.subscriptions.lock().unwrap() += 1;
        Ok(Box::new(Consumer {
            dead: self.0.clone(),
            held: Mutex::default(),
            cancelled: watch::Sender::new(false),
        }))
    }
    fn sample(&self, _: Bytes) {}
    async fn depths(&self) -> Result<Vec<Depth>, QueueError> {
        unreachable!()
    }
    async fn ready(&self) -> Result<(), QueueError> {
        unreachable!()
    }
    fn troubles(&self) -> Vec<headcount::queue::Trouble> {
        Vec::new()
    }

    async fn close(&self) {}
}

#[async_trait]
impl Subscription for Consumer {
    async fn next(&self) -> Option<Delivery> {
        loop {
            let changed = self.dead.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if *self.cancelled.borrow() {
                return None;
            }
            if let Some((message, death)) = self.dead.waiting.lock().unwrap().pop() {
                let mut held = self.held.lock().unwrap();
                let tag = held.len() as u64 + held.keys().max().copied().unwrap_or(0) + 1;
                held.insert(tag, (message.clone(), death.clone()));
                let receipt = Receipt { generation: 1, tag };
                return Some(Delivery { message, earlier: 0, receipt, death: death.map(Box::new) });
            }
            changed.await;
        }
    }
    async fn settle(&self, settlements: Vec<Settlement>) {
        for Settlement { delivery, action } in settlements {
            assert_eq!(action, Action::Done);
            let settled = self.held.lock().unwrap().remove(&delivery.receipt.tag);
            assert!(settled.is_some(), "{} was settled twice", delivery.message.id);
        }
    }
    fn widen(&self, _: u16) {}

    fn holds(&self, _: Receipt) -> bool {
        true
    }

    async fn cancel(&self) {
        self.cancelled.send_replace(true);
        self.dead.changed.notify_waiters();
    }
    fn trouble(&self) -> Option<String> {
        None
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.dead.waiting.lock().unwrap().extend(self.held.lock().unwrap().drain().map(|(_, held)| held));
        self.dead.changed.notify_waiters();
    }
}

#[tokio::test]
async fn letters_wait_in_the_queue_while_the_database_is_away() {
    let (dead, letters) = (Arc::new(Dead::default()), FaultyLetters::new().await);
    letters.fail(Class::Outage);
    for n in 0..250 {
        dead.bury(&format!("msg_{n}"), "x");
    }
    let stop = watch::Sender::new(false);
    let task = tokio::spawn(capture::run(
        Arc::new(DeadQueue(dead.clone())),
        letters.clone() as Arc<dyn Letters>,
        stop.subscribe(),
    ));
    letters.captures.subscribe().wait_for(|captures| *captures >= 2).await.unwrap();
    eventually("it gives its subscription up", async || dead.left() == 250).await;
    assert!(letters.all().await.is_empty());

    letters.fail(None);
    eventually("all are captured", async || letters.all().await.len() == 250).await;
    eventually("all are settled", async || dead.left() == 0).await;
    stop.send_replace(true);
    task.await.unwrap();
    assert_eq!(dead.left(), 0);
}

#[tokio::test]
async fn a_letter_that_the_database_refuses_holds_up_no_other() {
    let (dead, letters) = (Arc::new(Dead::default()), FaultyLetters::new().await);
    letters.refused.lock().unwrap().extend([("msg_3".to_owned(), false), ("msg_7".to_owned(), true)]);
    for n in 0..20 {
        dead.bury(&format!("msg_{n}"), "x");
    }
    let stop = watch::Sender::new(false);
    let task = tokio::spawn(capture::run(
        Arc::new(DeadQueue(dead.clone())),
        letters.clone() as Arc<dyn Letters>,
        stop.subscribe(),
    ));
    eventually("all but one are captured", async || letters.all().await.len() == 19).await;
    dead.bury("msg_later", "x");
    eventually("and those that come later", async || letters.of("msg_later").await.is_some()).await;
    assert_eq!(letters.of("msg_3").await.unwrap().detail, "", "what it has to have is kept");
    stop.send_replace(true);
    task.await.unwrap();
    assert_eq!(dead.left(), 1, "what is refused even bare stays in the queue");
}

#[tokio::test]
async fn a_letter_that_fails_alone_while_others_are_taken_holds_up_no_other() {
    let (dead, letters) = (Arc::new(Dead::default()), FaultyLetters::new().await);
    letters.unclear.lock().unwrap().extend(["msg_3".to_owned(), "msg_19".to_owned()]);
    for n in 0..20 {
        dead.bury(&format!("msg_{n}"), "x");
    }
    let stop = watch::Sender::new(false);
    let task = tokio::spawn(capture::run(
        Arc::new(DeadQueue(dead.clone())),
        letters.clone() as Arc<dyn Letters>,
        stop.subscribe(),
    ));
    eventually("all but two are captured", async || letters.all().await.len() == 18).await;
    stop.send_replace(true);
    task.await.unwrap();
    assert_eq!(dead.left(), 2, "they stay in the queue");
}

#[tokio::test]
async fn samples_are_recorded_and_rubbish_is_thrown_away() {
    let (dead, letters) = (Arc::new(Dead::default()), FaultyLetters::new().await);
    let sample = Rejected {
        at: 1_760_000_000_000,
        address: "192.0.2.1".into(),
        reason: "no_matching_signature".into(),
        headers: vec!["svix-id".into()],
    };
    dead.bury("a", "rubbish");
    dead.bury("b", &serde_json::to_string(&sample).unwrap());
    dead.bury("c", "{}");
    let stop = watch::Sender::new(false);
    let task = tokio::spawn(rejections::run(
        Arc::new(DeadQueue(dead.clone())),
        letters.store.clone() as Arc<dyn Rejections>,
        Default::default(),
        stop.subscribe(),
    ));
    eventually("it is recorded", async || letters.store.newest(10).await.unwrap().len() == 1).await;
    stop.send_replace(true);
    task.await.unwrap();
    assert_eq!(letters.store.newest(10).await.unwrap(), [sample]);
    assert_eq!(dead.left(), 0);
}
