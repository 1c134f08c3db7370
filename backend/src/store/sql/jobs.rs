//! The queue of jobs. A job survives the process that does it: the next holder of the trainer's lease resumes it.

use std::time::Duration;

use diesel::{Connection, prelude::*};
use uuid::Uuid;

use super::{
    AnyConnection, Database,
    insert_lock::wait_for_writers,
    leases::{Lease, renew},
    schema::jobs,
    signals::{Topic, notify_other_processes},
};
use crate::{
    domain::{Job, JobFailure, JobKind, JobOutcome, JobStatus, Micros, now},
    store::StoreError,
};

/// How often a job is started before it counts as one that crashes its process.
const MAX_ATTEMPTS: i32 = 3;

/// The outcome of a request to cancel a job.
pub enum CancelOutcome {
    /// The job was queued and is cancelled.
    Cancelled(Job),
    /// The job is running and will be asked to stop.
    Requested(Job),
    /// The job had ended.
    AlreadyEnded,
    /// No job has this id.
    NotFound,
}

/// The response to a progress report of a running job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobDirective {
    Continue,
    /// Stop: the job was cancelled.
    Cancel,
    /// Stop: the lease has ended, and another process may be doing the job.
    LeaseLost,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = jobs)]
struct Row {
    id: String,
    kind: String,
    status: String,
    result: Option<String>,
    error: Option<String>,
    created_at: Micros,
    started_at: Option<Micros>,
    finished_at: Option<Micros>,
    images_done: i64,
    images_total: Option<i64>,
}

impl TryFrom<Row> for Job {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.id,
            kind: JobKind::from_name(&row.kind)
                .ok_or_else(|| StoreError::Damaged(format!("a job of kind {:?}", row.kind)))?,
            status: JobStatus::from_name(&row.status)
                .ok_or_else(|| StoreError::Damaged(format!("a job of status {:?}", row.status)))?,
            result: row.result,
            failure: row.error.map(JobFailure::from),
            created_at: row.created_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
            images_done: row.images_done,
            images_total: row.images_total,
        })
    }
}

impl Database {
    /// Adds a job to the queue. Returns it, or the job of this kind that waits there already: it will see everything that
    /// was committed before this call.
    ///
    /// # Errors
    /// The database fails.
    pub async fn add_job(&self, kind: JobKind) -> Result<Job, StoreError> {
        let job = self
            .write(move |connection| {
                // Orders concurrent calls, also those of other processes.
                wait_for_writers(connection)?;
                let waiting = jobs::table
                    .filter(jobs::kind.eq(kind.as_str()).and(jobs::status.eq(JobStatus::Queued.as_str())))
                    .order((jobs::created_at, jobs::id))
                    .select(jobs::id)
                    .first::<String>(connection)
                    .optional()?;
                let id = match waiting {
                    Some(id) => id,
                    None => insert(connection, kind)?,
                };
                find(connection, &id)?.ok_or(StoreError::Interrupted)
            })
            .await?;
        self.signals.notify(Topic::Jobs);
        Ok(job)
    }

    /// Returns a job by its id.
    ///
    /// # Errors
    /// The database fails.
    pub async fn job(&self, id: &str) -> Result<Option<Job>, StoreError> {
        let id = id.to_owned();
        self.read(move |connection| find(connection, &id)).await
    }

    /// Returns at most `limit` jobs, the newest first, starting after the job `before`.
    ///
    /// # Errors
    /// The database fails.
    pub async fn jobs(
        &self,
        status: Option<JobStatus>,
        before: Option<String>,
        limit: i64,
    ) -> Result<Vec<Job>, StoreError> {
        self.read(move |connection| {
            // Ids begin with the time.
            let mut query = jobs::table
                .order(jobs::id.desc())
                .limit(limit)
                .select(Row::as_select())
                .into_boxed::<<AnyConnection as Connection>::Backend>();
            if let Some(status) = status {
                query = query.filter(jobs::status.eq(status.as_str()));
            }
            if let Some(before) = &before {
                query = query.filter(jobs::id.lt(before));
            }
            query.load::<Row>(connection)?.into_iter().map(Job::try_from).collect()
        })
        .await
    }

