//! Owns the seam to what keeping in step through Clerk's API needs of the database: how users are compared, who works at a
//! time, how far a run is, which users it saw, and which instance of Clerk the table belongs to.
//!
//! Promises that comparing takes no lock, that a lease goes by the database's clock and has one holder, and that each step
//! is bounded however many users there are. Changes no user: only a message that is folded does.

use std::{collections::HashMap, time::Duration};

use async_trait::async_trait;
use serde::Serialize;
use uuid::Uuid;

use super::StoreError;
use crate::{
    rules::users::Standing,
    rules::{Outcome, users::Loaded},
    time::Millis,
};

mod ids;
mod instances;
mod leases;
mod runs;
pub(super) mod tables;
mod users;

/// So many users are written by one statement: what to give [`SyncTables::see`] at a time.
pub const SEEN_MAX: usize = 500;

/// The most instances that are remembered. Whatever more comes in is nobody's who works here.
pub const INSTANCES_MAX: u32 = 100;

/// What sync needs of the database. An error is what the database says. Clerk ids and message ids hold no NUL.
#[async_trait]
pub trait SyncTables: Send + Sync {
    /// What the table has of these Clerk ids and of whoever claims the addresses of these keys, in one snapshot and
    /// without a lock.
    async fn known(&self, clerk_ids: &[String], keys: &[String]) -> Result<Known, StoreError>;

    /// How many rows are live, counted exactly.
    async fn live_users(&self) -> Result<u64, StoreError>;

    /// Those of these Clerk ids that have a live row.
    async fn live_among(&self, clerk_ids: &[String]) -> Result<Vec<String>, StoreError>;

    /// The Clerk id of the row that is meant by our id, a Clerk id (also a former one) or an e-mail address.
    async fn clerk_id_of(&self, reference: &str) -> Result<Option<String>, StoreError>;

    /// Takes a lease that is free or expired, or renews one that is held already. One of many that try at once gets it.
    async fn take_lease(&self, name: &str, by: &Holder, ttl: Duration) -> Result<Taken, StoreError>;

    /// Gives a lease back, so that anybody may take it now. What the holder said last stays. Does nothing where another
    /// has it.
    async fn give_lease_back(&self, name: &str, holder: Uuid) -> Result<(), StoreError>;

    /// Writes down how the holder's work stands. Answers false where it is no longer the holder.
    async fn tell_state(
        &self,
        name: &str,
        holder: Uuid,
        state: &serde_json::Value,
    ) -> Result<bool, StoreError>;

    /// The lease as it stands; `None` where it was never taken.
    async fn lease(&self, name: &str) -> Result<Option<Lease>, StoreError>;

    /// Goes on with the newest unfinished run of this instance and kind that began less than a day ago, or begins a new
    /// one. Unfinished runs that nobody can go on with any more end as [`RunResult::Abandoned`].
    async fn begin_run(&self, new: &NewRun) -> Result<Run, StoreError>;

    /// Writes down phase, cursor, counts and end of a run, as given. Only the process that began it, or went on with it last, may
    /// do so, and nobody once the run is over.
    ///
    /// # Errors
    /// [`StoreError::is_over`]: nothing was written.
    async fn save_run(&self, run: &Run) -> Result<(), StoreError>;

    /// The newest runs, the newest first.
    async fn runs(&self, limit: u32) -> Result<Vec<Run>, StoreError>;

    /// The same without dry runs, which may be many more.
    async fn real_runs(&self, limit: u32) -> Result<Vec<Run>, StoreError>;

    /// Those of these users that a run has not seen yet.
    async fn new_to(&self, run: Uuid, clerk_ids: &[String]) -> Result<Vec<String>, StoreError>;

    /// Adds users to those that a run has seen, and notes what is published of them. What was noted of a user stays where
    /// nothing new is published. Writes the run down in the same transaction, as [`save_run`](Self::save_run) does, so that
    /// no user is counted twice.
    async fn see(&self, run: &Run, ids: &[Seen]) -> Result<(), StoreError>;

