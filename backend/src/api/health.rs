//! `/livez` and `/readyz`, for whoever restarts the server or sends it traffic.

use actix_web::web;
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::Serialize;

use super::State;
use crate::error::ApiError;

/// That it works.
#[derive(Serialize, Apiv2Schema)]
pub struct Health {
    /// Always `ok`.
    #[openapi(example = "ok")]
    status: &'static str,
}

/// Whether the process answers
#[api_v2_operation]
pub async fn live() -> web::Json<Health> {
    web::Json(Health { status: "ok" })
}

/// Whether the database answers
///
/// The networks are loaded as well: without them the server would not have started.
#[api_v2_operation]
pub async fn ready(state: web::Data<State>) -> Result<web::Json<Health>, ApiError> {
    state.database.ping().await?;
    Ok(web::Json(Health { status: "ok" }))
}
