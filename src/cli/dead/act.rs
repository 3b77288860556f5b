//! Owns `dead replay`, `discard` and `restore`: what is meant is shown first, asked for, done in small steps, and can be
//! interrupted. Whoever interrupts is told how to go on.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    sync::Arc,
};

use super::{Action, Discard, Replay, Restore, actor, progress, select_failure};
use crate::{
    app,
    cli::output::{self, Failure, Output, number, quoted},
    config::Config,
    dead::replay::{Ended, Order, Replayer, Report},
    message::now,
    store::letters::{Actor, Count, Filter, Letters, Status},
};

/// Letters that are discarded or restored in one transaction.
const STEP: u32 = 500;
/// Unfinished claims that a preview looks for.
const LOOK: u32 = 20;

/// What an action would touch.
struct Preview {
    filter: Filter,
    counts: Vec<Count>,
    /// Letters that the action can touch.
    letters: u64,
    /// Claims that an earlier replay left unfinished, as far as was looked.
    unfinished: u64,
}

impl Preview {
    fn describe(
        &self,
        verb: &str,
        line: &mut dyn FnMut(String) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        for count in &self.counts {
            line(format!("{:>10}  {}  {}", number(count.letters), count.event_type, count.reason))?;
        }
        if self.unfinished > 0 {
            let more = if self.unfinished >= u64::from(LOOK) { " or more" } else { "" };
            line(format!("{:>10}{more}  left unfinished by an earlier replay", number(self.unfinished)))?;
        }
        line(format!("{:>10}  to {verb}", number(self.letters)))
    }
}

/// Replays.
pub(super) async fn replay(
    args: &Replay,
    config: &Config,
    letters: &Arc<dyn Letters>,
    output: &mut Output,
) -> Result<(), Failure> {
    let preview = preview(&args.action, Status::Open, letters).await?;
    if !agreed("replay", &args.action, &preview, output)? {
        return Ok(());
    }
    let queue = app::open_queue(config).await?;
    let stop =
        app::stop_signal().map_err(|error| Failure::new(format!("signals cannot be heard: {error}")))?;
    let expected = preview.letters + preview.unfinished;
    let bar = progress::bar(expected);
    let order = Order {
        filter: preview.filter,
        limit: args.action.limit.unwrap_or(u64::MAX),
        rate: args.rate,
        by: actor(args.note.as_deref()),
    };
    let replayer = Replayer::new(Arc::clone(letters), Arc::clone(&queue));
    let shown = |report: &Report| bar.set_position(report.published);
    let (report, ended) = replayer.run(&order, shown, &stop).await;
    bar.finish_and_clear();
    queue.close().await;
    output.line(summary(&report, preview.letters))?;
    let left = args.action.limit.map(|limit| limit.saturating_sub(report.taken_up + report.claimed));
    let failure = match ended {
        Ended::Complete | Ended::Limit => return Ok(()),
        Ended::Stopped => Failure::new("interrupted; every letter is where the summary says"),
        Ended::Queue(error) => app::queue_failure(&error),
        Ended::Store(error) => app::store_failure(&error),
    };
    Err(failure.hint(format!("go on: {}", again(std::env::args(), left))))
}

fn summary(report: &Report, expected: u64) -> String {
    let mut text = format!("replayed {}", output::letters(report.published.saturating_sub(report.taken_up)));
    if report.taken_up > 0 {
        text.push_str(&format!(
            "; finished {} that an earlier replay had left",
            number(report.published.min(report.taken_up))
        ));
    }
    if report.unstamped_left > 0 {
        text.push_str(&format!(
            "; {} are claimed and not certainly published: the next replay of them does it",
            number(report.unstamped_left)
        ));
    } else if report.claimed < expected && report.published > 0 {
        let others = expected - report.claimed;
        text.push_str(&format!("; {} of those shown were not taken here", number(others)));
        text.push_str(": they are left, or somebody else was quicker");
    }
    text
}

/// Discards.
pub(super) async fn discard(
    args: &Discard,
    letters: &Arc<dyn Letters>,
    output: &mut Output,
) -> Result<(), Failure> {
    let note = args.note.as_deref().map(str::trim).filter(|note| !note.is_empty());
    if note.is_none() && !args.action.dry_run {
        return Err(Failure::usage("the note is empty").hint("say why: --note 'test data of 3 May'"));
    }
    steps("discard", "discarded", Status::Open, &args.action, actor(note), letters, output).await
}

/// Restores.
pub(super) async fn restore(
    args: &Restore,
    letters: &Arc<dyn Letters>,
    output: &mut Output,
) -> Result<(), Failure> {
    let by = actor(args.note.as_deref());
    steps("restore", "restored", Status::Discarded, &args.action, by, letters, output).await
}

/// Does it in small transactions, so that Ctrl-C leaves each letter as it was or done.
async fn steps(
    verb: &str,
    done: &str,
    from: Status,
    action: &Action,
    by: Actor,
    letters: &Arc<dyn Letters>,
    output: &mut Output,
) -> Result<(), Failure> {
    let preview = preview(action, from, letters).await?;
    if !agreed(verb, action, &preview, output)? {
        return Ok(());
    }
    let stop =
        app::stop_signal().map_err(|error| Failure::new(format!("signals cannot be heard: {error}")))?;
    let bar = progress::bar(preview.letters);
    let limit = action.limit.unwrap_or(u64::MAX);
    let mut touched = 0;
    let ended = loop {
        let step = u32::try_from(limit - touched).map_or(STEP, |left| left.min(STEP));
        if step == 0 {
            break Ok(());
        }
        if *stop.borrow() {
            break Err(Failure::new(format!("interrupted; what was {done} stays so")));
        }
        let stepped = match from {
            Status::Open => letters.discard(&preview.filter, step, &by).await,
            _ => letters.restore(&preview.filter, step, &by).await,
        };
        match stepped {
            Ok(0) => break Ok(()),
            Ok(letters) => touched += letters,
            Err(error) => break Err(app::store_failure(&error)),
        }
        bar.set_position(touched);
    };
    bar.finish_and_clear();
    output.line(format!("{done} {}", output::letters(touched)))?;
    let left = action.limit.map(|limit| limit - touched);
    ended.map_err(|failure| failure.hint(format!("go on: {}", again(std::env::args(), left))))
}

