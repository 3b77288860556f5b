//! Owns how long a call to a database may take, so that no caller needs a rule or a clock of its own.
//!
//! Promises that each call runs in a task of its own, which goes on when nobody waits for it any more, because a call
//! that is broken off can leave an open transaction in a pool; that it is answered within its limit, a batch earlier than
//! it is broken off where a backend needs more time than a worker; and that connections which have fallen silent, without FIN or RST, are used no more: the store behind is renewed, once per
//! silence, however many calls notice it, and calls on the old one that still get answers are left in peace.
//! Never touches SQL.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::timeout;
use tracing::warn;
use uuid::Uuid;

use super::{
    Incoming, Store, StoreError, Stranger, Totals, User, UserHistory, UserQuery, errors,
    letters::{
        Actor, Captured, Claimed, Count, Filter, Group, Letter, LetterDetail, Letters, Page, Pruned,
        Rejected, Retention, Status,
    },
};
use crate::{datafile::Examined, rules::users::Outcome, time::Millis};

/// What the asking for readiness may take.
const READY: Duration = Duration::from_secs(6);
/// What people ask: more than a statement is given by the database itself.
const PEOPLE: Duration = Duration::from_secs(35);
/// Tables and indexes of any size are made in it.
const MIGRATE: Duration = Duration::from_secs(3_600);
/// What calls that are on their way when a store is renewed are given to end.
const CLOSE: Duration = Duration::from_secs(60);

/// What the connections are given to be closed when all is over. One that fell silent on its way back to the pool never is.
const END: Duration = Duration::from_secs(3);

/// What a store has to let be done with its connections.
pub(super) trait Backend: Send + Sync + Sized + 'static {
    /// When a worker is answered about a batch at the latest.
    const ANSWER: Duration = Duration::from_secs(10);
    /// When a batch, a capture or a check is broken off: more than all the waiting inside. A batch that is not at its end
    /// by [`ANSWER`](Self::ANSWER) goes on until then.
    const BREAK_OFF: Duration;

    /// The same store with connections of its own, where connections can fall silent.
    fn renewed(&self) -> Option<Self>;

    /// Calls that can have a connection at a time.
    fn connections(&self) -> usize;

    /// Gives out no connection from now on, and closes each once it is free.
    fn end(&self) -> impl Future<Output = ()> + Send;
}

/// A store whose every call is answered.
pub(super) struct Watched<S>(Arc<Generations<S>>);

struct Generations<S> {
    current: RwLock<Arc<Generation<S>>>,
    closed: AtomicBool,
    /// Calls that others than this process's housekeeping have made.
    asked: AtomicU64,
}

/// A store until its connections fall silent.
struct Generation<S> {
    store: Arc<S>,
    /// Calls on their way.
    calls: AtomicUsize,
    /// It has done something before.
    proven: AtomicBool,
}

impl<S> Generation<S> {
    fn of(store: S) -> Arc<Self> {
        let (calls, proven) = (AtomicUsize::new(0), AtomicBool::new(false));
        Arc::new(Self { store: Arc::new(store), calls, proven })
    }
}

impl<S: Backend> Watched<S> {
    pub(super) fn new(store: S) -> Self {
        let current = RwLock::new(Generation::of(store));
        let (closed, asked) = (AtomicBool::new(false), AtomicU64::new(0));
        Self(Arc::new(Generations { current, closed, asked }))
    }

    async fn call<T, F>(
        &self,
        limit: Duration,
        work: impl FnOnce(Arc<S>) -> F + Send,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let (generations, generation) = (Arc::clone(&self.0), self.0.current());
        let work = work(Arc::clone(&generation.store));
        let task = tokio::spawn(async move {
            generation.calls.fetch_add(1, Relaxed);
            let mut work = Box::pin(work);
            let answer = timeout(limit, &mut work).await;
            let calls = generation.calls.fetch_sub(1, Relaxed);
            match answer {
                Ok(Err(error)) => {
                    // With no more calls than connections, each could have had one.
                    let without =
                        errors::is_without_connection(&error) && calls <= generation.store.connections();
                    if without {
                        generations
                            .renew(&generation, "the database does not answer on the connections there are");
                    } else if errors::is_read_only(&error) {
                        // A session stays so, though the server may take writes again, or another one be the primary.
                        generations.renew(&generation, "the database's sessions are read-only");
                    }
                    Err(error)
                }
                Ok(answer) => {
                    generation.proven.store(true, Relaxed);
                    answer
                }
                Err(_) => {
                    // Before the call is broken off: its connection goes back to a pool that nobody uses.
                    generations
                        .renew(&generation, "the database does not answer on the connections there are");
                    drop(work);
                    Err(errors::unanswered(limit))
                }
            }
        });
        task.await.unwrap_or_else(|_| Err(errors::broken("a call to the database broke off")))
    }

