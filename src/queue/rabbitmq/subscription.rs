//! Owns a subscription: what its consumer is asked to do, and settling. `consumer` keeps the connection, `deliveries` the
//! messages that came over it. Promises that a retry or a burial is confirmed before its delivery is acked, and that settling goes on
//! when its caller does not wait for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use lapin::types::ShortString;
use tokio::{sync::watch, time::timeout};
use tracing::debug;

use super::{
    RabbitQueue,
    connection::Broker,
    consumer::{self, CANCEL_LIMIT},
    deliveries::Deliveries,
    keeper::Keeper,
    lane::Route,
    publisher::Publisher,
    troubles::{FIRST_SUBSCRIPTION, Reporter, SUBSCRIBING, Troubles},
    wire,
};
use crate::{
    pause::Recovery,
    queue::{Action, Delivery, Ladder, QueueError, Receipt, Settlement, Source, Subscription},
    stop::until,
    time::now,
};

/// What the consumer is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) enum Wish {
    Consume,
    /// Take no more. What was delivered can still be settled.
    Cancel,
    /// Let go of everything.
    Close,
}

/// What a subscription and its consumer share.
pub(super) struct Shared {
    pub(super) source: Source,
    /// Full name of its queue.
    pub(super) queue: String,
    pub(super) prefetch: watch::Sender<u16>,
    pub(super) broker: Broker,
    pub(super) keeper: Keeper,
    pub(super) troubles: Arc<Troubles>,
    pub(super) reporter: Reporter,
    pub(super) deliveries: Deliveries,
    ladder: Ladder,
    publisher: Arc<Publisher>,
    wish: watch::Sender<Wish>,
    closing: watch::Receiver<bool>,
}

/// One consumer of one queue.
pub(super) struct RabbitSubscription {
    shared: Arc<Shared>,
}

impl RabbitSubscription {
    pub(super) async fn start(
        queue: &RabbitQueue,
        source: Source,
        prefetch: u16,
    ) -> Result<Self, QueueError> {
        static REPORTERS: AtomicU64 = AtomicU64::new(FIRST_SUBSCRIPTION);
        let shared = Arc::new(Shared {
            source,
            queue: queue.broker.topology.named(source.queue()),
            prefetch: watch::Sender::new(prefetch),
            broker: queue.broker.clone(),
            keeper: queue.keeper.clone(),
            troubles: Arc::clone(&queue.troubles),
            reporter: REPORTERS.fetch_add(1, SeqCst),
            ladder: queue.ladder.clone(),
            publisher: Arc::clone(&queue.publisher),
            deliveries: Deliveries::new(),
            wish: watch::Sender::new(Wish::Consume),
            closing: queue.closing.subscribe(),
        });
        let first = match consumer::open(&shared).await {
            Ok(consuming) => Some(consuming),
            Err(QueueError::Unavailable(why)) => {
                shared.troubles.report(source.part(), shared.reporter, why);
                None
            }
            Err(error) => {
                shared.troubles.report(source.part(), SUBSCRIBING, error.reason().to_owned());
                return Err(error);
            }
        };
        tokio::spawn(consumer::supervise(Arc::clone(&shared), first));
        Ok(Self { shared })
    }
}

impl Drop for RabbitSubscription {
    fn drop(&mut self) {
        self.shared.wish.send_replace(Wish::Close);
        self.shared.deliveries.end();
    }
}

#[async_trait]
impl Subscription for RabbitSubscription {
    async fn next(&self) -> Option<Delivery> {
        self.shared.deliveries.next().await
    }

    fn ready(&self) -> Vec<Delivery> {
        self.shared.deliveries.ready()
    }

    async fn settle(&self, settlements: Vec<Settlement>) {
        let shared = Arc::clone(&self.shared);
        // In a task of its own: a caller who gives up would leave deliveries that no one can settle any more.
        let _ = tokio::spawn(async move { shared.settle(settlements).await }).await;
    }

