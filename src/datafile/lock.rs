//! Owns the lock of a database file: every process that uses the file holds a shared lock on `<file>.lock`, which names
//! the file that they use. A process that finds another file at the path while one of them lives is refused.
//!
//! The lock is the system's own: it ends with its process, however that ends, and `<file>.lock` may stay.

use std::{
    fs::{File, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    sync::{Mutex, atomic::AtomicU64},
    time::{Duration, Instant},
};

use super::{
    DataFile, State,
    identity::{INDEX, Identity, LOG, Parts, Seen},
    private, saved, side,
};

/// What precedes the place of what was saved, in the lock.
const SAVED: &str = "saved ";
/// The line that follows there, once the file is back.
const BACK: &str = "back";
/// What precedes the identity of what was saved, in the lock.
const COPY: &str = "copy ";
/// How long a process that is opening the file is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one that is closing it: between its last connection's end, which removes the log, and the lock's.
const CLOSING: Duration = Duration::from_secs(2);

/// Becomes one of the processes that use the file, which `open` opens and makes where it is missing: the connection has to
/// have read from it, and has to stay open. The file's directory has to exist.
///
/// # Errors
/// What `refused` makes of a lock that cannot be had, or the error of `open`.
pub async fn take_up<C, E, F>(
    path: &Path,
    refused: impl Fn(LockError) -> E,
    open: impl Fn(PathBuf) -> F,
) -> Result<(DataFile, C), E>
where
    F: Future<Output = Result<C, E>>,
{
    let started = Instant::now();
    loop {
        let lock = Lock::take(path).await.map_err(&refused)?;
        let connection = open(lock.real.clone()).await?;
        match lock.opened().await {
            Ok(file) => return Ok((file, connection)),
            // Another process was just closing it, and its log went with its last connection.
            Err(LockError::Other(_)) if started.elapsed() < CLOSING => {
                drop(connection);
                pause().await;
            }
            Err(error) => return Err(refused(error)),
        }
    }
}

/// Whether nobody has used such a file yet: there is none, none was saved, and no process uses one of this name. Makes
/// nothing.
pub fn is_unused(path: &Path) -> bool {
    let real = real(path);
    if real.exists() || saved::newest(&real).is_some() {
        return false;
    }
    match File::open(side(&real, ".lock")) {
        Ok(lock) => !matches!(lock.try_lock(), Err(TryLockError::WouldBlock)),
        Err(_) => true,
    }
}

/// The right to open the file.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    real: PathBuf,
    /// `None` on a file system without locks.
    file: Option<File>,
    /// No other process uses the database file.
    alone: bool,
}

/// Why a file must not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The lock cannot be made.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Other processes use another file of this name.
    #[error("{} is not the file that a running headcount uses: that one, or its write-ahead log, was removed, moved or replaced", .0.display())]
    Other(PathBuf),
    /// A symbolic link has taken the place of a file whose log still lies there.
    #[error("{} is a symbolic link, but the write-ahead log of a file that was there lies beside it: that file was moved while it was in use, or before its log was written into it", .0.display())]
    Moved(PathBuf),
    /// It is a file of several names: under each of them it would have another log.
    #[error("{} has several names (hard links): used under two of them, it would be destroyed", .0.display())]
    Shared(PathBuf),
    /// The file is missing, but what an earlier one held was saved.
    #[error("{} is missing, and {} is what was saved when it was taken away", .path.display(), .saved.display())]
    Saved {
        /// Where the file would be.
        path: PathBuf,
        /// What holds its content.
        saved: PathBuf,
    },
}

/// What to do about a file of several names.
pub(super) fn one_name(path: &Path) -> String {
    format!("leave it one name: remove the others, which find -samefile {} finds", path.display())
}

impl LockError {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io(_) => None,
            Self::Other(path) => Some(format!(
                "stop every headcount that uses {}, and see in its log what it held and where that is saved; then start again",
                path.display()
            )),
            Self::Moved(path) => Some(format!(
                "stop every headcount that uses {}, and move the file itself back to the place of the link; once they are stopped it may lie elsewhere",
                path.display()
            )),
            Self::Shared(path) => Some(one_name(path)),
            Self::Saved { path, saved } => Some(saved::advice(path, saved)),
        }
    }
}

impl Lock {
    /// Waits for processes that are just opening or closing the file.
    async fn take(path: &Path) -> Result<Self, LockError> {
        let real = real(path);
        let started = Instant::now();
        loop {
            match Self::attempt(path, &real) {
                Ok(Some(lock)) => return Ok(lock),
                Err(error @ (LockError::Io(_) | LockError::Saved { .. })) => return Err(error),
                Err(error) if started.elapsed() >= CLOSING => return Err(error),
                Ok(None) if started.elapsed() >= PATIENCE => {
                    let busy = "another headcount is opening the file, and does not come to an end";
                    return Err(io::Error::other(busy).into());
                }
                Ok(None) | Err(_) => pause().await,
            }
        }
    }

