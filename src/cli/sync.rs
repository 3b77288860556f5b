//! Owns `sync`: brings the table in step with Clerk's API, all of it or single users, and prints what was found. Promises that
//! Ctrl-C loses nothing, and that no value of a user is printed.

use std::sync::Arc;

use clap::Args;
use futures_util::{
    FutureExt,
    future::{BoxFuture, ready},
};
use serde::Serialize;
use uuid::Uuid;

use self::teller::Teller;
use crate::{
    app,
    clerk::api::{Api, Instance},
    cli::{
        Listing,
        dead::{asked, is_interactive},
        output::{Output, remark},
    },
    config::Config,
    failure::Failure,
    queue::{Absent, Queue},
    store::sync::Counts,
    sync::{self, Difference, One, Order, PATIENCE, Report, owner::Unknown},
    text::number,
    time::rfc3339,
};

mod teller;

/// Arguments of `sync`.
#[derive(Debug, Args)]
pub struct Sync {
    /// Only these users: Clerk ids, our ids, or e-mail addresses. Without any: every user
    #[arg(value_name = "USER")]
    pub users: Vec<String>,

    /// Change nothing, only report what differs
    #[arg(long)]
    pub dry_run: bool,

    /// Name each user who differs, and the columns
    #[arg(long)]
    pub verbose: bool,

    /// Do not search for users who are gone from Clerk
    #[arg(long, conflicts_with = "users")]
    pub no_deletions: bool,

    /// Let this run delete up to so many users (otherwise 1 % of the live ones, at least 3)
    #[arg(long, value_name = "N", conflicts_with_all = ["users", "no_deletions"])]
    pub allow_deletions: Option<u64>,

    /// Let users live again who are deleted here and live in Clerk
    #[arg(long)]
    pub revive: bool,

    /// Ask Clerk at most so many times per second (otherwise half of its quota)
    #[arg(long, value_name = "N", value_parser = rate)]
    pub rate: Option<f64>,

    /// Do not wait until what was published is applied
    #[arg(long)]
    pub no_wait: bool,

    /// With --dry-run: end with exit code 1 if something differs
    #[arg(long, requires = "dry_run")]
    pub exit_code: bool,

    /// Let the table belong to the key's Clerk instance from now on, whoever it belonged to
    #[arg(long)]
    pub adopt_instance: bool,

    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,

    /// How to print it.
    #[command(flatten)]
    pub listing: Listing,
}

fn rate(text: &str) -> Result<f64, String> {
    let text = text.trim_end_matches("/s");
    let rate: f64 = text.parse().map_err(|_| "write a number of requests per second".to_owned())?;
    if (0.01..=1000.0).contains(&rate) {
        Ok(rate)
    } else {
        Err("write a number from 0.01 to 1000".to_owned())
    }
}

/// The whole report as JSON.
#[derive(Serialize)]
struct Whole<'r> {
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<Uuid>,
    instance: &'r str,
    #[serde(flatten)]
    counts: Counts,
    dry_run: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    users: Option<&'r [One]>,
    notes: &'r [String],
}

/// Runs it.
///
/// # Errors
/// It could not finish; with `--exit-code`, something differs.
pub async fn run(args: Sync, config: &Config, output: &mut Output) -> Result<(), Failure> {
    let Some(mut settings) = config.clerk_api(PATIENCE) else {
        return Err(Failure::usage("CLERK_SECRET_KEY is not set: without it Clerk's API cannot be read")
            .hint(
                "copy the secret key from the page of API keys in the Clerk dashboard; it starts with sk_",
            ));
    };
    settings.rate = args.rate;
    let api = Api::new(&settings)?;
    let store = app::existing_store(config).await?;
    store.check_schema().await?;
    let queue: Arc<dyn Queue> = match args.dry_run {
        true => Arc::new(Absent),
        false => app::existing_queue(config).await?,
    };
    let sync = app::in_step(config, api, &store, &queue, "headcount sync");
    let result = if args.users.is_empty() {
        all(&args, &sync, output).await
    } else {
        some(&args, &sync, output).await
    };
    tokio::join!(queue.close(), store.close());
    result
}

