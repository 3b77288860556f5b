//! Owns writing down which Clerk instances the webhooks are of, and when the last one came in. Promises that a new instance is
//! known within about a second, that a database which is away loses nothing of it, and that webhooks of another instance
//! than the table's are warned of once. Made-up webhooks count only where the table is the made-up instance's. Never decides what
//! becomes of a webhook.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::{debug, info, warn};

use crate::{
    clerk::made_up,
    stop::until,
    store::{
        StoreError,
        sync::{Owner, SeenBy, SyncTables},
    },
    time::Millis,
    worker::Seen,
};

/// How often it is looked at what the worker has seen.
const LOOK: Duration = Duration::from_secs(1);
/// How often the last webhook of an instance that is known is written down.
const WRITTEN: Duration = Duration::from_secs(10);
/// The most instances that are told apart. Whoever can sign webhooks may make up more.
const KNOWN_MAX: usize = 1000;

/// What to do where webhooks of two instances come in.
pub const TWO: &str = "set HEADCOUNT_CLERK_INSTANCE to the instance whose users the table holds, so that the other's webhooks are \
     buried; and remove headcount's endpoint from the other instance in the Clerk dashboard";

/// What to do where the setting says another instance than the table.
const CONTRADICTED: &str = "webhooks of any other instance than the setting's are buried; if the setting is right: \
     headcount sync --adopt-instance; else correct it";

/// Writes down what the worker sees until `stop` turns true, and then what is left. `configured` is
/// `HEADCOUNT_CLERK_INSTANCE`: the table is its.
pub async fn run(
    seen: Seen,
    store: Arc<dyn SyncTables>,
    configured: Option<String>,
    stop: watch::Receiver<bool>,
) {
    let mut ledger = Ledger::new(store, configured);
    let mut told = false;
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let stopped = tokio::select! {
            _ = tick.tick() => false,
            () = until(&stop, |stop| *stop) => true,
        };
        ledger.add(seen.take());
        if stopped || ledger.is_due() {
            match ledger.write().await {
                Ok(()) => told = false,
                // The worker logs that the database is away; what else it says is about this table alone.
                Err(error) if error.is_outage() => {
                    debug!("the last webhooks are not written down yet: {error}")
                }
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        warn!(
                            "when the last webhooks came in cannot be written down: {error}{}",
                            error.hint_after("; ")
                        );
                    }
                }
            }
        }
        if stopped {
            return;
        }
    }
}

/// What is to be written down, and what was.
struct Ledger {
    store: Arc<dyn SyncTables>,
    configured: Option<String>,
    /// The table was given to the configured instance.
    adopted: bool,
    /// When the last webhook of each came in; not written down yet.
    waiting: BTreeMap<Option<String>, Millis>,
    /// Instances that are written down.
    known: HashSet<String>,
    written_at: Option<Instant>,
}

impl Ledger {
    fn new(store: Arc<dyn SyncTables>, configured: Option<String>) -> Self {
        let adopted = configured.is_none();
        let (waiting, known) = (BTreeMap::new(), HashSet::new());
        Self { store, configured, adopted, waiting, known, written_at: None }
    }

    fn add(&mut self, seen: BTreeMap<Option<String>, Millis>) {
        for (instance, at) in seen {
            if self.waiting.len() < KNOWN_MAX || self.waiting.contains_key(&instance) {
                let last = self.waiting.entry(instance).or_insert(at);
                *last = at.max(*last);
            }
        }
    }

    fn is_due(&self) -> bool {
        let is_new = |instance: &Option<String>| {
            instance.as_ref().is_some_and(|id| id != made_up::INSTANCE && !self.known.contains(id))
        };
        let rested = self.written_at.is_none_or(|at| at.elapsed() >= WRITTEN);
        !self.adopted || self.waiting.keys().any(is_new) || (rested && !self.waiting.is_empty())
    }

    async fn write(&mut self) -> Result<(), StoreError> {
        if let Some(instance) = self.configured.as_ref().filter(|_| !self.adopted) {
            let owner = self.store.saw_instance(instance, SeenBy::Adopted).await?;
            if let Some(other) = owner.owner.filter(|owner| owner != instance) {
                warn!(
                    instance,
                    owner = other,
                    "HEADCOUNT_CLERK_INSTANCE is {instance}, and the table belongs to {other} so far: {CONTRADICTED}"
                );
            }
            self.adopted = true;
        }
        while let Some((instance, at)) = self.waiting.first_key_value() {
            let (instance, at) = (instance.clone(), *at);
            // What `headcount send` makes up says of no instance of Clerk's that the table is its.
            let named = instance.as_ref().filter(|id| *id != made_up::INSTANCE);
            if let Some(id) = named.filter(|id| !self.known.contains(*id)) {
                let owner = self.store.saw_instance(id, SeenBy::Webhook).await?;
                tell(id, &owner);
                if self.known.len() >= KNOWN_MAX {
                    self.known.clear();
                }
                self.known.insert(id.clone());
            }
            self.store.note_webhook(instance.as_deref(), at).await?;
            self.waiting.remove(&instance);
        }
        self.written_at = Some(Instant::now());
        Ok(())
    }
}

/// Says whose webhooks come in, once for each instance.
fn tell(instance: &str, owner: &Owner) {
    match owner.owner.as_deref().filter(|owner| *owner != instance) {
        None => info!(instance, "webhooks of the Clerk instance {instance} come in"),
        Some(owner) => warn!(
            instance,
            owner,
            "webhooks of two Clerk instances come in: of {owner}, which the table belongs to, and of {instance}; {TWO}"
        ),
    }
}
