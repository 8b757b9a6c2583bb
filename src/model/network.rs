//! Networks of addresses, as configuration names them.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

/// A network in CIDR notation, such as `10.0.0.0/8`, or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Returns true if the address is in the network. An IPv4 address is the same in its form for
    /// IPv6.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let differing = u32::from(own) ^ u32::from(other);
                differing.checked_shr(32 - u32::from(self.prefix)).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let differing = u128::from(own) ^ u128::from(other);
                differing.checked_shr(128 - u32::from(self.prefix)).unwrap_or(0) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    /// Returns true for a network of all addresses.
    pub const fn is_everything(self) -> bool {
        self.prefix == 0
    }

    const fn bits(address: IpAddr) -> u8 {
        match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let problem = || {
            format!("{text}: must be an address or a network, such as 10.0.0.0/8 or 2001:db8::/32")
        };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| problem())?;
        if address != address.to_canonical() {
            return Err(format!("{text}: write it as an IPv4 network"));
        }
        let bits = Self::bits(address);
        let prefix = match prefix {
            Some(prefix) if prefix.bytes().all(|digit| digit.is_ascii_digit()) => {
                prefix.parse().ok().filter(|prefix| *prefix <= bits).ok_or_else(problem)?
            }
            Some(_) => return Err(problem()),
            None => bits,
        };
        let network = Self { address, prefix };
        // A typing error would otherwise choose another network than the one that is read.
        let host = match address {
            IpAddr::V4(address) => u32::from(address).checked_shl(prefix.into()).unwrap_or(0) != 0,
            IpAddr::V6(address) => u128::from(address).checked_shl(prefix.into()).unwrap_or(0) != 0,
        };
        if host {
            return Err(format!("{text}: has bits set beyond its prefix /{prefix}"));
        }
        Ok(network)
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        if self.prefix == Self::bits(self.address) { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_a_network_by_its_first_bits() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", &["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"][..], "11.0.0.0"),
            ("192.0.2.7", &["192.0.2.7"], "192.0.2.6"),
            ("192.0.2.128/25", &["192.0.2.128", "192.0.2.255"], "192.0.2.127"),
            ("0.0.0.0/0", &["0.0.0.0", "255.255.255.255"], "::1"),
            ("2001:db8::/32", &["2001:db8::", "2001:db8:ffff::1"], "2001:db9::"),
            ("::1", &["::1"], "::2"),
            ("::/0", &["::1", "2001:db8::1"], "127.0.0.1"),
        ] {
            let parsed: Network = network.parse().unwrap();
            assert_eq!(parsed.to_string(), network);
            for address in inside {
                assert!(parsed.contains(address.parse().unwrap()), "{address} in {network}");
            }
            assert!(!parsed.contains(outside.parse().unwrap()), "{outside} in {network}");
        }
        let whole: Network = "192.0.2.1/32".parse().unwrap();
        assert_eq!(whole.to_string(), "192.0.2.1");
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in [
            "",
            "/",
            "/8",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0/8",
            "10.0.0.1/8",
            "2001:db8::1/32",
            "::/129",
            "::ffff:10.0.0.0/104",
            "localhost",
            "10.0.0.0/8/8",
        ] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
