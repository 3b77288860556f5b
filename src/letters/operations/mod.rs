//! Owns what people do to letters as operations, the same for the command line, the API and the console: an action is written down
//! before it is taken, and a replay is a row that any process goes on with that has a worker or serves the console.
//!
//! Promises that at most four replays run at a time through the API and the console, that each can be paused, resumed and stopped from any
//! process, and that a process which stops leaves its replays to the others. A paused replay is nobody's, and does not count.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};
use uuid::Uuid;

use super::{
    conduct::{Conductor, Done, Manner},
    count::is_due,
    edit::{EditError, Mended, send},
    ramp,
    replay::Replayer,
};
use crate::{
    queue::Queue,
    stop::until,
    store::{
        Store, StoreError,
        letters::{Actor, Filter, Letter, LetterDetail, group_id},
        operations::{
            Ended, Given, Kind, LogFilter, LogPage, NewOperation, Operation, OperationRow, Outcomes, State,
            Step, TTL, Tick, Wish, Wished,
        },
    },
    text::letters,
    time::rfc3339,
};

pub mod log;

/// Replays that run at a time.
pub const RUNNING_MAX: u32 = 4;
/// The newest replays that are listed, beside all that have not ended.
pub const LISTED: u32 = 100;
/// How often it is looked for replays that nobody works on.
const LOOK: Duration = Duration::from_secs(3);
/// How often it is counted what became of letters that were under way when their replay ended.
const COUNT: Duration = Duration::from_secs(30);

/// A replay to start.
#[derive(Clone, Debug)]
pub struct NewReplay {
    /// Selects letters; open ones are meant.
    pub filter: Filter,
    /// The most letters.
    pub limit: u64,
    /// Letters per second.
    pub rate: Option<f64>,
    /// The share of a step that may die again, from 0 to 1; `None`: it does not ramp.
    pub halt_at: Option<f64>,
    /// Who, and why.
    pub by: Actor,
    /// The selected letters that are open.
    pub open: u64,
    /// What people should know at its start.
    pub warnings: Vec<String>,
}

impl NewReplay {
    /// Whether limit, pace and share are within bounds.
    ///
    /// # Errors
    /// In words, which is not.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.limit == 0 {
            return Err("limit has to be at least 1");
        }
        if self.rate.is_some_and(|rate| !(0.001..=1_000_000.0).contains(&rate)) {
            return Err("rate has to be between 0.001 and 1000000 per second");
        }
        match self.halt_at.is_none_or(|share| (0.0..=1.0).contains(&share)) {
            true => Ok(()),
            false => Err("the share that may die again has to be from 0 to 1, or from 0 to 100 percent"),
        }
    }

    /// What is written down of it. With a `holder` it is that process's; else whoever takes it goes on, and there are at most
    /// [`RUNNING_MAX`].
    pub fn operation(&self, holder: Option<Uuid>) -> NewOperation {
        let mut what = what(&self.filter);
        if let Value::Object(what) = &mut what {
            if self.limit < u64::MAX {
                what.insert("limit".into(), json!(self.limit));
            }
            for (name, value) in [("rate", self.rate), ("halt_at", self.halt_at)] {
                if let Some(value) = value {
                    what.insert(name.into(), json!(value));
                }
            }
            if !self.warnings.is_empty() {
                what.insert("warnings".into(), json!(self.warnings));
            }
        }
        NewOperation {
            kind: Kind::Replay,
            by: self.by.clone(),
            what,
            clerk_id: self.filter.clerk_id.clone(),
            letter_id: one(&self.filter),
            expected: self.open.min(self.limit),
            order: Some(Given {
                filter: self.filter.clone(),
                limit: self.limit,
                rate: self.rate,
                halt_at: self.halt_at,
                open: self.open,
            }),
            holder,
            most: holder.is_none().then_some(RUNNING_MAX),
        }
    }
}

fn one(filter: &Filter) -> Option<Uuid> {
    match filter.ids[..] {
        [id] => Some(id),
        _ => None,
    }
}

