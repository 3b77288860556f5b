//! Owns when a whole run is due: because there are more users here than in Clerk, because the changes since the last look are
//! too many for a look, or because of `HEADCOUNT_SYNC_EVERY`. Pure: times come in.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::state::Trouble;
use crate::{
    store::sync::{Run, RunResult},
    time::Millis,
};

/// More users here than in Clerk for this long, in milliseconds: by then a deletion's webhook has come, if it comes.
const PATIENCE: Millis = 600_000;
/// The watch starts a run at most this often.
const HOURLY: Millis = 3_600_000;
/// A search that was refused comes to the same end until people do something: it is tried again after this time.
const DAILY: Millis = 86_400_000;
/// A scheduled run that failed is tried again after this time, or after the schedule's own where that is shorter.
const AGAIN: Millis = 900_000;
/// After a count the next one waits so many times as long as it took.
const REST: u32 = 100;

/// How many users there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counted {
    /// When they were counted last.
    pub at: Option<Millis>,
    /// In Clerk.
    pub clerk: u64,
    /// Live rows.
    pub here: u64,
    /// Since when each count has found more here.
    pub more_here_since: Option<Millis>,
    /// When the watch last started a run.
    pub ran_at: Option<Millis>,
    /// The last run found more users gone than it may delete.
    pub refused: Option<Refused>,
}

/// A run that deleted nobody, because a rule of safety forbids it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Since when, why, and what to do.
    #[serde(flatten)]
    pub trouble: Trouble,
    /// How many more users there were here than in Clerk.
    pub surplus: u64,
}

/// How a run ended, as far as it says when the next one is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It did all that it was to do.
    Done,
    /// It may not delete those who are gone.
    Refused(Trouble),
    /// What it met may have passed by the next look.
    Passing,
    /// Another run is on.
    Busy,
    /// Otherwise: the next one is not hurried.
    Failed,
}

impl Counted {
    /// Notes a count. `true`: there have been more users here for so long that those who are gone from Clerk are to be
    /// searched.
    pub fn note(&mut self, clerk: u64, here: u64, now: Millis) -> bool {
        (self.at, self.clerk, self.here) = (Some(now), clerk, here);
        if here <= clerk {
            self.more_here_since = None;
            self.refused = None;
            return false;
        }
        let since = *self.more_here_since.get_or_insert(now);
        now.saturating_sub(since) >= PATIENCE
    }

    /// Whether the watch may start a run.
    pub fn may_run(&self, now: Millis) -> bool {
        self.ran_at.is_none_or(|at| now.saturating_sub(at).abs() >= HOURLY)
    }

    /// Whether the watch may start a run to search for those who are gone. After one that was refused it waits for a day, unless
    /// there are fewer of them.
    pub fn may_search(&self, now: Millis) -> bool {
        let is_hopeless = self.refused.as_ref().is_some_and(|refused| {
            now.saturating_sub(refused.trouble.since).abs() < DAILY && self.surplus() >= refused.surplus
        });
        self.may_run(now) && !is_hopeless
    }

    /// A run has ended.
    pub fn ended(&mut self, ended: Ended) {
        match ended {
            Ended::Done => self.refused = None,
            Ended::Refused(trouble) => self.refused = Some(Refused { trouble, surplus: self.surplus() }),
            Ended::Passing => self.ran_at = None,
            // That one may take hours: there is no need to see every minute that it is on.
            Ended::Busy => self.ran_at = self.ran_at.map(|at| at - HOURLY + PATIENCE),
            Ended::Failed => {}
        }
    }

    fn surplus(&self) -> u64 {
        self.here.saturating_sub(self.clerk)
    }
}

/// How long the next count waits after one that took so long.
pub fn rest(took: Duration) -> Duration {
    took.saturating_mul(REST)
}

