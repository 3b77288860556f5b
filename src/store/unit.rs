//! Owns the transaction that a batch is applied in: lock, load, fold, save, record, apply the letters. It stands here
//! once; each backend lends it a [`Transaction`], and each projection ([`UsersBatch`], [`sessions`], [`subscriptions`]) says what it loads, folds
//! and saves.
//!
//! Promises that inbox and rows become durable together or not at all, and that batches which run at the same time end as
//! if one had followed the other. Never touches SQL.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Instant,
};

use uuid::Uuid;

use super::{
    Incoming, StoreError, Terms, errors, operations,
    retry::{self, LAST_BEGIN},
    sessions, subscriptions,
    sync::tables::{Changing, Words, Works},
    tiers,
    users::{Answer, Statements, UsersBatch},
};
use crate::{
    rules::{Change, Event, Outcome, users::OnDelete},
    time::Millis,
};

/// What nobody else may change while a batch decides by it. PostgreSQL turns it into an advisory lock.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lock<'b> {
    /// The claimants of an e-mail address, by its key.
    Address(String),
    /// A Clerk id that has no row to be locked.
    Account(&'b str),
    /// How many replays run.
    Replays,
}

/// What a transaction is begun for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// A batch of so many messages, none of whose statements may begin after this.
    Batch(usize, Instant),
    /// Few rows of ours, which people or the process's own upkeep change.
    Few,
    /// To find and change letters, of which there may be many, for people.
    People,
    /// To ask whether the database takes a batch.
    Ready,
}

/// A backend's transactions.
pub(super) trait Transactions: Sync {
    type Tx: Transaction;

    fn begin(&self, purpose: Purpose) -> impl Answer<Self::Tx>;

    /// What people configured.
    fn terms(&self) -> &Terms;
}

/// One transaction of a backend. Where it is dropped before its end, it is rolled back.
pub(super) trait Transaction: Statements + Sized {
    /// Waits for this batch's turn: all of these are held until the transaction ends. They are taken in one order.
    fn lock(&mut self, locks: &BTreeSet<Lock<'_>>) -> impl Answer<()>;

    /// What is remembered of these messages and Clerk ids.
    fn remembered(&mut self, messages: &[&str], clerk_ids: &[&str]) -> impl Answer<Remembered>;

    /// Writes to the inbox what became of these messages.
    fn record(&mut self, entries: &[(&Incoming, Outcome)]) -> impl Answer<()>;

    /// Sets the dead letters of these messages, which the inbox has, to `applied`, with their outcome. Answers the Clerk ids
    /// that the letters are about.
    fn apply_letters(&mut self, messages: &[&str]) -> impl Answer<Vec<String>>;

    /// Erases the settled letters of those of these Clerk ids that are deleted.
    fn erase_letters(&mut self, clerk_ids: &[&str]) -> impl Answer<()>;

    /// Clerk ids of up to `limit` letters that were settled, and are still whole though their users are erased.
    fn kept_letters(&mut self, limit: u32) -> impl Answer<Vec<String>>;

    /// Writes a row of this message id to the inbox and takes it out again. Answers whether both were seen to happen.
    fn write_and_remove(&mut self, message: &str) -> impl Answer<bool>;

    /// Has the database check every statement above (tables, columns, rights, locks) and changes nothing.
    fn check_statements(&mut self, erases: bool) -> impl Answer<()>;

    /// Has the database check what it would check at the commit.
    fn check_deferred(&mut self) -> impl Answer<()>;

    /// Commits after an `Ok`, and rolls back after an error.
    fn end<R: Send>(self, result: Result<R, StoreError>) -> impl Answer<R>;
}

/// What the store remembers of a batch.
pub(super) struct Remembered {
    /// Those of its messages that the inbox has.
    pub(super) messages: HashSet<String>,
    /// Those of its Clerk ids that are former ids.
    pub(super) former: HashMap<String, Gone>,
}

/// What is remembered of a former Clerk id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gone {
    /// The row that it had, where it had one.
    pub(super) user_id: Option<Uuid>,
    pub(super) deleted_at: Millis,
}

