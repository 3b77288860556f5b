//! Dry runs: they only look.

use crate::{
    scene::{counted, fails, scene, scene_in_step, text},
    support::{
        clerk::{HOUR, stand_in, user},
        process::{Backends, World},
    },
};
use headcount::time::now;

on_both! {
    a_dry_run_changes_nothing_and_tells_by_its_exit_code
}

async fn a_dry_run_changes_nothing_and_tells_by_its_exit_code(backends: Backends) {
    let scene = scene(World::new(backends), 5).await;
    let output = scene.sync(&["--dry-run", "--verbose", "--exit-code"]);
    fails(&output, 1, "5 users differ", "headcount sync");
    let said = text(&output);
    assert!(said.contains("user_00000: missing") && said.contains("this was a dry run"), "{said}");
    assert!(!said.contains('@'), "an address: {said}");
    assert!(scene.world.users().await.is_empty());
    let found = scene.synced(&["--dry-run"]);
    assert_eq!(counted(&found), [("clerk", 5), ("missing", 5)]);
    assert_eq!(found["dry_run"], true);
    assert_eq!(found["instance"], scene.clerk.instance());
    assert_eq!(scene.counted(&[]), [("clerk", 5), ("missing", 5), ("repaired", 5)]);
    let output = scene.sync(&["--dry-run", "--exit-code"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_lives_in_clerk_and_is_deleted_here_differs_and_is_not_brought_in_step() {
    let scene = scene_in_step(World::new(Backends::Embedded), 4).await;
    let body = scene.clerk.person(&user(0)).unwrap().event("user.deleted", now() - 1000);
    scene.process().poster().post("msg_1", body.into()).await.unwrap();
    scene.world.until_drained().await;
    let look = ["--dry-run", "--exit-code"];
    fails(
        &scene.sync(&look),
        1,
        "one user differs",
        "if they are to live again here: headcount sync --revive",
    );
    scene.clerk.change(&user(1), now() - HOUR / 2, |person| person.banned = true);
    fails(
        &scene.sync(&look),
        1,
        "2 users differ",
        "headcount sync, with --revive for those who are buried alive",
    );
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_needs_no_queue_and_makes_none() {
    let mut world = World::new(Backends::Embedded);
    let stand_in = stand_in(&mut world).await;
    stand_in.world().sign_up(&user(0), now() - HOUR);
    assert!(world.run(&["migrate"]).status.success());
    for arguments in [&["sync", "--dry-run"][..], &["sync", "--dry-run", "user_00000"]] {
        let output = world.run(arguments);
        assert!(output.status.success() && text(&output).contains("missing"), "{}", text(&output));
    }
    let queue = world.directory.path().join("data/queue.db");
    assert!(!queue.exists());
    // The same where the queue is a broker that is down.
    world.set("AMQP_URL", "amqp://127.0.0.1:1");
    for arguments in [&["sync", "--dry-run"][..], &["sync", "--dry-run", "user_00000"]] {
        let output = world.run(arguments);
        assert!(output.status.success() && text(&output).contains("missing"), "{}", text(&output));
    }
}
