//! Owns the caller's sessions: noting them, and showing them to their user. Promises that noting costs no request any time, and
//! writes a session once a minute at most.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde::Serialize;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tracing::{info, warn};

use super::{Api, caller::Known, json, limits::Limits};
use crate::{
    clerk::token::Caller,
    net::Problem,
    store::{
        Store,
        sessions::{Session, Sighting},
    },
    time::{now, rfc3339},
};

/// The most sightings of one statement.
const TOGETHER: usize = 500;
/// The most that wait to be written. More than these are forgotten: they come again.
const WAITING: usize = 10_000;
/// How long a user who looks at the sessions waits for the newest to be written.
pub(super) const WRITTEN: Duration = Duration::from_secs(1);

enum Work {
    Note(Sighting),
    /// Tell once all that came before is written.
    Tell(oneshot::Sender<()>),
}

/// Notes sessions, beside the requests.
pub(super) struct Sessions {
    limits: Arc<Limits>,
    work: mpsc::Sender<Work>,
}

impl Sessions {
    /// Starts to note, until it is dropped; the task ends once all that was seen is written.
    pub(super) fn new(store: Arc<dyn Store>, limits: Arc<Limits>) -> (Self, JoinHandle<()>) {
        let (work, waiting) = mpsc::channel(WAITING);
        let writing = tokio::spawn(write(store, waiting));
        (Self { limits, work }, writing)
    }

    /// A token of this session was seen.
    pub(super) fn saw(&self, caller: &Caller) {
        let act = caller.act.as_ref().and_then(|act| serde_json::to_string(act).ok());
        if !self.limits.sighting(&caller.session_id, act.as_deref()) {
            return;
        }
        let sighting = Sighting {
            id: caller.session_id.clone(),
            clerk_id: caller.clerk_id.clone(),
            at: now(),
            issued_at: caller.issued_at.unwrap_or_default(),
            act,
        };
        // Where there is no room, the next minute brings it.
        let _ = self.work.try_send(Work::Note(sighting));
    }

    /// Waits until what was seen before is written, but not for long.
    async fn written(&self) {
        let (tell, told) = oneshot::channel();
        let written = async {
            if self.work.send(Work::Tell(tell)).await.is_ok() {
                let _ = told.await;
            }
        };
        // A database that takes no writes shows what it has.
        let _ = timeout(WRITTEN, written).await;
    }
}

async fn write(store: Arc<dyn Store>, mut waiting: mpsc::Receiver<Work>) {
    let (mut together, mut failing) = (Vec::new(), false);
    while waiting.recv_many(&mut together, TOGETHER).await > 0 {
        let (mut seen, mut tell) = (HashMap::new(), Vec::new());
        for work in together.drain(..) {
            match work {
                Work::Note(mut sighting) => {
                    let earlier = seen.remove(&sighting.id).and_then(|earlier: Sighting| earlier.act);
                    sighting.act = sighting.act.or(earlier);
                    seen.insert(sighting.id.clone(), sighting);
                }
                Work::Tell(answer) => tell.push(answer),
            }
        }
        let seen: Vec<Sighting> = seen.into_values().collect();
        if !seen.is_empty() {
            let saw = store.saw_sessions(&seen).await;
            let was_failing = std::mem::replace(&mut failing, saw.is_err());
            match saw {
                Err(error) if !was_failing => warn!("sessions whose tokens are seen are not noted: {error}"),
                Ok(()) if was_failing => info!("sessions whose tokens are seen are noted again"),
                Ok(()) | Err(_) => {}
            }
        }
        for answer in tell {
            let _ = answer.send(());
        }
    }
}

/// What `GET /v1/me/sessions` answers.
#[derive(Serialize)]
struct Shown<'s> {
    sessions: Vec<One<'s>>,
}

#[derive(Serialize)]
struct One<'s> {
    id: &'s str,
    status: &'static str,
    /// It is the one that asks.
    current: bool,
    created_at: String,
    last_seen_at: String,
    ended_at: Option<String>,
}

impl<'s> One<'s> {
    fn of(session: &'s Session, current: &str) -> Self {
        Self {
            id: &session.id,
            status: session.status.as_str(),
            current: session.id == current,
            created_at: rfc3339(session.created_at),
            last_seen_at: rfc3339(session.last_seen_at),
            ended_at: session.ended_at.map(rfc3339),
        }
    }
}

/// `GET /v1/me/sessions`
pub(super) async fn list(State(api): State<Arc<Api>>, Known(caller): Known) -> Result<Response, Response> {
    let Some(sessions) = &api.sessions else {
        let off = Problem::new(StatusCode::NOT_FOUND, "not_found", "no sessions are kept here");
        return Err(off.hint("set HEADCOUNT_SESSIONS to true").into_response());
    };
    api.row(&caller).await?;
    sessions.written().await;
    let _turn = api.turns.acquire().await;
    let known = api.store.sessions_of(&caller.clerk_id).await.map_err(|error| api.unavailable(&error))?;
    let shown = known.iter().map(|session| One::of(session, &caller.session_id));
    Ok(json(&Shown { sessions: shown.collect() }))
}
