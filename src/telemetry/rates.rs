//! Owns what a process counts of its own work, for people who have no Prometheus: how much came in, was applied or died in
//! each of the last 60 minutes and in the last slots of 5 seconds, and how long it took from receipt to commit.
//!
//! Promises that counting is one addition, that what many processes counted can be summed, and that counts from another
//! hand are bounded before they are.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
};

use serde::{Deserialize, Serialize};

use crate::time::{Millis, now};

/// A minute, in milliseconds.
pub const MINUTE: Millis = 60_000;
/// A slot of a few seconds, in milliseconds.
pub const SLOT: Millis = 5_000;
/// So many minutes are kept, the one that is not over among them.
pub const MINUTES: usize = 60;
/// So many slots are kept.
pub const SLOTS: usize = 12;
/// The highest count of one slot or minute that is believed.
const COUNT_MAX: u64 = 1_000_000_000;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Webhooks that were accepted.
    Received,
    /// Requests that were turned away.
    Rejected,
    /// Events that were committed.
    Applied,
    /// Messages that were sent to a retry queue.
    Retried,
    /// Messages that died.
    Died,
    /// Users that were repaired by what Clerk's API says.
    Healed,
}

/// How many kinds there are.
const KINDS: usize = 6;

/// Everything since the process began.
static COUNTS: [AtomicU64; KINDS] = [const { AtomicU64::new(0) }; KINDS];
static LAGS: [AtomicU64; LAG_BUCKETS] = [const { AtomicU64::new(0) }; LAG_BUCKETS];
static HELD: AtomicI64 = AtomicI64::new(0);

/// Counts.
pub fn count(what: Counted, number: u64) {
    COUNTS[what as usize].fetch_add(number, Relaxed);
}

/// Counts a webhook that was committed so many milliseconds after it was received.
pub fn lag(millis: Millis) {
    LAGS[bucket(millis)].fetch_add(1, Relaxed);
}

/// So many messages more, or fewer, are in the worker's hands.
pub(super) fn hold(more: i64) {
    HELD.fetch_add(more, Relaxed);
}

/// How many messages the workers of this process have taken and not settled yet.
pub fn held() -> u64 {
    HELD.load(Relaxed).max(0).unsigned_abs()
}

/// Below 8 ms each has a bucket; above, two buckets share the way to the double. The last one takes all beyond 9 days.
const LAG_BUCKETS: usize = 64;

fn bucket(millis: Millis) -> usize {
    let millis = millis.max(0).unsigned_abs();
    if millis < 8 {
        return millis as usize;
    }
    let power = millis.ilog2();
    let upper = (millis >> (power - 1)) & 1;
    (8 + (power as usize - 3) * 2 + upper as usize).min(LAG_BUCKETS - 1)
}

/// The least that falls into a bucket, and how wide it is, in milliseconds.
fn bounds(bucket: usize) -> (u64, u64) {
    if bucket < 8 {
        return (bucket as u64, 1);
    }
    let (power, upper) = ((bucket - 8) / 2 + 3, (bucket as u64) % 2);
    let width = 1 << (power - 1);
    ((2 + upper) * width, width)
}

/// How often each bucket was hit; can be summed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lags(BTreeMap<u8, u64>);

impl Lags {
    /// Adds what another counted.
    pub fn add(&mut self, other: &Self) {
        for (bucket, count) in &other.0 {
            *self.0.entry(*bucket).or_default() += count;
        }
    }

    /// What 99 of 100 did not exceed, in milliseconds, to a third or better; `None` of none.
    pub fn p99(&self) -> Option<u64> {
        let all: u64 = self.0.values().sum();
        let rank = (all * 99).div_ceil(100);
        let mut before = 0;
        for (bucket, count) in &self.0 {
            if before + count >= rank && *count > 0 {
                let (least, width) = bounds(usize::from(*bucket));
                let part = u128::from(width - 1) * u128::from(rank - before);
                return Some(least + u64::try_from(part.div_ceil(u128::from(*count))).unwrap_or(width));
            }
            before += count;
        }
        None
    }
}

/// What was counted in one slot or minute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    counts: [u64; KINDS],
    /// How long the webhooks that were committed then had taken.
    pub lags: Lags,
}

