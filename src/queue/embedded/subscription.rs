//! Owns a consumer's book: the messages that are leased to it, handed out or not yet. The writer fills
//! it, the subscription empties it. Never touches SQL.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use tokio::sync::{Notify, mpsc, oneshot};

use super::{
    super::{Delivery, Receipt, Settlement, Source, Subscription},
    WriterState,
    work::{Request, Settle},
};

/// The most bytes of bodies that a consumer holds, handed out or not; a single message may exceed it.
const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A consumer, as its subscription and the writer share it.
#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) source: Source,
    prefetch: AtomicUsize,
    book: Mutex<Book>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Book {
    /// Leased and not yet handed out.
    buffer: VecDeque<Delivery>,
    /// Handed out and not yet settled, with the size of their bodies.
    handed: HashMap<Receipt, usize>,
    /// Bytes of both.
    bytes: usize,
    /// The consumer takes no more.
    ended: bool,
}

impl Consumer {
    pub(super) fn new(source: Source, prefetch: u16) -> Self {
        let prefetch = AtomicUsize::new(prefetch.max(1).into());
        Self { source, prefetch, book: Mutex::default(), changed: Notify::new() }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anything may be leased to it.
    pub(super) fn has_room(&self) -> bool {
        self.room([].iter()).0 > 0
    }

    /// How many messages and bytes may be leased, once these receipts are settled. Without room for a message: (0, 0).
    pub(super) fn room<'a>(&self, settling: impl Iterator<Item = &'a Receipt>) -> (usize, usize) {
        let book = self.book();
        if book.ended {
            return (0, 0);
        }
        let (mut count, mut bytes) = (book.buffer.len() + book.handed.len(), book.bytes);
        for size in settling.filter_map(|receipt| book.handed.get(receipt)) {
            count = count.saturating_sub(1);
            bytes = bytes.saturating_sub(*size);
        }
        if bytes >= HELD_BYTES_MAX && count > 0 {
            return (0, 0);
        }
        (self.prefetch.load(Relaxed).saturating_sub(count), HELD_BYTES_MAX.saturating_sub(bytes))
    }

    /// Puts leased deliveries up for [`Subscription::next`]. Returns all of them where the consumer takes no more.
    pub(super) fn hand_over(&self, deliveries: Vec<Delivery>) -> Vec<Receipt> {
        let mut book = self.book();
        if book.ended {
            return deliveries.iter().map(|delivery| delivery.receipt).collect();
        }
        book.bytes += deliveries.iter().map(|delivery| delivery.message.body.len()).sum::<usize>();
        book.buffer.extend(deliveries);
        drop(book);
        self.changed.notify_waiters();
        Vec::new()
    }

    /// Strikes settled messages.
    pub(super) fn strike<'a>(&self, receipts: impl Iterator<Item = &'a Receipt>) {
        let mut book = self.book();
        for receipt in receipts {
            if let Some(size) = book.handed.remove(receipt) {
                book.bytes -= size;
            }
        }
    }

    /// Strikes everything: its leases went to others.
    pub(super) fn lose(&self) -> usize {
        let mut book = self.book();
        let lost = book.buffer.len() + book.handed.len();
        book.buffer.clear();
        book.handed.clear();
        book.bytes = 0;
        lost
    }

    /// Whether it was handed out and not settled, and its lease is still this consumer's.
    fn holds(&self, receipt: Receipt) -> bool {
        self.book().handed.contains_key(&receipt)
    }

    /// Everything that is held.
    pub(super) fn held(&self) -> Vec<Receipt> {
        let book = self.book();
        book.buffer.iter().map(|delivery| delivery.receipt).chain(book.handed.keys().copied()).collect()
    }

    /// Takes no more. Returns what was leased and not handed out.
    pub(super) fn end(&self) -> Vec<Receipt> {
        let mut book = self.book();
        book.ended = true;
        let unseen: Vec<Delivery> = book.buffer.drain(..).collect();
        book.bytes -= unseen.iter().map(|delivery| delivery.message.body.len()).sum::<usize>();
        drop(book);
        self.changed.notify_waiters();
        unseen.iter().map(|delivery| delivery.receipt).collect()
    }

    /// The next delivery, if one is there; `Err` where none will be.
    fn take(&self) -> Result<Option<Delivery>, ()> {
        let mut book = self.book();
        match book.buffer.pop_front() {
            Some(delivery) => {
                book.handed.insert(delivery.receipt, delivery.message.body.len());
                Ok(Some(delivery))
            }
            None if book.ended => Err(()),
            None => Ok(None),
        }
    }
}

/// A consumer's own end. Dropping it makes what it holds available again.
#[derive(Debug)]
pub(super) struct EmbeddedSubscription {
    pub(super) consumer: Arc<Consumer>,
    pub(super) requests: mpsc::UnboundedSender<Request>,
    pub(super) state: Arc<WriterState>,
}

#[async_trait]
impl Subscription for EmbeddedSubscription {
    async fn next(&self) -> Option<Delivery> {
        loop {
            // Listen before looking, so that a delivery which is put up in between still wakes this call.
            let changed = self.consumer.changed.notified();
            match self.consumer.take() {
                Ok(Some(delivery)) => return Some(delivery),
                Ok(None) => changed.await,
                Err(()) => return None,
            }
        }
    }

    async fn settle(&self, settlements: Vec<Settlement>) {
        let items = settlements
            .into_iter()
            .map(|settlement| (settlement.delivery.receipt, settlement.action))
            .collect();
        let (done, settled) = oneshot::channel();
        let settle = Settle { consumer: self.consumer.clone(), items, done };
        // A closed queue gave its leases back already. Otherwise the answer comes after the commit, however long it takes.
        if self.requests.send(Request::Settle(settle)).is_ok() {
            let _ = settled.await;
        }
    }

    fn widen(&self, prefetch: u16) {
        self.consumer.prefetch.fetch_max(prefetch.into(), Relaxed);
    }

    fn holds(&self, receipt: Receipt) -> bool {
        self.consumer.holds(receipt)
    }

    async fn cancel(&self) {
        let unseen = self.consumer.end();
        if !unseen.is_empty() {
            let _ = self.requests.send(Request::Return(unseen));
        }
    }

    fn trouble(&self) -> Option<String> {
        self.state.trouble()
    }
}

impl Drop for EmbeddedSubscription {
    fn drop(&mut self) {
        let unseen = self.consumer.end();
        let _ = self.requests.send(Request::Return(unseen));
        let _ = self.requests.send(Request::Leave(self.consumer.clone()));
    }
}
