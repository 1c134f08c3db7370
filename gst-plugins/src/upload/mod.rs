//! The uploader: takes face crops from the streaming thread without ever making it wait, and posts them to
//! the backend from worker tasks. Plain Rust: it knows nothing of GStreamer, the sink element only feeds it.
//!
//! What waits is bounded: when the queue is full the oldest crop gives way to the newest. A worker takes
//! whatever waits, up to [`UploadConfig::max_batch`] crops, into one request. A request that met a dead,
//! failing or busy backend is repeated, with the same idempotency key per crop, so that a repetition never
//! stores a face twice.

mod connection;
mod multipart;
mod retry;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use serde_json::Value;
use time::OffsetDateTime;
use tokio::{runtime::Runtime, sync::Notify, task::JoinHandle};
use uuid::Uuid;

use connection::{Client, Traffic};
pub use retry::Backoff;
use retry::Verdict;

/// Answers are a few kilobytes; one that is longer than this (bytes) is not from our backend.
const MAX_ANSWER: usize = 8 << 20;

/// An answer `500` may be the crop's own fault: after so many of them in a row the request is given up.
const MAX_INTERNAL_ERRORS: u32 = 5;

/// The backend's call that takes the crops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstFacepipeEndpoint")]
#[repr(i32)]
pub enum Endpoint {
    /// Each recognised face becomes a stored detection.
    #[default]
    #[enum_value(name = "Recognise and store each face as a detection", nick = "store-results")]
    StoreResults,
    /// Each recognised face is forwarded to the external API that the backend is configured with.
    #[enum_value(
        name = "Recognise and forward each face to the backend's external API",
        nick = "send-results"
    )]
    SendResults,
    /// The faces are recognised and nothing is kept.
    #[enum_value(name = "Recognise and keep nothing", nick = "get-results")]
    GetResults,
    /// The backend accepts the crops and discards them.
    #[enum_value(name = "Accept and discard (benchmarks)", nick = "dry-run")]
    DryRun,
}

impl Endpoint {
    /// The last segment of the call's path.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StoreResults => "store-results",
            Self::SendResults => "send-results",
            Self::GetResults => "get-results",
            Self::DryRun => "dry-run",
        }
    }
}

/// Where and how to upload.
#[derive(Debug, Clone)]
pub struct UploadConfig {
    /// Root of the backend's API, `http://` or `https://`; a path in it is kept as a prefix.
    pub backend_url: String,
    /// The call to post to.
    pub endpoint: Endpoint,
    /// Name of the camera, sent as `camera_id`.
    pub camera_id: String,
    /// Where the camera stands, sent as `location`.
    pub camera_location: String,
    /// Limit for one request, from connecting to the last byte of the answer.
    pub timeout: Duration,
    /// Crops that may wait, at least 1.
    pub max_queue: usize,
    /// Crops in one request, at least 1.
    pub max_batch: usize,
    /// Requests under way at the same time, at least 1.
    pub workers: usize,
    /// How long to wait before a request is repeated.
    pub backoff: Backoff,
}

impl Default for UploadConfig {
    fn default() -> Self {
        Self {
            backend_url: "http://127.0.0.1:8080".into(),
            endpoint: Endpoint::default(),
            camera_id: String::new(),
            camera_location: String::new(),
            timeout: Duration::from_secs(15),
            max_queue: 256,
            max_batch: 8,
            workers: 2,
            backoff: Backoff::default(),
        }
    }
}

/// One crop and what is known about it.
#[derive(Debug, Clone)]
pub struct Crop {
    /// The encoded picture.
    pub jpeg: Bytes,
    /// When the frame was captured.
    pub captured_at: OffsetDateTime,
    /// Track id, where the faces are tracked.
    pub track_id: Option<i32>,
    /// Left, top, right, bottom of the face in pixels of the full frame; `None` for a picture of unknown
    /// origin.
    pub bounding_box: Option<[u32; 4]>,
    /// Idempotency key, unique per crop.
    pub key: Uuid,
}

