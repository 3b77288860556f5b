//! Owns the state of the topology while the process runs: looks after it now and then, and at once where there is
//! evidence that a queue or a binding is gone, and declares what is missing. Looks at depths over the same connection.
//! Promises that a queue that was deleted stays away for a moment, and that declaring has a bounded rate.

use std::{sync::Arc, time::Duration};

use tokio::sync::{Mutex, watch};
use tracing::debug;

use super::{
    broker::{Broker, code},
    declare::declare_queue,
    link::Link,
    troubles::{TOPOLOGY, Troubles},
};
use crate::{
    pause::Pauses,
    queue::{Depth, PUBLISHING, Purpose, QueueError},
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

/// Whom to tell that something is missing.
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
                // With rights to all it is whole now; without, a binding is whole for all that is known.
                Ok(unbound) if unbound.is_empty() || !suspected => self.troubles.clear(PUBLISHING, TOPOLOGY),
                Ok(unbound) => {
                    let why = format!(
                        "{} may be missing a binding, which this user may not make",
                        unbound.join(", ")
                    );
                    self.troubles.report(PUBLISHING, TOPOLOGY, why);
                }
                // Who publishes and consumes knows that it is away.
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
