//! Answers that are wrong, and settings that are: nobody is deleted, and what is wrong is named.

use headcount::{clerk::stand_in::Wrong, secret::Secret, time::now};

use crate::{
    scene::{fails, scene_in_step},
    support::{
        clerk::{HOUR, KEY, user},
        process::{Backends, World},
    },
};

on_both! {
    whatever_answers_wrongly_deletes_nobody_and_is_named
}

async fn whatever_answers_wrongly_deletes_nobody_and_is_named(backends: Backends) {
    let mut scene = scene_in_step(World::new(backends), 3).await;
    for n in 0..3 {
        scene.clerk.change(&user(n), now() - HOUR / 2, |person| person.banned = true);
    }
    let list = Some("/v1/users");
    for (wrong, path, error, hint) in [
        (
            Wrong::Page,
            None,
            "does not answer as Clerk's API does: it answered 200 with a web page",
            "CLERK_API_URL",
        ),
        (
            Wrong::Redirect("https://login.example/".into()),
            None,
            "it redirects (302) to login.example",
            "proxy",
        ),
        (
            Wrong::Body("[]".into()),
            Some("/v1/instance"),
            "does not answer as Clerk's API does",
            "CLERK_API_URL",
        ),
        (Wrong::Body("{}".into()), list, "does not answer as Clerk's API does", "CLERK_API_URL"),
        (
            Wrong::Body("[]".into()),
            list,
            "Clerk's list of users is empty, though it counts 3 users",
            "CLERK_API_URL",
        ),
        (Wrong::Body("[{\"id\":".into()), list, "its answer ends too early", "CLERK_API_URL"),
        (Wrong::Limited(100_000), None, "limits requests: it answered 429", "quota"),
    ] {
        scene.clerk.faults(|faults| (faults.wrong, faults.path) = (Some(wrong.clone()), path));
        fails(&scene.sync(&[]), 1, error, hint);
    }
    scene.heal();
    let users = scene.world.users().await;
    assert!(users.iter().all(|row| row.deleted_at.is_none() && row.banned == Some(false)), "{users:?}");

    // A key that Clerk refuses, one that is none, and none at all.
    scene.world.set("CLERK_SECRET_KEY", "sk_live_wrong");
    fails(&scene.sync(&[]), 1, "refuses the key: it answered 401", "secret key");
    scene.world.set("CLERK_SECRET_KEY", "pk_live_Y2xlcmsuZXhhbXBsZS5jb20k");
    fails(&scene.sync(&[]), 2, "CLERK_SECRET_KEY", "sk_");
    scene.world.unset("CLERK_SECRET_KEY");
    fails(&scene.sync(&[]), 2, "CLERK_SECRET_KEY is not set", "sk_");
    scene.world.set("CLERK_SECRET_KEY", KEY);
    scene.clerk.set_key(Secret::new(KEY));

    // Half of all requests fail: they are made again.
    scene.clerk.faults(|faults| (faults.wrong, faults.each) = (Some(Wrong::Status(503)), 2));
    let found = scene.synced(&[]);
    assert_eq!((found["outdated"].as_u64(), found["repaired"].as_u64()), (Some(3), Some(3)), "{found}");
    scene.clerk.faults(|faults| (faults.wrong, faults.each) = (None, 1));
    assert_eq!(scene.drift(), []);
    scene.close().await;
}
