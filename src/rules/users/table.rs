//! Owns the rows of one batch: who holds which, who claims what, and what has become different in the end.
//!
//! Promises that `shown` is right for every address that was touched, and that only differences come out.
//! Never decides anything about an account.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::{ChangedRow, Folded, FormerId, Loaded, Row, claims};
use crate::time::Millis;

pub(super) struct Table {
    rows: HashMap<Uuid, Entry>,
    by_clerk_id: HashMap<String, Uuid>,
    by_key: HashMap<String, Vec<Uuid>>,
    /// Keys whose claimants may have changed.
    touched: HashSet<String>,
    former: HashMap<String, Millis>,
    new_former: Vec<FormerId>,
    revived: Vec<String>,
}

struct Entry {
    row: Row,
    /// There was no such row.
    new: bool,
    /// What was loaded, once the row is another.
    stored: Option<Row>,
}

impl Table {
    pub(super) fn new(loaded: Loaded) -> Self {
        let mut table = Self {
            rows: HashMap::with_capacity(loaded.rows.len()),
            by_clerk_id: HashMap::with_capacity(loaded.rows.len()),
            by_key: HashMap::with_capacity(loaded.rows.len()),
            touched: HashSet::new(),
            former: loaded.former,
            new_former: Vec::new(),
            revived: Vec::new(),
        };
        for row in loaded.rows {
            table.link(&row);
            table.rows.insert(row.id, Entry { row, new: false, stored: None });
        }
        table
    }

    /// The row of an account.
    pub(super) fn held_by(&self, clerk_id: &str) -> Option<&Row> {
        self.rows.get(self.by_clerk_id.get(clerk_id)?).map(|entry| &entry.row)
    }

    /// When the id was deleted, where it is remembered as that.
    pub(super) fn former(&self, clerk_id: &str) -> Option<Millis> {
        self.former.get(clerk_id).copied()
    }

    /// The rows, live and deleted, that claim an address.
    pub(super) fn claimants(&self, key: &str) -> impl Iterator<Item = &Row> {
        let ids = self.by_key.get(key).into_iter().flatten();
        ids.filter_map(|id| self.rows.get(id)).map(|entry| &entry.row)
    }

    /// Whether who shows the address is seen anew in the end.
    pub(super) fn is_touched(&self, key: &str) -> bool {
        self.touched.contains(key)
    }

    /// Adds a row, or replaces the one with the same id, from which it differs. Whether it is shown is seen in the
    /// end.
    pub(super) fn put(&mut self, row: Row) {
        let row = Row { shown: false, askew: false, ..row };
        let (new, stored) = match self.rows.remove(&row.id) {
            None => (true, None),
            Some(Entry { row: old, new, stored }) => {
                self.unlink(&old);
                (new, stored.or_else(|| (!new).then_some(old)))
            }
        };
        self.link(&row);
        self.touch(&row);
        self.rows.insert(row.id, Entry { row, new, stored });
    }

    /// Remembers an id as deleted.
    pub(super) fn remember(&mut self, former: FormerId) {
        self.former.insert(former.clerk_id.clone(), former.deleted_at);
        self.new_former.push(former);
    }

    /// Forgets that an id was deleted: its account lives again.
    pub(super) fn forget(&mut self, clerk_id: &str) {
        self.former.remove(clerk_id);
        self.new_former.retain(|former| former.clerk_id != clerk_id);
        self.revived.push(clerk_id.to_owned());
    }

    /// What differs from what was loaded, without outcomes: rows by id, former ids in the order of their events.
    pub(super) fn into_changes(mut self) -> Folded {
        self.show_best_claims();
        let mut changes: Vec<_> = self.rows.into_values().filter_map(Entry::into_change).collect();
        changes.sort_unstable_by_key(|change| change.row.id);
        Folded { rows: changes, former: self.new_former, revived: self.revived, outcomes: Vec::new() }
    }

    fn show_best_claims(&mut self) {
        for key in std::mem::take(&mut self.touched) {
            let best = claims::best(self.claimants(&key)).map(|row| row.id);
            for id in self.by_key.get(&key).into_iter().flatten() {
                if let Some(entry) = self.rows.get_mut(id) {
                    entry.show(best == Some(*id));
                }
            }
        }
    }

    fn link(&mut self, row: &Row) {
        self.by_clerk_id.insert(row.clerk_id.clone(), row.id);
        if let Some(claim) = &row.claim {
            self.by_key.entry(claim.key.clone()).or_default().push(row.id);
        }
    }

