//! RabbitMQ fails: it is killed, frozen or blocked, its queues are deleted, it takes deliveries back. What was confirmed is
//! delivered, publishing fails at once if it cannot succeed, and both sides recover by themselves.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use headcount::{
    message::{Message, MessageId, Origin},
    queue::{
        Action, Burial, Delivery, Ladder, Queue, QueueError, Reason, Settlement, Source, Subscription,
        rabbitmq::RabbitQueue,
    },
    secret::Secret,
};
use support::{
    PATIENCE, eventually,
    proxy::Proxy,
    servers::{self, Server},
};

fn message(id: &str) -> Message {
    Message {
        id: MessageId::parse(id).unwrap(),
        origin: Origin::Webhook,
        event_type: "user.created".into(),
        received_at: 1,
        attempt: 0,
        waits: 0,
        round: 0,
        traceparent: None,
        body: format!("{{\"id\":\"{id}\"}}").into(),
    }
}

async fn open(server: &Server) -> Arc<dyn Queue> {
    open_at(server.url()).await
}

async fn open_at(url: String) -> Arc<dyn Queue> {
    let ladder = Ladder::new(vec![Duration::from_millis(100), Duration::from_secs(60)]).unwrap();
    Arc::new(RabbitQueue::open(&Secret::new(url), "headcount", ladder).await.unwrap())
}

async fn next(subscription: &dyn Subscription) -> Delivery {
    tokio::time::timeout(PATIENCE, subscription.next())
        .await
        .expect("a delivery in time")
        .expect("not cancelled")
}

fn done(delivery: Delivery) -> Settlement {
    Settlement { delivery, action: Action::Done }
}

/// Publishes until it is confirmed, as Clerk's sender repeats what got no 2xx.
async fn publish_stubbornly(queue: &dyn Queue, id: &str) {
    eventually(&format!("{id} is confirmed"), async || queue.publish(message(id)).await.is_ok()).await;
}

/// Receives and settles until every id was seen.
async fn drain(subscription: &dyn Subscription, mut wanted: HashSet<String>) {
    while !wanted.is_empty() {
        let delivery = next(subscription).await;
        wanted.remove(delivery.message.id.as_str());
        subscription.settle(vec![done(delivery)]).await;
    }
}

async fn depth(queue: &dyn Queue, name: &str) -> u64 {
    let depths = queue.depths().await.unwrap_or_default();
    depths.iter().find(|depth| depth.queue == name).map_or(0, |depth| depth.messages)
}

