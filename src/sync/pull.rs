//! Owns reading Clerk's list of users to its end, page by page, the oldest account first: by the cursor that Clerk documents, and
//! where the API does not take it or does not keep to it, by windows of the time of creation that overlap by a millisecond. Promises
//! that it ends, also where the list does not; that no user of the page before is given again; and that a place where it stopped is
//! enough to go on.

use std::collections::HashSet;

use super::{SyncError, place::Place};
use crate::clerk::api::{Api, ApiError, Order, PAGE_MAX, Snapshot, UsersPage, UsersQuery};

/// Reading goes on beyond Clerk's own count so many times, and so many users: people sign up meanwhile, and windows overlap.
const BEYOND: (u64, u64) = (3, 10_000);

/// A page, and where the next one begins.
pub(super) struct Page {
    pub(super) users: Vec<Snapshot>,
    pub(super) next: Place,
}

/// Reads page after page.
pub(super) struct Reader {
    api: Api,
    place: Place,
    /// Smaller where pages were too large.
    limit: u16,
    /// Who stood on the page before.
    before: HashSet<String>,
    read: u64,
    /// By Clerk.
    count: u64,
}

impl Reader {
    pub(super) fn new(api: Api, place: Place, count: u64) -> Self {
        Self { api, place, limit: PAGE_MAX, before: HashSet::new(), read: 0, count }
    }

    /// The next page with somebody new on it; `None` at the end.
    ///
    /// # Errors
    /// The API; a list that does not end; an empty one where Clerk counts users.
    pub(super) async fn next(&mut self) -> Result<Option<Page>, SyncError> {
        loop {
            let (after, created_after, offset) = match &self.place {
                Place::End => return Ok(None),
                Place::Start => (None, None, 0),
                Place::After { id, .. } => (Some(id.clone()), None, 0),
                Place::Window { from, offset } => (None, Some(from - 1), *offset),
            };
            let order = Order::CreatedAt;
            let query = UsersQuery { order, limit: self.limit, after, offset, created_after };
            let page = match self.api.users(&query).await {
                Ok(page) => page,
                // Clerk does not take the cursor, or does not know the user behind it any more.
                Err(ApiError::Refused { .. }) if matches!(self.place, Place::After { .. }) => {
                    self.place = self.place.clone().without_cursor();
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            self.limit = page.limit;
            self.bound(page.users.len()).await?;
            if self.place == Place::Start && page.users.is_empty() && self.count > 0 {
                return Err(SyncError::EmptyList(self.count));
            }
            if let Some(page) = self.advance(page) {
                return Ok(Some(page));
            }
        }
    }

    async fn bound(&mut self, users: usize) -> Result<(), SyncError> {
        self.read += users as u64;
        let most = |count: u64| count.saturating_mul(BEYOND.0).saturating_add(BEYOND.1);
        if self.read > most(self.count) {
            self.count = self.api.count().await?;
        }
        if self.read > most(self.count) {
            return Err(SyncError::Endless { read: self.read, count: self.count });
        }
        Ok(())
    }

    /// Moves behind a page. `None`: there is nobody new on it, and reading goes on from the new place.
    fn advance(&mut self, page: UsersPage) -> Option<Page> {
        let UsersPage { users, limit } = page;
        let full = users.len() >= usize::from(limit);
        let is_known = |user: &Snapshot| user.clerk_id.as_ref().is_some_and(|id| self.before.contains(id));
        let ids: HashSet<String> = users.iter().filter_map(|user| user.clerk_id.clone()).collect();
        let newest = users.iter().filter_map(|user| user.created_at).max();
        let last = users.iter().rev().find_map(|user| Some((user.clerk_id.clone()?, user.created_at)));
        let next = match &self.place {
            Place::End => Place::End,
            _ if users.is_empty() => Place::End,
            Place::Start => after(last, newest),
            Place::After { created_at, .. } => {
                let earlier = users.iter().filter_map(|user| user.created_at).min() < *created_at;
                if earlier || users.iter().any(is_known) {
                    // The API does not keep to the cursor: what it gave may have left somebody out.
                    self.place = self.place.clone().without_cursor();
                    return None;
                }
                after(last, newest)
            }
            Place::Window { from, offset } => match newest {
                Some(newest) if newest > *from => Place::Window { from: newest, offset: 0 },
                _ if full => Place::Window { from: *from, offset: offset + users.len() as u64 },
                _ => Place::End,
            },
        };
        let fresh: Vec<Snapshot> = users.into_iter().filter(|user| !is_known(user)).collect();
        if fresh.is_empty() && !full {
            self.place = Place::End;
            return None;
        }
        // A window that moves on over known users only would begin with them again.
        let next = match (&self.place, next) {
            (Place::Window { from, offset }, Place::Window { .. }) if fresh.is_empty() => {
                Place::Window { from: *from, offset: offset + ids.len() as u64 }
            }
            (_, next) => next,
        };
        self.place = next.clone();
        if fresh.is_empty() {
            return None;
        }
        self.before = ids;
        Some(Page { users: fresh, next })
    }
}

fn after(last: Option<(String, Option<i64>)>, newest: Option<i64>) -> Place {
    match last {
        Some((id, created_at)) => Place::After { id, created_at: created_at.or(newest) },
        // Nobody on the page has an id that could be read.
        None => Place::Window { from: newest.unwrap_or_default(), offset: 0 },
    }
}

impl Place {
    fn without_cursor(self) -> Self {
        match self {
            Self::After { created_at, .. } => {
                Self::Window { from: created_at.unwrap_or_default(), offset: 0 }
            }
            place => place,
        }
    }
}
