//! Where and how to upload: what is fixed at the start, and what may change while crops are uploaded.

use std::{path::PathBuf, time::Duration};

use http::Uri;

use super::{Backoff, SpoolConfig, Token, UploadError};

/// The backend's call that crops are posted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstFacepipeEndpoint")]
#[repr(i32)]
pub enum Endpoint {
    /// Each recognised face becomes a stored detection.
    #[default]
    #[enum_value(name = "Recognise and store each face as a detection", nick = "store-results")]
    StoreResults,
    /// Each recognised face is forwarded to the external API that the backend is configured with.
    #[enum_value(
        name = "Recognise and forward each face to the backend's external API",
        nick = "send-results"
    )]
    SendResults,
    /// The faces are recognised and nothing is kept.
    #[enum_value(name = "Recognise and keep nothing", nick = "get-results")]
    GetResults,
    /// The backend accepts the crops and discards them.
    #[enum_value(name = "Accept and discard (benchmarks)", nick = "dry-run")]
    DryRun,
}

impl Endpoint {
    /// Returns the last segment of the call's path.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StoreResults => "store-results",
            Self::SendResults => "send-results",
            Self::GetResults => "get-results",
            Self::DryRun => "dry-run",
        }
    }

    /// Returns the call's address below the root of a backend's API; a path in the root is kept as a prefix.
    pub(super) fn uri(self, backend_url: &str) -> Result<Uri, UploadError> {
        let invalid =
            |reason: &str| UploadError::Url { url: without_user(backend_url), reason: reason.into() };
        let base: Uri = backend_url.trim().parse().map_err(|_| invalid("is not a URL"))?;
        if !matches!(base.scheme_str(), Some("http" | "https")) {
            return Err(invalid("begins with neither http:// nor https://"));
        }
        let authority = base.authority().ok_or_else(|| invalid("names no host"))?;
        if authority.as_str().contains('@') {
            return Err(invalid("contains a user name, which is not supported"));
        }
        if base.query().is_some() {
            return Err(invalid("contains a query"));
        }
        let path = format!("{}/face-recognition/{}", base.path().trim_end_matches('/'), self.as_str());
        Uri::builder()
            .scheme(base.scheme_str().unwrap_or("http"))
            .authority(authority.as_str())
            .path_and_query(path)
            .build()
            .map_err(|_| invalid("is not a URL"))
    }
}

/// Which crop is dropped when the queue in memory is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstFacepipeDropPolicy")]
#[repr(i32)]
pub enum DropPolicy {
    /// The oldest in the queue.
    #[default]
    #[enum_value(name = "Drop the oldest crop in the queue", nick = "oldest")]
    Oldest,
    /// The new one.
    #[enum_value(name = "Drop the new crop", nick = "newest")]
    Newest,
    /// None: pushing blocks until there is space. For recordings; a live source would lose frames.
    #[enum_value(name = "Drop none: block the stream until there is space (for recordings)", nick = "block")]
    Block,
}

/// Where and how to upload.
#[derive(Debug, Clone)]
pub struct UploadConfig {
    /// Root of the backend's API, `http://` or `https://`; a path in it is kept as a prefix.
    pub backend_url: String,
    /// The call to post to.
    pub endpoint: Endpoint,
    /// PEM file of certificates to trust beside the system's: authorities', or the backend's own.
    pub ca_file: Option<PathBuf>,
    /// Digests of the backend's public key, in the form that [`KeyPin::parse_all`](super::KeyPin::parse_all) reads. A
    /// server with one of these keys is the backend; with `ca_file`, its certificate is checked as well.
    pub pinned_sha256: Option<String>,
    /// PEM file of this client's certificate.
    pub client_cert: Option<PathBuf>,
    /// PEM file of its private key; unset: it is in `client_cert`.
    pub client_key: Option<PathBuf>,
    /// Whether a token may be sent over plain HTTP to another machine.
    pub allow_insecure_token: bool,
    /// Maximum number of concurrent requests, at least 1.
    pub workers: usize,
    /// How long to wait before a retry.
    pub backoff: Backoff,
    /// Collector of OpenTelemetry traces, `http://` or `https://`: OTLP, protobuf over HTTP, to `v1/traces` below it.
    /// Unset: no traces.
    pub otlp_endpoint: Option<String>,
    /// Where crops are kept during an outage; unset: in memory only.
    pub spool: Option<SpoolConfig>,
    /// What may change later.
    pub settings: RuntimeSettings,
}