/// Whether a scheduled run is due. `runs` are the newest ones, the newest first; `tried_at` is when this process last tried.
pub fn is_scheduled(runs: &[Run], every: Duration, tried_at: Option<Millis>, now: Millis) -> bool {
    let every = Millis::try_from(every.as_millis()).unwrap_or(Millis::MAX);
    let over = |since: Millis, time: Millis| now.saturating_sub(since) >= time;
    if tried_at.is_some_and(|at| !over(at, every.min(AGAIN))) {
        return false;
    }
    let mut real = runs.iter().filter(|run| !run.dry_run);
    let newest = real.next();
    let failed = newest.filter(|run| matches!(run.result, Some(RunResult::Failed | RunResult::Stopped)));
    // One that is over would come to the same end.
    let again = |run: &Run| if run.finished_at.is_some() { DAILY } else { AGAIN };
    if failed.is_some_and(|run| !over(run.updated_at, every.min(again(run)))) {
        return false;
    }
    let done = newest.into_iter().chain(real).find(|run| run.result == Some(RunResult::Done));
    done.is_none_or(|run| over(run.started_at, every))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::store::sync::Counts;

    const MINUTE: Millis = 60_000;
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn run(started_at: Millis, result: Option<RunResult>, dry_run: bool) -> Run {
        Run {
            id: Uuid::nil(),
            started_at,
            finished_at: (result == Some(RunResult::Done)).then_some(started_at + MINUTE),
            instance_id: "ins_1".into(),
            who: "schedule".into(),
            holder: Uuid::nil(),
            dry_run,
            phase: String::new(),
            cursor: None,
            counts: Counts::default(),
            result,
            detail: None,
            updated_at: started_at + MINUTE,
            resumed: false,
        }
    }

    #[test]
    fn more_users_here_for_ten_minutes_start_the_search() {
        let mut counted = Counted::default();
        assert!(!counted.note(10, 11, 0));
        assert!(!counted.note(10, 11, 9 * MINUTE));
        assert!(!counted.note(11, 11, 9 * MINUTE), "as many in between");
        assert!(!counted.note(10, 12, 10 * MINUTE));
        assert!(!counted.note(10, 11, 19 * MINUTE));
        assert!(counted.note(10, 11, 20 * MINUTE));
        assert!(!counted.note(12, 11, 21 * MINUTE), "fewer here are none who are gone");
    }

    #[test]
    fn the_watch_starts_a_run_at_most_once_an_hour() {
        let mut counted = Counted::default();
        assert!(counted.may_run(0));
        counted.ran_at = Some(0);
        assert!(!counted.may_run(59 * MINUTE));
        assert!(counted.may_run(60 * MINUTE));
    }

    #[test]
    fn a_search_that_was_refused_waits_for_a_day_or_for_fewer_users() {
        let trouble = Trouble { since: 0, message: "too many".into(), hint: None };
        let mut counted = Counted { clerk: 100, here: 110, ran_at: Some(0), ..Counted::default() };
        counted.ended(Ended::Refused(trouble));
        assert!(!counted.may_search(60 * MINUTE) && counted.may_run(60 * MINUTE));
        counted.note(100, 111, 2 * 60 * MINUTE);
        assert!(!counted.may_search(2 * 60 * MINUTE), "more of them");
        assert!(counted.may_search(DAILY));
        counted.note(101, 110, 3 * 60 * MINUTE);
        assert!(counted.may_search(3 * 60 * MINUTE), "fewer of them");
        counted.note(110, 110, 4 * 60 * MINUTE);
        assert_eq!(counted.refused, None);
    }

    #[test]
    fn after_what_may_have_passed_the_next_look_starts_a_run() {
        let mut counted = Counted { ran_at: Some(0), ..Counted::default() };
        counted.ended(Ended::Failed);
        assert!(!counted.may_search(MINUTE));
        counted.ended(Ended::Passing);
        assert!(counted.may_search(MINUTE));
    }

    #[test]
    fn a_count_that_takes_long_is_seldom_made() {
        assert_eq!(rest(Duration::from_secs(3)), Duration::from_secs(300));
    }

    #[test]
    fn a_scheduled_run_is_due_when_the_last_one_is_a_schedule_ago() {
        let done = |at: Millis| run(at, Some(RunResult::Done), false);
        let day = 24 * 60 * MINUTE;
        assert!(is_scheduled(&[], DAY, None, 0), "there was none");
        assert!(!is_scheduled(&[done(0)], DAY, None, day - 1));
        assert!(is_scheduled(&[done(0)], DAY, None, day));
        let looked = run(day - MINUTE, Some(RunResult::Done), true);
        assert!(is_scheduled(&[looked, done(0)], DAY, None, day), "one that only looked is none");
        let begun = run(day - MINUTE, None, false);
        assert!(is_scheduled(&[begun, done(0)], DAY, None, day), "one that was killed is gone on with");
    }

    #[test]
    fn a_scheduled_run_that_failed_is_tried_again_after_a_quarter_of_an_hour() {
        for result in [RunResult::Failed, RunResult::Stopped] {
            let failed = [run(0, Some(result), false)];
            assert!(!is_scheduled(&failed, DAY, None, 15 * MINUTE));
            assert!(is_scheduled(&failed, DAY, None, 16 * MINUTE));
            let every = Duration::from_secs(60);
            assert!(
                is_scheduled(&failed, every, None, 2 * MINUTE),
                "or earlier where the schedule is shorter"
            );
        }
        let refused = [Run { finished_at: Some(MINUTE), ..run(0, Some(RunResult::Failed), false) }];
        let week = Duration::from_secs(7 * 24 * 3600);
        assert!(!is_scheduled(&refused, week, None, DAILY), "it would come to the same end");
        assert!(is_scheduled(&refused, week, None, DAILY + MINUTE));
        assert!(!is_scheduled(&[], DAY, Some(0), 14 * MINUTE), "this process tried it");
        assert!(is_scheduled(&[], DAY, Some(0), 15 * MINUTE));
    }
}
