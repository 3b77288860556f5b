//! Owns the worker's loop: probe until the database takes messages, then receive, batch, apply, judge and settle, and
//! drain when asked.
//!
//! Promises: at most the prefetch is held, and in an outage nothing for longer than [`Settings::silence`]; an outage
//! burns no attempt; what has come back unsettled is tried alone, one at a time and in random order, so that a message
//! that kills its worker takes no other along; what has to wait for the broker holds up nothing else.
//! Never touches SQL or AMQP.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    queue::{Queue, QueueError, Source},
    shutdown::until,
    store::Store,
    telemetry::metrics::WorkerMetrics,
};

mod batch;
pub mod blame;
mod probe;
mod settings;
mod settle;
mod shift;
pub mod verdict;

use batch::{Failed, Held, Pipeline};
use blame::{Blame, Kind, Span};
use settings::Teller;
pub use settings::{Health, Settings};
use shift::{Ended, Shift};
use verdict::Verdict;

/// Works until `stop` turns true and everything received is settled.
///
/// # Errors
/// The queue cannot be consumed as configured.
pub async fn run(
    queue: Arc<dyn Queue>,
    store: Arc<dyn Store>,
    settings: Settings,
    health: watch::Sender<Health>,
    stop: watch::Receiver<bool>,
) -> Result<(), QueueError> {
    let metrics = WorkerMetrics::new();
    let pipeline = Pipeline {
        store,
        settings: settings.clone(),
        metrics: metrics.clone(),
        epoch: Instant::now(),
        successes: AtomicU64::new(0),
    };
    let mut worker = Worker {
        pipeline: Arc::new(pipeline),
        queue,
        batch_limit: settings.batch_max,
        settings,
        teller: Teller::new(health, metrics),
        blame: Blame::default(),
        consumed: false,
    };
    while worker.probe(&stop).await? {
        let subscription = loop {
            match worker.queue.subscribe(Source::Events, worker.settings.prefetch).await {
                Ok(subscription) => break subscription,
                Err(error) => worker.teller.paused(&error.to_string()),
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                () = until(&stop, |stop| *stop) => return Ok(()),
            }
        };
        worker.teller.works();
        if Shift::new(&mut worker, subscription.into()).work(&stop).await == Ended::Stopped {
            return Ok(());
        }
    }
    Ok(())
}

/// What a worker keeps from one subscription to the next.
struct Worker {
    pipeline: Arc<Pipeline>,
    queue: Arc<dyn Queue>,
    settings: Settings,
    teller: Teller,
    blame: Blame,
    /// Messages in a batch: fewer where more have failed together and none alone.
    batch_limit: usize,
    /// The queue could be consumed once.
    consumed: bool,
}

impl Worker {
    fn committed(&mut self, verdicts: &[(Held, Verdict)], changed: &[Kind], tried: Span) {
        for kind in changed {
            self.blame.succeeded(*kind, tried);
        }
        if let [(held, _)] = verdicts {
            self.blame.cleared(held.id());
        }
    }

    fn guilty(&self, failed: &Failed) -> Verdict {
        Verdict::guilty(&failed.error, &failed.held.delivery.message, &self.settings.ladder)
    }
}
