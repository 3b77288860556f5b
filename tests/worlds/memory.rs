//! Owns a store in memory. It uses the fold as the real stores do, and fails if the fold asks for something that a database
//! would refuse.

use std::{
    collections::{BTreeMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use headcount::rules::{
    Event, Outcome,
    users::{self, ChangedRow, Claim, Folded, FormerId, Loaded, Policy, Profile, Row, fold},
};
use uuid::Uuid;

use super::{
    check::Broken,
    clerk::{Edit, Table},
    history::Fact,
    plan::events,
};

#[derive(Clone, Debug)]
pub(crate) struct Memory {
    policy: Policy,
    pub(crate) rows: BTreeMap<Uuid, Row>,
    pub(crate) former: BTreeMap<String, FormerId>,
    /// Former ids in the order in which they became such.
    pub(crate) former_order: Vec<String>,
    pub(crate) inbox: BTreeMap<String, Outcome>,
}

impl Memory {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            policy,
            rows: BTreeMap::new(),
            former: BTreeMap::new(),
            former_order: Vec::new(),
            inbox: BTreeMap::new(),
        }
    }

    /// One transaction.
    ///
    /// # Errors
    /// A database would have refused the change, or the fold broke a promise.
    pub(crate) fn apply(&mut self, batch: &[Event]) -> Result<Vec<Outcome>, String> {
        let mut seen = HashSet::new();
        let is_new = |event: &&Event| {
            !self.inbox.contains_key(&event.message_id) && seen.insert(event.message_id.clone())
        };
        let events: Vec<Event> = batch.iter().filter(is_new).cloned().collect();
        let folded = fold(&self.policy, self.load(&events), &events);
        if folded.outcomes.len() != events.len() {
            return Err(format!("{} outcomes for {} events", folded.outcomes.len(), events.len()));
        }
        let outcomes = folded.outcomes.clone();
        self.save(folded)?;
        let fresh: BTreeMap<&str, Outcome> =
            events.iter().map(|event| event.message_id.as_str()).zip(outcomes).collect();
        let mut first = HashSet::new();
        let mut answers = Vec::new();
        for event in batch {
            let id = event.message_id.as_str();
            answers.push(match fresh.get(id) {
                Some(outcome) if first.insert(id) || !outcome.is_final() => *outcome,
                _ => Outcome::Duplicate,
            });
        }
        for (id, outcome) in fresh {
            if outcome.is_final() {
                self.inbox.insert(id.to_owned(), outcome);
            }
        }
        Ok(answers)
    }

    /// The webhook took effect.
    pub(crate) fn has_folded(&self, fact: &Fact) -> bool {
        self.inbox.contains_key(&fact.message_id())
    }

    /// Tells two states of the same history apart.
    pub(crate) fn state(&self) -> u64 {
        let mut hash = DefaultHasher::new();
        for row in self.rows.values() {
            let Row { id, clerk_id, version, claim, shown, deleted_at, erased, .. } = row;
            let address = claim.as_ref().map(|claim| (&claim.address, claim.verified));
            (id, clerk_id, &version.message_id, address, shown, deleted_at, erased).hash(&mut hash);
        }
        for former in self.former.values() {
            (&former.clerk_id, former.user_id, former.deleted_at).hash(&mut hash);
        }
        hash.finish()
    }

    /// Exactly what the contract of [`Loaded`] says, and no more.
    fn load(&self, events: &[Event]) -> Loaded {
        let ids: HashSet<&str> = events.iter().filter_map(|event| event.change.clerk_id()).collect();
        let claimed = events.iter().filter_map(|event| event.claim_key().map(str::to_owned));
        self.known(&ids, claimed, users::needs_profiles(&self.policy, events.iter()))
    }

    /// The rows of these Clerk ids, and those that claim their addresses or these.
    pub(crate) fn known(
        &self,
        ids: &HashSet<&str>,
        keys: impl Iterator<Item = String>,
        profiles: bool,
    ) -> Loaded {
        let key = |row: &Row| row.claim.as_ref().map(|claim| claim.key.clone());
        let held = self.rows.values().filter(|row| ids.contains(row.clerk_id.as_str()));
        let keys: HashSet<String> = held.filter_map(key).chain(keys).collect();
        let touched = |row: &&Row| {
            ids.contains(row.clerk_id.as_str()) || key(row).is_some_and(|key| keys.contains(&key))
        };
        let profile = |row: &Row| row.profile.clone().filter(|_| profiles);
        Loaded {
            rows: self
                .rows
                .values()
                .filter(touched)
                .map(|row| Row { profile: profile(row), ..row.clone() })
                .collect(),
            former: self
                .former
                .values()
                .filter(|former| ids.contains(former.clerk_id.as_str()))
                .map(|former| (former.clerk_id.clone(), former.deleted_at))
                .collect(),
        }
    }

    /// Writes in a database's order: take addresses away, update, insert. The unique columns are unique after each step.
    fn save(&mut self, folded: Folded) -> Result<(), String> {
        for change in folded.rows.iter().filter(|change| change.yields_email) {
            self.rows.get_mut(&change.row.id).ok_or("an unknown row yields its address")?.shown = false;
        }
        for new in [false, true] {
            for change in folded.rows.iter().filter(|change| change.new == new) {
                self.write(change)?;
            }
        }
        for id in folded.revived {
            self.former.remove(&id);
            self.former_order.retain(|former| *former != id);
        }
        for former in folded.former {
            let id = former.clerk_id.clone();
            if self.former.insert(id.clone(), former).is_some() {
                return Err(format!("{id} is remembered as deleted twice"));
            }
            self.former_order.push(id);
        }
        match self.rows.values().find(|row| self.former.contains_key(&row.clerk_id)) {
            Some(row) => Err(format!("{} is remembered as deleted and holds a row", row.clerk_id)),
            None => Ok(()),
        }
    }

    fn write(&mut self, change: &ChangedRow) -> Result<(), String> {
        let ChangedRow { row, new, mirror, .. } = change;
        let written = match (self.rows.get(&row.id), new, mirror) {
            (None, true, true) | (Some(_), false, true) if row.profile.is_some() => row.clone(),
            (Some(stored), false, false) => {
                let Row { shown, askew, deleted_at, .. } = *row;
                let written = Row { shown, askew, deleted_at, ..stored.clone() };
                if *row != (Row { profile: row.profile.clone(), ..written.clone() }) {
                    return Err(format!("{} changes more than it says", row.clerk_id));
                }
                if written == *stored && !change.yields_email {
                    return Err(format!("{} does not change", row.clerk_id));
                }
                written
            }
            _ => return Err(format!("{}: new {new}, mirror {mirror} cannot be", row.clerk_id)),
        };
        let clash = self.rows.values().filter(|other| other.id != written.id).find(|other| {
            other.clerk_id == written.clerk_id
                || shown_key(other).is_some_and(|key| shown_key(&written) == Some(key))
        });
        if let Some(other) = clash {
            return Err(format!("unique columns: {} and {}", written.clerk_id, other.clerk_id));
        }
        self.rows.insert(written.id, written);
        Ok(())
    }
}

