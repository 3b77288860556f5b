//! Owns the demo's made-up world: people who sign up, change, leave and come back, and what an unreliable sender makes
//! of the news. Promises a consistent story: no event about somebody who never signed up, but for those that are broken on
//! purpose. Pure but for the dice and the clock that it is given.

use std::collections::VecDeque;

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;

use super::{Person, message_id, user_id};
use crate::time::Millis;

/// The most accounts alive at once; beyond them there are no sign-ups.
const LIVE_MAX: usize = 2000;

/// Departed accounts that may come back.
const GONE_MAX: usize = 200;

/// Webhooks that may be sent once more.
const REMEMBERED: usize = 50;

/// What a webhook of the demo is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Somebody signs up.
    Created,
    /// Somebody changes something.
    Updated,
    /// Somebody leaves.
    Deleted,
    /// Somebody who left comes back: the old address under a new id.
    Returning,
    /// The same webhook once more.
    Duplicate,
    /// News that arrives after newer news.
    Late,
    /// Somebody signs up, changes something or leaves, and the webhook never arrives.
    Lost,
    /// Not about a user.
    Other,
    /// Signed, and no use: ends in the dead letters.
    Broken,
    /// Signed with a wrong secret: turned away.
    Forged,
}

/// Every kind in the order of their declaration, as the demo counts it, and how many of a hundred webhooks it has.
const KINDS: [(Kind, &str, u32); 10] = [
    (Kind::Created, "created", 22),
    (Kind::Updated, "updated", 39),
    (Kind::Deleted, "deleted", 6),
    (Kind::Returning, "returning", 4),
    (Kind::Duplicate, "duplicate", 7),
    (Kind::Late, "late", 7),
    (Kind::Lost, "lost", 4),
    (Kind::Other, "other", 8),
    (Kind::Broken, "broken", 1),
    (Kind::Forged, "forged", 2),
];

/// Of a hundred lost webhooks, so many are about somebody who signed up, ...
const LOST_CREATIONS: u32 = 30;
/// ... and so many about somebody who left. They are few, because a sync deletes no more than a few at a time unasked.
const LOST_DELETIONS: u32 = 1;

impl Kind {
    /// As the demo counts it.
    pub fn as_str(self) -> &'static str {
        KINDS[self as usize].1
    }
}

/// What happened to somebody. Clerk's API shows it at once, whatever becomes of the webhook.
#[derive(Clone, Debug, PartialEq)]
pub enum Happened {
    /// Somebody signed up or changed.
    Lives(Box<Person>),
    /// The user of this id left.
    Left(String),
}

/// One webhook to be posted, unless it is [`Kind::Lost`].
#[derive(Clone, Debug)]
pub struct Webhook {
    /// What it is for.
    pub kind: Kind,
    /// The webhook's id: the same again in a duplicate.
    pub id: String,
    /// To be signed and posted.
    pub body: Bytes,
}

/// Everybody in it, and the news that is still to go out.
#[derive(Debug)]
pub struct World {
    rng: StdRng,
    live: Vec<Person>,
    gone: VecDeque<Person>,
    sent: VecDeque<Webhook>,
    /// News that is held back, with the step at which it goes out.
    held: VecDeque<(u64, Webhook)>,
    step: u64,
    /// What has happened in this step.
    happened: Option<Happened>,
    /// The newest time given out: each piece of news is later than the one before.
    clock: Millis,
}

