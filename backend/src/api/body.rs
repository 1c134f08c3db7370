//! The timeout of request bodies, and the signals about a body's progress to its connection.

use std::{
    future::Future as _,
    io,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use actix_web::{
    Error, HttpMessage as _,
    body::MessageBody,
    dev::{Payload, ServiceRequest, ServiceResponse},
    error::PayloadError,
    middleware::Next,
    web,
};
use futures_util::{StreamExt as _, stream};

use super::State;
use crate::{connection::CallState, error::ApiError};

/// The error of a body that takes too long.
#[derive(Debug, thiserror::Error)]
#[error("the body did not arrive within {seconds} seconds")]
struct BodyTimeout {
    seconds: u64,
}

/// Fails the reading of a body that does not arrive in time, counted from now. [`timed_out`] recognises the error.
///
/// # Errors
/// Those of the request.
pub async fn limit_body_time(
    mut request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let seconds = request.app_data::<web::Data<State>>().map_or(30, |s| s.config.listener.request_timeout_s);
    let mut body = request.take_payload();
    let has_body = !matches!(body, Payload::None);
    let call = request.conn_data::<Rc<CallState>>().cloned();
    // Until the response is ready; the connection itself tracks its bytes.
    let _running = call.as_ref().map(|call| call.begin(has_body));
    if has_body {
        let reading = Reading(call.clone());
        let mut timeout = Box::pin(tokio::time::sleep(Duration::from_secs(seconds)));
        let limited = stream::poll_fn(move |context: &mut Context<'_>| match body.poll_next_unpin(context) {
            Poll::Pending => timeout.as_mut().poll(context).map(|()| {
                Some(Err(PayloadError::Io(io::Error::new(io::ErrorKind::TimedOut, BodyTimeout { seconds }))))
            }),
            arrived => {
                reading.arrived();
                arrived
            }
        });
        request.set_payload(Payload::Stream { payload: limited.boxed_local() });
    }
    next.call(request).await
}

/// A body that is being read. Dropped once enough of it was read.
struct Reading(Option<Rc<CallState>>);

impl Reading {
    fn arrived(&self) {
        if let Some(call) = &self.0 {
            call.read_chunk();
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if let Some(call) = &self.0 {
            call.finish_body();
        }
    }
}

/// The response to a body that timed out; `None` for other failures.
pub fn timed_out(error: &PayloadError) -> Option<ApiError> {
    let PayloadError::Io(error) = error else { return None };
    let BodyTimeout { seconds } = error.get_ref()?.downcast_ref()?;
    Some(ApiError::RequestTimeout { seconds: *seconds })
}
