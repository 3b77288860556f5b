//! Owns what the application's API reads of accounts: the rows of many at a time, and whether they have changed. Takes no lock.

use async_trait::async_trait;
use uuid::Uuid;

use super::{
    StoreError, User,
    columns::{Id, Told, from_row},
    filter::{Dialect as _, Value},
    people::users,
    questions::{Planned, Reading as _},
    sessions::{self, Ended, Session, Sighting},
    sync::tables::Works,
    visitors::{self, Claim, Visitor},
};
use crate::time::Millis;

/// What the application asks about accounts.
#[async_trait]
pub trait Accounts: Send + Sync {
    /// The accounts of these Clerk ids, of those that are known, in any order; and which of these sessions have ended.
    async fn accounts(
        &self,
        clerk_ids: &[String],
        sessions: &[String],
    ) -> Result<(Vec<Account>, Vec<Ended>), StoreError>;

    /// What tells whether the rows of these Clerk ids have changed, of those that have one, in any order; and which of these
    /// sessions have ended.
    async fn marks(
        &self,
        clerk_ids: &[String],
        sessions: &[String],
    ) -> Result<(Vec<Mark>, Vec<Ended>), StoreError>;

    /// Notes that tokens of these sessions, each once, were seen, of those whose users are live and not held by somebody. A session that was seen less than a minute
    /// before is not written again, and one that has ended stays so.
    async fn saw_sessions(&self, sightings: &[Sighting]) -> Result<(), StoreError>;

    /// Keeps a visitor who has just begun.
    async fn begin_visitor(&self, visitor: &Visitor) -> Result<(), StoreError>;

    /// Gives the visitor of the token with this hash to the live user of this Clerk id, unless another has it by now. Once it is the
    /// user's, the answer stays the same.
    async fn claim_visitor(&self, token_hash: &str, clerk_id: &str, at: Millis) -> Result<Claim, StoreError>;

    /// The sessions of this Clerk id, the one last seen first; at most a hundred.
    async fn sessions_of(&self, clerk_id: &str) -> Result<Vec<Session>, StoreError>;
}

/// An account that the table knows.
#[derive(Clone, Debug, PartialEq)]
pub enum Account {
    /// It has a row, which may be deleted.
    Row(Box<User>),
    /// It was deleted, and its row is another account's now, or never was.
    Former {
        /// The account.
        clerk_id: String,
        /// When it was deleted, RFC 3339.
        deleted_at: String,
    },
}

impl Account {
    /// The account.
    pub fn clerk_id(&self) -> &str {
        match self {
            Self::Row(user) => &user.clerk_id,
            Self::Former { clerk_id, .. } => clerk_id,
        }
    }
}

/// What differs once a row was changed, by headcount or in a column of the application's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The account.
    pub clerk_id: String,
    /// The row.
    pub id: Uuid,
    /// Of the mirror.
    pub version: Millis,
    /// When headcount changed the row.
    pub updated_at: String,
    /// When the account was deleted.
    pub deleted_at: Option<String>,
    /// The application's, or what [`UserTiers`](super::tiers::UserTiers) decide.
    pub subscription_tier: String,
    /// The application's.
    pub credits_balance: i64,
}

impl Mark {
    /// Of a row that was read.
    pub fn of(user: &User) -> Self {
        Self {
            clerk_id: user.clerk_id.clone(),
            id: user.id,
            version: user.version,
            updated_at: user.updated_at.clone(),
            deleted_at: user.deleted_at.clone(),
            subscription_tier: user.subscription_tier.clone(),
            credits_balance: user.credits_balance,
        }
    }
}

from_row!(Mark {
    clerk_id: String,
    id: Id,
    version: i64,
    updated_at: Told,
    deleted_at: Option<Told>,
    subscription_tier: String,
    credits_balance: i64,
});

#[async_trait]
impl<S: Works> Accounts for S {
    async fn accounts(
        &self,
        clerk_ids: &[String],
        asked: &[String],
    ) -> Result<(Vec<Account>, Vec<Ended>), StoreError> {
        let rows = format!("{}{}", users!("WHERE "), S::Db::among("clerk_id", 1));
        let rows = S::Db::whole(rows, [Value::Texts(clerk_ids)])?;
        let mut snapshot = self.snapshot().await?;
        let rows: Vec<User> = snapshot.rows(rows, Planned::Once).await?;
        let mut former: Vec<(String, Told)> = Vec::new();
        if rows.len() < clerk_ids.len() {
            let question = format!(
                "SELECT clerk_id, deleted_at FROM former_clerk_ids WHERE {}",
                S::Db::among("clerk_id", 1)
            );
            let question = S::Db::whole(question, [Value::Texts(clerk_ids)])?;
            former = snapshot.rows(question, Planned::Once).await?;
        }
        let ended = sessions::ended(&mut snapshot, asked).await?;
        snapshot.end().await?;
        // An account that has a row again is no former one.
        former.retain(|(clerk_id, _)| rows.iter().all(|row| row.clerk_id != *clerk_id));
        let former =
            former.into_iter().map(|(clerk_id, Told(deleted_at))| Account::Former { clerk_id, deleted_at });
        Ok((rows.into_iter().map(|row| Account::Row(Box::new(row))).chain(former).collect(), ended))
    }

    async fn marks(
        &self,
        clerk_ids: &[String],
        asked: &[String],
    ) -> Result<(Vec<Mark>, Vec<Ended>), StoreError> {
        let question = format!(
            "SELECT clerk_id, id, version, updated_at, deleted_at, subscription_tier, credits_balance FROM users WHERE {}",
            S::Db::among("clerk_id", 1)
        );
        let mut snapshot = self.snapshot().await?;
        let marks = snapshot.rows(S::Db::whole(question, [Value::Texts(clerk_ids)])?, Planned::Once).await?;
        let ended = sessions::ended(&mut snapshot, asked).await?;
        snapshot.end().await?;
        Ok((marks, ended))
    }

    async fn saw_sessions(&self, sightings: &[Sighting]) -> Result<(), StoreError> {
        sessions::saw(self, sightings).await
    }

    async fn begin_visitor(&self, visitor: &Visitor) -> Result<(), StoreError> {
        visitors::begin(self, visitor).await
    }

    async fn claim_visitor(&self, token_hash: &str, clerk_id: &str, at: Millis) -> Result<Claim, StoreError> {
        visitors::claim(self, token_hash, clerk_id, at).await
    }

    async fn sessions_of(&self, clerk_id: &str) -> Result<Vec<Session>, StoreError> {
        sessions::of(self, clerk_id).await
    }
}