/// Applies a batch, again where it lost a race. The outcomes stand in the order of the batch.
pub(super) async fn apply<S: Works>(store: &S, batch: &[Incoming]) -> Result<Vec<Outcome>, StoreError> {
    let mut attempt = Attempt { store, last_begin: Instant::now() + LAST_BEGIN, met: BTreeSet::new() };
    retry::races(batch, &mut attempt).await
}

struct Attempt<'s, S> {
    store: &'s S,
    last_begin: Instant,
    /// Keys of addresses that an earlier attempt met too late to lock them.
    met: BTreeSet<String>,
}

impl<S: Works> retry::Attempt for Attempt<'_, S> {
    async fn run(&mut self, batch: &[Incoming]) -> Result<Vec<Outcome>, StoreError> {
        let mut tx = self.store.begin(Purpose::Batch(batch.len(), self.last_begin)).await?;
        let done = within(&mut tx, self.store.terms(), batch, &mut self.met).await;
        // The boundary: inbox and rows become durable together. A connection lost here leaves it unknown; the batch then
        // runs again, and the inbox decides.
        tx.end(done).await
    }
}

/// The transaction of a batch, but for its begin and end.
async fn within(
    tx: &mut impl Changing<Db: Words>,
    terms: &Terms,
    batch: &[Incoming],
    met: &mut BTreeSet<String>,
) -> Result<Vec<Outcome>, StoreError> {
    // Lock.
    let mut users = UsersBatch::of(batch, terms, met);
    let locks = users.locks(tx).await?;
    tx.lock(&locks).await?;

    // Load, after the locks, so that what a batch in front of this one has done counts.
    let rows = match users.load(tx).await? {
        Ok(rows) => rows,
        Err(late) => {
            met.extend(late);
            return Err(errors::raced("a user's address changed while the batch was waiting for its turn"));
        }
    };
    let messages: Vec<&str> = sorted(batch.iter().map(message_id));
    let remembered = tx.remembered(&messages, &users.clerk_ids()).await?;

    // Fold what is new: each event by the rules of its family. An event of no family is ignored.
    let fresh = Fresh::of(batch, &remembered.messages);
    let mut decided = vec![Outcome::Ignored; fresh.positions.len()];
    let accounts = terms.sessions.then(|| sessions::accounts(&rows, &remembered.former));
    let billing = terms.billing.as_ref().map(|tiers| (tiers, subscriptions::holders(&rows)));
    let (places, news) = fresh.family(|change| matches!(change, Change::User(_)));
    let folded = users.fold(rows, remembered.former, &news)?;
    for (place, outcome) in places.into_iter().zip(&folded.outcomes) {
        decided[place] = *outcome;
    }

    // Save, and record. What hangs on accounts follows them.
    users.save(tx, &folded).await?;
    if let Some(accounts) = accounts {
        let (places, news) = fresh.news(|change| match change {
            Change::Session(news) => Some(news.as_ref()),
            Change::User(_) | Change::Subscription(_) | Change::Other => None,
        });
        let outcomes = sessions::apply(tx, accounts, &folded, &news).await?;
        for (place, outcome) in places.into_iter().zip(outcomes) {
            decided[place] = outcome;
        }
    }
    if let Some((tiers, holders)) = billing {
        let (places, news) = fresh.news(|change| match change {
            Change::Subscription(news) => Some(news.as_ref()),
            Change::User(_) | Change::Session(_) | Change::Other => None,
        });
        let outcomes = subscriptions::apply(tx, tiers, &holders, &folded, &news).await?;
        for (place, outcome) in places.into_iter().zip(outcomes) {
            decided[place] = outcome;
        }
    }
    let outcomes = fresh.outcomes(&decided);
    let entries = fresh.entries(&decided);
    if !entries.is_empty() {
        tx.record(&entries).await?;
    }

    // Apply the letters, after the inbox, so that those which were captured while this batch waited for a place in it are
    // seen.
    let effective: Vec<&str> = sorted(effective(batch, &outcomes));
    let about = tx.apply_letters(&effective).await?;
    if terms.policy.on_delete == OnDelete::Erase {
        let gone = sorted(about.iter().map(String::as_str).chain(deleted(batch)));
        erase_beside(tx, &gone).await?;
    }
    Ok(outcomes)
}

