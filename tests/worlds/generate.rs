//! Owns making worlds from a seed. The same seed gives the same world.

use headcount::rules::users::{OnDelete, Policy, Relink};

use super::{
    check::{Conditions, LawfulRun},
    clerk::{Ask, ClerkWorld, Edit, Step, labels},
    history::{Act, Address, Deed, Fact, Kind, Style, play},
    plan::{Delivery, World},
    reference::times_in_order,
};

/// SplitMix64: small, and the same on every machine.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to `sides` - 1.
    pub(crate) fn below(&mut self, sides: usize) -> usize {
        (self.roll() % sides.max(1) as u64) as usize
    }

    pub(crate) fn one_in(&mut self, chance: usize) -> bool {
        self.below(chance) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for place in (1..items.len()).rev() {
            items.swap(place, self.below(place + 1));
        }
    }
}

/// Every value that the two settings can have; first those under which something waits and is relinked.
pub(crate) const POLICIES: [Policy; 6] = {
    use OnDelete::{Erase, Keep};
    use Relink::{Deleted, Match, Never};
    [
        Policy { relink: Deleted, on_delete: Keep },
        Policy { relink: Match, on_delete: Keep },
        Policy { relink: Never, on_delete: Keep },
        Policy { relink: Deleted, on_delete: Erase },
        Policy { relink: Match, on_delete: Erase },
        Policy { relink: Never, on_delete: Erase },
    ]
};

/// How many deeds a history has and what it may contain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taste {
    pub(crate) deeds: usize,
    pub(crate) accounts: u8,
    pub(crate) addresses: u8,
    pub(crate) reads: Reads,
}

/// Whether Clerk's API is read in a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    Never,
    Often,
    /// And accounts are taken for gone by mistake, and people ask for them to live again.
    Reviving,
}

impl Taste {
    /// Up to 14 deeds of up to 7 accounts around up to 3 addresses.
    pub(crate) fn any(dice: &mut Dice) -> Self {
        Self {
            deeds: 3 + dice.below(12),
            accounts: 2 + dice.below(6) as u8,
            addresses: 1 + dice.below(3) as u8,
            reads: Reads::Never,
        }
    }
}

/// A history. People come and go around few addresses, so that these change hands often.
pub(crate) fn deeds(dice: &mut Dice, taste: Taste) -> Vec<Deed> {
    let mut deeds: Vec<Deed> = Vec::new();
    for label in 0..taste.deeds as u16 {
        let facts = play(&deeds);
        // The first of a few tries that can happen at all.
        for _ in 0..8 {
            deeds.push(deed(dice, taste, label, &facts));
            if play(&deeds).len() > facts.len() {
                break;
            }
            deeds.pop();
        }
    }
    deeds
}

fn deed(dice: &mut Dice, taste: Taste, label: u16, facts: &[Fact]) -> Deed {
    let mut account = dice.below(taste.accounts.into()) as u8;
    let kinds = if taste.reads == Reads::Never { 18 } else { 26 };
    let act = match dice.below(kinds) {
        0..=4 => Act::SignUp(address(dice, taste)),
        // The one who proved an address last goes, or has gone and comes back.
        5..=8 => match facts.iter().rev().find(|fact| fact.address.is_some_and(|address| address.verified)) {
            Some(last)
                if facts.iter().all(|fact| fact.account != last.account || fact.kind != Kind::Deleted) =>
            {
                account = last.account;
                Act::Delete
            }
            last => {
                let unused = |account: &u8| facts.iter().all(|fact| fact.account != *account);
                account = (0..taste.accounts).find(unused).unwrap_or(account);
                Act::SignUp(last.map_or_else(|| address(dice, taste), |last| last.address))
            }
        },
        9..=11 => Act::SetAddress(address(dice, taste)),
        12 => Act::Rename,
        13..=15 => Act::Delete,
        16 => Act::TellDeletionAgain,
        17 => Act::SignIn,
        18..=20 if taste.reads == Reads::Reviving => {
            account = facts.iter().rev().find(|fact| fact.is_upsert()).map_or(account, |fact| fact.account);
            Act::Misread
        }
        21..=23 if taste.reads == Reads::Reviving => {
            let missed = facts.iter().rev().find(|fact| fact.is_absence() && !fact.is_state());
            account = missed.map_or(account, |fact| fact.account);
            Act::Read { revive: true }
        }
        _ => Act::Read { revive: false },
    };
    let style = Style {
        lag: dice.pick(&[Some(0), Some(0), Some(1), Some(2), None]),
        tie: dice.below(3) as u8,
        tells_birth: !dice.one_in(12),
        early: dice.pick(&[0, 0, 0, 1, 2]),
    };
    let after = dice.pick(&[0, 1, 1, 1, 2]);
    Deed { label, account, act, after, style }
}

