//! What processes tell about themselves: in both stores, and with real processes that come, count, die and go; and `status --watch`.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

#[path = "support/stores.rs"]
#[allow(dead_code, reason = "the tests of users use the rest")]
mod stores;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    sync::Arc,
    time::Duration,
};

use headcount::{
    clerk::made_up::Person,
    message::{Origin, Rejected},
    ops::status::OfStore,
    store::{
        Backend, Store,
        housekeeping::Retention,
        letters::{Actor, Captured, Filter},
        processes::{ProcessRow, Role, Said, Telling},
    },
    telemetry::rates::{Counted, Counts, MINUTE, Rates, SLOT},
    terminal::{is_hidden, width},
    time::now,
};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use stores::{Home, contract};
use support::{
    PATIENCE, eventually,
    process::{Backends, Process, World, signal},
    servers::Server,
    terminal::Terminal,
};
use uuid::Uuid;

const LIFE: Duration = Duration::from_secs(30);

fn said(roles: &[Role]) -> Said {
    let at = now() / MINUTE * MINUTE;
    let counts = Counts::default().with(Counted::Applied, 5).with(Counted::Died, 1);
    Said {
        id: Uuid::now_v7(),
        roles: roles.to_vec(),
        version: "0.1.0".into(),
        host: "app-1".into(),
        pid: 7,
        started_at: at - 1_000,
        told_at: at,
        held: Some(3),
        paused: None,
        paused_since: None,
        listeners: [("operators".to_owned(), "127.0.0.1:8081".to_owned())].into(),
        rates: Rates {
            until: at,
            minutes: [(at, counts.clone())].into(),
            slots: [(at - SLOT, counts)].into(),
        },
    }
}

async fn tell(store: &Arc<dyn Store>, own: Option<&Said>, others: &[Said], ended: &[Uuid], life: Duration) {
    let telling = Telling { own: own.cloned(), others: others.to_vec(), ended: ended.to_vec(), life };
    store.tell(&telling).await.unwrap();
}

async fn alive(store: &Arc<dyn Store>) -> Vec<Said> {
    store.processes().await.unwrap().into_iter().map(|row| row.said).collect()
}

contract! {
    a_process_is_alive_as_long_as_what_it_said_counts
    what_came_through_the_queue_takes_nobodys_place
    rows_that_came_through_the_queue_are_few
    a_process_that_is_gone_for_a_day_is_forgotten
    open_letters_are_told_by_their_age
    a_status_asks_the_database_three_questions_at_a_time
}

