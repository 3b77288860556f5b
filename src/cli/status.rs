//! Owns `status`: queue depths, workers, users, the last webhook, lag, dead letters and Clerk at a glance. Promises to show the
//! queues even where the database does not answer.

use crate::{
    app,
    clerk::api::{clock_hint, clock_says},
    cli::{
        Status as Args,
        output::Output,
        process::{self, Asked, Process},
        watch,
    },
    config::Config,
    failure::Failure,
    ops::{
        status::{self, Status, StatusError},
        sync::{Glance, Notice},
        verdict::{Level, Verdict},
    },
    queue::Depth,
    store::sync::Counts,
    sync::watch::state::Healed,
    text::number,
    time::{ago, rfc3339},
};

/// Prints the overview.
///
/// # Errors
/// Queue or store do not answer.
pub async fn run(args: Args, config: &Config, output: &mut Output) -> Result<(), Failure> {
    if args.watch {
        return watch::run(args.every, config, output).await;
    }
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
        Ok(status) if args.listing.json => return output.json(&status),
        Ok(status) => return at_a_glance(&status, process.as_ref(), config, output),
        Err(StatusError::Queue(error)) => error.into(),
        Err(StatusError::Store(error)) => error.into(),
    };
    if let Some(depths) = depths.filter(|_| !args.listing.json) {
        queues(&depths, paused.as_deref(), held, config, output)?;
    }
    Err(failure)
}

fn at_a_glance(
    Status { verdict, overview: status, .. }: &Status,
    process: Option<&Process>,
    config: &Config,
    output: &mut Output,
) -> Result<(), Failure> {
    let held = process.and_then(|process| process.held);
    output.line(told(verdict))?;
    for concern in verdict.concerns.iter().skip(1) {
        output.line(format!("  {}", concern.text))?;
    }
    output.line("")?;
    queues(&status.queues, status.paused.as_deref(), held, config, output)?;
    output.line(format!(
        "users           {}{} live, {} deleted",
        if status.users.estimated { "about " } else { "" },
        number(status.users.live_users),
        number(status.users.deleted_users)
    ))?;
    // The ingress knows first: the last webhook may still wait in the queue, or be dead.
    let here = process.and_then(|process| process.last_webhook).map(rfc3339);
    let noted = status.sync.as_ref().and_then(|sync| sync.last_webhook_at.clone());
    if let Some(at) = here.clone().max(noted) {
        let place = if Some(&at) == here.as_ref() { ", at the ingress on this machine" } else { "" };
        output.line(format!("last webhook    {at}{place}"))?;
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
    if let Some(sync) = &status.sync {
        clerk(sync, output)?;
    }
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

/// The verdict as a line.
pub(super) fn told(verdict: &Verdict) -> String {
    match verdict.level {
        Level::Well => verdict.text.clone(),
        level => format!("{}: {}", level.as_str(), verdict.text),
    }
}

/// How the table stands to Clerk.
fn clerk(sync: &Glance, output: &mut Output) -> Result<(), Failure> {
    if let Some(watch) = &sync.watch {
        let change = |at: &Option<String>| at.clone().unwrap_or_else(|| "none".into());
        let behind = match watch.behind_seconds {
            None => "not compared yet".into(),
            // What was in step then may be so no longer.
            Some(0) if watch.error.is_some() || !watch.watched => "was in step".into(),
            Some(0) => "in step".into(),
            Some(seconds) => {
                format!("behind by {}", ago(0, 1000 * i64::try_from(seconds).unwrap_or_default()))
            }
        };
        let watched = if watch.watched { "" } else { "; nobody watches now" };
        let (there, here) = (change(&watch.newest_in_clerk), change(&watch.newest_here));
        let looked = watch.looked_at.as_ref().map(|at| format!(" at {at}")).unwrap_or_default();
        output
            .line(format!("clerk           {behind}{looked}; newest change {there}, here {here}{watched}"))?;
        let Healed { missing, outdated, gone } = watch.healed_last_day;
        let [missing, outdated, gone] = [missing, outdated, gone].map(number);
        output.line(format!(
            "healed          {missing} missing, {outdated} outdated, {gone} gone in the last day"
        ))?;
        for notice in watch.alarm.iter().chain(&watch.error).chain(&watch.refused) {
            let Notice { since, message, hint } = notice;
            output.line(format!("attention       since {since}: {message}; {hint}"))?;
        }
        if let Some(offset) = watch.clock_offset_seconds.map(|seconds| seconds.saturating_mul(1000)) {
            output.line(format!("attention       {}; {}", clock_says(offset), clock_hint(offset)))?;
        }
    }
    let Some(run) = &sync.last_run else { return Ok(()) };
    let result = match (run.result, &run.detail) {
        (None, _) => "not finished".into(),
        (Some(result), None) => result.as_str().to_owned(),
        (Some(result), Some(detail)) => format!("{}: {detail}", result.as_str()),
    };
    let Counts { clerk, missing, outdated, different, gone, failed, .. } = run.counts;
    let failed = if failed > 0 { format!(", {} failed", number(failed)) } else { String::new() };
    let [clerk, missing, outdated, different, gone] = [clerk, missing, outdated, different, gone].map(number);
    output.line(format!(
        "last sync       {} by {}, {result}; {clerk} users, {missing} missing, {outdated} outdated, {different} different, {gone} gone{failed}",
        run.started_at, run.who
    ))
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
