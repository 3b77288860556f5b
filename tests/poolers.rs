//! A real PgBouncer between headcount and PostgreSQL lends each transaction another session. Workers of two schemas share its
//! sessions, and nothing of one schema gets into the other.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::{process::Command, time::Duration};

use headcount::{
    clerk::made_up::Person,
    store::sync::{Holder, NewRun, Seen, SeenBy, Taken},
    time::now,
};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use support::{
    PATIENCE, eventually,
    process::{Process, World},
    servers::{self, Server, url},
    traffic::{metric, steady},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Webhooks of each schema, before repeats.
const WEBHOOKS: u64 = 150;

fn pgbouncer(options: &str) -> Server {
    Server::pgbouncer(&url("TEST_DATABASE_URL"), options)
}

/// Whether this PgBouncer keeps its clients' prepared statements apart (since 1.21).
fn tracks_statements() -> bool {
    let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap());
    let said = Command::new("pgbouncer").env("PATH", path).arg("--version").output().unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    let version = said.split_whitespace().nth(1).unwrap();
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (1, 21)
}

/// Asks the server for one number, without the pooler.
async fn number(statement: &str) -> i64 {
    let mut connection = PgConnection::connect(&url("TEST_DATABASE_URL")).await.unwrap();
    sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&mut connection).await.unwrap()
}

