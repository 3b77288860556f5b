//! Owns the life of one subscription: receive, batch, apply, judge and settle, until asked to stop or nothing succeeds any
//! more. Promises to settle or give back all that it received before it ends. Never decides whose trouble a failure is.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use rand::seq::IteratorRandom;
use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, JoinSet},
};
use tracing::{debug, info, warn};

use super::{
    Worker,
    batch::{Failed, Finding, Findings, Held},
    blame::{Judgement, Moment, Silence},
    probe::{cancel, given_back},
    verdict::Verdict,
};
use crate::{
    pause::Pauses,
    queue::{Delivery, Subscription},
    stop::until,
    store::Class,
};

/// Batches of one worker in their transactions at a time.
const BATCHES: usize = 4;
/// Messages of one worker that are tried alone at a time, beside those that came back unsettled.
const ALONE: usize = 4;
/// Bodies in one batch, in bytes; a single message may exceed it. A batch is held several times over while it is saved.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Messages of one worker that came back unsettled and are tried alone at a time.
const RETURNING: usize = 4;
/// Transactions of one worker at a time: each has a connection of its own, so that none waits for one that hangs.
pub const TRANSACTIONS: u32 = (BATCHES + ALONE + RETURNING) as u32;
/// How long a message that has come back waits for its neighbours, for each time but the first that it came back, ...
const GRACE: Duration = Duration::from_millis(100);
/// ... and for how many of them.
const GRACES: u32 = 20;
/// How often the worker looks at what no event tells: the time, and deliveries that are no longer its own.
const TICK: Duration = Duration::from_millis(250);

/// How a shift ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Asked to stop; everything that was received is settled.
    Stopped,
    /// Nothing succeeds: everything has been given back.
    Outage,
}

/// Nothing succeeds at present.
struct Outage {
    pauses: Pauses,
    probe_at: Moment,
    give_back_at: Moment,
}

/// The life of one subscription.
pub(super) struct Shift<'w> {
    worker: &'w mut Worker,
    subscription: Arc<dyn Subscription>,
    begun: Instant,
    /// First deliveries, in the order of arrival.
    fresh: VecDeque<Held>,
    /// Came back unsettled: each may have killed its worker.
    returned: Vec<Held>,
    /// On the ladder, or left over from batches that failed.
    alone: VecDeque<Held>,
    /// Failed alone, and nothing proves yet whose trouble it is.
    suspects: Vec<Failed>,
    outage: Option<Outage>,
    /// Everything goes back.
    giving_back: bool,
    batches: JoinSet<()>,
    returning: JoinSet<()>,
    /// One of those has come back again and again.
    careful: bool,
    lone: JoinSet<()>,
    findings: Findings,
    found: mpsc::UnboundedReceiver<Finding>,
    probes: u32,
    /// Something has been learned that was not looked at.
    news: bool,
}

impl<'w> Shift<'w> {
    /// Begins with what the subscription has delivered already.
    pub(super) fn new(worker: &'w mut Worker, subscription: Arc<dyn Subscription>, held: Vec<Held>) -> Self {
        let (findings, found) = mpsc::unbounded_channel();
        let mut shift = Self {
            worker,
            subscription,
            begun: Instant::now(),
            fresh: VecDeque::new(),
            returned: Vec::new(),
            alone: VecDeque::new(),
            suspects: Vec::new(),
            outage: None,
            giving_back: false,
            batches: JoinSet::new(),
            returning: JoinSet::new(),
            careful: false,
            lone: JoinSet::new(),
            findings,
            found,
            probes: 0,
            news: true,
        };
        held.into_iter().for_each(|held| shift.hold(held));
        shift
    }

