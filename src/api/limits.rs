//! Owns how many requests one user and one address may send. In memory, so for each process of its own; what is idle is
//! forgotten.

use std::{
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::Mutex,
    time::{Duration, Instant},
};

use governor::{
    DefaultDirectRateLimiter, NotUntil, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::NoOpMiddleware,
    state::keyed::HashMapStateStore,
};

type Keyed<K> = RateLimiter<K, HashMapStateStore<K>, DefaultClock, NoOpMiddleware>;

/// Requests per second of one user, ...
const USER: NonZeroU32 = NonZeroU32::MIN.saturating_add(19);
/// ... and at once.
const USER_BURST: NonZeroU32 = NonZeroU32::MIN.saturating_add(199);
/// Requests of one address that sign nobody in, per second, ...
const STRANGER: NonZeroU32 = NonZeroU32::MIN.saturating_add(19);
/// ... and at once.
const STRANGER_BURST: NonZeroU32 = NonZeroU32::MIN.saturating_add(199);
/// A user may ask for Clerk's answer once in so long.
const SYNC: Duration = Duration::from_secs(10);
/// A session is noted once in so long.
const SIGHTING: Duration = Duration::from_secs(61);
/// Visitors who begin at one address, per second, ...
const VISITOR: NonZeroU32 = NonZeroU32::MIN;
/// ... and at once; ...
const VISITOR_BURST: NonZeroU32 = NonZeroU32::MIN.saturating_add(59);
/// ... and at all addresses, per second and at once.
const VISITORS: NonZeroU32 = NonZeroU32::MIN.saturating_add(199);
/// So many are remembered before those that are idle are forgotten.
const REMEMBERED: usize = 50_000;
/// How often that is done at most.
const TIDIED: Duration = Duration::from_secs(1);

/// There is no more for now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Spent {
    /// When there is again.
    pub(super) seconds: u64,
}

/// The bounds of one process.
pub(super) struct Limits {
    users: Keyed<String>,
    strangers: Keyed<IpAddr>,
    syncs: Keyed<String>,
    sightings: Keyed<String>,
    visitors: Keyed<IpAddr>,
    all_visitors: DefaultDirectRateLimiter,
    clock: DefaultClock,
    /// When those that are idle were last forgotten.
    tidied: Mutex<Instant>,
}

impl Limits {
    pub(super) fn new() -> Self {
        let once_in = |period| Quota::with_period(period).unwrap_or(Quota::per_minute(NonZeroU32::MIN));
        Self {
            users: RateLimiter::hashmap(Quota::per_second(USER).allow_burst(USER_BURST)),
            strangers: RateLimiter::hashmap(Quota::per_second(STRANGER).allow_burst(STRANGER_BURST)),
            syncs: RateLimiter::hashmap(once_in(SYNC)),
            sightings: RateLimiter::hashmap(once_in(SIGHTING)),
            visitors: RateLimiter::hashmap(Quota::per_second(VISITOR).allow_burst(VISITOR_BURST)),
            all_visitors: RateLimiter::direct(Quota::per_second(VISITORS)),
            clock: DefaultClock::default(),
            tidied: Mutex::new(Instant::now()),
        }
    }

    /// Counts a request of this user.
    pub(super) fn user(&self, clerk_id: &str) -> Result<(), Spent> {
        self.count(&self.users, &clerk_id.to_owned())
    }

    /// Counts a request of this user that asks Clerk.
    pub(super) fn sync(&self, clerk_id: &str) -> Result<(), Spent> {
        self.count(&self.syncs, &clerk_id.to_owned())
    }

    /// Whether this session, as seen with this actor, is to be noted again.
    pub(super) fn sighting(&self, session_id: &str, act: Option<&str>) -> bool {
        self.count(&self.sightings, &format!("{session_id} {}", act.unwrap_or_default())).is_ok()
    }

    /// Counts a visitor who begins at this address.
    pub(super) fn visitor(&self, peer: Option<IpAddr>) -> Result<(), Spent> {
        if let Some(peer) = peer {
            self.count(&self.visitors, &network(peer))?;
        }
        self.all_visitors.check().map_err(|until| self.spent_until(&until))
    }

    /// Counts a request that signed nobody in.
    pub(super) fn stranger(&self, peer: IpAddr) -> Result<(), Spent> {
        self.count(&self.strangers, &network(peer))
    }

    fn count<K: Clone + Eq + std::hash::Hash>(&self, of: &Keyed<K>, key: &K) -> Result<(), Spent> {
        // It looks at all of them: for each request that would be too often.
        if of.len() > REMEMBERED
            && let Ok(mut tidied) = self.tidied.try_lock()
            && tidied.elapsed() >= TIDIED
        {
            of.retain_recent();
            *tidied = Instant::now();
        }
        of.check_key(key).map_err(|until| self.spent_until(&until))
    }

    fn spent_until(&self, until: &NotUntil<<DefaultClock as Clock>::Instant>) -> Spent {
        Spent { seconds: until.wait_time_from(self.clock.now()).as_secs() + 1 }
    }
}

/// An IPv4 address, or an IPv6 network of 64 bits, of which one host has as many addresses as it likes.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_and_an_address_have_so_many_requests_and_others_have_theirs() {
        let limits = Limits::new();
        let (ann, bob) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        for _ in 0..USER_BURST.get() {
            assert_eq!(limits.user("user_ann"), Ok(()));
            assert_eq!(limits.stranger(ann), Ok(()));
        }
        assert!(limits.user("user_ann").is_err() || limits.user("user_ann").is_err());
        assert!((0..5).any(|_| limits.stranger(ann).is_err_and(|spent| spent.seconds >= 1)));
        assert_eq!((limits.user("user_bob"), limits.stranger(bob)), (Ok(()), Ok(())));
    }

    #[test]
    fn clerk_is_asked_once_in_ten_seconds_for_a_user() {
        let limits = Limits::new();
        assert_eq!(limits.sync("user_ann"), Ok(()));
        let spent = limits.sync("user_ann").unwrap_err();
        assert!((9..=11).contains(&spent.seconds), "{spent:?}");
        assert_eq!(limits.sync("user_bob"), Ok(()));
    }

    #[test]
    fn so_many_visitors_begin_at_one_address_and_at_all() {
        let limits = Limits::new();
        let ann = Some("192.0.2.1".parse().unwrap());
        let begun = (0..100).filter(|_| limits.visitor(ann).is_ok()).count();
        assert!((60..=62).contains(&begun), "{begun}");
        let others = (0..400).map(|n| Some(IpAddr::from([198, 51, 100 + (n / 200) as u8, (n % 200) as u8])));
        let begun = begun + others.filter(|other| limits.visitor(*other).is_ok()).count();
        assert!((200..=220).contains(&begun), "{begun}");
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one() {
        let network = |text: &str| network(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
    }
}
