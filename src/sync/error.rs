//! Owns why a run could not be finished, in words for people, and what to do.

use humantime::format_duration;

use super::patience::Passing as _;
use crate::{
    clerk::{api::ApiError, made_up},
    failure::Failure,
    queue::QueueError,
    store::{StoreError, sync::Lease},
    text::number,
};

/// Why keeping in step stopped. Nothing was deleted that Clerk has not confirmed as gone.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// Clerk's API.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The database.
    #[error(transparent)]
    Store(StoreError),
    /// The queue.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The key is of another instance than the table.
    #[error("the key in CLERK_SECRET_KEY is of the Clerk instance {key}, and this table belongs to {table}")]
    OtherInstance {
        /// The key's.
        key: String,
        /// The table's, by the setting, by webhooks, or by an earlier sync.
        table: String,
        /// `HEADCOUNT_CLERK_INSTANCE` says whose the table is.
        by_setting: bool,
    },
    /// The table holds users, and none whom the key's instance knows.
    #[error(
        "none of the users whom the Clerk instance {key} changed last is in this table, which is not empty"
    )]
    Strangers {
        /// The key's.
        key: String,
    },
    /// A person did not agree to read the key's instance into the table.
    #[error("nothing was read: this table does not belong to the Clerk instance {0} yet")]
    Declined(String),
    /// Another run holds the lease.
    #[error("another sync is running: {} on {}", .0.process, .0.host)]
    Busy(Box<Lease>),
    /// The lease went to another process while it could not be renewed.
    #[error("another process has taken this run over: its lease could not be renewed in time")]
    TakenOver,
    /// More users are gone than may be deleted.
    #[error("{} of {} live users seem to be gone: they are not in Clerk's list, and only {} may be deleted; nobody was deleted", number(*.gone), number(*.live), number(*.cap))]
    TooManyGone {
        /// Who are not in Clerk's list, and were not found one by one, as far as they were looked for.
        gone: u64,
        /// Rows.
        live: u64,
        /// The cap of the run.
        cap: u64,
    },
    /// Every live user is gone.
    #[error("all {} live users seem to be gone: they are not in Clerk's list; nobody was deleted", number(*.0))]
    AllGone(u64),
    /// The list is empty, though Clerk counts users.
    #[error("Clerk's list of users is empty, though it counts {} users", number(*.0))]
    EmptyList(u64),
    /// The list goes on and on.
    #[error("Clerk's list of users does not end: {} users were read, and it counts {}", number(*.read), number(*.count))]
    Endless {
        /// So far.
        read: u64,
        /// By Clerk.
        count: u64,
    },
    /// The list leaves out many of the users whom Clerk counts.
    #[error("Clerk's list of users is not whole: {} were read, and it counts {}: nobody was deleted", number(*.read), number(*.count))]
    Incomplete {
        /// Users of the list.
        read: u64,
        /// By Clerk.
        count: u64,
    },
    /// What was published is not applied.
    #[error("nothing was applied for two minutes: {} changes are tried again and again", number(*.0))]
    Stuck(u64),
    /// No worker takes what was published.
    #[error("no worker takes messages: {} wait in the queue", number(*.0))]
    NoWorker(u64),
    /// Somebody asked for it.
    #[error("stopped; nothing is lost")]
    Stopped,
}

