//! Owns which users the table lacks changes of, whom to heal, and when. Pure: times come in. Bounded: of more users than
//! ten thousand those with the newest changes are forgotten, and found again by the next look that meets them.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::time::Millis;

/// The most users that are remembered.
const USERS_MAX: usize = 10_000;

/// The same version of a user is published at most this often: the queue may be slow, or a worker may wait; ...
const AGAIN: Millis = 300_000;
/// ... and at most so often while messages wait to be tried again, of which it may be one.
const AGAIN_BESIDE_RETRIES: Millis = 7_200_000;

/// What is wrong with a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// There is no row.
    Missing,
    /// The row is older than Clerk's user.
    Outdated,
}

impl Kind {
    /// The stable name: in metrics and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Outdated => "outdated",
        }
    }
}

/// A user whose row lacks a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lack {
    /// The account.
    pub clerk_id: String,
    /// What is wrong.
    pub kind: Kind,
    /// When the oldest change happened that the row lacks, by Clerk's clock.
    pub since: Millis,
    /// When the newest one happened, by Clerk's clock.
    pub changed_at: Millis,
    /// When this change was last published.
    pub published_at: Option<Millis>,
}

/// How a user that Clerk gave was found in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What is wrong with it.
    pub kind: Kind,
    /// Of Clerk's user.
    pub changed_at: Millis,
    /// Of the row, where there is one.
    pub here: Option<Millis>,
}

/// Users whose rows lack a change, and what was done about them.
#[derive(Clone, Debug, Default)]
pub struct Lacking {
    users: BTreeMap<String, Entry>,
    retries: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    lack: Lack,
    /// The look that met it last.
    look: u64,
    /// When the newest dead letter that holds what was published of it was read.
    letter: Option<Millis>,
}

impl Lacking {
    /// What a former holder of the lease knew.
    pub fn known(lacks: Vec<Lack>) -> Self {
        let entry = |lack: Lack| (lack.clerk_id.clone(), Entry { lack, look: 0, letter: None });
        Self { users: lacks.into_iter().map(entry).collect(), retries: false }
    }

    /// Whether messages wait in the queue to be tried again.
    pub fn retries(&mut self, any: bool) {
        self.retries = any;
    }

    /// Notes a user that a look has found missing or outdated. `letter` is as for [`letter`](Self::letter).
    pub fn note(&mut self, clerk_id: &str, found: Found, letter: Option<Millis>, look: u64) {
        let Found { kind, changed_at, here } = found;
        let before = self.users.get(clerk_id).map(|entry| &entry.lack);
        // A user who changes all the time lacks the oldest change that has not arrived, not the newest one.
        let since = before.filter(|lack| here.is_none_or(|here| here < lack.since));
        let since = since.map_or(changed_at, |lack| lack.since.min(changed_at));
        let published = before.filter(|lack| lack.changed_at == changed_at);
        let published_at = published.and_then(|lack| lack.published_at);
        let lack = Lack { clerk_id: clerk_id.to_owned(), kind, since, changed_at, published_at };
        self.users.insert(clerk_id.to_owned(), Entry { lack, look, letter });
        if self.users.len() > USERS_MAX {
            let newest = self.users.values().max_by_key(|entry| entry.lack.since);
            if let Some(id) = newest.map(|entry| entry.lack.clerk_id.clone()) {
                self.users.remove(&id);
            }
        }
    }

    /// A dead letter holds what was read of this user at a time, by Clerk's clock; or none does any more.
    pub fn letter(&mut self, clerk_id: &str, letter: Option<Millis>) {
        if let Some(entry) = self.users.get_mut(clerk_id) {
            entry.letter = letter;
        }
    }

    /// The table has caught up with this user.
    pub fn caught_up(&mut self, clerk_id: &str) {
        self.users.remove(clerk_id);
    }

