//! `/api/v1` over real TCP, on a real store and the embedded queue: each answer is what `openapi.json` says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub, dead_code)]

#[path = "support/stores.rs"]
mod stores;
mod support;
#[path = "support/wire.rs"]
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use headcount::{
    letters::operations::Operations,
    message::{Origin, Rejected},
    ops::{self, Ops, OpsTokens, api},
    queue::{Queue, QueueConfig},
    secret::Secret,
    store::{
        Store,
        letters::Captured,
        operations,
        processes::{Role, Said, Telling},
        sync::{Holder, NewRun, SeenBy},
    },
    sync::{self, watch::state::State},
    telemetry::rates::Rates,
    time::now,
};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use stores::{Home, created};
use support::eventually;
use tokio::{net::TcpListener, sync::watch};
use wire::{Client, Response};

fn document() -> Value {
    serde_json::from_str(api::OPENAPI).unwrap()
}

#[test]
fn the_document_and_the_routes_are_the_same() {
    let document = document();
    let mut documented = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            documented.insert((method.to_uppercase(), path.clone()));
        }
    }
    let routes = api::routes().into_iter().map(|(method, path, _)| (method, path));
    assert_eq!(documented, routes.collect());
}

#[test]
fn every_example_is_what_its_schema_says() {
    let document = document();
    let mut examples = 0;
    fn walk(value: &Value, document: &Value, examples: &mut usize) {
        match value {
            Value::Object(map) => {
                if let (Some(schema), Some(example)) = (map.get("schema"), map.get("example")) {
                    check(document, schema, example, "example");
                    *examples += 1;
                }
                map.values().for_each(|value| walk(value, document, examples));
            }
            Value::Array(all) => all.iter().for_each(|value| walk(value, document, examples)),
            _ => {}
        }
    }
    walk(&document, &document, &mut examples);
    assert!(examples >= 25, "{examples}");
}

/// Holds a value to the part of JSON Schema that the document uses.
fn check(document: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        let place = name.strip_prefix('#').unwrap();
        let schema = document.pointer(place).unwrap_or_else(|| panic!("{name} is nowhere"));
        return check(document, schema, value, at);
    }
    if let Some(any) = schema["anyOf"].as_array() {
        let null = any.iter().any(|schema| schema["type"] == "null");
        if !(null && value.is_null()) {
            check(document, &any[0], value, at);
        }
        return;
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(all) => all.iter().map(|one| one.as_str().unwrap()).collect(),
        _ => return,
    };
    let is = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_i64() || number.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    assert!(
        types.contains(&is) || (is == "integer" && types.contains(&"number")),
        "{at} is {is}, not {types:?}: {value}"
    );
    if let Some(choices) = schema["enum"].as_array() {
        assert!(choices.contains(value), "{at} is {value}, none of {choices:?}");
    }
    if let Some(all) = value.as_array() {
        all.iter().for_each(|value| check(document, &schema["items"], value, &format!("{at}[]")));
    }
    let Some(map) = value.as_object() else { return };
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(map.contains_key(name.as_str().unwrap()), "{at} lacks {name}");
    }
    for (name, value) in map {
        let at = format!("{at}.{name}");
        match (&schema["properties"][name], &schema["additionalProperties"]) {
            (Value::Null, Value::Bool(false)) => panic!("{at} is not documented"),
            (Value::Null, Value::Null) => {}
            (Value::Null, other) => check(document, other, value, &at),
            (schema, _) => check(document, schema, value, &at),
        }
    }
}

struct Server {
    address: SocketAddr,
    store: Arc<dyn Store>,
    queue: Arc<dyn Queue>,
    /// Works on replays.
    works: tokio::task::JoinHandle<()>,
    stop: watch::Sender<bool>,
    document: Value,
    /// Method, path and status of what was answered.
    seen: Mutex<BTreeSet<(String, String, u16)>>,
    token: Option<&'static str>,
    _directory: tempfile::TempDir,
}

