//! Owns the load generator, a process of its own: signs each webhook, keeps its connections, and posts either as fast as
//! the answers come (closed loop) or at a set rate (open loop). In the open loop a latency counts from the moment at
//! which the webhook was due, so that a slow answer is not hidden by what it held up (no coordinated omission).
//! One thread for all connections: it has to cost as little as possible, since it shares the machine with what it measures.

use std::{
    cell::Cell,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Mutex, mpsc},
};

use super::{
    Outcome,
    process::SECRET,
    webhooks::{self, Shape, Webhooks},
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// The argument that makes this program the generator.
pub const ARGUMENT: &str = "generate-load";

/// What to post where. Travels as JSON in the argument after [`ARGUMENT`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// `127.0.0.1:port`
    pub address: String,
    /// How long.
    pub seconds: f64,
    /// Per second; `None`: as fast as the answers come.
    pub rate: Option<f64>,
    /// Each has one webhook on its way at a time.
    pub connections: u64,
    /// What to post.
    pub shape: Shape,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Answered with a 2xx.
    pub accepted: u64,
    /// Answered otherwise, or not at all.
    pub refused: u64,
    /// From the first to the last.
    pub seconds: f64,
    /// Microseconds to the answer: the median, 99 % and 99.9 %.
    pub latency: [u64; 3],
}

impl Summary {
    /// Accepted per second.
    pub fn rate(&self) -> f64 {
        self.accepted as f64 / self.seconds
    }
}

/// Runs the generator as a process and waits for its summary.
pub fn run(plan: &Plan) -> Outcome<Summary> {
    let output = Command::new(std::env::current_exe()?)
        .args([ARGUMENT, &serde_json::to_string(plan)?])
        .stderr(Stdio::inherit())
        .output()?;
    let summary: Summary = serde_json::from_slice(&output.stdout)?;
    if summary.accepted == 0 {
        return Err("the load generator got nothing accepted".into());
    }
    if summary.refused > 0 {
        eprintln!("{} webhooks were refused", summary.refused);
    }
    Ok(summary)
}

/// The process itself: posts, then prints the summary.
pub fn generate(plan: &str) -> Outcome<()> {
    let plan: Plan = serde_json::from_str(plan)?;
    if !plan.address.starts_with("127.0.0.1:") {
        return Err("load goes to this machine only".into());
    }
    let webhooks = Webhooks::new(plan.shape)?;
    let signer = Signer::new()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = Client { signer, webhooks, due: Due::of(&plan), plan };
    let start = client.due.start;
    let parts: Vec<Part> =
        runtime.block_on(join_all((0..client.plan.connections).map(|_| client.post_all())));
    let mut latencies: Vec<u64> = parts.iter().flat_map(|part| part.latencies.iter().copied()).collect();
    latencies.sort_unstable();
    let at = |part: f64| {
        let last = latencies.len().saturating_sub(1);
        latencies.get(((latencies.len() as f64 * part) as usize).min(last)).copied().unwrap_or_default()
    };
    let summary = Summary {
        accepted: latencies.len() as u64,
        refused: parts.iter().map(|part| part.refused).sum(),
        seconds: start.elapsed().as_secs_f64(),
        latency: [at(0.5), at(0.99), at(0.999)],
    };
    println!("{}", serde_json::to_string(&summary)?);
    Ok(())
}

/// The webhooks that are due, one after another, until the time is over.
struct Due {
    start: Instant,
    seconds: f64,
    next: Cell<u64>,
    /// From the thread that keeps the pace; a runtime's timers are too coarse.
    paced: Option<Mutex<mpsc::UnboundedReceiver<(u64, Instant)>>>,
}

impl Due {
    fn of(plan: &Plan) -> Self {
        let (start, seconds) = (Instant::now(), plan.seconds);
        let paced = plan.rate.map(|rate| {
            let (tell, told) = mpsc::unbounded_channel();
            thread::spawn(move || {
                for number in 0..(seconds * rate) as u64 {
                    let due = start + Duration::from_secs_f64(number as f64 / rate);
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    if tell.send((number, due)).is_err() {
                        return;
                    }
                }
            });
            Mutex::new(told)
        });
        Self { start, seconds, next: Cell::new(0), paced }
    }

    /// Its number, and since when it is due.
    async fn next(&self) -> Option<(u64, Instant)> {
        match &self.paced {
            Some(paced) => paced.lock().await.recv().await,
            None => {
                let now = Instant::now();
                let number = self.next.replace(self.next.get() + 1);
                (now.duration_since(self.start).as_secs_f64() < self.seconds).then_some((number, now))
            }
        }
    }
}

#[derive(Default)]
struct Part {
    latencies: Vec<u64>,
    refused: u64,
}

struct Client {
    plan: Plan,
    webhooks: Webhooks,
    signer: Signer,
    due: Due,
}

impl Client {
    async fn post_all(&self) -> Part {
        let mut part = Part::default();
        let mut connection: Option<TcpStream> = None;
        let mut answer = Vec::new();
        while let Some((number, due)) = self.due.next().await {
            let post = self.post(number, &mut connection, &mut answer);
            let posted = tokio::time::timeout(PATIENCE, post).await;
            match posted.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
                Ok(true) => part.latencies.push(due.elapsed().as_micros() as u64),
                Ok(false) => part.refused += 1,
                Err(_) => {
                    part.refused += 1;
                    connection = None;
                }
            }
        }
        part
    }

    /// Posts one webhook; tells whether it was accepted.
    async fn post(
        &self,
        number: u64,
        connection: &mut Option<TcpStream>,
        answer: &mut Vec<u8>,
    ) -> Result<bool, std::io::Error> {
        let request = self.request(number);
        let stream = match connection {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(&self.plan.address).await?;
                stream.set_nodelay(true)?;
                connection.insert(stream)
            }
        };
        stream.write_all(&request).await?;
        answer.clear();
        loop {
            if let Some(accepted) = read(answer) {
                return Ok(accepted);
            }
            if stream.read_buf(answer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn request(&self, number: u64) -> Vec<u8> {
        self.signer.request(&self.plan.address, &webhooks::id(number), &self.webhooks.body(number))
    }
}

/// Signs webhooks as their sender does.
pub struct Signer(hmac::Key);

impl Signer {
    /// With the secret of the processes that are measured.
    pub fn new() -> Outcome<Self> {
        let secret = STANDARD.decode(SECRET.trim_start_matches("whsec_"))?;
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &secret)))
    }

    /// A webhook's request, signed now.
    pub fn request(&self, address: &str, id: &str, body: &[u8]) -> Vec<u8> {
        let timestamp = headcount::time::now() / 1000;
        let mut hmac = hmac::Context::with_key(&self.0);
        hmac.update(format!("{id}.{timestamp}.").as_bytes());
        hmac.update(body);
        let signature = STANDARD.encode(hmac.sign());
        let mut request = format!(
            "POST /webhooks/clerk HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             user-agent: Svix-Webhooks/1.62.0\r\nsvix-id: {id}\r\nsvix-timestamp: {timestamp}\r\n\
             svix-signature: v1,{signature}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        request
    }
}

/// Whether a whole answer is here, and if so, whether it is a 2xx.
pub fn read(answer: &[u8]) -> Option<bool> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .and_then(|length| length.trim().parse().ok())
        .unwrap_or(0);
    (answer.len() >= end + length).then(|| head.starts_with("http/1.1 2"))
}
