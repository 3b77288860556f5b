//! Owns dead letters in a SQLite file of their own, whose capture and stamps fail as a test tells them to.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use headcount::{
    message::Origin,
    rules::users::{OnDelete, Policy, Relink},
    store::{self, Backend, Class, Store, StoreConfig, StoreError, letters::*},
    time::{Millis, now},
};
use tokio::sync::watch;
use uuid::Uuid;

pub struct FaultyLetters {
    pub store: Arc<dyn Store>,
    /// The class of the error that every capture comes back with.
    failing: Mutex<Option<Class>>,
    /// Stamps come back with an error.
    pub no_stamps: Mutex<bool>,
    /// Whatever is published dies again right after its stamp.
    pub deadly: Mutex<bool>,
    /// Message ids that the database refuses; with `true`, even bare.
    pub refused: Mutex<BTreeMap<String, bool>>,
    /// Message ids that an application's rule refuses: with a code that does not tell whose trouble it is.
    pub unclear: Mutex<HashSet<String>>,
    /// How often capture was called.
    pub captures: watch::Sender<usize>,
    _directory: tempfile::TempDir,
}

fn error(class: Class) -> StoreError {
    StoreError { class, code: "XX000".into(), message: "as the test says".into(), hint: None, source: None }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FaultyLetters {
    pub async fn new() -> Arc<Self> {
        let directory = tempfile::tempdir().unwrap();
        let config = StoreConfig {
            backend: Backend::Sqlite { path: directory.path().join("headcount.db") },
            policy: Policy { relink: Relink::Deleted, on_delete: OnDelete::Keep },
            default_credits: 0,
            sessions: true,
            billing: None,
            connections: 4,
        };
        let store = store::open(&config).await.unwrap();
        store.migrate().await.unwrap();
        Arc::new(Self {
            store,
            failing: Mutex::default(),
            no_stamps: Mutex::default(),
            deadly: Mutex::default(),
            refused: Mutex::default(),
            unclear: Mutex::default(),
            captures: watch::Sender::default(),
            _directory: directory,
        })
    }

    pub fn fail(&self, class: impl Into<Option<Class>>) {
        *lock(&self.failing) = class.into();
    }

    pub async fn all(&self) -> Vec<Letter> {
        self.store.list(&Filter::default(), &Page { limit: 10_000, after: None }).await.unwrap()
    }

    pub async fn of(&self, message_id: &str) -> Option<Letter> {
        self.store.show(message_id).await.unwrap().map(|detail| detail.letter)
    }

    /// What the database says to a capture.
    fn answer(&self, letters: &[Captured]) -> Result<(), StoreError> {
        if let Some(class) = *lock(&self.failing) {
            return Err(error(class));
        }
        let refused = lock(&self.refused);
        let is_refused = |captured: &Captured| {
            let even_bare = refused.get(&captured.message_id);
            even_bare.is_some_and(|even_bare| *even_bare || !captured.detail.is_empty())
        };
        if letters.iter().any(is_refused) {
            return Err(error(Class::Permanent));
        }
        let unclear = lock(&self.unclear);
        match letters.iter().any(|captured| unclear.contains(&captured.message_id)) {
            true => Err(error(Class::Unclear)),
            false => Ok(()),
        }
    }

    /// Another death of a letter, in this round.
    async fn die(&self, id: Uuid, round: u32) -> Result<(), StoreError> {
        let LetterDetail { letter, headers, body, .. } = self.store.show(&id.to_string()).await?.unwrap();
        let again = Captured {
            message_id: letter.message_id,
            origin: Origin::Webhook,
            round,
            event_type: letter.event_type,
            clerk_id: letter.clerk_id,
            reason: letter.reason,
            detail: letter.detail,
            attempts: letter.attempts,
            first_seen: letter.first_seen,
            died_at: now(),
            group: letter.group,
            headers,
            body,
        };
        self.store.capture(&[again]).await.map(drop)
    }
}

#[async_trait]
impl Letters for FaultyLetters {
    async fn capture(&self, letters: &[Captured]) -> Result<Vec<String>, StoreError> {
        self.captures.send_modify(|captures| *captures += 1);
        self.answer(letters)?;
        self.store.capture(letters).await
    }

    async fn stamp(&self, published: &[Publication]) -> Result<(), StoreError> {
        if *lock(&self.no_stamps) {
            return Err(error(Class::Outage));
        }
        self.store.stamp(published).await?;
        if *lock(&self.deadly) {
            for (id, round) in published {
                self.die(*id, *round).await?;
            }
        }
        Ok(())
    }

    async fn groups(&self, filter: &Filter) -> Result<Vec<Group>, StoreError> {
        self.store.groups(filter).await
    }

    async fn groups_named(&self, reference: &str) -> Result<Vec<String>, StoreError> {
        self.store.groups_named(reference).await
    }

    async fn list(&self, filter: &Filter, page: &Page) -> Result<Vec<Letter>, StoreError> {
        self.store.list(filter, page).await
    }

    async fn show(&self, reference: &str) -> Result<Option<LetterDetail>, StoreError> {
        self.store.show(reference).await
    }

    async fn count(&self, filter: &Filter) -> Result<Vec<Count>, StoreError> {
        self.store.count(filter).await
    }

    async fn fresh_letters(&self, since: Millis) -> Result<FreshLetters, StoreError> {
        self.store.fresh_letters(since).await
    }

    async fn claim(&self, filter: &Filter, limit: u32, by: &Actor) -> Result<Vec<Claimed>, StoreError> {
        self.store.claim(filter, limit, by).await
    }

    async fn edit(&self, id: Uuid, body: Bytes, by: &Actor) -> Result<Option<Claimed>, StoreError> {
        self.store.edit(id, body, by).await
    }

    async fn clock(&self) -> Result<Millis, StoreError> {
        self.store.clock().await
    }

    async fn unstamped(
        &self,
        filter: &Filter,
        before: Millis,
        limit: u32,
    ) -> Result<Vec<Claimed>, StoreError> {
        self.store.unstamped(filter, before, limit).await
    }

    async fn discard(&self, filter: &Filter, limit: u32, by: &Actor) -> Result<u64, StoreError> {
        self.store.discard(filter, limit, by).await
    }

    async fn restore(&self, filter: &Filter, limit: u32, by: &Actor) -> Result<u64, StoreError> {
        self.store.restore(filter, limit, by).await
    }
}
