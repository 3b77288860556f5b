//! The public listener over real TCP: which answer comes when, and what a rejected request costs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub, dead_code)]

#[path = "support/fake_queue.rs"]
mod fake_queue;
#[path = "support/wire.rs"]
mod wire;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use fake_queue::{FakeQueue, Mode};
use headcount::{
    clerk::signature::Verifier,
    ingress::{self, Bounds, Ingress},
    message::Rejected,
    net,
    secret::Secret,
    telemetry::metrics::ListenerMetrics,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use svix::webhooks::Webhook;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::{interval, timeout},
};
use wire::{Client, PATIENCE, get};

const PATH: &str = "/webhooks/clerk";
const BODY: &str =
    r#"{"data":{"id":"user_1"},"object":"event","timestamp":1717935000000,"type":"user.created"}"#;
const HALF_A_MEGABYTE: usize = 512 * 1024;

fn secret() -> String {
    format!("whsec_{}", STANDARD.encode("a signing secret of these tests"))
}

struct Server {
    address: SocketAddr,
    queue: Arc<FakeQueue>,
    metrics: PrometheusHandle,
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
    /// What is counted on this thread goes to the recorder of this server.
    _recording: metrics::LocalRecorderGuard<'static>,
}

impl Server {
    async fn start(change: impl FnOnce(&mut Bounds)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let queue = Arc::new(FakeQueue::new());
        let recorder: &'static _ = Box::leak(Box::new(PrometheusBuilder::new().build_recorder()));
        let _recording = metrics::set_default_local_recorder(recorder);
        let verifier = Verifier::new(&[Secret::new(secret())]).unwrap();
        let mut ingress = Ingress::new(queue.clone(), verifier, PATH);
        change(&mut ingress.bounds);
        let (stop, stopped) = watch::channel(false);
        let serving = tokio::spawn(ingress::serve(listener, ingress, stopped));
        Self { address, queue, metrics: recorder.handle(), stop, serving, _recording }
    }

