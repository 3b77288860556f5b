//! Owns `headcount_dead_letters`: counts the letters by status now and then. Promises to leave a database alone that
//! nobody else asks, but for once an hour: one that falls asleep when it is idle may go on sleeping.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior};

use crate::{
    store::{housekeeping::Housekeeping, letters::Status},
    telemetry::metrics,
};

/// Between two counts while the database is asked for something.
const EVERY: Duration = Duration::from_secs(15);
/// Between two questions of the process's own while it is not.
const IDLE: Duration = Duration::from_secs(3_600);

/// Counts until it is dropped. A frozen database holds up nothing else.
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
        // While the database is away the gauge keeps what was last known; the worker says that it is away.
        if let Ok(statuses) = store.statuses().await {
            for status in Status::ALL {
                metrics::dead_letters(status.as_str(), statuses.get(&status).copied().unwrap_or_default());
            }
            last = Some((asked, Instant::now()));
        }
    }
}

/// Whether to ask a database that had been asked for so much at the last time, and for so much by now.
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
