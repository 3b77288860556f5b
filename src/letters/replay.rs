//! Owns replays: claim letters, publish them, stamp them.
//!
//! Promises that a replay may be cut off anywhere. A claim is committed before its letter is published; the next replay of
//! the same letters publishes claims without a stamp first; and the inbox lets a message that was published twice take
//! effect once. Two replays of the same letters share them: one of the two claims each letter. A replay claims few letters
//! at a time, so that few are on their way when somebody stops it.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use serde::Serialize;
use tokio::{sync::watch, task::JoinSet};
use uuid::Uuid;

use crate::{
    message::{Message, MessageId},
    pause::Pauses,
    queue::{Queue, QueueError, Source},
    stop::until,
    store::{
        StoreError,
        letters::{Actor, Claimed, Filter, Letters, Publication, Status},
    },
    time::Millis,
};

/// How many letters are claimed at a time. At a rate, no more than a second's worth.
const CHUNK: u32 = 100;

/// What a replay shall do.
#[derive(Clone, Debug)]
pub struct Order {
    /// Selects letters. Those of them are replayed that are open, or claimed and not stamped.
    pub filter: Filter,
    /// The most letters to publish.
    pub limit: u64,
    /// Letters per second; `None` for as fast as the queue confirms.
    pub rate: Option<f64>,
    /// Who asks for the replay, and why: for the letters' histories.
    pub by: Actor,
}

/// How far a replay has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Claims that an earlier replay left without a stamp, and that this one publishes.
    pub taken_up: u64,
    /// Letters that this replay claimed.
    pub claimed: u64,
    /// Letters that are durable in the queue again.
    pub published: u64,
    /// Claims without a stamp so far. The next replay of the same letters publishes them again.
    pub unstamped_left: u64,
}

/// How a replay ended.
#[derive(Debug)]
pub enum End {
    /// It published every letter that was selected and open when it began. Letters that die again meanwhile are left for
    /// the next replay.
    Complete,
    /// It reached its limit; more letters may be open.
    Limit,
    /// Somebody stopped it.
    Stopped,
    /// The queue did not take messages.
    Queue(QueueError),
    /// The database did not answer.
    Store(StoreError),
}

/// Why no worker would take a message at once, in words. `None` where one would, or where the queue does not tell. A worker
/// that is paused consumes nothing.
pub async fn nobody_works(queue: &dyn Queue) -> Option<String> {
    let depths = queue.depths().await.ok()?;
    let events = depths.iter().find(|depth| depth.queue == Source::Events.queue())?;
    (events.consumers == 0).then(|| {
        "no worker takes messages at present: none runs, or all are paused because the database takes no writes; \
         what is sent waits in the queue"
            .to_owned()
    })
}

/// Where a replay's letters come from.
#[async_trait]
pub(super) trait Claims: Send + Sync {
    /// How many letters there are to be claimed.
    async fn open(&self) -> Result<u64, StoreError>;

    /// Claims that nobody has published, made before `before` by the database's clock.
    async fn unfinished(&self, before: Millis, limit: u32) -> Result<Vec<Claimed>, StoreError>;

    /// Claims letters. None: there is nothing left to claim.
    async fn claim(&self, limit: u32) -> Result<Vec<Claimed>, StoreError>;
}

/// All letters that a filter selects.
struct Selected<'a> {
    letters: &'a dyn Letters,
    order: &'a Order,
}

#[async_trait]
impl Claims for Selected<'_> {
    async fn open(&self) -> Result<u64, StoreError> {
        let filter = Filter { status: Some(Status::Open), ..self.order.filter.clone() };
        let counts = self.letters.count(&filter).await?;
        Ok(counts.iter().map(|count| count.letters).sum())
    }

    async fn unfinished(&self, before: Millis, limit: u32) -> Result<Vec<Claimed>, StoreError> {
        self.letters.unstamped(&self.order.filter, before, limit).await
    }

    async fn claim(&self, limit: u32) -> Result<Vec<Claimed>, StoreError> {
        self.letters.claim(&self.order.filter, limit, &self.order.by).await
    }
}

/// Publishes letters again.
#[derive(Clone)]
pub struct Replayer {
    /// The letters' table.
    pub letters: Arc<dyn Letters>,
    /// The queue that the letters are published to.
    pub queue: Arc<dyn Queue>,
    /// How long a replay waits for a queue that is away before it gives up.
    pub patience: Duration,
}

impl Replayer {
    /// A replayer that waits eight seconds for a queue that is away: a command then ends within about ten.
    pub fn new(letters: Arc<dyn Letters>, queue: Arc<dyn Queue>) -> Self {
        Self { letters, queue, patience: Duration::from_secs(8) }
    }

