//! Owns how far Clerk's clock is ahead of this machine's, as far as the answers of Clerk's API prove it, and what follows from it. Pure:
//! times come in. Promises that a clock that is far off moves no time of ours: one of the two is wrong then, and nobody knows which.

use std::sync::atomic::{AtomicI64, Ordering};

use chrono::DateTime;
use http::{HeaderMap, header};

use crate::time::{Millis, ago};

/// Clocks that are less apart than this count as one: Clerk tells its own in whole seconds.
const APART: Millis = 5_000;
/// Clocks that are further apart than this are not both right. A proxy may have told its own.
const WRONG: Millis = 600_000;

/// What is known of Clerk's clock.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// How far it is ahead of ours at least, or behind, in milliseconds.
    ahead: AtomicI64,
}

impl Clock {
    /// How far Clerk's clock is ahead of ours in milliseconds, to the second, where that matters.
    pub(super) fn offset(&self) -> Option<Millis> {
        let ahead = self.ahead.load(Ordering::Relaxed);
        (ahead.abs() >= APART).then_some(ahead)
    }

    /// A time of this machine's, by Clerk's clock where that can be believed.
    pub(super) fn clerks(&self, ours: Millis) -> Millis {
        let believed = self.offset().filter(|&offset| !is_wrong(offset));
        ours.saturating_add(believed.unwrap_or_default())
    }

    /// Clerk's clock showed `Date`, a whole second, at some time between `began` and `ended`. What is known so far moves
    /// no further than that proves: a slow answer proves little.
    pub(super) fn learn(&self, headers: &HeaderMap, began: Millis, ended: Millis) {
        // A cache's `Date` is as old as its copy.
        if headers.contains_key(header::AGE) {
            return;
        }
        let date = headers.get(header::DATE).and_then(|date| date.to_str().ok());
        let Some(date) = date.and_then(|date| DateTime::parse_from_rfc2822(date).ok()) else { return };
        let date = date.timestamp_millis();
        let (least, most) = (date - ended, date + 999 - began);
        let ahead = self.ahead.load(Ordering::Relaxed);
        // Where our own clock was set in between, they may be the wrong way round.
        self.ahead.store(ahead.min(most.max(least)).max(least), Ordering::Relaxed);
    }
}

/// Whether clocks that are so far apart cannot both be right. Times go by this machine's clock then.
pub fn is_wrong(offset: Millis) -> bool {
    offset.abs() > WRONG
}

/// What people should know of an offset as [`super::Api::clock_offset`] tells it.
pub fn says(offset: Millis) -> String {
    let apart = ago(0, offset.abs());
    match (is_wrong(offset), offset > 0) {
        (true, true) => {
            format!(
                "the clock of Clerk's API or of this machine is wrong: Clerk's is {apart} ahead, and is not believed"
            )
        }
        (true, false) => {
            format!(
                "the clock of Clerk's API or of this machine is wrong: Clerk's is {apart} behind, and is not believed"
            )
        }
        (false, true) => format!("Clerk's clock is {apart} ahead of this machine's"),
        (false, false) => format!("Clerk's clock is {apart} behind this machine's"),
    }
}

/// What to do about it.
pub fn hint(offset: Millis) -> &'static str {
    match is_wrong(offset) {
        true => {
            "compare this machine's clock with another one; if it is right, look for a proxy in front of CLERK_API_URL whose clock is not"
        }
        false => {
            "set this machine's clock right: a webhook's signature is refused when its time is 5 minutes off"
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// 2025-10-09 08:53:20 UTC.
    const AT: Millis = 1_760_000_000_000;
    const DAY: Millis = 86_400_000;

    fn date(more: &[(&'static str, &'static str)]) -> HeaderMap {
        let all = [("date", "Thu, 09 Oct 2025 08:53:20 GMT")].iter().chain(more);
        all.map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_clock_is_believed_to_differ_no_further_than_answers_prove() {
        let clock = Clock::default();
        for (headers, began, ended, offset) in [
            // Clerk's clock is ahead by 30 s to 31 s, or so; then a slow answer says 1 s to 61 s.
            (date(&[]), AT - 30_010, AT - 30_000, Some(30_000)),
            (date(&[]), AT - 60_000, AT - 1000, Some(30_000)),
            (date(&[("age", "3")]), AT - 90_000, AT - 90_000, Some(30_000)),
            (HeaderMap::new(), AT - 90_000, AT - 90_000, Some(30_000)),
            // Ours was set: they are in step.
            (date(&[]), AT + 200, AT + 300, None),
            (date(&[]), AT + 7000, AT + 7001, Some(-6001)),
            (date(&[]), AT + 3000, AT + 4000, None),
        ] {
            clock.learn(&headers, began, ended);
            assert_eq!(clock.offset(), offset, "{} to {}", began - AT, ended - AT);
        }
    }

    #[test]
    fn a_clock_that_is_far_off_is_told_and_moves_no_time() {
        let clock = Clock::default();
        assert_eq!(clock.clerks(AT), AT);
        for (ours, believed) in [
            (AT - WRONG, AT),
            (AT + WRONG + 999, AT + 999),
            (AT - WRONG - 1, AT - WRONG - 1),
            (AT + DAY, AT + DAY),
        ] {
            clock.learn(&date(&[]), ours, ours);
            let offset = clock.offset().unwrap();
            assert_eq!((clock.clerks(ours), is_wrong(offset)), (believed, believed == ours), "{}", ours - AT);
            assert_eq!(says(offset).contains("is wrong"), is_wrong(offset));
        }
        clock.learn(&date(&[]), AT, AT);
        assert_eq!((clock.offset(), clock.clerks(AT)), (None, AT), "it was put right");
    }
}
