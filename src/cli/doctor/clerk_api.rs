//! Owns what `doctor` says about Clerk: the key and its instance, the clocks, whose webhooks come in, what the watch last said, and
//! whose session tokens count.
//! Promises to take no longer than [`LIMIT`] for Clerk's API, to change nothing, and never to print the key.

use std::{sync::Arc, time::Duration};

use super::Check;
use crate::{
    app,
    clerk::{
        api::{Api, ApiError, Instance, clock_hint, clock_says},
        token::Keys,
    },
    config::Config,
    failure::Failure,
    ops::sync::{Notice, Watch, watch},
    store::{Store, StoreError, sync::InstanceRow},
    sync::{SyncError, instances::TWO},
    time::{ago, now},
};

/// How long Clerk's API may take to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Webhooks of another instance that came in so long ago are past, in milliseconds.
const PAST: i64 = 24 * 3_600_000;

/// A change that the table lacks for less than this is being healed, in seconds.
const LATE: u64 = 300;

/// Checks all of it.
pub(super) async fn checks(config: &Config) -> Vec<Check> {
    let (answer, known, keys) = tokio::join!(ask(config), known(config), keys(config));
    // Where the database does not answer, the line about the database says so.
    let (instances, watch) = known.unwrap_or_default();
    let mut checks = key(config, answer, &instances, watch.as_ref());
    checks.extend(others(config, &instances));
    let elsewhere = watch.as_ref().is_some_and(|watch| watch.watched);
    if elsewhere || (config.clerk_secret_key.is_some() && !config.watch.is_zero()) {
        checks.extend(watched(watch));
    }
    checks.extend(tokens(config, keys, &instances));
    checks
}

/// The keys of session tokens: their ids where they are published, nothing where one was given.
async fn keys(config: &Config) -> Option<Result<Option<Vec<String>>, String>> {
    let keys = Keys::new(&config.tokens()?.keys);
    Some(match keys {
        Ok(keys) => keys.published().await.transpose(),
        Err(problem) => Err(problem),
    })
}

/// Whose session tokens the application's API takes.
fn tokens(
    config: &Config,
    keys: Option<Result<Option<Vec<String>>, String>>,
    instances: &[InstanceRow],
) -> Option<Check> {
    let issuer = config.tokens()?.terms.issuer;
    let learned = instances.iter().find(|row| row.owner).map(|row| row.instance_id.as_str());
    let table = config.clerk_instance.as_deref().or(learned);
    Some(match keys? {
        Err(why) => Check::failed(
            "tokens",
            Failure::new(format!("the keys of session tokens of {issuer} cannot be read: {why}")).hint(
                "check CLERK_PUBLISHABLE_KEY and this machine's way to that host, or set CLERK_JWT_KEY",
            ),
        ),
        Ok(None) => Check::ok(
            "tokens",
            format!("session tokens of {issuer} count where the key in CLERK_JWT_KEY has signed them"),
        ),
        // Clerk names an instance's key after the instance.
        Ok(Some(ids)) => match table
            .filter(|table| ids.iter().all(|id| id.starts_with("ins_") && id != table))
        {
            Some(table) => Check::warning(
                "tokens",
                format!(
                    "session tokens of {issuer} count, whose key is of {}; the table belongs to {table}",
                    ids.join(", ")
                ),
                "take CLERK_PUBLISHABLE_KEY and CLERK_SECRET_KEY from one instance's page in the Clerk dashboard",
            ),
            None => Check::ok("tokens", format!("session tokens of {issuer} count; its keys can be read")),
        },
    })
}

/// What Clerk's API answered.
struct Answer {
    instance: Instance,
    clock_offset: Option<i64>,
}

async fn ask(config: &Config) -> Option<Result<Answer, Failure>> {
    let settings = config.clerk_api(Duration::ZERO)?;
    let asked = async {
        let api = Api::new(&settings)?;
        let instance = api.instance().await?;
        Ok::<_, ApiError>(Answer { instance, clock_offset: api.clock_offset() })
    };
    Some(match tokio::time::timeout(LIMIT, asked).await {
        Ok(answer) => answer.map_err(Failure::from),
        Err(_) => Err(Failure::new(format!("Clerk's API gives no answer within {} s", LIMIT.as_secs()))
            .hint("check CLERK_API_URL and this machine's way to it")),
    })
}

async fn known(config: &Config) -> Option<(Vec<InstanceRow>, Option<Watch>)> {
    let store = app::existing_store(config).await.ok()?;
    let read = read(&store).await;
    store.close().await;
    read.ok()
}

async fn read(store: &Arc<dyn Store>) -> Result<(Vec<InstanceRow>, Option<Watch>), StoreError> {
    store.check_schema().await?;
    Ok((store.instances().await?, watch(store).await?))
}

