//! How fast `headcount api` answers an application: users whom the table knows, users whom only Clerk knows, and live updates of
//! many users while others change. Its real process and PostgreSQL; Clerk is the stand-in, served by this process, and the load comes
//! from this process too. The yardstick reads the same row by its Clerk id with nothing in between. `make bench` starts the servers,
//! runs it, and keeps the table in benches/APP.md. BENCH_ROUNDS (3) and BENCH_SECONDS (8) change how much; other values keep nothing.

#![allow(unreachable_pub)]

#[allow(dead_code, reason = "yardsticks and sync use the rest")]
mod support;

use std::{
    path::Path,
    process::ExitCode,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use headcount::{
    clerk::stand_in::{StandIn, World, tokens::Signer},
    secret::Secret,
    time::now,
};
use sqlx::PgConnection;
use support::{
    Outcome,
    database::{self, Database},
    load::read,
    process::{self, Headcount},
    report::{Kind, Report},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
};

/// Users whom the table knows. Each may ask 20 times a second.
const KNOWN: u64 = 2_000;
/// Users whom only Clerk knows, in each round, and how many of them come in a second: fewer than half of Clerk's quota for a live key,
/// of which headcount takes no more.
const UNKNOWN: u64 = 400;
const NEWCOMERS: u64 = 40;
/// Users whose rows are listened for, ...
const STREAMS: u64 = 5_000;
/// ... and changes of other users per second meanwhile.
const CHANGES: u64 = 1_000;
/// Connections of a load.
const CONNECTIONS: u64 = 32;
/// Requests per second of the open loop.
const RATE: u64 = 1_000;

const ISSUER: &str = "https://clerk.example.com";

fn main() -> ExitCode {
    if std::env::var_os("TEST_DATABASE_URL").is_none() {
        println!("app: no servers to measure with; make bench starts them");
        return ExitCode::SUCCESS;
    }
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("app: {error}");
            ExitCode::FAILURE
        }
    }
}

fn setting<T: FromStr>(name: &str, otherwise: T) -> Outcome<T> {
    match std::env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name} is no number").into()),
        Err(_) => Ok(otherwise),
    }
}

fn measure() -> Outcome<()> {
    let (rounds, seconds): (u64, f64) = (setting("BENCH_ROUNDS", 3)?, setting("BENCH_SECONDS", 8.0)?);
    let mut report = Report::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        runtime.block_on(self::round(seconds, &mut report))?;
    }
    let server = runtime.block_on(database::about_server())?;
    let text = report.markdown(
        "make bench",
        &format!(
            "{server}; loads of {seconds} s over {CONNECTIONS} connections; {STREAMS} streams; everything on one machine. Aims: known \
             users ≥ 5,000/s, p99 ≤ 10 ms at {RATE}/s."
        ),
    );
    println!("{text}");
    std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/APP.md"), text)?;
    Ok(())
}

fn known(number: u64) -> String {
    format!("user_known{number:06}")
}

fn unknown(number: u64) -> String {
    format!("user_unknown{number:06}")
}

/// What a round measures.
struct Bench {
    signer: Signer,
    address: String,
    database: Database,
    seconds: f64,
}

