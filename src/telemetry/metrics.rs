//! Owns every metric's name, type, labels and buckets, and the handles that hot paths keep. Callers hand labels over as
//! fixed words: this file knows none of their types. A label never carries an id or anything that a stranger can choose.
//! `tests/docs.rs` compares this file with the documentation. What people see without Prometheus is counted at the same places, in `rates`.

use std::sync::{Arc, LazyLock, OnceLock};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;

use super::rates::{self, Counted};

/// A metric's Prometheus type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric as it is documented.
#[derive(Debug)]
pub struct Metric {
    /// Ends in its base unit.
    pub name: &'static str,
    /// How Prometheus treats it.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// One line for `/metrics`, without a full stop.
    pub help: &'static str,
}

const fn metric(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind, labels, help }
}

/// Every metric.
pub const METRICS: &[Metric] = &[
    metric(
        "headcount_webhooks_total",
        Kind::Counter,
        &["outcome"],
        "Webhooks and requests to their path, by what they were answered",
    ),
    metric("headcount_connections", Kind::Gauge, &["listener"], "Open connections"),
    metric(
        "headcount_connections_closed_total",
        Kind::Counter,
        &["listener", "reason"],
        "Connections closed on strangers: refused, or shed to make room in a full house",
    ),
    metric("headcount_publish_seconds", Kind::Histogram, &[], "From verified to durable in the queue"),
    metric("headcount_events_total", Kind::Counter, &["type", "outcome"], "Events settled by workers"),
    metric("headcount_batch_messages", Kind::Histogram, &[], "Messages in a batch"),
    metric("headcount_batch_seconds", Kind::Histogram, &[], "A batch's transaction"),
    metric("headcount_sync_lag_seconds", Kind::Histogram, &[], "From received to committed"),
    metric("headcount_event_age_seconds", Kind::Histogram, &[], "From Clerk's timestamp to committed"),
    metric("headcount_retries_total", Kind::Counter, &["reason"], "Messages sent to a retry queue"),
    metric(
        "headcount_dead_letters_total",
        Kind::Counter,
        &["reason"],
        "Messages that died: buried by this process, or given up by the queue and captured by it",
    ),
    metric("headcount_queue_messages", Kind::Gauge, &["queue"], "Messages in each queue"),
    metric("headcount_queue_trouble", Kind::Gauge, &["part"], "1 while a part of the queue does not work"),
    metric("headcount_dead_letters", Kind::Gauge, &["status"], "Dead letters in the table"),
    metric(
        "headcount_last_webhook_timestamp_seconds",
        Kind::Gauge,
        &[],
        "When the last webhook was accepted; absent until this process has accepted one",
    ),
    metric(
        "headcount_held_messages",
        Kind::Gauge,
        &[],
        "Messages that the worker has taken and not settled yet",
    ),
    metric(
        "headcount_clerk_behind_seconds",
        Kind::Gauge,
        &[],
        "Age of the oldest change that Clerk has and the table lacks once the grace is over, or the time since Clerk could last be looked at; only the process that watches knows it, NaN in one that did",
    ),
    metric(
        "headcount_healed_total",
        Kind::Counter,
        &["kind"],
        "Users that were repaired by what Clerk's API says, because no webhook did",
    ),
    metric(
        "headcount_api_requests_total",
        Kind::Counter,
        &["answer"],
        "Requests of the application's, by what they were answered",
    ),
    metric("headcount_api_streams", Kind::Gauge, &[], "Open streams of live updates"),
    metric(
        "headcount_first_rows_total",
        Kind::Counter,
        &["result"],
        "Users who asked and were read from Clerk's API, by what came of it",
    ),
    metric("headcount_paused", Kind::Gauge, &[], "1 while the worker waits for its database"),
    metric("headcount_build_info", Kind::Gauge, &["version"], "1"),
];

/// Buckets of times, in seconds.
const SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3600.0];
/// Buckets of batch sizes.
const MESSAGES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0];

/// An enum whose variants are the values of a label.
macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $label:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)] // The labels say it.
        pub enum $name { $($variant),* }

        impl $name {
            /// Every value.
            pub const ALL: [Self; [$($label),*].len()] = [$(Self::$variant),*];

            /// The label.
            pub fn as_str(self) -> &'static str {
                [$($label),*][self as usize]
            }
        }
    };
}

labels! {
    /// What a request to the webhook path was answered.
    Answer {
        Queued = "queued",
        Malformed = "malformed",
        Unauthorized = "unauthorized",
        TooLarge = "too_large",
        TooSlow = "too_slow",
        WrongPath = "wrong_path",
        Unavailable = "unavailable",
    }
}

labels! {
    /// What a request of the application's was answered.
    ApiAnswer {
        Answered = "answered",
        Unauthorized = "unauthorized",
        Limited = "limited",
        Refused = "refused",
        Unavailable = "unavailable",
    }
}

labels! {
    /// What came of reading a user who asked.
    FirstRow { Done = "done", Nobody = "nobody", Unreadable = "unreadable", Away = "away" }
}

