//! The cases of the contract in `src/queue/mod.rs`. None knows which backend it runs against.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use headcount::queue::{Action, Burial, QueueError, Reason, Source};

use crate::support::*;

fn bury(detail: &str) -> Action {
    Action::Bury(Burial { reason: Reason::InvalidPayload, detail: detail.into() })
}

pub(crate) async fn a_confirmed_publish_outlives_a_handle_that_was_never_closed<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    let sent = publish(&queue, 3).await;
    drop(queue);
    let queue = harness.open().await;
    let subscription = queue.subscribe(Source::Events, 10).await.unwrap();
    assert_eq!(ids(&receive(&*subscription, 3).await), sorted(sent));
}

pub(crate) async fn messages_come_in_about_the_order_of_arrival<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    let sent = publish(&queue, 60).await;
    let subscription = queue.subscribe(Source::Events, 100).await.unwrap();
    for (place, delivery) in receive(&*subscription, 60).await.iter().enumerate() {
        let arrived = sent.iter().position(|known| *known == id(delivery)).unwrap();
        assert!(arrived.abs_diff(place) < 10, "number {arrived} came as number {place}");
        assert_eq!(delivery.earlier, 0);
    }
}

pub(crate) async fn no_more_than_prefetch_are_unsettled<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    publish(&queue, 12).await;
    let subscription = queue.subscribe(Source::Events, 5).await.unwrap();
    let mut held = receive(&*subscription, 5).await;
    assert!(quiet(&*subscription).await, "a sixth came");
    done(&*subscription, held.drain(..2).collect()).await;
    held.extend(receive(&*subscription, 2).await);
    assert!(quiet(&*subscription).await, "a sixth came after two were settled");
    done(&*subscription, held).await;
    let rest = receive(&*subscription, 5).await;
    done(&*subscription, rest).await;
    holds(&queue, "events", 0).await;
}

pub(crate) async fn what_is_done_is_gone<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    publish(&queue, 5).await;
    let subscription = queue.subscribe(Source::Events, 10).await.unwrap();
    let deliveries = receive(&*subscription, 5).await;
    done(&*subscription, deliveries).await;
    drop(subscription);
    queue.close().await;
    let queue = harness.open().await;
    let subscription = queue.subscribe(Source::Events, 10).await.unwrap();
    assert!(quiet(&*subscription).await, "a settled message came back");
    holds(&queue, "events", 0).await;
    holds(&queue, "dead", 0).await;
}

pub(crate) async fn what_a_dead_consumer_left_unsettled_comes_back<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    let sent = publish(&queue, 3).await;
    for earlier in 0..3 {
        let subscription = queue.subscribe(Source::Events, 10).await.unwrap();
        let deliveries = receive(&*subscription, 3).await;
        assert_eq!(ids(&deliveries), sorted(sent.clone()));
        for delivery in &deliveries {
            assert_eq!(delivery.earlier, earlier, "{}", delivery.message.id);
        }
        // The consumer dies here, its deliveries in its hands.
        drop(subscription);
    }
}

pub(crate) async fn a_retry_comes_after_its_delay_and_not_before<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    publish(&queue, 20).await;
    let subscription = queue.subscribe(Source::Events, 50).await.unwrap();
    let deliveries = receive(&*subscription, 20).await;
    let settled = Instant::now();
    let retry = Action::Retry { rung: 0, attempt: 1, waits: 0 };
    settle(&*subscription, deliveries.into_iter().map(|delivery| (delivery, retry.clone()))).await;
    for _ in 0..20 {
        let delivery = next(&*subscription).await;
        assert!(settled.elapsed() >= SHORT, "{} came after {:?}", delivery.message.id, settled.elapsed());
        assert_eq!(delivery.earlier, 0, "a retry is no delivery that came back unsettled");
    }
}

pub(crate) async fn a_message_survives_a_retry_with_its_new_counters<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    let mut sent = message(&b"\x00\xff{\"not\": utf-8\xc3}"[..]);
    sent.round = 7;
    sent.attempt = 1;
    sent.traceparent = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into());
    queue.publish(sent.clone()).await.unwrap();
    let subscription = queue.subscribe(Source::Events, 10).await.unwrap();
    for (attempt, waits) in [(1, 0), (2, 3), (3, 4)] {
        let delivery = next(&*subscription).await;
        let got = &delivery.message;
        assert_eq!((got.attempt, got.waits, got.round), (attempt, waits, 7));
        assert_eq!(
            (&got.id, &got.event_type, got.received_at),
            (&sent.id, &sent.event_type, sent.received_at)
        );
        assert_eq!((&got.traceparent, &got.body), (&sent.traceparent, &sent.body));
        let action =
            Action::Retry { rung: 0, attempt: attempt + 1, waits: if attempt == 1 { 3 } else { waits + 1 } };
        settle(&*subscription, [(delivery, action)]).await;
    }
}