async fn a_process_is_alive_as_long_as_what_it_said_counts(home: Arc<Home>) {
    let store = home.store().await;
    let mut worker = said(&[Role::Worker, Role::Api]);
    tell(&store, Some(&worker), &[], &[], LIFE).await;
    let rows = store.processes().await.unwrap();
    let [ProcessRow { said: known, seen_at, expires_at, read_at }] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!(*known, worker);
    assert!((29_900..=30_100).contains(&(expires_at - seen_at)) && read_at >= seen_at);
    assert!((now() - seen_at).abs() < 60_000);

    worker.paused = Some("the database is\naway".repeat(100));
    worker.paused_since = Some(worker.told_at);
    worker.held = None;
    worker.told_at += 5_000;
    let mut other = said(&[Role::Worker]);
    other.started_at -= 1;
    tell(&store, Some(&worker), &[], &[], LIFE).await;
    tell(&store, Some(&other), &[], &[], Duration::from_millis(500)).await;
    let known = alive(&store).await;
    assert_eq!(known.iter().map(|said| said.id).collect::<Vec<_>>(), [other.id, worker.id]);
    assert_eq!((known[1].held, known[1].paused_since), (None, Some(worker.told_at - 5_000)));
    let paused = known[1].paused.as_ref().unwrap();
    assert!(paused.len() <= 300 && !paused.contains('\n'));
    let gone = async {
        while alive(&store).await.len() > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the other is gone");
    // It was only slow.
    tell(&store, Some(&other), &[], &[], LIFE).await;
    assert_eq!(alive(&store).await.len(), 2);
    store.leave(worker.id).await.unwrap();
    assert_eq!(alive(&store).await, [other]);
    assert_eq!(home.number("SELECT count(*) FROM processes").await, 1);
}

async fn what_came_through_the_queue_takes_nobodys_place(home: Arc<Home>) {
    let store = home.store().await;
    let worker = said(&[Role::Worker]);
    let mut ingress = said(&[Role::Ingress]);
    ingress.held = None;
    tell(&store, Some(&worker), std::slice::from_ref(&ingress), &[], LIFE).await;
    // Somebody says that it is the worker, in both ways, and that the worker ends.
    let mut forged = said(&[Role::Ingress]);
    forged.id = worker.id;
    forged.told_at += 60_000;
    let claims = Said { roles: vec![Role::Worker], ..said(&[]) };
    tell(&store, None, &[forged, claims], &[worker.id, Uuid::now_v7()], LIFE).await;
    let ids = |all: &[Said]| all.iter().map(|said| (said.id, said.roles.clone())).collect::<BTreeMap<_, _>>();
    let expected = [(worker.id, vec![Role::Worker]), (ingress.id, vec![Role::Ingress])];
    assert_eq!(ids(&alive(&store).await), expected.into());
    // The queue delivers out of order.
    let newer = Said { told_at: ingress.told_at + 5_000, pid: 8, ..ingress.clone() };
    tell(&store, None, std::slice::from_ref(&newer), &[], LIFE).await;
    tell(&store, None, std::slice::from_ref(&ingress), &[], LIFE).await;
    assert!(alive(&store).await.contains(&newer));
    tell(&store, None, &[], &[ingress.id], LIFE).await;
    assert_eq!(alive(&store).await, [worker]);
}

async fn rows_that_came_through_the_queue_are_few(home: Arc<Home>) {
    let store = home.store().await;
    let many = |count: usize| (0..count).map(|_| said(&[Role::Ingress])).collect::<Vec<_>>();
    let first = many(990);
    tell(&store, None, &first, &[], LIFE).await;
    tell(&store, None, &many(100), &[], LIFE).await;
    assert_eq!(alive(&store).await.len(), 1_000);
    // Those that are known may go on, and a worker is never one too many.
    let on = Said { pid: 9, ..first[0].clone() };
    let worker = said(&[Role::Worker]);
    tell(&store, Some(&worker), &[vec![on.clone()], many(5)].concat(), &[], LIFE).await;
    let known = alive(&store).await;
    assert!(known.len() == 1_001 && known.contains(&on) && known.contains(&worker));
    // Whoever is gone makes room.
    home.sql("UPDATE processes SET expires_at = '2020-01-01T00:00:00.000Z' WHERE roles = 'ingress'").await;
    tell(&store, None, &many(5), &[], LIFE).await;
    assert_eq!(alive(&store).await.len(), 6);
}

async fn a_process_that_is_gone_for_a_day_is_forgotten(home: Arc<Home>) {
    let store = home.store().await;
    let all = [said(&[Role::Worker]), said(&[Role::Worker]), said(&[Role::Worker])];
    for one in &all {
        tell(&store, Some(one), &[], &[], LIFE).await;
    }
    for (id, hours) in [(all[0].id, 25), (all[1].id, 23)] {
        let at = headcount::time::rfc3339(now() - hours * 3_600_000);
        home.sql(&format!("UPDATE processes SET expires_at = '{at}' WHERE id = '{id}'")).await;
    }
    let day = Duration::from_secs(86_400);
    let retention = Retention { inbox: day, dead: day, sessions: day, rejections: day };
    assert_eq!(store.prune(&retention, 100).await.unwrap().rows, 1);
    assert_eq!(home.number("SELECT count(*) FROM processes").await, 2);
    assert_eq!(alive(&store).await, all[2..]);
}

async fn open_letters_are_told_by_their_age(home: Arc<Home>) {
    let store = home.store().await;
    let hour = now() - 3_600_000;
    assert_eq!(store.fresh_letters(hour).await.unwrap(), Default::default());
    let letter = |n: i64| Captured {
        message_id: format!("msg_{n}"),
        origin: Origin::Webhook,
        round: 0,
        event_type: "user.created".into(),
        clerk_id: None,
        reason: "rejected".into(),
        detail: "no".into(),
        attempts: 1,
        first_seen: hour,
        died_at: hour - 1_000 + n * 1_000,
        group: "rejected: no".into(),
        headers: BTreeMap::new(),
        body: "{}".into(),
    };
    store.capture(&[letter(0), letter(1), letter(2)]).await.unwrap();
    let fresh = store.fresh_letters(hour).await.unwrap();
    assert_eq!((fresh.since, fresh.oldest_open), (2, Some(hour - 1_000)));
    let by = Actor { name: "ann".into(), note: None };
    assert_eq!(store.discard(&Filter::default(), 100, &by).await.unwrap(), 3);
    assert_eq!(store.fresh_letters(hour).await.unwrap(), Default::default());
}

async fn a_status_asks_the_database_three_questions_at_a_time(home: Arc<Home>) {
    let store = home.store().await;
    let read = {
        // Nobody gets to any table.
        let locked = match &home.backend {
            Backend::Postgres { schema, .. } => {
                let mut other = PgConnection::connect(&stores::server()).await.unwrap();
                let lock = format!(
                    "BEGIN; DO $$ DECLARE one text; BEGIN FOR one IN SELECT tablename FROM pg_tables \
                     WHERE schemaname = '{schema}' LOOP EXECUTE format('LOCK TABLE {schema}.%I', one); END LOOP; END $$"
                );
                sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut other).await.unwrap();
                Some((other, schema))
            }
            Backend::Sqlite { .. } => None,
        };
        let read = tokio::spawn(async move { OfStore::read(&store).await });
        if let Some((other, schema)) = locked {
            let wait = format!(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation IN \
                 (SELECT oid FROM pg_class WHERE relnamespace = '{schema}'::regnamespace)"
            );
            let three = async {
                while home.number(&wait).await != 3 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(3), three).await.expect("three questions wait");
            other.close().await.unwrap();
        }
        read.await.unwrap().unwrap()
    };
    assert_eq!((read.dead_letters.len(), read.processes.processes.len()), (4, 0));
}

