//! The watch over Clerk: what webhooks do not bring is noticed and healed, people are told, and nothing is deleted because the API
//! says strange things. Against a stand-in for Clerk's API.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::time::{Duration, Instant};

use headcount::{
    clerk::{
        made_up::{INSTANCE, Person},
        stand_in::{StandIn, World as Clerk, Wrong},
    },
    store::sync::Holder,
    sync::watch::{LEASE, due::Counted, state::State},
    time::now,
};
use serde_json::{Value, json};
use support::{
    clerk::{differences, populate, stand_in, user},
    eventually,
    process::{Backends, Process, World},
    traffic::metric,
};

/// `HEADCOUNT_WATCH` of these tests, ...
const WATCH: Duration = Duration::from_secs(1);
/// ... and `HEADCOUNT_WATCH_GRACE`.
const GRACE: Duration = Duration::from_secs(2);
/// What healing may take beside them.
const WITHIN: Duration = Duration::from_secs(10);

/// A world whose processes watch Clerk, in which so many people live.
async fn watched(backends: Backends, people: usize) -> (World, StandIn) {
    let mut world = World::new(backends);
    let clerk = stand_in(&mut world).await;
    populate(clerk.world(), people);
    world.set("HEADCOUNT_WATCH", "1s");
    world.set("HEADCOUNT_WATCH_GRACE", "2s");
    assert!(world.run(&["migrate"]).status.success());
    (world, clerk)
}

/// Lets the commands that follow ask this process.
fn ask(world: &mut World, process: &Process) {
    let at = process.operators.trim_start_matches("http://").trim_end_matches('/').to_owned();
    world.set("HEADCOUNT_OPS_LISTEN", &at);
    if let Some(webhooks) = &process.webhooks {
        let at = webhooks.trim_start_matches("http://").split('/').next().unwrap().to_owned();
        world.set("HEADCOUNT_LISTEN", &at);
    }
}

async fn watch_of(process: &Process) -> Value {
    process.told("/api/v1/sync").await["watch"].clone()
}

fn said(world: &World, arguments: &[&str]) -> String {
    String::from_utf8(world.run(arguments).stdout).unwrap()
}

/// The webhook of somebody's creation arrives.
async fn arrives(process: &Process, id: &str) {
    let person = Person::of(id, now());
    post(process, &format!("msg_{id}"), person.event("user.created", now())).await;
}

async fn post(process: &Process, id: &str, body: Vec<u8>) {
    assert_eq!(process.poster().post(id, body.into()).await.unwrap(), 202);
}

/// Waits until the table says what Clerk says. Answers how long that took.
async fn until_in_step(world: &World, clerk: &Clerk) -> Duration {
    let begun = Instant::now();
    world.until_users("the table is in step with Clerk", |users| differences(clerk, users).is_empty()).await;
    begun.elapsed()
}

async fn looked(process: &Process) {
    let before = watch_of(process).await["looked_at"].clone();
    eventually("it looks at Clerk", async || {
        let watch = watch_of(process).await;
        watch["looked_at"].is_string() && watch["looked_at"] != before
    })
    .await;
}

