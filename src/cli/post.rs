//! Owns posting signed webhooks as Svix posts Clerk's: the signature, the headers, kept connections, 15 seconds for an
//! answer. Promises to tell what became of each post. Never retries, never logs, never follows a redirect.

use std::{error::Error, fmt, io, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use svix::webhooks::Webhook;

use crate::failure::Failure;
use crate::{secret::Secret, time::now};

/// What Svix gives an endpoint.
const TIMEOUT: Duration = Duration::from_secs(15);

/// An answer is read this far, so that its connection can be kept.
const ANSWER_MAX: usize = 64 * 1024;

/// Who posts to one URL with one secret. Cheap to clone.
#[derive(Clone)]
pub struct Poster {
    client: Transport,
    url: Uri,
    webhook: std::sync::Arc<Webhook>,
}

#[derive(Clone)]
enum Transport {
    /// No certificates are loaded where none are needed.
    Http(Client<HttpConnector, Full<Bytes>>),
    Https(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

/// Why a post got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NoAnswer {
    /// Nobody listens there.
    Refused,
    /// The host's name is not known.
    UnknownHost,
    /// No way leads there.
    Unreachable,
    /// Connected, and TLS did not come about: a certificate that is not trusted, or no TLS on the other side.
    Tls,
    /// Nothing came within 15 seconds.
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

impl Poster {
    /// Posts to `url`, signed with `secret`.
    ///
    /// # Errors
    /// The URL is none that can be posted to, the secret is none, or this machine's certificates cannot be read.
    pub fn new(url: &str, secret: &Secret) -> Result<Self, Failure> {
        let hint = "write a URL such as http://127.0.0.1:8080/webhooks/clerk";
        let wrong = |problem: &str| Failure::usage(format!("the URL {problem}")).hint(hint);
        let url: Uri = url.parse().map_err(|_| wrong("cannot be read"))?;
        if url.host().is_none_or(str::is_empty) {
            return Err(wrong("names no host"));
        }
        let webhook = Webhook::new(secret.expose()).map_err(|_| {
            Failure::usage("the signing secret is none")
                .hint("it starts with whsec_; copy it from the Clerk dashboard")
        })?;
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new());
        let client = match url.scheme_str() {
            Some("http") => {
                let mut connector = HttpConnector::new();
                connector.set_nodelay(true);
                Transport::Http(builder.build(connector))
            }
            Some("https") => {
                let connector = HttpsConnectorBuilder::new().with_native_roots().map_err(|error| {
                    Failure::new(format!("this machine's certificates cannot be read: {error}"))
                        .hint("install the package ca-certificates, or set SSL_CERT_FILE")
                })?;
                Transport::Https(builder.build(connector.https_only().enable_http1().build()))
            }
            _ => return Err(wrong("starts with neither http:// nor https://")),
        };
        Ok(Self { client, url, webhook: std::sync::Arc::new(webhook) })
    }

    /// Posts `body` under the id `message_id`, with the timestamp of now, as every try of Svix's has.
    /// The body has to be UTF-8: the signature is over text.
    ///
    /// # Errors
    /// There was no answer.
    pub async fn post(&self, message_id: &str, body: Bytes) -> Result<StatusCode, NoAnswer> {
        let timestamp = now() / 1000;
        let signature = self.webhook.sign(message_id, timestamp, &body).map_err(|_| NoAnswer::Broken)?;
        let request = Request::post(&self.url)
            .header("content-type", "application/json")
            .header("user-agent", concat!("headcount/", env!("CARGO_PKG_VERSION")))
            .header("svix-id", message_id)
            .header("svix-timestamp", timestamp)
            .header("svix-signature", signature)
            .body(Full::new(body))
            .map_err(|_| NoAnswer::Broken)?;
        let answer = async {
            let sent = match &self.client {
                Transport::Http(client) => client.request(request).await,
                Transport::Https(client) => client.request(request).await,
            };
            let answer = sent.map_err(|error| cause(&error))?;
            let status = answer.status();
            // The status is the answer; the rest is only read so that the connection can be kept.
            let _ = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
            Ok(status)
        };
        tokio::time::timeout(TIMEOUT, answer).await.unwrap_or(Err(NoAnswer::TimedOut))
    }
}

impl fmt::Debug for Poster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poster")
            .field("host", &self.url.authority().map(|at| at.host()))
            .finish_non_exhaustive()
    }
}

/// Told by the kind of the innermost error that says one: the system's own number where connecting failed, invalid data
/// or an early end where TLS did, and no number at all where the name could not be looked up.
fn cause(error: &hyper_util::client::legacy::Error) -> NoAnswer {
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
