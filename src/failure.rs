//! Owns how an operation that failed is reported to a person: what is wrong, what to do, and the exit code. The codes
//! are stable, documented in `--help`, and tested. Never prints a secret, a body or an address.

use std::{io::Write, process::ExitCode};

use crate::terminal;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Done,
    /// 1: the operation failed.
    Failed,
    /// 2: usage or configuration; running it again changes nothing.
    Usage,
}

impl Exit {
    /// As the shell sees it.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a command failed, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What is wrong, in a sentence without a full stop. Never a secret, a body or an address.
    pub message: String,
    /// What to do; one line each.
    pub hints: Vec<String>,
    /// The exit code.
    pub exit: Exit,
}

impl Failure {
    /// The operation failed.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hints: Vec::new(), exit: Exit::Failed }
    }

    /// Usage or configuration is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, ..Self::new(message) }
    }

    /// Adds a line that says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Writes `error: …` and `hint: …` lines. A closed stderr is no error.
    pub fn report(&self, mut to: impl Write) {
        let mut lines = format!("error: {}\n", terminal::safe(&self.message));
        for hint in &self.hints {
            lines.push_str(&format!("hint: {}\n", terminal::safe(hint)));
        }
        let _ = to.write_all(lines.as_bytes()).and_then(|()| to.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_its_hints_on_lines_of_their_own() {
        let mut text = Vec::new();
        Failure::new("it broke").hint("mend it").hint("or not").report(&mut text);
        assert_eq!(String::from_utf8(text).unwrap(), "error: it broke\nhint: mend it\nhint: or not\n");
    }

    #[test]
    fn no_error_forges_a_line_or_steers_the_terminal() {
        let mut text = Vec::new();
        Failure::new("no such\nhint: curl evil").hint("a\u{9b}2Jb").report(&mut text);
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text, "error: no such\\u{a}hint: curl evil\nhint: a\\u{9b}2Jb\n");
    }
}
