//! Owns what stands in for a queue where nothing is to be published.

use async_trait::async_trait;

use super::{Depth, Queue, QueueError, Source, Subscription, Trouble};
use crate::message::Message;

/// No queue at all, for who needs none: nothing can be published to it or taken from it, and nothing waits in it.
#[derive(Debug)]
pub struct Absent;

fn absent() -> QueueError {
    QueueError::Misconfigured {
        message: "none is open".to_owned(),
        hint: "open one to publish to it".to_owned(),
    }
}

#[async_trait]
impl Queue for Absent {
    async fn publish(&self, _: Message) -> Result<(), QueueError> {
        Err(absent())
    }

    async fn subscribe(&self, _: Source, _: u16) -> Result<Box<dyn Subscription>, QueueError> {
        Err(absent())
    }

    fn sample(&self, _: bytes::Bytes) {}

    async fn depths(&self) -> Result<Vec<Depth>, QueueError> {
        Ok(Vec::new())
    }

    async fn ready(&self) -> Result<(), QueueError> {
        Ok(())
    }

    fn troubles(&self) -> Vec<Trouble> {
        Vec::new()
    }

    async fn close(&self) {}
}
