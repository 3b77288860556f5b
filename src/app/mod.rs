//! Owns a running process: opens the seams, starts what its roles run, and stops it in order: intake, drain, close.
//! Never decides what a message means.
//!
//! Promises to end within `HEADCOUNT_DRAIN_LIMIT` of being asked to. A fifth of it, at most 5 s, is kept for
//! closing the connections; the rest is for finishing what is in flight, and what is not finished by then comes back from
//! the queue.
//!
//! What runs, by role, and when it ends:
//!
//! | task | runs where | at a stop |
//! |---|---|---|
//! | the operators' listener | every process | last |
//! | upkeep: depths, troubles, recorders | every process | last |
//! | counting dead letters | with a worker | last |
//! | telling about itself | every process | last, with a goodbye |
//! | the ingress | with an ingress | finishes its requests |
//! | the application's listener | with an API | ends its streams, finishes its requests |
//! | the worker | with a worker | settles what it holds |
//! | capture of dead letters, of rejected requests; retention | with a worker | finish their step |
//! | noting whose webhooks come in | with a worker | writes down the last ones |
//! | tiers that follow the time, in one process of all | with a worker | gives its lease back |
//! | the watch over Clerk, in one process of all | with a worker and a key | gives its lease back |
//! | replays, those of other processes too | with a worker or a console | finish their step, and leave them to the others |

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tracing::{info, warn};

use self::open::bind;
pub use self::open::{
    existing_queue, existing_store, exposed, in_step, look_at_queue, open_queue, open_store, split_table,
};
use crate::{
    api,
    clerk::{api::Api, signature::Verifier},
    config::{Config, Tokens},
    failure::Failure,
    ingress::{self, Ingress},
    letters::{self, operations::Operations},
    ops::{self, Ops},
    processes::{Board, Paused, Teller, Way, samples_waiting},
    queue::{Absent, PARTS, Queue},
    secret::Secret,
    stop::until,
    store::{Batches, Class, Store, letters::Letters, processes::Role},
    sync::{self, Sync},
    telemetry::metrics,
    worker,
};

mod answer;
mod open;
mod work;

/// What a process does; nothing by default.
#[derive(Clone, Debug, Default)]
pub struct Roles {
    /// Takes webhooks in, verified with these secrets.
    pub ingress: Option<Vec<Secret>>,
    /// Folds webhooks into users.
    pub worker: bool,
    /// Answers applications whose users' tokens count by these settings.
    pub api: Option<Tokens>,
    /// Shows the operators' console, and runs what people start there. A worker does that too.
    pub console: bool,
    /// Pages beside the application's answers.
    pub pages: Option<axum::Router>,
    /// Applies the migrations first.
    pub migrate: bool,
}

/// Where a running process listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The public listener.
    pub ingress: Option<SocketAddr>,
    /// The application's listener.
    pub api: Option<SocketAddr>,
    /// The operators' listener.
    pub ops: SocketAddr,
}

/// How often depths are read and recorders are tidied.
const UPKEEP: Duration = Duration::from_secs(5);

/// The longest that closing the connections may take.
const CLOSING: Duration = Duration::from_secs(5);

