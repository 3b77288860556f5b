//! Owns what becomes of a message, as data: from an outcome or an error to one verdict. Pure.

use crate::{
    message::Message,
    queue::{Action, Burial, Ladder, Reason},
    roster::Outcome,
    store::{Class, StoreError},
    telemetry::metrics::RetryReason,
};

/// The one thing that becomes of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It took effect, or had none to take.
    Done(Outcome),
    /// Again later, on a rung of the ladder.
    Retry {
        /// Index into the ladder.
        rung: usize,
        /// `attempt` from then on.
        attempt: u32,
        /// Why.
        reason: RetryReason,
    },
    /// Another account's news is on its way: again later, burning nothing.
    Wait {
        /// Index into the ladder.
        rung: usize,
        /// `waits` from then on.
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
            _ => Self::Done(outcome),
        }
    }

    /// A message that lost every race, alone: up the ladder, and off its end into the dead letters.
    pub fn exhausted(error: &StoreError, message: &Message, ladder: &Ladder) -> Self {
        let rung = message.attempt as usize;
        if rung < ladder.rungs() {
            return Self::Retry { rung, attempt: message.attempt + 1, reason: RetryReason::Transient };
        }
        let detail = format!("after {} tries: {error}", message.attempt + 1);
        Self::Bury(Burial { reason: Reason::RetriesExhausted, detail })
    }

    /// A message that the database does not take while it takes others': refused values are buried, while a row that
    /// somebody keeps locked may be free later.
    pub fn convicted(error: &StoreError, message: &Message, ladder: &Ladder) -> Self {
        match error.class {
            Class::Unclear => Self::exhausted(error, message, ladder),
            Class::Permanent | Class::Transient | Class::Outage | Class::Unusable => {
                Self::Bury(Burial { reason: Reason::Rejected, detail: error.to_string() })
            }
        }
    }

    /// A body that says nothing we can fold.
    pub fn unreadable(detail: String) -> Self {
        Self::Bury(Burial { reason: Reason::InvalidPayload, detail })
    }

    /// A message that was held too long while the database was away: to a retry queue with its attempt unchanged.
    pub fn parked(message: &Message, ladder: &Ladder) -> Self {
        let long = ladder.iter().position(|(_, delay)| delay >= std::time::Duration::from_secs(30));
        let rung = long.unwrap_or(ladder.rungs() - 1);
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

/// What a failed transaction means for the messages in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// One of several is guilty: try the halves.
    Split,
    /// It lost every race, alone.
    Exhausted,
    /// Its values are refused, or its row is locked, alone. Its own trouble only if the database takes others'.
    Suspect,
    /// Nobody's fault: hold everything and wait.
    Outage,
}

impl Failure {
    /// The failure of a transaction over `messages` messages.
    pub fn of(class: Class, messages: usize) -> Self {
        match (class, messages) {
            (Class::Outage | Class::Unusable, _) => Self::Outage,
            (Class::Permanent | Class::Transient | Class::Unclear, 2..) => Self::Split,
            (Class::Transient, _) => Self::Exhausted,
            (Class::Permanent | Class::Unclear, _) => Self::Suspect,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::MessageId;

    fn message(attempt: u32, waits: u32) -> Message {
        Message {
            id: MessageId::of_body(b""),
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
            let verdict = Verdict::exhausted(&error(), &message(attempt, 1), &ladder);
            let expected = Action::Retry { rung: attempt as usize, attempt: attempt + 1, waits: 1 };
            assert_eq!(verdict.action(&message(attempt, 1)), expected);
        }
        let Verdict::Bury(burial) = Verdict::exhausted(&error(), &message(6, 0), &ladder) else { panic!() };
        assert_eq!(burial.reason, Reason::RetriesExhausted);
        assert_eq!(burial.detail, "after 7 tries: deadlock");
    }

    #[test]
    fn parking_burns_no_attempt() {
        let verdict = Verdict::parked(&message(3, 2), &Ladder::default());
        assert_eq!(verdict.action(&message(3, 2)), Action::Retry { rung: 2, attempt: 3, waits: 2 });
    }

    #[test]
    fn only_a_message_alone_is_ever_to_blame() {
        assert_eq!(Failure::of(Class::Permanent, 200), Failure::Split);
        assert_eq!(Failure::of(Class::Permanent, 1), Failure::Suspect);
        assert_eq!(Failure::of(Class::Unclear, 200), Failure::Split);
        assert_eq!(Failure::of(Class::Unclear, 1), Failure::Suspect);
        assert_eq!(Failure::of(Class::Transient, 2), Failure::Split);
        assert_eq!(Failure::of(Class::Transient, 1), Failure::Exhausted);
        for messages in [1, 200] {
            assert_eq!(Failure::of(Class::Outage, messages), Failure::Outage);
            assert_eq!(Failure::of(Class::Unusable, messages), Failure::Outage);
        }
    }
}
