//! Owns what is delivered: a history, a policy, and the batches in which its webhooks arrive.

use std::fmt;

use headcount::rules::{Event, users::Policy};

use super::history::{Deed, Fact, play};

#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) deeds: Vec<Deed>,
    pub(crate) policy: Policy,
    /// Each batch is a transaction of some worker. A webhook may be delivered never, once, or many times.
    pub(crate) plan: Vec<Vec<Delivery>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) label: u16,
    /// By the time of its delivery, the webhook has waited long enough.
    pub(crate) patience_over: bool,
}

impl World {
    /// The history, in the order in which it happened.
    pub(crate) fn facts(&self) -> Vec<Fact> {
        play(&self.deeds)
    }

    /// What each batch brings, of these facts; deliveries of deeds that did not happen are left out.
    pub(crate) fn deliveries<'a>(&self, facts: &'a [Fact]) -> Vec<Vec<(&'a Fact, bool)>> {
        let find = |delivery: &Delivery| {
            let fact = facts.iter().find(|fact| fact.label == delivery.label)?;
            Some((fact, delivery.patience_over))
        };
        self.plan
            .iter()
            .map(|batch| batch.iter().filter_map(find).collect::<Vec<_>>())
            .filter(|batch| !batch.is_empty())
            .collect()
    }

    /// The same as events for a store.
    pub(crate) fn batches(&self) -> Vec<Vec<Event>> {
        self.deliveries(&self.facts()).iter().map(|batch| events(batch)).collect()
    }
}

/// A batch as a worker hands it to a store.
pub(crate) fn events(batch: &[(&Fact, bool)]) -> Vec<Event> {
    batch.iter().map(|(fact, patience_over)| fact.event(*patience_over)).collect()
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "policy: relink {:?}, on delete {:?}", self.policy.relink, self.policy.on_delete)?;
        writeln!(f, "history:")?;
        let facts = self.facts();
        for fact in &facts {
            writeln!(f, "    {fact}")?;
        }
        writeln!(f, "delivered:")?;
        for (place, batch) in self.deliveries(&facts).iter().enumerate() {
            write!(f, "    batch {}:", place + 1)?;
            for (fact, patience_over) in batch {
                write!(f, " #{}{}", fact.label, if *patience_over { " (patience over)" } else { "" })?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
