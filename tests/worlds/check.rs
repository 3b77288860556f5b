//! Owns the properties: each takes a world and says what is wrong with it.

use std::collections::{BTreeMap, HashSet};

use headcount::rules::{
    Outcome,
    users::{Claim, Policy, Profile, Row},
};
use uuid::Uuid;

use super::{
    history::{Fact, Kind, founder},
    memory::Memory,
    plan::{World, events},
    reference::{self, Mirror, Slow, User, folding_order},
};

/// The violation, in words.
pub(crate) type Broken = String;

/// *Mirror:* after each batch the live users are what the set of webhooks folded so far says.
pub(crate) fn mirror(world: &World) -> Result<(), Broken> {
    let facts = world.facts();
    let mut memory = Memory::new(world.policy);
    for batch in world.deliveries(&facts) {
        memory.apply(&events(&batch))?;
        mirror_of(&memory, &facts)?;
    }
    Ok(())
}

pub(crate) fn mirror_of(memory: &Memory, facts: &[Fact]) -> Result<(), Broken> {
    let folded = folded(memory, facts);
    if folded.iter().all(|fact| fact.reading.is_none()) {
        return mirror_is(memory, &reference::mirror(&folded));
    }
    let mut latest = reference::latest(&folded);
    let torn: HashSet<String> = latest
        .values()
        .filter(|fact| reference::is_torn(facts, fact.account))
        .map(|fact| fact.clerk_id())
        .collect();
    latest.retain(|_, fact| !torn.contains(&fact.clerk_id()));
    let rows: Vec<Row> = memory.rows.values().cloned().collect();
    in_step(&rows, latest.into_values(), |id| torn.contains(id))
}

/// *In step:* the live rows are just these users, in each mirrored column and in the version's time. (A reading that changes
/// nothing leaves the version's tie-breakers as they are, and the last sign-in alone is no news.) Nothing is said about the
/// accounts that are `left_out`.
pub(crate) fn in_step<'f>(
    rows: &[Row],
    users: impl IntoIterator<Item = &'f Fact>,
    left_out: impl Fn(&str) -> bool,
) -> Result<(), Broken> {
    type Shown = (Option<String>, Option<Claim>, i64, Profile);
    let live = || rows.iter().filter(|row| row.deleted_at.is_none());
    let profile = |profile: Profile| Profile { last_sign_in_at: None, ..profile };
    let expected: BTreeMap<String, Shown> = users
        .into_iter()
        .map(|fact| {
            let claim = fact.claim();
            let best = live()
                .filter(|row| {
                    key(row).is_some() && key(row) == claim.as_ref().map(|claim| claim.key.as_str())
                })
                .max_by_key(|row| (verified(row), &row.version, &row.clerk_id));
            let shows = best.is_some_and(|best| best.clerk_id == fact.clerk_id());
            let email = claim.clone().filter(|_| shows).map(|claim| claim.address);
            (fact.clerk_id(), (email, claim, fact.at, profile(fact.profile())))
        })
        .collect();
    let found: BTreeMap<String, Shown> = live()
        .filter(|row| !left_out(&row.clerk_id))
        .map(|row| {
            let email = row.claim.as_ref().filter(|_| row.shown).map(|claim| claim.address.clone());
            let email = if row.askew { Some("edited".into()) } else { email };
            let here = profile(row.profile.as_deref().cloned().unwrap_or_default());
            (row.clerk_id.clone(), (email, row.claim.clone(), row.version.at, here))
        })
        .collect();
    same("the live users", &expected, &found)
}

fn key(row: &Row) -> Option<&str> {
    row.claim.as_ref().map(|claim| claim.key.as_str())
}

fn verified(row: &Row) -> bool {
    row.claim.as_ref().is_some_and(|claim| claim.verified)
}

pub(crate) fn mirror_is(memory: &Memory, expected: &BTreeMap<String, Mirror>) -> Result<(), Broken> {
    let live = memory.rows.values().filter(|row| row.deleted_at.is_none());
    let found: BTreeMap<String, Mirror> = live.map(|row| (row.clerk_id.clone(), user(row).mirror)).collect();
    same("the live users", expected, &found)
}

