//! Owns the rules: what an event does to the account it is about, and which row that account holds.
//!
//! Promises that the live accounts, their mirrors and their shown addresses come out the same whatever the order,
//! duplication or split of the events; that a deleted account never comes back; and that an event which waits has
//! changed nothing. Never looks at a clock, a database or anything but what it is given, and never panics.

use uuid::Uuid;

use super::{
    Change, Event, Folded, FormerId, Loaded, OnDelete, Outcome, Policy, Profile, Relink, Row, Upsert, Version,
    claims, table::Table,
};
use crate::message::Millis;

/// Folds a batch into the rows that it touches and tells the outcome of each event, in the order given.
///
/// The events' message ids differ from each other, and none of them has taken effect before.
pub fn fold(policy: &Policy, loaded: Loaded, events: &[Event]) -> Folded {
    let mut fold = Fold { policy: *policy, table: Table::new(loaded) };
    let mut outcomes: Vec<_> =
        oldest_first(events).into_iter().map(|(place, event)| (place, fold.event(event))).collect();
    outcomes.sort_unstable_by_key(|(place, _)| *place);
    let (rows, former) = fold.table.into_changes();
    Folded { rows, former, outcomes: outcomes.into_iter().map(|(_, outcome)| outcome).collect() }
}

/// The events, each with its place in the batch, by version. A deletion comes after the news of the same millisecond.
fn oldest_first(events: &[Event]) -> Vec<(usize, &Event)> {
    fn age(event: &Event) -> (Option<Millis>, bool, Option<&Version>, &str) {
        let version = match &event.change {
            Change::Upsert(upsert) => Some(&upsert.version),
            Change::Delete { .. } | Change::Other => None,
        };
        (event.at(), version.is_none(), version, &event.message_id)
    }
    let mut ordered: Vec<_> = events.iter().enumerate().collect();
    ordered.sort_by(|(_, one), (_, other)| age(one).cmp(&age(other)));
    ordered
}

struct Fold {
    policy: Policy,
    table: Table,
}

/// What becomes of a Clerk id that has no row yet.
enum Arrival {
    OwnRow,
    /// Another account's deletion or change of address is probably on its way.
    Wait,
    /// Gets the deleted account's row back.
    Return(Row),
    /// Gets the live account's row ([`Relink::Match`]).
    Displace(Row),
}

impl Fold {
    fn event(&mut self, event: &Event) -> Outcome {
        match &event.change {
            Change::Upsert(upsert) => self.upsert(event, upsert),
            Change::Delete { clerk_id, at } => self.delete(clerk_id, *at),
            Change::Other => Outcome::Ignored,
        }
    }

    fn upsert(&mut self, event: &Event, upsert: &Upsert) -> Outcome {
        if let Some(row) = self.table.held_by(&upsert.clerk_id) {
            if !self.takes_news(row) || upsert.version <= row.version {
                return Outcome::Stale;
            }
            let news = Row { deleted_at: row.deleted_at, ..mirrored(row.id, upsert) };
            self.table.put(news);
            return Outcome::Updated;
        }
        if self.table.is_former(&upsert.clerk_id) {
            return Outcome::Stale;
        }
        match self.arrival(upsert, event.patience_over) {
            Arrival::Wait => Outcome::Waiting,
            Arrival::OwnRow => {
                self.table.put(mirrored(event.fresh_row, upsert));
                Outcome::Created
            }
            Arrival::Return(row) => {
                self.table.put(mirrored(row.id, upsert));
                if let Some(deleted_at) = row.deleted_at {
                    self.table.remember(FormerId {
                        clerk_id: row.clerk_id,
                        user_id: Some(row.id),
                        deleted_at,
                    });
                }
                Outcome::Relinked
            }
            Arrival::Displace(row) => {
                self.table.put(mirrored(row.id, upsert));
                self.table.put(Row { id: event.fresh_row, ..row });
                Outcome::Relinked
            }
        }
    }

    /// A kept deleted row still takes in late news, so that its last claim is right.
    fn takes_news(&self, row: &Row) -> bool {
        let kept = !row.erased && self.policy.on_delete == OnDelete::Keep;
        row.deleted_at.is_none() || kept
    }

    fn arrival(&self, upsert: &Upsert, patience_over: bool) -> Arrival {
        if self.policy.relink == Relink::Never || self.policy.on_delete == OnDelete::Erase {
            return Arrival::OwnRow;
        }
        let Some(claim) = upsert.claim.as_ref().filter(|claim| claim.verified) else {
            return Arrival::OwnRow;
        };
        let claimants = || self.table.claimants(&claim.key);
        if let Some(row) = claims::live_holder(claimants(), upsert.born) {
            return match self.policy.relink {
                _ if !patience_over => Arrival::Wait,
                Relink::Match => Arrival::Displace(row.clone()),
                Relink::Deleted | Relink::Never => Arrival::OwnRow,
            };
        }
        match claims::deleted_holder(claimants(), upsert.born) {
            Some(row) => Arrival::Return(row.clone()),
            None => Arrival::OwnRow,
        }
    }

    fn delete(&mut self, clerk_id: &str, at: Millis) -> Outcome {
        let Some(row) = self.table.held_by(clerk_id) else {
            if self.table.is_former(clerk_id) {
                return Outcome::Stale;
            }
            self.table.remember(FormerId { clerk_id: clerk_id.to_owned(), user_id: None, deleted_at: at });
            return Outcome::Deleted;
        };
        if row.deleted_at.is_some_and(|known| known <= at) {
            return Outcome::Stale;
        }
        let deleted = Row { deleted_at: Some(at), ..row.clone() };
        self.table.put(match self.policy.on_delete {
            OnDelete::Keep => deleted,
            OnDelete::Erase => {
                Row { claim: None, profile: Some(Profile::default().into()), erased: true, ..deleted }
            }
        });
        Outcome::Deleted
    }
}

/// A live row with every mirrored column as the event gives it.
fn mirrored(id: Uuid, upsert: &Upsert) -> Row {
    Row {
        id,
        clerk_id: upsert.clerk_id.clone(),
        version: upsert.version.clone(),
        claim: upsert.claim.clone(),
        shown: false,
        deleted_at: None,
        erased: false,
        profile: Some(upsert.profile.clone()),
    }
}
