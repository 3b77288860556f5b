//! Owns where a user's tier comes from: what people granted, and what follows as time goes by. The items themselves are
//! `subscriptions`'s; each statement stands here once for both databases.

use std::collections::BTreeSet;

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
    subscriptions::{load, set_tiers, strays},
    sync::tables::{Changing, Words, Works, ask, change},
    times::{rfc3339, time_in_range},
    unit::{Lock, Transaction as _},
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
    /// Grants a tier to this row of `users`, in the place of what was granted before. The same grant once more changes nothing, unless it
    /// has another note. `None`: there is no such row.
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

    /// Up to `limit` accounts whose tiers may have changed by the passing of time, but for these; some of them maybe twice. Without
    /// billing, of grants only.
    async fn lapsed(&self, except: &[String], limit: u32) -> Result<Vec<String>, StoreError>;

    /// Has the tiers of these accounts looked at again as if time had changed them.
    async fn look_again(&self, clerk_ids: &[String]) -> Result<(), StoreError>;

    /// Up to `limit` accounts that pay for items, in their order, from the one after `after`.
    async fn payers(&self, after: Option<&str>, limit: u32) -> Result<Vec<String>, StoreError>;

    /// One step through the items, at most `limit` of them from the one after `after`: which users pay for one that is not over and
    /// that a run has not seen. Items of plans that cost nothing do not count, nor do users who are deleted here.
    async fn unlisted_payers(
        &self,
        run: Uuid,
        after: Option<&(String, String)>,
        limit: u32,
    ) -> Result<Unlisted, StoreError>;

    /// Has the tiers of these accounts follow from grants and items as they stand now. Answers how many changed.
    async fn settle_tiers(&self, clerk_ids: &[String]) -> Result<u64, StoreError>;

    /// Those of these accounts, which pay for items, whose rows are on another tier than follows from grants and items. None without
    /// billing.
    async fn stray_tiers(&self, payers: &[String]) -> Result<Vec<String>, StoreError>;

    /// The items of these ids, and those that these accounts pay for.
    async fn items(&self, ids: &[String], payers: &[String]) -> Result<Vec<Row>, StoreError>;
}

/// One step of looking for users who pay for what a run did not see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unlisted {
    /// Where the next step goes on, payer and item; `None` at the end of the table.
    pub scanned_to: Option<(String, String)>,
    /// Who pays, each once in a step.
    pub payers: Vec<String>,
}

