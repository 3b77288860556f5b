//! Who is gone from Clerk: each absence is confirmed, and where too many are gone, nobody is deleted.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use headcount::clerk::stand_in::Wrong;

use crate::{
    scene::{counted, fails, report, said, scene_in_step},
    support::{
        clerk::user,
        process::{Backends, World},
    },
};

on_both! {
    more_gone_than_may_be_deleted_deletes_nobody
}

async fn more_gone_than_may_be_deleted_deletes_nobody(backends: Backends) {
    let scene = scene_in_step(World::new(backends), 30).await;
    let clerk = &scene.clerk;
    (0..4).for_each(|n| drop(clerk.delete(&user(n))));
    fails(
        &scene.sync(&[]),
        1,
        "4 of 30 live users seem to be gone: they are not in Clerk's list, and only 3 may be deleted; nobody was deleted",
        "--allow-deletions 4",
    );
    assert_eq!(scene.live().await, 30);
    assert_eq!(scene.counted(&["--no-deletions"]), [("clerk", 26), ("in_step", 26)]);
    let found = scene.synced(&["--dry-run"]);
    assert_eq!((found["gone"].as_u64(), scene.live().await), (Some(4), 30), "{found}");
    let found = scene.counted(&["--allow-deletions", "4"]);
    assert_eq!(found, [("clerk", 26), ("in_step", 26), ("gone", 4), ("repaired", 4)]);
    assert_eq!(scene.live().await, 26);

    // Those who are too many are named, but not each is asked for.
    (4..28).for_each(|n| drop(clerk.delete(&user(n))));
    let output = scene.sync(&["--dry-run", "--verbose", "--json"]);
    let found = report(&output);
    assert_eq!(counted(&found), [("clerk", 2), ("in_step", 2), ("gone", 24)]);
    let note =
        "24 of 26 live users are not in Clerk's list: a run would delete nobody without --allow-deletions 24";
    assert!(found["notes"][0].as_str().unwrap().starts_with(note), "{found}");
    let named = |how: &str| said(&output).lines().filter(|line| line.ends_with(how)).count();
    assert_eq!((named(": gone"), named(": not in Clerk's list")), (4, 20), "{}", said(&output));
    scene.synced(&["--allow-deletions", "24"]);
    assert_eq!(scene.live().await, 2);

    // Everybody, though few: also an empty answer deletes nobody.
    [28, 29].into_iter().for_each(|n| drop(clerk.delete(&user(n))));
    fails(&scene.sync(&[]), 1, "all 2 live users seem to be gone", "--allow-deletions 2");
    assert_eq!(scene.live().await, 2);
    scene.synced(&["--allow-deletions", "2"]);
    assert_eq!(scene.live().await, 0);
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_in_a_hundred_may_be_deleted_and_not_one_more() {
    let scene = scene_in_step(World::new(Backends::Embedded), 500).await;
    let mut gone: Vec<_> = (0..6).map(|n| scene.clerk.delete(&user(n)).unwrap()).collect();
    let told = "6 of 500 live users seem to be gone: they are not in Clerk's list, and only 5 may be deleted; nobody was deleted";
    fails(&scene.sync(&[]), 1, told, "--allow-deletions 6");
    assert_eq!(scene.live().await, 500);
    scene.clerk.insert(gone.pop().unwrap());
    assert_eq!(scene.counted(&[]), [("clerk", 495), ("in_step", 495), ("gone", 5), ("repaired", 5)]);
    assert_eq!(scene.live().await, 495);
    scene.is_in_step().await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_unknown_to_clerk_once_and_known_again_is_not_deleted() {
    let scene = scene_in_step(World::new(Backends::Embedded), 5).await;
    // The first answer comes from a server that is behind.
    let gone = scene.clerk.delete(&user(2)).unwrap();
    let asked = AtomicU64::new(0);
    scene.clerk.before_each(move |clerk, path| {
        if path.starts_with("/v1/users/user_00002") && asked.fetch_add(1, SeqCst) == 1 {
            clerk.insert(gone.clone());
        }
    });
    let found = scene.synced(&[]);
    assert_eq!(found["gone"], 0, "{found}");
    scene.is_in_step().await;
    assert_eq!(scene.drift(), []);
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_leaves_out_many_deletes_nobody_and_asks_for_none_of_them() {
    let scene = scene_in_step(World::new(Backends::Embedded), 300).await;
    let few: Vec<String> =
        scene.clerk.people().iter().take(50).map(|person| person.data().to_string()).collect();
    scene.fail_from("/v1/users", 1, &Wrong::Body(format!("[{}]", few.join(","))));
    let before = scene.clerk.asked("/v1/users/{id}");
    fails(
        &scene.sync(&["--allow-deletions", "300"]),
        1,
        "Clerk's list of users is not whole",
        "CLERK_API_URL",
    );
    assert_eq!(scene.clerk.asked("/v1/users/{id}"), before);
    assert_eq!(scene.live().await, 300);
    scene.close().await;
}
