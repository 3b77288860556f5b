//! The cases of the contract in `src/queue/mod.rs`. None knows which backend it runs against.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt;
use headcount::{
    message::Origin,
    queue::{
        Action, Burial, DELIVERY_LIMIT, Delivery, Queue, QueueError, Reason, Receipt, Settlement, Source,
    },
    time::now,
};

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

pub(crate) async fn a_subscription_is_widened_with_what_it_holds<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    let sent = publish(&queue, 12).await;
    let subscription = queue.subscribe(Source::Events, 1).await.unwrap();
    let mut held = receive(&*subscription, 1).await;
    assert!(quiet(&*subscription).await, "a second came");
    subscription.widen(5);
    held.extend(receive(&*subscription, 4).await);
    assert!(quiet(&*subscription).await, "a sixth came");
    assert!(held.iter().all(|delivery| delivery.earlier == 0 && subscription.holds(delivery.receipt)));
    // Narrower it does not become.
    subscription.widen(2);
    let mut received = ids(&held);
    done(&*subscription, held).await;
    for _ in 0..2 {
        let some = receive(&*subscription, 3).await;
        received.extend(ids(&some));
        done(&*subscription, some).await;
    }
    let last = receive(&*subscription, 1).await;
    received.extend(ids(&last));
    assert_eq!(sorted(received), sorted(sent));
    // All that is unsettled goes back, and counts once.
    drop(subscription);
    let subscription = queue.subscribe(Source::Events, 5).await.unwrap();
    let again = receive(&*subscription, 1).await;
    assert_eq!((ids(&again), again[0].earlier), (ids(&last), 1));
    done(&*subscription, again).await;
    holds(&queue, "events", 0).await;
}

pub(crate) async fn a_delivery_is_held_as_long_as_it_can_be_settled<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    publish(&queue, 2).await;
    let subscription = queue.subscribe(Source::Events, 10).await.unwrap();
    let held = receive(&*subscription, 2).await;
    assert!(held.iter().all(|delivery| subscription.holds(delivery.receipt)));
    let other_life = Receipt { generation: held[0].receipt.generation + 1, ..held[0].receipt };
    assert!(!subscription.holds(other_life));
    subscription.cancel().await;
    assert!(
        held.iter().all(|delivery| subscription.holds(delivery.receipt)),
        "cancelling gives nothing back"
    );
    done(&*subscription, held).await;
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
    sent.origin = Origin::Api;
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
        assert_eq!(got.origin, Origin::Api);
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

pub(crate) async fn after_a_cancel_a_settlement_brings_nothing_more<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    for round in 0..10 {
        let sent = publish(&queue, 2).await;
        let subscription = queue.subscribe(Source::Events, 1).await.unwrap();
        let first = next(&*subscription).await;
        soon("a cancel", subscription.cancel()).await;
        assert!(subscription.holds(first.receipt));
        done(&*subscription, vec![first]).await;
        let more = soon("the end", subscription.next()).await;
        assert!(more.is_none(), "round {round}: {} came", id(&more.unwrap()));
        drop(subscription);
        let subscription = queue.subscribe(Source::Events, 1).await.unwrap();
        let second = next(&*subscription).await;
        assert_eq!((id(&second), second.earlier), (sent[1].clone(), 0));
        done(&*subscription, vec![second]).await;
    }
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

pub(crate) async fn abandoned_settlements_go_on<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    publish(&queue, 3).await;
    let subscription = queue.subscribe(Source::Events, 3).await.unwrap();
    let mut deliveries = receive(&*subscription, 3).await.into_iter();
    for action in [Action::Done, bury("abandoned"), Action::Retry { rung: 0, attempt: 1, waits: 0 }] {
        let settlements =
            deliveries.next().map(|delivery| Settlement { delivery, action }).into_iter().collect();
        assert_eq!(subscription.settle(settlements).now_or_never(), None, "it was over at once");
    }
    holds(&queue, "dead", 1).await;
    let again = receive(&*subscription, 1).await.remove(0);
    assert_eq!((again.message.attempt, again.earlier), (1, 0));
    done(&*subscription, vec![again]).await;
    holds(&queue, "events", 0).await;
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

/// Buries the next event.
async fn bury_next(queue: &Arc<dyn Queue>, reason: Reason, detail: &str) {
    let subscription = queue.subscribe(Source::Events, 1).await.unwrap();
    let delivery = next(&*subscription).await;
    assert_eq!(delivery.death, None, "what lives has no death");
    let burial = Burial { reason, detail: detail.into() };
    settle(&*subscription, [(delivery, Action::Bury(burial))]).await;
}

fn header<'a>(delivery: &'a Delivery, name: &str) -> Option<&'a str> {
    delivery.death.as_ref().unwrap().headers.get(name).map(String::as_str)
}

