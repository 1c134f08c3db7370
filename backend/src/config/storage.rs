//! The data folder and the blob store.

use std::{path::PathBuf, time::Duration};

use reqwest::Url;

use crate::{
    disk::Folder,
    store::{Blobs, sweep::SweepOptions},
};

settings! {
    /// The data folder and the blob store.
    StorageConfig, StorageFlags {
        /// Folder of the embedded database and of images and trained models
        data_dir: PathBuf = "data".into(), "FACEPIPE_DATA_DIR", "DIR";
        /// Where images and trained models are kept: s3://bucket/prefix, az://container/prefix or file:///folder
        blobs_url: String, "FACEPIPE_BLOBS_URL", "URL", unset "blobs in the data folder";
        /// Seconds between two sweeps for blobs without a row
        sweep_interval_s: u64 = 3600, "FACEPIPE_SWEEP_INTERVAL_S", "SECONDS", in 1..=31_536_000;
        /// Minimum age of a blob that a sweep removes, seconds
        sweep_min_age_s: u64 = 3600, "FACEPIPE_SWEEP_MIN_AGE_S", "SECONDS";
    }
}

impl StorageConfig {
    /// Opens the store of images and models.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open_blobs(&self) -> anyhow::Result<Blobs> {
        match &self.blobs_url {
            Some(url) => Blobs::open_url(url),
            None => Blobs::open_folder(&self.blobs_dir()),
        }
    }

    /// Returns the folder of the blobs; `None` for S3 and Azure.
    ///
    /// # Errors
    /// `blobs_url` is no URL, or names a folder of another machine.
    pub fn blobs_folder(&self) -> anyhow::Result<Option<PathBuf>> {
        match &self.blobs_url {
            Some(url) => Blobs::folder_of(url),
            None => Ok(Some(self.blobs_dir())),
        }
    }

    /// Returns the folder of the blobs without `blobs_url`.
    pub fn blobs_dir(&self) -> PathBuf {
        self.data_dir.join("blobs")
    }

    /// Returns the folders that this process writes to: the data folder, and that of the blobs if it lies elsewhere.
    pub(crate) fn folders(&self) -> Vec<Folder> {
        let mut folders = vec![Folder { name: "data", path: self.data_dir.clone() }];
        let blobs = self.blobs_url.as_deref().and_then(|url| Url::parse(url).ok());
        let blobs = blobs.filter(|url| url.scheme() == "file").and_then(|url| url.to_file_path().ok());
        if let Some(path) = blobs.filter(|path| !path.starts_with(&self.data_dir)) {
            folders.push(Folder { name: "blobs", path });
        }
        folders
    }

    /// Returns when blobs without a row are removed.
    pub(crate) fn sweep(&self) -> SweepOptions {
        SweepOptions {
            interval: Duration::from_secs(self.sweep_interval_s),
            min_age: Duration::from_secs(self.sweep_min_age_s),
        }
    }
}
