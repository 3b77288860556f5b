//! `up --demo` as a real process: it loses webhooks and heals, its stand-in for Clerk's API answers other commands, and it never
//! mixes its people with those of a real Clerk instance.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::process::Output;

use headcount::{clerk::made_up::Person, store::User, time::now};
use serde_json::Value;
use support::{
    eventually,
    process::{Backends, Process, World},
};

/// A demo that looks at its stand-in often.
fn hasty() -> World {
    let mut world = World::new(Backends::Embedded);
    world.set("HEADCOUNT_WATCH", "1s");
    world.set("HEADCOUNT_WATCH_GRACE", "1s");
    world
}

/// Starts the demo, and does what it says is to be done in another terminal.
async fn play(world: &mut World) -> Process {
    let up = world.start(&["up", "--demo"]);
    eventually("it says how to ask the stand-in", async || up.log().contains("from another terminal")).await;
    let log = up.log();
    let line = log.lines().find(|line| line.contains("from another terminal")).unwrap();
    for variable in ["CLERK_SECRET_KEY", "CLERK_API_URL"] {
        let (_, value) = line.split_once(&format!("{variable}=")).unwrap();
        let value = value.split_whitespace().next().unwrap().to_owned();
        world.set(variable, &value);
    }
    // What is younger may still be on its way to the table.
    world.set("HEADCOUNT_WATCH_GRACE", "30s");
    up
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// Waits until a look at all of the table finds these counts to be so. While the demo's own sync runs, nobody else can look.
async fn until_found(world: &World, what: &str, so: impl Fn(&dyn Fn(&str) -> u64) -> bool) {
    eventually(what, async || {
        let output = world.run(&["sync", "--dry-run", "--json"]);
        let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        output.status.success() && so(&|name| found[name].as_u64().unwrap())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_loses_webhooks_and_the_watch_heals_them() {
    let mut world = hasty();
    world.set("CLERK_SECRET_KEY", "sk_live_ofARealInstance");
    let up = play(&mut world).await;
    assert_eq!(up.log().matches("CLERK_SECRET_KEY is not used").count(), 1, "{}", up.log());
    eventually("somebody is healed", async || {
        up.log().contains("of whom the table lacked a change") && up.log().contains(" · lost ")
    })
    .await;
    // A lost deletion is found only after more than ten minutes.
    until_found(&world, "what only the watch can bring is here", |users| {
        users("missing") == 0 && users("outdated") == 0 && users("clerk") > 50
    })
    .await;
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_demo_and_a_sync_spare_the_people_of_the_first_and_those_of_send() {
    let mut world = hasty();
    let up = play(&mut world).await;
    let lives = |user: &&User| user.deleted_at.is_none();
    world.until_users("people live", |users| users.iter().filter(lives).count() > 30).await;
    up.stop();
    world.set("HEADCOUNT_WATCH_GRACE", "1s");
    let up = play(&mut world).await;
    assert!(!up.log().contains("CLERK_SECRET_KEY is not used"), "the stand-in's own key is no real one");
    world.set("HEADCOUNT_WATCH_GRACE", "30s");
    let webhooks = up.webhooks.clone().unwrap();
    let sent =
        ["send", "user.created", "--user", "user_ada", "--email", "ada@example.com", "--url", &webhooks];
    let sent = world.run(&sent);
    assert!(sent.status.success(), "{}", said(&sent));
    let knows = |users: &[User], id: &str| users.iter().any(|user| user.clerk_id == id && lives(&user));
    world.until_users("ada lives", |users| knows(users, "user_ada")).await;
    let one = world.run(&["sync", "user_ada"]);
    assert!(said(&one).contains("user_ada: in step"), "{}", said(&one));
    let sent = world.run(&["send", "user.created", "--user", "user_bob", "--url", &webhooks]);
    assert!(sent.status.success(), "{}", said(&sent));
    world.until_users("bob lives", |users| knows(users, "user_bob")).await;
    // While the demo's own sync runs, nobody else can.
    eventually("a sync has its turn", async || world.run(&["sync", "--no-wait"]).status.success()).await;
    let users = world.users().await;
    assert!(knows(&users, "user_ada") && knows(&users, "user_bob"));
    until_found(&world, "nobody is gone or different", |users| {
        users("gone") == 0 && users("different") == 0 && users("clerk") > 30
    })
    .await;
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_refuses_a_table_of_a_real_instance() {
    let refused = |world: &World, code: i32, why: &str| {
        let output = world.run(&["up", "--demo"]);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(why) && said.contains("hint: "), "{said}");
    };
    let mut world = World::new(Backends::Embedded);
    assert!(world.run(&["migrate"]).status.success());
    let up = world.start(&["up"]);
    // A webhook that does not say of which instance it is.
    let person =
        Person { image_url: Some("https://img.clerk.com/x".into()), ..Person::of("user_real", now()) };
    let mut event: Value = serde_json::from_slice(&person.event("user.created", now())).unwrap();
    event.as_object_mut().unwrap().remove("instance_id");
    assert_eq!(up.poster().post("msg_1", event.to_string().into()).await.unwrap(), 202);
    world.until_users("the user lives", |users| !users.is_empty()).await;
    up.stop();
    refused(&world, 1, "this table holds users who are not made up");

    let store = world.store().await;
    store.adopt_instance("ins_real").await.unwrap();
    store.close().await;
    refused(&world, 1, "this table belongs to the Clerk instance ins_real");
    assert_eq!(world.users().await.len(), 1);

    world.set("HEADCOUNT_CLERK_INSTANCE", "ins_real");
    refused(&world, 2, "HEADCOUNT_CLERK_INSTANCE is ins_real");
}
