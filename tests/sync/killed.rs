//! Runs that are cut off: by SIGKILL at any point, with everything else too, or by an error. The next one goes on.

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use headcount::{clerk::stand_in::Wrong, store::sync::RunResult};

use crate::{
    scene::{APPLYING, Scene, counted, fails, report, said, scene, scene_in_step},
    support::{
        PATIENCE,
        clerk::user,
        eventually,
        process::{Backends, World},
        servers::Server,
    },
};

on_both! {
    a_sync_killed_at_any_page_goes_on_and_counts_each_user_once
}

const LIST: &str = "/v1/users";
const ONE: &str = "/v1/users/{id}";

async fn a_sync_killed_at_any_page_goes_on_and_counts_each_user_once(backends: Backends) {
    const USERS: usize = 3_210;
    // Each costs the half minute after which the lease ends.
    let soak = std::env::var_os("SOAK").is_some();
    for page in if soak { 1..=7 } else { 3..=3 } {
        let scene = scene(World::new(backends), USERS).await;
        killed_at(&scene, LIST, page).await;
        scene.end_lease().await;
        // And again, where it has gone on.
        killed_at(&scene, LIST, 2).await;
        let begun = Instant::now();
        let found = report(&scene.sync(&["--json"]));
        assert!(begun.elapsed() < PATIENCE, "the killed run's lease ended after {:?}", begun.elapsed());
        let users = USERS as u64;
        let sum: u64 = ["in_step", "missing"].iter().map(|name| found[*name].as_u64().unwrap()).sum();
        assert_eq!((found["clerk"].as_u64(), sum), (Some(users), users), "{found}");
        assert_eq!(found["failed"], 0, "{found}");
        scene.is_in_step().await;
        assert_eq!(scene.drift(), []);
        scene.close().await;
    }
}

/// Kills a run while it waits for the answer to its `nth` request to a path.
async fn killed_at(scene: &Scene, path: &'static str, nth: u64) {
    let before = scene.clerk.asked(path);
    scene.fail_from(path, nth, &Wrong::Hang);
    let killed = scene.begin(&[]);
    scene.until_asked(path, before, nth).await;
    killed.kill();
    scene.heal();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_killed_in_the_search_for_who_is_gone_goes_on_with_it() {
    let scene = scene_in_step(World::new(Backends::Embedded), 30).await;
    for (n, (request, phase)) in [
        (1, "searching for who is gone"),
        (3, "searching for who is gone"),
        (4, "deleting who is gone"),
        (6, "deleting who is gone"),
    ]
    .into_iter()
    .enumerate()
    {
        // Three of them, each asked for twice.
        let gone: Vec<String> = (3 * n..3 * n + 3).map(user).collect();
        gone.iter().for_each(|id| drop(scene.clerk.delete(id).unwrap()));
        killed_at(&scene, ONE, request).await;
        scene.end_lease().await;
        assert_eq!(scene.last_run().await.phase, phase);
        assert_eq!(scene.live().await, 30 - 3 * n, "nobody is deleted before all of a page are confirmed");

        let (run, pages) = (scene.last_run().await.id, scene.clerk.asked(LIST));
        let output = scene.sync(&["--json"]);
        let found = report(&output);
        let left = 27 - 3 * n as u64;
        assert_eq!(counted(&found), [("clerk", left), ("in_step", left), ("gone", 3), ("repaired", 3)]);
        assert!(said(&output).contains("going on with the sync that began at 2"), "{}", said(&output));
        assert_eq!(
            (found["run"].as_str(), scene.clerk.asked(LIST)),
            (Some(&*run.to_string()), pages),
            "nobody is read again"
        );
        scene.is_in_step().await;
    }
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_killed_while_it_waits_for_its_changes_leaves_nothing_to_do() {
    let mut scene = scene(World::new(Backends::Embedded), 10).await;
    scene.down();
    let killed = scene.begin(&[]);
    scene.until_phase(APPLYING).await;
    killed.kill();
    scene.end_lease().await;
    scene.restart().await;
    scene.world.until_drained().await;
    scene.is_in_step().await;
    assert_eq!(scene.counted(&[]), [("clerk", 10), ("in_step", 10)]);
    let store = scene.world.store().await;
    let runs = store.runs(5).await.unwrap();
    store.close().await;
    let ends: Vec<_> = runs.iter().map(|run| (run.result, run.finished_at.is_some())).collect();
    assert_eq!(ends, [(Some(RunResult::Done), true), (Some(RunResult::Done), true)]);
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_ends_a_run_and_the_next_one_goes_on_where_it_stopped() {
    let scene = scene(World::new(Backends::Embedded), 1_600).await;
    scene.fail_from(LIST, 3, &Wrong::Status(403));
    fails(&scene.sync(&[]), 1, "refuses the key: it answered 403", "CLERK_SECRET_KEY");
    let run = scene.last_run().await;
    assert_eq!((run.result, run.finished_at, run.counts.clerk), (Some(RunResult::Failed), None, 1_000));
    assert!(run.detail.unwrap().contains("refuses the key"));

    // What of the list the next one asks for.
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    scene.heal();
    scene.clerk.before_each({
        let asked = Arc::clone(&asked);
        move |_, path| {
            if path.starts_with("/v1/users?") && path.contains("order_by=created_at") {
                asked.lock().unwrap().push(path.to_owned());
            }
        }
    });
    let output = scene.sync(&["--json"]);
    let found = report(&output);
    assert_eq!(found["run"], run.id.to_string());
    assert_eq!(counted(&found), [("clerk", 1_600), ("missing", 1_600), ("repaired", 1_600)]);
    assert!(said(&output).contains("going on with the sync that began at 2"), "{}", said(&output));
    let asked = std::mem::take(&mut *asked.lock().unwrap());
    assert!(asked[0].contains("starting_after=user_00999"), "{asked:?}");
    scene.is_in_step().await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_worker_broker_and_database_killed_the_end_is_the_same() {
    const USERS: usize = 2_600;
    let (mut broker, mut database) = (Server::rabbitmq(), Server::postgres());
    let mut scene = scene(World::on(Some(broker.url()), Some(database.url())), USERS).await;
    // Two pages are read, the second one perhaps not yet taken in.
    let before = scene.clerk.asked(LIST);
    scene.fail_from(LIST, 3, &Wrong::Status(503));
    let run = scene.begin(&["--json"]);
    scene.until_asked(LIST, before, 3).await;
    scene.up.take().unwrap().kill();
    broker.kill();
    database.kill();
    scene.heal();
    eventually("it says what it waits for", async || {
        let told = run.said();
        told.lines().any(|line| {
            line.starts_with("waiting for the ")
                || (line.ends_with("; trying again") && !line.contains("answered 503"))
        })
    })
    .await;
    database.start();
    broker.start();
    scene.restart().await;
    let found = report(&run.end());
    let users = USERS as u64;
    assert_eq!((found["clerk"].as_u64(), found["failed"].as_u64()), (Some(users), Some(0)), "{found}");
    scene.world.until_drained().await;
    scene.is_in_step().await;
    assert_eq!(scene.drift(), []);
    scene.down();
}
