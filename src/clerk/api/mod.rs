//! Owns asking Clerk's Backend API about users and what they pay for. Promises bounded answers, a rate below Clerk's quota, and that `None` and
//! absence from a list are Clerk's own word: what another server answers is an error. Never writes to Clerk, never logs the
//! key or a user.
//!
//! In a request's order: this file says what is asked, `request` asks it, `clock` learns Clerk's time from it, `answer` judges what came back, `snapshot` reads
//! the users in it, and `billing` asks for their subscriptions.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::watch;

use self::{
    answer::{Given, list, object},
    request::{Got, Requests},
};
pub use self::{
    billing::{ItemsPage, Reading},
    clock::{hint as clock_hint, is_wrong as is_clock_wrong, says as clock_says},
    error::{ApiError, Away},
    snapshot::{Snapshot, gone, keys},
};
use crate::{
    secret::Secret,
    time::{Millis, now},
};

mod request;
mod clock;
mod answer;
mod snapshot;
mod billing;
mod error;
#[cfg(test)]
mod tests;

/// The most users of one page, by Clerk's rules.
pub const PAGE_MAX: u16 = 500;

/// The longest answer that is read for a page, ...
const PAGE_BYTES: usize = 32 * 1024 * 1024;
/// ... for one user, ...
const USER_BYTES: usize = 2 * 1024 * 1024;
/// ... and for a fact, in bytes.
const FACT_BYTES: usize = 64 * 1024;

/// How Clerk's API is asked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `CLERK_SECRET_KEY`
    pub key: Secret,
    /// `CLERK_API_URL`, without `/v1`.
    pub url: String,
    /// Requests per second; `None`: half of Clerk's quota for a key of this kind.
    pub rate: Option<f64>,
    /// How long a request that fails for a passing reason is tried again. Zero: never.
    pub patience: Duration,
    /// `HEADCOUNT_KEEP_CLERK_OBJECT`: snapshots hold the whole object.
    pub keep_object: bool,
}

/// Asks Clerk's API. Cheap to clone; clones share the quota. Every call can be dropped at any point.
#[derive(Clone, Debug)]
pub struct Api(Arc<Requests>);

/// The Clerk instance that the key belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Instance {
    /// `ins_…`
    pub id: String,
    /// `production` or `development`.
    #[serde(rename = "environment_type")]
    pub environment: Option<String>,
}

/// In which order users are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The oldest accounts first.
    CreatedAt,
    /// The accounts that changed last first.
    NewestChange,
}

/// Which users are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsersQuery {
    /// Their order.
    pub order: Order,
    /// How many, 1 to [`PAGE_MAX`].
    pub limit: u16,
    /// Those after this Clerk id. Clerk takes it with [`Order::CreatedAt`] and without an offset only.
    pub after: Option<String>,
    /// How many are left out at the beginning.
    pub offset: u64,
    /// Those that were created after this time.
    pub created_after: Option<Millis>,
}

impl UsersQuery {
    /// Those who changed last, without so many of them.
    pub fn newest(limit: u16, offset: u64) -> Self {
        Self { order: Order::NewestChange, limit, after: None, offset, created_after: None }
    }
}

/// A part of the list.
#[derive(Clone, Debug)]
pub struct UsersPage {
    /// In the order that was asked for.
    pub users: Vec<Snapshot>,
    /// How many were asked for in the end: fewer than the query's limit where so many were too large for one answer. The
    /// list ends where a page has fewer users than this.
    pub limit: u16,
}

impl Api {
    /// Reads this machine's certificates; asks nothing yet.
    ///
    /// # Errors
    /// [`ApiError::Setup`].
    pub fn new(settings: &Settings) -> Result<Self, ApiError> {
        Requests::new(settings).map(|requests| Self(Arc::new(requests)))
    }

