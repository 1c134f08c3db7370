//! `/model`: training.

use actix_web::{http::header, web};
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::Deserialize;

use super::{
    State,
    answer::{Answer, OneOf},
    jobs::JobAnswer,
};
use crate::{error::ApiError, store::sql::JobStatus};

/// Query of a training.
#[derive(Deserialize, Apiv2Schema)]
pub struct TrainQuery {
    /// Whether to answer only when the new model is there. `false` by default.
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

/// Trains on the stored embeddings
///
/// Answers 202 and a job that goes on, or with `wait=true` 200 and the job with its result. The new model answers as
/// soon as it is there; until then the one before it does.
#[api_v2_operation]
pub async fn optimized_train(
    state: web::Data<State>,
    query: web::Query<TrainQuery>,
) -> Result<OneOf<Answer<JobAnswer>, Answer<JobAnswer, 202>>, ApiError> {
    let wait = query.wait()?;
    let id = state.trainer.enqueue().await?;
    let location = format!("/jobs/{id}");
    let job = if wait { state.trainer.wait(&id).await? } else { state.database.job(id).await? };
    let job = job.ok_or(ApiError::JobNotFound)?;
    if job.status == JobStatus::Failed {
        return Err(ApiError::TrainingFailed);
    }
    let job = JobAnswer::try_from(job)?;
    Ok(if wait {
        OneOf::First(Answer::new(job).header(header::LOCATION, location))
    } else {
        OneOf::Second(Answer::new(job).header(header::LOCATION, location))
    })
}
