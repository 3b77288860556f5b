//! A part of RabbitMQ fails: a queue, a binding or a permission is missing, a connection is silent, a confirm is lost. What is
//! refused is not lost, the other parts go on, missing things are declared again, and `doctor` and readiness say so.
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
    sync::Arc,
    time::{Duration, Instant},
};

use headcount::{
    clerk::made_up::Person,
    cli::post::Poster,
    message::{Message, MessageId, Origin},
    queue::{
        Action, Burial, Delivery, Ladder, Queue, Reason, Settlement, Source, Subscription,
        rabbitmq::RabbitQueue,
    },
    secret::Secret,
    time::now,
};
use support::{
    PATIENCE, eventually,
    process::{Process, World},
    proxy::Proxy,
    servers::Server,
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

async fn open(url: &str) -> Arc<dyn Queue> {
    let ladder = Ladder::new(vec![Duration::from_millis(100), Duration::from_secs(1)]).unwrap();
    Arc::new(RabbitQueue::open(&Secret::new(url.to_owned()), "headcount", ladder).await.unwrap())
}

async fn next(subscription: &dyn Subscription) -> Delivery {
    next_within(PATIENCE, subscription).await
}

async fn next_within(limit: Duration, subscription: &dyn Subscription) -> Delivery {
    tokio::time::timeout(limit, subscription.next())
        .await
        .expect("a delivery in time")
        .expect("not cancelled")
}

fn settlement(delivery: Delivery, action: Action) -> Settlement {
    Settlement { delivery, action }
}

fn retry(rung: usize) -> Action {
    Action::Retry { rung, attempt: 1, waits: 0 }
}

/// Processes on this broker, with the queue's usual names.
fn world(url: String) -> World {
    let mut world = World::on(Some(url), None);
    world.set("HEADCOUNT_QUEUE_PREFIX", "headcount");
    world
}

fn body(user: &str) -> bytes::Bytes {
    Person::of(user, now()).event("user.created", now()).into()
}

/// Whether a webhook is answered 202.
async fn post(poster: &Poster, id: &str) -> bool {
    poster.post(id, body(&format!("user_{id}"))).await.is_ok_and(|status| status.is_success())
}

async fn channel(url: &str) -> (lapin::Connection, lapin::Channel) {
    let connection = lapin::Connection::connect(url, Default::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

/// The ids in a queue, which is emptied.
async fn ids(queue: &str, url: &str) -> HashSet<String> {
    let (connection, channel) = channel(url).await;
    let mut ids = HashSet::new();
    let options = lapin::options::BasicGetOptions { no_ack: true };
    while let Some(message) = channel.basic_get(queue.into(), options).await.unwrap() {
        ids.insert(message.properties.message_id().as_ref().unwrap().to_string());
    }
    connection.close(200, "seen".into()).await.unwrap();
    ids
}

/// A page of the operators' listener, with its status line.
async fn page(process: &Process, path: &str) -> String {
    let address: std::net::SocketAddr =
        process.operators.trim_start_matches("http://").trim_end_matches('/').parse().unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    tokio::task::spawn_blocking(move || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    })
    .await
    .unwrap()
}

async fn is_ready(process: &Process) -> bool {
    page(process, "/readyz").await.starts_with("HTTP/1.1 200")
}

/// Whether a queue is there; looked at without declaring anything.
async fn is_there(url: &str, queue: &str) -> bool {
    let (connection, channel) = channel(url).await;
    let options = lapin::options::QueueDeclareOptions { passive: true, ..Default::default() };
    let found = channel.queue_declare(queue.into(), options, Default::default()).await.is_ok();
    let _ = connection.close(200, "seen".into()).await;
    found
}

/// An ingress without consumers takes in on while this happens to the broker: every 202 after it is in a queue, and
/// within `limit` they are in a queue of events that is there.
async fn nothing_is_lost_when(limit: Duration, happens: impl AsyncFn(&Server)) {
    let server = Server::rabbitmq();
    let world = world(server.url());
    let ingress = world.start(&["ingress"]);
    let poster = ingress.poster();
    for n in 0..20 {
        assert!(post(&poster, &format!("before{n}")).await);
    }
    happens(&server).await;
    let (happened, mut accepted, mut kept) = (Instant::now(), Vec::new(), HashSet::new());
    let mut back = false;
    while !back {
        assert!(happened.elapsed() < limit, "no queue of events takes anything in:\n{}", ingress.log());
        for _ in 0..20 {
            let id = format!("msg{}", happened.elapsed().as_micros());
            if post(&poster, &id).await {
                accepted.push(id);
            }
        }
        if is_there(&server.url(), "headcount.events").await {
            let taken = ids("headcount.events", &server.url()).await;
            back = accepted.last().is_some_and(|last| taken.contains(last));
            kept.extend(taken);
        }
    }
    println!("back after {:?}, {} were accepted meanwhile", happened.elapsed(), accepted.len());
    // It may have been deleted after that of events was declared again.
    eventually("the dead queue is there", async || is_there(&server.url(), "headcount.dead").await).await;
    kept.extend(ids("headcount.dead", &server.url()).await);
    let lost: Vec<_> = accepted.iter().filter(|id| !kept.contains(*id)).collect();
    assert!(lost.is_empty(), "{} of {} that were answered 202 are in no queue", lost.len(), accepted.len());
    ingress.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_queue_takes_is_answered_503_and_the_queues_are_declared_again() {
    nothing_is_lost_when(Duration::from_secs(10), async |server| {
        server.ctl(&["delete_queue", "headcount.events"]);
        server.ctl(&["delete_queue", "headcount.dead"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_queue_of_events_is_declared_again_by_who_publishes() {
    nothing_is_lost_when(Duration::from_secs(15), async |server| {
        server.ctl(&["delete_queue", "headcount.events"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_binding_is_made_again_by_who_publishes() {
    nothing_is_lost_when(Duration::from_secs(25), async |server| unbind_events(&server.url()).await).await;
}

async fn unbind_events(url: &str) {
    let (connection, channel) = channel(url).await;
    let name = "headcount.events";
    channel.queue_unbind(name.into(), name.into(), "events".into(), Default::default()).await.unwrap();
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_captures_the_unroutable_has_the_binding_made_again_at_once() {
    let server = Server::rabbitmq();
    let queue = open(&server.url()).await;
    let dead = queue.subscribe(Source::Dead, 10).await.unwrap();
    let events = queue.subscribe(Source::Events, 10).await.unwrap();
    unbind_events(&server.url()).await;
    let unbound = Instant::now();
    let sent = Message { received_at: now(), ..message("stray") };
    queue.publish(sent).await.unwrap();
    assert_eq!(next(&*dead).await.message.id.as_str(), "stray");
    for n in 0.. {
        queue.publish(message(&format!("after{n}"))).await.unwrap();
        if tokio::time::timeout(Duration::from_millis(200), events.next()).await.is_ok() {
            break;
        }
        assert!(unbound.elapsed() < Duration::from_secs(8), "the binding is still missing");
    }
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_no_queue_takes_is_not_acked_and_comes_back_all_the_same() {
    let server = Server::rabbitmq();
    let queue = open(&server.url()).await;
    let subscription = queue.subscribe(Source::Events, 10).await.unwrap();
    queue.publish(message("retried")).await.unwrap();
    let delivery = next(&*subscription).await;
    for name in ["headcount.retry.100ms", "headcount.retry.1s", "headcount.dead"] {
        server.ctl(&["delete_queue", name]);
    }
    let settling = subscription.settle(vec![settlement(delivery, retry(0))]);
    tokio::time::timeout(Duration::from_secs(20), settling).await.expect("the queues are there again");
    let again = next(&*subscription).await;
    assert_eq!((again.message.id.as_str(), again.message.attempt), ("retried", 1));
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_cost_a_user_limited_to_our_names_no_good_webhook() {
    let server = Server::rabbitmq();
    let all = r"^headcount\.";
    let world = world(limited(&server, all));
    let ingress = world.start(&["ingress"]);
    let bad = Poster::new(
        ingress.webhooks.as_deref().unwrap(),
        &Secret::new("whsec_b3RoZXIgb3RoZXIgb3RoZXIgb3RoZXIgb3RoZXI=".to_owned()),
    )
    .unwrap();
    let good = ingress.poster();
    let both = async |prefix: &str, count: usize| {
        for n in 0..count {
            let (one, other) = (format!("{prefix}_good{n}"), format!("{prefix}_bad{n}"));
            let (good, bad) = tokio::join!(good.post(&one, body("user_1")), bad.post(&other, body("user_2")));
            assert_eq!(good.unwrap(), 202, "{one}:\n{}", ingress.log());
            assert_eq!(bad.unwrap(), 401);
        }
    };
    both("sampled", 400).await;
    let queue = open(&server.url()).await;
    let depth = async |name| {
        queue
            .depths()
            .await
            .unwrap()
            .iter()
            .find(|depth| depth.queue == name)
            .map_or(0, |depth| depth.messages)
    };
    eventually("samples arrive", async || depth("rejections").await > 0).await;
    // Without the right to samples, they are dropped.
    permit(&server, all, r"^headcount\.(events|dead|unrouted|retry.*)$", all);
    server.ctl(&["close_all_connections", "test"]);
    eventually("it is taken in", async || post(&good, "again").await).await;
    both("dropped", 100).await;
    eventually("all good ones are there", async || depth("events").await == 501).await;
    assert!(is_ready(&ingress).await, "{}", ingress.log());
    ingress.stop();
}

/// The URL of a user with these rights.
fn limited(server: &Server, names: &str) -> String {
    server.ctl(&["add_user", "app", "app"]);
    permit(server, names, names, names);
    server.url().replace("guest:guest", "app:app")
}

fn permit(server: &Server, configure: &str, write: &str, read: &str) {
    server.ctl(&["set_permissions", "-p", "/", "app", configure, write, read]);
}

/// Has a quorum queue stand still: it confirms nothing and delivers nothing.
fn suspend(server: &Server, queue: &str) {
    server.ctl(&["eval", &format!("sys:suspend('%2F_{queue}').")]);
}

fn resume(server: &Server, queue: &str) {
    server.ctl(&["eval", &format!("sys:resume('%2F_{queue}').")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirm_that_never_comes_refuses_nothing_else_and_holds_up_no_ack() {
    let server = Server::rabbitmq();
    let queue = open(&server.url()).await;
    let subscription = queue.subscribe(Source::Events, 3).await.unwrap();
    for n in 0..5 {
        queue.publish(message(&format!("msg{n}"))).await.unwrap();
    }
    let (stuck, done, buried) =
        (next(&*subscription).await, next(&*subscription).await, next(&*subscription).await);
    suspend(&server, "headcount.retry.100ms");
    let burial = Action::Bury(Burial { reason: Reason::Rejected, detail: String::new() });
    let settling = subscription.settle(vec![
        settlement(stuck, retry(0)),
        settlement(buried, burial),
        settlement(done, Action::Done),
    ]);
    let others = async {
        // One place was taken by what is done, one by what is buried.
        let (first, second) = (next(&*subscription).await, next(&*subscription).await);
        subscription.settle(vec![settlement(first, Action::Done), settlement(second, Action::Done)]).await;
        // Nobody publishes for a while: the lost confirm is all that is outstanding.
        tokio::time::sleep(Duration::from_secs(7)).await;
        for n in 0..100 {
            let published = queue.publish(message(&format!("later{n}"))).await;
            assert!(published.is_ok(), "{published:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(queue.ready().await.is_ok());
        assert!(
            queue.troubles().iter().any(|trouble| trouble.part == "publishing"),
            "{:?}",
            queue.troubles()
        );
        resume(&server, "headcount.retry.100ms");
    };
    tokio::join!(settling, others);
    let mut seen = HashSet::new();
    while !seen.contains("msg0") {
        // What was given up comes back with its connection's end: most of a minute on a busy machine.
        let delivery = next_within(2 * PATIENCE, &*subscription).await;
        seen.insert(delivery.message.id.to_string());
        subscription.settle(vec![settlement(delivery, Action::Done)]).await;
    }
    eventually("all is well", async || queue.troubles().is_empty()).await;
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_events_queue_that_confirms_nothing_is_refused_then_used_again() {
    let server = Server::rabbitmq();
    let queue = open(&server.url()).await;
    queue.publish(message("before")).await.unwrap();
    suspend(&server, "headcount.events");
    assert!(queue.publish(message("stuck")).await.is_err());
    eventually("it is known", async || queue.ready().await.is_err()).await;
    resume(&server, "headcount.events");
    eventually("it goes on", async || queue.publish(message("after")).await.is_ok()).await;
    eventually("all is well", async || queue.troubles().is_empty()).await;
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_fall_silent_under_load_are_replaced_within_a_minute() {
    let server = Server::rabbitmq();
    let proxy = Proxy::new(&server.url());
    let world = world(proxy.url());
    let up = world.start(&["up"]);
    let poster = up.poster();
    let works = async |mark: &str| works(&up, &poster, mark).await;
    works("before").await;
    let silenced = Instant::now();
    proxy.silence();
    tokio::select! {
        () = works("after") => {}
        () = load(&poster) => {}
    }
    assert!(silenced.elapsed() < Duration::from_secs(60), "{:?}:\n{}", silenced.elapsed(), up.log());
    println!("all works {:?} after the silence", silenced.elapsed());
    eventually("it is ready", async || is_ready(&up).await).await;
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_was_frozen_for_long_is_taken_up_again_within_a_minute() {
    let server = Server::rabbitmq();
    let world = world(server.url());
    let up = world.start(&["up"]);
    let poster = up.poster();
    works(&up, &poster, "before").await;
    // Longer than heartbeats need to notice, with webhooks on their way everywhere.
    let frozen_for = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        server.freeze();
        tokio::time::sleep(Duration::from_secs(30)).await;
    };
    tokio::select! {
        () = frozen_for => {}
        () = load(&poster) => {}
    }
    server.thaw();
    let thawed = Instant::now();
    works(&up, &poster, "after").await;
    assert!(thawed.elapsed() < Duration::from_secs(60), "{:?}:\n{}", thawed.elapsed(), up.log());
    println!("all works {:?} after the thaw", thawed.elapsed());
    up.stop();
}

/// Ten that post without an end.
async fn load(poster: &Poster) {
    let posting = (0..10).map(|one| async move {
        for n in 0.. {
            let _ = post(poster, &format!("load{one}_{n}")).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    futures_util::future::join_all(posting).await;
}

/// Publishing, consuming, capturing and looking: each is seen to work.
async fn works(process: &Process, poster: &Poster, mark: &str) {
    let number = async |name: &str| number(process, name).await;
    eventually("it is taken in", async || post(poster, &format!("{mark}_good")).await).await;
    let bad = format!("{mark}_bad");
    eventually("it is taken in", async || {
        poster.post(&bad, "no json".into()).await.is_ok_and(|status| status.is_success())
    })
    .await;
    let user = format!("/api/v1/users/user_{mark}_good");
    eventually("it is applied", async || page(process, &user).await.starts_with("HTTP/1.1 200")).await;
    eventually("it is captured", async || page(process, "/api/v1/dead").await.contains(&bad)).await;
    eventually("depths are seen", async || number("headcount_queue_messages").await == 0.0).await;
}

/// The value of a metric, summed over its labels.
async fn number(process: &Process, name: &str) -> f64 {
    let page = page(process, "/metrics").await;
    let samples = page.lines().filter(|line| line.starts_with(name));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_consuming_is_told_everywhere_once_and_goes_on_when_permitted() {
    let server = Server::rabbitmq();
    let (all, others) = (r"^headcount\.", r"^headcount\.(dead|rejections|retry.*)");
    let world = world(limited(&server, all));
    let up = world.start(&["up"]);
    let poster = up.poster();
    works(&up, &poster, "before").await;
    permit(&server, all, all, others);
    server.ctl(&["close_all_connections", "test"]);
    eventually("it is not ready", async || page(&up, "/readyz").await.contains("consuming events: ")).await;
    let trouble = "headcount_queue_trouble{part=\"consuming events\"} ";
    eventually("a metric tells", async || page(&up, "/metrics").await.contains(&format!("{trouble}1"))).await;
    let doctor = world.run(&["doctor"]);
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert_eq!(doctor.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot consume the queue headcount.events: ACCESS_REFUSED"), "{said}");

    permit(&server, all, all, all);
    eventually("it is ready again", async || is_ready(&up).await).await;
    eventually("a metric tells", async || page(&up, "/metrics").await.contains(&format!("{trouble}0"))).await;
    works(&up, &poster, "after").await;
    let log = up.log();
    assert_eq!(log.matches("consuming events does not work").count(), 1, "{log}");
    assert_eq!(log.matches("consuming events works again").count(), 1, "{log}");
    assert!(!log.contains("lapin"), "{log}");
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_written_is_found_by_doctor_and_by_who_needs_it() {
    let server = Server::rabbitmq();
    let all = r"^headcount\.";
    let world = world(limited(&server, all));
    let queue = open(&server.url().replace("guest:guest", "app:app")).await;
    let subscription = queue.subscribe(Source::Events, 1).await.unwrap();
    queue.publish(message("first")).await.unwrap();
    permit(&server, all, r"^headcount\.(events|dead|unrouted|rejections)$", all);
    server.ctl(&["close_all_connections", "test"]);
    let doctor = world.run(&["doctor", "--json"]);
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains("cannot publish to the exchange headcount.retry: ACCESS_REFUSED"), "{said}");
    assert!(!said.contains("headcount.events: ACCESS"), "{said}");
    // A version with known faults is named.
    assert_eq!(said.contains("RabbitMQ 3.10."), greeting(&server.url()).contains("3.10."), "{said}");

    let delivery = next(&*subscription).await;
    let settling = subscription.settle(vec![settlement(delivery, retry(0))]);
    let others = async {
        eventually("it is told", async || {
            queue
                .troubles()
                .iter()
                .any(|trouble| trouble.part == "publishing" && trouble.why.contains("headcount.retry"))
        })
        .await;
        queue.publish(message("second")).await.expect("webhooks go on");
        permit(&server, all, all, all);
    };
    tokio::join!(settling, others);
    assert_eq!(next(&*subscription).await.message.id.as_str(), "second");
    queue.close().await;
}

/// What a broker says first.
fn greeting(url: &str) -> String {
    use std::io::{Read, Write};
    let url = url::Url::parse(url).unwrap();
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", url.port().unwrap())).unwrap();
    stream.write_all(b"AMQP\0\0\x09\x01").unwrap();
    let mut said = [0; 1024];
    let length = stream.read(&mut said).unwrap();
    String::from_utf8_lossy(&said[..length]).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_of_another_kind_is_told_and_its_removal_mends_it() {
    let server = Server::rabbitmq();
    let world = world(server.url());
    let ingress = world.start(&["ingress"]);
    let (connection, other) = channel(&server.url()).await;
    let name = "headcount.events";
    let declare = lapin::options::QueueDeclareOptions { durable: true, ..Default::default() };
    other.queue_delete(name.into(), Default::default()).await.unwrap();
    other.queue_declare(name.into(), declare, Default::default()).await.unwrap();
    let told = "headcount.events exists on the broker with other arguments";
    eventually("it is not ready", async || page(&ingress, "/readyz").await.contains(told)).await;
    let doctor = world.run(&["doctor"]);
    assert!(String::from_utf8_lossy(&doctor.stdout).contains(told));
    other.queue_delete(name.into(), Default::default()).await.unwrap();
    eventually("it is ready", async || is_ready(&ingress).await).await;
    eventually("it takes webhooks in", async || post(&ingress.poster(), "msg").await).await;
    assert_eq!(ids(name, &server.url()).await.len(), 1);
    assert_eq!(ingress.log().matches(told).count(), 1, "{}", ingress.log());
    connection.close(200, "done".into()).await.unwrap();
    ingress.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_timeout_is_named_with_what_to_set_and_is_trouble() {
    let server = Server::rabbitmq();
    server.set_consumer_timeout(Duration::from_secs(2));
    let queue = open(&server.url()).await;
    let subscription = queue.subscribe(Source::Events, 1).await.unwrap();
    queue.publish(message("slow")).await.unwrap();
    let held = next(&*subscription).await;
    let told = async || {
        let why = subscription.trouble().unwrap_or_default();
        why.contains("over its consumer timeout") && why.contains("consumer_timeout in rabbitmq.conf")
    };
    eventually("it is told", told).await;
    assert!(!subscription.holds(held.receipt));
    assert_eq!(queue.troubles()[0].part, "consuming events");
    let again = next(&*subscription).await;
    assert!(subscription.holds(again.receipt));
    assert!(subscription.trouble().is_some(), "it is likely to come again");
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_an_ended_connection_is_let_go_at_once() {
    let server = Server::rabbitmq();
    let queue = open(&server.url()).await;
    const COUNT: usize = 100;
    for n in 0..COUNT {
        let big = Message { body: vec![b'x'; 400_000].into(), ..message(&format!("big{n}")) };
        queue.publish(big).await.unwrap();
    }
    let subscription = queue.subscribe(Source::Events, COUNT as u16).await.unwrap();
    let all_here = async || {
        let depths = queue.depths().await.unwrap_or_default();
        depths.iter().any(|depth| depth.queue == "events" && depth.messages == 0 && depth.consumers == 1)
    };
    let first = next(&*subscription).await;
    let mut memory = Vec::new();
    for _ in 0..6 {
        // They have arrived, and nobody asks for them.
        eventually("all are delivered", all_here).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        memory.push(resident_memory());
        server.ctl(&["close_all_connections", "test"]);
        eventually("it is let go", async || !subscription.holds(first.receipt)).await;
    }
    println!("{memory:?} MiB");
    // One generation is 40 MB.
    assert!(memory[5] < memory[0] + 80, "{memory:?} MiB");
    queue.close().await;
}

/// Of this process, in MiB.
fn resident_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_that_come_and_go_leave_nothing_behind() {
    let server = Server::rabbitmq();
    let proxy = Proxy::new(&server.url());
    let queue = open(&proxy.url()).await;
    queue.depths().await.unwrap();
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let (before, connections) = (tasks(), proxy.open());
    for n in 0..20 {
        queue.publish(message(&format!("msg{n}"))).await.unwrap();
        let subscription = queue.subscribe(Source::Events, 1).await.unwrap();
        let delivery = next(&*subscription).await;
        subscription.settle(vec![settlement(delivery, Action::Done)]).await;
    }
    let left = tokio::time::timeout(Duration::from_secs(10), async {
        while tasks() > before || proxy.open() > connections {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(
        left.await.is_ok(),
        "{} tasks and {} connections, from {before} and {connections}",
        tasks(),
        proxy.open()
    );
    queue.close().await;
}