    /// Returns whether any job is queued or running, in any process.
    ///
    /// # Errors
    /// The database fails.
    pub async fn has_open_jobs(&self) -> Result<bool, StoreError> {
        self.read(|connection| {
            let open = [JobStatus::Queued.as_str(), JobStatus::Running.as_str()];
            let first = jobs::table
                .filter(jobs::status.eq_any(open))
                .select(jobs::id)
                .first::<String>(connection)
                .optional()?;
            Ok(first.is_some())
        })
        .await
    }

    /// Marks the oldest queued job as running and returns it, where `holder` has the trainer's lease, which is renewed for
    /// `ttl`.
    ///
    /// Running jobs belong to a previous holder: they are queued again, and fail if they were started too often.
    ///
    /// # Errors
    /// The database fails.
    pub async fn claim_job(&self, holder: &str, ttl: Duration) -> Result<Option<Job>, StoreError> {
        let holder = holder.to_owned();
        self.write(move |connection| {
            if !renew(connection, Lease::Trainer, &holder, ttl)? {
                return Ok(None);
            }
            requeue_abandoned(connection)?;
            let queued = jobs::table
                .filter(jobs::status.eq(JobStatus::Queued.as_str()))
                .order((jobs::created_at, jobs::id))
                .select(jobs::id)
                .load::<String>(connection)?;
            for id in queued {
                let begun =
                    diesel::update(jobs::table.find(&id).filter(jobs::status.eq(JobStatus::Queued.as_str())))
                        .set((
                            jobs::status.eq(JobStatus::Running.as_str()),
                            jobs::started_at.eq(Some(now())),
                            jobs::attempts.eq(jobs::attempts + 1),
                            jobs::images_done.eq(0),
                            jobs::images_total.eq(None::<i64>),
                        ))
                        .execute(connection)?;
                // Otherwise it was cancelled in the meantime.
                if begun == 1 {
                    return find(connection, &id);
                }
            }
            Ok(None)
        })
        .await
    }

    /// Records the progress of a running job and renews the trainer's lease.
    ///
    /// # Errors
    /// The database fails.
    pub async fn report_job(
        &self,
        id: &str,
        holder: &str,
        ttl: Duration,
        (done, total): (i64, Option<i64>),
    ) -> Result<JobDirective, StoreError> {
        let (id, holder) = (id.to_owned(), holder.to_owned());
        self.write(move |connection| {
            if !renew(connection, Lease::Trainer, &holder, ttl)? {
                return Ok(JobDirective::LeaseLost);
            }
            diesel::update(jobs::table.find(&id))
                .set((jobs::images_done.eq(done), jobs::images_total.eq(total)))
                .execute(connection)?;
            let cancel: bool = jobs::table.find(&id).select(jobs::cancel).first(connection)?;
            Ok(if cancel { JobDirective::Cancel } else { JobDirective::Continue })
        })
        .await
    }

    /// Records the outcome of a job of `holder`. Returns `false` and changes nothing where another process has resumed it.
    ///
    /// # Errors
    /// The database fails.
    pub async fn finish_job(
        &self,
        id: &str,
        holder: &str,
        ttl: Duration,
        outcome: JobOutcome,
    ) -> Result<bool, StoreError> {
        let (id, holder) = (id.to_owned(), holder.to_owned());
        let ended = self
            .write(move |connection| {
                if !renew(connection, Lease::Trainer, &holder, ttl)? {
                    return Ok(false);
                }
                let status = outcome.status();
                let (result, error) = match &outcome {
                    JobOutcome::Done(result) => (Some(result), None),
                    JobOutcome::Failed(failure) => (None, Some(failure.to_string())),
                    JobOutcome::Cancelled => (None, None),
                };
                diesel::update(jobs::table.find(&id))
                    .set((
                        jobs::status.eq(status.as_str()),
                        jobs::result.eq(result),
                        jobs::error.eq(error),
                        jobs::finished_at.eq(Some(now())),
                    ))
                    .execute(connection)?;
                if status == JobStatus::Done {
                    diesel::update(jobs::table.find(&id).filter(jobs::images_total.is_not_null()))
                        .set(jobs::images_done.eq(jobs::images_total.assume_not_null()))
                        .execute(connection)?;
                }
                notify_other_processes(connection, Topic::Jobs)?;
                Ok(true)
            })
            .await?;
        self.signals.notify(Topic::Jobs);
        Ok(ended)
    }

