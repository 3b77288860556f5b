//! Once an account is deleted and deletion erases, no table of headcount's holds anything personal of it.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

#[path = "support/stores.rs"]
#[allow(dead_code, reason = "the tests of users use the rest")]
mod stores;

use std::{collections::BTreeSet, sync::Arc};

use headcount::{
    clerk::{self, made_up::Person},
    message::{MessageId, Origin},
    rules::{
        Event, Outcome,
        users::{OnDelete, Policy, Relink},
    },
    store::{
        Incoming, Store, User,
        letters::{Actor, Captured, Filter, Status},
        operations::{Ended, Given, Kind, NewOperation, State},
    },
    time::now,
};
use serde_json::json;
use stores::{Home, KEEP, apply, contract, row};
use support::{
    eventually,
    process::{Backends, World},
};

const ERASE: Policy = Policy { relink: Relink::Deleted, on_delete: OnDelete::Erase };

/// A mark that stands in every personal value.
const MARK: &str = "zzmarkzz";

/// A user whose every mirrored text holds the mark.
fn marked(id: &str) -> Person {
    let mut sample = Person::of(id, 1_767_323_045_678);
    sample.email = Some(format!("{MARK}.{id}@example.com"));
    sample.verified = true;
    sample.phone = Some(format!("+49{MARK}"));
    for text in [&mut sample.username, &mut sample.first_name, &mut sample.last_name, &mut sample.external_id]
    {
        *text = Some(format!("{MARK} {id}"));
    }
    for value in [&mut sample.public_metadata, &mut sample.private_metadata, &mut sample.unsafe_metadata] {
        *value = json!({ "of": MARK });
    }
    sample
}

fn body(sample: &Person, event_type: &str, sent: i64) -> Vec<u8> {
    let body = String::from_utf8(sample.event(event_type, sent)).unwrap();
    // The avatar's address is made of the id; a real one could be of the name.
    body.replace("\"image_url\":\"https://", &format!("\"image_url\":\"https://{MARK}.")).into_bytes()
}

fn incoming(message_id: &str, body: &[u8]) -> Incoming {
    let id = MessageId::parse(message_id).unwrap();
    let known = clerk::Known { keep_object: true, ..clerk::Known::webhook(&id, 1) };
    let parsed = clerk::parse(body, &known).unwrap();
    let event = Event {
        message_id: message_id.into(),
        change: parsed.change,
        fresh_row: uuid::Uuid::now_v7(),
        patience_over: false,
    };
    Incoming { event, event_type: parsed.event_type, received_at: now() }
}

/// A letter that holds the mark wherever another hand could write it.
fn letter(message_id: &str, body: &[u8]) -> Captured {
    Captured {
        message_id: message_id.into(),
        origin: Origin::Webhook,
        round: 0,
        event_type: "user.updated".into(),
        clerk_id: clerk::whose(body),
        reason: "rejected".into(),
        detail: format!("{MARK} is refused"),
        attempts: 7,
        first_seen: now(),
        died_at: now(),
        group: format!("rejected: {MARK} is refused"),
        headers: [("x-note".to_owned(), MARK.to_owned())].into(),
        body: body.to_vec().into(),
    }
}

fn by(note: Option<&str>) -> Actor {
    Actor { name: "ann".into(), note: note.map(str::to_owned) }
}

/// Every column of every table that holds the mark in any row, as `table.column`.
async fn dump(home: &Home) -> BTreeSet<String> {
    let columns = if home.is_postgres() {
        "SELECT table_name || '.' || column_name || '.' || data_type FROM information_schema.columns \
         WHERE table_schema = current_schema()"
    } else {
        "SELECT m.name || '.' || c.name || '.' || c.type FROM sqlite_schema AS m, pragma_table_info(m.name) AS c \
         WHERE m.type = 'table'"
    };
    let columns = home.texts(columns).await;
    assert!(columns.len() > 60, "{columns:?}");
    let mut found = BTreeSet::new();
    for column in columns {
        let [table, name, kind] = column.splitn(3, '.').collect::<Vec<_>>()[..] else { panic!("{column}") };
        let holds = match (home.is_postgres(), kind) {
            (true, "bytea") => format!("position(convert_to('{MARK}', 'UTF8') IN {name}) > 0"),
            (true, _) => format!("position('{MARK}' IN lower(\"{name}\"::text)) > 0"),
            (false, _) => format!("instr(lower(CAST(\"{name}\" AS TEXT)), '{MARK}') > 0"),
        };
        if home.number(&format!("SELECT count(*) FROM {table} WHERE {holds}")).await > 0 {
            found.insert(format!("{table}.{name}"));
        }
    }
    found
}

