//! `/model`: training, and which model answers.

use actix_web::{HttpResponse, Responder, http::header, web};
use serde::{Deserialize, Serialize};

use super::{State, jobs::JobAnswer, rfc3339};
use crate::{
    error::ApiError,
    store::sql::{JobKind, JobStatus, ModelRow},
};

#[derive(Serialize)]
struct Models {
    models: Vec<Model>,
    meta: Meta,
}

#[derive(Serialize)]
struct Model {
    version: i64,
    /// Whether this one answers.
    active: bool,
    created_at: String,
    embedder: String,
    people: i64,
    images: i64,
    duration_ms: i64,
}

#[derive(Serialize)]
struct Meta {
    total: usize,
}

/// Query of a training.
#[derive(Deserialize)]
pub struct TrainQuery {
    /// Whether to answer only when the new model is there: `true` or `false`.
    wait: Option<String>,
}

impl TrainQuery {
    fn wait(&self) -> Result<bool, ApiError> {
        match self.wait.as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => {
                Err(ApiError::InvalidQuery(format!("wait is {other:?}, it must be \"true\" or \"false\"")))
            }
        }
    }
}

/// All models, the newest first.
pub async fn list(state: web::Data<State>) -> Result<impl Responder, ApiError> {
    let (rows, active) = state.database.models().await?;
    let models = rows
        .into_iter()
        .map(|row| {
            let is_active = active == Some(row.version);
            Model::new(row, is_active)
        })
        .collect::<Result<Vec<_>, ApiError>>()?;
    let meta = Meta { total: models.len() };
    Ok(web::Json(Models { models, meta }))
}

/// Has a model answer that was trained before, once it was read and tried.
pub async fn activate(
    state: web::Data<State>,
    version: web::Path<String>,
) -> Result<impl Responder, ApiError> {
    let version: i64 = version.parse().map_err(|_| ApiError::ModelNotFound)?;
    let row = state.database.model(version).await?;
    state.loader.load(&row).await.map_err(ApiError::ModelUnusable)?;
    state.database.activate_model(version).await?;
    state.loader.refresh().await?;
    Ok(web::Json(Model::new(row, true)?))
}

/// Trains on the stored embeddings: 202 and a job, or with `?wait=true` 200 and its result.
pub async fn optimized_train(
    state: web::Data<State>,
    query: web::Query<TrainQuery>,
) -> Result<HttpResponse, ApiError> {
    start(&state, &query, JobKind::OptimizedTrain).await
}

/// Trains from the images and stores no embeddings.
pub async fn train(state: web::Data<State>, query: web::Query<TrainQuery>) -> Result<HttpResponse, ApiError> {
    start(&state, &query, JobKind::Train).await
}

/// Computes the embeddings of all images anew; the dataset is locked meanwhile.
pub async fn generate_emb(
    state: web::Data<State>,
    query: web::Query<TrainQuery>,
) -> Result<HttpResponse, ApiError> {
    start(&state, &query, JobKind::GenerateEmb).await
}

async fn start(state: &State, query: &TrainQuery, kind: JobKind) -> Result<HttpResponse, ApiError> {
    let wait = query.wait()?;
    let mut job = state.trainer.enqueue(kind).await?;
    let location = (header::LOCATION, format!("/jobs/{}", job.id));
    if !wait {
        return Ok(HttpResponse::Accepted().insert_header(location).json(JobAnswer::try_from(job)?));
    }
    job = state.trainer.wait(&job.id).await?.ok_or(ApiError::JobNotFound)?;
    match job.status {
        JobStatus::Failed => Err(ApiError::JobFailed { reason: job.error.unwrap_or_default() }),
        JobStatus::Cancelled => Err(ApiError::JobCancelled),
        JobStatus::Done | JobStatus::Queued | JobStatus::Running => {
            Ok(HttpResponse::Ok().insert_header(location).json(JobAnswer::try_from(job)?))
        }
    }
}

impl Model {
    fn new(row: ModelRow, active: bool) -> Result<Self, ApiError> {
        Ok(Self {
            version: row.version,
            active,
            created_at: rfc3339(row.created_at)?,
            embedder: row.embedder,
            people: row.people,
            images: row.images,
            duration_ms: row.duration_ms,
        })
    }
}
