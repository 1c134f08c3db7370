//! Closes tracks that take no more crops: the embeddings that they were decided from are removed.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{Database, StoreError};
use crate::{
    domain::{Micros, Task, now},
    metrics::Metrics,
};

/// The longest interval between passes.
const INTERVAL: Duration = Duration::from_secs(60);
/// The shortest.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// Tracks that are closed in one transaction: few, so that other writers do not wait long.
const BATCH: i64 = 500;

/// Closes tracks that are due, now and at every interval, until `stop` is set. Several processes may do it at the same time.
/// `window` is how long a track takes crops after its last one; `None` where each crop is decided by itself.
pub async fn run_track_expiry(
    database: Database,
    window: Option<Duration>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    // Without a window no track stays open.
    let interval = window.map_or(INTERVAL, |window| (window / 10).clamp(MIN_INTERVAL, INTERVAL));
    while !stop.is_cancelled() {
        if let Err(error) = close_due(&database, now()).await {
            metrics.task_failed(Task::Retain);
            tracing::warn!(%error, "cannot remove the embeddings of tracks that have ended");
        }
        tokio::select! {
            () = tokio::time::sleep(interval) => (),
            () = stop.cancelled() => (),
        }
    }
}

/// Closes all tracks that are due at `now`. Returns how many.
///
/// # Errors
/// The database fails; tracks closed until then stay closed.
pub async fn close_due(database: &Database, now: Micros) -> Result<usize, StoreError> {
    let mut closed = 0;
    loop {
        let some = database.close_tracks(now, BATCH).await?;
        closed += some;
        if some == 0 {
            break;
        }
    }
    if closed > 0 {
        database.scrub_journal_of_detections().await?;
    }
    Ok(closed)
}
