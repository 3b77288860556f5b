//! Owns what people should know of a run beside its counts, a sentence each.

use super::run::Work;
use crate::{
    clerk::api::{clock_hint, clock_says},
    text::number,
    time::rfc3339,
};

impl Work<'_> {
    /// Adds what is known only at the run's end.
    pub(super) fn add_notes(&mut self) {
        if self.run.resumed {
            self.notes.push(format!(
                "the run began at {}: what changed here in users whom it had compared before it stopped is for the next run to find",
                rfc3339(self.run.started_at)
            ));
        }
        if self.young > 0 {
            let done = if self.order.dry_run { "left to their webhooks" } else { "published all the same" };
            self.notes.push(format!(
                "users who changed so lately that their webhooks may come count as in step, and are {done}: {}",
                number(self.young)
            ));
        }
        if self.stale > 0 {
            self.notes.push(format!(
                "differences that were not repaired, because the table knew something newer by then: {}; if a run finds them again, look at their columns version and version_sent, and whether the worker has the same HEADCOUNT_KEEP_CLERK_OBJECT",
                number(self.stale)
            ));
        }
        if self.doubtful > 0 {
            let claim = if self.doubtful == 1 { "row claims" } else { "rows claim" };
            self.notes.push(format!(
                "{} {claim} to be newer than Clerk's answer, and cannot be: see --verbose; to have Clerk's version, set the column version to 0, or a deleted_at of the future to a time that is past, and sync again",
                number(self.doubtful)
            ));
        }
        if let Some(offset) = self.sync.api.clock_offset() {
            self.notes.push(format!("{}; {}", clock_says(offset), clock_hint(offset)));
        }
    }
}
