//! Owns when a whole run is due: because there are more users here than in Clerk, because the changes since the last look are
//! too many for a look, or because of `HEADCOUNT_SYNC_EVERY`. Pure: times come in.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    store::sync::{Run, RunResult},
    time::Millis,
};

/// More users here than in Clerk for this long, in milliseconds: by then a deletion's webhook has come, if it comes.
const PATIENCE: Millis = 600_000;
/// The watch starts a run at most this often.
const HOURLY: Millis = 3_600_000;
/// A scheduled run that failed is tried again after this time, or after the schedule's own where that is shorter.
const AGAIN: Millis = 900_000;
/// After a count the next one waits so many times as long as it took.
const REST: u32 = 100;

/// How many users there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
}

impl Counted {
    /// Notes a count. `true`: there have been more users here for so long that those who are gone from Clerk are to be
    /// searched.
    pub fn note(&mut self, clerk: u64, here: u64, now: Millis) -> bool {
        (self.at, self.clerk, self.here) = (Some(now), clerk, here);
        if here <= clerk {
            self.more_here_since = None;
            return false;
        }
        let since = *self.more_here_since.get_or_insert(now);
        now.saturating_sub(since) >= PATIENCE
    }

    /// Whether the watch may start a run.
    pub fn may_run(&self, now: Millis) -> bool {
        self.ran_at.is_none_or(|at| now.saturating_sub(at).abs() >= HOURLY)
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
    if failed.is_some_and(|run| !over(run.updated_at, every.min(AGAIN))) {
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
        assert!(!is_scheduled(&[], DAY, Some(0), 14 * MINUTE), "this process tried it");
        assert!(is_scheduled(&[], DAY, Some(0), 15 * MINUTE));
    }
}
