//! Owns the projection of billing events into the table `subscription_items`, and from there into `users.subscription_tier`. The rules
//! are [`crate::rules::subscriptions`]'s; each statement stands here once for both databases.
//!
//! Promises that who writes an item or a tier holds its user's row or the lock of its account, so that a user's tier follows from
//! the user's grant and items as they were committed together.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Value as Json, json};
use uuid::Uuid;

use super::{
    StoreError,
    columns::{At, Id, ItemStatus, from_row},
    errors,
    filter::{Dialect as _, Value},
    questions::{Planned, Reading},
    sync::tables::{Changing, Kind, Words},
    times::{rfc3339, time_or_null},
};
use crate::{
    rules::{
        Outcome, Version,
        subscriptions::{
            self, News, Plan, Row, Status,
            tiers::{FREE, Tiers},
        },
        users,
    },
    time::Millis,
};

/// The columns, in the order in which they are written.
const COLUMNS: [(&str, Kind); 20] = [
    ("id", Kind::Text),
    ("subscription_id", Kind::Text),
    ("clerk_id", Kind::Text),
    ("status", Kind::Text),
    ("plan_slug", Kind::Text),
    ("amount", Kind::Number),
    ("currency", Kind::Text),
    ("is_default", Kind::Flag),
    ("default_told_at", Kind::Number),
    ("period", Kind::Text),
    ("period_start", Kind::Time),
    ("period_end", Kind::Time),
    ("canceled_at", Kind::Time),
    ("lapses_at", Kind::Time),
    ("version", Kind::Number),
    ("version_sent", Kind::Number),
    ("version_message_id", Kind::Text),
    ("plan_version", Kind::Number),
    ("plan_version_sent", Kind::Number),
    ("plan_version_message_id", Kind::Text),
];

/// What is loaded of an item.
const LOADED: &str = "id, subscription_id, clerk_id, status, plan_slug, amount, currency, is_default, default_told_at, period, period_start, \
     period_end, canceled_at, version, version_sent, version_message_id, plan_version, plan_version_sent, plan_version_message_id";

struct Loaded {
    id: String,
    subscription_id: Option<String>,
    clerk_id: String,
    status: Status,
    plan_slug: Option<String>,
    amount: Option<i64>,
    currency: Option<String>,
    is_default: bool,
    default_told_at: Option<i64>,
    period: Option<String>,
    period_start: Option<Millis>,
    period_end: Option<Millis>,
    canceled_at: Option<Millis>,
    version: i64,
    version_sent: i64,
    version_message_id: String,
    plan_version: Option<i64>,
    plan_version_sent: Option<i64>,
    plan_version_message_id: Option<String>,
}

from_row!(Loaded {
    id: String,
    subscription_id: Option<String>,
    clerk_id: String,
    status: ItemStatus,
    plan_slug: Option<String>,
    amount: Option<i64>,
    currency: Option<String>,
    is_default: bool,
    default_told_at: Option<i64>,
    period: Option<String>,
    period_start: Option<At>,
    period_end: Option<At>,
    canceled_at: Option<At>,
    version: i64,
    version_sent: i64,
    version_message_id: String,
    plan_version: Option<i64>,
    plan_version_sent: Option<i64>,
    plan_version_message_id: Option<String>,
});

fn row(loaded: Loaded) -> Row {
    let plan_version = loaded.plan_version.map(|at| Version {
        at,
        sent: loaded.plan_version_sent.unwrap_or_default(),
        message_id: loaded.plan_version_message_id.unwrap_or_default(),
    });
    let plan = loaded.plan_slug.map(|slug| Plan { slug, amount: loaded.amount, currency: loaded.currency });
    Row {
        id: loaded.id,
        subscription_id: loaded.subscription_id,
        clerk_id: loaded.clerk_id,
        version: Version {
            at: loaded.version,
            sent: loaded.version_sent,
            message_id: loaded.version_message_id,
        },
        status: loaded.status,
        period: loaded.period,
        period_start: loaded.period_start,
        period_end: loaded.period_end,
        canceled_at: loaded.canceled_at,
        plan,
        plan_version,
        is_default: loaded.is_default,
        default_told_at: loaded.default_told_at,
    }
}

