//! Owns what people may grant: reading it, finding the row that is meant, and saying in words where a tier comes from. The command
//! line and the operators' API ask alike.

use chrono::{DateTime, NaiveDate};
use uuid::Uuid;

use crate::{
    rules::subscriptions::tiers::is_name,
    store::{
        Store, StoreError,
        letters::Actor,
        tiers::{Grant, Item, TierFrom, TierReport},
    },
    time::{Millis, rfc3339},
};

/// The last moment of the year 9999, the latest that the databases hold.
const LATEST: Millis = 253_402_300_799_999;

/// What is to be granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    tier: String,
    until: Option<Millis>,
}

/// Why a tier was not granted or revoked.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// What was asked for cannot be read.
    #[error("{problem}")]
    Unreadable {
        /// What is wrong.
        problem: String,
        /// What to do.
        hint: &'static str,
    },
    /// Nobody is meant.
    #[error("no user is known by {0:?}")]
    Unknown(String),
    /// The address is not surely that account's.
    #[error("{address:?} is the address of {clerk_id}, {why}")]
    Unproved {
        /// As it was given.
        address: String,
        /// Who has it.
        clerk_id: String,
        /// Why it is not sure.
        why: &'static str,
    },
    /// The id was deleted before it was ever seen, so it has no row.
    #[error("{0} was deleted before it was ever seen, and has no row")]
    NoRow(String),
    /// The database does not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl GrantError {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreadable { hint, .. } => Some((*hint).to_owned()),
            Self::Unknown(_) => {
                Some("give our id, a Clerk id (also a former one) or an e-mail address".to_owned())
            }
            Self::Unproved { clerk_id, .. } => Some(format!("if that is who you mean, name it: {clerk_id}")),
            Self::NoRow(_) => None,
            Self::Store(error) => error.hint.clone(),
        }
    }
}

impl Wish {
    /// A tier, until a moment (RFC 3339), a day (its midnight in UTC), for a time from now on (`30d`), or for good.
    ///
    /// # Errors
    /// [`GrantError::Unreadable`]; also where the time is over by now.
    pub fn read(tier: &str, until: Option<&str>, now: Millis) -> Result<Self, GrantError> {
        let tier = tier.trim();
        is_name(tier).map_err(|problem| GrantError::Unreadable {
            problem,
            hint: "write the name of a tier, such as premium_lifetime",
        })?;
        let until = until.map(|text| read_until(text, now)).transpose()?;
        Ok(Self { tier: tier.to_owned(), until })
    }

    /// Grants it to the user who is meant.
    ///
    /// # Errors
    /// [`GrantError`].
    pub async fn grant(
        &self,
        store: &dyn Store,
        reference: &str,
        by: &Actor,
    ) -> Result<TierReport, GrantError> {
        let user = meant(store, reference).await?;
        let granted = store.grant(user, &self.tier, self.until, by).await?;
        granted.ok_or_else(|| GrantError::Unknown(reference.to_owned()))
    }
}

/// Ends what is granted to the user who is meant. Also answers whether there was something.
///
/// # Errors
/// [`GrantError`].
pub async fn revoke(
    store: &dyn Store,
    reference: &str,
    by: &Actor,
) -> Result<(TierReport, bool), GrantError> {
    let user = meant(store, reference).await?;
    store.revoke(user, by).await?.ok_or_else(|| GrantError::Unknown(reference.to_owned()))
}

async fn meant(store: &dyn Store, reference: &str) -> Result<Uuid, GrantError> {
    let found = store.user(reference).await?;
    let history = found.ok_or_else(|| GrantError::Unknown(reference.to_owned()))?;
    let user = history.user.ok_or_else(|| GrantError::NoRow(reference.to_owned()))?;
    // Whoever pays by address may mean somebody else than who claims it.
    let why = match (&user.deleted_at, user.email_verified) {
        (Some(_), _) => Some("which is deleted"),
        (None, false) => Some("which has not verified it"),
        (None, true) => None,
    };
    match why.filter(|_| reference.contains('@')) {
        Some(why) => {
            Err(GrantError::Unproved { address: reference.to_owned(), clerk_id: user.clerk_id, why })
        }
        None => Ok(user.id),
    }
}