async fn preview(action: &Action, from: Status, letters: &Arc<dyn Letters>) -> Result<Preview, Failure> {
    let selection = action.select.selection(None, action.all);
    selection.check_action().map_err(|error| select_failure(&error))?;
    let selected = selection.resolve(letters, Some(from), now()).await;
    let mut selected = selected.map_err(|error| select_failure(&error))?;
    selected.filter.status = Some(from);
    let filter = selected.filter;
    let counts = letters.count(&filter).await.map_err(|error| app::store_failure(&error))?;
    let all: u64 = counts.iter().map(|count| count.letters).sum();
    let unfinished = match from {
        Status::Open => {
            let before = letters.clock().await.map_err(|error| app::store_failure(&error))?;
            letters.unstamped(&filter, before, LOOK).await.map_err(|error| app::store_failure(&error))?.len()
        }
        _ => 0,
    };
    if all == 0 && unfinished == 0 {
        let others: Vec<String> = selected
            .named
            .iter()
            .take(5)
            .map(|letter| {
                format!("letter {} is {}, not {}", letter.id, letter.status.as_str(), from.as_str())
            })
            .collect();
        let nothing = Failure::new(match others.is_empty() {
            true => format!("no {} letter is selected", from.as_str()),
            false => others.join("; "),
        });
        return Err(
            nothing.hint("look what there is: headcount dead groups, headcount dead list --status all")
        );
    }
    let letters = action.limit.map_or(all, |limit| all.min(limit));
    Ok(Preview { filter, counts, letters, unfinished: unfinished as u64 })
}

/// Whether to go on: after `--yes`, or a yes at the terminal. A single letter needs neither where nobody can be asked.
fn agreed(verb: &str, action: &Action, preview: &Preview, output: &mut Output) -> Result<bool, Failure> {
    if action.dry_run {
        preview.describe(verb, &mut |line| output.line(line))?;
        return Ok(false);
    }
    if action.yes {
        return Ok(true);
    }
    if !is_interactive() {
        let letters = preview.letters + preview.unfinished;
        return if letters <= 1 {
            Ok(true)
        } else {
            Err(Failure::usage(format!(
                "this would {verb} {} letters, and nobody can be asked",
                number(letters)
            ))
            .hint("look first: --dry-run; then add --yes"))
        };
    }
    preview.describe(verb, &mut |line| {
        eprintln!("{line}");
        Ok(())
    })?;
    ask(&format!("{verb} them? [y/N] "))
}

/// Whether somebody sits there.
pub(super) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks at the terminal.
pub(super) fn ask(question: &str) -> Result<bool, Failure> {
    let mut answer = String::new();
    let asked = write!(io::stderr(), "{question}")
        .and_then(|()| io::stderr().flush())
        .and_then(|()| io::stdin().lock().read_line(&mut answer));
    asked
        .map_err(|error| Failure::new(format!("the terminal cannot be asked: {error}")).hint("add --yes"))?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// The command line that goes on: the same, with what is left of its limit, and without asking again.
fn again(arguments: impl IntoIterator<Item = String>, left: Option<u64>) -> String {
    let mut command = vec!["headcount".to_owned()];
    let mut arguments = arguments.into_iter().skip(1);
    let mut asks = true;
    while let Some(argument) = arguments.next() {
        if argument == "--limit" {
            arguments.next();
        } else if !argument.starts_with("--limit=") {
            asks &= argument != "--yes" && argument != "-y";
            command.push(quoted(&argument));
        }
    }
    if let Some(left) = left {
        command.push(format!("--limit {}", left.max(1)));
    }
    if asks {
        command.push("--yes".into());
    }
    command.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn going_on_is_one_exact_command() {
        let arguments = |line: &str| line.split('|').map(str::to_owned).collect::<Vec<_>>();
        for (given, left, expected) in [
            (
                "/usr/bin/headcount|dead|replay|--group|rejected: it's so|--limit|100|--rate|10/s",
                Some(40),
                r"headcount dead replay --group 'rejected: it'\''s so' --rate 10/s --limit 40 --yes",
            ),
            (
                "headcount|dead|replay|--all|--yes|--limit=5",
                Some(0),
                "headcount dead replay --all --yes --limit 1",
            ),
            (
                "headcount|--config|a.toml|dead|discard|x|-y",
                None,
                "headcount --config a.toml dead discard x -y",
            ),
        ] {
            assert_eq!(again(arguments(given), left), expected);
        }
    }

    #[test]
    fn a_summary_says_what_is_where() {
        let report = Report { taken_up: 2, claimed: 60, published: 62, unstamped_left: 0 };
        assert_eq!(
            summary(&report, 100),
            "replayed 60 letters; finished 2 that an earlier replay had left; 40 of those shown were not taken here: they are left, or somebody else was quicker"
        );
        let report = Report { taken_up: 0, claimed: 10, published: 7, unstamped_left: 3 };
        assert!(summary(&report, 10).starts_with("replayed 7 letters; 3 are claimed"));
        let report = Report { taken_up: 0, claimed: 10, published: 10, unstamped_left: 0 };
        assert_eq!(summary(&report, 10), "replayed 10 letters");
    }
}
