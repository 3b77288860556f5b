//! Whose fault is it? On real databases, an application's trigger, policy or index refuses one user: only that user's message
//! climbs the ladder and dies, and all others are applied at once. If it refuses everybody, that is an outage, however often
//! workers are stopped and killed in it: nothing is buried, and no attempt is burned.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::time::{Duration, Instant};

use support::{
    PATIENCE, eventually, eventually_within,
    process::{Backends, Process, World},
    servers::{self, Server},
    traffic::{self, burned, metric, sql},
};

const RATE: u64 = 400;

async fn steady(ingress: &Process, prefix: &str, count: u64) {
    traffic::steady(ingress.poster(), prefix, count, RATE, PATIENCE).await;
}

async fn applied(process: &Process) -> u64 {
    metric(process, "headcount_sync_lag_seconds_count").await as u64
}

fn letters(world: &World) -> Vec<(String, String)> {
    let listed = world.run(&["dead", "list", "--json"]);
    let letters: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
    let letters =
        letters.as_array().or_else(|| letters.get("letters")?.as_array()).cloned().unwrap_or_default();
    let text = |letter: &serde_json::Value, name: &str| letter[name].as_str().unwrap_or_default().to_owned();
    letters.iter().map(|letter| (text(letter, "message_id"), text(letter, "reason"))).collect()
}

/// A world whose tables belong to a role that is no superuser, so that policies hold for it.
async fn owned(database: &Server) -> World {
    let admin = database.url();
    sql(
        &admin,
        "CREATE ROLE app LOGIN; GRANT ALL ON DATABASE postgres TO app; GRANT ALL ON SCHEMA public TO app",
    )
    .await;
    let url = admin.replace("postgres://postgres@", "postgres://app@");
    let mut world = World::on(Some(servers::url("TEST_AMQP_URL")), Some(url));
    world.unset("HEADCOUNT_SCHEMA");
    assert!(world.run(&["migrate"]).status.success());
    world
}

/// Refuses one of 400 users as `refuse` says: all others are applied soon, and that one is dead after its ladder.
async fn one_of_400(refuse: &str) {
    let database = Server::postgres();
    let world = owned(&database).await;
    sql(&database.url(), refuse).await;
    let (ingress, worker) = (world.start(&["ingress"]), world.start(&["worker"]));
    let begun = Instant::now();
    steady(&ingress, "of400", 400).await;
    eventually("the others are applied", async || applied(&worker).await == 399).await;
    let took = begun.elapsed();
    // One that hangs costs a time-out of seconds for each try: half a minute in all, on a machine that is free.
    eventually_within(2 * PATIENCE, "the one is dead", async || letters(&world).len() == 1).await;
    assert_eq!(letters(&world), [("msg_of400_77".to_owned(), "rejected".to_owned())]);
    assert_eq!(burned(&worker).await, 3.0, "one attempt for each rung of its ladder:\n{}", worker.log());
    assert_eq!(world.users().await.len(), 399);
    println!("399 were applied {:.1} s after the first was posted", took.as_secs_f64());
    assert!(took < Duration::from_secs(10), "they were held up for {took:?}:\n{}", worker.log());
    worker.stop();
    ingress.stop();
    world.clean_up().await;
}