/// *Safety:* rows pass only from an id known to be deleted to an id born later that proved the same address.
pub(crate) fn safety(world: &World) -> Result<(), Broken> {
    let facts = world.facts();
    safety_over(world.policy, &world.deliveries(&facts), &facts)
}

/// The same for any deliveries of these facts.
pub(crate) fn safety_over(
    policy: Policy,
    deliveries: &[Vec<(&Fact, bool)>],
    facts: &[Fact],
) -> Result<(), Broken> {
    let mut memory = Memory::new(policy);
    let mut before = BTreeMap::new();
    for batch in deliveries {
        memory.apply(&events(batch))?;
        before = safety_of(&memory, facts, &before)?;
    }
    Ok(())
}

/// Who held each row, one after the other.
pub(crate) type Holders = BTreeMap<Uuid, Vec<String>>;

pub(crate) fn safety_of(memory: &Memory, facts: &[Fact], before: &Holders) -> Result<Holders, Broken> {
    let mut holders = Holders::new();
    for former in memory.former_order.iter().filter_map(|id| memory.former.get(id)) {
        if let Some(row) = former.user_id {
            holders.entry(row).or_default().push(former.clerk_id.clone());
        }
    }
    for row in memory.rows.values() {
        holders.entry(row.id).or_default().push(row.clerk_id.clone());
    }
    // Who had lost a row to somebody else, and lives again because a person asked for it, has a row of its own.
    let lives_again = |clerk_id: &String| memory.rows.values().any(|row| row.clerk_id == *clerk_id);
    for (row, known) in before {
        let now = holders.get(row).map_or(&[][..], Vec::as_slice);
        let mut expected = known.clone();
        let last = expected.pop();
        expected.retain(|former| !lives_again(former));
        expected.extend(last);
        if !now.starts_with(&expected) {
            return Err(format!("row {row} was held by {known:?}, and now by {now:?}"));
        }
    }
    if holders == *before {
        return Ok(holders);
    }
    let folded = folded(memory, facts);
    for pair in holders.values().flat_map(|holders| holders.windows(2)) {
        if !may_pass(&folded, &pair[0], &pair[1]) {
            return Err(format!("a row passed from {} to {}", pair[0], pair[1]));
        }
    }
    Ok(holders)
}

pub(crate) fn may_pass(folded: &[&Fact], from: &str, to: &str) -> bool {
    let of = |id: &str| folded.iter().filter(move |fact| fact.clerk_id() == id).collect::<Vec<_>>();
    let proved = |fact: &Fact, name| fact.is_upsert() && fact.proves(name);
    of(from).iter().filter(|fact| fact.kind == Kind::Deleted).any(|deletion| {
        of(to).iter().filter(|fact| fact.is_upsert() && fact.born() > deletion.at).any(|arrival| {
            let name = arrival.address.map_or(u8::MAX, |address| address.name);
            proved(arrival, name) && of(from).iter().any(|fact| proved(fact, name))
        })
    })
}

/// The slow model gives the same outcomes, rows and former ids after each batch.
pub(crate) fn agreement(world: &World) -> Result<(), Broken> {
    agreement_over(world.policy, world.deliveries(&world.facts()))
}

/// The same for any deliveries.
pub(crate) fn agreement_over(policy: Policy, deliveries: Vec<Vec<(&Fact, bool)>>) -> Result<(), Broken> {
    let mut memory = Memory::new(policy);
    let mut slow = Slow::new(policy);
    for batch in deliveries {
        let mut once = HashSet::new();
        let fresh: Vec<_> = batch
            .iter()
            .copied()
            .filter(|(fact, _)| !memory.has_folded(fact) && once.insert(fact.label))
            .collect();
        let expected: BTreeMap<u16, Outcome> =
            fresh.iter().map(|(fact, _)| fact.label).zip(slow.apply(&fresh)).collect();
        let mut found = BTreeMap::new();
        for ((fact, _), outcome) in batch.iter().zip(memory.apply(&events(&batch))?) {
            if outcome != Outcome::Duplicate {
                found.insert(fact.label, outcome);
            }
        }
        same("the outcomes", &expected, &found)?;
        agreement_of(&memory, &slow)?;
    }
    Ok(())
}

