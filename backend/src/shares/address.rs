//! Addresses of clients: those that count together, and those that a proxy in front reports.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use anyhow::Context as _;

/// An address that shares are counted by: an IPv4 address, or the /64 of an IPv6 address, which one client has for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressKey(IpAddr);

impl From<IpAddr> for AddressKey {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
            address @ IpAddr::V4(_) => address,
        })
    }
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    prefix: u32,
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let mask = u32::MAX.checked_shl(32 - self.prefix).unwrap_or_default();
                (own.to_bits() ^ other.to_bits()) & mask == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let mask = u128::MAX.checked_shl(128 - self.prefix).unwrap_or_default();
                (own.to_bits() ^ other.to_bits()) & mask == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(one, two)| (one, Some(two)));
        let address = address.parse::<IpAddr>().context("it is no address")?.to_canonical();
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(bits), |prefix| prefix.parse().context("its prefix is no number"))?;
        anyhow::ensure!(prefix <= bits, "its prefix is {prefix}, it must be 0 to {bits}");
        Ok(Self { address, prefix })
    }
}

/// The networks that `private` stands for: RFC 1918, RFC 4193, and the machine itself.
const PRIVATE: [Network; 6] = [
    Network { address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), prefix: 8 },
    Network { address: IpAddr::V4(Ipv4Addr::new(172, 16, 0, 0)), prefix: 12 },
    Network { address: IpAddr::V4(Ipv4Addr::new(192, 168, 0, 0)), prefix: 16 },
    Network { address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), prefix: 8 },
    Network { address: IpAddr::V6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0)), prefix: 7 },
    Network { address: IpAddr::V6(Ipv6Addr::LOCALHOST), prefix: 128 },
];

/// Returns whether an address is of a private network, or of the machine itself.
pub fn is_private(address: IpAddr) -> bool {
    let address = address.to_canonical();
    PRIVATE.iter().any(|network| network.contains(address))
}

/// The proxies whose `X-Forwarded-For` is believed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<Network>);

impl TrustedProxies {
    /// Reads addresses and networks such as `10.0.0.0/8`; `private` stands for all private networks.
    ///
    /// # Errors
    /// An entry is neither.
    pub fn parse(entries: &[String]) -> anyhow::Result<Self> {
        let mut networks = Vec::new();
        for entry in entries {
            let entry = entry.trim();
            if entry == "private" {
                networks.extend(PRIVATE);
            } else {
                let network = entry.parse().with_context(|| {
                    format!("trusted_proxies has {entry:?}, it must have addresses, networks such as 10.0.0.0/8, or private")
                })?;
                networks.push(network);
            }
        }
        Ok(Self(networks))
    }

    /// Returns whether an address is that of a proxy.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(address))
    }

    /// Returns a client's address: that of the connection or, if that is a proxy's, the last one of `X-Forwarded-For`
    /// that is no proxy's. `forwarded` has the header's values in their order.
    pub fn client<'a>(&self, peer: IpAddr, forwarded: impl DoubleEndedIterator<Item = &'a str>) -> IpAddr {
        let mut client = peer.to_canonical();
        let hops = forwarded.rev().flat_map(|value| value.rsplit(','));
        for hop in hops {
            if !self.contains(client) {
                break;
            }
            // Some proxies add a port.
            let hop = hop.trim();
            let address =
                hop.parse::<IpAddr>().ok().or_else(|| Some(hop.parse::<std::net::SocketAddr>().ok()?.ip()));
            let Some(address) = address else { break };
            client = address.to_canonical();
        }
        client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(entries: &[&str]) -> anyhow::Result<TrustedProxies> {
        TrustedProxies::parse(&entries.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_together() {
        let key = |text: &str| AddressKey::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(key("2001:db8:0:1::1"), key("2001:db8:0:1:ffff::2"));
        assert_ne!(key("2001:db8:0:1::1"), key("2001:db8:0:2::1"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
    }

    #[test]
    fn only_proxies_say_who_their_client_is() {
        let of = |proxies: &TrustedProxies, peer: &str, forwarded: &[&str]| {
            proxies.client(peer.parse().unwrap(), forwarded.iter().copied()).to_string()
        };
        let none = TrustedProxies::default();
        assert_eq!(of(&none, "10.0.0.1", &["192.0.2.7"]), "10.0.0.1");
        let some = proxies(&["10.0.0.0/8", "2001:db8::1"]).unwrap();
        assert_eq!(of(&some, "10.0.0.1", &["192.0.2.7"]), "192.0.2.7");
        assert_eq!(of(&some, "::ffff:10.0.0.1", &["192.0.2.7:443"]), "192.0.2.7");
        assert_eq!(of(&some, "2001:db8::1", &["[2001:db8::7]:443"]), "2001:db8::7");
        // A client may write the header's beginning.
        assert_eq!(of(&some, "10.0.0.1", &["127.0.0.1, 192.0.2.7", "10.9.9.9"]), "192.0.2.7");
        assert_eq!(of(&some, "192.0.2.9", &["192.0.2.7"]), "192.0.2.9");
        assert_eq!(of(&some, "10.0.0.1", &["nonsense"]), "10.0.0.1");
        assert_eq!(of(&some, "10.0.0.1", &[]), "10.0.0.1");
        let private = proxies(&["private"]).unwrap();
        for inside in ["127.0.0.1", "172.31.0.1", "fd00::1", "::1", "192.168.7.7"] {
            assert!(private.contains(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["172.32.0.1", "8.8.8.8", "2001:db8::1"] {
            assert!(!private.contains(outside.parse().unwrap()), "{outside}");
        }
    }

    #[test]
    fn entries_may_have_other_spellings() {
        let one = proxies(&["::ffff:10.0.0.1"]).unwrap();
        assert!(one.contains("10.0.0.1".parse().unwrap()));
        for other in ["10.0.0.2", "8.8.8.8", "::ffff:10.0.0.2", "::1"] {
            assert!(!one.contains(other.parse().unwrap()), "{other}");
        }
        assert_eq!(proxies(&[" private"]).unwrap(), proxies(&["private"]).unwrap());
    }

    /// Tests a first proxy that replaces the header: proxies that append to it would let such a client choose its
    /// address.
    #[test]
    fn a_private_client_is_known_where_the_first_proxy_replaces_the_header() {
        let private = proxies(&["private"]).unwrap();
        let of = |forwarded: &[&str]| {
            private.client("172.18.0.2".parse().unwrap(), forwarded.iter().copied()).to_string()
        };
        let (client, forged) = ("192.168.1.20", "198.51.100.1");
        assert_eq!(of(&[client]), client);
        assert_eq!(of(&[&format!("{forged}, {client}")]), forged);
        for shipped in [
            include_str!("../../../deploy/nginx/nginx.conf"),
            include_str!("../../../deploy/nginx/virtual-machine.conf"),
        ] {
            let headers: Vec<_> =
                shipped.lines().filter(|line| line.contains("proxy_set_header X-Forwarded-For")).collect();
            assert!(!headers.is_empty());
            assert!(headers.iter().all(|line| line.contains("X-Forwarded-For $remote_addr;")), "{headers:?}");
        }
    }

    #[test]
    fn wrong_networks_are_named() {
        for wrong in ["", "proxy", "10.0.0.0/33", "10.0.0.0/x", "::/129"] {
            let error = format!("{:#}", proxies(&[wrong]).unwrap_err());
            assert!(error.contains("trusted_proxies") && error.contains(&format!("{wrong:?}")), "{error}");
        }
        assert!(proxies(&["0.0.0.0/0", "::/0"]).unwrap().contains("8.8.8.8".parse().unwrap()));
    }
}
