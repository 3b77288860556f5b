//! The command line as people see it: exit codes, errors that say what is wrong and how to fix it, data on stdout.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::process::Output;

use support::process::{Backends, World};

/// It failed with this exit code; the error and a hint hold these words.
fn fails(output: &Output, code: i32, error: &str, hint: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    let line =
        |mark: &str, words: &str| stderr.lines().any(|line| line.starts_with(mark) && line.contains(words));
    assert!(line("error: ", error), "no error about {error:?}:\n{stderr}");
    assert!(line("hint: ", hint), "no hint about {hint:?}:\n{stderr}");
    assert!(output.stdout.is_empty(), "an error on stdout");
}

fn json(output: &Output) -> serde_json::Value {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn wrong_usage_is_2_and_help_is_0() {
    let world = World::new(Backends::Embedded);
    assert_eq!(world.run(&["--help"]).status.code(), Some(0));
    assert_eq!(world.run(&["users", "list", "--help"]).status.code(), Some(0));
    for wrong in [&["fly"][..], &[], &["send"], &["users", "list", "--limit", "0"]] {
        let output = world.run(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{wrong:?}");
    }
}

#[test]
fn a_wrong_setting_is_2_and_named() {
    let mut world = World::new(Backends::Embedded);
    world.set("HEADCOUNT_PREFETCH", "lots");
    fails(&world.run(&["worker"]), 2, "HEADCOUNT_PREFETCH", "plain number");
    world.unset("HEADCOUNT_PREFETCH");
    world.set("RUST_LOG", "inof");
    fails(&world.run(&["worker"]), 2, "inof", "RUST_LOG=info");
    world.unset("RUST_LOG");
    world.unset("CLERK_WEBHOOK_SIGNING_SECRET");
    fails(&world.run(&["ingress"]), 2, "CLERK_WEBHOOK_SIGNING_SECRET", "Clerk dashboard");
    world.set("HEADCOUNT_OPS_LISTEN", "0.0.0.0:0");
    fails(&world.run(&["worker"]), 2, "HEADCOUNT_OPS_TOKEN", "127.0.0.1");
    fails(&world.run(&["--config", "nowhere.toml", "status"]), 2, "nowhere.toml", "path");
}

#[test]
fn the_first_line_says_which_queue_and_store_and_why() {
    let mut world = World::new(Backends::Embedded);
    world.set("AMPQ_URL", "amqp://localhost");
    let up = world.start(&["up"]);
    let log = up.log();
    let first = log.lines().next().unwrap();
    assert!(first.contains("queue: embedded, in "), "{log}");
    assert!(first.contains("because AMQP_URL is not set; users: embedded, in "), "{log}");
    assert!(log.contains("AMPQ_URL is not a setting; did you mean AMQP_URL?"), "{log}");
    up.stop();
}

#[test]
fn a_port_in_use_is_1_and_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut world = World::new(Backends::Embedded);
    world.set("HEADCOUNT_LISTEN", &taken.local_addr().unwrap().to_string());
    fails(&world.run(&["up"]), 1, &taken.local_addr().unwrap().to_string(), "HEADCOUNT_LISTEN");
    world.set("HEADCOUNT_LISTEN", "127.0.0.1:0");
    world.set("HEADCOUNT_OPS_LISTEN", &taken.local_addr().unwrap().to_string());
    fails(&world.run(&["up"]), 1, &taken.local_addr().unwrap().to_string(), "HEADCOUNT_OPS_LISTEN");
}

#[test]
fn a_data_directory_that_cannot_be_written_is_named() {
    let mut world = World::new(Backends::Embedded);
    // Nobody can make a directory there, not even root.
    world.set("HEADCOUNT_DATA_DIR", "/proc/headcount");
    for command in [&["up"][..], &["ingress"], &["worker"], &["migrate"], &["status"]] {
        fails(&world.run(command), 1, "/proc/headcount", "HEADCOUNT_DATA_DIR");
    }
}

#[test]
fn a_broker_that_refuses_or_is_not_there_is_named() {
    let mut world = World::new(Backends::RabbitSqlite);
    let url = support::servers::url("TEST_AMQP_URL");
    world.set("AMQP_URL", &url.replace("guest:guest", "guest:hunter2"));
    for command in [&["up"][..], &["ingress"], &["worker"], &["status"]] {
        let output = world.run(command);
        fails(&output, 1, "refuses", "AMQP_URL");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("hunter2"));
    }
    let nobody = format!("amqp://guest:hunter2@127.0.0.1:{}/%2f", support::servers::free_port());
    world.set("AMQP_URL", &nobody);
    assert!(world.run(&["migrate"]).status.success());
    let output = world.run(&["status"]);
    fails(&output, 1, "not available", "broker");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("hunter2"));
    world.set("AMQP_URL", "http://127.0.0.1/");
    fails(&world.run(&["status"]), 2, "AMQP_URL", "amqp://");
}

