//! What the integration tests share.
#![allow(dead_code, unreachable_pub)] // Each test binary uses its part.

pub mod process;
pub mod proxy;
pub mod servers;
pub mod terminal;
pub mod traffic;

use std::time::{Duration, Instant};

/// How long a test waits for what has to happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until it is so; fails with `what` if it never becomes so.
pub async fn eventually(what: &str, so: impl AsyncFn() -> bool) {
    let started = Instant::now();
    while !so().await {
        assert!(started.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
