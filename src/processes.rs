//! Owns how a process tells about itself every few seconds: what it is, how it fares and what it counted. One with a database
//! writes it there; an ingress has none, and says it through the queue, on the way of samples of rejected requests.
//!
//! Promises that telling holds up nothing, that what comes through the queue is bounded and takes no sample's place in numbers
//! that matter, and that a database which nobody else asks is told once an hour, so that one that sleeps when idle can sleep.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tracing::{info, warn};
use uuid::Uuid;

use crate::{
    pause::Recovery,
    queue::{Depth, Queue, SAMPLES_MAX, Source},
    stop::until,
    store::{
        Store, StoreError,
        processes::{PAUSED_MAX, PROCESSES_MAX, Role, Said, Telling},
        sync::Holder,
    },
    telemetry::rates::{self, Rates, Ring, SLOT},
    text::{WORD_MAX, clean},
    time::{Millis, now},
};

/// How long counts what a process said, unless it says something new.
pub const LIFE: Duration = Duration::from_secs(30);

/// After so long without news a database that may sleep is left alone, ...
const AWAKE: Duration = Duration::from_secs(60);
/// ... but for once in this time. What was said last counts a bit longer.
const IDLE: Duration = Duration::from_secs(3_600);

/// An ingress says nothing while so many samples wait: then nobody takes them, and what it says would push them out.
const WAITING_MAX: u64 = SAMPLES_MAX.unsigned_abs() / 10;

/// What an ingress's last word is given to leave.
const GOODBYE: Duration = Duration::from_millis(100);

/// The largest notice that is read, in bytes.
const NOTICE_MAX: usize = 32 * 1024;

/// So long an ingress that is not heard is no news when it is heard again.
const REMEMBERED: Duration = Duration::from_secs(600);

/// The most listeners of a process that are kept.
const LISTENERS_MAX: usize = 8;

/// How a notice begins, which tells it from a sample.
const BEGINNING: &[u8] = br#"{"process":"#;

/// What an ingress says through the queue. An older worker cannot read it as a sample, and drops it.
#[derive(Serialize, Deserialize)]
struct Notice {
    process: Spoken,
}

#[derive(Serialize, Deserialize)]
struct Spoken {
    id: Uuid,
    /// It ends: what else is said does not matter.
    #[serde(default)]
    ended: bool,
    version: String,
    host: String,
    pid: u32,
    started_at: Millis,
    told_at: Millis,
    listeners: BTreeMap<String, String>,
    rates: String,
}

/// The notice of an ingress.
fn notice(said: &Said, ended: bool) -> Vec<u8> {
    let spoken = Spoken {
        id: said.id,
        ended,
        version: said.version.clone(),
        host: said.host.clone(),
        pid: said.pid,
        started_at: said.started_at,
        told_at: said.told_at,
        listeners: said.listeners.clone(),
        rates: said.rates.to_json(),
    };
    // Texts and numbers: this cannot fail.
    serde_json::to_vec(&Notice { process: spoken }).unwrap_or_default()
}

/// What ingresses said through the queue, until it is written down. The queue is open to other hands.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<Heard>>);

#[derive(Debug, Default)]
struct Heard {
    voices: HashMap<Uuid, Voice>,
    ended: Vec<Uuid>,
    /// Somebody came or went.
    news: bool,
}

#[derive(Debug)]
struct Voice {
    said: Said,
    heard: Instant,
    told: bool,
}

impl Board {
    /// Takes a message from the queue of samples. `false`: it is no notice.
    pub fn hear(&self, body: &[u8]) -> bool {
        if !body.starts_with(BEGINNING) {
            return false;
        }
        if body.len() <= NOTICE_MAX
            && let Ok(Notice { process }) = serde_json::from_slice(body)
        {
            self.heard().take(process);
        }
        true
    }

