//! Owns the life of one subscription once the database takes messages: receive, try, judge and settle, until the worker is
//! asked to stop or nothing succeeds any more. Promises to settle or give back all that it received before it ends.
//! What is next, whose fault a failure is and when to pause are decisions of `held`, `blame` and `course`: here they are
//! only carried out.

use std::{
    fmt::Display,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, JoinSet},
};
use tracing::{debug, info, warn};

use super::{
    Worker,
    batch::{Failed, Progress, Tell},
    blame::{Blame, Conclusion, Judgement, Review, Silence},
    course::Course,
    held::{BATCHES, Held, Pile, Trying},
    verdict::Verdict,
};
use crate::{
    queue::{Delivery, Subscription},
    stop::until,
    store::Class,
};

/// How often the worker looks at what no event tells: the time, and deliveries that are no longer its own.
const TICK: Duration = Duration::from_millis(250);

/// How a shift ended.
pub(super) enum ShiftEnd {
    /// Asked to stop; everything that was received is settled.
    Stopped,
    /// Nothing succeeds: everything has been given back.
    Outage,
}

/// The life of one subscription.
pub(super) struct Shift<'w> {
    worker: &'w mut Worker,
    subscription: Arc<dyn Subscription>,
    begun: Instant,
    stopping: bool,
    course: Course,
    pile: Pile,
    /// Failed alone, and nothing proves yet whose fault it is.
    suspects: Vec<Failed>,
    batches: JoinSet<()>,
    returning: JoinSet<()>,
    alone: JoinSet<()>,
    failed: JoinSet<()>,
    tell: Tell,
    told: mpsc::UnboundedReceiver<Progress>,
    /// Messages that were tried in pauses.
    tries: usize,
    /// Something has happened that `look` has not seen.
    news: bool,
}

impl<'w> Shift<'w> {
    /// Begins with what the subscription has delivered already.
    pub(super) fn new(worker: &'w mut Worker, subscription: Arc<dyn Subscription>, held: Vec<Held>) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        let mut pile = Pile::default();
        held.into_iter().for_each(|held| pile.add(held));
        Self {
            worker,
            subscription,
            begun: Instant::now(),
            stopping: false,
            course: Course::Working,
            pile,
            suspects: Vec::new(),
            batches: JoinSet::new(),
            returning: JoinSet::new(),
            alone: JoinSet::new(),
            failed: JoinSet::new(),
            tell,
            told,
            tries: 0,
            news: true,
        }
    }

    pub(super) async fn work(mut self, stop: &watch::Receiver<bool>) -> ShiftEnd {
        let mut receiving = true;
        let subscription = Arc::clone(&self.subscription);
        let mut tick = tokio::time::interval(TICK);
        loop {
            if std::mem::take(&mut self.news) {
                self.look();
            }
            if self.course.is_giving_back() && receiving {
                receiving = false;
                for held in self.worker.cancel(&subscription).await {
                    self.pile.add(held);
                }
                self.look();
            }
            self.launch();
            if !receiving && self.held() == 0 && self.is_idle() {
                // What has to be published to be settled may have to wait for the broker: that holds up nothing.
                return if self.stopping { ShiftEnd::Stopped } else { ShiftEnd::Outage };
            }
            let batch_due = self.batch_due_in();
            tokio::select! {
                delivery = subscription.next(), if receiving => match delivery {
                    Some(delivery) => {
                        self.receive(delivery);
                        // Whatever else is here already, without going to sleep over each.
                        subscription.ready().into_iter().for_each(|delivery| self.receive(delivery));
                    }
                    None => {
                        receiving = false;
                        if !self.stopping {
                            self.course.give_back();
                        }
                        self.news = true;
                    }
                },
                Some(progress) = self.told.recv() => {
                    self.learn(progress);
                    while let Ok(progress) = self.told.try_recv() {
                        self.learn(progress);
                    }
                }
                Some(ended) = self.batches.join_next() => self.ended(ended),
                Some(ended) = self.returning.join_next() => self.ended(ended),
                Some(ended) = self.alone.join_next() => self.ended(ended),
                Some(ended) = self.failed.join_next() => self.ended(ended),
                () = self.worker.settling.ended() => {}
                () = until(stop, |stop| *stop), if !self.stopping => {
                    (self.stopping, self.news) = (true, true);
                    subscription.cancel().await;
                }
                _ = tick.tick() => {
                    self.news = true;
                    self.drop_what_is_not_ours();
                }
                () = tokio::time::sleep(batch_due.unwrap_or_default()), if batch_due.is_some() => {}
            }
        }
    }

    fn receive(&mut self, delivery: Delivery) {
        self.pile.add(Held::new(delivery, &self.subscription, self.worker.pipeline.moment()));
    }

    /// Deliveries of a connection that has ended, or of a lease that was lost, come again from their queue: dropped here, they
    /// are applied once and cost no memory.
    fn drop_what_is_not_ours(&mut self) {
        let before = self.held();
        self.pile.drop_what_is_not_ours();
        self.suspects.retain(|failed| failed.held.is_ours());
        let dropped = before - self.held();
        if dropped > 0 {
            info!("{dropped} messages are no longer this worker's");
        }
    }