impl Counts {
    /// How many of a kind.
    pub fn of(&self, what: Counted) -> u64 {
        self.counts[what as usize]
    }

    /// Adds what another counted.
    pub fn add(&mut self, other: &Self) {
        for (sum, count) in self.counts.iter_mut().zip(other.counts) {
            *sum += count;
        }
        self.lags.add(&other.lags);
    }

    /// The same, of which so many are of a kind.
    #[must_use]
    pub fn with(mut self, what: Counted, number: u64) -> Self {
        self.counts[what as usize] = number;
        self
    }

    /// The same, of which so many webhooks were committed so late, in milliseconds.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn late(mut self, lag: u64, webhooks: u64) -> Self {
        self.lags.0.insert(bucket(Millis::try_from(lag).unwrap_or(Millis::MAX)) as u8, webhooks);
        self
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Everything that this process has counted.
    fn so_far() -> Self {
        let counts = std::array::from_fn(|kind| COUNTS[kind].load(Relaxed));
        let lags = LAGS.iter().zip(0_u8..).map(|(lag, bucket)| (bucket, lag.load(Relaxed)));
        Self { counts, lags: Lags(lags.filter(|(_, count)| *count > 0).collect()) }
    }

    /// What came since.
    fn since(&self, before: &Self) -> Self {
        let earlier = |bucket: &u8| before.lags.0.get(bucket).copied().unwrap_or_default();
        let lags = self.lags.0.iter().map(|(bucket, count)| (*bucket, count.saturating_sub(earlier(bucket))));
        Self {
            counts: std::array::from_fn(|kind| self.counts[kind].saturating_sub(before.counts[kind])),
            lags: Lags(lags.filter(|(_, count)| *count > 0).collect()),
        }
    }

    /// `time, counts…, bucket, hits, bucket, hits…`; without buckets it ends with the last count that is not 0.
    fn packed(&self, time: u64) -> Vec<u64> {
        let mut packed = vec![time];
        packed.extend(self.counts);
        packed.extend(self.lags.0.iter().flat_map(|(bucket, hits)| [u64::from(*bucket), *hits]));
        while self.lags.0.is_empty() && packed.len() > 1 && packed.last() == Some(&0) {
            packed.pop();
        }
        packed
    }

    fn unpacked(packed: &[u64]) -> Option<(u64, Self)> {
        let (time, rest) = packed.split_first()?;
        let (counts, lags) = rest.split_at(rest.len().min(KINDS));
        let counts = std::array::from_fn(|kind| counts.get(kind).copied().unwrap_or_default().min(COUNT_MAX));
        let lags = lags.chunks_exact(2).take(LAG_BUCKETS).filter_map(|pair| {
            let bucket = u8::try_from(pair[0]).ok().filter(|bucket| usize::from(*bucket) < LAG_BUCKETS)?;
            Some((bucket, pair[1].min(COUNT_MAX)))
        });
        Some((*time, Self { counts, lags: Lags(lags.collect()) }))
    }
}

/// What a process counted lately: of each minute and slot in which there was something, by when it began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// When the last slot ended, by the clock of the process.
    pub until: Millis,
    /// The last [`MINUTES`].
    pub minutes: BTreeMap<Millis, Counts>,
    /// The last [`SLOTS`].
    pub slots: BTreeMap<Millis, Counts>,
}

/// [`Rates`] on their way, as lists of numbers.
#[derive(Default, Serialize, Deserialize)]
struct Packed {
    /// In slots since the epoch.
    until: u64,
    minutes: Vec<Vec<u64>>,
    slots: Vec<Vec<u64>>,
}

impl Rates {
    /// As JSON: some kilobytes at most of a worker, less of an ingress.
    pub fn to_json(&self) -> String {
        let packed = |all: &BTreeMap<Millis, Counts>, unit: Millis| {
            all.iter().map(|(at, counts)| counts.packed((at / unit).unsigned_abs())).collect()
        };
        let packed = Packed {
            until: (self.until / SLOT).unsigned_abs(),
            minutes: packed(&self.minutes, MINUTE),
            slots: packed(&self.slots, SLOT),
        };
        // Numbers only: this cannot fail.
        serde_json::to_string(&packed).unwrap_or_default()
    }

