//! Owns one try at a batch: one transaction, a constant number of statements, whatever the batch holds.
//!
//! Batches that run at the same time end as if one had followed the other, because each, before it reads what it
//! decides by, takes locks in one order: on the key of every address that its events or their rows claim, and on every
//! Clerk id that has no row to be locked. Whoever writes a row with a key holds that key's lock; whoever makes a row
//! or a former id for a Clerk id holds that id's.

use std::{collections::BTreeSet, time::Instant};

use sqlx::Executor as _;

use super::{PostgresStore, connections::Tx, load, save, settle};
use crate::{
    rules::users::{self, Loaded, OnDelete, Outcome},
    store::{
        Incoming, StoreError,
        batch::{self, Fresh},
        errors, retry,
    },
};

// Every statement below looks rows up by an index. A table that has grown faster than its statistics would be read
// whole, for each batch, if the planner were free to.
/// Of what is about one message, or waits for nobody in front of it.
pub(super) const ALONE: &str = "SET LOCAL enable_seqscan = off; SET LOCAL lock_timeout = '3s'; \
                                SET LOCAL statement_timeout = '5s'";

// One message that waits or hangs is met again at every size of its batch until it is found, and its neighbours wait
// with it.
const TOGETHER: &str = "SET LOCAL enable_seqscan = off; SET LOCAL lock_timeout = '1s'; \
                        SET LOCAL statement_timeout = '2s'";

/// Until when a batch's statements may begin: so that, with the longest of them, the store answers within ten seconds,
/// however many there are.
pub(super) struct Deadline(Instant);

impl Deadline {
    fn new() -> Self {
        Self(Instant::now() + retry::LAST_BEGIN)
    }

    /// Called in front of each statement that can be slow.
    pub(super) fn holds(&self) -> Result<(), StoreError> {
        if Instant::now() < self.0 { Ok(()) } else { Err(errors::too_slow()) }
    }
}

/// Tries at one batch.
pub(super) struct Attempt<'s> {
    store: &'s PostgresStore,
    deadline: Deadline,
    /// Keys that turned up too late in an earlier try.
    seen: BTreeSet<String>,
}

impl<'s> Attempt<'s> {
    pub(super) fn new(store: &'s PostgresStore) -> Self {
        Self { store, deadline: Deadline::new(), seen: BTreeSet::new() }
    }
}

impl retry::Attempt for Attempt<'_> {
    async fn run(&mut self, batch: &[Incoming]) -> Result<Vec<Outcome>, StoreError> {
        let settings = if batch.len() > 1 { TOGETHER } else { ALONE };
        let mut tx = self.store.connections.begin(settings).await?;
        let done = self.within(&mut tx, batch).await;
        match done.and_then(|outcomes| self.deadline.holds().map(|()| outcomes)) {
            Ok(outcomes) => {
                // The boundary: inbox and users become durable together. A connection lost here leaves it unknown;
                // the batch then runs again, and the inbox decides.
                tx.commit().await?;
                Ok(outcomes)
            }
            Err(error) => {
                tx.roll_back().await;
                Err(error)
            }
        }
    }
}

/// Tries a batch, with what is checked at a commit only, and takes all of it back.
pub(super) async fn rehearse(store: &PostgresStore, batch: &[Incoming]) -> Result<(), StoreError> {
    let mut tx = store.connections.begin(ALONE).await?;
    let tried = match Attempt::new(store).within(&mut tx, batch).await {
        Ok(_) => tx.execute("SET CONSTRAINTS ALL IMMEDIATE").await.map(drop).map_err(Into::into),
        Err(error) => Err(error),
    };
    tx.roll_back().await;
    tried
}

impl Attempt<'_> {
    async fn within(&mut self, tx: &mut Tx, batch: &[Incoming]) -> Result<Vec<Outcome>, StoreError> {
        let ids = batch::clerk_ids(batch);
        let keys = self.lock(tx, batch, &ids).await?;
        self.deadline.holds()?;
        let profiles = self.store.policy.needs_profiles();
        let rows = load::rows(tx, &ids, &keys, profiles).await?;
        let late = rows.iter().filter_map(|row| row.claim.as_ref()).map(|claim| &claim.key);
        let late: Vec<_> = late.filter(|key| !keys.contains(*key)).cloned().collect();
        if !late.is_empty() {
            // A lock taken now would be out of order.
            self.seen.extend(late);
            return Err(errors::raced("a user's address changed while the batch was waiting for its turn"));
        }
        self.deadline.holds()?;
        // Read after the locks, so that what a batch in front of this one has done counts.
        let (known, former) = load::remembered(tx, &batch::message_ids(batch), &ids).await?;
        let fresh = Fresh::of(batch, &known);
        let folded = users::fold(&self.store.policy, Loaded { rows, former }, &fresh.events());
        let outcomes = fresh.outcomes(&folded.outcomes)?;
        save::all(tx, &self.deadline, self.store.default_credits, &fresh, &folded).await?;
        self.deadline.holds()?;
        // After the inbox, so that letters which were captured while this batch waited for a place in it are seen.
        let mut users = settle::applied(tx, &batch::effective(batch, &outcomes)).await?;
        if self.store.policy.on_delete == OnDelete::Erase {
            users.extend(batch::deleted_ids(batch).into_iter().map(str::to_owned));
            settle::erase(tx, &users).await?;
        }
        Ok(outcomes)
    }

    /// Waits for this batch's turn. Returns the keys whose claimants cannot change any more.
    async fn lock(
        &self,
        tx: &mut Tx,
        batch: &[Incoming],
        ids: &[&str],
    ) -> Result<BTreeSet<String>, StoreError> {
        let peeked: Vec<(String, Option<String>)> =
            sqlx::query_as("SELECT clerk_id, email_key FROM users WHERE clerk_id = ANY($1)")
                .bind(ids)
                .fetch_all(&mut *tx)
                .await?;
        let mut rowless: BTreeSet<&str> = ids.iter().copied().collect();
        let mut keys: BTreeSet<String> = self.seen.clone();
        keys.extend(batch::claim_keys(batch).into_iter().map(str::to_owned));
        for (id, key) in &peeked {
            rowless.remove(id.as_str());
            keys.extend(key.clone());
        }
        let schema = self.store.connections.schema();
        let locks: Vec<i64> = keys
            .iter()
            .map(|key| lock_id(schema, "address", key))
            .chain(rowless.iter().map(|id| lock_id(schema, "clerk id", id)))
            .collect();
        // The sort is in a subquery, so that the locks are taken in its order.
        self.deadline.holds()?;
        sqlx::query("SELECT pg_advisory_xact_lock(k) FROM (SELECT DISTINCT k FROM unnest($1::bigint[]) AS k ORDER BY k) AS s")
            .bind(&locks)
            .execute(&mut *tx)
            .await?;
        Ok(keys)
    }
}

/// A number for an advisory lock, which are one space per database: the same in every process and version, and with
/// 64 bits of a hash as good as unique.
pub(super) fn lock_id(schema: &str, kind: &str, name: &str) -> i64 {
    let digest = hmac_sha256::Hash::hash(format!("headcount\0{schema}\0{kind}\0{name}").as_bytes());
    let [a, b, c, d, e, f, g, h, ..] = digest;
    i64::from_be_bytes([a, b, c, d, e, f, g, h])
}
