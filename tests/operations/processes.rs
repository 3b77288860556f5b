//! Replays across real processes: killed, paused, halted, on the embedded backends and on servers. Each letter takes effect once.

use std::{collections::BTreeSet, process::Output, sync::Arc, time::Duration};

use bytes::Bytes;
use headcount::{
    clerk::made_up::Person,
    letters::operations::NewReplay,
    message::{Message, MessageId, Origin},
    net::Client,
    queue::{Action, Burial, Queue, Reason, Settlement, Source},
    store::{
        Store,
        letters::{Actor, Filter, Page, Status},
        operations::{Operation, State},
    },
    time::now,
};
use uuid::Uuid;

use crate::support::{
    eventually,
    process::{Backends, Process, World},
};

const BOTH: [Backends; 2] = [Backends::Embedded, Backends::RabbitPostgres];

fn message(n: usize, refused: &BTreeSet<usize>) -> Message {
    let born = now() - 3_600_000;
    let mut sample = Person::of(format!("user_{n}"), born);
    sample.email = Some(format!("user_{n}@example.com"));
    sample.username = Some(if refused.contains(&n) { "refused".into() } else { format!("name_{n}") });
    Message {
        id: MessageId::parse(&format!("msg_{n}")).unwrap(),
        origin: Origin::Webhook,
        event_type: "user.created".into(),
        received_at: now(),
        attempt: 0,
        waits: 0,
        round: 0,
        traceparent: None,
        body: Bytes::from(sample.event("user.created", born)),
    }
}

/// Buries so many messages, as a worker would, in their order.
async fn bury(queue: &Arc<dyn Queue>, letters: usize, refused: &BTreeSet<usize>) {
    for n in 0..letters {
        queue.publish(message(n, refused)).await.unwrap();
        if (n + 1) % 200 == 0 || n + 1 == letters {
            let subscription = queue.subscribe(Source::Events, 500).await.unwrap();
            for _ in 0..=(n % 200) {
                let delivery = subscription.next().await.unwrap();
                let burial = Burial { reason: Reason::Rejected, detail: "house rule".to_owned() };
                subscription.settle(vec![Settlement { delivery, action: Action::Bury(burial) }]).await;
            }
            subscription.cancel().await;
        }
    }
}

/// A world with so many open letters, of whose users the application's database refuses some.
async fn world(
    backends: Backends,
    letters: usize,
    refused: impl IntoIterator<Item = usize>,
) -> (World, Arc<dyn Store>) {
    let mut world = World::new(backends);
    world.set("USER", "tester");
    assert!(world.run(&["migrate"]).status.success());
    let refused: BTreeSet<usize> = refused.into_iter().collect();
    let queue = world.queue().await;
    bury(&queue, letters, &refused).await;
    queue.close().await;
    world
        .sql(match world.is_on_postgres() {
            true => "ALTER TABLE users ADD CONSTRAINT house_rule CHECK (username <> 'refused')",
            false => {
                "CREATE TABLE house (name TEXT CHECK (name <> 'refused')); \
                 CREATE TRIGGER house_rule BEFORE INSERT ON users BEGIN INSERT INTO house VALUES (NEW.username); END"
            }
        })
        .await;
    let store = world.store().await;
    (world, store)
}

async fn until_open(store: &Arc<dyn Store>, letters: u64) {
    eventually("the letters are captured", async || {
        store.statuses().await.is_ok_and(|all| all.get(&Status::Open).copied().unwrap_or_default() == letters)
    })
    .await;
}

fn ramp(open: usize, rate: Option<f64>) -> NewReplay {
    NewReplay {
        filter: Filter { status: Some(Status::Open), ..Filter::default() },
        limit: 10_000,
        rate,
        halt_at: Some(0.1),
        by: Actor { name: "ann".into(), note: None },
        open: open as u64,
        warnings: Vec::new(),
    }
}

async fn operation(store: &Arc<dyn Store>, id: Uuid) -> Operation {
    store.operation(id).await.unwrap().unwrap()
}

async fn until(store: &Arc<dyn Store>, id: Uuid, what: &str, so: impl Fn(&Operation) -> bool) -> Operation {
    eventually(what, async || so(&operation(store, id).await)).await;
    operation(store, id).await
}

/// Which of them has taken the replay.
fn taker(processes: &[Process], id: Uuid) -> Option<usize> {
    processes.iter().position(|process| process.log().contains(&format!("replay {id} goes on")))
}

async fn each_took_effect_once(world: &World, store: &Arc<dyn Store>, letters: usize) {
    let page = Page { limit: 10_000, after: None };
    let all = store.list(&Filter::default(), &page).await.unwrap();
    assert_eq!(all.len(), letters);
    assert!(all.iter().all(|letter| (letter.status, letter.round) == (Status::Applied, 1)), "{all:?}");
    assert_eq!(world.users().await.len(), letters);
}

