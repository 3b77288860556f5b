//! Owns making sure that a caller's row exists and is as in Clerk: Clerk is asked for that one user, and its answer is folded and
//! committed like any snapshot, at once. Promises that many requests of one user at a time ask Clerk once, and that an account
//! which another one's address waits for is deleted only where Clerk has denied it twice, with the key of the table's own
//! instance.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::{sync::OnceCell, time::sleep};
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::lookups::Lookups;
use crate::{
    clerk::{
        self, Known,
        api::{Snapshot, gone, keys},
    },
    message::{Message, Origin},
    rules::{Event, Outcome},
    store::{Incoming, Store, sync::SeenBy},
    sync::Sync,
    telemetry::metrics::{ApiMetrics, FirstRow},
    time::Millis,
};

/// The pause between two times that Clerk says it does not know a user.
const TWICE: Duration = Duration::from_millis(500);
/// Signing up, with all that is verified, takes at most so long, in milliseconds.
const SIGNING_UP: Millis = 60_000;
/// The most accounts that are asked about because of one address.
const RIVALS: usize = 3;

/// What came of asking Clerk for a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Made {
    /// What Clerk said is in the table.
    Done,
    /// Clerk knows nobody of this id.
    Nobody,
    /// There is no key to ask Clerk with.
    NoKey,
    /// Clerk's answer lacks what a user needs, or holds what none has: which field.
    Unreadable(String),
    /// Clerk or the database does not answer.
    Away,
}

type Making = Shared<BoxFuture<'static, Made>>;

/// When an account that had the newcomer's address was gone at the latest. Two accounts never have one verified address, so whoever
/// has not changed since signing up with it came after the other was deleted. Of others nobody knows.
fn before(newcomer: &Snapshot) -> Millis {
    match (newcomer.created_at, newcomer.updated_at) {
        (Some(born), Some(changed)) if changed.saturating_sub(born) <= SIGNING_UP => born - 1,
        _ => Millis::MAX,
    }
}

/// Asks Clerk for callers.
#[derive(Clone)]
pub(super) struct First(Arc<Shop>);

struct Shop {
    store: Arc<dyn Store>,
    lookups: Lookups,
    clerk: Option<Sync>,
    /// `HEADCOUNT_KEEP_CLERK_OBJECT`
    keep_object: bool,
    metrics: ApiMetrics,
    making: Mutex<HashMap<(String, Why), Making>>,
    /// The last user could not be read.
    failing: AtomicBool,
    /// What the last user pays for could not be read.
    subscription_failing: AtomicBool,
    /// The key's instance, once the table is known to belong to it.
    instance: OnceCell<String>,
}

impl First {
    pub(super) fn new(
        store: Arc<dyn Store>,
        lookups: Lookups,
        clerk: Option<Sync>,
        keep_object: bool,
        metrics: ApiMetrics,
    ) -> Self {
        Self(Arc::new(Shop {
            store,
            lookups,
            clerk,
            keep_object,
            metrics,
            making: Mutex::default(),
            failing: AtomicBool::new(false),
            subscription_failing: AtomicBool::new(false),
            instance: OnceCell::new(),
        }))
    }

    /// Makes sure that this user has a row: asks Clerk and applies what it says, unless somebody else has brought the user by now.
    /// Whoever asks meanwhile for the same user gets the same answer. It goes on when nobody waits any more.
    pub(super) async fn make(&self, clerk_id: &str) -> Made {
        self.shared(clerk_id, Why::NoRow).await
    }

    /// Asks Clerk in any case.
    pub(super) async fn refresh(&self, clerk_id: &str) -> Made {
        self.shared(clerk_id, Why::Asked).await
    }

