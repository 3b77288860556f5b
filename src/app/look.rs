//! Owns looking at what a running process has made, for commands that only look: they make no files where there are none
//! and declare nothing on a broker, and tell who else may read those that are there.

use std::{path::Path, sync::Arc};

use super::{open_store, queue_failure};
use crate::{
    cli::secret,
    config::Config,
    datafile::{self, Exposed},
    failure::Failure,
    queue::{self, Purpose, Queue},
    store::Store,
};

/// Opens the configured queue to look at it; makes no file where there is none of ours yet, and nothing on a broker.
///
/// # Errors
/// There is none yet, or it can never work as configured.
pub async fn look_at_queue(config: &Config) -> Result<Arc<dyn Queue>, Failure> {
    // Beside a store that is there, a queue that nobody has used is an empty one.
    let store = config.store().backend;
    if store.file().is_none_or(datafile::is_unused) {
        refuse_unused(config.queue().file().as_deref(), "HEADCOUNT_DATA_DIR")?;
    }
    queue::open_to(Purpose::Look, &config.queue()).await.map_err(|error| queue_failure(&error))
}

/// Opens the configured store to look at it; makes no file where there is none yet.
///
/// # Errors
/// There is none yet, or it can never work as configured.
pub async fn look_at_store(config: &Config) -> Result<Arc<dyn Store>, Failure> {
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

/// What other users of this machine may read of headcount's files.
pub fn exposed(config: &Config) -> Option<Exposed> {
    let (queue, store) = (config.queue().file(), config.store().backend);
    let store = store.file();
    if queue.is_none() && store.is_none() {
        return None;
    }
    let names = ["queue.db", "headcount.db", secret::FILE];
    datafile::exposed(&config.data_dir, &names, store.filter(|_| config.database_url.is_some()))
}
