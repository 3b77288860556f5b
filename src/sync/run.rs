//! Owns a whole run: read every user, then what changed meanwhile, then search for who is gone, then wait until all is applied.
//! Promises that one run works at a time, that it can be cut off anywhere, and that the next one goes on where it stopped.

use std::time::Duration;

use tokio::{sync::watch, time::Instant};
use tracing::warn;

use super::{
    LEASE, Order, Report, Sync, SyncError, Tell, Told,
    billing::{Subscriptions, is_of_subscription},
    lease::Held,
    owner::Unknown,
    patience::Patience,
    place::{Cursor, Phase, Place},
    publish::{LOOK, News, Publisher, Watchdog},
    pull::Reader,
};
use crate::{
    clerk::api::{PAGE_MAX, Snapshot, UsersQuery},
    store::sync::{NewRun, Run, RunResult},
    text::number,
    time::{Millis, now},
};

/// What changed so long before a run began is read again at its end: clocks differ.
const MARGIN: Millis = 60_000;
/// So many users of a page stand on the next one again: users move while they are read.
const OVERLAP: u64 = 50;

/// So many users whom Clerk counts may be missing from its list, or 1 % of them: people come and go.
const LEFT_OUT: u64 = 100;
/// How often a run that counts nothing shows that it goes on.
const TOUCHED: Duration = Duration::from_secs(10);
/// While so few messages are on their way, nobody looks what became of them before the end.
const SETTLED_BEYOND: usize = 1_000;

/// A run on its way.
pub(super) struct Work<'w> {
    pub(super) sync: &'w Sync,
    pub(super) order: &'w Order,
    pub(super) patience: Patience<'w>,
    pub(super) lease: Held,
    pub(super) instance: String,
    pub(super) run: Run,
    /// Where the run stands once the page in hand is taken in.
    pub(super) cursor: Cursor,
    pub(super) publisher: Publisher<'w>,
    pub(super) notes: Vec<String>,
    /// Rows that claim to be newer than Clerk's answer, and cannot be.
    pub(super) doubtful: u64,
    /// Users who differ, and whose webhooks may be on their way.
    pub(super) young: u64,
    /// Differences of which the table knew something newer when the news of them came.
    pub(super) stale: u64,
    /// What was found of subscriptions.
    pub(super) subscriptions: Subscriptions,
    /// By Clerk, at the beginning.
    count: u64,
    /// When it was last written down that the run goes on.
    touched: Instant,
}

impl Sync {
    /// Compares every user with Clerk and repairs what may be repaired, from where an earlier run stopped.
    ///
    /// # Errors
    /// It could not finish. The next run goes on, unless that would come to the same end.
    pub async fn run(
        &self,
        order: &Order,
        unknown: Unknown<'_>,
        tell: Tell<'_>,
        stop: &watch::Receiver<bool>,
    ) -> Result<Report, SyncError> {
        let patience = Patience::new(stop, tell);
        patience.told_of_clerk(&self.api, self.whole(order, unknown, patience.clone())).await
    }

    async fn whole(
        &self,
        order: &Order,
        unknown: Unknown<'_>,
        patience: Patience<'_>,
    ) -> Result<Report, SyncError> {
        // Safety first: with another instance's key, everybody would be gone.
        let instance = patience.stoppable(self.owner_or(unknown, &patience)).await?.id;
        let lease = Held::take(&self.store, LEASE, &self.holder, &patience).await?;
        let begun = self.begin(order, &instance, &patience).await;
        let (run, cursor, outstanding) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                lease.give_back().await;
                return Err(error);
            }
        };
        if run.resumed {
            patience.tell(Told::Resumed(run.started_at));
        }
        let publisher = Publisher::new(self, patience.clone(), outstanding);
        let mut work = Work {
            sync: self,
            order,
            patience,
            lease,
            instance,
            run,
            cursor,
            publisher,
            notes: Vec::new(),
            doubtful: 0,
            young: 0,
            stale: 0,
            subscriptions: Subscriptions::default(),
            count: 0,
            touched: Instant::now(),
        };
        let worked = work.all().await;
        work.end(worked).await
    }

    async fn begin(
        &self,
        order: &Order,
        instance: &str,
        patience: &Patience<'_>,
    ) -> Result<(Run, Cursor, Vec<(String, String)>), SyncError> {
        let new = NewRun {
            instance_id: instance.to_owned(),
            who: order.who.clone(),
            dry_run: order.dry_run,
            holder: self.holder.id,
        };
        let store = &self.store;
        loop {
            let run = patience.tried(|| store.begin_run(&new)).await?;
            let (phase, now) = (Phase::of(&run.phase), self.now());
            let cursor =
                Cursor::read(run.cursor.as_deref()).unwrap_or_else(|| Cursor::start(now, order.revive));
            if !run.resumed || (!order.dry_run && cursor.goes_on(phase, order.revive, now)) {
                let outstanding = patience.tried(|| store.outstanding(run.id, u32::MAX)).await?;
                return Ok((run, cursor, outstanding));
            }
            // What it published is durable, so that nothing is lost with it.
            let waited = phase == Phase::Applying && !run.dry_run;
            let result = Some(if waited { RunResult::Done } else { RunResult::Abandoned });
            let ended = Run { result, finished_at: Some(crate::time::now()), ..run };
            patience.tried(|| store.save_run(&ended)).await?;
        }
    }

    /// Now, by Clerk's clock where that is known to differ from ours.
    pub(super) fn now(&self) -> Millis {
        self.api.now()
    }
}

