//! Owns reading accounts for many requests at a time: those that come while the database is busy are asked for together, so that
//! the number of requests is no number of queries.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::store::{Store, StoreError, accounts::Account, sessions::Ended};

/// The most accounts of one query.
const TOGETHER: usize = 500;
/// The most queries at a time.
const QUERIES: usize = 3;
/// The most requests that wait.
const WAITING: usize = 10_000;

/// An account, as far as the table knows it, and whether the session that was asked about has ended; or why the database does
/// not say.
pub(super) type Looked = Result<(Option<Arc<Account>>, bool), Arc<StoreError>>;

struct Asked {
    clerk_id: String,
    session: Option<String>,
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

    /// The account of this Clerk id, and one of its sessions. `None` for `Looked` where nobody answers any more.
    pub(super) async fn account(&self, clerk_id: &str, session: Option<&str>) -> Option<Looked> {
        let (answer, answered) = oneshot::channel();
        let asked = Asked { clerk_id: clerk_id.to_owned(), session: session.map(str::to_owned), answer };
        self.0.send(asked).await.ok()?;
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
    let each_once = |texts: &mut dyn Iterator<Item = &String>| -> Vec<String> {
        texts.collect::<BTreeSet<_>>().into_iter().cloned().collect()
    };
    let clerk_ids = each_once(&mut asked.iter().map(|one| &one.clerk_id));
    let sessions = each_once(&mut asked.iter().filter_map(|one| one.session.as_ref()));
    let answers = match store.accounts(&clerk_ids, &sessions).await {
        Ok((accounts, ended)) => {
            let accounts = accounts.into_iter().map(|one| (one.clerk_id().to_owned(), Arc::new(one)));
            Ok((accounts.collect::<HashMap<_, _>>(), ended.into_iter().collect::<HashSet<Ended>>()))
        }
        Err(error) => Err(Arc::new(error)),
    };
    for Asked { clerk_id, session, answer } in asked {
        let looked = match &answers {
            Ok((accounts, ended)) => {
                let account = accounts.get(&clerk_id).cloned();
                Ok((account, session.is_some_and(|session| ended.contains(&(session, clerk_id)))))
            }
            Err(error) => Err(Arc::clone(error)),
        };
        // Whoever hung up needs no answer.
        let _ = answer.send(looked);
    }
}
