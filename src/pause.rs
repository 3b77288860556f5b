//! Owns how something that fails now and then is kept going: how long to wait before the next try (exponential, with
//! jitter, without an end), stopping in between, and that each change is logged once. The only user of `backoff`.

use std::time::Duration;

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff};

/// Pauses that double from `first` up to `longest`, each scattered by half to both sides.
#[derive(Debug)]
pub struct Pauses(ExponentialBackoff);

impl Pauses {
    /// Starts at `first`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self(
            ExponentialBackoffBuilder::new()
                .with_initial_interval(first)
                .with_max_interval(longest)
                .with_multiplier(2.0)
                .with_randomization_factor(0.5)
                .with_max_elapsed_time(None)
                .build(),
        )
    }

    /// How long to wait now.
    pub fn next_pause(&mut self) -> Duration {
        self.0.next_backoff().unwrap_or(self.0.max_interval)
    }

    /// It worked: the next pause is the first again.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

/// What a loop keeps that goes on until it is asked to stop: it tries, and where it fails it pauses and tries again.
#[derive(Debug)]
pub struct Recovery {
    pauses: Pauses,
    failing: bool,
}

impl Recovery {
    /// Pauses begin at `first`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { pauses: Pauses::new(first, longest), failing: false }
    }

    /// A try has failed. `true`: the first after it worked, so that this is to be logged.
    pub fn failed(&mut self) -> bool {
        !std::mem::replace(&mut self.failing, true)
    }

    /// It works, and the next pause is the first again. `true`: it had failed, so that this is to be logged.
    pub fn works(&mut self) -> bool {
        self.pauses.reset();
        std::mem::take(&mut self.failing)
    }

    /// Waits before the next try. `true`: `stop` came first, and there is to be none.
    pub async fn pause(&mut self, stop: impl Future<Output = ()>) -> bool {
        tokio::select! {
            () = tokio::time::sleep(self.pauses.next_pause()) => false,
            () = stop => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn each_change_is_to_be_logged_once_and_a_stop_ends_the_longest_pause() {
        let mut recovery = Recovery::new(Duration::from_millis(1), Duration::from_secs(3600));
        assert!(!recovery.works(), "it never failed");
        assert!(recovery.failed() && !recovery.failed());
        assert!(!recovery.pause(pending()).await);
        assert!(recovery.works() && !recovery.works());
        let mut recovery = Recovery::new(Duration::from_secs(3600), Duration::from_secs(3600));
        assert!(recovery.pause(ready(())).await);
    }

    #[test]
    fn pauses_grow_to_the_longest_and_start_over_after_a_reset() {
        let mut pauses = Pauses::new(Duration::from_millis(100), Duration::from_secs(5));
        assert!((50..=150).contains(&pauses.next_pause().as_millis()));
        let late = (0..50).map(|_| pauses.next_pause()).max().unwrap();
        assert!(late > Duration::from_secs(2) && late <= Duration::from_millis(7500), "{late:?}");
        pauses.reset();
        assert!((50..=150).contains(&pauses.next_pause().as_millis()));
    }
}
