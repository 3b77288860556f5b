//! Owns letting tiers follow what no event tells: a period that runs out, a grant whose time is over, and settings that people have
//! changed. Promises that one process of all does it at a time, in small steps, and that one user whom the database refuses holds up
//! no other.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
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
    time::{Millis, now},
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
/// More accounts that the database refuses are not set aside in one round.
const REFUSED_MAX: usize = 10_000;
/// So long after settings were followed they are followed once more: processes with the earlier ones may have been at work.
const SETTLED: Millis = 600_000;

/// Follows until `stop` turns true. Without `tiers`, where only grants run out, a database that this process asks for nothing else is
/// asked once an hour.
pub async fn run(store: Arc<dyn Store>, tiers: Option<Arc<Tiers>>, stop: watch::Receiver<bool>) {
    let follower = Follower { store: store.as_ref(), tiers: tiers.as_deref(), holder: Holder::of("worker") };
    let mut last: Option<(u64, Instant)> = None;
    let mut was_failing = false;
    let rounds = async {
        loop {
            if tiers.is_some() || is_due(last, store.asked()) {
                let done = follower.round().await;
                last = Some((store.asked(), Instant::now()));
                // One line is enough: the worker logs that the database is away.
                match (&done, std::mem::replace(&mut was_failing, done.is_err())) {
                    (Err(error), false) => warn!("tiers do not follow the time: {error}"),
                    (Ok(()), true) => info!("the database takes tiers that follow the time again"),
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
    let _ = store.give_lease_back(LEASE, follower.holder.id).await;
}

struct Follower<'f> {
    store: &'f dyn Store,
    tiers: Option<&'f Tiers>,
    holder: Holder,
}

/// Which settings the tiers follow, as it stands in the lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Followed {
    /// `None`: billing is off.
    settings: Option<String>,
    /// Behind this account they are still to be followed.
    after: Option<String>,
    /// The end was reached then.
    ended_at: Option<Millis>,
    /// Also for the second time.
    twice: bool,
}

impl Follower<'_> {
    async fn round(&self) -> Result<(), StoreError> {
        if !self.renew().await? {
            return Ok(());
        }
        self.follow_settings().await?;
        let mut refused: Vec<String> = Vec::new();
        loop {
            let due = self.store.lapsed(&refused, STEP).await?;
            let step = self.settle(&due).await?;
            if step.changed > 0 {
                debug!("{} tiers followed the time", step.changed);
            }
            refused.extend(step.refused);
            if due.len() < STEP as usize || refused.len() > REFUSED_MAX || !self.renew().await? {
                return Ok(());
            }
            sleep(BREATH).await;
        }
    }

    async fn renew(&self) -> Result<bool, StoreError> {
        Ok(matches!(self.store.take_lease(LEASE, &self.holder, TTL).await?, Taken::Ours))
    }

    /// Goes through everybody who pays where the settings are others than those that the tiers followed last.
    async fn follow_settings(&self) -> Result<(), StoreError> {
        let settings = self.tiers.map(ToString::to_string);
        let told = self.store.lease(LEASE).await?.and_then(|lease| lease.state);
        let told: Followed = told.and_then(|told| serde_json::from_value(told).ok()).unwrap_or_default();
        let mut state = match told {
            Followed { settings: known, .. } if known != settings => {
                Followed { settings, ..Followed::default() }
            }
            Followed { ended_at: Some(at), twice: false, .. } if now().saturating_sub(at) > SETTLED => {
                Followed { settings, twice: true, ..Followed::default() }
            }
            Followed { ended_at: Some(_), .. } => return Ok(()),
            told => told,
        };
        if state.settings.is_none() {
            // So that all is followed once billing is on again.
            state.ended_at = Some(now());
            state.twice = true;
            return self.tell(&state).await.map(drop);
        }
        let mut changed = 0;
        loop {
            let payers = self.store.payers(state.after.as_deref(), STEP).await?;
            let step = self.settle(&payers).await?;
            changed += step.changed;
            if !step.refused.is_empty() {
                self.store.look_again(&step.refused).await?;
            }
            state.after = payers.last().cloned();
            if payers.len() < STEP as usize {
                (state.after, state.ended_at) = (None, Some(now()));
            }
            if !self.tell(&state).await? || !self.renew().await? {
                return Ok(());
            }
            if state.ended_at.is_some() {
                if changed > 0 {
                    info!("{changed} tiers followed the settings HEADCOUNT_TIERS and HEADCOUNT_PAST_DUE");
                }
                return Ok(());
            }
            sleep(BREATH).await;
        }
    }

    /// Writes down how far the settings are followed. Answers false where another process does it now.
    async fn tell(&self, state: &Followed) -> Result<bool, StoreError> {
        let state = serde_json::to_value(state).unwrap_or_default();
        self.store.tell_state(LEASE, self.holder.id, &state).await
    }

    /// Settles these accounts together; each alone where that fails, so that those which the database refuses hold up no other.
    async fn settle(&self, clerk_ids: &[String]) -> Result<Settled, StoreError> {
        if clerk_ids.is_empty() {
            return Ok(Settled::default());
        }
        let error = match self.store.settle_tiers(clerk_ids).await {
            Ok(changed) => return Ok(Settled { changed, ..Settled::default() }),
            Err(error) if error.is_outage() => return Err(error),
            Err(error) => error,
        };
        let mut settled = Settled::default();
        for clerk_id in clerk_ids {
            match self.store.settle_tiers(std::slice::from_ref(clerk_id)).await {
                Ok(changed) => settled.changed += changed,
                Err(error) if error.is_outage() => return Err(error),
                Err(_) => settled.refused.push(clerk_id.clone()),
            }
        }
        if !settled.refused.is_empty() {
            warn!("the tiers of {} users do not follow the time: {error}", settled.refused.len());
        }
        Ok(settled)
    }
}

/// What came of a step.
#[derive(Default)]
struct Settled {
    changed: u64,
    /// Accounts that the database refused.
    refused: Vec<String>,
}
