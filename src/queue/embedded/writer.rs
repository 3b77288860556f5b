//! Owns the one task of a process that writes to `queue.db`: it takes all requests that wait, carries them out in one
//! transaction, and answers them after its commit. Promises that nothing is answered before it is on the disk, and that
//! a settlement is tried again until it is. Never holds a transaction open while it waits for a request.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::{Connection, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use super::{
    super::{Ladder, QueueError, Reason, Source, gathering::Gathering},
    Timing, WriterState, describe, file,
    leases::{self, Leased, Pulse},
    rows,
    subscription::Consumer,
    work::{Request, Settle, Work, millis, settlements},
};
use crate::{
    datafile::{DataFile, connection},
    message::Message,
    telemetry::{metrics, tally::Tally},
    time::Millis,
};

/// The most rows that one commit leases to a consumer.
const LEASE_MAX: usize = 200;
/// How long after a failure the writer tries again: doubled each time, from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How far the clock may be set back without a look at what it stamped, in ms.
const CLOCK_TOLERANCE: Millis = 1000;
/// How long a closing writer goes on trying.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);

/// A consumer and the name that its leases are under; `None` before its first transaction.
#[derive(Debug)]
struct Member {
    consumer: Arc<Consumer>,
    id: Option<i64>,
}

/// What a transaction did that is acted on once it is committed.
#[derive(Debug, Default)]
struct Effects {
    /// New ids of members, by index.
    registered: Vec<(usize, i64)>,
    /// Leases, by index of the member.
    leased: Vec<(usize, Leased)>,
    /// When the next waiting event can be leased.
    next_due: Option<Millis>,
}

/// The task's state.
#[derive(Debug)]
pub(super) struct Writer {
    file: Arc<DataFile>,
    ladder: Ladder,
    timing: Timing,
    state: Arc<WriterState>,
    requests: mpsc::UnboundedReceiver<Request>,
    gathering: Gathering,
    connection: Option<SqliteConnection>,
    work: Work,
    members: Vec<Member>,
    /// The last transaction failed, and it is not known whether it was committed.
    doubt: bool,
    failures: u32,
    wake_at: Instant,
    renew_at: Instant,
    pulse: Pulse,
    /// The least that the wall clock shows unless it was set back. At first that is not known.
    clock: Millis,
    /// Something is known to be waiting: no need to look first.
    eager: bool,
    crash_loops: Tally,
}

impl Writer {
    pub(super) fn new(
        file: Arc<DataFile>,
        ladder: Ladder,
        timing: Timing,
        state: Arc<WriterState>,
        requests: mpsc::UnboundedReceiver<Request>,
    ) -> Self {
        let now = Instant::now();
        Self {
            file,
            ladder,
            timing,
            state,
            requests,
            gathering: Gathering::new(),
            connection: None,
            work: Work::default(),
            members: Vec::new(),
            doubt: false,
            failures: 0,
            wake_at: now,
            renew_at: now,
            pulse: Pulse::new(now),
            clock: Millis::MAX,
            eager: false,
            crash_loops: Tally::new(|counts| tracing::warn!("buried since the last such line: {counts}")),
        }
    }

    /// Works until the queue is closed or dropped. Returns the closing caller, if there is one, to be answered once
    /// the file is no longer in use.
    pub(super) async fn run(mut self) -> Option<oneshot::Sender<()>> {
        while let Some(asked) = self.wait().await {
            if !asked && !self.worthwhile().await {
                continue;
            }
            self.state.begin();
            let outcome = self.transact().await;
            self.state.end();
            match outcome {
                Ok(effects) => self.tell(effects),
                Err(error) => self.fail(&error),
            }
            if let Some((_, since)) = &self.work.closing
                && (!self.doubt || since.elapsed() > CLOSE_LIMIT)
            {
                break;
            }
        }
        self.requests.close();
        while let Ok(request) = self.requests.try_recv() {
            // Dropping a request answers it with an error; a consumer waits for no answer.
            if let Request::Join(consumer) = request {
                consumer.end();
            }
        }
        for member in &self.members {
            member.consumer.end();
            member.consumer.lose();
        }
        if let Some(connection) = self.connection.take()
            && let Err(error) = connection.close().await
        {
            tracing::warn!(%error, "queue.db did not close cleanly");
        }
        self.work.closing.take().map(|(closed, _)| closed)
    }

    /// Waits for requests or the next look at the file, and takes in all requests that are there. `None` once nobody can
    /// ask any more, else whether it is known that there is something to do.
    async fn wait(&mut self) -> Option<bool> {
        let mut met = 0;
        if self.failures > 0 {
            tokio::time::sleep_until(self.wake_at.into()).await;
        } else {
            if !self.eager {
                self.gathering.rest().await;
            }
            tokio::select! {
                biased;
                request = self.requests.recv() => {
                    self.take_in(request?);
                    met = 1;
                }
                () = tokio::time::sleep_until(self.wake_at.into()) => {}
            }
        }
        while !self.work.is_full() {
            match self.requests.try_recv() {
                Ok(request) => self.take_in(request),
                Err(mpsc::error::TryRecvError::Disconnected) if self.failures > 0 => return None,
                Err(_) => break,
            }
            met += 1;
        }
        self.gathering.met(met);
        Some(!self.work.is_empty() || self.doubt || self.eager)
    }