/// Where a user's tier comes from.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct TierReport {
    /// `users.id`
    pub user_id: Uuid,
    /// The account that has the row.
    pub clerk_id: String,
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
pub(super) const OVER: &str = "its time";

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
             AND coalesce(until = $3, until IS NULL AND CAST($3 AS {}) IS NULL) AND ($4 OR note = $5)",
            S::Db::TIME
        );
        let insert = format!(
            "INSERT INTO tier_grants (id, user_id, tier, until, note, granted_by, granted_at) \
             VALUES ($1, $2, $3, $4, $5, $6, {})",
            S::Db::CLOCK
        );
        change!(self, |tx| {
            let Some((clerk_id, erased)) = hold(tx, user).await? else { return Ok(None) };
            let note = note.as_deref().filter(|_| !erased);
            let values = [
                Value::Id(Some(user)),
                Value::Text(tier),
                Value::TimeOrNull(until),
                Value::Flag(note.is_none()),
                Value::TextOrNull(note),
            ];
            let same: Vec<(Id,)> = tx.rows(S::Db::whole(same.as_str(), values)?, Planned::Once).await?;
            if same.is_empty() {
                end(tx, user, &Actor { note: None, ..by.clone() }).await?;
                let values = [
                    Value::Id(Some(Uuid::now_v7())),
                    Value::Id(Some(user)),
                    Value::Text(tier),
                    Value::TimeOrNull(until),
                    Value::TextOrNull(note),
                    Value::Text(&name),
                ];
                tx.run(S::Db::whole(insert.as_str(), values)?).await?;
            }
            // Also where it stands already: the application may have written another tier.
            follow(tx, tiers.as_deref(), std::slice::from_ref(&clerk_id)).await?;
            report(tx, tiers.as_deref(), user).await?
        })
    }

    async fn revoke(&self, user: Uuid, by: &Actor) -> Result<Option<(TierReport, bool)>, StoreError> {
        let tiers = self.terms().billing.clone();
        let due = due_again::<S::Db>();
        change!(self, |tx| {
            let Some((clerk_id, erased)) = hold(tx, user).await? else { return Ok(None) };
            let by = Actor { note: by.note.clone().filter(|_| !erased), ..by.clone() };
            let had = end(tx, user, &by).await? > 0;
            if had {
                follow(tx, tiers.as_deref(), std::slice::from_ref(&clerk_id)).await?;
            }
            if had && tiers.is_none() {
                // Workers may let tiers follow subscriptions though this process does not: then they do so within a minute.
                let ids = [Value::Texts(std::slice::from_ref(&clerk_id))];
                tx.run(S::Db::whole(due.as_str(), ids)?).await?;
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

    async fn lapsed(&self, except: &[String], limit: u32) -> Result<Vec<String>, StoreError> {
        let (now, excepted) = (S::Db::CLOCK, S::Db::among("clerk_id", 1));
        let grants = format!(
            "SELECT clerk_id FROM (SELECT u.clerk_id FROM tier_grants AS g JOIN users AS u ON u.id = g.user_id \
             WHERE g.ended_at IS NULL AND g.until IS NOT NULL AND g.until <= {now} AND NOT {} \
             ORDER BY g.until LIMIT {limit}) AS o",
            S::Db::among("u.clerk_id", 1)
        );
        let question = match self.terms().billing {
            Some(_) => format!(
                "{grants} UNION ALL SELECT clerk_id FROM (SELECT clerk_id FROM subscription_items \
                 WHERE lapses_at IS NOT NULL AND lapses_at <= {now} AND NOT {excepted} ORDER BY lapses_at LIMIT {limit}) AS i"
            ),
            None => grants,
        };
        let question = S::Db::whole(question, [Value::Texts(except)])?;
        let ids: Vec<(String,)> = ask(self, question, Planned::Once).await?;
        Ok(ids.into_iter().map(|(id,)| id).collect())
    }

    async fn look_again(&self, clerk_ids: &[String]) -> Result<(), StoreError> {
        let statement = due_again::<S::Db>();
        change!(self, |tx| {
            tx.run(S::Db::whole(statement.as_str(), [Value::Texts(clerk_ids)])?).await?;
        })
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
        after: Option<&(String, String)>,
        limit: u32,
    ) -> Result<Unlisted, StoreError> {
        let question = format!(
            "SELECT i.clerk_id, i.id, i.status IN ('active', 'past_due', 'canceled', 'upcoming') AND NOT i.is_default \
             AND coalesce(i.amount, 1) <> 0 AND i.clerk_id NOT LIKE 'org~_%' ESCAPE '~' \
             AND NOT EXISTS (SELECT 1 FROM sync_ids AS s WHERE s.run = $3 AND s.clerk_id = i.id) \
             AND NOT EXISTS (SELECT 1 FROM former_clerk_ids AS f WHERE f.clerk_id = i.clerk_id) \
             AND NOT EXISTS (SELECT 1 FROM users AS u WHERE u.clerk_id = i.clerk_id AND u.deleted_at IS NOT NULL) \
             FROM (SELECT * FROM subscription_items WHERE (clerk_id, id) > ($1, $2) ORDER BY clerk_id, id LIMIT {limit}) AS i \
             ORDER BY i.clerk_id, i.id"
        );
        let (payer, item) = after.map_or(("", ""), |(payer, item)| (payer.as_str(), item.as_str()));
        let values = [Value::Text(payer), Value::Text(item), Value::Id(Some(run))];
        let rows: Vec<(String, String, bool)> =
            ask(self, S::Db::whole(question, values)?, Planned::Once).await?;
        let last = rows.last().filter(|_| rows.len() == limit as usize);
        let scanned_to = last.map(|(payer, item, _)| (payer.clone(), item.clone()));
        let mut payers: Vec<String> =
            rows.into_iter().filter_map(|(payer, _, wanted)| wanted.then_some(payer)).collect();
        payers.dedup();
        Ok(Unlisted { scanned_to, payers })
    }

    async fn settle_tiers(&self, clerk_ids: &[String]) -> Result<u64, StoreError> {
        let (now, tiers) = (S::Db::CLOCK, self.terms().billing.clone());
        let known = format!("SELECT u.clerk_id FROM users AS u WHERE {}", S::Db::among("u.clerk_id", 1));
        let held = format!("{known} ORDER BY u.id{}", S::Db::held("u"));
        let over = format!(
            "SELECT u.clerk_id FROM tier_grants AS g JOIN users AS u ON u.id = g.user_id \
             WHERE g.ended_at IS NULL AND g.until <= {now} AND {}",
            S::Db::among("u.clerk_id", 1)
        );
        let end = format!(
            "UPDATE tier_grants SET ended_at = {now}, ended_by = $2 WHERE ended_at IS NULL AND until <= {now} \
             AND user_id IN (SELECT id FROM users WHERE {})",
            S::Db::among("clerk_id", 1)
        );
        let lapsed = format!(
            "UPDATE subscription_items SET lapses_at = NULL WHERE lapses_at <= {now} AND {}",
            S::Db::among("clerk_id", 1)
        );
        change!(self, |tx| {
            // As a batch does it: an account without a row is locked, so that nobody makes the row meanwhile; then the rows.
            let ids = || [Value::Texts(clerk_ids)];
            let known: Vec<(String,)> = tx.rows(S::Db::whole(known.as_str(), ids())?, Planned::Once).await?;
            let known: BTreeSet<&str> = known.iter().map(|(clerk_id,)| clerk_id.as_str()).collect();
            let without_row = clerk_ids.iter().filter(|id| !known.contains(id.as_str()));
            let without_row: BTreeSet<Lock<'_>> = without_row.map(|id| Lock::Account(id)).collect();
            tx.lock(&without_row).await?;
            let _: Vec<(String,)> = tx.rows(S::Db::whole(held.as_str(), ids())?, Planned::Once).await?;
            let over: Vec<(String,)> = tx.rows(S::Db::whole(over.as_str(), ids())?, Planned::Once).await?;
            if !over.is_empty() {
                let values = [Value::Texts(clerk_ids), Value::Text(OVER)];
                tx.run(S::Db::whole(end.as_str(), values)?).await?;
            }
            if tiers.is_some() {
                tx.run(S::Db::whole(lapsed.as_str(), ids())?).await?;
                follow(tx, tiers.as_deref(), clerk_ids).await?
            } else {
                // A tier that no grant gave is the application's.
                let over: Vec<String> = over.into_iter().map(|(clerk_id,)| clerk_id).collect();
                follow(tx, None, &over).await?
            }
        })
    }

    async fn stray_tiers(&self, payers: &[String]) -> Result<Vec<String>, StoreError> {
        let Some(tiers) = self.terms().billing.clone() else { return Ok(Vec::new()) };
        let mut snapshot = self.snapshot().await?;
        let strays = strays(&mut snapshot, &tiers, payers).await?;
        snapshot.end().await?;
        Ok(strays)
    }

    async fn items(&self, ids: &[String], payers: &[String]) -> Result<Vec<Row>, StoreError> {
        let mut snapshot = self.snapshot().await?;
        let rows = load(&mut snapshot, ids, payers).await?;
        snapshot.end().await?;
        Ok(rows)
    }
}

/// Has the items of some accounts be due at once.
fn due_again<D: Words>() -> String {
    format!("UPDATE subscription_items SET lapses_at = {} WHERE {}", D::CLOCK, D::among("clerk_id", 1))
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

/// Holds the row until the transaction ends. Answers its account, and whether it is erased: then no note is kept.
async fn hold<T: Changing<Db: Words>>(tx: &mut T, user: Uuid) -> Result<Option<(String, bool)>, StoreError> {
    let question = format!("SELECT u.clerk_id, u.erased FROM users AS u WHERE u.id = $1{}", T::Db::held("u"));
    let question = T::Db::whole(question, [Value::Id(Some(user))])?;
    let rows: Vec<(String, bool)> = tx.rows(question, Planned::Once).await?;
    Ok(rows.into_iter().next())
}

/// Ends what is granted to a row. Answers how many grants that was.
async fn end<T: Changing<Db: Words>>(tx: &mut T, user: Uuid, by: &Actor) -> Result<u64, StoreError> {
    let (name, note) = actor(by);
    let statement = format!(
        "UPDATE tier_grants SET ended_at = {}, ended_by = $2, ended_note = $3 WHERE user_id = $1 AND ended_at IS NULL",
        T::Db::CLOCK
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
        format!("SELECT clerk_id, subscription_tier, {} AS now FROM users WHERE id = $1", R::Db::CLOCK);
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
    let rows = load(reading, &[], std::slice::from_ref(&clerk_id)).await?;
    let best = tiers.and_then(|tiers| tiers.best(&rows, now));
    let from = match (&grant, &best) {
        (Some(grant), _) if grant.tier == tier => TierFrom::Grant,
        (None, Some((_, best))) if *best == tier => TierFrom::Subscription,
        (None, None) if tiers.is_some() && tier == FREE => TierFrom::Nothing,
        _ => TierFrom::Application,
    };
    Ok(Some(TierReport {
        user_id: user,
        clerk_id,
        tier,
        from,
        grant,
        item: best.map(|(row, _)| row.id.clone()),
        items: rows.iter().map(Item::of).collect(),
        past_grants,
    }))
}
