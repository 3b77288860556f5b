//! Owns what every page shows: the overview and the verdict.

use std::sync::Arc;

use super::{
    super::api::{Api, problem::Problem},
    kept::{Kept, Known},
};
use crate::{
    ops::{
        processes::Processes,
        status::{Overview, Status},
        verdict::{Concern, Level, Verdict, unanswered},
    },
    store::letters,
    time::{Millis, now},
};

/// How things stood at a time.
#[derive(Debug)]
pub(super) struct Moment {
    pub(super) at: Millis,
    pub(super) verdict: Verdict,
    /// What is known; or why nothing is.
    pub(super) known: Result<(Overview, Processes), String>,
}

impl Moment {
    pub(super) fn open_letters(&self) -> Option<u64> {
        let (overview, _) = self.known.as_ref().ok()?;
        overview.dead_letters.get(&letters::Status::Open).copied()
    }

    /// What is said once no answer has come for long.
    fn without_answer(&self) -> Self {
        let verdict = unanswered("database or the queue", self.at, "it is asked again", now());
        Self { at: self.at, known: Err(verdict.text.clone()), verdict }
    }

    /// Beside a page that got no answer: what was well a moment ago is not said to be well now.
    pub(super) fn of_no_answer(self: Arc<Self>) -> Arc<Self> {
        match self.verdict.level {
            Level::Well => Arc::new(self.without_answer()),
            Level::Attention | Level::Trouble => self,
        }
    }

    fn of(read: Result<Status, Problem>) -> Self {
        let (verdict, known) = match read {
            Ok(Status { verdict, overview, processes }) => (verdict, Ok((overview, processes))),
            Err(problem) => {
                let (what, hint) = problem.says();
                let why = hint.map_or_else(|| what.to_owned(), |hint| format!("{what}; {hint}"));
                let text = format!("How things stand is not known: {why}");
                let concern = Concern { level: Level::Trouble, text: text.clone(), link: "/flow" };
                (Verdict { level: Level::Trouble, text, link: "/flow", concerns: vec![concern] }, Err(why))
            }
        };
        Self { at: now(), verdict, known }
    }

    /// As it is shown.
    fn shown(known: Result<Known<Self>, Problem>) -> Arc<Self> {
        match known {
            Ok(known) if known.is_old() => Arc::new(known.value.without_answer()),
            Ok(known) => known.value,
            Err(problem) => Arc::new(Self::of(Err(problem))),
        }
    }
}

/// How things stand.
pub(super) async fn now_at(kept: &Arc<Kept<Moment>>, api: &Arc<Api>) -> Arc<Moment> {
    let api = Arc::clone(api);
    Moment::shown(kept.or(|| async move { Ok(Moment::of(api.standing().await)) }).await)
}

#[cfg(test)]
mod tests {
    use super::{super::kept::OLD, *};

    #[tokio::test]
    async fn what_is_old_is_not_shown_as_how_things_stand() {
        let kept = Kept::of(Known::aged(Moment::of(Err(Problem::unavailable("away"))), OLD));
        let shown = Moment::shown(kept.or(std::future::pending).await);
        assert_eq!(shown.verdict.level, Level::Trouble);
        let text = &shown.verdict.text;
        assert!(text.starts_with("No answer from the database or the queue since"), "{text}");
    }

    #[test]
    fn beside_a_page_without_an_answer_nothing_is_said_to_be_well() {
        let well = |level| {
            let verdict = Verdict { level, text: "as it is".into(), link: "/", concerns: Vec::new() };
            Arc::new(Moment { at: now(), verdict, known: Err(String::new()) })
        };
        assert_eq!(well(Level::Well).of_no_answer().verdict.level, Level::Trouble);
        assert_eq!(well(Level::Attention).of_no_answer().verdict.text, "as it is");
    }
}
