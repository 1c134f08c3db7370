//! Deletes detections that are older than they may be kept, and the answers that are kept for retries as long; and gives
//! detections whose time cannot be right the one that counts.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;
use uuid::Uuid;

use super::{Database, StoreError, from_micros, sql::Lease};
use crate::{
    domain::{CLOCK_UNSET_BEFORE, Micros, Task, now},
    metrics::Metrics,
};

/// From one pass to the next.
const INTERVAL: Duration = Duration::from_secs(3600);
/// How long after the end of a process in the middle of a pass another one may begin one.
const LEASE: Duration = Duration::from_secs(60);
/// Rows that are deleted in one transaction: few, so that nobody waits for it.
const BATCH: i64 = 1000;
/// From one transaction to the next: whoever waits for the one writer of SQLite comes in between.
const PAUSE: Duration = Duration::from_millis(10);
/// A clock that is ahead of the last pass by more than this, or by more than half of the age that is kept, may have
/// jumped.
const LONGEST_GAP: Duration = Duration::from_secs(14 * 86_400);
/// How long a server must have been running with such a clock until it is believed.
const CLOCK_TRUST_DELAY: Duration = Duration::from_secs(86_400);

/// What is kept, and which times are possible.
#[derive(Debug, Clone, Copy)]
pub struct RetentionOptions {
    /// For how long detections are kept after their capture; `None` for ever.
    pub max_age: Option<Duration>,
    /// How far ahead of the clock a capture time may be, microseconds.
    pub ahead: Micros,
}

/// What a pass did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Deleted {
    /// Detections that were deleted.
    pub detections: usize,
    /// Answers to requests with an idempotency key that were deleted.
    pub answers: usize,
    /// Detections that got another time.
    pub corrected: usize,
}

/// How a pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetentionOutcome {
    /// All that was too old is deleted.
    Done(Deleted),
    /// Another process is at it.
    Busy,
    /// This machine's clock cannot be believed: nothing was deleted.
    ClockDoubted(ClockDoubt),
}

/// Why a clock is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockDoubt {
    /// It says a time before there was any such program.
    Unset {
        /// What it says.
        now: Micros,
    },
    /// It is far ahead of the last pass.
    Jumped {
        /// What it says.
        now: Micros,
        /// When it was believed last.
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

/// Does a pass now and at every interval until `stop` says so. A clock that may have jumped ahead is believed once the
/// server has been running with it for a day.
pub async fn run_retention(
    database: Database,
    options: RetentionOptions,
    metrics: Arc<Metrics>,
    mut stop: watch::Receiver<bool>,
) {
    let mut doubted_since: Option<Instant> = None;
    while !*stop.borrow() {
        let believed = doubted_since.is_some_and(|since| since.elapsed() >= CLOCK_TRUST_DELAY);
        match retain(&database, options, believed).await {
            Ok(RetentionOutcome::Done(deleted)) => {
                doubted_since = None;
                if deleted != Deleted::default() {
                    let Deleted { detections, answers, corrected } = deleted;
                    tracing::info!(
                        detections,
                        answers,
                        corrected,
                        "deleted what was older than detections_max_age_days, corrected times that cannot be"
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
            _ = stop.changed() => (),
        }
    }
}

/// Deletes what is older than may be kept: detections by the time of their capture that counts. With `trust_clock`, this
/// machine's clock is believed whatever it says.
///
/// # Errors
/// The database fails; what was deleted stays so.
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
    let mut deleted = Deleted::default();
    let done = correct(database, holder, options, now, &mut deleted).await?
        && match options.max_age {
            Some(max_age) => delete(database, holder, max_age, now, &mut deleted).await?,
            None => true,
        };
    if deleted.detections + deleted.answers > 0 {
        database.scrub_journal_of_detections().await?;
    }
    if done {
        database.task_finished(Task::Retain, now).await?;
    }
    Ok(RetentionOutcome::Done(deleted))
}

/// Whether the clock can be believed. Where no pass was ever done, the newest arrival stands for the last one, and is
/// written down as such: what arrives by the clock in question must not prove it right.
async fn doubt(
    database: &Database,
    max_age: Option<Duration>,
    now: Micros,
) -> Result<Option<ClockDoubt>, StoreError> {
    if now < CLOCK_UNSET_BEFORE {
        return Ok(Some(ClockDoubt::Unset { now }));
    }
    // Where nothing is deleted, nothing is at stake.
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

/// Returns whether all is done; not where another process has taken over.
async fn correct(
    database: &Database,
    holder: &str,
    options: RetentionOptions,
    now: Micros,
    deleted: &mut Deleted,
) -> Result<bool, StoreError> {
    loop {
        let corrected = database.correct_times(now, options.ahead, BATCH).await?;
        deleted.corrected += corrected;
        if corrected == 0 {
            return Ok(true);
        }
        if !database.renew_lease(Lease::Retain, holder, LEASE).await? {
            return Ok(false);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Returns whether all is done; not where another process has taken over.
async fn delete(
    database: &Database,
    holder: &str,
    max_age: Duration,
    now: Micros,
    deleted: &mut Deleted,
) -> Result<bool, StoreError> {
    let age = i64::try_from(max_age.as_micros()).unwrap_or(i64::MAX);
    let cutoff = now.saturating_sub(age);
    loop {
        let detections = database.delete_detections_before(cutoff, BATCH).await?;
        deleted.detections += detections;
        // Some of the rest that another process deletes by now is deleted by one of both.
        if !database.renew_lease(Lease::Retain, holder, LEASE).await? {
            return Ok(false);
        }
        if detections == 0 {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    loop {
        let answers = database.delete_idempotency_records_before(cutoff, BATCH).await?;
        deleted.answers += answers;
        if answers == 0 {
            return Ok(true);
        }
        if !database.renew_lease(Lease::Retain, holder, LEASE).await? {
            return Ok(false);
        }
        tokio::time::sleep(PAUSE).await;
    }
}
