//! Owns `doctor`: checks configuration, files, queue, database, the process on this machine, Clerk's API, secret and clock,
//! and says how to fix what is wrong.
//!
//! Promises to leave no trace in anything that people are alerted by. The ingress is asked with a signed webhook that it
//! answers and neither publishes nor counts ([`crate::message::PROBE`]). The database is asked with one made-up user, who
//! is saved in a transaction that is rolled back.

use std::{path::Path, sync::Arc, time::Duration};

use serde::Serialize;

use crate::{
    app,
    clerk::{
        self,
        made_up::{self, Person},
        secret,
    },
    cli::{
        Listing,
        output::Output,
        post::{Poster, front_door, signing_secret},
        process::{self, Asked},
    },
    config::Config,
    datafile::{EXAMINE_LIMIT, Examined, Leftover},
    failure::Failure,
    message::MessageId,
    ops::status,
    queue::{Depth, Source},
    rejections::{SAMPLES, explain},
    rules::Event,
    store::{
        Class, Incoming, Store, StoreError, Stranger,
        letters::{Filter, Status},
    },
    text::number,
    time::now,
};

mod clerk_api;

/// How long the ingress may take to answer.
const INGRESS_LIMIT: Duration = Duration::from_secs(10);

/// What was checked, and how it is.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    #[serde(rename = "verdict")]
    mark: Mark,
    message: String,
    hints: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mark {
    Ok,
    Warning,
    Failed,
}

impl Check {
    fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self { name, mark: Mark::Ok, message: message.into(), hints: Vec::new() }
    }

    fn warning(name: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, mark: Mark::Warning, message: message.into(), hints: vec![hint.into()] }
    }

    fn failed(name: &'static str, failure: Failure) -> Self {
        Self { name, mark: Mark::Failed, message: failure.message, hints: failure.hints }
    }
}

/// Checks and prints.
///
/// # Errors
/// A check failed; warnings are none.
pub async fn run(args: Listing, config: &Config, output: &mut Output) -> Result<(), Failure> {
    let mut checks = configuration(config);
    checks.extend(files(config));
    // All at once: servers that do not answer are waited for together.
    let (queue, store, process, clerk, ingress) = tokio::join!(
        queue(config),
        store(config),
        process(config),
        clerk_api::checks(config),
        ingress(config)
    );
    checks.extend(queue.into_iter().chain(store).chain(process).chain(clerk));
    checks.extend([secret(config), ingress]);
    if args.json {
        output.json(&checks)?;
    } else {
        for check in &checks {
            let mark = match check.mark {
                Mark::Ok => "ok",
                Mark::Warning => "warning",
                Mark::Failed => "FAILED",
            };
            output.line(format!("{mark:<8} {:<14} {}", check.name, check.message))?;
            for hint in &check.hints {
                output.line(format!("{:<8} {:<14} hint: {hint}", "", ""))?;
            }
        }
    }
    match checks.iter().filter(|check| check.mark == Mark::Failed).count() {
        0 => Ok(()),
        1 => Err(Failure::new("one check failed")),
        failed => Err(Failure::new(format!("{failed} checks failed"))),
    }
}

fn configuration(config: &Config) -> Vec<Check> {
    let warned = config.warnings.iter().map(|warning| {
        Check::warning(
            "configuration",
            warning.as_str(),
            "correct it, or remove it where it is not meant for headcount",
        )
    });
    let split = app::split_table(config)
        .map(|warning| Check::warning("configuration", warning, "see README.md, running at scale"));
    let checks: Vec<Check> = warned.chain(split).collect();
    match checks.is_empty() {
        true => vec![Check::ok("configuration", "every value can be used")],
        false => checks,
    }
}

fn files(config: &Config) -> Option<Check> {
    let (queue, store) = (config.queue().file(), config.store().backend);
    let exists = queue.as_deref().into_iter().chain(store.file()).any(Path::exists);
    match app::exposed(config) {
        Some(exposed) => Some(Check::warning("files", exposed.message, exposed.hint)),
        None => exists.then(|| Check::ok("files", "only their owner reads them")),
    }
}

