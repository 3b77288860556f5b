//! How the client behaves whatever Clerk's API, or what stands in its place, answers.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json, value::RawValue};

use super::*;
use crate::{
    clerk::{
        self, GONE, Known, SNAPSHOT,
        made_up::{INSTANCE, Person},
        stand_in::{StandIn, World, Wrong},
    },
    failure::Failure,
    message::{MessageId, Origin},
    net::NoAnswer,
    rules::{
        Change,
        users::{self, Claim, UpsertKind},
    },
    time::now,
};

const AT: Millis = 1_760_000_000_123;

async fn stand_in(users: usize) -> StandIn {
    let world = World::new();
    for n in 0..users {
        world.sign_up(&format!("user_{n:03}"), AT + n as i64);
    }
    StandIn::start(world).await.unwrap()
}

fn settings(stand_in: &StandIn, patience: Duration) -> Settings {
    Settings {
        key: stand_in.key(),
        url: stand_in.url().into(),
        rate: Some(1000.0),
        patience,
        keep_object: false,
    }
}

/// Tries again for as long as a test may take.
fn patient(stand_in: &StandIn) -> Api {
    Api::new(&settings(stand_in, Duration::from_secs(60))).unwrap()
}

/// Never tries again.
fn hasty(stand_in: &StandIn) -> Api {
    Api::new(&settings(stand_in, Duration::ZERO)).unwrap()
}

fn oldest(limit: u16) -> UsersQuery {
    UsersQuery { order: Order::CreatedAt, limit, after: None, offset: 0, created_after: None }
}

fn ids(users: &[Snapshot]) -> Vec<&str> {
    users.iter().map(|user| user.clerk_id.as_deref().unwrap()).collect()
}

/// A snapshot of what the API might give.
fn snapshot(data: &str) -> Snapshot {
    let body = Bytes::copy_from_slice(data.as_bytes());
    let raw: &RawValue = serde_json::from_slice(&body).unwrap();
    Snapshot::read(&body, raw, AT, false)
}

fn body(message: &crate::message::Message) -> Value {
    serde_json::from_slice(&message.body).unwrap()
}

#[tokio::test]
async fn the_instance_the_count_and_a_user_are_read() {
    let stand_in = stand_in(3).await;
    let api = patient(&stand_in);
    let instance = api.instance().await.unwrap();
    assert_eq!((instance.id.as_str(), instance.environment.as_deref()), (INSTANCE, Some("development")));
    assert_eq!(api.count().await.unwrap(), 3);
    let before = now();
    let user = api.user("user_001").await.unwrap().unwrap();
    assert_eq!((user.created_at, user.updated_at), (Some(AT + 1), Some(AT + 1)));
    assert!((before..=now()).contains(&user.read_at));
    let upsert = user.upsert.as_ref().unwrap();
    assert_eq!((upsert.version.at, upsert.version.sent), (AT + 1, user.read_at));
    assert_eq!(upsert.version.kind, UpsertKind::Updated);
    assert_eq!(upsert.version.message_id, user.message_id().as_str());
    assert_eq!(upsert.claim, Some(Claim::new(Person::of("user_001", AT + 1).email.unwrap(), true)));
}

#[tokio::test]
async fn pages_behind_a_cursor_hold_everybody_once() {
    let stand_in = stand_in(25).await;
    let api = patient(&stand_in);
    let (mut seen, mut query) = (Vec::new(), oldest(10));
    loop {
        let page = api.users(&query).await.unwrap();
        seen.extend(ids(&page.users).into_iter().map(str::to_owned));
        if page.users.len() < usize::from(page.limit) {
            break;
        }
        query.after = seen.last().cloned();
    }
    assert_eq!(seen, (0..25).map(|n| format!("user_{n:03}")).collect::<Vec<_>>());
    let window = UsersQuery { created_after: Some(AT + 20), offset: 1, ..oldest(2) };
    assert_eq!(ids(&api.users(&window).await.unwrap().users), ["user_022", "user_023"]);
}

#[tokio::test]
async fn the_newest_changes_come_first() {
    let stand_in = stand_in(5).await;
    stand_in.world().change("user_002", AT + 100, |person| person.banned = true);
    let query = UsersQuery { order: Order::NewestChange, ..oldest(2) };
    let page = patient(&stand_in).users(&query).await.unwrap();
    assert_eq!(ids(&page.users), ["user_002", "user_004"]);
    assert_eq!(page.users[0].upsert.as_ref().unwrap().profile.banned, Some(true));
}

