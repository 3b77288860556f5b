//! Owns the command line: every command's name, arguments and help, and one file per command that has grown beyond a few
//! lines. Promises data on stdout, everything else on stderr, and the exit codes of [`crate::failure::Exit`]. A secret is never an
//! argument: others can read those in the list of processes.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use uuid::Uuid;

use crate::terminal;

pub mod dead;
pub mod demo;
pub mod doctor;
pub mod operations;
pub mod output;
pub mod post;
mod process;
mod progress;
pub mod rejections;
pub mod send;
pub mod status;
pub mod sync;
mod table;
pub mod users;
mod watch;
#[cfg(test)]
mod testing;

/// Keeps an application's users table in step with Clerk.
///
/// Receives Clerk's webhooks, queues them durably, and folds them into one row per user, whatever the order, however
/// often. Without any configuration it runs on files in one directory; AMQP_URL and DATABASE_URL make it scale.
#[derive(Debug, Parser)]
#[command(
    name = "headcount",
    version,
    propagate_version = false,
    max_term_width = 100,
    after_help = "Try it: headcount up --demo\n\n\
                  Exit codes: 0 done, 1 the operation failed, 2 usage or configuration.\n\
                  Configuration: environment, then headcount.toml, then defaults."
)]
pub struct Cli {
    /// Read this file instead of headcount.toml
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything in one process: ingress, worker, operators' pages
    ///
    /// Applies the migrations first. Where no signing secret is configured it makes and keeps a development secret.
    Up(Up),

    /// Run the ingress: verify webhooks and queue them
    Ingress,

    /// Run the API that the application asks: who is this, and that their row exists
    ///
    /// Checks Clerk's session tokens (CLERK_PUBLISHABLE_KEY). With CLERK_SECRET_KEY it makes the row of a user whose webhook has
    /// not come yet.
    Api,

    /// Run the operators' console alone, for a process apart from the workers
    ///
    /// A worker, and `up`, serve it too. It listens on HEADCOUNT_OPS_LISTEN.
    Console,

    /// Run a worker: fold queued webhooks into the users table
    Worker,

    /// Apply the database's migrations (`up` does it itself)
    Migrate,

    /// Make an event, sign it and post it, as Clerk would
    Send(send::Send),

    /// Show queue depths, workers, users, the last webhook, lag and dead letters
    ///
    /// The lag is the time from receipt to commit of the last event. The first line says whether all is well, or what is most wrong.
    Status(Status),

    /// List users, show what happened to one, or grant one a tier
    #[command(subcommand)]
    Users(Users),

    /// Bring the users table in step with Clerk's API
    ///
    /// Reads every user from Clerk, and repairs what differs here: users who are missing, outdated or different, and users who
    /// are gone from Clerk. Ctrl-C loses nothing: the next run goes on where this one stopped. Needs CLERK_SECRET_KEY.
    Sync(sync::Sync),

    /// Look at dead letters, replay, edit or discard them
    #[command(subcommand)]
    Dead(dead::Dead),

    /// List what people did: replays, edits, discards, syncs, granted tiers; the newest first
    Operations(operations::Operations),

    /// Look at requests that the ingress turned away
    #[command(subcommand)]
    Rejections(Rejections),

    /// Check configuration, queue, database, secret and clock, and say how to fix what is wrong
    Doctor(Listing),
}

/// Arguments of `status`.
#[derive(Clone, Copy, Debug, Args)]
pub struct Status {
    /// Show it again and again, until Ctrl-C
    #[arg(long, conflicts_with = "json")]
    pub watch: bool,

    /// How often
    #[arg(long, value_name = "TIME", default_value = "2s", requires = "watch", value_parser = interval)]
    pub every: Duration,

    /// How to print it.
    #[command(flatten)]
    pub listing: Listing,
}

/// A time between two looks: from 100 ms to an hour.
fn interval(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|_| "write it like 2s".to_owned())?;
    let bounds = Duration::from_millis(100)..=Duration::from_secs(3_600);
    if bounds.contains(&time) { Ok(time) } else { Err("it has to be from 100ms to 1h".into()) }
}