/// A selection in people's terms: an object that holds the conditions, as they are written in a request, the number of letters that were
/// named, and of a group its short id.
pub fn what(filter: &Filter) -> Value {
    let mut what = Map::new();
    let mut condition = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            what.insert(name.into(), value.into());
        }
    };
    // Its name is made of what the database said, which may be personal.
    condition("group", filter.group.as_deref().map(group_id));
    condition("type", filter.event_type.clone());
    condition("reason", filter.reason.clone());
    condition("user", filter.clerk_id.clone());
    condition("text", filter.text.clone());
    condition("since", filter.since.map(rfc3339));
    condition("until", filter.until.map(rfc3339));
    if !filter.ids.is_empty() {
        what.insert("ids".into(), filter.ids.len().into());
    }
    if what.is_empty() {
        what.insert("all".into(), true.into());
    }
    Value::Object(what)
}

/// An action that is written down while it is taken. Its lease is renewed beside the work, however long that takes, until the action
/// has ended or is dropped.
pub struct Action {
    store: Arc<dyn Store>,
    id: Uuid,
    holder: Uuid,
    /// Letters so far.
    done: Arc<AtomicU64>,
    renewals: JoinSet<()>,
}

/// How often the lease of an action is renewed.
const RENEWAL: Duration = Duration::from_secs(2);

impl Action {
    /// Writes down that letters which a filter selects are discarded or restored.
    ///
    /// # Errors
    /// The database does not answer; nothing is to be done then.
    pub async fn on_letters(
        store: &Arc<dyn Store>,
        kind: Kind,
        by: &Actor,
        filter: &Filter,
        expected: u64,
    ) -> Result<Self, StoreError> {
        let about = (filter.clerk_id.clone(), one(filter));
        Self::begin(store, kind, by, what(filter), about, expected).await
    }

    /// Writes down that something is done about one account.
    ///
    /// # Errors
    /// As [`on_letters`](Self::on_letters).
    pub async fn on_account(
        store: &Arc<dyn Store>,
        kind: Kind,
        by: &Actor,
        clerk_id: &str,
        what: Value,
    ) -> Result<Self, StoreError> {
        Self::begin(store, kind, by, what, (Some(clerk_id.to_owned()), None), 1).await
    }

    /// Writes down that something is done to one letter.
    ///
    /// # Errors
    /// As [`on_letters`](Self::on_letters).
    pub async fn on_letter(
        store: &Arc<dyn Store>,
        kind: Kind,
        by: &Actor,
        letter: &Letter,
    ) -> Result<Self, StoreError> {
        let about = (letter.clerk_id.clone(), Some(letter.id));
        Self::begin(store, kind, by, of_letter(letter), about, 1).await
    }

    async fn begin(
        store: &Arc<dyn Store>,
        kind: Kind,
        by: &Actor,
        what: Value,
        (clerk_id, letter_id): (Option<String>, Option<Uuid>),
        expected: u64,
    ) -> Result<Self, StoreError> {
        let holder = Uuid::now_v7();
        let new = NewOperation {
            kind,
            by: by.clone(),
            what,
            clerk_id,
            letter_id,
            expected,
            order: None,
            holder: Some(holder),
            most: None,
        };
        // Written down before it is done: whoever reads the log sees at least that it was tried.
        let id = store.begin_operation(&new).await?.map_or_else(Uuid::now_v7, |begun| begun.id);
        let done = Arc::<AtomicU64>::default();
        let mut renewals = JoinSet::new();
        renewals.spawn(renewed(Arc::clone(store), id, holder, Arc::clone(&done)));
        Ok(Self { store: Arc::clone(store), id, holder, done, renewals })
    }

    /// Goes on; `done` letters so far.
    pub fn goes_on(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
    }

    /// It has ended; `done` letters.
    ///
    /// # Errors
    /// The database does not answer. The action itself is done.
    pub async fn ended(mut self, state: State, done: u64, detail: Option<String>) -> Result<(), StoreError> {
        self.renewals.shutdown().await;
        let end = Ended { state, detail, published: done, applied: 0, died: 0 };
        self.store.end_operation(self.id, self.holder, &end).await.map(drop)
    }
}

