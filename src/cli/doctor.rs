//! Owns `doctor`: checks configuration, queue, database, secret and clock, and says how to mend what is wrong.
//! The ingress is asked with a signed webhook of the type `headcount.doctor`, which ends in the inbox as ignored.

use std::{sync::Arc, time::Duration};

use serde::Serialize;

use super::{
    Listing,
    output::{Failure, Output, number},
    post::Poster,
    secret,
    send::front_door,
};
use crate::{
    app,
    config::Config,
    datafile::{EXAMINE_LIMIT, Examined, Leftover},
    dead::rejections::{SAMPLES, explain},
    message::{MessageId, now},
    queue::QueueConfig,
    store::{
        Backend, Store, StoreError,
        letters::{Filter, Status},
    },
};

/// One line of the report.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    message: String,
    hints: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Failed,
}

impl Check {
    fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, message: message.into(), hints: Vec::new() }
    }

    fn warning(name: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warning, message: message.into(), hints: vec![hint.into()] }
    }

    fn failed(name: &'static str, failure: Failure) -> Self {
        Self { name, verdict: Verdict::Failed, message: failure.message, hints: failure.hints }
    }
}

/// Checks and prints.
///
/// # Errors
/// A check failed; warnings are none.
pub async fn run(args: Listing, config: &Config, output: &mut Output) -> Result<(), Failure> {
    let mut checks = vec![configuration(config)];
    // All at once: servers that do not answer are waited for together.
    let (queue, store, ingress) = tokio::join!(queue(config), store(config), ingress(config));
    checks.extend(queue.into_iter().chain(store));
    checks.extend([secret(config), ingress]);
    if args.json {
        output.json(&checks)?;
    } else {
        for check in &checks {
            let mark = match check.verdict {
                Verdict::Ok => "ok",
                Verdict::Warning => "warning",
                Verdict::Failed => "FAILED",
            };
            output.line(format!("{mark:<8} {:<14} {}", check.name, check.message))?;
            for hint in &check.hints {
                output.line(format!("{:<8} {:<14} hint: {hint}", "", ""))?;
            }
        }
    }
    match checks.iter().filter(|check| check.verdict == Verdict::Failed).count() {
        0 => Ok(()),
        1 => Err(Failure::new("one check failed")),
        failed => Err(Failure::new(format!("{failed} checks failed"))),
    }
}

fn configuration(config: &Config) -> Check {
    if let Some(warning) = config.warnings.first() {
        return Check::warning("configuration", warning.as_str(), "mend the name, or unset it");
    }
    match app::split_table(config) {
        Some(warning) => Check::warning("configuration", warning, "see README.md, running at scale"),
        None => Check::ok("configuration", "every value can be used"),
    }
}

async fn queue(config: &Config) -> Vec<Check> {
    let opened = app::open_queue(config).await;
    let queue = match opened {
        Ok(queue) => queue,
        Err(failure) => return vec![Check::failed("queue", failure)],
    };
    let depths = queue.depths().await;
    let check = match depths {
        Err(error) => Check::failed("queue", app::queue_failure(&error)),
        Ok(depths) => {
            let (mut waiting, mut dead) = (0, 0);
            for depth in &depths {
                match depth.queue.as_str() {
                    "dead" => dead += depth.messages,
                    "rejections" => {}
                    _ => waiting += depth.messages,
                }
            }
            let consumers: u32 =
                depths.iter().filter(|depth| depth.queue == "events").map(|depth| depth.consumers).sum();
            let message = format!("{queue:?} answers: {waiting} waiting, {dead} dead, {consumers} workers");
            let shared = matches!(config.queue(), QueueConfig::RabbitMq { .. });
            if shared && consumers == 0 && waiting > 0 {
                Check::warning("queue", message, "start a worker: headcount worker")
            } else {
                Check::ok("queue", message)
            }
        }
    };
    let mut checks = vec![check];
    let part = if matches!(config.queue(), QueueConfig::RabbitMq { .. }) { "broker" } else { "queue" };
    checks.extend(queue.examine().await.into_iter().map(|finding| match finding.broken {
        true => Check::failed("queue", Failure::new(finding.message).hint(finding.hint)),
        false => Check::warning(part, finding.message, finding.hint),
    }));
    queue.close().await;
    checks
}

/// What reading a file of ours has shown, as a part of a sentence.
fn read_through(examined: Option<Examined>) -> &'static str {
    match examined {
        Some(Examined::Sound) => " and is undamaged",
        Some(Examined::Unfinished | Examined::Damaged(_)) => " (too large to be read through in 30 s)",
        None => "",
    }
}

