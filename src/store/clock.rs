//! Owns what retention believes the time to be. A clock that leaps forward, by mistake, would make everything look past
//! its retention, and what is deleted is gone for good. So a time is believed at once only if it is near the last one
//! that was; towards a far one belief goes on by small steps, which gives people days to put the clock right. Pure.

use std::time::Duration;

use crate::time::Millis;

const MINUTE: Millis = 60_000;
/// The farthest that time may have gone on since it was last looked at, and one step towards what is farther.
const STEP: Millis = 60 * MINUTE;
/// Between two such steps, by the clock itself: one that has leapt goes on evenly after that.
const PAUSE: Millis = 10 * MINUTE;
/// What is nearer than this is not worth writing down.
const FINE: Millis = MINUTE;

/// What was believed, and when by the clock it was written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Belief {
    pub(super) time: Millis,
    pub(super) written_at: Millis,
}

/// What is believed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Now {
    pub(super) time: Millis,
    /// What to write down.
    pub(super) news: Option<Belief>,
    /// How far the clock is ahead, where it is not believed.
    pub(super) ahead: Option<Millis>,
}

impl Now {
    pub(super) fn clock_ahead(self) -> Option<Duration> {
        self.ahead.map(|ahead| Duration::from_millis(ahead.unsigned_abs()))
    }
}

pub(super) fn believe(clock: Millis, last: Option<Belief>) -> Now {
    let at = |time| Some(Belief { time, written_at: clock });
    // Nothing written down, or the clock was put back, and may be right at last.
    let Some(last) = last.filter(|last| last.time <= clock) else {
        return Now { time: clock, news: at(clock), ahead: None };
    };
    let gone = clock.saturating_sub(last.time);
    if gone <= STEP {
        return Now { time: clock, news: at(clock).filter(|_| gone >= FINE), ahead: None };
    }
    let due = clock.saturating_sub(last.written_at).unsigned_abs() >= PAUSE.unsigned_abs();
    let (time, news) = if due { (last.time + STEP, at(last.time + STEP)) } else { (last.time, None) };
    Now { time, news, ahead: Some(clock.saturating_sub(time)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: Millis = 365 * 24 * 60 * MINUTE;

    /// Runs a round every ten minutes by the clock, and returns how far belief went.
    fn rounds(clock: &mut Millis, belief: &mut Option<Belief>, count: u32) -> Now {
        let mut now = believe(*clock, *belief);
        for _ in 0..count {
            // Many steps of one round count once.
            for _ in 0..50 {
                now = believe(*clock, *belief);
                *belief = now.news.or(*belief);
                *clock += 200;
            }
            *clock += PAUSE;
        }
        now
    }

    #[test]
    fn a_clock_that_goes_on_evenly_is_believed() {
        let (mut clock, mut belief) = (5 * YEAR, None);
        let now = rounds(&mut clock, &mut belief, 1_000);
        assert!(now.ahead.is_none() && clock - now.time < STEP);
    }

    #[test]
    fn a_leap_is_followed_in_small_steps_until_the_clock_is_put_right() {
        let (mut clock, mut belief) = (5 * YEAR, None);
        rounds(&mut clock, &mut belief, 3);
        let before = belief.unwrap().time;
        clock += 10 * YEAR;
        let now = rounds(&mut clock, &mut belief, 6);
        assert!(now.ahead.unwrap() > 9 * YEAR);
        assert!(now.time - before <= 6 * STEP, "an hour each round at most");
        clock -= 10 * YEAR;
        let now = rounds(&mut clock, &mut belief, 1);
        assert_eq!(now.ahead, None);
        assert!(clock - now.time < STEP);
    }

    #[test]
    fn after_a_long_stop_belief_catches_up() {
        let (mut clock, mut belief) = (5 * YEAR, None);
        rounds(&mut clock, &mut belief, 3);
        clock += 24 * STEP;
        let now = rounds(&mut clock, &mut belief, 40);
        assert_eq!(now.ahead, None);
    }

    #[test]
    fn no_time_overflows() {
        for clock in [Millis::MIN, 0, Millis::MAX] {
            for time in [Millis::MIN, 0, Millis::MAX] {
                believe(clock, Some(Belief { time, written_at: clock }));
                believe(clock, Some(Belief { time, written_at: time }));
            }
        }
    }
}
