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
    // An unknown path is unknown to every role.
    let pattern = request.match_pattern();
    let route = pattern.as_deref().and_then(routes::by_pattern);
    let served_by = route.map_or(ServerRole::All, |route| route.role);
    if role == served_by || role == ServerRole::All || served_by == ServerRole::All {
        Ok(next.call(request).await?.map_into_left_body())
    } else {
        let error = ApiError::OtherRole { role: role.as_str(), served_by: served_by.as_str() };
        // A response, not an error: the outer middleware logs responses.
        Ok(request.error_response(error).map_into_right_body())
    }
}
