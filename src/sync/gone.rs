//! Owns the search for users who are live here and gone from Clerk, with its safeties: each absence is confirmed by Clerk one by one,
//! and where more are gone than may be deleted, or all of them, nobody is deleted.

use super::{Difference, SyncError, Told, patience::patiently, publish::News, run::Work};
use crate::{
    clerk::api::{ApiError, gone},
    store::sync::Seen,
    text::number,
    time::Millis,
};

/// So many rows are looked through at a time.
const STEP: u32 = 5_000;
/// So many users are deleted at a time.
const PAGE: u32 = 200;

/// Where more answers than these cannot be understood, it is not about single users.
const UNCLEAR_MAX: u32 = 10;

/// So many users may be deleted without being asked, ...
const FEW: u64 = 3;
/// ... or one in so many.
const ONE_IN: u64 = 100;

impl Work<'_> {
    /// Finds who was not in Clerk's list, and asks for each. Those whom Clerk knows after all are compared like others.
    ///
    /// # Errors
    /// More are gone than may be deleted.
    pub(super) async fn search(&mut self) -> Result<(), SyncError> {
        let live = patiently(&self.stop, || self.sync.store.live_users()).await?;
        let cap = self.order.allow_deletions.unwrap_or_else(|| FEW.max(live / ONE_IN));
        let mut absent = self.absent_so_far().await?;
        let mut unasked = self.unseen(live).await?;
        let mut unclear = 0;
        let mut after: Option<String> = None;
        while unasked > 0 {
            let (run, store) = (self.run.id, self.sync.store.clone());
            let step = patiently(&self.stop, || store.unseen(run, after.as_deref(), STEP)).await?;
            for clerk_id in step.clerk_ids {
                self.lease.check()?;
                let asked_at = self.now();
                match self.ask(&clerk_id).await {
                    // What Clerk says of one user cannot be understood, so nobody knows that the user is gone.
                    Err(SyncError::Api(error @ (ApiError::NotClerk { .. } | ApiError::TooLarge { .. })))
                        if unclear < UNCLEAR_MAX =>
                    {
                        unclear += 1;
                        self.run.counts.failed += 1;
                        (self.tell)(Told::Failed { clerk_id: Some(clerk_id), why: error.to_string() });
                    }
                    Err(error) => return Err(error),
                    Ok(Some(user)) => self.take(vec![user]).await?,
                    Ok(None) => {
                        patiently(&self.stop, || store.note_absent(run, &clerk_id, asked_at)).await?;
                        absent += 1;
                        let difference = Difference::Gone;
                        if self.order.dry_run {
                            (self.tell)(Told::Differs { clerk_id, difference });
                        }
                    }
                }
                unasked = unasked.saturating_sub(1);
                if absent > cap {
                    return self.too_many(absent + unasked, live, cap);
                }
            }
            after = step.scanned_to;
            if after.is_none() {
                break;
            }
        }
        // Few enough, but everybody.
        if absent > 0 && absent >= live && self.order.allow_deletions.is_none() {
            return self.too_many(absent, live, cap);
        }
        if self.order.dry_run {
            self.run.counts.gone = absent;
        }
        Ok(())
    }

    fn too_many(&mut self, gone: u64, live: u64, cap: u64) -> Result<(), SyncError> {
        if self.order.dry_run {
            self.run.counts.gone = gone;
            self.notes.push(format!(
                "{} of {} live users are not in Clerk's list: a run would delete nobody without --allow-deletions {gone}; not each of them was asked for",
                number(gone),
                number(live)
            ));
            return Ok(());
        }
        Err(if gone >= live { SyncError::AllGone(live) } else { SyncError::TooManyGone { gone, live, cap } })
    }

    /// How many live users were not in Clerk's list.
    async fn unseen(&self, live: u64) -> Result<u64, SyncError> {
        let (mut unseen, mut scanned, mut after) = (0, 0, None::<String>);
        loop {
            let (run, store) = (self.run.id, &self.sync.store);
            let step = patiently(&self.stop, || store.unseen(run, after.as_deref(), STEP)).await?;
            unseen += step.clerk_ids.len() as u64;
            scanned += u64::from(STEP);
            after = step.scanned_to;
            if after.is_none() {
                return Ok(unseen);
            }
            (self.tell)(Told::Searching(scanned.min(live)));
            self.lease.check()?;
        }
    }

    async fn absent_so_far(&self) -> Result<u64, SyncError> {
        let (mut absent, mut after) = (0, None);
        loop {
            let page = self.absent(after).await?;
            absent += page.len() as u64;
            match page.into_iter().next_back() {
                Some((last, _)) => after = Some(last),
                None => return Ok(absent),
            }
        }
    }

    async fn absent(&self, after: Option<String>) -> Result<Vec<(String, Millis)>, SyncError> {
        let (run, store) = (self.run.id, &self.sync.store);
        patiently(&self.stop, || store.absent(run, after.as_deref(), PAGE)).await
    }

    /// Asks once more for each user whose absence was confirmed, and publishes that the user is gone, unless a webhook has said
    /// so meanwhile. One answer alone deletes nobody: it may come from a server that is behind.
    pub(super) async fn delete(&mut self) -> Result<(), SyncError> {
        let mut after: Option<String> = None;
        loop {
            let page = self.absent(after).await?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            let ids: Vec<String> = page.iter().map(|(clerk_id, _)| clerk_id.clone()).collect();
            let store = self.sync.store.clone();
            let live = patiently(&self.stop, || store.live_among(&ids)).await?;
            let mut news = Vec::new();
            for (clerk_id, _) in page {
                self.lease.check()?;
                if !live.contains(&clerk_id) || self.publisher.has(&clerk_id) {
                    continue;
                }
                let asked_at = self.now();
                match self.ask(&clerk_id).await? {
                    Some(user) => self.take(vec![user]).await?,
                    None => {
                        let message = gone(&clerk_id, asked_at, &self.instance);
                        news.push(News { clerk_id, message, is_drift: true });
                    }
                }
            }
            let seen: Vec<Seen> = news
                .iter()
                .map(|News { clerk_id, message, .. }| Seen {
                    clerk_id: clerk_id.clone(),
                    message_id: Some(message.id.as_str().to_owned()),
                })
                .collect();
            self.publish(news).await?;
            self.run.counts.gone += seen.len() as u64;
            let run = &self.run;
            patiently(&self.stop, || store.see(run, &seen)).await?;
            for Seen { clerk_id, .. } in seen {
                (self.tell)(Told::Differs { clerk_id, difference: Difference::Gone });
            }
        }
    }
}
