//! Whose the table is: a key of another instance changes nothing, and people are asked.

use headcount::{
    clerk::made_up::{self, Person},
    time::now,
};

use crate::{
    scene::{fails, scene, scene_in_step, text},
    support::{
        clerk::user,
        eventually,
        process::{Backends, World},
        terminal::Terminal,
    },
};

on_both! {
    another_instances_key_changes_nothing
}

async fn another_instances_key_changes_nothing(backends: Backends) {
    let scene = scene(World::new(backends), 3).await;
    let clerk = &scene.clerk;
    // The table learns whose it is from the first webhook.
    let person = clerk.person(&user(0)).unwrap();
    // What `headcount send` makes up says nothing about that.
    clerk.set_instance("ins_ours");
    for (id, instance) in [("msg_0", made_up::INSTANCE), ("msg_1", "ins_ours")] {
        let body = person.event_of(instance, "user.created", person.created_at);
        scene.process().poster().post(id, body.into()).await.unwrap();
    }
    scene.world.until_drained().await;
    let store = scene.world.store().await;
    eventually("the instance is learned", async || {
        store.instances().await.unwrap().iter().any(|row| row.owner && row.instance_id == "ins_ours")
    })
    .await;
    store.close().await;
    clerk.set_instance("ins_another");
    fails(
        &scene.sync(&[]),
        1,
        "of the Clerk instance ins_another, and this table belongs to ins_ours",
        "--adopt-instance",
    );
    fails(&scene.sync(&[&user(0)]), 1, "ins_another", "CLERK_SECRET_KEY");
    assert_eq!(scene.world.users().await.len(), 1);
    // A look at it changes nothing of whose the table is.
    assert_eq!(scene.synced(&["--adopt-instance", "--dry-run"])["missing"], 2);
    fails(&scene.sync(&["--dry-run"]), 1, "ins_another", "CLERK_SECRET_KEY");
    // A person may say so.
    let found = scene.synced(&["--adopt-instance"]);
    assert_eq!((&found["instance"], found["missing"].as_u64()), (&"ins_another".into(), Some(2)));
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_instance_of_the_settings_goes_before_all_else() {
    let mut scene = scene_in_step(World::new(Backends::Embedded), 3).await;
    scene.clerk.sign_up("user_new", now());
    let key = scene.clerk.instance();
    scene.world.set("HEADCOUNT_CLERK_INSTANCE", "ins_other");
    let told = format!("of the Clerk instance {key}, and this table belongs to ins_other");
    for options in
        [&[][..], &["user_new"], &["--dry-run"], &["--adopt-instance"], &["--adopt-instance", "--dry-run"]]
    {
        fails(&scene.sync(options), 1, &told, "correct CLERK_SECRET_KEY, or HEADCOUNT_CLERK_INSTANCE");
    }
    assert_eq!(scene.world.users().await.len(), 3);
    // Who runs a sync with the setting means it, whoever the table belonged to.
    scene.clerk.set_instance("ins_other");
    assert_eq!(scene.synced(&["user_new"])["instance"], "ins_other");
    scene.is_in_step().await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_be_asked_takes_no_instance_that_knows_nobody_here() {
    let scene = scene(World::new(Backends::Embedded), 3).await;
    // Of an older headcount: nobody has noted whose they are.
    for n in 0..5 {
        let body = Person::of(format!("user_ours{n}"), now()).event("user.created", now());
        scene.process().poster().post(&format!("msg_{n}"), body.into()).await.unwrap();
    }
    scene.world.until_drained().await;
    for arguments in [&["sync"][..], &["sync", "--yes"]] {
        fails(&scene.world.run(arguments), 1, "which is not empty", "--adopt-instance");
    }
    assert_eq!(scene.live().await, 5);
    scene.close().await;
}

/// Starts a sync at a terminal, up to its question.
fn asked(world: &World) -> Terminal {
    let mut terminal = world.on_terminal(&["sync"], 100);
    let shown = terminal.until("[y/N]");
    assert!(shown.contains("This table belongs to no Clerk instance yet. The key is of "), "{shown}");
    terminal
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_at_a_terminal_is_asked_once_whose_the_table_is() {
    let scene = scene(World::new(Backends::Embedded), 3).await;
    let refused = format!(
        "error: nothing was read: this table does not belong to the Clerk instance {} yet",
        scene.clerk.instance()
    );
    for (typed, error) in [
        ("n\n", refused.as_str()),
        ("\n", &refused),
        ("\u{4}", &refused),
        ("\u{3}", "error: stopped; nothing is lost"),
    ] {
        let mut terminal = asked(&scene.world);
        terminal.type_in(typed);
        let (status, shown) = terminal.end();
        assert!(status.code() == Some(1) && shown.contains(error), "{typed:?}: {status}: {shown}");
        assert_eq!(scene.clerk.asked("/v1/users"), 0, "{typed:?}");
    }
    let mut terminal = asked(&scene.world);
    terminal.type_in("y\n");
    let (status, shown) = terminal.end();
    assert!(status.success() && shown.contains("repaired        3"), "{shown}");
    scene.is_in_step().await;
    let (status, shown) = scene.world.on_terminal(&["sync"], 100).end();
    assert!(status.success() && !shown.contains("[y/N]"), "{shown}");
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_no_worker_takes_from_is_not_made() {
    use crate::support::process::Backends::EmbeddedPostgres;
    let mut scene = scene_in_step(World::new(EmbeddedPostgres), 3).await;
    // A webhook that nobody can read.
    scene.process().poster().post("msg_dead", r#"{"type":"user.created","data":{}}"#.into()).await.unwrap();
    let store = scene.world.store().await;
    eventually("it is a letter", async || store.show("msg_dead").await.unwrap().is_some()).await;
    store.close().await;
    let body = Person::of("user_mended", now()).event("user.created", now());
    std::fs::write(scene.world.directory.path().join("body.json"), body).unwrap();

    let elsewhere = scene.world.directory.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    scene.world.set("HEADCOUNT_DATA_DIR", elsewhere.to_str().unwrap());
    for arguments in [
        &["sync", "--yes"][..],
        &["sync", "--yes", "user_00000"],
        &["dead", "replay", "--all", "--yes"],
        &["dead", "edit", "msg_dead", "--file", "body.json", "--yes"],
    ] {
        let output = scene.world.run(arguments);
        fails(&output, 1, "elsewhere/queue.db does not exist", "HEADCOUNT_DATA_DIR");
        assert!(text(&output).contains("there is nothing yet: "), "{arguments:?}: {}", text(&output));
        assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0, "{arguments:?} left a file");
    }
    // To look needs no queue.
    assert_eq!(scene.drift(), []);
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
    scene.close().await;
}
