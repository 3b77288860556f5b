//! Owns the overview: queues, users, dead letters, what rejected requests say, how the table stands to Clerk, and the verdict on
//! all of it; for `status` and for the API.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

use super::{
    processes::{self, Processes},
    sync,
    verdict::{Verdict, verdict},
};
use crate::{
    queue::{Depth, Queue, QueueError, Source, Trouble},
    rejections::{Explanation, SAMPLES, explain},
    store::{Store, StoreError, Totals, letters},
    time::{Millis, now, rfc3339},
};

/// Letters that died within this time are new, in milliseconds.
pub const NEW: Millis = 3_600_000;

/// The state of everything, at a glance, and what it means.
#[derive(Debug, Serialize)]
pub struct Status {
    /// What it means.
    pub verdict: Verdict,
    /// The state.
    #[serde(flatten)]
    pub overview: Overview,
    /// Who runs, which has an answer of its own.
    #[serde(skip)]
    pub processes: Processes,
}

/// The state of everything, at a glance.
#[derive(Debug, Serialize)]
pub struct Overview {
    /// How many messages wait, by queue.
    pub queues: Vec<Depth>,
    /// What of the queue does not work for the process that was asked.
    pub troubles: Vec<Trouble>,
    /// Rows, and the last event.
    pub users: Totals,
    /// Letters by status.
    pub dead_letters: BTreeMap<letters::Status, u64>,
    /// Open letters by their age.
    pub open_letters: OpenLetters,
    /// What the newest rejected requests say.
    pub rejections: Vec<Explanation>,
    /// Since when and why the worker of the process that was asked takes no messages. `None` while it works, or where no
    /// process answered.
    pub paused: Option<String>,
    /// How keeping in step through Clerk's API stands; `None` where nothing is known of it.
    pub sync: Option<sync::Glance>,
}

/// Open letters by their age.
#[derive(Clone, Debug, Default, Serialize)]
pub struct OpenLetters {
    /// How many of them died within the last hour, at most 10,000.
    pub last_hour: u64,
    /// When the oldest one died.
    pub oldest_died_at: Option<String>,
}

/// What the queue says.
#[derive(Clone, Debug)]
pub struct OfQueue {
    /// How many messages wait, by queue.
    pub queues: Vec<Depth>,
    /// What does not work.
    pub troubles: Vec<Trouble>,
}

/// What the database says.
#[derive(Clone, Debug)]
pub struct OfStore {
    /// [`Overview::users`]
    pub users: Totals,
    /// [`Overview::dead_letters`]
    pub dead_letters: BTreeMap<letters::Status, u64>,
    /// [`Overview::open_letters`]
    pub open_letters: OpenLetters,
    /// [`Overview::rejections`]
    pub rejections: Vec<Explanation>,
    /// [`Overview::sync`]
    pub sync: Option<sync::Glance>,
    /// [`Status::processes`]
    pub processes: Processes,
}

/// Which of the two does not answer.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The queue.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Reads it.
///
/// # Errors
/// Queue or store do not answer.
pub async fn read(
    queue: &dyn Queue,
    store: &Arc<dyn Store>,
    paused: Option<String>,
) -> Result<Status, StatusError> {
    let of_queue = OfQueue::read(queue).await?;
    Ok(Status::of(of_queue, OfStore::read(store).await?, paused, now()))
}

impl OfQueue {
    /// Asks the queue.
    ///
    /// # Errors
    /// The queue does not answer.
    pub async fn read(queue: &dyn Queue) -> Result<Self, QueueError> {
        Ok(Self { queues: queue.depths().await?, troubles: queue.troubles() })
    }
}

impl OfStore {
    /// Asks the database.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn read(store: &Arc<dyn Store>) -> Result<Self, StoreError> {
        // Three at a time: over a network each takes its time, and others need connections too.
        let ((users, samples), (mut dead_letters, fresh, processes), sync) = tokio::try_join!(
            async { Ok((store.totals().await?, store.newest(SAMPLES).await?)) },
            async {
                let (statuses, fresh) = (store.statuses().await?, store.fresh_letters(now() - NEW).await?);
                Ok((statuses, fresh, processes::read(store).await?))
            },
            sync::glance(store),
        )?;
        for status in letters::Status::ALL {
            dead_letters.entry(status).or_default();
        }
        let open_letters =
            OpenLetters { last_hour: fresh.since, oldest_died_at: fresh.oldest_open.map(rfc3339) };
        let rejections = explain(&samples, now());
        Ok(Self { users, dead_letters, open_letters, rejections, sync, processes })
    }
}

impl Status {
    /// Of what queue and database said.
    pub fn of(queue: OfQueue, store: OfStore, paused: Option<String>, now: Millis) -> Self {
        let OfQueue { queues, troubles } = queue;
        let OfStore { users, dead_letters, open_letters, rejections, sync, processes } = store;
        let overview =
            Overview { queues, troubles, users, dead_letters, open_letters, rejections, paused, sync };
        Self { verdict: verdict(&overview, &processes, now), overview, processes }
    }
}

/// How many workers consume events: one that is paused does not.
pub fn consumers(depths: &[Depth]) -> u32 {
    let events = depths.iter().filter(|depth| depth.queue == Source::Events.queue());
    events.map(|depth| depth.consumers).sum()
}
