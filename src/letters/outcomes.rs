//! Owns what became of letters that a replay published: looks at them for up to five seconds, until each was applied or
//! died again. Changes nothing.

use std::{collections::BTreeMap, time::Duration};

use tokio::{sync::watch, time::Instant};
use uuid::Uuid;

use crate::{
    pause::Pauses,
    rules::Outcome,
    stop::until,
    store::{
        StoreError,
        letters::{Filter, Letters, Page, Publication, Status},
    },
};

/// The most letters that are looked at.
pub const FOLLOWED_MAX: usize = 1000;
/// How long they are looked at, at most.
const PATIENCE: Duration = Duration::from_secs(5);

/// What became of letters that were published again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// How many took effect, by the outcome's name.
    pub applied: BTreeMap<&'static str, u64>,
    /// How many died again.
    pub died: u64,
    /// How many are not applied yet.
    pub under_way: u64,
}

impl std::fmt::Display for Outcomes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts: Vec<String> = self
            .applied
            .iter()
            .map(|(name, letters)| {
                let outcome = Outcome::ALL.into_iter().find(|outcome| outcome.as_str() == *name);
                match outcome.and_then(meaning) {
                    Some(meaning) => format!("{letters} {name} ({meaning})"),
                    None => format!("{letters} {name}"),
                }
            })
            .collect();
        for (letters, what) in [(self.died, "died again"), (self.under_way, "still under way")] {
            if letters > 0 {
                parts.push(format!("{letters} {what}"));
            }
        }
        f.write_str(&parts.join(", "))
    }
}

/// Why an outcome changed nothing, in words; `None` for an outcome that says it itself.
pub fn meaning(outcome: Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Ignored => Some("events of this type change no user"),
        Outcome::Stale => Some("it says nothing new about the user"),
        Outcome::Created
        | Outcome::Updated
        | Outcome::Deleted
        | Outcome::Relinked
        | Outcome::Revived
        | Outcome::Duplicate
        | Outcome::Waiting
        | Outcome::Buried => None,
    }
}

/// Looks at letters that were published again until each was applied or died again, `stop` turns true, or five seconds are
/// over. Of more than [`FOLLOWED_MAX`], the first are looked at.
///
/// # Errors
/// What the database says.
pub async fn follow(
    letters: &dyn Letters,
    sent: &[Publication],
    stop: &watch::Receiver<bool>,
) -> Result<Outcomes, StoreError> {
    let rounds: BTreeMap<Uuid, u32> = sent.iter().take(FOLLOWED_MAX).copied().collect();
    let filter = Filter { ids: rounds.keys().copied().collect(), ..Filter::default() };
    let page = Page { limit: FOLLOWED_MAX as u32, after: None };
    let mut pauses = Pauses::new(Duration::from_millis(50), Duration::from_millis(500));
    let deadline = Instant::now() + PATIENCE;
    if rounds.is_empty() {
        return Ok(Outcomes::default());
    }
    loop {
        let mut outcomes = Outcomes::default();
        for letter in letters.list(&filter, &page).await? {
            match letter.status {
                Status::Applied => {
                    let outcome = letter.outcome.map_or(letter.status.as_str(), Outcome::as_str);
                    *outcomes.applied.entry(outcome).or_default() += 1;
                }
                Status::Open if rounds.get(&letter.id).is_some_and(|round| letter.round >= *round) => {
                    outcomes.died += 1;
                }
                Status::Open | Status::Replayed | Status::Discarded => outcomes.under_way += 1,
            }
        }
        if outcomes.under_way == 0 || *stop.borrow() || Instant::now() >= deadline {
            return Ok(outcomes);
        }
        tokio::select! {
            () = tokio::time::sleep(pauses.next_pause()) => {}
            () = until(stop, |stop| *stop) => {}
        }
    }
}