    pub(super) async fn work(mut self, stop: &watch::Receiver<bool>) -> Ended {
        let (mut receiving, mut stopping) = (true, false);
        let subscription = Arc::clone(&self.subscription);
        let mut tick = tokio::time::interval(TICK);
        loop {
            if std::mem::take(&mut self.news) {
                self.look(stopping);
            }
            if self.giving_back && receiving {
                receiving = false;
                for held in cancel(&subscription).await {
                    self.hold(held);
                }
                self.look(stopping);
            }
            self.launch(stopping);
            if !receiving && self.held() == 0 && self.is_idle() {
                // What has to be published to be settled may have to wait for the broker: that holds up nothing.
                return if stopping { Ended::Stopped } else { Ended::Outage };
            }
            let batch_due = self.batch_due_in();
            tokio::select! {
                delivery = subscription.next(), if receiving => match delivery {
                    Some(delivery) => {
                        self.take(delivery);
                        // Whatever else is here already, without going to sleep over each.
                        while let Some(Some(delivery)) = subscription.next().now_or_never() {
                            self.take(delivery);
                        }
                    }
                    None => {
                        receiving = false;
                        self.giving_back |= !stopping;
                        self.news = true;
                    }
                },
                Some(finding) = self.found.recv() => {
                    self.learn(finding);
                    while let Ok(finding) = self.found.try_recv() {
                        self.learn(finding);
                    }
                }
                Some(ended) = self.batches.join_next() => self.ended(ended),
                Some(ended) = self.returning.join_next() => self.ended(ended),
                Some(ended) = self.lone.join_next() => self.ended(ended),
                () = self.worker.settling.ended() => {}
                () = until(stop, |stop| *stop), if !stopping => {
                    (stopping, self.news) = (true, true);
                    subscription.cancel().await;
                }
                _ = tick.tick() => {
                    self.news = true;
                    self.drop_what_is_not_ours();
                }
                () = tokio::time::sleep(batch_due.unwrap_or_default()), if batch_due.is_some() => {}
            }
        }
    }

    fn take(&mut self, delivery: Delivery) {
        self.hold(Held::new(delivery, &self.subscription));
    }

    fn hold(&mut self, held: Held) {
        if held.delivery.earlier > 0 {
            self.returned.push(held);
        } else if held.delivery.message.attempt > 0 {
            self.alone.push_back(held);
        } else {
            self.fresh.push_back(held);
        }
    }

    fn held(&self) -> usize {
        self.fresh.len() + self.returned.len() + self.alone.len() + self.suspects.len()
    }

    fn is_idle(&self) -> bool {
        self.batches.is_empty() && self.returning.is_empty() && self.lone.is_empty() && self.found.is_empty()
    }

    /// Nothing is under way or left to be tried but suspects.
    fn has_nothing_else(&self) -> bool {
        self.is_idle() && self.held() == self.suspects.len()
    }

    /// A task of this worker's has ended; what it found is in the channel already.
    fn ended(&mut self, ended: Result<(), JoinError>) {
        if let Err(error) = ended {
            // What it held comes back with a new subscription, one delivery higher.
            warn!("a batch was lost in this process: {error}");
            (self.giving_back, self.news) = (true, true);
        }
    }

    /// Looks at what has been seen and at the time: who is to blame, and whether anything succeeds at all.
    fn look(&mut self, stopping: bool) {
        let now = self.worker.pipeline.moment();
        let silence = self.worker.settings.silence;
        match self.worker.blame.silence(now, silence) {
            Silence::Outage if self.outage.is_none() && !self.giving_back => {
                let why = match self.suspects.last() {
                    Some(suspect) => format!("nothing succeeds: {}", suspect.error),
                    None => "nothing succeeds".into(),
                };
                self.pause(&why);
            }
            Silence::Lone if self.outage.is_none() && self.has_nothing_else() => self.conclude_the_lone(),
            Silence::None | Silence::Lone | Silence::Outage => {}
        }
        if let Some(outage) = &self.outage {
            self.giving_back |= stopping || now >= outage.give_back_at;
        }
        if self.giving_back {
            let held = self.fresh.drain(..).chain(self.returned.drain(..)).chain(self.alone.drain(..));
            let held: Vec<Held> = held.chain(self.suspects.drain(..).map(|failed| failed.held)).collect();
            if !held.is_empty() {
                let count = held.len();
                info!(
                    "{count} message{} back to the queue, no attempt burned",
                    if count == 1 { " goes" } else { "s go" }
                );
                self.worker.settling.settle(given_back(held));
            }
        }
        if self.outage.is_none() {
            self.review_suspects(now, stopping);
        }
    }

    /// Suspects are tried again as soon as others have succeeded, and set aside where nothing is proved for too long.
    fn review_suspects(&mut self, now: Moment, stopping: bool) {
        let silence = self.worker.settings.silence;
        let blame = &self.worker.blame;
        let again: Vec<_> =
            self.suspects.extract_if(.., |failed| blame.may_be_proved(&failed.suspect())).collect();
        self.alone.extend(again.into_iter().map(|failed| failed.held));
        // While nothing at all succeeds it is not known whether this is an outage.
        let is_silent = blame.silent_since().is_some();
        let aside = |failed: &mut Failed| {
            let convicted = failed.suspect().convicted;
            stopping || (now.saturating_sub(failed.tried.ended) >= silence && (convicted || !is_silent))
        };
        let aside: Vec<_> = self.suspects.extract_if(.., aside).collect();
        for failed in aside {
            let lone = !stopping && self.worker.blame.is_lone(&failed.suspect());
            self.conclude(failed, lone);
        }
    }

