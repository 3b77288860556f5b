//! Owns one look at Clerk: reads the newest changes, compares them with the table, publishes whom the table lacks, and counts.
//! What it decides is decided in `pages`, `lacking` and `due`. Promises to publish nothing while the queue lags, and that
//! what it holds is bounded however many users changed. Deletes nobody.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info};

use super::{
    alarm,
    due::rest,
    lacking::{Found, Kind, Lack, Lacking},
    pages::{Next, PAGE, Page, Pages},
    state::{Healed, Healing, State},
};
use crate::{
    clerk::api::{Snapshot, UsersPage, UsersQuery, keys},
    queue::Source,
    rules::users::{Loaded, Standing, compare},
    sync::{Sync, SyncError, publish::DEPTH_MAX},
    telemetry::metrics::WatchMetrics,
    time::{Millis, now},
};

/// Users who were not met again are looked up in the table so many at a time, ...
const STEP: usize = 500;
/// ... and in Clerk at most so many in one look.
const ASKED: usize = 20;
/// So many users whom the table lacks are handed on to the next holder of the lease.
const HANDED_ON: usize = 100;

/// What a process keeps from look to look while it holds the lease.
pub(super) struct Looking {
    sync: Sync,
    every: Duration,
    metrics: WatchMetrics,
    /// The instance that is watched.
    instance: String,
    lacking: Lacking,
    /// Users who were healed in this look.
    healed: u64,
    /// How many looks there were.
    look: u64,
    /// When users may be counted again.
    count_at: Instant,
}

/// What a look found beside what is in the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Looked {
    /// More has changed than a look reads.
    pub(super) too_many: bool,
    /// For ten minutes there have been more users here than in Clerk.
    pub(super) more_here: bool,
}

impl Looking {
    /// Goes on from what a former holder knew.
    pub(super) fn new(
        sync: Sync,
        every: Duration,
        instance: String,
        metrics: WatchMetrics,
        state: &State,
    ) -> Self {
        Self {
            sync,
            every,
            metrics,
            instance,
            lacking: Lacking::known(state.lacking.clone()),
            healed: 0,
            look: 0,
            count_at: Instant::now(),
        }
    }

    /// The instance that is watched.
    pub(super) fn instance(&self) -> &str {
        &self.instance
    }

    /// Looks once. What was found before an error is in the state too.
    ///
    /// # Errors
    /// Clerk's API or the database does not answer.
    pub(super) async fn look(&mut self, state: &mut State) -> Result<Looked, SyncError> {
        self.look += 1;
        self.healed = 0;
        let looked = self.through(state).await;
        state.lacking = self.lacking.oldest(HANDED_ON);
        state.goes_on_from = self.lacking.beyond(HANDED_ON);
        let healed = std::mem::take(&mut self.healed);
        if healed > 0 {
            let users = if healed == 1 { "user" } else { "users" };
            info!(
                healed,
                "healed {healed} {users} of whom the table lacked a change, by what Clerk's API says"
            );
        }
        looked
    }

    async fn through(&mut self, state: &mut State) -> Result<Looked, SyncError> {
        // A clock that was wrong may have dated the last look to the time to come.
        let last = state.looked_at.map(|at| at.min(self.sync.api.now()));
        let mut pages = Pages::since(last, self.sync.grace, self.every);
        let mut looked = Looked::default();
        let (mut offset, mut began) = (0, None);
        let keeps_up = loop {
            let lag = self.lag().await;
            let page = self.read(offset).await?;
            let compared = self.compare(&page.users, lag.is_none(), state).await?;
            if began.is_none() && page.users.is_empty() {
                let count = self.sync.api.count().await?;
                if count > 0 {
                    return Err(SyncError::EmptyList(count));
                }
            }
            if began.is_none() {
                state.newest_in_clerk = page.users.iter().filter_map(|user| user.updated_at).max();
                state.newest_here = compared.newest_here;
            }
            let read_at = page.users.first().map_or_else(|| self.sync.api.now(), |user| user.read_at);
            let began = *began.get_or_insert(read_at);
            if let Some(why) = lag.or(compared.unpublished) {
                debug!("nobody is healed now: {why}");
                break false;
            }
            match pages.next(&outline(&page)) {
                Next::Enough => {
                    state.looked_at = Some(began);
                    break true;
                }
                Next::Page(next) => offset = next,
                Next::TooMany => {
                    looked.too_many = true;
                    break true;
                }
                Next::Repeats => {
                    let count = self.sync.api.count().await?;
                    return Err(SyncError::Endless { read: offset, count });
                }
            }
        };
        self.unmet(keeps_up, state).await?;
        let read_at = began.unwrap_or_else(|| self.sync.api.now());
        state.behind_seconds = Some(self.lacking.behind(self.sync.grace, read_at));
        if keeps_up && Instant::now() >= self.count_at {
            looked.more_here = self.count(state).await?;
        }
        Ok(looked)
    }

    /// Why news that is on its way may not have arrived; `None` while workers keep up.
    async fn lag(&mut self) -> Option<String> {
        let depths = match self.sync.queue.depths().await {
            Ok(depths) => depths,
            Err(error) => return Some(error.to_string()),
        };
        self.lacking.retries(depths.iter().any(|depth| depth.is_of_retries() && depth.messages > 0));
        match depths.iter().find(|depth| depth.queue == Source::Events.queue()) {
            Some(events) if events.consumers == 0 => Some("no worker takes messages".into()),
            Some(events) if events.messages > DEPTH_MAX => {
                Some(format!("{} messages wait in the queue", events.messages))
            }
            Some(_) => None,
            None => Some("the queue does not tell how many messages wait".into()),
        }
    }

