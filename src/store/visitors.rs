//! Owns anonymous visitors: who came before signing in, and which user took them over, once. Each statement stands here once for
//! both databases.

use uuid::Uuid;

use super::{
    StoreError,
    columns::{At, Id, from_row},
    filter::{Dialect as _, Value},
    questions::{Planned, Reading as _},
    sync::tables::{Changing as _, Words as _, Works, change},
};
use crate::time::Millis;

/// A visitor who has not signed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visitor {
    /// `anon_…`
    pub id: String,
    /// SHA-256 of the token, in hexadecimal digits.
    pub token_hash: String,
    /// When it began.
    pub created_at: Millis,
    /// From when on nobody can claim it any more.
    pub expires_at: Millis,
}

/// What became of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The visitor is the user's, now or since an earlier claim.
    Yours(Claimed),
    /// Another user has claimed it.
    Another,
    /// There is no visitor of this token, or it has expired.
    Unknown,
    /// There is no live user of this Clerk id.
    Nobody,
}

/// A visitor whom a user has claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// `anon_…`
    pub anonymous_id: String,
    /// `users.id`
    pub claimed_by: Uuid,
    /// When.
    pub claimed_at: Millis,
}

from_row!(Claimed { anonymous_id = "id": String, claimed_by: Id, claimed_at: At });

pub(super) async fn begin<S: Works>(store: &S, visitor: &Visitor) -> Result<(), StoreError> {
    let statement =
        "INSERT INTO anonymous_visitors (id, token_hash, created_at, expires_at) VALUES ($1, $2, $3, $4)";
    change!(store, |tx| {
        let values = [
            Value::Text(&visitor.id),
            Value::Text(&visitor.token_hash),
            Value::Time(visitor.created_at),
            Value::Time(visitor.expires_at),
        ];
        tx.run(S::Db::whole(statement, values)?).await?;
    })
}

pub(super) async fn claim<S: Works>(
    store: &S,
    token_hash: &str,
    clerk_id: &str,
    at: Millis,
) -> Result<Claim, StoreError> {
    // The user's row is held meanwhile: nobody who is being deleted takes anything over, and two claims of one user take turns,
    // whatever the application does in a trigger.
    let user = format!(
        "SELECT u.id FROM users AS u WHERE u.clerk_id = $1 AND u.deleted_at IS NULL{}",
        S::Db::held("u")
    );
    // Of two that claim at once one waits, and then finds it claimed.
    let take = "UPDATE anonymous_visitors SET claimed_by = $2, claimed_at = $3 \
         WHERE token_hash = $1 AND claimed_by IS NULL AND expires_at > $3";
    let claimed = "SELECT id, claimed_by, claimed_at FROM anonymous_visitors \
         WHERE token_hash = $1 AND claimed_by IS NOT NULL";
    change!(store, |tx| {
        let users = S::Db::whole(user.as_str(), [Value::Text(clerk_id)])?;
        let users: Vec<(Id,)> = tx.rows(users, Planned::Once).await?;
        match users.first() {
            None => Claim::Nobody,
            Some((Id(user),)) => {
                let values = [Value::Text(token_hash), Value::Id(Some(*user)), Value::Time(at)];
                tx.run(S::Db::whole(take, values)?).await?;
                let known = S::Db::whole(claimed, [Value::Text(token_hash)])?;
                let known: Vec<Claimed> = tx.rows(known, Planned::Once).await?;
                match known.into_iter().next() {
                    None => Claim::Unknown,
                    Some(claimed) if claimed.claimed_by == *user => Claim::Yours(claimed),
                    Some(_) => Claim::Another,
                }
            }
        }
    })
}
