//! The bytes of enrolled images and trained models, and the ledger of erasures, in an object store: a folder, S3 or Azure.
//!
//! Keys have ids, never names: `people/<person>/<image>`, `models/<id>` and `erasures/<digest>`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::{
    ObjectStore, ObjectStoreExt, PutMode, PutOptions, local::LocalFileSystem, path::Path as Key,
};
#[cfg(feature = "object-stores")]
use object_store::{
    ObjectStoreScheme, aws::AmazonS3Builder, azure::MicrosoftAzureBuilder, prefix::PrefixStore,
};
use time::OffsetDateTime;
use url::Url;

use super::StoreError;
#[cfg(feature = "object-stores")]
use crate::tls;
use crate::{config_errors::config_error, optional};

/// The blob store; clones share it.
#[derive(Debug, Clone)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
}

/// A blob in a listing.
pub struct Blob {
    pub key: String,
    /// When it was written, to the second.
    pub modified: OffsetDateTime,
}

impl Blobs {
    /// Opens a folder, which it creates where it is missing.
    ///
    /// # Errors
    /// The folder cannot be created or opened.
    pub fn open_folder(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let store = LocalFileSystem::new_with_prefix(folder)
            .with_context(|| format!("cannot open the blobs in {}", folder.display()))?
            .with_fsync(true)
            .with_automatic_cleanup(true);
        Ok(Self { store: Arc::new(store) })
    }

    /// Opens the store at a URL: `file:///folder`, `s3://bucket/prefix` or `az://container/prefix`. Credentials, regions and
    /// endpoints of the latter two come from the environment variables of their own tools (`AWS_…`,
    /// `AZURE_STORAGE_…`).
    ///
    /// # Errors
    /// The URL has another scheme, or the environment lacks a variable that the store needs.
    pub fn open_url(url: &str) -> anyhow::Result<Self> {
        let url = parse(url)?;
        if let Some(folder) = folder_of(&url)? {
            return Self::open_folder(&folder);
        }
        optional::OBJECT_STORES.needed_by("blobs_url", &format!("{}://…", url.scheme()))?;
        Self::open_remote(&url).map_err(config_error)
    }

    #[cfg(not(feature = "object-stores"))]
    fn open_remote(_: &Url) -> anyhow::Result<Self> {
        anyhow::bail!("no client of object stores is built in")
    }

    #[cfg(feature = "object-stores")]
    fn open_remote(url: &Url) -> anyhow::Result<Self> {
        tls::use_ring();
        let (scheme, prefix) = ObjectStoreScheme::parse(url).context("blobs_url")?;
        let store: Arc<dyn ObjectStore> = match scheme {
            ObjectStoreScheme::AmazonS3 => {
                Arc::new(AmazonS3Builder::from_env().with_url(url.as_str()).build().context("blobs_url")?)
            }
            ObjectStoreScheme::MicrosoftAzure => Arc::new(
                MicrosoftAzureBuilder::from_env().with_url(url.as_str()).build().context("blobs_url")?,
            ),
            _ => anyhow::bail!(
                "blobs_url begins with {}://, it must be s3://…, az://… or file:///…",
                url.scheme()
            ),
        };
        Ok(Self { store: Arc::new(PrefixStore::new(store, prefix)) })
    }

    /// Returns the folder of a `file://` URL; `None` for other URLs.
    ///
    /// # Errors
    /// The text is no URL, or the folder is on another machine.
    pub fn folder_of(url: &str) -> anyhow::Result<Option<PathBuf>> {
        folder_of(&parse(url)?)
    }

    /// Returns the key of an enrolled image.
    pub fn image_key(person: i64, image: &str) -> String {
        format!("people/{person}/{image}")
    }

    /// Returns the key of a picture of an unknown face. The key lies beside those of people, since an image takes it
    /// over when the face is named.
    pub fn unknown_picture_key(id: &str) -> String {
        format!("people/unknown/{id}")
    }

    /// Returns the key of a trained model.
    pub fn model_key(id: &str) -> String {
        format!("models/{id}")
    }

    /// Stores a blob atomically and durably. Blobs never change, so the key must be new.
    ///
    /// # Errors
    /// The key exists, or the store fails (for example, a full disk).
    pub async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        // The store writes to a temporary name, syncs and links: a crash leaves no partial blob under the key.
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.store.put_opts(&Key::from(key), bytes.into(), options).await?;
        Ok(())
    }

    /// Reads a blob.
    ///
    /// # Errors
    /// The blob does not exist, or the store fails.
    pub async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        Ok(self.store.get(&Key::from(key)).await?.bytes().await?)
    }

    /// Deletes a blob, if it exists.
    ///
    /// # Errors
    /// The store fails.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        match self.store.delete(&Key::from(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Lists all images and models. Foreign objects in the store are ignored.
    ///
    /// # Errors
    /// The store fails.
    pub async fn list(&self) -> Result<Vec<Blob>, StoreError> {
        let mut blobs = Vec::new();
        for prefix in ["people", "models"] {
            let mut listed = self.store.list(Some(&Key::from(prefix)));
            while let Some(object) = listed.try_next().await? {
                let seconds = object.last_modified.timestamp();
                let modified = OffsetDateTime::from_unix_timestamp(seconds)
                    .map_err(|_| StoreError::Damaged(format!("a blob written at {seconds} s")))?;
                blobs.push(Blob { key: object.location.to_string(), modified });
            }
        }
        Ok(blobs)
    }

    /// Lists the keys of all objects below a folder.
    ///
    /// # Errors
    /// The store fails.
    pub async fn keys(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let listed = self.store.list(Some(&Key::from(folder)));
        Ok(listed.map_ok(|object| object.location.to_string()).try_collect().await?)
    }

    /// Lists the names of all objects in a folder.
    ///
    /// # Errors
    /// The store fails.
    pub async fn names(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let mut names = Vec::new();
        let mut listed = self.store.list(Some(&Key::from(folder)));
        while let Some(object) = listed.try_next().await? {
            names.extend(object.location.filename().map(str::to_owned));
        }
        Ok(names)
    }
}

fn parse(url: &str) -> anyhow::Result<Url> {
    Url::parse(url).context("blobs_url is no URL, expected s3://…, az://… or file:///…").map_err(config_error)
}

fn folder_of(url: &Url) -> anyhow::Result<Option<PathBuf>> {
    if url.scheme() != "file" {
        return Ok(None);
    }
    let folder = url.to_file_path();
    let wrong = |()| config_error(anyhow::anyhow!("blobs_url names no folder of this machine"));
    Ok(Some(folder.map_err(wrong)?))
}
