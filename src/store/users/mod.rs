//! Owns the projection of user events into the table `users`: what a batch has to lock, load, fold and save. The rules are
//! [`crate::rules::users`]'s; the statements are `postgres`'s and `sqlite`'s, over the one list of `columns`.
//!
//! Promises a constant number of statements per batch, and an order in which no unique index is ever in the way.

use std::collections::{BTreeSet, HashMap};

use super::{
    StoreError, Terms, errors,
    unit::{Gone, Lock, Transaction},
};
use crate::{
    rules::{
        Event, Outcome,
        users::{self, ChangedRow, Folded, FormerId, Loaded, Row},
    },
    store::Incoming,
};

mod columns;
mod look;
mod postgres;
mod sqlite;

pub(super) use look::look;

/// The statements of this projection, in a transaction of either database. Each runs once per batch at most.
pub(super) trait Statements: Send {
    /// The Clerk ids of these that have a row, each with the key of the address that its row claims.
    fn claimed_keys(&mut self, clerk_ids: &[&str]) -> impl Answer<Vec<(String, Option<String>)>>;

    /// The rows that hold one of these Clerk ids or claim one of these keys, locked until the transaction ends.
    fn load(&mut self, clerk_ids: &[&str], keys: &[&str], profiles: bool) -> impl Answer<Vec<Row>>;

    /// Nulls `email` of these rows.
    fn hide_email(&mut self, rows: &[&Row]) -> impl Answer<()>;

    /// Gives these rows their Clerk ids, where those are others than before.
    fn relink(&mut self, rows: &[&Row]) -> impl Answer<()>;

    /// Updates these rows, with their profiles or without. Answers how many were written.
    fn update(&mut self, rows: &[&Row], profiles: bool) -> impl Answer<u64>;

    /// Inserts these rows. Answers how many were written.
    fn insert(&mut self, rows: &[&Row], default_credits: i64) -> impl Answer<u64>;

    /// Remembers these Clerk ids as deleted.
    fn remember(&mut self, former: &[&FormerId]) -> impl Answer<()>;

    /// Forgets that these Clerk ids were deleted.
    fn forget(&mut self, clerk_ids: &[&str]) -> impl Answer<()>;

    /// Erases up to `limit` rows that were deleted while deletions were kept, and answers their Clerk ids. With a limit of
    /// one it takes any of them, so that one that is refused holds up no other.
    fn erase_kept(&mut self, limit: u32) -> impl Answer<Vec<String>>;

    /// Has the database check every statement above (tables, columns, types, rights, locks) and writes no row.
    fn check_user_statements(&mut self, default_credits: i64) -> impl Answer<()>;
}

/// What a statement answers, at some time.
pub(super) trait Answer<T>: Future<Output = Result<T, StoreError>> + Send {}

impl<T, F: Future<Output = Result<T, StoreError>> + Send> Answer<T> for F {}

/// What a batch means for `users`.
pub(super) struct UsersBatch<'b> {
    terms: &'b Terms,
    /// The Clerk ids that the batch is about, each once.
    clerk_ids: BTreeSet<&'b str>,
    /// The keys of the addresses that its events, or rows of these ids, claim.
    keys: BTreeSet<String>,
    /// The rules need the rows' profiles.
    profiles: bool,
}

impl<'b> UsersBatch<'b> {
    /// `met` are keys that an earlier try of the same batch met too late to lock them.
    pub(super) fn of(batch: &'b [Incoming], terms: &'b Terms, met: &BTreeSet<String>) -> Self {
        let mut keys = met.clone();
        keys.extend(batch.iter().filter_map(|incoming| incoming.event.claim_key()).map(str::to_owned));
        let clerk_ids = batch.iter().filter_map(|incoming| incoming.event.change.clerk_id()).collect();
        let profiles = users::needs_profiles(&terms.policy, batch.iter().map(|incoming| &incoming.event));
        Self { terms, clerk_ids, keys, profiles }
    }

