//! Owns where a user's tier comes from: what people granted, and what follows as time goes by. The items themselves are
//! `subscriptions`'s; each statement stands here once for both databases.

use async_trait::async_trait;
use serde::Serialize;
use uuid::Uuid;

use super::{
    StoreError,
    columns::{At, Id, Told, from_row},
    filter::{Dialect as _, Value},
    letters::Actor,
    plain::actor,
    questions::{Planned, Reading},
    subscriptions::{load, set_tiers},
    sync::tables::{Changing, Words, Works, ask, change},
    times::{rfc3339, time_in_range},
};
use crate::{
    rules::subscriptions::{
        Row,
        tiers::{FREE, Tiers},
    },
    time::Millis,
};

/// The most past grants that are told of a user.
const GRANTS_MAX: i64 = 100;

/// What decides `users.subscription_tier`.
#[async_trait]
pub trait UserTiers: Send + Sync {
    /// Grants a tier to this row of `users`, in the place of what was granted before. The same grant once more changes nothing. `None`:
    /// there is no such row.
    async fn grant(
        &self,
        user: Uuid,
        tier: &str,
        until: Option<Millis>,
        by: &Actor,
    ) -> Result<Option<TierReport>, StoreError>;

    /// Ends the grant of this row of `users`: its tier follows from its subscription, or is `free` where `HEADCOUNT_BILLING` is off.
    /// Does nothing where there is none. Answers whether there was one. `None`: there is no such row.
    async fn revoke(&self, user: Uuid, by: &Actor) -> Result<Option<(TierReport, bool)>, StoreError>;

    /// Where the tier of this row of `users` comes from.
    async fn tier(&self, user: Uuid) -> Result<Option<TierReport>, StoreError>;

    /// Up to `limit` accounts whose tiers may have changed by the passing of time, some of them maybe twice.
    async fn lapsed(&self, limit: u32) -> Result<Vec<String>, StoreError>;

    /// Up to `limit` accounts that pay for items, in their order, from the one after `after`.
    async fn payers(&self, after: Option<&str>, limit: u32) -> Result<Vec<String>, StoreError>;

    /// Up to `limit` users, in the order of their Clerk ids, from the one after `after`, who pay for an item that is not over and that
    /// a run has not seen. Items of plans that cost nothing do not count.
    async fn unlisted_payers(
        &self,
        run: Uuid,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>, StoreError>;

    /// Has the tiers of these accounts follow from grants and items as they stand now. Answers how many changed.
    async fn settle_tiers(&self, clerk_ids: &[String]) -> Result<u64, StoreError>;

    /// The items of these ids, and those that these accounts pay for.
    async fn items(&self, ids: &[String], payers: &[String]) -> Result<Vec<Row>, StoreError>;
}

/// Where a user's tier comes from.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct TierReport {
    /// `users.subscription_tier`
    pub tier: String,
    /// What decides it.
    pub from: TierFrom,
    /// The grant that is in force.
    pub grant: Option<Grant>,
    /// The item that grants access, where one does. A grant outranks it.
    pub item: Option<String>,
    /// What the account pays for, or did.
    pub items: Vec<Item>,
    /// Earlier grants, the newest first.
    pub past_grants: Vec<Grant>,
}

/// What decides a user's tier.
#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum TierFrom {
    /// People granted it.
    Grant,
    /// The best of the account's items.
    Subscription,
    /// Nothing: no grant, and no item that grants access.
    Nothing,
    /// The application wrote it.
    Application,
}

/// A tier that people granted. Times are RFC 3339 in UTC.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Grant {
    /// The tier.
    pub tier: String,
    /// `None`: for good.
    pub until: Option<String>,
    /// Why.
    pub note: Option<String>,
    /// Who granted it.
    pub granted_by: String,
    /// When.
    pub granted_at: String,
    /// When it was revoked, replaced or over.
    pub ended_at: Option<String>,
    /// Who ended it.
    pub ended_by: Option<String>,
    /// Why.
    pub ended_note: Option<String>,
}

from_row!(Grant {
    tier: String,
    until: Option<Told>,
    note: Option<String>,
    granted_by: String,
    granted_at: Told,
    ended_at: Option<Told>,
    ended_by: Option<String>,
    ended_note: Option<String>,
});