/// What a process says of all.
async fn told(process: &Process) -> Value {
    process.told("/api/v1/processes").await
}

fn roles(told: &Value) -> Vec<String> {
    // Nothing before the tables are there.
    let all = told["processes"].as_array().into_iter().flatten();
    let mut roles: Vec<String> = all.map(|one| one["roles"].to_string()).collect();
    roles.sort();
    roles
}

fn sum(told: &Value, kind: &str) -> u64 {
    told["rates"]["minutes"].as_array().unwrap().iter().map(|minute| minute[kind].as_u64().unwrap()).sum()
}

/// What everybody said counts no longer.
async fn expire(world: &World) {
    world.sql("UPDATE processes SET expires_at = '2020-01-01T00:00:00.000Z'").await;
}

async fn processes_are_seen_as_they_come_count_die_and_go(backends: Backends) {
    let world = World::new(backends);
    assert!(world.run(&["migrate"]).status.success());
    let (first, second) = (world.start(&["worker"]), world.start(&["worker"]));
    let ingress = world.start(&["ingress"]);
    let three = [r#"["ingress"]"#, r#"["worker"]"#, r#"["worker"]"#];
    eventually("all are seen", async || roles(&told(&first).await) == three).await;
    let poster = ingress.poster();
    for n in 0..30 {
        let body = Person::of(format!("user_{n}"), now()).event("user.created", now());
        assert_eq!(poster.post(&format!("msg_{n}"), body.into()).await.unwrap(), 202);
    }
    let counted = async || {
        let told = told(&first).await;
        (sum(&told, "received"), sum(&told, "applied"), sum(&told, "died")) == (30, 30, 0)
    };
    eventually("what they counted is summed", counted).await;
    let now = told(&first).await;
    assert!(now["rates"]["lag_p99_ms"].as_u64().is_some(), "{now}");
    assert_eq!(now["versions"], json!([env!("CARGO_PKG_VERSION")]));
    let of_ingress =
        now["processes"].as_array().unwrap().iter().find(|one| one["roles"] == json!(["ingress"]));
    let of_ingress = of_ingress.unwrap();
    assert_eq!((&of_ingress["pid"], &of_ingress["held"]), (&json!(ingress.id()), &Value::Null));
    assert!(
        ingress.webhooks.as_ref().unwrap().contains(of_ingress["listeners"]["ingress"].as_str().unwrap())
    );
    let status: Value = serde_json::from_slice(&world.run(&["status", "--json"]).stdout).unwrap();
    let verdict = status["verdict"]["text"].as_str().unwrap();
    assert_eq!(status["verdict"]["level"], "well", "{status}");
    assert!(verdict.starts_with("Everything that came in is applied. lag p99 "), "{verdict}");
    assert!(verdict.ends_with(" · 0 open letters · 1 ingress, 2 workers"), "{verdict}");
    let shown = String::from_utf8(world.run(&["status"]).stdout).unwrap();
    assert!(shown.starts_with("Everything that came in is applied. "), "{shown}");

    // One is killed: the others say again that they are there, and it does not.
    let killed = second.id();
    second.kill();
    expire(&world).await;
    eventually("the others are seen again", async || roles(&told(&first).await) == three[..2]).await;
    assert!(!told(&first).await.to_string().contains(&format!("\"pid\":{killed},")));
    // Those that end in order are forgotten at once.
    ingress.stop();
    eventually("the ingress is forgotten", async || roles(&told(&first).await) == three[1..2]).await;
    let ended = first.id();
    first.stop();
    let left = world.texts("SELECT CAST(pid AS text) FROM processes").await;
    assert!(left.contains(&Some(killed.to_string())), "{left:?}");
    assert!(!left.contains(&Some(ended.to_string())), "{left:?}");
    world.clean_up().await;
}

async fn hostile_notices_in_the_queue_of_samples_are_harmless(backends: Backends) {
    let world = World::new(backends);
    let up = world.start(&["up"]);
    eventually("it is seen", async || roles(&told(&up).await).len() == 1).await;
    assert_eq!(roles(&told(&up).await), [r#"["ingress","worker"]"#]);
    let own = told(&up).await["processes"][0]["id"].as_str().unwrap().to_owned();
    let notice = |id: &str, more: Value| {
        let mut process = json!({
            "id": id, "version": "9\u{1b}[2J\n".repeat(50), "host": "h\u{202e}".repeat(50), "pid": 4_000_000_000_u32,
            "started_at": i64::MIN, "told_at": i64::MAX, "listeners": {"x\n": "y\u{7}"},
            "rates": r#"{"until":1,"minutes":[[1,18446744073709551615]],"slots":[]}"#,
        });
        process.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        format!(r#"{{"process":{process}}}"#)
    };
    let queue = world.queue().await;
    queue.ready().await.unwrap();
    queue.sample(notice(&own, json!({})).into());
    queue.sample(notice(&own, json!({"ended": true})).into());
    queue.sample(notice(&Uuid::now_v7().to_string(), json!({"roles": ["worker"]})).into());
    for text in [r#"{"process":"#, r#"{"process":{}}"#, "{}", "\0"] {
        queue.sample(text.into());
    }
    let sample = Rejected::bounded(now(), "192.0.2.1", "no_matching_signature", []);
    queue.sample(serde_json::to_vec(&sample).unwrap().into());
    let store = world.store().await;
    eventually("the sample is kept", async || store.newest(10).await.is_ok_and(|all| all.len() == 1)).await;
    eventually("whoever says so is an ingress", async || roles(&told(&up).await).len() == 2).await;
    let known = told(&up).await;
    assert_eq!(roles(&known), [r#"["ingress","worker"]"#, r#"["ingress"]"#]);
    for one in known["processes"].as_array().unwrap() {
        let texts = [&one["version"], &one["host"], &one["listeners"]].map(Value::to_string);
        assert!(
            texts.iter().all(|text| text.len() < 200 && !text.contains("\\u001b") && !text.contains("\\n")),
            "{one}"
        );
    }
    assert!(sum(&known, "received") == 0, "{known}");
    let shown = String::from_utf8(world.run(&["status"]).stdout).unwrap();
    assert!(shown.lines().all(|line| !line.contains(is_hidden)), "{shown}");
    assert!(!up.log().contains("ERROR"), "{}", up.log());
    store.close().await;
    queue.close().await;
    up.stop();
    world.clean_up().await;
}

async fn an_ingress_pushes_no_samples_out_while_nobody_takes_them(backends: Backends) {
    let world = World::new(backends);
    assert!(world.run(&["migrate"]).status.success());
    let queue = world.queue().await;
    queue.ready().await.unwrap();
    let waiting = async || {
        let depths = queue.depths().await.unwrap_or_default();
        depths.iter().find(|depth| depth.queue == "rejections").map_or(0, |depth| depth.messages)
    };
    let sample = Rejected::bounded(now(), "192.0.2.1", "no_matching_signature", []);
    for _ in 0..120 {
        queue.sample(serde_json::to_vec(&sample).unwrap().into());
    }
    eventually("the samples wait", async || waiting().await == 120).await;
    let ingress = world.start(&["ingress"]);
    // Two times to speak.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(waiting().await, 120);
    let worker = world.start(&["worker"]);
    eventually("it speaks again", async || roles(&told(&worker).await).len() == 2).await;
    let store = world.store().await;
    assert_eq!(store.newest(1000).await.unwrap().len(), 120);
    store.close().await;
    queue.close().await;
    ingress.stop();
    worker.stop();
    world.clean_up().await;
}

/// Whether it is drawn as it has to be: the alternate screen is entered once and left at the end, and every frame fits.
fn frames(shown: &str, columns: usize, lines: usize) -> Vec<Vec<String>> {
    let mut frames = Vec::new();
    for frame in shown.split("\u{1b}[H").skip(1) {
        let Some((frame, _)) = frame.split_once("\u{1b}[?2026l") else { continue };
        // The terminal shows what is typed.
        let frame = frame.replace("^C", "").replace('\r', "").replace("\n\u{1b}[J", "");
        let all: Vec<String> = frame.split('\n').map(|line| line.replace("\u{1b}[K", "")).collect();
        assert!(all.len() <= lines, "{all:#?}");
        for line in &all {
            assert!(width(line) <= columns && !line.contains(is_hidden), "{line:?}");
        }
        frames.push(all);
    }
    frames
}

fn ends_in_order(terminal: Terminal) -> String {
    let (status, shown) = terminal.end();
    assert_eq!(status.code(), Some(0), "{shown}");
    assert!(shown.trim_end().ends_with("\u{1b}[?25h\u{1b}[?1049l"), "{shown:?}");
    shown
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_while_the_database_is_away() {
    let mut database = Server::postgres();
    let world = World::on(None, Some(database.url()));
    let up = world.start(&["up"]);
    assert_eq!(
        up.poster()
            .post("msg_1", Person::of("user_1", now()).event("user.created", now()).into())
            .await
            .unwrap(),
        202
    );
    for (columns, lines, begins) in
        [(80, 24, "Everything that came in is applied."), (40, 24, "Everything that came in is applied.")]
    {
        let arguments = ["status", "--watch", "--every", "200ms"];
        let mut watch = world.on_terminal_of(&arguments, columns, lines);
        watch.until("\u{1b}[?1049h\u{1b}[?25l");
        watch.until(begins);
        watch.until("users      1 live, 0 deleted");
        database.kill();
        watch.forget();
        let shown = watch.until("database   no answer from the databa");
        assert!(shown.contains("trouble: No answer from the database"), "{shown}");
        assert!(shown.contains("queues     0 events"), "{shown}");
        database.start();
        watch.forget();
        watch.until(begins);
        match columns {
            80 => watch.type_in("\u{3}"),
            _ => signal(watch.id(), "TERM"),
        }
        let shown = ends_in_order(watch);
        let all = frames(&shown, usize::from(columns), usize::from(lines));
        assert!(!all.is_empty());
        assert!(all.last().unwrap()[0].starts_with("headcount at "), "{all:?}");
    }
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_while_the_queue_is_away() {
    let mut broker = Server::rabbitmq();
    let world = World::on(Some(broker.url()), None);
    let up = world.start(&["up"]);
    eventually("it is seen", async || roles(&told(&up).await).len() == 1).await;
    let mut watch = world.on_terminal_of(&["status", "--watch", "--every", "200ms"], 80, 24);
    watch.until("Everything that came in is applied.");
    broker.kill();
    watch.forget();
    let shown = watch.until("queues     no answer from the queue since");
    assert!(shown.contains("trouble: "), "{shown}");
    assert!(shown.contains("users      0 live, 0 deleted"), "{shown}");
    broker.start();
    watch.forget();
    watch.until("Everything that came in is applied.");
    watch.type_in("\u{3}");
    assert!(!frames(&ends_in_order(watch), 80, 24).is_empty());
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_leaves_the_terminal_as_it_was_where_it_cannot_begin() {
    let world = World::new(Backends::Embedded);
    let mut watch = world.on_terminal_of(&["status", "--watch"], 80, 24);
    watch.until("error");
    let (status, shown) = watch.end();
    assert_eq!(status.code(), Some(1));
    let (entered, left) = (shown.matches("\u{1b}[?1049h").count(), shown.matches("\u{1b}[?1049l").count());
    assert_eq!(entered, left, "{shown:?}");
}

async fn a_watch_in_a_pipe_is_blocks_without_control_codes_until_its_reader_goes(backends: Backends) {
    let world = World::new(backends);
    let up = world.start(&["up"]);
    eventually("all is well", async || up.told("/api/v1/status").await["verdict"]["level"] == "well").await;
    eventually("it is seen", async || roles(&told(&up).await).len() == 1).await;
    let (reader, writer) = std::io::pipe().unwrap();
    let mut watch = world.piped(&["status", "--watch", "--every", "100ms"], writer);
    let mut lines = BufReader::new(reader).lines();
    let mut blocks: Vec<Vec<String>> = vec![Vec::new()];
    while blocks.len() < 4 {
        let line = lines.next().unwrap().unwrap();
        assert!(!line.contains(is_hidden), "{line:?}");
        if line.starts_with("headcount at ") && !blocks.last().unwrap().is_empty() {
            assert_eq!(
                blocks.last_mut().unwrap().pop().as_deref(),
                Some(""),
                "a blank line between two blocks"
            );
            blocks.push(Vec::new());
        }
        blocks.last_mut().unwrap().push(line);
    }
    for block in &blocks[..3] {
        assert!(block[1].starts_with("Everything that came in is applied."), "{block:#?}");
        assert!(block.iter().any(|line| line.starts_with("ingress,worker")), "{block:#?}");
    }
    drop(lines);
    let status = tokio::task::spawn_blocking(move || watch.wait().unwrap()).await.unwrap();
    assert_eq!(status.code(), Some(0));
    up.stop();
    world.clean_up().await;
}

/// Runs each case in files and on servers.
macro_rules! on_both {
    ($($case:ident)+) => {
        mod in_files {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(super::Backends::Embedded).await;
            })+
        }
        mod on_servers {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(super::Backends::RabbitPostgres).await;
            })+
        }
    };
}

on_both! {
    processes_are_seen_as_they_come_count_die_and_go
    hostile_notices_in_the_queue_of_samples_are_harmless
    an_ingress_pushes_no_samples_out_while_nobody_takes_them
    a_watch_in_a_pipe_is_blocks_without_control_codes_until_its_reader_goes
}
