//! Restores a backup into an empty target: a new data folder, an empty database, a store without blobs. Erasures since
//! the backup are reapplied before the files get their final names.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::{
    BLOBS, LEDGER, Manifest, REFERENCED,
    files::{self, Owner},
    manifest, tools,
};
use crate::{
    config::Config,
    store::{
        Blobs, Database, ServerLock, StoreError,
        ledger::{self, ReappliedErasures},
        sql::{self, DatabaseOptions, Lease},
        sweep,
    },
};

/// Rows of pictures that are deleted in one transaction.
const PICTURES: i64 = 1000;

/// How long the restore waits for the database to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// A finished restore.
#[derive(Debug)]
pub struct Restored {
    /// The manifest of the backup.
    pub manifest: Manifest,
    /// Erasures since the backup that were reapplied.
    pub erased: ReappliedErasures,
    /// Whether the active model knows an erased person, so that the next start trains a new one.
    pub retrained: bool,
    /// The number of blobs that rows refer to and that the backup lacks.
    pub missing_blobs: usize,
}

/// Restores a backup into the database and the blob store of a configuration. `ledger` is a folder with further entries of
/// the ledger of erasures: a newer copy of `erasures/`.
///
/// # Errors
/// The backup is damaged, of another engine, or newer than this program, or the target is not empty. A failed restore
/// leaves nothing, except in a database server, S3 and Azure, which the message says.
pub async fn restore(config: &Config, backup: &Path, ledger: Option<&Path>) -> anyhow::Result<Restored> {
    let (folder, options) = (backup.to_owned(), config.database_options());
    let manifest = {
        let options = options.clone();
        let further = ledger.map(Path::to_owned);
        spawn_blocking(move || {
            anyhow::ensure!(
                further.as_deref().is_none_or(Path::is_dir),
                "there is no folder {}",
                further.unwrap_or_default().display()
            );
            let manifest = manifest::read_verified(&folder)?;
            ensure_compatible(&manifest, &options)?;
            Ok(manifest)
        })
        .await??
    };
    let mut place = RestoreTarget::prepare(config, &options).await?;
    let outcome = place.fill(config, options, backup, ledger, &manifest).await;
    let (erased, retrained, missing_blobs) = match outcome {
        Ok(settled) => settled,
        Err(error) => {
            place.clear();
            return Err(match place.blobs {
                Some(_) => error,
                None => {
                    error.context("the blob store has parts of the backup now: empty it before another try")
                }
            });
        }
    };
    Ok(Restored { manifest, erased, retrained, missing_blobs })
}

/// Checks that a backup can be restored into the target.
fn ensure_compatible(manifest: &Manifest, options: &DatabaseOptions) -> anyhow::Result<()> {
    let known = sql::known_schema(options)?;
    let engine = sql::engine_of(options)?;
    anyhow::ensure!(
        manifest.engine == engine,
        "the backup is of a {} database, and database_url is of {engine}: it can be restored into its own kind only",
        manifest.engine
    );
    if let Some(unknown) = manifest.schema.iter().find(|version| !known.contains(version)) {
        anyhow::bail!(
            "the backup's schema is newer than facepipe-backend {} knows (migration {unknown}): restore it with version \
             {}, which wrote it, or a later one",
            env!("CARGO_PKG_VERSION"),
            manifest.program
        );
    }
    if let Some(file) = options.sqlite_file()? {
        anyhow::ensure!(
            !file.exists(),
            "{} is there already: a backup is restored into a new folder only (another --data-dir, or move the old one \
             away). Nothing was changed",
            file.display()
        );
    }
    anyhow::ensure!(
        sql::is_empty(options)?,
        "the database has tables already: a backup is restored into an empty database only. Nothing was changed"
    );
    Ok(())
}

struct RestoreTarget {
    data_dir: PathBuf,
    /// The owner of the data folder, or of its nearest parent that exists.
    owner: Owner,
    /// The file of an embedded database.
    database: Option<PathBuf>,
    /// The folder of the blobs, where they are in one.
    blobs: Option<PathBuf>,
    /// Files and folders to remove if the restore fails.
    made: Vec<PathBuf>,
    _lock: Option<ServerLock>,
}

