//! Fair shares: how much of the server one client may use at a time, and all together.

use std::time::Duration;

use crate::shares::{ConnectionLimits, RateLimit, ShareLimits, TrustedProxies};

/// Default of one client's bytes of requests in memory, unless the largest request is larger.
const CLIENT_BODY_BYTES: usize = 128 * 1024 * 1024;
/// Requests at once after a pause, in seconds of the rate.
const BURST_S: u32 = 2;
/// Requests at once of clients without a token, in seconds of the rate: a page with its files.
const ANONYMOUS_BURST_S: u32 = 10;

settings! {
    /// How much of the server one client may use at a time, and all together.
    SharesConfig, SharesFlags {
        /// Proxies whose X-Forwarded-For says who the client is: addresses, networks such as 10.0.0.0/8, or `private` for all
        /// private networks, separated by commas
        trusted_proxies: Vec<String> = Vec::new(), "FACEPIPE_TRUSTED_PROXIES", "NETWORKS", unset "none",
            arg [value_delimiter = ','];
        /// Connections in all; fewer where the limit of open files is lower
        max_connections: usize = 2048, "FACEPIPE_MAX_CONNECTIONS", "N", in 1..=1_000_000;
        /// Connections from one address, or from one /64 of IPv6; those of trusted proxies do not count
        max_connections_per_address: usize = 512, "FACEPIPE_MAX_CONNECTIONS_PER_ADDRESS", "N", in 1..=1_000_000;
        /// Seconds in which a client must read 16 KiB of a response, or the rest of it
        write_timeout_s: u64 = 30, "FACEPIPE_WRITE_TIMEOUT_S", "SECONDS", in 1..=3600;
        /// Bytes of all requests in memory; more are rejected with 503
        body_budget_bytes: usize, "FACEPIPE_BODY_BUDGET_BYTES", "BYTES",
            unset "268435456, and at least twice client_body_bytes", in 65_536..=1 << 40;
        /// Bytes of one client's requests in memory; more are rejected with 429
        client_body_bytes: usize, "FACEPIPE_CLIENT_BODY_BYTES", "BYTES",
            unset "134217728, and at least max_request_bytes", in 65_536..=1 << 40;
        /// Requests a second of one client with a token, or of one address on a server without tokens; more are rejected with
        /// 429, and 0 allows any number
        client_requests_per_s: u32 = 1000, "FACEPIPE_CLIENT_REQUESTS_PER_S", "N", in 0..=1_000_000;
        /// The same of an address without a token, for the calls that need none
        anonymous_requests_per_s: u32 = 50, "FACEPIPE_ANONYMOUS_REQUESTS_PER_S", "N", in 0..=1_000_000;
        /// Images of one client that may wait for recognition or be recognised; more are rejected with 429. Without it, one
        /// client may use all of queue_images while no other needs them
        client_queue_images: u32, "FACEPIPE_CLIENT_QUEUE_IMAGES", "N", unset "queue_images", in 1..=65_536;
        /// How many times the recognition of a camera's client an administrator's gets while images of both wait
        admin_weight: u32 = 4, "FACEPIPE_ADMIN_WEIGHT", "N", in 1..=100;
    }
}

impl SharesConfig {
    /// Returns the proxies in front.
    ///
    /// # Errors
    /// One is neither an address nor a network.
    pub fn trusted_proxies(&self) -> anyhow::Result<TrustedProxies> {
        TrustedProxies::parse(&self.trusted_proxies)
    }

    /// Returns the bytes of one client's requests in memory. Unless set, they suffice for the largest request.
    fn client_body_bytes(&self, max_request_bytes: usize) -> usize {
        self.client_body_bytes.unwrap_or_else(|| CLIENT_BODY_BYTES.max(max_request_bytes))
    }

    /// Returns the bytes of all requests in memory. Unless set, they are at least twice one client's: the last quarter
    /// is not for large requests.
    fn body_budget_bytes(&self, max_request_bytes: usize) -> usize {
        let client = self.client_body_bytes(max_request_bytes).max(CLIENT_BODY_BYTES);
        self.body_budget_bytes.unwrap_or_else(|| client.saturating_mul(2))
    }

    /// Returns the limits by which requests are counted; a request has at most `max_request_bytes`.
    ///
    /// # Errors
    /// As [`trusted_proxies`](Self::trusted_proxies).
    pub(crate) fn limits(&self, max_request_bytes: usize) -> anyhow::Result<ShareLimits> {
        let rate =
            |per_second: u32, seconds| RateLimit { per_second, burst: per_second.saturating_mul(seconds) };
        Ok(ShareLimits {
            total_bytes: self.body_budget_bytes(max_request_bytes),
            principal_bytes: self.client_body_bytes(max_request_bytes),
            principal_rate: rate(self.client_requests_per_s, BURST_S),
            anonymous_rate: rate(self.anonymous_requests_per_s, ANONYMOUS_BURST_S),
            admin_weight: self.admin_weight,
            trusted_proxies: self.trusted_proxies()?,
        })
    }

    /// Returns the limits of connections, of which at most `descriptors` are open.
    ///
    /// # Errors
    /// As [`trusted_proxies`](Self::trusted_proxies).
    pub(crate) fn connection_limits(&self, descriptors: u64) -> anyhow::Result<ConnectionLimits> {
        Ok(ConnectionLimits {
            total: self.max_connections.min(usize::try_from(descriptors).unwrap_or(usize::MAX)),
            per_address: self.max_connections_per_address,
            trusted_proxies: self.trusted_proxies()?,
        })
    }

    /// Returns how long a client may read nothing of a response.
    pub(crate) fn write_timeout(&self) -> Duration {
        Duration::from_secs(self.write_timeout_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    #[test]
    fn the_largest_request_fits_into_memory_unless_less_is_configured() {
        let bytes = |config: &SharesConfig, max_request_bytes| {
            let limits = config.limits(max_request_bytes).unwrap();
            (limits.principal_bytes, limits.total_bytes)
        };
        let config = SharesConfig::default();
        assert_eq!(bytes(&config, 64 * MIB), (128 * MIB, 256 * MIB));
        assert_eq!(bytes(&config, 1024 * MIB), (1024 * MIB, 2048 * MIB));
        let config = SharesConfig { client_body_bytes: Some(MIB), ..config };
        assert_eq!(bytes(&config, 64 * MIB), (MIB, 256 * MIB));
        let config = SharesConfig { body_budget_bytes: Some(4 * MIB), ..config };
        assert_eq!(bytes(&config, 64 * MIB), (MIB, 4 * MIB));
    }
}
