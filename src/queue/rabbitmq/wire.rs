//! Owns how a message looks on AMQP: properties and headers, both ways. A republish carries these headers and no
//! others: a stale `x-death` would be taken for a cycle and jam a retry queue.

use std::collections::BTreeMap;

use bytes::Bytes;
use lapin::{
    BasicProperties,
    message::Delivery as Delivered,
    types::{AMQPValue, FieldTable, ShortString},
};

use crate::{
    message::{EVENT_TYPE_MAX, Message, MessageId},
    queue::{
        Burial, DELIVERY_LIMIT, DETAIL_MAX, Death, Delivery, Reason, Receipt,
        headers::{ATTEMPT, DETAIL, DIED_AT, EVENT_TYPE, REASON, RECEIVED_AT, ROUND, TRACEPARENT, WAITS},
    },
    time::Millis,
};

/// The broker's own count of earlier deliveries, which its delivery limit goes by (quorum queues; absent on the first).
/// Before RabbitMQ 4.3 it counts each; since then only those that a client rejected or was lost with.
const DELIVERY_COUNT: &str = "x-delivery-count";
/// Its count of earlier deliveries however they came back, time-outs among them (RabbitMQ 4; absent on the first).
const ACQUIRED_COUNT: &str = "x-acquired-count";
/// The broker's list of dead-letterings, the last one first.
const DEATHS: &str = "x-death";
/// Headers of a dead message that are kept.
const HEADERS_MAX: usize = 50;
/// Bytes of a kept header's name, and of its value.
const HEADER_MAX: usize = 1024;

/// The properties of a message: persistent, with our headers.
pub(super) fn properties(message: &Message, burial: Option<(&Burial, Millis)>) -> BasicProperties {
    let mut headers = FieldTable::default();
    let mut text = |key: &str, value: &str| {
        headers.insert(key.into(), AMQPValue::LongString(value.into()));
    };
    text(EVENT_TYPE, &crate::text::clean(&message.event_type, EVENT_TYPE_MAX));
    if let Some(traceparent) = &message.traceparent {
        text(TRACEPARENT, traceparent);
    }
    if let Some((burial, _)) = burial {
        text(REASON, burial.reason.as_str());
        text(DETAIL, &crate::text::clean(&burial.detail, DETAIL_MAX));
    }
    let mut number = |key: &str, value: i64| {
        headers.insert(key.into(), AMQPValue::LongLongInt(value));
    };
    number(ATTEMPT, message.attempt.into());
    number(WAITS, message.waits.into());
    number(ROUND, message.round.into());
    number(RECEIVED_AT, message.received_at);
    if let Some((_, died_at)) = burial {
        number(DIED_AT, died_at);
    }
    let id = ShortString::try_new(message.id.as_str()).unwrap_or_default();
    BasicProperties::default().with_delivery_mode(2).with_message_id(id).with_headers(headers)
}

/// Reads a delivery; nothing in it can make this fail.
pub(super) fn delivery(delivered: Delivered, generation: u64, dead: bool) -> Delivery {
    let headers = delivered.properties.headers().as_ref().map(FieldTable::inner);
    let value = |key: &str| headers.and_then(|headers| headers.get(key));
    let count = |key: &str| value(key).and_then(number).and_then(|number| u32::try_from(number).ok());
    let text = |key: &str, max| {
        value(key)
            .and_then(AMQPValue::as_long_string)
            .map(|text| crate::text::clean(&String::from_utf8_lossy(text.as_bytes()), max))
    };
    let id = delivered.properties.message_id().as_ref().and_then(|id| MessageId::parse(id.as_str()));
    let message = Message {
        id: id.unwrap_or_else(|| MessageId::of_body(&delivered.data)),
        event_type: text(EVENT_TYPE, EVENT_TYPE_MAX).unwrap_or_else(|| "unknown".into()),
        received_at: value(RECEIVED_AT).and_then(number).unwrap_or_else(crate::time::now),
        attempt: count(ATTEMPT).unwrap_or(0),
        waits: count(WAITS).unwrap_or(0),
        round: count(ROUND).unwrap_or(0),
        traceparent: text(TRACEPARENT, 55),
        body: Bytes::from(delivered.data),
    };
    let counted = count(ACQUIRED_COUNT).max(count(DELIVERY_COUNT));
    let earlier = counted.unwrap_or(u32::from(delivered.redelivered));
    let death = dead.then(|| Box::new(death(headers, message.received_at)));
    Delivery { message, earlier, receipt: Receipt { generation, tag: delivered.delivery_tag }, death }
}

