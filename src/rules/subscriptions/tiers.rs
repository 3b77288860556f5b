//! Owns which tier of the application's a user is on: by a grant, else by the best item that grants access now. Pure.

use std::{cmp::Reverse, fmt};

use super::{Row, Status};
use crate::{terminal, time::Millis};

/// The tier of whoever pays for none.
pub const FREE: &str = "free";

/// Clerk's slug of the plan that everybody is on who pays for none, unless people renamed it.
const DEFAULT_SLUG: &str = "free_user";

/// The longest name of a tier or a plan, in bytes.
pub const NAME_MAX: usize = 255;

/// Whether an item whose payment failed grants access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PastDue {
    /// Until it ends.
    Keep,
    /// No.
    Drop,
}

impl PastDue {
    fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Drop => "drop",
        }
    }
}

/// How plans become tiers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiers {
    /// Slugs of plans with their tiers, the best first.
    ranked: Vec<(String, String)>,
    past_due: PastDue,
}

impl Tiers {
    /// Reads `HEADCOUNT_TIERS`: `pro_annual=premium_monthly,team`. A slug without a tier is its own.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence.
    pub fn parse(text: &str, past_due: PastDue) -> Result<Self, String> {
        let mut ranked: Vec<(String, String)> = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (slug, tier) = part.split_once('=').unwrap_or((part, part));
            let (slug, tier) = (slug.trim(), tier.trim());
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
            if slug.is_empty() || slug.len() > NAME_MAX || !slug.bytes().all(plain) {
                return Err(format!("{slug:?} is no slug of a plan: those have letters, digits, _ and -"));
            }
            is_name(tier)?;
            if ranked.iter().any(|(known, _)| known == slug) {
                return Err(format!("{slug:?} is there twice"));
            }
            ranked.push((slug.to_owned(), tier.to_owned()));
        }
        Ok(Self { ranked, past_due })
    }

    /// The best of these items that grant access at this time, with its tier.
    pub fn best<'r>(
        &self,
        items: impl IntoIterator<Item = &'r Row>,
        now: Millis,
    ) -> Option<(&'r Row, String)> {
        let granting = items.into_iter().filter(|row| self.grants(row, now));
        let ranked = granting.filter_map(|row| Some((self.rank(row)?, &row.id, row)));
        let (rank, _, row) = ranked.min_by(|(rank, id, _), (other, of, _)| (rank, id).cmp(&(other, of)))?;
        let tier = match rank {
            Rank::Listed(place) => &self.ranked[place].1,
            Rank::Own(_, _, slug) => slug,
            Rank::Free => FREE,
        };
        Some((row, tier.to_owned()))
    }

    fn grants(&self, row: &Row, now: Millis) -> bool {
        match row.status {
            // Trials too, and whenever the period ends: Clerk says when it is over.
            Status::Active => true,
            Status::Canceled => row.period_end.is_none_or(|end| now < end),
            Status::PastDue => self.past_due == PastDue::Keep,
            Status::Upcoming | Status::Incomplete | Status::Abandoned | Status::Ended | Status::Expired => {
                false
            }
        }
    }

    /// `None` for a plan that nobody has named yet.
    fn rank<'r>(&self, row: &'r Row) -> Option<Rank<'r>> {
        let plan = row.plan.as_ref();
        let listed = plan.and_then(|plan| self.ranked.iter().position(|(slug, _)| *slug == plan.slug));
        match (listed, plan) {
            // Whoever lists the default plan means it.
            (Some(place), _) if self.ranked[place].1 == FREE => Some(Rank::Free),
            (Some(place), _) => Some(Rank::Listed(place)),
            (None, _) if row.is_default => Some(Rank::Free),
            (None, Some(plan)) if plan.slug == DEFAULT_SLUG => Some(Rank::Free),
            (None, plan) => plan.map(|plan| {
                Rank::Own(Reverse(plan.amount.unwrap_or(0)), Reverse(row.period_start), &plan.slug)
            }),
        }
    }
}

impl fmt::Display for Tiers {
    /// All that decides, to notice that people changed it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "past due: {}", self.past_due.as_str())?;
        self.ranked.iter().try_for_each(|(slug, tier)| write!(f, ", {slug}={tier}"))
    }
}

/// From the best to the last.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Rank<'r> {
    /// By its place in the list.
    Listed(usize),
    /// By amount, the higher the better; by the begin of the period, the later the better; by slug.
    Own(Reverse<i64>, Reverse<Option<Millis>>, &'r str),
    Free,
}

