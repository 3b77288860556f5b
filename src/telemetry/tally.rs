//! Owns log lines about events that can come in floods: the first of a kind is logged at once, those that follow are
//! counted, and the counts are logged once a minute, by kind.
//!
//! Promises that every count is logged, and that after a minute without a kind its next event is logged at once. A kind is
//! one of a few fixed words, never anything that a stranger can choose.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Between two lines of counts.
const MINUTE: Duration = Duration::from_secs(60);

/// Counts events by kind. The caller logs the first of a kind, since it knows more about it.
#[derive(Debug)]
pub struct Tally {
    counts: Arc<Counts>,
    /// Logs a text such as `149 no_matching_signature, 3 malformed_id`.
    say: fn(&str),
}

/// How many of each kind are counted and not yet logged. A kind is dropped after a minute without it.
#[derive(Debug, Default)]
struct Counts(Mutex<BTreeMap<&'static str, u64>>);

/// Whether a counted event is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noted {
    /// The first of its kind, and of all kinds.
    FirstOfAll,
    /// The first of its kind.
    First,
    /// One more.
    Another,
}

impl Counts {
    fn note(&self, kind: &'static str) -> Noted {
        let mut counts = self.lock();
        if let Some(count) = counts.get_mut(kind) {
            *count += 1;
            return Noted::Another;
        }
        let noted = if counts.is_empty() { Noted::FirstOfAll } else { Noted::First };
        counts.insert(kind, 0);
        noted
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The text to log, and whether any kind is still counted.
    fn take(&self) -> (String, bool) {
        let mut counts = self.lock();
        counts.retain(|_, count| *count > 0);
        let parts: Vec<String> = counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        counts.values_mut().for_each(|count| *count = 0);
        (parts.join(", "), !counts.is_empty())
    }
}

impl Tally {
    /// Logs counts with `say`.
    pub fn new(say: fn(&str)) -> Self {
        Self { counts: Arc::default(), say }
    }

    /// Counts one. `true`: it is the first of its kind, and to be logged now. Called in a runtime.
    #[must_use]
    pub fn is_first(&self, kind: &'static str) -> bool {
        let noted = self.counts.note(kind);
        if noted == Noted::FirstOfAll {
            tokio::spawn(go_on_saying(Arc::downgrade(&self.counts), self.say));
        }
        noted != Noted::Another
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let (rest, _) = self.counts.take();
        if !rest.is_empty() {
            (self.say)(&rest);
        }
    }
}

/// Logs the counts each minute, until a minute brought none.
async fn go_on_saying(counts: std::sync::Weak<Counts>, say: fn(&str)) {
    loop {
        tokio::time::sleep(MINUTE).await;
        let Some(counts) = counts.upgrade() else { return };
        let (text, more) = counts.take();
        if !text.is_empty() {
            say(&text);
        }
        if !more {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firsts(counts: &Counts, kind: &'static str) -> usize {
        (0..150).filter(|_| counts.note(kind) != Noted::Another).count()
    }

    #[test]
    fn the_first_of_a_kind_is_told_at_once_the_others_as_counts_each_minute() {
        let counts = Counts::default();
        assert_eq!(counts.note("bad"), Noted::FirstOfAll);
        assert_eq!((firsts(&counts, "bad"), firsts(&counts, "worse")), (0, 1));
        assert_eq!(counts.take(), ("150 bad, 149 worse".into(), true));
        // One that goes on coming is counted on, and one that stayed away for a minute is news when it comes again.
        assert_eq!(firsts(&counts, "bad"), 0);
        assert_eq!(counts.take(), ("150 bad".into(), true));
        assert_eq!(counts.note("worse"), Noted::First);
        assert_eq!(counts.take(), (String::new(), false));
        assert_eq!(counts.note("bad"), Noted::FirstOfAll);
    }

    #[tokio::test]
    async fn what_is_left_is_said_at_the_end() {
        static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let tally = Tally::new(|text| SAID.lock().unwrap().push(text.to_owned()));
        assert_eq!((0..150).filter(|_| tally.is_first("bad")).count(), 1);
        assert!(SAID.lock().unwrap().is_empty());
        drop(tally);
        assert_eq!(*SAID.lock().unwrap(), ["149 bad"]);
    }
}
