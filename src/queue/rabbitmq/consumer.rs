//! Owns a subscription's connection: it consumes, notices why consuming ends, and consumes again after pauses that grow.
//! Promises to end with its subscription, and to close its connection then. Never settles.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt};
use lapin::{
    Channel, Consumer, Error,
    message::Delivery as Delivered,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions},
    types::FieldTable,
};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{
    connection::{Link, code, text},
    keeper::DELETED_PAUSE,
    subscription::{Shared, Wish},
    troubles::SUBSCRIBING,
    wire,
};
use crate::{
    pause::Recovery,
    queue::{Death, Delivery, QueueError, Reason, gathering::Gathering},
    time::{Millis, now},
};

/// How long the broker may take to confirm that it stops delivering.
pub(super) const CANCEL_LIMIT: Duration = Duration::from_secs(3);
/// How long the deliveries of a queue that was deleted may take to be settled: they are nowhere else.
const LAST_LIMIT: Duration = Duration::from_secs(20);
/// RabbitMQ 4.3 tells the consumers of a queue that is being deleted before the queue is gone. Less than [`DELETED_PAUSE`], after
/// which it is there again.
const GOING: Duration = Duration::from_millis(500);
/// A consumer that the broker ended over its consumer timeout stays in trouble for so long: it is likely to come again.
const TIMED_OUT_FOR: Duration = Duration::from_secs(60);
/// An unroutable message that was received so lately, in ms, is evidence that a binding is missing now.
const LATELY: Millis = 60_000;

/// A consumer and what it depends on.
pub(super) struct Consuming {
    link: Link,
    channel: Channel,
    consumer: Consumer,
    prefetch: u16,
}

/// Connects and begins to consume. Bounded.
pub(super) async fn open(shared: &Shared) -> Result<Consuming, QueueError> {
    let (broker, part) = (&shared.broker, shared.source.part());
    let opened = broker.within(async {
        let link = broker.dial("consumer").await?;
        let mut begun = begin(shared, &link).await?;
        if begun.as_ref().is_err_and(|error| code(error) == Some(404)) {
            broker.ensure(&link).await?;
            begun = begin(shared, &link).await?;
        }
        let (channel, consumer, prefetch) = begun.map_err(|error| broker.explain(&error))?;
        Ok(Consuming { link, channel, consumer, prefetch })
    });
    let opened = opened.await;
    if opened.is_ok() {
        debug!("consuming {} on the broker at {}", shared.queue, broker.place());
        shared.troubles.clear(part, SUBSCRIBING);
    }
    opened
}

type Begun = (Channel, Consumer, u16);

async fn begin(shared: &Shared, link: &Link) -> Result<lapin::Result<Begun>, QueueError> {
    let channel = shared.broker.channel(link).await?;
    let prefetch = *shared.prefetch.borrow();
    let consumer = consume(shared, &channel, prefetch).await;
    Ok(consumer.map(|consumer| (channel, consumer, prefetch)))
}

async fn consume(shared: &Shared, channel: &Channel, prefetch: u16) -> lapin::Result<Consumer> {
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let queue = shared.queue.as_str().into();
    let options = BasicConsumeOptions::default();
    channel.basic_consume(queue, "".into(), options, FieldTable::default()).await
}

/// Replaces a consumer by one with a larger prefetch, on the same channel: what is unsettled stays so, and goes back with
/// all the rest should this process die. RabbitMQ does not count it towards the new consumer's prefetch.
async fn widen(
    shared: &Shared,
    channel: &Channel,
    consumer: &mut Consumer,
    (before, generation): (u16, u64),
) -> lapin::Result<u16> {
    let prefetch = *shared.prefetch.borrow();
    let wide = consume(shared, channel, prefetch.saturating_sub(before).max(1)).await?;
    let mut narrow = std::mem::replace(consumer, wide);
    channel.basic_cancel(narrow.tag(), BasicCancelOptions::default()).await?;
    while let Some(delivered) = narrow.next().await {
        let delivery = read(shared, delivered?, generation);
        shared.deliveries.hand_over(generation, vec![delivery]);
    }
    Ok(prefetch)
}

