//! Owns the operators' listener: its pages, and the check whether a request may see them.
//!
//! Promises that a stranger's browser cannot be made to read it, that with a token nothing but `/livez` answers without
//! it, and that strangers' connections keep no probe out. Never reachable through the public listener.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use hmac_sha256::Hash;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header, uri::Authority};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    net::TcpListener,
    sync::{Mutex, watch},
};

use crate::{
    net::{Bounds, Visitor, method_not_allowed, not_found, places, problem, serve as serve_http},
    queue::Queue,
    secret::Secret,
    store::{Batches, Store},
    telemetry::metrics::ListenerMetrics,
    worker,
};

pub mod api;
mod health;
pub mod processes;
pub mod status;
pub mod sync;
pub mod verdict;

use api::{problem::Problem, replays::Operations};

/// The operators' listener: what it needs to serve.
pub struct Ops {
    /// For readiness and the API.
    pub queue: Arc<dyn Queue>,
    /// For readiness, where this process has a store.
    pub store: Option<Arc<dyn Batches>>,
    /// For the API, where this process has a store: the store, and the replays that run in this process.
    pub api: Option<(Arc<dyn Store>, Arc<Operations>)>,
    /// The worker's state, where this process has one.
    pub worker: Option<watch::Receiver<worker::Health>>,
    /// What people should know although everything works, a sentence each.
    pub notices: watch::Receiver<Vec<String>>,
    /// What `/metrics` renders.
    pub metrics: PrometheusHandle,
    /// `HEADCOUNT_OPS_TOKEN`
    pub token: Option<Secret>,
    /// What the listener takes on at most.
    pub bounds: Bounds,
}

impl Ops {
    /// Bounds that suit a few operators and their probes, while strangers hold connections.
    pub fn bounds() -> Bounds {
        Bounds { connections: places(512, 4), ..Bounds::default() }
    }
}

/// Serves operators until `stop` becomes true or its sender is gone, then finishes the requests in flight; the caller
/// bounds that time.
pub async fn serve(listener: TcpListener, ops: Ops, stop: watch::Receiver<bool>) {
    let Ops { queue, store, api, worker, notices, metrics, token, bounds } = ops;
    let guard = Arc::new(Guard::new(token.as_ref(), listener.local_addr().ok()));
    let api = match api {
        Some((store, operations)) => {
            let queue = Arc::clone(&queue);
            api::router(Arc::new(api::Api::new(queue, store, operations, worker.clone(), token.is_some())))
        }
        None => api::absent(),
    };
    let readiness = Arc::new(health::Readiness::new(queue, store, worker, notices));
    let router = Router::new()
        .route("/", get(index))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz).with_state(readiness))
        .route("/metrics", get(render).with_state(Arc::new((metrics, Mutex::new(())))))
        .nest("/api/v1", api)
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(guard, guarded))
        .layer(middleware::map_response(unshared));
    serve_http(listener, router, bounds, ListenerMetrics::new("operators"), stop).await;
}

async fn index() -> &'static str {
    "headcount, for operators\n\n\
     /livez    the process runs\n\
     /readyz   queue, store and worker can do their work\n\
     /metrics  for Prometheus\n\
     /api/v1   users, dead letters, rejected requests; see /api/v1/openapi.json\n"
}

/// Renders for one request at a time: however many come, they leave the processor to webhooks.
async fn render(State(shared): State<Arc<(PrometheusHandle, Mutex<()>)>>) -> Response {
    let (metrics, turn) = &*shared;
    let _turn = turn.lock().await;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render()).into_response()
}

/// Decides which requests are let in.
struct Guard {
    /// SHA-256 of the token.
    token: Option<[u8; 32]>,
    /// Where there is no token: the names under which a browser may ask for this listener.
    hosts: Vec<String>,
}

