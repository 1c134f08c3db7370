//! `/startupz`, `/livez` and `/readyz`, for whoever starts the server, restarts it, or sends it traffic.

use std::sync::atomic::Ordering;

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

/// Whether the server has started
///
/// Nothing is answered before: the schema is new enough, the networks are loaded, and who is in the ledger of erasures
/// is erased.
#[api_v2_operation]
pub async fn started() -> web::Json<Health> {
    web::Json(Health { status: "ok" })
}

/// Whether the process answers
///
/// Whatever else is away: a restart of the server would not bring it back.
#[api_v2_operation]
pub async fn live() -> web::Json<Health> {
    web::Json(Health { status: "ok" })
}

/// Whether requests may come
///
/// Not while the database is away, and not any more once the server is about to stop. The networks are loaded: without
/// them the server would not have started.
#[api_v2_operation]
pub async fn ready(state: web::Data<State>) -> Result<web::Json<Health>, ApiError> {
    if state.draining.load(Ordering::Relaxed) {
        return Err(ApiError::Draining);
    }
    state.database.ping().await?;
    Ok(web::Json(Health { status: "ok" }))
}
