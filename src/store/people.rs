//! Owns what people ask about users: the questions, how a user is referred to, what is shown, and the bounds of that.

use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use uuid::Uuid;

use super::{
    StoreError,
    columns::{Document, Id, Told, from_row},
};
use crate::{rules::users::Claim, time::Millis};

/// What people ask about users.
#[async_trait]
pub trait Users: Send + Sync {
    /// One page of users, newest first.
    async fn users(&self, query: &UserQuery) -> Result<Vec<User>, StoreError>;

    /// One user and what happened to it, by our id, a Clerk id (also a former one) or an e-mail address;
    /// `None` where there is none.
    async fn user(&self, reference: &str) -> Result<Option<UserHistory>, StoreError>;

    /// One message in the inbox, by its id; `None` where it is not there, or not any more.
    async fn message(&self, message_id: &str) -> Result<Option<PastEvent>, StoreError>;

    /// Counts for `status`.
    async fn totals(&self) -> Result<Totals, StoreError>;
}

/// Which users to list.
#[derive(Clone, Debug, Default)]
pub struct UserQuery {
    /// At most so many.
    pub limit: u32,
    /// Only rows after this one of the listing (by [`User::id`]).
    pub after: Option<Uuid>,
    /// Deleted rows too.
    pub deleted: bool,
    /// Only where Clerk id, e-mail address, user name or name contains this, without regard to case.
    pub text: Option<String>,
}

/// A row of `users`, for people. Times are RFC 3339 in UTC.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[allow(missing_docs)] // Each field is the column of its name.
pub struct User {
    /// Ours, stable over relinks.
    pub id: Uuid,
    pub clerk_id: String,
    /// The claim, where this row is the best claimant of the address.
    pub email: Option<String>,
    /// The address that Clerk last gave the account: its claim.
    pub clerk_email: Option<String>,
    pub email_verified: bool,
    pub phone: Option<String>,
    pub username: Option<String>,
    pub first_name: Option<String>,
    pub last_name: Option<String>,
    pub image_url: Option<String>,
    pub external_id: Option<String>,
    pub public_metadata: Option<serde_json::Value>,
    pub private_metadata: Option<serde_json::Value>,
    pub unsafe_metadata: Option<serde_json::Value>,
    pub banned: Option<bool>,
    pub locked: Option<bool>,
    /// The application's, or what [`UserTiers`](super::tiers::UserTiers) decide.
    pub subscription_tier: String,
    /// The application's.
    pub credits_balance: i64,
    pub last_sign_in_at: Option<String>,
    pub clerk_created_at: Option<String>,
    pub clerk_updated_at: Option<String>,
    /// Of the mirror, milliseconds: see [`crate::rules::users::Version`].
    pub version: Millis,
    /// By Clerk's clock.
    pub deleted_at: Option<String>,
    /// When the row was made, by the database's clock.
    pub created_at: String,
    /// When the row was changed, by the database's clock.
    pub updated_at: String,
}

/// A user and what happened to it.
#[derive(Clone, Debug, Serialize)]
pub struct UserHistory {
    /// The row; `None` for an id that was deleted before it was ever seen.
    pub user: Option<User>,
    /// Clerk ids that held the row before, oldest first, or the id itself where it was deleted before it was seen.
    pub former: Vec<Former>,
    /// Inbox rows of all these ids, oldest processed first; as far back as `HEADCOUNT_INBOX_RETENTION` reaches.
    pub events: Vec<PastEvent>,
}

/// A Clerk id that is remembered as deleted.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Former {
    /// The id.
    pub clerk_id: String,
    /// The row it had.
    pub user_id: Option<Uuid>,
    /// RFC 3339.
    pub deleted_at: String,
}

/// One message in the inbox. Times are RFC 3339 in UTC.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct PastEvent {
    /// `svix-id`
    pub message_id: String,
    /// The envelope's type.
    pub event_type: String,
    /// The account.
    pub clerk_id: Option<String>,
    /// What became of it.
    pub outcome: String,
    /// By Clerk's clock.
    pub event_at: Option<String>,
    /// By the ingress's clock.
    pub received_at: String,
    /// By the database's clock.
    pub processed_at: String,
}

