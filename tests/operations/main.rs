//! What people do is written down, and replays survive their processes: the contract on both stores, and real processes.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

#[path = "../support/stores.rs"]
#[allow(dead_code, reason = "the tests of users use the rest")]
mod stores;
#[path = "../support/mod.rs"]
mod support;

mod conduct;
mod contract;
mod log;
mod processes;