/// What the dead queue's headers tell.
fn death(headers: Option<&BTreeMap<ShortString, AMQPValue>>, received_at: Millis) -> Death {
    let mut shown = BTreeMap::new();
    for (key, value) in headers.into_iter().flatten().take(HEADERS_MAX) {
        shown.insert(
            crate::text::clean(key.as_str(), HEADER_MAX),
            crate::text::clean(&text(value), HEADER_MAX),
        );
    }
    let shown_or =
        |key: &str, otherwise: &str| shown.get(key).cloned().unwrap_or_else(|| otherwise.to_owned());
    let died_at =
        headers.and_then(|headers| headers.get(DIED_AT)).and_then(number).unwrap_or_else(crate::time::now);
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
    let detail = crate::text::clean(&detail, DETAIL_MAX);
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
    let tries = DELIVERY_LIMIT + 1;
    match why {
        "delivery_limit" => (
            Reason::CrashLoop,
            format!("it was delivered {tries} times and never settled: it kills its workers"),
        ),
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

/// Any of AMQP's whole numbers.
fn number(value: &AMQPValue) -> Option<i64> {
    match value {
        AMQPValue::ShortShortInt(n) => Some((*n).into()),
        AMQPValue::ShortShortUInt(n) => Some((*n).into()),
        AMQPValue::ShortInt(n) => Some((*n).into()),
        AMQPValue::ShortUInt(n) => Some((*n).into()),
        AMQPValue::LongInt(n) => Some((*n).into()),
        AMQPValue::LongUInt(n) => Some((*n).into()),
        AMQPValue::LongLongInt(n) => Some(*n),
        AMQPValue::Timestamp(n) => i64::try_from(*n).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Reason;

    fn message() -> Message {
        Message {
            id: MessageId::parse("msg_1").unwrap(),
            event_type: "user.created".into(),
            received_at: 1_700_000_000_123,
            attempt: 2,
            waits: 1,
            round: 3,
            traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
            body: Bytes::from_static(b"{}"),
        }
    }

    fn delivered(properties: BasicProperties, body: &[u8]) -> Delivered {
        let mut delivered = Delivered::mock(7, "e".into(), "k".into(), false, body.to_vec());
        delivered.properties = properties;
        delivered
    }

    #[test]
    fn a_message_travels_there_and_back() {
        let there = message();
        let back = delivery(delivered(properties(&there, None), b"{}"), 4, false);
        assert_eq!((back.earlier, back.receipt), (0, Receipt { generation: 4, tag: 7 }));
        assert_eq!(format!("{:?}", back.message), format!("{there:?}"));
        assert_eq!(back.message.traceparent, there.traceparent);
        assert_eq!(back.message.received_at, there.received_at);
    }

    #[test]
    fn only_our_own_headers_are_ever_sent() {
        let burial = Burial { reason: Reason::InvalidPayload, detail: "data.id: missing".into() };
        let sent = properties(&message(), Some((&burial, 5)));
        let names: Vec<String> =
            sent.headers().as_ref().unwrap().inner().keys().map(|key| key.as_str().to_owned()).collect();
        let ours = [TRACEPARENT, ATTEMPT, DETAIL, DIED_AT, EVENT_TYPE, REASON, RECEIVED_AT, ROUND, WAITS]
            .map(str::to_owned);
        assert_eq!(names, ours);
    }

    #[test]
    fn a_message_by_another_hand_gets_an_id_from_its_body() {
        let foreign = delivery(delivered(BasicProperties::default(), b"hello"), 0, false);
        assert_eq!(foreign.message.id, MessageId::of_body(b"hello"));
        assert_eq!(foreign.message.event_type, "unknown");
    }

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
        let read = |headers: FieldTable| {
            let properties = BasicProperties::default().with_headers(headers);
            delivery(delivered(properties, b""), 0, true).death.unwrap()
        };
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
        let death = |queue: &str, reason: &str| {
            let mut table = FieldTable::default();
            table.insert("queue".into(), AMQPValue::LongString(queue.into()));
            table.insert("reason".into(), AMQPValue::LongString(reason.into()));
            table.insert("time".into(), AMQPValue::Timestamp(1_760_000_000));
            let mut headers = FieldTable::default();
            headers.insert(DEATHS.into(), AMQPValue::FieldArray(vec![AMQPValue::FieldTable(table)].into()));
            let properties = BasicProperties::default().with_headers(headers);
            delivery(delivered(properties, b""), 0, true).death.unwrap()
        };
        for (queue, reason, code, words) in [
            ("headcount.retry.5s", "expired", "unroutable", "came from headcount.retry.5s (expired)"),
            ("headcount.retry.5s", "rejected", "unroutable", "came from headcount.retry.5s (rejected)"),
            ("headcount.events", "expired", "unroutable", "expired in headcount.events"),
            ("headcount.events", "maxlen", "unroutable", "headcount.events was full"),
            ("headcount.events", "rejected", "unroutable", "out of headcount.events: rejected"),
            ("headcount.events", "delivery_limit", "crash_loop", "never settled"),
        ] {
            let death = death(queue, reason);
            assert_eq!(death.reason, code, "{queue} {reason}");
            assert!(death.detail.contains(words), "{}", death.detail);
            let told = format!("[{{queue: {queue}, reason: {reason}, time: 1760000000}}]");
            assert_eq!(death.headers[DEATHS], told);
        }
    }

    #[test]
    fn the_brokers_count_of_deliveries_is_read() {
        let earlier = |counts: &[(&str, i64)]| {
            let mut headers = FieldTable::default();
            for (key, count) in counts {
                headers.insert((*key).into(), AMQPValue::LongLongInt(*count));
            }
            delivery(delivered(BasicProperties::default().with_headers(headers), b""), 0, false).earlier
        };
        assert_eq!(earlier(&[]), 0);
        assert_eq!(earlier(&[(DELIVERY_COUNT, 3)]), 3);
        // RabbitMQ 4.3: five time-outs, of which the delivery count knows nothing; then two crashes too.
        assert_eq!(earlier(&[(ACQUIRED_COUNT, 5)]), 5);
        assert_eq!(earlier(&[(ACQUIRED_COUNT, 7), (DELIVERY_COUNT, 2)]), 7);
    }
}
