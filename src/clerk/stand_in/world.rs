//! Owns the users whom the stand-in knows, in the two orders in which they are listed, and what tests set and see of it.
//! Promises that a page is found without a look at the users before it, and that a million users fit in memory. Never
//! renders a user.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::time::Instant;

use super::{
    super::made_up::{INSTANCE, Person},
    faults::Faults,
};
use crate::{secret::Secret, time::Millis};

/// Clerk counts requests over this time.
const WINDOW: Duration = Duration::from_secs(10);

/// All that the stand-in knows. Cheap to clone; it can be changed while it is served.
#[derive(Clone)]
pub struct World(Arc<Mutex<State>>);

struct State {
    instance: String,
    key: Secret,
    users: HashMap<Arc<str>, Known>,
    by_creation: Index,
    by_change: Index,
    /// Items by the user who pays, as the API gives them.
    items: BTreeMap<String, Vec<Value>>,
    faults: Faults,
    before_each: Option<Hook>,
    find: Option<Find>,
    asked: BTreeMap<String, u64>,
    /// When the running window began, and how many requests it has seen.
    window: Option<(Instant, u32)>,
}

/// Where a user stands in an order: by time, and by id at the same time.
pub(super) type Place = (Millis, Arc<str>);

/// Everybody in an order.
pub(super) type Index = BTreeSet<Place>;

/// Is called with the request's path and query before it is answered.
type Hook = Arc<dyn Fn(&World, &str) + Send + Sync>;

/// Is asked for the user of an id whom nobody knows yet.
type Find = Arc<dyn Fn(String) -> BoxFuture<'static, Option<Person>> + Send + Sync>;

struct Known {
    created_at: Millis,
    updated_at: Millis,
    /// `None`: as [`Person::of`] makes the user.
    person: Option<Box<Person>>,
}

impl Default for World {
    /// Nobody, in the instance that made-up events come from.
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            instance: INSTANCE.into(),
            key: Secret::new("sk_test_MadeUpKeyOfTheStandIn"),
            users: HashMap::new(),
            by_creation: Index::new(),
            by_change: Index::new(),
            items: BTreeMap::new(),
            faults: Faults::default(),
            before_each: None,
            find: None,
            asked: BTreeMap::new(),
            window: None,
        })))
    }
}

impl World {
    /// Nobody, in the instance that made-up events come from.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The instance, `ins_…`.
    pub fn instance(&self) -> String {
        self.state().instance.clone()
    }

    /// Makes it another instance.
    pub fn set_instance(&self, id: impl Into<String>) {
        self.state().instance = id.into();
    }

    /// The key that is taken.
    pub fn key(&self) -> Secret {
        self.state().key.clone()
    }

    /// Takes another key from now on, and no more the last one.
    pub fn set_key(&self, key: Secret) {
        self.state().key = key;
    }

    /// Adds the user that [`Person::of`] makes of an id. Takes little memory.
    pub fn sign_up(&self, id: &str, created_at: Millis) {
        self.state().put(id, Known { created_at, updated_at: created_at, person: None });
    }

    /// Adds a user, or replaces the one of the same id.
    pub fn insert(&self, person: Person) {
        let (created_at, updated_at) = (person.created_at, person.updated_at);
        let usual = created_at == updated_at && person == Person::of(&*person.id, created_at);
        let id = person.id.clone();
        let person = (!usual).then(|| Box::new(person));
        self.state().put(&id, Known { created_at, updated_at, person });
    }

    /// Changes a user at `at`, which becomes its `updated_at` unless `change` says otherwise. Returns what it is now;
    /// `None` where there is no such user.
    pub fn change(&self, id: &str, at: Millis, change: impl FnOnce(&mut Person)) -> Option<Person> {
        let mut person = self.person(id)?;
        person.updated_at = at;
        change(&mut person);
        self.insert(person.clone());
        Some(person)
    }

    /// Deletes a user. Returns what it was.
    pub fn delete(&self, id: &str) -> Option<Person> {
        let known = self.state().take(id)?;
        Some(known.person(id))
    }

    /// Has a user pay for these items, in the API's shape, and for no others. A user who is not named here has no subscription.
    pub fn set_items(&self, user: &str, items: Vec<Value>) {
        self.state().items.insert(user.to_owned(), items);
    }

    /// Knows of no subscription of a user's any more.
    pub fn forget_items(&self, user: &str) {
        self.state().items.remove(user);
    }

    /// What a user pays for, or did.
    pub fn items(&self, user: &str) -> Option<Vec<Value>> {
        self.state().items.get(user).cloned()
    }

    /// What all users pay for, each with the user.
    pub(super) fn all_items(&self) -> Vec<(String, Value)> {
        let state = self.state();
        let all = state
            .items
            .iter()
            .flat_map(|(user, items)| items.iter().map(|item| (user.clone(), item.clone())));
        all.collect()
    }

