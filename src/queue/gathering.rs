//! Owns when a task that moves messages lets more of them gather before it goes on: waking a thread costs as much as moving
//! some messages. Promises that a task which meets few never waits.

use std::time::{Duration, Instant};

/// So many met at one waking, ...
const AT_ONCE: usize = 8;
/// ... or so many in a while make a task busy.
const IN_A_WHILE: (usize, Duration) = (10, Duration::from_millis(10));
/// How long a busy task lets more gather. The runtime's clock makes it a millisecond more at most.
const GATHERING: Duration = Duration::from_millis(1);

/// How busy a task is.
#[derive(Debug)]
pub(in crate::queue) struct Gathering {
    /// When the present while began, and how many were met in it.
    since: Instant,
    met: usize,
    /// In the while before.
    busy: bool,
    rests: bool,
}

impl Gathering {
    pub(in crate::queue) fn new() -> Self {
        Self { since: Instant::now(), met: 0, busy: false, rests: false }
    }

    /// So many were met at one waking.
    pub(in crate::queue) fn met(&mut self, count: usize) {
        self.met_at(count, Instant::now());
    }

    fn met_at(&mut self, count: usize, now: Instant) {
        let (many, a_while) = IN_A_WHILE;
        self.met += count;
        let passed = now.saturating_duration_since(self.since);
        if passed >= a_while {
            // A task that was not woken at all was not busy, however many it meets at last.
            self.busy = self.met >= many && passed < 2 * a_while;
            (self.since, self.met) = (now, 0);
        }
        self.rests = count >= AT_ONCE || (count > 0 && self.busy);
    }

    /// Lets more gather, if the task is busy.
    pub(in crate::queue) async fn rest(&mut self) {
        if std::mem::take(&mut self.rests) {
            tokio::time::sleep(GATHERING).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of a series of wakings, so many microseconds apart and with so many messages each, are followed by a rest.
    fn rests(wakings: usize, apart: u64, count: usize) -> usize {
        let mut gathering = Gathering::new();
        let start = gathering.since;
        let rested = (1..=wakings as u64).filter(|n| {
            gathering.met_at(count, start + Duration::from_micros(n * apart));
            std::mem::take(&mut gathering.rests)
        });
        rested.count()
    }

    #[test]
    fn who_meets_few_never_rests() {
        assert_eq!(rests(1000, 2_000, 1), 0, "500 in a second");
        assert_eq!(rests(1000, 10_000, 7), 0);
        assert_eq!(rests(10, 5, 1), 0, "ten in a row, and none before");
    }

    #[test]
    fn who_meets_many_rests_after_each_waking_and_not_after_the_rush() {
        assert_eq!(rests(100, 1_000_000, 8), 100, "a burst in each second");
        assert!(rests(1000, 200, 1) > 900, "5,000 in a second");
        let mut gathering = Gathering::new();
        let start = gathering.since;
        for n in 1..=100 {
            gathering.met_at(1, start + Duration::from_micros(n * 200));
        }
        assert!(gathering.rests);
        gathering.met_at(1, start + Duration::from_secs(1));
        assert!(!gathering.rests, "the rush is over");
    }
}
