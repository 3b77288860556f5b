//! Owns live updates: a stream of server-sent events for each page that listens. Promises that a change of a row is told within about
//! a second of its commit, by whichever process it was made; that looking costs one query in half a second, however many listen;
//! and that the pipeline does nothing for it.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, StatusCode, header};
use metrics::Gauge;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::debug;

use super::{
    Api,
    caller::Known,
    lookups::Lookups,
    me::{Shown, user},
};
use crate::{
    net::Problem,
    stop::until,
    store::{
        Store, User,
        accounts::{Account, Mark},
        sessions::Ended,
    },
};

/// A stream ends after so long; its client connects again, with a token that is valid then.
pub(super) const AGE: Duration = Duration::from_secs(3_600);
/// How often it is looked what has changed.
const LOOK: Duration = Duration::from_millis(500);
/// The most accounts of one query.
const TOGETHER: usize = 2_000;
/// The most streams of one process.
const STREAMS_MAX: usize = 8_000;
/// How often something is written, so that proxies keep the connection.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a look that fails may take before the next.
const FAILED: Duration = Duration::from_secs(2);

/// Who listens.
#[derive(Clone)]
pub(super) struct Streams {
    register: Arc<Mutex<Register>>,
    open: Gauge,
    stop: watch::Receiver<bool>,
}

#[derive(Default)]
struct Register {
    accounts: HashMap<String, Listened>,
    /// By session and account: turns true at the session's end.
    sessions: HashMap<Ended, Session>,
    streams: usize,
}

/// An account whose changes are listened for.
struct Listened {
    /// As it was last seen.
    mark: Option<Mark>,
    /// How often it has changed since.
    changes: watch::Sender<u64>,
    streams: usize,
}

/// A session whose end is listened for.
struct Session {
    ended: watch::Sender<bool>,
    streams: usize,
}

impl Streams {
    /// Starts to look, until the last clone is dropped.
    pub(super) fn new(store: Arc<dyn Store>, open: Gauge, stop: watch::Receiver<bool>) -> Self {
        let streams = Self { register: Arc::default(), open, stop: stop.clone() };
        let register = Arc::downgrade(&streams.register);
        tokio::spawn(async move {
            loop {
                sleep(LOOK).await;
                let Some(register) = register.upgrade() else { return };
                if *stop.borrow() {
                    return;
                }
                if let Err(error) = look(store.as_ref(), &register).await {
                    debug!("live updates wait for the database: {error}");
                    sleep(FAILED).await;
                }
            }
        });
        streams
    }

    fn register(&self) -> MutexGuard<'_, Register> {
        lock(&self.register)
    }

    /// Listens for changes of this account, and for the end of this session; `None` where too many listen.
    fn listen(&self, clerk_id: &str, session: Option<&str>) -> Option<Listener> {
        let mut register = self.register();
        if register.streams >= STREAMS_MAX {
            return None;
        }
        register.streams += 1;
        self.open.increment(1.0);
        let listened = register.accounts.entry(clerk_id.to_owned());
        let listened =
            listened.or_insert_with(|| Listened { mark: None, changes: watch::Sender::new(0), streams: 0 });
        listened.streams += 1;
        let changes = listened.changes.subscribe();
        let session = session.map(|session| {
            let session = (session.to_owned(), clerk_id.to_owned());
            let known = register.sessions.entry(session.clone());
            let known = known.or_insert_with(|| Session { ended: watch::Sender::new(false), streams: 0 });
            known.streams += 1;
            (session, known.ended.subscribe())
        });
        Some(Listener { streams: self.clone(), clerk_id: clerk_id.to_owned(), changes, session })
    }
}

fn lock(register: &Mutex<Register>) -> MutexGuard<'_, Register> {
    register.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks once which of the accounts have changed, and which of the sessions have ended.
async fn look(store: &dyn Store, register: &Mutex<Register>) -> Result<(), crate::store::StoreError> {
    let (ids, sessions): (Vec<String>, Vec<String>) = {
        let register = lock(register);
        (
            register.accounts.keys().cloned().collect(),
            register.sessions.keys().map(|(id, _)| id.clone()).collect(),
        )
    };
    let (mut sessions, mut ids) = (sessions.chunks(TOGETHER), ids.chunks(TOGETHER));
    loop {
        let (ids, sessions) = match (ids.next(), sessions.next()) {
            (None, None) => return Ok(()),
            (ids, sessions) => (ids.unwrap_or_default(), sessions.unwrap_or_default()),
        };
        let (marks, ended) = store.marks(ids, sessions).await?;
        let mut marks: HashMap<String, Mark> =
            marks.into_iter().map(|mark| (mark.clerk_id.clone(), mark)).collect();
        let mut register = lock(register);
        for session in ended {
            if let Some(session) = register.sessions.get(&session) {
                session.ended.send_replace(true);
            }
        }
        for clerk_id in ids {
            let Some(listened) = register.accounts.get_mut(clerk_id) else { continue };
            let mark = marks.remove(clerk_id);
            if listened.mark != mark {
                listened.mark = mark;
                listened.changes.send_modify(|changes| *changes += 1);
            }
        }
    }
}