/// Applies a batch, with what is checked at a commit only, and takes all of it back.
pub(super) async fn rehearse<S: Works>(store: &S, batch: &[Incoming]) -> Result<(), StoreError> {
    let mut tx = store.begin(Purpose::Few).await?;
    within(&mut tx, store.terms(), batch, &mut BTreeSet::new()).await?;
    tx.check_deferred().await
}

/// Whether the database takes a batch: writes a row of ours, takes it out again, and has every statement of a batch checked.
/// Leaves no row and fires no trigger of the application's on users.
pub(super) async fn ready<S: Works>(store: &S) -> Result<(), StoreError> {
    let mut tx = store.begin(Purpose::Ready).await?;
    let asked = ask(&mut tx, store.terms()).await;
    // A disk that is full or a log that cannot be flushed shows itself here at the latest.
    tx.end(asked).await
}

async fn ask(tx: &mut impl Changing<Db: Words>, terms: &Terms) -> Result<(), StoreError> {
    // First, because it says best that the server is a standby or read-only. With an id of its own, so that two processes
    // that ask at once never meet.
    let message = format!("headcount asks {}", Uuid::now_v7());
    if !tx.write_and_remove(&message).await? {
        return Err(errors::hidden());
    }
    tx.check_user_statements(terms.default_credits).await?;
    if terms.sessions {
        sessions::check(tx).await?;
    }
    if terms.billing.is_some() {
        subscriptions::check(tx).await?;
    }
    let erases = terms.policy.on_delete == OnDelete::Erase;
    if erases {
        tiers::erase_notes(tx, &[]).await?;
        operations::erase(tx, &[]).await?;
    }
    tx.check_statements(erases).await
}

/// One small step of erasing users that were deleted while deletions were kept, then their letters. Answers how many users
/// it found.
pub(super) async fn erase_kept<S: Works>(store: &S, limit: u32) -> Result<u64, StoreError> {
    if store.terms().policy.on_delete != OnDelete::Erase {
        return Ok(0);
    }
    retry::again(|| async {
        let mut tx = store.begin(Purpose::Few).await?;
        let erased = erase_step(&mut tx, limit).await;
        tx.end(erased).await
    })
    .await
}

async fn erase_step(tx: &mut impl Changing<Db: Words>, limit: u32) -> Result<u64, StoreError> {
    let mut clerk_ids = tx.erase_kept(limit).await?;
    if clerk_ids.is_empty() {
        clerk_ids = tx.kept_letters(limit).await?;
    }
    erase_beside(tx, &sorted(clerk_ids.iter().map(String::as_str))).await?;
    Ok(clerk_ids.len() as u64)
}

/// Erases what is personal of deleted users in other tables than their own.
async fn erase_beside(tx: &mut impl Changing<Db: Words>, clerk_ids: &[&str]) -> Result<(), StoreError> {
    if clerk_ids.is_empty() {
        return Ok(());
    }
    tx.erase_letters(clerk_ids).await?;
    tiers::erase_notes(tx, clerk_ids).await?;
    operations::erase(tx, clerk_ids).await
}

fn message_id(incoming: &Incoming) -> &str {
    &incoming.event.message_id
}

/// The messages that took effect, now or before.
fn effective<'b>(batch: &'b [Incoming], outcomes: &[Outcome]) -> impl Iterator<Item = &'b str> {
    let pairs = batch.iter().zip(outcomes);
    let effective = pairs.filter(|(_, outcome)| outcome.is_final() || **outcome == Outcome::Duplicate);
    effective.map(|(incoming, _)| message_id(incoming))
}

/// The Clerk ids that the batch's deletions are about.
fn deleted(batch: &[Incoming]) -> impl Iterator<Item = &str> {
    let deletions = batch.iter().map(|incoming| &incoming.event.change).filter(|change| change.deletes());
    deletions.filter_map(Change::clerk_id)
}

/// Each once, in one order, so that two batches never wait for each other.
fn sorted<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    texts.collect::<BTreeSet<_>>().into_iter().collect()
}

/// A batch without its repeats.
struct Fresh<'a> {
    batch: &'a [Incoming],
    /// Where the messages to be folded stand in the batch.
    positions: Vec<usize>,
    /// For each message of the batch, which of `positions` speaks for it; `None` where the inbox has it.
    spoken_for: Vec<Option<usize>>,
}

