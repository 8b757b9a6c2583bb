//! Bounds on connections: in all, of one peer, of one network. A port that is nearly full, or full,
//! makes room: the connection that has been idle longest, of the network that has most, is asked to
//! leave.

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

use crate::model::PeerKey;

/// Connections of one IPv6 network, as a multiple of those of one peer.
const PEERS_PER_NETWORK: usize = 4;
/// Part of all connections that is kept free by asking others to leave: there they may say goodbye
/// while new ones come.
const SPARE: usize = 20;
/// Time without a call after which a connection makes room for one of its own network, or of
/// another that has as many or one less. Clients that come back at once when they are asked to go
/// would otherwise push each other out without end.
const QUIET: Duration = Duration::from_secs(60);

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
        self.millis
            .fetch_max(u64::try_from(self.zero.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
    }
}

#[derive(Default)]
struct Open {
    total: usize,
    /// Those that were asked to leave and have not left.
    leaving: usize,
    peers: HashMap<PeerKey, usize>,
    /// Without those that were asked to leave.
    networks: HashMap<PeerKey, Vec<Arc<Seat>>>,
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
    peer: PeerKey,
    network: PeerKey,
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

    /// A place for a connection from `address`, or which cap leaves none. The maps hold only peers
    /// with an open connection, so they never outgrow `most`.
    pub(super) fn enter(&self, address: IpAddr) -> Result<Place, Full> {
        let (peer, network) = (PeerKey::from(address), PeerKey::network(address));
        let mut open = lock(&self.open);
        let of_peer = open.peers.get(&peer).copied().unwrap_or(0);
        if of_peer >= self.most_per_peer {
            return Err(Full::Peer);
        }
        let of_network = open.networks.get(&network).map_or(0, Vec::len);
        if of_network >= self.most_per_peer.saturating_mul(PEERS_PER_NETWORK) {
            return Err(Full::Network);
        }
        let spare = (self.most / SPARE).max(1);
        // No more are asked than are to be spare: a client that is refused and tries again does not
        // empty the port.
        if open.total >= self.most - spare && open.leaving < spare {
            open.make_room(of_network);
        }
        if open.total >= self.most {
            return Err(Full::Total);
        }
        let seat = Arc::new(Seat {
            clock: Arc::clone(&self.clock),
            used: AtomicU64::new(self.clock.now()),
            leave: Notify::new(),
        });
        open.peers.insert(peer, of_peer + 1);
        open.networks.entry(network).or_default().push(Arc::clone(&seat));
        open.total += 1;
        Ok(Place { open: Arc::clone(&self.open), peer, network, seat })
    }
}

