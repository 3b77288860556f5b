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

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{
        clerk::{
            api::Settings,
            stand_in::{Cursor, StandIn, World, Wrong},
        },
        secret::Secret,
    };

    const KEY: &str = "sk_live_reading";

    async fn stand_in(world: &World) -> (StandIn, Api) {
        world.set_key(Secret::new(KEY));
        let stand_in = StandIn::start(world.clone()).await.unwrap();
        let settings = Settings {
            key: Secret::new(KEY),
            url: stand_in.url().to_owned(),
            rate: Some(1_000.0),
            patience: Duration::ZERO,
            keep_object: false,
        };
        let api = Api::new(&settings).unwrap();
        (stand_in, api)
    }

    /// How often each user was given.
    async fn read(
        api: &Api,
        limit: u16,
        place: Place,
        count: u64,
    ) -> Result<BTreeMap<String, usize>, SyncError> {
        let mut reader = Reader { limit, ..Reader::new(api.clone(), place, count) };
        let mut users = BTreeMap::new();
        while let Some(page) = reader.next().await? {
            assert_eq!(page.next, reader.place);
            for user in page.users {
                *users.entry(user.clerk_id.unwrap()).or_default() += 1;
            }
        }
        Ok(users)
    }

    #[tokio::test]
    async fn everybody_is_read_whatever_becomes_of_the_cursor() {
        let mut dice = StdRng::seed_from_u64(7);
        for round in 0..8 {
            let world = World::new();
            let people = dice.random_range(1..40);
            for n in 0..people {
                // Many of one millisecond, as an import makes them.
                world.sign_up(&format!("user_{n:02}"), 1_700_000_000_000 + dice.random_range(0..8) * 1_000);
            }
            let (_stand_in, api) = stand_in(&world).await;
            for cursor in [Cursor::AsDocumented, Cursor::Ignored, Cursor::Refused] {
                for limit in [1, 3, 7, 20, 100] {
                    world.faults(|faults| faults.cursor = cursor);
                    let given = read(&api, limit, Place::Start, people).await.unwrap();
                    let missed: Vec<_> =
                        world.people().into_iter().filter(|person| !given.contains_key(&person.id)).collect();
                    assert!(missed.is_empty(), "round {round}, {cursor:?}, limit {limit}: {missed:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn who_stays_is_read_though_others_are_deleted_between_the_pages() {
        for cursor in [Cursor::AsDocumented, Cursor::Ignored, Cursor::Refused] {
            let world = World::new();
            (0..60).for_each(|n| world.sign_up(&format!("user_{n:02}"), 1_700_000_000_000 + n * 1_000));
            world.faults(|faults| faults.cursor = cursor);
            let (_stand_in, api) = stand_in(&world).await;
            // The last of the page before, behind which reading goes on.
            world.before_each(|world, path| {
                let after = path.split_once("starting_after=").and_then(|(_, rest)| rest.split('&').next());
                if let Some(id) = after.filter(|id| id.ends_with('9')) {
                    world.delete(id);
                }
            });
            let given = read(&api, 5, Place::Start, 60).await.unwrap();
            let missed: Vec<_> =
                world.people().into_iter().filter(|person| !given.contains_key(&person.id)).collect();
            assert!(missed.is_empty(), "{cursor:?}: {missed:?}");
        }
    }

    #[tokio::test]
    async fn a_list_that_does_not_end_is_an_error_and_so_is_one_that_is_empty_by_mistake() {
        let world = World::new();
        (0..20).for_each(|n| world.sign_up(&format!("user_{n:02}"), 1_700_000_000_000));
        let (_stand_in, api) = stand_in(&world).await;
        let page = api
            .users(&UsersQuery {
                order: Order::CreatedAt,
                limit: 20,
                after: None,
                offset: 0,
                created_after: None,
            })
            .await
            .unwrap();
        assert_eq!(page.users.len(), 20);
        let people: Vec<String> = world.people().iter().map(|person| person.data().to_string()).collect();
        world.faults(|faults| {
            faults.wrong = Some(Wrong::Body(format!("[{}]", people.join(","))));
            faults.path = Some("/v1/users");
        });
        let error = read(&api, 20, Place::Start, 20).await.unwrap_err();
        assert!(matches!(error, SyncError::Endless { count: 20, .. }), "{error}");
        world.faults(|faults| faults.wrong = Some(Wrong::Body("[]".into())));
        let error = read(&api, 20, Place::Start, 20).await.unwrap_err();
        assert!(matches!(error, SyncError::EmptyList(20)), "{error}");
    }
}
