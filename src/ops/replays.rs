//! Owns replays that run inside a server process: who started them, how far they are, and how they ended. Promises that
//! they are few, that each can be stopped, and that the process ends none half-way. They are remembered in memory only:
//! the letters themselves remember what happened to them.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use serde::Serialize;
use tokio::sync::watch;
use tracing::{info, warn};
use uuid::Uuid;

use crate::{
    letters::replay::{End, Order, Progress, Replayer},
    stop::until,
    store::letters::Publication,
    time::{now, rfc3339},
};

/// Replays that run at a time.
const RUNNING_MAX: usize = 4;
/// Operations that are remembered.
const KEPT: usize = 100;

/// How an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// On its way.
    Running,
    /// Every letter that was open when it began is on its way.
    Complete,
    /// The limit is reached; there may be more.
    Limit,
    /// Somebody stopped it.
    Stopped,
    /// The queue or the database is away.
    Failed,
}

/// An operation, as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Operation {
    /// Its id.
    pub id: Uuid,
    /// Who started it.
    pub by: String,
    /// RFC 3339.
    pub started_at: String,
    /// RFC 3339; null while it runs.
    pub ended_at: Option<String>,
    /// How it stands.
    pub state: State,
    /// Letters that were expected when it started.
    pub expected: u64,
    /// Why what it sends will not be taken up at once, where that was so when it started.
    pub warnings: Vec<String>,
    /// How far it is.
    #[serde(flatten)]
    pub report: Progress,
    /// Why it failed.
    pub error: Option<String>,
}

/// Too many run.
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
    /// None yet.
    pub fn new(replayer: Replayer) -> Self {
        Self { replayer, all: Mutex::new(Some(VecDeque::new())) }
    }

    /// What sends letters back.
    pub fn replayer(&self) -> &Replayer {
        &self.replayer
    }

    /// Starts a replay.
    ///
    /// # Errors
    /// Too many run, or the process is stopping.
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
            state: State::Running,
            expected,
            warnings,
            report: Progress::default(),
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
            let shown = |report: &Progress, _: &[Publication]| {
                kept.state.send_modify(|operation| operation.report = *report);
            };
            let (report, ended) = replayer.run(&order, shown, &stop).await;
            let (state, error) = match ended {
                End::Complete => (State::Complete, None),
                End::Limit => (State::Limit, None),
                End::Stopped => (State::Stopped, None),
                End::Queue(error) => (State::Failed, Some(error.to_string())),
                End::Store(error) => (State::Failed, Some(error.to_string())),
            };
            match &error {
                Some(why) => warn!("replay {} failed after {} letters: {why}", kept.id, report.published),
                None => info!("replay {} ended: {} letters", kept.id, report.published),
            }
            kept.state.send_modify(|operation| {
                *operation =
                    Operation { state, error, report, ended_at: Some(rfc3339(now())), ..operation.clone() };
            });
        });
        Ok(operation)
    }

    /// All that are remembered, the newest first.
    pub fn list(&self) -> Vec<Operation> {
        self.kept().iter().rev().map(|kept| kept.state.borrow().clone()).collect()
    }

    /// One of them.
    pub fn get(&self, id: Uuid) -> Option<Operation> {
        self.kept().iter().find(|kept| kept.id == id).map(|kept| kept.state.borrow().clone())
    }

    /// Asks one to stop; what it has claimed is still published.
    pub fn stop(&self, id: Uuid) -> Option<Operation> {
        let kept = self.kept().into_iter().find(|kept| kept.id == id)?;
        kept.stop.send_replace(true);
        Some(kept.state.borrow().clone())
    }

    /// Starts no more, stops those that run, and waits for them.
    pub async fn finish(&self) {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner).take();
        for kept in all.iter().flatten() {
            kept.stop.send_replace(true);
        }
        for kept in all.iter().flatten() {
            until(&kept.state.subscribe(), |operation| operation.state != State::Running).await;
        }
    }

    fn kept(&self) -> Vec<Arc<Kept>> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().flatten().cloned().collect()
    }
}

impl Kept {
    fn is_running(&self) -> bool {
        self.state.borrow().state == State::Running
    }
}
