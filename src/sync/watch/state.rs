//! Owns what the watch knows from one look to the next. The holder of the lease writes it into the lease after each look, so that
//! another process goes on from there, and that any process can show it. Pure. Holds ids and times, nothing personal.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    alarm::Alarm,
    due::Counted,
    lacking::{Kind, Lack},
};
use crate::{store::sync::Lease, sync::SyncError, time::Millis};

/// The watch goes on where a new holder takes the lease within this time after it ended, in milliseconds.
const WITHOUT_BREAK: Millis = 60_000;

/// Hours of [`State::healed`] that are kept: a day, and the hour that has begun.
const HOURS: usize = 25;
const HOUR: Millis = 3_600_000;

/// What the watch knows. Times are this machine's, unless they say otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Since when somebody has watched without a break, by Clerk's clock.
    pub began_at: Millis,
    /// Nobody looks, by the settings of the holder: it only keeps to the schedule.
    pub looks_off: bool,
    /// The instance that is watched.
    pub instance: Option<String>,
    /// When the last whole look began, by Clerk's clock.
    pub looked_at: Option<Millis>,
    /// The newest change that Clerk has, by its clock.
    pub newest_in_clerk: Option<Millis>,
    /// The newest change that the table has of the users who were looked at last, by Clerk's clock.
    pub newest_here: Option<Millis>,
    /// How old the oldest change is that Clerk has and the table lacks, once the grace is over; 0: in step; `None`: not known.
    /// While nobody can look, at least how long ago the last look was.
    pub behind_seconds: Option<u64>,
    /// The oldest changes that the table lacks.
    pub lacking: Vec<Lack>,
    /// Where the next holder has to begin to meet all others that the table lacks, by Clerk's clock.
    pub goes_on_from: Option<Millis>,
    /// What was healed, by hour.
    pub healed: Vec<Hour>,
    /// What was healed a moment ago: what the alarm judges by.
    pub recent: Vec<Healing>,
    /// Clerk's webhooks do not arrive.
    pub alarm: Option<Alarm>,
    /// Why nothing can be looked at.
    pub error: Option<Trouble>,
    /// How far Clerk's clock is ahead of this machine's, in milliseconds, where that matters.
    pub clock_offset_ms: Option<i64>,
    /// How many users there are, in Clerk and here.
    pub counted: Counted,
}

/// What was healed in one hour: users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hour {
    /// Hours since the Unix epoch.
    pub hour: i64,
    /// How many.
    #[serde(flatten)]
    pub healed: Healed,
}

/// Users who were healed, by what was wrong with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // As in the report of a sync.
pub struct Healed {
    pub missing: u64,
    pub outdated: u64,
    pub gone: u64,
}

/// One user who was healed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Healing {
    /// When the snapshot was published.
    pub at: Millis,
    /// When the first change that the table lacked happened.
    pub changed_at: Millis,
}