    /// What is held and not being tried.
    fn held(&self) -> usize {
        self.pile.len() + self.suspects.len()
    }

    fn trying(&self) -> Trying {
        Trying {
            batches: self.batches.len(),
            returning: self.returning.len(),
            alone: self.alone.len(),
            failed: self.failed.len(),
        }
    }

    fn is_idle(&self) -> bool {
        self.trying().is_nothing() && self.told.is_empty()
    }

    /// Starts what may be started now.
    fn launch(&mut self) {
        match &self.course {
            Course::GivingBack => {}
            Course::Paused(pause) => {
                if self.is_idle() && pause.may_try(self.worker.pipeline.moment()) {
                    self.try_in_pause();
                }
            }
            Course::Working => {
                let age = self.begun.elapsed();
                while let Some(held) = self.pile.next_returned(self.trying(), age, &mut rand::rng()) {
                    self.returning.spawn(self.process_alone(held));
                }
                while let Some(held) = self.pile.next_alone(self.trying()) {
                    self.alone.spawn(self.process_alone(held));
                }
                while let Some(held) = self.pile.next_failed(self.trying()) {
                    self.failed.spawn(self.process_alone(held));
                }
                self.clear_the_way();
                // While as many as may be are being tried, what else may be held is room for one more to fill.
                let at_most = (usize::from(self.worker.settings.prefetch) / (BATCHES + 1)).max(1);
                let limits = (self.worker.batch_limit.min(at_most), self.worker.settings.batch_wait);
                let moment = (self.worker.pipeline.moment(), self.stopping);
                while let Some(batch) = self.pile.next_batch(self.trying(), limits, moment) {
                    self.batches.spawn(self.process(batch));
                }
            }
        }
    }

    /// Sets aside what failed or hangs and finds no room for a try: many that hang would take all places of the prefetch.
    fn clear_the_way(&mut self) {
        let (now, patience) = (self.worker.pipeline.moment(), self.worker.settings.silence);
        while let Some(held) = self.pile.next_in_the_way(now, patience) {
            let aside = self.aside(held, "it found no turn, because others take long");
            self.worker.settling.settle(vec![aside]);
        }
    }

    /// A message with the verdict that sets it aside.
    fn aside(&self, held: Held, why: impl Display) -> (Held, Verdict) {
        let id = held.id();
        match self.worker.set_aside.is_first("set aside") {
            true => info!(message_id = %id, "message {id} is set aside: {why}"),
            false => debug!(message_id = %id, "message {id} is set aside: {why}"),
        }
        let verdict = Verdict::set_aside(&held.delivery.message, &self.worker.settings.ladder);
        (held, verdict)
    }

    fn process_alone(&self, held: Held) -> impl Future<Output = ()> + Send + use<> {
        let (pipeline, tell) = (Arc::clone(&self.worker.pipeline), self.tell.clone());
        async move { pipeline.process_alone(held, &tell).await }
    }

    fn process(&self, batch: Vec<Held>) -> impl Future<Output = ()> + Send + use<> {
        let (pipeline, tell) = (Arc::clone(&self.worker.pipeline), self.tell.clone());
        async move { pipeline.process(batch, &tell).await }
    }

    fn batch_due_in(&self) -> Option<Duration> {
        let (wait, now) = (self.worker.settings.batch_wait, self.worker.pipeline.moment());
        self.course.is_working().then(|| self.pile.batch_due_in(self.trying(), wait, now)).flatten()
    }

    /// Tries one message, to learn whether the database is back: by turns one that failed and one that did not.
    fn try_in_pause(&mut self) {
        self.tries += 1;
        let (tries, count) = (self.tries, self.suspects.len());
        let suspect =
            |shift: &mut Self| (count > 0).then(|| shift.suspects.swap_remove(tries / 2 % count).held);
        let first = if tries.is_multiple_of(2) { suspect(self) } else { None };
        match first.or_else(|| self.pile.next_of_any()).or_else(|| suspect(self)) {
            Some(held) => {
                let (pipeline, tell) = (Arc::clone(&self.worker.pipeline), self.tell.clone());
                self.alone.spawn(async move { pipeline.ask_then_try(held, &tell).await });
            }
            // There is nothing to give back, and nothing to try: the worker approaches the queue again.
            None => {
                self.course.give_back();
                self.news = true;
            }
        }
    }

    /// A task of this worker's has ended; what it had to tell is in the channel already.
    fn ended(&mut self, ended: Result<(), JoinError>) {
        if let Err(error) = ended {
            // What it held comes back with a new subscription, one delivery higher.
            warn!("a batch was lost in this process: {error}");
            self.course.give_back();
            self.news = true;
        }
    }

