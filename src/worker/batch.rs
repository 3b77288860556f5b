//! Owns one batch's way through the worker: parse its messages, then fold and save them in one transaction. A batch that
//! fails is split until its guilty message stands alone; its neighbours commit meanwhile, and are told of at once.
//! Promises that nothing is judged before its transaction has ended, or was not answered in time. Never settles, and has
//! no clock on the store: the store answers every call within its limit, and goes on with a call that nobody waits for.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tracing::debug;

use super::{
    Settings,
    blame::{Kind, Moment, Span, Suspect},
    hanging::Hanging,
    held::Held,
    seen::Seen,
    verdict::Verdict,
};
use crate::{
    clerk,
    message::Origin,
    queue::DELIVERY_LIMIT,
    rules::{Event, Outcome},
    store::{Batches, Class, Incoming, StoreError},
    telemetry::metrics::WorkerMetrics,
    time::{Millis, now},
};

/// A part that takes so long to fail is split into many: each size would take as long again.
const SLOW: Duration = Duration::from_millis(500);
/// Into how many.
const MANY: usize = 8;
/// So many parts of one batch that fail while nothing succeeds, or for so long, are enough: the rest is tried alone.
const HOPELESS: (u32, Duration) = (8, Duration::from_secs(2));

/// A message that has come back so often is not tried again. The queue's own limit is lower, but RabbitMQ 4.3 does not
/// count what a consumer timeout takes back.
const RETURNS: u32 = 2 * DELIVERY_LIMIT;

/// A message that failed alone, with what its judgement needs.
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
            convicted: self.held.is_convicted(),
        }
    }
}

/// What has become of a part of a batch.
pub(super) enum Progress {
    /// Not tried, because each is to be buried: it cannot be read, or came back too often.
    BuriedUntried(Vec<(Held, Verdict)>),
    /// Its transaction has committed.
    Committed {
        verdicts: Vec<(Held, Verdict)>,
        /// What it changed rows by; empty where there was nothing to change.
        changed: Vec<Kind>,
        tried: Span,
    },
    /// A transaction over several messages has failed; parts of them are tried next.
    FailedTogether(Moment),
    /// Not tried: the batch failed often enough, so each of these is to be tried alone.
    Leftover(Vec<Held>),
    /// Not tried together with others: messages of their accounts, which are named, hung lately.
    KnownToHang(Vec<(Held, String)>),
    /// Tried alone.
    FailedAlone(Box<Failed>),
    /// Not tried, or not with any effect: the database cannot be asked.
    Unasked(Vec<Held>, String),
    /// The database has not answered. Whether it takes effect is not known, and it may still be under way.
    Unanswered(Vec<Held>),
    /// More messages than so many fail together, and none of them alone.
    Fits(usize),
}

/// Where a batch tells of its progress.
pub(super) type Tell = mpsc::UnboundedSender<Progress>;

/// What a batch needs.
pub(super) struct Pipeline {
    store: Arc<dyn Batches>,
    pub(super) settings: Settings,
    seen: Seen,
    hanging: Hanging,
    pub(super) metrics: WorkerMetrics,
    /// Moments are counted from it.
    epoch: Instant,
    /// Transactions of this worker that changed a row.
    successes: AtomicU64,
}

/// A part of a batch that is tried in one transaction.
struct Part {
    held: Vec<Held>,
    incoming: Arc<[Incoming]>,
    sent: Vec<Option<Millis>>,
}

impl Part {
    fn accounts(&self) -> impl Iterator<Item = &str> {
        self.incoming.iter().filter_map(|incoming| incoming.event.change.clerk_id())
    }

