//! Owns which publishes of one channel wait for the broker's confirm, and which of them a confirm or a return concerns.
//! Promises that a returned message is never taken for a confirmed one, whichever confirm the return came with. Pure.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use lapin::types::ShortString;

/// One publish of a channel, in the order in which they began.
pub(super) type Number = u64;

/// The publishes that wait, each with what is needed to answer its caller.
#[derive(Debug)]
pub(super) struct Outstanding<T> {
    /// In the order of their numbers, from the first that waits on; `None` where the broker gave its word already. A first one
    /// that never gets it ends the channel, so these are bounded.
    waiting: VecDeque<Option<Waiting<T>>>,
    /// The number of the first of them.
    first: Number,
    /// Of the last confirm, or of the first publish after none was waiting.
    progress: Option<Instant>,
}

#[derive(Debug)]
struct Waiting<T> {
    id: ShortString,
    since: Instant,
    returned: bool,
    held: T,
}

impl<T> Default for Outstanding<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), first: 0, progress: None }
    }
}

impl<T> Outstanding<T> {
    /// A publish begins.
    pub(super) fn begin(&mut self, id: ShortString, held: T, now: Instant) -> Number {
        if self.waiting.is_empty() {
            self.progress = Some(now);
        }
        self.waiting.push_back(Some(Waiting { id, since: now, returned: false, held }));
        self.first + self.waiting.len() as Number - 1
    }

    /// The broker returned a message, because no queue took it. Of two that wait under one id either can be meant, and of an
    /// id that no publish waits for, any. An error only says that it is not known whether a message arrived, so all of
    /// these get one.
    pub(super) fn returned(&mut self, id: &str) {
        let is_known = self.waiting.iter().flatten().any(|waiting| waiting.id.as_str() == id);
        for waiting in self.waiting.iter_mut().flatten() {
            waiting.returned |= !is_known || waiting.id.as_str() == id;
        }
    }

    /// The broker gave its word on a publish: what it held, and whether the message was returned.
    pub(super) fn ended(&mut self, number: Number, now: Instant) -> Option<(T, bool)> {
        let place = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let Waiting { returned, held, .. } = self.waiting.get_mut(place)?.take()?;
        self.progress = Some(now);
        while let Some(None) = self.waiting.front() {
            self.waiting.pop_front();
            self.first += 1;
        }
        Some((held, returned))
    }

    /// Whether there is one that waits for it and holds such a thing.
    pub(super) fn any(&self, such: impl Fn(&T) -> bool) -> bool {
        self.waiting.iter().flatten().any(|waiting| such(&waiting.held))
    }

    /// Whether confirms fail to come: none at all for `silence` while one is due, or one for `oldest` while others came.
    pub(super) fn is_stalled(&self, silence: Duration, oldest: Duration, now: Instant) -> bool {
        let over = |since: Instant, limit| now.saturating_duration_since(since) > limit;
        match (self.waiting.front(), self.progress) {
            (Some(Some(first)), Some(progress)) => over(progress, silence) || over(first.since, oldest),
            _ => false,
        }
    }

    /// Time during which the broker was known not to confirm does not count.
    pub(super) fn excuse(&mut self, now: Instant) {
        self.progress = Some(now);
        self.waiting.iter_mut().flatten().for_each(|waiting| waiting.since = now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(5);
    const OLDEST: Duration = Duration::from_secs(10);

    fn with(ids: &[&str], now: Instant) -> Outstanding<String> {
        let mut outstanding = Outstanding::default();
        for id in ids {
            outstanding.begin((*id).into(), (*id).to_owned(), now);
        }
        outstanding
    }

    #[test]
    fn a_return_fails_the_message_it_names_not_the_one_it_came_with() {
        let now = Instant::now();
        let mut outstanding = with(&["a", "b", "c"], now);
        // It came with the confirm of `a`.
        outstanding.returned("b");
        assert_eq!(outstanding.ended(0, now), Some(("a".into(), false)));
        assert_eq!(outstanding.ended(1, now), Some(("b".into(), true)));
        assert_eq!(outstanding.ended(2, now), Some(("c".into(), false)));
        assert_eq!(outstanding.ended(2, now), None);
    }

    #[test]
    fn of_two_with_one_id_both_fail_and_a_later_one_does_not() {
        let now = Instant::now();
        let mut outstanding = with(&["a", "a"], now);
        outstanding.returned("a");
        let later = outstanding.begin("a".into(), "again".into(), now);
        assert_eq!(outstanding.ended(1, now), Some(("a".into(), true)));
        assert_eq!(outstanding.ended(0, now), Some(("a".into(), true)));
        assert_eq!(outstanding.ended(later, now), Some(("again".into(), false)));
        assert!(outstanding.waiting.is_empty());
    }

    #[test]
    fn a_return_that_nobody_waits_for_fails_all_that_wait() {
        let now = Instant::now();
        let mut outstanding = with(&["a", "b"], now);
        outstanding.returned("gone");
        assert_eq!(outstanding.ended(0, now), Some(("a".into(), true)));
        assert_eq!(outstanding.ended(1, now), Some(("b".into(), true)));
    }

    #[test]
    fn a_confirm_that_never_comes_is_noticed_in_silence_and_among_others() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut outstanding = with(&["lost"], start);
        assert!(!outstanding.is_stalled(SILENCE, OLDEST, after(4)));
        assert!(outstanding.is_stalled(SILENCE, OLDEST, after(6)));
        for second in 1..=10 {
            let number = outstanding.begin("m".into(), "m".into(), after(second));
            assert!(!outstanding.is_stalled(SILENCE, OLDEST, after(second)), "{second}");
            outstanding.ended(number, after(second));
        }
        assert!(outstanding.is_stalled(SILENCE, OLDEST, after(11)));
        // An alarm has ended.
        outstanding.excuse(after(11));
        assert!(!outstanding.is_stalled(SILENCE, OLDEST, after(12)));
        outstanding.ended(0, after(12));
        assert!(!outstanding.is_stalled(SILENCE, OLDEST, after(100)), "nothing is due");
        outstanding.begin("late".into(), "late".into(), after(100));
        assert!(!outstanding.is_stalled(SILENCE, OLDEST, after(104)));
    }
}
