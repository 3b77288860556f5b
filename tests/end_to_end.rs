//! The main job with the real binary: signed webhooks in at the front door, rows in `users`, on every combination of
//! backends, through `SIGKILL` of any process and restarts of the servers.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use headcount::{
    clerk::made_up::{Person, user_id},
    cli::post::Poster,
    time::now,
};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use support::{
    eventually,
    process::{Backends, Process, World, post_stubbornly},
    servers::Server,
};

/// How many webhooks a run has, in the middle of which something is killed.
fn many() -> usize {
    if std::env::var_os("SOAK").is_some() { 50_000 } else { 1500 }
}

/// A webhook and its id.
type Webhook = (String, Bytes);

/// The expected table: the first name of each live Clerk id, and the deleted ids.
#[derive(Default)]
struct Expected {
    live: BTreeMap<String, String>,
    deleted: Vec<String>,
}

/// A shuffled, partly repeated stream of webhooks about `webhooks / 5` users, and the table that it must lead to.
fn stream(webhooks: usize) -> (Vec<Webhook>, Expected) {
    let mut rng = StdRng::seed_from_u64(7);
    let (mut stream, mut expected) = (Vec::new(), Expected::default());
    let born = now() - 3_600_000;
    for n in 0..webhooks / 5 {
        let id = user_id(&mut rng);
        let mut sample = Person::of(&id, born);
        sample.email = Some(format!("user{n}@example.com"));
        let mut push = |name: String, body: Vec<u8>| stream.push((name, Bytes::from(body)));
        push(format!("msg_{n}_created"), sample.event("user.created", born));
        for update in 1..=3 {
            sample.first_name = Some(format!("Name{update}"));
            sample.updated_at = born + update;
            push(format!("msg_{n}_updated{update}"), sample.event("user.updated", born + update));
        }
        if n % 10 == 0 {
            push(format!("msg_{n}_deleted"), sample.event("user.deleted", born + 10));
            expected.deleted.push(id);
        } else {
            push(format!("msg_{n}_session"), sample.event("session.created", born + 10));
            expected.live.insert(id, "Name3".into());
        }
    }
    stream.shuffle(&mut rng);
    (stream, expected)
}

/// What is not as it was sent.
async fn amiss(world: &World, expected: &Expected) -> Option<String> {
    let users = world.users().await;
    let live: BTreeMap<String, String> = users
        .iter()
        .filter(|user| user.deleted_at.is_none())
        .map(|user| (user.clerk_id.clone(), user.first_name.clone().unwrap_or_default()))
        .collect();
    let differs: Vec<_> =
        expected.live.iter().filter(|(id, name)| live.get(*id) != Some(name)).take(5).collect();
    if !differs.is_empty() || live.len() != expected.live.len() {
        return Some(format!(
            "of {} live users {} are there; not as sent: {differs:?}",
            expected.live.len(),
            live.len()
        ));
    }
    let store = world.store().await;
    let mut lives = None;
    for id in &expected.deleted {
        let history = store.user(id).await.unwrap();
        if history.is_none_or(|history| history.user.is_some_and(|user| user.deleted_at.is_none())) {
            lives = Some(format!("{id} is not known as deleted"));
        }
    }
    store.close().await;
    lives
}

