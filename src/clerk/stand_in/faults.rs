//! Owns what can go wrong with the stand-in's answers, for tests to set. Pure.

use std::{collections::BTreeMap, time::Duration};

use crate::time::Millis;

/// What goes wrong. Nothing by default.
#[derive(Clone, Debug)]
pub struct Faults {
    /// The most requests in 10 s; more are answered 429, with the seconds until more are taken. Clerk: 1,000 or 100.
    pub quota: Option<u32>,
    /// How long each answer takes.
    pub delay: Duration,
    /// What happens instead of a sound answer, ...
    pub wrong: Option<Wrong>,
    /// ... in every how manyth request, ...
    pub each: u64,
    /// ... of those to this path only, as [`super::World::asked`] counts it.
    pub path: Option<&'static str>,
    /// How `starting_after` is taken.
    pub cursor: Cursor,
    /// What stands in the answers instead of the user of an id, as JSON.
    pub garbled: BTreeMap<String, String>,
    /// How far the clock in the header `Date` is ahead of this machine's, in milliseconds.
    pub clock_ahead: Millis,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            quota: None,
            delay: Duration::ZERO,
            wrong: None,
            each: 1,
            path: None,
            cursor: Cursor::AsDocumented,
            garbled: BTreeMap::new(),
            clock_ahead: 0,
        }
    }
}

/// What happens instead of a sound answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// This status, without anything of Clerk's.
    Status(u16),
    /// 429, to come back after so many seconds.
    Limited(u64),
    /// 200 with this body: `[]`, say.
    Body(String),
    /// 200 with a web page.
    Page,
    /// 302 to this URL.
    Redirect(String),
    /// The connection ends in the middle of the sound answer's body.
    Cut,
    /// There is no answer at all.
    Hang,
}

/// How `starting_after` is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// With `created_at` in either direction, without `offset`, and behind a user who exists.
    AsDocumented,
    /// Not at all: each page is the first again.
    Ignored,
    /// Answered 422.
    Refused,
}
