//! Owns what is measured: each scenario in a world of its own (queues, database, directory), which it leaves empty.
//! A round takes each once, yardsticks and headcount by turns, so that a slow minute of the machine's hits both.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use headcount::queue::Ladder;

use super::{
    Outcome, bare,
    broker::Broker,
    database::{self, Database, Inbox},
    load::{self, Plan},
    process::{self, Environment, Headcount, TELL_COMMITS},
    report::{
        INGRESS_PROCESSOR, Kind, LARGE, PUBLISHING, PUBLISHING_TOGETHER, Report, SMALL, WORKER_PROCESSOR,
    },
    webhooks::{self, Shape, Webhooks},
};

/// Connections of a load, each with one webhook on its way.
const CONNECTIONS: u64 = 256;
/// Webhooks per second of the open loop.
const STEADY: f64 = 500.0;
/// Webhooks per second that are sustained on servers, and how many seconds.
const SUSTAINED: (f64, f64) = (5_000.0, 60.0);
/// The same, embedded: with ease, and as much as has to be.
const SUSTAINED_EMBEDDED: [(f64, f64); 2] = [(2_000.0, 20.0), (8_000.0, 20.0)];

/// As webhooks are: 2 to 3 kB.
pub const USUAL: Shape = Shape { users: 10_000, padding: 0 };
/// Nearly as large as the ingress takes.
const LARGEST: Shape = Shape { users: 10_000, padding: 500_000 };

const SCENARIOS: &[&str] = &[
    "publishing",
    "ingress",
    "bare",
    "worker",
    "poison",
    "largest",
    "whole",
    "embedded",
    "whole-steady",
    "embedded-steady",
    "sustained",
    "embedded-sustained",
];

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Messages of a backlog.
    pub messages: u64,
    /// Seconds that a load lasts.
    pub seconds: f64,
}

/// Takes each scenario once, or the one that is named, and adds its figures to the report.
pub async fn round(size: Size, only: &str, webhooks: &Webhooks, report: &mut Report) -> Outcome<()> {
    if !only.is_empty() && !SCENARIOS.contains(&only) {
        return Err(format!("BENCH_ONLY={only}: there is scale, {}", SCENARIOS.join(", ")).into());
    }
    let wanted = |name: &str| only.is_empty() || only == name;
    if wanted("publishing") {
        publishing(size, webhooks, report).await?;
    }
    if wanted("ingress") {
        ingress(size, report).await?;
    }
    if wanted("bare") {
        bare_draining(size, webhooks, report).await?;
    }
    if wanted("worker") {
        worker(size, webhooks, report).await?;
    }
    if wanted("poison") {
        poison(size, webhooks, report).await?;
    }
    if wanted("largest") {
        largest(size, report).await?;
    }
    for (steady, whole, embedded) in [(false, "whole", "embedded"), (true, "whole-steady", "embedded-steady")]
    {
        if wanted(whole) {
            end_to_end(size, steady, report).await?;
        }
        if wanted(embedded) {
            self::embedded(size, steady, report).await?;
        }
    }
    if wanted("sustained") {
        sustained(report).await?;
    }
    if wanted("embedded-sustained") {
        for (rate, seconds) in SUSTAINED_EMBEDDED {
            embedded_sustained(rate, seconds, report).await?;
        }
    }
    Ok(())
}

async fn publishing(size: Size, webhooks: &Webhooks, report: &mut Report) -> Outcome<()> {
    let broker = Broker::new("publishing", &Ladder::default()).await?;
    report.add(PUBLISHING, Kind::PerSecond, broker.publish(webhooks, size.messages, false).await?);
    broker.remove().await?;
    let broker = Broker::new("publishing", &Ladder::default()).await?;
    report.add(PUBLISHING_TOGETHER, Kind::PerSecond, broker.publish(webhooks, size.messages, true).await?);
    broker.remove().await
}

