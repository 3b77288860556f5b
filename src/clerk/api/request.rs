//! Owns the way of a request to Clerk's API: its turn within the quota, its headers, its limit, and trying it again where it
//! failed for a reason that may pass. Promises that dropping a request at any point harms no other. Also owns how far
//! Clerk's clock is ahead of ours. Never reads what an answer holds.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use chrono::DateTime;
use http::{HeaderMap, HeaderValue, Request, header};
use http_body_util::Full;
use humantime::format_duration;
use leaky_bucket::RateLimiter;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::warn;
use url::Url;

use super::{
    Settings,
    answer::{self, Given, Trouble},
    error::{ApiError, Away},
};
use crate::{
    net::Client,
    pause::Pauses,
    time::{Millis, now},
};

/// The version of the API that the shapes are read of.
const VERSION: &str = "2026-05-12";

/// How long one try may take.
const LIMIT: Duration = Duration::from_secs(30);

/// How long the pauses are between tries: they grow from the first to the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// Clocks that are less apart than this count as one: Clerk tells its own in whole seconds.
const APART: Millis = 5000;

/// Clerk's quota for a live key in requests per second, ...
const LIVE: f64 = 100.0;
/// ... and for a test key.
const TEST: f64 = 10.0;
/// The part of it that is taken: the application asks with the same key.
const SHARE: f64 = 0.5;

/// All that requests share.
pub(super) struct Requests {
    client: Client,
    base: Url,
    host: String,
    /// Marked as sensitive.
    authorization: HeaderValue,
    patience: Duration,
    pub(super) keep_object: bool,
    quota: RateLimiter,
    /// Nothing is asked before: Clerk said so.
    rest: Mutex<Instant>,
    /// How far Clerk's clock is ahead of ours at least, or behind, in milliseconds.
    ahead: AtomicI64,
}

/// What was answered, and when the try that it answers began.
#[derive(Debug)]
pub(super) struct Got {
    pub(super) given: Given,
    pub(super) read_at: Millis,
}

impl Requests {
    pub(super) fn new(settings: &Settings) -> Result<Self, ApiError> {
        let setup = |problem: String, hint| ApiError::Setup { problem, hint };
        let url = |problem: &str| {
            setup(
                format!("its address {problem}"),
                "set CLERK_API_URL to https://api.clerk.com, or leave it unset",
            )
        };
        let base = Url::parse(&settings.url).map_err(|_| url("is no URL"))?;
        let host = base.host_str().ok_or_else(|| url("names no host"))?;
        let host = base.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let client = match base.scheme() {
            "http" => Client::http(),
            "https" => Client::https().map_err(|error| {
                setup(
                    format!("this machine's certificates cannot be read: {error}"),
                    "install the package ca-certificates, or set SSL_CERT_FILE",
                )
            })?,
            _ => return Err(url("starts with neither http:// nor https://")),
        };
        let key = settings.key.expose();
        let mut authorization = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| {
            setup(
                "its key holds a character that no key has".into(),
                "set CLERK_SECRET_KEY to sk_live_… or sk_test_…",
            )
        })?;
        authorization.set_sensitive(true);
        let quota = if key.starts_with("sk_live_") { LIVE } else { TEST };
        Ok(Self {
            client,
            base,
            host,
            authorization,
            patience: settings.patience,
            keep_object: settings.keep_object,
            quota: limiter(settings.rate.unwrap_or(quota * SHARE)),
            rest: Mutex::new(Instant::now()),
            ahead: AtomicI64::new(0),
        })
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// The URL of a path below `/v1/`, each part escaped.
    pub(super) fn url(&self, path: &[&str], query: &[(&str, String)]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut parts) = url.path_segments_mut() {
            parts.pop_if_empty().push("v1").extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// Asks, and asks again while the reason for a failure may pass and there is patience left. Cancel-safe.
    pub(super) async fn get(&self, url: &Url, most: usize) -> Result<Got, ApiError> {
        let mut pauses = Pauses::new(PAUSES.0, PAUSES.1);
        let mut first = None;
        let mut failures = 0_u32;
        loop {
            self.turn().await;
            let first: Instant = *first.get_or_insert_with(Instant::now);
            let (error, after) = match self.once(url, most).await {
                Ok(got) => return Ok(got),
                Err(Trouble::Lasting(error)) => return Err(error),
                Err(Trouble::Passing { error, after }) => (error, after),
            };
            let pause = after.unwrap_or_else(|| pauses.next_pause());
            if first.elapsed() + pause > self.patience {
                return Err(error);
            }
            failures += 1;
            if failures == 2 {
                warn!("{error}; it is asked again for {}", format_duration(self.patience));
            }
            match after {
                // All others wait too.
                Some(_) => self.rest_for(pause),
                None => sleep(pause).await,
            }
        }
    }

    /// Waits until a request may be made.
    async fn turn(&self) {
        let rest = *self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        sleep_until(rest).await;
        self.quota.acquire_one().await;
    }

    fn rest_for(&self, pause: Duration) {
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        *rest = (*rest).max(Instant::now() + pause);
    }

    async fn once(&self, url: &Url, most: usize) -> Result<Got, Trouble> {
        let request = Request::get(url.as_str())
            .header(header::AUTHORIZATION, &self.authorization)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("headcount/", env!("CARGO_PKG_VERSION")))
            .header("clerk-api-version", VERSION)
            .body(Full::<Bytes>::default())
            .map_err(|_| {
                Trouble::Lasting(ApiError::Setup {
                    problem: "the request's URL cannot be written".into(),
                    hint: "check CLERK_API_URL",
                })
            })?;
        let began = now();
        let answer = self.client.exchange(request, LIMIT, most).await.map_err(|why| Trouble::Passing {
            error: ApiError::Away { host: self.host.clone(), why: Away::NoAnswer(why) },
            after: None,
        })?;
        self.learn(&answer.headers, began, now());
        let given = answer::judge(answer, &self.base, &self.host)?;
        Ok(Got { given, read_at: began + self.clock_offset().unwrap_or_default() })
    }

