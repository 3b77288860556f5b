//! Owns bringing single users in step on demand: what Clerk says of each now, what differs, and what became of it. Each account is
//! written down in the log of operations before Clerk is asked about it; whole runs have a table of their own.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde::{Serialize, Serializer, ser::SerializeMap as _};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{Difference, Order, Sync, SyncError, Tell, owner::Unknown, patience::Patience};
use crate::{
    clerk::api::{Snapshot, gone, keys},
    letters::operations::Action,
    message::Message,
    rules::{
        Outcome,
        users::{Loaded, Standing, compare},
    },
    store::{
        StoreError,
        letters::Actor,
        operations::{Kind, State},
        sync::Settled,
    },
    time::{Millis, rfc3339},
};

/// How long the outcome is waited for.
const FOLLOWED: Duration = Duration::from_secs(10);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(100);
/// The pause between two times that Clerk says it does not know a user.
const TWICE: Duration = Duration::from_secs(1);

/// What was found about one account, and what was done.
#[derive(Clone, Debug, Serialize)]
pub struct One {
    /// As it was asked for.
    pub user: String,
    /// The account; `None` where neither Clerk nor the table knows anybody.
    pub clerk_id: Option<String>,
    /// How the table stands to Clerk.
    #[serde(flatten, serialize_with = "standing")]
    pub standing: Option<Difference>,
    /// When Clerk changed the user last.
    #[serde(serialize_with = "time")]
    pub updated_at: Option<Millis>,
    /// Why the user cannot be repaired.
    pub problem: Option<String>,
    /// What became of what was published; `None` where nothing was, or where it is still on its way.
    pub outcome: Option<Outcome>,
    /// How the table stands to what the user pays for; `None` where that was not compared.
    pub subscription: Option<Paid>,
    #[serde(skip)]
    message_id: Option<String>,
}

/// What was found about a user's subscription, and what was done.
#[derive(Clone, Debug, Serialize)]
pub struct Paid {
    /// The table is not as Clerk says.
    pub differs: bool,
    /// As [`One::outcome`].
    pub outcome: Option<Outcome>,
    #[serde(skip)]
    message_id: Option<String>,
}

impl One {
    /// Something was published, and is not applied yet.
    pub fn is_under_way(&self) -> bool {
        let paid = self.subscription.as_ref();
        let paid = paid.is_some_and(|paid| paid.message_id.is_some() && paid.outcome.is_none());
        ((self.message_id.is_some() && self.outcome.is_none()) || paid) && self.problem.is_none()
    }

    /// The messages that were published.
    fn message_ids(&self) -> impl Iterator<Item = &String> {
        let paid = self.subscription.as_ref().and_then(|paid| paid.message_id.as_ref());
        self.message_id.iter().chain(paid)
    }

    /// The user could not be read, or what was published of it died.
    pub fn has_failed(&self) -> bool {
        let stays =
            self.standing == Some(Difference::Row(Standing::BuriedAlive)) && self.message_id.is_none();
        self.problem.is_some() && !stays
    }

    /// What the user pays for is not as in Clerk.
    pub fn pays_otherwise(&self) -> bool {
        self.subscription.as_ref().is_some_and(|paid| paid.differs)
    }

    /// What was found and done, in a few words and without a value.
    fn told(&self) -> String {
        let Some(standing) = &self.standing else {
            return self.problem.clone().unwrap_or_else(|| "neither Clerk nor the table knows it".to_owned());
        };
        let became = match (&self.problem, self.outcome) {
            (Some(problem), _) => format!("; {problem}"),
            (None, Some(outcome)) => format!("; {}", outcome.as_str()),
            (None, None) if self.is_under_way() => "; published, and not applied yet".to_owned(),
            (None, None) => String::new(),
        };
        let paid = if self.pays_otherwise() { "; the subscription differed" } else { "" };
        format!("{standing}{became}{paid}")
    }

    /// The table differs from Clerk.
    pub fn differs(&self) -> bool {
        self.standing.as_ref().is_some_and(Difference::is_one) || self.pays_otherwise()
    }
}

fn standing<S: Serializer>(found: &Option<Difference>, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(2))?;
    map.serialize_entry("standing", &found.as_ref().map(Difference::word))?;
    map.serialize_entry("columns", found.as_ref().map_or(&[][..], Difference::columns))?;
    map.end()
}

fn time<S: Serializer>(at: &Option<Millis>, serializer: S) -> Result<S::Ok, S::Error> {
    at.map(rfc3339).serialize(serializer)
}

/// What is written down of each account, in the order of what is found.
#[derive(Default)]
struct Noted(Mutex<Vec<Option<Action>>>);

impl Noted {
    fn push(&self, action: Option<Action>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(action);
    }

