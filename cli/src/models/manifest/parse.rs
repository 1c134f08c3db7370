//! Reads the manifest and checks it: paths, hashes, packages and references between entries.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{Asset, Entry, Expected, Kind, Manifest, Package, Registry, Source, raw};

impl Manifest {
    /// Parses and checks a manifest.
    ///
    /// # Errors
    /// It is not TOML of this version, or an entry is invalid (the message names it).
    pub(super) fn parse(text: &str) -> Result<Self> {
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
}

impl Entry {
    fn from_file(raw: raw::File, pins: &Pins) -> Result<Self> {
        let sources = raw.sources.into_iter().map(|source| pins.source(source));
        let asset = Asset {
            path: relative_path(&raw.file)?,
            mirror: raw.mirror.as_deref().map(relative_path).transpose()?,
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

/// The packages with a pinned hash.
struct Pins(Vec<raw::Package>);

impl Pins {
    fn new(packages: Vec<raw::Package>) -> Result<Self> {
        for package in &packages {
            // Parsed here too, so that a wrong pin is found at once.
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

/// Returns whether it is a package name, and not a path, a repository address or an option of the client.
fn is_package_name(name: &str) -> bool {
    let name = name.strip_prefix('@').map_or(name, |scoped| scoped);
    let mut parts = name.split('/');
    let plain = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    parts.clone().count() <= 2 && parts.all(plain)
}

/// Returns whether it is a single version, not a range.
fn is_version(version: &str) -> bool {
    version.starts_with(|c: char| c.is_ascii_digit())
        && version.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+'))
}

/// Accepts relative paths without `..`, so that nothing is written outside the folders.
fn relative_path(path: &str) -> Result<PathBuf> {
    let path = Path::new(path);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    ensure!(plain && path.file_name().is_some(), "path {path:?} is not a relative path without ..");
    Ok(path.into())
}

pub(super) fn expected(sha256: Option<String>, bytes: Option<u64>) -> Result<Expected> {
    if let Some(hash) = &sha256 {
        let hex = hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        ensure!(hash.len() == 64 && hex, "sha256 {hash:?} is not 64 lower-case hexadecimal digits");
    }
    Ok(Expected { sha256, bytes })
}

#[cfg(test)]
mod tests {
    use super::{super::Pin, *};

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
    fn an_unknown_name_is_reported_with_the_known_ones() {
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
    fn packages_need_one_version_and_a_pinned_hash() {
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
        // Repositories, folders and options as npm understands them, and version ranges.
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
    fn an_invalid_hash_is_refused() {
        for hash in ["", "12", &"A".repeat(64), &"g".repeat(64)] {
            assert!(expected(Some(hash.to_owned()), None).is_err(), "{hash}");
        }
    }
}
