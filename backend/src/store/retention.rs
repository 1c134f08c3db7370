//! Deletes detections that are older than they may be kept, and the answers that are kept for retries as long.

use std::time::Duration;

use tokio::sync::watch;
use uuid::Uuid;

use super::{Database, StoreError, now, sql::Lease};

/// From one pass to the next.
const INTERVAL: Duration = Duration::from_secs(3600);
/// How long after the end of a process in the middle of a pass another one may begin one.
const LEASE: Duration = Duration::from_secs(60);
/// Rows that are deleted in one transaction: few, so that nobody waits for it.
const BATCH: i64 = 1000;
/// From one transaction to the next: whoever waits for the one writer of SQLite comes in between.
const PAUSE: Duration = Duration::from_millis(10);

/// What a pass deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Deleted {
    /// Detections.
    pub detections: usize,
    /// Answers to requests with an idempotency key.
    pub answers: usize,
}

/// Does a pass now and at every interval until `stop` says so.
pub async fn retain_regularly(database: Database, max_age: Duration, mut stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        match retain(&database, max_age).await {
            Ok(Some(deleted)) if deleted != Deleted::default() => {
                let Deleted { detections, answers } = deleted;
                tracing::info!(detections, answers, "deleted what was older than detections_max_age_days");
            }
            Ok(_) => (),
            Err(error) => tracing::warn!(%error, "cannot delete old detections"),
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => (),
            _ = stop.changed() => (),
        }
    }
}

/// Deletes what is older than `max_age`: detections by the time of their capture. `None` where another process is at
/// it.
///
/// # Errors
/// The database fails; what was deleted stays so.
pub async fn retain(database: &Database, max_age: Duration) -> Result<Option<Deleted>, StoreError> {
    let holder = Uuid::new_v4().to_string();
    if !database.acquire_lease(Lease::Retain, &holder, LEASE).await? {
        return Ok(None);
    }
    let deleted = delete(database, &holder, max_age).await;
    database.release_lease(Lease::Retain, &holder).await?;
    deleted.map(Some)
}

async fn delete(database: &Database, holder: &str, max_age: Duration) -> Result<Deleted, StoreError> {
    let age = i64::try_from(max_age.as_micros()).unwrap_or(i64::MAX);
    let cutoff = now().saturating_sub(age);
    let mut deleted = Deleted::default();
    loop {
        let detections = database.delete_detections_before(cutoff, BATCH).await?;
        deleted.detections += detections;
        // Some of the rest that another process deletes by now is deleted by one of both.
        if detections == 0 || !database.renew_lease(Lease::Retain, holder, LEASE).await? {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    loop {
        let answers = database.delete_answers_before(cutoff, BATCH).await?;
        deleted.answers += answers;
        if answers == 0 || !database.renew_lease(Lease::Retain, holder, LEASE).await? {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    if deleted != Deleted::default() {
        database.forget_erased_detection().await?;
    }
    Ok(deleted)
}
