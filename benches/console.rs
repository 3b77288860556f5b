//! What the console costs: how long each view takes with a million dead letters, and what ten open tabs cost a worker. Its real
//! process on RabbitMQ and PostgreSQL, and a headless Chromium. The yardstick is the same worker with no tab open. `make bench` starts
//! the servers, runs it, and keeps the table in benches/CONSOLE.md. BENCH_ROUNDS (3), BENCH_SECONDS (10) and BENCH_LETTERS (1,000,000) change how much.

#![allow(unreachable_pub)]

#[allow(dead_code, reason = "yardsticks and sync use the rest")]
mod support;
#[path = "../tests/support/mod.rs"]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a browser that does not start ends the run"
)]
mod tests;

use std::{
    path::Path,
    process::ExitCode,
    str::FromStr,
    time::{Duration, Instant},
};

use headcount::queue::Ladder;
use support::{
    Outcome,
    broker::Broker,
    database::{self, Database},
    load::read,
    process::{self, Environment, Headcount},
    report::{Kind, Report},
    webhooks::{Shape, Webhooks},
};
use tests::browser::Browser;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

/// Tabs that are open, on the views that ask most.
const TABS: [&str; 10] =
    ["/", "/dead", "/flow", "/processes", "/operations", "/sync", "/rejections", "/dead", "/flow", "/"];
/// Messages that are drained with the tabs open, and without.
const MESSAGES: u64 = 40_000;
/// Looks at each view: none of them finds what the one before has read.
const LOOKS: usize = 3;
/// After so long nothing that was read is kept.
const FORGOTTEN: Duration = Duration::from_millis(2_200);

fn main() -> ExitCode {
    if std::env::var_os("TEST_DATABASE_URL").is_none() {
        println!("console: no servers to measure with; make bench starts them");
        return ExitCode::SUCCESS;
    }
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("console: {error}");
            ExitCode::FAILURE
        }
    }
}

fn setting<T: FromStr>(name: &str, otherwise: T) -> Outcome<T> {
    match std::env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name} is no number").into()),
        Err(_) => Ok(otherwise),
    }
}

fn measure() -> Outcome<()> {
    let (rounds, seconds): (u64, f64) = (setting("BENCH_ROUNDS", 3)?, setting("BENCH_SECONDS", 10.0)?);
    let letters: u64 = setting("BENCH_LETTERS", 1_000_000)?;
    let mut report = Report::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        runtime.block_on(views(letters, &mut report))?;
        runtime.block_on(tabs(seconds, &mut report))?;
    }
    let server = runtime.block_on(database::about_server())?;
    let text = report.markdown(
        "make bench",
        &format!(
            "{server}; {letters} dead letters of 21 causes for the views, each asked for when nothing of it was read for two \
             seconds; {} tabs. Aims: first content within 300 ms, no view over 1 s; ten tabs under 2 % of a core.",
            TABS.len()
        ),
    );
    println!("{text}");
    std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/CONSOLE.md"), text)?;
    Ok(())
}

fn environment(broker: &Broker, database: &Database) -> Environment {
    vec![
        ("AMQP_URL", broker.url.clone()),
        ("HEADCOUNT_QUEUE_PREFIX", broker.prefix.clone()),
        ("DATABASE_URL", database.url.clone()),
    ]
}

/// Open letters of a few frequent causes and many rare ones, over two days.
const LETTERS: &str = "
    WITH made AS (
        SELECT gen_random_uuid() AS id, n, CASE WHEN n % 100 = 0 THEN 'invalid_payload: data.field_' || (n / 100 % 20) || ': missing'
            ELSE 'rejected: SQLSTATE 23514: violates \"house_rule\"' END AS grp
        FROM generate_series(1, $LETTERS) AS n
    ), letters AS (
        INSERT INTO dead_letters (id, message_id, round, event_type, clerk_id, reason, detail, attempts, first_seen, died_at, grp,
            status, captured_round, search)
        SELECT id, 'msg_' || n, 0, CASE WHEN n % 3 = 0 THEN 'user.created' ELSE 'user.updated' END, 'user_' || n % 50000,
            split_part(grp, ':', 1), substr(grp, strpos(grp, ':') + 2), 4, now() - interval '3 days',
            now() - n * interval '2 days' / $LETTERS, grp, 'open', 0, lower(grp) || chr(10) || 'msg_' || n
        FROM made RETURNING id
    )
    INSERT INTO dead_letter_contents (letter_id, headers, body) SELECT id, '{}', convert_to('{\"type\":\"user.updated\"}', 'UTF8') FROM letters
";