/// Without a worker.
async fn ingress(size: Size, report: &mut Report) -> Outcome<()> {
    let broker = Broker::new("ingress", &Ladder::default()).await?;
    let ingress = Headcount::start("ingress", &on_servers(&broker, None))?;
    let begun = ingress.processor_time()?;
    let summary = load(&ingress, size.seconds, None, USUAL).await?;
    let spent = ingress.processor_time()? - begun;
    report.add(INGRESS_PROCESSOR, Kind::Microseconds, spent / summary.accepted as f64 * 1e6);
    report.add("ingress, accepted", Kind::PerSecond, summary.rate());
    report.latency("ingress, closed loop, answer", &summary.latency.map(|micros| micros as f64 / 1000.0));
    let summary = load(&ingress, size.seconds, Some(STEADY), USUAL).await?;
    report.latency("ingress at 500/s, answer", &summary.latency.map(|micros| micros as f64 / 1000.0));
    report.add("ingress, peak memory", Kind::Megabytes, ingress.peak_memory()?);
    ingress.stop()?;
    broker.remove().await
}

async fn bare_draining(size: Size, webhooks: &Webhooks, report: &mut Report) -> Outcome<()> {
    let (broker, database) = (Broker::new("bare", &Ladder::default()).await?, Database::new("bare").await?);
    process::run("migrate", &on_servers(&broker, Some(&database)))?;
    broker.publish(webhooks, size.messages, true).await?;
    bare::drain(&broker, database.connect().await?, size.messages as usize).await?;
    let rate = database.inbox().await?.rate().await?;
    report.add("bare loop draining a backlog, applied", Kind::PerSecond, rate);
    broker.remove().await?;
    database.remove().await
}

async fn worker(size: Size, webhooks: &Webhooks, report: &mut Report) -> Outcome<()> {
    let world = Drained::new("worker", &Ladder::default()).await?;
    let drained = world.drain(webhooks, size.messages, size.messages).await?;
    report.add(WORKER_PROCESSOR, Kind::Microseconds, drained.processor / size.messages as f64 * 1e6);
    report.add("worker draining a backlog, applied", Kind::PerSecond, drained.rate);
    report.add("worker draining a backlog, peak memory", Kind::Megabytes, drained.memory);
    world.remove().await
}

/// One message that no try can save, in the middle of a backlog, and the same backlog without it.
async fn poison(size: Size, webhooks: &Webhooks, report: &mut Report) -> Outcome<()> {
    let poisoned = webhooks::id(size.messages / 2);
    let ladder = Ladder::new([100, 300, 1000].map(Duration::from_millis).to_vec())
        .map_err(|error| error.to_string())?;
    for (name, refused) in [("no poisoned message", None), ("one poisoned message", Some(&*poisoned))] {
        let world = Drained::new("poison", &ladder).await?;
        world.database.refuse(refused).await?;
        let applied = size.messages - u64::from(refused.is_some());
        let drained = world.drain(webhooks, size.messages, applied).await?;
        report.add(&format!("worker draining with {name}, applied"), Kind::PerSecond, drained.rate);
        world.remove().await?;
    }
    Ok(())
}

/// Memory under bodies that are as large as they may be.
async fn largest(size: Size, report: &mut Report) -> Outcome<()> {
    let webhooks = Webhooks::new(LARGEST)?;
    let messages = size.messages / 20;
    let world = Drained::new("largest", &Ladder::default()).await?;
    let drained = world.drain(&webhooks, messages, messages).await?;
    report.add("worker draining the largest bodies, applied", Kind::PerSecond, drained.rate);
    report.add("worker draining the largest bodies, peak memory", Kind::Megabytes, drained.memory);
    world.remove().await?;
    let broker = Broker::new("largest", &Ladder::default()).await?;
    let ingress = Headcount::start("ingress", &on_servers(&broker, None))?;
    let summary = load(&ingress, size.seconds, None, LARGEST).await?;
    report.add("ingress, the largest bodies, accepted", Kind::PerSecond, summary.rate());
    report.add("ingress, the largest bodies, peak memory", Kind::Megabytes, ingress.peak_memory()?);
    ingress.stop()?;
    broker.remove().await
}

