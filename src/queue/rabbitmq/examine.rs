//! Owns the thorough look that `doctor` takes at a broker: the faults of its version, and what this user may do. Each question is put
//! so that the broker checks the permission, and then refuses the question itself: nothing is published or consumed.

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Connection, Event,
    options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable},
};

use super::{
    connection::{Broker, Link, PERMISSIONS, code, text},
    greeting::Greeting,
};
use crate::queue::{Finding, QueueError, Source};

/// What would not work for this user, and the known faults of the broker's version. Finds nothing where it does not answer.
pub(super) async fn examine(broker: &Broker) -> Vec<Finding> {
    if broker.is_silent() {
        return Vec::new();
    }
    let mut findings = match broker.within(permissions(broker)).await {
        Ok(findings) => findings,
        Err(error) => vec![broken(&error, "check that the broker runs and that AMQP_URL is right")],
    };
    if let Some(greeting) = broker.greeting().await {
        findings.extend(greeting.faults().into_iter().map(|fault| Finding {
            broken: false,
            message: format!("{} {}: {}", greeting.product, greeting.version, fault.what),
            hint: fault.hint.into(),
        }));
    }
    findings
}

/// What would not work for this user; or that the broker blocks publishing at present, when it answers nothing more over
/// a connection that has tried to.
async fn permissions(broker: &Broker) -> Result<Vec<Finding>, QueueError> {
    let link = broker.dial("doctor").await?;
    let mut events = Box::pin(link.events_listener());
    let blocked = async {
        while let Some(event) = events.next().await {
            if let Event::ConnectionBlocked(reason) = event {
                return reason.to_string();
            }
        }
        std::future::pending().await
    };
    tokio::select! {
        findings = ask(broker, &link) => findings,
        reason = blocked => Err(broker.blocked(&reason)),
    }
}

async fn ask(broker: &Broker, link: &Link) -> Result<Vec<Finding>, QueueError> {
    let mut findings = Vec::new();
    for exchange in ["events", "retry", "dead"] {
        let name = broker.topology.named(exchange);
        let refused = may_publish(&broker.channel(link).await?, &name).await;
        findings.extend(refused.map(|why| finding(format!("cannot publish to the exchange {name}: {why}"))));
    }
    for source in [Source::Events, Source::Dead, Source::Rejections] {
        let name = broker.topology.named(source.queue());
        let refused = may_consume(&broker.channel(link).await?, &name).await;
        findings.extend(refused.map(|why| finding(format!("cannot consume the queue {name}: {why}"))));
    }
    findings.extend(declared(broker, link).await);
    Ok(findings)
}

fn finding(message: String) -> Finding {
    Finding { broken: true, message, hint: PERMISSIONS.into() }
}

async fn declared(broker: &Broker, connection: &Connection) -> Option<Finding> {
    let error = broker.compare(connection).await.err()?;
    Some(broken(&error, "look into the log of the broker"))
}

fn broken(error: &QueueError, otherwise: &str) -> Finding {
    Finding { broken: true, message: error.to_string(), hint: error.hint().unwrap_or(otherwise).to_owned() }
}

/// A publish whose expiration is no number: refused with 406 once the permission was checked.
async fn may_publish(channel: &Channel, exchange: &str) -> Option<String> {
    let properties = BasicProperties::default().with_expiration("none".into());
    let asked = async {
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        channel.basic_publish(exchange.into(), "".into(), options, b"", properties).await?.await
    };
    refusal(asked.await.err()?)
}

/// A consumer whose priority is no number: refused with 406 once the permission was checked.
async fn may_consume(channel: &Channel, queue: &str) -> Option<String> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-priority".into(), AMQPValue::LongString("none".into()));
    let options = BasicConsumeOptions::default();
    refusal(channel.basic_consume(queue.into(), "".into(), options, arguments).await.err()?)
}

fn refusal(error: lapin::Error) -> Option<String> {
    // `compare` tells what is missing.
    (!matches!(code(&error), Some(404 | 406))).then(|| text(&error))
}

/// A known fault of a broker's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fault {
    what: &'static str,
    hint: &'static str,
}

impl Greeting {
    /// The faults of its version that can cost messages or hold them up, the worst first.
    fn faults(&self) -> Vec<Fault> {
        let mut numbers = self.version.split(['.', '-', '+']).map(|number| number.parse::<u32>().ok());
        let (Some(Some(major)), Some(Some(minor))) = (numbers.next(), numbers.next()) else {
            return Vec::new();
        };
        let version = (major, minor, numbers.next().flatten().unwrap_or(0));
        let mut faults = Vec::new();
        if self.product != "RabbitMQ" {
            return faults;
        }
        if version < (3, 10, 0) {
            faults.push(Fault {
                what: "it knows no at-least-once dead-lettering: retries and dead letters can get lost",
                hint: "upgrade RabbitMQ to 4.3.5 or later; 3.10 is the oldest that can be used",
            });
        }
        if ((4, 3, 0)..(4, 3, 5)).contains(&version) {
            faults.push(Fault {
                what: "a quorum queue can recover a wrong state from a checkpoint",
                hint: "upgrade RabbitMQ to 4.3.5 or later",
            });
        }
        if ((3, 10, 0)..(4, 3, 3)).contains(&version) {
            faults.push(Fault {
                what: "dead-lettering can get stuck after the members of a cluster change: retries then stay in their queues",
                hint: "upgrade RabbitMQ to 4.3.5 or later, or watch headcount_queue_messages of the retry queues when you add or remove nodes",
            });
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_faults_are_named_and_others_are_not() {
        let faults = |product: &str, version: &str| {
            Greeting { product: product.into(), version: version.into() }.faults().len()
        };
        for (version, expected) in [
            ("3.9.29", 1),
            ("3.10.8", 1),
            ("4.0.5", 1),
            ("4.3.0", 2),
            ("4.3.2", 2),
            ("4.3.3-rc.1", 1),
            ("4.3.4", 1),
            ("4.3.5", 0),
            ("4.4.0", 0),
            ("5.0.0+7", 0),
            ("unknown", 0),
        ] {
            assert_eq!(faults("RabbitMQ", version), expected, "{version}");
        }
        assert_eq!(faults("LavinMQ", "2.1.0"), 0);
    }
}