async fn round(seconds: f64, report: &mut Report) -> Outcome<()> {
    let database = Database::new("app").await?;
    let world = World::new();
    world.set_key(Secret::new("sk_live_MadeUpKeyOfTheBenchmark"));
    (0..UNKNOWN).for_each(|number| world.sign_up(&unknown(number), 1_700_000_000_000));
    let clerk = StandIn::start(world).await?;
    let signer = Signer::new("ins_bench")?;
    let environment = vec![
        ("DATABASE_URL", database.url.clone()),
        ("CLERK_JWT_KEY", signer.pem()),
        ("CLERK_JWT_ISSUER_DOMAIN", ISSUER.to_owned()),
        ("CLERK_SECRET_KEY", clerk.key().expose().to_owned()),
        ("CLERK_API_URL", clerk.url().to_owned()),
        ("HEADCOUNT_API_LISTEN", "127.0.0.1:0".to_owned()),
    ];
    process::run("migrate", &environment)?;
    // Enough rows for the streams too.
    let rows = format!(
        "INSERT INTO users (id, clerk_id, email, clerk_email, email_key, credits_balance, version, version_sent, version_kind, \
         version_message_id, public_metadata) \
         SELECT gen_random_uuid(), 'user_known' || lpad(n::text, 6, '0'), n || '@example.com', n || '@example.com', \
         n || '@example.com', 10000, 1, 1, 0, 'msg_' || n, '{{\"roles\": [\"member\"]}}' FROM generate_series(0, {}) AS n",
        STREAMS + CHANGES - 1
    );
    let mut connection = database.connect().await?;
    sqlx::query(sqlx::AssertSqlSafe(rows)).execute(&mut connection).await?;
    sqlx::query("VACUUM ANALYZE users").execute(&mut connection).await?;
    let api = Headcount::start("api", &environment)?;
    let bench = Bench { signer, address: api.address.clone(), database, seconds };

    report.add("reading one row by its Clerk id, nothing else", Kind::PerSecond, bench.bare().await?);
    let begun = api.processor_time()?;
    let asked = bench.closed().await?;
    let spent = api.processor_time()? - begun;
    report.add("known users, closed loop, answered", Kind::PerSecond, asked.len() as f64 / seconds);
    report.add(
        "known users, closed loop, processor time each",
        Kind::Microseconds,
        spent * 1e6 / asked.len() as f64,
    );
    report.latency("known users, closed loop, answer", &parts(asked));
    let asked = bench.open(known, KNOWN, RATE, (seconds * RATE as f64) as u64).await?;
    report.latency(&format!("known users at {RATE}/s, answer"), &parts(asked));
    let asked = bench.open(unknown, UNKNOWN, NEWCOMERS, UNKNOWN).await?;
    report.latency(&format!("unknown users at {NEWCOMERS}/s, first answer"), &parts(asked));
    report.add("api, peak memory", Kind::Megabytes, api.peak_memory()?);
    api.stop()?;

    let api = Headcount::start("api", &environment)?;
    let bench = Bench { address: api.address.clone(), ..bench };
    bench.streams(&api, report).await?;
    api.stop()?;
    bench.database.remove().await
}

impl Bench {
    fn request(&self, path: &str, clerk_id: &str) -> Vec<u8> {
        let token = self.signer.session(ISSUER, clerk_id, &clerk_id.replacen("user", "sess", 1), "", now());
        format!("GET {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {token}\r\n\r\n", self.address)
            .into_bytes()
    }

    /// Rows per second over as many connections as the API has, each with one question on its way.
    async fn bare(&self) -> Outcome<f64> {
        let end = Instant::now() + Duration::from_secs_f64(self.seconds);
        let reads = (0..8_u64).map(|lane| async move {
            let mut connection = self.database.connect().await?;
            let mut count = 0_u64;
            while Instant::now() < end {
                let clerk_id = known((count * 8 + lane) % KNOWN);
                let row = sqlx::query("SELECT * FROM users WHERE clerk_id = $1").bind(clerk_id);
                row.fetch_one(&mut connection).await?;
                count += 1;
            }
            Outcome::Ok(count)
        });
        Ok(try_join_all(reads).await?.into_iter().sum::<u64>() as f64 / self.seconds)
    }

    /// Asks about known users as fast as the answers come. Answers microseconds.
    async fn closed(&self) -> Outcome<Vec<u64>> {
        let requests: Vec<Vec<u8>> =
            (0..KNOWN).map(|number| self.request("/v1/me", &known(number))).collect();
        let (next, end) = (AtomicU64::new(0), Instant::now() + Duration::from_secs_f64(self.seconds));
        let lanes = (0..CONNECTIONS).map(|_| async {
            let mut stream = connect(&self.address).await?;
            let (mut answer, mut latencies) = (Vec::new(), Vec::new());
            while Instant::now() < end {
                let number = next.fetch_add(1, Relaxed);
                let begun = Instant::now();
                ask(&mut stream, &requests[(number % KNOWN) as usize], &mut answer).await?;
                latencies.push(begun.elapsed().as_micros() as u64);
            }
            Outcome::Ok(latencies)
        });
        Ok(try_join_all(lanes).await?.concat())
    }

    /// Asks so many times at a set rate; the time counts from when a request was due. Answers microseconds.
    async fn open(&self, user: fn(u64) -> String, users: u64, rate: u64, times: u64) -> Outcome<Vec<u64>> {
        let requests: Vec<Vec<u8>> = (0..users).map(|number| self.request("/v1/me", &user(number))).collect();
        let (next, start) = (AtomicU64::new(0), Instant::now());
        let lanes = (0..CONNECTIONS).map(|_| async {
            let mut stream = connect(&self.address).await?;
            let (mut answer, mut latencies) = (Vec::new(), Vec::new());
            loop {
                let number = next.fetch_add(1, Relaxed);
                if number >= times {
                    return Outcome::Ok(latencies);
                }
                let due = start + Duration::from_secs_f64(number as f64 / rate as f64);
                tokio::time::sleep_until(due.into()).await;
                ask(&mut stream, &requests[(number % users) as usize], &mut answer).await?;
                latencies.push(due.elapsed().as_micros() as u64);
            }
        });
        Ok(try_join_all(lanes).await?.concat())
    }

