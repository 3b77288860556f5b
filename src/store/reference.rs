//! Owns how people refer to a user, what they are shown of it, and the bounds of that.

use uuid::Uuid;

use super::{
    Former, PastEvent, User,
    columns::{Document, Id, Told, from_row},
};
use crate::rules::users::Claim;

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

/// When the last webhook that Clerk sent was processed, and when it had come in. An older ingress queues what `doctor`
/// asks with.
pub(super) const LAST: &str =
    "SELECT processed_at, received_at FROM inbox WHERE event_type <> $1 ORDER BY processed_at DESC LIMIT 1";
