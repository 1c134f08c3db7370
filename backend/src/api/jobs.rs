//! `/jobs`: how far long work is, and its end.

use actix_web::{HttpResponse, Responder, web};
use serde::Serialize;
use serde_json::Value;

use super::{State, rfc3339};
use crate::{
    error::{ApiError, ErrorDetail},
    store::{
        StoreError,
        sql::{Cancelled, Job, JobStatus},
    },
};

/// A job, as answers describe it.
#[derive(Serialize)]
pub struct JobAnswer {
    job_id: String,
    kind: &'static str,
    status: &'static str,
    progress: Progress,
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

/// How far a job is.
#[derive(Serialize)]
pub struct Progress {
    images_done: i64,
    /// Null before they were counted.
    images_total: Option<i64>,
    /// 0 to 100; null before the images were counted.
    percent: Option<i64>,
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
        let percent = match (job.status, job.images_total) {
            (JobStatus::Done, Some(_)) => Some(100),
            (_, Some(total)) => Some((job.images_done * 100).checked_div(total).unwrap_or(0)),
            (_, None) => None,
        };
        let progress = Progress { images_done: job.images_done, images_total: job.images_total, percent };
        Ok(Self {
            job_id: job.id,
            kind: job.kind.as_str(),
            status: job.status.as_str(),
            progress,
            result,
            error: (job.status == JobStatus::Failed)
                .then(|| ApiError::JobFailed { reason: job.error.unwrap_or_default() }.detail()),
            created_at: rfc3339(job.created_at)?,
            started_at: job.started_at.map(rfc3339).transpose()?,
            finished_at: job.finished_at.map(rfc3339).transpose()?,
        })
    }
}

/// How far a job is.
pub async fn get(state: web::Data<State>, id: web::Path<String>) -> Result<impl Responder, ApiError> {
    let job = state.database.job(&id).await?.ok_or(ApiError::JobNotFound)?;
    Ok(web::Json(JobAnswer::try_from(job)?))
}

/// Ends a job: one that waits at once (200), one that runs soon (202).
pub async fn cancel(state: web::Data<State>, id: web::Path<String>) -> Result<HttpResponse, ApiError> {
    match state.database.cancel_job(&id).await? {
        Cancelled::AtOnce(job) => Ok(HttpResponse::Ok().json(JobAnswer::try_from(job)?)),
        Cancelled::Asked(job) => Ok(HttpResponse::Accepted().json(JobAnswer::try_from(job)?)),
        Cancelled::TooLate => Err(ApiError::JobEnded),
        Cancelled::NotFound => Err(ApiError::JobNotFound),
    }
}
