//! Owns what a worker has seen of Clerk's instances: which of them webhooks are of, and when the last one came in. Bounded. Never
//! touches the database: whoever writes it down takes it from here.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{message::Origin, time::Millis};

/// The most instances that are remembered at a time.
const INSTANCES_MAX: usize = 100;

/// What was seen since it was taken last; shared by the worker and whoever writes it down.
#[derive(Clone, Debug, Default)]
pub struct Seen(Arc<Mutex<BTreeMap<Option<String>, Millis>>>);

impl Seen {
    /// Notes a message that was read. What comes from Clerk's API is no webhook.
    pub fn note(&self, origin: Origin, instance: Option<&str>, received_at: Millis) {
        if origin != Origin::Webhook {
            return;
        }
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Without a new text for each message: nearly all are of one instance.
        if let Some((_, last)) = seen.iter_mut().find(|(known, _)| known.as_deref() == instance) {
            *last = received_at.max(*last);
        } else if seen.len() < INSTANCES_MAX {
            seen.insert(instance.map(str::to_owned), received_at);
        }
    }

    /// When the last webhook of each instance came in; `None` for webhooks that name no instance.
    pub fn take(&self) -> BTreeMap<Option<String>, Millis> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_webhook_of_each_instance_is_told_once() {
        let seen = Seen::default();
        for (instance, at) in [(Some("ins_1"), 5), (None, 1), (Some("ins_1"), 3), (Some("ins_2"), 4)] {
            seen.note(Origin::Webhook, instance, at);
        }
        seen.note(Origin::Api, Some("ins_1"), 9);
        let told = [(None, 1), (Some("ins_1".to_owned()), 5), (Some("ins_2".to_owned()), 4)];
        assert_eq!(seen.take(), BTreeMap::from(told));
        assert!(seen.take().is_empty());
    }

    #[test]
    fn no_crowd_of_instances_takes_memory() {
        let seen = Seen::default();
        (0..1000).for_each(|n| seen.note(Origin::Webhook, Some(&n.to_string()), n));
        assert_eq!(seen.take().len(), INSTANCES_MAX);
    }
}
