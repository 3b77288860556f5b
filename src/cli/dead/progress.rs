//! Owns the progress bar of an action: on stderr, only on a terminal.

use std::{fmt::Write, io::IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// A bar with rate and remaining time; hidden where nobody looks or it would be over at once.
pub(super) fn bar(letters: u64) -> ProgressBar {
    if letters < 2 || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(letters), ProgressDrawTarget::stderr_with_hz(8));
    let style = ProgressStyle::with_template("[{bar:30}] {human_pos}/{human_len}  {rate}  {eta} left");
    let rate = |state: &ProgressState, to: &mut dyn Write| {
        // A terminal that is gone is nobody's error.
        let _ = write!(to, "{:.1}/s", state.per_sec());
    };
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style.with_key("rate", rate).progress_chars("## "))
}
