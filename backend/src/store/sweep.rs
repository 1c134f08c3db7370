//! Removes blobs that no row refers to: a crash between the blob and its row leaves them, and so does an erasure whose
//! blob could not be deleted.

use std::{collections::HashSet, time::Duration};

use time::OffsetDateTime;
use tokio::sync::watch;
use uuid::Uuid;

use super::{Blobs, Database, StoreError, sql::Lease};

/// How long a sweep may take before another process may begin one.
const LEASE: Duration = Duration::from_secs(600);

/// How sweeping goes about it.
#[derive(Debug, Clone, Copy)]
pub struct SweepOptions {
    /// From one sweep to the next.
    pub interval: Duration,
    /// Blobs that are younger stay: their row may be about to be written.
    pub min_age: Duration,
}

/// Sweeps now and at every interval until `stop` says so.
pub async fn sweep_regularly(
    database: Database,
    blobs: Blobs,
    options: SweepOptions,
    mut stop: watch::Receiver<bool>,
) {
    let holder = Uuid::new_v4().to_string();
    while !*stop.borrow() {
        let swept = async {
            if database.acquire_lease(Lease::Sweep, &holder, LEASE).await? {
                sweep(&database, &blobs, options.min_age).await?;
                database.release_lease(Lease::Sweep, &holder).await?;
            }
            Ok::<_, StoreError>(())
        };
        if let Err(error) = swept.await {
            tracing::warn!(%error, "cannot look for blobs that nothing refers to");
        }
        tokio::select! {
            () = tokio::time::sleep(options.interval) => (),
            _ = stop.changed() => (),
        }
    }
}

/// Removes blobs of at least `min_age` that no row refers to.
///
/// # Errors
/// Rows or blobs cannot be read.
pub async fn sweep(database: &Database, blobs: &Blobs, min_age: Duration) -> Result<(), StoreError> {
    // Blobs are listed before rows: what gets its row in between is not taken for garbage.
    let listed = blobs.list().await?;
    let mut referred: HashSet<String> = database.image_blob_keys().await?.into_iter().collect();
    referred.extend(database.model_blob_keys().await?);
    let newest = OffsetDateTime::now_utc() - min_age;
    for blob in listed {
        if !referred.contains(&blob.key) && blob.modified <= newest {
            blobs.delete(&blob.key).await?;
            tracing::warn!(key = blob.key, "removed a blob that no row refers to");
        }
    }
    Ok(())
}