fn key(
    config: &Config,
    answer: Option<Result<Answer, Failure>>,
    instances: &[InstanceRow],
    watch: Option<&Watch>,
) -> Vec<Check> {
    let Answer { instance, clock_offset } = match answer {
        None if watch.is_some_and(|watch| watch.watched) => {
            let elsewhere = "no CLERK_SECRET_KEY here, so the key is not checked; another process has one";
            return vec![Check::ok("clerk", elsewhere)];
        }
        None => {
            let off = "no CLERK_SECRET_KEY: lost webhooks are neither noticed nor healed, and headcount sync is off";
            return vec![Check::ok("clerk", off)];
        }
        Some(Err(failure)) => return vec![Check::failed("clerk", failure)],
        Some(Ok(answer)) => answer,
    };
    let kind = instance.environment.map(|environment| format!("{environment} ")).unwrap_or_default();
    let named = format!("the key is of the {kind}instance {}", instance.id);
    let setting = config.clerk_instance.as_deref();
    let learned = instances.iter().find(|row| row.owner).map(|row| row.instance_id.as_str());
    let is_other = |table: &&str| *table != instance.id;
    let by_setting = setting.is_some_and(|table| table != instance.id);
    let first = match setting.filter(is_other).or(learned.filter(is_other)) {
        Some(table) => {
            let (key, table) = (instance.id, table.to_owned());
            Check::failed("clerk", SyncError::OtherInstance { key, table, by_setting }.into())
        }
        None if setting.or(learned).is_some() => {
            Check::ok("clerk", format!("{named}, which the table belongs to"))
        }
        None => Check::ok("clerk", format!("{named}; the table belongs to no instance yet")),
    };
    let clock = clock_offset.map(|offset| Check::warning("clock", clock_says(offset), clock_hint(offset)));
    std::iter::once(first).chain(clock).collect()
}

/// Webhooks of another instance than the table's.
fn others(config: &Config, instances: &[InstanceRow]) -> Option<Check> {
    let comes = |row: &&InstanceRow| row.last_webhook_at.is_some_and(|at| now().saturating_sub(at) < PAST);
    let other = instances.iter().filter(|row| !row.owner).find(comes)?;
    let owner = instances.iter().find(|row| row.owner)?;
    let message = format!(
        "webhooks of two Clerk instances came in during the last day: of {}, which the table belongs to, and of {}",
        owner.instance_id, other.instance_id
    );
    let hint = match &config.clerk_instance {
        Some(_) => "the other's are buried; remove headcount's endpoint from it in the Clerk dashboard",
        None => TWO,
    };
    Some(Check::warning("instances", message, hint))
}

/// What the watch last said.
fn watched(watch: Option<Watch>) -> Vec<Check> {
    let nobody = || {
        Check::warning(
            "watch",
            "no process watches Clerk: lost webhooks are not noticed",
            "start a worker with CLERK_SECRET_KEY: headcount worker, or headcount up",
        )
    };
    let Some(watch) = watch else { return vec![nobody()] };
    let Watch { watched, by, behind_seconds, looked_at, alarm, error, refused, .. } = watch;
    let has_error = error.is_some();
    let failed = |notice: Notice| {
        let failure = Failure::new(format!("since {}: {}", notice.since, notice.message));
        Check::failed("watch", failure.hint(notice.hint))
    };
    let mut checks: Vec<Check> = alarm.into_iter().chain(error).chain(refused).map(failed).collect();
    let at = looked_at.map(|at| format!(" at {at}")).unwrap_or_default();
    match behind_seconds {
        // A process that cannot watch rests for minutes, and says why.
        _ if has_error => {
            checks.push(Check::warning(
                "watch",
                match at.is_empty() {
                    true => "Clerk was never looked at".to_owned(),
                    false => format!("Clerk was last looked at{at}"),
                },
                "mend what keeps it from being looked at: see above",
            ));
        }
        _ if !watched => checks.push(nobody()),
        Some(0) => checks.push(Check::ok("watch", format!("in step with Clerk{at}, says the {by}"))),
        Some(seconds) if seconds < LATE => {
            checks.push(Check::ok("watch", format!("{seconds} s behind Clerk{at}, says the {by}")));
        }
        Some(seconds) => {
            let behind = ago(0, i64::try_from(seconds).unwrap_or_default() * 1000);
            checks.push(Check::warning(
                "watch",
                format!("the table lacks a change that Clerk has had for {behind}, says the {by}"),
                "it is healed by itself once a worker takes messages; else look for the user's dead letter: headcount dead list",
            ));
        }
        None => {
            let not_yet = format!("Clerk is watched by the {by}, which has not compared yet");
            checks.push(Check::ok("watch", not_yet));
        }
    }
    checks
}
