//! Owns the topology on a broker. A process that works declares what is missing when it connects, looks after the topology
//! now and then, and at once where there is evidence that a queue or a binding is gone. A process that only looks is told
//! what is missing. Depths are looked at over the same connection.
//! Promises that looking makes nothing, that a queue that was deleted stays away for a moment, and that declaring has a
//! bounded rate.

use std::{sync::Arc, time::Duration};

use lapin::{
    Channel, Connection, Error, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::sync::{Mutex, watch};
use tracing::debug;

use super::{
    connection::{Broker, Link, code, text},
    troubles::{TOPOLOGY, Troubles},
};
use crate::{
    pause::Pauses,
    queue::{
        Depth, PUBLISHING, Purpose, QueueError,
        topology::{Argument, Binding, Exchange, Queue},
    },
    stop::until,
};

/// How often the topology is declared again without any evidence: a binding that is gone cannot be seen otherwise.
const PERIOD: Duration = Duration::from_secs(15);
/// How long a queue that was deleted under its consumers stays away. A broker that has not told a consumer yet when the
/// queue is there again moves it to the new queue silently, and loses the first deliveries on the way. What comes
/// meanwhile goes to the dead queue as unroutable, or is refused.
pub(super) const DELETED_PAUSE: Duration = Duration::from_secs(1);
/// How long looking around may take.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// Takes evidence that something is missing, and keeps the topology whole.
#[derive(Clone)]
pub(super) struct Keeper {
    evidence: watch::Sender<u64>,
    troubles: Arc<Troubles>,
}

impl Keeper {
    pub(super) fn new(troubles: Arc<Troubles>) -> Self {
        Self { evidence: watch::Sender::new(0), troubles }
    }

    /// A queue, an exchange or a binding seems to be missing: it is declared again in a moment.
    pub(super) fn suspect(&self, why: &str) {
        self.troubles.report(PUBLISHING, TOPOLOGY, why.to_owned());
        self.evidence.send_modify(|evidence| *evidence += 1);
    }

    /// Keeps the topology as it has to be, until `closing` turns true.
    pub(super) async fn keep(self, observer: Arc<Observer>, closing: watch::Receiver<bool>) {
        tokio::select! {
            () = self.keep_watching(&observer) => {}
            () = until(&closing, |closing| *closing) => {}
        }
    }

    async fn keep_watching(&self, observer: &Observer) {
        let mut evidence = self.evidence.subscribe();
        let mut pauses = Pauses::new(Duration::from_secs(1), Duration::from_secs(15));
        loop {
            let suspected = tokio::time::timeout(PERIOD, evidence.changed()).await.is_ok()
                || observer
                    .depths()
                    .await
                    .is_err_and(|error| matches!(error, QueueError::Misconfigured { .. }));
            if suspected {
                tokio::time::sleep(DELETED_PAUSE).await;
            }
            evidence.borrow_and_update();
            match observer.declare().await {
                // With rights to everything the topology is whole now. Without, nothing tells that a binding is missing.
                Ok(unbound) if unbound.is_empty() || !suspected => self.troubles.clear(PUBLISHING, TOPOLOGY),
                Ok(unbound) => {
                    let why = format!(
                        "{} may be missing a binding, which this user may not make",
                        unbound.join(", ")
                    );
                    self.troubles.report(PUBLISHING, TOPOLOGY, why);
                }
                // The publisher and the consumers report that the broker is away.
                Err(QueueError::Unavailable(why)) => debug!("the topology cannot be looked at: {why}"),
                Err(error) => self.troubles.report(PUBLISHING, TOPOLOGY, error.reason().to_owned()),
            }
            match suspected {
                true => tokio::time::sleep(pauses.next_pause()).await,
                false => pauses.reset(),
            }
        }
    }
}

/// A connection to look around, made when it is needed.
pub(super) struct Observer {
    broker: Broker,
    keeper: Keeper,
    link: Mutex<Option<Link>>,
}

impl Observer {
    pub(super) fn new(broker: Broker, keeper: Keeper) -> Self {
        Self { broker, keeper, link: Mutex::default() }
    }

    /// How many messages are ready in each queue. A queue that is missing is declared again soon.
    pub(super) async fn depths(&self) -> Result<Vec<Depth>, QueueError> {
        let mut kept = self.link.lock().await;
        let looked = async {
            let link = self.link(kept.take()).await?;
            let mut channel = self.broker.channel(&link).await?;
            if self.broker.purpose == Purpose::Look {
                channel = self.broker.whole(channel, &link).await?;
            }
            let mut depths = Vec::with_capacity(self.broker.topology.queues.len());
            for queue in &self.broker.topology.queues {
                let found = declare_queue(&channel, queue, true).await;
                let (messages, consumers) = found.map_err(|error| match code(&error) {
                    Some(404) => {
                        let message = format!("{} does not exist on the broker", queue.name);
                        self.keeper.suspect(&message);
                        let hint = "it is declared again by whoever publishes or consumes".into();
                        QueueError::Misconfigured { message, hint }
                    }
                    _ => self.broker.explain(&error),
                })?;
                depths.push(Depth { queue: queue.short.clone(), messages: messages.into(), consumers });
            }
            channel.close(200, "seen".into()).await.map_err(|error| self.broker.explain(&error))?;
            Ok((link, depths))
        };
        let (link, depths) =
            tokio::time::timeout(LOOK_LIMIT, looked).await.unwrap_or_else(|_| Err(self.broker.mute()))?;
        *kept = Some(link);
        Ok(depths)
    }

    async fn declare(&self) -> Result<Vec<String>, QueueError> {
        let mut kept = self.link.lock().await;
        let (link, unbound) = self
            .broker
            .within(async {
                let link = self.link(kept.take()).await?;
                let unbound = self.broker.ensure(&link).await?;
                Ok((link, unbound))
            })
            .await?;
        *kept = Some(link);
        Ok(unbound)
    }

    async fn link(&self, kept: Option<Link>) -> Result<Link, QueueError> {
        match kept {
            Some(link) if link.status().connected() => Ok(link),
            _ => self.broker.dial("observer").await,
        }
    }

    /// Closes the connection.
    pub(super) async fn close(&self) {
        if let Some(link) = self.link.lock().await.take() {
            link.close().await;
        }
    }
}

impl Broker {
    /// For [`Purpose::Work`], the topology is there afterwards. Returns the queues whose bindings this user may not make:
    /// whether those are there cannot be asked. For [`Purpose::Look`], it is an error where nothing of it is there.
    pub(super) async fn ensure(&self, connection: &Connection) -> Result<Vec<String>, QueueError> {
        let channel = self.channel(connection).await?;
        let (channel, unbound) = match self.purpose {
            Purpose::Work => {
                let channel = self.declare(channel, connection, |_| true).await?;
                self.bind(channel, connection).await?
            }
            // The part that is there can be looked at.
            Purpose::Look => (self.look(channel, connection).await?.0, Vec::new()),
        };
        channel.close(200, "declared".into()).await.map_err(|error| self.explain(&error))?;
        Ok(unbound)
    }

    /// Whether everything is there with the right arguments. Only a declaration makes the broker compare arguments, and
    /// only one of what exists makes nothing: so what exists is looked at first.
    pub(super) async fn compare(&self, connection: &Connection) -> Result<(), QueueError> {
        let channel = self.whole(self.channel(connection).await?, connection).await?;
        self.declare(channel, connection, |exchange| !exchange.optional).await?;
        Ok(())
    }

    /// Looks, and fails where anything is missing that is not optional.
    async fn whole(&self, channel: Channel, connection: &Connection) -> Result<Channel, QueueError> {
        let (channel, missing) = self.look(channel, connection).await?;
        match missing.is_empty() {
            true => Ok(channel),
            false => Err(QueueError::Misconfigured {
                message: format!("the broker at {} does not have {}", self.place(), missing.join(", ")),
                hint: "start headcount, which declares what is missing; if it runs already, set HEADCOUNT_RETRY_DELAYS to \
                       what it is set to there"
                    .into(),
            }),
        }
    }

    /// Returns what is missing and not optional. It is an error where all of it is.
    async fn look(
        &self,
        mut channel: Channel,
        connection: &Connection,
    ) -> Result<(Channel, Vec<&str>), QueueError> {
        let (mut missing, mut looked) = (Vec::new(), 0);
        for exchange in self.topology.exchanges.iter().filter(|exchange| !exchange.optional) {
            looked += 1;
            if let Err(error) = declare_exchange(&channel, exchange, true).await {
                missing.push(self.absent(&error, &exchange.name)?);
                channel = self.channel(connection).await?;
            }
        }
        for queue in &self.topology.queues {
            looked += 1;
            if let Err(error) = declare_queue(&channel, queue, true).await {
                missing.push(self.absent(&error, &queue.name)?);
                channel = self.channel(connection).await?;
            }
        }
        if missing.len() < looked {
            return Ok((channel, missing));
        }
        let (place, prefix) = (self.place(), self.topology.prefix());
        Err(QueueError::Misconfigured {
            message: format!("the broker at {place} has nothing under the prefix {prefix} yet"),
            hint: "start headcount, which makes its queues; if it runs already, set HEADCOUNT_QUEUE_PREFIX, and the \
                   virtual host at the end of AMQP_URL, to what they are set to there"
                .into(),
        })
    }

    /// The name of what the broker does not have.
    fn absent<'a>(&self, error: &Error, name: &'a str) -> Result<&'a str, QueueError> {
        match code(error) {
            Some(404) => Ok(name),
            _ => Err(self.explain(error)),
        }
    }

    /// Declares every queue, and those exchanges.
    async fn declare(
        &self,
        mut channel: Channel,
        connection: &Connection,
        exchanges: impl Fn(&Exchange) -> bool,
    ) -> Result<Channel, QueueError> {
        for exchange in self.topology.exchanges.iter().filter(|exchange| exchanges(exchange)) {
            if let Err(error) = declare_exchange(&channel, exchange, false).await {
                channel = self.channel(connection).await?;
                if exchange.optional {
                    continue;
                }
                self.accept(&error, &exchange.name)?;
                let passive = declare_exchange(&channel, exchange, true).await;
                passive.map_err(|error| self.missing(&error, &exchange.name))?;
            }
        }
        for queue in &self.topology.queues {
            if let Err(error) = declare_queue(&channel, queue, false).await {
                channel = self.channel(connection).await?;
                self.accept(&error, &queue.name)?;
                let passive = declare_queue(&channel, queue, true).await;
                passive.map_err(|error| self.missing(&error, &queue.name))?;
            }
        }
        Ok(channel)
    }

    /// Binds, and names the queues whose bindings this user may not make.
    async fn bind(
        &self,
        mut channel: Channel,
        connection: &Connection,
    ) -> Result<(Channel, Vec<String>), QueueError> {
        let mut unbound = Vec::new();
        for binding in &self.topology.bindings {
            if let Err(error) = bind(&channel, binding).await {
                channel = self.channel(connection).await?;
                if binding.optional {
                    continue;
                }
                // Where we may not bind, the administrator has.
                self.accept(&error, &binding.queue)?;
                unbound.push(binding.queue.clone());
            }
        }
        Ok((channel, unbound))
    }

    /// A declaration that was not permitted is no error yet: the thing may be there. All else is.
    fn accept(&self, error: &Error, name: &str) -> Result<(), QueueError> {
        match code(error) {
            Some(403) => Ok(()),
            Some(406) => Err(QueueError::Misconfigured {
                message: format!("{name} exists on the broker with other arguments ({})", text(error)),
                hint: "drain and delete it, or set HEADCOUNT_QUEUE_PREFIX to a new prefix".into(),
            }),
            _ => Err(self.explain(error)),
        }
    }

    fn missing(&self, error: &Error, name: &str) -> QueueError {
        match code(error) {
            Some(404) => QueueError::Misconfigured {
                message: format!("{name} does not exist on the broker and may not be declared by this user"),
                hint: match self.topology.declaration(name) {
                    Some(what) => format!("give the user the configure permission, or declare {what}"),
                    None => "give the user the configure permission".into(),
                },
            },
            _ => self.explain(error),
        }
    }
}

