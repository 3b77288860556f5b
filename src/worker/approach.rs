//! Owns the way to the queue while the database is not known to take messages: at the start, and in an outage. Each
//! attempt first asks the database for a write of our own, then takes one message at a time, and gives back each that fails.
//! Promises to hold one message at most, and none between two attempts, so that nothing is held when a worker is killed
//! again and again during an outage. Only where that one message has come back again and again, and may be what kills its
//! workers, others are taken beside it and tried first.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rand::seq::SliceRandom;
use tokio::sync::{mpsc, watch};

use super::{Worker, batch::Progress, blame::Judgement, course::PAUSES, held::Held, verdict::Verdict};
use crate::{
    pause::Recovery,
    queue::{QueueError, Source, Subscription},
    stop::until,
};

/// Messages that one attempt may see fail, ...
const TRIES: u32 = 20;
/// ... and for how long.
const TRYING: Duration = Duration::from_secs(1);
/// So many messages that changed no user, while none failed, are as good as one that did.
const UNCHANGED: u32 = 20;
/// A queue in which nothing waits for so long has no message to try.
const IDLE: Duration = Duration::from_secs(2);
/// So many settlements that wait to be published are enough, before another message is taken.
const UNSETTLED: usize = 100;
/// A message that has come back so often may have killed its workers.
const KILLER: u32 = 2;
/// How long others are waited for that could be tried before it.
const GATHER: Duration = Duration::from_millis(200);

/// How an attempt ended.
enum Attempt {
    /// The database takes messages.
    Taken,
    /// The one message hangs. Whether others do is found out with all of them.
    Dares,
    /// Nothing could be applied.
    Failed(String),
    /// The worker was asked to stop.
    Stopped,
}

/// What became of the one message.
enum Tried {
    Changed,
    Unchanged,
    /// It is unreadable, or known to fail: that proves nothing.
    Nothing,
    Failed(String),
    /// It failed after so long that others may succeed which do not wait for it.
    Hung(String),
}

/// The subscription, and what it has delivered.
pub(super) type Begun = (Arc<dyn Subscription>, Vec<Held>);

impl Worker {
    /// Makes attempts until the database has taken a message. `None`: asked to stop before that.
    ///
    /// # Errors
    /// The queue cannot be consumed as configured, and never could.
    pub(super) async fn approach(
        &mut self,
        stop: &watch::Receiver<bool>,
    ) -> Result<Option<Begun>, QueueError> {
        let mut recovery = Recovery::new(PAUSES.0, PAUSES.1);
        let most = self.settling.count() + UNSETTLED;
        loop {
            // A frozen server does not answer at once, and nothing is in its hands that would be lost.
            let ready = tokio::select! {
                ready = self.pipeline.ready() => ready,
                () = until(stop, |stop| *stop) => return Ok(None),
            };
            let why = match ready {
                Err(why) => why,
                Ok(()) if self.settling.count() > most => {
                    "the broker does not take what has to be published".into()
                }
                Ok(()) => match self.queue.subscribe(Source::Events, 1).await {
                    Ok(subscription) => {
                        self.consumed = true;
                        let subscription: Arc<dyn Subscription> = subscription.into();
                        let mut held = Vec::new();
                        match self.try_some(&subscription, &mut held, stop).await {
                            Attempt::Taken | Attempt::Dares => return Ok(Some((subscription, held))),
                            Attempt::Stopped => return Ok(None),
                            Attempt::Failed(why) => why,
                        }
                    }
                    Err(error @ (QueueError::Misconfigured { .. } | QueueError::Refused { .. }))
                        if !self.consumed =>
                    {
                        return Err(error);
                    }
                    Err(error) => error.to_string(),
                },
            };
            self.health.paused(&why);
            if recovery.pause(until(stop, |stop| *stop)).await {
                return Ok(None);
            }
        }
    }

