//! `doctor` and `status` name what is wrong, and change no metric that people are alerted by. Counters count each thing once.
//! A stop ends in time.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::{
    process::Output,
    time::{Duration, Instant},
};

use headcount::{clerk::made_up::Person, store::letters::Status, time::now};
use support::{
    eventually,
    process::{Backends, Process, World},
    servers::{Server, url},
    traffic::metric,
};

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Lets the commands that follow ask this process.
fn ask(world: &mut World, process: &Process) {
    let at = process.operators.trim_start_matches("http://").trim_end_matches('/').to_owned();
    world.set("HEADCOUNT_OPS_LISTEN", &at);
    if let Some(webhooks) = &process.webhooks {
        let at = webhooks.trim_start_matches("http://").split('/').next().unwrap().to_owned();
        world.set("HEADCOUNT_LISTEN", &at);
    }
}

async fn post(process: &Process, id: &str, body: impl Into<bytes::Bytes>) {
    assert_eq!(process.poster().post(id, body.into()).await.unwrap(), 202);
}

fn user(id: &str) -> Vec<u8> {
    Person::of(id, now()).event("user.created", now())
}

async fn sqlite(world: &World, statement: &'static str) {
    let path = world.directory.path().join("data/headcount.db");
    let pool = sqlx::SqlitePool::connect_with(sqlx::sqlite::SqliteConnectOptions::new().filename(path)).await;
    let pool = pool.unwrap();
    sqlx::raw_sql(statement).execute(&pool).await.unwrap();
    pool.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_doctor_is_no_news_of_clerks() {
    let mut world = World::new(Backends::Embedded);
    assert!(world.run(&["migrate"]).status.success());
    let up = world.start(&["up"]);
    ask(&mut world, &up);
    assert_eq!(metric(&up, "headcount_webhooks_total").await, 0.0);
    assert_eq!(metric(&up, "headcount_last_webhook_timestamp_seconds").await, 0.0, "absent");
    let doctor = world.run(&["doctor"]);
    assert_eq!(doctor.status.code(), Some(0), "{}", stdout(&doctor));
    assert!(
        stdout(&doctor)
            .lines()
            .any(|line| line.starts_with("ok ") && line.contains("takes a signed webhook"))
    );
    assert!(stdout(&doctor).contains("takes users") && stdout(&doctor).contains("takes messages"));
    // What comes after it has been settled, so it would be seen.
    post(&up, "msg_1", user("user_1")).await;
    world.until_drained().await;
    assert_eq!(metric(&up, "headcount_webhooks_total").await, 1.0);
    assert_eq!(metric(&up, "headcount_events_total").await, 1.0);
    let last = metric(&up, "headcount_last_webhook_timestamp_seconds").await;
    assert_eq!(world.users().await.len(), 1, "the made-up user is gone");
    let seen = || {
        stdout(&world.run(&["status"])).lines().filter(|line| line.starts_with("last ")).collect::<String>()
    };
    let before = seen();
    assert!(before.contains("s after it came in"), "{before}");
    assert_eq!(world.run(&["doctor"]).status.code(), Some(0));
    assert_eq!(metric(&up, "headcount_last_webhook_timestamp_seconds").await, last);
    assert_eq!(seen(), before);
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_worker_is_told_by_status_and_doctor() {
    let mut database = Server::postgres();
    let mut world = World::on(Some(url("TEST_AMQP_URL")), Some(database.url()));
    let up = world.start(&["up"]);
    ask(&mut world, &up);
    post(&up, "msg_1", user("user_1")).await;
    eventually("it is applied", async || metric(&up, "headcount_sync_lag_seconds_count").await == 1.0).await;
    eventually("a consumer is told", async || stdout(&world.run(&["status"])).contains("1 consuming")).await;
    let told = stdout(&world.run(&["status"]));
    assert!(told.contains("held            0 by the worker on this machine"), "{told}");
    assert!(told.contains("RabbitMQ does not tell what others hold, at most 600 each"), "{told}");

    database.stop();
    post(&up, "msg_2", user("user_2")).await;
    eventually("the worker is paused", async || metric(&up, "headcount_paused").await == 1.0).await;
    let status = world.run(&["status"]);
    assert_eq!(status.status.code(), Some(1));
    let told = stdout(&status);
    assert!(told.contains("takes no messages: paused: since 2"), "{told}");
    let doctor = world.run(&["doctor"]);
    assert_eq!(doctor.status.code(), Some(1));
    let told = stdout(&doctor);
    let line =
        told.lines().find(|line| line.starts_with("FAILED   worker")).unwrap_or_else(|| panic!("{told}"));
    assert!(line.contains("takes no messages: paused: since 2"), "{line}");
    assert!(doctor.stderr.starts_with(b"error: "), "{}", String::from_utf8_lossy(&doctor.stderr));

    database.start();
    eventually("all is applied", async || metric(&up, "headcount_sync_lag_seconds_count").await >= 2.0).await;
    eventually("it is told", async || stdout(&world.run(&["status"])).contains("1 consuming")).await;
    up.stop();
    // Nobody consumes, nobody can be asked.
    let told = stdout(&world.run(&["status"]));
    assert!(told.contains("none is consuming: paused, or not running"), "{told}");
    let told = stdout(&world.run(&["doctor"]));
    assert!(
        told.lines().any(|line| line.starts_with("warning  queue") && line.contains("none is running")),
        "{told}"
    );
    world.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_waits_for_its_database_from_the_start_is_paused() {
    let mut database = Server::postgres();
    let mut world = World::on(None, Some(database.url()));
    assert!(world.run(&["migrate"]).status.success());
    database.stop();
    let worker = world.start(&["worker"]);
    ask(&mut world, &worker);
    eventually("it says so", async || metric(&worker, "headcount_paused").await == 1.0).await;
    let told = stdout(&world.run(&["doctor"]));
    assert!(told.contains("takes no messages: paused: since 2"), "{told}");
    database.start();
    eventually("it works", async || stdout(&world.run(&["doctor"])).contains("takes messages")).await;
    assert_eq!(metric(&worker, "headcount_paused").await, 0.0);
    worker.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_refuses_all_is_told_by_the_doctor() {
    let world = World::new(Backends::Embedded);
    assert!(world.run(&["migrate"]).status.success());
    for guard in [
        "CREATE TRIGGER guard BEFORE INSERT ON users BEGIN SELECT RAISE(ABORT, 'nobody'); END",
        "CREATE TRIGGER guard BEFORE INSERT ON users BEGIN SELECT RAISE(IGNORE); END",
    ] {
        sqlite(&world, guard).await;
        let told = stdout(&world.run(&["doctor"]));
        assert!(told.contains("does not take a made-up user"), "{told}");
        assert!(!told.lines().any(|line| line.starts_with("ok       database")), "{told}");
        sqlite(&world, "DROP TRIGGER guard").await;
    }
    let told = stdout(&world.run(&["doctor"]));
    assert!(
        told.lines().any(|line| line.starts_with("ok       database") && line.contains("takes users")),
        "{told}"
    );
    assert!(world.users().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_is_told_once() {
    let mut world = World::new(Backends::Embedded);
    assert!(world.run(&["migrate"]).status.success());
    world.set("AMQP_URL", &format!("amqp://127.0.0.1:{}/%2f", support::servers::free_port()));
    let output = world.run(&["doctor"]);
    let told = stdout(&output);
    assert_eq!(told.lines().filter(|line| line.starts_with("FAILED   queue")).count(), 1, "{told}");
    assert!(output.stderr.starts_with(b"error: "), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_brokers_alarm_and_missing_permissions_are_told_by_their_names() {
    let broker = Server::rabbitmq();
    let mut world = World::on(Some(broker.url()), None);
    world.start(&["up"]).stop();
    assert!(stdout(&world.run(&["doctor"])).contains("workers consuming"));
    broker.ctl(&["set_vm_memory_high_watermark", "absolute", "1"]);
    let told = stdout(&world.run(&["doctor"]));
    assert!(told.contains("blocks publishing") && told.contains("rabbitmq-diagnostics"), "{told}");
    assert!(!told.contains("does not answer: check") && !told.contains("ok       queue"), "{told}");
    broker.ctl(&["set_vm_memory_high_watermark", "0.6"]);

    broker.ctl(&["add_user", "limited", "hunter2"]);
    broker.ctl(&["set_permissions", "-p", "/", "limited", "^nothing$", "^nothing$", "^nothing$"]);
    world.set("AMQP_URL", &broker.url().replace("guest:guest", "limited:hunter2"));
    let output = world.run(&["worker"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("hint: ") && said.contains("set_permissions"), "{said}");
    world.set("AMQP_URL", &broker.url());
    world.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_looks_under_a_mistyped_prefix_makes_nothing_on_the_broker() {
    let broker = Server::rabbitmq();
    let names = || {
        broker.ctl(&["list_queues", "--quiet", "name"]) + &broker.ctl(&["list_exchanges", "--quiet", "name"])
    };
    let mut world = World::on(Some(broker.url()), None);
    world.set("HEADCOUNT_QUEUE_PREFIX", "other");
    assert!(world.run(&["migrate"]).status.success());
    for command in [
        &["status"][..],
        &["status", "--json"],
        &["doctor"],
        &["users", "list"],
        &["dead", "groups"],
        &["dead", "list"],
        &["dead", "export"],
        &["rejections", "list"],
    ] {
        let output = world.run(command);
        let said = stdout(&output) + &String::from_utf8_lossy(&output.stderr);
        let needs_a_queue = matches!(command[0], "status" | "doctor");
        assert_eq!(output.status.code(), Some(i32::from(needs_a_queue)), "{command:?}: {said}");
        if needs_a_queue {
            assert!(said.contains("has nothing under the prefix other yet"), "{command:?}: {said}");
            assert!(said.contains("hint: start headcount, which"), "{command:?}: {said}");
            assert!(said.contains("HEADCOUNT_QUEUE_PREFIX"), "{command:?}: {said}");
        }
        if command[0] == "doctor" {
            assert!(said.contains("FAILED   queue") && said.contains("ok       database"), "{said}");
        }
    }
    assert!(!names().contains("other."), "{}", names());

    // A process that works declares, and what it has made can be looked at.
    world.start(&["up"]).stop();
    assert!(names().contains("other.events"), "{}", names());
    let output = world.run(&["status"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = stdout(&world.run(&["doctor"]));
    assert!(told.contains("0 workers consuming") && !told.contains("FAILED"), "{told}");

    // What is missing of it stays missing.
    broker.ctl(&["delete_queue", "other.rejections"]);
    world.set("HEADCOUNT_RETRY_DELAYS", "100ms,7s");
    for command in ["status", "doctor"] {
        let output = world.run(&[command]);
        let said = stdout(&output) + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.matches("does not have other.rejections, other.retry.7s").count(), 1, "{said}");
        assert!(said.contains("HEADCOUNT_RETRY_DELAYS"), "{said}");
    }
    assert!(!names().contains("other.retry.7s"), "{}", names());
    assert_eq!(names().matches("other.rejections").count(), 1, "the exchange alone: {}", names());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_in_a_brokers_alarm_gives_up_soon_names_it_and_loses_nothing() {
    let broker = Server::rabbitmq();
    let world = World::on(Some(broker.url()), None);
    assert!(world.run(&["migrate"]).status.success());
    let up = world.start(&["up"]);
    post(&up, "msg_1", "no JSON").await;
    post(&up, "msg_2", "no JSON").await;
    let store = world.store().await;
    let count = async |status| store.statuses().await.unwrap().get(&status).copied().unwrap_or_default();
    eventually("both are captured", async || count(Status::Open).await == 2).await;
    let mended = world.directory.path().join("mended.json");
    std::fs::write(&mended, user("user_1")).unwrap();

    broker.ctl(&["set_vm_memory_high_watermark", "absolute", "1"]);
    let begun = Instant::now();
    let commands = [
        (&["dead", "replay", "msg_1", "--yes"][..], "go on: headcount dead replay"),
        (
            &["dead", "edit", "msg_2", "--file", mended.to_str().unwrap(), "--yes"],
            "send it: headcount dead replay",
        ),
    ];
    let running = commands.map(|(command, next)| (command, next, world.begin(command)));
    for (command, next, run) in running {
        let output = run.end();
        let (took, said) = (begun.elapsed(), String::from_utf8_lossy(&output.stderr).into_owned());
        println!("{command:?} gave up after {took:?} at most");
        assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
        assert!(took < Duration::from_secs(15), "{command:?} took {took:?}: {said}");
        assert!(
            said.contains("blocks publishing") && said.contains("hint: an alarm of the broker"),
            "{said}"
        );
        assert!(said.contains(next) && !said.contains("AMQP_URL"), "{said}");
        assert_eq!(said.matches("the queue is not available").count(), 1, "{said}");
    }
    assert_eq!(count(Status::Replayed).await, 2, "both are claimed");

    broker.ctl(&["set_vm_memory_high_watermark", "0.6"]);
    let output = world.run(&["dead", "replay", "--all", "--yes"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    eventually("what was mended is applied, and what was not has died again", async || {
        (count(Status::Applied).await, count(Status::Open).await) == (1, 1)
    })
    .await;
    assert_eq!(world.users().await.len(), 1);
    store.close().await;
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_gave_up_is_counted_when_it_is_captured() {
    let world = World::new(Backends::RabbitSqlite);
    let up = world.start(&["up"]);
    post(&up, "msg_1", "no JSON").await;
    let exchange = format!("{}.unrouted", world.prefix());
    let properties = lapin::ConnectionProperties::default();
    let connection = lapin::Connection::connect(&url("TEST_AMQP_URL"), properties).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    for n in 0..3 {
        let properties =
            lapin::BasicProperties::default().with_message_id(format!("msg_unrouted_{n}").into());
        let published = channel.basic_publish(
            exchange.as_str().into(),
            "".into(),
            lapin::options::BasicPublishOptions::default(),
            b"{}",
            properties,
        );
        published.await.unwrap();
    }
    eventually("all are counted", async || metric(&up, "headcount_dead_letters_total").await >= 4.0).await;
    let store = world.store().await;
    eventually("all are captured", async || store.statuses().await.unwrap().values().sum::<u64>() == 4).await;
    store.close().await;
    assert_eq!(metric(&up, "headcount_dead_letters_total").await, 4.0, "each once");
    assert_eq!(support::traffic::metric_of(&up, "headcount_dead_letters_total", "unroutable").await, 3.0);
    connection.close(200, "bye".into()).await.unwrap();
    up.stop();
    world.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_within_its_limit_also_where_the_queue_cannot_be_written() {
    let limit = Duration::from_secs(4);
    let mut world = World::new(Backends::Embedded);
    world.set("HEADCOUNT_DRAIN_LIMIT", "4s");
    let mut up = world.start(&["up"]);
    ask(&mut world, &up);
    post(&up, "msg_0", user("user_0")).await;
    world.until_drained().await;
    let batches = metric(&up, "headcount_batch_messages_count").await;
    // A message is in its transaction when the queue goes, and can never be settled.
    let path = world.directory.path().join("data/headcount.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut holder = sqlx::ConnectOptions::connect(&options).await.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut holder).await.unwrap();
    post(&up, "msg_1", user("user_1")).await;
    eventually("it is told as held", async || {
        stdout(&world.run(&["status"])).contains("held            1 by the worker on this machine")
    })
    .await;
    eventually("it is under way", async || metric(&up, "headcount_batch_messages_count").await > batches)
        .await;
    std::fs::remove_file(world.directory.path().join("data/queue.db-shm")).unwrap();
    eventually("it is noticed", async || up.log().contains("queue.db-shm was removed")).await;
    sqlx::raw_sql("COMMIT").execute(&mut holder).await.unwrap();
    eventually("it is applied", async || metric(&up, "headcount_sync_lag_seconds_count").await >= 2.0).await;
    let begun = Instant::now();
    up.terminate();
    let status = up.wait(Duration::from_secs(30));
    let took = begun.elapsed();
    assert_eq!(status.code(), Some(0), "{}", up.log());
    assert!(took < limit + Duration::from_secs(1), "it took {took:?}:\n{}", up.log());
}

#[test]
fn what_is_wrong_with_a_file_is_not_blamed_on_a_server() {
    let mut world = World::new(Backends::Embedded);
    assert!(world.run(&["migrate"]).status.success());
    // Whatever is written to a file fails, as on a disk that is full.
    world.shell("trap '' XFSZ; ulimit -f 0");
    for command in [&["status"][..], &["users", "list"], &["doctor"], &["up"]] {
        let output = world.run(command);
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
        assert!(said.contains("hint: ") && said.contains("disk"), "{command:?}: {said}");
        assert!(
            !said.contains("AMQP_URL is right") && !said.contains("DATABASE_URL is right"),
            "{command:?}: {said}"
        );
    }
}
