//! Owns one replay on its way, in the process that holds it: publishes as far as its ramp dares, follows what people wish, renews the
//! lease, and ends it.
//!
//! Promises that a process which may have lost its lease publishes nothing more; that what a process left claimed and not published is
//! published first by the next one; that no more letters are published than people allow; that a server holds no replay that is paused;
//! and that a pause of the whole pipeline halts nothing. What was being published when the lease was lost may arrive all the same, and
//! be published once more by the next process: both messages are of one id and round, and the inbox lets one of them take effect.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use uuid::Uuid;

use super::{
    ramp::{Next, Stand},
    replay::{Claims, End, Order, Progress, Replayer},
};
use crate::{
    queue::{Queue, QueueError},
    stop::until,
    store::{
        Store, StoreError,
        letters::{Actor, Claimed, Letters, Publication},
        operations::{Ended, Given, Held, Operation, Outcomes, State, TTL, Tick, Wish},
    },
    text::letters,
    time::Millis,
};

/// How often the lease is renewed and the wish is read.
const TICK: Duration = Duration::from_secs(1);
/// A lease that was not renewed for so long counts as lost, because it is about to end by the database's clock.
const UNSURE: Duration = Duration::from_secs(8);
/// How often it is looked at what became of letters.
const LOOK: Duration = Duration::from_millis(250);
/// A letter that is under way for so long is told of.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a patient replay waits for a queue that takes nothing before it tries again.
const QUEUE: Duration = Duration::from_secs(2);
/// Claims that are published at a time after they were left.
const LEFT: u32 = 100;

/// What a process does with a replay when it is asked to stop, and when the queue takes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// A server's: it leaves the replay to another process, and waits for the queue.
    Server,
    /// A command's: it ends the replay.
    Command,
}

/// What is told of a replay on its way.
#[derive(Debug)]
pub enum Told<'t> {
    /// Letters were published.
    Published(&'t Progress, &'t [Publication]),
    /// A step has ended, or the replay has.
    Step(String),
    /// It waits, for this reason.
    Waits(&'t str),
}

/// How a process is done with a replay.
#[derive(Debug)]
pub enum Done {
    /// It has ended.
    Ended(Ended),
    /// It goes on in another process, or will.
    Left,
    /// Somebody paused it. Once it is resumed, whichever process takes it goes on.
    Paused,
    /// The queue took nothing, and it has ended.
    Queue(QueueError),
    /// The database did not answer. Whoever holds it next goes on.
    Store(StoreError),
}

/// Runs a replay.
pub struct Conductor {
    /// The letters, and how far the replay is.
    pub store: Arc<dyn Store>,
    /// Publishes them.
    pub replayer: Replayer,
    /// How it ends.
    pub manner: Manner,
}

/// What the replay is to do at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Command {
    Run,
    Pause,
    Stop,
    /// This process stops.
    Leave,
    /// Another process may have it.
    Lost,
}

impl Conductor {
    /// A conductor that publishes to this queue.
    pub fn new(store: &Arc<dyn Store>, queue: &Arc<dyn Queue>, manner: Manner) -> Self {
        let letters = Arc::clone(store) as Arc<dyn Letters>;
        Self { store: Arc::clone(store), replayer: Replayer::new(letters, Arc::clone(queue)), manner }
    }

