//! Owns when things are forgotten: rows past their retention, and once at the start what deleted users left behind while
//! `HEADCOUNT_ON_DELETE` was `keep`. Promises small steps that block nobody. Never decides how long things are kept.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};
use tracing::{debug, info, warn};

use crate::{
    letters::count::is_due,
    pause::Pauses,
    stop::until,
    store::{
        StoreError,
        housekeeping::{Housekeeping, Pruned, Retention},
    },
};

/// The most rows of each kind in one step.
const STEP: u32 = 500;
/// The pause between two steps.
const BREATH: Duration = Duration::from_millis(200);
/// The time between two rounds, and before the first one; scattered by half, so that processes take turns.
const EVERY: Duration = Duration::from_secs(600);

/// Prunes about every ten minutes until `stop` turns true; about every hour while this process asks the database for
/// nothing else.
pub async fn run(store: Arc<dyn Housekeeping>, retention: Retention, stop: watch::Receiver<bool>) {
    let (mut failing, mut leapt) = (false, false);
    let mut last: Option<(u64, Instant)> = None;
    if erase_kept(store.as_ref(), &stop).await {
        return;
    }
    loop {
        if slept(EVERY.mul_f64(rand::random_range(0.5..1.5)), &stop).await {
            return;
        }
        let asked = store.asked();
        if !is_due(last, asked) {
            continue;
        }
        last = Some((asked, Instant::now()));
        match round(store.as_ref(), retention, &stop).await {
            Ok(Pruned { rows, clock_ahead }) => {
                failing = false;
                debug!("pruned {rows} rows that were past their retention");
                if let Some(ahead) = clock_ahead.filter(|_| !leapt) {
                    let ahead = humantime::format_duration(Duration::from_secs(ahead.as_secs()));
                    warn!(
                        "the database's clock is {ahead} ahead of where pruning left off: it was put forward, or \
                         nothing ran for long; pruning follows by an hour every ten minutes; if the clock is \
                         wrong, put it right before good letters are forgotten"
                    );
                }
                leapt = clock_ahead.is_some();
            }
            // One line is enough: the worker logs that the database is away.
            Err(error) if !std::mem::replace(&mut failing, true) => warn!("nothing is pruned: {error}"),
            Err(_) => {}
        }
    }
}

/// Erases the users that were deleted while `HEADCOUNT_ON_DELETE` was `keep`, until there are no more. Once is enough: a
/// user that is deleted from now on is erased at once. `true`: `stop` turned true meanwhile.
async fn erase_kept(store: &dyn Housekeeping, stop: &watch::Receiver<bool>) -> bool {
    let mut pauses = Pauses::new(BREATH, EVERY);
    let (mut erased, mut failing, mut step) = (0, false, STEP);
    loop {
        let pause = match store.erase_kept(step).await {
            Ok(0) if erased == 0 => return false,
            Ok(0) => {
                let users = if erased == 1 { "user" } else { "users" };
                info!("erased {erased} {users} that had been deleted before HEADCOUNT_ON_DELETE was erase");
                return false;
            }
            Ok(users) => {
                erased += users;
                step = (step * 2).min(STEP);
                pauses.reset();
                BREATH
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    warn!("users that were deleted before are not erased yet: {error}");
                }
                step = 1;
                pauses.next_pause()
            }
        };
        if slept(pause, stop).await {
            return true;
        }
    }
}

/// Prunes in steps until nothing more is past its retention.
async fn round(
    store: &dyn Housekeeping,
    retention: Retention,
    stop: &watch::Receiver<bool>,
) -> Result<Pruned, StoreError> {
    let mut pruned = Pruned::default();
    loop {
        let step = store.prune(&retention, STEP).await?;
        pruned = Pruned { rows: pruned.rows + step.rows, ..step };
        if step.rows == 0 {
            return Ok(pruned);
        }
        if slept(BREATH, stop).await {
            return Ok(pruned);
        }
    }
}

/// Sleeps; `true`: `stop` turned true meanwhile.
async fn slept(time: Duration, stop: &watch::Receiver<bool>) -> bool {
    tokio::select! {
        () = tokio::time::sleep(time) => false,
        () = until(stop, |stop| *stop) => true,
    }
}
