//! Owns how the processes that are alive, and what they counted together, are shown to people. Times are RFC 3339 in UTC.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::Serialize;
use uuid::Uuid;

use crate::{
    store::{
        Store, StoreError,
        processes::{ProcessRow, Role},
    },
    telemetry::rates::{Counted, Counts, MINUTE, MINUTES, SLOT},
    time::{Millis, now, rfc3339},
};

/// What happens now is what happened in so many slots of 5 seconds.
const NOW_SLOTS: usize = 3;
/// What a process said longer ago says nothing about now, in milliseconds.
const STALE: Millis = 30_000;
/// The p99 of the lag is that of so many minutes, where something was committed in them.
const LAG_MINUTES: usize = 5;

/// Who runs, and what they counted.
#[derive(Clone, Debug, Serialize)]
pub struct Processes {
    /// The processes that are alive, the first to begin first.
    pub processes: Vec<Process>,
    /// The versions of headcount that they are of, the oldest first.
    pub versions: Vec<String>,
    /// What people should know about it, a sentence each.
    pub notices: Vec<String>,
    /// What they counted together.
    pub rates: Rates,
}

/// A process.
#[derive(Clone, Debug, Serialize)]
pub struct Process {
    /// Of this run of it.
    pub id: Uuid,
    /// What it does.
    pub roles: Vec<Role>,
    /// Of headcount.
    pub version: String,
    /// Where it runs.
    pub host: String,
    /// Its id there.
    pub pid: u32,
    /// When it began.
    pub started_at: String,
    /// When it was heard last.
    pub seen_at: String,
    /// It counts as gone from then on.
    pub expires_at: String,
    /// Messages that its worker has taken and not settled yet, where it has one.
    pub held: Option<u64>,
    /// Why its worker takes no messages; `None` while it does.
    pub paused: Option<Paused>,
    /// Where it listens, by role.
    pub listeners: BTreeMap<String, String>,
    /// What it does now.
    pub now: Now,
}

/// A worker takes no messages.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Paused {
    /// Since when.
    pub since: Option<String>,
    /// Why.
    pub why: String,
}

/// What the processes that are alive counted, together.
#[derive(Clone, Debug, Serialize)]
pub struct Rates {
    /// The last 60 minutes by the clock, the oldest first; the last one is not over.
    pub minutes: Vec<Minute>,
    /// What happens now.
    pub now: Now,
    /// In milliseconds: what 99 of 100 webhooks did not exceed from receipt to commit, of the last 5 minutes or else of the
    /// hour.
    pub lag_p99_ms: Option<u64>,
    /// The same of the last 5 minutes alone.
    #[serde(skip)]
    pub late_p99_ms: Option<u64>,
}

/// What was counted in a minute.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Minute {
    /// When it began.
    pub at: String,
    /// Webhooks that were accepted.
    pub received: u64,
    /// Requests that were turned away.
    pub rejected: u64,
    /// Events that were committed.
    pub applied: u64,
    /// Messages that were sent to a retry queue.
    pub retried: u64,
    /// Messages that died.
    pub died: u64,
    /// Users that were repaired by what Clerk's API says.
    pub healed: u64,
    /// What 99 of 100 webhooks that were committed in it did not exceed from receipt to commit.
    pub lag_p99_ms: Option<u64>,
}

/// What happens per second, of the last 15 seconds that were told.
#[derive(Clone, Debug, Default, Serialize, PartialEq)]
pub struct Now {
    /// Webhooks that are accepted.
    pub received: f64,
    /// Requests that are turned away.
    pub rejected: f64,
    /// Events that are committed.
    pub applied: f64,
    /// Messages that are sent to a retry queue.
    pub retried: f64,
    /// Messages that die.
    pub died: f64,
    /// Users that are repaired by what Clerk's API says.
    pub healed: f64,
    /// What 99 of 100 webhooks do not exceed from receipt to commit.
    pub lag_p99_ms: Option<u64>,
}

/// Reads who runs.
///
/// # Errors
/// The database does not answer.
pub async fn read(store: &Arc<dyn Store>) -> Result<Processes, StoreError> {
    Ok(Processes::of(&store.processes().await?, now()))
}

