//! Owns listening: HTTP/1 connections that are bounded in number, headers, time and age, for both listeners, and how
//! an error looks on the wire.
//!
//! Promises that a stop takes no new connection, closes idle ones at once and lets requests finish, and that nothing
//! outlives [`serve`]. Never looks at a request, but adds the [`Peer`] that it came from.

use std::{
    net::IpAddr,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::watch,
    task::{JoinError, JoinSet},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, error, info, warn};

/// What one listener takes on at most.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Open connections. Those beyond it wait in the system's accept backlog.
    pub connections: usize,
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
    /// How long the rest of a body is read and thrown away after the answer, so that a client that writes before it
    /// reads sees the answer and not a reset.
    pub linger: Duration,
    /// How many bytes of it.
    pub linger_bytes: usize,
}

/// The other end of a request's connection, as the kernel tells it: in the request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 1024,
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

/// Serves `router` until `stop` becomes true or its sender is gone; returns when every connection has ended. The
/// caller bounds that time: dropping the future closes what is left.
pub async fn serve(listener: TcpListener, router: Router, bounds: Bounds, mut stop: watch::Receiver<bool>) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(bounds.header_timeout)
        .max_headers(bounds.headers)
        .max_buf_size(bounds.header_bytes.max(8192));
    let mut connections = JoinSet::new();
    let mut accepting = true;
    loop {
        let room = connections.len() < bounds.connections;
        tokio::select! {
            () = stopped(&mut stop) => break,
            Some(ended) = connections.join_next() => reap(ended),
            accepted = listener.accept(), if room => match accepted {
                Ok((stream, peer)) => {
                    if !accepting {
                        accepting = true;
                        info!("connections are accepted again");
                    }
                    let peer = Peer(peer.ip().to_canonical());
                    connections.spawn(connection(stream, peer, http.clone(), router.clone(), bounds.clone(), stop.clone()));
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
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        reap(ended);
    }
}

async fn connection(
    stream: TcpStream,
    peer: Peer,
    http: http1::Builder,
    router: Router,
    bounds: Bounds,
    mut stop: watch::Receiver<bool>,
) {
    // Answers are one small write each.
    if let Err(error) = stream.set_nodelay(true) {
        debug!("TCP_NODELAY is not set: {error}");
    }
    let (linger, linger_bytes) = (bounds.linger, bounds.linger_bytes);
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        // A client that asks first whether to send the body is not waiting to be read.
        let linger = if request.headers().contains_key(header::EXPECT) { Duration::ZERO } else { linger };
        router.call(request.map(|body| LingeringBody { body: Some(body), linger, linger_bytes }))
    });
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let mut age = pin!(sleep(bounds.connection_age));
    let mut closing = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    debug!("a connection ended: {error}");
                }
                return;
            }
            () = stopped(&mut stop), if !closing => {}
            () = age.as_mut() => if closing { return },
        }
        closing = true;
        connection.as_mut().graceful_shutdown();
        age.as_mut().reset(Instant::now() + bounds.last_request);
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

/// A request's body. What its reader leaves of it is read and thrown away, within bounds, while the answer is on its
/// way: a connection closed over unread bytes is reset, and the client may never see the answer.
struct LingeringBody {
    body: Option<Incoming>,
    linger: Duration,
    linger_bytes: usize,
}

impl Body for LingeringBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

impl Drop for LingeringBody {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !body.is_end_stream() && !self.linger.is_zero())
        else {
            return;
        };
        // Its connection drives the body, so this ends with the connection at the latest.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(timeout(self.linger, discard(body, self.linger_bytes)));
        }
    }
}

async fn discard(mut body: Incoming, mut bytes: usize) {
    while let Some(Ok(frame)) = body.frame().await {
        match bytes.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(left) => bytes = left,
            None => return,
        }
    }
}

/// An error as every listener answers it: `{"error": "<code>", "message": "…"}`.
pub fn problem(status: StatusCode, code: &str, message: &str) -> Response {
    json_response(status, &serde_json::json!({ "error": code, "message": message }))
}

/// A JSON answer.
pub fn json_response(status: StatusCode, body: &serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// 404, as JSON.
pub async fn not_found() -> Response {
    problem(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
}

/// 405, as JSON; the router adds `Allow`.
pub async fn method_not_allowed() -> Response {
    problem(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path takes another method; see the Allow header",
    )
}