/// What happened, as told to the observer.
#[derive(Debug, Clone)]
pub enum Event {
    /// The backend took a crop.
    Answered {
        /// The crop.
        crop: Crop,
        /// Status of the answer, 200 to 299.
        status: u16,
        /// Version of the model that the backend answered with.
        model_version: Option<String>,
        /// The faces that the backend found on this crop, as its API describes them; empty where the call
        /// answers without any.
        faces: Vec<Value>,
    },
    /// The backend refused a crop, and repeating it would not help.
    Rejected {
        /// The crop.
        crop: Crop,
        /// Status of the answer.
        status: u16,
        /// What the backend said.
        message: String,
        /// True if the request before was not rejected: the moment to warn, once.
        first: bool,
    },
    /// The backend cannot be reached, or fails. Told once per outage.
    Outage {
        /// What went wrong.
        reason: String,
    },
    /// The backend answers again.
    Recovered {
        /// Since the beginning of the outage.
        after: Duration,
    },
}

/// Told of every [`Event`], on a thread of the uploader's: it must not block.
pub type Observer = Arc<dyn Fn(Event) + Send + Sync>;

/// Counts since the uploader was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Crops that wait or are under way now.
    pub queued: u64,
    /// Crops that the backend took.
    pub sent: u64,
    /// Crops that the backend refused.
    pub failed: u64,
    /// Crops that gave way in a full queue, or were left when the uploader was stopped.
    pub dropped: u64,
    /// Requests begun, repetitions included.
    pub requests: u64,
    /// Requests that were repetitions.
    pub retries: u64,
    /// Bytes written to the network: bodies, headers, and TLS where it is used.
    pub bytes: u64,
    /// Bytes read from the network.
    pub bytes_received: u64,
}

/// How waiting for the queue to empty ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Nothing waits any more.
    Empty,
    /// The limit was reached with so many crops left; they are still being sent.
    TimedOut {
        /// Crops left.
        left: u64,
    },
    /// [`Uploader::interrupt`] was called.
    Interrupted,
}

/// Why an uploader cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The backend's address is of no use.
    #[error("backend-url `{url}` {reason}; give it as http://host:port or https://host:port")]
    Url {
        /// The address.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No certificates to check the backend's against.
    #[error(
        "backend-url is https, but no root certificates were found ({0}): install the package ca-certificates"
    )]
    Certificates(String),
    /// The threads of the uploader.
    #[error("cannot start the uploader's threads: {0}")]
    Runtime(String),
}

/// Uploads crops in the background. Stops when dropped.
pub struct Uploader {
    shared: Arc<Shared>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

impl Uploader {
    /// Checks the configuration and starts the workers. Does not connect yet.
    ///
    /// # Errors
    ///
    /// A backend URL that cannot be used, and a lack of root certificates or threads.
    pub fn start(config: UploadConfig, observer: Observer) -> Result<Self, UploadError> {
        let uri = endpoint_uri(&config.backend_url, config.endpoint)?;
        let traffic = Arc::new(Traffic::default());
        let client = connection::client(&uri, config.timeout, Arc::clone(&traffic))?;
        let runtime = runtime()?;
        let workers = config.workers.max(1);
        let shared = Arc::new(Shared {
            config,
            uri,
            client,
            observer,
            traffic,
            state: Mutex::default(),
            idle: Condvar::new(),
            filled: Notify::new(),
            recovered: Notify::new(),
            counts: Counts::default(),
        });
        let workers = (0..workers)
            .map(|_| {
                let shared = Arc::clone(&shared);
                runtime.spawn(async move {
                    loop {
                        let batch = shared.next_batch().await;
                        shared.deliver(batch).await;
                    }
                })
            })
            .collect();
        Ok(Self { shared, workers: Mutex::new(workers) })
    }

