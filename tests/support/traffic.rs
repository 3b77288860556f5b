//! Owns sending webhooks to a running process, and reading what it counts.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use headcount::{clerk::made_up::Person, cli::post::Poster, time::now};

use super::process::Process;

/// Posts `user.created` of `count` users at `rate` per second, each until it is accepted. Message `n` is
/// `msg_{prefix}_{n}`, about `user_{prefix}_{n}`.
pub async fn steady(poster: Poster, prefix: &str, count: u64, rate: u64, patience: Duration) {
    let mut pace = tokio::time::interval(Duration::from_micros(1_000_000 / rate));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let ticks = futures_util::stream::unfold((pace, 0), |(mut pace, n)| async move {
        pace.tick().await;
        (n < count).then_some((n, (pace, n + 1)))
    });
    ticks
        .for_each_concurrent(500, |n| {
            let poster = poster.clone();
            async move {
                let sample = Person::of(format!("user_{prefix}_{n}"), now());
                let (id, body) =
                    (format!("msg_{prefix}_{n}"), bytes::Bytes::from(sample.event("user.created", now())));
                let deadline = Instant::now() + patience;
                while !poster.post(&id, body.clone()).await.is_ok_and(|status| status.is_success()) {
                    assert!(Instant::now() < deadline, "{id} was never accepted");
                    // Svix waits longer; at once, thousands that wait would do nothing but knock.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        })
        .await;
}

/// The value of a counter or gauge, summed over its labels.
pub async fn metric(process: &Process, name: &str) -> f64 {
    samples(process, name).await.into_iter().map(|(_, value)| value).sum()
}

/// The same, summed over the series whose labels contain a value.
pub async fn metric_of(process: &Process, name: &str, label: &str) -> f64 {
    let samples = samples(process, name).await.into_iter();
    samples.filter(|(labels, _)| labels.contains(&format!("\"{label}\""))).map(|(_, value)| value).sum()
}

/// How many attempts were burned: all retries except the parked ones.
pub async fn burned(process: &Process) -> f64 {
    let retries = samples(process, "headcount_retries_total").await.into_iter();
    retries.filter(|(labels, _)| !labels.contains("parked")).map(|(_, value)| value).sum()
}

async fn samples(process: &Process, name: &str) -> Vec<(String, f64)> {
    let address: std::net::SocketAddr =
        process.operators.trim_start_matches("http://").trim_end_matches('/').parse().unwrap();
    let answer = tokio::task::spawn_blocking(move || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = answer.await.unwrap();
    let samples = answer.lines().filter_map(|line| {
        let rest = line.strip_prefix(name).filter(|rest| rest.starts_with(' ') || rest.starts_with('{'))?;
        let (labels, value) = rest.rsplit_once(' ')?;
        Some((labels.to_owned(), value.parse().ok()?))
    });
    samples.collect()
}

/// Runs statements as the server's owner.
pub async fn sql(url: &str, statement: &str) {
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned())).execute(&mut connection).await.unwrap();
}
