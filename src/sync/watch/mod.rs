//! Owns noticing by itself that Clerk's webhooks were lost, and healing it. One process of all watches: the one that holds the
//! lease [`LEASE`]. Promises that a lost change is read from Clerk's API and published soon after its webhook has had its
//! chance; that a lost deletion starts the search for those who are gone; and that people are told where webhooks do not
//! arrive. Deletes nobody itself: that is for a whole run, with its safety.
//!
//! `look` looks at Clerk, `runs` does the whole runs. Pure are `pages` (how far back), `lacking` (whom to heal), `due` (when a whole run is due) and
//! `alarm`. `state` is what the holder writes into the lease.

use std::time::Duration;

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, info, warn};

use self::{
    alarm::Change,
    look::{Looked, Looking},
    runs::{BY_SCHEDULE, BY_WATCH, News, Runs},
    state::{State, Trouble},
};
use super::{
    Sync, SyncError,
    lease::{Held, RENEWED},
};
use crate::{
    clerk::api::{Api, ApiError, clock_hint, clock_says, is_clock_wrong},
    pause::Recovery,
    stop::until,
    store::{
        StoreError,
        sync::{InstanceRow, Lease},
    },
    telemetry::metrics::WatchMetrics,
    time::now,
};

pub mod alarm;
pub mod due;
pub mod lacking;
mod look;
pub mod pages;
mod runs;
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
    let runs = Runs::default();
    let attending = Attending { watch: &watch, orders, runs: &runs, metrics: &metrics, stop: &stop };
    tokio::join!(attending.attend(), runs.work_off(&watch.sync, ordered, &metrics, &stop));
}

fn with_hint(error: &SyncError) -> String {
    error.hint().map_or_else(|| error.to_string(), |hint| format!("{error}; {hint}"))
}

/// How it went with the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Led {
    /// Another process has it, or this one is stopping.
    Done,
    /// It was of no use: people have to mend something of this process first.
    InVain,
}

/// Attends to the lease.
struct Attending<'w> {
    watch: &'w Watch,
    orders: mpsc::Sender<&'static str>,
    runs: &'w Runs,
    metrics: &'w WatchMetrics,
    stop: &'w watch::Receiver<bool>,
}