    /// How far Clerk's clock is ahead of ours, where that is known and matters.
    pub(super) fn clock_offset(&self) -> Option<Millis> {
        let ahead = self.ahead.load(Ordering::Relaxed);
        (ahead.abs() >= APART).then_some(ahead)
    }

    /// Clerk's clock showed `Date`, a whole second, at some time between `began` and `ended`. What is known so far moves
    /// no further than that proves: a slow answer proves little.
    fn learn(&self, headers: &HeaderMap, began: Millis, ended: Millis) {
        // A cache's `Date` is as old as its copy.
        if headers.contains_key(header::AGE) {
            return;
        }
        let date = headers.get(header::DATE).and_then(|date| date.to_str().ok());
        let Some(date) = date.and_then(|date| DateTime::parse_from_rfc2822(date).ok()) else { return };
        let date = date.timestamp_millis();
        let (least, most) = (date - ended, date + 999 - began);
        let ahead = self.ahead.load(Ordering::Relaxed);
        // Where our own clock was set in between, they may be the wrong way round.
        self.ahead.store(ahead.min(most.max(least)).max(least), Ordering::Relaxed);
    }
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("host", &self.host).finish_non_exhaustive()
    }
}

/// Lets `rate` requests per second through, and those of a fifth of a second at once.
fn limiter(rate: f64) -> RateLimiter {
    let rate = if rate.is_finite() { rate.clamp(0.01, 1_000.0) } else { TEST * SHARE };
    let burst = (rate / 5.0).ceil() as usize;
    // The bucket counts whole milliseconds: the faster it is, the more it takes at a time.
    let refill = (rate / 10.0).ceil();
    RateLimiter::builder()
        .interval(Duration::from_secs_f64(refill / rate))
        .refill(refill as usize)
        .initial(burst)
        .max(burst)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    /// 2025-10-09 08:53:20 UTC.
    const AT: Millis = 1_760_000_000_000;

    fn requests() -> Requests {
        let settings = Settings {
            key: Secret::new("sk_test_x"),
            url: "http://127.0.0.1:1/clerk/".into(),
            rate: None,
            patience: Duration::ZERO,
            keep_object: false,
        };
        Requests::new(&settings).unwrap()
    }

    fn date(more: &[(&'static str, &'static str)]) -> HeaderMap {
        let all = [("date", "Thu, 09 Oct 2025 08:53:20 GMT")].iter().chain(more);
        all.map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_clock_is_believed_to_differ_no_further_than_answers_prove() {
        let requests = requests();
        for (headers, began, ended, offset) in [
            // Clerk's clock is ahead by 30 s to 31 s, or so; then a slow answer says 1 s to 61 s.
            (date(&[]), AT - 30_010, AT - 30_000, Some(30_000)),
            (date(&[]), AT - 60_000, AT - 1000, Some(30_000)),
            (date(&[("age", "3")]), AT - 90_000, AT - 90_000, Some(30_000)),
            (HeaderMap::new(), AT - 90_000, AT - 90_000, Some(30_000)),
            // Ours was set: they are in step.
            (date(&[]), AT + 200, AT + 300, None),
            (date(&[]), AT + 7000, AT + 7001, Some(-6001)),
            (date(&[]), AT + 3000, AT + 4000, None),
        ] {
            requests.learn(&headers, began, ended);
            assert_eq!(requests.clock_offset(), offset, "{} to {}", began - AT, ended - AT);
        }
    }

    #[test]
    fn a_base_with_a_path_keeps_it() {
        let url = requests().url(&["users", "a/b ?#"], &[("x", "1+ &".into())]);
        assert_eq!(url.as_str(), "http://127.0.0.1:1/clerk/v1/users/a%2Fb%20%3F%23?x=1%2B+%26");
    }
}
