//! `send` against a front door of its own: what is posted, how it is counted, and what each failure says.

use std::{
    collections::HashSet,
    io,
    sync::{Arc, Mutex, atomic::Ordering},
};

use clap::Parser;

use super::*;
use crate::{
    clerk,
    cli::{Cli, Command, testing::Door},
    message::MessageId,
    rules::{Change, users},
};

const SECRET: &str = "whsec_dGhlIHNlY3JldCBvZiB0aGUgdGVzdHMgb2Ygc2VuZA==";

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn config(pairs: &[(&str, &str)]) -> Config {
    let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::from(pairs, Some(Path::new("/dev/null"))).unwrap()
}

/// Runs `headcount send …` and hands back its stdout too.
async fn send(line: &str, url: &str) -> (Result<(), Failure>, String) {
    let words = ["headcount", "send", "--url", url].into_iter().chain(line.split_whitespace());
    let Command::Send(args) = Cli::parse_from(words).command else { panic!() };
    let stdout = Shared::default();
    let config = config(&[("CLERK_WEBHOOK_SIGNING_SECRET", SECRET)]);
    let result = run(&args, &config, &mut Output::to(stdout.clone())).await;
    let text = String::from_utf8(stdout.0.lock().unwrap().clone()).unwrap();
    (result, text)
}

fn change(body: &[u8]) -> Change {
    clerk::parse(body, &clerk::Known::webhook(&MessageId::of_body(body), 0)).unwrap().change
}

#[tokio::test]
async fn one_event_is_made_signed_and_accepted() {
    let door = Door::open(SECRET, |_, _| StatusCode::ACCEPTED).await;
    let (result, stdout) = send("user.created --user user_1 --email ada@example.com", &door.url).await;
    result.unwrap();
    assert_eq!(stdout, "sent 1, accepted 1\nuser user_1\n");
    let came = door.came();
    assert!(came.len() == 1 && came[0].verified);
    assert_eq!(came[0].headers["content-type"], "application/json");
    let Change::User(users::Change::Upsert(user)) = change(&came[0].body) else { panic!() };
    assert_eq!((user.clerk_id.as_str(), user.claim.unwrap().address.as_str()), ("user_1", "ada@example.com"));
}

#[tokio::test]
async fn events_sent_one_by_one_are_about_one_person() {
    let door = Door::open(SECRET, |_, _| StatusCode::ACCEPTED).await;
    for event_type in ["user.created", "user.updated", "user.deleted", "session.created"] {
        send(&format!("{event_type} --user user_1"), &door.url).await.0.unwrap();
    }
    let claims: Vec<_> = door
        .came()
        .iter()
        .filter_map(|came| match change(&came.body) {
            Change::User(users::Change::Upsert(user)) => user.claim,
            Change::User(users::Change::Delete { .. })
            | Change::Session(_)
            | Change::Subscription(_)
            | Change::Other => None,
        })
        .collect();
    assert!(claims.len() == 2 && claims[0] == claims[1]);
}

#[tokio::test]
async fn many_keep_their_connections_and_have_ids_of_their_own() {
    let door = Door::open(SECRET, |_, _| StatusCode::ACCEPTED).await;
    let (result, stdout) =
        send("user.created --count 500 --user u_{i} --email u{i}@example.com --json", &door.url).await;
    result.unwrap();
    let summary: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&summary["sent"], &summary["accepted"]), (&500.into(), &500.into()));
    let came = door.came();
    assert!(came.iter().all(|came| came.verified));
    assert_eq!(came.iter().map(|came| came.id.as_str()).collect::<HashSet<_>>().len(), 500);
    let users: HashSet<String> = came
        .iter()
        .map(|came| match change(&came.body) {
            Change::User(users::Change::Upsert(user)) => user.clerk_id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(users.len() == 500 && users.contains("u_1") && users.contains("u_500"));
    assert!(door.connections.load(Ordering::SeqCst) <= CONCURRENCY);
}

#[tokio::test]
async fn a_rate_is_kept() {
    let door = Door::open(SECRET, |_, _| StatusCode::ACCEPTED).await;
    let started = Instant::now();
    send("user.created --count 11 --rate 50", &door.url).await.0.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(200), "{:?}", started.elapsed());
    assert_eq!(door.came().len(), 11);
}

#[tokio::test]
async fn what_is_refused_fails_with_a_hint() {
    let door = Door::open(SECRET, |_, n| match n {
        0 => StatusCode::UNAUTHORIZED,
        1 => StatusCode::TEMPORARY_REDIRECT,
        _ => StatusCode::ACCEPTED,
    })
    .await;
    let (result, stdout) = send("user.created --count 5", &door.url).await;
    let failure = result.unwrap_err();
    assert_eq!((failure.message.as_str(), failure.exit.code()), ("2 of 5 were not accepted", 1));
    assert!(failure.hints[0].contains("redirect") && failure.hints[1].starts_with("401"), "{failure:?}");
    assert!(stdout.contains("refused 1: 307 Temporary Redirect\nrefused 1: 401 Unauthorized\n"), "{stdout}");
    assert_eq!(door.came().len(), 5, "no redirect is followed");
}

