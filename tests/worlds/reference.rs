//! Owns the expected result, worked out as slowly and as obviously as can be. It shares only the types of the answers with
//! the code under test.
//!
//! It works the result out in three ways: [`mirror`] from the set of webhooks alone, [`owners`] from the history alone, and
//! [`Slow`] one webhook after the other.

use std::collections::BTreeMap;

use headcount::rules::{
    Outcome,
    users::{OnDelete, Policy, Profile, Relink},
};
use uuid::Uuid;

use super::history::{Address, Fact, Kind, clerk_id};

/// A row of `users`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) mirror: Mirror,
    pub(crate) id: Uuid,
    pub(crate) clerk_id: String,
    pub(crate) deleted_at: Option<i64>,
    pub(crate) erased: bool,
}

/// What does not depend on how the webhooks came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mirror {
    pub(crate) email: Option<String>,
    pub(crate) clerk_email: Option<String>,
    pub(crate) email_verified: bool,
    /// `at`, `sent`, whether it is an update, message id.
    pub(crate) version: (i64, i64, bool, String),
    pub(crate) profile: Profile,
}

fn version(fact: &Fact) -> (i64, i64, bool, String) {
    (fact.at, fact.sent.unwrap_or(0), fact.kind == Kind::Updated, fact.message_id())
}

/// By their times, each account's webhooks stand in the order in which things happened, and one deletion ends them.
/// (Within a millisecond Clerk's times need not tell the order, and a deletion's time comes from another clock.)
pub(crate) fn times_in_order(history: &[Fact]) -> bool {
    history.iter().enumerate().filter(|(_, fact)| fact.kind != Kind::Other).all(|(place, fact)| {
        let earlier = history[..place].iter().filter(|other| other.account == fact.account);
        earlier.filter(|other| other.kind != Kind::Other).all(|other| match fact.kind {
            // Clerk's API may confirm what the deletion has told.
            Kind::Deleted => (other.is_upsert() || fact.is_absence()) && other.at <= fact.at,
            _ => version(other) < version(fact),
        })
    })
}

/// The live users by Clerk id, whatever the order of these webhooks was.
pub(crate) fn mirror(folded: &[&Fact]) -> BTreeMap<String, Mirror> {
    let latest = latest(folded);
    let shows = |fact: &Fact| !latest.values().any(|other| outranks(other, fact));
    latest.values().map(|fact| (fact.clerk_id(), mirrored(fact, shows(fact)))).collect()
}

/// The newest news of each account that is not known to be deleted.
pub(crate) fn latest<'a>(folded: &[&'a Fact]) -> BTreeMap<u8, &'a Fact> {
    let gone = |account: u8| folded.iter().any(|fact| fact.account == account && fact.kind == Kind::Deleted);
    let mut latest: BTreeMap<u8, &Fact> = BTreeMap::new();
    for fact in folded.iter().filter(|fact| fact.is_upsert() && !gone(fact.account)) {
        let known = latest.entry(fact.account).or_insert(fact);
        if version(fact) > version(known) {
            *known = fact;
        }
    }
    latest
}

/// Two pieces of news about an account are equally old and differ in more than the last sign-in. Which of them the table shows
/// may depend on their order, until Clerk's API is read again.
pub(crate) fn is_torn(facts: &[Fact], account: u8) -> bool {
    let own: Vec<&Fact> = facts.iter().filter(|fact| fact.account == account && fact.is_upsert()).collect();
    let differ = |one: &Fact, other: &Fact| one.at == other.at && !same_user(one, other);
    own.iter().any(|one| own.iter().any(|other| differ(one, other)))
}

fn same_user(one: &Fact, other: &Fact) -> bool {
    let rest = |fact: &Fact| Profile { last_sign_in_at: None, ..fact.profile() };
    one.address == other.address && rest(one) == rest(other)
}

/// Both claim the same address, and `one` is to show it rather than `other`.
fn outranks(one: &Fact, other: &Fact) -> bool {
    let rank = |fact: &Fact, address: Address| (address.verified, version(fact), fact.clerk_id());
    match (one.address, other.address) {
        (Some(a), Some(b)) => a.name == b.name && rank(one, a) > rank(other, b),
        _ => false,
    }
}

fn mirrored(fact: &Fact, shown: bool) -> Mirror {
    let text = fact.address.map(|address| address.text());
    Mirror {
        email: text.clone().filter(|_| shown),
        clerk_email: text,
        email_verified: fact.address.is_some_and(|address| address.verified),
        version: version(fact),
        profile: fact.profile(),
    }
}

