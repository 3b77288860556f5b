//! Owns how a queue says what is wrong, and what to do about it.

use crate::failure::Failure;

/// What can go wrong with a queue.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QueueError {
    /// It is away, full or closing. Trying again later is right.
    #[error("the queue is not available: {0}")]
    Unavailable(String),
    /// An alarm of the broker blocks publishing. Trying again later is right.
    #[error("the queue is not available: {0}")]
    Blocked(String),
    /// The embedded queue's file cannot be used at present. Trying again later is right.
    #[error("the queue is not available: {0}")]
    File(String),
    /// The queue is not as it has to be, and will not become so by itself.
    #[error("the queue cannot be used: {message}")]
    Misconfigured {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: String,
    },
    /// The address or the credentials are wrong.
    #[error("{message}")]
    Refused {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: String,
    },
}

impl QueueError {
    /// What is wrong, without "the queue is not available": for a sentence that names the part which does not work.
    pub fn reason(&self) -> &str {
        match self {
            Self::Unavailable(why) | Self::Blocked(why) | Self::File(why) => why,
            Self::Misconfigured { message, .. } | Self::Refused { message, .. } => message,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Unavailable(_) => None,
            Self::Blocked(_) => Some(
                "an alarm of the broker is on: free memory or disk on its machine, or raise its limits; rabbitmq-diagnostics alarms tells which",
            ),
            Self::File(_) => Some(
                "see whether the disk of queue.db has room and works, and whether another program keeps the file locked",
            ),
            Self::Misconfigured { hint, .. } | Self::Refused { hint, .. } => Some(hint),
        }
    }
}

impl From<&QueueError> for Failure {
    fn from(error: &QueueError) -> Self {
        let hint = error.hint().unwrap_or("check that the broker runs and that AMQP_URL is right");
        Self::new(error.to_string()).hint(hint)
    }
}

impl From<QueueError> for Failure {
    fn from(error: QueueError) -> Self {
        Self::from(&error)
    }
}