/// Arguments of `up`.
#[derive(Debug, Args)]
pub struct Up {
    /// Play a realistic stream of signed webhooks, of which some get lost, and serve a stand-in for Clerk's API
    #[arg(long)]
    pub demo: bool,
}

/// What everything that lists or shows takes.
#[derive(Clone, Copy, Debug, Args)]
pub struct Listing {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The commands about users.
#[derive(Debug, Subcommand)]
pub enum Users {
    /// List users, newest first
    List(UserList),
    /// Show one user, where the tier comes from, and what happened to it
    Show(UserShow),
    /// Grant a user a tier, which outranks every subscription
    ///
    /// It takes the place of what was granted to the user before, and stays with the row when a returning user gets it back.
    Grant(UserGrant),
    /// End what was granted to a user
    ///
    /// The tier then follows from the user's subscription; it is free where HEADCOUNT_BILLING is off.
    Revoke(UserRevoke),
}

/// Arguments of `users list`.
#[derive(Debug, Args)]
pub struct UserList {
    /// Only users whose Clerk id, e-mail address, user name or name contains this
    #[arg(value_name = "TEXT")]
    pub text: Option<String>,

    /// List deleted users too
    #[arg(long)]
    pub deleted: bool,

    /// At most this many
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,

    /// Continue after this user: the last of the previous page (its id is in the first column)
    #[arg(long, value_name = "ID")]
    pub after: Option<Uuid>,

    /// How to print it.
    #[command(flatten)]
    pub listing: Listing,
}

/// Arguments of `users show`.
#[derive(Debug, Args)]
pub struct UserShow {
    /// Our id, a Clerk id (also a former one), or an e-mail address
    #[arg(value_name = "ID")]
    pub reference: String,

    /// How to print it.
    #[command(flatten)]
    pub listing: Listing,
}

/// Arguments of `users grant`.
#[derive(Debug, Args)]
pub struct UserGrant {
    /// Our id, a Clerk id (also a former one), or an e-mail address
    #[arg(value_name = "ID")]
    pub reference: String,

    /// The tier, such as premium_lifetime
    #[arg(value_name = "TIER")]
    pub tier: String,

    /// When it ends: 2027-01-31T12:00:00Z, 2027-01-31 (its midnight in UTC), or after how long: 30d. Without it: never
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,

    /// Why, for whoever asks later
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,

    /// How to print it.
    #[command(flatten)]
    pub listing: Listing,
}

/// Arguments of `users revoke`.
#[derive(Debug, Args)]
pub struct UserRevoke {
    /// Our id, a Clerk id (also a former one), or an e-mail address
    #[arg(value_name = "ID")]
    pub reference: String,

    /// Why, for whoever asks later
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,

    /// How to print it.
    #[command(flatten)]
    pub listing: Listing,
}

/// The commands about rejected requests.
#[derive(Debug, Subcommand)]
pub enum Rejections {
    /// List samples of rejected requests, the newest first, and what they mean
    List(RejectionList),
}

/// Arguments of `rejections list`.
#[derive(Debug, Args)]
pub struct RejectionList {
    /// At most this many
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,