/// Reads a delivery; one that had no route is evidence that a binding is missing now.
fn read(shared: &Shared, delivered: Delivered, generation: u64) -> Delivery {
    let delivery = wire::delivery(delivered, generation, shared.source);
    let unroutable = |death: &Death| death.reason == Reason::Unroutable.as_str();
    if delivery.death.as_deref().is_some_and(unroutable) && now() - delivery.message.received_at < LATELY {
        shared.keeper.suspect("a message had no route and is among the dead letters");
    }
    delivery
}

/// Consumes until the subscription is cancelled or dropped, or the queue is closed.
pub(super) async fn supervise(shared: Arc<Shared>, first: Option<Consuming>) {
    keep_consuming(&shared, first).await;
    shared.deliveries.end();
    shared.deliveries.no_more();
    shared.troubles.forget(shared.source.part(), shared.reporter);
}

async fn keep_consuming(shared: &Shared, mut consuming: Option<Consuming>) {
    let part = shared.source.part();
    let mut recovery = Recovery::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut in_trouble_until = None;
    loop {
        if let Some(live) = consuming.take() {
            if in_trouble_until.is_none() {
                shared.troubles.clear(part, shared.reporter);
            }
            let begun = Instant::now();
            let end = deliver(shared, live, &mut in_trouble_until).await;
            shared.deliveries.end();
            if !shared.consumes() {
                return;
            }
            // A consumer that ends as soon as it has begun is not to be begun again at once.
            if begun.elapsed() > Duration::from_secs(10) {
                recovery.works();
            }
            if end.timed_out {
                in_trouble_until = Some(Instant::now() + TIMED_OUT_FOR);
            }
            shared.troubles.report(part, shared.reporter, end.why);
            if end.deleted {
                let _ = timeout(DELETED_PAUSE, shared.wished(Wish::Cancel)).await;
            }
        }
        if recovery.pause(shared.wished(Wish::Cancel)).await {
            return;
        }
        match open(shared).await {
            Ok(live) => consuming = Some(live),
            Err(error) => {
                in_trouble_until = None;
                shared.troubles.report(part, shared.reporter, error.reason().to_owned());
            }
        }
    }
}

/// Why consuming ended.
struct End {
    why: String,
    deleted: bool,
    timed_out: bool,
}

impl From<String> for End {
    fn from(why: String) -> Self {
        Self { why, deleted: false, timed_out: false }
    }
}

