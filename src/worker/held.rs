//! Owns what a worker holds and has not begun to try, and which of it is tried next: fresh deliveries together, what
//! failed before alone, what came back unsettled alone and in random order. Pure. Never tries or settles a message.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use rand::{
    Rng,
    seq::{IteratorRandom, SliceRandom},
};

use super::blame::Moment;
use crate::{
    queue::{Delivery, Subscription},
    telemetry::metrics::Holding,
};

/// Batches of one worker in their transactions at a time.
pub(super) const BATCHES: usize = 4;
/// Messages of one worker that are tried alone at a time.
const SINGLY: usize = 10;
/// Those of them that failed alone before, or are of an account that hangs. Each may hang as long as a statement may, and is to
/// leave room for others.
const FAILED: usize = 4;
/// Those of them that came back unsettled.
const RETURNING: usize = 3;
/// Transactions of one worker at a time. Each has a connection of its own, so that none waits for one that hangs.
pub const TRANSACTIONS: u32 = (BATCHES + SINGLY) as u32;
/// Bodies in one batch, in bytes; a single message may exceed it. A batch is held several times over while it is saved.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// A batch of so many, or of more than half the limit, says that messages come fast. A batch costs about as much as so many.
const RUSH: usize = 20;
/// How long a message that has come back waits for its neighbours, for each time but the first that it came back, ...
const GRACE: Duration = Duration::from_millis(100);
/// ... and for how many of them.
const GRACES: u32 = 20;

/// A delivery in this worker's hands.
pub(super) struct Held {
    pub(super) delivery: Delivery,
    /// Delivered it, and takes its settlement.
    pub(super) subscription: Arc<dyn Subscription>,
    /// Since when it waits to be tried.
    pub(super) since: Moment,
    pub(super) holding: Holding,
    /// When a transaction that it was part of failed for the first time.
    pub(super) failed_together: Option<Moment>,
    /// Its account, where that is known to hang.
    hanging: Option<String>,
}

impl Held {
    pub(super) fn new(delivery: Delivery, subscription: &Arc<dyn Subscription>, since: Moment) -> Self {
        let (subscription, holding) = (Arc::clone(subscription), Holding::begin());
        Self { delivery, subscription, since, holding, failed_together: None, hanging: None }
    }

    /// Whether the queue has not taken it back.
    pub(super) fn is_ours(&self) -> bool {
        self.subscription.holds(self.delivery.receipt)
    }

    /// It failed by itself before, here or elsewhere: it is on the ladder.
    pub(super) fn is_convicted(&self) -> bool {
        self.delivery.message.attempt > 0
    }

    pub(super) fn id(&self) -> &str {
        self.delivery.message.id.as_str()
    }
}

/// How many batches and messages are in transactions at present.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trying {
    pub(super) batches: usize,
    pub(super) returning: usize,
    pub(super) alone: usize,
    pub(super) failed: usize,
}

impl Trying {
    pub(super) fn is_nothing(self) -> bool {
        self.batches == 0 && self.singly() == 0
    }

    fn singly(self) -> usize {
        self.returning + self.alone + self.failed
    }

    fn is_full(self) -> bool {
        self.singly() >= SINGLY
    }
}

/// What waits to be tried.
#[derive(Default)]
pub(super) struct Pile {
    /// First deliveries, in the order of arrival.
    fresh: VecDeque<Held>,
    /// Came back unsettled: each may have killed its worker.
    returned: Vec<Held>,
    /// Left over from batches that failed.
    alone: VecDeque<Held>,
    /// Failed alone before, here or on the ladder, or is of an account that hangs; who waits longest first.
    failed: VecDeque<Held>,
    /// A message that has come back again and again is being tried: nothing else that came back is tried beside it.
    careful: bool,
    /// Messages came fast until now, and batches fill until this moment though no other is tried.
    rush_until: Moment,
}

impl Pile {
    pub(super) fn len(&self) -> usize {
        self.fresh.len() + self.returned.len() + self.alone.len() + self.failed.len()
    }