impl Attending<'_> {
    /// Tries again and again to get the lease, and watches while it has it.
    async fn attend(self) {
        let mut told = false;
        loop {
            let mut rest = RENEWED;
            match self.lead().await {
                Ok(Led::Done) => told = false,
                // Another process may have a key that Clerk takes: it gets its turn.
                Ok(Led::InVain) => rest = MENDED,
                // The worker logs that the database is away; what else it says is about these tables alone.
                Err(error) if error.is_outage() => debug!("Clerk is not watched by this process: {error}"),
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        warn!("this process cannot watch Clerk: {error}{}", error.hint_after("; "));
                    }
                }
            }
            tokio::select! {
                () = sleep(rest.mul_f64(rand::random_range(0.8..1.2))) => {}
                () = until(self.stop, |stop| *stop) => return,
            }
        }
    }

    /// Takes the lease if it is free, and watches until it is lost or `stop` turns true.
    async fn lead(&self) -> Result<Led, StoreError> {
        let Sync { store, holder, .. } = &self.watch.sync;
        let before = store.lease(LEASE).await?;
        // Most of the time another process has it: then nothing is locked or written.
        let is_theirs = |lease: &Lease| !lease.expired && lease.holder != Some(holder.id);
        if before.as_ref().is_some_and(is_theirs) {
            // What this process said when it watched is the other's to say now.
            self.watch.notices.send_replace(Vec::new());
            return Ok(Led::Done);
        }
        let Ok(held) = Held::take_free(store, LEASE, holder).await? else { return Ok(Led::Done) };
        let Some(taken) = store.lease(LEASE).await? else { return Ok(Led::Done) };
        let mut state = State::taken_over(before.as_ref(), &taken, self.watch.api.now());
        info!("this process watches Clerk, for all");
        let led = tokio::select! {
            () = held.lost() => {
                warn!("this process watches Clerk no longer: its lease could not be renewed");
                Led::Done
            }
            led = self.work(&mut state) => led,
            () = until(self.stop, |stop| *stop) => Led::Done,
        };
        // What a look that was cut off has healed is to be known as well.
        self.tell(&state).await;
        self.metrics.not_known();
        if led == Led::Done {
            self.watch.notices.send_replace(Vec::new());
        }
        held.give_back().await;
        Ok(led)
    }

    /// Returns once another process has the lease, or this one cannot make use of it.
    async fn work(&self, state: &mut State) -> Led {
        let looks = async {
            match self.watch.every.is_zero() {
                true => {
                    state.looks_are_off();
                    self.tell(state).await;
                    std::future::pending().await
                }
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
            led = looks => led,
            led = schedule => led,
        }
    }

    async fn look_again_and_again(&self, state: &mut State) -> Led {
        let mut looking = None;
        let mut recovery = Recovery::new(RENEWED, RENEWED);
        loop {
            let begun = Instant::now();
            match self.look(&mut looking, state).await {
                Ok(()) => {
                    // A former holder may have left one.
                    let before = state.error.take();
                    if recovery.works() || before.is_some() {
                        info!("Clerk's API answers again");
                    }
                }
                Err(SyncError::Store(error)) => {
                    self.not_looked(state);
                    debug!("Clerk was not looked at: {error}");
                }
                Err(error) => {
                    self.not_looked(state);
                    let before = state.error.take();
                    let mut trouble = Trouble::of(&error, now());
                    let is_new =
                        before.as_ref().is_none_or(|before| !same(&before.message, &trouble.message));
                    if recovery.failed() || is_new {
                        warn!("Clerk cannot be watched at present: {}", with_hint(&error));
                    }
                    if let Some(before) = before.filter(|_| !is_new) {
                        trouble.since = before.since;
                    }
                    state.error = Some(trouble);
                    if is_lasting(&error) {
                        return Led::InVain;
                    }
                }
            }
            if !self.tell(state).await {
                info!("another process watches Clerk now");
                return Led::Done;
            }
            sleep_until(begun + self.watch.every).await;
        }
    }

    fn not_looked(&self, state: &mut State) {
        state.not_looked(self.watch.every + self.watch.sync.grace, self.watch.api.now());
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
                *state = State { began_at: self.watch.api.now(), ..State::default() };
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
        let News { healed, began, ended } = self.runs.news();
        if let Some(ended) = ended {
            state.counted.ended(ended);
        }
        state.count_healed(&healed, now());
        // A whole run has read what changed before it began.
        state.looked_at = state.looked_at.max(began);
    }

    /// Starts a whole run where a look is not enough.
    fn order(&self, looked: Looked, state: &mut State) {
        let (why, may_run) = match looked {
            Looked { too_many: true, .. } => {
                ("more users have changed than the watch reads", state.counted.may_run(now()))
            }
            Looked { more_here: true, .. } => (
                "for ten minutes there have been more users here than in Clerk",
                state.counted.may_search(now()),
            ),
            Looked { .. } => return,
        };
        if may_run && self.start(BY_WATCH) {
            info!("the watch starts a sync: {why}");
            state.counted.ran_at = Some(now());
        }
    }

    /// Starts a whole run, unless one is on.
    fn start(&self, who: &'static str) -> bool {
        !self.runs.is_running() && self.orders.try_send(who).is_ok()
    }

    fn judge(&self, instances: &[InstanceRow], state: &mut State) {
        state.clock_offset_ms = self.watch.api.clock_offset();
        // Another instance's webhooks say nothing about those of the table's. One that names none counts as the table's.
        let owner = instances.iter().find(|row| row.owner);
        let last_webhook_at = owner.and_then(|row| row.last_webhook_at);
        let ahead = state.clock_offset_ms.filter(|&offset| !is_clock_wrong(offset)).unwrap_or_default();
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
        let wrong = state.clock_offset_ms.filter(|&offset| is_clock_wrong(offset));
        let clock = wrong.map(|offset| format!("{}; {}", clock_says(offset), clock_hint(offset)));
        let error = state.error.as_ref().map(Trouble::says);
        let refused = state.counted.refused.as_ref().map(|refused| refused.trouble.says());
        let notices: Vec<String> = alarm.into_iter().chain(error).chain(refused).chain(clock).collect();
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
    async fn keep_to(&self, every: Duration) -> Led {
        let (mut tried_at, mut told) = (None, false);
        loop {
            match self.watch.sync.store.real_runs(RUNS).await {
                Ok(runs) if due::is_scheduled(&runs, every, tried_at, now()) => {
                    if self.start(BY_SCHEDULE) {
                        info!("the sync that is due by HEADCOUNT_SYNC_EVERY starts");
                    }
                    tried_at = Some(now());
                }
                Ok(_) => {}
                Err(error) if error.is_outage() => debug!("whether a sync is due is not known: {error}"),
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        warn!("whether a sync is due is not known: {error}{}", error.hint_after("; "));
                    }
                }
            }
            sleep(SCHEDULE.min(every)).await;
        }
    }
}

/// Whether two messages differ in their numbers at most: how long to wait, say.
fn same(one: &str, other: &str) -> bool {
    let words = |text: &str| {
        text.split(|c: char| !c.is_alphabetic())
            .filter(|word| word.len() > 3)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    words(one) == words(other)
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
