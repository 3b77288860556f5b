//! Owns what both stores do alike with a batch, without I/O: what to load, which messages are repeats, which rows go into
//! which statement, the outcomes in the order of the batch, the inbox rows. Never touches SQL.

use std::collections::{BTreeSet, HashMap, HashSet};

use chrono::{DateTime, SecondsFormat, Utc};

use super::{Class, Incoming, StoreError};
use crate::{
    rules::users::{Change, ChangedRow, Event, Outcome, Row, UpsertKind},
    time::Millis,
};

/// The Clerk ids that the batch is about, each once, sorted.
pub(super) fn clerk_ids(batch: &[Incoming]) -> Vec<&str> {
    sorted(batch.iter().filter_map(|incoming| incoming.event.clerk_id()))
}

/// The keys of the addresses that the batch claims, each once, sorted.
pub(super) fn claim_keys(batch: &[Incoming]) -> Vec<&str> {
    sorted(batch.iter().filter_map(|incoming| incoming.event.claim_key()))
}

/// The batch's message ids, each once, sorted.
pub(super) fn message_ids(batch: &[Incoming]) -> Vec<&str> {
    sorted(batch.iter().map(|incoming| incoming.event.message_id.as_str()))
}

/// The messages that took effect, now or before, each once, sorted.
pub(super) fn effective<'a>(batch: &'a [Incoming], outcomes: &[Outcome]) -> Vec<&'a str> {
    let pairs = batch.iter().zip(outcomes);
    let effective = pairs.filter(|(_, outcome)| outcome.is_final() || **outcome == Outcome::Duplicate);
    sorted(effective.map(|(incoming, _)| incoming.event.message_id.as_str()))
}

/// The Clerk ids that the batch's deletions are about, each once, sorted.
pub(super) fn deleted_ids(batch: &[Incoming]) -> Vec<&str> {
    sorted(batch.iter().filter_map(|incoming| match &incoming.event.change {
        Change::Delete { clerk_id, .. } => Some(clerk_id.as_str()),
        Change::Upsert(_) | Change::Other => None,
    }))
}

fn sorted<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    texts.collect::<BTreeSet<_>>().into_iter().collect()
}

/// A batch without its repeats.
pub(super) struct Fresh<'a> {
    batch: &'a [Incoming],
    /// Where the messages to be folded stand in the batch.
    positions: Vec<usize>,
    /// For each message of the batch, which of `positions` speaks for it; `None` where the inbox has it.
    spoken_for: Vec<Option<usize>>,
}

impl<'a> Fresh<'a> {
    /// Sets aside what the inbox knows, and every copy of a message but the first.
    pub(super) fn of(batch: &'a [Incoming], known: &HashSet<String>) -> Self {
        let mut first: HashMap<&str, usize> = HashMap::with_capacity(batch.len());
        let mut positions = Vec::with_capacity(batch.len());
        let spoken_for = batch.iter().enumerate().map(|(position, incoming)| {
            let id = incoming.event.message_id.as_str();
            if known.contains(id) {
                return None;
            }
            Some(*first.entry(id).or_insert_with(|| {
                positions.push(position);
                positions.len() - 1
            }))
        });
        let spoken_for = spoken_for.collect();
        Self { batch, positions, spoken_for }
    }

    /// What to fold, in the order of the batch.
    pub(super) fn events(&self) -> Vec<Event> {
        self.positions.iter().map(|&position| self.batch[position].event.clone()).collect()
    }

    /// One outcome per message of the batch, given one per event of [`Self::events`]. A second copy is a duplicate of
    /// what took effect; where nothing did, it shares the first one's fate.
    pub(super) fn outcomes(&self, folded: &[Outcome]) -> Result<Vec<Outcome>, StoreError> {
        if folded.len() != self.positions.len() {
            return Err(super::errors::broken(
                "the fold answered for another number of events than it was given",
            ));
        }
        let one = |(position, speaker): (usize, &Option<usize>)| match *speaker {
            None => Outcome::Duplicate,
            Some(speaker) if self.positions[speaker] == position => folded[speaker],
            Some(speaker) if folded[speaker].is_final() => Outcome::Duplicate,
            Some(speaker) => folded[speaker],
        };
        Ok(self.spoken_for.iter().enumerate().map(one).collect())
    }