    /// What is to be written down, and was not yet; or, for long, all that was heard lately.
    fn turn(&self, all: bool) -> (Vec<Said>, Vec<Uuid>) {
        let mut heard = self.heard();
        heard.news = false;
        let mut said = Vec::new();
        for voice in heard.voices.values_mut().filter(|voice| voice.heard.elapsed() < LIFE) {
            if all || !std::mem::replace(&mut voice.told, true) {
                said.push(voice.said.clone());
            }
        }
        (said, std::mem::take(&mut heard.ended))
    }

    /// Somebody came or went.
    fn has_news(&self) -> bool {
        self.heard().news
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heard {
    fn take(&mut self, spoken: Spoken) {
        let (id, ended) = (spoken.id, spoken.ended);
        if ended {
            self.news |= self.voices.remove(&id).is_some();
            if self.ended.len() < PROCESSES_MAX {
                self.ended.push(id);
            }
            return;
        }
        // Of several workers each hears a part of what an ingress says.
        let keep = if self.voices.len() < PROCESSES_MAX { REMEMBERED } else { LIFE };
        self.voices.retain(|_, voice| voice.heard.elapsed() < keep);
        let said = bounded(spoken);
        let is_full = self.voices.len() >= PROCESSES_MAX;
        match self.voices.get_mut(&id) {
            // The queue may deliver out of order.
            Some(voice) if voice.said.told_at > said.told_at => voice.heard = Instant::now(),
            Some(voice) => *voice = Voice { said, heard: Instant::now(), told: false },
            None if is_full => {}
            None => {
                self.voices.insert(id, Voice { said, heard: Instant::now(), told: false });
                self.news = true;
            }
        }
    }
}

/// Cleans and bounds what was said. Nobody is more than an ingress by this way.
fn bounded(spoken: Spoken) -> Said {
    let plausible = |at: Millis| if (0..=now() + 60_000).contains(&at) { at } else { now() };
    let listeners = spoken.listeners.iter().take(LISTENERS_MAX);
    Said {
        id: spoken.id,
        roles: vec![Role::Ingress],
        version: clean(&spoken.version, WORD_MAX),
        host: clean(&spoken.host, WORD_MAX),
        pid: spoken.pid,
        started_at: plausible(spoken.started_at),
        told_at: plausible(spoken.told_at),
        held: None,
        paused: None,
        paused_since: None,
        listeners: listeners.map(|(role, at)| (clean(role, WORD_MAX), clean(at, WORD_MAX))).collect(),
        rates: Rates::of_json(&spoken.rates),
    }
}

/// How many messages wait in the queue of samples; `None` where that is not known.
pub fn samples_waiting(depths: &[Depth]) -> Option<u64> {
    depths.iter().find(|depth| depth.queue == Source::Rejections.queue()).map(|depth| depth.messages)
}

/// Whether an ingress may say something through the queue: so many samples wait there.
fn has_room(waiting: Option<u64>) -> bool {
    waiting.is_some_and(|waiting| waiting < WAITING_MAX)
}

/// Where a process tells about itself.
pub enum Way {
    /// Into its database, together with what the board holds.
    Store {
        /// The database.
        store: Arc<dyn Store>,
        /// What ingresses said through the queue.
        board: Board,
        /// The database may sleep when nobody asks it.
        may_sleep: bool,
    },
    /// Through the queue.
    Queue {
        /// The queue.
        queue: Arc<dyn Queue>,
        /// How many samples wait there.
        waiting: watch::Receiver<Option<u64>>,
    },
}

/// Says since when and why the worker of this process takes no messages; `None` while it does.
pub type Paused = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// What a process tells about itself, and how.
pub struct Teller {
    /// What it says, but for what changes.
    said: Said,
    way: Way,
    /// How its worker is, where it has one.
    worker: Option<Paused>,
}

impl Teller {
    /// Of this process.
    pub fn new(
        roles: Vec<Role>,
        listeners: BTreeMap<String, String>,
        worker: Option<Paused>,
        way: Way,
    ) -> Self {
        let Holder { id, host, .. } = Holder::of("process");
        let said = Said {
            id,
            roles,
            version: env!("CARGO_PKG_VERSION").into(),
            host,
            pid: std::process::id(),
            started_at: now(),
            told_at: now(),
            held: None,
            paused: None,
            paused_since: None,
            listeners,
            rates: Rates::default(),
        };
        Self { said, way, worker }
    }

    /// Tells from when `ready` turns true until `stop` does, and then that the process ends.
    pub async fn run(mut self, ready: watch::Receiver<bool>, stop: watch::Receiver<bool>) {
        let mut ring = Ring::new(now());
        let mut pen = Pen::default();
        let stopped = || until(&stop, |stop| *stop);
        tokio::select! {
            () = until(&ready, |ready| *ready) => {}
            () = stopped() => return,
        }
        // The worker has ended before it began.
        if !*ready.borrow() {
            return;
        }
        if let Way::Queue { waiting, .. } = &self.way {
            // Before that an ingress does not know whether it may speak.
            let _ = timeout(Duration::from_secs(2), until(waiting, Option::is_some)).await;
        }
        loop {
            self.tell(&ring, &mut pen).await;
            // A moment after the end of a slot.
            let rest = SLOT - now().rem_euclid(SLOT) + 20;
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(rest.unsigned_abs())) => {}
                () = stopped() => break,
            }
            ring.turn(now());
        }
        self.leave(&ring, pen).await;
    }

