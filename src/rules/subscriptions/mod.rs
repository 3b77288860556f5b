//! Owns the rules that fold billing events into subscription items: pure code, no I/O, no clock, no SQL. [`tiers`] says which
//! tier of the application's they give.
//!
//! Promises that whatever the order, duplication and split of the events, the items come out the same: each stands as its newest
//! mention says.

use std::collections::BTreeMap;

use super::{Outcome, Version};
use crate::time::Millis;

pub mod tiers;

/// Where an item stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// Paid for, on trial, or free.
    Active,
    /// The last payment failed.
    PastDue,
    /// It runs until its period ends, and is not renewed.
    Canceled,
    /// It begins when another one ends.
    Upcoming,
    /// Its first payment is not made.
    Incomplete,
    /// Its first payment was given up.
    Abandoned,
    /// It is over.
    Ended,
    /// It is over: a trial, or a checkout, ran out.
    Expired,
}

impl Status {
    /// Each status.
    pub const ALL: [Self; 8] = [
        Self::Active,
        Self::PastDue,
        Self::Canceled,
        Self::Upcoming,
        Self::Incomplete,
        Self::Abandoned,
        Self::Ended,
        Self::Expired,
    ];

    /// Clerk's name of it: in events, in the table and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::PastDue => "past_due",
            Self::Canceled => "canceled",
            Self::Upcoming => "upcoming",
            Self::Incomplete => "incomplete",
            Self::Abandoned => "abandoned",
            Self::Ended => "ended",
            Self::Expired => "expired",
        }
    }

    /// It grants nothing any more, and never will again by itself.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Ended | Self::Expired | Self::Abandoned)
    }
}

/// What is paid for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What people call it in settings and code.
    pub slug: String,
    /// Per month, in the smallest unit of the currency.
    pub amount: Option<i64>,
    /// Such as `USD`.
    pub currency: Option<String>,
}

/// What an event says of one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mention {
    /// `csubi_…`
    pub id: String,
    /// `csub_…`, where it is told.
    pub subscription_id: Option<String>,
    /// Where this stands among the item's news.
    pub version: Version,
    /// What it is from then on.
    pub status: Status,
    /// Clerk leaves it out at times.
    pub plan: Option<Plan>,
    /// The plan is the one that everybody is on who pays for none, or is not. Webhooks do not tell.
    pub is_default: Option<bool>,
    /// `month` or `annual`.
    pub period: Option<String>,
    /// When the period began, or will.
    pub period_start: Option<Millis>,
    /// When it ends; `None`: never by itself.
    pub period_end: Option<Millis>,
    /// When it was canceled.
    pub canceled_at: Option<Millis>,
}

/// What an event, or a reading of Clerk's API, says of a payer's items. Items that it does not mention stay as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// The Clerk id of the user or organization that pays.
    pub payer: String,
    /// Clerk's time of it.
    pub at: Millis,
    /// In any order.
    pub items: Vec<Mention>,
    /// Items as they were known before the API was asked, and that its whole answer does not mention: they have ended, unless
    /// something newer is known of them.
    pub unmentioned: Vec<(String, Version)>,
}

/// One row of `subscription_items`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// `csubi_…`
    pub id: String,
    /// `csub_…`
    pub subscription_id: Option<String>,
    /// The Clerk id of the user or organization that pays.
    pub clerk_id: String,
    /// Of the newest mention, which says all that follows up to `canceled_at`.
    pub version: Version,
    /// Where it stands.
    pub status: Status,
    /// `month` or `annual`.
    pub period: Option<String>,
    /// When the period began, or will.
    pub period_start: Option<Millis>,
    /// When it ends.
    pub period_end: Option<Millis>,
    /// When it was canceled.
    pub canceled_at: Option<Millis>,
    /// Of the newest mention that tells a plan.
    pub plan: Option<Plan>,
    /// That mention's.
    pub plan_version: Option<Version>,
    /// The plan is the one that everybody is on who pays for none, as far as that was told.
    pub is_default: bool,
    /// When that was told last.
    pub default_told_at: Option<Millis>,
}

/// The items to be written, and one outcome per piece of news.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folded {
    /// Those that differ from what was loaded, by id.
    pub changed: Vec<Row>,
    /// All, by id, as they are from now on.
    pub rows: Vec<Row>,
    /// In the order of the news.
    pub outcomes: Vec<Outcome>,
}

/// Folds news into items. `loaded` are those that the news mentions, and may be more.
pub fn fold(loaded: Vec<Row>, news: &[&News]) -> Folded {
    let before: BTreeMap<String, Row> = loaded.into_iter().map(|row| (row.id.clone(), row)).collect();
    let mut after = before.clone();
    let outcomes = news.iter().map(|news| take(&mut after, news)).collect();
    let rows: Vec<Row> = after.into_values().collect();
    let changed = rows.iter().filter(|row| before.get(&row.id) != Some(*row)).cloned().collect();
    Folded { changed, rows, outcomes }
}

fn take(rows: &mut BTreeMap<String, Row>, news: &News) -> Outcome {
    let mut outcome = Outcome::Stale;
    for mention in &news.items {
        match rows.get_mut(&mention.id) {
            None => {
                rows.insert(mention.id.clone(), begun(&news.payer, mention));
                outcome = Outcome::Created;
            }
            Some(row) => {
                let before = told(row);
                tell(row, &news.payer, mention);
                if outcome == Outcome::Stale && told(row) != before {
                    outcome = Outcome::Updated;
                }
            }
        }
    }
    for (id, version) in &news.unmentioned {
        let known = rows.get_mut(id).filter(|row| row.version <= *version && !row.status.is_over());
        if let Some(row) = known {
            row.status = Status::Ended;
            outcome = outcome.min(Outcome::Updated);
        }
    }
    outcome
}

/// The row but for what only orders news.
fn told(row: &Row) -> Row {
    Row { version: Version::default(), plan_version: None, default_told_at: None, ..row.clone() }
}

fn begun(payer: &str, mention: &Mention) -> Row {
    Row {
        id: mention.id.clone(),
        subscription_id: mention.subscription_id.clone(),
        clerk_id: payer.to_owned(),
        version: mention.version.clone(),
        status: mention.status,
        period: mention.period.clone(),
        period_start: mention.period_start,
        period_end: mention.period_end,
        canceled_at: mention.canceled_at,
        plan: mention.plan.clone(),
        plan_version: mention.plan.is_some().then(|| mention.version.clone()),
        is_default: mention.is_default.unwrap_or_default(),
        default_told_at: mention.is_default.map(|_| mention.version.sent),
    }
}

fn tell(row: &mut Row, payer: &str, mention: &Mention) {
    // An item is of one subscription; which is not told each time.
    row.subscription_id = row.subscription_id.take().max(mention.subscription_id.clone());
    // People can make another plan the default, which changes no item: the time of telling decides.
    if let Some(is_default) = mention.is_default {
        let (told_at, known) = (Some(mention.version.sent), (row.default_told_at, row.is_default));
        (row.default_told_at, row.is_default) = known.max((told_at, is_default));
    }
    if mention.version > row.version {
        row.version = mention.version.clone();
        payer.clone_into(&mut row.clerk_id);
        row.status = mention.status;
        row.period.clone_from(&mention.period);
        row.period_start = mention.period_start;
        row.period_end = mention.period_end;
        row.canceled_at = mention.canceled_at;
    }
    if mention.plan.is_some() && Some(&mention.version) > row.plan_version.as_ref() {
        row.plan.clone_from(&mention.plan);
        row.plan_version = Some(mention.version.clone());
    }
}
