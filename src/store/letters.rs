//! Owns the seam to the dead letters in the database: what every store promises about them. The contract:
//!
//! - A letter is one message id, however often it died: `round` counts its replays.
//! - [`Letters::capture`] ignores rounds below the letter's and rounds already captured; any other death makes the
//!   letter `open` again, whatever it was. A letter whose message is in the inbox is captured as `applied`.
//!   It cannot fail on content: text is cleaned and bounded, numbers and times are brought into range.
//! - [`Letters::claim`] commits `open` → `replayed` with the round one higher before anything is published; a claim that
//!   was not stamped is found by [`Letters::unstamped`] and published again.
//! - [`crate::store::Batches::apply`] sets the letter of a message that took effect to `applied`, in the same transaction.
//! - Where `HEADCOUNT_ON_DELETE` is `erase`, a letter that is applied or discarded keeps nothing personal of a deleted
//!   user: no body, headers, detail, group or notes. Such a letter cannot be restored.
//! - The account of a letter is the one that its body is about, also after [`Letters::edit`].
//! - Every action leaves an entry in the letter's history: what, who, when, note.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

use super::StoreError;
use crate::{
    digest::{hex, sha256},
    message::Origin,
    rules::Outcome,
    time::{Millis, rfc3339},
};

/// The most groups that are listed.
pub const GROUPS_MAX: u32 = 500;

/// The most letters that [`Letters::fresh_letters`] counts.
pub const FRESH_MAX: u32 = 10_000;

/// The longest page of letters.
pub const LETTERS_MAX: u32 = 10_000;

/// The longest reason, in bytes.
pub const REASON_MAX: usize = 64;

/// The longest key of a group, in bytes.
pub const GROUP_MAX: usize = 200;

/// The most headers of a letter, and of a sample of a rejected request.
pub const HEADERS_MAX: usize = 64;

/// The longest name of a header, in bytes.
pub const HEADER_NAME_MAX: usize = 128;

/// The longest value of a header, in bytes.
pub const HEADER_VALUE_MAX: usize = 1_024;

/// A letter, and the round that began when it was published again.
pub type Publication = (Uuid, u32);

/// Dead letters, as their capture, the command line and the API see them. An error is what the database says.
#[async_trait]
pub trait Letters: Send + Sync {
    /// Takes letters in, in one transaction. Returns the message ids of those deaths that were not known.
    ///
    /// # Errors
    /// Nothing was captured, or it is unknown; capturing again is right.
    async fn capture(&self, letters: &[Captured]) -> Result<Vec<String>, StoreError>;

    /// Letters by group, the largest first; at most [`GROUPS_MAX`].
    async fn groups(&self, filter: &Filter) -> Result<Vec<Group>, StoreError>;

    /// The keys of the groups that have this key or this id: one, or none where there is no such group.
    async fn groups_named(&self, reference: &str) -> Result<Vec<String>, StoreError>;

    /// One page of letters, the last to die first; at most [`LETTERS_MAX`].
    async fn list(&self, filter: &Filter, page: &Page) -> Result<Vec<Letter>, StoreError>;

    /// One letter, whole, by its own id or its message id.
    async fn show(&self, reference: &str) -> Result<Option<LetterDetail>, StoreError>;

    /// How many letters a filter selects, by event type and reason: the preview of an action.
    async fn count(&self, filter: &Filter) -> Result<Vec<Count>, StoreError>;

    /// How many open letters died since a time, and when the oldest open one did.
    async fn fresh_letters(&self, since: Millis) -> Result<FreshLetters, StoreError>;

    /// Claims up to `limit` open letters that the filter selects, the first to die first, for replay: each is claimed by
    /// one caller only. Without [`Filter::ids`], letters that another caller is busy with are passed over. None: there
    /// is nothing left to claim.
    async fn claim(&self, filter: &Filter, limit: u32, by: &Actor) -> Result<Vec<Claimed>, StoreError>;

    /// Claims one open letter with another body, committed with the claim. `None`: it is not open any more.
    async fn edit(&self, id: Uuid, body: Bytes, by: &Actor) -> Result<Option<Claimed>, StoreError>;

    /// The database's own clock, rounded up: whatever it has stamped so far is before this.
    async fn clock(&self) -> Result<Millis, StoreError>;

