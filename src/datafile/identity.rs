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

impl Identity {
    /// Of the file at a path, and its size; `None` where there is none, or the system cannot tell.
    #[cfg(unix)]
    pub(super) fn of(path: &Path) -> Option<(Self, u64)> {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(path).ok()?;
        Some((Self { device: metadata.dev(), inode: metadata.ino() }, metadata.len()))
    }

    /// Of the file at a path, and its size; `None` where there is none, or the system cannot tell.
    #[cfg(not(unix))]
    pub(super) fn of(_: &Path) -> Option<(Self, u64)> {
        None
    }

    /// Of an open file.
    #[cfg(unix)]
    pub(super) fn of_open(file: &std::fs::File) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let metadata = file.metadata().ok()?;
        Some(Self { device: metadata.dev(), inode: metadata.ino() })
    }

    /// Of an open file.
    #[cfg(not(unix))]
    pub(super) fn of_open(_: &std::fs::File) -> Option<Self> {
        None
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
        let of = |path: &Path| Identity::of(path).map(|(identity, _)| identity);
        Some(Self { file: of(path)?, log: of(&side(path, LOG))?, index: of(&side(path, INDEX))? })
    }
}

impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, part) in [("file", self.file), ("log", self.log), ("index", self.index)] {
            writeln!(f, "{name} {} {}", part.device, part.inode)?;
        }
        Ok(())
    }
}

impl FromStr for Parts {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let part = |name: &str| {
            let mut words = text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace();
            let mut number = || words.next()?.parse().ok();
            Some(Identity { device: number()?, inode: number()? })
        };
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