    async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    fn counted(&self, outcome: &str) -> u64 {
        let line = format!("headcount_webhooks_total{{outcome=\"{outcome}\"}} ");
        let text = self.metrics.render();
        text.lines().find_map(|found| found.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
    }
}

fn seconds() -> i64 {
    headcount::time::now() / 1000
}

fn sign(id: &str, at: i64, body: &[u8]) -> String {
    Webhook::new(&secret()).unwrap().sign(id, at, body).unwrap()
}

/// The lines that make a request a signed one.
fn signature(id: &str, at: i64, signature: &str) -> String {
    format!("svix-id: {id}\r\nsvix-timestamp: {at}\r\nsvix-signature: {signature}\r\n")
}

fn post(headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

/// A good request.
fn signed(id: &str, body: &[u8]) -> Vec<u8> {
    let at = seconds();
    post(&signature(id, at, &sign(id, at, body)), body)
}

fn chunked(id: &str, body: &[u8], chunk: usize) -> Vec<u8> {
    let at = seconds();
    let signature = signature(id, at, &sign(id, at, body));
    let mut request =
        format!("POST {PATH} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n{signature}\r\n")
            .into_bytes();
    for part in body.chunks(chunk) {
        request.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        request.extend_from_slice(part);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    request
}

#[tokio::test]
async fn a_signed_webhook_is_queued_as_it_came() {
    let server = Server::start(|_| {}).await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let at = seconds();
    let headers = signature("msg_1", at, &sign("msg_1", at, BODY.as_bytes()));
    let before = headcount::time::now();
    let response =
        server.client().await.ask(post(&format!("{headers}traceparent: {trace}\r\n"), BODY.as_bytes())).await;
    assert_eq!((response.status, response.body.as_str()), (202, r#"{"status":"queued"}"#));
    assert_eq!(response.header("content-type"), Some("application/json"));

    let [message] = &server.queue.published()[..] else { panic!("one message") };
    assert_eq!((message.id.as_str(), message.event_type.as_str()), ("msg_1", "user.created"));
    assert_eq!(message.body, BODY);
    assert_eq!(message.traceparent.as_deref(), Some(trace));
    assert_eq!((message.attempt, message.waits, message.round), (0, 0, 0));
    assert!((before..=headcount::time::now()).contains(&message.received_at));
    assert_eq!(server.counted("queued"), 1);
    assert!(server.metrics.render().contains("headcount_last_webhook_timestamp_seconds"));
}

#[tokio::test]
async fn the_doctors_webhook_leaves_no_trace() {
    let server = Server::start(|_| {}).await;
    let probe = r#"{"data":{},"object":"event","timestamp":1717935000000,"type":"headcount.doctor"}"#;
    let before = server.metrics.render();
    assert!(
        !before.contains("headcount_last_webhook_timestamp_seconds"),
        "nothing was accepted yet: {before}"
    );
    let response = server.client().await.ask(signed("doctor_1", probe.as_bytes())).await;
    assert_eq!((response.status, response.body.as_str()), (202, r#"{"status":"checked"}"#));
    server.queue.set(Mode::Fail);
    assert_eq!(server.client().await.ask(signed("doctor_2", probe.as_bytes())).await.status, 503);
    assert_eq!(server.queue.published().len(), 0);
    let counts = |text: &str| {
        let lines = text.lines().filter(|line| line.contains("webhook") || line.contains("publish"));
        lines.map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(counts(&server.metrics.render()), counts(&before));
    // Whoever is not verified is turned away as ever.
    let forged = post(&signature("doctor_3", seconds(), "v1,aaaa"), probe.as_bytes());
    assert_eq!(server.client().await.ask(forged).await.status, 401);
    assert_eq!(server.counted("unauthorized"), 1);
}

#[tokio::test]
async fn no_2xx_before_the_queue_has_confirmed() {
    let server = Server::start(|_| {}).await;
    server.queue.set(Mode::Hold);
    let mut client = server.client().await;
    client.send(signed("msg_1", BODY.as_bytes())).await;
    server.queue.begun(1).await;
    // Another request goes all the way while the first is held.
    assert_eq!(server.client().await.ask(get("/", "")).await.status, 404);
    assert!(client.silent() && server.queue.published().is_empty());

    server.queue.set(Mode::Take);
    assert_eq!(client.response().await.status, 202);
    assert_eq!(server.queue.published().len(), 1);
}

#[tokio::test]
async fn a_queue_that_fails_is_answered_503_at_once() {
    let server = Server::start(|_| {}).await;
    server.queue.set(Mode::Fail);
    let mut client = server.client().await;
    let response = client.ask(signed("msg_1", BODY.as_bytes())).await;
    assert_eq!((response.status, response.header("retry-after")), (503, Some("5")));
    assert_eq!(response.code(), "unavailable");
    assert_eq!(server.counted("unavailable"), 1);

    server.queue.set(Mode::Take);
    assert_eq!(client.ask(signed("msg_1", BODY.as_bytes())).await.status, 202);
}

#[tokio::test]
async fn a_queue_that_hangs_is_answered_503_in_time() {
    let server = Server::start(|_| {}).await;
    server.queue.set(Mode::Hold);
    let started = Instant::now();
    let response = server.client().await.ask(signed("msg_1", BODY.as_bytes())).await;
    assert_eq!((response.status, response.header("retry-after")), (503, Some("5")));
    let took = started.elapsed();
    assert!(took > Duration::from_secs(5) && took < Duration::from_secs(8), "{took:?}");
}

#[tokio::test]
async fn a_client_that_leaves_gives_its_room_back_and_its_repeat_is_taken() {
    let server = Server::start(|bounds| bounds.publishing_bytes = 2 * 1024).await;
    server.queue.set(Mode::Hold);
    for count in 1..=5 {
        let mut client = server.client().await;
        client.send(signed("msg_1", BODY.as_bytes())).await;
        // Each finds the room that the one before has left.
        timeout(PATIENCE, server.queue.begun(count)).await.expect("the publish begins");
        client.reset();
    }
    server.queue.set(Mode::Take);
    assert_eq!(server.client().await.ask(signed("msg_1", BODY.as_bytes())).await.status, 202);
    assert!(server.queue.published().iter().any(|message| message.id.as_str() == "msg_1"));
}

#[tokio::test]
async fn a_bad_signature_changes_nothing_and_says_why() {
    let server = Server::start(|_| {}).await;
    let now = seconds();
    let body = BODY.as_bytes();
    let good = sign("msg_1", now, body);
    let stranger = Webhook::new("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD").unwrap();
    let stranger = stranger.sign("msg_1", now, body).unwrap();
    let (stale, future) = (now - 400, now + 400);
    let huge = "a".repeat(256);
    let cases = [
        (401, "no_matching_signature", signature("msg_1", now, &stranger), body),
        (401, "no_matching_signature", signature("msg_2", now, &good), body),
        (401, "no_matching_signature", signature("msg_1", now - 1, &good), body),
        (401, "no_matching_signature", signature("msg_1", now, &good), b"{}".as_slice()),
        (401, "no_matching_signature", signature("msg_1", now, &good), b"".as_slice()),
        (401, "no_matching_signature", signature("msg_1", now, &good.replace("v1,", "v1a,")), body),
        (401, "timestamp_out_of_range", signature("msg_1", stale, &sign("msg_1", stale, body)), body),
        (401, "timestamp_out_of_range", signature("msg_1", future, &sign("msg_1", future, body)), body),
        (400, "missing_signature_header", String::new(), body),
        (400, "missing_signature_header", String::new(), b"".as_slice()),
        (400, "missing_signature_header", signature("msg_1", now, "  "), body),
        (400, "missing_signature_header", format!("svix-id: msg_1\r\nsvix-timestamp: {now}\r\n"), body),
        (400, "malformed_signature_header", signature("msg_1", now, &good).repeat(2), body),
        (400, "malformed_id", signature(&huge, now, &sign(&huge, now, body)), body),
        (
            400,
            "malformed_timestamp",
            format!("svix-id: a\r\nsvix-timestamp: +1\r\nsvix-signature: {good}\r\n"),
            body,
        ),
    ];
    for (status, code, headers, body) in cases {
        let response = server.client().await.ask(post(&headers, body)).await;
        assert_eq!((response.status, response.code().as_str()), (status, code), "{headers}");
    }
    assert_eq!((server.counted("unauthorized"), server.counted("malformed")), (8, 7));
    assert!(server.queue.published().is_empty());
}

#[tokio::test]
async fn a_wrong_secret_shows_itself_in_a_sample() {
    let server = Server::start(|_| {}).await;
    let at = seconds();
    let stranger = Webhook::new("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD").unwrap();
    let wrong = stranger.sign("msg_1", at, BODY.as_bytes()).unwrap();
    let headers =
        signature("msg_1", at, &wrong) + "X-Forwarded-For: 203.0.113.9\r\nUser-Agent: Svix-Webhooks\r\n";
    let before = headcount::time::now();
    assert_eq!(server.client().await.ask(post(&headers, BODY.as_bytes())).await.status, 401);
    // It is there with the answer.
    let [sample] = &server.queue.samples()[..] else { panic!("one sample") };
    let sample = std::str::from_utf8(sample).unwrap();
    let rejected: Rejected = serde_json::from_str(sample).unwrap();
    assert_eq!((rejected.reason.as_str(), rejected.address.as_str()), ("no_matching_signature", "127.0.0.1"));
    assert!((before..=headcount::time::now()).contains(&rejected.at));
    let names = [
        "content-length",
        "host",
        "svix-id",
        "svix-signature",
        "svix-timestamp",
        "user-agent",
        "x-forwarded-for",
    ];
    assert_eq!(rejected.headers, names);
    for value in ["msg_1", wrong.as_str(), "203.0.113.9", "Svix-Webhooks", "user_1", "user.created"] {
        assert!(!sample.contains(value), "{value} in {sample}");
    }
}

#[tokio::test]
async fn what_is_the_senders_fault_leaves_a_sample_and_nothing_else_does() {
    let server = Server::start(|bounds| {
        bounds.body_timeout = Duration::from_millis(100);
        bounds.http.linger = Duration::from_millis(100);
    })
    .await;
    let good = signed("msg_1", BODY.as_bytes());
    let broken = String::from_utf8(chunked("msg_1", BODY.as_bytes(), 1000)).unwrap();
    let over = vec![b'a'; HALF_A_MEGABYTE + 1];
    let stale = seconds() - 400;
    for (status, request) in [
        (202, good.clone()),
        (404, get("/", "").into_bytes()),
        (405, get(PATH, "").into_bytes()),
        (400, post("", b"")),
        (400, broken.replace("\r\n\r\n", "\r\n\r\nno length\r\n").into_bytes()),
        (401, post(&signature("msg_1", stale, &sign("msg_1", stale, b"")), b"")),
        (413, post("", &over)),
        (408, good[..good.len() - 1].to_vec()),
    ] {
        assert_eq!(server.client().await.ask(request).await.status, status);
    }
    server.queue.set(Mode::Fail);
    assert_eq!(server.client().await.ask(good).await.status, 503);
    let samples = server.queue.samples();
    let reasons: Vec<String> =
        samples.iter().map(|sample| serde_json::from_slice::<Rejected>(sample).unwrap().reason).collect();
    let expected = [
        "missing_signature_header",
        "malformed_body",
        "timestamp_out_of_range",
        "body_too_large",
        "body_too_slow",
    ];
    assert_eq!(reasons, expected);
}

#[tokio::test]
async fn any_verified_body_is_queued() {
    let server = Server::start(|_| {}).await;
    let mut client = server.client().await;
    let full = vec![b'a'; HALF_A_MEGABYTE];
    let bodies: [&[u8]; 5] = [b"", b"not JSON", b"{\"type\":7}", b"\0\x01", &full];
    for (index, body) in bodies.into_iter().enumerate() {
        assert_eq!(client.ask(signed(&format!("msg_{index}"), body)).await.status, 202, "{index}");
    }
    // svix itself does not sign what is not UTF-8, so this is signed by hand.
    let (at, body) = (seconds(), b"\xff\xfe");
    let content = [format!("msg_raw.{at}.").as_bytes(), body].concat();
    let mac = hmac_sha256::HMAC::mac(content, "a signing secret of these tests");
    let headers = signature("msg_raw", at, &format!("v1,{}", STANDARD.encode(mac)));
    assert_eq!(client.ask(post(&headers, body)).await.status, 202);

    let published = server.queue.published();
    assert_eq!(published.len(), 6);
    assert!(published.iter().all(|message| message.event_type == "unknown"));
    assert_eq!((published[4].body.len(), &published[5].body[..]), (HALF_A_MEGABYTE, &body[..]));
}

#[tokio::test]
async fn the_white_label_headers_count_too() {
    let server = Server::start(|_| {}).await;
    let at = seconds();
    let headers = signature("msg_1", at, &sign("msg_1", at, BODY.as_bytes())).replace("svix-", "Webhook-");
    assert_eq!(server.client().await.ask(post(&headers, BODY.as_bytes())).await.status, 202);
}

#[tokio::test]
async fn a_chunked_body_is_taken_in() {
    let server = Server::start(|_| {}).await;
    let mut client = server.client().await;
    assert_eq!(client.ask(chunked("msg_1", BODY.as_bytes(), 7)).await.status, 202);
    let large = vec![b'a'; 300_000];
    assert_eq!(client.ask(chunked("msg_2", &large, 10_000)).await.status, 202);
    assert_eq!(server.queue.published()[0].body, BODY);
    assert_eq!(server.queue.published()[1].body, large);
}

#[tokio::test]
async fn a_body_over_the_limit_is_turned_away_whether_declared_or_not() {
    let server = Server::start(|_| {}).await;
    let over = vec![b'a'; HALF_A_MEGABYTE + 1];
    // Declared: answered before a byte of it was sent.
    let request = signed("msg_1", &over);
    let head = &request[..request.len() - over.len()];
    let response = server.client().await.ask(head).await;
    assert_eq!((response.status, response.code().as_str()), (413, "body_too_large"));
    // Also where it is not even signed.
    let response = server.client().await.ask(post("", &over)).await;
    assert_eq!(response.status, 413);
    // A client that writes all of it before it reads gets the answer too.
    let far_over = vec![b'a'; 4 * HALF_A_MEGABYTE];
    for request in [signed("msg_1", &far_over), chunked("msg_1", &far_over, 50_000)] {
        let mut client = server.client().await;
        assert_eq!(client.ask(request).await.status, 413);
        client.closed().await;
    }
    assert_eq!((server.counted("too_large"), server.queue.published().len()), (4, 0));
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_go_on_or_not() {
    let server = Server::start(|_| {}).await;
    let expecting = |request: Vec<u8>, body: &[u8]| {
        let head = String::from_utf8(request[..request.len() - body.len()].to_vec()).unwrap();
        head.replacen("Host:", "Expect: 100-continue\r\nHost:", 1)
    };
    let mut client = server.client().await;
    let response = client.ask(expecting(signed("msg_1", BODY.as_bytes()), BODY.as_bytes())).await;
    assert_eq!(response.status, 100);
    assert_eq!(client.ask(BODY).await.status, 202);

    let over = vec![b'a'; HALF_A_MEGABYTE + 1];
    assert_eq!(server.client().await.ask(expecting(signed("msg_2", &over), &over)).await.status, 413);
}

#[tokio::test]
async fn a_slow_body_is_answered_408() {
    let server = Server::start(|bounds| {
        bounds.body_timeout = Duration::from_millis(100);
        bounds.http.linger = Duration::from_millis(100);
    })
    .await;
    let mut client = server.client().await;
    let request = signed("msg_1", BODY.as_bytes());
    let response = client.ask(&request[..request.len() - 1]).await;
    assert_eq!((response.status, response.code().as_str()), (408, "body_too_slow"));
    assert_eq!(response.header("connection"), Some("close"));
    client.closed().await;
    assert_eq!((server.counted("too_slow"), server.queue.published().len()), (1, 0));
}

#[tokio::test]
async fn a_broken_body_is_answered_400() {
    let server = Server::start(|_| {}).await;
    let request = chunked("msg_1", BODY.as_bytes(), 1000);
    let request = String::from_utf8(request).unwrap().replace("\r\n\r\n", "\r\n\r\nno length\r\n");
    let response = server.client().await.ask(request).await;
    assert_eq!((response.status, response.code().as_str()), (400, "malformed_body"));
}

#[tokio::test]
async fn slow_headers_and_idle_connections_are_closed() {
    let server = Server::start(|bounds| bounds.http.header_timeout = Duration::from_secs(1)).await;
    let (mut silent, mut partial, mut idle) =
        (server.client().await, server.client().await, server.client().await);
    partial.send("POST /webhooks/clerk HTTP/1.1\r\nHost: loc").await;
    assert_eq!(idle.ask(signed("msg_1", BODY.as_bytes())).await.status, 202);
    silent.closed().await;
    partial.closed().await;
    idle.closed().await;

    // A byte now and then does not help.
    let mut dribbling = server.client().await;
    dribbling.send("POST /webhooks/clerk HTTP/1.1\r\nX: ").await;
    let mut ticks = interval(Duration::from_millis(20));
    timeout(PATIENCE, async {
        loop {
            ticks.tick().await;
            if dribbling.try_send("x").await.is_err() {
                break;
            }
        }
    })
    .await
    .expect("is closed");
}

#[tokio::test]
async fn a_client_that_never_reads_does_not_keep_its_place() {
    // Answers of both kinds: many small ones, and one that no buffer holds.
    for (answer, requests) in [("short".to_owned(), 100_000), ("long".repeat(4_000_000), 1)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let bounds = net::Bounds {
            connections: 1,
            connection_age: Duration::from_millis(500),
            last_request: Duration::from_millis(100),
            ..net::Bounds::default()
        };
        let router = axum::Router::new()
            .route("/", axum::routing::get(async move || answer))
            .route("/next", axum::routing::get(async || "ok"));
        let (_stop, stopped) = watch::channel(false);
        tokio::spawn(net::serve(listener, router, bounds, ListenerMetrics::new("public"), stopped));

        let mut deaf = Client::connect_narrow(address).await;
        let deaf = tokio::spawn(async move {
            let _ = deaf.try_send(get("/", "").repeat(requests)).await;
            deaf
        });
        // The one place becomes free.
        assert_eq!(Client::connect(address).await.ask(get("/next", "")).await.status, 200);
        drop(deaf);
    }
}

#[tokio::test]
async fn too_many_or_too_large_headers_are_answered_431() {
    let server = Server::start(|_| {}).await;
    for headers in ["X: y\r\n".repeat(101), format!("X: {}\r\n", "y".repeat(20_000))] {
        assert_eq!(server.client().await.ask(get(PATH, &headers)).await.status, 431);
    }
}

#[tokio::test]
async fn a_newcomer_to_a_full_house_takes_the_place_that_brings_least() {
    let server = Server::start(|bounds| bounds.http.connections = 3).await;
    let (mut resting, mut served, mut idle) =
        (server.client().await, server.client().await, server.client().await);
    assert_eq!(resting.ask(signed("msg_1", BODY.as_bytes())).await.status, 202);
    server.queue.set(Mode::Hold);
    served.send(signed("msg_2", BODY.as_bytes())).await;
    server.queue.begun(2).await;

    let mut newcomers = Vec::new();
    for (number, leaves) in [&mut idle, &mut resting].into_iter().enumerate() {
        let mut newcomer = server.client().await;
        newcomer.send(signed(&format!("msg_new_{number}"), BODY.as_bytes())).await;
        leaves.closed().await;
        server.queue.begun(3 + number).await;
        newcomers.push(newcomer);
    }
    // All are served: the next waits, however long, and an answer makes room for it.
    let mut waiting = server.client().await;
    waiting.send(signed("msg_last", BODY.as_bytes())).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(waiting.silent());
    server.queue.set(Mode::Take);
    for client in newcomers.iter_mut().chain([&mut served, &mut waiting]) {
        assert_eq!(client.response().await.status, 202);
    }
    let text = server.metrics.render();
    assert!(
        text.contains("headcount_connections_closed_total{listener=\"public\",reason=\"shed\"} 2"),
        "{text}"
    );
}

#[tokio::test]
async fn slow_large_bodies_do_not_hold_up_the_usual_webhook() {
    let server = Server::start(|bounds| bounds.reading_bytes = 100_000).await;
    let large = vec![b'a'; 90_000];
    let request = signed("msg_large", &large);
    let (most, rest) = request.split_at(request.len() - 1);
    let mut slow = server.client().await;
    slow.send(most).await;
    // The usual one needs no room, ...
    let mut usual = server.client().await;
    assert_eq!(usual.ask(signed("msg_1", BODY.as_bytes())).await.status, 202);
    // ... and another large one gets it in its turn.
    let mut next = server.client().await;
    next.send(signed("msg_next", &large)).await;
    assert_eq!(usual.ask(signed("msg_2", BODY.as_bytes())).await.status, 202);
    slow.send(rest).await;
    assert_eq!((slow.response().await.status, next.response().await.status), (202, 202));
}

#[tokio::test]
async fn a_large_body_without_room_is_answered_503() {
    let server = Server::start(|bounds| {
        bounds.reading_bytes = 50_000;
        bounds.body_timeout = Duration::from_millis(500);
    })
    .await;
    // All room is taken by webhooks on their way to the queue.
    server.queue.set(Mode::Hold);
    let large = vec![b'a'; 90_000];
    let mut held = Vec::new();
    for number in 0..8 {
        let mut client = server.client().await;
        client.send(signed(&format!("msg_{number}"), &large)).await;
        server.queue.begun(number + 1).await;
        held.push(client);
    }
    for request in [signed("msg_late", &large), chunked("msg_late", &large, 10_000)] {
        let response = server.client().await.ask(request).await;
        assert_eq!((response.status, response.header("retry-after")), (503, Some("5")));
    }
    // The usual one needs none, and the room comes back.
    server.queue.set(Mode::Take);
    for client in &mut held {
        assert_eq!(client.response().await.status, 202);
    }
    assert_eq!(server.client().await.ask(chunked("msg_late", &large, 10_000)).await.status, 202);
}

#[tokio::test]
async fn half_read_bodies_do_not_wait_for_each_other() {
    let server = Server::start(|bounds| {
        bounds.reading_bytes = 1_000_000;
        bounds.stalled = Duration::from_secs(5);
    })
    .await;
    // Three times the room, and each has a part of it.
    let large = vec![b'a'; 100_000];
    let mut clients = Vec::new();
    for number in 0..30 {
        let mut client = server.client().await;
        let request = signed(&format!("msg_{number}"), &large);
        client.send(&request[..60_000]).await;
        clients.push((client, request));
    }
    for (client, request) in &mut clients {
        client.send(&request[60_000..]).await;
    }
    let started = Instant::now();
    for (client, _) in &mut clients {
        assert_eq!(client.response().await.status, 202);
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_large_body_that_trickles_is_cut_and_a_slow_one_is_not() {
    let server = Server::start(|bounds| bounds.pace = Duration::from_secs(1)).await;
    let large = vec![b'a'; 100_000];
    let request = signed("msg_1", &large);
    let (mut trickling, mut slow) = (server.client().await, server.client().await);
    trickling.send(&request[..30_000]).await;
    let started = Instant::now();
    // 8,000 bytes a second, and then the rest.
    let mut sent = 0;
    for piece in request.chunks(2_000).take(12) {
        slow.send(piece).await;
        sent += piece.len();
        let _ = trickling.try_send("a").await;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert_eq!(trickling.response().await.code(), "body_too_slow");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    slow.send(&request[sent..]).await;
    assert_eq!(slow.response().await.status, 202);
}

#[tokio::test]
async fn what_hangs_in_the_queue_is_bounded_and_its_room_comes_back() {
    let server = Server::start(|bounds| {
        bounds.publishing_bytes = 3 * 1024;
        bounds.publish_limit = Duration::from_millis(500);
    })
    .await;
    server.queue.set(Mode::Hold);
    let hang = async |id: &str| server.client().await.ask(signed(id, BODY.as_bytes())).await.status;
    let begun = async {
        tokio::time::sleep(Duration::from_millis(250)).await;
        server.queue.has_begun()
    };
    // Two find room, and nobody else while they hang.
    let all = tokio::join!(hang("msg_1"), hang("msg_2"), hang("msg_3"), hang("msg_4"), begun);
    assert_eq!(all, (503, 503, 503, 503, 2));
    server.queue.set(Mode::Take);
    assert_eq!(hang("msg_5").await, 202);
}

#[tokio::test]
async fn other_paths_and_methods_are_told_so() {
    let server = Server::start(|_| {}).await;
    for path in ["/", "/webhooks", "/webhooks/clerk/", "/metrics", "/readyz", "/webhooks/clerk/x?y"] {
        let response = server.client().await.ask(get(path, "")).await;
        assert_eq!((response.status, response.code().as_str()), (404, "not_found"), "{path}");
    }
    for method in ["GET", "PUT", "OPTIONS"] {
        let response = server.client().await.ask(get(PATH, "").replacen("GET", method, 1)).await;
        assert_eq!((response.status, response.header("allow")), (405, Some("POST")), "{method}");
        assert_eq!(response.code(), "method_not_allowed");
    }
    let posted_to =
        |url: &str| String::from_utf8(signed("msg_0", BODY.as_bytes())).unwrap().replacen(PATH, url, 1);
    // Proxies may name the whole address.
    let whole = posted_to(&format!("http://headcount.test{PATH}"));
    assert_eq!(server.client().await.ask(whole).await.status, 202);
    for other in ["/webhooks%2Fclerk", "//webhooks/clerk", "/webhooks/./clerk", "/WEBHOOKS/CLERK"] {
        let response = server.client().await.ask(posted_to(other)).await;
        assert_eq!((response.status, response.code().as_str()), (404, "wrong_path"), "{other}");
    }
    // A query is no other path.
    let request =
        String::from_utf8(signed("msg_1", BODY.as_bytes())).unwrap().replacen(" HTTP", "?a=b HTTP", 1);
    assert_eq!(server.client().await.ask(request).await.status, 202);
    // Nor is a body that nobody wants an obstacle to the answer.
    let lost = String::from_utf8(signed("msg_2", &[b'a'; 200_000])).unwrap().replacen(PATH, "/lost", 1);
    assert_eq!(server.client().await.ask(lost).await.status, 404);
}

#[tokio::test]
async fn a_webhook_at_a_wrong_path_shows_itself() {
    let server = Server::start(|_| {}).await;
    let ask = async |path: &str, request: Vec<u8>| {
        let request = String::from_utf8(request).unwrap().replacen(PATH, path, 1);
        server.client().await.ask(request).await
    };
    for path in ["/webhooks/clerk/", "/", "/api/webhooks"] {
        let response = ask(path, signed("msg_1", BODY.as_bytes())).await;
        assert_eq!((response.status, response.code().as_str()), (404, "wrong_path"), "{path}");
    }
    // Whoever looks around is no webhook.
    assert_eq!(ask("/login", post("", b"{}")).await.code(), "not_found");
    assert_eq!(server.counted("wrong_path"), 3);
    let samples = server.queue.samples();
    let reasons = samples.iter().map(|sample| serde_json::from_slice::<Rejected>(sample).unwrap().reason);
    assert_eq!(reasons.collect::<Vec<_>>(), ["wrong_path"; 3]);
    assert!(server.queue.published().is_empty());
}

#[tokio::test]
async fn a_refusal_closes_the_connection_and_a_good_sender_keeps_it() {
    let server = Server::start(|_| {}).await;
    let good = signed("msg_1", BODY.as_bytes());
    let mut kept = server.client().await;
    for (mode, status) in [(Mode::Take, 202), (Mode::Fail, 503), (Mode::Take, 202)] {
        server.queue.set(mode);
        let response = kept.ask(&good).await;
        assert_eq!((response.status, response.header("connection")), (status, None));
    }
    for request in [get("/", ""), get(PATH, ""), String::from_utf8(post("", b"{}")).unwrap()] {
        // A request that was sent in the same breath is not answered, and does not cost the first its answer.
        let mut client = server.client().await;
        let response = client.ask(request.repeat(1000)).await;
        assert_eq!(response.header("connection"), Some("close"), "{response:?}");
        client.closed().await;
    }
    // It brought nothing good this time: it goes too.
    assert_eq!(kept.ask(post("", b"{}")).await.status, 400);
    kept.closed().await;
    drop(kept);
    for line in [
        "headcount_connections{listener=\"public\"} 0",
        "headcount_connections_closed_total{listener=\"public\",reason=\"refused\"} 4",
        "headcount_connections_closed_total{listener=\"public\",reason=\"shed\"} 0",
    ] {
        timeout(PATIENCE, async {
            while !server.metrics.render().contains(line) {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{line} in {}", server.metrics.render()));
    }
}

#[tokio::test]
async fn a_client_that_half_closes_gets_its_answer() {
    let server = Server::start(|_| {}).await;
    server.queue.set(Mode::Hold);
    let mut client = server.client().await;
    client.send(signed("msg_1", BODY.as_bytes())).await;
    server.queue.begun(1).await;
    client.half_close().await;
    // The server has seen it: it serves others meanwhile.
    assert_eq!(server.client().await.ask(get("/", "")).await.status, 404);
    server.queue.set(Mode::Take);
    assert_eq!(client.response().await.status, 202);
    client.closed().await;
    // One that breaks off its body is told so.
    let mut client = server.client().await;
    let request = signed("msg_2", BODY.as_bytes());
    client.send(&request[..request.len() - 1]).await;
    client.half_close().await;
    assert_eq!(client.response().await.code(), "malformed_body");
}

#[tokio::test]
async fn a_stop_closes_the_idle_and_finishes_what_is_in_flight() {
    let server = Server::start(|_| {}).await;
    let (mut fresh, mut idle, mut publishing, mut sending) =
        (server.client().await, server.client().await, server.client().await, server.client().await);
    assert_eq!(idle.ask(signed("msg_1", BODY.as_bytes())).await.status, 202);
    server.queue.set(Mode::Hold);
    publishing.send(signed("msg_2", BODY.as_bytes())).await;
    server.queue.begun(2).await;
    let at = seconds();
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {}\r\n{}\r\n",
        BODY.len(),
        signature("msg_3", at, &sign("msg_3", at, BODY.as_bytes()))
    );
    // The server waits for its body.
    assert_eq!(sending.ask(head).await.status, 100);

    server.stop.send(true).unwrap();
    fresh.closed().await;
    idle.closed().await;
    assert!(TcpStream::connect(server.address).await.is_err());
    assert!(!server.serving.is_finished() && publishing.silent());

    sending.send(BODY).await;
    server.queue.begun(3).await;
    server.queue.set(Mode::Take);
    assert_eq!(publishing.response().await.status, 202);
    assert_eq!(sending.response().await.status, 202);
    publishing.closed().await;
    sending.closed().await;
    timeout(PATIENCE, server.serving).await.expect("ends").unwrap();
    assert_eq!(server.queue.published().len(), 3);
}

#[tokio::test]
async fn an_abandoned_server_leaves_no_connection_behind() {
    let server = Server::start(|_| {}).await;
    server.queue.set(Mode::Hold);
    let (mut idle, mut publishing) = (server.client().await, server.client().await);
    assert_eq!(idle.ask(get("/", "")).await.status, 404);
    publishing.send(signed("msg_1", BODY.as_bytes())).await;
    server.queue.begun(1).await;
    server.serving.abort();
    idle.closed().await;
    publishing.closed().await;
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn ten_thousand_garbage_requests_are_cheap_and_counted_and_not_logged() {
    // The test's runtime has one thread, so this sees what the server logs.
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_writer(move || writer.clone())
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);

    let server = Server::start(|_| {}).await;
    let now = seconds();
    let garbage = [
        post("", b"{}"),
        post(&signature("msg_1", now, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="), BODY.as_bytes()),
        post(&signature("msg_1", now - 1000, "v1,aaaa"), BODY.as_bytes()),
        post("svix-id: {}\r\nsvix-timestamp: never\r\nsvix-signature: x\r\n", b"\xff"),
    ];
    let started = Instant::now();
    for _ in 0..2500 {
        for request in &garbage {
            let mut client = server.client().await;
            assert!([400, 401].contains(&client.ask(request).await.status));
            client.closed().await;
        }
    }
    println!("10,000 garbage requests took {:?}", started.elapsed());
    assert_eq!((server.counted("malformed"), server.counted("unauthorized")), (5000, 5000));
    assert_eq!((server.counted("queued"), server.queue.published().len()), (0, 0));
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let firsts = text.lines().filter(|line| line.contains("turned a request away")).count();
    let minutes = started.elapsed().as_secs() as usize / 60;
    assert!(
        firsts == 4 && text.lines().count() <= 4 + minutes,
        "one line for each code, and one a minute: {text}"
    );
    // Four codes, each with a burst of 3 and then one a second.
    let (samples, most) = (server.queue.samples().len(), 4 * (3 + started.elapsed().as_secs() as usize));
    assert!((4 * 3..=most).contains(&samples), "{samples} samples, not 12 to {most}");
}

#[tokio::test]
async fn an_outage_is_logged_once_and_so_is_its_end() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_writer(move || writer.clone())
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);

    let server = Server::start(|_| {}).await;
    let mut client = server.client().await;
    for (mode, status) in [(Mode::Fail, 503), (Mode::Take, 202)] {
        server.queue.set(mode);
        for _ in 0..5 {
            assert_eq!(client.ask(signed("msg_1", BODY.as_bytes())).await.status, status);
        }
    }
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.contains("told to fail") && text.contains("queued again"), "{text}");
}
