//! `/model`: training, and the active model.

use std::collections::HashSet;

use actix_web::{http::header, web};
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::{Deserialize, Serialize};

use super::{
    ListMeta, State,
    jobs::JobBody,
    response::{JsonResponse, NoContent, OneOf},
    rfc3339,
};
use crate::{
    domain::{Job, JobFailure, JobKind, JobStatus, ModelCalibration, PersonRef},
    error::ApiError,
    store::sql::ModelRow,
};

/// All models.
#[derive(Serialize, Apiv2Schema)]
pub struct Models {
    /// The newest first.
    models: Vec<Model>,
    meta: ListMeta,
}

/// A trained model.
#[derive(Serialize, Apiv2Schema)]
pub struct Model {
    /// Grows with each training.
    #[openapi(minimum = 1, example = "7")]
    version: i64,
    /// Whether it is the active one.
    #[openapi(example = "true")]
    active: bool,
    /// When it was trained.
    #[openapi(example = "2024-05-06T07:08:10.4Z")]
    created_at: String,
    /// The network whose embeddings it takes.
    #[openapi(example = "mobilefacenet")]
    embedder: String,
    /// People that it knows.
    #[openapi(minimum = 0, example = "10")]
    people: i64,
    /// Images that it was trained on.
    #[openapi(minimum = 0, example = "60")]
    images: i64,
    /// How long the training took, milliseconds.
    #[openapi(minimum = 0, example = "412")]
    duration_ms: i64,
    /// The threshold that its training chose, and what is to be expected of it. Null for models from before there was this,
    /// and for such as know nobody.
    calibration: Option<ModelCalibration>,
}