    /// Takes out the messages of these accounts, each with its account.
    fn without(self, accounts: &HashSet<String>) -> (Self, Vec<(Held, String)>) {
        if !self.accounts().any(|account| accounts.contains(account)) {
            return (self, Vec::new());
        }
        let mut taken = Vec::new();
        let (mut held, mut sent, mut incoming) = (Vec::new(), Vec::new(), Vec::new());
        for ((one, at), event) in self.held.into_iter().zip(self.sent).zip(self.incoming.iter()) {
            match event.event.change.clerk_id().filter(|account| accounts.contains(*account)) {
                Some(account) => taken.push((one, account.to_owned())),
                None => {
                    held.push(one);
                    sent.push(at);
                    incoming.push(event.clone());
                }
            }
        }
        (Self { held, incoming: incoming.into(), sent }, taken)
    }

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

/// A batch that was read.
struct Read {
    part: Part,
    /// Not to be tried.
    buried: Vec<(Held, Verdict)>,
}

/// How an attempt to apply a part ended.
enum Applied {
    Yes(Vec<Outcome>),
    No(StoreError),
    Unasked(String),
    Unanswered,
}

/// What has gone wrong in one batch so far.
#[derive(Default)]
struct Failures {
    count: u32,
    since: Option<Instant>,
    /// Successes of the whole worker right after the first of them.
    before: u64,
    /// The largest part that committed after another had failed.
    fits: usize,
}

impl Pipeline {
    pub(super) fn new(
        store: Arc<dyn Batches>,
        settings: Settings,
        seen: Seen,
        metrics: WorkerMetrics,
    ) -> Self {
        Self {
            store,
            settings,
            seen,
            hanging: Hanging::default(),
            metrics,
            epoch: Instant::now(),
            successes: AtomicU64::new(0),
        }
    }

    pub(super) fn moment(&self) -> Moment {
        self.epoch.elapsed()
    }

    /// Tries one message alone, though its account may hang.
    pub(super) async fn process_alone(&self, held: Held, tell: &Tell) {
        self.go_through(vec![held], HashSet::new, tell).await;
    }

    /// Applies a batch, whole or in parts, and tells what becomes of each message of it.
    pub(super) async fn process(&self, batch: Vec<Held>, tell: &Tell) {
        self.go_through(batch, || self.hanging.accounts(self.moment()), tell).await;
    }

    /// Applies a batch without the messages of accounts that are known to hang. That is asked before each part: what hangs
    /// in one of them, or in another batch, hangs in the next.
    async fn go_through(&self, batch: Vec<Held>, known_to_hang: impl Fn() -> HashSet<String>, tell: &Tell) {
        let tell = |progress| {
            // Without a listener the worker has gone: what is not settled comes back with its connection.
            let _ = tell.send(progress);
        };
        let Read { part, buried } = self.parse(batch);
        if !part.held.is_empty() {
            self.metrics.batch_messages.record(part.held.len() as f64);
        }
        if !buried.is_empty() {
            tell(Progress::BuriedUntried(buried));
        }
        let mut parts = vec![part];
        let mut failures = Failures::default();
        let mut blameless = true;
        while let Some(part) = parts.pop() {
            let is_leftover = |part: &Part| failures.since.is_some() && part.held.len() == 1;
            // Who is left over may be known only because of a neighbour.
            let known = if is_leftover(&part) { HashSet::new() } else { known_to_hang() };
            let (part, hanging) = part.without(&known);
            if !hanging.is_empty() {
                tell(Progress::KnownToHang(hanging));
            }
            let size = part.held.len();
            if size == 0 {
                continue;
            }
            if is_leftover(&part) || self.is_hopeless(&failures) {
                blameless = false;
                tell(Progress::Leftover(part.held));
                continue;
            }
            let begun = self.moment();
            let applied = self.apply(&part).await;
            let tried = Span { begun, ended: self.moment() };
            let slow = tried.took() >= SLOW;
            match applied {
                Applied::Yes(outcomes) => {
                    if failures.since.is_some() {
                        failures.fits = failures.fits.max(size);
                    }
                    if size == 1 && !slow && outcomes.iter().copied().any(changes_rows) {
                        part.accounts().for_each(|account| self.hanging.works(account));
                    }
                    tell(self.committed(part, &outcomes, tried));
                }
                Applied::No(error) if size == 1 => {
                    if slow {
                        part.accounts().for_each(|account| self.hanging.hung(account, tried));
                    }
                    failed_alone(part, error, tried).into_iter().for_each(tell)
                }
                Applied::No(error) => {
                    debug!("a batch of {size} failed ({error}); trying parts of it");
                    failures.count += 1;
                    blameless &= error.class == Class::Unclear;
                    if failures.since.is_none() {
                        failures.since = Some(Instant::now());
                        failures.before = self.successes.load(Relaxed);
                    }
                    tell(Progress::FailedTogether(tried.ended));
                    let count = if slow { MANY } else { 2 };
                    if slow && size <= MANY {
                        part.accounts().for_each(|account| self.hanging.hung(account, tried));
                    }
                    let mut pieces = part.pieces(count);
                    for held in pieces.iter_mut().flat_map(|piece| &mut piece.held) {
                        held.failed_together.get_or_insert(tried.ended);
                    }
                    parts.extend(pieces.into_iter().rev());
                }
                Applied::Unasked(why) => {
                    let rest = parts.drain(..).flat_map(|part| part.held);
                    tell(Progress::Unasked(part.held.into_iter().chain(rest).collect(), why));
                    return;
                }
                Applied::Unanswered => {
                    tell(Progress::Unanswered(part.held));
                    let rest = parts.drain(..).flat_map(|part| part.held).collect();
                    tell(Progress::Unasked(rest, "it does not answer".into()));
                    return;
                }
            }
        }
        if blameless && failures.fits > 0 {
            tell(Progress::Fits(failures.fits));
        }
    }