/// For each account that is live at the end of the history, whose row it holds if every webhook comes at once and in
/// order: the account for which the row was made.
pub(crate) fn owners(history: &[Fact], policy: Policy) -> BTreeMap<String, String> {
    let returns = policy.relink != Relink::Never && policy.on_delete == OnDelete::Keep;
    let mut rows: BTreeMap<u8, u8> = BTreeMap::new();
    let mut gone: BTreeMap<u8, i64> = BTreeMap::new();
    for (place, fact) in history.iter().enumerate() {
        match fact.kind {
            Kind::Created => {
                let before = &history[..place];
                let giver = gone
                    .iter()
                    .filter(|(account, deleted_at)| {
                        returns
                            && **deleted_at < fact.at
                            && rows.contains_key(*account)
                            && left_with(before, **account, fact)
                    })
                    .map(|(account, deleted_at)| (*deleted_at, *account))
                    .max();
                let row = match giver {
                    Some((_, account)) => rows.remove(&account).unwrap_or_default(),
                    None => fact.account,
                };
                rows.insert(fact.account, row);
            }
            Kind::Deleted => {
                gone.entry(fact.account).or_insert(fact.at);
            }
            Kind::Updated | Kind::Other => {}
        }
    }
    rows.retain(|account, _| !gone.contains_key(account));
    rows.into_iter().map(|(account, founder)| (clerk_id(account), clerk_id(founder))).collect()
}

/// The last that was heard of the account was that it had proved the newcomer's address, which the newcomer has too.
fn left_with(before: &[Fact], account: u8, newcomer: &Fact) -> bool {
    let last = before.iter().rev().find(|fact| fact.account == account && fact.is_upsert());
    match (last, newcomer.address) {
        (Some(last), Some(address)) => address.verified && last.proves(address.name) && last.at < newcomer.at,
        _ => false,
    }
}

/// All rows and former ids, one webhook after the other, looking at everything each time.
#[derive(Clone, Debug)]
pub(crate) struct Slow<'a> {
    policy: Policy,
    rows: Vec<SlowRow<'a>>,
    /// The row that it had, and when it was deleted.
    pub(crate) former: BTreeMap<String, (Option<Uuid>, i64)>,
}

#[derive(Clone, Debug)]
struct SlowRow<'a> {
    id: Uuid,
    /// What it mirrors, and so who holds it.
    news: &'a Fact,
    deleted_at: Option<i64>,
    erased: bool,
}

impl<'a> Slow<'a> {
    pub(crate) fn new(policy: Policy) -> Self {
        Self { policy, rows: Vec::new(), former: BTreeMap::new() }
    }

