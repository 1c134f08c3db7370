//! `models/manifest.toml`: what can be downloaded, from where, and how it is known to be right.

use std::{
    fmt, fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::{Deserialize, Serialize};

/// All downloads.
#[derive(Debug)]
pub struct Manifest {
    /// In the order of the manifest.
    pub entries: Vec<Entry>,
}

/// A file, or a collection of files that belong together, under one name.
#[derive(Debug)]
pub struct Entry {
    /// Unique, except for the runtime, which has one entry per processor architecture.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The licence, as its owner names it.
    pub licence: String,
    /// What it is for, in words.
    pub purpose: String,
    /// Fetched only by name or with `--all`.
    pub optional: bool,
    /// The entries for which it stands in: it is fetched where one of them cannot be had, by name, or with its set.
    pub fallback_for: Vec<String>,
    /// What does instead of it and is fetched anyway: a name or a kind, of which all must be there.
    pub stood_in_by: Option<String>,
    /// The processor architecture it is built for, if for one.
    pub arch: Option<String>,
    /// Where it is from, where nothing can be downloaded.
    pub origin: Option<String>,
    /// At least one.
    pub files: Vec<Asset>,
}

/// What an entry is.
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
    /// Where it lies under the models folder, or under the runtime folder for a runtime.
    pub path: PathBuf,
    /// Where it lies in a mirror folder, if it may.
    pub mirror: Option<PathBuf>,
    /// How to tell the right file from others.
    pub expected: Expected,
    /// Tried in order.
    pub sources: Vec<Source>,
}

/// What is known of a file beforehand.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Lower-case hexadecimal; none where the publisher states none.
    pub sha256: Option<String>,
    /// Size in bytes.
    pub bytes: Option<u64>,
}

/// Where a file can be downloaded.
#[derive(Debug, Clone)]
pub enum Source {
    /// The file itself, over HTTP.
    Url {
        /// Its address.
        url: String,
    },
    /// A member of a package in a registry.
    Member {
        /// The package.
        package: Package,
        /// Path inside the package.
        member: String,
    },
}

/// A package of one version.
#[derive(Debug, Clone)]
pub struct Package {
    /// Where it is published, and in which form.
    pub registry: Registry,
    /// As the registry's client is asked for it: `name==version`, `name@version`.
    pub spec: String,
    /// Its name alone.
    pub name: String,
    /// Its version alone.
    pub version: String,
    /// How the right package is told from others; none for wheels, which differ between processors and interpreters.
    pub pin: Option<Pin>,
    /// Size in bytes, where it is known.
    pub bytes: Option<u64>,
}

/// A registry, and a form of packages in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Registry {
    /// A Python wheel, which pip downloads.
    Wheel,
    /// A Python source package, of which nothing is built.
    Sdist,
    /// A package of npm.
    Npm,
}

/// The hash of a package, in the form in which its registry states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pin {
    /// PyPI's: lower-case hexadecimal.
    Sha256(String),
    /// npm's: the bytes.
    Sha512(Vec<u8>),
}

impl Pin {
    /// A SHA-512 as npm writes it.
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
    /// The manifest that this program was built with.
    pub fn embedded() -> Result<Self> {
        Self::parse(include_str!("../../../models/manifest.toml")).context("the embedded manifest")
    }

    /// Another manifest.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("manifest {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("manifest {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let raw: raw::Manifest = toml::from_str(text)?;
        ensure!(raw.version == 1, "version is {}, this program reads version 1", raw.version);
        let pins = Pins::new(raw.package)?;
        let files = raw.file.into_iter().map(|file| Entry::from_file(file, &pins));
        let collections = raw.collection.into_iter().map(|c| Entry::from_collection(c, &pins));
        let entries: Vec<Entry> = files.chain(collections).collect::<Result<_>>()?;
        for entry in &entries {
            for name in &entry.fallback_for {
                let is_known = entries.iter().any(|other| other.name == *name);
                ensure!(is_known, "{}: fallback_for {name:?}: no entry is called that", entry.name);
            }
            if let Some(name) = &entry.stood_in_by {
                let is_known = entries.iter().any(|other| other.matches(name));
                ensure!(is_known, "{}: stood_in_by {name:?}: no entry is called that", entry.name);
            }
        }
        Ok(Self { entries })
    }

    /// The entries for this machine's processor that any of `names` means (all for no names): an entry's name, its
    /// file, or a kind.
    ///
    /// # Errors
    /// A name that means nothing, with those that do.
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

    /// The entries that a name or kind means, on this machine's processor.
    pub fn matching(&self, name: &str) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |e| e.fits_this_machine() && e.matches(name))
    }

    /// The fallbacks of an entry, on this machine's processor.
    pub fn fallbacks(&self, entry: &Entry) -> impl Iterator<Item = &Entry> {
        let name = entry.name.clone();
        self.entries.iter().filter(move |e| e.fits_this_machine() && e.fallback_for.contains(&name))
    }
}

