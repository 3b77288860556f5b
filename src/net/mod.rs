//! Owns HTTP/1 in both directions: listeners whose connections are bounded in number, headers, time and age; the client;
//! and how an error looks on the wire.
//!
//! In a connection's order: this file accepts it, `door` gives it a place and takes that away, `connection` serves it,
//! `proxies` tells its client's address. `client` asks other servers. Promises that a full listener makes room for a newcomer, that a stop takes no new
//! connection, closes idle ones at once and lets requests finish, and that nothing outlives [`serve`].

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, Request, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::rt::TokioTimer;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::{JoinError, JoinSet},
    time::{Instant, sleep, sleep_until},
};
use tower::Service;
use tracing::{debug, error, info, warn};
use url::Url;

use self::{
    connection::Host,
    door::{Door, Shed},
};
use crate::telemetry::metrics::ListenerMetrics;

mod client;
mod connection;
mod door;
mod problem;
mod proxies;

pub use client::{Answer, Client, Cut, NoAnswer};
pub use door::Visitor;
pub use problem::Problem;
pub use proxies::TrustedProxies;

/// A listener is logged as having room again after this long without a newcomer that found no place.
const QUIET: Duration = Duration::from_secs(60);

/// What one listener takes on at most.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Open connections. One more makes room for itself: see [`Visitor`].
    pub connections: usize,
    /// How long a connection may bring nothing before a newcomer can take its place.
    pub grace: Duration,
    /// The proxies whose `X-Forwarded-For` counts.
    pub trusted_proxies: TrustedProxies,
    /// From a connection's start, or its last answer, to the end of the next request's headers: so also how long a
    /// kept connection may be idle. It is closed without an answer.
    pub header_timeout: Duration,
    /// Header lines of a request; more are answered 431.
    pub headers: usize,
    /// Bytes of a request's head; more are answered 431. Not below 8,192.
    pub header_bytes: usize,
    /// After this long a connection is closed at the next opportunity, ...
    pub connection_age: Duration,
    /// ... and this much later in any case, so that a client that never reads its answers does not keep its place.
    pub last_request: Duration,
    /// How long a refused connection is read, and all of it thrown away, after the answer, so that a client that writes
    /// before it reads sees the answer and not a reset.
    pub linger: Duration,
    /// How many bytes of it.
    pub linger_bytes: usize,
}

/// The address of a request's client: the other end of its connection, as the kernel tells it, or the address that a
/// trusted proxy forwards for. In the request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: places(1024, 2),
            grace: Duration::from_millis(500),
            trusted_proxies: TrustedProxies::default(),
            header_timeout: Duration::from_secs(10),
            headers: 100,
            header_bytes: 16 * 1024,
            connection_age: Duration::from_secs(300),
            last_request: Duration::from_secs(30),
            linger: Duration::from_secs(2),
            linger_bytes: 8 * 1024 * 1024,
        }
    }
}

/// Connections that the system completes before they are accepted, as far as it allows. Where more come at once, it drops
/// a sender's first packet, and the sender waits a second before it sends another.
const BACKLOG: u32 = 4096;

/// Listens on an address of this machine.
///
/// # Errors
/// It is in use, not ours, or not allowed.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // So that a restarted process listens at once, although connections of the last one linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Where a process of this machine reaches a listener: one that listens on every address is reached on the loopback.
pub fn reachable(listener: SocketAddr) -> SocketAddr {
    let ip = match listener.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listener.port())
}

/// Whether a URL leads to this machine.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// What answers the requests of a listener, such as a router.
pub trait Handler:
    Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> Handler for S where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// Serves `service` until `stop` becomes true or its sender is gone; returns when every connection has ended. The
