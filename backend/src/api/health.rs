//! `/startupz`, `/livez` and `/readyz`: the probes for startup, liveness and readiness.

use std::sync::atomic::Ordering;

use actix_web::web;
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::Serialize;

use super::State;
use crate::error::ApiError;

/// The server's health.
#[derive(Serialize, Apiv2Schema)]
pub struct Health {
    /// Always `ok`.
    #[openapi(example = "ok")]
    status: &'static str,
}

/// Whether the server has started
///
/// Then the schema is up to date, the networks are loaded, and the erasures of the ledger are applied. Before, the
/// server does not respond.
#[api_v2_operation]
pub async fn started() -> web::Json<Health> {
    web::Json(Health { status: "ok" })
}

/// Whether the process responds
///
/// Does not depend on anything else, which a restart of the server would not repair.
#[api_v2_operation]
pub async fn live() -> web::Json<Health> {
    web::Json(Health { status: "ok" })
}

/// Whether the server is ready for requests
///
/// Not while the database cannot be reached, nor while the server is shutting down.
#[api_v2_operation]
pub async fn ready(state: web::Data<State>) -> Result<web::Json<Health>, ApiError> {
    if state.draining.load(Ordering::Relaxed) {
        return Err(ApiError::Draining);
    }
    state.database.ping().await?;
    Ok(web::Json(Health { status: "ok" }))
}
