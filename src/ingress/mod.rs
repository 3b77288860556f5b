//! Owns the public listener: the way of a webhook from its request to its answer, and what the listener takes on at
//! most. This file bounds, verifies, publishes and answers; `body` reads bodies within their memory; `refusal` says no.
//!
//! Promises 2xx only after the queue has said that the message is durable, and an answer within the bounds whatever the
//! client and the queue do. Never touches the database, never shows what is for operators, and never logs a body, an
//! address or, above debug level, each request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header, request::Parts};
use hyper::body::Incoming;
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, timeout_at},
};
use tower::service_fn;
use tracing::{debug, info, warn};

use self::{
    body::{Read, Reader},
    refusal::{Refusal, Refusals},
};
use crate::{
    clerk::{
        self,
        signature::{SignedHeaders, Verified, Verifier, is_claimed},
    },
    message::{Message, Origin, PROBE},
    net::{self, JSON, Visitor, method_not_allowed, not_found},
    queue::{PUBLISH_LIMIT, PUBLISHING, Queue},
    telemetry::metrics::{Answer, IngressMetrics},
    time::{Millis, now},
};

mod body;
mod refusal;

/// What a message in flight to the queue takes beside its body, in bytes.
const MESSAGE_OVERHEAD: usize = 1024;

/// What the ingress takes on at most.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// The connections.
    pub http: net::Bounds,
    /// Bytes of a body; more are answered 413. Svix carries up to about 350 kB.
    pub body_limit: usize,
    /// From the headers' end to the body's end, else 408. A body over 16 KiB waits as long for memory, each time that it
    /// outgrows what it has, else 503; that wait does not count as the sender's.
    pub body_timeout: Duration,
    /// How long a large body may take for 4 KiB more, else 408.
    pub pace: Duration,
    /// How long a large body may take for 8 KiB more while others wait for its memory, else 408.
    pub stalled: Duration,
    /// Bytes of large bodies that are being read, all together, beside eight that may always be read to their end.
    pub reading_bytes: usize,
    /// Bytes of messages on their way to the queue, all together.
    pub publishing_bytes: usize,
    /// From verified to durable, else 503: the queue's own limit of 5 s and a margin of 0.5 s. So a webhook of up to 16 KiB
    /// that cannot be queued is answered within 5.5 s of its last byte. A larger one may wait for memory before that: up to
    /// [`Self::body_timeout`] each time that its memory doubles, from 16 to 512 KiB.
    pub publish_limit: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            http: net::Bounds::default(),
            body_limit: 512 * 1024,
            body_timeout: Duration::from_secs(10),
            pace: Duration::from_secs(5),
            stalled: Duration::from_millis(250),
            reading_bytes: 28 * 1024 * 1024,
            publishing_bytes: 32 * 1024 * 1024,
            publish_limit: PUBLISH_LIMIT + Duration::from_millis(500),
        }
    }
}

/// The ingress: what it needs to serve.
pub struct Ingress {
    /// Takes the verified webhooks.
    pub queue: Arc<dyn Queue>,
    /// Knows the signing secrets.
    pub verifier: Verifier,
    /// `HEADCOUNT_WEBHOOK_PATH`
    pub path: String,
    /// What it takes on at most.
    pub bounds: Bounds,
    /// What it counts.
    pub metrics: IngressMetrics,
}

impl Ingress {
    /// With the default bounds.
    pub fn new(queue: Arc<dyn Queue>, verifier: Verifier, path: impl Into<String>) -> Self {
        Self { queue, verifier, path: path.into(), bounds: Bounds::default(), metrics: IngressMetrics::new() }
    }
}

/// Serves webhooks until `stop` becomes true or its sender is gone, then finishes the requests in flight; the caller
/// bounds that time.
pub async fn serve(listener: TcpListener, ingress: Ingress, stop: watch::Receiver<bool>) {
    let Ingress { queue, verifier, path, bounds, metrics } = ingress;
    let (of_connections, connections) = (bounds.http.clone(), metrics.connections.clone());
    let intake = Arc::new(Intake {
        path,
        verifier,
        refusals: Refusals::new(Arc::clone(&queue)),
        queue,
        reader: Reader::new(&bounds),
        publishing: Arc::new(Semaphore::new(bounds.publishing_bytes)),
        publish_limit: bounds.publish_limit,
        metrics,
        failing: AtomicBool::new(false),
    });
    // One path needs no router, which would cost each request more than the comparison.
    let service = service_fn(move |request| {
        let intake = Arc::clone(&intake);
        async move { Ok(intake.answer(request).await) }
    });
    net::serve(listener, service, of_connections, connections, stop).await;
}

/// What the requests of one listener share.
struct Intake {
    path: String,
    verifier: Verifier,
    queue: Arc<dyn Queue>,
    reader: Reader,
    /// Room, in bytes, for messages being published: only what was verified takes it up.
    publishing: Arc<Semaphore>,
    publish_limit: Duration,
    metrics: IngressMetrics,
    refusals: Refusals,
    /// Whether the last publish failed, so that an outage is logged once and not per request.
    failing: AtomicBool,
}

