//! Owns time: its unit, now, and how people read it. Everything in headcount counts milliseconds since the Unix epoch.

use chrono::{DateTime, SecondsFormat, Utc};

/// Milliseconds since the Unix epoch, UTC: the unit of every time in this crate.
pub type Millis = i64;

/// Now, by this machine's clock.
pub fn now() -> Millis {
    Utc::now().timestamp_millis()
}

/// A time as RFC 3339 in UTC, to the millisecond; `-` where it is out of range.
pub fn rfc3339(at: Millis) -> String {
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

/// How long something took, as people read it: `9 ms`, `1.4 s`, and from a minute on as [`ago`] has it: `3m 20s`.
pub fn millis(millis: u64) -> String {
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..60_000 => format!("{}.{} s", millis / 1_000, millis % 1_000 / 100),
        _ => ago(0, i64::try_from(millis).unwrap_or(i64::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_for_people() {
        assert_eq!(rfc3339(1_760_000_000_123), "2025-10-09T08:53:20.123Z");
        assert_eq!(rfc3339(i64::MAX), "-");
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
    }

    #[test]
    fn what_took_long_is_told_in_larger_units() {
        for (took, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_000, "1.0 s"),
            (1_450, "1.4 s"),
            (59_999, "59.9 s"),
            (60_000, "1m 0s"),
            (200_000, "3m 20s"),
        ] {
            assert_eq!(millis(took), text);
        }
        assert!(millis(u64::MAX).contains("d "));
    }
}