/// One stream's part in the register: ends when dropped.
struct Listener {
    streams: Streams,
    clerk_id: String,
    changes: watch::Receiver<u64>,
    session: Option<(Ended, watch::Receiver<bool>)>,
}

impl Listener {
    /// Waits for the end of the session.
    async fn ended(session: Option<watch::Receiver<bool>>) {
        match session {
            Some(ended) => until(&ended, |ended| *ended).await,
            None => std::future::pending().await,
        }
    }

    /// What this stream shows is what the next look is compared with, unless another stream has looked before.
    fn begins_with(&self, user: &User) {
        if let Some(listened) = self.streams.register().accounts.get_mut(&self.clerk_id)
            && listened.mark.is_none()
        {
            listened.mark = Some(Mark::of(user));
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut register = self.streams.register();
        register.streams -= 1;
        self.streams.open.decrement(1.0);
        if let Some(listened) = register.accounts.get_mut(&self.clerk_id) {
            listened.streams -= 1;
            if listened.streams == 0 {
                register.accounts.remove(&self.clerk_id);
            }
        }
        if let Some((id, _)) = &self.session
            && let Some(session) = register.sessions.get_mut(id)
        {
            session.streams -= 1;
            if session.streams == 0 {
                register.sessions.remove(id);
            }
        }
    }
}

/// `GET /v1/me/events`
pub(super) async fn stream(
    State(api): State<Arc<Api>>,
    Known(caller): Known,
    headers: HeaderMap,
) -> Result<Response, Response> {
    let session = api.sessions.as_ref().map(|_| caller.session_id.as_str());
    let Some(listener) = api.streams.listen(&caller.clerk_id, session) else {
        let full = "too many streams are open in this process";
        return Err(Problem::unavailable(full).into_response());
    };
    let found = api.row(&caller).await?;
    let first = user(&found).map_err(IntoResponse::into_response)?;
    listener.begins_with(first);
    let shown = Shown::of(first).map_err(IntoResponse::into_response)?;
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let told = if last.as_deref() == Some(&shown.tag) { b": unchanged\n\n".to_vec() } else { event(&shown) };
    let open = Open {
        lookups: api.lookups.clone(),
        listener,
        shown: shown.tag,
        ends: Instant::now() + AGE,
        next: Some(Bytes::from(told)),
        over: false,
    };
    let body = Body::from_stream(stream::unfold(open, |mut open| async {
        let told = open.told().await?;
        Some((Ok::<_, Infallible>(told), open))
    }));
    let headers = [(header::CONTENT_TYPE.as_str(), "text/event-stream"), ("x-accel-buffering", "no")];
    Ok((StatusCode::OK, headers, body).into_response())
}

/// A stream that is open.
struct Open {
    lookups: Lookups,
    listener: Listener,
    /// The tag of what was told last.
    shown: String,
    ends: Instant,
    /// To be told before anything else.
    next: Option<Bytes>,
    over: bool,
}

impl Open {
    /// What is to be told next; `None` at the end.
    async fn told(&mut self) -> Option<Bytes> {
        if let Some(next) = self.next.take() {
            return Some(next);
        }
        if self.over {
            return None;
        }
        let stop = self.listener.streams.stop.clone();
        let session = self.listener.session.as_ref().map(|(_, ended)| ended.clone());
        let mut again = false;
        loop {
            let news = async {
                match again {
                    true => {
                        sleep(FAILED).await;
                        Ok(Ok(()))
                    }
                    false => timeout(HEARTBEAT, self.listener.changes.changed()).await,
                }
            };
            tokio::select! {
                () = until(&stop, |stop| *stop) => return None,
                () = Listener::ended(session.clone()) => return self.ended_with_user().await,
                () = sleep_until(self.ends) => return None,
                changed = news => match changed {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return None,
                    Err(_) => return Some(Bytes::from_static(b": still here\n\n")),
                },
            }
            again = false;
            match self.lookups.account(&self.listener.clerk_id, None).await? {
                Ok((Some(account), _)) => match &*account {
                    Account::Row(user) if user.deleted_at.is_none() => {
                        let shown = Shown::of(user).ok()?;
                        if shown.tag != self.shown {
                            self.shown.clone_from(&shown.tag);
                            return Some(Bytes::from(event(&shown)));
                        }
                    }
                    Account::Row(_) | Account::Former { .. } => return Some(self.end()),
                },
                Ok((None, _)) => return Some(self.end()),
                Err(_) => again = true,
            }
        }
    }

    /// What is told at the end of the session: nothing, unless the user was deleted.
    async fn ended_with_user(&mut self) -> Option<Bytes> {
        match self.lookups.account(&self.listener.clerk_id, None).await?.ok()?.0.as_deref() {
            Some(Account::Row(user)) if user.deleted_at.is_none() => None,
            Some(Account::Row(_) | Account::Former { .. }) | None => Some(self.end()),
        }
    }

    fn end(&mut self) -> Bytes {
        self.over = true;
        Bytes::from_static(b"event: deleted\ndata: {}\n\n")
    }
}

fn event(shown: &Shown) -> Vec<u8> {
    format!("id: {}\nevent: user\ndata: {}\n\n", shown.tag, shown.json).into_bytes()
}