/// What a request is answered 202 for.
enum Taken {
    /// The webhook is durable.
    Queued,
    /// `doctor` asked whether one would be.
    Checked,
}

fn accepted(json: &'static str) -> Response {
    (StatusCode::ACCEPTED, [JSON], json).into_response()
}

impl Intake {
    async fn answer(&self, request: Request<Incoming>) -> Response {
        let (head, body) = request.into_parts();
        match (head.uri.path() == self.path, &head.method) {
            (true, &Method::POST) => self.accept(&head, body).await,
            (true, _) => {
                let mut response = method_not_allowed().await;
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
                response
            }
            (false, _) => self.elsewhere(&head).await,
        }
    }

    /// Answers a request to the webhook path.
    async fn accept(&self, head: &Parts, body: Incoming) -> Response {
        let (answer, response) = match self.take_in(head, body).await {
            Ok(Taken::Queued) => (Answer::Queued, accepted(r#"{"status":"queued"}"#)),
            Ok(Taken::Checked) => return accepted(r#"{"status":"checked"}"#),
            Err(Refusal::Unchecked) => return Refusal::Unchecked.response(),
            Err(refusal) => self.refusals.refuse(refusal, head),
        };
        self.metrics.answered(answer);
        response
    }

    /// Answers a request to any other path: 404. A webhook that came to it is logged and counted, because its sender does
    /// not know that no webhook is taken there.
    async fn elsewhere(&self, head: &Parts) -> Response {
        if head.method != Method::POST || !is_claimed(&head.headers) {
            return not_found().await;
        }
        let (answer, response) = self.refusals.refuse(Refusal::WrongPath, head);
        self.metrics.answered(answer);
        response
    }

    /// The whole way of a webhook through the ingress.
    async fn take_in(&self, head: &Parts, body: Incoming) -> Result<Taken, Refusal> {
        let received_at = now();
        self.reader.admits(&body)?;
        let headers = SignedHeaders::read(&head.headers, received_at)?;
        // The room for the body is given back after `publish` has taken its own.
        let Read { body, room: _room } = self.reader.read(body).await?;
        let verified = self.verifier.verify(headers, body)?;
        if let Some(visitor) = head.extensions.get::<Visitor>() {
            visitor.verified();
        }
        let message = message(verified, received_at, traceparent(&head.headers));
        if message.event_type == PROBE && clerk::is_probe(&message.body) {
            return self.check().await;
        }
        self.publish(message).await.map(|()| Taken::Queued)
    }

    /// Whether a message could be made durable now.
    async fn check(&self) -> Result<Taken, Refusal> {
        let ready = timeout_at(Instant::now() + self.publish_limit, self.queue.ready()).await;
        let publishes = || self.queue.troubles().iter().all(|trouble| trouble.part != PUBLISHING);
        match ready.is_ok_and(|ready| ready.is_ok()) && publishes() {
            true => Ok(Taken::Checked),
            false => Err(Refusal::Unchecked),
        }
    }

    /// Makes a message durable. The queue promises an answer in time; this does not rely on it. A client that goes away
    /// and our deadline leave it to the queue whether it goes on: it may.
    async fn publish(&self, message: Message) -> Result<(), Refusal> {
        let started = Instant::now();
        let id = message.id.clone();
        let deadline = started + self.publish_limit;
        let room = timeout_at(deadline, take(&self.publishing, message.body.len() + MESSAGE_OVERHEAD));
        let Ok(Some(_room)) = room.await else {
            self.failed("too much is on its way to it");
            return Err(Refusal::Unavailable);
        };
        match timeout_at(deadline, self.queue.publish(message)).await {
            // Only now is it durable. A crash after the confirm and before the answer makes the sender repeat it, and
            // the inbox absorbs that.
            Ok(Ok(())) => {
                self.metrics.publish_seconds.record(started.elapsed().as_secs_f64());
                if self.failing.load(Ordering::Relaxed) && self.failing.swap(false, Ordering::Relaxed) {
                    info!("webhooks are queued again");
                }
                debug!(message_id = %id, "queued {id}");
                return Ok(());
            }
            Ok(Err(error)) => self.failed(&error.to_string()),
            Err(_) => self.failed(&format!("no answer within {:?}", self.publish_limit)),
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
fn message(verified: Verified, received_at: Millis, traceparent: Option<String>) -> Message {
    let (id, body) = verified.into_parts();
    let event_type = clerk::event_type(&body);
    let origin = Origin::Webhook;
    Message { id, origin, event_type, received_at, attempt: 0, waits: 0, round: 0, traceparent, body }
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

#[cfg(test)]
mod tests {
    use http::HeaderValue;

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
