//! `models/manifest.toml`: the files that can be downloaded, their sources and hashes.

mod parse;
mod raw;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::{Deserialize, Serialize};

#[derive(Debug)]
pub struct Manifest {
    /// Entries in the order of the manifest.
    pub entries: Vec<Entry>,
}

/// A file, or a collection of files that belong together, under one name.
#[derive(Debug)]
pub struct Entry {
    /// Unique, except for the runtime with one entry per architecture.
    pub name: String,
    pub kind: Kind,
    /// The licence, as its owner names it.
    pub licence: String,
    pub purpose: String,
    /// Whether it is fetched only by name or with `--all`.
    pub optional: bool,
    /// Entries that it can replace: it is fetched if one of them is unavailable, by name, or with its set.
    pub fallback_for: Vec<String>,
    /// Name or kind of entries, fetched anyway, that replace it if all of them are present.
    pub stood_in_by: Option<String>,
    /// Architecture it is built for, if any.
    pub arch: Option<String>,
    /// Its origin, where it cannot be downloaded.
    pub origin: Option<String>,
    /// At least one.
    pub files: Vec<Asset>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A face detector of the edge.
    Detector,
    /// One stage of the backend's face detector.
    Mtcnn,
    /// A network that turns faces into embeddings.
    Embedder,
    /// The library that runs the edge's detectors.
    Runtime,
    /// Pictures or videos for the demo and the tests.
    Collection,
}

/// One file.
#[derive(Debug)]
pub struct Asset {
    /// Path relative to the models folder, or to the runtime folder for a runtime.
    pub path: PathBuf,
    /// Path relative to a mirror folder, if it can be mirrored.
    pub mirror: Option<PathBuf>,
    /// Expected size and hash.
    pub expected: Expected,
    /// Sources, tried in order.
    pub sources: Vec<Source>,
}

/// Expected size and hash of a file.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Lower-case hexadecimal; none if the publisher states none.
    pub sha256: Option<String>,
    /// Size in bytes.
    pub bytes: Option<u64>,
}

/// A source of a file.
#[derive(Debug, Clone)]
pub enum Source {
    /// The file itself, over HTTP.
    Url { url: String },
    /// A member of a package in a registry.
    Member {
        package: Package,
        /// Path inside the package.
        member: String,
    },
}

/// A package at one version.
#[derive(Debug, Clone)]
pub struct Package {
    /// Registry and package format.
    pub registry: Registry,
    /// Specifier for the registry's client: `name==version`, `name@version`.
    pub spec: String,
    pub name: String,
    pub version: String,
    /// Pinned hash; none for wheels, which differ between architectures and interpreters.
    pub pin: Option<Pin>,
    /// Size in bytes, if known.
    pub bytes: Option<u64>,
}

/// A registry and package format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Registry {
    /// Python wheel, downloaded by pip.
    Wheel,
    /// Python source package; nothing in it is built.
    Sdist,
    /// npm package.
    Npm,
}

/// Pinned hash of a package, in the format of its registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pin {
    /// PyPI's: lower-case hexadecimal.
    Sha256(String),
    /// npm's: the bytes.
    Sha512(Vec<u8>),
}

impl Pin {
    /// Formats a SHA-512 as npm does.
    pub fn integrity(sha512: &[u8]) -> String {
        format!("sha512-{}", BASE64_STANDARD.encode(sha512))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url { url } => write!(f, "{url}"),
            Self::Member { package, member } => write!(f, "{member} in the {package}"),
        }
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(hash) => write!(f, "sha256 {hash}"),
            Self::Sha512(hash) => write!(f, "integrity {}", Self::integrity(hash)),
        }
    }
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.registry {
            Registry::Wheel => "wheel",
            Registry::Sdist => "source package",
            Registry::Npm => "npm package",
        };
        write!(f, "{kind} {}", self.spec)
    }
}

impl Manifest {
    /// Parses the manifest built into this program.
    pub fn embedded() -> Result<Self> {
        Self::parse(include_str!("../../../../models/manifest.toml")).context("the embedded manifest")
    }

    /// Reads a manifest file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("manifest {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("manifest {}", path.display()))
    }

    /// Returns the entries for this architecture that match any of `names` (entry names, file names or kinds); all if
    /// `names` is empty.
    ///
    /// # Errors
    /// A name matches nothing; the message lists the known names.
    pub fn select(&self, names: &[String]) -> Result<Vec<&Entry>> {
        let here: Vec<&Entry> = self.entries.iter().filter(|e| e.fits_this_machine()).collect();
        for name in names {
            if !here.iter().any(|entry| entry.matches(name)) {
                let mut known: Vec<&str> = here.iter().map(|e| e.name.as_str()).collect();
                known.dedup();
                bail!("no model or collection is called {name:?}; there are {}", known.join(", "));
            }
        }
        Ok(here.into_iter().filter(|e| names.is_empty() || names.iter().any(|n| e.matches(n))).collect())
    }

    /// Returns the entries for this architecture that match a name or kind.
    pub fn matching(&self, name: &str) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |e| e.fits_this_machine() && e.matches(name))
    }

    /// Returns the fallbacks of an entry for this architecture.
    pub fn fallbacks(&self, entry: &Entry) -> impl Iterator<Item = &Entry> {
        let name = entry.name.clone();
        self.entries.iter().filter(move |e| e.fits_this_machine() && e.fallback_for.contains(&name))
    }
}

impl Entry {
    /// Returns whether it is required: a single file that is neither optional nor a fallback.
    pub fn required(&self) -> bool {
        self.kind != Kind::Collection && !self.optional && !self.is_fallback()
    }

    /// Returns whether it is a fallback.
    pub fn is_fallback(&self) -> bool {
        !self.fallback_for.is_empty()
    }

    /// Returns whether all of its files are in package registries.
    pub fn is_in_registries(&self) -> bool {
        self.files.iter().all(|file| file.sources.iter().any(Source::is_in_registry))
    }

    /// Returns whether npm has any of its files.
    pub fn is_in_npm(&self) -> bool {
        let is_npm = |source: &Source| matches!(source, Source::Member { package, .. } if package.registry == Registry::Npm);
        self.files.iter().any(|file| file.sources.iter().any(is_npm))
    }

    /// Describes the features that cannot run without it.
    pub fn consequence(&self) -> String {
        let name = &self.name;
        match self.kind {
            Kind::Detector => format!("facedetect with model={name}"),
            Kind::Mtcnn => "the backend: it needs all three stages of MTCNN".into(),
            Kind::Embedder => format!("the backend with the embedder {name}"),
            Kind::Runtime => "facedetect, unless the system has an ONNX Runtime".into(),
            Kind::Collection => format!("demo and tests that want {name} ({})", self.purpose),
        }
    }

    fn fits_this_machine(&self) -> bool {
        self.arch.as_deref().is_none_or(|arch| arch == std::env::consts::ARCH)
    }

    fn matches(&self, name: &str) -> bool {
        self.is_named(name) || self.kind.name() == name
    }

    /// Returns whether `name` is its name or, for a single file, the file's.
    pub fn is_named(&self, name: &str) -> bool {
        let file = || self.kind != Kind::Collection && self.files.iter().any(|f| f.path == Path::new(name));
        self.name == name || file()
    }
}

impl Source {
    /// Returns whether it is in a package registry.
    pub fn is_in_registry(&self) -> bool {
        matches!(self, Self::Member { .. })
    }
}

impl Kind {
    /// Returns the name used in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Detector => "detector",
            Self::Mtcnn => "mtcnn",
            Self::Embedder => "embedder",
            Self::Runtime => "runtime",
            Self::Collection => "collection",
        }
    }
}
