//! What a reading of Clerk's API does to a row, tested on both databases: it puts right what was edited, changes nothing where
//! nothing differs, and brings a deleted account back only where a person asked for it.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "so does a test fail"
)]

#[path = "support/stores.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod stores;

use std::sync::Arc;

use headcount::{
    clerk::{self, Known, api},
    message::{MessageId, Origin},
    rules::{
        Event,
        Outcome::{self, *},
        users::{OnDelete, Policy, Relink, Source, UpsertKind},
    },
    store::{Incoming, Store, User},
};
use stores::{Home, KEEP, News, apply, contract, created, deleted, row, rows, updated};
use uuid::Uuid;

contract! {
    a_column_that_somebody_edited_is_put_right
    an_address_that_an_edit_moved_comes_back_to_its_account
    documents_and_numbers_written_otherwise_are_no_change
    a_snapshot_that_changes_nothing_is_stale_and_writes_nothing
    the_last_sign_in_alone_is_taken_in
    an_older_version_or_reading_changes_nothing
    a_deleted_account_stays_deleted_where_nobody_asked
    who_lives_again_and_leaves_in_one_batch_is_known_as_deleted
    a_kept_row_lives_again_with_its_applications_columns
    an_erased_row_lives_again_with_its_applications_columns
    an_id_deleted_before_it_was_seen_lives_again
    a_relinked_former_id_lives_again_in_a_row_of_its_own
    a_reading_before_the_deletion_revives_nobody
    who_is_gone_is_deleted_as_by_a_webhook
    the_whole_object_is_kept_with_the_mirror_and_goes_with_it
    snapshots_and_webhooks_of_a_user_converge_in_any_order_and_split
}

const X: &str = "x@example.com";
const ERASE: Policy = Policy { relink: Relink::Deleted, on_delete: OnDelete::Erase };

/// The same user, as Clerk's API gave it at `at`.
fn read(news: News, at: i64) -> News {
    read_with(news, at, false)
}

/// The same, where a person asked for the account to live again.
fn revive(news: News, at: i64) -> News {
    read_with(news, at, true)
}

fn read_with(mut news: News, at: i64, revive: bool) -> News {
    let upsert = &mut news.upsert;
    upsert.source = Source::Api { revive };
    upsert.version.kind = UpsertKind::Updated;
    upsert.version.sent = at;
    upsert.version.message_id = format!("api_{}_{at}", upsert.clerk_id);
    news
}