/// What an account pays for. Times are RFC 3339 in UTC.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[allow(missing_docs)] // Each field is the column of its name.
pub struct Item {
    pub id: String,
    pub subscription_id: Option<String>,
    pub plan_slug: Option<String>,
    pub status: &'static str,
    pub amount: Option<i64>,
    pub currency: Option<String>,
    pub period: Option<String>,
    pub period_start: Option<String>,
    pub period_end: Option<String>,
    pub canceled_at: Option<String>,
    /// Clerk's time of the newest mention, in milliseconds.
    pub version: Millis,
}

impl Item {
    fn of(row: &Row) -> Self {
        let text = |at: Option<Millis>| at.map(|at| rfc3339(time_in_range(at)));
        let plan = row.plan.as_ref();
        Self {
            id: row.id.clone(),
            subscription_id: row.subscription_id.clone(),
            plan_slug: plan.map(|plan| plan.slug.clone()),
            status: row.status.as_str(),
            amount: plan.and_then(|plan| plan.amount),
            currency: plan.and_then(|plan| plan.currency.clone()),
            period: row.period.clone(),
            period_start: text(row.period_start),
            period_end: text(row.period_end),
            canceled_at: text(row.canceled_at),
            version: row.version.at,
        }
    }
}

/// What ends a grant by itself.
const OVER: &str = "its time";

#[async_trait]
impl<S: Works> UserTiers for S {
    async fn grant(
        &self,
        user: Uuid,
        tier: &str,
        until: Option<Millis>,
        by: &Actor,
    ) -> Result<Option<TierReport>, StoreError> {
        let tiers = self.terms().billing.clone();
        let (name, note) = actor(by);
        let same = format!(
            "SELECT id FROM tier_grants WHERE user_id = $1 AND ended_at IS NULL AND tier = $2 \
             AND coalesce(until = $3, until IS NULL AND CAST($3 AS {}) IS NULL)",
            S::Db::TIME
        );
        let insert = format!(
            "INSERT INTO tier_grants (id, user_id, tier, until, note, granted_by, granted_at) \
             VALUES ($1, $2, $3, $4, $5, $6, {})",
            S::Db::NOW
        );
        change!(self, |tx| {
            let Some(clerk_id) = hold(tx, user).await? else { return Ok(None) };
            let values = [Value::Id(Some(user)), Value::Text(tier), Value::TimeOrNull(until)];
            let same: Vec<(Id,)> = tx.rows(S::Db::whole(same.as_str(), values)?, Planned::Once).await?;
            if same.is_empty() {
                end(tx, user, by).await?;
                let values = [
                    Value::Id(Some(Uuid::now_v7())),
                    Value::Id(Some(user)),
                    Value::Text(tier),
                    Value::TimeOrNull(until),
                    Value::TextOrNull(note.as_deref()),
                    Value::Text(&name),
                ];
                tx.run(S::Db::whole(insert.as_str(), values)?).await?;
                follow(tx, tiers.as_deref(), std::slice::from_ref(&clerk_id)).await?;
            }
            report(tx, tiers.as_deref(), user).await?
        })
    }

    async fn revoke(&self, user: Uuid, by: &Actor) -> Result<Option<(TierReport, bool)>, StoreError> {
        let tiers = self.terms().billing.clone();
        let due = format!("UPDATE subscription_items SET lapses_at = {} WHERE clerk_id = $1", S::Db::NOW);
        change!(self, |tx| {
            let Some(clerk_id) = hold(tx, user).await? else { return Ok(None) };
            let had = end(tx, user, by).await? > 0;
            if had {
                follow(tx, tiers.as_deref(), std::slice::from_ref(&clerk_id)).await?;
            }
            if had && tiers.is_none() {
                // Workers may let tiers follow subscriptions though this process does not: then they do so within a minute.
                tx.run(S::Db::whole(due.as_str(), [Value::Text(&clerk_id)])?).await?;
            }
            report(tx, tiers.as_deref(), user).await?.map(|report| (report, had))
        })
    }

    async fn tier(&self, user: Uuid) -> Result<Option<TierReport>, StoreError> {
        let mut snapshot = self.snapshot().await?;
        let report = report(&mut snapshot, self.terms().billing.as_deref(), user).await?;
        snapshot.end().await?;
        Ok(report)
    }