    /// Writes down what became of each.
    async fn ended(self, done: &Result<(String, Vec<One>), SyncError>) -> Result<(), StoreError> {
        let actions = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (n, action) in actions.into_iter().enumerate() {
            let Some(action) = action else { continue };
            let (state, repaired, told) = match done {
                Ok((_, found)) => {
                    let Some(one) = found.get(n) else { continue };
                    let state = if one.has_failed() { State::Failed } else { State::Complete };
                    (state, u64::from(one.outcome.is_some() && one.differs()), one.told())
                }
                Err(SyncError::Stopped) => (State::Stopped, 0, "somebody stopped it on its way".to_owned()),
                Err(error) => (State::Failed, 0, format!("it was not followed to its end: {error}")),
            };
            action.ended(state, repaired, Some(told)).await?;
        }
        Ok(())
    }
}

impl Sync {
    /// Brings these users in step: each by a Clerk id, our id, or an e-mail address. Answers the instance, and what was found.
    ///
    /// # Errors
    /// Clerk's API, the database or the queue does not answer; the key is of another instance.
    pub async fn some(
        &self,
        references: &[String],
        order: &Order,
        unknown: Unknown<'_>,
        tell: Tell<'_>,
        stop: &watch::Receiver<bool>,
    ) -> Result<(String, Vec<One>), SyncError> {
        let patience = Patience::new(stop, tell);
        let noted = Noted::default();
        let work = patience.stoppable(self.each(references, order, unknown, &patience, &noted));
        let done = patience.told_of_clerk(&self.api, work).await;
        let written = noted.ended(&done).await;
        let done = done?;
        written.map_err(SyncError::Store)?;
        Ok(done)
    }

    async fn each(
        &self,
        references: &[String],
        order: &Order,
        unknown: Unknown<'_>,
        patience: &Patience<'_>,
        noted: &Noted,
    ) -> Result<(String, Vec<One>), SyncError> {
        let by = Actor { name: order.who.clone(), note: None };
        let instance = self.owner_or(unknown, patience).await?.id;
        let mut found: Vec<One> = Vec::new();
        for reference in references {
            for clerk_id in self.meant(reference, patience).await? {
                if found.iter().any(|one| one.clerk_id.as_ref() == Some(&clerk_id)) {
                    continue;
                }
                let what = json!({ "instance": instance, "dry_run": order.dry_run });
                let begin = || Action::on_account(&self.store, Kind::Sync, &by, &clerk_id, what.clone());
                noted.push(if clerk_id.is_empty() { None } else { Some(patience.tried(begin).await?) });
                found.push(self.one(reference, clerk_id, &instance, order, patience).await?);
            }
        }
        if order.wait {
            self.follow(&mut found, patience).await?;
        }
        Ok((instance, found))
    }

    /// The accounts that are meant: an address may be another account's in Clerk than in the table.
    async fn meant(&self, reference: &str, patience: &Patience<'_>) -> Result<Vec<String>, SyncError> {
        let reference = reference.trim();
        let mut ids: Vec<String> =
            patience.tried(|| self.store.clerk_id_of(reference)).await?.into_iter().collect();
        if reference.contains('@') {
            let named = self.api.users_by_address(reference).await?;
            ids.extend(named.into_iter().filter_map(|user| user.clerk_id));
        } else if reference.starts_with("user_") || ids.is_empty() {
            ids.push(reference.to_owned());
        }
        ids.sort();
        ids.dedup();
        Ok(if ids.is_empty() { vec![String::new()] } else { ids })
    }

    async fn one(
        &self,
        reference: &str,
        clerk_id: String,
        instance: &str,
        order: &Order,
        patience: &Patience<'_>,
    ) -> Result<One, SyncError> {
        let mut one = One {
            user: reference.to_owned(),
            clerk_id: None,
            standing: None,
            updated_at: None,
            problem: None,
            outcome: None,
            subscription: None,
            message_id: None,
        };
        let asked = if clerk_id.is_empty() { None } else { self.twice(&clerk_id).await? };
        let live = patience.tried(|| self.store.live_among(std::slice::from_ref(&clerk_id))).await?;
        let message = match asked {
            Some(user) => {
                one.clerk_id = Some(clerk_id);
                one.updated_at = user.updated_at;
                if self.billing {
                    self.paid(&mut one, instance, order, patience).await?;
                }
                self.compared(&mut one, &user, instance, order, patience).await?
            }
            None if live.is_empty() => {
                let known = patience.tried(|| self.store.known(std::slice::from_ref(&clerk_id), &[])).await?;
                let Loaded { rows, former } = known.loaded;
                if former.contains_key(&clerk_id) || rows.iter().any(|row| row.clerk_id == clerk_id) {
                    one.clerk_id = Some(clerk_id);
                    one.standing = Some(Difference::Deleted);
                }
                None
            }
            None => {
                one.clerk_id = Some(clerk_id.clone());
                one.standing = Some(Difference::Gone);
                Some(gone(&clerk_id, self.now(), instance))
            }
        };
        if let Some(message) = message.filter(|_| !order.dry_run) {
            one.message_id = Some(message.id.as_str().to_owned());
            patience.tried(|| self.queue.publish(message.clone())).await?;
        }
        Ok(one)
    }

