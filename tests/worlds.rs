//! Whole worlds against the pure fold: whatever people do at Clerk and however the webhooks come, the table is right.
//!
//! `SOAK=1` runs some twenty times as many.

#[path = "worlds/mod.rs"]
mod worlds;

use headcount::roster::{OnDelete, Policy, Relink};
use worlds::{
    check::{self, Broken, Conditions, Verdict},
    generate::{POLICIES, any_world, lawful_world},
    plan::World,
    shrink::shrink,
    small,
};

fn times(count: u64) -> u64 {
    if std::env::var_os("SOAK").is_some_and(|value| value == "1") { 20 * count } else { count }
}

/// Every world made from these seeds holds, or the smallest that does not is shown.
fn hold(
    seeds: std::ops::Range<u64>,
    make: impl Fn(u64) -> World,
    check: impl Fn(&World) -> Result<(), Broken>,
) {
    for seed in seeds {
        let world = make(seed);
        if check(&world).is_err() {
            let world = shrink(world, |world| check(world).is_err());
            let broken = check(&world).expect_err("shrinking keeps the failure");
            panic!("seed {seed}\n{world}{broken}");
        }
    }
}

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

#[test]
fn mirror_is_a_function_of_the_set_of_events_folded() {
    hold(0..times(6_000), any_world, check::mirror);
}

#[test]
fn safety_rows_pass_only_from_deleted_ids_to_ids_born_later_that_proved_the_address() {
    let make = |seed| {
        let mut world = any_world(seed);
        if world.policy.relink == Relink::Match {
            world.policy.relink = Relink::Deleted;
        }
        world
    };
    hold(0..times(6_000), make, check::safety);
}

#[test]
fn the_slow_model_agrees_on_every_outcome_and_row() {
    hold(0..times(6_000), any_world, check::agreement);
}

#[test]
fn identity_live_accounts_end_with_the_row_of_the_ordered_history() {
    let make = |seed| lawful_world(seed, Conditions::ALL, &POLICIES);
    hold(0..times(4_000), make, identity_under(Conditions::ALL));
}

#[test]
fn the_worlds_of_the_identity_property_do_meet_its_conditions() {
    let verdict = |seed| check::identity(&lawful_world(seed, Conditions::ALL, &POLICIES), Conditions::ALL);
    let silent = (0..200).filter(|seed| verdict(*seed) == Verdict::Silent).count();
    assert!(silent < 10, "{silent} of 200 worlds say nothing");
}

// Each condition of identity is needed: without it there is a counter-example.

fn breaks_identity_without(conditions: Conditions) -> World {
    let make = |seed| lawful_world(seed, conditions, &[DEFAULT]);
    counter_example(0..20_000, make, identity_under(conditions))
}

#[test]
fn identity_needs_patience() {
    let world = breaks_identity_without(Conditions { within_patience: false, ..Conditions::ALL });
    assert!(world.facts().len() <= 3);
}

#[test]
fn identity_needs_creations_first() {
    let world = breaks_identity_without(Conditions { creation_first: false, ..Conditions::ALL });
    assert!(world.facts().len() <= 5);
}

#[test]
fn identity_needs_deletions_last() {
    let world = breaks_identity_without(Conditions { deletion_last: false, ..Conditions::ALL });
    assert!(world.facts().len() <= 5);
}

#[test]
fn identity_needs_earlier_showings_of_the_address_first() {
    let world = breaks_identity_without(Conditions { showings_first: false, ..Conditions::ALL });
    assert!(world.facts().len() <= 4);
}

#[test]
fn matching_by_address_alone_is_not_safe() {
    let make = |seed| World { policy: MATCH, ..any_world(seed) };
    let world = counter_example(0..20_000, make, check::safety);
    assert!(world.facts().len() <= 3);
}
