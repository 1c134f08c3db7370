//! `/jobs`: what became of long work.

use actix_web::web;
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::Serialize;

use super::{State, rfc3339};
use crate::{
    error::{ApiError, ErrorDetail},
    store::{
        StoreError,
        sql::{Job, JobStatus},
    },
    train::TrainingResult,
};

/// How far long work is.
#[derive(Serialize, Apiv2Schema)]
#[openapi(rename = "Job")]
pub struct JobAnswer {
    /// What `/jobs/{job_id}` takes.
    #[openapi(example = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c")]
    job_id: String,
    /// What is done, the last part of the path that asked for it.
    #[openapi(example = "optimized-train")]
    kind: String,
    /// How far it is.
    #[openapi(example = "done")]
    status: JobStatus,
    /// Of a job that is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<TrainingResult>,
    /// Of a job that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorDetail>,
    /// When it was asked for.
    #[openapi(example = "2024-05-06T07:08:09Z")]
    created_at: String,
    /// When it was begun, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[openapi(example = "2024-05-06T07:08:09.1Z")]
    started_at: Option<String>,
    /// When it ended, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[openapi(example = "2024-05-06T07:08:10.4Z")]
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
            status: job.status,
            result,
            error: (job.status == JobStatus::Failed).then(|| ApiError::TrainingFailed.detail()),
            created_at: rfc3339(job.created_at)?,
            started_at: job.started_at.map(rfc3339).transpose()?,
            finished_at: job.finished_at.map(rfc3339).transpose()?,
        })
    }
}

/// How far a job is
#[api_v2_operation]
pub async fn get(state: web::Data<State>, id: web::Path<String>) -> Result<web::Json<JobAnswer>, ApiError> {
    let job = state.database.job(id.into_inner()).await?.ok_or(ApiError::JobNotFound)?;
    Ok(web::Json(JobAnswer::try_from(job)?))
}
