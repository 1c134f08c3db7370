//! What is noted of every request: a line in the log and the metrics, with the path's pattern and never the path itself,
//! which may name a person.

use std::{mem, time::Instant};

use actix_web::{
    Error,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    middleware::Next,
    web,
};
use tracing::{Instrument as _, field::Empty};

use super::State;
use crate::{
    metrics::Metrics,
    request_id::{self, RequestId},
    traces::{self, Trace},
};

/// Gives a request its id, answers with it, and notes the answer.
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
    // Of the highest level, so that no filter of the log takes the id from the lines that it lets through.
    let span = tracing::error_span!("request", request_id = %id, trace_id = Empty);
    let trace = traces::begin_request(request.headers(), &method, &route, &id);
    if let Some(trace) = &trace {
        span.record("trace_id", traces::trace_id(trace));
    }
    let unanswered = Unanswered { metrics: metrics.as_deref(), trace: trace.as_ref() };
    let answering = id.clone().scope(next.call(request)).instrument(span.clone());
    let answer = traces::within(trace.as_ref(), answering).await;
    mem::forget(unanswered);
    let status = match &answer {
        Ok(answer) => answer.status(),
        Err(error) => error.as_response_error().status_code(),
    };
    let took = begun.elapsed();
    if let Some(metrics) = metrics {
        metrics.answered(&method, &route, status, took);
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
    Ok(answer)
}

/// Dropped while a request is being answered: its client went.
struct Unanswered<'a> {
    metrics: Option<&'a Metrics>,
    trace: Option<&'a Trace>,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some(metrics) = self.metrics {
            metrics.abandoned();
        }
        if let Some(trace) = self.trace {
            traces::abandon_request(trace);
        }
        tracing::debug!("the client went before the answer");
    }
}

/// The pattern of a request's path without what its parameters must look like, `-` where there is nothing at the path.
fn route(request: &ServiceRequest) -> String {
    request.match_pattern().map_or_else(|| "-".into(), |pattern| without_expressions(&pattern))
}

/// `/dataset/{id:[^/]*}` as `/dataset/{id}`.
fn without_expressions(pattern: &str) -> String {
    let mut short = String::with_capacity(pattern.len());
    let mut parts = pattern.split('{');
    short.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (parameter, rest) = part.split_once('}').unwrap_or((part, ""));
        short.push('{');
        short.push_str(parameter.split(':').next().unwrap_or_default());
        short.push('}');
        short.push_str(rest);
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_patterns_without_expressions() {
        for (pattern, short) in [
            ("/dataset", "/dataset"),
            ("/dataset/{id:[^/]*}", "/dataset/{id}"),
            ("/dataset/{id:[^/]*}/image/{image_id}", "/dataset/{id}/image/{image_id}"),
        ] {
            assert_eq!(without_expressions(pattern), short);
        }
    }
}
