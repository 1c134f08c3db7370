//! For how long a connection is kept after an answer, and that its client is told.

use std::sync::atomic::Ordering;

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

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// Announces with every answer for how long its connection is kept, so that a client that keeps connections never sends
/// a request on one that is being closed. While the server is about to stop, connections end with their next answer.
///
/// # Errors
/// Those of the request.
pub async fn keep_alive(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let state = request.app_data::<web::Data<State>>().cloned();
    let asked = request.head().connection_type();
    let mut answer = next.call(request).await?;
    let Some(state) = state else { return Ok(answer) };
    let head = answer.response_mut().head_mut();
    // Whoever offers another protocol (Java's client does, HTTP/2) stays with HTTP/1.1; actix-http then ends the connection
    // without a word.
    if state.draining.load(Ordering::Relaxed) || asked == ConnectionType::Upgrade {
        head.set_connection_type(ConnectionType::Close);
        head.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let closes = asked == ConnectionType::Close || head.connection_type() == ConnectionType::Close;
    if !closes && let Ok(timeout) = HeaderValue::try_from(format!("timeout={}", state.config.keep_alive_s)) {
        head.headers_mut().insert(KEEP_ALIVE, timeout);
    }
    Ok(answer)
}