    /// A suspect has waited for long enough: it is to blame, or set aside.
    fn conclude(&mut self, failed: Failed, guilty: bool) {
        let verdict = if guilty {
            self.worker.blame.cleared(failed.held.id());
            self.worker.guilty(&failed)
        } else {
            let id = failed.held.id();
            match self.worker.set_aside.is_first("set aside") {
                true => info!(message_id = %id, "message {id} is set aside: {}", failed.error),
                false => debug!(message_id = %id, "message {id} is set aside: {}", failed.error),
            }
            Verdict::set_aside(&failed.held.delivery.message, &self.worker.settings.ladder)
        };
        self.worker.settling.settle(vec![(failed.held, verdict)]);
    }

    /// One account's messages have failed, for long enough, and there was nothing else to be tried: refused values are the
    /// payload's fault, and all else waits for others to prove something.
    fn conclude_the_lone(&mut self) {
        let lone = |failed: &mut Failed| !failed.suspect().convicted;
        let lone: Vec<_> = self.suspects.extract_if(.., lone).collect();
        for failed in lone {
            let refused_values = failed.error.class == Class::Permanent;
            self.conclude(failed, refused_values);
        }
        self.worker.blame.break_silence();
    }

    /// Starts what may be started now.
    fn launch(&mut self, stopping: bool) {
        if self.giving_back {
            return;
        }
        if let Some(outage) = &self.outage {
            if self.is_idle() && outage.probe_at <= self.worker.pipeline.moment() {
                self.probe();
            }
            return;
        }
        while let Some(held) = self.next_returned() {
            let (pipeline, findings) = (Arc::clone(&self.worker.pipeline), self.findings.clone());
            self.returning.spawn(async move { pipeline.alone(held, &findings).await });
        }
        while self.lone.len() < ALONE
            && let Some(held) = self.alone.pop_front()
        {
            let (pipeline, findings) = (Arc::clone(&self.worker.pipeline), self.findings.clone());
            self.lone.spawn(async move { pipeline.alone(held, &findings).await });
        }
        while self.batches.len() < BATCHES && self.batch_is_due(stopping) {
            let batch = self.next_batch();
            let (pipeline, findings) = (Arc::clone(&self.worker.pipeline), self.findings.clone());
            self.batches.spawn(async move { pipeline.process(batch, &findings).await });
        }
    }

    /// Any of those that came back. A connection that is lost gives many back, so some are tried at a time. One that has
    /// come back again may kill this worker too: it comes after the others, with none of them beside it, and its neighbours
    /// get some time first, in each life of a worker.
    fn next_returned(&mut self) -> Option<Held> {
        self.careful &= !self.returning.is_empty();
        if self.careful || self.returning.len() >= RETURNING {
            return None;
        }
        let returns = |any: &usize| self.returned[*any].delivery.earlier;
        let any = (0..self.returned.len()).filter(|any| returns(any) <= 1).choose(&mut rand::rng());
        let any = any.or_else(|| (0..self.returned.len()).choose(&mut rand::rng()))?;
        let again = returns(&any).saturating_sub(1);
        if again > 0 {
            let alone = self.fresh.is_empty() && self.alone.is_empty() && self.batches.is_empty();
            let waited = alone || self.begun.elapsed() >= GRACE * again.min(GRACES);
            if !waited || !self.returning.is_empty() {
                return None;
            }
            self.careful = true;
        }
        Some(self.returned.swap_remove(any))
    }

    /// A lone message goes at once; under load, while others are in their transactions, batches fill.
    fn batch_is_due(&self, stopping: bool) -> bool {
        self.fresh.front().is_some_and(|oldest| {
            self.batches.is_empty()
                || stopping
                || self.fresh.len() >= self.worker.batch_limit
                || oldest.since.elapsed() >= self.worker.settings.batch_wait
        })
    }

    /// How long until waiting for more has to end; `None` where nothing waits or no place is free.
    fn batch_due_in(&self) -> Option<Duration> {
        let oldest = self.fresh.front()?;
        (self.batches.len() < BATCHES && self.outage.is_none())
            .then(|| self.worker.settings.batch_wait.saturating_sub(oldest.since.elapsed()))
    }

    fn next_batch(&mut self) -> Vec<Held> {
        let mut bytes = 0;
        let within = self.fresh.iter().take(self.worker.batch_limit).take_while(|held| {
            bytes += held.delivery.message.body.len();
            bytes <= BATCH_BYTES
        });
        let count = within.count().max(1).min(self.fresh.len());
        self.fresh.drain(..count).collect()
    }

