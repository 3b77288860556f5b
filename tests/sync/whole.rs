//! What a run through everybody finds, repairs and counts.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use headcount::{
    clerk::{made_up::Person, stand_in::Cursor},
    time::now,
};
use serde_json::Value;

use crate::{
    scene::{Scene, counted, fails, printed, report, said, scene, scene_in_step},
    support::{
        clerk::{HOUR, differences, user},
        process::{Backends, World},
    },
};

on_both! {
    an_empty_table_equals_clerk_after_a_sync_while_webhooks_arrive
    drift_of_every_kind_is_found_and_repaired_while_users_change
    a_user_that_cannot_be_read_is_reported_and_the_rest_goes_on
    without_a_cursor_everybody_is_read_all_the_same
    the_whole_object_is_kept_and_filled_in_by_a_sync
    rows_that_claim_to_be_of_the_future_are_told_and_stay
}

/// Users who change, and whose webhooks arrive, until the returned flag is false.
fn traffic(
    scene: &Scene,
    next: impl Fn(&headcount::clerk::stand_in::World, usize) -> (&'static str, Person) + Send + 'static,
) -> (Arc<AtomicBool>, tokio::task::JoinHandle<usize>) {
    let (poster, busy) = (scene.process().poster(), Arc::new(AtomicBool::new(true)));
    let traffic = tokio::spawn({
        let (clerk, busy) = (scene.clerk.clone(), Arc::clone(&busy));
        async move {
            let mut n = 0;
            while busy.load(SeqCst) {
                let (kind, person) = next(&clerk, n);
                let body = person.event(kind, person.updated_at);
                let answer = poster.post(&format!("msg_{n}"), body.into()).await;
                assert!(answer.is_ok_and(|status| status.is_success()));
                n += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            n
        }
    });
    (busy, traffic)
}

async fn an_empty_table_equals_clerk_after_a_sync_while_webhooks_arrive(backends: Backends) {
    let scene = scene(World::new(backends), 2_345).await;
    scene.clerk.faults(|faults| faults.quota = Some(1_000));
    // Users change while the pages are read, and their webhooks arrive.
    let (busy, traffic) = traffic(&scene, |clerk, n| match n % 3 {
        0 => {
            let id = format!("user_new{n:05}");
            clerk.sign_up(&id, now());
            ("user.created", clerk.person(&id).unwrap())
        }
        _ => {
            let named = |person: &mut Person| person.first_name = Some(format!("Changed {n}"));
            ("user.updated", clerk.change(&user(n * 37 % 2_345), now(), named).unwrap())
        }
    });
    let found = scene.synced(&[]);
    busy.store(false, SeqCst);
    assert!(traffic.await.unwrap() > 0);
    let users = |name: &str| found[name].as_u64().unwrap();
    assert!(users("clerk") >= 2_345, "{found}");
    assert_eq!(users("in_step") + users("missing") + users("outdated"), users("clerk"), "{found}");
    assert_eq!((users("gone"), users("failed")), (0, 0), "{found}");

    scene.world.until_drained().await;
    scene.is_in_step().await;
    let users = scene.clerk.count() as u64;
    assert_eq!(scene.counted(&["--dry-run", "--exit-code"]), [("clerk", users), ("in_step", users)]);
    scene.close().await;
}

/// Users by what is done to them, of each kind so many.
const EACH: usize = 4;

async fn drift_of_every_kind_is_found_and_repaired_while_users_change(backends: Backends) {
    const USERS: usize = 700;
    let scene = scene_in_step(World::new(backends), USERS).await;
    scene.is_in_step().await;

    let clerk = &scene.clerk;
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
    scene.world.sql(&format!("DELETE FROM users WHERE clerk_id IN ({})", list(&removed))).await;
    let edits = [
        "first_name = 'Edited'",
        "image_url = NULL",
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
        scene.world.sql(&format!("UPDATE users SET {edit} WHERE clerk_id = '{}'", edited[0])).await;
    }
    for id in some() {
        let at = clerk.person(&id).unwrap().updated_at;
        clerk.change(&id, at, |person| person.last_sign_in_at = Some(at + 5));
    }
    // Deleted here by mistake.
    let buried = some();
    for (n, id) in buried.iter().enumerate() {
        let body = clerk.person(id).unwrap().event("user.deleted", now() - HOUR / 2);
        scene.process().poster().post(&format!("msg_buried{n}"), body.into()).await.unwrap();
    }
    scene.world.until_drained().await;

    // And users go on changing meanwhile, with their webhooks.
    let (busy, traffic) = traffic(&scene, |clerk, n| {
        let named = |person: &mut Person| person.last_name = Some(format!("Changed {n}"));
        ("user.updated", clerk.change(&user(USERS - 1 - n % 300), now(), named).unwrap())
    });
    let each = EACH as u64;
    let found = scene.synced(&["--allow-deletions", "4", "--verbose"]);
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

    scene.world.until_drained().await;
    let left: Vec<String> = differences(clerk, &scene.world.users().await);
    let buried_left: Vec<String> = buried.iter().map(|id| format!("{id} is missing")).collect();
    assert_eq!(left, buried_left, "all but those who are deleted here");
    assert_eq!(scene.drift(), [("buried_alive", each)]);
    let revived = scene.synced(&["--revive"]);
    assert_eq!((&revived["buried_alive"], &revived["repaired"]), (&each.into(), &each.into()));
    scene.is_in_step().await;
    assert_eq!(scene.drift(), []);
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_whom_a_long_run_repairs_is_counted() {
    let scene = scene(World::new(Backends::Embedded), 4_000).await;
    assert_eq!(scene.counted(&[]), [("clerk", 4_000), ("missing", 4_000), ("repaired", 4_000)]);
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_changed_a_moment_ago_is_counted_once_and_is_no_drift_within_the_grace() {
    let mut scene = scene(World::new(Backends::Embedded), 0).await;
    (0..7).for_each(|n| scene.clerk.sign_up(&user(n), now() - 1000));
    scene.world.set("HEADCOUNT_WATCH_GRACE", "0s");
    assert_eq!(scene.counted(&["--dry-run"]), [("clerk", 7), ("missing", 7)]);
    scene.world.set("HEADCOUNT_WATCH_GRACE", "1h");
    assert_eq!(scene.counted(&["--dry-run"]), [("clerk", 7), ("in_step", 7)]);
    // They are brought in step all the same, and it is said.
    let found = scene.synced(&[]);
    assert_eq!(counted(&found), [("clerk", 7), ("in_step", 7)]);
    let note = found["notes"][0].as_str().unwrap();
    assert!(note.starts_with("users who changed so lately") && note.ends_with(": 7"), "{note}");
    scene.is_in_step().await;
    scene.close().await;
}

/// A row that claims a later reading refuses the news, and that is no repair.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_table_refuses_is_not_said_to_be_repaired() {
    let scene = scene_in_step(World::new(Backends::Embedded), 5).await;
    let later = now() + 100 * HOUR;
    let statements =
        format!("UPDATE users SET first_name = 'Eve', version_sent = {later} WHERE clerk_id = '{}'", user(1));
    scene.world.sql(&statements).await;
    let found = scene.synced(&[]);
    assert_eq!(counted(&found), [("clerk", 5), ("in_step", 4), ("different", 1)]);
    let note = found["notes"][0].as_str().unwrap();
    assert!(note.contains("not repaired") && note.contains("version_sent"), "{note}");
    scene.close().await;
}

/// A user of this id who was created before everybody else in Clerk, and changed last at `updated_at`.
fn import(id: &str, updated_at: i64) -> Person {
    Person { updated_at, ..Person::of(id, now() - 100 * HOUR) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_behind_the_back_of_a_run_is_found_by_it() {
    let mut scene = scene(World::new(Backends::Embedded), 1_100).await;
    scene.world.set("HEADCOUNT_WATCH_GRACE", "0s");
    // Before the first page's first user, once the first page is read.
    scene.clerk.before_each(|clerk, path| {
        if path.contains("starting_after=") && clerk.person("user_imported").is_none() {
            clerk.insert(import("user_imported", now()));
        }
    });
    assert_eq!(scene.counted(&[]), [("clerk", 1_101), ("missing", 1_101), ("repaired", 1_101)]);
    scene.is_in_step().await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_that_do_not_add_up_are_told() {
    let scene = scene(World::new(Backends::Embedded), 1_100).await;
    // Who is imported with an old version is in no list that this run still reads.
    scene.clerk.before_each(|clerk, path| {
        if path.contains("starting_after=") && clerk.person("user_imported").is_none() {
            clerk.insert(import("user_imported", now() - 100 * HOUR));
        }
    });
    let found = scene.synced(&[]);
    assert_eq!(counted(&found), [("clerk", 1_100), ("missing", 1_100), ("repaired", 1_100)]);
    let note = found["notes"][0].as_str().unwrap();
    assert!(note.starts_with("Clerk counts 1,101 users, and 1,100 of its list were read"), "{found}");
    let run = scene.last_run().await;
    assert_eq!(run.detail.as_deref(), Some(note));

    let found = scene.synced(&[]);
    assert_eq!(counted(&found), [("clerk", 1_101), ("in_step", 1_100), ("missing", 1), ("repaired", 1)]);
    assert_eq!(found["notes"], Value::Array(vec![]));
    scene.is_in_step().await;
    scene.close().await;
}

async fn a_user_that_cannot_be_read_is_reported_and_the_rest_goes_on(backends: Backends) {
    let scene = scene(World::new(backends), 5).await;
    scene.clerk.faults(|faults| {
        faults.garbled.insert(user(1), format!(r#"{{"id":"{}","email_addresses":7}}"#, user(1)));
        faults.garbled.insert(user(3), r#""nobody""#.to_owned());
    });
    let output = scene.sync(&["--json"]);
    fails(&output, 1, "2 users could not be brought in step", "headcount sync USER");
    assert_eq!(counted(&printed(&output)), [("clerk", 5), ("missing", 3), ("repaired", 3), ("failed", 2)]);
    let told = said(&output);
    assert!(told.contains("user_00001: data.email_addresses: expected an array"), "{told}");
    assert!(told.contains("a user without a readable id"), "{told}");
    // Once they can be read again, they come; and meanwhile nobody is taken for gone.
    scene.clerk.faults(|faults| faults.garbled.clear());
    assert_eq!(scene.counted(&[]), [("clerk", 5), ("in_step", 3), ("missing", 2), ("repaired", 2)]);
    scene.clerk.faults(|faults| drop(faults.garbled.insert(user(1), r#""nobody""#.to_owned())));
    let output = scene.sync(&["--json"]);
    fails(&output, 1, "2 users could not be brought in step", "see above");
    assert_eq!(counted(&printed(&output)), [("clerk", 5), ("in_step", 4), ("failed", 2)]);
    assert!(said(&output).contains("user_00001: "), "{}", said(&output));
    assert_eq!(scene.live().await, 5);
    scene.close().await;
}

async fn without_a_cursor_everybody_is_read_all_the_same(backends: Backends) {
    let scene = scene(World::new(backends), 1_100).await;
    // More than a page of one millisecond.
    let imported = now() - 2 * HOUR;
    (0..1_234).for_each(|n| scene.clerk.sign_up(&format!("user_import{n:05}"), imported));
    for cursor in [Cursor::Ignored, Cursor::Refused] {
        scene.clerk.faults(|faults| faults.cursor = cursor);
        assert_eq!(scene.counted(&["--dry-run"]), [("clerk", 2_334), ("missing", 2_334)], "{cursor:?}");
    }
    scene.synced(&[]);
    scene.is_in_step().await;
    // A cursor behind a user who is deleted meanwhile.
    scene.clerk.faults(|faults| faults.cursor = Cursor::AsDocumented);
    let deleted = AtomicBool::new(false);
    scene.clerk.before_each(move |clerk, path| {
        if let Some((_, cursor)) = path.split_once("starting_after=")
            && !deleted.swap(true, SeqCst)
        {
            clerk.delete(cursor.split('&').next().unwrap());
        }
    });
    assert_eq!(scene.counted(&["--dry-run"]), [("clerk", 2_334), ("in_step", 2_334)]);
    assert_eq!(scene.clerk.count(), 2_333);
    scene.close().await;
}

async fn the_whole_object_is_kept_and_filled_in_by_a_sync(backends: Backends) {
    const OBJECTS: &str = "SELECT CAST(clerk AS TEXT) FROM users ORDER BY clerk_id";
    let mut scene = scene_in_step(World::new(backends), 3).await;
    assert_eq!(scene.world.texts(OBJECTS).await, [const { None }; 3]);
    scene.world.set("HEADCOUNT_KEEP_CLERK_OBJECT", "true");
    scene.restart().await;
    assert_eq!(scene.counted(&[]), [("clerk", 3), ("different", 3), ("repaired", 3)]);
    assert_eq!(scene.drift(), []);
    let kept = scene.world.texts(OBJECTS).await.into_iter();
    let kept: Vec<Value> = kept.map(|text| serde_json::from_str(&text.unwrap()).unwrap()).collect();
    let people = scene.clerk.people();
    assert_eq!(kept, people.iter().map(Person::data).collect::<Vec<_>>());

    // It is for the application's SQL. Nothing shows it.
    let shown = |arguments: &[&str]| String::from_utf8(scene.world.run(arguments).stdout).unwrap();
    let mut everything = shown(&["users", "list", "--json"]);
    everything += &shown(&["users", "show", "user_00000"]);
    everything += &shown(&["users", "show", "user_00000", "--json"]);
    for path in ["/api/v1/users", "/api/v1/users/user_00000"] {
        everything += &scene.process().told(path).await.to_string();
    }
    assert_eq!(everything.matches("public_metadata").count(), 3 + 1 + 3 + 1, "{everything}");
    assert!(!everything.contains("two_factor_enabled"), "{everything}");
    scene.close().await;
}

async fn rows_that_claim_to_be_of_the_future_are_told_and_stay(backends: Backends) {
    let scene = scene_in_step(World::new(backends), 4).await;
    let update = async |set: &str, n| {
        scene.world.sql(&format!("UPDATE users SET {set} WHERE clerk_id = '{}'", user(n))).await
    };
    update(
        "version = 4070908800000, clerk_updated_at = '2099-01-01T00:00:00.000Z', first_name = 'Edited'",
        0,
    )
    .await;
    update("deleted_at = '2099-01-01T00:00:00.000Z'", 1).await;
    // A webhook may be quicker than Clerk's list, which is nothing to tell of.
    let person = Person { updated_at: now(), ..scene.clerk.person(&user(2)).unwrap() };
    let body = person.event("user.updated", person.updated_at);
    scene.process().poster().post("msg_quick", body.into()).await.unwrap();
    scene.world.until_drained().await;
    let before = scene.world.users().await;

    let output = scene.sync(&["--json", "--verbose"]);
    let found = report(&output);
    assert_eq!(counted(&found), [("clerk", 4), ("in_step", 4)]);
    let note = found["notes"][0].as_str().unwrap();
    assert!(note.starts_with("2 rows claim to be newer than Clerk's answer, and cannot be"), "{note}");
    let told = said(&output);
    let named: Vec<&str> = told.lines().filter(|line| line.ends_with(": newer here")).collect();
    assert_eq!(named, ["user_00000: newer here", "user_00001: newer here"], "{told}");
    let one = scene.synced(&[&user(0)]);
    assert_eq!(one["users"][0]["standing"], "newer here");
    assert_eq!(counted(&one), [("clerk", 1), ("in_step", 1)]);
    assert_eq!(scene.world.users().await, before);

    // Once they claim no more than they may, they are told of like others.
    update("version = 0", 0).await;
    assert_eq!(scene.counted(&[&user(0)]), [("clerk", 1), ("outdated", 1), ("repaired", 1)]);
    update("deleted_at = '2001-01-01T00:00:00.000Z'", 1).await;
    assert_eq!(scene.counted(&[&user(1), "--revive"]), [("clerk", 1), ("buried_alive", 1), ("repaired", 1)]);
    scene.close().await;
}
