//! Owns consuming: one connection, the deliveries of its present life (a generation), and their settling.
//! Promises that a retry or a burial is confirmed before its delivery is acked. Never acks a delivery of an earlier
//! generation: the broker has taken it back.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt, future::join_all};
use lapin::{
    Channel, Connection, Consumer,
    options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::{
    acks::Unsettled,
    broker::{Broker, text},
    publisher::{Publisher, Route},
    wire,
};
use crate::{
    message::now,
    pause::Pauses,
    queue::{Action, Delivery, Ladder, QueueError, Receipt, Settlement, Subscription},
    shutdown::until,
};

/// How long the broker may take to confirm that it stops delivering.
const CANCEL_LIMIT: Duration = Duration::from_secs(3);
/// How long a queue that was deleted under its consumers stays away. A broker that has not told a consumer yet when the
/// queue is there again moves it to the new queue without a word, and loses the first deliveries on the way. What comes
/// meanwhile goes to the dead queue as unroutable.
const DELETED_PAUSE: Duration = Duration::from_secs(1);

/// What the consumer is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Wish {
    Consume,
    /// Take no more; what is here can still be settled.
    Cancel,
    /// Let go of everything.
    Close,
}

struct Shared {
    ladder: Ladder,
    broker: Broker,
    publisher: Arc<Publisher>,
    /// The present life of the connection; 0 while there is none.
    generation: watch::Sender<u64>,
    /// Of the present generation.
    unsettled: Mutex<Unsettled>,
    /// Acks leave in the order in which they were decided, one settling at a time: a multiple-ack that overtook
    /// another ack would settle it twice, and the broker closes the channel over that.
    acking: tokio::sync::Mutex<Option<Channel>>,
    trouble: Mutex<Option<String>>,
    /// It consumes the dead queue.
    dead: bool,
    wish: watch::Sender<Wish>,
}

/// One consumer of one queue.
pub(super) struct RabbitSubscription {
    shared: Arc<Shared>,
    deliveries: tokio::sync::Mutex<mpsc::UnboundedReceiver<Delivery>>,
}

impl RabbitSubscription {
    pub(super) async fn start(
        broker: Broker,
        publisher: Arc<Publisher>,
        ladder: Ladder,
        queue: String,
        prefetch: u16,
    ) -> Result<Self, QueueError> {
        let dead = queue == broker.topology.named("dead");
        let shared = Arc::new(Shared {
            ladder,
            broker,
            publisher,
            generation: watch::Sender::new(0),
            unsettled: Mutex::default(),
            acking: tokio::sync::Mutex::new(None),
            trouble: Mutex::default(),
            dead,
            wish: watch::Sender::new(Wish::Consume),
        });
        let first = match consume(&shared.broker, &queue, prefetch).await {
            Ok(consuming) => Some(consuming),
            Err(QueueError::Unavailable(why)) => {
                warn!("{why}; consuming waits for it");
                shared.set_trouble(Some(why));
                None
            }
            Err(error) => return Err(error),
        };
        // Unbounded as a type, bounded by the prefetch: the broker hands over no more.
        let (hand, deliveries) = mpsc::unbounded_channel();
        let supervising = supervise(Arc::clone(&shared), queue, prefetch, first, hand);
        tokio::spawn(supervising);
        let (closing, closed) = (shared.publisher.closing(), shared.wish.clone());
        tokio::spawn(async move {
            // With the queue itself, its consumers close.
            until(&closing, |closing| *closing).await;
            closed.send_replace(Wish::Close);
        });
        Ok(Self { shared, deliveries: tokio::sync::Mutex::new(deliveries) })
    }
}

impl Drop for RabbitSubscription {
    fn drop(&mut self) {
        self.shared.wish.send_replace(Wish::Close);
    }
}

#[async_trait]
impl Subscription for RabbitSubscription {
    async fn next(&self) -> Option<Delivery> {
        loop {
            let delivery = self.deliveries.lock().await.recv().await?;
            if delivery.receipt.generation == *self.shared.generation.borrow() {
                return Some(delivery);
            }
            // Of an earlier connection: the broker delivers it again.
        }
    }

    async fn settle(&self, settlements: Vec<Settlement>) {
        let mut done = Vec::with_capacity(settlements.len());
        let mut republish = Vec::new();
        for Settlement { delivery, action } in settlements {
            match action {
                Action::Done => done.push(delivery.receipt),
                action => republish.push((delivery, action)),
            }
        }
        self.shared.ack(&done).await;
        let republished = join_all(republish.into_iter().map(|(delivery, action)| async {
            let receipt = delivery.receipt;
            // Confirm before ack: a crash between the two leaves both copies, and the inbox absorbs one.
            self.shared.republish(delivery, action).await.then_some(receipt)
        }));
        let confirmed: Vec<_> = republished.await.into_iter().flatten().collect();
        self.shared.ack(&confirmed).await;
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
    }

