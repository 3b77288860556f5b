//! `headcount sync` as real processes against a stand-in for Clerk's API: what it repairs, what it counts, what it survives, and
//! when it deletes nobody.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::{
    process::{Child, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use headcount::{
    clerk::{
        made_up::{self, Person},
        stand_in::{Cursor, Wrong},
    },
    secret::Secret,
    time::now,
};
use serde_json::Value;
use support::{
    PATIENCE,
    clerk::{HOUR, differences, populate, stand_in, user},
    eventually,
    process::{Backends, Process, World},
    servers::Server,
};

/// Runs each test on the embedded default, and on RabbitMQ with PostgreSQL.
macro_rules! on_both {
    ($($test:ident)+) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(crate::Backends::Embedded).await;
            })+
        }
        mod servers {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(crate::Backends::RabbitPostgres).await;
            })+
        }
    };
}

on_both! {
    an_empty_table_equals_clerk_after_a_sync_while_webhooks_arrive
    a_sync_killed_at_any_page_goes_on_and_counts_each_user_once
    drift_of_every_kind_is_found_and_repaired_while_users_change
    a_dry_run_changes_nothing_and_tells_by_its_exit_code
    single_users_are_brought_in_step_and_told_what_changed
    who_is_deleted_here_and_lives_in_clerk_is_revived_only_on_request
    more_gone_than_may_be_deleted_deletes_nobody
    another_instances_key_changes_nothing
    whatever_answers_wrongly_deletes_nobody_and_is_named
    a_user_that_cannot_be_read_is_reported_and_the_rest_goes_on
    without_a_cursor_everybody_is_read_all_the_same
    the_whole_object_is_kept_and_filled_in_by_a_sync
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn report(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", text(output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(output)))
}

/// The counts of a report, without those that are 0.
fn counted(report: &Value) -> Vec<(&'static str, u64)> {
    const NAMES: [&str; 9] = [
        "clerk",
        "in_step",
        "missing",
        "outdated",
        "different",
        "gone",
        "buried_alive",
        "repaired",
        "failed",
    ];
    let counts =
        NAMES.map(|name| (name, report[name].as_u64().unwrap_or_else(|| panic!("{name}: {report}"))));
    counts.into_iter().filter(|(_, users)| *users > 0).collect()
}

/// It failed so: the error and a hint hold these words.
fn fails(output: &Output, code: i32, error: &str, hint: &str) {
    let said = text(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    let line =
        |mark: &str, words: &str| said.lines().any(|line| line.starts_with(mark) && line.contains(words));
    assert!(line("error: ", error), "no error about {error:?}: {said}");
    assert!(line("hint: ", hint), "no hint about {hint:?}: {said}");
}

/// Starts a process; returns once it has made the tables.
async fn up(world: &World) -> Process {
    let process = world.start(&["up"]);
    let store = world.store().await;
    eventually("the tables are made", async || store.check_schema().await.is_ok()).await;
    store.close().await;
    process
}

/// Runs it beside the test, which may answer for Clerk meanwhile.
async fn run(world: &Arc<World>, arguments: &[&str]) -> Output {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let world = Arc::clone(world);
    let run = tokio::task::spawn_blocking(move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        world.run(&arguments)
    });
    run.await.unwrap()
}

async fn sync(world: &Arc<World>, options: &[&str]) -> Output {
    let arguments: Vec<&str> = ["sync", "--rate", "1000", "--yes"].iter().chain(options).copied().collect();
    run(world, &arguments).await
}

async fn synced(world: &Arc<World>, options: &[&str]) -> Value {
    let options: Vec<&str> = options.iter().copied().chain(["--json"]).collect();
    report(&sync(world, &options).await)
}

/// What a sync would still repair.
async fn drift(world: &Arc<World>) -> Vec<(&'static str, u64)> {
    let found = counted(&synced(world, &["--dry-run"]).await);
    found.into_iter().filter(|(name, _)| !["clerk", "in_step"].contains(name)).collect()
}

async fn clean_up(world: Arc<World>) {
    Arc::into_inner(world).expect("nobody uses it any more").clean_up().await;
}

async fn an_empty_table_equals_clerk_after_a_sync_while_webhooks_arrive(backends: Backends) {
    let mut world = World::new(backends);
    let stand_in = stand_in(&mut world).await;
    let clerk = stand_in.world().clone();
    populate(&clerk, 2_345);
    clerk.faults(|faults| faults.quota = Some(1_000));
    let process = up(&world).await;
    let world = Arc::new(world);

    // Users change while the pages are read, and their webhooks arrive.
    let (poster, busy) = (process.poster(), Arc::new(AtomicBool::new(true)));
    let traffic = tokio::spawn({
        let (clerk, busy) = (clerk.clone(), Arc::clone(&busy));
        async move {
            for n in 0.. {
                if !busy.load(SeqCst) {
                    return n;
                }
                let person = match n % 3 {
                    0 => {
                        clerk.sign_up(&format!("user_new{n:05}"), now());
                        clerk.person(&format!("user_new{n:05}"))
                    }
                    _ => clerk.change(&user(n * 37 % 2_345), now(), |person| {
                        person.first_name = Some(format!("Changed {n}"));
                    }),
                };
                let person = person.unwrap();
                let kind = if n % 3 == 0 { "user.created" } else { "user.updated" };
                let body = person.event(kind, person.updated_at);
                let answer = poster.post(&format!("msg_{n}"), body.into()).await;
                assert!(answer.is_ok_and(|status| status.is_success()));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            0
        }
    });
    let found = synced(&world, &[]).await;
    busy.store(false, SeqCst);
    assert!(traffic.await.unwrap() > 0);
    assert!(found["clerk"].as_u64().unwrap() >= 2_345, "{found}");
    assert!(found["missing"].as_u64().unwrap() <= 2_345, "{found}");
    assert_eq!((found["gone"].as_u64(), found["failed"].as_u64()), (Some(0), Some(0)), "{found}");

    world.until_drained().await;
    assert_eq!(differences(&clerk, &world.users().await), [""; 0]);
    let again = synced(&world, &["--dry-run", "--exit-code"]).await;
    let users = clerk.count() as u64;
    assert_eq!(counted(&again), [("clerk", users), ("in_step", users)]);
    process.stop();
    clean_up(world).await;
}

/// Starts a sync, and returns it with a flag that turns true once Clerk was asked for so many pages.
fn begin(world: &World, clerk: &headcount::clerk::stand_in::World, pages: u64) -> (Child, Arc<AtomicBool>) {
    let (reached, asked) = (Arc::new(AtomicBool::new(false)), AtomicU64::new(0));
    clerk.before_each({
        let reached = Arc::clone(&reached);
        move |_, path| {
            let is_page = path.starts_with("/v1/users?");
            if is_page && asked.fetch_add(1, SeqCst) + 1 >= pages {
                reached.store(true, SeqCst);
            }
        }
    });
    (world.spawn(&["sync", "--rate", "1000", "--yes", "--json"]), reached)
}

async fn a_sync_killed_at_any_page_goes_on_and_counts_each_user_once(backends: Backends) {
    const USERS: usize = 3_210;
    let mut world = World::new(backends);
    let stand_in = stand_in(&mut world).await;
    let clerk = stand_in.world();
    populate(clerk, USERS);
    let process = up(&world).await;
    let world = Arc::new(world);
    // Each kill costs the half minute after which the lease ends.
    let soak = std::env::var_os("SOAK").is_some();
    for pages in if soak { &[1, 3, 2, 4, 5, 6, 7][..] } else { &[3] } {
        clerk.faults(|faults| faults.delay = Duration::from_millis(30));
        let (mut killed, reached) = begin(&world, clerk, *pages);
        eventually("the page is asked for", async || reached.load(SeqCst)).await;
        killed.kill().unwrap();
        killed.wait().unwrap();
    }
    clerk.before_each(|_, _| {});
    clerk.faults(|faults| faults.delay = Duration::ZERO);
    // The killed run's lease ends within half a minute.
    let begun = Instant::now();
    let output = sync(&world, &["--json"]).await;
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    let found = report(&output);
    let users = USERS as u64;
    let sum: u64 = ["in_step", "missing"].iter().map(|name| found[*name].as_u64().unwrap()).sum();
    assert_eq!((found["clerk"].as_u64(), sum), (Some(users), users), "{found}");
    assert_eq!(found["failed"], 0, "{found}");
    assert_eq!(differences(clerk, &world.users().await), [""; 0]);
    assert_eq!(drift(&world).await, []);
    process.stop();
    clean_up(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_worker_broker_and_database_killed_the_end_is_the_same() {
    const USERS: usize = 2_600;
    let (mut broker, mut database) = (Server::rabbitmq(), Server::postgres());
    let mut world = World::on(Some(broker.url()), Some(database.url()));
    let stand_in = stand_in(&mut world).await;
    let clerk = stand_in.world().clone();
    populate(&clerk, USERS);
    let mut worker = up(&world).await;
    let world = Arc::new(world);
    clerk.faults(|faults| faults.delay = Duration::from_millis(300));
    let (child, reached) = begin(&world, &clerk, 2);
    eventually("a page is asked for", async || reached.load(SeqCst)).await;
    worker.kill();
    broker.kill();
    database.kill();
    tokio::time::sleep(Duration::from_secs(2)).await;
    database.start();
    broker.start();
    worker = world.start(&["up"]);
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    let found = report(&output);
    let users = USERS as u64;
    assert_eq!((found["clerk"].as_u64(), found["failed"].as_u64()), (Some(users), Some(0)), "{found}");
    world.until_drained().await;
    assert_eq!(differences(&clerk, &world.users().await), [""; 0]);
    assert_eq!(drift(&world).await, []);
    worker.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_worker_a_sync_says_so_and_goes_on_once_there_is_one() {
    let mut world = World::new(Backends::Embedded);
    let stand_in = stand_in(&mut world).await;
    populate(stand_in.world(), 10);
    assert_eq!(world.run(&["migrate"]).status.code(), Some(0));
    let (child, reached) = begin(&world, stand_in.world(), 3);
    eventually("all pages are asked for", async || reached.load(SeqCst)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let process = up(&world).await;
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(counted(&report(&output)), [("clerk", 10), ("missing", 10), ("repaired", 10)]);
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("no worker takes messages"),
        "{}",
        text(&output)
    );
    process.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_syncs_at_once_one_works_and_the_other_says_who() {
    let mut world = World::new(Backends::Embedded);
    let stand_in = stand_in(&mut world).await;
    let clerk = stand_in.world();
    populate(clerk, 1_200);
    clerk.faults(|faults| faults.delay = Duration::from_secs(5));
    let process = up(&world).await;
    let (first, reached) = begin(&world, clerk, 1);
    eventually("the first one reads", async || reached.load(SeqCst)).await;
    clerk.faults(|faults| faults.delay = Duration::ZERO);
    let world = Arc::new(world);
    clerk.before_each(|clerk, _| clerk.faults(|faults| faults.delay = Duration::from_millis(2_500)));
    let second = sync(&world, &[]).await;
    if second.status.code() == Some(0) {
        // The first one was done before its lease had to be renewed.
        assert!(text(&second).contains("another sync holds the lease"), "{}", text(&second));
    } else {
        fails(&second, 1, "another sync is running: headcount sync, process", "headcount status");
    }
    let output = tokio::task::spawn_blocking(move || first.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(report(&output)["missing"], 1_200);
    process.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_changed_a_moment_ago_is_counted_once_and_is_no_drift_within_the_grace() {
    let mut world = World::new(Backends::Embedded);
    let stand_in = stand_in(&mut world).await;
    let clerk = stand_in.world();
    (0..7).for_each(|n| clerk.sign_up(&user(n), now() - 1000));
    world.set("HEADCOUNT_WATCH_GRACE", "0s");
    let process = up(&world).await;
    let world = Arc::new(world);
    let found = counted(&synced(&world, &["--dry-run"]).await);
    assert_eq!(found, [("clerk", 7), ("missing", 7)]);
    process.stop();
    let mut patient = Arc::into_inner(world).unwrap();
    patient.unset("HEADCOUNT_WATCH_GRACE");
    let process = up(&patient).await;
    let world = Arc::new(patient);
    assert_eq!(counted(&synced(&world, &["--dry-run"]).await), [("clerk", 7), ("in_step", 7)]);
    // They are brought in step all the same.
    assert_eq!(counted(&synced(&world, &[]).await), [("clerk", 7), ("in_step", 7)]);
    assert_eq!(differences(clerk, &world.users().await), [""; 0]);
    process.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_run_only_waited_for_is_not_taken_for_the_next_run() {
    let mut world = World::new(Backends::Embedded);
    let stand_in = stand_in(&mut world).await;
    let clerk = stand_in.world();
    populate(clerk, 10);
    assert_eq!(world.run(&["migrate"]).status.code(), Some(0));
    // Without a worker it waits. Then it is interrupted, and the world goes on.
    let mut waiting = world.spawn(&["sync", "--rate", "1000", "--yes", "--no-deletions"]);
    let store = world.store().await;
    eventually("it waits", async || {
        store.runs(1).await.unwrap().first().is_some_and(|run| run.phase.starts_with("waiting"))
    })
    .await;
    signal(&waiting, "INT");
    assert_eq!(waiting.wait().unwrap().code(), Some(1));
    clerk.delete(&user(0));
    clerk.sign_up("user_new", now() - HOUR);
    store.close().await;
    let process = up(&world).await;
    world.until_drained().await;
    let world = Arc::new(world);
    let found = counted(&synced(&world, &[]).await);
    assert_eq!(found, [("clerk", 10), ("in_step", 9), ("missing", 1), ("gone", 1), ("repaired", 2)]);
    assert_eq!(differences(clerk, &world.users().await), [""; 0]);
    process.stop();
}

fn signal(child: &Child, name: &str) {
    let status =
        std::process::Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(status.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_whom_a_long_run_repairs_is_counted() {
    let mut world = World::new(Backends::Embedded);
    let stand_in = stand_in(&mut world).await;
    populate(stand_in.world(), 4_000);
    let process = up(&world).await;
    let world = Arc::new(world);
    let found = counted(&synced(&world, &[]).await);
    assert_eq!(found, [("clerk", 4_000), ("missing", 4_000), ("repaired", 4_000)]);
    process.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_be_asked_takes_no_instance_that_knows_nobody_here() {
    let mut world = World::new(Backends::Embedded);
    let stand_in = stand_in(&mut world).await;
    let clerk = stand_in.world();
    populate(clerk, 3);
    let process = up(&world).await;
    // Of an older headcount: nobody has noted whose they are.
    for n in 0..5 {
        let body = Person::of(format!("user_ours{n}"), now()).event("user.created", now());
        process.poster().post(&format!("msg_{n}"), body.into()).await.unwrap();
    }
    world.until_drained().await;
    let world = Arc::new(world);
    for yes in [&["sync"][..], &["sync", "--yes"]] {
        fails(&run(&world, yes).await, 1, "which is not empty", "--adopt-instance");
    }
    let users = world.users().await;
    assert_eq!(users.iter().filter(|row| row.deleted_at.is_none()).count(), 5);
    process.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupt_is_heard_while_clerk_does_not_answer() {
    let mut world = World::new(Backends::Embedded);
    let stand_in = stand_in(&mut world).await;
    let clerk = stand_in.world();
    populate(clerk, 3);
    assert_eq!(world.run(&["migrate"]).status.code(), Some(0));
    clerk.faults(|faults| faults.wrong = Some(Wrong::Hang));
    for arguments in [&["sync", "--yes"][..], &["sync", "--yes", "user_00000"]] {
        let before = clerk.asked("/v1/instance");
        let mut child = world.spawn(arguments);
        eventually("Clerk is asked", async || clerk.asked("/v1/instance") > before).await;
        signal(&child, "INT");
        let begun = Instant::now();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{arguments:?}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{arguments:?}: {:?}", begun.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_unknown_to_clerk_once_and_known_again_is_not_deleted() {
    let mut world = World::new(Backends::Embedded);
    let stand_in = stand_in(&mut world).await;
    let clerk = stand_in.world().clone();
    populate(&clerk, 5);
    let process = up(&world).await;
    let world = Arc::new(world);
    synced(&world, &[]).await;
    // The first answer comes from a server that is behind.
    let gone = clerk.delete(&user(2)).unwrap();
    clerk.before_each({
        let asked = AtomicU64::new(0);
        move |clerk, path| {
            if path.starts_with("/v1/users/user_00002") && asked.fetch_add(1, SeqCst) == 1 {
                clerk.insert(gone.clone());
            }
        }
    });
    let found = synced(&world, &[]).await;
    assert_eq!(found["gone"], 0, "{found}");
    assert_eq!(differences(&clerk, &world.users().await), [""; 0]);
    assert_eq!(drift(&world).await, []);
    process.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_leaves_out_many_deletes_nobody_and_asks_for_none_of_them() {
    let mut world = World::new(Backends::Embedded);
    let stand_in = stand_in(&mut world).await;
    let clerk = stand_in.world();
    populate(clerk, 300);
    let process = up(&world).await;
    let world = Arc::new(world);
    synced(&world, &[]).await;
    let few: Vec<String> = clerk.people().iter().take(50).map(|person| person.data().to_string()).collect();
    clerk.faults(|faults| {
        faults.wrong = Some(Wrong::Body(format!("[{}]", few.join(","))));
        faults.path = Some("/v1/users");
    });
    let before = clerk.asked("/v1/users/{id}");
    fails(
        &sync(&world, &["--allow-deletions", "300"]).await,
        1,
        "Clerk's list of users is not whole",
        "CLERK_API_URL",
    );
    assert_eq!(clerk.asked("/v1/users/{id}"), before);
    assert!(world.users().await.iter().all(|row| row.deleted_at.is_none()));
    process.stop();
}

/// Users by what is done to them, of each kind so many.
const EACH: usize = 4;

async fn drift_of_every_kind_is_found_and_repaired_while_users_change(backends: Backends) {
    const USERS: usize = 700;
    let mut world = World::new(backends);
    let stand_in = stand_in(&mut world).await;
    let clerk = stand_in.world().clone();
    populate(&clerk, USERS);
    let process = up(&world).await;
    let world = Arc::new(world);
    synced(&world, &[]).await;
    assert_eq!(differences(&clerk, &world.users().await), [""; 0]);

    let mut next = 0..USERS;
    let mut some = || -> Vec<String> { next.by_ref().take(EACH).map(user).collect() };
    let list = |ids: &[String]| ids.iter().map(|id| format!("'{id}'")).collect::<Vec<_>>().join(", ");
    // Webhooks that never came.
    let (outdated, gone) = (some(), some());
    for id in &outdated {
        clerk.change(id, now() - HOUR / 2, |person| person.banned = true);
    }
    gone.iter().for_each(|id| drop(clerk.delete(id)));
    for n in 0..EACH {
        clerk.sign_up(&format!("user_lost{n}"), now() - HOUR / 2);
    }
    // Rows that somebody edited or removed.
    let removed = some();
    world.sql(&format!("DELETE FROM users WHERE clerk_id IN ({})", list(&removed))).await;
    let edits = [
        "first_name = 'Edited'",
        "email = NULL",
        "email = 'somebody@else.example'",
        "banned = NULL",
        "public_metadata = '{\"edited\":true}'",
        "clerk_email = 'other@example.com', email_key = 'other@example.com', email = NULL",
        "clerk_updated_at = NULL",
    ];
    for edit in edits {
        let edited = some();
        // One each where an address has to stay unique.
        world.sql(&format!("UPDATE users SET {edit} WHERE clerk_id = '{}'", edited[0])).await;
    }
    let signed_in = some();
    for id in &signed_in {
        let at = clerk.person(id).unwrap().updated_at;
        clerk.change(id, at, |person| person.last_sign_in_at = Some(at + 5));
    }
    // Deleted here by mistake.
    let buried = some();
    let store = world.store().await;
    drop(store);
    for (n, id) in buried.iter().enumerate() {
        let body = clerk.person(id).unwrap().event("user.deleted", now() - HOUR / 2);
        process.poster().post(&format!("msg_buried{n}"), body.into()).await.unwrap();
    }
    world.until_drained().await;

    // And users go on changing meanwhile, with their webhooks.
    let busy = Arc::new(AtomicBool::new(true));
    let poster = process.poster();
    let traffic = tokio::spawn({
        let (clerk, busy) = (clerk.clone(), Arc::clone(&busy));
        async move {
            for n in 0.. {
                if !busy.load(SeqCst) {
                    return;
                }
                let changed = clerk.change(&user(USERS - 1 - n % 300), now(), |person| {
                    person.last_name = Some(format!("Changed {n}"));
                });
                let person = changed.unwrap();
                poster
                    .post(&format!("msg_c{n}"), person.event("user.updated", person.updated_at).into())
                    .await
                    .unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    let each = EACH as u64;
    let found = synced(&world, &["--allow-deletions", "4", "--verbose"]).await;
    busy.store(false, SeqCst);
    traffic.await.unwrap();
    let expected = [
        ("missing", 2 * each),
        ("outdated", each),
        ("different", edits.len() as u64),
        ("gone", each),
        ("buried_alive", each),
        ("failed", 0),
        ("repaired", 4 * each + edits.len() as u64),
    ];
    for (name, users) in expected {
        assert_eq!(found[name].as_u64(), Some(users), "{name}: {found}");
    }

    world.until_drained().await;
    let left: Vec<String> = differences(&clerk, &world.users().await);
    let buried_left: Vec<String> = buried.iter().map(|id| format!("{id} is missing")).collect();
    assert_eq!(left, buried_left, "all but those who are deleted here");
    assert_eq!(drift(&world).await, [("buried_alive", each)]);
    let revived = synced(&world, &["--revive"]).await;
    assert_eq!((&revived["buried_alive"], &revived["repaired"]), (&each.into(), &each.into()));
    assert_eq!(differences(&clerk, &world.users().await), [""; 0]);
    assert_eq!(drift(&world).await, []);
    process.stop();
    clean_up(world).await;
}

async fn a_dry_run_changes_nothing_and_tells_by_its_exit_code(backends: Backends) {
    let mut world = World::new(backends);
    let stand_in = stand_in(&mut world).await;
    populate(stand_in.world(), 5);
    let process = up(&world).await;
    let world = Arc::new(world);
    let output = sync(&world, &["--dry-run", "--verbose", "--exit-code"]).await;
    fails(&output, 1, "5 users differ", "headcount sync");
    let said = text(&output);
    assert!(said.contains("user_00000: missing") && said.contains("this was a dry run"), "{said}");
    assert!(!said.contains('@'), "an address: {said}");
    assert!(world.users().await.is_empty());
    let found = synced(&world, &["--dry-run"]).await;
    assert_eq!(counted(&found), [("clerk", 5), ("missing", 5)]);
    assert_eq!(found["dry_run"], true);
    assert_eq!(found["instance"], stand_in.world().instance());
    assert_eq!(counted(&synced(&world, &[]).await), [("clerk", 5), ("missing", 5), ("repaired", 5)]);
    let output = sync(&world, &["--dry-run", "--exit-code"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    process.stop();
    clean_up(world).await;
}

async fn single_users_are_brought_in_step_and_told_what_changed(backends: Backends) {
    let mut world = World::new(backends);
    let stand_in = stand_in(&mut world).await;
    let clerk = stand_in.world();
    populate(clerk, 3);
    let process = up(&world).await;
    let world = Arc::new(world);
    let said = text(&sync(&world, &["user_00000"]).await);
    assert!(said.contains("user_00000: missing") && said.contains("; created"), "{said}");
    let said = text(&sync(&world, &["user_00000"]).await);
    assert!(said.contains("user_00000: in step"), "{said}");

    // By address, which only Clerk knows; by our id; and who is gone.
    let address = clerk.person(&user(1)).unwrap().email.unwrap();
    let said = text(&sync(&world, &[&address]).await);
    assert!(said.contains("user_00001: missing") && said.contains("; created"), "{said}");
    let ours = world.users().await.into_iter().find(|row| row.clerk_id == user(0)).unwrap().id;
    clerk.change(&user(0), now() - 1000, |person| person.locked = true);
    let found = synced(&world, &[&ours.to_string()]).await;
    assert_eq!(counted(&found), [("clerk", 1), ("outdated", 1), ("repaired", 1)], "{found}");
    assert_eq!(
        (&found["users"][0]["standing"], &found["users"][0]["outcome"]),
        (&"outdated".into(), &"updated".into())
    );
    clerk.delete(&user(1));
    let said = text(&sync(&world, &[&address]).await);
    assert!(said.contains("user_00001: gone; deleted"), "{said}");
    assert!(world.users().await.iter().any(|row| row.clerk_id == user(1) && row.deleted_at.is_some()));

    fails(&sync(&world, &["user_nobody"]).await, 1, "neither Clerk nor this table", "Clerk id");
    process.stop();
    clean_up(world).await;
}

async fn who_is_deleted_here_and_lives_in_clerk_is_revived_only_on_request(backends: Backends) {
    let mut world = World::new(backends);
    let stand_in = stand_in(&mut world).await;
    let clerk = stand_in.world();
    populate(clerk, 3);
    let process = up(&world).await;
    let world = Arc::new(world);
    synced(&world, &[]).await;
    let row = |users: &[headcount::store::User], n| {
        users.iter().find(|row| row.clerk_id == user(n)).map(|row| (row.id, row.deleted_at.is_some()))
    };
    let before = row(&world.users().await, 0).unwrap().0;
    // One by a webhook; one that was never seen: remembered as deleted.
    for (n, id) in [user(0), "user_late".to_owned()].into_iter().enumerate() {
        let body = Person::of(&*id, now()).event("user.deleted", now() - 1000);
        process.poster().post(&format!("msg_{n}"), body.into()).await.unwrap();
    }
    clerk.sign_up("user_late", now() - HOUR);
    world.until_drained().await;
    let found = synced(&world, &[]).await;
    assert_eq!(counted(&found), [("clerk", 4), ("in_step", 2), ("buried_alive", 2)]);
    let said = text(&sync(&world, &[&user(0)]).await);
    assert!(said.contains("buried alive") && said.contains("--revive"), "{said}");
    assert_eq!(row(&world.users().await, 0), Some((before, true)));

    let said = text(&sync(&world, &[&user(0), "--revive"]).await);
    assert!(said.contains("user_00000: buried alive") && said.contains("; revived"), "{said}");
    assert_eq!(row(&world.users().await, 0), Some((before, false)), "with the old row");
    let found = synced(&world, &["--revive"]).await;
    assert_eq!(counted(&found), [("clerk", 4), ("in_step", 3), ("buried_alive", 1), ("repaired", 1)]);
    assert_eq!(differences(clerk, &world.users().await), [""; 0]);
    let shown = text(&run(&world, &["users", "show", "user_late"]).await);
    assert!(shown.contains("headcount.user") && shown.contains("revived"), "{shown}");
    process.stop();
    clean_up(world).await;
}

async fn more_gone_than_may_be_deleted_deletes_nobody(backends: Backends) {
    let mut world = World::new(backends);
    let stand_in = stand_in(&mut world).await;
    let clerk = stand_in.world();
    populate(clerk, 30);
    let process = up(&world).await;
    let world = Arc::new(world);
    synced(&world, &[]).await;
    (0..4).for_each(|n| drop(clerk.delete(&user(n))));
    let live = async || world.users().await.iter().filter(|row| row.deleted_at.is_none()).count();
    fails(
        &sync(&world, &[]).await,
        1,
        "4 of 30 live users are gone from Clerk, and only 3",
        "--allow-deletions 4",
    );
    assert_eq!(live().await, 30);
    assert_eq!(counted(&synced(&world, &["--no-deletions"]).await), [("clerk", 26), ("in_step", 26)]);
    let found = synced(&world, &["--dry-run"]).await;
    assert_eq!((found["gone"].as_u64(), live().await), (Some(4), 30), "{found}");
    let found = synced(&world, &["--allow-deletions", "4"]).await;
    assert_eq!(counted(&found), [("clerk", 26), ("in_step", 26), ("gone", 4), ("repaired", 4)]);
    assert_eq!(live().await, 26);

    // Everybody, though few: also an empty answer deletes nobody.
    (4..28).for_each(|n| drop(clerk.delete(&user(n))));
    synced(&world, &["--allow-deletions", "24"]).await;
    assert_eq!(live().await, 2);
    [28, 29].into_iter().for_each(|n| drop(clerk.delete(&user(n))));
    fails(&sync(&world, &[]).await, 1, "all 2 live users are gone", "--allow-deletions 2");
    assert_eq!(live().await, 2);
    synced(&world, &["--allow-deletions", "2"]).await;
    assert_eq!(live().await, 0);
    process.stop();
    clean_up(world).await;
}

async fn another_instances_key_changes_nothing(backends: Backends) {
    let mut world = World::new(backends);
    let stand_in = stand_in(&mut world).await;
    let clerk = stand_in.world();
    populate(clerk, 3);
    let process = up(&world).await;
    // The table learns whose it is from the first webhook.
    let person = clerk.person(&user(0)).unwrap();
    // What `headcount send` makes up says nothing about that.
    clerk.set_instance("ins_ours");
    for (id, instance) in [("msg_0", made_up::INSTANCE), ("msg_1", "ins_ours")] {
        let body = person.event_of(instance, "user.created", person.created_at);
        process.poster().post(id, body.into()).await.unwrap();
    }
    let mut world = world;
    world.until_drained().await;
    let store = world.store().await;
    eventually("the instance is learned", async || {
        store.instances().await.unwrap().iter().any(|row| row.owner && row.instance_id == clerk.instance())
    })
    .await;
    store.close().await;
    clerk.set_instance("ins_another");
    world.set("HEADCOUNT_CLERK_INSTANCE", "");
    let world = Arc::new(world);
    let output = sync(&world, &[]).await;
    fails(
        &output,
        1,
        "of the Clerk instance ins_another, and this table belongs to ins_ours",
        "--adopt-instance",
    );
    fails(&sync(&world, &[&user(0)]).await, 1, "ins_another", "CLERK_SECRET_KEY");
    assert_eq!(world.users().await.len(), 1);
    // A look at it changes nothing of whose the table is.
    assert_eq!(synced(&world, &["--adopt-instance", "--dry-run"]).await["missing"], 2);
    fails(&sync(&world, &["--dry-run"]).await, 1, "ins_another", "CLERK_SECRET_KEY");
    // A person may say so.
    let found = synced(&world, &["--adopt-instance"]).await;
    assert_eq!((&found["instance"], found["missing"].as_u64()), (&"ins_another".into(), Some(2)));
    process.stop();
    clean_up(world).await;
}

async fn whatever_answers_wrongly_deletes_nobody_and_is_named(backends: Backends) {
    let mut world = World::new(backends);
    let stand_in = stand_in(&mut world).await;
    let clerk = stand_in.world();
    populate(clerk, 3);
    let process = up(&world).await;
    let mut world = world;
    let arc = Arc::new(world);
    synced(&arc, &[]).await;
    (0..3).for_each(|n| drop(clerk.change(&user(n), now() - HOUR / 2, |person| person.banned = true)));
    let list = Some("/v1/users");
    for (wrong, path, error, hint) in [
        (
            Wrong::Page,
            None,
            "does not answer as Clerk's API does: it answered 200 with a web page",
            "CLERK_API_URL",
        ),
        (
            Wrong::Redirect("https://login.example/".into()),
            None,
            "it redirects (302) to login.example",
            "proxy",
        ),
        (
            Wrong::Body("[]".into()),
            Some("/v1/instance"),
            "does not answer as Clerk's API does",
            "CLERK_API_URL",
        ),
        (Wrong::Body("{}".into()), list, "does not answer as Clerk's API does", "CLERK_API_URL"),
        (
            Wrong::Body("[]".into()),
            list,
            "Clerk's list of users is empty, though it counts 3 users",
            "CLERK_API_URL",
        ),
        (Wrong::Body("[{\"id\":".into()), list, "its answer ends too early", "CLERK_API_URL"),
        (Wrong::Limited(100_000), None, "limits requests: it answered 429", "quota"),
    ] {
        clerk.faults(|faults| (faults.wrong, faults.path) = (Some(wrong.clone()), path));
        fails(&sync(&arc, &[]).await, 1, error, hint);
    }
    clerk.faults(|faults| (faults.wrong, faults.path) = (None, None));
    let users = arc.users().await;
    assert!(users.iter().all(|row| row.deleted_at.is_none() && row.banned == Some(false)), "{users:?}");

    // A key that Clerk refuses, one that is none, and a list that does not end.
    world = Arc::into_inner(arc).unwrap();
    world.set("CLERK_SECRET_KEY", "sk_live_wrong");
    let arc = Arc::new(world);
    fails(&sync(&arc, &[]).await, 1, "refuses the key: it answered 401", "secret key");
    world = Arc::into_inner(arc).unwrap();
    world.set("CLERK_SECRET_KEY", "pk_live_Y2xlcmsuZXhhbXBsZS5jb20k");
    let arc = Arc::new(world);
    fails(&sync(&arc, &[]).await, 2, "CLERK_SECRET_KEY", "sk_");
    world = Arc::into_inner(arc).unwrap();
    world.unset("CLERK_SECRET_KEY");
    let arc = Arc::new(world);
    fails(&sync(&arc, &[]).await, 2, "CLERK_SECRET_KEY is not set", "sk_");
    world = Arc::into_inner(arc).unwrap();
    world.set("CLERK_SECRET_KEY", support::clerk::KEY);
    clerk.set_key(Secret::new(support::clerk::KEY));
    let arc = Arc::new(world);

    // Half of all requests fail: they are made again.
    clerk.faults(|faults| (faults.wrong, faults.each) = (Some(Wrong::Status(503)), 2));
    let found = synced(&arc, &[]).await;
    assert_eq!((found["outdated"].as_u64(), found["repaired"].as_u64()), (Some(3), Some(3)), "{found}");
    clerk.faults(|faults| (faults.wrong, faults.each) = (None, 1));
    assert_eq!(drift(&arc).await, []);
    process.stop();
    clean_up(arc).await;
}

async fn a_user_that_cannot_be_read_is_reported_and_the_rest_goes_on(backends: Backends) {
    let mut world = World::new(backends);
    let stand_in = stand_in(&mut world).await;
    let clerk = stand_in.world();
    populate(clerk, 5);
    let process = up(&world).await;
    let world = Arc::new(world);
    clerk.faults(|faults| {
        faults.garbled.insert(user(1), format!(r#"{{"id":"{}","email_addresses":7}}"#, user(1)));
        faults.garbled.insert(user(3), r#""nobody""#.to_owned());
    });
    let output = sync(&world, &["--json"]).await;
    assert_eq!(counted(&report(&output)), [("clerk", 5), ("missing", 3), ("repaired", 3), ("failed", 2)]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("user_00001: data.email_addresses: expected an array"), "{said}");
    assert!(said.contains("a user without a readable id"), "{said}");
    // Once they can be read again, they come; and meanwhile nobody is taken for gone.
    clerk.faults(|faults| faults.garbled.clear());
    assert_eq!(
        counted(&synced(&world, &[]).await),
        [("clerk", 5), ("in_step", 3), ("missing", 2), ("repaired", 2)]
    );
    clerk.faults(|faults| drop(faults.garbled.insert(user(1), r#""nobody""#.to_owned())));
    let output = sync(&world, &["--json"]).await;
    assert_eq!(counted(&report(&output)), [("clerk", 5), ("in_step", 4), ("failed", 2)]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("user_00001: "), "{}", text(&output));
    assert_eq!(world.users().await.iter().filter(|row| row.deleted_at.is_none()).count(), 5);
    process.stop();
    clean_up(world).await;
}

async fn without_a_cursor_everybody_is_read_all_the_same(backends: Backends) {
    let mut world = World::new(backends);
    let stand_in = stand_in(&mut world).await;
    let clerk = stand_in.world();
    populate(clerk, 1_100);
    // More than a page of one millisecond.
    let imported = now() - 2 * HOUR;
    (0..1_234).for_each(|n| clerk.sign_up(&format!("user_import{n:05}"), imported));
    let process = up(&world).await;
    let world = Arc::new(world);
    for cursor in [Cursor::Ignored, Cursor::Refused] {
        clerk.faults(|faults| faults.cursor = cursor);
        let found = counted(&synced(&world, &["--dry-run"]).await);
        assert_eq!(found, [("clerk", 2_334), ("missing", 2_334)], "{cursor:?}");
    }
    synced(&world, &[]).await;
    assert_eq!(differences(clerk, &world.users().await), [""; 0]);
    // A cursor behind a user who is deleted meanwhile.
    clerk.faults(|faults| faults.cursor = Cursor::AsDocumented);
    let deleted = AtomicBool::new(false);
    clerk.before_each(move |clerk, path| {
        if let Some((_, cursor)) = path.split_once("starting_after=")
            && !deleted.swap(true, SeqCst)
        {
            clerk.delete(cursor.split('&').next().unwrap());
        }
    });
    let found = counted(&synced(&world, &["--dry-run"]).await);
    assert_eq!(found, [("clerk", 2_334), ("in_step", 2_334)]);
    process.stop();
    clean_up(world).await;
}

async fn the_whole_object_is_kept_and_filled_in_by_a_sync(backends: Backends) {
    let mut world = World::new(backends);
    let stand_in = stand_in(&mut world).await;
    populate(stand_in.world(), 3);
    let process = up(&world).await;
    let mut world = Arc::new(world);
    synced(&world, &[]).await;
    process.stop();
    let mut kept = Arc::into_inner(world).unwrap();
    kept.set("HEADCOUNT_KEEP_CLERK_OBJECT", "true");
    let process = up(&kept).await;
    world = Arc::new(kept);
    let found = synced(&world, &["--verbose"]).await;
    assert_eq!(counted(&found), [("clerk", 3), ("different", 3), ("repaired", 3)]);
    assert_eq!(drift(&world).await, []);
    let shown = text(&run(&world, &["users", "list", "--json"]).await);
    assert!(!shown.contains("two_factor_enabled"), "{shown}");
    process.stop();
    clean_up(world).await;
}