pub(crate) fn agreement_of(memory: &Memory, slow: &Slow<'_>) -> Result<(), Broken> {
    let found: BTreeMap<Uuid, User> = memory.rows.values().map(|row| (row.id, user(row))).collect();
    same("the table", &slow.users(), &found)?;
    let found: BTreeMap<_, _> =
        memory.former.iter().map(|(id, former)| (id.clone(), (former.user_id, former.deleted_at))).collect();
    same("the former ids", &slow.former, &found)
}

/// The conditions under which *identity* is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conditions {
    /// By their times, each account's webhooks stand in the order in which things happened.
    pub(crate) times_in_order: bool,
    /// No webhook has run out of patience.
    pub(crate) within_patience: bool,
    /// Each account's creation is folded before its other events,
    pub(crate) creation_first: bool,
    /// and its deletion after them.
    pub(crate) deletion_last: bool,
    /// Each creation with a verified address is folded after every earlier event that showed that address verified
    /// on another account.
    pub(crate) showings_first: bool,
}

impl Conditions {
    pub(crate) const ALL: Self = Self {
        times_in_order: true,
        within_patience: true,
        creation_first: true,
        deletion_last: true,
        showings_first: true,
    };

    /// The webhooks that are to be folded before this one.
    pub(crate) fn before<'a>(&self, history: &'a [Fact], fact: &Fact) -> Vec<&'a Fact> {
        let mut earlier = true;
        let needed = |other: &&Fact| {
            earlier &= other.label != fact.label;
            if other.account == fact.account {
                let creation = other.kind == Kind::Created && fact.kind != Kind::Created;
                // Clerk's API dates a deletion later than the webhook, so the webhook comes first.
                let told = fact.is_absence() && !other.is_absence();
                let rest = (other.is_upsert() || told) && fact.kind == Kind::Deleted;
                self.creation_first && creation || self.deletion_last && rest
            } else {
                let shown = |address| other.is_upsert() && other.proves(address);
                let proved = fact.address.filter(|address| address.verified && fact.kind == Kind::Created);
                self.showings_first && earlier && proved.is_some_and(|address| shown(address.name))
            }
        };
        history.iter().filter(needed).filter(|other| other.kind != Kind::Other).collect()
    }
}

/// What a world shows about *identity*.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Holds,
    /// The conditions are not met, or the plan ends too early.
    Silent,
    Broken(Broken),
}

/// *Identity:* where the conditions are met, each live account ends with the row that the ordered history gives.
pub(crate) fn identity(world: &World, conditions: Conditions) -> Verdict {
    let facts = world.facts();
    if conditions.times_in_order && !reference::times_in_order(&facts) {
        return Verdict::Silent;
    }
    let mut run = LawfulRun::new(world, &facts, conditions);
    for batch in world.deliveries(&facts) {
        match run.deliver(&batch) {
            Ok(true) => {}
            Ok(false) => return Verdict::Silent,
            Err(broken) => return Verdict::Broken(broken),
        }
    }
    if run.is_complete() {
        return match run.ends_as_ordered() {
            Ok(()) => Verdict::Holds,
            Err(broken) => Verdict::Broken(broken),
        };
    }
    if conditions.within_patience && run.is_stuck() {
        return Verdict::Broken("something waits for ever".into());
    }
    Verdict::Silent
}

/// A delivery under conditions, batch by batch.
#[derive(Clone)]
pub(crate) struct LawfulRun<'a> {
    pub(crate) memory: Memory,
    world: &'a World,
    facts: &'a [Fact],
    conditions: Conditions,
    folded: HashSet<u16>,
}

