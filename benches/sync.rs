//! How fast `headcount sync` reads every user of a large instance into an empty table, finds nothing where all is in step, and
//! finds and repairs seeded drift, while webhooks arrive. Its real processes, RabbitMQ and PostgreSQL, or embedded; Clerk is
//! the stand-in, served by this process, which takes 1,000 requests in 10 s as Clerk does of a live key. `make bench-sync`
//! starts the servers, runs it, and keeps the table in benches/SYNC.md. BENCH_USERS (1000000) is the largest instance;
//! another value keeps nothing.

#![allow(unreachable_pub)]

#[allow(dead_code, reason = "yardsticks uses the rest")]
mod support;

use std::{path::Path, process::ExitCode};

use headcount::{
    clerk::stand_in::{StandIn, World},
    queue::Ladder,
    secret::Secret,
    time::Millis,
};
use support::{
    Outcome,
    broker::Broker,
    database::{self, Database},
    drift::{self, Drift, Found},
    process::{self, Environment, Headcount},
    report::{Kind, Report},
    table::Table,
    trickle::Trickle,
};

/// The largest instance.
const USERS: u64 = 1_000_000;
/// Users of the runs on servers, up to the largest.
const SIZES: [u64; 3] = [10_000, 100_000, 1_000_000];
/// Users of the embedded run.
const EMBEDDED: u64 = 100_000;
/// When the first user signed up, and how far apart they are, in milliseconds.
const FIRST: (Millis, Millis) = (1_600_000_000_000, 60_000);
/// What Clerk takes of a live key in 10 s.
const QUOTA: u32 = 1_000;
/// Webhooks per second that arrive meanwhile.
const TRICKLE: u32 = 20;

fn main() -> ExitCode {
    if std::env::var_os("TEST_AMQP_URL").is_none() || std::env::var_os("TEST_DATABASE_URL").is_none() {
        println!("sync: no servers to measure with; make bench-sync starts them");
        return ExitCode::SUCCESS;
    }
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sync: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Outcome<()> {
    let largest = match std::env::var("BENCH_USERS") {
        Ok(text) => text.parse().map_err(|_| "BENCH_USERS is no number")?,
        Err(_) => USERS,
    };
    let mut report = Report::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut sizes: Vec<u64> = SIZES.into_iter().filter(|size| *size < largest).collect();
    sizes.push(largest);
    for users in sizes {
        runtime.block_on(on_servers(users, &mut report))?;
    }
    runtime.block_on(embedded(EMBEDDED.min(largest), &mut report))?;
    let server = runtime.block_on(database::about_server())?;
    let text = report.markdown(
        "make bench-sync",
        &format!(
            "{server}; Clerk is a stand-in in the bench's process, which takes {QUOTA} requests in 10 s; {TRICKLE} webhooks \
             arrive per second while an empty table is filled and while drift is repaired; everything on one machine. Aim: a \
             million users in at most 600 s, and memory that does not grow with their number."
        ),
    );
    println!("{text}");
    if largest == USERS {
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/SYNC.md"), text)?;
    }
    Ok(())
}

/// The users of an instance, served.
async fn instance(users: u64) -> Outcome<StandIn> {
    let world = World::new();
    world.set_key(Secret::new("sk_live_MadeUpKeyOfTheBenchmark"));
    world.faults(|faults| faults.quota = Some(QUOTA));
    for number in 0..users {
        world.sign_up(&drift::id(number), FIRST.0 + number as Millis * FIRST.1);
    }
    Ok(StandIn::start(world).await?)
}

async fn on_servers(users: u64, report: &mut Report) -> Outcome<()> {
    let (broker, database) = (Broker::new("sync", &Ladder::default()).await?, Database::new("sync").await?);
    let environment = vec![
        ("AMQP_URL", broker.url.clone()),
        ("HEADCOUNT_QUEUE_PREFIX", broker.prefix.clone()),
        ("DATABASE_URL", database.url.clone()),
    ];
    process::run("migrate", &environment)?;
    let ingress = Headcount::start("ingress", &environment)?;
    let worker = Headcount::start("worker", &environment)?;
    let bench = Bench {
        name: format!("sync, {} users", headcount::text::number(users)),
        clerk: instance(users).await?,
        address: ingress.address.clone(),
        environment,
        table: Table::Postgres(Box::new(database.connect().await?)),
        users,
    };
    let name = bench.name.clone();
    bench.runs(report).await?;
    report.add(&format!("{name}, worker, peak memory"), Kind::Megabytes, worker.peak_memory()?);
    ingress.stop()?;
    worker.stop()?;
    broker.remove().await?;
    database.remove().await
}

async fn embedded(users: u64, report: &mut Report) -> Outcome<()> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sync");
    if directory.exists() {
        std::fs::remove_dir_all(&directory)?;
    }
    let environment = vec![("HEADCOUNT_DATA_DIR", directory.display().to_string())];
    process::run("migrate", &environment)?;
    let up = Headcount::start("up", &environment)?;
    let bench = Bench {
        name: format!("embedded sync, {} users", headcount::text::number(users)),
        clerk: instance(users).await?,
        address: up.address.clone(),
        environment,
        table: Table::embedded(&directory).await?,
        users,
    };
    let name = bench.name.clone();
    bench.runs(report).await?;
    report.add(&format!("{name}, up, peak memory"), Kind::Megabytes, up.peak_memory()?);
    up.stop()?;
    Ok(std::fs::remove_dir_all(&directory)?)
}

