//! Owns consuming: one connection, the deliveries of its present life (a generation), and their settling.
//! Promises that a retry or a burial is confirmed before its delivery is acked. Never acks a delivery of an earlier
//! generation, nor hands one over: the broker has taken it back.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use lapin::{Channel, options::BasicAckOptions};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use tracing::debug;

use super::{
    RabbitQueue,
    acks::{Ack, Unsettled},
    broker::Broker,
    consumer::{self, CANCEL_LIMIT},
    keeper::Keeper,
    lane::Route,
    publisher::Publisher,
    troubles::{FIRST_SUBSCRIPTION, Reporter, SUBSCRIBING, Troubles},
    wire,
};
use crate::{
    pause::Pauses,
    queue::{Action, Delivery, Ladder, QueueError, Receipt, Settlement, Source, Subscription},
    stop::until,
    time::now,
};

/// How long writing an ack may take before the connection counts as dead.
const ACK_LIMIT: Duration = Duration::from_secs(5);

/// What the consumer is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) enum Wish {
    Consume,
    /// Take no more; what is here can still be settled.
    Cancel,
    /// Let go of everything.
    Close,
}

/// What a subscription and its consumer share.
pub(super) struct Shared {
    pub(super) source: Source,
    pub(super) queue: String,
    pub(super) prefetch: watch::Sender<u16>,
    pub(super) broker: Broker,
    pub(super) keeper: Keeper,
    pub(super) troubles: Arc<Troubles>,
    pub(super) reporter: Reporter,
    ladder: Ladder,
    publisher: Arc<Publisher>,
    /// The present life of the connection; 0 while there is none.
    generation: watch::Sender<u64>,
    life: Mutex<Option<Life>>,
    /// Acks leave in the order in which they were decided, one settling at a time: a multiple-ack that overtook
    /// another ack would settle it twice, and the broker closes the channel over that.
    acking: tokio::sync::Mutex<()>,
    /// The generation whose connection takes no acks.
    dead: watch::Sender<u64>,
    waiting: Mutex<Waiting>,
    arrived: Notify,
    wish: watch::Sender<Wish>,
    /// The broker sends no more.
    ended: watch::Sender<bool>,
    closing: watch::Receiver<bool>,
}

/// A connection's life.
struct Life {
    generation: u64,
    channel: Channel,
    unsettled: Unsettled,
}

/// Deliveries that nobody has asked for yet: at most the prefetch.
#[derive(Default)]
struct Waiting {
    deliveries: VecDeque<Delivery>,
    /// There will be no more.
    over: bool,
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
            generation: watch::Sender::new(0),
            life: Mutex::default(),
            acking: tokio::sync::Mutex::default(),
            dead: watch::Sender::new(0),
            waiting: Mutex::default(),
            arrived: Notify::new(),
            wish: watch::Sender::new(Wish::Consume),
            ended: watch::Sender::new(false),
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
        self.shared.life_ends();
    }
}

#[async_trait]
impl Subscription for RabbitSubscription {
    async fn next(&self) -> Option<Delivery> {
        let arrived = self.shared.arrived.notified();
        tokio::pin!(arrived);
        loop {
            arrived.as_mut().enable();
            {
                let mut waiting = self.shared.waiting();
                if let Some(delivery) = waiting.deliveries.pop_front() {
                    return Some(delivery);
                }
                if waiting.over {
                    return None;
                }
            }
            arrived.as_mut().await;
            arrived.set(self.shared.arrived.notified());
        }
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
                    self.shared.republish(delivery, action).await.then_some(receipt)
                }),
            }
        }
        self.shared.ack(&done).await;
        // Each is acked with those that are confirmed by then, and waits for no other.
        while let Some(first) = republished.next().await {
            let mut confirmed: Vec<Receipt> = first.into_iter().collect();
            while let Some(Some(next)) = republished.next().now_or_never() {
                confirmed.extend(next);
            }
            self.shared.ack(&confirmed).await;
        }
    }

    fn widen(&self, prefetch: u16) {
        self.shared.prefetch.send_if_modified(|now| {
            let wider = prefetch > *now;
            *now = prefetch.max(*now);
            wider
        });
    }

    fn holds(&self, receipt: Receipt) -> bool {
        receipt.generation == *self.shared.generation.borrow()
    }

    async fn cancel(&self) {
        self.shared.wish.send_if_modified(|wish| {
            let consuming = *wish == Wish::Consume;
            if consuming {
                *wish = Wish::Cancel;
            }
            consuming
        });
        let ended = self.shared.ended.subscribe();
        let _ = timeout(CANCEL_LIMIT + Duration::from_secs(1), until(&ended, |ended| *ended)).await;
    }

    fn trouble(&self) -> Option<String> {
        self.shared.troubles.of(self.shared.source.part(), self.shared.reporter)
    }
}