pub(crate) async fn what_is_buried_comes_out_of_the_dead_queue<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    let dead = queue.subscribe(Source::Dead, 10).await.unwrap();
    let mut sent = message(&b"\x00\xff{\"not\": utf-8\xc3"[..]);
    (sent.attempt, sent.waits, sent.round) = (6, 2, 3);
    sent.received_at = now() - 60_000;
    sent.traceparent = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into());
    sent.origin = Origin::Api;
    queue.publish(sent.clone()).await.unwrap();
    let before = now();
    bury_next(&queue, Reason::RetriesExhausted, &"no \0 luck".repeat(1000)).await;
    // To a consumer that waited for it, in the same process.
    let delivery = next(&*dead).await;
    let death = delivery.death.as_ref().unwrap();
    assert_eq!(death.reason, "retries_exhausted");
    assert!(death.detail.starts_with("no \u{fffd} luck") && death.detail.len() <= 1024, "{}", death.detail);
    assert!((before..=now()).contains(&death.died_at), "{}", death.died_at);
    let got = &delivery.message;
    assert_eq!((&got.id, &got.event_type, got.received_at), (&sent.id, &sent.event_type, sent.received_at));
    assert_eq!((got.attempt, got.waits, got.round), (6, 2, 3));
    assert_eq!((&got.traceparent, &got.body), (&sent.traceparent, &sent.body));
    assert_eq!((got.origin, delivery.earlier), (Origin::Api, 0));
    let (received_at, died_at) = (sent.received_at.to_string(), death.died_at.to_string());
    for (name, value) in [
        ("x-reason", "retries_exhausted"),
        ("x-detail", &death.detail),
        ("x-attempt", "6"),
        ("x-waits", "2"),
        ("x-round", "3"),
        ("x-event-type", "user.updated"),
        ("x-origin", "api"),
        ("x-received-at", &received_at),
        ("x-died-at", &died_at),
        ("traceparent", sent.traceparent.as_deref().unwrap()),
    ] {
        assert_eq!(header(&delivery, name), Some(value), "{name}");
    }
    done(&*dead, vec![delivery]).await;
    holds(&queue, "dead", 0).await;
    assert!(quiet(&*dead).await, "a settled letter came again");
}

pub(crate) async fn the_dead_come_back_until_they_are_settled_however_often<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    let sent = publish(&queue, 1).await;
    bury_next(&queue, Reason::Rejected, "x").await;
    for earlier in 0..DELIVERY_LIMIT + 3 {
        let dead = queue.subscribe(Source::Dead, 10).await.unwrap();
        let delivery = next(&*dead).await;
        assert_eq!((id(&delivery), delivery.earlier), (sent[0].clone(), earlier));
        assert_eq!(delivery.death.unwrap().reason, "rejected");
        // The consumer dies here.
    }
    let dead = queue.subscribe(Source::Dead, 10).await.unwrap();
    let delivery = next(&*dead).await;
    done(&*dead, vec![delivery]).await;
    drop(dead);
    let dead = queue.subscribe(Source::Dead, 10).await.unwrap();
    assert!(quiet(&*dead).await, "a settled letter came back");
}

pub(crate) async fn a_replay_that_dies_again_carries_its_round_and_its_own_reason<H: Harness>(
    harness: Arc<H>,
) {
    let queue = harness.open().await;
    let mut message = message("{}");
    queue.publish(message.clone()).await.unwrap();
    bury_next(&queue, Reason::InvalidPayload, "first").await;
    let dead = queue.subscribe(Source::Dead, 10).await.unwrap();
    let first = next(&*dead).await;
    assert_eq!((first.message.round, first.death.as_ref().unwrap().detail.as_str()), (0, "first"));
    // A replay publishes while the letter is still in hand, as after a crash.
    message.round = 1;
    queue.publish(message.clone()).await.unwrap();
    bury_next(&queue, Reason::Rejected, "second").await;
    let second = next(&*dead).await;
    assert_eq!((&second.message.id, second.message.round), (&message.id, 1));
    let death = second.death.as_ref().unwrap();
    assert_eq!((death.reason.as_str(), death.detail.as_str()), ("rejected", "second"));
    assert_eq!(header(&second, "x-round"), Some("1"));
    done(&*dead, vec![first]).await;
    // One settlement takes one of the two, although they share their id.
    drop((dead, second));
    let dead = queue.subscribe(Source::Dead, 10).await.unwrap();
    let left = next(&*dead).await;
    assert_eq!((left.message.round, left.death.as_ref().unwrap().detail.as_str()), (1, "second"));
    done(&*dead, vec![left]).await;
    holds(&queue, "dead", 0).await;
    assert!(quiet(&*dead).await, "a settled letter came back");
}

