//! Owns one connection: its requests one after the other, its age, and how it ends.
//!
//! Promises that a refusal closes it, and that the client can read the answer before that. Never looks at a request,
//! but adds the [`Peer`] that it came from and the [`Visitor`] for its connection.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    net::IpAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::Body as Content;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tower::ServiceExt;
use tracing::debug;

use super::{
    Bounds, Handler, Peer,
    door::{Door, Stay, Visitor},
    stopped,
};

/// What the connections of one listener share.
pub(super) struct Host<S> {
    pub(super) http: http1::Builder,
    pub(super) service: S,
    pub(super) bounds: Bounds,
    pub(super) door: Arc<Door>,
}

/// Serves a connection to its end. Dropping this closes it.
pub(super) async fn serve<S: Handler>(
    host: Arc<Host<S>>,
    stream: TcpStream,
    stay: Stay,
    mut stop: watch::Receiver<bool>,
) {
    // Answers are one small write each.
    if let Err(error) = stream.set_nodelay(true) {
        debug!("TCP_NODELAY is not set: {error}");
    }
    let service = service_fn(|request: Request<Incoming>| {
        let client = host.bounds.trusted_proxies.client(stay.peer, request.headers());
        answer(&host.service, request, stay.visitor.clone(), client)
    });
    let mut connection = host.http.serve_connection(TokioIo::new(stream), service);
    let mut stopping = pin!(stopped(&mut stop));
    let mut age = pin!(sleep(host.bounds.connection_age));
    let mut closing = false;
    let ended = loop {
        tokio::select! {
            ended = poll_fn(|context| connection.poll_without_shutdown(context)) => break ended,
            () = stopping.as_mut(), if !closing => {}
            () = age.as_mut() => if closing { return },
        }
        closing = true;
        Pin::new(&mut connection).graceful_shutdown();
        age.as_mut().reset(Instant::now() + host.bounds.last_request);
    };
    let mut refused = stay.visitor.is_refused();
    if let Err(error) = ended {
        debug!("a connection ended: {error}");
        if error.is_parse() {
            // Hyper has answered 400 or 431.
            host.door.refused_unread();
            refused = true;
        }
    }
    if refused {
        let stream = connection.into_parts().io.into_inner();
        let _ = timeout(host.bounds.linger, linger(stream, host.bounds.linger_bytes)).await;
    }
}

/// A request's way through the service. Boxed, so that the connection can be moved when it has ended.
fn answer<S: Handler>(
    service: &S,
    mut request: Request<Incoming>,
    visitor: Visitor,
    client: IpAddr,
) -> Pin<Box<impl Future<Output = Result<Response<Answer>, Infallible>> + use<S>>> {
    visitor.begins(client, Instant::now());
    request.extensions_mut().insert(Peer(client));
    request.extensions_mut().insert(visitor.clone());
    let answer = service.clone().oneshot(request);
    Box::pin(async move {
        let mut response = answer.await?;
        if visitor.answers(response.status()) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response.map(|content| Answer { content, visitor }))
    })
}

/// What is still to be written of an answer.
struct Answer {
    content: Content,
    visitor: Visitor,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.content).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.visitor.rests(Instant::now());
    }
}

/// Ends a connection whose client may still be writing: reads and discards until the client ends it too. A connection
/// that is closed over unread bytes is reset, and the client may never see the answer.
async fn linger(mut stream: TcpStream, mut bytes: usize) {
    let mut buffer = vec![0; 8 * 1024];
    if stream.shutdown().await.is_err() {
        return;
    }
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        match bytes.checked_sub(read) {
            Some(left) => bytes = left,
            None => return,
        }
    }
}