async fn lost_news_is_healed_in_time(backends: Backends) {
    let (mut world, clerk) = watched(backends, 5).await;
    let (up, clerk) = (world.start(&["up"]), clerk.world());
    ask(&mut world, &up);
    until_in_step(&world, clerk).await;
    looked(&up).await;

    clerk.sign_up("user_lost", now());
    let took = until_in_step(&world, clerk).await;
    assert!(took < WATCH + GRACE + WITHIN, "a lost creation: {took:?}");

    clerk.change("user_lost", now(), |person| person.first_name = Some("Renamed".into())).unwrap();
    let took = until_in_step(&world, clerk).await;
    assert!(took < WATCH + GRACE + WITHIN, "a lost change: {took:?}");

    let healed = json!({ "missing": 6, "outdated": 1, "gone": 0 });
    eventually("it says that all is healed", async || {
        let watch = watch_of(&up).await;
        watch["behind_seconds"] == json!(0) && watch["healed_last_day"] == healed
    })
    .await;
    let watch = watch_of(&up).await;
    assert_eq!(watch["newest_in_clerk"], watch["newest_here"]);
    assert_eq!(metric(&up, "headcount_healed_total").await, 7.0);
    assert_eq!(metric(&up, "headcount_clerk_behind_seconds").await, 0.0);
    let status = said(&world, &["status"]);
    assert!(status.contains("clerk           in step at 2"), "{status}");
    assert!(status.contains("healed          6 missing, 1 outdated, 0 gone in the last day"), "{status}");
    let doctor = said(&world, &["doctor"]);
    assert!(
        doctor.contains("the key is of the") && doctor.contains("which the table belongs to"),
        "{doctor}"
    );
    assert!(doctor.contains("in step with Clerk at 2"), "{doctor}");
    up.stop();
    world.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_news_is_healed_in_time_in_files() {
    lost_news_is_healed_in_time(Backends::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_news_is_healed_in_time_on_servers() {
    lost_news_is_healed_in_time(Backends::RabbitPostgres).await;
}

/// Whoever watched last has found more users here for eleven minutes.
async fn more_here_for_long(world: &World) {
    let (store, holder) = (world.store().await, Holder::of("worker"));
    let mut state: State =
        serde_json::from_value(store.lease(LEASE).await.unwrap().unwrap().state.unwrap()).unwrap();
    state.counted = Counted { more_here_since: Some(now() - 660_000), ran_at: None, ..state.counted };
    store.take_lease(LEASE, &holder, Duration::from_secs(30)).await.unwrap();
    assert!(store.tell_state(LEASE, holder.id, &serde_json::to_value(&state).unwrap()).await.unwrap());
    store.give_lease_back(LEASE, holder.id).await.unwrap();
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_that_is_refused_is_told_and_not_repeated() {
    let (mut world, clerk) = watched(Backends::Embedded, 10).await;
    let (up, clerk) = (world.start(&["up"]), clerk.world());
    until_in_step(&world, clerk).await;
    looked(&up).await;
    up.stop();
    (1..=5).for_each(|n| drop(clerk.delete(&user(n)).unwrap()));
    more_here_for_long(&world).await;

    let up = world.start(&["up"]);
    ask(&mut world, &up);
    let told = "5 of 10 live users seem to be gone: they are not in Clerk's list, and only 3 may be deleted";
    let tells = |text: &Value| text.as_str().is_some_and(|text| text.contains(told));
    eventually("it is told", async || {
        tells(&watch_of(&up).await["refused"]["message"])
            && tells(&up.told("/readyz").await["notices"][0])
            && up.log().contains(told)
    })
    .await;
    for command in ["status", "doctor"] {
        let lines = said(&world, &[command]);
        assert!(lines.contains(told), "{command}: {lines}");
    }
    up.stop();

    // Another process knows it too.
    more_here_for_long(&world).await;
    let up = world.start(&["up"]);
    for _ in 0..3 {
        looked(&up).await;
    }
    assert_eq!(up.told("/api/v1/sync").await["runs"].as_array().unwrap().len(), 1);
    assert_eq!(world.users().await.iter().filter(|user| user.deleted_at.is_none()).count(), 10);
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_deletion_starts_the_search_for_who_is_gone() {
    let (world, clerk) = watched(Backends::Embedded, 5).await;
    let (up, clerk) = (world.start(&["up"]), clerk.world());
    until_in_step(&world, clerk).await;
    looked(&up).await;
    up.stop();
    clerk.delete(&user(1)).unwrap();
    more_here_for_long(&world).await;

    let up = world.start(&["up"]);
    until_in_step(&world, clerk).await;
    eventually("it is counted", async || watch_of(&up).await["healed_last_day"]["gone"] == json!(1)).await;
    let run = up.told("/api/v1/sync").await["runs"][0].clone();
    assert_eq!((&run["who"], &run["result"], &run["gone"]), (&json!("watch"), &json!("done"), &json!(1)));
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_sync_finds_what_the_watch_does_not_look_for() {
    let (mut world, clerk) = watched(Backends::Embedded, 5).await;
    let (up, clerk) = (world.start(&["up"]), clerk.world());
    until_in_step(&world, clerk).await;
    up.stop();
    world.sql("UPDATE users SET first_name = 'Edited'").await;
    clerk.delete(&user(1)).unwrap();
    world.set("HEADCOUNT_WATCH", "0");
    world.set("HEADCOUNT_SYNC_EVERY", "1m");
    let up = world.start(&["up"]);
    until_in_step(&world, clerk).await;
    eventually("the run has ended", async || {
        up.told("/api/v1/sync").await["runs"][0]["result"] == json!("done")
    })
    .await;
    let run = up.told("/api/v1/sync").await["runs"][0].clone();
    assert_eq!((&run["who"], &run["different"], &run["gone"]), (&json!("schedule"), &json!(4), &json!(1)));
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_that_do_not_arrive_are_told_until_one_does() {
    let (mut world, clerk) = watched(Backends::Embedded, 5).await;
    let (up, clerk) = (world.start(&["up"]), clerk.world());
    ask(&mut world, &up);
    until_in_step(&world, clerk).await;
    arrives(&up, "user_arrived").await;
    looked(&up).await;
    for n in 0..3 {
        clerk.sign_up(&format!("user_lost_{n}"), now());
    }
    let alarm = "Clerk's webhooks do not arrive: 3 users had to be read from Clerk's API since the last one";
    eventually("the alarm is raised", async || {
        watch_of(&up).await["alarm"].is_object() && up.log().contains(alarm)
    })
    .await;
    let ready = up.told("/readyz").await;
    assert_eq!(ready["ready"], json!(true));
    assert!(ready["notices"][0].as_str().unwrap().starts_with(alarm), "{ready}");
    let status = said(&world, &["status"]);
    assert!(status.contains("attention       since 2") && status.contains(alarm), "{status}");
    let doctor = said(&world, &["doctor"]);
    assert!(
        doctor.lines().any(|line| line.starts_with("FAILED   watch") && line.contains(alarm)),
        "{doctor}"
    );

    arrives(&up, "user_arrived_again").await;
    eventually("the alarm ends", async || {
        watch_of(&up).await["alarm"].is_null()
            && up.told("/readyz").await["notices"].is_null()
            && up.log().contains("Clerk's webhooks arrive again")
    })
    .await;
    assert_eq!(up.log().matches(alarm).count(), 1, "said once");
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_webhooks_among_many_that_arrive_raise_no_alarm() {
    let (mut world, clerk) = watched(Backends::Embedded, 5).await;
    // A webhook that comes late is healed too. Most of them are not that late.
    world.set("HEADCOUNT_WATCH_GRACE", "5s");
    let (up, clerk) = (world.start(&["up"]), clerk.world());
    until_in_step(&world, clerk).await;
    // For longer than a healed user waits to be judged.
    for n in 1..=540 {
        let id = format!("user_busy_{n}");
        clerk.sign_up(&id, now());
        let is_lost = n % 5 == 0 && n < 50;
        if !is_lost {
            let person = clerk.person(&id).unwrap();
            post(&up, &format!("msg_{id}"), person.event("user.created", now())).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    until_in_step(&world, clerk).await;
    let watch = watch_of(&up).await;
    assert!(watch["healed_last_day"]["missing"].as_u64() >= Some(5 + 9), "{watch}");
    assert_eq!(watch["alarm"], json!(null));
    assert!(!up.log().contains("do not arrive"), "{}", up.log());
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_workers_watches_and_the_other_takes_over() {
    let (world, clerk) = watched(Backends::RabbitPostgres, 5).await;
    let clerk = clerk.world();
    let first = world.start(&["up"]);
    const WATCHES: &str = "this process watches Clerk";
    eventually("it watches", async || first.log().contains(WATCHES)).await;
    let second = world.start(&["worker"]);
    until_in_step(&world, clerk).await;
    looked(&second).await;
    assert!(!second.log().contains(WATCHES), "{}", second.log());
    let before = watch_of(&second).await;
    assert!(before["by"].as_str().unwrap().contains(&format!("process {} on ", first.id())), "{before}");

    first.kill();
    clerk.sign_up("user_lost", now());
    eventually("the other one watches", async || second.log().contains(WATCHES)).await;
    until_in_step(&world, clerk).await;
    eventually("it goes on from what the first one knew", async || {
        watch_of(&second).await["healed_last_day"]["missing"] == json!(6)
    })
    .await;
    let third = world.start(&["worker"]);
    second.stop();
    eventually("a lease that was given back is taken soon", async || third.log().contains(WATCHES)).await;
    third.stop();
    world.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_of_another_instance_are_told_and_buried_if_it_is_set() {
    let (mut world, clerk) = watched(Backends::Embedded, 1).await;
    let of_another = |id: &str| {
        let body = String::from_utf8(Person::of(id, now()).event("user.created", now())).unwrap();
        body.replace(INSTANCE, "ins_another").into_bytes()
    };
    let up = world.start(&["up"]);
    ask(&mut world, &up);
    until_in_step(&world, clerk.world()).await;
    post(&up, "msg_1", of_another("user_strange")).await;
    let two = "webhooks of two Clerk instances come in";
    eventually("it is told", async || up.log().contains(two)).await;
    post(&up, "msg_2", of_another("user_strange_too")).await;
    world.until_drained().await;
    let doctor = said(&world, &["doctor"]);
    assert!(doctor.contains("webhooks of two Clerk instances") && doctor.contains("ins_another"), "{doctor}");
    assert!(doctor.contains("set HEADCOUNT_CLERK_INSTANCE"), "{doctor}");
    assert_eq!(up.log().matches(two).count(), 1, "said once");
    up.stop();

    world.set("HEADCOUNT_CLERK_INSTANCE", INSTANCE);
    world.set("HEADCOUNT_OPS_LISTEN", "127.0.0.1:0");
    world.set("HEADCOUNT_LISTEN", "127.0.0.1:0");
    let up = world.start(&["up"]);
    post(&up, "msg_3", of_another("user_buried")).await;
    eventually("it is told again", async || up.log().contains(two)).await;
    let store = world.store().await;
    eventually("it is buried", async || store.show("msg_3").await.unwrap().is_some()).await;
    store.close().await;
    assert!(!world.users().await.iter().any(|user| user.clerk_id == "user_buried"));
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_of_the_right_clerk_is_told_and_deletes_nobody() {
    let (mut world, clerk) = watched(Backends::Embedded, 5).await;
    let up = world.start(&["up"]);
    until_in_step(&world, clerk.world()).await;
    up.stop();
    let before = world.users().await;
    // Every user would be gone, if what follows were believed.
    world.set("HEADCOUNT_SYNC_EVERY", "1m");
    let wrong = [
        ("refuses the key", None),
        ("does not answer as Clerk's API does", Some(Wrong::Page)),
        ("does not answer as Clerk's API does", Some(Wrong::Redirect("https://example.com/login".into()))),
        ("does not answer as Clerk's API does", Some(Wrong::Body("[]".into()))),
        ("answered 500", Some(Wrong::Status(500))),
    ];
    for (told, wrong) in wrong {
        let key = if wrong.is_none() { "sk_test_wrong" } else { support::clerk::KEY };
        world.set("CLERK_SECRET_KEY", key);
        clerk.world().faults(|faults| faults.wrong = wrong);
        is_told(&mut world, told).await;
    }
    clerk.world().faults(|faults| faults.wrong = None);
    clerk.world().set_instance("ins_another");
    clerk.world().people().iter().for_each(|person| drop(clerk.world().delete(&person.id)));
    populate(clerk.world(), 1);
    is_told(&mut world, "is of the Clerk instance ins_another, and this table belongs to").await;
    assert_eq!(world.users().await, before);
}

/// Starts a process, and holds that it says so wherever people look.
async fn is_told(world: &mut World, told: &str) {
    for variable in ["HEADCOUNT_OPS_LISTEN", "HEADCOUNT_LISTEN"] {
        world.set(variable, "127.0.0.1:0");
    }
    let up = world.start(&["up"]);
    ask(world, &up);
    eventually(&format!("it is told: {told}"), async || {
        let notice = up.told("/readyz").await["notices"][0].as_str().unwrap_or_default().to_owned();
        notice.contains(told) && up.log().contains(told)
    })
    .await;
    let (status, doctor) = (said(world, &["status"]), said(world, &["doctor"]));
    assert!(status.contains(told) && doctor.contains(told), "{told}: {status}{doctor}");
    let lines = status + &doctor + &up.log();
    assert!(lines.contains("Clerk cannot be watched at present: "), "{lines}");
    assert!(!lines.contains("sk_"), "{lines}");
    assert_eq!(watch_of(&up).await["alarm"], json!(null));
    up.stop();
}
