//! Owns how keeping in step through Clerk's API is shown to people: the watch, the whole runs, the instances. Times are RFC 3339
//! in UTC. Shows ids and numbers, nothing of a user.

use std::sync::Arc;

use serde::Serialize;
use uuid::Uuid;

use crate::{
    store::{
        Store, StoreError,
        sync::{Counts, InstanceRow, Lease, Run, RunResult, SeenBy},
    },
    sync::watch::{
        LEASE, alarm,
        state::{Healed, State, Trouble},
    },
    time::{Millis, now, rfc3339},
};

/// The most runs that are shown.
const RUNS: u32 = 20;

/// All of it.
#[derive(Debug, Serialize)]
pub struct Whole {
    /// The Clerk instances that webhooks or syncs have named, in the order in which they were first seen.
    pub instances: Vec<Instance>,
    /// `None` where nobody has watched yet.
    pub watch: Option<Watch>,
    /// The newest whole runs, the newest first.
    pub runs: Vec<WholeRun>,
}

/// What matters of it at a glance.
#[derive(Clone, Debug, Serialize)]
pub struct Glance {
    /// When the last webhook came in, of whichever instance.
    pub last_webhook_at: Option<String>,
    /// `None` where nobody has watched yet.
    pub watch: Option<Watch>,
    /// The last whole run that was to repair.
    pub last_run: Option<WholeRun>,
}

/// A Clerk instance.
#[derive(Debug, Serialize)]
pub struct Instance {
    /// `ins_…`
    pub instance_id: String,
    /// The table belongs to it.
    pub owner: bool,
    /// When it was first seen.
    pub first_seen_at: String,
    /// How it was first seen.
    pub first_seen_by: SeenBy,
    /// When its last webhook came in.
    pub last_webhook_at: Option<String>,
}

/// How the watch stands, as the process said that looked last.
#[derive(Clone, Debug, Serialize)]
pub struct Watch {
    /// Somebody watches now.
    pub watched: bool,
    /// Who does, or did last: its host, its role and its process id.
    pub by: String,
    /// The instance that is watched.
    pub instance_id: Option<String>,
    /// When the last whole look at Clerk began.
    pub looked_at: Option<String>,
    /// The newest change in Clerk.
    pub newest_in_clerk: Option<String>,
    /// The newest change that the table has of the users who were looked at.
    pub newest_here: Option<String>,
    /// How old the oldest change is that Clerk has and the table lacks, once the grace is over. 0: in step.
    pub behind_seconds: Option<u64>,
    /// Users that only Clerk's API brought in the last 24 hours.
    pub healed_last_day: Healed,
    /// When users were last counted.
    pub counted_at: Option<String>,
    /// How many there were in Clerk.
    pub users_in_clerk: Option<u64>,
    /// How many were live here.
    pub users_here: Option<u64>,
    /// Webhooks do not arrive.
    pub alarm: Option<Notice>,
    /// Clerk cannot be watched.
    pub error: Option<Notice>,
    /// The last sync found more users gone than it may delete.
    pub refused: Option<Notice>,
    /// How many seconds Clerk's clock is ahead, where that matters.
    pub clock_offset_seconds: Option<i64>,
}

