//! That the stand-in answers as Clerk's API does.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Full;
use serde_json::Value;

use super::*;
use crate::{clerk::made_up::Person, net::Client, time::Millis};

const AT: Millis = 1_760_000_000_000;

async fn serve(users: usize) -> StandIn {
    let world = World::new();
    for n in 0..users {
        // Two at a time, so that ids decide as well.
        world.sign_up(&format!("user_{n:03}"), AT + n as i64 / 2);
    }
    StandIn::start(world).await.unwrap()
}

async fn get(stand_in: &StandIn, path: &str) -> (u16, Value) {
    let request = Request::get(format!("{}{path}", stand_in.url()))
        .header(header::AUTHORIZATION, format!("Bearer {}", stand_in.key().expose()))
        .body(Full::<Bytes>::default())
        .unwrap();
    let answer = Client::http().exchange(request, Duration::from_secs(30), 1 << 20).await.unwrap();
    let body = answer.body.unwrap();
    (answer.status.as_u16(), serde_json::from_slice(&body).unwrap_or_default())
}

async fn listed(stand_in: &StandIn, query: &str) -> Vec<String> {
    let (status, users) = get(stand_in, &format!("/v1/users?{query}")).await;
    assert_eq!(status, 200, "{users}");
    users.as_array().unwrap().iter().map(|user| user["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn ten_users_are_listed_by_default_the_newest_first() {
    let stand_in = serve(12).await;
    let users = listed(&stand_in, "").await;
    assert_eq!((users.len(), users[0].as_str(), users[9].as_str()), (10, "user_011", "user_002"));
    let (_, page) = get(&stand_in, "/v1/users?limit=1").await;
    assert_eq!(page[0], Person::of("user_011", AT + 5).data());
}

#[tokio::test]
async fn a_cursor_leads_through_everybody_once_in_both_directions() {
    let stand_in = serve(23).await;
    let mut expected: Vec<String> = (0..23).map(|n| format!("user_{n:03}")).collect();
    for order in ["created_at", "%2Bcreated_at", "-created_at"] {
        let mut seen = listed(&stand_in, &format!("order_by={order}&limit=5")).await;
        while seen.len() < 23 {
            let after = seen.last().unwrap();
            seen.extend(listed(&stand_in, &format!("order_by={order}&limit=5&starting_after={after}")).await);
        }
        if order.starts_with('-') {
            expected.reverse();
        }
        assert_eq!(seen, expected, "{order}");
        let after = seen.last().unwrap();
        assert!(listed(&stand_in, &format!("order_by={order}&starting_after={after}")).await.is_empty());
    }
}

#[tokio::test]
async fn whoever_changes_comes_first_among_the_newest_changes() {
    let stand_in = serve(4).await;
    stand_in.world().change("user_001", AT + 100, |person| person.banned = true).unwrap();
    assert_eq!(listed(&stand_in, "order_by=-updated_at&limit=2").await, ["user_001", "user_003"]);
    assert!(stand_in.world().change("user_x", AT, |_| ()).is_none());
    stand_in.world().delete("user_001").unwrap();
    assert_eq!(listed(&stand_in, "order_by=-updated_at&limit=2").await, ["user_003", "user_002"]);
}

#[tokio::test]
async fn filters_narrow_the_list_and_the_count() {
    let stand_in = serve(10).await;
    let address = stand_in.world().person("user_004").unwrap().email.unwrap();
    for (query, expected) in [
        ("user_id=user_003&user_id=user_001&user_id=nobody".to_owned(), vec!["user_003", "user_001"]),
        (format!("email_address={address}"), vec!["user_004"]),
        (format!("created_at_after={}&created_at_before={}", AT + 1, AT + 3), vec!["user_005", "user_004"]),
        (format!("created_at_after={}&order_by=-updated_at", AT + 3), vec!["user_009", "user_008"]),
        ("limit=2&offset=7".to_owned(), vec!["user_002", "user_001"]),
        (format!("created_at_after={}", i64::MAX), vec![]),
    ] {
        assert_eq!(listed(&stand_in, &query).await, expected, "{query}");
        if !query.contains("offset") {
            let (_, count) = get(&stand_in, &format!("/v1/users/count?{query}")).await;
            assert_eq!(count["total_count"], expected.len(), "{query}");
        }
    }
}

#[tokio::test]
async fn what_clerk_refuses_is_refused() {
    let stand_in = serve(3).await;
    for query in [
        "limit=0",
        "limit=501",
        "offset=-1",
        "order_by=+created_at",
        "order_by=shoe_size",
        "order_by=-updated_at&starting_after=user_001",
        "starting_after=user_001&offset=0",
        "starting_after=user_gone",
        "created_at_after=today",
    ] {
        let (status, error) = get(&stand_in, &format!("/v1/users?{query}")).await;
        assert_eq!(
            (status, &error["errors"][0]["code"]),
            (422, &"form_param_value_invalid".into()),
            "{query}"
        );
    }
    let many = "&user_id=x".repeat(101);
    assert_eq!(get(&stand_in, &format!("/v1/users?{many}")).await.0, 422);
    let (status, error) = get(&stand_in, "/v1/users/user_gone").await;
    assert_eq!((status, &error["errors"][0]["code"]), (404, &"resource_not_found".into()));
    stand_in.world().faults(|faults| faults.quota = Some(0));
    let (status, error) = get(&stand_in, "/v1/users").await;
    assert_eq!((status, &error["errors"][0]["code"]), (429, &"too_many_requests".into()));
}

#[tokio::test]
async fn a_cursor_can_be_ignored_or_refused() {
    let stand_in = serve(3).await;
    let query = "order_by=created_at&limit=1&starting_after=user_001";
    stand_in.world().faults(|faults| faults.cursor = Cursor::Ignored);
    assert_eq!(listed(&stand_in, query).await, ["user_000"]);
    stand_in.world().faults(|faults| faults.cursor = Cursor::Refused);
    assert_eq!(get(&stand_in, &format!("/v1/users?{query}")).await.0, 422);
}

#[tokio::test]
async fn requests_are_counted_by_path_and_can_be_met_by_a_change() {
    let stand_in = serve(1).await;
    stand_in.world().before_each(|world, asked| {
        if asked == "/v1/users?limit=1" {
            world.sign_up("user_new", AT + 50);
        }
    });
    assert_eq!(listed(&stand_in, "limit=1").await, ["user_new"]);
    get(&stand_in, "/v1/users/user_new").await;
    get(&stand_in, "/v1/users/user_gone").await;
    let world = stand_in.world();
    let asked = ["/v1/users", "/v1/users/{id}", "/v1/users/count"].map(|path| world.asked(path));
    assert_eq!(asked, [1, 2, 0]);
}

#[tokio::test]
async fn whoever_is_not_known_is_looked_for_once() {
    let stand_in = serve(1).await;
    stand_in.world().or_find(|id| {
        Box::pin(async move { (id != "user_gone").then(|| Person { locked: true, ..Person::of(id, AT) }) })
    });
    assert_eq!(get(&stand_in, "/v1/users/user_gone").await.0, 404);
    assert_eq!(get(&stand_in, "/v1/users/user_000").await.1["locked"], false);
    assert_eq!(get(&stand_in, "/v1/users/user_new").await.1["locked"], true);
    assert_eq!(listed(&stand_in, "").await, ["user_new", "user_000"]);
}

#[test]
fn a_user_is_the_same_whether_kept_whole_or_made_again() {
    let world = World::new();
    let mut person = Person::of("user_1", AT);
    world.insert(person.clone());
    assert_eq!(world.person("user_1").unwrap(), person);
    person.first_name = Some("Grace".into());
    world.insert(person.clone());
    assert_eq!((world.people(), world.count()), (vec![person.clone()], 1));
    let changed = world.change("user_1", AT + 9, |person| person.locked = true).unwrap();
    assert_eq!(changed, Person { locked: true, updated_at: AT + 9, ..person });
    assert_eq!(world.delete("user_1"), Some(changed));
    assert_eq!(world.count(), 0);
}
