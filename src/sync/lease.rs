//! Owns that one run works at a time: a lease that is renewed while the run goes on, so that a run whose process was killed is taken
//! over within half a minute.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::SyncError;
use crate::{
    stop::until,
    store::{
        Store,
        sync::{Holder, Lease, Taken},
    },
};

/// How long a lease lasts.
pub(super) const TTL: Duration = Duration::from_secs(30);
/// How often it is renewed.
pub(super) const RENEWED: Duration = Duration::from_secs(10);
/// How often a lease that somebody else holds is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// A lease that is ours until it is given back.
pub(super) struct Held {
    store: Arc<dyn Store>,
    name: &'static str,
    holder: Holder,
    renewing: JoinHandle<()>,
    lost: watch::Receiver<bool>,
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
        stop: &watch::Receiver<bool>,
        waits: impl Fn(&Lease),
    ) -> Result<Self, SyncError> {
        let begun = Instant::now();
        let mut first: Option<Lease> = None;
        loop {
            let theirs = match store.take_lease(name, holder, TTL).await? {
                Taken::Ours { .. } => break,
                Taken::Theirs(lease) => lease,
            };
            match &first {
                Some(first) if first.expires_at < theirs.expires_at || begun.elapsed() > TTL + RENEWED => {
                    return Err(SyncError::Busy(Box::new(theirs)));
                }
                Some(_) => {}
                None => {
                    waits(&theirs);
                    first = Some(theirs);
                }
            }
            tokio::select! {
                () = sleep(LOOK) => {}
                () = until(stop, |stop| *stop) => return Err(SyncError::Stopped),
            }
        }
        let (lose, lost) = watch::channel(false);
        let renewing = tokio::spawn(renew(Arc::clone(store), name, holder.clone(), lose));
        Ok(Self { store: Arc::clone(store), name, holder: holder.clone(), renewing, lost })
    }

    /// # Errors
    /// [`SyncError::TakenOver`] once another process has it.
    pub(super) fn check(&self) -> Result<(), SyncError> {
        if *self.lost.borrow() { Err(SyncError::TakenOver) } else { Ok(()) }
    }

    /// Lets the next run begin at once.
    pub(super) async fn give_back(self) {
        self.renewing.abort();
        // In vain or not: it expires by itself.
        let _ = self.store.give_lease_back(self.name, self.holder.id).await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

async fn renew(store: Arc<dyn Store>, name: &'static str, holder: Holder, lost: watch::Sender<bool>) {
    loop {
        sleep(RENEWED).await;
        // A database that does not answer lends the lease to nobody else either.
        if let Ok(Taken::Theirs(_)) = store.take_lease(name, &holder, TTL).await {
            lost.send_replace(true);
            return;
        }
    }
}
