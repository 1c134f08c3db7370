//! Admission: requests beyond the share of their client, or beyond what the server takes from all of them, are refused before
//! anything of their bodies is read.

use std::{
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use actix_web::{
    Error, HttpMessage as _, HttpRequest,
    body::{BodySize, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{StatusCode, header},
    middleware::Next,
    web,
};
use bytes::Bytes;

use super::{State, routes};
use crate::{
    access::{Principal, PrincipalKey, Scope},
    connection::{CallState, ExceededConnections},
    error::ApiError,
    metrics::Rejection,
    shares::{AddressKey, BytesExceeded, Limit, Share, ShareKey},
};

/// `Retry-After` where memory is short: requests come and go quickly.
const RETRY_BYTES: Duration = Duration::from_secs(1);
/// Maximum number of bytes of a response that are copied for sending at a time.
const PIECE_BYTES: usize = 16 * 1024;

/// Refuses requests of a client that makes too many, or whose body does not fit into memory beside those of others, and
/// determines the share that accepted requests count towards.
///
/// # Errors
/// Those of the request.
pub async fn admit(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let Some(state) = request.app_data::<web::Data<State>>().cloned() else {
        return Ok(next.call(request).await?.map_into_left_body());
    };
    let (share, is_anonymous) = share_of(&request, &state);
    if let Err(error) = check(&request, &state, share.key, is_anonymous) {
        // Returns a response, not an error: the outer middleware logs responses.
        return Ok(request.error_response(error).map_into_right_body());
    }
    Ok(share.scope(next.call(request)).await?.map_into_left_body())
}

fn check(request: &ServiceRequest, state: &State, key: ShareKey, is_anonymous: bool) -> Result<(), ApiError> {
    if routes::is_probe(request.path()) {
        return Ok(());
    }
    let rates = if is_anonymous { &state.shares.anonymous } else { &state.shares.principals };
    rates.admit(key, Instant::now()).map_err(|retry_after| {
        let limit = Limit::RequestsPerSecond;
        state.metrics.rejected(Rejection::Exceeded(limit));
        ApiError::ShareExceeded { limit, max: rates.limit().per_second.into(), retry_after }
    })?;
    let length =
        request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    // Larger bodies are refused for their size when they are read.
    let length = length.unwrap_or(0).min(state.config.listener.max_request_bytes);
    if length == 0 {
        return Ok(());
    }
    state.shares.bytes.check(key, length).map_err(|exceeded| {
        state.metrics.rejected(Rejection::Exceeded(exceeded.limit));
        bytes_exceeded(exceeded)
    })
}

/// Returns the response to a request that does not fit into memory.
pub fn bytes_exceeded(BytesExceeded { limit, max }: BytesExceeded) -> ApiError {
    let (max, retry_after) = (u64::try_from(max).unwrap_or(u64::MAX), RETRY_BYTES);
    match limit {
        Limit::BytesInFlight => ApiError::ShareExceeded { limit, max, retry_after },
        _ => ApiError::Overloaded { limit, max, retry_after },
    }
}

/// Returns the share of an authorised request, and whether it has no token on a server that needs one.
fn share_of(request: &ServiceRequest, state: &State) -> (Share, bool) {
    let of_address = || Share { key: ShareKey::Address(address_of(request.request(), state)), weight: 1 };
    let principal = request.extensions().get::<Arc<Principal>>().map(Arc::clone);
    match principal.map(|principal| (principal.key(), principal.scopes)) {
        Some((PrincipalKey::Local, _)) => (of_address(), false),
        Some((key @ (PrincipalKey::Stored(_) | PrincipalKey::File(_)), scopes)) => {
            let weight = if scopes.allows(Scope::Admin) { state.shares.admin_weight } else { 1 };
            (Share { key: ShareKey::Principal(key), weight }, false)
        }
        Some((PrincipalKey::Anonymous, _)) | None => (of_address(), true),
    }
}

/// Returns the client's address, which a trusted proxy may say.
pub fn client_address(request: &HttpRequest, state: &State) -> IpAddr {
    let peer = request.peer_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip());
    let forwarded = request.headers().get_all("x-forwarded-for").filter_map(|value| value.to_str().ok());
    state.shares.trusted_proxies.client(peer, forwarded.collect::<Vec<_>>().into_iter())
}

fn address_of(request: &HttpRequest, state: &State) -> AddressKey {
    client_address(request, state).into()
}

/// Makes clients that send wrong tokens wait, longer each time. Requests with right tokens are admitted regardless of
/// others from their address.
///
/// # Errors
/// Those of the request.
pub async fn delay_failed_authentication(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let has_token = request.headers().contains_key(header::AUTHORIZATION);
    let state = request.app_data::<web::Data<State>>().filter(|_| has_token).cloned();
    let answer = next.call(request).await?;
    if answer.status() == StatusCode::UNAUTHORIZED
        && let Some(state) = state
        && let Err(retry_after) =
            state.shares.failures.count(address_of(answer.request(), &state), Instant::now())
    {
        let limit = Limit::FailedAuthentications;
        state.metrics.rejected(Rejection::Exceeded(limit));
        let error = ApiError::ShareExceeded { limit, max: crate::shares::FREE_FAILURES.into(), retry_after };
        return Ok(answer.error_response(error).map_into_right_body());
    }
    Ok(answer.map_into_left_body())
}

/// Serves nothing but probes on connections beyond the bound.
///
/// # Errors
/// Those of the request.
pub async fn keep_probes_answering(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let of_http2 = request.extensions().get::<ExceededConnections>().map(|exceeded| (exceeded.0, exceeded.1));
    match request.conn_data::<Rc<CallState>>().and_then(|call| call.exceeded()).or(of_http2) {
        Some((limit, max)) if !routes::is_probe(request.path()) => {
            let max = u64::try_from(max).unwrap_or(u64::MAX);
            let error = ApiError::Overloaded { limit, max, retry_after: RETRY_BYTES };
            Ok(request.error_response(error).map_into_right_body())
        }
        _ => Ok(next.call(request).await?.map_into_left_body()),
    }
}

/// Hands a response's body over in small pieces: actix-http copies each piece whole for sending, so that clients who read
/// nothing would cost a copy of the body each.
///
/// # Errors
/// Those of the request.
pub async fn send_in_pieces(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    Ok(next.call(request).await?.map_body(|_, body| Pieces { body: Box::pin(body), rest: Bytes::new() }))
}

/// A body in pieces of at most [`PIECE_BYTES`].
struct Pieces<B> {
    body: Pin<Box<B>>,
    rest: Bytes,
}

impl<B: MessageBody> MessageBody for Pieces<B> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        if self.rest.is_empty() {
            match self.body.as_mut().poll_next(context) {
                Poll::Ready(Some(Ok(bytes))) => self.rest = bytes,
                other => return other,
            }
        }
        let length = self.rest.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(self.rest.split_to(length))))
    }
}