    /// Users of whom a run published something that is not known to be applied yet: Clerk id and message id.
    async fn outstanding(&self, run: Uuid, limit: u32) -> Result<Vec<(String, String)>, StoreError>;

    /// What became of these messages. Those that are still on their way are left out.
    async fn settled(&self, message_ids: &[String]) -> Result<Vec<(String, Settled)>, StoreError>;

    /// Nothing of these users is outstanding any more.
    async fn settle(&self, run: Uuid, clerk_ids: &[String]) -> Result<(), StoreError>;

    /// One step through the table, at most `limit` rows in the order of their Clerk ids, from the one after `after`: who
    /// of them is live, was there before the run began, and was not seen by it.
    async fn unseen(&self, run: Uuid, after: Option<&str>, limit: u32) -> Result<Unseen, StoreError>;

    /// Notes when Clerk confirmed that it does not know this user.
    async fn note_absent(&self, run: Uuid, clerk_id: &str, at: Millis) -> Result<(), StoreError>;

    /// Users who are noted as absent, from the one after `after`, in the order of their Clerk ids, each with the time.
    async fn absent(
        &self,
        run: Uuid,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<(String, Millis)>, StoreError>;

    /// Remembers an instance, up to [`INSTANCES_MAX`] of them. The first one becomes the owner. Answers whose the table is.
    async fn saw_instance(&self, instance_id: &str, by: SeenBy) -> Result<Owner, StoreError>;

    /// Makes an instance the owner in the place of another.
    async fn adopt_instance(&self, instance_id: &str) -> Result<(), StoreError>;

    /// All instances, in the order in which they were first seen.
    async fn instances(&self) -> Result<Vec<InstanceRow>, StoreError>;

    /// Notes when a webhook came in, unless a later one is noted: of an instance, or of the owner where it is not known.
    async fn note_webhook(&self, instance_id: Option<&str>, received_at: Millis) -> Result<(), StoreError>;
}

/// What the table has of some users.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Rows, with their profiles, and former ids, as a batch about these users would load them.
    pub loaded: Loaded,
    /// Those of the Clerk ids whose snapshots people have to look at: their letters are open, or were discarded within the last day.
    /// Each with the time at which the newest of these was read from the API.
    pub dead: HashMap<String, Millis>,
}

/// Who takes a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Another for each start of a process.
    pub id: Uuid,
    /// The host's name.
    pub host: String,
    /// Role and process id, for people.
    pub process: String,
}

impl Holder {
    /// This process, in this role.
    pub fn of(role: &str) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
            .ok()
            .map(|name| name.trim().to_owned())
            .or_else(|| std::env::var("HOSTNAME").ok())
            .filter(|name| !name.is_empty());
        Self {
            id: Uuid::now_v7(),
            host: host.unwrap_or_else(|| "this host".to_owned()),
            process: format!("{role}, process {}", std::process::id()),
        }
    }
}

/// A lease, and who had it last.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    /// What it is for.
    pub name: String,
    /// [`Holder::id`]; `None` once it was given back.
    pub holder: Option<Uuid>,
    /// [`Holder::host`]
    pub host: String,
    /// [`Holder::process`]
    pub process: String,
    /// Since when it is held.
    pub taken_at: Millis,
    /// Until when, unless it is renewed.
    pub expires_at: Millis,
    /// By the database's clock, that time is over.
    pub expired: bool,
    /// What the last holder to say something said.
    pub state: Option<serde_json::Value>,
}

/// Whether a lease was taken.
#[derive(Clone, Debug, PartialEq)]
pub enum Taken {
    /// By us.
    Ours,
    /// It is somebody else's.
    Theirs(Lease),
}

/// A run to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRun {
    /// The instance that is read.
    pub instance_id: String,
    /// For people.
    pub who: String,
    /// It only looks.
    pub dry_run: bool,
    /// The process that begins it: the holder of the lease.
    pub holder: Uuid,
}

