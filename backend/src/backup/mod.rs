//! Backups of a whole deployment's state, and what they are restored into. A backup is a folder:
//!
//! | file | what it is |
//! |---|---|
//! | `backup.json` | [`Manifest`]: versions, schema, counts |
//! | `SHA256SUMS` | the hash of every other file, as `sha256sum --check` takes it |
//! | `database.sqlite`, `.dump` or `.sql` | the database at one moment: SQLite's file, `pg_dump`'s custom format, or SQL |
//! | `blobs/people/…`, `blobs/models/…` | what rows of that moment refer to |
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
/// Folders of blobs that rows refer to.
const REFERENCED: [&str; 2] = ["people", "models"];
/// The folder of the ledger of erasures.
const LEDGER: &str = "erasures";
/// Blobs that are copied at a time.
const MAX_CONCURRENT_COPIES: usize = 16;
/// How often the database is copied, should blobs that its rows refer to have gone meanwhile.
const ATTEMPTS: u32 = 4;

/// What a backup has.
#[derive(Debug)]
pub struct BackedUp {
    /// As it was written.
    pub manifest: Manifest,
    /// SHA-256 of `SHA256SUMS`: what tells this backup, whole and unchanged, from every other one.
    pub fingerprint: String,
    /// Blobs that rows refer to and that the store does not have.
    pub missing_blobs: usize,
}

/// Copies database and blobs into a new folder, while servers go on. The folder appears when it is whole.
///
/// Every row's blob is in it: blobs are copied before the database, and what came meanwhile after it; the ledger of
/// erasures last, so that it names whoever was erased before their blobs were copied.
///
/// # Errors
/// The folder has something in it, database or blobs cannot be read, or the engine's own tool is missing.
pub async fn back_up(config: &Config, folder: &Path) -> anyhow::Result<BackedUp> {
    let target = Target::new(folder)?;
    let options = config.database_options();
    let source = spawn_blocking(move || BackupSource::open(&options)).await??;
    let source = Arc::new(source);
    let stage = target.stage()?;
    let mut copier = Copier::new(config.open_blobs()?, stage.path().to_owned());

    let mut attempt = 1;
    let missing_blobs = loop {
        // First of all the bulk, so that little can happen between the database and the rest.
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

/// Copies the database. Returns the keys of the blobs that its rows refer to; of a database server's, also of those that
/// were there a moment before or after.
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
        files::close(&file)?;
        Ok(referred)
    })
    .await?
}

/// Copies blobs into a folder, each once: they never change.
struct Copier {
    blobs: Blobs,
    folder: PathBuf,
    sums: BTreeMap<String, Checksum>,
}

impl Copier {
    fn new(blobs: Blobs, stage: PathBuf) -> Self {
        Self { blobs, folder: stage.join(BLOBS), sums: BTreeMap::new() }
    }

    /// Copies what is below these folders and was not copied before.
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

    /// Removes copies that no row refers to: those of images that were erased while others were copied.
    fn drop_unreferenced(&mut self, referred: &BTreeSet<String>) -> anyhow::Result<()> {
        for key in self.sums.keys().filter(|key| !referred.contains(*key)) {
            fs::remove_file(self.folder.join(key))?;
        }
        self.sums.retain(|key, _| referred.contains(key));
        Ok(())
    }
}

/// Copies one blob; `None` where it has gone meanwhile.
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
