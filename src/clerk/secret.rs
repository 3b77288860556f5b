//! Owns signing secrets: what one looks like, what people take for one, and the development secret, which signs and
//! verifies where no endpoint of Clerk's is configured. Promises one development secret per data directory, in a file that
//! only its owner reads, whichever process asks first. Never puts a secret's value into an error.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::{datafile, failure::Failure, secret::Secret};

/// What Clerk's secrets begin with.
const PREFIX: &str = "whsec_";
/// No real secret has fewer bytes; Clerk's have 24.
const LEAST: usize = 16;

/// The name of the development secret's file in the data directory.
pub const DEVELOPMENT_FILE: &str = "development-secret";

/// Why a text is no signing secret. Holds nothing of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signing secret {problem}")]
pub struct WrongSecret {
    /// The place of the wrong one, from 1, among how many.
    place: Option<(usize, usize)>,
    problem: &'static str,
    /// What to do.
    pub hint: &'static str,
}

impl WrongSecret {
    pub(super) const MISSING: Self = Self {
        place: None,
        problem: "is not set",
        hint: "copy it from the endpoint's page in the Clerk dashboard; it starts with whsec_",
    };
    pub(super) const UNREADABLE: Self = Self { problem: "is none", ..Self::MISSING };

    /// What is wrong, for a setting that is called `name`.
    pub fn named(&self, name: &str) -> String {
        let problem = self.problem;
        match self.place {
            Some((place, several)) => format!("{name}: value {place} of {several} {problem}"),
            None => format!("{name} {problem}"),
        }
    }
}

impl From<WrongSecret> for Failure {
    fn from(wrong: WrongSecret) -> Self {
        Self::usage(wrong.to_string()).hint(wrong.hint)
    }
}

/// The signing secrets in a list with commas; none in an empty one.
///
/// # Errors
/// Says which of several is no signing secret, and why.
pub fn list(list: &str) -> Result<Vec<Secret>, WrongSecret> {
    let parts: Vec<&str> = list.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    let check = |(index, part): (usize, &&str)| match problem(part) {
        None => Ok(Secret::new(*part)),
        Some((problem, hint)) => {
            let place = (parts.len() > 1).then_some((index + 1, parts.len()));
            Err(WrongSecret { place, problem, hint })
        }
    };
    parts.iter().enumerate().map(check).collect()
}

/// Why a text is no secret, and what to do.
fn problem(text: &str) -> Option<(&'static str, &'static str)> {
    const COPY: &str = "copy it whole from the endpoint's page in the Clerk dashboard; it starts with whsec_, several are separated by commas";
    if text.starts_with(['"', '\'', '`']) || text.ends_with(['"', '\'', '`']) {
        return Some(("has quotes around it", "write it without them"));
    }
    if text == "v1" {
        let hint = "leave out v1 and the comma: the secret starts with whsec_";
        return Some(("is v1, which belongs to a signature", hint));
    }
    for (prefix, what) in [
        ("sk_", "is a secret key of Clerk's API (sk_…), not a signing secret"),
        ("pk_", "is a publishable key of Clerk (pk_…), not a signing secret"),
        ("ep_", "is the endpoint's id (ep_…), not its signing secret"),
    ] {
        if text.starts_with(prefix) {
            return Some((what, COPY));
        }
    }
    let Some(key) = text.strip_prefix(PREFIX) else {
        let bare = STANDARD.decode(text).is_ok_and(|bytes| bytes.len() >= LEAST);
        let hint = if bare { "write whsec_ in front of it" } else { COPY };
        return Some(("does not start with whsec_", hint));
    };
    match STANDARD.decode(key) {
        Ok(bytes) if bytes.len() >= LEAST => None,
        Ok(_) => Some(("is too short to be a signing secret", COPY)),
        Err(_) if (1..=2).any(|missing| STANDARD.decode(format!("{key}{}", "=".repeat(missing))).is_ok()) => {
            Some(("lacks the = at its end", COPY))
        }
        Err(_) if key.contains(char::is_whitespace) => Some(("has white space in it", COPY)),
        Err(_) => Some(("is cut off, or holds characters that no signing secret has", COPY)),
    }
}

/// A new secret.
pub fn random() -> Secret {
    Secret::new(format!("{PREFIX}{}", STANDARD.encode(rand::random::<[u8; 32]>())))
}

/// The key in a secret, with or without its prefix; `None` where there is none.
pub(super) fn bytes(secret: &Secret) -> Option<Vec<u8>> {
    let secret = secret.expose();
    STANDARD.decode(secret.strip_prefix(PREFIX).unwrap_or(secret)).ok().filter(|bytes| !bytes.is_empty())
}

