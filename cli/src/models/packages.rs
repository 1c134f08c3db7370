//! Extracts files from registry packages (Python wheels and source packages, npm packages). Each package is downloaded once
//! into a temporary folder. Nothing in a package is run.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::{
    archive,
    download::Downloader,
    manifest::{Package, Registry},
    npm::Npm,
    pypi::Pypi,
};

/// Downloads and caches packages.
#[derive(Default)]
pub struct Packages {
    folder: Option<TempDir>,
    /// Path of each package, or why it is unavailable.
    downloaded: HashMap<Key, Result<PathBuf, String>>,
    pypi: Pypi,
    npm: Npm,
}

/// Registry, package, and architecture of a wheel.
type Key = (Registry, String, Option<String>);

impl Packages {
    /// Writes a member of a package to `target`. `arch` is the architecture of a platform wheel.
    ///
    /// # Errors
    /// The package is unavailable, differs from the pinned one, or lacks the member.
    pub fn extract(
        &mut self,
        package: &Package,
        member: &str,
        arch: Option<&str>,
        downloader: &mut Downloader,
        target: &Path,
    ) -> Result<(), String> {
        let arch = arch.filter(|_| package.registry == Registry::Wheel);
        let key = (package.registry, package.spec.clone(), arch.map(str::to_owned));
        let known = match self.downloaded.get(&key) {
            Some(known) => known.clone(),
            None => {
                let result = self.download(package, arch, downloader);
                self.downloaded.insert(key, result.clone());
                result
            }
        };
        let from = match package.registry {
            Registry::Wheel => archive::from_zip,
            Registry::Sdist | Registry::Npm => archive::from_tar_gz,
        };
        from(&known?, member, target).map_err(|problem| format!("{package}: {problem}"))
    }

    /// Returns whether a package is missing for lack of the npm client.
    pub fn lacks_npm_client(&self) -> bool {
        self.npm.is_absent()
    }

    fn download(
        &mut self,
        package: &Package,
        arch: Option<&str>,
        downloader: &mut Downloader,
    ) -> Result<PathBuf, String> {
        let unwritable = |e: std::io::Error| format!("{package}: cannot make a temporary folder: {e}");
        let folder = match &mut self.folder {
            Some(folder) => folder,
            none => none.insert(tempfile::tempdir().map_err(unwritable)?),
        };
        // One folder per package.
        let folder = folder.path().join(self.downloaded.len().to_string());
        fs::create_dir(&folder).map_err(unwritable)?;
        match package.registry {
            Registry::Wheel => self.pypi.wheel(package, arch, downloader, &folder),
            Registry::Sdist => self.pypi.sdist(package, downloader, &folder),
            Registry::Npm => self.npm.pack(package, downloader, &folder),
        }
    }
}

/// Returns the only file in a folder.
///
/// # Errors
/// There is none, or the folder cannot be read.
pub fn only_file(folder: &Path) -> Result<PathBuf, String> {
    let entries = fs::read_dir(folder).map_err(|e| e.to_string())?;
    let mut files = entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| path.is_file());
    files.next().ok_or_else(|| "nothing was downloaded".into())
}
