//! How fast the embedded queue takes in and hands out, and what grouped commits are worth: one publisher pays an fsync
//! for each message, two hundred share it. `cargo bench --bench queue`.

#![allow(clippy::expect_used)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use headcount::{
    message::{Message, MessageId, Origin},
    queue::{Action, Ladder, Queue, Settlement, Source, embedded::EmbeddedQueue},
    time::now,
};

const BODY: usize = 2800;
const BATCH: usize = 200;

fn message(number: usize) -> Message {
    Message {
        id: MessageId::of_body(&number.to_le_bytes()),
        origin: Origin::Webhook,
        event_type: "user.updated".into(),
        received_at: now(),
        attempt: 0,
        waits: 0,
        round: 0,
        traceparent: None,
        body: Bytes::from(vec![b'x'; BODY]),
    }
}

async fn publish(queue: &Arc<dyn Queue>, publishers: usize, each: usize) {
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for publisher in 0..publishers {
        let queue = queue.clone();
        tasks.spawn(async move {
            for number in 0..each {
                queue.publish(message(publisher * each + number)).await.expect("published");
            }
        });
    }
    tasks.join_all().await;
    report(&format!("publish, {publishers} at once"), publishers * each, start.elapsed());
}

async fn consume(queue: &Arc<dyn Queue>, count: usize) {
    let subscription = queue.subscribe(Source::Events, 600).await.expect("subscribed");
    let start = Instant::now();
    let mut left = count;
    while left > 0 {
        let mut batch = Vec::new();
        while batch.len() < BATCH.min(left) {
            let delivery = subscription.next().await.expect("a delivery");
            batch.push(Settlement { delivery, action: Action::Done });
        }
        left -= batch.len();
        subscription.settle(batch).await;
    }
    report(&format!("receive and settle by {BATCH}"), count, start.elapsed());
}

fn report(what: &str, count: usize, took: Duration) {
    println!("{what:<32} {count:>7} messages {:>9.0}/s", count as f64 / took.as_secs_f64());
}

#[tokio::main]
async fn main() {
    let directory = tempfile::tempdir().expect("a directory");
    let open = || async {
        let queue = EmbeddedQueue::open(directory.path(), Ladder::default()).await.expect("opened");
        Arc::new(queue) as Arc<dyn Queue>
    };
    let queue = open().await;
    publish(&queue, 1, 500).await;
    publish(&queue, 20, 250).await;
    publish(&queue, 200, 100).await;
    consume(&queue, 25_500).await;
    let other = open().await;
    println!("two processes at once:");
    tokio::join!(publish(&queue, 100, 100), publish(&other, 100, 100));
    tokio::join!(consume(&queue, 10_000), consume(&other, 10_000));
    queue.close().await;
    other.close().await;
}