/// Whether a text can name a tier.
///
/// # Errors
/// Why not, as the end of a sentence.
pub fn is_name(tier: &str) -> Result<(), String> {
    let shown = terminal::safe(tier) == tier;
    let plain = !tier.is_empty() && tier.trim() == tier && shown && !tier.contains([',', '=']);
    match plain {
        true if tier.len() <= NAME_MAX => Ok(()),
        true => Err(format!("a tier's name is longer than {NAME_MAX} bytes")),
        false => Err(format!("{tier:?} is no name of a tier")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{Version, subscriptions::Plan};

    const NOW: Millis = 1_000_000;

    /// `slug status [end] [amount] [start]`, of which the last ones may be missing.
    fn item(text: &str) -> Row {
        let mut words = text.split(' ');
        let mut next = || words.next().filter(|word| *word != "-");
        let slug = next();
        let status = next().unwrap();
        let number = |word: Option<&str>| word.map(|word| word.parse().unwrap());
        let (period_end, amount, period_start) = (number(next()), number(next()), number(next()));
        Row {
            id: format!("csubi_{}", text.replace(' ', "_")),
            subscription_id: None,
            clerk_id: "user_1".into(),
            version: Version::default(),
            status: Status::ALL.into_iter().find(|known| known.as_str() == status).unwrap(),
            period: None,
            period_start,
            period_end,
            canceled_at: None,
            plan: slug.map(|slug| Plan { slug: slug.trim_end_matches('!').into(), amount, currency: None }),
            plan_version: None,
            is_default: slug.is_some_and(|slug| slug.ends_with('!')),
            default_told_at: None,
        }
    }

    fn tier(tiers: &str, past_due: PastDue, items: &[&str]) -> Option<String> {
        let items: Vec<Row> = items.iter().map(|text| item(text)).collect();
        let best =
            |items: &[Row]| Tiers::parse(tiers, past_due).unwrap().best(items, NOW).map(|(_, tier)| tier);
        let reversed: Vec<Row> = items.iter().rev().cloned().collect();
        assert_eq!(best(&items), best(&reversed), "the order does not matter");
        best(&items)
    }

    #[test]
    fn the_tier_is_that_of_the_best_item_that_grants_access_now() {
        const LIST: &str = "pro_annual=premium, pro=premium,basic , free_plan=free";
        for (list, past_due, items, expected) in [
            ("", PastDue::Keep, &[][..], None),
            ("", PastDue::Keep, &["pro active"], Some("pro")),
            ("", PastDue::Keep, &["free_user active", "pro active"], Some("pro")),
            ("", PastDue::Keep, &["free_user active"], Some("free")),
            ("", PastDue::Keep, &["starter! active"], Some("free")),
            // A trial is active, and a period that is over ends nothing while Clerk says so.
            ("", PastDue::Keep, &["pro active 999999"], Some("pro")),
            ("", PastDue::Keep, &["pro canceled 1000001"], Some("pro")),
            ("", PastDue::Keep, &["pro canceled 1000000"], None),
            ("", PastDue::Keep, &["pro canceled"], Some("pro")),
            ("", PastDue::Keep, &["pro past_due"], Some("pro")),
            ("", PastDue::Drop, &["pro past_due", "free_user active"], Some("free")),
            (
                "",
                PastDue::Keep,
                &["pro upcoming", "team incomplete", "a abandoned", "b ended", "c expired"],
                None,
            ),
            (LIST, PastDue::Keep, &["pro active", "basic active"], Some("premium")),
            (LIST, PastDue::Keep, &["pro ended", "basic active", "team active - 99999"], Some("basic")),
            (LIST, PastDue::Keep, &["team active - 500", "golf active - 900"], Some("golf")),
            (LIST, PastDue::Keep, &["team active - 500 7", "golf active - 500 8"], Some("golf")),
            (LIST, PastDue::Keep, &["team active - 500 7", "golf active - 500"], Some("team")),
            (LIST, PastDue::Keep, &["team active - 500 7", "golf active - 500 7"], Some("golf")),
            // What is mapped to free is never better than what is not mapped.
            (LIST, PastDue::Keep, &["free_plan active - 0", "team active - 1"], Some("team")),
            (LIST, PastDue::Keep, &["free_plan active"], Some("free")),
            ("starter=basic", PastDue::Keep, &["starter! active"], Some("basic")),
            ("", PastDue::Keep, &["- active"], None),
        ] {
            assert_eq!(tier(list, past_due, items).as_deref(), expected, "{list:?} {items:?}");
        }
    }

    #[test]
    fn a_list_of_tiers_is_read_or_refused_with_a_reason() {
        let read = |text: &str| Tiers::parse(text, PastDue::Keep);
        assert_eq!(read(" a=b ,c, ").unwrap().to_string(), "past due: keep, a=b, c=c");
        assert_eq!(read("a=two words").unwrap().to_string(), "past due: keep, a=two words");
        for (text, problem) in [
            ("=premium", "\"\" is no slug of a plan: those have letters, digits, _ and -"),
            ("pro:premium", "\"pro:premium\" is no slug of a plan: those have letters, digits, _ and -"),
            ("pro;basic", "\"pro;basic\" is no slug of a plan: those have letters, digits, _ and -"),
            ("pro=\u{202e}x", "\"\\u{202e}x\" is no name of a tier"),
            ("pro=", "\"\" is no name of a tier"),
            ("pro=a=b", "\"a=b\" is no name of a tier"),
            ("two words=a", "\"two words\" is no slug of a plan: those have letters, digits, _ and -"),
            ("pro=a,pro=b", "\"pro\" is there twice"),
        ] {
            assert_eq!(read(text).unwrap_err(), problem);
        }
        assert!(read(&"x".repeat(NAME_MAX + 1)).is_err());
    }
}
