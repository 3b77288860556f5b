//! Owns how commands speak: data on stdout, errors with a `hint:` on stderr, tables that read without colour. Promises
//! that a reader who goes away early is no error, and that no text from outside steers the terminal.

use std::{
    fmt,
    io::{self, Write},
};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use super::Exit;
use crate::{
    config::ConfigError,
    message::{Millis, clean},
};

/// The longest cell of a table, in bytes.
const CELL_MAX: usize = 200;

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
        let mut lines = format!("error: {}\n", self.message);
        for hint in &self.hints {
            lines.push_str(&format!("hint: {hint}\n"));
        }
        let _ = to.write_all(lines.as_bytes()).and_then(|()| to.flush());
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.message).hint(error.hint)
    }
}

/// Where a command's data goes: stdout. Once the reader is gone (`| head`) it swallows the rest.
pub struct Output {
    to: Box<dyn Write + Send>,
    open: bool,
}

impl Output {
    /// The process's stdout.
    pub fn stdout() -> Self {
        Self::to(io::stdout())
    }

    /// Anything else, for tests.
    pub fn to(to: impl Write + Send + 'static) -> Self {
        Self { to: Box::new(to), open: true }
    }

    /// Whether somebody still reads: a long listing stops where nobody does.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// One line.
    ///
    /// # Errors
    /// The output cannot be written; a reader who went away is no error.
    pub fn line(&mut self, line: impl fmt::Display) -> Result<(), Failure> {
        self.write(format!("{line}\n").as_bytes())
    }

    /// A value as JSON for people and for `jq`.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| Failure::new(format!("the answer cannot be written as JSON: {error}")))?;
        self.line(text)
    }

    /// A table: columns by their widest cell, two spaces between, numbers to the right. Nothing where it has no rows.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn table(&mut self, header: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
        if rows.is_empty() {
            return Ok(());
        }
        self.write(table(header, rows).as_bytes())
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

fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| clean(cell, CELL_MAX)).collect()).collect();
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let columns: Vec<(usize, bool)> = header
        .iter()
        .enumerate()
        .map(|(column, title)| {
            let width = cells(column).map(|cell| cell.chars().count()).max().unwrap_or(0);
            let number = |cell: &String| {
                cell.starts_with(|c: char| c.is_ascii_digit())
                    && cell.chars().all(|c| c.is_ascii_digit() || ".,".contains(c))
            };
            (width.max(title.chars().count()), cells(column).all(number))
        })
        .collect();
    let mut out = String::new();
    let mut push = |row: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, (width, right)) in row.zip(&columns) {
            let pad = " ".repeat(width - cell.chars().count().min(*width));
            let (before, after) = if *right { (pad.as_str(), "") } else { ("", pad.as_str()) };
            line.push_str(&format!("{before}{cell}{after}  "));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    };
    push(&mut header.iter().copied());
    for row in &rows {
        push(&mut row.iter().map(String::as_str));
    }
    out
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
    fn a_table_reads_without_colour() {
        let rows = vec![
            vec!["user_1".into(), "9".into(), "Zoë".into()],
            vec!["user_22".into(), "1,200".into(), String::new()],
        ];
        assert_eq!(
            table(&["ID", "CREDITS", "NAME"], &rows),
            "ID       CREDITS  NAME\nuser_1         9  Zoë\nuser_22    1,200\n"
        );
    }

    #[test]
    fn a_cell_never_steers_the_terminal() {
        let text = table(&["NAME"], &[vec!["\u{1b}[2Jx\ny".into()]]);
        assert_eq!(text, "NAME\n\u{fffd}[2Jx\u{fffd}y\n");
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
