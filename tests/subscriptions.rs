//! Subscriptions in the table: whatever the order of Clerk's billing events, items and tiers come out as they would on paper; grants
//! outrank them; and time passes without an event. On both stores.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

#[path = "support/stores.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod stores;

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use headcount::{
    clerk::{self, Known},
    message::{MessageId, Origin},
    rules::{
        Event,
        Outcome::*,
        subscriptions::tiers::{PastDue, Tiers},
    },
    store::{self, Incoming, Store, StoreConfig, letters::Actor, tiers::TierFrom},
    time::{Millis, now},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use serde_json::{Value, json};
use stores::{Home, KEEP, apply, contract, created, deleted, row};

contract! {
    items_and_tiers_come_out_the_same_in_any_order
    items_wait_for_their_user
    a_period_that_runs_out_changes_the_tier_without_an_event
    a_grant_outranks_events_until_it_ends
    a_grant_stays_with_the_row
    without_billing_grants_alone_decide
    organizations_decide_no_tier
    what_the_whole_answer_does_not_mention_has_ended
    who_pays_and_grants_at_once_gets_the_grant
    settings_that_changed_are_followed
    who_revokes_without_billing_leaves_the_rest_to_the_worker
    without_billing_time_changes_no_tier_but_those_of_grants
    of_whom_nothing_is_known_the_tier_is_the_applications
    whom_the_database_refuses_holds_up_no_other
    a_plan_is_the_default_as_it_was_told_last
    a_trigger_that_skips_a_tier_is_no_success
    an_item_that_goes_to_another_user_leaves_the_first_one_the_rest
}

const LIST: &str = "pro_annual=premium_monthly,premium_monthly,basic=starter";
const DAY: Millis = 24 * 3_600_000;

fn rounds(few: u64, many: u64) -> u64 {
    if std::env::var_os("SOAK").is_some() { many } else { few }
}

fn config(home: &Home, list: &str, past_due: PastDue) -> StoreConfig {
    let tiers = Tiers::parse(list, past_due).unwrap();
    StoreConfig { billing: Some(Arc::new(tiers)), ..home.config(KEEP) }
}

async fn billing(home: &Home) -> Arc<dyn Store> {
    home.store().await;
    store::open(&config(home, LIST, PastDue::Keep)).await.unwrap()
}

/// One event of Clerk's, or of headcount's own, as the worker reads it.
fn event(id: &str, body: &Value) -> Incoming {
    let message_id = MessageId::parse(id).unwrap();
    let kind = body["type"].as_str().unwrap();
    let origin = if kind.starts_with("headcount.") { Origin::Api } else { Origin::Webhook };
    let known = Known { origin, ..Known::webhook(&message_id, 1) };
    let parsed = clerk::parse(body.to_string().as_bytes(), &known).unwrap();
    let event = Event {
        message_id: id.to_owned(),
        change: parsed.change,
        fresh_row: uuid::Uuid::now_v7(),
        patience_over: false,
    };
    Incoming { event, event_type: parsed.event_type, received_at: 1 }
}

fn plan(slug: &str) -> Value {
    let amount =
        BTreeMap::from([("free_user", 0), ("basic", 500), ("premium_monthly", 900), ("pro_annual", 1900)]);
    json!({ "id": format!("cplan_{slug}"), "slug": slug, "amount": amount.get(slug).unwrap_or(&700), "currency": "USD" })
}

/// An item as Clerk tells it in `subscription.*`.
fn item(id: &str, slug: &str, status: &str, at: Millis, end: Option<Millis>) -> Value {
    json!({
        "id": id, "status": status, "interval": "month", "plan": plan(slug), "period_start": at, "period_end": end,
        "updated_at": at, "created_at": at, "subscription_id": null,
    })
}

fn payer(user: &str) -> Value {
    json!({ "id": format!("cpayer_{user}"), "user_id": user, "organization_id": "" })
}

/// `subscription.updated`, or `subscriptionItem.updated` of a single item.
fn told(user: &str, items: Vec<Value>, sent: Millis, alone: bool) -> Value {
    match <[Value; 1]>::try_from(items) {
        Ok([mut item]) if alone => {
            item["payer"] = payer(user);
            item["subscription_id"] = json!(format!("csub_{user}"));
            json!({ "type": "subscriptionItem.updated", "timestamp": sent, "data": item })
        }
        Ok(items) => whole(user, items.to_vec(), sent),
        Err(items) => whole(user, items, sent),
    }
}

fn whole(user: &str, items: Vec<Value>, sent: Millis) -> Value {
    let data =
        json!({ "id": format!("csub_{user}"), "payer": payer(user), "updated_at": sent, "items": items });
    json!({ "type": "subscription.updated", "timestamp": sent, "data": data })
}

fn one(user: &str, item: Value) -> Incoming {
    let id = format!(
        "{}:{}:{}",
        item["id"].as_str().unwrap(),
        item["status"].as_str().unwrap(),
        item["updated_at"]
    );
    let sent = item["updated_at"].as_i64().unwrap();
    event(&id, &told(user, vec![item], sent, true))
}

async fn tier(store: &Arc<dyn Store>, user: &str) -> String {
    row(store, user).await.subscription_tier
}

fn by(note: &str) -> Actor {
    Actor { name: "ops".into(), note: Some(note.into()) }
}

/// Settles whatever is due, as the worker does each minute.
async fn sweep(store: &Arc<dyn Store>) -> u64 {
    let due = store.lapsed(&[], 500).await.unwrap();
    store.settle_tiers(&due).await.unwrap()
}

/// The life of one user's subscription, as Clerk would tell it.
struct Life {
    user: String,
    /// Message id and body.
    events: Vec<(String, Value)>,
    /// What is granted at the end, if anything was.
    grant: Option<&'static str>,
}

impl Life {
    fn random(case: u64, number: u64, now: Millis, rng: &mut StdRng) -> Self {
        const PLANS: [&str; 4] = ["basic", "premium_monthly", "pro_annual", "golf"];
        let user = format!("user_{case}_{number}");
        let mut life = Self { events: Vec::new(), grant: None, user };
        let free = format!("csubi_{case}_{number}_free");
        let mut at = now - 400 * DAY;
        let mut next = 0;
        // The paid item: id, plan and status.
        let mut paid: Option<(String, &str, &str)> = None;
        life.tell(vec![item(&free, "free_user", "active", at, None)], rng);
        for _ in 0..rng.random_range(0..10) {
            // Some steps have the time of the one before.
            at += rng.random_range(0..3) * DAY;
            let end = Some(if rng.random_bool(0.5) { now + 30 * DAY } else { now - DAY });
            let mut begin = |rng: &mut StdRng| {
                next += 1;
                (format!("csubi_{case}_{number}_{next}"), PLANS[rng.random_range(0..PLANS.len())])
            };
            let standing = paid.as_ref().map_or("none", |(_, _, status)| *status);
            let mut items = Vec::new();
            let mut tell = |id: &str, slug: &str, status: &str| items.push(item(id, slug, status, at, end));
            let choice = rng.random_range(0..5);
            paid = match (standing, choice, paid.take()) {
                // A purchase, a trial, or a checkout that comes to nothing.
                ("none", 0..=2, _) => {
                    let (id, slug) = begin(rng);
                    tell(&id, slug, "active");
                    tell(&free, "free_user", "ended");
                    Some((id, slug, "active"))
                }
                ("none", 3, _) => {
                    let (id, slug) = begin(rng);
                    tell(&id, slug, ["incomplete", "abandoned", "expired"][rng.random_range(0..3)]);
                    None
                }
                // An upgrade at once, or a downgrade at the period's end.
                ("active", 0, Some((id, slug, _))) => {
                    tell(&id, slug, "ended");
                    let (id, slug) = begin(rng);
                    tell(&id, slug, "active");
                    Some((id, slug, "active"))
                }
                ("active", 1, Some((id, slug, _))) => {
                    tell(&id, slug, "canceled");
                    let (next, cheaper) = begin(rng);
                    tell(&next, cheaper, "upcoming");
                    Some((id, slug, "canceled"))
                }
                ("active", 2, Some((id, slug, _))) => {
                    tell(&id, slug, "past_due");
                    Some((id, slug, "past_due"))
                }
                // A renewal, or a payment that came after all, or somebody who stays after all.
                ("active" | "past_due" | "canceled", 3, Some((id, slug, _))) => {
                    tell(&id, slug, "active");
                    Some((id, slug, "active"))
                }
                ("active", 4, Some((id, slug, _))) => {
                    tell(&id, slug, "canceled");
                    tell(&free, "free_user", "upcoming");
                    Some((id, slug, "canceled"))
                }
                ("past_due" | "canceled", 0..=1, Some((id, slug, _))) => {
                    tell(&id, slug, "ended");
                    tell(&free, "free_user", "active");
                    None
                }
                (_, _, paid) => paid,
            };
            life.tell(items, rng);
        }
        life
    }

    /// Together, or each by itself; sometimes Clerk leaves the plan out.
    fn tell(&mut self, mut items: Vec<Value>, rng: &mut StdRng) {
        if items.is_empty() {
            return;
        }
        for item in &mut items {
            if rng.random_bool(0.1) {
                item["plan"] = Value::Null;
            }
        }
        let parts = if rng.random_bool(0.5) {
            vec![items]
        } else {
            items.into_iter().map(|item| vec![item]).collect()
        };
        for part in parts {
            let sent = part[0]["updated_at"].as_i64().unwrap() + rng.random_range(0..3);
            let id = format!("{}:{}:{}", self.user, self.events.len(), rng.random_range(0..1_000));
            self.events.push((id, told(&self.user, part, sent, rng.random_bool(0.7))));
        }
    }

    /// What is told of each item in the end, worked out from all of the events at once: status, plan, end, version.
    fn on_paper(&self) -> BTreeMap<String, (String, Option<String>, Option<Millis>, Millis)> {
        let mut mentions: BTreeMap<String, Vec<(Millis, Millis, &str, &Value)>> = BTreeMap::new();
        for (id, body) in &self.events {
            let data = &body["data"];
            let items = data["items"].as_array().map_or_else(|| vec![data], |items| items.iter().collect());
            for item in items {
                let key =
                    (item["updated_at"].as_i64().unwrap(), body["timestamp"].as_i64().unwrap(), &**id, item);
                mentions.entry(item["id"].as_str().unwrap().to_owned()).or_default().push(key);
            }
        }
        let last = |(id, mut all): (String, Vec<(Millis, Millis, &str, &Value)>)| {
            all.sort_by(|one, other| (one.0, one.1, one.2).cmp(&(other.0, other.1, other.2)));
            let newest = all.last().unwrap().3;
            let slug = all.iter().rev().find_map(|(.., item)| item["plan"]["slug"].as_str());
            let status = newest["status"].as_str().unwrap().to_owned();
            (
                id,
                (
                    status,
                    slug.map(str::to_owned),
                    newest["period_end"].as_i64(),
                    newest["updated_at"].as_i64().unwrap(),
                ),
            )
        };
        mentions.into_iter().map(last).collect()
    }

    fn tier_on_paper(&self, now: Millis, past_due: PastDue) -> String {
        if let Some(grant) = self.grant {
            return grant.to_owned();
        }
        // Names of tiers, from the worst to the best.
        let rank = |slug: &str| match slug {
            "pro_annual" => (4, "premium_monthly"),
            "premium_monthly" => (3, "premium_monthly"),
            "basic" => (2, "starter"),
            "golf" => (1, "golf"),
            _ => (0, "free"),
        };
        let granting = self.on_paper().into_values().filter(|(status, _, end, _)| match status.as_str() {
            "active" => true,
            "canceled" => end.is_none_or(|end| end > now),
            "past_due" => past_due == PastDue::Keep,
            _ => false,
        });
        let best =
            granting.filter_map(|(_, slug, ..)| Some(rank(&slug?))).min_by_key(|(rank, _)| Reverse(*rank));
        best.map_or("free", |(_, tier)| tier).to_owned()
    }
}

/// The events in another order, some twice.
fn arranged(mut all: Vec<Incoming>, rng: &mut StdRng) -> Vec<Vec<Incoming>> {
    for event in all.clone() {
        if rng.random_bool(0.2) {
            all.push(event);
        }
    }
    all.shuffle(rng);
    let mut batches = vec![Vec::new()];
    for event in all {
        if rng.random_bool(0.3) {
            batches.push(Vec::new());
        }
        batches.last_mut().unwrap().push(event);
    }
    batches
}

async fn items_and_tiers_come_out_the_same_in_any_order(home: Arc<Home>) {
    home.store().await;
    let seed = now().unsigned_abs();
    println!("seed {seed}");
    let stores = [PastDue::Keep, PastDue::Drop].map(|past_due| (past_due, config(&home, LIST, past_due)));
    for case in 0..rounds(60, 1_500) {
        let mut rng = StdRng::seed_from_u64(seed + case);
        let (past_due, config) = &stores[(case % 2) as usize];
        let store = store::open(config).await.unwrap();
        let now = now();
        let mut lives: Vec<Life> = (0..3).map(|number| Life::random(case, number, now, &mut rng)).collect();
        // Everybody has a row in the end, at any time.
        let mut all: Vec<Incoming> = lives.iter().map(|life| created(&life.user, 5).event()).collect();
        for life in &lives {
            all.extend(life.events.iter().map(|(id, body)| event(id, body)));
        }
        let batches = arranged(all, &mut rng);
        for batch in &batches {
            apply(&store, batch.iter().cloned()).await.unwrap();
            let life = &mut lives[rng.random_range(0..3)];
            let user = store.user(&life.user).await.unwrap().and_then(|history| history.user);
            if let Some(user) = user.filter(|_| rng.random_bool(0.4)) {
                if rng.random_bool(0.5) {
                    store.grant(user.id, "premium_lifetime", None, &by("a refund")).await.unwrap().unwrap();
                    life.grant = Some("premium_lifetime");
                } else {
                    store.revoke(user.id, &by("no more")).await.unwrap().unwrap();
                    life.grant = None;
                }
            }
            if rng.random_bool(0.2) {
                sweep(&store).await;
            }
        }
        for life in &lives {
            let items = store.items(&[], std::slice::from_ref(&life.user)).await.unwrap();
            let found: BTreeMap<_, _> = items
                .into_iter()
                .map(|row| {
                    let slug = row.plan.map(|plan| plan.slug);
                    (row.id, (row.status.as_str().to_owned(), slug, row.period_end, row.version.at))
                })
                .collect();
            let told = || format!("case {case} of seed {seed}: {:#?}", life.events);
            assert_eq!(found, life.on_paper(), "{}", told());
            assert_eq!(tier(&store, &life.user).await, life.tier_on_paper(now, *past_due), "{}", told());
        }
        store.close().await;
    }
    assert!(home.number("SELECT count(*) FROM users WHERE subscription_tier <> 'free'").await > 0);
    assert!(home.number("SELECT count(*) FROM tier_grants WHERE ended_at IS NOT NULL").await > 0);
}

async fn items_wait_for_their_user(home: Arc<Home>) {
    let store = billing(&home).await;
    assert_eq!(
        apply(&store, [one("ann", item("i1", "basic", "active", 10, None))]).await.unwrap(),
        [Created]
    );
    assert_eq!(apply(&store, [created("ann", 5).event()]).await.unwrap(), [Created]);
    assert_eq!(tier(&store, "ann").await, "starter");
    // In one batch, whichever is first.
    let batch = [created("bob", 5).event(), one("bob", item("i2", "golf", "active", 10, None))];
    apply(&store, batch).await.unwrap();
    let batch = [one("cat", item("i3", "golf", "active", 10, None)), created("cat", 5).event()];
    apply(&store, batch).await.unwrap();
    assert_eq!((tier(&store, "bob").await, tier(&store, "cat").await), ("golf".into(), "golf".into()));
    // The tier of whoever has no items is the application's until there are some.
    apply(&store, [created("dan", 5).event()]).await.unwrap();
    home.sql("UPDATE users SET subscription_tier = 'vip' WHERE clerk_id = 'dan'").await;
    apply(&store, [stores::updated("dan", 6).event()]).await.unwrap();
    assert_eq!(tier(&store, "dan").await, "vip");
    let report = store.tier(row(&store, "dan").await.id).await.unwrap().unwrap();
    assert_eq!((report.from, report.why()), (TierFrom::Application, "the application's".to_owned()));
    apply(&store, [one("dan", item("i4", "free_user", "active", 10, None))]).await.unwrap();
    assert_eq!(tier(&store, "dan").await, "free");
}

async fn a_period_that_runs_out_changes_the_tier_without_an_event(home: Arc<Home>) {
    let store = billing(&home).await;
    let end = now() + 900;
    apply(&store, [created("ann", 5).event(), one("ann", item("i1", "basic", "canceled", 10, Some(end)))])
        .await
        .unwrap();
    apply(&store, [created("bob", 5).event(), one("bob", item("i2", "basic", "active", 10, Some(end)))])
        .await
        .unwrap();
    assert_eq!((sweep(&store).await, tier(&store, "ann").await), (0, "starter".into()));
    tokio::time::sleep(std::time::Duration::from_millis(1_000)).await;
    // Two processes at once.
    let (one, two) = tokio::join!(sweep(&store), sweep(&store));
    assert_eq!((one + two, tier(&store, "ann").await), (1, "free".into()));
    assert_eq!(tier(&store, "bob").await, "starter", "Clerk says when it is over");
    assert_eq!(store.lapsed(&[], 10).await.unwrap(), [""; 0], "once is enough");
    let report = store.tier(row(&store, "ann").await.id).await.unwrap().unwrap();
    assert_eq!((report.from, report.item), (TierFrom::Nothing, None));
}

async fn a_grant_outranks_events_until_it_ends(home: Arc<Home>) {
    let store = billing(&home).await;
    apply(&store, [created("ann", 5).event(), one("ann", item("i1", "basic", "active", 10, None))])
        .await
        .unwrap();
    let ann = row(&store, "ann").await.id;
    let report = store.tier(ann).await.unwrap().unwrap();
    assert_eq!((report.from, report.item.as_deref()), (TierFrom::Subscription, Some("i1")));
    assert_eq!(report.why(), "plan basic, active");

    let report = store.grant(ann, "premium_lifetime", None, &by("a friend")).await.unwrap().unwrap();
    assert_eq!((report.from, report.tier.as_str()), (TierFrom::Grant, "premium_lifetime"));
    assert!(
        report.why().contains("granted by ops") && report.why().ends_with("for good: a friend"),
        "{}",
        report.why()
    );
    let again = store.grant(ann, "premium_lifetime", None, &by("a friend")).await.unwrap().unwrap();
    assert_eq!(again, report, "the same grant is one");
    home.sql("UPDATE users SET subscription_tier = 'edited'").await;
    let again = store.grant(ann, "premium_lifetime", None, &Actor { note: None, ..by("") }).await.unwrap();
    assert_eq!(again.as_ref(), Some(&report), "and it gives the tier again");
    apply(&store, [one("ann", item("i1", "basic", "ended", 20, None))]).await.unwrap();
    assert_eq!(tier(&store, "ann").await, "premium_lifetime");

    let until = now() + 800;
    let report = store.grant(ann, "pro", Some(until), &by("a month")).await.unwrap().unwrap();
    assert_eq!((report.tier.as_str(), report.past_grants.len()), ("pro", 1));
    assert_eq!(report.past_grants[0].ended_by.as_deref(), Some("ops"));
    assert_eq!(sweep(&store).await, 0);
    tokio::time::sleep(std::time::Duration::from_millis(900)).await;
    assert_eq!((sweep(&store).await, tier(&store, "ann").await), (1, "free".into()));
    let report = store.tier(ann).await.unwrap().unwrap();
    assert_eq!((report.grant.is_none(), report.past_grants.len()), (true, 2));

    store.grant(ann, "pro", None, &by("again")).await.unwrap().unwrap();
    apply(&store, [one("ann", item("i2", "golf", "active", 30, None))]).await.unwrap();
    let (report, had) = store.revoke(ann, &by("enough")).await.unwrap().unwrap();
    assert_eq!((report.tier.as_str(), had), ("golf", true));
    let (_, had) = store.revoke(ann, &by("enough")).await.unwrap().unwrap();
    assert!(!had);
    assert!(store.grant(uuid::Uuid::now_v7(), "pro", None, &by("nobody")).await.unwrap().is_none());
    assert!(store.revoke(uuid::Uuid::now_v7(), &by("nobody")).await.unwrap().is_none());
}

async fn a_grant_stays_with_the_row(home: Arc<Home>) {
    let store = billing(&home).await;
    for (user, address) in [("ann", "a@example.com"), ("bob", "b@example.com")] {
        apply(
            &store,
            [created(user, 5).verified(address).event(), one(user, item(user, "golf", "active", 10, None))],
        )
        .await
        .unwrap();
    }
    let ann = row(&store, "ann").await.id;
    store.grant(ann, "premium_lifetime", None, &by("a friend")).await.unwrap().unwrap();
    apply(&store, [deleted("ann", 20), deleted("bob", 20)]).await.unwrap();
    let back = [
        created("ann2", 30).verified("a@example.com").event(),
        created("bob2", 30).verified("b@example.com").event(),
    ];
    assert_eq!(apply(&store, back).await.unwrap(), [Relinked, Relinked]);
    assert_eq!((row(&store, "ann2").await.id, tier(&store, "ann2").await), (ann, "premium_lifetime".into()));
    // What the account before had paid for is not the new one's.
    assert_eq!(tier(&store, "bob2").await, "free");
    apply(&store, [one("bob", item("bob", "golf", "active", 40, None))]).await.unwrap();
    assert_eq!(tier(&store, "bob2").await, "free");
    apply(&store, [one("bob2", item("bob2", "basic", "active", 40, None))]).await.unwrap();
    assert_eq!(tier(&store, "bob2").await, "starter");
}

async fn without_billing_grants_alone_decide(home: Arc<Home>) {
    let store = home.store().await;
    let batch = [created("ann", 5).event(), created("bob", 5).event()];
    apply(&store, batch).await.unwrap();
    home.sql("UPDATE users SET subscription_tier = 'vip'").await;
    let (ann, bob) = (row(&store, "ann").await.id, row(&store, "bob").await.id);
    let (report, had) = store.revoke(bob, &by("nothing")).await.unwrap().unwrap();
    assert_eq!((report.tier.as_str(), report.from, had), ("vip", TierFrom::Application, false));
    store.grant(ann, "pro", Some(now() + 500), &by("a trial")).await.unwrap().unwrap();
    store.grant(bob, "pro", None, &by("a trial")).await.unwrap().unwrap();
    apply(&store, [stores::updated("ann", 6).event()]).await.unwrap();
    assert_eq!((tier(&store, "ann").await, tier(&store, "bob").await), ("pro".into(), "pro".into()));
    tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    assert_eq!(sweep(&store).await, 1);
    store.revoke(bob, &by("over")).await.unwrap().unwrap();
    assert_eq!((tier(&store, "ann").await, tier(&store, "bob").await), ("free".into(), "free".into()));
    // The application writes again what it likes.
    home.sql("UPDATE users SET subscription_tier = 'vip'").await;
    assert_eq!(store.settle_tiers(&["ann".into(), "bob".into()]).await.unwrap(), 0);
    assert_eq!(tier(&store, "ann").await, "vip");
}

async fn organizations_decide_no_tier(home: Arc<Home>) {
    let store = billing(&home).await;
    apply(&store, [created("user_1", 5).event()]).await.unwrap();
    for (number, payer) in [
        json!({ "organization_id": "org_1", "user_id": "" }),
        json!({ "organization_id": "org_1", "user_id": null }),
        json!({ "organization_id": "org_1" }),
        json!({ "organization_id": "org_1", "user_id": "user_1" }),
    ]
    .into_iter()
    .enumerate()
    {
        let mut item = item(&format!("i{number}"), "pro_annual", "active", 10, None);
        item["payer"] = payer;
        let body = json!({ "type": "subscriptionItem.active", "timestamp": 10, "data": item });
        assert_eq!(apply(&store, [event(&format!("m{number}"), &body)]).await.unwrap(), [Created]);
    }
    assert_eq!(store.items(&[], &["org_1".into()]).await.unwrap().len(), 4);
    assert_eq!(tier(&store, "user_1").await, "free");
    for (number, payer) in [
        json!({ "organization_id": "", "user_id": "user_1" }),
        json!({ "organization_id": null, "user_id": "user_1" }),
        json!({ "user_id": "user_1" }),
    ]
    .into_iter()
    .enumerate()
    {
        let mut item = item(&format!("u{number}"), "basic", "active", 10, None);
        item["payer"] = payer;
        let body = json!({ "type": "subscriptionItem.active", "timestamp": 10, "data": item });
        apply(&store, [event(&format!("n{number}"), &body)]).await.unwrap();
    }
    assert_eq!(store.items(&[], &["user_1".into()]).await.unwrap().len(), 3);
    assert_eq!(tier(&store, "user_1").await, "starter");
}

async fn what_the_whole_answer_does_not_mention_has_ended(home: Arc<Home>) {
    let store = billing(&home).await;
    apply(&store, [created("ann", 5).event()]).await.unwrap();
    for (id, slug) in [("i1", "basic"), ("i2", "golf"), ("i3", "pro_annual")] {
        apply(&store, [one("ann", item(id, slug, "active", 10, None))]).await.unwrap();
    }
    let known = store.items(&[], &["ann".into()]).await.unwrap();
    let unmentioned = |id: &str| {
        let version = &known.iter().find(|row| row.id == id).unwrap().version;
        json!({ "id": id, "updated_at": version.at, "sent": version.sent, "message_id": version.message_id })
    };
    // A webhook says something newer of one of them meanwhile.
    apply(&store, [one("ann", item("i2", "golf", "canceled", 20, Some(now() + DAY)))]).await.unwrap();
    let reading = json!({
        "type": "headcount.subscription", "timestamp": 30, "payer": "ann",
        "unmentioned": [unmentioned("i2"), unmentioned("i3")],
        "data": { "id": "csub_1", "updated_at": 9, "subscription_items": [item("i1", "basic", "active", 10, None)] },
    });
    assert_eq!(apply(&store, [event("api_1", &reading)]).await.unwrap(), [Updated]);
    let status = async |id: &str| store.items(&[id.to_owned()], &[]).await.unwrap()[0].status.as_str();
    assert_eq!((status("i1").await, status("i2").await, status("i3").await), ("active", "canceled", "ended"));
    assert_eq!(tier(&store, "ann").await, "starter");
    // What was known before says nothing new.
    assert_eq!(
        apply(&store, [one("ann", item("i3", "pro_annual", "active", 9, None))]).await.unwrap(),
        [Stale]
    );
    assert_eq!(status("i3").await, "ended");
    assert_eq!(
        apply(&store, [one("ann", item("i3", "pro_annual", "active", 40, None))]).await.unwrap(),
        [Updated]
    );
    assert_eq!(tier(&store, "ann").await, "premium_monthly");
}

async fn who_pays_and_grants_at_once_gets_the_grant(home: Arc<Home>) {
    let store = billing(&home).await;
    let other = store::open(&config(&home, LIST, PastDue::Keep)).await.unwrap();
    for round in 0..rounds(15, 200) {
        let user = format!("user_{round}");
        apply(&store, [created(&user, 5).event()]).await.unwrap();
        let id = row(&store, &user).await.id;
        let by = by("race");
        let news = (0..4).map(|n| one(&user, item(&format!("{user}_{n}"), "golf", "active", 10 + n, None)));
        let (paid, granted, swept) = tokio::join!(
            apply(&store, news),
            other.grant(id, "premium_lifetime", None, &by),
            other.settle_tiers(std::slice::from_ref(&user)),
        );
        paid.unwrap();
        granted.unwrap().unwrap();
        swept.unwrap();
        assert_eq!(tier(&store, &user).await, "premium_lifetime", "round {round}");
    }
    // Two grants at once: one of them is in force.
    apply(&store, [created("ann", 5).event()]).await.unwrap();
    let ann = row(&store, "ann").await.id;
    let by = by("race");
    for _ in 0..rounds(10, 100) {
        let (one, two) = tokio::join!(store.grant(ann, "a", None, &by), other.grant(ann, "b", None, &by));
        one.unwrap().unwrap();
        two.unwrap().unwrap();
        let report = store.tier(ann).await.unwrap().unwrap();
        assert_eq!(Some(report.tier), report.grant.map(|grant| grant.tier));
    }
    assert_eq!(
        home.number(
            "SELECT count(*) FROM tier_grants AS g JOIN users AS u ON u.id = g.user_id \
         WHERE u.clerk_id = 'ann' AND g.ended_at IS NULL"
        )
        .await,
        1
    );
}

async fn settings_that_changed_are_followed(home: Arc<Home>) {
    let store = billing(&home).await;
    apply(&store, [created("ann", 5).event(), one("ann", item("i1", "basic", "past_due", 10, None))])
        .await
        .unwrap();
    assert_eq!(tier(&store, "ann").await, "starter");
    for (list, past_due, expected) in [
        ("basic=gold", PastDue::Keep, "gold"),
        ("basic=gold", PastDue::Drop, "free"),
        ("", PastDue::Keep, "basic"),
    ] {
        let config = config(&home, list, past_due);
        let changed = store::open(&config).await.unwrap();
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let following = tokio::spawn(headcount::tiers::follow::run(changed, config.billing.clone(), stopped));
        for _ in 0..200 {
            if tier(&store, "ann").await == expected {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert_eq!(tier(&store, "ann").await, expected);
        stop.send(true).unwrap();
        following.await.unwrap();
    }
}

async fn who_revokes_without_billing_leaves_the_rest_to_the_worker(home: Arc<Home>) {
    let worker = billing(&home).await;
    apply(&worker, [created("ann", 5).event(), one("ann", item("i1", "basic", "active", 10, None))])
        .await
        .unwrap();
    let (person, ann) = (home.open().await, row(&worker, "ann").await.id);
    person.grant(ann, "pro", None, &by("a trial")).await.unwrap().unwrap();
    person.revoke(ann, &by("over")).await.unwrap().unwrap();
    assert_eq!((sweep(&worker).await, tier(&worker, "ann").await), (1, "starter".into()));
    assert_eq!(worker.lapsed(&[], 10).await.unwrap(), [""; 0]);
}

async fn without_billing_time_changes_no_tier_but_those_of_grants(home: Arc<Home>) {
    let on = billing(&home).await;
    let end = now() + 300;
    for user in ["ann", "bob"] {
        let bought = one(user, item(user, "basic", "canceled", 10, Some(end)));
        apply(&on, [created(user, 5).event(), bought]).await.unwrap();
    }
    // From now on it is off, and the application keeps the tiers.
    let off = home.open().await;
    home.sql("UPDATE users SET subscription_tier = 'gold'").await;
    off.grant(row(&off, "bob").await.id, "pro", Some(end), &by("a trial")).await.unwrap().unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    assert_eq!(off.lapsed(&[], 10).await.unwrap(), ["bob"]);
    assert_eq!(off.settle_tiers(&["ann".into(), "bob".into()]).await.unwrap(), 1);
    assert_eq!((tier(&off, "ann").await, tier(&off, "bob").await), ("gold".into(), "free".into()));
    // Nothing of it is lost where it is on.
    assert_eq!((sweep(&on).await, tier(&on, "ann").await), (1, "free".into()));
}

async fn of_whom_nothing_is_known_the_tier_is_the_applications(home: Arc<Home>) {
    let store = billing(&home).await;
    if home.is_postgres() {
        home.sql("ALTER TABLE users ALTER COLUMN subscription_tier SET DEFAULT 'trial'").await;
        apply(&store, [created("eve", 5).event()]).await.unwrap();
        assert_eq!(tier(&store, "eve").await, "trial");
    }
    for (user, address) in [("ann", "a@example.com"), ("bob", "b@example.com")] {
        apply(&store, [created(user, 5).verified(address).event()]).await.unwrap();
    }
    apply(&store, [one("bob", item("b", "golf", "active", 10, None))]).await.unwrap();
    home.sql("UPDATE users SET subscription_tier = 'vip' WHERE clerk_id = 'ann'").await;
    apply(&store, [deleted("ann", 20), deleted("bob", 20)]).await.unwrap();
    let back = [("ann2", "a@example.com"), ("bob2", "b@example.com")];
    apply(&store, back.map(|(user, address)| created(user, 30).verified(address).event())).await.unwrap();
    assert_eq!((tier(&store, "ann2").await, tier(&store, "bob2").await), ("vip".into(), "free".into()));
}

async fn whom_the_database_refuses_holds_up_no_other(home: Arc<Home>) {
    let store = billing(&home).await;
    let end = now() + 200;
    for n in 0..5 {
        let user = format!("user_{n}");
        let bought = one(&user, item(&format!("i{n}"), "basic", "canceled", 10, Some(end + n)));
        apply(&store, [created(&user, 5).event(), bought]).await.unwrap();
    }
    home.sql(&if home.is_postgres() {
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$; \
         CREATE TRIGGER refuse BEFORE UPDATE ON users FOR EACH ROW WHEN (NEW.clerk_id = 'user_0') EXECUTE FUNCTION refuse()"
            .to_owned()
    } else {
        "CREATE TRIGGER refuse BEFORE UPDATE ON users WHEN NEW.clerk_id = 'user_0' BEGIN SELECT RAISE(ABORT, 'no'); END".to_owned()
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(store.lapsed(&[], 2).await.unwrap(), ["user_0", "user_1"], "the first is looked at first");
    assert_eq!(store.lapsed(&["user_0".into()], 2).await.unwrap(), ["user_1", "user_2"]);
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let tiers = config(&home, LIST, PastDue::Keep).billing;
    let following = tokio::spawn(headcount::tiers::follow::run(Arc::clone(&store), tiers, stopped));
    for _ in 0..200 {
        if tier(&store, "user_4").await == "free" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    stop.send(true).unwrap();
    following.await.unwrap();
    for n in 1..5 {
        assert_eq!(tier(&store, &format!("user_{n}")).await, "free");
    }
    assert_eq!(tier(&store, "user_0").await, "starter");
    assert_eq!(store.lapsed(&[], 10).await.unwrap(), ["user_0"], "it is due until the database takes it");
}

async fn a_plan_is_the_default_as_it_was_told_last(home: Arc<Home>) {
    let store = billing(&home).await;
    apply(&store, [created("ann", 5).event()]).await.unwrap();
    let told = |id: &str, sent: Millis, is_default: Value| {
        let mut item = item("i1", "golf", "active", 10, None);
        item["plan"]["is_default"] = is_default;
        let data = json!({ "subscription_items": [item] });
        event(
            id,
            &json!({ "type": "headcount.subscription", "timestamp": sent, "payer": "ann", "data": data }),
        )
    };
    for (id, sent, is_default, expected) in [
        ("m1", 20, Value::Null, "golf"),
        ("m3", 40, json!(false), "golf"),
        ("m2", 30, json!(true), "golf"),
        ("m4", 50, json!(true), "free"),
        ("m5", 60, Value::Null, "free"),
        ("m6", 70, json!(false), "golf"),
    ] {
        apply(&store, [told(id, sent, is_default)]).await.unwrap();
        assert_eq!(tier(&store, "ann").await, expected, "{id}");
    }
}

async fn a_trigger_that_skips_a_tier_is_no_success(home: Arc<Home>) {
    let store = billing(&home).await;
    apply(&store, [created("ann", 5).event()]).await.unwrap();
    home.sql(if home.is_postgres() {
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER keep BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION keep()"
    } else {
        "CREATE TRIGGER keep BEFORE UPDATE ON users BEGIN SELECT RAISE(IGNORE); END"
    })
    .await;
    let error = apply(&store, [one("ann", item("i1", "basic", "active", 10, None))]).await.unwrap_err();
    assert!(error.message.contains("0 of 1 rows of users"), "{error}");
    assert_eq!(home.number("SELECT count(*) FROM subscription_items").await, 0);
}

async fn an_item_that_goes_to_another_user_leaves_the_first_one_the_rest(home: Arc<Home>) {
    let store = billing(&home).await;
    apply(&store, [created("ann", 5).event(), created("bob", 5).event()]).await.unwrap();
    apply(&store, [one("ann", item("i1", "premium_monthly", "active", 10, None))]).await.unwrap();
    apply(&store, [one("ann", item("i2", "basic", "active", 11, None))]).await.unwrap();
    apply(&store, [one("bob", item("i2", "basic", "active", 12, None))]).await.unwrap();
    assert_eq!(
        (tier(&store, "ann").await, tier(&store, "bob").await),
        ("premium_monthly".into(), "starter".into())
    );
}
