//! An outage is not a failure of a message, and a bad message affects no other. With the database stopped, frozen or refusing,
//! and with the broker away, under a steady stream: no attempt is burned, nothing is buried, everything is applied in the end.
//! `SOAK=1` makes the outages three minutes long and the streams larger.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use headcount::{clerk::made_up::Person, cli::post::Poster, time::now};
use support::{
    PATIENCE, eventually,
    process::{Backends, World},
    servers::Server,
    traffic::{self, burned, metric, sql},
};

fn soak() -> bool {
    std::env::var_os("SOAK").is_some_and(|value| value == "1")
}

/// How long a server is away.
fn outage() -> Duration {
    if soak() { Duration::from_secs(180) } else { Duration::from_secs(6) }
}

/// How long one is frozen: longer than the worker waits for an answer, so that it notices by that.
fn frozen() -> Duration {
    outage().max(Duration::from_secs(14))
}

/// Webhooks per second during an outage.
const RATE: u64 = 300;

async fn steady(poster: Poster, prefix: &str, count: u64) {
    traffic::steady(poster, prefix, count, RATE, frozen() + Duration::from_secs(120)).await;
}

/// A stream runs while `away` happens to a server and is mended; then all must be applied, with nothing burned.
async fn holds_through(
    name: &str,
    outage: Duration,
    world: World,
    away: impl FnOnce() + Send + 'static,
    mend: impl FnOnce() + Send + 'static,
) {
    assert!(world.run(&["migrate"]).status.success());
    let ingress = world.start(&["ingress"]);
    let worker = world.start(&["worker"]);
    steady(ingress.poster(), "before", 100).await;
    let count = RATE * (outage.as_secs() + 2);
    let failing = async {
        tokio::task::spawn_blocking(away).await.unwrap();
        let begun = Instant::now();
        tokio::time::sleep(outage).await;
        tokio::task::spawn_blocking(mend).await.unwrap();
        (begun.elapsed(), Instant::now())
    };
    let ((), (away_for, mended)) = tokio::join!(steady(ingress.poster(), "during", count), failing);
    // Counted in the table: a batch whose COMMIT took effect without an answer comes again as duplicates.
    let applied = async || world.users().await.len() as u64;
    eventually("all of it is applied", async || applied().await >= 100 + count).await;
    let drained = mended.elapsed();
    world.until_drained().await;
    assert_eq!(metric(&worker, "headcount_dead_letters_total").await, 0.0, "buried:\n{}", worker.log());
    assert_eq!(burned(&worker).await, 0.0, "burned:\n{}", worker.log());
    assert_eq!(metric(&worker, "headcount_paused").await, 0.0);
    let users = world.users().await.len() as u64;
    assert_eq!(users, 100 + count);
    println!(
        "{name}: away {:.1} s under {RATE}/s, {count} webhooks, all applied {:.1} s after it was back",
        away_for.as_secs_f64(),
        drained.as_secs_f64()
    );
    worker.stop();
    ingress.stop();
    world.clean_up().await;
}

fn shared(server: Server) -> Arc<std::sync::Mutex<Server>> {
    Arc::new(std::sync::Mutex::new(server))
}

