//! The network that a peer address belongs to.

use std::net::IpAddr;

/// A peer as budgets see it: an IPv4 address, or the /64 of an IPv6 address, since a whole /64 is one site's to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site(u128);

impl From<IpAddr> for Site {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(u128::from(u32::from(v4))),
            IpAddr::V6(v6) => Self(u128::from(v6) >> 64 << 64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(address: &str) -> Site {
        address.parse::<IpAddr>().unwrap().into()
    }

    /// L11: a mapped IPv4 address is that IPv4 address, and a /64 is one site.
    #[test]
    fn addresses_of_one_site_are_equal() {
        assert_eq!(site("::ffff:10.0.0.1"), site("10.0.0.1"));
        assert_eq!(site("2001:db8:0:1::1"), site("2001:db8:0:1:ffff::1"));
        assert_ne!(site("2001:db8:0:1::1"), site("2001:db8:0:2::1"));
        assert_ne!(site("10.0.0.1"), site("10.0.0.2"));
    }
}