async fn until_publishing(queue: &dyn Queue, works: bool) {
    eventually("publishing works, or not", async || queue.ready().await.is_ok() == works).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_confirmed_survives_a_killed_broker_and_both_sides_come_back() {
    let mut server = Server::rabbitmq();
    let queue = open(&server).await;
    let subscription = queue.subscribe(Source::Events, 100).await.unwrap();
    let mut wanted = HashSet::new();
    for n in 0..200 {
        publish_stubbornly(&*queue, &format!("before{n}")).await;
        wanted.insert(format!("before{n}"));
    }
    let unsettled: Vec<Delivery> = vec![next(&*subscription).await, next(&*subscription).await];
    server.kill();
    until_publishing(&*queue, false).await;
    let started = Instant::now();
    assert!(matches!(queue.publish(message("refused")).await, Err(QueueError::Unavailable(_))));
    // Samples are lost, and nobody waits for them.
    (0..10_000).for_each(|_| queue.sample("{}".into()));
    assert!(started.elapsed() < Duration::from_secs(1), "not at once: {:?}", started.elapsed());
    // Settling what the broker has taken back neither hangs nor settles another.
    let stale = unsettled.into_iter().map(done).collect();
    tokio::time::timeout(PATIENCE, subscription.settle(stale)).await.expect("settling gives up");
    server.start();
    for n in 0..20 {
        publish_stubbornly(&*queue, &format!("after{n}")).await;
        wanted.insert(format!("after{n}"));
    }
    drain(&*subscription, wanted).await;
    assert_eq!(depth(&*queue, "rejections").await, 0);
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_broker_is_unavailable_in_time_and_goes_on_when_thawed() {
    let server = Server::rabbitmq();
    let queue = open(&server).await;
    let subscription = queue.subscribe(Source::Events, 10).await.unwrap();
    publish_stubbornly(&*queue, "before").await;
    server.freeze();
    let started = Instant::now();
    assert!(matches!(queue.publish(message("frozen")).await, Err(QueueError::Unavailable(_))));
    assert!(started.elapsed() < Duration::from_secs(7), "{:?}", started.elapsed());
    until_publishing(&*queue, false).await;
    let started = Instant::now();
    assert!(queue.publish(message("at-once")).await.is_err());
    assert!(started.elapsed() < Duration::from_secs(1), "once known, at once: {:?}", started.elapsed());
    server.thaw();
    until_publishing(&*queue, true).await;
    publish_stubbornly(&*queue, "after").await;
    drain(&*subscription, ["before", "after"].map(str::to_owned).into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_broker_counts_as_away_and_acks_still_go_out() {
    let server = Server::rabbitmq();
    let queue = open(&server).await;
    let subscription = queue.subscribe(Source::Events, 10).await.unwrap();
    publish_stubbornly(&*queue, "first").await;
    publish_stubbornly(&*queue, "second").await;
    let first = next(&*subscription).await;
    let second = next(&*subscription).await;
    server.ctl(&["set_vm_memory_high_watermark", "absolute", "1"]);
    // The broker blocks a connection once it publishes.
    assert!(queue.publish(message("blocked")).await.is_err());
    until_publishing(&*queue, false).await;
    tokio::time::timeout(PATIENCE, subscription.settle(vec![done(first)]))
        .await
        .expect("an ack is not blocked");
    // A burial has to wait, and neither is lost nor acked before it is confirmed.
    let burial = Action::Bury(Burial { reason: Reason::Rejected, detail: String::new() });
    let burying = subscription.settle(vec![Settlement { delivery: second, action: burial }]);
    tokio::pin!(burying);
    assert!(
        tokio::time::timeout(Duration::from_millis(500), &mut burying).await.is_err(),
        "buried without a confirm"
    );
    server.ctl(&["set_vm_memory_high_watermark", "0.6"]);
    tokio::time::timeout(PATIENCE, burying).await.expect("buried in the end");
    until_publishing(&*queue, true).await;
    publish_stubbornly(&*queue, "after").await;
    drain(&*subscription, ["after".to_owned()].into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_confirms_only_what_it_holds() {
    let server = Server::rabbitmq();
    let queue = open(&server).await;
    server.ctl(&[
        "set_policy",
        "bound",
        "^headcount[.]events$",
        r#"{"max-length": 500}"#,
        "--apply-to",
        "queues",
    ]);
    let subscription = queue.subscribe(Source::Events, 50).await.unwrap();
    const COUNT: usize = 30_000;
    let begun = AtomicUsize::new(0);
    let next_id = || {
        let n = begun.fetch_add(1, Relaxed);
        (n < COUNT).then(|| format!("m{n}"))
    };
    let sending = async {
        let senders = (0..256).map(|_| async {
            let mut confirmed = Vec::new();
            while let Some(id) = next_id() {
                match queue.publish(message(&id)).await {
                    Ok(()) => confirmed.push(id),
                    Err(error) => assert!(error.to_string().contains("the queue is full"), "{error}"),
                }
            }
            confirmed
        });
        futures_util::future::join_all(senders).await.into_iter().flatten().collect::<HashSet<_>>()
    };
    // One makes room for every fourth that comes, so that yes and no alternate.
    let receiving = async {
        let mut received = HashSet::new();
        while begun.load(Relaxed) < COUNT {
            if begun.load(Relaxed) < received.len() * 4 {
                tokio::task::yield_now().await;
                continue;
            }
            let delivery = next(&*subscription).await;
            received.insert(delivery.message.id.as_str().to_owned());
            subscription.settle(vec![done(delivery)]).await;
        }
        received
    };
    let (confirmed, mut received) = tokio::join!(sending, receiving);
    assert!((500..COUNT / 2).contains(&confirmed.len()), "{} were confirmed", confirmed.len());
    while !confirmed.is_subset(&received) {
        let delivery = next(&*subscription).await;
        received.insert(delivery.message.id.as_str().to_owned());
        subscription.settle(vec![done(delivery)]).await;
    }
    assert_eq!(received.len(), confirmed.len(), "what was refused is not held");
    let more = tokio::time::timeout(Duration::from_millis(500), subscription.next()).await;
    assert!(more.is_err(), "what was refused is held: {more:?}");
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_queue_is_declared_again_and_what_came_meanwhile_is_dead() {
    let server = Server::rabbitmq();
    let queue = open(&server).await;
    let subscription = queue.subscribe(Source::Events, 10).await.unwrap();
    publish_stubbornly(&*queue, "before").await;
    drain(&*subscription, ["before".to_owned()].into()).await;
    server.ctl(&["delete_queue", "headcount.events"]);
    publish_stubbornly(&*queue, "meanwhile").await;
    publish_stubbornly(&*queue, "meanwhile2").await;
    eventually("the consumer is back", async || {
        let depths = queue.depths().await.unwrap_or_default();
        depths.iter().any(|depth| depth.queue == "events" && depth.consumers == 1)
    })
    .await;
    publish_stubbornly(&*queue, "after").await;
    let mut delivered = 0;
    loop {
        let delivery = next(&*subscription).await;
        let last = delivery.message.id.as_str() == "after";
        delivered += 1;
        subscription.settle(vec![done(delivery)]).await;
        if last {
            break;
        }
    }
    // Which of the two it is depends on how soon the queue was there again; a third there is not.
    eventually("all three are delivered or dead", async || depth(&*queue, "dead").await + delivered == 3)
        .await;
    let dead = queue.subscribe(Source::Dead, 1).await.unwrap();
    for _ in delivered..3 {
        let delivery = next(&*dead).await;
        assert_eq!(delivery.death.as_ref().expect("a death").reason, "unroutable");
        dead.settle(vec![done(delivery)]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_queue_has_delivered_before_it_was_deleted_can_be_settled() {
    let server = Server::rabbitmq();
    let queue = open(&server).await;
    let subscription = queue.subscribe(Source::Events, 10).await.unwrap();
    let mut held = Vec::new();
    for id in ["a", "b", "c"] {
        publish_stubbornly(&*queue, id).await;
        held.push(next(&*subscription).await);
    }
    server.ctl(&["delete_queue", "headcount.events"]);
    eventually("the consumer learns of it", async || {
        subscription.trouble().is_some_and(|why| why.contains("deleted"))
    })
    .await;
    eventually("the queue is there again", async || queue.depths().await.is_ok()).await;
    assert!(held.iter().all(|delivery| subscription.holds(delivery.receipt)), "nothing of it comes again");
    // One of them is to be tried again: it is published like any other, and comes back.
    let again = held.pop().unwrap();
    let receipt = again.receipt;
    let retried = Settlement { delivery: again, action: Action::Retry { rung: 0, attempt: 1, waits: 0 } };
    subscription.settle(vec![retried]).await;
    subscription.settle(held.into_iter().map(done).collect()).await;
    assert_eq!(next(&*subscription).await.message.id.as_str(), "c");
    assert!(!subscription.holds(receipt), "it consumes the new queue");
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_after_its_queue_was_deleted_is_answered_at_once_and_gives_back_what_it_holds() {
    let server = Server::rabbitmq();
    let queue = open(&server).await;
    let subscription = queue.subscribe(Source::Events, 10).await.unwrap();
    publish_stubbornly(&*queue, "held").await;
    let held = next(&*subscription).await;
    server.ctl(&["delete_queue", "headcount.events"]);
    eventually("the consumer learns of it", async || {
        subscription.trouble().is_some_and(|why| why.contains("deleted"))
    })
    .await;
    let asked = Instant::now();
    subscription.cancel().await;
    assert!(asked.elapsed() < Duration::from_secs(2), "a stop waited for {:?}", asked.elapsed());
    assert!(subscription.next().await.is_none());
    eventually("the queue is there again", async || queue.depths().await.is_ok()).await;
    assert!(subscription.holds(held.receipt), "it can be given back");
    let back = Settlement { delivery: held, action: Action::Retry { rung: 0, attempt: 0, waits: 0 } };
    subscription.settle(vec![back]).await;
    let another = queue.subscribe(Source::Events, 10).await.unwrap();
    assert_eq!(next(&*another).await.message.id.as_str(), "held");
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_queue_without_consumers_is_declared_again_by_who_looks() {
    let server = Server::rabbitmq();
    let queue = open(&server).await;
    server.ctl(&["delete_queue", "headcount.retry.1m"]);
    assert!(queue.depths().await.is_err(), "a queue is missing");
    eventually("it is there again", async || queue.depths().await.is_ok()).await;
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_closed_under_600_deliveries_gives_each_back_once() {
    let server = Server::rabbitmq();
    let queue = open(&server).await;
    let subscription = queue.subscribe(Source::Events, 600).await.unwrap();
    let publishes = (0..900).map(|n| {
        let queue = queue.clone();
        async move { publish_stubbornly(&*queue, &format!("m{n}")).await }
    });
    futures_util::future::join_all(publishes).await;
    let mut held = Vec::new();
    for _ in 0..600 {
        held.push(next(&*subscription).await);
    }
    server.ctl(&["close_all_connections", "test"]);
    // None of these may be acked on the new connection: their tags mean other messages there.
    let first_of_new = next(&*subscription).await;
    subscription.settle(held.into_iter().map(done).collect()).await;
    let mut seen = HashSet::from([first_of_new.message.id.clone()]);
    subscription.settle(vec![done(first_of_new)]).await;
    while seen.len() < 900 {
        let delivery = next(&*subscription).await;
        assert!(
            seen.insert(delivery.message.id.clone()),
            "{} was settled and came again",
            delivery.message.id
        );
        subscription.settle(vec![done(delivery)]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_always_comes_back_unsettled_ends_in_the_dead_queue() {
    let server = Server::rabbitmq();
    let queue = open(&server).await;
    publish_stubbornly(&*queue, "poison").await;
    // By way of a retry queue, which the broker remembers as a death of its own.
    let subscription = queue.subscribe(Source::Events, 1).await.unwrap();
    let retry = Action::Retry { rung: 0, attempt: 1, waits: 0 };
    subscription.settle(vec![Settlement { delivery: next(&*subscription).await, action: retry }]).await;
    drop(subscription);
    let mut earlier = Vec::new();
    for _ in 0..=20 {
        let subscription = queue.subscribe(Source::Events, 1).await.unwrap();
        earlier.push(next(&*subscription).await.earlier);
    }
    assert_eq!(earlier, (0..=20).collect::<Vec<u32>>());
    eventually("it is dead", async || depth(&*queue, "dead").await == 1).await;
    let dead = queue.subscribe(Source::Dead, 1).await.unwrap();
    let delivery = next(&*dead).await;
    assert_eq!((delivery.message.id.as_str(), delivery.message.attempt), ("poison", 1));
    assert_eq!(delivery.message.body, message("poison").body);
    let death = delivery.death.as_ref().expect("a death");
    assert_eq!(death.reason, "crash_loop");
    assert!(death.detail.contains("21 times"), "{}", death.detail);
    dead.settle(vec![done(delivery)]).await;
    eventually("it is settled", async || depth(&*queue, "dead").await == 0).await;
}

/// A consumer timeout short enough for tests, and longer than whatever a test settles takes.
const SHORT: Duration = Duration::from_secs(2);
/// RabbitMQ's own.
const USUAL: Duration = Duration::from_secs(1800);

// RabbitMQ 3.10 to 4.2 close the channel of a consumer that settles too late. 4.3 cancels the consumer, leaves the channel
// open, and no longer counts that towards the delivery limit.

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_keeps_hanging_its_consumer_comes_back_with_a_count() {
    let server = Server::rabbitmq();
    server.set_consumer_timeout(SHORT);
    let queue = open(&server).await;
    let subscription = queue.subscribe(Source::Events, 1).await.unwrap();
    publish_stubbornly(&*queue, "hangs").await;
    let mut hanging = next(&*subscription).await;
    assert_eq!(hanging.earlier, 0);
    for times in 1..=3 {
        assert!(subscription.holds(hanging.receipt));
        let again = next(&*subscription).await;
        assert_eq!((again.message.id.as_str(), again.earlier), ("hangs", times));
        assert!(!subscription.holds(hanging.receipt), "what was taken back is still ours");
        hanging = again;
    }
    subscription.settle(vec![done(hanging)]).await;
    publish_stubbornly(&*queue, "after").await;
    drain(&*subscription, ["after".to_owned()].into()).await;
    assert!(subscription.trouble().is_some_and(|why| why.contains("consumer timeout")), "nobody is told");
    eventually("one consumer, and nothing left", async || {
        let depths = queue.depths().await.unwrap_or_default();
        depths.iter().any(|depth| depth.queue == "events" && (depth.messages, depth.consumers) == (0, 1))
    })
    .await;
    assert_eq!(depth(&*queue, "dead").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_back_is_settled_by_nobody_but_its_new_holder() {
    let server = Server::rabbitmq();
    let proxy = Proxy::new(&server.url());
    // A silent consumer's channel is closed by RabbitMQ 3.10 only once the missing heartbeats show.
    let slow = open_at(format!("{}?heartbeat=3", proxy.url())).await;
    let other = open(&server).await;
    server.set_consumer_timeout(SHORT);
    let late = slow.subscribe(Source::Events, 2).await.unwrap();
    server.set_consumer_timeout(USUAL);
    publish_stubbornly(&*other, "a").await;
    publish_stubbornly(&*other, "b").await;
    let held = vec![next(&*late).await, next(&*late).await];
    // The news of it does not arrive yet: the acks below are sent, and with 4.3 they meet a channel that is open.
    proxy.silence_all();
    eventually("both are taken back", async || depth(&*other, "events").await == 2).await;
    let stranger = other.subscribe(Source::Events, 2).await.unwrap();
    let theirs = [next(&*stranger).await, next(&*stranger).await];
    late.settle(held.into_iter().map(done).collect()).await;
    proxy.heal();
    // The stranger has its hands full; so this comes to the late one, once it has subscribed again.
    publish_stubbornly(&*other, "c").await;
    drain(&*late, ["c".to_owned()].into()).await;
    assert!(theirs.iter().all(|delivery| stranger.holds(delivery.receipt) && delivery.earlier == 1));
    drop(stranger);
    drain(&*late, ["a", "b"].map(str::to_owned).into()).await;
    eventually("nothing is left", async || depth(&*other, "events").await == 0).await;
    assert_eq!(depth(&*other, "dead").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn settling_what_was_taken_back_settles_nothing_of_the_new_life() {
    let server = Server::rabbitmq();
    server.set_consumer_timeout(SHORT);
    let queue = open(&server).await;
    let subscription = queue.subscribe(Source::Events, 4).await.unwrap();
    server.set_consumer_timeout(USUAL);
    for name in ["a", "b", "c"] {
        publish_stubbornly(&*queue, name).await;
    }
    let held = [next(&*subscription).await, next(&*subscription).await, next(&*subscription).await];
    let again = [next(&*subscription).await, next(&*subscription).await, next(&*subscription).await];
    let life = again[0].receipt.generation;
    let [first, second, third] = held;
    let burial = Action::Bury(Burial { reason: Reason::Rejected, detail: String::new() });
    let retry = Action::Retry { rung: 0, attempt: 1, waits: 0 };
    let late = vec![
        done(first),
        Settlement { delivery: second, action: burial },
        Settlement { delivery: third, action: retry },
    ];
    tokio::time::timeout(PATIENCE, subscription.settle(late)).await.expect("settling gives up");
    publish_stubbornly(&*queue, "after").await;
    let after = next(&*subscription).await;
    let in_one_life = again.iter().chain([&after]).all(|delivery| delivery.receipt.generation == life);
    assert!(in_one_life, "settling too late has closed the channel");
    drop(subscription);
    // None of them was settled, and none is there twice.
    let other = queue.subscribe(Source::Events, 4).await.unwrap();
    let mut left = Vec::new();
    for _ in 0..4 {
        let delivery = next(&*other).await;
        left.push((delivery.message.id.as_str().to_owned(), delivery.message.attempt, delivery.earlier));
        other.settle(vec![done(delivery)]).await;
    }
    left.sort_unstable();
    let expected = [("a", 0, 2), ("after", 0, 1), ("b", 0, 2), ("c", 0, 2)];
    assert_eq!(left, expected.map(|(id, attempt, earlier)| (id.to_owned(), attempt, earlier)));
    eventually("nothing is left", async || depth(&*queue, "events").await == 0).await;
    assert_eq!(depth(&*queue, "dead").await, 0, "what is no longer ours was buried");
    assert_eq!(depth(&*queue, "retry.100ms").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cancelled_subscription_holds_too_long_is_no_longer_its_own() {
    let server = Server::rabbitmq();
    server.set_consumer_timeout(SHORT);
    let queue = open(&server).await;
    let subscription = queue.subscribe(Source::Events, 1).await.unwrap();
    server.set_consumer_timeout(USUAL);
    publish_stubbornly(&*queue, "held").await;
    let held = next(&*subscription).await;
    subscription.cancel().await;
    assert!(subscription.next().await.is_none());
    let other = queue.subscribe(Source::Events, 1).await.unwrap();
    let again = next(&*other).await;
    assert_eq!((again.message.id.as_str(), again.earlier), ("held", 1));
    eventually("it is told so", async || !subscription.holds(held.receipt)).await;
    tokio::time::timeout(PATIENCE, subscription.settle(vec![done(held)])).await.expect("settling gives up");
    other.settle(vec![done(again)]).await;
    drop(other);
    eventually("nothing is left", async || depth(&*queue, "events").await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_way_of_coming_back_counts_as_a_delivery() {
    use lapin::options::{BasicGetOptions, BasicNackOptions, BasicRejectOptions};
    let server = Server::rabbitmq();
    let queue = open(&server).await;
    publish_stubbornly(&*queue, "returned").await;
    let connection = lapin::Connection::connect(&server.url(), Default::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let get = async || {
        let got = channel.basic_get("headcount.events".into(), BasicGetOptions::default()).await.unwrap();
        got.expect("a message").delivery.delivery_tag
    };
    let requeue = true;
    channel.basic_nack(get().await, BasicNackOptions { multiple: false, requeue }).await.unwrap();
    channel.basic_reject(get().await, BasicRejectOptions { requeue }).await.unwrap();
    get().await;
    connection.close(200, "gone".into()).await.unwrap();
    let subscription = queue.subscribe(Source::Events, 1).await.unwrap();
    let delivery = next(&*subscription).await;
    assert_eq!(delivery.earlier, 3);
    subscription.settle(vec![done(delivery)]).await;
}

#[tokio::test]
async fn a_wrong_password_or_virtual_host_is_refused_with_a_hint() {
    let url = servers::url("TEST_AMQP_URL");
    for wrong in [url.replace("guest:guest", "guest:wrong"), url.replace("%2f", "nowhere")] {
        let error = RabbitQueue::open(&Secret::new(wrong), "headcount", Ladder::default()).await.unwrap_err();
        assert!(matches!(error, QueueError::Refused { .. }), "{error:?}");
        assert!(error.hint().is_some_and(|hint| hint.contains("AMQP_URL")));
        assert!(!format!("{error:?}").contains("wrong"), "{error:?}");
    }
}