    /// Queues a crop and returns at once. True if the queue was full, and the oldest crop gave way.
    pub fn push(&self, crop: Crop) -> bool {
        let shared = &self.shared;
        let mut state = shared.lock();
        if state.closed {
            shared.counts.dropped.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        let full = state.queue.len() >= shared.config.max_queue.max(1);
        if full {
            state.queue.pop_front();
            shared.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
        state.queue.push_back(crop);
        drop(state);
        shared.filled.notify_one();
        full
    }

    /// Waits until every queued crop was answered, at most `limit`.
    pub fn drain(&self, limit: Duration) -> Drained {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        loop {
            if state.interrupted {
                return Drained::Interrupted;
            }
            if state.pending() == 0 {
                return Drained::Empty;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) else {
                return Drained::TimedOut { left: state.pending() };
            };
            state = self
                .shared
                .idle
                .wait_timeout(state, left)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
    }

    /// Ends a [`drain`](Self::drain) under way, and every later one until [`resume`](Self::resume).
    pub fn interrupt(&self) {
        self.shared.lock().interrupted = true;
        self.shared.idle.notify_all();
    }

    /// Undoes [`interrupt`](Self::interrupt).
    pub fn resume(&self) {
        self.shared.lock().interrupted = false;
    }

    /// The counts as they are now.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Ends every request under way, gives up what waits (counted as dropped) and returns the final counts.
    /// What is pushed afterwards is dropped.
    pub fn stop(&self) -> Stats {
        let workers = std::mem::take(&mut *self.workers.lock().unwrap_or_else(PoisonError::into_inner));
        for worker in workers {
            worker.abort();
        }
        let mut state = self.shared.lock();
        let left = state.pending();
        state.queue.clear();
        state.in_flight = 0;
        state.closed = true;
        self.shared.counts.dropped.fetch_add(left, Ordering::Relaxed);
        drop(state);
        self.shared.idle.notify_all();
        self.shared.stats()
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Shared {
    config: UploadConfig,
    uri: Uri,
    client: Client,
    observer: Observer,
    traffic: Arc<Traffic>,
    state: Mutex<State>,
    /// Signalled when nothing waits and nothing is under way.
    idle: Condvar,
    /// One permit: there is something to take.
    filled: Notify,
    /// The backend answers again: no need to wait out the back-off.
    recovered: Notify,
    counts: Counts,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Crop>,
    in_flight: u64,
    interrupted: bool,
    closed: bool,
    outage_since: Option<Instant>,
    rejecting: bool,
}

impl State {
    fn pending(&self) -> u64 {
        u64::try_from(self.queue.len()).unwrap_or(u64::MAX).saturating_add(self.in_flight)
    }
}

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
    requests: AtomicU64,
    retries: AtomicU64,
}

/// How the delivery of a batch ended.
enum Delivery {
    Accepted { status: StatusCode, body: Bytes },
    Rejected { status: StatusCode, message: String },
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every critical section leaves the state whole, so a panic elsewhere doesn't spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stats(&self) -> Stats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            queued: self.lock().pending(),
            sent: count(&self.counts.sent),
            failed: count(&self.counts.failed),
            dropped: count(&self.counts.dropped),
            requests: count(&self.counts.requests),
            retries: count(&self.counts.retries),
            bytes: count(&self.traffic.written),
            bytes_received: count(&self.traffic.read),
        }
    }

    async fn next_batch(&self) -> Vec<Crop> {
        loop {
            let filled = self.filled.notified();
            let batch = self.take_batch();
            if !batch.is_empty() {
                return batch;
            }
            filled.await;
        }
    }

    /// Takes from the front of the queue what fits in one request. Optional fields are matched to the
    /// pictures by their order, so a request's crops either all have a field or all lack it.
    fn take_batch(&self) -> Vec<Crop> {
        let mut state = self.lock();
        let mut batch: Vec<Crop> = Vec::new();
        while batch.len() < self.config.max_batch.max(1) {
            let fits = match (batch.first(), state.queue.front()) {
                (_, None) => false,
                (None, Some(_)) => true,
                (Some(first), Some(next)) => {
                    first.track_id.is_some() == next.track_id.is_some()
                        && first.bounding_box.is_some() == next.bounding_box.is_some()
                }
            };
            match state.queue.pop_front_if(|_| fits) {
                Some(crop) => batch.push(crop),
                None => break,
            }
        }
        state.in_flight = state.in_flight.saturating_add(u64::try_from(batch.len()).unwrap_or(0));
        let more = !state.queue.is_empty();
        drop(state);
        if more {
            self.filled.notify_one();
        }
        batch
    }

    async fn deliver(&self, batch: Vec<Crop>) {
        let mut work = VecDeque::from([batch]);
        while let Some(batch) = work.pop_front() {
            match self.post(&batch).await {
                Delivery::Accepted { status, body } => self.accepted(batch, status, &body),
                // One bad picture must not take the others of its request with it.
                Delivery::Rejected { status, .. } if batch.len() > 1 && concerns_the_content(status) => {
                    for crop in batch.into_iter().rev() {
                        work.push_front(vec![crop]);
                    }
                }
                Delivery::Rejected { status, message } => self.rejected(batch, status, &message),
            }
        }
    }

    /// Posts one request, and repeats it for as long as that may help.
    async fn post(&self, batch: &[Crop]) -> Delivery {
        let (content_type, body) = multipart::encode(&self.config, batch);
        let mut internal_errors = 0;
        let mut attempt = 0;
        loop {
            self.counts.requests.fetch_add(1, Ordering::Relaxed);
            if attempt > 0 {
                self.counts.retries.fetch_add(1, Ordering::Relaxed);
            }
            let answer = tokio::time::timeout(self.config.timeout, self.request(&content_type, &body)).await;
            let wait = match answer {
                Ok(Ok(answer)) => match retry::judge(answer.status, &answer.headers) {
                    Verdict::Accepted => {
                        self.backend_answers();
                        return Delivery::Accepted { status: answer.status, body: answer.body };
                    }
                    Verdict::Rejected => {
                        self.backend_answers();
                        let message = error_message(&answer);
                        return Delivery::Rejected { status: answer.status, message };
                    }
                    Verdict::Busy(wait) => {
                        self.backend_answers();
                        wait
                    }
                    Verdict::Failing(wait) => {
                        self.backend_fails(|| {
                            format!("answers {}: {}", answer.status.as_u16(), error_message(&answer))
                        });
                        if answer.status == StatusCode::INTERNAL_SERVER_ERROR {
                            internal_errors += 1;
                            if internal_errors >= MAX_INTERNAL_ERRORS {
                                let message = error_message(&answer);
                                return Delivery::Rejected { status: answer.status, message };
                            }
                        }
                        wait
                    }
                },
                // A server closes connections that were idle, sometimes just as a request is written to one.
                // That is no outage: repeat it at once on a fresh connection.
                Ok(Err(RequestError::Broken(_))) if attempt == 0 => Some(Duration::ZERO),
                Ok(Err(error)) => {
                    self.backend_fails(|| error.to_string());
                    None
                }
                Err(_) => {
                    self.backend_fails(|| format!("gave no answer within {:?}", self.config.timeout));
                    None
                }
            };
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => {
                    let recovered = self.recovered.notified();
                    let back_off = tokio::time::sleep(self.config.backoff.delay(attempt));
                    tokio::select! { () = recovered => (), () = back_off => () }
                }
            }
            attempt = attempt.saturating_add(1);
        }
    }

    async fn request(&self, content_type: &str, body: &Bytes) -> Result<Answer, RequestError> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(self.uri.clone())
            .header(header::CONTENT_TYPE, content_type)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("facepipe/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body.clone()))
            .map_err(|e| RequestError::Broken(e.to_string()))?;
        let response = self.client.request(request).await.map_err(|e| {
            if e.is_connect() {
                RequestError::Unreachable(root_cause(&e))
            } else {
                RequestError::Broken(root_cause(&e))
            }
        })?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER)
            .collect()
            .await
            .map_err(|e| RequestError::Broken(root_cause(&*e)))?
            .to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    fn accepted(&self, batch: Vec<Crop>, status: StatusCode, body: &[u8]) {
        let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        self.counts.sent.fetch_add(count, Ordering::Relaxed);
        let answer: Value = serde_json::from_slice(body).unwrap_or_default();
        let model_version = match answer.get("model_version") {
            Some(Value::String(version)) => Some(version.clone()),
            Some(Value::Null) | None => None,
            Some(other) => Some(other.to_string()),
        };
        let mut faces: Vec<Vec<Value>> = vec![Vec::new(); batch.len()];
        for face in answer.get("faces").and_then(Value::as_array).into_iter().flatten() {
            let image = face.get("image").and_then(Value::as_u64).unwrap_or(0);
            if let Some(of_crop) = usize::try_from(image).ok().and_then(|i| faces.get_mut(i)) {
                of_crop.push(face.clone());
            }
        }
        for (crop, faces) in batch.into_iter().zip(faces) {
            let model_version = model_version.clone();
            (self.observer)(Event::Answered { crop, status: status.as_u16(), model_version, faces });
        }
        self.lock().rejecting = false;
        self.done(count);
    }

    fn rejected(&self, batch: Vec<Crop>, status: StatusCode, message: &str) {
        let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        self.counts.failed.fetch_add(count, Ordering::Relaxed);
        for crop in batch {
            let first = !std::mem::replace(&mut self.lock().rejecting, true);
            let message = message.to_owned();
            (self.observer)(Event::Rejected { crop, status: status.as_u16(), message, first });
        }
        self.done(count);
    }

    fn done(&self, count: u64) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        state.in_flight = state.in_flight.saturating_sub(count);
        let idle = state.pending() == 0;
        drop(state);
        if idle {
            self.idle.notify_all();
        }
    }

