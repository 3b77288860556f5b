//! Owns replays that run inside a server process: the routes that start and stop them, who started them, how far they
//! are, and how they ended.
//!
//! Promises that at most four run at a time, that each can be stopped, and that the process ends none half-way. They are
//! remembered in memory only: the letters' histories remember what happened to the letters.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{info, warn};
use uuid::Uuid;

use super::{
    Api,
    dead::{Counted, counted, select},
    json,
    problem::Problem,
    request::{Json, Named},
};
use crate::{
    letters::{
        replay::{End, Order, Progress, Replayer, nobody_works},
        select::Selection,
    },
    stop::until,
    store::letters::{Publication, Status},
    time::{now, rfc3339},
};

/// Replays that run at a time.
const RUNNING_MAX: usize = 4;
/// Replays that are remembered.
const KEPT: usize = 100;

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It claims and publishes letters.
    Running,
    /// It published every letter that was open when it began.
    Complete,
    /// It reached its limit; more letters may be open.
    Limit,
    /// Somebody stopped it, or the process stops.
    Stopped,
    /// The queue or the database did not answer.
    Failed,
}

/// A replay that this process runs or ran, as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Operation {
    /// Made by this process, of version 7.
    pub id: Uuid,
    /// The actor that started it.
    pub by: String,
    /// RFC 3339.
    pub started_at: String,
    /// RFC 3339; null while it runs.
    pub ended_at: Option<String>,
    /// How far it is.
    pub state: Phase,
    /// Open letters that it meant when it started, at most its limit.
    pub expected: u64,
    /// Why no worker would take the letters at once, as of its start.
    pub warnings: Vec<String>,
    /// What it has done so far.
    #[serde(flatten)]
    pub progress: Progress,
    /// Why it failed; null unless it did.
    pub error: Option<String>,
}

/// No further replay can start.
#[derive(Debug, thiserror::Error)]
#[error("{RUNNING_MAX} replays run already, or this process is stopping")]
pub struct Busy;

struct Kept {
    id: Uuid,
    state: watch::Sender<Operation>,
    stop: watch::Sender<bool>,
}

/// The replays of this process.
pub struct Operations {
    replayer: Replayer,
    /// `None` once the process stops.
    all: Mutex<Option<VecDeque<Arc<Kept>>>>,
}

impl Operations {
    /// Remembers no replay yet.
    pub fn new(replayer: Replayer) -> Self {
        Self { replayer, all: Mutex::new(Some(VecDeque::new())) }
    }

    /// Publishes the letters.
    pub fn replayer(&self) -> &Replayer {
        &self.replayer
    }

    /// Starts a replay.
    ///
    /// # Errors
    /// As many as may run do, or the process is stopping.
    pub fn start(
        self: &Arc<Self>,
        order: Order,
        expected: u64,
        warnings: Vec<String>,
    ) -> Result<Operation, Busy> {
        let operation = Operation {
            id: Uuid::now_v7(),
            by: order.by.name.clone(),
            started_at: rfc3339(now()),
            ended_at: None,
            state: Phase::Running,
            expected,
            warnings,
            progress: Progress::default(),
            error: None,
        };
        let kept = Arc::new(Kept {
            id: operation.id,
            state: watch::Sender::new(operation.clone()),
            stop: watch::Sender::new(false),
        });
        {
            let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            let all = all.as_mut().ok_or(Busy)?;
            let running = all.iter().filter(|kept| kept.is_running()).count();
            if running >= RUNNING_MAX {
                return Err(Busy);
            }
            if all.len() >= KEPT
                && let Some(oldest) = all.iter().position(|kept| !kept.is_running())
            {
                all.remove(oldest);
            }
            all.push_back(Arc::clone(&kept));
        }
        info!("replay {} begins: {expected} letters, by {}", kept.id, order.by.name);
        let replayer = self.replayer.clone();
        tokio::spawn(async move {
            let stop = kept.stop.subscribe();
            let shown = |progress: &Progress, _: &[Publication]| {
                kept.state.send_modify(|operation| operation.progress = *progress);
            };
            let (progress, ended) = replayer.run(&order, shown, &stop).await;
            let (state, error) = match ended {
                End::Complete => (Phase::Complete, None),
                End::Limit => (Phase::Limit, None),
                End::Stopped => (Phase::Stopped, None),
                End::Queue(error) => (Phase::Failed, Some(error.to_string())),
                End::Store(error) => (Phase::Failed, Some(error.to_string())),
            };
            match &error {
                Some(why) => warn!("replay {} failed after {} letters: {why}", kept.id, progress.published),
                None => info!("replay {} ended: {} letters", kept.id, progress.published),
            }
            kept.state.send_modify(|operation| {
                *operation =
                    Operation { state, error, progress, ended_at: Some(rfc3339(now())), ..operation.clone() };
            });
        });
        Ok(operation)
    }

