//! Embedded files that vanish, are replaced or are damaged under running processes. No 2xx is sent unless the file is in its
//! place, nothing that was answered is lost silently, and no two processes write two files of one name.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::Output,
    time::{Duration, Instant},
};

use headcount::{clerk::made_up::Person, time::now};
use http::StatusCode;
use support::{
    eventually,
    process::{Backends, Process, World},
};

fn data(world: &World) -> PathBuf {
    world.directory.path().join("data")
}

async fn post(process: &Process, n: u64) -> StatusCode {
    let body = Person::of(format!("user_{n}"), now()).event("user.created", now());
    process.poster().post(&format!("msg_{n}"), body.into()).await.unwrap()
}

/// Posts users from `from` on, each of which is accepted.
async fn accepted(process: &Process, from: u64, count: u64) {
    for n in from..from + count {
        assert_eq!(post(process, n).await, StatusCode::ACCEPTED, "{n}:\n{}", process.log());
    }
}

/// Posts a user that is turned away now, not in a while.
async fn turned_away(process: &Process, n: u64) {
    assert_eq!(post(process, n).await, StatusCode::SERVICE_UNAVAILABLE, "{n}:\n{}", process.log());
}

/// What `/readyz` says, and whether it is ready.
async fn ready(process: &Process) -> (bool, String) {
    let address = process.operators.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let answer = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = answer.await.unwrap();
    (answer.starts_with("HTTP/1.1 200"), answer)
}

async fn not_ready_because(process: &Process, words: &str) {
    eventually(&format!("/readyz says {words:?}"), async || {
        let (ready, answer) = ready(process).await;
        !ready && answer.contains(words)
    })
    .await;
}

