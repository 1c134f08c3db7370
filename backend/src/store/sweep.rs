//! Removes blobs that no row refers to. A crash between writing a blob and its row leaves one, and so does an erasure
//! whose blob could not be deleted.

use std::{collections::HashSet, sync::Arc, time::Duration};

use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Blobs, Database, StoreError, ledger, sql::Lease};
use crate::{
    domain::{Task, now},
    metrics::Metrics,
};

/// How long other processes wait for a process that was killed during its sweep. The lease is renewed while a sweep lasts.
const LEASE: Duration = Duration::from_secs(60);

/// When to sweep, and which blobs.
#[derive(Debug, Clone, Copy)]
pub struct SweepOptions {
    /// The interval between sweeps.
    pub interval: Duration,
    /// The age from which a blob is removed: the row of a younger one may be about to be written.
    pub min_age: Duration,
}

/// Sweeps now and at every interval, until `stop` is set.
pub async fn run_sweeps(
    database: Database,
    blobs: Blobs,
    options: SweepOptions,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        if let Err(error) = sweep_once(&database, &blobs, options.min_age).await {
            metrics.task_failed(Task::Sweep);
            tracing::warn!(%error, "cannot look for blobs that no row refers to");
        }
        tokio::select! {
            () = tokio::time::sleep(options.interval) => (),
            () = stop.cancelled() => (),
        }
    }
}

/// Removes blobs of at least `min_age` that no row refers to, and synchronises the ledger of erasures. Returns how many
/// it removed; `None` while another process sweeps.
///
/// # Errors
/// Rows or blobs cannot be read.
pub async fn sweep_once(
    database: &Database,
    blobs: &Blobs,
    min_age: Duration,
) -> Result<Option<usize>, StoreError> {
    let holder = Uuid::new_v4().to_string();
    if !database.acquire_lease(Lease::Sweep, &holder, LEASE).await? {
        return Ok(None);
    }
    let swept = async {
        let removed = sweep(database, blobs, min_age).await?;
        // The entry of an erasure is in the database only where it could not be written to the blob store.
        ledger::synchronise(database, blobs).await?;
        database.task_finished(Task::Sweep, now()).await?;
        Ok(removed)
    };
    let swept = database.renewing_lease(Lease::Sweep, &holder, LEASE, swept).await;
    database.release_lease(Lease::Sweep, &holder).await?;
    swept.map(Some)
}

async fn sweep(database: &Database, blobs: &Blobs, min_age: Duration) -> Result<usize, StoreError> {
    // Blobs are listed before rows, so that a blob whose row is written in between is not taken for garbage.
    let listed = blobs.list().await?;
    // Pictures of unknown faces before images: a naming in between moves a blob from those to these.
    let mut referred: HashSet<String> = database.unknown_picture_keys().await?.into_iter().collect();
    referred.extend(database.image_blob_keys().await?);
    referred.extend(database.model_blob_keys().await?);
    let newest = OffsetDateTime::now_utc() - min_age;
    let mut removed = 0;
    for blob in listed {
        if !referred.contains(&blob.key) && blob.modified <= newest {
            blobs.delete(&blob.key).await?;
            removed += 1;
            tracing::warn!(key = blob.key, "removed a blob that no row refers to");
        }
    }
    Ok(removed)
}
