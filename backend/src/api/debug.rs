//! `/debug`: for whoever looks into a deployment.

use actix_web::web;
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::Serialize;

use super::State;
use crate::{error::ApiError, store::sql::Lease};

/// What became of the lock of the dataset.
#[derive(Serialize, Apiv2Schema)]
pub struct Unblocked {
    /// Whether anything held it.
    #[openapi(example = "true")]
    was_blocked: bool,
}

/// Ends the lock of the dataset at once
///
/// The job that held it fails, and the dataset may change.
#[api_v2_operation]
pub async fn unblock_dataset(state: web::Data<State>) -> Result<web::Json<Unblocked>, ApiError> {
    let was_blocked = state.database.break_lease(Lease::Dataset).await?;
    if was_blocked {
        tracing::warn!("the dataset was unblocked on request");
    }
    Ok(web::Json(Unblocked { was_blocked }))
}