    /// Replays the letters that are selected and open by now, until none is left, the limit is reached, or `stop` turns
    /// true; then it still publishes and stamps what it has claimed. Calls `progress` after each step, with the letters
    /// that the step published.
    pub async fn run(
        &self,
        order: &Order,
        progress: impl Fn(&Progress, &[Publication]) + Send + Sync,
        stop: &watch::Receiver<bool>,
    ) -> (Progress, End) {
        self.run_with(&Selected { letters: self.letters.as_ref(), order }, order, progress, stop).await
    }

    /// As [`run`](Self::run), with letters from elsewhere.
    pub(super) async fn run_with(
        &self,
        claims: &dyn Claims,
        order: &Order,
        progress: impl Fn(&Progress, &[Publication]) + Send + Sync,
        stop: &watch::Receiver<bool>,
    ) -> (Progress, End) {
        let mut run = Run {
            replayer: self,
            claims,
            order,
            progress: &progress,
            stop,
            pace: Pace::new(order.rate),
            report: Progress::default(),
        };
        let ended = run.all().await.unwrap_or_else(|ended| ended);
        progress(&run.report, &[]);
        (run.report, ended)
    }

    /// Publishes and stamps claims that the caller has just made, such as an edit's.
    ///
    /// # Errors
    /// The queue or the database is away; a replay of the same letters publishes them.
    pub async fn send(&self, claims: Vec<Claimed>) -> Result<(), End> {
        let (_stop, stopped) = watch::channel(false);
        let order = Order {
            filter: Filter::default(),
            limit: 0,
            rate: None,
            by: Actor { name: String::new(), note: None },
        };
        let mut run = Run {
            replayer: self,
            claims: &Selected { letters: self.letters.as_ref(), order: &order },
            order: &order,
            progress: &|_, _| {},
            stop: &stopped,
            pace: Pace::new(None),
            report: Progress::default(),
        };
        run.chunk(claims).await
    }
}

/// One replay on its way.
struct Run<'a> {
    replayer: &'a Replayer,
    claims: &'a dyn Claims,
    order: &'a Order,
    progress: &'a (dyn Fn(&Progress, &[Publication]) + Send + Sync),
    stop: &'a watch::Receiver<bool>,
    pace: Pace,
    report: Progress,
}