pub(crate) async fn the_dead_carry_our_headers_and_none_of_the_ways_they_went<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    publish(&queue, 1).await;
    let subscription = queue.subscribe(Source::Events, 1).await.unwrap();
    for attempt in 1..=2 {
        let delivery = next(&*subscription).await;
        settle(&*subscription, [(delivery, Action::Retry { rung: 0, attempt, waits: 0 })]).await;
    }
    drop(subscription);
    // Its worker dies once, which a broker counts, too.
    let subscription = queue.subscribe(Source::Events, 1).await.unwrap();
    let _ = next(&*subscription).await;
    drop(subscription);
    bury_next(&queue, Reason::Rejected, "").await;
    let dead = queue.subscribe(Source::Dead, 1).await.unwrap();
    let delivery = next(&*dead).await;
    let names: Vec<&str> = delivery.death.as_ref().unwrap().headers.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "x-attempt",
            "x-detail",
            "x-died-at",
            "x-event-type",
            "x-reason",
            "x-received-at",
            "x-round",
            "x-waits"
        ]
    );
    assert_eq!((header(&delivery, "x-attempt"), delivery.earlier), (Some("2"), 0));
}

pub(crate) async fn the_dead_can_be_sent_back_or_buried_anew<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    publish(&queue, 1).await;
    bury_next(&queue, Reason::Rejected, "first").await;
    let dead = queue.subscribe(Source::Dead, 10).await.unwrap();
    let delivery = next(&*dead).await;
    settle(&*dead, [(delivery, bury("second"))]).await;
    let delivery = next(&*dead).await;
    assert_eq!(delivery.death.as_ref().unwrap().detail, "second");
    settle(&*dead, [(delivery, Action::Retry { rung: 0, attempt: 0, waits: 0 })]).await;
    bury_next(&queue, Reason::InvalidPayload, "third").await;
    let delivery = next(&*dead).await;
    let death = delivery.death.as_ref().unwrap();
    assert_eq!((death.reason.as_str(), death.detail.as_str()), ("invalid_payload", "third"));
    done(&*dead, vec![delivery]).await;
    holds(&queue, "dead", 0).await;
    holds(&queue, "events", 0).await;
}

fn sample(number: usize) -> Bytes {
    format!("{{\"number\":{number}}}").into()
}

/// Gives samples and waits until the queue has them: what is published comes after them.
async fn give_samples(queue: &Arc<dyn Queue>, numbers: std::ops::Range<usize>) {
    numbers.for_each(|number| queue.sample(sample(number)));
    publish(queue, 1).await;
}

pub(crate) async fn samples_come_out_of_rejections<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    give_samples(&queue, 0..3).await;
    holds(&queue, "rejections", 3).await;
    // In another process.
    let other = harness.open().await;
    let rejections = other.subscribe(Source::Rejections, 2).await.unwrap();
    let mut held = receive(&*rejections, 2).await;
    assert!(quiet(&*rejections).await, "more than the prefetch came");
    let bodies: Vec<&Bytes> = held.iter().map(|delivery| &delivery.message.body).collect();
    assert_eq!(bodies, [&sample(0), &sample(1)]);
    assert!(held.iter().all(|delivery| delivery.death.is_none()));
    done(&*rejections, vec![held.remove(0)]).await;
    held.extend(receive(&*rejections, 1).await);
    // What is not settled comes back, and nothing else.
    drop(rejections);
    let rejections = queue.subscribe(Source::Rejections, 10).await.unwrap();
    let mut back = receive(&*rejections, 2).await;
    back.sort_by_key(|delivery| delivery.message.body.clone());
    let bodies: Vec<&Bytes> = back.iter().map(|delivery| &delivery.message.body).collect();
    assert_eq!(bodies, [&sample(1), &sample(2)]);
    done(&*rejections, back).await;
    // One that is given to a waiting consumer comes at once.
    queue.sample(sample(7));
    let delivery = next(&*rejections).await;
    assert_eq!(delivery.message.body, sample(7));
    done(&*rejections, vec![delivery]).await;
    holds(&queue, "rejections", 0).await;
    holds(&queue, "dead", 0).await;
}

pub(crate) async fn of_more_than_a_thousand_samples_the_newest_are_kept<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    // Not all at once: they are lossy.
    for first in (0..1200).step_by(100) {
        give_samples(&queue, first..first + 100).await;
        holds(&queue, "rejections", 1000.min(first as u64 + 100)).await;
    }
    let rejections = queue.subscribe(Source::Rejections, 2000).await.unwrap();
    // The last of them may still be on their way, and each of those makes room for itself no more: it is received too.
    let mut kept = receive(&*rejections, 1000).await;
    while kept[kept.len() - 1].message.body != sample(1199) {
        kept.extend(receive(&*rejections, 1).await);
    }
    assert!(kept.len() < 1200, "none was dropped");
    let first = 1200 - kept.len();
    for (place, delivery) in kept.iter().enumerate() {
        assert_eq!(delivery.message.body, sample(first + place));
    }
    assert!(quiet(&*rejections).await, "more came after the newest");
}

pub(crate) async fn a_closed_queue_drops_samples_at_once<H: Harness>(harness: Arc<H>) {
    let queue = harness.open().await;
    soon("closing", queue.close()).await;
    let started = Instant::now();
    (0..10_000).for_each(|number| queue.sample(sample(number)));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    let queue = harness.open().await;
    holds(&queue, "rejections", 0).await;
}