impl Shared {
    /// A new life of the connection begins.
    pub(super) fn life_begins(&self, channel: Channel) -> u64 {
        static GENERATIONS: AtomicU64 = AtomicU64::new(1);
        let generation = GENERATIONS.fetch_add(1, SeqCst);
        *self.life() = Some(Life { generation, channel, unsettled: Unsettled::default() });
        self.generation.send_replace(generation);
        generation
    }

    /// It is over: the broker delivers again what was delivered in it.
    pub(super) fn life_ends(&self) {
        self.generation.send_replace(0);
        *self.life() = None;
        self.waiting().deliveries.clear();
    }

    /// A delivery has arrived in the present life.
    pub(super) fn hand_over(&self, delivery: Delivery) {
        match &mut *self.life() {
            Some(life) if life.generation == delivery.receipt.generation => {
                life.unsettled.delivered(delivery.receipt.tag);
                self.waiting().deliveries.push_back(delivery);
            }
            // Let go meanwhile.
            _ => return,
        }
        self.arrived.notify_waiters();
    }

    /// The broker sends no more: what has arrived is all there is.
    pub(super) fn no_more(&self) {
        self.waiting().over = true;
        self.arrived.notify_waiters();
        self.ended.send_replace(true);
    }

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

    /// Returns once the connection of this life has shown that it takes no acks.
    pub(super) async fn is_dead(&self, generation: u64) {
        let dead = self.dead.subscribe();
        until(&dead, |dead| *dead == generation).await;
    }

    async fn ack(&self, receipts: &[Receipt]) {
        if receipts.is_empty() {
            return;
        }
        let _turn = self.acking.lock().await;
        let Some((generation, channel, acks)) = self.acks(receipts) else { return };
        for ack in acks {
            match timeout(ACK_LIMIT, channel.basic_ack(ack.tag, BasicAckOptions { multiple: ack.multiple }))
                .await
            {
                Ok(Ok(())) => {}
                // The channel is gone: the broker delivers all again, and the inbox decides.
                Ok(Err(_)) => return,
                Err(_) => {
                    self.dead.send_replace(generation);
                    return;
                }
            }
        }
    }

    /// What to tell the broker of those that belong to the present life, which are settled with that.
    fn acks(&self, receipts: &[Receipt]) -> Option<(u64, Channel, Vec<Ack>)> {
        let mut life = self.life();
        let life = life.as_mut()?;
        let ours = receipts.iter().filter(|receipt| receipt.generation == life.generation);
        let tags: Vec<u64> = ours.map(|receipt| receipt.tag).collect();
        Some((life.generation, life.channel.clone(), life.unsettled.settle(&tags)))
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
                let route = Route { exchange: topology.named("retry"), key: self.ladder.name(rung) };
                (route, wire::properties(&message, None))
            }
            Action::Bury(burial) => {
                let route = Route { exchange: topology.named("dead"), key: String::new() };
                (route, wire::properties(&message, Some((&burial, now()))))
            }
        };
        let mut pauses = Pauses::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut generation = self.generation.subscribe();
        while delivery.receipt.generation == *generation.borrow_and_update() {
            let lane = &self.publisher.settlements;
            match lane.publish(route.clone(), properties.clone(), message.body.clone()).await {
                Ok(()) => return true,
                Err(error) => {
                    debug!(message_id = %message.id, "message {} is not settled yet: {error}", message.id);
                    tokio::select! {
                        () = tokio::time::sleep(pauses.next_pause()) => {}
                        _ = generation.changed() => {}
                    }
                }
            }
        }
        false
    }

    fn life(&self) -> MutexGuard<'_, Option<Life>> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
