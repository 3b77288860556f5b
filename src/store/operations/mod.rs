//! Owns the seam to the audit log: what people did, and the replays that go on in their name. The contract:
//!
//! - One process works on a replay at a time: its holder, for as long as it renews its lease, by the database's clock. A claim is
//!   committed only while the claimer holds the replay, so a process that lost its lease claims nothing more.
//! - A replay claims no letter that was claimed since it began, by whichever replay: what dies again is left for people.
//! - What people wish of a replay is written down, and its holder follows. Where nobody holds it, the wish takes effect at once.
//! - Where `HEADCOUNT_ON_DELETE` is `erase`, an operation about a deleted user keeps no note, no selection and no detail.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    StoreError,
    letters::{Actor, Claimed, Filter, Group},
};
use crate::time::Millis;

mod causes;
mod log;
mod rows;
mod tables;

pub(super) use rows::{Claims, and_not_claimed_since, erase};

/// The longest page of the log.
pub const LOG_MAX: u32 = 1_000;

/// How long a process holds an operation that it does not renew.
pub const TTL: Duration = Duration::from_secs(10);

/// What people did, and what goes on in their name. An error is what the database says.
#[async_trait]
pub trait OperationLog: Send + Sync {
    /// Writes down that an operation begins. `None`: it is a replay, and as many run as [`NewOperation::most`] allows.
    async fn begin_operation(&self, new: &NewOperation) -> Result<Option<Operation>, StoreError>;

    /// Writes down something that is done in one step.
    async fn note_operation(&self, new: &NewOperation) -> Result<(), StoreError>;

    /// Ends an operation, unless somebody else holds it or it has ended. Answers whether it did.
    async fn end_operation(&self, id: Uuid, holder: Uuid, end: &Ended) -> Result<bool, StoreError>;

    /// An operation as it stands.
    async fn operation(&self, id: Uuid) -> Result<Option<Operation>, StoreError>;

    /// The newest `limit` replays, and every other that has not ended, however old it is; the newest first.
    async fn replays(&self, limit: u32) -> Result<Vec<Operation>, StoreError>;

    /// Takes a replay that goes on and that nobody holds, for [`TTL`]. Of many that try at once one gets it.
    async fn take_replay(&self, holder: Uuid) -> Result<Option<Operation>, StoreError>;

    /// Renews the holder's lease, and writes down how far it is. `None`: it is no longer the holder. While people want a replay to wait
    /// or to end, its detail says who asked for that, and stays.
    async fn tick(&self, id: Uuid, holder: Uuid, tick: &Tick) -> Result<Option<Operation>, StoreError>;

    /// Gives an operation back, so that anybody may take it now.
    async fn give_operation_back(&self, id: Uuid, holder: Uuid) -> Result<(), StoreError>;

    /// Writes down what people want of a replay, and who. `None`: there is no such replay. One that has ended stays as it is. A
    /// paused one goes on only while fewer than `most` run, counted as [`begin_operation`](Self::begin_operation) counts.
    async fn wish(&self, id: Uuid, wish: Wish, by: &Actor, most: u32) -> Result<Option<Wished>, StoreError>;

    /// As [`Letters::claim`](super::letters::Letters::claim), in the name of a replay that the holder holds.
    ///
    /// # Errors
    /// [`StoreError::is_over`]: another process holds it, or it has ended. Nothing was claimed.
    async fn claim_for(
        &self,
        held: Held,
        filter: &Filter,
        limit: u32,
        by: &Actor,
    ) -> Result<Vec<Claimed>, StoreError>;

    /// Has a replay take over up to `limit` claims that were not published, made before `before` by the database's clock, and that no
    /// live replay has. Answers how many.
    ///
    /// # Errors
    /// As [`claim_for`](Self::claim_for).
    async fn adopt(&self, held: Held, filter: &Filter, before: Millis, limit: u32)
    -> Result<u64, StoreError>;

    /// Up to `limit` claims of a replay whose publication is not stamped, the oldest first.
    async fn unpublished(&self, id: Uuid, limit: u32) -> Result<Vec<Claimed>, StoreError>;

    /// What became of a replay's letters. Without the `whole`, those that took effect are not counted, so that it stays quick however
    /// many there are.
    async fn outcomes(&self, id: Uuid, whole: bool) -> Result<Outcomes, StoreError>;

