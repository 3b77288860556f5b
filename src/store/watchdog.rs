//! Owns how long a call to a database may take, so that no caller needs a rule or a clock of its own.
//!
//! Promises:
//! - Each call runs in a task of its own and is answered within its limit. It goes on when nobody waits for it any more,
//!   because a call that is broken off can leave an open transaction in a pool.
//! - A batch is answered after [`Renewable::ANSWER`] at the latest, also where the backend takes longer to break it off.
//! - Connections that have fallen silent, without FIN or RST, are used no more. The store behind them is renewed, once per
//!   silence, however many calls notice it. Calls on the old connections that still get answers are left in peace.
//!
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
    Batches, Diagnosis, Incoming, PastEvent, Schema, Store, StoreError, Stranger, Totals, User, UserHistory,
    UserQuery, Users,
    accounts::{Account, Accounts, Mark},
    errors,
    housekeeping::{Housekeeping, Pruned, Rejections, Retention},
    letters::{
        Actor, Captured, Claimed, Count, Filter, FreshLetters, Group, Letter, LetterDetail, Letters, Page,
        Publication, Status,
    },
    operations::{
        self, Cause, Held, LogFilter, LogPage, NewOperation, Operation, OperationLog, OperationRow, Outcomes,
        Tick, Wish, Wished,
    },
    processes::{ProcessRow, Processes, Telling},
    sessions::{Ended, Session, Sighting},
    sync::{
        Holder, InstanceRow, Known, Lease, NewRun, Owner, Run, Seen, SeenBy, Settled, SyncTables, Taken,
        Unseen,
    },
    tiers::{TierReport, Unlisted, UserTiers},
    visitors::{Claim, Visitor},
};
use crate::{
    datafile::Examined,
    message::Rejected,
    rules::{Outcome, subscriptions::Row},
    time::Millis,
};

/// How long a call may take.
#[derive(Clone, Copy)]
pub(super) struct Limit {
    /// When the caller is answered though the call goes on; `MAX` where nobody is answered before the call ends.
    answer: Duration,
    /// When the call itself is broken off, whether its caller still waits or not.
    break_off: Duration,
    /// The call counts as somebody's asking, so that the process's housekeeping does not leave the database alone.
    asks: bool,
}

impl Limit {
    const fn of(limit: Duration) -> Self {
        Self { answer: Duration::MAX, break_off: limit, asks: true }
    }
}

const READY: Limit = Limit::of(Duration::from_secs(6));
/// More than the database itself gives to a statement of people's.
const PEOPLE: Limit = Limit::of(Duration::from_secs(35));
/// What a process says of itself by itself.
const TELLING: Limit = Limit { asks: false, ..READY };
/// What a process asks now and then to see whether there is work.
const UPKEEP: Limit = Limit { asks: false, ..READY };
const HOUSEKEEPING: Limit = Limit { asks: false, ..PEOPLE };
/// Tables and indexes of any size are made in it.
const MIGRATE: Limit = Limit { asks: false, ..Limit::of(Duration::from_secs(3_600)) };

/// What calls that are on their way when a store is renewed are given to end.
const CLOSE: Duration = Duration::from_secs(60);

/// What the connections are given to be closed when all is over. One that fell silent on its way back to the pool never is.
const END: Duration = Duration::from_secs(3);

/// What a store has to let be done with its connections.
pub(super) trait Renewable: Send + Sync + Sized + 'static {
    /// When a worker is answered about a batch at the latest.
    const ANSWER: Duration = Duration::from_secs(10);
    /// When a batch, a capture or a check is broken off: more than any one wait inside. A batch that is not at its end by
    /// [`ANSWER`](Self::ANSWER) goes on until then.
    const BREAK_OFF: Duration;

    /// Of a batch.
    const BATCH: Limit = Limit { answer: Self::ANSWER, ..Self::PATH };
    /// Of a capture or a check.
    const PATH: Limit = Limit::of(Self::BREAK_OFF);

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

impl<S: Renewable> Watched<S> {
    pub(super) fn new(store: S) -> Self {
        let current = RwLock::new(Generation::of(store));
        let (closed, asked) = (AtomicBool::new(false), AtomicU64::new(0));
        Self(Arc::new(Generations { current, closed, asked }))
    }