pub(crate) async fn what_is_buried_is_dead_and_not_delivered<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    publish(&queue, 2).await;
    let subscription = queue.subscribe(Source::Events, 10).await.unwrap();
    let deliveries = receive(&*subscription, 2).await;
    // Details come from errors: they may be long, and hold anything.
    let detail = "no field `id`\0\n\u{1f480}".repeat(1000);
    settle(&*subscription, deliveries.into_iter().map(|delivery| (delivery, bury(&detail)))).await;
    holds(&queue, "dead", 2).await;
    assert!(quiet(&*subscription).await, "a buried message came back");
    drop(subscription);
    let subscription = queue.subscribe(Source::Events, 10).await.unwrap();
    assert!(quiet(&*subscription).await, "a buried message came back to another");
    holds(&queue, "events", 0).await;
}

pub(crate) async fn settlements_out_of_order_never_settle_another<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    publish(&queue, 10).await;
    let subscription = queue.subscribe(Source::Events, 20).await.unwrap();
    let mut deliveries: Vec<_> = receive(&*subscription, 10).await.into_iter().map(Some).collect();
    for place in [3, 7, 1] {
        let delivery = deliveries[place].take().unwrap();
        done(&*subscription, vec![delivery]).await;
    }
    let left: Vec<_> = deliveries.into_iter().flatten().collect();
    drop(subscription);
    let subscription = queue.subscribe(Source::Events, 20).await.unwrap();
    assert_eq!(ids(&receive(&*subscription, 7).await), ids(&left));
    assert!(quiet(&*subscription).await, "more than the unsettled came back");
}

pub(crate) async fn a_batch_of_mixed_actions_settles_each_as_asked<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    publish(&queue, 40).await;
    let subscription = queue.subscribe(Source::Events, 50).await.unwrap();
    let deliveries = receive(&*subscription, 40).await;
    let mut retried = Vec::new();
    let mut batch = Vec::new();
    // The last first: nothing may depend on the order of settlements.
    for (number, delivery) in deliveries.into_iter().enumerate().rev() {
        let action = match number % 4 {
            0 => Action::Done,
            1 => bury("broken"),
            2 => Action::Retry { rung: 1, attempt: 1, waits: 0 },
            _ => {
                retried.push(id(&delivery));
                Action::Retry { rung: 0, attempt: 0, waits: 9 }
            }
        };
        batch.push((delivery, action));
    }
    settle(&*subscription, batch).await;
    let back = receive(&*subscription, 10).await;
    assert_eq!(ids(&back), sorted(retried));
    assert!(back.iter().all(|delivery| delivery.message.waits == 9 && delivery.message.attempt == 0));
    done(&*subscription, back).await;
    assert!(quiet(&*subscription).await, "something came that was not to come");
    holds(&queue, "events", 0).await;
    holds(&queue, "retry.10m", 10).await;
    holds(&queue, "dead", 10).await;
}

pub(crate) async fn a_cancelled_subscription_drains_and_loses_nothing<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    let sent = publish(&queue, 30).await;
    let subscription = queue.subscribe(Source::Events, 20).await.unwrap();
    let mut seen = receive(&*subscription, 5).await;
    subscription.cancel().await;
    while let Some(delivery) = soon("the end of a cancelled subscription", subscription.next()).await {
        seen.push(delivery);
    }
    assert!(seen.len() <= 20);
    let left = 30 - seen.len();
    let mut all: Vec<String> = seen.iter().map(id).collect();
    // What was handed over can still be settled.
    done(&*subscription, seen).await;
    // What was not is there for others, although the cancelled subscription still stands.
    let another = queue.subscribe(Source::Events, 50).await.unwrap();
    all.extend(receive(&*another, left).await.iter().map(id));
    assert_eq!(sorted(all), sorted(sent));
    drop(another);
    drop(subscription);
    let subscription = queue.subscribe(Source::Events, 50).await.unwrap();
    let back = receive(&*subscription, left).await;
    done(&*subscription, back).await;
    assert!(quiet(&*subscription).await, "a settled message came back");
}

