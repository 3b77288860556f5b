//! Owns how a dead message becomes a letter in the table. Reading a message is pure and cannot fail on content; the body
//! is taken as it is. Promises that a delivery is settled only after its letter is committed.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use tokio::sync::watch;

use super::{
    consume::{self, Sink},
    group,
};
use crate::{
    clerk,
    message::EVENT_TYPE_MAX,
    queue::{DETAIL_MAX, Delivery, Queue, Reason, Source},
    store::{
        StoreError,
        letters::{Captured, HEADER_NAME_MAX, HEADER_VALUE_MAX, HEADERS_MAX, Letters, REASON_MAX},
    },
    telemetry::metrics,
    text::clean,
    time::{Millis, now},
};

/// The most rounds and attempts. A higher number was written by another hand.
const COUNT_MAX: u32 = 1_000_000;
/// The end of the year 9999, the last day that both databases hold.
const TIME_MAX: Millis = 253_402_300_799_999;

/// Moves the dead queue into the table until `stop` turns true.
pub async fn run(queue: Arc<dyn Queue>, letters: Arc<dyn Letters>, stop: watch::Receiver<bool>) {
    consume::run(queue, Arc::new(Capture(letters)), stop).await;
}

struct Capture(Arc<dyn Letters>);

#[async_trait]
impl Sink for Capture {
    type Item = Dead;
    const WHAT: &'static str = "dead letters";
    const SOURCE: Source = Source::Dead;

    fn read(&self, delivery: &Delivery) -> Option<Dead> {
        let counted = delivery.death.as_deref().is_some_and(|death| death.counted);
        Some(Dead { letter: captured(delivery), counted })
    }

    fn bare(&self, dead: Dead) -> Dead {
        let letter = Captured { detail: String::new(), headers: BTreeMap::new(), ..dead.letter };
        Dead { letter, ..dead }
    }

    async fn take(&self, dead: &[Dead]) -> Result<(), StoreError> {
        let letters: Vec<Captured> = dead.iter().map(|dead| dead.letter.clone()).collect();
        let new = self.0.capture(&letters).await?;
        // After the commit, and only deaths that are new: one that is delivered again was counted before.
        for dead in dead.iter().filter(|dead| !dead.counted && new.contains(&dead.letter.message_id)) {
            let reason = Reason::ALL.into_iter().find(|reason| reason.as_str() == dead.letter.reason);
            metrics::given_up(reason.unwrap_or(Reason::Unroutable).as_str());
        }
        Ok(())
    }
}

/// A letter to be captured.
#[derive(Clone)]
struct Dead {
    letter: Captured,
    /// The process that buried the message has counted the death.
    counted: bool,
}

/// What a dead message is as a letter.
pub fn captured(delivery: &Delivery) -> Captured {
    let (message, death) = (&delivery.message, delivery.death.as_deref());
    let reason = death.map_or(Reason::Unroutable.as_str(), |death| death.reason.as_str());
    let reason = match clean(reason, REASON_MAX) {
        empty if empty.is_empty() => "unknown".into(),
        reason => reason,
    };
    let detail = death.map_or("the queue did not tell why", |death| death.detail.as_str());
    let detail = clean(detail, DETAIL_MAX);
    let headers = death.map(|death| &death.headers).into_iter().flatten();
    let headers = headers
        .take(HEADERS_MAX)
        .map(|(name, value)| (clean(name, HEADER_NAME_MAX), clean(value, HEADER_VALUE_MAX)))
        .collect();
    Captured {
        message_id: message.id.as_str().to_owned(),
        origin: message.origin,
        round: message.round.min(COUNT_MAX),
        event_type: clean(&message.event_type, EVENT_TYPE_MAX),
        clerk_id: clerk::whose(&message.body),
        group: group(&reason, &detail),
        reason,
        detail,
        attempts: message.attempt.min(COUNT_MAX),
        first_seen: plausible(message.received_at),
        died_at: plausible(death.map_or_else(now, |death| death.died_at)),
        headers,
        body: message.body.clone(),
    }
}

