//! An application's triggers, policies, indexes, foreign keys and locks on headcount's tables in PostgreSQL. They affect only
//! the messages that they are about, and neither side waits for the other.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

#[path = "support/stores.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod stores;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use headcount::{
    rules::Outcome::{Created, Deleted, Updated},
    secret::Secret,
    store::{self, Backend, Class, Incoming, Store, StoreConfig},
};
use stores::{Home, KEEP, apply, created, deleted, row, updated};
use support::servers::Server;

/// The store answers within this time, whatever hangs.
const ANSWER: Duration = Duration::from_secs(10);

async fn on_postgres<F: Future<Output = ()> + Send + 'static>(case: impl FnOnce(Arc<Home>) -> F) {
    Home::postgres().await.run(case).await;
}

/// A trigger on users that does this for mallory.
fn trigger(body: &str) -> String {
    format!(
        "CREATE FUNCTION rule() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF NEW.username = 'mallory' THEN {body}; END IF; RETURN NEW; END $$; \
         CREATE TRIGGER rule BEFORE INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION rule()"
    )
}

fn mallory() -> Incoming {
    created("mal", 10).named("mallory").event()
}

/// Refused alone and in company with this code, without a word of the row; its neighbour is taken.
async fn is_refused(store: &Arc<dyn Store>, bad: Incoming, code: &str) {
    let good = created("good", 10).event();
    for batch in [vec![good.clone(), bad.clone()], vec![bad]] {
        let (messages, started) = (batch.len(), Instant::now());
        let error = apply(store, batch).await.expect_err(code);
        assert_eq!((error.class, error.code.as_str()), (Class::Unclear, code), "{error:?}");
        assert!(error.hint.is_some(), "{error:?}");
        let is_cut_short = error.message.contains("took longer than a statement may");
        assert_eq!(is_cut_short, code == "57014", "{error:?}");
        let said = format!("{error:?}");
        assert!(!said.contains("mallory") && !said.contains("secret"), "{said}");
        let limit = if messages > 1 { Duration::from_secs(4) } else { ANSWER };
        assert!(started.elapsed() < limit, "{messages} messages took {:?}", started.elapsed());
        store.ready().await.unwrap();
    }
    assert_eq!(apply(store, [good]).await.unwrap(), [Created]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_that_raises_is_unclear_and_its_words_are_not_repeated() {
    on_postgres(|home| async move {
        let store = home.store().await;
        home.sql(&trigger("RAISE EXCEPTION 'secret of %', NEW.username")).await;
        is_refused(&store, mallory(), "P0001").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_that_raises_a_code_of_the_servers_is_not_quoted_either() {
    on_postgres(|home| async move {
        let store = home.store().await;
        let raise = "RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = 'secret of ' || NEW.username, \
                     TABLE = NEW.username, CONSTRAINT = 'secret'";
        home.sql(&trigger(raise)).await;
        is_refused(&store, mallory(), "42501").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_that_hangs_is_cut_short() {
    on_postgres(|home| async move {
        let store = home.store().await;
        home.sql(&trigger("PERFORM pg_sleep(40)")).await;
        is_refused(&store, mallory(), "57014").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_that_are_each_slow_are_cut_short_as_a_whole() {
    on_postgres(|home| async move {
        let store = home.store().await;
        let x = "x@example.com";
        let ann = created("ann", 10).verified(x).event();
        apply(&store, [ann, created("bob", 10).verified("b@example.com").event()]).await.unwrap();
        home.sql(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM pg_sleep(4.2); RETURN NULL; END $$; \
             CREATE TRIGGER slow AFTER UPDATE ON users EXECUTE FUNCTION slow()",
        )
        .await;
        // One statement takes the address from ann, the next two write ann and bob.
        let started = Instant::now();
        let error = apply(&store, [updated("bob", 20).verified(x).event()]).await.unwrap_err();
        assert_eq!((error.class, error.code.as_str()), (Class::Unclear, "57014"), "{error:?}");
        assert!(started.elapsed() < ANSWER, "{:?}", started.elapsed());
        assert_eq!(row(&store, "ann").await.email.as_deref(), Some(x));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inbox_that_skips_rows_is_named_and_nothing_takes_effect() {
    on_postgres(|home| async move {
        let store = home.store().await;
        home.sql(
            "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$; \
             CREATE TRIGGER skip BEFORE INSERT ON inbox FOR EACH ROW EXECUTE FUNCTION skip()",
        )
        .await;
        let error = apply(&store, [created("ann", 10).event()]).await.unwrap_err();
        assert_eq!(error.class, Class::Unclear, "{error:?}");
        assert!(error.message.contains("0 of 1 rows of inbox"), "{}", error.message);
        assert!(store.user("ann").await.unwrap().is_none(), "the user is not there either");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_somebody_keeps_locked_is_unclear() {
    on_postgres(|home| async move {
        let store = home.store().await;
        apply(&store, [mallory()]).await.unwrap();
        let held = home.hold("SELECT FROM users WHERE clerk_id = 'mal' FOR UPDATE").await;
        is_refused(&store, updated("mal", 20).named("mallory").event(), "55P03").await;
        held.let_go().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_cannot_hold_a_value_is_unclear() {
    on_postgres(|home| async move {
        let store = home.store().await;
        home.sql("CREATE INDEX by_name ON users (first_name)").await;
        // Too long for a page of the index, and too random to be compressed.
        let long: String =
            (0..400).map(|_| uuid::Uuid::from_u128(rand::random()).simple().to_string()).collect();
        let bad = created("mal", 10).with(|profile| profile.first_name = Some(long)).event();
        is_refused(&store, bad, "54000").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_level_policy_is_unclear() {
    on_postgres(|home| async move {
        home.store().await.close().await;
        let Backend::Postgres { schema, .. } = &home.backend else { panic!() };
        let (role, mut url) = (format!("app_{schema}"), url::Url::parse(&stores::server()).unwrap());
        let password = url.password().unwrap_or_default();
        home.sql(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD '{password}'; GRANT USAGE ON SCHEMA {schema} TO {role}; \
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}; \
             ALTER TABLE users ENABLE ROW LEVEL SECURITY; \
             CREATE POLICY rule ON users USING (true) WITH CHECK (username IS DISTINCT FROM 'mallory')"
        ))
        .await;
        url.set_username(&role).unwrap();
        let backend = Backend::Postgres { url: Secret::new(url.to_string()), schema: schema.clone() };
        let store = store::open(&StoreConfig { backend, ..home.config(KEEP) }).await.unwrap();
        is_refused(&store, mallory(), "42501").await;
        store.close().await;
        home.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exhausted_lock_table_is_unclear() {
    // A server of its own: whoever else uses it would be out of locks too.
    let server = Server::postgres();
    let backend = Backend::Postgres { url: Secret::new(server.url()), schema: "public".into() };
    let config = StoreConfig {
        backend,
        policy: KEEP,
        default_credits: 0,
        sessions: true,
        billing: None,
        connections: 2,
    };
    let store = store::open(&config).await.unwrap();
    store.migrate().await.unwrap();
    let mut admin = <sqlx::PgConnection as sqlx::Connection>::connect(&server.url()).await.unwrap();
    let hog = trigger("PERFORM pg_advisory_xact_lock(n) FROM generate_series(1, 1000000) AS n");
    sqlx::raw_sql(sqlx::AssertSqlSafe(hog)).execute(&mut admin).await.unwrap();
    is_refused(&store, mallory(), "53200").await;
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_keys_to_users_wait_for_nobody_and_hold_nobody_up() {
    on_postgres(|home| async move {
        let store = home.store().await;
        home.sql("CREATE TABLE orders (id bigserial PRIMARY KEY, user_id uuid REFERENCES users (id))").await;
        let ids: Vec<String> = (0..20).map(|n| format!("user_{n}")).collect();
        apply(&store, ids.iter().map(|id| created(id, 10).event())).await.unwrap();

        // An open transaction of the application's that has ordered something for each of them.
        let held = home.hold("INSERT INTO orders (user_id) SELECT id FROM users").await;
        let mut batch: Vec<_> =
            ids.iter().map(|id| updated(id, 20).verified(&format!("{id}@x")).event()).collect();
        batch.extend((0..20).map(|n| created(&format!("new_{n}"), 10).event()));
        let outcomes = apply(&store, batch).await.unwrap();
        assert_eq!(outcomes, [vec![Updated; 20], vec![Created; 20]].concat());
        let gone = ids.iter().map(|id| deleted(id, 30));
        assert_eq!(apply(&store, gone).await.unwrap(), vec![Deleted; 20]);
        held.let_go().await;
        assert_eq!(home.number("SELECT count(*) FROM orders").await, 20);

        // And an open transaction of ours, which waits inside a trigger with the row in its hands.
        home.sql(&trigger("PERFORM pg_advisory_xact_lock(42)")).await;
        let held = home.hold("SELECT pg_advisory_xact_lock(42)").await;
        let news = updated("new_0", 20).named("mallory").event();
        let ours = {
            let store = store.clone();
            tokio::spawn(async move { apply(&store, [news]).await })
        };
        held.holds_up(1).await;
        home.sql(
            "SET lock_timeout = '1s'; \
             INSERT INTO orders (user_id) SELECT id FROM users WHERE clerk_id = 'new_0'; RESET lock_timeout",
        )
        .await;
        held.let_go().await;
        assert_eq!(ours.await.unwrap().unwrap(), [Updated]);
    })
    .await;
}