fn object(row: &Row) -> Result<Json, StoreError> {
    let text = |at| Ok::<_, StoreError>(time_or_null(at)?.map(rfc3339));
    let (plan, plan_version) = (row.plan.as_ref(), row.plan_version.as_ref());
    // By itself only what is canceled ceases to grant access.
    let lapses_at = row.period_end.filter(|_| row.status == Status::Canceled);
    Ok(json!({
        "id": row.id,
        "subscription_id": row.subscription_id,
        "clerk_id": row.clerk_id,
        "status": row.status.as_str(),
        "plan_slug": plan.map(|plan| &plan.slug),
        "amount": plan.and_then(|plan| plan.amount),
        "currency": plan.and_then(|plan| plan.currency.as_ref()),
        "is_default": row.is_default,
        "default_told_at": row.default_told_at,
        "period": row.period,
        "period_start": text(row.period_start)?,
        "period_end": text(row.period_end)?,
        "canceled_at": text(row.canceled_at)?,
        "lapses_at": text(lapses_at)?,
        "version": row.version.at,
        "version_sent": row.version.sent,
        "version_message_id": row.version.message_id,
        "plan_version": plan_version.map(|version| version.at),
        "plan_version_sent": plan_version.map(|version| version.sent),
        "plan_version_message_id": plan_version.map(|version| &version.message_id),
    }))
}

/// The accounts that hold these rows, before a batch.
pub(super) fn holders(rows: &[users::Row]) -> HashMap<Uuid, String> {
    rows.iter().map(|row| (row.id, row.clerk_id.clone())).collect()
}

/// Folds and saves what a batch says of subscriptions, and lets the tiers follow, also of rows that are new or another account's than
/// before. `holders` is what [`holders()`] said before the batch.
pub(super) async fn apply<T: Changing<Db: Words>>(
    tx: &mut T,
    tiers: &Tiers,
    holders: &HashMap<Uuid, String>,
    users: &users::Folded,
    news: &[&News],
) -> Result<Vec<Outcome>, StoreError> {
    let rows = users.rows.iter().map(|changed| &changed.row);
    // Each with the account that had the row before, where one had.
    let moved = rows.map(|row| (&row.clerk_id, holders.get(&row.id)));
    let moved: Vec<(&String, Option<&String>)> =
        moved.filter(|(clerk_id, before)| *before != Some(*clerk_id)).collect();
    let accounts = moved.iter().flat_map(|(clerk_id, before)| [Some(*clerk_id), *before]).flatten();
    let payers: BTreeSet<&String> = accounts.chain(news.iter().map(|news| &news.payer)).collect();
    if payers.is_empty() {
        return Ok(Vec::new());
    }
    let mut payers: Vec<String> = payers.into_iter().cloned().collect();
    let named = news.iter().flat_map(|news| {
        news.items.iter().map(|item| &item.id).chain(news.unmentioned.iter().map(|(id, _)| id))
    });
    let named: Vec<String> = named.collect::<BTreeSet<_>>().into_iter().cloned().collect();
    let mut loaded = load(tx, &named, &payers).await?;
    let mut paying: BTreeSet<String> = loaded.iter().map(|row| row.clerk_id.clone()).collect();
    if paying.iter().any(|clerk_id| !payers.contains(clerk_id)) {
        // An item that is named has been another account's so far, whose tier follows from all that it pays for.
        payers.extend(paying.iter().cloned());
        loaded = load(tx, &named, &payers).await?;
    }
    let folded = subscriptions::fold(loaded, news);
    save(tx, &folded.changed).await?;
    paying.extend(news.iter().map(|news| news.payer.clone()));
    // What an account before has paid for gave the row its tier. Where nobody paid for anything, it is the application's.
    let inherited = moved.iter().filter(|(_, before)| before.is_some_and(|before| paying.contains(before)));
    let inherited: Vec<String> = inherited.map(|(clerk_id, _)| (*clerk_id).clone()).collect();
    paying.extend(inherited);
    let paying: Vec<String> = paying.into_iter().collect();
    set_tiers(tx, Some(tiers), &paying, &folded.rows).await?;
    Ok(folded.outcomes)
}

/// The items of these ids, and those that these accounts pay for.
pub(super) async fn load<R: Reading<Db: Words>>(
    reading: &mut R,
    ids: &[String],
    payers: &[String],
) -> Result<Vec<Row>, StoreError> {
    let question = format!(
        "SELECT {LOADED} FROM subscription_items WHERE {} OR {} ORDER BY id",
        R::Db::among("id", 1),
        R::Db::among("clerk_id", 2)
    );
    let question = R::Db::whole(question, [Value::Texts(ids), Value::Texts(payers)])?;
    let rows: Vec<Loaded> = reading.rows(question, Planned::Once).await?;
    Ok(rows.into_iter().map(row).collect())
}

async fn save<T: Changing<Db: Words>>(tx: &mut T, rows: &[Row]) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    errors::all_written("subscription_items", write(tx, rows).await?, rows.len())
}

