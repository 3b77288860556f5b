//! The one room for embedded database files, which serves the queue and the store. Owns what keeps such a file one and the
//! same for all processes that use it: its identity on the disk with those of its write-ahead log and index, the lock that
//! its processes share, and what has been found wrong with it; and how SQLite is asked (`connection`).
//!
//! Promises that trouble is logged once, with what to do; that damage stays known until the file was read through and
//! found sound; and that only their owner reads the files. Never touches a table, and never opens a database file that is
//! there but through SQLite: closing it would drop SQLite's locks on it.

pub mod connection;
mod guard;
mod identity;
mod lock;
mod private;
mod saved;

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub use connection::Anchor;
pub use guard::Guard;
use identity::{Identity, Parts, Seen};
pub use lock::{LockError, is_unused, take_up};
pub use private::{Exposed, exposed, make_directory, options};
pub use saved::Leftover;

/// Below this a write-ahead log never becomes shorter while it is in use: what exceeds it may be cut off by SQLite.
pub const LOG_LIMIT: u64 = 64 * 1024 * 1024;

/// How long a file is read through when somebody asks for it: some 10 GiB.
pub const EXAMINE_LIMIT: Duration = Duration::from_secs(30);

/// A database file in use.
#[derive(Debug)]
pub struct DataFile {
    /// As it was configured.
    path: PathBuf,
    /// Without symbolic links: where its log and its index lie.
    real: PathBuf,
    /// Which files they were when this one was opened; `None` where the system cannot tell files apart.
    parts: Option<Parts>,
    /// The least sizes that the file and its log must have, in bytes.
    sizes: [AtomicU64; 2],
    /// Held as long as the file is used.
    lock: Mutex<Option<File>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What was found at the last look.
    kind: Option<Kind>,
    /// Why reading it failed, in SQLite's words.
    damage: Option<String>,
    /// Where its content was copied to after it was taken away.
    saved: Option<PathBuf>,
    /// Copying it was tried, which is done once.
    tried: bool,
}

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// There is nothing at its path.
    Gone,
    /// There is something else at its path.
    Replaced,
    /// A symbolic link has taken its place and leads to it: other processes would name its log after another place.
    Linked,
    /// It has several names, so that other processes may use it with a log of their own.
    Shared,
    /// Its log or its index is gone or replaced.
    PartGone(&'static str),
    /// It or its log is shorter than it was.
    Cut,
    /// Reading it fails.
    Damaged,
}

/// Why a file cannot be used at present.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FileTrouble {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
    kind: Kind,
}

/// What reading a file through has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Examined {
    /// Every page is as it has to be.
    Sound,
    /// Not everything was read in the time given, or it could not be read now.
    Unfinished,
    /// In SQLite's words.
    Damaged(String),
}

impl DataFile {
    /// Where the file is, without symbolic links: where to open it.
    pub fn real(&self) -> &Path {
        &self.real
    }

    /// Whether the file is still the one that was opened, whole, and not known to be damaged. A few `stat` calls: cheap
    /// enough for each transaction, before its commit and before its answer.
    ///
    /// # Errors
    /// [`FileTrouble`], which is logged when it begins.
    pub fn check(&self) -> Result<(), FileTrouble> {
        self.found(self.look())
    }

    /// What the last look has shown.
    pub fn trouble(&self) -> Option<FileTrouble> {
        let state = self.state();
        state.kind.map(|kind| self.describe(kind, &state))
    }

    /// Remembers that SQLite could not make sense of the file. Until it was read through and is sound, it is not used.
    pub fn damaged(&self, problem: impl Into<String>) {
        self.state().damage.get_or_insert(problem.into());
        let _ = self.check();
    }

    /// Turns what reading it through has shown into trouble where that is damage.
    ///
    /// # Errors
    /// It is damaged.
    pub fn judge(&self, examined: Examined) -> Result<Examined, FileTrouble> {
        match examined {
            Examined::Damaged(problem) => {
                let state = State { damage: Some(problem), ..State::default() };
                Err(self.describe(Kind::Damaged, &state))
            }
            Examined::Sound | Examined::Unfinished => Ok(examined),
        }
    }

    /// What an earlier process saved of such a file, where that still lies beside this one.
    pub fn leftover(&self) -> Option<Leftover> {
        Leftover::beside(&self.path)
    }

