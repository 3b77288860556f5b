//! Owns `dead edit`: takes a new body from an editor or a file, checks it, shows what differs, and sends it once. Promises
//! that only the owner can read the editor's copy, and that it is removed afterwards, also where a signal ends the command.

use std::{
    fs::{DirBuilder, OpenOptions},
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

use super::{
    Edit,
    act::{tell_outcomes, warn_where_nobody_works},
    actor, ask, find, is_interactive,
};
use crate::{
    app,
    cli::output::{Output, remark},
    config::Config,
    failure::{Exit, Failure},
    letters::{
        diff,
        edit::{EditError, Mended, check},
        operations,
        replay::{End, Replayer},
    },
    queue::Queue,
    store::{
        Store,
        letters::{LetterDetail, Status},
    },
};

pub(super) async fn edit(
    args: &Edit,
    config: &Config,
    store: &Arc<dyn Store>,
    output: &mut Output,
) -> Result<(), Failure> {
    let letters = app::letters(store);
    let letter = find(&letters, &args.id).await?;
    if letter.letter.status != Status::Open {
        return Err(failure(&EditError::NotOpen(letter.letter.status), &letter));
    }
    let mended = match &args.file {
        Some(file) => check(&letter, read(file)?).map_err(|error| failure(&error, &letter))?,
        None => edited(&letter)?,
    };
    let from_stdin = args.file.as_deref() == Some(Path::new("-"));
    let asks = !args.yes && !args.dry_run && is_interactive() && !from_stdin;
    for line in &mended.difference {
        if asks { remark(line) } else { output.line(line)? }
    }
    for warning in &mended.warnings {
        remark(format_args!("warning: {warning}"));
    }
    if args.dry_run {
        return Ok(());
    }
    if !asks && !args.yes && !mended.warnings.is_empty() {
        return Err(Failure::usage(
            "nothing was sent: the warning has to be agreed to, and nobody can be asked",
        )
        .hint("mend the body; or send it all the same, with --yes"));
    }
    let queue = app::existing_queue(config).await?;
    let result = send_it(args, asks, &letter, mended, store, &queue, output).await;
    queue.close().await;
    result
}

async fn send_it(
    args: &Edit,
    asks: bool,
    letter: &LetterDetail,
    mended: Mended,
    store: &Arc<dyn Store>,
    queue: &Arc<dyn Queue>,
    output: &mut Output,
) -> Result<(), Failure> {
    let idle = warn_where_nobody_works(queue.as_ref()).await;
    if asks && !ask("send it? [y/N] ")? {
        return output.line("nothing was sent");
    }
    let letters = app::letters(store);
    let replayer = Replayer::new(Arc::clone(&letters), Arc::clone(queue));
    let sent = operations::edit(store, &replayer, letter, mended, actor(args.note.as_deref())).await;
    let round = sent.map_err(|error| failure(&error, letter))?;
    output.line(format!("sent {} again, mended, as round {round}", letter.letter.message_id))?;
    if idle.is_some() {
        return Ok(());
    }
    let stop =
        app::stop_signal().map_err(|error| Failure::new(format!("signals cannot be heard: {error}")))?;
    tell_outcomes(letters.as_ref(), &[(letter.letter.id, round)], 1, &stop, output).await
}

fn read(file: &Path) -> Result<Bytes, Failure> {
    let mut body = Vec::new();
    let read = match file == Path::new("-") {
        true => std::io::stdin().lock().read_to_end(&mut body).map(drop),
        false => std::fs::read(file).map(|read| body = read),
    };
    read.map_err(|error| Failure::new(format!("{} cannot be read: {error}", file.display())))?;
    Ok(body.into())
}

/// Lets the person edit a copy until a worker would accept it, or the person gives up.
fn edited(letter: &LetterDetail) -> Result<Mended, Failure> {
    let Some(text) = diff::pretty(&letter.body) else {
        return Err(Failure::new("the body is no text that an editor could show")
            .hint("write the right body to a file and give it with --file"));
    };
    if !is_interactive() {
        return Err(Failure::usage("there is no terminal for an editor")
            .hint("give the new body with --file FILE, or --file - for stdin"));
    }
    let watch = watch_signals()?;
    let copy = {
        // A signal waits until the copy is whole, and then removes it.
        let mut directory = watch.directory.lock().unwrap_or_else(PoisonError::into_inner);
        let copy = Copy::make(text.as_bytes())?;
        *directory = Some(copy.directory.clone());
        copy
    };
    loop {
        watch.editing.store(true, SeqCst);
        let opened = open_editor(&copy.file);
        watch.editing.store(false, SeqCst);
        opened?;
        let body = std::fs::read(&copy.file)
            .map_err(|error| Failure::new(format!("the edited copy cannot be read: {error}")))?;
        // Editors end a file with a newline of their own.
        let body = if body.trim_ascii_end() == text.as_bytes() { letter.body.clone() } else { body.into() };
        match check(letter, body) {
            Ok(mended) => return Ok(mended),
            Err(error @ EditError::Refused(_)) => {
                remark(&error);
                if !ask("edit it again? [y/N] ")? {
                    return Err(failure(&error, letter));
                }
            }
            Err(error) => return Err(failure(&error, letter)),
        }
    }
}

/// A file in a directory that only its owner can enter. Dropping it removes both, with what the editor left beside the
/// file.
struct Copy {
    directory: PathBuf,
    file: PathBuf,
}

impl Copy {
    fn make(body: &[u8]) -> Result<Self, Failure> {
        let directory = std::env::temp_dir().join(format!("headcount-edit-{}", Uuid::now_v7().simple()));
        let unwritten = |error: std::io::Error| {
            Failure::new(format!("no copy can be written to {}: {error}", std::env::temp_dir().display()))
                .hint("set TMPDIR to a directory that can be written")
        };
        // Fails where something has this name already.
        DirBuilder::new().mode(0o700).create(&directory).map_err(unwritten)?;
        // From here on dropping it removes it, also half written.
        let copy = Self { file: directory.join("body.json"), directory };
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&copy.file)
            .map_err(unwritten)?;
        file.write_all(body).map_err(unwritten)?;
        Ok(copy)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        remove(&self.directory);
    }
}