    fn learn(&mut self, progress: Progress) {
        self.news = true;
        match progress {
            Progress::BuriedUntried(verdicts) => self.worker.settling.settle(verdicts),
            Progress::Committed { verdicts, changed, tried } => {
                self.worker.committed(&verdicts, &changed, tried);
                self.grow(verdicts.len());
                self.worker.settling.settle(verdicts);
                if !changed.is_empty() && self.course.succeeded() {
                    self.worker.health.works();
                }
            }
            Progress::FailedTogether(at) => self.worker.blame.failed_together(at),
            Progress::Leftover(held) => self.pile.add_alone(held, &mut rand::rng()),
            Progress::KnownToHang(held) => {
                let now = self.worker.pipeline.moment();
                let mut no_room = Vec::new();
                for (held, account) in held {
                    if let Some(held) = self.pile.add_hanging(held, account, now) {
                        no_room.push(self.aside(held, "messages of its user hang"));
                    }
                }
                self.worker.settling.settle(no_room);
            }
            Progress::FailedAlone(failed) => {
                match self.worker.blame.failed(&failed.suspect(), failed.tried) {
                    Judgement::Guilty => {
                        let verdict = self.worker.guilty(&failed);
                        self.worker.settling.settle(vec![(failed.held, verdict)]);
                    }
                    Judgement::Unproved => self.suspects.push(*failed),
                }
                self.course.failed(self.worker.pipeline.moment());
            }
            Progress::Unasked(held, why) => {
                self.pile.put_back(held);
                self.pause(&why);
                self.course.failed(self.worker.pipeline.moment());
            }
            // Given back at once: it may still take effect, and must not meet itself.
            Progress::Unanswered(held) => {
                self.worker.settling.give_back(held);
                self.pause("the database does not answer");
            }
            Progress::Fits(size) => {
                let limit = size.min(self.worker.batch_limit);
                if limit < self.worker.batch_limit {
                    debug!("batches of {} fail as a whole; going on with {limit}", self.worker.batch_limit);
                }
                self.worker.batch_limit = limit;
            }
        }
    }

    /// Batches that are full and succeed may be larger again.
    fn grow(&mut self, size: usize) {
        let limit = self.worker.batch_limit;
        if size >= limit && limit < self.worker.settings.batch_max {
            self.worker.batch_limit = (limit + limit / 8 + 1).min(self.worker.settings.batch_max);
        }
    }

    fn pause(&mut self, why: &str) {
        let now = self.worker.pipeline.moment();
        self.worker.health.paused(why);
        self.course.pause(now, self.worker.blame.silent_since(), self.worker.settings.silence);
    }

    /// Looks at what has happened and at the time: whether anything succeeds at all, and what becomes of the suspects.
    fn look(&mut self) {
        let now = self.worker.pipeline.moment();
        let patience = self.worker.settings.silence;
        if self.course.is_working() {
            match self.worker.blame.silence(now, patience) {
                Silence::Outage => {
                    let why = match self.suspects.last() {
                        Some(suspect) => format!("nothing succeeds: {}", suspect.error),
                        None => "nothing succeeds".into(),
                    };
                    self.pause(&why);
                }
                Silence::Lone if self.is_idle() && self.pile.len() == 0 => self.conclude_the_lone(),
                Silence::None | Silence::Lone => {}
            }
        }
        self.course.review(now, self.stopping);
        match &self.course {
            Course::Working => {
                let review = Review { now, patience, stopping: self.stopping };
                let conclude = |blame: &Blame, failed: &Failed| {
                    blame.conclude(&failed.suspect(), failed.tried.ended, review)
                };
                self.review_suspects(conclude);
            }
            Course::Paused(_) => {}
            Course::GivingBack => self.give_back(),
        }
    }

    /// One account's messages have failed for long enough, and there was nothing else to be tried.
    fn conclude_the_lone(&mut self) {
        self.review_suspects(|_, failed| {
            Blame::conclude_alone(&failed.suspect(), failed.error.class == Class::Permanent)
        });
        self.worker.blame.break_silence();
    }

    /// Does what is concluded of each suspect; those of whom nothing is go on waiting.
    fn review_suspects(&mut self, conclude: impl Fn(&Blame, &Failed) -> Option<Conclusion>) {
        for failed in std::mem::take(&mut self.suspects) {
            match conclude(&self.worker.blame, &failed) {
                None => self.suspects.push(failed),
                Some(Conclusion::TryAgain) => {
                    self.pile.add_failed(failed.held, self.worker.pipeline.moment());
                }
                Some(Conclusion::Guilty) => {
                    self.worker.blame.cleared(failed.held.id());
                    let verdict = self.worker.guilty(&failed);
                    self.worker.settling.settle(vec![(failed.held, verdict)]);
                }
                Some(Conclusion::SetAside) => {
                    let aside = self.aside(failed.held, failed.error);
                    self.worker.settling.settle(vec![aside]);
                }
            }
        }
    }

    fn give_back(&mut self) {
        let mut held = self.pile.drain();
        held.extend(self.suspects.drain(..).map(|failed| failed.held));
        if !held.is_empty() {
            let count = held.len();
            let goes = if count == 1 { " goes" } else { "s go" };
            info!("{count} message{goes} back to the queue, no attempt burned");
            self.worker.settling.give_back(held);
        }
    }
}
