//! The counters and histograms of one server, for Prometheus. docs/metrics.md explains each; no label names a person.

use std::time::Duration;

use actix_web::http::{Method, StatusCode};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, core::Collector,
    proto::MetricFamily,
};

use crate::{
    domain::{JobKind, JobStatus, Task},
    shares::Limit,
};

/// Upper bounds of request durations, seconds: from an empty response to a training that is waited for.
const REQUEST_SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Upper bounds of the duration of a recognition stage, seconds.
const STAGE_SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Upper bounds of batch sizes, images.
const BATCH_IMAGES: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// A stage of recognition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Decodes an image.
    Decode,
    /// Detects and crops the faces of an image.
    Detect,
    /// Embeds the faces of a batch.
    Embed,
    /// Identifies the faces of a request.
    Classify,
}

/// Why a request was rejected before anything was computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// The queue holds as many images as it may.
    QueueFull,
    /// The queued images take longer than they may.
    QueueSlow,
    /// Clients with fewer images needed the room of the request's.
    Displaced,
    /// The images of the request have too many pixels together.
    RequestPixels,
    /// Another limit.
    Exceeded(Limit),
}

impl Rejection {
    fn all() -> impl Iterator<Item = Self> {
        let queue = [Self::QueueFull, Self::QueueSlow, Self::Displaced, Self::RequestPixels];
        queue.into_iter().chain(Limit::ALL.map(Self::Exceeded))
    }

    fn label(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::QueueSlow => "queue_slow",
            Self::Displaced => "displaced",
            Self::RequestPixels => "request_pixels",
            Self::Exceeded(limit) => limit.name(),
        }
    }
}

/// The counters of one server.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    abandoned: IntCounter,
    request_seconds: HistogramVec,
    refused: IntCounterVec,
    queue_seconds: Histogram,
    decode: Histogram,
    detect: Histogram,
    embed: Histogram,
    classify: Histogram,
    batch_images: Histogram,
    known: IntCounter,
    unknown: IntCounter,
    jobs_finished: IntCounterVec,
    outbox_dropped: IntCounter,
    task_failures: IntCounterVec,
    times_replaced: IntCounter,
}