/// Where a person's data is, as ARCHITECTURE.md lists it.
const EVERYWHERE: [&str; 25] = [
    "dead_letter_contents.body",
    "dead_letter_contents.headers",
    "dead_letter_history.note",
    "dead_letter_tallies.grp",
    "dead_letters.detail",
    "dead_letters.grp",
    "dead_letters.search",
    "operations.detail",
    "operations.note",
    "operations.what",
    "tier_grants.ended_note",
    "tier_grants.note",
    "users.clerk",
    "users.clerk_email",
    "users.email",
    "users.email_key",
    "users.external_id",
    "users.first_name",
    "users.image_url",
    "users.last_name",
    "users.phone",
    "users.private_metadata",
    "users.public_metadata",
    "users.unsafe_metadata",
    "users.username",
];

/// Makes a user, and letters about it in each state that a letter can be in: applied, discarded, edited to be about it,
/// and open.
async fn plant(store: &Arc<dyn Store>, id: &str) {
    let sample = marked(id);
    let update = body(&sample, "user.updated", 1_767_323_045_679);
    apply(store, [incoming(&format!("msg_{id}"), &body(&sample, "user.created", 1_767_323_045_678))])
        .await
        .unwrap();
    let message = |name: &str| format!("msg_{id}_{name}");
    let of_nobody = br#"{"data":{},"object":"event","type":"user.updated"}"#;
    store
        .capture(&[
            letter(&message("applied"), &update),
            letter(&message("discarded"), &update),
            letter(&message("edited"), of_nobody),
            letter(&message("open"), &update),
        ])
        .await
        .unwrap();
    apply(store, [incoming(&message("applied"), &update)]).await.unwrap();
    let of = async |name: &str| store.show(&message(name)).await.unwrap().unwrap().letter;
    let discarded = Filter { ids: vec![of("discarded").await.id], ..Filter::default() };
    let note = format!("{MARK} has asked for it");
    assert_eq!(store.discard(&discarded, 1, &by(Some(&note))).await.unwrap(), 1);
    let edited = of("edited").await;
    assert_eq!(edited.clerk_id, None);
    store.edit(edited.id, update.clone().into(), &by(Some(&note))).await.unwrap().unwrap();
    assert_eq!(of("edited").await.clerk_id.as_deref(), Some(id));
    apply(store, [incoming(&message("edited"), &update)]).await.unwrap();
    act(store, Some(id), None).await;
    act(store, None, Some(edited.id)).await;
    let row = row(store, id).await.id;
    for _ in 0..2 {
        store.grant(row, "pro", None, &by(Some(&note))).await.unwrap().unwrap();
        store.revoke(row, &by(Some(&note))).await.unwrap().unwrap();
    }
}

/// Somebody does something about a user or a letter, and writes down why.
async fn act(store: &Arc<dyn Store>, clerk_id: Option<&str>, letter_id: Option<uuid::Uuid>) {
    let holder = uuid::Uuid::now_v7();
    let new = NewOperation {
        kind: Kind::Replay,
        by: by(Some(&format!("{MARK} has asked for it"))),
        what: json!({ "text": MARK }),
        clerk_id: clerk_id.map(str::to_owned),
        letter_id,
        expected: 1,
        order: Some(Given {
            filter: Filter { text: Some(MARK.into()), ..Filter::default() },
            limit: 1,
            rate: None,
            halt_at: None,
            open: 1,
        }),
        holder: Some(holder),
        most: None,
    };
    let begun = store.begin_operation(&new).await.unwrap().unwrap();
    let detail = Some(format!("{MARK} is refused"));
    let end = Ended { state: State::Failed, detail, published: 0, applied: 0, died: 0 };
    assert!(store.end_operation(begun.id, holder, &end).await.unwrap());
}

fn deletion(id: &str) -> Incoming {
    incoming(&format!("msg_{id}_deleted"), &body(&marked(id), "user.deleted", now()))
}

async fn planted_everywhere(home: &Home) {
    let expected: BTreeSet<String> = EVERYWHERE.iter().map(|&place| place.to_owned()).collect();
    assert_eq!(dump(home).await, expected);
}

async fn nothing_personal_is_left_in_any_table_of_a_user_who_is_deleted(home: Arc<Home>) {
    let store = home.store_with(ERASE).await;
    plant(&store, "user_1").await;
    planted_everywhere(&home).await;
    assert_eq!(apply(&store, [deletion("user_1")]).await.unwrap(), [Outcome::Deleted]);
    // What is open waits for people; it is about nobody who could still be changed, and goes when it is settled.
    let open = Filter { status: Some(Status::Open), ..Filter::default() };
    let claimed = store.claim(&open, 10, &by(None)).await.unwrap();
    assert_eq!(claimed.len(), 1);
    let replayed = incoming(&claimed[0].message_id, &claimed[0].body);
    assert_eq!(apply(&store, [replayed]).await.unwrap(), [Outcome::Stale]);
    // Nor is anything kept that people write about the row later.
    let erased = row(&store, "user_1").await;
    let note = format!("{MARK} was mistaken");
    store.grant(erased.id, "pro", None, &by(Some(&note))).await.unwrap().unwrap();
    store.revoke(erased.id, &by(Some(&note))).await.unwrap().unwrap();
    act(&store, Some("user_1"), None).await;
    assert_eq!(home.number("SELECT count(*) FROM operations WHERE who = 'ann'").await, 3, "who did it stays");
    assert_eq!(dump(&home).await, BTreeSet::new());
    assert!(erased.deleted_at.is_some());
}

