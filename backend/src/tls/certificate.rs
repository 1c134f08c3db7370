//! The server's certificate and key, read again when their files change: a connection is accepted with those of that
//! moment, and keeps them.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustls::{
    InconsistentKeys, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
    server::WebPkiClientVerifier,
};
use time::OffsetDateTime;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use yasna::{ASN1Result, BERReader, Tag, tags::TAG_UTCTIME};

use crate::watched_file::{self, FileVersion};

/// How long before a certificate's expiry the log warns of it.
const EXPIRY_WARNING: time::Duration = time::Duration::days(30);
/// The interval between those warnings.
const WARNING_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);
/// Maximum time for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The first byte of a TLS connection: a record of the type `handshake` (RFC 8446, section 5.1).
const HANDSHAKE_RECORD: u8 = 22;
/// The protocols that clients can choose from, the preferred one first (RFC 7301).
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// The answer to a request in clear.
const HTTPS_EXPECTED: &str = "{\"error\":{\"code\":\"https_expected\",\"message\":\"this port speaks https: use https:// in \
                              the address\",\"details\":null}}\n";
/// How long a client that did not speak TLS may take to read the answer.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// The files of the settings `tls_certificate`, `tls_key` and `tls_client_ca`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, then those between it and its authority (PEM).
    pub certificate: PathBuf,
    /// The certificate's private key (PEM: PKCS #8, PKCS #1 or SEC 1).
    pub key: PathBuf,
    /// The authorities of clients' certificates (PEM).
    pub client_ca: Option<PathBuf>,
}

/// Why files cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} {} {reason}", path.display())]
pub struct TlsError {
    setting: &'static str,
    path: PathBuf,
    reason: String,
}

/// The content of the files.
struct Identity {
    config: Arc<ServerConfig>,
    expires_at: OffsetDateTime,
}

/// TLS of a listener.
pub struct ServerTls {
    files: TlsFiles,
    current: RwLock<Arc<Identity>>,
    failed_handshakes: AtomicU64,
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read, is none of its kind, or the key is another certificate's.
    pub fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let current = Identity::read(&files)?;
        warn_of_open_key(&files.key);
        warn_of_expiry(current.expires_at);
        let current = RwLock::new(Arc::new(current));
        Ok(Self { files, current, failed_handshakes: AtomicU64::new(0) })
    }

    /// Returns when the certificate expires.
    pub fn expires_at(&self) -> OffsetDateTime {
        self.current().expires_at
    }

    /// Returns how many handshakes have failed since the start.
    pub fn failed_handshakes(&self) -> u64 {
        self.failed_handshakes.load(Ordering::Relaxed)
    }

    /// Reads the files again whenever one has changed, until `stop` is set. Files that cannot be used change nothing.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        watched_file::watch(move |last| self.check_files(last), stop).await;
    }

    /// Accepts a connection. Returns nothing if the handshake fails; a request in clear gets an answer that mentions
    /// HTTPS.
    pub async fn accept(&self, stream: TcpStream, patience: Duration) -> Option<TlsStream<TcpStream>> {
        // The records of a response are written one by one.
        let _ = stream.set_nodelay(true);
        let handshake = async {
            let mut first = [0];
            if stream.peek(&mut first).await? == 1 && first != [HANDSHAKE_RECORD] {
                refuse_clear_text(stream, first).await;
                return Err(std::io::Error::other("no TLS"));
            }
            TlsAcceptor::from(Arc::clone(&self.current().config)).accept(stream).await
        };
        let outcome = tokio::time::timeout(patience.min(HANDSHAKE_TIMEOUT), handshake).await;
        let error = match outcome {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it took too long".into(),
        };
        self.failed_handshakes.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(error, "a TLS handshake failed");
        None
    }

    fn current(&self) -> Arc<Identity> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn check_files(&self, mut last: LastCheck) -> LastCheck {
        // The versions are determined before the files are read: a write in the meantime changes one again.
        let versions = self.files.versions();
        if last.problem.is_some() || last.versions.as_ref() != Some(&versions) {
            // The first check reads the opened files once more, which changes nothing. Files that cannot be used are
            // read again until they can: the obstacle may vanish without a change of their versions.
            match Identity::read(&self.files) {
                Ok(identity) => {
                    let changed = last.versions.is_some();
                    let expires_at = identity.expires_at;
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(identity);
                    if changed {
                        // The line is logged afterwards: its reader may rely on the new certificate.
                        tracing::info!(%expires_at, "read the changed certificate");
                        warn_of_open_key(&self.files.key);
                        last.warned_at = None;
                    }
                    last.problem = None;
                }
                Err(error) => {
                    if last.problem.as_ref() != Some(&error) {
                        tracing::warn!(%error, "the changed certificate is not used: the one before it stays");
                    }
                    last.problem = Some(error);
                }
            }
            last.versions = Some(versions);
        }
        let warned_at = *last.warned_at.get_or_insert_with(Instant::now);
        if warned_at.elapsed() >= WARNING_INTERVAL {
            warn_of_expiry(self.expires_at());
            last.warned_at = Some(Instant::now());
        }
        last
    }
}