    /// Reads what another process, or another hand, wrote. What cannot be read is nothing, and what is out of bounds is cut.
    pub fn of_json(json: &str) -> Self {
        let Ok(packed) = serde_json::from_str::<Packed>(json) else { return Self::default() };
        let latest = now() + MINUTE * 5;
        let read = |lists: &[Vec<u64>], unit: Millis, most: usize| {
            let all = lists.iter().rev().take(most).filter_map(|list| {
                let (time, counts) = Counts::unpacked(list)?;
                let at = Millis::try_from(time).ok()?.checked_mul(unit)?;
                (at <= latest).then_some((at, counts))
            });
            all.collect()
        };
        let until = Millis::try_from(packed.until).ok().and_then(|until| until.checked_mul(SLOT));
        Self {
            until: until.filter(|until| *until <= latest).unwrap_or_default(),
            minutes: read(&packed.minutes, MINUTE, MINUTES),
            slots: read(&packed.slots, SLOT, SLOTS),
        }
    }

    /// What was counted in the last so many slots.
    pub fn last(&self, slots: usize) -> Counts {
        let from = self.until - SLOT * Millis::try_from(slots).unwrap_or(Millis::MAX / SLOT);
        let mut sum = Counts::default();
        self.slots.range(from..).for_each(|(_, counts)| sum.add(counts));
        sum
    }
}

/// Sorts what the process counts into minutes and slots.
#[derive(Debug)]
pub struct Ring {
    before: Counts,
    until: Millis,
    minutes: VecDeque<(Millis, Counts)>,
    slots: VecDeque<(Millis, Counts)>,
}

impl Ring {
    /// Begins with all that the process has counted so far, as of this time.
    pub fn new(now: Millis) -> Self {
        let mut ring =
            Self { before: Counts::default(), until: 0, minutes: VecDeque::new(), slots: VecDeque::new() };
        ring.turn(now);
        ring
    }

    /// Puts what was counted since the last turn into the slot that ends about now.
    pub fn turn(&mut self, now: Millis) {
        let so_far = Counts::so_far();
        let news = so_far.since(&self.before);
        self.before = so_far;
        self.put(news, now);
    }

    fn put(&mut self, news: Counts, now: Millis) {
        // A turn comes a moment after the slot's end.
        let slot = (now - SLOT / 2).div_euclid(SLOT) * SLOT;
        self.until = slot + SLOT;
        put(&mut self.slots, slot, &news, SLOT, SLOTS);
        put(&mut self.minutes, slot.div_euclid(MINUTE) * MINUTE, &news, MINUTE, MINUTES);
    }

    /// What is to be told.
    pub fn rates(&self) -> Rates {
        Rates {
            until: self.until,
            minutes: self.minutes.iter().cloned().collect(),
            slots: self.slots.iter().cloned().collect(),
        }
    }
}

