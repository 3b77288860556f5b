//! Owns the development secret: what signs and verifies where no endpoint of Clerk's is configured. Promises one secret
//! per data directory, in a file that only its owner reads, whoever asks first. Never prints it.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::failure::Failure;
use crate::{config::Config, datafile, secret::Secret};

/// The file's name in the data directory.
pub const FILE: &str = "development-secret";

/// The secret that is kept in `data_dir`; made where there is none and `create` says so.
///
/// # Errors
/// The directory or the file cannot be used, or the file holds something else.
pub fn development_secret(data_dir: &Path, create: bool) -> Result<Option<Secret>, Failure> {
    let path = data_dir.join(FILE);
    if let Some(secret) = read(&path)? {
        return Ok(Some(secret));
    }
    if !create {
        return Ok(None);
    }
    make(data_dir, &path).map_err(|error| unusable(&path, &error))?;
    read(&path)
}

/// The secret that this machine signs with: the first that is configured, else the development secret.
///
/// # Errors
/// There is none.
pub fn signing_secret(config: &Config) -> Result<Secret, Failure> {
    if let Some(secret) = config.signing_secrets.first() {
        return Ok(secret.clone());
    }
    development_secret(&config.data_dir, false)?.ok_or_else(|| {
        Failure::usage("there is no secret to sign with")
            .hint("set CLERK_WEBHOOK_SIGNING_SECRET to the secret of the ingress that you send to")
            .hint("or run `headcount up` here, which makes a development secret")
    })
}

fn read(path: &Path) -> Result<Option<Secret>, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let text = text.trim();
            let usable = text.starts_with("whsec_") && svix::webhooks::Webhook::new(text).is_ok();
            usable.then(|| Some(Secret::new(text))).ok_or_else(|| {
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
    let aside: PathBuf = data_dir.join(format!("{FILE}.{:016x}", rand::random::<u64>()));
    let written = write_private(&aside, &format!("whsec_{}\n", STANDARD.encode(rand::random::<[u8; 32]>())));
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

    #[test]
    fn a_secret_is_made_once_and_only_its_owner_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path().join("deep/er");
        assert!(development_secret(&data_dir, false).unwrap().is_none());
        let secret = development_secret(&data_dir, true).unwrap().unwrap();
        assert!(svix::webhooks::Webhook::new(secret.expose()).is_ok());
        assert_eq!(development_secret(&data_dir, true).unwrap(), Some(secret.clone()));
        assert_eq!(development_secret(&data_dir, false).unwrap(), Some(secret));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(data_dir.join(FILE)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(&data_dir).unwrap().count(), 1, "nothing is left aside");
    }

    #[test]
    fn many_who_ask_first_get_the_same_one() {
        let directory = tempfile::tempdir().unwrap();
        let secrets: Vec<Secret> = std::thread::scope(|scope| {
            let asked: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| development_secret(directory.path(), true).unwrap().unwrap()))
                .collect();
            asked.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(secrets.iter().all(|secret| *secret == secrets[0]));
    }

    #[test]
    fn a_file_that_holds_something_else_is_named_and_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), "hunter2").unwrap();
        let failure = development_secret(directory.path(), true).unwrap_err();
        assert!(failure.message.contains(FILE) && !format!("{failure:?}").contains("hunter2"));
        assert_eq!((failure.exit.code(), failure.hints.len()), (2, 1));
    }
}
