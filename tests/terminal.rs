//! How commands show text that strangers chose, and how they behave on a terminal: with the real binary, on the embedded
//! backends and on servers.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::{collections::BTreeMap, path::Path, process::Output, time::Duration};

use bytes::Bytes;
use headcount::{
    clerk::made_up::Person,
    message::{Message, MessageId, Origin, Rejected},
    store::letters::{Captured, Status},
    terminal::is_hidden,
    time::now,
};
use serde_json::Value;
use support::{
    eventually,
    process::{Backends, World},
};

const BOTH: [Backends; 2] = [Backends::Embedded, Backends::RabbitPostgres];

/// Sets the window's title, forges a line, clears the screen (C1), turns the reading direction, hides.
const HOSTILE: &str =
    "A\u{1b}]0;pwned\u{7}\nerror: forged\u{9b}2J\u{202e}x\u{2066}\u{2028}\u{200b}\u{feff}\u{7f}Z";

fn sample(user: &str) -> Person {
    let mut sample = Person::of(user, now() - 3_600_000);
    sample.email = Some(format!("{user}@example.com"));
    sample
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

fn letter(id: &str) -> Captured {
    Captured {
        message_id: id.into(),
        origin: Origin::Webhook,
        round: 0,
        event_type: "user.created".into(),
        clerk_id: Some(format!("user_{id}")),
        reason: "rejected".into(),
        detail: "no such luck".into(),
        attempts: 1,
        first_seen: now(),
        died_at: now(),
        group: "rejected: no such luck".into(),
        headers: BTreeMap::new(),
        body: sample(&format!("user_{id}")).event("user.created", now() - 3_600_000).into(),
    }
}

/// A world with these letters in its table.
async fn world(backends: Backends, letters: &[Captured]) -> World {
    let mut world = World::new(backends);
    world.set("USER", "tester");
    assert!(world.run(&["migrate"]).status.success());
    let store = world.store().await;
    store.capture(letters).await.unwrap();
    store.close().await;
    world
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs a command that has to go well.
fn well(world: &World, arguments: &[&str]) -> String {
    let output = world.run(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    stdout(&output)
}

/// It failed with this exit code, and said these words.
fn fails(world: &World, arguments: &[&str], code: i32, words: &[&str]) {
    let output = world.run(arguments);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    words.iter().for_each(|words| assert!(said.contains(words), "{words}: {said}"));
}

async fn until(world: &World, status: Status, letters: u64) {
    let store = world.store().await;
    eventually(&format!("{letters} letters are {}", status.as_str()), async || {
        store.statuses().await.is_ok_and(|all| all.get(&status).copied().unwrap_or_default() == letters)
    })
    .await;
    store.close().await;
}

fn is_harmless(text: &str, what: &str) {
    for line in text.split('\n') {
        assert!(!line.contains(is_hidden), "{what}: {line:?}");
        assert!(!line.starts_with("error: forged"), "{what}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_text_from_outside_steers_the_terminal_or_forges_a_line() {
    for backends in BOTH {
        let hostile = Captured {
            event_type: HOSTILE.into(),
            clerk_id: Some(HOSTILE.into()),
            reason: HOSTILE.into(),
            detail: HOSTILE.into(),
            group: HOSTILE.into(),
            headers: BTreeMap::from([(HOSTILE.into(), HOSTILE.into())]),
            body: HOSTILE.into(),
            ..letter(HOSTILE)
        };
        let mut world = world(backends, &[hostile, letter("msg_1")]).await;
        world.set("USER", HOSTILE);
        let store = world.store().await;
        let rejected = Rejected {
            at: now(),
            address: HOSTILE.into(),
            reason: HOSTILE.into(),
            headers: vec![HOSTILE.into()],
        };
        store.record(&[rejected]).await.unwrap();
        store.close().await;
        let worker = world.start(&["worker"]);
        let queue = world.queue().await;
        let mut user = sample("user_\u{202e}1");
        user.email = Some("ada@example.com".into());
        (user.first_name, user.last_name) = (Some(HOSTILE.into()), Some("\u{9d}".into()));
        (user.username, user.phone) = (Some(HOSTILE.into()), Some(HOSTILE.into()));
        let born = now() - 3_600_000;
        let user =
            Message { event_type: HOSTILE.into(), ..message("user", user.event("user.created", born)) };
        let ignored = format!(r#"{{"type":{},"data":{{}}}}"#, serde_json::to_string(HOSTILE).unwrap());
        let dies = r#"{"type":"user.created","data":{"id":"user_\u202e2","email_addresses":7}}"#;
        for message in [user, message("ignored", ignored), message("dies", dies)] {
            queue.publish(message).await.unwrap();
        }
        until(&world, Status::Open, 3).await;
        world.until_users("the user is there", |users| !users.is_empty()).await;
        queue.close().await;

        let id = world.users().await[0].id.to_string();
        let listed: Value = serde_json::from_str(&well(&world, &["dead", "list", "--json"])).unwrap();
        let letters = listed["letters"].as_array().unwrap().iter();
        let ids: Vec<String> = letters.map(|letter| letter["id"].as_str().unwrap().to_owned()).collect();
        let file = world.directory.path().join(HOSTILE);
        std::fs::write(&file, format!(r#"{{"type":"user.created","data":{{"id":"{HOSTILE}"}}}}"#)).unwrap();
        let file = file.to_str().unwrap();
        let mut commands: Vec<Vec<&str>> = vec![
            vec!["users", "list"],
            vec!["users", "show", &id],
            vec!["users", "show", HOSTILE],
            vec!["dead", "groups"],
            vec!["dead", "list", "--status", "all"],
            vec!["rejections", "list"],
            vec!["status"],
            vec!["doctor"],
            vec!["dead", "show", HOSTILE],
        ];
        commands.extend(ids.iter().map(|id| vec!["dead", "show", id]));
        for command in commands.clone() {
            commands.push([command, vec!["--json"]].concat());
        }
        commands.extend([
            vec!["dead", "export"],
            vec!["dead", "edit", "msg_1", "--file", file],
            vec!["dead", "edit", "msg_1", "--file", "/nowhere/\u{1b}[2J\nerror: forged"],
            vec!["dead", "discard", "msg_1", "--note", HOSTILE],
            vec!["dead", "show", "msg_1"],
            vec!["dead", "replay", "--all", "--dry-run"],
            vec!["dead", "replay", HOSTILE],
            vec!["dead", "list", "--reason", "x\u{1b}\nerror: forged"],
            vec!["dead", "list", "--group", "x\u{1b}\nerror: forged"],
            vec!["dead", "list", "--since", HOSTILE],
            vec!["dead", "list", "--after", HOSTILE],
            vec!["users", "list", "--limit", HOSTILE],
            vec!["dead", "list", "--status=\u{1b}[2J\nerror: forged"],
            vec![HOSTILE],
            vec!["--config", HOSTILE, "status"],
        ]);
        let mut seen = String::new();
        for command in commands {
            let output = world.run(&command);
            is_harmless(&stdout(&output), &format!("{command:?}"));
            is_harmless(&stderr(&output), &format!("{command:?}"));
            let is_json = command.contains(&"--json") && output.status.success();
            if is_json {
                serde_json::from_slice::<Value>(&output.stdout).unwrap();
            }
            seen.push_str(&stdout(&output));
        }
        assert!(seen.contains("A\\u{1b}]0;pwned\\u{7}\\u{a}error: forged\\u{9b}2J\\u{202e}x"), "{seen}");
        let shown: Value = serde_json::from_str(&well(&world, &["users", "show", &id, "--json"])).unwrap();
        assert_eq!(shown["user"]["first_name"], HOSTILE, "JSON gives the text back");
        is_harmless(&worker.log(), "the log");
        worker.stop();

        world.set("RUST_LOG", "debug");
        let ingress = world.start(&["ingress"]);
        let address = ingress.webhooks.clone().unwrap();
        let address = address.trim_start_matches("http://").split('/').next().unwrap().to_owned();
        let request = format!(
            "POST /\u{9b}2J\u{202e} HTTP/1.1\r\nHost: \u{9b}\r\nsvix-id: {0}\r\nuser-agent: {0}\r\nConnection: close\r\n\r\n",
            "\u{9b}\u{202e}x"
        );
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
        std::io::Read::read_to_end(&mut stream, &mut Vec::new()).unwrap();
        is_harmless(&ingress.log(), "the log");
        ingress.stop();
        world.unset("RUST_LOG");
        world.set("HEADCOUNT_PREFETCH", HOSTILE);
        is_harmless(&stderr(&world.run(&["worker"])), "a setting");
        world.unset("HEADCOUNT_PREFETCH");
        world.clean_up().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_fits_the_terminal_and_is_whole_in_a_pipe() {
    let long = format!("王芳🦀 {}", "n".repeat(400));
    let detail = format!("{}end", "because ".repeat(40));
    let world = world(Backends::Embedded, &[Captured { detail, ..letter("msg_1") }]).await;
    let up = world.start(&["up"]);
    let queue = world.queue().await;
    let mut user = sample("user_1");
    (user.first_name, user.last_name) = (Some(long.clone()), None);
    queue.publish(message("m1", user.event("user.created", now()))).await.unwrap();
    let other = sample("user_2").event("user.created", now());
    queue.publish(message("m2", other)).await.unwrap();
    world.until_users("both are there", |users| users.len() == 2).await;
    for (arguments, end) in [(["users", "list"], "nnn"), (["dead", "list"], "because end")] {
        assert!(well(&world, &arguments).contains(end), "nothing is cut in a pipe");
        let (status, shown) = world.on_terminal(&arguments, 120).end();
        assert!(status.success() && shown.contains('…') && !shown.contains("because end"), "{shown}");
        for line in shown.lines() {
            assert!(headcount::terminal::width(line) <= 120, "{line}");
        }
    }
    let (_, shown) = world.on_terminal(&["dead", "show", "msg_1"], 80).end();
    assert!(!shown.contains('…') && shown.contains("because end"), "what is shown is whole: {shown}");
    let piped = well(&world, &["users", "list"]);
    let column = |name: &str| {
        let line = piped.lines().find(|line| line.contains(name)).unwrap();
        headcount::terminal::width(line.split_once("@example.com").unwrap().0)
    };
    assert_eq!(column("user_1"), column("user_2"));
    queue.close().await;
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_no_says_that_nothing_was_done() {
    let world = world(Backends::Embedded, &[letter("msg_1"), letter("msg_2")]).await;
    let body = sample("user_msg_1").event("user.updated", now());
    std::fs::write(world.directory.path().join("body.json"), body).unwrap();
    for (arguments, words) in [
        (&["dead", "replay", "--all"][..], "nothing was replayed"),
        (&["dead", "discard", "--all", "--note", "why"], "nothing was discarded"),
        (&["dead", "edit", "msg_1", "--file", "body.json"], "nothing was sent"),
    ] {
        let mut terminal = world.on_terminal(arguments, 100);
        terminal.until("[y/N]");
        terminal.type_in("n\n");
        let (status, shown) = terminal.end();
        assert!(status.success() && shown.contains(words), "{shown}");
    }
    until(&world, Status::Open, 2).await;
}

/// An editor that leaves a file beside the copy, tells where it works, and stays.
fn editor(directory: &Path) -> String {
    let script = directory.join("editor.sh");
    let ready = directory.join("ready");
    let text = format!(
        "cp \"$1\" \"$1.swp\"; echo $$ \"$1\" > '{0}.new'; mv '{0}.new' '{0}'; exec sleep 120\n",
        ready.display()
    );
    std::fs::write(&script, text).unwrap();
    format!("sh '{}'", script.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_in_the_editor_goes_however_the_command_ends() {
    let mut world = world(Backends::Embedded, &[letter("msg_1")]).await;
    let editor = editor(world.directory.path());
    let temporary = world.directory.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    world.set("TMPDIR", temporary.to_str().unwrap());
    world.set("EDITOR", &editor);
    world.set("PATH", &std::env::var("PATH").unwrap());
    let ready = world.directory.path().join("ready");
    for how in ["close", "-TERM", "-HUP"] {
        let mut terminal = world.on_terminal(&["dead", "edit", "msg_1"], 100);
        eventually("the editor has it", async || ready.exists()).await;
        let told = std::fs::read_to_string(&ready).unwrap();
        let (pid, file) = told.trim().split_once(' ').unwrap();
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let file = Path::new(file);
        assert_eq!((mode(file), mode(file.parent().unwrap())), (0o600, 0o700));
        assert!(std::fs::read_to_string(file).unwrap().contains("user_msg_1@example.com"));
        match how {
            "close" => terminal.close(),
            signal => {
                let sent =
                    std::process::Command::new("kill").args([signal, &terminal.id().to_string()]).status();
                assert!(sent.unwrap().success());
            }
        }
        let (status, _) = terminal.end();
        assert!(!status.success());
        let left: Vec<_> = std::fs::read_dir(&temporary).unwrap().collect();
        assert!(left.is_empty(), "{how}: {left:?}");
        // The editor of a command that was asked to end by itself.
        let _ = std::process::Command::new("kill").args(["-KILL", pid]).status();
        std::fs::remove_file(&ready).unwrap();
    }
    until(&world, Status::Open, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_that_would_do_something_else_warns_and_its_outcome_is_told() {
    for backends in BOTH {
        let world = world(backends, &["a", "b", "c"].map(letter)).await;
        let worker = world.start(&["worker"]);
        let file = world.directory.path().join("body.json");
        let edit = |id: &str, more: &[&str]| {
            let arguments = [&["dead", "edit", id, "--file", file.to_str().unwrap()], more].concat();
            world.run(&arguments)
        };
        let sent = now() - 3_600_000;
        std::fs::write(&file, sample("user_a").event("email.created", sent)).unwrap();
        let refused = edit("a", &[]);
        assert_eq!(refused.status.code(), Some(2));
        assert!(stderr(&refused).contains("warning: a worker ignores events of the type email.created"));
        assert!(stderr(&refused).contains("--yes"), "{refused:?}");
        until(&world, Status::Open, 3).await;
        let said = stdout(&edit("a", &["--yes"]));
        assert!(
            said.ends_with("as round 1\noutcome: 1 ignored (events of this type change no user)\n"),
            "{said}"
        );
        assert!(world.users().await.is_empty());

        std::fs::write(&file, sample("user_x").event("user.created", sent)).unwrap();
        let looked = edit("b", &["--dry-run"]);
        assert!(looked.status.success());
        let warning = "warning: the new body is about another user: user_x, not user_b";
        assert!(stderr(&looked).contains(warning), "{looked:?}");
        let refused = edit("b", &[]);
        assert!(refused.status.code() == Some(2) && stderr(&refused).contains(warning), "{refused:?}");
        std::fs::write(&file, sample("user_c").event("user.deleted", sent)).unwrap();
        assert!(stderr(&edit("c", &[])).contains("warning: the new body deletes the user"));

        assert_eq!(well(&world, &["dead", "replay", "c"]), "replayed 1 letter\noutcome: 1 created\n");
        let listed = well(&world, &["dead", "list", "--status", "applied"]);
        assert!(listed.contains("applied (ignored)") && listed.contains("applied (created)"), "{listed}");
        let shown = well(&world, &["dead", "show", "a"]);
        assert!(shown.contains("outcome    ignored: events of this type change no user\n"), "{shown}");
        let shown: Value = serde_json::from_str(&well(&world, &["dead", "show", "c", "--json"])).unwrap();
        assert_eq!(shown["outcome"], "created");
        worker.stop();
        world.clean_up().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_no_worker_takes_up_says_so() {
    for backends in BOTH {
        let world = world(backends, &["a", "b", "c"].map(letter)).await;
        let idle = "warning: no worker takes messages at present";
        let output = world.run(&["dead", "replay", "a"]);
        assert!(output.status.success() && stderr(&output).contains(idle), "{output:?}");
        assert_eq!(stdout(&output), "replayed 1 letter\n");

        let worker = world.start(&["worker"]);
        until(&world, Status::Applied, 1).await;
        let output = world.run(&["dead", "replay", "b"]);
        assert!(output.status.success() && !stderr(&output).contains(idle), "{output:?}");

        // Every write of an event fails now: the worker pauses.
        let (guard, free) = match backends {
            Backends::Embedded => (
                "CREATE TRIGGER guard BEFORE INSERT ON inbox BEGIN SELECT RAISE(ABORT, 'nobody'); END",
                "DROP TRIGGER guard",
            ),
            _ => (
                "CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'nobody'; END $$;
                 CREATE TRIGGER guard BEFORE INSERT ON inbox FOR EACH ROW EXECUTE FUNCTION guard()",
                "DROP TRIGGER guard ON inbox",
            ),
        };
        world.sql(guard).await;
        let queue = world.queue().await;
        queue.publish(message("m1", sample("user_1").event("user.created", now()))).await.unwrap();
        eventually("the worker pauses", async || {
            let depths = queue.depths().await.unwrap_or_default();
            depths.iter().any(|depth| depth.queue == "events" && depth.consumers == 0)
        })
        .await;
        let output = world.run(&["dead", "replay", "c"]);
        assert!(output.status.success() && stderr(&output).contains(idle), "{output:?}\n{}", worker.log());
        world.sql(free).await;
        until(&world, Status::Applied, 3).await;
        queue.close().await;
        worker.stop();
        world.clean_up().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_wrongly_is_told_what_there_is() {
    let world = world(Backends::Embedded, &[letter("msg_1")]).await;
    let reasons = "invalid_payload, rejected, retries_exhausted, crash_loop, unroutable or other_instance";
    fails(&world, &["dead", "list", "--reason", "nonsense"], 2, &["nonsense", reasons]);
    fails(&world, &["dead", "replay", "--reason", "nonsense"], 2, &["nonsense", reasons]);
    fails(&world, &["dead", "list", "--status", "nonsense"], 2, &["open, replayed, applied, discarded, all"]);
    fails(&world, &["dead", "list", "--group", "nonsense"], 1, &["nonsense", "headcount dead groups"]);
    assert_eq!(well(&world, &["dead", "list", "--reason", "unroutable"]), "no dead letters\n");

    let groups: Value = serde_json::from_str(&well(&world, &["dead", "groups", "--json"])).unwrap();
    let id = groups[0]["id"].as_str().unwrap();
    let told = well(&world, &["dead", "groups"]);
    assert!(
        told.lines().nth(1).unwrap().starts_with(id) && told.contains(&format!("--group {id}\n")),
        "{told}"
    );
    for group in [id, "rejected: no such luck"] {
        assert!(well(&world, &["dead", "list", "--group", group]).contains("msg_1"));
        let looked = well(&world, &["dead", "replay", "--group", group, "--dry-run"]);
        assert!(looked.contains("1  to replay"), "{looked}");
    }

    let letter = "but a dead letter is about it: user.created died for rejected and is open";
    fails(&world, &["users", "show", "user_msg_1"], 1, &[letter, "headcount dead show "]);
    fails(&world, &["users", "show", "user_2"], 1, &["no user is known by", "users list"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_lost_on_its_way_back_from_a_retry_queue_is_told_as_that() {
    let world = world(Backends::RabbitPostgres, &[]).await;
    let queue = world.queue().await;
    queue.ready().await.unwrap();
    queue.close().await;
    let (url, prefix) = world.broker();
    let connection = lapin::Connection::connect(url, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(Default::default()).await.unwrap();
    let properties = lapin::BasicProperties::default().with_message_id("msg_1".into()).with_delivery_mode(2);
    let retry = format!("{prefix}.retry.300ms");
    channel.queue_delete(format!("{prefix}.events").into(), Default::default()).await.unwrap();
    let published =
        channel.basic_publish("".into(), retry.clone().into(), Default::default(), b"{}", properties);
    assert!(published.await.unwrap().await.unwrap().is_ack());
    let passive = lapin::options::QueueDeclareOptions { passive: true, ..Default::default() };
    eventually("it is dead", async || {
        let dead = channel.queue_declare(format!("{prefix}.dead").into(), passive, Default::default());
        dead.await.unwrap().message_count() == 1
    })
    .await;
    let worker = world.start(&["worker"]);
    until(&world, Status::Open, 1).await;
    let shown = well(&world, &["dead", "show", "msg_1"]);
    assert!(shown.contains("reason     unroutable\n"), "{shown}");
    assert!(shown.contains(&format!("when it came from {retry} (expired)")), "{shown}");
    assert!(shown.contains("x-death: [{count: 1, ") && !shown.contains("LongString"), "{shown}");
    worker.stop();
    world.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_replay_says_where_each_letter_is() {
    let letters: Vec<Captured> = (0..200).map(|n| letter(&format!("m{n}"))).collect();
    let world = world(Backends::Embedded, &letters).await;
    let replay = world.begin(&["dead", "replay", "--all", "--yes", "--rate", "20/s"]);
    let store = world.store().await;
    let open = async || store.statuses().await.unwrap().get(&Status::Open).copied().unwrap_or_default();
    eventually("it is on its way", async || open().await < 200).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    replay.signal("INT");
    let output = replay.end();
    assert_eq!(output.status.code(), Some(1));
    let open = open().await;
    let expected = format!("replayed {} letters; {open} of the selection still open\n", 200 - open);
    assert_eq!(stdout(&output), expected, "{output:?}");
    assert!(
        stderr(&output).contains("hint: go on: headcount dead replay --all --yes --rate 20/s"),
        "{output:?}"
    );
    store.close().await;
}
