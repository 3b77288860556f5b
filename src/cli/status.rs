//! Owns `status`: queue depths, lag, the last webhook and dead letters at a glance.

use serde::Serialize;

use super::{
    Listing,
    output::{Failure, Output, number},
};
use crate::{app, config::Config, queue::Depth, store::Totals};

/// What `status --json` prints.
#[derive(Debug, Serialize)]
struct Status {
    queues: Vec<Depth>,
    users: Totals,
}

/// Prints it.
///
/// # Errors
/// Queue or store do not answer.
pub async fn run(args: Listing, config: &Config, output: &mut Output) -> Result<(), Failure> {
    let queue = app::open_queue(config).await?;
    let store = app::open_store(config).await?;
    store.check_schema().await.map_err(|error| app::store_failure(&error))?;
    let queues = queue.depths().await.map_err(|error| app::queue_failure(&error))?;
    let users = store.totals().await.map_err(|error| app::store_failure(&error))?;
    queue.close().await;
    store.close().await;
    let status = Status { queues, users };
    if args.json {
        return output.json(&status);
    }
    let rows: Vec<Vec<String>> = status
        .queues
        .iter()
        .map(|depth| vec![depth.queue.clone(), number(depth.messages), depth.consumers.to_string()])
        .collect();
    output.table(&["queue", "messages", "consumers"], &rows)?;
    output.line("")?;
    output.line(format!(
        "users           {} live, {} deleted",
        number(status.users.live_users),
        number(status.users.deleted_users)
    ))?;
    output.line(format!(
        "last processed  {}",
        status.users.last_processed_at.as_deref().unwrap_or("nothing yet")
    ))
}
