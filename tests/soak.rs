//! Everything at once: a stream of webhooks while an application's trigger refuses some users and hangs over others, the
//! broker raises alarms, connections fall silent, and workers and servers are restarted and killed. In the end exactly
//! the guilty are dead letters, and everybody else is applied, once.
//!
//! `SOAK=1` makes it half an hour long, and then the pace and the memory count too.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use headcount::{clerk::made_up::Person, cli::post::Poster, secret::Secret, time::now};
use sqlx::{Connection, PgConnection};
use support::{
    process::{self, Process, SECRET, World},
    proxy::Proxy,
    servers::{Server, free_port},
    traffic,
};

/// One user of so many is refused, and another hangs.
const GUILTY: u64 = 1000;
/// Whatever happens, users are applied again within this time.
const STANDSTILL: Duration = Duration::from_secs(60);

/// How hard it is.
struct Plan {
    /// Webhooks per second.
    rate: u32,
    /// At least so long; every blow falls at least once.
    stream: Duration,
    /// From one blow to the next, and to the end.
    between: Duration,
    /// How long an alarm lasts, and a server stays away.
    away: Duration,
    /// How long the rest may take once the stream has ended.
    patience: Duration,
    /// Whether pace and memory are judged: they need time to tell something.
    judged: bool,
}

impl Plan {
    fn of_today() -> Self {
        let seconds = Duration::from_secs;
        if std::env::var_os("SOAK").is_some_and(|value| value == "1") {
            Self {
                rate: 300,
                stream: seconds(1800),
                between: seconds(50),
                away: seconds(10),
                patience: seconds(900),
                judged: true,
            }
        } else {
            Self {
                rate: 100,
                stream: seconds(20),
                between: seconds(1),
                away: seconds(1),
                patience: seconds(100),
                judged: false,
            }
        }
    }
}

/// The user of the `n`th webhook; the application's trigger knows the guilty by their names.
fn user(n: u64) -> String {
    let kind = match n % GUILTY {
        250 => "refused",
        750 => "hanging",
        _ => "good",
    };
    format!("user_{kind}_{n}")
}

fn is_guilty(n: u64) -> bool {
    matches!(n % GUILTY, 250 | 750)
}

/// The application's part: it notes each effect, refuses some and takes its time over others.
const APPLICATION: &str = "
    CREATE TABLE effects (clerk_id text NOT NULL);
    CREATE FUNCTION application() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.clerk_id LIKE 'user\\_refused\\_%' THEN RAISE EXCEPTION 'the application refuses it'; END IF;
        IF NEW.clerk_id LIKE 'user\\_hanging\\_%' THEN PERFORM pg_sleep(40); END IF;
        INSERT INTO effects VALUES (NEW.clerk_id);
        RETURN NULL;
    END $$;
    CREATE TRIGGER application AFTER INSERT ON users FOR EACH ROW EXECUTE FUNCTION application();
";

/// What happens to it, one after the other and then again.
const BLOWS: [Blow; 8] = [
    Blow::KillWorker,
    Blow::Alarm,
    Blow::SilenceDatabase,
    Blow::StopWorker,
    Blow::SilenceBroker,
    Blow::KillDatabase,
    Blow::RestartIngress,
    Blow::KillBroker,
];

#[derive(Clone, Copy, Debug)]
enum Blow {
    KillWorker,
    StopWorker,
    RestartIngress,
    Alarm,
    SilenceDatabase,
    SilenceBroker,
    KillDatabase,
    KillBroker,
}

struct Scene {
    plan: Plan,
    world: World,
    broker: Mutex<Server>,
    database: Mutex<Server>,
    /// By these ways alone the processes reach them.
    to_broker: Proxy,
    to_database: Proxy,
    /// Past the proxy.
    database_url: String,
    ingress: Mutex<Option<Process>>,
    workers: [Mutex<Option<Process>>; 2],
    worker_ids: [AtomicU32; 2],
    accepted: AtomicU64,
    /// The blows have ended.
    enough: AtomicBool,
    /// So has the stream.
    ended: AtomicBool,
}

impl Scene {
    fn set(plan: Plan) -> Self {
        let (broker, database) = (Server::rabbitmq(), Server::postgres());
        let (to_broker, to_database) = (Proxy::new(&broker.url()), Proxy::new(&database.url()));
        let mut world = World::on(Some(to_broker.url()), Some(to_database.url()));
        world.unset("HEADCOUNT_SCHEMA");
        world.set("HEADCOUNT_RETRY_DELAYS", "1s,2s,5s");
        // Where it was before, when it is started anew.
        world.set("HEADCOUNT_LISTEN", &format!("127.0.0.1:{}", free_port()));
        Self {
            plan,
            world,
            database_url: database.url(),
            broker: Mutex::new(broker),
            database: Mutex::new(database),
            to_broker,
            to_database,
            ingress: Mutex::default(),
            workers: [Mutex::default(), Mutex::default()],
            worker_ids: [AtomicU32::new(0), AtomicU32::new(0)],
            accepted: AtomicU64::new(0),
            enough: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        }
    }

