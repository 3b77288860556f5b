//! Owns the worker's loop: probe until the database takes messages, then receive, batch, apply, judge and settle, and
//! drain when asked.
//!
//! Promises: at most the prefetch is held, and in an outage nothing for longer than [`Settings::silence`]; an outage
//! burns no attempt; what has come back unsettled is tried alone and in random order, and what has come back again with
//! none of its kind beside it, so that a message that kills its worker takes few along and none twice; what has to wait for the broker holds up nothing else.
//! Never touches SQL or AMQP.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Instant,
};

use tokio::sync::watch;
use tracing::{debug, info};

use crate::{
    clerk,
    queue::{Queue, QueueError, Reason},
    rules::users::Outcome,
    store::Batches,
    telemetry::{metrics::WorkerMetrics, tally::Tally},
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
use settle::Settling;
pub use shift::TRANSACTIONS;
use shift::{Ended, Shift};
use verdict::Verdict;

/// Works until `stop` turns true and everything received is settled.
///
/// # Errors
/// The queue cannot be consumed as configured.
pub async fn run(
    queue: Arc<dyn Queue>,
    store: Arc<dyn Batches>,
    settings: Settings,
    health: watch::Sender<Health>,
    stop: watch::Receiver<bool>,
) -> Result<(), QueueError> {
    let (outcomes, reasons) = (Outcome::ALL.map(Outcome::as_str), Reason::ALL.map(Reason::as_str));
    let metrics = WorkerMetrics::new(&clerk::USER_TYPES, &outcomes, &reasons);
    let pipeline = Pipeline {
        store,
        settings: settings.clone(),
        metrics: metrics.clone(),
        epoch: Instant::now(),
        successes: AtomicU64::new(0),
    };
    let pipeline = Arc::new(pipeline);
    let settling = Settling::new(&pipeline);
    let mut worker = Worker {
        pipeline,
        queue,
        batch_limit: settings.batch_max,
        settings,
        teller: Teller::new(health, metrics),
        blame: Blame::default(),
        consumed: false,
        settling,
        set_aside: Tally::new(|counts| info!("messages since the last such line: {counts}")),
    };
    while let Some((subscription, held)) = worker.probe(&stop).await? {
        if Shift::new(&mut worker, subscription, held).work(&stop).await == Ended::Stopped {
            break;
        }
    }
    worker.settling.all().await;
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
    settling: Settling,
    set_aside: Tally,
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
        let id = failed.held.id();
        debug!(message_id = %id, "message {id} fails by itself: {}", failed.error);
        Verdict::guilty(&failed.error, &failed.held.delivery.message, &self.settings.ladder)
    }
}
