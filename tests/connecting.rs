//! Connecting to a server that is away, full, silent or of another kind, or whose address is written in another way. The error
//! names the case with host and port, and no command waits for long.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use headcount::{
    queue::{Ladder, Queue, rabbitmq::RabbitQueue},
    secret::Secret,
};
use sqlx::{Connection, PgConnection};
use support::{
    eventually,
    process::{Backends, World},
    proxy::Proxy,
    servers::{self, Server, url},
};

/// README promises that a command gives up within this time.
const GIVES_UP: Duration = Duration::from_secs(30);

/// A listener that accepts, takes what comes, answers with `answer`, and says nothing more.
fn listener(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let (mut stream, mut buffer) = (stream, [0; 1024]);
                while stream.read(&mut buffer).is_ok_and(|read| read > 0) {
                    if !answer.is_empty() && (stream.write_all(answer).is_err() || answer[0] == 0x15) {
                        return; // A TLS alert is the last word.
                    }
                }
            });
        }
    });
    address
}

fn says(output: &Output, what: &[&str]) {
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{said}");
    for what in what {
        assert!(said.contains(what), "{what}: {said}");
    }
    for wrong in ["hunter2", "could be had in time", "InvalidContentType"] {
        assert!(!said.contains(wrong), "{wrong}: {said}");
    }
}

