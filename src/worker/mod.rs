//! Owns the worker's loop: receive, batch, hand to the pipeline, hold while the database is away, drain when asked.
//!
//! Promises: at most the prefetch is held; an outage burns no attempt; what has come back or failed before is tried
//! alone, in random order, so that a message that kills its worker takes no other along. Never touches SQL or AMQP.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use rand::RngExt;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant as Clock, sleep_until},
};
use tracing::{info, warn};

use crate::{
    pause::Pauses,
    queue::{Delivery, Subscription},
    shutdown::until,
    store::{Class, Store},
    telemetry::metrics::WorkerMetrics,
};

mod batch;
mod settings;
pub mod verdict;

use batch::{Held, Pipeline, Refusal, Report};
pub use settings::{Health, Settings};

/// Batches of one worker in their transactions at a time.
const BATCHES: usize = 4;
/// Bodies in one batch, in bytes; a single message may exceed it. A batch is held several times over while it is saved.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// A run of so many messages that all fail alone in the same way is no longer the messages' fault.
const RUN: usize = 50;
/// The same of rows that somebody keeps locked, since each is waited for.
const LOCKED_ROWS: usize = 5;

/// Works until `stop` turns true and everything received is settled, or nothing more can be settled because the
/// database is away. What is left then goes back to the queue with the subscription.
pub async fn run(
    subscription: Arc<dyn Subscription>,
    store: Arc<dyn Store>,
    settings: Settings,
    health: watch::Sender<Health>,
    stop: watch::Receiver<bool>,
) {
    let pipeline = Pipeline {
        store,
        subscription: Arc::clone(&subscription),
        settings: settings.clone(),
        metrics: WorkerMetrics::new(),
        stalled: watch::Sender::new(0),
    };
    Worker {
        stalled: pipeline.stalled.subscribe(),
        pipeline: Arc::new(pipeline),
        subscription,
        settings,
        health,
        fresh: VecDeque::new(),
        returned: Vec::new(),
        suspects: Vec::new(),
        suspected: None,
        outage: None,
        batches: JoinSet::new(),
        alone: false,
        probes: 0,
    }
    .run(stop)
    .await;
}

/// What a task of the worker's comes back with.
enum Finished {
    Batch(Report),
    /// A message that goes alone.
    Alone(Report),
    /// Held messages are on a retry queue.
    Parked,
}

/// A database that is away.
struct Outage {
    pauses: Pauses,
    probe_at: Clock,
}

struct Worker {
    pipeline: Arc<Pipeline>,
    subscription: Arc<dyn Subscription>,
    settings: Settings,
    health: watch::Sender<Health>,
    /// First deliveries, in the order of arrival.
    fresh: VecDeque<Held>,
    /// Came back, or failed before: tried alone.
    returned: Vec<Held>,
    /// Refused alone, all in the same way, while nothing else succeeded.
    suspects: Vec<Held>,
    /// That way, and when the last of them joined.
    suspected: Option<(Refusal, Clock)>,
    outage: Option<Outage>,
    batches: JoinSet<Finished>,
    /// One of those is being tried.
    alone: bool,
    stalled: watch::Receiver<usize>,
    probes: usize,
}

impl Worker {
    async fn run(mut self, stop: watch::Receiver<bool>) {
        let mut receiving = true;
        let mut stopping = false;
        let subscription = Arc::clone(&self.subscription);
        let mut stalled = self.stalled.clone();
        let mut upkeep = tokio::time::interval(Duration::from_secs(1));
        loop {
            self.launch(stopping);
            self.tell();
            let idle = self.batches.is_empty();
            if stopping && idle && (self.is_paused() || (!receiving && self.held() == 0)) {
                break;
            }
            if stopping && self.is_paused() && *self.stalled.borrow() > 0 {
                // A database that does not answer may never do so: what it was given comes back to another worker.
                break;
            }
            let batch_due =
                self.fresh.front().map(|held| Clock::from_std(held.since + self.settings.batch_wait));
            let probe_at = self.outage.as_ref().map(|outage| outage.probe_at);
            let verdict_at = self.suspected.as_ref().map(|(_, at)| *at + self.settings.suspicion);
            let now = Clock::now();
            tokio::select! {
                delivery = subscription.next(), if receiving => match delivery {
                    Some(delivery) => {
                        self.take(delivery);
                        // Whatever else is here already, without going to sleep over each.
                        while let Some(Some(delivery)) = subscription.next().now_or_never() {
                            self.take(delivery);
                        }
                    }
                    None => receiving = false,
                },
                Some(finished) = self.batches.join_next() => match finished {
                    Ok(Finished::Batch(report)) => self.learn(report),
                    Ok(Finished::Alone(report)) => {
                        self.alone = false;
                        self.learn(report);
                    }
                    Ok(Finished::Parked) => {}
                    // Its deliveries come back with the connection; nothing was settled that was not committed.
                    Err(error) => warn!("a batch was lost in this process: {error}"),
                },
                () = until(&stop, |stop| *stop), if !stopping => {
                    stopping = true;
                    subscription.cancel().await;
                }
                _ = stalled.changed() => {}
                _ = upkeep.tick() => self.park_overdue(),
                () = sleep_until(batch_due.unwrap_or(now)), if batch_due.is_some_and(|due| due > now) => {}
                () = sleep_until(probe_at.unwrap_or(now)), if probe_at.is_some_and(|at| at > now) => {}
                () = sleep_until(verdict_at.unwrap_or(now)), if verdict_at.is_some_and(|at| at > now) => {}
            }
        }
        self.batches.detach_all();
    }