impl RestoreTarget {
    async fn prepare(config: &Config, options: &DatabaseOptions) -> anyhow::Result<Self> {
        let data_dir = std::path::absolute(&config.storage.data_dir)?;
        let database = options.sqlite_file()?.map(std::path::absolute).transpose()?;
        let blobs = config.storage.blobs_folder()?.map(std::path::absolute).transpose()?;
        let refused = |what: &Path| {
            anyhow::anyhow!(
                "{} is not empty: a backup is restored into a new folder only (another --data-dir, or move the old one \
                 away). Nothing was changed",
                what.display()
            )
        };
        if let Some(database) = &database {
            // Allowed are the entry of a new file system and unused locks.
            let mut names: Vec<OsString> = vec!["lost+found".into()];
            for lock in ServerLock::files(database, &data_dir) {
                names.extend(lock.file_name().map(OsString::from));
            }
            // An empty folder for the blobs is allowed, too.
            let empty = blobs.as_deref().map_or(Ok(true), files::is_empty_or_missing)?;
            names.extend(blobs.iter().filter(|_| empty).filter_map(|b| b.file_name()).map(OsString::from));
            if !files::has_only(&data_dir, &names)? {
                return Err(refused(&data_dir));
            }
        }
        match &blobs {
            Some(folder) => {
                if !files::is_empty_or_missing(folder)? {
                    return Err(refused(folder));
                }
            }
            None => {
                let store = config.storage.open_blobs()?;
                for folder in REFERENCED {
                    anyhow::ensure!(
                        store.keys(folder).await?.is_empty(),
                        "the blob store has something in {folder}/: a backup is restored into an empty store, bucket or \
                         prefix (setting blobs_url). Nothing was changed"
                    );
                }
            }
        }
        let owner = Owner::of(data_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")))?;
        let mut made = Vec::new();
        for folder in [Some(data_dir.as_path()), database.as_deref().and_then(Path::parent)] {
            let missing = folder.filter(|folder| !folder.exists());
            // If the restore fails, the folder is removed with the parents that are missing now.
            if let Some(first) =
                missing.and_then(|f| f.ancestors().take_while(|above| !above.exists()).last())
            {
                made.push(first.to_owned());
            }
            if let Some(folder) = missing {
                files::make_folders(folder)?;
            }
        }
        let lock = database.as_deref().map(|file| ServerLock::take(file, &data_dir)).transpose();
        let mut place = Self { data_dir, owner, database, blobs, made, _lock: None };
        match lock {
            Ok(lock) => place._lock = lock,
            Err(error) => {
                place.clear();
                return Err(error);
            }
        }
        Ok(place)
    }

    async fn fill(
        &mut self,
        config: &Config,
        options: DatabaseOptions,
        backup: &Path,
        ledger: Option<&Path>,
        manifest: &Manifest,
    ) -> anyhow::Result<(ReappliedErasures, bool, usize)> {
        let staged_blobs = self.blobs.as_deref().map(staging_path);
        let blobs = self.fill_blobs(config, staged_blobs.as_deref(), backup, ledger).await?;
        let dumped = backup.join(&manifest.database);
        let staged_database = self.database.as_deref().map(staging_path);
        let mut options = DatabaseOptions { migrate_at_start: true, ..options };
        if let Some(staged) = &staged_database {
            self.made.push(staged.clone());
            options.url = format!("sqlite://{}", staged.display());
        }
        let (url, to) = (options.url.clone(), staged_database.clone());
        spawn_blocking(move || match to {
            Some(to) => files::copy(&dumped, &to),
            None => tools::fill(&url, &dumped),
        })
        .await??;

        let embedded = staged_database.is_some();
        let settled = finish_restore(config, options, &blobs).await;
        let settled = if embedded {
            settled?
        } else {
            settled.context(
                "the database server's database is restored, and has to be emptied before another try",
            )?
        };
        let set_owner = |path: &Path| files::set_owner(path, self.owner);
        for (staged, place) in [(staged_blobs, &self.blobs), (staged_database, &self.database)] {
            let (Some(staged), Some(place)) = (staged, place) else { continue };
            set_owner(&staged)?;
            if place.is_dir() {
                // The folder is empty, as checked before.
                fs::remove_dir(place).with_context(|| format!("cannot replace {}", place.display()))?;
            }
            fs::rename(&staged, place)
                .with_context(|| format!("cannot give {} its name", place.display()))?;
            self.made.push(place.clone());
            files::sync_folder(place.parent().unwrap_or(Path::new(".")))?;
        }
        for made in &self.made {
            // The parents of the data folder stay private.
            if made.exists() {
                set_owner(made)?;
            }
        }
        // Fails on a volume of another owner, where the content is private anyway.
        let _ = files::make_folder_private(&self.data_dir);
        if let Some(database) = &self.database {
            for lock in ServerLock::files(database, &self.data_dir) {
                set_owner(&lock)?;
            }
        }
        Ok(settled)
    }

    /// Copies the blobs into the store; into a folder, under a temporary name. Returns the store.
    async fn fill_blobs(
        &mut self,
        config: &Config,
        staged: Option<&Path>,
        backup: &Path,
        ledger: Option<&Path>,
    ) -> anyhow::Result<Blobs> {
        let store = match staged {
            Some(folder) => {
                files::make_folders(folder.parent().unwrap_or(Path::new(".")))?;
                files::make_folder(folder)?;
                self.made.push(folder.to_owned());
                Blobs::open_folder(folder)?
            }
            None => config.storage.open_blobs()?,
        };
        let from = backup.join(BLOBS);
        for folder in [REFERENCED.as_slice(), &[LEDGER]].concat() {
            copy_into(&store, staged, &from.join(folder), folder).await?;
        }
        if let Some(ledger) = ledger {
            copy_into(&store, staged, ledger, LEDGER).await?;
        }
        Ok(store)
    }

    /// Removes the files and folders that a failed restore has created.
    fn clear(&mut self) {
        for path in self.made.drain(..).rev() {
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            for more in ["-wal", "-shm", "-journal"] {
                let mut name = path.clone().into_os_string();
                name.push(more);
                let _ = fs::remove_file(name);
            }
        }
    }
}

/// Returns the temporary name of a path.
fn staging_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".restoring-{}", std::process::id()));
    path.with_file_name(name)
}

