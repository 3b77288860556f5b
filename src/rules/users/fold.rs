//! Owns the rules: what an event does to the account it is about, and which row that account holds.
//!
//! Promises that the live accounts, their mirrors and their shown addresses come out the same whatever the order,
//! duplication or split of the events; that a deleted account never comes back by itself; and that an event which waits has
//! changed nothing. Never looks at a clock, a database or anything but what it is given, and never panics.

use std::borrow::Borrow;

use uuid::Uuid;

use super::{
    Change, Folded, FormerId, Loaded, OnDelete, Policy, Profile, Relink, Row, Source, Upsert, Version,
    claims, compare, table::Table,
};
use crate::{
    rules::{self, Event, Outcome},
    time::Millis,
};

/// Folds a batch into the rows that it touches and tells the outcome of each event, in the order given.
///
/// The events' message ids differ from each other, and none of them has taken effect before.
pub fn fold<E: Borrow<Event>>(policy: &Policy, loaded: Loaded, events: &[E]) -> Folded {
    let mut fold = Fold { policy: *policy, table: Table::new(loaded) };
    let mut outcomes: Vec<_> =
        oldest_first(events).into_iter().map(|(place, event)| (place, fold.event(event))).collect();
    outcomes.sort_unstable_by_key(|(place, _)| *place);
    let outcomes = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
    Folded { outcomes, ..fold.table.into_changes() }
}