    /// One that lets the database fall asleep again.
    async fn housekeeping<T, F>(&self, work: impl FnOnce(Arc<S>) -> F + Send) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        self.call(PEOPLE, work).await
    }

    async fn path<T, F>(&self, work: impl FnOnce(Arc<S>) -> F + Send) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        self.0.asked.fetch_add(1, Relaxed);
        self.call(S::BREAK_OFF, work).await
    }

    async fn batch<T, F>(&self, work: impl FnOnce(Arc<S>) -> F + Send) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let answered = timeout(S::ANSWER, self.path(work)).await;
        answered.unwrap_or_else(|_| Err(errors::unanswered(S::ANSWER)))
    }

    async fn people<T, F>(&self, work: impl FnOnce(Arc<S>) -> F + Send) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        self.0.asked.fetch_add(1, Relaxed);
        self.call(PEOPLE, work).await
    }
}

impl<S: Backend> Generations<S> {
    fn current(&self) -> Arc<Generation<S>> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts a new store in the place of a silent one, unless another call has done so.
    fn renew(&self, silent: &Arc<Generation<S>>, why: &str) {
        {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            if self.closed.load(Relaxed) || !Arc::ptr_eq(&current, silent) {
                return;
            }
            let Some(store) = silent.store.renewed() else { return };
            *current = Generation::of(store);
        }
        if silent.proven.load(Relaxed) {
            warn!("{why}; new ones are made");
        }
        let old = Arc::clone(&silent.store);
        let mut closing = async move { old.end().await }.boxed();
        // At once no connection goes back into use; those that are in use are waited for beside all else.
        if (&mut closing).now_or_never().is_none() {
            tokio::spawn(timeout(CLOSE, closing));
        }
    }
}

impl<S: Backend + fmt::Debug> fmt::Debug for Watched<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.current().store.fmt(f)
    }
}

#[async_trait]
impl<S: Backend + Store> Store for Watched<S> {
    async fn migrate(&self) -> Result<Vec<String>, StoreError> {
        self.call(MIGRATE, |store| async move { store.migrate().await }).await
    }

    async fn check_schema(&self) -> Result<(), StoreError> {
        self.path(|store| async move { store.check_schema().await }).await
    }

    async fn check_for_work(&self) -> Result<(), StoreError> {
        self.path(|store| async move { store.check_for_work().await }).await
    }

    async fn apply(&self, batch: Arc<[Incoming]>) -> Result<Vec<Outcome>, StoreError> {
        self.batch(|store| async move { store.apply(batch).await }).await
    }

    async fn ready(&self) -> Result<(), StoreError> {
        self.0.asked.fetch_add(1, Relaxed);
        self.call(READY, |store| async move { store.ready().await }).await
    }

    async fn users(&self, query: &UserQuery) -> Result<Vec<User>, StoreError> {
        let query = query.clone();
        self.people(|store| async move { store.users(&query).await }).await
    }

    async fn user(&self, reference: &str) -> Result<Option<UserHistory>, StoreError> {
        let reference = reference.to_owned();
        self.people(|store| async move { store.user(&reference).await }).await
    }

    async fn totals(&self) -> Result<Totals, StoreError> {
        self.people(|store| async move { store.totals().await }).await
    }

    async fn rehearse(&self, batch: Arc<[Incoming]>) -> Result<(), StoreError> {
        self.people(|store| async move { store.rehearse(batch).await }).await
    }

    async fn strangers(&self) -> Result<Vec<Stranger>, StoreError> {
        self.people(|store| async move { store.strangers().await }).await
    }

    async fn examine(&self, limit: Duration) -> Result<Option<Examined>, StoreError> {
        self.people(move |store| async move { store.examine(limit).await }).await
    }

    async fn close(&self) {
        self.0.closed.store(true, Relaxed);
        // In vain or not: what counts is committed.
        let _ = timeout(END, self.0.current().store.end()).await;
    }
}

