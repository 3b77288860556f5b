//! Owns how times are written into the databases: years 0 to 9999, to the millisecond.

use chrono::{DateTime, SecondsFormat, Utc};

use super::{Class, StoreError};
use crate::time::Millis;

const YEAR_0: Millis = -62_167_219_200_000;
const YEAR_10000: Millis = 253_402_300_800_000;

/// A time as the databases take it: years 0 to 9999, so that RFC 3339 texts sort like the times they stand for.
pub(super) fn time(at: Millis) -> Result<DateTime<Utc>, StoreError> {
    DateTime::from_timestamp_millis(at).filter(|_| (YEAR_0..YEAR_10000).contains(&at)).ok_or_else(|| {
        StoreError {
            class: Class::Permanent,
            // What PostgreSQL calls it: datetime_field_overflow.
            code: "22008".into(),
            message: "a time is outside the years 0 to 9999".into(),
            hint: None,
            source: None,
        }
    })
}

/// The nearest time that the databases take.
pub(super) fn time_in_range(at: Millis) -> DateTime<Utc> {
    time(at.clamp(YEAR_0, YEAR_10000 - 1)).unwrap_or_default()
}

/// The same as [`time`] for a time that may be missing.
pub(super) fn time_or_null(at: Option<Millis>) -> Result<Option<DateTime<Utc>>, StoreError> {
    at.map(time).transpose()
}

/// RFC 3339 in UTC with milliseconds: `2026-01-02T03:04:05.678Z`.
pub(super) fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_so_that_they_sort() {
        assert_eq!(rfc3339(time(1_767_323_045_678).unwrap()), "2026-01-02T03:04:05.678Z");
        assert_eq!(rfc3339(time(-62_167_219_200_000).unwrap()), "0000-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(time(253_402_300_799_999).unwrap()), "9999-12-31T23:59:59.999Z");
        for wrong in [i64::MIN, -62_167_219_200_001, 253_402_300_800_000, i64::MAX] {
            assert_eq!(time(wrong).unwrap_err().class, Class::Permanent);
        }
    }
}
