//! Owns what becomes of a message, as data: from an outcome or an error to one verdict. Pure.
//!
//! Every way to the dead letters, by its reason:
//!
//! - [`Reason::InvalidPayload`]: the body cannot be read (`batch`, before it is tried).
//! - [`Reason::OtherInstance`]: it is of a Clerk instance that people did not name (`batch`, before it is tried).
//! - [`Reason::CrashLoop`]: it came back unsettled too often: here (`batch`), in the embedded queue, or by the broker's
//!   own delivery limit.
//! - [`Reason::Rejected`]: it is to blame (`blame`), and the database refuses its values, or what it says is unclear to the
//!   ladder's end. Found by a failed try (`shift`, `approach`), or concluded of a suspect that waited for too long (`shift`).
//! - [`Reason::RetriesExhausted`]: it is to blame, and lost a race on every rung of the ladder.
//! - [`Reason::Unroutable`]: the broker had no queue that would take or keep it (`queue::rabbitmq::death`). No worker saw it.

use std::time::Duration;

use super::held::Held;
use crate::{
    message::Message,
    queue::{Action, Burial, Ladder, Reason},
    rules::Outcome,
    store::{Class, StoreError},
    telemetry::metrics::RetryReason,
};

/// How long at least a message stays aside, if the ladder has so long a rung.
const ASIDE: Duration = Duration::from_secs(30);

/// The one thing that becomes of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It took effect, or had none to take.
    Done(Outcome),
    /// It is tried again later, on a rung of the ladder.
    Retry {
        /// Index into the ladder.
        rung: usize,
        /// The message's `attempt` from then on.
        attempt: u32,
        /// The label in logs and metrics.
        reason: RetryReason,
    },
    /// It needs another account's event, which is on its way. It is tried again later and burns no attempt.
    Wait {
        /// Index into the ladder.
        rung: usize,
        /// The message's `waits` from then on.
        waits: u32,
    },
    /// Into the dead letters.
    Bury(Burial),
}

impl Verdict {
    /// A message that the store has folded.
    pub fn of_outcome(outcome: Outcome, message: &Message) -> Self {
        match outcome {
            Outcome::Waiting => Self::Wait { rung: message.waits as usize, waits: message.waits + 1 },
            Outcome::Created
            | Outcome::Updated
            | Outcome::Deleted
            | Outcome::Relinked
            | Outcome::Revived
            | Outcome::Stale
            | Outcome::Duplicate
            | Outcome::Ignored
            | Outcome::Buried => Self::Done(outcome),
        }
    }

    /// A message that is to blame. Values that are refused are buried at once. All else may pass with time, so it climbs the
    /// ladder, and is buried at its end.
    pub fn guilty(error: &StoreError, message: &Message, ladder: &Ladder) -> Self {
        let reason = match error.class {
            Class::Permanent => {
                return Self::Bury(Burial { reason: Reason::Rejected, detail: error.to_string() });
            }
            Class::Transient => Reason::RetriesExhausted,
            Class::Unclear | Class::Unanswered | Class::Outage | Class::Unusable => Reason::Rejected,
        };
        let rung = message.attempt as usize;
        if rung < ladder.rungs() {
            return Self::Retry { rung, attempt: message.attempt + 1, reason: RetryReason::Transient };
        }
        Self::Bury(Burial { reason, detail: format!("after {} tries: {error}", message.attempt + 1) })
    }

    /// A body that cannot be read.
    pub fn unreadable(detail: String) -> Self {
        Self::Bury(Burial { reason: Reason::InvalidPayload, detail })
    }

    /// An event of another Clerk instance than people named.
    pub fn of_other_instance(instance: Option<&str>) -> Self {
        let detail = format!(
            "it is of the Clerk instance {}, and HEADCOUNT_CLERK_INSTANCE names another",
            instance.unwrap_or("unknown")
        );
        Self::Bury(Burial { reason: Reason::OtherInstance, detail })
    }

    /// A message that has come back unsettled so often: it hangs its workers, or kills them.
    pub fn crash_loop(earlier: u32) -> Self {
        let detail =
            format!("it was delivered {earlier} times and never settled: it hangs its workers or kills them");
        Self::Bury(Burial { reason: Reason::CrashLoop, detail })
    }

    /// A message that an outage gives back: to the first retry queue, with its attempt unchanged. It is among the others
    /// again soon, and no worker takes it from there before the database takes messages.
    pub fn given_back(message: &Message) -> Self {
        Self::Retry { rung: 0, attempt: message.attempt, reason: RetryReason::Parked }
    }