    /// A user as it is now.
    pub fn person(&self, id: &str) -> Option<Person> {
        self.state().users.get(id).map(|known| known.person(id))
    }

    /// Everybody, the oldest accounts first. Of a large world this takes much memory.
    pub fn people(&self) -> Vec<Person> {
        let state = self.state();
        state.by_creation.iter().filter_map(|(_, id)| Some(state.users.get(id)?.person(id))).collect()
    }

    /// How many users there are.
    pub fn count(&self) -> usize {
        self.state().users.len()
    }

    /// Makes things go wrong, or right again.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state().faults);
    }

    /// Has `hook` called before each request is answered, with the request's path and query: to change the world between
    /// two pages, say.
    pub fn before_each(&self, hook: impl Fn(&Self, &str) + Send + Sync + 'static) {
        self.state().before_each = Some(Arc::new(hook));
    }

    /// Has `find` asked for each user who is asked for by id and not known. Whom it finds is known from then on.
    pub fn or_find(
        &self,
        find: impl Fn(String) -> BoxFuture<'static, Option<Person>> + Send + Sync + 'static,
    ) {
        self.state().find = Some(Arc::new(find));
    }

    /// Looks for a user who is not known.
    pub(super) async fn look_for(&self, id: &str) {
        let find = {
            let state = self.state();
            state.find.clone().filter(|_| !state.users.contains_key(id))
        };
        if let Some(find) = find
            && let Some(person) = find(id.to_owned()).await
        {
            self.insert(person);
        }
    }

    /// How many requests there were to a path: `/v1/users`, `/v1/users/count`, `/v1/users/{id}`, `/v1/instance`,
    /// `/v1/users/{id}/billing/subscription`, `/v1/billing/subscription_items`.
    pub fn asked(&self, path: &str) -> u64 {
        self.state().asked.get(path).copied().unwrap_or_default()
    }

    /// Counts a request. Returns which one it is to its path, what goes wrong, and whom to tell before it is answered.
    pub(super) fn arrives(&self, path: &str) -> (u64, Faults, Option<Hook>) {
        let mut state = self.state();
        let asked = state.asked.entry(path.to_owned()).or_default();
        *asked += 1;
        (*asked, state.faults.clone(), state.before_each.clone())
    }

    /// Takes a request into the quota; else the seconds until there is room.
    pub(super) fn within(&self, quota: u32) -> Result<(), u64> {
        let mut state = self.state();
        let now = Instant::now();
        let (since, taken) = state.window.filter(|(since, _)| *since + WINDOW > now).unwrap_or((now, 0));
        state.window = Some((since, taken + 1));
        let left = (since + WINDOW).saturating_duration_since(now);
        if taken < quota { Ok(()) } else { Err((left.as_secs_f64().ceil() as u64).max(1)) }
    }

    /// What `look` finds in the orders. Nothing changes meanwhile.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Orders<'_>) -> T) -> T {
        look(&Orders(&self.state()))
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("users", &self.count()).finish_non_exhaustive()
    }
}

impl State {
    fn put(&mut self, id: &str, known: Known) {
        self.take(id);
        let id: Arc<str> = id.into();
        self.by_creation.insert((known.created_at, Arc::clone(&id)));
        self.by_change.insert((known.updated_at, Arc::clone(&id)));
        self.users.insert(id, known);
    }

    fn take(&mut self, id: &str) -> Option<Known> {
        let (id, known) = self.users.remove_entry(id)?;
        self.by_creation.remove(&(known.created_at, Arc::clone(&id)));
        self.by_change.remove(&(known.updated_at, id));
        Some(known)
    }
}

impl Known {
    fn person(&self, id: &str) -> Person {
        self.person.as_deref().cloned().unwrap_or_else(|| Person::of(id, self.created_at))
    }
}

/// By which time users are put in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Creation,
    Change,
}

/// The users in their orders.
pub(super) struct Orders<'a>(&'a State);

impl Orders<'_> {
    /// Everybody.
    pub(super) fn index(&self, by: By) -> &Index {
        match by {
            By::Creation => &self.0.by_creation,
            By::Change => &self.0.by_change,
        }
    }

    /// A user's place; `None` where there is no such user.
    pub(super) fn place(&self, by: By, id: &str) -> Option<Place> {
        let (id, known) = self.0.users.get_key_value(id)?;
        let time = match by {
            By::Creation => known.created_at,
            By::Change => known.updated_at,
        };
        Some((time, Arc::clone(id)))
    }

    /// Whether a user has one of these addresses, which are in lower case.
    pub(super) fn has_address(&self, id: &str, addresses: &[String]) -> bool {
        let Some(person) = self.0.users.get(id).map(|known| known.person(id)) else { return false };
        let own = [person.email, person.second_email];
        own.into_iter().flatten().any(|address| addresses.contains(&address.to_lowercase()))
    }
}
