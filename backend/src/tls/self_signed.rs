//! A certificate that signs itself, for a first try without an authority.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData as _,
};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

/// Validity of a certificate, days: the maximum that browsers accept of any other one.
const VALIDITY_DAYS: i64 = 397;
/// Maximum length of a common name (RFC 5280, `ub-common-name`).
const MAX_COMMON_NAME: usize = 64;

/// The result of [`self_signed`].
#[derive(Debug)]
pub struct SelfSigned {
    /// The file of the certificate.
    pub certificate: PathBuf,
    /// The file of its key, which only its owner can read.
    pub key: PathBuf,
    /// When the certificate expires.
    pub expires_at: OffsetDateTime,
    /// SHA-256 of its `SubjectPublicKeyInfo` in base64, for clients that pin keys (RFC 7469, section 2.4).
    pub key_sha256: String,
}

/// Makes a key and a certificate for these host names and addresses, `certificate.pem` and `key.pem` in `folder`.
///
/// # Errors
/// A name is none of a host, one of the files exists, or a file cannot be written.
pub fn self_signed(hosts: &[String], folder: &Path) -> anyhow::Result<SelfSigned> {
    let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
    for file in [&certificate, &key] {
        anyhow::ensure!(
            !file.exists(),
            "{} exists: remove it, or choose another folder with --out",
            file.display()
        );
    }
    let now = OffsetDateTime::now_utc();
    let expires_at = now + time::Duration::days(VALIDITY_DAYS);
    let mut params = CertificateParams::new(hosts)
        .with_context(|| format!("--host {}: not all are names of hosts", hosts.join(" ")))?;
    params.not_before = now - time::Duration::days(1);
    params.not_after = expires_at;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.distinguished_name = DistinguishedName::new();
    let name = hosts.iter().find(|host| host.len() <= MAX_COMMON_NAME);
    params.distinguished_name.push(DnType::CommonName, name.map_or("facepipe", String::as_str));
    let pair = KeyPair::generate().context("cannot make a key")?;
    let signed = params.self_signed(&pair).context("cannot make a certificate")?;

    fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    write_new(&key, 0o600, &pair.serialize_pem())?;
    write_new(&certificate, 0o644, &signed.pem())?;
    let key_sha256 = STANDARD.encode(Sha256::digest(pair.subject_public_key_info()));
    Ok(SelfSigned { certificate, key, expires_at, key_sha256 })
}

fn write_new(file: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let write = || -> io::Result<()> {
        let mut created = OpenOptions::new().write(true).create_new(true).mode(mode).open(file)?;
        // Whatever the umask: clients need the certificate.
        created.set_permissions(fs::Permissions::from_mode(mode))?;
        created.write_all(text.as_bytes())?;
        created.sync_all()
    };
    write().with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_its_owners_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("tls");
        let made = self_signed(&["camera-hub.example".into(), "10.0.0.7".into()], &inside).unwrap();
        let mode = |file: &Path| fs::metadata(file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&made.key), 0o600);
        let key = fs::read(&made.key).unwrap();
        let told = self_signed(&["localhost".into()], &inside).unwrap_err().to_string();
        assert!(told.contains("certificate.pem exists"), "{told}");
        assert_eq!(fs::read(&made.key).unwrap(), key);
        let wrong = self_signed(&["ümlaut.example".into()], &folder.path().join("other")).unwrap_err();
        assert!(format!("{wrong:#}").contains("--host ümlaut.example"), "{wrong:#}");
    }
}
