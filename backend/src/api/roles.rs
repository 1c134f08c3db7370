//! Which calls a process answers, by its role.

use actix_web::{
    Error,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    middleware::Next,
    web,
};

use super::State;
use crate::{config::ServerRole, error::ApiError};

/// Answers a call that a process of another role serves, and hands on every other one.
///
/// # Errors
/// Those of the request.
pub async fn serve_role(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let role = request.app_data::<web::Data<State>>().map_or(ServerRole::All, |state| state.config.role);
    // What is at no path is so for every role.
    let served_by = request.match_pattern().map_or(ServerRole::All, |pattern| role_of(&pattern));
    if role == served_by || role == ServerRole::All || served_by == ServerRole::All {
        Ok(next.call(request).await?.map_into_left_body())
    } else {
        let error = ApiError::OtherRole { role: role.as_str(), served_by: served_by.as_str() };
        // An answer, not an error: what is outside of this logs answers.
        Ok(request.error_response(error).map_into_right_body())
    }
}

/// The role that the call at a path belongs to; [`ServerRole::All`] for what every process answers about itself.
pub fn role_of(path: &str) -> ServerRole {
    match path {
        "/" | "/startupz" | "/livez" | "/readyz" | "/openapi.json" | "/docs" | "/debug/IP"
        | "/debug/node-name" => ServerRole::All,
        _ if path.starts_with("/docs/") => ServerRole::All,
        _ if path.starts_with("/face-recognition/") => ServerRole::Recognize,
        _ => ServerRole::Manage,
    }
}
