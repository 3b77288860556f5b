//! Owns how a request is turned away: every reason with its code and answer, the log line, and the few rejected requests
//! that are kept for people, so that a wrong secret or a skewed clock shows itself.
//!
//! Promises that a flood costs next to nothing: a line a minute per code, and at most [`BURST`] requests of a code kept at
//! once and one per [`EVERY_MS`]. Never takes a value of a header, nor anything of a body.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use axum::response::Response;
use http::{HeaderValue, StatusCode, header, request::Parts};
use tracing::{debug, warn};

use crate::{
    clerk::signature::Rejection,
    message::Rejected,
    net::{Peer, problem},
    queue::Queue,
    telemetry::{metrics::Answer, tally::Tally},
    time::{Millis, now},
};

/// What a sender is asked to wait before it tries again, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");
/// How long it takes until one more request of a code is kept, in ms.
const EVERY_MS: u64 = 1000;
/// How many requests of a code are kept after a quiet time.
const BURST: u64 = 3;

/// Why a request was not answered 202.
pub(super) enum Refusal {
    /// It is no webhook of ours.
    Rejected(Rejection),
    /// Its body broke off, or is not well-formed.
    BrokenBody,
    /// Its body is over the limit.
    TooLarge,
    /// Its body did not come in time, or kept others waiting.
    TooSlow,
    /// It came to a path where no webhook is taken.
    WrongPath,
    /// It cannot be queued now, or there was no memory for its body in time.
    Unavailable,
    /// It is `doctor`'s, and a webhook could not be queued now.
    Unchecked,
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl Refusal {
    /// The stable code, as it is answered.
    fn code(&self) -> &'static str {
        match self {
            Self::Rejected(rejection) => rejection.code(),
            Self::BrokenBody => "malformed_body",
            Self::TooLarge => "body_too_large",
            Self::TooSlow => "body_too_slow",
            Self::WrongPath => "wrong_path",
            Self::Unavailable | Self::Unchecked => "unavailable",
        }
    }