/// A user with a value in each mirrored column.
fn ann(at: i64) -> News {
    updated("ann", at).verified("Ann@Example.com").born(1).with(|profile| {
        let text = |text: &str| Some(text.to_owned());
        profile.phone = text("+15550100");
        profile.username = text("ann");
        profile.first_name = text("Ann");
        profile.last_name = text("Ä");
        profile.image_url = text("https://img.example.com/ann");
        profile.external_id = text("7");
        profile.public_metadata = text(r#"{"a":[1,2.5,100],"b":{"c":null}}"#);
        profile.private_metadata = text("null");
        profile.unsafe_metadata = text(r#"{"é":"\""}"#);
        profile.banned = Some(false);
        profile.locked = Some(true);
        profile.last_sign_in_at = Some(1_767_323_045_678);
        profile.created_at = Some(1);
        profile.updated_at = Some(at);
        profile.clerk = text(r#"{"id":"ann"}"#);
    })
}

/// All of a row that a reading decides.
async fn mirrored(home: &Home, clerk_id: &str) -> String {
    let columns = "clerk_id email clerk_email email_key email_verified phone username first_name last_name image_url \
                   external_id public_metadata private_metadata unsafe_metadata banned locked last_sign_in_at \
                   clerk_created_at clerk_updated_at version deleted_at erased clerk";
    let columns: Vec<String> = columns
        .split_whitespace()
        .map(|column| format!("'{column}=' || coalesce(CAST({column} AS text), '-')"))
        .collect();
    let question = format!("SELECT {} FROM users WHERE clerk_id = '{clerk_id}'", columns.join(" || ' ' || "));
    home.texts(&question).await.pop().unwrap_or_default()
}

/// When a row was written last, by the database's clock.
async fn written(home: &Home, clerk_id: &str) -> String {
    let question = format!("SELECT CAST(updated_at AS text) FROM users WHERE clerk_id = '{clerk_id}'");
    home.texts(&question).await.pop().unwrap()
}

async fn recorded(home: &Home, message_id: &str) -> String {
    let question = format!("SELECT outcome FROM inbox WHERE message_id = '{message_id}'");
    home.texts(&question).await.pop().unwrap()
}

async fn a_column_that_somebody_edited_is_put_right(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [ann(10).event()]).await.unwrap();
    home.sql("UPDATE users SET credits_balance = 7, subscription_tier = 'pro'").await;
    let right = mirrored(&home, "ann").await;
    let edits = [
        "email = NULL",
        "email = 'other@example.com'",
        "email = 'ann@example.com'",
        "clerk_email = NULL",
        "clerk_email = 'other@example.com'",
        "clerk_email = 'ann@example.com'",
        "email_key = NULL",
        "email_key = 'other@example.com'",
        "email = NULL, clerk_email = NULL, email_key = NULL, email_verified = false",
        "email = 'o@x', clerk_email = 'o@x', email_key = 'o@x'",
        "email_verified = false",
        "phone = NULL",
        "phone = '1'",
        "username = ''",
        "first_name = 'ann'",
        "last_name = 'A'",
        "image_url = NULL",
        "external_id = '07'",
        "public_metadata = NULL",
        "public_metadata = '{\"a\":[1,2.5,101],\"b\":{\"c\":null}}'",
        "private_metadata = NULL",
        "private_metadata = '{}'",
        "unsafe_metadata = '[]'",
        "banned = true",
        "banned = NULL",
        "locked = false",
        "last_sign_in_at = NULL",
        "clerk_created_at = NULL",
        "clerk_updated_at = '2026-01-02T03:04:05.678Z'",
        "clerk = NULL",
    ];
    for (place, edit) in edits.into_iter().enumerate() {
        home.sql(&format!("UPDATE users SET {edit}")).await;
        assert_ne!(mirrored(&home, "ann").await, right, "{edit}");
        let reading = read(ann(10), 100 + place as i64);
        assert_eq!(apply(&store, [reading.event()]).await.unwrap(), [Updated], "{edit}");
        assert_eq!(mirrored(&home, "ann").await, right, "{edit}");
    }
    let user = row(&store, "ann").await;
    assert_eq!((user.credits_balance, user.subscription_tier.as_str()), (7, "pro"));

    // An address that is its own key.
    apply(&store, [created("bob", 10).verified(X).event()]).await.unwrap();
    let bob = mirrored(&home, "bob").await;
    home.sql("UPDATE users SET clerk_email = NULL WHERE clerk_id = 'bob'").await;
    let reading = read(created("bob", 10).verified(X), 100);
    assert_eq!(apply(&store, [reading.event()]).await.unwrap(), [Updated]);
    assert_eq!(mirrored(&home, "bob").await, bob);

    home.sql("DELETE FROM users").await;
    assert_eq!(apply(&store, [read(ann(10), 900).event()]).await.unwrap(), [Created]);
    assert_eq!(mirrored(&home, "ann").await, right);
}

async fn an_address_that_an_edit_moved_comes_back_to_its_account(home: Arc<Home>) {
    let store = home.store().await;
    let (ann, bob) = (created("ann", 10).verified("a@x"), created("bob", 10).verified("b@x"));
    let before = async || (row(&store, "ann").await.email, row(&store, "bob").await.email);
    apply(&store, [ann.clone().event(), bob.clone().event()]).await.unwrap();
    let right = before().await;
    // Swapped: each holds what is the other's, and both are put right in one batch, whichever is written first.
    for (at, order) in [(100, [0, 1]), (200, [1, 0])] {
        home.sql("UPDATE users SET email = NULL; UPDATE users SET email = 'b@x' WHERE clerk_id = 'ann'")
            .await;
        home.sql("UPDATE users SET email = 'a@x' WHERE clerk_id = 'bob'").await;
        let readings = [read(ann.clone(), at), read(bob.clone(), at)];
        let batch = order.map(|place| readings[place].clone().event());
        assert_eq!(apply(&store, batch).await.unwrap(), [Updated, Updated]);
        assert_eq!(before().await, right);
    }
}

async fn documents_and_numbers_written_otherwise_are_no_change(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [ann(10).event()]).await.unwrap();
    let before = written(&home, "ann").await;
    for (at, public) in [
        (100, r#"{"a":[1,2.5,100],"b":{"c":null}}"#),
        (101, r#"{ "b" : {"c":null}, "a" : [ 1.0, 25e-1, 1e2 ] }"#),
    ] {
        let reading = read(ann(10), at).with(|profile| profile.public_metadata = Some(public.into())).event();
        assert_eq!(apply(&store, [reading]).await.unwrap(), [Stale], "{public}");
    }
    assert_eq!(written(&home, "ann").await, before);
    // The same of what stands in the table, as another hand may have written it.
    let otherwise = r#"{"b": {"c": null},  "a": [1, 2.50, 1.0e2]}"#;
    home.sql(&format!("UPDATE users SET public_metadata = '{otherwise}'")).await;
    assert_eq!(apply(&store, [read(ann(10), 102).event()]).await.unwrap(), [Stale]);
    assert_eq!(written(&home, "ann").await, before);
}

async fn a_snapshot_that_changes_nothing_is_stale_and_writes_nothing(home: Arc<Home>) {
    let store = home.store().await;
    // With a row that claims an address which another account shows by right, and one that claims none.
    let all = [ann(10), created("bob", 20).verified(X), created("cat", 30).unverified(X), created("dan", 40)];
    apply(&store, all.clone().map(News::event)).await.unwrap();
    home.sql("CREATE TABLE fired (n integer)").await;
    home.sql(if home.is_postgres() {
        "CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO fired VALUES (1); \
         RETURN NULL; END $$; \
         CREATE TRIGGER each AFTER INSERT OR UPDATE OR DELETE ON users FOR EACH ROW EXECUTE FUNCTION fire()"
    } else {
        "CREATE TRIGGER updated AFTER UPDATE ON users BEGIN INSERT INTO fired VALUES (1); END"
    })
    .await;
    let readings = all.map(|news| read(news, 50).event());
    assert_eq!(apply(&store, readings).await.unwrap(), [Stale; 4]);
    assert_eq!(home.number("SELECT count(*) FROM fired").await, 0);
    assert_eq!(recorded(&home, "api_bob_50").await, "stale");
    assert_eq!(home.number("SELECT version_sent FROM users WHERE clerk_id = 'bob'").await, 20);
}

async fn the_last_sign_in_alone_is_taken_in(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [ann(10).event()]).await.unwrap();
    let later = read(ann(10), 50).with(|profile| profile.last_sign_in_at = Some(1_767_323_045_999));
    assert_eq!(apply(&store, [later.event()]).await.unwrap(), [Updated]);
    assert_eq!(row(&store, "ann").await.last_sign_in_at.as_deref(), Some("2026-01-02T03:04:05.999Z"));
}

async fn an_older_version_or_reading_changes_nothing(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [read(ann(10), 50).event()]).await.unwrap();
    let right = mirrored(&home, "ann").await;
    let older = [read(ann(9).named("older version"), 60), read(ann(10).named("earlier reading"), 49)];
    assert_eq!(apply(&store, older.map(News::event)).await.unwrap(), [Stale, Stale]);
    assert_eq!(apply(&store, [ann(10).named("its webhook").event()]).await.unwrap(), [Stale]);
    assert_eq!(mirrored(&home, "ann").await, right);
    assert_eq!(apply(&store, [ann(11).event()]).await.unwrap(), [Updated], "a newer webhook");
}

async fn a_deleted_account_stays_deleted_where_nobody_asked(home: Arc<Home>) {
    for policy in [KEEP, ERASE] {
        let store = home.store_with(policy).await;
        let id = |name: &str| format!("{name}_{:?}", policy.on_delete);
        let (seen, unseen) = (id("seen"), id("unseen"));
        apply(&store, [created(&seen, 10).event(), deleted(&seen, 20), deleted(&unseen, 20)]).await.unwrap();
        let readings = [&seen, &unseen].map(|id| read(created(id, 10).named("again"), 50).event());
        apply(&store, readings).await.unwrap();
        assert!(row(&store, &seen).await.deleted_at.is_some());
        assert_eq!(row(&store, &seen).await.email, None);
        assert!(store.user(&unseen).await.unwrap().unwrap().user.is_none());
    }
    let store = home.store().await;
    assert_eq!(store.live_users().await.unwrap(), 0);
}

/// Whatever is told of an account that lives again is taken in, and that it is deleted too.
async fn lives_on(home: &Home, store: &Arc<dyn Store>, id: &str) {
    assert_eq!(apply(store, [updated(id, 70).named("later").event()]).await.unwrap(), [Updated]);
    assert_eq!(row(store, id).await.username.as_deref(), Some("later"));
    assert_eq!(
        home.number(&format!("SELECT count(*) FROM former_clerk_ids WHERE clerk_id = '{id}'")).await,
        0
    );
    assert_eq!(apply(store, [deleted(id, 80)]).await.unwrap(), [Deleted]);
    assert!(row(store, id).await.deleted_at.is_some());
}

async fn revived(store: &Arc<dyn Store>, home: &Home, news: News) -> User {
    let id = news.upsert.clerk_id.clone();
    assert_eq!(apply(store, [revive(news, 50).event()]).await.unwrap(), [Revived]);
    assert_eq!(recorded(home, &format!("api_{id}_50")).await, "revived");
    let user = row(store, &id).await;
    assert_eq!(user.deleted_at, None);
    user
}

async fn a_kept_row_lives_again_with_its_applications_columns(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [ann(10).event()]).await.unwrap();
    let right = mirrored(&home, "ann").await;
    home.sql("UPDATE users SET credits_balance = 7, subscription_tier = 'pro'").await;
    let before = row(&store, "ann").await;
    // Its address went to another account, and comes back.
    apply(&store, [deleted("ann", 20), created("bob", 5).unverified("ann@example.com").event()])
        .await
        .unwrap();
    assert_eq!(row(&store, "bob").await.email.as_deref(), Some("ann@example.com"));
    let after = revived(&store, &home, ann(10)).await;
    assert_eq!((after.id, after.credits_balance), (before.id, 7));
    assert_eq!(mirrored(&home, "ann").await, right);
    assert_eq!(row(&store, "bob").await.email, None);
    lives_on(&home, &store, "ann").await;
}