    fn take_in(&mut self, request: Request) {
        match request {
            // Its caller has given up: the sender comes again.
            Request::Publish(publish) if publish.answer.is_closed() => {}
            Request::Publish(publish) => {
                self.work.publish_bytes += publish.message.body.len();
                self.work.publishes.push(publish);
            }
            Request::Sample(sample) => self.work.samples.push(sample),
            Request::Settle(settle) => self.work.settles.push(settle),
            Request::Join(consumer) => {
                self.members.push(Member { consumer, id: None });
                self.eager = true;
            }
            Request::Return(receipts) => self.work.returned.extend(receipts),
            Request::Leave(consumer) => self.work.leaving.push(consumer),
            Request::Ready(answer) => self.work.ready.push(answer),
            Request::Close(closed) => {
                self.work.closing = Some((closed, Instant::now()));
                for member in &self.members {
                    self.work.returned.extend(member.consumer.end());
                    self.work.leaving.push(member.consumer.clone());
                }
            }
        }
    }

    /// Whether a transaction would find something to do: leases to prolong or to take back, messages to lease.
    async fn worthwhile(&mut self) -> bool {
        let now = Instant::now();
        self.wake_at = now + self.timing.poll;
        if self.members.is_empty() {
            return false;
        }
        if now >= self.renew_at {
            return true;
        }
        let Ok(connection) = file::reach(&mut self.connection, &self.file).await else { return true };
        let at = crate::time::now();
        self.pulse.beat(now, at, self.timing.heartbeat);
        let roomy = self.members.iter().filter(|member| member.consumer.has_room());
        let sources: Vec<Source> = roomy.map(|member| member.consumer.source).collect();
        match (leases::next_due(connection, &sources).await, leases::next_expiry(connection).await) {
            (Ok(due), Ok(expiry)) => {
                self.wake_at = wake_at(now, at, self.timing.poll, due);
                due.is_some_and(|due| due <= at) || expiry.is_some_and(|expiry| expiry < at)
            }
            // Trouble is the transaction's to meet.
            _ => true,
        }
    }

    async fn transact(&mut self) -> Result<Effects, file::Unwritten> {
        let connection = file::reach(&mut self.connection, &self.file).await?;
        file::begin(connection).await?;
        let at = crate::time::now();
        self.pulse.beat(Instant::now(), at, self.timing.heartbeat);
        let alive_until = at + millis(self.timing.lease);
        let mut effects = Effects::default();
        // Waiting for the lock may have taken longer than some callers wait.
        self.work.publishes.retain(|publish| !publish.answer.is_closed());
        if !self.members.is_empty() && at < self.clock {
            leases::mend_times(connection, &self.ladder, at, alive_until).await?;
        }

        // Our leases are prolonged before any are taken back: after a machine's sleep all of them have run out.
        let members: Vec<_> = self.members.iter().map(|member| (member.id, member.consumer.source)).collect();
        let ids = leases::prolong(connection, &members, alive_until).await?;
        let registered = ids.iter().copied().enumerate();
        effects.registered = registered.filter(|(index, id)| members[*index].0 != Some(*id)).collect();

        if self.doubt || !self.work.ready.is_empty() {
            file::touch(connection).await?;
        }
        let settlements = settlements(&self.work.settles, &self.ladder, at);
        rows::settle(connection, &settlements, at).await?;
        rows::settle_samples(connection, &settlements.samples).await?;
        leases::give_back(connection, &self.work.returned).await?;
        if self.doubt {
            for member in &self.members {
                let Some(id) = member.id else { continue };
                let held = member.consumer.held();
                match member.consumer.source {
                    Source::Events | Source::Dead => leases::reconcile(connection, id, &held).await?,
                    Source::Rejections => rows::reconcile_samples(connection, id, &held).await?,
                }
            }
        }
        for consumer in &self.work.leaving {
            if let Some(index) =
                self.members.iter().position(|member| Arc::ptr_eq(&member.consumer, consumer))
            {
                leases::unregister(connection, ids[index]).await?;
            }
        }
        if !self.members.is_empty() && self.pulse.may_expire(Instant::now()) {
            leases::expire(connection, at).await?;
        }
        let messages: Vec<&Message> = self.work.publishes.iter().map(|publish| &publish.message).collect();
        rows::append(connection, &messages, at).await?;
        rows::append_samples(connection, &self.work.samples, at).await?;

        for (index, member) in self.members.iter().enumerate() {
            let settling =
                self.work.settles.iter().filter(|settle| Arc::ptr_eq(&settle.consumer, &member.consumer));
            let (rows, bytes) = member.consumer.room(settling.flat_map(Settle::receipts));
            if rows > 0 {
                let room = (rows.min(LEASE_MAX), bytes);
                let leased = leases::lease(connection, member.consumer.source, ids[index], room, at).await?;
                effects.leased.push((index, leased));
            }
        }
        if !effects.leased.is_empty() {
            effects.next_due = leases::next_due(connection, &[Source::Events]).await?;
        }
        if let Err(trouble) = self.file.check() {
            file::roll_back(connection).await?;
            return Err(trouble.into());
        }
        // Commit before answering: a publish is confirmed, a delivery handed out or settled, only once this is on disk.
        file::commit(connection).await?;
        // Look before answering: what went into a file that was taken away meanwhile is lost with this process.
        self.file.check()?;
        Ok(effects)
    }

