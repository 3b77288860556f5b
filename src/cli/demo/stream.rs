//! Owns the demo's stream of made-up webhooks, posted over HTTP to the real ingress. Promises to send again what got no
//! 2xx, as Svix does, within bounds, and to stop at once when told. What is to get lost is never posted. Never touches the
//! queue or the store.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    io::IsTerminal,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use http::StatusCode;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use crate::{
    clerk::{
        made_up::world::{Happened, Kind, Webhook, World},
        secret,
    },
    cli::post::Poster,
    failure::Failure,
    net::NoAnswer,
    secret::Secret,
    text::number,
    time::now,
};

/// Posts that wait for their answer at the same time.
const CONCURRENCY: usize = 32;

/// Webhooks that wait to be sent again; while there are so many, nothing new happens in the world.
const AGAIN_MAX: usize = 500;

/// What Svix waits between its tries, in the demo's time. After the last one a webhook is given up.
const AGAIN_AFTER: [Duration; 7] = [
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(60),
];

/// Between two lines in the log, where there is no terminal.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Plays `rate` webhooks per second at `url`, signed with `secret`, until `shutdown` turns true or its sender is gone. Tells
/// `happens` what happens, before its webhook goes out.
///
/// # Errors
/// The URL or the secret cannot be used. An ingress that does not answer is no error: it is asked again.
pub(super) async fn run(
    url: &str,
    secret: &Secret,
    rate: f64,
    happens: impl Fn(Happened),
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), Failure> {
    let (poster, forger) = (Poster::new(url, secret)?, Poster::new(url, &secret::random())?);
    let mut world = World::new(rand::random());
    let mut tally = Tally::default();
    let line = progress();
    let mut pace = interval(Duration::from_secs_f64(1.0 / rate.clamp(0.01, 10_000.0)));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut report = interval(REPORT_EVERY);
    report.reset();
    let mut posts: FuturesUnordered<BoxFuture<'_, Posted>> = FuturesUnordered::new();
    let mut again: BinaryHeap<Reverse<Again>> = BinaryHeap::new();

    while !*shutdown.borrow() {
        let free = posts.len() < CONCURRENCY;
        let due = again.peek().map(|Reverse(again)| again.due);
        let post = |webhook: Webhook, tries: usize| {
            let poster = if webhook.kind == Kind::Forged { &forger } else { &poster };
            let posted = async move {
                let answer = poster.post(&webhook.id, webhook.body.clone()).await;
                Posted { webhook, tries, answer }
            };
            posted.boxed()
        };
        tokio::select! {
            changed = shutdown.changed() => if changed.is_err() { break },
            Some(Posted { webhook, tries, answer }) = posts.next(), if !posts.is_empty() => {
                if let Some(after) = tally.count(webhook.kind, tries, answer) {
                    again.push(Reverse(Again { due: Instant::now() + after, webhook, tries: tries + 1 }));
                }
                line.set_message(tally.line());
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if free && due.is_some() => {
                if let Some(Reverse(Again { webhook, tries, .. })) = again.pop() {
                    posts.push(post(webhook, tries));
                }
            }
            _ = pace.tick(), if free && again.len() < AGAIN_MAX => {
                let (happened, webhook) = world.next(now());
                happened.into_iter().for_each(&happens);
                match webhook.kind {
                    Kind::Lost => tally.lost += 1,
                    _ => posts.push(post(webhook, 0)),
                }
            }
            _ = report.tick(), if line.is_hidden() => tracing::info!("demo: {}", tally.line()),
        }
    }
    line.finish_and_clear();
    Ok(())
}

/// A webhook and its answer.
struct Posted {
    webhook: Webhook,
    tries: usize,
    answer: Result<StatusCode, NoAnswer>,
}

/// A webhook that got no 2xx and goes out once more.
#[derive(Debug)]
struct Again {
    due: Instant,
    webhook: Webhook,
    tries: usize,
}

impl PartialEq for Again {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Again {}

impl PartialOrd for Again {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Again {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}

/// Counts the stream's answers.
#[derive(Debug, Default)]
struct Tally {
    /// Settled, by kind: accepted, and for a forged one turned away.
    settled: BTreeMap<Kind, u64>,
    lost: u64,
    resent: u64,
    given_up: u64,
}

impl Tally {
    /// Counts an answer; tells after what time to send again, where there is need to.
    fn count(&mut self, kind: Kind, tries: usize, answer: Result<StatusCode, NoAnswer>) -> Option<Duration> {
        let settled = match answer {
            // Being turned away is what a forged one is for.
            Ok(status) => status.is_success() || (kind == Kind::Forged && status == StatusCode::UNAUTHORIZED),
            Err(_) => false,
        };
        if settled {
            *self.settled.entry(kind).or_default() += 1;
            return None;
        }
        match AGAIN_AFTER.get(tries) {
            Some(after) => {
                self.resent += 1;
                Some(*after)
            }
            None => {
                self.given_up += 1;
                None
            }
        }
    }

    fn line(&self) -> String {
        let mut line = format!("{} sent", number(self.settled.values().sum()));
        for (kind, count) in &self.settled {
            line.push_str(&format!(" · {} {}", kind.as_str(), number(*count)));
        }
        for (what, count) in [("lost", self.lost), ("sent again", self.resent), ("given up", self.given_up)] {
            if count > 0 {
                line.push_str(&format!(" · {what} {}", number(count)));
            }
        }
        line
    }
}

/// One line on a terminal; hidden elsewhere.
fn progress() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let line = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(4));
    line.with_style(
        ProgressStyle::with_template("demo {elapsed}: {wide_msg}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner()),
    )
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{HashMap, HashSet},
        sync::Mutex,
    };

    use super::*;
    use crate::cli::testing::{Came, Door};

    const SECRET: &str = "whsec_dGhlIHNlY3JldCBvZiB0aGUgdGVzdHMgb2YgZGVtbw==";

    /// Plays until `enough` says so.
    async fn play(door: &Door, enough: impl Fn(&[Came]) -> bool) -> Vec<Came> {
        let (stop, stopped) = watch::channel(false);
        let secret = Secret::new(SECRET);
        let demo = run(&door.url, &secret, 2000.0, |_| (), stopped);
        let wait = async {
            while !enough(&door.came()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            stop.send(true).unwrap();
        };
        let both = async { tokio::join!(demo, wait) };
        tokio::time::timeout(Duration::from_secs(60), both).await.unwrap().0.unwrap();
        door.came()
    }

    #[tokio::test]
    async fn the_front_door_sees_a_lively_stream() {
        let door = Door::open(SECRET, |came, _| match came.verified {
            true => StatusCode::ACCEPTED,
            false => StatusCode::UNAUTHORIZED,
        })
        .await;
        let came = play(&door, |came| came.len() >= 500).await;
        let forged = came.iter().filter(|came| !came.verified).count();
        assert!(forged > 0 && forged < came.len() / 10, "{forged}");
        let mut times: HashMap<&str, usize> = HashMap::new();
        came.iter().for_each(|came| *times.entry(&came.id).or_default() += 1);
        assert!(times.values().any(|times| *times > 1), "some are duplicates");
        assert!(came.iter().filter(|came| !came.verified).all(|came| times[came.id.as_str()] == 1));
    }

    #[tokio::test]
    async fn what_gets_lost_happens_and_is_not_posted() {
        let door = Door::open(SECRET, |_, _| StatusCode::ACCEPTED).await;
        let (stop, stopped) = watch::channel(false);
        let (secret, versions) = (Secret::new(SECRET), Mutex::new(Vec::new()));
        let happens = |happened| {
            let mut versions = versions.lock().unwrap();
            if let Happened::Lives(user) = happened {
                versions.push((user.id, user.updated_at));
            }
            if versions.len() == 1500 {
                stop.send(true).unwrap();
            }
        };
        run(&door.url, &secret, 5000.0, happens, stopped).await.unwrap();
        let told: HashSet<(String, i64)> = door
            .came()
            .iter()
            .filter_map(|came| serde_json::from_slice::<serde_json::Value>(&came.body).ok())
            .filter_map(|event| {
                Some((event["data"]["id"].as_str()?.to_owned(), event["data"]["updated_at"].as_i64()?))
            })
            .collect();
        let versions = versions.into_inner().unwrap();
        // Later ones may still have been on their way.
        let untold = versions[..1000].iter().filter(|version| !told.contains(version)).count();
        assert!((10..200).contains(&untold), "{untold} of 1000 were not told");
    }

    #[tokio::test]
    async fn what_got_no_2xx_comes_again_with_the_same_id_and_a_good_signature() {
        let door = Door::open(SECRET, |came, n| match (came.verified, n) {
            (false, _) => StatusCode::UNAUTHORIZED,
            (true, 0..20) => StatusCode::SERVICE_UNAVAILABLE,
            (true, _) => StatusCode::ACCEPTED,
        })
        .await;
        let turned_away = |came: &[Came]| -> Vec<String> {
            let away = came.iter().filter(|came| came.answered == StatusCode::SERVICE_UNAVAILABLE);
            away.map(|came| came.id.clone()).collect()
        };
        let taken = |came: &[Came], id: &str| {
            came.iter().any(|came| came.id == id && came.answered == StatusCode::ACCEPTED && came.verified)
        };
        let came =
            play(&door, |came| came.len() > 20 && turned_away(came).iter().all(|id| taken(came, id))).await;
        assert!(!turned_away(&came).is_empty());
    }

    #[tokio::test]
    async fn it_stops_at_once_when_told_also_where_nobody_answers() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let (stop, stopped) = watch::channel(false);
        let demo =
            tokio::spawn(async move { run(&url, &Secret::new(SECRET), 1000.0, |_| (), stopped).await });
        let _held = listener.accept().await.unwrap();
        stop.send(true).unwrap();
        tokio::time::timeout(Duration::from_secs(5), demo).await.unwrap().unwrap().unwrap();
    }

    #[test]
    fn tries_are_bounded_and_counted() {
        let mut tally = Tally::default();
        for (tries, after) in AGAIN_AFTER.into_iter().enumerate() {
            assert_eq!(tally.count(Kind::Created, tries, Err(NoAnswer::Refused)), Some(after));
        }
        assert_eq!(tally.count(Kind::Created, AGAIN_AFTER.len(), Ok(StatusCode::FOUND)), None);
        assert_eq!(tally.count(Kind::Forged, 0, Ok(StatusCode::UNAUTHORIZED)), None);
        assert_eq!(tally.count(Kind::Updated, 0, Ok(StatusCode::ACCEPTED)), None);
        tally.lost = 3;
        assert_eq!(tally.line(), "2 sent · updated 1 · forged 1 · lost 3 · sent again 7 · given up 1");
    }
}