fn with_database(database: &std::sync::Mutex<Server>) -> World {
    World::on(Some(support::servers::url("TEST_AMQP_URL")), Some(database.lock().unwrap().url()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_database_burns_and_buries_nothing() {
    let database = shared(Server::postgres());
    let (away, mend) = (database.clone(), database.clone());
    let world = with_database(&database);
    holds_through(
        "database stopped",
        outage(),
        world,
        move || away.lock().unwrap().stop(),
        move || mend.lock().unwrap().start(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_database_burns_and_buries_nothing() {
    let database = shared(Server::postgres());
    let (away, mend) = (database.clone(), database.clone());
    let world = with_database(&database);
    holds_through(
        "database frozen",
        frozen(),
        world,
        move || away.lock().unwrap().freeze(),
        move || mend.lock().unwrap().thaw(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_broker_killed_503_and_the_senders_repeats_carry_everything() {
    let broker = shared(Server::rabbitmq());
    let (away, mend) = (broker.clone(), broker.clone());
    let url = broker.lock().unwrap().url();
    let world = World::on(Some(url), Some(support::servers::url("TEST_DATABASE_URL")));
    holds_through(
        "broker killed",
        outage(),
        world,
        move || away.lock().unwrap().kill(),
        move || mend.lock().unwrap().start(),
    )
    .await;
}

/// While the database refuses like this, the worker waits and nothing is buried; mended, it goes on.
async fn waits_while(break_it: &str, mend_it: &str) {
    let database = Server::postgres();
    let admin = database.url();
    sql(
        &admin,
        "CREATE ROLE app LOGIN; GRANT ALL ON DATABASE postgres TO app; GRANT ALL ON SCHEMA public TO app",
    )
    .await;
    let mut world = World::on(None, Some(admin.replace("postgres://postgres@", "postgres://app@")));
    world.unset("HEADCOUNT_SCHEMA");
    let up = world.start(&["up"]);
    steady(up.poster(), "before", 20).await;
    eventually("they are applied", async || metric(&up, "headcount_sync_lag_seconds_count").await >= 20.0)
        .await;

    sql(&admin, break_it).await;
    steady(up.poster(), "during", 60).await;
    eventually("the worker waits", async || metric(&up, "headcount_paused").await == 1.0).await;
    assert_eq!(metric(&up, "headcount_dead_letters_total").await, 0.0, "{break_it}:\n{}", up.log());
    sql(&admin, mend_it).await;
    eventually("all of it is applied", async || {
        metric(&up, "headcount_sync_lag_seconds_count").await >= 80.0
    })
    .await;
    assert_eq!(metric(&up, "headcount_dead_letters_total").await, 0.0, "{break_it}:\n{}", up.log());
    eventually("the worker goes on", async || metric(&up, "headcount_paused").await == 0.0).await;
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_grant_buries_nothing() {
    waits_while(
        "ALTER TABLE users OWNER TO postgres; REVOKE ALL ON users FROM app",
        "ALTER TABLE users OWNER TO app",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_column_buries_nothing() {
    waits_while(
        "ALTER TABLE users RENAME COLUMN phone TO telephone",
        "ALTER TABLE users RENAME COLUMN telephone TO phone",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_constraint_that_everything_breaks_buries_nothing() {
    waits_while(
        "ALTER TABLE users ADD CONSTRAINT broken CHECK (subscription_tier <> 'free') NOT VALID",
        "ALTER TABLE users DROP CONSTRAINT broken",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_server_buries_nothing() {
    waits_while(
        "ALTER ROLE app SET default_transaction_read_only = on; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'",
        // The sessions that there are stay read-only.
        "ALTER ROLE app RESET default_transaction_read_only",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_out_of_connections_buries_nothing() {
    waits_while(
        "ALTER ROLE app CONNECTION LIMIT 0; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'",
        "ALTER ROLE app CONNECTION LIMIT -1",
    )
    .await;
}

/// A statement that keeps its locks until the connection is dropped.
async fn locking(url: &str, statement: &str) -> sqlx::PgConnection {
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(url).await.unwrap();
    let statement = format!("BEGIN; {statement}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
    connection
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_table_buries_nothing_and_a_locked_row_holds_up_its_user_only() {
    let database = Server::postgres();
    let mut world = World::on(None, Some(database.url()));
    world.unset("HEADCOUNT_SCHEMA");
    let up = world.start(&["up"]);
    steady(up.poster(), "before", 20).await;
    let applied = async || metric(&up, "headcount_sync_lag_seconds_count").await;
    eventually("they are applied", async || applied().await >= 20.0).await;

    let table = locking(&database.url(), "LOCK TABLE users IN ACCESS EXCLUSIVE MODE").await;
    steady(up.poster(), "during", 60).await;
    eventually("the worker waits", async || metric(&up, "headcount_paused").await == 1.0).await;
    eventually("for the lock", async || up.log().contains("lock timeout")).await;
    drop(table);
    eventually("all of it is applied", async || applied().await >= 80.0).await;
    assert_eq!(burned(&up).await, 0.0, "burned:\n{}", up.log());

    let row =
        locking(&database.url(), "UPDATE users SET credits_balance = 1 WHERE clerk_id = 'user_before_7'")
            .await;
    let news = Person { updated_at: now(), ..Person::of("user_before_7", now()) };
    let news = news.event("user.updated", now()).into();
    assert_eq!(up.poster().post("msg_locked", news).await.unwrap(), 202);
    let (mut beside, locked) = (0, Instant::now());
    while burned(&up).await < 1.0 {
        assert!(locked.elapsed() < PATIENCE, "it is not on the ladder:\n{}", up.log());
        steady(up.poster(), &format!("beside{beside}"), 10).await;
        beside += 10;
        eventually("its neighbours are applied", async || applied().await as u64 >= 80 + beside).await;
    }
    drop(row);
    eventually("and then the user", async || applied().await as u64 > 80 + beside).await;
    assert_eq!(metric(&up, "headcount_dead_letters_total").await, 0.0, "buried:\n{}", up.log());
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_among_many_is_dead_after_its_ladder_and_harms_nobody() {
    let database = Server::postgres();
    let admin = database.url();
    let mut world = World::on(Some(support::servers::url("TEST_AMQP_URL")), Some(admin.clone()));
    world.unset("HEADCOUNT_SCHEMA");
    assert!(world.run(&["migrate"]).status.success());
    // It loses every race, for ever.
    sql(
        &admin,
        "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF NEW.clerk_id = 'user_during_777' THEN RAISE EXCEPTION USING ERRCODE = '40001'; END IF; RETURN NEW; END $$;
         CREATE TRIGGER poison BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION poison()",
    )
    .await;
    let ingress = world.start(&["ingress"]);
    let worker = world.start(&["worker"]);
    let count = if soak() { 10_000 } else { 1_000 };
    steady(ingress.poster(), "during", count).await;
    eventually("it is dead", async || metric(&worker, "headcount_dead_letters_total").await == 1.0).await;
    eventually("it says so", async || worker.log().contains("msg_during_777 is buried: retries_exhausted"))
        .await;
    // One per rung of its ladder; a neighbour may have lost a race of its own beside it.
    assert!(burned(&worker).await >= 3.0, "one per rung of the ladder");
    let applied = async || metric(&worker, "headcount_sync_lag_seconds_count").await as u64;
    eventually("the others are applied", async || applied().await >= count - 1).await;
    assert_eq!(world.users().await.len() as u64, count - 1);
    worker.stop();
    ingress.stop();
    world.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_aborts_its_worker_dies_and_its_neighbours_are_applied() {
    let world = World::new(Backends::RabbitPostgres);
    assert!(world.run(&["migrate"]).status.success());
    let ingress = world.start(&["ingress"]);
    let post = async |id: &str, user: &str| {
        let body = Person::of(user, now()).event("user.created", now()).into();
        assert_eq!(ingress.poster().post(id, body).await.unwrap(), 202);
    };
    for n in 0..100 {
        post(&format!("msg_before_{n}"), &format!("user_before_{n}")).await;
    }
    post("msg_abort_the_worker", "user_aborting").await;
    for n in 0..100 {
        post(&format!("msg_after_{n}"), &format!("user_after_{n}")).await;
    }
    // As a supervisor would: started anew each time it dies.
    let mut aborts = 0;
    loop {
        let mut worker = world.start(&["worker"]);
        let died = loop {
            if worker.has_ended() {
                break true;
            }
            if dead_as_crash_loop(&world) {
                break false;
            }
        };
        if !died {
            // What came back beside it may still be on its way.
            world.until_drained().await;
            worker.stop();
            break;
        }
        aborts += 1;
        assert!(aborts <= 21, "the delivery limit does not hold");
    }
    assert_eq!(aborts, 21, "20 redeliveries and the first");
    let letters = world.run(&["dead", "list", "--json"]);
    let letters: serde_json::Value = serde_json::from_slice(&letters.stdout).unwrap();
    assert_eq!(letters["letters"].as_array().map(Vec::len), Some(1), "{letters}");
    assert_eq!(world.users().await.len(), 200, "its neighbours");
    ingress.stop();
    world.clean_up().await;
}

fn dead_as_crash_loop(world: &World) -> bool {
    let letters = world.run(&["dead", "list", "--json"]);
    String::from_utf8_lossy(&letters.stdout).contains("\"crash_loop\"")
}
