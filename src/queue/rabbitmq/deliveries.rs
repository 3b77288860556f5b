//! Owns the deliveries of a subscription's connection: those that wait for a call of `next`, those that are not acked, and
//! the acks that tell the broker of settled ones. A connection's life is a generation.
//! Promises never to hand over or ack a delivery of an earlier generation, which the broker has taken back; and that a
//! multiple-ack never passes the lowest unsettled tag. Never connects.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::future::try_join_all;
use lapin::{Channel, options::BasicAckOptions};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use crate::{
    queue::{Delivery, Receipt},
    stop::until,
};

/// How long writing an ack may take before the connection counts as stuck.
const ACK_LIMIT: Duration = Duration::from_secs(5);
/// How long a settled delivery waits for older ones, to be acked together with them.
const PATIENCE: Duration = Duration::from_millis(1);

/// The deliveries of the present generation.
pub(super) struct Deliveries {
    /// 0 while there is no connection.
    generation: watch::Sender<u64>,
    life: Mutex<Option<Life>>,
    waiting: Mutex<Waiting>,
    arrived: Notify,
    /// The broker sends no more.
    over: watch::Sender<bool>,
    /// Acks leave in the order in which they were decided, one settling at a time: a multiple-ack that overtook another
    /// ack would settle it twice, and the broker closes the channel over that.
    telling: tokio::sync::Mutex<()>,
    /// Changes with each time that the broker was told.
    told: watch::Sender<()>,
    /// The generation whose connection takes no acks.
    stuck: watch::Sender<u64>,
}

/// A connection's life.
struct Life {
    generation: u64,
    channel: Channel,
    unsettled: Unsettled,
}

/// Deliveries that wait for a call of `next`: at most the prefetch.
#[derive(Default)]
struct Waiting {
    deliveries: VecDeque<Delivery>,
    /// There will be no more.
    over: bool,
}

impl Deliveries {
    pub(super) fn new() -> Self {
        Self {
            generation: watch::Sender::new(0),
            life: Mutex::default(),
            waiting: Mutex::default(),
            arrived: Notify::new(),
            over: watch::Sender::new(false),
            telling: tokio::sync::Mutex::default(),
            told: watch::Sender::new(()),
            stuck: watch::Sender::new(0),
        }
    }

    /// A connection begins to consume over this channel. Returns its generation.
    pub(super) fn begin(&self, channel: Channel) -> u64 {
        static GENERATIONS: AtomicU64 = AtomicU64::new(1);
        let generation = GENERATIONS.fetch_add(1, SeqCst);
        *self.life() = Some(Life { generation, channel, unsettled: Unsettled::of(generation) });
        self.generation.send_replace(generation);
        generation
    }

    /// It is over: the broker delivers again what was delivered in it.
    pub(super) fn end(&self) {
        self.generation.send_replace(0);
        *self.life() = None;
        self.waiting().deliveries.clear();
    }

    /// Deliveries of this generation have arrived.
    pub(super) fn hand_over(&self, generation: u64, arrived: Vec<Delivery>) {
        match &mut *self.life() {
            Some(life) if life.generation == generation => {
                arrived.iter().for_each(|delivery| life.unsettled.delivered(delivery.receipt.tag));
                self.waiting().deliveries.extend(arrived);
            }
            // Their connection was let go meanwhile.
            Some(_) | None => return,
        }
        self.arrived.notify_waiters();
    }

    /// The broker sends no more, and all that it sent has arrived.
    pub(super) fn no_more(&self) {
        self.waiting().over = true;
        self.arrived.notify_waiters();
        self.over.send_replace(true);
    }

    /// Returns once the broker sends no more.
    pub(super) async fn over(&self) {
        until(&self.over.subscribe(), |over| *over).await;
    }

    /// The next delivery; waits for one. `None` where there will be no more.
    pub(super) async fn next(&self) -> Option<Delivery> {
        let arrived = self.arrived.notified();
        tokio::pin!(arrived);
        loop {
            arrived.as_mut().enable();
            {
                let mut waiting = self.waiting();
                if let Some(delivery) = waiting.deliveries.pop_front() {
                    return Some(delivery);
                }
                if waiting.over {
                    return None;
                }
            }
            arrived.as_mut().await;
            arrived.set(self.arrived.notified());
        }
    }

    /// What is here already.
    pub(super) fn ready(&self) -> Vec<Delivery> {
        self.waiting().deliveries.drain(..).collect()
    }

    /// Whether a delivery of this receipt can be settled.
    pub(super) fn holds(&self, receipt: Receipt) -> bool {
        receipt.generation == *self.generation.borrow()
    }

