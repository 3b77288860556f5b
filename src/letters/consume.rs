//! Owns the way from a queue into the table: take in batches, commit, then settle.
//!
//! Promises: nothing is settled before it is committed; while the database is away the subscription is given up, so
//! that everything waits, durable, in the queue; one message that the database refuses never holds up the others.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::FutureExt;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::{
    pause::Recovery,
    queue::{Action, Delivery, Queue, Settlement, Source, Subscription},
    stop::until,
    store::{Class, StoreError},
};

/// Unsettled deliveries at most, and so the largest batch.
const PREFETCH: u16 = 100;
/// A batch is closed beyond this many bytes of bodies.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Messages that may fail, one after the other with none taken, before they are blameless.
const SUSPECTS: usize = 3;
/// Times that a lost race is run again at once.
const RACES: u32 = 5;

/// Where messages go.
#[async_trait]
pub(crate) trait Sink: Send + Sync + 'static {
    /// What becomes of a message.
    type Item: Clone + Send + Sync + 'static;
    /// In log lines: "dead letters".
    const WHAT: &'static str;
    /// Where they come from.
    const SOURCE: Source;

    /// Reads a delivery; `None` for one that is nothing of ours and is thrown away.
    fn read(&self, delivery: &Delivery) -> Option<Self::Item>;

    /// What is left of an item that the database refused: only what it has to have.
    fn bare(&self, item: Self::Item) -> Self::Item;

    /// Commits them.
    async fn take(&self, items: &[Self::Item]) -> Result<(), StoreError>;
}

/// Moves messages until `stop` turns true; a batch that is on its way into the table is finished.
pub(crate) async fn run<S: Sink>(queue: Arc<dyn Queue>, sink: Arc<S>, stop: watch::Receiver<bool>) {
    let mut recovery = Recovery::new(Duration::from_millis(500), Duration::from_secs(30));
    loop {
        let subscribed = tokio::select! {
            biased;
            () = until(&stop, |stop| *stop) => return,
            subscribed = queue.subscribe(S::SOURCE, PREFETCH) => subscribed,
        };
        let why = match subscribed {
            Err(error) => error.to_string(),
            Ok(subscription) => {
                let moved = || {
                    if recovery.works() {
                        info!("{} are taken into the table again", S::WHAT);
                    }
                };
                let ended = consume(subscription.as_ref(), &sink, moved, &stop).await;
                subscription.cancel().await;
                match ended {
                    Ok(()) => return,
                    Err(error) => error.to_string(),
                }
            }
        };
        if recovery.failed() {
            warn!("{} wait in the queue: {why}", S::WHAT);
        }
        if recovery.pause(until(&stop, |stop| *stop)).await {
            return;
        }
    }
}

/// Until asked to stop, or the database does not take them.
async fn consume<S: Sink>(
    subscription: &dyn Subscription,
    sink: &Arc<S>,
    mut moved: impl FnMut(),
    stop: &watch::Receiver<bool>,
) -> Result<(), StoreError> {
    // Refused even bare: left unsettled, in the queue, until this subscription ends.
    let mut refused = Vec::new();
    loop {
        let first = tokio::select! {
            biased;
            () = until(stop, |stop| *stop) => return Ok(()),
            next = subscription.next() => match next {
                Some(delivery) => delivery,
                None => return Ok(()),
            },
        };
        let mut bytes = first.message.body.len();
        let mut batch = vec![first];
        while batch.len() < usize::from(PREFETCH) && bytes < BATCH_BYTES {
            let Some(Some(delivery)) = subscription.next().now_or_never() else { break };
            bytes += delivery.message.body.len();
            batch.push(delivery);
        }
        // What is not ours any more comes again.
        refused.retain(|delivery: &Delivery| subscription.holds(delivery.receipt));
        let items: Vec<S::Item> = batch.iter().filter_map(|delivery| sink.read(delivery)).collect();
        let done = match take(sink, items).await {
            Ok(()) => batch,
            Err(error) if error.class == Class::Permanent || is_for_one(&error, &batch) => {
                let (done, not) = one_by_one(sink, batch).await?;
                refused.extend(not);
                done
            }
            Err(error) => return Err(error),
        };
        moved();
        // Commit before settle: a crash here delivers them again, and the table absorbs that.
        let settle = |delivery| Settlement { delivery, action: Action::Done };
        subscription.settle(done.into_iter().map(settle).collect()).await;
    }
}

/// Whether it may be the trouble of some of a batch, or of its size.
fn is_for_one(error: &StoreError, batch: &[Delivery]) -> bool {
    error.class == Class::Unclear && batch.len() > 1
}

/// A batch that was refused, message by message: those that are taken, and those that are not while others are. With
/// none taken of [`SUSPECTS`], it is everybody's trouble.
async fn one_by_one<S: Sink>(
    sink: &Arc<S>,
    batch: Vec<Delivery>,
) -> Result<(Vec<Delivery>, Vec<Delivery>), StoreError> {
    let (mut done, mut refused, mut suspects) = (Vec::new(), Vec::new(), Vec::new());
    let mut taken = false;
    for delivery in batch {
        match take_alone(sink, &delivery).await {
            Ok(true) => {
                taken |= sink.read(&delivery).is_some();
                done.push(delivery);
            }
            Ok(false) => refused.push(delivery),
            Err(error) if error.class == Class::Unclear && (taken || suspects.len() < SUSPECTS) => {
                suspects.push((delivery, error));
            }
            Err(error) => return Err(error),
        }
    }
    if !taken && let Some((_, error)) = suspects.pop() {
        return Err(error);
    }
    for (delivery, error) in suspects {
        let id = &delivery.message.id;
        error!(message_id = %id, code = error.code, "the database refuses message {id} of the {} alone: {error}", S::WHAT);
        refused.push(delivery);
    }
    Ok((done, refused))
}

/// One of a batch that was refused. `false`: it cannot be taken however it is put.
async fn take_alone<S: Sink>(sink: &Arc<S>, delivery: &Delivery) -> Result<bool, StoreError> {
    let Some(item) = sink.read(delivery) else { return Ok(true) };
    let bare = sink.bare(item.clone());
    for item in [item, bare] {
        match take(sink, vec![item]).await {
            Ok(()) => return Ok(true),
            Err(error) if error.class == Class::Permanent => {
                let id = &delivery.message.id;
                error!(message_id = %id, code = error.code, "the database refuses message {id} of the {}: {error}", S::WHAT);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

async fn take<S: Sink>(sink: &Arc<S>, items: Vec<S::Item>) -> Result<(), StoreError> {
    if items.is_empty() {
        return Ok(());
    }
    let mut races = 0;
    loop {
        match sink.take(&items).await {
            Err(error) if error.class == Class::Transient && races < RACES => races += 1,
            result => return result,
        }
    }
}
