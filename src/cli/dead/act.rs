//! Owns `dead replay`, `discard` and `restore`. Each shows the letters that are meant, asks, and works in small steps.
//! Promises that Ctrl-C loses nothing, and that an interrupted command says how to go on.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use uuid::Uuid;

use super::{Action, Discard, Replay, Restore, actor, ask, is_interactive};
use crate::{
    app,
    cli::{
        output::{Output, remark},
        progress,
    },
    config::Config,
    failure::Failure,
    letters::{
        conduct::{Conductor, Done, Manner, Told},
        operations::{self, NewReplay, Settle, halt_at},
        outcomes::{self, FOLLOWED_MAX},
        replay::{Progress, nobody_works},
    },
    queue::Queue,
    store::{
        Store,
        letters::{Actor, Count, Filter, Letters, Publication, Status},
        operations::{Ended, Kind, State},
    },
    text,
    text::{number, quoted},
    time::now,
};

/// Unfinished claims that a preview looks for.
const LOOK: u32 = 20;

/// What is done to letters, in words.
struct Verb {
    name: &'static str,
    done: &'static str,
    /// The status of the letters that it takes.
    from: Status,
    /// Claims that earlier replays left unfinished are part of its preview.
    counts_unfinished: bool,
    /// What to do where no such letter is selected.
    hint: &'static str,
}

const REPLAY: Verb = Verb {
    name: "replay",
    done: "replayed",
    from: Status::Open,
    counts_unfinished: true,
    hint: "look what there is: headcount dead groups, headcount dead list --status all",
};

const DISCARD: Verb = Verb { name: "discard", done: "discarded", ..REPLAY };

const RESTORE: Verb = Verb {
    name: "restore",
    done: "restored",
    from: Status::Discarded,
    counts_unfinished: false,
    hint: "look what there is: headcount dead list --status discarded",
};

/// What an action would touch.
struct Preview {
    filter: Filter,
    counts: Vec<Count>,
    /// Letters that the action can touch: those that are selected, at most its limit.
    letters: u64,
    /// Claims that an earlier replay left unfinished, counted up to [`LOOK`].
    unfinished: u64,
}

impl Preview {
    /// Letters that are selected.
    fn all(&self) -> u64 {
        self.counts.iter().map(|count| count.letters).sum()
    }

    fn describe(
        &self,
        verb: &Verb,
        line: &mut dyn FnMut(String) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        for count in &self.counts {
            line(format!("{:>10}  {}  {}", number(count.letters), count.event_type, count.reason))?;
        }
        if self.unfinished > 0 {
            let more = if self.unfinished >= u64::from(LOOK) { " or more" } else { "" };
            line(format!("{:>10}{more}  left unfinished by an earlier replay", number(self.unfinished)))?;
        }
        let all = self.all();
        let of = if self.letters < all { format!(", of {}", number(all)) } else { String::new() };
        line(format!("{:>10}  to {}{of}", number(self.letters), verb.name))
    }
}

/// Runs `dead replay`.
pub(super) async fn replay(
    args: &Replay,
    config: &Config,
    store: &Arc<dyn Store>,
    output: &mut Output,
) -> Result<(), Failure> {
    let preview = preview(&args.action, &REPLAY, &app::letters(store)).await?;
    if args.action.dry_run {
        return preview.describe(&REPLAY, &mut |line| output.line(line));
    }
    let queue = app::existing_queue(config).await?;
    let result = send_back(args, preview, store, &queue, output).await;
    queue.close().await;
    result
}

