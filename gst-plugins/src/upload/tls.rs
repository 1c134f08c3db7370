//! Decides whether a server is the backend: by trusted authorities, by a certificate that is itself in `ca-file`, or by a
//! key that `pinned-sha256` names. Proves this client to the backend by its own certificate, if it has one.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        ResolvesClientCert, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
    sign::CertifiedKey,
};
use sha2::{Digest, Sha256};

use super::{
    UploadError,
    file_version::{FileVersion, file_version},
};

/// How a client and its server prove themselves over https.
#[derive(Debug, Clone, Default)]
pub struct TlsOptions {
    /// PEM file of certificates to trust beside the system's: authorities', or the server's own.
    pub ca_file: Option<PathBuf>,
    /// The accepted keys of the server; any if empty.
    pub pins: Vec<KeyPin>,
    /// PEM file of the client's certificate, and of those between it and its authority.
    pub client_cert: Option<PathBuf>,
    /// PEM file of the client's private key; unset: it is in `client_cert`.
    pub client_key: Option<PathBuf>,
}

/// SHA-256 of a certificate's public key: of its `SubjectPublicKeyInfo` in DER, as in RFC 7469, section 2.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyPin([u8; 32]);

impl KeyPin {
    /// Parses digests in base64, each with or without the prefix `sha256//`, separated by semicolons, commas or white
    /// space.
    ///
    /// # Errors
    ///
    /// A word is not such a digest, or there is none.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, UploadError> {
        let words = text.split(|c: char| matches!(c, ';' | ',') || c.is_whitespace());
        let pins: Vec<Self> =
            words.filter(|word| !word.is_empty()).map(Self::parse).collect::<Result<_, _>>()?;
        if pins.is_empty() { Err(UploadError::Pin(text.into())) } else { Ok(pins) }
    }

    fn parse(word: &str) -> Result<Self, UploadError> {
        let digest = STANDARD.decode(word.strip_prefix("sha256//").unwrap_or(word)).ok();
        let digest = digest.and_then(|digest| digest.try_into().ok());
        digest.map(Self).ok_or_else(|| UploadError::Pin(word.into()))
    }

    fn of(certificate: &ParsedCertificate<'_>) -> Self {
        Self(Sha256::digest(certificate.subject_public_key_info()).into())
    }
}

impl std::fmt::Display for KeyPin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sha256//{}", STANDARD.encode(self.0))
    }
}

/// Reads a PEM file of certificates.
pub(super) fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_file_iter(file).map_err(|e| e.to_string())?;
    let certificates: Vec<_> = certificates.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    if certificates.is_empty() { Err("contains no certificate in PEM form".into()) } else { Ok(certificates) }
}

/// The client's certificate and key. The files are read again for the first connection after a change, so that renewed ones
/// need no restart.
#[derive(Debug)]
pub(super) struct ClientIdentity {
    cert: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    current: Mutex<Current>,
}

/// What the files had when they could last be used.
#[derive(Debug)]
struct Current {
    versions: Versions,
    identity: Arc<CertifiedKey>,
    /// The later versions that cannot be used, of which a warning told; `Some(None)` if there are no files.
    unusable: Option<Option<Versions>>,
}

/// Those of the certificate's file and of the key's.
type Versions = [FileVersion; 2];

impl ClientIdentity {
    /// Reads the files.
    pub(super) fn open(
        provider: &Arc<CryptoProvider>,
        cert: &Path,
        key: Option<&Path>,
    ) -> Result<Self, UploadError> {
        let key = key.unwrap_or(cert);
        let versions = versions(cert, key)
            .map_err(|error| UploadError::ClientCert { path: cert.into(), reason: error.to_string() })?;
        let identity = Arc::new(read_identity(provider, cert, key)?);
        let current = Mutex::new(Current { versions, identity, unusable: None });
        Ok(Self { cert: cert.into(), key: key.into(), provider: Arc::clone(provider), current })
    }
}

impl ResolvesClientCert for ClientIdentity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let found = versions(&self.cert, &self.key).ok();
        if found != Some(current.versions) {
            match (found, read_identity(&self.provider, &self.cert, &self.key)) {
                (Some(versions), Ok(identity)) => {
                    *current = Current { versions, identity: Arc::new(identity), unusable: None };
                }
                // Files that are being replaced, or cannot be used, leave the ones before.
                (found, Err(error)) if current.unusable != Some(found) => {
                    current.unusable = Some(found);
                    glib::g_warning!(
                        "facepipe",
                        "{}: the certificate and the key from before stay in use",
                        error
                    );
                }
                _ => (),
            }
        }
        Some(Arc::clone(&current.identity))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn versions(cert: &Path, key: &Path) -> io::Result<Versions> {
    Ok([file_version(cert)?, file_version(key)?])
}

