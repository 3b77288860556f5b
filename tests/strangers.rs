//! Strangers hold connections to both listeners of a real process. However many they are, good webhooks and probes on fresh
//! connections are answered.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub, dead_code)]

mod support;
#[path = "support/wire.rs"]
mod wire;

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use headcount::time::now;
use support::process::{Backends, Process, SECRET, World};
use svix::webhooks::Webhook;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use wire::{Client, get};

/// The address of good senders and strangers alike, where all of them come through one proxy.
const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// More than a process has places.
const CROWD: usize = 1_150;

/// How long Svix waits for an endpoint.
const SENDERS_PATIENCE: Duration = Duration::from_secs(15);

struct House {
    world: World,
    process: Process,
    webhooks: SocketAddr,
    operators: SocketAddr,
}

impl House {
    fn start(settings: &[(&str, &str)]) -> Self {
        // Each stranger is an open file of ours, and one of the process's, which inherits the limit.
        let id = std::process::id().to_string();
        let raised = Command::new("prlimit").args(["--pid", &id, "--nofile=4096:"]).status().unwrap();
        assert!(raised.success(), "the limit on open files cannot be raised");
        let mut world = World::new(Backends::Embedded);
        for (variable, value) in settings {
            world.set(variable, value);
        }
        let process = world.start(&["ingress"]);
        let address = |url: &str| url.split('/').nth(2).unwrap().parse().unwrap();
        let webhooks = address(process.webhooks.as_deref().unwrap());
        let operators = address(&process.operators);
        Self { world, process, webhooks, operators }
    }

    /// The values of a metric, as an operator sees them.
    async fn metric(&self, name: &str) -> f64 {
        let text = Client::connect(self.operators).await.ask(get("/metrics", "")).await.body;
        let line =
            text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {text}"));
        line.trim().parse().unwrap()
    }

    /// The strangers go, and then the process, in time.
    async fn stop(self, mut crowd: JoinSet<()>) {
        crowd.shutdown().await;
        self.process.stop();
    }

    /// Nothing that was answered 2xx is lost: no worker takes it away.
    async fn holds(&self, messages: u64) {
        let queue = self.world.queue().await;
        let depths = queue.depths().await.unwrap();
        assert_eq!(depths.iter().find(|depth| depth.queue == "events").unwrap().messages, messages);
        queue.close().await;
    }
}

async fn connect(from: Ipv4Addr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if from != HERE {
        // Many connections in a short time: the ports of those that ended are needed again.
        socket.set_reuseaddr(true)?;
        socket.bind((from, 0).into())?;
    }
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A webhook's head, with the signature of `signed`, for a body of `length` bytes.
fn head(id: &str, signed: &[u8], length: usize, headers: &str) -> String {
    let at = now() / 1000;
    let signature = Webhook::new(SECRET).unwrap().sign(id, at, signed).unwrap();
    format!(
        "POST /webhooks/clerk HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\
         svix-id: {id}\r\nsvix-timestamp: {at}\r\nsvix-signature: {signature}\r\n{headers}\r\n"
    )
}

/// The status of the next answer, or how there came none.
async fn status(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    loop {
        match stream.read_buf(&mut answer).await {
            Ok(0) => return "closed".into(),
            Ok(_) if answer.windows(4).any(|window| window == b"\r\n\r\n") => {
                return String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap_or_default().into();
            }
            Ok(_) => {}
            Err(error) => return error.kind().to_string(),
        }
    }
}

/// How long it takes a stranger to come back: the house is always full, and the machine is not busy with that alone.
const BACK: Duration = Duration::from_millis(200);

/// So many strangers, each with a number, who do with a connection what they do until it ends, and come back; returns
/// when all have come.
async fn strangers<D: Future<Output = ()> + Send>(
    count: usize,
    from: Ipv4Addr,
    to: SocketAddr,
    back: Duration,
    nuisance: impl Fn(usize, TcpStream) -> D + Clone + Send + 'static,
) -> JoinSet<()> {
    let mut crowd = JoinSet::new();
    let (told, mut telling) = tokio::sync::mpsc::channel(count);
    for number in 0..count {
        let (nuisance, told) = (nuisance.clone(), told.clone());
        crowd.spawn(async move {
            let mut came = false;
            // Not faster than the system can complete connections.
            sleep(Duration::from_millis(number as u64)).await;
            loop {
                if let Ok(stream) = connect(from, to).await {
                    if !std::mem::replace(&mut came, true) {
                        let _ = told.send(()).await;
                    }
                    nuisance(number, stream).await;
                }
                sleep(back).await;
            }
        });
    }
    for _ in 0..count {
        timeout(SENDERS_PATIENCE, telling.recv()).await.expect("the strangers come");
    }
    crowd
}

/// Whether the other side ends the connection in this time, whatever it says before.
async fn ends_within(time: Duration, stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 1024];
    timeout(time, async { while matches!(stream.read(&mut buffer).await, Ok(1..)) {} }).await.is_ok()
}