/// The development secret of `data_dir`, made where there is none yet.
///
/// # Errors
/// The directory or the file cannot be used, or the file holds something else.
pub fn make_development(data_dir: &Path) -> Result<Secret, Failure> {
    let path = data_dir.join(DEVELOPMENT_FILE);
    if let Some(secret) = read(&path)? {
        return Ok(secret);
    }
    make(data_dir, &path).map_err(|error| unusable(&path, &error))?;
    read(&path)?.ok_or_else(|| unusable(&path, &io::ErrorKind::NotFound.into()))
}

/// The development secret of `data_dir`, where there is one.
///
/// # Errors
/// The file cannot be read, or holds something else.
pub fn development(data_dir: &Path) -> Result<Option<Secret>, Failure> {
    read(&data_dir.join(DEVELOPMENT_FILE))
}

fn read(path: &Path) -> Result<Option<Secret>, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let text = text.trim();
            let secret =
                Some(Secret::new(text)).filter(|secret| text.starts_with(PREFIX) && bytes(secret).is_some());
            secret.map(Some).ok_or_else(|| {
                Failure::usage(format!("{} holds no signing secret", path.display()))
                    .hint("delete the file: `headcount up` makes another")
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unusable(path, &error)),
    }
}

/// Writes a new secret aside and links it into place: it is there whole or not at all, and the first of two stays.
fn make(data_dir: &Path, path: &Path) -> io::Result<()> {
    datafile::make_directory(data_dir)?;
    let aside: PathBuf = data_dir.join(format!("{DEVELOPMENT_FILE}.{:016x}", rand::random::<u64>()));
    let written = write_private(&aside, &format!("{}\n", random().expose()));
    let linked = written.and_then(|()| match fs::hard_link(&aside, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    });
    let _ = fs::remove_file(&aside);
    linked
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = datafile::options().create_new(true).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn unusable(path: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("{} cannot be used: {error}", path.display()))
        .hint("check the directory's permissions, or set HEADCOUNT_DATA_DIR to one that can be written")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn what_is_wrong_with_a_secret_is_said() {
        for (value, said) in [
            ("\"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"", "quotes"),
            ("v1,whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "v1"),
            ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "does not start with whsec_"),
            ("hunter2", "does not start with whsec_"),
            ("sk_test_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "secret key of Clerk's API"),
            ("pk_live_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "publishable key"),
            ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLQ", "lacks the = at its end"),
            ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS", "is cut off"),
            ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaL", "is cut off"),
            ("whsec_…", "is cut off"),
            ("whsec_MfKQ9r8GKYqr TwjUPD8ILPZIo2LaLaSw", "white space"),
            ("whsec_aHVudGVyMg==", "too short"),
            ("whsec_", "too short"),
        ] {
            let error = list(value).expect_err(value);
            assert!(
                error.named("SECRET").starts_with("SECRET") && error.to_string().contains(said),
                "{value}: {error}"
            );
            assert!(!error.hint.is_empty());
        }
    }

    #[test]
    fn the_wrong_one_of_several_is_named() {
        let error = list(&format!("{GOOD}, {GOOD},hunter2")).unwrap_err();
        assert_eq!(error.named("SECRET"), "SECRET: value 3 of 3 does not start with whsec_");
        assert_eq!(list(&format!(" {GOOD},,{GOOD} ,")).unwrap().len(), 2);
        assert_eq!(list(" ").unwrap(), []);
    }

    #[test]
    fn a_secret_is_made_once_and_only_its_owner_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path().join("deep/er");
        assert!(development(&data_dir).unwrap().is_none());
        let secret = make_development(&data_dir).unwrap();
        assert!(svix::webhooks::Webhook::new(secret.expose()).is_ok());
        assert_eq!(make_development(&data_dir).unwrap(), secret);
        assert_eq!(development(&data_dir).unwrap(), Some(secret));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(data_dir.join(DEVELOPMENT_FILE)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(&data_dir).unwrap().count(), 1, "nothing is left aside");
    }

    #[test]
    fn many_who_ask_first_get_the_same_one() {
        let directory = tempfile::tempdir().unwrap();
        let secrets: Vec<Secret> = std::thread::scope(|scope| {
            let asked: Vec<_> =
                (0..8).map(|_| scope.spawn(|| make_development(directory.path()).unwrap())).collect();
            asked.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(secrets.iter().all(|secret| *secret == secrets[0]));
    }

    #[test]
    fn a_file_that_holds_something_else_is_named_and_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(DEVELOPMENT_FILE), "hunter2").unwrap();
        let failure = make_development(directory.path()).unwrap_err();
        assert!(failure.message.contains(DEVELOPMENT_FILE) && !format!("{failure:?}").contains("hunter2"));
        assert_eq!((failure.exit.code(), failure.hints.len()), (2, 1));
    }
}
