//! Owns what a worker is told at its start, and what it tells of itself.

use std::time::Duration;

use crate::{config::Config, queue::Ladder};

/// What a worker may do and for how long.
#[derive(Clone, Debug)]
pub struct Settings {
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
    /// What is held longer is parked.
    pub hold_limit: Duration,
    /// How long a message that was refused alone waits for another's success before it is blamed.
    pub suspicion: Duration,
}

impl Settings {
    /// As configured.
    pub fn new(config: &Config) -> Self {
        Self {
            batch_max: config.batch_max,
            batch_wait: config.batch_wait,
            patience: config.conflict_patience,
            ladder: config.retry_delays.clone(),
            watchdog: Duration::from_secs(10),
            hold_limit: Duration::from_secs(600),
            suspicion: Duration::from_secs(5),
        }
    }
}

/// How a worker is, for readiness and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Why it holds its messages and waits; `None` while it works.
    pub paused: Option<String>,
}