fn order(args: &Sync) -> Order {
    Order {
        dry_run: args.dry_run,
        deletions: !args.no_deletions,
        allow_deletions: args.allow_deletions,
        revive: args.revive,
        wait: !args.no_wait,
        ..Order::by("headcount sync")
    }
}

/// What is done where nobody has said yet whose the table is.
fn agreed(instance: &Instance) -> BoxFuture<'static, bool> {
    let environment = instance.environment.as_deref().unwrap_or("unknown environment");
    remark(format!(
        "This table belongs to no Clerk instance yet. The key is of {} ({environment}).",
        instance.id
    ));
    // A terminal that cannot be asked has not agreed.
    asked("Read its users into this table? [y/N] ").map(|agreed| agreed.unwrap_or(false)).boxed()
}

fn unknown(args: &Sync) -> Unknown<'static> {
    match (args.adopt_instance, args.yes) {
        (adopt, _) if args.dry_run => Unknown::Look { adopt },
        (true, _) => Unknown::Adopt,
        (false, yes) if yes || !is_interactive() => Unknown::Ask(&|_| ready(true).boxed()),
        (false, _) => Unknown::Ask(&agreed),
    }
}

async fn all(args: &Sync, sync: &sync::Sync, output: &mut Output) -> Result<(), Failure> {
    let teller = Teller::new(args.verbose);
    let report = teller
        .beside(async |stop| sync.run(&order(args), unknown(args), &|told| teller.tell(told), stop).await)
        .await?;
    if args.listing.json {
        output.json(&Whole {
            run: Some(report.run),
            instance: &report.instance,
            counts: report.counts,
            dry_run: report.dry_run,
            users: None,
            notes: &report.notes,
        })?;
    } else {
        print(&report, args.no_wait, output)?;
    }
    let Report { counts, under_way, subscriptions, .. } = report;
    if under_way > 0 && !args.no_wait {
        let left = changes(under_way);
        return Err(Failure::new(format!("{left} published, and not applied"))
            .hint("see headcount status, and run headcount sync again once workers keep up"));
    }
    if counts.failed > 0 {
        return Err(Failure::new(format!("{} could not be brought in step", users(counts.failed)))
            .hint("see above: the others are; headcount sync USER tells more of one"));
    }
    let Some(subscriptions) = subscriptions else {
        return Err(Failure::new("subscriptions could not be compared: see the note above")
            .hint("turn billing on in Clerk, or unset HEADCOUNT_BILLING; users were compared all the same"));
    };
    differs(args, &counts, subscriptions)
}

fn users(users: u64) -> String {
    match users {
        1 => "one user".to_owned(),
        users => format!("{} users", number(users)),
    }
}

fn changes(changes: u64) -> String {
    match changes {
        1 => "one change was".to_owned(),
        changes => format!("{} changes were", number(changes)),
    }
}

fn differs(args: &Sync, counts: &Counts, subscriptions: u64) -> Result<(), Failure> {
    let to_repair = counts.missing + counts.outdated + counts.different + counts.gone;
    if args.exit_code && to_repair + counts.buried_alive == 0 && subscriptions > 0 {
        return Err(Failure::new(format!("the subscriptions of {} differ", users(subscriptions)))
            .hint("bring them in step: headcount sync"));
    }
    let differing = to_repair + counts.buried_alive;
    if !args.exit_code || differing == 0 {
        return Ok(());
    }
    let verb = if differing == 1 { "differs" } else { "differ" };
    let failure = Failure::new(format!("{} {verb}", users(differing)));
    Err(match (to_repair, counts.buried_alive) {
        (0, _) => failure.hint("if they are to live again here: headcount sync --revive"),
        (_, 0) => failure.hint("bring them in step: headcount sync"),
        (..) => {
            failure.hint("bring them in step: headcount sync, with --revive for those who are buried alive")
        }
    })
}

