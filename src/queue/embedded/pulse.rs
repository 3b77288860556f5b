//! Owns when other processes' leases may be taken back. Leases run by the wall clock, the only one that processes share.
//! Promises that after this machine has slept or stood still, or its clock was set forward, the others get the time to
//! prolong theirs: by the clock those have run out, as ours have, and the others live all the same.

use std::time::{Duration, Instant};

use super::work::millis;
use crate::time::Millis;

/// How far the clocks may part between two looks, in ms.
const TOLERANCE: Millis = 1000;

/// When this process looked last, and when it may next take leases back.
#[derive(Debug)]
pub(super) struct Pulse {
    looked: Option<(Instant, Millis)>,
    expire_at: Instant,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        Self { looked: None, expire_at: now }
    }

    /// This process runs. Others prolong their leases within `heartbeat` if they run too.
    pub(super) fn beat(&mut self, now: Instant, at: Millis, heartbeat: Duration) {
        if self.looked.replace((now, at)).is_some_and(|before| stood_still(before, (now, at), heartbeat)) {
            self.expire_at = now + heartbeat;
        }
    }

    /// Whether leases that have run out may be taken back.
    pub(super) fn may_expire(&self, now: Instant) -> bool {
        now >= self.expire_at
    }

    /// They were: not again before the next poll.
    pub(super) fn expired(&mut self, now: Instant, poll: Duration) {
        if self.may_expire(now) {
            self.expire_at = now + poll;
        }
    }
}

/// Whether more time has passed than between two looks of a process that runs, by either clock.
fn stood_still(before: (Instant, Millis), now: (Instant, Millis), heartbeat: Duration) -> bool {
    let passed = now.0.saturating_duration_since(before.0);
    let shown = now.1.saturating_sub(before.1);
    passed > heartbeat || shown.saturating_sub(millis(passed)) > TOLERANCE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_a_standstill_and_a_clock_set_forward_are_told_from_a_slow_poll() {
        let heartbeat = Duration::from_secs(10);
        let start = Instant::now();
        for (passed, shown, spares) in [
            (200, 200, false),
            (4_000, 4_900, false),
            // A virtual machine that was paused; a machine that slept; a clock set forward by an hour.
            (40_000, 40_000, true),
            (200, 3_600_200, true),
            (4_000, 5_100, true),
            // A clock set back is for `ledger::mend_times`.
            (200, -3_600_000, false),
        ] {
            let mut pulse = Pulse::new(start);
            pulse.beat(start, 1_000_000, heartbeat);
            let now = start + Duration::from_millis(passed);
            pulse.beat(now, 1_000_000 + shown, heartbeat);
            assert_eq!(pulse.may_expire(now), !spares, "{passed} ms, shown {shown}");
            pulse.expired(now, Duration::from_millis(200));
            assert!(!pulse.may_expire(now));
            let later = now + heartbeat;
            pulse.beat(later, 1_000_000 + shown + 10_000, heartbeat);
            assert!(pulse.may_expire(later), "not for ever");
        }
    }

    #[test]
    fn a_process_that_starts_takes_back_at_once_what_a_dead_one_held() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        pulse.beat(start, 1_000_000, Duration::from_secs(10));
        assert!(pulse.may_expire(start));
    }
}
