//! Helpers that the cases share: a backend under test, messages, and waiting for events with a limit.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use headcount::{
    message::{Message, MessageId, Origin},
    queue::{Action, Delivery, Ladder, Queue, Settlement, Subscription},
};

/// How long an expected event may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// After so long without a delivery, a test concludes that none comes.
pub(crate) const QUIET: Duration = Duration::from_millis(600);
/// The first rung: short enough to wait for.
pub(crate) const SHORT: Duration = Duration::from_millis(400);
/// The second rung: too long to come back within a test.
pub(crate) const LONG: Duration = Duration::from_secs(600);

pub(crate) fn ladder() -> Ladder {
    Ladder::new(vec![SHORT, LONG]).unwrap()
}

/// A queue of its own for one test.
#[async_trait]
pub(crate) trait Harness: Send + Sync + 'static {
    /// A handle on the queue: each is what another process would have.
    async fn open(&self) -> Arc<dyn Queue>;
    /// Removes what this test's queue left.
    async fn clean_up(&self);
}

/// Runs a case, and cleans up whether it held or not.
pub(crate) async fn run<H: Harness, F>(harness: H, case: impl FnOnce(Arc<H>) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let harness = Arc::new(harness);
    let outcome = tokio::spawn(case(harness.clone())).await;
    harness.clean_up().await;
    if let Err(error) = outcome {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// A message that no other test has.
pub(crate) fn message(body: impl Into<Bytes>) -> Message {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Message {
        id: MessageId::parse(&format!("msg_{number}")).unwrap(),
        origin: Origin::Webhook,
        event_type: "user.updated".into(),
        received_at: 1_700_000_000_123,
        attempt: 0,
        waits: 0,
        round: 0,
        traceparent: None,
        body: body.into(),
    }
}

/// Publishes `count` messages, one after another; their ids in that order.
pub(crate) async fn publish(queue: &Arc<dyn Queue>, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 0..count {
        let message = message(format!("{{\"number\":{number}}}"));
        ids.push(message.id.to_string());
        queue.publish(message).await.unwrap();
    }
    ids
}

/// Fails the test where `event` does not come.
pub(crate) async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, event).await.unwrap_or_else(|_| panic!("{what}: nothing in {PATIENCE:?}"))
}

/// The next delivery, which has to come.
pub(crate) async fn next(subscription: &dyn Subscription) -> Delivery {
    soon("a delivery", subscription.next()).await.expect("the subscription has ended")
}

/// The next `count` deliveries.
pub(crate) async fn receive(subscription: &dyn Subscription, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    for _ in 0..count {
        deliveries.push(next(subscription).await);
    }
    deliveries
}

/// Whether nothing comes for a while.
pub(crate) async fn quiet(subscription: &dyn Subscription) -> bool {
    tokio::time::timeout(QUIET, subscription.next()).await.is_err()
}

/// Settles, which has to end.
pub(crate) async fn settle(
    subscription: &dyn Subscription,
    deliveries: impl IntoIterator<Item = (Delivery, Action)>,
) {
    let settlements =
        deliveries.into_iter().map(|(delivery, action)| Settlement { delivery, action }).collect();
    soon("a settlement", subscription.settle(settlements)).await;
}

/// Settles all as done.
pub(crate) async fn done(subscription: &dyn Subscription, deliveries: Vec<Delivery>) {
    settle(subscription, deliveries.into_iter().map(|delivery| (delivery, Action::Done))).await;
}

pub(crate) fn id(delivery: &Delivery) -> String {
    delivery.message.id.to_string()
}

pub(crate) fn sorted(mut ids: Vec<String>) -> Vec<String> {
    ids.sort();
    ids
}

pub(crate) fn ids(deliveries: &[Delivery]) -> Vec<String> {
    sorted(deliveries.iter().map(id).collect())
}

/// Waits until a queue holds that many: a broker's counts come late.
pub(crate) async fn holds(queue: &Arc<dyn Queue>, name: &str, expected: u64) {
    let mut last = Vec::new();
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            last = queue.depths().await.unwrap();
            if last.iter().any(|depth| depth.queue == name && depth.messages == expected) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    });
    if waited.await.is_err() {
        panic!("{name} never held {expected}: {last:?}");
    }
}
