//! Writes the audit log: rows of concurrent requests together, in one transaction. Also counts refusals instead of storing
//! each, and removes rows that are too old.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{AuditEntry, AuditOutcome, AuditRow, CLOCK_UNSET_BEFORE, Micros, now},
    store::{Database, StoreError},
};

/// Maximum number of rows in one transaction.
const MAX_ROWS: usize = 256;
/// Maximum number of calls that wait for their row; further calls wait for a place.
const MAX_WAITING: usize = 4096;
/// Refusals of the same kind within this time are one row.
const REFUSALS_TOGETHER: Duration = Duration::from_secs(60);
/// Maximum number of kinds of refusals that are counted at a time; all others count together.
const MAX_KINDS: usize = 1000;

/// The time between looks for rows that are too old.
const TRIM_INTERVAL: Duration = Duration::from_secs(3600);
/// By how much the oldest row must exceed the maximum age, so that there are few checkpoints.
const TRIM_MARGIN: Duration = Duration::from_secs(86_400);
/// Rows that are removed in one transaction.
const TRIM_BATCH: i64 = 10_000;
/// A row whose time is ahead of the clock by more than this has an impossible time.
const AHEAD: Duration = Duration::from_secs(86_400);
/// A clock that is ahead of the last look by more than this, or by half of the age, may have jumped.
const LONGEST_GAP: Duration = Duration::from_secs(14 * 86_400);
/// How long a server must have been running with such a clock before it is trusted.
const CLOCK_TRUST_DELAY: Duration = Duration::from_secs(86_400);

/// Why a row could not be written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuditError {
    /// The database cannot be reached.
    #[error("the database cannot be reached: {0}")]
    Unreachable(String),
    /// Anything else: the disk is full, a table is missing, …
    #[error("{0}")]
    Failed(String),
}

impl From<&StoreError> for AuditError {
    fn from(error: &StoreError) -> Self {
        match error {
            StoreError::Unavailable(cause) => Self::Unreachable(cause.clone()),
            other => Self::Failed(other.to_string()),
        }
    }
}

/// A row that waits to be written.
struct Pending {
    entry: AuditEntry,
    /// Reports the outcome; `None` if nobody waits for it.
    written: Option<oneshot::Sender<Result<(), AuditError>>>,
}

/// Refusals that count together: all but the times and the ids of the requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct RefusalKind {
    principal_kind: &'static str,
    principal_id: Option<i64>,
    principal_name: Option<String>,
    address: Option<String>,
    route: String,
    status: Option<u16>,
}

/// The audit log of a server. Clones share it.
#[derive(Clone)]
pub struct AuditLog {
    /// `None` where the log is switched off.
    queue: Option<mpsc::Sender<Pending>>,
    refusals: Arc<Mutex<HashMap<RefusalKind, i64>>>,
}

impl AuditLog {
    /// Makes a log that records nothing.
    pub fn off() -> Self {
        Self { queue: None, refusals: Arc::default() }
    }

    /// Makes a log, and the task that writes it until `stop` is set and all waiting rows are written.
    pub fn start(
        database: Database,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        let log = Self { queue: Some(queue), refusals: Arc::default() };
        let writing = write(database, waiting, Arc::clone(&log.refusals), stop);
        (log, writing)
    }

    /// Returns whether calls are recorded.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Writes a row, and returns once it is on the disk.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn append(&self, entry: AuditEntry) -> Result<(), AuditError> {
        let Some(queue) = &self.queue else { return Ok(()) };
        let (written, outcome) = oneshot::channel();
        let ended = || AuditError::Failed("the server is stopping".into());
        queue.send(Pending { entry, written: Some(written) }).await.map_err(|_| ended())?;
        outcome.await.map_err(|_| ended())?
    }

    /// Records a refusal. The first of its kind in a minute gets a row at once, the others one together. Nobody waits:
    /// a refusal takes place without its row, too.
    pub fn refuse(&self, entry: AuditEntry) {
        let Some(queue) = &self.queue else { return };
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = counted_kind(&refusals, &entry);
        if let Some(more) = refusals.get_mut(&kind) {
            *more += 1;
            return;
        }
        // If the queue is full, the refusal is counted with the next ones.
        let more = queue.try_send(Pending { entry, written: None }).map_or(1, |()| 0);
        refusals.insert(kind, more);
    }
}

