//! The application's API: who is asking, the row that exists before the first answer, live updates, and what is refused. Against a
//! stand-in for Clerk's API, with tokens that the tests sign, on both stores.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

#[path = "../support/stores.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod stores;
mod visitors;

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use headcount::{
    api::{self, Settings},
    clerk::{
        api::{Api, Settings as ClerkSettings},
        stand_in::{StandIn, World as Clerk, Wrong, tokens::Signer},
        token::{KeySource, Keys, Terms, Verifier},
    },
    net::{Bounds, Client, listen},
    queue::Absent,
    rules::sessions::Status,
    secret::Secret,
    store::{Store, sync::Holder},
    sync::Sync,
    time::now,
};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use stores::{Home, contract};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::watch,
    task::JoinHandle,
};

const ISSUER: &str = "https://clerk.example.com";
const APP: &str = "https://app.example.com";
const KEY: &str = "sk_live_dGhlIHRlc3RzIG9mIGhlYWRjb3VudA";

/// The stand-in's name for the path of one user.
const ONE: &str = "/v1/users/{id}";

/// How long a test waits for an event that has to happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// Clerk, its tokens, and processes that answer an application.
struct Scene {
    home: Arc<Home>,
    clerk: Clerk,
    signer: Signer,
    stand_in: StandIn,
}

/// A process that answers.
struct Process {
    url: String,
    store: Arc<dyn Store>,
    stop: watch::Sender<bool>,
    served: JoinHandle<()>,
}

impl Scene {
    async fn new(home: Arc<Home>) -> Self {
        home.store().await;
        let clerk = Clerk::new();
        clerk.set_key(Secret::new(KEY));
        let stand_in = StandIn::start(clerk.clone()).await.unwrap();
        Self { home, clerk, signer: Signer::new("ins_1").unwrap(), stand_in }
    }

    async fn process(&self) -> Process {
        self.process_with(true).await
    }

    async fn process_with(&self, key: bool) -> Process {
        let store = self.home.open().await;
        let terms = Terms { issuer: ISSUER.into(), parties: vec![APP.into()], allow_missing_party: false };
        let keys = Keys::new(&KeySource::Pem(self.signer.pem())).unwrap();
        let clerk = key.then(|| Sync {
            api: Api::new(&ClerkSettings {
                key: Secret::new(KEY),
                url: self.stand_in.url().to_owned(),
                rate: Some(1_000.0),
                patience: api::ASKED,
                keep_object: false,
            })
            .unwrap(),
            store: Arc::clone(&store),
            queue: Arc::new(Absent),
            grace: Duration::ZERO,
            instance: None,
            billing: false,
            holder: Holder::of("api"),
        });
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let settings = Settings {
            store: Arc::clone(&store),
            verifier: Verifier::new(terms, keys),
            cookie_suffix: Some("abcd1234".into()),
            clerk,
            keep_object: false,
            sessions: true,
            anonymous_retention: Duration::from_secs(3_600),
            pages: None,
            bounds: Bounds { connections: 1_000, ..Settings::bounds() },
        };
        let (stop, stopped) = watch::channel(false);
        let served = tokio::spawn(api::serve(listener, settings, stopped));
        Process { url, store, stop, served }
    }

    fn token(&self, clerk_id: &str) -> String {
        self.token_of(clerk_id, &format!("sess_{clerk_id}"))
    }

    fn token_of(&self, clerk_id: &str, session: &str) -> String {
        self.signer.session(ISSUER, clerk_id, session, APP, now())
    }
}

/// What was answered.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }
}