impl Server {
    async fn start(store: Arc<dyn Store>, token: Option<&'static str>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = QueueConfig::Embedded {
            directory: directory.path().to_owned(),
            ladder: headcount::queue::Ladder::default(),
        };
        let queue = headcount::queue::open(&config).await.unwrap();
        let operations = Arc::new(Operations::new(store.clone(), queue.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ops = Ops {
            queue: queue.clone(),
            store: Some(store.clone()),
            api: Some((store.clone(), operations.clone())),
            worker: None,
            stopping: watch::channel(false).1,
            notices: watch::channel(Vec::new()).1,
            metrics: PrometheusBuilder::new().build_recorder().handle(),
            clerk: None,
            tokens: OpsTokens { operate: token.map(Secret::new), look: None },
            bounds: Ops::bounds(),
        };
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(ops::serve(listener, ops, stopped.clone()));
        let works = tokio::spawn(async move { operations.run(&stopped).await });
        let document = document();
        let seen = Mutex::default();
        Self { address, store, queue, works, stop, document, seen, token, _directory: directory }
    }

    /// Asks, and holds the answer to the document.
    async fn ask(&self, method: &str, path: &str, template: &str, headers: &str, body: &str) -> Response {
        let token = self.token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let request = format!(
            "{method} /api/v1{path} HTTP/1.1\r\nHost: {}\r\n{token}{headers}Content-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        let response = Client::connect(self.address).await.ask(request).await;
        let operation = &self.document["paths"][format!("/api/v1{template}")][method.to_lowercase()];
        let answers = &operation["responses"];
        let status = response.status.to_string();
        let mut answer = &answers[&status];
        if answer.is_null() {
            answer = &answers["default"];
        }
        if let Some(name) = answer["$ref"].as_str() {
            answer = self.document.pointer(&name[1..]).unwrap();
        }
        let kind = response.header("content-type").unwrap_or_default();
        let schema = &answer["content"][kind]["schema"];
        assert!(!schema.is_null(), "{method} {path}: {kind} is not documented for {status}: {response:?}");
        check(&self.document, schema, &response.json(), &format!("{method} {path}"));
        self.seen.lock().unwrap().insert((method.into(), template.into(), response.status));
        response
    }

    async fn get(&self, path: &str, template: &str) -> Response {
        self.ask("GET", path, template, "", "").await
    }

    async fn post(&self, path: &str, template: &str, body: &Value) -> Response {
        let headers = "Content-Type: application/json\r\n";
        self.ask("POST", path, template, headers, &body.to_string()).await
    }

    async fn published(&self) -> u64 {
        let depths = self.queue.depths().await.unwrap();
        depths.iter().filter(|depth| depth.queue == "events").map(|depth| depth.messages).sum()
    }
}

fn process(role: Role, at: i64) -> Said {
    Said {
        id: uuid::Uuid::now_v7(),
        roles: vec![role],
        version: "0.0.1".into(),
        host: "app-1".into(),
        pid: 7,
        started_at: at,
        told_at: at,
        held: Some(3),
        paused: Some("the database is away".into()),
        paused_since: Some(at),
        listeners: [("operators".to_owned(), "127.0.0.1:8081".to_owned())].into(),
        rates: Rates::default(),
    }
}

fn captured(n: i64, body: impl Into<Bytes>) -> Captured {
    Captured {
        message_id: format!("msg_{n}"),
        origin: Origin::Webhook,
        round: 0,
        event_type: "user.created".into(),
        clerk_id: Some(format!("user_{n}")),
        reason: if n % 2 == 0 { "rejected" } else { "invalid_payload" }.into(),
        detail: "data.id: missing".into(),
        attempts: 0,
        first_seen: 1_760_000_000_000 + n,
        died_at: now() - 10_000 + n,
        group: "data.id: missing".into(),
        headers: BTreeMap::from([("x-attempt".into(), "0".into())]),
        body: body.into(),
    }
}

async fn seeded(letters: i64) -> (Arc<Home>, Arc<dyn Store>) {
    let home = Arc::new(Home::sqlite().await);
    let store = home.store().await;
    let captured: Vec<Captured> = (0..letters)
        .map(|n| captured(n, format!(r#"{{"type":"user.created","data":{{"n":{n}}}}}"#)))
        .collect();
    store.capture(&captured).await.unwrap();
    (home, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_answers_as_documented() {
    let (_home, store) = seeded(5).await;
    let binary = Captured {
        message_id: "msg_binary".into(),
        origin: Origin::Webhook,
        clerk_id: Some("user_of_a_letter".into()),
        ..captured(7, Bytes::from_static(b"\xff\x00"))
    };
    store.capture(&[binary]).await.unwrap();
    stores::apply(&store, [created("user_1", 1_760_000_000_000).verified("ada@example.com").event()])
        .await
        .unwrap();
    let sample = Rejected {
        at: now(),
        address: "192.0.2.1:4711".into(),
        reason: "no_matching_signature".into(),
        headers: vec!["svix-id".into()],
    };
    store.record(&[sample]).await.unwrap();
    let server = Server::start(store.clone(), None).await;

    assert_eq!(server.get("/openapi.json", "/openapi.json").await.json(), server.document);
    let status = server.get("/status", "/status").await.json();
    assert_eq!(status["dead_letters"], json!({"open": 6, "replayed": 0, "applied": 0, "discarded": 0}));
    assert!(status["rejections"][0]["meaning"].as_str().unwrap().contains("secret"));

    assert_eq!(status["verdict"]["level"], "trouble");
    assert_eq!(status["verdict"]["link"], "/processes");
    assert!(status["verdict"]["text"].as_str().unwrap().starts_with("No worker runs"), "{status}");
    assert_eq!(status["open_letters"]["last_hour"], 6);
    assert!(status["open_letters"]["oldest_died_at"].is_string());

    let said = process(Role::Worker, now());
    let telling =
        Telling { own: Some(said.clone()), others: vec![], ended: vec![], life: Duration::from_secs(30) };
    store.tell(&telling).await.unwrap();
    let processes = server.get("/processes", "/processes").await.json();
    assert_eq!(processes["processes"][0]["id"], said.id.to_string());
    assert_eq!(
        (&processes["processes"][0]["roles"], &processes["versions"]),
        (&json!(["worker"]), &json!(["0.0.1"]))
    );
    assert_eq!(processes["rates"]["minutes"].as_array().unwrap().len(), 60);

    assert_eq!(status["sync"], json!(null));
    assert_eq!(server.get("/sync", "/sync").await.json()["watch"], json!(null));
    store.saw_instance("ins_1", SeenBy::Webhook).await.unwrap();
    store.note_webhook(Some("ins_1"), now()).await.unwrap();
    let new = NewRun {
        instance_id: "ins_1".into(),
        who: "schedule".into(),
        dry_run: false,
        holder: uuid::Uuid::nil(),
    };
    store.begin_run(&new).await.unwrap();
    let holder = Holder::of("worker");
    store.take_lease(sync::watch::LEASE, &holder, Duration::from_secs(30)).await.unwrap();
    let state = State { looked_at: Some(now()), behind_seconds: Some(7), ..State::default() };
    let state = serde_json::to_value(state).unwrap();
    assert!(store.tell_state(sync::watch::LEASE, holder.id, &state).await.unwrap());
    let whole = server.get("/sync", "/sync").await.json();
    assert_eq!((&whole["watch"]["watched"], &whole["watch"]["behind_seconds"]), (&json!(true), &json!(7)));
    assert_eq!(
        (&whole["instances"][0]["owner"], &whole["runs"][0]["who"]),
        (&json!(true), &json!("schedule"))
    );
    let glance = server.get("/status", "/status").await.json();
    assert_eq!((&glance["sync"]["watch"], &glance["sync"]["last_run"]), (&whole["watch"], &whole["runs"][0]));

    let users = server.get("/users?text=ada&limit=1", "/users").await.json();
    let id = users["users"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(users["next"], json!(id));
    assert_eq!(server.get(&format!("/users?cursor={id}"), "/users").await.json()["users"], json!([]));
    for reference in [id.as_str(), "user_1", "ada@example.com", "ada%40example.com"] {
        let user = server.get(&format!("/users/{reference}"), "/users/{ref}").await.json();
        assert_eq!(user["user"]["clerk_id"], "user_1");
        assert_eq!(user["events"].as_array().unwrap().len(), 1);
    }
    assert_eq!(server.get("/users/nobody", "/users/{ref}").await.status, 404);
    let grant = "/users/{ref}/grant";
    let json_headers = "Content-Type: application/json\r\n";
    let put = async |who: &str, body: Value| {
        server.ask("PUT", &format!("/users/{who}/grant"), grant, json_headers, &body.to_string()).await
    };
    let wish = json!({"tier": "premium_lifetime", "until": "30d", "note": "a founding member"});
    let granted = put("ada@example.com", wish.clone()).await.json();
    assert_eq!((&granted["tier"], &granted["from"]), (&json!("premium_lifetime"), &json!("grant")));
    assert_eq!(granted["grant"]["note"], "a founding member");
    assert_eq!(granted["grant"]["granted_by"], "api");
    let user = server.get("/users/user_1", "/users/{ref}").await.json();
    assert_eq!((&user["tier"], &user["user"]["subscription_tier"]), (&granted, &json!("premium_lifetime")));
    for (body, code) in [
        (json!({"tier": ""}), 400),
        (json!({"tier": "pro", "until": "yesterday"}), 400),
        (json!({"tier": "pro", "until": "2001-01-01"}), 400),
        (json!({"tier": "pro", "untl": "30d"}), 400),
        (json!({}), 400),
    ] {
        assert_eq!(put("user_1", body.clone()).await.status, code, "{body}");
    }
    assert_eq!(put("nobody", wish).await.status, 404);
    assert_eq!(server.ask("PUT", "/users/user_1/grant", grant, "", "tier=pro").await.status, 415);
    let foreign = "Content-Type: application/json\r\nOrigin: https://evil.example\r\n";
    assert_eq!(server.ask("PUT", "/users/user_1/grant", grant, foreign, "{}").await.status, 403);
    assert_eq!(server.ask("DELETE", "/users/user_1/grant", grant, foreign, "{}").await.status, 403);
    let revoked = server
        .ask("DELETE", "/users/user_1/grant", grant, json_headers, r#"{"note":"a refund"}"#)
        .await
        .json();
    assert_eq!((&revoked["tier"], &revoked["from"]), (&json!("free"), &json!("application")));
    assert_eq!(revoked["past_grants"][0]["ended_note"], "a refund");
    assert_eq!(server.ask("DELETE", "/users/user_1/grant", grant, "", "").await.status, 200, "again");
    assert_eq!(server.ask("DELETE", "/users/nobody/grant", grant, "", "").await.status, 404);
    let only_a_letter = server.get("/users/user_of_a_letter", "/users/{ref}").await;
    assert!(only_a_letter.json()["hint"].as_str().unwrap().contains("GET /api/v1/dead/"));
    let rejections = server.get("/rejections?limit=5", "/rejections").await.json();
    assert_eq!(rejections["rejections"][0]["address"], "192.0.2.1:4711");

    let groups = server.get("/dead/groups", "/dead/groups").await.json();
    let sizes: Vec<&Value> =
        groups["groups"].as_array().unwrap().iter().map(|group| &group["letters"]).collect();
    assert_eq!(sizes, [3, 3]);
    let id = groups["groups"][0]["id"].as_str().unwrap();
    let of_the_group = server.get(&format!("/dead/count?group={id}"), "/dead/count").await.json();
    assert_eq!(of_the_group["letters"], 6, "both have the same key");
    assert_eq!(server.get("/dead?group=nonsense", "/dead").await.status, 404);
    assert_eq!(server.get("/dead?reason=nonsense", "/dead").await.status, 400);
    let count = server.get("/dead/count?reason=rejected", "/dead/count").await.json();
    assert_eq!(count["letters"], 3);
    let (mut listed, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = server.get(&format!("/dead?limit=4{cursor}"), "/dead").await.json();
        for letter in page["letters"].as_array().unwrap() {
            listed.push(letter["message_id"].as_str().unwrap().to_owned());
        }
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(listed, ["msg_binary", "msg_4", "msg_3", "msg_2", "msg_1", "msg_0"]);
    let some = server.get("/dead?id=msg_1&id=msg_4&since=1h&type=user.created", "/dead").await.json();
    assert_eq!(some["letters"].as_array().unwrap().len(), 2);
    let letter = server.get("/dead/msg_binary", "/dead/{id}").await.json();
    assert_eq!((&letter["body"], &letter["encoding"]), (&json!("/wA="), &json!("base64")));

    // HTTP/1.0, so that the end of the connection is the end of the answer.
    let mut client = Client::connect(server.address).await;
    client
        .send(format!("GET /api/v1/dead/export?limit=5 HTTP/1.0\r\nHost: {}\r\n\r\n", server.address))
        .await;
    let response = client.response().await;
    assert_eq!((response.status, response.header("content-type")), (200, Some("application/x-ndjson")));
    let lines = client.rest().await;
    assert_eq!(lines.lines().count(), 5);
    for line in lines.lines() {
        let schema = json!({"$ref": "#/components/schemas/Whole"});
        check(&server.document, &schema, &serde_json::from_str(line).unwrap(), "a line");
    }
    server.seen.lock().unwrap().insert(("GET".into(), "/dead/export".into(), 200));

    let discard = "/dead/{id}/discard";
    assert_eq!(server.post("/dead/msg_1/discard", discard, &json!({"note": " "})).await.status, 400);
    assert_eq!(server.post("/dead/msg_x/discard", discard, &json!({"note": "a"})).await.status, 404);
    let letter = server.post("/dead/msg_1/discard", discard, &json!({"note": "why"})).await.json();
    assert_eq!(letter["status"], "discarded");
    let last = letter["history"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["by"], &last["note"]), (&json!("api"), &json!("why")));
    assert_eq!(server.post("/dead/msg_1/discard", discard, &json!({"note": "a"})).await.status, 409);
    let restore = "/dead/{id}/restore";
    assert_eq!(server.post("/dead/msg_1/restore", restore, &json!({})).await.json()["status"], "open");
    assert_eq!(server.post("/dead/msg_1/restore", restore, &json!({})).await.status, 409);

    let edit = "/dead/{id}/edit";
    let bad = json!({"body": r#"{"type":"user.created","data":{}}"#});
    let refused = server.post("/dead/msg_1/edit", edit, &bad).await;
    assert_eq!((refused.status, &refused.json()["code"]), (422, &json!("refused")));
    let mut good = json!({"body": r#"{"type":"user.deleted","timestamp":1760000000000,"data":{"id":"user_1"}}"#, "dry_run": true});
    let looked = server.post("/dead/msg_1/edit", edit, &good).await.json();
    assert_eq!(looked["round"], json!(null));
    let warnings = looked["warnings"].as_array().unwrap().iter();
    let deletes = warnings.filter(|warning| warning.as_str().unwrap().contains("deletes the user"));
    assert_eq!(deletes.count(), 1);
    assert_eq!(server.published().await, 0);
    good["dry_run"] = json!(false);
    assert_eq!(server.post("/dead/msg_1/edit", edit, &good).await.json()["round"], 1);
    assert_eq!(server.published().await, 1);
    assert_eq!(server.post("/dead/msg_1/edit", edit, &good).await.status, 409);

    let replay = "/dead/replay";
    let mut order = json!({"filter": {"reason": "rejected"}, "dry_run": true});
    assert_eq!(server.post(replay, replay, &order).await.json()["letters"], 3);
    order["dry_run"] = json!(false);
    let started = server.post(replay, replay, &order).await;
    assert_eq!(started.status, 202, "{started:?}");
    let operation = started.header("location").unwrap().strip_prefix("/api/v1").unwrap().to_owned();
    let template = "/dead/operations/{id}";
    eventually("the replay ends", async || {
        server.get(&operation, template).await.json()["state"] == "complete"
    })
    .await;
    let ended = server.get(&operation, template).await.json();
    assert_eq!((&ended["claimed"], &ended["published"]), (&json!(3), &json!(3)));
    assert_eq!(server.published().await, 4);
    let all = server.get("/dead/operations", "/dead/operations").await.json();
    assert_eq!(all["operations"].as_array().unwrap().len(), 1);
    for wish in ["pause", "resume", "stop"] {
        let template = format!("/dead/operations/{{id}}/{wish}");
        let wished = server.post(&format!("{operation}/{wish}"), &template, &json!({})).await;
        assert_eq!(wished.json()["state"], "complete");
    }
    assert_eq!(server.get("/dead/operations/x", template).await.status, 404);

    // Whatever was done is written down, the newest first, page by page.
    let log = server.get("/operations?limit=3", "/operations").await.json();
    let mut rows = log["operations"].as_array().unwrap().clone();
    let next = format!("/operations?limit=100&cursor={}", log["next"].as_str().unwrap());
    rows.extend(server.get(&next, "/operations").await.json()["operations"].as_array().unwrap().clone());
    let kinds: Vec<_> = rows
        .iter()
        .map(|row| format!("{} {}", row["kind"].as_str().unwrap(), row["state"].as_str().unwrap()))
        .collect();
    let expected = [
        "replay complete",
        "edit complete",
        "restore failed",
        "restore complete",
        "discard failed",
        "discard complete",
    ];
    let others = ["revoke complete", "grant complete", "sync running"];
    assert_eq!(kinds, [&expected[..], &others].concat());
    let edits = server.get("/operations?kind=edit&who=api&since=1h", "/operations").await.json();
    assert_eq!(edits["operations"].as_array().unwrap().len(), 1);

    let seen = server.seen.lock().unwrap().clone();
    for (method, path, _) in api::routes() {
        let path = path.strip_prefix("/api/v1").unwrap();
        let documented = &server.document["paths"][format!("/api/v1{path}")][method.to_lowercase()];
        for status in documented["responses"].as_object().unwrap().keys().filter(|code| code.starts_with('2'))
        {
            let answer = (method.clone(), path.to_owned(), status.parse().unwrap());
            assert!(seen.contains(&answer), "{answer:?} was not seen");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_meant_is_an_error_that_says_so() {
    let (_home, store) = seeded(2).await;
    let server = Server::start(store, None).await;
    for (path, template) in [
        ("/dead?reson=rejected", "/dead"),
        ("/dead?reason=rejected&reason=x", "/dead"),
        ("/dead?status=dead", "/dead"),
        ("/dead?since=yesterday", "/dead"),
        ("/dead?cursor=x", "/dead"),
        ("/dead?limit=0", "/dead"),
        ("/dead?limit=1001", "/dead"),
        ("/dead/count?limit=1", "/dead/count"),
        ("/users?deleted=maybe", "/users"),
        ("/operations?kind=replays", "/operations"),
        ("/operations?cursor=x", "/operations"),
        ("/operations?since=yesterday", "/operations"),
    ] {
        let response = server.get(path, template).await;
        assert_eq!((response.status, &response.json()["code"]), (400, &json!("bad_request")), "{path}");
    }
    let replay = "/dead/replay";
    for order in [
        json!({}),
        json!({"filter": {}}),
        json!({"filter": {"all": true, "reason": "x"}}),
        json!({"filter": {"reson": "rejected"}}),
        json!({"filter": {"reason": "rejected", "user": null}}),
        json!({"filter": {"reason": "rejected", "user": ""}}),
        json!({"filter": {"all": true}, "limit": 0}),
        json!({"filter": {"all": true}, "rate": 0}),
        json!({"filter": {"all": true}, "halt_at": 0.1}),
        json!({"filter": {"all": true}, "ramp": true, "halt_at": 10}),
        json!({"filter": {"all": true, "status": "applied"}}),
        json!([]),
    ] {
        assert_eq!(server.post(replay, replay, &order).await.status, 400, "{order}");
    }
    let unknown = server.post(replay, replay, &json!({"filter": {"ids": ["msg_x"]}})).await;
    assert_eq!((unknown.status, &unknown.json()["code"]), (404, &json!("unknown_letter")));
    assert!(unknown.json()["hint"].as_str().is_some());
    for (method, path, status) in [
        ("GET", "/nothing", 404),
        ("GET", "/dead/replay/x", 404),
        ("PUT", "/dead", 405),
        ("POST", "/dead", 405),
        ("GET", "/users/%ff", 400),
        ("GET", "/dead/%ff", 400),
        ("DELETE", "/dead/replay", 405),
    ] {
        let request = format!("{method} /api/v1{path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let response = Client::connect(server.address).await.ask(request).await;
        assert_eq!(response.status, status, "{path}");
        assert_eq!(response.header("content-type"), Some("application/problem+json"), "{path}");
    }
    assert_eq!(server.published().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_web_page_cannot_act() {
    let (_home, store) = seeded(2).await;
    let server = Server::start(store, None).await;
    let (path, body) = ("/dead/replay", r#"{"filter":{"all":true}}"#);
    let json = "Content-Type: application/json\r\n";
    for (headers, status) in [
        ("Content-Type: text/plain\r\n".to_owned(), 415),
        (String::new(), 415),
        ("Content-Type: application/x-www-form-urlencoded\r\n".into(), 415),
        (format!("{json}Origin: http://evil.example\r\n"), 403),
        (format!("{json}Origin: null\r\n"), 403),
        (format!("{json}Sec-Fetch-Site: cross-site\r\n"), 403),
    ] {
        assert_eq!(server.ask("POST", path, path, &headers, body).await.status, status, "{headers}");
    }
    assert_eq!(server.published().await, 0);
    let own = format!("{json}Origin: http://{}\r\n", server.address);
    assert_eq!(server.ask("POST", path, path, &own, body).await.status, 202);
    eventually("both are published", async || server.published().await == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_no_words_needs_no_body() {
    let (_home, store) = seeded(1).await;
    let server = Server::start(store, None).await;
    let note = json!({"note": "why"});
    assert_eq!(server.post("/dead/msg_0/discard", "/dead/{id}/discard", &note).await.status, 200);
    let restored = server.ask("POST", "/dead/msg_0/restore", "/dead/{id}/restore", "", "").await;
    assert_eq!((restored.status, &restored.json()["status"]), (200, &json!("open")));
    let foreign = "Origin: http://evil.example\r\n";
    let refused = server.ask("POST", "/dead/msg_0/restore", "/dead/{id}/restore", foreign, "").await;
    assert_eq!(refused.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parameter_without_a_value_is_refused() {
    let (_home, store) = seeded(1).await;
    let server = Server::start(store, None).await;
    for query in ["user=", "limit=", "until", "reason=x&text="] {
        let response = server.get(&format!("/dead?{query}"), "/dead").await;
        assert_eq!(response.status, 400, "{query}");
        assert!(response.json()["detail"].as_str().unwrap().contains("is empty"), "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_nothing_is_told_or_done_without_it() {
    let (_home, store) = seeded(1).await;
    let mut server = Server::start(store, Some("hunter2")).await;
    let note = json!({"note": "why"});
    let discarded = server.post("/dead/msg_0/discard", "/dead/{id}/discard", &note).await.json();
    assert_eq!(discarded["history"].as_array().unwrap().last().unwrap()["by"], "token");
    server.token = None;
    for (method, path) in [("GET", "/dead"), ("GET", "/status"), ("POST", "/dead/replay")] {
        let response = server.ask(method, path, path, "Content-Type: application/json\r\n", "{}").await;
        assert_eq!((response.status, &response.json()["code"]), (401, &json!("unauthorized")), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stops_ends_no_replay_half_way_and_the_next_one_goes_on() {
    let (_home, store) = seeded(60).await;
    let server = Server::start(store.clone(), None).await;
    let order = json!({"filter": {"all": true}, "rate": 20});
    let started = server.post("/dead/replay", "/dead/replay", &order).await;
    let operation = started.header("location").unwrap().strip_prefix("/api/v1").unwrap().to_owned();
    eventually("some are published", async || server.published().await > 0).await;
    server.stop.send_replace(true);
    server.works.await.unwrap();
    let all = headcount::store::letters::Filter::default();
    assert!(store.unstamped(&all, now() + 60_000, 100).await.unwrap().is_empty());
    let id = operation.rsplit('/').next().unwrap().parse().unwrap();
    let left = store.operation(id).await.unwrap().unwrap();
    assert_eq!((left.state, left.holder), (operations::State::Running, None), "{left:?}");
    let published = left.published;
    let open = store.statuses().await.unwrap()[&headcount::store::letters::Status::Open];
    assert_eq!(open + published, 60);
    assert!(open > 0);

    let next = Server::start(store.clone(), None).await;
    eventually("the next process ends it", async || {
        next.get(&operation, "/dead/operations/{id}").await.json()["state"] == "complete"
    })
    .await;
    let ended = next.get(&operation, "/dead/operations/{id}").await.json();
    assert_eq!((&ended["claimed"], &ended["published"]), (&json!(60), &json!(60)));
    assert_eq!(next.published().await, open);
}

#[tokio::test(flavor = "multi_thread")]
async fn four_replays_run_at_a_time_and_a_paused_one_makes_room() {
    let (_home, store) = seeded(60).await;
    let server = Server::start(store.clone(), None).await;
    let order = json!({"filter": {"all": true}, "rate": 1});
    let mut places = Vec::new();
    for _ in 0..4 {
        let started = server.post("/dead/replay", "/dead/replay", &order).await;
        assert_eq!(started.status, 202, "{started:?}");
        places.push(started.header("location").unwrap().strip_prefix("/api/v1").unwrap().to_owned());
    }
    let busy = server.post("/dead/replay", "/dead/replay", &order).await;
    assert_eq!((busy.status, &busy.json()["code"]), (429, &json!("busy")));
    server.post(&format!("{}/pause", places[0]), "/dead/operations/{id}/pause", &json!({})).await;
    eventually("it is paused", async || {
        server.get(&places[0], "/dead/operations/{id}").await.json()["state"] == "paused"
    })
    .await;
    assert_eq!(server.post("/dead/replay", "/dead/replay", &order).await.status, 202);
    // It has given its place away.
    let resume = format!("{}/resume", places[0]);
    let busy = server.post(&resume, "/dead/operations/{id}/resume", &json!({})).await;
    assert_eq!((busy.status, &busy.json()["code"]), (429, &json!("busy")));
    assert_eq!(busy.json()["detail"], "4 replays run already");
    let waits = server.get(&places[0], "/dead/operations/{id}").await.json();
    assert_eq!((&waits["state"], &waits["detail"]), (&json!("paused"), &json!("paused by api")));
    server.post(&format!("{}/stop", places[1]), "/dead/operations/{id}/stop", &json!({})).await;
    eventually("it has stopped", async || {
        server.get(&places[1], "/dead/operations/{id}").await.json()["state"] == "stopped"
    })
    .await;
    let stopped = server.get(&places[1], "/dead/operations/{id}").await.json();
    assert_eq!(stopped["detail"], "stopped by api");
    let resumed = server.post(&resume, "/dead/operations/{id}/resume", &json!({})).await;
    assert_eq!((resumed.status, &resumed.json()["wish"]), (200, &json!("run")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_a_database_says_so() {
    let (_home, store) = seeded(0).await;
    let mut server = Server::start(store, None).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    server.address = listener.local_addr().unwrap();
    let ops = Ops {
        queue: server.queue.clone(),
        store: None,
        api: None,
        worker: None,
        stopping: watch::channel(false).1,
        notices: watch::channel(Vec::new()).1,
        metrics: PrometheusBuilder::new().build_recorder().handle(),
        clerk: None,
        tokens: OpsTokens::default(),
        bounds: Ops::bounds(),
    };
    tokio::spawn(ops::serve(listener, ops, server.stop.subscribe()));
    let response = server.get("/dead", "/dead").await;
    assert_eq!((response.status, &response.json()["code"]), (404, &json!("no_database")));
}