    fn backend_fails(&self, reason: impl FnOnce() -> String) {
        let mut state = self.lock();
        if state.outage_since.is_none() && !state.closed {
            state.outage_since = Some(Instant::now());
            drop(state);
            (self.observer)(Event::Outage { reason: reason() });
        }
    }

    fn backend_answers(&self) {
        let since = self.lock().outage_since.take();
        if let Some(since) = since {
            self.recovered.notify_waiters();
            (self.observer)(Event::Recovered { after: since.elapsed() });
        }
    }
}

struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    body: Bytes,
}

#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    #[error("broke the connection: {0}")]
    Broken(String),
}

/// What the backend said, in a form fit for a message to people.
fn error_message(answer: &Answer) -> String {
    let json: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let said = json.pointer("/error/message").and_then(Value::as_str);
    let text = said.or_else(|| answer.status.canonical_reason()).unwrap_or("no reason given");
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// True if another content of the same request might be accepted.
fn concerns_the_content(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNSUPPORTED_MEDIA_TYPE
            | StatusCode::UNPROCESSABLE_ENTITY
            | StatusCode::INTERNAL_SERVER_ERROR
    )
}

/// The innermost error says what happened ("Connection refused"), the outer ones only where.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn endpoint_uri(backend_url: &str, endpoint: Endpoint) -> Result<Uri, UploadError> {
    let refuse = |reason: &str| UploadError::Url { url: backend_url.into(), reason: reason.into() };
    let base: Uri = backend_url.trim().parse().map_err(|_| refuse("is not a URL"))?;
    if !matches!(base.scheme_str(), Some("http" | "https")) {
        return Err(refuse("begins with neither http:// nor https://"));
    }
    let authority = base.authority().ok_or_else(|| refuse("names no host"))?;
    if authority.as_str().contains('@') {
        return Err(refuse("contains a user name, which is not supported"));
    }
    if base.query().is_some() {
        return Err(refuse("contains a query"));
    }
    let path = format!("{}/face-recognition/{}", base.path().trim_end_matches('/'), endpoint.as_str());
    Uri::builder()
        .scheme(base.scheme_str().unwrap_or("http"))
        .authority(authority.as_str())
        .path_and_query(path)
        .build()
        .map_err(|_| refuse("is not a URL"))
}

/// One runtime for every sink of the process.
fn runtime() -> Result<&'static Runtime, UploadError> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    RUNTIME
        .get_or_init(|| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .thread_name("facepipe-upload")
                .enable_all()
                .build()
                .map_err(|e| e.to_string())
        })
        .as_ref()
        .map_err(|e| UploadError::Runtime(e.clone()))
}
