//! Owns the search for users who are live here and gone from Clerk, with its safeties: each absence is confirmed by Clerk one by one,
//! and where more are gone than may be deleted, or all of them, nobody is deleted.

use super::{Difference, SyncError, Told, publish::News, run::Work};
use crate::{
    clerk::api::{Snapshot, gone},
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

/// What Clerk says of a user whom its list leaves out.
enum Asked {
    Known(Box<Snapshot>),
    Gone,
    Unclear,
}

impl Work<'_> {
    /// Finds who was not in Clerk's list, and asks for each. Those whom Clerk knows after all are compared like others.
    ///
    /// # Errors
    /// More are gone than may be deleted.
    pub(super) async fn search(&mut self) -> Result<(), SyncError> {
        let live = self.patience.tried(|| self.sync.store.live_users()).await?;
        let cap = self.order.allow_deletions.unwrap_or_else(|| FEW.max(live / ONE_IN));
        let mut absent = self.absent_so_far().await?;
        let mut unasked = self.unseen(live).await?;
        let of = unasked;
        let mut unclear = 0;
        let mut after: Option<String> = None;
        while unasked > 0 {
            let (run, store) = (self.run.id, self.sync.store.clone());
            let step = self.patience.tried(|| store.unseen(run, after.as_deref(), STEP)).await?;
            let mut rest = step.clerk_ids.into_iter();
            while let Some(clerk_id) = rest.next() {
                self.hold().await?;
                let asked_at = self.now();
                match self.ask_unless_unclear(&clerk_id, &mut unclear).await? {
                    Asked::Unclear => {}
                    Asked::Known(user) => self.take(vec![*user]).await?,
                    Asked::Gone => {
                        self.patience.tried(|| store.note_absent(run, &clerk_id, asked_at)).await?;
                        absent += 1;
                        let difference = Difference::Gone;
                        if self.order.dry_run {
                            self.patience.tell(Told::Differs { clerk_id, difference });
                        }
                    }
                }
                unasked = unasked.saturating_sub(1);
                self.patience.tell(Told::Asking { users: of - unasked, of });
                self.touch().await?;
                if absent > cap {
                    self.too_many(absent + unasked, live, cap)?;
                    return self.name_unasked(step.scanned_to.clone(), rest).await;
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

    /// Asks for a user. What Clerk says of a few cannot be understood: then nobody knows that they are gone.
    async fn ask_unless_unclear(&mut self, clerk_id: &str, unclear: &mut u32) -> Result<Asked, SyncError> {
        match self.ask(clerk_id).await {
            Ok(Some(user)) => Ok(Asked::Known(Box::new(user))),
            Ok(None) => Ok(Asked::Gone),
            Err(SyncError::Api(error)) if error.is_about_one() && *unclear < UNCLEAR_MAX => {
                *unclear += 1;
                self.run.counts.failed += 1;
                let (clerk_id, why) = (Some(clerk_id.to_owned()), error.to_string());
                self.patience.tell(Told::Failed { clerk_id, why });
                Ok(Asked::Unclear)
            }
            Err(error) => Err(error),
        }
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

    /// Tells of those who are not asked for any more: `rest`, and the rows after.
    async fn name_unasked(
        &mut self,
        mut after: Option<String>,
        rest: impl Iterator<Item = String>,
    ) -> Result<(), SyncError> {
        let tell =
            |clerk_id| self.patience.tell(Told::Differs { clerk_id, difference: Difference::Unlisted });
        rest.for_each(tell);
        while after.is_some() {
            let (run, store) = (self.run.id, &self.sync.store);
            let step = self.patience.tried(|| store.unseen(run, after.as_deref(), STEP)).await?;
            step.clerk_ids.into_iter().for_each(tell);
            after = step.scanned_to;
        }
        Ok(())
    }

    /// How many live users were not in Clerk's list.
    async fn unseen(&mut self, live: u64) -> Result<u64, SyncError> {
        let (mut unseen, mut scanned, mut after) = (0, 0, None::<String>);
        loop {
            let (run, store) = (self.run.id, &self.sync.store);
            let step = self.patience.tried(|| store.unseen(run, after.as_deref(), STEP)).await?;
            unseen += step.clerk_ids.len() as u64;
            scanned += u64::from(STEP);
            after = step.scanned_to;
            if after.is_none() {
                return Ok(unseen);
            }
            self.patience.tell(Told::Searching { rows: scanned.min(live), of: live });
            self.touch().await?;
            self.hold().await?;
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
        self.patience.tried(|| store.absent(run, after.as_deref(), PAGE)).await
    }

    /// Asks once more for each user whose absence was confirmed, and publishes that the user is gone, unless a webhook has said
    /// so meanwhile. One answer alone deletes nobody: it may come from a server that is behind.
    pub(super) async fn delete(&mut self) -> Result<(), SyncError> {
        let (mut users, of) = (0, self.absent_so_far().await?);
        let mut unclear = 0;
        let mut after: Option<String> = None;
        loop {
            let page = self.absent(after).await?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            let ids: Vec<String> = page.iter().map(|(clerk_id, _)| clerk_id.clone()).collect();
            let store = self.sync.store.clone();
            let live = self.patience.tried(|| store.live_among(&ids)).await?;
            let mut news = Vec::new();
            for (clerk_id, _) in page {
                self.hold().await?;
                users += 1;
                self.patience.tell(Told::Confirming { users, of });
                self.touch().await?;
                if !live.contains(&clerk_id) || self.publisher.has(&clerk_id) {
                    continue;
                }
                let asked_at = self.now();
                match self.ask_unless_unclear(&clerk_id, &mut unclear).await? {
                    Asked::Unclear => {}
                    Asked::Known(user) => self.take(vec![*user]).await?,
                    Asked::Gone => {
                        let message = gone(&clerk_id, asked_at, &self.instance);
                        news.push(News { clerk_id, message, is_drift: true });
                    }
                }
            }
            // A webhook may have said so meanwhile.
            let ids: Vec<String> = news.iter().map(|news| news.clerk_id.clone()).collect();
            let live = self.patience.tried(|| store.live_among(&ids)).await?;
            news.retain(|news| live.contains(&news.clerk_id));
            let seen: Vec<Seen> = news
                .iter()
                .map(|News { clerk_id, message, .. }| Seen {
                    clerk_id: clerk_id.clone(),
                    message_id: Some(message.id.as_str().to_owned()),
                })
                .collect();
            self.publish(news).await?;
            let mut run = self.run.clone();
            run.counts.gone += seen.len() as u64;
            self.patience.tried(|| store.see(&run, &seen)).await?;
            self.run = run;
            for Seen { clerk_id, .. } in seen {
                self.patience.tell(Told::Differs { clerk_id, difference: Difference::Gone });
            }
        }
    }
}
