//! `/debug`: for whoever looks into a deployment.

use actix_web::{Responder, web};
use serde::Serialize;

use super::State;
use crate::{error::ApiError, store::sql::Lease};

#[derive(Serialize)]
struct Unblocked {
    /// Whether anything held the dataset's lease.
    was_blocked: bool,
}

/// Ends the dataset's lease at once. The job that held it fails, and the dataset may change.
pub async fn unblock_dataset(state: web::Data<State>) -> Result<impl Responder, ApiError> {
    let was_blocked = state.database.break_lease(Lease::Dataset).await?;
    if was_blocked {
        tracing::warn!("the dataset was unblocked on request");
    }
    Ok(web::Json(Unblocked { was_blocked }))
}
