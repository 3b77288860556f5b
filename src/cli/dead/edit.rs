//! Owns `dead edit`: a copy of the body in the editor, or from a file, checked, shown as a difference, sent once. Promises
//! that the copy is for its owner's eyes only and is removed afterwards.

use std::{
    fs::OpenOptions,
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

use super::{
    Edit,
    act::{ask, is_interactive},
    actor, find,
};
use crate::{
    app,
    cli::output::{Failure, Output},
    config::Config,
    dead::{
        diff,
        edit::{EditError, Mended, check, send},
        replay::{Ended, Replayer},
    },
    store::letters::{LetterDetail, Letters, Status},
};

pub(super) async fn edit(
    args: &Edit,
    config: &Config,
    letters: &Arc<dyn Letters>,
    output: &mut Output,
) -> Result<(), Failure> {
    let letter = find(letters, &args.id).await?;
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
        if asks { eprintln!("{line}") } else { output.line(line)? }
    }
    if args.dry_run || (asks && !ask("send it? [y/N] ")?) {
        return Ok(());
    }
    let queue = app::open_queue(config).await?;
    let replayer = Replayer::new(Arc::clone(letters), Arc::clone(&queue));
    let sent = send(&replayer, &letter, mended, actor(args.note.as_deref())).await;
    queue.close().await;
    let round = sent.map_err(|error| failure(&error, &letter))?;
    output.line(format!("sent {} again, mended, as round {round}", letter.letter.message_id))
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

/// Lets people edit a copy until it would be accepted, or they give up.
fn edited(letter: &LetterDetail) -> Result<Mended, Failure> {
    let Some(text) = diff::pretty(&letter.body) else {
        return Err(Failure::new("the body is no text that an editor could show")
            .hint("write the right body to a file and give it with --file"));
    };
    if !is_interactive() {
        return Err(Failure::usage("there is no terminal for an editor")
            .hint("give the new body with --file FILE, or --file - for stdin"));
    }
    let copy = Copy::make(text.as_bytes())?;
    let editing = watch_signals(&copy)?;
    loop {
        editing.store(true, SeqCst);
        let opened = open_editor(&copy.0);
        editing.store(false, SeqCst);
        opened?;
        let body = std::fs::read(&copy.0)
            .map_err(|error| Failure::new(format!("the edited copy cannot be read: {error}")))?;
        // Editors end a file with a newline of their own.
        let body = if body.trim_ascii_end() == text.as_bytes() { letter.body.clone() } else { body.into() };
        match check(letter, body) {
            Ok(mended) => return Ok(mended),
            Err(error @ EditError::Refused(_)) => {
                eprintln!("{error}");
                if !ask("edit it again? [y/N] ")? {
                    return Err(failure(&error, letter));
                }
            }
            Err(error) => return Err(failure(&error, letter)),
        }
    }
}

/// A file that only its owner can read, gone when dropped.
struct Copy(PathBuf);

impl Copy {
    fn make(body: &[u8]) -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("headcount-edit-{}.json", Uuid::now_v7().simple()));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(body));
        // Made before the error is looked at, so that half a copy goes too.
        let copy = Self(path);
        written.map_err(|error| {
            Failure::new(format!("no copy can be written to {}: {error}", copy.0.display()))
                .hint("set TMPDIR")
        })?;
        Ok(copy)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Ctrl-C is the editor's while it runs; else, and by a SIGTERM, this process ends, and the copy goes with it.
fn watch_signals(copy: &Copy) -> Result<Arc<AtomicBool>, Failure> {
    let heard =
        |kind| signal(kind).map_err(|error| Failure::new(format!("signals cannot be heard: {error}")));
    let (mut interrupt, mut terminate) = (heard(SignalKind::interrupt())?, heard(SignalKind::terminate())?);
    let (path, editing) = (copy.0.clone(), Arc::new(AtomicBool::new(false)));
    let at_work = Arc::clone(&editing);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => if at_work.load(SeqCst) { continue },
                _ = terminate.recv() => {}
            }
            let _ = std::fs::remove_file(&path);
            std::process::exit(1);
        }
    });
    Ok(editing)
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
        EditError::Store(error) => app::store_failure(error),
        EditError::Refused(_) => failure.hint("nothing was sent; the letter is as it was"),
        EditError::Unchanged => failure.hint(format!("to send it as it is: headcount dead replay {id}")),
        EditError::NotOpen(Status::Discarded) => {
            failure.hint(format!("restore it first: headcount dead restore {id}"))
        }
        EditError::NotOpen(_) | EditError::Gone => {
            failure.hint(format!("see what happened to it: headcount dead show {id}"))
        }
        EditError::Unpublished(ended) => match ended.as_ref() {
            Ended::Queue(error) => failure.hint(error.to_string()),
            Ended::Store(error) => failure.hint(error.to_string()),
            Ended::Complete | Ended::Limit | Ended::Stopped => failure,
        }
        .hint(format!("send it: headcount dead replay {id}")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_copy_is_its_owners_only_and_goes() {
        let copy = Copy::make(b"{}").unwrap();
        let path = copy.0.clone();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read(&path).unwrap(), b"{}");
        drop(copy);
        assert!(!path.exists());
    }
}
