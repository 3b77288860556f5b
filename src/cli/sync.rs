//! Owns `sync`: brings the table in step with Clerk's API, all of it or single users, and prints what was found. Promises that
//! Ctrl-C loses nothing, and that no value of a user is printed.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;
use uuid::Uuid;

use crate::{
    app,
    clerk::api::{Api, Instance},
    cli::{
        Listing,
        dead::{ask, is_interactive},
        output::{Output, remark},
        progress,
    },
    config::Config,
    failure::Failure,
    store::sync::{Counts, Holder},
    sync::{self, Difference, One, Order, PATIENCE, Report, Told, owner::Unknown},
    text::number,
    time::rfc3339,
};

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
    let queue = app::open_queue(config).await?;
    let sync = sync::Sync {
        api,
        store: Arc::clone(&store),
        queue: Arc::clone(&queue),
        grace: config.watch_grace,
        instance: config.clerk_instance.clone(),
        holder: Holder::of("headcount sync"),
    };
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
fn agreed(instance: &Instance) -> bool {
    let environment = instance.environment.as_deref().unwrap_or("unknown environment");
    remark(format!(
        "This table belongs to no Clerk instance yet. The key is of {} ({environment}).",
        instance.id
    ));
    // A terminal that cannot be asked has not agreed.
    ask("Read its users into this table? [y/N] ").unwrap_or(false)
}

fn unknown(args: &Sync) -> Unknown<'static> {
    match (args.adopt_instance, args.yes) {
        (adopt, _) if args.dry_run => Unknown::Look { adopt },
        (true, _) => Unknown::Adopt,
        (false, yes) if yes || !is_interactive() => Unknown::Ask(&|_| true),
        (false, _) => Unknown::Ask(&agreed),
    }
}

async fn all(args: &Sync, sync: &sync::Sync, output: &mut Output) -> Result<(), Failure> {
    let stop =
        app::stop_signal().map_err(|error| Failure::new(format!("signals cannot be heard: {error}")))?;
    let teller = Teller::new(args.verbose);
    let report = sync.run(&order(args), unknown(args), &|told| teller.tell(told), &stop).await;
    teller.finish();
    let report = report?;
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
        print(&report, output)?;
    }
    differs(args, differing(&report.counts))
}

/// Users who differ or could not be compared.
fn differing(counts: &Counts) -> u64 {
    counts.missing + counts.outdated + counts.different + counts.gone + counts.buried_alive + counts.failed
}

fn differs(args: &Sync, differing: u64) -> Result<(), Failure> {
    match args.exit_code && differing > 0 {
        true => Err(Failure::new(match differing {
            1 => "one user differs".to_owned(),
            users => format!("{} users differ", number(users)),
        })
        .hint("bring them in step: headcount sync")),
        false => Ok(()),
    }
}

fn print(report: &Report, output: &mut Output) -> Result<(), Failure> {
    let Report { counts, dry_run, .. } = report;
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
    for note in &report.notes {
        output.line(format!("note            {note}"))?;
    }
    Ok(())
}

async fn some(args: &Sync, sync: &sync::Sync, output: &mut Output) -> Result<(), Failure> {
    let stop =
        app::stop_signal().map_err(|error| Failure::new(format!("signals cannot be heard: {error}")))?;
    let (instance, found) = sync.some(&args.users, &order(args), unknown(args), &stop).await?;
    if args.listing.json {
        let counts = counts(&found);
        let (run, users, notes) = (None, Some(&found[..]), &[][..]);
        output.json(&Whole { run, instance: &instance, counts, dry_run: args.dry_run, users, notes })?;
    } else {
        for one in &found {
            output.line(line(one, args.dry_run))?;
        }
    }
    if found.iter().any(One::is_under_way) {
        remark("what was published is not applied yet: see headcount status");
    }
    if found.iter().any(One::has_failed) {
        return Err(Failure::new("not every user could be brought in step: see above"));
    }
    let unknown = found.iter().filter(|one| one.clerk_id.is_none()).count();
    if unknown > 0 {
        return Err(Failure::new("neither Clerk nor this table knows such a user")
            .hint("give a Clerk id (user_…), our id, or an e-mail address"));
    }
    differs(args, found.iter().filter(|one| one.differs()).count() as u64)
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
    format!("{clerk_id}: {standing}{}{done}", updated.unwrap_or_default())
}

fn counts(found: &[One]) -> Counts {
    use crate::rules::users::Standing;
    let mut counts = Counts::default();
    for one in found {
        counts.clerk += u64::from(one.updated_at.is_some());
        counts.failed += u64::from(one.problem.is_some() && one.standing.is_none());
        counts.repaired += u64::from(one.outcome.is_some() && one.differs());
        match &one.standing {
            None => {}
            Some(Difference::Gone) => counts.gone += 1,
            Some(Difference::Row(Standing::InStep { .. })) => counts.in_step += 1,
            Some(Difference::Row(Standing::Missing)) => counts.missing += 1,
            Some(Difference::Row(Standing::Outdated)) => counts.outdated += 1,
            Some(Difference::Row(Standing::Different(_))) => counts.different += 1,
            Some(Difference::Row(Standing::BuriedAlive)) => counts.buried_alive += 1,
        }
    }
    counts
}

/// What holds a run up is said again after so long.
const SAID_AGAIN: Duration = Duration::from_secs(30);

/// Shows on stderr how far a run is: a bar on a terminal, and lines for what matters.
struct Teller {
    verbose: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bar: Option<ProgressBar>,
    phase: &'static str,
    /// What holds the run up, without its numbers, and when it was said.
    held_up: Option<(String, Instant)>,
}

impl Teller {
    fn new(verbose: bool) -> Self {
        Self { verbose, state: Mutex::default() }
    }

    fn tell(&self, told: Told) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match told {
            Told::Resumed(began) => {
                state.say(format!("going on with the sync that began at {}", rfc3339(began)));
            }
            Told::Read { users, of } => state.at("reading", users, of),
            Told::Searching(rows) => state.at("searching for users who are gone", rows, 0),
            Told::Applying(left) => state.at("waiting until all is applied", 0, left),
            Told::HeldUp(why) => {
                let kind: String = why.chars().filter(|c| !c.is_ascii_digit()).collect();
                let said = state.held_up.as_ref();
                if said.is_none_or(|(said, at)| *said != kind || at.elapsed() > SAID_AGAIN) {
                    state.say(why);
                    state.held_up = Some((kind, Instant::now()));
                }
            }
            Told::Differs { clerk_id, difference } if self.verbose => {
                state.say(format!("{clerk_id}: {difference}"))
            }
            Told::Differs { .. } => {}
            Told::Failed { clerk_id, why } => {
                state
                    .say(format!("{}: {why}", clerk_id.as_deref().unwrap_or("a user without a readable id")));
            }
        }
    }

    fn finish(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl State {
    fn say(&self, line: String) {
        match &self.bar {
            Some(bar) => bar.suspend(|| remark(line)),
            None => remark(line),
        }
    }

    fn at(&mut self, phase: &'static str, done: u64, of: u64) {
        if self.phase != phase {
            if let Some(bar) = self.bar.take() {
                bar.finish_and_clear();
            }
            self.phase = phase;
            self.bar = Some(progress::bar(of.max(2)));
            self.say(phase.to_owned());
        }
        if let Some(bar) = &self.bar {
            bar.set_length(of.max(done).max(1));
            bar.set_position(done);
        }
    }
}
