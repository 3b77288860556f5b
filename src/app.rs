//! Owns a running process: opens the seams, starts its tasks, and stops them in order: intake, drain, close.
//! Promises to end within the drain limit once asked to. Never decides what a message means.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tracing::{info, warn};

use crate::{
    config::Config,
    failure::Failure,
    ingress::{self, Ingress, Verifier},
    letters::{self, replay::Replayer},
    net,
    ops::{self, Ops, api::replays::Operations},
    pause::Pauses,
    queue::{self, Queue, QueueConfig, QueueError},
    rejections, retention,
    secret::Secret,
    stop::until,
    store::{self, Backend, Class, Store, StoreError, letters::Letters},
    telemetry::metrics,
    time::{now, rfc3339},
    worker,
};

mod look;

pub use look::{exposed, look_at_queue, look_at_store};

/// What of it this process does.
#[derive(Clone, Debug)]
pub struct Roles {
    /// Takes webhooks in, verified with these secrets.
    pub ingress: Option<Vec<Secret>>,
    /// Folds them into users.
    pub worker: bool,
    /// Applies the migrations first.
    pub migrate: bool,
}

/// Where a running process listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The public listener.
    pub ingress: Option<SocketAddr>,
    /// The operators'.
    pub ops: SocketAddr,
}

/// How often depths are looked at and recorders are tidied.
const UPKEEP: Duration = Duration::from_secs(5);

/// What closing the connections may take, within the drain limit.
const CLOSING: Duration = Duration::from_secs(5);

/// Runs until `stop` turns true, then stops in order. `started` learns where it listens.
///
/// # Errors
/// It cannot start as configured, or finds later that it cannot work so.
pub async fn run(
    config: &Config,
    roles: Roles,
    prometheus: PrometheusHandle,
    started: impl FnOnce(Addresses),
    stop: watch::Receiver<bool>,
) -> Result<(), Failure> {
    for warning in &config.warnings {
        warn!("{warning}");
    }
    let listener = match &roles.ingress {
        Some(_) => Some(bind("HEADCOUNT_LISTEN", config.listen)?),
        None => None,
    };
    let ops_listener = bind("HEADCOUNT_OPS_LISTEN", config.ops_listen)?;
    let verifier = roles.ingress.as_deref().map(Verifier::new).transpose()?;
    let queue = open_queue(config).await?;
    let store = match roles.worker {
        true => Some(open_store(config).await?),
        false => None,
    };
    warn_of_split_tables(config, &roles);
    if let Some(exposed) = exposed(config) {
        warn!("{}; {}", exposed.message, exposed.hint);
    }

    let operations = store
        .as_ref()
        .map(|store| Arc::new(Operations::new(Replayer::new(letters(store), Arc::clone(&queue)))));
    let (health, worker_health) = watch::channel(worker::Health::default());
    let (stop_ops, ops_stop) = watch::channel(false);
    let ops = Ops {
        queue: Arc::clone(&queue),
        store: store.clone().map(|store| store as Arc<dyn store::Batches>),
        api: store.clone().zip(operations.clone()),
        worker: roles.worker.then_some(worker_health),
        metrics: prometheus.clone(),
        token: config.ops_token.clone(),
        bounds: Ops::bounds(),
    };
    let mut beside = JoinSet::new();
    let addresses = Addresses {
        ingress: listener.as_ref().map(|listener| listener.local_addr().unwrap_or(config.listen)),
        ops: ops_listener.local_addr().unwrap_or(config.ops_listen),
    };
    beside.spawn(ops::serve(ops_listener, ops, ops_stop));
    beside.spawn(upkeep(Arc::clone(&queue), prometheus));
    if let Some(store) = &store {
        beside.spawn(letters::count::run(Arc::clone(store) as _));
    }

    let mut tasks: JoinSet<Result<(), Failure>> = JoinSet::new();
    if let (Some(listener), Some(verifier)) = (listener, verifier) {
        let mut ingress = Ingress::new(Arc::clone(&queue), verifier, &config.webhook_path);
        ingress.bounds.http.trusted_proxies = config.trusted_proxies.clone();
        let stop = stop.clone();
        tasks.spawn(async move {
            ingress::serve(listener, ingress, stop).await;
            Ok(())
        });
    }
    if let Some(store) = &store {
        let (config, queue, store, stop) =
            (config.clone(), Arc::clone(&queue), Arc::clone(store), stop.clone());
        let migrate = roles.migrate;
        tasks.spawn(async move { work(&config, migrate, queue, store, health, stop).await });
    }
    if let Some(operations) = operations {
        let stop = stop.clone();
        tasks.spawn(async move {
            until(&stop, |stop| *stop).await;
            operations.finish().await;
            Ok(())
        });
    }
    started(addresses);
    let closing = CLOSING.min(config.drain_limit / 5);
    let result = finish(config.drain_limit - closing, tasks, &stop).await;

    stop_ops.send_replace(true);
    close(closing, queue, store).await;
    beside.shutdown().await;
    result
}

