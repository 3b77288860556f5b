//! Owns liveness and readiness.
//!
//! Promises an answer within [`READY_LIMIT`], and at most one check of each part at a time, however many requests come.
//! Never cancels a check.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{extract::State, response::Response};
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use http::StatusCode;
use serde_json::{Map, Value, json};
use tokio::{sync::watch, task::AbortHandle, time::timeout};

use super::Own;
use crate::{net::json_response, queue::Queue, store::Batches, worker};

/// The longest that `/readyz` takes.
pub(super) const READY_LIMIT: Duration = Duration::from_secs(2);

/// What readiness depends on.
pub(super) struct Readiness {
    queue: Arc<dyn Queue>,
    store: Option<Arc<dyn Batches>>,
    worker: Option<watch::Receiver<worker::Health>>,
    notices: watch::Receiver<Vec<String>>,
    queue_check: OneAtATime,
    store_check: OneAtATime,
}

impl Readiness {
    pub(super) fn new(
        queue: Arc<dyn Queue>,
        store: Option<Arc<dyn Batches>>,
        worker: Option<watch::Receiver<worker::Health>>,
        notices: watch::Receiver<Vec<String>>,
    ) -> Self {
        let (queue_check, store_check) = (OneAtATime::default(), OneAtATime::default());
        Self { queue, store, worker, notices, queue_check, store_check }
    }

    async fn queue(&self) -> Result<(), String> {
        let queue = Arc::clone(&self.queue);
        self.queue_check.ask(READY_LIMIT, || async move { queue.ready().await.map_err(text) }).await?;
        let troubles = self.queue.troubles();
        match troubles.is_empty() {
            true => Ok(()),
            false => Err(troubles
                .iter()
                .map(|trouble| format!("{}: {}", trouble.part, trouble.why))
                .collect::<Vec<_>>()
                .join("; ")),
        }
    }

    async fn store(&self) -> Option<Result<(), String>> {
        let store = Arc::clone(self.store.as_ref()?);
        Some(
            self.store_check
                .ask(READY_LIMIT, || async move {
                    store.ready().await.map_err(|error| match &error.hint {
                        Some(hint) => format!("{error}; {hint}"),
                        None => text(error),
                    })
                })
                .await,
        )
    }

    fn worker(&self) -> Option<Result<(), String>> {
        let worker = self.worker.as_ref()?;
        if worker.has_changed().is_err() {
            return Some(Err("it has stopped".into()));
        }
        Some(worker.borrow().paused.clone().map_or(Ok(()), |why| Err(format!("paused: {why}"))))
    }
}

fn text(error: impl fmt::Display) -> String {
    error.to_string()
}

/// 200 while the process runs.
pub(super) async fn livez() -> &'static str {
    "ok\n"
}

/// 200 while queue, store and worker can do their work, else 503. The body says which of them cannot, and why; and what else
/// people should know, which makes nothing unready.
pub(super) async fn readyz(State(own): State<Arc<Own>>) -> Response {
    let parts = &own.readiness;
    let (queue, store) = tokio::join!(parts.queue(), parts.store());
    let checks = [("queue", Some(queue)), ("store", store), ("worker", parts.worker())];
    let checks = checks.into_iter().filter_map(|(name, check)| Some((name, check?)));
    let (mut ready, mut shown) = (true, Map::new());
    for (name, check) in checks {
        ready &= check.is_ok();
        shown.insert(name.into(), Value::String(check.err().unwrap_or_else(|| "ok".into())));
    }
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body = json!({ "ready": ready, "checks": shown });
    let notices = parts.notices.borrow().clone();
    if !notices.is_empty() {
        body["notices"] = json!(notices);
    }
    json_response(status, &body)
}

/// Runs a check at most once at a time: requests that come meanwhile share its answer.
#[derive(Default)]
struct OneAtATime {
    running: Mutex<Option<Running>>,
}

struct Running {
    task: AbortHandle,
    answer: Shared<BoxFuture<'static, Result<(), String>>>,
}

impl OneAtATime {
    async fn ask<F>(&self, limit: Duration, check: impl FnOnce() -> F) -> Result<(), String>
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let answer = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            match running.as_ref().filter(|running| !running.task.is_finished()) {
                Some(running) => running.answer.clone(),
                None => {
                    // A task of its own: a cancelled database call can leave an open transaction in the pool.
                    let task = tokio::spawn(check());
                    let handle = task.abort_handle();
                    let answer = task
                        .map(|ended| ended.unwrap_or_else(|_| Err("its check panicked".into())))
                        .boxed()
                        .shared();
                    *running = Some(Running { task: handle, answer: answer.clone() });
                    answer
                }
            }
        };
        timeout(limit, answer).await.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn a_hanging_check_runs_once_and_is_never_cancelled() {
        let check = OneAtATime::default();
        let (release, begun, ended) =
            (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let start = || {
            let (release, begun, ended) = (Arc::clone(&release), Arc::clone(&begun), Arc::clone(&ended));
            move || async move {
                begun.fetch_add(1, Ordering::SeqCst);
                release.notified().await;
                ended.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
        };
        for _ in 0..3 {
            let answer = check.ask(Duration::from_millis(10), start()).await;
            assert_eq!(answer, Err("no answer within 10ms".into()));
        }
        assert_eq!(begun.load(Ordering::SeqCst), 1);

        release.notify_one();
        assert_eq!(check.ask(READY_LIMIT, start()).await, Ok(()));
        assert_eq!((begun.load(Ordering::SeqCst), ended.load(Ordering::SeqCst)), (1, 1));

        // An answer is never an old one.
        let answer = check.ask(READY_LIMIT, || async { Err("away".into()) }).await;
        assert_eq!(answer, Err("away".into()));
    }
}
