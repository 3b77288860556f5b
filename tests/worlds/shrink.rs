//! Owns checking a property over many worlds, and making one that fails small enough to read.

use std::{fmt, ops::Range};

use super::{
    check::Broken,
    history::{Act, Deed, Style},
    plan::World,
};

/// A world that can be made simpler.
pub(crate) trait Simpler: Clone + fmt::Display {
    /// Worlds that are a little simpler, the largest step first. Each step removes something, so the search ends.
    fn simpler(&self) -> Vec<Self>;
}

/// So many, and more of them in a soak.
pub(crate) fn times(count: u64) -> u64 {
    if std::env::var_os("SOAK").is_some_and(|value| value == "1") { 20 * count } else { count }
}

/// Checks every world made from these seeds, and shows the smallest one that fails.
pub(crate) fn hold<W: Simpler>(
    seeds: Range<u64>,
    make: impl Fn(u64) -> W,
    check: impl Fn(&W) -> Result<(), Broken>,
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

/// The smallest failing world that single steps of simplification reach.
pub(crate) fn shrink<W: Simpler>(mut world: W, fails: impl Fn(&W) -> bool) -> W {
    while let Some(smaller) = world.simpler().into_iter().find(|candidate| fails(candidate)) {
        world = smaller;
    }
    world
}

impl Simpler for World {
    fn simpler(&self) -> Vec<Self> {
        simpler(self)
    }
}

fn simpler(world: &World) -> Vec<World> {
    let mut worlds = Vec::new();
    for place in 0..world.deeds.len() {
        let mut candidate = world.clone();
        let label = candidate.deeds.remove(place).label;
        for batch in &mut candidate.plan {
            batch.retain(|delivery| delivery.label != label);
        }
        candidate.plan.retain(|batch| !batch.is_empty());
        worlds.push(candidate);
    }
    for place in 0..world.plan.len() {
        for delivery in 0..world.plan[place].len() {
            let mut candidate = world.clone();
            candidate.plan[place].remove(delivery);
            candidate.plan.retain(|batch| !batch.is_empty());
            worlds.push(candidate);
        }
        if world.plan[place].len() > 1 {
            let mut candidate = world.clone();
            let singles = candidate.plan[place].clone().into_iter().map(|delivery| vec![delivery]);
            candidate.plan.splice(place..=place, singles);
            worlds.push(candidate);
        }
        for delivery in 0..world.plan[place].len() {
            if world.plan[place][delivery].patience_over {
                let mut candidate = world.clone();
                candidate.plan[place][delivery].patience_over = false;
                worlds.push(candidate);
            }
        }
    }
    for place in 0..world.deeds.len() {
        worlds.extend(plainer(&world.deeds[place]).into_iter().map(|deed| {
            let mut candidate = world.clone();
            candidate.deeds[place] = deed;
            candidate
        }));
    }
    worlds
}

/// The same deed, told in a plainer way.
pub(crate) fn plainer(deed: &Deed) -> Vec<Deed> {
    let mut deeds = Vec::new();
    let mut change = |edit: &dyn Fn(&mut Deed)| {
        let mut candidate = deed.clone();
        edit(&mut candidate);
        if candidate != *deed {
            deeds.push(candidate);
        }
    };
    if deed.after > 1 {
        change(&|deed| deed.after = 1);
    }
    change(&|deed| deed.style = Style::PLAIN);
    change(&|deed| deed.style = Style { lag: Some(0), ..deed.style });
    change(&|deed| deed.style = Style { tie: 0, ..deed.style });
    change(&|deed| {
        if let Act::SignUp(Some(address)) | Act::SetAddress(Some(address)) = &mut deed.act {
            address.loud = false;
        }
    });
    deeds
}
