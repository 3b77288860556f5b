//! Owns what is read for many pages together: at most once in two seconds, one reading at a time, however many pages are open. A page
//! waits a moment for news, and then takes what is known.

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

use crate::net::Problem;

/// What is younger is not read again.
const FRESH: Duration = Duration::from_secs(2);
/// How long a page waits for news where something older is known, ...
const WAIT: Duration = Duration::from_millis(150);
/// ... and where that is too old to be shown.
const LONG_WAIT: Duration = Duration::from_secs(1);
/// What is older is not shown as how things stand.
pub(super) const OLD: Duration = Duration::from_secs(10);

/// Something that was read.
#[derive(Debug)]
pub(super) struct Known<T> {
    pub(super) value: Arc<T>,
    at: Instant,
}

impl<T> Clone for Known<T> {
    fn clone(&self) -> Self {
        Self { value: Arc::clone(&self.value), at: self.at }
    }
}

impl<T> Known<T> {
    /// It says nothing about now.
    pub(super) fn is_old(&self) -> bool {
        self.at.elapsed() >= OLD
    }
}

/// A reading that is under way.
type Reading<T> = Shared<BoxFuture<'static, Result<Known<T>, Problem>>>;

/// The last of it.
pub(super) struct Kept<T> {
    last: Mutex<Last<T>>,
    reading: Mutex<Option<Reading<T>>>,
}

struct Last<T> {
    known: Option<Known<T>>,
    /// How often it was forgotten: what was asked before says nothing any more.
    forgotten: u64,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { last: Mutex::new(Last { known: None, forgotten: 0 }), reading: Mutex::new(None) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Send + Sync + 'static> Kept<T> {
    /// What is known, or what `ask` tells where that is no longer fresh. A caller judges whether it is too old.
    ///
    /// # Errors
    /// Nothing is known, and `ask` failed.
    pub(super) async fn or<F>(self: &Arc<Self>, ask: impl FnOnce() -> F) -> Result<Known<T>, Problem>
    where
        F: Future<Output = Result<T, Problem>> + Send + 'static,
    {
        match self.last() {
            Some(known) if known.at.elapsed() < FRESH => Ok(known),
            None => self.read(ask).await,
            Some(old) => {
                let wait = if old.is_old() { LONG_WAIT } else { WAIT };
                timeout(wait, self.read(ask)).await.unwrap_or(Ok(old))
            }
        }
    }

    /// What was known last, however old.
    pub(super) fn last(&self) -> Option<Known<T>> {
        lock(&self.last).known.clone()
    }

    /// Whether it is asked for, and no answer has come for long.
    pub(super) fn is_unanswered(&self) -> bool {
        let is_old = self.last().is_some_and(|known| known.is_old());
        is_old && lock(&self.reading).as_ref().is_some_and(|reading| reading.peek().is_none())
    }

    /// What was read is no longer so, nor what is being read.
    pub(super) fn forget(&self) {
        let mut last = lock(&self.last);
        last.known = None;
        last.forgotten += 1;
        drop(last);
        *lock(&self.reading) = None;
    }

    /// One reading at a time, in a task of its own: it goes on when nobody waits for it any more.
    fn read<F>(self: &Arc<Self>, ask: impl FnOnce() -> F) -> Reading<T>
    where
        F: Future<Output = Result<T, Problem>> + Send + 'static,
    {
        let mut reading = lock(&self.reading);
        if let Some(under_way) = reading.as_ref().filter(|reading| reading.peek().is_none()) {
            return under_way.clone();
        }
        let (kept, asked, forgotten) = (Arc::clone(self), ask(), lock(&self.last).forgotten);
        let task = tokio::spawn(async move {
            let known = Known { value: Arc::new(asked.await?), at: Instant::now() };
            let mut last = lock(&kept.last);
            if last.forgotten == forgotten {
                last.known = Some(known.clone());
            }
            drop(last);
            Ok(known)
        });
        let broke_off = || Err(Problem::unavailable("the question broke off"));
        let new = task.map(move |ended| ended.unwrap_or_else(|_| broke_off())).boxed().shared();
        *reading = Some(new.clone());
        new
    }
}

#[cfg(test)]
impl<T> Known<T> {
    pub(super) fn aged(value: T, age: Duration) -> Self {
        Self { value: Arc::new(value), at: Instant::now().checked_sub(age).unwrap() }
    }
}

#[cfg(test)]
impl<T> Kept<T> {
    pub(super) fn of(known: Known<T>) -> Arc<Self> {
        let kept = Self::default();
        lock(&kept.last).known = Some(known);
        Arc::new(kept)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_slow_answer_is_kept_although_no_page_waits_for_it() {
        let (kept, asked) = (Kept::of(Known::aged(1, FRESH)), Arc::new(AtomicUsize::new(0)));
        let slow = || {
            let asked = Arc::clone(&asked);
            move || async move {
                asked.fetch_add(1, SeqCst);
                tokio::time::sleep(5 * WAIT).await;
                Ok(2)
            }
        };
        for _ in 0..2 {
            assert_eq!(*kept.or(slow()).await.unwrap().value, 1, "what is known is shown");
        }
        tokio::time::sleep(5 * WAIT).await;
        assert_eq!(*kept.or(slow()).await.unwrap().value, 2);
        assert_eq!(asked.load(SeqCst), 1, "one question at a time");
    }

    #[tokio::test]
    async fn an_error_is_not_kept() {
        let kept = Arc::new(Kept::<u32>::default());
        assert!(kept.or(|| async { Err(Problem::unavailable("away")) }).await.is_err());
        assert_eq!(*kept.or(|| async { Ok(3) }).await.unwrap().value, 3);
    }

    #[tokio::test]
    async fn what_was_asked_before_it_was_forgotten_is_not_kept() {
        let kept = Arc::new(Kept::default());
        let (answer, asked) = oneshot::channel();
        let slow = tokio::spawn({
            let kept = Arc::clone(&kept);
            async move { kept.or(|| async { Ok(asked.await.unwrap()) }).await.map(|known| *known.value) }
        });
        tokio::task::yield_now().await;
        kept.forget();
        assert_eq!(*kept.or(|| async { Ok(2) }).await.unwrap().value, 2, "it is asked anew");
        answer.send(1).unwrap();
        assert_eq!(slow.await.unwrap().unwrap(), 1);
        assert_eq!(*kept.or(|| async { Ok(3) }).await.unwrap().value, 2);
    }

    #[tokio::test]
    async fn what_is_old_waits_longer_and_then_is_known_to_have_no_answer() {
        let kept = Kept::of(Known::aged(1, OLD));
        assert!(!kept.is_unanswered(), "nobody has asked");
        let news = kept.or(|| async {
            tokio::time::sleep(2 * WAIT).await;
            Ok(2)
        });
        assert_eq!(*news.await.unwrap().value, 2);

        let kept = Kept::of(Known::aged(1, OLD));
        assert!(kept.or(std::future::pending).await.unwrap().is_old());
        assert!(kept.is_unanswered());
        assert!(!Kept::of(Known::aged(1, FRESH)).is_unanswered());
    }
}
