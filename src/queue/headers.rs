//! Owns the names of our headers: on the wire, and in what people see of a dead letter, whatever the backend.

/// Failed tries.
pub(super) const ATTEMPT: &str = "x-attempt";
/// Tries that ended in waiting.
pub(super) const WAITS: &str = "x-waits";
/// Replays.
pub(super) const ROUND: &str = "x-round";
/// The envelope's type.
pub(super) const EVENT_TYPE: &str = "x-event-type";
/// When the ingress took it in, in ms.
pub(super) const RECEIVED_AT: &str = "x-received-at";
/// W3C trace context.
pub(super) const TRACEPARENT: &str = "traceparent";
/// Why it was buried, as a code.
pub(super) const REASON: &str = "x-reason";
/// Why, in words.
pub(super) const DETAIL: &str = "x-detail";
/// When, in ms.
pub(super) const DIED_AT: &str = "x-died-at";
