//! TLS of the API's listener.

use std::path::PathBuf;

use crate::tls::TlsFiles;

settings! {
    /// TLS of the API's listener.
    TlsConfig, TlsFlags {
        /// File of the server's certificate, then of those between it and its authority (PEM): the server speaks https, and
        /// reads it again when it changes
        tls_certificate: PathBuf, "FACEPIPE_TLS_CERTIFICATE", "FILE", unset "none, the server speaks http";
        /// File of the certificate's private key (PEM)
        tls_key: PathBuf, "FACEPIPE_TLS_KEY", "FILE", unset "none";
        /// File of the authorities (PEM) whose certificates clients may prove themselves with
        tls_client_ca: PathBuf, "FACEPIPE_TLS_CLIENT_CA", "FILE", unset "none";
        /// Seconds for which browsers that have seen this server over https use no http on its host, on any port
        /// (Strict-Transport-Security); 0 makes them forget it
        hsts_max_age_s: u64 = 31_536_000, "FACEPIPE_HSTS_MAX_AGE_S", "SECONDS", in 0..=315_360_000;
    }
}

impl TlsConfig {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        self.files().map(|_| ())
    }

    /// Returns the files of TLS; `None` if the server uses plain HTTP.
    ///
    /// # Errors
    /// One is set without the other that it needs.
    pub(crate) fn files(&self) -> anyhow::Result<Option<TlsFiles>> {
        let (certificate, key) = match (&self.tls_certificate, &self.tls_key) {
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
            (None, None) => {
                anyhow::ensure!(
                    self.tls_client_ca.is_none(),
                    "tls_client_ca is set, but tls_certificate and tls_key are not: clients can only prove themselves over \
                     https"
                );
                return Ok(None);
            }
            (Some(_), None) => anyhow::bail!("tls_certificate is set, but tls_key is not: https needs both"),
            (None, Some(_)) => anyhow::bail!("tls_key is set, but tls_certificate is not: https needs both"),
        };
        Ok(Some(TlsFiles { certificate, key, client_ca: self.tls_client_ca.clone() }))
    }

    /// Returns `https` or `http`.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.tls_certificate.is_some() { "https" } else { "http" }
    }

    /// Returns the value of `Strict-Transport-Security`; `None` if the server uses plain HTTP.
    pub(crate) fn hsts(&self) -> Option<String> {
        self.tls_certificate.as_ref().map(|_| format!("max-age={}", self.hsts_max_age_s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_needs_its_key_and_the_other_way_round() {
        let told = |certificate: Option<&str>, key: Option<&str>, client_ca: Option<&str>| {
            let config = TlsConfig {
                tls_certificate: certificate.map(PathBuf::from),
                tls_key: key.map(PathBuf::from),
                tls_client_ca: client_ca.map(PathBuf::from),
                ..TlsConfig::default()
            };
            config.check().err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert!(told(Some("c.pem"), None, None).contains("tls_key is not"));
        assert!(told(None, Some("k.pem"), None).contains("tls_certificate is not"));
        assert!(told(None, None, Some("ca.pem")).contains("tls_client_ca is set"));
        assert_eq!(told(None, None, None), "");
        assert_eq!(told(Some("c.pem"), Some("k.pem"), Some("ca.pem")), "");
    }
}
