//! Owns the connection that publishes: its lanes, its alarms, and the supervision that connects again.
//! Webhooks have a lane of their own, so that what goes wrong with a retry queue does not concern them, and samples a
//! channel of their own, which may fail.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::Event;
use tokio::{
    sync::{Mutex, watch},
    task::JoinHandle,
};
use tracing::info;

use super::{
    broker::{Broker, text},
    keeper::Keeper,
    lane::{Ended, Gate, Lane, Runner, lane},
    link::Link,
    samples::{Samples, Sender, samples},
    troubles::{LINK, SETTLEMENTS, Troubles, WEBHOOKS},
};
use crate::{
    pause::Pauses,
    queue::{PUBLISH_LIMIT, PUBLISHING, QueueError},
    stop::until,
};

/// The publishing side of a broker.
pub(super) struct Publisher {
    /// For what goes to the events queue.
    pub(super) webhooks: Lane,
    /// For retries and burials.
    pub(super) settlements: Lane,
    samples: Sender,
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
            if tokio::time::timeout(PUBLISH_LIMIT, task).await.is_err() {
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
        let mut pauses = Pauses::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            if let Some(link) = link.take() {
                let ended = self.serve(&link, &mut pauses).await;
                let Ended::Lost(error) = ended else {
                    link.close().await;
                    return;
                };
                self.lost(&error);
            }
            tokio::select! {
                () = tokio::time::sleep(pauses.next_pause()) => {}
                () = until(&self.closing, |closing| *closing) => return,
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

    /// Runs the lanes until the connection fails (and tells why) or closing is done.
    async fn serve(&mut self, link: &Link, pauses: &mut Pauses) -> Ended {
        let mut events = Box::pin(link.events_listener());
        let (blocked, alarm) = watch::channel::<Gate>(None);
        let mut lanes: FuturesUnordered<_> = self
            .runners
            .iter_mut()
            .map(|runner| runner.run(link, alarm.clone(), self.closing.clone()))
            .collect();
        let mut sampling = std::pin::pin!(self.sampling.run(link));
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        pauses.reset();
        info!("publishing to the broker at {}", self.broker.place());
        self.troubles.clear(PUBLISHING, LINK);
        loop {
            tokio::select! {
                ended = lanes.next() => match ended {
                    Some(Ended::Closed) => {}
                    Some(Ended::Lost(error)) => return Ended::Lost(error),
                    None => return Ended::Closed,
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
                    Some(Event::Error(error)) if !link.status().connected() => return Ended::lost(text(&error)),
                    Some(_) => {}
                    None => return Ended::lost("the connection ended"),
                },
                _ = tick.tick() => if !link.status().connected() {
                    return Ended::lost("the connection ended");
                },
            }
        }
    }
}