/// The result of the last check of the files.
#[derive(Default)]
struct LastCheck {
    versions: Option<Vec<Option<FileVersion>>>,
    /// The problem that was found, logged once, not at every check.
    problem: Option<TlsError>,
    warned_at: Option<Instant>,
}

impl TlsFiles {
    /// Returns the version of each file; `None` of one that cannot be examined.
    fn versions(&self) -> Vec<Option<FileVersion>> {
        let files = [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()];
        files.into_iter().flatten().map(|file| FileVersion::of(file).ok()).collect()
    }
}

impl Identity {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let of_certificate = |reason| TlsError::new("tls_certificate", &files.certificate, reason);
        let of_key = |reason| TlsError::new("tls_key", &files.key, reason);
        let chain = read_certificates(&files.certificate).map_err(of_certificate)?;
        let expires_at = chain.first().and_then(|certificate| not_after(certificate));
        let expires_at =
            expires_at.ok_or_else(|| of_certificate("is no certificate of X.509: it has no end".into()))?;
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| {
            of_key(match error {
                pem::Error::NoItemsFound => "contains no private key in PEM form".into(),
                pem::Error::Io(error) => format!("cannot be read: {error}"),
                error => format!("is no PEM file: {error:?}"),
            })
        })?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| of_certificate(error.to_string()))?;
        let builder = match &files.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let of_file = |reason| TlsError::new("tls_client_ca", file, reason);
                let mut roots = RootCertStore::empty();
                for certificate in read_certificates(file).map_err(of_file)? {
                    roots.add(certificate).map_err(|error| of_file(error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                let verifier = verifier.allow_unauthenticated().build();
                builder.with_client_cert_verifier(verifier.map_err(|error| of_file(error.to_string()))?)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                of_key(format!("is not the key of the certificate {}", files.certificate.display()))
            }
            error => of_key(format!("cannot be used: {error}")),
        })?;
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
        Ok(Self { config: Arc::new(config), expires_at })
    }
}

impl TlsError {
    fn new(setting: &'static str, path: &Path, reason: String) -> Self {
        Self { setting, path: path.to_owned(), reason }
    }
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let unusable = |error| match error {
        pem::Error::Io(error) => format!("cannot be read: {error}"),
        error => format!("is no PEM file: {error:?}"),
    };
    let certificates = CertificateDer::pem_file_iter(file).map_err(unusable)?;
    let certificates: Vec<_> = certificates.collect::<Result<_, _>>().map_err(unusable)?;
    if certificates.is_empty() { Err("contains no certificate in PEM form".into()) } else { Ok(certificates) }
}

/// Reads when a certificate expires: `notAfter` (RFC 5280, section 4.1.2.5).
fn not_after(certificate: &[u8]) -> Option<OffsetDateTime> {
    let read = yasna::parse_der(certificate, |certificate| {
        certificate.read_sequence(|certificate| {
            let expires_at = certificate.next().read_sequence(|fields| {
                // Version, serial number, signature algorithm, issuer.
                fields.read_optional(|version| {
                    version.read_tagged(Tag::context(0), |reader| reader.read_der())
                })?;
                for _ in 0..3 {
                    fields.next().read_der()?;
                }
                let expires_at = fields.next().read_sequence(|validity| {
                    validity.next().read_der()?;
                    read_time(validity.next())
                })?;
                while fields.read_optional(|field| field.read_der())?.is_some() {}
                Ok(expires_at)
            })?;
            // Signature algorithm and signature.
            certificate.next().read_der()?;
            certificate.next().read_der()?;
            Ok(expires_at)
        })
    });
    read.ok()
}

fn read_time(time: BERReader<'_, '_>) -> ASN1Result<OffsetDateTime> {
    if time.lookahead_tag()? == TAG_UTCTIME {
        Ok(*time.read_utctime()?.datetime())
    } else {
        Ok(*time.read_generalized_time()?.datetime())
    }
}

fn warn_of_open_key(key: &Path) {
    if watched_file::is_open_to_others(key) {
        tracing::warn!(
            file = %key.display(),
            "tls_key can be used by every user of this machine: `chmod o= FILE` keeps it to its owner and group"
        );
    }
}

