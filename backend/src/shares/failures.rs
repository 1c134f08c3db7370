//! Failed authentications: a growing delay for each address.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{address::AddressKey, bounded_map::BoundedMap};

/// Number of failures without a delay: somebody sets up a client, or several clients use a revoked token.
pub const FREE_FAILURES: u32 = 100;
/// The longest delay.
const MAX_DELAY: Duration = Duration::from_secs(300);
/// Time without failures after which those of an address are forgotten.
const FORGIVEN_AFTER: Duration = Duration::from_secs(900);
/// Minimum number of addresses that are remembered. A forgotten one starts without failures.
const ADDRESSES: usize = 8_192;

/// Failed authentications by address. Right tokens are always admitted, so that nobody can lock out others behind the
/// same proxy or router.
pub struct FailedAuthentications {
    addresses: Mutex<BoundedMap<AddressKey, Failures>>,
}

#[derive(Clone, Copy)]
struct Failures {
    count: u32,
    last: Instant,
    /// When the next attempt may be made.
    until: Instant,
}

impl Default for FailedAuthentications {
    fn default() -> Self {
        Self { addresses: Mutex::new(BoundedMap::new(ADDRESSES)) }
    }
}

impl FailedAuthentications {
    /// Counts a failure.
    ///
    /// # Errors
    /// The address has failed too often; the time after which it may try again: 1 s, doubled with each attempt that waited,
    /// up to five minutes. Attempts before then do not prolong it.
    pub fn count(&self, address: AddressKey, now: Instant) -> Result<(), Duration> {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = addresses.entry(address, || Failures { count: 0, last: now, until: now });
        if now.saturating_duration_since(failures.last) > FORGIVEN_AFTER {
            *failures = Failures { count: 0, last: now, until: now };
        }
        failures.last = now;
        if now < failures.until {
            return Err(failures.until.duration_since(now));
        }
        failures.count = failures.count.saturating_add(1);
        let Some(beyond) = failures.count.checked_sub(FREE_FAILURES + 1) else { return Ok(()) };
        let delay = Duration::from_secs(1 << beyond.min(16)).min(MAX_DELAY);
        failures.until = now + delay;
        Err(delay)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn address(last: u8) -> AddressKey {
        AddressKey::from(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)))
    }

    #[test]
    fn delays_grow_and_are_forgiven() {
        let (failures, begun) = (FailedAuthentications::default(), Instant::now());
        for _ in 0..FREE_FAILURES {
            assert_eq!(failures.count(address(1), begun), Ok(()));
        }
        let mut now = begun;
        for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            let delay = Duration::from_secs(seconds);
            assert_eq!(failures.count(address(1), now), Err(delay));
            // An attempt before then does not prolong the delay.
            assert_eq!(failures.count(address(1), now), Err(delay));
            now += delay;
        }
        assert_eq!(failures.count(address(2), now), Ok(()));
        assert_eq!(failures.count(address(1), now + Duration::from_secs(901)), Ok(()));
    }
}
