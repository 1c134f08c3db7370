//! `/livez` and `/readyz`, for whoever restarts the server or sends it traffic.

use actix_web::{Responder, web};
use serde::Serialize;

use super::State;
use crate::error::ApiError;

#[derive(Serialize)]
struct Health {
    status: &'static str,
}

/// The process answers.
pub async fn live() -> impl Responder {
    web::Json(Health { status: "ok" })
}

/// The database answers and the networks are loaded: without them the server would not have started.
pub async fn ready(state: web::Data<State>) -> Result<impl Responder, ApiError> {
    state.database.ping().await?;
    Ok(web::Json(Health { status: "ok" }))
}
