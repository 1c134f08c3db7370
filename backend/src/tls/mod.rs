//! TLS: the server's certificate, the cameras that clients' certificates name, and the cryptography of outgoing HTTPS.

mod certificate;
mod client;
mod self_signed;

pub use certificate::{ServerTls, TlsFiles};
pub use client::CertifiedCamera;
pub use self_signed::self_signed;

use std::time::Duration;

/// Installs ring as the default of TLS clients, unless the process has a default already.
pub fn use_ring() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Another thread may have installed the same in the meantime.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

/// Returns a client for probes of a server on this machine. It does not check certificates: they name the server as others
/// reach it, and a probe neither sends nor receives anything secret.
///
/// # Errors
/// The client cannot be built.
pub fn probe_client(timeout: Duration) -> reqwest::Result<reqwest::Client> {
    use_ring();
    reqwest::Client::builder().timeout(timeout).no_proxy().tls_danger_accept_invalid_certs(true).build()
}