fn address(dice: &mut Dice, taste: Taste) -> Option<Address> {
    (!dice.one_in(8)).then(|| Address {
        name: dice.below(taste.addresses.into()) as u8,
        verified: !dice.one_in(5),
        loud: dice.one_in(8),
    })
}

/// A world in which anything may happen to the delivery.
pub(crate) fn any_world(seed: u64) -> World {
    any_world_with(seed, Reads::Never)
}

/// The same, with readings of Clerk's API among the webhooks.
pub(crate) fn any_world_with(seed: u64, reads: Reads) -> World {
    let mut dice = Dice::new(seed);
    let taste = Taste { reads, ..Taste::any(&mut dice) };
    let deeds = deeds(&mut dice, taste);
    let policy = if dice.one_in(3) { dice.pick(&POLICIES) } else { dice.pick(&POLICIES[..2]) };
    let plan = any_plan(&mut dice, &deeds);
    World { deeds, policy, plan }
}

/// Any order, some of it missing, some of it twice, in batches of any size; later everything again, as retries.
fn any_plan(dice: &mut Dice, deeds: &[Deed]) -> Vec<Vec<Delivery>> {
    // Nothing comes before what happened so many deeds earlier: what a few retries do, up to any order at all.
    let disorder = dice.pick(&[1, 2, 4, 40]);
    let mut labels: Vec<u16> = deeds.iter().map(|deed| deed.label).collect();
    labels.sort_by_cached_key(|label| usize::from(*label) + dice.below(disorder));
    let loss = dice.pick(&[usize::MAX, 8, 3]);
    labels.retain(|_| !dice.one_in(loss));
    let repeats = dice.below(3);
    let again: Vec<u16> = (0..repeats * labels.len() / 2).map(|_| dice.pick(&labels)).collect();
    for label in again {
        labels.insert(dice.below(labels.len() + 1), label);
    }
    let haste = dice.pick(&[usize::MAX, 4, 1]);
    let most = dice.pick(&[1, 2, 4, 8]);
    let mut retries = labels.clone();
    dice.shuffle(&mut retries);
    let mut plan = batches(dice, &labels, most, haste);
    let haste = dice.pick(&[usize::MAX, 2, 1]);
    plan.extend(batches(dice, &retries, most, haste));
    plan
}

fn batches(dice: &mut Dice, labels: &[u16], most: usize, haste: usize) -> Vec<Vec<Delivery>> {
    let mut plan = Vec::new();
    let mut rest = labels;
    while !rest.is_empty() {
        let (batch, later) = rest.split_at((1 + dice.below(most)).min(rest.len()));
        let deliver = |label: &u16| Delivery { label: *label, patience_over: dice.one_in(haste) };
        plan.push(batch.iter().map(deliver).collect());
        rest = later;
    }
    plan
}

/// A world whose delivery meets these conditions.
pub(crate) fn lawful_world(seed: u64, conditions: Conditions, policies: &[Policy]) -> World {
    lawful_world_with(seed, conditions, policies, Reads::Never)
}

/// The same, with readings of Clerk's API among the webhooks.
pub(crate) fn lawful_world_with(
    seed: u64,
    conditions: Conditions,
    policies: &[Policy],
    reads: Reads,
) -> World {
    let mut dice = Dice::new(seed);
    let taste = Taste { reads, ..Taste::any(&mut dice) };
    let mut deeds = deeds(&mut dice, taste);
    if conditions.times_in_order && !times_in_order(&play(&deeds)) {
        deeds.retain(|deed| deed.act != Act::TellDeletionAgain);
        deeds.iter_mut().for_each(|deed| deed.style = Style::PLAIN);
        // A reading tells of what was before its millisecond.
        let reads = |deed: &&mut Deed| matches!(deed.act, Act::Read { .. });
        deeds.iter_mut().filter(reads).for_each(|deed| deed.after = deed.after.max(1));
    }
    let policy = dice.pick(policies);
    let world = World { deeds, policy, plan: Vec::new() };
    let plan = lawful_plan(&mut dice, &world, conditions);
    World { plan, ..world }
}