/// Whether a backlog and a table of full size cost more per message than small ones.
pub async fn scale(report: &mut Report) -> Outcome<()> {
    for (name, messages, users) in [(SMALL, 100_000, 50_000), (LARGE, 1_000_000, 5_000_000)] {
        let webhooks = Webhooks::new(Shape { users, ..USUAL })?;
        let world = Drained::new("scale", &Ladder::default()).await?;
        world.database.fill(users).await?;
        let drained = world.drain(&webhooks, messages, messages).await?;
        report.add(name, Kind::PerSecond, drained.rate);
        report.add(&format!("{name}, peak memory"), Kind::Megabytes, drained.memory);
        world.remove().await?;
    }
    Ok(())
}

/// A steady load: whether it is kept up with, and how calmly.
async fn sustained(report: &mut Report) -> Outcome<()> {
    let (broker, database) =
        (Broker::new("sustained", &Ladder::default()).await?, Database::new("sustained").await?);
    let environment = on_servers(&broker, Some(&database));
    process::run("migrate", &environment)?;
    let ingress = Headcount::start("ingress", &environment)?;
    let worker = Headcount::start("worker", &environment)?;
    let (rate, seconds) = SUSTAINED;
    keep_up("end to end", (rate, seconds), &ingress, database.inbox().await?, report).await?;
    ingress.stop()?;
    worker.stop()?;
    broker.remove().await?;
    database.remove().await
}

async fn embedded_sustained(rate: f64, seconds: f64, report: &mut Report) -> Outcome<()> {
    let (up, directory) = up(&[])?;
    keep_up("embedded", (rate, seconds), &up, database::embedded(&directory).await?, report).await?;
    up.stop()?;
    Ok(fs::remove_dir_all(&directory)?)
}

async fn keep_up(
    what: &str,
    (rate, seconds): (f64, f64),
    ingress: &Headcount,
    mut inbox: Inbox,
    report: &mut Report,
) -> Outcome<()> {
    let what = format!("{what}, {seconds:.0} s at {rate:.0}/s");
    let summary = load(ingress, seconds, Some(rate), USUAL).await?;
    let backlog = summary.accepted.saturating_sub(inbox.count().await?);
    inbox.until(summary.accepted).await?;
    report.add(&format!("{what}, accepted"), Kind::PerSecond, summary.rate());
    report.add(&format!("{what}, not yet applied at its end"), Kind::Messages, backlog as f64);
    report.latency(&format!("{what}, answer"), &summary.latency.map(|micros| micros as f64 / 1000.0));
    report.latency(&format!("{what}, received to written"), &inbox.lag().await?);
    Ok(())
}

/// What draining a backlog came to.
struct Drain {
    /// Applied per second.
    rate: f64,
    /// Of the worker's, in seconds, its start included.
    processor: f64,
    /// At its peak, in MB.
    memory: f64,
}

/// A queue and a migrated database, for one worker to drain the one into the other.
struct Drained {
    broker: Broker,
    database: Database,
    environment: Environment,
}

impl Drained {
    async fn new(name: &str, ladder: &Ladder) -> Outcome<Self> {
        let (broker, database) = (Broker::new(name, ladder).await?, Database::new(name).await?);
        let mut environment = on_servers(&broker, Some(&database));
        let delays: Vec<String> = (0..ladder.rungs()).map(|rung| ladder.name(rung)).collect();
        environment.push(("HEADCOUNT_RETRY_DELAYS", delays.join(",")));
        process::run("migrate", &environment)?;
        Ok(Self { broker, database, environment })
    }

    /// Fills the queue, starts the worker and waits until so many are applied.
    async fn drain(&self, webhooks: &Webhooks, messages: u64, applied: u64) -> Outcome<Drain> {
        self.broker.publish(webhooks, messages, true).await?;
        let worker = Headcount::start("worker", &self.environment)?;
        let mut inbox = self.database.inbox().await?;
        inbox.until(applied).await?;
        let processor = worker.processor_time()?;
        let figures = Drain { rate: inbox.rate().await?, processor, memory: worker.peak_memory()? };
        worker.stop()?;
        Ok(figures)
    }

