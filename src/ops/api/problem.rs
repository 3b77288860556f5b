//! Owns how the API says that something went wrong: `application/problem+json` (RFC 9457), with a stable `code` and,
//! where there is one, a `hint`.

use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde::Serialize;

use crate::{
    letters::{edit::EditError, replay::End, select::SelectError},
    ops::{api::replays::Busy, status::StatusError},
    queue::QueueError,
    store::StoreError,
    terminal::safe_json,
};

/// An error on the wire.
#[derive(Debug, Serialize)]
pub(in crate::ops) struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    code: &'static str,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Problem {
    pub(in crate::ops) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            code,
            detail: detail.into(),
            hint: None,
        }
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    fn hinted(self, hint: Option<&str>) -> Self {
        Self { hint: hint.map(str::to_owned), ..self }
    }

    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", detail)
    }

    pub(super) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
    }

    pub(super) fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let text = safe_json(&serde_json::to_string(&self).unwrap_or_default()).into_owned();
        let mut response =
            (status, [(header::CONTENT_TYPE, "application/problem+json")], text).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, http::HeaderValue::from_static("5"));
        }
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Self::unavailable(error.to_string()).hinted(error.hint.as_deref())
    }
}

impl From<QueueError> for Problem {
    fn from(error: QueueError) -> Self {
        Self::unavailable(error.to_string()).hinted(error.hint())
    }
}

impl From<StatusError> for Problem {
    fn from(error: StatusError) -> Self {
        match error {
            StatusError::Queue(error) => error.into(),
            StatusError::Store(error) => error.into(),
        }
    }
}

impl From<SelectError> for Problem {
    fn from(error: SelectError) -> Self {
        match error {
            SelectError::Store(error) => error.into(),
            SelectError::Unreadable { .. } => Self::bad_request(error.to_string()).hinted(error.hint()),
            SelectError::UnknownGroup(_) => {
                Self::new(StatusCode::NOT_FOUND, "unknown_group", error.to_string())
                    .hint("give a group's id or its name; GET /api/v1/dead/groups?status=all lists both")
            }
            SelectError::Unknown(_) => Self::new(StatusCode::NOT_FOUND, "unknown_letter", error.to_string())
                .hint("give a letter's id or its message id; GET /api/v1/dead?status=all lists both"),
        }
    }
}

impl From<EditError> for Problem {
    fn from(error: EditError) -> Self {
        let detail = error.to_string();
        match error {
            EditError::Refused(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "refused", detail),
            EditError::Unchanged => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "unchanged", detail)
                .hint("to send it as it is, replay it"),
            EditError::NotOpen(_) | EditError::Gone => Self::conflict(detail),
            EditError::Store(error) => error.into(),
            EditError::Unpublished(ended) => {
                let why = match *ended {
                    End::Queue(error) => error.to_string(),
                    End::Store(error) => error.to_string(),
                    End::Complete | End::Limit | End::Stopped => String::new(),
                };
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "unpublished", format!("{detail}: {why}"))
                    .hint("replay this letter: the edit is kept")
            }
        }
    }
}

impl From<Busy> for Problem {
    fn from(busy: Busy) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", busy.to_string())
            .hint("wait for one to end, or stop one: GET /api/v1/dead/operations")
    }
}
