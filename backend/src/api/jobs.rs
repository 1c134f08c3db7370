//! `/jobs`: what became of long work.

use actix_web::{Responder, web};
use serde::Serialize;
use serde_json::Value;

use super::{State, rfc3339};
use crate::{
    error::{ApiError, ErrorDetail},
    store::{
        StoreError,
        sql::{Job, JobStatus},
    },
};

/// A job, as answers describe it.
#[derive(Serialize)]
pub struct JobAnswer {
    job_id: String,
    kind: String,
    status: &'static str,
    /// Of a job that is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    /// Of a job that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorDetail>,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<String>,
}

impl TryFrom<Job> for JobAnswer {
    type Error = ApiError;

    fn try_from(job: Job) -> Result<Self, ApiError> {
        let result = job
            .result
            .as_deref()
            .map(serde_json::from_str)
            .transpose()
            .map_err(|error| StoreError::Damaged(format!("the result of a job: {error}")))?;
        Ok(Self {
            job_id: job.id,
            kind: job.kind,
            status: job.status.as_str(),
            result,
            error: (job.status == JobStatus::Failed).then(|| ApiError::TrainingFailed.detail()),
            created_at: rfc3339(job.created_at)?,
            started_at: job.started_at.map(rfc3339).transpose()?,
            finished_at: job.finished_at.map(rfc3339).transpose()?,
        })
    }
}

/// How far a job is.
pub async fn get(state: web::Data<State>, id: web::Path<String>) -> Result<impl Responder, ApiError> {
    let job = state.database.job(id.into_inner()).await?.ok_or(ApiError::JobNotFound)?;
    Ok(web::Json(JobAnswer::try_from(job)?))
}
