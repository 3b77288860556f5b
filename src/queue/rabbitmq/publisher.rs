//! Owns the connection that publishes: its lanes, its alarms, and connecting again. Promises that webhooks have a lane of
//! their own, so that what goes wrong with a retry queue does not concern them, and that samples, on a channel of their own
//! which may fail, hold up nothing.

use std::{future::pending, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use lapin::{BasicProperties, Channel, Connection, Event, options::BasicPublishOptions};
use tokio::{
    sync::{Mutex, mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tracing::{debug, info};

use super::{
    connection::{Broker, Link, text},
    keeper::Keeper,
    lane::{Gate, Lane, Runner, ServeEnd, lane},
    troubles::{LINK, SETTLEMENTS, Troubles, WEBHOOKS},
};
use crate::{
    pause::Recovery,
    queue::{PUBLISH_LIMIT, PUBLISHING, QueueError, Source},
    stop::until,
};

/// Samples that wait to be written, of a few kilobytes each.
const SAMPLES_ROOM: usize = 1000;
/// Of one sample, in bytes.
const SAMPLE_MAX: usize = 64 * 1024;
/// How long opening a channel or writing a sample may take.
const SAMPLE_LIMIT: Duration = Duration::from_secs(5);

/// The publishing side of a broker.
pub(super) struct Publisher {
    /// For what goes to the events queue.
    pub(super) webhooks: Lane,
    /// For retries and burials.
    pub(super) settlements: Lane,
    samples: SampleSender,
    closing: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Publisher {
    /// Connects at once; a broker that is away is tried again for as long as it takes.
    pub(super) async fn open(
        broker: Broker,
        troubles: Arc<Troubles>,
        keeper: Keeper,
        closing: watch::Sender<bool>,
    ) -> Result<Self, QueueError> {
        let (first, gate) = match broker.connect("publisher").await {
            Ok(link) => (Some(link), None),
            Err(error @ QueueError::Unavailable(_)) => {
                troubles.report(PUBLISHING, LINK, error.reason().to_owned());
                (None, Some(error))
            }
            Err(error) => return Err(error),
        };
        let lane =
            |reporter| lane(reporter, broker.clone(), Arc::clone(&troubles), keeper.clone(), gate.clone());
        let ((webhooks, first_runner), (settlements, second_runner)) = (lane(WEBHOOKS), lane(SETTLEMENTS));
        let (samples, sampling) = samples(&broker);
        let supervisor = Supervisor {
            broker: broker.clone(),
            troubles,
            runners: [first_runner, second_runner],
            sampling,
            closing: closing.subscribe(),
        };
        let task = Mutex::new(Some(tokio::spawn(supervisor.run(first))));
        Ok(Self { webhooks, settlements, samples, closing, task })
    }

    /// Publishes a sample if there is room, and forgets about it.
    pub(super) fn sample(&self, sample: Bytes) {
        if self.webhooks.trouble().is_none() {
            self.samples.offer(sample);
        }
    }

    /// Waits for what is in flight, then closes.
    pub(super) async fn close(&self) {
        self.closing.send_replace(true);
        if let Some(task) = self.task.lock().await.take() {
            let abort = task.abort_handle();
            if timeout(PUBLISH_LIMIT, task).await.is_err() {
                abort.abort();
            }
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.closing.send_replace(true);
    }
}

struct Supervisor {
    broker: Broker,
    troubles: Arc<Troubles>,
    runners: [Runner; 2],
    sampling: Samples,
    closing: watch::Receiver<bool>,
}

impl Supervisor {
    async fn run(mut self, first: Option<Link>) {
        self.keep_serving(first).await;
        self.runners
            .iter_mut()
            .for_each(|runner| runner.shut(&QueueError::Unavailable("it is closed".into())));
    }

    async fn keep_serving(&mut self, mut link: Option<Link>) {
        let mut recovery = Recovery::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            if let Some(link) = link.take() {
                let ServeEnd::Lost(error) = self.serve(&link, &mut recovery).await else {
                    link.close().await;
                    return;
                };
                self.lost(&error);
            }
            if recovery.pause(until(&self.closing, |closing| *closing)).await {
                return;
            }
            match self.broker.connect("publisher").await {
                Ok(connected) => link = Some(connected),
                Err(error) => self.lost(&error),
            }
        }
    }

    fn lost(&mut self, error: &QueueError) {
        self.runners.iter_mut().for_each(|runner| runner.shut(error));
        self.troubles.report(PUBLISHING, LINK, error.reason().to_owned());
    }

    /// Runs the lanes until the connection fails or the queue was closed.
    async fn serve(&mut self, link: &Link, recovery: &mut Recovery) -> ServeEnd {
        let mut events = Box::pin(link.events_listener());
        let (blocked, alarm) = watch::channel::<Gate>(None);
        let mut lanes: FuturesUnordered<_> = self
            .runners
            .iter_mut()
            .map(|runner| runner.run(link, alarm.clone(), self.closing.clone()))
            .collect();
        // It ends when all callers are gone, and must not be asked again then.
        let mut sampling = std::pin::pin!(self.sampling.run(link).fuse());
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        recovery.works();
        info!("publishing to the broker at {}", self.broker.place());
        self.troubles.clear(PUBLISHING, LINK);
        loop {
            tokio::select! {
                ended = lanes.next() => match ended {
                    Some(ServeEnd::Closed) => {}
                    Some(ServeEnd::Lost(error)) => return ServeEnd::Lost(error),
                    None => return ServeEnd::Closed,
                },
                () = &mut sampling => {}
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => {
                        let error = self.broker.blocked(&reason.to_string());
                        self.troubles.report(PUBLISHING, LINK, error.reason().to_owned());
                        blocked.send_replace(Some(error));
                    }
                    Some(Event::ConnectionUnblocked) => {
                        self.troubles.clear(PUBLISHING, LINK);
                        blocked.send_replace(None);
                    }
                    Some(Event::Error(error)) if !link.status().connected() => return ServeEnd::lost(text(&error)),
                    Some(_) => {}
                    None => return ServeEnd::lost("the connection ended"),
                },
                _ = tick.tick() => if !link.status().connected() {
                    return ServeEnd::lost("the connection ended");
                },
            }
        }
    }
}

/// The callers' end of the way of samples.
struct SampleSender(mpsc::Sender<Bytes>);

impl SampleSender {
    /// Takes the sample if there is room.
    fn offer(&self, sample: Bytes) {
        if sample.len() <= SAMPLE_MAX {
            let _ = self.0.try_send(sample);
        }
    }
}

/// The channel's end of the way of samples: an exchange and a channel of their own, without confirms. Lossy by design: what
/// has no room is dropped, and so is everything where the user may not publish there.
struct Samples {
    waiting: mpsc::Receiver<Bytes>,
    broker: Broker,
    exchange: String,
}

/// Both ends.
fn samples(broker: &Broker) -> (SampleSender, Samples) {
    let (offered, waiting) = mpsc::channel(SAMPLES_ROOM);
    let exchange = broker.topology.named(Source::Rejections.queue());
    (SampleSender(offered), Samples { waiting, broker: broker.clone(), exchange })
}

impl Samples {
    /// Publishes over this connection until all senders are gone.
    async fn run(&mut self, connection: &Connection) {
        let mut recovery = Recovery::new(Duration::from_secs(1), Duration::from_secs(60));
        while let Some(sample) = self.waiting.recv().await {
            let why = match timeout(SAMPLE_LIMIT, self.broker.channel(connection)).await {
                Ok(Ok(channel)) => match self.publish(&channel, sample, &mut recovery).await {
                    None => return,
                    Some(why) => why,
                },
                Ok(Err(error)) => error.reason().to_owned(),
                Err(_) => "the broker does not answer".into(),
            };
            debug!("samples of rejected requests are dropped for a while: {why}");
            recovery.pause(pending()).await;
            while self.waiting.try_recv().is_ok() {}
        }
    }

    /// Publishes until the channel fails, and tells why. `None`: all senders are gone.
    async fn publish(&mut self, channel: &Channel, first: Bytes, recovery: &mut Recovery) -> Option<String> {
        let mut sample = first;
        for published in 0_u64.. {
            let properties = BasicProperties::default().with_delivery_mode(2);
            let (exchange, key, options) =
                (self.exchange.as_str().into(), "".into(), BasicPublishOptions::default());
            match timeout(SAMPLE_LIMIT, channel.basic_publish(exchange, key, options, &sample, properties))
                .await
            {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Some(text(&error)),
                Err(_) => return Some("the broker takes nothing".into()),
            }
            if published == 100 {
                recovery.works();
            }
            sample = self.waiting.recv().await?;
        }
        None
    }
}