    /// Answers the requests of the committed transaction, and hands out what it leased.
    fn tell(&mut self, effects: Effects) {
        if self.failures > 0 {
            tracing::info!(failures = self.failures, "queue.db can be written again");
        }
        self.state.set_trouble(None);
        (self.failures, self.doubt, self.eager) = (0, false, false);
        let now = Instant::now();
        let at = crate::time::now();
        self.wake_at = wake_at(now, at, self.timing.poll, effects.next_due);
        self.renew_at = now + self.timing.heartbeat;
        if !self.members.is_empty() {
            self.clock = at - CLOCK_TOLERANCE;
        }
        self.pulse.expired(now, self.timing.poll);

        let work = std::mem::take(&mut self.work);
        for publish in work.publishes {
            let _ = publish.answer.send(Ok(()));
        }
        for answer in work.ready {
            let _ = answer.send(Ok(()));
        }
        self.work.closing = work.closing;
        for (index, id) in effects.registered {
            let member = &mut self.members[index];
            if member.id.replace(id).is_some() {
                let lost = member.consumer.lose();
                tracing::warn!(
                    messages = lost,
                    "leases ran out and were taken over; the messages come again"
                );
            }
        }
        for settle in work.settles {
            settle.consumer.strike(settle.receipts());
            let _ = settle.done.send(());
        }
        for (index, leased) in effects.leased {
            for message_id in leased.crash_loops {
                metrics::given_up(Reason::CrashLoop.as_str());
                if self.crash_loops.is_first(Reason::CrashLoop.as_str()) {
                    tracing::warn!(%message_id, "message {message_id} is buried: crash_loop, it was delivered too often and never settled");
                }
            }
            let consumer = &self.members[index].consumer;
            let unwanted = consumer.hand_over(leased.deliveries);
            self.eager |= !unwanted.is_empty() || (leased.more && consumer.has_room());
            self.work.returned.extend(unwanted);
        }
        for consumer in &work.leaving {
            consumer.lose();
        }
        self.members
            .retain(|member| !work.leaving.iter().any(|consumer| Arc::ptr_eq(consumer, &member.consumer)));
        if self.eager {
            self.wake_at = now;
        }
    }

    /// Fails the requests that cannot wait, and keeps the others for the next transaction.
    fn fail(&mut self, failure: &file::Unwritten) {
        let problem = match failure {
            // The file itself has logged it. The connection stays: it holds what the file's name has lost.
            file::Unwritten::File(trouble) => describe(trouble),
            file::Unwritten::Sql(error) => {
                let problem = format!("queue.db cannot be written: {}", connection::say(error));
                if connection::is_damage(connection::code(error)) {
                    self.file.damaged(connection::say(error));
                } else if self.failures == 0 {
                    tracing::warn!("{problem}; trying again");
                }
                // A fresh connection: the failed transaction ends with the old one, whatever state it was in.
                self.connection = None;
                problem
            }
        };
        self.doubt = true;
        self.failures = self.failures.saturating_add(1);
        self.state.set_trouble(Some(problem.clone()));
        let unavailable = || QueueError::File(problem.clone());
        for publish in self.work.publishes.drain(..) {
            let _ = publish.answer.send(Err(unavailable()));
        }
        self.work.publish_bytes = 0;
        self.work.samples.clear();
        for answer in self.work.ready.drain(..) {
            let _ = answer.send(Err(unavailable()));
        }
        let backoff = BACKOFF.0.saturating_mul(1 << self.failures.min(16)).min(BACKOFF.1);
        self.wake_at = Instant::now() + backoff.mul_f64(rand::random_range(0.5..1.0));
    }
}

/// The next look at the file: after the poll, or as soon as something is due.
fn wake_at(now: Instant, at: Millis, poll: Duration, due: Option<Millis>) -> Instant {
    let wait = due.map_or(poll, |due| {
        let until = u64::try_from(due - at).map_or(Duration::ZERO, Duration::from_millis);
        // A message that is due and was not leased waits for room at a consumer, and a request tells of that.
        if until.is_zero() { poll } else { until.min(poll) }
    });
    now + wait
}