const TRIGGER: &str = "CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
       IF NEW.clerk_id = 'user_of400_77' THEN {then} END IF; RETURN NEW; END $$;
     CREATE TRIGGER guard BEFORE INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION guard()";

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_raises_for_one_user_stops_nobody_else() {
    one_of_400(&TRIGGER.replace("{then}", "RAISE EXCEPTION 'not this one';")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_skips_one_user_loses_nobody() {
    one_of_400(&TRIGGER.replace("{then}", "RETURN NULL;")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_hangs_for_one_user_stops_nobody_else() {
    one_of_400(&TRIGGER.replace("{then}", "PERFORM pg_sleep(40);")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_meets_only_users_that_hang_first_reaches_the_others() {
    let database = Server::postgres();
    let world = owned(&database).await;
    let hangs = TRIGGER.replace("= 'user_of400_77'", "LIKE 'user_hangs_%'");
    sql(&database.url(), &hangs.replace("{then}", "PERFORM pg_sleep(40);")).await;
    let ingress = world.start(&["ingress"]);
    steady(&ingress, "hangs", 15).await;
    steady(&ingress, "good", 200).await;
    let begun = Instant::now();
    let worker = world.start(&["worker"]);
    eventually("the others are applied", async || applied(&worker).await == 200).await;
    println!("200 were applied {:.1} s after the start", begun.elapsed().as_secs_f64());
    assert_eq!(letters(&world), Vec::new());
    worker.stop();
    ingress.stop();
    world.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_ends_its_connection_for_one_user_stops_nobody_else() {
    one_of_400(&TRIGGER.replace("{then}", "PERFORM pg_terminate_backend(pg_backend_pid());")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_refuses_one_user_stops_nobody_else() {
    one_of_400(
        "ALTER TABLE users ENABLE ROW LEVEL SECURITY; ALTER TABLE users FORCE ROW LEVEL SECURITY;
         CREATE POLICY most ON users USING (true) WITH CHECK (clerk_id <> 'user_of400_77')",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_one_user_does_not_fit_in_stops_nobody_else() {
    one_of_400(
        "CREATE FUNCTION long(id text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT CASE
           WHEN id = 'user_of400_77' THEN (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 300) AS n)
           ELSE id END $$;
         GRANT EXECUTE ON FUNCTION long TO app; CREATE INDEX ON users (long(clerk_id))",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_in_sqlite_that_raises_for_one_user_stops_nobody_else() {
    one_of_400_embedded("ABORT, 'not this one'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_in_sqlite_that_skips_one_user_loses_nobody() {
    one_of_400_embedded("IGNORE").await;
}

async fn one_of_400_embedded(raise: &str) {
    let world = World::new(Backends::Embedded);
    assert!(world.run(&["migrate"]).status.success());
    sqlite(
        &world,
        &format!(
            "CREATE TRIGGER guard BEFORE INSERT ON users WHEN NEW.clerk_id = 'user_of400_77'
             BEGIN SELECT RAISE({raise}); END"
        ),
    )
    .await;
    let up = world.start(&["up"]);
    steady(&up, "of400", 400).await;
    eventually("the others are applied", async || applied(&up).await == 399).await;
    eventually("the one is dead", async || letters(&world).len() == 1).await;
    assert_eq!(letters(&world), [("msg_of400_77".to_owned(), "rejected".to_owned())]);
    assert_eq!(burned(&up).await, 3.0, "one attempt for each rung of its ladder:\n{}", up.log());
    up.stop();
}

async fn sqlite(world: &World, statement: &str) {
    let path = world.directory.path().join("data/headcount.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned())).execute(&mut connection).await.unwrap();
    sqlx::Connection::close(connection).await.unwrap();
}

/// Starts and ends a worker 25 times, by turns gently and with SIGKILL, while all are refused; then mends it.
async fn restarted_25_times(world: &World, role: &str, ingress: Option<Process>, mend: impl AsyncFnOnce()) {
    for n in 0..25 {
        let worker = world.start(&[role]);
        eventually("it pauses", async || metric(&worker, "headcount_paused").await == 1.0).await;
        assert_eq!(metric(&worker, "headcount_dead_letters_total").await, 0.0, "{}", worker.log());
        assert_eq!(burned(&worker).await, 0.0, "{}", worker.log());
        match n % 2 {
            0 => worker.stop(),
            _ => worker.kill(),
        }
    }
    mend().await;
    let worker = world.start(&[role]);
    eventually("all are applied", async || applied(&worker).await == 40).await;
    world.until_drained().await;
    assert_eq!(letters(world), []);
    worker.stop();
    if let Some(ingress) = ingress {
        ingress.stop();
    }
}

async fn restarts_bury_nothing(break_it: &str, mend_it: &str) {
    let database = Server::postgres();
    let world = owned(&database).await;
    let ingress = world.start(&["ingress"]);
    steady(&ingress, "early", 40).await;
    sql(&database.url(), break_it).await;
    restarted_25_times(&world, "worker", Some(ingress), async || sql(&database.url(), mend_it).await).await;
    world.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_before_a_read_only_database_bury_nothing() {
    restarts_bury_nothing(
        "ALTER ROLE app SET default_transaction_read_only = on",
        "ALTER ROLE app RESET default_transaction_read_only",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_before_a_renamed_table_bury_nothing() {
    restarts_bury_nothing("ALTER TABLE inbox RENAME TO outbox", "ALTER TABLE outbox RENAME TO inbox").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_before_a_trigger_that_refuses_all_bury_nothing() {
    restarts_bury_nothing(
        "CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'nobody'; END $$;
         CREATE TRIGGER guard BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION guard()",
        "DROP TRIGGER guard ON users",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_restarts_before_a_trigger_that_refuses_all_bury_nothing() {
    let world = World::new(Backends::Embedded);
    assert!(world.run(&["migrate"]).status.success());
    let ingress = world.start(&["ingress"]);
    steady(&ingress, "early", 40).await;
    ingress.stop();
    sqlite(&world, "CREATE TRIGGER guard BEFORE INSERT ON users BEGIN SELECT RAISE(ABORT, 'nobody'); END")
        .await;
    restarted_25_times(&world, "up", None, async || sqlite(&world, "DROP TRIGGER guard").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_timeout_shorter_than_an_outage_buries_nothing() {
    let (broker, database) = (Server::rabbitmq(), Server::postgres());
    broker.set_consumer_timeout(Duration::from_secs(3));
    let world = World::on(Some(broker.url()), Some(database.url()));
    assert!(world.run(&["migrate"]).status.success());
    let (ingress, worker) = (world.start(&["ingress"]), world.start(&["worker"]));
    steady(&ingress, "before", 50).await;
    eventually("they are applied", async || applied(&worker).await == 50).await;
    database.freeze();
    steady(&ingress, "during", 568).await;
    // What nobody holds cannot time out: each time that it did would count towards the delivery limit.
    let held = || {
        let queues = broker.ctl(&["list_queues", "name", "messages_unacknowledged"]);
        let events = queues.lines().find_map(|line| line.split_once(".events")?.1.trim().parse().ok());
        events.unwrap_or(u32::MAX)
    };
    let mut seconds_of_nothing = 0;
    let begun = Instant::now();
    while seconds_of_nothing < 5 {
        assert!(begun.elapsed() < PATIENCE, "{} are held:\n{}", held(), worker.log());
        seconds_of_nothing = if held() <= 1 { seconds_of_nothing + 1 } else { 0 };
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    database.thaw();
    eventually("all are applied", async || applied(&worker).await >= 618).await;
    world.until_drained().await;
    assert_eq!(letters(&world), []);
    assert_eq!(burned(&worker).await, 0.0, "{}", worker.log());
    assert_eq!(world.users().await.len(), 618);
    worker.stop();
    ingress.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn reconnecting_in_an_outage_piles_nothing_up_and_applies_nothing_twice() {
    let (broker, database) = (Server::rabbitmq(), Server::postgres());
    let world = World::on(Some(broker.url()), Some(database.url()));
    assert!(world.run(&["migrate"]).status.success());
    let (ingress, worker) = (world.start(&["ingress"]), world.start(&["worker"]));
    steady(&ingress, "before", 50).await;
    eventually("they are applied", async || applied(&worker).await == 50).await;
    let before = worker.peak_memory();
    database.freeze();
    steady(&ingress, "during", 2000).await;
    // Time enough for the worker to be back and to have its hands full again.
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        broker.ctl(&["close_all_connections", "test"]);
    }
    database.thaw();
    world.until_users("all are applied", |users| users.len() == 2050).await;
    world.until_drained().await;
    let again = metric(&worker, "headcount_events_total").await - 2050.0;
    println!("{again} were applied again; peak memory {before} MiB before, {} after", worker.peak_memory());
    // A give-back publishes before it acks, so a connection that is closed in between leaves both copies. That can happen
    // to the prefetch once: from then on the worker holds one message at a time.
    assert!(again <= 600.0, "{again} were applied again");
    assert!(worker.peak_memory() < before + 60, "{before} MiB before, {} after", worker.peak_memory());
    assert_eq!(letters(&world), []);
    worker.stop();
    ingress.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_lock_table_makes_batches_smaller_and_no_outage() {
    let database = Server::postgres_with("-c max_locks_per_transaction=10 -c max_connections=30");
    let mut world = World::on(Some(servers::url("TEST_AMQP_URL")), Some(database.url()));
    for setting in ["HEADCOUNT_BATCH_MAX", "HEADCOUNT_PREFETCH"] {
        world.set(setting, "2000");
    }
    // One batch after the other: what one has to share with the next might be too little for a single message.
    world.set("HEADCOUNT_BATCH_WAIT", "8s");
    assert!(world.run(&["migrate"]).status.success());
    let ingress = world.start(&["ingress"]);
    steady(&ingress, "locks", 2000).await;
    // However small the batches of a busy machine are, the 300 places that are left do for few of them.
    let mut crowd = <sqlx::PgConnection as sqlx::Connection>::connect(&database.url()).await.unwrap();
    let crowded = "DO $$ BEGIN FOR n IN 1..1000000 LOOP PERFORM pg_advisory_lock(n); END LOOP; \
                   EXCEPTION WHEN out_of_memory THEN NULL; END $$; \
                   SELECT pg_advisory_unlock(n) FROM generate_series(1, 300) AS n";
    sqlx::raw_sql(crowded).execute(&mut crowd).await.unwrap();
    let before = database.log().matches("out of shared memory").count();
    let worker = world.start(&["worker"]);
    let begun = Instant::now();
    eventually("all are applied", async || applied(&worker).await == 2000).await;
    println!("2,000 applied in {:.1} s", begun.elapsed().as_secs_f64());
    let after = database.log().matches("out of shared memory").count();
    assert!(after > before, "the lock table was large enough");
    drop(crowd);
    assert_eq!(burned(&worker).await, 0.0, "{}", worker.log());
    worker.stop();
    ingress.stop();
    world.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_that_the_broker_does_not_take_holds_up_nobody() {
    let broker = Server::rabbitmq();
    let world = World::on(Some(broker.url()), Some(servers::url("TEST_DATABASE_URL")));
    assert!(world.run(&["migrate"]).status.success());
    let ingress = world.start(&["ingress"]);
    let poster = ingress.poster();
    // Some in every batch.
    for n in 0..20 {
        steady(&ingress, &format!("good{n}"), 99).await;
        assert_eq!(poster.post(&format!("msg_poison_{n}"), "no event".into()).await.unwrap(), 202);
    }
    broker.ctl(&["set_vm_memory_high_watermark", "absolute", "1"]);
    let worker = world.start(&["worker"]);
    eventually("the good ones are applied", async || applied(&worker).await == 1980).await;
    assert_eq!(letters(&world), []);
    broker.ctl(&["set_vm_memory_high_watermark", "0.6"]);
    eventually("the others are dead", async || letters(&world).len() == 20).await;
    worker.stop();
    ingress.stop();
}
