//! Bytes of request bodies in memory: a budget over the whole process, and one for each principal.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Limit, ShareKey};

/// The share of the budget that is reserved, one in this number: only principals with few bytes in memory may use it,
/// so that the requests of many that hold large bodies leave it free.
const RESERVE_SHARE: usize = 4;
/// The bytes up to which a principal may use the reserve: one in this number of the budget.
const SMALL_SHARE: usize = 32;

/// Why more bytes may not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {max} {}", limit.describe())]
pub struct BytesExceeded {
    /// [`Limit::BytesInFlight`] or [`Limit::TotalBytesInFlight`].
    pub limit: Limit,
    /// Its maximum.
    pub max: usize,
}

/// The bytes of all requests in memory; clones share them.
#[derive(Clone)]
pub struct BytesInFlight {
    total: usize,
    principal: usize,
    held: Arc<Mutex<Held>>,
}

#[derive(Default)]
struct Held {
    total: usize,
    by_principal: HashMap<ShareKey, usize>,
}

impl BytesInFlight {
    /// Makes a budget of `total` bytes, of which one principal may use `principal`.
    pub fn new(total: usize, principal: usize) -> Self {
        Self { total, principal, held: Arc::default() }
    }

    /// Begins to count the bytes of a request; they are free again once it is dropped.
    pub fn request(&self, key: ShareKey) -> RequestBytes {
        RequestBytes { budget: self.clone(), key, bytes: Mutex::new(0) }
    }

    /// Returns the bytes in memory.
    pub fn held(&self) -> usize {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).total
    }

    /// Checks whether `bytes` more of a principal would fit now.
    ///
    /// # Errors
    /// They would not.
    pub fn check(&self, key: ShareKey, bytes: usize) -> Result<(), BytesExceeded> {
        self.room(&self.held.lock().unwrap_or_else(PoisonError::into_inner), key, bytes).map(drop)
    }

    /// Returns the bytes of a principal with `bytes` more, if there is room for them.
    fn room(&self, held: &Held, key: ShareKey, bytes: usize) -> Result<usize, BytesExceeded> {
        let own = held.by_principal.get(&key).copied().unwrap_or_default().saturating_add(bytes);
        if own > self.principal {
            return Err(BytesExceeded { limit: Limit::BytesInFlight, max: self.principal });
        }
        let is_small = own <= self.total / SMALL_SHARE;
        let max = if is_small { self.total } else { self.total - self.total / RESERVE_SHARE };
        if held.total.saturating_add(bytes) > max {
            return Err(BytesExceeded { limit: Limit::TotalBytesInFlight, max: self.total });
        }
        Ok(own)
    }
}

/// The bytes of one request.
pub struct RequestBytes {
    budget: BytesInFlight,
    key: ShareKey,
    bytes: Mutex<usize>,
}

impl RequestBytes {
    /// Counts bytes that have arrived.
    ///
    /// # Errors
    /// There is no room for them; they are not counted.
    pub fn add(&self, bytes: usize) -> Result<(), BytesExceeded> {
        let mut held = self.budget.held.lock().unwrap_or_else(PoisonError::into_inner);
        let own = self.budget.room(&held, self.key, bytes)?;
        held.total = held.total.saturating_add(bytes);
        held.by_principal.insert(self.key, own);
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner) += bytes;
        Ok(())
    }
}

impl Drop for RequestBytes {
    fn drop(&mut self) {
        let bytes = *self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut held = self.budget.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.total = held.total.saturating_sub(bytes);
        if let Some(own) = held.by_principal.get_mut(&self.key) {
            *own = own.saturating_sub(bytes);
            if *own == 0 {
                held.by_principal.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::{super::AddressKey, *};

    fn key(last: u8) -> ShareKey {
        ShareKey::Address(AddressKey::from(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))))
    }

    #[test]
    fn a_principal_holds_no_more_than_its_bound_and_large_ones_leave_a_reserve() {
        let budget = BytesInFlight::new(3200, 1000);
        let requests: Vec<RequestBytes> = (1..=4).map(|client| budget.request(key(client))).collect();
        let exceeded = |limit, max| Err(BytesExceeded { limit, max });
        requests[0].add(600).unwrap();
        requests[0].add(400).unwrap();
        assert_eq!(requests[0].add(1), exceeded(Limit::BytesInFlight, 1000));
        requests[1].add(1000).unwrap();
        // The last quarter is reserved for principals with a hundred bytes at most.
        assert_eq!(requests[2].add(401), exceeded(Limit::TotalBytesInFlight, 3200));
        requests[2].add(400).unwrap();
        assert_eq!(budget.check(key(4), 101), exceeded(Limit::TotalBytesInFlight, 3200));
        requests[3].add(100).unwrap();
        assert_eq!(budget.held(), 2500);
        let others: Vec<RequestBytes> = (5..=11).map(|client| budget.request(key(client))).collect();
        others.iter().for_each(|small| small.add(100).unwrap());
        assert_eq!(budget.check(key(12), 1), exceeded(Limit::TotalBytesInFlight, 3200));
        drop((requests, others));
        assert_eq!((budget.held(), budget.check(key(1), 1000)), (0, Ok(())));
    }
}