/// Handles for the application's listener.
#[derive(Clone)]
pub struct ApiMetrics {
    requests: [Counter; ApiAnswer::ALL.len()],
    first_rows: [Counter; FirstRow::ALL.len()],
    /// `headcount_api_streams`
    pub streams: Gauge,
}

impl ApiMetrics {
    /// Registers them.
    pub fn new() -> Self {
        Self {
            requests: ApiAnswer::ALL
                .map(|answer| counter!("headcount_api_requests_total", "answer" => answer.as_str())),
            first_rows: FirstRow::ALL
                .map(|result| counter!("headcount_first_rows_total", "result" => result.as_str())),
            streams: gauge!("headcount_api_streams"),
        }
    }

    /// Counts a request.
    pub fn answered(&self, answer: ApiAnswer) {
        self.requests[answer as usize].increment(1);
    }

    /// Counts a user who was read.
    pub fn first_row(&self, result: FirstRow) {
        self.first_rows[result as usize].increment(1);
    }
}

impl Default for ApiMetrics {
    fn default() -> Self {
        Self::new()
    }
}

labels! {
    /// Why a message went to a retry queue.
    RetryReason { Transient = "transient", Waiting = "waiting", Parked = "parked" }
}

/// Handles for the connections of one listener.
#[derive(Clone)]
pub struct ListenerMetrics {
    /// The label: `public` or `operators`.
    pub listener: &'static str,
    /// `headcount_connections`
    pub open: Gauge,
    /// Those that were closed because a newcomer found no place.
    pub shed: Counter,
    /// Those that were closed with a refusal.
    pub refused: Counter,
}

impl ListenerMetrics {
    /// Registers them.
    pub fn new(listener: &'static str) -> Self {
        let closed = |reason: &'static str| counter!("headcount_connections_closed_total", "listener" => listener, "reason" => reason);
        Self {
            listener,
            open: gauge!("headcount_connections", "listener" => listener),
            shed: closed("shed"),
            refused: closed("refused"),
        }
    }
}

/// Handles for the ingress's path.
#[derive(Clone)]
pub struct IngressMetrics {
    answers: [Counter; Answer::ALL.len()],
    /// `headcount_publish_seconds`
    pub publish_seconds: Histogram,
    /// Made with its first value: before that nothing is known, and 0 would be a time.
    last_webhook: Arc<OnceLock<Gauge>>,
    /// Of its connections.
    pub connections: ListenerMetrics,
}

impl IngressMetrics {
    /// Registers them.
    pub fn new() -> Self {
        Self {
            answers: Answer::ALL
                .map(|answer| counter!("headcount_webhooks_total", "outcome" => answer.as_str())),
            publish_seconds: histogram!("headcount_publish_seconds"),
            last_webhook: Arc::default(),
            connections: ListenerMetrics::new("public"),
        }
    }

    /// Counts an answered request.
    pub fn answered(&self, answer: Answer) {
        self.answers[answer as usize].increment(1);
        if answer == Answer::Queued {
            rates::count(Counted::Received, 1);
            let last = self.last_webhook.get_or_init(|| gauge!("headcount_last_webhook_timestamp_seconds"));
            last.set(crate::time::now() as f64 / 1000.0);
        } else {
            rates::count(Counted::Rejected, 1);
        }
    }
}