impl Table for Memory {
    async fn apply(&mut self, batches: &[Vec<(Fact, bool)>]) -> Result<Vec<Vec<Outcome>>, Broken> {
        let batches =
            batches.iter().map(|batch| batch.iter().map(|(fact, over)| (fact, *over)).collect::<Vec<_>>());
        batches.map(|batch| Self::apply(self, &events(&batch))).collect()
    }

    async fn known(&mut self, clerk_ids: &[String], keys: &[String]) -> Loaded {
        let ids = clerk_ids.iter().map(String::as_str).collect();
        Self::known(self, &ids, keys.iter().cloned(), true)
    }

    async fn live(&mut self) -> Vec<String> {
        let live = self.rows.values().filter(|row| row.deleted_at.is_none());
        live.map(|row| row.clerk_id.clone()).collect()
    }

    async fn edit(&mut self, clerk_id: &str, edit: Edit, at: i64) {
        let Some(row) = self.rows.values_mut().find(|row| row.clerk_id == clerk_id) else { return };
        match edit {
            Edit::Rename => {
                let profile = row.profile.as_deref().cloned().unwrap_or_default();
                row.profile = Some(Profile { first_name: Some("edited".into()), ..profile }.into());
            }
            Edit::Readdress => {
                let verified = row.claim.as_ref().is_some_and(|claim| claim.verified);
                row.claim = Some(Claim::new(format!("{clerk_id}@edited.example.com"), verified));
                row.askew = false;
            }
            Edit::Hide => (row.shown, row.askew) = (false, false),
            Edit::Misshow => row.askew = row.shown,
            Edit::Age => row.version.at = 0,
            Edit::Bury => row.deleted_at = row.deleted_at.or(Some(at)),
            Edit::Remove => {
                let id = row.id;
                self.rows.remove(&id);
            }
        }
    }

    fn at_once(&self) -> usize {
        1
    }
}

fn shown_key(row: &Row) -> Option<&str> {
    row.claim.as_ref().filter(|_| row.shown).map(|claim| claim.key.as_str())
}
