//! Bounds on connections: in all, of one peer, of one network. A port that is nearly full makes room: the connection that has been
//! idle longest, of the network that has most, is asked to leave.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::model::Site;

/// Connections of one IPv6 network, as a multiple of those of one peer.
const PEERS_PER_NETWORK: usize = 4;
/// Part of all connections that is kept free by asking others to leave: there they may say goodbye while new ones come.
const SPARE: usize = 20;

/// Counts open connections.
#[derive(Clone)]
pub(super) struct Caps {
    open: Arc<Mutex<Open>>,
    most: usize,
    most_per_peer: usize,
    clock: Arc<CoarseClock>,
}

/// Time to within a tenth of a second, which costs a call nothing to read.
struct CoarseClock {
    zero: Instant,
    millis: AtomicU64,
}

impl CoarseClock {
    fn now(&self) -> u64 {
        self.millis.load(Relaxed)
    }

    fn tick(&self) {
        self.millis.fetch_max(u64::try_from(self.zero.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
    }
}

#[derive(Default)]
struct Open {
    total: usize,
    sites: HashMap<Site, usize>,
    /// Without those that were asked to leave.
    networks: HashMap<Site, Vec<Arc<Seat>>>,
}

/// One connection, as others see it.
pub(super) struct Seat {
    clock: Arc<CoarseClock>,
    used: AtomicU64,
    leave: Notify,
}

impl Seat {
    /// Says that a call has begun.
    pub(super) fn touch(&self) {
        self.used.store(self.clock.now(), Relaxed);
    }

    /// The time since the last call began.
    pub(super) fn idle(&self) -> Duration {
        Duration::from_millis(self.clock.now().saturating_sub(self.used.load(Relaxed)))
    }

    /// Waits until the connection is to make room.
    pub(super) async fn asked_to_leave(&self) {
        self.leave.notified().await;
    }
}

/// The place of one connection, given back when dropped.
pub(super) struct Place {
    open: Arc<Mutex<Open>>,
    site: Site,
    network: Site,
    seat: Arc<Seat>,
}

/// Which cap was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// Connections in all.
    Total,
    /// Connections of this peer.
    Peer,
    /// Connections of this peer's network.
    Network,
}

impl Full {
    /// For the label of a metric.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Peer => "peer",
            Self::Network => "network",
        }
    }
}

impl Caps {
    /// At most `most` at once, at most `most_per_peer` of them from one peer.
    pub(super) fn new(most: usize, most_per_peer: usize) -> Self {
        let clock = Arc::new(CoarseClock { zero: Instant::now(), millis: AtomicU64::new(0) });
        Self { open: Arc::default(), most, most_per_peer, clock }
    }

    /// Moves the time of all seats: ten times a second.
    pub(super) fn tick(&self) {
        self.clock.tick();
    }

    /// A place for a connection from `address`, or which cap leaves none. The maps hold only peers with an open connection, so
    /// they never outgrow `most`.
    pub(super) fn enter(&self, address: IpAddr) -> Result<Place, Full> {
        let (site, network) = (Site::from(address), Site::network(address));
        let mut open = lock(&self.open);
        if open.total >= self.most {
            return Err(Full::Total);
        }
        let of_site = open.sites.get(&site).copied().unwrap_or(0);
        if of_site >= self.most_per_peer {
            return Err(Full::Peer);
        }
        let of_network = open.networks.get(&network).map_or(0, Vec::len);
        if of_network >= self.most_per_peer.saturating_mul(PEERS_PER_NETWORK) {
            return Err(Full::Network);
        }
        if open.total >= self.most - (self.most / SPARE).max(1) {
            open.make_room(of_network);
        }
        let seat =
            Arc::new(Seat { clock: Arc::clone(&self.clock), used: AtomicU64::new(self.clock.now()), leave: Notify::new() });
        open.sites.insert(site, of_site + 1);
        open.networks.entry(network).or_default().push(Arc::clone(&seat));
        open.total += 1;
        Ok(Place { open: Arc::clone(&self.open), site, network, seat })
    }
}

