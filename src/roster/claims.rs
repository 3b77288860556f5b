//! Owns who may show an address, and whose row a newcomer with that address may be about.
//!
//! Every function is given rows that claim one and the same address. Never changes a row.

use super::{Row, Version};
use crate::message::Millis;

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
