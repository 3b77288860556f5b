//! Owns one batch's way through the worker: parse, fold and save in one transaction, settle. A batch that fails is
//! split until the guilty message stands alone; its neighbours commit.
//! Promises that nothing is settled before its transaction has committed. Never cancels database work.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::{
    LOCKED_ROWS, Settings,
    verdict::{Failure, Verdict},
};
use crate::{
    clerk,
    message::{Millis, now},
    queue::{Delivery, Settlement, Subscription},
    roster::{Event, Outcome},
    store::{Class, Incoming, Store, StoreError},
    telemetry::metrics::{RetryReason, WorkerMetrics},
};

/// A delivery, and since when this worker has it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) delivery: Delivery,
    pub(super) since: Instant,
}

impl Held {
    /// It came back unsettled, and may have killed its worker; or it lost every race, and would hold up a whole batch.
    pub(super) fn goes_alone(&self) -> bool {
        self.delivery.earlier > 0 || self.delivery.message.attempt > 0
    }
}

/// How the database refuses a message: many that are refused in one way are not to blame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) class: Class,
    /// SQLSTATE or SQLite's extended code.
    pub(super) code: String,
}

/// What a batch left for the worker to decide.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Untouched by an outage: to be tried again.
    pub(super) unfinished: Vec<Held>,
    /// Refused alone while nothing else was taken.
    pub(super) suspects: Vec<(Held, Refusal)>,
    /// The database took a user's news.
    pub(super) applied: bool,
    /// Why nothing can be done at present.
    pub(super) outage: Option<String>,
}

/// What a batch needs.
pub(super) struct Pipeline {
    pub(super) store: Arc<dyn Store>,
    pub(super) subscription: Arc<dyn Subscription>,
    pub(super) settings: Settings,
    pub(super) metrics: WorkerMetrics,
    /// How many batches have waited too long for the database's answer.
    pub(super) stalled: watch::Sender<usize>,
}

/// A part of a batch that is tried in one transaction.
struct Part {
    held: Vec<Held>,
    incoming: Arc<[Incoming]>,
    sent: Vec<Option<Millis>>,
}

impl Part {
    /// Adds the user of a lone message to those who are found locked. Whether they are too many to be single rows: with
    /// nothing taken, two; each further try would wait as long again.
    fn locks_many(&self, locked: &mut HashSet<String>, taken: bool) -> bool {
        let users = self.incoming.iter().filter_map(|incoming| incoming.event.clerk_id());
        locked.extend(users.map(ToOwned::to_owned));
        locked.len() > if taken { LOCKED_ROWS } else { 1 }
    }

    fn halves(mut self) -> [Self; 2] {
        let middle = self.held.len() / 2;
        let held = self.held.split_off(middle);
        let sent = self.sent.split_off(middle);
        let second = Self { held, incoming: self.incoming[middle..].into(), sent };
        let first = Self { held: self.held, incoming: self.incoming[..middle].into(), sent: self.sent };
        [first, second]
    }
}

/// How an attempt to apply a part ended.
enum Applied {
    Yes(Vec<Outcome>),
    No(StoreError),
    /// The database has not answered for as long as we may hold messages.
    Overdue,
}

impl Pipeline {
    /// `convict`: the database is known to take other messages, so one that is refused alone is to blame.
    pub(super) async fn process(&self, batch: Vec<Held>, mut convict: bool) -> Report {
        let mut report = Report::default();
        let mut verdicts: Vec<(Held, Verdict)> = Vec::with_capacity(batch.len());
        let mut suspects: Vec<(Part, StoreError)> = Vec::new();
        let mut locked: HashSet<String> = HashSet::new();
        self.metrics.batch_messages.record(batch.len() as f64);

        let mut parts = vec![self.parse(batch, &mut verdicts)];
        while let Some(part) = parts.pop() {
            if part.held.is_empty() {
                continue;
            }
            if report.outage.is_some() {
                report.unfinished.extend(part.held);
                continue;
            }
            match self.apply(&part).await {
                Applied::Yes(outcomes) => {
                    if outcomes.iter().any(|outcome| changes_users(*outcome)) {
                        report.applied = true;
                        convict = true;
                    }
                    self.committed(part, &outcomes, &mut verdicts);
                }
                Applied::No(error) => match Failure::of(error.class, part.held.len()) {
                    Failure::Split => {
                        debug!("a batch of {} failed ({error}); trying its halves", part.held.len());
                        let [first, second] = part.halves();
                        parts.extend([second, first]);
                    }
                    Failure::Exhausted => verdicts.extend(part.held.into_iter().map(|held| {
                        let verdict =
                            Verdict::exhausted(&error, &held.delivery.message, &self.settings.ladder);
                        (held, verdict)
                    })),
                    Failure::Suspect
                        if error.class == Class::Unclear && part.locks_many(&mut locked, convict) =>
                    {
                        report.outage = Some(error.to_string());
                        report.unfinished.extend(part.held);
                    }
                    Failure::Suspect if convict => verdicts.extend(part.held.into_iter().map(|held| {
                        let verdict =
                            Verdict::convicted(&error, &held.delivery.message, &self.settings.ladder);
                        (held, verdict)
                    })),
                    Failure::Suspect => suspects.push((part, error)),
                    Failure::Outage => {
                        report.outage = Some(error.to_string());
                        report.unfinished.extend(part.held);
                    }
                },
                Applied::Overdue => {
                    report.outage = Some("the database does not answer".into());
                    verdicts.extend(part.held.into_iter().map(|held| {
                        let verdict = Verdict::parked(&held.delivery.message, &self.settings.ladder);
                        (held, verdict)
                    }));
                }
            }
            if parts.is_empty() && convict {
                // Refused before a neighbour was taken: once more, now that it is known to be alone in this.
                parts.extend(suspects.drain(..).map(|(part, _)| part));
            }
        }
        report.suspects = suspects
            .into_iter()
            .flat_map(|(part, error)| {
                let refusal = Refusal { class: error.class, code: error.code };
                part.held.into_iter().map(move |held| (held, refusal.clone()))
            })
            .collect();
        self.settle(verdicts).await;
        report
    }

