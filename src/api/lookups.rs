//! Owns reading accounts for many requests at a time: those that come while the database is busy are asked for together, so that
//! the number of requests is no number of queries.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::store::{Store, StoreError, accounts::Account};

/// The most accounts of one query.
const TOGETHER: usize = 500;
/// The most queries at a time.
const QUERIES: usize = 3;
/// The most requests that wait.
const WAITING: usize = 10_000;

/// An account, as far as the table knows it; or why the database does not say.
pub(super) type Looked = Result<Option<Arc<Account>>, Arc<StoreError>>;

struct Asked {
    clerk_id: String,
    answer: oneshot::Sender<Looked>,
}

/// Reads accounts. Clones share the queries.
#[derive(Clone)]
pub(super) struct Lookups(mpsc::Sender<Asked>);

impl Lookups {
    /// Starts to answer, until the last clone is dropped.
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        let (asks, asked) = mpsc::channel(WAITING);
        tokio::spawn(answer(store, asked));
        Self(asks)
    }

    /// The account of this Clerk id. `None` for `Looked` where nobody answers any more.
    pub(super) async fn account(&self, clerk_id: &str) -> Option<Looked> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Asked { clerk_id: clerk_id.to_owned(), answer }).await.ok()?;
        answered.await.ok()
    }
}

async fn answer(store: Arc<dyn Store>, mut asked: mpsc::Receiver<Asked>) {
    let queries = Arc::new(Semaphore::new(QUERIES));
    loop {
        // First a turn, then all that came until there was one.
        let Ok(turn) = Arc::clone(&queries).acquire_owned().await else { return };
        let mut together = Vec::new();
        if asked.recv_many(&mut together, TOGETHER).await == 0 {
            return;
        }
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            look(store.as_ref(), together).await;
            drop(turn);
        });
    }
}

async fn look(store: &dyn Store, asked: Vec<Asked>) {
    let mut by_id: HashMap<String, Vec<oneshot::Sender<Looked>>> = HashMap::new();
    for Asked { clerk_id, answer } in asked {
        by_id.entry(clerk_id).or_default().push(answer);
    }
    let ids: Vec<String> = by_id.keys().cloned().collect();
    let mut tell = |clerk_id: &str, looked: &Looked| {
        for answer in by_id.remove(clerk_id).unwrap_or_default() {
            // Whoever hung up needs no answer.
            let _ = answer.send(looked.clone());
        }
    };
    match store.accounts(&ids).await {
        Ok(accounts) => {
            for account in accounts {
                let clerk_id = account.clerk_id().to_owned();
                tell(&clerk_id, &Ok(Some(Arc::new(account))));
            }
            ids.iter().for_each(|clerk_id| tell(clerk_id, &Ok(None)));
        }
        Err(error) => {
            let error = Arc::new(error);
            ids.iter().for_each(|clerk_id| tell(clerk_id, &Err(Arc::clone(&error))));
        }
    }
}
