//! Long work that was asked for: it survives a restart.

use diesel::prelude::*;
use paperclip::actix::Apiv2Schema;
use serde::Serialize;
use uuid::Uuid;

use super::{AnyConnection, Database, schema::jobs};
use crate::store::{Micros, StoreError, now};

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Apiv2Schema)]
#[serde(rename_all = "lowercase")]
pub enum JobStatus {
    /// Waits for its turn.
    Queued,
    /// Is being done.
    Running,
    /// Is done and has a result.
    Done,
    /// Ended with an error.
    Failed,
}

impl JobStatus {
    /// As rows and answers name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }

    fn parse(text: &str) -> Result<Self, StoreError> {
        [Self::Queued, Self::Running, Self::Done, Self::Failed]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| StoreError::Damaged(format!("a job of status {text:?}")))
    }
}

/// One job.
pub struct Job {
    /// UUID.
    pub id: String,
    /// What is to be done.
    pub kind: String,
    /// How far it is.
    pub status: JobStatus,
    /// JSON, of a job that is done.
    pub result: Option<String>,
    /// When it was asked for.
    pub created_at: Micros,
    /// When it was begun.
    pub started_at: Option<Micros>,
    /// When it ended.
    pub finished_at: Option<Micros>,
}

type Columns = (String, String, String, Option<String>, Micros, Option<Micros>, Option<Micros>);

/// What a [`Job`] is read from. The error stays in its row, for whoever runs the server: it may tell too much.
const COLUMNS: (
    jobs::id,
    jobs::kind,
    jobs::status,
    jobs::result,
    jobs::created_at,
    jobs::started_at,
    jobs::finished_at,
) = (jobs::id, jobs::kind, jobs::status, jobs::result, jobs::created_at, jobs::started_at, jobs::finished_at);

impl Job {
    fn from_columns(columns: Columns) -> Result<Self, StoreError> {
        let (id, kind, status, result, created_at, started_at, finished_at) = columns;
        let status = JobStatus::parse(&status)?;
        Ok(Self { id, kind, status, result, created_at, started_at, finished_at })
    }
}

impl Database {
    /// Adds a job to the queue. Returns its id.
    ///
    /// # Errors
    /// The database fails.
    pub async fn add_job(&self, kind: &'static str) -> Result<String, StoreError> {
        let id = Uuid::now_v7().to_string();
        self.write(move |connection| {
            diesel::insert_into(jobs::table)
                .values((
                    jobs::id.eq(&id),
                    jobs::kind.eq(kind),
                    jobs::status.eq(JobStatus::Queued.as_str()),
                    jobs::created_at.eq(now()),
                ))
                .execute(connection)?;
            Ok(id)
        })
        .await
    }

    /// A job by its id.
    ///
    /// # Errors
    /// The database fails.
    pub async fn job(&self, id: String) -> Result<Option<Job>, StoreError> {
        self.read(move |connection| {
            jobs::table
                .find(id)
                .select(COLUMNS)
                .first::<Columns>(connection)
                .optional()?
                .map(Job::from_columns)
                .transpose()
        })
        .await
    }

    /// Takes the oldest waiting job and marks it as running.
    ///
    /// # Errors
    /// The database fails.
    pub async fn claim_job(&self) -> Result<Option<Job>, StoreError> {
        self.write(|connection| {
            let oldest = jobs::table
                .filter(jobs::status.eq(JobStatus::Queued.as_str()))
                .order((jobs::created_at, jobs::id))
                .select(COLUMNS)
                .first::<Columns>(connection)
                .optional()?;
            let Some(columns) = oldest else { return Ok(None) };
            let mut job = Job::from_columns(columns)?;
            job.status = JobStatus::Running;
            job.started_at = Some(now());
            diesel::update(jobs::table.find(&job.id))
                .set((jobs::status.eq(job.status.as_str()), jobs::started_at.eq(job.started_at)))
                .execute(connection)?;
            Ok(Some(job))
        })
        .await
    }

    /// Ends a job with its result (JSON), or with what went wrong.
    ///
    /// # Errors
    /// The database fails.
    pub async fn finish_job(&self, id: String, outcome: Result<String, String>) -> Result<(), StoreError> {
        self.write(move |connection| {
            let (status, result, error) = match outcome {
                Ok(result) => (JobStatus::Done, Some(result), None),
                Err(error) => (JobStatus::Failed, None, Some(error)),
            };
            diesel::update(jobs::table.find(&id))
                .set((
                    jobs::status.eq(status.as_str()),
                    jobs::result.eq(result),
                    jobs::error.eq(error),
                    jobs::finished_at.eq(Some(now())),
                ))
                .execute(connection)?;
            Ok(())
        })
        .await
    }

    /// Puts jobs back into the queue that a process took and did not end. Returns how many.
    ///
    /// # Errors
    /// The database fails.
    pub async fn requeue_abandoned_jobs(&self) -> Result<usize, StoreError> {
        self.write(|connection: &mut AnyConnection| {
            let abandoned = jobs::table.filter(jobs::status.eq(JobStatus::Running.as_str()));
            Ok(diesel::update(abandoned)
                .set((jobs::status.eq(JobStatus::Queued.as_str()), jobs::started_at.eq(None::<Micros>)))
                .execute(connection)?)
        })
        .await
    }
}