impl Entry {
    /// Whether the main job needs it: every single file that is neither optional nor a fallback.
    pub fn required(&self) -> bool {
        self.kind != Kind::Collection && !self.optional && !self.is_fallback()
    }

    /// Whether it stands in for others.
    pub fn is_fallback(&self) -> bool {
        !self.fallback_for.is_empty()
    }

    /// Whether package registries alone have all of it.
    pub fn is_in_registries(&self) -> bool {
        self.files.iter().all(|file| file.sources.iter().any(Source::is_in_registry))
    }

    /// Whether npm has some of it.
    pub fn is_in_npm(&self) -> bool {
        let is_npm = |source: &Source| matches!(source, Source::Member { package, .. } if package.registry == Registry::Npm);
        self.files.iter().any(|file| file.sources.iter().any(is_npm))
    }

    /// What cannot run without it.
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

    /// Whether `name` is its name or, for a single file, the file's.
    pub fn is_named(&self, name: &str) -> bool {
        let file = || self.kind != Kind::Collection && self.files.iter().any(|f| f.path == Path::new(name));
        self.name == name || file()
    }

    fn from_file(raw: raw::File, pins: &Pins) -> Result<Self> {
        let sources = raw.sources.into_iter().map(|source| pins.source(source));
        let asset = Asset {
            path: relative_path(&raw.file)?,
            mirror: raw.mirror.as_deref().map(inside).transpose()?,
            expected: expected(raw.sha256, raw.bytes).with_context(|| raw.name.clone())?,
            sources: sources.collect::<Result<_>>().with_context(|| raw.name.clone())?,
        };
        ensure!(raw.kind != Kind::Collection, "{}: a single file cannot be of kind collection", raw.name);
        Ok(Self {
            name: raw.name,
            kind: raw.kind,
            licence: raw.licence,
            purpose: raw.purpose,
            optional: raw.optional,
            fallback_for: raw.fallback_for,
            stood_in_by: raw.stood_in_by,
            arch: raw.arch,
            origin: None,
            files: vec![asset],
        })
    }

    fn from_collection(raw: raw::Collection, pins: &Pins) -> Result<Self> {
        let folder = relative_path(&raw.path)?;
        let asset = |member: raw::Member| {
            let file = relative_path(&member.file)?;
            let addresses = raw.base_url.iter().map(|base| {
                let tail = member.url_path.as_deref().unwrap_or(&member.file);
                Source::Url { url: format!("{base}{tail}") }
            });
            let members = member.sources.into_iter().map(|source| pins.source(source));
            let sources = addresses.map(Ok).chain(members).collect::<Result<_>>();
            Ok(Asset {
                path: Path::new("assets").join(&folder).join(&file),
                mirror: Some(folder.join(&file)),
                sources: sources.with_context(|| member.file.clone())?,
                expected: expected(member.sha256, member.bytes).with_context(|| member.file.clone())?,
            })
        };
        let files = raw.files.into_iter().map(asset).collect::<Result<Vec<_>>>().context(raw.name.clone())?;
        ensure!(!files.is_empty(), "{}: no files", raw.name);
        Ok(Self {
            name: raw.name,
            kind: Kind::Collection,
            licence: raw.licence,
            purpose: raw.purpose,
            optional: raw.optional,
            fallback_for: raw.fallback_for,
            stood_in_by: None,
            arch: None,
            origin: raw.origin,
            files,
        })
    }
}

impl Source {
    /// Whether a package registry has it.
    pub fn is_in_registry(&self) -> bool {
        matches!(self, Self::Member { .. })
    }
}

/// The packages whose hash is pinned.
struct Pins(Vec<raw::Package>);

impl Pins {
    fn new(packages: Vec<raw::Package>) -> Result<Self> {
        for package in &packages {
            // As it is used later, so that a wrong pin is found at once.
            package.pin().with_context(|| package.spec().to_owned())?;
        }
        Ok(Self(packages))
    }