impl Metrics {
    /// Registers all metrics, at zero.
    ///
    /// # Errors
    /// Two have the same name, or a name is not valid for Prometheus.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let refused = counters(
            &registry,
            "facepipe_requests_refused_total",
            "Requests and connections that were refused because a limit was exceeded, before anything was computed.",
            &["reason"],
        )?;
        let stages = histograms(
            &registry,
            "facepipe_stage_seconds",
            "Time that a step of recognition took: decode and detect for an image, embed for a batch, classify for a \
             request.",
            &STAGE_SECONDS,
            &["stage"],
        )?;
        let faces = counters(
            &registry,
            "facepipe_faces_total",
            "Faces that the calls of recognition found, by what was decided.",
            &["decision"],
        )?;
        let metrics = Self {
            requests: counters(
                &registry,
                "facepipe_requests_total",
                "Requests that were answered.",
                &["method", "route", "status"],
            )?,
            abandoned: register(
                &registry,
                IntCounter::new(
                    "facepipe_requests_abandoned_total",
                    "Requests whose client left before the response.",
                )?,
            )?,
            request_seconds: histograms(
                &registry,
                "facepipe_request_duration_seconds",
                "Time from a request's head to the head of its answer.",
                &REQUEST_SECONDS,
                &["route"],
            )?,
            refused,
            queue_seconds: histogram(
                &registry,
                "facepipe_queue_seconds",
                "Time that a request waited for its images' turn.",
                &STAGE_SECONDS,
            )?,
            decode: stages.with_label_values(&["decode"]),
            detect: stages.with_label_values(&["detect"]),
            embed: stages.with_label_values(&["embed"]),
            classify: stages.with_label_values(&["classify"]),
            batch_images: histogram(
                &registry,
                "facepipe_batch_images",
                "Images that were recognised together.",
                &BATCH_IMAGES,
            )?,
            known: faces.with_label_values(&["known"]),
            unknown: faces.with_label_values(&["unknown"]),
            jobs_finished: counters(
                &registry,
                "facepipe_jobs_finished_total",
                "Jobs that ended in this process.",
                &["kind", "status"],
            )?,
            outbox_dropped: register(
                &registry,
                IntCounter::new(
                    "facepipe_outbox_dropped_total",
                    "Results that this process dropped because the external API did not take them in time.",
                )?,
            )?,
            task_failures: counters(
                &registry,
                "facepipe_task_failures_total",
                "Recurring work of the deployment that this process could not do to its end.",
                &["task"],
            )?,
            times_replaced: register(
                &registry,
                IntCounter::new(
                    "facepipe_capture_times_replaced_total",
                    "Images whose capture time was too far from their arrival to count.",
                )?,
            )?,
            registry,
        };
        // Create the series up front: `increase()` misses the first event of a series that appears with it.
        for kind in JobKind::ALL {
            for status in JobStatus::ALL.into_iter().filter(|status| status.has_ended()) {
                metrics.jobs_finished.with_label_values(&[kind.as_str(), status.as_str()]);
            }
        }
        for reason in Rejection::all() {
            metrics.refused.with_label_values(&[reason.label()]);
        }
        for task in [Task::Retain, Task::Sweep, Task::Cohort, Task::Recluster] {
            metrics.task_failures.with_label_values(&[task.name()]);
        }
        Ok(metrics)
    }

    /// Reads all counters and histograms.
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }

    /// Counts a response. `route` is the pattern of the request's path.
    pub fn responded(&self, method: &Method, route: &str, status: StatusCode, took: Duration) {
        let method = known_method(method).unwrap_or("other");
        self.requests.with_label_values(&[method, route, status.as_str()]).inc();
        self.request_seconds.with_label_values(&[route]).observe(took.as_secs_f64());
    }

    /// Counts a request whose client left before the response.
    pub fn abandoned(&self) {
        self.abandoned.inc();
    }

    /// Counts a rejected request or connection.
    pub fn rejected(&self, reason: Rejection) {
        self.refused.with_label_values(&[reason.label()]).inc();
    }

    /// Observes the time that a request spent in the queue.
    pub fn queued(&self, waited: Duration) {
        self.queue_seconds.observe(waited.as_secs_f64());
    }

    /// Observes the duration of a stage.
    pub fn stage(&self, stage: Stage, took: Duration) {
        let histogram = match stage {
            Stage::Decode => &self.decode,
            Stage::Detect => &self.detect,
            Stage::Embed => &self.embed,
            Stage::Classify => &self.classify,
        };
        histogram.observe(took.as_secs_f64());
    }

    /// Observes the size of a batch.
    pub fn batch(&self, images: usize) {
        self.batch_images.observe(images as f64);
    }

    /// Counts a face that a recognition call found.
    pub fn face(&self, known: bool) {
        if known { self.known.inc() } else { self.unknown.inc() }
    }

    /// Counts a job that ended.
    pub fn job_finished(&self, kind: JobKind, status: JobStatus) {
        self.jobs_finished.with_label_values(&[kind.as_str(), status.as_str()]).inc();
    }

    /// Counts a failed run of recurring work.
    pub fn task_failed(&self, task: Task) {
        self.task_failures.with_label_values(&[task.name()]).inc();
    }

    /// Counts a capture time that was replaced by the time of arrival.
    pub fn time_replaced(&self) {
        self.times_replaced.inc();
    }

    /// Counts results that were dropped.
    pub fn outbox_dropped(&self, results: usize) {
        self.outbox_dropped.inc_by(u64::try_from(results).unwrap_or(u64::MAX));
    }
}

/// Returns the name of a usual method; `None` of any other, since clients may send any token.
pub fn known_method(method: &Method) -> Option<&str> {
    let known = [
        Method::GET,
        Method::POST,
        Method::PATCH,
        Method::PUT,
        Method::DELETE,
        Method::HEAD,
        Method::OPTIONS,
    ];
    known.contains(method).then(|| method.as_str())
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn histogram(registry: &Registry, name: &str, help: &str, bounds: &[f64]) -> prometheus::Result<Histogram> {
    let options = HistogramOpts::new(name, help).buckets(bounds.to_vec());
    register(registry, Histogram::with_opts(options)?)
}

fn histograms(
    registry: &Registry,
    name: &str,
    help: &str,
    bounds: &[f64],
    labels: &[&str],
) -> prometheus::Result<HistogramVec> {
    let options = HistogramOpts::new(name, help).buckets(bounds.to_vec());
    register(registry, HistogramVec::new(options, labels)?)
}
