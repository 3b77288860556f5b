//! Owns how a run waits: again and again for what fails for a passing reason, and never longer than until somebody asks it to stop.
//! Promises that what it waits for is told within seconds.

use std::{fmt, pin::pin, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{PATIENCE, SyncError, Tell, Told};
use crate::{
    clerk::api::{Api, ApiError},
    pause::Pauses,
    queue::QueueError,
    stop::until,
    store::{Class, StoreError},
};

/// What does not answer for so long is told of.
const SILENT: Duration = Duration::from_secs(5);

/// An error that may pass by itself.
pub(super) trait Passing: Into<SyncError> + fmt::Display {
    /// Who it is that fails.
    const WHO: &'static str;

    fn passes(&self) -> bool;
}

impl Passing for StoreError {
    const WHO: &'static str = "the database";

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
    const WHO: &'static str = "the queue";

    fn passes(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::Blocked(_) | Self::File(_) => true,
            Self::Misconfigured { .. } | Self::Refused { .. } => false,
        }
    }
}

/// Lets through what holds a run up: at once, and the same again after a while.
#[derive(Debug, Default)]
pub struct HeldUp(Option<(String, Instant)>);

/// What still holds a run up after so long is told again.
const AGAIN: Duration = Duration::from_secs(10);

impl HeldUp {
    /// Whether to tell people. What differs in its numbers only is the same.
    pub fn is_news(&mut self, why: &str) -> bool {
        let kind: String = why.chars().filter(|c| !c.is_ascii_digit()).collect();
        let is_old = self.0.as_ref().is_some_and(|(told, at)| *told == kind && at.elapsed() < AGAIN);
        if !is_old {
            self.0 = Some((kind, Instant::now()));
        }
        !is_old
    }
}

/// How a run waits, and whom it tells of it.
#[derive(Clone)]
pub(super) struct Patience<'t> {
    stop: watch::Receiver<bool>,
    tell: Tell<'t>,
    limit: Duration,
}

impl Patience<'static> {
    /// Nothing is tried again, and nobody is told.
    pub(super) fn none() -> Self {
        Self { stop: watch::Sender::default().subscribe(), tell: &|_| {}, limit: Duration::ZERO }
    }
}

impl<'t> Patience<'t> {
    pub(super) fn new(stop: &watch::Receiver<bool>, tell: Tell<'t>) -> Self {
        Self { stop: stop.clone(), tell, limit: PATIENCE }
    }

    /// Tries again what fails for a passing reason, for about three minutes. Does not end a try that is under way.
    ///
    /// # Errors
    /// The last one; [`SyncError::Stopped`] where somebody asked for it meanwhile.
    pub(super) async fn tried<T, E: Passing, F: Future<Output = Result<T, E>>>(
        &self,
        mut work: impl FnMut() -> F,
    ) -> Result<T, SyncError> {
        let begun = Instant::now();
        let mut pauses = Pauses::new(Duration::from_millis(200), Duration::from_secs(10));
        loop {
            let error = match self.told_of(E::WHO, work()).await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if !error.passes() || begun.elapsed() >= self.limit {
                return Err(error.into());
            }
            self.held_up(format!("{error}; trying again"));
            self.rest(pauses.next_pause()).await?;
        }
    }

    async fn told_of<T>(&self, who: &str, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = sleep(SILENT) => self.held_up(format!("waiting for {who}")),
            }
        }
    }

    /// Waits for an answer of Clerk's API, or for a stop.
    ///
    /// # Errors
    /// That of the API; [`SyncError::Stopped`].
    pub(super) async fn asked<T>(
        &self,
        answer: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, SyncError> {
        self.stoppable(async { answer.await.map_err(SyncError::from) }).await
    }

    /// Waits for what can be dropped at any point.
    ///
    /// # Errors
    /// Those of `work`; [`SyncError::Stopped`] where somebody asked for it first.
    pub(super) async fn stoppable<T>(
        &self,
        work: impl Future<Output = Result<T, SyncError>>,
    ) -> Result<T, SyncError> {
        tokio::select! {
            biased;
            () = until(&self.stop, |stop| *stop) => Err(SyncError::Stopped),
            done = work => done,
        }
    }

    /// Waits so long, or for a stop.
    ///
    /// # Errors
    /// [`SyncError::Stopped`].
    pub(super) async fn rest(&self, pause: Duration) -> Result<(), SyncError> {
        let rest = async {
            sleep(pause).await;
            Ok(())
        };
        self.stoppable(rest).await
    }

    /// Does the work, and tells meanwhile where Clerk's API holds it up.
    pub(super) async fn told_of_clerk<T>(&self, api: &Api, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let mut trouble = api.trouble();
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                Ok(()) = trouble.changed() => {
                    if let Some(why) = trouble.borrow_and_update().clone() {
                        self.held_up(why);
                    }
                }
            }
        }
    }

    pub(super) fn tell(&self, told: Told) {
        (self.tell)(told);
    }

    pub(super) fn held_up(&self, why: String) {
        self.tell(Told::HeldUp(why));
    }
}
