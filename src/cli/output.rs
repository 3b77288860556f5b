//! Owns what commands print: data on stdout, remarks on stderr. Promises that a reader who goes away early is no error,
//! and that no text from outside steers the terminal or forges a line: text printed for
//! people goes through [`terminal::safe`] here, and JSON through [`terminal::safe_json`].

use std::{
    fmt,
    io::{self, IsTerminal, Write},
};

use serde::Serialize;

use crate::{cli::table::table, failure::Failure, terminal};

/// A line on stderr, beside the data: a warning, or what a question is about. A closed stderr is no error.
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
    /// It is a terminal that can be steered.
    on_terminal: bool,
}

/// The size of a terminal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) columns: usize,
    pub(super) rows: usize,
}

impl Output {
    /// The process's stdout.
    pub fn stdout() -> Self {
        let size =
            io::stdout().is_terminal().then(|| terminal_size::terminal_size_of(io::stdout())).flatten();
        // A terminal that does not know its size says 0.
        let columns = size.map(|(columns, _)| usize::from(columns.0)).filter(|columns| *columns > 0);
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let on_terminal = io::stdout().is_terminal() && !is_dumb;
        Self { columns, on_terminal, ..Self::to(io::stdout()) }
    }

    /// Anything else, for tests.
    pub fn to(to: impl Write + Send + 'static) -> Self {
        Self { to: Box::new(to), open: true, columns: None, on_terminal: false }
    }

    /// Whether this is a terminal on which what was written can be written over.
    pub(super) fn is_terminal(&self) -> bool {
        self.on_terminal
    }

    /// How large the terminal is now.
    pub(super) fn size(&self) -> Size {
        // A terminal that does not know its size says 0.
        let size = terminal_size::terminal_size_of(io::stdout());
        let known = size.map(|(columns, rows)| (usize::from(columns.0), usize::from(rows.0)));
        let (columns, rows) = known.filter(|(columns, rows)| *columns > 0 && *rows > 0).unwrap_or((80, 24));
        Size { columns, rows }
    }

    /// Writes what steers the terminal: the text in it has to be safe already.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub(super) fn control(&mut self, text: &str) -> Result<(), Failure> {
        self.write(text.as_bytes())
    }

    /// Whether the reader is still there: a long listing stops where it is not.
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
    fn no_text_forges_a_line_or_steers_the_terminal() {
        let reader = Reader::default();
        let mut output = Output::to(reader.clone());
        output.line("a\u{1b}[2J\nb").unwrap();
        output.json(&["\u{9b}\u{202e}\n"]).unwrap();
        output.json_line(&["\u{7f}"]).unwrap();
        let text = String::from_utf8(reader.read.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "a\\u{1b}[2J\\u{a}b\n[\n  \"\\u009b\\u202e\\n\"\n]\n[\"\\u007f\"]\n");
    }
}
