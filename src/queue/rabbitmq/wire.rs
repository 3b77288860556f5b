//! Owns how a message looks on AMQP: properties and headers, both ways. A republish carries these headers and no
//! others: a stale `x-death` would be taken for a cycle and jam a retry queue.

use bytes::Bytes;
use lapin::{
    BasicProperties,
    message::Delivery as Delivered,
    types::{AMQPValue, FieldTable, ShortString},
};

use super::death::death;
use crate::{
    message::{EVENT_TYPE_MAX, Message, MessageId, Origin},
    queue::{
        Burial, DETAIL_MAX, Delivery, Receipt, Source,
        burial::headers::{
            ATTEMPT, DETAIL, DIED_AT, EVENT_TYPE, ORIGIN, REASON, RECEIVED_AT, ROUND, TRACEPARENT, WAITS,
        },
    },
    time::Millis,
};

/// The broker's own count of earlier deliveries, which its delivery limit goes by (quorum queues; absent on the first).
/// Before RabbitMQ 4.3 it counts each; since then only those that a client rejected or was lost with.
const DELIVERY_COUNT: &str = "x-delivery-count";
/// Its count of earlier deliveries however they came back, time-outs among them (RabbitMQ 4; absent on the first).
const ACQUIRED_COUNT: &str = "x-acquired-count";

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
    if message.origin != Origin::Webhook {
        text(ORIGIN, message.origin.as_str());
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
    BasicProperties::default()
        .with_delivery_mode(2)
        .with_priority(priority(message.origin))
        .with_message_id(id)
        .with_headers(headers)
}

/// Webhooks go before what a bulk reader of Clerk's API publishes. Quorum queues of RabbitMQ 4.3 and later keep to it; those of
/// 4.0 to 4.2 count both of these as normal, and older ones know no priority.
fn priority(origin: Origin) -> u8 {
    match origin {
        Origin::Webhook => 4,
        Origin::Api => 0,
    }
}

/// Reads a delivery; nothing in it can make this fail.
pub(super) fn delivery(delivered: Delivered, generation: u64, source: Source) -> Delivery {
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
        origin: text(ORIGIN, 16).map_or(Origin::Webhook, |name| Origin::of(&name)),
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
    let death = match source {
        Source::Dead => Some(Box::new(death(headers, message.received_at))),
        Source::Events | Source::Rejections => None,
    };
    Delivery { message, earlier, receipt: Receipt { generation, tag: delivered.delivery_tag }, death }
}

/// Any of AMQP's whole numbers.
pub(super) fn number(value: &AMQPValue) -> Option<i64> {
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
            origin: Origin::Webhook,
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
        let back = delivery(delivered(properties(&there, None), b"{}"), 4, Source::Events);
        assert_eq!((back.earlier, back.receipt), (0, Receipt { generation: 4, tag: 7 }));
        assert_eq!(format!("{:?}", back.message), format!("{there:?}"));
        assert_eq!(back.message.traceparent, there.traceparent);
        assert_eq!(back.message.received_at, there.received_at);
        let there = Message { origin: Origin::Api, ..there };
        let properties = properties(&there, None);
        assert_eq!(*properties.priority(), Some(0));
        assert_eq!(delivery(delivered(properties, b"{}"), 4, Source::Events).message.origin, Origin::Api);
    }

    #[test]
    fn only_our_own_headers_are_ever_sent() {
        let burial = Burial { reason: Reason::InvalidPayload, detail: "data.id: missing".into() };
        let message = Message { origin: Origin::Api, ..message() };
        let sent = properties(&message, Some((&burial, 5)));
        let names: Vec<String> =
            sent.headers().as_ref().unwrap().inner().keys().map(|key| key.as_str().to_owned()).collect();
        let ours =
            [TRACEPARENT, ATTEMPT, DETAIL, DIED_AT, EVENT_TYPE, ORIGIN, REASON, RECEIVED_AT, ROUND, WAITS]
                .map(str::to_owned);
        assert_eq!(names, ours);
    }

    #[test]
    fn a_message_by_another_hand_gets_an_id_from_its_body() {
        let foreign = delivery(delivered(BasicProperties::default(), b"hello"), 0, Source::Events);
        assert_eq!(foreign.message.id, MessageId::of_body(b"hello"));
        assert_eq!(foreign.message.event_type, "unknown");
    }

    #[test]
    fn the_brokers_count_of_deliveries_is_read() {
        let earlier = |counts: &[(&str, i64)]| {
            let mut headers = FieldTable::default();
            for (key, count) in counts {
                headers.insert((*key).into(), AMQPValue::LongLongInt(*count));
            }
            delivery(delivered(BasicProperties::default().with_headers(headers), b""), 0, Source::Events)
                .earlier
        };
        assert_eq!(earlier(&[]), 0);
        assert_eq!(earlier(&[(DELIVERY_COUNT, 3)]), 3);
        // RabbitMQ 4.3: five time-outs, of which the delivery count knows nothing; then two crashes too.
        assert_eq!(earlier(&[(ACQUIRED_COUNT, 5)]), 5);
        assert_eq!(earlier(&[(ACQUIRED_COUNT, 7), (DELIVERY_COUNT, 2)]), 7);
    }
}
