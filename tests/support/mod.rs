//! Helpers that the integration tests share.
#![allow(dead_code, unreachable_pub)] // Each test binary uses its part.

pub mod browser;
pub mod clerk;
pub mod process;
pub mod proxy;
pub mod running;
pub mod servers;
pub mod terminal;
pub mod traffic;

use std::time::{Duration, Instant};

/// How long a test waits for an event that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `so` holds. Fails with `what` if it does not hold within [`PATIENCE`].
pub async fn eventually(what: &str, so: impl AsyncFn() -> bool) {
    eventually_within(PATIENCE, what, so).await;
}

/// The same for what takes long by itself.
pub async fn eventually_within(limit: Duration, what: &str, so: impl AsyncFn() -> bool) {
    let started = Instant::now();
    while !so().await {
        assert!(started.elapsed() < limit, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
