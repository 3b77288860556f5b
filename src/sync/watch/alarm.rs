//! Owns the judgement that Clerk's webhooks do not arrive. Pure: times come in.
//!
//! Promises no alarm on a quiet day, when nobody is healed, nor on a busy one, when other webhooks arrive: it takes several
//! users who changed since the last webhook came in and were healed within ten minutes.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::state::{Healing, State};
use crate::time::{Millis, rfc3339};

/// So many healed users raise the alarm, ...
const USERS: usize = 3;
/// ... if they were healed within this time, in milliseconds.
const WITHIN: Millis = 600_000;
/// A healed user counts after this time: what workers have seen of webhooks is written down every ten seconds.
const WRITTEN: Millis = 15_000;
/// The most healed users that are remembered.
const REMEMBERED: usize = 100;

/// Clerk's webhooks do not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// Since when, by this machine's clock.
    pub since: Millis,
    /// When the last webhook had come in.
    pub last_webhook_at: Option<Millis>,
    /// How many users had been healed.
    pub healed: u64,
}

/// What to do about it.
pub const HINT: &str = "check the endpoint in the Clerk dashboard (is it enabled, and does its URL lead here?), then let it \
     replay missing messages there";

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Clerk's webhooks do not arrive: {} users had to be read from Clerk's API since ",
            self.healed
        )?;
        match self.last_webhook_at {
            Some(at) => write!(f, "the last one came in at {}", rfc3339(at)),
            None => write!(f, "headcount watches, and none has ever come in"),
        }
    }
}

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The alarm is raised.
    Raised(Alarm),
    /// A webhook came in.
    Ended,
}

/// Remembers a user who was healed. What changed before anybody watched says nothing about the webhooks of now.
pub fn note(state: &mut State, healing: Healing) {
    if healing.changed_at <= state.began_at {
        return;
    }
    state.recent.push(healing);
    let surplus = state.recent.len().saturating_sub(REMEMBERED);
    state.recent.drain(..surplus);
}

/// Raises or ends the alarm. `last_webhook_at` is when the last webhook of the table's instance came in, `clock_ahead` how far Clerk's
/// clock is ahead of ours.
pub fn judge(
    state: &mut State,
    last_webhook_at: Option<Millis>,
    clock_ahead: Millis,
    now: Millis,
) -> Option<Change> {
    state.recent.retain(|healing| now.saturating_sub(healing.at) < WITHIN);
    if let Some(alarm) = state.alarm {
        // A webhook that came in between the healing and the alarm ends it too.
        let ended = last_webhook_at > alarm.last_webhook_at;
        return ended.then(|| {
            state.alarm = None;
            Change::Ended
        });
    }
    let counts = |healing: &&Healing| {
        let changed_at = healing.changed_at.saturating_sub(clock_ahead);
        let none_since = last_webhook_at.is_none_or(|last| last < changed_at);
        none_since && now.saturating_sub(healing.at) >= WRITTEN
    };
    let healed = state.recent.iter().filter(counts).count();
    (healed >= USERS).then(|| {
        let alarm = Alarm { since: now, last_webhook_at, healed: healed as u64 };
        state.alarm = Some(alarm);
        Change::Raised(alarm)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Millis = 1000;
    const MINUTE: Millis = 60 * SECOND;

    fn healed(at: &[Millis]) -> State {
        let mut state = State::default();
        at.iter().for_each(|&at| note(&mut state, Healing { at, changed_at: at - MINUTE }));
        state
    }

    #[test]
    fn three_healed_users_since_the_last_webhook_raise_it_and_a_webhook_ends_it() {
        let (last, mut state) = (Some(10 * MINUTE), healed(&[20 * MINUTE, 21 * MINUTE]));
        assert_eq!(judge(&mut state, last, 0, 22 * MINUTE), None);
        note(&mut state, Healing { at: 22 * MINUTE, changed_at: 21 * MINUTE });
        assert_eq!(judge(&mut state, last, 0, 22 * MINUTE), None, "workers may not have written it down");
        let alarm = Alarm { since: 23 * MINUTE, last_webhook_at: last, healed: 3 };
        assert_eq!(judge(&mut state, last, 0, 23 * MINUTE), Some(Change::Raised(alarm)));
        assert_eq!(judge(&mut state, last, 0, 24 * MINUTE), None, "once");
        assert_eq!(judge(&mut state, last, 0, 90 * MINUTE), None, "and it lasts");
        assert_eq!(judge(&mut state, Some(91 * MINUTE), 0, 92 * MINUTE), Some(Change::Ended));
        assert_eq!(state.alarm, None);
    }

    #[test]
    fn webhooks_that_never_came_raise_it_too() {
        let mut state = healed(&[20 * MINUTE, 20 * MINUTE, 20 * MINUTE]);
        assert!(matches!(judge(&mut state, None, 0, 21 * MINUTE), Some(Change::Raised(_))));
        assert_eq!(judge(&mut state, Some(1), 0, 22 * MINUTE), Some(Change::Ended));
    }

    #[test]
    fn on_a_busy_day_no_number_of_healed_users_raises_it() {
        let mut state = State::default();
        for second in 60..1200 {
            let at = second * SECOND;
            note(&mut state, Healing { at, changed_at: at - MINUTE });
            assert_eq!(judge(&mut state, Some(at - SECOND), 0, at), None);
        }
    }

    #[test]
    fn few_healed_users_on_a_quiet_day_raise_none() {
        let mut state = State::default();
        for hour in 1..48 {
            let at = hour * 60 * MINUTE;
            note(&mut state, Healing { at, changed_at: at - MINUTE });
            assert_eq!(judge(&mut state, Some(1), 0, at + MINUTE), None);
        }
        assert_eq!(judge(&mut State::default(), None, 0, 48 * 60 * MINUTE), None);
    }

    #[test]
    fn what_changed_before_anybody_watched_raises_none() {
        let mut state = State { began_at: 30 * MINUTE, ..State::default() };
        for at in [31, 32, 33] {
            note(&mut state, Healing { at: at * MINUTE, changed_at: 29 * MINUTE });
        }
        assert_eq!(judge(&mut state, None, 0, 34 * MINUTE), None);
    }

    #[test]
    fn clocks_that_differ_are_reckoned_with() {
        // Clerk's clock is an hour ahead: the change was before the webhook, although its time is later.
        let mut state = State::default();
        let changed_at = 20 * MINUTE + 60 * MINUTE;
        for _ in 0..3 {
            note(&mut state, Healing { at: 22 * MINUTE, changed_at });
        }
        assert_eq!(judge(&mut state, Some(21 * MINUTE), 60 * MINUTE, 23 * MINUTE), None);
    }
}
