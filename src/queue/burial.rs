//! Owns how a message gets into the dead letters: the burial that a worker asks for, what is known of a message in the
//! dead queue, and the names of the headers that carry both, on a broker and in what people see. Pure.

use std::collections::BTreeMap;

use crate::time::Millis;

/// Why a message is buried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Burial {
    /// Its stable code.
    pub reason: Reason,
    /// For people; cleaned and bounded, never holding a value from the body.
    pub detail: String,
}

/// The stable codes of what ends in the dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The body cannot be read: no JSON, no webhook, or no user.
    InvalidPayload,
    /// The message is to blame: the database refuses its values, or it failed to the ladder's end.
    Rejected,
    /// The message is to blame, and lost a race on every rung of the ladder.
    RetriesExhausted,
    /// It came back unsettled too often: it kills its workers.
    CrashLoop,
    /// The broker had no queue that would take it, or keep it.
    Unroutable,
    /// It comes from another Clerk instance than `HEADCOUNT_CLERK_INSTANCE` names.
    OtherInstance,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 6] = [
        Self::InvalidPayload,
        Self::Rejected,
        Self::RetriesExhausted,
        Self::CrashLoop,
        Self::Unroutable,
        Self::OtherInstance,
    ];

    /// The code: in headers, tables, metrics and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidPayload => "invalid_payload",
            Self::Rejected => "rejected",
            Self::RetriesExhausted => "retries_exhausted",
            Self::CrashLoop => "crash_loop",
            Self::Unroutable => "unroutable",
            Self::OtherInstance => "other_instance",
        }
    }
}

/// A delivery that has come back this often is buried as a crash loop.
pub const DELIVERY_LIMIT: u32 = 20;

/// The longest burial detail, in bytes.
pub const DETAIL_MAX: usize = 1024;

/// What the dead queue knows of a message. All text is cleaned and bounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// [`Reason::as_str`]: of our burial, else `crash_loop` where the broker's delivery limit did it, else `unroutable`.
    pub reason: String,
    /// Of our burial; else what the broker did to it.
    pub detail: String,
    /// By the clock of the process that buried it; of this process where the broker did.
    pub died_at: Millis,
    /// Every header, as text, bounded in number and length.
    pub headers: BTreeMap<String, String>,
    /// A process of ours has buried it, and counted that in its metrics.
    pub counted: bool,
}

/// In words, of a message that was delivered so often and that no worker has buried.
pub(super) fn never_settled(deliveries: u32) -> String {
    format!("it was delivered {deliveries} times and never settled: it kills its workers")
}

/// Whether a header is one of headcount's own that say nothing of a person: all but the detail, and none that another program set.
pub fn is_plain_header(name: &str) -> bool {
    use headers::{ATTEMPT, DIED_AT, EVENT_TYPE, ORIGIN, REASON, RECEIVED_AT, ROUND, TRACEPARENT, WAITS};
    [ORIGIN, ATTEMPT, WAITS, ROUND, EVENT_TYPE, RECEIVED_AT, TRACEPARENT, REASON, DIED_AT].contains(&name)
}

/// Our headers. A republish carries these and no others.
pub(super) mod headers {
    /// Where it comes from: [`Origin::as_str`](crate::message::Origin::as_str). Left out for a webhook.
    pub(in crate::queue) const ORIGIN: &str = "x-origin";
    /// Failed tries: [`Message::attempt`](crate::message::Message::attempt).
    pub(in crate::queue) const ATTEMPT: &str = "x-attempt";
    /// Tries that ended in waiting for another account.
    pub(in crate::queue) const WAITS: &str = "x-waits";
    /// How often it was replayed.
    pub(in crate::queue) const ROUND: &str = "x-round";
    /// The envelope's type.
    pub(in crate::queue) const EVENT_TYPE: &str = "x-event-type";
    /// When the ingress took it in, in ms.
    pub(in crate::queue) const RECEIVED_AT: &str = "x-received-at";
    /// W3C trace context.
    pub(in crate::queue) const TRACEPARENT: &str = "traceparent";
    /// [`Reason::as_str`](super::Reason::as_str) of its burial.
    pub(in crate::queue) const REASON: &str = "x-reason";
    /// [`Burial::detail`](super::Burial::detail).
    pub(in crate::queue) const DETAIL: &str = "x-detail";
    /// When it was buried, in ms.
    pub(in crate::queue) const DIED_AT: &str = "x-died-at";
}
