//! Owns what a signing secret has to look like, and what people take for one. Never puts a value into an error.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{ConfigError, wrong};
use crate::secret::Secret;

/// What Clerk's secrets begin with.
const PREFIX: &str = "whsec_";
/// No real secret has fewer bytes; Clerk's have 24.
const LEAST: usize = 16;

/// The signing secrets in a list with commas; none in an empty one.
///
/// # Errors
/// Which of several is none, and how: `name` is what the setting is called.
pub(super) fn secrets(name: &str, list: &str) -> Result<Vec<Secret>, ConfigError> {
    let parts: Vec<&str> = list.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    let check = |(index, part): (usize, &&str)| match problem(part) {
        None => Ok(Secret::new(*part)),
        Some((problem, hint)) => {
            let which = match parts.len() {
                1 => name.to_owned(),
                several => format!("{name}: value {} of {several}", index + 1),
            };
            Err(wrong(format!("{which} {problem}"), hint))
        }
    };
    parts.iter().enumerate().map(check).collect()
}

/// What is wrong with a text as a secret, and what to do.
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
            let error = secrets("SECRET", value).expect_err(value);
            assert!(error.message.starts_with("SECRET") && error.message.contains(said), "{value}: {error}");
            assert!(!error.hint.is_empty());
        }
    }

    #[test]
    fn the_wrong_one_of_several_is_named() {
        let error = secrets("SECRET", &format!("{GOOD}, {GOOD},hunter2")).unwrap_err();
        assert_eq!(error.message, "SECRET: value 3 of 3 does not start with whsec_");
        assert_eq!(secrets("SECRET", &format!(" {GOOD},,{GOOD} ,")).unwrap().len(), 2);
        assert_eq!(secrets("SECRET", " ").unwrap(), []);
    }
}