fn succeeds(world: &World, arguments: &[&str]) -> String {
    let output = world.run(arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {out}{err}");
    out.into_owned()
}

/// An application of its own: a schema, a queue, an ingress and two workers.
struct Application {
    name: &'static str,
    schema: String,
    world: World,
    ingress: Process,
    workers: [Process; 2],
}

impl Application {
    fn start(name: &'static str, pooler: &Server) -> Self {
        let world = World::on(Some(url("TEST_AMQP_URL")), Some(pooler.url()));
        let schema = world.schema().to_owned();
        succeeds(&world, &["migrate"]);
        let ingress = world.start(&["ingress"]);
        let workers = [world.start(&["worker"]), world.start(&["worker"])];
        Self { name, schema, world, ingress, workers }
    }

    /// Posts every webhook, and each third once more.
    async fn traffic(&self) {
        steady(self.ingress.poster(), self.name, WEBHOOKS, 150, PATIENCE).await;
        steady(self.ingress.poster(), self.name, WEBHOOKS / 3, 150, PATIENCE).await;
    }

    async fn all_is_applied(&self) {
        let (schema, name) = (&self.schema, self.name);
        eventually("everything is applied", async || {
            number(&format!("SELECT count(*) FROM {schema}.users")).await == WEBHOOKS as i64
        })
        .await;
        self.world.until_drained().await;
        let strangers =
            format!("SELECT count(*) FROM {schema}.users WHERE clerk_id NOT LIKE 'user\\_{name}\\_%'");
        assert_eq!(number(&strangers).await, 0);
        assert_eq!(number(&format!("SELECT count(*) FROM {schema}.inbox")).await, WEBHOOKS as i64);
        assert_eq!(number(&format!("SELECT count(*) FROM {schema}.dead_letters")).await, 0);
    }

    async fn nothing_was_out_of_order(&self) {
        for worker in &self.workers {
            assert_eq!(metric(worker, "headcount_paused").await, 0.0);
            let log = worker.log();
            assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
        }
    }

    /// A letter dies, is looked at and is replayed, and the doctor has nothing to say.
    async fn commands_work(&self) {
        let sample = Person::of(format!("user_{}_x", self.name), now());
        let body = String::from_utf8(sample.event("user.created", now())).unwrap();
        let broken = body.replace(&format!("\"user_{}_x\"", self.name), "7");
        self.ingress.poster().post("msg_broken", broken.into()).await.unwrap();
        eventually("it is dead", async || {
            number(&format!("SELECT count(*) FROM {}.dead_letters", self.schema)).await == 1
        })
        .await;
        assert!(succeeds(&self.world, &["dead", "list"]).contains("msg_broken"));
        succeeds(&self.world, &["dead", "replay", "--all", "--yes"]);
        let rounds = format!("SELECT max(round) FROM {}.dead_letters WHERE status = 'open'", self.schema);
        eventually("it died once more", async || {
            number(&format!("SELECT coalesce(({rounds}), 0)")).await == 1
        })
        .await;
        assert!(succeeds(&self.world, &["users", "list"]).contains("user_"));
        succeeds(&self.world, &["status"]);
        let said = succeeds(&self.world, &["doctor"]);
        assert!(said.contains("through a pooler"), "{said}");
    }

    async fn end(self) {
        self.ingress.stop();
        self.workers.into_iter().for_each(Process::stop);
        self.world.clean_up().await;
    }
}

async fn two_schemas_share_a_pooler(options: &str) {
    let pooler = pgbouncer(options);
    let apps = [Application::start("one", &pooler), Application::start("two", &pooler)];
    tokio::join!(apps[0].traffic(), apps[1].traffic());
    for app in &apps {
        app.all_is_applied().await;
        app.nothing_was_out_of_order().await;
        app.commands_work().await;
    }
    let stray = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(number(stray).await, 0, "nothing lands in another schema");
    for app in apps {
        app.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_transaction_mode_two_schemas_share_sessions_and_never_mix() {
    two_schemas_share_a_pooler("pool_mode=transaction default_pool_size=5").await;
}

/// Such a pooler takes a schema that a session should start with, and drops it.
#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_ignores_startup_parameters_mixes_no_schemas() {
    let statements = if tracks_statements() { " max_prepared_statements=100" } else { "" };
    let options =
        "pool_mode=transaction default_pool_size=5 ignore_startup_parameters=options,extra_float_digits";
    two_schemas_share_a_pooler(&format!("{options}{statements}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_session_mode_two_schemas_never_mix() {
    two_schemas_share_a_pooler("pool_mode=session default_pool_size=60").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_restarted_under_load_loses_nothing_and_is_used_again() {
    let mut pooler = pgbouncer("pool_mode=transaction default_pool_size=5");
    let app = Application::start("again", &pooler);
    let traffic = async { app.traffic().await };
    let restart = async {
        eventually("something is applied", async || {
            number(&format!("SELECT count(*) FROM {}.users", app.schema)).await > 10
        })
        .await;
        pooler.kill();
        pooler.start();
    };
    tokio::join!(traffic, restart);
    app.all_is_applied().await;
    app.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_ours_stays_in_a_session_that_others_get_next() {
    let pooler = pgbouncer("pool_mode=transaction default_pool_size=2");
    let app = Application::start("trace", &pooler);
    app.traffic().await;
    app.all_is_applied().await;
    nothing_is_left_in_two_sessions(&pooler).await;
    app.end().await;
}

async fn nothing_is_left_in_two_sessions(pooler: &Server) {
    let mut others = Vec::new();
    // Both sessions at once: each in a transaction of its own.
    for _ in 0..2 {
        let mut other = PgConnection::connect_with(&others_options(pooler)).await.unwrap();
        sqlx::raw_sql("BEGIN").execute(&mut other).await.unwrap();
        let left: (i64, String) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM pg_prepared_statements WHERE name <> ''), current_setting('search_path')",
        )
        .persistent(false)
        .fetch_one(&mut other)
        .await
        .unwrap();
        assert_eq!(left, (0, "\"$user\", public".into()));
        others.push(other);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tables_of_sync_are_used_through_shared_sessions() {
    let pooler = pgbouncer("pool_mode=transaction default_pool_size=2");
    let world = World::on(None, Some(pooler.url()));
    succeeds(&world, &["migrate"]);
    let stores = [world.store().await, world.store().await];
    let new =
        NewRun { instance_id: "ins_1".into(), who: "test".into(), dry_run: false, holder: uuid::Uuid::nil() };
    let run = stores[0].begin_run(&new).await.unwrap();
    let users = async |n: usize| {
        let (store, id) = (&stores[n % 2], format!("user_{n}"));
        let by = Holder { id: uuid::Uuid::now_v7(), host: "host".into(), process: "test".into() };
        let taken = store.take_lease("sync", &by, PATIENCE).await.unwrap();
        store.see(&run, &[Seen { clerk_id: id.clone(), message_id: Some(format!("m_{n}")) }]).await.unwrap();
        assert!(store.known(std::slice::from_ref(&id), &[]).await.unwrap().loaded.rows.is_empty());
        assert!(store.unseen(run.id, None, 10).await.unwrap().clerk_ids.is_empty());
        assert_eq!(store.saw_instance("ins_1", SeenBy::Sync).await.unwrap().owner.as_deref(), Some("ins_1"));
        matches!(taken, Taken::Ours)
    };
    let ours = futures_util::future::join_all((0..20).map(users)).await;
    assert_eq!(ours.into_iter().filter(|ours| *ours).count(), 1, "one has the lease");
    assert_eq!(stores[1].outstanding(run.id, 100).await.unwrap().len(), 20);
    nothing_is_left_in_two_sessions(&pooler).await;
    for store in stores {
        store.close().await;
    }
}

fn others_options(pooler: &Server) -> sqlx::postgres::PgConnectOptions {
    pooler.url().parse::<sqlx::postgres::PgConnectOptions>().unwrap().extra_float_digits(None)
}

/// A table that another client left in a session for the time of its own is no table of ours.
#[tokio::test(flavor = "multi_thread")]
async fn a_temporary_table_in_a_shared_session_stands_in_front_of_none_of_ours() {
    let pooler = pgbouncer("pool_mode=transaction default_pool_size=2");
    let mut others = Vec::new();
    for _ in 0..2 {
        let mut other = PgConnection::connect_with(&others_options(&pooler)).await.unwrap();
        sqlx::raw_sql("BEGIN; CREATE TEMPORARY TABLE users (LIKE pg_class)")
            .execute(&mut other)
            .await
            .unwrap();
        others.push(other);
    }
    for other in &mut others {
        sqlx::raw_sql("COMMIT").execute(other).await.unwrap();
    }
    let app = Application::start("temp", &pooler);
    app.traffic().await;
    app.all_is_applied().await;
    app.end().await;
}

fn is_refused(world: &World, command: &str, what: &str, hint: &str) {
    let output = world.run(&[command]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{command}: {said}");
    assert!(said.contains(what) && said.contains(hint), "{command}: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_work_is_refused_at_start() {
    let statement = pgbouncer("pool_mode=statement");
    let world = World::on(None, Some(statement.url()));
    for command in ["migrate", "worker", "up", "status"] {
        is_refused(&world, command, "statement pooling mode", "pool_mode = transaction");
    }
    let one = pgbouncer("pool_mode=session default_pool_size=1");
    let world = World::on(None, Some(one.url()));
    for command in ["migrate", "worker"] {
        is_refused(&world, command, "no second session of the database", "default_pool_size");
    }
}

/// Each of them would ask for a second session at its start, and hold one that the others wait for.
#[tokio::test(flavor = "multi_thread")]
async fn processes_that_start_at_once_do_not_take_a_small_pool_for_one_session() {
    let pooler = pgbouncer("pool_mode=transaction default_pool_size=2");
    let world = World::on(None, Some(pooler.url()));
    succeeds(&world, &["migrate"]);
    let running: Vec<_> = (0..8).map(|_| world.begin(&["migrate"])).collect();
    for command in running {
        let output = command.end();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    world.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_without_a_free_session_is_named_and_no_command_waits_long() {
    let pooler = pgbouncer("pool_mode=transaction default_pool_size=1");
    let mut other = PgConnection::connect_with(&others_options(&pooler)).await.unwrap();
    sqlx::raw_sql("BEGIN").execute(&mut other).await.unwrap();
    let world = World::on(None, Some(pooler.url()));
    let begun = std::time::Instant::now();
    is_refused(&world, "migrate", "had no session of the database free", "default_pool_size");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

/// A way to a server that can be cut, and puts `becomes` in the place of `text` in what clients send.
async fn way(port: u16, target: String, text: String, becomes: String) -> tokio::task::JoinHandle<()> {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    tokio::spawn(async move {
        // Whatever runs in it ends with it.
        let mut running = tokio::task::JoinSet::new();
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let (target, text, becomes) = (target.clone(), text.clone(), becomes.clone());
            running.spawn(async move {
                let Ok(server) = tokio::net::TcpStream::connect(target).await else { return };
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let there = async {
                    let mut buffer = vec![0; 64 * 1024];
                    loop {
                        let read = from_client.read(&mut buffer).await?;
                        if read == 0 {
                            return std::io::Result::Ok(());
                        }
                        // Of the same length, so that the message stays one.
                        for at in 0..read.saturating_sub(text.len()) {
                            if !text.is_empty() && buffer[at..].starts_with(text.as_bytes()) {
                                buffer[at..at + text.len()].copy_from_slice(becomes.as_bytes());
                            }
                        }
                        to_server.write_all(&buffer[..read]).await?;
                    }
                };
                tokio::select! {
                    _ = there => {}
                    _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
                }
            });
        }
    })
}

fn place(server: &str) -> String {
    let server = url::Url::parse(server).unwrap();
    format!("{}:{}", server.host_str().unwrap(), server.port().unwrap_or(5432))
}

/// Behaves like a pooler that ignores the search path.
#[tokio::test(flavor = "multi_thread")]
async fn a_search_path_that_is_not_honoured_is_noticed_before_any_write() {
    let server = url("TEST_DATABASE_URL");
    let (mut ours, theirs) = (World::on(None, Some(server.clone())), World::on(None, Some(server.clone())));
    for world in [&ours, &theirs] {
        succeeds(world, &["migrate"]);
    }
    let port = servers::free_port();
    let (text, becomes) = (ours.schema(), theirs.schema());
    let (text, becomes) = (format!("search_path = \"{text}\""), format!("search_path = \"{becomes}\""));
    let way = way(port, place(&server), text, becomes).await;
    let mut astray = url::Url::parse(&server).unwrap();
    astray.set_port(Some(port)).unwrap();
    ours.set("DATABASE_URL", astray.as_str());
    for command in [&["migrate"][..], &["users", "list"], &["doctor"], &["worker"]] {
        let output = ours.run(command);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
        assert!(said.contains(&format!("does not use the schema {}", ours.schema())), "{command:?}: {said}");
    }
    way.abort();
    ours.set("DATABASE_URL", &server);
    ours.clean_up().await;
    theirs.clean_up().await;
}

/// An administrator puts PgBouncer where PostgreSQL was, under a running worker.
#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_put_in_between_later_is_left_no_prepared_statement() {
    let mut pooler = pgbouncer("pool_mode=transaction default_pool_size=2 ignore_startup_parameters=options");
    pooler.kill();
    let way = way(pooler.port(), place(&url("TEST_DATABASE_URL")), String::new(), String::new()).await;
    let app = Application::start("later", &pooler);
    steady(app.ingress.poster(), "later", WEBHOOKS / 2, 150, PATIENCE).await;
    way.abort();
    let _ = way.await;
    pooler.start();
    app.traffic().await;
    app.all_is_applied().await;
    nothing_is_left_in_two_sessions(&pooler).await;
    app.end().await;
}