impl Guard {
    fn new(token: Option<&Secret>, address: Option<SocketAddr>) -> Self {
        let mut hosts = vec!["localhost".to_owned(), "127.0.0.1".into(), "[::1]".into()];
        hosts.extend(address.map(|address| match address {
            SocketAddr::V4(address) => address.ip().to_string(),
            SocketAddr::V6(address) => format!("[{}]", address.ip()),
        }));
        Self { token: token.map(|token| Hash::hash(token.expose().as_bytes())), hosts }
    }

    /// Whether the request carries the token. Compares digests, in constant time.
    fn knows(token: &[u8; 32], headers: &HeaderMap) -> bool {
        headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().split_at_checked(7)).is_some_and(
            |(scheme, given)| {
                scheme.eq_ignore_ascii_case(b"bearer ") && Hash::verify(given.trim_ascii(), token)
            },
        )
    }

    /// Whether the request was meant for this listener. A foreign page whose name was rebound to the loopback address sends
    /// its own name: without this check it could read what needs no token. A client that sends no name is no browser.
    fn is_called(&self, headers: &HeaderMap, uri: &Uri) -> bool {
        let ours = |host: &str| self.hosts.iter().any(|ours| ours.eq_ignore_ascii_case(host));
        uri.host().is_none_or(ours)
            && headers.get_all(header::HOST).iter().all(|host| {
                host.to_str()
                    .ok()
                    .and_then(|host| host.parse::<Authority>().ok())
                    .is_some_and(|authority| ours(authority.host()))
            })
    }
}

async fn guarded(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let known = guard.token.as_ref().is_some_and(|token| Guard::knows(token, request.headers()));
    // A request without the token has no claim on its connection, even where no token is set.
    if known && let Some(visitor) = request.extensions().get::<Visitor>() {
        visitor.verified();
    }
    match &guard.token {
        Some(_) if !known && request.uri().path() != "/livez" => {
            let message = "send HEADCOUNT_OPS_TOKEN as  Authorization: Bearer <token>";
            let mut response = refusal(request.uri(), StatusCode::UNAUTHORIZED, "unauthorized", message);
            let scheme = HeaderValue::from_static("Bearer realm=\"headcount\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
            response
        }
        None if !guard.is_called(request.headers(), request.uri()) => refusal(
            request.uri(),
            StatusCode::MISDIRECTED_REQUEST,
            "misdirected",
            "without HEADCOUNT_OPS_TOKEN this listener answers to localhost and its own address only",
        ),
        _ => next.run(request).await,
    }
}

/// Keeps every answer out of caches, and keeps browsers from guessing its type.
async fn unshared(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// An error in the format of the path's other errors.
fn refusal(uri: &Uri, status: StatusCode, code: &'static str, message: &str) -> Response {
    match uri.path().starts_with("/api/") {
        true => Problem::new(status, code, message).into_response(),
        false => problem(status, code, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(guard: &Guard, host: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        guard.is_called(&headers, &Uri::from_static("/"))
    }

    #[test]
    fn only_our_own_names_are_answered() {
        let guard = Guard::new(None, Some("127.0.0.2:8081".parse().unwrap()));
        for host in ["localhost", "LOCALHOST:8081", "127.0.0.1:1", "[::1]:8081", "[::1]", "127.0.0.2"] {
            assert!(called(&guard, host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:8081", "127.0.0.3", "::1", "", "a@localhost b"] {
            assert!(!called(&guard, host), "{host}");
        }
        assert!(guard.is_called(&HeaderMap::new(), &Uri::from_static("/")));
        assert!(!guard.is_called(&HeaderMap::new(), &Uri::from_static("http://evil.example/")));
    }

    #[test]
    fn a_token_is_compared_whole() {
        let token = Hash::hash(b"hunter2");
        let knows = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            Guard::knows(&token, &headers)
        };
        assert!(knows("Bearer hunter2") && knows("bearer  hunter2"));
        for wrong in ["Bearer hunter", "Bearer hunter22", "Bearer ", "Bearer", "Basic hunter2", "hunter2", ""]
        {
            assert!(!knows(wrong), "{wrong}");
        }
        assert!(!Guard::knows(&token, &HeaderMap::new()));
    }
}
