//! The timeout of request bodies, their bytes in memory, and the signals about a body's progress to its connection.

use std::{
    future::Future as _,
    io,
    rc::Rc,
    sync::Arc,
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

use super::{State, admission::bytes_exceeded};
use crate::{
    connection::CallState,
    error::ApiError,
    metrics::Rejection,
    shares::{BytesExceeded, Share},
};

/// The error of a body that takes too long.
#[derive(Debug, thiserror::Error)]
#[error("the body did not arrive within {seconds} seconds")]
struct BodyTimeout {
    seconds: u64,
}

/// The error of a body for which there is no room.
#[derive(Debug, thiserror::Error)]
#[error("there is no room for the body")]
struct BodyRefused(BytesExceeded);

/// Fails the reading of a body that does not arrive in time, counted from now, or for which there is no room in memory beside
/// those of other requests. [`refused`] recognises the errors. The body's bytes count until the response is ready.
///
/// # Errors
/// Those of the request.
pub async fn limit_body_time(
    mut request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let state = request.app_data::<web::Data<State>>().cloned();
    let seconds = state.as_ref().map_or(30, |state| state.config.listener.request_timeout_s);
    let mut body = request.take_payload();
    let has_body = !matches!(body, Payload::None);
    let call = request.conn_data::<Rc<CallState>>().cloned();
    // The call runs until the response is ready; the connection itself tracks the response's bytes.
    let _running = call.as_ref().map(|call| call.begin(has_body));
    let bytes = state
        .as_ref()
        .filter(|_| has_body)
        .map(|state| Arc::new(state.shares.bytes.request(Share::current().key)));
    if has_body {
        let (reading, bytes) = (Reading(call.clone()), bytes.clone());
        let mut timeout = Box::pin(tokio::time::sleep(Duration::from_secs(seconds)));
        let failed = |kind, error| Some(Err(PayloadError::Io(io::Error::new(kind, error))));
        let limited = stream::poll_fn(move |context: &mut Context<'_>| match body.poll_next_unpin(context) {
            Poll::Pending => timeout.as_mut().poll(context).map(|()| {
                let error: Box<dyn std::error::Error + Send + Sync> = BodyTimeout { seconds }.into();
                failed(io::ErrorKind::TimedOut, error)
            }),
            arrived => {
                reading.arrived();
                if let (Poll::Ready(Some(Ok(chunk))), Some(bytes)) = (&arrived, &bytes)
                    && let Err(exceeded) = bytes.add(chunk.len())
                {
                    if let Some(state) = &state {
                        state.metrics.rejected(Rejection::Exceeded(exceeded.limit));
                    }
                    return Poll::Ready(failed(io::ErrorKind::QuotaExceeded, BodyRefused(exceeded).into()));
                }
                arrived
            }
        });
        request.set_payload(Payload::Stream { payload: limited.boxed_local() });
    }
    // Images of the body are in memory until the response is ready.
    let answer = next.call(request).await;
    drop(bytes);
    answer
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

/// Returns the response to a body that timed out or for which there is no room; `None` for other failures.
pub fn refused(error: &PayloadError) -> Option<ApiError> {
    let PayloadError::Io(error) = error else { return None };
    let error = error.get_ref()?;
    if let Some(BodyTimeout { seconds }) = error.downcast_ref() {
        return Some(ApiError::RequestTimeout { seconds: *seconds });
    }
    error.downcast_ref().map(|BodyRefused(exceeded)| bytes_exceeded(*exceeded))
}