    /// How it is counted, and with what status and in what words it is answered.
    fn answer(&self) -> (Answer, StatusCode, &'static str) {
        match self {
            Self::Rejected(rejection) => match rejection {
                Rejection::MissingHeader
                | Rejection::MalformedHeader
                | Rejection::MalformedTimestamp
                | Rejection::MalformedId => (Answer::Malformed, StatusCode::BAD_REQUEST, rejection.message()),
                Rejection::TimestampOutOfRange | Rejection::NoMatchingSignature => {
                    (Answer::Unauthorized, StatusCode::UNAUTHORIZED, rejection.message())
                }
            },
            Self::BrokenBody => {
                (Answer::Malformed, StatusCode::BAD_REQUEST, "the body broke off or is not well-formed")
            }
            Self::TooLarge => {
                (Answer::TooLarge, StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than a webhook can be")
            }
            Self::TooSlow => {
                (Answer::TooSlow, StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")
            }
            Self::WrongPath => (
                Answer::WrongPath,
                StatusCode::NOT_FOUND,
                "webhooks are taken at another path: compare HEADCOUNT_WEBHOOK_PATH",
            ),
            Self::Unavailable | Self::Unchecked => (
                Answer::Unavailable,
                StatusCode::SERVICE_UNAVAILABLE,
                "the webhook cannot be stored at present; send it again later",
            ),
        }
    }

    /// The answer on the wire.
    pub(super) fn response(&self) -> Response {
        let (_, status, message) = self.answer();
        let mut response = problem(status, self.code(), message);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}

/// Turns the requests of one listener away.
pub(super) struct Refusals {
    /// Takes the rejected requests that are kept.
    queue: Arc<dyn Queue>,
    started: Instant,
    buckets: Buckets,
    turned_away: Tally,
}

impl Refusals {
    pub(super) fn new(queue: Arc<dyn Queue>) -> Self {
        Self {
            queue,
            started: Instant::now(),
            buckets: Buckets::default(),
            turned_away: Tally::new(|counts| warn!("turned away since the last such line: {counts}")),
        }
    }

    /// Logs a request that is turned away, keeps it if its code has any left, and says how to count and answer it.
    pub(super) fn refuse(&self, refusal: Refusal, head: &Parts) -> (Answer, Response) {
        let code = refusal.code();
        // An outage is logged as one.
        if !matches!(refusal, Refusal::Unavailable) && self.turned_away.is_first(code) {
            warn!(code, "turned a request away: {code}; more of them are counted, and told once a minute");
        }
        debug!(code, "turned a request away: {code}");
        if self.buckets.take(code, u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)) {
            // Lost where the queue has no room for it; it never waits.
            match serde_json::to_vec(&rejected(code, head, now())) {
                Ok(rejected) => self.queue.sample(rejected.into()),
                Err(error) => debug!("a rejected request is not kept: {error}"),
            }
        }
        (refusal.answer().0, refusal.response())
    }
}

/// The codes whose requests are kept: those that the sender or the set-up is to blame for.
const CODES: [&str; 10] = [
    "missing_signature_header",
    "malformed_signature_header",
    "malformed_timestamp",
    "malformed_id",
    "timestamp_out_of_range",
    "no_matching_signature",
    "malformed_body",
    "body_too_large",
    "body_too_slow",
    "wrong_path",
];

/// A token bucket for each of [`CODES`], as the time when it will be full again, in ms since the listener began: what it
/// lacks follows from that.
#[derive(Default)]
struct Buckets([AtomicU64; CODES.len()]);

impl Buckets {
    fn take(&self, code: &str, now: u64) -> bool {
        let Some(place) = CODES.iter().position(|known| *known == code) else { return false };
        let taken = self.0[place].fetch_update(Relaxed, Relaxed, |full_at| {
            let full_at = full_at.max(now).saturating_add(EVERY_MS);
            (full_at <= now.saturating_add(BURST * EVERY_MS)).then_some(full_at)
        });
        taken.is_ok()
    }
}

/// What is kept of a request.
fn rejected(code: &str, head: &Parts, at: Millis) -> Rejected {
    // Not what a header claims: anybody can write that.
    let address = head.extensions.get::<Peer>().map_or_else(|| "unknown".into(), |peer| peer.0.to_string());
    let mut headers: Vec<&str> = head.headers.keys().map(|name| name.as_str()).collect();
    headers.sort_unstable();
    Rejected::bounded(at, &address, code, headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_a_second() {
        let buckets = Buckets::default();
        let passed = |at: std::ops::Range<u64>| at.filter(|ms| buckets.take("malformed_id", *ms)).count();
        assert_eq!(passed(0..1000), 3, "a burst, and then no more in this second");
        assert_eq!(passed(1000..11_000), 10);
        // A quiet hour saves up no more than a burst.
        assert_eq!(passed(3_600_000..3_600_999), 3);
    }

    #[test]
    fn one_code_takes_nothing_from_another() {
        let buckets = Buckets::default();
        assert!((0..100).filter(|_| buckets.take("malformed_id", 0)).count() == 3);
        assert!(buckets.take("no_matching_signature", 0));
    }

    #[test]
    fn every_rejection_is_sampled_and_an_outage_is_not() {
        let buckets = Buckets::default();
        for rejection in Rejection::ALL {
            assert!(buckets.take(rejection.code(), 0), "{}", rejection.code());
        }
        assert!(!buckets.take("unavailable", 0));
    }

    #[test]
    fn a_sample_shows_the_peer_and_the_names_of_headers_within_bounds() {
        let mut request =
            http::Request::builder().header("x-forwarded-for", "10.9.9.9").header("Svix-Id", "secret");
        for number in 0..80 {
            request = request.header(format!("z{}{number}", "a".repeat(200)), "secret");
        }
        let (mut head, ()) = request.body(()).unwrap().into_parts();
        assert_eq!(rejected("malformed_id", &head, 7).address, "unknown");
        head.extensions.insert(Peer("192.0.2.7".parse().unwrap()));
        let rejected = rejected("malformed_id", &head, 7);
        assert_eq!(
            (rejected.at, rejected.address.as_str(), rejected.reason.as_str()),
            (7, "192.0.2.7", "malformed_id")
        );
        assert_eq!(rejected.headers.len(), 40);
        assert_eq!(rejected.headers[..2], ["svix-id", "x-forwarded-for"]);
        assert!(rejected.headers.is_sorted() && rejected.headers.iter().all(|name| name.len() <= 100));
        let json = serde_json::to_string(&rejected).unwrap();
        assert!(!json.contains("secret") && !json.contains("10.9.9.9") && json.len() < 8192, "{json}");
    }
}
