//! Owns what the writer is asked, and what of it waits for the next transaction. Never touches SQL.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    super::{Action, DETAIL_MAX, Ladder, QueueError, Receipt, Source},
    rows::Settlements,
    subscription::Consumer,
};
use crate::{message::Message, time::Millis};

/// The most messages and bytes that one commit takes in.
const PUBLISHES_MAX: usize = 1000;
const PUBLISH_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What the writer is asked.
#[derive(Debug)]
pub(super) enum Request {
    /// Make a message durable.
    Publish(Publish),
    /// Keep a sample of a rejected request, if that works at once.
    Sample(Sample),
    /// Settle deliveries.
    Settle(Settle),
    /// Lease messages to this consumer from now on.
    Join(Arc<Consumer>),
    /// Make available again what was leased and never handed out.
    Return(Vec<Receipt>),
    /// Make available again all that this consumer holds.
    Leave(Arc<Consumer>),
    /// Say whether writing works.
    Ready(oneshot::Sender<Result<(), QueueError>>),
    /// Let go of everything and end.
    Close(oneshot::Sender<()>),
}

/// A message to be made durable.
#[derive(Debug)]
pub(super) struct Publish {
    pub(super) message: Message,
    pub(super) answer: oneshot::Sender<Result<(), QueueError>>,
    /// Its share of what may wait in memory; freed with it.
    pub(super) _share: OwnedSemaphorePermit,
}

/// A sample on its way into the file.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) body: Bytes,
    /// Its share of what may wait in memory; freed with it.
    pub(super) _share: OwnedSemaphorePermit,
}

/// Deliveries to be settled.
#[derive(Debug)]
pub(super) struct Settle {
    pub(super) consumer: Arc<Consumer>,
    pub(super) items: Vec<(Receipt, Action)>,
    pub(super) done: oneshot::Sender<()>,
}

impl Settle {
    pub(super) fn receipts(&self) -> impl Iterator<Item = &Receipt> {
        self.items.iter().map(|(receipt, _)| receipt)
    }
}

/// What the next transaction has to do. When it fails, all but publishes and samples is kept for the one after it.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) publishes: Vec<Publish>,
    pub(super) publish_bytes: usize,
    pub(super) samples: Vec<Sample>,
    pub(super) settles: Vec<Settle>,
    pub(super) returned: Vec<Receipt>,
    pub(super) leaving: Vec<Arc<Consumer>>,
    pub(super) ready: Vec<oneshot::Sender<Result<(), QueueError>>>,
    pub(super) closing: Option<(oneshot::Sender<()>, Instant)>,
}

impl Work {
    pub(super) fn is_empty(&self) -> bool {
        self.publishes.is_empty()
            && self.samples.is_empty()
            && self.settles.is_empty()
            && self.returned.is_empty()
            && self.leaving.is_empty()
            && self.ready.is_empty()
            && self.closing.is_none()
    }

    pub(super) fn is_full(&self) -> bool {
        self.publishes.len() >= PUBLISHES_MAX || self.publish_bytes >= PUBLISH_BYTES_MAX
    }
}

/// What settling means for the rows.
pub(super) fn settlements(settles: &[Settle], ladder: &Ladder, at: Millis) -> Settlements {
    let mut settlements = Settlements::default();
    let items =
        settles.iter().flat_map(|settle| settle.items.iter().map(|item| (settle.consumer.source, item)));
    for (source, (receipt, action)) in items {
        let (id, leases, queue) = (receipt.tag, receipt.generation, source.queue());
        match action {
            _ if source == Source::Rejections => settlements.samples.push(id),
            Action::Done => settlements.done.push((id, leases, queue)),
            Action::Retry { rung, attempt, waits } => {
                // One more: the current millisecond has begun already, and a retry never comes early.
                let due = at + millis(ladder.delay(*rung)) + 1;
                settlements.retry.push((id, leases, queue, due, *attempt, *waits, ladder.name(*rung)));
            }
            Action::Bury(burial) => {
                let detail = crate::text::clean(&burial.detail, DETAIL_MAX);
                settlements.bury.push((id, leases, queue, burial.reason.as_str(), detail));
            }
        }
    }
    settlements
}

pub(super) fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX / 4)
}
