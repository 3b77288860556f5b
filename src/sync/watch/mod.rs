//! Owns noticing by itself that Clerk's webhooks were lost, and healing it. One process of all watches: the one that holds the
//! lease [`LEASE`]. Promises that a lost change is read from Clerk's API and published soon after its webhook has had its
//! chance; that a lost deletion starts the search for those who are gone; and that people are told where webhooks do not
//! arrive. Deletes nobody itself: that is for a whole run, with its safety.
//!
//! `look` looks at Clerk. Pure are `pages` (how far back), `lacking` (whom to heal), `due` (when a whole run is due) and
//! `alarm`. `state` is what the holder writes into the lease.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, info, warn};

use self::{
    alarm::Change,
    look::{Looked, Looking},
    state::{Healed, State, Trouble},
};
use super::{
    Order, Report, Sync, SyncError,
    lease::{Held, RENEWED},
    owner::Unknown,
};
use crate::{
    clerk::api::{Api, ApiError},
    pause::Recovery,
    stop::until,
    store::{
        StoreError,
        sync::{InstanceRow, Lease},
    },
    telemetry::metrics::WatchMetrics,
    time::{Millis, now},
};

pub mod alarm;
pub mod due;
pub mod lacking;
mod look;
pub mod pages;
pub mod state;

/// The name of the lease.
pub const LEASE: &str = "watch";

/// How long one look tries again what fails: once, because the next look is near.
pub const PATIENCE: Duration = Duration::from_millis(300);
/// Requests per second of looks, beside those of whole runs.
pub const RATE: f64 = 2.0;
/// After an error that people have to mend the next look waits for so long.
const MENDED: Duration = Duration::from_secs(180);
/// How often it is looked at whether a scheduled run is due, at most.
const SCHEDULE: Duration = Duration::from_secs(30);
/// So many of the newest runs tell whether one is due.
const RUNS: u32 = 100;

/// What the watch needs.
#[derive(Debug)]
pub struct Watch {
    /// For whole runs.
    pub sync: Sync,
    /// For looks: with [`PATIENCE`] and [`RATE`].
    pub api: Api,
    /// `HEADCOUNT_WATCH`; zero is off.
    pub every: Duration,
    /// `HEADCOUNT_SYNC_EVERY`
    pub schedule: Option<Duration>,
    /// What people should know, a sentence each; empty in a process that does not hold the lease.
    pub notices: watch::Sender<Vec<String>>,
}

/// Watches while this process holds the lease, until `stop` turns true.
pub async fn run(watch: Watch, stop: watch::Receiver<bool>) {
    let (orders, ordered) = mpsc::channel(1);
    let metrics = WatchMetrics::new();
    let runs = Mutex::new(Runs::default());
    let attending = Attending { watch: &watch, orders, runs: &runs, metrics: &metrics, stop: &stop };
    tokio::join!(attending.attend(), work_off(&watch.sync, ordered, &runs, &metrics, &stop));
}

/// The whole runs of this process: what they have done since it was looked at last.
#[derive(Debug, Default)]
struct Runs {
    /// One is on.
    running: bool,
    healed: Healed,
    /// When the last run that did all it was to do began, by Clerk's clock.
    began: Option<Millis>,
}

/// Does the whole runs that are ordered, one after the other. They go on where the lease of the watch is lost meanwhile: they
/// have one of their own.
async fn work_off(
    sync: &Sync,
    mut ordered: mpsc::Receiver<&'static str>,
    runs: &Mutex<Runs>,
    metrics: &WatchMetrics,
    stop: &watch::Receiver<bool>,
) {
    while let Some(who) = ordered.recv().await {
        let began = now() + sync.api.clock_offset().unwrap_or_default();
        of(runs).running = true;
        let result = sync.run(&Order::by(who), Unknown::Check, &|_| {}, stop).await;
        of(runs).running = false;
        match result {
            Ok(report) => {
                info!(run = %report.run, who, "a sync has ended: {}", summary(&report));
                let counts = report.counts;
                let healed = Healed { missing: counts.missing, outdated: counts.outdated, gone: counts.gone };
                for (kind, users) in healed.by_kind() {
                    metrics.healed(kind, users);
                }
                let mut runs = of(runs);
                runs.healed.add(&healed);
                runs.began = Some(began);
            }
            Err(error) if error.is_busy() => debug!(who, "no sync: {error}"),
            Err(SyncError::Stopped) => {}
            Err(error) => warn!(who, "a sync has failed: {}", with_hint(&error)),
        }
    }
}