/// Writes something every now and then, until the connection ends.
async fn trickle(stream: &mut TcpStream, what: &[u8], every: Duration) {
    let mut byte = [0];
    loop {
        tokio::select! {
            _ = stream.read(&mut byte) => return,
            () = sleep(every) => {}
        }
        if stream.write_all(what).await.is_err() {
            return;
        }
    }
}

/// A hundred good senders, one after the other, each on a connection of its own: all are served, 99 within a second.
async fn hundred_are_served(what: &str, send: impl AsyncFn(usize) -> String) {
    let mut took = Vec::new();
    for number in 0..100 {
        let started = Instant::now();
        let answer = timeout(SENDERS_PATIENCE, send(number)).await.unwrap_or_else(|_| "timed out".into());
        took.push(started.elapsed());
        assert!(
            matches!(answer.as_str(), "202" | "200"),
            "{what} {number}: {answer} after {:?}",
            took[number]
        );
        sleep(Duration::from_millis(20)).await;
    }
    took.sort();
    println!("{what}: median {:?}, p99 {:?}, longest {:?}", took[49], took[98], took[99]);
    assert!(took[98] <= Duration::from_secs(1), "{what}: p99 {:?}, longest {:?}", took[98], took[99]);
}

/// Posts a signed webhook with a body of so many bytes over a fresh connection.
async fn post(to: SocketAddr, number: usize, length: usize) -> String {
    post_from(to, number, length, "").await
}

async fn post_from(to: SocketAddr, number: usize, length: usize, headers: &str) -> String {
    let body = vec![b'a'; length];
    let head = head(&format!("msg_{number}"), &body, length, headers);
    let Ok(mut stream) = connect(HERE, to).await else { return "no connection".into() };
    if let Err(error) = stream.write_all(&[head.as_bytes(), &body].concat()).await {
        return error.kind().to_string();
    }
    status(&mut stream).await
}

#[tokio::test]
async fn strangers_who_ask_for_nothing_now_and_then_keep_no_webhook_out() {
    let house = House::start(&[]);
    let every = Duration::from_secs(8);
    let crowd =
        strangers(CROWD, HERE, house.webhooks, BACK, move |number, mut stream: TcpStream| async move {
            // They do not ask all at once.
            let mut pause = every * number as u32 / CROWD as u32;
            while !ends_within(pause, &mut stream).await
                && stream.write_all(get("/", "").as_bytes()).await.is_ok()
            {
                pause = every;
            }
        })
        .await;
    hundred_are_served("webhook", async |number| post(house.webhooks, number, 3_000).await).await;
    house.holds(100).await;

    // People can see it: a gauge, a counter, one line.
    let open = house.metric("headcount_connections{listener=\"public\"}").await;
    assert!(open > 900.0, "{open}");
    assert!(
        house.metric("headcount_connections_closed_total{listener=\"public\",reason=\"shed\"}").await > 50.0
    );
    let log = house.process.log();
    assert_eq!(log.matches("the public listener is full with 1024 connections").count(), 1, "{log}");
    house.stop(crowd).await;
}