    /// The replays that are remembered, the newest first.
    pub fn list(&self) -> Vec<Operation> {
        self.kept().iter().rev().map(|kept| kept.state.borrow().clone()).collect()
    }

    /// A replay that is remembered.
    pub fn get(&self, id: Uuid) -> Option<Operation> {
        self.kept().iter().find(|kept| kept.id == id).map(|kept| kept.state.borrow().clone())
    }

    /// Asks a replay to stop. It still publishes what it has claimed.
    pub fn stop(&self, id: Uuid) -> Option<Operation> {
        let kept = self.kept().into_iter().find(|kept| kept.id == id)?;
        kept.stop.send_replace(true);
        Some(kept.state.borrow().clone())
    }

    /// Lets no replay start any more, stops those that run, and waits for their end.
    pub async fn finish(&self) {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner).take();
        for kept in all.iter().flatten() {
            kept.stop.send_replace(true);
        }
        for kept in all.iter().flatten() {
            until(&kept.state.subscribe(), |operation| operation.state != Phase::Running).await;
        }
    }

    fn kept(&self) -> Vec<Arc<Kept>> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().flatten().cloned().collect()
    }
}

impl Kept {
    fn is_running(&self) -> bool {
        self.state.borrow().state == Phase::Running
    }
}

/// The body of a request to replay.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReplayRequest {
    filter: Selection,
    #[serde(default = "thousand")]
    limit: u64,
    #[serde(default)]
    rate: Option<f64>,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    note: Option<String>,
}

fn thousand() -> u64 {
    1000
}

#[derive(Serialize)]
struct Listed {
    operations: Vec<Operation>,
}

pub(super) async fn start(
    State(api): State<Arc<Api>>,
    Json(request): Json<ReplayRequest>,
) -> Result<Response, Problem> {
    request.filter.check_action()?;
    if request.limit == 0 {
        return Err(Problem::bad_request("limit has to be at least 1"));
    }
    if request.rate.is_some_and(|rate| !(0.001..=1_000_000.0).contains(&rate)) {
        return Err(Problem::bad_request("rate has to be between 0.001 and 1000000 per second"));
    }
    if request.filter.status.as_deref().is_some_and(|status| status != Status::Open.as_str()) {
        return Err(Problem::bad_request("only open letters are replayed: leave the status out"));
    }
    let mut filter = select(&api, &request.filter, Some(Status::Open)).await?.filter;
    filter.status = Some(Status::Open);
    let Counted { letters, by } = counted(&api, filter.clone()).await?;
    if request.dry_run {
        return Ok(json(StatusCode::OK, &Counted { letters: letters.min(request.limit), by }));
    }
    let by = api.actor(request.note.as_deref());
    let order = Order { filter, limit: request.limit, rate: request.rate, by };
    let warnings = nobody_works(api.queue.as_ref()).await.into_iter().collect();
    let operation = api.operations.start(order, letters.min(request.limit), warnings)?;
    let place = format!("/api/v1/dead/operations/{}", operation.id);
    Ok(([(header::LOCATION, place)], json(StatusCode::ACCEPTED, &operation)).into_response())
}

pub(super) async fn list(State(api): State<Arc<Api>>) -> Response {
    json(StatusCode::OK, &Listed { operations: api.operations.list() })
}

pub(super) async fn show(State(api): State<Arc<Api>>, Named(id): Named) -> Result<Response, Problem> {
    found(Uuid::try_parse(&id).ok().and_then(|id| api.operations.get(id)))
}

pub(super) async fn stop(State(api): State<Arc<Api>>, Named(id): Named) -> Result<Response, Problem> {
    found(Uuid::try_parse(&id).ok().and_then(|id| api.operations.stop(id)))
}

fn found(operation: Option<Operation>) -> Result<Response, Problem> {
    let operation = operation.ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, "unknown_operation", "no replay of this process has this id")
            .hint("a process remembers its own replays, and those since its start; the letters remember all")
    })?;
    Ok(json(StatusCode::OK, &operation))
}
