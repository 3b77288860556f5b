//! Owns the seam to the queue: what every backend promises, in words, and the one place that picks a backend. `burial` says
//! how a message gets into the dead letters, `ladder` when a retry comes back, `topology` what a broker has to hold.
//!
//! The contract, which `tests/queue.rs` holds against both backends:
//!
//! - [`Queue::publish`] returns `Ok` only when the message is durable. An error means unknown: it may arrive all the same.
//! - Deliveries come in about the order of arrival; at most `prefetch` of them are unsettled at a time, which
//!   [`Subscription::widen`] raises without giving anything back.
//! - A delivery is settled once, by [`Subscription::settle`]. What a consumer leaves unsettled when it goes comes back,
//!   with [`Delivery::earlier`] one higher.
//! - A retry comes back after its delay and not before. A burial lands in the dead queue with its reason.
//!   Both are durable before the delivery is settled.
//! - A settlement never settles another delivery, whatever their order.
//! - A buried message comes out of [`Source::Dead`] with its [`Death`], again and again until it is settled: nothing else
//!   takes it away. An action means there what it means for events.
//! - Samples come out of [`Source::Rejections`]: the newest thousand of those that were not lost.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use futures_util::FutureExt;

use crate::message::Message;

mod absent;
pub mod embedded;
mod error;
mod gathering;
pub mod burial;
pub mod ladder;
pub mod rabbitmq;
pub mod topology;

pub use absent::Absent;
pub use burial::{Burial, DELIVERY_LIMIT, DETAIL_MAX, Death, Reason, is_plain_header};
pub use error::QueueError;
pub use ladder::{Ladder, delay_name};

/// The queue as ingress, workers and operators see it.
#[async_trait]
pub trait Queue: Send + Sync + fmt::Debug {
    /// Makes the message durable in the events queue. Safe to cancel: what was handed to the backend may go on, and its memory
    /// stays bounded.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`] at once while the backend is known to be away or full, else within
    /// [`PUBLISH_LIMIT`]. The message may have arrived all the same.
    async fn publish(&self, message: Message) -> Result<(), QueueError>;

    /// Starts consuming, with at most `prefetch` unsettled deliveries. The subscription survives outages of the backend: it
    /// subscribes again by itself.
    ///
    /// # Errors
    /// [`QueueError`] where the first attempt cannot succeed later by itself (wrong topology, not permitted).
    async fn subscribe(&self, source: Source, prefetch: u16) -> Result<Box<dyn Subscription>, QueueError>;

    /// Hands over a sample of a request that was turned away: a JSON object of at most a few kilobytes. Lossy by design: it
    /// is dropped where there is no room, and nobody waits.
    fn sample(&self, rejected: bytes::Bytes);

    /// How many messages wait, by queue.
    ///
    /// # Errors
    /// [`QueueError`] where the backend does not answer.
    async fn depths(&self) -> Result<Vec<Depth>, QueueError>;

    /// For readiness: whether a message could be published now. Answers within [`PUBLISH_LIMIT`].
    ///
    /// # Errors
    /// Why not.
    async fn ready(&self) -> Result<(), QueueError>;

    /// What does not work at present, by part; empty while all is well. Cheap: never asks the backend.
    fn troubles(&self) -> Vec<Trouble>;

    /// For `doctor`: asks a broker what this user may not do and whether its version has known faults, or reads the file
    /// through to find damage. Changes nothing; takes up to 30 s.
    async fn examine(&self) -> Vec<Finding> {
        Vec::new()
    }

    /// Finishes what is in flight and closes the connections, within a few seconds. Publishing fails afterwards.
    async fn close(&self);
}

/// What can be consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Webhooks.
    Events,
    /// What was buried, given up by the broker's own limit, or had no route; each delivery has its [`Death`].
    Dead,
    /// Samples of requests that were turned away: there is nothing to do with them but [`Action::Done`].
    Rejections,
}

impl Source {
    /// Its queue, without the prefix, as in [`Depth`].
    pub fn queue(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Dead => "dead",
            Self::Rejections => "rejections",
        }
    }

    /// Its part of the queue, as in [`Trouble`].
    pub const fn part(self) -> &'static str {
        match self {
            Self::Events => "consuming events",
            Self::Dead => "consuming dead",
            Self::Rejections => "consuming rejections",
        }
    }
}

/// The part of the queue that takes webhooks, retries and burials, as in [`Trouble`].
pub const PUBLISHING: &str = "publishing";

/// The parts of a queue, as in [`Trouble`].
pub const PARTS: [&str; 4] =
    [PUBLISHING, Source::Events.part(), Source::Dead.part(), Source::Rejections.part()];

/// One consumer of one source.
#[async_trait]
pub trait Subscription: Send + Sync {
    /// The next delivery; waits for one. Cancel-safe: a dropped call loses nothing.
    /// `None` once [`cancel`](Self::cancel) was called and everything handed over by the backend has been returned.
    async fn next(&self) -> Option<Delivery>;

    /// What [`next`](Self::next) would return at once, in its order.
    fn ready(&self) -> Vec<Delivery> {
        std::iter::from_fn(|| self.next().now_or_never().flatten()).collect()
    }

    /// Settles deliveries of this subscription: returns when each is settled, or is no longer ours because the backend
    /// went away and will deliver it again. Safe to cancel: settling goes on.
    async fn settle(&self, settlements: Vec<Settlement>);

