//! Every way that a payload can be wrong, and what is read from one that is right.

use std::time::Instant;

use serde_json::{Value, json};

use super::{user::ADDRESS_MAX, *};
use crate::rules::users::{self, Claim, Profile, Upsert, Version};

const AT: i64 = 1_760_000_000_123;

const RECEIVED: i64 = AT + 900;

/// What is read in one pass is what is read in two.
fn parse(body: &[u8], id: &MessageId) -> Result<Parsed, PayloadError> {
    let known = super::Known::webhook(id, RECEIVED);
    if let Some(at_once) = parse_at_once(body, &known) {
        assert_eq!(
            format!("{:?}", parse_in_two(body, &known)),
            format!("{:?}", Ok::<_, PayloadError>(at_once))
        );
    }
    super::parse(body, &known)
}

fn id() -> MessageId {
    MessageId::parse("msg_1").unwrap()
}

fn user() -> Value {
    json!({
        "data": {
            "banned": false,
            "created_at": AT - 1000,
            "email_addresses": [
                {"email_address": "second@example.com", "id": "idn_2", "verification": {"status": "unverified"}},
                {"email_address": "Ada@Example.com", "id": "idn_1", "verification": {"status": "verified"}}
            ],
            "external_id": "ext-1",
            "first_name": "Ada",
            "id": "user_ada",
            "image_url": "https://img.example.com/ada",
            "last_name": "Lovelace",
            "last_sign_in_at": AT - 10,
            "locked": true,
            "object": "user",
            "phone_numbers": [{"id": "idn_3", "phone_number": "+15555550100", "verification": null}],
            "primary_email_address_id": "idn_1",
            "primary_phone_number_id": "idn_3",
            "private_metadata": {"z": 1, "a": 2},
            "public_metadata": {},
            "unsafe_metadata": {"theme": "dark"},
            "updated_at": AT,
            "username": "ada"
        },
        "object": "event",
        "timestamp": AT + 500,
        "type": "user.updated"
    })
}

fn parse_value(value: &Value) -> Result<Parsed, PayloadError> {
    parse(value.to_string().as_bytes(), &id())
}

/// `user()` with one place replaced by raw JSON text, or removed.
fn with(pointer: &str, raw: Option<&str>) -> String {
    const MARK: &str = "@@here@@";
    let mut value = user();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match (value.pointer_mut(parent).unwrap(), raw) {
        (Value::Object(fields), Some(_)) => drop(fields.insert(key.into(), json!(MARK))),
        (Value::Object(fields), None) => drop(fields.remove(key).unwrap()),
        (Value::Array(elements), _) => elements[key.parse::<usize>().unwrap()] = json!(MARK),
        _ => panic!("{pointer}"),
    }
    value.to_string().replace(&format!("\"{MARK}\""), raw.unwrap_or_default())
}

