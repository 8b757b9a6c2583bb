//! Limits on connections: in total, of one peer, of one network. A port that is nearly full, or
//! full, makes room: the connection that has been idle longest, of the network with the most
//! connections, is asked to leave.

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
/// Part of all connections that is kept free by asking others to leave: so they may end in order
/// while new ones arrive.
const SPARE_PART: usize = 20;
/// Time without a call after which a connection makes room for one of its own network, or of
/// another that has as many or one less. Clients that reconnect at once when they are asked to
/// leave would otherwise displace each other without end.
const MIN_IDLE: Duration = Duration::from_secs(60);

/// Counter of open connections.
#[derive(Clone)]
pub(super) struct ConnectionLimits {
    open: Arc<Mutex<Open>>,
    max: usize,
    max_per_peer: usize,
    clock: Arc<CoarseClock>,
}

/// Clock with a resolution of a tenth of a second, which costs a call nothing to read.
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
    /// Connections that were asked to leave and have not left.
    leaving: usize,
    peers: HashMap<PeerKey, usize>,
    /// Without connections that were asked to leave.
    networks: HashMap<PeerKey, Vec<Arc<Activity>>>,
}

/// Activity of one connection, shared with the limits.
pub(super) struct Activity {
    clock: Arc<CoarseClock>,
    used: AtomicU64,
    leave: Notify,
}

impl Activity {
    /// Records that a call has begun.
    pub(super) fn touch(&self) {
        self.used.store(self.clock.now(), Relaxed);
    }

    /// Returns the time since the last call began.
    pub(super) fn idle(&self) -> Duration {
        Duration::from_millis(self.clock.now().saturating_sub(self.used.load(Relaxed)))
    }

    /// Waits until the connection is asked to make room.
    pub(super) async fn asked_to_leave(&self) {
        self.leave.notified().await;
    }
}

/// Permit of one connection, released when dropped.
pub(super) struct ConnectionPermit {
    open: Arc<Mutex<Open>>,
    peer: PeerKey,
    network: PeerKey,
    activity: Arc<Activity>,
    max_per_peer: usize,
}

/// Limit that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LimitReached {
    /// Connections in total.
    Total,
    /// Connections of this peer.
    Peer,
    /// Connections of this peer's network.
    Network,
}

impl LimitReached {
    /// Returns the label of a metric.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Peer => "peer",
            Self::Network => "network",
        }
    }
}

impl ConnectionLimits {
    /// Creates limits: at most `max` connections, at most `max_per_peer` of them from one peer.
    pub(super) fn new(max: usize, max_per_peer: usize) -> Self {
        let clock = Arc::new(CoarseClock { zero: Instant::now(), millis: AtomicU64::new(0) });
        Self { open: Arc::default(), max, max_per_peer, clock }
    }

    /// Updates the clock: ten times a second.
    pub(super) fn tick(&self) {
        self.clock.tick();
    }

    /// Acquires a permit for a connection from `address`, or returns the limit that was reached.
    /// The maps hold only peers with an open connection, so they never outgrow `max`.
    pub(super) fn enter(&self, address: IpAddr) -> Result<ConnectionPermit, LimitReached> {
        self.admit(address, true)
    }

    /// Acquires a permit for a connection of a proxy: only the total counts until its client is
    /// known.
    pub(super) fn enter_as_proxy(&self, address: IpAddr) -> Result<ConnectionPermit, LimitReached> {
        self.admit(address, false)
    }

    fn admit(&self, address: IpAddr, is_client: bool) -> Result<ConnectionPermit, LimitReached> {
        let (peer, network) = (PeerKey::from(address), PeerKey::network(address));
        let mut open = lock(&self.open);
        if is_client {
            open.check(peer, network, self.max_per_peer)?;
        }
        let of_network = open.networks.get(&network).map_or(0, Vec::len);
        let spare = (self.max / SPARE_PART).max(1);
        // No more are asked than are to be spare: a client that is refused and retries does not
        // empty the port.
        if open.total >= self.max - spare && open.leaving < spare {
            open.make_room(of_network);
        }
        if open.total >= self.max {
            return Err(LimitReached::Total);
        }
        let activity = Arc::new(Activity {
            clock: Arc::clone(&self.clock),
            used: AtomicU64::new(self.clock.now()),
            leave: Notify::new(),
        });
        *open.peers.entry(peer).or_default() += 1;
        open.networks.entry(network).or_default().push(Arc::clone(&activity));
        open.total += 1;
        let (open, max_per_peer) = (Arc::clone(&self.open), self.max_per_peer);
        Ok(ConnectionPermit { open, peer, network, activity, max_per_peer })
    }
}

