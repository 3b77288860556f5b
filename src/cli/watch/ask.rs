//! Owns asking queue and database again and again, each beside the other, and since when one of them does not answer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use super::frame::{Silence, View};
use crate::{
    ops::status::{OfQueue, OfStore},
    queue::Queue,
    stop::until,
    store::Store,
    time::{Millis, now},
};

/// An answer that takes longer counts as none, until it comes.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is asked again and again, each beside the other.
pub(super) struct Watched {
    queue: watch::Receiver<Part<OfQueue>>,
    store: watch::Receiver<Part<OfStore>>,
    tasks: [JoinHandle<()>; 2],
}

/// What one of them said.
#[derive(Clone)]
struct Part<T> {
    /// Last; `None` before the first answer, and while there is none.
    said: Option<T>,
    /// Since when there is none, and why.
    silent: Option<Silence>,
    /// When it was asked what it has not answered.
    asked: Option<(Millis, Instant)>,
}

impl<T> Default for Part<T> {
    fn default() -> Self {
        Self { said: None, silent: None, asked: None }
    }
}

impl<T> Part<T> {
    fn asks(&mut self) {
        self.asked = Some((now(), Instant::now()));
    }

    fn answered(&mut self, answer: Result<T, String>) {
        let asked = self.asked.take().map_or_else(now, |(at, _)| at);
        match answer {
            Ok(said) => (self.said, self.silent) = (Some(said), None),
            Err(why) => {
                let since = self.silent.take().map_or(asked, |(since, _)| since);
                (self.said, self.silent) = (None, Some((since, why)));
            }
        }
    }

    /// What it said, or since when it says nothing and why.
    fn is(&self) -> Result<&T, Silence> {
        let late = self.asked.filter(|(_, at)| at.elapsed() >= PATIENCE);
        match (&self.silent, late, &self.said) {
            (Some(silent), ..) => Err(silent.clone()),
            (None, Some((since, _)), _) => Err((since, "it does not answer".into())),
            (None, None, Some(said)) => Ok(said),
            (None, None, None) => {
                Err((self.asked.map_or_else(now, |(at, _)| at), "it has not answered yet".into()))
            }
        }
    }

    fn has_answered(&self) -> bool {
        self.said.is_some() || self.silent.is_some()
    }
}

impl Watched {
    pub(super) fn new(every: Duration, queue: &Arc<dyn Queue>, store: &Arc<dyn Store>) -> Self {
        let ((say_queue, of_queue), (say_store, of_store)) =
            (watch::channel(Part::default()), watch::channel(Part::default()));
        let (queue, store) = (Arc::clone(queue), Arc::clone(store));
        let ask_queue = tokio::spawn(repeat(every, say_queue, move || {
            let queue = Arc::clone(&queue);
            async move { OfQueue::read(queue.as_ref()).await.map_err(|error| error.to_string()) }
        }));
        let checked = Arc::new(AtomicBool::new(false));
        let ask_store = tokio::spawn(repeat(every, say_store, move || {
            let (store, checked) = (Arc::clone(&store), Arc::clone(&checked));
            async move {
                if !checked.load(Relaxed) {
                    store.check_schema().await.map_err(|error| error.to_string())?;
                    checked.store(true, Relaxed);
                }
                OfStore::read(&store).await.map_err(|error| error.to_string())
            }
        }));
        Self { queue: of_queue, store: of_store, tasks: [ask_queue, ask_store] }
    }

    /// Waits for the first answers, for a while.
    pub(super) async fn first(&self) {
        let both = async {
            until(&self.queue, Part::has_answered).await;
            until(&self.store, Part::has_answered).await;
        };
        let _ = timeout(PATIENCE, both).await;
    }

    pub(super) fn view(&self, now: Millis, every: Duration) -> View {
        let (queue, store) = (self.queue.borrow().clone(), self.store.borrow().clone());
        View { queue: queue.is().cloned(), store: store.is().cloned(), now, every }
    }

    pub(super) fn end(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn repeat<T, F: Future<Output = Result<T, String>>>(
    every: Duration,
    say: watch::Sender<Part<T>>,
    ask: impl Fn() -> F,
) {
    loop {
        let begun = Instant::now();
        say.send_modify(Part::asks);
        let answer = ask().await;
        say.send_modify(|part| part.answered(answer));
        sleep_until(begun + every).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_begins_with_the_question_and_ends_with_an_answer() {
        let mut part = Part::default();
        assert!(part.is().is_err());
        part.asks();
        let asked = part.asked.unwrap().0;
        part.answered(Err::<u8, _>("one".into()));
        part.asks();
        part.answered(Err("two".into()));
        assert_eq!(part.is(), Err((asked, "two".into())));
        part.asks();
        part.answered(Ok(7));
        assert_eq!(part.is(), Ok(&7));
        part.asks();
        assert_eq!(part.is(), Ok(&7), "it may answer at any moment");
        part.asked = part.asked.map(|(at, instant)| (at, instant.checked_sub(PATIENCE).unwrap()));
        assert_eq!(part.is().unwrap_err().1, "it does not answer");
        part.answered(Ok(8));
        assert_eq!(part.is(), Ok(&8));
    }
}
