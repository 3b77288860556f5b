//! Only the owner can read the files that headcount writes, and a command that only looks writes none.
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
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use headcount::{clerk::made_up::Person, time::now};
use support::{
    eventually,
    process::{Backends, World},
    servers::Server,
    traffic::{metric, sql},
};

/// A world whose processes have a umask of 0.
fn open_handed() -> World {
    let mut world = World::new(Backends::Embedded);
    world.shell("umask 000");
    world
}

fn data(world: &World) -> PathBuf {
    world.directory.path().join("data")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// The directory and everything in it is its owner's alone. Returns the names.
fn private(directory: &Path) -> Vec<String> {
    assert_eq!(mode(directory), 0o700, "{}", directory.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        // Two processes' worth of names may come and go.
        if let Ok(metadata) = entry.metadata() {
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{name}");
        }
        names.push(name);
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_owner_reads_what_is_made_whatever_umask_and_command() {
    // Each command is the first one once.
    let world = open_handed();
    assert!(world.run(&["migrate"]).status.success());
    assert!(private(&data(&world)).contains(&"headcount.db".to_owned()));
    assert!(world.run(&["doctor"]).status.success());
    private(&data(&world));

    let world = open_handed();
    let ingress = world.start(&["ingress"]);
    assert!(private(&data(&world)).contains(&"queue.db-wal".to_owned()));
    ingress.stop();

    let world = open_handed();
    assert!(!world.run(&["worker"]).status.success(), "there is no schema");
    private(&data(&world));

    let mut world = open_handed();
    world.unset("CLERK_WEBHOOK_SIGNING_SECRET");
    let up = world.start(&["up", "--demo"]);
    eventually("the demo plays", async || metric(&up, "headcount_sync_lag_seconds_count").await > 20.0).await;
    let names = private(&data(&world));
    for name in [
        "development-secret",
        "queue.db",
        "queue.db-wal",
        "queue.db-shm",
        "queue.db.lock",
        "headcount.db",
        "headcount.db-wal",
        "headcount.db-shm",
        "headcount.db.lock",
    ] {
        assert!(names.iter().any(|found| found == name), "{name}: {names:?}");
    }
    fs::remove_file(data(&world).join("headcount.db")).unwrap();
    eventually("it is saved", async || data(&world).join("headcount.db.saved").exists()).await;
    private(&data(&world));
    up.stop();

    // Elsewhere: the file is private, and a directory that was there is left alone.
    let mut world = open_handed();
    let (known, new) = (world.directory.path().join("known"), world.directory.path().join("new"));
    fs::create_dir(&known).unwrap();
    fs::set_permissions(&known, fs::Permissions::from_mode(0o755)).unwrap();
    for directory in [&known, &new] {
        world.set("DATABASE_URL", &format!("sqlite://{}/users.db", directory.display()));
        assert!(world.run(&["migrate"]).status.success());
        assert_eq!(mode(&directory.join("users.db")), 0o600);
    }
    assert_eq!((mode(&known), mode(&new)), (0o755, 0o700));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_others_can_read_are_told_with_the_command_to_run() {
    let world = World::new(Backends::Embedded);
    world.start(&["up"]).stop();
    let checked = |word: &str| {
        let output = world.run(&["doctor"]);
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(report.lines().any(|line| line.starts_with(word) && line.contains(" files ")), "{report}");
        report
    };
    checked("ok");
    let up = world.start(&["up"]);
    assert!(!up.log().contains("chmod"), "{}", up.log());
    up.stop();

    fs::set_permissions(data(&world), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(data(&world).join("queue.db"), fs::Permissions::from_mode(0o644)).unwrap();
    let up = world.start(&["up"]);
    assert_eq!(up.log().matches("chmod 700").count(), 1, "{}", up.log());
    up.stop();
    let report = checked("warning");
    let (_, command) = report.lines().find_map(|line| line.split_once("hint: run: ")).unwrap();
    assert!(std::process::Command::new("sh").args(["-c", command]).status().unwrap().success());
    checked("ok");
    private(&data(&world));
}

#[test]
fn looking_where_nothing_is_yet_makes_nothing() {
    let looks: [&[&str]; 10] = [
        &["status"],
        &["status", "--json"],
        &["users", "list"],
        &["users", "show", "user_1"],
        &["dead", "groups"],
        &["dead", "list"],
        &["dead", "show", "msg_1"],
        &["dead", "export"],
        &["rejections", "list"],
        &["doctor"],
    ];
    let mut world = World::new(Backends::Embedded);
    let directory = data(&world);
    for made in [false, true] {
        if made {
            fs::create_dir(&directory).unwrap();
        }
        for url in [None, Some(format!("sqlite://{}/elsewhere/users.db", world.directory.path().display()))] {
            if let Some(url) = &url {
                world.set("DATABASE_URL", url);
            }
            for look in looks {
                let output = world.run(look);
                let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
                assert_eq!(output.status.code(), Some(1), "{look:?}: {said}");
                assert!(
                    said.contains("there is nothing yet") && said.contains("headcount up"),
                    "{look:?}: {said}"
                );
                assert!(!world.directory.path().join("elsewhere").exists(), "{look:?}");
                match made {
                    false => assert!(!directory.exists(), "{look:?}"),
                    true => assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "{look:?}"),
                }
            }
            world.unset("DATABASE_URL");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_of_strangers_that_may_read_our_tables_are_told() {
    let database = Server::postgres();
    let mut world = World::on(None, Some(database.url()));
    world.unset("HEADCOUNT_SCHEMA");
    assert!(world.run(&["migrate"]).status.success());
    let report = || String::from_utf8(world.run(&["doctor"]).stdout).unwrap();
    assert!(!report().contains("the role"), "{}", report());
    // As on Supabase, whose API serves the schema public.
    sql(&database.url(), "CREATE ROLE anon; GRANT SELECT ON users, dead_letters TO anon").await;
    let said = report();
    assert!(said.contains("the role anon may read dead_letters, users"), "{said}");
    assert!(said.contains("HEADCOUNT_SCHEMA"), "{said}");
    sql(
        &database.url(),
        "ALTER TABLE users ENABLE ROW LEVEL SECURITY; REVOKE SELECT ON dead_letters FROM anon",
    )
    .await;
    assert!(!report().contains("the role"), "{}", report());
    sql(&database.url(), "GRANT SELECT (clerk_id) ON inbox TO PUBLIC").await;
    assert!(report().contains("the role PUBLIC may read inbox"), "{}", report());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_buried_messages_are_two_lines_in_the_log() {
    let world = World::new(Backends::Embedded);
    let up = world.start(&["up"]);
    let poster = up.poster();
    for n in 0..150 {
        assert!(poster.post(&format!("msg_{n}"), "no JSON".into()).await.unwrap().is_success());
    }
    eventually("all are buried", async || metric(&up, "headcount_dead_letters_total").await == 150.0).await;
    // One who knows no secret.
    let stranger = headcount::secret::Secret::new("whsec_c29tZWJvZHkgZWxzZSdzIHNlY3JldCwgbm90IG91cnM=");
    let stranger = headcount::cli::post::Poster::new(up.webhooks.as_deref().unwrap(), &stranger).unwrap();
    for n in 0..50 {
        let body = Person::of("user_1", now()).event("user.created", now());
        assert_eq!(stranger.post(&format!("msg_{n}"), body.into()).await.unwrap(), 401);
    }
    up.terminate();
    let mut up = up;
    up.wait(std::time::Duration::from_secs(30));
    let log = up.log();
    let lines = |words: &str| log.lines().filter(|line| line.contains(words)).count();
    assert_eq!(
        (lines("is buried: invalid_payload"), lines("since the last such line: 149 invalid_payload")),
        (1, 1),
        "{log}"
    );
    let told = (
        "turned a request away: no_matching_signature",
        "since the last such line: 49 no_matching_signature",
    );
    assert_eq!((lines(told.0), lines(told.1)), (1, 1), "{log}");
    assert!(!log.contains("user_1"), "{log}");
}
