//! The role `api` in processes of its own and in `up`: what it needs, what it says, and that it is one with the rest.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use headcount::{
    clerk::{
        made_up::Person,
        stand_in::{StandIn, tokens::Signer},
    },
    net::Client,
    time::now,
};
use http::{Request, StatusCode};
use http_body_util::Full;
use serde_json::Value;
use support::{
    clerk::{populate, stand_in, user},
    eventually,
    process::{Backends, Process, World},
    traffic::metric_of,
};

const ISSUER: &str = "https://clerk.example.com";

/// A world whose processes take tokens of this signer.
async fn answering(backends: Backends) -> (World, StandIn, Signer) {
    let mut world = World::new(backends);
    let clerk = stand_in(&mut world).await;
    let signer = Signer::new("ins_1").unwrap();
    world.set("CLERK_JWT_KEY", &signer.pem());
    world.set("CLERK_JWT_ISSUER_DOMAIN", ISSUER);
    (world, clerk, signer)
}

async fn me(process: &Process, token: &str) -> (StatusCode, Value) {
    let request =
        Request::get(process.api.as_ref().unwrap()).header("authorization", format!("Bearer {token}"));
    let request = request.body(Full::<Bytes>::default()).unwrap();
    let (status, body) = Client::http().send(request, Duration::from_secs(20), 1 << 20).await.unwrap();
    (status, serde_json::from_slice(&body.unwrap()).unwrap())
}

macro_rules! on_both {
    ($($case:ident)+) => {
        mod files {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(super::Backends::Embedded).await;
            })+
        }
        mod servers {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(super::Backends::RabbitPostgres).await;
            })+
        }
    };
}

on_both! {
    processes_of_the_api_and_of_the_worker_share_one_table
    webhooks_of_sessions_begin_and_end_them_unless_they_are_off
}

async fn processes_of_the_api_and_of_the_worker_share_one_table(backends: Backends) {
    let (world, clerk, signer) = answering(backends).await;
    populate(clerk.world(), 3);
    assert!(world.run(&["migrate"]).status.success());
    let token = |n: usize| signer.session(ISSUER, &user(n), "sess_1", "", now());
    let one = world.start(&["api"]);
    let two = world.start(&["api"]);
    let (status, first) = me(&one, &token(0)).await;
    assert_eq!((status, &first["clerk_id"]), (StatusCode::OK, &Value::from(user(0))));
    assert_eq!(me(&two, &token(0)).await.1["id"], first["id"]);
    // It is ready without a queue, and tells operators who it is.
    let ready = one.told("/readyz").await;
    assert_eq!(ready["ready"], true, "{ready}");
    // Killed and started again, it knows the same.
    two.kill();
    let two = world.start(&["api"]);
    assert_eq!(me(&two, &token(0)).await.1["id"], first["id"]);
    // The rest of the users come by a run, and the row stays what it was.
    let up = world.start(&["up"]);
    let synced = world.run(&["sync", "--yes", "--rate", "1000"]);
    assert!(synced.status.success(), "{synced:?}");
    for n in 0..3 {
        let (status, row) = me(&up, &token(n)).await;
        assert_eq!((status, &row["clerk_id"]), (StatusCode::OK, &Value::from(user(n))));
    }
    assert_eq!(me(&up, &token(0)).await.1["id"], first["id"]);
    [one, two, up].into_iter().for_each(Process::stop);
    assert!(world.users().await.len() == 3);
    world.clean_up().await;
}

