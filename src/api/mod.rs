//! Owns the application's listener: who is asking, that their row exists, and that they learn when it changes. `openapi-app.json`
//! describes it, and a test compares the two.
//!
//! In a request's order: `limits` bounds it, `caller` says who asks, `around` which pages may read the answer and how long it may take, `first` makes the
//! first row, `lookups` reads rows, `sessions` notes who is signed in, `me` answers, `streams` goes on answering, `visitors` are those who have not signed
//! in. Promises that nobody learns anything about another
//! user, that a row is committed before it is answered, that nobody waits longer than [`PATIENCE`], and that Clerk's API is
//! asked about callers only.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    handler::Handler,
    middleware,
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use http::{HeaderValue, Method, StatusCode, header};
use serde::Serialize;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    time::timeout,
};
use tracing::warn;

use self::{first::First, limits::Limits, lookups::Lookups, sessions::Sessions, streams::Streams};
use crate::{
    clerk::token::Verifier,
    net::{self, Bounds, Problem, places},
    store::{Store, StoreError},
    sync::Sync,
    telemetry::metrics::{ApiMetrics, ListenerMetrics},
    terminal::safe_json,
};

mod around;
mod caller;
mod first;
mod limits;
mod lookups;
mod me;
mod sessions;
mod streams;
mod visitors;

/// The longest that a request waits for Clerk and the database.
pub const PATIENCE: Duration = Duration::from_millis(4_500);

/// How long Clerk's API is asked again for a first row.
pub const ASKED: Duration = Duration::from_millis(1_500);

/// How many requests at a time ask the database for more than a row.
const TURNS: usize = 2;

/// How often it is logged why applications are answered 503.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// The document that describes the API.
pub const OPENAPI: &str = include_str!("../../openapi-app.json");

/// What the listener needs to serve.
#[derive(Debug)]
pub struct Settings {
    /// The table.
    pub store: Arc<dyn Store>,
    /// Knows whose tokens count.
    pub verifier: Verifier,
    /// The suffix of the instance's cookie, where it is known.
    pub cookie_suffix: Option<String>,
    /// Clerk's API, where there is a key for it.
    pub clerk: Option<Sync>,
    /// `HEADCOUNT_KEEP_CLERK_OBJECT`
    pub keep_object: bool,
    /// `HEADCOUNT_SESSIONS`
    pub sessions: bool,
    /// `HEADCOUNT_ANONYMOUS_RETENTION`
    pub anonymous_retention: Duration,
    /// Pages beside the answers.
    pub pages: Option<Router>,
    /// The connections.
    pub bounds: Bounds,
}

impl Settings {
    /// Bounds for many browsers, each with a stream that may last an hour.
    pub fn bounds() -> Bounds {
        Bounds {
            connections: places(8_192, 2),
            connection_age: streams::AGE + Duration::from_secs(60),
            ..Bounds::default()
        }
    }
}

/// What the requests share.
pub(crate) struct Api {
    store: Arc<dyn Store>,
    verifier: Verifier,
    cookie_suffix: Option<String>,
    metrics: ApiMetrics,
    limits: Arc<Limits>,
    lookups: Lookups,
    /// Nobody's where no sessions are kept.
    sessions: Option<Sessions>,
    first: First,
    streams: Streams,
    anonymous_retention: Duration,
    /// Whoever asks the database for more than a row waits for one of these, so that connections are left for the rest.
    turns: Semaphore,
    /// When it was last logged that the database does not do what it was asked.
    told: Mutex<Option<Instant>>,
}

/// Serves applications until `stop` becomes true or its sender is gone, then finishes the requests in flight; the caller
/// bounds that time.
pub async fn serve(listener: TcpListener, settings: Settings, stop: watch::Receiver<bool>) {
    let Settings {
        store,
        verifier,
        cookie_suffix,
        clerk,
        keep_object,
        sessions,
        anonymous_retention,
        pages,
        bounds,
    } = settings;
    let (lookups, metrics) = (Lookups::new(Arc::clone(&store)), ApiMetrics::new());
    let limits = Arc::new(Limits::new());
    let (sessions, writing) =
        sessions.then(|| Sessions::new(Arc::clone(&store), Arc::clone(&limits))).unzip();
    let api = Arc::new(Api {
        verifier,
        cookie_suffix,
        sessions,
        limits,
        first: First::new(Arc::clone(&store), lookups.clone(), clerk, keep_object, metrics.clone()),
        streams: Streams::new(Arc::clone(&store), metrics.streams.clone(), stop.clone()),
        store,
        anonymous_retention,
        turns: Semaphore::new(TURNS),
        told: Mutex::default(),
        lookups,
        metrics,
    });
    net::serve(listener, router(api, pages), bounds, ListenerMetrics::new("application"), stop).await;
    if let Some(writing) = writing {
        // What was seen last is written too, if the database takes it soon.
        let _ = timeout(sessions::WRITTEN, writing).await;
    }
}

/// A route: its method, its path, and its handler.
struct Route {
    method: Method,
    path: &'static str,
    answer: MethodRouter<Arc<Api>>,
}

fn looks<T: 'static>(path: &'static str, handler: impl Handler<T, Arc<Api>>) -> Route {
    Route { method: Method::GET, path, answer: get(handler) }
}

fn acts<T: 'static>(path: &'static str, handler: impl Handler<T, Arc<Api>>) -> Route {
    Route { method: Method::POST, path, answer: post(handler) }
}

fn table() -> Vec<Route> {
    vec![
        looks("/v1/openapi.json", openapi),
        looks("/v1/me", me::show),
        acts("/v1/me/sync", me::sync),
        looks("/v1/me/events", streams::stream),
        looks("/v1/me/sessions", sessions::list),
        acts("/v1/anonymous", visitors::begin),
        acts("/v1/me/claim", visitors::claim),
    ]
}

/// Every route: method and path.
pub fn routes() -> Vec<(String, String)> {
    table().into_iter().map(|route| (route.method.to_string(), route.path.to_owned())).collect()
}

fn router(api: Arc<Api>, pages: Option<Router>) -> Router {
    let routes =
        table().into_iter().fold(Router::new(), |router, route| router.route(route.path, route.answer));
    let routes = match pages {
        Some(pages) => routes.merge(pages.with_state(())),
        None => routes,
    };
    routes
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&api), around::answer))
        .layer(middleware::map_response(private))
        .with_state(api)
}

async fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
        .hint("see /v1/openapi.json")
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

/// Keeps answers about one user out of caches that others share, and keeps browsers from guessing their type.
async fn private(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("private, no-cache"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// An answer of JSON.
fn json(value: &impl Serialize) -> Response {
    match text(value) {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(problem) => problem.into_response(),
    }
}

impl Api {
    /// The answer where the database does not do what it was asked. Why is for operators, not for strangers.
    fn unavailable(&self, error: &StoreError) -> Response {
        let told = self.told.try_lock().ok().filter(|told| told.is_none_or(|at| at.elapsed() >= TOLD_EVERY));
        if let Some(mut told) = told {
            *told = Some(Instant::now());
            warn!("applications are answered 503: {error}{}", error.hint_after("; hint: "));
        }
        Problem::unavailable("the database does not do what it was asked; headcount's log says why")
            .into_response()
    }
}

/// The text of a JSON answer.
fn text(value: &impl Serialize) -> Result<String, Problem> {
    let text = serde_json::to_string(value).map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", format!("no JSON: {error}"))
    })?;
    Ok(safe_json(&text).into_owned())
}

/// Asks a client to come back after so many seconds.
fn later(problem: Problem, seconds: u64) -> Response {
    let mut response = problem.into_response();
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    response
}