impl Open {
    /// Asks a connection to leave for one of a network that has `own`: of another that has more, and if none has, nothing: then
    /// nobody is owed room.
    fn make_room(&mut self, own: usize) {
        let Some(fullest) = self.networks.values_mut().max_by_key(|seats| seats.len()) else { return };
        let idlest = fullest.iter().enumerate().min_by_key(|(_, seat)| seat.used.load(Relaxed)).map(|(index, _)| index);
        if let Some(index) = idlest.filter(|_| fullest.len() > own) {
            fullest.swap_remove(index).leave.notify_one();
            metrics::counter!("connections_ended_total", "reason" => "room").increment(1);
        }
    }
}

impl Place {
    pub(super) fn seat(&self) -> Arc<Seat> {
        Arc::clone(&self.seat)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        open.total -= 1;
        if let Entry::Occupied(mut site) = open.sites.entry(self.site) {
            *site.get_mut() -= 1;
            if *site.get() == 0 {
                site.remove();
            }
        }
        if let Entry::Occupied(mut network) = open.networks.entry(self.network) {
            if let Some(index) = network.get().iter().position(|seat| Arc::ptr_eq(seat, &self.seat)) {
                network.get_mut().swap_remove(index);
            }
            if network.get().is_empty() {
                network.remove();
            }
        }
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_place_given_back_is_free_again() {
        let caps = Caps::new(2, 1);
        let (one, two) = (address("192.0.2.1"), address("192.0.2.2"));
        let place = caps.enter(one).ok().unwrap();
        assert_eq!(caps.enter(one).err(), Some(Full::Peer));
        let _two = caps.enter(two).ok().unwrap();
        assert_eq!(caps.enter(address("192.0.2.3")).err(), Some(Full::Total));
        drop(place);
        assert!(caps.enter(one).is_ok());
        assert_eq!(lock(&caps.open).sites.len(), 1, "and nothing is remembered of a peer without connections");
        assert_eq!(lock(&caps.open).networks.len(), 1);
    }

    /// L11: an IPv6 host cannot multiply itself within its /64, nor an IPv4 one by the mapped form; nor a customer within its /48.
    #[test]
    fn one_host_is_one_peer_by_any_of_its_addresses() {
        let caps = Caps::new(100, 1);
        for (first, second) in [("2001:db8:0:1::1", "2001:db8:0:1:ffff::9"), ("192.0.2.1", "::ffff:192.0.2.1")] {
            let _place = caps.enter(address(first)).ok().unwrap();
            assert_eq!(caps.enter(address(second)).err(), Some(Full::Peer));
        }
        let places: Vec<_> = (1..9).map(|n| caps.enter(address(&format!("2001:db8:0:{n}::1")))).collect();
        assert_eq!(places.iter().filter_map(|place| place.as_ref().err()).collect::<Vec<_>>(), [&Full::Network; 4]);
        assert!(caps.enter(address("2001:db8:1:1::1")).is_ok());
    }

    /// L09: of a port that is nearly full, the connection that has been idle longest of the fullest network makes room; one that
    /// has as many connections as any other gets no room from others.
    #[tokio::test(start_paused = true)]
    async fn the_idlest_connection_of_the_fullest_network_makes_room() {
        let caps = Caps::new(40, 40);
        let (full, other) = (address("192.0.2.1"), address("192.0.2.2"));
        let held: Vec<_> = (0..38).map(|_| caps.enter(full).ok().unwrap()).collect();
        let left = |place: &Place| place.seat().asked_to_leave().now_or_never().is_some();
        assert!(!held.iter().any(left), "there is room");
        tokio::time::advance(Duration::from_secs(1)).await;
        caps.tick();
        for place in held.iter().filter(|place| !Arc::ptr_eq(&place.seat, &held[7].seat)) {
            place.seat().touch();
        }
        assert_eq!(held[7].seat().idle(), Duration::from_secs(1));
        let _new = caps.enter(other).ok().unwrap();
        assert_eq!(held.iter().map(left).collect::<Vec<_>>(), (0..38).map(|n| n == 7).collect::<Vec<_>>());
        let _own = caps.enter(full).ok().unwrap();
        assert!(!held.iter().any(left), "its own network has no fuller one beside it");
        assert_eq!(caps.enter(other).err(), Some(Full::Total), "who was asked to leave counts until it has left");
    }
}