async fn an_erased_row_lives_again_with_its_applications_columns(home: Arc<Home>) {
    let store = home.store_with(ERASE).await;
    apply(&store, [ann(10).event()]).await.unwrap();
    let right = mirrored(&home, "ann").await;
    home.sql("UPDATE users SET credits_balance = 7").await;
    let before = row(&store, "ann").await;
    apply(&store, [deleted("ann", 20)]).await.unwrap();
    assert_eq!(row(&store, "ann").await.first_name, None);
    let after = revived(&store, &home, ann(10)).await;
    assert_eq!((after.id, after.credits_balance), (before.id, 7));
    assert_eq!(mirrored(&home, "ann").await, right);
    lives_on(&home, &store, "ann").await;
}

async fn an_id_deleted_before_it_was_seen_lives_again(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [deleted("ann", 20)]).await.unwrap();
    let ann = revived(&store, &home, created("ann", 10).verified(X)).await;
    assert_eq!(ann.email.as_deref(), Some(X));
    lives_on(&home, &store, "ann").await;
}

async fn a_relinked_former_id_lives_again_in_a_row_of_its_own(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [created("ann", 10).verified(X).event()]).await.unwrap();
    home.sql("UPDATE users SET credits_balance = 7").await;
    let before = row(&store, "ann").await;
    let relinked = apply(&store, [deleted("ann", 20), created("bob", 30).verified(X).event()]).await.unwrap();
    assert_eq!(relinked, [Deleted, Relinked]);
    let ann = revived(&store, &home, created("ann", 10).verified(X)).await;
    let bob = row(&store, "bob").await;
    assert_eq!((bob.id, bob.credits_balance, bob.email.as_deref()), (before.id, 7, Some(X)));
    assert!(ann.id != before.id && ann.credits_balance != 7 && ann.email.is_none());
    lives_on(&home, &store, "ann").await;
    assert_eq!(rows(&store).await.len(), 2);
}