impl<'a> Fresh<'a> {
    /// Sets aside what the inbox knows, and every copy of a message but the first.
    fn of(batch: &'a [Incoming], known: &HashSet<String>) -> Self {
        let mut first: HashMap<&str, usize> = HashMap::with_capacity(batch.len());
        let mut positions = Vec::with_capacity(batch.len());
        let spoken_for = batch.iter().enumerate().map(|(position, incoming)| {
            let id = message_id(incoming);
            if known.contains(id) {
                return None;
            }
            Some(*first.entry(id).or_insert_with(|| {
                positions.push(position);
                positions.len() - 1
            }))
        });
        let spoken_for = spoken_for.collect();
        Self { batch, positions, spoken_for }
    }

    /// The events of one family, each with its place among those to be folded.
    fn family(&self, is_of_it: impl Fn(&Change) -> bool) -> (Vec<usize>, Vec<&'a Event>) {
        let events = self.positions.iter().map(|&position| &self.batch[position].event);
        events.enumerate().filter(|(_, event)| is_of_it(&event.change)).unzip()
    }

    /// What `is_news` makes of the changes to be folded, each with its place among them.
    fn news<N>(&self, is_news: impl Fn(&'a Change) -> Option<N>) -> (Vec<usize>, Vec<N>) {
        let events = self.positions.iter().map(|&position| &self.batch[position].event).enumerate();
        events.filter_map(|(place, event)| Some((place, is_news(&event.change)?))).unzip()
    }

    /// One outcome per message of the batch, given one per event to be folded. A second copy is a duplicate of what took
    /// effect; where nothing did, it shares the first one's fate.
    fn outcomes(&self, decided: &[Outcome]) -> Vec<Outcome> {
        let one = |(position, speaker): (usize, &Option<usize>)| match *speaker {
            None => Outcome::Duplicate,
            Some(speaker) if self.positions[speaker] == position => decided[speaker],
            Some(speaker) if decided[speaker].is_final() => Outcome::Duplicate,
            Some(speaker) => decided[speaker],
        };
        self.spoken_for.iter().enumerate().map(one).collect()
    }

    /// What to record, in the order of message ids: final outcomes only, so that whatever is tried again can still
    /// take effect.
    fn entries(&self, decided: &[Outcome]) -> Vec<(&'a Incoming, Outcome)> {
        let pairs = self.positions.iter().zip(decided).filter(|(_, outcome)| outcome.is_final());
        let mut rows: Vec<_> = pairs.map(|(&position, &outcome)| (&self.batch[position], outcome)).collect();
        rows.sort_by(|(a, _), (b, _)| message_id(a).cmp(message_id(b)));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incoming(id: &str) -> Incoming {
        let event = Event {
            message_id: id.into(),
            change: Change::Other,
            fresh_row: uuid::Uuid::nil(),
            patience_over: false,
        };
        Incoming { event, event_type: "email.created".into(), received_at: 0 }
    }

    #[test]
    fn repeats_are_set_aside_and_outcomes_keep_the_order_of_the_batch() {
        let batch = ["d", "a", "b", "a", "b", "c"].map(incoming);
        let fresh = Fresh::of(&batch, &HashSet::from(["c".to_owned()]));
        let (places, events) = fresh.family(|_| true);
        let ids: Vec<_> = events.iter().map(|event| event.message_id.as_str()).collect();
        assert_eq!((places, ids), (vec![0, 1, 2], vec!["d", "a", "b"]));
        assert_eq!(fresh.family(|change| matches!(change, Change::User(_))).0, [0; 0]);
        let folded = [Outcome::Stale, Outcome::Created, Outcome::Waiting];
        assert_eq!(
            fresh.outcomes(&folded),
            [
                Outcome::Stale,
                Outcome::Created,
                Outcome::Waiting,
                Outcome::Duplicate,
                Outcome::Waiting,
                Outcome::Duplicate
            ]
        );
        let inbox: Vec<_> =
            fresh.entries(&folded).into_iter().map(|(row, _)| row.event.message_id.as_str()).collect();
        assert_eq!(inbox, ["a", "d"]);
    }
}