async fn queue(config: &Config) -> Vec<Check> {
    let queue = match app::look_at_queue(config).await {
        Ok(queue) => queue,
        Err(failure) => return vec![Check::failed("queue", failure)],
    };
    let depths = queue.depths().await;
    let shared = config.queue().is_shared();
    let part = if shared { "broker" } else { "queue" };
    let findings = queue.examine().await;
    let broken = findings.iter().any(|finding| finding.broken);
    let mut checks: Vec<Check> = findings
        .into_iter()
        .map(|finding| match finding.broken {
            true => Check::failed("queue", Failure::new(finding.message).hint(finding.hint)),
            false => Check::warning(part, finding.message, finding.hint),
        })
        .collect();
    match depths {
        // Said once, however often the look at the queue met it.
        Err(error) if checks.iter().any(|check| check.message == error.to_string()) => {}
        Err(error) => checks.insert(0, Check::failed("queue", error.into())),
        // The findings say what does not work: no line above them says that all is well.
        Ok(_) if broken => {}
        Ok(depths) => checks.insert(0, waiting(&format!("{queue:?}"), &depths, shared)),
    }
    queue.close().await;
    checks
}

/// What waits, and for how many workers. Where workers are on other machines, a paused one shows only as missing.
fn waiting(queue: &str, depths: &[Depth], shared: bool) -> Check {
    let (mut waiting, mut dead) = (0, 0);
    for depth in depths {
        let is = |source: Source| depth.queue == source.queue();
        if is(Source::Dead) {
            dead += depth.messages;
        } else if !is(Source::Rejections) {
            waiting += depth.messages;
        }
    }
    let consumers = status::consumers(depths);
    let workers = if consumers == 1 { "worker" } else { "workers" };
    let message = format!("{queue} answers: {waiting} waiting, {dead} dead, {consumers} {workers} consuming");
    match consumers {
        0 if shared || waiting > 0 => Check::warning(
            "queue",
            format!("{message}: every worker is paused, or none is running"),
            "see why in the log of a worker, or at /readyz of its operators' listener; or start one: headcount worker, or headcount up",
        ),
        _ => Check::ok("queue", message),
    }
}

/// What the process on this machine says of itself; nothing where none answers.
async fn process(config: &Config) -> Vec<Check> {
    let process = match process::ask(config).await {
        Asked::Nobody => return Vec::new(),
        Asked::Refused => {
            let message = format!("{} does not tell its state without its token", config.ops_listen);
            let hint = "set HEADCOUNT_OPS_TOKEN to what it is set to there";
            return vec![Check::warning("process", message, hint)];
        }
        Asked::Is(process) => process,
    };
    let at = process.at;
    let mut checks = Vec::new();
    for (part, does, hint) in [
        ("queue", "cannot use its queue", "see its log; it continues by itself once that is fixed"),
        ("store", "cannot use its database", "see its log; it continues by itself once that is fixed"),
        ("worker", "takes no messages", "the worker continues by itself once that is fixed"),
    ] {
        if let Some(why) = process.trouble(part) {
            let failure = Failure::new(format!("the process at {at} {does}: {why}"));
            checks
                .push(Check::failed(if part == "worker" { "worker" } else { "process" }, failure.hint(hint)));
        }
    }
    if process.has("worker") && process.trouble("worker").is_none() {
        checks.push(Check::ok("worker", format!("the worker of the process at {at} takes messages")));
    }
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
    let store = match app::existing_store(config).await {
        Ok(store) => store,
        Err(failure) => return vec![Check::failed("database", failure)],
    };
    let checks = look_into(&store).await;
    store.close().await;
    let mut checks = checks.unwrap_or_else(|error| vec![Check::failed("database", error.into())]);
    let leftover = config.store().backend.file().and_then(Leftover::beside);
    checks.extend(leftover.map(|found| Check::warning("database", found.message, found.hint)));
    checks
}