    fn take(&mut self, delivery: Delivery) {
        let held = Held { delivery, since: Instant::now() };
        if held.goes_alone() {
            self.returned.push(held);
        } else {
            self.fresh.push_back(held);
        }
    }

    fn held(&self) -> usize {
        self.fresh.len() + self.returned.len() + self.suspects.len()
    }

    fn is_paused(&self) -> bool {
        self.outage.is_some() || *self.stalled.borrow() > 0
    }

    /// Starts what may be started now.
    fn launch(&mut self, stopping: bool) {
        if *self.stalled.borrow() > 0 {
            return;
        }
        if let Some(outage) = &self.outage {
            if self.batches.is_empty() && outage.probe_at <= Clock::now() && !stopping {
                self.probe();
            }
            return;
        }
        if let Some((refusal, at)) = &self.suspected
            && (*at + self.settings.suspicion <= Clock::now() || stopping)
            && self.batches.is_empty()
        {
            match refusal.class {
                // It says nothing about them that nothing else was taken.
                Class::Unclear if stopping => self.park_suspects(),
                Class::Unclear => self.retry_suspects(false),
                Class::Permanent | Class::Transient | Class::Outage | Class::Unusable => {
                    self.retry_suspects(true);
                }
            }
        }
        if !self.alone && !self.returned.is_empty() && self.batches.len() < BATCHES {
            let any = rand::rng().random_range(0..self.returned.len());
            let held = self.returned.swap_remove(any);
            self.alone = true;
            let pipeline = Arc::clone(&self.pipeline);
            self.batches.spawn(async move { Finished::Alone(pipeline.process(vec![held], false).await) });
        }
        while self.batches.len() < BATCHES && self.batch_is_due(stopping) {
            let batch = self.next_batch();
            self.start(batch, false);
        }
    }

    /// A lone message goes at once; under load, while others are in their transactions, batches fill.
    fn batch_is_due(&self, stopping: bool) -> bool {
        self.fresh.front().is_some_and(|oldest| {
            self.batches.is_empty()
                || stopping
                || self.fresh.len() >= self.settings.batch_max
                || oldest.since.elapsed() >= self.settings.batch_wait
        })
    }

    fn next_batch(&mut self) -> Vec<Held> {
        let mut bytes = 0;
        let within = self.fresh.iter().take(self.settings.batch_max).take_while(|held| {
            bytes += held.delivery.message.body.len();
            bytes <= BATCH_BYTES
        });
        let count = within.count().max(1).min(self.fresh.len());
        self.fresh.drain(..count).collect()
    }

    fn start(&mut self, batch: Vec<Held>, convict: bool) {
        let pipeline = Arc::clone(&self.pipeline);
        self.batches.spawn(async move { Finished::Batch(pipeline.process(batch, convict).await) });
    }

    /// Tries one message, to learn whether the database is back: by turns one that was refused and another.
    fn probe(&mut self) {
        self.probes += 1;
        let suspect = if self.probes.is_multiple_of(2) { self.suspects.pop() } else { None };
        let held = suspect
            .or_else(|| self.returned.pop())
            .or_else(|| self.fresh.pop_front())
            .or_else(|| self.suspects.pop());
        match held {
            Some(held) => self.start(vec![held], false),
            None => self.outage = None,
        }
    }

    fn retry_suspects(&mut self, convict: bool) {
        self.suspected = None;
        if !self.suspects.is_empty() {
            let suspects = std::mem::take(&mut self.suspects);
            self.start(suspects, convict);
        }
    }

