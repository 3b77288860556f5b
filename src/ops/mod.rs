//! Owns the operators' listener: what it serves, and who is let in.
//!
//! `access` says who may do what, `console` is what people see, `api` what programs ask, `health` what an orchestrator asks.
//! Promises that strangers' connections keep no probe out. Never reachable through the public listener.

use std::sync::Arc;

use axum::{
    extract::State,
    middleware,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    net::TcpListener,
    sync::{Mutex, watch},
};

use crate::{
    letters::operations::Operations,
    net::{Bounds, method_not_allowed, not_found, places, serve as serve_http},
    queue::Queue,
    store::{Batches, Store},
    sync::Sync,
    telemetry::metrics::{self, ListenerMetrics},
    worker,
};

mod access;
pub mod api;
mod console;
mod health;
pub mod processes;
pub mod status;
pub mod sync;
pub mod verdict;

pub use access::{Access, OpsTokens};
use access::{Guard, Route, guarded};

/// The operators' listener: what it needs to serve.
pub struct Ops {
    /// For readiness and the API.
    pub queue: Arc<dyn Queue>,
    /// For readiness, where this process has a store.
    pub store: Option<Arc<dyn Batches>>,
    /// For the API and the console, where this process serves them: the store, and the replays of all processes.
    pub api: Option<(Arc<dyn Store>, Arc<Operations>)>,
    /// For the console, where there is a key: Clerk's API.
    pub clerk: Option<Sync>,
    /// The worker's state, where this process has one.
    pub worker: Option<watch::Receiver<worker::Health>>,
    /// The process is asked to stop.
    pub stopping: watch::Receiver<bool>,
    /// What people should know although everything works, a sentence each.
    pub notices: watch::Receiver<Vec<String>>,
    /// What `/metrics` renders.
    pub metrics: PrometheusHandle,
    /// Who may look, and who may operate.
    pub tokens: OpsTokens,
    /// What the listener takes on at most.
    pub bounds: Bounds,
}

impl Ops {
    /// Bounds that suit a few operators and their probes, while strangers hold connections.
    pub fn bounds() -> Bounds {
        Bounds { connections: places(512, 4), ..Bounds::default() }
    }
}

/// What the listener's own routes need.
struct Own {
    readiness: health::Readiness,
    metrics: PrometheusHandle,
    /// One rendering of the metrics at a time.
    turn: Mutex<()>,
}

fn table() -> Vec<Route<Arc<Own>>> {
    vec![
        Route::get(Access::Open, "/livez", health::livez),
        Route::get(Access::Look, "/readyz", health::readyz),
        Route::get(Access::Look, "/metrics", render),
    ]
}

/// Every route of the listener: method, path, and what it asks for.
pub fn routes() -> Vec<(String, String, Access)> {
    let own =
        table().into_iter().map(|route| (route.method.to_string(), route.path.to_owned(), route.access));
    own.chain(console::routes()).chain(api::routes()).collect()
}

/// Serves operators until `stop` becomes true or its sender is gone, then finishes the requests in flight; the caller
/// bounds that time.
pub async fn serve(listener: TcpListener, ops: Ops, stop: watch::Receiver<bool>) {
    let Ops { queue, store, api, clerk, worker, stopping, notices, metrics, tokens, bounds } = ops;
    let guard = Arc::new(Guard::new(&tokens, listener.local_addr().ok(), api.is_some()));
    let (pages, api) = match api {
        Some((store, operations)) => {
            let queue = Arc::clone(&queue);
            let api = api::Api::new(queue, store, operations, worker.clone());
            let api = Arc::new(api);
            let console = console::Console::new(Arc::clone(&api), Arc::clone(&guard), clerk, stopping);
            (console::router(console), api::router(api))
        }
        None => (console::absent(), api::absent()),
    };
    let readiness = health::Readiness::new(queue, store, worker, notices);
    let own = Arc::new(Own { readiness, metrics, turn: Mutex::new(()) });
    let router = access::router(table())
        .with_state(own)
        .nest("/api/v1", api)
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(nothing)
        .merge(pages)
        .layer(middleware::from_fn_with_state(guard, guarded))
        .layer(middleware::map_response(unshared));
    serve_http(listener, router, bounds, ListenerMetrics::new("operators"), stop).await;
}

/// Nothing is at this path.
async fn nothing(headers: HeaderMap) -> Response {
    match access::is_browser(&headers) {
        true => console::refused(StatusCode::NOT_FOUND, "there is no page at this address", None),
        false => not_found().await.into_response(),
    }
}

/// Renders for one request at a time: however many come, they leave the processor to webhooks.
async fn render(State(own): State<Arc<Own>>) -> Response {
    let _turn = own.turn.lock().await;
    metrics::read_process();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], own.metrics.render()).into_response()
}

/// Keeps every answer out of caches, and keeps browsers from guessing its type.
async fn unshared(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