async fn look_into(store: &Arc<dyn Store>) -> Result<Vec<Check>, StoreError> {
    let read = read_through(store.examine(EXAMINE_LIMIT).await?);
    store.check_schema().await?;
    store.ready().await?;
    let mut checks = vec![match store.rehearse(Arc::new([made_up_user()?])).await {
        Ok(()) => Check::ok("database", format!("{store:?} answers{read}, takes users, and has our schema")),
        Err(error) => Check::warning(
            "database",
            format!("{store:?} answers{read} and has our schema, but does not take a made-up user: {error}"),
            error.hint.unwrap_or_else(|| {
                "check whether a trigger, a policy or a constraint of the application refuses every user"
                    .into()
            }),
        ),
    }];
    checks.extend(store.strangers().await?.into_iter().map(|stranger| {
        let Stranger { role, tables } = stranger;
        let message = format!("the role {role} may read {}", tables.join(", "));
        Check::warning(
            "database",
            format!("{message}: where the schema is served as an API, anybody may"),
            format!("set HEADCOUNT_SCHEMA to a schema that is not served; or REVOKE SELECT ON {} FROM {role}; or enable row level security on them", tables.join(", ")),
        )
    }));
    let open = store.statuses().await?.get(&Status::Open).copied().unwrap_or_default();
    checks.push(match (open, store.groups(&open_letters()).await?.first()) {
        (1.., Some(most)) => Check::warning(
            "dead letters",
            format!("{} open; {} of them: {}", number(open), number(most.letters), most.group),
            "look at them: headcount dead groups; once the cause is fixed: headcount dead replay",
        ),
        _ => Check::ok("dead letters", "none is open"),
    });
    let rejections = explain(&store.newest(SAMPLES).await?, now());
    if rejections.is_empty() {
        checks.push(Check::ok("rejections", "no request was turned away in the last hour"));
    }
    checks.extend(rejections.into_iter().map(|most| {
        let message = format!(
            "{} of the newest samples are {}, the last at {}: {}",
            most.samples, most.reason, most.newest, most.meaning
        );
        Check::warning("rejections", message, most.hint)
    }));
    Ok(checks)
}

/// An event about no real user: saved and rolled back.
fn made_up_user() -> Result<Incoming, StoreError> {
    let fresh_row = uuid::Uuid::now_v7();
    let person = Person::of(format!("user_doctor{}", fresh_row.simple()), now());
    let id = MessageId::of_body(fresh_row.as_bytes());
    let body = person.event("user.created", now());
    let parsed = clerk::parse(&body, &clerk::Known::webhook(&id, now())).map_err(|error| StoreError {
        class: Class::Permanent,
        code: String::new(),
        message: error.detail,
        hint: None,
        source: None,
    })?;
    let message_id = id.as_str().to_owned();
    let event = Event { message_id, change: parsed.change, fresh_row, patience_over: true };
    Ok(Incoming { event, event_type: parsed.event_type, received_at: now() })
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
    match secret::development(&config.data_dir) {
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

/// Asks the ingress with a signed webhook that it does not queue: the answer tells of secret, clock and queue.
async fn ingress(config: &Config) -> Check {
    let url = front_door(config);
    let Ok(secret) = signing_secret(config) else {
        return Check::warning(
            "ingress",
            "not asked: there is no secret to sign with",
            "see the line about the secret",
        );
    };
    let poster = match Poster::new(&url, &secret) {
        Ok(poster) => poster,
        Err(failure) => return Check::failed("ingress", failure),
    };
    let id = format!("doctor_{}", uuid::Uuid::now_v7().simple());
    debug_assert!(MessageId::parse(&id).is_some());
    match tokio::time::timeout(INGRESS_LIMIT, poster.post(&id, made_up::probe(now()).into())).await {
        Ok(Ok(status)) if status.is_success() => {
            Check::ok("ingress", format!("{url} takes a signed webhook"))
        }
        Ok(Ok(status)) => {
            let hint = match status.as_u16() {
                401 => "its secret or its clock differs from this machine's",
                503 => {
                    "it cannot queue a webhook now: its log and /readyz on its operators' listener say why"
                }
                _ => "another program may listen there: compare with HEADCOUNT_LISTEN",
            };
            Check::failed("ingress", Failure::new(format!("{url} answered {status}")).hint(hint))
        }
        Ok(Err(_)) | Err(_) => Check::warning(
            "ingress",
            format!("{url} does not answer"),
            "start it: headcount up, or headcount ingress",
        ),
    }
}
