//! The camera that a client's certificate names.

use std::sync::Arc;

use percent_encoding::percent_decode_str;
use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// The prefix of the name of a camera's principal in a URI of `subjectAltName`.
const CAMERA_URI: &str = "urn:facepipe:camera:";

/// The name of a camera's principal in a client's certificate, which an authority of `tls_client_ca` has signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertifiedCamera(Arc<str>);

impl CertifiedCamera {
    /// Reads the name from a certificate: from the one URI `urn:facepipe:camera:NAME`, percent-encoded, of its
    /// `subjectAltName`. Returns nothing if there is no such URI or more than one.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let certificate = EndEntityCert::try_from(certificate).ok()?;
        let mut names = certificate.valid_uri_names().filter_map(|uri| uri.strip_prefix(CAMERA_URI));
        let (name, other) = (names.next()?, names.next());
        let name = percent_decode_str(name).decode_utf8().ok()?;
        (other.is_none() && !name.is_empty()).then(|| Self(name.into()))
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    #[test]
    fn the_name_of_a_camera_is_read_from_its_uri() {
        let name = |uris: &[&str]| {
            let mut params = CertificateParams::new(["gate.example".into()]).unwrap();
            params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            CertifiedCamera::of(certificate.der()).map(|camera| camera.name().to_owned())
        };
        assert_eq!(name(&["urn:facepipe:camera:gate-1"]).as_deref(), Some("gate-1"));
        assert_eq!(name(&["urn:facepipe:camera:Tor%20%C3%9C", "urn:other:x"]).as_deref(), Some("Tor Ü"));
        for none in [
            &[][..],
            &["urn:other:gate-1"],
            &["urn:facepipe:camera:"],
            &["urn:facepipe:camera:%ff"],
            &["urn:facepipe:camera:gate-1", "urn:facepipe:camera:gate-2"],
        ] {
            assert_eq!(name(none), None, "{none:?}");
        }
    }
}
