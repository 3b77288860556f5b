//! Owns asking the process that runs on this machine how it is: `/readyz` and `/metrics` on its operators' listener. Promises an answer
//! within a few seconds, and that nobody there is no error.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde::Deserialize;

use crate::{config::Config, time::Millis};

/// Longer than `/readyz` takes.
const TIMEOUT: Duration = Duration::from_secs(4);
/// An answer is read this far.
const ANSWER_MAX: usize = 1024 * 1024;

/// What the process says.
#[derive(Debug)]
pub(super) enum Asked {
    /// Nobody answers there, or somebody else.
    Nobody,
    /// It wants another token.
    Refused,
    /// How each of its parts is.
    Is(Process),
}

/// A process that answered.
#[derive(Debug)]
pub(super) struct Process {
    /// Its operators' listener.
    pub(super) at: SocketAddr,
    /// `ok` or why not, by part: `queue`, `store`, `worker`.
    checks: BTreeMap<String, String>,
    /// Messages that its worker has taken and not settled yet, where it has one.
    pub(super) held: Option<u64>,
    /// When its ingress last accepted a webhook, in ms since the epoch; `None` where it has accepted none.
    pub(super) last_webhook: Option<Millis>,
}

impl Process {
    /// Why a part cannot do its work: since when and why the worker takes no messages, say.
    pub(super) fn trouble(&self, part: &str) -> Option<&str> {
        self.checks.get(part).map(String::as_str).filter(|said| *said != "ok")
    }

    /// Whether it has such a part.
    pub(super) fn has(&self, part: &str) -> bool {
        self.checks.contains_key(part)
    }
}

#[derive(Deserialize)]
struct Ready {
    checks: BTreeMap<String, String>,
}

/// Asks the process that listens where `HEADCOUNT_OPS_LISTEN` says.
pub(super) async fn ask(config: &Config) -> Asked {
    let ip = match config.ops_listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let at = SocketAddr::new(ip, config.ops_listen.port());
    if at.port() == 0 {
        return Asked::Nobody;
    }
    let client = Client::builder(TokioExecutor::new()).build_http();
    let get = async |path: &str| {
        let mut request = Request::get(format!("http://{at}{path}"));
        if let Some(token) = &config.ops_token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        let answer = client.request(request.body(Full::<Bytes>::default()).ok()?).await.ok()?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await.ok()?;
        Some((status, body.to_bytes()))
    };
    let answer = async {
        let (status, body) = get("/readyz").await?;
        let (_, metrics) = get("/metrics").await?;
        Some((status, body, metrics))
    };
    match tokio::time::timeout(TIMEOUT, answer).await {
        Ok(Some((StatusCode::UNAUTHORIZED, ..))) => Asked::Refused,
        Ok(Some((_, body, metrics))) => match serde_json::from_slice::<Ready>(&body) {
            Ok(Ready { checks }) => Asked::Is(Process {
                at,
                checks,
                held: gauge(&metrics, "headcount_held_messages").map(|held| held as u64),
                last_webhook: gauge(&metrics, "headcount_last_webhook_timestamp_seconds")
                    .map(|seconds| (seconds * 1000.0) as Millis),
            }),
            Err(_) => Asked::Nobody,
        },
        Ok(None) | Err(_) => Asked::Nobody,
    }
}

/// The value of a gauge without labels, in Prometheus's text.
fn gauge(metrics: &[u8], name: &str) -> Option<f64> {
    let text = std::str::from_utf8(metrics).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?.trim().parse().ok()
}
