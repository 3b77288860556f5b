//! What a look finds and heals, and what it leaves alone.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use async_trait::async_trait;
use tempfile::TempDir;

use super::*;
use crate::{
    clerk::{
        self, Known,
        api::{Api, Settings},
        made_up::INSTANCE,
        stand_in::{StandIn, World},
    },
    message::Message,
    queue::{Depth, Queue, QueueError, Subscription, Trouble},
    rules::{
        Event,
        users::{OnDelete, Policy, Relink},
    },
    store::{self, Backend, Incoming, Store, StoreConfig, letters::Captured, sync::Holder},
};

const HOUR: Millis = 3_600_000;

/// A queue that keeps what is published.
#[derive(Debug, Default)]
struct Kept {
    published: Mutex<Vec<Message>>,
    waiting: AtomicU64,
    nobody_consumes: AtomicBool,
    full: AtomicBool,
}

#[async_trait]
impl Queue for Kept {
    async fn publish(&self, message: Message) -> Result<(), QueueError> {
        if self.full.load(Ordering::SeqCst) {
            return Err(QueueError::Unavailable("it is full".into()));
        }
        self.published.lock().unwrap().push(message);
        Ok(())
    }

    async fn subscribe(&self, _: Source, _: u16) -> Result<Box<dyn Subscription>, QueueError> {
        Err(QueueError::Unavailable("nobody consumes here".into()))
    }

    fn sample(&self, _: bytes::Bytes) {}

    async fn depths(&self) -> Result<Vec<Depth>, QueueError> {
        Ok(vec![Depth {
            queue: "events".into(),
            messages: self.waiting.load(Ordering::SeqCst),
            consumers: u32::from(!self.nobody_consumes.load(Ordering::SeqCst)),
        }])
    }

    async fn ready(&self) -> Result<(), QueueError> {
        Ok(())
    }

    fn troubles(&self) -> Vec<Trouble> {
        Vec::new()
    }

    async fn close(&self) {}
}

struct Scene {
    _home: TempDir,
    clerk: StandIn,
    queue: Arc<Kept>,
    store: Arc<dyn Store>,
    looking: Looking,
    state: State,
}

impl Scene {
    async fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let config = StoreConfig {
            backend: Backend::Sqlite { path: home.path().join("headcount.db") },
            policy: Policy { relink: Relink::Deleted, on_delete: OnDelete::Keep },
            default_credits: 0,
            sessions: true,
            billing: None,
            connections: 4,
        };
        let store = store::open(&config).await.unwrap();
        store.migrate().await.unwrap();
        let clerk = StandIn::start(World::new()).await.unwrap();
        let settings = Settings {
            key: clerk.key(),
            url: clerk.url().to_owned(),
            rate: Some(1000.0),
            patience: Duration::ZERO,
            keep_object: false,
        };
        let queue = Arc::new(Kept::default());
        let sync = Sync {
            api: Api::new(&settings).unwrap(),
            store: Arc::clone(&store),
            queue: queue.clone(),
            grace: Duration::from_secs(60),
            instance: None,
            billing: false,
            holder: Holder::of("test"),
        };
        let state = State::default();
        let every = Duration::from_secs(60);
        let looking = Looking::new(sync, every, INSTANCE.into(), WatchMetrics::new(), &state);
        Self { _home: home, clerk, queue, store, looking, state }
    }

    fn sign_up(&self, id: &str, ago: Millis) {
        self.clerk.world().sign_up(id, now() - ago);
    }

    /// Looks, and answers whom it published.
    async fn look(&mut self) -> Vec<String> {
        self.looking.look(&mut self.state).await.unwrap();
        let published = std::mem::take(&mut *self.queue.published.lock().unwrap());
        let mut ids: Vec<String> =
            published.iter().map(|message| clerk::whose(&message.body).unwrap()).collect();
        for message in published {
            self.apply(&message).await;
        }
        ids.sort();
        ids
    }

    /// As a worker does, unless it cannot be read.
    async fn apply(&self, message: &Message) {
        let known = Known {
            origin: message.origin,
            keep_object: false,
            ..Known::webhook(&message.id, message.received_at)
        };
        let Ok(parsed) = clerk::parse(&message.body, &known) else { return };
        let event = Event {
            message_id: message.id.as_str().to_owned(),
            change: parsed.change,
            fresh_row: uuid::Uuid::now_v7(),
            patience_over: true,
        };
        let incoming = Incoming { event, event_type: parsed.event_type, received_at: message.received_at };
        self.store.apply(Arc::new([incoming])).await.unwrap();
    }

    fn behind(&self) -> u64 {
        self.state.behind_seconds.unwrap()
    }
}

#[tokio::test]
async fn who_is_missing_or_outdated_is_healed_once_the_grace_is_over() {
    let mut scene = Scene::new().await;
    scene.sign_up("user_old", HOUR);
    scene.sign_up("user_young", 30_000);
    assert_eq!(scene.look().await, ["user_old"]);
    assert_eq!(scene.state.healed_in_a_day(now()), Healed { missing: 1, outdated: 0, gone: 0 });
    scene.clerk.world().change("user_old", now() - 90_000, |person| person.banned = true).unwrap();
    assert_eq!(scene.look().await, ["user_old"]);
    assert_eq!(scene.state.healed_in_a_day(now()), Healed { missing: 1, outdated: 1, gone: 0 });
    assert!(scene.look().await.is_empty());
    assert_eq!((scene.behind(), scene.state.lacking.len()), (0, 1), "the young one may come by webhook");
    assert_eq!(
        scene.state.newest_here,
        scene.clerk.world().person("user_old").map(|person| person.updated_at)
    );
}