fn print(report: &Report, no_wait: bool, output: &mut Output) -> Result<(), Failure> {
    let Report { counts, dry_run, under_way, .. } = report;
    output.line(format!("instance        {}", report.instance))?;
    output.line(format!("in Clerk        {}", number(counts.clerk)))?;
    output.line(format!("in step         {}", number(counts.in_step)))?;
    for (name, users, meaning) in [
        ("missing", counts.missing, "in Clerk, and not here"),
        ("outdated", counts.outdated, "Clerk has a newer version"),
        ("different", counts.different, "the same version, and other values"),
        ("gone", counts.gone, "live here, and not in Clerk any more"),
        ("buried alive", counts.buried_alive, "deleted here, and live in Clerk: see --revive"),
        ("failed", counts.failed, "could not be read or repaired"),
    ] {
        let meaning = if users > 0 { format!("  ({meaning})") } else { String::new() };
        output.line(format!("{name:<15} {}{meaning}", number(users)))?;
    }
    match dry_run {
        true => output.line("repaired        nothing: this was a dry run")?,
        false => output.line(format!("repaired        {}", number(counts.repaired)))?,
    }
    if no_wait && *under_way > 0 {
        output.line(format!("published       {}  (not waited for)", number(*under_way)))?;
    }
    for note in &report.notes {
        output.line(format!("note            {note}"))?;
    }
    Ok(())
}

async fn some(args: &Sync, sync: &sync::Sync, output: &mut Output) -> Result<(), Failure> {
    let teller = Teller::new(args.verbose);
    let (instance, found) = teller
        .beside(async |stop| {
            sync.some(&args.users, &order(args), unknown(args), &|told| teller.tell(told), stop).await
        })
        .await?;
    let counts = counts(&found);
    if args.listing.json {
        let (run, users, notes) = (None, Some(&found[..]), &[][..]);
        output.json(&Whole { run, instance: &instance, counts, dry_run: args.dry_run, users, notes })?;
    } else {
        for one in &found {
            output.line(line(one, args.dry_run))?;
        }
    }
    if found.iter().any(One::is_under_way) && !args.no_wait {
        return Err(Failure::new("what was published is not applied yet")
            .hint("see headcount status: it tells whether a worker takes messages"));
    }
    if found.iter().any(One::has_failed) {
        return Err(Failure::new("not every user could be brought in step: see above"));
    }
    let unknown = found.iter().filter(|one| one.clerk_id.is_none()).count();
    if unknown > 0 {
        return Err(Failure::new("neither Clerk nor this table knows such a user")
            .hint("give a Clerk id (user_…), our id, or an e-mail address"));
    }
    let otherwise = found.iter().filter(|one| one.pays_otherwise()).count();
    differs(args, &counts, otherwise as u64)
}

fn line(one: &One, dry_run: bool) -> String {
    let Some(clerk_id) = &one.clerk_id else { return format!("{}: unknown", one.user) };
    let standing = one.standing.as_ref().map_or_else(|| "not compared".to_owned(), ToString::to_string);
    let updated = one.updated_at.map(|at| format!(" (Clerk's version is of {})", rfc3339(at)));
    let done = match (&one.problem, one.outcome) {
        (Some(problem), _) => format!("; {problem}"),
        (None, Some(outcome)) => format!("; {}", outcome.as_str()),
        (None, None) if one.is_under_way() => "; published".to_owned(),
        (None, None) if dry_run && one.differs() => "; nothing was changed".to_owned(),
        (None, None) => String::new(),
    };
    let paid = one.subscription.as_ref().map(|paid| match (paid.differs, paid.outcome) {
        (false, _) => "; subscription in step".to_owned(),
        (true, Some(outcome)) => format!("; subscription {}", outcome.as_str()),
        (true, None) if dry_run => "; subscription differs".to_owned(),
        (true, None) => "; subscription published".to_owned(),
    });
    format!("{clerk_id}: {standing}{}{done}{}", updated.unwrap_or_default(), paid.unwrap_or_default())
}

fn counts(found: &[One]) -> Counts {
    let mut counts = Counts::default();
    for one in found {
        counts.clerk += u64::from(one.updated_at.is_some());
        counts.failed += u64::from(one.has_failed());
        counts.repaired += u64::from(one.outcome.is_some() && one.differs());
        match &one.standing {
            Some(Difference::Gone) => counts.gone += 1,
            Some(Difference::Row(standing)) => counts.note(standing),
            Some(Difference::Unlisted | Difference::Deleted | Difference::Subscription) | None => {}
        }
    }
    counts
}
