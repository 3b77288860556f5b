//! The console over real TCP, of real processes: who may see and do what, what is sent twice, what is text, and what a page
//! may load.
#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;
#[path = "support/wire.rs"]
mod wire;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use headcount::{
    clerk::made_up::Person,
    ops::{Access, routes},
    store::{
        letters::{Captured, Filter, Page},
        operations::{Kind, LogFilter, LogPage},
    },
    time::now,
};
use support::{
    clerk::{HOUR, stand_in},
    eventually,
    process::{Backends, Process, World},
    servers::{self, Server},
};
use wire::{Client, Response};

const OPERATE: &str = "operate-hunter2-hunter2";
const LOOK: &str = "look-hunter2-hunter2";

fn address(process: &Process) -> SocketAddr {
    process.operators.trim_start_matches("http://").trim_end_matches('/').parse().unwrap()
}

/// A browser's request, as far as it matters.
async fn ask(process: &Process, method: &str, path: &str, headers: &str, form: &str) -> Response {
    let address = address(process);
    let kind = if method == "GET" { "" } else { "Content-Type: application/x-www-form-urlencoded\r\n" };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAccept: text/html\r\n{kind}{headers}Content-Length: {}\r\n\r\n{form}",
        form.len()
    );
    Client::connect(address).await.ask(request).await
}

async fn see(process: &Process, path: &str) -> Response {
    let response = ask(process, "GET", path, "", "").await;
    assert_eq!(response.status, 200, "{path}: {response:?}");
    response
}

