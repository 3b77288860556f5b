//! Owns how messages move from a queue into a table: receive a batch, commit it, then settle it.
//!
//! Promises that nothing is settled before it is committed; that while the database is away the subscription is given up,
//! so that the messages wait, durable, in the queue; and that a message which the database refuses holds up no other.

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

/// The most unsettled deliveries, and so the largest batch.
const PREFETCH: u16 = 100;
/// A batch is closed beyond this many bytes of bodies.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// How many messages may fail one after the other, with none taken, before the database is to blame instead of them.
const SUSPECTS: usize = 3;
/// How often a call that lost a race is run again at once.
const RACES: u32 = 5;

/// A table that messages go into.
#[async_trait]
pub(crate) trait Sink: Send + Sync + 'static {
    /// A message as the table takes it.
    type Item: Clone + Send + Sync + 'static;
    /// What the messages are called in log lines, in the plural.
    const WHAT: &'static str;
    /// The queue that they come from.
    const SOURCE: Source;

    /// Reads a delivery; may be called again for the same one. `None` for one that does not go into the table: it is settled
    /// and dropped.
    fn read(&self, delivery: &Delivery) -> Option<Self::Item>;

    /// An item that the database refused, reduced to what a row has to have.
    fn bare(&self, item: Self::Item) -> Self::Item;

    /// Commits items, in one transaction.
    async fn take(&self, items: &[Self::Item]) -> Result<(), StoreError>;
}

/// Moves messages until `stop` turns true. A batch that is on its way into the table is finished first.
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

/// Moves messages of one subscription until `stop` turns true, the subscription ends, or the database takes none.
async fn consume<S: Sink>(
    subscription: &dyn Subscription,
    sink: &Arc<S>,
    mut moved: impl FnMut(),
    stop: &watch::Receiver<bool>,
) -> Result<(), StoreError> {
    // Deliveries that the database refuses even bare. They stay unsettled until this subscription ends.
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
        // A delivery that this subscription holds no longer comes again.
        refused.retain(|delivery: &Delivery| subscription.holds(delivery.receipt));
        let items: Vec<S::Item> = batch.iter().filter_map(|delivery| sink.read(delivery)).collect();
        let moves = !items.is_empty();
        let done = match take(sink, items).await {
            Ok(()) => batch,
            Err(error) if error.class == Class::Permanent || is_for_one(&error, &batch) => {
                let (done, not) = one_by_one(sink, batch).await?;
                refused.extend(not);
                done
            }
            Err(error) => return Err(error),
        };
        if moves {
            moved();
        }
        // Commit before settle: a crash here delivers them again, and the table absorbs that.
        let settle = |delivery| Settlement { delivery, action: Action::Done };
        subscription.settle(done.into_iter().map(settle).collect()).await;
    }
}

/// Whether some messages of the batch, or its size, may be the cause.
fn is_for_one(error: &StoreError, batch: &[Delivery]) -> bool {
    error.class == Class::Unclear && batch.len() > 1
}

/// Takes a refused batch message by message. Returns the deliveries that were taken, and those that were not while others
/// were. Where none is taken, not even of [`SUSPECTS`], the database is to blame, and its error is returned.
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

/// Takes one message of a refused batch, whole or else bare. `false`: the database refuses both.
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
