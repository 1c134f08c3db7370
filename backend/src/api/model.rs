//! `/model`: training.

use actix_web::{HttpResponse, http::header, web};
use serde::Deserialize;

use super::{State, jobs::JobAnswer};
use crate::{error::ApiError, store::sql::JobStatus};

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

/// Trains on the stored embeddings: 202 and a job, or with `?wait=true` 200 and its result.
pub async fn optimized_train(
    state: web::Data<State>,
    query: web::Query<TrainQuery>,
) -> Result<HttpResponse, ApiError> {
    let wait = query.wait()?;
    let id = state.trainer.enqueue().await?;
    let location = (header::LOCATION, format!("/jobs/{id}"));
    let job = if wait { state.trainer.wait(&id).await? } else { state.database.job(id).await? };
    let job = job.ok_or(ApiError::JobNotFound)?;
    if job.status == JobStatus::Failed {
        return Err(ApiError::TrainingFailed);
    }
    let mut answer = if wait { HttpResponse::Ok() } else { HttpResponse::Accepted() };
    Ok(answer.insert_header(location).json(JobAnswer::try_from(job)?))
}