    /// Tries some messages, one at a time, until one succeeds or too many have failed. Deliveries that were not tried
    /// are left in `held` where one succeeds, and given back otherwise.
    async fn try_some(
        &mut self,
        subscription: &Arc<dyn Subscription>,
        held: &mut Vec<Held>,
        stop: &watch::Receiver<bool>,
    ) -> Attempt {
        let (mut failed, mut unchanged, mut idle, mut last) = (0, 0, false, String::new());
        let (mut trying, mut wide) = (None, false);
        let prefetch = self.settings.prefetch;
        loop {
            if held.is_empty() {
                let delivery = tokio::select! {
                    biased;
                    () = until(stop, |stop| *stop) => return self.stopped(subscription).await,
                    delivery = subscription.next() => delivery,
                    () = tokio::time::sleep(IDLE), if failed == 0 && !idle => {
                        // Unless messages have failed: then one has to succeed.
                        if self.blame.silent_since().is_none() {
                            self.health.works();
                        }
                        idle = true;
                        continue;
                    }
                    // The messages that failed cannot be published to a retry queue at present, or no more are there.
                    () = tokio::time::sleep(IDLE), if failed > 0 => return Attempt::Failed(last),
                };
                let Some(delivery) = delivery else { return Attempt::Failed("the queue is closed".into()) };
                held.push(Held::new(delivery, subscription, self.pipeline.moment()));
            }
            let started = *trying.get_or_insert_with(Instant::now);
            if wide {
                let gathering = async {
                    while let Some(delivery) = subscription.next().await {
                        held.push(Held::new(delivery, subscription, self.pipeline.moment()));
                    }
                };
                let _ = tokio::time::timeout(GATHER, gathering).await;
            }
            // Of those that came back equally often any may be the one that kills its workers: it is not the first each time.
            held.shuffle(&mut rand::rng());
            held.sort_by_key(|held| {
                let earlier = held.delivery.earlier;
                std::cmp::Reverse((earlier >= KILLER, held.is_convicted(), earlier))
            });
            let Some(one) = held.pop() else { continue };
            if !wide && (one.delivery.earlier >= KILLER || one.is_convicted()) {
                // Others are taken beside it, and tried first.
                subscription.widen(prefetch);
                wide = true;
                held.push(one);
                continue;
            }
            let (tried, verdicts) = self.try_one(one).await;
            let ended = match tried {
                Tried::Hung(why) if self.dare.takes(self.pipeline.moment()) => {
                    self.health.paused(&why);
                    Some(Attempt::Dares)
                }
                Tried::Changed => Some(Attempt::Taken),
                Tried::Unchanged => {
                    unchanged += 1;
                    (unchanged >= UNCHANGED && failed == 0).then_some(Attempt::Taken)
                }
                Tried::Nothing => None,
                Tried::Failed(why) | Tried::Hung(why) => {
                    failed += 1;
                    last.clone_from(&why);
                    (failed >= TRIES || started.elapsed() >= TRYING).then_some(Attempt::Failed(why))
                }
            };
            if let Some(Attempt::Failed(_)) = ended {
                // Before the one is settled: no other is delivered, which would come back as delivered once.
                held.extend(self.cancel(subscription).await);
            }
            self.settling.settle(verdicts);
            match ended {
                Some(Attempt::Taken) => {
                    subscription.widen(prefetch);
                    self.blame.break_silence();
                    self.health.works();
                    return Attempt::Taken;
                }
                Some(Attempt::Dares) => {
                    subscription.widen(prefetch);
                    self.blame.break_silence();
                    return Attempt::Dares;
                }
                Some(ended) => {
                    self.settling.give_back(held.drain(..));
                    return ended;
                }
                // An alarm of the broker's holds up a settlement, and with it the one delivery that the prefetch allows.
                None if !wide && tokio::time::timeout(GATHER, self.settling.all()).await.is_err() => {
                    subscription.widen(prefetch);
                    wide = true;
                }
                None => {}
            }
        }
    }

    /// Gives back what was delivered and not tried.
    async fn stopped(&mut self, subscription: &Arc<dyn Subscription>) -> Attempt {
        let held = self.cancel(subscription).await;
        self.settling.give_back(held);
        Attempt::Stopped
    }

    async fn try_one(&mut self, held: Held) -> (Tried, Vec<(Held, Verdict)>) {
        let (tell, mut told) = mpsc::unbounded_channel();
        self.pipeline.process_alone(held, &tell).await;
        drop(tell);
        let mut tried = Tried::Unchanged;
        let mut settled = Vec::new();
        while let Some(progress) = told.recv().await {
            match progress {
                Progress::BuriedUntried(verdicts) => {
                    tried = Tried::Nothing;
                    settled.extend(verdicts);
                }
                Progress::Committed { verdicts, changed, tried: span } => {
                    if !changed.is_empty() {
                        tried = Tried::Changed;
                    }
                    self.committed(&verdicts, &changed, span);
                    settled.extend(verdicts);
                }
                Progress::FailedAlone(failed) => {
                    let message = &failed.held.delivery.message;
                    let verdict;
                    (tried, verdict) = match self.blame.failed(&failed.suspect(), failed.tried) {
                        Judgement::Guilty => (Tried::Nothing, self.guilty(&failed)),
                        Judgement::Unproved if failed.suspect().convicted => {
                            (Tried::Nothing, Verdict::set_aside(message, &self.settings.ladder))
                        }
                        Judgement::Unproved => {
                            let why = failed.error.to_string();
                            let tried =
                                if failed.tried.is_long() { Tried::Hung(why) } else { Tried::Failed(why) };
                            (tried, Verdict::given_back(message))
                        }
                    };
                    settled.push((failed.held, verdict));
                }
                Progress::Unasked(held, why) => {
                    settled.extend(held.into_iter().map(Verdict::back));
                    tried = Tried::Failed(why);
                }
                Progress::Unanswered(held) | Progress::Leftover(held) => {
                    settled.extend(held.into_iter().map(Verdict::back));
                }
                Progress::KnownToHang(held) => {
                    settled.extend(held.into_iter().map(|(held, _)| Verdict::back(held)));
                }
                Progress::FailedTogether(_) | Progress::Fits(_) => {}
            }
        }
        (tried, settled)
    }
}
