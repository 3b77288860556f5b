//! Owns how long to wait before trying again: exponential, with jitter, without an end. The only user of `backoff`.

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

#[cfg(test)]
mod tests {
    use super::*;

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