async fn who_lives_again_and_leaves_in_one_batch_is_known_as_deleted(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [deleted("ann", 20)]).await.unwrap();
    let batch = [
        revive(created("ann", 10).verified(X), 50).event(),
        deleted("ann", 60),
        created("bob", 70).verified(X).event(),
    ];
    assert_eq!(apply(&store, batch).await.unwrap(), [Revived, Deleted, Relinked]);
    let known = "SELECT count(*) FROM former_clerk_ids WHERE clerk_id = 'ann' AND user_id IS NOT NULL";
    assert_eq!(home.number(known).await, 1);
    assert_eq!(apply(&store, [updated("ann", 55).verified(X).event()]).await.unwrap(), [Stale]);
    assert_eq!(store.live_users().await.unwrap(), 1);
}

async fn a_reading_before_the_deletion_revives_nobody(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [created("ann", 10).event(), deleted("ann", 50), deleted("bob", 51)]).await.unwrap();
    let readings = ["ann", "bob"].map(|id| revive(created(id, 10), 50).event());
    assert_eq!(apply(&store, readings).await.unwrap(), [Stale, Stale]);
    assert_eq!(store.live_users().await.unwrap(), 0);
}

/// A message of headcount's own, as the worker reads it.
fn parsed(message: &headcount::message::Message, keep_object: bool) -> Incoming {
    let known =
        Known { origin: message.origin, keep_object, ..Known::webhook(&message.id, message.received_at) };
    let parsed = clerk::parse(&message.body, &known).unwrap();
    let event = Event {
        message_id: message.id.as_str().to_owned(),
        change: parsed.change,
        fresh_row: Uuid::now_v7(),
        patience_over: false,
    };
    Incoming { event, event_type: parsed.event_type, received_at: message.received_at }
}