    /// What a process does now and then with operations that nobody works on any more: counts what became of letters that were still
    /// under way when their replay ended, ends what the death of a process broke off, pauses what was to be paused. Answers whether any
    /// replay has not ended.
    async fn tidy_operations(&self, counts: bool) -> Result<bool, StoreError>;

    /// The log, the newest first: operations, runs of sync, grants and revocations of tiers. At most [`LOG_MAX`].
    async fn operations(&self, filter: &LogFilter, page: &LogPage) -> Result<Vec<OperationRow>, StoreError>;

    /// Why open letters died, the most frequent cause first, with the hours before `now` in which they did.
    async fn causes(&self, now: Millis) -> Result<Vec<Cause>, StoreError>;
}

macro_rules! names {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name {
            $($(#[$of])* $variant,)+
        }

        impl $name {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The stable name: in the table and in output.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// The one of that name.
            pub fn parse(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.as_str() == name)
            }
        }
    };
}

names! {
    /// What is done.
    Kind {
        /// Letters are published again.
        Replay = "replay",
        /// One letter is mended and published again.
        Edit = "edit",
        /// Letters are set aside.
        Discard = "discard",
        /// Letters are open again.
        Restore = "restore",
        /// Somebody asked to see the personal values of a letter.
        Reveal = "reveal",
        /// Somebody wrote a note on a cause.
        Note = "note",
        /// Users are compared with Clerk's.
        Sync = "sync",
        /// A tier is granted.
        Grant = "grant",
        /// What was granted ends.
        Revoke = "revoke",
    }
}

names! {
    /// How an operation stands.
    State {
        /// It goes on, or waits for a process that works on it.
        Running = "running",
        /// Somebody paused it.
        Paused = "paused",
        /// It did all that it was to do.
        Complete = "complete",
        /// It reached its limit.
        Limit = "limit",
        /// Somebody stopped it.
        Stopped = "stopped",
        /// It stopped itself, because too many letters died again.
        Halted = "halted",
        /// It could not go on.
        Failed = "failed",
    }
}

names! {
    /// What people want of a replay.
    Wish {
        /// To go on.
        Run = "run",
        /// To wait.
        Pause = "pause",
        /// To end.
        Stop = "stop",
    }
}

impl Wish {
    /// What somebody did who wants that: `stopped by ann`.
    pub fn told(self, who: &str) -> String {
        let done = match self {
            Self::Run => "resumed",
            Self::Pause => "paused",
            Self::Stop => "stopped",
        };
        format!("{done} by {who}")
    }
}

/// What became of a wish.
#[derive(Clone, Debug, PartialEq)]
pub enum Wished {
    /// It is written down, or the replay had ended.
    Noted(Box<Operation>),
    /// As many replays run as may: this one stays paused.
    Busy,
}

impl State {
    /// Nothing more happens.
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Running | Self::Paused)
    }
}

/// An operation to write down.
#[derive(Clone, Debug)]
pub struct NewOperation {
    /// What is done; neither a grant nor a revocation, which have a table of their own.
    pub kind: Kind,
    /// Who, and why.
    pub by: Actor,
    /// What was selected, in people's terms: an object.
    pub what: serde_json::Value,
    /// The account, where it is about one.
    pub clerk_id: Option<String>,
    /// The letter, where it is about one.
    pub letter_id: Option<Uuid>,
    /// How many letters are meant.
    pub expected: u64,
    /// What a replay goes by.
    pub order: Option<Given>,
    /// Who works on it; `None` for whichever process takes it.
    pub holder: Option<Uuid>,
    /// The most replays that may run with it; `None` for any number.
    pub most: Option<u32>,
}

/// What a replay goes by, from its start to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Given {
    /// Selects letters.
    pub filter: Filter,
    /// The most letters to publish.
    pub limit: u64,
    /// Letters per second; `None` for as fast as the queue confirms.
    pub rate: Option<f64>,
    /// The share of a step that may die again, from 0 to 1; `None`: it does not ramp.
    pub halt_at: Option<f64>,
    /// The selected letters that were open at its start.
    pub open: u64,
}

