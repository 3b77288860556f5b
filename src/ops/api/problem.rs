//! Owns what the errors of the rooms below look like to an operator's program.

use http::StatusCode;

pub(in crate::ops) use crate::net::Problem;
use crate::{
    letters::{edit::EditError, operations::StartError, replay::End, select::SelectError},
    ops::status::StatusError,
    queue::QueueError,
    store::StoreError,
};

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

impl From<StartError> for Problem {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Busy => Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", error.to_string())
                .hint("wait for one to end, or stop one: GET /api/v1/dead/operations"),
            StartError::Store(error) => error.into(),
        }
    }
}