    /// Whether to publish this user now: its webhook has had its chance, no letter holds this change, and the same was not published
    /// a moment ago. `read_at` is Clerk's time, `now` ours. Answers what to count it as.
    pub fn heal(&self, clerk_id: &str, grace: Duration, read_at: Millis, now: Millis) -> Option<Lack> {
        let Entry { lack, letter, .. } = self.users.get(clerk_id)?;
        // A later version may be one that can be applied.
        let dead = letter.is_some_and(|read_at| read_at >= lack.changed_at);
        let pause = if self.retries { AGAIN_BESIDE_RETRIES } else { AGAIN };
        let again = lack.published_at.is_none_or(|at| now.saturating_sub(at).abs() >= pause);
        (is_over(lack, grace, read_at) && !dead && again).then(|| lack.clone())
    }

    /// The user was published.
    pub fn published(&mut self, clerk_id: &str, now: Millis) {
        if let Some(entry) = self.users.get_mut(clerk_id) {
            entry.lack.published_at = Some(now);
        }
    }

    /// Users that this look has not met: their Clerk ids, each with the change that the row has to have.
    pub fn unmet(&self, look: u64) -> Vec<(String, Millis)> {
        let unmet = self.users.values().filter(|entry| entry.look != look);
        unmet.map(|entry| (entry.lack.clerk_id.clone(), entry.lack.changed_at)).collect()
    }

    /// How old the oldest change is that the table lacks once the grace is over, in seconds.
    pub fn behind(&self, grace: Duration, read_at: Millis) -> u64 {
        let over = self.users.values().map(|entry| &entry.lack).filter(|lack| is_over(lack, grace, read_at));
        let oldest = over.map(|lack| lack.since).min();
        oldest.map_or(0, |since| read_at.saturating_sub(since).unsigned_abs() / 1000)
    }

    /// The oldest ones, at most so many.
    pub fn oldest(&self, limit: usize) -> Vec<Lack> {
        let mut lacks: Vec<&Lack> = self.users.values().map(|entry| &entry.lack).collect();
        lacks.sort_by_key(|lack| lack.since);
        lacks.into_iter().take(limit).cloned().collect()
    }

    /// Of all others than the [`oldest`](Self::oldest), the change that stands furthest behind in Clerk's list of changes.
    pub fn beyond(&self, limit: usize) -> Option<Millis> {
        let mut lacks: Vec<&Lack> = self.users.values().map(|entry| &entry.lack).collect();
        lacks.sort_by_key(|lack| lack.since);
        lacks.into_iter().skip(limit).map(|lack| lack.changed_at).min()
    }
}

