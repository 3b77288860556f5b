//! Owns how many requests one user and one address may send. In memory, so for each process of its own; what is idle is
//! forgotten.

use std::{
    hash::Hash,
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

/// A bound for each key.
struct Keyed<K: Clone + Eq + Hash> {
    limiter: RateLimiter<K, HashMapStateStore<K>, DefaultClock, NoOpMiddleware>,
    /// When keys that are idle were last forgotten.
    tidied: Mutex<Instant>,
}

impl<K: Clone + Eq + Hash> Keyed<K> {
    fn new(quota: Quota) -> Self {
        Self { limiter: RateLimiter::hashmap(quota), tidied: Mutex::new(Instant::now()) }
    }

    fn count(&self, key: &K) -> Result<(), Spent> {
        // It looks at all of them: for each request that would be too often.
        if self.limiter.len() > REMEMBERED
            && let Ok(mut tidied) = self.tidied.try_lock()
            && tidied.elapsed() >= TIDIED
        {
            self.limiter.retain_recent();
            *tidied = Instant::now();
        }
        self.limiter.check_key(key).map_err(|until| Spent::until(&until))
    }
}

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

impl Spent {
    fn until(until: &NotUntil<<DefaultClock as Clock>::Instant>) -> Self {
        Self { seconds: until.wait_time_from(DefaultClock::default().now()).as_secs() + 1 }
    }
}

/// The bounds of one process.
pub(super) struct Limits {
    users: Keyed<String>,
    strangers: Keyed<IpAddr>,
    syncs: Keyed<String>,
    sightings: Keyed<String>,
    visitors: Keyed<IpAddr>,
    all_visitors: DefaultDirectRateLimiter,
}

impl Limits {
    pub(super) fn new() -> Self {
        let once_in = |period| Quota::with_period(period).unwrap_or(Quota::per_minute(NonZeroU32::MIN));
        Self {
            users: Keyed::new(Quota::per_second(USER).allow_burst(USER_BURST)),
            strangers: Keyed::new(Quota::per_second(STRANGER).allow_burst(STRANGER_BURST)),
            syncs: Keyed::new(once_in(SYNC)),
            sightings: Keyed::new(once_in(SIGHTING)),
            visitors: Keyed::new(Quota::per_second(VISITOR).allow_burst(VISITOR_BURST)),
            all_visitors: RateLimiter::direct(Quota::per_second(VISITORS)),
        }
    }

    /// Counts a request of this user.
    pub(super) fn user(&self, clerk_id: &str) -> Result<(), Spent> {
        self.users.count(&clerk_id.to_owned())
    }

    /// Counts a request of this user that asks Clerk.
    pub(super) fn sync(&self, clerk_id: &str) -> Result<(), Spent> {
        self.syncs.count(&clerk_id.to_owned())
    }

    /// Whether this session, as seen with this actor, is to be noted again.
    pub(super) fn sighting(&self, session_id: &str, act: Option<&str>) -> bool {
        self.sightings.count(&format!("{session_id} {}", act.unwrap_or_default())).is_ok()
    }

    /// Counts a visitor who begins at this address.
    pub(super) fn visitor(&self, peer: Option<IpAddr>) -> Result<(), Spent> {
        if let Some(peer) = peer {
            self.visitors.count(&network(peer))?;
        }
        self.all_visitors.check().map_err(|until| Spent::until(&until))
    }

    /// Counts a request that signed nobody in.
    pub(super) fn stranger(&self, peer: IpAddr) -> Result<(), Spent> {
        self.strangers.count(&network(peer))
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
        let began = Instant::now();
        let begun = (0..100).filter(|_| limits.visitor(ann).is_ok()).count();
        assert!((60..=61 + began.elapsed().as_secs() as usize).contains(&begun), "{begun}");
        let others = (0..400).map(|n| Some(IpAddr::from([198, 51, 100 + (n / 200) as u8, (n % 200) as u8])));
        let begun = begun + others.filter(|other| limits.visitor(*other).is_ok()).count();
        let most = 201 + began.elapsed().as_millis() as usize / 5;
        assert!((200..=most).contains(&begun), "{begun}");
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one() {
        let network = |text: &str| network(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
    }
}
