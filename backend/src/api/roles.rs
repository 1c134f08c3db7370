//! The calls that a process serves, by its role.

use actix_web::{
    Error,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    middleware::Next,
    web,
};

use super::{State, routes};
use crate::{config::ServerRole, error::ApiError};

/// Rejects calls that processes of another role serve.
///
/// # Errors
/// Those of the request.
pub async fn serve_role(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let role =
        request.app_data::<web::Data<State>>().map_or(ServerRole::All, |state| state.config.deployment.role);
    let served_by = match request.match_pattern() {
        // An unknown path is unknown to every role.
        None => ServerRole::All,
        Some(pattern) => routes::by_pattern(&pattern).map_or(ServerRole::Manage, |route| route.role),
    };
    if role == served_by || role == ServerRole::All || served_by == ServerRole::All {
        Ok(next.call(request).await?.map_into_left_body())
    } else {
        let error = ApiError::OtherRole { role: role.as_str(), served_by: served_by.as_str() };
        // Returns a response, not an error: the outer middleware logs responses.
        Ok(request.error_response(error).map_into_right_body())
    }
}
