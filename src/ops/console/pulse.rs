//! Owns what every page shows: the overview and the verdict, read at most every two seconds for all pages together, however many
//! are open. A page waits a moment for news, and then takes what is known.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use tokio::time::{Instant, timeout};

use super::super::api::{Api, problem::Problem};
use crate::{
    ops::{
        processes::Processes,
        status::{self, Overview, Status, StatusError},
        verdict::{Concern, Level, Verdict, unanswered},
    },
    store::letters,
    time::{Millis, now},
};

/// What is younger is not read again.
const FRESH: Duration = Duration::from_secs(2);
/// How long a page waits for news where something older is known.
const WAIT: Duration = Duration::from_millis(150);
/// What is older is not shown as how things stand.
const OLD: Duration = Duration::from_secs(10);

/// How things stood at a time.
#[derive(Debug)]
pub(super) struct Moment {
    pub(super) at: Millis,
    pub(super) verdict: Verdict,
    /// What is known; or why nothing is.
    pub(super) known: Result<(Overview, Processes), String>,
    read: Instant,
}

impl Moment {
    pub(super) fn open_letters(&self) -> Option<u64> {
        let (overview, _) = self.known.as_ref().ok()?;
        overview.dead_letters.get(&letters::Status::Open).copied()
    }

    /// What is said once no answer has come for long.
    fn without_answer(&self) -> Self {
        let verdict = unanswered("database or the queue", self.at, "it is asked again", now());
        Self { at: self.at, known: Err(verdict.text.clone()), verdict, read: self.read }
    }

    fn of(read: Result<Status, Problem>) -> Self {
        let (verdict, known) = match read {
            Ok(Status { verdict, overview, processes }) => (verdict, Ok((overview, processes))),
            Err(problem) => {
                let (what, hint) = problem.says();
                let why = hint.map_or_else(|| what.to_owned(), |hint| format!("{what}; {hint}"));
                let text = format!("How things stand is not known: {why}");
                let concern = Concern { level: Level::Trouble, text: text.clone(), link: "/flow" };
                (Verdict { level: Level::Trouble, text, link: "/flow", concerns: vec![concern] }, Err(why))
            }
        };
        Self { at: now(), verdict, known, read: Instant::now() }
    }
}

/// A reading that is under way.
type Reading = Shared<BoxFuture<'static, Arc<Moment>>>;

/// The last of it.
#[derive(Default)]
pub(super) struct Pulse {
    last: Mutex<Option<Arc<Moment>>>,
    reading: Mutex<Option<Reading>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pulse {
    /// How things stand.
    pub(super) async fn now(self: &Arc<Self>, api: &Arc<Api>) -> Arc<Moment> {
        let api = Arc::clone(api);
        self.or(|| async move { Moment::of(read(&api).await) }).await
    }

    /// What is known, or what `ask` tells where that is no longer fresh.
    async fn or<F>(self: &Arc<Self>, ask: impl FnOnce() -> F) -> Arc<Moment>
    where
        F: Future<Output = Moment> + Send + 'static,
    {
        let last = lock(&self.last).clone();
        match last {
            Some(moment) if moment.read.elapsed() < FRESH => moment,
            None => self.read(ask).await,
            Some(old) => match timeout(WAIT, self.read(ask)).await {
                Ok(moment) => moment,
                Err(_) if old.read.elapsed() < OLD => old,
                Err(_) => Arc::new(old.without_answer()),
            },
        }
    }

    /// One reading at a time, in a task of its own: it goes on when nobody waits for it any more.
    fn read<F>(self: &Arc<Self>, ask: impl FnOnce() -> F) -> Reading
    where
        F: Future<Output = Moment> + Send + 'static,
    {
        let mut reading = lock(&self.reading);
        if let Some(under_way) = reading.as_ref().filter(|reading| reading.peek().is_none()) {
            return under_way.clone();
        }
        let (pulse, asked) = (Arc::clone(self), ask());
        let task = tokio::spawn(async move {
            let moment = Arc::new(asked.await);
            *lock(&pulse.last) = Some(Arc::clone(&moment));
            moment
        });
        let broke_off = || Arc::new(Moment::of(Err(Problem::unavailable("the question broke off"))));
        let new = task.map(move |ended| ended.unwrap_or_else(|_| broke_off())).boxed().shared();
        *reading = Some(new.clone());
        new
    }
}

async fn read(api: &Arc<Api>) -> Result<Status, Problem> {
    let queue = Arc::clone(&api.queue);
    let paused = api.worker.as_ref().and_then(|worker| worker.borrow().paused.clone());
    let read = api.ask(|store| async move {
        match status::read(queue.as_ref(), &store, paused).await {
            Ok(status) => Ok(Ok(status)),
            Err(StatusError::Store(error)) => Err(error),
            Err(StatusError::Queue(error)) => Ok(Err(error)),
        }
    });
    Ok(read.await??)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    fn moment(age: Duration) -> Moment {
        let mut moment = Moment::of(Err(Problem::unavailable("away")));
        moment.read = Instant::now().checked_sub(age).unwrap();
        moment
    }

    #[tokio::test]
    async fn a_slow_answer_is_kept_although_no_page_waits_for_it() {
        let (pulse, asked) = (Arc::new(Pulse::default()), Arc::new(AtomicUsize::new(0)));
        *lock(&pulse.last) = Some(Arc::new(moment(Duration::from_secs(5))));
        let slow = || {
            let asked = Arc::clone(&asked);
            move || async move {
                asked.fetch_add(1, SeqCst);
                tokio::time::sleep(5 * WAIT).await;
                moment(Duration::ZERO)
            }
        };
        for _ in 0..2 {
            assert!(pulse.or(slow()).await.read.elapsed() >= FRESH, "what is known is shown");
        }
        tokio::time::sleep(5 * WAIT).await;
        assert!(pulse.or(slow()).await.read.elapsed() < FRESH);
        assert_eq!(asked.load(SeqCst), 1, "one question at a time");
    }

    #[tokio::test]
    async fn what_is_old_is_not_shown_as_how_things_stand() {
        let pulse = Arc::new(Pulse::default());
        *lock(&pulse.last) = Some(Arc::new(moment(OLD)));
        let shown = pulse.or(std::future::pending).await;
        assert_eq!(shown.verdict.level, Level::Trouble);
        let text = &shown.verdict.text;
        assert!(text.starts_with("No answer from the database or the queue since"), "{text}");
    }
}
