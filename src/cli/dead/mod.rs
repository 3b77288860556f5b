//! Owns `dead`: the arguments of the commands about dead letters, and what the commands share. What they do is in
//! [`crate::letters`], so that the API does the same.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    sync::Arc,
};

use clap::{ArgGroup, Args, Subcommand, ValueEnum};

use crate::{
    app,
    cli::{Listing, output::Output},
    config::Config,
    failure::Failure,
    letters::select::{SelectError, Selection},
    store::letters::{Actor, LetterDetail, Letters, Status},
    terminal,
    text::clean,
};

mod act;
mod edit;
mod list;

/// The commands about dead letters.
#[derive(Debug, Subcommand)]
pub enum Dead {
    /// Count letters by cause (group), the most frequent first
    Groups(Groups),
    /// List letters, the last to die first
    List(List),
    /// Show one letter: its headers, its body and its history
    Show(Show),
    /// Send letters back to the workers
    ///
    /// Only open letters are sent. Each replay begins by sending again what an earlier replay of the same letters left
    /// unfinished. Ctrl-C is safe: it finishes the few that are on their way, and says where the others are. Afterwards the
    /// command waits up to 5 seconds to tell what became of the letters. If the command is killed, a worker goes on with the replay.
    Replay(Replay),
    /// Mend a letter's body and send it back, once
    ///
    /// Opens $VISUAL or $EDITOR. What a worker would not accept is not sent. A body of a type that workers ignore, or
    /// about another user, is warned of, and sent only after a yes or with --yes.
    Edit(Edit),
    /// Set open letters aside, with a note that says why
    Discard(Discard),
    /// Make discarded letters open again
    Restore(Restore),
    /// Write letters whole as JSON lines
    Export(Export),
}

/// The letters that are meant: those that all conditions hold for.
#[derive(Clone, Debug, Default, Args)]
pub struct Select {
    /// Only these letters: their ids or message ids
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,

    /// Only of this group: its id, or its whole name, as `dead groups` prints them
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,

    /// Only those that died for this reason: invalid_payload, rejected, retries_exhausted, crash_loop, unroutable
    #[arg(long, value_name = "REASON")]
    pub reason: Option<String>,

    /// Only of this event type, such as user.updated
    #[arg(long = "type", value_name = "TYPE")]
    pub event_type: Option<String>,

    /// Only about this Clerk id
    #[arg(long, value_name = "CLERK_ID")]
    pub user: Option<String>,

    /// Only those whose detail or message id contains this
    #[arg(long, value_name = "TEXT")]
    pub text: Option<String>,

    /// Only those that died at or after this time: 2026-01-31T12:00:00Z, 2026-01-31, or how long ago: 2h
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,

    /// Only those that died before this time, written likewise
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
}

impl Select {
    fn selection(&self, status: Option<StatusChoice>, all: bool) -> Selection {
        Selection {
            ids: self.ids.clone(),
            group: self.group.clone(),
            status: status.map(|status| status.as_str().to_owned()),
            event_type: self.event_type.clone(),
            reason: self.reason.clone(),
            user: self.user.clone(),
            text: self.text.clone(),
            since: self.since.clone(),
            until: self.until.clone(),
            all,
        }
    }
}

/// A status, or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum StatusChoice {
    Open,
    Replayed,
    Applied,
    Discarded,
    All,
}

impl StatusChoice {
    fn as_str(self) -> &'static str {
        match self {
            Self::Open => Status::Open.as_str(),
            Self::Replayed => Status::Replayed.as_str(),
            Self::Applied => Status::Applied.as_str(),
            Self::Discarded => Status::Discarded.as_str(),
            Self::All => "all",
        }
    }
}

/// Arguments of `dead groups`.
#[derive(Debug, Args)]
pub struct Groups {
    /// The letters that are meant.
    #[command(flatten)]
    pub select: Select,

    /// Only with this status [default: open; any for letters that are named]
    #[arg(long, value_name = "STATUS")]
    pub status: Option<StatusChoice>,

    /// How to print it.
    #[command(flatten)]
    pub listing: Listing,
}

/// Arguments of `dead list`.
#[derive(Debug, Args)]
pub struct List {
    /// The letters that are meant.
    #[command(flatten)]
    pub select: Select,

