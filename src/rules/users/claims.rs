//! Owns who may show an address, and whose row a newcomer with that address may be about.
//!
//! Every function is given rows that claim one and the same address. Never changes a row.

use super::{Row, Version};
use crate::time::Millis;

/// The live row that shows the address: verified before unverified, then the newer version, then the greater Clerk id.
pub(super) fn best<'a>(claimants: impl Iterator<Item = &'a Row>) -> Option<&'a Row> {
    claimants.filter(|row| row.deleted_at.is_none()).max_by_key(|&row| rank(row))
}

fn rank(row: &Row) -> (bool, &Version, &str) {
    (verified(row), &row.version, &row.clerk_id)
}

/// A live row that proved the address before the newcomer was `born`: they cannot both have it, so news of this
/// account is missing.
pub(super) fn live_holder<'a>(claimants: impl Iterator<Item = &'a Row>, born: Millis) -> Option<&'a Row> {
    best(claimants.filter(|&row| verified(row) && row.version.at < born))
}

/// The kept row of the account that proved the address last and was deleted before the newcomer was `born`:
/// the latest deletion, then the greater Clerk id.
pub(super) fn deleted_holder<'a>(claimants: impl Iterator<Item = &'a Row>, born: Millis) -> Option<&'a Row> {
    claimants
        .filter(|&row| verified(row) && row.version.at < born)
        .filter(|row| row.deleted_at.is_some_and(|at| at < born))
        .max_by_key(|&row| (row.deleted_at, row.clerk_id.as_str()))
}

fn verified(row: &Row) -> bool {
    row.claim.as_ref().is_some_and(|claim| claim.verified)
}

#[cfg(test)]
mod tests {
    use super::super::{
        Outcome,
        fixtures::{Books, DEFAULT, created, deleted, fresh, updated},
    };

    const X: &str = "x@example.com";

    #[test]
    fn a_verified_address_is_shown_before_a_newer_unverified_one() {
        let mut books = Books::default();
        books.tell(
            &DEFAULT,
            [created("ann", 10).verified(X).event(), created("bob", 20).unverified(X).event()],
        );
        assert_eq!((books.email("ann"), books.email("bob")), (Some(X), None));
    }

    #[test]
    fn of_equally_verified_claims_the_newer_is_shown_whatever_the_order() {
        let events = [created("ann", 10).unverified(X).event(), created("bob", 20).unverified(X).event()];
        for order in [[0, 1], [1, 0]] {
            let mut books = Books::default();
            for place in order {
                books.tell(&DEFAULT, [events[place].clone()]);
            }
            assert_eq!((books.email("ann"), books.email("bob")), (None, Some(X)));
        }
    }

    #[test]
    fn of_claims_of_the_same_version_that_of_the_greater_clerk_id_is_shown() {
        for ids in [["ann", "bob"], ["bob", "ann"]] {
            let mut books = Books::default();
            for id in ids {
                let mut event = created(id, 10).unverified(X).message("same").event();
                event.fresh_row = fresh(id);
                books.tell(&DEFAULT, [event]);
            }
            assert_eq!((books.email("ann"), books.email("bob")), (None, Some(X)));
        }
    }

    #[test]
    fn an_address_passes_to_the_next_best_when_its_holder_changes_it_or_goes() {
        for parting in [updated("bob", 30).event(), deleted("bob", 30)] {
            let mut books = Books::default();
            books.tell(&DEFAULT, [created("ann", 10).unverified(X).event()]);
            books.tell(&DEFAULT, [created("bob", 20).unverified(X).event()]);
            books.tell(&DEFAULT, [parting]);
            assert_eq!(books.email("ann"), Some(X));
            assert_eq!(books.email("bob"), None);
        }
    }

    #[test]
    fn a_deleted_row_never_shows_its_claim() {
        let mut books = Books::default();
        books.tell(&DEFAULT, [created("ann", 10).verified(X).event(), deleted("ann", 20)]);
        books.tell(&DEFAULT, [updated("ann", 15).verified(X).event()]);
        assert_eq!(books.email("ann"), None);
    }

    /// Two accounts that were deleted while their last proven address was X.
    fn two_gone(times: [i64; 2]) -> Books {
        let mut books = Books::default();
        for (id, at) in ["ann", "bob"].into_iter().zip(times) {
            books.tell(&DEFAULT, [created(id, 10).event()]);
            books.tell(&DEFAULT, [deleted(id, at)]);
            books.tell(&DEFAULT, [updated(id, 11).verified(X).event()]);
        }
        books
    }

    #[test]
    fn the_account_deleted_last_gives_its_row_then_the_greater_clerk_id() {
        for (times, giver) in [([21, 20], "ann"), ([20, 21], "bob"), ([20, 20], "bob")] {
            let mut books = two_gone(times);
            let outcome = books.tell(&DEFAULT, [created("eve", 30).verified(X).event()]);
            assert_eq!(outcome, [Outcome::Relinked]);
            assert_eq!(books.row("eve").id, fresh(&format!("{giver} created at 10")), "{times:?}");
        }
    }

    #[test]
    fn a_newcomer_returns_to_an_earlier_deletion_if_the_last_is_too_late() {
        let mut books = two_gone([20, 40]);
        books.tell(&DEFAULT, [created("eve", 30).verified(X).event()]);
        assert_eq!(books.row("eve").id, fresh("ann created at 10"));
    }
}
