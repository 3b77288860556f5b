//! Owns samples of requests that the ingress turned away: how they move from the queue into the table, and what they say
//! about a secret that was rotated or a clock that is wrong. What ingresses tell about themselves comes the same way, and is
//! handed on. What cannot be read is dropped.

use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;
use tokio::sync::watch;

use crate::{
    letters::consume::{self, Sink},
    message::Rejected,
    processes::Board,
    queue::{Delivery, Queue, Source},
    store::{StoreError, housekeeping::Rejections},
    time::{Millis, now, rfc3339},
};

/// Samples that are older, in milliseconds, say nothing about now.
const RECENT: Millis = 60 * 60 * 1000;

/// Moves the samples into the table, and notices onto the board, until `stop` turns true.
pub async fn run(
    queue: Arc<dyn Queue>,
    rejections: Arc<dyn Rejections>,
    board: Board,
    stop: watch::Receiver<bool>,
) {
    consume::run(queue, Arc::new(Record { rejections, board }), stop).await;
}

struct Record {
    rejections: Arc<dyn Rejections>,
    board: Board,
}

#[async_trait]
impl Sink for Record {
    type Item = Rejected;
    const WHAT: &'static str = "rejected requests";
    const SOURCE: Source = Source::Rejections;

    fn read(&self, delivery: &Delivery) -> Option<Rejected> {
        match self.board.hear(&delivery.message.body) {
            true => None,
            false => read(&delivery.message.body),
        }
    }

    fn bare(&self, sample: Rejected) -> Rejected {
        Rejected { address: String::new(), headers: Vec::new(), ..sample }
    }

    async fn take(&self, samples: &[Rejected]) -> Result<(), StoreError> {
        self.rejections.record(samples).await
    }
}

/// A sample as it travels; cleaned and bounded, because the queue is open to other hands.
fn read(body: &[u8]) -> Option<Rejected> {
    let sample: Rejected = serde_json::from_slice(body).ok()?;
    let at = if (0..=now() + RECENT).contains(&sample.at) { sample.at } else { now() };
    let headers = sample.headers.iter().map(String::as_str);
    Some(Rejected::bounded(at, &sample.address, &sample.reason, headers))
}

/// A sample for people.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Sample {
    /// RFC 3339.
    pub at: String,
    /// Where it came from.
    pub address: String,
    /// The code that it was answered.
    pub reason: String,
    /// Names of its headers.
    pub headers: Vec<String>,
}

impl From<&Rejected> for Sample {
    fn from(rejected: &Rejected) -> Self {
        Self {
            at: rfc3339(rejected.at),
            address: rejected.address.clone(),
            reason: rejected.reason.clone(),
            headers: rejected.headers.clone(),
        }
    }
}

/// What the newest samples of one reason say.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Explanation {
    /// The code that they were answered.
    pub reason: String,
    /// How many of the newest samples have this reason.
    pub samples: usize,
    /// When the newest of them came in, RFC 3339.
    pub newest: String,
    /// What it means.
    pub meaning: &'static str,
    /// What to do.
    pub hint: &'static str,
}

/// How many samples an explanation looks at, the newest.
pub const SAMPLES: u32 = 200;

/// What the samples of the last hour say, the most frequent reason first.
pub fn explain(samples: &[Rejected], now: Millis) -> Vec<Explanation> {
    let mut explanations: Vec<(Millis, Explanation)> = Vec::new();
    for sample in samples.iter().filter(|sample| now - sample.at <= RECENT) {
        match explanations.iter_mut().find(|(_, known)| known.reason == sample.reason) {
            Some((newest, known)) => {
                known.samples += 1;
                *newest = sample.at.max(*newest);
            }
            None => {
                let (meaning, hint) = meaning(&sample.reason);
                let explanation = Explanation {
                    reason: sample.reason.clone(),
                    samples: 1,
                    newest: String::new(),
                    meaning,
                    hint,
                };
                explanations.push((sample.at, explanation));
            }
        }
    }
    explanations.sort_by(|(_, a), (_, b)| b.samples.cmp(&a.samples).then_with(|| a.reason.cmp(&b.reason)));
    let timed = explanations
        .into_iter()
        .map(|(newest, explanation)| Explanation { newest: rfc3339(newest), ..explanation });
    timed.collect()
}

fn meaning(reason: &str) -> (&'static str, &'static str) {
    match reason {
        "no_matching_signature" => (
            "the secret differs from the sender's, or somebody else is knocking",
            "compare CLERK_WEBHOOK_SIGNING_SECRET with the endpoint's page in the Clerk dashboard; while rotating, set both, separated by a comma",
        ),
        "timestamp_out_of_range" => (
            "the clock of this machine, or of the sender, is more than five minutes off, or old requests are replayed",
            "check the clock: timedatectl, or chronyc tracking",
        ),
        "malformed_signature_header" | "malformed_timestamp" | "malformed_id" => (
            "requests whose signature headers no sender of webhooks writes: scanners, or a proxy that changes headers",
            "if webhooks are missing, let the proxy pass svix-id, svix-timestamp and svix-signature unchanged, each once",
        ),
        "missing_signature_header" => (
            "requests without the headers of a signed webhook: scanners, or a proxy that drops headers",
            "if webhooks are missing, let the proxy pass svix-id, svix-timestamp and svix-signature",
        ),
        "wrong_path" => (
            "webhooks come to a path where none is taken",
            "let the endpoint's address in the Clerk dashboard end in the value of HEADCOUNT_WEBHOOK_PATH, /webhooks/clerk unless set, without a slash after it; and let a proxy keep the path",
        ),
        _ => (
            "requests that cannot be a webhook",
            "look where they come from, and which headers they carry: headcount rejections list",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{REJECTED_HEADERS, WORD_MAX};

    fn sample(reason: &str, at: Millis) -> Rejected {
        Rejected { at, address: "192.0.2.1".into(), reason: reason.into(), headers: Vec::new() }
    }

    #[test]
    fn a_wrong_secret_and_a_wrong_clock_are_told_apart() {
        let now = 1_760_000_000_000;
        let mut samples = vec![sample("no_matching_signature", now - 1000); 3];
        samples.push(sample("timestamp_out_of_range", now - 2000));
        samples.push(sample("missing_headers", now - RECENT - 1));
        let told = explain(&samples, now);
        let reasons: Vec<(&str, usize)> = told.iter().map(|one| (one.reason.as_str(), one.samples)).collect();
        assert_eq!(reasons, [("no_matching_signature", 3), ("timestamp_out_of_range", 1)]);
        assert!(told[0].meaning.contains("secret differs") && told[1].meaning.contains("clock"));
        assert_eq!(told[0].newest, "2025-10-09T08:53:19.000Z");
    }

    #[test]
    fn a_sample_is_read_cleaned_and_bounded_or_thrown_away() {
        let text = serde_json::to_vec(&Rejected {
            at: Millis::MAX,
            address: "a\0".repeat(1000),
            reason: "r\n".into(),
            headers: vec!["h".repeat(1000); 1000],
        })
        .unwrap();
        let read_back = read(&text).unwrap();
        assert!(read_back.at <= now() && read_back.address.len() <= WORD_MAX);
        assert_eq!((read_back.reason.as_str(), read_back.headers.len()), ("r\u{fffd}", REJECTED_HEADERS));
        for nothing in ["", "{}", "[]", "no", r#"{"at":"x"}"#] {
            assert_eq!(read(nothing.as_bytes()), None, "{nothing}");
        }
    }
}