impl Open {
    /// Refuses one more connection of a peer or of a network that has as many as it may.
    fn check(
        &self,
        peer: PeerKey,
        network: PeerKey,
        max_per_peer: usize,
    ) -> Result<(), LimitReached> {
        if self.peers.get(&peer).copied().unwrap_or(0) >= max_per_peer {
            return Err(LimitReached::Peer);
        }
        let of_network = self.networks.get(&network).map_or(0, Vec::len);
        if of_network >= max_per_peer.saturating_mul(PEERS_PER_NETWORK) {
            return Err(LimitReached::Network);
        }
        Ok(())
    }

    /// Counts one connection of a peer less.
    fn leave_peer(&mut self, peer: PeerKey) {
        if let Entry::Occupied(mut peer) = self.peers.entry(peer) {
            *peer.get_mut() -= 1;
            if *peer.get() == 0 {
                peer.remove();
            }
        }
    }

    /// Removes a connection from its network; false if it was asked to leave before.
    fn leave_network(&mut self, network: PeerKey, activity: &Arc<Activity>) -> bool {
        let Entry::Occupied(mut activities) = self.networks.entry(network) else { return false };
        let index = activities.get().iter().position(|other| Arc::ptr_eq(other, activity));
        let Some(index) = index else { return false };
        activities.get_mut().swap_remove(index);
        if activities.get().is_empty() {
            activities.remove();
        }
        true
    }

    /// Asks the longest idle connection of the fullest network to leave for one of a network that
    /// has `own`.
    fn make_room(&mut self, own: usize) {
        let max = self.networks.values().map(Vec::len).max().unwrap_or(0);
        let of_fullest = self.networks.iter().filter(|(_, activities)| activities.len() == max);
        let activities = of_fullest.flat_map(|(network, activities)| {
            activities.iter().enumerate().map(move |activity| (*network, activity))
        });
        let Some((network, (index, activity))) =
            activities.min_by_key(|(_, (_, activity))| activity.used.load(Relaxed))
        else {
            return;
        };
        // A difference of one does not count: a client that is asked to leave and reconnects has
        // one less than before.
        if max <= own + 1 && activity.idle() < MIN_IDLE {
            return;
        }
        activity.leave.notify_one();
        crate::metrics::METRICS.connections_ended.count("room");
        self.leaving += 1;
        if let Entry::Occupied(mut activities) = self.networks.entry(network) {
            activities.get_mut().swap_remove(index);
            if activities.get().is_empty() {
                activities.remove();
            }
        }
    }
}

impl ConnectionPermit {
    pub(super) fn activity(&self) -> Arc<Activity> {
        Arc::clone(&self.activity)
    }

