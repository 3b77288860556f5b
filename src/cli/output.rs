//! Owns how commands speak: data on stdout, errors with a `hint:` and remarks on stderr. Promises that a reader who goes
//! away early is no error, and that no text from outside steers the terminal or forges a line: whatever is printed for
//! people goes through [`terminal::safe`] here, and JSON through [`terminal::safe_json`].

use std::{
    fmt,
    io::{self, IsTerminal, Write},
};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use super::{Exit, table::table};
use crate::{config::ConfigError, message::Millis, terminal};

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

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Writes `error: …` and `hint: …` lines. A stderr that is gone is nobody's error.
    pub fn report(&self, mut to: impl Write) {
        let mut lines = format!("error: {}\n", terminal::safe(&self.message));
        for hint in &self.hints {
            lines.push_str(&format!("hint: {}\n", terminal::safe(hint)));
        }
        let _ = to.write_all(lines.as_bytes()).and_then(|()| to.flush());
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.message).hint(error.hint)
    }
}

/// A line on stderr, beside the data: a warning, or what a question is about. A stderr that is gone is nobody's error.
pub fn remark(line: impl fmt::Display) {
    let line = format!("{}\n", terminal::safe(&line.to_string()));
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Where a command's data goes: stdout. Once the reader is gone (`| head`) it swallows the rest.
pub struct Output {
    to: Box<dyn Write + Send>,
    open: bool,
    /// Of the terminal, where there is one.
    columns: Option<usize>,
}

impl Output {
    /// The process's stdout.
    pub fn stdout() -> Self {
        let size =
            io::stdout().is_terminal().then(|| terminal_size::terminal_size_of(io::stdout())).flatten();
        // A terminal that does not know its size says 0.
        let columns = size.map(|(columns, _)| usize::from(columns.0)).filter(|columns| *columns > 0);
        Self { columns, ..Self::to(io::stdout()) }
    }

    /// Anything else, for tests.
    pub fn to(to: impl Write + Send + 'static) -> Self {
        Self { to: Box::new(to), open: true, columns: None }
    }

    /// Whether somebody still reads: a long listing stops where nobody does.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// One line: a line feed in it is shown as an escape, like everything that would steer the terminal.
    ///
    /// # Errors
    /// The output cannot be written; a reader who went away is no error.
    pub fn line(&mut self, line: impl fmt::Display) -> Result<(), Failure> {
        self.write(format!("{}\n", terminal::safe(&line.to_string())).as_bytes())
    }

    /// A value as JSON for people and for `jq`.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        self.serialized(serde_json::to_string_pretty(value))
    }

    /// A value as JSON on one line.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn json_line(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        self.serialized(serde_json::to_string(value))
    }

    fn serialized(&mut self, json: serde_json::Result<String>) -> Result<(), Failure> {
        let json =
            json.map_err(|error| Failure::new(format!("the answer cannot be written as JSON: {error}")))?;
        self.write(format!("{}\n", terminal::safe_json(&json)).as_bytes())
    }

    /// A table, which fits the terminal where there is one. Nothing where it has no rows.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn table(&mut self, header: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
        if rows.is_empty() {
            return Ok(());
        }
        self.write(table(header, rows, self.columns).as_bytes())
    }

    /// A table of which nothing is cut, for what is shown whole.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn whole_table(&mut self, header: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
        if rows.is_empty() {
            return Ok(());
        }
        self.write(table(header, rows, None).as_bytes())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if !self.open {
            return Ok(());
        }
        match self.to.write_all(bytes).and_then(|()| self.to.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.open = false;
                Ok(())
            }
            Err(error) => Err(Failure::new(format!("the output cannot be written: {error}"))),
        }
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").field("open", &self.open).finish_non_exhaustive()
    }
}

/// A time as RFC 3339 in UTC, to the millisecond; `-` where it is none.
pub fn time(at: Millis) -> String {
    DateTime::<Utc>::from_timestamp_millis(at)
        .map_or_else(|| "-".into(), |time| time.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// How long ago, in one or two units: `now`, `12s`, `3m 20s`, `5h 1m`, `9d 4h`.
pub fn ago(at: Millis, now: Millis) -> String {
    let seconds = now.saturating_sub(at).max(0) / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes, seconds) {
        (0, 0, 0, 0) => "now".into(),
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m {}s", s % 60),
        (0, h, m, _) => format!("{h}h {}m", m % 60),
        (d, h, _, _) => format!("{d}d {}h", h % 24),
    }
}

/// A number with its thousands set apart, for people.
pub fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 letter`, `1,200 letters`.
pub fn letters(count: u64) -> String {
    format!("{} letter{}", number(count), if count == 1 { "" } else { "s" })
}

/// A word as a shell takes it back, for commands to copy.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Writes up to a number of bytes, then its reader is gone.
    #[derive(Clone, Default)]
    struct Reader {
        read: Arc<Mutex<Vec<u8>>>,
        most: Option<usize>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut read = self.read.lock().unwrap();
            if self.most.is_some_and(|most| read.len() >= most) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            read.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_who_goes_away_is_no_error() {
        let reader = Reader { most: Some(5), ..Reader::default() };
        let mut output = Output::to(reader.clone());
        for line in ["first", "second", "third"] {
            output.line(line).unwrap();
        }
        assert!(!output.is_open());
        assert_eq!(*reader.read.lock().unwrap(), b"first\n");
    }

    #[test]
    fn an_error_has_its_hints_on_lines_of_their_own() {
        let mut text = Vec::new();
        Failure::new("it broke").hint("mend it").hint("or not").report(&mut text);
        assert_eq!(String::from_utf8(text).unwrap(), "error: it broke\nhint: mend it\nhint: or not\n");
        let failure = Failure::from(ConfigError { message: "a".into(), hint: "b".into() });
        assert_eq!((failure.exit.code(), failure.hints), (2, vec!["b".to_owned()]));
    }

    #[test]
    fn no_text_forges_a_line_or_steers_the_terminal() {
        let mut text = Vec::new();
        Failure::new("no such\nhint: curl evil").hint("a\u{9b}2Jb").report(&mut text);
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text, "error: no such\\u{a}hint: curl evil\nhint: a\\u{9b}2Jb\n");
        let reader = Reader::default();
        let mut output = Output::to(reader.clone());
        output.line("a\u{1b}[2J\nb").unwrap();
        output.json(&["\u{9b}\u{202e}\n"]).unwrap();
        output.json_line(&["\u{7f}"]).unwrap();
        let text = String::from_utf8(reader.read.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "a\\u{1b}[2J\\u{a}b\n[\n  \"\\u009b\\u202e\\n\"\n]\n[\"\\u007f\"]\n");
    }

    #[test]
    fn times_and_numbers_are_for_people() {
        assert_eq!(time(1_760_000_000_123), "2025-10-09T08:53:20.123Z");
        assert_eq!(time(i64::MAX), "-");
        for (millis, text) in [
            (-5, "now"),
            (999, "now"),
            (12_000, "12s"),
            (200_000, "3m 20s"),
            (18_060_000, "5h 1m"),
            (792_000_000, "9d 4h"),
        ] {
            assert_eq!(ago(0, millis), text);
        }
        assert_eq!([0, 999, 1000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
    }
}