    /// Up to `limit` claims (letters that are `replayed`) whose publication is not stamped and that were made before
    /// `before` by the database's clock, the oldest first: they are published again. [`Filter::status`] is set aside.
    async fn unstamped(
        &self,
        filter: &Filter,
        before: Millis,
        limit: u32,
    ) -> Result<Vec<Claimed>, StoreError>;

    /// Stamps publications, where the round is unchanged, whatever has become of the letter since.
    async fn stamp(&self, published: &[Publication]) -> Result<(), StoreError>;

    /// Discards up to `limit` open letters that the filter selects. Returns how many.
    async fn discard(&self, filter: &Filter, limit: u32, by: &Actor) -> Result<u64, StoreError>;

    /// Makes up to `limit` discarded letters that the filter selects open again, but for those that were erased. Returns
    /// how many.
    async fn restore(&self, filter: &Filter, limit: u32, by: &Actor) -> Result<u64, StoreError>;
}

/// Where a letter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Waits for people.
    Open,
    /// Claimed for a replay: on its way, or to be published again. Whether it is in the queue the stamp says, not this.
    Replayed,
    /// Its message took effect.
    Applied,
    /// Set aside by people.
    Discarded,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 4] = [Self::Open, Self::Replayed, Self::Applied, Self::Discarded];

    /// The name: in the table, in metrics, in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Replayed => "replayed",
            Self::Applied => "applied",
            Self::Discarded => "discarded",
        }
    }

    /// The status of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }
}

/// A letter as it comes from the dead queue: text cleaned and bounded, the body as it is.
#[derive(Clone, Debug)]
pub struct Captured {
    /// `svix-id`
    pub message_id: String,
    /// Where the message comes from.
    pub origin: Origin,
    /// Replays before this death.
    pub round: u32,
    /// The envelope's type.
    pub event_type: String,
    /// The account, where the body tells.
    pub clerk_id: Option<String>,
    /// A short stable code, at most [`REASON_MAX`] bytes: one of headcount's own, or another hand's.
    pub reason: String,
    /// What happened, for people.
    pub detail: String,
    /// Failed attempts of this round.
    pub attempts: u32,
    /// When the ingress took it in.
    pub first_seen: Millis,
    /// When it died this time.
    pub died_at: Millis,
    /// What letters of one cause share: reason and folded detail, at most [`GROUP_MAX`] bytes.
    pub group: String,
    /// The message's, as it died.
    pub headers: BTreeMap<String, String>,
    /// As it was received.
    pub body: Bytes,
}

/// Selects letters: those that all conditions hold for. An empty filter selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// Only these letters; any where it is empty.
    pub ids: Vec<Uuid>,
    /// Only of the group with this key.
    pub group: Option<String>,
    /// Only with this status.
    pub status: Option<Status>,
    /// Only of this event type.
    pub event_type: Option<String>,
    /// Only with this reason.
    pub reason: Option<String>,
    /// Only about this Clerk id.
    pub clerk_id: Option<String>,
    /// Only those whose detail or message id contains this, without regard to case.
    pub text: Option<String>,
    /// Only those that died at or after this time.
    pub since: Option<Millis>,
    /// Only those that died before this time.
    pub until: Option<Millis>,
    /// Only those that were applied or discarded at or after this time, by the database's clock.
    pub settled_since: Option<Millis>,
}

/// A page of a listing.
#[derive(Clone, Debug)]
pub struct Page {
    /// The most letters, no more than [`LETTERS_MAX`].
    pub limit: u32,
    /// Only the letters after this one of the listing: its `died_at` and `id`.
    pub after: Option<(Millis, Uuid)>,
}

/// Letters of one cause.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Group {
    /// Short and stable, for people to type: [`group_id`].
    pub id: String,
    /// Its key: what its letters share.
    pub group: String,
    /// The reason of all its letters.
    pub reason: String,
    /// The detail of one of them.
    pub detail: String,
    /// How many letters it has.
    pub letters: u64,
    /// The first death; `None` where the last letter of the group is going at this moment.
    #[serde(serialize_with = "text_or_nothing")]
    pub first_died_at: Option<Millis>,
    /// The last death.
    #[serde(serialize_with = "text_or_nothing")]
    pub last_died_at: Option<Millis>,
}

/// The id of a group: the beginning of its key's SHA-256.
pub fn group_id(key: &str) -> String {
    hex(&sha256(key.as_bytes())[..4])
}

