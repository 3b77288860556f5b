//! Owns what an answer of Clerk's API means: what was asked for, nothing, a refusal, or an error that may pass. Pure.
//! Promises that only a 404 which Clerk itself gave means that there is nothing.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use url::Url;

use super::error::{ApiError, Away};
use crate::{
    net::{Answer, Cut},
    text::clean,
};

/// How long a 429 without `Retry-After` is waited for: as Clerk's own importer does.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Nobody waits longer, whatever a server asks for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

/// The longest code or message of Clerk's that is passed on, in bytes.
const WORDS_MAX: usize = 200;

/// What an answer gives.
#[derive(Debug)]
pub(super) enum Given {
    /// 200, with a whole body.
    Body(Bytes),
    /// 404, and Clerk said that there is no such thing.
    Nothing,
    /// 200, with a body that is longer than was to be read.
    TooLarge,
}

/// Why an answer gives nothing.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It stays as it is.
    Lasting(ApiError),
    /// It may pass. `after`: the server's own word when.
    Passing { error: ApiError, after: Option<Duration> },
}

/// Judges an answer of `host`.
pub(super) fn judge(answer: Answer, base: &Url, host: &str) -> Result<Given, Trouble> {
    let Answer { status, headers, body } = answer;
    let host = host.to_owned();
    let code = status.as_u16();
    match status {
        StatusCode::OK => match body {
            Ok(body) if is_page(&headers, &body) => Err(strange(host, "it answered 200 with a web page")),
            Ok(body) => Ok(Given::Body(body)),
            Err(Cut::TooLarge) => Ok(Given::TooLarge),
            Err(Cut::BrokenOff) => {
                Err(Trouble::Passing { error: ApiError::Away { host, why: Away::BrokenOff }, after: None })
            }
        },
        StatusCode::TOO_MANY_REQUESTS => {
            let after = retry_after(&headers);
            let error = ApiError::Limited { host, after };
            Err(Trouble::Passing { error, after: Some(after.unwrap_or(RETRY_AFTER)) })
        }
        status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
            Err(Trouble::Passing { error: ApiError::Away { host, why: Away::Status(code) }, after: None })
        }
        status if status.is_redirection() => {
            let target = headers.get(header::LOCATION).and_then(|to| base.join(to.to_str().ok()?).ok());
            let target = target.as_ref().and_then(authority).unwrap_or_else(|| "nowhere".to_owned());
            Err(strange(host, format!("it redirects ({code}) to {}", clean(&target, WORDS_MAX))))
        }
        status if status.is_client_error() => {
            let body = body.unwrap_or_default();
            Err(match (status, Said::read(&body)) {
                (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, said)
                    if said.is_some() || !is_page(&headers, &body) =>
                {
                    Trouble::Lasting(ApiError::Key {
                        host,
                        status: code,
                        code: said.and_then(|said| said.code),
                    })
                }
                (StatusCode::NOT_FOUND, Some(said)) if said.is("resource_not_found") => {
                    return Ok(Given::Nothing);
                }
                (_, Some(said)) => Trouble::Lasting(ApiError::Refused {
                    host,
                    status: code,
                    code: said.code,
                    message: said.message,
                }),
                (_, None) => strange(host, format!("it answered {code} without saying why")),
            })
        }
        _ => Err(strange(host, format!("it answered {code}"))),
    }
}

/// Host and port of a URL, as people write them; `None` where it names no host.
pub(super) fn authority(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

fn strange(host: String, what: impl Into<String>) -> Trouble {
    Trouble::Lasting(ApiError::NotClerk { host, what: what.into() })
}

/// The object that an answer has to be.
pub(super) fn object<T: DeserializeOwned>(body: &Bytes, host: &str, what: &str) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| other(&error, host, what))
}

/// The elements of the list that an answer has to be.
pub(super) fn list<'a>(body: &'a Bytes, host: &str) -> Result<Vec<&'a RawValue>, ApiError> {
    serde_json::from_slice(body).map_err(|error| other(&error, host, "a list of users"))
}

fn other(error: &serde_json::Error, host: &str, what: &str) -> ApiError {
    let what = match error.is_eof() {
        true => "its answer ends too early".into(),
        false => format!("its answer is not {what}"),
    };
    ApiError::NotClerk { host: host.to_owned(), what }
}

/// What Clerk says of a refusal, cleaned and short.
struct Said {
    code: Option<String>,
    message: Option<String>,
}

impl Said {
    /// The first of a body's errors; `None` where the body is not in Clerk's shape.
    fn read(body: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Errors {
            errors: Vec<One>,
        }
        #[derive(Deserialize)]
        struct One {
            code: Option<String>,
            message: Option<String>,
            long_message: Option<String>,
        }
        let first = serde_json::from_slice::<Errors>(body).ok()?.errors.into_iter().next()?;
        let words = |text: String| clean(&text, WORDS_MAX);
        let message = first.long_message.or(first.message).map(words);
        // What holds an @ may quote an address that was asked for.
        Some(Self { code: first.code.map(words), message: message.filter(|text| !text.contains('@')) })
    }

    fn is(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }
}

fn is_page(headers: &HeaderMap, body: &[u8]) -> bool {
    let html = |kind: &http::HeaderValue| kind.to_str().is_ok_and(|kind| kind.starts_with("text/html"));
    headers.get(header::CONTENT_TYPE).is_some_and(html) || body.trim_ascii_start().starts_with(b"<")
}

/// `Retry-After` in seconds, as Clerk sends it.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}