/// Renews the lease of an action for ever.
async fn renewed(store: Arc<dyn Store>, id: Uuid, holder: Uuid, done: Arc<AtomicU64>) {
    loop {
        sleep(RENEWAL).await;
        let tick = Tick {
            state: State::Running,
            detail: None,
            published: done.load(Ordering::Relaxed),
            applied: 0,
            died: 0,
            step: Step::default(),
        };
        // In vain or not: the end is written down as well.
        let _ = timeout(TTL, store.tick(id, holder, &tick)).await;
    }
}

const _: () = assert!(RENEWAL.as_secs() * 4 < TTL.as_secs());

/// Discards a letter, or restores it, and writes it down. Answers whether it was as it has to be for that.
///
/// # Errors
/// The database does not answer.
pub async fn settle(
    store: &Arc<dyn Store>,
    kind: Kind,
    by: &Actor,
    letter: &Letter,
) -> Result<bool, StoreError> {
    let action = Action::on_letter(store, kind, by, letter).await?;
    let filter = Filter { ids: vec![letter.id], ..Filter::default() };
    let settled = match kind {
        Kind::Restore => store.restore(&filter, 1, by).await,
        _ => store.discard(&filter, 1, by).await,
    };
    let (state, detail) = match &settled {
        Ok(0) => (State::Failed, Some(format!("the letter was {}, or erased", letter.standing()))),
        Ok(_) => (State::Complete, None),
        Err(error) => (State::Failed, Some(error.to_string())),
    };
    action.ended(state, settled.as_ref().copied().unwrap_or_default(), detail).await?;
    Ok(settled? > 0)
}

/// Letters that are discarded or restored in one transaction.
const STEP: u32 = 500;

/// Letters to discard or to restore.
pub struct Settle<'a> {
    /// [`Kind::Discard`] or [`Kind::Restore`].
    pub kind: Kind,
    /// Who does it, and why.
    pub by: &'a Actor,
    /// Which letters.
    pub filter: &'a Filter,
    /// At most so many: those a person has seen. Letters that died since are not meant.
    pub most: u64,
    /// A person wants no more than `most`, although there are more.
    pub limited: bool,
}

/// What came of discarding or restoring many letters.
#[derive(Debug)]
pub struct Settled {
    /// So many letters were settled.
    pub letters: u64,
    /// Complete, at its limit, stopped, or why it could not go on.
    pub ended: Result<State, StoreError>,
    /// Whether the end is written down.
    pub written: Result<(), StoreError>,
}

/// Discards or restores letters, until `stop` turns true: in small transactions, so that each letter is as it was or done. Calls
/// `told` after each step, with the letters so far. Writes it down.
///
/// # Errors
/// The database does not answer; nothing was done.
pub async fn settle_all(
    store: &Arc<dyn Store>,
    settle: Settle<'_>,
    told: impl Fn(u64) + Send,
    stop: &watch::Receiver<bool>,
) -> Result<Settled, StoreError> {
    let Settle { kind, by, filter, most, limited } = settle;
    let action = Action::on_letters(store, kind, by, filter, most).await?;
    let mut letters = 0;
    let ended = loop {
        let step = u32::try_from(most - letters).map_or(STEP, |left| left.min(STEP));
        if step == 0 {
            break Ok(if limited { State::Limit } else { State::Complete });
        }
        if *stop.borrow() {
            break Ok(State::Stopped);
        }
        let settled = match kind {
            Kind::Restore => store.restore(filter, step, by).await,
            _ => store.discard(filter, step, by).await,
        };
        match settled {
            Ok(0) => break Ok(State::Complete),
            Ok(settled) => letters += settled,
            Err(error) => break Err(error),
        }
        told(letters);
        action.goes_on(letters);
    };
    let (state, detail) = match &ended {
        Ok(state) => (*state, None),
        Err(error) => (State::Failed, Some(error.to_string())),
    };
    let written = action.ended(state, letters, detail).await;
    Ok(Settled { letters, ended, written })
}

