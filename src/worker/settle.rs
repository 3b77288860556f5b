//! Owns settling: says and counts a verdict, and hands it to the queue. Of many verdicts alike the first is logged at
//! once, the others as counts. Promises one settlement per delivery. Never waits for the queue itself: what has to be
//! published may have to wait for the broker, and must hold up nothing else.

use std::sync::Arc;

use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::{batch::Pipeline, held::Held, verdict::Verdict};
use crate::{
    queue::{Settlement, Subscription},
    rules::Outcome,
    telemetry::{
        metrics::{Holding, RetryReason},
        tally::Tally,
    },
};

/// Settlements that are under way.
pub(super) struct Settling {
    pipeline: Arc<Pipeline>,
    tasks: JoinSet<()>,
    buried: Tally,
    retried: Tally,
}

impl Settling {
    pub(super) fn new(pipeline: &Arc<Pipeline>) -> Self {
        Self {
            pipeline: Arc::clone(pipeline),
            tasks: JoinSet::new(),
            buried: Tally::new(|counts| warn!("buried since the last such line: {counts}")),
            retried: Tally::new(|counts| info!("came back since the last such line: {counts}")),
        }
    }

    /// Waits for a settlement to end; for ever where there is none.
    pub(super) async fn ended(&mut self) {
        if self.tasks.join_next().await.is_none() {
            std::future::pending().await
        }
    }

    /// How many are under way.
    pub(super) fn count(&mut self) -> usize {
        while self.tasks.try_join_next().is_some() {}
        self.tasks.len()
    }

    /// Waits for all of them.
    pub(super) async fn all(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }

    /// Gives them back to the queue, with their attempts unchanged.
    pub(super) fn give_back(&mut self, held: impl IntoIterator<Item = Held>) {
        self.settle(held.into_iter().map(Verdict::back).collect());
    }

    /// Begins to settle; the subscriptions live until it is done.
    pub(super) fn settle(&mut self, verdicts: Vec<(Held, Verdict)>) {
        while self.tasks.try_join_next().is_some() {}
        type Parts = (Vec<Settlement>, Vec<Holding>);
        let mut settlements: Vec<(Arc<dyn Subscription>, Parts)> = Vec::new();
        for (held, verdict) in verdicts {
            self.say(&held, &verdict);
            let action = verdict.action(&held.delivery.message);
            let Held { delivery, subscription, holding, .. } = held;
            let settlement = Settlement { delivery, action };
            match settlements.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &subscription)) {
                Some((_, (settlements, held))) => {
                    settlements.push(settlement);
                    held.push(holding);
                }
                None => settlements.push((subscription, (vec![settlement], vec![holding]))),
            }
        }
        for (subscription, (settlements, held)) in settlements {
            // Commit before ack: a crash here redelivers, and the inbox absorbs it.
            self.tasks.spawn(async move {
                subscription.settle(settlements).await;
                drop(held);
            });
        }
    }

    /// Logs and counts a verdict.
    fn say(&self, held: &Held, verdict: &Verdict) {
        let (settings, metrics) = (&self.pipeline.settings, &self.pipeline.metrics);
        let message = &held.delivery.message;
        let id = &message.id;
        match verdict {
            Verdict::Done(outcome) => debug!(message_id = %id, "message {id}: {}", outcome.as_str()),
            Verdict::Wait { rung, .. } => {
                metrics.retried(RetryReason::Waiting);
                let delay = settings.ladder.name(*rung);
                debug!(message_id = %id, "message {id} waits {delay} for another account's news");
            }
            // Many at a time, and said once for all of them.
            Verdict::Retry { reason: RetryReason::Parked, rung, .. } => {
                metrics.retried(RetryReason::Parked);
                let delay = settings.ladder.name(*rung);
                debug!(message_id = %id, "message {id} comes back in {delay}: parked");
            }
            Verdict::Retry { rung, reason, .. } => {
                metrics.retried(*reason);
                let (reason, delay) = (reason.as_str(), settings.ladder.name(*rung));
                match self.retried.is_first(reason) {
                    true => info!(message_id = %id, "message {id} comes back in {delay}: {reason}"),
                    false => debug!(message_id = %id, "message {id} comes back in {delay}: {reason}"),
                }
            }
            Verdict::Bury(burial) => {
                metrics.settled(&message.event_type, Outcome::Buried.as_str());
                metrics.buried(burial.reason.as_str());
                let (reason, detail) = (burial.reason.as_str(), &burial.detail);
                match self.buried.is_first(reason) {
                    true => warn!(message_id = %id, reason, "message {id} is buried: {reason}: {detail}"),
                    false => debug!(message_id = %id, reason, "message {id} is buried: {reason}: {detail}"),
                }
            }
        }
    }
}