impl Open {
    /// Asks the idlest connection of the fullest network to leave for one of a network that has
    /// `own`.
    fn make_room(&mut self, own: usize) {
        let most = self.networks.values().map(Vec::len).max().unwrap_or(0);
        let of_fullest = self.networks.iter().filter(|(_, seats)| seats.len() == most);
        let seats = of_fullest.flat_map(|(network, seats)| {
            seats.iter().enumerate().map(move |seat| (*network, seat))
        });
        let Some((network, (index, seat))) =
            seats.min_by_key(|(_, (_, seat))| seat.used.load(Relaxed))
        else {
            return;
        };
        // One connection more is no difference: a client that is asked to leave and comes back has
        // one less than before.
        if most <= own + 1 && seat.idle() < QUIET {
            return;
        }
        seat.leave.notify_one();
        metrics::counter!("connections_ended_total", "reason" => "room").increment(1);
        self.leaving += 1;
        if let Entry::Occupied(mut seats) = self.networks.entry(network) {
            seats.get_mut().swap_remove(index);
            if seats.get().is_empty() {
                seats.remove();
            }
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
        if let Entry::Occupied(mut peer) = open.peers.entry(self.peer) {
            *peer.get_mut() -= 1;
            if *peer.get() == 0 {
                peer.remove();
            }
        }
        let seats = open.networks.get_mut(&self.network);
        let index =
            seats.and_then(|seats| seats.iter().position(|seat| Arc::ptr_eq(seat, &self.seat)));
        let (Some(index), Entry::Occupied(mut seats)) = (index, open.networks.entry(self.network))
        else {
            open.leaving -= 1;
            return;
        };
        seats.get_mut().swap_remove(index);
        if seats.get().is_empty() {
            seats.remove();
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
        assert_eq!(
            lock(&caps.open).peers.len(),
            1,
            "and nothing is remembered of a peer without connections"
        );
        assert_eq!(lock(&caps.open).networks.len(), 1);
    }

    /// L11: an IPv6 host cannot multiply itself within its /64, nor an IPv4 one by the mapped form;
    /// nor a customer within its /48.
    #[test]
    fn one_host_is_one_peer_by_any_of_its_addresses() {
        let caps = Caps::new(100, 1);
        for (first, second) in
            [("2001:db8:0:1::1", "2001:db8:0:1:ffff::9"), ("192.0.2.1", "::ffff:192.0.2.1")]
        {
            let _place = caps.enter(address(first)).ok().unwrap();
            assert_eq!(caps.enter(address(second)).err(), Some(Full::Peer));
        }
        let places: Vec<_> =
            (1..9).map(|n| caps.enter(address(&format!("2001:db8:0:{n}::1")))).collect();
        assert_eq!(
            places.iter().filter_map(|place| place.as_ref().err()).collect::<Vec<_>>(),
            [&Full::Network; 4]
        );
        assert!(caps.enter(address("2001:db8:1:1::1")).is_ok());
    }

    fn left(place: &Place) -> bool {
        place.seat().asked_to_leave().now_or_never().is_some()
    }

    /// L09 (AUDIT TL4): of a port that is nearly full, the connection that has been idle longest of
    /// the fullest network makes room.
    #[tokio::test(start_paused = true)]
    async fn the_idlest_connection_of_the_fullest_network_makes_room() {
        let caps = Caps::new(40, 40);
        let (full, other) = (address("192.0.2.1"), address("192.0.2.2"));
        let held: Vec<_> = (0..38).map(|_| caps.enter(full).ok().unwrap()).collect();
        assert!(!held.iter().any(left), "there is room");
        tokio::time::advance(Duration::from_secs(1)).await;
        caps.tick();
        for place in held.iter().filter(|place| !Arc::ptr_eq(&place.seat, &held[7].seat)) {
            place.seat().touch();
        }
        assert_eq!(held[7].seat().idle(), Duration::from_secs(1));
        let _new = caps.enter(other).ok().unwrap();
        assert_eq!(
            held.iter().map(left).collect::<Vec<_>>(),
            (0..38).map(|n| n == 7).collect::<Vec<_>>()
        );
    }

    /// L09 (AUDIT TL4): a full port makes room for the next client too, and asks no more than are
    /// to be spare, however often one tries.
    #[tokio::test(start_paused = true)]
    async fn a_full_port_makes_room_for_the_next() {
        let caps = Caps::new(40, 40);
        let (full, other) = (address("192.0.2.1"), address("192.0.2.2"));
        let mut held: Vec<_> = (0..40).map(|_| caps.enter(full).ok().unwrap()).collect();
        assert!(
            !held.iter().any(left),
            "nobody is pushed out by his own network while all are busy"
        );
        for _ in 0..9 {
            assert_eq!(
                caps.enter(other).err(),
                Some(Full::Total),
                "who was asked to leave counts until it has left"
            );
        }
        let asked: Vec<_> = held.iter().map(left).collect();
        assert_eq!(asked.iter().filter(|left| **left).count(), 2, "a twentieth");
        let mut asked = asked.into_iter();
        held.retain(|_| !asked.next().unwrap());
        let _new = (caps.enter(other).ok().unwrap(), caps.enter(other).ok().unwrap());
        assert_eq!(lock(&caps.open).leaving, 2, "and the next are asked");
        drop(held);
        let open = lock(&caps.open);
        assert_eq!((open.leaving, open.total), (0, 2));
    }

    /// L09 (AUDIT TL4): a client that was asked to leave and comes back pushes out none that is in
    /// use, nor do clients of one connection each.
    #[tokio::test(start_paused = true)]
    async fn who_comes_back_pushes_nobody_out() {
        for (networks, asked_first) in [(38_u8, 0), (19, 1), (2, 1)] {
            let caps = Caps::new(40, 40);
            let enter = |network: u8| caps.enter(IpAddr::from([192, 0, 2, network]));
            let mut held: Vec<_> = (0..38)
                .map(|number| (number % networks, enter(number % networks).ok().unwrap()))
                .collect();
            let mut all = vec![enter(100).ok().unwrap()];
            let asked: Vec<_> =
                held.extract_if(.., |(_, place)| left(place)).map(|(network, _)| network).collect();
            assert_eq!(asked.len(), asked_first, "{networks} networks");
            all.extend(asked.into_iter().map(|network| enter(network).ok().unwrap()));
            assert!(
                !held.iter().any(|(_, place)| left(place)),
                "{networks} networks: the next is pushed out"
            );

            // Until one is quiet.
            tokio::time::advance(QUIET).await;
            caps.tick();
            all.push(enter(0).ok().unwrap());
            let all = held.iter().map(|(_, place)| place).chain(&all);
            assert_eq!(all.filter(|place| left(place)).count(), 1, "{networks} networks");
        }
    }

    /// L09 (AUDIT TL4): between networks that have equally many, and within one, a connection makes
    /// room once it has been quiet.
    #[tokio::test(start_paused = true)]
    async fn equal_networks_make_room_by_what_is_quiet() {
        let caps = Caps::new(40, 40);
        let enter = |network: usize| caps.enter(address(["192.0.2.1", "192.0.2.2"][network % 2]));
        let held: Vec<_> = (0..38).map(|number| enter(number).ok().unwrap()).collect();
        drop(enter(0).ok().unwrap());
        assert!(!held.iter().any(left), "all are in use");
        tokio::time::advance(QUIET).await;
        caps.tick();
        for place in held.iter().filter(|place| !Arc::ptr_eq(&place.seat, &held[5].seat)) {
            place.seat().touch();
        }
        let _new = enter(0).ok().unwrap();
        assert_eq!(
            held.iter().map(left).collect::<Vec<_>>(),
            (0..38).map(|n| n == 5).collect::<Vec<_>>()
        );
    }
}