fn put(all: &mut VecDeque<(Millis, Counts)>, at: Millis, news: &Counts, unit: Millis, most: usize) {
    let oldest = at - unit * (Millis::try_from(most).unwrap_or(Millis::MAX / unit) - 1);
    // A clock that was put back leaves nothing in the future.
    all.retain(|(known, _)| (oldest..=at).contains(known));
    match all.back_mut() {
        Some((known, counts)) if *known == at => counts.add(news),
        _ if news.is_empty() => {}
        _ => all.push_back((at, news.clone())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: Millis = 1_760_000_040_000;

    fn lags(all: &[Millis]) -> Lags {
        let mut lags = Lags::default();
        all.iter().for_each(|millis| *lags.0.entry(bucket(*millis) as u8).or_default() += 1);
        lags
    }

    #[test]
    fn each_time_has_one_bucket_and_a_p99_is_near_the_truth() {
        for millis in (0..5_000).chain([1 << 20, 1 << 29]) {
            let (least, width) = bounds(bucket(millis));
            let millis = millis.unsigned_abs();
            assert!((least..least + width).contains(&millis), "{millis}: {least}, {width}");
        }
        assert_eq!((bucket(-5), bucket(i64::MAX)), (0, LAG_BUCKETS - 1));
        assert_eq!(Lags::default().p99(), None);
        assert_eq!(lags(&[7]).p99(), Some(7));
        let mut all = vec![3; 990];
        all.extend([900; 10]);
        assert_eq!(lags(&all).p99(), Some(3));
        all.push(900);
        let p99 = lags(&all).p99().unwrap();
        assert!((768..1024).contains(&p99), "{p99}");
        // What two processes counted, summed.
        let mut sum = lags(&[1; 50]);
        sum.add(&lags(&[2000; 50]));
        assert!((1500..2048).contains(&sum.p99().unwrap()));
    }

    #[test]
    fn what_is_counted_comes_into_the_slot_that_has_just_ended() {
        let mut ring = Ring { before: Counts::default(), until: 0, minutes: [].into(), slots: [].into() };
        let some = |number| Counts::default().with(Counted::Applied, number);
        // The turn at the full minute is about its last five seconds.
        ring.put(some(7), AT + 20);
        let rates = ring.rates();
        assert_eq!(rates.until, AT);
        assert_eq!(rates.slots, [(AT - SLOT, some(7))].into());
        assert_eq!(rates.minutes, [(AT - MINUTE, some(7))].into());
        ring.put(some(3), AT + SLOT + 20);
        ring.put(some(2), AT + 2 * SLOT + 20);
        let rates = ring.rates();
        assert_eq!(rates.minutes, [(AT - MINUTE, some(7)), (AT, some(5))].into());
        assert_eq!((rates.last(2).of(Counted::Applied), rates.last(3).of(Counted::Applied)), (5, 12));
        // An hour later only what is of that hour is left; nothing is kept of slots in which nothing was.
        ring.put(some(0), AT + 60 * MINUTE + 20);
        let rates = ring.rates();
        assert_eq!((rates.slots.len(), rates.minutes), (0, [(AT, some(5))].into()));
        // A clock that is put back.
        ring.put(some(1), AT - 10 * MINUTE);
        assert_eq!(ring.rates().minutes.len(), 1);
    }

    #[test]
    fn what_the_process_counts_is_in_its_ring() {
        let mut ring = Ring::new(AT);
        count(Counted::Died, 3);
        lag(12);
        ring.turn(AT + SLOT);
        let last = ring.rates().last(1);
        assert!(last.of(Counted::Died) >= 3 && last.lags.p99().is_some());
    }

    #[test]
    fn rates_travel_and_foreign_ones_are_bounded() {
        let mut minute = Counts::default().with(Counted::Received, 5).with(Counted::Healed, 1);
        minute.lags = lags(&[1, 1, 400]);
        let at = now() / MINUTE * MINUTE;
        let rates = Rates {
            until: at,
            minutes: [(at - MINUTE, minute.clone()), (at, Counts::default().with(Counted::Received, 1))]
                .into(),
            slots: [(at - SLOT, minute)].into(),
        };
        assert_eq!(Rates::of_json(&rates.to_json()), rates);
        for nothing in ["", "[]", "{}", "no", r#"{"until":-1,"minutes":[],"slots":[]}"#] {
            assert_eq!(Rates::of_json(nothing), Rates::default(), "{nothing}");
        }
        let hostile = format!(
            r#"{{"until":{max},"minutes":[[],[{max},1],[1,{max},1,1,1,1,1,{max},1,5,{max},63,2,64,2]],"slots":{slots}}}"#,
            max = u64::MAX,
            slots = serde_json::to_string(&(0..1000).map(|at| vec![at, 1]).collect::<Vec<_>>()).unwrap(),
        );
        let read = Rates::of_json(&hostile);
        assert_eq!((read.until, read.slots.len(), read.minutes.len()), (0, SLOTS, 1));
        let minute = &read.minutes[&MINUTE];
        assert_eq!(minute.of(Counted::Received), COUNT_MAX);
        assert_eq!(minute.lags.0, [(5, COUNT_MAX), (63, 2)].into());
    }

    proptest! {
        #[test]
        fn no_foreign_rates_break_a_reader(lists in prop::collection::vec(prop::collection::vec(any::<u64>(), 0..20), 0..80), until in any::<u64>()) {
            let json = serde_json::to_string(&Packed { until, minutes: lists.clone(), slots: lists }).unwrap();
            let (read, mut sum) = (Rates::of_json(&json), Counts::default());
            for _ in 0..1000 {
                read.minutes.values().for_each(|counts| sum.add(counts));
            }
            sum.lags.p99();
            read.last(SLOTS);
        }
    }
}