/// Hands deliveries over until the connection fails or the subscription is closed.
async fn deliver(shared: &Shared, live: Consuming, in_trouble_until: &mut Option<Instant>) -> End {
    let Consuming { link, channel, mut consumer, mut prefetch } = live;
    let generation = shared.deliveries.begin(channel.clone());
    let (mut cancelled, mut over) = (false, false);
    let mut gathering = Gathering::new();
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    let end = loop {
        tokio::select! {
            first = consumer.next(), if !over => {
                let (mut burst, mut last) = (Vec::new(), Some(first));
                while let Some(Some(Ok(delivered))) = last {
                    burst.push(read(shared, delivered, generation));
                    last = consumer.next().now_or_never();
                }
                gathering.met(burst.len());
                shared.deliveries.hand_over(generation, burst);
                match last {
                    Some(Some(Err(error))) => break failed(&error),
                    // All that had been delivered is handed over. Settling goes on.
                    Some(None) if cancelled => {
                        over = true;
                        shared.deliveries.no_more();
                    }
                    Some(None) => {
                        let end = ended_by_broker(shared, &channel).await;
                        if end.deleted {
                            settle_the_last(shared, generation, &end.why).await;
                        }
                        break end;
                    }
                    _ => gathering.rest().await,
                }
            }
            () = shared.wished(Wish::Close) => break String::from("closed").into(),
            () = shared.wished(Wish::Cancel), if !cancelled => {
                cancelled = true;
                let cancel = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
                match timeout(CANCEL_LIMIT, cancel).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => break failed(&error),
                    // Nothing that a frozen broker has pushed can be settled: a stop need not wait for it.
                    Err(_) => break String::from("the broker does not answer").into(),
                }
            }
            () = shared.wider(prefetch), if !cancelled => {
                match timeout(CANCEL_LIMIT, widen(shared, &channel, &mut consumer, (prefetch, generation))).await {
                    Ok(Ok(wide)) => prefetch = wide,
                    Ok(Err(error)) => break failed(&error),
                    Err(_) => break String::from("the broker does not answer").into(),
                }
            }
            () = shared.deliveries.is_stuck(generation) => break String::from("the broker takes no acks").into(),
            _ = tick.tick() => {
                // With the consumer's stream at its end, only this tells that the connection is gone, or that the broker
                // has closed the channel over a delivery that was held too long.
                if !link.status().connected() || (over && !channel.status().connected()) {
                    break String::from("the connection ended").into();
                }
                if in_trouble_until.is_some_and(|until| until < Instant::now()) {
                    *in_trouble_until = None;
                    shared.troubles.clear(shared.source.part(), shared.reporter);
                }
            }
        }
    };
    shared.deliveries.end();
    // Unsettled deliveries go back to the queue with the connection.
    link.close().await;
    end
}

fn failed(error: &Error) -> End {
    let why = text(error);
    match code(error) == Some(406) && why.contains("timed out") {
        true => timed_out(&format!("({why})")),
        false => why.into(),
    }
}

fn timed_out(which: &str) -> End {
    let why = format!(
        "the broker ended the consumer over its consumer timeout {which}: a delivery was not settled in time; raise consumer_timeout in rabbitmq.conf, 30 minutes are its default, or lower HEADCOUNT_PREFETCH"
    );
    End { timed_out: true, ..why.into() }
}

/// Lets what a queue has delivered before it was deleted be settled: nothing of it comes again. A cancel is answered at once,
/// and settling goes on.
async fn settle_the_last(shared: &Shared, generation: u64, why: &str) {
    shared.troubles.report(shared.source.part(), shared.reporter, why.to_owned());
    shared.keeper.suspect(&format!("{} was deleted", shared.queue));
    let cancelled = async {
        shared.wished(Wish::Cancel).await;
        shared.deliveries.no_more();
        std::future::pending().await
    };
    let open: usize = tokio::select! {
        open = shared.deliveries.all_settled(generation, LAST_LIMIT) => open,
        open = cancelled => open,
        () = shared.wished(Wish::Close) => return,
    };
    if open > 0 {
        let queue = &shared.queue;
        warn!("{queue} was deleted, and {open} messages of it may be lost: they were not settled in time");
    }
}

/// The broker cancelled the consumer and gives no reason: since RabbitMQ 4.3 over its consumer timeout too.
async fn ended_by_broker(shared: &Shared, channel: &Channel) -> End {
    let end = why_cancelled(shared, channel).await;
    if !end.timed_out {
        return end;
    }
    let _ = timeout(GOING, shared.wished(Wish::Close)).await;
    why_cancelled(shared, channel).await
}

async fn why_cancelled(shared: &Shared, channel: &Channel) -> End {
    let options = QueueDeclareOptions { durable: true, passive: true, ..QueueDeclareOptions::default() };
    let asked = channel.queue_declare(shared.queue.as_str().into(), options, FieldTable::default());
    match timeout(CANCEL_LIMIT, asked).await {
        Ok(Ok(_)) => timed_out("(or its queue was deleted and declared again)"),
        Ok(Err(error)) if code(&error) == Some(404) => {
            let why = String::from("the broker cancelled the consumer: its queue was deleted");
            End { deleted: true, ..why.into() }
        }
        Ok(Err(error)) => text(&error).into(),
        Err(_) => String::from("the broker does not answer").into(),
    }
}