impl Default for UploadConfig {
    fn default() -> Self {
        Self {
            backend_url: "http://127.0.0.1:8080".into(),
            endpoint: Endpoint::default(),
            ca_file: None,
            pinned_sha256: None,
            client_cert: None,
            client_key: None,
            allow_insecure_token: false,
            workers: 2,
            backoff: Backoff::default(),
            otlp_endpoint: None,
            spool: None,
            settings: RuntimeSettings::default(),
        }
    }
}

/// What may be changed while crops are uploaded.
#[derive(Debug, Clone)]
pub struct RuntimeSettings {
    /// Limit for one request, from connecting to the last byte of the response; zero: none.
    pub timeout: Duration,
    /// Capacity of the queue in memory, in crops, at least 1.
    pub max_queue: usize,
    /// Maximum number of crops in one request, at least 1.
    pub batch_size: usize,
    /// How long a crop waits for its batch to fill.
    pub batch_delay: Duration,
    /// Without a spool, how often a crop is retried before it is given up; with one, after how many consecutive failures
    /// crops are spooled. `None`: retried forever, spooled at the first failure.
    pub retries: Option<u32>,
    /// Which crop is dropped when the queue is full.
    pub drop_policy: DropPolicy,
    /// Sent with each request.
    pub token: Option<Token>,
    /// Read for each request if `token` is unset.
    pub token_file: Option<PathBuf>,
    /// How often [`Event::Stats`](super::Event::Stats) is reported; zero: never.
    pub stats_interval: Duration,
}

impl Default for RuntimeSettings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(15),
            max_queue: 512,
            batch_size: 8,
            batch_delay: Duration::from_secs(1),
            retries: None,
            drop_policy: DropPolicy::default(),
            token: None,
            token_file: None,
            stats_interval: Duration::ZERO,
        }
    }
}

/// Returns a URL without its user and password, for messages. They end with the last `@` before the path.
pub fn without_user(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

/// Returns true if a token sent to this URL could be read on its way: neither TLS nor this machine.
pub fn exposes_tokens(backend_url: &str) -> bool {
    let Ok(uri) = backend_url.trim().parse::<Uri>() else { return false };
    uri.scheme_str() == Some("http") && !is_loopback(uri.host().unwrap_or_default())
}

/// Returns true if a URL's host is this machine under one of its loopback names.
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_shown_without_their_user() {
        for (url, shown) in [
            ("https://faces.example/path", "https://faces.example/path"),
            ("https://user:s3cret@faces.example:8443/a@b", "https://faces.example:8443/a@b"),
            ("http://user:s3@cret@10.0.0.7?x=y@z", "http://10.0.0.7?x=y@z"),
            ("faces.example", "faces.example"),
        ] {
            assert_eq!(without_user(url), shown);
        }
        let error = Endpoint::default().uri("https://user:s3cret@faces.example").unwrap_err().to_string();
        assert!(error.contains("faces.example") && !error.contains("s3cret"), "{error}");
    }

    #[test]
    fn tokens_are_exposed_by_http_beyond_this_machine() {
        for (url, exposed) in [
            ("http://127.0.0.1:8080", false),
            ("http://[::1]:8080", false),
            ("http://localhost", false),
            ("https://faces.example", false),
            ("http://faces.example", true),
            ("http://10.0.0.7:8080/faces", true),
        ] {
            assert_eq!(exposes_tokens(url), exposed, "{url}");
        }
    }
}