async fn logged(process: &Process, words: &str) {
    let started = Instant::now();
    while !process.log().contains(words) {
        assert!(started.elapsed() < Duration::from_secs(50), "never {words:?}:\n{}", process.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The command fails, and says so in these words, with a hint.
fn refused(output: &Output, words: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(words) && stderr.contains("hint: "), "no {words:?}:\n{stderr}");
}

async fn users(world: &World, count: usize) {
    // Before the first migration there is no table to look at.
    assert!(world.run(&["migrate"]).status.success());
    world.until_users(&format!("{count} users"), |users| users.len() == count).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_queue_file_stops_the_intake_and_what_it_held_is_saved() {
    let world = World::new(Backends::Embedded);
    let ingress = world.start(&["ingress"]);
    accepted(&ingress, 0, 20).await;
    fs::remove_file(data(&world).join("queue.db")).unwrap();
    turned_away(&ingress, 20).await;
    not_ready_because(&ingress, "queue.db is gone").await;
    logged(&ingress, "queue.db is gone").await;
    // Nobody makes a second file of that name while the first one is in use, nor reads one.
    for command in [&["status"][..], &["ingress"], &["up"], &["doctor"]] {
        let output = world.run(command);
        let text = [output.stdout.clone(), output.stderr.clone()].concat();
        let text = String::from_utf8_lossy(&text);
        assert_eq!(output.status.code(), Some(1), "{command:?}: {text}");
        assert!(text.contains("running headcount") && text.contains("hint: stop"), "{command:?}: {text}");
    }
    assert!(!data(&world).join("queue.db").exists());
    logged(&ingress, "is saved in").await;
    turned_away(&ingress, 20).await;
    ingress.stop();

    fs::rename(data(&world).join("queue.db.saved"), data(&world).join("queue.db")).unwrap();
    let up = world.start(&["up"]);
    users(&world, 20).await;
    accepted(&up, 20, 1).await;
    users(&world, 21).await;
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_away_and_comes_back_is_used_again_without_a_restart() {
    let world = World::new(Backends::Embedded);
    assert!(world.run(&["migrate"]).status.success());
    let (ingress, worker) = (world.start(&["ingress"]), world.start(&["worker"]));
    let aside = world.directory.path().join("aside");
    let mut sent = 10;
    accepted(&ingress, 0, sent).await;
    users(&world, 10).await;
    for away in ["data", "data/queue.db", "data/queue.db-wal", "data/queue.db-shm"] {
        let path = world.directory.path().join(away);
        fs::rename(&path, &aside).unwrap();
        turned_away(&ingress, sent).await;
        not_ready_because(&ingress, "queue.db").await;
        not_ready_because(&worker, "queue.db").await;
        fs::rename(&aside, &path).unwrap();
        eventually("webhooks are taken again", async || post(&ingress, sent).await.is_success()).await;
        accepted(&ingress, sent, 5).await;
        sent += 5;
        users(&world, usize::try_from(sent).unwrap()).await;
        eventually("both are ready", async || ready(&ingress).await.0 && ready(&worker).await.0).await;
    }
    worker.stop();
    ingress.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_store_is_taken_away_nothing_is_acked_and_nothing_lost() {
    let world = World::new(Backends::Embedded);
    let up = world.start(&["up"]);
    accepted(&up, 0, 10).await;
    users(&world, 10).await;
    let (path, aside) = (data(&world).join("headcount.db"), world.directory.path().join("aside"));
    fs::rename(&path, &aside).unwrap();
    // The queue is at its place: it takes and keeps what comes.
    accepted(&up, 10, 50).await;
    not_ready_because(&up, "headcount.db is gone").await;
    logged(&up, "headcount.db is gone").await;
    refused(&world.run(&["users", "list"]), "running headcount");
    refused(&world.run(&["migrate"]), "running headcount");
    fs::rename(&aside, &path).unwrap();
    users(&world, 60).await;
    eventually("it is ready", async || ready(&up).await.0).await;
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_store_is_saved_and_nothing_that_came_later_is_lost() {
    let world = World::new(Backends::Embedded);
    let up = world.start(&["up"]);
    accepted(&up, 0, 10).await;
    users(&world, 10).await;
    let path = data(&world).join("headcount.db");
    fs::remove_file(&path).unwrap();
    accepted(&up, 10, 10).await;
    logged(&up, "is saved in").await;
    up.stop();
    fs::rename(data(&world).join("headcount.db.saved"), &path).unwrap();
    for side in ["-wal", "-shm"] {
        let _ = fs::remove_file(data(&world).join(format!("headcount.db{side}")));
    }
    let up = world.start(&["up"]);
    users(&world, 20).await;
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_file_of_the_name_is_neither_written_to_nor_trusted() {
    let world = World::new(Backends::Embedded);
    let ingress = world.start(&["ingress"]);
    accepted(&ingress, 0, 5).await;
    let (path, other) = (data(&world).join("queue.db"), world.directory.path().join("other"));
    fs::write(&other, fs::read(&path).unwrap()).unwrap();
    fs::rename(&other, &path).unwrap();
    turned_away(&ingress, 5).await;
    not_ready_because(&ingress, "is not the file").await;
    refused(&world.run(&["status"]), "running headcount");
    logged(&ingress, "is saved in").await;
    ingress.stop();
    assert!(data(&world).join("queue.db.saved").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_removed_and_made_anew_gets_what_was_held() {
    let world = World::new(Backends::Embedded);
    let ingress = world.start(&["ingress"]);
    accepted(&ingress, 0, 5).await;
    fs::remove_dir_all(data(&world)).unwrap();
    fs::create_dir(data(&world)).unwrap();
    turned_away(&ingress, 5).await;
    // At the stop at the latest.
    ingress.stop();
    fs::rename(data(&world).join("queue.db.saved"), data(&world).join("queue.db")).unwrap();
    let up = world.start(&["up"]);
    users(&world, 5).await;
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_blocks_nobody_and_a_linked_directory_is_the_same() {
    let mut world = World::new(Backends::Embedded);
    let up = world.start(&["up"]);
    accepted(&up, 0, 5).await;
    users(&world, 5).await;
    up.kill();
    let link = world.directory.path().join("link");
    std::os::unix::fs::symlink(data(&world), &link).unwrap();
    let up = world.start(&["up"]);
    world.set("HEADCOUNT_DATA_DIR", link.to_str().unwrap());
    world.set("DATABASE_URL", &format!("sqlite://{}", link.join("headcount.db").display()));
    let linked = world.start(&["up"]);
    accepted(&linked, 5, 5).await;
    accepted(&up, 10, 5).await;
    users(&world, 15).await;
    // The link leads elsewhere: that is another file.
    fs::remove_file(&link).unwrap();
    fs::create_dir(&link).unwrap();
    turned_away(&linked, 15).await;
    accepted(&up, 15, 1).await;
    up.stop();
    linked.kill();
}

/// Writes over pages of the file that are in use, past the first.
fn damage(path: &Path) {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let size = file.metadata().unwrap().len();
    assert!(size > 3 * 4096, "{size} bytes");
    for page in 1..size / 4096 {
        file.seek(SeekFrom::Start(page * 4096)).unwrap();
        file.write_all(&[0xa5; 512]).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_files_fail_the_doctor() {
    let world = World::new(Backends::Embedded);
    let up = world.start(&["up"]);
    accepted(&up, 0, 50).await;
    users(&world, 50).await;
    up.stop();
    let doctor = |name: &str| {
        let output = world.run(&["doctor", "--json"]);
        let checks: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
        checks.into_iter().filter(|check| check["name"] == name).collect::<Vec<_>>()
    };
    for (file, name) in [("headcount.db", "database"), ("queue.db", "queue")] {
        let path = data(&world).join(file);
        let checks = doctor(name);
        assert!(checks.iter().all(|check| check["verdict"] == "ok"), "{checks:?}");
        let sound = fs::read(&path).unwrap();
        damage(&path);
        let checks = doctor(name);
        let told = checks.iter().any(|check| {
            check["verdict"] == "failed"
                && check["message"].as_str().unwrap().contains("is damaged")
                && check["hints"].to_string().contains(".recover")
        });
        assert!(told, "{checks:?}");
        fs::write(&path, sound).unwrap();
    }
}

/// Nobody reads the file meanwhile. Returns the process, which reports the damage by itself.
async fn notices_damage(file: &str) -> (World, Process) {
    let world = World::new(Backends::Embedded);
    let up = world.start(&["up"]);
    accepted(&up, 0, 50).await;
    users(&world, 50).await;
    up.stop();
    let up = world.start(&["up"]);
    eventually("it is ready", async || ready(&up).await.0).await;
    damage(&data(&world).join(file));
    logged(&up, &format!("{file} is damaged")).await;
    assert!(up.log().contains(".recover"));
    not_ready_because(&up, "is damaged").await;
    (world, up)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_noticed_within_a_minute() {
    let (_world, up) = notices_damage("headcount.db").await;
    // The queue keeps what comes.
    accepted(&up, 50, 1).await;
    up.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_queue_is_noticed_within_a_minute() {
    let (_world, up) = notices_damage("queue.db").await;
    turned_away(&up, 50).await;
    up.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_ahead_log_that_is_cut_stops_what_it_belongs_to() {
    for length in [0, 20_000] {
        let world = World::new(Backends::Embedded);
        let ingress = world.start(&["ingress"]);
        accepted(&ingress, 0, 20).await;
        let log = fs::OpenOptions::new().write(true).open(data(&world).join("queue.db-wal")).unwrap();
        assert!(log.metadata().unwrap().len() > length);
        log.set_len(length).unwrap();
        turned_away(&ingress, 20).await;
        logged(&ingress, "was cut off").await;
        logged(&ingress, "queue.db is damaged").await;
        not_ready_because(&ingress, "queue.db").await;
        turned_away(&ingress, 20).await;
        ingress.kill();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_ahead_log_that_a_shell_has_tidied_up_is_no_trouble_for_long() {
    let world = World::new(Backends::Embedded);
    let ingress = world.start(&["ingress"]);
    accepted(&ingress, 0, 20).await;
    let url = format!("sqlite://{}", data(&world).join("queue.db").display());
    let mut shell = <sqlx::SqliteConnection as sqlx::Connection>::connect(&url).await.unwrap();
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut shell).await.unwrap();
    drop(shell);
    eventually("webhooks are taken again", async || post(&ingress, 20).await.is_success()).await;
    accepted(&ingress, 21, 5).await;
    ingress.stop();
    let up = world.start(&["up"]);
    users(&world, 26).await;
    up.stop();
}

/// What a command says, where it fails.
fn failing(output: &Output) -> String {
    let text = [output.stdout.clone(), output.stderr.clone()].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_becomes_a_link_to_itself_gets_no_second_log() {
    let world = World::new(Backends::Embedded);
    let up = world.start(&["up"]);
    accepted(&up, 0, 10).await;
    users(&world, 10).await;
    for (file, command) in [("headcount.db", &["users", "list"][..]), ("queue.db", &["status"])] {
        let (path, aside) = (data(&world).join(file), world.directory.path().join("real.db"));
        fs::rename(&path, &aside).unwrap();
        std::os::unix::fs::symlink("../real.db", &path).unwrap();
        for command in [command, &["doctor"], &["up"]] {
            let text = failing(&world.run(command));
            assert!(text.contains("is a symbolic link, but") && text.contains("hint: stop"), "{text}");
        }
        for second in ["real.db-wal", "real.db-shm"] {
            assert!(!world.directory.path().join(second).exists());
        }
        let words = format!("{file} was moved, and a symbolic link");
        not_ready_because(&up, &words).await;
        logged(&up, &words).await;
        if file == "queue.db" {
            turned_away(&up, 10).await;
        }
        fs::rename(&aside, &path).unwrap();
        eventually("it is ready", async || ready(&up).await.0).await;
    }
    accepted(&up, 10, 5).await;
    users(&world, 15).await;
    assert!(!up.log().contains("is saved in"), "{}", up.log());
    up.stop();

    // A link that stands there at the opening leads to the file and its log.
    let (path, aside) = (data(&world).join("headcount.db"), world.directory.path().join("real.db"));
    fs::rename(&path, &aside).unwrap();
    std::os::unix::fs::symlink("../real.db", &path).unwrap();
    let up = world.start(&["up"]);
    accepted(&up, 15, 5).await;
    users(&world, 20).await;
    assert!(world.directory.path().join("real.db-wal").exists());
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_two_names_is_used_under_neither() {
    let mut world = World::new(Backends::Embedded);
    let up = world.start(&["up"]);
    accepted(&up, 0, 10).await;
    users(&world, 10).await;
    let other = world.directory.path().join("other");
    fs::create_dir(&other).unwrap();
    for (file, command) in [("headcount.db", &["users", "list"][..]), ("queue.db", &["status"])] {
        fs::hard_link(data(&world).join(file), other.join(file)).unwrap();
        not_ready_because(&up, "several names").await;
        logged(&up, &format!("{file} has several names")).await;
        if file == "queue.db" {
            turned_away(&up, 10).await;
        }
        refused(&world.run(command), "several names");
        world.set("HEADCOUNT_DATA_DIR", other.to_str().unwrap());
        let url = format!("sqlite://{}", other.join("headcount.db").display());
        world.set("DATABASE_URL", &url);
        refused(&world.run(command), "several names");
        assert!(!other.join(format!("{file}-wal")).exists());
        world.set("HEADCOUNT_DATA_DIR", data(&world).to_str().unwrap());
        world.unset("DATABASE_URL");
        fs::remove_file(other.join(file)).unwrap();
        eventually("it is ready", async || ready(&up).await.0).await;
    }
    accepted(&up, 10, 5).await;
    users(&world, 15).await;
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_saved_is_never_passed_over_for_an_empty_file() {
    for file in ["queue.db", "headcount.db"] {
        let world = World::new(Backends::Embedded);
        assert!(world.run(&["migrate"]).status.success());
        // With nobody to take them, the webhooks stay in the queue.
        let role = if file == "queue.db" { "ingress" } else { "worker" };
        let (ingress, process) = (world.start(&["ingress"]), world.start(&[role]));
        accepted(&ingress, 0, 10).await;
        if role == "worker" {
            users(&world, 10).await;
        }
        let path = data(&world).join(file);
        let saved = data(&world).join(format!("{file}.saved"));
        fs::remove_file(&path).unwrap();
        logged(&process, &format!("{file} is gone")).await;
        assert!(!process.log().contains("restart"), "{}", process.log());
        let advice = format!("move {} to {} (this replaces a newer file", saved.display(), path.display());
        eventually("it is saved", async || saved.exists()).await;
        not_ready_because(&process, &advice).await;
        process.stop();
        ingress.stop();

        for command in [&["up"][..], &["doctor"]] {
            let text = failing(&world.run(command));
            assert!(text.contains("is missing, and") && text.contains(&advice), "{text}");
            assert!(!path.exists());
        }
        // Begun anew beside it, by hand.
        let aside = data(&world).join("aside");
        fs::rename(&saved, &aside).unwrap();
        let up = world.start(&["up"]);
        fs::rename(&aside, &saved).unwrap();
        up.stop();
        let up = world.start(&["up"]);
        logged(&up, &advice).await;
        let output = world.run(&["doctor", "--json"]);
        let checks: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
        let told = checks.iter().any(|check| {
            check["verdict"] == "warning" && check["hints"].to_string().contains("replaces a newer file")
        });
        assert!(told, "{checks:?}");
        up.stop();
        fs::rename(&saved, &path).unwrap();
        let up = world.start(&["up"]);
        users(&world, 10).await;
        up.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_a_lost_file_is_not_read_into_what_was_saved() {
    let world = World::new(Backends::Embedded);
    let up = world.start(&["up"]);
    accepted(&up, 0, 40).await;
    users(&world, 40).await;
    let path = data(&world).join("headcount.db");
    let url = format!("sqlite://{}", path.display());
    let mut shell = <sqlx::SqliteConnection as sqlx::Connection>::connect(&url).await.unwrap();
    sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").execute(&mut shell).await.unwrap();
    drop(shell);
    accepted(&up, 40, 40).await;
    users(&world, 80).await;
    fs::remove_file(&path).unwrap();
    logged(&up, "is saved in").await;
    up.stop();
    assert!(data(&world).join("headcount.db-wal").metadata().unwrap().len() > 0);
    fs::rename(data(&world).join("headcount.db.saved"), &path).unwrap();
    let up = world.start(&["up"]);
    users(&world, 80).await;
    accepted(&up, 80, 5).await;
    users(&world, 85).await;
    let output = world.run(&["doctor"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("is undamaged"), "{output:?}");
    up.stop();
}

/// What was saved of the queue, by name.
fn saved(world: &World) -> Vec<PathBuf> {
    let entries = fs::read_dir(data(world)).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.to_str().unwrap().contains("queue.db.saved")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_back_and_goes_again_is_saved_again() {
    let world = World::new(Backends::Embedded);
    let (one, two) = (world.start(&["ingress"]), world.start(&["ingress"]));
    let (path, aside) = (data(&world).join("queue.db"), world.directory.path().join("aside"));
    accepted(&one, 0, 5).await;
    fs::rename(&path, &aside).unwrap();
    not_ready_because(&one, "queue.db.saved").await;
    not_ready_because(&two, "queue.db.saved").await;
    let first = saved(&world);
    fs::rename(&aside, &path).unwrap();
    for (process, from) in [(&one, 5), (&two, 10)] {
        eventually("webhooks are taken again", async || post(process, from).await.is_success()).await;
        accepted(process, from, 5).await;
    }
    fs::remove_file(&path).unwrap();
    let told = async |process: &Process| {
        let (_, answer) = ready(process).await;
        let told = |path: &PathBuf| answer.contains(&format!("move {} to", path.display()));
        saved(&world).into_iter().find(|path| !first.contains(path) && told(path))
    };
    for process in [&one, &two] {
        eventually("it is saved anew", async || told(process).await.is_some()).await;
    }
    let last = told(&two).await.unwrap();
    one.stop();
    two.stop();
    fs::rename(last, &path).unwrap();
    let up = world.start(&["up"]);
    users(&world, 15).await;
    up.stop();
}
