//! Owns the rules that fold events into users (what the webhook means): pure code, no I/O, no clock, no SQL.
//!
//! In the order in which an event meets them: [`Version`] decides what is news, [`Claim`] who may show an address,
//! [`fold()`] turns the rows a batch touches and its events into changed rows and an outcome per event. [`compare()`] tells how a
//! row stands to what Clerk's API says.

use std::{collections::HashMap, sync::Arc};

use serde::Serialize;
use uuid::Uuid;

use super::{Event, Outcome};
use crate::time::Millis;

mod claims;
mod compare;
#[cfg(test)]
mod fixtures;
mod fold;
#[cfg(test)]
mod states;
mod table;

pub use compare::{Standing, compare};
pub use fold::fold;

/// Which of two pieces of news about an account is newer. Ordered field by field, as written here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Version {
    /// `data.updated_at`, or the envelope's time where that is missing.
    pub at: Millis,
    /// The envelope's `timestamp` (0 where missing).
    pub sent: Millis,
    /// `user.created` comes before `user.updated`.
    pub kind: UpsertKind,
    /// The last tie-breaker.
    pub message_id: String,
}

/// The two events that carry a whole user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UpsertKind {
    /// `user.created`
    Created,
    /// `user.updated`
    Updated,
}

/// The primary address that Clerk last gave an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// As Clerk writes it.
    pub address: String,
    /// Case folded: claims with the same key are claims to the same address.
    pub key: String,
    /// Clerk's verification status of the address is `verified`.
    pub verified: bool,
}

impl Claim {
    /// A claim to `address`; its key is the address in lower case (Unicode).
    pub fn new(address: impl Into<String>, verified: bool) -> Self {
        let address = address.into();
        Self { key: address.to_lowercase(), address, verified }
    }
}

/// Every mirrored column but the claim and the version. `None` is SQL null.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // Each field is the column of its name.
pub struct Profile {
    pub phone: Option<String>,
    pub username: Option<String>,
    pub first_name: Option<String>,
    pub last_name: Option<String>,
    pub image_url: Option<String>,
    /// The application's own id of the user, as Clerk holds it.
    pub external_id: Option<String>,
    /// JSON text.
    pub public_metadata: Option<String>,
    /// JSON text.
    pub private_metadata: Option<String>,
    /// JSON text; written by the user's browser, so never to be trusted.
    pub unsafe_metadata: Option<String>,
    pub banned: Option<bool>,
    /// Locked after failed sign-ins.
    pub locked: Option<bool>,
    pub last_sign_in_at: Option<Millis>,
    /// `data.created_at`.
    pub created_at: Option<Millis>,
    /// `data.updated_at`.
    pub updated_at: Option<Millis>,
    /// Clerk's whole user object of this version, as JSON text; kept under `HEADCOUNT_KEEP_CLERK_OBJECT` only.
    pub clerk: Option<String>,
}

/// One row of `users`, as far as the rules need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Ours, stable over relinks.
    pub id: Uuid,
    /// The Clerk account that holds the row now.
    pub clerk_id: String,
    /// Of the mirrored columns.
    pub version: Version,
    /// The last claim. A deleted row keeps it: it is what a returning user is known by.
    pub claim: Option<Claim>,
    /// The row is the best claimant: its `email` column shows the claim.
    pub shown: bool,
    /// Its columns of the address do not fit each other (`email` shows another text than the claim): somebody edited the row.
    pub askew: bool,
    /// The deletion's own time.
    pub deleted_at: Option<Millis>,
    /// Deleted under [`OnDelete::Erase`]: nothing personal is left and no news is taken in.
    pub erased: bool,
    /// The other mirrored columns. `None`: as they are stored. Only [`needs_profiles`] makes stores load them.
    pub profile: Option<Arc<Profile>>,
}

/// What an event does to an account.
#[derive(Clone, Debug)]
pub enum Change {
    /// `user.created`, `user.updated`.
    Upsert(Box<Upsert>),
    /// `user.deleted`.
    Delete {
        /// The deleted account.
        clerk_id: String,
        /// When Clerk deleted it.
        at: Millis,
    },
}

impl Event {
    /// It is about a user as Clerk's API gave it.
    pub fn is_snapshot(&self) -> bool {
        let super::Change::User(Change::Upsert(upsert)) = &self.change else { return false };
        matches!(upsert.source, Source::Api { .. })
    }

