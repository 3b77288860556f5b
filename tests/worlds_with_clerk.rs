//! Whole worlds with Clerk's API as a second source of news: whatever webhooks are lost, late or repeated, and whenever the
//! API is read, the table ends as Clerk is, and nobody who lives is ever marked deleted. `SOAK=1` runs some twenty times as
//! many.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "the tests' helpers fail as tests do"
)]

#[path = "worlds/mod.rs"]
mod worlds;

use headcount::rules::users::{OnDelete, Policy, Relink};
use worlds::{
    check::{self, Broken, Conditions, Verdict},
    generate::{POLICIES, Reads, any_world_with, lawful_world_with},
    plan::World,
    shrink::{hold, times},
    small::{self, Bounds, histories},
};

const DEFAULT: Policy = Policy { relink: Relink::Deleted, on_delete: OnDelete::Keep };

// Readings among webhooks, published whatever the table says.

#[test]
fn mirror_is_a_function_of_the_webhooks_and_readings_folded() {
    hold(0..times(4_000), |seed| any_world_with(seed, Reads::Often), check::mirror);
}

#[test]
fn safety_holds_with_readings_among_the_webhooks() {
    let make = |seed| match any_world_with(seed, Reads::Often) {
        world if world.policy.relink == Relink::Match => World { policy: DEFAULT, ..world },
        world => world,
    };
    hold(0..times(4_000), make, check::safety);
}

#[test]
fn the_slow_model_agrees_on_readings_and_on_those_that_revive() {
    hold(0..times(4_000), |seed| any_world_with(seed, Reads::Often), check::agreement);
    hold(0..times(4_000), |seed| any_world_with(seed, Reads::Reviving), check::agreement);
}

fn identity(world: &World) -> Result<(), Broken> {
    match check::identity(world, Conditions::ALL) {
        Verdict::Broken(broken) => Err(broken),
        Verdict::Holds | Verdict::Silent => Ok(()),
    }
}

#[test]
fn identity_holds_where_readings_keep_to_its_conditions() {
    let make = |seed| lawful_world_with(seed, Conditions::ALL, &POLICIES, Reads::Often);
    hold(0..times(4_000), make, identity);
    let verdicts = (0..200).map(|seed| check::identity(&make(seed), Conditions::ALL));
    let silent = verdicts.filter(|verdict| *verdict == Verdict::Silent).count();
    assert!(silent < 20, "{silent} of 200 worlds say nothing");
}

#[test]
fn every_delivery_of_four_deeds_with_readings_is_right() {
    let histories = histories(Bounds { deeds: 4, accounts: 2, addresses: 1, ties: 0, reads: 2 });
    let step = if times(1) > 1 { 1 } else { 8 };
    for deeds in histories.iter().step_by(step) {
        if let Err((world, broken)) = small::walk(deeds, DEFAULT) {
            panic!("{world}{broken}");
        }
    }
}
