//! Owns the worker's role: brings the schema up or checks it, then runs the worker and what goes on beside it. Promises to
//! wait for a database that is away, and to fail where waiting would not help.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tracing::{info, warn};

use super::open::in_step;
use crate::{
    clerk::api::{Api, ApiError, Settings},
    config::Config,
    failure::Failure,
    letters::capture,
    pause::Pauses,
    processes::Board,
    queue::Queue,
    rejections, retention,
    stop::until,
    store::{Class, Store, StoreError},
    sync::{
        self, instances,
        watch::{RATE, Watch},
    },
    telemetry::metrics,
    tiers::follow,
    time::{now, rfc3339},
    worker,
};

/// What others learn from the worker's role.
pub(super) struct Outside {
    /// How the worker is.
    pub(super) health: watch::Sender<worker::Health>,
    /// What people should know although everything works.
    pub(super) notices: watch::Sender<Vec<String>>,
    /// What ingresses said through the queue.
    pub(super) board: Board,
    /// The schema is there.
    pub(super) prepared: watch::Sender<bool>,
}

/// Works until `stop` turns true.
///
/// # Errors
/// The schema is not ours, the database refuses us, or the queue cannot be consumed as configured.
pub(super) async fn run(
    config: Config,
    migrate: bool,
    queue: Arc<dyn Queue>,
    store: Arc<dyn Store>,
    outside: Outside,
    stop: watch::Receiver<bool>,
) -> Result<(), Failure> {
    let Outside { health, notices, board, prepared } = outside;
    if !prepare(store.as_ref(), migrate, &health, &stop).await? {
        return Ok(());
    }
    prepared.send_replace(true);
    let seen = worker::Seen::default();
    let (captured, rejected, kept) = (Arc::clone(&store), Arc::clone(&store), Arc::clone(&store));
    let (followed, tiers) = (Arc::clone(&store), config.billing.clone());
    let (met, instance) = (Arc::clone(&store), config.clerk_instance.clone());
    let watch = watch_over_clerk(&config, &queue, &store, notices);
    let worker = worker::run(Arc::clone(&queue), store, config.worker(), seen.clone(), health, stop.clone());
    let beside = async {
        tokio::join!(
            capture::run(Arc::clone(&queue), captured, stop.clone()),
            rejections::run(Arc::clone(&queue), rejected, board, stop.clone()),
            retention::run(kept, config.retention(), stop.clone()),
            instances::run(seen, met, instance, stop.clone()),
            follow::run(followed, tiers, stop.clone()),
            async {
                if let Some(watch) = watch {
                    sync::watch::run(watch, stop.clone()).await;
                }
            },
        );
        Ok(())
    };
    // The first that fails ends the others: a worker that can never consume is of no use.
    tokio::try_join!(async { worker.await.map_err(Failure::from) }, beside)?;
    Ok(())
}

/// What the watch needs, where a key is set and the watch or the scheduled sync is on.
fn watch_over_clerk(
    config: &Config,
    queue: &Arc<dyn Queue>,
    store: &Arc<dyn Store>,
    notices: watch::Sender<Vec<String>>,
) -> Option<Watch> {
    let (schedule, every) = (config.sync_every, config.watch);
    if every.is_zero() && schedule.is_none() {
        return None;
    }
    let patient = config.clerk_api(sync::PATIENCE)?;
    let brief = Settings { rate: Some(RATE), patience: sync::watch::PATIENCE, ..patient.clone() };
    let open = || -> Result<(Api, Api), ApiError> { Ok((Api::new(&patient)?, Api::new(&brief)?)) };
    match open() {
        Ok((patient, api)) => {
            let sync = in_step(config, patient, store, queue, "worker");
            Some(Watch { sync, api, every, schedule, notices })
        }
        // Webhooks go on without it.
        Err(error) => {
            let said = format!("Clerk is not watched: {error}; {}", error.hint());
            warn!("{said}");
            notices.send_replace(vec![said]);
            None
        }
    }
}

/// Brings the schema up or checks it; waits for a database that is away. `false`: the stop came first.
async fn prepare(
    store: &dyn Store,
    migrate: bool,
    health: &watch::Sender<worker::Health>,
    stop: &watch::Receiver<bool>,
) -> Result<bool, Failure> {
    let mut pauses = Pauses::new(Duration::from_millis(200), Duration::from_secs(5));
    let since = rfc3339(now());
    loop {
        let prepared = if migrate {
            store.migrate().await.map(|names| names.iter().for_each(|name| info!("applied migration {name}")))
        } else {
            store.check_for_work().await
        };
        let error = match prepared {
            Ok(()) => {
                health.send_replace(worker::Health::default());
                metrics::paused(false);
                return Ok(true);
            }
            Err(error) if is_hopeless(&error) => return Err(error.into()),
            Err(error) => error,
        };
        metrics::paused(true);
        let paused = Some(format!("since {since}: {error}"));
        if health.send_if_modified(|health| std::mem::replace(&mut health.paused, paused).is_none()) {
            warn!("waiting for the database: {error}");
        }
        tokio::select! {
            () = tokio::time::sleep(pauses.next_pause()) => {}
            () = until(stop, |stop| *stop) => return Ok(false),
        }
    }
}

/// Whether waiting would not help: the schema is not ours, or user, password or database are wrong (SQLSTATE class 28, 3D).
fn is_hopeless(error: &StoreError) -> bool {
    error.class == Class::Unusable || error.code.starts_with("28") || error.code.starts_with("3D")
}
