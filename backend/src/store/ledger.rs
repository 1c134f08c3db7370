//! The ledger of erasures, by which erased data stay erased when the database is restored from an older backup. The
//! ledger is stored in the database and, one object per entry, in the blob store; each start synchronises the two.
//!
//! An entry is the salted digest of the erased row, not of a name: a person who is enrolled again has another row, which
//! matches no entry.

use std::collections::{BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Blobs, Database, StoreError,
    sql::{Erasure, PendingErasure, RowIdentity},
};
use crate::domain::{JobKind, Micros};

/// The folder of the entries in the blob store.
pub const FOLDER: &str = "erasures";

/// The content of an entry's object; its key is the digest.
#[derive(Serialize, Deserialize)]
struct Entry {
    salt: String,
    erased_at: Micros,
}

/// The numbers of erasures that were reapplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReappliedErasures {
    pub people: usize,
    /// Images of other people.
    pub images: usize,
    /// Clusters of unknown faces.
    pub unknowns: usize,
}

/// Completes an erasure in the blob store: writes its ledger entries, then deletes its blobs.
///
/// # Errors
/// The blob store fails. The erasure is incomplete until the next sweep.
pub async fn finish(blobs: &Blobs, erased: &PendingErasure) -> Result<(), StoreError> {
    let mut outcome = Ok(());
    for erasure in &erased.erasures {
        outcome = outcome.and(write(blobs, erasure).await);
    }
    for key in &erased.blobs {
        outcome = outcome.and(blobs.delete(key).await);
    }
    outcome
}

async fn write(blobs: &Blobs, erasure: &Erasure) -> Result<(), StoreError> {
    let entry = Entry { salt: erasure.salt.clone(), erased_at: erasure.erased_at };
    let bytes = serde_json::to_vec(&entry)
        .map_err(|error| StoreError::Damaged(format!("an entry of the ledger of erasures: {error}")))?;
    match blobs.put(&format!("{FOLDER}/{}", erasure.digest), Bytes::from(bytes)).await {
        // Another process wrote the same entry.
        Err(StoreError::Blob(object_store::Error::AlreadyExists { .. })) => Ok(()),
        outcome => outcome,
    }
}

async fn read(blobs: &Blobs, digest: String) -> Result<Erasure, StoreError> {
    let key = format!("{FOLDER}/{digest}");
    let Entry { salt, erased_at } = serde_json::from_slice(&blobs.get(&key).await?)
        .map_err(|error| StoreError::Damaged(format!("the blob {key}: {error}")))?;
    Ok(Erasure { digest, salt, erased_at })
}

/// Copies entries that only the database or only the blob store has to the other. Returns all entries.
///
/// # Errors
/// The database or the blob store fails, or an entry cannot be read.
pub async fn synchronise(database: &Database, blobs: &Blobs) -> Result<Vec<Erasure>, StoreError> {
    let mut entries = database.erasures().await?;
    let listed: BTreeSet<String> = blobs.names(FOLDER).await?.into_iter().collect();
    for entry in entries.iter().filter(|entry| !listed.contains(&entry.digest)) {
        write(blobs, entry).await?;
    }
    let rows: HashSet<String> = entries.iter().map(|entry| entry.digest.clone()).collect();
    let mut new = Vec::new();
    for digest in listed.into_iter().filter(|digest| !rows.contains(digest)) {
        new.push(read(blobs, digest).await?);
    }
    if !new.is_empty() {
        database.add_erasures(new.clone()).await?;
        entries.extend(new);
    }
    Ok(entries)
}

/// Reapplies the erasures of the ledger to rows that the database still has: erases people, images and clusters of unknown
/// faces with their embeddings, all models but the active one that know an erased person, and with `with_detections` also the
/// detections.
///
/// # Errors
/// As [`synchronise`]; [`StoreError::DatasetLocked`].
pub async fn apply(
    database: &Database,
    blobs: &Blobs,
    with_detections: bool,
) -> Result<ReappliedErasures, StoreError> {
    let entries = synchronise(database, blobs).await?;
    let mut reapplied = ReappliedErasures::default();
    if entries.is_empty() {
        return Ok(reapplied);
    }
    let mut by_salt: HashMap<&str, HashSet<&str>> = HashMap::new();
    for entry in &entries {
        by_salt.entry(&entry.salt).or_default().insert(&entry.digest);
    }
    let erased = |identity: &RowIdentity| {
        by_salt.iter().any(|(salt, digests)| digests.contains(identity.digest(salt).as_str()))
    };
    for (id, identity) in database.identities().await? {
        if erased(&identity)
            && let Some(person) = database.erase_person_row(id, with_detections).await?
        {
            finish(blobs, &person).await?;
            reapplied.people += 1;
        }
    }
    for id in database.image_ids().await? {
        if erased(&RowIdentity::Image { id: id.clone() })
            && let Some(image) = database.erase_image_row(&id).await?
        {
            finish(blobs, &image).await?;
            reapplied.images += 1;
        }
    }
    for (row, identity) in database.unknown_identities().await? {
        if erased(&identity)
            && let Some(unknown) = database.erase_unknown_row(row, with_detections).await?
        {
            finish(blobs, &unknown).await?;
            reapplied.unknowns += 1;
        }
    }
    if reapplied.unknowns > 0 {
        database.scrub_journal_of_unknowns().await?;
    }
    if reapplied.people + reapplied.images > 0 {
        database.scrub_journal().await?;
        purge_models(database, blobs).await?;
    }
    Ok(reapplied)
}

/// Requests a training where the active model knows an erased person. Returns whether it does.
///
/// # Errors
/// The database fails.
pub async fn train_without_erased(database: &Database) -> Result<bool, StoreError> {
    if !database.active_model_knows_erased().await? {
        return Ok(false);
    }
    let job = database.add_job(JobKind::OptimizedTrain).await?;
    tracing::warn!(job = job.id, "the active model knows an erased person; a new one is trained");
    Ok(true)
}

/// Removes all models but the active one that know an erased person. Returns how many.
///
/// # Errors
/// The database or the blob store fails.
pub async fn purge_models(database: &Database, blobs: &Blobs) -> Result<usize, StoreError> {
    let purged = database.purge_models().await?;
    for key in &purged {
        blobs.delete(key).await?;
    }
    Ok(purged.len())
}
