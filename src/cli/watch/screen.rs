//! Owns where frames go: a terminal, which is given back as it was, or lines in a pipe.

use super::frame::View;
use crate::{
    cli::output::{Output, Size},
    failure::Failure,
    terminal::width,
};

/// Where frames go: the alternate screen of a terminal, or lines.
pub(super) struct Screen<'o> {
    output: &'o mut Output,
    pub(super) on_terminal: bool,
    /// A block was written.
    written: bool,
}

impl<'o> Screen<'o> {
    pub(super) fn enter(output: &'o mut Output) -> Result<Self, Failure> {
        let on_terminal = output.is_terminal();
        let screen = Self { output, on_terminal, written: false };
        if on_terminal {
            // The alternate screen, without a cursor.
            screen.output.control("\u{1b}[?1049h\u{1b}[?25l")?;
        }
        Ok(screen)
    }

    pub(super) fn is_open(&self) -> bool {
        self.output.is_open()
    }

    pub(super) fn show(&mut self, view: &View) -> Result<(), Failure> {
        if !self.on_terminal {
            if std::mem::replace(&mut self.written, true) {
                self.output.line("")?;
            }
            return view.frame(None).iter().try_for_each(|line| self.output.line(line));
        }
        let size = self.output.size();
        self.output.control(&drawn(&view.frame(Some(size)), size))
    }
}

/// A frame as a terminal takes it, in one go where it knows how.
fn drawn(lines: &[String], size: Size) -> String {
    // A line clears its rest. One that is full has none: the cursor stands on its last character, which would be cleared.
    let rest = |line: &String| if width(line) < size.columns { "\u{1b}[K" } else { "" };
    let drawn: Vec<String> = lines.iter().map(|line| format!("{line}{}", rest(line))).collect();
    let below = if lines.len() < size.rows { "\r\n\u{1b}[J" } else { "" };
    format!("\u{1b}[?2026h\u{1b}[H{}{below}\u{1b}[?2026l", drawn.join("\r\n"))
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        if self.on_terminal {
            let _ = self.output.control("\u{1b}[?25h\u{1b}[?1049l");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_line_keeps_its_last_character() {
        let size = Size { columns: 3, rows: 3 };
        let draw =
            |lines: &[&str]| drawn(&lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>(), size);
        assert_eq!(draw(&["abc", "d"]), "\u{1b}[?2026h\u{1b}[Habc\r\nd\u{1b}[K\r\n\u{1b}[J\u{1b}[?2026l");
        assert_eq!(
            draw(&["a", "b", "王x"]),
            "\u{1b}[?2026h\u{1b}[Ha\u{1b}[K\r\nb\u{1b}[K\r\n王x\u{1b}[?2026l"
        );
    }
}