/// Copies the files below `from` into the store's `folder`; existing blobs stay.
async fn copy_into(store: &Blobs, staged: Option<&Path>, from: &Path, folder: &str) -> anyhow::Result<()> {
    if !from.exists() {
        return Ok(());
    }
    let from = from.to_owned();
    let found = {
        let from = from.clone();
        spawn_blocking(move || files::all_below(&from)).await??
    };
    for file in found {
        let key = format!("{folder}/{}", file.to_str().context("a blob's name is no Unicode")?);
        let source = from.join(&file);
        if let Some(staged) = staged {
            let to = files::below(staged, &key)?;
            spawn_blocking(move || if to.exists() { Ok(()) } else { files::copy(&source, &to) }).await??;
            continue;
        }
        let read = tokio::fs::read(&source).await;
        let bytes = read.with_context(|| format!("cannot read {}", source.display()))?;
        match store.put(&key, Bytes::from(bytes)).await {
            Ok(()) | Err(StoreError::Blob(object_store::Error::AlreadyExists { .. })) => (),
            Err(error) => return Err(error).with_context(|| format!("cannot store the blob {key}")),
        }
    }
    Ok(())
}

/// Migrates the schema, releases all leases, reapplies the erasures of the ledger, and removes unreferenced blobs.
async fn finish_restore(
    config: &Config,
    options: DatabaseOptions,
    blobs: &Blobs,
) -> anyhow::Result<(ReappliedErasures, bool, usize)> {
    let database = spawn_blocking(move || Database::open(&options)).await??;
    let settled = async {
        // Their holders belong to the backed-up deployment and will never release them. The next holder of the trainer's
        // lease resumes jobs that were running.
        for lease in Lease::ALL {
            database.break_lease(lease).await?;
        }
        let with_detections = config.retention.erases_detections();
        let erased = ledger::apply(&database, blobs, with_detections)
            .await
            .context("cannot apply the ledger of erasures")?;
        let retrained =
            erased != ReappliedErasures::default() && ledger::train_without_erased(&database).await?;
        // Backups leave out pictures of unknown faces, which are kept for a while only.
        while !database.delete_unknown_pictures_before(i64::MAX, PICTURES).await?.is_empty() {}
        sweep::sweep_once(&database, blobs, Duration::ZERO).await?;
        let mut there = HashSet::new();
        for folder in REFERENCED {
            there.extend(blobs.keys(folder).await?);
        }
        let mut missing_blobs = database.image_blob_keys().await?;
        missing_blobs.extend(database.model_blob_keys().await?);
        missing_blobs.retain(|key| !there.contains(key));
        anyhow::Ok((erased, retrained, missing_blobs.len()))
    };
    let settled = settled.await;
    database.close(CLOSE_TIMEOUT).await?;
    settled
}
