//! Owns `/api/v1`: what the command line can do about users and dead letters, over HTTP. `openapi.json` documents it, and
//! a test compares the two.
//!
//! Promises that every error is `application/problem+json`, and that calls to the database are bounded in number and go on
//! when a client hangs up.

use std::{future::Future, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::Request,
    handler::Handler,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Method, StatusCode, header};
use hyper::body::Body as _;
use serde::Serialize;
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

use self::problem::Problem;
use super::access::{self, Access};
use crate::{
    letters::{
        edit::Mended,
        operations::{self, Operations},
    },
    queue::Queue,
    store::{
        Store, StoreError,
        letters::{Actor, LetterDetail, Letters},
    },
    terminal::safe_json,
    worker,
};

pub(super) mod dead;
mod log;
mod others;
pub(super) mod problem;
pub mod replays;
mod request;

/// The most calls to the database at a time.
const CALLS: usize = 16;
/// How long a request waits for its turn to call the database.
const TURN: Duration = Duration::from_secs(5);
/// How long a request waits for the database's answer. The call goes on after that.
const ANSWER: Duration = Duration::from_secs(30);

/// The document that describes the API.
pub const OPENAPI: &str = include_str!("../../../openapi.json");

/// What the requests share.
pub(super) struct Api {
    pub(super) queue: Arc<dyn Queue>,
    pub(super) store: Arc<dyn Store>,
    pub(super) operations: Arc<Operations>,
    /// How the worker of this process fares, where there is one.
    pub(super) worker: Option<watch::Receiver<worker::Health>>,
    calls: Arc<Semaphore>,
}

impl Api {
    pub(super) fn new(
        queue: Arc<dyn Queue>,
        store: Arc<dyn Store>,
        operations: Arc<Operations>,
        worker: Option<watch::Receiver<worker::Health>>,
    ) -> Self {
        Self { queue, store, operations, worker, calls: Arc::new(Semaphore::new(CALLS)) }
    }

    fn letters(&self) -> Arc<dyn Letters> {
        Arc::clone(&self.store) as Arc<dyn Letters>
    }

    /// Publishes a letter with another body. Answers the round that begins.
    pub(super) async fn send_edit(
        &self,
        letter: LetterDetail,
        mended: Mended,
        by: Actor,
    ) -> Result<u32, Problem> {
        let (all, store) = (Arc::clone(&self.operations), Arc::clone(&self.store));
        // A task of its own: also when the client hangs up, a committed edit is published.
        let sent =
            tokio::spawn(async move { operations::edit(&store, all.replayer(), &letter, mended, by).await });
        let sent = sent.await.map_err(|_| Problem::unavailable("the edit broke off; look at the letter"))?;
        Ok(sent?)
    }

    /// Calls the database. A client is answered 503 or 504 where the database does not answer in time. The call itself goes
    /// on, and takes one of the places, until it ends.
    pub(super) async fn ask<T, F>(&self, call: impl FnOnce(Arc<dyn Store>) -> F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let turn = timeout(TURN, Arc::clone(&self.calls).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(Problem::unavailable("the database is busy with other requests"));
        };
        let work = call(Arc::clone(&self.store));
        let answer = tokio::spawn(async move {
            let answer = work.await;
            drop(turn);
            answer
        });
        match timeout(ANSWER, answer).await {
            Ok(Ok(answer)) => Ok(answer?),
            Ok(Err(_)) => Err(Problem::unavailable("the request to the database broke off")),
            Err(_) => Err(Problem::new(
                StatusCode::GATEWAY_TIMEOUT,
                "timeout",
                "the database did not answer in time; what was asked of it may still happen",
            )),
        }
    }
}

/// A route below `/api/v1`.
type Route = access::Route<Arc<Api>>;

/// Shows something that names no more of a user than the table of users does.
fn looks<T: 'static>(path: &'static str, handler: impl Handler<T, Arc<Api>>) -> Route {
    Route::get(Access::Look, path, handler)
}

/// Shows bodies of letters, which hold all that Clerk has of a user.
fn reveals<T: 'static>(path: &'static str, handler: impl Handler<T, Arc<Api>>) -> Route {
    Route::get(Access::Operate, path, handler)
}

fn acts<T: 'static>(path: &'static str, handler: impl Handler<T, Arc<Api>>) -> Route {
    Route::post(Access::Operate, path, handler)
}