impl RefusalKind {
    fn of(entry: &AuditEntry) -> Self {
        Self {
            principal_kind: entry.principal_kind,
            principal_id: entry.principal_id,
            principal_name: entry.principal_name.clone(),
            address: entry.address.clone(),
            route: entry.route.clone(),
            status: entry.status,
        }
    }

    /// Returns the kind of refusals of many addresses.
    fn of_many(entry: &AuditEntry) -> Self {
        Self {
            principal_kind: entry.principal_kind,
            principal_id: None,
            principal_name: None,
            address: None,
            route: "-".into(),
            status: entry.status,
        }
    }

    /// Returns a row for `calls` refusals.
    fn entry(self, calls: i64) -> AuditEntry {
        AuditEntry {
            at: now(),
            principal_kind: self.principal_kind,
            principal_id: self.principal_id,
            principal_name: self.principal_name,
            address: self.address,
            action: crate::domain::AuditAction::Refuse,
            route: self.route,
            object: None,
            person: None,
            request_id: None,
            outcome: AuditOutcome::Refused,
            status: self.status,
            calls,
        }
    }
}

/// Returns the kind that a refusal counts with: its own, or that of many addresses if there are too many kinds.
fn counted_kind(refusals: &HashMap<RefusalKind, i64>, entry: &AuditEntry) -> RefusalKind {
    let kind = RefusalKind::of(entry);
    if !refusals.contains_key(&kind) && refusals.len() >= MAX_KINDS {
        return RefusalKind::of_many(entry);
    }
    kind
}

async fn write(
    database: Database,
    mut waiting: mpsc::Receiver<Pending>,
    refusals: Arc<Mutex<HashMap<RefusalKind, i64>>>,
    stop: CancellationToken,
) {
    let mut interval = tokio::time::interval(REFUSALS_TOGETHER);
    let mut rows = Vec::with_capacity(MAX_ROWS);
    loop {
        tokio::select! {
            received = waiting.recv_many(&mut rows, MAX_ROWS) => {
                if received == 0 {
                    break;
                }
                write_rows(&database, &refusals, std::mem::take(&mut rows)).await;
            }
            _ = interval.tick() => write_refusals(&database, &refusals).await,
            () = stop.cancelled() => {
                // The last requests have been answered: only refusals, for which nobody waits, may still come.
                waiting.close();
                while waiting.recv_many(&mut rows, MAX_ROWS).await > 0 {
                    write_rows(&database, &refusals, std::mem::take(&mut rows)).await;
                }
                break;
            }
        }
    }
    write_refusals(&database, &refusals).await;
}

async fn write_refusals(database: &Database, refusals: &Mutex<HashMap<RefusalKind, i64>>) {
    let taken = std::mem::take(&mut *refusals.lock().unwrap_or_else(PoisonError::into_inner));
    let more = taken.into_iter().filter(|(_, calls)| *calls > 0);
    let rows: Vec<Pending> =
        more.map(|(kind, calls)| Pending { entry: kind.entry(calls), written: None }).collect();
    if !rows.is_empty() {
        write_rows(database, refusals, rows).await;
    }
}

async fn write_rows(database: &Database, refusals: &Mutex<HashMap<RefusalKind, i64>>, pending: Vec<Pending>) {
    let entries =
        |pending: &[Pending]| pending.iter().map(|pending| pending.entry.clone()).collect::<Vec<_>>();
    let mut outcome = append(database, entries(&pending)).await;
    let (awaited, others): (Vec<Pending>, Vec<Pending>) =
        pending.into_iter().partition(|pending| pending.written.is_some());
    if let Err(error) = &outcome
        && !others.is_empty()
    {
        // A refusal that cannot be written must not keep others from working.
        if matches!(error, AuditError::Failed(_)) && !awaited.is_empty() {
            outcome = append(database, entries(&awaited)).await;
        }
        count_again(refusals, others);
    }
    for written in awaited.into_iter().filter_map(|pending| pending.written) {
        // The client may have left.
        let _ = written.send(outcome.clone());
    }
}