async fn post(process: &Process, path: &str, body: &str) -> serde_json::Value {
    let url = format!("{}/api/v1{path}", process.operators.trim_end_matches('/'));
    let request = http::Request::post(url).header("content-type", "application/json");
    let request = request.body(Bytes::copy_from_slice(body.as_bytes()).into()).unwrap();
    let (status, body) = Client::http().send(request, Duration::from_secs(10), 1 << 20).await.unwrap();
    let body = body.unwrap();
    assert!(status.is_success(), "{status} {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ramp_whose_process_is_killed_is_finished_by_another() {
    for backends in BOTH {
        let (world, store) = world(backends, 300, []).await;
        let mut processes = vec![world.start(&["worker"]), world.start(&["worker"])];
        until_open(&store, 300).await;
        let id = store.begin_operation(&ramp(300, Some(60.0)).operation(None)).await.unwrap().unwrap().id;
        until(&store, id, "it is in the last step", |it| it.step.number == 3 && it.claimed > 130).await;
        let first = taker(&processes, id).unwrap();
        processes.remove(first).kill();
        let killed = operation(&store, id).await;
        assert_eq!(killed.state, State::Running);
        assert!(killed.claimed < 300, "it was quicker than the test");
        let ended = until(&store, id, "another one ends it", |it| it.state.is_over()).await;
        assert_eq!((ended.state, ended.claimed, ended.published), (State::Complete, 300, 300), "{ended:?}");
        assert_eq!((ended.applied, ended.died), (300, 0));
        assert!(taker(&processes, id).is_some(), "{}", processes[0].log());
        each_took_effect_once(&world, &store, 300).await;
        store.close().await;
        processes.remove(0).stop();
        world.clean_up().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ramp_stops_by_itself_when_too_many_die_again() {
    for backends in BOTH {
        // The first letter and seven of the next ten take effect.
        let (world, store) = world(backends, 50, [3, 5, 7]).await;
        let worker = world.start(&["worker"]);
        until_open(&store, 50).await;
        let id = store.begin_operation(&ramp(50, None).operation(None)).await.unwrap().unwrap().id;
        let ended = until(&store, id, "it ends", |it| it.state.is_over()).await;
        assert_eq!((ended.state, ended.claimed), (State::Halted, 11), "{ended:?}");
        let why = ended.detail.unwrap();
        assert!(why.contains("of the 10 letters of this step died again; at most 10 % may"), "{why}");
        // Of the others nothing was published.
        eventually("the rest of the step is settled", async || {
            store.outcomes(id, true).await.unwrap().under_way == 0
        })
        .await;
        let outcomes = store.outcomes(id, true).await.unwrap();
        assert_eq!((outcomes.applied, outcomes.died), (8, 3));
        assert_eq!(store.statuses().await.unwrap()[&Status::Open], 42);
        store.close().await;
        worker.stop();
        world.clean_up().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ramp_is_paused_by_one_process_and_resumed_by_another() {
    for backends in BOTH {
        let (world, store) = world(backends, 200, []).await;
        let mut processes = vec![world.start(&["worker"]), world.start(&["worker"])];
        until_open(&store, 200).await;
        let order = r#"{"filter": {"all": true}, "rate": 40, "ramp": true}"#;
        let started = post(&processes[0], "/dead/replay", order).await;
        let id: Uuid = started["id"].as_str().unwrap().parse().unwrap();
        until(&store, id, "it is on its way", |it| it.claimed > 15).await;
        let place = format!("/dead/operations/{id}");
        post(&processes[0], &format!("{place}/pause"), "{}").await;
        let paused = until(&store, id, "it is paused", |it| it.state == State::Paused).await;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let still = operation(&store, id).await;
        assert_eq!((still.claimed, still.state), (paused.claimed, State::Paused));
        assert!(still.claimed < 200, "it was quicker than the test");
        // The process that held it goes; the wish stays.
        processes.remove(0).stop();
        assert_eq!(operation(&store, id).await.state, State::Paused);
        let resumed = post(&processes[0], &format!("{place}/resume"), "{}").await;
        assert_eq!(resumed["wish"], "run");
        let ended = until(&store, id, "it ends", |it| it.state.is_over()).await;
        assert_eq!((ended.state, ended.claimed, ended.applied), (State::Complete, 200, 200), "{ended:?}");
        each_took_effect_once(&world, &store, 200).await;
        store.close().await;
        processes.remove(0).stop();
        world.clean_up().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_never_run_one_replay_and_a_restart_goes_on_at_once() {
    for backends in BOTH {
        let (world, store) = world(backends, 150, []).await;
        let mut processes = vec![world.start(&["worker"]), world.start(&["worker"])];
        until_open(&store, 150).await;
        let id = store.begin_operation(&ramp(150, Some(30.0)).operation(None)).await.unwrap().unwrap().id;
        until(&store, id, "it is on its way", |it| it.claimed > 20).await;
        let first = taker(&processes, id).unwrap();
        assert!(!processes[1 - first].log().contains(&id.to_string()), "both run it");
        // A stop gives it back, so that nobody waits for the lease to end.
        processes.remove(first).stop();
        let left = operation(&store, id).await;
        assert!(matches!(left.state, State::Running), "{left:?}");
        assert!(store.unpublished(id, 1).await.unwrap().is_empty(), "a stop finishes what it has claimed");
        let ended = until(&store, id, "the other one ends it", |it| it.state.is_over()).await;
        assert_eq!((ended.state, ended.claimed, ended.applied), (State::Complete, 150, 150), "{ended:?}");
        each_took_effect_once(&world, &store, 150).await;
        store.close().await;
        processes.remove(0).stop();
        world.clean_up().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_of_the_pipeline_halts_no_ramp() {
    let (world, store) = world(Backends::EmbeddedPostgres, 30, []).await;
    let worker = world.start(&["worker"]);
    until_open(&store, 30).await;
    // Whoever applies a message waits for this: nothing takes effect meanwhile.
    world.sql("CREATE FUNCTION stuck() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION USING ERRCODE = '57P03'; END $$; \
               CREATE TRIGGER stuck BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION stuck()").await;
    let id = store.begin_operation(&ramp(30, None).operation(None)).await.unwrap().unwrap().id;
    until(&store, id, "one is under way", |it| it.claimed == 1).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let waits = operation(&store, id).await;
    assert_eq!((waits.state, waits.claimed), (State::Running, 1), "{waits:?}");
    world.sql("DROP TRIGGER stuck ON users").await;
    let ended = until(&store, id, "it ends", |it| it.state.is_over()).await;
    assert_eq!((ended.state, ended.applied), (State::Complete, 30), "{ended:?}");
    store.close().await;
    worker.stop();
    world.clean_up().await;
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_ramps_and_tells_each_step() {
    for backends in BOTH {
        let (world, store) = world(backends, 120, [115]).await;
        let worker = world.start(&["worker"]);
        until_open(&store, 120).await;
        let run = world.run(&[
            "dead",
            "replay",
            "--all",
            "--ramp",
            "--halt-at",
            "20%",
            "--yes",
            "--note",
            "mended",
        ]);
        assert!(run.status.success(), "{run:?}");
        let said = stderr(&run);
        let steps = "step 1 of 4: 1 letter published, 1 applied\nstep 2 of 4: 10 letters published, 10 applied\n\
                     step 3 of 4: 100 letters published, 100 applied\nstep 4 of 4: 9 letters published, 8 applied, 1 died again\n";
        assert_eq!(said, steps);
        let told = String::from_utf8(run.stdout).unwrap();
        assert!(told.contains("outcome: 119 applied, 1 died again"), "{told}");

        // The one that died again is the first letter of the next ramp.
        let run = world.run(&["dead", "replay", "--all", "--ramp", "--yes"]);
        assert_eq!(run.status.code(), Some(1), "{run:?}");
        let said = stderr(&run);
        assert!(
            said.contains("error: the replay stopped by itself: the first letter died again\n"),
            "{said}"
        );
        assert!(said.contains("hint: why they died again: headcount dead list\n"), "{said}");
        assert!(said.contains("go on: headcount dead replay --all --ramp --yes\n"), "{said}");

        let log = world.run(&["operations", "--json", "--kind", "replay"]);
        let log: serde_json::Value = serde_json::from_slice(&log.stdout).unwrap();
        let rows = log["operations"].as_array().unwrap();
        let told = |n: usize| (rows[n]["state"].as_str().unwrap(), rows[n]["who"].as_str().unwrap());
        assert_eq!((rows.len(), told(0), told(1)), (2, ("halted", "tester"), ("complete", "tester")));
        assert_eq!((rows[1]["note"].as_str(), rows[1]["died"].as_u64()), (Some("mended"), Some(1)));
        let table = String::from_utf8(world.run(&["operations"]).stdout).unwrap();
        assert!(table.contains("halted, 1 of 1, 1 died again: the first letter died again"), "{table}");
        store.close().await;
        worker.stop();
        world.clean_up().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_stops_a_ramp_in_order_and_a_killed_command_is_finished_by_a_worker() {
    for backends in BOTH {
        let (world, store) = world(backends, 200, []).await;
        let worker = world.start(&["worker"]);
        until_open(&store, 200).await;
        let replay = ["dead", "replay", "--all", "--ramp", "--rate", "40/s", "--yes"];
        let newest = async || store.replays(10).await.unwrap().into_iter().next();
        let on_its_way = async |least: u64| {
            eventually("it is on its way", async || {
                newest().await.is_some_and(|it| !it.state.is_over() && it.claimed >= least)
            })
            .await;
        };
        let run = world.begin(&replay);
        on_its_way(15).await;
        run.signal("INT");
        let output = run.end();
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("error: interrupted\n"), "{output:?}");
        let stopped = newest().await.unwrap();
        assert_eq!(stopped.state, State::Stopped);
        assert!(store.unpublished(stopped.id, 1).await.unwrap().is_empty());

        let run = world.begin(&replay);
        on_its_way(15).await;
        run.kill();
        let killed = newest().await.unwrap();
        let ended = until(&store, killed.id, "a worker ends it", |it| it.state.is_over()).await;
        assert_eq!((ended.state, ended.claimed), (State::Complete, 200 - stopped.claimed), "{ended:?}");
        each_took_effect_once(&world, &store, 200).await;
        store.close().await;
        worker.stop();
        world.clean_up().await;
    }
}
