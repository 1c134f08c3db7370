//! How long a request's body may take to arrive, whatever reads it, and what its connection is told of that.

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

/// What a body that takes too long ends with.
#[derive(Debug, thiserror::Error)]
#[error("the body did not arrive within {seconds} seconds")]
struct Late {
    seconds: u64,
}

/// Ends a body that has not arrived within the time that a client may take, beginning now. Who reads it gets an error
/// of which [`late`] knows.
///
/// # Errors
/// Those of the request.
pub async fn limit_body_time(
    mut request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let seconds = request.app_data::<web::Data<State>>().map_or(30, |s| s.config.request_timeout_s);
    let mut body = request.take_payload();
    let has_body = !matches!(body, Payload::None);
    let call = request.conn_data::<Rc<CallState>>().cloned();
    // Until the answer is there: its own bytes are the connection's.
    let _running = call.as_ref().map(|call| call.begin(has_body));
    if has_body {
        let reading = Reading(call.clone());
        let mut timeout = Box::pin(tokio::time::sleep(Duration::from_secs(seconds)));
        let limited = stream::poll_fn(move |context: &mut Context<'_>| match body.poll_next_unpin(context) {
            Poll::Pending => timeout.as_mut().poll(context).map(|()| {
                Some(Err(PayloadError::Io(io::Error::new(io::ErrorKind::TimedOut, Late { seconds }))))
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

/// A body that is being read. Whoever has read enough of it drops it.
struct Reading(Option<Rc<CallState>>);

impl Reading {
    fn arrived(&self) {
        if let Some(call) = &self.0 {
            call.took_chunk();
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if let Some(call) = &self.0 {
            call.took_body();
        }
    }
}

/// What a request is answered with whose body came too late; `None` for other failures of a body.
pub fn late(error: &PayloadError) -> Option<ApiError> {
    let PayloadError::Io(error) = error else { return None };
    let Late { seconds } = error.get_ref()?.downcast_ref()?;
    Some(ApiError::RequestTimeout { seconds: *seconds })
}