async fn views(letters: u64, report: &mut Report) -> Outcome<()> {
    let (broker, database) =
        (Broker::new("console", &Ladder::default()).await?, Database::new("console").await?);
    let environment = environment(&broker, &database);
    process::run("migrate", &environment)?;
    database.execute(&LETTERS.replace("$LETTERS", &letters.to_string())).await?;
    database.execute("VACUUM ANALYZE dead_letters, dead_letter_contents, dead_letter_tallies").await?;
    let worker = Headcount::start("worker", &environment)?;
    let list = get(&worker.operators, "/dead/letters").await?.0;
    let id = list
        .split_once("/dead/letters/")
        .and_then(|(_, rest)| rest.split_once('"'))
        .ok_or("no letter")?
        .0
        .to_owned();
    let next = list
        .split_once("?after=")
        .and_then(|(_, rest)| rest.split_once('"'))
        .ok_or("no next page")?
        .0
        .to_owned();
    let group = list_group(&worker.operators).await?;
    let views = [
        ("overview", "/".to_owned()),
        ("dead letters by cause", "/dead".to_owned()),
        ("letters, newest", "/dead/letters".to_owned()),
        ("letters, next page", format!("/dead/letters?after={next}")),
        ("letters of a cause", format!("/dead/letters?group={group}")),
        ("letters by text", "/dead/letters?text=field_7".to_owned()),
        ("letters by user", "/dead/letters?user=user_777".to_owned()),
        ("one letter", format!("/dead/letters/{id}")),
        ("preview of a replay of all", "/dead/replay?reason=rejected".to_owned()),
        ("search for a message id", "/search?q=msg_777".to_owned()),
        ("flow", "/flow".to_owned()),
        ("operations", "/operations".to_owned()),
        ("processes", "/processes".to_owned()),
    ];
    for (name, path) in &views {
        let mut worst: f64 = 0.0;
        for _ in 0..LOOKS {
            tokio::time::sleep(FORGOTTEN).await;
            worst = worst.max(get(&worker.operators, path).await?.1);
        }
        report.add(&format!("view: {name}, slowest of {LOOKS}"), Kind::Milliseconds, worst);
    }
    let browser = Browser::open(1440, 900).await;
    for (name, path) in &views {
        let (mut first, mut whole) = (0_f64, 0_f64);
        for _ in 0..LOOKS {
            browser.client.goto("about:blank").await?;
            tokio::time::sleep(FORGOTTEN).await;
            browser.client.goto(&format!("http://{}{path}", worker.operators)).await?;
            let [painted, loaded] = painted(&browser).await?;
            (first, whole) = (first.max(painted), whole.max(loaded));
        }
        report.add(
            &format!("in Chromium: {name}, first content, slowest of {LOOKS}"),
            Kind::Milliseconds,
            first,
        );
        report.add(
            &format!("in Chromium: {name}, whole page, slowest of {LOOKS}"),
            Kind::Milliseconds,
            whole,
        );
    }
    browser.close().await;
    worker.stop()?;
    broker.remove().await?;
    database.remove().await
}

/// How many milliseconds after it was asked for the page showed its first content, and was whole.
async fn painted(browser: &Browser) -> Outcome<[f64; 2]> {
    let times = browser
        .script(
            "const [page] = performance.getEntriesByType('navigation'); \
             const paints = await new Promise((seen) => new PerformanceObserver((list) => seen(list.getEntries())) \
             .observe({ type: 'paint', buffered: true })); \
             return [paints.find((paint) => paint.name === 'first-contentful-paint').startTime, page.loadEventEnd];",
        )
        .await;
    Ok(serde_json::from_value(times)?)
}

/// The id of the cause with the most letters.
async fn list_group(address: &str) -> Outcome<String> {
    let page = get(address, "/dead").await?.0;
    let link = page.split_once("/dead/letters?group=").and_then(|(_, rest)| rest.split_once('"'));
    Ok(link.ok_or("no cause")?.0.to_owned())
}

/// Ten tabs, and what they cost an idle worker and one that drains a backlog.
async fn tabs(seconds: f64, report: &mut Report) -> Outcome<()> {
    let webhooks = Webhooks::new(Shape { users: 10_000, padding: 0 })?;
    for with_tabs in [false, true] {
        let name = if with_tabs { "ten tabs" } else { "no tab" };
        let (broker, database) =
            (Broker::new("console", &Ladder::default()).await?, Database::new("console").await?);
        let environment = environment(&broker, &database);
        process::run("migrate", &environment)?;
        database.execute(&LETTERS.replace("$LETTERS", "1000")).await?;
        let worker = Headcount::start("worker", &environment)?;
        let mut open = Vec::new();
        if with_tabs {
            for path in TABS {
                open.push(tab(&worker.operators, path).await?);
            }
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        let (begun, start) = (worker.processor_time()?, Instant::now());
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        let idle = (worker.processor_time()? - begun) / start.elapsed().as_secs_f64() * 100.0;
        report.add(&format!("worker, idle, {name}, processor"), Kind::Percent, idle);
        broker.publish(&webhooks, MESSAGES, true).await?;
        let mut inbox = database.inbox().await?;
        inbox.until(MESSAGES).await?;
        report.add(&format!("worker draining, {name}, applied"), Kind::PerSecond, inbox.rate().await?);
        if open.iter().any(JoinHandle::is_finished) {
            return Err("a tab was closed".into());
        }
        open.iter().for_each(JoinHandle::abort);
        worker.stop()?;
        broker.remove().await?;
        database.remove().await?;
    }
    Ok(())
}

/// Opens a page, and keeps it live.
async fn tab(address: &str, path: &str) -> Outcome<JoinHandle<()>> {
    get(address, path).await?;
    let path: String = url::form_urlencoded::byte_serialize(path.as_bytes()).collect();
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET /live?path={path} HTTP/1.1\r\nhost: {address}\r\n\r\n").as_bytes()).await?;
    Ok(tokio::spawn(async move {
        let mut told = vec![0; 1 << 16];
        while stream.read(&mut told).await.is_ok_and(|read| read > 0) {}
    }))
}

/// A page, and how many milliseconds it took. A redirect is followed once.
async fn get(address: &str, path: &str) -> Outcome<(String, f64)> {
    let begun = Instant::now();
    let mut page = ask(address, path).await?;
    if page.starts_with("HTTP/1.1 303") {
        let place =
            page.lines().find_map(|line| line.strip_prefix("location: ")).ok_or("no place")?.to_owned();
        page = ask(address, &place).await?;
    }
    let taken = begun.elapsed().as_secs_f64() * 1000.0;
    match page.starts_with("HTTP/1.1 200") {
        true => Ok((page, taken)),
        false => Err(format!("{path}: {page}").into()),
    }
}

async fn ask(address: &str, path: &str) -> Outcome<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\naccept: text/html\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    while read(&answer).is_none() {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err("a connection ended".into());
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