#[test]
fn every_command_gives_up_on_servers_that_accept_and_say_nothing() {
    let silent = listener(b"");
    let world = World::on(
        Some(format!("amqp://guest:guest@{silent}/%2f")),
        Some(format!("postgres://app:hunter2@{silent}/app")),
    );
    let door = format!("http://{silent}/webhooks/clerk");
    let commands = [
        &["migrate"][..],
        &["doctor"],
        &["status"],
        &["users", "list"],
        &["dead", "list"],
        &["dead", "replay", "--all", "--yes"],
        &["send", "user.created", "--url", &door],
    ];
    let begun = Instant::now();
    let running: Vec<_> = commands.iter().map(|command| (command, world.begin(command))).collect();
    for (command, run) in running {
        let output = run.end();
        let took = begun.elapsed();
        println!("{command:?} gave up after {took:?} at most");
        assert!(took < GIVES_UP, "{command:?} took {took:?}");
        if command[0] == "send" {
            assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        } else {
            says(&output, &["does not answer", &silent.to_string()]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_no_more_connections_is_named_at_once() {
    let database = Server::postgres_with("-c max_connections=8 -c superuser_reserved_connections=3");
    let world = World::on(None, Some(database.url()));
    let mut taken = Vec::new();
    while let Ok(connection) = PgConnection::connect(&database.url()).await {
        taken.push(connection);
    }
    for command in [&["migrate"][..], &["doctor"], &["users", "list"]] {
        let begun = Instant::now();
        says(&world.run(command), &["too many clients", "max_connections"]);
        assert!(begun.elapsed() < Duration::from_secs(10), "{command:?}: {:?}", begun.elapsed());
    }
    drop(taken);
}

#[test]
fn a_database_that_does_not_let_us_in_is_named_with_its_reason() {
    let server = url::Url::parse(&url("TEST_DATABASE_URL")).unwrap();
    let port = server.port().unwrap();
    let nobody = format!("127.0.0.1:{}", servers::free_port());
    let web = listener(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    let cases = [
        (format!("postgres://app:hunter2@{nobody}/app"), vec!["refuses the connection", &*nobody]),
        (
            "postgres://app:hunter2@nowhere.invalid/app".into(),
            vec!["nowhere.invalid:5432", "host name cannot be resolved"],
        ),
        (
            format!("postgres://postgres@127.0.0.1:{port}/postgres?sslmode=require"),
            vec!["offers no TLS", "sslmode"],
        ),
        (format!("postgres://app:hunter2@{web}/app"), vec!["does not speak PostgreSQL's protocol"]),
        (format!("postgres://postgres@127.0.0.1:{port}/no_such"), vec!["no_such", "create the database"]),
        (format!("postgres://no_such@127.0.0.1:{port}/postgres"), vec!["no_such", "user"]),
        (
            "postgres://app:hunter2@/app?host=/no/such/directory".into(),
            vec!["/no/such/directory", "no such socket"],
        ),
    ];
    for (address, what) in cases {
        let mut world = World::new(Backends::Embedded);
        world.set("DATABASE_URL", &address);
        says(&world.run(&["migrate"]), &what);
    }
}

#[test]
fn a_broker_that_does_not_let_us_in_is_named_with_its_reason() {
    let broker = Server::rabbitmq();
    broker.ctl(&["add_vhost", "closed"]);
    broker.ctl(&["add_vhost", "full"]);
    broker.ctl(&["set_permissions", "-p", "full", "guest", ".*", ".*", ".*"]);
    broker.ctl(&["set_vhost_limits", "-p", "full", r#"{"max-connections": 0}"#]);
    let place = url::Url::parse(&broker.url()).unwrap();
    let place = format!("127.0.0.1:{}", place.port().unwrap());
    let nobody = format!("127.0.0.1:{}", servers::free_port());
    // What a TLS server answers to what is no TLS: an alert.
    let tls = listener(&[0x15, 3, 1, 0, 2, 2, 70]);
    let web = listener(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    let cases = [
        (format!("amqp://guest:hunter2@{nobody}"), vec!["refuses the connection", &*nobody]),
        (
            "amqp://app:hunter2@nowhere.invalid".into(),
            vec!["nowhere.invalid:5672", "host name cannot be resolved"],
        ),
        (format!("amqps://guest:guest@{place}"), vec!["speaks no TLS", "write amqp://"]),
        (format!("amqp://guest:hunter2@{tls}"), vec!["speaks TLS", "write amqps://"]),
        (format!("amqp://guest:hunter2@{web}"), vec!["does not speak AMQP"]),
        (
            format!("amqp://guest:hunter2@{place}"),
            vec!["refuses the user or its password", "check user and password"],
        ),
        (format!("amqp://guest:guest@{place}/no_such"), vec!["no_such", "add_vhost"]),
        (format!("amqp://guest:guest@{place}/closed"), vec!["closed", "set_permissions"]),
        (format!("amqp://guest:guest@{place}/full"), vec!["limit", "set_vhost_limits"]),
    ];
    for (address, what) in cases {
        let mut world = World::new(Backends::Embedded);
        assert!(world.run(&["migrate"]).status.success());
        world.set("AMQP_URL", &address);
        says(&world.run(&["status"]), &what);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_stays_away_is_said_to_be_so_in_words_that_do_not_double() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("amqp://guest:hunter2@{}/%2f", listener.local_addr().unwrap());
    let tried = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&tried);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            drop(stream);
            counter.fetch_add(1, Relaxed);
        }
    });
    let queue = RabbitQueue::open(&Secret::new(url), "headcount", Ladder::default()).await.unwrap();
    // The one before the last has been told by then.
    eventually("it has tried again", async || tried.load(Relaxed) >= 3).await;
    let error = queue.ready().await.unwrap_err().to_string();
    assert_eq!(error.matches("the queue is not available").count(), 1, "{error}");
    let troubles = queue.troubles();
    assert_eq!(troubles.len(), 1, "{troubles:?}");
    assert!(troubles[0].why.starts_with("the broker at 127.0.0.1:"), "{troubles:?}");
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_ipv6_lead_to_their_hosts() {
    let (broker, database) =
        (Proxy::on_ipv6(&url("TEST_AMQP_URL")), Proxy::on_ipv6(&url("TEST_DATABASE_URL")));
    let mut world = World::new(Backends::RabbitPostgres);
    world.set("AMQP_URL", &broker.url());
    world.set("DATABASE_URL", &database.url());
    world.start(&["up"]).stop();
    let output = world.run(&["doctor"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    let port = |url: String| url::Url::parse(&url).unwrap().port().unwrap();
    for place in [
        format!("RabbitMQ at [::1]:{}", port(broker.url())),
        format!("PostgreSQL at [::1]:{}", port(database.url())),
    ] {
        assert!(said.contains(&place), "{place}: {said}");
    }
    assert!(broker.accepted() > 0 && database.accepted() > 0);
    world.clean_up().await;
}

#[test]
fn what_stands_in_an_address_is_told_by_name_and_never_by_value() {
    let mut world = World::new(Backends::EmbeddedPostgres);
    let server = url("TEST_DATABASE_URL");
    world.set("DATABASE_URL", &format!("{server}?colour=hunter2&connect_timeout=7"));
    world.set("RUST_LOG", "trace");
    let output = world.run(&["migrate"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("hunter2"), "{said}");
    world.set("DATABASE_URL", &format!("{server}?schema=elsewhere"));
    let output = world.run(&["migrate"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("names another schema") && said.contains("HEADCOUNT_SCHEMA=elsewhere"), "{said}");
}
