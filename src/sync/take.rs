//! Owns one page's way through a run: its users are compared with the table, what differs is published, and only then the run notes
//! that it has seen them. A crash in between reads the page again and counts each user once.

use std::collections::{HashMap, HashSet};

use super::{Difference, SyncError, Told, place::Phase, publish::News, run::Work};
use crate::{
    clerk::api::{Snapshot, keys},
    rules::users::{Standing, Upsert, compare},
    store::sync::{Counts, SEEN_MAX, Seen},
    time::Millis,
};

/// A row may be newer than what Clerk says by so many milliseconds: a webhook came between, and clocks differ.
const DOUBTFUL: u64 = 600_000;

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
        let store = self.sync.store.clone();
        let ids: Vec<String> = users.iter().filter_map(|user| user.clerk_id.clone()).collect();
        let keys = keys(&users);
        let known = self.patience.tried(|| store.known(&ids, &keys)).await?;
        let run = self.run.id;
        let new: HashSet<String> =
            self.patience.tried(|| store.new_to(run, &ids)).await?.into_iter().collect();

        let mut page = Page::default();
        for user in &users {
            let Some(clerk_id) = &user.clerk_id else {
                // Without an id nobody knows whether it was counted before: it is counted where everybody is read.
                if Phase::of(&self.run.phase) == Phase::Reading {
                    page.counts.clerk += 1;
                    page.failed(user);
                }
                continue;
            };
            let is_new = new.contains(clerk_id);
            page.counts.clerk += u64::from(is_new);
            let Ok(upsert) = &user.upsert else {
                if is_new {
                    page.failed(user);
                }
                continue;
            };
            let standing = compare(&known.loaded, upsert);
            // It was found to differ before: the news of that is under way, or nothing is done about it.
            let stays_so = self.order.dry_run || standing == Standing::BuriedAlive;
            if self.publisher.has(clerk_id) || (stays_so && !is_new) {
                continue;
            }
            match standing {
                Standing::BuriedAlive => {
                    let Some(user) = self.still_live(clerk_id, user).await? else { continue };
                    let news = self.order.revive.then(|| self.news(clerk_id, &user, true, true));
                    page.differs(clerk_id, Standing::BuriedAlive, news);
                }
                Standing::InStep { .. } => page.counts.in_step += u64::from(is_new),
                Standing::Newer(at) => {
                    page.counts.in_step += u64::from(is_new);
                    if is_new && is_doubtful(at, user.read_at) {
                        page.doubtful += 1;
                        page.told.push(differs(clerk_id, Standing::Newer(at)));
                    }
                }
                standing if self.may_come_by_webhook(upsert, &standing, user.read_at) => {
                    page.counts.in_step += u64::from(is_new);
                    page.young += u64::from(is_new);
                    page.news.push(self.news(clerk_id, user, false, false));
                }
                standing => {
                    // Whoever was in step when the list was read may differ by now.
                    page.out_of_step += u64::from(!is_new);
                    page.differs(clerk_id, standing, Some(self.news(clerk_id, user, false, true)));
                }
            }
        }
        self.note(ids, page, last).await
    }

    /// Publishes what differs, and notes the users as seen. Publish before noting: a crash between reads the page again, and the
    /// inbox absorbs what was published twice.
    async fn note(&mut self, ids: Vec<String>, page: Page, last: bool) -> Result<(), SyncError> {
        let Page { counts, out_of_step, doubtful, young, news, told } = page;
        let news = if self.order.dry_run { Vec::new() } else { news };
        let mut published: HashMap<String, String> =
            news.iter().map(|news| (news.clerk_id.clone(), news.message.id.as_str().to_owned())).collect();
        self.publish(news).await?;

        let mut run = self.run.clone();
        run.counts.add(&counts);
        run.counts.in_step = run.counts.in_step.saturating_sub(out_of_step);
        if last {
            run.cursor = Some(self.cursor.text());
        }
        let seen: Vec<Seen> = ids
            .into_iter()
            .map(|clerk_id| Seen { message_id: published.remove(&clerk_id), clerk_id })
            .collect();
        self.patience.tried(|| self.sync.store.see(&run, &seen)).await?;
        self.run = run;
        self.doubtful += doubtful;
        self.young += young;
        told.into_iter().for_each(|told| self.patience.tell(told));
        Ok(())
    }

    /// The user as Clerk knows it now, one who is deleted here: between the reading and the comparison the account may have been
    /// deleted in Clerk as well.
    async fn still_live(&self, clerk_id: &str, user: &Snapshot) -> Result<Option<Snapshot>, SyncError> {
        match self.ask(clerk_id).await {
            Err(SyncError::Api(error)) if error.is_about_one() => Ok(Some(user.clone())),
            asked => asked,
        }
    }

    fn news(&self, clerk_id: &str, user: &Snapshot, revive: bool, is_drift: bool) -> News {
        let message = user.message(&self.instance, revive);
        News { clerk_id: clerk_id.to_owned(), message, is_drift }
    }

    /// A change that is so young may still come by webhook.
    fn may_come_by_webhook(&self, upsert: &Upsert, standing: &Standing, read_at: Millis) -> bool {
        let grace = Millis::try_from(self.sync.grace.as_millis()).unwrap_or(Millis::MAX);
        matches!(standing, Standing::Missing | Standing::Outdated(_))
            && read_at.saturating_sub(upsert.version.at) < grace
    }
}

/// What a part of a page comes to.
#[derive(Default)]
struct Page {
    counts: Counts,
    /// Users who were counted as in step before, and are not.
    out_of_step: u64,
    doubtful: u64,
    young: u64,
    news: Vec<News>,
    told: Vec<Told>,
}

impl Page {
    fn differs(&mut self, clerk_id: &str, standing: Standing, news: Option<News>) {
        self.counts.note(&standing);
        self.news.extend(news);
        self.told.push(differs(clerk_id, standing));
    }

    fn failed(&mut self, user: &Snapshot) {
        self.counts.failed += 1;
        let why = user.upsert.as_ref().err().map_or("its id cannot be read", |error| error.detail.as_str());
        self.told.push(Told::Failed { clerk_id: user.clerk_id.clone(), why: why.to_owned() });
    }
}

/// Whether a row's version or deletion at `at` contradicts a reading of before: Clerk should have known it by then, or it lies in
/// the future.
fn is_doubtful(at: Millis, read_at: Millis) -> bool {
    read_at.abs_diff(at) > DOUBTFUL
}

fn differs(clerk_id: &str, standing: Standing) -> Told {
    Told::Differs { clerk_id: clerk_id.to_owned(), difference: Difference::Row(standing) }
}
