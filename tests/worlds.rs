//! Whole worlds against the pure fold: whatever people do at Clerk and however the webhooks come, the table is right.
//!
//! `SOAK=1` runs some twenty times as many.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "the tests' helpers fail as tests do"
)]

#[path = "worlds/mod.rs"]
mod worlds;

use std::collections::BTreeMap;

use headcount::rules::{
    Outcome,
    users::{OnDelete, Policy, Relink},
};
use worlds::{
    check::{self, Broken, Conditions, Verdict},
    generate::{POLICIES, Reads, any_world, any_world_with, lawful_world},
    history::Deed,
    memory::Memory,
    plan::World,
    shrink::{hold, shrink, times},
    small::{self, Bounds, changes_hands, histories},
};

/// The smallest world found that breaks what the check says.
fn counter_example(
    seeds: std::ops::Range<u64>,
    make: impl Fn(u64) -> World,
    check: impl Fn(&World) -> Result<(), Broken>,
) -> World {
    let found = seeds.clone().map(make).find(|world| check(world).is_err());
    let world = found.unwrap_or_else(|| panic!("no counter-example in seeds {seeds:?}"));
    let world = shrink(world, |world| check(world).is_err());
    println!("{world}{}", check(&world).expect_err("shrinking keeps the failure"));
    world
}

fn identity_under(conditions: Conditions) -> impl Fn(&World) -> Result<(), Broken> {
    move |world| match check::identity(world, conditions) {
        Verdict::Broken(broken) => Err(broken),
        Verdict::Holds | Verdict::Silent => Ok(()),
    }
}

const DEFAULT: Policy = Policy { relink: Relink::Deleted, on_delete: OnDelete::Keep };
const MATCH: Policy = Policy { relink: Relink::Match, on_delete: OnDelete::Keep };
const NEVER: Policy = Policy { relink: Relink::Never, on_delete: OnDelete::Keep };
const ERASE: Policy = Policy { relink: Relink::Deleted, on_delete: OnDelete::Erase };

#[test]
fn mirror_is_a_function_of_the_set_of_events_folded() {
    hold(0..times(6_000), any_world, check::mirror);
}

#[test]
fn safety_rows_pass_only_from_deleted_ids_to_proven_ids_born_later() {
    let make = |seed| match any_world(seed) {
        world if world.policy.relink == Relink::Match => World { policy: DEFAULT, ..world },
        world => world,
    };
    hold(0..times(6_000), make, check::safety);
}

#[test]
fn matching_by_address_alone_is_not_safe() {
    let make = |seed| World { policy: MATCH, ..any_world(seed) };
    let world = counter_example(0..20_000, make, check::safety);
    assert!(world.facts().len() <= 4, "not shrunk");
}

#[test]
fn the_slow_model_agrees_on_every_outcome_and_row() {
    hold(0..times(6_000), any_world, check::agreement);
}

#[test]
fn worlds_are_rich_in_every_outcome() {
    let mut counts = BTreeMap::new();
    for seed in 0..1_000 {
        let reads = if seed % 2 == 0 { Reads::Never } else { Reads::Reviving };
        let world = any_world_with(seed, reads);
        let mut memory = Memory::new(world.policy);
        for batch in world.batches() {
            for outcome in memory.apply(&batch).expect("no complaint of the store") {
                *counts.entry(outcome).or_insert(0) += 1;
            }
        }
    }
    for outcome in Outcome::ALL.into_iter().filter(|outcome| *outcome != Outcome::Buried) {
        let count = counts.get(&outcome).copied().unwrap_or(0);

        assert!(count >= 100, "{outcome:?}: {count} in 1000 worlds");
    }
}

#[test]
fn identity_live_accounts_end_with_the_row_of_the_ordered_history() {
    let make = |seed| lawful_world(seed, Conditions::ALL, &POLICIES);
    hold(0..times(5_000), make, identity_under(Conditions::ALL));
}

#[test]
fn the_worlds_of_the_identity_property_do_meet_its_conditions() {
    let verdict = |seed| check::identity(&lawful_world(seed, Conditions::ALL, &POLICIES), Conditions::ALL);
    let silent = (0..200).filter(|seed| verdict(*seed) == Verdict::Silent).count();
    assert!(silent < 10, "{silent} of 200 worlds say nothing");
}

// Each condition of identity is needed: without it there is a counter-example.

fn breaks_identity_without(conditions: Conditions, facts: usize) {
    let make = |seed| lawful_world(seed, conditions, &[DEFAULT]);
    let world = counter_example(0..20_000, make, identity_under(conditions));
    assert!(world.facts().len() <= facts, "not shrunk");
}

#[test]
fn identity_needs_times_in_the_order_of_what_happened() {
    breaks_identity_without(Conditions { times_in_order: false, ..Conditions::ALL }, 6);
}

#[test]
fn identity_needs_patience() {
    breaks_identity_without(Conditions { within_patience: false, ..Conditions::ALL }, 3);
}

#[test]
fn identity_needs_creations_first() {
    breaks_identity_without(Conditions { creation_first: false, ..Conditions::ALL }, 5);
}

#[test]
fn identity_needs_deletions_last() {
    breaks_identity_without(Conditions { deletion_last: false, ..Conditions::ALL }, 5);
}

#[test]
fn identity_needs_earlier_showings_of_the_address_first() {
    breaks_identity_without(Conditions { showings_first: false, ..Conditions::ALL }, 4);
}

// Every history of a few deeds, delivered in every way.

fn walk<'a>(histories: impl Iterator<Item = &'a Vec<Deed>>, policies: &[Policy]) {
    for deeds in histories {
        for policy in policies {
            let mut walked = small::walk(deeds, *policy);
            // As long as patience lasts, `match` is no other than the default.
            if walked.is_ok() && policy.relink != Relink::Match {
                walked = small::walk_identity(deeds, *policy, Conditions::ALL);
            }
            if let Err((world, broken)) = walked {
                panic!("{world}{broken}");
            }
        }
    }
}

#[test]
fn every_delivery_of_three_deeds_is_right_under_every_policy() {
    let bounds = Bounds { deeds: 3, accounts: 3, addresses: 1, ties: 2, reads: 0 };
    walk(histories(bounds).iter(), &[DEFAULT, MATCH, NEVER, ERASE]);
}

/// Histories of up to five deeds around one address, at most two of them in the same millisecond.
fn up_to_five_deeds() -> Vec<Vec<Deed>> {
    histories(Bounds { deeds: 5, accounts: 3, addresses: 1, ties: 1, reads: 0 })
}

fn has_ties(deeds: &[Deed]) -> bool {
    deeds.iter().skip(1).any(|deed| deed.after == 0)
}

/// One in so many, and all of them in a soak.
fn one_in(sample: usize) -> usize {
    if times(1) > 1 { 1 } else { sample }
}

#[test]
fn every_delivery_of_five_deeds_that_pass_an_address_on_is_right() {
    let (with_ties, without): (Vec<_>, Vec<_>) = up_to_five_deeds()
        .into_iter()
        .filter(|deeds| changes_hands(deeds))
        .partition(|deeds| has_ties(deeds));
    walk(without.iter(), &[DEFAULT]);
    walk(without.iter().step_by(one_in(8)), &[MATCH]);
    walk(with_ties.iter().step_by(one_in(24)), &[DEFAULT, MATCH]);
}

#[test]
fn every_delivery_of_five_deeds_with_nothing_to_relink_is_right() {
    let histories = up_to_five_deeds();
    let quiet = histories.iter().filter(|deeds| !changes_hands(deeds));
    walk(quiet.step_by(one_in(400)), &[DEFAULT]);
}