    /// Moves a connection of a proxy to its client, or returns the limit that was reached. A client
    /// that is a proxy itself has no limit of its own.
    pub(super) fn move_to(&mut self, address: IpAddr, is_proxy: bool) -> Result<(), LimitReached> {
        let (peer, network) = (PeerKey::from(address), PeerKey::network(address));
        let mut open = lock(&self.open);
        // First, since the client may be counted as the same peer.
        open.leave_peer(self.peer);
        if !is_proxy && let Err(limit) = open.check(peer, network, self.max_per_peer) {
            *open.peers.entry(self.peer).or_default() += 1;
            return Err(limit);
        }
        *open.peers.entry(peer).or_default() += 1;
        // One that was asked to leave is in no network.
        if open.leave_network(self.network, &self.activity) {
            open.networks.entry(network).or_default().push(Arc::clone(&self.activity));
        }
        (self.peer, self.network) = (peer, network);
        Ok(())
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        open.total -= 1;
        open.leave_peer(self.peer);
        if !open.leave_network(self.network, &self.activity) {
            open.leaving -= 1;
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
        let limits = ConnectionLimits::new(2, 1);
        let (one, two) = (address("192.0.2.1"), address("192.0.2.2"));
        let permit = limits.enter(one).ok().unwrap();
        assert_eq!(limits.enter(one).err(), Some(LimitReached::Peer));
        let _two = limits.enter(two).ok().unwrap();
        assert_eq!(limits.enter(address("192.0.2.3")).err(), Some(LimitReached::Total));
        drop(permit);
        assert!(limits.enter(one).is_ok());
        assert_eq!(
            lock(&limits.open).peers.len(),
            1,
            "and nothing is remembered of a peer without connections"
        );
        assert_eq!(lock(&limits.open).networks.len(), 1);
    }

    /// OPERATORS 4.11: a proxy may have any number of connections, each of its clients its own.
    #[test]
    fn connections_of_a_proxy_count_for_its_clients() {
        let limits = ConnectionLimits::new(100, 1);
        let (proxy, one, two) =
            (address("192.0.2.1"), address("198.51.100.1"), address("198.51.100.2"));
        let enter = || limits.enter_as_proxy(proxy).ok().unwrap();
        let (mut first, mut second, mut third) = (enter(), enter(), enter());
        first.move_to(one, false).unwrap();
        // It leaves its place before it takes one.
        first.move_to(one, false).unwrap();
        assert_eq!(second.move_to(one, false), Err(LimitReached::Peer));
        assert_eq!(limits.enter(one).err(), Some(LimitReached::Peer), "in whatever way");
        third.move_to(two, false).unwrap();
        drop((first, second));
        assert!(limits.enter(one).is_ok());
        drop(third);
        let open = lock(&limits.open);
        assert_eq!((open.total, open.leaving, open.peers.len(), open.networks.len()), (0, 0, 0, 0));
    }

    /// L11: an IPv6 host cannot multiply itself within its /64, nor an IPv4 one by the mapped form;
    /// nor a customer within its /48.
    #[test]
    fn one_host_is_one_peer_by_any_of_its_addresses() {
        let limits = ConnectionLimits::new(100, 1);
        for (first, second) in
            [("2001:db8:0:1::1", "2001:db8:0:1:ffff::9"), ("192.0.2.1", "::ffff:192.0.2.1")]
        {
            let _place = limits.enter(address(first)).ok().unwrap();
            assert_eq!(limits.enter(address(second)).err(), Some(LimitReached::Peer));
        }
        let places: Vec<_> =
            (1..9).map(|n| limits.enter(address(&format!("2001:db8:0:{n}::1")))).collect();
        assert_eq!(
            places.iter().filter_map(|permit| permit.as_ref().err()).collect::<Vec<_>>(),
            [&LimitReached::Network; 4]
        );
        assert!(limits.enter(address("2001:db8:1:1::1")).is_ok());
    }

    fn left(permit: &ConnectionPermit) -> bool {
        permit.activity().asked_to_leave().now_or_never().is_some()
    }

    /// L09 (AUDIT TL4): on a port that is nearly full, the longest idle connection of the fullest
    /// network makes room.
    #[tokio::test(start_paused = true)]
    async fn the_idlest_connection_of_the_fullest_network_makes_room() {
        let limits = ConnectionLimits::new(40, 40);
        let (full, other) = (address("192.0.2.1"), address("192.0.2.2"));
        let held: Vec<_> = (0..38).map(|_| limits.enter(full).ok().unwrap()).collect();
        assert!(!held.iter().any(left), "there is room");
        tokio::time::advance(Duration::from_secs(1)).await;
        limits.tick();
        for permit in held.iter().filter(|permit| !Arc::ptr_eq(&permit.activity, &held[7].activity))
        {
            permit.activity().touch();
        }
        assert_eq!(held[7].activity().idle(), Duration::from_secs(1));
        let _new = limits.enter(other).ok().unwrap();
        assert_eq!(
            held.iter().map(left).collect::<Vec<_>>(),
            (0..38).map(|n| n == 7).collect::<Vec<_>>()
        );
    }

    /// L09 (AUDIT TL4): a full port makes room for the next client too, and asks no more than are
    /// to be spare, however often one retries.
    #[tokio::test(start_paused = true)]
    async fn a_full_port_makes_room_for_the_next() {
        let limits = ConnectionLimits::new(40, 40);
        let (full, other) = (address("192.0.2.1"), address("192.0.2.2"));
        let mut held: Vec<_> = (0..40).map(|_| limits.enter(full).ok().unwrap()).collect();
        assert!(
            !held.iter().any(left),
            "nobody is pushed out by his own network while all are busy"
        );
        for _ in 0..9 {
            assert_eq!(
                limits.enter(other).err(),
                Some(LimitReached::Total),
                "who was asked to leave counts until it has left"
            );
        }
        let asked: Vec<_> = held.iter().map(left).collect();
        assert_eq!(asked.iter().filter(|left| **left).count(), 2, "a twentieth");
        let mut asked = asked.into_iter();
        held.retain(|_| !asked.next().unwrap());
        let _new = (limits.enter(other).ok().unwrap(), limits.enter(other).ok().unwrap());
        assert_eq!(lock(&limits.open).leaving, 2, "and the next are asked");
        drop(held);
        let open = lock(&limits.open);
        assert_eq!((open.leaving, open.total), (0, 2));
    }

    /// L09 (AUDIT TL4): a client that was asked to leave and reconnects displaces none that is in
    /// use, nor do clients of one connection each.
    #[tokio::test(start_paused = true)]
    async fn who_comes_back_pushes_nobody_out() {
        for (networks, asked_first) in [(38_u8, 0), (19, 1), (2, 1)] {
            let limits = ConnectionLimits::new(40, 40);
            let enter = |network: u8| limits.enter(IpAddr::from([192, 0, 2, network]));
            let mut held: Vec<_> = (0..38)
                .map(|number| (number % networks, enter(number % networks).ok().unwrap()))
                .collect();
            let mut all = vec![enter(100).ok().unwrap()];
            let asked: Vec<_> = held
                .extract_if(.., |(_, permit)| left(permit))
                .map(|(network, _)| network)
                .collect();
            assert_eq!(asked.len(), asked_first, "{networks} networks");
            all.extend(asked.into_iter().map(|network| enter(network).ok().unwrap()));
            assert!(
                !held.iter().any(|(_, permit)| left(permit)),
                "{networks} networks: the next is pushed out"
            );

            // Until one is idle.
            tokio::time::advance(MIN_IDLE).await;
            limits.tick();
            all.push(enter(0).ok().unwrap());
            let all = held.iter().map(|(_, permit)| permit).chain(&all);
            assert_eq!(all.filter(|permit| left(permit)).count(), 1, "{networks} networks");
        }
    }

    /// L09 (AUDIT TL4): between networks that have equally many, and within one, a connection makes
    /// room once it has been idle.
    #[tokio::test(start_paused = true)]
    async fn equal_networks_make_room_by_what_is_quiet() {
        let limits = ConnectionLimits::new(40, 40);
        let enter = |network: usize| limits.enter(address(["192.0.2.1", "192.0.2.2"][network % 2]));
        let held: Vec<_> = (0..38).map(|number| enter(number).ok().unwrap()).collect();
        drop(enter(0).ok().unwrap());
        assert!(!held.iter().any(left), "all are in use");
        tokio::time::advance(MIN_IDLE).await;
        limits.tick();
        for permit in held.iter().filter(|permit| !Arc::ptr_eq(&permit.activity, &held[5].activity))
        {
            permit.activity().touch();
        }
        let _new = enter(0).ok().unwrap();
        assert_eq!(
            held.iter().map(left).collect::<Vec<_>>(),
            (0..38).map(|n| n == 5).collect::<Vec<_>>()
        );
    }
}