#[tokio::test]
async fn a_user_is_found_by_any_of_their_addresses() {
    let stand_in = stand_in(20).await;
    let mut person = Person::of("user_x", AT);
    person.second_email = Some("-old+tag@example.com".into());
    stand_in.world().insert(person.clone());
    let api = patient(&stand_in);
    for address in [person.email.unwrap().to_uppercase(), "-old+tag@example.com".into()] {
        assert_eq!(ids(&api.users_by_address(&address).await.unwrap()), ["user_x"]);
    }
    assert!(api.users_by_address("nobody@example.com").await.unwrap().is_empty());
}

#[tokio::test]
async fn only_clerks_own_404_means_that_a_user_is_gone() {
    let stand_in = stand_in(1).await;
    let api = patient(&stand_in);
    assert!(api.user("user_nobody").await.unwrap().is_none());
    for wrong in [
        Wrong::Status(404),
        Wrong::Body("[]".into()),
        Wrong::Body("{}".into()),
        Wrong::Body("null".into()),
        Wrong::Body(r#"{"id":"user_another"}"#.into()),
        Wrong::Page,
    ] {
        stand_in.world().faults(|faults| faults.wrong = Some(wrong.clone()));
        let error = api.user("user_000").await.unwrap_err();
        assert!(matches!(error, ApiError::NotClerk { .. }), "{wrong:?}: {error}");
    }
}

#[tokio::test]
async fn an_id_cannot_lead_to_another_path() {
    let stand_in = stand_in(1).await;
    let api = patient(&stand_in);
    for id in ["..", ".", "", "count", "a/../../instance", "a?limit=1", "a#b"] {
        let read = api.user(id).await;
        assert!(matches!(read, Ok(None) | Err(ApiError::NotClerk { .. })), "{id}: {read:?}");
    }
    assert_eq!(stand_in.world().asked("/v1/instance"), 0);
}

#[tokio::test]
async fn answers_that_are_not_clerks_are_told() {
    let stand_in = stand_in(1).await;
    let api = hasty(&stand_in);
    let list = async || api.users(&oldest(10)).await.unwrap_err().to_string();
    for (wrong, said) in [
        (Wrong::Page, "it answered 200 with a web page"),
        (
            Wrong::Redirect("https://login.example.com/in?to=x".into()),
            "it redirects (302) to login.example.com",
        ),
        (Wrong::Redirect("/login".into()), &format!("it redirects (302) to {}", api.0.host())),
        (Wrong::Body("{}".into()), "its answer is not a list of users"),
        (Wrong::Body("[{\"id\":".into()), "its answer ends too early"),
        (Wrong::Body(String::new()), "its answer ends too early"),
        (Wrong::Status(204), "it answered 204"),
        (Wrong::Status(400), "it answered 400 without saying why"),
    ] {
        stand_in.world().faults(|faults| faults.wrong = Some(wrong.clone()));
        let error = list().await;
        assert!(error.ends_with(&format!("does not answer as Clerk's API does: {said}")), "{error}");
    }
    for body in ["[]", "{}", r#"{"id":"app_1"}"#, r#"{"total_count":-1}"#] {
        stand_in.world().faults(|faults| faults.wrong = Some(Wrong::Body(body.into())));
        assert!(matches!(api.instance().await, Err(ApiError::NotClerk { .. })), "{body}");
        assert!(matches!(api.count().await, Err(ApiError::NotClerk { .. })), "{body}");
    }
}

#[tokio::test]
async fn a_key_that_is_refused_is_told_at_once() {
    let stand_in = stand_in(1).await;
    let key = Secret::new("sk_test_hunter2");
    let api = Api::new(&Settings { key, ..settings(&stand_in, Duration::from_secs(60)) }).unwrap();
    let error = api.count().await.unwrap_err();
    assert!(error.to_string().ends_with("refuses the key: it answered 401 (clerk_key_invalid)"), "{error}");
    assert!(error.hint().contains("CLERK_SECRET_KEY"));
    assert_eq!(stand_in.world().asked("/v1/users/count"), 1);
    let failure = Failure::from(error);
    assert!(!format!("{failure:?} {api:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_parameter_that_is_refused_is_told_with_clerks_words() {
    let stand_in = stand_in(1).await;
    let api = patient(&stand_in);
    let query = UsersQuery { after: Some("user_gone".into()), ..oldest(10) };
    let error = api.users(&query).await.unwrap_err();
    let ApiError::Refused { status: 422, code: Some(code), message: Some(_), .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(code, "form_param_value_invalid");
}

#[tokio::test]
async fn what_may_pass_is_tried_again() {
    let stand_in = stand_in(1).await;
    let api = patient(&stand_in);
    for wrong in [Wrong::Status(500), Wrong::Status(408), Wrong::Cut, Wrong::Limited(0)] {
        stand_in.world().faults(|faults| {
            faults.wrong = Some(wrong);
            faults.each = 2;
        });
        for _ in 0..3 {
            assert_eq!(api.count().await.unwrap(), 1);
        }
    }
}

#[tokio::test]
async fn patience_ends() {
    let stand_in = stand_in(1).await;
    let api = Api::new(&settings(&stand_in, Duration::from_secs(1))).unwrap();
    for (wrong, said) in [
        (Wrong::Status(503), "answered 503"),
        (Wrong::Cut, "gives no whole answer: connection broken"),
        (Wrong::Limited(0), "limits requests: it answered 429, and wants none for 0s"),
    ] {
        stand_in.world().faults(|faults| faults.wrong = Some(wrong));
        let (before, began) = (stand_in.world().asked("/v1/users/count"), Instant::now());
        let error = api.count().await.unwrap_err();
        assert!(error.to_string().ends_with(said), "{error}");
        assert!(stand_in.world().asked("/v1/users/count") > before + 1, "{error}: not tried again");
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}

#[tokio::test]
async fn nobody_waits_for_longer_than_patience_reaches() {
    let stand_in = stand_in(1).await;
    for (n, (seconds, said)) in [(3600, "1h"), (u64::MAX, "1day")].into_iter().enumerate() {
        let api = patient(&stand_in);
        stand_in.world().faults(|faults| faults.wrong = Some(Wrong::Limited(seconds)));
        let error = api.count().await.unwrap_err();
        assert!(error.to_string().ends_with(&format!("wants none for {said}")), "{error}");
        let error = api.count().await.unwrap_err();
        assert!(error.to_string().ends_with("wants none for 10m"), "it is not asked before: {error}");
        assert_eq!(stand_in.world().asked("/v1/users/count"), n as u64 + 1);
    }
}

#[tokio::test]
async fn what_holds_a_request_up_is_told_and_that_it_goes_on() {
    let stand_in = stand_in(1).await;
    let api = patient(&stand_in);
    let mut trouble = api.trouble();
    stand_in.world().faults(|faults| faults.wrong = Some(Wrong::Status(502)));
    let asked = tokio::spawn(async move { api.count().await });
    let why = trouble.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert!(why.ends_with("answered 502; trying again"), "{why}");
    stand_in.world().faults(|faults| faults.wrong = None);
    assert_eq!(asked.await.unwrap().unwrap(), 1);
    assert_eq!(*trouble.borrow(), None);
}

#[tokio::test]
async fn a_429_that_asks_for_no_rest_gets_one_all_the_same() {
    let stand_in = stand_in(1).await;
    stand_in.world().faults(|faults| faults.wrong = Some(Wrong::Limited(0)));
    let api = Api::new(&settings(&stand_in, Duration::from_secs(2))).unwrap();
    let error = api.count().await.unwrap_err();
    assert!(error.to_string().contains("answered 429"), "{error}");
    let asked = stand_in.world().asked("/v1/users/count");
    assert!((2..12).contains(&asked), "{asked}");
}

#[tokio::test]
async fn a_429_holds_up_every_request_for_as_long_as_it_says() {
    let stand_in = stand_in(1).await;
    stand_in.world().faults(|faults| faults.wrong = Some(Wrong::Limited(1)));
    stand_in.world().before_each(|world, _| {
        // The answer to the first request is chosen already.
        world.faults(|faults| faults.wrong = None);
    });
    let (api, began) = (patient(&stand_in), Instant::now());
    assert_eq!(api.count().await.unwrap(), 1);
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(stand_in.world().asked("/v1/users/count"), 2);
}

#[tokio::test]
async fn who_is_not_there_is_told_with_the_reason() {
    let stand_in = stand_in(1).await;
    let api = hasty(&stand_in);
    drop(stand_in);
    let error = api.count().await.unwrap_err();
    assert!(matches!(
        error,
        ApiError::Away { why: Away::NoAnswer(NoAnswer::Refused | NoAnswer::Broken), .. }
    ));
    assert!(error.hint().contains("CLERK_API_URL"));
}

#[tokio::test]
async fn a_page_that_is_too_large_is_halved() {
    let stand_in = stand_in(4).await;
    let large = |n: usize| format!(r#"{{"id":"user_{n:03}","x":"{}"}}"#, "x".repeat(12 * 1024 * 1024));
    stand_in.world().faults(|faults| {
        faults.garbled = (0..4).map(|n| (format!("user_{n:03}"), large(n))).collect();
    });
    let api = patient(&stand_in);
    let page = api.users(&oldest(5)).await.unwrap();
    assert_eq!((page.limit, ids(&page.users)), (2, vec!["user_000", "user_001"]));
    let error = api.user("user_000").await.unwrap_err();
    assert!(matches!(error, ApiError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn a_user_who_cannot_be_read_spoils_no_other() {
    let stand_in = stand_in(4).await;
    stand_in.world().faults(|faults| {
        for (id, garbled) in [
            ("user_000", "42"),
            ("user_001", r#"{"id":7,"updated_at":1760000000123}"#),
            ("user_002", r#"{"id":"user_002","banned":"no","updated_at":1760000000123}"#),
        ] {
            faults.garbled.insert(id.into(), garbled.into());
        }
    });
    let users = patient(&stand_in).users(&oldest(10)).await.unwrap().users;
    let read: Vec<_> = users.iter().map(|user| (user.clerk_id.as_deref(), user.updated_at)).collect();
    assert_eq!(
        read,
        [(None, None), (None, Some(AT)), (Some("user_002"), Some(AT)), (Some("user_003"), Some(AT + 3))]
    );
    assert_eq!(users.iter().map(|user| user.upsert.is_ok()).collect::<Vec<_>>(), [false, false, false, true]);
    assert_eq!(
        users[2].upsert.as_ref().unwrap_err().detail,
        "data.banned: expected true or false, found a string"
    );
}

#[tokio::test]
async fn a_call_that_is_dropped_harms_no_other() {
    let stand_in = stand_in(1).await;
    let api = patient(&stand_in);
    stand_in.world().faults(|faults| faults.wrong = Some(Wrong::Hang));
    let asked = || stand_in.world().asked("/v1/users/count");
    let mut call = Box::pin(api.count());
    while asked() == 0 {
        let turn = tokio::time::timeout(Duration::from_millis(1), call.as_mut());
        assert!(turn.await.is_err());
    }
    drop(call);
    stand_in.world().faults(|faults| faults.wrong = None);
    assert_eq!(api.count().await.unwrap(), 1);
}

#[tokio::test]
async fn requests_keep_to_their_rate() {
    let stand_in = stand_in(1).await;
    let rate = Some(40.0);
    let api = Api::new(&Settings { rate, ..settings(&stand_in, Duration::ZERO) }).unwrap();
    let began = Instant::now();
    for _ in 0..20 {
        api.count().await.unwrap();
    }
    // Eight at once, then one each 25 ms.
    let least = Duration::from_millis(12 * 25 - 30);
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_clock_that_is_far_from_clerks_is_corrected() {
    let stand_in = stand_in(1).await;
    let api = patient(&stand_in);
    assert_eq!(api.clock_offset(), None);
    for ahead in [60_000, -60_000] {
        stand_in.world().faults(|faults| faults.clock_ahead = ahead);
        let user = api.user("user_000").await.unwrap().unwrap();
        let offset = api.clock_offset().unwrap();
        assert!((offset - ahead).abs() <= 5000, "{offset} for {ahead}");
        assert!((user.read_at - now() - ahead).abs() <= 9000);
    }
    stand_in.world().faults(|faults| faults.clock_ahead = 86_400_000);
    let user = api.user("user_000").await.unwrap().unwrap();
    assert!(api.clock_offset().unwrap() > 86_000_000, "it is told, ...");
    assert!(
        (user.read_at - now()).abs() <= 9000 && (api.now() - now()).abs() <= 9000,
        "... and not believed"
    );
    stand_in.world().faults(|faults| faults.clock_ahead = 2000);
    api.count().await.unwrap();
    assert_eq!(api.clock_offset(), None);
}

#[test]
fn a_snapshot_travels_as_it_came() {
    let data = r#"{"updated_at": 1760000000000, "id":"user_1" , "b":1,"a":1.50}"#;
    let read = snapshot(data);
    let message = read.message("ins_\"1", false);
    assert_eq!((message.id.as_str(), message.origin), ("api_user_1_1760000000123", Origin::Api));
    assert_eq!((message.event_type.as_str(), message.received_at), (SNAPSHOT, AT));
    let text = std::str::from_utf8(&message.body).unwrap();
    assert!(text.ends_with(&format!(r#","data":{data}}}"#)), "{text}");
    assert_eq!(
        body(&message),
        json!({
            "type": "headcount.user", "object": "event", "instance_id": "ins_\"1", "timestamp": AT,
            "data": serde_json::from_str::<Value>(data).unwrap(),
        })
    );
    assert_eq!(body(&read.message("ins_1", true))["revive"], json!(true));
    assert!(!format!("{read:?}").contains("1.50"));
}

#[tokio::test]
async fn a_snapshot_is_folded_as_it_was_read() {
    let stand_in = stand_in(1).await;
    let api = Api::new(&Settings { keep_object: true, ..settings(&stand_in, Duration::ZERO) }).unwrap();
    let read = api.user("user_000").await.unwrap().unwrap();
    let message = read.message(INSTANCE, false);
    let known = Known {
        origin: message.origin,
        keep_object: true,
        ..Known::webhook(&message.id, message.received_at)
    };
    let parsed = clerk::parse(&message.body, &known).unwrap();
    let Change::User(users::Change::Upsert(folded)) = parsed.change else { panic!() };
    assert_eq!(format!("{folded:?}"), format!("{:?}", read.upsert.unwrap()));
    assert_eq!((parsed.sent, parsed.instance.as_deref()), (Some(read.read_at), Some(INSTANCE)));
}

#[test]
fn who_is_gone_is_told_with_the_time_of_its_confirmation() {
    let message = gone("user_1", AT, "ins_1");
    assert_eq!((message.id.as_str(), message.origin), ("api_user_1_gone_1760000000123", Origin::Api));
    assert_eq!(message.event_type, GONE);
    assert_eq!(
        body(&message),
        json!({
            "type": "headcount.user_gone", "object": "event", "instance_id": "ins_1", "timestamp": AT,
            "data": {"deleted": true, "id": "user_1", "object": "user"},
        })
    );
}

#[test]
fn a_part_of_a_user_is_no_user() {
    for (data, problem) in [
        (json!({"id": "user_1", "object": "user", "deleted": true}), "data.deleted: a user who is deleted"),
        (json!({"id": "user_1", "email_addresses": []}), "data.updated_at: missing"),
        (json!({"id": "user_1", "updated_at": AT}), "data.email_addresses: missing"),
        (json!({"id": "user_1", "updated_at": AT, "email_addresses": null}), "data.email_addresses: missing"),
    ] {
        assert_eq!(snapshot(&data.to_string()).upsert.unwrap_err().detail, problem);
    }
}

#[test]
fn an_id_that_no_message_can_have_gives_a_digest() {
    for id in ["x".repeat(255), "é\\\"".into()] {
        let data =
            json!({"id": id.replace("\\\"", "{}"), "updated_at": AT, "email_addresses": []}).to_string();
        let read = snapshot(&data);
        assert!(read.clerk_id.is_some());
        let id = read.message("ins_1", false).id;
        assert!(id.as_str().starts_with("body_"), "{id}");
        assert_eq!(id.as_str(), read.upsert.unwrap().version.message_id);
        assert!(MessageId::parse(gone(&read.clerk_id.unwrap(), AT, "ins_1").id.as_str()).is_some());
    }
    assert!(snapshot("42").message_id().as_str().starts_with("body_"));
}

#[test]
fn what_no_request_can_be_made_of_is_told() {
    let settings = |key: &str, url: &str| Settings {
        key: Secret::new(key),
        url: url.into(),
        rate: None,
        patience: Duration::ZERO,
        keep_object: false,
    };
    for (key, url) in
        [("sk", "api.clerk.com"), ("sk", "ftp://x"), ("sk_\nhunter2", "http://x"), ("sk", "data:x")]
    {
        let error = Api::new(&settings(key, url)).unwrap_err();
        assert!(matches!(error, ApiError::Setup { .. }), "{url}");
        assert!(!format!("{error:?}").contains("hunter2"));
    }
    assert!(Api::new(&settings("sk_live_x", "https://api.clerk.com")).is_ok());
}
