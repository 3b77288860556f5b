//! Owns the public listener: its one route and what it takes on at most.
//!
//! In a request's order: this room bounds it, `read` reads its body, [`verify`] checks its signature (pure), `accept`
//! publishes it and answers; of those that were turned away, `sample` keeps a few. Never touches the database, and never shows anything that is for operators.

use std::{sync::Arc, time::Duration};

use axum::{Router, routing::post};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    net,
    queue::{PUBLISH_LIMIT, Queue},
    telemetry::metrics::IngressMetrics,
};

mod accept;
mod read;
mod room;
mod sample;
pub mod verify;

pub use verify::{Rejection, Verified, Verifier};

/// What the ingress takes on at most.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Of its connections.
    pub http: net::Bounds,
    /// Bytes of a body; more are answered 413. Svix carries up to about 350 kB.
    pub body_limit: usize,
    /// From the headers' end to the body's end, else 408. A large body waits as long for its room, else 503.
    pub body_timeout: Duration,
    /// How long a large body may take for 4 KiB more, else 408.
    pub pace: Duration,
    /// How long a large body may take for 8 KiB more while others wait for its memory, else 408.
    pub stalled: Duration,
    /// Bytes of large bodies that are being read, all together, beside eight that may always be read to their end.
    pub reading_bytes: usize,
    /// Bytes of messages on their way to the queue, all together.
    pub publishing_bytes: usize,
    /// From verified to durable, else 503: the queue's own limit and a margin.
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
    /// Where verified webhooks go.
    pub queue: Arc<dyn Queue>,
    /// With the signing secrets.
    pub verifier: Verifier,
    /// `HEADCOUNT_WEBHOOK_PATH`
    pub path: String,
    /// Bounds.
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
    let intake = Arc::new(accept::Intake::new(verifier, queue, bounds, metrics));
    let router = Router::new()
        .route(&path, post(accept::accept))
        .method_not_allowed_fallback(net::method_not_allowed)
        .fallback(accept::elsewhere)
        .with_state(intake);
    net::serve(listener, router, of_connections, connections, stop).await;
}
