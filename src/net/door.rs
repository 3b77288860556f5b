//! Owns a listener's places: its open connections, what each has brought, and which one is closed when a newcomer finds
//! no place.
//!
//! Promises that a verified request is answered before its connection can be closed, that a newcomer has its grace, and
//! that of the connections that may be closed, one of the peer with the most goes first, and among equals the one that
//! has brought nothing for the longest. Never touches a socket.

use std::{
    cmp::Reverse,
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use http::StatusCode;
use tokio::{task::AbortHandle, time::Instant};

use crate::telemetry::metrics::ListenerMetrics;

/// A peer is a crowd if connections that bring nothing hold at least one place in so many for it.
const CROWD: usize = 8;

/// The connections of one listener.
pub(super) struct Door {
    places: usize,
    grace: Duration,
    metrics: ListenerMetrics,
    /// A newcomer waits for a place, and no connection may be closed.
    crowded: AtomicBool,
    register: Mutex<Register>,
}

/// The result of trying to close a connection for a newcomer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shed {
    /// One was told to close; its task ends soon.
    Told,
    /// None may be closed before this time, when a grace ends.
    At(Instant),
    /// Every connection has a verified request under way.
    Nobody,
}

impl Door {
    pub(super) fn new(places: usize, grace: Duration, metrics: ListenerMetrics) -> Arc<Self> {
        Arc::new(Self { places, grace, metrics, crowded: AtomicBool::new(false), register: Mutex::default() })
    }

    /// Counts a connection in, until the [`Stay`] is dropped.
    pub(super) fn enter(self: &Arc<Self>, peer: IpAddr, now: Instant) -> Stay {
        self.metrics.open.increment(1.0);
        let id = self.register().enter(peer, now);
        Stay { peer, visitor: Visitor { door: Arc::clone(self), id } }
    }

    /// Registers the task whose end closes the connection.
    pub(super) fn ends_by(&self, visitor: &Visitor, task: AbortHandle) {
        if let Some(place) = self.register().places.get_mut(&visitor.id) {
            place.task = Some(task);
        }
    }

    /// Closes one connection, if one may be closed.
    pub(super) fn shed(&self, now: Instant) -> Shed {
        let mut register = self.register();
        match register.choose(now, self.grace, self.places.div_ceil(CROWD)) {
            Choice::Place(id) => {
                if let Some(Place { task: Some(task), .. }) = register.leave(id) {
                    task.abort();
                }
                self.metrics.shed.increment(1);
                Shed::Told
            }
            Choice::Later(at) => Shed::At(at),
            Choice::Nobody => Shed::Nobody,
        }
    }

    /// Whether answers are to free their places: a newcomer waits, and no connection may be closed for it.
    pub(super) fn crowd(&self, crowded: bool) {
        self.crowded.store(crowded, Relaxed);
    }

    /// Counts a refusal that hyper has answered by itself.
    pub(super) fn refused_unread(&self) {
        self.metrics.refused.increment(1);
    }

    fn register(&self) -> MutexGuard<'_, Register> {
        self.register.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's presence: ends when dropped.
pub(super) struct Stay {
    /// The other end, as the kernel tells it.
    pub(super) peer: IpAddr,
    pub(super) visitor: Visitor,
}

impl Drop for Stay {
    fn drop(&mut self) {
        let Visitor { door, id } = &self.visitor;
        door.register().leave(*id);
        door.metrics.open.decrement(1.0);
    }
}

/// The connection that a request came over: in the request's extensions.
#[derive(Clone)]
pub struct Visitor {
    door: Arc<Door>,
    id: u64,
}

impl Visitor {
    /// The request is verified: it is answered however full the listener is, and its connection is kept whatever the
    /// answer.
    pub fn verified(&self) {
        self.door.register().change(self.id, |place| place.standing = Standing::Served);
    }

    /// A request of `client` begins.
    pub(super) fn begins(&self, client: IpAddr, now: Instant) {
        self.door.register().change(self.id, |place| {
            place.origin = Origin::of(client);
            if place.standing == Standing::Resting {
                (place.standing, place.since) = (Standing::Unproven, now);
            }
        });
    }

    /// The request is about to be answered: `true` if its connection has to be closed then.
    pub(super) fn answers(&self, status: StatusCode) -> bool {
        let mut refused = false;
        let mut served = false;
        self.door.register().change(self.id, |place| {
            served = place.standing == Standing::Served;
            refused = !served && (status.is_client_error() || status.is_server_error());
            if refused {
                place.standing = Standing::Refused;
            }
        });
        if refused {
            self.door.metrics.refused.increment(1);
        }
        refused || (served && self.door.crowded.load(Relaxed))
    }

    /// The answer has been handed over.
    pub(super) fn rests(&self, now: Instant) {
        self.door.register().change(self.id, |place| {
            if place.standing == Standing::Served {
                (place.standing, place.since, place.origin) = (Standing::Resting, now, place.home);
            }
        });
    }

