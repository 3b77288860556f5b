//! Owns every history of a few deeds, and for each of them every way to deliver it.
//!
//! A webhook that waits has changed nothing. So a walk over the pairs (webhooks that took effect, state) covers every order,
//! every number of tries and every moment at which patience may end.

use std::collections::{BTreeMap, HashMap, HashSet};

use headcount::rules::{
    Outcome,
    users::{Policy, Relink},
};

use super::{
    check::{self, Broken, Conditions, Holders, LawfulRun, agreement_of, mirror_is, mirror_of, safety_of},
    history::{Act, Address, Deed, Fact, Kind, Style, play},
    memory::Memory,
    plan::{Delivery, World},
    reference::{self, Slow},
};

/// Which histories.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// So many deeds at most.
    pub(crate) deeds: usize,
    pub(crate) accounts: u8,
    pub(crate) addresses: u8,
    /// So many deeds at most fall into the same millisecond as the deed before.
    pub(crate) ties: usize,
    /// So many deeds at most are readings of Clerk's API.
    pub(crate) reads: usize,
}

/// Every history within the bounds; accounts sign up in the order of their Clerk ids.
pub(crate) fn histories(bounds: Bounds) -> Vec<Vec<Deed>> {
    let mut all = Vec::new();
    let mut last = vec![Vec::new()];
    for label in 0..bounds.deeds as u16 {
        let mut longer = Vec::new();
        for deeds in &last {
            for (account, act) in next_acts(deeds, bounds) {
                for after in [0, 1] {
                    let mut deeds: Vec<Deed> = deeds.clone();
                    deeds.push(Deed { label, account, act, after, style: Style::PLAIN });
                    let ties = deeds.iter().filter(|deed| deed.after == 0).count();
                    let reads = deeds.iter().filter(|deed| matches!(deed.act, Act::Read { .. })).count();
                    // The first deed has none before it.
                    if ties <= bounds.ties + 1
                        && reads <= bounds.reads
                        && after <= i64::from(label)
                        && play(&deeds).len() == deeds.len()
                    {
                        longer.push(deeds);
                    }
                }
            }
        }
        all.extend(longer.iter().cloned());
        last = longer;
    }
    all
}

/// Somebody signs up with an address that another account has proved before: only then is there anything to wait for
/// or to relink.
pub(crate) fn changes_hands(deeds: &[Deed]) -> bool {
    let facts = play(deeds);
    facts.iter().enumerate().any(|(place, fact)| {
        let proved = fact.address.filter(|address| address.verified && fact.kind == Kind::Created);
        let shown =
            |other: &Fact, name| other.account != fact.account && other.is_upsert() && other.proves(name);
        proved.is_some_and(|address| facts.iter().take(place).any(|other| shown(other, address.name)))
    })
}

fn next_acts(deeds: &[Deed], bounds: Bounds) -> Vec<(u8, Act)> {
    let known = deeds.iter().map(|deed| deed.account + 1).max().unwrap_or(0);
    let mut addresses = vec![None];
    for name in 0..bounds.addresses {
        for verified in [true, false] {
            addresses.push(Some(Address { name, verified, loud: false }));
        }
    }
    let mut acts = Vec::new();
    if known < bounds.accounts {
        acts.extend(addresses.iter().map(|address| (known, Act::SignUp(*address))));
    }
    for account in 0..known {
        acts.extend(addresses.iter().map(|address| (account, Act::SetAddress(*address))));
        acts.push((account, Act::Delete));
        acts.push((account, Act::Read { revive: false }));
    }
    acts
}

/// How far a walk went.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Walked {
    pub(crate) states: usize,
    pub(crate) steps: usize,
}

struct Node<'a> {
    /// One bit for each webhook that has taken effect.
    folded: u32,
    memory: Memory,
    slow: Slow<'a>,
    holders: Holders,
    path: Vec<Delivery>,
}