    /// Runs a replay that `holder` holds, until it has ended, is another's, or `stop` turns true. Answers what this process has
    /// published, and how it is done.
    pub async fn run(
        &self,
        operation: Operation,
        holder: Uuid,
        told: &(dyn Fn(Told<'_>) + Send + Sync),
        stop: &watch::Receiver<bool>,
    ) -> (Progress, Done) {
        let given = match operation.given() {
            Ok(given) => given.clone(),
            Err(error) => return (Progress::default(), Done::Store(error)),
        };
        let tick = Tick {
            state: State::Running,
            // Who resumed it, until there is something else to say.
            detail: operation.detail.clone(),
            published: operation.published,
            applied: operation.applied,
            died: operation.died,
            step: operation.step,
        };
        let way = Way {
            conductor: self,
            held: Held { id: operation.id, holder },
            by: Actor { name: operation.who.clone(), note: operation.note.clone() },
            expected: operation.expected,
            given,
            told,
            tick: Mutex::new(tick),
            report: Mutex::default(),
            command: watch::Sender::new(Command::Run),
            is_held_up: watch::Sender::new(false),
            adopts: Mutex::new(true),
        };
        let done = tokio::select! {
            done = way.go(operation) => done,
            () = way.renew() => Done::Left,
            () = way.leave(stop) => Done::Left,
        };
        let report = *lock(&way.report);
        (report, done)
    }
}

/// A replay on its way.
struct Way<'a> {
    conductor: &'a Conductor,
    held: Held,
    by: Actor,
    expected: u64,
    given: Given,
    told: &'a (dyn Fn(Told<'_>) + Send + Sync),
    /// What is written down with the next renewal.
    tick: Mutex<Tick>,
    /// What this process has published.
    report: Mutex<Progress>,
    command: watch::Sender<Command>,
    /// The same for the replayer: it is to publish no more than it has claimed.
    is_held_up: watch::Sender<bool>,
    /// Others' claims may be left to be taken over.
    adopts: Mutex<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Way<'_> {
    fn store(&self) -> &dyn Store {
        self.conductor.store.as_ref()
    }

    /// Whatever outranks the command that stands, or a wish in the place of another wish.
    fn order(&self, command: Command) {
        self.command.send_if_modified(|stands| {
            let changes = *stands != command && (command > *stands || *stands < Command::Leave);
            if changes {
                *stands = command;
            }
            changes
        });
        self.is_held_up.send_replace(*self.command.borrow() != Command::Run);
    }

    /// Renews the lease until it is lost, and then does nothing for ever: what goes on finds out by itself how the replay stands.
    async fn renew(&self) {
        let mut renewed = Instant::now();
        loop {
            sleep(TICK).await;
            let asked = Instant::now();
            let tick = lock(&self.tick).clone();
            // A database that does not answer must not hide how late it is.
            let sure = UNSURE.saturating_sub(renewed.elapsed());
            let renewal = timeout(sure, self.store().tick(self.held.id, self.held.holder, &tick)).await;
            let is_lost = match renewal {
                Ok(Ok(Some(operation))) => {
                    renewed = asked;
                    self.heed(&operation);
                    false
                }
                Ok(Ok(None)) => true,
                Ok(Err(_)) | Err(_) => renewed.elapsed() >= UNSURE,
            };
            if is_lost {
                self.order(Command::Lost);
                return std::future::pending().await;
            }
        }
    }

    fn heed(&self, operation: &Operation) {
        self.order(match operation.wish {
            Wish::Run => Command::Run,
            Wish::Pause => Command::Pause,
            Wish::Stop => Command::Stop,
        });
    }

    /// Hears for ever whether the process is to stop.
    async fn leave(&self, stop: &watch::Receiver<bool>) {
        until(stop, |stop| *stop).await;
        self.order(Command::Leave);
        std::future::pending().await
    }

    async fn go(&self, operation: Operation) -> Done {
        self.heed(&operation);
        let done = self.steps().await;
        match &done {
            // In vain or not: the lease ends by itself.
            Done::Left | Done::Paused | Done::Store(_) => {
                let _ = self.store().give_operation_back(self.held.id, self.held.holder).await;
            }
            Done::Ended(_) | Done::Queue(_) => {}
        }
        done
    }

    async fn steps(&self) -> Done {
        match self.all().await {
            Ok(done) => done,
            Err(error) if error.is_over() => Done::Left,
            Err(error) if self.conductor.manner == Manner::Command => {
                // In vain or not: if it is not ended here, a worker goes on with it.
                let _ = self.end(State::Failed, Some(error.to_string())).await;
                Done::Store(error)
            }
            Err(error) => Done::Store(error),
        }
    }

    async fn all(&self) -> Result<Done, StoreError> {
        let mut exhausted: Option<State> = None;
        let mut waiting: Option<(u64, Instant)> = None;
        loop {
            let command = *self.command.borrow();
            match command {
                Command::Run => {}
                Command::Lost => return Ok(Done::Left),
                Command::Leave if self.conductor.manner == Manner::Server => {
                    self.write_down().await?;
                    return Ok(Done::Left);
                }
                Command::Leave | Command::Stop => return self.end(State::Stopped, None).await,
                // It keeps no place among those that run.
                Command::Pause if self.conductor.manner == Manner::Server => {
                    lock(&self.tick).state = State::Paused;
                    self.write_down().await?;
                    return Ok(Done::Paused);
                }
                Command::Pause => {
                    self.rest(command).await?;
                    continue;
                }
            }
            let Some((operation, outcomes)) = self.look().await? else { return Ok(Done::Left) };
            if operation.letters() >= self.given.limit {
                exhausted.get_or_insert(State::Limit);
            }
            if outcomes.unstamped > 0 {
                // Claimed by a process that is gone, or while the queue took nothing.
                let claims = self.store().unpublished(self.held.id, LEFT).await?;
                let sent = tokio::select! {
                    sent = self.conductor.replayer.send(claims) => sent,
                    () = self.lost() => Ok(()),
                };
                if let Err(ended) = sent {
                    match self.failed(ended).await? {
                        Some(done) => return Ok(done),
                        None => continue,
                    }
                }
                continue;
            }
            let stand = self.stand(&operation, &outcomes, exhausted.is_some());
            match self.next(&stand) {
                Next::Publish(letters) => match self.publish(&operation, letters).await {
                    End::Complete => exhausted = Some(State::Complete),
                    End::Limit | End::Stopped => {}
                    ended @ (End::Queue(_) | End::Store(_)) => {
                        if let Some(done) = self.failed(ended).await? {
                            return Ok(done);
                        }
                    }
                },
                Next::Wait => {
                    self.patient(&stand, &mut waiting);
                    self.pause(LOOK).await;
                }
                Next::Advance(step) => {
                    if step.number > stand.step.number {
                        (self.told)(Told::Step(stand.told()));
                    }
                    lock(&self.tick).step = step;
                    // Written down before the next letter is published.
                    if self.tick_now().await?.is_none() {
                        return Ok(Done::Left);
                    }
                }
                Next::Halt(why) => {
                    (self.told)(Told::Step(stand.told()));
                    return self.end(State::Halted, Some(why)).await;
                }
                Next::Done => {
                    if self.given.halt_at.is_some() {
                        (self.told)(Told::Step(stand.told()));
                    }
                    return self.end(exhausted.unwrap_or(State::Complete), None).await;
                }
            }
        }
    }

    fn next(&self, stand: &Stand) -> Next {
        let room = self.given.limit.saturating_sub(stand.letters);
        match self.given.halt_at {
            Some(_) => match stand.next() {
                Next::Publish(letters) => Next::Publish(letters.min(room)),
                other => other,
            },
            // It publishes all that there is, and leaves it to people to see what becomes of it.
            None if stand.exhausted => Next::Done,
            None => Next::Publish(room),
        }
    }

    /// The lease is lost, or may be.
    async fn lost(&self) {
        until(&self.command.subscribe(), |command| *command == Command::Lost).await;
    }

    /// So that whoever looks while nobody holds it sees how far it is.
    async fn write_down(&self) -> Result<(), StoreError> {
        if let Some((operation, outcomes)) = self.look().await? {
            self.stand(&operation, &outcomes, false);
            self.tick_now().await?;
        }
        Ok(())
    }

    /// How the replay stands; `None` where it is another's.
    async fn look(&self) -> Result<Option<(Operation, Outcomes)>, StoreError> {
        let operation = self.store().operation(self.held.id).await?;
        let Some(operation) = operation.filter(|operation| operation.holder == Some(self.held.holder)) else {
            return Ok(None);
        };
        self.heed(&operation);
        let outcomes = match self.given.halt_at {
            Some(_) => self.store().outcomes(self.held.id, false).await?,
            None => {
                let unstamped = self.store().unpublished(self.held.id, 1).await?.len() as u64;
                Outcomes { unstamped, ..Outcomes::default() }
            }
        };
        Ok(Some((operation, outcomes)))
    }

    async fn tick_now(&self) -> Result<Option<Operation>, StoreError> {
        let tick = lock(&self.tick).clone();
        let operation = self.store().tick(self.held.id, self.held.holder, &tick).await?;
        if let Some(operation) = &operation {
            self.heed(operation);
        }
        Ok(operation)
    }

    fn stand(&self, operation: &Operation, outcomes: &Outcomes, exhausted: bool) -> Stand {
        let letters = operation.letters();
        let mut tick = lock(&self.tick);
        // A letter that died again, and that somebody has claimed since, is not counted any more; it died all the same.
        tick.died = tick.died.max(outcomes.died);
        tick.published = letters.saturating_sub(outcomes.unstamped);
        if self.given.halt_at.is_some() {
            tick.applied = letters.saturating_sub(outcomes.under_way + tick.died);
        }
        Stand {
            step: tick.step,
            letters,
            died: tick.died,
            under_way: outcomes.under_way,
            expected: self.expected,
            exhausted,
            halt_at: self.given.halt_at.unwrap_or(1.0),
        }
    }

    async fn publish(&self, operation: &Operation, letters: u64) -> End {
        let order = Order {
            filter: self.given.filter.clone(),
            limit: letters,
            rate: self.given.rate,
            by: self.by.clone(),
        };
        let before = *lock(&self.report);
        let in_queue = operation.letters();
        let shown = |now: &Progress, published: &[Publication]| {
            let mut report = lock(&self.report);
            *report = sum(&before, now);
            let mut tick = lock(&self.tick);
            tick.published = in_queue + now.published;
            tick.detail = None;
            (self.told)(Told::Published(&report, published));
        };
        let claims = Mine { way: self, left: self.given.open.saturating_sub(operation.claimed) };
        let stop = self.is_held_up.subscribe();
        tokio::select! {
            (_, ended) = self.conductor.replayer.run_with(&claims, &order, shown, &stop) => ended,
            () = self.lost() => End::Stopped,
        }
    }

    /// What follows from a failure; `None`: it is tried again.
    async fn failed(&self, ended: End) -> Result<Option<Done>, StoreError> {
        match ended {
            End::Store(error) => Err(error),
            End::Queue(error) if self.conductor.manner == Manner::Command => {
                self.end(State::Failed, Some(error.to_string())).await?;
                Ok(Some(Done::Queue(error)))
            }
            End::Queue(error) => {
                self.waits(format!("the queue takes no messages: {error}"));
                self.pause(QUEUE).await;
                Ok(None)
            }
            End::Complete | End::Limit | End::Stopped => Ok(None),
        }
    }

    /// Waits so long, or until there is another command.
    async fn pause(&self, time: Duration) {
        let command = self.command.subscribe();
        tokio::select! {
            () = sleep(time) => {}
            () = until(&command, |command| *command != Command::Run) => {}
        }
    }

    fn waits(&self, why: String) {
        let mut tick = lock(&self.tick);
        if tick.detail.as_ref() != Some(&why) {
            (self.told)(Told::Waits(&why));
            tick.detail = Some(why);
        }
    }

    /// Tells of letters that are under way for long.
    fn patient(&self, stand: &Stand, waiting: &mut Option<(u64, Instant)>) {
        match waiting {
            Some((under_way, since)) if *under_way == stand.under_way => {
                if since.elapsed() > PATIENCE {
                    self.waits(format!(
                        "{} under way for over {} s: a worker tries again, or none works; the replay waits",
                        letters(stand.under_way),
                        PATIENCE.as_secs()
                    ));
                }
            }
            _ => {
                *waiting = Some((stand.under_way, Instant::now()));
                lock(&self.tick).detail = None;
            }
        }
    }

    /// Waits while it is paused.
    async fn rest(&self, paused: Command) -> Result<(), StoreError> {
        lock(&self.tick).state = State::Paused;
        let ticked = self.tick_now().await?;
        let who = ticked.and_then(|operation| operation.detail);
        (self.told)(Told::Waits(who.as_deref().unwrap_or("somebody paused the replay")));
        until(&self.command.subscribe(), |command| *command != paused).await;
        // Whoever leaves it leaves it paused.
        if *self.command.borrow() == Command::Run {
            let mut tick = lock(&self.tick);
            (tick.state, tick.detail) = (State::Running, None);
        }
        Ok(())
    }

    async fn end(&self, state: State, detail: Option<String>) -> Result<Done, StoreError> {
        let operation = self.store().operation(self.held.id).await?;
        let letters = operation.as_ref().map_or(0, Operation::letters);
        let who = operation.filter(|operation| operation.wish == Wish::Stop && state == State::Stopped);
        let detail = detail.or(who.and_then(|operation| operation.detail));
        let outcomes = self.store().outcomes(self.held.id, true).await?;
        let died = letters.saturating_sub(outcomes.applied + outcomes.under_way);
        let published = letters.saturating_sub(outcomes.unstamped);
        let ended = Ended { state, detail, published, applied: outcomes.applied, died };
        match self.store().end_operation(self.held.id, self.held.holder, &ended).await? {
            true => Ok(Done::Ended(ended)),
            false => Ok(Done::Left),
        }
    }
}