impl World {
    /// An empty world. The same seed and the same times give the same story.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            live: Vec::new(),
            gone: VecDeque::new(),
            sent: VecDeque::new(),
            held: VecDeque::new(),
            step: 0,
            happened: None,
            clock: 0,
        }
    }

    /// What happens next, if anything does, and the webhook that is next on its way.
    pub fn next(&mut self, now: Millis) -> (Option<Happened>, Webhook) {
        self.step += 1;
        self.clock = now.max(self.clock + 1);
        let webhook = self.send();
        (self.happened.take(), webhook)
    }

    fn send(&mut self) -> Webhook {
        if self.held.front().is_some_and(|(due, _)| *due <= self.step)
            && let Some((_, late)) = self.held.pop_front()
        {
            return self.remember(late);
        }
        let kind = self.roll();
        match kind {
            Kind::Created => self.sign_up(),
            Kind::Returning => self.come_back(),
            Kind::Updated => self.change(),
            Kind::Deleted => self.leave(),
            Kind::Late => self.hold_back(),
            Kind::Lost => self.lose(),
            Kind::Duplicate => self.repeat(),
            Kind::Other => self.other(),
            Kind::Broken => self.broken(),
            Kind::Forged => self.forged(),
        }
    }

    fn roll(&mut self) -> Kind {
        let mut dice = self.rng.random_range(0..100_u32);
        for (kind, _, share) in KINDS {
            match dice.checked_sub(share) {
                Some(rest) => dice = rest,
                None => return kind,
            }
        }
        Kind::Updated
    }

    fn webhook(&mut self, kind: Kind, body: Vec<u8>) -> Webhook {
        Webhook { kind, id: message_id(&mut self.rng), body: body.into() }
    }

    /// Keeps a webhook for repetition.
    fn remember(&mut self, webhook: Webhook) -> Webhook {
        self.sent.truncate(REMEMBERED - 1);
        self.sent.push_front(webhook.clone());
        webhook
    }

    fn tell(&mut self, kind: Kind, event_type: &str, user: &Person) -> Webhook {
        let webhook = self.webhook(kind, user.event(event_type, self.clock + 40));
        self.remember(webhook)
    }

    fn sign_up(&mut self) -> Webhook {
        if self.live.len() >= LIVE_MAX {
            return self.change();
        }
        let mut user = Person::of(user_id(&mut self.rng), self.clock);
        user.verified = self.rng.random_bool(0.95);
        if self.rng.random_bool(0.05) {
            // A few have no address at all: only a phone.
            user.email = None;
            user.phone.get_or_insert_with(|| format!("+1555{:07}", self.rng.random_range(0..10_000_000)));
        }
        let webhook = self.tell(Kind::Created, "user.created", &user);
        self.arrive(user);
        webhook
    }

    fn come_back(&mut self) -> Webhook {
        let Some(former) = self.gone.pop_front() else { return self.sign_up() };
        let user = Person {
            id: user_id(&mut self.rng),
            created_at: self.clock,
            updated_at: self.clock,
            last_sign_in_at: Some(self.clock),
            banned: false,
            ..former
        };
        let webhook = self.tell(Kind::Returning, "user.created", &user);
        self.arrive(user);
        webhook
    }

    fn arrive(&mut self, user: Person) {
        self.happened = Some(Happened::Lives(Box::new(user.clone())));
        self.live.push(user);
    }

    /// Something about somebody changes; `None` in an empty world.
    fn changed(&mut self) -> Option<Person> {
        if self.live.is_empty() {
            return None;
        }
        let index = self.rng.random_range(0..self.live.len());
        let user = &mut self.live[index];
        user.updated_at = self.clock;
        match self.rng.random_range(0..10) {
            0..=4 => user.last_sign_in_at = Some(self.clock),
            5 => user.public_metadata = json!({"onboarded": true, "roles": ["member", "editor"]}),
            6 => user.unsafe_metadata = json!({"newsletter": self.rng.random_bool(0.5), "theme": "dark"}),
            7 => user.verified = true,
            8 => user.username = Some(format!("user.{:x}", self.rng.random::<u32>())),
            _ => user.banned = !user.banned,
        }
        self.happened = Some(Happened::Lives(Box::new(user.clone())));
        Some(user.clone())
    }

    fn change(&mut self) -> Webhook {
        match self.changed() {
            Some(user) => self.tell(Kind::Updated, "user.updated", &user),
            None => self.sign_up(),
        }
    }

    /// Somebody goes; `None` in an empty world.
    fn depart(&mut self) -> Option<Person> {
        if self.live.is_empty() {
            return None;
        }
        let index = self.rng.random_range(0..self.live.len());
        let user = self.live.swap_remove(index);
        self.happened = Some(Happened::Left(user.id.clone()));
        Some(user)
    }

    fn leave(&mut self) -> Webhook {
        let Some(user) = self.depart() else { return self.sign_up() };
        let webhook = self.tell(Kind::Deleted, "user.deleted", &user);
        if user.verified && user.email.is_some() {
            self.gone.truncate(GONE_MAX - 1);
            self.gone.push_back(user);
        }
        webhook
    }

    /// Two changes to one account, of which the first arrives later.
    fn hold_back(&mut self) -> Webhook {
        let Some(mut user) = self.changed() else { return self.sign_up() };
        let older = self.webhook(Kind::Late, user.event("user.updated", self.clock + 40));
        let due = self.step + self.rng.random_range(3..20);
        let place = self.held.partition_point(|(step, _)| *step <= due);
        self.held.insert(place, (due, older));
        self.clock += 1;
        user.updated_at = self.clock;
        if let Some(known) = self.live.iter_mut().find(|known| known.id == user.id) {
            known.updated_at = self.clock;
        }
        self.happened = Some(Happened::Lives(Box::new(user.clone())));
        self.tell(Kind::Updated, "user.updated", &user)
    }

    /// Something happens whose webhook never arrives. Whoever leaves so does not come back.
    fn lose(&mut self) -> Webhook {
        let dice = self.rng.random_range(0..100_u32);
        let webhook = match dice.checked_sub(LOST_CREATIONS) {
            None => self.sign_up(),
            Some(..LOST_DELETIONS) => match self.depart() {
                Some(user) => self.tell(Kind::Lost, "user.deleted", &user),
                None => self.sign_up(),
            },
            Some(_) => self.change(),
        };
        // What never arrived is not repeated either.
        self.sent.pop_front();
        Webhook { kind: Kind::Lost, ..webhook }
    }

    fn repeat(&mut self) -> Webhook {
        if self.sent.is_empty() {
            return self.sign_up();
        }
        let again = self.sent[self.rng.random_range(0..self.sent.len())].clone();
        Webhook { kind: Kind::Duplicate, ..again }
    }

    fn other(&mut self) -> Webhook {
        const TYPES: [&str; 6] = [
            "session.created",
            "session.ended",
            "email.created",
            "sms.created",
            "organization.created",
            "organizationMembership.created",
        ];
        if self.live.is_empty() {
            return self.sign_up();
        }
        let user = self.live[self.rng.random_range(0..self.live.len())].clone();
        let event_type = TYPES[self.rng.random_range(0..TYPES.len())];
        self.tell(Kind::Other, event_type, &user)
    }

    fn broken(&mut self) -> Webhook {
        let body = match self.rng.random_range(0..3) {
            0 => b"this is no JSON".to_vec(),
            1 => json!({"data": {"object": "user"}, "object": "event", "timestamp": self.clock, "type": "user.created"})
                .to_string()
                .into_bytes(),
            _ => json!({
                "data": {"banned": "no", "id": user_id(&mut self.rng), "object": "user", "updated_at": self.clock},
                "object": "event",
                "timestamp": self.clock,
                "type": "user.updated",
            })
            .to_string()
            .into_bytes(),
        };
        self.webhook(Kind::Broken, body)
    }

    fn forged(&mut self) -> Webhook {
        let user = Person::of(user_id(&mut self.rng), self.clock);
        self.webhook(Kind::Forged, user.event("user.created", self.clock))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;
    use crate::{
        clerk,
        message::MessageId,
        rules::{Change, users},
    };

    fn history(steps: usize) -> (World, Vec<Webhook>) {
        let mut world = World::new(7);
        let webhooks = (0..steps).map(|n| world.next(1_760_000_000_000 + n as i64 / 10).1).collect();
        (world, webhooks)
    }

    fn change(webhook: &Webhook) -> Option<Change> {
        let id = MessageId::parse(&webhook.id).unwrap();
        clerk::parse(&webhook.body, &clerk::Known::webhook(&id, 0)).ok().map(|parsed| parsed.change)
    }

    #[test]
    fn every_kind_takes_its_part() {
        let (world, webhooks) = history(3000);
        let mut counts: HashMap<Kind, u32> = HashMap::new();
        for webhook in &webhooks {
            *counts.entry(webhook.kind).or_default() += 1;
        }
        for (place, (kind, _, _)) in KINDS.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
            assert!(counts.get(&kind).copied().unwrap_or_default() >= 10, "{kind:?}: {counts:?}");
        }
        assert!(world.live.len() > 100 && world.live.len() <= LIVE_MAX);
        assert_eq!(KINDS.iter().map(|(_, _, share)| share).sum::<u32>(), 100);
    }

    #[test]
    fn the_story_is_consistent() {
        let (world, webhooks) = history(3000);
        let mut born: HashMap<String, Option<String>> = HashMap::new();
        let mut gone: HashMap<String, Option<String>> = HashMap::new();
        let mut ids = HashSet::new();
        for webhook in &webhooks {
            assert_eq!(ids.insert(webhook.id.clone()), webhook.kind != Kind::Duplicate);
            let Some(change) = change(webhook) else {
                assert_eq!(webhook.kind, Kind::Broken);
                continue;
            };
            let key =
                |claim: &Option<crate::rules::users::Claim>| claim.as_ref().map(|claim| claim.key.clone());
            match (webhook.kind, change) {
                (Kind::Lost, Change::User(users::Change::Upsert(user))) => {
                    assert!(!gone.contains_key(&user.clerk_id));
                    born.insert(user.clerk_id, key(&user.claim));
                }
                (Kind::Created, Change::User(users::Change::Upsert(user))) => {
                    assert!(born.insert(user.clerk_id, key(&user.claim)).is_none());
                }
                (Kind::Returning, Change::User(users::Change::Upsert(user))) => {
                    let claim = key(&user.claim);
                    assert!(user.claim.unwrap().verified && gone.values().any(|known| *known == claim));
                    assert!(born.insert(user.clerk_id, claim).is_none());
                }
                (Kind::Updated, Change::User(users::Change::Upsert(user))) => {
                    assert!(born.contains_key(&user.clerk_id) && !gone.contains_key(&user.clerk_id));
                }
                (Kind::Late, Change::User(users::Change::Upsert(user))) => {
                    assert!(born.contains_key(&user.clerk_id))
                }
                (Kind::Deleted | Kind::Lost, Change::User(users::Change::Delete { clerk_id, .. })) => {
                    let claim = born[&clerk_id].clone();
                    assert!(gone.insert(clerk_id, claim).is_none());
                }
                (Kind::Other, Change::Session(_) | Change::Other) | (Kind::Duplicate, _) => {}
                (Kind::Forged, Change::User(users::Change::Upsert(user))) => {
                    assert!(!born.contains_key(&user.clerk_id))
                }
                other => panic!("{other:?}"),
            }
        }
        let alive: HashSet<_> = born.keys().filter(|id| !gone.contains_key(*id)).collect();
        assert_eq!(alive, world.live.iter().map(|user| &user.id).collect::<HashSet<_>>());
    }

    #[test]
    fn what_has_happened_is_all_that_there_is_to_know() {
        let (mut world, mut known) = (World::new(7), HashMap::new());
        for n in 0..3000 {
            match world.next(1_760_000_000_000 + n / 10).0 {
                Some(Happened::Lives(user)) => drop(known.insert(user.id.clone(), *user)),
                Some(Happened::Left(id)) => assert!(known.remove(&id).is_some()),
                None => {}
            }
        }
        let live: HashMap<_, _> = world.live.into_iter().map(|user| (user.id.clone(), user)).collect();
        assert_eq!(known, live);
    }

    #[test]
    fn creations_changes_and_deletions_are_lost_and_not_repeated() {
        let (_, webhooks) = history(20_000);
        let lost: Vec<&Webhook> = webhooks.iter().filter(|webhook| webhook.kind == Kind::Lost).collect();
        let of = |event_type: &str| {
            let mark = format!("\"type\":\"{event_type}\"");
            let is =
                |webhook: &&&Webhook| webhook.body.windows(mark.len()).any(|part| part == mark.as_bytes());
            lost.iter().filter(is).count()
        };
        let (created, updated, deleted) = (of("user.created"), of("user.updated"), of("user.deleted"));
        assert!(
            created > 100 && updated > created && (1..50).contains(&deleted),
            "{created} {updated} {deleted}"
        );
        assert_eq!(created + updated + deleted, lost.len());
        let ids: HashSet<&str> = lost.iter().map(|webhook| webhook.id.as_str()).collect();
        let others = webhooks.iter().filter(|webhook| webhook.kind != Kind::Lost);
        assert!(others.into_iter().all(|webhook| !ids.contains(webhook.id.as_str())));
    }

    #[test]
    fn late_news_is_older_than_what_came_before_it() {
        let (_, webhooks) = history(3000);
        let mut newest: HashMap<String, i64> = HashMap::new();
        for webhook in &webhooks {
            let Some(Change::User(users::Change::Upsert(user))) = change(webhook) else { continue };
            let known = newest.get(&user.clerk_id).copied();
            match webhook.kind {
                Kind::Late => assert!(known.unwrap() > user.version.at),
                Kind::Created | Kind::Returning | Kind::Updated => {
                    assert!(known.is_none_or(|known| known < user.version.at));
                    newest.insert(user.clerk_id, user.version.at);
                }
                _ => {}
            }
        }
    }
}