/// Mirror, safety and agreement with the slow model, over every delivery of the history.
///
/// # Errors
/// The delivery that breaks one of them.
pub(crate) fn walk(deeds: &[Deed], policy: Policy) -> Result<Walked, (World, Broken)> {
    let facts = play(deeds);
    let mut walked = Walked::default();
    let mut seen = HashSet::new();
    let mut mirrors = HashMap::new();
    let mut open = vec![Node {
        folded: 0,
        memory: Memory::new(policy),
        slow: Slow::new(policy),
        holders: BTreeMap::new(),
        path: Vec::new(),
    }];
    while let Some(node) = open.pop() {
        walked.states += 1;
        for (place, fact) in facts.iter().enumerate().filter(|(place, _)| node.folded >> place & 1 == 0) {
            for patience_over in [false, true] {
                walked.steps += 1;
                let mut path = node.path.clone();
                path.push(Delivery { label: fact.label, patience_over });
                let broken = |broken| (world(deeds, policy, &path), broken);
                let Some((memory, slow)) = step(&node, fact, patience_over).map_err(broken)? else {
                    continue;
                };
                let folded = node.folded | 1 << place;
                if seen.insert((folded, memory.state(), slow.state())) {
                    if facts.iter().any(|fact| fact.reading.is_some()) {
                        mirror_of(&memory, &facts).map_err(broken)?;
                    } else {
                        let expected = mirrors
                            .entry(folded)
                            .or_insert_with(|| reference::mirror(&check::folded(&memory, &facts)));
                        mirror_is(&memory, expected).map_err(broken)?;
                    }
                    let holders = checked(&memory, &slow, &facts, &node.holders, policy).map_err(broken)?;
                    open.push(Node { folded, memory, slow, holders, path });
                }
                // Patience makes a difference only to what waits.
                break;
            }
        }
    }
    Ok(walked)
}

/// The state after a webhook; `None` where it waits.
fn step<'a>(
    node: &Node<'a>,
    fact: &'a Fact,
    patience_over: bool,
) -> Result<Option<(Memory, Slow<'a>)>, Broken> {
    let (mut memory, mut slow) = (node.memory.clone(), node.slow.clone());
    let outcomes = memory.apply(&[fact.event(patience_over)])?;
    let expected = slow.apply(&[(fact, patience_over)]);
    if outcomes != expected {
        return Err(format!("outcome: expected {expected:?}, found {outcomes:?}"));
    }
    if outcomes != [Outcome::Waiting] {
        return Ok(Some((memory, slow)));
    }
    if memory.state() != node.memory.state() {
        return Err("what waits has changed something".into());
    }
    Ok(None)
}

fn checked(
    memory: &Memory,
    slow: &Slow<'_>,
    facts: &[Fact],
    before: &Holders,
    policy: Policy,
) -> Result<Holders, Broken> {
    if memory.inbox.len() == facts.len() {
        agreement_of(memory, slow)?;
    }
    match policy.relink {
        Relink::Match => Ok(Holders::new()),
        Relink::Deleted | Relink::Never => safety_of(memory, facts, before),
    }
}

/// Identity, over every delivery of the history that meets the conditions.
///
/// # Errors
/// The delivery that breaks it.
pub(crate) fn walk_identity(
    deeds: &[Deed],
    policy: Policy,
    conditions: Conditions,
) -> Result<Walked, (World, Broken)> {
    let facts = play(deeds);
    let start = world(deeds, policy, &[]);
    let mut walked = Walked::default();
    let mut seen = HashSet::new();
    let mut open = vec![(LawfulRun::new(&start, &facts, conditions), Vec::new())];
    while let Some((run, path)) = open.pop() {
        walked.states += 1;
        let broken = |broken| (world(deeds, policy, &path), broken);
        if run.is_complete() {
            run.ends_as_ordered().map_err(broken)?;
            continue;
        }
        if run.is_stuck() {
            return Err(broken("something waits for ever".into()));
        }
        for fact in run.eligible() {
            walked.steps += 1;
            let mut next = run.clone();
            let lawful = next.deliver(&[(fact, false)]).map_err(broken)?;
            if lawful && seen.insert((next.memory.inbox.len(), next.memory.state())) {
                let mut path = path.clone();
                path.push(Delivery { label: fact.label, patience_over: false });
                open.push((next, path));
            }
        }
    }
    Ok(walked)
}

fn world(deeds: &[Deed], policy: Policy, path: &[Delivery]) -> World {
    let plan = path.iter().map(|delivery| vec![*delivery]).collect();
    World { deeds: deeds.to_vec(), policy, plan }
}
