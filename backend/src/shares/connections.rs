//! Connections: a bound in all and for each address, and a few beyond it that keep the probes answering.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use super::{AddressKey, Limit, TrustedProxies, address::is_private};

/// Connections beyond the bound that are served probes only.
pub const SPARE_CONNECTIONS: usize = 32;
/// Those of them that are kept for private networks and the machine itself, where probes come from.
const SPARE_PRIVATE: usize = 8;
/// Maximum number of them from one address.
const SPARE_PER_ADDRESS: usize = 4;

/// How many connections there may be.
#[derive(Debug, Clone, Default)]
pub struct ConnectionLimits {
    /// In all.
    pub total: usize,
    /// From one address.
    pub per_address: usize,
    /// Proxies, from which any number may come.
    pub trusted_proxies: TrustedProxies,
}

/// The open connections of a server; clones share them.
#[derive(Clone)]
pub struct Connections {
    limits: Arc<ConnectionLimits>,
    open: Arc<Mutex<Open>>,
}

#[derive(Default)]
struct Open {
    ordinary: Counts,
    spare: Counts,
}

#[derive(Default)]
struct Counts {
    total: usize,
    by_address: HashMap<AddressKey, usize>,
}

impl Counts {
    fn of(&self, address: AddressKey) -> usize {
        self.by_address.get(&address).copied().unwrap_or_default()
    }

    fn add(&mut self, address: AddressKey) {
        self.total += 1;
        *self.by_address.entry(address).or_default() += 1;
    }

    fn remove(&mut self, address: AddressKey) {
        self.total = self.total.saturating_sub(1);
        if let Some(open) = self.by_address.get_mut(&address) {
            *open = open.saturating_sub(1);
            if *open == 0 {
                self.by_address.remove(&address);
            }
        }
    }
}

/// The admission of a new connection.
pub enum Admission {
    /// It is served.
    Served(ConnectionGuard),
    /// It is beyond this limit, and is served probes only.
    ProbesOnly(ConnectionGuard, Limit),
    /// It is beyond this limit, and is closed.
    Refused(Limit),
}

/// An open connection, counted until this is dropped.
pub struct ConnectionGuard {
    connections: Connections,
    address: AddressKey,
    is_spare: bool,
}

impl Connections {
    /// Makes a count of no connections.
    pub fn new(limits: ConnectionLimits) -> Self {
        Self { limits: Arc::new(limits), open: Arc::default() }
    }

    /// Counts a connection from an address, if there is room for it.
    pub fn admit(&self, peer: IpAddr) -> Admission {
        let address = AddressKey::from(peer);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let is_proxy = || self.limits.trusted_proxies.contains(peer);
        let exceeded = if open.ordinary.total >= self.limits.total {
            Limit::Connections
        } else if open.ordinary.of(address) >= self.limits.per_address && !is_proxy() {
            Limit::ConnectionsPerAddress
        } else {
            open.ordinary.add(address);
            return Admission::Served(ConnectionGuard {
                connections: self.clone(),
                address,
                is_spare: false,
            });
        };
        let kept = if is_private(peer) { 0 } else { SPARE_PRIVATE };
        if open.spare.total >= SPARE_CONNECTIONS - kept || open.spare.of(address) >= SPARE_PER_ADDRESS {
            return Admission::Refused(exceeded);
        }
        open.spare.add(address);
        Admission::ProbesOnly(
            ConnectionGuard { connections: self.clone(), address, is_spare: true },
            exceeded,
        )
    }

    /// Returns the number of open connections.
    pub fn open(&self) -> usize {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.ordinary.total + open.spare.total
    }

    /// Returns the maximum of a limit on connections.
    pub fn max(&self, limit: Limit) -> usize {
        if limit == Limit::Connections { self.limits.total } else { self.limits.per_address }
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = if self.is_spare { &mut open.spare } else { &mut open.ordinary };
        counts.remove(self.address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn an_address_and_all_together_are_bounded_and_probes_get_through() {
        let trusted_proxies = TrustedProxies::parse(&["192.0.2.9".into()]).unwrap();
        let limits = ConnectionLimits { total: 10, per_address: 4, trusted_proxies };
        let connections = Connections::new(limits);
        let outcome = |admission: &Admission| match admission {
            Admission::Served(_) => ("served", None),
            Admission::ProbesOnly(_, limit) => ("probes", Some(*limit)),
            Admission::Refused(limit) => ("refused", Some(*limit)),
        };
        let of_one: Vec<Admission> = (0..9).map(|_| connections.admit(address(1))).collect();
        let found: Vec<_> = of_one.iter().map(outcome).collect();
        let limit = Some(Limit::ConnectionsPerAddress);
        assert!(found[..4].iter().all(|found| *found == ("served", None)), "{found:?}");
        assert!(found[4..8].iter().all(|found| *found == ("probes", limit)), "{found:?}");
        assert_eq!(found[8], ("refused", limit));
        // A proxy may open any number of connections.
        let of_proxy: Vec<Admission> = (0..6).map(|_| connections.admit(address(9))).collect();
        assert!(of_proxy.iter().all(|admission| outcome(admission) == ("served", None)));
        assert_eq!(outcome(&connections.admit(address(2))), ("probes", Some(Limit::Connections)));
        assert_eq!(connections.open(), 14);
        let many: Vec<Admission> = (20..120).map(|last| connections.admit(address(last))).collect();
        let served = many.iter().filter(|admission| outcome(admission).0 == "probes").count();
        assert_eq!(served, SPARE_CONNECTIONS - SPARE_PRIVATE - 4);
        let private: Vec<Admission> =
            (1..20).map(|last| connections.admit(IpAddr::from([10, 0, 0, last]))).collect();
        let served = private.iter().filter(|admission| outcome(admission).0 == "probes").count();
        assert_eq!(served, SPARE_PRIVATE);
        drop((of_one, of_proxy, many, private));
        assert_eq!(connections.open(), 0);
        assert_eq!(outcome(&connections.admit(address(1))), ("served", None));
    }
}