    /// Only with this status [default: open; any for letters that are named]
    #[arg(long, value_name = "STATUS")]
    pub status: Option<StatusChoice>,

    /// At most this many
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,

    /// Go on where the last page ended, with the cursor that it printed
    #[arg(long, value_name = "CURSOR")]
    pub after: Option<String>,

    /// How to print it.
    #[command(flatten)]
    pub listing: Listing,
}

/// Arguments of `dead show`.
#[derive(Debug, Args)]
pub struct Show {
    /// The letter's id or its message id
    #[arg(value_name = "ID")]
    pub id: String,

    /// How to print it.
    #[command(flatten)]
    pub listing: Listing,
}

/// Arguments of every command that acts on several letters.
#[derive(Clone, Debug, Default, Args)]
#[command(group(ArgGroup::new("selected").multiple(true).args(
    ["ids", "group", "reason", "event_type", "user", "text", "since", "until"]
)))]
pub struct Action {
    /// The letters that are meant.
    #[command(flatten)]
    pub select: Select,

    /// Every letter; needed where nothing else is selected
    #[arg(long, conflicts_with = "selected")]
    pub all: bool,

    /// At most this many, the first to die first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,

    /// Only print how many letters it would be, by event type and reason
    #[arg(long)]
    pub dry_run: bool,

    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

/// Arguments of `dead replay`.
#[derive(Debug, Args)]
pub struct Replay {
    /// The letters that are meant, and how to go about it.
    #[command(flatten)]
    pub action: Action,

    /// At this rate, such as 100/s or 30/m [default: as fast as the queue takes them]
    #[arg(long, value_name = "N/s", value_parser = rate)]
    pub rate: Option<f64>,

    /// Send 1 letter, then 10, then 100, then the rest, each after the ones before took effect
    ///
    /// Stops by itself when too many die again.
    #[arg(long)]
    pub ramp: bool,

    /// Stop when more than this share of a step dies again, such as 5% [default: 10%]
    #[arg(long, value_name = "SHARE", value_parser = share, requires = "ramp")]
    pub halt_at: Option<f64>,

    /// Why, for the letters' history
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
}

/// Arguments of `dead edit`.
#[derive(Debug, Args)]
pub struct Edit {
    /// The letter's id or its message id
    #[arg(value_name = "ID")]
    pub id: String,

    /// Take the new body from this file (- is stdin) instead of the editor
    #[arg(long, value_name = "FILE")]
    pub file: Option<std::path::PathBuf>,

    /// Only show the difference and the warnings
    #[arg(long)]
    pub dry_run: bool,

    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,

    /// Why, for the letter's history
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
}

/// Arguments of `dead discard`.
#[derive(Debug, Args)]
pub struct Discard {
    /// The letters that are meant, and how to go about it.
    #[command(flatten)]
    pub action: Action,

    /// Why, for the letters' history
    #[arg(long, value_name = "TEXT", required_unless_present = "dry_run")]
    pub note: Option<String>,
}

/// Arguments of `dead restore`.
#[derive(Debug, Args)]
pub struct Restore {
    /// The letters that are meant, and how to go about it.
    #[command(flatten)]
    pub action: Action,

    /// Why, for the letters' history
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
}

/// Arguments of `dead export`.
#[derive(Debug, Args)]
pub struct Export {
    /// The letters that are meant.
    #[command(flatten)]
    pub select: Select,

    /// Only with this status [default: open; any for letters that are named]
    #[arg(long, value_name = "STATUS")]
    pub status: Option<StatusChoice>,

    /// At most this many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,