    /// Cancels a queued job, or asks the process that does it to stop.
    ///
    /// # Errors
    /// The database fails.
    pub async fn cancel_job(&self, id: &str) -> Result<CancelOutcome, StoreError> {
        let id = id.to_owned();
        let cancelled = self
            .write(move |connection| {
                let of_status =
                    |status: JobStatus| jobs::table.find(&id).filter(jobs::status.eq(status.as_str()));
                let at_once = diesel::update(of_status(JobStatus::Queued))
                    .set((jobs::status.eq(JobStatus::Cancelled.as_str()), jobs::finished_at.eq(Some(now()))))
                    .execute(connection)?;
                let asked = diesel::update(of_status(JobStatus::Running))
                    .set(jobs::cancel.eq(true))
                    .execute(connection)?;
                notify_other_processes(connection, Topic::Jobs)?;
                Ok(match find(connection, &id)? {
                    None => CancelOutcome::NotFound,
                    Some(job) if at_once == 1 => CancelOutcome::Cancelled(job),
                    Some(job) if asked == 1 => CancelOutcome::Requested(job),
                    Some(_) => CancelOutcome::AlreadyEnded,
                })
            })
            .await?;
        self.signals.notify(Topic::Jobs);
        Ok(cancelled)
    }
}

/// Adds a job to the queue; part of a transaction. Returns its id.
pub(super) fn insert(connection: &mut AnyConnection, kind: JobKind) -> Result<String, StoreError> {
    let id = Uuid::now_v7().to_string();
    diesel::insert_into(jobs::table)
        .values((
            jobs::id.eq(&id),
            jobs::kind.eq(kind.as_str()),
            jobs::status.eq(JobStatus::Queued.as_str()),
            jobs::created_at.eq(now()),
        ))
        .execute(connection)?;
    notify_other_processes(connection, Topic::Jobs)?;
    Ok(id)
}

pub(super) fn find(connection: &mut AnyConnection, id: &str) -> Result<Option<Job>, StoreError> {
    let row = jobs::table.find(id).select(Row::as_select()).first::<Row>(connection).optional()?;
    row.map(Job::try_from).transpose()
}

fn requeue_abandoned(connection: &mut AnyConnection) -> Result<(), StoreError> {
    let running = || jobs::table.filter(jobs::status.eq(JobStatus::Running.as_str()));
    let failed = diesel::update(running().filter(jobs::attempts.ge(MAX_ATTEMPTS)))
        .set((
            jobs::status.eq(JobStatus::Failed.as_str()),
            jobs::error
                .eq(Some(format!("the process that did it ended {MAX_ATTEMPTS} times before it was done"))),
            jobs::finished_at.eq(Some(now())),
        ))
        .execute(connection)?;
    let cancelled = diesel::update(running().filter(jobs::cancel.eq(true)))
        .set((jobs::status.eq(JobStatus::Cancelled.as_str()), jobs::finished_at.eq(Some(now()))))
        .execute(connection)?;
    let requeued = diesel::update(running())
        .set((jobs::status.eq(JobStatus::Queued.as_str()), jobs::started_at.eq(None::<Micros>)))
        .execute(connection)?;
    if failed + cancelled + requeued > 0 {
        tracing::warn!(failed, cancelled, requeued, "found jobs that a process left unfinished");
    }
    Ok(())
}