/// Something that keeps the watch from looking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Since when.
    pub since: Millis,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Healed {
    /// One user.
    pub fn one(kind: Kind) -> Self {
        match kind {
            Kind::Missing => Self { missing: 1, ..Self::default() },
            Kind::Outdated => Self { outdated: 1, ..Self::default() },
        }
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.missing + self.outdated + self.gone
    }

    /// Each kind, by its name.
    pub fn by_kind(&self) -> [(&'static str, u64); 3] {
        [("missing", self.missing), ("outdated", self.outdated), ("gone", self.gone)]
    }

    pub(super) fn add(&mut self, more: &Self) {
        self.missing += more.missing;
        self.outdated += more.outdated;
        self.gone += more.gone;
    }
}

impl Trouble {
    /// Since a time of this machine.
    pub(super) fn of(error: &SyncError, since: Millis) -> Self {
        Self { since, message: error.to_string(), hint: error.hint() }
    }

    /// All of it, on one line.
    pub fn says(&self) -> String {
        self.hint.as_ref().map_or_else(|| self.message.clone(), |hint| format!("{}; {hint}", self.message))
    }
}

impl State {
    /// What a holder goes on from who has just taken the lease. `before` is the lease as it was, `taken` as it is now; `now`
    /// is Clerk's time.
    pub fn taken_over(before: Option<&Lease>, taken: &Lease, now: Millis) -> Self {
        let told = taken.state.clone().and_then(|state| serde_json::from_value::<Self>(state).ok());
        let mut state = told.unwrap_or_default();
        let goes_on = before
            .is_some_and(|before| taken.taken_at.saturating_sub(before.expires_at) <= WITHOUT_BREAK)
            && state.began_at > 0;
        if !goes_on {
            state.began_at = now;
        }
        state.looks_off = false;
        // Whoever is not handed on has to be met again.
        let all = state.goes_on_from.take().unwrap_or(Millis::MAX);
        state.looked_at = state.looked_at.map(|looked_at| looked_at.min(all));
        state
    }

    /// Nobody looks from now on: what was said of the last look is past.
    pub(super) fn looks_are_off(&mut self) {
        self.looks_off = true;
        (self.alarm, self.error, self.behind_seconds) = (None, None, None);
    }

    /// A look has failed. Once the last one is longer ago than a change may take to be noticed, nobody knows any more that the table
    /// is in step. `now` is Clerk's time.
    pub fn not_looked(&mut self, noticed_within: Duration, now: Millis) {
        let silent = now.saturating_sub(self.looked_at.unwrap_or(self.began_at));
        let silent = Duration::from_millis(u64::try_from(silent).unwrap_or_default());
        if silent > noticed_within {
            self.behind_seconds = self.behind_seconds.max(Some(silent.as_secs()));
        }
    }

    /// Counts users who were healed.
    pub fn count_healed(&mut self, more: &Healed, now: Millis) {
        if more.total() == 0 {
            return;
        }
        let hour = now.div_euclid(HOUR);
        match self.healed.iter_mut().find(|bucket| bucket.hour == hour) {
            Some(bucket) => bucket.healed.add(more),
            None => self.healed.push(Hour { hour, healed: *more }),
        }
        let surplus = self.healed.len().saturating_sub(HOURS);
        self.healed.drain(..surplus);
    }

    /// Users who were healed in the last 24 hours, and in the hour that the 24th is a part of.
    pub fn healed_in_a_day(&self, now: Millis) -> Healed {
        let first = now.div_euclid(HOUR) - 24;
        let mut healed = Healed::default();
        self.healed
            .iter()
            .filter(|bucket| bucket.hour >= first)
            .for_each(|bucket| healed.add(&bucket.healed));
        healed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_healed_is_counted_for_a_day() {
        let mut state = State::default();
        for hour in 0..100 {
            state.count_healed(&Healed { missing: 1, outdated: 2, gone: 0 }, hour * HOUR + 5);
        }
        assert_eq!(state.healed.len(), HOURS);
        assert_eq!(state.healed_in_a_day(99 * HOUR + 9), Healed { missing: 25, outdated: 50, gone: 0 });
        assert_eq!(state.healed_in_a_day(110 * HOUR).total(), 3 * 14);
        assert_eq!(state.healed_in_a_day(200 * HOUR), Healed::default());
    }

    fn lease(taken_at: Millis, expires_at: Millis, state: Option<&State>) -> Lease {
        Lease {
            name: "watch".into(),
            holder: None,
            host: String::new(),
            process: String::new(),
            taken_at,
            expires_at,
            expired: false,
            state: state.map(|state| serde_json::to_value(state).unwrap()),
        }
    }

    #[test]
    fn a_holder_goes_on_from_what_the_last_one_knew() {
        let told = State { began_at: 7, looked_at: Some(90_000), ..State::default() };
        let before = lease(0, 100_000, Some(&told));
        let soon = lease(100_000 + WITHOUT_BREAK, 0, Some(&told));
        assert_eq!(State::taken_over(Some(&before), &soon, 5_000_000), told);
        let late = lease(100_001 + WITHOUT_BREAK, 0, Some(&told));
        let after_a_break = State { began_at: 5_000_000, ..told };
        assert_eq!(State::taken_over(Some(&before), &late, 5_000_000), after_a_break);
        let many = State { goes_on_from: Some(80_000), ..after_a_break.clone() };
        let all_are_met = State { looked_at: Some(80_000), ..after_a_break };
        let late = lease(100_001 + WITHOUT_BREAK, 0, Some(&many));
        assert_eq!(State::taken_over(Some(&before), &late, 5_000_000), all_are_met);
        let first = State { began_at: 5_000_000, ..State::default() };
        assert_eq!(State::taken_over(None, &lease(0, 0, None), 5_000_000), first);
    }

    #[test]
    fn while_nobody_can_look_the_table_counts_as_behind() {
        let within = Duration::from_secs(120);
        let mut state =
            State { began_at: 1, looked_at: Some(1_000_000), behind_seconds: Some(0), ..State::default() };
        state.not_looked(within, 1_120_000);
        assert_eq!(state.behind_seconds, Some(0));
        state.not_looked(within, 1_121_000);
        assert_eq!(state.behind_seconds, Some(121));
        state.behind_seconds = Some(900);
        state.not_looked(within, 1_122_000);
        assert_eq!(state.behind_seconds, Some(900), "what was lacking then is no younger");
        let mut never = State { began_at: 1_000_000, ..State::default() };
        never.not_looked(within, 1_130_000);
        assert_eq!(never.behind_seconds, Some(130));
    }

    #[test]
    fn another_version_reads_as_much_of_it_as_it_knows() {
        let read: State = serde_json::from_str(r#"{"looked_at":5,"of_a_later_version":{}}"#).unwrap();
        assert_eq!(read, State { looked_at: Some(5), ..State::default() });
        let text = serde_json::to_string(&State { healed: vec![Hour::default()], ..read.clone() }).unwrap();
        assert_eq!(serde_json::from_str::<State>(&text).unwrap().healed, [Hour::default()]);
    }
}