impl Work<'_> {
    async fn all(&mut self) -> Result<(), SyncError> {
        self.count = self.patience.asked(self.sync.api.count()).await?;
        let phase = Phase::of(&self.run.phase);
        if phase == Phase::Reading {
            self.enter(Phase::Reading).await?;
            self.read().await?;
        }
        if phase <= Phase::Newest {
            self.enter(Phase::Newest).await?;
            self.read_newest().await?;
            self.compare_counts().await?;
        }
        // Before the deletions, which may need a person.
        if self.sync.billing && phase <= Phase::Subscriptions {
            self.enter(Phase::Subscriptions).await?;
            self.compare_subscriptions().await?;
        }
        // Also where a run stopped among the deletions: how many may be deleted is asked anew.
        if self.order.deletions {
            self.enter(Phase::Searching).await?;
            self.search().await?;
            if !self.order.dry_run {
                self.same_instance().await?;
                self.enter(Phase::Deleting).await?;
                self.delete().await?;
            }
        }
        self.enter(Phase::Applying).await?;
        if self.order.wait { self.apply().await } else { Ok(()) }
    }

    /// Writes down how the run ended, gives the lease back, and reports.
    async fn end(mut self, worked: Result<(), SyncError>) -> Result<Report, SyncError> {
        self.add_notes();
        let (result, over) = match &worked {
            Ok(()) => (RunResult::Done, true),
            Err(SyncError::Stopped) => (RunResult::Stopped, false),
            Err(error) => (RunResult::Failed, error.ends_the_run()),
        };
        self.run.result = Some(result);
        self.run.finished_at = over.then(now);
        self.run.detail = match &worked {
            Ok(()) => (!self.notes.is_empty()).then(|| self.notes.join("; ")),
            Err(error) => Some(error.to_string()),
        };
        // Whoever took it over writes it down now.
        if !matches!(worked, Err(SyncError::TakenOver))
            && let Err(error) = self.sync.store.save_run(&self.run).await
        {
            warn!("how the sync ended could not be written down: {error}");
        }
        self.lease.give_back().await;
        worked.map(|()| Report {
            run: self.run.id,
            instance: self.instance,
            began: self.cursor.began,
            resumed: self.run.resumed,
            counts: self.run.counts,
            dry_run: self.order.dry_run,
            subscriptions: (!self.subscriptions.not_compared).then_some(self.subscriptions.differing),
            under_way: self.publisher.outstanding() as u64,
            notes: self.notes,
        })
    }

    /// Asks once more whose the key is: where another instance has taken the API's place meanwhile, everybody would be gone.
    async fn same_instance(&self) -> Result<(), SyncError> {
        let key = self.patience.asked(self.sync.api.instance()).await?.id;
        match key == self.instance {
            true => Ok(()),
            false => Err(SyncError::OtherInstance { key, table: self.instance.clone(), by_setting: false }),
        }
    }

    async fn enter(&mut self, phase: Phase) -> Result<(), SyncError> {
        self.run.phase = phase.as_str().to_owned();
        self.save().await
    }

    async fn save(&mut self) -> Result<(), SyncError> {
        let (store, run) = (&self.sync.store, &self.run);
        self.patience.tried(|| store.save_run(run)).await?;
        self.touched = Instant::now();
        Ok(())
    }

    /// Makes sure that the run is still ours. Where the database was away for so long that the lease has ended, takes it again.
    ///
    /// # Errors
    /// [`SyncError::TakenOver`].
    pub(super) async fn hold(&mut self) -> Result<(), SyncError> {
        if self.lease.is_sure() {
            return Ok(());
        }
        let Sync { store, holder, .. } = self.sync;
        let taken = self.patience.tried(|| Held::take_free(store, LEASE, holder)).await?;
        self.lease = taken.map_err(|_| SyncError::TakenOver)?;
        // Another process may have had it meanwhile, and the run with it.
        self.save().await
    }

    /// Shows from time to time, in a phase that counts nothing, that the run goes on.
    pub(super) async fn touch(&mut self) -> Result<(), SyncError> {
        if self.touched.elapsed() > TOUCHED { self.save().await } else { Ok(()) }
    }

    /// Reads every user, the next page while the one in hand is taken in.
    async fn read(&mut self) -> Result<(), SyncError> {
        let mut reader = Reader::new(self.sync.api.clone(), self.cursor.place.clone(), self.count);
        let patience = self.patience.clone();
        let mut page = patience.stoppable(reader.next()).await?;
        while let Some(current) = page {
            self.hold().await?;
            self.cursor.place = current.next;
            let (next, taken) = tokio::join!(patience.stoppable(reader.next()), self.take(current.users));
            taken?;
            self.patience.tell(Told::Read { users: self.run.counts.clerk, of: self.count });
            page = next?;
        }
        self.cursor.place = Place::End;
        Ok(())
    }

    /// Reads what changed since the run began: users who were created, changed or imported behind its back.
    async fn read_newest(&mut self) -> Result<(), SyncError> {
        let since = self.cursor.began - MARGIN;
        let mut offset = 0;
        loop {
            self.hold().await?;
            let query = UsersQuery::newest(PAGE_MAX, offset);
            let page = self.patience.asked(self.sync.api.users(&query)).await?;
            let (read, limit) = (page.users.len() as u64, u64::from(page.limit));
            let is_recent = |user: &Snapshot| user.updated_at.is_none_or(|at| at >= since);
            let recent: Vec<Snapshot> = page.users.into_iter().filter(is_recent).collect();
            let all = recent.len() as u64 == read;
            if !recent.is_empty() {
                self.take(recent).await?;
            }
            let beyond = offset > self.count.saturating_mul(2) + 10_000;
            if beyond {
                self.notes.push("not all that changed meanwhile was read: it was too much".to_owned());
            }
            if !all || read < limit || beyond {
                return Ok(());
            }
            offset += read.saturating_sub(OVERLAP).max(1);
        }
    }

    async fn compare_counts(&mut self) -> Result<(), SyncError> {
        let count = self.patience.asked(self.sync.api.count()).await?;
        let read = self.run.counts.clerk;
        // Where much is left out, those who are would be taken for gone, and be asked for one by one.
        if read + (count / 100).max(LEFT_OUT) < count {
            return Err(SyncError::Incomplete { read, count });
        }
        if count != read {
            self.notes.push(format!(
                "Clerk counts {} users, and {} of its list were read: some came or went meanwhile, or cannot be listed",
                number(count),
                number(read)
            ));
        }
        Ok(())
    }

    /// Waits until all that was published is applied or dead.
    async fn apply(&mut self) -> Result<(), SyncError> {
        let mut watchdog = Watchdog::new();
        while self.publisher.outstanding() > 0 {
            self.hold().await?;
            self.publisher.has_room(true).await?;
            if self.settle().await? || self.publisher.is_behind_others() {
                watchdog.moved();
            }
            let left = self.publisher.outstanding() as u64;
            self.patience.tell(Told::Applying(left));
            self.touch().await?;
            if watchdog.is_stuck() {
                let left = if left == 1 {
                    "one change is".to_owned()
                } else {
                    format!("{} changes are", number(left))
                };
                self.notes.push(match self.publisher.waiting().await? {
                    0 => format!("{left} not applied, and the queue does not hold what was published any more: it was emptied, or a worker has held it for long"),
                    _ => format!("{left} not applied yet, and tried again: see headcount status"),
                });
                return Ok(());
            }
            if left > 0 {
                self.patience.rest(LOOK).await?;
            }
        }
        Ok(())
    }

    /// Publishes, as soon as there is room.
    pub(super) async fn publish(&mut self, news: Vec<News>) -> Result<(), SyncError> {
        if news.is_empty() {
            return Ok(());
        }
        let mut watchdog = Watchdog::new();
        while !self.publisher.has_room(false).await? {
            self.hold().await?;
            if self.settle().await? || self.publisher.is_behind_others() {
                watchdog.moved();
            }
            if watchdog.is_stuck() {
                return Err(SyncError::Stuck(self.publisher.outstanding() as u64));
            }
        }
        self.publisher.publish(news).await?;
        if self.publisher.outstanding() > SETTLED_BEYOND {
            self.settle().await?;
        }
        Ok(())
    }

    /// Counts what is applied, and what died. Answers whether there was any.
    async fn settle(&mut self) -> Result<bool, SyncError> {
        let became = self.publisher.became().await?;
        if became.is_nothing() {
            return Ok(false);
        }
        self.run.counts.repaired += became.repaired;
        self.stale += became.stale;
        self.run.counts.failed += (became.buried.len() + became.ignored.len()) as u64;
        let (run, store, ids) = (self.run.id, &self.sync.store, became.all());
        self.patience.tried(|| store.settle(run, &ids)).await?;
        for clerk_id in became.buried {
            let dead = "what was published of it is a dead letter: headcount dead";
            let (clerk_id, why) = match is_of_subscription(&clerk_id) {
                true => (None, format!("{dead} show {clerk_id}")),
                false => (Some(clerk_id.clone()), format!("{dead} list --user {clerk_id}")),
            };
            self.patience.tell(Told::Failed { clerk_id, why });
        }
        for clerk_id in became.ignored {
            let why = "a worker of an older version ignored what was published of it: upgrade all workers";
            self.patience.tell(Told::Failed { clerk_id: Some(clerk_id), why: why.to_owned() });
        }
        Ok(true)
    }

    /// Asks Clerk for one user.
    pub(super) async fn ask(&self, clerk_id: &str) -> Result<Option<Snapshot>, SyncError> {
        self.patience.asked(self.sync.api.user(clerk_id)).await
    }

    pub(super) fn now(&self) -> Millis {
        self.sync.now()
    }
}