impl Run<'_> {
    async fn all(&mut self) -> Result<End, End> {
        self.take_up().await?;
        // A letter that dies again is open and selected again, and must not be replayed for ever. Claims begin with the
        // first to die, so the next `left` claims are the letters that are open now. Where another replay takes some of
        // them, a letter that is claimed for the second time tells.
        let mut left = self.claims.open().await.map_err(End::Store)?;
        let mut seen: HashSet<Uuid> = HashSet::new();
        loop {
            let Some(limit) = self.room().await? else { return Ok(End::Limit) };
            let limit = u32::try_from(left).map_or(limit, |left| left.min(limit));
            if limit == 0 {
                return Ok(End::Complete);
            }
            // Commit before publish: a crash from here on leaves claims without a stamp, which the next replay publishes.
            let claims = self.claims.claim(limit).await.map_err(End::Store)?;
            if claims.is_empty() {
                return Ok(End::Complete);
            }
            self.report.claimed += claims.len() as u64;
            left = left.saturating_sub(claims.len() as u64);
            let again = claims.iter().filter(|claim| !seen.insert(claim.id)).count();
            self.chunk(claims).await?;
            if again > 0 {
                return Ok(End::Complete);
            }
        }
    }

    /// Publishes the letters that an earlier replay claimed and did not stamp. A replay that runs at this moment may publish
    /// the same ones: the inbox absorbs that.
    async fn take_up(&mut self) -> Result<(), End> {
        // By the database's clock, which dates the claims. This host's may be behind it.
        let before = self.replayer.letters.clock().await.map_err(End::Store)?;
        let mut seen: HashSet<(Uuid, u32)> = HashSet::new();
        loop {
            let Some(limit) = self.room().await? else { return Ok(()) };
            let claims = self.claims.unfinished(before, limit).await.map_err(End::Store)?;
            let fresh: Vec<Claimed> =
                claims.into_iter().filter(|claim| seen.insert((claim.id, claim.round))).collect();
            if fresh.is_empty() {
                return Ok(());
            }
            self.report.taken_up += fresh.len() as u64;
            self.chunk(fresh).await?;
        }
    }

    /// How many letters may be claimed now; `None` where the limit is reached. Waits for the pace, so that no letter is
    /// claimed long before it is published.
    async fn room(&mut self) -> Result<Option<u32>, End> {
        tokio::select! {
            biased;
            () = until(self.stop, |stop| *stop) => return Err(End::Stopped),
            () = self.pace.due() => {}
        }
        let left = self.order.limit.saturating_sub(self.report.taken_up + self.report.claimed);
        let chunk = self.pace.a_second().min(CHUNK);
        Ok(u32::try_from(left).map_or(Some(chunk), |left| (left > 0).then_some(left.min(chunk))))
    }

    /// Publishes and stamps claims, also where `stop` turns true meanwhile.
    async fn chunk(&mut self, claims: Vec<Claimed>) -> Result<(), End> {
        self.report.unstamped_left += claims.len() as u64;
        (self.progress)(&self.report, &[]);
        let (published, failed) = self.publish(claims).await;
        self.report.published += published.len() as u64;
        if !published.is_empty() {
            // Publish before stamp: a crash in between publishes them again.
            self.replayer.letters.stamp(&published).await.map_err(End::Store)?;
            self.report.unstamped_left -= published.len() as u64;
        }
        (self.progress)(&self.report, &published);
        failed.map_or(Ok(()), |error| Err(End::Queue(error)))
    }

    /// Publishes claims. Returns those that are durable in the queue, and why the others are not.
    async fn publish(&mut self, claims: Vec<Claimed>) -> (Vec<Publication>, Option<QueueError>) {
        let mut published = Vec::with_capacity(claims.len());
        let mut pauses = Pauses::new(Duration::from_millis(200), Duration::from_secs(2));
        let (mut left, mut unreadable) = (claims, None);
        let started = Instant::now();
        loop {
            let mut tasks = JoinSet::new();
            for claim in left.drain(..) {
                let Some(message) = message(&claim) else {
                    let why = format!("letter {} has no message id that can travel", claim.id);
                    unreadable = Some(QueueError::Unavailable(why));
                    continue;
                };
                tokio::select! {
                    biased;
                    () = until(self.stop, |stop| *stop) => {}
                    () = self.pace.due() => {}
                }
                self.pace.spend();
                let queue = Arc::clone(&self.replayer.queue);
                tasks.spawn(async move { (claim, queue.publish(message).await) });
            }
            let mut trouble = None;
            while let Some(ended) = tasks.join_next().await {
                match ended {
                    Ok((claim, Ok(()))) => published.push((claim.id, claim.round)),
                    Ok((claim, Err(error))) => {
                        left.push(claim);
                        trouble = Some(error);
                    }
                    Err(_) => trouble = Some(QueueError::Unavailable("publishing panicked".into())),
                }
            }
            let Some(trouble) = trouble else { return (published, unreadable) };
            let pause = pauses.next_pause();
            let hopeless = left.is_empty() || *self.stop.borrow();
            if hopeless || started.elapsed() + pause > self.replayer.patience {
                return (published, Some(trouble));
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = until(self.stop, |stop| *stop) => {}
            }
        }
    }
}

/// The message of a letter in its new round, with no attempts so far. It keeps the time at which the ingress took it in, so
/// that the table, the inbox and a later death agree. The worker leaves replays out of the sync lag, which would otherwise
/// measure how long people took.
fn message(claim: &Claimed) -> Option<Message> {
    Some(Message {
        id: MessageId::parse(&claim.message_id)?,
        origin: claim.origin,
        event_type: claim.event_type.clone(),
        received_at: claim.first_seen,
        attempt: 0,
        waits: 0,
        round: claim.round,
        traceparent: None,
        body: claim.body.clone(),
    })
}

/// An even pace of so many per second. It does not catch up after a stall.
struct Pace {
    step: Option<Duration>,
    next: tokio::time::Instant,
}

impl Pace {
    fn new(rate: Option<f64>) -> Self {
        let step = rate
            .filter(|rate| rate.is_finite() && *rate > 0.0)
            .and_then(|rate| Duration::try_from_secs_f64(1.0 / rate).ok());
        Self { step, next: tokio::time::Instant::now() }
    }

    /// How many go in a second, at least one.
    fn a_second(&self) -> u32 {
        self.step.map_or(CHUNK, |step| ((1.0 / step.as_secs_f64()) as u32).max(1))
    }

    /// Waits until the next may go. Safe to cancel.
    async fn due(&self) {
        if self.step.is_some() {
            tokio::time::sleep_until(self.next).await;
        }
    }

    /// Counts one that goes.
    fn spend(&mut self) {
        if let Some(step) = self.step {
            // The timer is precise to a millisecond, so a few that are late may go together.
            let lag = Duration::from_millis(100);
            let now = tokio::time::Instant::now();
            self.next = self.next.max(now.checked_sub(lag).unwrap_or(now)) + step;
        }
    }
}
