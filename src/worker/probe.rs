//! Owns the time before the database is known to take messages: at the start, and in an outage. Asks with a write of our
//! own, then takes one message at a time, and gives back each that fails.
//! Promises to hold one message at most, and none between two probes, so that nothing is held when a worker is killed
//! again and again during an outage.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio::sync::{mpsc, watch};

use super::{
    Worker,
    batch::{Finding, Held},
    blame::Judgement,
    settle::Settling,
    verdict::Verdict,
};
use crate::{
    pause::Pauses,
    queue::{QueueError, Source, Subscription},
    shutdown::until,
};

/// Between two probes: from the first to the second, doubling.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Messages that one probe tries, ...
const TRIES: u32 = 20;
/// ... and for how long.
const TRYING: Duration = Duration::from_secs(1);
/// So many messages in a row that changed nothing, and failed at nothing, are as good as one that did.
const UNCHANGED: u32 = 20;
/// A queue in which nothing waits for so long has nothing to probe with.
const IDLE: Duration = Duration::from_secs(2);

/// How a probe ended.
enum Probed {
    /// The database takes messages.
    Taken,
    /// Nothing could be applied.
    Failed(String),
    /// Asked to stop.
    Stopped,
}

/// What became of the one message.
enum Tried {
    Changed,
    Unchanged,
    Failed(String),
}

impl Worker {
    /// Probes until the database has taken a message. `false`: asked to stop before that.
    ///
    /// # Errors
    /// The queue cannot be consumed as configured, and never could.
    pub(super) async fn probe(&mut self, stop: &watch::Receiver<bool>) -> Result<bool, QueueError> {
        let mut pauses = Pauses::new(PAUSES.0, PAUSES.1);
        loop {
            let why = match self.pipeline.ready().await {
                Err(why) => why,
                Ok(()) => match self.queue.subscribe(Source::Events, 1).await {
                    Ok(subscription) => {
                        self.consumed = true;
                        match self.try_some(subscription.into(), stop).await {
                            Probed::Taken => return Ok(true),
                            Probed::Stopped => return Ok(false),
                            Probed::Failed(why) => why,
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
            self.teller.paused(&why);
            tokio::select! {
                () = tokio::time::sleep(pauses.next_pause()) => {}
                () = until(stop, |stop| *stop) => return Ok(false),
            }
        }
    }

    /// Tries some messages, one at a time, until one succeeds or too many have failed.
    async fn try_some(
        &mut self,
        subscription: Arc<dyn Subscription>,
        stop: &watch::Receiver<bool>,
    ) -> Probed {
        let mut settling = Settling::new(Arc::clone(&subscription), Arc::clone(&self.pipeline));
        let started = Instant::now();
        let (mut failed, mut unchanged, mut idle) = (0, 0, false);
        loop {
            let delivery = tokio::select! {
                biased;
                () = until(stop, |stop| *stop) => return stopped(subscription.as_ref(), settling).await,
                delivery = subscription.next() => delivery,
                () = tokio::time::sleep(IDLE), if failed == 0 && !idle => {
                    self.teller.works();
                    idle = true;
                    continue;
                }
            };
            let Some(delivery) = delivery else { return Probed::Failed("the queue is closed".into()) };
            let (tried, verdicts) = self.try_one(Held::new(delivery)).await;
            let ended = match tried {
                Tried::Changed => Some(Probed::Taken),
                Tried::Unchanged => {
                    unchanged += 1;
                    (unchanged >= UNCHANGED && failed == 0).then_some(Probed::Taken)
                }
                Tried::Failed(why) => {
                    failed += 1;
                    (failed >= TRIES || started.elapsed() >= TRYING).then_some(Probed::Failed(why))
                }
            };
            if ended.is_some() {
                // Before the one is settled: no other is delivered, which would come back as delivered once.
                subscription.cancel().await;
            }
            settling.settle(verdicts);
            settling.all().await;
            match ended {
                Some(Probed::Taken) => {
                    self.blame.break_silence();
                    self.teller.works();
                    return Probed::Taken;
                }
                Some(ended) => return ended,
                None => {}
            }
        }
    }

    async fn try_one(&mut self, held: Held) -> (Tried, Vec<(Held, Verdict)>) {
        let (findings, mut found) = mpsc::unbounded_channel();
        self.pipeline.alone(held, &findings).await;
        drop(findings);
        let mut tried = Tried::Unchanged;
        let mut settled = Vec::new();
        while let Some(finding) = found.recv().await {
            match finding {
                Finding::Unreadable(verdicts) => settled.extend(verdicts),
                Finding::Committed { verdicts, changed, tried: span } => {
                    if !changed.is_empty() {
                        tried = Tried::Changed;
                    }
                    self.committed(&verdicts, &changed, span);
                    settled.extend(verdicts);
                }
                Finding::Failed(failed) => {
                    let error = failed.error.to_string();
                    let verdict = match self.blame.failed(&failed.suspect(), failed.tried) {
                        Judgement::Guilty => self.guilty(&failed),
                        Judgement::Unproved => Verdict::given_back(&failed.held.delivery.message),
                    };
                    settled.push((failed.held, verdict));
                    tried = Tried::Failed(error);
                }
                Finding::Unasked(held, why) => {
                    settled.extend(given_back(held));
                    tried = Tried::Failed(why);
                }
                Finding::Silent(held) | Finding::Alone(held) => settled.extend(given_back(held)),
                Finding::FailedTogether(_) | Finding::Fits(_) => {}
            }
        }
        (tried, settled)
    }
}

/// Gives back what was delivered and not looked at.
async fn stopped(subscription: &dyn Subscription, mut settling: Settling) -> Probed {
    subscription.cancel().await;
    while let Some(Some(delivery)) = subscription.next().now_or_never() {
        settling.settle(given_back([Held::new(delivery)]));
    }
    settling.all().await;
    Probed::Stopped
}

/// All of them, with their attempts unchanged.
pub(super) fn given_back(held: impl IntoIterator<Item = Held>) -> Vec<(Held, Verdict)> {
    let back = |held: Held| {
        let verdict = Verdict::given_back(&held.delivery.message);
        (held, verdict)
    };
    held.into_iter().map(back).collect()
}
