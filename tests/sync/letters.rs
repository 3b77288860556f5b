//! Snapshots that die: what is sent back is still of the API, and is applied.

use headcount::store::letters::Status;
use serde_json::Value;

use crate::{
    scene::{counted, fails, printed, said, scene, text},
    support::{
        clerk::user,
        eventually,
        process::{Backends, World},
    },
};

on_both! {
    a_snapshot_that_died_is_applied_when_it_is_replayed_or_mended
}

/// Has the table refuse two users, for reasons that do not pass.
async fn refuse(world: &World) {
    world
        .sql(match world.is_on_postgres() {
            true => "ALTER TABLE users ADD CONSTRAINT guard CHECK (clerk_id NOT IN ('user_00001', 'user_00002'))",
            false => {
                "CREATE TABLE guarded (n INTEGER CHECK (n = 0)); \
                 CREATE TRIGGER guard BEFORE INSERT ON users WHEN NEW.clerk_id IN ('user_00001', 'user_00002') \
                 BEGIN INSERT INTO guarded VALUES (1); END"
            }
        })
        .await;
}

async fn refuse_no_more(world: &World) {
    world
        .sql(match world.is_on_postgres() {
            true => "ALTER TABLE users DROP CONSTRAINT guard",
            false => "DROP TRIGGER guard",
        })
        .await;
}

async fn a_snapshot_that_died_is_applied_when_it_is_replayed_or_mended(backends: Backends) {
    let scene = scene(World::new(backends), 5).await;
    refuse(&scene.world).await;
    let output = scene.sync(&["--json"]);
    fails(&output, 1, "2 users could not be brought in step", "headcount sync USER");
    assert_eq!(counted(&printed(&output)), [("clerk", 5), ("missing", 5), ("repaired", 3), ("failed", 2)]);
    let told = "what was published of it is a dead letter: headcount dead list --user";
    for n in [1, 2] {
        let told = format!("{id}: {told} {id}", id = user(n));
        assert!(said(&output).contains(&told), "{}", said(&output));
    }
    refuse_no_more(&scene.world).await;
    let ran = |arguments: &[&str]| {
        let output = scene.world.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let store = scene.world.store().await;
    let applied = async |letters: u64| {
        eventually("the letters are applied", async || {
            store.statuses().await.unwrap().get(&Status::Applied).copied() == Some(letters)
        })
        .await;
    };

    // One as it is.
    ran(&["dead", "replay", "--user", "user_00001", "--yes"]);
    applied(1).await;
    assert!(ran(&["users", "show", "user_00001"]).contains("headcount.user  created"));

    // One with another name.
    let listed: Value =
        serde_json::from_str(&ran(&["dead", "list", "--user", "user_00002", "--json"])).unwrap();
    let id = listed["letters"][0]["id"].as_str().unwrap();
    let letter = store.show(id).await.unwrap().unwrap();
    let mut body: Value = serde_json::from_slice(&letter.body).unwrap();
    assert_eq!(body["type"], "headcount.user");
    body["data"]["first_name"] = "Mended".into();
    std::fs::write(scene.world.directory.path().join("body.json"), body.to_string()).unwrap();
    ran(&["dead", "edit", id, "--file", "body.json", "--yes"]);
    applied(2).await;
    store.close().await;
    let users = scene.world.users().await;
    let mended = users.iter().find(|row| row.clerk_id == user(2)).unwrap();
    assert_eq!(mended.first_name.as_deref(), Some("Mended"));
    // Which is not what Clerk says.
    assert_eq!(scene.drift(), [("different", 1)]);
    scene.synced(&[]);
    scene.is_in_step().await;
    scene.close().await;
}