    /// The Clerk ids that the batch is about.
    pub(super) fn clerk_ids(&self) -> Vec<&'b str> {
        self.clerk_ids.iter().copied().collect()
    }

    /// What the batch has to hold before it reads what it decides by: every address that its events or their rows claim,
    /// and every Clerk id that has no row to be locked. Whoever writes a row with a key holds that key's lock, and whoever
    /// makes a row or a former id for a Clerk id holds that id's.
    pub(super) async fn locks(&mut self, tx: &mut impl Statements) -> Result<BTreeSet<Lock<'b>>, StoreError> {
        let mut without_row = self.clerk_ids.clone();
        for (clerk_id, key) in tx.claimed_keys(&self.clerk_ids()).await? {
            without_row.remove(clerk_id.as_str());
            self.keys.extend(key);
        }
        let addresses = self.keys.iter().cloned().map(Lock::Address);
        Ok(addresses.chain(without_row.into_iter().map(Lock::Account)).collect())
    }

    /// Loads what the batch touches. A row that claims another address than was locked is an `Err` of its key: a lock taken
    /// now would be out of order.
    pub(super) async fn load(
        &self,
        tx: &mut impl Statements,
    ) -> Result<Result<Vec<Row>, BTreeSet<String>>, StoreError> {
        let keys: Vec<&str> = self.keys.iter().map(String::as_str).collect();
        let rows = tx.load(&self.clerk_ids(), &keys, self.profiles).await?;
        let claimed = rows.iter().filter_map(|row| row.claim.as_ref()).map(|claim| &claim.key);
        let late: BTreeSet<String> = claimed.filter(|key| !self.keys.contains(*key)).cloned().collect();
        Ok(if late.is_empty() { Ok(rows) } else { Err(late) })
    }

    /// Decides. `former` are those of the batch's Clerk ids that are remembered as deleted.
    pub(super) fn fold(
        &self,
        rows: Vec<Row>,
        former: HashMap<String, Gone>,
        events: &[&Event],
    ) -> Result<Folded, StoreError> {
        let former = former.into_iter().map(|(clerk_id, gone)| (clerk_id, gone.deleted_at)).collect();
        let folded = users::fold(&self.terms.policy, Loaded { rows, former }, events);
        match folded.outcomes.len() == events.len() {
            true => Ok(folded),
            false => {
                Err(errors::broken("the rules decided about another number of events than they were given"))
            }
        }
    }

    /// Writes what was decided.
    pub(super) async fn save(&self, tx: &mut impl Transaction, folded: &Folded) -> Result<(), StoreError> {
        let writes = Writes::of(&folded.rows);
        // An address is hidden where it was before it is shown elsewhere, so that the unique index never sees it twice.
        if !writes.hiding.is_empty() {
            tx.hide_email(&writes.hiding).await?;
        }
        // Updates before inserts: a relinked row gives up the Clerk id that a new row may then hold.
        if folded.outcomes.contains(&Outcome::Relinked) {
            let stored: Vec<&Row> = writes.brief.iter().chain(&writes.whole).copied().collect();
            tx.relink(&stored).await?;
        }
        for (rows, profiles) in [(&writes.brief, false), (&writes.whole, true)] {
            if !rows.is_empty() {
                errors::all_written("users", tx.update(rows, profiles).await?, rows.len())?;
            }
        }
        if !writes.new.is_empty() {
            let written = tx.insert(&writes.new, self.terms.default_credits).await?;
            errors::all_written("users", written, writes.new.len())?;
        }
        // Forgotten before remembered: who lives again and leaves again in one batch is remembered as that.
        if !folded.revived.is_empty() {
            let revived: Vec<&str> = folded.revived.iter().map(String::as_str).collect();
            tx.forget(&revived).await?;
        }
        if !folded.former.is_empty() {
            let mut former: Vec<&FormerId> = folded.former.iter().collect();
            former.sort_by(|one, other| one.clerk_id.cmp(&other.clerk_id));
            tx.remember(&former).await?;
        }
        Ok(())
    }
}

/// Changed rows by the statement that writes them, each list in the order in which it is written.
#[derive(Default)]
struct Writes<'a> {
    /// Stored rows that no longer show the address that they show in the table.
    hiding: Vec<&'a Row>,
    /// Stored rows whose profile stays as it is.
    brief: Vec<&'a Row>,
    /// Stored rows that are written with their profile.
    whole: Vec<&'a Row>,
    new: Vec<&'a Row>,
}

impl<'a> Writes<'a> {
    fn of(changed: &'a [ChangedRow]) -> Self {
        let mut writes = Self::default();
        for ChangedRow { row, new, mirror, yields_email } in changed {
            if *new {
                writes.new.push(row);
                continue;
            }
            if *yields_email {
                writes.hiding.push(row);
            }
            // An erased row is always written whole: what it holds no longer is nulled even if the fold left it out.
            let whole = row.erased || (*mirror && row.profile.is_some());
            if whole { &mut writes.whole } else { &mut writes.brief }.push(row);
        }
        for rows in [&mut writes.hiding, &mut writes.brief, &mut writes.whole] {
            rows.sort_by_key(|row| row.id);
        }
        writes.new.sort_by(|one, other| one.clerk_id.cmp(&other.clerk_id));
        writes
    }
}
