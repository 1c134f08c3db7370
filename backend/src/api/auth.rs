//! Authorisation by bearer tokens, before anything of a request's body is read.

use std::sync::Arc;

use actix_web::{
    Error,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::{Method, header},
    middleware::Next,
    web,
};

use super::{State, routes};
use crate::{
    error::ApiError,
    tokens::{Role, Tokens},
};

/// Rejects requests whose token does not allow the call. A server without a file of tokens accepts all.
///
/// # Errors
/// Those of the request.
pub async fn authorise(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let tokens = request.app_data::<web::Data<State>>().and_then(|state| state.tokens.as_ref());
    match tokens.map(|tokens| allowed(&request, tokens)) {
        // A response, not an error: the outer middleware logs responses.
        Some(Err(error)) => Ok(request.error_response(error).map_into_right_body()),
        None | Some(Ok(())) => Ok(next.call(request).await?.map_into_left_body()),
    }
}

fn allowed(request: &ServiceRequest, tokens: &Arc<Tokens>) -> Result<(), ApiError> {
    if routes::is_open(request.path()) {
        return Ok(());
    }
    let role = bearer_token(request).and_then(|token| tokens.role_of(token)).ok_or(ApiError::Unauthorized)?;
    if may(role, request.method(), request.path()) { Ok(()) } else { Err(ApiError::Forbidden) }
}

fn may(role: Role, method: &Method, path: &str) -> bool {
    match role {
        Role::Admin => true,
        Role::Camera => *method == Method::POST && routes::is_for_cameras(path),
    }
}

/// Reads the token of `Authorization: Bearer <token>` (RFC 6750, section 2.1).
fn bearer_token(request: &ServiceRequest) -> Option<&str> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