/// Sends a mended letter, as [`send`], and writes it down.
///
/// # Errors
/// As [`send`].
pub async fn edit(
    store: &Arc<dyn Store>,
    replayer: &Replayer,
    letter: &LetterDetail,
    mended: Mended,
    by: Actor,
) -> Result<u32, EditError> {
    let action = Action::on_letter(store, Kind::Edit, &by, &letter.letter).await?;
    let sent = send(replayer, letter, mended, by).await;
    let (state, detail) = match &sent {
        Ok(_) => (State::Complete, None),
        Err(error) => (State::Failed, Some(error.to_string())),
    };
    let ended = action.ended(state, u64::from(sent.is_ok()), detail).await;
    let round = sent?;
    ended?;
    Ok(round)
}

fn of_letter(letter: &Letter) -> Value {
    json!({ "ids": 1, "type": letter.event_type, "reason": letter.reason })
}

/// Writes down that somebody asked to see the personal values of a letter.
///
/// # Errors
/// The database does not answer; nothing is to be shown then.
pub async fn reveal(store: &Arc<dyn Store>, by: &Actor, letter: &Letter) -> Result<(), StoreError> {
    let new = NewOperation {
        kind: Kind::Reveal,
        by: by.clone(),
        what: of_letter(letter),
        clerk_id: letter.clerk_id.clone(),
        letter_id: Some(letter.id),
        expected: 1,
        order: None,
        holder: None,
        most: None,
    };
    store.note_operation(&new).await
}

/// Notes that are looked at; older ones are forgotten.
const NOTES: u32 = 1_000;

/// Writes a note on a cause, for whoever looks at it next; without a note, takes away the one that is there.
///
/// # Errors
/// The database does not answer.
pub async fn note_cause(store: &Arc<dyn Store>, by: &Actor, group: &str) -> Result<(), StoreError> {
    let new = NewOperation {
        kind: Kind::Note,
        by: by.clone(),
        what: json!({ "group": group_id(group) }),
        clerk_id: None,
        letter_id: None,
        expected: 0,
        order: None,
        holder: None,
        most: None,
    };
    store.note_operation(&new).await
}

/// The notes on causes, by the ids of their groups. They are kept as long as operations are.
///
/// # Errors
/// The database does not answer.
pub async fn cause_notes(store: &Arc<dyn Store>) -> Result<BTreeMap<String, OperationRow>, StoreError> {
    let filter = LogFilter { kinds: vec![Kind::Note], ..LogFilter::default() };
    let newest_first = store.operations(&filter, &LogPage { limit: NOTES, after: None }).await?;
    let mut notes = BTreeMap::new();
    for row in newest_first {
        if let Some(group) = row.what["group"].as_str() {
            notes.entry(group.to_owned()).or_insert(row);
        }
    }
    notes.retain(|_, row| row.note.is_some());
    Ok(notes)
}

/// No further replay can start, or go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// As many as may run do.
    #[error("{RUNNING_MAX} replays run already")]
    Busy,
    /// The database does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl StartError {
    /// Tells what the database says from what people have to know.
    ///
    /// # Errors
    /// The database does not answer.
    pub fn apart<T>(started: Result<T, Self>) -> Result<Result<T, Self>, StoreError> {
        match started {
            Err(Self::Store(error)) => Err(error),
            other => Ok(other),
        }
    }
}

/// The replays of all processes, as one of them sees them.
pub struct Operations {
    store: Arc<dyn Store>,
    queue: Arc<dyn Queue>,
    replayer: Replayer,
    /// There may be a replay to be taken.
    news: Notify,
}

impl Operations {
    /// Sees the replays of this store.
    pub fn new(store: Arc<dyn Store>, queue: Arc<dyn Queue>) -> Self {
        let replayer = Replayer::new(Arc::clone(&store) as _, Arc::clone(&queue));
        Self { store, queue, replayer, news: Notify::new() }
    }

    /// Publishes single letters.
    pub fn replayer(&self) -> &Replayer {
        &self.replayer
    }

