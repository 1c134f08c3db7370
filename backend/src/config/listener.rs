//! The server's listeners, who may use them, and limits of connections and requests.

use std::{path::PathBuf, time::Duration};

use crate::connection::ConnectionOptions;

settings! {
    /// The server's listeners, who may use them, and limits of connections and requests.
    ListenerConfig, ListenerFlags {
        /// Address and port; port 0 takes a free one
        listen: String = "127.0.0.1:8080".into(), "FACEPIPE_LISTEN", "ADDRESS:PORT";
        /// File that gets the address once the server is ready, and is removed when it stops
        address_file: PathBuf, "FACEPIPE_ADDRESS_FILE", "FILE", unset "none";
        /// Address and port of /metrics for Prometheus, which everybody who can reach it may read; `off` for none
        metrics_listen: String, "FACEPIPE_METRICS_LISTEN", "ADDRESS:PORT|off",
            unset "127.0.0.1:9464, unless another server uses it";
        /// File of bearer tokens, beside those of `facepipe access`. Without any token the server takes requests from its own
        /// machine only
        token_file: PathBuf, "FACEPIPE_TOKEN_FILE", "FILE", unset "none";
        /// Whether to start without any token although other machines can reach the server, and everybody may do everything
        insecure: bool = false, "FACEPIPE_INSECURE", "true|false",
            arg [num_args = 0..=1, require_equals = true, default_missing_value = "true"];
        /// Threads that handle HTTP; recognition has its own
        http_workers: usize = 2, "FACEPIPE_HTTP_WORKERS", "N", in 1..=1024;
        /// Maximum size of a request, bytes
        max_request_bytes: usize = 64 * 1024 * 1024, "FACEPIPE_MAX_REQUEST_BYTES", "BYTES",
            in 1..=1 << 34;
        /// Seconds that a client may take to send its request
        request_timeout_s: u64 = 30, "FACEPIPE_REQUEST_TIMEOUT_S", "SECONDS", in 1..=86_400;
        /// Seconds for which an idle connection is kept, as `Keep-Alive: timeout=...` announces: longer than the proxy in
        /// front keeps its own
        keep_alive_s: u64 = 75, "FACEPIPE_KEEP_ALIVE_S", "SECONDS", in 1..=3600;
        /// Seconds for which a stopping server still serves while /readyz responds 503
        drain_delay_s: u64 = 0, "FACEPIPE_DRAIN_DELAY_S", "SECONDS", in 0..=3600;
        /// Seconds that accepted requests may take to complete when the server stops
        shutdown_timeout_s: u64 = 30, "FACEPIPE_SHUTDOWN_TIMEOUT_S", "SECONDS", in 1..=86_400;
    }
}

impl ListenerConfig {
    /// Returns how the server treats its connections.
    pub(crate) fn connection_options(&self, write_timeout: Duration) -> ConnectionOptions {
        ConnectionOptions {
            write_timeout,
            workers: self.http_workers,
            request_timeout: Duration::from_secs(self.request_timeout_s),
            keep_alive: Duration::from_secs(self.keep_alive_s),
            shutdown_timeout_s: self.shutdown_timeout_s,
        }
    }

    /// Returns how long a stopping server still serves.
    pub(crate) fn drain_delay(&self) -> Duration {
        Duration::from_secs(self.drain_delay_s)
    }

    /// Returns how long accepted requests, and work in the background, may take to complete.
    pub(crate) fn shutdown_timeout(&self) -> Duration {
        Duration::from_secs(self.shutdown_timeout_s)
    }
}