    async fn lapsed(&self, limit: u32) -> Result<Vec<String>, StoreError> {
        let now = S::Db::NOW;
        let question = format!(
            "SELECT clerk_id FROM (SELECT clerk_id FROM subscription_items \
             WHERE lapses_at IS NOT NULL AND lapses_at <= {now} ORDER BY lapses_at LIMIT {limit}) AS i \
             UNION ALL SELECT clerk_id FROM (SELECT u.clerk_id FROM tier_grants AS g JOIN users AS u ON u.id = g.user_id \
             WHERE g.ended_at IS NULL AND g.until IS NOT NULL AND g.until <= {now} ORDER BY g.until LIMIT {limit}) AS o"
        );
        let ids: Vec<(String,)> = ask(self, S::Db::whole(question, [])?, Planned::Once).await?;
        Ok(ids.into_iter().map(|(id,)| id).collect())
    }

    async fn payers(&self, after: Option<&str>, limit: u32) -> Result<Vec<String>, StoreError> {
        let question = format!(
            "SELECT DISTINCT clerk_id FROM subscription_items WHERE clerk_id > $1 ORDER BY clerk_id LIMIT {limit}"
        );
        let question = S::Db::whole(question, [Value::Text(after.unwrap_or_default())])?;
        let ids: Vec<(String,)> = ask(self, question, Planned::Once).await?;
        Ok(ids.into_iter().map(|(id,)| id).collect())
    }