async fn send_back(
    args: &Replay,
    preview: Preview,
    store: &Arc<dyn Store>,
    queue: &Arc<dyn Queue>,
    output: &mut Output,
) -> Result<(), Failure> {
    let why_idle = warn_where_nobody_works(queue.as_ref()).await;
    if !agreed(&REPLAY, &args.action, &preview, output)? {
        return Ok(());
    }
    let stop =
        app::stop_signal().map_err(|error| Failure::new(format!("signals cannot be heard: {error}")))?;
    let bar = progress::bar(preview.letters + preview.unfinished);
    let new = NewReplay {
        filter: preview.filter.clone(),
        limit: args.action.limit.unwrap_or(u64::MAX),
        rate: args.rate,
        halt_at: halt_at(args.ramp, args.halt_at),
        by: actor(args.note.as_deref()),
        open: preview.all(),
        warnings: why_idle.iter().cloned().collect(),
    };
    let holder = Uuid::now_v7();
    let begun = store.begin_operation(&new.operation(Some(holder))).await?;
    let begun = begun.ok_or_else(|| Failure::new("as many replays as may run do"))?;
    let sent: Mutex<Vec<Publication>> = Mutex::default();
    let told = |told: Told<'_>| match told {
        Told::Published(report, published) => {
            bar.set_position(report.published);
            let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
            let room = FOLLOWED_MAX - sent.len();
            sent.extend(published.iter().take(room));
        }
        Told::Step(step) => bar.suspend(|| remark(step)),
        Told::Waits(why) => bar.suspend(|| remark(why)),
    };
    let conductor = Conductor::new(store, queue, Manner::Command);
    let (report, done) = conductor.run(begun, holder, &told, &stop).await;
    bar.finish_and_clear();
    let is_complete = matches!(&done, Done::Ended(Ended { state: State::Complete, .. }));
    let open = match is_complete && report.claimed >= preview.letters {
        true => None,
        false => open(store.as_ref(), &preview.filter).await,
    };
    output.line(summary(&report, preview.letters, is_complete, open))?;
    let left = args.action.limit.map(|limit| limit.saturating_sub(report.taken_up + report.claimed));
    let again = || again(std::env::args(), left);
    let failure = match done {
        Done::Ended(Ended { state: State::Complete | State::Limit, applied, died, .. }) => {
            if args.ramp {
                return output.line(format!(
                    "outcome: {} applied, {} died again",
                    number(applied),
                    number(died)
                ));
            }
            let sent = sent.into_inner().unwrap_or_else(PoisonError::into_inner);
            return match why_idle {
                Some(_) => Ok(()),
                None => tell_outcomes(store.as_ref(), &sent, report.published, &stop, output).await,
            };
        }
        Done::Ended(Ended { state: State::Halted, detail, .. }) => {
            let why = detail.unwrap_or_default();
            return Err(Failure::new(format!("the replay stopped by itself: {why}"))
                .hint("why they died again: headcount dead list")
                .hint(format!("mend the cause, then go on: {}", again())));
        }
        Done::Left | Done::Paused => {
            return Err(Failure::new("another process goes on with this replay")
                .hint("see how far it is: headcount operations --kind replay"));
        }
        Done::Ended(_) if *stop.borrow() => Failure::new("interrupted"),
        Done::Ended(_) => Failure::new("somebody stopped the replay"),
        Done::Queue(error) => error.into(),
        Done::Store(error) => error.into(),
    };
    Err(failure.hint(format!("go on: {}", again())))
}

/// Warns where no worker would take the letters at once.
pub(super) async fn warn_where_nobody_works(queue: &dyn Queue) -> Option<String> {
    let why = nobody_works(queue).await;
    if let Some(why) = &why {
        remark(format_args!("warning: {why}"));
        remark("hint: look at the queues: headcount status");
    }
    why
}

/// Prints what became of letters that were sent back.
pub(super) async fn tell_outcomes(
    letters: &dyn Letters,
    sent: &[Publication],
    of: u64,
    stop: &watch::Receiver<bool>,
    output: &mut Output,
) -> Result<(), Failure> {
    if sent.is_empty() {
        return Ok(());
    }
    let outcomes = outcomes::follow(letters, sent, stop).await?;
    let first = match of > sent.len() as u64 {
        true => format!(" of the first {}", number(sent.len() as u64)),
        false => String::new(),
    };
    output.line(format!("outcome{first}: {outcomes}"))?;
    for (letters, hint) in [
        (outcomes.died, "why they died again: headcount dead list"),
        (
            outcomes.under_way,
            "see later: headcount dead list --status replayed, headcount dead list --status applied",
        ),
    ] {
        if letters > 0 {
            remark(format_args!("hint: {hint}"));
        }
    }
    Ok(())
}

/// How many letters of a selection are open; `None` where the database does not tell.
async fn open(letters: &dyn Letters, filter: &Filter) -> Option<u64> {
    let counts = letters.count(filter).await.ok()?;
    Some(counts.iter().map(|count| count.letters).sum())
}

/// Says where each letter is.
fn summary(report: &Progress, expected: u64, is_complete: bool, open: Option<u64>) -> String {
    let mut parts =
        vec![format!("replayed {}", text::letters(report.published.saturating_sub(report.taken_up)))];
    if report.taken_up > 0 {
        let finished = number(report.published.min(report.taken_up));
        parts.push(format!("finished {finished} that an earlier replay had left"));
    }
    if report.unstamped_left > 0 {
        let unsure = number(report.unstamped_left);
        parts.push(format!(
            "{unsure} more are claimed and not certainly in the queue: the next replay finishes them"
        ));
    }
    if let Some(open) = open.filter(|open| *open > 0) {
        parts.push(format!("{} of the selection still open", number(open)));
    }
    let elsewhere = expected.saturating_sub(report.claimed + open.unwrap_or(0));
    if is_complete && elsewhere > 0 {
        parts.push(format!("{} taken by somebody else meanwhile", number(elsewhere)));
    }
    parts.join("; ")
}

/// Runs `dead discard`.
pub(super) async fn discard(
    args: &Discard,
    store: &Arc<dyn Store>,
    output: &mut Output,
) -> Result<(), Failure> {
    let note = args.note.as_deref().map(str::trim).filter(|note| !note.is_empty());
    if note.is_none() && !args.action.dry_run {
        return Err(Failure::usage("the note is empty").hint("say why: --note 'test data of 3 May'"));
    }
    steps(&DISCARD, Kind::Discard, &actor(note), &args.action, store, output).await
}