#[tokio::test]
async fn strangers_who_send_nothing_keep_no_webhook_out() {
    let house = House::start(&[]);
    let crowd = strangers(CROWD, HERE, house.webhooks, BACK, |_, mut stream: TcpStream| async move {
        let _ = stream.read(&mut [0]).await;
    })
    .await;
    hundred_are_served("webhook", async |number| post(house.webhooks, number, 3_000).await).await;
    house.holds(100).await;
    house.stop(crowd).await;
}

#[tokio::test]
async fn strangers_who_never_end_their_heads_keep_no_webhook_out() {
    let house = House::start(&[]);
    let crowd = strangers(CROWD, HERE, house.webhooks, BACK, |_, mut stream: TcpStream| async move {
        let _ = stream.write_all(b"POST /webhooks/clerk HTTP/1.1\r\nX: ").await;
        trickle(&mut stream, b"x", Duration::from_millis(500)).await;
    })
    .await;
    hundred_are_served("webhook", async |number| post(house.webhooks, number, 3_000).await).await;
    house.holds(100).await;
    house.stop(crowd).await;
}

#[tokio::test]
async fn strangers_whose_bodies_trickle_hold_up_no_large_webhook() {
    let house = House::start(&[]);
    let head = head("msg_stranger", b"something else", 500_000, "");
    let crowd = strangers(200, HERE, house.webhooks, BACK, move |_, mut stream: TcpStream| {
        let head = head.clone();
        async move {
            let _ = stream.write_all(head.as_bytes()).await;
            trickle(&mut stream, b"x", Duration::from_millis(100)).await;
        }
    })
    .await;
    hundred_are_served("large webhook", async |number| post(house.webhooks, number, 40_000).await).await;
    house.holds(100).await;
    house.stop(crowd).await;
}

#[tokio::test]
async fn strangers_who_stop_before_the_end_of_bodies_delay_no_large_webhook() {
    let house = House::start(&[]);
    let head = head("msg_stranger", b"something else", 500_000, "");
    let request = [head.as_bytes(), &vec![b'x'; 499_000]].concat();
    let crowd = strangers(200, HERE, house.webhooks, BACK, move |_, mut stream: TcpStream| {
        let request = request.clone();
        async move {
            let _ = timeout(Duration::from_secs(5), stream.write_all(&request)).await;
            trickle(&mut stream, b"x", Duration::from_millis(100)).await;
            // They hold what there is to hold; they are no flood.
            sleep(Duration::from_secs(1)).await;
        }
    })
    .await;
    hundred_are_served("large webhook", async |number| post(house.webhooks, number, 40_000).await).await;
    house.holds(100).await;
    house.stop(crowd).await;
}

/// Posts a webhook whose head comes, and its body only when a newcomer's grace is over.
async fn post_slowly(from: Ipv4Addr, to: SocketAddr, id: String, headers: &str) -> String {
    let body = vec![b'a'; 3_000];
    let head = head(&id, &body, body.len(), headers);
    let Ok(mut stream) = connect(from, to).await else { return "no connection".into() };
    let _ = stream.write_all(head.as_bytes()).await;
    sleep(Duration::from_millis(1500)).await;
    let _ = stream.write_all(&body).await;
    status(&mut stream).await
}

/// Slow senders beside strangers who take every place that comes free.
async fn slow_senders_are_served(
    settings: &[(&str, &str)],
    from: Ipv4Addr,
    client: &'static str,
    others: &str,
) {
    let house = House::start(settings);
    let crowd =
        strangers(CROWD, from, house.webhooks, BACK / 10, move |_, mut stream: TcpStream| async move {
            let head = head("msg_stranger", b"something else", 3_000, client);
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.read(&mut [0]).await;
        })
        .await;
    let mut slow = JoinSet::new();
    for number in 0..20 {
        let (to, headers) = (house.webhooks, others.replace('N', &number.to_string()));
        slow.spawn(async move { post_slowly(HERE, to, format!("msg_{number}"), &headers).await });
    }
    while let Some(answer) = slow.join_next().await {
        assert_eq!(answer.unwrap(), "202");
    }
    house.holds(20).await;
    house.stop(crowd).await;
}

