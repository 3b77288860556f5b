//! Owns mending a letter: a new body is held to what a worker would accept before anything is committed, and goes out
//! once. The message id stays, so that what was applied meanwhile stays applied once.

use bytes::Bytes;

use super::{
    diff::{Line, diff},
    replay::{End, Replayer},
};
use crate::{
    clerk::{self, Parsed},
    message::MessageId,
    rules::{Change, users},
    store::{
        StoreError,
        letters::{Actor, Letter, LetterDetail, Status},
    },
    time::now,
};

/// The largest body, in bytes: what the ingress would take.
pub const BODY_MAX: usize = 512 * 1024;

/// A body that would be accepted.
#[derive(Clone, Debug)]
pub struct Mended {
    /// The bytes.
    pub body: Bytes,
    /// Against the letter's body.
    pub difference: Vec<Line>,
    /// What whoever sends it may not have meant.
    pub warnings: Vec<String>,
}

/// Why an edit was not sent.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// A worker would bury it again.
    #[error("the new body would be buried again: {0}")]
    Refused(String),
    /// Nothing differs.
    #[error("the new body says what the old one says")]
    Unchanged,
    /// Only an open letter can be edited.
    #[error("the letter is {}, not open", .0.as_str())]
    NotOpen(Status),
    /// Another was quicker.
    #[error("the letter is not open any more")]
    Gone,
    /// The database does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is committed and not published.
    #[error("the edit is committed and could not be published yet")]
    Unpublished(Box<End>),
}

/// Holds a new body to what would be accepted for this letter.
///
/// # Errors
/// It would be buried again, or says what the old one says.
pub fn check(letter: &LetterDetail, body: Bytes) -> Result<Mended, EditError> {
    if letter.letter.status != Status::Open {
        return Err(EditError::NotOpen(letter.letter.status));
    }
    if body.len() > BODY_MAX {
        return Err(EditError::Refused(format!("it is larger than {BODY_MAX} bytes")));
    }
    let id = MessageId::parse(&letter.letter.message_id)
        .ok_or_else(|| EditError::Refused("its message id cannot travel".into()))?;
    let difference = diff(&letter.body, &body);
    if difference.is_empty() {
        return Err(EditError::Unchanged);
    }
    let parsed = clerk::parse(&body, &id, now()).map_err(|error| EditError::Refused(error.detail))?;
    let warnings = warnings(&letter.letter, &parsed);
    Ok(Mended { body, difference, warnings })
}

/// What an accepted body does that a mended one seldom should.
fn warnings(letter: &Letter, parsed: &Parsed) -> Vec<String> {
    let mut warnings = Vec::new();
    let now = match &parsed.change {
        Change::User(users::Change::Upsert(user)) => Some(&user.clerk_id),
        Change::User(users::Change::Delete { clerk_id, .. }) => {
            if letter.event_type != parsed.event_type {
                warnings.push("the new body deletes the user, which is final".into());
            }
            Some(clerk_id)
        }
        Change::Other => {
            warnings
                .push(format!("a worker ignores events of the type {}: no user changes", parsed.event_type));
            None
        }
    };
    if let (Some(before), Some(now)) = (&letter.clerk_id, now)
        && before != now
    {
        warnings.push(format!("the new body is about another user: {now}, not {before}"));
    }
    warnings
}

/// Commits the body with the claim, publishes it and stamps it.
///
/// # Errors
/// The letter is not open any more, or the database is away: nothing was sent. Or the queue is away: it is committed,
/// and a replay of this letter publishes it.
pub async fn send(
    replayer: &Replayer,
    letter: &LetterDetail,
    mended: Mended,
    by: Actor,
) -> Result<u32, EditError> {
    let claim = replayer.letters.edit(letter.letter.id, mended.body, &by).await?;
    let claim = claim.ok_or(EditError::Gone)?;
    let round = claim.round;
    replayer.send(vec![claim]).await.map_err(|ended| EditError::Unpublished(Box::new(ended)))?;
    Ok(round)
}