/// Waits for the end: every task's after a stop, within the limit, or the first that fails.
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

async fn work(
    config: &Config,
    migrate: bool,
    queue: Arc<dyn Queue>,
    store: Arc<dyn Store>,
    health: watch::Sender<worker::Health>,
    stop: watch::Receiver<bool>,
) -> Result<(), Failure> {
    if !prepare(store.as_ref(), migrate, &health, &stop).await? {
        return Ok(());
    }
    let (letters, rejected, housekeeping) =
        (letters(&store), Arc::clone(&store) as _, Arc::clone(&store) as _);
    let worker = worker::run(Arc::clone(&queue), store, worker::Settings::new(config), health, stop.clone());
    let beside = async {
        tokio::join!(
            letters::capture::run(Arc::clone(&queue), Arc::clone(&letters), stop.clone()),
            rejections::run(Arc::clone(&queue), rejected, stop.clone()),
            retention::run(housekeeping, config.retention(), stop.clone()),
        );
        Ok(())
    };
    // The first that fails ends the others: a worker that can never consume is of no use.
    tokio::try_join!(async { worker.await.map_err(|error| queue_failure(&error)) }, beside)?;
    Ok(())
}

/// Brings the schema up or checks it; waits for a database that is away. `false`: asked to stop meanwhile.
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
            store.migrate().await.map(|names| log_migrations(&names))
        } else {
            store.check_for_work().await
        };
        let error = match prepared {
            Ok(()) => {
                health.send_replace(worker::Health::default());
                metrics::paused(false);
                return Ok(true);
            }
            Err(error) if is_hopeless(&error) => return Err(store_failure(&error)),
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

/// Tells of what was applied.
pub fn log_migrations(names: &[String]) {
    for name in names {
        info!("applied migration {name}");
    }
}

/// Whether waiting would not help: the schema is not ours, or user, password or database are wrong (SQLSTATE class 28, 3D).
fn is_hopeless(error: &StoreError) -> bool {
    error.class == Class::Unusable || error.code.starts_with("28") || error.code.starts_with("3D")
}

fn bind(variable: &str, address: SocketAddr) -> Result<TcpListener, Failure> {
    net::listen(address).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                format!("another process listens there; stop it, or set {variable} to another port")
            }
            std::io::ErrorKind::PermissionDenied => {
                format!("ports below 1024 need privileges; set {variable} to a higher port")
            }
            _ => format!("set {variable} to an address of this machine"),
        };
        Failure::new(format!("cannot listen on {address}: {error}")).hint(hint)
    })
}

/// Opens the configured queue.
///
/// # Errors
/// It can never work as configured.
pub async fn open_queue(config: &Config) -> Result<Arc<dyn Queue>, Failure> {
    queue::open(&config.queue()).await.map_err(|error| queue_failure(&error))
}

/// Opens the configured store.
///
/// # Errors
/// It can never work as configured.
pub async fn open_store(config: &Config) -> Result<Arc<dyn Store>, Failure> {
    store::open(&config.store()).await.map_err(|error| store_failure(&error))
}

/// The dead letters and rejections of a store.
pub fn letters(store: &Arc<dyn Store>) -> Arc<dyn Letters> {
    Arc::clone(store) as Arc<dyn Letters>
}

/// For people.
pub fn queue_failure(error: &QueueError) -> Failure {
    let failure = Failure::new(error.to_string());
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure.hint("check that the broker runs and that AMQP_URL is right"),
    }
}

/// For people.
pub fn store_failure(error: &StoreError) -> Failure {
    let failure = Failure::new(error.to_string());
    match &error.hint {
        Some(hint) => failure.hint(hint.as_str()),
        None => failure.hint("check that the database runs and that DATABASE_URL is right"),
    }
}

/// A broker serves many hosts, a file only one.
fn warn_of_split_tables(config: &Config, roles: &Roles) {
    if let (true, Some(warning)) = (roles.worker, split_table(config)) {
        warn!("{warning}");
    }
}

/// What is wrong with a queue for many hosts before a table on one.
pub fn split_table(config: &Config) -> Option<&'static str> {
    let shared_queue = matches!(config.queue(), QueueConfig::RabbitMq { .. });
    let local_store = matches!(config.store().backend, Backend::Sqlite { .. });
    (shared_queue && local_store).then_some(
        "RabbitMQ with a SQLite store: workers on more than one host would each keep a part of the users; set DATABASE_URL to PostgreSQL for that",
    )
}

async fn upkeep(queue: Arc<dyn Queue>, prometheus: PrometheusHandle) {
    let mut tick = tokio::time::interval(UPKEEP);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        prometheus.run_upkeep();
        metrics::queue_troubles(&queue.troubles());
        if let Ok(depths) = queue.depths().await {
            for depth in depths {
                metrics::queue_messages(&depth.queue, depth.messages);
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
    // Side by side, so that neither waits for one that does not answer. Such a one must not keep the process either:
    // everything that counts is durable.
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