#[tokio::test]
async fn every_status_of_the_front_door_has_a_hint() {
    for status in [400, 401, 404, 413, 500, 503] {
        let door = Door::open(SECRET, move |_, _| StatusCode::from_u16(status).unwrap()).await;
        let failure = send("user.created", &door.url).await.0.unwrap_err();
        assert_eq!((failure.message.as_str(), failure.hints.len()), ("nothing was accepted", 1), "{status}");
        assert!(!format!("{failure:?}").contains(SECRET));
    }
}

#[tokio::test]
async fn nobody_there_is_said_once_and_soon() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    let (result, stdout) = send("user.created --count 100000 --json", &url).await;
    let failure = result.unwrap_err();
    assert_eq!(failure.hints, ["connection refused: is headcount running? start it with `headcount up`"]);
    let summary: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert!(summary["sent"].as_u64().unwrap() <= 2 * CONCURRENCY as u64);
    assert_eq!(summary["unanswered"]["connection refused"], summary["sent"]);
}

#[tokio::test]
async fn a_wrong_name_and_a_failed_handshake_are_told_apart() {
    let door = Door::open(SECRET, |_, _| StatusCode::ACCEPTED).await;
    let hint = async |url: &str| send("user.created", url).await.0.unwrap_err().hints.remove(0);
    // A label this long is no name, so that no server has to be asked.
    let nobody = format!("http://{}.invalid/", "a".repeat(64));
    assert!(hint(&nobody).await.starts_with("host not found"), "{}", hint(&nobody).await);
    let https = door.url.replace("http://", "https://");
    assert!(hint(&https).await.starts_with("TLS failed"), "{}", hint(&https).await);
}

#[tokio::test]
async fn a_door_that_slams_is_a_broken_connection() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            use tokio::io::AsyncReadExt;
            let _ = stream.read(&mut [0; 64]).await;
        }
    });
    let failure = send("user.created", &url).await.0.unwrap_err();
    assert!(failure.hints[0].starts_with("the connection ended"), "{failure:?}");
}

#[tokio::test]
async fn a_file_is_sent_as_it_is() {
    let door = Door::open(SECRET, |_, _| StatusCode::ACCEPTED).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("body.json");
    std::fs::write(&file, "{ \"type\":\t\"é\" }\n").unwrap();
    let (result, stdout) = send(&format!("--count 2 --file {}", file.display()), &door.url).await;
    result.unwrap();
    assert!(stdout.starts_with("sent 2 in ") && !stdout.contains("user"));
    let came = door.came();
    assert!(came.iter().all(|came| came.verified && came.body == "{ \"type\":\t\"é\" }\n"));
    assert_ne!(came[0].id, came[1].id);
    std::fs::write(&file, b"\xff").unwrap();
    let failure = send(&format!("--file {}", file.display()), &door.url).await.0.unwrap_err();
    assert!(failure.message.contains("not UTF-8") && failure.exit.code() == 2);
    let failure = send("--file /nowhere", &door.url).await.0.unwrap_err();
    assert!(failure.message.starts_with("/nowhere cannot be read") && failure.exit.code() == 2);
}

#[tokio::test]
async fn a_wrong_url_or_no_secret_is_usage() {
    for url in ["ftp://x/", "127.0.0.1:8080", "http://", "not a url", "/webhooks/clerk"] {
        let failure = send("user.created", url).await.0.unwrap_err();
        assert_eq!((failure.exit.code(), failure.hints.len()), (2, 1), "{url}: {failure:?}");
    }
    let directory = tempfile::tempdir().unwrap();
    let config = config(&[("HEADCOUNT_DATA_DIR", directory.path().to_str().unwrap())]);
    let failure = signing_secret(&config).unwrap_err();
    assert_eq!((failure.exit.code(), failure.hints.len()), (2, 2));
}

#[test]
fn https_is_understood() {
    assert!(
        Poster::new("https://hooks.example.com/webhooks/clerk", &crate::secret::Secret::new(SECRET)).is_ok()
    );
}

#[test]
fn the_own_front_door_is_where_the_ingress_listens() {
    for (listen, url) in [
        ("127.0.0.1:8080", "http://127.0.0.1:8080/hook"),
        ("0.0.0.0:9000", "http://127.0.0.1:9000/hook"),
        ("[::]:9000", "http://[::1]:9000/hook"),
    ] {
        let config = config(&[("HEADCOUNT_LISTEN", listen), ("HEADCOUNT_WEBHOOK_PATH", "/hook")]);
        assert_eq!(front_door(&config), url);
    }
}