    /// How many deliveries of this generation are not settled.
    fn open(&self, generation: u64) -> usize {
        let life = self.life();
        life.as_ref().filter(|life| life.generation == generation).map_or(0, |life| life.unsettled.open.len())
    }

    /// Waits until all that was delivered in this generation is settled, for so long at most. Returns how many are not.
    pub(super) async fn all_settled(&self, generation: u64, limit: Duration) -> usize {
        let _ = timeout(limit, until(&self.told.subscribe(), |()| self.open(generation) == 0)).await;
        self.open(generation)
    }

    /// Returns once a delivery of this receipt cannot be settled any more.
    pub(super) async fn taken_back(&self, receipt: Receipt) {
        until(&self.generation.subscribe(), |generation| *generation != receipt.generation).await;
    }

    /// Returns once the connection of this generation has shown that it takes no acks.
    pub(super) async fn is_stuck(&self, generation: u64) {
        until(&self.stuck.subscribe(), |stuck| *stuck == generation).await;
    }

    /// Tells the broker of settled deliveries, as far as they belong to the present generation. One ack does for all up to
    /// the oldest that is still unsettled; those after it wait for up to [`PATIENCE`] that it is settled too.
    pub(super) async fn ack(&self, receipts: &[Receipt]) {
        if receipts.is_empty() {
            return;
        }
        self.tell(|unsettled| {
            unsettled.settle(receipts);
            unsettled.acks_in_a_row()
        })
        .await;
        let waits = || self.life().as_ref().is_some_and(|life| life.unsettled.waits(receipts));
        if waits() {
            let told = timeout(PATIENCE, until(&self.told.subscribe(), |()| !waits())).await;
            if told.is_err() {
                self.tell(|unsettled| unsettled.acks_of(receipts)).await;
            }
        }
    }

    /// Sends acks over the present connection.
    async fn tell(&self, decide: impl FnOnce(&mut Unsettled) -> Vec<Ack>) {
        let _turn = self.telling.lock().await;
        let (generation, channel, acks) = match &mut *self.life() {
            Some(life) => (life.generation, life.channel.clone(), decide(&mut life.unsettled)),
            None => return,
        };
        if acks.is_empty() {
            return;
        }
        let ack = |ack: Ack| channel.basic_ack(ack.tag, BasicAckOptions { multiple: ack.multiple });
        match timeout(ACK_LIMIT, try_join_all(acks.into_iter().map(ack))).await {
            // The channel may be gone: the broker delivers all again then, and the inbox decides.
            Ok(Ok(_) | Err(_)) => {}
            Err(_) => {
                self.stuck.send_replace(generation);
            }
        }
        self.told.send_replace(());
    }

    fn life(&self) -> MutexGuard<'_, Option<Life>> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One `basic.ack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ack {
    tag: u64,
    multiple: bool,
}

/// The tags of one channel that the broker waits to be told of.
#[derive(Debug)]
struct Unsettled {
    generation: u64,
    /// Not settled.
    open: BTreeSet<u64>,
    /// Settled, and not acked.
    done: BTreeSet<u64>,
    /// This open one was waited for in vain.
    slow: Option<u64>,
}

impl Unsettled {
    fn of(generation: u64) -> Self {
        Self { generation, open: BTreeSet::new(), done: BTreeSet::new(), slow: None }
    }

    fn delivered(&mut self, tag: u64) {
        self.open.insert(tag);
    }

