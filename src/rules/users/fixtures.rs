//! Owns how the tests of the rules tell a story: who said what and when, and what the rows are afterwards.

use std::sync::Arc;

use uuid::Uuid;

use super::{
    Change, Claim, Folded, FormerId, Loaded, OnDelete, Policy, Profile, Relink, Row, Source, Upsert,
    UpsertKind, Version, fold,
};
use crate::{
    rules::{self, Event, Outcome},
    time::Millis,
};

pub(super) const DEFAULT: Policy = Policy { relink: Relink::Deleted, on_delete: OnDelete::Keep };
pub(super) const MATCH: Policy = Policy { relink: Relink::Match, on_delete: OnDelete::Keep };
pub(super) const NEVER: Policy = Policy { relink: Relink::Never, on_delete: OnDelete::Keep };
pub(super) const ERASE: Policy = Policy { relink: Relink::Deleted, on_delete: OnDelete::Erase };

/// News of an account, under construction.
#[derive(Clone)]
pub(super) struct News(Upsert);

pub(super) fn created(clerk_id: &str, at: Millis) -> News {
    News(Upsert {
        clerk_id: clerk_id.into(),
        version: Version {
            at,
            sent: at,
            kind: UpsertKind::Created,
            message_id: format!("{clerk_id} created at {at}"),
        },
        born: at,
        claim: None,
        profile: Arc::default(),
        source: Source::Webhook,
    })
}

/// An update of an account that was born at 0, unless told otherwise.
pub(super) fn updated(clerk_id: &str, at: Millis) -> News {
    let mut news = created(clerk_id, at).born(0).message(&format!("{clerk_id} updated at {at}"));
    news.0.version.kind = UpsertKind::Updated;
    news
}

impl News {
    pub(super) fn verified(mut self, address: &str) -> Self {
        self.0.claim = Some(Claim::new(address, true));
        self
    }

    pub(super) fn unverified(mut self, address: &str) -> Self {
        self.0.claim = Some(Claim::new(address, false));
        self
    }

    pub(super) fn named(mut self, name: &str) -> Self {
        self.0.profile = Arc::new(named(name));
        self
    }

    pub(super) fn born(mut self, born: Millis) -> Self {
        self.0.born = born;
        self
    }

    pub(super) fn sent(mut self, sent: Millis) -> Self {
        self.0.version.sent = sent;
        self
    }

    pub(super) fn message(mut self, id: &str) -> Self {
        self.0.version.message_id = id.into();
        self
    }

    /// As Clerk's API gave it at this time.
    pub(super) fn read_at(mut self, at: Millis) -> Self {
        let id = format!("api_{}_{at}", self.0.clerk_id);
        self.0.version = Version { sent: at, kind: UpsertKind::Updated, message_id: id, ..self.0.version };
        self.0.source = Source::Api { revive: false };
        self
    }

    /// And a person asks for the account to live again.
    pub(super) fn revive(mut self) -> Self {
        self.0.source = Source::Api { revive: true };
        self
    }

    pub(super) fn upsert(self) -> Upsert {
        self.0
    }

    pub(super) fn event(self) -> Event {
        event(&self.0.version.message_id.clone(), rules::Change::User(Change::Upsert(Box::new(self.0))))
    }

    /// With patience over.
    pub(super) fn at_last(self) -> Event {
        Event { patience_over: true, ..self.event() }
    }
}

pub(super) fn named(name: &str) -> Profile {
    Profile { first_name: Some(name.into()), ..Profile::default() }
}

pub(super) fn deleted(clerk_id: &str, at: Millis) -> Event {
    event(
        &format!("{clerk_id} deleted at {at}"),
        rules::Change::User(Change::Delete { clerk_id: clerk_id.into(), at }),
    )
}

pub(super) fn other() -> Event {
    event("email.created", rules::Change::Other)
}

fn event(message_id: &str, change: rules::Change) -> Event {
    Event { message_id: message_id.into(), change, fresh_row: fresh(message_id), patience_over: false }
}

/// The id of the row that the message with this id makes.
pub(super) fn fresh(message_id: &str) -> Uuid {
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(message_id.bytes()).for_each(|(to, from)| *to = from);
    Uuid::from_bytes(bytes)
}

/// All rows and former ids that there are.
#[derive(Clone, Default)]
pub(super) struct Books {
    pub(super) rows: Vec<Row>,
    pub(super) former: Vec<FormerId>,
}

impl Books {
    /// Folds one batch and saves.
    pub(super) fn tell<const N: usize>(&mut self, policy: &Policy, events: [Event; N]) -> [Outcome; N] {
        self.apply(policy, &events).outcomes.try_into().expect("one outcome per event")
    }

    pub(super) fn apply(&mut self, policy: &Policy, events: &[Event]) -> Folded {
        let former = self.former.iter().map(|former| (former.clerk_id.clone(), former.deleted_at)).collect();
        let folded = fold(policy, Loaded { rows: self.rows.clone(), former }, events);
        for change in &folded.rows {
            self.rows.retain(|row| row.id != change.row.id);
            self.rows.push(change.row.clone());
        }
        self.former.retain(|former| !folded.revived.contains(&former.clerk_id));
        self.former.extend(folded.former.iter().cloned());
        folded
    }

    pub(super) fn row(&self, clerk_id: &str) -> &Row {
        self.rows.iter().find(|row| row.clerk_id == clerk_id).expect("a row of this account")
    }

    pub(super) fn has_row(&self, clerk_id: &str) -> bool {
        self.rows.iter().any(|row| row.clerk_id == clerk_id)
    }

    /// The shown address of an account.
    pub(super) fn email(&self, clerk_id: &str) -> Option<&str> {
        let row = self.row(clerk_id);
        row.claim.as_ref().filter(|_| row.shown).map(|claim| claim.address.as_str())
    }

    pub(super) fn name(&self, clerk_id: &str) -> Option<&str> {
        self.row(clerk_id).profile.as_ref().and_then(|profile| profile.first_name.as_deref())
    }
}
