//! A stand-in for Clerk's API beside the processes of a test.

use headcount::{
    clerk::{
        made_up::Person,
        stand_in::{StandIn, World as Clerk},
    },
    secret::Secret,
    store::User,
    time::{Millis, now, rfc3339},
};

use super::process::World;

/// The key with which tests ask. It opens nothing.
pub const KEY: &str = "sk_live_dGhlIHRlc3RzIG9mIGhlYWRjb3VudA";

/// An hour: changes that are older than the watch's grace.
pub const HOUR: Millis = 3_600_000;

/// Starts it, and points the world's processes at it. The watch is off until a test sets it.
pub async fn stand_in(world: &mut World) -> StandIn {
    let clerk = Clerk::new();
    clerk.set_key(Secret::new(KEY));
    let stand_in = StandIn::start(clerk).await.unwrap();
    world.set("CLERK_SECRET_KEY", KEY);
    world.set("CLERK_API_URL", stand_in.url());
    world.set("HEADCOUNT_WATCH", "0");
    stand_in
}

/// The id of a made-up account.
pub fn user(n: usize) -> String {
    format!("user_{n:05}")
}

/// So many people sign up, an hour ago, each a second after the one before.
pub fn populate(clerk: &Clerk, people: usize) {
    let first = now() - HOUR - 1000 * people as Millis;
    (0..people).for_each(|n| clerk.sign_up(&user(n), first + 1000 * n as Millis));
}

/// Where the live rows differ from who lives in Clerk, in words; nothing where they are the same.
pub fn differences(clerk: &Clerk, users: &[User]) -> Vec<String> {
    let mut differences = Vec::new();
    let mut live: std::collections::BTreeMap<&str, &User> = std::collections::BTreeMap::new();
    for user in users.iter().filter(|user| user.deleted_at.is_none()) {
        if live.insert(&user.clerk_id, user).is_some() {
            differences.push(format!("{} has two rows", user.clerk_id));
        }
    }
    for person in clerk.people() {
        match live.remove(person.id.as_str()) {
            None => differences.push(format!("{} is missing", person.id)),
            Some(row) if !is_same(&person, row) => {
                differences.push(format!("{} differs: {row:?} is not {person:?}", person.id));
            }
            Some(_) => {}
        }
    }
    differences.extend(live.into_keys().map(|id| format!("{id} lives here only")));
    differences
}

/// Whether a row says what Clerk says. Written apart from headcount's own comparison. Leaves out the last sign-in, which changes
/// without a new version and is no drift, and the whole object, which a [`User`] does not show.
fn is_same(person: &Person, row: &User) -> bool {
    let time = |at: Millis| Some(rfc3339(at));
    row.clerk_email == person.email
        && row.email == person.email
        && row.email_verified == person.verified
        && row.phone == person.phone
        && row.username == person.username
        && row.first_name == person.first_name
        && row.last_name == person.last_name
        && row.image_url == person.image_url
        && row.external_id == person.external_id
        && row.public_metadata.as_ref() == Some(&person.public_metadata)
        && row.private_metadata.as_ref() == Some(&person.private_metadata)
        && row.unsafe_metadata.as_ref() == Some(&person.unsafe_metadata)
        && row.banned == Some(person.banned)
        && row.locked == Some(person.locked)
        && row.clerk_created_at == time(person.created_at)
        && row.clerk_updated_at == time(person.updated_at)
}