impl SyncError {
    /// Another run is active.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Busy(_) | Self::TakenOver)
    }

    /// A rule of safety kept the run from deleting those who are gone, and will until people do something.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::TooManyGone { .. } | Self::AllGone(_))
    }

    /// What the run met may have passed by the next one.
    pub(super) fn passes(&self) -> bool {
        match self {
            Self::Api(error) => matches!(error, ApiError::Away { .. } | ApiError::Limited { .. }),
            Self::Store(error) => error.passes(),
            Self::Queue(error) => error.passes(),
            Self::Busy(_) | Self::TakenOver | Self::Stuck(_) | Self::NoWorker(_) | Self::Stopped => true,
            Self::OtherInstance { .. }
            | Self::Strangers { .. }
            | Self::Declined(_)
            | Self::TooManyGone { .. }
            | Self::AllGone(_)
            | Self::EmptyList(_)
            | Self::Endless { .. }
            | Self::Incomplete { .. } => false,
        }
    }

    /// The next run starts anew: going on with this one would come to the same end.
    pub(super) fn ends_the_run(&self) -> bool {
        match self {
            Self::TooManyGone { .. }
            | Self::AllGone(_)
            | Self::EmptyList(_)
            | Self::Endless { .. }
            | Self::Incomplete { .. } => true,
            Self::Api(_)
            | Self::Store(_)
            | Self::Queue(_)
            | Self::OtherInstance { .. }
            | Self::Strangers { .. }
            | Self::Declined(_)
            | Self::Busy(_)
            | Self::TakenOver
            | Self::Stuck(_)
            | Self::NoWorker(_)
            | Self::Stopped => false,
        }
    }

    /// What to do.
    pub fn hint(&self) -> Option<String> {
        const AGAIN: &str = "run headcount sync again: it goes on where this run stopped";
        Some(match self {
            Self::Api(error) => error.hint().to_owned(),
            Self::Store(error) => return error.hint.clone(),
            Self::Queue(_) | Self::Stopped => AGAIN.to_owned(),
            Self::OtherInstance { by_setting: true, .. } => {
                "correct CLERK_SECRET_KEY, or HEADCOUNT_CLERK_INSTANCE".to_owned()
            }
            Self::OtherInstance { table, .. } if table == made_up::INSTANCE => "this table is the demo's: set another HEADCOUNT_DATA_DIR, or another HEADCOUNT_SCHEMA".to_owned(),
            Self::OtherInstance { .. } => "set CLERK_SECRET_KEY to the key of the instance whose webhooks come in; if the table is to belong to the key's instance from now on: headcount sync --adopt-instance".to_owned(),
            Self::Strangers { .. } | Self::Declined(_) => "check CLERK_SECRET_KEY; if the key is right: headcount sync --adopt-instance".to_owned(),
            Self::Busy(_) => "wait for it: headcount status shows how far it is".to_owned(),
            Self::TakenOver => "see headcount status".to_owned(),
            Self::TooManyGone { gone, .. } => format!("look at them: headcount sync --dry-run --verbose; if they are to be deleted: headcount sync --allow-deletions {gone}"),
            Self::AllGone(gone) => format!("check CLERK_API_URL and the instance in the Clerk dashboard; if they are to be deleted: headcount sync --allow-deletions {gone}"),
            Self::Stuck(_) => "see why in the log of a worker, and in headcount status".to_owned(),
            Self::EmptyList(_) | Self::Endless { .. } | Self::Incomplete { .. } => "check CLERK_API_URL, and that no proxy or cache stands between".to_owned(),
            Self::NoWorker(_) => format!("start one (headcount worker, or headcount up); if one runs, it takes from another queue: compare AMQP_URL, HEADCOUNT_QUEUE_PREFIX and HEADCOUNT_DATA_DIR; then {AGAIN}"),
        })
    }
}

impl From<StoreError> for SyncError {
    fn from(error: StoreError) -> Self {
        if error.is_over() { Self::TakenOver } else { Self::Store(error) }
    }
}

impl From<SyncError> for Failure {
    fn from(error: SyncError) -> Self {
        let hint = error.hint();
        let failure = match error {
            SyncError::Api(error) => return error.into(),
            SyncError::Store(error) => return error.into(),
            SyncError::Queue(error) => return Failure::from(error),
            SyncError::Busy(ref lease) => {
                let left = lease.expires_at.saturating_sub(crate::time::now()).clamp(0, 60_000) / 1000;
                let left = format_duration(std::time::Duration::from_secs(left.unsigned_abs()));
                Failure::new(error.to_string())
                    .hint(format!("if that process was killed, its lease ends in {left} at the latest"))
            }
            error => Failure::new(error.to_string()),
        };
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}
