//! Tests of the proxy that other tests use to silence connections.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

#[path = "support/proxy.rs"]
mod proxy;

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use proxy::Proxy;

/// A server that sends back what it gets, under a URL.
fn echo() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut back = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut stream, &mut back);
                let _ = back.shutdown(Shutdown::Write);
            });
        }
    });
    format!("amqp://guest:guest@127.0.0.1:{port}/%2f?heartbeat=3")
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

fn answers(stream: &mut TcpStream, word: &[u8; 4]) {
    stream.write_all(word).unwrap();
    reads(stream, word);
}

fn reads(stream: &mut TcpStream, word: &[u8; 4]) {
    let mut back = [0; 4];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, word);
}

/// Nothing comes: no byte, no end, no error.
fn is_silent(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let error = stream.read(&mut [0; 4]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
}

#[test]
fn the_connections_of_a_moment_fall_silent_and_new_ones_work() {
    let proxy = Proxy::new(&echo());
    let (mut one, mut two) = (connect(&proxy), connect(&proxy));
    answers(&mut one, b"one1");
    answers(&mut two, b"two1");
    proxy.silence();
    one.write_all(b"one2").unwrap();
    is_silent(&mut one);
    let mut new = connect(&proxy);
    answers(&mut new, b"new1");
    two.write_all(b"two2").unwrap();
    is_silent(&mut two);
    answers(&mut new, b"new2");
    assert_eq!((proxy.accepted(), proxy.open()), (3, 3));
    proxy.heal();
    reads(&mut one, b"one2");
    reads(&mut two, b"two2");
    answers(&mut one, b"one3");
}

#[test]
fn new_connections_fall_silent_too_where_all_do_until_it_is_healed() {
    let proxy = Proxy::new(&echo());
    let mut old = connect(&proxy);
    answers(&mut old, b"old1");
    proxy.silence_all();
    let mut new = connect(&proxy);
    old.write_all(b"old2").unwrap();
    new.write_all(b"new1").unwrap();
    is_silent(&mut old);
    is_silent(&mut new);
    proxy.heal();
    reads(&mut old, b"old2");
    reads(&mut new, b"new1");
}

#[test]
fn a_silent_end_that_closes_is_not_heard_and_others_are() {
    let proxy = Proxy::new(&echo());
    let (mut silent, mut heard) = (connect(&proxy), connect(&proxy));
    answers(&mut silent, b"one1");
    proxy.silence();
    drop(silent);
    heard.shutdown(Shutdown::Write).unwrap();
    is_silent(&mut heard);
    assert_eq!(proxy.open(), 2);
    proxy.heal();
    assert_eq!(heard.read(&mut [0; 4]).unwrap(), 0, "its end is passed on");
    let started = Instant::now();
    while proxy.open() > 0 {
        assert!(started.elapsed() < Duration::from_secs(10), "{} are open", proxy.open());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn bulk_runs_through_it_whole_though_it_falls_silent_meanwhile() {
    let proxy = Proxy::new(&echo());
    let mut stream = connect(&proxy);
    let sent: Vec<u8> = (0..8_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut writing = stream.try_clone().unwrap();
    let writer = {
        let sent = sent.clone();
        std::thread::spawn(move || {
            writing.write_all(&sent).unwrap();
            writing.shutdown(Shutdown::Write).unwrap();
        })
    };
    let mut back = vec![0; 1_000_000];
    stream.read_exact(&mut back).unwrap();
    proxy.silence();
    std::thread::sleep(Duration::from_millis(100));
    proxy.heal();
    stream.read_to_end(&mut back).unwrap();
    writer.join().unwrap();
    assert!(back == sent, "{} of {} bytes came back", back.len(), sent.len());
}

#[test]
fn a_server_that_is_away_ends_the_connection() {
    let away = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let proxy = Proxy::new(&format!("postgres://postgres@{away}/postgres"));
    assert!(!matches!(connect(&proxy).read(&mut [0; 4]), Ok(1..)));
}

#[test]
fn the_url_stays_but_for_host_and_port() {
    let amqp = Proxy::new(&echo());
    assert_eq!(amqp.url(), format!("amqp://guest:guest@{}/%2f?heartbeat=3", amqp.address()));
    let postgres = Proxy::new("postgres://app:secret@localhost/postgres?sslmode=disable");
    assert_eq!(
        postgres.url(),
        format!("postgres://app:secret@{}/postgres?sslmode=disable", postgres.address())
    );
}