    async fn read(&self, offset: u64) -> Result<UsersPage, SyncError> {
        Ok(self.sync.api.users(&UsersQuery::newest(PAGE, offset)).await?)
    }

    /// Compares users with the table. Publishes those whose webhooks have had their chance, if it is to `heal`.
    async fn compare(
        &mut self,
        users: &[Snapshot],
        heal: bool,
        state: &mut State,
    ) -> Result<Compared, SyncError> {
        let ids: Vec<String> = users.iter().filter_map(|user| user.clerk_id.clone()).collect();
        let known = self.sync.store.known(&ids, &keys(users)).await?;
        let mut compared = Compared::default();
        for user in users {
            let (Some(id), Some(changed_at)) = (&user.clerk_id, user.updated_at) else { continue };
            let row = known.loaded.rows.iter().find(|row| row.clerk_id == *id);
            compared.newest_here = compared.newest_here.max(row.map(|row| row.version.at));
            let Some(found) = find(&known.loaded, user, id, changed_at) else {
                self.lacking.caught_up(id);
                continue;
            };
            self.lacking.note(id, found, known.dead.get(id).copied(), self.look);
            if !heal || compared.unpublished.is_some() {
                continue;
            }
            let Some(lack) = self.lacking.heal(id, self.sync.grace, user.read_at, now()) else { continue };
            match self.sync.queue.publish(user.message(&self.instance, false)).await {
                Ok(()) => self.published(&lack, state),
                Err(error) => compared.unpublished = Some(error.to_string()),
            }
        }
        Ok(compared)
    }

    fn published(&mut self, lack: &Lack, state: &mut State) {
        let (clerk_id, kind, at) = (&lack.clerk_id, lack.kind, now());
        self.lacking.published(clerk_id, at);
        debug!(clerk_id, "published what Clerk's API says of {clerk_id}, who is {} here", kind.as_str());
        // The same change once more is the same healing.
        if lack.published_at.is_none() {
            self.healed += 1;
            let healed = Healed::one(kind);
            state.count_healed(&healed, at);
            self.metrics.healed(kind.as_str(), 1);
            alarm::note(state, Healing { at, changed_at: lack.since });
        }
    }

    /// Looks after users whom the table lacked and whom this look has not met: it reads no further back than it has to.
    async fn unmet(&mut self, heal: bool, state: &mut State) -> Result<(), SyncError> {
        let unmet = self.lacking.unmet(self.look);
        let mut asked = 0;
        for step in unmet.chunks(STEP) {
            let ids: Vec<String> = step.iter().map(|(id, _)| id.clone()).collect();
            let known = self.sync.store.known(&ids, &[]).await?;
            for (id, changed_at) in step {
                if has(&known.loaded, id, *changed_at) {
                    self.lacking.caught_up(id);
                    continue;
                }
                self.lacking.letter(id, known.dead.get(id).copied());
                let due = self.lacking.heal(id, self.sync.grace, self.sync.api.now(), now()).is_some();
                if !heal || !due || asked == ASKED {
                    continue;
                }
                asked += 1;
                let Some(user) = self.sync.api.user(id).await? else {
                    // Deleted meanwhile: there is nothing that the table lacks.
                    self.lacking.caught_up(id);
                    continue;
                };
                if self.compare(&[user], true, state).await?.unpublished.is_some() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn count(&mut self, state: &mut State) -> Result<bool, SyncError> {
        let clerk = self.sync.api.count().await?;
        let begun = Instant::now();
        let here = self.sync.store.live_users().await?;
        self.count_at = Instant::now() + rest(begun.elapsed());
        Ok(state.counted.note(clerk, here, now()))
    }
}

/// What a comparison showed.
#[derive(Default)]
struct Compared {
    /// The newest change that the table has of these users.
    newest_here: Option<Millis>,
    /// Why nothing could be published.
    unpublished: Option<String>,
}

fn outline(page: &UsersPage) -> Page {
    let id = |user: Option<&Snapshot>| user.and_then(|user| user.clerk_id.clone());
    Page {
        users: page.users.len(),
        limit: page.limit,
        oldest: page.users.iter().filter_map(|user| user.updated_at).min(),
        first: id(page.users.first()),
        last: id(page.users.last()),
    }
}

/// What the table lacks of a user, if it lacks anything. A row that differs at the same version is for a whole run to find.
fn find(loaded: &Loaded, user: &Snapshot, id: &str, changed_at: Millis) -> Option<Found> {
    let row = loaded.rows.iter().find(|row| row.clerk_id == id);
    let kind = match (&user.upsert, row) {
        (Ok(upsert), _) => match compare(loaded, upsert) {
            Standing::Missing => Kind::Missing,
            Standing::Outdated(_) => Kind::Outdated,
            Standing::InStep { .. } | Standing::Newer(_) | Standing::Different(_) | Standing::BuriedAlive => {
                return None;
            }
        },
        // A user who cannot be read becomes a dead letter, which tells people what is wrong with it.
        (Err(_), _) if has(loaded, id, changed_at) => return None,
        (Err(_), Some(_)) => Kind::Outdated,
        (Err(_), None) => Kind::Missing,
    };
    Some(Found { kind, changed_at, here: row.map(|row| row.version.at) })
}

/// Whether the table has a change, or something later about the user.
fn has(loaded: &Loaded, id: &str, changed_at: Millis) -> bool {
    let row = loaded.rows.iter().find(|row| row.clerk_id == id);
    row.map_or(loaded.former.contains_key(id), |row| row.deleted_at.is_some() || row.version.at >= changed_at)
}

#[cfg(test)]
mod tests;