    /// What is to be said now.
    fn say(&mut self, ring: &Ring) -> &Said {
        self.said.told_at = now();
        self.said.rates = ring.rates();
        if let Some(worker) = &self.worker {
            let paused = worker();
            self.said.held = Some(rates::held());
            (self.said.paused_since, self.said.paused) = paused.as_deref().map_or((None, None), split);
        }
        &self.said
    }

    async fn tell(&mut self, ring: &Ring, pen: &mut Pen) {
        if pen.writes().await {
            return;
        }
        let before = self.said.paused.is_some();
        let said = self.say(ring).clone();
        match &self.way {
            Way::Queue { queue, waiting } => {
                if has_room(*waiting.borrow()) {
                    queue.sample(notice(&said, false).into());
                }
            }
            Way::Store { store, board, may_sleep } => {
                let news = !may_sleep || before != said.paused.is_some() || board.has_news();
                let Some(life) = pen.pace.life(Instant::now(), store.asked(), news) else { return };
                let (others, ended) = board.turn(life > LIFE);
                let telling = Telling { own: Some(said), others, ended, life };
                pen.write(Arc::clone(store), telling);
            }
        }
    }

    async fn leave(mut self, ring: &Ring, mut pen: Pen) {
        let said = self.say(ring).clone();
        match &self.way {
            Way::Queue { queue, waiting } => {
                if has_room(*waiting.borrow()) {
                    queue.sample(notice(&said, true).into());
                    // Nobody tells when it is on its way, and the queue is closed next. It is lossy all the same.
                    tokio::time::sleep(GOODBYE).await;
                }
            }
            Way::Store { store, .. } => {
                pen.end().await;
                if pen.told {
                    // In vain or not: it is forgotten by itself.
                    let _ = store.leave(said.id).await;
                }
            }
        }
    }
}

/// Since when, and why, of `since 2026-01-31T12:00:00.000Z: why`.
fn split(paused: &str) -> (Option<Millis>, Option<String>) {
    let parts = paused.strip_prefix("since ").and_then(|rest| rest.split_once(": "));
    let (since, why) = match parts {
        Some((since, why)) => (chrono::DateTime::parse_from_rfc3339(since).ok(), why),
        None => (None, paused),
    };
    (since.map(|since| since.timestamp_millis()), Some(clean(why, PAUSED_MAX)))
}

/// Writes one thing at a time, beside all else.
struct Pen {
    writing: Option<JoinHandle<Result<(), StoreError>>>,
    /// Something was written.
    told: bool,
    pace: Pace,
    recovery: Recovery,
}

impl Default for Pen {
    fn default() -> Self {
        let recovery = Recovery::new(Duration::from_secs(1), Duration::from_secs(1));
        Self { writing: None, told: false, pace: Pace::default(), recovery }
    }
}

