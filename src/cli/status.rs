//! Owns `status`: queue depths, lag, the last webhook and dead letters at a glance.

use super::{
    Listing,
    output::{Failure, Output, number},
};
use crate::{
    app,
    config::Config,
    ops::status::{self, StatusError},
};

/// Prints it.
///
/// # Errors
/// Queue or store do not answer.
pub async fn run(args: Listing, config: &Config, output: &mut Output) -> Result<(), Failure> {
    let queue = app::open_queue(config).await?;
    let store = app::open_store(config).await?;
    store.check_schema().await.map_err(|error| app::store_failure(&error))?;
    let status = status::read(queue.as_ref(), &store).await;
    queue.close().await;
    store.close().await;
    let status = status.map_err(|error| match error {
        StatusError::Queue(error) => app::queue_failure(&error),
        StatusError::Store(error) => app::store_failure(&error),
    })?;
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
        "users           {}{} live, {} deleted",
        if status.users.estimated { "about " } else { "" },
        number(status.users.live_users),
        number(status.users.deleted_users)
    ))?;
    output.line(format!(
        "last processed  {}",
        status.users.last_processed_at.as_deref().unwrap_or("nothing yet")
    ))?;
    let letters: Vec<String> = status
        .dead_letters
        .iter()
        .map(|(status, letters)| format!("{} {}", number(*letters), status.as_str()))
        .collect();
    output.line(format!("dead letters    {}", letters.join(", ")))?;
    match status.rejections.first() {
        Some(most) => {
            output.line(format!("rejected        {} (newest {}): {}", most.reason, most.newest, most.meaning))
        }
        None => output.line("rejected        nothing in the last hour"),
    }
}