async fn append(database: &Database, entries: Vec<AuditEntry>) -> Result<(), AuditError> {
    match database.append_audit(entries).await {
        Ok(rows) => {
            rows.iter().for_each(forward);
            Ok(())
        }
        Err(error) => {
            tracing::error!(%error, "cannot write the audit log");
            Err(AuditError::from(&error))
        }
    }
}

/// Counts refusals whose rows could not be written with the next ones of their kind.
fn count_again(refusals: &Mutex<HashMap<RefusalKind, i64>>, rows: Vec<Pending>) {
    let mut refusals = refusals.lock().unwrap_or_else(PoisonError::into_inner);
    for Pending { entry, .. } in rows {
        let kind = counted_kind(&refusals, &entry);
        *refusals.entry(kind).or_insert(0) += entry.calls;
    }
}

/// Writes a row to the server's log, which may be collected elsewhere: with the hash of the chain, without the object's
/// id.
fn forward(row: &AuditRow) {
    tracing::info!(
        target: "facepipe_backend::audit",
        audit_id = row.id,
        action = row.action,
        route = row.route,
        outcome = row.outcome,
        status = row.status,
        calls = row.calls,
        principal_kind = row.principal_kind,
        principal_id = row.principal_id,
        address = row.address,
        object_kind = row.object_kind,
        object_hash = row.object_hash,
        request_id = row.request_id,
        hash = row.hash,
        "audited"
    );
}

/// Removes rows that are older than `max_age`, now and then, until `stop` is set, unless the clock may have jumped
/// ahead.
pub async fn run_trimming(database: Database, max_age: Duration, stop: CancellationToken) {
    let mut clock = ClockWatch::default();
    loop {
        match trim(&database, max_age, &mut clock, &stop).await {
            Ok(0) => (),
            Ok(rows) => tracing::info!(rows, "removed rows of the audit log, older than audit_max_age_days"),
            Err(error) => tracing::warn!(%error, "cannot remove old rows of the audit log"),
        }
        tokio::select! {
            () = tokio::time::sleep(TRIM_INTERVAL) => (),
            () = stop.cancelled() => return,
        }
    }
}

async fn trim(
    database: &Database,
    max_age: Duration,
    clock: &mut ClockWatch,
    stop: &CancellationToken,
) -> Result<i64, StoreError> {
    let now = now();
    if now < CLOCK_UNSET_BEFORE {
        return Ok(0);
    }
    let until = now.saturating_add(micros(AHEAD));
    let Some((oldest, newest)) = database.audit_times(until).await? else { return Ok(0) };
    // The time of the last look is stored, so that a restart changes nothing. Before the first look, the time of the
    // newest row replaces it: later rows have the time of the clock in question and must not confirm it.
    let last = match database.last_audit_trim().await? {
        Some(last) => last,
        None => {
            database.audit_trim_finished(newest).await?;
            newest
        }
    };
    if clock.is_doubted(now, last, max_age) {
        tracing::warn!(
            "the clock is far ahead of the last look for old rows of the audit log: no row is removed until the server has \
             run for a day"
        );
        return Ok(0);
    }
    let before = now.saturating_sub(micros(max_age));
    let mut removed = 0;
    if oldest < before.saturating_sub(micros(TRIM_MARGIN)) {
        loop {
            let rows = database.trim_audit(before, until, TRIM_BATCH, now).await?;
            removed += rows;
            if rows < TRIM_BATCH {
                break;
            }
            if stop.is_cancelled() {
                return Ok(removed);
            }
        }
    }
    database.audit_trim_finished(now).await?;
    Ok(removed)
}