    fn attempt(path: &Path, real: &Path) -> Result<Option<Self>, LockError> {
        if entry(path).is_some_and(|entry| entry != real && Seen::at(&side(&entry, LOG)).is_some()) {
            return Err(LockError::Moved(path.to_owned()));
        }
        if Seen::at(real).is_some_and(|seen| seen.names > 1) {
            return Err(LockError::Shared(path.to_owned()));
        }
        let lock_path = side(real, ".lock");
        let lock = private::options().read(true).create(true).truncate(false).open(&lock_path)?;
        let alone = match lock.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => match lock.try_lock_shared() {
                Ok(()) => false,
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error.into()),
            },
            // A file system without locks: whoever uses it is left without this one.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                private::make_file(real)?;
                return Ok(Some(Self {
                    path: path.to_owned(),
                    real: real.to_owned(),
                    file: None,
                    alone: true,
                }));
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        };
        // Locked is what we opened; it counts only if the next one to come opens the same.
        if Seen::through(&lock_path).map(|seen| seen.identity) != Identity::of_open(&lock) {
            return Ok(None);
        }
        if !alone && named(&lock)?.is_some_and(|used| Parts::of(real) != Some(used)) {
            return Err(LockError::Other(path.to_owned()));
        }
        if let (false, Some(saved)) = (real.exists(), saved::newest(real)) {
            return Err(LockError::Saved { path: path.to_owned(), saved });
        }
        if alone {
            drop_stale_log(&lock, real)?;
        }
        private::make_file(real)?;
        Ok(Some(Self { path: path.to_owned(), real: real.to_owned(), file: Some(lock), alone }))
    }

    /// The file was opened: with its log and its index it is the one that others use, or that is to be used.
    async fn opened(self) -> Result<DataFile, LockError> {
        let parts = Parts::of(&self.real);
        let other = || LockError::Other(self.path.clone());
        if cfg!(unix) && parts.is_none() {
            return Err(other());
        }
        if let Some(lock) = &self.file {
            if self.alone {
                // A full disk must not keep anybody from starting: unnamed, the file is not compared.
                if let Err(error) = name(lock, parts) {
                    tracing::debug!(%error, "the lock of {} cannot name it", self.path.display());
                }
                share(lock).await?;
            }
            if named(lock)?.is_some_and(|used| Some(used) != parts) {
                return Err(other());
            }
        }
        Ok(DataFile {
            path: self.path,
            real: self.real,
            parts,
            sizes: [AtomicU64::new(0), AtomicU64::new(0)],
            lock: Mutex::new(self.file),
            state: Mutex::new(State::default()),
        })
    }
}

/// From alone to one of several. Not in one step for the system, so that another may be alone for a moment in between.
async fn share(lock: &File) -> Result<(), LockError> {
    let started = Instant::now();
    loop {
        match lock.try_lock_shared() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if started.elapsed() < PATIENCE => pause().await,
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
}

fn name(mut lock: &File, parts: Option<Parts>) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    parts.map_or(Ok(()), |parts| lock.write_all(parts.to_string().as_bytes()))
}

/// What the lock names; `None` where it names nothing.
fn named(lock: &File) -> io::Result<Option<Parts>> {
    Ok(text(lock)?.parse().ok())
}

fn text(mut lock: &File) -> io::Result<String> {
    let mut text = String::new();
    lock.rewind()?;
    lock.read_to_string(&mut text)?;
    Ok(text)
}

/// Where another process has saved what the file held.
pub(super) fn saved(lock: &File) -> Option<PathBuf> {
    let text = text(lock).ok()?;
    let last = text.lines().rfind(|line| *line == BACK || line.starts_with(SAVED))?;
    last.strip_prefix(SAVED).map(PathBuf::from)
}

/// The file is back, and may get more: what was saved of it is no longer all.
pub(super) fn note_back(mut lock: &File) -> io::Result<()> {
    if saved(lock).is_some() {
        lock.seek(io::SeekFrom::End(0))?;
        writeln!(lock, "{BACK}")?;
    }
    Ok(())
}

/// Tells the other processes that it is saved, and those to come which file holds it.
pub(super) fn note_saved(mut lock: &File, path: &Path) -> io::Result<()> {
    lock.seek(io::SeekFrom::End(0))?;
    writeln!(lock, "{SAVED}{}", path.display())?;
    Identity::of(path).map_or(Ok(()), |copy| writeln!(lock, "{COPY}{copy}"))
}

/// What was saved has been moved to the place of the file that it was saved of: the log of that one must not be read into
/// it. Only where nobody uses the file.
fn drop_stale_log(lock: &File, real: &Path) -> io::Result<()> {
    let text = text(lock).unwrap_or_default();
    let (Some(file), Ok(used)) = (Identity::of(real), text.parse::<Parts>()) else { return Ok(()) };
    if !text.lines().any(|line| line == format!("{COPY}{file}")) {
        return Ok(());
    }
    for (suffix, stale) in [(LOG, used.log), (INDEX, used.index)] {
        let path = side(real, suffix);
        if Identity::of(&path) == Some(stale) {
            std::fs::remove_file(path)?;
        }
    }
    // A new log may get the number of the old one.
    lock.set_len(0)
}

/// The path without symbolic links, also where there is no file yet.
pub(super) fn real(path: &Path) -> PathBuf {
    path.canonicalize().ok().or_else(|| entry(path)).unwrap_or_else(|| path.to_owned())
}

/// The path in its directory without symbolic links; what stands there may be one.
fn entry(path: &Path) -> Option<PathBuf> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new(".")).canonicalize().ok()?;
    Some(directory.join(path.file_name()?))
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(rand::random_range(2..10))).await;
}
