//! Owns who may read what headcount writes: directories that only their owner enters, files that only their owner reads,
//! from their first moment and whatever the umask. What has wider modes already is told, never changed: somebody may
//! have meant it. Never opens a database file that is there.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

/// What is readable for others, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposed {
    /// What is.
    pub message: String,
    /// The command to run.
    pub hint: String,
}

/// Makes a directory for files of ours, with those above it. One that is there is left as it is.
///
/// # Errors
/// What the system says.
pub fn make_directory(directory: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

/// What opens a file of ours, which only its owner reads where this makes it.
pub fn options() -> OpenOptions {
    let mut options = File::options();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.write(true);
    options
}

/// Makes the file, empty, where there is none: SQLite takes an empty file for a new database, and gives the log and the
/// index the mode of their file.
pub(super) fn make_file(path: &Path) -> io::Result<()> {
    match path.exists() {
        true => Ok(()),
        // Through a symbolic link that leads nowhere yet, too.
        false => options().create(true).truncate(false).open(path).map(drop),
    }
}

/// What others on this machine can read: of the files in the directory that are ours, of the directory itself where there
/// are any, and of a database file that lies elsewhere, with what belongs to it.
pub fn exposed(directory: &Path, ours: &[&str], elsewhere: Option<&Path>) -> Option<Exposed> {
    let mut found = beside(directory, ours);
    let open_door = !found.is_empty() && is_exposed(directory);
    found.retain(|path| is_exposed(path));
    if let Some((place, name)) =
        elsewhere.and_then(|path| Some((path.parent()?, path.file_name()?.to_str()?)))
    {
        let place = if place.as_os_str().is_empty() { Path::new(".") } else { place };
        found.extend(beside(place, &[name]).into_iter().filter(|path| is_exposed(path)));
    }
    found.sort();
    found.dedup();
    if found.is_empty() && !open_door {
        return None;
    }
    let door = open_door.then_some(directory);
    let all: Vec<&Path> = door.into_iter().chain(found.iter().map(PathBuf::as_path)).collect();
    let more = if all.len() > 1 { format!(" and {} more", all.len() - 1) } else { String::new() };
    let first = all.first().map(|path| path.display().to_string()).unwrap_or_default();
    let message =
        format!("other users of this machine may read {first}{more}: webhooks and users are kept there");
    let files: Vec<String> = found.iter().map(|path| quoted(path)).collect();
    let close_door = door.map(|directory| format!("chmod 700 {}", quoted(directory)));
    let close_files = (!files.is_empty()).then(|| format!("chmod 600 {}", files.join(" ")));
    let hint = [close_door, close_files].into_iter().flatten().collect::<Vec<_>>().join(" && ");
    Some(Exposed { message, hint: format!("run: {hint}") })
}

/// Files whose names begin with one of these.
fn beside(directory: &Path, names: &[&str]) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| {
        let name = entry.file_name();
        name.to_str().is_some_and(|name| names.iter().any(|ours| name.starts_with(ours)))
    });
    ours.map(|entry| entry.path()).collect()
}

#[cfg(unix)]
fn is_exposed(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    // Where a symbolic link leads. A sticky directory is everybody's, as /tmp is: closing it is no advice.
    std::fs::metadata(path)
        .is_ok_and(|metadata| metadata.mode() & 0o077 != 0 && metadata.mode() & 0o1000 == 0)
}

#[cfg(not(unix))]
fn is_exposed(_: &Path) -> bool {
    false
}

/// As a shell reads it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
    if plain { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn widen(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_others_can_read_is_told_with_the_commands_to_run() {
        let home = tempfile::tempdir().unwrap();
        let (data, other) = (home.path().join("it's here"), home.path().join("other"));
        make_directory(&data).unwrap();
        make_directory(&other).unwrap();
        for name in ["queue.db", "queue.db-wal", "queue.db.saved", "notes.txt"] {
            make_file(&data.join(name)).unwrap();
        }
        let users = other.join("users.db");
        make_file(&users).unwrap();
        let exposed = || exposed(&data, &["queue.db"], Some(&users));
        assert_eq!(exposed(), None);
        // What is not ours does not concern us, nor does the directory of a file that lies elsewhere.
        widen(&data.join("notes.txt"), 0o644);
        widen(&other, 0o755);
        assert_eq!(exposed(), None);

        widen(&data, 0o755);
        widen(&data.join("queue.db-wal"), 0o640);
        widen(&users, 0o644);
        let found = exposed().unwrap();
        assert!(found.message.contains("it's here and 2 more"), "{}", found.message);
        let commands = found.hint.strip_prefix("run: ").unwrap();
        assert!(std::process::Command::new("sh").args(["-c", commands]).status().unwrap().success());
        assert_eq!(exposed(), None, "{commands}");
    }
}
