//! How long people wait for answers among a million dead letters in PostgreSQL, and what replaying them costs.
//! `TEST_DATABASE_URL=… cargo bench --bench letters`; `BENCH_LETTERS` is how many, a million unless said. The letters
//! stay in the schema `bench_letters`, so that the next run need not make them.

#![allow(clippy::expect_used, reason = "a benchmark that cannot run has to stop")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use headcount::{
    message::Origin,
    rules::{
        Change, Event,
        users::{OnDelete, Policy, Relink},
    },
    secret::Secret,
    store::{
        self, Backend, Incoming, Store, StoreConfig,
        letters::{Actor, Captured, Filter, Page, Status},
    },
};
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

const SCHEMA: &str = "bench_letters";

/// Three hundred groups, three fifths of the letters in the ten largest; six in ten are open. A letter a second.
const FILL: &str = "WITH made AS (SELECT i, CASE WHEN random() < 0.6 THEN i % 10 ELSE (random() * 299)::int END AS g, \
     (array['open','open','open','open','open','open','applied','applied','discarded','replayed']) \
     [1 + floor(random() * 10)::int] AS s FROM generate_series(1, $1) AS i), \
     letters AS (SELECT *, (array['invalid_payload','rejected','exhausted','crash_loop','unroutable'])[1 + g % 5] AS r, \
     'data.email_addresses[' || g || '].verification.status: expected a string, found a map at line ' || i || \
     ' column ' || i * 7 % 3000 AS d FROM made), \
     kept AS (INSERT INTO dead_letters (id, message_id, round, event_type, clerk_id, reason, detail, attempts, \
     first_seen, died_at, grp, status, captured_round, claimed_at, published_at, settled_at, search) \
     SELECT ('0190' || substr(md5('a' || i), 1, 28))::uuid, 'msg_' || md5(i::text), (s = 'replayed')::int, \
     CASE WHEN i % 97 = 0 THEN 'user.deleted' WHEN i % 3 = 0 THEN 'user.created' ELSE 'user.updated' END, \
     'user_' || i / 2, r, d, 6, now() - i * interval '1 second', now() - i * interval '1 second', \
     r || ': data.email_addresses[' || g || '].verification.status: expected a string, found a map', s, 0, \
     CASE WHEN s = 'replayed' THEN now() END, CASE WHEN s = 'replayed' AND i % 100 > 0 THEN now() END, \
     CASE WHEN s IN ('applied', 'discarded') THEN now() END, lower(d || e'\\n' || 'msg_' || md5(i::text)) \
     FROM letters RETURNING id, message_id, died_at, detail), \
     held AS (INSERT INTO dead_letter_contents SELECT id, '{\"x-attempt\": \"6\"}', \
     convert_to(repeat(md5(message_id), 80), 'UTF8') FROM kept) \
     INSERT INTO dead_letter_history (letter_id, at, action, round, by, note) \
     SELECT id, died_at, 'died', 0, 'headcount', detail FROM kept";

#[tokio::main]
async fn main() {
    let url = std::env::var("TEST_DATABASE_URL").expect("TEST_DATABASE_URL");
    let count: i64 = std::env::var("BENCH_LETTERS").map_or(1_000_000, |text| text.parse().expect("a number"));
    let config = StoreConfig {
        backend: Backend::Postgres { url: Secret::new(url.clone()), schema: SCHEMA.into() },
        policy: Policy { relink: Relink::Deleted, on_delete: OnDelete::Keep },
        default_credits: 0,
        sessions: true,
        billing: None,
        connections: 4,
    };
    let store = store::open(&config).await.expect("a store");
    store.migrate().await.expect("migrated");
    let options = url.parse::<sqlx::postgres::PgConnectOptions>().expect("a URL");
    let pool = PgPool::connect_with(options.options([("search_path", SCHEMA)])).await.expect("a server");
    let present: i64 =
        sqlx::query_scalar("SELECT count(*) FROM dead_letters").fetch_one(&pool).await.expect("a count");
    if present < count {
        let started = Instant::now();
        sqlx::query("TRUNCATE dead_letters CASCADE").execute(&pool).await.expect("emptied");
        sqlx::query("TRUNCATE dead_letter_tallies").execute(&pool).await.expect("emptied");
        sqlx::query(FILL).bind(count).execute(&pool).await.expect("filled");
        for table in ["dead_letters", "dead_letter_contents", "dead_letter_history"] {
            let statement = format!("VACUUM ANALYZE {table}");
            sqlx::query(AssertSqlSafe(statement)).execute(&pool).await.expect("vacuumed");
        }
        println!("{count} letters made in {:?}", started.elapsed());
    }
    answers(&store).await;
    effects(&store).await;
    replays(&store).await;
}

/// The second of two runs and the slowest of ten more, with how many rows came.
async fn measure<T>(what: &str, ask: impl AsyncFn() -> Vec<T>) {
    let mut slowest = Duration::ZERO;
    let mut rows = 0;
    ask().await;
    let started = Instant::now();
    ask().await;
    let second = started.elapsed();
    for _ in 0..10 {
        let started = Instant::now();
        rows = ask().await.len();
        slowest = slowest.max(started.elapsed());
    }
    println!("{what:<44} {second:>10.1?} slowest {slowest:>10.1?} {rows:>6} rows");
}

