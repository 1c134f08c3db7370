//! Observability of requests: ids, a line in the log, metrics and spans, with the pattern of the path and never the path
//! itself, which may name a person.

use std::{mem, time::Instant};

use actix_web::{
    Error,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::header::{self, HeaderMap, HeaderValue},
    middleware::Next,
    web,
};
use tracing::{Instrument as _, field::Empty};

use super::{State, routes::without_patterns};
use crate::{
    metrics::Metrics,
    request_id::{self, RequestId},
    traces::{self, Trace},
};

/// Gives a request its id, and logs and counts the response.
///
/// # Errors
/// Those of the request.
pub async fn observe(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let begun = Instant::now();
    let id = RequestId::of(request.headers());
    let (method, route) = (request.method().clone(), route(&request));
    let metrics = request.app_data::<web::Data<State>>().map(|state| state.metrics.clone());
    // The span has the highest level, so that no log filter strips the id from the lines that it passes.
    let span = tracing::error_span!("request", request_id = %id, trace_id = Empty);
    let trace = traces::begin_request(request.headers(), &method, &route, &id);
    if let Some(trace) = &trace {
        span.record("trace_id", traces::trace_id(trace));
    }
    let guard = AbandonmentGuard { metrics: metrics.as_deref(), trace: trace.as_ref() };
    let answering = id.clone().scope(next.call(request)).instrument(span.clone());
    let answer = traces::within(trace.as_ref(), answering).await;
    mem::forget(guard);
    let status = match &answer {
        Ok(answer) => answer.status(),
        Err(error) => error.as_response_error().status_code(),
    };
    let took = begun.elapsed();
    if let Some(metrics) = metrics {
        metrics.responded(&method, &route, status, took);
    }
    if let Some(trace) = &trace {
        traces::end_request(trace, status);
    }
    span.in_scope(|| {
        tracing::info!(
            %method,
            route,
            status = status.as_u16(),
            duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "answered"
        );
    });
    let mut answer = answer?;
    if let Some(id) = id.header() {
        answer.headers_mut().insert(request_id::HEADER, id);
    }
    keep_private(answer.headers_mut());
    Ok(answer)
}

/// Forbids caches to keep responses in JSON, which may name people, and browsers to take them for something else.
fn keep_private(headers: &mut HeaderMap) {
    let is_json = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|media_type| media_type.as_bytes().starts_with(b"application/json"));
    if !is_json {
        return;
    }
    for (name, value) in [(header::CACHE_CONTROL, "no-store"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")] {
        if !headers.contains_key(&name) {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
}

/// Counts a request as abandoned when it is dropped: the client left before the response.
struct AbandonmentGuard<'a> {
    metrics: Option<&'a Metrics>,
    trace: Option<&'a Trace>,
}

impl Drop for AbandonmentGuard<'_> {
    fn drop(&mut self) {
        if let Some(metrics) = self.metrics {
            metrics.abandoned();
        }
        if let Some(trace) = self.trace {
            traces::abandon_request(trace);
        }
        tracing::debug!("the client left before the response");
    }
}

/// Returns the pattern of a request's path without regular expressions, `-` for an unknown path.
fn route(request: &ServiceRequest) -> String {
    request.match_pattern().map_or_else(|| "-".into(), |pattern| without_patterns(&pattern))
}