/// A table, the processes that fill it, and the instance that it is to equal.
struct Bench {
    name: String,
    clerk: StandIn,
    /// Of the ingress.
    address: String,
    environment: Environment,
    table: Table,
    users: u64,
}

impl Bench {
    async fn runs(mut self, report: &mut Report) -> Outcome<()> {
        let name = self.name.clone();
        let world = self.clerk.world().clone();

        // An empty table, while webhooks arrive, deletions too.
        let trickle = Trickle::start(&world, &self.address, self.users, TRICKLE, true);
        let ran = self.sync(&[]).await?;
        let sent = trickle.stop()?;
        report.add(&format!("{name}, empty table, time"), Kind::Seconds, ran.seconds);
        report.add(
            &format!("{name}, empty table, users"),
            Kind::PerSecond,
            ran.found.clerk as f64 / ran.seconds,
        );
        report.add(&format!("{name}, empty table, requests"), Kind::Messages, ran.requests);
        report.add(&format!("{name}, empty table, peak memory"), Kind::Megabytes, ran.peak_memory);
        report.add(&format!("{name}, empty table, webhooks meanwhile"), Kind::Messages, sent as f64);
        for (part, milliseconds) in [("p50", 0.5), ("p99", 0.99)] {
            let latency = self.table.latency(milliseconds).await?;
            let name = format!("{name}, empty table, webhooks meanwhile, received to applied, {part}");
            report.add(&name, Kind::Milliseconds, latency);
        }
        self.table.until_applied(sent).await?;

        let ran = self.sync(&[]).await?;
        report.add(&format!("{name}, in step, time"), Kind::Seconds, ran.seconds);
        report.add(&format!("{name}, in step, requests"), Kind::Messages, ran.requests);
        report.add(&format!("{name}, in step, peak memory"), Kind::Megabytes, ran.peak_memory);
        self.in_step(&ran.found).await?;

        // Drift of every kind, while other users go on changing.
        let drift = Drift::seed(&world, &mut self.table, self.users).await?;
        let trickle = Trickle::start(&world, &self.address, self.users, TRICKLE, false);
        let ran = self.sync(&["--revive"]).await?;
        let sent = sent + trickle.stop()?;
        report.add(&format!("{name}, drift, users that differed"), Kind::Messages, drift.all() as f64);
        report.add(&format!("{name}, drift, time"), Kind::Seconds, ran.seconds);
        report.add(&format!("{name}, drift, requests"), Kind::Messages, ran.requests);
        report.add(&format!("{name}, drift, peak memory"), Kind::Megabytes, ran.peak_memory);
        drift.is_what_was_found(&ran.found)?;
        self.table.until_applied(sent).await?;
        let ran = self.sync(&[]).await?;
        self.in_step(&ran.found).await
    }

    /// Runs `headcount sync` to its end.
    async fn sync(&self, more: &[&str]) -> Outcome<Ran> {
        let mut environment = self.environment.clone();
        environment.push(("CLERK_API_URL", self.clerk.url().to_owned()));
        environment.push(("CLERK_SECRET_KEY", self.clerk.key().expose().to_owned()));
        let mut arguments = vec!["sync", "--json", "--yes"];
        arguments.extend(more);
        let (arguments, before) = (arguments.iter().map(ToString::to_string).collect(), self.requests());
        let done = tokio::task::spawn_blocking(move || process::complete(arguments, &environment)).await??;
        let found = serde_json::from_slice(&done.stdout)?;
        let requests = (self.requests() - before) as f64;
        Ok(Ran { found, requests, seconds: done.seconds, peak_memory: done.peak_memory })
    }

    fn requests(&self) -> u64 {
        let asked = |path| self.clerk.world().asked(path);
        ["/v1/users", "/v1/users/count", "/v1/users/{id}", "/v1/instance"].map(asked).iter().sum()
    }

    /// A run found that the table is as Clerk is, and so it is.
    async fn in_step(&mut self, found: &Found) -> Outcome<()> {
        let users = self.clerk.world().count() as u64;
        let live = self.table.count("SELECT count(*) FROM users WHERE deleted_at IS NULL").await?;
        let nothing = Found { clerk: users, in_step: users, ..Found::default() };
        if live != users || *found != nothing {
            return Err(format!("Clerk has {users} users and {live} live here; found {found:?}").into());
        }
        Ok(())
    }
}

struct Ran {
    found: Found,
    requests: f64,
    seconds: f64,
    peak_memory: f64,
}
