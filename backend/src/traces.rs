//! OpenTelemetry traces, where a collector is configured: of requests, stages of recognition, and calls of the database.
//! Spans have durations, counts and statuses; no face, no name, no path and no statement.
//!
//! Like the log, traces are global to the process. Without a collector, a span costs one look at a static.

use std::{
    fmt,
    future::Future,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use actix_web::http::{Method, StatusCode, header::HeaderMap};
use opentelemetry::{
    Context, KeyValue,
    context::FutureExt as _,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{
        Link, Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _,
        TracerProvider as _,
    },
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider, SpanData},
};
use reqwest::{Url, redirect};

use crate::{request_id::RequestId, tls};

/// The path of OTLP traces below the collector's address.
const PATH: &str = "v1/traces";
/// Maximum time for the collector's response.
const TIMEOUT: Duration = Duration::from_secs(10);

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// The context that spans belong to.
pub type Trace = Context;

/// Exports the process's spans. Dropping it exports the remaining ones.
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// Starts exporting spans to the collector `endpoint`, if there is one: OTLP, protobuf over HTTP, to `v1/traces` below
    /// it. The environment's `OTEL_…` variables set sampling, batches, headers and resources.
    ///
    /// Must not be called within an asynchronous runtime.
    ///
    /// # Errors
    /// The HTTP client cannot be made, or a variable is invalid.
    pub fn start(endpoint: Option<&Url>) -> anyhow::Result<Self> {
        let Some(endpoint) = endpoint else { return Ok(Self(None)) };
        tls::use_ring();
        let client = reqwest::blocking::Client::builder()
            .user_agent(concat!("facepipe/", env!("CARGO_PKG_VERSION")))
            .timeout(TIMEOUT)
            .redirect(redirect::Policy::none())
            .build()?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(format!("{}/{PATH}", endpoint.as_str().trim_end_matches('/')))
            .build()?;
        let mut resource =
            Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("facepipe-backend");
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(ReportingExporter { exporter, failing: AtomicBool::new(false) })
            .with_resource(resource.build())
            .build();
        let _ = TRACER.set(provider.tracer("facepipe"));
        Ok(Self(Some(provider)))
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Some(provider) = &self.0 {
            // The exporter has logged a failure.
            let _ = provider.shutdown();
        }
    }
}

/// An exporter that logs, once, that spans are lost.
struct ReportingExporter {
    exporter: SpanExporter,
    failing: AtomicBool,
}

impl fmt::Debug for ReportingExporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReportingExporter").finish_non_exhaustive()
    }
}

impl opentelemetry_sdk::trace::SpanExporter for ReportingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let sent = self.exporter.export(batch).await;
        match &sent {
            Ok(()) if self.failing.swap(false, Ordering::Relaxed) => {
                tracing::info!("the collector accepts spans again");
            }
            Ok(()) => (),
            Err(error) if !self.failing.swap(true, Ordering::Relaxed) => {
                tracing::warn!(spans, %error, "the collector did not accept spans; they are lost");
            }
            Err(_) => (),
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Starts the span of a request; `None` without a collector.
pub fn begin_request(headers: &HeaderMap, method: &Method, route: &str, id: &RequestId) -> Option<Context> {
    let tracer = TRACER.get()?;
    let client = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
    let span = SpanBuilder::from_name(format!("{method} {route}"))
        .with_kind(SpanKind::Server)
        .with_attributes([
            KeyValue::new("http.request.method", method.to_string()),
            KeyValue::new("http.route", route.to_owned()),
            KeyValue::new("facepipe.request_id", id.to_string()),
        ])
        .start_with_context(tracer, &client);
    Some(Context::new().with_span(span))
}

/// Runs the handling of a request within its span.
pub async fn within<F: Future>(request: Option<&Trace>, answering: F) -> F::Output {
    match request {
        Some(request) => answering.with_context(request.clone()).await,
        None => answering.await,
    }
}

/// Ends the span of a request.
pub fn end_request(request: &Context, status: StatusCode) {
    let span = request.span();
    span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
    if status.is_server_error() {
        span.set_status(Status::error(""));
    }
    span.end();
}

/// Ends the span of a request whose client left before the response.
pub fn abandon_request(request: &Context) {
    let span = request.span();
    span.set_status(Status::error("the client left"));
    span.end();
}

/// Returns the id of a request's trace, for log lines.
pub fn trace_id(request: &Context) -> String {
    request.span().span_context().trace_id().to_string()
}

/// Returns the context of the current request's spans; `None` if nothing is traced.
pub fn current() -> Option<Context> {
    TRACER.get()?;
    let context = Context::current();
    context.has_active_span().then_some(context)
}

/// Records that a batch of faces was embedded for `requests` requests at once: each traced request gets a span, with links
/// to the others.
pub fn record_embedding<'a>(
    traced: impl Iterator<Item = &'a Trace>,
    requests: usize,
    begun: Instant,
    took: Duration,
    faces: usize,
) {
    let traced: Vec<(&Trace, SpanContext)> =
        traced.map(|trace| (trace, trace.span().span_context().clone())).collect();
    for (trace, own) in &traced {
        let others = traced.iter().map(|(_, other)| other).filter(|other| *other != own).cloned();
        Step::new("embed", begun, took)
            .count("facepipe.batch.faces", faces)
            .count("facepipe.batch.requests", requests)
            .linked(others)
            .record(Some(trace));
    }
}