/// The events, each with its place in the batch, by version. A deletion comes after the news of the same millisecond.
fn oldest_first<E: Borrow<Event>>(events: &[E]) -> Vec<(usize, &Event)> {
    fn age(event: &Event) -> (Option<Millis>, bool, Option<&Version>, &str) {
        let version = match &event.change {
            rules::Change::User(Change::Upsert(upsert)) => Some(&upsert.version),
            _ => None,
        };
        (event.change.at(), version.is_none(), version, &event.message_id)
    }
    let mut ordered: Vec<_> = events.iter().map(Borrow::borrow).enumerate().collect();
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
        // Each family's rules decide about its own events.
        let rules::Change::User(change) = &event.change else { return Outcome::Ignored };
        match change {
            Change::Upsert(upsert) => self.upsert(event, upsert),
            Change::Delete { clerk_id, at } => self.delete(clerk_id, *at),
        }
    }

    fn upsert(&mut self, event: &Event, upsert: &Upsert) -> Outcome {
        if self.revives(upsert) {
            return self.revive(event, upsert);
        }
        if let Some(row) = self.table.held_by(&upsert.clerk_id) {
            if !self.takes_news(row) || upsert.version <= row.version {
                return Outcome::Stale;
            }
            if upsert.source != Source::Webhook && self.says_the_same(row, upsert) {
                return Outcome::Stale;
            }
            let news = Row { deleted_at: row.deleted_at, ..mirrored(row.id, upsert) };
            self.table.put(news);
            return Outcome::Updated;
        }
        if self.table.former(&upsert.clerk_id).is_some() {
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

    /// Whether a person asked for this account to live again, and Clerk's API knew it after its deletion.
    fn revives(&self, upsert: &Upsert) -> bool {
        let deleted_at = match self.table.held_by(&upsert.clerk_id) {
            Some(row) => row.deleted_at,
            None => self.table.former(&upsert.clerk_id),
        };
        upsert.source == Source::Api { revive: true } && deleted_at.is_some_and(|at| at < upsert.version.sent)
    }

    /// The account gets its row back, or a new one where it has none.
    fn revive(&mut self, event: &Event, upsert: &Upsert) -> Outcome {
        let row = match self.table.held_by(&upsert.clerk_id) {
            Some(row) => row.id,
            None => {
                self.table.forget(&upsert.clerk_id);
                event.fresh_row
            }
        };
        self.table.put(mirrored(row, upsert));
        Outcome::Revived
    }

    /// Whether a reading of Clerk's API would change nothing.
    fn says_the_same(&self, row: &Row, upsert: &Upsert) -> bool {
        if upsert.version.at != row.version.at {
            return false;
        }
        let rivals = row.claim.iter().flat_map(|claim| self.table.claimants(&claim.key));
        // Who shows an address that changed hands in this batch is seen in its end.
        let shows_rightly = row.claim.as_ref().is_some_and(|claim| self.table.is_touched(&claim.key))
            || compare::shows_rightly(row, rivals);
        compare::says_the_same(row, upsert, shows_rightly)
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
            if self.table.former(clerk_id).is_some() {
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
        askew: false,
        deleted_at: None,
        erased: false,
        profile: Some(upsert.profile.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        ChangedRow, Claim,
        fixtures::{
            Books, DEFAULT, ERASE, MATCH, NEVER, News, created, deleted, fresh, named, other, updated,
        },
    };
    use std::sync::Arc;

    use super::{Outcome::*, *};

    const X: &str = "x@example.com";
    const Y: &str = "y@example.com";

    /// `ann` proved X at 10.
    fn ann_with_x() -> Books {
        let mut books = Books::default();
        books.tell(&DEFAULT, [created("ann", 10).verified(X).named("Ann").event()]);
        books
    }

    /// `ann` proved X at 10 and was deleted at 20.
    fn ann_left_x() -> Books {
        let mut books = ann_with_x();
        books.tell(&DEFAULT, [deleted("ann", 20)]);
        books
    }

    // Versions.

    #[test]
    fn newer_news_replaces_the_whole_mirror() {
        let mut books = ann_with_x();
        assert_eq!(books.tell(&DEFAULT, [updated("ann", 11).event()]), [Updated]);
        assert_eq!((books.name("ann"), books.email("ann")), (None, None));
        assert_eq!(books.row("ann").version.at, 11);
        assert_eq!(books.row("ann").id, fresh("ann created at 10"));
    }

    #[test]
    fn older_news_is_stale() {
        let mut books = ann_with_x();
        assert_eq!(books.tell(&DEFAULT, [updated("ann", 9).named("Old").event()]), [Stale]);
        assert_eq!(books.name("ann"), Some("Ann"));
    }

    #[test]
    fn the_same_version_again_is_stale() {
        let mut books = ann_with_x();
        let folded = books.apply(&DEFAULT, &[created("ann", 10).named("Again").event()]);
        assert_eq!(folded.outcomes, [Stale]);
        assert!(folded.rows.is_empty());
    }

    #[test]
    fn ties_go_to_the_later_sent_then_to_updates_then_by_message_id() {
        let oldest_first = [
            updated("ann", 10).sent(1).message("z"),
            created("ann", 10).sent(2).message("z"),
            updated("ann", 10).sent(2).message("a"),
            updated("ann", 10).sent(2).message("b"),
        ];
        for (place, older) in oldest_first.iter().enumerate() {
            for newer in &oldest_first[place + 1..] {
                let mut books = Books::default();
                let tell = |books: &mut Books, news: &News| books.tell(&DEFAULT, [news.clone().event()]);
                assert_eq!(tell(&mut books, older), [Created]);
                assert_eq!(tell(&mut books, newer), [Updated]);
                assert_eq!(tell(&mut books, older), [Stale]);
            }
        }
    }

    #[test]
    fn an_update_without_a_row_makes_one() {
        let mut books = Books::default();
        assert_eq!(books.tell(&DEFAULT, [updated("ann", 11).event()]), [Created]);
        assert_eq!(books.tell(&DEFAULT, [created("ann", 10).event()]), [Stale]);
    }

    #[test]
    fn a_batch_is_folded_by_version_and_answered_in_its_own_order() {
        let mut books = Books::default();
        let batch = [
            deleted("ann", 20),
            updated("ann", 11).event(),
            other(),
            created("bob", 21).verified(X).event(),
            created("ann", 10).verified(X).event(),
            updated("ann", 12).verified(X).event(),
        ];
        assert_eq!(books.tell(&DEFAULT, batch), [Deleted, Updated, Ignored, Relinked, Created, Updated]);
        assert_eq!(books.row("bob").id, fresh("ann created at 10"));
    }

    #[test]
    fn news_and_deletion_of_one_millisecond_leave_a_row_to_return_to() {
        let mut books = Books::default();
        let outcomes = books.tell(&DEFAULT, [deleted("ann", 10), created("ann", 10).verified(X).event()]);
        assert_eq!(outcomes, [Deleted, Created]);
        assert_eq!(books.tell(&DEFAULT, [created("bob", 11).verified(X).event()]), [Relinked]);
    }

    #[test]
    fn other_events_are_ignored() {
        let folded = ann_with_x().apply(&DEFAULT, &[other()]);
        assert_eq!(folded.outcomes, [Ignored]);
        assert!(folded.rows.is_empty() && folded.former.is_empty());
    }

    // What Clerk's API says.

    #[test]
    fn a_snapshot_of_a_newer_version_wins_even_if_nothing_else_differs() {
        let mut books = ann_with_x();
        books.rows.first_mut().unwrap().version.at = 9;
        let ann = created("ann", 10).verified(X).named("Ann");
        assert_eq!(books.tell(&DEFAULT, [ann.read_at(50).event()]), [Updated]);
        assert_eq!(books.row("ann").version.at, 10);
    }

    #[test]
    fn a_snapshot_that_repeats_news_of_its_own_batch_is_stale() {
        let ann = created("ann", 10).verified(X);
        let mut books = Books::default();
        let outcomes = books.tell(&DEFAULT, [ann.clone().event(), ann.clone().read_at(50).event()]);
        assert_eq!(outcomes, [Created, Stale]);
        let rival = updated("bob", 20).verified(X).event();
        assert_eq!(books.tell(&DEFAULT, [rival, ann.read_at(60).event()]), [Created, Stale]);
        assert_eq!((books.email("ann"), books.row("ann").version.sent), (None, 10));
    }

    #[test]
    fn a_snapshot_wins_at_the_same_version_and_changes_nothing_where_nothing_differs() {
        let mut books = ann_with_x();
        let same = created("ann", 10).verified(X).named("Ann").read_at(50);
        let folded = books.apply(&DEFAULT, &[same.clone().event()]);
        assert_eq!((folded.outcomes, folded.rows), (vec![Stale], vec![]));
        let edited = books.rows.first_mut().unwrap();
        edited.profile = Some(Arc::new(named("Edited")));
        assert_eq!(books.tell(&DEFAULT, [same.event()]), [Updated]);
        assert_eq!(books.name("ann"), Some("Ann"));
        let later = created("ann", 10).verified(X).named("Later").read_at(40);
        assert_eq!(books.tell(&DEFAULT, [later.event()]), [Stale], "an earlier reading");
    }

    #[test]
    fn a_snapshot_puts_a_row_right_that_shows_another_address() {
        let edits: [fn(&mut Row); 4] = [
            |row| row.shown = false,
            |row| row.askew = true,
            |row| row.claim = None,
            |row| row.claim = Some(Claim::new(Y, true)),
        ];
        for edit in edits {
            let mut books = ann_with_x();
            books.rows.iter_mut().for_each(edit);
            let snapshot = created("ann", 10).verified(X).named("Ann").read_at(50);
            assert_eq!(books.tell(&DEFAULT, [snapshot.event()]), [Updated]);
            assert_eq!(books.email("ann"), Some(X));
            assert!(!books.row("ann").askew);
        }
    }

    #[test]
    fn a_snapshot_of_nobody_known_makes_a_row_and_of_somebody_deleted_none() {
        let mut books = Books::default();
        assert_eq!(books.tell(&DEFAULT, [created("ann", 10).read_at(50).event()]), [Created]);
        assert_eq!(books.tell(&DEFAULT, [deleted("ann", 60), deleted("bob", 60)]), [Deleted, Deleted]);
        let outcomes = books.tell(
            &DEFAULT,
            [created("ann", 20).named("Ann").read_at(70).event(), created("bob", 20).read_at(70).event()],
        );
        assert_eq!(outcomes, [Updated, Stale]);
        assert_eq!(books.row("ann").deleted_at, Some(60));
        assert!(!books.has_row("bob"));
    }

    #[test]
    fn who_is_asked_for_lives_again_with_the_row_and_only_if_read_after_the_deletion() {
        for policy in [DEFAULT, ERASE] {
            let mut books = ann_with_x();
            books.tell(&policy, [deleted("ann", 20)]);
            let asked = |at| created("ann", 10).verified(X).named("Ann").read_at(at).revive().event();
            for too_early in [19, 20] {
                books.tell(&policy, [asked(too_early)]);
                assert_eq!(books.row("ann").deleted_at, Some(20), "read at {too_early}");
            }
            assert_eq!(books.tell(&policy, [asked(21)]), [Revived]);
            let row = books.row("ann");
            assert_eq!((row.id, row.deleted_at, row.erased), (fresh("ann created at 10"), None, false));
            assert_eq!((books.email("ann"), books.name("ann")), (Some(X), Some("Ann")));
        }
    }

    #[test]
    fn a_former_id_that_is_asked_for_lives_again_with_a_row_of_its_own() {
        let mut books = ann_left_x();
        books.tell(&DEFAULT, [created("bob", 30).verified(X).event()]);
        let asked = created("ann", 10).verified(X).read_at(40).revive();
        let folded = books.apply(&DEFAULT, &[asked.clone().event()]);
        assert_eq!((folded.outcomes, folded.revived), (vec![Revived], vec!["ann".to_owned()]));
        assert_eq!(books.row("bob").id, fresh("ann created at 10"), "bob keeps the row");
        assert_eq!(books.row("ann").id, fresh("api_ann_40"));
        assert!(books.former.is_empty());
        assert_eq!(books.tell(&DEFAULT, [asked.read_at(50).revive().event()]), [Stale], "she lives");
    }

    // Deletion.

    #[test]
    fn a_deletion_hides_the_row_and_leaves_its_mirror() {
        let books = ann_left_x();
        let row = books.row("ann");
        assert_eq!((row.deleted_at, row.version.at, row.shown), (Some(20), 10, false));
        assert_eq!(row.claim.as_ref().map(|claim| claim.key.as_str()), Some(X));
        assert_eq!(books.name("ann"), Some("Ann"));
    }

    #[test]
    fn a_deletion_wins_over_newer_news() {
        let mut books = ann_with_x();
        assert_eq!(books.tell(&DEFAULT, [deleted("ann", 5)]), [Deleted]);
        assert_eq!(books.row("ann").deleted_at, Some(5));
    }

    #[test]
    fn late_news_of_a_deleted_account_changes_its_claim_not_its_deletion() {
        let mut books = ann_left_x();
        let outcomes =
            books.tell(&DEFAULT, [updated("ann", 9).event(), updated("ann", 15).verified(Y).event()]);
        assert_eq!(outcomes, [Stale, Updated]);
        assert_eq!(books.row("ann").deleted_at, Some(20));
        assert_eq!(books.email("ann"), None);
        assert_eq!(books.row("ann").claim.as_ref().map(|claim| claim.key.as_str()), Some(Y));
    }

    #[test]
    fn the_earlier_of_two_deletions_counts() {
        let mut books = ann_left_x();
        assert_eq!(books.tell(&DEFAULT, [deleted("ann", 21)]), [Stale]);
        assert_eq!(books.tell(&DEFAULT, [deleted("ann", 19)]), [Deleted]);
        assert_eq!(books.row("ann").deleted_at, Some(19));
    }

    #[test]
    fn an_id_deleted_before_it_was_seen_stays_deleted() {
        let mut books = Books::default();
        assert_eq!(books.tell(&DEFAULT, [deleted("ann", 20)]), [Deleted]);
        let former = FormerId { clerk_id: "ann".into(), user_id: None, deleted_at: 20 };
        assert_eq!(books.former, [former]);
        for event in [created("ann", 10).event(), updated("ann", 30).event(), deleted("ann", 5)] {
            assert_eq!(books.tell(&DEFAULT, [event]), [Stale]);
        }
        assert!(books.rows.is_empty());
    }

    #[test]
    fn an_id_deleted_and_created_in_one_batch_stays_deleted() {
        let mut books = Books::default();
        let outcomes = books.tell(&DEFAULT, [created("ann", 10).event(), deleted("ann", 9)]);
        assert_eq!(outcomes, [Stale, Deleted]);
        assert!(books.rows.is_empty());
    }

    #[test]
    fn erasing_leaves_nothing_personal_and_takes_in_nothing_more() {
        let mut books = ann_with_x();
        let folded = books.apply(&ERASE, &[deleted("ann", 20)]);
        assert!(matches!(&folded.rows[..], [ChangedRow { mirror: true, yields_email: true, .. }]));
        let row = books.row("ann").clone();
        assert_eq!((row.deleted_at, row.erased, row.shown), (Some(20), true, false));
        assert_eq!((row.claim, row.profile), (None, Some(Arc::default())));
        for policy in [ERASE, DEFAULT] {
            assert_eq!(books.tell(&policy, [updated("ann", 15).verified(X).event()]), [Stale]);
        }
    }

    #[test]
    fn under_erase_a_row_that_was_kept_takes_in_nothing_more() {
        let mut books = ann_left_x();
        assert_eq!(books.tell(&ERASE, [updated("ann", 15).verified(Y).event()]), [Stale]);
    }

    #[test]
    fn under_erase_nothing_waits_and_nothing_is_relinked() {
        assert_eq!(ann_with_x().tell(&ERASE, [created("bob", 30).verified(X).event()]), [Created]);
        assert_eq!(ann_left_x().tell(&ERASE, [created("bob", 30).verified(X).event()]), [Created]);
    }

    // Relinking.

    #[test]
    fn a_returning_user_gets_the_row_back() {
        let mut books = ann_left_x();
        let folded = books.apply(&DEFAULT, &[created("bob", 30).verified(X).named("Bob").event()]);
        assert_eq!(folded.outcomes, [Relinked]);
        let row = books.row("bob");
        assert_eq!((row.id, row.version.at, row.deleted_at), (fresh("ann created at 10"), 30, None));
        assert_eq!((books.email("bob"), books.name("bob")), (Some(X), Some("Bob")));
        assert!(!books.has_row("ann"));
        let former = FormerId { clerk_id: "ann".into(), user_id: Some(row.id), deleted_at: 20 };
        assert_eq!(folded.former, [former]);
    }

    #[test]
    fn the_id_that_held_a_relinked_row_is_known_as_deleted() {
        let mut books = ann_left_x();
        books.tell(&DEFAULT, [created("bob", 30).verified(X).event()]);
        for event in [updated("ann", 40).verified(X).event(), deleted("ann", 5)] {
            assert_eq!(books.tell(&DEFAULT, [event]), [Stale]);
        }
    }

    #[test]
    fn case_makes_no_other_address() {
        let mut books = ann_left_x();
        assert_eq!(books.tell(&DEFAULT, [created("bob", 30).verified("X@Example.com").event()]), [Relinked]);
        assert_eq!(books.email("bob"), Some("X@Example.com"));
    }

    #[test]
    fn an_update_that_comes_first_relinks_as_well() {
        let mut books = ann_left_x();
        assert_eq!(books.tell(&DEFAULT, [updated("bob", 31).born(30).verified(X).event()]), [Relinked]);
    }

    #[test]
    fn an_account_that_has_a_row_never_takes_another() {
        let mut books = ann_left_x();
        books.tell(&DEFAULT, [created("bob", 30).event()]);
        assert_eq!(books.tell(&DEFAULT, [updated("bob", 31).born(30).verified(X).event()]), [Updated]);
        assert_eq!(books.row("ann").deleted_at, Some(20));
    }

    #[test]
    fn nobody_returns_who_was_born_before_the_deletion() {
        for (born, outcome) in [(19, Created), (20, Created), (21, Relinked)] {
            let news = updated("bob", 30).born(born).verified(X).event();
            assert_eq!(ann_left_x().tell(&DEFAULT, [news]), [outcome], "born at {born}");
        }
    }

    #[test]
    fn nobody_born_before_the_last_proof_of_the_address_returns() {
        for (born, outcome) in [(14, Created), (15, Created), (16, Relinked)] {
            let mut books = ann_with_x();
            books.tell(&DEFAULT, [updated("ann", 15).verified(X).event(), deleted("ann", 12)]);
            let news = updated("bob", 30).born(born).verified(X).event();
            assert_eq!(books.tell(&DEFAULT, [news]), [outcome], "born at {born}");
        }
    }

    #[test]
    fn an_unverified_address_takes_over_nothing() {
        for policy in [DEFAULT, MATCH] {
            assert_eq!(ann_left_x().tell(&policy, [created("bob", 30).unverified(X).event()]), [Created]);
            assert_eq!(ann_with_x().tell(&policy, [created("bob", 30).unverified(X).at_last()]), [Created]);
        }
    }

    #[test]
    fn an_unverified_address_gives_nothing_away() {
        for policy in [DEFAULT, MATCH] {
            let mut books = Books::default();
            books.tell(&policy, [created("ann", 10).unverified(X).event()]);
            assert_eq!(books.clone().tell(&policy, [created("bob", 30).verified(X).at_last()]), [Created]);
            books.tell(&policy, [deleted("ann", 20)]);
            assert_eq!(books.tell(&policy, [created("bob", 30).verified(X).event()]), [Created]);
        }
    }

    #[test]
    fn only_the_last_claim_counts() {
        let mut books = ann_with_x();
        books.tell(&DEFAULT, [updated("ann", 15).verified(Y).event(), deleted("ann", 20)]);
        assert_eq!(books.clone().tell(&DEFAULT, [created("bob", 30).verified(X).event()]), [Created]);
        assert_eq!(books.tell(&DEFAULT, [created("bob", 30).verified(Y).event()]), [Relinked]);
    }

    #[test]
    fn without_an_address_nothing_is_relinked() {
        let mut books = Books::default();
        books.tell(&DEFAULT, [created("ann", 10).event(), deleted("ann", 20)]);
        assert_eq!(books.tell(&DEFAULT, [created("bob", 30).event()]), [Created]);
    }

    #[test]
    fn never_relinks_never() {
        assert_eq!(ann_with_x().tell(&NEVER, [created("bob", 30).verified(X).event()]), [Created]);
        assert_eq!(ann_left_x().tell(&NEVER, [created("bob", 30).verified(X).event()]), [Created]);
    }

    // Waiting.

    #[test]
    fn a_newcomer_waits_for_news_of_the_live_holder_and_changes_nothing() {
        for policy in [DEFAULT, MATCH] {
            let folded = ann_with_x().apply(&policy, &[created("bob", 30).verified(X).event()]);
            assert_eq!(folded.outcomes, [Waiting]);
            assert!(folded.rows.is_empty() && folded.former.is_empty());
        }
    }

    #[test]
    fn after_the_deletion_has_come_the_one_who_waited_gets_the_row() {
        let mut books = ann_left_x();
        assert_eq!(books.tell(&DEFAULT, [created("bob", 30).verified(X).at_last()]), [Relinked]);
    }

    #[test]
    fn after_the_address_was_given_up_the_one_who_waited_gets_a_row() {
        let mut books = ann_with_x();
        books.tell(&DEFAULT, [updated("ann", 20).verified(Y).event()]);
        assert_eq!(books.tell(&DEFAULT, [created("bob", 30).verified(X).event()]), [Created]);
    }

    #[test]
    fn once_patience_is_over_a_newcomer_gets_a_row_and_the_address() {
        let mut books = ann_with_x();
        assert_eq!(books.tell(&DEFAULT, [created("bob", 30).verified(X).at_last()]), [Created]);
        assert_eq!((books.email("ann"), books.email("bob")), (None, Some(X)));
        assert_eq!(books.row("ann").id, fresh("ann created at 10"));
    }

    #[test]
    fn nobody_waits_for_an_account_whose_news_is_no_older_than_their_birth() {
        for (born, outcome) in [(9, Created), (10, Created), (11, Waiting)] {
            let news = updated("bob", 30).born(born).verified(X).event();
            assert_eq!(ann_with_x().tell(&DEFAULT, [news]), [outcome], "born at {born}");
        }
    }

    #[test]
    fn a_live_claimant_is_waited_for_though_a_deleted_one_could_be_relinked() {
        let mut books = ann_left_x();
        books.tell(&DEFAULT, [created("bob", 11).event(), updated("bob", 12).born(11).verified(X).event()]);
        let eve = created("eve", 30).verified(X);
        assert_eq!(books.tell(&DEFAULT, [eve.clone().event()]), [Waiting]);
        assert_eq!(books.tell(&DEFAULT, [eve.at_last()]), [Created]);
        assert_eq!(books.row("ann").deleted_at, Some(20));
    }

    // The literal e-mail match rule.

    #[test]
    fn under_match_a_newcomer_takes_the_row_and_the_loser_gets_a_new_one() {
        let mut books = ann_with_x();
        let before = books.row("ann").clone();
        let folded = books.apply(&MATCH, &[created("bob", 30).verified(X).named("Bob").at_last()]);
        assert_eq!(folded.outcomes, [Relinked]);
        assert!(folded.former.is_empty(), "the loser is alive");
        assert_eq!(
            (books.row("bob").id, books.name("bob"), books.email("bob")),
            (before.id, Some("Bob"), Some(X))
        );
        let id = fresh("bob created at 30");
        assert_eq!(*books.row("ann"), Row { id, shown: false, ..before });
        assert_eq!(books.tell(&MATCH, [updated("ann", 12).named("Anna").event()]), [Updated]);
    }

    #[test]
    fn under_match_the_best_of_several_live_claimants_loses_the_row() {
        let mut books = ann_with_x();
        books.tell(&MATCH, [created("bob", 9).event(), created("cat", 9).event(), created("dan", 9).event()]);
        books.tell(&MATCH, [updated("bob", 15).born(9).verified(X).event()]);
        books.tell(&MATCH, [updated("cat", 16).born(9).unverified(X).event()]);
        books.tell(&MATCH, [updated("dan", 40).born(9).verified(X).event()]);
        assert_eq!(books.tell(&MATCH, [created("eve", 30).verified(X).at_last()]), [Relinked]);
        assert_eq!(books.row("eve").id, fresh("bob created at 9"));
        assert_eq!(books.row("bob").id, fresh("eve created at 30"));
    }

    #[test]
    fn under_match_a_deleted_row_is_relinked_at_once() {
        let mut books = ann_left_x();
        assert_eq!(books.tell(&MATCH, [created("bob", 30).verified(X).event()]), [Relinked]);
        assert_eq!(books.former.len(), 1);
    }

    // What the store is told.

    #[test]
    fn a_change_says_whether_the_mirror_or_only_the_address_is_new() {
        let mut books = ann_with_x();
        let mut folded =
            books.apply(&DEFAULT, &[created("bob", 9).unverified(X).event(), deleted("ann", 20)]);
        folded.rows.sort_by_key(|change| change.new);
        let flags: Vec<_> =
            folded.rows.iter().map(|change| (change.new, change.mirror, change.yields_email)).collect();
        assert_eq!(flags, [(false, false, true), (true, true, false)]);
        assert_eq!(books.email("bob"), Some(X));
    }

    #[test]
    fn an_address_written_otherwise_is_not_yielded() {
        let folded = ann_with_x().apply(&DEFAULT, &[updated("ann", 11).verified("X@example.com").event()]);
        assert!(matches!(&folded.rows[..], [ChangedRow { yields_email: false, mirror: true, .. }]));
    }

    #[test]
    fn another_address_yields_the_old_one() {
        let folded = ann_with_x().apply(&DEFAULT, &[updated("ann", 11).verified(Y).event()]);
        assert!(matches!(&folded.rows[..], [ChangedRow { yields_email: true, .. }]));
    }

    #[test]
    fn the_profile_is_given_wherever_the_mirror_is_new() {
        let mut books = ann_with_x();
        books.rows.iter_mut().for_each(|row| row.profile = None);
        let folded = books.apply(&DEFAULT, &[updated("ann", 11).named("Anna").event()]);
        assert!(matches!(&folded.rows[..], [change] if change.row.profile == Some(Arc::new(named("Anna")))));
        books.rows.iter_mut().for_each(|row| row.profile = None);
        let folded = books.apply(&DEFAULT, &[deleted("ann", 12)]);
        assert!(matches!(
            &folded.rows[..],
            [ChangedRow { mirror: false, row: Row { profile: None, .. }, .. }]
        ));
    }
}