/// Removes the directory. An editor that writes at this moment may make a file meanwhile, so this tries several times.
fn remove(directory: &Path) {
    for _ in 0..10 {
        match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {}
            _ => return,
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Ends this process, and removes the copy, at a SIGTERM, when the terminal is closed, and at Ctrl-C unless the editor runs:
/// then Ctrl-C is the editor's. This is set up before the copy is made, so that no copy is left behind.
fn watch_signals() -> Result<Watch, Failure> {
    let heard =
        |kind| signal(kind).map_err(|error| Failure::new(format!("signals cannot be heard: {error}")));
    let (mut interrupt, mut terminate, mut hangup) =
        (heard(SignalKind::interrupt())?, heard(SignalKind::terminate())?, heard(SignalKind::hangup())?);
    let watch = Watch::default();
    let seen = watch.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => if seen.editing.load(SeqCst) { continue },
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            if let Some(directory) = seen.directory.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
                remove(directory);
            }
            std::process::exit(i32::from(Exit::Failed.code()));
        }
    });
    Ok(watch)
}

/// What the signals' task has to know.
#[derive(Clone, Default)]
struct Watch {
    editing: Arc<AtomicBool>,
    directory: Arc<Mutex<Option<PathBuf>>>,
}

/// Runs $VISUAL or $EDITOR as a shell would, so that `code --wait` works, and waits for its end.
fn open_editor(file: &Path) -> Result<(), Failure> {
    let named = |variable| std::env::var(variable).ok().filter(|editor: &String| !editor.trim().is_empty());
    let editor = named("VISUAL").or_else(|| named("EDITOR")).unwrap_or_else(|| "vi".into());
    let hint = "set VISUAL or EDITOR to an editor that waits, or give the new body with --file";
    let status = std::process::Command::new("sh")
        .args(["-c", &format!("{editor} \"$1\""), "sh"])
        .arg(file)
        .status()
        .map_err(|error| Failure::new(format!("the editor cannot be started: {error}")).hint(hint))?;
    if !status.success() {
        return Err(Failure::new(format!("{editor} ended with {status}; nothing was sent")).hint(hint));
    }
    Ok(())
}

fn failure(error: &EditError, letter: &LetterDetail) -> Failure {
    let id = letter.letter.id;
    let failure = Failure::new(match error {
        EditError::Unchanged => format!("{error}; nothing was sent"),
        _ => error.to_string(),
    });
    match error {
        EditError::Store(error) => error.into(),
        EditError::Refused(_) => failure.hint("nothing was sent; the letter is as it was"),
        EditError::Unchanged => failure.hint(format!("to send it as it is: headcount dead replay {id}")),
        EditError::NotOpen(Status::Discarded) => {
            failure.hint(format!("restore it first: headcount dead restore {id}"))
        }
        EditError::NotOpen(_) | EditError::Gone => {
            failure.hint(format!("see what happened to it: headcount dead show {id}"))
        }
        EditError::Unpublished(ended) => match ended.as_ref() {
            End::Queue(error) => because(failure, error.into()),
            End::Store(error) => because(failure, error.into()),
            End::Complete | End::Limit | End::Stopped => failure,
        }
        .hint(format!("send it: headcount dead replay {id}")),
    }
}

fn because(failure: Failure, why: Failure) -> Failure {
    Failure { message: format!("{}: {}", failure.message, why.message), hints: why.hints, ..failure }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_copy_is_its_owners_only_and_goes() {
        let copy = Copy::make(b"{}").unwrap();
        let (directory, file) = (copy.directory.clone(), copy.file.clone());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&file)), (0o700, 0o600));
        assert_eq!(std::fs::read(&file).unwrap(), b"{}");
        std::fs::write(directory.join(".body.json.swp"), "what an editor leaves").unwrap();
        drop(copy);
        assert!(!directory.exists());
    }
}
