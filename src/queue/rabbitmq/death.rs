//! Owns what a message in the broker's dead queue has died of, as its headers tell it: our own burial, or else what the
//! broker did to it. Nothing in them can make reading fail. Never touches a message that is alive.

use std::collections::BTreeMap;

use lapin::types::{AMQPValue, ShortString};

use super::wire::number;
use crate::{
    queue::{
        DELIVERY_LIMIT, DETAIL_MAX, Death, Reason,
        burial::{
            headers::{DETAIL, DIED_AT, REASON},
            never_settled,
        },
    },
    text::clean,
    time::{Millis, now},
};

/// The broker's list of dead-letterings, the last one first.
const DEATHS: &str = "x-death";
/// Headers of a dead message that are kept.
const HEADERS_MAX: usize = 50;
/// Bytes of a kept header's name, and of its value.
const HEADER_MAX: usize = 1024;

/// How a message died that came in at `received_at`.
pub(super) fn death(headers: Option<&BTreeMap<ShortString, AMQPValue>>, received_at: Millis) -> Death {
    let mut shown = BTreeMap::new();
    for (key, value) in headers.into_iter().flatten().take(HEADERS_MAX) {
        shown.insert(clean(key.as_str(), HEADER_MAX), clean(&text(value), HEADER_MAX));
    }
    let shown_or =
        |key: &str, otherwise: &str| shown.get(key).cloned().unwrap_or_else(|| otherwise.to_owned());
    let died_at = headers.and_then(|headers| headers.get(DIED_AT)).and_then(number).unwrap_or_else(now);
    let counted = shown.contains_key(REASON);
    let (reason, detail) = if counted {
        // Ours: a burial carries its reason, and a republish after it no longer does.
        (shown_or(REASON, ""), shown_or(DETAIL, ""))
    } else {
        let (reason, detail) = headers.and_then(last_death).map_or_else(
            || (Reason::Unroutable, "no queue was bound for it: the events queue was missing".to_owned()),
            |(queue, why)| told_by_the_broker(&queue, &why),
        );
        (reason.as_str().to_owned(), detail)
    };
    let detail = clean(&detail, DETAIL_MAX);
    Death { reason, detail, died_at: died_at.max(received_at), headers: shown, counted }
}

/// Which queue the broker dead-lettered it from last, and why.
fn last_death(headers: &BTreeMap<ShortString, AMQPValue>) -> Option<(String, String)> {
    let AMQPValue::FieldArray(deaths) = headers.get(DEATHS)? else { return None };
    let AMQPValue::FieldTable(last) = deaths.as_slice().first()? else { return None };
    let named = |key: &str| last.inner().get(key).map(text);
    Some((named("queue").unwrap_or_default(), named("reason")?))
}

/// What a message without a reason of ours has died of. Only the delivery limit tells of a message that kills its
/// workers; whatever else brought it here, the broker had no queue that would take or keep it.
fn told_by_the_broker(queue: &str, why: &str) -> (Reason, String) {
    match why {
        "delivery_limit" => (Reason::CrashLoop, never_settled(DELIVERY_LIMIT + 1)),
        _ if queue.contains(".retry.") => (
            Reason::Unroutable,
            format!(
                "no queue was bound for it when it came from {queue} ({why}): the events queue was missing"
            ),
        ),
        "expired" => {
            (Reason::Unroutable, format!("it expired in {queue}: a policy limits how long messages stay"))
        }
        "maxlen" => {
            (Reason::Unroutable, format!("{queue} was full and the broker took it out: a policy limits it"))
        }
        _ => (Reason::Unroutable, format!("the broker took it out of {queue}: {why}")),
    }
}

/// Tables within tables that are written out.
const NESTED_MAX: u8 = 8;

/// A header's value for people.
fn text(value: &AMQPValue) -> String {
    written(value, NESTED_MAX)
}

