//! Dead letters from end to end, with the real binary, on the embedded backends and on servers: buried, captured, listed,
//! replayed, edited, interrupted, taken up again. Each letter takes effect once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub, dead_code)]

#[path = "support/faulty_letters.rs"]
mod faulty_letters;
mod support;

use std::{process::Output, sync::Arc, time::Duration};

use bytes::Bytes;
use faulty_letters::FaultyLetters;
use headcount::{
    clerk::made_up::Person,
    letters::capture,
    message::{Message, MessageId, Origin},
    queue::{Action, Burial, Queue, Reason, Settlement, Source},
    store::{
        Class,
        letters::{Filter, LetterDetail, Letters, Status},
    },
    time::now,
};
use serde_json::Value;
use support::{
    eventually,
    process::{Backends, World},
};
use tokio::sync::watch;

const BOTH: [Backends; 2] = [Backends::Embedded, Backends::RabbitPostgres];

fn body(user: &str) -> Bytes {
    let born = now() - 3_600_000;
    let mut sample = Person::of(user, born);
    sample.email = Some(format!("{user}@example.com"));
    sample.event("user.created", born).into()
}

fn message(id: &str, body: impl Into<Bytes>) -> Message {
    Message {
        id: MessageId::parse(id).unwrap(),
        origin: Origin::Webhook,
        event_type: "user.created".into(),
        received_at: now(),
        attempt: 0,
        waits: 0,
        round: 0,
        traceparent: None,
        body: body.into(),
    }
}

/// Buries messages, as a worker would.
async fn bury(queue: &Arc<dyn Queue>, messages: Vec<Message>, detail: &str) {
    let (wanted, mut buried) = (messages.len(), 0);
    for message in messages {
        queue.publish(message).await.unwrap();
    }
    let subscription = queue.subscribe(Source::Events, 500).await.unwrap();
    while buried < wanted {
        let delivery = subscription.next().await.unwrap();
        let burial = Burial { reason: Reason::Rejected, detail: detail.to_owned() };
        subscription.settle(vec![Settlement { delivery, action: Action::Bury(burial) }]).await;
        buried += 1;
    }
    subscription.cancel().await;
}

/// A world with so many letters in its dead queue, whose messages would be applied by now.
async fn world(backends: Backends, letters: usize) -> World {
    let mut world = World::new(backends);
    world.set("USER", "tester");
    assert!(world.run(&["migrate"]).status.success());
    let queue = world.queue().await;
    let messages = (0..letters).map(|n| message(&format!("msg_{n}"), body(&format!("user_{n}")))).collect();
    bury(&queue, messages, "SQLSTATE 23514: violates \"house_rule\"").await;
    queue.close().await;
    world
}

