//! How many connections there may be, in all and from one peer.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Counts open connections.
#[derive(Clone)]
pub(super) struct Caps {
    open: Arc<Mutex<Open>>,
    most: usize,
    most_per_peer: usize,
}

#[derive(Default)]
struct Open {
    total: usize,
    peers: HashMap<IpAddr, usize>,
}

/// The place of one connection, given back when dropped.
pub(super) struct Place {
    open: Arc<Mutex<Open>>,
    peer: IpAddr,
}

/// Which cap was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// Connections in all.
    Total,
    /// Connections of this peer.
    Peer,
}

impl Full {
    /// For the label of a metric.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Peer => "peer",
        }
    }
}

impl Caps {
    /// At most `most` at once, at most `most_per_peer` of them from one peer.
    pub(super) fn new(most: usize, most_per_peer: usize) -> Self {
        Self { open: Arc::default(), most, most_per_peer }
    }

    /// A place for a connection from `address`, or which cap leaves none. The map holds only peers with an open connection, so
    /// it never outgrows `most`.
    pub(super) fn enter(&self, address: IpAddr) -> Result<Place, Full> {
        let peer = peer_of(address);
        let mut open = lock(&self.open);
        if open.total >= self.most {
            return Err(Full::Total);
        }
        let of_peer = open.peers.get(&peer).copied().unwrap_or(0);
        if of_peer >= self.most_per_peer {
            return Err(Full::Peer);
        }
        open.peers.insert(peer, of_peer + 1);
        open.total += 1;
        Ok(Place { open: Arc::clone(&self.open), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        open.total -= 1;
        if let Some(count) = open.peers.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                open.peers.remove(&self.peer);
            }
        }
    }
}

/// What counts as one peer: an IPv4 address, or the /64 that an IPv6 host can pick its addresses from.
pub(super) fn peer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_given_back_is_free_again() {
        let caps = Caps::new(2, 1);
        let (one, two): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let place = caps.enter(one).ok().unwrap();
        assert_eq!(caps.enter(one).err(), Some(Full::Peer));
        let _two = caps.enter(two).ok().unwrap();
        assert_eq!(caps.enter("192.0.2.3".parse().unwrap()).err(), Some(Full::Total));
        drop(place);
        assert!(caps.enter(one).is_ok());
        assert_eq!(lock(&caps.open).peers.len(), 1, "and nothing is remembered of who left");
    }

    /// L11: an IPv6 host cannot multiply itself within its /64, nor an IPv4 one by the mapped form.
    #[test]
    fn one_host_is_one_peer_whatever_address_it_picks() {
        let caps = Caps::new(10, 1);
        for (first, second) in [("2001:db8:0:1::1", "2001:db8:0:1:ffff::9"), ("192.0.2.1", "::ffff:192.0.2.1")] {
            let _place = caps.enter(first.parse().unwrap()).ok().unwrap();
            assert_eq!(caps.enter(second.parse().unwrap()).err(), Some(Full::Peer));
        }
        let _place = caps.enter("2001:db8:0:1::1".parse().unwrap()).ok().unwrap();
        assert!(caps.enter("2001:db8:0:2::1".parse().unwrap()).is_ok());
    }
}