#[async_trait]
impl<S: Backend + Store> Letters for Watched<S> {
    async fn capture(&self, letters: &[Captured]) -> Result<Vec<String>, StoreError> {
        let letters = letters.to_vec();
        self.path(|store| async move { store.capture(&letters).await }).await
    }

    async fn groups(&self, filter: &Filter) -> Result<Vec<Group>, StoreError> {
        let filter = filter.clone();
        self.people(|store| async move { store.groups(&filter).await }).await
    }

    async fn groups_named(&self, reference: &str) -> Result<Vec<String>, StoreError> {
        let reference = reference.to_owned();
        self.people(|store| async move { store.groups_named(&reference).await }).await
    }

    async fn letters(&self, filter: &Filter, page: &Page) -> Result<Vec<Letter>, StoreError> {
        let (filter, page) = (filter.clone(), page.clone());
        self.people(|store| async move { store.letters(&filter, &page).await }).await
    }

    async fn letter(&self, reference: &str) -> Result<Option<LetterDetail>, StoreError> {
        let reference = reference.to_owned();
        self.people(|store| async move { store.letter(&reference).await }).await
    }

    async fn count(&self, filter: &Filter) -> Result<Vec<Count>, StoreError> {
        let filter = filter.clone();
        self.people(|store| async move { store.count(&filter).await }).await
    }

    async fn statuses(&self) -> Result<BTreeMap<Status, u64>, StoreError> {
        self.housekeeping(|store| async move { store.statuses().await }).await
    }

    async fn claim(&self, filter: &Filter, limit: u32, by: &Actor) -> Result<Vec<Claimed>, StoreError> {
        let (filter, by) = (filter.clone(), by.clone());
        self.people(move |store| async move { store.claim(&filter, limit, &by).await }).await
    }

    async fn edit(&self, id: Uuid, body: Bytes, by: &Actor) -> Result<Option<Claimed>, StoreError> {
        let by = by.clone();
        self.people(move |store| async move { store.edit(id, body, &by).await }).await
    }

    async fn clock(&self) -> Result<Millis, StoreError> {
        self.people(|store| async move { store.clock().await }).await
    }

    async fn unstamped(
        &self,
        filter: &Filter,
        before: Millis,
        limit: u32,
    ) -> Result<Vec<Claimed>, StoreError> {
        let filter = filter.clone();
        self.people(move |store| async move { store.unstamped(&filter, before, limit).await }).await
    }

    async fn stamp(&self, published: &[(Uuid, u32)]) -> Result<(), StoreError> {
        let published = published.to_vec();
        self.people(|store| async move { store.stamp(&published).await }).await
    }

    async fn discard(&self, filter: &Filter, limit: u32, by: &Actor) -> Result<u64, StoreError> {
        let (filter, by) = (filter.clone(), by.clone());
        self.people(move |store| async move { store.discard(&filter, limit, &by).await }).await
    }

    async fn restore(&self, filter: &Filter, limit: u32, by: &Actor) -> Result<u64, StoreError> {
        let (filter, by) = (filter.clone(), by.clone());
        self.people(move |store| async move { store.restore(&filter, limit, &by).await }).await
    }

    async fn record_rejections(&self, samples: &[Rejected]) -> Result<(), StoreError> {
        let samples = samples.to_vec();
        self.path(|store| async move { store.record_rejections(&samples).await }).await
    }

    async fn rejections(&self, limit: u32) -> Result<Vec<Rejected>, StoreError> {
        self.people(move |store| async move { store.rejections(limit).await }).await
    }

    async fn prune(&self, retention: &Retention, limit: u32) -> Result<Pruned, StoreError> {
        let retention = *retention;
        self.housekeeping(move |store| async move { store.prune(&retention, limit).await }).await
    }

    async fn erase_kept(&self, limit: u32) -> Result<u64, StoreError> {
        self.housekeeping(move |store| async move { store.erase_kept(limit).await }).await
    }