    fn start_worker(&self, which: usize) {
        let worker = self.world.start(&["worker"]);
        self.worker_ids[which].store(worker.id(), SeqCst);
        *self.workers[which].lock().unwrap() = Some(worker);
    }

    fn strike(&self, blow: Blow, round: usize) {
        let which = round % 2;
        let worker = || self.workers[which].lock().unwrap().take().unwrap();
        let away = || std::thread::sleep(self.plan.away);
        match blow {
            Blow::KillWorker => {
                worker().kill();
                self.start_worker(which);
            }
            Blow::StopWorker => {
                worker().stop();
                self.start_worker(which);
            }
            Blow::RestartIngress => {
                let mut ingress = self.ingress.lock().unwrap();
                ingress.take().unwrap().stop();
                *ingress = Some(self.world.start(&["ingress"]));
            }
            Blow::Alarm => {
                // In one go: rabbitmqctl takes its time to start.
                let pause = format!("timer:sleep({})", self.plan.away.as_millis());
                let set = "vm_memory_monitor:set_vm_memory_high_watermark";
                let alarm = format!("{set}({{absolute, 1}}), {pause}, {set}(0.6).");
                self.broker.lock().unwrap().ctl(&["eval", &alarm]);
            }
            Blow::SilenceDatabase => self.to_database.silence(),
            Blow::SilenceBroker => self.to_broker.silence(),
            Blow::KillDatabase => {
                let mut database = self.database.lock().unwrap();
                database.kill();
                away();
                database.start();
            }
            Blow::KillBroker => {
                let mut broker = self.broker.lock().unwrap();
                broker.kill();
                away();
                broker.start();
            }
        }
    }

    async fn blows(self: &Arc<Self>) {
        let started = Instant::now();
        let mut round = 0;
        while round < BLOWS.len() || started.elapsed() < self.plan.stream {
            tokio::time::sleep(self.plan.between).await;
            let blow = BLOWS[round % BLOWS.len()];
            println!("{:>6.1} s {blow:?}", started.elapsed().as_secs_f64());
            let scene = Arc::clone(self);
            tokio::task::spawn_blocking(move || scene.strike(blow, round / BLOWS.len())).await.unwrap();
            for worker in &self.workers {
                let mut worker = worker.lock().unwrap();
                let worker = worker.as_mut().unwrap();
                assert!(!worker.has_ended(), "a worker ended by itself after {blow:?}:\n{}", worker.log());
            }
            round += 1;
        }
        tokio::time::sleep(self.plan.between).await;
    }