    /// What to record, in the order of message ids: final outcomes only, so that whatever is tried again can still
    /// take effect.
    pub(super) fn inbox(&self, folded: &[Outcome]) -> Vec<(&'a Incoming, Outcome)> {
        let pairs = self.positions.iter().zip(folded).filter(|(_, outcome)| outcome.is_final());
        let mut rows: Vec<_> = pairs.map(|(&position, &outcome)| (&self.batch[position], outcome)).collect();
        rows.sort_by(|(a, _), (b, _)| a.event.message_id.cmp(&b.event.message_id));
        rows
    }
}

/// Changed rows by the statement that writes them, in the order in which the statements run.
#[derive(Default)]
pub(super) struct Writes<'a> {
    /// Stored rows whose address goes to null first, so that the unique index never sees it twice.
    pub(super) yielding: Vec<&'a Row>,
    /// Stored rows whose profile stays as it is.
    pub(super) brief: Vec<&'a Row>,
    /// Stored rows that are written whole.
    pub(super) full: Vec<&'a Row>,
    /// New rows, by Clerk id.
    pub(super) new: Vec<&'a Row>,
}

impl<'a> Writes<'a> {
    pub(super) fn of(changed: &'a [ChangedRow]) -> Self {
        let mut writes = Self::default();
        for ChangedRow { row, new, mirror, yields_email } in changed {
            if *new {
                writes.new.push(row);
                continue;
            }
            if *yields_email {
                writes.yielding.push(row);
            }
            // An erased row is always written whole: what it holds no longer is nulled even if the fold left it out.
            let whole = row.erased || (*mirror && row.profile.is_some());
            if whole { &mut writes.full } else { &mut writes.brief }.push(row);
        }
        for rows in [&mut writes.yielding, &mut writes.brief, &mut writes.full] {
            rows.sort_by_key(|row| row.id);
        }
        writes.new.sort_by(|a, b| a.clerk_id.cmp(&b.clerk_id));
        writes
    }
}

/// The address that the row shows in `email`.
pub(super) fn shown_email(row: &Row) -> Option<&str> {
    row.claim.as_ref().filter(|_| row.shown).map(|claim| claim.address.as_str())
}

/// `version_kind`: sorts as the kinds do.
pub(super) fn kind_to_number(kind: UpsertKind) -> i16 {
    match kind {
        UpsertKind::Created => 0,
        UpsertKind::Updated => 1,
    }
}

/// The reverse; a check of the table's lets nothing else in.
pub(super) fn kind_of_number(number: i16) -> UpsertKind {
    if number == 0 { UpsertKind::Created } else { UpsertKind::Updated }
}

/// A time as the databases take it: years 0 to 9999, so that RFC 3339 texts sort like the times they stand for.
pub(super) fn time(at: Millis) -> Result<DateTime<Utc>, StoreError> {
    const YEAR_0: Millis = -62_167_219_200_000;
    const YEAR_10000: Millis = 253_402_300_800_000;
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

/// The same for a time that may be missing.
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

    fn incoming(id: &str) -> Incoming {
        let event = Event {
            message_id: id.into(),
            change: Change::Other,
            fresh_row: uuid::Uuid::nil(),
            patience_over: false,
        };
        Incoming { event, event_type: "session.created".into(), received_at: 0 }
    }

    #[test]
    fn repeats_are_set_aside_and_outcomes_keep_the_order_of_the_batch() {
        let batch = ["d", "a", "b", "a", "b", "c"].map(incoming);
        let fresh = Fresh::of(&batch, &HashSet::from(["c".to_owned()]));
        let ids: Vec<_> = fresh.events().into_iter().map(|event| event.message_id).collect();
        assert_eq!(ids, ["d", "a", "b"]);
        let folded = [Outcome::Stale, Outcome::Created, Outcome::Waiting];
        assert_eq!(
            fresh.outcomes(&folded).unwrap(),
            [
                Outcome::Stale,
                Outcome::Created,
                Outcome::Waiting,
                Outcome::Duplicate,
                Outcome::Waiting,
                Outcome::Duplicate
            ]
        );
        let inbox: Vec<_> =
            fresh.inbox(&folded).into_iter().map(|(row, _)| row.event.message_id.as_str()).collect();
        assert_eq!(inbox, ["a", "d"]);
    }

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