    fn source(&self, raw: raw::Source) -> Result<Source> {
        let (registry, spec, separator, member) = match raw {
            raw::Source::Url { url } => return Ok(Source::Url { url }),
            raw::Source::Pypi { pypi, member, sdist: true } => (Registry::Sdist, pypi, "==", member),
            raw::Source::Pypi { pypi, member, sdist: false } => (Registry::Wheel, pypi, "==", member),
            raw::Source::Npm { npm, member } => (Registry::Npm, npm, "@", member),
        };
        let (name, version) = spec
            .rsplit_once(separator)
            .filter(|(name, version)| is_package_name(name) && is_version(version))
            .with_context(|| format!("package {spec:?} is not <name>{separator}<version>"))?;
        let pinned = self.0.iter().find(|package| package.is(registry, &spec));
        ensure!(
            pinned.is_some() || registry == Registry::Wheel,
            "package {spec:?} has no [[package]] with its hash"
        );
        let pin = pinned.map(raw::Package::pin).transpose()?;
        let (name, version) = (name.to_owned(), version.to_owned());
        let package = Package { registry, name, version, pin, bytes: pinned.and_then(|p| p.bytes), spec };
        Ok(Source::Member { package, member })
    }
}

/// A name that a registry can have: no path, no address of a repository, no option of its client.
fn is_package_name(name: &str) -> bool {
    let name = name.strip_prefix('@').map_or(name, |scoped| scoped);
    let mut parts = name.split('/');
    let plain = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    parts.clone().count() <= 2 && parts.all(plain)
}

/// One version, no range of them.
fn is_version(version: &str) -> bool {
    version.starts_with(|c: char| c.is_ascii_digit())
        && version.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+'))
}

impl Kind {
    /// As the manifest writes it.
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

/// A relative path without `..`, so that no manifest makes anything land outside the folders.
fn relative_path(path: &str) -> Result<PathBuf> {
    let path = Path::new(path);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    ensure!(plain && path.file_name().is_some(), "path {path:?} is not a relative path without ..");
    Ok(path.into())
}

fn expected(sha256: Option<String>, bytes: Option<u64>) -> Result<Expected> {
    if let Some(hash) = &sha256 {
        let hex = hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        ensure!(hash.len() == 64 && hex, "sha256 {hash:?} is not 64 lower-case hexadecimal digits");
    }
    Ok(Expected { sha256, bytes })
}

/// The manifest as written.
mod raw {
    use anyhow::{Context as _, Result, bail, ensure};
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    use serde::Deserialize;

