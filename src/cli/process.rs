//! Owns asking the process that runs on this machine for its state: `/readyz` and `/metrics` on its operators' listener.
//! Promises an answer within 4 s, and that an absent process is no error.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use http::{Request, StatusCode, header};
use http_body_util::Full;
use serde::Deserialize;

use crate::{
    config::Config,
    net::{self, Client},
    time::Millis,
};

/// Longer than `/readyz` takes.
const TIMEOUT: Duration = Duration::from_secs(4);
/// An answer is read this far.
const ANSWER_MAX: usize = 1024 * 1024;

/// The answer, if there is one.
#[derive(Debug)]
pub(super) enum Asked {
    /// No process answers there, or it is not headcount.
    Nobody,
    /// It wants another token.
    Refused,
    /// The state of each of its parts.
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
    /// Why a part cannot do its work; of the worker also since when. `None` while it can.
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
    let at = net::reachable(config.ops_listen);
    if at.port() == 0 {
        return Asked::Nobody;
    }
    let client = Client::http();
    let get = async |path: &str| {
        let mut request = Request::get(format!("http://{at}{path}"));
        if let Some(token) = &config.ops_token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        let (status, body) =
            client.send(request.body(Full::default()).ok()?, TIMEOUT, ANSWER_MAX).await.ok()?;
        Some((status, body?))
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
