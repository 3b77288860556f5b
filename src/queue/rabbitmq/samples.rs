//! Owns the way of samples to the broker: an exchange and a channel of their own, without confirms. Lossy by design:
//! what has no room is dropped, and so is everything where the user may not publish there. Nothing else waits for it.

use std::time::Duration;

use bytes::Bytes;
use lapin::{BasicProperties, Channel, Connection, options::BasicPublishOptions};
use tokio::{sync::mpsc, time::timeout};
use tracing::debug;

use super::broker::{Broker, text};
use crate::{pause::Pauses, queue::Source};

/// Samples that wait to be written, of a few kilobytes each.
const ROOM: usize = 1000;
/// Of one sample, in bytes.
const SAMPLE_MAX: usize = 64 * 1024;
/// How long opening a channel or writing a sample may take.
const LIMIT: Duration = Duration::from_secs(5);

/// The callers' end.
pub(super) struct Sender(mpsc::Sender<Bytes>);

impl Sender {
    /// Takes the sample if there is room.
    pub(super) fn offer(&self, sample: Bytes) {
        if sample.len() <= SAMPLE_MAX {
            let _ = self.0.try_send(sample);
        }
    }
}

/// The channel's end.
pub(super) struct Samples {
    waiting: mpsc::Receiver<Bytes>,
    broker: Broker,
    exchange: String,
}

/// Both ends.
pub(super) fn samples(broker: &Broker) -> (Sender, Samples) {
    let (offered, waiting) = mpsc::channel(ROOM);
    let exchange = broker.topology.named(Source::Rejections.queue());
    (Sender(offered), Samples { waiting, broker: broker.clone(), exchange })
}

impl Samples {
    /// Publishes over this connection until all senders are gone.
    pub(super) async fn run(&mut self, connection: &Connection) {
        let mut pauses = Pauses::new(Duration::from_secs(1), Duration::from_secs(60));
        while let Some(sample) = self.waiting.recv().await {
            let why = match timeout(LIMIT, self.broker.channel(connection)).await {
                Ok(Ok(channel)) => match self.publish(&channel, sample, &mut pauses).await {
                    None => return,
                    Some(why) => why,
                },
                Ok(Err(error)) => error.reason().to_owned(),
                Err(_) => "the broker does not answer".into(),
            };
            debug!("samples of rejected requests are dropped for a while: {why}");
            tokio::time::sleep(pauses.next_pause()).await;
            while self.waiting.try_recv().is_ok() {}
        }
    }

    /// Until the channel fails, and tells why.
    async fn publish(&mut self, channel: &Channel, first: Bytes, pauses: &mut Pauses) -> Option<String> {
        let mut sample = first;
        for published in 0_u64.. {
            let properties = BasicProperties::default().with_delivery_mode(2);
            let (exchange, key, options) =
                (self.exchange.as_str().into(), "".into(), BasicPublishOptions::default());
            match timeout(LIMIT, channel.basic_publish(exchange, key, options, &sample, properties)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Some(text(&error)),
                Err(_) => return Some("the broker takes nothing".into()),
            }
            if published == 100 {
                pauses.reset();
            }
            sample = self.waiting.recv().await?;
        }
        None
    }
}