    /// One batch without repeats: the oldest first, deletions after what is as old.
    pub(crate) fn apply(&mut self, batch: &[(&'a Fact, bool)]) -> Vec<Outcome> {
        let mut outcomes = vec![Outcome::Ignored; batch.len()];
        for place in folding_order(batch) {
            let (fact, patience_over) = batch[place];
            outcomes[place] = self.step(fact, patience_over);
        }
        outcomes
    }

    fn step(&mut self, fact: &'a Fact, patience_over: bool) -> Outcome {
        if fact.kind == Kind::Other {
            return Outcome::Ignored;
        }
        let asked = fact.is_upsert() && fact.reading.is_some_and(|reading| reading.revive);
        if let Some(outcome) = asked.then(|| self.revive(fact)).flatten() {
            return outcome;
        }
        if self.former.contains_key(&fact.clerk_id()) {
            return Outcome::Stale;
        }
        let erases = self.policy.on_delete == OnDelete::Erase;
        let own = self.rows.iter_mut().find(|row| row.news.account == fact.account);
        match (own, fact.kind) {
            (Some(row), Kind::Deleted) => {
                if row.deleted_at.is_some_and(|at| at <= fact.at) {
                    return Outcome::Stale;
                }
                row.deleted_at = Some(fact.at);
                row.erased |= erases;
                Outcome::Deleted
            }
            (None, Kind::Deleted) => {
                self.former.insert(fact.clerk_id(), (None, fact.at));
                Outcome::Deleted
            }
            (Some(row), _) => {
                let closed = row.deleted_at.is_some() && (row.erased || erases);
                if closed || version(fact) <= version(row.news) {
                    return Outcome::Stale;
                }
                let same = row.news.address == fact.address && row.news.profile() == fact.profile();
                if fact.reading.is_some() && same {
                    return Outcome::Stale;
                }
                row.news = fact;
                Outcome::Updated
            }
            (None, _) => self.arrive(fact, patience_over),
        }
    }

    /// `None`: the account lives, or the reading is as old as its deletion.
    fn revive(&mut self, fact: &'a Fact) -> Option<Outcome> {
        let read_at = fact.sent.unwrap_or_default();
        let new = SlowRow { id: fact.fresh_row(), news: fact, deleted_at: None, erased: false };
        match self.rows.iter_mut().find(|row| row.news.account == fact.account) {
            Some(row) => {
                row.deleted_at.filter(|at| *at < read_at)?;
                *row = SlowRow { id: row.id, ..new };
            }
            None => {
                self.former.get(&fact.clerk_id()).filter(|(_, at)| *at < read_at)?;
                self.former.remove(&fact.clerk_id());
                self.rows.push(new);
            }
        }
        Some(Outcome::Revived)
    }

    fn arrive(&mut self, fact: &'a Fact, patience_over: bool) -> Outcome {
        let new = SlowRow { id: fact.fresh_row(), news: fact, deleted_at: None, erased: false };
        let proved = fact.address.filter(|address| address.verified);
        let (Some(address), Relink::Deleted | Relink::Match, OnDelete::Keep) =
            (proved, self.policy.relink, self.policy.on_delete)
        else {
            self.rows.push(new);
            return Outcome::Created;
        };

        let before = |row: &&mut SlowRow| row.news.proves(address.name) && row.news.at < fact.born();
        let mut live: Vec<_> =
            self.rows.iter_mut().filter(before).filter(|row| row.deleted_at.is_none()).collect();
        live.sort_by_key(|row| (version(row.news), row.news.clerk_id()));
        if let Some(best) = live.pop() {
            if !patience_over {
                return Outcome::Waiting;
            }
            if self.policy.relink == Relink::Match {
                let loser = best.news;
                best.news = fact;
                self.rows.push(SlowRow { news: loser, ..new });
                return Outcome::Relinked;
            }
            self.rows.push(new);
            return Outcome::Created;
        }

        let mut deleted: Vec<_> = self
            .rows
            .iter_mut()
            .filter(before)
            .filter(|row| row.deleted_at.is_some_and(|at| at < fact.born()))
            .collect();
        deleted.sort_by_key(|row| (row.deleted_at, row.news.clerk_id()));
        if let Some(row) = deleted.pop() {
            let at = row.deleted_at.unwrap_or_default();
            self.former.insert(row.news.clerk_id(), (Some(row.id), at));
            *row = SlowRow { id: row.id, ..new };
            return Outcome::Relinked;
        }
        self.rows.push(new);
        Outcome::Created
    }

    /// The table, by row id.
    pub(crate) fn users(&self) -> BTreeMap<Uuid, User> {
        let live = |row: &&SlowRow| row.deleted_at.is_none();
        let shows = |row: &SlowRow| {
            live(&row) && !self.rows.iter().filter(live).any(|other| outranks(other.news, row.news))
        };
        let user = |row: &SlowRow| {
            let mut mirror = mirrored(row.news, shows(row));
            if row.erased {
                mirror.clerk_email = None;
                mirror.email_verified = false;
                mirror.profile = Profile::default();
            }
            let SlowRow { id, news, deleted_at, erased } = row;
            User { mirror, id: *id, clerk_id: news.clerk_id(), deleted_at: *deleted_at, erased: *erased }
        };
        self.rows.iter().map(|row| (row.id, user(row))).collect()
    }

    /// Tells two states of the same history apart.
    pub(crate) fn state(&self) -> Vec<(Uuid, u16, Option<i64>, bool)> {
        let row = |row: &SlowRow<'_>| (row.id, row.news.label, row.deleted_at, row.erased);
        let mut state: Vec<_> = self.rows.iter().map(row).collect();
        state.sort();
        state
    }
}

/// The places of a batch in the order in which they are to be folded.
pub(crate) fn folding_order(batch: &[(&Fact, bool)]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..batch.len()).collect();
    places.sort_by_key(|place| {
        let (fact, _) = batch[*place];
        let version = if fact.is_upsert() { version(fact) } else { (0, 0, false, fact.message_id()) };
        (fact.at, !fact.is_upsert(), version)
    });
    places
}