    /// Tries one message alone, if the database takes a write of ours.
    pub(super) async fn ask_then_try(&self, held: Held, tell: &Tell) {
        match self.ready().await {
            Ok(()) => self.process_alone(held, tell).await,
            Err(why) => {
                let _ = tell.send(Progress::Unasked(vec![held], why));
            }
        }
    }

    /// Whether the database takes a write of ours.
    pub(super) async fn ready(&self) -> Result<(), String> {
        self.store.ready().await.map_err(|error| error.to_string())
    }

    /// Enough of the batch has failed while nothing else succeeded.
    fn is_hopeless(&self, failures: &Failures) -> bool {
        let (count, time) = HOPELESS;
        failures.since.is_some_and(|since| {
            (failures.count >= count || since.elapsed() >= time)
                && failures.before == self.successes.load(Relaxed)
        })
    }

    fn parse(&self, batch: Vec<Held>) -> Read {
        let mut buried = Vec::new();
        let (mut held, mut sent) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        let mut incoming = Vec::with_capacity(batch.len());
        for one in batch {
            let message = &one.delivery.message;
            if one.delivery.earlier > RETURNS {
                let verdict = Verdict::crash_loop(one.delivery.earlier);
                buried.push((one, verdict));
                continue;
            }
            // For the test of crash loops; release builds have no such message.
            #[cfg(debug_assertions)]
            if message.id.as_str() == "msg_abort_the_worker" {
                std::process::abort();
            }
            let known = clerk::Known {
                message_id: &message.id,
                origin: message.origin,
                received_at: message.received_at,
                keep_object: self.settings.keep_object,
                sessions: self.settings.sessions,
                billing: self.settings.billing,
            };
            match clerk::parse(&message.body, &known) {
                Ok(parsed) => {
                    self.seen.note(message.origin, parsed.instance.as_deref(), message.received_at);
                    if self.is_of_other_instance(&parsed) {
                        let verdict = Verdict::of_other_instance(parsed.instance.as_deref());
                        buried.push((one, verdict));
                        continue;
                    }
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
                Err(error) => buried.push((one, Verdict::unreadable(error.detail))),
            }
        }
        Read { part: Part { held, incoming: incoming.into(), sent }, buried }
    }

    /// People said which Clerk instance the table belongs to, and this event is of another.
    fn is_of_other_instance(&self, parsed: &clerk::Parsed) -> bool {
        let (ours, told) = (self.settings.instance.as_deref(), parsed.instance.as_deref());
        ours.is_some_and(|ours| told.is_some_and(|told| told != ours))
    }

    async fn apply(&self, part: &Part) -> Applied {
        let started = Instant::now();
        let error = match self.store.apply(Arc::clone(&part.incoming)).await {
            Ok(outcomes) => {
                self.metrics.batch_seconds.record(started.elapsed().as_secs_f64());
                return Applied::Yes(outcomes);
            }
            Err(error) => error,
        };
        match error.class {
            Class::Permanent | Class::Transient => Applied::No(error),
            Class::Unclear if part.held.len() > 1 => Applied::No(error),
            // Should it commit after all, the inbox absorbs what is tried again.
            Class::Unanswered if part.held.len() > 1 => Applied::Unanswered,
            // One message may have cost a connection or an answer, and one table may be missing for all: only a write of
            // our own tells whether the database takes writes.
            Class::Unclear | Class::Unanswered | Class::Outage | Class::Unusable => {
                match self.ready().await {
                    Ok(()) => Applied::No(error),
                    Err(_) => Applied::Unasked(error.to_string()),
                }
            }
        }
    }

    fn committed(&self, part: Part, outcomes: &[Outcome], tried: Span) -> Progress {
        let now = now();
        let mut verdicts = Vec::with_capacity(part.held.len());
        let mut changed: Vec<Kind> = Vec::new();
        for (((held, incoming), sent), outcome) in
            part.held.into_iter().zip(part.incoming.iter()).zip(part.sent).zip(outcomes)
        {
            self.metrics.settled(&incoming.event_type, outcome.as_str());
            if outcome.is_final() {
                // A replay would measure how long people took, and a bulk reader of Clerk's API how long webhooks go first.
                let is_webhook = held.delivery.message.origin == Origin::Webhook;
                let is_measured = is_webhook && held.delivery.message.round == 0;
                self.metrics.committed(is_measured.then(|| now.saturating_sub(incoming.received_at)));
                if let Some(sent) = sent.filter(|_| is_webhook) {
                    self.metrics.event_age_seconds.record(seconds(sent, now));
                }
            }
            let kind = Kind::of(&incoming.event_type);
            if changes_rows(*outcome) && !changed.contains(&kind) {
                changed.push(kind);
            }
            let verdict = Verdict::of_outcome(*outcome, &held.delivery.message);
            verdicts.push((held, verdict));
        }
        if !changed.is_empty() {
            self.successes.fetch_add(1, Relaxed);
            self.hanging.succeeded(tried.begun);
        }
        Progress::Committed { verdicts, changed, tried }
    }
}

/// Of a part of one message.
fn failed_alone(part: Part, error: StoreError, tried: Span) -> Option<Progress> {
    let (held, incoming) = part.held.into_iter().zip(part.incoming.iter()).next()?;
    let account = incoming.event.change.clerk_id().unwrap_or(held.id()).to_owned();
    let kind = Kind::of(&incoming.event_type);
    Some(Progress::FailedAlone(Box::new(Failed { held, account, kind, error, tried })))
}

/// Whether an outcome proves that the database takes changes.
fn changes_rows(outcome: Outcome) -> bool {
    match outcome {
        Outcome::Created | Outcome::Updated | Outcome::Deleted | Outcome::Relinked | Outcome::Revived => true,
        Outcome::Stale | Outcome::Duplicate | Outcome::Ignored | Outcome::Waiting | Outcome::Buried => false,
    }
}

fn seconds(from: Millis, to: Millis) -> f64 {
    Duration::from_millis(u64::try_from(to - from).unwrap_or(0)).as_secs_f64()
}
