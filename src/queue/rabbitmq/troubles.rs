//! Owns what does not work at present, by part of the queue and by reporter.
//! Promises one line in the log for each change, however often it is reported. Never asks the broker.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tracing::{info, warn};

use crate::queue::Trouble;

/// A reason that keeps changing is logged again at most this often.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// What reports a trouble: several can have one part in trouble at a time.
pub(super) type Reporter = u64;

/// The connection that publishes.
pub(super) const LINK: Reporter = 0;
/// Queues, exchanges and bindings.
pub(super) const TOPOLOGY: Reporter = 1;
/// The lane of webhooks.
pub(super) const WEBHOOKS: Reporter = 2;
/// The lane of retries and burials.
pub(super) const SETTLEMENTS: Reporter = 3;
/// A subscription that could not begin.
pub(super) const SUBSCRIBING: Reporter = 4;
/// Subscriptions are numbered from here.
pub(super) const FIRST_SUBSCRIPTION: Reporter = 5;

/// The troubles of one queue.
#[derive(Debug, Default)]
pub(super) struct Troubles(Mutex<BTreeMap<(&'static str, Reporter), Known>>);

#[derive(Debug)]
struct Known {
    why: String,
    said: Instant,
}

impl Troubles {
    /// A part does not work.
    pub(super) fn report(&self, part: &'static str, reporter: Reporter, why: String) {
        match self.lock().entry((part, reporter)) {
            Entry::Vacant(entry) => {
                warn!("{part} does not work: {why}");
                entry.insert(Known { why, said: Instant::now() });
            }
            Entry::Occupied(mut entry) => {
                let known = entry.get_mut();
                if known.why != why && known.said.elapsed() > SAY_AGAIN {
                    warn!("{part} does not work: {why}");
                    known.said = Instant::now();
                }
                known.why = why;
            }
        }
    }

    /// It works again, or does so already.
    pub(super) fn clear(&self, part: &'static str, reporter: Reporter) {
        if self.lock().remove(&(part, reporter)).is_some() {
            info!("{part} works again");
        }
    }

    /// Its reporter is gone.
    pub(super) fn forget(&self, part: &'static str, reporter: Reporter) {
        self.lock().remove(&(part, reporter));
    }

    /// What one reporter knows.
    pub(super) fn of(&self, part: &'static str, reporter: Reporter) -> Option<String> {
        self.lock().get(&(part, reporter)).map(|known| known.why.clone())
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Trouble> {
        let trouble =
            |(&(part, _), known): (&(&'static str, _), &Known)| Trouble { part, why: known.why.clone() };
        self.lock().iter().map(trouble).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(&'static str, Reporter), Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reporter_has_its_own_say() {
        let troubles = Troubles::default();
        troubles.report("publishing", LINK, "away".into());
        troubles.report("publishing", TOPOLOGY, "a queue is missing".into());
        troubles.report("consuming events", FIRST_SUBSCRIPTION, "refused".into());
        troubles.report("publishing", LINK, "still away".into());
        troubles.clear("publishing", TOPOLOGY);
        troubles.forget("consuming events", FIRST_SUBSCRIPTION);
        assert_eq!(troubles.all(), [Trouble { part: "publishing", why: "still away".into() }]);
        assert_eq!(troubles.of("publishing", LINK).as_deref(), Some("still away"));
        troubles.clear("publishing", LINK);
        assert_eq!(troubles.all(), []);
    }
}
