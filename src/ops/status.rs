//! Owns the overview: queues, users, dead letters, what rejected requests say, and how the table stands to Clerk; for `status` and for the API.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

use super::sync;
use crate::{
    queue::{Depth, Queue, QueueError, Source},
    rejections::{Explanation, SAMPLES, explain},
    store::{Store, StoreError, Totals, letters},
    time::now,
};

/// The state of everything, at a glance.
#[derive(Debug, Serialize)]
pub struct Overview {
    /// How many messages wait, by queue.
    pub queues: Vec<Depth>,
    /// Rows, and the last event.
    pub users: Totals,
    /// Letters by status.
    pub dead_letters: BTreeMap<letters::Status, u64>,
    /// What the newest rejected requests say.
    pub rejections: Vec<Explanation>,
    /// Since when and why the worker of the process that was asked takes no messages. `None` while it works, or where no
    /// process answered.
    pub paused: Option<String>,
    /// How keeping in step through Clerk's API stands; `None` where nothing is known of it.
    pub sync: Option<sync::Glance>,
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
) -> Result<Overview, StatusError> {
    let queues = queue.depths().await?;
    let (users, mut dead_letters) = (store.totals().await?, store.statuses().await?);
    let samples = store.newest(SAMPLES).await?;
    for status in letters::Status::ALL {
        dead_letters.entry(status).or_default();
    }
    let sync = sync::glance(store).await?;
    Ok(Overview { queues, users, dead_letters, rejections: explain(&samples, now()), paused, sync })
}

/// How many workers consume events: one that is paused does not.
pub fn consumers(depths: &[Depth]) -> u32 {
    let events = depths.iter().filter(|depth| depth.queue == Source::Events.queue());
    events.map(|depth| depth.consumers).sum()
}
