//! Owns what was saved beside a file that was taken away: its names, finding it again, and what to do with it. Never
//! touches the file itself.

use std::path::{Path, PathBuf};

use super::{lock, side};

/// Something that an earlier process saved, and that still lies beside the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// What it is.
    pub message: String,
    /// What to do with it.
    pub hint: String,
}

impl Leftover {
    /// The newest beside the file that is used by this path.
    pub fn beside(path: &Path) -> Option<Self> {
        let saved = newest(&lock::real(path))?;
        let message = format!("{} is what was saved when {} was taken away", saved.display(), path.display());
        Some(Self { message, hint: advice(path, &saved) })
    }
}

/// The newest that was saved of a file.
pub(super) fn newest(real: &Path) -> Option<PathBuf> {
    let changed = |path: &PathBuf| path.metadata().and_then(|metadata| metadata.modified()).ok();
    names(real).filter(|path| path.exists()).max_by_key(changed)
}

/// A name beside the file that is free.
pub(super) fn free(real: &Path) -> Option<PathBuf> {
    names(real).find(|path| !path.exists())
}

/// What to do with what was saved, for the log, readiness, the start and `doctor` alike.
pub(super) fn advice(path: &Path, saved: &Path) -> String {
    let (path, saved) = (path.display(), saved.display());
    format!(
        "stop every headcount that uses {path}; to go on with what was saved, move {saved} to {path} (this replaces a newer file there); to go on without it, rename or remove {saved}; then start again"
    )
}

fn names(real: &Path) -> impl Iterator<Item = PathBuf> {
    let names = (1..100).map(|n| if n == 1 { ".saved".to_owned() } else { format!(".saved-{n}") });
    names.map(move |name| side(real, &name))
}
