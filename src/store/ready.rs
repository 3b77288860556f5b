//! Owns asking a database whether it answers, within a bound, without ever cancelling the question: what is cancelled
//! in the middle of a transaction can leave a connection unfit for the next one. At most one question at a time.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::timeout};

use super::{StoreError, errors};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The right to ask.
#[derive(Debug)]
pub(super) struct Probe(Arc<Semaphore>);

impl Default for Probe {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Probe {
    /// Runs `question` to its end; answers for it once patience is over.
    pub(super) async fn run(
        &self,
        question: impl Future<Output = Result<(), StoreError>> + Send + 'static,
    ) -> Result<(), StoreError> {
        let silent =
            || errors::broken(format!("the database did not answer within {} s", PATIENCE.as_secs()));
        let turn = timeout(PATIENCE, self.0.clone().acquire_owned()).await;
        let Ok(Ok(turn)) = turn else { return Err(silent()) };
        let asked = tokio::spawn(async move {
            let answer = question.await;
            drop(turn);
            answer
        });
        match timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(errors::broken("the question to the database broke off")),
            Err(_) => Err(silent()),
        }
    }
}
