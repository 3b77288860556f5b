//! Owns which accounts have hung lately. Each batch with a message of theirs would hang again, and all who are in it would
//! wait: while somebody keeps one busy user's row locked, that would be nearly every batch. Bounded, and forgets soon.
//! Never touches the database.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::blame::{Moment, Span};

/// For how long an account is remembered after it hung.
const REMEMBERED: Duration = Duration::from_secs(10);
/// How many are remembered at most.
const MOST: usize = 64;

/// Accounts that hung while others succeeded.
#[derive(Debug, Default)]
pub(super) struct Hanging(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// When each hung last.
    hung: HashMap<String, Moment>,
    /// When the latest of the transactions that succeeded had begun.
    latest: Moment,
}

impl Hanging {
    /// A message of this account hung, alone or with a few others. Where nothing that began meanwhile has succeeded, it is not
    /// about single accounts.
    pub(super) fn hung(&self, account: &str, tried: Span) {
        let mut known = self.known();
        let has_room = known.hung.len() < MOST || known.hung.contains_key(account);
        if known.latest > tried.begun && has_room {
            known.hung.insert(account.to_owned(), tried.ended);
        }
    }

    /// A transaction that had begun then changed a row.
    pub(super) fn succeeded(&self, begun: Moment) {
        let mut known = self.known();
        known.latest = known.latest.max(begun);
    }

    /// A message of this account succeeded alone.
    pub(super) fn works(&self, account: &str) {
        self.known().hung.remove(account);
    }

    /// Those who are better tried alone.
    pub(super) fn accounts(&self, now: Moment) -> HashSet<String> {
        let mut known = self.known();
        known.hung.retain(|_, hung| now.saturating_sub(*hung) < REMEMBERED);
        known.hung.keys().cloned().collect()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    fn tried(begun: u64, ended: u64) -> Span {
        Span { begun: at(begun), ended: at(ended) }
    }

    #[test]
    fn who_hung_is_remembered_until_it_works_or_was_long_ago() {
        let hanging = Hanging::default();
        hanging.succeeded(at(2));
        hanging.hung("a", tried(1, 3));
        hanging.hung("b", tried(1, 3));
        hanging.works("b");
        hanging.hung("c", tried(1, 8));
        let known = |now| hanging.accounts(at(now)).len();
        assert_eq!((known(12), known(13), known(18)), (2, 1, 0));
    }

    #[test]
    fn who_hangs_while_nothing_that_began_meanwhile_succeeds_is_not_remembered() {
        for (begun, is_known) in [(4, false), (5, false), (6, true)] {
            let hanging = Hanging::default();
            hanging.succeeded(at(begun));
            hanging.succeeded(at(1));
            hanging.hung("a", tried(5, 7));
            assert_eq!(!hanging.accounts(at(7)).is_empty(), is_known, "{begun}");
        }
    }

    #[test]
    fn where_everybody_hangs_few_are_remembered() {
        let hanging = Hanging::default();
        hanging.succeeded(at(2));
        (0..1000).for_each(|n| hanging.hung(&format!("user_{n}"), tried(1, 3)));
        assert_eq!(hanging.accounts(at(3)).len(), MOST);
    }
}