    /// What is to be published of a user whom Clerk knows.
    async fn compared(
        &self,
        one: &mut One,
        user: &Snapshot,
        instance: &str,
        order: &Order,
        patience: &Patience<'_>,
    ) -> Result<Option<Message>, SyncError> {
        let upsert = match &user.upsert {
            Ok(upsert) => upsert,
            Err(error) => {
                one.problem = Some(format!("Clerk's answer cannot be read: {error}"));
                return Ok(None);
            }
        };
        let ids: Vec<String> = user.clerk_id.iter().cloned().collect();
        let keys = keys(std::slice::from_ref(user));
        let standing = compare(&patience.tried(|| self.store.known(&ids, &keys)).await?.loaded, upsert);
        let message = match &standing {
            Standing::InStep { signed_in_since: false } | Standing::Newer(_) => None,
            Standing::BuriedAlive if !order.revive => {
                one.problem = Some("deleted here: it stays so without --revive".to_owned());
                None
            }
            standing => Some(user.message(instance, *standing == Standing::BuriedAlive)),
        };
        one.standing = Some(Difference::Row(standing));
        Ok(message)
    }

    /// Compares what the user pays for, and publishes what differs. Where Clerk names no subscription, nothing is known.
    async fn paid(
        &self,
        one: &mut One,
        instance: &str,
        order: &Order,
        patience: &Patience<'_>,
    ) -> Result<(), SyncError> {
        let payers: Vec<String> = one.clerk_id.iter().cloned().collect();
        // Read first: what comes meanwhile is not ended.
        let known = patience.tried(|| self.store.items(&[], &payers)).await?;
        for payer in &payers {
            let unreadable = |why: String| Some(format!("what the user pays for cannot be read: {why}"));
            let reading = match self.api.subscription(payer).await {
                Ok(Some(reading)) => reading,
                Ok(None) => continue,
                // The user is brought in step all the same.
                Err(error) => {
                    one.problem = unreadable(error.to_string());
                    continue;
                }
            };
            if let Err(error) = &reading.news {
                one.problem = unreadable(error.to_string());
            }
            let message = reading.message(&known, instance);
            let mut paid = Paid { differs: message.is_some(), outcome: None, message_id: None };
            if let Some(message) = message.filter(|_| !order.dry_run) {
                paid.message_id = Some(message.id.as_str().to_owned());
                patience.tried(|| self.queue.publish(message.clone())).await?;
            }
            // Somebody may have edited the tier.
            let strays = patience.tried(|| self.store.stray_tiers(&payers)).await?;
            if !strays.is_empty() && !paid.differs {
                paid.differs = true;
                if !order.dry_run {
                    patience.tried(|| self.store.settle_tiers(&strays)).await?;
                    paid.outcome = Some(Outcome::Updated);
                }
            }
            one.subscription = Some(paid);
        }
        Ok(())
    }

    /// The user; `None` where Clerk said twice that it does not know it.
    async fn twice(&self, clerk_id: &str) -> Result<Option<Snapshot>, SyncError> {
        if let Some(user) = self.api.user(clerk_id).await? {
            return Ok(Some(user));
        }
        sleep(TWICE).await;
        Ok(self.api.user(clerk_id).await?)
    }

    /// Waits a few seconds for what becomes of what was published.
    async fn follow(&self, found: &mut [One], patience: &Patience<'_>) -> Result<(), SyncError> {
        let until_when = Instant::now() + FOLLOWED;
        loop {
            let under_way = found.iter().filter(|one| one.is_under_way());
            let ids: Vec<String> = under_way.flat_map(One::message_ids).cloned().collect();
            if ids.is_empty() || Instant::now() > until_when {
                return Ok(());
            }
            for (message_id, settled) in patience.tried(|| self.store.settled(&ids)).await? {
                let about =
                    found.iter_mut().filter(|one| one.message_ids().any(|known| *known == message_id));
                about.for_each(|one| match settled {
                    // A name that only a newer headcount knows: it took effect.
                    Settled::Applied(outcome) => {
                        let outcome = outcome.or(Some(Outcome::Updated));
                        match &mut one.subscription {
                            Some(paid) if paid.message_id.as_ref() == Some(&message_id) => {
                                paid.outcome = outcome;
                            }
                            _ => one.outcome = outcome,
                        }
                    }
                    Settled::Buried => {
                        one.problem = Some(format!("it died: headcount dead show {message_id}"));
                    }
                });
            }
            sleep(LOOK).await;
        }
    }
}