    /// From now on at most so many deliveries are unsettled at a time, where that is more than before.
    fn widen(&self, prefetch: u16);

    /// Whether the delivery is still ours to settle: `false` once its connection has ended or its lease was lost, and the
    /// backend delivers it again.
    fn holds(&self, receipt: Receipt) -> bool;

    /// Stops new deliveries; returns once the backend sends no more, within a few seconds. What was already delivered
    /// can still be received and settled.
    async fn cancel(&self);

    /// Why no deliveries come at present, in a few words; `None` while all is well.
    fn trouble(&self) -> Option<String>;
}

/// A part of the queue that does not work at present.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Trouble {
    /// One of [`PARTS`].
    pub part: &'static str,
    /// In a few words.
    pub why: String,
}

/// What a thorough look at the backend found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// It does not work; otherwise it can go wrong.
    pub broken: bool,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// A message in a consumer's hands. It has to be settled: one that is dropped comes back only when its subscription ends.
#[derive(Debug)]
#[must_use = "a delivery has to be settled"]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// How often it was delivered before without having been settled: 0 for a first delivery.
    pub earlier: u32,
    /// The backend's mark of this delivery.
    pub receipt: Receipt,
    /// How it died: of deliveries from [`Source::Dead`] only.
    pub death: Option<Box<Death>>,
}

/// A backend's mark of one delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Receipt {
    /// Which life of the connection it belongs to.
    pub generation: u64,
    /// Its tag there.
    pub tag: u64,
}

/// A delivery and what shall become of it.
#[derive(Debug)]
pub struct Settlement {
    /// Consumed by settling.
    pub delivery: Delivery,
    /// What becomes of it.
    pub action: Action,
}

/// What shall become of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It took effect, or had none to take: gone for good.
    Done,
    /// Come back after a delay, with these counters.
    Retry {
        /// Rung of the ladder: an index into `HEADCOUNT_RETRY_DELAYS`.
        rung: usize,
        /// The message's `attempt` from then on.
        attempt: u32,
        /// The message's `waits` from then on.
        waits: u32,
    },
    /// Into the dead letters.
    Bury(Burial),
}

/// The longest time that [`Queue::publish`] takes to say yes or no.
pub const PUBLISH_LIMIT: Duration = Duration::from_secs(5);

/// How many samples of rejected requests are kept until they are consumed.
pub const SAMPLES_MAX: i64 = 1000;

/// How many messages one queue holds.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Depth {
    /// `events`, `retry.1s`, …, `dead`: without the prefix.
    pub queue: String,
    /// Ready and unsettled messages, as far as the backend tells them.
    pub messages: u64,
    /// Consumers, where the backend tells.
    pub consumers: u32,
}

impl Depth {
    /// What waits there is tried again later.
    pub fn is_of_retries(&self) -> bool {
        self.queue.starts_with("retry.")
    }
}

/// Which queue to open.
#[derive(Clone, Debug)]
pub enum QueueConfig {
    /// `queue.db` in this directory.
    Embedded {
        /// `HEADCOUNT_DATA_DIR`
        directory: std::path::PathBuf,
        /// `HEADCOUNT_RETRY_DELAYS`
        ladder: Ladder,
    },
    /// A RabbitMQ broker.
    RabbitMq {
        /// `AMQP_URL`
        url: crate::secret::Secret,
        /// `HEADCOUNT_QUEUE_PREFIX`
        prefix: String,
        /// `HEADCOUNT_RETRY_DELAYS`
        ladder: Ladder,
    },
}

impl QueueConfig {
    /// The file that the queue is in, where it is in one.
    pub fn file(&self) -> Option<std::path::PathBuf> {
        match self {
            Self::Embedded { directory, .. } => Some(directory.join(embedded::FILE)),
            Self::RabbitMq { .. } => None,
        }
    }

    /// Whether processes on several hosts can use it.
    pub fn is_shared(&self) -> bool {
        match self {
            Self::Embedded { .. } => false,
            Self::RabbitMq { .. } => true,
        }
    }
}

/// What a queue is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To publish or to consume. On a broker, missing queues are declared.
    Work,
    /// Only to look: nothing is made on a broker.
    Look,
}

/// Opens the queue. A broker that is merely away is no error: the queue connects as soon as it can.
///
/// # Errors
/// [`QueueError`] where it can never work as configured.
pub async fn open(config: &QueueConfig) -> Result<std::sync::Arc<dyn Queue>, QueueError> {
    open_to(Purpose::Work, config).await
}

/// Opens the queue for this purpose.
///
/// # Errors
/// Those of [`open`]; for [`Purpose::Look`], also where the broker has no such queues.
pub async fn open_to(
    purpose: Purpose,
    config: &QueueConfig,
) -> Result<std::sync::Arc<dyn Queue>, QueueError> {
    Ok(match config {
        QueueConfig::Embedded { directory, ladder } => {
            std::sync::Arc::new(embedded::EmbeddedQueue::open(directory, ladder.clone()).await?)
        }
        QueueConfig::RabbitMq { url, prefix, ladder } => {
            std::sync::Arc::new(rabbitmq::RabbitQueue::open_to(purpose, url, prefix, ladder.clone()).await?)
        }
    })
}
