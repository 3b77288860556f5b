//! Owns the progress bar of long commands: on stderr, and only on a terminal.

use std::{fmt::Write, io::IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// A bar with rate and remaining time; hidden where stderr is no terminal, or less than two steps are expected.
pub(super) fn bar(expected: u64) -> ProgressBar {
    if expected < 2 || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(expected), ProgressDrawTarget::stderr_with_hz(8));
    goes_on(&bar);
    bar
}

/// Shows what goes on, after it waited.
pub(super) fn goes_on(bar: &ProgressBar) {
    bar.set_style(style("[{bar:30}] {human_pos}/{human_len}  {rate}  {eta} left"));
}

/// Shows that nothing goes on at present: the remaining time is not known then.
pub(super) fn waits(bar: &ProgressBar) {
    bar.set_style(style("[{bar:30}] {human_pos}/{human_len}  waiting"));
    bar.tick();
}

fn style(template: &str) -> ProgressStyle {
    let shown = |state: &ProgressState, to: &mut dyn Write| {
        // A closed terminal is no error.
        let _ = to.write_str(&rate(state.per_sec()));
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.with_key("rate", shown).progress_chars("## ")
}

/// `308/s`, and with a decimal where that says something: `2.5/s`.
pub(super) fn rate(per_second: f64) -> String {
    if per_second < 10.0 { format!("{per_second:.1}/s") } else { format!("{per_second:.0}/s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_number_that_people_read() {
        assert_eq!([307.5104, 9.96, 2.5, 0.04].map(rate), ["308/s", "10.0/s", "2.5/s", "0.0/s"]);
    }
}