    fn widen(&self, prefetch: u16) {
        self.shared.prefetch.send_if_modified(|now| {
            let wider = prefetch > *now;
            *now = prefetch.max(*now);
            wider
        });
    }

    fn holds(&self, receipt: Receipt) -> bool {
        self.shared.deliveries.holds(receipt)
    }

    async fn cancel(&self) {
        self.shared.wish.send_if_modified(|wish| {
            let consuming = *wish == Wish::Consume;
            if consuming {
                *wish = Wish::Cancel;
            }
            consuming
        });
        let _ = timeout(CANCEL_LIMIT + Duration::from_secs(1), self.shared.deliveries.over()).await;
    }

    fn trouble(&self) -> Option<String> {
        self.shared.troubles.of(self.shared.source.part(), self.shared.reporter)
    }
}

impl Shared {
    /// Whether it is still wished to consume.
    pub(super) fn consumes(&self) -> bool {
        *self.wish.borrow() == Wish::Consume && !*self.closing.borrow()
    }

    /// Returns once at least this is wished, or the queue is being closed.
    pub(super) async fn wished(&self, least: Wish) {
        let wish = self.wish.subscribe();
        tokio::select! {
            () = until(&wish, |wish| *wish >= least) => {}
            () = until(&self.closing, |closing| *closing) => {}
        }
    }

    /// Returns once more may be unsettled than so many.
    pub(super) async fn wider(&self, than: u16) {
        let prefetch = self.prefetch.subscribe();
        until(&prefetch, |prefetch| *prefetch > than).await;
    }

    async fn settle(&self, settlements: Vec<Settlement>) {
        let mut done = Vec::with_capacity(settlements.len());
        let mut republished = FuturesUnordered::new();
        for Settlement { delivery, action } in settlements {
            match action {
                Action::Done => done.push(delivery.receipt),
                action => republished.push(async move {
                    let receipt = delivery.receipt;
                    // Confirm before ack: a crash between the two leaves both copies, and the inbox absorbs one.
                    self.republish(delivery, action).await.then_some(receipt)
                }),
            }
        }
        // Each is acked with those that are confirmed by then, and waits for no other.
        let rest = async {
            while let Some(first) = republished.next().await {
                let mut confirmed: Vec<Receipt> = first.into_iter().collect();
                while let Some(Some(next)) = republished.next().now_or_never() {
                    confirmed.extend(next);
                }
                self.deliveries.ack(&confirmed).await;
            }
        };
        tokio::join!(self.deliveries.ack(&done), rest);
    }

    /// Publishes a retry or a burial until it is confirmed. `false`: the delivery is no longer ours.
    async fn republish(&self, delivery: Delivery, action: Action) -> bool {
        let topology = &self.broker.topology;
        let mut message = delivery.message.clone();
        let (route, properties) = match action {
            Action::Done => return true,
            Action::Retry { rung, attempt, waits } => {
                message.attempt = attempt;
                message.waits = waits;
                let route =
                    Route { exchange: topology.named("retry").into(), key: self.ladder.name(rung).into() };
                (route, wire::properties(&message, None))
            }
            Action::Bury(burial) => {
                let route = Route { exchange: topology.named("dead").into(), key: ShortString::default() };
                (route, wire::properties(&message, Some((&burial, now()))))
            }
        };
        let mut recovery = Recovery::new(Duration::from_millis(100), Duration::from_secs(5));
        while self.deliveries.holds(delivery.receipt) {
            let lane = &self.publisher.settlements;
            match lane.publish(route.clone(), properties.clone(), message.body.clone()).await {
                Ok(()) => return true,
                Err(error) => {
                    debug!(message_id = %message.id, "message {} is not settled yet: {error}", message.id);
                    recovery.pause(self.deliveries.taken_back(delivery.receipt)).await;
                }
            }
        }
        false
    }
}