async fn bind(channel: &Channel, binding: &Binding) -> lapin::Result<()> {
    let (queue, exchange, key) = (&*binding.queue, &*binding.exchange, &*binding.key);
    let options = QueueBindOptions::default();
    channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default()).await
}

async fn declare_exchange(channel: &Channel, exchange: &Exchange, passive: bool) -> lapin::Result<()> {
    let kind = if exchange.kind == "fanout" { ExchangeKind::Fanout } else { ExchangeKind::Direct };
    let mut arguments = FieldTable::default();
    if let Some(alternate) = &exchange.alternate {
        arguments.insert("alternate-exchange".into(), AMQPValue::LongString(alternate.as_str().into()));
    }
    let options = ExchangeDeclareOptions { durable: true, passive, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(exchange.name.as_str().into(), kind, options, arguments).await
}

/// Declares, or only looks (`passive`), and tells how many messages are ready and how many consumers there are.
async fn declare_queue(channel: &Channel, queue: &Queue, passive: bool) -> lapin::Result<(u32, u32)> {
    let mut arguments = FieldTable::default();
    for (key, value) in &queue.arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Argument::Number(number) => AMQPValue::LongLongInt(*number),
        };
        arguments.insert((*key).into(), value);
    }
    let options = QueueDeclareOptions { durable: true, passive, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(queue.name.as_str().into(), options, arguments).await?;
    Ok((declared.message_count(), declared.consumer_count()))
}
