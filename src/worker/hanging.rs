//! Owns which accounts have hung lately. Each batch with a message of theirs would hang again, and all who are in it would
//! wait: while somebody keeps one busy user's row locked, that would be nearly every batch. Bounded, and forgets soon.
//! Never touches the database.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::blame::Moment;

/// For how long an account is remembered after it hung.
const REMEMBERED: Duration = Duration::from_secs(10);
/// How many are remembered at most.
const MOST: usize = 64;

/// Accounts that hung, and when last.
#[derive(Debug, Default)]
pub(super) struct Hanging(Mutex<HashMap<String, Moment>>);

impl Hanging {
    /// A message of this account hung, alone or with a few others, while others succeeded.
    pub(super) fn hung(&self, account: &str, now: Moment) {
        let mut known = self.known();
        if known.len() < MOST || known.contains_key(account) {
            known.insert(account.to_owned(), now);
        }
    }

    /// A message of this account succeeded alone.
    pub(super) fn works(&self, account: &str) {
        self.known().remove(account);
    }

    /// Those who are better tried alone.
    pub(super) fn accounts(&self, now: Moment) -> HashSet<String> {
        let mut known = self.known();
        known.retain(|_, hung| now.saturating_sub(*hung) < REMEMBERED);
        known.keys().cloned().collect()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Moment>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_hung_is_remembered_until_it_works_or_was_long_ago() {
        let hanging = Hanging::default();
        hanging.hung("a", Duration::ZERO);
        hanging.hung("b", Duration::ZERO);
        hanging.works("b");
        hanging.hung("c", Duration::from_secs(5));
        let known = |now| hanging.accounts(Duration::from_secs(now)).len();
        assert_eq!((known(9), known(10), known(15)), (2, 1, 0));
    }

    #[test]
    fn where_everybody_hangs_few_are_remembered() {
        let hanging = Hanging::default();
        (0..1000).for_each(|n| hanging.hung(&format!("user_{n}"), Duration::ZERO));
        assert_eq!(hanging.accounts(Duration::ZERO).len(), MOST);
    }
}