/// Signs in, and answers the cookie as a header.
async fn sign_in(process: &Process, token: &str, name: &str) -> String {
    let form = format!("token={token}&name={name}&next=%2Fdead");
    let response = ask(process, "POST", "/sign-in", "Sec-Fetch-Site: same-origin\r\n", &form).await;
    assert_eq!((response.status, response.header("location")), (303, Some("/dead")), "{response:?}");
    let cookie = response.header("set-cookie").unwrap();
    for part in ["; HttpOnly", "; SameSite=Strict", "; Path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    format!("Cookie: {}\r\n", cookie.split(';').next().unwrap())
}

fn captured(n: u32, detail: &str, body: impl Into<Bytes>) -> Captured {
    Captured {
        message_id: format!("msg_{n}"),
        origin: headcount::message::Origin::Webhook,
        round: 0,
        event_type: "user.created".into(),
        clerk_id: Some(format!("user_{n}")),
        reason: "rejected".into(),
        detail: detail.into(),
        attempts: 4,
        first_seen: now() - 60_000,
        died_at: now() - 1_000,
        group: headcount::letters::group("rejected", detail),
        headers: [("x-note".to_owned(), "<b>bold</b>\u{202e}".to_owned())].into(),
        body: body.into(),
    }
}

fn hidden(page: &str, name: &str) -> String {
    let mark = format!("name=\"{name}\" value=\"");
    let (_, rest) = page.split_once(&mark).unwrap_or_else(|| panic!("{name} is not in {page}"));
    rest.split_once('"').unwrap().0.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_route_lets_in_whom_the_table_names() {
    let mut world = World::new(Backends::Embedded);
    world.set("HEADCOUNT_OPS_TOKEN", OPERATE);
    world.set("HEADCOUNT_OPS_LOOK_TOKEN", LOOK);
    let up = world.start(&["up"]);
    let (operator, looker) = (sign_in(&up, OPERATE, "Ada").await, sign_in(&up, LOOK, "").await);
    let ours = "Sec-Fetch-Site: same-origin\r\n";
    let mut walked = 0;
    for (method, path, access) in routes() {
        // Streams have no end; the test of live pages opens one.
        if path == "/live" {
            continue;
        }
        let path = path.replace("{ref}", "nobody").replace("{id}", "nothing");
        let of = |who: &str| {
            let headers = who.to_owned();
            let (up, method, path) = (&up, method.clone(), path.clone());
            async move {
                let response = ask(up, &method, &path, &headers, "").await;
                let turned_away = response.status == 401
                    || (response.status == 303
                        && response.header("location").unwrap().starts_with("/sign-in?"));
                (turned_away, response.status)
            }
        };
        let told = format!("{method} {path} {access:?}");
        if (method.as_str(), path.as_str()) != ("POST", "/sign-in") {
            assert_eq!(of("").await.0, access != Access::Open, "{told} without a token");
        }
        for (who, may) in [
            (looker.clone() + ours, access <= Access::Look),
            (format!("Authorization: Bearer {LOOK}\r\n"), access <= Access::Look),
            (operator.clone() + ours, true),
            (format!("Authorization: Bearer {OPERATE}\r\n"), true),
        ] {
            let (turned_away, status) = of(&who).await;
            assert!(!turned_away || path == "/sign-in", "{told} {who}: {status}");
            assert_eq!(status == 403, !may, "{told} {who}: {status}");
        }
        // Another site's page, and one at another port, with the cookie all the same.
        if method != "GET" {
            for site in ["cross-site", "same-site"] {
                let response =
                    ask(&up, &method, &path, &format!("{operator}Sec-Fetch-Site: {site}\r\n"), "").await;
                assert_eq!(response.status, 403, "{told} {site}");
            }
            let response =
                ask(&up, &method, &path, &format!("{operator}Origin: http://127.0.0.1:1\r\n"), "").await;
            assert_eq!(response.status, 403, "{told} from another origin");
        }
        walked += 1;
    }
    assert!(walked > 50, "{walked}");
    for forged in [
        "Cookie: headcount-0=x.y\r\n".to_owned(),
        operator.replace('.', "x."),
        operator.replace("\r\n", "A\r\n"),
    ] {
        assert_eq!(ask(&up, "GET", "/users", &forged, "").await.status, 303, "{forged}");
    }
    let wrong = ask(&up, "POST", "/sign-in", ours, "token=wrong-token").await;
    assert_eq!(wrong.status, 401);
    assert!(wrong.header("set-cookie").is_none() && wrong.body.contains("neither of the two tokens"));
    let out = ask(&up, "POST", "/sign-out", &format!("{operator}{ours}"), "").await;
    assert!(out.header("set-cookie").unwrap().contains("Max-Age=0"));
    for secret in [OPERATE, LOOK] {
        assert!(!up.log().contains(secret));
    }
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_looks_sees_no_personal_values_and_who_operates_leaves_a_trace() {
    for backends in [Backends::Embedded, Backends::RabbitPostgres] {
        let mut world = World::new(backends);
        world.set("HEADCOUNT_OPS_TOKEN", OPERATE);
        world.set("HEADCOUNT_OPS_LOOK_TOKEN", LOOK);
        assert!(world.run(&["migrate"]).status.success());
        let store = world.store().await;
        let body = r#"{"type":"user.created","data":{"id":"user_1","first_name":"Grace","email_addresses":[{"email_address":"grace@example.com"}]}}"#;
        store.capture(&[captured(1, "violates \"house_rule\"", body)]).await.unwrap();
        let up = world.start(&["up"]);
        let looker = sign_in(&up, LOOK, "").await;
        let operator = sign_in(&up, OPERATE, "Ada").await + "Sec-Fetch-Site: same-origin\r\n";
        let list = ask(&up, "GET", "/dead/letters", &looker, "").await.body;
        let id = list.split_once("/dead/letters/").unwrap().1.split_once('"').unwrap().0.to_owned();
        let page = format!("/dead/letters/{id}");
        let looked = ask(&up, "GET", &page, &looker, "").await;
        assert_eq!(looked.status, 200);
        assert!(looked.body.contains("•••") && looked.body.contains("user_1"), "{}", looked.body);
        assert!(!looked.body.contains("Grace") && !looked.body.contains("grace@"), "{}", looked.body);
        assert!(!looked.body.contains("/reveal") && !looked.body.contains("Replay…"));

        let revealed = ask(&up, "POST", &format!("{page}/reveal"), &operator, "").await;
        let key = revealed.header("location").unwrap().to_owned();
        assert!(ask(&up, "GET", &key, &operator, "").await.body.contains("grace@example.com"));
        // The key is the operator's, and this letter's.
        assert!(!ask(&up, "GET", &key, &looker, "").await.body.contains("grace@"));
        let log = ask(&up, "GET", "/operations", &looker, "").await.body;
        assert!(log.contains("reveal") && log.contains("Ada (console)"), "{log}");
        up.stop();
        store.close().await;
        world.clean_up().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_twice_is_done_once_and_can_be_undone() {
    for backends in [Backends::Embedded, Backends::RabbitPostgres] {
        let world = World::new(backends);
        assert!(world.run(&["migrate"]).status.success());
        let store = world.store().await;
        let letters: Vec<_> = (0..5).map(|n| captured(n, "violates \"house_rule\"", "x")).collect();
        store.capture(&letters).await.unwrap();
        // Alone, without a worker.
        let console = match backends {
            Backends::Embedded => world.start(&["up"]),
            _ => world.start(&["console"]),
        };
        let preview = see(&console, "/dead/discard?reason=rejected").await.body;
        assert!(preview.contains("Discard 5 letters?"), "{preview}");
        let ours = "Sec-Fetch-Site: same-origin\r\n";
        let form = |page: &str, more: &str| {
            let [once, expected, before] = ["once", "expected", "before"].map(|name| hidden(page, name));
            format!("reason=rejected&once={once}&expected={expected}&before={before}{more}")
        };
        let body = form(&preview, "&note=a+test");
        // At the same time, and once more.
        let (one, two) = tokio::join!(
            ask(&console, "POST", "/dead/discard", ours, &body),
            ask(&console, "POST", "/dead/discard", ours, &body)
        );
        let three = ask(&console, "POST", "/dead/discard", ours, &body).await;
        let place = one.header("location").unwrap().to_owned();
        assert_eq!(
            (one.status, two.header("location"), three.header("location")),
            (303, Some(&*place), Some(&*place))
        );
        let told = see(&console, &place).await.body;
        assert!(told.contains("5 letters discarded"), "{told}");
        let discards =
            store.operations(&LogFilter::default(), &LogPage { limit: 10, after: None }).await.unwrap();
        assert_eq!(discards.iter().filter(|row| row.kind.as_str() == "discard").count(), 1);

        // Without a note nothing is discarded, and without the form's id or its time neither.
        let blank = form(&preview, "&note=+%09");
        let timeless = form(&preview, "&note=a+test").replace("&before=", "&before=x");
        for bad in
            ["reason=rejected&once=x&expected=5", "reason=rejected&note=x&expected=5", &blank, &timeless]
        {
            assert_eq!(ask(&console, "POST", "/dead/discard", ours, bad).await.status, 400, "{bad}");
        }
        // More that died or was discarded for the same reason since is not meant: neither by a form that was open, nor by the undo.
        let late: Vec<_> = (10..13).map(|n| captured(n, "violates \"house_rule\"", "x")).collect();
        store.capture(&late[..1]).await.unwrap();
        let undo =
            told.split_once("/dead/restore?").unwrap().1.split_once('"').unwrap().0.replace("&amp;", "&");
        let undo = see(&console, &format!("/dead/restore?{undo}")).await.body;
        assert!(undo.contains("Restore 5 letters?"), "{undo}");
        let body = form(&undo, &format!("&settled={}", hidden(&undo, "settled")));
        assert_eq!(ask(&console, "POST", "/dead/restore", ours, &body).await.status, 303);
        let page = Page { limit: 10, after: None };
        let open = store
            .list(
                &Filter { status: Some(headcount::store::letters::Status::Open), ..Filter::default() },
                &page,
            )
            .await
            .unwrap();
        assert_eq!(open.len(), 6);
        let preview = see(&console, "/dead/discard?reason=rejected").await.body;
        store.capture(&late[1..]).await.unwrap();
        let response = ask(&console, "POST", "/dead/discard", ours, &form(&preview, "&note=x")).await;
        let told = see(&console, response.header("location").unwrap()).await.body;
        assert!(told.contains("6 letters discarded"), "{told}");

        // Nothing chosen is not everything.
        for path in ["/dead/discard?chosen=yes", "/dead/replay?chosen=yes&reason=rejected", "/dead/discard"] {
            assert_eq!(ask(&console, "GET", path, "", "").await.status, 400, "{path}");
        }
        see(&console, "/dead/discard?all=yes").await;
        console.stop();
        store.close().await;
        world.clean_up().await;
    }
}

/// Every page of a console that has something to show.
const PAGES: [&str; 17] = [
    "/",
    "/users",
    "/users?text=x&deleted=true",
    "/dead",
    "/dead/letters",
    "/dead/letters?status=all&since=2h",
    "/dead/replay?reason=rejected",
    "/dead/discard?reason=rejected",
    "/dead/restore?all=yes",
    "/rejections",
    "/flow",
    "/sync",
    "/operations",
    "/operations?kind=replay",
    "/processes",
    "/keys",
    "/dead/letters?text=%3Cscript%3E",
];

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_from_outside_is_text_and_nothing_runs_or_loads_from_elsewhere() {
    let world = World::new(Backends::RabbitPostgres);
    assert!(world.run(&["migrate"]).status.success());
    let store = world.store().await;
    let hostile = "<script>alert(1)</script>\u{202e}<img src=x onerror=alert(2)>\" onmouseover=\"alert(3)";
    let mut letter = captured(7, hostile, format!("{{\"type\":\"{}\"}}", hostile.replace('"', "'")));
    letter.message_id = "msg_<script>".into();
    letter.event_type = hostile.into();
    letter.clerk_id = Some(hostile.into());
    letter.reason = "<i>reason</i>".into();
    store.capture(&[letter]).await.unwrap();
    let up = world.start(&["up"]);
    let sent = up.poster().post("msg_a", Bytes::from(format!(
        r#"{{"type":"user.created","timestamp":{0},"data":{{"id":"user_7","object":"user","first_name":"<script>alert(1)</script>\u202e","email_addresses":[],"created_at":{0},"updated_at":{0}}}}}"#,
        now()
    ))).await.unwrap();
    assert!(sent.is_success());
    world.until_users("the user is there", |users| !users.is_empty()).await;
    let list = see(&up, "/dead/letters").await.body;
    let id = list.split_once("/dead/letters/").unwrap().1.split_once('"').unwrap().0.to_owned();
    let mut pages: Vec<String> = PAGES.iter().map(|page| (*page).to_owned()).collect();
    pages.extend([format!("/dead/letters/{id}"), format!("/dead/letters/{id}/edit"), "/users/user_7".into()]);
    let mut shown = 0;
    for path in &pages {
        let page = see(&up, path).await;
        let policy = page.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(page.header("cache-control"), Some("no-store"));
        let body = &page.body;
        assert!(
            !body.contains("<script>") && !body.contains("<img") && !body.contains('\u{202e}'),
            "{path}: {body}"
        );
        assert!(
            !body.contains(" style=") && !body.contains(" onmouseover=\"") && !body.contains("<i>reason"),
            "{path}"
        );
        assert!(
            !body.contains("http://") && !body.contains("https://"),
            "{path} refers to elsewhere: {body}"
        );
        shown += body.matches("&lt;script&gt;alert(1)").count();
    }
    assert!(shown > 5, "the hostile text is shown as text: {shown}");
    // What is not there, and what is no page.
    for (path, status) in [
        ("/users/%3Cscript%3E", 303),
        ("/search?q=%3Cscript%3E%E2%80%AE", 404),
        ("/dead/letters/nothing", 404),
        ("/operations/nothing", 404),
        ("/dead/letters?status=dead", 400),
        ("/dead/letters?since=yesterday", 400),
        ("/dead/letters?after=x", 400),
        ("/operations?kind=x", 400),
        ("/users?after=x", 400),
        ("/nothing", 404),
    ] {
        let answer = ask(&up, "GET", path, "", "").await;
        assert_eq!(answer.status, status, "{path}");
        assert!(
            !answer.body.contains("<script>") && !answer.body.contains('\u{202e}'),
            "{path}: {}",
            answer.body
        );
    }
    up.stop();
    store.close().await;
    world.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn search_leads_to_the_thing_itself() {
    let world = World::new(Backends::RabbitPostgres);
    assert!(world.run(&["migrate"]).status.success());
    let store = world.store().await;
    store.capture(&[captured(3, "violates \"house_rule\"", "x")]).await.unwrap();
    let up = world.start(&["up"]);
    let person = Person::of("user_9", now());
    let email = person.email.clone().unwrap();
    up.poster().post("msg_9", Bytes::from(person.event("user.created", now()))).await.unwrap();
    let users = world.until_users("the user is there", |users| !users.is_empty()).await;
    let letter = store.list(&Filter::default(), &Page { limit: 1, after: None }).await.unwrap()[0].id;
    let leads = async |text: &str| {
        let text: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
        let response = ask(&up, "GET", &format!("/search?q={text}"), "", "").await;
        assert_eq!(response.status, 303, "{text}: {response:?}");
        response.header("location").unwrap().to_owned()
    };
    for reference in ["user_9", " user_9 ", &email, &email.to_uppercase(), &users[0].id.to_string()] {
        assert_eq!(leads(reference).await, "/users/user_9", "{reference}");
    }
    assert_eq!(leads("msg_9").await, "/users/user_9#msg_9");
    assert_eq!(leads("msg_3").await, format!("/dead/letters/{letter}"));
    assert_eq!(leads(&letter.to_string()).await, format!("/dead/letters/{letter}"));
    assert_eq!(leads("user_3").await, "/dead/letters?user=user_3&status=all");
    let nobody = ask(&up, "GET", "/search?q=user_nobody", "", "").await;
    assert_eq!(nobody.status, 404);
    assert!(
        nobody.body.contains("Never heard of") && nobody.body.contains("The last webhook came"),
        "{}",
        nobody.body
    );
    up.stop();
    store.close().await;
    world.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_live_is_sent_again_when_it_changes_and_ends_with_the_process() {
    let world = World::new(Backends::Embedded);
    let up = world.start(&["up"]);
    let address = address(&up);
    let mut live = Client::connect(address).await;
    live.send(format!("GET /live?path=%2Fdead HTTP/1.1\r\nHost: {address}\r\n\r\n")).await;
    let first = live.event("main").await;
    assert!(first.contains("No letter is open"), "{first}");
    up.poster().post("msg_1", Bytes::from_static(b"no JSON")).await.unwrap();
    let again = live.event("main").await;
    assert!(again.contains("1 letter"), "the page is sent again: {again}");
    let rest = tokio::spawn(async move { live.rest().await });
    let began = Instant::now();
    up.stop();
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "an open stream holds up no stop: {:?}",
        began.elapsed()
    );
    rest.await.unwrap();

    // What leaves a trace, or asks Clerk, is not kept live; and nothing is for strangers.
    let mut world = World::new(Backends::Embedded);
    world.set("HEADCOUNT_OPS_TOKEN", OPERATE);
    let up = world.start(&["up"]);
    let operator = format!("Authorization: Bearer {OPERATE}\r\n");
    for path in ["%2Flive%3Fpath%3D%2F", "%2Fdead%2Fletters%2Fx%2Fedit", "%2Fusers%2Fx%2Fclerk"] {
        let live = format!("/live?path={path}");
        assert_eq!(ask(&up, "GET", &live, &operator, "").await.status, 400, "{path}");
        assert_eq!(ask(&up, "GET", &live, "", "").await.status, 303, "{path} without a token");
    }
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_a_replay_tells_also_after_its_end_what_became_of_its_last_letters() {
    for backends in [Backends::Embedded, Backends::RabbitPostgres] {
        let world = World::new(backends);
        assert!(world.run(&["migrate"]).status.success());
        let store = world.store().await;
        let born = now() - HOUR;
        let event = |n: u32| Person::of(format!("user_{n}"), born).event("user.created", born);
        let mut letters: Vec<_> = (0..300).map(|n| captured(n, "once", event(n))).collect();
        letters.extend((300..305).map(|n| captured(n, "always", "no JSON")));
        store.capture(&letters).await.unwrap();
        let up = world.start(&["up"]);
        let preview = see(&up, "/dead/replay?reason=rejected").await.body;
        let [once, expected, before] = ["once", "expected", "before"].map(|name| hidden(&preview, name));
        // All at once: it ends when the last letter is published.
        let form = format!("reason=rejected&once={once}&expected={expected}&before={before}&how=all");
        let response = ask(&up, "POST", "/dead/replay", "Sec-Fetch-Site: same-origin\r\n", &form).await;
        let place = response.header("location").unwrap();
        let id = place.rsplit('/').next().unwrap().parse().unwrap();
        eventually("each letter has taken effect, or died again", async || {
            let ended = store.operation(id).await.unwrap().unwrap().state.is_over();
            ended && store.outcomes(id, true).await.unwrap().under_way == 0
        })
        .await;
        let page = see(&up, place).await.body;
        for (name, value) in
            [("Published", "305"), ("Applied", "300"), ("Died again", "5"), ("Under way", "0")]
        {
            assert!(page.contains(&format!("<dt>{name}</dt><dd>{value}</dd>")), "{name}: {page}");
        }
        up.stop();
        store.close().await;
        world.clean_up().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_note_on_a_cause_is_seen_at_once_with_its_writer_and_can_be_taken_away() {
    let world = World::new(Backends::Embedded);
    assert!(world.run(&["migrate"]).status.success());
    let store = world.store().await;
    store.capture(&[captured(0, "violates \"house_rule\"", "x")]).await.unwrap();
    let up = world.start(&["up"]);
    let write = async |note: &str| {
        let page = see(&up, "/dead").await.body;
        let form = format!("group={}&note={note}", hidden(&page, "group").replace(' ', "+"));
        let response = ask(&up, "POST", "/dead/note", "Sec-Fetch-Site: same-origin\r\n", &form).await;
        assert_eq!(response.status, 303, "{}", response.body);
        see(&up, response.header("location").unwrap()).await.body
    };
    let page = write("Ann+knows+why").await;
    assert!(page.contains("Ann knows why") && page.contains("by console"), "{page}");
    let page = write("Bob+mended+it").await;
    assert!(page.contains("Bob mended it") && !page.contains("Ann knows why"), "{page}");
    let page = write("").await;
    assert!(!page.contains("Bob mended it") && page.contains("Write a note"), "{page}");
    up.stop();
    store.close().await;
    world.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_compared_with_clerk_and_brought_in_step() {
    for backends in [Backends::Embedded, Backends::RabbitPostgres] {
        let mut world = World::new(backends);
        assert!(world.run(&["migrate"]).status.success());
        let clerk = stand_in(&mut world).await;
        clerk.world().sign_up("user_lost", now() - HOUR);
        let store = world.store().await;
        let up = world.start(&["up"]);
        let page = ask(&up, "GET", "/search?q=user_lost", "", "").await.body;
        assert!(
            page.contains("Never heard of") && page.contains("href=\"/users/user_lost/clerk\""),
            "{page}"
        );
        let page = see(&up, "/users/user_lost/clerk").await.body;
        assert!(page.contains("There is no row for"), "{page}");
        let ours = "Sec-Fetch-Site: same-origin\r\n";
        let response = ask(&up, "POST", "/users/user_lost/sync", ours, "").await;
        assert_eq!(response.status, 303, "{}", response.body);
        eventually("the user is here", async || {
            store.user("user_lost").await.unwrap().is_some_and(|history| history.user.is_some())
        })
        .await;
        let page = see(&up, response.header("location").unwrap()).await.body;
        assert!(page.contains("Compared with Clerk"), "{page}");
        let page = see(&up, "/users/user_lost/clerk").await.body;
        assert!(page.contains("The row says what Clerk says."), "{page}");

        clerk
            .world()
            .change("user_lost", now() - HOUR / 2, |person| person.first_name = Some("Changed".into()));
        let page = see(&up, "/users/user_lost/clerk").await.body;
        assert!(page.contains("columns differ") && page.contains("Changed"), "{page}");
        let page = see(&up, "/users/user_nobody/clerk").await.body;
        assert!(page.contains("Clerk does not know this id or address either."), "{page}");

        // A dry run tells what differs, and changes nothing.
        let response = ask(&up, "POST", "/sync/dry-run", ours, "").await;
        assert_eq!(response.status, 303, "{}", response.body);
        eventually("the dry run has ended", async || {
            see(&up, "/sync").await.body.contains("dry run</td>")
                && see(&up, "/operations").await.body.contains("complete")
        })
        .await;
        let first_name = store.user("user_lost").await.unwrap().unwrap().user.unwrap().first_name;
        assert_ne!(first_name.as_deref(), Some("Changed"));
        let log = store
            .operations(
                &LogFilter { kinds: vec![Kind::Sync], ..LogFilter::default() },
                &LogPage { limit: 10, after: None },
            )
            .await
            .unwrap();
        assert_eq!(log.len(), 2, "{log:?}");
        assert!(log.iter().all(|row| row.who == "console"), "{log:?}");
        up.stop();
        store.close().await;
        world.clean_up().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_frozen_each_page_says_so_in_time() {
    let database = Server::postgres();
    let mut world = World::on(Some(servers::url("TEST_AMQP_URL")), Some(database.url()));
    world.unset("HEADCOUNT_SCHEMA");
    assert!(world.run(&["migrate"]).status.success());
    let console = world.start(&["up"]);
    eventually("all is well", async || see(&console, "/").await.body.contains("All well")).await;
    database.freeze();
    // Well a moment ago, and without an answer now.
    let first = ask(&console, "GET", "/dead", "", "").await;
    assert_eq!(first.status, 503);
    assert!(!first.body.contains("All well"), "{}", first.body);
    eventually("it is known", async || {
        let body = see(&console, "/").await.body;
        body.contains("No answer from the database") || body.contains("How things stand is not known")
    })
    .await;
    for path in ["/dead", "/dead/letters", "/users", "/processes", "/operations", "/rejections", "/flow"] {
        let begun = Instant::now();
        let page = ask(&console, "GET", path, "", "").await;
        assert!(begun.elapsed() < Duration::from_secs(5), "{path} took {:?}", begun.elapsed());
        assert!(!page.body.contains("All well"), "{path}: {}", page.body);
    }
    let begun = Instant::now();
    let status = ask(&console, "GET", "/api/v1/status", "", "").await;
    assert!(matches!(status.status, 503 | 504), "{status:?}");
    assert!(begun.elapsed() < Duration::from_secs(8), "the status took {:?}", begun.elapsed());
    database.thaw();
    eventually("all is well again", async || see(&console, "/").await.body.contains("All well")).await;
    console.stop();
    world.clean_up().await;
}