#[tokio::test]
async fn nobody_is_healed_while_the_queue_lags_and_the_next_look_reads_as_far_back() {
    let mut scene = Scene::new().await;
    scene.sign_up("user_1", HOUR);
    scene.looking.look(&mut scene.state).await.unwrap();
    scene.queue.published.lock().unwrap().clear();
    let looked_at = scene.state.looked_at;
    scene.sign_up("user_2", HOUR);
    scene.queue.waiting.store(DEPTH_MAX + 1, Ordering::SeqCst);
    assert!(scene.look().await.is_empty());
    assert!(scene.behind() >= 3600, "the table lacks it all the same");
    scene.queue.waiting.store(0, Ordering::SeqCst);
    scene.queue.nobody_consumes.store(true, Ordering::SeqCst);
    assert!(scene.look().await.is_empty());
    scene.queue.nobody_consumes.store(false, Ordering::SeqCst);
    scene.queue.full.store(true, Ordering::SeqCst);
    assert!(scene.look().await.is_empty());
    assert_eq!(scene.state.looked_at, looked_at);
    scene.queue.full.store(false, Ordering::SeqCst);
    assert_eq!(scene.look().await, ["user_2"]);
    assert_eq!(scene.state.healed_in_a_day(now()).missing, 2);
}

#[tokio::test]
async fn after_a_downtime_all_that_changed_meanwhile_is_healed() {
    let mut scene = Scene::new().await;
    scene.state.looked_at = Some(now() - 10 * HOUR);
    for n in 0..250 {
        scene.sign_up(&format!("user_{n:03}"), 9 * HOUR - 1000 * n);
    }
    scene.sign_up("user_of_before", 11 * HOUR);
    assert_eq!(scene.look().await.len(), 251, "the last page reaches behind the last look");
    assert!(scene.state.looked_at.unwrap() > now() - HOUR);
    scene.sign_up("user_new", 120_000);
    let asked = scene.clerk.world().asked("/v1/users");
    assert_eq!(scene.look().await, ["user_new"]);
    assert_eq!(scene.clerk.world().asked("/v1/users"), asked + 1);
}

#[tokio::test]
async fn a_user_with_a_letter_of_ours_is_left_to_people_and_stays_behind() {
    let mut scene = Scene::new().await;
    scene.sign_up("user_1", HOUR);
    scene.clerk.world().faults(|faults| {
        let garbled = format!(r#"{{"id":"user_1","updated_at":{},"created_at":"x"}}"#, now() - HOUR);
        faults.garbled.insert("user_1".into(), garbled);
    });
    scene.looking.look(&mut scene.state).await.unwrap();
    let message = scene.queue.published.lock().unwrap().pop().unwrap();
    let letter = Captured {
        message_id: message.id.as_str().to_owned(),
        origin: message.origin,
        round: 0,
        event_type: message.event_type.clone(),
        clerk_id: Some("user_1".into()),
        reason: "invalid_payload".into(),
        detail: "data.created_at".into(),
        attempts: 0,
        first_seen: message.received_at,
        died_at: now(),
        group: "invalid_payload".into(),
        headers: Default::default(),
        body: message.body.clone(),
    };
    scene.store.capture(&[letter]).await.unwrap();
    // As if it had been published long ago.
    scene.looking.lacking = Lacking::known(Vec::new());
    assert!(scene.look().await.is_empty());
    assert!(scene.behind() >= 3600);
}

#[tokio::test]
async fn who_was_published_in_vain_is_read_again_by_its_id() {
    let mut scene = Scene::new().await;
    scene.sign_up("user_1", HOUR);
    scene.looking.look(&mut scene.state).await.unwrap();
    scene.queue.published.lock().unwrap().clear();
    // The message is lost. Others changed since, so that no page shows the user any more.
    for n in 0..150 {
        scene.sign_up(&format!("user_other_{n}"), 1000);
    }
    assert!(scene.look().await.is_empty(), "the same was published a moment ago");
    let mut lacks = scene.looking.lacking.oldest(1);
    lacks[0].published_at = Some(now() - 600_000);
    scene.looking.lacking = Lacking::known(lacks);
    assert_eq!(scene.look().await, ["user_1"]);
    scene.look().await;
    assert_eq!(scene.behind(), 0);
    assert_eq!(scene.state.healed_in_a_day(now()).missing, 1, "it is one healing");
}

#[tokio::test]
async fn pages_that_repeat_end_the_look() {
    let mut scene = Scene::new().await;
    scene.state.looked_at = Some(now() - 10 * HOUR);
    for n in 0..250 {
        scene.sign_up(&format!("user_{n}"), HOUR);
    }
    let first = scene.looking.read(0).await.unwrap();
    assert_eq!(first.users.len(), usize::from(PAGE));
    let page: Vec<serde_json::Value> = first
        .users
        .iter()
        .map(|user| {
            let message = user.message(INSTANCE, false);
            serde_json::from_slice::<serde_json::Value>(&message.body).unwrap()["data"].clone()
        })
        .collect();
    let again = crate::clerk::stand_in::Wrong::Body(serde_json::Value::from(page).to_string());
    scene.clerk.world().faults(|faults| {
        faults.wrong = Some(again);
        faults.path = Some("/v1/users");
    });
    let error = scene.looking.look(&mut scene.state).await.unwrap_err();
    assert!(matches!(error, SyncError::Endless { count: 250, .. }), "{error}");
}

#[tokio::test]
async fn a_look_that_a_wrong_clock_dated_ahead_hides_no_change() {
    let mut scene = Scene::new().await;
    scene.state.looked_at = Some(now() + 24 * HOUR);
    for n in 0..150 {
        scene.sign_up(&format!("user_{n:03}"), 90_000 + n);
    }
    assert_eq!(scene.look().await.len(), 150, "more than one page is read");
    assert!(scene.state.looked_at.unwrap() <= now());
}
