//! Owns `/api/v1`: what the command line can do about users and dead letters, over HTTP. `openapi.json` documents it, and
//! a test compares the two.
//!
//! Promises that every error is `application/problem+json`; that calls to the database are bounded in number and go on
//! when a client hangs up; and that no request which a foreign web page can make a browser send changes anything.

use std::{future::Future, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    handler::Handler,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, delete, get, post, put},
};
use http::{HeaderMap, Method, StatusCode, header};
use hyper::body::Body as _;
use serde::Serialize;
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

use self::{problem::Problem, replays::Operations};
use crate::{
    queue::Queue,
    store::{
        Store, StoreError,
        letters::{Actor, Letters},
    },
    terminal::safe_json,
    worker,
};

mod dead;
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
    /// `HEADCOUNT_OPS_TOKEN` is set: browsers send it to nobody by themselves.
    pub(super) has_token: bool,
    calls: Arc<Semaphore>,
}

impl Api {
    pub(super) fn new(
        queue: Arc<dyn Queue>,
        store: Arc<dyn Store>,
        operations: Arc<Operations>,
        worker: Option<watch::Receiver<worker::Health>>,
        has_token: bool,
    ) -> Self {
        Self { queue, store, operations, worker, has_token, calls: Arc::new(Semaphore::new(CALLS)) }
    }

    fn letters(&self) -> Arc<dyn Letters> {
        Arc::clone(&self.store) as Arc<dyn Letters>
    }

    /// The actor of a request through this API.
    fn actor(&self, note: Option<&str>) -> Actor {
        let name = if self.has_token { "token" } else { "api" };
        let note = note.map(|note| crate::text::clean(note, 1024));
        Actor { name: name.into(), note: note.filter(|note| !note.is_empty()) }
    }

    /// Calls the database. A client is answered 503 or 504 where the database does not answer in time. The call itself goes
    /// on, and takes one of the places, until it ends.
    async fn ask<T, F>(&self, call: impl FnOnce(Arc<dyn Store>) -> F) -> Result<T, Problem>
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

/// A route: its method, its path below `/api/v1`, and its handler.
pub(super) struct Route {
    pub(super) method: Method,
    pub(super) path: &'static str,
    answer: MethodRouter<Arc<Api>>,
}

fn looks<T: 'static>(path: &'static str, handler: impl Handler<T, Arc<Api>>) -> Route {
    Route { method: Method::GET, path, answer: get(handler) }
}

fn acts<T: 'static>(path: &'static str, handler: impl Handler<T, Arc<Api>>) -> Route {
    Route { method: Method::POST, path, answer: post(handler) }
}

fn puts<T: 'static>(path: &'static str, handler: impl Handler<T, Arc<Api>>) -> Route {
    Route { method: Method::PUT, path, answer: put(handler) }
}

fn removes<T: 'static>(path: &'static str, handler: impl Handler<T, Arc<Api>>) -> Route {
    Route { method: Method::DELETE, path, answer: delete(handler) }
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
        looks("/dead", dead::list),
        looks("/dead/groups", dead::groups),
        looks("/dead/count", dead::count),
        looks("/dead/export", dead::export),
        acts("/dead/replay", replays::start),
        looks("/dead/operations", replays::list),
        looks("/dead/operations/{id}", replays::show),
        acts("/dead/operations/{id}/stop", replays::stop),
        looks("/dead/{id}", dead::show),
        acts("/dead/{id}/edit", dead::edit),
        acts("/dead/{id}/discard", dead::discard),
        acts("/dead/{id}/restore", dead::restore),
    ]
}

/// Every route: method and path.
pub fn routes() -> Vec<(String, String)> {
    table().into_iter().map(|route| (route.method.to_string(), format!("/api/v1{}", route.path))).collect()
}

/// Serves below `/api/v1`.
pub(super) fn router(api: Arc<Api>) -> Router {
    let guard = middleware::from_fn_with_state(Arc::clone(&api), guarded);
    let routes = table().into_iter().fold(Router::new(), |router, route| {
        let acts = route.method != Method::GET;
        let answer = if acts { route.answer.route_layer(guard.clone()) } else { route.answer };
        router.route(route.path, answer)
    });
    routes.fallback(unknown).method_not_allowed_fallback(wrong_method).with_state(api)
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

/// Guards the routes that change something. Without a token a request must not come from another site's page, which a
/// browser names. And a body has to be JSON, which a foreign page's form cannot send.
async fn guarded(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    if !api.has_token && !is_ours(request.headers()) {
        return Problem::new(
            StatusCode::FORBIDDEN,
            "foreign_origin",
            "without HEADCOUNT_OPS_TOKEN only pages of this listener may act",
        )
        .into_response();
    }
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

/// Whether no other site's page sent the request. A request without `Origin` and `Sec-Fetch-Site` comes from no page.
fn is_ours(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("unreadable"));
    let host = text("host").unwrap_or_default();
    let origin = text("origin").is_none_or(|origin| {
        let of_http = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        headers.get_all("origin").iter().count() == 1
            && of_http.is_some_and(|authority| !host.is_empty() && authority.eq_ignore_ascii_case(host))
    });
    origin && text("sec-fetch-site").is_none_or(|site| matches!(site, "same-origin" | "none"))
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
    fn only_our_own_pages_and_no_pages_at_all_may_act() {
        let ours = |lines: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, value.parse().unwrap());
            }
            is_ours(&headers)
        };
        let host = ("host", "localhost:8081");
        for good in [
            &[host][..],
            &[],
            &[host, ("origin", "http://localhost:8081")],
            &[host, ("origin", "http://LOCALHOST:8081"), ("sec-fetch-site", "same-origin")],
            &[host, ("sec-fetch-site", "none")],
        ] {
            assert!(ours(good), "{good:?}");
        }
        for bad in [
            &[host, ("origin", "http://evil.example")][..],
            &[host, ("origin", "http://localhost:3000")],
            &[host, ("origin", "http://localhost")],
            &[host, ("origin", "null")],
            &[host, ("origin", "")],
            &[("origin", "http://")],
            &[host, ("origin", "file://localhost:8081")],
            &[host, ("origin", "http://localhost:8081"), ("origin", "http://evil.example")],
            &[host, ("sec-fetch-site", "cross-site")],
            &[host, ("sec-fetch-site", "same-site")],
        ] {
            assert!(!ours(bad), "{bad:?}");
        }
    }

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