    /// Adds what was received.
    pub(super) fn add(&mut self, held: Held) {
        if held.delivery.earlier > 0 {
            self.returned.push(held);
        } else if held.is_convicted() {
            self.failed.push_back(held);
        } else {
            self.fresh.push_back(held);
        }
    }

    /// Puts back what could not be tried, before all that came after it.
    pub(super) fn put_back(&mut self, held: Vec<Held>) {
        for held in held.into_iter().rev() {
            if held.delivery.earlier > 0 {
                self.returned.push(held);
            } else if held.is_convicted() {
                self.failed.push_front(held);
            } else {
                self.fresh.push_front(held);
            }
        }
    }

    /// Adds what is left over from a batch, and is to be tried alone, in random order: those that hang may all be the first.
    pub(super) fn add_alone(&mut self, mut held: Vec<Held>, random: &mut impl Rng) {
        held.shuffle(random);
        self.alone.extend(held);
    }

    /// Adds what failed alone and is to be tried again.
    pub(super) fn add_failed(&mut self, held: Held, now: Moment) {
        self.failed.push_back(Held { since: now, ..held });
    }

    /// Adds what is of an account that hangs. Answers it where there is no room: a few of such accounts wait at a time, and one
    /// message of each, since more of them would tell no more.
    pub(super) fn add_hanging(&mut self, held: Held, account: String, now: Moment) -> Option<Held> {
        let waiting = || self.failed.iter().filter_map(|held| held.hanging.as_ref());
        if waiting().count() >= FAILED || waiting().any(|other| *other == account) {
            return Some(held);
        }
        self.add_failed(Held { hanging: Some(account), ..held }, now);
        None
    }

    pub(super) fn drain(&mut self) -> Vec<Held> {
        let fresh = self.fresh.drain(..).chain(self.returned.drain(..));
        fresh.chain(self.alone.drain(..)).chain(self.failed.drain(..)).collect()
    }

    /// Drops what the queue has taken back.
    pub(super) fn drop_what_is_not_ours(&mut self) {
        self.fresh.retain(Held::is_ours);
        self.returned.retain(Held::is_ours);
        self.alone.retain(Held::is_ours);
        self.failed.retain(Held::is_ours);
    }

    /// Any one: those that may hang late, and those that came back last.
    pub(super) fn next_of_any(&mut self) -> Option<Held> {
        let next = self.alone.pop_front().or_else(|| self.fresh.pop_front());
        next.or_else(|| self.failed.pop_front()).or_else(|| self.returned.pop())
    }

    /// The next that is left over and tried alone, if there is room for it.
    pub(super) fn next_alone(&mut self, trying: Trying) -> Option<Held> {
        if trying.is_full() { None } else { self.alone.pop_front() }
    }

    /// The next that failed alone or may hang, if there is room for a try of it.
    pub(super) fn next_failed(&mut self, trying: Trying) -> Option<Held> {
        if trying.failed >= FAILED || trying.is_full() { None } else { self.failed.pop_front() }
    }

    /// The next that failed alone or may hang, and has waited so long for a try that it takes room from the others.
    pub(super) fn next_in_the_way(&mut self, now: Moment, patience: Duration) -> Option<Held> {
        let waits = |held: &Held| now.saturating_sub(held.since) >= patience;
        if self.failed.front().is_some_and(waits) { self.failed.pop_front() } else { None }
    }

    /// Any of those that came back. A connection that is lost gives many back, so some are tried at a time. A message that
    /// has come back again may kill this worker too: it is tried after the others, with nothing else that came back beside
    /// it, and its neighbours get some time first in each life of a worker. `age` is that of the
    /// subscription.
    pub(super) fn next_returned(
        &mut self,
        trying: Trying,
        age: Duration,
        random: &mut impl Rng,
    ) -> Option<Held> {
        self.careful &= trying.returning > 0;
        if self.careful || trying.returning >= RETURNING || trying.is_full() {
            return None;
        }
        let returns = |any: &usize| self.returned[*any].delivery.earlier;
        let any = (0..self.returned.len()).filter(|any| returns(any) <= 1).choose(random);
        let any = any.or_else(|| (0..self.returned.len()).choose(random))?;
        let again = returns(&any).saturating_sub(1);
        if again > 0 {
            let has_no_neighbours = trying.batches == 0 && self.len() == self.returned.len();
            let has_waited = has_no_neighbours || age >= GRACE * again.min(GRACES);
            if !has_waited || trying.returning > 0 {
                return None;
            }
            self.careful = true;
        }
        Some(self.returned.swap_remove(any))
    }

