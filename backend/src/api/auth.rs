//! Authorisation, before any of a request's body is read: determines the request's principal, and whether it may call
//! the matched route.

use std::{
    future::{Ready, ready},
    sync::Arc,
};

use actix_web::{
    Error, FromRequest, HttpMessage as _, HttpRequest,
    body::MessageBody,
    dev::{Payload, ServiceRequest, ServiceResponse},
    http::header,
    middleware::Next,
    web,
};
use anyhow::anyhow;
use paperclip::{actix::OperationModifier, v2::schema::Apiv2Schema};

use super::{
    State,
    admission::client_address,
    loopback,
    routes::{self, Requirement},
};
use crate::{access::Principal, domain::InvalidFaceId, error::ApiError, tls::CertifiedCamera};

/// Rejects requests that their principal may not make, and puts the principal of others into their extensions, as
/// `Arc<Principal>`.
///
/// # Errors
/// Those of the request.
pub async fn authorise(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    match admit(&request) {
        // Returns a response, not an error: the outer middleware logs responses.
        Err(error) => Ok(request.error_response(error).map_into_right_body()),
        Ok(principal) => {
            request.extensions_mut().insert(principal);
            Ok(next.call(request).await?.map_into_left_body())
        }
    }
}

/// Refuses NUL in the path and the query of a call, which no id and no name has: some databases fail on it, others end texts there.
fn refuse_nul(request: &ServiceRequest) -> Result<(), ApiError> {
    // `%2500` is not NUL, and does not contain `%00`.
    let has_nul = |text: &str| text.contains("%00");
    if has_nul(request.uri().path()) {
        let reason = "it is a control character";
        return Err(InvalidFaceId::Character { character: '\0', reason }.into());
    }
    if has_nul(request.query_string()) {
        return Err(ApiError::InvalidQuery("it has the character U+0000 (%00)".into()));
    }
    Ok(())
}

fn admit(request: &ServiceRequest) -> Result<Arc<Principal>, ApiError> {
    let state = request
        .app_data::<web::Data<State>>()
        .ok_or_else(|| ApiError::Internal(anyhow!("requests have no state")))?;
    let address = Some(client_address(request.request(), state));
    let known = match (bearer_token(request), certified_camera(request)) {
        (None, Some(camera)) => state.access.authenticate_certificate(camera.name()),
        (token, _) => state.access.authenticate(token, address),
    };
    let matched = request.match_info().unprocessed();
    match routes::requirement(request.method(), request.path(), matched) {
        Requirement::Open => Ok(known.unwrap_or_else(|_| state.access.anonymous())),
        Requirement::Any(needed) => {
            let principal = known.map_err(ApiError::Unauthorized)?;
            if state.access.is_for_this_machine_only() {
                loopback::check(request, &state.origins)?;
            }
            if principal.scopes.allows_any(needed) {
                refuse_nul(request)?;
                Ok(principal)
            } else {
                // The audit log names the refused principal.
                request.extensions_mut().insert(Arc::clone(&principal));
                Err(ApiError::Forbidden { needed, has: principal.scopes })
            }
        }
    }
}

/// Returns the camera that the client's certificate authenticated when it connected: data of a connection of HTTP/1.1,
/// or of a request of HTTP/2.
fn certified_camera(request: &ServiceRequest) -> Option<CertifiedCamera> {
    let of_request = request.extensions().get::<CertifiedCamera>().cloned();
    of_request.or_else(|| request.conn_data::<CertifiedCamera>().cloned())
}

/// Reads the token of `Authorization: Bearer <token>` (RFC 6750, section 2.1).
fn bearer_token(request: &ServiceRequest) -> Option<&str> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The principal of a request, for handlers.
pub struct Caller(pub Arc<Principal>);

impl FromRequest for Caller {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let principal = request.extensions().get::<Arc<Principal>>().cloned();
        ready(principal.map(Self).ok_or_else(|| ApiError::Internal(anyhow!("requests have no principal"))))
    }
}

impl Apiv2Schema for Caller {}

impl OperationModifier for Caller {}