/// A run. Times are the database's clock, but for [`finished_at`](Self::finished_at).
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Sorts by the time when the run was begun.
    pub id: Uuid,
    /// When it was begun, whether it was resumed since or not.
    pub started_at: Millis,
    /// `None`: it can be gone on with.
    pub finished_at: Option<Millis>,
    /// The instance that is read.
    pub instance_id: String,
    /// Who began it, or went on with it last.
    pub who: String,
    /// [`Holder::id`] of that process: no other may write the run down.
    pub holder: Uuid,
    /// It only looks.
    pub dry_run: bool,
    /// Where it is, in the words of sync; empty before it first said so.
    pub phase: String,
    /// From where it goes on; JSON.
    pub cursor: Option<String>,
    /// What it counted.
    pub counts: Counts,
    /// How it ended last. A run that can be gone on with may have failed before.
    pub result: Option<RunResult>,
    /// Why it ended so.
    pub detail: Option<String>,
    /// When it was last written down.
    pub updated_at: Millis,
    /// [`SyncTables::begin_run`] goes on with it, and did not begin it.
    pub resumed: bool,
}

/// What a run counts: users.
#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
#[allow(missing_docs)] // Each field is the column of its name.
pub struct Counts {
    pub clerk: u64,
    pub in_step: u64,
    pub missing: u64,
    pub outdated: u64,
    pub different: u64,
    pub gone: u64,
    pub buried_alive: u64,
    pub repaired: u64,
    pub failed: u64,
}

impl Counts {
    /// Counts a user who stands so.
    pub fn note(&mut self, standing: &Standing) {
        match standing {
            Standing::InStep { .. } | Standing::Newer(_) => self.in_step += 1,
            Standing::Missing => self.missing += 1,
            Standing::Outdated(_) => self.outdated += 1,
            Standing::Different(_) => self.different += 1,
            Standing::BuriedAlive => self.buried_alive += 1,
        }
    }

    /// Counts more users.
    pub fn add(&mut self, more: &Self) {
        let Self { clerk, in_step, missing, outdated, different, gone, buried_alive, repaired, failed } =
            more;
        self.clerk += clerk;
        self.in_step += in_step;
        self.missing += missing;
        self.outdated += outdated;
        self.different += different;
        self.gone += gone;
        self.buried_alive += buried_alive;
        self.repaired += repaired;
        self.failed += failed;
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum RunResult {
    /// It did all that it was to do.
    Done,
    /// It could not finish.
    Failed,
    /// Somebody stopped it.
    Stopped,
    /// Nobody went on with it in time.
    Abandoned,
}

impl RunResult {
    /// Every result.
    pub const ALL: [Self; 4] = [Self::Done, Self::Failed, Self::Stopped, Self::Abandoned];

    /// The stable name: in the table and in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::Abandoned => "abandoned",
        }
    }
}

/// A user that a run has seen in Clerk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The account.
    pub clerk_id: String,
    /// What was published of it.
    pub message_id: Option<String>,
}

/// What became of a message that was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It took effect, with this outcome; `None` where only a newer headcount knows its name.
    Applied(Option<Outcome>),
    /// It is a dead letter that has no effect yet: open, replayed or discarded.
    Buried,
}

/// One step of looking for users that a run did not see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unseen {
    /// Where the next step goes on; `None` at the end of the table.
    pub scanned_to: Option<String>,
    /// Who was not seen.
    pub clerk_ids: Vec<String>,
}

/// How an instance was first met.
#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum SeenBy {
    /// A verified webhook named it.
    Webhook,
    /// A sync read it.
    Sync,
    /// A person named it.
    Adopted,
}

impl SeenBy {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::Webhook, Self::Sync, Self::Adopted];

    /// The stable name: in the table and in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Sync => "sync",
            Self::Adopted => "adopted",
        }
    }
}

/// Whose the table is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The instance.
    pub owner: Option<String>,
    /// Other instances that were seen, in the order in which they were.
    pub others: Vec<String>,
}

/// An instance of Clerk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceRow {
    /// `ins_…`
    pub instance_id: String,
    /// By the database's clock.
    pub first_seen_at: Millis,
    /// How.
    pub first_seen_by: SeenBy,
    /// The table is its.
    pub owner: bool,
    /// When the ingress took in its newest webhook.
    pub last_webhook_at: Option<Millis>,
}