    /// Settles deliveries that were held too long, with their attempts unchanged.
    pub(super) async fn park(&self, held: Vec<Held>) {
        let park = |held: Held| {
            let verdict = Verdict::parked(&held.delivery.message, &self.settings.ladder);
            (held, verdict)
        };
        self.settle(held.into_iter().map(park).collect()).await;
    }

    fn parse(&self, batch: Vec<Held>, verdicts: &mut Vec<(Held, Verdict)>) -> Part {
        let (mut held, mut sent) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        let mut incoming = Vec::with_capacity(batch.len());
        for one in batch {
            let message = &one.delivery.message;
            // For the test of crash loops; release builds have no such message.
            #[cfg(debug_assertions)]
            if message.id.as_str() == "msg_abort_the_worker" {
                std::process::abort();
            }
            match clerk::parse(&message.body, &message.id) {
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
                Err(error) => verdicts.push((one, Verdict::unreadable(error.detail))),
            }
        }
        Part { held, incoming: incoming.into(), sent }
    }

    async fn apply(&self, part: &Part) -> Applied {
        let started = Instant::now();
        let overdue =
            part.held.iter().map(|held| held.since).min().unwrap_or(started) + self.settings.hold_limit;
        let (store, incoming) = (Arc::clone(&self.store), Arc::clone(&part.incoming));
        // A task of its own: a dropped transaction could go back to the pool open.
        let mut applying = tokio::spawn(async move { store.apply(incoming).await });
        let answer = match tokio::time::timeout(self.settings.watchdog, &mut applying).await {
            Ok(answer) => answer,
            Err(_) => {
                self.stalled.send_modify(|stalled| *stalled += 1);
                let answer = tokio::time::timeout_at(overdue.into(), applying).await;
                self.stalled.send_modify(|stalled| *stalled -= 1);
                match answer {
                    Ok(answer) => answer,
                    // Left alone, not cancelled: should it commit after all, the inbox absorbs the parked copies.
                    Err(_) => return Applied::Overdue,
                }
            }
        };
        match answer {
            Ok(Ok(outcomes)) => {
                self.metrics.batch_seconds.record(started.elapsed().as_secs_f64());
                Applied::Yes(outcomes)
            }
            Ok(Err(error)) => Applied::No(error),
            Err(panicked) => Applied::No(StoreError {
                class: Class::Outage,
                code: String::new(),
                message: format!("the store failed: {panicked}"),
                hint: None,
                source: None,
            }),
        }
    }

    fn committed(&self, part: Part, outcomes: &[Outcome], verdicts: &mut Vec<(Held, Verdict)>) {
        let now = now();
        for (((held, incoming), sent), outcome) in
            part.held.into_iter().zip(part.incoming.iter()).zip(part.sent).zip(outcomes)
        {
            self.metrics.settled(&incoming.event_type, *outcome);
            if outcome.is_final() {
                // A replay would measure how long people took.
                if held.delivery.message.round == 0 {
                    self.metrics.sync_lag_seconds.record(seconds(incoming.received_at, now));
                }
                if let Some(sent) = sent {
                    self.metrics.event_age_seconds.record(seconds(sent, now));
                }
            }
            let verdict = Verdict::of_outcome(*outcome, &held.delivery.message);
            verdicts.push((held, verdict));
        }
    }

    async fn settle(&self, verdicts: Vec<(Held, Verdict)>) {
        let mut settlements = Vec::with_capacity(verdicts.len());
        for (held, verdict) in verdicts {
            let message = &held.delivery.message;
            let id = &message.id;
            match &verdict {
                Verdict::Done(outcome) => debug!(message_id = %id, "message {id}: {}", outcome.as_str()),
                Verdict::Wait { rung, .. } => {
                    self.metrics.retried(RetryReason::Waiting);
                    let delay = self.settings.ladder.name(*rung);
                    debug!(message_id = %id, "message {id} waits {delay} for another account's news");
                }
                Verdict::Retry { rung, reason, .. } => {
                    self.metrics.retried(*reason);
                    let (reason, delay) = (reason.as_str(), self.settings.ladder.name(*rung));
                    info!(message_id = %id, "message {id} comes back in {delay}: {reason}");
                }
                Verdict::Bury(burial) => {
                    self.metrics.settled(&message.event_type, Outcome::Buried);
                    self.metrics.buried(burial.reason);
                    let (reason, detail) = (burial.reason.as_str(), &burial.detail);
                    warn!(message_id = %id, reason, "message {id} is buried: {reason}: {detail}");
                }
            }
            let action = verdict.action(message);
            settlements.push(Settlement { delivery: held.delivery, action });
        }
        if !settlements.is_empty() {
            // Commit before ack: a crash here redelivers, and the inbox absorbs it.
            self.subscription.settle(settlements).await;
        }
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
