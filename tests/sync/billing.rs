//! What users pay for, brought in step with Clerk's API.

use headcount::{clerk::made_up::Person, time::now};
use serde_json::{Value, json};

use crate::{
    scene::{Scene, fails, scene, text},
    support::{
        clerk::user,
        process::{Backends, World},
    },
};

on_both! {
    subscriptions_are_brought_in_step_by_whole_runs
    a_single_users_subscription_is_brought_in_step
}

const DAY: i64 = 24 * 3_600_000;

async fn paying(backends: Backends, people: usize) -> Scene {
    let mut world = World::new(backends);
    world.set("HEADCOUNT_BILLING", "clerk");
    world.set("HEADCOUNT_TIERS", "gold=premium,silver=starter");
    let scene = scene(world, people).await;
    for n in 0..people {
        scene.clerk.set_items(&user(n), vec![free(n)]);
    }
    scene
}

/// An item of a plan, as Clerk's API gives it.
fn item(n: usize, plan: &str, status: &str, at: i64) -> Value {
    Person { plan: Some(plan.into()), ..Person::of(user(n), 1) }.item(status, at)
}

fn free(n: usize) -> Value {
    let mut item = item(n, "free_user", "active", 1_760_000_000_000);
    item["plan"]["is_default"] = json!(true);
    item
}

async fn tiers(scene: &Scene) -> Vec<(String, String)> {
    let mut rows: Vec<_> =
        scene.world.users().await.into_iter().map(|row| (row.clerk_id, row.subscription_tier)).collect();
    rows.retain(|(_, tier)| tier != "free");
    rows.sort();
    rows
}

fn notes(report: &Value) -> String {
    report["notes"].to_string()
}

async fn subscriptions_are_brought_in_step_by_whole_runs(backends: Backends) {
    let scene = paying(backends, 620).await;
    let past = now() - 10 * DAY;
    // More than one page of items.
    for n in 0..600 {
        let plan = if n < 3 { "gold" } else { "silver" };
        scene.clerk.set_items(&user(n), vec![item(n, plan, "active", past), free(n)]);
    }
    let report = scene.synced(&[]);
    assert!(notes(&report).contains("users whose subscriptions differed, and are repaired: 600"), "{report}");
    let all = tiers(&scene).await;
    let first: Vec<&str> = all.iter().take(4).map(|(_, tier)| tier.as_str()).collect();
    assert_eq!((all.len(), first), (600, vec!["premium", "premium", "premium", "starter"]));
    let report = scene.synced(&[]);
    assert_eq!(report["notes"], json!([]), "in step: {report}");

    // What webhooks did not bring: an end, a cancellation that runs out, an upgrade, and one whose item is not listed any more.
    scene.clerk.set_items(&user(0), vec![item(0, "gold", "ended", past + 1_000), free(0)]);
    scene.clerk.set_items(&user(1), vec![free(1)]);
    scene.clerk.set_items(
        &user(3),
        vec![item(3, "silver", "ended", past + 1_000), item(3, "gold", "active", past + 1_000)],
    );
    let looked = scene.sync(&["--dry-run", "--exit-code", "--verbose"]);
    assert_eq!(looked.status.code(), Some(1), "{}", text(&looked));
    assert!(text(&looked).contains("the subscriptions of 3 users differ"), "{}", text(&looked));
    assert!(text(&looked).contains("user_00001"), "{}", text(&looked));
    assert_eq!(tiers(&scene).await, all, "nothing was changed");
    scene.synced(&[]);
    let now: Vec<(String, String)> = tiers(&scene).await;
    assert_eq!(now.len(), 598);
    assert_eq!((now[0].0.as_str(), now[0].1.as_str()), ("user_00002", "premium"));
    assert_eq!((now[1].0.as_str(), now[1].1.as_str()), ("user_00003", "premium"));

    // Whom the database refuses ends no run, and the worker puts right the others.
    scene
        .world
        .sql("UPDATE users SET subscription_tier = 'hacked' WHERE clerk_id IN ('user_00004', 'user_00005')")
        .await;
    scene.world.sql(match scene.world.is_on_postgres() {
        false => {
            "CREATE TRIGGER guard BEFORE UPDATE ON users WHEN NEW.clerk_id = 'user_00004' BEGIN SELECT RAISE(ABORT, 'no'); END"
        }
        true => {
            "CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$; \
             CREATE TRIGGER guard BEFORE UPDATE ON users FOR EACH ROW WHEN (NEW.clerk_id = 'user_00004') EXECUTE FUNCTION guard()"
        }
    })
    .await;
    let report = scene.synced(&[]);
    assert!(
        notes(&report)
            .contains("did not take together, and which the worker sets one by one within minutes: 2"),
        "{report}"
    );
    scene
        .world
        .sql(match scene.world.is_on_postgres() {
            false => "DROP TRIGGER guard",
            true => "DROP TRIGGER guard ON users",
        })
        .await;

    // Nor does an edited tier stay.
    scene.world.sql("UPDATE users SET subscription_tier = 'hacked' WHERE clerk_id = 'user_00005'").await;
    let looked = scene.sync(&["--dry-run", "--exit-code"]);
    assert_eq!(looked.status.code(), Some(1), "{}", text(&looked));
    scene.synced(&[]);
    assert_eq!(tiers(&scene).await, now);

    // Nothing ends because Clerk names no subscription.
    scene.world.sql("UPDATE subscription_items SET id = 'csubi_unknown' WHERE clerk_id = 'user_00002' AND plan_slug = 'gold'").await;
    scene.clerk.forget_items(&user(2));
    let report = scene.synced(&[]);
    assert!(notes(&report).contains("Clerk names no subscription: 1"), "{report}");
    assert_eq!(tiers(&scene).await, now);
    scene.close().await;
}

async fn a_single_users_subscription_is_brought_in_step(backends: Backends) {
    let scene = paying(backends, 3).await;
    scene.synced(&[]);
    let past = now() - 10 * DAY;
    let said = |who: &str| {
        let output = scene.sync(&[who]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        text(&output)
    };
    assert!(said("user_00000").contains("; subscription in step"));
    scene.clerk.set_items(&user(0), vec![item(0, "gold", "active", past), free(0)]);
    assert!(said("user_00000").contains("; subscription created"));
    scene.world.sql("UPDATE users SET subscription_tier = 'hacked' WHERE clerk_id = 'user_00000'").await;
    assert!(said("user_00000").contains("; subscription updated"));
    assert_eq!(tiers(&scene).await, [("user_00000".to_owned(), "premium".to_owned())]);
    // Clerk does not list it any more.
    scene.clerk.set_items(&user(0), vec![free(0)]);
    let looked = scene.sync(&["user_00000", "--dry-run", "--exit-code"]);
    fails(&looked, 1, "subscriptions of one user differ", "headcount sync");
    assert!(said("user_00000").contains("; subscription updated"));
    assert_eq!(tiers(&scene).await, []);
    assert!(said("user_00000").contains("; subscription in step"));
    let report = scene.synced(&["user_00000"]);
    assert_eq!(report["users"][0]["subscription"], json!({"differs": false, "outcome": null}));
    scene.close().await;
}
