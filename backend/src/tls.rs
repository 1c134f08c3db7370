//! The cryptography under HTTPS to other servers.

/// Has TLS clients that are made from now on use ring, unless the process has chosen already.
pub fn use_ring() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Another thread may have been faster, with the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}
