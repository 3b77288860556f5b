//! The operators' listener over real TCP: who is let in, and what readiness depends on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub, dead_code)]

#[path = "support/fake_queue.rs"]
mod fake_queue;
#[path = "support/wire.rs"]
mod wire;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use fake_queue::{FakeQueue, Mode};
use headcount::{
    ops::{self, Ops, OpsTokens},
    queue::Queue,
    rules::Outcome,
    secret::Secret,
    store::{Batches, Class, Incoming, StoreError},
};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::json;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};
use wire::{Client, PATIENCE, Response, get};

/// A store that is as ready as the queue inside it.
#[derive(Debug)]
struct FakeStore(FakeQueue);

fn away(message: &str) -> StoreError {
    StoreError {
        class: Class::Outage,
        code: String::new(),
        message: message.into(),
        hint: None,
        source: None,
    }
}

#[async_trait]
impl Batches for FakeStore {
    async fn apply(&self, _: Arc<[Incoming]>) -> Result<Vec<Outcome>, StoreError> {
        Err(away("not here"))
    }
    async fn ready(&self) -> Result<(), StoreError> {
        self.0.ready().await.map_err(|_| away("the database is away"))
    }
}

struct Server {
    address: SocketAddr,
    queue: Arc<FakeQueue>,
    store: Arc<FakeStore>,
    worker: watch::Sender<headcount::worker::Health>,
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

impl Server {
    async fn start(change: impl FnOnce(&mut Ops)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let queue = Arc::new(FakeQueue::new());
        let store = Arc::new(FakeStore(FakeQueue::new()));
        let (worker, health) = watch::channel(headcount::worker::Health::default());
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || metrics::counter!("headcount_tests_total").increment(3));
        let mut ops = Ops {
            queue: queue.clone(),
            store: Some(store.clone()),
            api: None,
            worker: Some(health),
            stopping: watch::channel(false).1,
            notices: watch::channel(Vec::new()).1,
            metrics: recorder.handle(),
            clerk: None,
            tokens: OpsTokens::default(),
            bounds: Ops::bounds(),
        };
        change(&mut ops);
        let (stop, stopped) = watch::channel(false);
        let serving = tokio::spawn(ops::serve(listener, ops, stopped));
        Self { address, queue, store, worker, stop, serving }
    }

    async fn get(&self, path: &str) -> Response {
        self.ask(path, "").await
    }

    async fn ask(&self, path: &str, headers: &str) -> Response {
        Client::connect(self.address).await.ask(get(path, headers)).await
    }
}

#[tokio::test]
async fn it_is_ready_only_while_queue_store_and_worker_are() {
    let server = Server::start(|_| {}).await;
    let response = server.get("/readyz").await;
    assert_eq!(response.status, 200, "{response:?}");
    let all = json!({ "ready": true, "checks": { "queue": "ok", "store": "ok", "worker": "ok" } });
    assert_eq!(response.json(), all);

    server.queue.set(Mode::Fail);
    let response = server.get("/readyz").await;
    assert_eq!((response.status, &response.json()["ready"]), (503, &json!(false)));
    assert_eq!(response.json()["checks"]["queue"], "the queue is not available: told to fail");
    assert_eq!(response.json()["checks"]["store"], "ok");

    server.queue.set(Mode::Take);
    server.store.0.set(Mode::Fail);
    let response = server.get("/readyz").await;
    assert_eq!((response.status, &response.json()["checks"]["store"]), (503, &json!("the database is away")));

    server.store.0.set(Mode::Take);
    server.worker.send_replace(headcount::worker::Health { paused: Some("the database is away".into()) });
    let response = server.get("/readyz").await;
    assert_eq!(response.status, 503);
    assert_eq!(response.json()["checks"]["worker"], "paused: the database is away");

    server.worker.send_replace(headcount::worker::Health::default());
    assert_eq!(server.get("/readyz").await.status, 200);
    // A process whose worker has ended is not ready either; but it lives.
    drop(server.worker);
    let response = Client::connect(server.address).await.ask(get("/readyz", "")).await;
    assert_eq!((response.status, &response.json()["checks"]["worker"]), (503, &json!("it has stopped")));
    assert_eq!(Client::connect(server.address).await.ask(get("/livez", "")).await.status, 200);
}

#[tokio::test]
async fn an_ingress_is_ready_when_its_queue_is() {
    let server = Server::start(|ops| (ops.store, ops.worker) = (None, None)).await;
    let response = server.get("/readyz").await;
    assert_eq!(
        (response.status, response.json()),
        (200, json!({ "ready": true, "checks": { "queue": "ok" } }))
    );
}