/// Runs until `stop` turns true, then stops in order. `started` learns where the process listens, and gets the worker's store.
///
/// # Errors
/// The process cannot start as configured, or finds later that it cannot work so.
pub async fn run(
    config: &Config,
    roles: Roles,
    prometheus: PrometheusHandle,
    started: impl FnOnce(Addresses, Option<Arc<dyn Store>>),
    stop: watch::Receiver<bool>,
) -> Result<(), Failure> {
    for warning in &config.warnings {
        warn!("{warning}");
    }
    let what = told_roles(&roles);
    let public = match &roles.ingress {
        Some(secrets) => Some((bind("HEADCOUNT_LISTEN", config.listen)?, Verifier::new(secrets)?)),
        None => None,
    };
    let app = match roles.api {
        Some(tokens) => Some((bind("HEADCOUNT_API_LISTEN", config.api_listen)?, tokens)),
        None => None,
    };
    let ops_listener = bind("HEADCOUNT_OPS_LISTEN", config.ops_listen)?;
    let addresses = Addresses {
        ingress: public.as_ref().map(|(listener, _)| listener.local_addr().unwrap_or(config.listen)),
        api: app.as_ref().map(|(listener, _)| listener.local_addr().unwrap_or(config.api_listen)),
        ops: ops_listener.local_addr().unwrap_or(config.ops_listen),
    };
    let queue: Arc<dyn Queue> = match (public.is_some() || roles.worker, roles.console) {
        (true, _) => open_queue(config).await?,
        (false, true) => existing_queue(config).await?,
        (false, false) => Arc::new(Absent),
    };
    let store = match (roles.worker || app.is_some(), roles.console) {
        (true, _) => Some(open_store(config).await?),
        (false, true) => Some(shown_store(config).await?),
        (false, false) => None,
    };
    let worked = store.clone().filter(|_| roles.worker);
    let shown = store.clone().filter(|_| roles.worker || roles.console);
    if let (true, Some(warning)) = (roles.worker, split_table(config)) {
        warn!("{warning}");
    }
    if let Some(exposed) = exposed(config) {
        warn!("{}; {}", exposed.message, exposed.hint);
    }
    let operations =
        shown.as_ref().map(|store| Arc::new(Operations::new(Arc::clone(store), Arc::clone(&queue))));
    let (health, worker_health) = watch::channel(worker::Health::default());
    let (notices, told) = watch::channel(Vec::new());

    // Ends after all else, so that operators see a stop to its end.
    let (stop_ops, ops_stop) = watch::channel(false);
    let mut beside = JoinSet::new();
    let ops = Ops {
        queue: Arc::clone(&queue),
        store: store.clone().map(|store| store as Arc<dyn Batches>),
        api: shown.clone().zip(operations.clone()),
        worker: roles.worker.then(|| worker_health.clone()),
        stopping: stop.clone(),
        notices: told,
        metrics: prometheus.clone(),
        tokens: config.ops_tokens(),
        clerk: shown.as_ref().and_then(|store| clerk(config, &queue, store)),
        bounds: Ops::bounds(),
    };
    beside.spawn(ops::serve(ops_listener, ops, ops_stop));
    let (waiting, waits) = watch::channel(None);
    beside.spawn(upkeep(Arc::clone(&queue), prometheus, waiting));
    if let Some(store) = &worked {
        beside.spawn(letters::count::run(Arc::clone(store) as _));
    }

    // What this process tells about itself: into its database once the schema is there, else through the queue.
    let (prepared, ready) = watch::channel(!roles.worker);
    let (stop_telling, telling_stop) = watch::channel(false);
    let board = Board::default();
    let way = match &store {
        Some(store) => {
            let may_sleep = !config.store().is_local();
            Way::Store { store: Arc::clone(store), board: board.clone(), may_sleep }
        }
        None => Way::Queue { queue: Arc::clone(&queue), waiting: waits },
    };
    let paused = |health: watch::Receiver<worker::Health>| -> Paused {
        Box::new(move || health.borrow().paused.clone())
    };
    let teller = Teller::new(what, addresses.told(), roles.worker.then(|| paused(worker_health)), way);
    let telling = tokio::spawn(teller.run(ready, telling_stop));

    // Each ends by itself at a stop.
    let mut tasks: JoinSet<Result<(), Failure>> = JoinSet::new();
    if let Some((listener, verifier)) = public {
        tasks.spawn(take_in(listener, ingress(config, &queue, verifier), stop.clone()));
    }
    if let (Some((listener, tokens)), Some(store)) = (app, &store) {
        let settings = api::Settings { pages: roles.pages, ..answer::settings(config, tokens, store)? };
        tasks.spawn(answer::serve(listener, settings, stop.clone()));
    }
    if let Some(store) = &worked {
        let (queue, store) = (Arc::clone(&queue), Arc::clone(store));
        let outside = work::Outside { health, notices, board, prepared };
        tasks.spawn(work::run(config.clone(), roles.migrate, queue, store, outside, stop.clone()));
    }
    if let Some(operations) = operations {
        let stop = stop.clone();
        tasks.spawn(async move {
            operations.run(&stop).await;
            Ok(())
        });
    }
    started(addresses, worked);
    let closing = CLOSING.min(config.drain_limit / 5);
    let result = finish(config.drain_limit - closing, tasks, &stop).await;

    stop_ops.send_replace(true);
    stop_telling.send_replace(true);
    // A part of the time for closing at most. Who cannot say goodbye is forgotten all the same.
    let begun = tokio::time::Instant::now();
    let _ = tokio::time::timeout(closing / 4, telling).await;
    close(closing.saturating_sub(begun.elapsed()), queue, store).await;
    beside.shutdown().await;
    result
}