fn read_identity(provider: &CryptoProvider, cert: &Path, key: &Path) -> Result<CertifiedKey, UploadError> {
    let chain =
        read_certificates(cert).map_err(|reason| UploadError::ClientCert { path: cert.into(), reason })?;
    let of_key = |reason: String| UploadError::ClientKey { path: key.into(), reason };
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| of_key(format!("contains no private key in PEM form ({error})")))?;
    CertifiedKey::from_der(chain, private, provider).map_err(|error| match error {
        Error::InconsistentKeys(_) => of_key(format!("is not the key of the certificate {}", cert.display())),
        error => of_key(error.to_string()),
    })
}

/// Checks the backend's certificate.
#[derive(Debug)]
pub(super) struct Verifier {
    /// `None` if the key alone decides.
    authorities: Option<Arc<WebPkiServerVerifier>>,
    /// The certificates in `ca-file`. One of them may be the backend's own.
    named: Vec<CertificateDer<'static>>,
    /// The accepted keys; any if empty.
    pins: Vec<KeyPin>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    /// Trusts the system's authorities and the certificates in a PEM file; with pins and without a file, the keys alone.
    pub(super) fn new(provider: &Arc<CryptoProvider>, options: &TlsOptions) -> Result<Self, UploadError> {
        let (ca_file, pins) = (options.ca_file.as_deref(), &options.pins);
        let named = match ca_file {
            Some(file) => {
                read_certificates(file).map_err(|reason| UploadError::CaFile { path: file.into(), reason })?
            }
            None => Vec::new(),
        };
        let mut verifier = Self {
            authorities: None,
            named,
            pins: pins.clone(),
            algorithms: provider.signature_verification_algorithms,
        };
        if let (None, false) = (ca_file, pins.is_empty()) {
            return Ok(verifier);
        }
        let mut roots = RootCertStore::empty();
        for certificate in &verifier.named {
            let added = roots.add(certificate.clone());
            let invalid = |reason: Error| UploadError::CaFile {
                path: ca_file.unwrap_or(Path::new("")).into(),
                reason: reason.to_string(),
            };
            added.map_err(invalid)?;
        }
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        if roots.is_empty() {
            let reasons: Vec<String> = system.errors.iter().map(ToString::to_string).collect();
            return Err(UploadError::Certificates(reasons.join("; ")));
        }
        let authorities = WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(provider));
        let authorities = authorities.build().map_err(|e| UploadError::Certificates(e.to_string()))?;
        verifier.authorities = Some(authorities);
        Ok(verifier)
    }

    fn check_key(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        if self.pins.is_empty() {
            return Ok(());
        }
        let pin = KeyPin::of(&ParsedCertificate::try_from(certificate)?);
        if self.pins.contains(&pin) {
            return Ok(());
        }
        Err(Error::General(format!("the key of its certificate is {pin}, which pinned-sha256 does not name")))
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check_key(end_entity)?;
        let Some(authorities) = &self.authorities else { return Ok(ServerCertVerified::assertion()) };
        let error = match authorities.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        ) {
            Ok(verified) => return Ok(verified),
            Err(error) => error,
        };
        // `openssl req -x509` creates a self-signed certificate of an authority, which must not be a server's. The user has
        // named this very certificate, so it is accepted; anything else that is wrong with it counts. Dates were checked
        // before.
        let named = self.named.iter().any(|named| named.as_ref() == end_entity.as_ref());
        let error = match error {
            error if !named => error,
            error if is_authority(&error) => {
                match verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name) {
                    Ok(()) => return Ok(ServerCertVerified::assertion()),
                    Err(error) => error,
                }
            }
            error => error,
        };
        if named && has_no_names(&error) {
            return Ok(ServerCertVerified::assertion());
        }
        if is_authority(&error) {
            return Err(Error::General(
                "its certificate signs itself, and ca-file does not name it: name this certificate in ca-file, or its key \
                 in pinned-sha256"
                    .into(),
            ));
        }
        Err(error)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Returns true if a certificate was rejected because it is an authority's. The verifier checks dates before that.
fn is_authority(error: &Error) -> bool {
    // rustls passes on its verifier's error, whose type is not public.
    matches!(error, Error::InvalidCertificate(CertificateError::Other(other))
        if other.0.to_string() == "CaUsedAsEndEntity")
}

/// Returns true if a certificate was rejected because it has no `subjectAltName` at all. Names elsewhere in it don't count.
fn has_no_names(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. })
        if presented.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_parsed_with_and_without_curls_prefix() {
        let (one, two) = (KeyPin([1; 32]), KeyPin([2; 32]));
        let bare = one.to_string().replace("sha256//", "");
        for text in [one.to_string(), bare.clone(), format!(" {bare}\n")] {
            assert_eq!(KeyPin::parse_all(&text).unwrap(), [one], "{text}");
        }
        for between in [";", ",", " ", "; "] {
            assert_eq!(KeyPin::parse_all(&format!("{one}{between}{two}")).unwrap(), [one, two]);
        }
        for text in ["", ";", "sha256//", "sha1//AAAA", &bare[1..], &format!("{one};x"), &"ab".repeat(32)] {
            let error = KeyPin::parse_all(text).unwrap_err().to_string();
            assert!(error.starts_with("pinned-sha256") && error.contains("base64"), "{text}: {error}");
        }
    }
}
