//! Owns the broker's side: headcount's topology under a prefix of its own, publishing to it with nothing in between
//! but `lapin`, and taking it away again.

use std::time::Instant;

use futures_util::{StreamExt, future::Either, stream::FuturesUnordered};
use headcount::{
    queue::{
        Ladder,
        topology::{Argument, EVENTS_KEY, Topology},
    },
    time::now,
};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind, PublisherConfirm,
    options::{
        BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, ExchangeDeleteOptions,
        QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};

use super::{
    Outcome,
    webhooks::{self, Webhooks},
};

/// Publishes on their way at a time, on one channel.
const IN_FLIGHT: usize = 1000;

/// Queues and exchanges of one scenario.
pub struct Broker {
    /// Where it is.
    pub url: String,
    /// `HEADCOUNT_QUEUE_PREFIX`
    pub prefix: String,
    connection: Connection,
    topology: Topology,
}

impl Broker {
    /// Connects, and declares what headcount declares.
    pub async fn new(name: &str, ladder: &Ladder) -> Outcome<Self> {
        let url = std::env::var("TEST_AMQP_URL")?;
        let prefix = format!("bench_{name}");
        let topology = Topology::new(&prefix, ladder);
        let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
        let broker = Self { url, prefix, connection, topology };
        broker.declare().await?;
        Ok(broker)
    }

    /// A channel on the scenario's connection.
    pub async fn channel(&self) -> Outcome<Channel> {
        Ok(self.connection.create_channel().await?)
    }

    /// The name of the queue that workers consume.
    pub fn events(&self) -> String {
        self.topology.named("events")
    }

    /// Publishes that many webhooks without an ingress; tells how many per second were confirmed. A thousand wait for
    /// their confirms at a time, on one channel. `together`: lapin is given as many as it can write at once, as
    /// headcount does; otherwise each is written before the next is begun, which is what awaiting `basic_publish` means.
    pub async fn publish(&self, webhooks: &Webhooks, count: u64, together: bool) -> Outcome<f64> {
        let channel = self.channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let exchange = self.topology.named("events");
        let start = Instant::now();
        let mut confirms = FuturesUnordered::new();
        for number in 0..count {
            if confirms.len() >= IN_FLIGHT {
                acked(confirms.next().await)?;
            }
            let publishing = publish(&channel, &exchange, webhooks, number);
            confirms.push(if together {
                Either::Left(async { publishing.await?.await })
            } else {
                Either::Right(publishing.await?)
            });
        }
        while let Some(confirmed) = confirms.next().await {
            acked(Some(confirmed))?;
        }
        let rate = count as f64 / start.elapsed().as_secs_f64();
        channel.close(200, "done".into()).await?;
        Ok(rate)
    }

    async fn declare(&self) -> Outcome<()> {
        let channel = self.channel().await?;
        for exchange in &self.topology.exchanges {
            let kind = if exchange.kind == "fanout" { ExchangeKind::Fanout } else { ExchangeKind::Direct };
            let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
            let alternate = exchange.alternate.iter();
            let arguments = table(alternate.map(|to| ("alternate-exchange", Argument::Text(to.clone()))));
            channel.exchange_declare(exchange.name.as_str().into(), kind, options, arguments).await?;
        }
        for queue in &self.topology.queues {
            let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
            let arguments = table(queue.arguments.iter().cloned());
            channel.queue_declare(queue.name.as_str().into(), options, arguments).await?;
        }
        for binding in &self.topology.bindings {
            let (queue, exchange, key) = (&*binding.queue, &*binding.exchange, &*binding.key);
            let options = QueueBindOptions::default();
            channel
                .queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default())
                .await?;
        }
        Ok(channel.close(200, "declared".into()).await?)
    }

    /// Takes everything away, with what is in it.
    pub async fn remove(self) -> Outcome<()> {
        let channel = self.channel().await?;
        for queue in &self.topology.queues {
            channel.queue_delete(queue.name.as_str().into(), QueueDeleteOptions::default()).await?;
        }
        for exchange in &self.topology.exchanges {
            channel.exchange_delete(exchange.name.as_str().into(), ExchangeDeleteOptions::default()).await?;
        }
        Ok(self.connection.close(200, "done".into()).await?)
    }
}

async fn publish(
    channel: &Channel,
    exchange: &str,
    webhooks: &Webhooks,
    number: u64,
) -> lapin::Result<PublisherConfirm> {
    let (options, body) = (BasicPublishOptions::default(), webhooks.body(number));
    channel.basic_publish(exchange.into(), EVENTS_KEY.into(), options, &body, properties(number)).await
}

/// As the ingress sets them.
fn properties(number: u64) -> BasicProperties {
    let numbers = [("x-attempt", 0), ("x-waits", 0), ("x-round", 0), ("x-received-at", now())];
    let headers = numbers.map(|(key, value)| (key, Argument::Number(value)));
    let event_type = [("x-event-type", Argument::Text("user.updated".into()))];
    BasicProperties::default()
        .with_delivery_mode(2)
        .with_message_id(webhooks::id(number).as_str().into())
        .with_headers(table(headers.into_iter().chain(event_type)))
}

fn table(arguments: impl Iterator<Item = (&'static str, Argument)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(text.into()),
            Argument::Number(number) => AMQPValue::LongLongInt(number),
        };
        table.insert(key.into(), value);
    }
    table
}

fn acked(confirmed: Option<lapin::Result<Confirmation>>) -> Outcome<()> {
    match confirmed.ok_or("nothing to confirm")?? {
        Confirmation::Ack(None) => Ok(()),
        other => Err(format!("a publish was not confirmed: {other:?}").into()),
    }
}
