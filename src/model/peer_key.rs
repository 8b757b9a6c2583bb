//! Keys by which callers' addresses are counted.

use std::net::IpAddr;

use super::call::Peer;

/// Key that budgets, caps and marks count a peer by. A caller chooses among many addresses, so
/// those that one caller may have are one key:
///
/// | address | [`From`]: budgets, connections of a peer | [`PeerKey::network`]: wider counts |
/// |--|--|--|
/// | IPv4 | itself | itself |
/// | IPv4 mapped into IPv6 | the IPv4 address | the IPv4 address |
/// | IPv6 | its /64, as one host chooses from | its /48, as one customer is given |
///
/// No other place in the service cuts an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerKey(u128);

impl PeerKey {
    /// The key of a peer's network, for a second and wider count.
    pub fn network(address: IpAddr) -> Self {
        Self::masked(address, 48)
    }

    fn masked(address: IpAddr, bits: u32) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(u128::from(u32::from(v4))),
            IpAddr::V6(v6) => Self(u128::from(v6) & (u128::MAX << (128 - bits))),
        }
    }
}

impl From<IpAddr> for PeerKey {
    fn from(address: IpAddr) -> Self {
        Self::masked(address, 64)
    }
}

impl Peer {
    /// The key of the peer; `None` for this process itself.
    pub fn key(self) -> Option<PeerKey> {
        match self {
            Self::Ip(address) => Some(address.into()),
            Self::Local => None,
        }
    }

    /// The key of the peer's network, see [`PeerKey::network`]; `None` for this process itself.
    pub fn network(self) -> Option<PeerKey> {
        match self {
            Self::Ip(address) => Some(PeerKey::network(address)),
            Self::Local => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> PeerKey {
        PeerKey::from(text.parse::<IpAddr>().unwrap())
    }

    fn network(text: &str) -> PeerKey {
        PeerKey::network(text.parse().unwrap())
    }

    /// L11: addresses of one /64 are one peer, those of one /48 one network.
    #[test]
    fn addresses_that_one_host_can_choose_from_are_one_peer() {
        assert_eq!(key("2001:db8:0:1::1"), key("2001:db8:0:1:ffff::9"));
        assert_eq!(key("2001:db8:0:1::"), key("2001:db8:0:1:ffff:ffff:ffff:ffff"));
        assert_ne!(key("2001:db8:0:1::1"), key("2001:db8:0:2::1"));
        assert_eq!(network("2001:db8:0:1::1"), network("2001:db8:0:ffff::1"));
        assert_ne!(network("2001:db8:0:1::1"), network("2001:db8:1:1::1"));
    }

    /// L11: IPv4 addresses are counted whole, and alike in their mapped form.
    #[test]
    fn an_ipv4_address_is_one_peer_in_either_form() {
        for key in [key, network] {
            assert_eq!(key("192.0.2.1"), key("::ffff:192.0.2.1"));
            assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
            assert_ne!(key("::ffff:192.0.2.1"), key("::ffff:192.0.2.2"));
            assert_ne!(key("192.0.2.1"), key("2001:db8::c000:201"));
        }
    }

    /// This process itself is counted by nothing.
    #[test]
    fn only_addresses_have_a_key() {
        let peer = Peer::Ip("2001:db8:0:1::1".parse().unwrap());
        assert_eq!(peer.key(), Some(key("2001:db8:0:1::2")));
        assert_eq!(peer.network(), Some(network("2001:db8:0:2::2")));
        assert_eq!((Peer::Local.key(), Peer::Local.network()), (None, None));
    }
}
