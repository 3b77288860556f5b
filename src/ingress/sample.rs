//! Owns which of the requests that are turned away leave a sample, and what of them: so that a wrong secret or a
//! skewed clock shows itself to people.
//!
//! Promises at most [`BURST`] at once and one per [`EVERY_MS`] for each code, and that one beyond it costs a look at
//! the clock and an atomic. Never takes a value of a header, nor anything of a body.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Instant,
};

use http::request::Parts;

use crate::{message::Rejected, net::Peer, text::clean, time::Millis};

/// How long it takes until one more sample of a code is let through, in ms.
const EVERY_MS: u64 = 1000;
/// How many samples of a code pass after a quiet time.
const BURST: u64 = 3;
/// Header names in a sample.
const HEADERS_MAX: usize = 40;
/// Bytes of each.
const HEADER_MAX: usize = 100;

/// The codes that are sampled: those that the sender or the set-up is to blame for.
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

/// A token bucket for each code.
pub(super) struct Sampler {
    started: Instant,
    buckets: Buckets,
}

impl Sampler {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), buckets: Buckets::default() }
    }

    /// Whether a request with this code leaves a sample now.
    pub(super) fn admits(&self, code: &str) -> bool {
        self.buckets.take(code, u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

/// For each of [`CODES`], when its bucket will be full again, in ms since the beginning: what it lacks follows from that.
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

/// What a sample shows.
pub(super) fn rejected(code: &str, head: &Parts, at: Millis) -> Rejected {
    let mut headers: Vec<String> = head.headers.keys().map(|name| clean(name.as_str(), HEADER_MAX)).collect();
    headers.sort_unstable();
    headers.truncate(HEADERS_MAX);
    // Not what a header claims: anybody can write that.
    let address = head.extensions.get::<Peer>().map_or_else(|| "unknown".into(), |peer| peer.0.to_string());
    Rejected { at, address, reason: code.to_owned(), headers }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::Rejection;

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
        let sample = rejected("malformed_id", &head, 7);
        assert_eq!(
            (sample.at, sample.address.as_str(), sample.reason.as_str()),
            (7, "192.0.2.7", "malformed_id")
        );
        assert_eq!(sample.headers.len(), 40);
        assert_eq!(sample.headers[..2], ["svix-id", "x-forwarded-for"]);
        assert!(sample.headers.is_sorted() && sample.headers.iter().all(|name| name.len() <= 100));
        let json = serde_json::to_string(&sample).unwrap();
        assert!(!json.contains("secret") && !json.contains("10.9.9.9") && json.len() < 8192, "{json}");
    }
}
