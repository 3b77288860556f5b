//! Owns what one process of all does at a time: a lease that is renewed while the work goes on, so that the work of a process that was
//! killed is taken over within half a minute. Promises that whoever could not renew it stops counting on it before anybody else
//! can have it, and that nothing renews it once it was given back.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{SyncError, patience::Patience};
use crate::store::{
    Store, StoreError,
    sync::{Holder, Lease, Taken},
};

/// How long a lease lasts.
const TTL: Duration = Duration::from_secs(30);
/// How often it is renewed, ...
pub(super) const RENEWED: Duration = Duration::from_secs(10);
/// ... and how soon again where that has failed.
const RETRIED: Duration = Duration::from_secs(1);
/// A lease that was not renewed for so long counts as lost, because it is about to end by the database's clock.
const UNSURE: Duration = Duration::from_secs(25);
/// How often a lease that somebody else holds is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// More than a renewal that is under way may take.
const RENEWING: Duration = Duration::from_secs(8);

/// A lease that is ours until it is given back, or lost.
pub(super) struct Held {
    store: Arc<dyn Store>,
    name: &'static str,
    holder: Holder,
    /// When the last renewal that succeeded was asked for; `None` once somebody else has it.
    renewed: watch::Receiver<Option<Instant>>,
    renewing: JoinHandle<()>,
    /// Ends the renewing when it is dropped.
    _wanted: oneshot::Sender<()>,
}

impl Held {
    /// Takes the lease. Waits for one that nobody renews any more, because its process was killed.
    ///
    /// # Errors
    /// [`SyncError::Busy`] where the other run goes on; [`SyncError::Stopped`].
    pub(super) async fn take(
        store: &Arc<dyn Store>,
        name: &'static str,
        holder: &Holder,
        patience: &Patience<'_>,
    ) -> Result<Self, SyncError> {
        let begun = Instant::now();
        let mut first: Option<Lease> = None;
        loop {
            let theirs = match patience.tried(|| Self::take_free(store, name, holder)).await? {
                Ok(held) => return Ok(held),
                Err(theirs) => theirs,
            };
            if let Some(first) = &first
                && (first.expires_at < theirs.expires_at || begun.elapsed() > TTL + RENEWED)
            {
                return Err(SyncError::Busy(Box::new(theirs)));
            }
            patience.held_up(format!(
                "another sync holds the lease ({} on {}): waiting for its end",
                theirs.process, theirs.host
            ));
            first.get_or_insert(theirs);
            patience.rest(LOOK).await?;
        }
    }

    /// Takes the lease if it is free now; else answers how it stands.
    ///
    /// # Errors
    /// The database does not answer.
    pub(super) async fn take_free(
        store: &Arc<dyn Store>,
        name: &'static str,
        holder: &Holder,
    ) -> Result<Result<Self, Lease>, StoreError> {
        let asked = Instant::now();
        if let Taken::Theirs(lease) = store.take_lease(name, holder, TTL).await? {
            return Ok(Err(lease));
        }
        let (tell, renewed) = watch::channel(Some(asked));
        let (wanted, unwanted) = oneshot::channel();
        let (store, holder) = (Arc::clone(store), holder.clone());
        let renewing = tokio::spawn(renew(Arc::clone(&store), name, holder.clone(), tell, unwanted));
        Ok(Ok(Self { store, name, holder, renewed, renewing, _wanted: wanted }))
    }

    /// False once another process has it, or may have it.
    pub(super) fn is_sure(&self) -> bool {
        self.renewed.borrow().is_some_and(is_sure)
    }

    /// Returns once another process has it, or may have it. Cancel-safe.
    pub(super) async fn lost(&self) {
        let mut news = self.renewed.clone();
        loop {
            let Some(renewed) = *news.borrow_and_update() else { return };
            tokio::select! {
                () = sleep_until(renewed + UNSURE) => return,
                changed = news.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Lets the next process begin at once.
    pub(super) async fn give_back(self) {
        let Self { store, name, holder, mut renewing, _wanted: wanted, .. } = self;
        drop(wanted);
        // A renewal that is under way would take it again. If even that does not end, the lease does, by itself.
        if timeout(RENEWING, &mut renewing).await.is_ok() {
            // In vain or not: it expires by itself.
            let _ = store.give_lease_back(name, holder.id).await;
        }
    }
}

fn is_sure(renewed: Instant) -> bool {
    renewed.elapsed() < UNSURE
}

/// Renews the lease until it is lost or not wanted any more. A call of the store is never left alone: it would go on, and could
/// take a lease that was given back.
async fn renew(
    store: Arc<dyn Store>,
    name: &'static str,
    holder: Holder,
    tell: watch::Sender<Option<Instant>>,
    mut unwanted: oneshot::Receiver<()>,
) {
    let mut pause = RENEWED;
    loop {
        tokio::select! {
            () = sleep(pause) => {}
            _ = &mut unwanted => return,
        }
        let asked = Instant::now();
        let answer = store.take_lease(name, &holder, TTL).await;
        // Whoever has found it lost meanwhile stays right, even if the last call has renewed it.
        if !tell.borrow().is_some_and(is_sure) {
            tell.send_replace(None);
            return;
        }
        match answer {
            Ok(Taken::Ours) => {
                tell.send_replace(Some(asked));
                pause = RENEWED;
            }
            Ok(Taken::Theirs(_)) => {
                tell.send_replace(None);
                return;
            }
            // Nobody else can have it before it ends, and one of the next renewals may succeed.
            Err(_) => pause = RETRIED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        rules::users::{OnDelete, Policy, Relink},
        store::{self, Backend, StoreConfig},
    };

    async fn store(home: &tempfile::TempDir) -> Arc<dyn Store> {
        let config = StoreConfig {
            backend: Backend::Sqlite { path: home.path().join("headcount.db") },
            policy: Policy { relink: Relink::Deleted, on_delete: OnDelete::Keep },
            default_credits: 0,
            sessions: true,
            billing: None,
            connections: 4,
        };
        let store = store::open(&config).await.unwrap();
        store.migrate().await.unwrap();
        store
    }

    #[tokio::test]
    async fn a_lease_is_held_until_it_is_given_back() {
        let home = tempfile::tempdir().unwrap();
        let store = store(&home).await;
        let (ann, bob) = (Holder::of("ann"), Holder::of("bob"));
        let held = Held::take_free(&store, "sync", &ann).await.unwrap().unwrap_or_else(|_| panic!("free"));
        assert!(held.is_sure());
        let theirs = Held::take_free(&store, "sync", &bob).await.unwrap().err().unwrap();
        assert_eq!(theirs.holder, Some(ann.id));
        held.give_back().await;
        assert!(Held::take_free(&store, "sync", &bob).await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_lease_that_was_not_renewed_in_time_counts_as_lost() {
        let home = tempfile::tempdir().unwrap();
        let store = store(&home).await;
        let taken = Held::take_free(&store, "sync", &Holder::of("ann")).await.unwrap();
        let mut held = taken.unwrap_or_else(|_| panic!("free"));
        let (tell, renewed) = watch::channel(Instant::now().checked_sub(UNSURE));
        held.renewed = renewed;
        assert!(!held.is_sure());
        held.lost().await;
        tell.send_replace(Some(Instant::now()));
        assert!(held.is_sure());
        tell.send_replace(None);
        assert!(!held.is_sure());
        held.lost().await;
    }
}
