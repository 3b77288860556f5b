//! Owns running again what lost a race, in place and a bounded number of times. Never touches SQL.

use std::time::{Duration, Instant};

use super::{Class, Incoming, StoreError, errors};
use crate::rules::Outcome;

/// Tries in place after the first.
const AGAIN: u32 = 5;
/// The same of a batch of several messages, which is split next: smaller, it meets fewer others, and a message that loses
/// every race holds its neighbours up for less long.
const AGAIN_TOGETHER: u32 = 1;

/// Nothing begins later than this after its batch did: neither another try nor a statement that can be slow.
pub(super) const LAST_BEGIN: Duration = Duration::from_millis(4_500);

/// One way to run a batch in one transaction.
pub(super) trait Attempt: Send {
    /// Runs it; after an error nothing was changed.
    fn run(&mut self, batch: &[Incoming]) -> impl Future<Output = Result<Vec<Outcome>, StoreError>> + Send;
}

/// Runs `batch` until it ends in anything but a race, a bounded number of times.
pub(super) async fn races(
    batch: &[Incoming],
    attempt: &mut impl Attempt,
) -> Result<Vec<Outcome>, StoreError> {
    if batch.is_empty() {
        return Ok(Vec::new());
    }
    let started = Instant::now();
    let last = if batch.len() > 1 { AGAIN_TOGETHER } else { AGAIN };
    let mut again = 0;
    loop {
        match attempt.run(batch).await {
            Err(error) if error.class == Class::Transient => {
                tracing::debug!(again, code = error.code, messages = batch.len(), "lost a race: {error}");
                if again == last {
                    return Err(lost(batch, error));
                }
                if started.elapsed() > LAST_BEGIN {
                    return Err(error);
                }
                step_aside(again).await;
                again += 1;
            }
            result => return result,
        }
    }
}

/// Runs `attempt`, after whose errors nothing was changed, until it ends in anything but a race, at most `1 + AGAIN` times.
pub(super) async fn again<T, F>(mut attempt: impl FnMut() -> F + Send) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>> + Send,
{
    for again in 0..AGAIN {
        match attempt().await {
            Err(error) if error.class == Class::Transient => {
                tracing::debug!(again, code = error.code, "lost a race: {error}");
                step_aside(again).await;
            }
            result => return result,
        }
    }
    attempt().await
}

/// With jitter, so that those who met do not meet again.
async fn step_aside(again: u32) {
    let pause = rand::random_range(1..=(5 << again));
    tokio::time::sleep(Duration::from_millis(pause)).await;
}

/// A message that clashes alone, again and again, over a unique key: no race, it cannot be stored.
fn lost(batch: &[Incoming], error: StoreError) -> StoreError {
    if batch.len() == 1 && errors::is_unique_violation(&error) {
        return StoreError { class: Class::Permanent, ..error };
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{Change, Event};

    struct Losing {
        class: Class,
        tries: u32,
    }

    impl Attempt for Losing {
        async fn run(&mut self, _: &[Incoming]) -> Result<Vec<Outcome>, StoreError> {
            self.tries += 1;
            Err(StoreError { class: self.class, ..errors::raced("as always") })
        }
    }

    fn incoming() -> Incoming {
        let event = Event {
            message_id: "m".into(),
            change: Change::Other,
            fresh_row: uuid::Uuid::nil(),
            patience_over: false,
        };
        Incoming { event, event_type: "email.created".into(), received_at: 0 }
    }

    #[tokio::test]
    async fn only_a_lost_race_is_run_again_five_times_alone_once_together() {
        for (class, messages, tries) in [
            (Class::Transient, 1, 6),
            (Class::Transient, 2, 2),
            (Class::Unclear, 1, 1),
            (Class::Permanent, 2, 1),
            (Class::Outage, 1, 1),
        ] {
            let batch: Vec<Incoming> = (0..messages).map(|_| incoming()).collect();
            let mut attempt = Losing { class, tries: 0 };
            let error = races(&batch, &mut attempt).await.unwrap_err();
            assert_eq!((error.class, attempt.tries), (class, tries), "{messages} messages");
        }
    }
}