/// Something that people should know.
#[derive(Clone, Debug, Serialize)]
pub struct Notice {
    /// Since when.
    pub since: String,
    /// What it is.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// A run through every user.
#[derive(Clone, Debug, Serialize)]
pub struct WholeRun {
    /// Its id.
    pub id: Uuid,
    /// Who began it, or went on with it last.
    pub who: String,
    /// When it began.
    pub started_at: String,
    /// When it ended.
    pub finished_at: Option<String>,
    /// When it last wrote down how far it is.
    pub updated_at: String,
    /// The instance that was read.
    pub instance_id: String,
    /// It only looked.
    pub dry_run: bool,
    /// Where it is, or was when it ended.
    pub phase: String,
    /// How it ended last; `None` while it is on, or where it was killed.
    pub result: Option<RunResult>,
    /// Why it ended so.
    pub detail: Option<String>,
    /// Users.
    #[serde(flatten)]
    pub counts: Counts,
}

/// Reads all of it.
///
/// # Errors
/// The database does not answer.
pub async fn read(store: &Arc<dyn Store>) -> Result<Whole, StoreError> {
    let instances = store.instances().await?.into_iter().map(Instance::from).collect();
    let runs = store.runs(RUNS).await?.into_iter().map(WholeRun::from).collect();
    Ok(Whole { instances, watch: watch(store).await?, runs })
}

/// Reads what matters at a glance; `None` where nothing is known.
///
/// # Errors
/// The database does not answer.
pub async fn glance(store: &Arc<dyn Store>) -> Result<Option<Glance>, StoreError> {
    let last_webhook_at = store.instances().await?.iter().filter_map(|row| row.last_webhook_at).max();
    let last_run = store.real_runs(1).await?.into_iter().next().map(WholeRun::from);
    let watch = watch(store).await?;
    let is_known = last_webhook_at.is_some() || last_run.is_some() || watch.is_some();
    Ok(is_known.then(|| Glance { last_webhook_at: last_webhook_at.map(rfc3339), watch, last_run }))
}

/// Reads how the watch stands; `None` where nobody has watched yet.
///
/// # Errors
/// The database does not answer.
pub async fn watch(store: &Arc<dyn Store>) -> Result<Option<Watch>, StoreError> {
    let lease = store.lease(LEASE).await?;
    Ok(lease.map(|lease| Watch::of(&lease, now())))
}

impl Watch {
    fn of(lease: &Lease, now: Millis) -> Self {
        let state = lease.state.clone().and_then(|state| serde_json::from_value::<State>(state).ok());
        let state = state.unwrap_or_default();
        let counted = state.counted.at.is_some();
        Self {
            watched: !lease.expired && !state.looks_off,
            by: format!("{} on {}", lease.process, lease.host),
            healed_last_day: state.healed_in_a_day(now),
            looked_at: state.looked_at.map(rfc3339),
            newest_in_clerk: state.newest_in_clerk.map(rfc3339),
            newest_here: state.newest_here.map(rfc3339),
            behind_seconds: state.behind_seconds,
            counted_at: state.counted.at.map(rfc3339),
            users_in_clerk: counted.then_some(state.counted.clerk),
            users_here: counted.then_some(state.counted.here),
            alarm: state.alarm.map(|alarm| Notice {
                since: rfc3339(alarm.since),
                message: alarm.to_string(),
                hint: alarm::HINT.into(),
            }),
            error: state.error.map(Notice::from),
            refused: state.counted.refused.map(|refused| refused.trouble.into()),
            clock_offset_seconds: state.clock_offset_ms.map(|offset| offset / 1000),
            instance_id: state.instance,
        }
    }
}

impl From<Trouble> for Notice {
    fn from(trouble: Trouble) -> Self {
        Self {
            since: rfc3339(trouble.since),
            message: trouble.message,
            hint: trouble.hint.unwrap_or_default(),
        }
    }
}

impl From<InstanceRow> for Instance {
    fn from(row: InstanceRow) -> Self {
        Self {
            instance_id: row.instance_id,
            owner: row.owner,
            first_seen_at: rfc3339(row.first_seen_at),
            first_seen_by: row.first_seen_by,
            last_webhook_at: row.last_webhook_at.map(rfc3339),
        }
    }
}

impl From<Run> for WholeRun {
    fn from(run: Run) -> Self {
        Self {
            id: run.id,
            who: run.who,
            started_at: rfc3339(run.started_at),
            finished_at: run.finished_at.map(rfc3339),
            updated_at: rfc3339(run.updated_at),
            instance_id: run.instance_id,
            dry_run: run.dry_run,
            phase: run.phase,
            result: run.result,
            detail: run.detail,
            counts: run.counts,
        }
    }
}