fn warn_of_expiry(expires_at: OffsetDateTime) {
    let left = expires_at - OffsetDateTime::now_utc();
    if left <= time::Duration::ZERO {
        tracing::error!(%expires_at, "the certificate has expired: clients refuse this server");
    } else if left < EXPIRY_WARNING {
        tracing::warn!(%expires_at, days = left.whole_days(), "the certificate expires soon");
    }
}

/// Answers a client that speaks HTTP without TLS, and closes the connection.
async fn refuse_clear_text(mut stream: TcpStream, first: [u8; 1]) {
    // Only methods begin with a capital letter; anything else gets no answer.
    if !first[0].is_ascii_uppercase() {
        return;
    }
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: \
         close\r\n\r\n{HTTPS_EXPECTED}",
        HTTPS_EXPECTED.len()
    );
    let answering = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // Bytes that are not read would make the system reject the connection, and the client lose the answer.
        let mut rest = [0; 4096];
        while stream.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, answering).await;
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;
    use crate::tls::self_signed;

    fn files(folder: &Path) -> TlsFiles {
        let made = self_signed(&["localhost".into()], folder).unwrap();
        TlsFiles { certificate: made.certificate, key: made.key, client_ca: None }
    }

    #[test]
    fn the_end_of_a_certificate_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let tls = ServerTls::open(files(folder.path())).unwrap();
        let left = tls.expires_at() - OffsetDateTime::now_utc();
        assert!((395..=397).contains(&left.whole_days()), "{left}");
        // From 2050 on, the time has another form.
        let mut params = rcgen::CertificateParams::new(["localhost".into()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2061, 2, 3);
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        assert_eq!(not_after(certificate.der()), Some(rcgen::date_time_ymd(2061, 2, 3)));
        assert_eq!(not_after(b"0\x03\x02\x01\x07"), None);
    }

    #[test]
    fn files_that_cannot_be_used_are_named_with_the_reason() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (good, foreign) = (files(one.path()), files(other.path()));
        let told = |change: &dyn Fn(&mut TlsFiles)| {
            let mut files = good.clone();
            change(&mut files);
            ServerTls::open(files).err().map(|error| error.to_string()).unwrap()
        };
        let missing = told(&|files| files.certificate = "/none/such.pem".into());
        assert!(missing.starts_with("tls_certificate /none/such.pem cannot be read"), "{missing}");
        let swapped = told(&|files| files.certificate.clone_from(&files.key));
        assert!(swapped.contains("contains no certificate"), "{swapped}");
        let swapped = told(&|files| files.key.clone_from(&files.certificate));
        assert!(swapped.starts_with("tls_key") && swapped.contains("no private key"), "{swapped}");
        let mismatch = told(&|files| files.key.clone_from(&foreign.key));
        assert!(mismatch.contains("is not the key of the certificate"), "{mismatch}");
        let no_ca = told(&|files| files.client_ca = Some(files.key.clone()));
        assert!(no_ca.starts_with("tls_client_ca"), "{no_ca}");
    }

    #[test]
    fn changed_files_are_used_once_both_are_right() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (files, new) = (files(folder.path()), files(other.path()));
        let tls = ServerTls::open(files.clone()).unwrap();
        let mut last = tls.check_files(LastCheck::default());
        let first = tls.current();
        let served = |tls: &ServerTls| Arc::as_ptr(&tls.current().config);
        fs::copy(&new.certificate, &files.certificate).unwrap();
        last = tls.check_files(last);
        assert!(last.problem.is_some());
        assert_eq!(served(&tls), Arc::as_ptr(&first.config));
        let rename = folder.path().join("new");
        fs::copy(&new.key, &rename).unwrap();
        fs::rename(&rename, &files.key).unwrap();
        last = tls.check_files(last);
        assert!(last.problem.is_none());
        let second = tls.current();
        assert_ne!(served(&tls), Arc::as_ptr(&first.config));
        fs::remove_file(&files.key).unwrap();
        last = tls.check_files(last);
        assert!(last.problem.is_some());
        assert_eq!(served(&tls), Arc::as_ptr(&second.config));
    }

    #[test]
    fn a_key_that_others_can_read_is_recognised() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        assert!(!watched_file::is_open_to_others(&files.key));
        for (mode, open) in [(0o640, false), (0o604, true), (0o644, true)] {
            fs::set_permissions(&files.key, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(watched_file::is_open_to_others(&files.key), open, "{mode:o}");
        }
    }
}
