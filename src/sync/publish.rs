//! Owns how what differs reaches the queue, and when it is applied. Promises that webhooks go first: it waits while the queue holds
//! much; that a message is noted as outstanding only once it is durable in the queue; and that memory stays bounded.

use std::{collections::HashMap, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{Sync, SyncError, Tell, Told, patience::patiently};
use crate::{
    message::Message, queue::Source, rules::Outcome, stop::until, store::sync::Settled, text::number,
};

/// A bulk reader waits while the events queue holds more messages than this.
pub(super) const DEPTH_MAX: u64 = 2_000;
/// So many messages may be on their way to the table at a time.
const OUTSTANDING_MAX: usize = 5_000;
/// So many are published at a time.
const TOGETHER: usize = 256;
/// How often it is looked at what was applied.
const LOOK: Duration = Duration::from_millis(250);
/// How long a run waits for a worker that consumes.
const NO_WORKER: Duration = Duration::from_secs(60);
/// Where nothing is applied for so long, the rest is on the retry queues, which may take hours.
const STUCK: Duration = Duration::from_secs(120);

/// What is to be published about an account.
pub(super) struct News {
    pub(super) clerk_id: String,
    pub(super) message: Message,
    /// The run counts it as a difference; otherwise a webhook may bring it as well.
    pub(super) is_drift: bool,
}

/// What is on its way to the table.
pub(super) struct Publisher<'s> {
    sync: &'s Sync,
    stop: watch::Receiver<bool>,
    /// By Clerk id: the message's id, and whether it is about a difference.
    outstanding: HashMap<String, (String, bool)>,
    /// Since when no worker consumes.
    idle: Option<Instant>,
}

/// What became of some of it.
#[derive(Default)]
pub(super) struct Became {
    /// Clerk ids of messages that took effect, or had none to take.
    pub(super) applied: Vec<String>,
    /// How many of them were about a difference.
    pub(super) repaired: u64,
    /// Clerk ids of messages that are dead letters.
    pub(super) buried: Vec<String>,
    /// Clerk ids of messages that a worker did not understand.
    pub(super) ignored: Vec<String>,
}

impl Became {
    pub(super) fn is_nothing(&self) -> bool {
        self.applied.is_empty() && self.buried.is_empty() && self.ignored.is_empty()
    }

    pub(super) fn all(&self) -> Vec<String> {
        self.applied.iter().chain(&self.buried).chain(&self.ignored).cloned().collect()
    }
}

impl<'s> Publisher<'s> {
    pub(super) fn new(
        sync: &'s Sync,
        stop: watch::Receiver<bool>,
        outstanding: Vec<(String, String)>,
    ) -> Self {
        let outstanding =
            outstanding.into_iter().map(|(clerk_id, message_id)| (clerk_id, (message_id, true)));
        Self { sync, stop, outstanding: outstanding.collect(), idle: None }
    }

    /// Something about this account is on its way.
    pub(super) fn has(&self, clerk_id: &str) -> bool {
        self.outstanding.contains_key(clerk_id)
    }

    pub(super) fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Whether more may be published now. Waits a moment where not.
    ///
    /// # Errors
    /// No worker has consumed for a minute; somebody asked to stop.
    pub(super) async fn has_room(&mut self, tell: Tell<'_>) -> Result<bool, SyncError> {
        let depths = patiently(&self.stop, || self.sync.queue.depths()).await?;
        let events = depths.iter().find(|depth| depth.queue == Source::Events.queue());
        let (depth, consumers) = events.map_or((0, 0), |events| (events.messages, events.consumers));
        let waits = depth > DEPTH_MAX || self.outstanding.len() > OUTSTANDING_MAX;
        if consumers > 0 || (!waits && self.outstanding.is_empty()) {
            self.idle = None;
        } else if self.idle.get_or_insert_with(Instant::now).elapsed() > NO_WORKER {
            return Err(SyncError::NoWorker(depth));
        }
        if self.idle.is_some() {
            tell(Told::HeldUp(
                "no worker takes messages: start one (headcount worker, or headcount up)".into(),
            ));
        } else if depth > DEPTH_MAX {
            let why = format!("{} messages wait in the queue, and webhooks go first", number(depth));
            tell(Told::HeldUp(why));
        } else if waits {
            let why = format!(
                "{} changes are on their way, and not applied yet",
                number(self.outstanding() as u64)
            );
            tell(Told::HeldUp(why));
        }
        if !waits {
            return Ok(true);
        }
        self.rest().await?;
        Ok(false)
    }

    /// Publishes. All of it is durable when this returns.
    pub(super) async fn publish(&mut self, news: Vec<News>) -> Result<(), SyncError> {
        let queue = &self.sync.queue;
        let stop = &self.stop;
        let published = stream::iter(news).map(|News { clerk_id, message, is_drift }| async move {
            patiently(stop, || queue.publish(message.clone())).await?;
            Ok::<_, SyncError>((clerk_id, (message.id.as_str().to_owned(), is_drift)))
        });
        let mut published = Box::pin(published.buffer_unordered(TOGETHER));
        while let Some(one) = published.next().await {
            let (clerk_id, noted) = one?;
            self.outstanding.insert(clerk_id, noted);
        }
        Ok(())
    }

    /// Takes out what has become of something.
    pub(super) async fn became(&mut self) -> Result<Became, SyncError> {
        let mut became = Became::default();
        let ids: Vec<String> = self.outstanding.values().map(|(message_id, _)| message_id.clone()).collect();
        let mut known: HashMap<String, Settled> = HashMap::new();
        for ids in ids.chunks(500) {
            known.extend(patiently(&self.stop, || self.sync.store.settled(ids)).await?);
        }
        self.outstanding.retain(|clerk_id, (message_id, is_drift)| {
            match known.get(message_id) {
                None => return true,
                Some(Settled::Applied(Some(Outcome::Ignored))) => became.ignored.push(clerk_id.clone()),
                Some(Settled::Applied(_)) => {
                    became.applied.push(clerk_id.clone());
                    became.repaired += u64::from(*is_drift);
                }
                Some(Settled::Buried) => became.buried.push(clerk_id.clone()),
            }
            false
        });
        Ok(became)
    }

    /// Waits a moment before the next look.
    pub(super) async fn rest(&self) -> Result<(), SyncError> {
        tokio::select! {
            () = sleep(LOOK) => Ok(()),
            () = until(&self.stop, |stop| *stop) => Err(SyncError::Stopped),
        }
    }
}

/// Notices where nothing is applied for long.
pub(super) struct Watchdog(Instant);

impl Watchdog {
    pub(super) fn new() -> Self {
        Self(Instant::now())
    }

    pub(super) fn moved(&mut self) {
        self.0 = Instant::now();
    }

    pub(super) fn is_stuck(&self) -> bool {
        self.0.elapsed() > STUCK
    }
}