fn of(runs: &Mutex<Runs>) -> MutexGuard<'_, Runs> {
    runs.lock().unwrap_or_else(PoisonError::into_inner)
}

fn summary(report: &Report) -> String {
    let counts = &report.counts;
    format!(
        "{} users in Clerk; {} were missing here, {} outdated, {} different, {} gone",
        counts.clerk, counts.missing, counts.outdated, counts.different, counts.gone
    )
}

fn with_hint(error: &SyncError) -> String {
    error.hint().map_or_else(|| error.to_string(), |hint| format!("{error}; {hint}"))
}

/// Attends to the lease.
struct Attending<'w> {
    watch: &'w Watch,
    orders: mpsc::Sender<&'static str>,
    runs: &'w Mutex<Runs>,
    metrics: &'w WatchMetrics,
    stop: &'w watch::Receiver<bool>,
}

impl Attending<'_> {
    /// Tries again and again to get the lease, and watches while it has it.
    async fn attend(self) {
        let mut told = false;
        loop {
            match self.lead().await {
                Ok(()) => told = false,
                // The worker logs that the database is away; what else it says is about these tables alone.
                Err(error) if error.is_outage() => debug!("Clerk is not watched by this process: {error}"),
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        warn!("this process cannot watch Clerk: {error}{}", error.hint_after("; "));
                    }
                }
            }
            tokio::select! {
                () = sleep(RENEWED.mul_f64(rand::random_range(0.8..1.2))) => {}
                () = until(self.stop, |stop| *stop) => return,
            }
        }
    }

    /// Takes the lease if it is free, and watches until it is lost or `stop` turns true.
    async fn lead(&self) -> Result<(), StoreError> {
        let Sync { store, holder, .. } = &self.watch.sync;
        let before = store.lease(LEASE).await?;
        // Most of the time another process has it: then nothing is locked or written.
        let is_theirs = |lease: &Lease| !lease.expired && lease.holder != Some(holder.id);
        if before.as_ref().is_some_and(is_theirs) {
            return Ok(());
        }
        let Ok(held) = Held::take_free(store, LEASE, holder).await? else { return Ok(()) };
        let Some(taken) = store.lease(LEASE).await? else { return Ok(()) };
        let mut state = State::taken_over(before.as_ref(), &taken, self.clerks_time());
        info!("this process watches Clerk, for all");
        tokio::select! {
            () = held.lost() => warn!("this process watches Clerk no longer: its lease could not be renewed"),
            () = self.work(&mut state) => info!("another process watches Clerk now"),
            () = until(self.stop, |stop| *stop) => {}
        }
        // What a look that was cut off has healed is to be known as well.
        self.tell(&state).await;
        self.metrics.not_known();
        self.watch.notices.send_replace(Vec::new());
        held.give_back().await;
        Ok(())
    }

    /// Returns once another process has the lease.
    async fn work(&self, state: &mut State) {
        let looks = async {
            match self.watch.every.is_zero() {
                true => std::future::pending().await,
                false => self.look_again_and_again(state).await,
            }
        };
        let schedule = async {
            match self.watch.schedule {
                Some(every) => self.keep_to(every).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = looks => {}
            () = schedule => {}
        }
    }

    async fn look_again_and_again(&self, state: &mut State) {
        let mut looking = None;
        let mut recovery = Recovery::new(RENEWED, RENEWED);
        loop {
            let begun = Instant::now();
            let pause = match self.look(&mut looking, state).await {
                Ok(()) => {
                    state.error = None;
                    if recovery.works() {
                        info!("Clerk's API answers again");
                    }
                    self.watch.every
                }
                Err(SyncError::Store(error)) => {
                    debug!("Clerk was not looked at: {error}");
                    self.watch.every
                }
                Err(error) => {
                    if recovery.failed() {
                        warn!("Clerk cannot be watched: {}", with_hint(&error));
                    }
                    let since = state.error.take().map_or_else(now, |before| before.since);
                    state.error = Some(Trouble { since, message: error.to_string(), hint: error.hint() });
                    if is_lasting(&error) { self.watch.every.max(MENDED) } else { self.watch.every }
                }
            };
            if !self.tell(state).await {
                return;
            }
            sleep_until(begun + pause).await;
        }
    }

    async fn look(&self, looking: &mut Option<Looking>, state: &mut State) -> Result<(), SyncError> {
        let sync = Sync { api: self.watch.api.clone(), ..self.watch.sync.clone() };
        let instances = sync.store.instances().await?;
        self.judge(&instances, state);
        let owner = instances.iter().find(|row| row.owner).map(|row| row.instance_id.as_str());
        if looking.as_ref().is_none_or(|looking| Some(looking.instance()) != owner) {
            *looking = None;
            let instance = sync.owner().await?.id;
            if state.instance.as_ref().is_some_and(|before| *before != instance) {
                *state = State { began_at: self.clerks_time(), ..State::default() };
            }
            state.instance = Some(instance.clone());
            *looking = Some(Looking::new(sync, self.watch.every, instance, self.metrics.clone(), state));
        }
        let Some(looking) = looking else { return Ok(()) };
        let looked = looking.look(state).await?;
        self.account(state);
        self.order(looked, state);
        self.judge(&instances, state);
        Ok(())
    }

    /// Takes over what whole runs have done.
    fn account(&self, state: &mut State) {
        let (healed, began) = {
            let mut runs = of(self.runs);
            (std::mem::take(&mut runs.healed), runs.began.take())
        };
        state.count_healed(&healed, now());
        // A whole run has read what changed before it began.
        state.looked_at = state.looked_at.max(began);
    }

    /// Starts a whole run where a look is not enough.
    fn order(&self, looked: Looked, state: &mut State) {
        let why = match looked {
            Looked { too_many: true, .. } => "more users have changed than the watch reads",
            Looked { more_here: true, .. } => "for ten minutes there have been more users here than in Clerk",
            Looked { .. } => return,
        };
        if state.counted.may_run(now()) && self.start("watch") {
            info!("the watch starts a sync: {why}");
            state.counted.ran_at = Some(now());
        }
    }

    /// Starts a whole run, unless one is on.
    fn start(&self, who: &'static str) -> bool {
        !of(self.runs).running && self.orders.try_send(who).is_ok()
    }

    fn judge(&self, instances: &[InstanceRow], state: &mut State) {
        state.clock_offset_ms = self.watch.api.clock_offset();
        // Another instance's webhooks say nothing about those of the table's. One that names none counts as the table's.
        let owner = instances.iter().find(|row| row.owner);
        let last_webhook_at = owner.and_then(|row| row.last_webhook_at);
        let ahead = state.clock_offset_ms.unwrap_or_default();
        match alarm::judge(state, last_webhook_at, ahead, now()) {
            Some(Change::Raised(alarm)) => warn!("{alarm}; {}", alarm::HINT),
            Some(Change::Ended) => info!("Clerk's webhooks arrive again"),
            None => {}
        }
    }

    /// Tells everybody how it stands. `false`: another process has the lease.
    async fn tell(&self, state: &State) -> bool {
        if let Some(seconds) = state.behind_seconds {
            self.metrics.behind(seconds);
        }
        let alarm = state.alarm.map(|alarm| format!("{alarm}; {}", alarm::HINT));
        let notices: Vec<String> = alarm.into_iter().chain(state.error.as_ref().map(Trouble::says)).collect();
        self.watch.notices.send_if_modified(|told| {
            let changed = *told != notices;
            *told = notices;
            changed
        });
        let Ok(told) = serde_json::to_value(state) else { return true };
        let telling = self.watch.sync.store.tell_state(LEASE, self.watch.sync.holder.id, &told).await;
        // Where the database does not answer, renewing the lease tells whose it is.
        telling.unwrap_or(true)
    }

    /// Starts whole runs on schedule.
    async fn keep_to(&self, every: Duration) {
        let mut tried_at = None;
        loop {
            match self.watch.sync.store.runs(RUNS).await {
                Ok(runs) if due::is_scheduled(&runs, every, tried_at, now()) => {
                    if self.start("schedule") {
                        info!("the sync that is due by HEADCOUNT_SYNC_EVERY starts");
                    }
                    tried_at = Some(now());
                }
                Ok(_) => {}
                Err(error) => debug!("whether a sync is due is not known: {error}"),
            }
            sleep(SCHEDULE.min(every)).await;
        }
    }

    fn clerks_time(&self) -> Millis {
        now() + self.watch.api.clock_offset().unwrap_or_default()
    }
}

/// Whether people have to do something before the next look can succeed.
fn is_lasting(error: &SyncError) -> bool {
    matches!(
        error,
        SyncError::Api(ApiError::Key { .. } | ApiError::Setup { .. })
            | SyncError::OtherInstance { .. }
            | SyncError::Strangers { .. }
    )
}