impl Default for IngressMetrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Counters of one metric that differ in one label.
#[derive(Clone)]
struct Counters(Vec<(&'static str, Counter)>);

impl Counters {
    /// Registers a counter for each value, so that each is shown as 0 before anything is counted.
    fn new(values: &[&'static str], register: impl Fn(&'static str) -> Counter) -> Self {
        Self(values.iter().map(|value| (*value, register(value))).collect())
    }

    fn count(&self, value: &str) {
        self.add(value, 1);
    }

    fn add(&self, value: &str, count: u64) {
        if let Some((_, counter)) = self.0.iter().find(|(known, _)| *known == value) {
            counter.increment(count);
        }
    }
}

/// The label of event types that have none of their own.
const OTHER: &str = "other";

/// Handles for the worker's path.
#[derive(Clone)]
pub struct WorkerMetrics {
    /// By event type, [`OTHER`] last.
    events: Vec<(&'static str, Counters)>,
    /// `headcount_batch_messages`
    pub batch_messages: Histogram,
    /// `headcount_batch_seconds`
    pub batch_seconds: Histogram,
    /// `headcount_sync_lag_seconds`
    sync_lag_seconds: Histogram,
    /// `headcount_event_age_seconds`
    pub event_age_seconds: Histogram,
    retries: [Counter; RetryReason::ALL.len()],
    dead_letters: Counters,
    /// `headcount_paused`
    pub paused: Gauge,
}

impl WorkerMetrics {
    /// Registers them, with every event type that has a label of its own, every outcome and every reason of a burial.
    pub fn new(types: &[&'static str], outcomes: &[&'static str], reasons: &[&'static str]) -> Self {
        let events = types.iter().copied().chain([OTHER]).map(|kind| {
            let register = |outcome| counter!("headcount_events_total", "type" => kind, "outcome" => outcome);
            (kind, Counters::new(outcomes, register))
        });
        Self {
            events: events.collect(),
            batch_messages: histogram!("headcount_batch_messages"),
            batch_seconds: histogram!("headcount_batch_seconds"),
            sync_lag_seconds: histogram!("headcount_sync_lag_seconds"),
            event_age_seconds: histogram!("headcount_event_age_seconds"),
            retries: RetryReason::ALL
                .map(|reason| counter!("headcount_retries_total", "reason" => reason.as_str())),
            dead_letters: Counters::new(
                reasons,
                |reason| counter!("headcount_dead_letters_total", "reason" => reason),
            ),
            paused: gauge!("headcount_paused"),
        }
    }

    /// Counts a settled event.
    pub fn settled(&self, event_type: &str, outcome: &'static str) {
        let known = self.events.iter().find(|(kind, _)| *kind == event_type).or(self.events.last());
        if let Some((_, outcomes)) = known {
            outcomes.count(outcome);
        }
    }

    /// Counts an event that was committed for good. `lag` is how many milliseconds ago it was received, where it is a webhook that
    /// nobody replayed.
    pub fn committed(&self, lag: Option<i64>) {
        rates::count(Counted::Applied, 1);
        if let Some(lag) = lag {
            rates::lag(lag);
            self.sync_lag_seconds.record(lag.max(0) as f64 / 1000.0);
        }
    }

    /// Counts a message sent to a retry queue.
    pub fn retried(&self, reason: RetryReason) {
        rates::count(Counted::Retried, 1);
        self.retries[reason as usize].increment(1);
    }

    /// Counts a burial.
    pub fn buried(&self, reason: &'static str) {
        rates::count(Counted::Died, 1);
        self.dead_letters.count(reason);
    }
}

/// Handles for the watch over Clerk.
#[derive(Clone)]
pub struct WatchMetrics {
    healed: Counters,
    /// Made with its first value: a process that has never watched knows nothing.
    behind: Arc<OnceLock<Gauge>>,
}

impl WatchMetrics {
    /// Registers them.
    pub fn new() -> Self {
        let healed = |kind| counter!("headcount_healed_total", "kind" => kind);
        Self { healed: Counters::new(&["missing", "outdated", "gone"], healed), behind: Arc::default() }
    }

    /// Counts users who were healed.
    pub fn healed(&self, kind: &str, users: u64) {
        rates::count(Counted::Healed, users);
        self.healed.add(kind, users);
    }

    /// Sets `headcount_clerk_behind_seconds`.
    pub fn behind(&self, seconds: u64) {
        self.behind.get_or_init(|| gauge!("headcount_clerk_behind_seconds")).set(seconds as f64);
    }

    /// This process no longer knows: it takes back what it said. Zero would say that the table is in step.
    pub fn not_known(&self) {
        if let Some(behind) = self.behind.get() {
            behind.set(f64::NAN);
        }
    }
}

impl Default for WatchMetrics {
    fn default() -> Self {
        Self::new()
    }
}

/// One message in the worker's hands: counted in `headcount_held_messages` until it is dropped.
pub struct Holding(Gauge);

impl Holding {
    /// Counts it.
    pub fn begin() -> Self {
        let held = gauge!("headcount_held_messages");
        held.increment(1.0);
        rates::hold(1);
        Self(held)
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.0.decrement(1.0);
        rates::hold(-1);
    }
}

/// Counts a death that no worker has counted: the queue gave the message up.
pub fn given_up(reason: &'static str) {
    rates::count(Counted::Died, 1);
    counter!("headcount_dead_letters_total", "reason" => reason).increment(1);
}

/// Sets `headcount_paused`, for a worker that has not begun.
pub fn paused(paused: bool) {
    gauge!("headcount_paused").set(f64::from(u8::from(paused)));
}

/// Sets `headcount_queue_messages`.
pub fn queue_messages(queue: &str, messages: u64) {
    gauge!("headcount_queue_messages", "queue" => queue.to_owned()).set(messages as f64);
}

/// Sets `headcount_queue_trouble` of one part of the queue.
pub fn queue_trouble(part: &'static str, in_trouble: bool) {
    gauge!("headcount_queue_trouble", "part" => part).set(f64::from(u8::from(in_trouble)));
}

/// Sets `headcount_dead_letters`.
pub fn dead_letters(status: &'static str, letters: u64) {
    gauge!("headcount_dead_letters", "status" => status).set(letters as f64);
}

/// Installs the process's recorder. Call [`PrometheusHandle::run_upkeep`] every few seconds, or memory grows.
///
/// # Errors
/// Where a recorder is installed already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for metric in METRICS.iter().filter(|metric| metric.kind == Kind::Histogram) {
        let buckets = if metric.name.ends_with("_seconds") { SECONDS } else { MESSAGES };
        builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.into()), buckets)?;
    }
    let handle = builder.install_recorder()?;
    for metric in METRICS {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
    gauge!("headcount_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Collector::default().describe();
    Ok(handle)
}

/// Reads the usual `process_*` figures of this process anew: its processor time, memory, threads and files.
pub fn read_process() {
    static COLLECTOR: LazyLock<Collector> = LazyLock::new(Collector::default);
    COLLECTOR.collect();
}
