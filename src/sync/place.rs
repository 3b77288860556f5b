//! Owns where a run stands: its phase, and from where reading goes on. Survives the process as text.

use serde::{Deserialize, Serialize};

use crate::time::Millis;

/// What a run does at present, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Reads every user.
    Reading,
    /// Reads what changed meanwhile.
    Newest,
    /// Compares what users pay for.
    Subscriptions,
    /// Looks for users who are gone, and confirms each.
    Searching,
    /// Publishes that they are gone.
    Deleting,
    /// Waits until what it published is applied.
    Applying,
}

impl Phase {
    const ALL: [Self; 6] =
        [Self::Reading, Self::Newest, Self::Subscriptions, Self::Searching, Self::Deleting, Self::Applying];

    /// For people, and in the table.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Reading => "reading",
            Self::Newest => "reading what changed meanwhile",
            Self::Searching => "searching for who is gone",
            Self::Deleting => "deleting who is gone",
            Self::Subscriptions => "comparing subscriptions",
            Self::Applying => "waiting until all is applied",
        }
    }

    /// The phase of this name; what is unknown begins anew.
    pub(super) fn of(name: &str) -> Self {
        Self::ALL.into_iter().find(|phase| phase.as_str() == name).unwrap_or(Self::Reading)
    }
}

/// From where a run goes on, as it stands in the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursor {
    /// When it began, by Clerk's clock.
    pub(super) began: Millis,
    /// From where the list is read on.
    pub(super) place: Place,
    /// It revives users: what it has read was read for that.
    pub(super) revive: bool,
}

/// What was read longer ago is not gone on with, once all is read: too much may have changed since.
const FRESH: Millis = 3_600_000;

/// A place in Clerk's list of users, the oldest account first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Place {
    /// Nothing was read.
    Start,
    /// After this user.
    After {
        /// The account.
        id: String,
        /// When it was created, for the case that Clerk does not take the id.
        created_at: Option<Millis>,
    },
    /// Among the accounts that were created at this time or later, after so many of them. For an API that takes no cursor.
    Window {
        /// The time.
        from: Millis,
        /// How many are left out.
        offset: u64,
    },
    /// All was read.
    End,
}

impl Cursor {
    /// At the beginning.
    pub(super) fn start(began: Millis, revive: bool) -> Self {
        Self { began, place: Place::Start, revive }
    }

    /// Whether a run that stopped in this phase can be gone on with at `now`. What it has read is not read again, so it has to
    /// have been read for the same, and not long ago. A run that only waits for what it published has nothing left to do.
    pub(super) fn goes_on(&self, phase: Phase, revive: bool, now: Millis) -> bool {
        let fresh = now.saturating_sub(self.began) < FRESH;
        self.revive == revive && (phase == Phase::Reading || (phase < Phase::Applying && fresh))
    }

    /// As text for the table.
    pub(super) fn text(&self) -> String {
        // Times and a text: this cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What an earlier process wrote, where it can be read.
    pub(super) fn read(text: Option<&str>) -> Option<Self> {
        text.and_then(|text| serde_json::from_str(text).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_survives_as_text_and_what_cannot_be_read_begins_anew() {
        for place in [
            Place::Start,
            Place::After { id: "user_1".into(), created_at: Some(5) },
            Place::Window { from: 7, offset: 500 },
            Place::End,
        ] {
            let cursor = Cursor { began: 3, place, revive: false };
            assert_eq!(Cursor::read(Some(&cursor.text())), Some(cursor));
        }
        assert_eq!(Cursor::read(None), None);
        assert_eq!(Cursor::read(Some("{")), None);
        for phase in Phase::ALL {
            assert_eq!(Phase::of(phase.as_str()), phase);
        }
        assert_eq!(Phase::of(""), Phase::Reading);
    }

    #[test]
    fn only_what_was_read_for_the_same_and_not_long_ago_is_gone_on_with() {
        let cursor = Cursor::start(0, false);
        let late = FRESH;
        for phase in Phase::ALL {
            assert!(!cursor.goes_on(phase, true, 0), "{phase:?}: not read to revive");
            assert_eq!(cursor.goes_on(phase, false, 0), phase != Phase::Applying, "{phase:?}");
            assert_eq!(cursor.goes_on(phase, false, late), phase == Phase::Reading, "{phase:?}");
        }
    }
}