    /// The next batch, if one is due and there is room for it. A lone message goes at once; while others are in their
    /// transactions, or come fast, batches fill up to `limit` for as long as `wait`.
    pub(super) fn next_batch(
        &mut self,
        trying: Trying,
        (limit, wait): (usize, Duration),
        (now, stopping): (Moment, bool),
    ) -> Option<Vec<Held>> {
        let oldest = self.fresh.front()?;
        let is_due = (trying.batches == 0 && now >= self.rush_until)
            || stopping
            || self.fresh.len() >= limit
            || now.saturating_sub(oldest.since) >= wait;
        if trying.batches >= BATCHES || !is_due {
            return None;
        }
        let mut bytes = 0;
        let within = self.fresh.iter().take(limit).take_while(|held| {
            bytes += held.delivery.message.body.len();
            bytes <= BATCH_BYTES
        });
        let count = within.count().max(1).min(self.fresh.len());
        if count >= RUSH.min(limit / 2 + 1) {
            self.rush_until = now + wait;
        }
        Some(self.fresh.drain(..count).collect())
    }

    /// How long until a batch is due that is not full; `None` where nothing waits or there is no room for a batch.
    pub(super) fn batch_due_in(&self, trying: Trying, wait: Duration, now: Moment) -> Option<Duration> {
        let oldest = self.fresh.front()?;
        (trying.batches < BATCHES).then(|| wait.saturating_sub(now.saturating_sub(oldest.since)))
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{
        message::{Message, MessageId, Origin},
        queue::{Receipt, Settlement},
    };

    /// A subscription that nobody asks for anything.
    struct Nowhere;

    #[async_trait]
    impl Subscription for Nowhere {
        async fn next(&self) -> Option<Delivery> {
            None
        }
        async fn settle(&self, _: Vec<Settlement>) {}
        fn widen(&self, _: u16) {}
        fn holds(&self, receipt: Receipt) -> bool {
            receipt.tag > 0
        }
        async fn cancel(&self) {}
        fn trouble(&self) -> Option<String> {
            None
        }
    }

    fn held(id: &str, earlier: u32, attempt: u32) -> Held {
        sized(id, earlier, attempt, 2)
    }

    fn sized(id: &str, earlier: u32, attempt: u32, bytes: usize) -> Held {
        let message = Message {
            id: MessageId::parse(id).unwrap(),
            origin: Origin::Webhook,
            event_type: "user.created".into(),
            received_at: 0,
            attempt,
            waits: 0,
            round: 0,
            traceparent: None,
            body: vec![b' '; bytes].into(),
        };
        let receipt = Receipt { generation: 1, tag: 1 };
        let subscription: Arc<dyn Subscription> = Arc::new(Nowhere);
        Held::new(Delivery { message, earlier, receipt, death: None }, &subscription, Duration::ZERO)
    }

    fn pile(all: impl IntoIterator<Item = Held>) -> Pile {
        let mut pile = Pile::default();
        all.into_iter().for_each(|held| pile.add(held));
        pile
    }

    fn ids(batch: Option<Vec<Held>>) -> Vec<String> {
        batch.into_iter().flatten().map(|held| held.id().to_owned()).collect()
    }

    const WAIT: Duration = Duration::from_millis(10);
    const BUSY: Trying = Trying { batches: 1, returning: 0, alone: 0, failed: 0 };

    #[test]
    fn a_lone_message_goes_at_once_and_batches_fill_while_others_are_tried() {
        let three = || pile(["a", "b", "c"].map(|id| held(id, 0, 0)));
        let next = |pile: &mut Pile, trying, limit, now: u64, stopping| {
            ids(pile.next_batch(trying, (limit, WAIT), (Duration::from_millis(now), stopping)))
        };
        assert_eq!(next(&mut three(), Trying::default(), 10, 0, false), ["a", "b", "c"]);
        assert!(next(&mut three(), BUSY, 10, 9, false).is_empty(), "it fills");
        assert_eq!(three().batch_due_in(BUSY, WAIT, Duration::from_millis(9)), Some(WAIT / 10));
        assert_eq!(next(&mut three(), BUSY, 10, 10, false).len(), 3, "it has waited");
        assert_eq!(next(&mut three(), BUSY, 10, 0, true).len(), 3, "nothing more comes");
        let mut full = three();
        assert_eq!(next(&mut full, BUSY, 2, 0, false), ["a", "b"]);
        assert_eq!(ids(Some(full.drain())), ["c"]);
        let all = Trying { batches: BATCHES, ..BUSY };
        assert!(next(&mut three(), all, 2, 100, true).is_empty());
        assert_eq!(three().batch_due_in(all, WAIT, WAIT), None);
    }

    #[test]
    fn while_messages_come_fast_a_batch_fills_though_no_other_is_tried() {
        let many = |count: usize| (0..count).map(|n| held(&format!("m{n}"), 0, 0));
        let mut pile = pile(many(RUSH));
        let next = |pile: &mut Pile, now: u64| {
            ids(pile.next_batch(Trying::default(), (200, WAIT), (Duration::from_millis(now), false))).len()
        };
        assert_eq!(next(&mut pile, 0), RUSH);
        many(3).for_each(|held| pile.add(held));
        assert_eq!(next(&mut pile, 9), 0, "it fills");
        assert_eq!(pile.batch_due_in(Trying::default(), WAIT, Duration::from_millis(9)), Some(WAIT / 10));
        assert_eq!(next(&mut pile, 10), 3, "it has waited");
        many(1).for_each(|held| pile.add(held));
        assert_eq!(next(&mut pile, 11), 1, "they do not come fast any more");
        many(RUSH).for_each(|held| pile.add(held));
        assert_eq!(next(&mut pile, 20), RUSH);
        let later = Duration::from_millis(5_000);
        many(1).for_each(|held| pile.add(Held { since: later, ..held }));
        assert_eq!(next(&mut pile, 5_000), 1, "the rush was long ago");
    }

    #[test]
    fn a_batch_holds_no_more_bytes_than_it_may_unless_a_single_body_does() {
        let sizes = [BATCH_BYTES / 2, BATCH_BYTES / 2, 1, BATCH_BYTES + 1, 1];
        let mut pile = pile(sizes.iter().enumerate().map(|(n, bytes)| sized(&format!("m{n}"), 0, 0, *bytes)));
        let mut batches = Vec::new();
        while let Some(batch) = pile.next_batch(Trying::default(), (10, WAIT), (WAIT, false)) {
            batches.push(ids(Some(batch)));
        }
        assert_eq!(batches, [vec!["m0", "m1"], vec!["m2"], vec!["m3"], vec!["m4"]]);
    }

    #[test]
    fn in_a_pause_what_may_hang_is_tried_late_and_what_came_back_last() {
        let mut pile = pile([held("back", 1, 0), held("failed", 0, 1), held("fresh", 0, 0)]);
        pile.add_alone(vec![held("alone", 0, 0)], &mut StdRng::seed_from_u64(1));
        let order = std::iter::from_fn(|| pile.next_of_any());
        assert_eq!(ids(Some(order.collect())), ["alone", "fresh", "failed", "back"]);
    }

    #[test]
    fn more_than_a_few_of_accounts_that_hang_find_no_room() {
        // What failed before takes no room from them.
        let mut pile = pile((0..9).map(|n| held(&format!("failed{n}"), 0, 1)));
        let mut add = |id: &str, account: &str| pile.add_hanging(held(id, 0, 0), account.to_owned(), WAIT);
        assert!(add("a", "account 0").is_none());
        assert_eq!(ids(add("b", "account 0").map(|held| vec![held])), ["b"]);
        let no_room = (1..FAILED + 2).filter_map(|n| add(&format!("h{n}"), &format!("account {n}")));
        assert_eq!(ids(Some(no_room.collect())), ["h4", "h5"]);
        assert_eq!(pile.len(), 9 + FAILED);
    }

    #[test]
    fn what_could_not_be_tried_goes_back_before_what_came_later() {
        let mut pile = pile([held("f2", 0, 0), held("a2", 0, 1)]);
        pile.put_back(vec![held("f0", 0, 0), held("f1", 0, 0), held("a1", 0, 1), held("r", 1, 0)]);
        assert_eq!(ids(pile.next_batch(Trying::default(), (10, WAIT), (WAIT, false))), ["f0", "f1", "f2"]);
        assert_eq!(ids(pile.next_failed(Trying::default()).map(|held| vec![held])), ["a1"]);
        assert_eq!(ids(Some(pile.drain())), ["r", "a2"]);
    }

    #[test]
    fn who_failed_before_takes_no_room_from_others_and_does_not_wait_for_long() {
        let mut pile = pile((0..6).map(|n| held(&format!("failed{n}"), 0, 1)));
        pile.add_alone(vec![held("leftover", 0, 0)], &mut StdRng::seed_from_u64(1));
        let mut trying = Trying::default();
        while pile.next_failed(trying).is_some() {
            trying.failed += 1;
        }
        assert_eq!(trying.failed, FAILED);
        assert_eq!(ids(pile.next_alone(trying).map(|held| vec![held])), ["leftover"]);

        let again = pile.next_in_the_way(WAIT, WAIT).unwrap();
        assert_eq!(again.id(), "failed4");
        pile.add_failed(again, WAIT);
        let in_the_way = std::iter::from_fn(|| pile.next_in_the_way(WAIT, WAIT));
        assert_eq!(ids(Some(in_the_way.collect())), ["failed5"], "the other one waits anew");
        assert!(pile.next_in_the_way(WAIT * 2, WAIT).is_some());
    }

    #[test]
    fn what_came_back_once_is_tried_some_at_a_time_and_in_random_order() {
        let mut orders = std::collections::BTreeSet::new();
        for seed in 0..20 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut pile = pile((0..6).map(|n| held(&format!("r{n}"), 1, 0)));
            let mut order = Vec::new();
            for returning in 0..6 {
                let trying = Trying { returning, ..BUSY };
                order.extend(ids(pile
                    .next_returned(trying, Duration::ZERO, &mut random)
                    .map(|one| vec![one])));
            }
            assert_eq!(order.len(), RETURNING);
            orders.insert(order);
        }
        assert!(orders.len() > 10, "{orders:?}");
    }