    async fn remove(self) -> Outcome<()> {
        self.broker.remove().await?;
        self.database.remove().await
    }
}

/// Ingress, worker, RabbitMQ, PostgreSQL and the load generator, all here.
async fn end_to_end(size: Size, steady: bool, report: &mut Report) -> Outcome<()> {
    let (broker, database) = (Broker::new("whole", &Ladder::default()).await?, Database::new("whole").await?);
    let mut environment = on_servers(&broker, Some(&database));
    process::run("migrate", &environment)?;
    let ingress = Headcount::start("ingress", &environment)?;
    tell(steady, &mut environment);
    let worker = Headcount::start("worker", &environment)?;
    let summary = load(&ingress, size.seconds, steady.then_some(STEADY), USUAL).await?;
    let inbox = database.inbox().await?;
    applied("end to end", steady, &summary, inbox, &worker, report).await?;
    if !steady {
        report.add("end to end, ingress, peak memory", Kind::Megabytes, ingress.peak_memory()?);
        report.add("end to end, worker, peak memory", Kind::Megabytes, worker.peak_memory()?);
    }
    ingress.stop()?;
    worker.stop()?;
    broker.remove().await?;
    database.remove().await
}

/// `up` without any server, and its directory.
fn up(environment: &[(&'static str, String)]) -> Outcome<(Headcount, PathBuf)> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("yardsticks");
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    let mut environment = environment.to_vec();
    environment.push(("HEADCOUNT_DATA_DIR", directory.display().to_string()));
    Ok((Headcount::start("up", &environment)?, directory))
}

async fn embedded(size: Size, steady: bool, report: &mut Report) -> Outcome<()> {
    let mut environment = Environment::new();
    tell(steady, &mut environment);
    let (up, directory) = up(&environment)?;
    let summary = load(&up, size.seconds, steady.then_some(STEADY), USUAL).await?;
    let inbox = database::embedded(&directory).await?;
    applied("embedded end to end", steady, &summary, inbox, &up, report).await?;
    if !steady {
        report.add("embedded end to end, peak memory", Kind::Megabytes, up.peak_memory()?);
    }
    up.stop()?;
    Ok(fs::remove_dir_all(&directory)?)
}

async fn applied(
    what: &str,
    steady: bool,
    summary: &load::Summary,
    mut inbox: Inbox,
    worker: &Headcount,
    report: &mut Report,
) -> Outcome<()> {
    inbox.until(summary.accepted).await?;
    if steady {
        // What it wrote last is still on its way through the pipe.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let latency = inbox.latency(&worker.commits()).await?;
        report.latency(&format!("{what} at 500/s, received to committed"), &latency);
    } else {
        report.add(&format!("{what}, accepted"), Kind::PerSecond, summary.rate());
        report.add(&format!("{what}, applied"), Kind::PerSecond, inbox.rate().await?);
    }
    Ok(())
}

/// A worker whose latencies are measured tells of each commit; one that has to be fast tells nothing.
fn tell(steady: bool, environment: &mut Environment) {
    let (name, value) = TELL_COMMITS;
    environment.extend(steady.then(|| (name, value.to_owned())));
}

/// A load at a rate, or of as much as is taken.
async fn load(target: &Headcount, seconds: f64, rate: Option<f64>, shape: Shape) -> Outcome<load::Summary> {
    let plan = Plan { address: target.address.clone(), seconds, rate, connections: CONNECTIONS, shape };
    // What started just now has settled by then.
    tokio::time::sleep(Duration::from_millis(500)).await;
    tokio::task::spawn_blocking(move || load::run(&plan)).await?
}

fn on_servers(broker: &Broker, database: Option<&Database>) -> Environment {
    let mut environment =
        vec![("AMQP_URL", broker.url.clone()), ("HEADCOUNT_QUEUE_PREFIX", broker.prefix.clone())];
    environment.extend(database.map(|database| ("DATABASE_URL", database.url.clone())));
    environment
}
