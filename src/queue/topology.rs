//! Owns what headcount declares on a broker, as data: exchanges, queues, bindings and their arguments.
//! Never talks to a broker.

use std::fmt;

use super::{DELIVERY_LIMIT, Ladder, SAMPLES_MAX};

/// An exchange. All are durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Full name.
    pub name: String,
    /// `direct` or `fanout`.
    pub kind: &'static str,
    /// The exchange that takes messages which have no route here.
    pub alternate: Option<String>,
    /// Nothing durable depends on it. Where it cannot be declared, headcount does without.
    pub optional: bool,
}

/// A queue. All are durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Full name.
    pub name: String,
    /// Without the prefix, as in metrics.
    pub short: String,
    /// `x-…` arguments.
    pub arguments: Vec<(&'static str, Argument)>,
}

/// The value of an argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// Text.
    Text(String),
    /// A number.
    Number(i64),
}

/// From an exchange to a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Full name of the exchange.
    pub exchange: String,
    /// Full name of the queue.
    pub queue: String,
    /// Empty for fanout.
    pub key: String,
    /// As its exchange.
    pub optional: bool,
}

/// Everything, in the order of declaration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Exchanges before queues.
    pub exchanges: Vec<Exchange>,
    /// Queues before bindings.
    pub queues: Vec<Queue>,
    /// Last.
    pub bindings: Vec<Binding>,
    prefix: String,
}

// For people who have to declare it by hand.

impl fmt::Display for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exchange {}: durable, {}", self.name, self.kind)?;
        self.alternate.as_ref().map_or(Ok(()), |alternate| write!(f, ", alternate-exchange={alternate}"))
    }
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue {}: durable", self.name)?;
        self.arguments.iter().try_for_each(|(name, value)| match value {
            Argument::Text(text) => write!(f, ", {name}={text}"),
            Argument::Number(number) => write!(f, ", {name}={number}"),
        })
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "binding from {} to {}", self.exchange, self.queue)?;
        if self.key.is_empty() { Ok(()) } else { write!(f, ", key {}", self.key) }
    }
}

/// The binding key of the events queue.
pub const EVENTS_KEY: &str = "events";

impl Topology {
    /// What `prefix` and the ladder call for.
    pub fn new(prefix: &str, ladder: &Ladder) -> Self {
        use Argument::{Number, Text};
        let named = |name: &str| format!("{prefix}.{name}");
        let exchange = |name: &str, kind, alternate: Option<&str>| Exchange {
            name: named(name),
            kind,
            alternate: alternate.map(named),
            optional: false,
        };
        let queue = |short: &str, arguments| Queue { name: named(short), short: short.to_owned(), arguments };
        let bind = |from: &str, to: &str, key: &str| Binding {
            exchange: named(from),
            queue: named(to),
            key: key.to_owned(),
            optional: false,
        };
        let quorum = || ("x-queue-type", Text("quorum".into()));
        // At-least-once dead-lettering works with reject-publish only.
        let safe = || {
            [
                ("x-overflow", Text("reject-publish".into())),
                ("x-dead-letter-strategy", Text("at-least-once".into())),
            ]
        };

        let mut queues = vec![
            queue("dead", vec![quorum(), ("x-delivery-limit", Number(1_000_000))]),
            queue(
                "events",
                [quorum(), ("x-delivery-limit", Number(i64::from(DELIVERY_LIMIT)))]
                    .into_iter()
                    .chain(safe())
                    .chain([("x-dead-letter-exchange", Text(named("dead")))])
                    .collect(),
            ),
            queue(
                "rejections",
                vec![
                    ("x-queue-type", Text("classic".into())),
                    ("x-max-length", Number(SAMPLES_MAX)),
                    ("x-overflow", Text("drop-head".into())),
                ],
            ),
        ];
        let mut bindings = vec![
            bind("dead", "dead", ""),
            bind("unrouted", "dead", ""),
            bind("events", "events", EVENTS_KEY),
            Binding { optional: true, ..bind("rejections", "rejections", "") },
        ];
        for (name, delay) in ladder.delays() {
            let short = format!("retry.{name}");
            let ttl = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
            let arguments = [quorum(), ("x-message-ttl", Number(ttl))].into_iter().chain(safe()).chain([
                ("x-dead-letter-exchange", Text(named("events"))),
                ("x-dead-letter-routing-key", Text(EVENTS_KEY.into())),
            ]);
            bindings.push(bind("retry", &short, &name));
            queues.push(queue(&short, arguments.collect()));
        }
        Self {
            exchanges: vec![
                exchange("unrouted", "fanout", None),
                exchange("dead", "fanout", None),
                exchange("events", "direct", Some("unrouted")),
                exchange("retry", "direct", Some("unrouted")),
                // A user may be limited to our names: the default exchange is not one of them.
                Exchange { optional: true, ..exchange("rejections", "fanout", None) },
            ],
            queues,
            bindings,
            prefix: prefix.to_owned(),
        }
    }

    /// How the exchange or queue of this full name is declared, in words.
    pub fn declaration(&self, name: &str) -> Option<String> {
        let queue = self.queues.iter().find(|queue| queue.name == name).map(ToString::to_string);
        queue
            .or_else(|| self.exchanges.iter().find(|exchange| exchange.name == name).map(ToString::to_string))
    }

    /// What every name begins with, before its dot.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The full name of an exchange or a queue.
    pub fn named(&self, short: &str) -> String {
        format!("{}.{short}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topology_is_the_documented_one() {
        let topology = Topology::new("headcount", &Ladder::default());
        let queues: Vec<&str> = topology.queues.iter().map(|queue| queue.name.as_str()).collect();
        assert_eq!(
            queues,
            [
                "headcount.dead",
                "headcount.events",
                "headcount.rejections",
                "headcount.retry.1s",
                "headcount.retry.5s",
                "headcount.retry.30s",
                "headcount.retry.2m",
                "headcount.retry.10m",
                "headcount.retry.1h"
            ]
        );
        assert_eq!(topology.bindings.len(), 4 + 6);
    }

    #[test]
    fn rungs_of_the_same_delay_share_a_queue() {
        let ladder = Ladder::new(vec![std::time::Duration::from_secs(1); 3]).unwrap();
        let topology = Topology::new("p", &ladder);
        assert_eq!(topology.queues.iter().filter(|queue| queue.name == "p.retry.1s").count(), 1);
        assert_eq!(topology.bindings.iter().filter(|binding| binding.key == "1s").count(), 1);
    }

    #[test]
    fn what_dead_letters_at_least_once_rejects_publishes_when_full() {
        for queue in Topology::new("p", &Ladder::default()).queues {
            let has = |name| queue.arguments.iter().any(|(key, _)| *key == name);
            assert_eq!(has("x-dead-letter-strategy"), has("x-dead-letter-exchange"), "{}", queue.name);
            if has("x-dead-letter-strategy") {
                let overflow = Argument::Text("reject-publish".into());
                assert!(queue.arguments.contains(&("x-overflow", overflow)), "{}", queue.name);
            }
        }
    }

    #[test]
    fn whatever_has_no_route_ends_in_the_dead_queue() {
        let topology = Topology::new("p", &Ladder::default());
        for exchange in topology.exchanges.iter().filter(|exchange| exchange.kind == "direct") {
            assert_eq!(exchange.alternate.as_deref(), Some("p.unrouted"), "{}", exchange.name);
        }
        for fanout in ["p.unrouted", "p.dead"] {
            assert!(
                topology.bindings.iter().any(|b| b.exchange == fanout && b.queue == "p.dead"),
                "{fanout}"
            );
        }
    }
}
