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

use futures_util::FutureExt;
use headcount::rules::users::{OnDelete, Policy, Relink};
use worlds::{
    check::{self, Broken, Conditions, Verdict},
    clerk::{self, ClerkWorld, Log},
    generate::{POLICIES, Reads, any_world_with, clerk_world, lawful_world_with},
    history::{Fact, Kind},
    memory::Memory,
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

// Readings that are compared with the table as it is by then, and published where something differs.

fn happen(world: &ClerkWorld) -> Result<Log, Broken> {
    let run = clerk::run(world, Memory::new(world.policy)).now_or_never();
    run.expect("memory waits for nothing").map(|(log, _)| log)
}

#[test]
fn the_table_ends_as_clerk_is_and_nobody_who_lives_is_ever_deleted() {
    hold(0..times(6_000), |seed| clerk_world(seed, false), |world| happen(world).map(drop));
}

#[test]
fn what_people_edit_by_sql_ends_as_clerk_is() {
    hold(0..times(6_000), |seed| clerk_world(seed, true), |world| happen(world).map(drop));
}

#[test]
fn rows_pass_only_to_who_may_have_them_whatever_is_lost() {
    let check = |world: &ClerkWorld| {
        let Log { batches, facts } = happen(world)?;
        let batches = deliveries(&batches);
        check::agreement_over(world.policy, batches.clone())?;
        match world.policy.relink {
            Relink::Match => Ok(()),
            Relink::Deleted | Relink::Never => check::safety_over(world.policy, &batches, &facts),
        }
    };
    hold(0..times(3_000), |seed| clerk_world(seed, false), check);
}

fn deliveries(batches: &[Vec<(Fact, bool)>]) -> Vec<Vec<(&Fact, bool)>> {
    batches.iter().map(|batch| batch.iter().map(|(fact, over)| (fact, *over)).collect()).collect()
}

#[test]
fn worlds_with_clerk_are_rich_in_readings_that_matter() {
    let (mut lost, mut users, mut absences) = (0, 0, 0);
    for seed in 0..500 {
        let world = clerk_world(seed, false);
        let Log { batches, facts } = happen(&world).unwrap();
        let delivered = |fact: &Fact| batches.iter().flatten().any(|(one, _)| one.label == fact.label);
        let counted = |of: &dyn Fn(&Fact) -> bool| facts.iter().filter(|fact| of(fact)).count();
        lost += counted(&|fact| fact.reading.is_none() && fact.kind != Kind::Other && !delivered(fact));
        users += counted(&|fact| fact.reading.is_some() && fact.is_upsert());
        absences += counted(&Fact::is_absence);
    }
    assert!(
        lost > 500 && users > 500 && absences > 200,
        "{lost} lost, {users} users read, {absences} absences"
    );
}