    /// Starts a replay: some process goes on with it within seconds, this one at once where it works on replays.
    ///
    /// # Errors
    /// As many as may run do, or the database does not answer.
    pub async fn start(&self, new: &NewReplay) -> Result<Operation, StartError> {
        let begun = self.store.begin_operation(&new.operation(None)).await?.ok_or(StartError::Busy)?;
        info!("replay {} begins: {}, by {}", begun.id, letters(begun.expected), begun.who);
        self.news.notify_one();
        Ok(begun)
    }

    /// The newest replays, and all that have not ended, the newest first.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn list(&self) -> Result<Vec<Operation>, StoreError> {
        self.store.replays(LISTED).await
    }

    /// A replay, with what became of its letters as of now.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn get(&self, id: Uuid) -> Result<Option<(Operation, Outcomes)>, StoreError> {
        let Some(mut operation) = self.store.operation(id).await?.filter(|it| it.kind == Kind::Replay) else {
            return Ok(None);
        };
        let outcomes = self.store.outcomes(id, true).await?;
        let letters = operation.letters();
        operation.applied = outcomes.applied;
        operation.died = letters.saturating_sub(outcomes.applied + outcomes.under_way);
        operation.published = letters.saturating_sub(outcomes.unstamped);
        Ok(Some((operation, outcomes)))
    }

    /// Asks a replay to wait, to go on, or to stop, and writes down who asked. One that waits or stops still publishes what it has
    /// claimed.
    ///
    /// # Errors
    /// It is paused, and as many as may run do; or the database does not answer.
    pub async fn wish(&self, id: Uuid, wish: Wish, by: &Actor) -> Result<Option<Operation>, StartError> {
        let operation = match self.store.wish(id, wish, by, RUNNING_MAX).await? {
            None => return Ok(None),
            Some(Wished::Busy) => return Err(StartError::Busy),
            Some(Wished::Noted(operation)) => *operation,
        };
        info!("replay {id} is {}", wish.told(&by.name));
        if wish == Wish::Run {
            self.news.notify_one();
        }
        Ok(Some(operation))
    }

    /// Works on replays that nobody works on until `stop` turns true, then leaves them to others. A database that this process asks for
    /// nothing else is asked once an hour while no replay goes on.
    pub async fn run(&self, stop: &watch::Receiver<bool>) {
        let mut running = JoinSet::new();
        let mut last: Option<(u64, Instant)> = None;
        let mut counted: Option<Instant> = None;
        let (mut goes_on, mut failing) = (false, false);
        while !*stop.borrow() {
            if goes_on || is_due(last, self.store.asked()) {
                let counts = counted.is_none_or(|at| at.elapsed() >= COUNT);
                match self.look(counts, &mut running, stop).await {
                    Ok(any) => {
                        goes_on = any;
                        last = Some((self.store.asked(), Instant::now()));
                        failing = false;
                    }
                    // One line is enough: the worker logs that the database is away.
                    Err(error) if last.is_some() && !std::mem::replace(&mut failing, true) => {
                        warn!("no replay is taken over: {error}");
                    }
                    Err(_) => {}
                }
                if counts {
                    counted = Some(Instant::now());
                }
            }
            tokio::select! {
                () = sleep(LOOK) => {}
                () = self.news.notified() => goes_on = true,
                Some(_) = running.join_next() => {}
                () = until(stop, |stop| *stop) => {}
            }
        }
        while running.join_next().await.is_some() {}
    }

    /// Takes what nobody works on. Answers whether any replay has not ended.
    async fn look(
        &self,
        counts: bool,
        running: &mut JoinSet<()>,
        stop: &watch::Receiver<bool>,
    ) -> Result<bool, StoreError> {
        let any = self.store.tidy_operations(counts).await?;
        while any && running.len() < RUNNING_MAX as usize && !*stop.borrow() {
            // Another one for each: a call that a lost lease has left behind changes nothing.
            let holder = Uuid::now_v7();
            let Some(operation) = self.store.take_replay(holder).await? else { break };
            let conductor = Conductor::new(&self.store, &self.queue, Manner::Server);
            let stop = stop.clone();
            running.spawn(async move {
                let id = operation.id;
                info!("replay {id} goes on in this process");
                match conductor.run(operation, holder, &|_| {}, &stop).await {
                    (_, Done::Ended(Ended { state, detail, published, .. })) => {
                        let why = detail.map(|why| format!(": {why}")).unwrap_or_default();
                        info!("replay {id} ended ({}) after {}{why}", state.as_str(), letters(published));
                    }
                    (_, Done::Left) => info!("replay {id} is left to other processes"),
                    (_, Done::Paused) => info!("replay {id} waits, and is nobody's, until it is resumed"),
                    (_, Done::Queue(error)) => warn!("replay {id} failed: {error}"),
                    (_, Done::Store(error)) => warn!("replay {id} waits for the database: {error}"),
                }
            });
        }
        Ok(any)
    }
}

