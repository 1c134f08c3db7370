//! The bytes of enrolled pictures and trained models, in an object store: a folder.
//!
//! Keys carry ids, never names: `people/<person>/<image>` and `models/<id>`.

use std::{fs, path::Path, sync::Arc};

use bytes::Bytes;
use object_store::{
    ObjectStore, ObjectStoreExt, PutMode, PutOptions, local::LocalFileSystem, path::Path as Key,
};

use super::StoreError;

/// The blob store; clones share it.
#[derive(Debug, Clone)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
}

impl Blobs {
    /// Opens the folder, and makes it where it is missing.
    ///
    /// # Errors
    /// The folder cannot be made or opened.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let store = LocalFileSystem::new_with_prefix(folder)?.with_fsync(true).with_automatic_cleanup(true);
        Ok(Self { store: Arc::new(store) })
    }

    /// The key of an enrolled picture.
    pub fn image_key(person: i64, image: &str) -> String {
        format!("people/{person}/{image}")
    }

    /// The key of a trained model.
    pub fn model_key(id: &str) -> String {
        format!("models/{id}")
    }

    /// Stores a blob: whole and on the disk, or not at all. Blobs never change, so the key must be new.
    ///
    /// # Errors
    /// The key is there already, or the store fails (a full disk).
    pub async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        // The store writes to a temporary name, syncs and links: a crash leaves no half of a blob under its key.
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.store.put_opts(&Key::from(key), bytes.into(), options).await?;
        Ok(())
    }

    /// Reads a blob.
    ///
    /// # Errors
    /// It is not there, or the store fails.
    pub async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        Ok(self.store.get(&Key::from(key)).await?.bytes().await?)
    }

    /// Deletes a blob; one that is gone already is fine.
    ///
    /// # Errors
    /// The store fails.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        match self.store.delete(&Key::from(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The keys of all enrolled pictures.
    ///
    /// # Errors
    /// The store fails.
    pub async fn image_keys(&self) -> Result<Vec<String>, StoreError> {
        let mut keys = Vec::new();
        let mut folders = vec![Key::from("people")];
        while let Some(folder) = folders.pop() {
            let listed = self.store.list_with_delimiter(Some(&folder)).await?;
            folders.extend(listed.common_prefixes);
            keys.extend(listed.objects.into_iter().map(|object| object.location.to_string()));
        }
        Ok(keys)
    }
}