/// Counts for people.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Totals {
    /// Rows that are not deleted.
    pub live_users: u64,
    /// Rows that are.
    pub deleted_users: u64,
    /// The two are about so many: the table is too large to be counted at a glance.
    pub estimated: bool,
    /// When the newest webhook of Clerk's was processed, RFC 3339.
    pub last_processed_at: Option<String>,
    /// When that one had come in, RFC 3339.
    pub last_received_at: Option<String>,
}

impl Totals {
    /// How long the newest webhook took from its coming in to its commit.
    pub fn lag(&self) -> Option<Duration> {
        let time = |text: &Option<String>| chrono::DateTime::parse_from_rfc3339(text.as_deref()?).ok();
        (time(&self.last_processed_at)? - time(&self.last_received_at)?).to_std().ok()
    }
}

/// The longest page of users.
pub(super) const PAGE_MAX: u32 = 10_000;

/// The newest so many events of a user are shown.
pub(super) const EVENTS_MAX: u32 = 1_000;

/// A text that may be one of our ids, a Clerk id or an address.
pub(super) struct Reference {
    pub(super) id: Option<Uuid>,
    pub(super) text: String,
    /// What the address would be claimed by.
    pub(super) key: String,
}

impl Reference {
    /// `None` for what can be none of them: no stored text is empty or holds a NUL.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty() && !text.contains('\0')).then(|| Self {
            id: Uuid::parse_str(text).ok(),
            text: text.to_owned(),
            key: Claim::new(text, false).key,
        })
    }
}

/// Selects users whole; `$rest` says which.
macro_rules! users { ($rest:literal) => { concat!(
    "SELECT id, clerk_id, email, clerk_email, email_verified, phone, username, first_name, last_name, image_url, \
     external_id, public_metadata, private_metadata, unsafe_metadata, banned, locked, subscription_tier, \
     credits_balance, last_sign_in_at, clerk_created_at, clerk_updated_at, version, deleted_at, created_at, \
     updated_at FROM users ", $rest)
} }

pub(super) use users;

/// The user that a [`Reference`] means: an id before a Clerk id before a former id before an address; of the claimants of an
/// address who shows it, then who is alive, then the newest.
pub(super) const NAMED: &str = users!(
    "WHERE id = $1 OR clerk_id = $2 OR email_key = $3 \
     OR id = (SELECT user_id FROM former_clerk_ids WHERE clerk_id = $2) \
     ORDER BY coalesce(id = $1, false) DESC, clerk_id = $2 DESC, \
     coalesce(id = (SELECT user_id FROM former_clerk_ids WHERE clerk_id = $2), false) DESC, \
     email IS NOT NULL DESC, deleted_at IS NULL DESC, version DESC, id DESC LIMIT 1"
);

from_row!(User {
    id: Id,
    clerk_id: String,
    email: Option<String>,
    clerk_email: Option<String>,
    email_verified: bool,
    phone: Option<String>,
    username: Option<String>,
    first_name: Option<String>,
    last_name: Option<String>,
    image_url: Option<String>,
    external_id: Option<String>,
    public_metadata: Option<Document>,
    private_metadata: Option<Document>,
    unsafe_metadata: Option<Document>,
    banned: Option<bool>,
    locked: Option<bool>,
    subscription_tier: String,
    credits_balance: i64,
    last_sign_in_at: Option<Told>,
    clerk_created_at: Option<Told>,
    clerk_updated_at: Option<Told>,
    version: i64,
    deleted_at: Option<Told>,
    created_at: Told,
    updated_at: Told,
});

from_row!(Former { clerk_id: String, user_id: Option<Id>, deleted_at: Told });

from_row!(PastEvent {
    message_id: String,
    event_type: String,
    clerk_id: Option<String>,
    outcome: String,
    event_at: Option<Told>,
    received_at: Told,
    processed_at: Told,
});

/// One message of the inbox.
pub(super) const MESSAGE: &str = "SELECT message_id, event_type, clerk_id, outcome, event_at, received_at, processed_at FROM inbox WHERE message_id = $1";

/// When the last webhook that Clerk sent was processed, and when it had come in. An older ingress queues what `doctor`
/// asks with.
pub(super) const LAST: &str =
    "SELECT processed_at, received_at FROM inbox WHERE event_type <> $1 ORDER BY processed_at DESC LIMIT 1";