async fn who_is_gone_is_deleted_as_by_a_webhook(home: Arc<Home>) {
    let store = home.store().await;
    let gone = |id: &str, at| parsed(&api::gone(id, at, "ins_1"), false);
    const READ: i64 = 1_767_323_045_678;
    apply(&store, [created("ann", 10).verified(X).event(), created("bob", 20).unverified(X).event()])
        .await
        .unwrap();
    assert_eq!(apply(&store, [gone("ann", READ), gone("cat", READ)]).await.unwrap(), [Deleted, Deleted]);
    let ann = row(&store, "ann").await;
    assert_eq!(ann.deleted_at.as_deref(), Some("2026-01-02T03:04:05.678Z"));
    assert_eq!(row(&store, "bob").await.email.as_deref(), Some(X), "the address passes on");
    assert_eq!(recorded(&home, &format!("api_ann_gone_{READ}")).await, "deleted");
    // It is final, as a webhook's.
    let late = [updated("ann", READ + 1).event(), created("cat", 10).event(), gone("ann", READ + 2)];
    assert_eq!(apply(&store, late).await.unwrap(), [Updated, Stale, Stale]);
    assert_eq!(store.live_users().await.unwrap(), 1);
    // The webhook's own time is the better one.
    assert_eq!(apply(&store, [deleted("ann", 1_000)]).await.unwrap(), [Deleted]);
    assert_eq!(row(&store, "ann").await.deleted_at.as_deref(), Some("1970-01-01T00:00:01.000Z"));
    assert_eq!(apply(&store, [gone("ann", READ)]).await.unwrap(), [Duplicate]);
}

