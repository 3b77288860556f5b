//! Owns how what differs reaches the queue, and when it is applied. Promises that webhooks go first: it waits while the queue holds
//! much; that a message is noted as outstanding only once it is durable in the queue; and that memory stays bounded.

use std::{collections::HashMap, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use super::{Sync, SyncError, billing::is_of_subscription, patience::Patience};
use crate::{
    message::Message,
    queue::{Depth, Source},
    rules::Outcome,
    store::sync::Settled,
    text::number,
};

/// A bulk reader waits while the events queue holds more messages than this.
pub(super) const DEPTH_MAX: u64 = 2_000;
/// So many messages may be on their way to the table at a time.
const OUTSTANDING_MAX: usize = 5_000;
/// So many are published at a time.
const TOGETHER: usize = 256;
/// How often it is looked at what was applied.
pub(super) const LOOK: Duration = Duration::from_millis(250);
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
    patience: Patience<'s>,
    /// By Clerk id: the message's id, and whether it is about a difference.
    outstanding: HashMap<String, (String, bool)>,
    /// Since when no worker consumes, though one is needed.
    idle: Option<Instant>,
    /// Workers have much to do that is not ours.
    behind_others: bool,
}

/// What became of some of it.
#[derive(Default)]
pub(super) struct Became {
    /// Clerk ids of messages that took effect, or had none to take.
    pub(super) applied: Vec<String>,
    /// How many of them were about a difference, and put it right.
    pub(super) repaired: u64,
    /// How many of them were about a difference, and changed nothing.
    pub(super) stale: u64,
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
    pub(super) fn new(sync: &'s Sync, patience: Patience<'s>, outstanding: Vec<(String, String)>) -> Self {
        let outstanding = outstanding.into_iter().map(|(clerk_id, message_id)| {
            let is_drift = !is_of_subscription(&clerk_id);
            (clerk_id, (message_id, is_drift))
        });
        Self { sync, patience, outstanding: outstanding.collect(), idle: None, behind_others: false }
    }

    /// Something about this account is on its way.
    pub(super) fn has(&self, clerk_id: &str) -> bool {
        self.outstanding.contains_key(clerk_id)
    }

    pub(super) fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Webhooks, which go first, hold up what was published.
    pub(super) fn is_behind_others(&self) -> bool {
        self.behind_others
    }

    /// Whether more may be published now. Waits a moment where not. `to_end`: the run cannot end before a worker has taken
    /// what was published.
    ///
    /// # Errors
    /// No worker has consumed for a minute; somebody asked to stop.
    pub(super) async fn has_room(&mut self, to_end: bool) -> Result<bool, SyncError> {
        let depths = self.depths().await?;
        let events = depths.iter().find(|depth| depth.queue == Source::Events.queue());
        let (depth, consumers) = events.map_or((0, 0), |events| (events.messages, events.consumers));
        let waits = depth > DEPTH_MAX || self.outstanding.len() > OUTSTANDING_MAX;
        self.behind_others = consumers > 0 && depth > DEPTH_MAX;
        if consumers > 0 || !(waits || to_end) {
            self.idle = None;
        } else if self.idle.get_or_insert_with(Instant::now).elapsed() > NO_WORKER {
            return Err(SyncError::NoWorker(depth));
        }
        if self.idle.is_some() {
            self.patience.held_up(
                "no worker takes messages: start one (headcount worker, or headcount up)".to_owned(),
            );
        } else if depth > DEPTH_MAX {
            let why = format!("{} messages wait in the queue, and webhooks go first", number(depth));
            self.patience.held_up(why);
        } else if waits {
            let why = format!(
                "{} changes are on their way, and not applied yet",
                number(self.outstanding() as u64)
            );
            self.patience.held_up(why);
        }
        if !waits {
            return Ok(true);
        }
        self.patience.rest(LOOK).await?;
        Ok(false)
    }

    /// How many messages wait in the queue for a worker, at once or later.
    pub(super) async fn waiting(&self) -> Result<u64, SyncError> {
        let depths = self.depths().await?;
        let waits = |depth: &&Depth| depth.queue == Source::Events.queue() || depth.is_of_retries();
        Ok(depths.iter().filter(waits).map(|depth| depth.messages).sum())
    }

    async fn depths(&self) -> Result<Vec<Depth>, SyncError> {
        let queue = &self.sync.queue;
        self.patience.tried(|| queue.depths()).await
    }

    /// Publishes. All of it is durable when this returns.
    pub(super) async fn publish(&mut self, news: Vec<News>) -> Result<(), SyncError> {
        let queue = &self.sync.queue;
        let patience = &self.patience;
        let published = stream::iter(news).map(|News { clerk_id, message, is_drift }| async move {
            patience.tried(|| queue.publish(message.clone())).await?;
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
            known.extend(self.patience.tried(|| self.sync.store.settled(ids)).await?);
        }
        self.outstanding.retain(|clerk_id, (message_id, is_drift)| {
            match known.get(message_id) {
                None => return true,
                Some(Settled::Applied(Some(Outcome::Ignored))) => became.ignored.push(clerk_id.clone()),
                Some(Settled::Applied(outcome)) => {
                    became.applied.push(clerk_id.clone());
                    let counted = match outcome {
                        Some(Outcome::Stale) => &mut became.stale,
                        _ => &mut became.repaired,
                    };
                    *counted += u64::from(*is_drift);
                }
                Some(Settled::Buried) => became.buried.push(clerk_id.clone()),
            }
            false
        });
        Ok(became)
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