async fn users_deleted_while_deletions_were_kept_are_erased_in_small_steps(home: Arc<Home>) {
    let kept = home.store_with(KEEP).await;
    for n in 0..5 {
        plant(&kept, &format!("user_{n}")).await;
    }
    // One who was deleted before being seen has no row, and a letter.
    kept.capture(&[letter("msg_unseen", &body(&marked("user_unseen"), "user.updated", 1))]).await.unwrap();
    let all = Filter { status: Some(Status::Open), ..Filter::default() };
    kept.discard(&all, 100, &by(None)).await.unwrap();
    let gone = ["user_0", "user_1", "user_2", "user_3", "user_unseen"];
    apply(&kept, gone.map(deletion)).await.unwrap();
    assert_eq!(kept.erase_kept(100).await.unwrap(), 0, "deletions are kept");
    planted_everywhere(&home).await;
    kept.close().await;

    let store = home.store_with(ERASE).await;
    let mut steps = Vec::new();
    loop {
        match store.erase_kept(3).await.unwrap() {
            0 => break,
            users => steps.push(users),
        }
    }
    assert_eq!(steps, [3, 1, 1], "small steps, and the one without a row");
    // The one who is there keeps everything.
    planted_everywhere(&home).await;
    assert_eq!(row(&store, "user_4").await.first_name.as_deref(), Some("zzmarkzz user_4"));
    for n in 0..4 {
        let user = row(&store, &format!("user_{n}")).await;
        assert_eq!((user.first_name, user.clerk_email, user.banned), (None, None, None));
        assert!(user.deleted_at.is_some());
    }
    apply(&store, [deletion("user_4")]).await.unwrap();
    assert_eq!(dump(&home).await, BTreeSet::new());
}

contract! {
    nothing_personal_is_left_in_any_table_of_a_user_who_is_deleted
    users_deleted_while_deletions_were_kept_are_erased_in_small_steps
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_erases_at_its_start_what_was_deleted_before_it_was_told_to() {
    let mut world = World::new(Backends::Embedded);
    let up = world.start(&["up"]);
    let sample = marked("user_1");
    for (id, event) in [("msg_1", "user.created"), ("msg_2", "user.deleted")] {
        let status = up.poster().post(id, body(&sample, event, now()).into()).await.unwrap();
        assert!(status.is_success());
    }
    let is_deleted = |users: &[User]| users.first().is_some_and(|user| user.deleted_at.is_some());
    let users = world.until_users("the user is deleted", is_deleted).await;
    assert!(users[0].clerk_email.is_some(), "deletions are kept");
    up.stop();
    world.set("HEADCOUNT_ON_DELETE", "erase");
    let up = world.start(&["up"]);
    let users = world.until_users("the user is erased", |users| users[0].clerk_email.is_none()).await;
    assert!(users[0].first_name.is_none());
    eventually("the worker says so", async || up.log().contains("erased 1 user that")).await;
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_user_that_the_database_keeps_from_being_erased_holds_up_no_other() {
    let mut world = World::new(Backends::Embedded);
    let up = world.start(&["up"]);
    for n in 0..8 {
        for event in ["user.created", "user.deleted"] {
            let body = body(&marked(&format!("user_{n}")), event, now());
            let status = up.poster().post(&format!("msg_{n}_{event}"), body.into()).await.unwrap();
            assert!(status.is_success());
        }
    }
    let are_deleted = |users: &[User]| users.len() == 8 && users.iter().all(|user| user.deleted_at.is_some());
    world.until_users("all are deleted", are_deleted).await;
    up.stop();
    let path = world.directory.path().join("data/headcount.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let guard = "CREATE TRIGGER guard BEFORE UPDATE ON users WHEN OLD.clerk_id = 'user_0' \
                 BEGIN SELECT RAISE(ABORT, 'no'); END";
    sqlx::raw_sql(guard).execute(&pool).await.unwrap();
    pool.close().await;
    world.set("HEADCOUNT_ON_DELETE", "erase");
    let up = world.start(&["up"]);
    let is_left = |users: &[User]| {
        let left = users.iter().filter(|user| user.first_name.is_some());
        left.map(|user| user.clerk_id.as_str()).eq(["user_0"])
    };
    world.until_users("the others are erased", is_left).await;
    assert_eq!(up.log().matches("are not erased yet").count(), 1, "{}", up.log());
    up.stop();
}

#[test]
fn every_place_of_personal_data_is_listed() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let document = std::fs::read_to_string(path).unwrap();
    let (_, list) = document.split_once("## What is kept of a person").unwrap();
    for place in EVERYWHERE {
        let (table, column) = place.split_once('.').unwrap();
        let row = list.lines().find(|line| line.starts_with(&format!("| `{table}`"))).expect(table);
        assert!(row.contains(&format!("`{column}`")), "{place}");
    }
}
