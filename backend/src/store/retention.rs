//! Deletes detections, tracks, idempotency records and embeddings of the cohort from cameras that are older than they may be
//! kept, takes deleted faces out of the means of their clusters, and corrects impossible times of detections.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Database, StoreError, from_micros,
    sql::{CohortFilter, Lease},
};
use crate::{
    domain::{CLOCK_UNSET_BEFORE, CohortSource, Micros, Task, now},
    metrics::Metrics,
};

/// How long expired tokens are listed.
const EXPIRED_TOKENS_KEPT: Duration = Duration::from_secs(90 * 86_400);
/// The interval between passes.
const INTERVAL: Duration = Duration::from_secs(3600);
/// How long after a crash in the middle of a pass another process may start one.
const LEASE: Duration = Duration::from_secs(60);
/// Rows that are deleted in one transaction: few, so that other writers do not wait long.
const BATCH: i64 = 1000;
/// Clusters whose rows are computed again between two renewals of the lease.
const CLUSTERS: i64 = 50;
/// The pause between transactions, which gives way to other writers on SQLite.
const PAUSE: Duration = Duration::from_millis(10);
/// A clock that is ahead of the last pass by more than this, or by more than half of the maximum age, may have jumped.
const LONGEST_GAP: Duration = Duration::from_secs(14 * 86_400);
/// How long a server must have been running with such a clock before it is trusted.
const CLOCK_TRUST_DELAY: Duration = Duration::from_secs(86_400);

/// How long detections are kept, and which times are possible.
#[derive(Debug, Clone, Copy)]
pub struct RetentionOptions {
    /// How long detections are kept after their capture; `None` forever.
    pub max_age: Option<Duration>,
    /// How far ahead of the clock a time of capture may be, microseconds.
    pub ahead: Micros,
}

/// The numbers of rows that a pass changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Deleted {
    pub detections: usize,
    pub tracks: usize,
    pub idempotency_records: usize,
    /// Deleted embeddings of the cohort.
    pub cohort: usize,
    /// Clusters of unknown faces whose rows were computed again without deleted faces.
    pub clusters: usize,
    /// Detections whose time was corrected.
    pub corrected: usize,
}

/// The outcome of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetentionOutcome {
    /// Everything that was too old is deleted.
    Done(Deleted),
    /// Another process is doing a pass.
    Busy,
    /// This machine's clock cannot be trusted: nothing was deleted.
    ClockDoubted(ClockDoubt),
}

/// Why a clock is not trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockDoubt {
    /// It is before the first release of this program.
    Unset {
        /// The time of the clock.
        now: Micros,
    },
    /// It is far ahead of the last pass.
    Jumped {
        /// The time of the clock.
        now: Micros,
        /// The time of the last pass.
        last: Micros,
    },
}

impl std::fmt::Display for ClockDoubt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |moment: Micros| {
            let moment = from_micros(moment).ok();
            moment.map_or_else(|| "a time of no calendar".to_owned(), |m| m.date().to_string())
        };
        match self {
            Self::Unset { now } => write!(f, "this machine's clock says {}: it is not set", text(*now)),
            Self::Jumped { now, last } => write!(
                f,
                "this machine's clock says {}, and the last pass was on {}: has it jumped ahead?",
                text(*now),
                text(*last)
            ),
        }
    }
}