    async fn call<T, F>(&self, limit: Limit, work: impl FnOnce(Arc<S>) -> F + Send) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        if limit.asks {
            self.0.asked.fetch_add(1, Relaxed);
        }
        let (generations, generation) = (Arc::clone(&self.0), self.0.current());
        let work = work(Arc::clone(&generation.store));
        let task = tokio::spawn(async move {
            generation.calls.fetch_add(1, Relaxed);
            let mut work = Box::pin(work);
            let answer = timeout(limit.break_off, &mut work).await;
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
                    Err(errors::unanswered(limit.break_off))
                }
            }
        });
        match timeout(limit.answer, task).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(errors::broken("a call to the database broke off"))),
            Err(_) => Err(errors::unanswered(limit.answer)),
        }
    }
}

impl<S: Renewable> Generations<S> {
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

impl<S: Renewable + fmt::Debug> fmt::Debug for Watched<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.current().store.fmt(f)
    }
}

/// Implements a part of the store: each call goes to the current store, within the limit that stands in front of it. What
/// the caller lends (`&`, or `?` where it may lend nothing) is copied, because the call may outlive its caller.
macro_rules! watched {
    ($part:ident {
        $([$limit:expr] $call:ident($($(&$lent:ident)? $(?$maybe:ident)? $($given:ident)?: $type:ty),*) -> $answer:ty;)*
        $({ $($rest:tt)* })?
    }) => {
        #[async_trait]
        impl<S: Renewable + Store> $part for Watched<S> {
            $(async fn $call(&self, $($($lent: &$type)? $($maybe: Option<&$type>)? $($given: $type)?),*) -> Result<$answer, StoreError> {
                $($(let $lent = $lent.to_owned();)? $(let $maybe = $maybe.map(<$type>::to_owned);)?)*
                self.call($limit, move |store| async move {
                    store.$call($($(&$lent)? $($maybe.as_deref())? $($given)?),*).await
                }).await
            })*
            $($($rest)*)?
        }
    };
}

watched!(Batches {
    [S::BATCH] apply(batch: Arc<[Incoming]>) -> Vec<Outcome>;
    [READY] ready() -> ();
});

watched!(Users {
    [PEOPLE] users(&query: UserQuery) -> Vec<User>;
    [PEOPLE] user(&reference: str) -> Option<UserHistory>;
    [PEOPLE] message(&message_id: str) -> Option<PastEvent>;
    [PEOPLE] totals() -> Totals;
});

watched!(Accounts {
    [READY] accounts(&clerk_ids: [String], &sessions: [String]) -> (Vec<Account>, Vec<Ended>);
    [READY] marks(&clerk_ids: [String], &sessions: [String]) -> (Vec<Mark>, Vec<Ended>);
    [PEOPLE] saw_sessions(&sightings: [Sighting]) -> ();
    [PEOPLE] begin_visitor(&visitor: Visitor) -> ();
    [PEOPLE] claim_visitor(&token_hash: str, &clerk_id: str, at: Millis) -> Claim;
    [PEOPLE] sessions_of(&clerk_id: str) -> Vec<Session>;
});

watched!(UserTiers {
    [PEOPLE] grant(user: Uuid, &tier: str, until: Option<Millis>, &by: Actor) -> Option<TierReport>;
    [PEOPLE] revoke(user: Uuid, &by: Actor) -> Option<(TierReport, bool)>;
    [PEOPLE] tier(user: Uuid) -> Option<TierReport>;
    [HOUSEKEEPING] lapsed(&except: [String], limit: u32) -> Vec<String>;
    [HOUSEKEEPING] look_again(&clerk_ids: [String]) -> ();
    [HOUSEKEEPING] payers(?after: str, limit: u32) -> Vec<String>;
    [HOUSEKEEPING] settle_tiers(&clerk_ids: [String]) -> u64;
    [PEOPLE] stray_tiers(&payers: [String]) -> Vec<String>;
    [PEOPLE] items(&ids: [String], &payers: [String]) -> Vec<Row>;
    {
        async fn unlisted_payers(
            &self,
            run: Uuid,
            after: Option<&(String, String)>,
            limit: u32,
        ) -> Result<Unlisted, StoreError> {
            let after = after.cloned();
            self.call(PEOPLE, move |store| async move { store.unlisted_payers(run, after.as_ref(), limit).await }).await
        }
    }
});

watched!(Schema {
    [MIGRATE] migrate() -> Vec<String>;
    [S::PATH] check_schema() -> ();
    [S::PATH] check_for_work() -> ();
});