    /// Go on after the line that has this cursor
    #[arg(long, value_name = "CURSOR")]
    pub after: Option<String>,
}

/// Runs a command about dead letters.
///
/// # Errors
/// Nothing was selected, the operation failed, or it was interrupted and says how to go on.
pub async fn run(args: Dead, config: &Config, output: &mut Output) -> Result<(), Failure> {
    let store = app::existing_store(config).await?;
    store.check_schema().await?;
    let letters = app::letters(&store);
    let result = match args {
        Dead::Groups(args) => list::groups(&args, &letters, output).await,
        Dead::List(args) => list::list(&args, &letters, output).await,
        Dead::Show(args) => list::show(&args, &letters, output).await,
        Dead::Export(args) => list::export(&args, &letters, output).await,
        Dead::Replay(args) => act::replay(&args, config, &store, output).await,
        Dead::Discard(args) => act::discard(&args, &store, output).await,
        Dead::Restore(args) => act::restore(&args, &store, output).await,
        Dead::Edit(args) => edit::edit(&args, config, &store, output).await,
    };
    store.close().await;
    result
}

/// Finds one letter.
async fn find(letters: &Arc<dyn Letters>, reference: &str) -> Result<LetterDetail, Failure> {
    let found = letters.show(reference).await?;
    Ok(found.ok_or_else(|| SelectError::Unknown(reference.to_owned()))?)
}

/// The user of the operating system who runs this command, also behind sudo.
pub(in crate::cli) fn actor(note: Option<&str>) -> Actor {
    let named = |variable| std::env::var(variable).ok().filter(|name: &String| !name.is_empty());
    let name = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(named).or_else(|| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata("/proc/self").ok().map(|of_process| format!("uid {}", of_process.uid()))
    });
    let name = clean(&name.unwrap_or_else(|| "unknown".into()), 64);
    Actor { name, note: note.map(|note| clean(note, 1024)) }
}

/// Whether a person can be asked: input and errors are a terminal's.
pub(in crate::cli) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks a question at the terminal; `true` for yes.
pub(in crate::cli) fn ask(question: &str) -> Result<bool, Failure> {
    let mut answer = String::new();
    let asked = write!(io::stderr(), "{}", terminal::safe(question))
        .and_then(|()| io::stderr().flush())
        .and_then(|()| io::stdin().lock().read_line(&mut answer));
    asked
        .map_err(|error| Failure::new(format!("the terminal cannot be asked: {error}")).hint("add --yes"))?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// Asks without holding up the task: a thread waits for the answer, and dies with the process.
///
/// # Errors
/// As [`ask`].
pub(in crate::cli) async fn asked(question: &'static str) -> Result<bool, Failure> {
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || tell.send(ask(question)));
    told.await.unwrap_or(Ok(false))
}

/// `100/s`, `100` or `30/m`.
fn rate(text: &str) -> Result<f64, String> {
    let (number, per) = match text.split_once('/') {
        None | Some((_, "s")) => (text.trim_end_matches("/s"), 1.0),
        Some((number, "m")) => (number, 60.0),
        Some(_) => return Err("write 100/s or 30/m".into()),
    };
    let rate = number.trim().parse::<f64>().map_err(|_| "write a number: 100/s")? / per;
    if (0.001..=1_000_000.0).contains(&rate) {
        Ok(rate)
    } else {
        Err("has to be between 0.001/s and 1000000/s".into())
    }
}

/// `10%`, `10 %` or `0.1`.
fn share(text: &str) -> Result<f64, String> {
    let (number, of) = match text.trim().strip_suffix('%') {
        Some(percent) => (percent.trim(), 100.0),
        None => (text.trim(), 1.0),
    };
    let share = number.parse::<f64>().map_err(|_| "write a share: 10%")? / of;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("has to be between 0% and 100%".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_per_second_or_per_minute() {
        for (text, per_second) in [("100/s", 100.0), ("100", 100.0), ("0.5/s", 0.5), ("30/m", 0.5)] {
            assert_eq!(rate(text), Ok(per_second), "{text}");
        }
        for text in ["", "/s", "0", "-1/s", "nan", "inf", "5/h", "ten/s", "1e9/s"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_share_is_in_percent_or_of_one() {
        for (text, of_one) in
            [("10%", 0.1), ("10 %", 0.1), ("0.1", 0.1), ("0%", 0.0), ("100%", 1.0), ("2.5%", 0.025)]
        {
            assert_eq!(share(text), Ok(of_one), "{text}");
        }
        for text in ["", "%", "ten", "10", "-1%", "101%", "nan"] {
            assert!(share(text).is_err(), "{text}");
        }
    }

    #[test]
    fn somebody_is_always_behind_an_action() {
        let actor = actor(Some("why\n"));
        assert!(!actor.name.is_empty());
        assert_eq!(actor.note.as_deref(), Some("why\u{fffd}"));
    }
}
