//! Owns what the console has the rooms below do: causes that are kept for a moment, replays, edits, settling, and asking for
//! what is personal. Promises that what a page asks for is done once, however often it is sent, and goes on when the browser has
//! gone away.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use maud::{Markup, html};
use tokio::{
    sync::OnceCell,
    time::{Instant, timeout},
};
use uuid::Uuid;

use super::{Console, parts::under};
use crate::{
    letters::{
        operations::{self, NewReplay, Settle},
        replay::nobody_works,
    },
    net::Problem,
    store::{
        letters::{Actor, Filter, LetterDetail},
        operations::{Cause, Kind, Operation, OperationRow},
    },
    text::letters,
    time::{Millis, now},
};

/// How long personal values are shown after somebody asked.
const SHOWN: Duration = Duration::from_secs(15 * 60);
/// What is remembered of forms that were sent, and of letters that were asked for.
const KEPT: usize = 1000;
/// How long a page waits for the end of what it asked for.
const WAIT: Duration = Duration::from_secs(5);

/// Why open letters died, and what people wrote about it, by the ids of the groups.
pub(super) type Causes = (Vec<Cause>, BTreeMap<String, OperationRow>);

/// A letter whose personal values somebody asked for, with the key to them.
struct Revealed {
    key: Uuid,
    letter: Uuid,
    by: String,
    at: Instant,
}

/// What the console remembers between two requests.
#[derive(Default)]
pub(super) struct Memory {
    revealed: Mutex<VecDeque<Revealed>>,
    /// Forms that were sent, with what came of each.
    deeds: Mutex<VecDeque<(Uuid, Arc<OnceCell<String>>)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remember<T>(all: &mut VecDeque<T>, one: T) {
    if all.len() >= KEPT {
        all.pop_front();
    }
    all.push_back(one);
}

impl Console {
    /// Why open letters died.
    pub(super) async fn why_died(&self) -> Result<Arc<Causes>, Problem> {
        let api = Arc::clone(&self.api);
        let ask = || async move {
            api.ask(
                |store| async move { tokio::try_join!(store.causes(now()), operations::cause_notes(&store)) },
            )
            .await
        };
        let known = self.causes.or(ask).await?;
        match known.is_old() {
            true => Err(Problem::unavailable("the database has not told for some time why letters died")),
            false => Ok(known.value),
        }
    }

    /// Writes a note on a cause.
    pub(super) async fn note_cause(&self, group: String, by: Actor) -> Result<(), Problem> {
        self.api.ask(|store| async move { operations::note_cause(&store, &by, &group).await }).await?;
        self.causes.forget();
        Ok(())
    }

    /// Does what a form asks for, once, also when the browser has gone away: the same form, sent again to this process, is led to
    /// the same page.
    pub(super) async fn once(
        &self,
        form: Uuid,
        deed: impl Future<Output = Result<String, Problem>> + Send + 'static,
    ) -> Result<String, Problem> {
        let cell = {
            let mut deeds = lock(&self.memory.deeds);
            match deeds.iter().find(|(known, _)| *known == form) {
                Some((_, cell)) => Arc::clone(cell),
                None => {
                    let cell = Arc::new(OnceCell::new());
                    remember(&mut deeds, (form, Arc::clone(&cell)));
                    cell
                }
            }
        };
        let work = tokio::spawn(async move { cell.get_or_try_init(|| deed).await.cloned() });
        work.await.map_err(|_| Problem::unavailable("it broke off; the operations say how far it came"))?
    }

    /// Whether this person asked a moment ago, with this key, to see the personal values of this letter.
    pub(super) fn is_revealed(&self, letter: Uuid, key: Option<&str>, by: &str) -> bool {
        let Some(key) = key.and_then(|key| Uuid::try_parse(key).ok()) else { return false };
        lock(&self.memory.revealed).iter().any(|revealed| {
            revealed.key == key
                && revealed.letter == letter
                && revealed.by == by
                && revealed.at.elapsed() < SHOWN
        })
    }

    /// Writes down that somebody asks to see the personal values of a letter. Answers the key to them.
    pub(super) async fn reveal(&self, letter: &LetterDetail, by: Actor) -> Result<Uuid, Problem> {
        let about = letter.letter.clone();
        let id = about.id;
        let asked = lock(&self.memory.revealed).iter().rev().find_map(|revealed| {
            let is_same = revealed.letter == id && revealed.by == by.name && revealed.at.elapsed() < SHOWN;
            is_same.then_some(revealed.key)
        });
        // Whoever loads the page again does not ask again.
        if let Some(key) = asked {
            return Ok(key);
        }
        let name = by.name.clone();
        self.api.ask(|store| async move { operations::reveal(&store, &by, &about).await }).await?;
        let key = Uuid::new_v4();
        let revealed = Revealed { key, letter: id, by: name, at: Instant::now() };
        remember(&mut lock(&self.memory.revealed), revealed);
        Ok(key)
    }

    /// An operation. Of a replay that has ended it is counted what became of its last letters, until the row says so: there may be a
    /// million.
    pub(super) async fn operation(&self, id: Uuid) -> Result<Option<Operation>, Problem> {
        let operations = Arc::clone(&self.api.operations);
        let found = self.api.ask(|store| async move {
            let Some(known) = store.operation(id).await? else { return Ok(None) };
            let is_told = known.applied + known.died >= known.letters();
            match known.kind == Kind::Replay && known.state.is_over() && !is_told {
                true => Ok(operations.get(id).await?.map(|(replay, _)| replay).or(Some(known))),
                false => Ok(Some(known)),
            }
        });
        found.await
    }

    /// Starts a replay. Answers its page.
    pub(super) async fn start_replay(&self, mut new: NewReplay) -> Result<String, Problem> {
        new.warnings.extend(nobody_works(self.api.queue.as_ref()).await);
        let started = self.api.operations.start(&new).await?;
        Ok(under("/operations", &started.id.to_string()))
    }

    /// Discards letters, or restores them: at most as many as a person has seen. Answers since when letters were settled, and what
    /// came of it.
    pub(super) async fn settle(
        &self,
        kind: Kind,
        filter: Filter,
        expected: u64,
        by: Actor,
    ) -> Result<(Millis, Markup), Problem> {
        let (store, stop) = (Arc::clone(&self.api.store), self.stop.clone());
        let since = store.clock().await?;
        let work = tokio::spawn(async move {
            let settle = Settle { kind, by: &by, filter: &filter, most: expected, limited: false };
            operations::settle_all(&store, settle, |_| {}, &stop).await
        });
        let done = if kind == Kind::Restore { "restored" } else { "discarded" };
        let told = match timeout(WAIT, work).await {
            Err(_) => {
                html! { p { (letters(expected)) " are being " (done) ". " a href="/operations" { "Follow it" } "." } }
            }
            Ok(Err(_)) => {
                return Err(Problem::unavailable("it broke off; the operations say how far it came"));
            }
            Ok(Ok(settled)) => {
                let settled = settled?;
                settled.ended?;
                html! { p { (letters(settled.letters)) " " (done) "." } }
            }
        };
        Ok((since, told))
    }
}
