//! Owns when a worker pauses, when it tries the next message in a pause, and when a pause ends. Pure.
//!
//! In an outage a worker is *paused*: it takes no new messages until one can be applied. A pause has two halves. First the
//! worker keeps what it holds and tries one message of it at a time, which is what this file decides. After
//! [`Settings::silence`](super::Settings::silence) it gives everything back and approaches the queue again (`approach`).

use std::time::Duration;

use super::blame::Moment;
use crate::pause::Pauses;

/// Between two messages that are tried in a pause: from the first to the second, doubling.
pub(super) const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// What a worker does with what it holds.
#[derive(Debug)]
pub(super) enum Course {
    /// It tries all that it may.
    Working,
    /// Nothing succeeds: it tries one message at a time.
    Paused(Pause),
    /// It tries nothing more.
    GivingBack,
}

/// The first half of a pause.
#[derive(Debug)]
pub(super) struct Pause {
    pauses: Pauses,
    try_at: Moment,
    give_back_at: Moment,
}

impl Course {
    /// Nothing succeeds, and has not since a moment that is `silent_since`.
    pub(super) fn pause(&mut self, now: Moment, silent_since: Option<Moment>, silence: Duration) {
        match self {
            Self::Working => {
                let give_back_at = silent_since.unwrap_or(now) + silence;
                let pauses = Pauses::new(PAUSES.0, PAUSES.1);
                *self = Self::Paused(Pause { pauses, try_at: now, give_back_at });
            }
            Self::Paused(_) | Self::GivingBack => {}
        }
    }

    /// Something has failed: in a pause, the next message is tried later.
    pub(super) fn failed(&mut self, now: Moment) {
        if let Self::Paused(pause) = self {
            pause.try_at = now + pause.pauses.next_pause();
        }
    }

    /// A user was changed: that ends a pause. Whether the worker works now.
    pub(super) fn succeeded(&mut self) -> bool {
        if matches!(self, Self::Paused(_)) {
            *self = Self::Working;
        }
        self.is_working()
    }

    /// Ends the first half of a pause when its time is over, or the worker has to stop.
    pub(super) fn review(&mut self, now: Moment, stopping: bool) {
        if let Self::Paused(pause) = self
            && (stopping || now >= pause.give_back_at)
        {
            *self = Self::GivingBack;
        }
    }

    pub(super) fn give_back(&mut self) {
        *self = Self::GivingBack;
    }

    pub(super) fn is_working(&self) -> bool {
        matches!(self, Self::Working)
    }

    pub(super) fn is_giving_back(&self) -> bool {
        matches!(self, Self::GivingBack)
    }
}

impl Pause {
    /// Whether it is time to try the next message.
    pub(super) fn may_try(&self, now: Moment) -> bool {
        self.try_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(5);

    fn at(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_pause_gives_back_when_silence_since_the_first_failure_is_over() {
        for (since, over) in [(Some(at(8)), 13), (None, 15)] {
            let mut course = Course::Working;
            course.pause(at(10), since, SILENCE);
            // What is said again changes nothing.
            course.pause(at(12), Some(at(12)), SILENCE);
            course.review(at(over - 1), false);
            assert!(matches!(course, Course::Paused(_)), "{since:?}");
            course.review(at(over), false);
            assert!(course.is_giving_back() && !course.succeeded(), "{since:?}");
        }
    }

    #[test]
    fn a_stop_in_a_pause_gives_back_at_once_and_one_without_a_pause_does_not() {
        let mut course = Course::Working;
        course.review(at(100), true);
        assert!(course.is_working());
        course.pause(at(100), None, SILENCE);
        course.review(at(100), true);
        assert!(course.is_giving_back());
    }

    #[test]
    fn in_a_pause_the_first_try_is_at_once_and_failures_delay_the_next() {
        let mut course = Course::Working;
        course.failed(at(1));
        assert!(course.is_working());
        course.pause(at(10), None, SILENCE);
        let may_try = |course: &Course, now| matches!(course, Course::Paused(pause) if pause.may_try(now));
        assert!(may_try(&course, at(10)));
        for _ in 0..20 {
            course.failed(at(10));
            assert!(!may_try(&course, at(10)) && may_try(&course, at(18)), "within 7.5 s");
        }
        assert!(course.succeeded() && course.is_working(), "one that succeeds ends it");
    }
}