async fn answers(store: &Arc<dyn Store>) {
    let all = Filter::default;
    let text = |text: &str| Filter { text: Some(text.into()), ..all() };
    let newest = store.list(&all(), &Page { limit: 50, after: None }).await.expect("a page");
    let now = newest[0].died_at;
    let small = store.groups(&all()).await.expect("groups").last().expect("a group").group.clone();
    let filters = [
        ("everything", all()),
        ("one status", Filter { status: Some(Status::Open), ..all() }),
        ("a large group", Filter { group: Some(newest[0].group.clone()), ..all() }),
        ("a small group", Filter { group: Some(small.clone()), ..all() }),
        ("a small group, discarded", Filter { group: Some(small), status: Some(Status::Discarded), ..all() }),
        ("a reason", Filter { reason: Some("crash_loop".into()), ..all() }),
        ("a reason there is not", Filter { reason: Some("nothing".into()), ..all() }),
        ("a frequent type", Filter { event_type: Some("user.updated".into()), ..all() }),
        (
            "a rare type, applied",
            Filter { event_type: Some("user.deleted".into()), status: Some(Status::Applied), ..all() },
        ),
        (
            "a type of a reason",
            Filter { event_type: Some("user.deleted".into()), reason: Some("rejected".into()), ..all() },
        ),
        ("a user", Filter { clerk_id: newest[20].clerk_id.clone(), ..all() }),
        ("ten ids", Filter { ids: newest.iter().take(10).map(|letter| letter.id).collect(), ..all() }),
        ("an hour", Filter { since: Some(now - 3_600_000), ..all() }),
        (
            "an hour long ago",
            Filter { since: Some(now - 500_000_000), until: Some(now - 496_400_000), ..all() },
        ),
        ("frequent text", text("expected a string")),
        ("text in one of 300", text("addresses[77]")),
        ("text in one of a million", text(&newest[49].message_id)),
        ("text there is not", text("zebra")),
        (
            "text there is not, of a large group",
            Filter { group: Some(newest[0].group.clone()), ..text("zebra") },
        ),
    ];
    for (what, filter) in &filters {
        let first = Page { limit: 51, after: None };
        measure(&format!("list {what}"), async || store.list(filter, &first).await.expect("a page")).await;
    }
    let page = store.list(&all(), &Page { limit: 10_000, after: None }).await.expect("a page");
    let last = page.last().expect("letters");
    let next = Page { limit: 51, after: Some((last.died_at, last.id)) };
    for (what, filter) in &filters[..7] {
        measure(&format!("next page of {what}"), async || store.list(filter, &next).await.expect("a page"))
            .await;
    }
    let id = last.id.to_string();
    measure("show one by id", async || vec![store.show(&id).await.expect("one")]).await;
    measure("show one by message id", async || vec![store.show(&last.message_id).await.expect("one")]).await;
    for (what, filter) in &filters {
        measure(&format!("groups of {what}"), async || store.groups(filter).await.expect("groups")).await;
    }
    measure("count everything", async || store.count(&all()).await.expect("counts")).await;
    measure("statuses", async || store.statuses().await.expect("counts").into_iter().collect()).await;
}

/// A batch of 200 whose messages have no letters, beside a million that are others'.
async fn effects(store: &Arc<dyn Store>) {
    measure("apply 200 that are nobody's letters", async || {
        let batch = (0..200).map(|_| ignored(&Uuid::now_v7().to_string()));
        store.apply(batch.collect()).await.expect("applied")
    })
    .await;
}

fn ignored(message_id: &str) -> Incoming {
    let event = Event {
        message_id: message_id.into(),
        change: Change::Other,
        fresh_row: Uuid::now_v7(),
        patience_over: false,
    };
    Incoming { event, event_type: "email.created".into(), received_at: 0 }
}

/// Ten thousand letters of a group of their own, all the way: captured, claimed, stamped, applied.
async fn replays(store: &Arc<dyn Store>) {
    let run = Uuid::now_v7();
    let letters: Vec<_> = (0..10_000).map(|n| letter(&format!("{run}_{n}"), &run.to_string())).collect();
    let by = Actor { name: "bench".into(), note: None };
    let group = Filter { group: Some(run.to_string()), ..Filter::default() };
    let started = Instant::now();
    for some in letters.chunks(200) {
        store.capture(some).await.expect("captured");
    }
    println!("captured 10,000 in {:?}", started.elapsed());
    let started = Instant::now();
    let mut claimed = Vec::new();
    loop {
        let some = store.claim(&group, 200, &by).await.expect("claimed");
        if some.is_empty() {
            break;
        }
        store.stamp(&some.iter().map(|it| (it.id, it.round)).collect::<Vec<_>>()).await.expect("stamped");
        claimed.extend(some);
    }
    println!("claimed and stamped {} in {:?}", claimed.len(), started.elapsed());
    let started = Instant::now();
    for some in claimed.chunks(200) {
        let batch = some.iter().map(|claim| ignored(&claim.message_id));
        store.apply(batch.collect()).await.expect("applied");
    }
    println!("applied {} in {:?}", claimed.len(), started.elapsed());
}

fn letter(message_id: &str, group: &str) -> Captured {
    Captured {
        message_id: message_id.into(),
        origin: Origin::Webhook,
        round: 0,
        event_type: "user.updated".into(),
        clerk_id: None,
        reason: "rejected".into(),
        detail: "of the benchmark".into(),
        attempts: 1,
        first_seen: 1_767_323_045_678,
        died_at: 1_767_323_045_678,
        group: group.into(),
        headers: [("x-attempt".to_owned(), "1".to_owned())].into(),
        body: vec![b'x'; 2_800].into(),
    }
}