    /// Whether its last request was refused.
    pub(super) fn is_refused(&self) -> bool {
        self.door.register().places.get(&self.id).is_some_and(|place| place.standing == Standing::Refused)
    }
}

/// What a connection is worth, from the first to be closed to the one that stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// Its request was refused; it is about to be closed.
    Refused,
    /// It has brought nothing yet, or nothing with the request that is under way.
    Unproven,
    /// What it brought was verified and answered; no request is under way.
    Resting,
    /// Its request is verified and not answered yet.
    Served,
}

/// The address that a connection is counted under: an IPv4 address, or an IPv6 network of 64 bits, of which one host has as many
/// addresses as it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Origin(IpAddr);

impl Origin {
    fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        })
    }
}

struct Place {
    /// Where the connection comes from, ...
    home: Origin,
    /// ... and where its request does: behind a trusted proxy, another address.
    origin: Origin,
    standing: Standing,
    /// Since when it has brought nothing.
    since: Instant,
    task: Option<AbortHandle>,
}

impl Place {
    /// Whose it is, if it brings nothing.
    fn idles_for(&self) -> Option<Origin> {
        (self.standing <= Standing::Unproven).then_some(self.origin)
    }
}

enum Choice {
    Place(u64),
    Later(Instant),
    Nobody,
}

#[derive(Default)]
struct Register {
    next: u64,
    places: HashMap<u64, Place>,
    /// How many connections that bring nothing each origin has.
    idlers: HashMap<Origin, usize>,
}

impl Register {
    fn enter(&mut self, peer: IpAddr, now: Instant) -> u64 {
        let id = self.next;
        self.next += 1;
        let home = Origin::of(peer);
        let place = Place { home, origin: home, standing: Standing::Unproven, since: now, task: None };
        self.count(place.idles_for());
        self.places.insert(id, place);
        id
    }

    fn leave(&mut self, id: u64) -> Option<Place> {
        let place = self.places.remove(&id)?;
        self.uncount(place.idles_for());
        Some(place)
    }

    /// A connection that was told to close has no place to change.
    fn change(&mut self, id: u64, change: impl FnOnce(&mut Place)) {
        let Some(place) = self.places.get_mut(&id) else { return };
        let before = place.idles_for();
        change(place);
        let now = place.idles_for();
        if before != now {
            self.uncount(before);
            self.count(now);
        }
    }

    fn count(&mut self, idler: Option<Origin>) {
        if let Some(origin) = idler {
            *self.idlers.entry(origin).or_default() += 1;
        }
    }

    fn uncount(&mut self, idler: Option<Origin>) {
        if let Some(origin) = idler
            && let Some(idlers) = self.idlers.get_mut(&origin)
        {
            *idlers -= 1;
            if *idlers == 0 {
                self.idlers.remove(&origin);
            }
        }
    }

