//! Owns one batch's way through the worker: parse, fold and save in one transaction. A batch that fails is split until
//! its guilty message stands alone; its neighbours commit meanwhile, and are told of at once.
//! Promises that nothing is judged before its transaction has ended, or has not answered in time. Never settles.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, time::timeout};
use tracing::debug;

use super::{
    Settings,
    blame::{Kind, Moment, Span, Suspect},
    verdict::Verdict,
};
use crate::{
    clerk,
    queue::{DELIVERY_LIMIT, Delivery, Subscription},
    rules::users::{Event, Outcome},
    store::{Batches, Class, Incoming, StoreError},
    telemetry::metrics::{Holding, WorkerMetrics},
    time::{Millis, now},
};

/// A part that takes so long to fail is split into many: each size would wait as long again.
const SLOW: Duration = Duration::from_millis(500);
/// Into how many.
const MANY: usize = 8;
/// So many parts of one batch that fail while nothing succeeds, or for so long, are enough: the rest is tried alone.
const HOPELESS: (u32, Duration) = (8, Duration::from_secs(2));

/// A message that has come back so often is not tried again. The queue's own limit is lower, but RabbitMQ 4.3 does not
/// count what a consumer timeout takes back.
const RETURNS: u32 = 2 * DELIVERY_LIMIT;

/// A delivery, and since when this worker has it.
pub(super) struct Held {
    pub(super) delivery: Delivery,
    /// Where it came from, and is settled.
    pub(super) subscription: Arc<dyn Subscription>,
    pub(super) since: Instant,
    pub(super) holding: Holding,
    /// When it failed first, together with others.
    pub(super) failed_together: Option<Moment>,
}

impl Held {
    pub(super) fn new(delivery: Delivery, subscription: &Arc<dyn Subscription>) -> Self {
        let subscription = Arc::clone(subscription);
        let (since, holding) = (Instant::now(), Holding::begin());
        Self { delivery, subscription, since, holding, failed_together: None }
    }

    /// Whether it is still ours.
    pub(super) fn is_ours(&self) -> bool {
        self.subscription.holds(self.delivery.receipt)
    }

    pub(super) fn id(&self) -> &str {
        self.delivery.message.id.as_str()
    }
}

/// A message that failed alone, and what is to be known of it.
pub(super) struct Failed {
    pub(super) held: Held,
    pub(super) account: String,
    pub(super) kind: Kind,
    pub(super) error: StoreError,
    pub(super) tried: Span,
}

impl Failed {
    pub(super) fn suspect(&self) -> Suspect<'_> {
        Suspect {
            message: self.held.id(),
            account: &self.account,
            kind: self.kind,
            failed_together: self.held.failed_together,
            convicted: self.held.delivery.message.attempt > 0,
        }
    }
}

/// What has become of a part of a batch.
pub(super) enum Finding {
    /// Nothing of it can be folded.
    Unreadable(Vec<(Held, Verdict)>),
    /// Its transaction has committed.
    Committed {
        verdicts: Vec<(Held, Verdict)>,
        /// What it did to users; empty where there was nothing to change.
        changed: Vec<Kind>,
        tried: Span,
    },
    /// Its transaction over several has failed.
    FailedTogether(Moment),
    /// To be tried alone.
    Alone(Vec<Held>),
    /// Tried alone.
    Failed(Box<Failed>),
    /// The database cannot be asked. Untouched.
    Unasked(Vec<Held>, String),
    /// The database has not answered: unknown, and perhaps still under way.
    Silent(Vec<Held>),
    /// More than so many fail together, and none of them alone.
    Fits(usize),
}

/// Where findings go.
pub(super) type Findings = mpsc::UnboundedSender<Finding>;

/// What a batch needs.
pub(super) struct Pipeline {
    pub(super) store: Arc<dyn Batches>,
    pub(super) settings: Settings,
    pub(super) metrics: WorkerMetrics,
    /// The moment that moments are counted from.
    pub(super) epoch: Instant,
    /// Transactions that changed a user.
    pub(super) successes: AtomicU64,
}

/// A part of a batch that is tried in one transaction.
struct Part {
    held: Vec<Held>,
    incoming: Arc<[Incoming]>,
    sent: Vec<Option<Millis>>,
}

impl Part {
    fn pieces(self, count: usize) -> Vec<Self> {
        let size = self.held.len().div_ceil(count).max(1);
        let incoming = self.incoming;
        let (mut held, mut sent) = (self.held.into_iter(), self.sent.into_iter());
        let pieces = incoming.chunks(size).map(|incoming| Self {
            held: held.by_ref().take(size).collect(),
            incoming: incoming.into(),
            sent: sent.by_ref().take(size).collect(),
        });
        pieces.collect()
    }
}

/// How an attempt to apply a part ended.
enum Applied {
    Yes(Vec<Outcome>),
    No(StoreError),
    Unasked(String),
    Silent,
}

