//! Owns one request to the webhook path: verify, publish, answer.
//!
//! Promises 2xx only after the queue has said that the message is durable, and an answer within the bounds whatever
//! the client and the queue do. Hands on a sample of what it turns away, at a bounded rate, and logs a line a minute of it. Never
//! logs a body, an address or, above debug level, each request.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    body::Body,
    extract::{Request, State},
    response::Response,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};
use tracing::{debug, error, info, warn};

use super::{
    Bounds,
    read::{Read, Reader, Unread},
    sample::{Sampler, rejected},
    verify::{Rejection, SignedHeaders, Verified, Verifier, is_signed},
};
use crate::{
    clerk,
    message::{Message, PROBE},
    net::{Visitor, json_response, not_found, problem},
    queue::{PUBLISHING, Queue},
    telemetry::{
        metrics::{Answer, IngressMetrics},
        tally::Tally,
    },
};

/// What a sender is asked to wait before it tries again, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

/// What a message in flight to the queue takes beside its body, in bytes.
const MESSAGE_OVERHEAD: usize = 1024;

/// What the requests of one listener share.
pub(super) struct Intake {
    verifier: Verifier,
    queue: Arc<dyn Queue>,
    bounds: Bounds,
    metrics: IngressMetrics,
    reader: Reader,
    /// Room, in bytes, for messages being published: only what was verified takes it up.
    publishing: Arc<Semaphore>,
    /// Whether the last publish failed, so that an outage is logged once and not per request.
    failing: AtomicBool,
    /// Which of those turned away leave a sample.
    sampler: Sampler,
    turned_away: Tally,
}

/// What a request is answered 2xx for.
enum Taken {
    /// It is durable.
    Queued,
    /// It asked whether it would be.
    Checked,
}

/// Why a request was not answered 202.
enum Refusal {
    Rejected(Rejection),
    BrokenBody,
    TooLarge,
    TooSlow,
    /// It came to a path where no webhook is taken.
    WrongPath,
    Unavailable,
    /// The same, for one that only asked.
    Unchecked,
}

impl From<Unread> for Refusal {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Broken => Self::BrokenBody,
            Unread::TooLarge => Self::TooLarge,
            Unread::TooSlow => Self::TooSlow,
            Unread::NoRoom => Self::Unavailable,
        }
    }
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

/// Answers a request.
pub(super) async fn accept(State(intake): State<Arc<Intake>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let accepted = |status| json_response(StatusCode::ACCEPTED, &serde_json::json!({ "status": status }));
    let (answer, response) = match intake.take_in(&head, body).await {
        Ok(Taken::Queued) => (Answer::Queued, accepted("queued")),
        Ok(Taken::Checked) => return accepted("checked"),
        Err(Refusal::Unchecked) => return Refusal::Unchecked.answer().1,
        Err(refusal) => {
            intake.tell(&refusal, &head);
            refusal.answer()
        }
    };
    intake.metrics.answered(answer);
    response
}

/// Answers a request to any other path: 404. A webhook that came to it shows itself, for its sender does not know that
/// nobody takes it.
pub(super) async fn elsewhere(State(intake): State<Arc<Intake>>, request: Request) -> Response {
    let (head, _) = request.into_parts();
    if head.method != Method::POST || !is_signed(&head.headers) {
        return not_found().await;
    }
    intake.tell(&Refusal::WrongPath, &head);
    let (answer, response) = Refusal::WrongPath.answer();
    intake.metrics.answered(answer);
    response
}

impl Intake {
    pub(super) fn new(
        verifier: Verifier,
        queue: Arc<dyn Queue>,
        bounds: Bounds,
        metrics: IngressMetrics,
    ) -> Self {
        Self {
            verifier,
            queue,
            reader: Reader::new(&bounds),
            publishing: Arc::new(Semaphore::new(bounds.publishing_bytes)),
            bounds,
            metrics,
            failing: AtomicBool::new(false),
            sampler: Sampler::new(),
            turned_away: Tally::new(|counts| warn!("turned away since the last such line: {counts}")),
        }
    }

    /// The whole way of a webhook through the ingress.
    async fn take_in(&self, head: &Parts, body: Body) -> Result<Taken, Refusal> {
        let received_at = crate::time::now();
        self.reader.admits(&body)?;
        let headers = SignedHeaders::read(&head.headers, received_at)?;
        // The room for the body is given back after `publish` has taken its own.
        let Read { body, room: _room } = self.reader.read(body).await?;
        let verified = self.verifier.verify_body(headers, body)?;
        if let Some(visitor) = head.extensions.get::<Visitor>() {
            visitor.verified();
        }
        let message = message(verified, received_at, traceparent(&head.headers));
        if message.event_type == PROBE {
            return self.check().await;
        }
        self.publish(message).await.map(|()| Taken::Queued)
    }

    /// Whether a message could be made durable now.
    async fn check(&self) -> Result<Taken, Refusal> {
        match timeout_at(Instant::now() + self.bounds.publish_limit, self.queue.ready()).await {
            Ok(Ok(())) if self.queue.troubles().iter().all(|trouble| trouble.part != PUBLISHING) => {
                Ok(Taken::Checked)
            }
            _ => Err(Refusal::Unchecked),
        }
    }