#[test]
fn a_database_that_refuses_or_is_not_there_is_named() {
    let mut world = World::new(Backends::EmbeddedPostgres);
    let url = support::servers::url("TEST_DATABASE_URL");
    let nowhere = format!("{}/no_such_database", url.rsplit_once('/').unwrap().0);
    world.set("DATABASE_URL", &nowhere);
    for command in [&["up"][..], &["worker"], &["migrate"], &["users", "list"]] {
        fails(&world.run(command), 1, "no_such_database", "DATABASE_URL");
    }
    world.set(
        "DATABASE_URL",
        &format!("postgres://app:hunter2@127.0.0.1:{}/app", support::servers::free_port()),
    );
    let output = world.run(&["migrate"]);
    fails(&output, 1, "", "DATABASE_URL");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("hunter2"));
}

#[tokio::test]
async fn a_worker_without_its_schema_says_how_to_get_it() {
    for backends in [Backends::Embedded, Backends::RabbitPostgres] {
        let world = World::new(backends);
        fails(&world.run(&["worker"]), 1, "", "headcount migrate");
        assert!(world.run(&["migrate"]).status.success());
        let again = world.run(&["migrate"]);
        assert_eq!(String::from_utf8_lossy(&again.stdout), "the schema is up to date\n");
        world.start(&["worker"]).stop();
        world.clean_up().await;
    }
}

#[tokio::test]
async fn what_lists_speaks_json_on_stdout() {
    let world = World::new(Backends::Embedded);
    let up = world.start(&["up"]);
    let url = up.webhooks.clone().unwrap();
    let sent = json(&world.run(&[
        "send",
        "user.created",
        "--user",
        "user_1",
        "--email",
        "a@example.com",
        "--url",
        &url,
        "--json",
    ]));
    assert_eq!((&sent["sent"], &sent["accepted"]), (&1.into(), &1.into()));
    world.until_drained().await;
    support::eventually("the user is listed", async || {
        json(&world.run(&["users", "list", "--json"])).as_array().is_some_and(|users| users.len() == 1)
    })
    .await;
    let shown = json(&world.run(&["users", "show", "a@example.com", "--json"]));
    assert_eq!(shown["user"]["clerk_id"], "user_1");
    assert_eq!(shown["events"][0]["outcome"], "created");
    let people = world.run(&["users", "show", "user_1"]);
    assert!(String::from_utf8_lossy(&people.stdout).contains("a@example.com (verified)"));
    fails(&world.run(&["users", "show", "user_2"]), 1, "user_2", "users list");
    assert!(json(&world.run(&["status", "--json"]))["queues"].is_array());
    up.stop();
}

#[test]
fn doctor_names_what_is_wrong() {
    let mut world = World::new(Backends::Embedded);
    world.set("HEADCOUNT_PREFECH", "1");
    let output = world.run(&["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(1), "no schema yet");
    let checks: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let check =
        |name: &str| checks.as_array().unwrap().iter().find(|check| check["name"] == name).unwrap().clone();
    assert_eq!(check("database")["verdict"], "failed");
    assert!(check("database")["hints"][0].as_str().unwrap().contains("headcount migrate"));
    assert!(check("configuration")["message"].as_str().unwrap().contains("HEADCOUNT_PREFETCH"));
    assert_eq!(check("ingress")["verdict"], "warning");
    assert!(world.run(&["migrate"]).status.success());
    assert_eq!(world.run(&["doctor"]).status.code(), Some(0));
}

#[test]
fn a_reader_who_goes_away_is_no_error() {
    let world = World::new(Backends::Embedded);
    assert!(world.run(&["migrate"]).status.success());
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = std::process::Command::new(support::process::binary());
    let directory = world.directory.path().join("data");
    let status = command
        .args(["status", "--json"])
        .env("HEADCOUNT_DATA_DIR", directory)
        .stdout(writer)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
}
