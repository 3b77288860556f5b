//! Owns one page's way through a run: its users are compared with the table, what differs is published, and only then the run notes
//! that it has seen them. A crash in between reads the page again and counts each user once.

use std::collections::{HashMap, HashSet};

use super::{Difference, SyncError, Told, patience::patiently, place::Phase, publish::News, run::Work};
use crate::{
    clerk::api::{ApiError, Snapshot},
    rules::users::{Standing, Upsert, compare},
    store::sync::{Counts, SEEN_MAX, Seen},
    time::Millis,
};

impl Work<'_> {
    /// Takes in users whom the API gave.
    pub(super) async fn take(&mut self, users: Vec<Snapshot>) -> Result<(), SyncError> {
        let mut rest = users;
        loop {
            let part: Vec<Snapshot> = rest.drain(..rest.len().min(SEEN_MAX)).collect();
            // The place behind the page counts only once all of the page is taken in.
            self.take_part(part, rest.is_empty()).await?;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    async fn take_part(&mut self, users: Vec<Snapshot>, last: bool) -> Result<(), SyncError> {
        let ids: Vec<String> = users.iter().filter_map(|user| user.clerk_id.clone()).collect();
        let keys: Vec<String> = users.iter().filter_map(key).map(str::to_owned).collect();
        let store = self.sync.store.clone();
        let known = patiently(&self.stop, || store.known(&ids, &keys)).await?;
        let run = self.run.id;
        let new = patiently(&self.stop, || store.new_to(run, &ids)).await?;
        let new: HashSet<String> = new.into_iter().collect();

        let mut counts = Counts::default();
        let mut out_of_step = 0;
        let mut news: Vec<News> = Vec::new();
        let mut told = Vec::new();
        for user in &users {
            let Some(clerk_id) = &user.clerk_id else {
                // Without an id nobody knows whether it was counted before: it is counted where everybody is read.
                if Phase::of(&self.run.phase) == Phase::Reading {
                    counts.clerk += 1;
                    counts.failed += 1;
                    told.push(failed(user));
                }
                continue;
            };
            let is_new = new.contains(clerk_id);
            counts.clerk += u64::from(is_new);
            let Ok(upsert) = &user.upsert else {
                counts.failed += u64::from(is_new);
                told.extend(is_new.then(|| failed(user)));
                continue;
            };
            let standing = compare(&known.loaded, upsert);
            // It was found to differ before: the news of that is under way, or nothing is done about it.
            let stays_so = self.order.dry_run || standing == Standing::BuriedAlive;
            if self.publisher.has(clerk_id) || (stays_so && !is_new) {
                continue;
            }
            if standing == Standing::BuriedAlive {
                // Between the reading and the comparison the account may have been deleted in Clerk.
                let user = match self.ask(clerk_id).await {
                    Ok(None) => continue,
                    Ok(Some(user)) => user,
                    Err(SyncError::Api(ApiError::NotClerk { .. } | ApiError::TooLarge { .. })) => {
                        user.clone()
                    }
                    Err(error) => return Err(error),
                };
                counts.buried_alive += 1;
                if self.order.revive {
                    let message = user.message(&self.instance, true);
                    news.push(News { clerk_id: clerk_id.clone(), message, is_drift: true });
                }
                told.push(differs(clerk_id, standing));
                continue;
            }
            if matches!(standing, Standing::InStep { .. }) {
                counts.in_step += u64::from(is_new);
                continue;
            }
            let is_drift = !self.may_come_by_webhook(upsert, &standing, user.read_at);
            let message = user.message(&self.instance, false);
            news.push(News { clerk_id: clerk_id.clone(), message, is_drift });
            if !is_drift {
                counts.in_step += u64::from(is_new);
                continue;
            }
            count(&mut counts, &standing);
            // Whoever was in step when the list was read may differ by now.
            out_of_step += u64::from(!is_new);
            told.push(differs(clerk_id, standing));
        }
        if self.order.dry_run {
            news.clear();
        }
        let mut published: HashMap<String, String> =
            news.iter().map(|news| (news.clerk_id.clone(), news.message.id.as_str().to_owned())).collect();
        self.publish(news).await?;

        // Publish before noting: a crash here reads the page again, and the inbox absorbs what was published twice.
        self.run.counts.add(&counts);
        self.run.counts.in_step = self.run.counts.in_step.saturating_sub(out_of_step);
        if last {
            self.run.cursor = Some(self.cursor.text());
        }
        let seen: Vec<Seen> = ids
            .into_iter()
            .map(|clerk_id| Seen { message_id: published.remove(&clerk_id), clerk_id })
            .collect();
        let run = &self.run;
        patiently(&self.stop, || store.see(run, &seen)).await?;
        told.into_iter().for_each(self.tell);
        Ok(())
    }

    /// A change that is so young may still come by webhook.
    fn may_come_by_webhook(&self, upsert: &Upsert, standing: &Standing, read_at: Millis) -> bool {
        let grace = Millis::try_from(self.sync.grace.as_millis()).unwrap_or(Millis::MAX);
        matches!(standing, Standing::Missing | Standing::Outdated)
            && read_at.saturating_sub(upsert.version.at) < grace
    }
}

fn count(counts: &mut Counts, standing: &Standing) {
    match standing {
        Standing::Missing => counts.missing += 1,
        Standing::Outdated => counts.outdated += 1,
        Standing::Different(_) => counts.different += 1,
        Standing::InStep { .. } | Standing::BuriedAlive => {}
    }
}

fn key(user: &Snapshot) -> Option<&str> {
    user.upsert.as_ref().ok()?.claim.as_ref().map(|claim| claim.key.as_str())
}

fn differs(clerk_id: &str, standing: Standing) -> Told {
    Told::Differs { clerk_id: clerk_id.to_owned(), difference: Difference::Row(standing) }
}

fn failed(user: &Snapshot) -> Told {
    let why = user.upsert.as_ref().err().map_or("its id cannot be read", |error| error.detail.as_str());
    Told::Failed { clerk_id: user.clerk_id.clone(), why: why.to_owned() }
}