impl Pen {
    /// Whether it still writes what it was given last.
    async fn writes(&mut self) -> bool {
        match self.writing.take() {
            Some(writing) if !writing.is_finished() => self.writing = Some(writing),
            Some(writing) => self.written(writing).await,
            None => {}
        }
        self.writing.is_some()
    }

    fn write(&mut self, store: Arc<dyn Store>, telling: Telling) {
        self.writing = Some(tokio::spawn(async move { store.tell(&telling).await }));
    }

    async fn written(&mut self, writing: JoinHandle<Result<(), StoreError>>) {
        match writing.await {
            Ok(Ok(())) => {
                self.told = true;
                if self.recovery.works() {
                    info!("this process is on the list of processes again");
                }
            }
            Ok(Err(error)) => {
                self.pace.failed();
                if self.recovery.failed() {
                    warn!("this process is not on the list of processes: {error}");
                }
            }
            Err(_) => self.pace.failed(),
        }
    }

    /// Waits a moment for what it writes.
    async fn end(&mut self) {
        if let Some(mut writing) = self.writing.take()
            && timeout(Duration::from_secs(1), &mut writing)
                .await
                .is_ok_and(|written| matches!(written, Ok(Ok(()))))
        {
            self.told = true;
        }
    }
}

/// Decides when the database is told, and for how long that counts.
#[derive(Debug, Default)]
struct Pace {
    asked: Option<u64>,
    /// When there was news last.
    news: Option<Instant>,
    /// When the database was told for long.
    idle: Option<Instant>,
}

impl Pace {
    /// How long what is told now counts; `None`: nothing is to be told. `asked` is how often others of this process have asked the
    /// database.
    fn life(&mut self, now: Instant, asked: u64, news: bool) -> Option<Duration> {
        if self.asked.replace(asked) != Some(asked) || news {
            self.news = Some(now);
        }
        if self.news.is_some_and(|at| now.duration_since(at) < AWAKE) {
            self.idle = None;
            return Some(LIFE);
        }
        if self.idle.is_some_and(|at| now.duration_since(at) < IDLE) {
            return None;
        }
        self.idle = Some(now);
        Some(IDLE + 2 * LIFE)
    }

