//! Owns the topology on a broker: whoever works declares what is missing, whoever only looks is told of it.
//! Promises that looking makes nothing.

use lapin::{
    Channel, Connection, Error, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};

use super::broker::{Broker, code, text};
use crate::queue::{
    Purpose, QueueError,
    topology::{Argument, Binding, Exchange, Queue},
};

impl Broker {
    /// For those who work, the topology is there afterwards; names the queues whose bindings this user may not make:
    /// whether they are there cannot be asked. For those who look, an error tells where there is nothing of it.
    pub(super) async fn ensure(&self, connection: &Connection) -> Result<Vec<String>, QueueError> {
        let channel = self.channel(connection).await?;
        let (channel, unbound) = match self.purpose {
            Purpose::Work => {
                let channel = self.declare(channel, connection, |_| true).await?;
                self.bind(channel, connection).await?
            }
            // What is left can be looked at.
            Purpose::Look => (self.look(channel, connection).await?.0, Vec::new()),
        };
        channel.close(200, "declared".into()).await.map_err(|error| self.explain(&error))?;
        Ok(unbound)
    }

    /// Whether what is there is as it has to be. Only the declaration of what exists makes the broker compare arguments
    /// and makes nothing, so it is looked at first.
    pub(super) async fn compare(&self, connection: &Connection) -> Result<(), QueueError> {
        let channel = self.whole(self.channel(connection).await?, connection).await?;
        self.declare(channel, connection, |exchange| !exchange.optional).await?;
        Ok(())
    }

    /// An error that tells what is missing, where something is.
    pub(super) async fn whole(
        &self,
        channel: Channel,
        connection: &Connection,
    ) -> Result<Channel, QueueError> {
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

    /// What is missing of what nobody can do without. An error where all of it is.
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
pub(super) async fn declare_queue(
    channel: &Channel,
    queue: &Queue,
    passive: bool,
) -> lapin::Result<(u32, u32)> {
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