/// caller bounds that time: dropping the future closes what is left.
pub async fn serve(
    listener: TcpListener,
    service: impl Handler,
    bounds: Bounds,
    metrics: ListenerMetrics,
    mut stop: watch::Receiver<bool>,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .half_close(true)
        .header_read_timeout(bounds.header_timeout)
        .max_headers(bounds.headers)
        .max_buf_size(bounds.header_bytes.max(8192));
    let places = bounds.connections;
    let mut crowd = Crowd::new(metrics.listener, places);
    let door = Door::new(places, bounds.grace, metrics);
    let host = Arc::new(Host { http, service, bounds, door: Arc::clone(&door) });
    let mut connections = JoinSet::new();
    let mut accepting = true;
    // The next to come in: accepted, but there may be no place yet.
    let mut waiting: Option<(TcpStream, IpAddr)> = None;
    // A connection was told to close for it.
    let mut told = false;
    loop {
        let mut again = None;
        if connections.len() < places
            && let Some((stream, peer)) = waiting.take()
        {
            let stay = door.enter(peer, Instant::now());
            let visitor = stay.visitor.clone();
            let task = connections.spawn(connection::serve(Arc::clone(&host), stream, stay, stop.clone()));
            door.ends_by(&visitor, task);
        } else if waiting.is_some() && !told {
            match door.shed(Instant::now()) {
                Shed::Told => told = true,
                Shed::At(at) => again = Some(at),
                Shed::Nobody => {}
            }
        }
        door.crowd(waiting.is_some() && !told);
        let free = waiting.is_none();
        tokio::select! {
            () = stopped(&mut stop) => break,
            Some(ended) = connections.join_next() => {
                reap(ended);
                told = false;
            }
            () = until(again) => {}
            () = until(crowd.ends) => crowd.gone(),
            accepted = listener.accept(), if free => match accepted {
                Ok((stream, peer)) => {
                    if !accepting {
                        accepting = true;
                        info!("connections are accepted again");
                    }
                    if connections.len() >= places {
                        crowd.here(Instant::now());
                    }
                    waiting = Some((stream, peer.ip().to_canonical()));
                }
                Err(error) if of_one_connection(&error) => debug!("a connection ended before it was accepted: {error}"),
                Err(error) => {
                    if accepting {
                        accepting = false;
                        warn!("connections cannot be accepted: {error}");
                    }
                    // Out of file descriptors, say: the error would come back at once.
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop((listener, waiting));
    while let Some(ended) = connections.join_next().await {
        reap(ended);
    }
}

/// Logs once that a listener is full, and once that it has room again.
struct Crowd {
    listener: &'static str,
    places: usize,
    /// Newcomers that found no place at once.
    newcomers: u64,
    /// While the listener is full: when it will have been quiet for long enough.
    ends: Option<Instant>,
}

impl Crowd {
    fn new(listener: &'static str, places: usize) -> Self {
        Self { listener, places, newcomers: 0, ends: None }
    }

    fn here(&mut self, now: Instant) {
        let (listener, places) = (self.listener, self.places);
        if self.ends.is_none() {
            warn!(
                "the {listener} listener is full with {places} connections; those that have brought nothing for the longest are closed for newcomers"
            );
        }
        self.newcomers += 1;
        self.ends = Some(now + QUIET);
    }

    fn gone(&mut self) {
        let (listener, newcomers) = (self.listener, std::mem::take(&mut self.newcomers));
        info!("the {listener} listener has room again; {newcomers} connections had found it full");
        self.ends = None;
    }
}

/// Waits for a time that may never come.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn reap(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        error!("a request's handler panicked; its connection was closed");
    }
}

/// Whether an error of `accept` is the fault of the connection that would have been accepted.
fn of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// How many connections a listener takes: `most`, or the `part`th part of the files that the process may open, so that
/// strangers leave it some for its queue and its database.
pub fn places(most: usize, part: usize) -> usize {
    // Linux tells it here; elsewhere nothing is known.
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    open_files(&limits).map_or(most, |files| most.min(files / part).max(16))
}

/// The soft limit on open files in the text of `/proc/self/limits`; `None` where there is none.
fn open_files(limits: &str) -> Option<usize> {
    limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// An error as every listener answers it: `{"error": "<code>", "message": "…"}`.
pub fn problem(status: StatusCode, code: &str, message: &str) -> Response {
    json_response(status, &serde_json::json!({ "error": code, "message": message }))
}

/// The header of a JSON answer.
pub const JSON: (HeaderName, HeaderValue) =
    (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));

/// A JSON answer.
pub fn json_response(status: StatusCode, body: &serde_json::Value) -> Response {
    (status, [JSON], body.to_string()).into_response()
}

/// 404, as JSON.
pub async fn not_found() -> Response {
    problem(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
}

/// 405, as JSON; whoever decides by the path adds `Allow`.
pub async fn method_not_allowed() -> Response {
    problem(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path takes another method; see the Allow header",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_on_open_files_is_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max processes             1                    2                    processes \n\
                      Max open files            1024                 524288               files     \n";
        assert_eq!(open_files(limits), Some(1024));
        assert_eq!(open_files(&limits.replace("1024 ", "unlimited ")), None);
        assert_eq!(open_files(""), None);
    }
}