    /// Logs a request that is turned away, and leaves a sample of it, within the rate: a flood of them costs next to nothing.
    fn tell(&self, refusal: &Refusal, head: &Parts) {
        let code = refusal.code();
        // An outage is logged as one.
        if !matches!(refusal, Refusal::Unavailable) && self.turned_away.is_first(code) {
            warn!(code, "turned a request away: {code}; more of them are counted, and told once a minute");
        }
        if self.sampler.admits(code) {
            // Lost where it finds no room; it never waits.
            match serde_json::to_vec(&rejected(code, head, crate::time::now())) {
                Ok(sample) => self.queue.sample(sample.into()),
                Err(error) => debug!("a sample is lost: {error}"),
            }
        }
    }

    /// Makes a message durable. The queue promises an answer in time; this does not rely on it.
    async fn publish(&self, message: Message) -> Result<(), Refusal> {
        let started = Instant::now();
        let deadline = started + self.bounds.publish_limit;
        let room = take(&self.publishing, message.body.len() + MESSAGE_OVERHEAD);
        let Ok(Some(room)) = timeout_at(deadline, room).await else {
            self.failed("too much is on its way to it");
            return Err(Refusal::Unavailable);
        };
        let (id, queue) = (message.id.clone(), Arc::clone(&self.queue));
        // A task of its own: neither a client that goes away nor our deadline cancels a publish half-way, and its
        // memory stays counted until it has ended.
        let publish = tokio::spawn(async move {
            let result = queue.publish(message).await;
            drop(room);
            result
        });
        match timeout_at(deadline, publish).await {
            // Only now is it durable. A crash after the confirm and before the answer makes the sender repeat it, and
            // the inbox absorbs that.
            Ok(Ok(Ok(()))) => {
                self.metrics.publish_seconds.record(started.elapsed().as_secs_f64());
                if self.failing.load(Ordering::Relaxed) && self.failing.swap(false, Ordering::Relaxed) {
                    info!("webhooks are queued again");
                }
                debug!(message_id = %id, "queued {id}");
                return Ok(());
            }
            Ok(Ok(Err(error))) => self.failed(&error.to_string()),
            Ok(Err(_)) => {
                error!(message_id = %id, "publishing {id} panicked");
                self.failed("publishing panicked");
            }
            Err(_) => self.failed(&format!("no answer within {:?}", self.bounds.publish_limit)),
        }
        Err(Refusal::Unavailable)
    }

    fn failed(&self, why: &str) {
        if !self.failing.swap(true, Ordering::Relaxed) {
            warn!("webhooks are answered 503 until the queue takes them: {why}");
        }
    }
}

async fn take(room: &Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    Arc::clone(room).acquire_many_owned(u32::try_from(bytes).ok()?).await.ok()
}

/// What travels. Takes nothing but what was verified.
fn message(verified: Verified, received_at: crate::time::Millis, traceparent: Option<String>) -> Message {
    let (id, body) = verified.into_parts();
    let event_type = clerk::event_type(&body);
    Message { id, event_type, received_at, attempt: 0, waits: 0, round: 0, traceparent, body }
}

/// The request's W3C trace context (<https://www.w3.org/TR/trace-context/#traceparent-header>), if it is well-formed.
fn traceparent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let hex = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let zero = |part: &str| part.bytes().all(|b| b == b'0');
    let parts: Vec<&str> = text.split('-').collect();
    let [version, trace, parent, flags] = parts[..] else { return None };
    let well_formed = [version.len(), trace.len(), parent.len(), flags.len()] == [2, 32, 16, 2]
        && parts.iter().all(|part| hex(part))
        && version != "ff"
        && !zero(trace)
        && !zero(parent);
    well_formed.then(|| text.to_owned())
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

    fn answer(self) -> (Answer, Response) {
        let code = self.code();
        let (answer, status, message) = match self {
            Self::Rejected(rejection) => {
                let answer = match rejection.status() {
                    StatusCode::UNAUTHORIZED => Answer::Unauthorized,
                    _ => Answer::Malformed,
                };
                (answer, rejection.status(), rejection.message())
            }
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
        };
        debug!(code, "turned a request away: {code}");
        let mut response = problem(status, code, message);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        (answer, response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_well_formed_trace_context_travels() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let read = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", HeaderValue::from_bytes(value).unwrap());
            traceparent(&headers)
        };
        assert_eq!(read(good.as_bytes()).as_deref(), Some(good));
        assert_eq!(traceparent(&HeaderMap::new()), None);
        for bad in [
            &good.to_uppercase(),
            &good[..54],
            &format!("{good}-00"),
            &good.replacen("00", "ff", 1),
            &good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &good.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &good.replace('4', "g"),
            &good.replace('-', "0"),
            "",
        ] {
            assert_eq!(read(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(read(b"\xff"), None);
    }
}