async fn dead(world: &World) -> u64 {
    let output = world.run(&["status", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let queues = status["queues"].as_array().unwrap();
    let waiting = queues.iter().find(|queue| queue["queue"] == "dead").unwrap()["messages"].as_u64().unwrap();
    // On its way to the table, or there.
    waiting + status["dead_letters"]["open"].as_u64().unwrap_or(0)
}

/// Sends everything, 50 at a time, each until it is accepted; every tenth twice. `at` is called with how many were sent.
async fn send_all(stream: Vec<Webhook>, poster: impl Fn() -> Poster + Clone, at: impl Fn(usize)) {
    use futures_util::StreamExt;
    let sent = std::sync::atomic::AtomicUsize::new(0);
    futures_util::stream::iter(stream.into_iter().enumerate())
        .for_each_concurrent(50, |(n, (id, body))| {
            let poster = poster.clone();
            let (sent, at) = (&sent, &at);
            async move {
                post_stubbornly(&poster, &id, body.clone()).await;
                if n % 10 == 0 {
                    post_stubbornly(&poster, &id, body).await;
                }
                at(sent.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1);
            }
        })
        .await;
}

async fn the_main_job(backends: Backends) {
    let world = World::new(backends);
    let up = world.start(&["up"]);
    let poster = up.poster();
    let mut sample = Person::of("user_main", 1_700_000_000_000);
    sample.email = Some("Main@Example.com".into());
    for (id, event) in
        [("msg_1", "user.created"), ("msg_2", "email.created"), ("msg_3", "organization.created")]
    {
        let status = poster.post(id, sample.event(event, 1_700_000_000_000).into()).await.unwrap();
        assert_eq!(status, 202, "{event}");
    }
    // Before the first migration there is no table to look at.
    let user = async || world.store().await.user("user_main").await.ok().flatten();
    eventually("the user is there", async || user().await.is_some()).await;
    sample.first_name = Some("Renamed".into());
    sample.updated_at += 1000;
    for _ in 0..2 {
        let body = sample.event("user.updated", 1_700_000_001_000).into();
        assert_eq!(poster.post("msg_4", body).await.unwrap(), 202);
    }
    assert_eq!(poster.post("msg_5", "verified, but not JSON".into()).await.unwrap(), 202);
    world.until_drained().await;
    eventually("the user is renamed", async || {
        user()
            .await
            .and_then(|history| history.user)
            .is_some_and(|user| user.first_name.as_deref() == Some("Renamed"))
    })
    .await;
    let history = user().await.unwrap();
    let row = history.user.unwrap();
    assert_eq!(row.email.as_deref(), Some("Main@Example.com"));
    assert_eq!((row.subscription_tier.as_str(), row.credits_balance), ("free", 10_000));
    let outcomes: Vec<&str> = history.events.iter().map(|event| event.outcome.as_str()).collect();
    assert_eq!(outcomes, ["created", "updated"]);
    eventually("the unreadable one is dead", async || dead(&world).await == 1).await;

    assert_eq!(
        poster.post("msg_6", sample.event("user.deleted", 1_700_000_002_000).into()).await.unwrap(),
        202
    );
    eventually("the user is deleted", async || {
        user().await.and_then(|history| history.user).is_some_and(|user| user.deleted_at.is_some())
    })
    .await;
    up.stop();
    world.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_on_the_embedded_queue_and_store() {
    the_main_job(Backends::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_on_rabbitmq_and_sqlite() {
    the_main_job(Backends::RabbitSqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_on_the_embedded_queue_and_postgresql() {
    the_main_job(Backends::EmbeddedPostgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_on_rabbitmq_and_postgresql() {
    the_main_job(Backends::RabbitPostgres).await;
}

/// The processes that a stream goes through; each may be killed and started anew in mid-stream.
struct Fleet {
    world: World,
    processes: Mutex<BTreeMap<&'static str, Process>>,
}

impl Fleet {
    fn start(world: World, roles: &[&'static str]) -> Arc<Self> {
        let migrated = world.run(&["migrate"]);
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        let fleet = Arc::new(Self { world, processes: Mutex::default() });
        roles.iter().for_each(|role| fleet.add(role));
        fleet
    }

    /// `role` is the command's name, followed by digits that tell two processes of one role apart.
    fn add(&self, role: &'static str) {
        let process = self.world.start(&[role.trim_end_matches(char::is_numeric)]);
        self.processes.lock().unwrap().insert(role, process);
    }

    fn kill_and_restart(&self, role: &'static str) {
        let process = self.processes.lock().unwrap().remove(role).expect("it runs");
        process.kill();
        self.add(role);
    }

    fn poster(&self) -> Poster {
        loop {
            let processes = self.processes.lock().unwrap();
            if let Some(process) = processes.values().find(|process| process.webhooks.is_some()) {
                return process.poster();
            }
            // It is being started anew by another thread.
            drop(processes);
            std::thread::yield_now();
        }
    }

    async fn finish(self: Arc<Self>, expected: &Expected) {
        self.world.until_drained().await;
        // That the queues are empty is not enough: RabbitMQ does not count what workers hold, and a stop may give that back.
        eventually("everything is as it was sent", async || {
            amiss(&self.world, expected).await.inspect(|what| println!("{what}")).is_none()
        })
        .await;
        self.world.until_drained().await;
        let Ok(fleet) = Arc::try_unwrap(self) else { panic!("still in use") };
        for process in fleet.processes.into_inner().unwrap().into_values() {
            process.stop();
        }
        assert_eq!(amiss(&fleet.world, expected).await, None);
        assert_eq!(dead(&fleet.world).await, 0);
        fleet.world.clean_up().await;
    }
}

async fn killed_in_mid_stream(world: World, roles: &[&'static str], victims: &'static [&'static str]) {
    let (stream, expected) = stream(many());
    let step = stream.len() / (victims.len() + 1);
    let fleet = Fleet::start(world, roles);
    let (to_kill, killing) = std::sync::mpsc::channel::<&'static str>();
    let killer = {
        let fleet = Arc::clone(&fleet);
        std::thread::spawn(move || killing.into_iter().for_each(|role| fleet.kill_and_restart(role)))
    };
    let poster = {
        let fleet = Arc::clone(&fleet);
        move || fleet.poster()
    };
    send_all(stream, poster, |sent| {
        if sent % step == 0
            && let Some(victim) = victims.get(sent / step - 1)
        {
            to_kill.send(victim).unwrap();
        }
    })
    .await;
    drop(to_kill);
    killer.join().unwrap();
    fleet.finish(&expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_workers_and_ingress_are_killed_on_servers() {
    let world = World::new(Backends::RabbitPostgres);
    killed_in_mid_stream(
        world,
        &["ingress", "worker1", "worker2"],
        &["worker1", "ingress", "worker2", "worker1"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_processes_are_killed_on_embedded_files() {
    let world = World::new(Backends::Embedded);
    killed_in_mid_stream(world, &["ingress", "worker1", "worker2"], &["worker1", "ingress", "worker2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_one_process_is_killed() {
    killed_in_mid_stream(World::new(Backends::Embedded), &["up"], &["up", "up", "up"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_broker_and_the_database_are_killed() {
    let broker = Arc::new(Mutex::new(Server::rabbitmq()));
    let database = Arc::new(Mutex::new(Server::postgres()));
    let (amqp, postgres) = (broker.lock().unwrap().url(), database.lock().unwrap().url());
    let world = World::on(Some(amqp), Some(postgres));
    let (stream, expected) = stream(many());
    let third = stream.len() / 3;
    let fleet = Fleet::start(world, &["ingress", "worker1", "worker2"]);
    let (to_kill, killing) = std::sync::mpsc::channel::<Arc<Mutex<Server>>>();
    let killer = std::thread::spawn(move || {
        for server in killing {
            let mut server = server.lock().unwrap();
            server.kill();
            server.start();
        }
    });
    let poster = {
        let fleet = Arc::clone(&fleet);
        move || fleet.poster()
    };
    send_all(stream, poster, |sent| {
        if sent == third {
            to_kill.send(Arc::clone(&database)).unwrap();
        } else if sent == 2 * third {
            to_kill.send(Arc::clone(&broker)).unwrap();
        }
    })
    .await;
    drop(to_kill);
    killer.join().unwrap();
    fleet.finish(&expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_stops_in_time_with_its_servers_away() {
    let mut broker = Server::rabbitmq();
    let mut database = Server::postgres();
    let world = World::on(Some(broker.url()), Some(database.url()));
    let up = world.start(&["up"]);
    let sample = Person::of("user_1", now());
    assert_eq!(up.poster().post("msg_1", sample.event("user.created", now()).into()).await.unwrap(), 202);
    world.until_drained().await;

    database.kill();
    assert_eq!(up.poster().post("msg_2", sample.event("user.updated", now()).into()).await.unwrap(), 202);
    eventually("the worker pauses", async || up.log().contains("the worker pauses")).await;
    up.stop();

    database.start();
    let up = world.start(&["up"]);
    broker.kill();
    eventually("intake is refused", async || {
        up.poster()
            .post("msg_3", sample.event("user.updated", now()).into())
            .await
            .is_ok_and(|status| status == 503)
    })
    .await;
    up.stop();

    broker.start();
    let up = world.start(&["up"]);
    world.until_drained().await;
    broker.freeze();
    database.freeze();
    let mut up = up;
    up.terminate();
    let status = up.wait(Duration::from_secs(30));
    assert_eq!(status.code(), Some(0), "{}", up.log());
    broker.thaw();
    database.thaw();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_personal_is_logged() {
    let mut world = World::new(Backends::Embedded);
    world.set("RUST_LOG", "trace");
    let up = world.start(&["up"]);
    let mut sample = Person::of("user_private", now());
    sample.email = Some("very.private@example.com".into());
    sample.first_name = Some("Privatissima".into());
    for (id, event) in [("msg_1", "user.created"), ("msg_2", "user.updated"), ("msg_3", "user.deleted")] {
        assert_eq!(up.poster().post(id, sample.event(event, now()).into()).await.unwrap(), 202);
    }
    let broken =
        r#"{"data":{"id":7,"email":"very.private@example.com"},"type":"user.created","timestamp":1}"#;
    assert_eq!(up.poster().post("msg_4", broken.into()).await.unwrap(), 202);
    world.until_drained().await;
    eventually("the broken one is buried", async || up.log().contains("msg_4 is buried")).await;
    let log = up.log();
    assert!(log.contains("msg_1"), "the message id is there");
    for private in ["very.private", "Privatissima", support::process::SECRET] {
        assert!(!log.contains(private), "{private} is in the log");
    }
    up.stop();
    world.clean_up().await;
}