/// Batch by batch what may come next, together with something else, until everything has taken effect.
fn lawful_plan(dice: &mut Dice, world: &World, conditions: Conditions) -> Vec<Vec<Delivery>> {
    let facts = world.facts();
    let mut run = LawfulRun::new(world, &facts, conditions);
    let mut plan = Vec::new();
    let company = dice.pick(&[0, 0, 1, 3]);
    for _ in 0..20 * facts.len() {
        let eligible = run.eligible();
        if eligible.is_empty() {
            break;
        }
        let mut batch = vec![dice.pick(&eligible)];
        for _ in 0..company {
            let other = &facts[dice.below(facts.len())];
            if !batch.contains(&other) {
                batch.push(other);
            }
        }
        let batch: Vec<_> =
            batch.into_iter().map(|fact| (fact, !conditions.within_patience && dice.one_in(2))).collect();
        let mut next = run.clone();
        let lawful = next.deliver(&batch);
        if lawful == Ok(false) {
            continue;
        }
        let deliver = |(fact, over): &(&Fact, bool)| Delivery { label: fact.label, patience_over: *over };
        plan.push(batch.iter().map(deliver).collect());
        if lawful.is_err() {
            break;
        }
        run = next;
    }
    plan
}

/// A world in which Clerk's API is read as well. Webhooks are lost, late and repeated. With `edits`, people change rows by SQL.
pub(crate) fn clerk_world(seed: u64, edits: bool) -> ClerkWorld {
    let mut dice = Dice::new(seed);
    let taste = Taste::any(&mut dice);
    let deeds = deeds(&mut dice, taste);
    let policy = if dice.one_in(3) { dice.pick(&POLICIES) } else { dice.pick(&POLICIES[..2]) };
    let loss = dice.pick(&[usize::MAX, 6, 3, 1]);
    let haste = dice.pick(&[usize::MAX, 4, 1]);
    let (delivers, asks) = (dice.pick(&[2, 4, 8]), dice.pick(&[1, 2, 4]));
    let mut happened = play(&deeds).into_iter();
    let (mut steps, mut due) = (Vec::new(), Vec::new());
    let mut number = 0;
    let mut over = 0;
    while over < 6 {
        match dice.below(4 + delivers + asks + usize::from(edits)) {
            0..4 => match happened.next() {
                Some(fact) => {
                    steps.push(Step::Next);
                    if !dice.one_in(loss) {
                        due.extend((0..1 + usize::from(dice.one_in(4))).map(|_| fact.label));
                    }
                }
                None => over += 1,
            },
            choice if choice < 4 + delivers => {
                let size = 1 + dice.below(4);
                let batch: Vec<Delivery> = (0..size.min(due.len()))
                    .map(|_| {
                        let label = due.swap_remove(dice.below(due.len()));
                        Delivery { label, patience_over: dice.one_in(haste) }
                    })
                    .collect();
                if !batch.is_empty() {
                    steps.push(Step::Deliver(batch));
                }
            }
            choice if choice < 4 + delivers + asks => {
                let ask = match dice.below(8) {
                    0..3 => {
                        let account = dice.below(taste.accounts.into()) as u8;
                        Ask::User { account, revive: dice.one_in(6) }
                    }
                    3 | 4 => Ask::Newest { grace: dice.pick(&[0, 1, 3]) },
                    5 | 6 => Ask::List,
                    _ => Ask::Search,
                };
                steps.push(Step::Ask { number, early: dice.pick(&[0, 0, 1, 2, -1]), ask });
                due.extend(labels(number, taste.accounts).filter(|_| dice.one_in(2)));
                number += 1;
            }
            _ => {
                let account = dice.below(taste.accounts.into()) as u8;
                steps.push(Step::Edit { account, edit: dice.pick(&Edit::ALL) });
            }
        }
    }
    ClerkWorld { deeds, policy, steps, late: due, shuffle: dice.roll() }
}
