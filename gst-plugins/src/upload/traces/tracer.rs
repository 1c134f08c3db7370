//! Sends the spans of uploads. Spans have durations, counts and statuses; no face data, no camera and no location.

use std::{
    fmt,
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor},
};
use tokio::runtime::Handle;
use uuid::Uuid;

use super::{
    super::{Event, Observer, TlsOptions, UploadError, connection, state::PendingUpload, without_user},
    Attempt, SpanIds,
};

/// Path of traces below the collector's address (OTLP).
const PATH: &str = "v1/traces";

/// Limit for one request to the collector.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long dropping the tracer waits until the last spans are sent.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Maximum size of a collector's response in bytes.
const MAX_RESPONSE_BYTES: usize = 1 << 20;

/// Returns when a crop was made, in milliseconds: its key contains the time.
fn cropped_at(key: Uuid) -> SystemTime {
    let since_1970 = key.get_timestamp().map_or(Duration::ZERO, |time| {
        let (seconds, nanoseconds) = time.to_unix();
        Duration::new(seconds, nanoseconds)
    });
    SystemTime::UNIX_EPOCH + since_1970
}

fn to_system_time(instant: Instant) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(instant.elapsed()).unwrap_or(now)
}

/// Converts ids to those of OpenTelemetry.
fn span_context(ids: SpanIds) -> SpanContext {
    let (trace, span) =
        (TraceId::from_bytes(ids.trace.to_be_bytes()), SpanId::from_bytes(ids.span.to_be_bytes()));
    SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::NONE)
}

/// Sends spans to a collector. Dropping it sends those that are left, within a short time.
pub struct Tracer {
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
}

impl Tracer {
    /// Starts a tracer for the collector below `endpoint`; its certificate is checked as the backend's is.
    pub fn start(
        endpoint: &str,
        ca_file: Option<PathBuf>,
        runtime: Handle,
        observer: Observer,
    ) -> Result<Self, UploadError> {
        let invalid = |reason: String| UploadError::Collector { url: without_user(endpoint), reason };
        let address = format!("{}/{PATH}", endpoint.trim().trim_end_matches('/'));
        let uri: Uri = address.parse().map_err(|_| invalid("is not a URL".into()))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
            return Err(invalid("begins with neither http:// nor https://".into()));
        }
        let client = Collector {
            client: connection::client(
                &uri,
                &TlsOptions { ca_file, ..TlsOptions::default() },
                Arc::default(),
            )?,
            runtime,
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(address)
            .build()
            .map_err(|error| invalid(error.to_string()))?;
        let exporter = ReportingExporter { exporter, observer, failing: AtomicBool::new(false) };
        let mut processor = BatchSpanProcessor::builder(exporter).build();
        let mut resource =
            Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("facepipe-edge");
        }
        processor.set_resource(&resource.build());
        Ok(Self { processor, scope: InstrumentationScope::builder("facesink-http").build() })
    }

    /// Records the end of a request; `status` is `None` if there was no response.
    pub fn record_attempt(&self, attempt: &Attempt, crops: &[PendingUpload], status: Option<StatusCode>) {
        let end = SystemTime::now();
        for pending in crops.iter().filter(|pending| pending.is_first_attempt()) {
            let (name, since) = match pending.spooled {
                // The spool does not store how long it was in memory before.
                Some(_) => ("spool", cropped_at(pending.crop.key)),
                None => ("queue", to_system_time(pending.queued_at)),
            };
            let crop = SpanIds::of_crop(pending.crop.key);
            self.span(
                name,
                &span_context(crop.child()),
                SpanId::from_bytes(crop.span.to_be_bytes()),
                (since, to_system_time(attempt.started_at)),
                Vec::new(),
            );
        }
        let parent = span_context(SpanIds::of_crop(attempt.first));
        let links =
            crops.iter().skip(1).map(|pending| span_context(SpanIds::of_crop(pending.crop.key))).collect();
        let mut attributes = vec![
            KeyValue::new("http.request.method", "POST"),
            KeyValue::new("facepipe.crops", i64::try_from(crops.len()).unwrap_or(i64::MAX)),
            KeyValue::new("facepipe.attempt", i64::from(attempt.number)),
        ];
        attributes.extend(
            status.map(|status| KeyValue::new("http.response.status_code", i64::from(status.as_u16()))),
        );
        self.processor.on_end(SpanData {
            attributes,
            span_kind: SpanKind::Client,
            links: span_links(links),
            status: if status.is_some_and(|status| status.is_success()) {
                Status::Unset
            } else {
                Status::error("")
            },
            ..self.data(
                "upload",
                &span_context(attempt.ids),
                parent.span_id(),
                (to_system_time(attempt.started_at), end),
            )
        });
    }

    /// Records that crops are settled.
    pub fn record_result(&self, attempt: &Attempt, crops: &[PendingUpload], accepted: bool) {
        let end = SystemTime::now();
        for (number, pending) in crops.iter().enumerate() {
            let links = if number == 0 { Vec::new() } else { vec![span_context(attempt.ids)] };
            let context = span_context(SpanIds::of_crop(pending.crop.key));
            self.processor.on_end(SpanData {
                attributes: vec![
                    KeyValue::new("facepipe.attempts", i64::from(pending.attempts.saturating_add(1))),
                    KeyValue::new("facepipe.taken", accepted),
                    KeyValue::new("facepipe.spooled", pending.spooled.is_some()),
                ],
                links: span_links(links),
                status: if accepted { Status::Unset } else { Status::error("") },
                ..self.data("crop", &context, SpanId::INVALID, (cropped_at(pending.crop.key), end))
            });
        }
    }

    fn span(
        &self,
        name: &'static str,
        context: &SpanContext,
        parent: SpanId,
        time: (SystemTime, SystemTime),
        attributes: Vec<KeyValue>,
    ) {
        self.processor.on_end(SpanData { attributes, ..self.data(name, context, parent, time) });
    }

    fn data(
        &self,
        name: &'static str,
        context: &SpanContext,
        parent_span_id: SpanId,
        (start_time, end_time): (SystemTime, SystemTime),
    ) -> SpanData {
        SpanData {
            span_context: context.clone(),
            parent_span_id,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: name.into(),
            start_time,
            end_time,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // The exporter has reported why the last spans could not be sent.
        let _ = self.processor.shutdown_with_timeout(END_LIMIT);
    }
}