    /// Posts webhooks at the rate until the blows have ended, each until it is accepted, as Svix does. Tells how many.
    async fn stream(&self, poster: Poster) -> u64 {
        let mut pace = tokio::time::interval(Duration::from_secs(1) / self.plan.rate);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        let ticks = futures_util::stream::unfold((pace, 0), |(mut pace, n)| async move {
            pace.tick().await;
            (!self.enough.load(SeqCst)).then_some((n, (pace, n + 1)))
        });
        ticks
            .for_each_concurrent(500, |n| {
                let poster = poster.clone();
                async move {
                    let sample = Person::of(user(n), now());
                    let body = bytes::Bytes::from(sample.event("user.created", now()));
                    let id = format!("msg_{n}");
                    let started = Instant::now();
                    while !poster.post(&id, body.clone()).await.is_ok_and(|status| status.is_success()) {
                        assert!(started.elapsed() < 2 * STANDSTILL, "{id} is not accepted");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    self.accepted.fetch_add(1, SeqCst);
                }
            })
            .await;
        self.ended.store(true, SeqCst);
        self.accepted.load(SeqCst)
    }

    /// A number from the database, past the proxy; `None` while it is away.
    async fn number(&self, query: &'static str) -> Option<u64> {
        let mut connection = PgConnection::connect(&self.database_url).await.ok()?;
        let number: Result<i64, _> = sqlx::query_scalar(query).fetch_one(&mut connection).await;
        let _ = connection.close().await;
        u64::try_from(number.ok()?).ok()
    }

    async fn applied(&self) -> Option<u64> {
        self.number("SELECT count(*) FROM users").await
    }

    /// Watches until the stream ends.
    async fn watch(&self) -> Seen {
        let started = Instant::now();
        let (mut seen, mut last, mut moved) = (Seen::default(), 0, Instant::now());
        while !self.ended.load(SeqCst) {
            let applied = self.applied().await;
            seen.standstill = seen.standstill.max(moved.elapsed());
            if let Some(applied) = applied.filter(|applied| *applied > last) {
                (last, moved) = (applied, Instant::now());
            }
            let memory = self.worker_ids.iter().filter_map(|id| memory(id.load(SeqCst))).max().unwrap_or(0);
            let half = &mut seen.memory[usize::from(started.elapsed() > self.plan.stream / 2)];
            *half = memory.max(*half);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        (seen.accepted_per_second, seen.share) = (
            self.accepted.load(SeqCst) as f64 / started.elapsed().as_secs_f64(),
            self.applied().await.unwrap_or(last) as f64 / self.accepted.load(SeqCst) as f64,
        );
        seen
    }

    /// The dead letters' message ids, with their reasons.
    async fn dead(&self) -> Vec<(String, String)> {
        let mut connection = PgConnection::connect(&self.database_url).await.unwrap();
        let query = "SELECT message_id, reason FROM dead_letters ORDER BY 1";
        sqlx::query_as(query).fetch_all(&mut connection).await.unwrap()
    }
}

/// What was seen while the stream ran.
#[derive(Debug, Default)]
struct Seen {
    accepted_per_second: f64,
    /// Users applied by its end, of the webhooks accepted.
    share: f64,
    /// The longest time in which no user was applied.
    standstill: Duration,
    /// The most that a worker held, in MiB, in the first half and in the second.
    memory: [u64; 2],
}

/// The resident memory of a process, in MiB; `None` where it has ended.
fn memory(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_only_the_guilty_die_and_all_others_are_applied_once() {
    let scene = Arc::new(Scene::set(Plan::of_today()));
    let (plan, world) = (&scene.plan, &scene.world);
    assert!(world.run(&["migrate"]).status.success());
    traffic::sql(&scene.database_url, APPLICATION).await;
    let ingress = world.start(&["ingress"]);
    let poster = Poster::new(ingress.webhooks.as_deref().unwrap(), &Secret::new(SECRET)).unwrap();
    *scene.ingress.lock().unwrap() = Some(ingress);
    (0..2).for_each(|which| scene.start_worker(which));

    let (stream, watch) = (Arc::clone(&scene), Arc::clone(&scene));
    let streaming = {
        let poster = poster.clone();
        tokio::spawn(async move { stream.stream(poster).await })
    };
    let watching = tokio::spawn(async move { watch.watch().await });
    scene.blows().await;
    scene.enough.store(true, SeqCst);
    let count = streaming.await.unwrap();
    let seen = watching.await.unwrap();
    println!("{seen:?}");
    let guilty: BTreeSet<String> = (0..count).filter(|n| is_guilty(*n)).map(|n| format!("msg_{n}")).collect();
    let mut good = count - guilty.len() as u64;
    let ended = Instant::now();
    loop {
        let dead = scene.dead().await;
        let innocent: Vec<_> = dead.iter().filter(|(id, _)| !guilty.contains(id)).collect();
        assert!(innocent.is_empty(), "{} innocent are dead: {:?}", innocent.len(), &innocent[..1]);
        let applied = scene.applied().await.unwrap();
        if (dead.len(), applied) == (guilty.len(), good) {
            break;
        }
        assert!(
            ended.elapsed() < plan.patience,
            "{applied} of {good} are applied, {} of {} guilty are dead: {dead:?}\n{seen:?}",
            dead.len(),
            guilty.len()
        );
        if dead.len() < guilty.len() {
            // Some go on coming: where nothing succeeds nobody can be to blame.
            let body = Person::of(format!("user_good_after_{good}"), now()).event("user.created", now());
            process::post_stubbornly(|| poster.clone(), &format!("msg_after_{good}"), body.into()).await;
            good += 1;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    println!("settled {:.1} s after the stream", ended.elapsed().as_secs_f64());
    world.until_drained().await;
    for effects in ["SELECT count(*) FROM effects", "SELECT count(DISTINCT clerk_id) FROM effects"] {
        assert_eq!(scene.number(effects).await, Some(good), "{effects}");
    }
    let created = "SELECT count(*) FROM inbox WHERE outcome = 'created'";
    assert_eq!(scene.number(created).await, Some(good), "{created}");
    if plan.judged {
        assert!(
            seen.share >= 0.9 && seen.accepted_per_second >= 0.9 * f64::from(plan.rate),
            "the pace: {seen:?}"
        );
        assert!(seen.standstill <= STANDSTILL, "it stood still: {seen:?}");
        assert!(seen.memory[1] <= seen.memory[0] * 5 / 4 + 16, "memory grows: {seen:?}");
    }
    for worker in &scene.workers {
        worker.lock().unwrap().take().unwrap().stop();
    }
    scene.ingress.lock().unwrap().take().unwrap().stop();
}
