//! Owns the whole runs that the watch and the schedule start: one after the other, beside the looks. Promises that the next look
//! learns what they did and how they ended, whoever holds the lease of the watch meanwhile.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use super::{
    due::Ended,
    state::{Healed, Trouble},
    with_hint,
};
use crate::{
    sync::{HeldUp, Order, Report, Sync, SyncError, Told, owner::Unknown, place::Cursor},
    telemetry::metrics::WatchMetrics,
    time::{Millis, now},
};

/// Who starts a run because a look is not enough, ...
pub(super) const BY_WATCH: &str = "watch";
/// ... and who because of `HEADCOUNT_SYNC_EVERY`.
pub(super) const BY_SCHEDULE: &str = "schedule";

/// The newest runs, among which those of this process are looked for.
const NEWEST: u32 = 20;

/// What the runs of this process have done since it was looked at last.
#[derive(Debug, Default)]
pub(super) struct Runs(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// One is on.
    running: bool,
    news: News,
}

/// What runs have done.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) healed: Healed,
    /// When the last run that read everybody began, by Clerk's clock.
    pub(super) began: Option<Millis>,
    /// How the last one ended.
    pub(super) ended: Option<Ended>,
}

impl Runs {
    /// A run is on.
    pub(super) fn is_running(&self) -> bool {
        self.state().running
    }

    /// What there is to tell since the last time.
    pub(super) fn news(&self) -> News {
        std::mem::take(&mut self.state().news)
    }

    /// Does the runs that are ordered, by who orders them. They go on where the lease of the watch is lost meanwhile: they have
    /// one of their own.
    pub(super) async fn work_off(
        &self,
        sync: &Sync,
        mut ordered: mpsc::Receiver<&'static str>,
        metrics: &WatchMetrics,
        stop: &watch::Receiver<bool>,
    ) {
        while let Some(who) = ordered.recv().await {
            self.state().running = true;
            let held_up = Mutex::new(HeldUp::default());
            let held_up_by = |told| {
                if let Told::HeldUp(why) = told
                    && held_up.lock().unwrap_or_else(PoisonError::into_inner).is_news(&why)
                {
                    warn!(who, "a sync is held up: {why}");
                }
            };
            let result = sync.run(&Order::by(who), Unknown::Check, &held_up_by, stop).await;
            let (healed, began, ended) = match result {
                Ok(report) => {
                    info!(run = %report.run, who, "a sync has ended: {}", summary(&report));
                    let counts = report.counts;
                    let healed =
                        Healed { missing: counts.missing, outdated: counts.outdated, gone: counts.gone };
                    (healed, Some(report.began), Ended::Done)
                }
                Err(error) => {
                    tell(who, &error);
                    // Whoever is refused has read everybody before.
                    let began = if error.is_refusal() { began_last(sync).await } else { None };
                    (Healed::default(), began, ended(who, &error))
                }
            };
            for (kind, users) in healed.by_kind() {
                metrics.healed(kind, users);
            }
            let mut state = self.state();
            state.running = false;
            state.news.healed.add(&healed);
            state.news.began = began.or(state.news.began);
            state.news.ended = Some(ended);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell(who: &str, error: &SyncError) {
    match error {
        error if error.is_busy() => debug!(who, "no sync: {error}"),
        SyncError::Stopped => {}
        error => warn!(who, "a sync has failed: {}", with_hint(error)),
    }
}

fn ended(who: &str, error: &SyncError) -> Ended {
    if error.is_busy() {
        Ended::Busy
    } else if error.is_refusal() {
        Ended::Refused(Trouble::of(error, now()))
    } else if who == BY_WATCH && error.passes() {
        Ended::Passing
    } else {
        Ended::Failed
    }
}

/// When the run began that this process has worked on last, by Clerk's clock.
async fn began_last(sync: &Sync) -> Option<Millis> {
    let runs = sync.store.real_runs(NEWEST).await.ok()?;
    let ours = runs.into_iter().find(|run| run.holder == sync.holder.id)?;
    Cursor::read(ours.cursor.as_deref()).map(|cursor| cursor.began)
}

fn summary(report: &Report) -> String {
    let counts = &report.counts;
    format!(
        "{} users in Clerk; {} were missing here, {} outdated, {} different, {} gone",
        counts.clerk, counts.missing, counts.outdated, counts.different, counts.gone
    )
}
