//! Keep-alive: announces how long an idle connection is kept.

use std::{rc::Rc, sync::atomic::Ordering};

use actix_web::{
    Error,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::{
        ConnectionType,
        header::{self, HeaderName, HeaderValue},
    },
    middleware::Next,
    web,
};

use super::State;
use crate::connection::CallState;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// Announces with every response how long its connection is kept, so that a client with a pool never sends a request on
/// a connection that is being closed. While the server shuts down, connections are closed with their next response.
///
/// # Errors
/// Those of the request.
pub async fn keep_alive(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let state = request.app_data::<web::Data<State>>().cloned();
    let asked = request.head().connection_type();
    let call = request.conn_data::<Rc<CallState>>().cloned();
    let mut answer = next.call(request).await?;
    let Some(state) = state else { return Ok(answer) };
    let head = answer.response_mut().head_mut();
    let is_error = head.status.is_client_error() || head.status.is_server_error();
    if is_error && head.connection_type() == ConnectionType::Close {
        call.iter().for_each(|call| call.end_after_response());
    }
    // A client that offers an upgrade (Java's does, to HTTP/2) stays with HTTP/1.1, but actix-http then closes the
    // connection without announcing it.
    if state.draining.load(Ordering::Relaxed) || asked == ConnectionType::Upgrade {
        head.set_connection_type(ConnectionType::Close);
        head.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let closes = asked == ConnectionType::Close || head.connection_type() == ConnectionType::Close;
    if !closes
        && let Ok(timeout) = HeaderValue::try_from(format!("timeout={}", state.config.listener.keep_alive_s))
    {
        head.headers_mut().insert(KEEP_ALIVE, timeout);
    }
    Ok(answer)
}
