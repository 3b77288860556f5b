//! Owns reading requests: queries, paths and bodies, bounded, with errors that name what is wrong.

use std::time::Duration;

use axum::{
    body::to_bytes,
    extract::{FromRequest, FromRequestParts, Path, Request},
};
use http::{StatusCode, request::Parts};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use url::form_urlencoded;

use super::problem::Problem;
use crate::letters::select::Selection;

/// The largest body of a request, in bytes: a letter's body of which each byte is escaped.
const REQUEST_MAX: usize = 4 * 1024 * 1024;
/// How long the body of a request may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(10);
/// The most ids in one query.
const IDS_MAX: usize = 1000;

/// The JSON of a request's body.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let too_slow =
            |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "too_slow", "the request did not arrive in time");
        let body = timeout(ARRIVAL, to_bytes(request.into_body(), REQUEST_MAX)).await.map_err(too_slow)?;
        let body = body.map_err(|_| {
            let message = format!("the request broke off or is larger than {REQUEST_MAX} bytes");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
        })?;
        // An action that needs no arguments needs no body.
        let body = if body.trim_ascii().is_empty() { b"{}" as &[u8] } else { &body };
        serde_json::from_slice(body)
            .map(Self)
            .map_err(|error| Problem::bad_request(format!("the request is not what is expected: {error}")))
    }
}

/// The name in a path, such as the id of a letter.
pub(super) struct Named(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let named = Path::<String>::from_request_parts(parts, state).await;
        named.map(|Path(name)| Self(name)).map_err(|_| Problem::bad_request("the path is not UTF-8"))
    }
}

/// A query's parameters, each with a value. A handler takes those that it knows, and then calls [`end`](Self::end).
pub(super) struct Query {
    pairs: Vec<(String, String)>,
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Problem;

    /// Refuses a parameter without a value: an empty filter must not select everything.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        let pairs: Vec<_> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        match pairs.iter().find(|(_, value)| value.is_empty()) {
            Some((name, _)) => {
                Err(Problem::bad_request(format!("{name:?} is empty: give it a value, or leave it out")))
            }
            None => Ok(Self { pairs }),
        }
    }
}

impl Query {
    /// Takes a parameter that may be there once.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let at = self.pairs.iter().position(|(known, _)| known == name)?;
        Some(self.pairs.remove(at).1)
    }

    /// Takes a number within bounds.
    pub(super) fn number(&mut self, name: &str, default: u64, most: u64) -> Result<u64, Problem> {
        let Some(text) = self.take(name) else { return Ok(default) };
        text.parse().ok().filter(|number| (1..=most).contains(number)).ok_or_else(|| {
            Problem::bad_request(format!("{name} has to be a whole number from 1 to {most}, not {text:?}"))
        })
    }

    /// Takes a yes or no.
    pub(super) fn flag(&mut self, name: &str) -> Result<bool, Problem> {
        match self.take(name).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => {
                Err(Problem::bad_request(format!("{name} has to be true or false, not {other:?}")))
            }
        }
    }

    /// Takes what selects letters; `id` may be there several times.
    pub(super) fn selection(&mut self) -> Result<Selection, Problem> {
        let mut ids = Vec::new();
        while let Some(id) = self.take("id") {
            ids.push(id);
        }
        if ids.len() > IDS_MAX {
            return Err(Problem::bad_request(format!("at most {IDS_MAX} ids at a time")));
        }
        Ok(Selection {
            ids,
            group: self.take("group"),
            status: self.take("status"),
            event_type: self.take("type"),
            reason: self.take("reason"),
            user: self.take("user"),
            text: self.take("text"),
            since: self.take("since"),
            until: self.take("until"),
            all: false,
        })
    }

    /// Refuses the parameters that were not taken: each is unknown, or there twice. A misspelt filter must not select
    /// everything.
    pub(super) fn end(self) -> Result<(), Problem> {
        match self.pairs.first() {
            None => Ok(()),
            Some((name, _)) => Err(Problem::bad_request(format!(
                "the parameter {name:?} is not known here, or is there twice"
            ))),
        }
    }
}