/// Does a pass now and at every interval, until `stop` is set. A clock that may have jumped ahead is trusted once the
/// server has been running with it for a day.
pub async fn run_retention(
    database: Database,
    options: RetentionOptions,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut doubted_since: Option<Instant> = None;
    while !stop.is_cancelled() {
        let believed = doubted_since.is_some_and(|since| since.elapsed() >= CLOCK_TRUST_DELAY);
        match retain(&database, options, believed).await {
            Ok(RetentionOutcome::Done(deleted)) => {
                doubted_since = None;
                if deleted != Deleted::default() {
                    let Deleted { detections, tracks, idempotency_records, cohort, clusters, corrected } =
                        deleted;
                    tracing::info!(
                        detections,
                        tracks,
                        answers = idempotency_records,
                        cohort,
                        groups = clusters,
                        corrected,
                        "deleted what was older than detections_max_age_days, corrected impossible times"
                    );
                }
            }
            Ok(RetentionOutcome::Busy) => (),
            Ok(RetentionOutcome::ClockDoubted(doubt)) => {
                doubted_since.get_or_insert_with(Instant::now);
                metrics.task_failed(Task::Retain);
                tracing::warn!(
                    "{doubt} No detection is deleted until the clock is right, the server has run for a day, or \
                     `facepipe-backend retain --trust-clock` says that it is right"
                );
            }
            Err(error) => {
                metrics.task_failed(Task::Retain);
                tracing::warn!(%error, "cannot delete old detections");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => (),
            () = stop.cancelled() => (),
        }
    }
}

/// Does one pass. With `trust_clock`, this machine's clock is trusted in any case.
///
/// # Errors
/// The database fails; rows deleted until then stay deleted.
pub async fn retain(
    database: &Database,
    options: RetentionOptions,
    trust_clock: bool,
) -> Result<RetentionOutcome, StoreError> {
    let holder = Uuid::new_v4().to_string();
    if !database.acquire_lease(Lease::Retain, &holder, LEASE).await? {
        return Ok(RetentionOutcome::Busy);
    }
    let outcome = pass(database, &holder, options, trust_clock).await;
    database.release_lease(Lease::Retain, &holder).await?;
    outcome
}

async fn pass(
    database: &Database,
    holder: &str,
    options: RetentionOptions,
    trust_clock: bool,
) -> Result<RetentionOutcome, StoreError> {
    let now = now();
    if let Some(doubt) = doubt(database, options.max_age, now).await?
        && !trust_clock
    {
        return Ok(RetentionOutcome::ClockDoubted(doubt));
    }
    remove_expired_tokens(database, options.max_age, now).await?;
    let mut deleted = Deleted::default();
    let done = correct(database, holder, options, now, &mut deleted).await?
        && match options.max_age {
            Some(max_age) => delete(database, holder, max_age, now, &mut deleted).await?,
            None => true,
        }
        // The task that clusters may be switched off.
        && in_batches(database, holder, &mut deleted.clusters, || {
            database.summarise_changed_clusters(CLUSTERS)
        })
        .await?;
    let Deleted { detections, tracks, idempotency_records, cohort, clusters, corrected: _ } = deleted;
    if detections + tracks + idempotency_records + cohort + clusters > 0 {
        database.scrub_journal_of_detections().await?;
    }
    if done {
        database.task_finished(Task::Retain, now).await?;
    }
    Ok(RetentionOutcome::Done(deleted))
}

/// Removes tokens that expired long ago, with the addresses that used them, unless the clock is in doubt.
async fn remove_expired_tokens(
    database: &Database,
    max_age: Option<Duration>,
    now: Micros,
) -> Result<(), StoreError> {
    // With a maximum age, the clock is checked already.
    if max_age.is_none() && doubt(database, Some(EXPIRED_TOKENS_KEPT), now).await?.is_some() {
        return Ok(());
    }
    let kept = i64::try_from(EXPIRED_TOKENS_KEPT.as_micros()).unwrap_or(i64::MAX);
    let tokens = database.remove_expired_tokens(now.saturating_sub(kept)).await?;
    if tokens > 0 {
        tracing::info!(tokens, "removed tokens that expired long ago");
    }
    Ok(())
}

/// Returns whether the clock is in doubt. Before the first pass, the newest arrival stands for the last one and is recorded
/// as such: later arrivals have the time of the clock in question and must not confirm it.
async fn doubt(
    database: &Database,
    max_age: Option<Duration>,
    now: Micros,
) -> Result<Option<ClockDoubt>, StoreError> {
    if now < CLOCK_UNSET_BEFORE {
        return Ok(Some(ClockDoubt::Unset { now }));
    }
    // Without a maximum age, nothing is deleted.
    let Some(max_age) = max_age else { return Ok(None) };
    let last = match database.last_run(Task::Retain).await? {
        Some(last) => last,
        None => {
            let Some(newest) = database.newest_arrival().await? else { return Ok(None) };
            database.task_finished(Task::Retain, newest).await?;
            newest
        }
    };
    let gap = LONGEST_GAP.min(max_age / 2);
    let jumped = now.saturating_sub(last) > i64::try_from(gap.as_micros()).unwrap_or(i64::MAX);
    Ok(jumped.then_some(ClockDoubt::Jumped { now, last }))
}

/// Corrects impossible times. Returns whether all are corrected; `false` where another process has taken over.
async fn correct(
    database: &Database,
    holder: &str,
    options: RetentionOptions,
    now: Micros,
    deleted: &mut Deleted,
) -> Result<bool, StoreError> {
    in_batches(database, holder, &mut deleted.corrected, || database.correct_times(now, options.ahead, BATCH))
        .await
}

/// Deletes old rows. Returns whether all are deleted; `false` where another process has taken over.
async fn delete(
    database: &Database,
    holder: &str,
    max_age: Duration,
    now: Micros,
    deleted: &mut Deleted,
) -> Result<bool, StoreError> {
    let age = i64::try_from(max_age.as_micros()).unwrap_or(i64::MAX);
    let cutoff = now.saturating_sub(age);
    // The rows fit one transaction; uploaded ones stay until they are erased.
    let old =
        CohortFilter { source: Some(CohortSource::Camera), before: Some(cutoff), ..CohortFilter::default() };
    deleted.cohort = database.erase_cohort(old).await?;
    let Deleted { detections, tracks, idempotency_records, .. } = deleted;
    // Deletes tracks after their detections.
    Ok(in_batches(database, holder, detections, || database.delete_detections_before(cutoff, BATCH)).await?
        && in_batches(database, holder, tracks, || database.delete_tracks_before(cutoff, BATCH)).await?
        && in_batches(database, holder, idempotency_records, || {
            database.delete_idempotency_records_before(cutoff, BATCH)
        })
        .await?)
}

/// Calls `change`, which changes a batch of rows and returns how many, until it changes none; counts them in `changed`. Returns
/// whether nothing is left; `false` if another process has taken over and does the rest.
async fn in_batches<Change: Future<Output = Result<usize, StoreError>>>(
    database: &Database,
    holder: &str,
    changed: &mut usize,
    change: impl Fn() -> Change,
) -> Result<bool, StoreError> {
    loop {
        let rows = change().await?;
        *changed += rows;
        if !database.renew_lease(Lease::Retain, holder, LEASE).await? {
            return Ok(false);
        }
        if rows == 0 {
            return Ok(true);
        }
        tokio::time::sleep(PAUSE).await;
    }
}
