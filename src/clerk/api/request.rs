//! Owns the way of a request to Clerk's API: its turn within the quota, its headers, its limit, and trying it again where it
//! failed for a reason that may pass. Promises that dropping a request at any point harms no other. Never reads what an answer
//! holds.

use std::{
    fmt,
    pin::pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, header};
use http_body_util::Full;
use humantime::format_duration;
use leaky_bucket::RateLimiter;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use url::Url;

use super::{
    Settings,
    answer::{self, Given, Trouble},
    clock::Clock,
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

/// An answer that takes longer is told of.
const SILENT: Duration = Duration::from_secs(5);

/// The longest rest that one 429 brings.
const REST_MAX: Duration = Duration::from_secs(600);

/// How long the pauses are between tries: they grow from the first to the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

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
    /// What holds requests up at present, for people.
    trouble: watch::Sender<Option<String>>,
    pub(super) clock: Clock,
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
        let host = answer::authority(&base).ok_or_else(|| url("names no host"))?;
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
            trouble: watch::Sender::default(),
            clock: Clock::default(),
        })
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
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
        loop {
            self.turn().await?;
            let first: Instant = *first.get_or_insert_with(Instant::now);
            let (error, after) = match self.told_of(self.once(url, most)).await {
                Ok(got) => {
                    self.trouble.send_if_modified(|trouble| trouble.take().is_some());
                    return Ok(got);
                }
                Err(Trouble::Lasting(error)) => return Err(error),
                Err(Trouble::Passing { error, after }) => (error, after),
            };
            // Whoever asks for no pause at all would be asked as often as the quota allows.
            let pause = pauses.next_pause().max(after.unwrap_or_default());
            if after.is_some() {
                // All others wait too, also those who ask after this has given up.
                self.rest_for(pause.min(REST_MAX));
            }
            if first.elapsed().saturating_add(pause) > self.patience {
                return Err(error);
            }
            self.trouble.send_replace(Some(format!("{error}; trying again")));
            if after.is_none() {
                sleep(pause).await;
            }
        }
    }

    /// Waits for an answer, and tells again and again of one that takes long.
    async fn told_of<T>(&self, answer: impl Future<Output = T>) -> T {
        let mut answer = pin!(answer);
        let mut silent = Duration::ZERO;
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                () = sleep(SILENT) => {
                    silent += SILENT;
                    let so_long = format_duration(silent);
                    let why = format!("{} has not answered for {so_long}; waiting", self.host);
                    self.trouble.send_replace(Some(why));
                }
            }
        }
    }

    /// Waits until a request may be made.
    ///
    /// # Errors
    /// [`ApiError::Limited`]: Clerk has asked for a longer rest than there is patience for.
    async fn turn(&self) -> Result<(), ApiError> {
        loop {
            self.quota.acquire_one().await;
            let rest = *self.rest.lock().unwrap_or_else(PoisonError::into_inner);
            let left = rest.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            if left > self.patience {
                let after = Some(Duration::from_secs(left.as_secs() + 1));
                return Err(ApiError::Limited { host: self.host.clone(), after });
            }
            sleep_until(rest).await;
        }
    }

    fn rest_for(&self, pause: Duration) {
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        *rest = Instant::now().checked_add(pause).map_or(*rest, |then| then.max(*rest));
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
        self.clock.learn(&answer.headers, began, now());
        let given = answer::judge(answer, &self.base, &self.host)?;
        Ok(Got { given, read_at: self.clock.clerks(began) })
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

    #[test]
    fn a_base_with_a_path_keeps_it() {
        let url = requests().url(&["users", "a/b ?#"], &[("x", "1+ &".into())]);
        assert_eq!(url.as_str(), "http://127.0.0.1:1/clerk/v1/users/a%2Fb%20%3F%23?x=1%2B+%26");
    }
}
