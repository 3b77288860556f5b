//! Owns `status`: queue depths, workers, users, the last webhook, lag and dead letters at a glance. Promises to show the
//! queues even where the database does not answer.

use crate::{
    app,
    cli::{
        Listing,
        output::Output,
        process::{self, Asked, Process},
    },
    config::Config,
    failure::Failure,
    ops::status::{self, Overview, StatusError},
    queue::Depth,
    text::number,
    time::rfc3339,
};

/// Prints the overview.
///
/// # Errors
/// Queue or store do not answer.
pub async fn run(args: Listing, config: &Config, output: &mut Output) -> Result<(), Failure> {
    let queue = app::look_at_queue(config).await?;
    let store = app::existing_store(config).await?;
    let process = match process::ask(config).await {
        Asked::Is(process) => Some(process),
        Asked::Nobody | Asked::Refused => None,
    };
    let paused = process.as_ref().and_then(|process| process.trouble("worker")).map(str::to_owned);
    let held = process.as_ref().and_then(|process| process.held);
    let schema = store.check_schema().await;
    let read = match schema {
        Ok(()) => status::read(queue.as_ref(), &store, paused.clone()).await,
        Err(error) => Err(error.into()),
    };
    // The queues are shown without the database.
    let depths = if read.is_err() { queue.depths().await.ok() } else { None };
    queue.close().await;
    store.close().await;
    let failure = match read {
        Ok(status) if args.json => return output.json(&status),
        Ok(status) => return at_a_glance(&status, process.as_ref(), config, output),
        Err(StatusError::Queue(error)) => error.into(),
        Err(StatusError::Store(error)) => error.into(),
    };
    if let Some(depths) = depths.filter(|_| !args.json) {
        queues(&depths, paused.as_deref(), held, config, output)?;
    }
    Err(failure)
}

fn at_a_glance(
    status: &Overview,
    process: Option<&Process>,
    config: &Config,
    output: &mut Output,
) -> Result<(), Failure> {
    let held = process.and_then(|process| process.held);
    queues(&status.queues, status.paused.as_deref(), held, config, output)?;
    output.line(format!(
        "users           {}{} live, {} deleted",
        if status.users.estimated { "about " } else { "" },
        number(status.users.live_users),
        number(status.users.deleted_users)
    ))?;
    // Only the ingress knows: the last webhook may still wait in the queue, or be dead.
    if let Some(at) = process.and_then(|process| process.last_webhook) {
        output.line(format!("last webhook    {}, at the ingress on this machine", rfc3339(at)))?;
    }
    let lag = status.users.lag().map(|lag| format!(", {:.3} s after it came in", lag.as_secs_f64()));
    let processed = status.users.last_processed_at.as_deref().unwrap_or("nothing yet");
    output.line(format!("last processed  {processed}{}", lag.unwrap_or_default()))?;
    let letters: Vec<String> = status
        .dead_letters
        .iter()
        .map(|(status, letters)| format!("{} {}", number(*letters), status.as_str()))
        .collect();
    output.line(format!("dead letters    {}", letters.join(", ")))?;
    if status.rejections.is_empty() {
        return output.line("rejected        nothing in the last hour");
    }
    for said in &status.rejections {
        output.line(format!(
            "rejected        {} of the newest samples: {} (newest {}): {}",
            said.samples, said.reason, said.newest, said.meaning
        ))?;
    }
    Ok(())
}

fn queues(
    depths: &[Depth],
    paused: Option<&str>,
    held: Option<u64>,
    config: &Config,
    output: &mut Output,
) -> Result<(), Failure> {
    let rows: Vec<Vec<String>> = depths
        .iter()
        .map(|depth| vec![depth.queue.clone(), number(depth.messages), depth.consumers.to_string()])
        .collect();
    output.table(&["queue", "messages", "consumers"], &rows)?;
    output.line("")?;
    let consumers = status::consumers(depths);
    let workers = match (paused, consumers) {
        (Some(why), _) => format!("the one on this machine takes no messages: {why}"),
        (None, 0) => "none is consuming: paused, or not running".into(),
        (None, consumers) => format!("{consumers} consuming"),
    };
    output.line(format!("workers         {workers}"))?;
    let here = held.map(|held| format!("{} by the worker on this machine", number(held)));
    // The embedded queue's depths include them.
    let elsewhere = (config.queue().is_shared() && consumers > 0)
        .then(|| format!("RabbitMQ does not tell what others hold, at most {} each", config.prefetch));
    let held: Vec<String> = here.into_iter().chain(elsewhere).collect();
    if !held.is_empty() {
        output.line(format!("held            {}", held.join("; ")))?;
    }
    Ok(())
}