fn upsert_of(body: &str) -> Result<Upsert, PayloadError> {
    match parse(body.as_bytes(), &id())?.change {
        Change::User(users::Change::Upsert(upsert)) => Ok(*upsert),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_whole_user_is_read() {
    let parsed = parse_value(&user()).unwrap();
    assert_eq!((parsed.event_type.as_str(), parsed.sent), ("user.updated", Some(AT + 500)));
    let Change::User(users::Change::Upsert(upsert)) = parsed.change else { panic!() };
    assert_eq!(upsert.clerk_id, "user_ada");
    assert_eq!(
        upsert.version,
        Version { at: AT, sent: AT + 500, kind: UpsertKind::Updated, message_id: "msg_1".into() }
    );
    assert_eq!(upsert.born, AT - 1000);
    assert_eq!(upsert.claim, Some(Claim::new("Ada@Example.com", true)));
    let profile = Profile {
        phone: Some("+15555550100".into()),
        username: Some("ada".into()),
        first_name: Some("Ada".into()),
        last_name: Some("Lovelace".into()),
        image_url: Some("https://img.example.com/ada".into()),
        external_id: Some("ext-1".into()),
        public_metadata: Some("{}".into()),
        private_metadata: Some(r#"{"a":2,"z":1}"#.into()),
        unsafe_metadata: Some(r#"{"theme":"dark"}"#.into()),
        banned: Some(false),
        locked: Some(true),
        last_sign_in_at: Some(AT - 10),
        created_at: Some(AT - 1000),
        updated_at: Some(AT),
        clerk: None,
    };
    assert_eq!(*upsert.profile, profile);
}

#[test]
fn the_smallest_user_is_an_id_and_a_time() {
    let upsert =
        upsert_of(r#"{"type":"user.created","timestamp":1760000000,"data":{"id":"user_1"}}"#).unwrap();
    assert_eq!((upsert.version.at, upsert.version.sent), (1_760_000_000_000, 1_760_000_000_000));
    assert_eq!((upsert.born, upsert.version.kind), (1_760_000_000_000, UpsertKind::Created));
    assert_eq!(upsert.claim, None);
    assert_eq!(*upsert.profile, Profile::default());

    let upsert = upsert_of(r#"{"type":"user.created","data":{"id":"user_1","updated_at":7}}"#).unwrap();
    assert_eq!((upsert.version.at, upsert.version.sent, upsert.born), (7000, 0, 7000));
}

#[test]
fn an_event_takes_its_time_from_data_envelope_creation_or_receipt() {
    let of = |kind: &str, envelope: &str, data: &str| {
        let body = format!(r#"{{"type":"user.{kind}"{envelope},"data":{{"id":"user_1"{data}}}}}"#);
        match parse(body.as_bytes(), &id()).unwrap().change {
            Change::User(users::Change::Upsert(upsert)) => upsert.version.at,
            Change::User(users::Change::Delete { at, .. }) => at,
            Change::Session(_) | Change::Subscription(_) | Change::Other => panic!("{body}"),
        }
    };
    let (sent, created, updated) = (
        format!(r#","timestamp":{}"#, AT + 1),
        format!(r#","created_at":{}"#, AT + 2),
        format!(r#","updated_at":{}"#, AT + 3),
    );
    for kind in ["created", "updated", "deleted"] {
        assert_eq!(of(kind, &sent, &format!("{created}{updated}")), AT + 3, "{kind}");
        assert_eq!(of(kind, &sent, &created), AT + 1, "{kind}");
        assert_eq!(of(kind, "", &created), AT + 2, "{kind}");
        assert_eq!(of(kind, "", ""), RECEIVED, "{kind}");
    }
}

#[test]
fn a_user_is_born_when_the_creation_was_sent_whatever_an_import_says() {
    let born = |kind: &str, envelope: &str, data: &str| {
        let body = format!(r#"{{"type":"user.{kind}"{envelope},"data":{{"id":"user_1"{data}}}}}"#);
        upsert_of(&body).unwrap().born
    };
    let sent = format!(r#","timestamp":{AT}"#);
    let old = r#","created_at":1500000000000,"updated_at":1600000000000"#;
    assert_eq!(born("created", &sent, old), AT);
    assert_eq!(born("updated", &sent, old), 1_500_000_000_000);
    assert_eq!(born("created", "", old), 1_500_000_000_000);
    assert_eq!(born("updated", "", r#","updated_at":1600000000000"#), 1_600_000_000_000);
}

#[test]
fn a_deletion_needs_an_id_and_nothing_else() {
    let deleted = |body: &str| parse(body.as_bytes(), &id()).map(|parsed| parsed.change);
    let at = |body: &str| match deleted(body).unwrap() {
        Change::User(users::Change::Delete { clerk_id, at }) => (clerk_id, at),
        other => panic!("{other:?}"),
    };
    let plain = r#"{"type":"user.deleted","timestamp":1760000000123,"data":{"deleted":true,"id":"user_1","object":"user"}}"#;
    assert_eq!(at(plain), ("user_1".into(), AT));
    assert_eq!(at(r#"{"type":"user.deleted","data":{"id":"user_1"}}"#), ("user_1".into(), RECEIVED));
    let nameless = r#"{"type":"user.deleted","timestamp":1,"data":{"deleted":true}}"#;
    assert_eq!(deleted(nameless).unwrap_err().detail, "data.id: missing");
    let empty = r#"{"type":"user.deleted","timestamp":1,"data":null}"#;
    assert_eq!(deleted(empty).unwrap_err().detail, "data: missing");
}

#[test]
fn other_types_ask_nothing_of_their_data() {
    for body in [
        r#"{"type":"email.created"}"#,
        r#"{"data":null,"type":"email.created","timestamp":"soon"}"#,
        r#"{"data":"x","type":"email.created"}"#,
        r#"{"data":{"object":"user","id":5},"type":"email.created","timestamp":-1.5}"#,
    ] {
        let parsed = parse(body.as_bytes(), &id()).unwrap();
        assert!(matches!(parsed.change, Change::Other), "{body}");
        assert_eq!((parsed.event_type.as_str(), parsed.sent), ("email.created", None));
    }
    let parsed = parse(br#"{"type":"sms.created","timestamp":1760000000123}"#, &id()).unwrap();
    assert_eq!(parsed.sent, Some(AT));
}

#[test]
fn the_listed_types_are_those_that_are_read() {
    for event_type in TYPES {
        let body = match event_type.split('.').next().unwrap() {
            "session" => format!(r#"{{"data":{{"id":"sess_1","user_id":"user_1"}},"type":"{event_type}"}}"#),
            "subscription" | "subscriptionItem" => {
                let data = r#"{"id":"csubi_1","status":"active","payer":{"user_id":"user_1"}}"#;
                format!(r#"{{"data":{data},"type":"{event_type}"}}"#)
            }
            _ if event_type == SUBSCRIPTION => {
                format!(r#"{{"data":{{"subscription_items":[]}},"payer":"user_1","type":"{event_type}"}}"#)
            }
            _ => with("/type", Some(&format!("\"{event_type}\""))),
        };
        let parsed =
            super::parse(body.as_bytes(), &Known { origin: Origin::Api, ..Known::webhook(&id(), RECEIVED) });
        assert!(!matches!(parsed.unwrap().change, Change::Other), "{event_type}");
    }
}

#[test]
fn no_webhook_can_say_what_only_headcount_says() {
    for event_type in [SNAPSHOT, GONE, SUBSCRIPTION, "headcount.anything"] {
        let body = with("/type", Some(&format!("\"{event_type}\"")));
        let error = parse(body.as_bytes(), &id()).unwrap_err();
        assert_eq!(error.detail, "type: only headcount itself makes events of this type", "{event_type}");
    }
    let body = with("/type", Some("\"headcount.doctor\""));
    assert!(matches!(parse(body.as_bytes(), &id()).unwrap().change, Change::Other), "of an older ingress");
    let body = r#"{"type":"user.updated","revive":true,"timestamp":1,"data":{"id":"user_1"}}"#;
    assert_eq!(upsert_of(body).unwrap().source, Source::Webhook);
}

#[test]
fn a_snapshot_is_read_like_an_update_and_says_when_it_was_read() {
    let id = id();
    let known = Known { origin: Origin::Api, ..Known::webhook(&id, RECEIVED) };
    for (revive, asked) in [("", false), (r#""revive":true,"#, true)] {
        let body = format!(
            r#"{{"type":"headcount.user","instance_id":"ins_1","timestamp":{},{revive}"data":{{"id":"user_1","updated_at":{AT}}}}}"#,
            AT + 5
        );
        let parsed = super::parse(body.as_bytes(), &known).unwrap();
        assert_eq!(
            (parsed.instance.as_deref(), whose(body.as_bytes()).as_deref()),
            (Some("ins_1"), Some("user_1"))
        );
        let Change::User(users::Change::Upsert(upsert)) = parsed.change else { panic!() };
        assert_eq!(
            (upsert.version.at, upsert.version.sent, upsert.version.kind),
            (AT, AT + 5, UpsertKind::Updated)
        );
        assert_eq!(upsert.source, Source::Api { revive: asked });
    }
    let body = format!(
        r#"{{"type":"headcount.user_gone","timestamp":{AT},"data":{{"id":"user_1","deleted":true}}}}"#
    );
    let parsed = super::parse(body.as_bytes(), &known).unwrap();
    assert!(matches!(parsed.change, Change::User(users::Change::Delete { at: AT, .. })));
}

#[test]
fn the_whole_object_is_kept_only_where_that_is_asked_for() {
    let body = r#"{"type":"user.updated","timestamp":1,"data":{"id":"user_1","new":{"a":[1]}}}"#;
    let id = id();
    let kept = |keep_object| {
        let known = Known { keep_object, ..Known::webhook(&id, RECEIVED) };
        match super::parse(body.as_bytes(), &known).unwrap().change {
            Change::User(users::Change::Upsert(upsert)) => upsert.profile.clerk.clone(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(kept(false), None);
    assert_eq!(kept(true).as_deref(), Some(r#"{"id":"user_1","new":{"a":[1]}}"#));
}

#[test]
fn the_event_type_is_clean_and_bounded() {
    let long = format!(r#"{{"type":"a\u0000\n{}"}}"#, "x".repeat(1000));
    let event_type = parse(long.as_bytes(), &id()).unwrap().event_type;
    assert_eq!(event_type.len(), EVENT_TYPE_MAX);
    assert!(event_type.starts_with("a\u{fffd}\u{fffd}x"));
    // Cleaning makes no user event of what is none.
    let almost = parse(br#"{"type":"user.created\u0000","data":{}}"#, &id()).unwrap();
    assert!(matches!(almost.change, Change::Other));
}

#[test]
fn the_primary_address_is_found_by_its_id() {
    let claim = |pointer: &str, raw: Option<&str>| upsert_of(&with(pointer, raw)).unwrap().claim;
    let ada = |verified| Some(Claim::new("Ada@Example.com", verified));
    assert_eq!(
        claim("/data/primary_email_address_id", Some("\"idn_2\"")).unwrap().address,
        "second@example.com"
    );
    for (pointer, raw, expected) in [
        ("/data/primary_email_address_id", Some("\"idn_9\""), None),
        ("/data/primary_email_address_id", Some("\"\""), None),
        ("/data/primary_email_address_id", None, None),
        ("/data/email_addresses", Some("[]"), None),
        ("/data/email_addresses", Some("null"), None),
        ("/data/email_addresses/1/email_address", Some("null"), None),
        ("/data/email_addresses/1/id", Some("null"), None),
        ("/data/email_addresses/1/verification", Some("null"), ada(false)),
        ("/data/email_addresses/1/verification", None, ada(false)),
        ("/data/email_addresses/1/verification/status", Some("null"), ada(false)),
        ("/data/email_addresses/1/verification/status", Some("\"transferable\""), ada(false)),
        ("/data/email_addresses/1/verification/status", Some("\"Verified\""), ada(false)),
        // What stands in a secondary address is not read.
        ("/data/email_addresses/0/email_address", Some("7"), ada(true)),
        ("/data/email_addresses/0/verification", Some("7"), ada(true)),
    ] {
        assert_eq!(claim(pointer, raw), expected, "{pointer} {raw:?}");
    }
}

#[test]
fn a_missing_field_is_null_and_null_is_missing() {
    for (pointer, field) in [
        ("/data/username", (|p: &Profile| p.username.is_none()) as fn(&Profile) -> bool),
        ("/data/first_name", |p| p.first_name.is_none()),
        ("/data/last_name", |p| p.last_name.is_none()),
        ("/data/image_url", |p| p.image_url.is_none()),
        ("/data/external_id", |p| p.external_id.is_none()),
        ("/data/public_metadata", |p| p.public_metadata.is_none()),
        ("/data/private_metadata", |p| p.private_metadata.is_none()),
        ("/data/unsafe_metadata", |p| p.unsafe_metadata.is_none()),
        ("/data/banned", |p| p.banned.is_none()),
        ("/data/locked", |p| p.locked.is_none()),
        ("/data/last_sign_in_at", |p| p.last_sign_in_at.is_none()),
        ("/data/created_at", |p| p.created_at.is_none()),
        ("/data/updated_at", |p| p.updated_at.is_none()),
        ("/data/phone_numbers", |p| p.phone.is_none()),
        ("/data/primary_phone_number_id", |p| p.phone.is_none()),
        ("/data/phone_numbers/0/phone_number", |p| p.phone.is_none()),
    ] {
        for raw in [None, Some("null")] {
            let upsert = upsert_of(&with(pointer, raw)).unwrap();
            assert!(field(&upsert.profile), "{pointer} {raw:?}");
            let at = if pointer == "/data/updated_at" { AT + 500 } else { AT };
            assert_eq!(upsert.version.at, at, "{pointer}");
            let born = if pointer == "/data/created_at" { AT } else { AT - 1000 };
            assert_eq!(upsert.born, born, "{pointer}");
        }
    }
    for pointer in ["/data/id", "/data", "/type"] {
        let path = pointer[1..].replace('/', ".");
        for raw in [None, Some("null")] {
            let error = parse(with(pointer, raw).as_bytes(), &id()).unwrap_err();
            assert_eq!(error.detail, format!("{path}: missing"));
        }
    }
}

/// Every field that the fold reads, and what it has to be.
const FIELDS: &[(&str, Kind)] = &[
    ("/type", Kind::Type),
    ("/timestamp", Kind::Time),
    ("/data", Kind::Object),
    ("/data/id", Kind::Name),
    ("/data/email_addresses", Kind::Array),
    ("/data/email_addresses/0", Kind::Object),
    ("/data/email_addresses/0/id", Kind::Text),
    ("/data/email_addresses/1", Kind::Object),
    ("/data/email_addresses/1/id", Kind::Text),
    ("/data/email_addresses/1/email_address", Kind::Name),
    ("/data/email_addresses/1/verification", Kind::Object),
    ("/data/email_addresses/1/verification/status", Kind::Text),
    ("/data/primary_email_address_id", Kind::Text),
    ("/data/phone_numbers", Kind::Array),
    ("/data/phone_numbers/0", Kind::Object),
    ("/data/phone_numbers/0/id", Kind::Text),
    ("/data/phone_numbers/0/phone_number", Kind::Text),
    ("/data/primary_phone_number_id", Kind::Text),
    ("/data/username", Kind::Text),
    ("/data/first_name", Kind::Text),
    ("/data/last_name", Kind::Text),
    ("/data/image_url", Kind::Text),
    ("/data/external_id", Kind::Text),
    ("/data/public_metadata", Kind::Object),
    ("/data/private_metadata", Kind::Object),
    ("/data/unsafe_metadata", Kind::Any),
    ("/data/banned", Kind::Flag),
    ("/data/locked", Kind::Flag),
    ("/data/last_sign_in_at", Kind::Time),
    ("/data/created_at", Kind::Time),
    ("/data/updated_at", Kind::Time),
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Type,
    Time,
    Object,
    Any,
    Array,
    Name,
    Text,
    Flag,
}

impl Kind {
    fn expected(self) -> &'static str {
        match self {
            Self::Time => "expected a time",
            Self::Object => "expected an object",
            Self::Array => "expected an array",
            Self::Type | Self::Name | Self::Text => "expected a string",
            Self::Flag => "expected true or false",
            Self::Any => "nothing",
        }
    }
}

/// `/data/email_addresses/1/id` as `data.email_addresses[1].id`
fn path(pointer: &str) -> String {
    pointer[1..].split('/').fold(String::new(), |path, part| match part.parse::<usize>() {
        Ok(index) => format!("{path}[{index}]"),
        Err(_) if path.is_empty() => part.into(),
        Err(_) => format!("{path}.{part}"),
    })
}

#[test]
fn a_wrong_type_is_an_error_that_names_the_field_and_no_value() {
    let values = [
        ("\"hunter2@example.com\"", "found a string", &[Kind::Type, Kind::Name, Kind::Text][..]),
        ("73317331", "found a number", &[Kind::Time]),
        ("true", "found a boolean", &[Kind::Flag]),
        ("[\"hunter2\"]", "found an array", &[Kind::Array]),
        ("{\"hunter2\":\"hunter2\"}", "found an object", &[Kind::Object]),
    ];
    for (pointer, kind) in FIELDS {
        for (raw, found, fits) in &values {
            if fits.contains(kind) || *kind == Kind::Any {
                continue;
            }
            let detail = parse(with(pointer, Some(raw)).as_bytes(), &id()).expect_err(pointer).detail;
            assert_eq!(detail, format!("{}: {}, {found}", path(pointer), kind.expected()));
            for value in ["hunter2", "7331", "Ada", "user_ada"] {
                assert!(!detail.contains(value), "{detail}");
            }
        }
    }
}

#[test]
fn a_list_never_holds_something_else() {
    for list in ["email_addresses", "phone_numbers"] {
        for (element, found) in [("null", "null"), ("[\"idn_1\"]", "an array"), ("\"idn_1\"", "a string")] {
            let body = with(&format!("/data/{list}"), Some(&format!("[{element}]")));
            let detail = upsert_of(&body).unwrap_err().detail;
            assert_eq!(detail, format!("data.{list}[0]: expected an object, found {found}"));
        }
    }
}

#[test]
fn what_is_absurdly_long_is_an_error_that_names_the_field() {
    for (pointer, kind) in FIELDS {
        let most = match (*kind, *pointer) {
            (Kind::Name, "/data/id") => ID_MAX,
            (Kind::Name, _) => ADDRESS_MAX,
            (Kind::Text, _) => field::TEXT_MAX,
            _ => continue,
        };
        let fits = with(pointer, Some(&format!("\"{}\"", "é".repeat(most / 2))));
        assert!(upsert_of(&fits).is_ok(), "{pointer}");
        let error = upsert_of(&with(pointer, Some(&format!("\"{}\"", "x".repeat(most + 1))))).unwrap_err();
        assert_eq!(error.detail, format!("{}: longer than {most} bytes", path(pointer)));
    }
    let address = upsert_of(&with("/data/email_addresses/1/email_address", Some("\"\""))).unwrap_err();
    assert_eq!(address.detail, "data.email_addresses[1].email_address: empty");
    assert_eq!(upsert_of(&with("/data/id", Some("\"\""))).unwrap_err().detail, "data.id: empty");
    assert_eq!(
        upsert_of(&with("/data/id", Some("\"user 1\""))).unwrap_err().detail,
        "data.id: holds white space"
    );
}

#[test]
fn nul_and_lone_surrogates_are_replaced_in_text_and_refused_in_names() {
    for bad in [r"\u0000", r"\ud800", r"\udc00", r"\ud800\ud800"] {
        let raw = format!("\"a{bad}b\"");
        let mended = format!("a{}b", "\u{fffd}".repeat(bad.len() / 6));
        for (pointer, kind) in FIELDS {
            let result = parse(with(pointer, Some(&raw)).as_bytes(), &id());
            match kind {
                Kind::Name => {
                    let detail = result.unwrap_err().detail;
                    assert_eq!(
                        detail,
                        format!("{}: holds a control character or half a surrogate pair", path(pointer))
                    );
                }
                Kind::Text => assert!(result.is_ok(), "{pointer}"),
                _ => {}
            }
        }
        for (pointer, value) in [
            ("/data/username", (|p| &p.username) as fn(&Profile) -> &Option<String>),
            ("/data/first_name", |p| &p.first_name),
            ("/data/last_name", |p| &p.last_name),
            ("/data/image_url", |p| &p.image_url),
            ("/data/external_id", |p| &p.external_id),
            ("/data/phone_numbers/0/phone_number", |p| &p.phone),
        ] {
            let upsert = upsert_of(&with(pointer, Some(&raw))).unwrap();
            assert_eq!(value(&upsert.profile).as_ref(), Some(&mended), "{pointer}");
        }
        for (pointer, value) in documents() {
            let raw = format!(r#"{{"k{bad}":"{bad}","n":1.50}}"#);
            let mend = r"\ufffd".repeat(bad.len() / 6);
            let upsert = upsert_of(&with(pointer, Some(&raw))).unwrap();
            let stored = value(&upsert.profile).clone().unwrap();
            assert_eq!(stored, format!(r#"{{"k{mend}":"{mend}","n":1.50}}"#), "{pointer}");
        }
    }
    // A real pair is one character, everywhere.
    let upsert = upsert_of(&with("/data/first_name", Some(r#""\ud83d\ude00\n\t\"""#))).unwrap();
    assert_eq!(upsert.profile.first_name.as_deref(), Some("😀\n\t\""));
    let upsert =
        upsert_of(&with("/data/email_addresses/1/email_address", Some(r#""\u00e4@x.org""#))).unwrap();
    assert_eq!(upsert.claim, Some(Claim::new("ä@x.org", true)));
    for control in [r#""a\n@x.org""#, r#""a\u007f@x.org""#, r#""a\u0085@x.org""#] {
        assert!(upsert_of(&with("/data/email_addresses/1/email_address", Some(control))).is_err());
    }
}

/// Where a document comes from and where it goes.
type Document = (&'static str, fn(&Profile) -> &Option<String>);

fn documents() -> [Document; 3] {
    [
        ("/data/public_metadata", |p| &p.public_metadata),
        ("/data/private_metadata", |p| &p.private_metadata),
        ("/data/unsafe_metadata", |p| &p.unsafe_metadata),
    ]
}

#[test]
fn metadata_is_kept_to_the_letter() {
    let raw = r#"{ "z": 1.0, "a":[ 1e3,123456789012345678901234567890 ],"a":"\u00e9\/" }"#;
    for (pointer, value) in documents() {
        let upsert = upsert_of(&with(pointer, Some(raw))).unwrap();
        assert_eq!(value(&upsert.profile).as_deref(), Some(raw), "{pointer}");
    }
}

#[test]
fn numbers_beyond_i64_are_named_where_a_time_is_due() {
    let range = "expected a whole number of milliseconds, in the years 1 to 9999";
    let beyond = [
        "9223372036854775808",
        "99999999999999999999999999",
        "1.5",
        "1e400",
        "1e-3",
        "253402300800000",
        "-62135596800001",
        "-99999999999",
        "-9223372036854775809.0",
    ];
    for (pointer, kind) in FIELDS {
        if *kind != Kind::Time {
            continue;
        }
        for raw in beyond {
            let error = upsert_of(&with(pointer, Some(raw))).expect_err(raw);
            assert_eq!(error.detail, format!("{}: {range}", path(pointer)), "{raw}");
        }
        for raw in [
            "1716883200000.0",
            "1716883200000.000",
            "1716883200000",
            "1.7168832e12",
            "17168832E5",
            "0",
            "-0",
            "-1",
        ] {
            assert!(upsert_of(&with(pointer, Some(raw))).is_ok(), "{pointer} {raw}");
        }
    }
    let upsert = upsert_of(&with("/data/updated_at", Some("1716883200000.0"))).unwrap();
    assert_eq!(upsert.version.at, 1_716_883_200_000);
    let upsert = upsert_of(&with("/data/updated_at", Some("1.7168832e12"))).unwrap();
    assert_eq!(upsert.version.at, 1_716_883_200_000);
    assert!(upsert_of(&with("/data/updated_at", Some("253402300799999"))).is_ok());
    // Close to the epoch a time is in seconds, in the envelope and in the data.
    for (raw, ms) in [
        ("99999999999", 99_999_999_999_000),
        ("100000000000", 100_000_000_000),
        ("0", 0),
        ("-1", -1000),
        ("-62135596800", -62_135_596_800_000),
        ("-62135596800000", -62_135_596_800_000),
    ] {
        assert_eq!(upsert_of(&with("/timestamp", Some(raw))).unwrap().version.sent, ms, "{raw}");
        let upsert = upsert_of(&with("/data/updated_at", Some(raw))).unwrap();
        assert_eq!((upsert.version.at, upsert.profile.updated_at), (ms, Some(ms)), "{raw}");
    }
}

#[test]
fn numbers_no_database_holds_are_named_but_unsafe_metadata_never_blocks() {
    let digits = "9".repeat(1001);
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100), "]".repeat(100));
    for (raw, problem) in [
        (r#"{"n":1e1001}"#, "holds a number"),
        (r#"{"n":-1e309}"#, "holds a number"),
        (r#"{"n":[-1e-99999999999999999999]}"#, "holds a number"),
        (&*format!("{{\"n\":{digits}}}"), "holds a number"),
        (&*deep, "nested deeper than 100 levels"),
    ] {
        for pointer in ["/data/public_metadata", "/data/private_metadata"] {
            let detail = upsert_of(&with(pointer, Some(raw))).unwrap_err().detail;
            assert!(detail.starts_with(&format!("{}: {problem}", path(pointer))), "{detail}");
        }
        assert_eq!(unsafe_metadata(raw), None);
    }
    for raw in ["[]", "\"hunter2\"", "7", "[{}]"] {
        assert_eq!(unsafe_metadata(raw), None, "{raw}");
        let detail = upsert_of(&with("/data/public_metadata", Some(raw))).unwrap_err().detail;
        assert!(detail.starts_with("data.public_metadata: expected an object, found a"), "{detail}");
    }
}

fn unsafe_metadata(raw: &str) -> Option<String> {
    let upsert = upsert_of(&with("/data/unsafe_metadata", Some(raw))).unwrap();
    assert_eq!(upsert.profile.banned, Some(false));
    upsert.profile.unsafe_metadata.clone()
}

#[test]
fn deep_nesting_anywhere_never_overflows_the_stack() {
    let nested = |levels: usize| {
        [
            (Kind::Array, format!("{}{}", "[".repeat(levels), "]".repeat(levels))),
            (Kind::Object, format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels))),
        ]
    };
    let walk = move || {
        for (_, raw) in nested(80_000) {
            for pointer in
                ["/unknown", "/data/unknown", "/data/email_addresses/0/unknown", "/data/unsafe_metadata"]
            {
                let error = upsert_of(&with(pointer, Some(&raw))).err();
                assert!(
                    error.is_none_or(|error| error.detail.starts_with("data.unsafe_metadata")),
                    "{pointer}"
                );
            }
            assert!(parse(raw.as_bytes(), &id()).unwrap_err().detail.len() < 100);
            let other = format!(r#"{{"type":"x","data":{raw}}}"#);
            assert!(parse(other.as_bytes(), &id()).is_ok());
        }
        for (found, raw) in nested(10_000) {
            for (pointer, kind) in FIELDS {
                let result = upsert_of(&with(pointer, Some(&raw)));
                if *kind != found && *kind != Kind::Any {
                    let start = format!("{}: {}", path(pointer), kind.expected());
                    assert!(result.unwrap_err().detail.starts_with(&start), "{pointer}");
                }
            }
        }
    };
    // A small stack, so that any recursion shows itself.
    std::thread::Builder::new().stack_size(256 * 1024).spawn(walk).unwrap().join().unwrap();
}

#[test]
fn a_body_that_is_no_event_says_why() {
    for (body, detail) in [
        (&b""[..], "body: not JSON: EOF while parsing a value at line 1 column 0"),
        (b"hunter2", "body: not JSON: expected value at line 1 column 1"),
        (b"\xff\xfe", "body: not UTF-8"),
        (b"{\"type\":\"\xc3\"}", "body: not UTF-8"),
        (b"[]", "body: expected an object, found an array"),
        (b" null ", "body: expected an object, found null"),
        (b"\"user.created\"", "body: expected an object, found a string"),
        (b"{}", "type: missing"),
        (b"{\"type\":\"\"}", "type: missing"),
        (b"{\"type\":\"x\"} {", "body: not JSON: trailing characters at line 1 column 14"),
        (b"{\"type\":\"x\",\"type\":\"y\"}", "body: duplicate field type"),
        (b"{\"type\":\"x\",\"t\\u0079pe\":\"y\"}", "body: duplicate field type"),
        (b"{\"type\":\"user.created\",\"data\":{\"id\":\"a\",\"id\":\"b\"}}", "data: duplicate field id"),
    ] {
        assert_eq!(parse(body, &id()).unwrap_err().detail, detail);
    }
}

#[test]
fn a_byte_order_mark_is_skipped() {
    let body = format!("\u{feff}{}", user());
    assert_eq!(upsert_of(&body).unwrap().clerk_id, "user_ada");
}

#[test]
fn unknown_fields_are_ignored() {
    let raw = r#"{"a":[1,{"b":"\ud800"}],"a":1e99999}"#;
    for pointer in
        ["/new", "/data/new", "/data/email_addresses/1/new", "/data/email_addresses/1/verification/new"]
    {
        assert!(upsert_of(&with(pointer, Some(raw))).is_ok(), "{pointer}");
    }
}

#[test]
fn the_largest_body_is_read_in_no_time() {
    let filler = format!("{{\"a\":[{}1]}}", "\"\\u0000x\",".repeat(50_000));
    let body = with("/data/unsafe_metadata", Some(&filler));
    let started = Instant::now();
    assert!(upsert_of(&body).is_ok());
    assert!(started.elapsed().as_secs() < 2, "{:?}", started.elapsed());
}

#[test]
fn the_event_type_is_read_from_any_body() {
    let long = "é".repeat(100);
    for (body, expected) in [
        (r#"{"data":{"type":"no"},"object":"event","type":"user.created"}"#, "user.created"),
        (r#"{"type":"user.cr\u0065ated","data":[[[{"a":[1,2.5e3,null]}]]]}"#, "user.created"),
        (r#"{"type":"a\nb"}"#, "a\u{fffd}b"),
        ("\u{feff}{\"type\":\"user.created\"}", "user.created"),
        (&format!(r#"{{"type":"{long}"}}"#), &"é".repeat(64)),
        (r#"{"type":7}"#, "unknown"),
        (r#"{"type":null}"#, "unknown"),
        (r#"{"type":""}"#, "unknown"),
        (r#"{"data":{}}"#, "unknown"),
        (r#"{"type":"user.created"} trailing"#, "unknown"),
        (r#"["type"]"#, "unknown"),
        ("", "unknown"),
        ("not JSON", "unknown"),
    ] {
        assert_eq!(event_type(body.as_bytes()), expected, "{body}");
    }
    assert_eq!(event_type(b"\xff\xfe"), "unknown");
    // Depth is no way to overflow the stack.
    let deep = format!(r#"{{"data":{}1{},"type":"user.created"}}"#, "[".repeat(200_000), "]".repeat(200_000));
    assert!(["user.created", "unknown"].contains(&event_type(deep.as_bytes()).as_str()));
}

#[test]
fn the_account_that_a_body_is_about_is_found_as_far_as_it_tells() {
    for (body, expected) in [
        (r#"{"data":{"id":"user_1","user_id":"no"},"type":"user.deleted"}"#, Some("user_1")),
        (r#"{"data":{"id":"sess_1","user_id":"user_1"},"type":"session.created"}"#, Some("user_1")),
        ("\u{feff}{\"data\":{\"id\":\"us\\u0065r_1\"},\"type\":\"user.created\"}", Some("user_1")),
        (r#"{"data":{"id":"a\nb"},"type":"user.created"}"#, Some("a\u{fffd}b")),
        (r#"{"data":{"id":"sess_1"},"type":"session.created"}"#, None),
        (r#"{"data":{"id":""},"type":"user.created"}"#, None),
        (r#"{"data":{"id":7},"type":"user.created"}"#, None),
        (r#"{"data":["user_1"],"type":"user.created"}"#, None),
        (r#"{"data":{"id":"user_1"}}"#, None),
        (r#"["user.created",0,{"id":"user_1"}]"#, None),
        ("not JSON", None),
    ] {
        assert_eq!(whose(body.as_bytes()).as_deref(), expected, "{body}");
    }
    let long = format!(r#"{{"data":{{"id":"{}"}},"type":"user.created"}}"#, "é".repeat(200));
    assert_eq!(whose(long.as_bytes()).unwrap().len(), ID_MAX - 1);
}

#[test]
fn usual_news_of_a_user_is_read_in_one_pass() {
    let id = id();
    let at_once = |body: &str, known: Known<'_>| parse_at_once(body.as_bytes(), &known).is_some();
    let usual = Known::webhook(&id, RECEIVED);
    let body = user().to_string();
    assert!(at_once(&body, usual));
    assert!(!at_once(&body, Known { origin: Origin::Api, ..usual }));
    assert!(!at_once(&body, Known { keep_object: true, ..usual }));
    assert!(!at_once(&body.replace("user.updated", "user.deleted"), usual));
    assert!(!at_once(&body.replace("\"id\":\"user_ada\"", "\"id\":7"), usual));
}

#[test]
fn only_a_whole_body_is_a_probe() {
    let probe = format!(r#"{{"object":"event","type":"{PROBE}"}}"#);
    assert!(is_probe(probe.as_bytes()));
    for other in
        [user().to_string(), format!(r#"rubbish,"type":"{PROBE}"}}"#), probe.replace("object", "type")]
    {
        assert!(!is_probe(other.as_bytes()), "{other}");
    }
}

#[test]
fn what_is_there_twice_is_refused_in_one_pass_as_in_two() {
    for name in ["revive", "payer", "unmentioned", "timestamp", "instance_id", "type"] {
        let body = user().to_string().replacen('{', &format!(r#"{{"{name}":1,"{name}":1,"#), 1);
        assert!(parse(body.as_bytes(), &id()).unwrap_err().detail.contains("duplicate"), "{name}");
    }
}

#[test]
fn a_list_is_no_user_however_long_it_is() {
    // As many as a user has fields, and an id in the place of the first.
    let list = vec!["null"; 17].join(",");
    for data in [format!(r#"["user_1",{list}]"#), "[]".into(), "null".into(), "\"user\"".into(), "7".into()] {
        let body = format!(r#"{{"data":{data},"object":"event","timestamp":{AT},"type":"user.updated"}}"#);
        assert!(parse_at_once(body.as_bytes(), &Known::webhook(&id(), RECEIVED)).is_none(), "{body}");
        assert!(parse(body.as_bytes(), &id()).unwrap_err().detail.starts_with("data"), "{body}");
    }
}

#[test]
fn the_last_type_is_the_envelopes_or_none() {
    for (body, expected) in [
        (r#"{"data":{"type":"no"},"type":"user.updated"}"#, Some("user.updated")),
        (r#"{"data":{},"type":"subscriptionItem.pastDue"}"#, Some("subscriptionItem.pastDue")),
        (r#"{"data":{"a":1,"type":"no"}}"#, None),
        (r#"{"data":"x,\"type\":\"no"}"#, None),
        (r#"{"data":"\",\"type\":\"no"}"#, None),
        (r#"{"data":1,"type":"user.\u0075"}"#, None),
        (r#"{"data":1,"type":""}"#, None),
        (r#"{"data":1,"type":"user.updated"} "#, None),
        (r#"{"type":"user.updated"}"#, None),
        (r#""}"#, None),
        ("", None),
    ] {
        assert_eq!(last_type(body.as_bytes()), expected, "{body}");
    }
    let long = format!(r#"{{"data":1,"type":"{}"}}"#, "x".repeat(EVENT_TYPE_MAX + 1));
    assert_eq!(last_type(long.as_bytes()), None);
}