    /// How to print it.
    #[command(flatten)]
    pub listing: Listing,
}

/// This process's arguments. Asking for help, or wrong arguments, end it here.
pub fn parse() -> Cli {
    Cli::try_parse().unwrap_or_else(|error| {
        // Once more, with arguments that are safe to show in the error, which stays the same.
        let quotable = std::env::args_os().map(|word| terminal::safe(&word.to_string_lossy()).into_owned());
        Cli::try_parse_from(quotable).err().unwrap_or(error).exit()
    })
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;
    use crate::failure::Exit;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_and_an_about() {
        fn walk(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&Cli::command());
    }

    #[test]
    fn a_placeholder_in_a_help_text_is_not_taken_for_a_line_break() {
        let help = parse("headcount send --help").unwrap_err().to_string();
        assert!(help.contains("--user 'user_{i}' --email 'u{i}@example.com'"), "{help}");
    }

    #[test]
    fn the_documented_lines_are_understood() {
        for line in [
            "headcount up",
            "headcount up --demo",
            "headcount --config a.toml ingress",
            "headcount worker --config a.toml",
            "headcount migrate",
            "headcount send user.created",
            "headcount send user.updated --user user_1 --email a@example.com --url http://127.0.0.1:1/x",
            "headcount send user.created --count 100 --rate 50 --json",
            "headcount send --file body.json",
            "headcount send session.created --file -",
            "headcount status --json",
            "headcount status --watch",
            "headcount status --watch --every 500ms",
            "headcount users list ada --deleted --limit 5 --json",
            "headcount users show user_1 --json",
            "headcount users grant user_1 premium_lifetime",
            "headcount users grant user_1 pro --until 30d --note because --json",
            "headcount users revoke user_1 --note oops --json",
            "headcount doctor --json",
            "headcount dead groups --json",
            "headcount dead groups --status all --since 2h",
            "headcount dead list --type user.created --reason rejected --user user_1 --text x --since 2h --until 1h",
            "headcount dead list msg_1 0190c2a4-7b1e-7c3d-9a51-2f6e8d4b7a10 --limit 5 --after x --json",
            "headcount dead show msg_1 --json",
            "headcount dead replay msg_1",
            "headcount dead replay msg_1 msg_2 --yes --note because",
            "headcount dead replay --group invalid_payload --rate 100/s --limit 10 --dry-run",
            "headcount dead replay --all -y",
            "headcount dead replay --group x --ramp --halt-at 5% --yes",
            "headcount operations",
            "headcount operations --kind replay,grant --who ada --since 7d --limit 5 --after x --json",
            "headcount dead edit msg_1",
            "headcount dead edit msg_1 --file - --yes",
            "headcount dead edit msg_1 --file body.json --dry-run",
            "headcount dead discard --reason rejected --note test-data",
            "headcount dead discard --reason rejected --dry-run",
            "headcount dead restore msg_1 --note oops",
            "headcount dead export --status all --limit 10 --after x",
            "headcount rejections list --limit 5 --json",
            "headcount sync",
            "headcount sync --dry-run --verbose --exit-code --json",
            "headcount sync user_1 ada@example.com --revive --no-wait",
            "headcount sync --no-deletions --rate 10 --adopt-instance --yes",
            "headcount sync --allow-deletions 100",
        ] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
    }

    #[test]
    fn wrong_usage_is_exit_code_2_and_help_is_0() {
        for line in [
            "headcount",
            "headcount launch",
            "headcount send",
            "headcount send user.created --count 0",
            "headcount send user.created --rate 0",
            "headcount send user.created --rate nan",
            "headcount send a\"b",
            "headcount send user.created --file x --user user_1",
            "headcount users list --limit 0",
            "headcount users list --after x",
            "headcount users grant user_1",
            "headcount users revoke",
            "headcount send user.created --secret whsec_x",
            "headcount status --every 2s",
            "headcount status --watch --json",
            "headcount status --watch --every 1ms",
            "headcount dead",
            "headcount dead list --status dead",
            "headcount dead list --limit 0",
            "headcount dead replay --all msg_1",
            "headcount dead replay --all --reason rejected",
            "headcount dead replay --rate fast --all",
            "headcount dead replay --limit 0 --all",
            "headcount dead replay --all --halt-at 5%",
            "headcount dead replay --all --ramp --halt-at 200%",
            "headcount operations --limit 0",
            "headcount dead discard msg_1",
            "headcount dead edit",
            "headcount rejections",
            "headcount sync --exit-code",
            "headcount sync --rate 0",
            "headcount sync user_1 --no-deletions",
            "headcount sync --no-deletions --allow-deletions 1",
        ] {
            assert_eq!(parse(line).expect_err(line).exit_code(), i32::from(Exit::Usage.code()), "{line}");
        }
        for (line, kind) in [
            ("headcount --help", ErrorKind::DisplayHelp),
            ("headcount send --help", ErrorKind::DisplayHelp),
            ("headcount --version", ErrorKind::DisplayVersion),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!((error.kind(), error.exit_code()), (kind, 0), "{line}");
        }
    }
}