/// Doubts a clock that is far ahead of the last look, until the server has run with it for a day.
#[derive(Default)]
struct ClockWatch {
    doubted_since: Option<Instant>,
}

impl ClockWatch {
    fn is_doubted(&mut self, now: Micros, last: Micros, max_age: Duration) -> bool {
        if now.saturating_sub(last) <= micros(LONGEST_GAP.min(max_age / 2)) {
            self.doubted_since = None;
            return false;
        }
        self.doubted_since.get_or_insert_with(Instant::now).elapsed() < CLOCK_TRUST_DELAY
    }
}

fn micros(duration: Duration) -> Micros {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::AuditAction;

    fn refusal(address: &str) -> AuditEntry {
        AuditEntry {
            at: 1,
            principal_kind: "anonymous",
            principal_id: None,
            principal_name: None,
            address: Some(address.into()),
            action: AuditAction::Refuse,
            route: "GET /people".into(),
            object: None,
            person: None,
            request_id: Some("r".into()),
            outcome: AuditOutcome::Refused,
            status: Some(401),
            calls: 1,
        }
    }

    #[test]
    fn a_flood_of_refusals_is_counted_and_bounded() {
        let (queue, mut waiting) = mpsc::channel(MAX_WAITING);
        let log = AuditLog { queue: Some(queue), refusals: Arc::default() };
        (0..500).for_each(|_| log.refuse(refusal("192.0.2.1")));
        let mut rows = 0;
        while waiting.try_recv().is_ok() {
            rows += 1;
        }
        let counted: i64 = log.refusals.lock().unwrap().values().sum();
        assert_eq!((rows, counted), (1, 499));
        (0..5000).for_each(|address| log.refuse(refusal(&address.to_string())));
        let refusals = log.refusals.lock().unwrap();
        assert!(refusals.len() <= MAX_KINDS + 1, "{}", refusals.len());
        while waiting.try_recv().is_ok() {
            rows += 1;
        }
        assert_eq!(rows + refusals.values().sum::<i64>(), 5500);
    }

    #[test]
    fn refusals_that_could_not_be_written_are_counted_with_the_next() {
        let (queue, mut waiting) = mpsc::channel(MAX_WAITING);
        let log = AuditLog { queue: Some(queue), refusals: Arc::default() };
        (0..2 * MAX_KINDS).for_each(|address| log.refuse(refusal(&address.to_string())));
        (0..3).for_each(|_| log.refuse(refusal("0")));
        let taken = std::mem::take(&mut *log.refusals.lock().unwrap());
        let mut rows: Vec<Pending> = Vec::new();
        while let Ok(row) = waiting.try_recv() {
            rows.push(row);
        }
        rows.extend(
            taken.into_iter().map(|(kind, calls)| Pending { entry: kind.entry(calls), written: None }),
        );
        count_again(&log.refusals, rows);
        let refusals = log.refusals.lock().unwrap();
        assert!(refusals.len() <= MAX_KINDS + 1, "{}", refusals.len());
        assert_eq!(refusals.values().sum::<i64>(), i64::try_from(2 * MAX_KINDS + 3).unwrap());
        assert_eq!(refusals[&RefusalKind::of(&refusal("0"))], 4);
    }

    #[test]
    fn a_clock_that_jumped_is_doubted() {
        let (day, year) = (micros(Duration::from_secs(86_400)), Duration::from_secs(365 * 86_400));
        let mut clock = ClockWatch::default();
        assert!(!clock.is_doubted(100 * day, 99 * day, year));
        assert!(clock.is_doubted(1000 * day, 100 * day, year));
        // The clock was corrected.
        assert!(!clock.is_doubted(101 * day, 100 * day, year));
        // The clock is doubted after a restart, too.
        assert!(ClockWatch::default().is_doubted(1000 * day, 100 * day, year));
        assert!(clock.is_doubted(103 * day, 100 * day, year / 73));
    }
}