/// What has gone wrong in one batch so far.
#[derive(Default)]
struct Trouble {
    failures: u32,
    since: Option<Instant>,
    /// Successes of the whole worker when it began.
    before: u64,
    /// The largest part that committed after another had failed.
    fits: usize,
}

impl Pipeline {
    pub(super) fn moment(&self) -> Moment {
        self.epoch.elapsed()
    }

    /// Applies a batch, whole or in parts, and tells what becomes of each message of it.
    pub(super) async fn process(&self, batch: Vec<Held>, findings: &Findings) {
        let tell = |finding| {
            // Nobody listens any more: what is not settled comes back with the connection.
            let _ = findings.send(finding);
        };
        self.metrics.batch_messages.record(batch.len() as f64);
        let (part, unreadable) = self.parse(batch);
        if !unreadable.is_empty() {
            tell(Finding::Unreadable(unreadable));
        }
        let mut parts = vec![part];
        let mut trouble = Trouble::default();
        let mut blameless = true;
        while let Some(part) = parts.pop() {
            let size = part.held.len();
            if size == 0 {
                continue;
            }
            if (trouble.since.is_some() && size == 1) || self.is_hopeless(&trouble) {
                blameless = false;
                tell(Finding::Alone(part.held));
                continue;
            }
            let begun = self.moment();
            let applied = self.apply(&part).await;
            let tried = Span { begun, ended: self.moment() };
            match applied {
                Applied::Yes(outcomes) => {
                    if trouble.since.is_some() {
                        trouble.fits = trouble.fits.max(size);
                    }
                    tell(self.committed(part, &outcomes, tried));
                }
                Applied::No(error) if size == 1 => tell(self.failed(part, error, tried)),
                Applied::No(error) => {
                    debug!("a batch of {size} failed ({error}); trying parts of it");
                    trouble.failures += 1;
                    blameless &= error.class == Class::Unclear;
                    if trouble.since.is_none() {
                        trouble.since = Some(Instant::now());
                        trouble.before = self.successes.load(Relaxed);
                    }
                    tell(Finding::FailedTogether(tried.ended));
                    let count = if tried.ended.saturating_sub(begun) >= SLOW { MANY } else { 2 };
                    let mut pieces = part.pieces(count);
                    for held in pieces.iter_mut().flat_map(|piece| &mut piece.held) {
                        held.failed_together.get_or_insert(tried.ended);
                    }
                    parts.extend(pieces.into_iter().rev());
                }
                Applied::Unasked(why) => {
                    let rest = parts.drain(..).flat_map(|part| part.held);
                    tell(Finding::Unasked(part.held.into_iter().chain(rest).collect(), why));
                    return;
                }
                Applied::Silent => {
                    tell(Finding::Silent(part.held));
                    let rest = parts.drain(..).flat_map(|part| part.held).collect();
                    tell(Finding::Unasked(rest, "it does not answer".into()));
                    return;
                }
            }
        }
        if blameless && trouble.fits > 0 {
            tell(Finding::Fits(trouble.fits));
        }
    }

    /// Tries one message alone.
    pub(super) async fn alone(&self, held: Held, findings: &Findings) {
        self.process(vec![held], findings).await;
    }

    /// Tries one message alone, if the database takes a write of ours.
    pub(super) async fn probe(&self, held: Held, findings: &Findings) {
        match self.ready().await {
            Ok(()) => self.alone(held, findings).await,
            Err(why) => {
                let _ = findings.send(Finding::Unasked(vec![held], why));
            }
        }
    }

    /// Whether the database takes a write of ours.
    pub(super) async fn ready(&self) -> Result<(), String> {
        let store = Arc::clone(&self.store);
        let asked = tokio::spawn(async move { store.ready().await });
        match timeout(self.settings.watchdog, asked).await {
            Ok(Ok(answer)) => answer.map_err(|error| error.to_string()),
            Ok(Err(_)) => Err("the question to the database broke off".into()),
            Err(_) => Err("the database does not answer".into()),
        }
    }

    /// Enough of the batch has failed while nothing else succeeded.
    fn is_hopeless(&self, trouble: &Trouble) -> bool {
        let (failures, time) = HOPELESS;
        trouble.since.is_some_and(|since| {
            (trouble.failures >= failures || since.elapsed() >= time)
                && trouble.before == self.successes.load(Relaxed)
        })
    }