    /// The key of the address that an account claims by the event.
    pub fn claim_key(&self) -> Option<&str> {
        let super::Change::User(Change::Upsert(upsert)) = &self.change else { return None };
        upsert.claim.as_ref().map(|claim| claim.key.as_str())
    }
}

impl Change {
    /// The account.
    pub fn clerk_id(&self) -> &str {
        match self {
            Self::Upsert(upsert) => &upsert.clerk_id,
            Self::Delete { clerk_id, .. } => clerk_id,
        }
    }

    /// Clerk's time of the event.
    pub fn at(&self) -> Millis {
        match self {
            Self::Upsert(upsert) => upsert.version.at,
            Self::Delete { at, .. } => *at,
        }
    }
}

/// A whole user as an event gives it.
#[derive(Clone, Debug)]
pub struct Upsert {
    /// The account.
    pub clerk_id: String,
    /// Where this stands among the account's news.
    pub version: Version,
    /// When the id came to be: the envelope's time of its `user.created`, else `data.created_at`, else the version's time.
    pub born: Millis,
    /// The primary address, where there is one.
    pub claim: Option<Claim>,
    /// Everything else that is mirrored.
    pub profile: Arc<Profile>,
    /// Who says so.
    pub source: Source,
}

/// Who tells news about an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A webhook, which announces a change.
    Webhook,
    /// A reading of Clerk's API, at the time [`Version::sent`]. It changes nothing where the row says the same.
    Api {
        /// A person asked for the account to live again, if it is deleted here.
        revive: bool,
    },
}

/// The rules that people choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// `HEADCOUNT_RELINK`
    pub relink: Relink,
    /// `HEADCOUNT_ON_DELETE`
    pub on_delete: OnDelete,
}

/// Whether [`fold()`] needs [`Row::profile`] of the rows it is given.
pub fn needs_profiles<'e>(policy: &Policy, mut events: impl Iterator<Item = &'e Event>) -> bool {
    let may_displace = policy.relink == Relink::Match && policy.on_delete == OnDelete::Keep;
    may_displace || events.any(Event::is_snapshot)
}

/// Who may take over an existing row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Relink {
    /// A returning user gets the row of their own deleted account.
    Deleted,
    /// The literal e-mail match rule: also a live account's row, once patience is over.
    Match,
    /// Nobody.
    Never,
}

/// What a deletion leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDelete {
    /// A soft delete, so that a returning user can be relinked.
    Keep,
    /// Nothing personal.
    Erase,
}

/// What a store loads for a batch: every row that holds one of the batch's Clerk ids or claims one of its addresses,
/// or an address that one of those rows claims; and which of the batch's ids are remembered as deleted.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// In any order, each row once.
    pub rows: Vec<Row>,
    /// The batch's Clerk ids that are former ids, each with the time of its deletion.
    pub former: HashMap<String, Millis>,
}

/// What a store saves, and what it answers.
#[derive(Clone, Debug, Default)]
pub struct Folded {
    /// Only rows that differ from what was loaded, each once, by id. In this order no unique column ever clashes: null
    /// the addresses that are yielded, update the rows that exist, insert the new ones (under [`Relink::Match`] a new
    /// row may have the Clerk id that a changed row had).
    pub rows: Vec<ChangedRow>,
    /// Former ids to forget, because their accounts live again. Forget them first: one may have left again.
    pub revived: Vec<String>,
    /// Ids to remember as deleted, each once.
    pub former: Vec<FormerId>,
    /// One per event, in the order given to [`fold()`].
    pub outcomes: Vec<Outcome>,
}

/// A row to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedRow {
    /// Its new state. `profile` is `Some` wherever `mirror` is true.
    pub row: Row,
    /// There was no such row.
    pub new: bool,
    /// Clerk id, claim, version or profile changed: write every mirrored column. Otherwise only
    /// `email`, `deleted_at` and what follows from them.
    pub mirror: bool,
    /// The stored row shows an address that this change takes from it (hidden, or another address): null it before any
    /// row gains one, so that the unique index never sees two.
    pub yields_email: bool,
}

/// A Clerk id whose events are all stale from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormerId {
    /// The id.
    pub clerk_id: String,
    /// The row that it had, where it had one.
    pub user_id: Option<Uuid>,
    /// When Clerk deleted it.
    pub deleted_at: Millis,
}