/// Whether the webhook has had its chance.
fn is_over(lack: &Lack, grace: Duration, read_at: Millis) -> bool {
    let age = read_at.saturating_sub(lack.since);
    u128::try_from(age).is_ok_and(|age| age > grace.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(60);
    const SECOND: Millis = 1000;

    fn missing(changed_at: Millis) -> Found {
        Found { kind: Kind::Missing, changed_at, here: None }
    }

    fn outdated(changed_at: Millis, here: Millis) -> Found {
        Found { kind: Kind::Outdated, changed_at, here: Some(here) }
    }

    #[test]
    fn a_user_is_healed_once_its_webhook_has_had_its_chance() {
        let mut lacking = Lacking::default();
        lacking.note("ann", missing(100 * SECOND), None, 1);
        assert_eq!(lacking.heal("ann", GRACE, 160 * SECOND, 0), None);
        assert_eq!(lacking.behind(GRACE, 160 * SECOND), 0);
        let lack = lacking.heal("ann", GRACE, 161 * SECOND, 0).unwrap();
        assert_eq!((lack.kind, lack.since), (Kind::Missing, 100 * SECOND));
        assert_eq!(lacking.behind(GRACE, 161 * SECOND), 61);
        lacking.caught_up("ann");
        assert_eq!(lacking.heal("ann", GRACE, 161 * SECOND, 0), None);
        assert_eq!(lacking.behind(GRACE, 900 * SECOND), 0);
    }

    #[test]
    fn while_messages_are_tried_again_the_same_version_is_one_of_them() {
        let (mut lacking, read_at) = (Lacking::default(), 900 * SECOND);
        lacking.note("ann", missing(100), None, 1);
        lacking.retries(true);
        assert!(lacking.heal("ann", GRACE, read_at, 0).is_some(), "it was not published yet");
        lacking.published("ann", 0);
        assert_eq!(lacking.heal("ann", GRACE, read_at, AGAIN), None);
        assert!(lacking.heal("ann", GRACE, read_at, AGAIN_BESIDE_RETRIES).is_some());
        lacking.retries(false);
        assert!(lacking.heal("ann", GRACE, read_at, AGAIN).is_some());
    }

    #[test]
    fn the_same_version_is_not_published_again_for_five_minutes() {
        let (mut lacking, read_at) = (Lacking::default(), 900 * SECOND);
        lacking.note("ann", outdated(100, 50), None, 1);
        lacking.published("ann", 5);
        lacking.note("ann", outdated(100, 50), None, 2);
        assert_eq!(lacking.heal("ann", GRACE, read_at, 5 + AGAIN - 1), None);
        assert!(lacking.heal("ann", GRACE, read_at, 5 + AGAIN).is_some());
        assert!(lacking.behind(GRACE, read_at) > 0, "it is behind until it has arrived");
        lacking.note("ann", outdated(101, 50), None, 3);
        assert!(lacking.heal("ann", GRACE, read_at, 6).is_some(), "another version may be published");
    }

    #[test]
    fn a_change_that_a_letter_holds_is_left_to_people_and_stays_behind() {
        let (mut lacking, read_at) = (Lacking::default(), 900 * SECOND);
        lacking.note("ann", missing(100), Some(100), 1);
        assert_eq!(lacking.heal("ann", GRACE, read_at, 0), None);
        assert_eq!(lacking.behind(GRACE, read_at), 899);
        lacking.note("ann", missing(101), Some(100), 2);
        assert!(lacking.heal("ann", GRACE, read_at, 0).is_some(), "a later version is not left alone");
        lacking.letter("ann", Some(101));
        assert_eq!(lacking.heal("ann", GRACE, read_at, 0), None);
        lacking.letter("ann", None);
        assert!(lacking.heal("ann", GRACE, read_at, 0).is_some());
    }

    #[test]
    fn a_user_who_changes_all_the_time_is_healed_where_nothing_arrives() {
        let (mut lost, mut arriving) = (Lacking::default(), Lacking::default());
        for second in 1..=10 {
            let at = 20 * second * SECOND;
            lost.note("ann", outdated(at, 5), None, 1);
            arriving.note("ann", outdated(at, at - 1), None, 1);
        }
        assert!(lost.heal("ann", GRACE, 201 * SECOND, 0).is_some());
        assert_eq!(arriving.heal("ann", GRACE, 201 * SECOND, 0), None);
    }

    #[test]
    fn who_is_not_met_again_is_not_forgotten() {
        let mut lacking = Lacking::known(vec![]);
        lacking.note("ann", missing(100), None, 1);
        lacking.note("bob", missing(200), None, 2);
        assert_eq!(lacking.unmet(2), [("ann".to_owned(), 100)]);
        assert_eq!((lacking.beyond(1), lacking.beyond(2)), (Some(200), None));
        let mut taken_over = Lacking::known(lacking.oldest(1));
        assert_eq!(taken_over.unmet(1), [("ann".to_owned(), 100)]);
        taken_over.note("ann", missing(100), None, 1);
        assert!(taken_over.unmet(1).is_empty());
    }

    #[test]
    fn of_too_many_users_those_with_the_oldest_changes_stay() {
        let mut lacking = Lacking::default();
        for n in 0..=USERS_MAX {
            lacking.note(&format!("user_{n}"), missing(n as Millis), None, 1);
        }
        assert_eq!(lacking.unmet(2).len(), USERS_MAX);
        assert_eq!(lacking.oldest(1)[0].since, 0);
    }
}