    fn parse(&self, batch: Vec<Held>) -> (Part, Vec<(Held, Verdict)>) {
        let mut unreadable = Vec::new();
        let (mut held, mut sent) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        let mut incoming = Vec::with_capacity(batch.len());
        for one in batch {
            let message = &one.delivery.message;
            if one.delivery.earlier > RETURNS {
                let verdict = Verdict::crash_loop(one.delivery.earlier);
                unreadable.push((one, verdict));
                continue;
            }
            // For the test of crash loops; release builds have no such message.
            #[cfg(debug_assertions)]
            if message.id.as_str() == "msg_abort_the_worker" {
                std::process::abort();
            }
            match clerk::parse(&message.body, &message.id, message.received_at) {
                Ok(parsed) => {
                    let event = Event {
                        message_id: message.id.as_str().to_owned(),
                        change: parsed.change,
                        fresh_row: uuid::Uuid::now_v7(),
                        patience_over: message.waits >= self.settings.patience,
                    };
                    sent.push(parsed.sent);
                    incoming.push(Incoming {
                        event,
                        event_type: parsed.event_type,
                        received_at: message.received_at,
                    });
                    held.push(one);
                }
                Err(error) => unreadable.push((one, Verdict::unreadable(error.detail))),
            }
        }
        (Part { held, incoming: incoming.into(), sent }, unreadable)
    }

    async fn apply(&self, part: &Part) -> Applied {
        let started = Instant::now();
        let (store, incoming) = (Arc::clone(&self.store), Arc::clone(&part.incoming));
        let applying = tokio::spawn(async move { store.apply(incoming).await });
        let error = match timeout(self.settings.watchdog, applying).await {
            Ok(Ok(Ok(outcomes))) => {
                self.metrics.batch_seconds.record(started.elapsed().as_secs_f64());
                return Applied::Yes(outcomes);
            }
            Ok(Ok(Err(error))) => error,
            Ok(Err(panicked)) => StoreError {
                class: Class::Unclear,
                code: String::new(),
                message: format!("the store failed: {panicked}"),
                hint: None,
                source: None,
            },
            // Left alone, not cancelled: should it commit after all, the inbox absorbs what is tried again.
            Err(_) if part.held.len() > 1 => return Applied::Silent,
            Err(_) => StoreError {
                class: Class::Outage,
                code: String::new(),
                message: format!(
                    "the database has not answered within {} s",
                    self.settings.watchdog.as_secs()
                ),
                hint: None,
                source: None,
            },
        };
        match error.class {
            Class::Permanent | Class::Transient => Applied::No(error),
            Class::Unclear if part.held.len() > 1 => Applied::No(error),
            // One connection may have been lost over one message, and one table may be missing for all: whether the
            // database takes writes is asked of itself.
            Class::Unclear | Class::Outage | Class::Unusable => match self.ready().await {
                Ok(()) => Applied::No(error),
                Err(_) => Applied::Unasked(error.to_string()),
            },
        }
    }

    fn failed(&self, part: Part, error: StoreError, tried: Span) -> Finding {
        let Part { held, incoming, .. } = part;
        match (held.into_iter().next(), incoming.first()) {
            (Some(held), Some(incoming)) => {
                let account = incoming.event.clerk_id().unwrap_or(held.id()).to_owned();
                let kind = Kind::of(&incoming.event_type);
                Finding::Failed(Box::new(Failed { held, account, kind, error, tried }))
            }
            _ => Finding::FailedTogether(tried.ended),
        }
    }

    fn committed(&self, part: Part, outcomes: &[Outcome], tried: Span) -> Finding {
        let now = now();
        let mut verdicts = Vec::with_capacity(part.held.len());
        let mut changed: Vec<Kind> = Vec::new();
        for (((held, incoming), sent), outcome) in
            part.held.into_iter().zip(part.incoming.iter()).zip(part.sent).zip(outcomes)
        {
            self.metrics.settled(&incoming.event_type, outcome.as_str());
            if outcome.is_final() {
                // A replay would measure how long people took.
                if held.delivery.message.round == 0 {
                    self.metrics.sync_lag_seconds.record(seconds(incoming.received_at, now));
                }
                if let Some(sent) = sent {
                    self.metrics.event_age_seconds.record(seconds(sent, now));
                }
            }
            let kind = Kind::of(&incoming.event_type);
            if changes_users(*outcome) && !changed.contains(&kind) {
                changed.push(kind);
            }
            let verdict = Verdict::of_outcome(*outcome, &held.delivery.message);
            verdicts.push((held, verdict));
        }
        if !changed.is_empty() {
            self.successes.fetch_add(1, Relaxed);
        }
        Finding::Committed { verdicts, changed, tried }
    }
}

/// Whether an outcome proves that the database takes users' news.
fn changes_users(outcome: Outcome) -> bool {
    match outcome {
        Outcome::Created | Outcome::Updated | Outcome::Deleted | Outcome::Relinked => true,
        Outcome::Stale | Outcome::Duplicate | Outcome::Ignored | Outcome::Waiting | Outcome::Buried => false,
    }
}

fn seconds(from: Millis, to: Millis) -> f64 {
    Duration::from_millis(u64::try_from(to - from).unwrap_or(0)).as_secs_f64()
}