fn sum(before: &Progress, now: &Progress) -> Progress {
    Progress {
        taken_up: before.taken_up + now.taken_up,
        claimed: before.claimed + now.claimed,
        published: before.published + now.published,
        unstamped_left: before.unstamped_left + now.unstamped_left,
    }
}

/// Letters that are claimed in the name of the replay.
struct Mine<'w> {
    way: &'w Way<'w>,
    left: u64,
}

#[async_trait]
impl Claims for Mine<'_> {
    async fn open(&self) -> Result<u64, StoreError> {
        Ok(self.left)
    }

    async fn unfinished(&self, before: Millis, limit: u32) -> Result<Vec<Claimed>, StoreError> {
        let (way, filter) = (self.way, &self.way.given.filter);
        if !*lock(&way.adopts) {
            return Ok(Vec::new());
        }
        if way.store().adopt(way.held, filter, before, limit).await? > 0 {
            return way.store().unpublished(way.held.id, limit).await;
        }
        *lock(&way.adopts) = false;
        match way.given.halt_at {
            // One letter goes first, and nothing beside it.
            Some(_) => Ok(Vec::new()),
            // A replay that runs at this moment may publish the same ones: the inbox absorbs that.
            None => way.store().unstamped(filter, before, limit).await,
        }
    }

    async fn claim(&self, limit: u32) -> Result<Vec<Claimed>, StoreError> {
        let way = self.way;
        way.store().claim_for(way.held, &way.given.filter, limit, &way.by).await
    }
}

const _: () = assert!(UNSURE.as_secs() < TTL.as_secs());