impl Process {
    async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.ask_with(method, path, headers, Bytes::new()).await
    }

    async fn ask_with(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Bytes) -> Answer {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).unwrap();
        let answer = Client::http().exchange(request, PATIENCE, 1 << 20).await.unwrap();
        let body = serde_json::from_slice(&answer.body.unwrap()).unwrap_or_default();
        Answer { status: answer.status, headers: answer.headers, body }
    }

    async fn me(&self, token: &str) -> Answer {
        self.ask(Method::GET, "/v1/me", &[("authorization", &format!("Bearer {token}"))]).await
    }

    async fn sync(&self, token: &str) -> Answer {
        self.ask(Method::POST, "/v1/me/sync", &[("authorization", &format!("Bearer {token}"))]).await
    }

    /// Opens a stream.
    async fn stream(&self, token: &str, last: Option<&str>) -> Stream {
        let address = self.url.trim_start_matches("http://");
        let mut socket = TcpStream::connect(address).await.unwrap();
        let last = last.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        let head = format!(
            "GET /v1/me/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n{last}\r\n"
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        Stream(BufReader::new(socket))
    }

    async fn end(self) {
        self.stop.send_replace(true);
        tokio::time::timeout(PATIENCE, self.served).await.expect("it stops").unwrap();
    }
}

/// A stream of events.
struct Stream(BufReader<TcpStream>);

/// An event: its id, its name and its data.
#[derive(Debug, PartialEq)]
struct Told {
    id: String,
    event: String,
    data: Value,
}

impl Stream {
    /// The next event; `None` at the end.
    async fn next(&mut self) -> Option<Told> {
        let mut told = Told { id: String::new(), event: String::new(), data: Value::Null };
        loop {
            let mut line = String::new();
            let read = tokio::time::timeout(PATIENCE, self.0.read_line(&mut line)).await.expect("an event");
            if read.unwrap() == 0 {
                return None;
            }
            let line = line.trim_end();
            match line.split_once(": ") {
                Some(("id", id)) => told.id = id.to_owned(),
                Some(("event", event)) => told.event = event.to_owned(),
                Some(("data", data)) => told.data = serde_json::from_str(data).unwrap(),
                _ if line.is_empty() && !told.event.is_empty() => return Some(told),
                _ => {}
            }
        }
    }
}

contract! {
    the_row_exists_before_the_first_answer
    a_hundred_first_requests_over_two_processes_make_one_row
    who_comes_back_with_an_address_gets_the_row_that_waited_for_a_deletion
    two_live_accounts_with_one_address_both_get_a_row
    asking_clerk_again_tells_what_changed
    a_user_whom_clerk_does_not_know_any_more_is_deleted_and_strangers_are_not_made
    with_another_instances_key_nobody_is_deleted
    while_clerk_is_away_known_users_are_answered
    a_user_who_cannot_be_read_is_said_to_be
    a_change_is_told_within_a_second_whoever_made_it
    a_session_that_has_ended_signs_nobody_in
    a_user_sees_the_sessions_and_who_acted_in_them
}

async fn the_row_exists_before_the_first_answer(home: Arc<Home>) {
    let scene = Scene::new(home).await;
    let process = scene.process().await;
    scene.clerk.sign_up("user_ann", now());
    let answer = process.me(&scene.token("user_ann")).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let row = process.store.user("user_ann").await.unwrap().unwrap().user.unwrap();
    assert_eq!(answer.body["id"], json!(row.id));
    assert_eq!(answer.body["email"], json!(row.email));
    assert!(answer.body.get("private_metadata").is_none() && answer.body.get("clerk").is_none());
    assert_eq!(answer.header("cache-control"), "private, no-cache");
    // Known from here on: Clerk is not asked again, and what is not new is not sent.
    let asked = scene.clerk.asked(ONE);
    assert_eq!(asked, 1);
    let tag = answer.header("etag").to_owned();
    let bearer = format!("Bearer {}", scene.token("user_ann"));
    for known in [&tag, &format!("W/{tag}"), "*", &format!("\"x\", {tag}")] {
        let again =
            process.ask(Method::GET, "/v1/me", &[("authorization", &bearer), ("if-none-match", known)]).await;
        assert_eq!((again.status, again.header("etag")), (StatusCode::NOT_MODIFIED, &*tag), "{known}");
    }
    assert_eq!(scene.clerk.asked(ONE), asked);
    process.end().await;
}

