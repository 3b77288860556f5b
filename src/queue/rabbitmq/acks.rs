//! Owns which deliveries of one channel are unsettled, and with which acks settled ones are told to the broker.
//! Promises that a multiple-ack never passes the lowest unsettled tag. Pure.

use std::collections::BTreeSet;

/// One `basic.ack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) tag: u64,
    pub(super) multiple: bool,
}

/// The unsettled tags of one channel.
#[derive(Debug, Default)]
pub(super) struct Unsettled(BTreeSet<u64>);

impl Unsettled {
    pub(super) fn delivered(&mut self, tag: u64) {
        self.0.insert(tag);
    }

    /// The acks for `tags`, to be sent in this order before any others. Tags that are settled already are left out: the
    /// broker closes the channel over a second ack.
    pub(super) fn settle(&mut self, tags: &[u64]) -> Vec<Ack> {
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
        assert_eq!(with(1..=5).settle(&[3, 1, 2, 5, 4]), [Ack { tag: 5, multiple: true }]);
    }

    #[test]
    fn a_multiple_ack_never_passes_an_open_delivery() {
        let mut unsettled = with(1..=6);
        assert_eq!(
            unsettled.settle(&[1, 2, 4, 6]),
            [
                Ack { tag: 2, multiple: true },
                Ack { tag: 4, multiple: false },
                Ack { tag: 6, multiple: false }
            ]
        );
        assert_eq!(unsettled.settle(&[5]), [Ack { tag: 5, multiple: false }]);
        assert_eq!(unsettled.settle(&[3]), [Ack { tag: 3, multiple: false }]);
        assert!(unsettled.0.is_empty());
    }

    #[test]
    fn nothing_is_acked_twice() {
        let mut unsettled = with(1..=2);
        assert_eq!(unsettled.settle(&[1, 1]).len(), 1);
        assert!(unsettled.settle(&[1]).is_empty());
        assert!(unsettled.settle(&[9]).is_empty());
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
                for ack in unsettled.settle(chunk) {
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