fn puts<T: 'static>(path: &'static str, handler: impl Handler<T, Arc<Api>>) -> Route {
    Route::put(Access::Operate, path, handler)
}

fn removes<T: 'static>(path: &'static str, handler: impl Handler<T, Arc<Api>>) -> Route {
    Route::delete(Access::Operate, path, handler)
}

fn table() -> Vec<Route> {
    vec![
        looks("/openapi.json", openapi),
        looks("/status", others::status),
        looks("/processes", others::processes),
        looks("/sync", others::sync),
        looks("/users", others::users),
        looks("/users/{ref}", others::user),
        puts("/users/{ref}/grant", others::grant),
        removes("/users/{ref}/grant", others::revoke),
        looks("/rejections", others::rejections),
        looks("/operations", log::read),
        looks("/dead", dead::list),
        looks("/dead/groups", dead::groups),
        looks("/dead/count", dead::count),
        reveals("/dead/export", dead::export),
        acts("/dead/replay", replays::start),
        looks("/dead/operations", replays::list),
        looks("/dead/operations/{id}", replays::show),
        acts("/dead/operations/{id}/pause", replays::pause),
        acts("/dead/operations/{id}/resume", replays::resume),
        acts("/dead/operations/{id}/stop", replays::stop),
        reveals("/dead/{id}", dead::show),
        acts("/dead/{id}/edit", dead::edit),
        acts("/dead/{id}/discard", dead::discard),
        acts("/dead/{id}/restore", dead::restore),
    ]
}

/// Every route: method, path, and what it asks for.
pub fn routes() -> Vec<(String, String, Access)> {
    let told = |route: Route| (route.method.to_string(), format!("/api/v1{}", route.path), route.access);
    table().into_iter().map(told).collect()
}

/// Serves below `/api/v1`.
pub(super) fn router(api: Arc<Api>) -> Router {
    let guard = middleware::from_fn(guarded);
    let routes = table().into_iter().map(|route| match route.method {
        Method::GET => route,
        _ => route.with(|answer| answer.route_layer(guard.clone())),
    });
    access::router(routes.collect())
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .with_state(api)
}

/// Answers everything in a process without a database.
pub(super) fn absent() -> Router {
    Router::new().fallback(|| async {
        Problem::new(StatusCode::NOT_FOUND, "no_database", "this process has no database")
            .hint("ask a process with a worker: headcount worker, or headcount up")
    })
}

async fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
        .hint("see /api/v1/openapi.json")
}

async fn wrong_method() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path takes another method; see the Allow header",
    )
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

/// Guards the routes that change something: a body has to be JSON, which a foreign page's form cannot send.
async fn guarded(request: Request, next: Next) -> Response {
    if !request.body().is_end_stream() && !is_json(request.headers()) {
        return Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "not_json",
            "send JSON, with Content-Type: application/json",
        )
        .into_response();
    }
    next.run(request).await
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// A JSON answer.
fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => {
            let text = safe_json(&text).into_owned();
            (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
        }
        Err(error) => {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", format!("no JSON: {error}"))
                .into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_request_is_understood() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
        let mut understood = 0;
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in ["post", "put", "delete"] {
                let content = &item[method]["requestBody"]["content"]["application/json"];
                let Some(schema) = content["schema"]["$ref"].as_str() else { continue };
                let example = content["example"].clone();
                let result = match schema.rsplit('/').next().unwrap() {
                    "GrantRequest" => serde_json::from_value::<others::GrantRequest>(example).map(drop),
                    "ReplayRequest" => serde_json::from_value::<replays::ReplayRequest>(example).map(drop),
                    "EditRequest" => serde_json::from_value::<dead::EditRequest>(example).map(drop),
                    "NoteRequest" | "DiscardRequest" => {
                        serde_json::from_value::<dead::NoteRequest>(example).map(drop)
                    }
                    other => panic!("{path}: nobody reads {other}"),
                };
                result.unwrap_or_else(|error| panic!("{path}: {error}"));
                understood += 1;
            }
        }
        assert_eq!(understood, 6);
    }

    #[test]
    fn json_is_called_json() {
        let called = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            is_json(&headers)
        };
        assert!(called("application/json") && called("Application/JSON; charset=utf-8"));
        for other in ["text/plain", "application/x-www-form-urlencoded", "", "text/plain; application/json"] {
            assert!(!called(other), "{other}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }
}