/// Runs `dead restore`.
pub(super) async fn restore(
    args: &Restore,
    store: &Arc<dyn Store>,
    output: &mut Output,
) -> Result<(), Failure> {
    steps(&RESTORE, Kind::Restore, &actor(args.note.as_deref()), &args.action, store, output).await
}

/// Discards or restores as many letters as the preview said; Ctrl-C leaves each letter as it was or done.
async fn steps(
    verb: &Verb,
    kind: Kind,
    by: &Actor,
    action: &Action,
    store: &Arc<dyn Store>,
    output: &mut Output,
) -> Result<(), Failure> {
    let preview = preview(action, verb, &app::letters(store)).await?;
    if !agreed(verb, action, &preview, output)? {
        return Ok(());
    }
    let stop =
        app::stop_signal().map_err(|error| Failure::new(format!("signals cannot be heard: {error}")))?;
    let bar = progress::bar(preview.letters);
    let told = |letters| bar.set_position(letters);
    let settle = Settle {
        kind,
        by,
        filter: &preview.filter,
        most: preview.letters,
        limited: action.limit == Some(preview.letters),
    };
    let settled = operations::settle_all(store, settle, told, &stop).await?;
    bar.finish_and_clear();
    let ended = match settled.ended {
        Ok(State::Stopped) => Err(Failure::new("interrupted")),
        Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    };
    let left = match ended.is_err() {
        true => open(store.as_ref(), &preview.filter).await,
        false => None,
    };
    let still =
        left.map(|left| format!("; {} still {}", number(left), verb.from.as_str())).unwrap_or_default();
    output.line(format!("{} {}{still}", verb.done, text::letters(settled.letters)))?;
    let rest = action.limit.map(|limit| limit - settled.letters);
    ended.map_err(|failure| failure.hint(format!("go on: {}", again(std::env::args(), rest))))?;
    Ok(settled.written?)
}

async fn preview(action: &Action, verb: &Verb, letters: &Arc<dyn Letters>) -> Result<Preview, Failure> {
    let from = verb.from;
    let selection = action.select.selection(None, action.all);
    selection.check_action()?;
    let mut selected = selection.resolve(letters, Some(from), now()).await?;
    selected.filter.status = Some(from);
    let filter = selected.filter;
    let counts = letters.count(&filter).await?;
    let all: u64 = counts.iter().map(|count| count.letters).sum();
    let unfinished = if verb.counts_unfinished {
        let before = letters.clock().await?;
        letters.unstamped(&filter, before, LOOK).await?.len()
    } else {
        0
    };
    if all == 0 && unfinished == 0 {
        let others: Vec<String> = selected
            .named
            .iter()
            .take(5)
            .map(|letter| format!("letter {} is {}, not {}", letter.id, letter.standing(), from.as_str()))
            .collect();
        let nothing = Failure::new(match others.is_empty() {
            true => format!("no {} letter is selected", from.as_str()),
            false => others.join("; "),
        });
        return Err(nothing.hint(verb.hint));
    }
    let letters = action.limit.map_or(all, |limit| all.min(limit));
    Ok(Preview { filter, counts, letters, unfinished: unfinished as u64 })
}

/// Whether to go on: with `--yes`, or after a yes at the terminal. Where there is no terminal to ask at, a single letter
/// needs neither.
fn agreed(verb: &Verb, action: &Action, preview: &Preview, output: &mut Output) -> Result<bool, Failure> {
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
                "this would {} {} letters, and nobody can be asked",
                verb.name,
                number(letters)
            ))
            .hint("look first: --dry-run; then add --yes"))
        };
    }
    preview.describe(verb, &mut |line| {
        remark(line);
        Ok(())
    })?;
    let agreed = ask(&format!("{} them? [y/N] ", verb.name))?;
    if !agreed {
        output.line(format!("nothing was {}", verb.done))?;
    }
    Ok(agreed)
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
    fn a_summary_says_where_each_letter_is() {
        let report = Progress { taken_up: 2, claimed: 60, published: 62, unstamped_left: 0 };
        for (is_complete, open, expected) in [
            (false, Some(40), "40 of the selection still open"),
            (true, Some(10), "10 of the selection still open; 30 taken by somebody else meanwhile"),
            (true, Some(0), "40 taken by somebody else meanwhile"),
        ] {
            let said = summary(&report, 100, is_complete, open);
            let before = "replayed 60 letters; finished 2 that an earlier replay had left";
            assert_eq!(said, format!("{before}; {expected}"));
        }
        let report = Progress { taken_up: 0, claimed: 10, published: 7, unstamped_left: 3 };
        assert!(summary(&report, 10, false, None).starts_with("replayed 7 letters; 3 more are claimed"));
        let report = Progress { taken_up: 0, claimed: 10, published: 10, unstamped_left: 0 };
        assert_eq!(summary(&report, 10, true, None), "replayed 10 letters");
    }
}
