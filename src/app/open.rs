//! Owns opening what the configuration names: listeners, queue and store, to work with them or only to look. Commands
//! that only look make no files where there are none and declare nothing on a broker.

use std::{net::SocketAddr, path::Path, sync::Arc};

use tokio::net::TcpListener;

use crate::{
    clerk::{api::Api, secret},
    config::Config,
    datafile::{self, Exposed},
    failure::Failure,
    net,
    queue::{self, Purpose, Queue},
    store::{self, Store, sync::Holder},
    sync::Sync,
};

/// Listens where a setting says.
pub(super) fn bind(variable: &str, address: SocketAddr) -> Result<TcpListener, Failure> {
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
    Ok(queue::open(&config.queue()).await?)
}

/// Opens the configured store.
///
/// # Errors
/// It can never work as configured.
pub async fn open_store(config: &Config) -> Result<Arc<dyn Store>, Failure> {
    Ok(store::open(&config.store()).await?)
}

/// Opens the configured queue to look at it; makes no file where there is none of ours yet, and nothing on a broker.
///
/// # Errors
/// There is none yet, or it can never work as configured.
pub async fn look_at_queue(config: &Config) -> Result<Arc<dyn Queue>, Failure> {
    refuse_unused_queue(config)?;
    Ok(queue::open_to(Purpose::Look, &config.queue()).await?)
}

/// Opens the configured queue to publish to workers that take from it; makes no file where there is none of ours yet.
///
/// # Errors
/// There is none yet, or it can never work as configured.
pub async fn existing_queue(config: &Config) -> Result<Arc<dyn Queue>, Failure> {
    refuse_unused_queue(config)?;
    open_queue(config).await
}

/// Nobody would take from a queue that a command made in a directory of its own.
fn refuse_unused_queue(config: &Config) -> Result<(), Failure> {
    // Beside a store that exists, an unused queue counts as an empty one.
    let store = config.store().backend;
    match store.file().is_none_or(datafile::is_unused) {
        true => refuse_unused(config.queue().file().as_deref(), "HEADCOUNT_DATA_DIR"),
        false => Ok(()),
    }
}

/// Opens the configured store as it is: makes no file where there is none yet.
///
/// # Errors
/// There is none yet, or it can never work as configured.
pub async fn existing_store(config: &Config) -> Result<Arc<dyn Store>, Failure> {
    let setting = if config.database_url.is_some() { "DATABASE_URL" } else { "HEADCOUNT_DATA_DIR" };
    refuse_unused(config.store().backend.file(), setting)?;
    open_store(config).await
}

fn refuse_unused(file: Option<&Path>, setting: &str) -> Result<(), Failure> {
    match file.filter(|file| datafile::is_unused(file)) {
        Some(file) => Err(Failure::new(format!("there is nothing yet: {} does not exist", file.display()))
            .hint("start headcount, which makes it: headcount up, or headcount migrate for the table of users alone")
            .hint(format!("if headcount runs already, set {setting} to what it is set to there"))),
        None => Ok(()),
    }
}

/// What keeping in step through Clerk's API needs, for the process that is called so.
pub fn in_step(
    config: &Config,
    api: Api,
    store: &Arc<dyn Store>,
    queue: &Arc<dyn Queue>,
    process: &str,
) -> Sync {
    Sync {
        api,
        store: Arc::clone(store),
        queue: Arc::clone(queue),
        grace: config.watch_grace,
        instance: config.clerk_instance.clone(),
        billing: config.billing.is_some(),
        holder: Holder::of(process),
    }
}

/// What other users of this machine may read of headcount's files.
pub fn exposed(config: &Config) -> Option<Exposed> {
    let (queue, store) = (config.queue().file(), config.store().backend);
    let store = store.file();
    if queue.is_none() && store.is_none() {
        return None;
    }
    let names = ["queue.db", "headcount.db", secret::DEVELOPMENT_FILE];
    datafile::exposed(&config.data_dir, &names, store.filter(|_| config.database_url.is_some()))
}

/// The warning where a queue for several hosts feeds a table on one.
pub fn split_table(config: &Config) -> Option<&'static str> {
    (config.queue().is_shared() && config.store().is_local()).then_some(
        "RabbitMQ with a SQLite store: workers on more than one host would each keep a part of the users; set DATABASE_URL to PostgreSQL for that",
    )
}