/// A user as Clerk writes it.
fn object(id: &str, at: i64, name: &str) -> String {
    format!(
        r#"{{"id":"{id}","object":"user","first_name":"{name}","passkeys":[],"updated_at":{at},"created_at":1767323045000}}"#
    )
}

fn webhook(message_id: &str, event_type: &str, data: &str, keep_object: bool) -> Incoming {
    let body =
        format!(r#"{{"data":{data},"object":"event","timestamp":1767323045678,"type":"{event_type}"}}"#);
    let message = headcount::message::Message {
        id: MessageId::parse(message_id).unwrap(),
        origin: Origin::Webhook,
        event_type: event_type.to_owned(),
        received_at: 1,
        attempt: 0,
        waits: 0,
        round: 0,
        traceparent: None,
        body: body.into(),
    };
    parsed(&message, keep_object)
}

async fn the_whole_object_is_kept_with_the_mirror_and_goes_with_it(home: Arc<Home>) {
    const AT: i64 = 1_767_323_045_000;
    let store = home.store_with(ERASE).await;
    let kept = async || {
        let question = "SELECT coalesce(CAST(clerk AS text), 'none') FROM users WHERE clerk_id = 'user_1'";
        home.texts(question).await.pop().unwrap()
    };
    let same = |text: &str, object: &str| {
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(read(text), read(object));
    };
    let tell = async |id: &str, at, name: &str, keep| {
        let incoming = webhook(id, "user.updated", &object("user_1", at, name), keep);
        apply(&store, [incoming]).await.unwrap()
    };
    tell("m1", AT, "Ann", true).await;
    same(&kept().await, &object("user_1", AT, "Ann"));
    tell("m2", AT + 1, "Eve", true).await;
    same(&kept().await, &object("user_1", AT + 1, "Eve"));
    assert_eq!(tell("m3", AT, "Ann", true).await, [Stale]);
    same(&kept().await, &object("user_1", AT + 1, "Eve"));
    // While the setting is off nothing is kept that could be of another version than the row.
    tell("m4", AT + 2, "Eve", false).await;
    assert_eq!(kept().await, "none");
    tell("m5", AT + 3, "Eve", true).await;
    same(&kept().await, &object("user_1", AT + 3, "Eve"));
    let deletion = webhook("m6", "user.deleted", r#"{"deleted":true,"id":"user_1","object":"user"}"#, true);
    assert_eq!(apply(&store, [deletion]).await.unwrap(), [Deleted]);
    assert_eq!(kept().await, "none");
    assert_eq!(home.number("SELECT count(*) FROM users WHERE erased").await, 1);
}

async fn snapshots_and_webhooks_of_a_user_converge_in_any_order_and_split(home: Arc<Home>) {
    let store = home.store().await;
    let news = |id: &str| {
        [
            created(id, 10).named("one"),
            read(created(id, 10).named("one"), 15),
            updated(id, 20).named("two").born(10),
            read(updated(id, 20).named("two").born(10), 30),
        ]
    };
    let mut accounts = 0;
    for order in orders(4) {
        for size in [1, 2, 4] {
            let id = format!("user_{accounts}");
            accounts += 1;
            let news = news(&id);
            let ordered: Vec<Incoming> = order.iter().map(|place| news[*place].clone().event()).collect();
            for batch in ordered.chunks(size) {
                let outcomes: Vec<Outcome> = apply(&store, batch.to_vec()).await.unwrap();
                assert_eq!(outcomes.len(), batch.len());
            }
            let user = row(&store, &id).await;
            assert_eq!((user.version, user.username.as_deref()), (20, Some("two")), "{order:?} by {size}");
        }
    }
    assert_eq!(store.live_users().await.unwrap(), accounts);
}

/// Every order of so many.
fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let shorter = orders(count - 1);
    let insert = |order: &Vec<usize>, at: usize| {
        let mut order = order.clone();
        order.insert(at, count - 1);
        order
    };
    shorter.iter().flat_map(|order| (0..count).map(move |at| insert(order, at))).collect()
}