impl Addresses {
    /// As the process tells them, by role.
    fn told(&self) -> BTreeMap<String, String> {
        let all = [("ingress", self.ingress), ("api", self.api), ("operators", Some(self.ops))];
        all.into_iter().filter_map(|(role, at)| Some((role.to_owned(), at?.to_string()))).collect()
    }
}

/// What the process tells that it does.
fn told_roles(roles: &Roles) -> Vec<Role> {
    let all = [
        (Role::Ingress, roles.ingress.is_some()),
        (Role::Worker, roles.worker),
        (Role::Api, roles.api.is_some()),
        (Role::Console, roles.console),
    ];
    all.into_iter().filter(|(_, is)| *is).map(|(role, _)| role).collect()
}

/// The store that a console shows, where its schema is there. A database that is away comes back.
async fn shown_store(config: &Config) -> Result<Arc<dyn Store>, Failure> {
    let store = existing_store(config).await?;
    match store.check_schema().await {
        Err(error) if error.class == Class::Unusable => Err(error.into()),
        _ => Ok(store),
    }
}

/// Clerk's API as the console asks it, where there is a key. It is asked while a person waits.
fn clerk(config: &Config, queue: &Arc<dyn Queue>, store: &Arc<dyn Store>) -> Option<Sync> {
    let settings = config.clerk_api(sync::watch::PATIENCE)?;
    match Api::new(&settings) {
        Ok(api) => Some(in_step(config, api, store, queue, "console")),
        Err(error) => {
            warn!("the console does not ask Clerk: {error}; {}", error.hint());
            None
        }
    }
}

fn ingress(config: &Config, queue: &Arc<dyn Queue>, verifier: Verifier) -> Ingress {
    let mut ingress = Ingress::new(Arc::clone(queue), verifier, &config.webhook_path);
    ingress.bounds.http.trusted_proxies = config.trusted_proxies.clone();
    ingress
}

async fn take_in(
    listener: TcpListener,
    ingress: Ingress,
    stop: watch::Receiver<bool>,
) -> Result<(), Failure> {
    ingress::serve(listener, ingress, stop).await;
    Ok(())
}

async fn upkeep(queue: Arc<dyn Queue>, prometheus: PrometheusHandle, samples: watch::Sender<Option<u64>>) {
    let mut tick = tokio::time::interval(UPKEEP);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        prometheus.run_upkeep();
        let troubles = queue.troubles();
        for part in PARTS {
            metrics::queue_trouble(part, troubles.iter().any(|trouble| trouble.part == part));
        }
        let depths = queue.depths().await.unwrap_or_default();
        samples.send_replace(samples_waiting(&depths));
        for depth in depths {
            metrics::queue_messages(&depth.queue, depth.messages);
        }
    }
}

/// Waits until every task has ended, until one has failed, or until the limit after a stop.
async fn finish(
    limit: Duration,
    mut tasks: JoinSet<Result<(), Failure>>,
    stop: &watch::Receiver<bool>,
) -> Result<(), Failure> {
    let deadline = async {
        until(stop, |stop| *stop).await;
        info!("stopping: no more intake, finishing what is in flight");
        tokio::time::sleep(limit).await;
    };
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            ended = tasks.join_next() => match ended {
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(failure))) => return Err(failure),
                Some(Err(error)) => return Err(Failure::new(format!("a task failed: {error}"))),
                None => return Ok(()),
            },
            () = &mut deadline => {
                let limit = humantime::format_duration(limit);
                warn!("not everything was finished within {limit}; what is left comes back from the queue");
                return Ok(());
            }
        }
    }
}

async fn close(limit: Duration, queue: Arc<dyn Queue>, store: Option<Arc<dyn Store>>) {
    let store = async {
        if let Some(store) = store {
            store.close().await;
        }
    };
    // Side by side, so that neither waits for the other where that does not answer. Nor does the process: everything that
    // counts is durable.
    let closing = async { tokio::join!(queue.close(), store) };
    if tokio::time::timeout(limit, closing).await.is_err() {
        warn!("the connections did not close in time");
    }
    info!("stopped");
}

/// Turns true at the first SIGTERM or SIGINT. A second one ends the process at once.
///
/// # Errors
/// The system does not let us listen for signals.
pub fn stop_signal() -> std::io::Result<watch::Receiver<bool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if stop.send_replace(true) {
                std::process::exit(1);
            }
        }
    });
    Ok(stopping)
}

/// The dead letters of a store.
pub fn letters(store: &Arc<dyn Store>) -> Arc<dyn Letters> {
    Arc::clone(store) as Arc<dyn Letters>
}