    /// The instance that the key belongs to.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn instance(&self) -> Result<Instance, ApiError> {
        let instance: Instance = self.fact(&["instance"], "an instance").await?;
        if !instance.id.starts_with("ins_") {
            return Err(self.strange("it names no instance"));
        }
        Ok(instance)
    }

    /// How many users there are.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn count(&self) -> Result<u64, ApiError> {
        #[derive(Deserialize)]
        struct Count {
            total_count: u64,
        }
        Ok(self.fact::<Count>(&["users", "count"], "a count of users").await?.total_count)
    }

    /// The user of an id. `None` only where Clerk itself said that there is none.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn user(&self, clerk_id: &str) -> Result<Option<Snapshot>, ApiError> {
        let Got { given, read_at } = self.0.get(&self.0.url(&["users", clerk_id], &[]), USER_BYTES).await?;
        let body = match given {
            Given::Nothing => return Ok(None),
            Given::TooLarge => return Err(self.too_large(USER_BYTES)),
            Given::Body(body) => body,
        };
        let strange = || self.strange("its answer is not the user that was asked for");
        let raw: &RawValue = serde_json::from_slice(&body).map_err(|_| strange())?;
        let snapshot = Snapshot::read(&body, raw, read_at, self.0.keep_object);
        if snapshot.clerk_id.as_deref() != Some(clerk_id) {
            return Err(strange());
        }
        Ok(Some(snapshot))
    }

    /// A page of users. Asks for half as many where they are too large for one answer.
    ///
    /// # Errors
    /// [`ApiError`]. A cursor that Clerk does not take is [`ApiError::Refused`].
    pub async fn users(&self, query: &UsersQuery) -> Result<UsersPage, ApiError> {
        let mut limit = query.limit.clamp(1, PAGE_MAX);
        loop {
            let order = match query.order {
                Order::CreatedAt => "created_at",
                Order::NewestChange => "-updated_at",
            };
            let mut pairs = vec![("order_by", order.to_owned()), ("limit", limit.to_string())];
            pairs.extend(query.after.clone().map(|id| ("starting_after", id)));
            pairs.extend((query.offset > 0).then(|| ("offset", query.offset.to_string())));
            pairs.extend(query.created_after.map(|time| ("created_at_after", time.to_string())));
            match self.list(&pairs).await? {
                Some(users) => return Ok(UsersPage { users, limit }),
                None if limit > 1 => limit /= 2,
                None => return Err(self.too_large(PAGE_BYTES)),
            }
        }
    }

    /// The users who have an address, verified or not, primary or not.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn users_by_address(&self, address: &str) -> Result<Vec<Snapshot>, ApiError> {
        // Clerk reads a sign in front of an address as "with" or "without".
        let signed = address.starts_with(['+', '-']);
        let address = if signed { format!("+{address}") } else { address.to_owned() };
        let pairs = [("email_address", address), ("limit", "100".to_owned())];
        self.list(&pairs).await?.ok_or_else(|| self.too_large(PAGE_BYTES))
    }

    /// Now, by Clerk's clock, in milliseconds since the Unix epoch. By this machine's where they are less than 5 s apart, or more
    /// than 10 minutes: then one of them is wrong.
    pub fn now(&self) -> Millis {
        self.0.clock.clerks(now())
    }

    /// How far Clerk's clock is ahead of ours, in milliseconds, to the second. `None` where Clerk never told, or where
    /// they are less than 5 s apart. For people, in the words of [`clock_says`]: times are [`now`](Self::now)'s.
    pub fn clock_offset(&self) -> Option<Millis> {
        self.0.clock.offset()
    }

    /// What holds requests up at present, in a sentence for people; `None` while nothing does.
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.0.trouble()
    }

    /// `None`: the answer was too large.
    async fn list(&self, query: &[(&str, String)]) -> Result<Option<Vec<Snapshot>>, ApiError> {
        let Got { given, read_at } = self.0.get(&self.0.url(&["users"], query), PAGE_BYTES).await?;
        match given {
            Given::Body(body) => {
                let users = list(&body, self.0.host())?;
                let read = |raw| Snapshot::read(&body, raw, read_at, self.0.keep_object);
                Ok(Some(users.into_iter().map(read).collect()))
            }
            Given::TooLarge => Ok(None),
            Given::Nothing => Err(self.nothing()),
        }
    }

    async fn fact<T: serde::de::DeserializeOwned>(&self, path: &[&str], what: &str) -> Result<T, ApiError> {
        match self.0.get(&self.0.url(path, &[]), FACT_BYTES).await?.given {
            Given::Body(body) => object(&body, self.0.host(), what),
            Given::TooLarge => Err(self.strange(&format!("its answer is not {what}"))),
            Given::Nothing => Err(self.nothing()),
        }
    }

    fn strange(&self, what: &str) -> ApiError {
        ApiError::NotClerk { host: self.0.host().to_owned(), what: what.to_owned() }
    }

    fn too_large(&self, most: usize) -> ApiError {
        ApiError::TooLarge { host: self.0.host().to_owned(), most }
    }

    /// Clerk says `resource_not_found` where that is no answer: of a cursor, say.
    fn nothing(&self) -> ApiError {
        ApiError::Refused {
            host: self.0.host().to_owned(),
            status: 404,
            code: Some("resource_not_found".to_owned()),
            message: None,
        }
    }
}
