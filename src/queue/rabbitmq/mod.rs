//! Owns the RabbitMQ backend: the seam's promises kept by a publisher, consumers, and a connection to look around.
//! Never touches SQL.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use lapin::Connection;
use tokio::sync::Mutex;

use super::{
    Depth, Ladder, Queue, QueueError, Source, Subscription, Trouble,
    topology::{EVENTS_KEY, Topology},
};
use crate::{config::Secret, message::Message};

mod acks;
mod broker;
mod publisher;
mod subscription;
mod wire;

use broker::Broker;
use publisher::{Publisher, Route};
use subscription::RabbitSubscription;

/// How long looking around may take.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// A queue that has been missing for so long is declared again by whoever looks: its consumers, if it has any, have had
/// the time to be told.
const MISSING_LIMIT: Duration = Duration::from_secs(3);

/// A broker, with connections of their own for publishing, for each consumer, and for looking around: a blocked
/// publisher must not keep acks from going out.
pub struct RabbitQueue {
    broker: Broker,
    ladder: Ladder,
    publisher: Arc<Publisher>,
    looking: Mutex<Looking>,
}

#[derive(Default)]
struct Looking {
    connection: Option<Connection>,
    /// Since when a queue is missing.
    missing: Option<Instant>,
}

impl fmt::Debug for RabbitQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RabbitMQ at {}", self.broker.place())
    }
}

impl RabbitQueue {
    /// Connects and declares the topology. A broker that is away is no error: it is tried again until it is there.
    ///
    /// # Errors
    /// [`QueueError::Refused`] or [`QueueError::Misconfigured`] where it can never work as configured.
    pub async fn open(url: &Secret, prefix: &str, ladder: Ladder) -> Result<Self, QueueError> {
        let broker = Broker::new(url, Topology::new(prefix, &ladder))?;
        let publisher = Arc::new(Publisher::open(broker.clone()).await?);
        Ok(Self { broker, ladder, publisher, looking: Mutex::default() })
    }

    async fn look(&self, looking: &mut Looking) -> Result<Vec<Depth>, QueueError> {
        let connection = match looking.connection.take() {
            Some(connection) if connection.status().connected() => connection,
            _ if looking.missing.is_some_and(|since| since.elapsed() > MISSING_LIMIT) => {
                self.broker.connect("observer").await?
            }
            _ => self.broker.dial("observer").await?,
        };
        let channel = self.broker.channel(&connection).await?;
        let mut depths = Vec::with_capacity(self.broker.topology.queues.len());
        for queue in &self.broker.topology.queues {
            let found = broker::declare_queue(&channel, queue, true).await;
            if found.as_ref().is_err_and(|error| broker::code(error) == Some(404)) {
                looking.missing.get_or_insert_with(Instant::now);
            }
            let (messages, consumers) = found.map_err(|error| self.broker.explain(&error))?;
            depths.push(Depth { queue: queue.short.clone(), messages: messages.into(), consumers });
        }
        channel.close(200, "seen".into()).await.map_err(|error| self.broker.explain(&error))?;
        *looking = Looking { connection: Some(connection), missing: None };
        Ok(depths)
    }
}

#[async_trait]
impl Queue for RabbitQueue {
    async fn publish(&self, message: Message) -> Result<(), QueueError> {
        let properties = wire::properties(&message, None);
        // Not mandatory: the alternate exchange takes what has no route to the dead queue, confirmed.
        let route = Route {
            exchange: self.broker.topology.named("events"),
            key: EVENTS_KEY.into(),
            mandatory: false,
        };
        self.publisher.publish(route, properties, message.body).await
    }

    async fn subscribe(&self, source: Source, prefetch: u16) -> Result<Box<dyn Subscription>, QueueError> {
        let (broker, publisher) = (self.broker.clone(), Arc::clone(&self.publisher));
        let queue = self.broker.topology.named(source.queue());
        Ok(Box::new(
            RabbitSubscription::start(broker, publisher, self.ladder.clone(), queue, prefetch).await?,
        ))
    }

    fn sample(&self, rejected: Bytes) {
        // The default exchange routes by the queue's name.
        let route = Route {
            exchange: String::new(),
            key: self.broker.topology.named(Source::Rejections.queue()),
            mandatory: false,
        };
        self.publisher.publish_lossy(route, wire::plain(), rejected);
    }

    async fn depths(&self) -> Result<Vec<Depth>, QueueError> {
        let mut looking = self.looking.lock().await;
        match tokio::time::timeout(LOOK_LIMIT, self.look(&mut looking)).await {
            Ok(depths) => depths,
            Err(_) => {
                Err(QueueError::Unavailable(format!("the broker at {} does not answer", self.broker.place())))
            }
        }
    }

    async fn ready(&self) -> Result<(), QueueError> {
        self.publisher.trouble().map_or(Ok(()), |why| Err(QueueError::Unavailable(why)))
    }

    fn troubles(&self) -> Vec<Trouble> {
        self.publisher.trouble().map(|why| Trouble { part: "publishing", why }).into_iter().collect()
    }

    async fn close(&self) {
        self.publisher.close().await;
        if let Some(connection) = self.looking.lock().await.connection.take() {
            let _ = tokio::time::timeout(Duration::from_secs(1), connection.close(200, "bye".into())).await;
        }
    }
}
