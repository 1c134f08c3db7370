//! Backups of the whole state of a deployment, and their restoration. A backup is a folder:
//!
//! | file | content |
//! |---|---|
//! | `backup.json` | [`Manifest`]: versions, schema, counts |
//! | `SHA256SUMS` | the hash of every other file, as `sha256sum --check` takes it |
//! | `database.sqlite`, `.dump` or `.sql` | a snapshot of the database: SQLite's file, `pg_dump`'s custom format, or SQL |
//! | `blobs/people/…`, `blobs/models/…` | the blobs that its rows refer to |
//! | `blobs/erasures/…` | the ledger of erasures |

mod files;
mod manifest;
mod restore;
mod tools;

pub use manifest::Manifest;
pub use restore::restore;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use bytes::Bytes;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::task::{JoinSet, spawn_blocking};

use crate::{
    config::Config,
    store::{Blobs, StoreError, sql::BackupSource},
};
use files::{Checksum, Target};

/// The folder of the blobs in a backup.
const BLOBS: &str = "blobs";
/// The folders of blobs that rows refer to.
const REFERENCED: [&str; 2] = ["people", "models"];
/// The folder of the ledger of erasures.
const LEDGER: &str = "erasures";
/// Blobs that are copied concurrently.
const MAX_CONCURRENT_COPIES: usize = 16;
/// How often the database is copied at most, while blobs that its rows refer to disappear in the meantime.
const ATTEMPTS: u32 = 4;

/// A finished backup.
#[derive(Debug)]
pub struct BackedUp {
    pub manifest: Manifest,
    /// SHA-256 of `SHA256SUMS`, which identifies this backup and its content.
    pub fingerprint: String,
    /// The number of blobs that rows refer to and that the store lacks.
    pub missing_blobs: usize,
}

/// Copies database and blobs into a new folder, while servers are running. The folder appears when it is complete.
///
/// The backup has the blob of every row: blobs are copied before the database, and new ones again after it. The ledger of
/// erasures is copied last, so that it covers every erasure before.
///
/// # Errors
/// The folder is not empty, database or blobs cannot be read, or the engine's own tool is missing.
pub async fn back_up(config: &Config, folder: &Path) -> anyhow::Result<BackedUp> {
    let target = Target::new(folder)?;
    let options = config.database_options();
    let source = spawn_blocking(move || BackupSource::open(&options)).await??;
    let source = Arc::new(source);
    let stage = target.stage()?;
    let mut copier = Copier::new(config.storage.open_blobs()?, stage.path().to_owned());

    let mut attempt = 1;
    let missing_blobs = loop {
        // Most blobs are copied first, so that the copies of the database and of the rest are close in time.
        copier.copy(&REFERENCED).await?;
        let referred = copy_database(config, &source, stage.path()).await?;
        copier.copy(&REFERENCED).await?;
        let missing_blobs = referred.iter().filter(|key| !copier.sums.contains_key(*key)).count();
        if missing_blobs == 0 || attempt == ATTEMPTS {
            copier.drop_unreferenced(&referred)?;
            break missing_blobs;
        }
        attempt += 1;
    };
    copier.copy(&[LEDGER]).await?;

    let path = stage.path().to_owned();
    let (manifest, fingerprint) = spawn_blocking(move || {
        let database = tools::file_name(source.engine());
        let mut sums: BTreeMap<String, Checksum> =
            copier.sums.into_iter().map(|(key, sum)| (format!("{BLOBS}/{key}"), sum)).collect();
        sums.insert(database.to_owned(), Checksum::of_file(&path.join(database))?);
        let below =
            |folder: &str| sums.keys().filter(|name| name.starts_with(&format!("{BLOBS}/{folder}/"))).count();
        let manifest = Manifest {
            format: manifest::FORMAT,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            created_at: OffsetDateTime::now_utc().replace_nanosecond(0)?.format(&Rfc3339)?,
            engine: source.engine().to_owned(),
            schema: source.schema.clone(),
            database: database.to_owned(),
            images: below("people"),
            models: below("models"),
            erasures: below(LEDGER),
            bytes: sums.values().map(|sum| sum.bytes).sum(),
        };
        let fingerprint = manifest::write(&path, &manifest, sums)?;
        anyhow::Ok((manifest, fingerprint))
    })
    .await??;
    stage.publish()?;
    Ok(BackedUp { manifest, fingerprint, missing_blobs })
}

/// Copies the database. Returns the keys of the blobs that its rows refer to; of a database server, also those just before
/// and after the copy.
async fn copy_database(
    config: &Config,
    source: &Arc<BackupSource>,
    stage: &Path,
) -> anyhow::Result<BTreeSet<String>> {
    let (source, file) = (Arc::clone(source), stage.join(tools::file_name(source.engine())));
    let url = config.database_url();
    spawn_blocking(move || {
        if file.exists() {
            fs::remove_file(&file)?;
        }
        let referred = if source.is_embedded() {
            source.copy_embedded(&file)?
        } else {
            let mut referred = source.blob_keys()?;
            tools::dump(&url, &file)?;
            referred.append(&mut source.blob_keys()?);
            referred
        };
        files::make_private(&file)?;
        Ok(referred)
    })
    .await?
}

/// Copies blobs into a folder, each once, since they never change.
struct Copier {
    blobs: Blobs,
    folder: PathBuf,
    sums: BTreeMap<String, Checksum>,
}

impl Copier {
    fn new(blobs: Blobs, stage: PathBuf) -> Self {
        Self { blobs, folder: stage.join(BLOBS), sums: BTreeMap::new() }
    }

    /// Copies the blobs below these folders that have not been copied yet.
    async fn copy(&mut self, folders: &[&str]) -> anyhow::Result<()> {
        for folder in folders {
            let mut keys = self.blobs.keys(folder).await?;
            keys.retain(|key| !self.sums.contains_key(key));
            let mut waiting = keys.into_iter();
            let mut copying = JoinSet::new();
            loop {
                while copying.len() < MAX_CONCURRENT_COPIES
                    && let Some(key) = waiting.next()
                {
                    copying.spawn(copy_blob(self.blobs.clone(), self.folder.clone(), key));
                }
                let Some(copied) = copying.join_next().await else { break };
                if let Some((key, sum)) = copied?? {
                    self.sums.insert(key, sum);
                }
            }
        }
        Ok(())
    }

    /// Removes copies that no row refers to, of images that were erased in the meantime.
    fn drop_unreferenced(&mut self, referred: &BTreeSet<String>) -> anyhow::Result<()> {
        for key in self.sums.keys().filter(|key| !referred.contains(*key)) {
            fs::remove_file(self.folder.join(key))?;
        }
        self.sums.retain(|key, _| referred.contains(key));
        Ok(())
    }
}

/// Copies one blob; `None` where it was deleted in the meantime.
async fn copy_blob(blobs: Blobs, folder: PathBuf, key: String) -> anyhow::Result<Option<(String, Checksum)>> {
    let path = files::below(&folder, &key)?;
    let bytes: Bytes = match blobs.get(&key).await {
        Ok(bytes) => bytes,
        Err(StoreError::Blob(object_store::Error::NotFound { .. })) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read the blob {key}")),
    };
    spawn_blocking(move || {
        let sum = Checksum::of(&bytes);
        files::write(&path, &bytes)?;
        Ok(Some((key, sum)))
    })
    .await?
}