#[tokio::test]
async fn readiness_is_told_in_time_when_a_backend_hangs() {
    let server = Server::start(|_| {}).await;
    server.queue.set(Mode::Hold);
    server.store.0.set(Mode::Hold);
    let started = Instant::now();
    let response = server.get("/readyz").await;
    let took = started.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(4), "{took:?}");
    let late = "no answer within 2s";
    let checks = json!({ "queue": late, "store": late, "worker": "ok" });
    assert_eq!((response.status, response.json()), (503, json!({ "ready": false, "checks": checks })));
    assert_eq!(server.get("/livez").await.status, 200);

    server.queue.set(Mode::Take);
    server.store.0.set(Mode::Take);
    assert_eq!(server.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn metrics_are_rendered_for_prometheus() {
    let server = Server::start(|_| {}).await;
    let response = server.get("/metrics").await;
    assert_eq!((response.status, response.header("content-type")), (200, Some("text/plain; version=0.0.4")));
    assert!(response.body.contains("headcount_tests_total 3"), "{response:?}");
}

#[tokio::test]
async fn the_index_lists_the_paths_and_others_are_told_so() {
    let server = Server::start(|_| {}).await;
    let index = server.get("/").await;
    assert_eq!(index.status, 200);
    for path in ["/livez", "/readyz", "/metrics"] {
        assert!(index.body.contains(path), "{path}");
    }
    assert_eq!(server.get("/webhooks/clerk").await.code(), "not_found");
    let request = get("/metrics", "").replacen("GET", "POST", 1);
    let response = Client::connect(server.address).await.ask(request).await;
    assert_eq!((response.status, response.header("allow")), (405, Some("GET,HEAD")));
}

#[tokio::test]
async fn nothing_that_is_shown_is_kept_or_guessed_at() {
    let server = Server::start(|ops| ops.tokens.operate = Some(Secret::new("hunter2"))).await;
    for path in ["/", "/livez", "/metrics", "/nothing", "/api/v1/dead"] {
        for headers in ["", "Authorization: Bearer hunter2\r\n"] {
            let response = server.ask(path, headers).await;
            assert_eq!(response.header("x-content-type-options"), Some("nosniff"), "{path}");
            assert_eq!(response.header("cache-control"), Some("no-store"), "{path}");
        }
    }
}

#[tokio::test]
async fn with_a_token_only_livez_answers_without_it() {
    let server = Server::start(|ops| ops.tokens.operate = Some(Secret::new("hunter2"))).await;
    for path in ["/", "/readyz", "/metrics", "/nothing"] {
        for headers in ["", "Authorization: Bearer hunter\r\n", "Authorization: Basic hunter2\r\n"] {
            let response = server.ask(path, headers).await;
            assert_eq!(
                (response.status, response.code().as_str()),
                (401, "unauthorized"),
                "{path} {headers}"
            );
            assert!(response.header("www-authenticate").unwrap().starts_with("Bearer"));
        }
        let status = server.ask(path, "Authorization: Bearer hunter2\r\n").await.status;
        assert_eq!(status, if path == "/nothing" { 404 } else { 200 }, "{path}");
    }
    assert_eq!(server.get("/livez").await.status, 200);
}

#[tokio::test]
async fn without_a_token_a_rebound_name_is_turned_away() {
    let server = Server::start(|_| {}).await;
    let ask = async |host: &str| {
        let request = get("/metrics", "").replace("Host: localhost", &format!("Host: {host}"));
        Client::connect(server.address).await.ask(request).await
    };
    for host in ["localhost", &server.address.to_string(), "127.0.0.1", "[::1]:8081"] {
        assert_eq!(ask(host).await.status, 200, "{host}");
    }
    for host in ["evil.example", "evil.example:8081", "127.0.0.1.evil.example"] {
        assert_eq!(ask(host).await.code(), "misdirected", "{host}");
        assert_eq!(ask(host).await.status, 421, "{host}");
    }
    // With a token the name does not matter: probes come by whatever name the host has.
    let server = Server::start(|ops| ops.tokens.operate = Some(Secret::new("hunter2"))).await;
    let request =
        get("/metrics", "Authorization: Bearer hunter2\r\n").replace("localhost", "headcount.example");
    assert_eq!(Client::connect(server.address).await.ask(request).await.status, 200);
}

#[tokio::test]
async fn it_stops() {
    let server = Server::start(|_| {}).await;
    let mut idle = Client::connect(server.address).await;
    assert_eq!(idle.ask(get("/livez", "")).await.status, 200);
    server.stop.send(true).unwrap();
    idle.closed().await;
    timeout(PATIENCE, server.serving).await.expect("ends").unwrap();
}