fn read_until(text: &str, now: Millis) -> Result<Millis, GrantError> {
    let text = text.trim();
    let unreadable = |problem: String| GrantError::Unreadable {
        problem,
        hint: "write 2027-01-31T12:00:00Z, 2027-01-31, or for how long: 30d, 12h",
    };
    let moment = DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_millis());
    let midnight = || {
        let midnight = text.parse::<NaiveDate>().ok()?.and_hms_opt(0, 0, 0)?;
        Some(midnight.and_utc().timestamp_millis())
    };
    let later = || {
        let span = humantime::parse_duration(text).ok()?.as_millis();
        now.checked_add(Millis::try_from(span).ok()?)
    };
    let until = moment.or_else(midnight).or_else(later);
    let until = until.ok_or_else(|| unreadable(format!("{text:?} is no time")))?;
    if until <= now {
        return Err(unreadable(format!("{} is over by now", rfc3339(until.max(-LATEST)))));
    }
    if until > LATEST {
        return Err(unreadable(format!("{text:?} is after the year 9999: leave it out to grant for good")));
    }
    Ok(until)
}

impl TierReport {
    /// Where the tier comes from, in words after its name.
    pub fn why(&self) -> String {
        let item = self.item.as_ref().and_then(|id| self.items.iter().find(|item| item.id == *id));
        match (self.from, &self.grant, item) {
            (TierFrom::Grant, Some(grant), _) => grant.says(),
            (TierFrom::Subscription, _, Some(item)) => item.says(),
            (TierFrom::Nothing, ..) => "nothing is paid for or granted".to_owned(),
            _ => "the application's".to_owned(),
        }
    }
}

impl Grant {
    /// For people.
    pub fn says(&self) -> String {
        let Self { until, note, granted_by, granted_at, ended_at, ended_by, .. } = self;
        let until = until.as_ref().map_or_else(|| "for good".to_owned(), |until| format!("until {until}"));
        let mut text = format!("granted by {granted_by} at {granted_at}, {until}");
        if let Some(at) = ended_at {
            let by = ended_by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
            text.push_str(&format!(", ended at {at}{by}"));
        }
        if let Some(note) = note {
            text.push_str(&format!(": {note}"));
        }
        text
    }
}

impl Item {
    /// For people.
    pub fn says(&self) -> String {
        let plan = self.plan_slug.as_deref().unwrap_or("an unknown plan");
        let end = self.period_end.as_ref().map(|end| format!(", until {end}")).unwrap_or_default();
        format!("plan {plan}, {}{end}", self.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = 1_760_000_000_000; // 2025-10-09T08:53:20Z

    #[test]
    fn a_grant_ends_at_a_moment_a_day_or_after_a_time() {
        for (text, until) in [
            (None, None),
            (Some("2025-10-09T08:53:21Z"), Some(NOW + 1_000)),
            (Some("2025-10-10"), Some(NOW + 54_400_000)),
            (Some(" 30d "), Some(NOW + 2_592_000_000)),
        ] {
            assert_eq!(Wish::read("pro", text, NOW).unwrap().until, until, "{text:?}");
        }
        for text in ["", "soon", "2025-10-09", "2025-10-09T08:53:20Z", "0s", "-1d", "9000y", "10000-01-01"] {
            let error = Wish::read("pro", Some(text), NOW).unwrap_err();
            assert!(error.hint().is_some_and(|hint| hint.contains("30d")), "{text}: {error}");
        }
        for tier in ["", " ", "a,b", "a=b", "a\nb"] {
            assert!(Wish::read(tier, None, NOW).is_err(), "{tier:?}");
        }
    }
}
