//! `/jobs`: the progress of long work, and cancelling it.

use std::collections::HashSet;

use actix_web::web;
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::{
    State,
    page::{self, LIST_LIMIT, PageMeta, limit_of},
    response::{JsonResponse, OneOf},
    rfc3339, trail,
};
use crate::{
    domain::{Job, JobFailure, JobKind, JobStatus},
    error::{ApiError, ErrorDetail},
    store::{StoreError, sql::CancelOutcome},
    train::TrainingResult,
};

/// Long work and its progress.
#[derive(Serialize, Apiv2Schema)]
#[openapi(rename = "Job")]
pub struct JobBody {
    /// What `/jobs/{job_id}` takes.
    #[openapi(example = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c")]
    job_id: String,
    kind: JobKind,
    #[openapi(example = "done")]
    status: JobStatus,
    progress: Progress,
    /// Of a job that is done: its result.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    /// Of a job that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorDetail>,
    /// When it was requested.
    #[openapi(example = "2024-05-06T07:08:09Z")]
    created_at: String,
    /// When it was started, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[openapi(example = "2024-05-06T07:08:09.1Z")]
    started_at: Option<String>,
    /// When it ended, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[openapi(example = "2024-05-06T07:08:10.4Z")]
    finished_at: Option<String>,
}

/// A page of jobs.
#[derive(Serialize, Apiv2Schema)]
pub struct Jobs {
    /// The newest first.
    jobs: Vec<JobBody>,
    meta: PageMeta,
}

/// Query of the list.
#[derive(Deserialize, Apiv2Schema)]
#[serde(deny_unknown_fields)]
pub struct JobsQuery {
    /// Only those with this status.
    status: Option<String>,
    /// Entries of a page, 100 by default.
    limit: Option<String>,
    /// `next_cursor` of the page before, with otherwise the same query.
    cursor: Option<String>,
}

/// The progress of a job.
#[derive(Serialize, Apiv2Schema)]
pub struct Progress {
    /// Images processed so far.
    #[openapi(minimum = 0, example = "60")]
    images_done: i64,
    /// Images in total. Null before they were counted.
    #[openapi(minimum = 0, example = "60")]
    images_total: Option<i64>,
    /// Percentage of the images. Null before they were counted.
    #[openapi(minimum = 0, maximum = 100, example = "100")]
    percent: Option<i64>,
}

/// The result of a job, as its row has it.
enum JobResult {
    Training(Box<TrainingResult>),
    Other(Value),
}

impl JobBody {
    /// Returns a job, with the current names of the people in its result.
    pub async fn of(state: &State, job: Job) -> Result<Self, ApiError> {
        let mut bodies = Self::of_all(state, vec![job]).await?;
        bodies.pop().ok_or(ApiError::JobNotFound)
    }

    async fn of_all(state: &State, jobs: Vec<Job>) -> Result<Vec<Self>, ApiError> {
        let mut results = jobs.iter().map(JobResult::of).collect::<Result<Vec<_>, ApiError>>()?;
        let mut trainings: Vec<&mut TrainingResult> =
            results.iter_mut().filter_map(|result| result.as_mut().and_then(JobResult::training)).collect();
        let ids: HashSet<String> = trainings.iter().flat_map(|result| result.person_ids()).collect();
        if ids.is_empty() {
            trail::shows_nobody();
        } else {
            let names = state.database.face_ids_of(ids).await?;
            trainings.iter_mut().for_each(|result| result.name_people(&names));
        }
        let with_results = jobs.into_iter().zip(results);
        with_results
            .map(|(job, result)| Self::new(job, result.map(JobResult::into_json).transpose()?))
            .collect()
    }

    fn new(job: Job, result: Option<Value>) -> Result<Self, ApiError> {
        let percent = match (job.status, job.images_total) {
            (JobStatus::Done, Some(_)) => Some(100),
            (_, Some(total)) => Some((job.images_done * 100).checked_div(total).unwrap_or(0)),
            (_, None) => None,
        };
        let progress = Progress { images_done: job.images_done, images_total: job.images_total, percent };
        Ok(Self {
            job_id: job.id,
            kind: job.kind,
            status: job.status,
            progress,
            result,
            error: (job.status == JobStatus::Failed).then(|| {
                ApiError::JobFailed { reason: job.failure.unwrap_or(JobFailure::Internal) }.detail()
            }),
            created_at: rfc3339(job.created_at)?,
            started_at: job.started_at.map(rfc3339).transpose()?,
            finished_at: job.finished_at.map(rfc3339).transpose()?,
        })
    }
}

