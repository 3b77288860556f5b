//! Owns what is said and counted of a verdict, and hands it to the queue. Never waits for the queue itself: what has to
//! be published may have to wait for the broker, and must hold up nothing else.

use std::sync::Arc;

use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::{
    batch::{Held, Pipeline},
    verdict::Verdict,
};
use crate::{
    queue::{Settlement, Subscription},
    roster::Outcome,
    telemetry::metrics::RetryReason,
};

/// The settlements of one subscription that are under way.
pub(super) struct Settling {
    subscription: Arc<dyn Subscription>,
    pipeline: Arc<Pipeline>,
    tasks: JoinSet<()>,
}

impl Settling {
    pub(super) fn new(subscription: Arc<dyn Subscription>, pipeline: Arc<Pipeline>) -> Self {
        Self { subscription, pipeline, tasks: JoinSet::new() }
    }

    /// Everything is settled, or no longer ours.
    pub(super) fn is_done(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Waits for a settlement to end; for ever where there is none.
    pub(super) async fn ended(&mut self) {
        if self.tasks.join_next().await.is_none() {
            std::future::pending().await
        }
    }

    /// Waits for all of them.
    pub(super) async fn all(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }

    pub(super) fn settle(&mut self, verdicts: Vec<(Held, Verdict)>) {
        let settlements: Vec<Settlement> =
            verdicts.into_iter().map(|(held, verdict)| self.settlement(held, &verdict)).collect();
        if settlements.is_empty() {
            return;
        }
        let subscription = Arc::clone(&self.subscription);
        // Commit before ack: a crash here redelivers, and the inbox absorbs it.
        self.tasks.spawn(async move { subscription.settle(settlements).await });
    }

    fn settlement(&self, held: Held, verdict: &Verdict) -> Settlement {
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
                info!(message_id = %id, "message {id} comes back in {delay}: {reason}");
            }
            Verdict::Bury(burial) => {
                metrics.settled(&message.event_type, Outcome::Buried);
                metrics.buried(burial.reason);
                let (reason, detail) = (burial.reason.as_str(), &burial.detail);
                warn!(message_id = %id, reason, "message {id} is buried: {reason}: {detail}");
            }
        }
        let action = verdict.action(message);
        Settlement { delivery: held.delivery, action }
    }
}
