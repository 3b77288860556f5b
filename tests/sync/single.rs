//! `sync USER…`: single users.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use headcount::{clerk::made_up::Person, store::User, time::now};
use serde_json::{Value, json};

use crate::{
    scene::{Scene, counted, fails, scene, scene_in_step, text},
    support::{
        clerk::{HOUR, user},
        process::{Backends, World},
    },
};

on_both! {
    single_users_are_brought_in_step_and_told_what_changed
    who_is_deleted_here_and_lives_in_clerk_is_revived_only_on_request
}

fn told(scene: &Scene, options: &[&str]) -> String {
    let output = scene.sync(options);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    text(&output)
}

/// Of each user of a report: the Clerk id, how the table stands, and what became of what was published.
fn users(report: &Value) -> Vec<(&str, &str, Option<&str>)> {
    let users = report["users"].as_array().unwrap().iter();
    let told = users.map(|user| ["clerk_id", "standing", "outcome"].map(|name| user[name].as_str()));
    told.map(|[id, standing, outcome]| (id.unwrap_or_default(), standing.unwrap_or_default(), outcome))
        .collect()
}

async fn single_users_are_brought_in_step_and_told_what_changed(backends: Backends) {
    let scene = scene(World::new(backends), 3).await;
    let said = told(&scene, &["user_00000"]);
    assert!(said.contains("user_00000: missing") && said.contains("; created"), "{said}");
    let said = told(&scene, &["user_00000"]);
    assert!(said.contains("user_00000: in step"), "{said}");

    // By address, which only Clerk knows; by our id; and who is gone.
    let address = scene.clerk.person(&user(1)).unwrap().email.unwrap();
    let said = told(&scene, &[&address]);
    assert!(said.contains("user_00001: missing") && said.contains("; created"), "{said}");
    let ours = scene.world.users().await.into_iter().find(|row| row.clerk_id == user(0)).unwrap().id;
    scene.clerk.change(&user(0), now() - 1000, |person| person.locked = true);
    let found = scene.synced(&[&ours.to_string()]);
    assert_eq!(counted(&found), [("clerk", 1), ("outdated", 1), ("repaired", 1)], "{found}");
    assert_eq!(users(&found), [("user_00000", "outdated", Some("updated"))]);
    assert_eq!(found["users"][0]["columns"], json!(["locked", "clerk_updated_at"]));
    scene.clerk.delete(&user(1));
    let said = told(&scene, &[&address]);
    assert!(said.contains("user_00001: gone; deleted"), "{said}");
    let is_deleted = |row: &User| row.clerk_id == user(1) && row.deleted_at.is_some();
    assert!(scene.world.users().await.iter().any(is_deleted));

    fails(&scene.sync(&["user_nobody"]), 1, "neither Clerk nor this table", "Clerk id");
    assert_eq!(scene.sync(&["--dry-run", "user_00000"]).status.code(), Some(0));

    // Who asked for it, about whom, and what became of it, is in the log.
    let log = scene.world.run(&["operations", "--json", "--kind", "sync"]);
    let log: Value = serde_json::from_slice(&log.stdout).unwrap();
    let mut told: Vec<_> =
        log["operations"].as_array().unwrap().iter().filter(|row| !row["clerk_id"].is_null()).collect();
    told.reverse();
    let of = |row: &Value| ["clerk_id", "state", "detail"].map(|name| row[name].as_str().unwrap().to_owned());
    let rows: Vec<[String; 3]> = told.iter().map(|row| of(row)).collect();
    let expected = [
        ["user_00000", "complete", "missing; created"],
        ["user_00000", "complete", "in step"],
        ["user_00001", "complete", "missing; created"],
        ["user_00000", "complete", "outdated: locked, clerk_updated_at; updated"],
        ["user_00001", "complete", "gone; deleted"],
        ["user_nobody", "complete", "neither Clerk nor the table knows it"],
        ["user_00000", "complete", "in step"],
    ];
    assert_eq!(rows, expected);
    assert_eq!(told[0]["published"], 1);
    assert!(told.iter().all(|row| row["who"] == told[0]["who"] && row["ended_at"].is_string()), "{log}");
    let dry: Vec<bool> = told.iter().map(|row| row["what"]["dry_run"].as_bool().unwrap()).collect();
    assert_eq!(dry, [false, false, false, false, false, false, true]);
    assert!(!log.to_string().contains(&address), "an address is personal");
    let table = text(&scene.world.run(&["operations", "--kind", "sync"]));
    assert!(table.contains("complete, 1 of 1: missing; created"), "{table}");
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_users_are_told_of_one_by_one() {
    let scene = scene_in_step(World::new(Backends::Embedded), 4).await;
    scene.clerk.change(&user(1), now() - HOUR / 2, |person| person.banned = true);
    scene.world.sql("UPDATE users SET last_name = 'Edited' WHERE clerk_id = 'user_00002'").await;
    scene.clerk.delete(&user(3));
    let all = ["user_00000", "user_00001", "user_00002", "user_00003"];
    let found = scene.synced(&all);
    let expected = [
        ("user_00000", "in step", None),
        ("user_00001", "outdated", Some("updated")),
        ("user_00002", "different", Some("updated")),
        ("user_00003", "gone", Some("deleted")),
    ];
    assert_eq!(users(&found), expected, "{found}");
    let columns: Vec<&Value> =
        found["users"].as_array().unwrap().iter().map(|user| &user["columns"]).collect();
    assert_eq!(
        columns,
        [&json!([]), &json!(["banned", "clerk_updated_at"]), &json!(["last_name"]), &json!([])]
    );
    let counts =
        [("clerk", 3), ("in_step", 1), ("outdated", 1), ("different", 1), ("gone", 1), ("repaired", 3)];
    assert_eq!(counted(&found), counts);
    scene.is_in_step().await;

    // Whoever is named twice is told of once.
    let address = scene.clerk.person(&user(0)).unwrap().email.unwrap();
    assert_eq!(users(&scene.synced(&["user_00000", &address])), [("user_00000", "in step", None)]);

    // One who is unknown does not keep the others from being brought in step.
    scene.clerk.sign_up("user_new", now() - HOUR);
    let output = scene.sync(&["user_nobody", "user_new"]);
    fails(&output, 1, "neither Clerk nor this table", "Clerk id");
    assert!(
        text(&output).contains("user_new: missing") && text(&output).contains("; created"),
        "{}",
        text(&output)
    );
    scene.is_in_step().await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_over_single_users_changes_nothing_and_tells_by_its_exit_code() {
    let scene = scene_in_step(World::new(Backends::Embedded), 3).await;
    scene.clerk.change(&user(1), now() - HOUR / 2, |person| person.banned = true);
    scene.clerk.delete(&user(2));
    let before = scene.world.users().await;
    let said = told(&scene, &["--dry-run", &user(0), &user(1), &user(2)]);
    assert!(said.contains("user_00000: in step ("), "{said}");
    assert!(
        said.contains("user_00001: outdated: banned, clerk_updated_at (Clerk's version is of 2"),
        "{said}"
    );
    assert_eq!(said.matches("; nothing was changed").count(), 2, "{said}");
    assert!(said.contains("user_00002: gone; nothing was changed"), "{said}");
    let look = ["--dry-run", "--exit-code", "user_00000"];
    assert_eq!(scene.sync(&look).status.code(), Some(0));
    let look = ["--dry-run", "--exit-code", "user_00000", "user_00001"];
    fails(&scene.sync(&look), 1, "one user differs", "headcount sync");
    scene.world.until_drained().await;
    assert_eq!(scene.world.users().await, before);
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_user_who_is_unknown_to_clerk_once_is_not_deleted() {
    let scene = scene_in_step(World::new(Backends::Embedded), 3).await;
    // The first answer comes from a server that is behind.
    let gone = scene.clerk.delete(&user(2)).unwrap();
    let asked = AtomicU64::new(0);
    scene.clerk.before_each(move |clerk, path| {
        if path.starts_with("/v1/users/user_00002") && asked.fetch_add(1, SeqCst) == 1 {
            clerk.insert(gone.clone());
        }
    });
    assert_eq!(users(&scene.synced(&[&user(2)])), [("user_00002", "in step", None)]);
    scene.is_in_step().await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_deleted_here_and_unknown_to_clerk_needs_nothing() {
    let scene = scene_in_step(World::new(Backends::Embedded), 3).await;
    let ours = scene.world.users().await.into_iter().find(|row| row.clerk_id == user(1)).unwrap().id;
    scene.clerk.delete(&user(1));
    assert_eq!(users(&scene.synced(&[&user(1)])), [("user_00001", "gone", Some("deleted"))]);
    for reference in [user(1), ours.to_string()] {
        let found = scene.synced(&[&reference]);
        assert_eq!(users(&found), [("user_00001", "deleted, and so in Clerk", None)], "{reference}");
        assert_eq!(counted(&found), [], "nothing to repair, and nobody in Clerk");
        let said = told(&scene, &["--dry-run", "--exit-code", &reference]);
        assert_eq!(said, "user_00001: deleted, and so in Clerk\n");
    }
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_user_whose_change_is_not_applied_ends_with_exit_code_1() {
    let mut scene = scene(World::new(Backends::Embedded), 2).await;
    scene.down();
    let output = scene.sync(&[&user(0)]);
    fails(&output, 1, "what was published is not applied yet", "headcount status");
    assert!(
        text(&output).contains("user_00000: missing") && text(&output).contains("; published"),
        "{}",
        text(&output)
    );
    // Whoever does not want to wait is not told that it failed.
    let said = told(&scene, &["--no-wait", &user(1)]);
    assert!(said.contains("user_00001: missing") && said.contains("; published"), "{said}");
    scene.restart().await;
    scene.world.until_drained().await;
    scene.is_in_step().await;
    scene.close().await;
}

async fn who_is_deleted_here_and_lives_in_clerk_is_revived_only_on_request(backends: Backends) {
    let scene = scene_in_step(World::new(backends), 3).await;
    let row = async |n| {
        let users = scene.world.users().await;
        users.iter().find(|row| row.clerk_id == user(n)).map(|row| (row.id, row.deleted_at.is_some()))
    };
    let before = row(0).await.unwrap().0;
    // One by a webhook; one that was never seen: remembered as deleted.
    for (n, id) in [user(0), "user_late".to_owned()].into_iter().enumerate() {
        let body = Person::of(&*id, now()).event("user.deleted", now() - 1000);
        scene.process().poster().post(&format!("msg_{n}"), body.into()).await.unwrap();
    }
    scene.clerk.sign_up("user_late", now() - HOUR);
    scene.world.until_drained().await;
    assert_eq!(scene.counted(&[]), [("clerk", 4), ("in_step", 2), ("buried_alive", 2)]);
    let said = told(&scene, &[&user(0)]);
    assert!(said.contains("buried alive") && said.contains("--revive"), "{said}");
    assert_eq!(row(0).await, Some((before, true)));

    let said = told(&scene, &[&user(0), "--revive"]);
    assert!(said.contains("user_00000: buried alive") && said.contains("; revived"), "{said}");
    assert_eq!(row(0).await, Some((before, false)), "with the old row");
    let found = scene.counted(&["--revive"]);
    assert_eq!(found, [("clerk", 4), ("in_step", 3), ("buried_alive", 1), ("repaired", 1)]);
    scene.is_in_step().await;
    let shown = text(&scene.world.run(&["users", "show", "user_late"]));
    assert!(shown.contains("headcount.user") && shown.contains("revived"), "{shown}");
    scene.close().await;
}
