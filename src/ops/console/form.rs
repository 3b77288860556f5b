//! Owns reading what a page sends: bounded, empty fields as if they were not there. Of a field that is there several times the
//! first counts, but for the ids of letters.

use std::time::Duration;

use axum::{
    body::to_bytes,
    extract::{FromRequest, FromRequestParts, Path, Request},
};
use http::{StatusCode, request::Parts};
use tokio::time::timeout;
use url::form_urlencoded;
use uuid::Uuid;

use super::super::api::problem::Problem;
use super::Refused;
use crate::letters::select::Selection;

/// The largest form, in bytes: a body of which each byte is escaped.
const FORM_MAX: usize = 2 * 1024 * 1024;
/// How long it may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(10);
/// The most letters that are named one by one.
const IDS_MAX: usize = 1000;
/// The names of the fields that select letters.
pub(super) const FILTERS: [&str; 9] =
    ["id", "group", "status", "type", "reason", "user", "text", "since", "until"];

/// The fields of a form, or of a query.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields {
    pairs: Vec<(String, String)>,
}

/// A form's, of at most so many bytes.
pub(super) struct Form<const MAX: usize = FORM_MAX>(pub(super) Fields);

impl Fields {
    fn parse(text: &[u8]) -> Self {
        let pairs = form_urlencoded::parse(text).into_owned();
        Self { pairs: pairs.filter(|(_, value)| !value.trim().is_empty()).collect() }
    }

    /// A field's value.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The same as text of its own.
    fn owned(&self, name: &str) -> Option<String> {
        self.get(name).map(|value| value.trim().to_owned())
    }

    /// Those of these names, as they came.
    pub(super) fn only<'f>(&'f self, names: &'f [&str]) -> Vec<(&'f str, &'f str)> {
        let known = self.pairs.iter().filter(|(name, _)| names.contains(&name.as_str()));
        known.map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    /// Whether anything is said of which letters are meant.
    pub(super) fn selects(&self) -> bool {
        self.pairs.iter().any(|(name, _)| FILTERS.contains(&name.as_str()) && name != "status")
    }

    /// A whole number of a hidden field.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.get(name)?.parse().ok()
    }

    /// Which letters are meant; all of a status where nothing else is said.
    pub(super) fn selection(&self) -> Result<Selection, Refused> {
        let ids: Vec<String> =
            self.pairs.iter().filter(|(name, _)| name == "id").map(|(_, id)| id.clone()).collect();
        if ids.len() > IDS_MAX {
            return Err(
                Problem::bad_request(format!("at most {IDS_MAX} letters can be chosen one by one")).into()
            );
        }
        Ok(Selection {
            ids,
            group: self.owned("group"),
            status: self.owned("status"),
            event_type: self.owned("type"),
            reason: self.owned("reason"),
            user: self.owned("user"),
            text: self.owned("text"),
            since: self.owned("since"),
            until: self.owned("until"),
            all: false,
        })
    }

    /// The id that the page gave to the action, so that two clicks do it once.
    pub(super) fn once(&self) -> Result<Uuid, Refused> {
        let id = self.get("once").and_then(|id| Uuid::try_parse(id).ok());
        id.ok_or_else(|| Problem::bad_request("the form is not whole: open the page again").into())
    }
}

/// The name in a path, such as the id of a letter.
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let name = Path::<String>::from_request_parts(parts, state).await;
        name.map(|Path(name)| Self(name))
            .map_err(|_| Problem::bad_request("the page's address is not UTF-8").into())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Fields {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default().as_bytes()))
    }
}

impl<S: Send + Sync, const MAX: usize> FromRequest<S> for Form<MAX> {
    type Rejection = Refused;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refused> {
        let late =
            |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "too_slow", "the form did not arrive in time");
        let body = timeout(ARRIVAL, to_bytes(request.into_body(), MAX)).await.map_err(late)?;
        let body = body.map_err(|_| {
            let message = format!("the form broke off or is larger than {MAX} bytes");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
        })?;
        Ok(Self(Fields::parse(&body)))
    }
}
