//! Owns `status --watch`: the state of everything, drawn in place on a terminal, or as a block per interval in a pipe.
//!
//! Promises that each frame fits the terminal and is drawn in one go; that the terminal is as it was afterwards, also after a signal
//! or an error; and that it goes on while queue or database do not answer, and says so in their place.

use std::time::Duration;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{MissedTickBehavior, interval, timeout},
};

use self::{ask::Watched, screen::Screen};
use crate::{app, cli::output::Output, config::Config, failure::Failure, time::now};

mod ask;
mod frame;
mod screen;

/// The most that closing the connections may take.
const CLOSING: Duration = Duration::from_secs(1);

/// Shows it until a signal comes, or until nobody reads it any more.
///
/// # Errors
/// Queue or store can never work as configured, or the output cannot be written.
pub(super) async fn run(every: Duration, config: &Config, output: &mut Output) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let queue = app::look_at_queue(config).await?;
    let store = app::existing_store(config).await?;
    let watched = Watched::new(every, &queue, &store);
    let result = show(every, &watched, &mut signals, output).await;
    watched.end();
    let _ = timeout(CLOSING, async { tokio::join!(queue.close(), store.close()) }).await;
    result
}

async fn show(
    every: Duration,
    watched: &Watched,
    signals: &mut Signals,
    output: &mut Output,
) -> Result<(), Failure> {
    let first = watched.first();
    tokio::pin!(first);
    loop {
        tokio::select! {
            heard = signals.next() => if heard == Heard::End { return Ok(()) },
            () = &mut first => break,
        }
    }
    let mut output = Screen::enter(output)?;
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            heard = signals.next() => match heard {
                Heard::End => return Ok(()),
                Heard::Resize if output.on_terminal => {}
                Heard::Resize => continue,
            },
            _ = tick.tick() => {}
        }
        output.show(&watched.view(now(), every))?;
        if !output.is_open() {
            return Ok(());
        }
    }
}

/// What a signal means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Heard {
    End,
    Resize,
}

/// The signals that matter.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    resize: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let heard =
            |kind| signal(kind).map_err(|error| Failure::new(format!("signals cannot be heard: {error}")));
        Ok(Self {
            interrupt: heard(SignalKind::interrupt())?,
            terminate: heard(SignalKind::terminate())?,
            hangup: heard(SignalKind::hangup())?,
            resize: heard(SignalKind::window_change())?,
        })
    }

    async fn next(&mut self) -> Heard {
        tokio::select! {
            _ = self.interrupt.recv() => Heard::End,
            _ = self.terminate.recv() => Heard::End,
            _ = self.hangup.recv() => Heard::End,
            _ = self.resize.recv() => Heard::Resize,
        }
    }
}