    /// The tags of these receipts; those of another generation mean nothing here.
    fn tags<'a>(&self, receipts: &'a [Receipt]) -> impl Iterator<Item = u64> + use<'a> {
        let generation = self.generation;
        receipts.iter().filter(move |receipt| receipt.generation == generation).map(|receipt| receipt.tag)
    }

    /// They are to be acked. Those that were acked already are left out: the broker closes the channel over a second ack.
    fn settle(&mut self, receipts: &[Receipt]) {
        for tag in self.tags(receipts) {
            if self.open.remove(&tag) {
                self.done.insert(tag);
            }
        }
    }

    /// One ack for all before the oldest open one, if there are any; and one for each other, where that has been waited for.
    fn acks_in_a_row(&mut self) -> Vec<Ack> {
        let after = self.open.first().map_or_else(BTreeSet::new, |oldest| self.done.split_off(oldest));
        let row = std::mem::replace(&mut self.done, after);
        let mut acks: Vec<Ack> =
            row.last().map(|last| Ack { tag: *last, multiple: row.len() > 1 }).into_iter().collect();
        if self.slow.is_some() && self.slow == self.open.first().copied() {
            acks.extend(std::mem::take(&mut self.done).into_iter().map(|tag| Ack { tag, multiple: false }));
        }
        acks
    }

    /// Whether some of these are settled and not acked.
    fn waits(&self, receipts: &[Receipt]) -> bool {
        self.tags(receipts).any(|tag| self.done.contains(&tag))
    }

    /// The same as [`acks_in_a_row`](Self::acks_in_a_row), and one ack for each of these that is still not acked.
    fn acks_of(&mut self, receipts: &[Receipt]) -> Vec<Ack> {
        let mut acks = self.acks_in_a_row();
        for tag in self.tags(receipts) {
            if self.done.remove(&tag) {
                acks.push(Ack { tag, multiple: false });
                self.slow = self.open.first().copied();
            }
        }
        acks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GENERATION: u64 = 7;

    fn with(tags: std::ops::RangeInclusive<u64>) -> Unsettled {
        let mut unsettled = Unsettled::of(GENERATION);
        tags.for_each(|tag| unsettled.delivered(tag));
        unsettled
    }

    fn receipts(tags: &[u64]) -> Vec<Receipt> {
        tags.iter().map(|tag| Receipt { generation: GENERATION, tag: *tag }).collect()
    }

    impl Unsettled {
        fn ack(&mut self, tags: &[u64]) -> Vec<Ack> {
            self.settle(&receipts(tags));
            self.acks_in_a_row()
        }
    }

    fn one(tag: u64) -> Ack {
        Ack { tag, multiple: false }
    }

    fn up_to(tag: u64) -> Ack {
        Ack { tag, multiple: true }
    }

    #[test]
    fn a_whole_batch_is_one_ack() {
        assert_eq!(with(1..=5).ack(&[3, 1, 2, 5, 4]), [up_to(5)]);
    }

    #[test]
    fn a_batch_that_is_done_before_an_older_one_is_acked_with_it() {
        let mut unsettled = with(1..=6);
        assert!(unsettled.ack(&[4, 5, 6]).is_empty());
        assert!(unsettled.waits(&receipts(&[4, 5, 6])));
        assert_eq!(unsettled.ack(&[1, 2, 3]), [up_to(6)]);
        assert!(!unsettled.waits(&receipts(&[4, 5, 6])));
    }

    #[test]
    fn a_multiple_ack_never_passes_an_open_delivery() {
        let mut unsettled = with(1..=6);
        assert_eq!(unsettled.ack(&[1, 2, 4, 6]), [up_to(2)]);
        assert_eq!(unsettled.acks_of(&receipts(&[1, 2, 4, 6])), [one(4), one(6)], "waited for in vain");
        assert_eq!(unsettled.ack(&[5]), [one(5)], "the same one is not waited for again");
        assert_eq!(unsettled.ack(&[3]), [one(3)]);
        assert!(unsettled.open.is_empty() && unsettled.done.is_empty());
    }

    #[test]
    fn nothing_is_acked_twice_and_nothing_of_another_generation() {
        let mut unsettled = with(1..=2);
        assert_eq!(unsettled.ack(&[1, 1]), [one(1)]);
        assert!(unsettled.ack(&[1]).is_empty());
        assert!(unsettled.ack(&[9]).is_empty());
        let earlier = [Receipt { generation: GENERATION - 1, tag: 2 }];
        unsettled.settle(&earlier);
        assert!(!unsettled.waits(&earlier) && unsettled.acks_of(&earlier).is_empty());
        assert_eq!(unsettled.open.len(), 1);
    }

    #[test]
    fn in_any_order_of_settling_each_delivery_is_acked_once_and_none_early() {
        for seed in 0..200_u64 {
            let mut unsettled = with(1..=12);
            let mut order: Vec<u64> = (1..=12).collect();
            order.sort_by_key(|tag| (tag * 2_654_435_761 + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 7);
            let mut open: BTreeSet<u64> = (1..=12).collect();
            let mut acked = BTreeSet::new();
            for (number, chunk) in order.chunks(3).enumerate() {
                chunk.iter().for_each(|tag| assert!(open.remove(tag)));
                let mut acks = unsettled.ack(chunk);
                if (seed + number as u64).is_multiple_of(3) {
                    acks.extend(unsettled.acks_of(&receipts(chunk)));
                }
                for ack in acks {
                    assert!(!acked.contains(&ack.tag), "seed {seed}: {} acked twice", ack.tag);
                    let from = if ack.multiple { 1 } else { ack.tag };
                    for tag in from..=ack.tag {
                        assert!(!open.contains(&tag), "seed {seed}: {tag} acked while open");
                        acked.insert(tag);
                    }
                }
            }
            assert_eq!(acked.len(), 12, "seed {seed}");
        }
    }
}