/// A completed span.
pub struct Step {
    /// Its name.
    pub name: &'static str,
    /// When it started.
    pub begun: Instant,
    /// How long it took.
    pub took: Duration,
    /// Counts.
    pub attributes: Vec<KeyValue>,
    /// Other requests that it served.
    pub links: Vec<SpanContext>,
}

impl Step {
    /// Returns a span of this name.
    pub fn new(name: &'static str, begun: Instant, took: Duration) -> Self {
        Self { name, begun, took, attributes: Vec::new(), links: Vec::new() }
    }

    /// Adds a count.
    pub fn count(mut self, name: &'static str, count: usize) -> Self {
        self.attributes.push(KeyValue::new(name, i64::try_from(count).unwrap_or(i64::MAX)));
        self
    }

    /// Links other requests that it served.
    fn linked(mut self, others: impl IntoIterator<Item = SpanContext>) -> Self {
        self.links.extend(others);
        self
    }

    /// Records the span as a child of `parent`, if that is traced.
    pub fn record(self, parent: Option<&Context>) {
        let (Some(tracer), Some(parent)) = (TRACER.get(), parent) else { return };
        let begun = moment(self.begun);
        SpanBuilder::from_name(self.name)
            .with_start_time(begun)
            .with_attributes(self.attributes)
            .with_links(self.links.into_iter().map(|link| Link::new(link, Vec::new(), 0)).collect())
            .start_with_context(tracer, parent)
            .end_with_timestamp(begun + self.took);
    }
}

/// Runs a call of the database within its own span. The span has the name of the function that contains `call`, given as
/// the type name of `call`.
pub fn database_call<T, E>(
    parent: Option<&Context>,
    system: &'static str,
    name: &'static str,
    is_fault: impl FnOnce(&E) -> bool,
    call: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    let (Some(tracer), Some(parent)) = (TRACER.get(), parent) else { return call() };
    let mut span = SpanBuilder::from_name(function(name))
        .with_kind(SpanKind::Client)
        .with_attributes([KeyValue::new("db.system.name", system)])
        .start_with_context(tracer, parent);
    let outcome = call();
    if outcome.as_ref().is_err_and(is_fault) {
        span.set_status(Status::error(""));
    }
    span.end();
    outcome
}

/// Shortens `…::jobs::<impl Database>::add_job::{{closure}}::{{closure}}` to `add_job`.
fn function(type_name: &'static str) -> &'static str {
    type_name.rsplit("::").find(|part| !part.starts_with('{')).unwrap_or("call")
}

fn moment(instant: Instant) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(instant.elapsed()).unwrap_or(now)
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_named_after_their_functions() {
        fn name_of<F: Fn()>(_: &F) -> &'static str {
            function(std::any::type_name::<F>())
        }
        let nested = || {
            let inner = || ();
            assert_eq!(name_of(&inner), "calls_are_named_after_their_functions");
        };
        nested();
        assert_eq!(name_of(&nested), "calls_are_named_after_their_functions");
    }
}