    fn learn(&mut self, report: Report) {
        if report.applied {
            if self.outage.take().is_some() {
                info!("the database takes messages again; going on with {} held", self.held());
            }
            // The database takes others' values: a refusal is the message's own fault, if it is refused again.
            self.retry_suspects(true);
        } else if report.outage.is_none() && report.suspects.is_empty() && self.suspects.is_empty() {
            // It answered, if only that there was nothing to change.
            if self.outage.take().is_some() {
                info!("the database answers again; going on with {} held", self.held());
            }
        }
        for held in report.unfinished.into_iter().rev() {
            if held.goes_alone() {
                self.returned.push(held);
            } else {
                self.fresh.push_front(held);
            }
        }
        let refused = !report.suspects.is_empty();
        for (held, refusal) in report.suspects {
            self.suspect(held, refusal);
        }
        if let Some(why) = report.outage {
            self.pause(why);
        } else if self.suspects.len() >= self.run_limit() || (refused && self.outage.is_some()) {
            let code = self.suspected.as_ref().map(|(refusal, _)| refusal.code.as_str()).unwrap_or_default();
            self.pause(format!("it refuses every message with SQLSTATE {code}"));
        }
    }

    fn run_limit(&self) -> usize {
        let locked = self.suspected.as_ref().is_some_and(|(refusal, _)| refusal.class == Class::Unclear);
        if locked { LOCKED_ROWS } else { RUN }
    }

    fn park_suspects(&mut self) {
        self.suspected = None;
        let suspects = std::mem::take(&mut self.suspects);
        self.park(suspects);
    }

    fn suspect(&mut self, held: Held, refusal: Refusal) {
        // A lock says nothing of what the database takes: it neither ends a run nor joins one.
        let locked = |refusal: &Refusal| refusal.class == Class::Unclear;
        let known = self.suspected.as_ref().map(|(known, _)| known);
        if known.is_some_and(|known| *known != refusal && !locked(known) && !locked(&refusal)) {
            // Not one and the same: the run has ended, and what was in it stands for itself.
            self.retry_suspects(true);
            self.suspected = Some((refusal, Clock::now()));
        } else if known.is_none_or(locked) || !locked(&refusal) {
            self.suspected = Some((refusal, Clock::now()));
        }
        self.suspects.push(held);
    }

    fn pause(&mut self, why: String) {
        let outage = self.outage.get_or_insert_with(|| {
            warn!(
                "the database is away; holding {} messages and waiting: {why}",
                self.fresh.len() + self.returned.len()
            );
            Outage {
                pauses: Pauses::new(Duration::from_millis(200), Duration::from_secs(5)),
                probe_at: Clock::now(),
            }
        });
        outage.probe_at = Clock::now() + outage.pauses.next_pause();
        self.health.send_if_modified(|health| {
            let why = Some(why);
            let changed = health.paused != why;
            health.paused = why;
            changed
        });
    }

    /// Publishes how the worker is, where that has changed.
    fn tell(&self) {
        let stalled = *self.stalled.borrow() > 0;
        let paused = self.is_paused();
        self.pipeline.metrics.paused.set(if paused { 1.0 } else { 0.0 });
        self.health.send_if_modified(|health| match (paused, health.paused.is_some()) {
            (true, false) => {
                let why = if stalled { "the database does not answer" } else { "the database is away" };
                if stalled {
                    warn!("{why}; holding messages and waiting");
                }
                health.paused = Some(why.into());
                true
            }
            (false, true) => {
                health.paused = None;
                true
            }
            _ => false,
        });
    }

    /// Neither the broker's consumer timeout nor its delivery limit may touch what an outage makes us hold.
    fn park_overdue(&mut self) {
        let limit = self.settings.hold_limit;
        let overdue = |held: &Held| held.since.elapsed() >= limit;
        let mut parked: Vec<Held> = self.returned.extract_if(.., |held| overdue(held)).collect();
        parked.extend(self.suspects.extract_if(.., |held| overdue(held)));
        while self.fresh.front().is_some_and(overdue) {
            parked.extend(self.fresh.pop_front());
        }
        if !parked.is_empty() {
            warn!(
                "parking {} messages that were held for {}",
                parked.len(),
                humantime::format_duration(limit)
            );
            self.park(parked);
        }
    }

    fn park(&mut self, held: Vec<Held>) {
        let pipeline = Arc::clone(&self.pipeline);
        self.batches.spawn(async move {
            pipeline.park(held).await;
            Finished::Parked
        });
    }
}
