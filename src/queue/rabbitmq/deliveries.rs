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
    acking: tokio::sync::Mutex<()>,
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
            acking: tokio::sync::Mutex::default(),
            stuck: watch::Sender::new(0),
        }
    }

    /// A connection begins to consume over this channel. Returns its generation.
    pub(super) fn begin(&self, channel: Channel) -> u64 {
        static GENERATIONS: AtomicU64 = AtomicU64::new(1);
        let generation = GENERATIONS.fetch_add(1, SeqCst);
        *self.life() = Some(Life { generation, channel, unsettled: Unsettled::default() });
        self.generation.send_replace(generation);
        generation
    }

    /// It is over: the broker delivers again what was delivered in it.
    pub(super) fn end(&self) {
        self.generation.send_replace(0);
        *self.life() = None;
        self.waiting().deliveries.clear();
    }

    /// A delivery has arrived.
    pub(super) fn hand_over(&self, delivery: Delivery) {
        match &mut *self.life() {
            Some(life) if life.generation == delivery.receipt.generation => {
                life.unsettled.delivered(delivery.receipt.tag);
                self.waiting().deliveries.push_back(delivery);
            }
            // Its connection was let go meanwhile.
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

    /// Whether a delivery of this receipt can be settled.
    pub(super) fn holds(&self, receipt: Receipt) -> bool {
        receipt.generation == *self.generation.borrow()
    }

    /// Returns once a delivery of this receipt cannot be settled any more.
    pub(super) async fn taken_back(&self, receipt: Receipt) {
        until(&self.generation.subscribe(), |generation| *generation != receipt.generation).await;
    }

    /// Returns once the connection of this generation has shown that it takes no acks.
    pub(super) async fn is_stuck(&self, generation: u64) {
        until(&self.stuck.subscribe(), |stuck| *stuck == generation).await;
    }

    /// Tells the broker of settled deliveries, as far as they belong to the present generation.
    pub(super) async fn ack(&self, receipts: &[Receipt]) {
        if receipts.is_empty() {
            return;
        }
        let _turn = self.acking.lock().await;
        let Some((generation, channel, acks)) = self.acks(receipts) else { return };
        for ack in acks {
            let options = BasicAckOptions { multiple: ack.multiple };
            match timeout(ACK_LIMIT, channel.basic_ack(ack.tag, options)).await {
                Ok(Ok(())) => {}
                // The channel is gone: the broker delivers all again, and the inbox decides.
                Ok(Err(_)) => return,
                Err(_) => {
                    self.stuck.send_replace(generation);
                    return;
                }
            }
        }
    }

    fn acks(&self, receipts: &[Receipt]) -> Option<(u64, Channel, Vec<Ack>)> {
        let mut life = self.life();
        let life = life.as_mut()?;
        let ours = receipts.iter().filter(|receipt| receipt.generation == life.generation);
        let tags: Vec<u64> = ours.map(|receipt| receipt.tag).collect();
        Some((life.generation, life.channel.clone(), life.unsettled.ack(&tags)))
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

/// The unsettled tags of one channel.
#[derive(Debug, Default)]
struct Unsettled(BTreeSet<u64>);

impl Unsettled {
    fn delivered(&mut self, tag: u64) {
        self.0.insert(tag);
    }

    /// The acks for `tags`, to be sent in this order before any others. Tags that are settled already are left out: the
    /// broker closes the channel over a second ack.
    fn ack(&mut self, tags: &[u64]) -> Vec<Ack> {
        let mut settled: Vec<u64> = tags.iter().copied().filter(|tag| self.0.remove(tag)).collect();
        settled.sort_unstable();
        let lowest = self.0.first().copied().unwrap_or(u64::MAX);
        let together = settled.partition_point(|tag| *tag < lowest);
        let mut acks = Vec::with_capacity(settled.len() - together + 1);
        if let Some(last) = settled[..together].last() {
            acks.push(Ack { tag: *last, multiple: together > 1 });
        }
        acks.extend(settled[together..].iter().map(|tag| Ack { tag: *tag, multiple: false }));
        acks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(tags: std::ops::RangeInclusive<u64>) -> Unsettled {
        let mut unsettled = Unsettled::default();
        tags.for_each(|tag| unsettled.delivered(tag));
        unsettled
    }

    #[test]
    fn a_whole_batch_is_one_ack() {
        assert_eq!(with(1..=5).ack(&[3, 1, 2, 5, 4]), [Ack { tag: 5, multiple: true }]);
    }

    #[test]
    fn a_multiple_ack_never_passes_an_open_delivery() {
        let mut unsettled = with(1..=6);
        assert_eq!(
            unsettled.ack(&[1, 2, 4, 6]),
            [
                Ack { tag: 2, multiple: true },
                Ack { tag: 4, multiple: false },
                Ack { tag: 6, multiple: false }
            ]
        );
        assert_eq!(unsettled.ack(&[5]), [Ack { tag: 5, multiple: false }]);
        assert_eq!(unsettled.ack(&[3]), [Ack { tag: 3, multiple: false }]);
        assert!(unsettled.0.is_empty());
    }

    #[test]
    fn nothing_is_acked_twice() {
        let mut unsettled = with(1..=2);
        assert_eq!(unsettled.ack(&[1, 1]).len(), 1);
        assert!(unsettled.ack(&[1]).is_empty());
        assert!(unsettled.ack(&[9]).is_empty());
    }

    #[test]
    fn in_any_order_of_settling_each_delivery_is_acked_once_and_none_early() {
        for seed in 0..200_u64 {
            let mut unsettled = with(1..=12);
            let mut order: Vec<u64> = (1..=12).collect();
            order.sort_by_key(|tag| (tag * 2_654_435_761 + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 7);
            let mut open: BTreeSet<u64> = (1..=12).collect();
            let mut acked = BTreeSet::new();
            for chunk in order.chunks(3) {
                chunk.iter().for_each(|tag| assert!(open.remove(tag)));
                for ack in unsettled.ack(chunk) {
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
