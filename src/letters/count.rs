//! Owns the gauge `headcount_dead_letters`: counts the letters by status every fifteen seconds. Promises that a database
//! which this process asks for nothing else is asked once an hour only, so that one that sleeps when idle can sleep.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior};

use crate::{
    store::{housekeeping::Housekeeping, letters::Status},
    telemetry::metrics,
};

/// The time between two counts while the process asks the database for something else too.
const EVERY: Duration = Duration::from_secs(15);
/// The time between two counts while it does not.
const IDLE: Duration = Duration::from_secs(3_600);

/// Counts until it is dropped. A database that does not answer holds up this task alone.
pub async fn run(store: Arc<dyn Housekeeping>) {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last: Option<(u64, Instant)> = None;
    loop {
        tick.tick().await;
        let asked = store.asked();
        if !is_due(last, asked) {
            continue;
        }
        // While the database is away the gauge keeps its value, and the worker logs that it is away.
        if let Ok(statuses) = store.statuses().await {
            for status in Status::ALL {
                metrics::dead_letters(status.as_str(), statuses.get(&status).copied().unwrap_or_default());
            }
            last = Some((asked, Instant::now()));
        }
    }
}

/// Whether to ask the database again: `last` is how often the process had asked it by the last time, and when that was;
/// `asked` is how often by now.
pub(crate) fn is_due(last: Option<(u64, Instant)>, asked: u64) -> bool {
    last.is_none_or(|(before, at)| before != asked || at.elapsed() >= IDLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_nobody_asks_is_left_alone_for_an_hour() {
        let now = Instant::now();
        let ago = |time: Duration| now.checked_sub(time).unwrap();
        assert!(is_due(None, 0), "at the start");
        assert!(!is_due(Some((7, ago(Duration::from_secs(600)))), 7));
        assert!(is_due(Some((7, now)), 8));
        assert!(is_due(Some((7, ago(IDLE))), 7));
    }
}