    fn trouble(&self) -> Option<String> {
        self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    fn set_trouble(&self, why: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    fn is_current(&self, delivery: &Delivery) -> bool {
        delivery.receipt.generation == *self.generation.borrow()
    }

    async fn ack(&self, receipts: &[Receipt]) {
        if receipts.is_empty() {
            return;
        }
        let channel = self.acking.lock().await;
        let Some(channel) = channel.as_ref() else { return };
        let generation = *self.generation.borrow();
        let tags: Vec<u64> = receipts
            .iter()
            .filter(|receipt| receipt.generation == generation)
            .map(|receipt| receipt.tag)
            .collect();
        let acks = self.unsettled.lock().unwrap_or_else(PoisonError::into_inner).settle(&tags);
        for ack in acks {
            // A failure means that the channel is gone: the broker delivers all again, and the inbox decides.
            if channel.basic_ack(ack.tag, BasicAckOptions { multiple: ack.multiple }).await.is_err() {
                return;
            }
        }
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
                let route = Route {
                    exchange: topology.named("retry"),
                    key: self.ladder.name(rung),
                    mandatory: false,
                };
                (route, wire::properties(&message, None))
            }
            Action::Bury(burial) => {
                let route = Route { exchange: topology.named("dead"), key: String::new(), mandatory: true };
                (route, wire::properties(&message, Some((&burial, now()))))
            }
        };
        let mut pauses = Pauses::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut generation = self.generation.subscribe();
        while self.is_current(&delivery) {
            match self.publisher.publish(route.clone(), properties.clone(), message.body.clone()).await {
                Ok(()) => return true,
                Err(error) => {
                    warn!(message_id = %message.id, "message {} is not settled yet: {error}", message.id);
                    tokio::select! {
                        () = tokio::time::sleep(pauses.next_pause()) => {}
                        _ = generation.changed() => {}
                    }
                }
            }
        }
        false
    }

    /// A new life of the connection begins; `None`: it is over.
    async fn generation(&self, channel: Option<Channel>) -> u64 {
        static GENERATIONS: AtomicU64 = AtomicU64::new(1);
        let generation = if channel.is_some() { GENERATIONS.fetch_add(1, SeqCst) } else { 0 };
        // First, so that nobody waits on a life that is over.
        self.generation.send_replace(generation);
        let mut acking = self.acking.lock().await;
        *self.unsettled.lock().unwrap_or_else(PoisonError::into_inner) = Unsettled::default();
        *acking = channel;
        generation
    }
}

struct Consuming {
    connection: Connection,
    channel: Channel,
    consumer: Consumer,
}

async fn consume(broker: &Broker, queue: &str, prefetch: u16) -> Result<Consuming, QueueError> {
    let connection = broker.connect("consumer").await?;
    let channel = broker.channel(&connection).await?;
    let explain = |error| broker.explain(&error);
    channel.basic_qos(prefetch, BasicQosOptions::default()).await.map_err(explain)?;
    let options = BasicConsumeOptions::default();
    let consumer = channel
        .basic_consume(queue.into(), "".into(), options, FieldTable::default())
        .await
        .map_err(explain)?;
    Ok(Consuming { connection, channel, consumer })
}

async fn supervise(
    shared: Arc<Shared>,
    queue: String,
    prefetch: u16,
    mut consuming: Option<Consuming>,
    hand: mpsc::UnboundedSender<Delivery>,
) {
    let wish = shared.wish.subscribe();
    let mut pauses = Pauses::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut hand = Some(hand);
    loop {
        if let Some(live) = consuming.take() {
            pauses.reset();
            shared.set_trouble(None);
            info!("consuming {queue} on the broker at {}", shared.broker.place());
            let why = deliver(&shared, live, &mut hand, &wish).await;
            shared.generation(None).await;
            if *wish.borrow() != Wish::Consume {
                return;
            }
            warn!("consuming {queue} is interrupted: {why}");
            shared.set_trouble(Some(why));
        }
        tokio::select! {
            () = tokio::time::sleep(pauses.next_pause()) => {}
            () = until(&wish, |wish| *wish != Wish::Consume) => return,
        }
        match consume(&shared.broker, &queue, prefetch).await {
            Ok(live) => consuming = Some(live),
            Err(error) => shared.set_trouble(Some(error.to_string())),
        }
    }
}

/// Hands deliveries over until the connection fails (and tells why) or the subscription is closed.
async fn deliver(
    shared: &Shared,
    live: Consuming,
    hand: &mut Option<mpsc::UnboundedSender<Delivery>>,
    wish: &watch::Receiver<Wish>,
) -> String {
    let Consuming { connection, channel, mut consumer } = live;
    let generation = shared.generation(Some(channel.clone())).await;
    let mut cancelled = false;
    loop {
        tokio::select! {
            delivered = consumer.next(), if hand.is_some() => match delivered {
                Some(Ok(delivered)) => {
                    shared.unsettled.lock().unwrap_or_else(PoisonError::into_inner).delivered(delivered.delivery_tag);
                    if let Some(hand) = hand {
                        let _ = hand.send(wire::delivery(delivered, generation, shared.dead));
                    }
                }
                Some(Err(error)) => return text(&error),
                // All that had been delivered is handed over: next() ends. Settling goes on.
                None if cancelled => *hand = None,
                None => {
                    close(&connection).await;
                    let _ = tokio::time::timeout(DELETED_PAUSE, until(wish, |wish| *wish != Wish::Consume)).await;
                    return "the broker cancelled the consumer: was its queue deleted?".into();
                }
            },
            () = until(wish, |wish| *wish == Wish::Close) => {
                close(&connection).await;
                return "closed".into();
            }
            () = until(wish, |wish| *wish == Wish::Cancel), if !cancelled => {
                cancelled = true;
                let tag = consumer.tag();
                let cancel = channel.basic_cancel(tag, BasicCancelOptions::default());
                match tokio::time::timeout(CANCEL_LIMIT, cancel).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return text(&error),
                    // Nothing that a frozen broker has pushed can be settled: a stop need not wait for it.
                    Err(_) => return "the broker does not answer".into(),
                }
            }
            // With the consumer's stream at its end, only this tells that the connection is gone.
            () = tokio::time::sleep(Duration::from_millis(200)), if hand.is_none() => {
                if !connection.status().connected() {
                    return "the connection ended".into();
                }
            }
        }
    }
}

/// Unsettled deliveries go back to the queue with the connection; a broker that does not answer is left alone.
async fn close(connection: &Connection) {
    let _ = tokio::time::timeout(Duration::from_secs(2), connection.close(200, "bye".into())).await;
}