/// Runs a command that has to go well.
fn well(world: &World, arguments: &[&str]) -> String {
    let output = world.run(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(world: &World, arguments: &[&str]) -> Value {
    serde_json::from_str(&well(world, arguments)).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

async fn until(world: &World, status: Status, letters: u64) {
    let store = world.store().await;
    eventually(&format!("{letters} letters are {}", status.as_str()), async || {
        store.statuses().await.is_ok_and(|all| all.get(&status).copied().unwrap_or_default() == letters)
    })
    .await;
    store.close().await;
}

async fn letter(world: &World, reference: &str) -> LetterDetail {
    let store = world.store().await;
    let letter = store.show(reference).await.unwrap().unwrap();
    store.close().await;
    letter
}

/// What happened to a letter and in which round. What follows a replay is sorted by name: a worker can be quicker with the
/// message than the replay with its stamp.
fn told(letter: &LetterDetail) -> Vec<(&str, u32)> {
    let mut told: Vec<_> = letter.history.iter().map(|entry| (entry.action.as_str(), entry.round)).collect();
    told[2..].sort_unstable();
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buried_letter_is_captured_listed_and_replayed_to_its_effect() {
    for backends in BOTH {
        let world = world(backends, 3).await;
        let worker = world.start(&["worker"]);
        until(&world, Status::Open, 3).await;
        let groups = json(&world, &["dead", "groups", "--json"]);
        assert_eq!(groups[0]["group"], "rejected: SQLSTATE 23514: violates \"house_rule\"");
        assert_eq!(groups[0]["letters"], 3);
        let listed = json(&world, &["dead", "list", "--user", "user_1", "--json"]);
        assert_eq!(listed["letters"][0]["message_id"], "msg_1");
        assert!(well(&world, &["dead", "list"]).contains("msg_2"));
        let shown = well(&world, &["dead", "show", "msg_1"]);
        assert!(shown.contains("user_1@example.com") && shown.contains("house_rule"), "{shown}");

        let looked = well(&world, &["dead", "replay", "--reason", "rejected", "--dry-run"]);
        assert!(looked.contains("3  to replay") && looked.contains("user.created  rejected"), "{looked}");
        let unsure = world.run(&["dead", "replay", "--reason", "rejected"]);
        assert_eq!(unsure.status.code(), Some(2));
        assert!(stderr(&unsure).contains("--yes"), "{unsure:?}");
        until(&world, Status::Open, 3).await;

        let said = well(&world, &["dead", "replay", "--reason", "rejected", "--yes", "--note", "mended"]);
        assert_eq!(said, "replayed 3 letters\noutcome: 3 created\n");
        until(&world, Status::Applied, 3).await;
        assert_eq!(world.users().await.len(), 3);
        let one = letter(&world, "msg_1").await;
        assert_eq!(told(&one), [("died", 0), ("replayed", 1), ("applied", 1), ("published", 1)]);
        let replayed = &one.history[1];
        assert_eq!((replayed.by.as_str(), replayed.note.as_deref()), ("tester", Some("mended")));

        let again = world.run(&["dead", "replay", "msg_1"]);
        assert_eq!(again.status.code(), Some(1));
        assert!(stderr(&again).contains("is applied (created), not open"), "{again:?}");
        let unknown = world.run(&["dead", "show", "msg_x"]);
        assert!(unknown.status.code() == Some(1) && stderr(&unknown).contains("hint: "), "{unknown:?}");
        assert_eq!(world.run(&["dead", "replay"]).status.code(), Some(2));
        worker.stop();
        world.clean_up().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_dies_again_is_the_same_and_an_edit_is_applied_once() {
    for backends in BOTH {
        let world = world(backends, 0).await;
        let worker = world.start(&["worker"]);
        let queue = world.queue().await;
        queue.publish(message("msg_bad", r#"{"type":"user.created","data":{}}"#)).await.unwrap();
        until(&world, Status::Open, 1).await;
        well(&world, &["dead", "replay", "--all", "--yes", "--rate", "1/s"]);
        eventually("it dies again", async || {
            let letter = letter(&world, "msg_bad").await.letter;
            letter.status == Status::Open && letter.round == 1
        })
        .await;
        let died = letter(&world, "msg_bad").await;
        assert_eq!(told(&died), [("died", 0), ("replayed", 1), ("died", 1), ("published", 1)]);

        let file = world.directory.path().join("body.json");
        std::fs::write(&file, r#"{"type":"user.created","data":{"id":7}}"#).unwrap();
        let edit = ["dead", "edit", "msg_bad", "--file", file.to_str().unwrap()];
        let refused = world.run(&edit);
        assert!(stderr(&refused).contains("would be buried again: data.id"), "{refused:?}");
        std::fs::write(&file, body("user_mended")).unwrap();
        let said = well(&world, &edit);
        assert!(
            said.contains("+     \"id\": \"user_mended\"")
                && said.ends_with("as round 2\noutcome: 1 created\n"),
            "{said}"
        );
        until(&world, Status::Applied, 1).await;
        let users = world.users().await;
        assert_eq!(users.iter().map(|user| user.clerk_id.as_str()).collect::<Vec<_>>(), ["user_mended"]);
        assert_eq!(world.run(&edit).status.code(), Some(1), "it is not open any more");
        queue.close().await;
        worker.stop();
        world.clean_up().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_terminal_there_is_no_editor() {
    let world = world(Backends::Embedded, 1).await;
    let worker = world.start(&["worker"]);
    until(&world, Status::Open, 1).await;
    let output = world.run(&["dead", "edit", "msg_0"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--file"), "{output:?}");
    worker.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replays_of_one_group_at_the_same_moment_share_it() {
    for backends in BOTH {
        let world = world(backends, 300).await;
        let worker = world.start(&["worker"]);
        until(&world, Status::Open, 300).await;
        let replay = ["dead", "replay", "--reason", "rejected", "--yes"];
        let both = [world.begin(&replay), world.begin(&replay)];
        let mut claimed = 0;
        for run in both {
            let output = run.end();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            // Whoever comes late finds nothing left, and is told so.
            assert!(
                output.status.success() || stderr(&output).contains("no open letter is selected"),
                "{output:?}"
            );
            let number = said.split_whitespace().nth(1).map_or(0, |number| number.parse::<u64>().unwrap());
            claimed += number;
        }
        assert_eq!(claimed, 300);
        until(&world, Status::Applied, 300).await;
        let store = world.store().await;
        let page = headcount::store::letters::Page { limit: 1000, after: None };
        let letters = store.list(&Filter::default(), &page).await.unwrap();
        assert!(letters.iter().all(|letter| letter.round == 1));
        store.close().await;
        assert_eq!(world.users().await.len(), 300);
        worker.stop();
        world.clean_up().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_replay_says_how_to_go_on_and_no_letter_counts_twice() {
    for backends in BOTH {
        let world = world(backends, 200).await;
        let worker = world.start(&["worker"]);
        until(&world, Status::Open, 200).await;
        let replay = ["dead", "replay", "--all", "--yes", "--rate", "50/s"];
        let store = world.store().await;
        let some_left = async |open: u64| {
            eventually("it is on its way", async || {
                store.statuses().await.unwrap().get(&Status::Open).copied().unwrap_or_default() < open
            })
            .await;
        };

        let run = world.begin(&replay);
        some_left(200).await;
        run.signal("INT");
        let output = run.end();
        assert_eq!(output.status.code(), Some(1));
        let hint = "hint: go on: headcount dead replay --all --yes --rate 50/s\n";
        assert!(stderr(&output).contains(hint), "{output:?}");
        let unstamped = store.unstamped(&Filter::default(), now() + 60_000, 100).await.unwrap();
        assert!(unstamped.is_empty(), "Ctrl-C finishes what it has claimed");

        let open = store.statuses().await.unwrap()[&Status::Open];
        let run = world.begin(&replay);
        some_left(open).await;
        // Right after a claim, most likely before its publications.
        run.kill();
        assert!(store.statuses().await.unwrap()[&Status::Open] > 0, "it was quicker than the test");

        well(&world, &["dead", "replay", "--all", "--yes"]);
        until(&world, Status::Applied, 200).await;
        assert_eq!(world.users().await.len(), 200);
        let page = headcount::store::letters::Page { limit: 1000, after: None };
        let letters = store.list(&Filter::default(), &page).await.unwrap();
        assert!(letters.iter().all(|letter| letter.round == 1), "each is claimed once");
        store.close().await;
        worker.stop();
        world.clean_up().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_set_aside_taken_back_and_written_out() {
    let world = world(Backends::Embedded, 5).await;
    let worker = world.start(&["worker"]);
    until(&world, Status::Open, 5).await;
    assert_eq!(world.run(&["dead", "discard", "--all", "--yes"]).status.code(), Some(2), "a note is needed");
    let said = well(&world, &["dead", "discard", "msg_1", "msg_2", "--note", "test data", "--yes"]);
    assert_eq!(said, "discarded 2 letters\n");
    assert_eq!(letter(&world, "msg_1").await.history.last().unwrap().note.as_deref(), Some("test data"));
    assert_eq!(well(&world, &["dead", "restore", "msg_1"]), "restored 1 letter\n");
    let exported = well(&world, &["dead", "export", "--status", "all"]);
    let lines: Vec<Value> = exported.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 5);
    assert!(lines.iter().all(|line| line["encoding"] == "utf-8" && line["history"][0]["action"] == "died"));
    let first = lines[0]["cursor"].as_str().unwrap();
    assert_eq!(well(&world, &["dead", "export", "--status", "all", "--after", first]).lines().count(), 4);

    let status = json(&world, &["status", "--json"]);
    assert_eq!(status["dead_letters"]["open"], 4);
    assert!(well(&world, &["status"]).contains("dead letters    4 open, 0 replayed, 0 applied, 1 discarded"));
    let doctor = world.run(&["doctor"]);
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains("4 open; 4 of them: rejected: SQLSTATE 23514"), "{said}");
    let metrics = operators(&worker.operators, "/metrics").await;
    eventually("the gauge is set", async || {
        operators(&worker.operators, "/metrics")
            .await
            .contains("headcount_dead_letters{status=\"discarded\"} 1")
    })
    .await;
    assert!(metrics.contains("headcount_dead_letters{status=\"open\"}"), "{metrics}");
    // The usual figures of a process are there too.
    for figure in ["cpu_seconds_total", "resident_memory_bytes", "open_fds", "threads", "start_time_seconds"]
    {
        assert!(metrics.contains(&format!("\nprocess_{figure} ")), "{figure}: {metrics}");
    }
    worker.stop();
}

/// A page of the operators' listener.
async fn operators(url: &str, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_shows_itself_within_seconds() {
    for backends in BOTH {
        let mut world = World::new(backends);
        let up = world.start(&["up"]);
        let stranger = headcount::secret::Secret::new("whsec_c29tZWJvZHkgZWxzZSdzIHNlY3JldCwgbm90IG91cnM=");
        let poster = headcount::cli::post::Poster::new(up.webhooks.as_deref().unwrap(), &stranger).unwrap();
        let status = poster.post("msg_1", body("user_1")).await.unwrap();
        assert_eq!(status.as_u16(), 401);
        let store = world.store().await;
        eventually("the sample is recorded", async || {
            store.newest(10).await.is_ok_and(|samples| !samples.is_empty())
        })
        .await;
        store.close().await;
        let listed = well(&world, &["rejections", "list"]);
        assert!(listed.contains("no_matching_signature") && listed.contains("hint: compare"), "{listed}");
        assert!(!listed.contains("user_1"), "never the body");
        let address = up.webhooks.clone().unwrap();
        world.set("HEADCOUNT_LISTEN", address.trim_start_matches("http://").split('/').next().unwrap());
        let doctor = world.run(&["doctor"]);
        let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert!(said.contains("warning  rejections") && said.contains("secret differs"), "{said}");
        up.stop();
        world.clean_up().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_wait_durable_while_the_table_is_away() {
    for backends in BOTH {
        let world = world(backends, 120).await;
        let queue = world.queue().await;
        let letters = FaultyLetters::new().await;
        letters.fail(Class::Outage);
        let stop = watch::Sender::new(false);
        let run = capture::run(queue.clone(), letters.clone() as Arc<dyn Letters>, stop.subscribe());
        let task = tokio::spawn(run);
        letters.captures.subscribe().wait_for(|captures| *captures >= 2).await.unwrap();
        stop.send_replace(true);
        task.await.unwrap();
        queue.close().await;

        // Another process finds all of them.
        let queue = world.queue().await;
        letters.fail(None);
        let stop = watch::Sender::new(false);
        let run = capture::run(queue.clone(), letters.clone() as Arc<dyn Letters>, stop.subscribe());
        let task = tokio::spawn(run);
        eventually("all are captured", async || letters.all().await.len() == 120).await;
        eventually("and settled", async || {
            let depths = queue.depths().await.unwrap_or_default();
            depths.iter().any(|depth| depth.queue == "dead" && depth.messages == 0)
        })
        .await;
        stop.send_replace(true);
        tokio::time::timeout(Duration::from_secs(30), task).await.unwrap().unwrap();
        queue.close().await;
        world.clean_up().await;
    }
}