impl<'a> LawfulRun<'a> {
    pub(crate) fn new(world: &'a World, facts: &'a [Fact], conditions: Conditions) -> Self {
        Self { memory: Memory::new(world.policy), world, facts, conditions, folded: HashSet::new() }
    }

    /// False where the conditions were not met.
    pub(crate) fn deliver(&mut self, batch: &[(&Fact, bool)]) -> Result<bool, Broken> {
        if self.conditions.within_patience && batch.iter().any(|(_, patience_over)| *patience_over) {
            return Ok(false);
        }
        let outcomes = self.memory.apply(&events(batch))?;
        for place in folding_order(batch) {
            let (fact, _) = batch[place];
            if !outcomes[place].is_final() || self.folded.contains(&fact.label) {
                continue;
            }
            let needed = self.conditions.before(self.facts, fact);
            if !needed.iter().all(|other| self.folded.contains(&other.label)) {
                return Ok(false);
            }
            self.folded.insert(fact.label);
        }
        Ok(true)
    }

    /// The webhooks that are not folded yet and may be folded now.
    pub(crate) fn eligible(&self) -> Vec<&'a Fact> {
        let may = |fact: &&Fact| {
            let needed = self.conditions.before(self.facts, fact);
            needed.iter().all(|other| self.folded.contains(&other.label))
        };
        self.facts.iter().filter(|fact| !self.folded.contains(&fact.label)).filter(may).collect()
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.facts.iter().all(|fact| self.folded.contains(&fact.label))
    }

    /// Every webhook that could come next waits.
    pub(crate) fn is_stuck(&self) -> bool {
        self.eligible().into_iter().all(|fact| {
            let outcomes = self.memory.clone().apply(&[fact.event(false)]);
            outcomes.is_ok_and(|outcomes| outcomes == [Outcome::Waiting])
        })
    }

    pub(crate) fn ends_as_ordered(&self) -> Result<(), Broken> {
        let expected = reference::owners(self.facts, self.world.policy);
        let live = self.memory.rows.values().filter(|row| row.deleted_at.is_none());
        let held = |row: &Row| (row.clerk_id.clone(), founder(self.facts, row.id).unwrap_or_default());
        same("whose rows the live accounts hold", &expected, &live.map(held).collect())
    }
}

/// The facts that took effect.
pub(crate) fn folded<'a>(memory: &Memory, facts: &'a [Fact]) -> Vec<&'a Fact> {
    facts.iter().filter(|fact| memory.has_folded(fact)).collect()
}

fn user(row: &Row) -> User {
    let claim = row.claim.as_ref();
    let version = &row.version;
    User {
        mirror: Mirror {
            email: claim.filter(|_| row.shown).map(|claim| claim.address.clone()),
            clerk_email: claim.map(|claim| claim.address.clone()),
            email_verified: claim.is_some_and(|claim| claim.verified),
            version: (
                version.at,
                version.sent,
                version.kind == headcount::rules::users::UpsertKind::Updated,
                version.message_id.clone(),
            ),
            profile: row.profile.as_deref().cloned().unwrap_or_default(),
        },
        id: row.id,
        clerk_id: row.clerk_id.clone(),
        deleted_at: row.deleted_at,
        erased: row.erased,
    }
}

fn same<K, V>(what: &str, expected: &BTreeMap<K, V>, found: &BTreeMap<K, V>) -> Result<(), Broken>
where
    K: Ord + std::fmt::Debug,
    V: PartialEq + std::fmt::Debug,
{
    if expected == found {
        return Ok(());
    }
    let keys: std::collections::BTreeSet<&K> = expected.keys().chain(found.keys()).collect();
    let differences: Vec<String> = keys
        .into_iter()
        .filter(|key| expected.get(key) != found.get(key))
        .map(|key| {
            format!(
                "    {key:?}\n        expected {:?}\n        found    {:?}",
                expected.get(key),
                found.get(key)
            )
        })
        .collect();
    Err(format!("{what} differ:\n{}", differences.join("\n")))
}
