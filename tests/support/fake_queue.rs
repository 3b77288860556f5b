//! Owns a queue in memory that takes, fails or holds each publish, as the test says.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use headcount::{
    message::Message,
    queue::{Depth, Queue, QueueError, Source, Subscription},
};
use tokio::sync::watch;

/// What happens to a message that is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It is durable.
    Take,
    /// The backend is away.
    Fail,
    /// The publish hangs until the mode changes.
    Hold,
}

#[derive(Debug)]
pub struct FakeQueue {
    mode: watch::Sender<Mode>,
    begun: watch::Sender<usize>,
    published: Mutex<Vec<Message>>,
    samples: Mutex<Vec<Bytes>>,
}

impl FakeQueue {
    pub fn new() -> Self {
        Self {
            mode: watch::Sender::new(Mode::Take),
            begun: watch::Sender::new(0),
            published: Mutex::default(),
            samples: Mutex::default(),
        }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Everything that was made durable so far.
    pub fn published(&self) -> Vec<Message> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every sample of a rejected request so far.
    pub fn samples(&self) -> Vec<Bytes> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until so many publishes have begun.
    pub async fn begun(&self, count: usize) {
        self.begun.subscribe().wait_for(|begun| *begun >= count).await.expect("the queue lives");
    }

    /// How many publishes have begun.
    pub fn has_begun(&self) -> usize {
        *self.begun.borrow()
    }

    async fn answer(&self) -> Result<(), QueueError> {
        let mode =
            *self.mode.subscribe().wait_for(|mode| *mode != Mode::Hold).await.expect("the queue lives");
        match mode {
            Mode::Fail => Err(QueueError::Unavailable("told to fail".into())),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Queue for FakeQueue {
    async fn publish(&self, message: Message) -> Result<(), QueueError> {
        self.begun.send_modify(|begun| *begun += 1);
        self.answer().await?;
        self.published.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        Ok(())
    }

    fn sample(&self, rejected: Bytes) {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).push(rejected);
    }

    async fn subscribe(&self, _: Source, _: u16) -> Result<Box<dyn Subscription>, QueueError> {
        Err(QueueError::Unavailable("nothing can be consumed here".into()))
    }

    async fn depths(&self) -> Result<Vec<Depth>, QueueError> {
        Ok(Vec::new())
    }

    async fn ready(&self) -> Result<(), QueueError> {
        self.answer().await
    }

    fn troubles(&self) -> Vec<headcount::queue::Trouble> {
        Vec::new()
    }

    async fn close(&self) {}
}