    fn asked(&self) -> u64 {
        self.0.asked.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::sync::Notify;

    use super::*;

    /// Connections that are numbered by the renewals before them. A call is broken off after so many milliseconds.
    #[derive(Clone, Default)]
    struct Fake<const BREAK_OFF: u64 = 20> {
        number: usize,
        renewals: Arc<AtomicUsize>,
        ended: Arc<AtomicUsize>,
    }

    impl<const BREAK_OFF: u64> Backend for Fake<BREAK_OFF> {
        const ANSWER: Duration = Duration::from_millis(10);
        const BREAK_OFF: Duration = Duration::from_millis(BREAK_OFF);

        fn renewed(&self) -> Option<Self> {
            let number = self.renewals.fetch_add(1, Relaxed) + 1;
            Some(Self { number, ..self.clone() })
        }

        fn connections(&self) -> usize {
            2
        }

        async fn end(&self) {
            self.ended.fetch_add(1, Relaxed);
        }
    }

    async fn number(store: &Watched<Fake>) -> usize {
        store.path(|store| async move { Ok(store.number) }).await.unwrap()
    }

    #[tokio::test]
    async fn a_silence_that_many_notice_renews_the_store_once_and_leaves_those_that_are_answered_in_peace() {
        let store = Arc::new(Watched::new(<Fake>::default()));
        assert_eq!(number(&store).await, 0);
        let renewals = Arc::clone(&store.0.current().store.renewals);
        let release = Arc::new(Notify::new());
        let slow = {
            let (store, release) = (Arc::clone(&store), Arc::clone(&release));
            tokio::spawn(async move {
                store
                    .people(|store| async move {
                        release.notified().await;
                        Ok(store.number)
                    })
                    .await
            })
        };
        let silent = (0..50).map(|_| store.path(|_| std::future::pending::<Result<(), StoreError>>()));
        for answer in futures_util::future::join_all(silent).await {
            assert_eq!(answer.unwrap_err().class, crate::store::Class::Unanswered);
        }
        assert_eq!((renewals.load(Relaxed), number(&store).await), (1, 1));
        release.notify_one();
        assert_eq!(slow.await.unwrap().unwrap(), 0, "the old store still answers whom it can");
    }

    #[tokio::test]
    async fn a_batch_is_answered_before_it_is_broken_off_and_goes_on_meanwhile() {
        let store = Watched::new(Fake::<60_000>::default());
        let (release, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let work = {
            let (release, done) = (Arc::clone(&release), Arc::clone(&done));
            store.batch(|_| async move {
                release.notified().await;
                done.notify_one();
                Ok(())
            })
        };
        let answer = timeout(Duration::from_secs(30), work).await.expect("before it is broken off");
        assert_eq!(answer.unwrap_err().class, crate::store::Class::Unanswered);
        assert_eq!(store.0.current().calls.load(Relaxed), 1, "it goes on");
        release.notify_one();
        done.notified().await;
    }

    #[tokio::test]
    async fn a_call_goes_on_when_nobody_waits_for_it_and_one_that_panics_is_an_outage() {
        let store = Watched::new(<Fake>::default());
        let (release, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let work = {
            let (release, done) = (Arc::clone(&release), Arc::clone(&done));
            store.people(|_| async move {
                release.notified().await;
                done.notify_one();
                Ok(())
            })
        };
        assert!(timeout(Duration::from_millis(20), work).await.is_err());
        release.notify_one();
        done.notified().await;
        let panicked: Result<(), _> = store.path(|_| async { panic!("on purpose") }).await;
        assert_eq!(panicked.unwrap_err().class, crate::store::Class::Outage);
    }

    #[tokio::test]
    async fn a_connection_that_is_not_to_be_had_renews_the_store_unless_others_have_them_all() {
        let store = Watched::new(<Fake>::default());
        let in_vain = || store.path(|_| async { Err::<(), _>(sqlx::Error::PoolTimedOut.into()) });
        assert!(in_vain().await.is_err());
        assert_eq!(number(&store).await, 1);
        let started = Instant::now();
        let busy = (0..2).map(|_| {
            store.people(|_| async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Ok(())
            })
        });
        let (_, error) = tokio::join!(futures_util::future::join_all(busy), in_vain());
        assert!(error.is_err() && started.elapsed() >= Duration::from_millis(50));
        assert_eq!(number(&store).await, 1);
    }

    #[tokio::test]
    async fn a_store_that_is_closed_is_not_renewed() {
        let store = Watched::new(<Fake>::default());
        let ended = Arc::clone(&store.0.current().store.ended);
        store.0.closed.store(true, Relaxed);
        assert!(store.path(|_| std::future::pending::<Result<(), StoreError>>()).await.is_err());
        assert_eq!((number(&store).await, ended.load(Relaxed)), (0, 0));
    }
}
