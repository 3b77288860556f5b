//! Owns how people refer to a user, and the bounds of what they are shown. Never touches SQL.

use uuid::Uuid;

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
