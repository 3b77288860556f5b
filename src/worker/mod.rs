//! Owns the worker's loop. The files in the order of a message's life: `approach` takes one message at a time until the
//! database takes messages; `shift` then receives, tries, judges and settles until nothing succeeds any more; `held` says
//! which message is next, `course` when to pause; `batch` parses and applies; `blame` says whose fault a failure is,
//! `verdict` what becomes of the message, `settle` tells the queue.
//!
//! Promises: at most the prefetch is held, and in an outage nothing for longer than [`Settings::silence`] after the outage
//! was noticed; an outage burns no attempt; a message that kills its worker takes few along and none twice, because what
//! has come back unsettled is tried alone and in random order, and what has come back again without others that came back;
//! what has to wait for the broker holds up nothing else.
//! Never touches SQL or AMQP.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::{
    clerk,
    pause::Pauses,
    queue::{Ladder, Queue, QueueError, Reason, Subscription},
    rules::Outcome,
    store::Batches,
    telemetry::{metrics::WorkerMetrics, tally::Tally},
    time::{Millis, now, rfc3339},
};

mod approach;
mod batch;
pub mod blame;
mod course;
mod hanging;
mod held;
mod seen;
mod settle;
mod shift;
pub mod verdict;

use batch::{Failed, Pipeline};
use blame::{Blame, Kind, Moment, Span};
use held::Held;
pub use held::TRANSACTIONS;
pub use seen::Seen;
use settle::Settling;
use shift::{Shift, ShiftEnd};
use verdict::Verdict;

/// How long the last deliveries are waited for after a cancel.
const LAST: Duration = Duration::from_secs(2);

/// From one [`Dare`] to the next: the first and the longest time.
const DARES: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(120));

/// [`Settings::silence`] of every worker; tests shorten it.
pub const SILENCE: Duration = Duration::from_secs(5);

/// What a worker may do, and for how long.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `HEADCOUNT_PREFETCH`
    pub prefetch: u16,
    /// `HEADCOUNT_BATCH_MAX`
    pub batch_max: usize,
    /// `HEADCOUNT_BATCH_WAIT`
    pub batch_wait: Duration,
    /// `HEADCOUNT_CONFLICT_PATIENCE`
    pub patience: u32,
    /// `HEADCOUNT_RETRY_DELAYS`
    pub ladder: Ladder,
    /// `HEADCOUNT_CLERK_INSTANCE`: events of another instance are buried.
    pub instance: Option<String>,
    /// `HEADCOUNT_KEEP_CLERK_OBJECT`
    pub keep_object: bool,
    /// `HEADCOUNT_SESSIONS`
    pub sessions: bool,
    /// `HEADCOUNT_BILLING`
    pub billing: bool,
    /// How long something may fail while nothing succeeds before everything that is held goes back to the queue; and how
    /// long a message that failed waits for another's success before it is set aside.
    pub silence: Duration,
}

/// How a worker is, for readiness and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Since when and why it takes no new messages; `None` while it works.
    pub paused: Option<String>,
}

/// Works until `stop` turns true and everything received is settled. Notes in `seen` which Clerk instances the webhooks are of.
///
/// # Errors
/// The queue cannot be consumed as configured.
pub async fn run(
    queue: Arc<dyn Queue>,
    store: Arc<dyn Batches>,
    settings: Settings,
    seen: Seen,
    health: watch::Sender<Health>,
    stop: watch::Receiver<bool>,
) -> Result<(), QueueError> {
    let (outcomes, reasons) = (Outcome::ALL.map(Outcome::as_str), Reason::ALL.map(Reason::as_str));
    let metrics = WorkerMetrics::new(&clerk::TYPES, &outcomes, &reasons);
    let pipeline = Arc::new(Pipeline::new(store, settings.clone(), seen, metrics.clone()));
    let mut worker = Worker {
        queue,
        batch_limit: settings.batch_max,
        settings,
        health: HealthTeller { health, metrics, since: None },
        blame: Blame::default(),
        consumed: false,
        dare: Dare::default(),
        settling: Settling::new(&pipeline),
        pipeline,
        set_aside: Tally::new(|counts| info!("messages since the last such line: {counts}")),
    };
    while let Some((subscription, held)) = worker.approach(&stop).await? {
        match Shift::new(&mut worker, subscription, held).work(&stop).await {
            ShiftEnd::Stopped => break,
            ShiftEnd::Outage => {}
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
    health: HealthTeller,
    blame: Blame,
    /// Messages in a batch: fewer where more have failed together and none alone.
    batch_limit: usize,
    /// The queue could be consumed once.
    consumed: bool,
    dare: Dare,
    settling: Settling,
    set_aside: Tally,
}

impl Worker {
    fn committed(&mut self, verdicts: &[(Held, Verdict)], changed: &[Kind], tried: Span) {
        if !changed.is_empty() {
            self.dare.works();
        }
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

    /// Stops deliveries. Returns those that were on their way.
    async fn cancel(&self, subscription: &Arc<dyn Subscription>) -> Vec<Held> {
        subscription.cancel().await;
        let mut held = Vec::new();
        let rest = async {
            while let Some(delivery) = subscription.next().await {
                held.push(Held::new(delivery, subscription, self.pipeline.moment()));
            }
        };
        // A broker that does not answer takes them back by itself.
        let _ = tokio::time::timeout(LAST, rest).await;
        held
    }
}

/// When a worker that could apply nothing yet takes messages all the same, because one hung and others may not: at once, and
/// then ever more rarely, until one is applied.
struct Dare {
    pauses: Pauses,
    next: Moment,
}

impl Default for Dare {
    fn default() -> Self {
        Self { pauses: Pauses::new(DARES.0, DARES.1), next: Moment::ZERO }
    }
}

impl Dare {
    fn takes(&mut self, now: Moment) -> bool {
        let takes = now >= self.next;
        if takes {
            self.next = now + self.pauses.next_pause();
        }
        takes
    }

    /// Something was applied. It is told of each batch, and mostly there is nothing to do.
    fn works(&mut self) {
        if self.next > Moment::ZERO {
            *self = Self::default();
        }
    }
}

/// Tells how the worker is, and logs each change once.
struct HealthTeller {
    health: watch::Sender<Health>,
    metrics: WorkerMetrics,
    /// When the present pause began.
    since: Option<Millis>,
}

impl HealthTeller {
    /// Nothing can be applied.
    fn paused(&mut self, why: &str) {
        self.metrics.paused.set(1.0);
        let since = rfc3339(*self.since.get_or_insert_with(now));
        let before = self.health.send_replace(Health { paused: Some(format!("since {since}: {why}")) });
        if before.paused.is_none() {
            warn!("the worker pauses, and takes no messages until one can be applied: {why}");
        }
    }

    /// Messages are applied.
    fn works(&mut self) {
        self.since = None;
        self.metrics.paused.set(0.0);
        if self.health.send_if_modified(|health| health.paused.take().is_some()) {
            info!("the worker goes on");
        }
    }
}
