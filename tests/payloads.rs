//! Whatever a payload holds, it becomes a row or is named as unreadable. Both databases accept everything that the parser
//! accepts, so that no message can fail for ever.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

#[path = "support/stores.rs"]
#[allow(dead_code, reason = "this binary uses a part of it")]
mod stores;

use std::sync::Arc;

use headcount::{
    clerk::{self, made_up::Person},
    message::MessageId,
    rules::{Event, Outcome},
    store::{Incoming, Store},
};
use serde_json::{Value, json};
use stores::Home;

/// Every field that the fold or the mirror reads, as a path into the payload.
const FIELDS: &[&str] = &[
    "/timestamp",
    "/type",
    "/data/id",
    "/data/created_at",
    "/data/updated_at",
    "/data/last_sign_in_at",
    "/data/first_name",
    "/data/last_name",
    "/data/username",
    "/data/image_url",
    "/data/external_id",
    "/data/banned",
    "/data/locked",
    "/data/primary_email_address_id",
    "/data/primary_phone_number_id",
    "/data/email_addresses",
    "/data/email_addresses/0",
    "/data/email_addresses/0/id",
    "/data/email_addresses/0/email_address",
    "/data/email_addresses/0/verification",
    "/data/email_addresses/0/verification/status",
    "/data/phone_numbers",
    "/data/phone_numbers/0/id",
    "/data/phone_numbers/0/phone_number",
    "/data/public_metadata",
    "/data/private_metadata",
    "/data/unsafe_metadata",
    "/data",
];

/// What is put in their place, as JSON text: much of it is nothing that `serde_json` would write.
fn nasty() -> Vec<String> {
    let deep =
        |open: &str, close: &str, depth: usize| format!("{}1{}", open.repeat(depth), close.repeat(depth));
    let mut values: Vec<String> = [
        "null",
        "true",
        "0",
        "-1",
        "7.5",
        "1e3",
        "1e400",
        "-1e400",
        "1E-5000",
        "99999999999999999999999999",
        "-9223372036854775809",
        "253402300800000",
        "253402300799999",
        "-62135596800000",
        "-62135596800001",
        "99999999999",
        r#""""#,
        r#"" ""#,
        r#""text""#,
        r#""a\u0000b""#,
        r#""\ud800""#,
        r#""\udc00\ud800""#,
        r#""\ud83d\ude00""#,
        r#""\\u0000""#,
        "[]",
        "{}",
        r#"{"a":"\u0000"}"#,
        r#"{"\u0000":1}"#,
        r#"{"a":"\ud800x"}"#,
        r#"{"a":1,"a":2}"#,
        r#"{"a":1e400}"#,
        r#"{"a":1e-400}"#,
        r#"{"a":123456789012345678901234567890.123456789}"#,
        r#"[{"id":1}]"#,
        r#"[null]"#,
        r#"[[]]"#,
        "\"line\\nbreak\\t\\u001f\"",
        "\"\u{202e}rtl\u{fffd}\"",
    ]
    .map(str::to_owned)
    .into();
    values.push(format!("\"{}\"", "x".repeat(70_000)));
    values.push(format!("\"{}@example.com\"", "x".repeat(3_000)));
    values.push(format!("{{\"a\":\"{}\"}}", "é".repeat(100_000)));
    values.push(format!("{{\"a\":{}}}", "9".repeat(2_000)));
    values.push(format!("{{\"a\":{}}}", deep("[", "]", 90)));
    values.push(format!("{{\"a\":{}}}", deep("[", "]", 120)));
    values.push(deep("{\"a\":", "}", 90));
    values.push(deep("[", "]", 100_000));
    values
}

/// A payload with one value replaced by raw text.
fn body(id: &str, field: &str, value: &str) -> String {
    let mut sample = Person::of(id, 1_700_000_000_000);
    sample.email = Some(format!("{id}@example.com"));
    sample.phone = Some("+15555550100".into());
    let mut payload: Value =
        serde_json::from_slice(&sample.event("user.updated", 1_700_000_000_500)).unwrap();
    const MARK: &str = "the nasty value stands here";
    *payload.pointer_mut(field).unwrap_or_else(|| panic!("{field} is in no sample")) = json!(MARK);
    serde_json::to_string(&payload).unwrap().replace(&format!("\"{MARK}\""), value)
}