pub(crate) async fn two_subscriptions_share_without_overlap<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    let other = harness.open().await;
    let subscriptions = [
        queue.subscribe(Source::Events, 5).await.unwrap(),
        queue.subscribe(Source::Events, 5).await.unwrap(),
        other.subscribe(Source::Events, 5).await.unwrap(),
    ];
    let sent = publish(&queue, 15).await;
    let mut all = Vec::new();
    for subscription in &subscriptions {
        all.extend(receive(&**subscription, 5).await.iter().map(id));
    }
    assert_eq!(sorted(all), sorted(sent));
}

pub(crate) async fn abandoned_calls_of_next_lose_nothing<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    let subscription = queue.subscribe(Source::Events, 100).await.unwrap();
    let publishing = tokio::spawn({
        let queue = queue.clone();
        async move { publish(&queue, 50).await }
    });
    let mut all = Vec::new();
    let start = Instant::now();
    while all.len() < 50 && start.elapsed() < PATIENCE {
        // As in a select! whose other branch wins most of the time.
        tokio::select! {
            biased;
            delivery = subscription.next() => all.push(id(&delivery.unwrap())),
            () = tokio::task::yield_now() => {}
        }
    }
    assert_eq!(sorted(all), sorted(publishing.await.unwrap()));
}

pub(crate) async fn any_body_travels_untouched<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    let every_byte: Vec<u8> = (0..=255).cycle().take(512 * 1024).collect();
    let mut sent = Vec::new();
    for body in [
        Bytes::new(),
        Bytes::from(every_byte),
        Bytes::from_static(b"\xff\xfe\x00"),
        Bytes::from_static(b"{}"),
    ] {
        let message = message(body);
        sent.push((message.id.clone(), message.body.clone()));
        queue.publish(message).await.unwrap();
    }
    let subscription = queue.subscribe(Source::Events, 10).await.unwrap();
    for delivery in receive(&*subscription, 4).await {
        let (_, body) = sent.iter().find(|(id, _)| *id == delivery.message.id).unwrap();
        assert!(
            delivery.message.body == *body,
            "{}: {} bytes",
            delivery.message.id,
            delivery.message.body.len()
        );
    }
}

pub(crate) async fn depths_count_each_queue<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    for name in ["events", "retry.400ms", "retry.10m", "dead"] {
        holds(&queue, name, 0).await;
    }
    publish(&queue, 7).await;
    holds(&queue, "events", 7).await;
    let subscription = queue.subscribe(Source::Events, 4).await.unwrap();
    let mut deliveries = receive(&*subscription, 4).await.into_iter();
    let mut take = || deliveries.next().unwrap();
    let later = Action::Retry { rung: 1, attempt: 1, waits: 0 };
    settle(
        &*subscription,
        [(take(), bury("x")), (take(), later.clone()), (take(), later), (take(), Action::Done)],
    )
    .await;
    // A broker tells only of what is in nobody's hands: let go of it.
    drop(subscription);
    // Seen from another process, too.
    let other = harness.open().await;
    for queue in [&queue, &other] {
        holds(queue, "events", 3).await;
        holds(queue, "retry.10m", 2).await;
        holds(queue, "retry.400ms", 0).await;
        holds(queue, "dead", 1).await;
    }
    let subscription = queue.subscribe(Source::Events, 4).await.unwrap();
    let returned = receive(&*subscription, 3).await;
    done(&*subscription, returned).await;
    holds(&queue, "events", 0).await;
    soon("readiness", queue.ready()).await.unwrap();
}

pub(crate) async fn a_closed_queue_refuses_and_gives_back<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    let sent = publish(&queue, 4).await;
    let subscription = queue.subscribe(Source::Events, 3).await.unwrap();
    let held = receive(&*subscription, 2).await;
    soon("closing", queue.close()).await;
    let refused = soon("a refusal", queue.publish(message("{}"))).await;
    assert!(matches!(refused, Err(QueueError::Unavailable(_))), "{refused:?}");
    assert!(queue.ready().await.is_err());
    soon("the end of a closed subscription", async { while subscription.next().await.is_some() {} }).await;
    // Settling what went back with the connection must not hang.
    done(&*subscription, held).await;
    let queue = harness.open().await;
    let subscription = queue.subscribe(Source::Events, 10).await.unwrap();
    assert_eq!(ids(&receive(&*subscription, 4).await), sorted(sent));
}