    #[test]
    fn what_came_back_again_waits_for_its_neighbours_and_is_tried_alone() {
        let mut random = StdRng::seed_from_u64(1);
        let mut next = |pile: &mut Pile, trying, age| {
            ids(pile.next_returned(trying, age, &mut random).map(|one| vec![one]))
        };
        let mut pile = pile([held("killer", 5, 0), held("once", 1, 0), held("fresh", 0, 0)]);
        assert_eq!(next(&mut pile, Trying::default(), Duration::ZERO), ["once"]);
        let one = Trying { returning: 1, ..Trying::default() };
        assert!(next(&mut pile, one, Duration::MAX).is_empty(), "one that came back is under way");
        assert!(next(&mut pile, BUSY, GRACE * 3).is_empty(), "neighbours are under way");
        assert!(next(&mut pile, Trying::default(), GRACE * 3).is_empty(), "a neighbour is there");
        assert_eq!(next(&mut pile, Trying::default(), GRACE * 4), ["killer"]);
        pile.add(held("later", 1, 0));
        assert!(next(&mut pile, one, Duration::MAX).is_empty(), "nothing is tried beside it");
        assert_eq!(next(&mut pile, Trying::default(), Duration::ZERO), ["later"]);

        let mut alone = Pile::default();
        alone.add(held("killer", 50, 0));
        assert_eq!(
            next(&mut alone, Trying::default(), Duration::ZERO),
            ["killer"],
            "nobody is to be waited for"
        );
    }
}