    /// A connection of a peer with `crowd` or more goes first, after its grace. Otherwise a small peer's connections, which
    /// are in no hurry, would be closed while those of a large peer, which come back at once, are always within their grace.
    /// Where the strangers have as many addresses as connections, and so no crowd, those past their grace go before a busy
    /// sender's.
    fn choose(&self, now: Instant, grace: Duration, crowd: usize) -> Choice {
        let candidates = self.places.iter().filter(|(_, place)| place.standing != Standing::Served);
        let first = candidates.min_by_key(|(id, place)| {
            let idlers = self.idlers.get(&place.origin).copied().unwrap_or_default();
            let of_crowd = if idlers >= crowd { idlers } else { 0 };
            let in_grace = place.since + grace > now;
            (place.standing, Reverse(of_crowd), in_grace, Reverse(idlers), place.since, **id)
        });
        let Some((id, place)) = first else { return Choice::Nobody };
        match place.standing {
            Standing::Refused => Choice::Place(*id),
            Standing::Unproven | Standing::Resting | Standing::Served => match place.since + grace {
                over if over <= now => Choice::Place(*id),
                later => Choice::Later(later),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_millis(500);

    struct House {
        door: Arc<Door>,
        start: Instant,
        stays: Vec<Stay>,
    }

    impl House {
        /// Any two of one peer are a crowd.
        fn new() -> Self {
            Self::of(2 * CROWD)
        }

        fn of(places: usize) -> Self {
            let door = Door::new(places, GRACE, ListenerMetrics::new("tests"));
            Self { door, start: Instant::now(), stays: Vec::new() }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        fn enter(&mut self, peer: &str, ms: u64) -> Visitor {
            self.stays.push(self.door.enter(peer.parse().unwrap(), self.at(ms)));
            self.stays.last().unwrap().visitor.clone()
        }

        /// A verified request and its answer.
        fn bring(&self, visitor: &Visitor, client: &str, ms: u64) {
            visitor.begins(client.parse().unwrap(), self.at(ms));
            visitor.verified();
            assert!(!visitor.answers(StatusCode::ACCEPTED));
            visitor.rests(self.at(ms));
        }

        /// Who goes, one after the other, at this time.
        fn leave_at(&self, ms: u64) -> Vec<u64> {
            let before = || self.door.register().places.keys().copied().collect::<Vec<_>>();
            let mut gone = Vec::new();
            loop {
                let ids = before();
                if self.door.shed(self.at(ms)) != Shed::Told {
                    return gone;
                }
                gone.extend(ids.into_iter().filter(|id| !before().contains(id)));
            }
        }
    }

    #[test]
    fn who_has_brought_nothing_longest_goes_first_and_who_is_served_stays() {
        let mut house = House::new();
        let (old, served, resting, young) = (
            house.enter("192.0.2.1", 0),
            house.enter("192.0.2.1", 1),
            house.enter("192.0.2.1", 2),
            house.enter("192.0.2.1", 100),
        );
        house.bring(&resting, "192.0.2.1", 50);
        served.begins("192.0.2.1".parse().unwrap(), house.at(60));
        served.verified();
        assert_eq!(house.door.shed(house.at(499)), Shed::At(house.at(500)));
        assert_eq!(house.leave_at(700), [old.id, young.id, resting.id]);
        assert_eq!(house.door.shed(house.at(10_000)), Shed::Nobody);
    }

    #[test]
    fn who_comes_back_at_once_costs_nobody_else_a_place() {
        let mut house = House::new();
        let slow = house.enter("192.0.2.1", 0);
        let crowd = [house.enter("192.0.2.2", 900), house.enter("192.0.2.2", 901)];
        assert_eq!(house.door.shed(house.at(1000)), Shed::At(house.at(1400)));
        assert_eq!(house.leave_at(1400), [crowd[0].id, slow.id]);
    }

    #[test]
    fn the_peer_with_the_most_connections_goes_first() {
        let mut house = House::new();
        let lone = house.enter("192.0.2.1", 0);
        let crowd: Vec<u64> = (1..4).map(|ms| house.enter("192.0.2.2", ms).id).collect();
        // Addresses of one network are one peer.
        let network: Vec<u64> =
            (1..5).map(|host| house.enter(&format!("2001:db8::{host}"), 10 + host).id).collect();
        assert_eq!(
            house.leave_at(1000),
            [network[0], crowd[0], network[1], crowd[1], network[2], lone.id, crowd[2], network[3]]
        );
    }

    #[test]
    fn a_busy_sender_that_is_no_crowd_pays_for_nobody() {
        let mut house = House::of(4 * CROWD);
        let strangers: Vec<u64> = (0..6).map(|host| house.enter(&format!("192.0.2.{host}"), 0).id).collect();
        let busy: Vec<u64> = (0..3).map(|ms| house.enter("203.0.113.1", 300 + ms).id).collect();
        assert_eq!(house.leave_at(600), strangers);
        assert_eq!(house.door.shed(house.at(600)), Shed::At(house.at(800)));
        assert_eq!(house.leave_at(802), busy);
        // With one more it is a crowd, and goes first.
        let mut house = House::of(4 * CROWD);
        house.enter("192.0.2.1", 0);
        (0..4).for_each(|ms| drop(house.enter("203.0.113.1", 300 + ms)));
        assert_eq!(house.door.shed(house.at(600)), Shed::At(house.at(800)));
    }

    #[test]
    fn behind_a_proxy_the_client_counts_while_its_request_is_under_way() {
        let mut house = House::new();
        let proxy = "10.0.0.1";
        let good: Vec<Visitor> = (0..3).map(|ms| house.enter(proxy, ms)).collect();
        for visitor in &good {
            house.bring(visitor, "192.0.2.1", 5);
        }
        let strangers: Vec<Visitor> = (0..2).map(|ms| house.enter(proxy, 10 + ms)).collect();
        for stranger in &strangers {
            stranger.begins("198.51.100.7".parse().unwrap(), house.at(20));
        }
        good[0].begins("192.0.2.1".parse().unwrap(), house.at(20));
        let gone = house.leave_at(1000);
        assert_eq!(gone[..2], [strangers[0].id, strangers[1].id]);
        assert_eq!(gone[2..], [good[0].id, good[1].id, good[2].id]);
    }

    #[test]
    fn a_refusal_ends_the_grace_and_the_connection_unless_it_was_verified() {
        let mut house = House::new();
        let (stranger, known) = (house.enter("192.0.2.1", 0), house.enter("192.0.2.1", 0));
        for visitor in [&stranger, &known] {
            visitor.begins("192.0.2.1".parse().unwrap(), house.at(0));
        }
        known.verified();
        assert!(stranger.answers(StatusCode::NOT_FOUND) && stranger.is_refused());
        assert!(!known.answers(StatusCode::SERVICE_UNAVAILABLE) && !known.is_refused());
        assert_eq!(house.leave_at(1), [stranger.id]);
        // What was sent away can say nothing any more.
        stranger.verified();
        assert!(house.leave_at(1).is_empty());
        // In a crowd that nobody can leave, answers free their places.
        house.door.crowd(true);
        assert!(known.answers(StatusCode::ACCEPTED));
    }

    #[test]
    fn nothing_is_left_of_those_who_left() {
        let mut house = House::new();
        for ms in 0..10 {
            let visitor = house.enter("192.0.2.1", ms);
            if ms % 2 == 0 {
                house.bring(&visitor, "192.0.2.9", ms);
            }
        }
        house.stays.clear();
        let register = house.door.register();
        assert!(register.places.is_empty() && register.idlers.is_empty());
    }
}