watched!(Diagnosis {
    [PEOPLE] rehearse(batch: Arc<[Incoming]>) -> ();
    [PEOPLE] strangers() -> Vec<Stranger>;
    [PEOPLE] examine(limit: Duration) -> Option<Examined>;
});

watched!(Letters {
    [S::PATH] capture(&letters: [Captured]) -> Vec<String>;
    [PEOPLE] groups(&filter: Filter) -> Vec<Group>;
    [PEOPLE] groups_named(&reference: str) -> Vec<String>;
    [PEOPLE] list(&filter: Filter, &page: Page) -> Vec<Letter>;
    [PEOPLE] show(&reference: str) -> Option<LetterDetail>;
    [PEOPLE] count(&filter: Filter) -> Vec<Count>;
    [PEOPLE] fresh_letters(since: Millis) -> FreshLetters;
    [PEOPLE] claim(&filter: Filter, limit: u32, &by: Actor) -> Vec<Claimed>;
    [PEOPLE] edit(id: Uuid, body: Bytes, &by: Actor) -> Option<Claimed>;
    [PEOPLE] clock() -> Millis;
    [PEOPLE] unstamped(&filter: Filter, before: Millis, limit: u32) -> Vec<Claimed>;
    [PEOPLE] stamp(&published: [Publication]) -> ();
    [PEOPLE] discard(&filter: Filter, limit: u32, &by: Actor) -> u64;
    [PEOPLE] restore(&filter: Filter, limit: u32, &by: Actor) -> u64;
});

watched!(OperationLog {
    [PEOPLE] begin_operation(&new: NewOperation) -> Option<Operation>;
    [PEOPLE] note_operation(&new: NewOperation) -> ();
    [READY] end_operation(id: Uuid, holder: Uuid, &end: operations::Ended) -> bool;
    [PEOPLE] operation(id: Uuid) -> Option<Operation>;
    [PEOPLE] replays(limit: u32) -> Vec<Operation>;
    [UPKEEP] take_replay(holder: Uuid) -> Option<Operation>;
    [READY] tick(id: Uuid, holder: Uuid, &tick: Tick) -> Option<Operation>;
    [READY] give_operation_back(id: Uuid, holder: Uuid) -> ();
    [PEOPLE] wish(id: Uuid, wish: Wish, &by: Actor, most: u32) -> Option<Wished>;
    [PEOPLE] claim_for(held: Held, &filter: Filter, limit: u32, &by: Actor) -> Vec<Claimed>;
    [PEOPLE] adopt(held: Held, &filter: Filter, before: Millis, limit: u32) -> u64;
    [PEOPLE] unpublished(id: Uuid, limit: u32) -> Vec<Claimed>;
    [PEOPLE] outcomes(id: Uuid, whole: bool) -> Outcomes;
    [HOUSEKEEPING] tidy_operations(counts: bool) -> bool;
    [PEOPLE] operations(&filter: LogFilter, &page: LogPage) -> Vec<OperationRow>;
    [PEOPLE] causes(now: Millis) -> Vec<Cause>;
});

watched!(Rejections {
    [S::PATH] record(&samples: [Rejected]) -> ();
    [PEOPLE] newest(limit: u32) -> Vec<Rejected>;
});

watched!(Housekeeping {
    [HOUSEKEEPING] prune(&retention: Retention, limit: u32) -> Pruned;
    [HOUSEKEEPING] erase_kept(limit: u32) -> u64;
    [HOUSEKEEPING] statuses() -> BTreeMap<Status, u64>;
    {
        fn asked(&self) -> u64 {
            self.0.asked.load(Relaxed)
        }
    }
});

watched!(Processes {
    [TELLING] tell(&telling: Telling) -> ();
    [TELLING] leave(id: Uuid) -> ();
    [PEOPLE] processes() -> Vec<ProcessRow>;
});

