//! Addresses that count as one.

use std::net::IpAddr;

use super::call::Peer;

/// A peer as budgets and caps see it: an IPv4 address, or the /64 of an IPv6 address, since a whole
/// /64 is one site's to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site(u128);

impl Site {
    /// The network of a site, for a second and wider count: an IPv4 address, or the /48 of an IPv6
    /// address, which is as much as one customer is given.
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

impl From<IpAddr> for Site {
    fn from(address: IpAddr) -> Self {
        Self::masked(address, 64)
    }
}

impl Peer {
    /// The peer's site; `None` for this process itself.
    pub fn site(self) -> Option<Site> {
        match self {
            Self::Ip(address) => Some(address.into()),
            Self::Local => None,
        }
    }

    /// The peer's network, see [`Site::network`]; `None` for this process itself.
    pub fn network(self) -> Option<Site> {
        match self {
            Self::Ip(address) => Some(Site::network(address)),
            Self::Local => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L11: addresses of one /64 are one site, those of one /48 one network; a mapped IPv4 address
    /// is that IPv4 address.
    #[test]
    fn addresses_that_one_host_can_choose_from_are_one_site() {
        let site = |text: &str| Site::from(text.parse::<IpAddr>().unwrap());
        let network = |text: &str| Site::network(text.parse().unwrap());
        assert_eq!(site("2001:db8:0:1::1"), site("2001:db8:0:1:ffff::9"));
        assert_ne!(site("2001:db8:0:1::1"), site("2001:db8:0:2::1"));
        assert_eq!(network("2001:db8:0:1::1"), network("2001:db8:0:ffff::1"));
        assert_ne!(network("2001:db8:0:1::1"), network("2001:db8:1:1::1"));
        assert_eq!(site("192.0.2.1"), site("::ffff:192.0.2.1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
    }
}