async fn a_hundred_first_requests_over_two_processes_make_one_row(home: Arc<Home>) {
    let scene = Arc::new(Scene::new(home).await);
    let processes = [Arc::new(scene.process().await), Arc::new(scene.process().await)];
    for round in 0..5 {
        let (id, before) = (format!("user_{round}"), scene.clerk.asked(ONE));
        scene.clerk.sign_up(&id, now());
        let requests: Vec<_> = (0..100)
            .map(|n| {
                let (process, token) = (Arc::clone(&processes[n % 2]), scene.token(&id));
                tokio::spawn(async move { process.me(&token).await })
            })
            .collect();
        // Its webhook arrives meanwhile.
        let store = scene.home.open().await;
        let webhook = stores::created(&id, now()).event();
        store.apply(Arc::from([webhook])).await.unwrap();
        let mut ids = HashSet::new();
        for request in requests {
            let answer = request.await.unwrap();
            assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
            ids.insert(answer.body["id"].to_string());
        }
        assert_eq!(ids.len(), 1, "{ids:?}");
        let asked = scene.clerk.asked(ONE) - before;
        assert!(asked <= 2, "each process asks once at most, and not {asked} times");
    }
    assert_eq!(scene.home.open().await.totals().await.unwrap().live_users, 5);
    for process in processes {
        Arc::into_inner(process).unwrap().end().await;
    }
}

async fn who_comes_back_with_an_address_gets_the_row_that_waited_for_a_deletion(home: Arc<Home>) {
    let scene = Scene::new(home).await;
    let process = scene.process().await;
    scene.clerk.sign_up("user_old", now() - 60_000);
    let old = process.me(&scene.token("user_old")).await;
    let email = old.body["email"].as_str().unwrap().to_owned();
    // The account is deleted in Clerk and made anew with the same address; no webhook has come of either.
    scene.clerk.delete("user_old");
    scene.clerk.sign_up("user_new", now());
    scene
        .clerk
        .change("user_new", now(), |person| (person.email, person.verified) = (Some(email.clone()), true));
    let new = process.me(&scene.token("user_new")).await;
    assert_eq!(new.status, StatusCode::OK, "{new:?}");
    assert_eq!((&new.body["id"], &new.body["email"]), (&old.body["id"], &json!(email)));
    let gone = process.me(&scene.token("user_old")).await;
    assert_eq!((gone.status, gone.code()), (StatusCode::GONE, "deleted"));
    process.end().await;
}

async fn two_live_accounts_with_one_address_both_get_a_row(home: Arc<Home>) {
    let scene = Scene::new(home).await;
    let process = scene.process().await;
    scene.clerk.sign_up("user_ann", now() - 60_000);
    let ann = process.me(&scene.token("user_ann")).await;
    let email = ann.body["email"].as_str().unwrap().to_owned();
    scene.clerk.sign_up("user_bob", now());
    scene
        .clerk
        .change("user_bob", now(), |person| (person.email, person.verified) = (Some(email.clone()), true));
    let bob = process.me(&scene.token("user_bob")).await;
    assert_eq!(bob.status, StatusCode::OK, "{bob:?}");
    assert_ne!(bob.body["id"], ann.body["id"]);
    // Ann has changed her address, and only Clerk knows so far.
    scene.clerk.change("user_ann", now(), |person| person.email = Some("ann@new.example".into()));
    scene.clerk.sign_up("user_cat", now());
    scene
        .clerk
        .change("user_cat", now(), |person| (person.email, person.verified) = (Some(email.clone()), true));
    let cat = process.me(&scene.token("user_cat")).await;
    assert_eq!(cat.status, StatusCode::OK, "{cat:?}");
    assert_eq!(process.me(&scene.token("user_ann")).await.body["email"], "ann@new.example");
    process.end().await;
}