impl Processes {
    /// Of these rows.
    pub fn of(rows: &[ProcessRow], now: Millis) -> Self {
        let versions: BTreeSet<&str> = rows.iter().map(|row| row.said.version.as_str()).collect();
        let mut versions: Vec<String> = versions.into_iter().map(str::to_owned).collect();
        versions.sort_by(|a, b| by_release(a, b));
        let mut notices = Vec::new();
        if versions.len() > 1 {
            notices.push(format!(
                "processes of different versions run: {}; that is well during an update; else restart those of the older one",
                versions.join(", ")
            ));
        }
        Self {
            processes: rows.iter().map(Process::of).collect(),
            versions,
            notices,
            rates: Rates::of(rows, now),
        }
    }

    /// The newest version that runs; a process of another one is older.
    pub fn newest(&self) -> Option<&str> {
        self.versions.last().map(String::as_str)
    }

    /// How many of them have a role.
    pub fn count(&self, role: Role) -> usize {
        self.processes.iter().filter(|process| process.roles.contains(&role)).count()
    }

    /// How much of a kind was counted in the last hour.
    pub fn in_the_hour(&self, of: impl Fn(&Minute) -> u64) -> u64 {
        self.rates.minutes.iter().map(of).sum()
    }
}

impl Process {
    fn of(row: &ProcessRow) -> Self {
        let said = &row.said;
        let why = said.paused.clone();
        Self {
            id: said.id,
            roles: said.roles.clone(),
            version: said.version.clone(),
            host: said.host.clone(),
            pid: said.pid,
            started_at: rfc3339(said.started_at),
            seen_at: rfc3339(row.seen_at),
            expires_at: rfc3339(row.expires_at),
            held: said.held,
            paused: why.map(|why| Paused { since: said.paused_since.map(rfc3339), why }),
            listeners: said.listeners.clone(),
            now: Now::of(&latest(row)),
        }
    }
}

/// The older version first, as semantic versioning has it: 0.9.0, 0.10.0-rc.1, 0.10.0. What is no number counts as 0.
fn by_release(a: &str, b: &str) -> Ordering {
    /// Of a pre-release; a number comes before a word.
    #[derive(PartialEq, Eq, PartialOrd, Ord)]
    enum Part<'v> {
        Number(u64),
        Word(&'v str),
    }
    fn precedence(version: &str) -> (Vec<u64>, bool, Vec<Part<'_>>) {
        // Build metadata makes nothing newer.
        let version = version.split_once('+').map_or(version, |(version, _)| version);
        let (release, suffix) =
            version.split_once('-').map_or((version, None), |(release, suffix)| (release, Some(suffix)));
        let numbers = release.split('.').map(|number| number.parse().unwrap_or_default()).collect();
        let part = |part| str::parse(part).map_or(Part::Word(part), Part::Number);
        let parts = suffix.map(|suffix| suffix.split('.').map(part).collect());
        (numbers, suffix.is_none(), parts.unwrap_or_default())
    }
    precedence(a).cmp(&precedence(b)).then_with(|| a.cmp(b))
}

/// What a process did last, by its own clock, so that no other clock matters.
fn latest(row: &ProcessRow) -> Counts {
    match row.read_at.saturating_sub(row.seen_at) < STALE {
        true => row.said.rates.last(NOW_SLOTS),
        false => Counts::default(),
    }
}

impl Rates {
    fn of(rows: &[ProcessRow], now: Millis) -> Self {
        let this = now.div_euclid(MINUTE) * MINUTE;
        let before = |minutes: usize| this - MINUTE * Millis::try_from(minutes).unwrap_or_default();
        let mut minutes: BTreeMap<Millis, Counts> =
            (0..MINUTES).map(|minutes| (before(minutes), Counts::default())).collect();
        let mut latest_of_all = Counts::default();
        for row in rows {
            for (at, counts) in &row.said.rates.minutes {
                if let Some(sum) = minutes.get_mut(at) {
                    sum.add(counts);
                }
            }
            latest_of_all.add(&latest(row));
        }
        let lag = |most: usize| {
            let mut sum = Counts::default();
            minutes.values().rev().take(most).for_each(|counts| sum.add(counts));
            sum.lags.p99()
        };
        let late_p99_ms = lag(LAG_MINUTES);
        let lag_p99_ms = late_p99_ms.or_else(|| lag(MINUTES));
        let minutes = minutes.iter().map(|(at, counts)| Minute::of(*at, counts)).collect();
        Self { minutes, now: Now::of(&latest_of_all), lag_p99_ms, late_p99_ms }
    }
}

impl Minute {
    fn of(at: Millis, counts: &Counts) -> Self {
        Self {
            at: rfc3339(at),
            received: counts.of(Counted::Received),
            rejected: counts.of(Counted::Rejected),
            applied: counts.of(Counted::Applied),
            retried: counts.of(Counted::Retried),
            died: counts.of(Counted::Died),
            healed: counts.of(Counted::Healed),
            lag_p99_ms: counts.lags.p99(),
        }
    }
}

