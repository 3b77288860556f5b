//! Owns letting tiers follow what no event tells: a period that runs out, a grant whose time is over, and settings that people have
//! changed. Promises that one process of all does it at a time, in small steps, and that one user whom the database refuses holds up
//! no other.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::{debug, info, warn};

use crate::{
    letters::count::is_due,
    rules::subscriptions::tiers::Tiers,
    stop::until,
    store::{
        Store, StoreError,
        sync::{Holder, Taken},
    },
};

/// The name of the lease of whoever does it.
const LEASE: &str = "tiers";
/// The time between two rounds.
const EVERY: Duration = Duration::from_secs(60);
/// Whoever does it renews the lease in each round.
const TTL: Duration = Duration::from_secs(90);
/// The most accounts of one step.
const STEP: u32 = 500;
/// The pause between two steps.
const BREATH: Duration = Duration::from_millis(50);

/// Follows until `stop` turns true. Without `tiers`, where only grants run out, a database that this process asks for nothing else is
/// asked once an hour.
pub async fn run(store: Arc<dyn Store>, tiers: Option<Arc<Tiers>>, stop: watch::Receiver<bool>) {
    let holder = Holder::of("worker");
    let mut last: Option<(u64, Instant)> = None;
    let mut was_failing = false;
    let rounds = async {
        loop {
            if tiers.is_some() || is_due(last, store.asked()) {
                let done = round(store.as_ref(), tiers.as_deref(), &holder).await;
                last = Some((store.asked(), Instant::now()));
                // One line is enough: the worker logs that the database is away.
                match (&done, std::mem::replace(&mut was_failing, done.is_err())) {
                    (Err(error), false) => warn!("tiers do not follow the time: {error}"),
                    (Ok(()), true) => info!("tiers follow the time again"),
                    _ => {}
                }
            }
            sleep(EVERY).await;
        }
    };
    tokio::select! {
        () = rounds => {}
        () = until(&stop, |stop| *stop) => {}
    }
    // Whoever is next need not wait. In vain or not: it ends by itself.
    let _ = store.give_lease_back(LEASE, holder.id).await;
}

async fn round(store: &dyn Store, tiers: Option<&Tiers>, holder: &Holder) -> Result<(), StoreError> {
    if !renew(store, holder).await? {
        return Ok(());
    }
    if let Some(tiers) = tiers {
        follow_settings(store, tiers, holder).await?;
    }
    loop {
        let due = store.lapsed(STEP).await?;
        let settled = settle(store, &due).await?;
        if settled.changed > 0 {
            debug!("{} tiers followed the time", settled.changed);
        }
        // Those that are refused are due in the next round again, and must not be all that is looked at now.
        if due.len() < STEP as usize || settled.refused > 0 {
            return Ok(());
        }
        sleep(BREATH).await;
    }
}

async fn renew(store: &dyn Store, holder: &Holder) -> Result<bool, StoreError> {
    Ok(matches!(store.take_lease(LEASE, holder, TTL).await?, Taken::Ours))
}

/// Goes through everybody who pays where the settings are others than those that the tiers followed last.
async fn follow_settings(store: &dyn Store, tiers: &Tiers, holder: &Holder) -> Result<(), StoreError> {
    let settings = tiers.to_string();
    let told = store.lease(LEASE).await?.and_then(|lease| lease.state);
    let text = |name: &str| told.as_ref()?.get(name)?.as_str().map(str::to_owned);
    let under_way = text("settings").is_some_and(|known| known == settings);
    let mut after = text("after").filter(|_| under_way);
    if under_way && after.is_none() {
        return Ok(());
    }
    let mut changed = 0;
    loop {
        let payers = store.payers(after.as_deref(), STEP).await?;
        changed += settle(store, &payers).await?.changed;
        after = payers.last().cloned().filter(|_| payers.len() == STEP as usize);
        let state = json!({ "settings": settings, "after": after });
        if !store.tell_state(LEASE, holder.id, &state).await? || !renew(store, holder).await? {
            return Ok(());
        }
        if after.is_none() {
            if changed > 0 {
                info!("{changed} tiers followed the settings HEADCOUNT_TIERS and HEADCOUNT_PAST_DUE");
            }
            return Ok(());
        }
        sleep(BREATH).await;
    }
}

/// What came of a step.
#[derive(Default)]
struct Settled {
    changed: u64,
    refused: usize,
}

/// Settles these accounts together; each alone where that fails, so that those which the database refuses hold up no other.
async fn settle(store: &dyn Store, clerk_ids: &[String]) -> Result<Settled, StoreError> {
    if clerk_ids.is_empty() {
        return Ok(Settled::default());
    }
    let error = match store.settle_tiers(clerk_ids).await {
        Ok(changed) => return Ok(Settled { changed, refused: 0 }),
        Err(error) if error.is_outage() => return Err(error),
        Err(error) => error,
    };
    let mut settled = Settled::default();
    for clerk_id in clerk_ids {
        match store.settle_tiers(std::slice::from_ref(clerk_id)).await {
            Ok(changed) => settled.changed += changed,
            Err(error) if error.is_outage() => return Err(error),
            Err(_) => settled.refused += 1,
        }
    }
    if settled.refused > 0 {
        warn!("the tiers of {} users do not follow the time: {error}", settled.refused);
    }
    Ok(settled)
}
