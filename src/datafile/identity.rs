//! Owns telling files apart by what the system knows of them. Never opens one.

use std::{fmt, path::Path, str::FromStr};

use super::side;

/// What SQLite appends to the file's name for its write-ahead log.
pub(super) const LOG: &str = "-wal";
/// What it appends for the index of that log.
pub(super) const INDEX: &str = "-shm";

/// Which file it is: no two files of a system that exist at one time have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

/// What a path leads to; `None` where that is nothing, or the system cannot tell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) identity: Identity,
    /// In bytes.
    pub(super) size: u64,
    /// How many names the file has.
    pub(super) names: u64,
}

impl Seen {
    /// What stands at the path itself, which may be a symbolic link.
    pub(super) fn at(path: &Path) -> Option<Self> {
        Self::from(&std::fs::symlink_metadata(path).ok()?)
    }

    /// What the path leads to, through symbolic links.
    pub(super) fn through(path: &Path) -> Option<Self> {
        Self::from(&std::fs::metadata(path).ok()?)
    }

    #[cfg(unix)]
    fn from(metadata: &std::fs::Metadata) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let identity = Identity { device: metadata.dev(), inode: metadata.ino() };
        // A directory counts those in it, and is no file of two names.
        let names = if metadata.is_dir() { 1 } else { metadata.nlink() };
        Some(Self { identity, size: metadata.len(), names })
    }

    #[cfg(not(unix))]
    fn from(_: &std::fs::Metadata) -> Option<Self> {
        None
    }
}

impl Identity {
    /// Of what stands at a path.
    pub(super) fn of(path: &Path) -> Option<Self> {
        Seen::at(path).map(|seen| seen.identity)
    }

    /// From the line that begins with this name.
    pub(super) fn named(text: &str, name: &str) -> Option<Self> {
        let mut words = text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace();
        let mut number = || words.next()?.parse().ok();
        Some(Self { device: number()?, inode: number()? })
    }

    /// Of an open file.
    pub(super) fn of_open(file: &std::fs::File) -> Option<Self> {
        Seen::from(&file.metadata().ok()?).map(|seen| seen.identity)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.device, self.inode)
    }
}

/// A database file with what belongs to it while it is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) file: Identity,
    pub(super) log: Identity,
    pub(super) index: Identity,
}

impl Parts {
    /// Of what is there now; `None` where something is missing.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let of = Identity::of;
        Some(Self { file: of(path)?, log: of(&side(path, LOG))?, index: of(&side(path, INDEX))? })
    }
}

impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, part) in [("file", self.file), ("log", self.log), ("index", self.index)] {
            writeln!(f, "{name} {part}")?;
        }
        Ok(())
    }
}

impl FromStr for Parts {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let part = |name| Identity::named(text, name);
        let parts = || Some(Self { file: part("file ")?, log: part("log ")?, index: part("index ")? });
        parts().ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_as_they_were_written() {
        let of = |inode| Identity { device: 7, inode };
        let parts = Parts { file: of(1), log: of(2), index: of(3) };
        assert_eq!(format!("{parts}saved elsewhere\n").parse(), Ok(parts));
        for text in ["", "file 7 1\nlog 7 2\n", "file 7 x\nlog 7 2\nindex 7 3\n"] {
            assert_eq!(text.parse::<Parts>(), Err(()), "{text:?}");
        }
    }
}