    fn unlink(&mut self, row: &Row) {
        self.by_clerk_id.remove(&row.clerk_id);
        if let Some(ids) = row.claim.as_ref().and_then(|claim| self.by_key.get_mut(&claim.key)) {
            ids.retain(|id| *id != row.id);
        }
        self.touch(row);
    }

    fn touch(&mut self, row: &Row) {
        if let Some(claim) = &row.claim
            && !self.touched.contains(&claim.key)
        {
            self.touched.insert(claim.key.clone());
        }
    }
}

impl Entry {
    fn show(&mut self, shown: bool) {
        if self.row.shown != shown && !self.new {
            self.stored.get_or_insert_with(|| self.row.clone());
        }
        self.row.shown = shown;
    }

    fn into_change(self) -> Option<ChangedRow> {
        let Self { row, new, stored } = self;
        if new {
            return Some(ChangedRow { row, new, mirror: true, yields_email: false });
        }
        let stored = stored?;
        let mirror = (&row.clerk_id, &row.version, &row.claim, &row.profile)
            != (&stored.clerk_id, &stored.version, &stored.claim, &stored.profile);
        let yields_email = shown_key(&stored).is_some_and(|key| shown_key(&row) != Some(key));
        Some(ChangedRow { row, new: false, mirror, yields_email })
    }
}

fn shown_key(row: &Row) -> Option<&str> {
    row.claim.as_ref().filter(|_| row.shown).map(|claim| claim.key.as_str())
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{Books, DEFAULT, created, deleted, updated};

    const X: &str = "x@example.com";

    #[test]
    fn what_did_not_change_is_not_written() {
        let mut books = Books::default();
        books.tell(&DEFAULT, [created("ann", 10).verified(X).event(), created("bob", 10).event()]);
        let folded = books.apply(&DEFAULT, &[updated("bob", 11).event(), updated("ann", 9).event()]);
        let written: Vec<_> = folded.rows.iter().map(|change| change.row.clerk_id.as_str()).collect();
        assert_eq!(written, ["bob"]);
    }

    #[test]
    fn who_goes_on_showing_an_address_that_another_claims_is_not_written() {
        let mut books = Books::default();
        books.tell(&DEFAULT, [created("ann", 10).verified(X).event()]);
        let folded = books.apply(&DEFAULT, &[created("bob", 11).unverified(X).event()]);
        let written: Vec<_> = folded.rows.iter().map(|change| change.row.clerk_id.as_str()).collect();
        assert_eq!(written, ["bob"]);
    }

    #[test]
    fn a_row_made_and_deleted_in_one_batch_is_one_new_row() {
        let mut books = Books::default();
        let folded = books.apply(&DEFAULT, &[created("ann", 10).verified(X).event(), deleted("ann", 20)]);
        assert_eq!(folded.rows.len(), 1);
        assert!(folded.rows.iter().all(|change| change.new && change.mirror && !change.yields_email));
        assert_eq!(books.row("ann").deleted_at, Some(20));
    }

    #[test]
    fn a_row_may_pass_through_many_hands_in_one_batch_and_is_written_once() {
        let mut books = Books::default();
        let folded = books.apply(
            &DEFAULT,
            &[
                created("ann", 10).verified(X).event(),
                deleted("ann", 20),
                created("bob", 30).verified(X).event(),
                deleted("bob", 40),
                created("eve", 50).verified(X).event(),
            ],
        );
        let held: Vec<_> = folded.rows.iter().map(|change| change.row.clerk_id.as_str()).collect();
        let former: Vec<_> = folded.former.iter().map(|former| former.clerk_id.as_str()).collect();
        assert_eq!((held, former), (vec!["eve"], vec!["ann", "bob"]));
        assert_eq!(books.email("eve"), Some(X));
    }

    #[test]
    fn an_address_may_pass_to_and_fro_in_one_batch() {
        let mut books = Books::default();
        books.tell(&DEFAULT, [created("ann", 10).verified(X).event(), created("bob", 10).event()]);
        let folded = books.apply(
            &DEFAULT,
            &[
                updated("ann", 11).event(),
                updated("bob", 12).verified(X).event(),
                updated("bob", 13).event(),
                updated("ann", 14).verified(X).event(),
            ],
        );
        assert!(folded.rows.iter().all(|change| !change.yields_email));
        assert_eq!((books.email("ann"), books.email("bob")), (Some(X), None));
    }
}