async fn store(config: &Config) -> Vec<Check> {
    let store = match app::open_store(config).await {
        Ok(store) => store,
        Err(failure) => return vec![Check::failed("database", failure)],
    };
    let checks = look_into(&store).await;
    store.close().await;
    let mut checks =
        checks.unwrap_or_else(|error| vec![Check::failed("database", app::store_failure(&error))]);
    if let Backend::Sqlite { path } = config.store().backend {
        let leftover = Leftover::beside(&path);
        checks.extend(leftover.map(|found| Check::warning("database", found.message, found.hint)));
    }
    checks
}

async fn look_into(store: &Arc<dyn Store>) -> Result<Vec<Check>, StoreError> {
    let read = read_through(store.examine(EXAMINE_LIMIT).await?);
    store.check_schema().await?;
    store.ready().await?;
    let mut checks =
        vec![Check::ok("database", format!("{store:?} answers{read}, takes writes, and has our schema"))];
    let open = store.statuses().await?.get(&Status::Open).copied().unwrap_or_default();
    checks.push(match (open, store.groups(&open_letters()).await?.first()) {
        (1.., Some(most)) => Check::warning(
            "dead letters",
            format!("{} open; {} of them: {}", number(open), number(most.letters), most.group),
            "look: headcount dead groups; when the cause is mended: headcount dead replay",
        ),
        _ => Check::ok("dead letters", "none is open"),
    });
    let rejections = explain(&store.rejections(SAMPLES).await?, now());
    if rejections.is_empty() {
        checks.push(Check::ok("rejections", "no request was turned away in the last hour"));
    }
    checks.extend(rejections.into_iter().take(3).map(|most| {
        let message = format!(
            "{} of the newest samples are {}, the last at {}: {}",
            most.samples, most.reason, most.newest, most.meaning
        );
        Check::warning("rejections", message, most.hint)
    }));
    Ok(checks)
}

fn open_letters() -> Filter {
    Filter { status: Some(Status::Open), ..Filter::default() }
}

fn secret(config: &Config) -> Check {
    if !config.signing_secrets.is_empty() {
        let count = config.signing_secrets.len();
        return Check::ok(
            "secret",
            format!("{count} signing secret{} configured", if count == 1 { "" } else { "s" }),
        );
    }
    match secret::development_secret(&config.data_dir, false) {
        Ok(Some(_)) => Check::warning(
            "secret",
            "only the development secret: Clerk's webhooks will be refused",
            "set CLERK_WEBHOOK_SIGNING_SECRET to the secret of the endpoint in the Clerk dashboard",
        ),
        Ok(None) => Check::warning(
            "secret",
            "no signing secret: `ingress` will not start, `up` makes a development secret",
            "set CLERK_WEBHOOK_SIGNING_SECRET to the secret of the endpoint in the Clerk dashboard",
        ),
        Err(failure) => Check::failed("secret", failure),
    }
}

/// Asks the ingress with a signature of ours over nothing that counts: its answer tells of secret and clock.
async fn ingress(config: &Config) -> Check {
    let url = front_door(config);
    let Ok(secret) = secret::signing_secret(config) else {
        return Check::warning("ingress", "not asked: there is no secret to sign with", "see above");
    };
    let poster = match Poster::new(&url, &secret) {
        Ok(poster) => poster,
        Err(failure) => return Check::failed("ingress", failure),
    };
    let id = format!("doctor_{}", uuid::Uuid::now_v7().simple());
    debug_assert!(MessageId::parse(&id).is_some());
    let body = format!(
        r#"{{"data":{{}},"object":"event","timestamp":{},"type":"headcount.doctor"}}"#,
        crate::message::now()
    );
    match tokio::time::timeout(Duration::from_secs(10), poster.post(&id, body.into())).await {
        Ok(Ok(status)) if status.is_success() => {
            Check::ok("ingress", format!("{url} takes a signed webhook"))
        }
        Ok(Ok(status)) => {
            let hint = match status.as_u16() {
                401 => "its secret or its clock differs from this machine's",
                503 => "its queue is away: see its log",
                _ => "is it headcount that listens there?",
            };
            Check::failed("ingress", Failure::new(format!("{url} answered {status}")).hint(hint))
        }
        _ => Check::warning(
            "ingress",
            format!("{url} does not answer"),
            "start it: headcount up, or headcount ingress",
        ),
    }
}