async fn write<T: Changing<Db: Words>>(tx: &mut T, rows: &[Row]) -> Result<u64, StoreError> {
    let rows = rows.iter().map(object).collect::<Result<Vec<_>, StoreError>>()?;
    let rows = Json::Array(rows).to_string();
    tx.run(T::Db::whole(T::Db::upsert("subscription_items", &COLUMNS), [Value::Text(&rows)])?).await
}

/// A row of `users`, and the grant that it has.
struct Holder {
    id: Uuid,
    clerk_id: String,
    subscription_tier: String,
    tier: Option<String>,
    until: Option<Millis>,
    now: Millis,
}

from_row!(Holder {
    id: Id,
    clerk_id: String,
    subscription_tier: String,
    tier: Option<String>,
    until: Option<At>,
    now: At,
});

/// Rows of these accounts that are on another tier than follows from their grants and from `items`, which has all of theirs; each with the
/// tier that follows. Without `tiers` grants alone decide.
async fn owed<R: Reading<Db: Words>>(
    reading: &mut R,
    tiers: Option<&Tiers>,
    clerk_ids: &[String],
    items: &[Row],
) -> Result<Vec<(Holder, String)>, StoreError> {
    let question = format!(
        "SELECT u.id, u.clerk_id, u.subscription_tier, g.tier, g.until, {} AS now FROM users AS u \
         LEFT JOIN tier_grants AS g ON g.user_id = u.id AND g.ended_at IS NULL WHERE {} ORDER BY u.id",
        R::Db::CLOCK,
        R::Db::among("u.clerk_id", 1)
    );
    let question = R::Db::whole(question, [Value::Texts(clerk_ids)])?;
    let holders: Vec<Holder> = reading.rows(question, Planned::Once).await?;
    let mut owned: HashMap<&str, Vec<&Row>> = HashMap::new();
    items.iter().for_each(|item| owned.entry(&item.clerk_id).or_default().push(item));
    let owed = holders.into_iter().filter_map(|holder| {
        let granted = holder.tier.clone().filter(|_| holder.until.is_none_or(|until| holder.now < until));
        let tier = granted.unwrap_or_else(|| {
            let own = owned.get(holder.clerk_id.as_str()).into_iter().flatten().copied();
            let best = tiers.and_then(|tiers| tiers.best(own, holder.now));
            best.map_or_else(|| FREE.to_owned(), |(_, tier)| tier)
        });
        (tier != holder.subscription_tier).then_some((holder, tier))
    });
    Ok(owed.collect())
}

/// Those of these accounts, which pay for these items, whose rows are on another tier than follows.
pub(super) async fn strays<R: Reading<Db: Words>>(
    reading: &mut R,
    tiers: &Tiers,
    clerk_ids: &[String],
) -> Result<Vec<String>, StoreError> {
    let items = load(reading, &[], clerk_ids).await?;
    let owed = owed(reading, Some(tiers), clerk_ids, &items).await?;
    Ok(owed.into_iter().map(|(holder, _)| holder.clerk_id).collect())
}

/// Gives the rows of these accounts the tiers that follow, as [`owed`] says. Answers how many were on another one.
pub(super) async fn set_tiers<T: Changing<Db: Words>>(
    tx: &mut T,
    tiers: Option<&Tiers>,
    clerk_ids: &[String],
    items: &[Row],
) -> Result<u64, StoreError> {
    let owed = owed(tx, tiers, clerk_ids, items).await?;
    if owed.is_empty() {
        return Ok(0);
    }
    let changed: Vec<Json> =
        owed.into_iter().map(|(holder, tier)| json!({ "id": holder.id, "tier": tier })).collect();
    let written = write_tiers(tx, "", &changed).await?;
    errors::all_written("users", written, changed.len())?;
    Ok(written)
}

async fn write_tiers<T: Changing<Db: Words>>(
    tx: &mut T,
    before: &str,
    changed: &[Json],
) -> Result<u64, StoreError> {
    let statement = format!(
        "{before}UPDATE users SET subscription_tier = t.tier, updated_at = {} FROM {} WHERE users.id = t.id",
        T::Db::NOW,
        T::Db::records("t", 1, &[("id", Kind::Id), ("tier", Kind::Text)])
    );
    let changed = Json::Array(changed.to_vec()).to_string();
    tx.run(T::Db::whole(statement, [Value::Text(&changed)])?).await
}

/// Has the database check the statements above. Writes no row, and fires no trigger of the application's.
pub(super) async fn check<T: Changing<Db: Words>>(tx: &mut T) -> Result<(), StoreError> {
    load(tx, &[], &[]).await?;
    write(tx, &[]).await?;
    set_tiers(tx, None, &[], &[]).await?;
    write_tiers(tx, T::Db::CHECKED, &[]).await?;
    Ok(())
}
