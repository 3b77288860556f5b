//! Owns dead letters in memory, under the same contract, that fail as a test tells them to.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use headcount::{
    clerk,
    store::{Class, StoreError, letters::*},
    time::{Millis, now},
};
use tokio::sync::watch;
use uuid::Uuid;

/// One letter.
#[derive(Clone, Debug)]
pub struct Fake {
    pub id: Uuid,
    pub round: u32,
    pub status: Status,
    pub stamped: bool,
    pub claimed_at: Millis,
    pub captured: Captured,
}

#[derive(Default)]
pub struct FakeLetters {
    all: Mutex<Vec<Fake>>,
    /// The class of the error that every call comes back with.
    failing: Mutex<Option<Class>>,
    /// Stamps come back with an error.
    pub no_stamps: Mutex<bool>,
    /// Whatever is published dies again before its stamp.
    pub deadly: Mutex<bool>,
    /// Message ids that the database refuses; with `true`, even bare.
    pub refused: Mutex<BTreeMap<String, bool>>,
    /// Message ids that an application's rule refuses: with a code that does not tell whose trouble it is.
    pub unclear: Mutex<HashSet<String>>,
    /// How often capture was called.
    pub captures: watch::Sender<usize>,
    pub rejected: Mutex<Vec<Rejected>>,
}