async fn webhooks_of_sessions_begin_and_end_them_unless_they_are_off(backends: Backends) {
    let (mut world, clerk, signer) = answering(backends).await;
    populate(clerk.world(), 1);
    let person = Person::of(user(0), now());
    let body = |event: &str| Bytes::from(person.event(event, now()));
    let begun: Value = serde_json::from_slice(&body("session.created")).unwrap();
    let session = begun["data"]["id"].as_str().unwrap().to_owned();
    let token = || signer.session(ISSUER, &user(0), &session, "", now());
    for keeps in ["false", "true"] {
        world.set("HEADCOUNT_SESSIONS", keeps);
        let up = world.start(&["up"]);
        eventually("the tables are made", async || me(&up, &token()).await.0 == StatusCode::OK).await;
        for event in ["session.created", "session.ended", "session.touched"] {
            let posted = up.poster().post(&format!("msg_{keeps}_{event}"), body(event)).await.unwrap();
            assert_eq!(posted, 202, "{event}");
        }
        let settled = async |outcome: &str| metric_of(&up, "headcount_events_total", outcome).await;
        match keeps {
            "false" => {
                eventually("all are ignored", async || settled("ignored").await == 3.0).await;
                assert_eq!(me(&up, &token()).await.0, StatusCode::OK);
            }
            _ => {
                eventually("one is ignored", async || settled("ignored").await == 1.0).await;
                eventually("the session ends", async || me(&up, &token()).await.1["code"] == "session_ended")
                    .await;
                assert_eq!(world.users().await.len(), 1, "the user inside is no news");
            }
        }
        up.stop();
    }
    world.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_not_there_is_waited_for_and_nobody_waits_long() {
    let (mut world, clerk, signer) = answering(Backends::Embedded).await;
    populate(clerk.world(), 1);
    // Nobody listens there.
    world.set("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none");
    let process = world.start(&["api"]);
    let began = std::time::Instant::now();
    let (status, said) = me(&process, &signer.session(ISSUER, &user(0), "sess_1", "", now())).await;
    assert_eq!((status, &said["code"]), (StatusCode::SERVICE_UNAVAILABLE, &Value::from("unavailable")));
    assert!(began.elapsed() < Duration::from_secs(10));
    let ready = process.told("/readyz").await;
    assert_eq!(ready["ready"], false, "{ready}");
    process.stop();
}

/// Answers every request with this document.
fn publish(document: &Value) -> String {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
    let body = document.to_string();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_says_whose_tokens_count() {
    let mut world = World::new(Backends::Embedded);
    let signer = Signer::new("ins_1").unwrap();
    let line = |world: &World| {
        let said = String::from_utf8(world.run(&["doctor"]).stdout).unwrap();
        said.lines()
            .find(|line| line.split_whitespace().nth(1) == Some("tokens"))
            .unwrap_or_default()
            .to_owned()
    };
    assert_eq!(line(&world), "");
    world.set("CLERK_JWT_ISSUER_DOMAIN", ISSUER);
    world.set("CLERK_JWKS_URL", "http://127.0.0.1:1/jwks.json");
    let away = line(&world);
    assert!(away.starts_with("FAILED ") && away.contains(ISSUER) && away.contains("127.0.0.1"), "{away}");
    world.set("CLERK_JWKS_URL", &publish(&signer.key_set()));
    let read = line(&world);
    assert!(read.starts_with("ok ") && read.ends_with("its keys can be read"), "{read}");
    world.set("HEADCOUNT_CLERK_INSTANCE", "ins_2");
    let other = line(&world);
    assert!(other.starts_with("warning ") && other.contains("ins_1; the table belongs to ins_2"), "{other}");
    world.set("CLERK_JWT_KEY", &signer.pem());
    let given = line(&world);
    assert!(
        given.starts_with("ok ") && given.ends_with("where the key in CLERK_JWT_KEY has signed them"),
        "{given}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_instance_the_role_is_refused_and_up_serves_the_rest() {
    let world = World::new(Backends::Embedded);
    let refused = world.run(&["api"]);
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("CLERK_PUBLISHABLE_KEY") && said.contains("pk_"), "{said}");
    let up = world.start(&["up"]);
    assert!(up.api.is_none() && up.webhooks.is_some());
    up.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_and_no_address_is_ever_logged() {
    let (mut world, clerk, signer) = answering(Backends::Embedded).await;
    world.set("RUST_LOG", "debug,hyper=info");
    populate(clerk.world(), 1);
    let up = world.start(&["up"]);
    let token = signer.session(ISSUER, &user(0), "sess_1", "", now());
    eventually("the tables are made", async || me(&up, &token).await.0 == StatusCode::OK).await;
    let email = me(&up, &token).await.1["email"].as_str().unwrap().to_owned();
    let forged = Signer::new("ins_1").unwrap().session(ISSUER, &user(0), "sess_1", "", now());
    assert_eq!(me(&up, &forged).await.0, StatusCode::UNAUTHORIZED);
    let log = up.log();
    for secret in [&token, &forged, &email, support::clerk::KEY] {
        assert!(!log.contains(secret), "{log}");
    }
    up.stop();
}
