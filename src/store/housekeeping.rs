//! Owns the seam to what is kept for a while only: samples of rejected requests, and what a process does by itself with
//! whatever is past its time.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;

use super::{
    StoreError,
    columns::{At, from_row},
    letters::Status,
};
use crate::message::Rejected;

/// The most samples of rejected requests that are kept.
pub const REJECTIONS_MAX: u32 = 10_000;

/// The newest so many runs of sync are kept however old they are.
pub const RUNS_KEPT: u32 = 100;

/// Samples of requests that the ingress turned away. An error is what the database says.
#[async_trait]
pub trait Rejections: Send + Sync {
    /// Keeps samples, in one transaction.
    async fn record(&self, samples: &[Rejected]) -> Result<(), StoreError>;

    /// The newest samples, the newest first; at most `limit`.
    async fn newest(&self, limit: u32) -> Result<Vec<Rejected>, StoreError>;
}

from_row!(Rejected { at: At, address: String, reason: String, headers: sqlx::types::Json<Vec<String>> });

/// What a process asks of the database by itself, beside its work. A database that nobody else asks may sleep:
/// [`asked`](Self::asked) says whether somebody does. An error is what the database says.
#[async_trait]
pub trait Housekeeping: Send + Sync {
    /// Deletes one small step, at most `limit` rows of each kind, of what is past its retention, and of samples that are
    /// not among the newest [`REJECTIONS_MAX`]. Of runs of sync it forgets what they had seen once they have ended, and the
    /// runs themselves after [`Retention::RUNS`]. Waits for no lock. A clock that has leapt ahead is not believed at once,
    /// because what is deleted is gone for good.
    async fn prune(&self, retention: &Retention, limit: u32) -> Result<Pruned, StoreError>;

    /// Where `HEADCOUNT_ON_DELETE` is `erase`: takes what is personal from at most `limit` users that were deleted while
    /// it was `keep`, and from their settled letters. Returns how many users it found: none when there are no more. With
    /// a limit of one it takes any of them, so that one that the database refuses holds up no other.
    async fn erase_kept(&self, limit: u32) -> Result<u64, StoreError>;

    /// How many letters there are by status.
    async fn statuses(&self) -> Result<BTreeMap<Status, u64>, StoreError>;

    /// How often this process has asked the database for anything but the three above. Asks nothing itself.
    fn asked(&self) -> u64 {
        0
    }
}

/// How long things are kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// `HEADCOUNT_INBOX_RETENTION`; of ignored messages at most [`IGNORED`](Self::IGNORED).
    pub inbox: Duration,
    /// `HEADCOUNT_DEAD_RETENTION`, of letters that are applied or discarded, and of operations that have ended.
    pub dead: Duration,
    /// `HEADCOUNT_SESSION_RETENTION`, of sessions that have ended.
    pub sessions: Duration,
    /// `HEADCOUNT_REJECTION_RETENTION`
    pub rejections: Duration,
}

impl Retention {
    /// How long ignored messages are remembered at most.
    pub const IGNORED: Duration = Duration::from_secs(24 * 3_600);

    /// How long it is remembered what a process said that is gone.
    pub const PROCESSES: Duration = Duration::from_secs(24 * 3_600);

    /// How long runs of sync are kept, but for the newest [`RUNS_KEPT`].
    pub const RUNS: Duration = Duration::from_secs(90 * 24 * 3_600);

    /// When what a run had seen is forgotten though it has not ended: long after anybody could go on with it.
    pub const LEFT_RUNS: Duration = Duration::from_secs(7 * 24 * 3_600);
}

/// One step of forgetting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Rows that went: none when there are no more.
    pub rows: u64,
    /// How far the database's clock is ahead of the time that retention goes by, where it is not believed.
    pub clock_ahead: Option<Duration>,
}