    /// Live updates of many users: alone, while others change, and how soon a change of one of them is told.
    async fn streams(&self, api: &Headcount, report: &mut Report) -> Outcome<()> {
        let turns = Arc::new(Semaphore::new(64));
        let opened = (0..STREAMS).map(|number| {
            let (turns, request) = (Arc::clone(&turns), self.request("/v1/me/events", &known(number)));
            async move {
                let _turn = turns.acquire().await?;
                let mut stream = connect(&self.address).await?;
                stream.write_all(&request).await?;
                let mut head = [0; 4096];
                if stream.read(&mut head).await? == 0 {
                    return Err("a stream was refused".into());
                }
                Outcome::Ok(stream)
            }
        });
        let mut streams = try_join_all(opened).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let name = format!("{STREAMS} streams");
        let idle = self.share(api, None).await?;
        report.add(&format!("{name}, nothing changes, processor"), Kind::Percent, idle);
        let busy = self.share(api, Some(())).await?;
        report.add(&format!("{name}, {CHANGES} others change per second, processor"), Kind::Percent, busy);
        report.add(&format!("{name}, peak memory"), Kind::Megabytes, api.peak_memory()?);

        let mut connection = self.database.connect().await?;
        let mut told = Vec::new();
        for (number, stream) in streams.iter_mut().enumerate().take(50) {
            drain(stream);
            let changed =
                sqlx::query("UPDATE users SET credits_balance = credits_balance - 1 WHERE clerk_id = $1");
            changed.bind(known(number as u64)).execute(&mut connection).await?;
            let begun = Instant::now();
            stream.readable().await?;
            told.push(begun.elapsed().as_micros() as u64);
        }
        report.latency(&format!("{name}, committed to told"), &parts(told));
        Ok(())
    }

    /// How much of a core the process takes over the time of a load, in per cent.
    async fn share(&self, api: &Headcount, others: Option<()>) -> Outcome<f64> {
        let mut connection = self.database.connect().await?;
        let (begun, start) = (api.processor_time()?, Instant::now());
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        while start.elapsed().as_secs_f64() < self.seconds {
            tick.tick().await;
            if others.is_some() {
                change_others(&mut connection).await?;
            }
        }
        Ok((api.processor_time()? - begun) / start.elapsed().as_secs_f64() * 100.0)
    }
}

/// A tenth of a second's changes of users for whom nobody listens.
async fn change_others(connection: &mut PgConnection) -> Outcome<()> {
    let statement = format!(
        "UPDATE users SET credits_balance = credits_balance - 1, updated_at = now() WHERE clerk_id = ANY(ARRAY(SELECT clerk_id FROM users \
         WHERE clerk_id >= '{}' AND clerk_id < 'user_l' ORDER BY clerk_id LIMIT {}))",
        known(STREAMS),
        CHANGES / 10
    );
    sqlx::query(sqlx::AssertSqlSafe(statement)).execute(connection).await?;
    Ok(())
}

async fn connect(address: &str) -> Outcome<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn ask(stream: &mut TcpStream, request: &[u8], answer: &mut Vec<u8>) -> Outcome<()> {
    stream.write_all(request).await?;
    answer.clear();
    loop {
        match read(answer) {
            Some(true) => return Ok(()),
            Some(false) => return Err(String::from_utf8_lossy(answer).into()),
            None if stream.read_buf(answer).await? == 0 => return Err("a connection ended".into()),
            None => {}
        }
    }
}

/// Takes in what is there.
fn drain(stream: &TcpStream) {
    let mut buffer = [0; 8192];
    while stream.try_read(&mut buffer).is_ok_and(|read| read > 0) {}
}

/// Milliseconds: the median, 99 % and 99.9 %.
fn parts(mut micros: Vec<u64>) -> [f64; 3] {
    micros.sort_unstable();
    let last = micros.len().saturating_sub(1);
    [0.5, 0.99, 0.999].map(|part| {
        let at = ((micros.len() as f64 * part) as usize).min(last);
        micros.get(at).copied().unwrap_or_default() as f64 / 1000.0
    })
}