watched!(SyncTables {
    [PEOPLE] known(&clerk_ids: [String], &keys: [String]) -> Known;
    [PEOPLE] live_users() -> u64;
    [PEOPLE] live_among(&clerk_ids: [String]) -> Vec<String>;
    [PEOPLE] clerk_id_of(&reference: str) -> Option<String>;
    [READY] take_lease(&name: str, &by: Holder, ttl: Duration) -> Taken;
    [READY] give_lease_back(&name: str, holder: Uuid) -> ();
    [READY] tell_state(&name: str, holder: Uuid, &state: serde_json::Value) -> bool;
    [READY] lease(&name: str) -> Option<Lease>;
    [PEOPLE] begin_run(&new: NewRun) -> Run;
    [PEOPLE] save_run(&run: Run) -> ();
    [PEOPLE] runs(limit: u32) -> Vec<Run>;
    [PEOPLE] real_runs(limit: u32) -> Vec<Run>;
    [PEOPLE] new_to(run: Uuid, &clerk_ids: [String]) -> Vec<String>;
    [PEOPLE] see(&run: Run, &ids: [Seen]) -> ();
    [PEOPLE] outstanding(run: Uuid, limit: u32) -> Vec<(String, String)>;
    [PEOPLE] settled(&message_ids: [String]) -> Vec<(String, Settled)>;
    [PEOPLE] settle(run: Uuid, &clerk_ids: [String]) -> ();
    [PEOPLE] unseen(run: Uuid, ?after: str, limit: u32) -> Unseen;
    [PEOPLE] note_absent(run: Uuid, &clerk_id: str, at: Millis) -> ();
    [PEOPLE] absent(run: Uuid, ?after: str, limit: u32) -> Vec<(String, Millis)>;
    [READY] saw_instance(&instance_id: str, by: SeenBy) -> Owner;
    [PEOPLE] adopt_instance(&instance_id: str) -> ();
    [PEOPLE] instances() -> Vec<InstanceRow>;
    [READY] note_webhook(?instance_id: str, received_at: Millis) -> ();
});

#[async_trait]
impl<S: Renewable + Store> Store for Watched<S> {
    async fn close(&self) {
        self.0.closed.store(true, Relaxed);
        // In vain or not: what counts is committed.
        let _ = timeout(END, self.0.current().store.end()).await;
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

    impl<const BREAK_OFF: u64> Renewable for Fake<BREAK_OFF> {
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
        store.call(Fake::<20>::PATH, |store| async move { Ok(store.number) }).await.unwrap()
    }

    #[tokio::test]
    async fn a_silence_that_many_notice_renews_once_and_spares_answered_calls() {
        let store = Arc::new(Watched::new(<Fake>::default()));
        assert_eq!(number(&store).await, 0);
        let renewals = Arc::clone(&store.0.current().store.renewals);
        let release = Arc::new(Notify::new());
        let slow = {
            let (store, release) = (Arc::clone(&store), Arc::clone(&release));
            tokio::spawn(async move {
                store
                    .call(PEOPLE, |store| async move {
                        release.notified().await;
                        Ok(store.number)
                    })
                    .await
            })
        };
        let silent = (0..50)
            .map(|_| store.call(Fake::<20>::PATH, |_| std::future::pending::<Result<(), StoreError>>()));
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
            store.call(Fake::<60_000>::BATCH, |_| async move {
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
    async fn a_call_outlives_its_caller_and_one_that_panics_is_an_outage() {
        let store = Watched::new(<Fake>::default());
        let (release, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let work = {
            let (release, done) = (Arc::clone(&release), Arc::clone(&done));
            store.call(PEOPLE, |_| async move {
                release.notified().await;
                done.notify_one();
                Ok(())
            })
        };
        assert!(timeout(Duration::from_millis(20), work).await.is_err());
        release.notify_one();
        done.notified().await;
        let panicked: Result<(), _> = store.call(Fake::<20>::PATH, |_| async { panic!("on purpose") }).await;
        assert_eq!(panicked.unwrap_err().class, crate::store::Class::Outage);
    }

    #[tokio::test]
    async fn a_missing_connection_renews_the_store_unless_all_are_busy() {
        let store = Watched::new(<Fake>::default());
        let in_vain =
            || store.call(Fake::<20>::PATH, |_| async { Err::<(), _>(sqlx::Error::PoolTimedOut.into()) });
        assert!(in_vain().await.is_err());
        assert_eq!(number(&store).await, 1);
        let started = Instant::now();
        let busy = (0..2).map(|_| {
            store.call(PEOPLE, |_| async {
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
        assert!(
            store.call(Fake::<20>::PATH, |_| std::future::pending::<Result<(), StoreError>>()).await.is_err()
        );
        assert_eq!((number(&store).await, ended.load(Relaxed)), (0, 0));
    }
}
