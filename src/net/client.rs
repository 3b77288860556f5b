//! Owns asking other servers over HTTP/1: one request, one bounded answer, and the reason where there was none. Promises
//! an end within the limit that the caller gives. Keeps connections. Never retries, never logs, never follows a redirect.

use std::{error::Error, io, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};

/// Asks servers over HTTP, or over HTTPS. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Client {
    /// Loads no certificates.
    Http(legacy::Client<HttpConnector, Full<Bytes>>),
    /// Trusts the certificates of this machine.
    Https(legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

/// What a server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Of its head.
    pub status: StatusCode,
    /// Of its head.
    pub headers: HeaderMap,
    /// Whole, or why it is not.
    pub body: Result<Bytes, Cut>,
}

/// Why a body is not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It is longer than was to be read.
    TooLarge,
    /// The connection ended before it.
    BrokenOff,
}

/// Why a request got no answer, the least surprising reason first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NoAnswer {
    /// No process listens at the address.
    Refused,
    /// The host's name is not known.
    UnknownHost,
    /// No route leads to the address.
    Unreachable,
    /// Connected, but TLS failed: the certificate is not trusted, or the other side speaks no TLS.
    Tls,
    /// The limit passed.
    TimedOut,
    /// The connection ended before the answer.
    Broken,
}

impl NoAnswer {
    /// For people, and as a key in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "connection refused",
            Self::UnknownHost => "host not found",
            Self::Unreachable => "unreachable",
            Self::Tls => "TLS failed",
            Self::TimedOut => "timed out",
            Self::Broken => "connection broken",
        }
    }
}

impl Client {
    /// For `http://`.
    pub fn http() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self::Http(builder().build(connector))
    }

    /// For `https://`.
    ///
    /// # Errors
    /// This machine's certificates cannot be read.
    pub fn https() -> io::Result<Self> {
        let connector = HttpsConnectorBuilder::new().with_native_roots()?;
        Ok(Self::Https(builder().build(connector.https_only().enable_http1().build())))
    }

    /// Sends a request and waits up to `limit` for the answer. Its body is read up to `most` bytes; `None` where it is
    /// longer or breaks off.
    ///
    /// # Errors
    /// There was no answer.
    pub async fn send(
        &self,
        request: Request<Full<Bytes>>,
        limit: Duration,
        most: usize,
    ) -> Result<(StatusCode, Option<Bytes>), NoAnswer> {
        self.exchange(request, limit, most).await.map(|answer| (answer.status, answer.body.ok()))
    }

    /// The same, with the answer's headers, and with the reason where its body is not whole.
    ///
    /// # Errors
    /// There was no answer.
    pub async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        limit: Duration,
        most: usize,
    ) -> Result<Answer, NoAnswer> {
        let answer = async {
            let sent = match self {
                Self::Http(client) => client.request(request).await,
                Self::Https(client) => client.request(request).await,
            };
            let (head, body) = sent.map_err(|error| reason(&error))?.into_parts();
            // Reading to the end also lets the connection be kept.
            let body = Limited::new(body, most).collect().await;
            let body =
                body.map(|body| body.to_bytes()).map_err(|error| match error.is::<LengthLimitError>() {
                    true => Cut::TooLarge,
                    false => Cut::BrokenOff,
                });
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        tokio::time::timeout(limit, answer).await.unwrap_or(Err(NoAnswer::TimedOut))
    }
}

fn builder() -> legacy::Builder {
    let mut builder = legacy::Client::builder(TokioExecutor::new());
    builder.pool_timer(TokioTimer::new());
    builder
}

/// Told by the innermost I/O error that says one: the system's own number where connecting failed, invalid data or an
/// early end where TLS did, and no number at all where the name could not be looked up.
fn reason(error: &legacy::Error) -> NoAnswer {
    if !error.is_connect() {
        return NoAnswer::Broken;
    }
    let mut source: Option<&(dyn Error + 'static)> = error.source();
    let mut said = NoAnswer::UnknownHost;
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            match (error.raw_os_error(), error.kind()) {
                (_, io::ErrorKind::ConnectionRefused) => said = NoAnswer::Refused,
                (_, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => said = NoAnswer::Broken,
                (Some(_), _) => said = NoAnswer::Unreachable,
                (None, io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => said = NoAnswer::Tls,
                (None, _) => {}
            }
            source = error.get_ref().map(|inner| inner as &(dyn Error + 'static)).or(error.source());
        } else {
            source = error.source();
        }
    }
    said
}