async fn asking_clerk_again_tells_what_changed(home: Arc<Home>) {
    let scene = Scene::new(home).await;
    let process = scene.process().await;
    scene.clerk.sign_up("user_ann", now() - 60_000);
    let first = process.sync(&scene.token("user_ann")).await;
    assert_eq!(first.status, StatusCode::OK, "{first:?}");
    assert!(first.body["changed"].as_array().unwrap().contains(&json!("id")), "it is new: {first:?}");
    let soon = process.sync(&scene.token("user_ann")).await;
    assert_eq!((soon.status, soon.code()), (StatusCode::TOO_MANY_REQUESTS, "too_many_requests"));
    assert!(soon.header("retry-after").parse::<u64>().unwrap() <= 11);
    scene.clerk.change("user_ann", now(), |person| person.first_name = Some("Annabel".into()));
    // Another process, which has not asked yet.
    let other = scene.process().await;
    let again = other.sync(&scene.token("user_ann")).await;
    let changed: HashSet<&str> =
        again.body["changed"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(changed.contains("first_name") && !changed.contains("email"), "{again:?}");
    assert_eq!(again.body["user"]["first_name"], "Annabel");
    assert_eq!(again.body["user"]["id"], first.body["user"]["id"]);
    process.end().await;
    other.end().await;
}

async fn a_user_whom_clerk_does_not_know_any_more_is_deleted_and_strangers_are_not_made(home: Arc<Home>) {
    let scene = Scene::new(home).await;
    let process = scene.process().await;
    let nobody = process.me(&scene.token("user_nobody")).await;
    assert_eq!((nobody.status, nobody.code()), (StatusCode::NOT_FOUND, "unknown_user"));
    scene.clerk.sign_up("user_ann", now() - 60_000);
    assert_eq!(process.me(&scene.token("user_ann")).await.status, StatusCode::OK);
    scene.clerk.delete("user_ann");
    assert_eq!(process.me(&scene.token("user_ann")).await.status, StatusCode::OK, "nobody has told yet");
    let synced = process.sync(&scene.token("user_ann")).await;
    assert_eq!((synced.status, synced.code()), (StatusCode::GONE, "deleted"), "{synced:?}");
    assert_eq!(process.me(&scene.token("user_ann")).await.status, StatusCode::GONE);
    assert_eq!(process.store.totals().await.unwrap().live_users, 0);
    process.end().await;
}

async fn with_another_instances_key_nobody_is_deleted(home: Arc<Home>) {
    let scene = Scene::new(home).await;
    let process = scene.process().await;
    scene.clerk.sign_up("user_ann", now() - 60_000);
    assert_eq!(process.me(&scene.token("user_ann")).await.status, StatusCode::OK);
    scene.clerk.set_instance("ins_theirs");
    scene.clerk.delete("user_ann");
    let synced = process.sync(&scene.token("user_ann")).await;
    assert_eq!(synced.status, StatusCode::SERVICE_UNAVAILABLE, "{synced:?}");
    assert_eq!(process.me(&scene.token("user_ann")).await.status, StatusCode::OK);
    process.end().await;
}

async fn while_clerk_is_away_known_users_are_answered(home: Arc<Home>) {
    let scene = Scene::new(home).await;
    let process = scene.process().await;
    scene.clerk.sign_up("user_ann", now() - 60_000);
    scene.clerk.sign_up("user_bob", now());
    assert_eq!(process.me(&scene.token("user_ann")).await.status, StatusCode::OK);
    for wrong in [Wrong::Status(500), Wrong::Hang, Wrong::Limited(3_600), Wrong::Page] {
        let name = format!("{wrong:?}");
        scene.clerk.faults(|faults| faults.wrong = Some(wrong));
        assert_eq!(process.me(&scene.token("user_ann")).await.status, StatusCode::OK, "{name}");
        let began = Instant::now();
        let unknown = process.me(&scene.token("user_bob")).await;
        assert_eq!(unknown.status, StatusCode::SERVICE_UNAVAILABLE, "{name}: {unknown:?}");
        assert!(!unknown.header("retry-after").is_empty(), "{name}");
        assert!(began.elapsed() < Duration::from_secs(10), "{name}: {:?}", began.elapsed());
    }
    process.end().await;
    let without = scene.process_with(false).await;
    let unknown = without.me(&scene.token("user_bob")).await;
    assert_eq!((unknown.status, unknown.code()), (StatusCode::NOT_FOUND, "not_synced"));
    assert!(!unknown.header("retry-after").is_empty());
    assert_eq!(without.me(&scene.token("user_ann")).await.status, StatusCode::OK);
    without.end().await;
}

async fn a_user_who_cannot_be_read_is_said_to_be(home: Arc<Home>) {
    let scene = Scene::new(home).await;
    let process = scene.process().await;
    scene.clerk.sign_up("user_ann", now());
    let odd = r#"{"id":"user_ann","object":"user","created_at":1,"updated_at":2,"email_addresses":7}"#;
    scene.clerk.faults(|faults| {
        faults.wrong = Some(Wrong::Body(odd.into()));
        faults.path = Some(ONE);
    });
    let unreadable = process.me(&scene.token("user_ann")).await;
    assert_eq!(unreadable.status, StatusCode::SERVICE_UNAVAILABLE, "{unreadable:?}");
    let detail = unreadable.body["detail"].as_str().unwrap();
    assert!(detail.contains("cannot be read") && detail.contains("email_addresses"), "{detail}");
    scene.clerk.faults(|faults| faults.wrong = None);
    assert_eq!(process.me(&scene.token("user_ann")).await.status, StatusCode::OK);
    process.end().await;
}

async fn a_change_is_told_within_a_second_whoever_made_it(home: Arc<Home>) {
    let scene = Scene::new(home).await;
    let (one, two) = (scene.process().await, scene.process().await);
    scene.clerk.sign_up("user_ann", now() - 60_000);
    let mut streams = [
        one.stream(&scene.token("user_ann"), None).await,
        one.stream(&scene.token("user_ann"), None).await,
        two.stream(&scene.token("user_ann"), None).await,
    ];
    let mut last = String::new();
    for stream in &mut streams {
        let told = stream.next().await.unwrap();
        assert_eq!((told.event.as_str(), &told.data["clerk_id"]), ("user", &json!("user_ann")));
        last = told.id;
    }
    // By Clerk's news, in another process; and by the application, in a column of its own.
    let changed = stores::updated("user_ann", now()).named("Annabel").event();
    one.store.apply(Arc::from([changed])).await.unwrap();
    for stream in &mut streams {
        let told = stream.next().await.unwrap();
        assert_ne!(told.id, last);
    }
    scene.home.sql("UPDATE users SET credits_balance = 7 WHERE clerk_id = 'user_ann'").await;
    for stream in &mut streams {
        let told = stream.next().await.unwrap();
        assert_eq!(told.data["credits_balance"], 7);
        last = told.id;
    }
    // Whoever connects again is told only what is new.
    let mut again = two.stream(&scene.token("user_ann"), Some(&last)).await;
    one.store.apply(Arc::from([stores::deleted("user_ann", now() + 1)])).await.unwrap();
    assert_eq!(again.next().await.unwrap().event, "deleted");
    for stream in &mut streams {
        assert_eq!(stream.next().await.unwrap().event, "deleted");
        assert_eq!(stream.next().await, None, "it ends");
    }
    // A stop ends streams.
    scene.clerk.sign_up("user_bob", now());
    let mut open = one.stream(&scene.token("user_bob"), None).await;
    assert!(open.next().await.is_some());
    one.end().await;
    assert_eq!(open.next().await, None);
    two.end().await;
}

async fn a_session_that_has_ended_signs_nobody_in(home: Arc<Home>) {
    let scene = Scene::new(home).await;
    let (here, there) = (scene.process().await, scene.process().await);
    scene.clerk.sign_up("user_ann", now());
    let (phone, laptop) =
        (scene.token_of("user_ann", "sess_phone"), scene.token_of("user_ann", "sess_laptop"));
    let (mut on_phone, mut on_laptop) = (there.stream(&phone, None).await, there.stream(&laptop, None).await);
    for stream in [&mut on_phone, &mut on_laptop] {
        assert_eq!(stream.next().await.expect("the row").event, "user");
    }
    // Its webhook comes to another process.
    let end = stores::session("sess_phone", "user_ann", Status::Revoked, now());
    here.store.apply(Arc::from([end])).await.unwrap();
    let ended = Instant::now();
    assert_eq!(on_phone.next().await, None);
    assert!(ended.elapsed() < Duration::from_secs(5), "{:?}", ended.elapsed());
    for process in [&here, &there] {
        for (method, path) in [
            (Method::GET, "/v1/me"),
            (Method::GET, "/v1/me/events"),
            (Method::GET, "/v1/me/sessions"),
            (Method::POST, "/v1/me/sync"),
        ] {
            let answer = process.ask(method, path, &[("authorization", &format!("Bearer {phone}"))]).await;
            assert_eq!((answer.status, answer.code()), (StatusCode::UNAUTHORIZED, "session_ended"), "{path}");
        }
        assert_eq!(process.me(&laptop).await.status, StatusCode::OK);
    }
    // The other session's stream goes on.
    let news = stores::updated("user_ann", now() + 60_000).named("ann2").event();
    here.store.apply(Arc::from([news])).await.unwrap();
    assert_eq!(on_laptop.next().await.expect("the change").data["username"], "ann2");
    // Another user's session of that name is another one.
    scene.clerk.sign_up("user_bob", now());
    assert_eq!(here.me(&scene.token_of("user_bob", "sess_phone")).await.status, StatusCode::OK);
    // Nobody gets a first row by a session that is over.
    let end = stores::session("sess_cat", "user_cat", Status::Ended, now());
    here.store.apply(Arc::from([end])).await.unwrap();
    scene.clerk.sign_up("user_cat", now());
    let cat = here.me(&scene.token_of("user_cat", "sess_cat")).await;
    assert_eq!((cat.status, cat.code()), (StatusCode::UNAUTHORIZED, "session_ended"));
    assert!(here.store.user("user_cat").await.unwrap().is_none_or(|known| known.user.is_none()));
    here.end().await;
    there.end().await;
}

async fn a_user_sees_the_sessions_and_who_acted_in_them(home: Arc<Home>) {
    let scene = Scene::new(home).await;
    let process = scene.process().await;
    scene.clerk.sign_up("user_ann", now());
    let began = now();
    let act = json!({ "iss": "https://dashboard.clerk.com", "sid": "sess_boss", "sub": "user_boss" });
    let at = now() / 1000;
    let claims = json!({
        "act": act, "azp": APP, "exp": at + 60, "iat": at, "iss": ISSUER, "nbf": at - 10, "sid": "sess_2",
        "sts": "active", "sub": "user_ann", "v": 2,
    });
    let acted = scene.signer.sign(&scene.signer.header(), &claims);
    assert_eq!(process.me(&acted).await.status, StatusCode::OK);
    let plain = scene.token_of("user_ann", "sess_1");
    let bearer = format!("Bearer {plain}");
    let listed = async || process.ask(Method::GET, "/v1/me/sessions", &[("authorization", &bearer)]).await;
    let answer = listed().await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let mut seen = Vec::new();
    for one in answer.body["sessions"].as_array().unwrap() {
        let keys: Vec<_> = one.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["created_at", "current", "ended_at", "id", "last_seen_at", "status"]);
        for at in ["created_at", "last_seen_at"] {
            let at = chrono::DateTime::parse_from_rfc3339(one[at].as_str().unwrap()).unwrap();
            assert!((began - 1_000..=now() + 1_000).contains(&at.timestamp_millis()), "{one}");
        }
        let text = |key: &str| one[key].to_string();
        seen.push([text("id"), text("status"), text("current"), text("ended_at")].join(" "));
    }
    seen.sort();
    assert_eq!(seen, [r#""sess_1" "active" true null"#, r#""sess_2" "active" false null"#]);
    let noted = scene.home.texts("SELECT CAST(act AS text) FROM sessions WHERE act IS NOT NULL").await;
    assert_eq!(noted.len(), 1);
    assert_eq!(serde_json::from_str::<Value>(&noted[0]).unwrap(), act);
    // It is written once a minute, however often it is seen.
    for _ in 0..20 {
        process.me(&plain).await;
    }
    assert_eq!(listed().await.body, answer.body);
    process.end().await;
}

/// What a request without a token, or with a bad one, is told on each route that is about the caller.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_valid_token_every_route_is_closed() {
    Home::sqlite().await.run(closed).await;
}

async fn closed(home: Arc<Home>) {
    let scene = Scene::new(home).await;
    let process = scene.process().await;
    scene.clerk.sign_up("user_ann", now());
    let expired = scene.signer.session(ISSUER, "user_ann", "sess_1", APP, now() - 120_000);
    let elsewhere = scene.signer.session("https://clerk.elsewhere.example", "user_ann", "sess_1", APP, now());
    let foreign = scene.signer.session(ISSUER, "user_ann", "sess_1", "https://evil.example", now());
    let forged = Signer::new("ins_1").unwrap().session(ISSUER, "user_ann", "sess_1", APP, now());
    let mut about_the_caller = 0;
    for (method, path) in api::routes() {
        if ["/v1/openapi.json", "/v1/anonymous"].contains(&&*path) {
            continue;
        }
        about_the_caller += 1;
        let method: Method = method.parse().unwrap();
        let plain = process.ask(method.clone(), &path, &[]).await;
        assert_eq!((plain.status, plain.code()), (StatusCode::UNAUTHORIZED, "token_missing"), "{path}");
        assert_eq!(plain.header("www-authenticate"), "Bearer realm=\"headcount\"");
        for (token, code) in [
            ("an operator's token, say", "token_malformed"),
            (&expired, "token_expired"),
            (&elsewhere, "token_issuer"),
            (&foreign, "token_party"),
            (&forged, "token_signature"),
        ] {
            let bearer = format!("Bearer {token}");
            let refused = process.ask(method.clone(), &path, &[("authorization", &bearer)]).await;
            assert_eq!((refused.status, refused.code()), (StatusCode::UNAUTHORIZED, code), "{path}");
            assert!(!refused.body.to_string().contains(token), "{path}");
        }
    }
    assert_eq!(about_the_caller, 5);
    assert_eq!(scene.clerk.asked(ONE), 0, "nobody is asked for strangers");
    assert_eq!(process.store.totals().await.unwrap().live_users, 0);
    process.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_applications_own_pages_may_read_and_act() {
    Home::sqlite().await.run(own_pages).await;
}

async fn own_pages(home: Arc<Home>) {
    let scene = Scene::new(home).await;
    let process = scene.process().await;
    scene.clerk.sign_up("user_ann", now());
    let cookie = format!("__session_abcd1234={}", scene.token("user_ann"));
    let evil = ("origin", "https://evil.example");
    let ours = ("origin", APP);
    let me = process.ask(Method::GET, "/v1/me", &[("cookie", &cookie), ours]).await;
    assert_eq!(me.status, StatusCode::OK);
    assert_eq!(me.header("access-control-allow-origin"), APP);
    assert_eq!(me.header("access-control-allow-credentials"), "true");
    assert!(me.header("vary").contains("Origin"));
    let read = process.ask(Method::GET, "/v1/me", &[("cookie", &cookie), evil]).await;
    assert_eq!(read.header("access-control-allow-origin"), "", "its scripts cannot read the answer");
    for headers in [&[("cookie", &*cookie)][..], &[("cookie", &cookie), evil]] {
        let act = process.ask(Method::POST, "/v1/me/sync", headers).await;
        assert_eq!((act.status, act.code()), (StatusCode::FORBIDDEN, "foreign_origin"), "{headers:?}");
    }
    let act = process.ask(Method::POST, "/v1/me/sync", &[("cookie", &cookie), ours]).await;
    assert_eq!(act.status, StatusCode::OK, "{act:?}");
    let asks = ("access-control-request-method", "POST");
    let preflight = process.ask(Method::OPTIONS, "/v1/me/sync", &[ours, asks]).await;
    assert_eq!(preflight.status, StatusCode::NO_CONTENT);
    assert_eq!(preflight.header("access-control-allow-origin"), APP);
    assert!(preflight.header("access-control-allow-headers").contains("Authorization"));
    let preflight = process.ask(Method::OPTIONS, "/v1/me/sync", &[evil, asks]).await;
    assert_eq!(preflight.header("access-control-allow-origin"), "");
    process.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_are_bounded_and_clerk_is_not_hammered() {
    Home::sqlite().await.run(flooded).await;
}

async fn flooded(home: Arc<Home>) {
    let scene = Scene::new(home).await;
    let process = Arc::new(scene.process().await);
    scene.clerk.sign_up("user_ann", now());
    let token = scene.token("user_ann");
    let flood = |count: usize, method: Method, path: &'static str, token: String| {
        let process = Arc::clone(&process);
        async move {
            let asks = (0..count).map(|_| {
                let (process, method, bearer) =
                    (Arc::clone(&process), method.clone(), format!("Bearer {token}"));
                tokio::spawn(
                    async move { process.ask(method, path, &[("authorization", &bearer)]).await.status },
                )
            });
            let mut statuses = Vec::new();
            for ask in asks.collect::<Vec<_>>() {
                statuses.push(ask.await.unwrap());
            }
            statuses
        }
    };
    let much = |statuses: &[StatusCode]| {
        statuses.iter().filter(|status| **status == StatusCode::TOO_MANY_REQUESTS).count()
    };
    let synced = flood(30, Method::POST, "/v1/me/sync", token.clone()).await;
    assert!(much(&synced) >= 28, "{synced:?}");
    assert!((1..=2).contains(&scene.clerk.asked(ONE)), "{}", scene.clerk.asked(ONE));
    let asked = flood(600, Method::GET, "/v1/me", token).await;
    assert!(much(&asked) > 0 && much(&asked) < 600, "{} of 600", much(&asked));
    // Whoever has a token is answered meanwhile, though the address has no requests of strangers left.
    scene.clerk.sign_up("user_bob", now());
    let bob = scene.token("user_bob");
    let (strangers, bobs) = tokio::join!(
        flood(600, Method::GET, "/v1/me", "x.y.z".into()),
        flood(100, Method::GET, "/v1/me", bob.clone())
    );
    assert!(much(&strangers) > 0, "{strangers:?}");
    assert!(bobs.iter().all(|status| *status == StatusCode::OK), "{bobs:?}");
    assert_eq!(process.me(&bob).await.status, StatusCode::OK);
    Arc::into_inner(process).unwrap().end().await;
}

#[test]
fn the_document_describes_just_the_routes() {
    let document: Value = serde_json::from_str(api::OPENAPI).unwrap();
    let mut documented: Vec<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys();
            methods.map(move |method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    let mut routes = api::routes();
    documented.sort();
    routes.sort();
    assert_eq!(documented, routes);
    // Every refusal of a token is named.
    let codes = document["components"]["responses"]["Unauthorized"]["description"].as_str().unwrap();
    for refused in headcount::clerk::token::Refused::ALL {
        assert!(codes.contains(refused.code()), "{refused:?}");
    }
}

/// The row on the wire has just the fields of the document.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_is_shown_as_the_document_says() {
    Home::sqlite().await.run(shown).await;
}

async fn shown(home: Arc<Home>) {
    let scene = Scene::new(home).await;
    let process = scene.process().await;
    scene.clerk.sign_up("user_ann", now());
    let document: Value = serde_json::from_str(api::OPENAPI).unwrap();
    let fields = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<HashSet<_>>();
    let documented = fields(&document["components"]["schemas"]["User"]["properties"]);
    let me = process.me(&scene.token("user_ann")).await;
    assert_eq!(fields(&me.body), documented);
    assert!(!documented.contains("private_metadata") && !documented.contains("clerk"));
    let document = process.ask(Method::GET, "/v1/openapi.json", &[]).await;
    assert_eq!(document.body["openapi"], "3.1.0");
    process.end().await;
}
