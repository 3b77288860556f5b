//! Owns posting signed webhooks as Svix posts Clerk's: the signature, the headers, 15 seconds for an answer; and where
//! and with which secret this machine posts unless it is told otherwise. Never retries, never logs.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::Full;

use crate::{
    clerk::{secret, signature::Key},
    config::Config,
    failure::Failure,
    net::{self, Client, NoAnswer},
    secret::Secret,
    time::now,
};

/// What Svix gives an endpoint.
const TIMEOUT: Duration = Duration::from_secs(15);

/// An answer is read this far, in bytes, so that its connection can be kept.
const ANSWER_MAX: usize = 64 * 1024;

/// Posts to one URL with one secret. Cheap to clone.
#[derive(Clone)]
pub struct Poster {
    client: Client,
    url: Uri,
    key: Arc<Key>,
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
        let key = Arc::new(Key::new(secret)?);
        let client = match url.scheme_str() {
            Some("http") => Client::http(),
            Some("https") => Client::https().map_err(|error| {
                Failure::new(format!("this machine's certificates cannot be read: {error}"))
                    .hint("install the package ca-certificates, or set SSL_CERT_FILE")
            })?,
            _ => return Err(wrong("starts with neither http:// nor https://")),
        };
        Ok(Self { client, url, key })
    }

    /// Posts `body` under the id `message_id`, with the timestamp of now, as every try of Svix's has.
    ///
    /// # Errors
    /// There was no answer.
    pub async fn post(&self, message_id: &str, body: Bytes) -> Result<StatusCode, NoAnswer> {
        let mut request = Request::post(&self.url)
            .header("content-type", "application/json")
            .header("user-agent", concat!("headcount/", env!("CARGO_PKG_VERSION")));
        for (name, value) in self.key.headers(message_id, now() / 1000, &body) {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body)).map_err(|_| NoAnswer::Broken)?;
        self.client.send(request, TIMEOUT, ANSWER_MAX).await.map(|(status, _)| status)
    }
}

impl fmt::Debug for Poster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poster")
            .field("host", &self.url.authority().map(|at| at.host()))
            .finish_non_exhaustive()
    }
}

/// The address of this configuration's own ingress.
pub fn front_door(config: &Config) -> String {
    format!("http://{}{}", net::reachable(config.listen), config.webhook_path)
}

/// The secret that this machine signs with: the first that is configured, else the development secret.
///
/// # Errors
/// There is none.
pub fn signing_secret(config: &Config) -> Result<Secret, Failure> {
    if let Some(secret) = config.signing_secrets.first() {
        return Ok(secret.clone());
    }
    secret::development(&config.data_dir)?.ok_or_else(|| {
        Failure::usage("there is no secret to sign with")
            .hint("set CLERK_WEBHOOK_SIGNING_SECRET to the secret of the ingress that you send to")
            .hint("or run `headcount up` here, which makes a development secret")
    })
}
