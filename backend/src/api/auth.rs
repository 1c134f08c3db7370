//! Who may call what, decided before anything of a request's body is read.

use std::sync::Arc;

use actix_web::{
    Error,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::{Method, header},
    middleware::Next,
    web,
};

use super::State;
use crate::{
    error::ApiError,
    tokens::{Role, Tokens},
};

/// Answers a request whose token does not allow its call, and hands on every other one. All do without a file of
/// tokens.
///
/// # Errors
/// Those of the request.
pub async fn authorise(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let tokens = request.app_data::<web::Data<State>>().and_then(|state| state.tokens.as_ref());
    match tokens.map(|tokens| allowed(&request, tokens)) {
        // An answer, not an error: what is outside of this logs answers.
        Some(Err(error)) => Ok(request.error_response(error).map_into_right_body()),
        None | Some(Ok(())) => Ok(next.call(request).await?.map_into_left_body()),
    }
}

fn allowed(request: &ServiceRequest, tokens: &Arc<Tokens>) -> Result<(), ApiError> {
    // As it was sent: whoever writes an open path in another way needs a token.
    if is_open(request.path()) {
        return Ok(());
    }
    let role = bearer_token(request).and_then(|token| tokens.role_of(token)).ok_or(ApiError::Unauthorized)?;
    if may(role, request.method(), request.path()) { Ok(()) } else { Err(ApiError::Forbidden) }
}

/// Whether a path needs no token: whoever restarts the server or sends it traffic has none, and the document and what
/// leads to it are public.
fn is_open(path: &str) -> bool {
    matches!(path, "/" | "/startupz" | "/livez" | "/readyz" | "/openapi.json" | "/docs")
        || path.starts_with("/docs/")
}

fn may(role: Role, method: &Method, path: &str) -> bool {
    match role {
        Role::Admin => true,
        Role::Camera => *method == Method::POST && path.starts_with("/face-recognition/"),
    }
}

/// The token of `Authorization: Bearer <token>` (RFC 6750, section 2.1).
fn bearer_token(request: &ServiceRequest) -> Option<&str> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
