//! The cryptography of outgoing HTTPS.

/// Installs ring as the default of TLS clients, unless the process has a default already.
pub fn use_ring() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Another thread may have installed the same in the meantime.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}