    /// A delivery with the verdict that gives it back.
    pub(super) fn back(held: Held) -> (Held, Self) {
        let verdict = Self::given_back(&held.delivery.message);
        (held, verdict)
    }

    /// A message that fails, or may hang, while nothing proves whose fault it is, and others go on: out of their way for a
    /// while, with its attempt unchanged.
    pub fn set_aside(message: &Message, ladder: &Ladder) -> Self {
        let last = ladder.rungs() - 1;
        let rung = (0..last).find(|rung| ladder.delay(*rung) >= ASIDE).unwrap_or(last);
        Self::Retry { rung, attempt: message.attempt, reason: RetryReason::Parked }
    }

    /// What the queue has to do.
    pub fn action(&self, message: &Message) -> Action {
        match self {
            Self::Done(_) => Action::Done,
            Self::Retry { rung, attempt, .. } => {
                Action::Retry { rung: *rung, attempt: *attempt, waits: message.waits }
            }
            Self::Wait { rung, waits } => {
                Action::Retry { rung: *rung, attempt: message.attempt, waits: *waits }
            }
            Self::Bury(burial) => Action::Bury(burial.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{MessageId, Origin};

    fn message(attempt: u32, waits: u32) -> Message {
        Message {
            id: MessageId::of_body(b""),
            origin: Origin::Webhook,
            event_type: "user.created".into(),
            received_at: 0,
            attempt,
            waits,
            round: 0,
            traceparent: None,
            body: bytes::Bytes::new(),
        }
    }

    fn error() -> StoreError {
        StoreError {
            class: Class::Transient,
            code: "40P01".into(),
            message: "deadlock".into(),
            hint: None,
            source: None,
        }
    }

    #[test]
    fn waiting_counts_apart_and_never_buries() {
        let verdict = Verdict::of_outcome(Outcome::Waiting, &message(2, 40));
        assert_eq!(verdict.action(&message(2, 40)), Action::Retry { rung: 40, attempt: 2, waits: 41 });
    }

    #[test]
    fn every_final_outcome_is_done() {
        for outcome in Outcome::ALL.into_iter().filter(|outcome| outcome.is_final()) {
            assert_eq!(Verdict::of_outcome(outcome, &message(0, 0)).action(&message(0, 0)), Action::Done);
        }
    }

    #[test]
    fn the_ladder_is_climbed_rung_by_rung_and_ends_in_the_dead_letters() {
        let ladder = Ladder::default();
        for attempt in 0..6 {
            let verdict = Verdict::guilty(&error(), &message(attempt, 1), &ladder);
            let expected = Action::Retry { rung: attempt as usize, attempt: attempt + 1, waits: 1 };
            assert_eq!(verdict.action(&message(attempt, 1)), expected);
        }
        let Verdict::Bury(burial) = Verdict::guilty(&error(), &message(6, 0), &ladder) else { panic!() };
        assert_eq!(burial.reason, Reason::RetriesExhausted);
        assert_eq!(burial.detail, "after 7 tries: deadlock");
    }

    #[test]
    fn what_is_given_back_or_set_aside_burns_no_attempt() {
        let back = Verdict::given_back(&message(3, 2));
        assert_eq!(back.action(&message(3, 2)), Action::Retry { rung: 0, attempt: 3, waits: 2 });
        let aside = Verdict::set_aside(&message(3, 2), &Ladder::default());
        assert_eq!(aside.action(&message(3, 2)), Action::Retry { rung: 2, attempt: 3, waits: 2 });
    }

    #[test]
    fn refused_values_are_buried_at_once_all_else_climbs_the_ladder() {
        let ladder = Ladder::default();
        for class in [
            Class::Permanent,
            Class::Transient,
            Class::Unclear,
            Class::Unanswered,
            Class::Outage,
            Class::Unusable,
        ] {
            let error = StoreError { class, ..error() };
            let first = Verdict::guilty(&error, &message(0, 0), &ladder);
            assert_eq!(matches!(first, Verdict::Bury(_)), class == Class::Permanent, "{class:?}");
            let Verdict::Bury(burial) = Verdict::guilty(&error, &message(6, 0), &ladder) else { panic!() };
            let exhausted = burial.reason == Reason::RetriesExhausted;
            assert_eq!(exhausted, class == Class::Transient, "{class:?}");
        }
    }
}