fn written(value: &AMQPValue, deeper: u8) -> String {
    let Some(inside) = deeper.checked_sub(1) else { return "…".into() };
    match value {
        AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        AMQPValue::ShortString(text) => text.as_str().to_owned(),
        AMQPValue::ByteArray(bytes) => String::from_utf8_lossy(bytes.as_slice()).into_owned(),
        AMQPValue::Boolean(flag) => flag.to_string(),
        AMQPValue::Float(number) => number.to_string(),
        AMQPValue::Double(number) => number.to_string(),
        AMQPValue::DecimalValue(number) => format!("{}e-{}", number.value, number.scale),
        AMQPValue::Void => "none".into(),
        AMQPValue::FieldArray(values) => {
            let values: Vec<String> = values.as_slice().iter().map(|value| written(value, inside)).collect();
            format!("[{}]", values.join(", "))
        }
        AMQPValue::FieldTable(table) => {
            let pair =
                |(key, value): (&ShortString, &AMQPValue)| format!("{key}: {}", written(value, inside));
            format!("{{{}}}", table.inner().iter().map(pair).collect::<Vec<_>>().join(", "))
        }
        AMQPValue::ShortShortInt(_)
        | AMQPValue::ShortShortUInt(_)
        | AMQPValue::ShortInt(_)
        | AMQPValue::ShortUInt(_)
        | AMQPValue::LongInt(_)
        | AMQPValue::LongUInt(_)
        | AMQPValue::LongLongInt(_)
        | AMQPValue::Timestamp(_) => number(value).map(|number| number.to_string()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldTable;

    use super::*;

    #[test]
    fn a_death_tells_its_reason_ours_before_the_brokers() {
        let table = |reason: &str| {
            let mut table = FieldTable::default();
            table.insert("reason".into(), AMQPValue::LongString(reason.into()));
            AMQPValue::FieldTable(table)
        };
        let deaths = |reasons: &[&str]| {
            let list: Vec<AMQPValue> = reasons.iter().map(|reason| table(reason)).collect();
            AMQPValue::FieldArray(list.into())
        };
        let read = |headers: FieldTable| death(Some(headers.inner()), 0);
        // It came from a retry queue before, which the broker counts as a death too.
        let mut headers = FieldTable::default();
        headers.insert(DEATHS.into(), deaths(&["delivery_limit", "expired"]));
        assert_eq!(read(headers.clone()).reason, "crash_loop");
        headers.insert(REASON.into(), AMQPValue::LongString("invalid_payload".into()));
        assert_eq!(read(headers).reason, "invalid_payload");
        assert_eq!(read(FieldTable::default()).reason, "unroutable");
    }

    #[test]
    fn what_was_lost_on_its_way_back_from_a_retry_queue_is_no_crash_loop() {
        let of = |queue: &str, reason: &str| {
            let mut table = FieldTable::default();
            table.insert("queue".into(), AMQPValue::LongString(queue.into()));
            table.insert("reason".into(), AMQPValue::LongString(reason.into()));
            table.insert("time".into(), AMQPValue::Timestamp(1_760_000_000));
            let mut headers = FieldTable::default();
            headers.insert(DEATHS.into(), AMQPValue::FieldArray(vec![AMQPValue::FieldTable(table)].into()));
            death(Some(headers.inner()), 0)
        };
        for (queue, reason, code, words) in [
            ("headcount.retry.5s", "expired", "unroutable", "came from headcount.retry.5s (expired)"),
            ("headcount.retry.5s", "rejected", "unroutable", "came from headcount.retry.5s (rejected)"),
            ("headcount.events", "expired", "unroutable", "expired in headcount.events"),
            ("headcount.events", "maxlen", "unroutable", "headcount.events was full"),
            ("headcount.events", "rejected", "unroutable", "out of headcount.events: rejected"),
            ("headcount.events", "delivery_limit", "crash_loop", "never settled"),
        ] {
            let death = of(queue, reason);
            assert_eq!(death.reason, code, "{queue} {reason}");
            assert!(death.detail.contains(words), "{}", death.detail);
            let told = format!("[{{queue: {queue}, reason: {reason}, time: 1760000000}}]");
            assert_eq!(death.headers[DEATHS], told);
        }
    }
}