    async fn unlisted_payers(
        &self,
        run: Uuid,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>, StoreError> {
        let question = format!(
            "SELECT DISTINCT i.clerk_id FROM subscription_items AS i WHERE i.clerk_id > $1 AND i.clerk_id NOT LIKE 'org~_%' ESCAPE '~' \
             AND i.status IN ('active', 'past_due', 'canceled', 'upcoming') AND NOT i.is_default AND coalesce(i.amount, 1) <> 0 \
             AND NOT EXISTS (SELECT 1 FROM sync_ids AS s WHERE s.run = $2 AND s.clerk_id = i.id) \
             ORDER BY i.clerk_id LIMIT {limit}"
        );
        let values = [Value::Text(after.unwrap_or_default()), Value::Id(Some(run))];
        let ids: Vec<(String,)> = ask(self, S::Db::whole(question, values)?, Planned::Once).await?;
        Ok(ids.into_iter().map(|(id,)| id).collect())
    }

    async fn settle_tiers(&self, clerk_ids: &[String]) -> Result<u64, StoreError> {
        let (now, tiers) = (S::Db::NOW, self.terms().billing.clone());
        let held = format!(
            "SELECT u.id FROM users AS u WHERE {} ORDER BY u.id{}",
            S::Db::among("u.clerk_id", 1),
            S::Db::held("u")
        );
        let over = format!(
            "UPDATE tier_grants SET ended_at = {now}, ended_by = $2 WHERE ended_at IS NULL AND until <= {now} \
             AND user_id IN (SELECT id FROM users WHERE {})",
            S::Db::among("clerk_id", 1)
        );
        let lapsed = format!(
            "UPDATE subscription_items SET lapses_at = NULL WHERE lapses_at <= {now} AND {}",
            S::Db::among("clerk_id", 1)
        );
        change!(self, |tx| {
            let ids = || [Value::Texts(clerk_ids)];
            let _: Vec<(Id,)> = tx.rows(S::Db::whole(held.as_str(), ids())?, Planned::Once).await?;
            let over = S::Db::whole(over.as_str(), [Value::Texts(clerk_ids), Value::Text(OVER)])?;
            let ended = tx.run(over).await?;
            tx.run(S::Db::whole(lapsed.as_str(), ids())?).await?;
            match (&tiers, ended) {
                // Without billing a tier that no grant gave is the application's.
                (None, 0) => 0,
                _ => follow(tx, tiers.as_deref(), clerk_ids).await?,
            }
        })
    }

    async fn items(&self, ids: &[String], payers: &[String]) -> Result<Vec<Row>, StoreError> {
        let mut snapshot = self.snapshot().await?;
        let rows = load(&mut snapshot, ids, payers).await?;
        snapshot.end().await?;
        Ok(rows)
    }
}

/// Erases what people wrote about grants to those of these accounts whose rows are erased.
pub(super) async fn erase_notes<T: Changing<Db: Words>>(
    tx: &mut T,
    clerk_ids: &[&str],
) -> Result<(), StoreError> {
    let clerk_ids: Vec<String> = clerk_ids.iter().map(|id| (*id).to_owned()).collect();
    let statement = format!(
        "UPDATE tier_grants SET note = NULL, ended_note = NULL WHERE (note IS NOT NULL OR ended_note IS NOT NULL) \
         AND user_id IN (SELECT id FROM users WHERE erased AND {})",
        T::Db::among("clerk_id", 1)
    );
    tx.run(T::Db::whole(statement, [Value::Texts(&clerk_ids)])?).await?;
    Ok(())
}

/// Holds the row until the transaction ends. Answers its account.
async fn hold<T: Changing<Db: Words>>(tx: &mut T, user: Uuid) -> Result<Option<String>, StoreError> {
    let question = format!("SELECT u.clerk_id FROM users AS u WHERE u.id = $1{}", T::Db::held("u"));
    let question = T::Db::whole(question, [Value::Id(Some(user))])?;
    let rows: Vec<(String,)> = tx.rows(question, Planned::Once).await?;
    Ok(rows.into_iter().next().map(|(clerk_id,)| clerk_id))
}

/// Ends what is granted to a row. Answers how many grants that was.
async fn end<T: Changing<Db: Words>>(tx: &mut T, user: Uuid, by: &Actor) -> Result<u64, StoreError> {
    let (name, note) = actor(by);
    let statement = format!(
        "UPDATE tier_grants SET ended_at = {}, ended_by = $2, ended_note = $3 WHERE user_id = $1 AND ended_at IS NULL",
        T::Db::NOW
    );
    let values = [Value::Id(Some(user)), Value::Text(&name), Value::TextOrNull(note.as_deref())];
    tx.run(T::Db::whole(statement, values)?).await
}

async fn follow<T: Changing<Db: Words>>(
    tx: &mut T,
    tiers: Option<&Tiers>,
    clerk_ids: &[String],
) -> Result<u64, StoreError> {
    let items = if tiers.is_some() { load(tx, &[], clerk_ids).await? } else { Vec::new() };
    set_tiers(tx, tiers, clerk_ids, &items).await
}

async fn report<R: Reading<Db: Words>>(
    reading: &mut R,
    tiers: Option<&Tiers>,
    user: Uuid,
) -> Result<Option<TierReport>, StoreError> {
    let question =
        format!("SELECT clerk_id, subscription_tier, {} AS now FROM users WHERE id = $1", R::Db::NOW);
    let question = R::Db::whole(question, [Value::Id(Some(user))])?;
    let rows: Vec<(String, String, At)> = reading.rows(question, Planned::Once).await?;
    let Some((clerk_id, tier, At(now))) = rows.into_iter().next() else { return Ok(None) };
    let question = "SELECT tier, until, note, granted_by, granted_at, ended_at, ended_by, ended_note FROM tier_grants \
         WHERE user_id = $1 ORDER BY granted_at DESC, id DESC LIMIT $2";
    let question = R::Db::whole(question, [Value::Id(Some(user)), Value::Number(GRANTS_MAX)])?;
    let grants: Vec<Grant> = reading.rows(question, Planned::Once).await?;
    let (current, past_grants): (Vec<Grant>, Vec<Grant>) =
        grants.into_iter().partition(|grant| grant.ended_at.is_none());
    let grant = current.into_iter().next();
    let rows = load(reading, &[], &[clerk_id]).await?;
    let best = tiers.and_then(|tiers| tiers.best(&rows, now));
    let from = match (&grant, &best) {
        (Some(grant), _) if grant.tier == tier => TierFrom::Grant,
        (None, Some((_, best))) if *best == tier => TierFrom::Subscription,
        (None, None) if tiers.is_some() && tier == FREE => TierFrom::Nothing,
        _ => TierFrom::Application,
    };
    Ok(Some(TierReport {
        tier,
        from,
        grant,
        item: best.map(|(row, _)| row.id.clone()),
        items: rows.iter().map(Item::of).collect(),
        past_grants,
    }))
}