async fn every_payload_ends_as_a_row_or_is_named(home: Arc<Home>) {
    let store = home.store().await;
    let (mut rows, mut named) = (0, 0);
    let mut batch: Vec<Incoming> = Vec::new();
    for (f, field) in FIELDS.iter().enumerate() {
        for (v, value) in nasty().into_iter().enumerate() {
            let id = format!("user_{f}_{v}");
            let body = body(&id, field, &value);
            let message_id = MessageId::parse(&format!("msg_{f}_{v}")).unwrap();
            match clerk::parse(body.as_bytes(), &clerk::Known::webhook(&message_id, 1)) {
                Ok(parsed) => {
                    rows += 1;
                    let event = Event {
                        message_id: message_id.as_str().into(),
                        change: parsed.change,
                        fresh_row: uuid::Uuid::now_v7(),
                        patience_over: true,
                    };
                    let incoming = Incoming { event, event_type: parsed.event_type, received_at: 1 };
                    // Alone, so that a failure names its field; and all together below.
                    let alone = store.apply(Arc::new([incoming.clone()])).await;
                    assert!(
                        alone.is_ok(),
                        "{field} = {}: {}",
                        &value[..value.len().min(80)],
                        alone.unwrap_err()
                    );
                    batch.push(incoming);
                }
                Err(error) => {
                    named += 1;
                    let leaf = field.rsplit('/').find(|part| part.parse::<usize>().is_err()).unwrap();
                    let about_it = error.detail.contains(leaf)
                        || value.len() > 50_000
                        || error.detail.starts_with("data");
                    assert!(about_it, "{field} = {}: {}", &value[..value.len().min(80)], error.detail);
                    assert!(!error.detail.contains("@example.com"), "{}", error.detail);
                }
            }
        }
    }
    assert!(rows > 200 && named > 200, "{rows} rows, {named} named");
    for part in batch.chunks(200) {
        store.apply(part.into()).await.unwrap();
    }
    // And what people are shown can be read back.
    assert!(stores::rows(&store).await.len() > 150);
}

/// Parses and applies one message, and tells what became of it.
async fn tell(store: &Arc<dyn Store>, id: &str, body: &str) -> Outcome {
    let message_id = MessageId::parse(id).unwrap();
    let received_at = 1_790_000_000_000;
    let parsed = clerk::parse(body.as_bytes(), &clerk::Known::webhook(&message_id, received_at)).unwrap();
    let event = Event {
        message_id: id.into(),
        change: parsed.change,
        fresh_row: uuid::Uuid::now_v7(),
        patience_over: true,
    };
    let incoming = Incoming { event, event_type: parsed.event_type, received_at };
    store.apply(Arc::new([incoming])).await.unwrap()[0]
}

async fn no_event_is_buried_for_want_of_a_time(home: Arc<Home>) {
    let store = home.store().await;
    let event =
        |kind: &str, data: &str| format!(r#"{{"type":"user.{kind}","data":{{"id":"user_1"{data}}}}}"#);
    let told = [
        ("msg_1", event("created", r#","created_at":1700000000,"first_name":"Ada""#), Outcome::Created),
        ("msg_2", event("updated", r#","created_at":1600000000000,"first_name":"Old""#), Outcome::Stale),
        ("msg_3", event("updated", r#","first_name":"Grace""#), Outcome::Updated),
        ("msg_4", event("deleted", ""), Outcome::Deleted),
    ];
    for (id, body, outcome) in told {
        assert_eq!(tell(&store, id, &body).await, outcome, "{body}");
    }
    let [row] = &stores::rows(&store).await[..] else { panic!("one row") };
    assert_eq!(row.first_name.as_deref(), Some("Grace"));
    assert!(row.deleted_at.is_some());
}

async fn whom_an_import_brings_back_with_an_old_creation_time_is_relinked(home: Arc<Home>) {
    let store = home.store().await;
    let user = |id: &str, sent: i64, created_at: i64| {
        let mut sample = Person::of(id, created_at);
        sample.email = Some("ada@example.com".into());
        String::from_utf8(sample.event("user.created", sent)).unwrap()
    };
    let (first, gone, back) = (1_700_000_000_000, 1_710_000_000_000_i64, 1_720_000_000_000);
    assert_eq!(tell(&store, "msg_1", &user("user_1", first, first)).await, Outcome::Created);
    let deleted = format!(r#"{{"type":"user.deleted","timestamp":{gone},"data":{{"id":"user_1"}}}}"#);
    assert_eq!(tell(&store, "msg_2", &deleted).await, Outcome::Deleted);
    assert_eq!(tell(&store, "msg_3", &user("user_2", back, first)).await, Outcome::Relinked);
    assert_eq!(stores::rows(&store).await.len(), 1);
}

#[tokio::test]
async fn no_event_is_buried_for_want_of_a_time_on_either_store() {
    Home::postgres().await.run(no_event_is_buried_for_want_of_a_time).await;
    Home::sqlite().await.run(no_event_is_buried_for_want_of_a_time).await;
}

#[tokio::test]
async fn whom_an_import_brings_back_is_relinked_on_either_store() {
    Home::postgres().await.run(whom_an_import_brings_back_with_an_old_creation_time_is_relinked).await;
    Home::sqlite().await.run(whom_an_import_brings_back_with_an_old_creation_time_is_relinked).await;
}

#[tokio::test]
async fn every_payload_ends_as_a_row_or_is_named_on_postgresql() {
    Home::postgres().await.run(every_payload_ends_as_a_row_or_is_named).await;
}

#[tokio::test]
async fn every_payload_ends_as_a_row_or_is_named_on_sqlite() {
    Home::sqlite().await.run(every_payload_ends_as_a_row_or_is_named).await;
}
