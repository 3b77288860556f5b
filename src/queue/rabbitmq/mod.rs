//! Owns the RabbitMQ backend: the seam's promises kept by a publisher, consumers, and a connection to look around.
//! Never touches SQL.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::{
    Depth, Finding, Ladder, Purpose, Queue, QueueError, Source, Subscription, Trouble,
    topology::{EVENTS_KEY, Topology},
};
use crate::{message::Message, secret::Secret};

mod connection;
mod consumer;
mod death;
mod deliveries;
mod examine;
mod greeting;
mod keeper;
mod lane;
mod outstanding;
mod publisher;
mod subscription;
mod troubles;
mod wire;

use connection::Broker;
use keeper::{Keeper, Observer};
use lane::Route;
use publisher::Publisher;
use subscription::RabbitSubscription;
use troubles::Troubles;

/// A broker, with connections of their own for publishing, for each consumer, and for looking around: a blocked
/// publisher must not keep acks from going out.
pub struct RabbitQueue {
    broker: Broker,
    ladder: Ladder,
    publisher: Arc<Publisher>,
    observer: Arc<Observer>,
    keeper: Keeper,
    troubles: Arc<Troubles>,
    closing: watch::Sender<bool>,
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
        Self::open_to(Purpose::Work, url, prefix, ladder).await
    }

    /// The same for this purpose.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); for [`Purpose::Look`], also where the topology is not there.
    pub async fn open_to(
        purpose: Purpose,
        url: &Secret,
        prefix: &str,
        ladder: Ladder,
    ) -> Result<Self, QueueError> {
        let broker = Broker::new(url, Topology::new(prefix, &ladder), purpose)?;
        let troubles = Arc::<Troubles>::default();
        let keeper = Keeper::new(Arc::clone(&troubles));
        let closing = watch::Sender::new(false);
        let publisher = {
            let (broker, troubles, keeper) = (broker.clone(), Arc::clone(&troubles), keeper.clone());
            Arc::new(Publisher::open(broker, troubles, keeper, closing.clone()).await?)
        };
        let observer = Arc::new(Observer::new(broker.clone(), keeper.clone()));
        if purpose == Purpose::Work {
            tokio::spawn(keeper.clone().keep(Arc::clone(&observer), closing.subscribe()));
        }
        Ok(Self { broker, ladder, publisher, observer, keeper, troubles, closing })
    }
}

impl Drop for RabbitQueue {
    fn drop(&mut self) {
        self.closing.send_replace(true);
    }
}

#[async_trait]
impl Queue for RabbitQueue {
    async fn publish(&self, message: Message) -> Result<(), QueueError> {
        let properties = wire::properties(&message, None);
        let route = Route { exchange: self.broker.topology.named("events").into(), key: EVENTS_KEY.into() };
        self.publisher.webhooks.publish(route, properties, message.body).await
    }

    async fn subscribe(&self, source: Source, prefetch: u16) -> Result<Box<dyn Subscription>, QueueError> {
        Ok(Box::new(RabbitSubscription::start(self, source, prefetch).await?))
    }

    fn sample(&self, rejected: Bytes) {
        self.publisher.sample(rejected);
    }

    async fn depths(&self) -> Result<Vec<Depth>, QueueError> {
        self.observer.depths().await
    }

    async fn ready(&self) -> Result<(), QueueError> {
        self.publisher.webhooks.trouble().map_or(Ok(()), Err)
    }

    fn troubles(&self) -> Vec<Trouble> {
        self.troubles.all()
    }

    async fn examine(&self) -> Vec<Finding> {
        examine::examine(&self.broker).await
    }

    async fn close(&self) {
        self.publisher.close().await;
        self.observer.close().await;
    }
}