/// A letter in a listing.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Letter {
    /// Made when the letter was first captured; of version 7.
    pub id: Uuid,
    /// `svix-id`
    pub message_id: String,
    /// Where the message comes from.
    pub origin: Origin,
    /// Replays so far.
    pub round: u32,
    /// The envelope's type.
    pub event_type: String,
    /// The account.
    pub clerk_id: Option<String>,
    /// Why its message died, as a short stable code.
    pub reason: String,
    /// What happened, for people.
    pub detail: String,
    /// Failed attempts of the last round.
    pub attempts: u32,
    /// When the ingress took it in.
    #[serde(serialize_with = "text")]
    pub first_seen: Millis,
    /// When its message died last.
    #[serde(serialize_with = "text")]
    pub died_at: Millis,
    /// Where it stands.
    pub status: Status,
    /// What became of its message, as the inbox has it. `None` where it is not applied, or by a newer headcount only.
    pub outcome: Option<Outcome>,
    /// What letters of one cause share.
    pub group: String,
}

impl Letter {
    /// Its status, and where it is applied what became of it: `applied (ignored)`.
    pub fn standing(&self) -> String {
        let status = self.status.as_str();
        self.outcome.map_or_else(|| status.to_owned(), |outcome| format!("{status} ({})", outcome.as_str()))
    }
}

/// Open letters, as far as their age goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FreshLetters {
    /// Open ones that died since a time, at most [`FRESH_MAX`].
    pub since: u64,
    /// When the oldest open one died.
    pub oldest_open: Option<Millis>,
}

/// A letter, whole.
#[derive(Clone, Debug)]
pub struct LetterDetail {
    /// As in a listing.
    pub letter: Letter,
    /// The message's, as it died.
    pub headers: BTreeMap<String, String>,
    /// What a replay publishes.
    pub body: Bytes,
    /// What happened to it, oldest first.
    pub history: Vec<HistoryEntry>,
}

/// What happened to a letter.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct HistoryEntry {
    /// By the database's clock; of a death, by the clock of the process that buried the message.
    #[serde(serialize_with = "text")]
    pub at: Millis,
    /// What was done.
    pub action: Action,
    /// The round it was about.
    pub round: u32,
    /// The actor's name; `headcount` for what it did by itself.
    pub by: String,
    /// The actor's note; for a death its reason and detail.
    pub note: Option<String>,
}

/// What is done to a letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It was captured.
    Died,
    /// A replay claimed it.
    Replayed,
    /// An edit claimed it, with another body.
    Edited,
    /// It is in the queue again.
    Published,
    /// Its message took effect.
    Applied,
    /// Somebody set it aside.
    Discarded,
    /// Somebody made it open again.
    Restored,
    /// What only a newer headcount does.
    #[serde(untagged)]
    Other(String),
}

impl Action {
    /// The name: in the table and in output.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Died => "died",
            Self::Replayed => "replayed",
            Self::Edited => "edited",
            Self::Published => "published",
            Self::Applied => "applied",
            Self::Discarded => "discarded",
            Self::Restored => "restored",
            Self::Other(name) => name,
        }
    }

    /// The action of that name.
    pub(super) fn parse(name: String) -> Self {
        let known = [
            Self::Died,
            Self::Replayed,
            Self::Edited,
            Self::Published,
            Self::Applied,
            Self::Discarded,
            Self::Restored,
        ];
        known.into_iter().find(|action| action.as_str() == name).unwrap_or(Self::Other(name))
    }
}

/// The person who acts, and why.
#[derive(Clone, Debug)]
pub struct Actor {
    /// The user of the operating system, or the name of the API's token.
    pub name: String,
    /// Why, for the letters' histories.
    pub note: Option<String>,
}

/// Letters of one event type and reason.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Count {
    /// The envelope's type.
    pub event_type: String,
    /// The reason of their death.
    pub reason: String,
    /// How many there are.
    pub letters: u64,
}

/// A claimed letter, to be published.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The letter's.
    pub id: Uuid,
    /// `svix-id`
    pub message_id: String,
    /// Where the message comes from.
    pub origin: Origin,
    /// The round that begins with the claim.
    pub round: u32,
    /// The envelope's type.
    pub event_type: String,
    /// When the ingress took it in.
    pub first_seen: Millis,
    /// What to publish.
    pub body: Bytes,
}

/// A time as JSON: RFC 3339 in UTC.
fn text<S: Serializer>(at: &Millis, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*at))
}

/// The same; the empty text for a time that is missing.
fn text_or_nothing<S: Serializer>(at: &Option<Millis>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&at.map(rfc3339).unwrap_or_default())
}