/// Query of a job.
#[derive(Deserialize, Apiv2Schema)]
pub struct TrainQuery {
    /// Whether to respond only when the job is done. `false` by default.
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

/// All models, the newest first
#[api_v2_operation]
pub async fn list(state: web::Data<State>) -> Result<web::Json<Models>, ApiError> {
    let (rows, active) = state.database.models().await?;
    let models = Model::of(&state, rows, active).await?;
    let meta = ListMeta { total: models.len() };
    Ok(web::Json(Models { models, meta }))
}

/// A model and how its threshold was calibrated
#[api_v2_operation]
pub async fn get(state: web::Data<State>, version: web::Path<String>) -> Result<web::Json<Model>, ApiError> {
    let version: i64 = version.parse().map_err(|_| ApiError::ModelNotFound)?;
    let row = state.database.model(version).await?;
    let active = state.database.active_model().await?.map(|active| active.version);
    Ok(web::Json(Model::of_one(&state, row, active).await?))
}

/// Activates a model that was trained before
///
/// It is loaded and run once first; until then the previous one stays active.
#[api_v2_operation]
pub async fn activate(
    state: web::Data<State>,
    version: web::Path<String>,
) -> Result<web::Json<Model>, ApiError> {
    let version: i64 = version.parse().map_err(|_| ApiError::ModelNotFound)?;
    let row = state.database.model(version).await?;
    state.loader.load(&row).await.map_err(ApiError::ModelUnusable)?;
    state.database.activate_model(version).await?;
    state.loader.refresh().await?;
    let active = Some(row.version);
    Ok(web::Json(Model::of_one(&state, row, active).await?))
}

/// Removes a model that is not active
///
/// It cannot be activated again, and no other model gets its version.
#[api_v2_operation]
pub async fn remove(state: web::Data<State>, version: web::Path<String>) -> Result<NoContent, ApiError> {
    let version: i64 = version.parse().map_err(|_| ApiError::ModelNotFound)?;
    let blob = state.database.remove_model(version).await?;
    // If this fails, the next sweep removes the blob.
    state.blobs.delete(&blob).await?;
    Ok(NoContent::new())
}

/// A queued job, or with `wait=true` one that is done.
pub type Started = OneOf<JsonResponse<JobBody>, JsonResponse<JobBody, 202>>;

/// Trains on the stored embeddings
///
/// Responds 202 with a queued job, or with `wait=true` 200 with the job and its result. A request while such a job waits
/// in the queue gets that job. The new model becomes active
/// once it is trained; until then the previous one stays active.
#[api_v2_operation]
pub async fn optimized_train(
    state: web::Data<State>,
    query: web::Query<TrainQuery>,
) -> Result<Started, ApiError> {
    start(&state, &query, JobKind::OptimizedTrain).await
}

/// Trains from the images and stores no embeddings
///
/// Responds 202 with a queued job, or with `wait=true` 200 with the job and its result. A request while such a job waits
/// in the queue gets that job. The new model becomes active
/// once it is trained; until then the previous one stays active.
#[api_v2_operation]
pub async fn train(state: web::Data<State>, query: web::Query<TrainQuery>) -> Result<Started, ApiError> {
    start(&state, &query, JobKind::Train).await
}

/// Recomputes the embeddings of all images
///
/// The dataset is locked meanwhile: changes of it are rejected with 423. Responds 202 with a queued job, or with
/// `wait=true` 200 with the job and its result.
#[api_v2_operation]
pub async fn generate_emb(
    state: web::Data<State>,
    query: web::Query<TrainQuery>,
) -> Result<Started, ApiError> {
    start(&state, &query, JobKind::GenerateEmb).await
}

/// Queues a job, and waits for its end if the query says so.
pub async fn start(state: &State, query: &TrainQuery, kind: JobKind) -> Result<Started, ApiError> {
    let wait = query.wait()?;
    let job = state.trainer.enqueue(kind).await?;
    started(state, wait, job).await
}

/// Queues a search of stored unknown faces for a person, and waits for its end if the query says so.
pub async fn start_search(state: &State, query: &TrainQuery, who: &PersonRef) -> Result<Started, ApiError> {
    let wait = query.wait()?;
    let job = state.trainer.search_past(who).await?;
    started(state, wait, job).await
}

/// Returns the response about a queued job, at once or, with `wait`, after its end.
async fn started(state: &State, wait: bool, mut job: Job) -> Result<Started, ApiError> {
    let location = format!("{}/jobs/{}", state.public_url.as_deref().unwrap_or_default(), job.id);
    if !wait {
        let answer = JsonResponse::new(JobBody::of(state, job).await?);
        return Ok(OneOf::Second(answer.header(header::LOCATION, location)));
    }
    job = state.trainer.wait(&job.id).await?.ok_or(ApiError::JobNotFound)?;
    match job.status {
        JobStatus::Failed => Err(ApiError::JobFailed { reason: job.failure.unwrap_or(JobFailure::Internal) }),
        JobStatus::Cancelled => Err(ApiError::JobCancelled),
        JobStatus::Done | JobStatus::Queued | JobStatus::Running => {
            let answer = JsonResponse::new(JobBody::of(state, job).await?);
            Ok(OneOf::First(answer.header(header::LOCATION, location)))
        }
    }
}

impl Model {
    async fn of_one(state: &State, row: ModelRow, active: Option<i64>) -> Result<Self, ApiError> {
        Self::of(state, vec![row], active).await?.pop().ok_or(ApiError::ModelNotFound)
    }

    /// Returns models with the current names of the people in their calibrations. `active` is the version of the active
    /// one.
    async fn of(state: &State, rows: Vec<ModelRow>, active: Option<i64>) -> Result<Vec<Self>, ApiError> {
        let mut models =
            rows.into_iter().map(|row| Self::new(row, active)).collect::<Result<Vec<_>, ApiError>>()?;
        let mut calibrations: Vec<&mut ModelCalibration> =
            models.iter_mut().filter_map(|model| model.calibration.as_mut()).collect();
        let ids: HashSet<String> =
            calibrations.iter().flat_map(|calibration| calibration.person_ids()).collect();
        if !ids.is_empty() {
            let names = state.database.face_ids_of(ids).await?;
            calibrations.iter_mut().for_each(|calibration| calibration.name_people(&names));
        }
        Ok(models)
    }

    fn new(row: ModelRow, active: Option<i64>) -> Result<Self, ApiError> {
        let calibration = row.calibration().unwrap_or_else(|error| {
            // The response is useful without this calibration: it has the other models, and the rest of this one.
            tracing::error!(version = row.version, %error, "cannot read a calibration");
            None
        });
        Ok(Self {
            version: row.version,
            active: active == Some(row.version),
            created_at: rfc3339(row.created_at)?,
            embedder: row.embedder,
            people: row.people,
            images: row.images,
            duration_ms: row.duration_ms,
            calibration,
        })
    }
}