    /// What to do about a damaged file.
    pub fn hint_on_damage(path: &Path) -> String {
        let path = path.display();
        format!(
            "stop every headcount that uses it and keep a copy of {path} and {path}-wal; then restore a backup, or rebuild it with the SQLite shell: sqlite3 {path} .recover | sqlite3 recovered.db"
        )
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) -> Option<Kind> {
        if self.state().damage.is_some() {
            return Some(Kind::Damaged);
        }
        let known = self.parts?;
        // Before looking: another look that comes in between may see more.
        let least = self.sizes.each_ref().map(|size| size.load(Ordering::Relaxed));
        let Some(file) = Seen::at(&self.real) else { return Some(Kind::Gone) };
        // Through the configured path too: a symbolic link may lead somewhere else by now.
        if Seen::through(&self.path).is_none_or(|seen| seen.identity != known.file) {
            return Some(Kind::Replaced);
        }
        if file.identity != known.file {
            let led = Seen::through(&self.real).is_some_and(|seen| seen.identity == known.file);
            return Some(if led { Kind::Linked } else { Kind::Replaced });
        }
        if file.names > 1 {
            return Some(Kind::Shared);
        }
        let log = Seen::at(&side(&self.real, identity::LOG));
        if log.map(|log| log.identity) != Some(known.log) {
            return Some(Kind::PartGone(identity::LOG));
        }
        if Identity::of(&side(&self.real, identity::INDEX)) != Some(known.index) {
            return Some(Kind::PartGone(identity::INDEX));
        }
        let seen = [file.size, log.map_or(0, |log| log.size).min(LOG_LIMIT)];
        if seen.iter().zip(least).any(|(seen, least)| *seen < least) {
            return Some(Kind::Cut);
        }
        for (size, seen) in self.sizes.iter().zip(seen) {
            size.fetch_max(seen, Ordering::Relaxed);
        }
        None
    }

    /// Takes the present sizes for right.
    fn accept_sizes(&self) {
        for size in &self.sizes {
            size.store(0, Ordering::Relaxed);
        }
    }

    fn found(&self, kind: Option<Kind>) -> Result<(), FileTrouble> {
        let mut state = self.state();
        let before = std::mem::replace(&mut state.kind, kind);
        let trouble = kind.map(|kind| self.describe(kind, &state));
        let back = kind.is_none() && before.is_some();
        if back {
            // Should it go once more, what it holds then is to be saved.
            (state.saved, state.tried) = (None, false);
        }
        drop(state);
        if back {
            self.with_lock(|file| lock::note_back(file).ok());
        }
        match &trouble {
            Some(trouble) if before != kind => tracing::error!("{trouble}; {}", trouble.hint),
            None if before.is_some() => {
                tracing::info!("{} is as it has to be again; going on", self.path.display());
            }
            Some(_) | None => {}
        }
        trouble.map_or(Ok(()), Err)
    }

    fn describe(&self, kind: Kind, state: &State) -> FileTrouble {
        let path = self.path.display();
        let message = match kind {
            Kind::Gone => {
                format!("{path} is gone: it was removed or moved away while headcount was using it")
            }
            Kind::Replaced => format!(
                "{path} is not the file that headcount was using: that one was removed, moved or replaced"
            ),
            Kind::Linked => format!(
                "{path} was moved, and a symbolic link to it put in its place, while headcount was using it"
            ),
            Kind::Shared => lock::LockError::Shared(self.path.clone()).to_string(),
            Kind::PartGone(part) => {
                format!("{path}{part} was removed, moved or replaced while headcount was using it")
            }
            Kind::Cut => format!("{path} or its write-ahead log was cut off while headcount was using it"),
            Kind::Damaged => format!("{path} is damaged: {}", state.damage.as_deref().unwrap_or_default()),
        };
        let hint = match (kind, &state.saved) {
            (Kind::Damaged, _) => Self::hint_on_damage(&self.path),
            (Kind::Linked, _) => "move the file itself back to the place of the link, and headcount goes on".to_owned(),
            (Kind::Shared, _) => format!("{}, and headcount goes on", lock::one_name(&self.path)),
            (_, Some(saved)) => format!("it holds what was committed: {}", saved::advice(&self.path, saved)),
            (Kind::Cut, None) => format!("reading it through; if this stays: {}", Self::hint_on_damage(&self.path)),
            _ => "put the same file back, and headcount goes on; it still holds what was committed, so do not kill it: within seconds, or when it is stopped, that is saved beside the file, and the log says where".to_owned(),
        };
        FileTrouble { message, hint, kind }
    }

    /// Lets other processes use a file of this name. Only once every connection is closed.
    fn release(&self) {
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// The path of what belongs to a file and lies beside it.
fn side(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
