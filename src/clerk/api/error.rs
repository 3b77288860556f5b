//! Owns why Clerk's API could not be asked, in words for people, and what to do. Promises that no error holds the key, a
//! body or an address.

use std::time::Duration;

use humantime::format_duration;

use crate::{failure::Failure, net::NoAnswer};

/// Why a request to Clerk's API came to nothing. `host` is always the one of `CLERK_API_URL`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// No request can be made with what was given.
    #[error("Clerk's API cannot be asked: {problem}")]
    Setup {
        /// What is wrong.
        problem: String,
        /// What to do.
        hint: &'static str,
    },
    /// 401 or 403. Never tried again.
    #[error("{host} refuses the key: it answered {status}{}", code.as_ref().map(|code| format!(" ({code})")).unwrap_or_default())]
    Key {
        /// Who was asked.
        host: String,
        /// 401 or 403.
        status: u16,
        /// Clerk's code, such as `clerk_key_invalid`.
        code: Option<String>,
    },
    /// The answer is none that Clerk's API gives. Never tried again.
    #[error("{host} does not answer as Clerk's API does: {what}")]
    NotClerk {
        /// Who was asked.
        host: String,
        /// What it did instead.
        what: String,
    },
    /// 429 until patience was over, or for longer than it reaches.
    #[error("{host} limits requests: it answered 429{}", after.map(|after| format!(", and wants none for {}", format_duration(after))).unwrap_or_default())]
    Limited {
        /// Who was asked.
        host: String,
        /// The last `Retry-After`.
        after: Option<Duration>,
    },
    /// No answer, a broken one, or an error of the server, until patience was over.
    #[error("{host} {}", away(*why))]
    Away {
        /// Who was asked.
        host: String,
        /// What the last try met.
        why: Away,
    },
    /// Another refusal: 422 for a parameter, say. Never tried again.
    #[error("{host} answered {status}{}", said(code.as_deref(), message.as_deref()))]
    Refused {
        /// Who was asked.
        host: String,
        /// 400 or more.
        status: u16,
        /// Clerk's code, such as `form_param_value_invalid`.
        code: Option<String>,
        /// Clerk's words, cleaned and short. `None` where they hold an address.
        message: Option<String>,
    },
    /// One user alone is larger than an answer may be. Never tried again.
    #[error("{host} answered with more than {most} bytes for one user")]
    TooLarge {
        /// Who was asked.
        host: String,
        /// Bytes.
        most: usize,
    },
}

/// Why a server is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Away {
    /// There was no answer.
    NoAnswer(NoAnswer),
    /// The answer's body broke off.
    BrokenOff,
    /// An error of the server: its status.
    Status(u16),
}

fn away(why: Away) -> String {
    match why {
        Away::NoAnswer(why) => format!("gives no answer: {}", why.as_str()),
        Away::BrokenOff => "gives no whole answer: connection broken".into(),
        Away::Status(status) => format!("answered {status}"),
    }
}

fn said(code: Option<&str>, message: Option<&str>) -> String {
    match (code, message) {
        (Some(code), Some(message)) => format!(" ({code}): {message}"),
        (Some(code), None) => format!(" ({code})"),
        (None, Some(message)) => format!(": {message}"),
        (None, None) => String::new(),
    }
}

impl ApiError {
    /// Where one user was asked for, it says nothing about others.
    pub fn is_about_one(&self) -> bool {
        matches!(self, Self::NotClerk { .. } | Self::TooLarge { .. } | Self::Refused { .. })
    }

    /// What to do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Setup { hint, .. } => hint,
            Self::Key { status: 401, .. } => {
                "copy the secret key from the page of API keys in the Clerk dashboard to CLERK_SECRET_KEY"
            }
            Self::Key { .. } => "use a key in CLERK_SECRET_KEY that may read users and the instance",
            Self::NotClerk { .. } => {
                "check CLERK_API_URL, and that no proxy or login page stands between; unset it is https://api.clerk.com"
            }
            Self::Limited { .. } => {
                "something else uses up the quota of this Clerk instance: run it again later, or ask more slowly"
            }
            Self::Away { why: Away::NoAnswer(NoAnswer::Tls), .. } => {
                "check that CLERK_API_URL speaks HTTPS with a certificate that this machine trusts"
            }
            Self::Away { why: Away::Status(_), .. } => "see https://status.clerk.com, and run it again later",
            Self::Away { .. } => "check CLERK_API_URL and this machine's way to it, and run it again",
            Self::Refused { .. } => {
                "check that CLERK_API_URL is Clerk's API; if it is, headcount may be too old for it"
            }
            Self::TooLarge { .. } => "look at the user's metadata in the Clerk dashboard",
        }
    }
}

impl From<&ApiError> for Failure {
    fn from(error: &ApiError) -> Self {
        Self::new(error.to_string()).hint(error.hint())
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::from(&error)
    }
}
