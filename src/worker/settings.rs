//! Owns what a worker is told at its start, and what it tells of itself.

use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    config::Config,
    queue::Ladder,
    telemetry::metrics::WorkerMetrics,
    time::{Millis, now, rfc3339},
};

/// What a worker may do and for how long.
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
    /// A database that has not answered for so long is away.
    pub watchdog: Duration,
    /// How long something may fail while nothing succeeds before everything that is held goes back to the queue; and how
    /// long a message that failed waits for another's success before it is set aside.
    pub silence: Duration,
}

impl Settings {
    /// As configured.
    pub fn new(config: &Config) -> Self {
        Self {
            prefetch: config.prefetch,
            batch_max: config.batch_max,
            batch_wait: config.batch_wait,
            patience: config.conflict_patience,
            ladder: config.retry_delays.clone(),
            watchdog: Duration::from_secs(10),
            silence: Duration::from_secs(5),
        }
    }
}

/// How a worker is, for readiness and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Since when and why it takes no messages; `None` while it works.
    pub paused: Option<String>,
}

/// Tells how the worker is, and logs each change once.
pub(super) struct Teller {
    health: watch::Sender<Health>,
    metrics: WorkerMetrics,
    /// Of the pause, while there is one.
    since: Option<Millis>,
}

impl Teller {
    pub(super) fn new(health: watch::Sender<Health>, metrics: WorkerMetrics) -> Self {
        Self { health, metrics, since: None }
    }

    /// Nothing can be applied.
    pub(super) fn paused(&mut self, why: &str) {
        self.metrics.paused.set(1.0);
        let since = rfc3339(*self.since.get_or_insert_with(now));
        let before = self.health.send_replace(Health { paused: Some(format!("since {since}: {why}")) });
        if before.paused.is_none() {
            warn!("the worker pauses, and takes no messages until one can be applied: {why}");
        }
    }

    /// Messages are applied.
    pub(super) fn works(&mut self) {
        self.since = None;
        self.metrics.paused.set(0.0);
        if self.health.send_if_modified(|health| health.paused.take().is_some()) {
            info!("the worker goes on");
        }
    }
}