impl JobResult {
    fn of(job: &Job) -> Result<Option<Self>, ApiError> {
        let Some(text) = &job.result else { return Ok(None) };
        let result = match job.kind {
            JobKind::Train | JobKind::OptimizedTrain => {
                serde_json::from_str(text).map(|result| Self::Training(Box::new(result)))
            }
            JobKind::GenerateEmb | JobKind::ReclusterUnknowns | JobKind::SearchPast => {
                serde_json::from_str(text).map(Self::Other)
            }
        };
        Ok(Some(result.map_err(|error| StoreError::Damaged(format!("the result of a job: {error}")))?))
    }

    fn training(&mut self) -> Option<&mut TrainingResult> {
        match self {
            Self::Training(result) => Some(result),
            Self::Other(_) => None,
        }
    }

    fn into_json(self) -> Result<Value, ApiError> {
        match self {
            Self::Training(result) => {
                serde_json::to_value(result).map_err(|error| ApiError::Internal(error.into()))
            }
            Self::Other(result) => Ok(result),
        }
    }
}

/// The jobs, the newest first
#[api_v2_operation]
pub async fn list(
    state: web::Data<State>,
    query: web::Query<JobsQuery>,
) -> Result<web::Json<Jobs>, ApiError> {
    let JobsQuery { status, limit, cursor } = query.into_inner();
    let status = status.map(status_of).transpose()?;
    let limit = limit.map_or(Ok(LIST_LIMIT), limit_of)?;
    let scope = format!("jobs {}", status.map_or("", JobStatus::as_str));
    let position = |text: String| page::position_of(&text, &scope).ok_or(ApiError::InvalidCursor);
    let before = cursor.map(position).transpose()?.map(|id| Uuid::from_u128(id).to_string());
    // One row more shows whether there is a next page.
    let (rows, more) = page::cut(state.database.jobs(status, before, i64::from(limit) + 1).await?, limit);
    let next_cursor = rows.last().filter(|_| more).map(|last| cursor_of(&last.id, &scope)).transpose()?;
    let jobs = JobBody::of_all(&state, rows).await?;
    Ok(web::Json(Jobs { jobs, meta: PageMeta { next_cursor } }))
}

fn status_of(text: String) -> Result<JobStatus, ApiError> {
    let status = JobStatus::ALL.into_iter().find(|status| status.as_str() == text);
    status.ok_or_else(|| {
        let all: Vec<&str> = JobStatus::ALL.map(JobStatus::as_str).into();
        ApiError::InvalidQuery(format!("status is {text:?}, it must be one of {}", all.join(", ")))
    })
}

fn cursor_of(id: &str, scope: &str) -> Result<String, ApiError> {
    let id = Uuid::parse_str(id).map_err(|_| StoreError::Damaged("the id of a job".into()))?;
    Ok(page::cursor_of(id.as_u128(), scope))
}

/// A job and its progress
#[api_v2_operation]
pub async fn get(state: web::Data<State>, id: web::Path<String>) -> Result<web::Json<JobBody>, ApiError> {
    let job = state.database.job(&id).await?.ok_or(ApiError::JobNotFound)?;
    Ok(web::Json(JobBody::of(&state, job).await?))
}

/// Cancels a job
///
/// A queued job ends at once (200), a running one soon (202).
#[api_v2_operation]
pub async fn cancel(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<OneOf<JsonResponse<JobBody>, JsonResponse<JobBody, 202>>, ApiError> {
    match state.database.cancel_job(&id).await? {
        CancelOutcome::Cancelled(job) => {
            state.metrics.job_finished(job.kind, job.status);
            Ok(OneOf::First(JsonResponse::new(JobBody::of(&state, job).await?)))
        }
        CancelOutcome::Requested(job) => {
            Ok(OneOf::Second(JsonResponse::new(JobBody::of(&state, job).await?)))
        }
        CancelOutcome::AlreadyEnded => Err(ApiError::JobEnded),
        CancelOutcome::NotFound => Err(ApiError::JobNotFound),
    }
}
