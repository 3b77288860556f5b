//! Owns making a failing world small enough to read.

use super::{
    history::{Act, Style},
    plan::World,
};

/// The smallest failing world that single steps of simplification reach.
pub(crate) fn shrink(mut world: World, fails: impl Fn(&World) -> bool) -> World {
    while let Some(smaller) = simpler(&world).into_iter().find(|candidate| fails(candidate)) {
        world = smaller;
    }
    world
}

/// Worlds that are a little simpler, the largest step first. Each step removes something, so the search ends.
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
        let deed = &world.deeds[place];
        let mut change = |edit: &dyn Fn(&mut super::history::Deed)| {
            let mut candidate = world.clone();
            edit(&mut candidate.deeds[place]);
            if candidate.deeds != world.deeds {
                worlds.push(candidate);
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
    }
    worlds
}