    /// What was to be told was not: it is told again at once.
    fn failed(&mut self) {
        self.idle = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{message::Rejected, telemetry::rates::Counted};

    fn said(id: u128, told_at: Millis) -> Said {
        Said {
            id: Uuid::from_u128(id),
            roles: vec![Role::Ingress],
            version: "0.1.0".into(),
            host: "in-1".into(),
            pid: 7,
            started_at: told_at - 1000,
            told_at,
            held: None,
            paused: None,
            paused_since: None,
            listeners: [("ingress".to_owned(), "0.0.0.0:8080".to_owned())].into(),
            rates: Rates {
                until: told_at / SLOT * SLOT,
                slots: [(told_at / SLOT * SLOT - SLOT, rates::Counts::default().with(Counted::Received, 3))]
                    .into(),
                ..Rates::default()
            },
        }
    }

    #[test]
    fn a_notice_travels_and_an_older_worker_drops_it() {
        let said = said(1, now());
        let notice = notice(&said, false);
        assert!(notice.len() < 2048);
        let board = Board::default();
        assert!(board.hear(&notice) && board.has_news());
        assert_eq!(board.turn(false), (vec![said.clone()], vec![]));
        assert!(!board.has_news());
        // It is told once, and once more where that is to count for long.
        assert_eq!(board.turn(false), (vec![], vec![]));
        assert_eq!(board.turn(true), (vec![said], vec![]));
        assert!(board.hear(&notice) && !board.has_news(), "it is known");
        // That is how samples were read before there were notices.
        assert!(serde_json::from_slice::<Rejected>(&notice).is_err());
        let sample = serde_json::to_vec(&Rejected::bounded(1, "a", "b", [])).unwrap();
        assert!(!board.hear(&sample));
    }

    #[test]
    fn the_newest_word_counts_and_the_last_one_ends_it() {
        let (board, at) = (Board::default(), now());
        board.hear(&notice(&said(1, at), false));
        board.hear(&notice(&said(1, at - 5000), false));
        board.hear(&notice(&said(2, at), false));
        board.hear(&notice(&said(2, at), true));
        assert_eq!(board.turn(false), (vec![said(1, at)], vec![Uuid::from_u128(2)]));
    }

    #[test]
    fn whatever_comes_is_bounded_and_few() {
        let board = Board::default();
        for nothing in ["{\"process\":", "{\"process\":{}}", "{\"process\":null}", "{\"process\":[1]}"] {
            assert!(board.hear(nothing.as_bytes()), "{nothing}");
        }
        let mut hostile = said(1, now());
        hostile.version = "v\u{1b}[2J".repeat(1000);
        hostile.host = "h\n".repeat(500);
        hostile.listeners = (0..50).map(|n| (format!("{n}\0"), "x".repeat(200))).collect();
        (hostile.started_at, hostile.told_at) = (i64::MIN, i64::MAX);
        assert!(board.hear(&notice(&hostile, false)));
        let (heard, _) = board.turn(false);
        let [heard] = &heard[..] else { panic!("{heard:?}") };
        assert!(
            heard.version.len() <= WORD_MAX
                && !heard.version.contains('\u{1b}')
                && !heard.host.contains('\n')
        );
        assert!(
            heard.listeners.len() <= LISTENERS_MAX && heard.listeners.values().all(|at| at.len() <= WORD_MAX)
        );
        assert!(heard.told_at <= now() && heard.started_at > 0);
        hostile.version = "v".repeat(NOTICE_MAX);
        assert!(board.hear(&notice(&hostile, false)) && board.turn(false).0.is_empty());
        for id in 0..3000 {
            board.hear(&notice(&said(id, now()), id % 2 == 1));
        }
        let (said, ended) = board.turn(false);
        assert!(said.len() <= PROCESSES_MAX && ended.len() <= PROCESSES_MAX);
    }

    #[test]
    fn a_database_that_may_sleep_is_told_once_an_hour_while_nobody_asks_it() {
        let (mut pace, begin) = (Pace::default(), Instant::now());
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        assert_eq!(pace.life(at(0), 7, false), Some(LIFE));
        assert_eq!(pace.life(at(55), 7, false), Some(LIFE));
        let long = pace.life(at(60), 7, false).unwrap();
        assert!(long > IDLE, "until it is told again");
        assert_eq!(pace.life(at(65), 7, false), None);
        assert_eq!(pace.life(at(3_655), 7, false), None);
        assert_eq!(pace.life(at(3_660), 7, false), Some(long));
        // Asked, or somebody came or went.
        assert_eq!(pace.life(at(3_665), 8, false), Some(LIFE));
        assert_eq!(pace.life(at(3_724), 8, false), Some(LIFE));
        assert_eq!(pace.life(at(3_725), 8, false), Some(long));
        assert_eq!(pace.life(at(3_730), 8, true), Some(LIFE));
        assert_eq!(pace.life(at(3_790), 8, false), Some(long));
        pace.failed();
        assert_eq!(pace.life(at(3_795), 8, false), Some(long), "it was not told");
    }

    #[test]
    fn an_ingress_is_silent_where_its_words_would_push_out_samples() {
        let depths = |messages| vec![Depth { queue: "rejections".into(), messages, consumers: 0 }];
        assert!(has_room(samples_waiting(&depths(99))) && !has_room(samples_waiting(&depths(100))));
        assert!(!has_room(samples_waiting(&[])), "the queue does not answer");
    }

    #[test]
    fn a_pause_is_told_with_its_beginning() {
        let (since, why) = split("since 2025-10-09T08:53:20.123Z: the database is away: no route");
        assert_eq!(
            (since, why.as_deref()),
            (Some(1_760_000_000_123), Some("the database is away: no route"))
        );
        assert_eq!(split("away"), (None, Some("away".into())));
    }
}