pub fn error(class: Class) -> StoreError {
    StoreError { class, code: "XX000".into(), message: "as the test says".into(), hint: None, source: None }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeLetters {
    pub fn fail(&self, class: impl Into<Option<Class>>) {
        *lock(&self.failing) = class.into();
    }

    pub fn all(&self) -> Vec<Fake> {
        lock(&self.all).clone()
    }

    pub fn of(&self, message_id: &str) -> Option<Fake> {
        self.all().into_iter().find(|fake| fake.captured.message_id == message_id)
    }

    fn answer(&self) -> Result<(), StoreError> {
        lock(&self.failing).map_or(Ok(()), |class| Err(error(class)))
    }

    fn selects(fake: &Fake, filter: &Filter) -> bool {
        (filter.ids.is_empty() || filter.ids.contains(&fake.id))
            && filter.group.as_ref().is_none_or(|group| *group == fake.captured.group)
            && filter.reason.as_ref().is_none_or(|reason| *reason == fake.captured.reason)
    }
}

fn claimed(fake: &Fake) -> Claimed {
    Claimed {
        id: fake.id,
        message_id: fake.captured.message_id.clone(),
        round: fake.round,
        event_type: fake.captured.event_type.clone(),
        first_seen: fake.captured.first_seen,
        body: fake.captured.body.clone(),
    }
}

fn letter(fake: &Fake) -> Letter {
    let captured = &fake.captured;
    Letter {
        id: fake.id,
        message_id: captured.message_id.clone(),
        round: fake.round,
        event_type: captured.event_type.clone(),
        clerk_id: captured.clerk_id.clone(),
        reason: captured.reason.clone(),
        detail: captured.detail.clone(),
        attempts: captured.attempts,
        first_seen: headcount::time::rfc3339(captured.first_seen),
        died_at: headcount::time::rfc3339(captured.died_at),
        status: fake.status,
        outcome: None,
        group: captured.group.clone(),
    }
}

#[async_trait]
impl Letters for FakeLetters {
    async fn capture(&self, letters: &[Captured]) -> Result<Vec<String>, StoreError> {
        self.captures.send_modify(|captures| *captures += 1);
        self.answer()?;
        let refused = lock(&self.refused);
        for captured in letters {
            let bare = captured.detail.is_empty();
            if refused.get(&captured.message_id).is_some_and(|even_bare| *even_bare || !bare) {
                return Err(error(Class::Permanent));
            }
        }
        if letters.iter().any(|captured| lock(&self.unclear).contains(&captured.message_id)) {
            return Err(error(Class::Unclear));
        }
        let mut all = lock(&self.all);
        let mut new = Vec::new();
        for captured in letters {
            match all.iter_mut().find(|fake| fake.captured.message_id == captured.message_id) {
                Some(fake) if captured.round > fake.captured.round => {
                    (fake.round, fake.status, fake.captured) =
                        (captured.round, Status::Open, captured.clone());
                }
                Some(_) => continue,
                None => all.push(Fake {
                    id: Uuid::now_v7(),
                    round: captured.round,
                    status: Status::Open,
                    stamped: false,
                    claimed_at: 0,
                    captured: captured.clone(),
                }),
            }
            new.push(captured.message_id.clone());
        }
        Ok(new)
    }

    async fn groups(&self, _: &Filter) -> Result<Vec<Group>, StoreError> {
        unreachable!()
    }

    async fn groups_named(&self, _: &str) -> Result<Vec<String>, StoreError> {
        unreachable!()
    }

    async fn letters(&self, filter: &Filter, _: &Page) -> Result<Vec<Letter>, StoreError> {
        self.answer()?;
        Ok(lock(&self.all).iter().filter(|fake| Self::selects(fake, filter)).map(letter).collect())
    }

    async fn letter(&self, reference: &str) -> Result<Option<LetterDetail>, StoreError> {
        self.answer()?;
        let all = lock(&self.all);
        let named = |fake: &&Fake| fake.id.to_string() == reference || fake.captured.message_id == reference;
        Ok(all.iter().find(named).map(|fake| LetterDetail {
            letter: letter(fake),
            headers: fake.captured.headers.clone(),
            body: fake.captured.body.clone(),
            history: Vec::new(),
        }))
    }

    async fn count(&self, filter: &Filter) -> Result<Vec<Count>, StoreError> {
        self.answer()?;
        let all = lock(&self.all);
        let selected = |fake: &&Fake| {
            filter.status.is_none_or(|status| status == fake.status) && Self::selects(fake, filter)
        };
        let letters = all.iter().filter(selected).count() as u64;
        Ok(vec![Count { event_type: "user.created".into(), reason: "rejected".into(), letters }])
    }

    async fn statuses(&self) -> Result<BTreeMap<Status, u64>, StoreError> {
        unreachable!()
    }

    async fn claim(&self, filter: &Filter, limit: u32, _: &Actor) -> Result<Vec<Claimed>, StoreError> {
        self.answer()?;
        let mut all = lock(&self.all);
        let open = all.iter_mut().filter(|fake| fake.status == Status::Open && Self::selects(fake, filter));
        Ok(open
            .take(limit as usize)
            .map(|fake| {
                fake.round += 1;
                (fake.status, fake.stamped, fake.claimed_at) = (Status::Replayed, false, now());
                claimed(fake)
            })
            .collect())
    }

    async fn edit(&self, id: Uuid, body: Bytes, _: &Actor) -> Result<Option<Claimed>, StoreError> {
        self.answer()?;
        let mut all = lock(&self.all);
        let Some(fake) = all.iter_mut().find(|fake| fake.id == id && fake.status == Status::Open) else {
            return Ok(None);
        };
        fake.round += 1;
        (fake.status, fake.stamped, fake.claimed_at) = (Status::Replayed, false, now());
        fake.captured.event_type = clerk::event_type(&body);
        fake.captured.body = body;
        Ok(Some(claimed(fake)))
    }

    async fn clock(&self) -> Result<Millis, StoreError> {
        self.answer().map(|()| now())
    }

    async fn unstamped(
        &self,
        filter: &Filter,
        before: Millis,
        limit: u32,
    ) -> Result<Vec<Claimed>, StoreError> {
        self.answer()?;
        let all = lock(&self.all);
        let unstamped = all.iter().filter(|fake| {
            fake.status == Status::Replayed
                && !fake.stamped
                && fake.claimed_at <= before
                && Self::selects(fake, filter)
        });
        Ok(unstamped.take(limit as usize).map(claimed).collect())
    }

    async fn stamp(&self, published: &[(Uuid, u32)]) -> Result<(), StoreError> {
        self.answer()?;
        if *lock(&self.no_stamps) {
            return Err(error(Class::Outage));
        }
        let published: HashSet<_> = published.iter().copied().collect();
        for fake in lock(&self.all).iter_mut().filter(|fake| published.contains(&(fake.id, fake.round))) {
            fake.stamped = true;
        }
        if *lock(&self.deadly) {
            let mut all = lock(&self.all);
            let (mut dead, rest): (Vec<_>, Vec<_>) =
                all.drain(..).partition(|fake| published.contains(&(fake.id, fake.round)));
            dead.iter_mut().for_each(|fake| fake.status = Status::Open);
            // The last to die.
            *all = rest.into_iter().chain(dead).collect();
        }
        Ok(())
    }

    async fn discard(&self, _: &Filter, _: u32, _: &Actor) -> Result<u64, StoreError> {
        unreachable!()
    }

    async fn restore(&self, _: &Filter, _: u32, _: &Actor) -> Result<u64, StoreError> {
        unreachable!()
    }

    async fn record_rejections(&self, samples: &[Rejected]) -> Result<(), StoreError> {
        self.answer()?;
        lock(&self.rejected).extend_from_slice(samples);
        Ok(())
    }

    async fn rejections(&self, _: u32) -> Result<Vec<Rejected>, StoreError> {
        unreachable!()
    }

    async fn prune(&self, _: &Retention, _: u32) -> Result<Pruned, StoreError> {
        unreachable!()
    }

    async fn erase_kept(&self, _: u32) -> Result<u64, StoreError> {
        unreachable!()
    }
}