    /// Tries one message, to learn whether the database is back: by turns one that failed and one that did not.
    fn probe(&mut self) {
        self.probes += 1;
        let count = self.suspects.len();
        let suspect = (count > 0).then(|| self.probes as usize / 2 % count);
        let suspect = |shift: &mut Self| suspect.map(|any| shift.suspects.swap_remove(any).held);
        let first = if self.probes.is_multiple_of(2) { suspect(self) } else { None };
        let held = first
            .or_else(|| self.alone.pop_front())
            .or_else(|| self.fresh.pop_front())
            .or_else(|| self.returned.pop())
            .or_else(|| suspect(self));
        match held {
            Some(held) => {
                let (pipeline, findings) = (Arc::clone(&self.worker.pipeline), self.findings.clone());
                self.lone.spawn(async move { pipeline.probe(held, &findings).await });
            }
            // There is nothing to give back, and nothing to try: the next message is taken with care.
            None => (self.giving_back, self.news) = (true, true),
        }
    }

    fn learn(&mut self, finding: Finding) {
        self.news = true;
        match finding {
            Finding::Unreadable(verdicts) => self.worker.settling.settle(verdicts),
            Finding::Committed { verdicts, changed, tried } => {
                self.worker.committed(&verdicts, &changed, tried);
                self.grow(verdicts.len());
                self.worker.settling.settle(verdicts);
                if !changed.is_empty() && !self.giving_back && self.outage.take().is_some() {
                    self.worker.teller.works();
                }
            }
            Finding::FailedTogether(at) => self.worker.blame.failed_together(at),
            Finding::Alone(held) => self.alone.extend(held),
            Finding::Failed(failed) => {
                match self.worker.blame.failed(&failed.suspect(), failed.tried) {
                    Judgement::Guilty => {
                        let verdict = self.worker.guilty(&failed);
                        self.worker.settling.settle(vec![(failed.held, verdict)]);
                    }
                    Judgement::Unproved => self.suspects.push(*failed),
                }
                self.pause_longer();
            }
            Finding::Unasked(held, why) => {
                for held in held.into_iter().rev() {
                    if held.delivery.earlier > 0 {
                        self.returned.push(held);
                    } else if held.delivery.message.attempt > 0 {
                        self.alone.push_front(held);
                    } else {
                        self.fresh.push_front(held);
                    }
                }
                self.pause(&why);
                self.pause_longer();
            }
            // Given back at once: whether it takes effect is not known, and it must not meet itself.
            Finding::Silent(held) => {
                self.worker.settling.settle(given_back(held));
                self.pause("the database does not answer");
            }
            Finding::Fits(size) => {
                let limit = size.min(self.worker.batch_limit);
                if limit < self.worker.batch_limit {
                    debug!("batches of {} fail as a whole; going on with {limit}", self.worker.batch_limit);
                }
                self.worker.batch_limit = limit;
            }
        }
    }

    /// Batches that are full and succeed may be larger again.
    fn grow(&mut self, size: usize) {
        let limit = self.worker.batch_limit;
        if size >= limit && limit < self.worker.settings.batch_max {
            self.worker.batch_limit = (limit + limit / 8 + 1).min(self.worker.settings.batch_max);
        }
    }

    fn pause(&mut self, why: &str) {
        let (now, silence) = (self.worker.pipeline.moment(), self.worker.settings.silence);
        let since = self.worker.blame.silent_since().unwrap_or(now);
        self.worker.teller.paused(why);
        self.outage.get_or_insert_with(|| Outage {
            pauses: Pauses::new(Duration::from_millis(200), Duration::from_secs(5)),
            probe_at: now,
            give_back_at: since + silence,
        });
    }

    /// A probe has failed: the next one comes later.
    fn pause_longer(&mut self) {
        let now = self.worker.pipeline.moment();
        if let Some(outage) = &mut self.outage {
            outage.probe_at = now + outage.pauses.next_pause();
        }
    }

    /// Deliveries of a connection that has ended, or of a lease that was lost, come again: dropped here, they are applied
    /// once and cost no memory.
    fn drop_what_is_not_ours(&mut self) {
        let before = self.held();
        self.fresh.retain(Held::is_ours);
        self.returned.retain(Held::is_ours);
        self.alone.retain(Held::is_ours);
        self.suspects.retain(|failed| failed.held.is_ours());
        let dropped = before - self.held();
        if dropped > 0 {
            info!("{dropped} messages are no longer this worker's, and come again");
        }
    }
}
