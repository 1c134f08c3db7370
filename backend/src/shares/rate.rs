//! Requests a second: a token bucket for each client.

use std::{
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::bounded_map::BoundedMap;

/// Minimum number of clients that are remembered. A forgotten one starts with a full bucket.
const CLIENTS: usize = 8_192;

/// How many requests a client may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests a second in the long run; 0 for any number.
    pub per_second: u32,
    /// Requests at once after a pause.
    pub burst: u32,
}

/// Requests a second of each client.
pub struct RequestRates<K> {
    limit: RateLimit,
    buckets: Mutex<BoundedMap<K, Bucket>>,
}

#[derive(Clone, Copy)]
struct Bucket {
    /// Requests that may be made now.
    left: f64,
    at: Instant,
}

impl<K: Copy + Eq + Hash> RequestRates<K> {
    /// Makes full buckets.
    pub fn new(limit: RateLimit) -> Self {
        Self { limit, buckets: Mutex::new(BoundedMap::new(CLIENTS)) }
    }

    /// Returns the limit.
    pub fn limit(&self) -> RateLimit {
        self.limit
    }

    /// Counts a request of a client.
    ///
    /// # Errors
    /// It makes too many; the time after which it may make the next one.
    pub fn admit(&self, client: K, now: Instant) -> Result<(), Duration> {
        if self.limit.per_second == 0 {
            return Ok(());
        }
        let (rate, burst) = (f64::from(self.limit.per_second), f64::from(self.limit.burst.max(1)));
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.entry(client, || Bucket { left: burst, at: now });
        let gained = now.saturating_duration_since(bucket.at).as_secs_f64() * rate;
        bucket.left = (bucket.left + gained).min(burst);
        bucket.at = bucket.at.max(now);
        if bucket.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.left) / rate));
        }
        bucket.left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_a_rate_and_a_burst_of_its_own() {
        let rates = RequestRates::new(RateLimit { per_second: 10, burst: 3 });
        let begun = Instant::now();
        let admitted = |client, now| (0..20).filter(|_| rates.admit(client, now).is_ok()).count();
        assert_eq!((admitted('a', begun), admitted('b', begun)), (3, 3));
        assert_eq!(rates.admit('a', begun), Err(Duration::from_millis(100)));
        assert_eq!(admitted('a', begun + Duration::from_millis(250)), 2);
        assert_eq!(admitted('a', begun + Duration::from_secs(60)), 3);
        // A clock that goes back admits no further requests.
        assert_eq!(admitted('a', begun), 0);
        let unlimited = RequestRates::new(RateLimit { per_second: 0, burst: 0 });
        assert!((0..100).all(|_| unlimited.admit('a', begun).is_ok()));
    }
}