fn span_links(contexts: Vec<SpanContext>) -> SpanLinks {
    let mut links = SpanLinks::default();
    links.links = contexts.into_iter().map(|context| Link::new(context, Vec::new(), 0)).collect();
    links
}

/// The uploader's HTTP client, as exporters need it.
struct Collector {
    client: connection::Client,
    runtime: Handle,
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").finish_non_exhaustive()
    }
}

impl HttpClient for Collector {
    fn send_bytes<'s, 'f>(
        &'s self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        let request = self.client.request(request.map(Full::new));
        // The exporter's thread has no runtime.
        let sending = self.runtime.spawn(async move {
            let answer = async {
                let (head, body) = request.await?.into_parts();
                let body = Limited::new(body, MAX_RESPONSE_BYTES).collect().await?.to_bytes();
                Ok(Response::from_parts(head, body))
            };
            tokio::time::timeout(TIMEOUT, answer).await?
        });
        Box::pin(async move { sending.await? })
    }
}

/// Reports, once, that spans are lost.
struct ReportingExporter {
    exporter: SpanExporter,
    observer: Observer,
    failing: AtomicBool,
}

impl fmt::Debug for ReportingExporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReportingExporter").finish_non_exhaustive()
    }
}

impl opentelemetry_sdk::trace::SpanExporter for ReportingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let sent = self.exporter.export(batch).await;
        let failed_before = self.failing.swap(sent.is_err(), Ordering::Relaxed);
        if let (Err(error), false) = (&sent, failed_before) {
            (self.observer)(Event::SpansLost { reason: error.to_string() });
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_contains_the_time_of_the_crop() {
        let age = cropped_at(Uuid::now_v7()).elapsed().unwrap_or_default();
        assert!(age < Duration::from_secs(10), "{age:?}");
        assert_eq!(cropped_at(Uuid::new_v4()), SystemTime::UNIX_EPOCH);
    }
}
