//! Owns who lives in the demo, as the stand-in for Clerk's API tells it: whoever the demo's world tells of, whoever lives in the
//! table of an earlier demo, and whoever a person makes with `headcount send`. Promises that nobody is taken in who left the
//! demo's world, and that a table of a real instance is refused. Never writes to the table.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chrono::DateTime;

use crate::{
    clerk::{
        made_up::{IMAGES, INSTANCE, Person, world::Happened},
        stand_in::World,
    },
    config::Config,
    failure::Failure,
    store::{Store, User, UserQuery},
    time::Millis,
};

/// So many users of an earlier demo are taken in at the start. Others are when the stand-in is asked for them.
const TAKEN_IN: usize = 10_000;
/// They are read so many at a time.
const PAGE: u32 = 1_000;
/// So many of those who left are remembered, the newest.
const LEFT: usize = 20_000;

/// Who lives in the demo. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct People {
    known: World,
    left: Arc<Mutex<Left>>,
}

/// Who left the demo's world.
#[derive(Debug, Default)]
struct Left {
    ids: HashSet<String>,
    /// The order in which they left.
    order: VecDeque<String>,
}

impl People {
    /// Those who live in the table.
    ///
    /// # Errors
    /// The table is a real instance's. The database does not answer.
    pub(super) async fn of(store: &dyn Store, config: &Config) -> Result<Self, Failure> {
        let owner = store.instances().await?.into_iter().find(|instance| instance.owner);
        if let Some(other) = owner.as_ref().filter(|owner| owner.instance_id != INSTANCE) {
            return Err(refused(
                &format!("this table belongs to the Clerk instance {}", other.instance_id),
                config,
            ));
        }
        let people = Self::default();
        let mut after = None;
        while people.known.count() < TAKEN_IN {
            let query = UserQuery { limit: PAGE, after, ..UserQuery::default() };
            let page = store.users(&query).await?;
            // A table that no webhook and no sync has named the owner of yet.
            if owner.is_none() && !page.iter().all(is_made_up) {
                return Err(refused("this table holds users who are not made up", config));
            }
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            page.iter().for_each(|user| people.known.insert(person(user)));
        }
        Ok(people)
    }

    /// The stand-in's users.
    pub(super) fn known(&self) -> World {
        self.known.clone()
    }

    /// Has the stand-in know whoever lives in the table as well, once it is asked for them: people make users with `headcount
    /// send`, and these did not come from Clerk.
    pub(super) fn look_into(&self, store: Arc<dyn Store>) {
        let left = Arc::clone(&self.left);
        self.known.or_find(move |id| {
            let (store, left) = (Arc::clone(&store), Arc::clone(&left));
            Box::pin(async move {
                let user = store.user(&id).await.ok().flatten()?.user?;
                let lives =
                    user.clerk_id == id && user.deleted_at.is_none() && !lock(&left).ids.contains(&id);
                lives.then(|| person(&user))
            })
        });
    }

    /// Something happens in the demo's world.
    pub(super) fn happen(&self, happened: Happened) {
        match happened {
            Happened::Lives(person) => self.known.insert(*person),
            Happened::Left(id) => {
                // First, so that the stand-in does not find the row of somebody who is just leaving.
                lock(&self.left).add(id.clone());
                self.known.delete(&id);
            }
        }
    }
}

fn lock(left: &Mutex<Left>) -> MutexGuard<'_, Left> {
    left.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Left {
    fn add(&mut self, id: String) {
        self.order.push_back(id.clone());
        self.ids.insert(id);
        if self.order.len() > LEFT
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }
}

fn refused(why: &str, config: &Config) -> Failure {
    let setting = match config.store().backend.file() {
        Some(_) if config.database_url.is_some() => "DATABASE_URL to another file",
        Some(_) => "HEADCOUNT_DATA_DIR to another directory",
        None => "HEADCOUNT_SCHEMA to another schema",
    };
    Failure::new(format!("{why}: the demo would mix made-up people with them"))
        .hint(format!("give the demo a table of its own: set {setting}"))
}

fn is_made_up(user: &User) -> bool {
    user.image_url.as_deref().is_some_and(|image| image.starts_with(IMAGES))
}

/// The user as Clerk would know it, with the row's values.
fn person(user: &User) -> Person {
    let time = |text: &Option<String>| -> Option<Millis> {
        Some(DateTime::parse_from_rfc3339(text.as_deref()?).ok()?.timestamp_millis())
    };
    let created_at = time(&user.clerk_created_at).unwrap_or(user.version);
    Person {
        email: user.clerk_email.clone(),
        verified: user.email_verified,
        phone: user.phone.clone(),
        username: user.username.clone(),
        first_name: user.first_name.clone(),
        last_name: user.last_name.clone(),
        image_url: user.image_url.clone(),
        external_id: user.external_id.clone(),
        public_metadata: user.public_metadata.clone().unwrap_or_default(),
        private_metadata: user.private_metadata.clone().unwrap_or_default(),
        unsafe_metadata: user.unsafe_metadata.clone().unwrap_or_default(),
        banned: user.banned.unwrap_or_default(),
        locked: user.locked.unwrap_or_default(),
        updated_at: time(&user.clerk_updated_at).unwrap_or(user.version),
        last_sign_in_at: time(&user.last_sign_in_at),
        ..Person::of(&user.clerk_id, created_at)
    }
}
