//! Owns edits: a new body is checked as a worker would check it before anything is committed, and is published once. The
//! message id stays, so that a message which took effect meanwhile does not take effect twice.

use bytes::Bytes;

use super::{
    diff::{Line, diff},
    replay::{End, Replayer},
};
use crate::{
    clerk::{self, Parsed},
    message::MessageId,
    store::{
        StoreError,
        letters::{Actor, Letter, LetterDetail, Status},
    },
    time::now,
};

/// The largest body, in bytes: the ingress takes none that is larger.
pub const BODY_MAX: usize = 512 * 1024;

/// A new body that a worker would accept.
#[derive(Clone, Debug)]
pub struct Mended {
    /// As it will be published.
    pub body: Bytes,
    /// What differs from the letter's body, for people.
    pub difference: Vec<Line>,
    /// What the person who sends it may not have meant.
    pub warnings: Vec<String>,
}

/// Why an edit was not sent.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// A worker would bury the message again, for this reason.
    #[error("the new body would be buried again: {0}")]
    Refused(String),
    /// The new body says what the old one says.
    #[error("the new body says what the old one says")]
    Unchanged,
    /// Only an open letter can be edited.
    #[error("the letter is {}, not open", .0.as_str())]
    NotOpen(Status),
    /// Another edit, replay or discard was quicker.
    #[error("the letter is not open any more")]
    Gone,
    /// The database does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The edit is committed and not published. A replay of the letter publishes it.
    #[error("the edit is committed and could not be published yet")]
    Unpublished(Box<End>),
}

/// Checks a new body for a letter.
///
/// # Errors
/// A worker would bury it again, it says what the old one says, or the letter is not open.
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
    let known = clerk::Known { origin: letter.letter.origin, ..clerk::Known::webhook(&id, now()) };
    let parsed = clerk::parse(&body, &known).map_err(|error| EditError::Refused(error.detail))?;
    let warnings = warnings(&letter.letter, &parsed);
    Ok(Mended { body, difference, warnings })
}

/// What an accepted body does that a mended body seldom should.
fn warnings(letter: &Letter, parsed: &Parsed) -> Vec<String> {
    let mut warnings = Vec::new();
    if parsed.change.deletes() && letter.event_type != parsed.event_type {
        warnings.push("the new body deletes the user, which is final".into());
    }
    if parsed.change.is_ignored() {
        warnings.push(format!("a worker ignores events of the type {}: no user changes", parsed.event_type));
    }
    if let (Some(before), Some(now)) = (&letter.clerk_id, parsed.change.clerk_id())
        && before != now
    {
        warnings.push(format!("the new body is about another user: {now}, not {before}"));
    }
    warnings
}

/// Commits the body together with the claim, publishes it and stamps it. Returns the round that began.
///
/// # Errors
/// The letter is not open any more, or the database is away: nothing was sent. Or the queue is away: the edit is
/// committed, and a replay of this letter publishes it.
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