/// An operation.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // Each field is the column of its name; see the migration.
pub struct Operation {
    pub id: Uuid,
    pub kind: Kind,
    pub who: String,
    pub note: Option<String>,
    pub what: serde_json::Value,
    pub clerk_id: Option<String>,
    pub letter_id: Option<Uuid>,
    pub started_at: Millis,
    pub ended_at: Option<Millis>,
    pub state: State,
    pub detail: Option<String>,
    pub expected: u64,
    pub taken_up: u64,
    pub claimed: u64,
    pub published: u64,
    pub applied: u64,
    pub died: u64,
    pub order: Option<Given>,
    pub step: Step,
    pub wish: Wish,
    pub holder: Option<Uuid>,
    /// Its holder renewed it in time.
    pub held: bool,
}

impl Operation {
    /// The letters that it has claimed, or taken over from others.
    pub fn letters(&self) -> u64 {
        self.claimed + self.taken_up
    }
}

/// A replay, and the process that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The replay's.
    pub id: Uuid,
    /// The process's.
    pub holder: Uuid,
}

/// The step of a ramp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Which, from 0.
    pub number: u32,
    /// How many letters the replay had when it began.
    pub from: u64,
    /// How many of them had died again.
    pub died: u64,
}

/// How far an operation is.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// Running or paused.
    pub state: State,
    /// What it waits for.
    pub detail: Option<String>,
    /// In the queue again, or settled by a discard or restore.
    pub published: u64,
    /// Took effect.
    pub applied: u64,
    /// Died again.
    pub died: u64,
    /// Where its ramp is.
    pub step: Step,
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// A final state.
    pub state: State,
    /// Why.
    pub detail: Option<String>,
    /// As in [`Tick`].
    pub published: u64,
    /// As in [`Tick`].
    pub applied: u64,
    /// As in [`Tick`].
    pub died: u64,
}

/// What became of the letters that a replay claimed last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outcomes {
    /// Took effect; 0 where it was not asked for.
    pub applied: u64,
    /// Died again.
    pub died: u64,
    /// Neither yet.
    pub under_way: u64,
    /// Of those under way: claimed, and not certainly in the queue.
    pub unstamped: u64,
}

/// Selects what the log tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// Only of these kinds; of any where it is empty.
    pub kinds: Vec<Kind>,
    /// Only by this actor.
    pub who: Option<String>,
    /// Only what began at or after this time.
    pub since: Option<Millis>,
}

/// A page of the log.
#[derive(Clone, Debug)]
pub struct LogPage {
    /// The most rows, no more than [`LOG_MAX`].
    pub limit: u32,
    /// Only the rows after this one.
    pub after: Option<LogPlace>,
}

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPlace {
    /// When it began.
    pub at: Millis,
    /// [`OperationRow::id`]
    pub id: Uuid,
    /// A grant and its end share an id.
    pub kind: Kind,
}

/// A row of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct OperationRow {
    /// Of the operation, the run of sync or the grant.
    pub id: Uuid,
    /// What was done.
    pub kind: Kind,
    /// When it began.
    pub at: Millis,
    /// When it ended.
    pub ended_at: Option<Millis>,
    /// Who did it.
    pub who: String,
    /// Why.
    pub note: Option<String>,
    /// What was selected, synced or granted, in people's terms.
    pub what: serde_json::Value,
    /// The account, where it is about one.
    pub clerk_id: Option<String>,
    /// The letter, where it is about one.
    pub letter_id: Option<Uuid>,
    /// How it stands.
    pub state: State,
    /// Why.
    pub detail: Option<String>,
    /// Letters that were meant; of a sync, users in Clerk.
    pub expected: u64,
    /// Letters that are in the queue again, discarded or restored; of a sync, users that were repaired.
    pub published: u64,
    /// Letters that took effect.
    pub applied: u64,
    /// Letters that died again; of a sync, users that failed.
    pub died: u64,
}

impl OperationRow {
    /// Where it stands in the log.
    pub fn place(&self) -> LogPlace {
        LogPlace { at: self.at, id: self.id, kind: self.kind }
    }
}

/// The hours that [`OperationLog::causes`] looks back.
pub const HOURS: usize = 24;

/// Why letters died.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cause {
    /// Its open letters.
    #[serde(flatten)]
    pub group: Group,
    /// How many of them died in each of the last [`HOURS`] hours, the last hour last.
    pub hours: Vec<u64>,
    /// No letter of the group died before the last [`HOURS`] hours.
    pub is_new: bool,
}