    use super::{Kind, Pin, Registry, expected};

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Manifest {
        pub(super) version: u32,
        #[serde(default)]
        pub(super) package: Vec<Package>,
        #[serde(default)]
        pub(super) file: Vec<File>,
        #[serde(default)]
        pub(super) collection: Vec<Collection>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct File {
        pub(super) name: String,
        pub(super) file: String,
        pub(super) kind: Kind,
        pub(super) arch: Option<String>,
        pub(super) sha256: Option<String>,
        pub(super) bytes: Option<u64>,
        pub(super) licence: String,
        pub(super) purpose: String,
        pub(super) mirror: Option<String>,
        #[serde(default)]
        pub(super) optional: bool,
        #[serde(default)]
        pub(super) fallback_for: Vec<String>,
        pub(super) stood_in_by: Option<String>,
        #[serde(default)]
        pub(super) sources: Vec<Source>,
    }

    #[derive(Deserialize)]
    #[serde(untagged, deny_unknown_fields)]
    pub(super) enum Source {
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

    /// The hash of a package: of npm by `integrity`, of a Python source package by `sha256`.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Package {
        npm: Option<String>,
        pypi: Option<String>,
        integrity: Option<String>,
        sha256: Option<String>,
        pub(super) bytes: Option<u64>,
    }

    impl Package {
        pub(super) fn spec(&self) -> &str {
            self.npm.as_deref().or(self.pypi.as_deref()).unwrap_or("package without a name")
        }

        pub(super) fn is(&self, registry: Registry, spec: &str) -> bool {
            match registry {
                Registry::Npm => self.npm.as_deref() == Some(spec),
                Registry::Sdist => self.pypi.as_deref() == Some(spec),
                Registry::Wheel => false,
            }
        }

        pub(super) fn pin(&self) -> Result<Pin> {
            match (&self.npm, &self.pypi, &self.integrity, &self.sha256) {
                (Some(_), None, Some(integrity), None) => {
                    let hash = integrity
                        .strip_prefix("sha512-")
                        .and_then(|hash| BASE64_STANDARD.decode(hash).ok())
                        .filter(|hash| hash.len() == 64);
                    hash.map(Pin::Sha512).with_context(|| {
                        format!("integrity {integrity:?} is not sha512-<64 bytes in base64>")
                    })
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
    pub(super) struct Collection {
        pub(super) name: String,
        pub(super) path: String,
        pub(super) licence: String,
        pub(super) purpose: String,
        pub(super) base_url: Option<String>,
        pub(super) origin: Option<String>,
        #[serde(default)]
        pub(super) optional: bool,
        #[serde(default)]
        pub(super) fallback_for: Vec<String>,
        pub(super) files: Vec<Member>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Member {
        pub(super) file: String,
        pub(super) sha256: Option<String>,
        pub(super) bytes: Option<u64>,
        /// Where it lies under `base_url`, where not under its own name.
        pub(super) url_path: Option<String>,
        /// Where else it is, after `base_url`.
        #[serde(default)]
        pub(super) sources: Vec<Source>,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_manifest_is_sound() {
        let manifest = Manifest::embedded().unwrap();
        for name in
            ["rfb-320", "mtcnn", "mobilefacenet", "pnet.pt", "lfw10", "inception-resnet-v1", "dlib-resnet"]
        {
            assert!(!manifest.select(&[name.to_owned()]).unwrap().is_empty(), "{name}");
        }
        let lfw10 = manifest.select(&["lfw10".to_owned()]).unwrap();
        assert_eq!(lfw10[0].files.len(), 100);
        let required: Vec<&str> =
            manifest.select(&[]).unwrap().iter().filter(|e| e.required()).map(|e| e.name.as_str()).collect();
        assert!(required.contains(&"mobilefacenet") && !required.contains(&"inception-resnet-v1"));
        let mobilefacenet = manifest.select(&["mobilefacenet".to_owned()]).unwrap();
        let fallbacks: Vec<&str> =
            manifest.fallbacks(mobilefacenet[0]).map(|entry| entry.name.as_str()).collect();
        assert_eq!(fallbacks, ["dlib-resnet"]);
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let error = Manifest::embedded().unwrap().select(&["rfb-3200".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("\"rfb-3200\"") && error.contains("rfb-320,"), "{error}");
    }

    #[test]
    fn paths_that_leave_the_folders_are_refused() {
        for path in ["../x", "/etc/passwd", "a/../../x", "", "a/./../b"] {
            assert!(relative_path(path).is_err(), "{path}");
        }
        assert_eq!(relative_path("a/b.jpg").unwrap(), Path::new("a/b.jpg"));
    }

    #[test]
    fn packages_are_of_one_version_with_a_pinned_hash() {
        let file = |source: &str| {
            format!(
                "version = 1\n[[file]]\nname = \"a\"\nfile = \"a\"\nkind = \"detector\"\nlicence = \"MIT\"\n\
                 purpose = \"a test\"\nsources = [{source}]\n"
            )
        };
        let pin = |package: &str| format!("{}[[package]]\n{package}\n", file(""));
        let npm = "npm = \"@a/b@1.0.0\"";
        let sdist = "pypi = \"a==1.0\", sdist = true";
        let (hash, integrity) = ("0".repeat(64), Pin::integrity(&[0; 64]));
        for (source, package) in [
            (npm, format!("{npm}\nintegrity = \"{integrity}\"")),
            (sdist, format!("pypi = \"a==1.0\"\nsha256 = \"{hash}\"")),
        ] {
            let text = file(&format!("{{ {source}, member = \"m\" }}"));
            let error = format!("{:#}", Manifest::parse(&text).unwrap_err());
            assert!(error.contains("has no [[package]] with its hash"), "{error}");
            Manifest::parse(&format!("{text}[[package]]\n{package}\n")).unwrap();
        }
        // What npm would take for a repository, a folder or an option, and versions that may be any.
        for spec in ["github:a/b", "./a@1.0.0", "--a@1.0.0", "a@latest", "a@^1", "a", "@a/b/c@1.0.0", "a@"] {
            let text = file(&format!("{{ npm = \"{spec}\", member = \"m\" }}"));
            let error = format!("{:#}", Manifest::parse(&text).unwrap_err());
            assert!(error.contains("is not <name>@<version>"), "{spec}: {error}");
        }
        for package in [
            format!("{npm}\nintegrity = \"sha1-aaaa\""),
            format!("{npm}\nsha256 = \"{hash}\""),
            "pypi = \"a==1.0\"\nsha256 = \"12\"".to_owned(),
        ] {
            assert!(Manifest::parse(&pin(&package)).is_err(), "{package}");
        }
    }

    #[test]
    fn a_fallback_names_what_it_stands_in_for() {
        let manifest = Manifest::embedded().unwrap();
        for entry in manifest.entries.iter().filter(|entry| entry.is_fallback()) {
            assert!(!entry.required() && entry.is_in_registries(), "{}", entry.name);
        }
    }

    #[test]
    fn a_hash_that_is_none_is_refused() {
        for hash in ["", "12", &"A".repeat(64), &"g".repeat(64)] {
            assert!(expected(Some(hash.to_owned()), None).is_err(), "{hash}");
        }
    }
}