impl Now {
    fn of(counts: &Counts) -> Self {
        let seconds = NOW_SLOTS as f64 * SLOT as f64 / 1000.0;
        // To a tenth.
        let rate = |kind: Counted| (counts.of(kind) as f64 / seconds * 10.0).round() / 10.0;
        Self {
            received: rate(Counted::Received),
            rejected: rate(Counted::Rejected),
            applied: rate(Counted::Applied),
            retried: rate(Counted::Retried),
            died: rate(Counted::Died),
            healed: rate(Counted::Healed),
            lag_p99_ms: counts.lags.p99(),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        store::processes::Said,
        telemetry::rates::{self, Rates as Told},
    };

    pub(crate) const AT: Millis = 1_760_000_040_000;

    pub(crate) fn row(id: u128, roles: &[Role], version: &str, rates: Told) -> ProcessRow {
        let said = Said {
            id: Uuid::from_u128(id),
            roles: roles.to_vec(),
            version: version.into(),
            host: "app-1".into(),
            pid: 7,
            started_at: AT - 60_000,
            told_at: AT,
            held: Some(0),
            paused: None,
            paused_since: None,
            listeners: BTreeMap::new(),
            rates,
        };
        ProcessRow { said, seen_at: AT, expires_at: AT + 30_000, read_at: AT + 1_000 }
    }

    fn some(kind: Counted, number: u64) -> rates::Counts {
        rates::Counts::default().with(kind, number)
    }

    #[test]
    fn counts_are_summed_by_the_minute_and_now_is_what_each_said_last() {
        let ingress = Told {
            until: AT,
            minutes: [(AT - MINUTE, some(Counted::Received, 100)), (AT, some(Counted::Received, 7))].into(),
            slots: [(AT - SLOT, some(Counted::Received, 30)), (AT - 4 * SLOT, some(Counted::Received, 999))]
                .into(),
        };
        // The clock of its host is a bit behind.
        let worker = Told {
            until: AT - 2 * SLOT,
            minutes: [
                (AT - MINUTE, some(Counted::Applied, 90)),
                (AT - 60 * MINUTE, some(Counted::Applied, 5)),
            ]
            .into(),
            slots: [(AT - 3 * SLOT, some(Counted::Applied, 15))].into(),
        };
        let mut quiet = row(3, &[Role::Worker], "0.1.0", worker.clone());
        quiet.read_at = AT + 100_000;
        let rows =
            [row(1, &[Role::Ingress], "0.1.0", ingress), row(2, &[Role::Worker], "0.2.0", worker), quiet];
        let read = Processes::of(&rows, AT + 1_000);
        assert_eq!(read.rates.minutes.len(), 60);
        assert_eq!(read.rates.minutes[59].at, rfc3339(AT));
        let minute = |index: usize| (read.rates.minutes[index].received, read.rates.minutes[index].applied);
        assert_eq!((minute(59), minute(58), minute(0)), ((7, 0), (100, 180), (0, 0)));
        assert_eq!(
            (read.rates.now.received, read.rates.now.applied),
            (2.0, 1.0),
            "the third said it long ago"
        );
        assert_eq!(read.in_the_hour(|minute| minute.received), 107);
        assert_eq!((read.count(Role::Ingress), read.count(Role::Worker), read.count(Role::Api)), (1, 2, 0));
        assert_eq!(read.versions, ["0.1.0", "0.2.0"]);
        assert!(read.notices[0].contains("0.1.0, 0.2.0"));
        assert!(Processes::of(&rows[..1], AT).notices.is_empty());
    }

    #[test]
    fn the_newest_version_is_the_one_of_the_highest_numbers() {
        let sorted =
            ["nonsense", "0.9.0-rc.2", "0.9.0", "0.10.0-rc", "0.10.0-rc.2", "0.10.0-rc.10", "0.10.0"];
        for turned in 0..sorted.len() {
            let mut rows: Vec<ProcessRow> =
                sorted.iter().map(|version| row(1, &[Role::Worker], version, Told::default())).collect();
            rows.rotate_left(turned);
            let read = Processes::of(&rows, AT);
            assert_eq!(read.versions, sorted);
            assert_eq!(read.newest(), Some("0.10.0"));
        }
        assert_eq!(Processes::of(&[], AT).newest(), None);
    }
}