#[tokio::test]
async fn the_address_with_the_most_connections_pays_for_them() {
    slow_senders_are_served(&[], ELSEWHERE, "", "").await;
}

#[tokio::test]
async fn behind_a_trusted_proxy_the_client_with_most_connections_pays() {
    let settings = [("HEADCOUNT_TRUSTED_PROXIES", "127.0.0.0/8")];
    let (client, others) = ("X-Forwarded-For: 198.51.100.7\r\n", "X-Forwarded-For: 1.1.1.1, 203.0.113.N\r\n");
    slow_senders_are_served(&settings, HERE, client, others).await;
}

#[tokio::test]
async fn behind_a_trusted_proxy_many_strangers_keep_no_busy_sender_out() {
    let house = House::start(&[("HEADCOUNT_TRUSTED_PROXIES", "127.0.0.0/8")]);
    let crowd = strangers(CROWD, HERE, house.webhooks, BACK, |number, mut stream: TcpStream| async move {
        let client = format!("X-Forwarded-For: 198.51.{}.{}\r\n", number / 256, number % 256);
        let head = head("msg_stranger", b"something else", 3_000, &client);
        let _ = stream.write_all(head.as_bytes()).await;
        trickle(&mut stream, b"x", Duration::from_millis(500)).await;
    })
    .await;
    // The sender has many webhooks under way at once.
    hundred_are_served("four webhooks", async |number| {
        let posts = (0..4).map(|one| {
            post_from(house.webhooks, number * 4 + one, 3_000, "X-Forwarded-For: 203.0.113.7\r\n")
        });
        let answers = join_all(posts).await;
        answers.into_iter().find(|answer| answer != "202").unwrap_or_else(|| "202".into())
    })
    .await;
    house.holds(400).await;
    house.stop(crowd).await;
}

#[tokio::test]
async fn strangers_at_the_operators_door_keep_no_probe_out() {
    let house = House::start(&[("HEADCOUNT_OPS_TOKEN", "a token of these tests")]);
    for (count, ask) in [(70, false), (70, true), (600, false)] {
        let mut crowd =
            strangers(count, HERE, house.operators, BACK, move |number, mut stream: TcpStream| async move {
                if ask {
                    sleep(Duration::from_millis(number as u64 * 10)).await;
                    while stream.write_all(get("/metrics", "").as_bytes()).await.is_ok()
                        && status(&mut stream).await == "401"
                    {
                        sleep(Duration::from_millis(900)).await;
                    }
                } else {
                    let _ = stream.read(&mut [0]).await;
                }
            })
            .await;
        let what = format!("probe beside {count}");
        hundred_are_served(&what, async |number| {
            let path = ["/livez", "/readyz", "/metrics"][number % 3];
            let Ok(mut stream) = connect(HERE, house.operators).await else { return "no connection".into() };
            let request = get(path, "Authorization: Bearer a token of these tests\r\n");
            let _ = stream.write_all(request.as_bytes()).await;
            status(&mut stream).await
        })
        .await;
        crowd.shutdown().await;
    }
    house.stop(JoinSet::new()).await;
}

#[tokio::test]
async fn a_sender_that_half_closes_gets_its_answer() {
    let house = House::start(&[]);
    for number in 0..20 {
        let body = vec![b'a'; 3_000];
        let head = head(&format!("msg_{number}"), &body, body.len(), "");
        let mut stream = connect(HERE, house.webhooks).await.unwrap();
        stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(timeout(SENDERS_PATIENCE, status(&mut stream)).await.unwrap(), "202");
    }
    house.holds(20).await;
    house.stop(JoinSet::new()).await;
}
