//! Owns what a person sees of a run on stderr while it goes on: a bar on a terminal, lines elsewhere, what holds it up, and that
//! Ctrl-C was heard.

use std::{
    convert::Infallible,
    future::pending,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use indicatif::ProgressBar;
use tokio::{sync::watch, time::sleep};

use crate::{
    app,
    cli::{output::remark, progress},
    failure::Failure,
    stop::until,
    sync::{HeldUp, SyncError, Told},
    text::number,
    time::rfc3339,
};

/// How far a run is, is said again after so long where no bar shows it.
const SAID_AGAIN: Duration = Duration::from_secs(30);
/// A run that has not stopped after so long says that it has heard.
const STOPPING: Duration = Duration::from_secs(1);

/// Shows on stderr how far a run is: a bar on a terminal, and lines for what matters.
pub(super) struct Teller {
    verbose: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bar: Option<ProgressBar>,
    phase: &'static str,
    /// How far it is, and of how much.
    far: (u64, u64),
    /// When the phase was said to be so far.
    said: Option<Instant>,
    held_up: HeldUp,
}

impl Teller {
    pub(super) fn new(verbose: bool) -> Self {
        Self { verbose, state: Mutex::default() }
    }

    /// Does the work until it ends, or until Ctrl-C ends it.
    pub(super) async fn beside<T>(
        &self,
        work: impl AsyncFnOnce(&watch::Receiver<bool>) -> Result<T, SyncError>,
    ) -> Result<T, Failure> {
        let stop =
            app::stop_signal().map_err(|error| Failure::new(format!("signals cannot be heard: {error}")))?;
        let heard = async {
            until(&stop, |stop| *stop).await;
            sleep(STOPPING).await;
            self.state().say("stopping; Ctrl-C once more ends it at once".to_owned());
            pending::<Infallible>().await
        };
        let done = tokio::select! {
            done = work(&stop) => done,
            never = heard => match never {},
        };
        if let Some(bar) = self.state().bar.take() {
            bar.finish_and_clear();
        }
        Ok(done?)
    }

    pub(super) fn tell(&self, told: Told) {
        let mut state = self.state();
        match told {
            Told::Resumed(began) => {
                state.say(format!("going on with the sync that began at {}", rfc3339(began)));
            }
            Told::Read { users, of } => state.at("reading", users, of),
            Told::Searching { rows, of } => state.at("searching for users who are gone", rows, of),
            Told::Asking { users, of } => state.at("asking Clerk for each who is not in its list", users, of),
            Told::Confirming { users, of } => state.at("asking once more for each who is gone", users, of),
            Told::Applying(left) => state.at("waiting until all is applied", 0, left),
            Told::HeldUp(why) => state.held_up(why),
            Told::Differs { clerk_id, difference } if self.verbose => {
                state.say(format!("{clerk_id}: {difference}"))
            }
            Told::Differs { .. } => {}
            Told::Failed { clerk_id, why } => {
                state
                    .say(format!("{}: {why}", clerk_id.as_deref().unwrap_or("a user without a readable id")));
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn say(&self, line: String) {
        match &self.bar {
            Some(bar) => bar.suspend(|| remark(line)),
            None => remark(line),
        }
    }

    fn held_up(&mut self, why: String) {
        if let Some(bar) = &self.bar {
            progress::waits(bar);
        }
        if self.held_up.is_news(&why) {
            self.say(why);
        }
    }

    fn at(&mut self, phase: &'static str, done: u64, of: u64) {
        if self.phase != phase {
            if let Some(bar) = self.bar.take() {
                bar.finish_and_clear();
            }
            self.phase = phase;
            self.bar = Some(progress::bar(of.max(2)));
            self.say(phase.to_owned());
            self.said = Some(Instant::now());
        }
        let Some(bar) = &self.bar else { return };
        if std::mem::replace(&mut self.far, (done, of)) != (done, of) {
            progress::goes_on(bar);
        }
        bar.set_length(of.max(done).max(1));
        bar.set_position(done);
        if bar.is_hidden() && self.said.is_none_or(|said| said.elapsed() > SAID_AGAIN) {
            let far = if done > 0 {
                format!("{} of {}", number(done), number(of))
            } else {
                format!("{} left", number(of))
            };
            remark(format!("{phase}: {far}"));
            self.said = Some(Instant::now());
        }
    }
}