/// The share that a ramp halts at: what people say, or [`ramp::HALT_AT`]; `None` where it does not ramp.
pub fn halt_at(ramps: bool, share: Option<f64>) -> Option<f64> {
    ramps.then(|| share.unwrap_or(ramp::HALT_AT))
}

/// How a replay is shown.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    /// Of version 7.
    pub id: Uuid,
    /// Who started it.
    pub by: String,
    /// Why.
    pub note: Option<String>,
    /// What was selected, in people's terms.
    pub what: Value,
    /// RFC 3339.
    pub started_at: String,
    /// RFC 3339; null until it ends.
    pub ended_at: Option<String>,
    /// How it stands.
    pub state: State,
    /// What people want of it.
    pub wish: Wish,
    /// Open letters that it meant when it started, at most its limit.
    pub expected: u64,
    /// Why no worker would take the letters at once, as of its start.
    pub warnings: Vec<String>,
    /// Claims of others that it took over.
    pub taken_up: u64,
    /// Letters that it claimed.
    pub claimed: u64,
    /// Letters that are durable in the queue again.
    pub published: u64,
    /// Claims that are not certainly in the queue.
    pub unstamped_left: u64,
    /// Letters that took effect.
    pub applied: u64,
    /// Letters that died again.
    pub died: u64,
    /// Letters that did neither yet.
    pub under_way: u64,
    /// Of a ramp: its step, from 1; null for a replay that does not ramp.
    pub step: Option<u32>,
    /// Of a ramp: how many steps there are.
    pub steps: Option<u32>,
    /// The share of a step that may die again; null for a replay that does not ramp.
    pub halt_at: Option<f64>,
    /// Why it halted or failed, or what it waits for.
    pub detail: Option<String>,
    /// Why it failed; null unless it did.
    pub error: Option<String>,
}

impl From<Operation> for Shown {
    fn from(operation: Operation) -> Self {
        let letters = operation.letters();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let warnings = operation.what["warnings"].as_array().into_iter().flatten().filter_map(text).collect();
        let halt_at = operation.what["halt_at"].as_f64().or(operation.order.and_then(|order| order.halt_at));
        let mut what = operation.what;
        if let Value::Object(what) = &mut what {
            what.remove("warnings");
        }
        Self {
            id: operation.id,
            by: operation.who,
            note: operation.note,
            what,
            started_at: rfc3339(operation.started_at),
            ended_at: operation.ended_at.map(rfc3339),
            state: operation.state,
            wish: operation.wish,
            expected: operation.expected,
            warnings,
            taken_up: operation.taken_up,
            claimed: operation.claimed,
            published: operation.published,
            unstamped_left: letters.saturating_sub(operation.published),
            applied: operation.applied,
            died: operation.died,
            under_way: letters.saturating_sub(operation.applied + operation.died),
            step: halt_at.map(|_| operation.step.number + 1),
            steps: halt_at.map(|_| ramp::OF),
            halt_at,
            error: operation.detail.clone().filter(|_| operation.state == State::Failed),
            detail: operation.detail,
        }
    }
}