    fn shared(&self, clerk_id: &str, why: Why) -> Making {
        let mut all = self.0.making();
        if let Some(making) = all.get(&(clerk_id.to_owned(), why)) {
            return making.clone();
        }
        let (shop, id) = (Arc::clone(&self.0), clerk_id.to_owned());
        let work = async move {
            let made = shop.make(&id, why).await;
            shop.making().remove(&(id, why));
            made
        };
        let making: Making = work.boxed().shared();
        all.insert((clerk_id.to_owned(), why), making.clone());
        tokio::spawn(making.clone());
        making
    }
}

/// Why Clerk is asked for a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Why {
    NoRow,
    Asked,
}

impl Shop {
    fn making(&self) -> MutexGuard<'_, HashMap<(String, Why), Making>> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn make(&self, clerk_id: &str, why: Why) -> Made {
        let Some(sync) = &self.clerk else { return Made::NoKey };
        let brought = match why == Why::NoRow && self.is_there(clerk_id).await {
            true => return Made::Done,
            false => self.bring(sync, clerk_id).await,
        };
        let brought = match brought {
            Ok(Made::Done) if sync.billing && why == Why::Asked => {
                // The row is as in Clerk all the same.
                let paid = self.bring_subscription(sync, clerk_id).await;
                let was_failing = self.subscription_failing.swap(paid.is_err(), Relaxed);
                if let Err(why) = paid
                    && !was_failing
                {
                    warn!("what users pay for is not read when they ask for it: {why}");
                }
                Ok(Made::Done)
            }
            brought => brought,
        };
        // Once for an outage, not for each user who asks in it.
        let was_failing = self.failing.swap(brought.is_err(), Relaxed);
        match &brought {
            Err(why) if !was_failing => {
                warn!("users who have no row yet are answered 503 until Clerk can be asked: {why}");
            }
            Ok(_) if was_failing => info!("Clerk can be asked for users who have no row yet again"),
            Ok(_) | Err(_) => {}
        }
        let made = brought.unwrap_or(Made::Away);
        self.metrics.first_row(match made {
            Made::Done => FirstRow::Done,
            Made::Nobody => FirstRow::Nobody,
            Made::Unreadable(_) => FirstRow::Unreadable,
            Made::Away | Made::NoKey => FirstRow::Away,
        });
        made
    }

    /// Whether somebody has brought the user since the caller was looked up.
    async fn is_there(&self, clerk_id: &str) -> bool {
        matches!(self.lookups.account(clerk_id, None).await, Some(Ok((Some(_), _))))
    }

    async fn bring(&self, sync: &Sync, clerk_id: &str) -> Result<Made, String> {
        let Some(user) = sync.api.user(clerk_id).await.map_err(|error| error.to_string())? else {
            return self.deny(sync, clerk_id).await;
        };
        if let Err(error) = &user.upsert {
            debug!(clerk_id, "what Clerk says of {clerk_id}, who asked, cannot be read: {error}");
            return Ok(Made::Unreadable(error.to_string()));
        }
        let message = user.message(self.instance(sync).await?, false);
        let mut outcome = self.apply(&message, false).await?;
        if outcome == Outcome::Waiting {
            self.ask_about_rivals(sync, &user).await?;
            outcome = self.apply(&message, false).await?;
        }
        if outcome == Outcome::Waiting {
            // Clerk lets both claim the address: the newcomer gets a row of its own.
            outcome = self.apply(&message, true).await?;
        }
        debug!(clerk_id, outcome = outcome.as_str(), "read {clerk_id}, who asked, from Clerk's API");
        Ok(Made::Done)
    }

    /// Applies what Clerk says that the user pays for.
    async fn bring_subscription(&self, sync: &Sync, clerk_id: &str) -> Result<(), String> {
        // Read first: what comes meanwhile is not ended.
        let known = self.store.items(&[], &[clerk_id.to_owned()]).await.map_err(|error| error.to_string())?;
        let reading = sync.api.subscription(clerk_id).await.map_err(|error| error.to_string())?;
        let Some(reading) = reading.filter(|reading| reading.news.is_ok()) else { return Ok(()) };
        if let Some(message) = reading.message(&known, self.instance(sync).await?) {
            self.apply(&message, false).await?;
        }
        Ok(())
    }

    /// Clerk does not know a caller. Where the table does, the account was deleted in Clerk.
    async fn deny(&self, sync: &Sync, clerk_id: &str) -> Result<Made, String> {
        let live = self.store.live_among(&[clerk_id.to_owned()]).await.map_err(|error| error.to_string())?;
        match live.is_empty() || !self.is_gone(sync, clerk_id, Millis::MAX).await? {
            true => Ok(Made::Nobody),
            false => Ok(Made::Done),
        }
    }

    /// Asks Clerk about the accounts whose address the newcomer brings, and applies what it says.
    async fn ask_about_rivals(&self, sync: &Sync, newcomer: &Snapshot) -> Result<(), String> {
        let keys = keys(std::slice::from_ref(newcomer));
        let known = self.store.known(&[], &keys).await.map_err(|error| error.to_string())?;
        let rivals = known
            .loaded
            .rows
            .into_iter()
            .filter(|row| row.deleted_at.is_none() && Some(&row.clerk_id) != newcomer.clerk_id.as_ref());
        for rival in rivals.take(RIVALS) {
            match sync.api.user(&rival.clerk_id).await.map_err(|error| error.to_string())? {
                // What cannot be read tells nothing.
                Some(user) if user.upsert.is_err() => {}
                Some(user) => {
                    let message = user.message(self.instance(sync).await?, false);
                    self.apply(&message, false).await?;
                }
                None => {
                    self.is_gone(sync, &rival.clerk_id, before(newcomer)).await?;
                }
            }
        }
        Ok(())
    }

    /// Whether Clerk denies an account once more. If so, the table learns that it is gone, since this time at the latest. With
    /// another instance's key every user would be.
    async fn is_gone(&self, sync: &Sync, clerk_id: &str, latest: Millis) -> Result<bool, String> {
        let instance = sync.owner().await.map_err(|error| error.to_string())?.id;
        let asked_at = sync.api.now();
        sleep(TWICE).await;
        if sync.api.user(clerk_id).await.map_err(|error| error.to_string())?.is_some() {
            return Ok(false);
        }
        self.apply(&gone(clerk_id, asked_at.min(latest), &instance), false).await?;
        Ok(true)
    }

    /// The key's instance, to which the table has to belong. Where nobody has said yet whose it is, it belongs to this one from now
    /// on: its users' tokens count here, and it has just known one of them.
    async fn instance(&self, sync: &Sync) -> Result<&str, String> {
        let instance = self.instance.get_or_try_init(|| async {
            let key = sync.api.instance().await.map_err(|error| error.to_string())?.id;
            let known = self.store.saw_instance(&key, SeenBy::Sync).await.map_err(|error| error.to_string())?;
            let other = |table: &String| *table != key;
            match sync.instance.clone().filter(other).or(known.owner.filter(other)) {
                Some(table) => Err(format!(
                    "the key in CLERK_SECRET_KEY is of the Clerk instance {key}, and this table belongs to {table}"
                )),
                None => Ok(key),
            }
        });
        instance.await.map(String::as_str)
    }

    async fn apply(&self, message: &Message, patience_over: bool) -> Result<Outcome, String> {
        let known = Known {
            origin: Origin::Api,
            keep_object: self.keep_object,
            ..Known::webhook(&message.id, message.received_at)
        };
        let parsed = clerk::parse(&message.body, &known)
            .map_err(|error| format!("what Clerk says of the user cannot be read: {error}"))?;
        let event = Event {
            message_id: message.id.as_str().to_owned(),
            change: parsed.change,
            fresh_row: Uuid::now_v7(),
            patience_over,
        };
        let incoming = Incoming { event, event_type: parsed.event_type, received_at: message.received_at };
        let outcomes = self.store.apply(Arc::from([incoming])).await.map_err(|error| error.to_string())?;
        outcomes.into_iter().next().ok_or_else(|| "the database told no outcome".to_owned())
    }
}
