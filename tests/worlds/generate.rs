//! Owns making worlds from a seed. The same seed gives the same world.

use headcount::roster::{OnDelete, Policy, Relink};

use super::{
    check::{Conditions, LawfulRun},
    history::{Act, Address, Deed, Style, play},
    plan::{Delivery, World},
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

/// Every value that the two settings can have.
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
    /// The order of an account's news by version may be another than that in which it happened: within a
    /// millisecond Clerk's times tell nothing.
    pub(crate) odd_ties: bool,
}

impl Taste {
    /// Up to 14 deeds of up to 6 accounts around up to 3 addresses.
    pub(crate) fn any(dice: &mut Dice) -> Self {
        Self {
            deeds: 3 + dice.below(12),
            accounts: 2 + dice.below(5) as u8,
            addresses: 1 + dice.below(3) as u8,
            odd_ties: true,
        }
    }
}

/// A history. People come and go around few addresses, so that these change hands often.
pub(crate) fn deeds(dice: &mut Dice, taste: Taste) -> Vec<Deed> {
    let mut deeds: Vec<Deed> = Vec::new();
    for label in 0..taste.deeds as u16 {
        // The first of a few tries that can happen at all.
        for _ in 0..8 {
            let deed = deed(dice, taste, label);
            let happened = play(&deeds).len();
            deeds.push(deed);
            if play(&deeds).len() > happened {
                break;
            }
            deeds.pop();
        }
    }
    deeds
}

fn deed(dice: &mut Dice, taste: Taste, label: u16) -> Deed {
    let address = |dice: &mut Dice| {
        (!dice.one_in(6)).then(|| Address {
            name: dice.below(taste.addresses.into()) as u8,
            verified: !dice.one_in(4),
            loud: dice.one_in(8),
        })
    };
    let act = match dice.below(20) {
        0..=7 => Act::SignUp(address(dice)),
        8..=11 => Act::SetAddress(address(dice)),
        12..=13 => Act::Rename,
        14..=18 => Act::Delete,
        _ => Act::SignIn,
    };
    let style = if taste.odd_ties {
        Style {
            lag: dice.pick(&[Some(0), Some(0), Some(1), Some(2), None]),
            tie: dice.below(3) as u8,
            tells_birth: !dice.one_in(12),
        }
    } else {
        Style::PLAIN
    };
    let after = dice.pick(&[0, 1, 1, 2]);
    Deed { label, account: dice.below(taste.accounts.into()) as u8, act, after, style }
}

/// A world in which anything may happen to the delivery.
pub(crate) fn any_world(seed: u64) -> World {
    let mut dice = Dice::new(seed);
    let taste = Taste::any(&mut dice);
    let deeds = deeds(&mut dice, taste);
    let policy = dice.pick(&POLICIES);
    let plan = any_plan(&mut dice, &deeds);
    World { deeds, policy, plan }
}

/// Any order, some of it missing, some of it twice, in batches of any size; later everything again, as retries.
fn any_plan(dice: &mut Dice, deeds: &[Deed]) -> Vec<Vec<Delivery>> {
    let mut labels: Vec<u16> = deeds.iter().map(|deed| deed.label).collect();
    match dice.below(4) {
        0 => {}
        1 => labels.reverse(),
        // Nearly in order: what a retry or two does.
        2 => (0..2).for_each(|_| {
            let label = labels.remove(dice.below(labels.len()));
            labels.insert(dice.below(labels.len() + 1), label);
        }),
        _ => dice.shuffle(&mut labels),
    }
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

/// A world whose delivery meets these conditions, each account's news being ordered by version as it happened.
pub(crate) fn lawful_world(seed: u64, conditions: Conditions, policies: &[Policy]) -> World {
    let mut dice = Dice::new(seed);
    let taste = Taste { odd_ties: false, ..Taste::any(&mut dice) };
    let deeds = deeds(&mut dice, taste);
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
        let deliver = |(fact, over): &(&super::history::Fact, bool)| Delivery {
            label: fact.label,
            patience_over: *over,
        };
        plan.push(batch.iter().map(deliver).collect());
        if lawful.is_err() {
            break;
        }
        run = next;
    }
    plan
}
