//! Fair shares: how much of the server one principal, or one address, may use at a time, so that no client's requests
//! keep out those of others. Counts only; `api/admission.rs` refuses requests, `connection/` connections, `recognise/`
//! images.

mod address;
mod bounded_map;
mod bytes;
mod connections;
mod descriptors;
mod failures;
mod rate;

pub use address::{AddressKey, TrustedProxies};
pub use bytes::{BytesExceeded, BytesInFlight};
pub use connections::{Admission, ConnectionGuard, ConnectionLimits, Connections};
pub use descriptors::{RESERVED_DESCRIPTORS, raise_soft_limit};
pub use failures::{FREE_FAILURES, FailedAuthentications};
pub use rate::{RateLimit, RequestRates};

use crate::access::PrincipalKey;

tokio::task_local! {
    static CURRENT: Share;
}

/// The owner of the share that a request counts towards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ShareKey {
    /// A principal: all of its tokens and addresses together.
    Principal(PrincipalKey),
    /// A client without a token: its address, or its network in IPv6.
    Address(AddressKey),
    /// The server's own work.
    Internal,
}

/// A request's share of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Its owner.
    pub key: ShareKey,
    /// How much more recognition it gets than one of weight 1 while both have images waiting. Not 0.
    pub weight: u32,
}

impl Share {
    /// The share of work that no request asks for.
    pub const INTERNAL: Self = Self { key: ShareKey::Internal, weight: 1 };

    /// Returns the share of the current request.
    pub fn current() -> Self {
        CURRENT.try_with(|share| *share).unwrap_or(Self::INTERNAL)
    }

    /// Runs the handling of a request.
    pub async fn scope<F: Future>(self, answering: F) -> F::Output {
        CURRENT.scope(self, answering).await
    }
}

/// A bound that a request exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Images of one principal that wait for recognition or are being recognised.
    WaitingImages,
    /// Requests of one principal, or of one address, a second.
    RequestsPerSecond,
    /// Bytes of one principal's requests that are in memory.
    BytesInFlight,
    /// Failed authentications of an address.
    FailedAuthentications,
    /// Bytes of all requests that are in memory.
    TotalBytesInFlight,
    /// Pixels of all images that wait for recognition or are being recognised.
    QueuePixels,
    /// Seconds that a request may wait for recognition.
    Deadline,
    /// Connections in all.
    Connections,
    /// Connections of one address.
    ConnectionsPerAddress,
}

impl Limit {
    /// All limits.
    pub const ALL: [Self; 9] = [
        Self::WaitingImages,
        Self::RequestsPerSecond,
        Self::BytesInFlight,
        Self::FailedAuthentications,
        Self::TotalBytesInFlight,
        Self::QueuePixels,
        Self::Deadline,
        Self::Connections,
        Self::ConnectionsPerAddress,
    ];

    /// Returns the name in errors and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::WaitingImages => "waiting_images",
            Self::RequestsPerSecond => "requests_per_second",
            Self::BytesInFlight => "bytes_in_flight",
            Self::FailedAuthentications => "failed_authentications",
            Self::TotalBytesInFlight => "total_bytes_in_flight",
            Self::QueuePixels => "queue_pixels",
            Self::Deadline => "deadline_s",
            Self::Connections => "connections",
            Self::ConnectionsPerAddress => "connections_per_address",
        }
    }

    /// Returns whether a request that exceeds the limit may have a body that nobody reads: its connection is then closed.
    pub fn leaves_body_unread(self) -> bool {
        !matches!(self, Self::WaitingImages | Self::QueuePixels | Self::Deadline)
    }

    /// Returns the quantity that the limit bounds, for a sentence that continues with its maximum.
    pub fn describe(self) -> &'static str {
        match self {
            Self::WaitingImages => "images of this client that wait for recognition",
            Self::RequestsPerSecond => "requests a second of this client",
            Self::BytesInFlight => "bytes of this client's requests in memory",
            Self::FailedAuthentications => "attempts with a wrong token from this address",
            Self::TotalBytesInFlight => "bytes of all requests in memory",
            Self::QueuePixels => "pixels of all images that wait for recognition",
            Self::Deadline => "seconds of waiting for recognition",
            Self::Connections => "connections to this server",
            Self::ConnectionsPerAddress => "connections from this address",
        }
    }
}

/// The limits of [`Shares`].
#[derive(Debug, Clone)]
pub struct ShareLimits {
    /// Bytes of all request bodies in memory.
    pub total_bytes: usize,
    /// Bytes of one principal's request bodies in memory.
    pub principal_bytes: usize,
    /// Requests of one principal, or of one address on a server without tokens.
    pub principal_rate: RateLimit,
    /// Requests without a valid token of one address.
    pub anonymous_rate: RateLimit,
    /// Weight of administrators; cameras have 1.
    pub admin_weight: u32,
    /// Proxies whose `X-Forwarded-For` counts.
    pub trusted_proxies: TrustedProxies,
}

/// The counts of all requests of a server.
pub struct Shares {
    /// Bytes of bodies.
    pub bytes: BytesInFlight,
    /// Requests a second of principals.
    pub principals: RequestRates<ShareKey>,
    /// Requests a second of clients without a token.
    pub anonymous: RequestRates<ShareKey>,
    /// Wrong tokens.
    pub failures: FailedAuthentications,
    /// Weight of administrators; cameras have 1.
    pub admin_weight: u32,
    /// Proxies whose `X-Forwarded-For` counts.
    pub trusted_proxies: TrustedProxies,
}

impl Shares {
    /// Creates shares with nothing in use.
    pub fn new(limits: ShareLimits) -> Self {
        Self {
            bytes: BytesInFlight::new(limits.total_bytes, limits.principal_bytes),
            principals: RequestRates::new(limits.principal_rate),
            anonymous: RequestRates::new(limits.anonymous_rate),
            failures: FailedAuthentications::default(),
            admin_weight: limits.admin_weight,
            trusted_proxies: limits.trusted_proxies,
        }
    }
}
