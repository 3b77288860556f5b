//! Owns how a run waits: again and again for what fails for a passing reason, and never longer than until somebody asks it to stop.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{PATIENCE, SyncError};
use crate::{
    pause::Pauses,
    queue::QueueError,
    stop::until,
    store::{Class, StoreError},
};

/// An error that may pass by itself.
pub(super) trait Passing: Into<SyncError> {
    fn passes(&self) -> bool;
}

impl Passing for StoreError {
    fn passes(&self) -> bool {
        match self.class {
            Class::Transient | Class::Outage | Class::Unanswered => true,
            // But for a table, a column or a right that is missing.
            Class::Unclear => !self.code.starts_with("42"),
            Class::Permanent | Class::Unusable => false,
        }
    }
}

impl Passing for QueueError {
    fn passes(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::Blocked(_) | Self::File(_) => true,
            Self::Misconfigured { .. } | Self::Refused { .. } => false,
        }
    }
}

/// Tries again what fails for a passing reason, for about three minutes.
///
/// # Errors
/// The last one; [`SyncError::Stopped`] where somebody asked for it meanwhile.
pub(super) async fn patiently<T, E: Passing, F: Future<Output = Result<T, E>>>(
    stop: &watch::Receiver<bool>,
    mut work: impl FnMut() -> F,
) -> Result<T, SyncError> {
    let begun = Instant::now();
    let mut pauses = Pauses::new(Duration::from_millis(200), Duration::from_secs(10));
    loop {
        let error = match work().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        if !error.passes() || begun.elapsed() > PATIENCE {
            return Err(error.into());
        }
        tokio::select! {
            () = sleep(pauses.next_pause()) => {}
            () = until(stop, |stop| *stop) => return Err(SyncError::Stopped),
        }
    }
}

/// Waits for what can be dropped at any point.
///
/// # Errors
/// Those of `work`; [`SyncError::Stopped`] where somebody asked for it first.
pub(super) async fn stoppable<T>(
    stop: &watch::Receiver<bool>,
    work: impl Future<Output = Result<T, SyncError>>,
) -> Result<T, SyncError> {
    tokio::select! {
        biased;
        () = until(stop, |stop| *stop) => Err(SyncError::Stopped),
        done = work => done,
    }
}