/// The time, or now where no database holds it.
fn plausible(time: Millis) -> Millis {
    if (0..=TIME_MAX).contains(&time) { time } else { now() }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        message::{Message, MessageId, Origin},
        queue::{Death, Receipt},
    };

    fn delivery(body: impl Into<Bytes>, death: Option<Death>) -> Delivery {
        let body = body.into();
        let message = Message {
            id: MessageId::of_body(&body),
            origin: Origin::Webhook,
            event_type: "user.created".into(),
            received_at: 1_760_000_000_000,
            attempt: 7,
            waits: 0,
            round: 2,
            traceparent: None,
            body,
        };
        Delivery {
            message,
            earlier: 0,
            receipt: Receipt { generation: 1, tag: 1 },
            death: death.map(Box::new),
        }
    }

    fn death(reason: &str, detail: &str) -> Death {
        let headers = BTreeMap::from([("x-attempt".to_owned(), "7".to_owned())]);
        Death {
            reason: reason.into(),
            detail: detail.into(),
            died_at: 1_760_000_100_000,
            headers,
            counted: true,
        }
    }

    #[test]
    fn a_death_becomes_a_letter() {
        let body = r#"{"type":"user.created","data":{"id":"user_1"}}"#;
        let dead = delivery(body, Some(death("invalid_payload", "data.email_addresses[3].id: missing")));
        let letter = captured(&dead);
        assert_eq!(letter.clerk_id.as_deref(), Some("user_1"));
        assert_eq!(letter.group, "invalid_payload: data.email_addresses[#].id: missing");
        assert_eq!((letter.round, letter.attempts), (2, 7));
        assert_eq!((letter.first_seen, letter.died_at), (1_760_000_000_000, 1_760_000_100_000));
        assert_eq!(letter.headers["x-attempt"], "7");
        assert_eq!(letter.body, body);
    }

    #[test]
    fn no_content_is_refused() {
        let deep =
            format!(r#"{{"type":"user.created","data":{}1{}}}"#, "[".repeat(200_000), "]".repeat(200_000));
        let long = format!(r#"{{"type":"user.created","data":{{"id":"{}"}}}}"#, "é".repeat(1000));
        let nul = r#"{"type":"user.created","data":{"id":"a\u0000b"}}"#;
        for (body, id) in [
            (Bytes::new(), None),
            (Bytes::from_static(b"\xff\xfe\x00"), None),
            (Bytes::from_static(b"not JSON"), None),
            (Bytes::from_static(br#"["user.created",{"id":"x"}]"#), None),
            (Bytes::from_static(br#"{"type":"user.created","data":{"id":7}}"#), None),
            (Bytes::from_static(br#"{"type":"user.created","data":{"id":""}}"#), None),
            (Bytes::from_static(br#"{"type":"session.created","data":{"id":"sess_1"}}"#), None),
            (
                Bytes::from_static(
                    br#"{"type":"session.created","data":{"id":"sess_1","user_id":"user_1"}}"#,
                ),
                Some("user_1".into()),
            ),
            (Bytes::from_static(br#"{"type":"user.created"}"#), None),
            (deep.into(), None),
            (long.into(), Some("é".repeat(127))),
            (nul.into(), Some("a\u{fffd}b".into())),
        ] {
            let letter = captured(&delivery(body.clone(), Some(death("invalid_payload", "x"))));
            assert_eq!(letter.clerk_id, id);
            assert_eq!(letter.body, body);
        }
    }

    #[test]
    fn what_another_hand_wrote_is_cleaned_and_bounded() {
        let many = (0..500).map(|n| (format!("h{n}\0"), "v\n".repeat(2000))).collect();
        let nasty = Death {
            reason: "\0".repeat(1000),
            detail: "\u{1b}[2J'\"`".repeat(1000),
            died_at: Millis::MAX,
            headers: many,
            counted: true,
        };
        let mut dead = delivery("x", Some(nasty));
        dead.message.round = u32::MAX;
        dead.message.attempt = u32::MAX;
        dead.message.received_at = Millis::MIN;
        dead.message.event_type = "\0".repeat(9999);
        let letter = captured(&dead);
        assert!(letter.reason.len() <= REASON_MAX && letter.detail.len() <= DETAIL_MAX);
        assert!(letter.group.len() <= crate::store::letters::GROUP_MAX);
        assert!(letter.headers.len() <= HEADERS_MAX);
        let texts = letter.headers.iter().flat_map(|(name, value)| [name, value]);
        for text in texts.chain([&letter.reason, &letter.detail, &letter.group, &letter.event_type]) {
            assert!(text.len() <= HEADER_VALUE_MAX && !text.chars().any(char::is_control), "{text:?}");
        }
        assert!(letter.round <= COUNT_MAX && letter.attempts <= COUNT_MAX);
        assert!((0..=TIME_MAX).contains(&letter.first_seen) && (0..=TIME_MAX).contains(&letter.died_at));

        let untold = captured(&delivery("x", None));
        assert_eq!(untold.reason, "unroutable");
        assert_eq!(captured(&delivery("x", Some(death("", "")))).group, "unknown");
    }
}
