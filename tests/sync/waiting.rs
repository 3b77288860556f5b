//! What a run waits for: it says so, hears an interrupt meanwhile, and goes on once it can.

use std::time::{Duration, Instant};

use headcount::{
    clerk::stand_in::Wrong,
    store::sync::{Holder, Taken},
    sync::LEASE,
    time::now,
};

use crate::{
    scene::{APPLYING, Scene, counted, fails, printed, report, said, scene, scene_in_step, text},
    support::{
        PATIENCE,
        clerk::{HOUR, user},
        eventually,
        process::{Backends, World},
        proxy::Proxy,
        running::Running,
        servers::url,
    },
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_worker_a_sync_says_so_and_goes_on_once_there_is_one() {
    let mut scene = scene(World::new(Backends::Embedded), 10).await;
    scene.down();
    let run = scene.begin(&["--json"]);
    scene.until_phase(APPLYING).await;
    run.until("no worker takes messages").await;
    scene.restart().await;
    assert_eq!(counted(&report(&run.end())), [("clerk", 10), ("missing", 10), ("repaired", 10)]);
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_no_worker_helps_ends_after_a_minute() {
    let mut scene = scene(World::new(Backends::Embedded), 10).await;
    scene.down();
    fails(&scene.sync(&[]), 1, "no worker takes messages: 10 wait in the queue", "headcount worker");
    // Nothing is lost.
    scene.restart().await;
    scene.world.until_drained().await;
    scene.is_in_step().await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_and_not_applied_is_no_success() {
    let mut scene = scene(World::new(Backends::Embedded), 10).await;
    // Two are tried again after an hour.
    scene.world.set("HEADCOUNT_RETRY_DELAYS", "1h");
    let guard = "CREATE TRIGGER guard BEFORE INSERT ON users WHEN NEW.clerk_id IN ('user_00003', 'user_00007') \
                 BEGIN SELECT RAISE(ABORT, 'nobody'); END";
    scene.world.sql(guard).await;
    scene.restart().await;
    let output = scene.sync(&["--json"]);
    fails(&output, 1, "2 changes were published, and not applied", "headcount status");
    let found = printed(&output);
    assert_eq!(counted(&found), [("clerk", 10), ("missing", 10), ("repaired", 8)]);
    let note = found["notes"][0].as_str().unwrap();
    assert!(note.starts_with("2 changes are not applied yet, and tried again"), "{note}");
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_does_not_wait_is_told_what_was_published() {
    let mut scene = scene(World::new(Backends::Embedded), 10).await;
    scene.down();
    let output = scene.sync(&["--no-wait"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(lines.contains("\nrepaired        0\npublished       10  (not waited for)\n"), "{lines}");
    scene.restart().await;
    scene.world.until_drained().await;
    scene.is_in_step().await;
    // Where nothing is published, nothing is said of it.
    let lines = text(&scene.sync(&["--no-wait"]));
    assert!(lines.contains("in step         10") && !lines.contains("published"), "{lines}");
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_run_only_waited_for_is_not_taken_for_the_next_run() {
    let mut scene = scene(World::new(Backends::Embedded), 10).await;
    scene.down();
    // Without a worker it waits. Then it is interrupted, and the world goes on.
    let waiting = scene.begin(&["--no-deletions"]);
    scene.until_phase(APPLYING).await;
    waiting.signal("INT");
    fails(&waiting.end(), 1, "stopped; nothing is lost", "headcount sync again");
    scene.clerk.delete(&user(0));
    scene.clerk.sign_up("user_new", now() - HOUR);
    scene.restart().await;
    scene.world.until_drained().await;
    let found = scene.counted(&[]);
    assert_eq!(found, [("clerk", 10), ("in_step", 9), ("missing", 1), ("gone", 1), ("repaired", 2)]);
    scene.is_in_step().await;
    scene.close().await;
}

const HOLDS: &str = "another sync holds the lease (somebody else, process ";

/// Takes the lease of whole runs for somebody else, or renews it.
async fn hold_lease(world: &World, holder: &Holder, hours: u64) {
    let store = world.store().await;
    let taken = store.take_lease(LEASE, holder, Duration::from_secs(3_600 * hours)).await.unwrap();
    assert_eq!(taken, Taken::Ours);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_syncs_at_once_one_works_and_the_other_says_who() {
    let scene = scene(World::new(Backends::Embedded), 10).await;
    let holder = Holder::of("somebody else");
    hold_lease(&scene.world, &holder, 1).await;
    let second = scene.begin(&[]);
    second.until(HOLDS).await;
    hold_lease(&scene.world, &holder, 2).await;
    fails(&second.end(), 1, "another sync is running: somebody else, process", "if that process was killed");
    // Whoever waits for it can be stopped.
    let third = scene.begin(&[]);
    third.until(HOLDS).await;
    third.signal("INT");
    fails(&third.end(), 1, "stopped; nothing is lost", "headcount sync again");
    assert!(scene.world.users().await.is_empty());
    scene.close().await;
}

/// A run that could not renew its lease for so long that it ended.
async fn with_its_lease_ended() -> (Scene, Running) {
    let scene = scene(World::new(Backends::Embedded), 10).await;
    scene.fail_from("/v1/users", 1, &Wrong::Status(503));
    let run = scene.begin(&["--json"]);
    run.until("answered 503").await;
    let guard = "CREATE TRIGGER guard BEFORE UPDATE ON leases BEGIN SELECT RAISE(ABORT, 'not now'); END";
    scene.world.sql(guard).await;
    let store = scene.world.store().await;
    let ended = async || store.lease(LEASE).await.unwrap().unwrap().expired;
    eventually("the lease has ended", ended).await;
    store.close().await;
    scene.world.sql("DROP TRIGGER guard").await;
    (scene, run)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_lease_ended_goes_on_where_nobody_else_had_it() {
    let (scene, run) = with_its_lease_ended().await;
    scene.heal();
    assert_eq!(counted(&report(&run.end())), [("clerk", 10), ("missing", 10), ("repaired", 10)]);
    scene.is_in_step().await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_lease_another_took_leaves_the_work_to_it() {
    let (scene, run) = with_its_lease_ended().await;
    hold_lease(&scene.world, &Holder::of("somebody else"), 1).await;
    scene.heal();
    fails(&run.end(), 1, "another process has taken this run over", "headcount");
    assert!(scene.world.users().await.is_empty());
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_waits_for_the_end_of_one_that_is_about_to_end() {
    let scene = scene(World::new(Backends::Embedded), 10).await;
    let holder = Holder::of("somebody else");
    hold_lease(&scene.world, &holder, 1).await;
    let second = scene.begin(&["--json"]);
    second.until(HOLDS).await;
    let store = scene.world.store().await;
    store.give_lease_back(LEASE, holder.id).await.unwrap();
    store.close().await;
    assert_eq!(counted(&report(&second.end())), [("clerk", 10), ("missing", 10), ("repaired", 10)]);
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupt_is_heard_while_clerk_does_not_answer() {
    let scene = scene(World::new(Backends::Embedded), 3).await;
    scene.fail_from("/v1/instance", 1, &Wrong::Hang);
    for options in [&[][..], &["user_00000"]] {
        let run = scene.begin(options);
        run.until(" has not answered for 5s; waiting").await;
        let told = run.said();
        assert!(told.lines().any(|line| line.starts_with("127.0.0.1:")), "{told}");
        run.signal("INT");
        let begun = Instant::now();
        fails(&run.end(), 1, "stopped; nothing is lost", "headcount sync again");
        // Otherwise it would have gone on for three minutes.
        assert!(begun.elapsed() < PATIENCE, "{options:?}: {:?}", begun.elapsed());
    }
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clerk_answers_in_an_outage_is_told_at_once() {
    let scene = scene(World::new(Backends::Embedded), 3).await;
    for (wrong, told) in [
        (Wrong::Status(502), " answered 502; trying again"),
        (Wrong::Limited(1), " limits requests: it answered 429, and wants none for 1s; trying again"),
    ] {
        scene.fail_from("/v1/users", 1, &wrong);
        let run = scene.begin(&[]);
        run.until(told).await;
        let said = run.said();
        assert!(said.lines().any(|line| line.starts_with("127.0.0.1:") && line.ends_with(told)), "{said}");
        scene.heal();
        let output = run.end();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    }
    scene.is_in_step().await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_does_not_answer_is_told() {
    let proxy = Proxy::new(&url("TEST_DATABASE_URL"));
    let scene = scene_in_step(World::on(None, Some(proxy.url())), 3).await;
    scene.clerk.sign_up("user_new", now() - HOUR);
    // Once the run has begun.
    scene.fail_from("/v1/users", 1, &Wrong::Status(503));
    let run = scene.begin(&["--json"]);
    run.until("answered 503").await;
    proxy.silence_all();
    scene.heal();
    eventually("it says what it waits for", async || {
        let told = run.said();
        told.lines().any(|line| {
            line == "waiting for the database"
                || (line.ends_with("; trying again") && !line.starts_with("127.0.0.1:"))
        })
    })
    .await;
    proxy.heal();
    let output = run.end();
    assert_eq!(
        counted(&report(&output)),
        [("clerk", 4), ("in_step", 3), ("missing", 1), ("repaired", 1)],
        "{}",
        said(&output)
    );
    scene.is_in_step().await;
    scene.close().await;
}
