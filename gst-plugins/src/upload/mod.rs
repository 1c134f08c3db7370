//! The uploader: takes face crops from the streaming thread without ever making it wait, and posts them to
//! the backend from worker tasks. Plain Rust: it knows nothing of GStreamer, the sink element only feeds it.
//!
//! What waits in memory is bounded; [`DropPolicy`] says what happens when the queue is full. A worker takes what
//! waits, up to [`RuntimeSettings::batch_size`] crops of one camera, into one request. A request that met a dead, failing or
//! busy backend is repeated, with the same idempotency key per crop, so that a repetition never stores a face
//! twice. While the backend is not well one request at a time asks whether it is again.
//!
//! With a [spool](SpoolConfig) the crops go to disk while the backend is away, when the queue is half full, and
//! when the uploader stops. A thread of its own does all that: neither the streaming thread nor the workers ever
//! wait for the disk. Live crops are sent first, those of the spool in order of capture when no live ones wait.

mod connection;
mod multipart;
mod retry;
mod spool;
mod state;
mod tls;
mod token;
mod traces;

use std::{
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
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
pub use connection::{proxy, tls};
pub use multipart::{encode_key, format_captured_at};
pub use retry::Backoff;
use retry::ResponseClass;
pub use spool::{Spool, SpoolConfig, SpoolCounts, SpoolEntry, SpoolError, SpoolId, StoreError};
use state::{Batch, NextAction, PendingUpload, SpoolTask, State, TryPush, count};
pub use tls::KeyPin;
use token::TokenFile;
pub use token::{Token, TokenError};
use traces::{Attempt, Tracer};

use crate::crop::Encoding;

/// Answers are a few kilobytes; one that is longer than this (bytes) is not from our backend.
const MAX_RESPONSE_BYTES: usize = 8 << 20;

/// An answer `500` may be the crop's own fault: after so many of them, the last when it was sent by itself, a crop
/// is given up.
const MAX_INTERNAL_ERRORS: u32 = 5;

/// How long the end of a stream waits, after its limit, for the disk to take what is left.
const SPILL_LIMIT: Duration = Duration::from_secs(5);

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

/// Which crop is lost when the queue in memory is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstFacepipeDropPolicy")]
#[repr(i32)]
pub enum DropPolicy {
    /// The one that waits longest.
    #[default]
    #[enum_value(name = "The crop that waits longest gives way", nick = "oldest")]
    Oldest,
    /// The one that has just come.
    #[enum_value(name = "The crop that has just come is dropped", nick = "newest")]
    Newest,
    /// None: whoever brings crops waits. For recordings; a live source would lose frames.
    #[enum_value(name = "None: the stream waits for room (for recordings)", nick = "block")]
    Block,
}

/// Where and how to upload.
#[derive(Debug, Clone)]
pub struct UploadConfig {
    /// Root of the backend's API, `http://` or `https://`; a path in it is kept as a prefix.
    pub backend_url: String,
    /// The call to post to.
    pub endpoint: Endpoint,
    /// Certificates that are trusted beside the system's, a file in PEM form: authorities', or the backend's own.
    pub ca_file: Option<PathBuf>,
    /// Digests of the backend's public key as [`KeyPin::parse_all`] reads them. Who has one of these keys is the backend; with
    /// `ca_file`, the certificate is checked as well.
    pub pinned_sha256: Option<String>,
    /// Requests under way at the same time, at least 1.
    pub workers: usize,
    /// How long to wait before a request is repeated.
    pub backoff: Backoff,
    /// Collector of OpenTelemetry traces, `http://` or `https://`: OTLP, protobuf over HTTP, to `v1/traces` below it.
    /// Nothing is traced if unset.
    pub otlp_endpoint: Option<String>,
    /// Where crops are kept while the backend is away; in memory alone if unset.
    pub spool: Option<SpoolConfig>,
    /// What may change later.
    pub settings: RuntimeSettings,
}

impl Default for UploadConfig {
    fn default() -> Self {
        Self {
            backend_url: "http://127.0.0.1:8080".into(),
            endpoint: Endpoint::default(),
            ca_file: None,
            pinned_sha256: None,
            workers: 2,
            backoff: Backoff::default(),
            otlp_endpoint: None,
            spool: None,
            settings: RuntimeSettings::default(),
        }
    }
}

/// What may be changed while crops are uploaded.
#[derive(Debug, Clone)]
pub struct RuntimeSettings {
    /// Limit for one request, from connecting to the last byte of the answer; zero: none.
    pub timeout: Duration,
    /// Crops that may wait in memory, at least 1.
    pub max_queue: usize,
    /// Crops in one request, at least 1.
    pub batch_size: usize,
    /// How long a crop waits for others to share its request.
    pub batch_delay: Duration,
    /// How often a crop is sent again before it is given up or, with a spool, how often the backend may fail in a
    /// row before the crops go there. `None`: without end, and to the spool at once.
    pub retries: Option<u32>,
    /// What happens when the queue is full.
    pub drop_policy: DropPolicy,
    /// Sent with each request.
    pub token: Option<Token>,
    /// Read for each request, where `token` is unset.
    pub token_file: Option<PathBuf>,
    /// How often [`Event::Stats`] is told; zero: never.
    pub stats_interval: Duration,
}

impl Default for RuntimeSettings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(15),
            max_queue: 512,
            batch_size: 8,
            batch_delay: Duration::from_secs(1),
            retries: None,
            drop_policy: DropPolicy::default(),
            token: None,
            token_file: None,
            stats_interval: Duration::ZERO,
        }
    }
}

/// Characters of a camera's id and of its location at most: the backend's own limit.
const MAX_CAMERA_CHARACTERS: usize = 200;

/// What the backend would refuse with each request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CameraError {
    /// Too many characters, or none.
    #[error("{field} `{shown}` has {characters} characters, it must have {least} to 200")]
    Length {
        /// The property.
        field: &'static str,
        /// How it begins.
        shown: String,
        /// Its characters.
        characters: usize,
        /// So many it must have.
        least: usize,
    },
    /// A line break, a tab or the like.
    #[error("{field} `{shown}` has the control character {control:?}, and it must have none")]
    ControlCharacter {
        /// The property.
        field: &'static str,
        /// How it begins, with its control characters as Rust writes them.
        shown: String,
        /// The first of them.
        control: char,
    },
}

/// A camera, as the detections of its faces name it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Camera {
    /// Its name, sent as `camera_id`.
    pub id: String,
    /// Where it stands, sent as `location`.
    pub location: String,
}

impl Camera {
    /// Whether the backend takes such a camera.
    ///
    /// # Errors
    ///
    /// The id has not 1 to 200 characters, the location more than 200, or one of them has control characters.
    pub fn validate(&self) -> Result<(), CameraError> {
        for (field, text, least) in [("camera-id", &self.id, 1), ("camera-location", &self.location, 0)] {
            let characters = text.chars().count();
            let shown = || text.chars().take(40).flat_map(char::escape_debug).collect();
            if !(least..=MAX_CAMERA_CHARACTERS).contains(&characters) {
                return Err(CameraError::Length { field, shown: shown(), characters, least });
            }
            if let Some(control) = text.chars().find(|c| c.is_control()) {
                return Err(CameraError::ControlCharacter { field, shown: shown(), control });
            }
        }
        Ok(())
    }
}

/// One crop and what is known about it.
#[derive(Debug, Clone)]
pub struct Crop {
    /// The encoded picture.
    pub image: Bytes,
    /// Its form.
    pub encoding: Encoding,
    /// Whose it is.
    pub camera: Arc<Camera>,
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

/// Why crops wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendStatus {
    /// The backend is well but has no time.
    Busy,
    /// It cannot be reached, fails, or is not at this address.
    Unavailable,
    /// It doesn't take the token.
    Unauthorized,
}

/// What happened, as told to the observer.
#[derive(Debug, Clone)]
pub enum Event {
    /// The backend took a crop.
    Accepted {
        /// The crop.
        crop: Crop,
        /// Status of the answer, 200 to 299.
        status: u16,
        /// Version of the model that the backend answered with.
        model_version: Option<String>,
        /// The faces that the backend found on this crop, as its API describes them; empty where the call
        /// answers without any.
        faces: Vec<Value>,
        /// True for a crop that an earlier run left on the spool: its track is none of this run's.
        earlier_run: bool,
    },
    /// The backend refused a crop, and repeating it would not help, or its repetitions were used up.
    Rejected {
        /// The crop.
        crop: Crop,
        /// Status of the last answer; 0 if there was none. A crop that is refused beside others of its request that
        /// are taken has their status.
        status: u16,
        /// The backend's name for the reason, where it gave one.
        code: Option<String>,
        /// What the backend said, or why there was no answer.
        message: String,
        /// True if the crop before was not rejected: the moment to warn, once.
        first: bool,
    },
    /// Crops wait. Told once for each kind of trouble until the backend is well again.
    BackendUnhealthy {
        /// How it is unhealthy.
        status: BackendStatus,
        /// HTTP status of its response; `None` if there was none.
        http_status: Option<u16>,
        /// What went wrong.
        reason: String,
        /// How long nothing is sent.
        retry_in: Duration,
    },
    /// The backend answers well again.
    BackendRecovered {
        /// Since the beginning of the trouble.
        after: Duration,
        /// True if it was no more than busy.
        was_busy: bool,
    },
    /// The spool cannot be written, or has torn files. Told once until it is well again.
    SpoolProblem {
        /// What went wrong.
        reason: String,
    },
    /// The collector of traces did not take spans. Told once until it takes some.
    SpansLost {
        /// What went wrong.
        reason: String,
    },
    /// The counts, as often as [`RuntimeSettings::stats_interval`] says.
    Stats(Stats),
}

/// Told of every [`Event`], on a thread of the uploader's: it must not block.
pub type Observer = Arc<dyn Fn(Event) + Send + Sync>;

/// Counts since the uploader was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Crops that wait in memory or are under way now.
    pub queued: u64,
    /// Crops that the backend took.
    pub sent: u64,
    /// Crops that the backend refused, or whose repetitions were used up.
    pub failed: u64,
    /// Crops that gave way in a full queue, or were left when the uploader was stopped.
    pub dropped: u64,
    /// Crops that went to the spool.
    pub spooled: u64,
    /// Crops on the spool now.
    pub spool_files: u64,
    /// Bytes of the spool's files now.
    pub spool_bytes: u64,
    /// Crops that gave way on a full spool.
    pub spool_dropped: u64,
    /// Torn files that were found on the spool.
    pub spool_damaged: u64,
    /// Times that the disk refused to take crops.
    pub spool_errors: u64,
    /// Requests begun, repetitions included.
    pub requests: u64,
    /// Requests with crops that were sent before.
    pub retries: u64,
    /// Bytes written to the network: bodies, headers, and TLS where it is used.
    pub bytes: u64,
    /// Bytes read from the network.
    pub bytes_received: u64,
    /// Bytes of the pictures that the backend took.
    pub image_bytes: u64,
}

/// How waiting for the queue to empty ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainOutcome {
    /// Nothing waits any more.
    Empty,
    /// The limit was reached.
    TimedOut {
        /// Crops left in memory, still being sent.
        left: u64,
        /// Crops left on the spool.
        spooled: u64,
    },
    /// [`Uploader::interrupt`] was called.
    Interrupted,
}

/// How queueing a crop ended.
#[derive(Debug)]
pub enum PushOutcome {
    /// It waits.
    Queued,
    /// The queue was full, and a crop gave way.
    Dropped,
    /// [`Uploader::interrupt`] was called while there was no room.
    Interrupted(Crop),
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
        "backend-url is https, but no root certificates were found ({0}): install the package ca-certificates, or \
         set ca-file"
    )]
    Certificates(String),
    /// The collector's address is of no use.
    #[error("otlp-endpoint `{url}` {reason}; give it as http://host:port or https://host:port")]
    Collector {
        /// The address.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is a collector, and nothing here that could send spans to it.
    #[error(
        "otlp-endpoint is `{0}`, but this plugin was built without traces: build gst-plugin-facepipe with its feature \
         `traces`, which it has by default, or leave the property out"
    )]
    WithoutTraces(String),
    /// The proxy that the environment names is of a kind that is not supported.
    #[error(
        "the proxy `{proxy}`, which the environment names (http_proxy, https_proxy or all_proxy), is not supported; \
         give one as http://host:port, or except the backend by no_proxy"
    )]
    Proxy {
        /// Its address.
        proxy: String,
    },
    /// The file of roots cannot be used.
    #[error("ca-file `{}` cannot be used: {reason}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The backend's keys are not named as they must be.
    #[error(
        "pinned-sha256 `{0}` is not the SHA-256 digest of a public key in base64, such as sha256//{example}; several have \
         semicolons between them",
        example = "YLh1dUR9y6Kja30RrAn7JKnbQG/uEtLMkBgFF2Fuihg="
    )]
    Pin(String),
    /// Keys are named, and none is asked for.
    #[error("pinned-sha256 is given, and backend-url `{0}` is not https: nobody would prove a key")]
    PinWithoutTls(String),
    /// The token's file cannot be used.
    #[error("token-file `{}` {error}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: TokenError,
    },
    /// The spool cannot be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The threads of the uploader.
    #[error("cannot start the uploader's threads: {0}")]
    Runtime(String),
}

/// Uploads crops in the background. Stops when dropped.
pub struct Uploader {
    shared: Arc<Shared>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    spool: Mutex<Option<thread::JoinHandle<()>>>,
}

impl Uploader {
    /// Checks the configuration and starts the workers. Does not connect yet. What an earlier run left on the
    /// spool is sent.
    ///
    /// # Errors
    ///
    /// A backend URL, collector's URL, token file, CA file or spool that cannot be used, and a lack of root certificates
    /// or threads.
    pub fn start(config: UploadConfig, observer: Observer) -> Result<Self, UploadError> {
        let uri = endpoint_uri(&config.backend_url, config.endpoint)?;
        if let (None, Some(path)) = (&config.settings.token, &config.settings.token_file) {
            Token::read(path).map_err(|error| UploadError::TokenFile { path: path.clone(), error })?;
        }
        let pins = config.pinned_sha256.as_deref().map(KeyPin::parse_all).transpose()?.unwrap_or_default();
        if !pins.is_empty() && uri.scheme_str() != Some("https") {
            return Err(UploadError::PinWithoutTls(config.backend_url));
        }
        let traffic = Arc::new(Traffic::default());
        let client = connection::client(&uri, config.ca_file.as_deref(), &pins, Arc::clone(&traffic))?;
        let runtime = runtime()?;
        let tracer = config
            .otlp_endpoint
            .as_deref()
            .map(|endpoint| {
                let (ca_file, runtime) = (config.ca_file.as_deref(), runtime.handle().clone());
                Tracer::start(endpoint, ca_file, runtime, Arc::clone(&observer))
            })
            .transpose()?;
        let spool = config.spool.as_ref().map(Spool::open).transpose()?;
        let workers = config.workers.max(1);
        let shared = Arc::new(Shared {
            endpoint: config.endpoint,
            backoff: config.backoff,
            uri,
            client,
            tracer: Mutex::new(tracer.map(Arc::new)),
            observer,
            traffic,
            token_file: tokio::sync::Mutex::default(),
            state: Mutex::new(State::new(config.settings, workers, spool.as_ref().map(Spool::counts))),
            reported: Mutex::default(),
            changed: Condvar::new(),
            spool_wanted: Condvar::new(),
            filled: Notify::new(),
            settings_changed: Notify::new(),
            counts: Counts::default(),
        });
        let spool = match spool {
            None => None,
            Some(spool) => {
                let shared = Arc::clone(&shared);
                let thread = thread::Builder::new().name("facepipe-spool".into());
                let running = thread.spawn(move || shared.run_spool(spool));
                Some(running.map_err(|e| UploadError::Runtime(e.to_string()))?)
            }
        };
        let mut tasks: Vec<JoinHandle<()>> = (0..workers)
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
        let reporter = Arc::clone(&shared);
        tasks.push(runtime.spawn(async move { reporter.report_stats().await }));
        Ok(Self { shared, tasks: Mutex::new(tasks), spool: Mutex::new(spool) })
    }

    /// Queues a crop. Returns at once, unless the queue is full and the policy is [`DropPolicy::Block`].
    pub fn push(&self, crop: Crop) -> PushOutcome {
        let shared = &self.shared;
        let mut state = shared.lock();
        let mut crop = crop;
        let pushed = loop {
            match state.try_push(crop, true) {
                TryPush::Queued => break PushOutcome::Queued,
                TryPush::Dropped => break PushOutcome::Dropped,
                TryPush::Full(refused) if state.interrupted => return PushOutcome::Interrupted(refused),
                TryPush::Full(refused) => {
                    crop = refused;
                    state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        };
        drop(state);
        shared.pushed(matches!(pushed, PushOutcome::Dropped));
        pushed
    }

    /// Queues a crop and returns at once: where the policy is [`DropPolicy::Block`], beyond the queue's limit.
    pub fn push_nonblocking(&self, crop: Crop) {
        let queued = self.shared.lock().try_push(crop, false);
        self.shared.pushed(matches!(queued, TryPush::Dropped));
    }

    /// Changes what may be changed. Requests under way end as they began.
    pub fn update_settings(&self, settings: RuntimeSettings) {
        self.shared.lock().settings = Arc::new(settings);
        self.shared.filled.notify_waiters();
        self.shared.settings_changed.notify_one();
        self.shared.spool_wanted.notify_one();
        self.shared.changed.notify_all();
    }

    /// Waits until every crop was answered, those of the spool included, at most `limit`. Crops that are left in
    /// memory go to the spool, if there is one.
    pub fn drain(&self, limit: Duration) -> DrainOutcome {
        let shared = &self.shared;
        shared.lock().draining = true;
        shared.filled.notify_waiters();
        let drained = self.wait_for(limit, |state| state.pending() == 0);
        let timed_out = drained == DrainOutcome::Interrupted || drained == DrainOutcome::Empty;
        if !timed_out && shared.lock().has_spool() {
            shared.lock().spill_all = true;
            shared.spool_wanted.notify_one();
            // Those under way are still being sent; they return to the queue if they fail.
            self.wait_for(SPILL_LIMIT.min(limit), |state| !state.has_unsent_live());
        }
        let mut state = shared.lock();
        state.draining = false;
        state.spill_all = false;
        match drained {
            DrainOutcome::TimedOut { .. } => {
                let left = count(state.live());
                DrainOutcome::TimedOut { left, spooled: state.pending().saturating_sub(left) }
            }
            other => other,
        }
    }

    fn wait_for(&self, limit: Duration, holds: impl Fn(&State) -> bool) -> DrainOutcome {
        let begin = Instant::now();
        let mut state = self.shared.lock();
        loop {
            if state.interrupted {
                return DrainOutcome::Interrupted;
            }
            if holds(&state) {
                return DrainOutcome::Empty;
            }
            let Some(left) = limit.checked_sub(begin.elapsed()).filter(|left| !left.is_zero()) else {
                return DrainOutcome::TimedOut { left: 0, spooled: 0 };
            };
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
    }

    /// Ends a [`drain`](Self::drain) or a [`push`](Self::push) that waits, and every later one until
    /// [`resume`](Self::resume).
    pub fn interrupt(&self) {
        self.shared.lock().interrupted = true;
        self.shared.changed.notify_all();
    }

    /// Undoes [`interrupt`](Self::interrupt).
    pub fn resume(&self) {
        self.shared.lock().interrupted = false;
    }

    /// The counts as they are now.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Ends every request under way, puts what is left on the spool, or gives it up (counted as dropped), and
    /// returns the final counts. Waits for the disk, not for the network. What is pushed afterwards is dropped.
    pub fn stop(&self) -> Stats {
        let shared = &self.shared;
        for task in std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner)) {
            task.abort();
        }
        shared.lock().close();
        shared.spool_wanted.notify_one();
        shared.changed.notify_all();
        if let Some(spool) = self.spool.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A panic in that thread was its own end; what it has not stored is counted below.
            let _ = spool.join();
        }
        let left = shared.lock().discard_unsent();
        shared.counts.dropped.fetch_add(left, Ordering::Relaxed);
        // The last to have it sends what is left of the spans.
        let tracer = shared.tracer.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(tracer);
        shared.stats()
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Shared {
    endpoint: Endpoint,
    backoff: Backoff,
    uri: Uri,
    client: Client,
    /// Until the uploader stops.
    tracer: Mutex<Option<Arc<Tracer>>>,
    observer: Observer,
    traffic: Arc<Traffic>,
    token_file: tokio::sync::Mutex<TokenFile>,
    state: Mutex<State>,
    reported: Mutex<Reported>,
    /// Signalled when crops have left the queue, were settled, or whoever waits is to look again.
    changed: Condvar,
    /// Signalled when the spool's thread may have something to do.
    spool_wanted: Condvar,
    /// One permit: there is something to send.
    filled: Notify,
    /// The interval of the statistics may have changed.
    settings_changed: Notify,
    counts: Counts,
}

/// What was told about the backend's state.
#[derive(Default)]
struct Reported {
    since: Option<Instant>,
    busy: bool,
    unavailable: bool,
    unauthorized: bool,
    rejecting: bool,
}

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
    spool_errors: AtomicU64,
    requests: AtomicU64,
    retries: AtomicU64,
    image_bytes: AtomicU64,
}

/// What a request met.
enum RequestOutcome {
    Accepted {
        status: StatusCode,
        body: Bytes,
    },
    Rejected(ErrorResponse),
    Retry {
        status: BackendStatus,
        error: ErrorResponse,
        retry_after: Option<Duration>,
        is_internal_error: bool,
    },
    /// The connection was closed before anything was answered.
    ConnectionClosed(String),
}

impl RequestOutcome {
    /// The answer's status, if there was an answer.
    fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Accepted { status, .. } => Some(*status),
            Self::Rejected(error) | Self::Retry { error, .. } => StatusCode::from_u16(error.status).ok(),
            Self::ConnectionClosed(_) => None,
        }
    }
}

/// Why crops were not taken.
#[derive(Clone)]
struct ErrorResponse {
    /// 0 without an answer.
    status: u16,
    code: Option<String>,
    message: String,
}

impl ErrorResponse {
    fn no_response(message: String) -> Self {
        Self { status: 0, code: None, message }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every critical section leaves the state whole, so a panic elsewhere doesn't spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reported(&self) -> MutexGuard<'_, Reported> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stats(&self) -> Stats {
        let (queued, spool) = {
            let state = self.lock();
            (count(state.live()), state.spool_counts())
        };
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            queued,
            sent: load(&self.counts.sent),
            failed: load(&self.counts.failed),
            dropped: load(&self.counts.dropped),
            spooled: spool.stored,
            spool_files: spool.files,
            spool_bytes: spool.bytes,
            spool_dropped: spool.dropped,
            spool_damaged: spool.damaged,
            spool_errors: load(&self.counts.spool_errors),
            requests: load(&self.counts.requests),
            retries: load(&self.counts.retries),
            bytes: load(&self.traffic.written),
            bytes_received: load(&self.traffic.read),
            image_bytes: load(&self.counts.image_bytes),
        }
    }

    fn pushed(&self, dropped: bool) {
        self.counts.dropped.fetch_add(dropped.into(), Ordering::Relaxed);
        self.filled.notify_one();
        self.spool_wanted.notify_one();
    }

    async fn report_stats(&self) {
        loop {
            let settings_changed = self.settings_changed.notified();
            let interval = self.lock().settings.stats_interval;
            if interval.is_zero() {
                settings_changed.await;
                continue;
            }
            tokio::select! {
                () = settings_changed => (),
                () = tokio::time::sleep(interval) => (self.observer)(Event::Stats(self.stats())),
            }
        }
    }

    async fn next_batch(&self) -> Batch {
        loop {
            let filled = self.filled.notified();
            let (next, more) = {
                let mut state = self.lock();
                let next = state.next(Instant::now());
                (next, state.has_unsent())
            };
            match next {
                NextAction::Send(batch) => {
                    if more {
                        self.filled.notify_one();
                    }
                    self.changed.notify_all();
                    self.spool_wanted.notify_one();
                    return batch;
                }
                NextAction::WaitUntil(time) => {
                    let sleep = tokio::time::sleep_until(time.into());
                    tokio::select! { () = filled => (), () = sleep => () }
                }
                NextAction::Wait => filled.await,
            }
        }
    }

    async fn deliver(&self, batch: Batch) {
        let tracer = self.tracer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let attempt = Attempt::start(&batch.crops);
        let outcome = self.post(&batch, attempt.as_ref()).await;
        if let (Some(tracer), Some(attempt)) = (&tracer, &attempt) {
            tracer.record_attempt(attempt, &batch.crops, outcome.status());
            match &outcome {
                RequestOutcome::Accepted { .. } => tracer.record_result(attempt, &batch.crops, true),
                RequestOutcome::Rejected(_) if batch.crops.len() == 1 => {
                    tracer.record_result(attempt, &batch.crops, false)
                }
                _ => (),
            }
        }
        let now = Instant::now();
        match outcome {
            RequestOutcome::Accepted { status, body } => {
                if self.settle(&batch) {
                    self.recovered();
                    self.accepted(&batch.crops, status, &body);
                    self.settled(&batch.crops);
                }
            }
            // One bad picture must not take the others of its request with it.
            RequestOutcome::Rejected(_) if batch.crops.len() > 1 => {
                self.retry_now(batch, |state, batch| {
                    state.record_success();
                    batch.crops.iter_mut().for_each(|pending| pending.send_alone = true);
                });
                self.recovered();
            }
            RequestOutcome::Rejected(error) => {
                if self.settle(&batch) {
                    self.recovered();
                    self.rejected(&batch.crops, &error);
                    self.settled(&batch.crops);
                }
            }
            // A server closes connections that were idle, sometimes just as a request is written to one. That is
            // no outage: repeat it at once on a fresh connection.
            RequestOutcome::ConnectionClosed(_) if !batch.is_retry() => self.retry_now(batch, |_, _| ()),
            RequestOutcome::ConnectionClosed(reason) => {
                let error = ErrorResponse::no_response(reason);
                self.retry_later(batch, now, BackendStatus::Unavailable, error, None, false);
            }
            RequestOutcome::Retry { status, error, retry_after, is_internal_error } => {
                self.retry_later(batch, now, status, error, retry_after, is_internal_error);
            }
        }
    }

    /// The backend's answer to these crops is final. False if the uploader was stopped meanwhile.
    fn settle(&self, batch: &Batch) -> bool {
        let mut state = self.lock();
        if !state.complete(batch) {
            return false;
        }
        state.begin_settling(&batch.crops);
        state.record_success();
        drop(state);
        self.wake();
        true
    }

    fn settled(&self, crops: &[PendingUpload]) {
        self.lock().finish_settling(crops);
        self.wake();
    }

    /// Gives the crops back to be sent again.
    fn retry_now(&self, mut batch: Batch, change: impl FnOnce(&mut State, &mut Batch)) {
        let mut state = self.lock();
        if !state.complete(&batch) {
            return;
        }
        for pending in &mut batch.crops {
            pending.attempts = pending.attempts.saturating_add(1);
        }
        change(&mut state, &mut batch);
        state.requeue(batch);
        drop(state);
        self.wake();
    }

    fn retry_later(
        &self,
        mut batch: Batch,
        now: Instant,
        status: BackendStatus,
        error: ErrorResponse,
        retry_after: Option<Duration>,
        is_internal_error: bool,
    ) {
        let mut given_up = Vec::new();
        let wait = {
            let mut state = self.lock();
            if !state.complete(&batch) {
                return;
            }
            for pending in &mut batch.crops {
                pending.attempts = pending.attempts.saturating_add(1);
                pending.internal_errors =
                    pending.internal_errors.saturating_add(u32::from(is_internal_error));
                // A proxy that takes no large requests may take small ones.
                pending.send_alone |= error.status == StatusCode::PAYLOAD_TOO_LARGE;
            }
            let wait = state.record_failure(&batch, now, status != BackendStatus::Busy, |failures| {
                retry_after.unwrap_or_else(|| self.backoff.delay(failures))
            });
            // Only what the backend itself fails on, and without a spool, is not repeated for ever; and that a
            // token is not taken is never a crop's fault.
            let keeps = state.has_spool() || status == BackendStatus::Unauthorized;
            let retries = if keeps { None } else { state.settings.retries };
            let by_itself = batch.crops.len() == 1;
            given_up.extend(batch.crops.extract_if(.., |pending| {
                let poisonous = by_itself && pending.internal_errors >= MAX_INTERNAL_ERRORS;
                poisonous || retries.is_some_and(|retries| pending.attempts > retries)
            }));
            state.begin_settling(&given_up);
            state.requeue(batch);
            wait
        };
        self.wake();
        self.report(status, &error, wait);
        if !given_up.is_empty() {
            self.rejected(&given_up, &error);
            self.settled(&given_up);
        }
    }

    /// Whoever waits looks again.
    fn wake(&self) {
        self.filled.notify_waiters();
        // A permit, for a worker that is just about to look.
        self.filled.notify_one();
        self.spool_wanted.notify_one();
        self.changed.notify_all();
    }

    /// Posts one request.
    async fn post(&self, batch: &Batch, attempt: Option<&Attempt>) -> RequestOutcome {
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        if batch.is_retry() {
            self.counts.retries.fetch_add(1, Ordering::Relaxed);
        }
        let settings = Arc::clone(&self.lock().settings);
        let token = self.token(&settings).await;
        let crops: Vec<Crop> = batch.crops.iter().map(|pending| pending.crop.clone()).collect();
        let (content_type, body) = multipart::encode(self.endpoint, &crops);
        let request = self.request(&content_type, body, token.as_ref(), attempt);
        let unavailable = |message| {
            let error = ErrorResponse::no_response(message);
            let status = BackendStatus::Unavailable;
            RequestOutcome::Retry { status, error, retry_after: None, is_internal_error: false }
        };
        // Without a limit of its own, only a connection that breaks ends it.
        let limit = if settings.timeout.is_zero() { Duration::MAX } else { settings.timeout };
        let response = match tokio::time::timeout(limit, request).await {
            Err(_) => return unavailable(format!("gave no answer within {:?}", settings.timeout)),
            Ok(Err(RequestError::ClosedEarly(reason))) => return RequestOutcome::ConnectionClosed(reason),
            Ok(Err(error)) => return unavailable(error.to_string()),
            Ok(Ok(response)) => response,
        };
        let status = response.status;
        let mut error = error_response(&response);
        let (backend, retry_after) = match retry::classify(status, &response.headers, &response.body) {
            ResponseClass::Accepted => return RequestOutcome::Accepted { status, body: response.body },
            ResponseClass::Rejected => return RequestOutcome::Rejected(error),
            ResponseClass::Busy(retry_after) => (BackendStatus::Busy, retry_after),
            ResponseClass::Unavailable(retry_after) => (BackendStatus::Unavailable, retry_after),
            ResponseClass::Unauthorized(retry_after) => {
                let mut file = self.token_file.lock().await;
                file.invalidate();
                if let Some(problem) = file.problem() {
                    error.message = format!("{} ({problem})", error.message);
                } else if token.is_none() {
                    error.message.push_str(" (no token was sent)");
                }
                (BackendStatus::Unauthorized, retry_after)
            }
        };
        let is_internal_error = status == StatusCode::INTERNAL_SERVER_ERROR;
        RequestOutcome::Retry { status: backend, error, retry_after, is_internal_error }
    }

    async fn token(&self, settings: &RuntimeSettings) -> Option<Token> {
        match (&settings.token, &settings.token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(path)) => self.token_file.lock().await.token(path).await,
            (None, None) => None,
        }
    }

    async fn request(
        &self,
        content_type: &str,
        body: Bytes,
        token: Option<&Token>,
        attempt: Option<&Attempt>,
    ) -> Result<Response, RequestError> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(self.uri.clone())
            .header(header::CONTENT_TYPE, content_type);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, token.header());
        }
        if let Some(attempt) = attempt {
            request = request.header("traceparent", attempt.traceparent());
            request = request.header("x-request-id", attempt.request_id());
        }
        let request = request.body(Full::new(body)).map_err(|e| RequestError::Interrupted(root_cause(&e)))?;
        let response = self.client.request(request).await.map_err(|e| {
            if e.is_connect() {
                // What TLS has no word of its own for is ours.
                RequestError::Unreachable(root_cause(&e).trim_start_matches("unexpected error: ").into())
            } else {
                RequestError::ClosedEarly(format!("broke the connection: {}", root_cause(&e)))
            }
        })?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_RESPONSE_BYTES)
            .collect()
            .await
            .map_err(|e| RequestError::Interrupted(root_cause(&*e)))?
            .to_bytes();
        Ok(Response { status: head.status, headers: head.headers, body })
    }

    fn accepted(&self, crops: &[PendingUpload], status: StatusCode, body: &[u8]) {
        let answer: Value = serde_json::from_slice(body).unwrap_or_default();
        let model_version = match answer.get("model_version") {
            Some(Value::String(version)) => Some(version.clone()),
            Some(Value::Null) | None => None,
            Some(other) => Some(other.to_string()),
        };
        let by_image = |name: &str, found: &mut Vec<Vec<Value>>| {
            for entry in answer.get(name).and_then(Value::as_array).into_iter().flatten() {
                let image = entry.get("image").and_then(Value::as_u64).unwrap_or(0);
                if let Some(of_crop) = usize::try_from(image).ok().and_then(|i| found.get_mut(i)) {
                    of_crop.push(entry.clone());
                }
            }
        };
        let mut faces = vec![Vec::new(); crops.len()];
        let mut errors = vec![Vec::new(); crops.len()];
        by_image("faces", &mut faces);
        by_image("errors", &mut errors);
        for ((pending, faces), errors) in crops.iter().zip(faces).zip(errors) {
            // A picture that the backend cannot read, beside others that it can.
            if let Some(error) = errors.first().and_then(|error| error.get("error")) {
                let error = ErrorResponse {
                    status: status.as_u16(),
                    code: text(error, "code"),
                    message: text(error, "message").unwrap_or_else(|| "no reason given".into()),
                };
                self.rejected(std::slice::from_ref(pending), &error);
                continue;
            }
            self.counts.sent.fetch_add(1, Ordering::Relaxed);
            self.counts.image_bytes.fetch_add(count(pending.crop.image.len()), Ordering::Relaxed);
            self.reported().rejecting = false;
            let (crop, model_version) = (pending.crop.clone(), model_version.clone());
            let status = status.as_u16();
            let earlier_run = pending.earlier_run;
            (self.observer)(Event::Accepted { crop, status, model_version, faces, earlier_run });
        }
    }

    fn rejected(&self, crops: &[PendingUpload], error: &ErrorResponse) {
        self.counts.failed.fetch_add(count(crops.len()), Ordering::Relaxed);
        for PendingUpload { crop, .. } in crops.iter().cloned() {
            let first = !std::mem::replace(&mut self.reported().rejecting, true);
            let ErrorResponse { status, code, message } = error.clone();
            (self.observer)(Event::Rejected { crop, status, code, message, first });
        }
    }

    /// Tells of trouble, once for each kind until the backend is well again.
    fn report(&self, status: BackendStatus, error: &ErrorResponse, retry_in: Duration) {
        let was_reported = {
            let mut reported = self.reported();
            reported.since.get_or_insert_with(Instant::now);
            let reported = match status {
                BackendStatus::Busy => &mut reported.busy,
                BackendStatus::Unavailable => &mut reported.unavailable,
                BackendStatus::Unauthorized => &mut reported.unauthorized,
            };
            std::mem::replace(reported, true)
        };
        if !was_reported {
            let http_status = Some(error.status).filter(|&status| status > 0);
            let reason = match (status, http_status) {
                (BackendStatus::Unavailable, Some(http_status)) => {
                    format!("answers {http_status}: {}", error.message)
                }
                _ => error.message.clone(),
            };
            (self.observer)(Event::BackendUnhealthy { status, http_status, reason, retry_in });
        }
    }

    fn recovered(&self) {
        let ended = {
            let mut reported = self.reported();
            let rejecting = reported.rejecting;
            std::mem::replace(&mut *reported, Reported { rejecting, ..Reported::default() })
        };
        if let Some(since) = ended.since {
            let was_busy = !ended.unavailable && !ended.unauthorized;
            (self.observer)(Event::BackendRecovered { after: since.elapsed(), was_busy });
        }
    }

    /// The spool's thread.
    fn run_spool(&self, mut spool: Spool) {
        let mut damage_reported = false;
        loop {
            let work = {
                let mut state = self.lock();
                loop {
                    let now = Instant::now();
                    match state.next_spool_task(now) {
                        SpoolTask::Wait => {
                            state = self.spool_wanted.wait(state).unwrap_or_else(PoisonError::into_inner);
                        }
                        SpoolTask::WaitUntil(time) => {
                            let wait = time.saturating_duration_since(now);
                            state = self
                                .spool_wanted
                                .wait_timeout(state, wait)
                                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
                        }
                        work => break work,
                    }
                }
            };
            match work {
                SpoolTask::Stop | SpoolTask::Wait | SpoolTask::WaitUntil(_) => return,
                SpoolTask::Store(crops) => self.store(&mut spool, crops),
                SpoolTask::Read(wanted) => {
                    let found = spool.claim(wanted);
                    self.lock().finish_reading(found, spool.counts());
                }
                SpoolTask::Delete(ids) => {
                    spool.delete(&ids);
                    self.lock().set_spool_counts(spool.counts());
                }
            }
            self.filled.notify_one();
            self.changed.notify_all();
            let damaged = spool.counts().damaged;
            if damaged > 0 && !std::mem::replace(&mut damage_reported, true) {
                let reason = format!(
                    "{damaged} files on the spool are torn, as after a loss of power; they are set aside as \
                     *.damaged and counted as spool-damaged"
                );
                (self.observer)(Event::SpoolProblem { reason });
            }
        }
    }

    fn store(&self, spool: &mut Spool, crops: Vec<PendingUpload>) {
        let to_store: Vec<SpoolEntry> = crops
            .iter()
            .map(|pending| SpoolEntry {
                crop: pending.crop.clone(),
                attempts: pending.attempts,
                internal_errors: pending.internal_errors,
                earlier_run: pending.earlier_run,
            })
            .collect();
        let (stored, error) = match spool.store(&to_store) {
            Ok(()) => (crops.len(), None),
            Err(StoreError { stored, error }) => (stored, Some(error)),
        };
        let counts = spool.counts();
        let first = self.lock().finish_storing(crops, stored, counts, Instant::now());
        if let Some(error) = error {
            self.counts.spool_errors.fetch_add(1, Ordering::Relaxed);
            if first {
                let reason = format!("the spool cannot be written: {error}; crops stay in memory meanwhile");
                (self.observer)(Event::SpoolProblem { reason });
            }
        }
    }
}

struct Response {
    status: StatusCode,
    headers: http::HeaderMap,
    body: Bytes,
}

#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// Before the head of an answer.
    #[error("{0}")]
    ClosedEarly(String),
    /// In the middle of an answer.
    #[error("broke off its answer: {0}")]
    Interrupted(String),
}

/// What the backend said, in a form fit for a message to people.
fn error_response(response: &Response) -> ErrorResponse {
    let json: Value = serde_json::from_slice(&response.body).unwrap_or_default();
    let error = json.get("error").unwrap_or(&Value::Null);
    let reason = || response.status.canonical_reason().unwrap_or("no reason given");
    // A proxy's answer, that of a network's login page, or of quite another server.
    let foreign = || match retry::is_web_page(&response.headers) {
        true => "a web page, which is not the backend's",
        false => "which is not the backend's own answer",
    };
    let message = match text(error, "message") {
        Some(message) => message,
        None if response.status.is_success() => foreign().into(),
        // Who is in front of a backend that is away says so in its own words.
        None if response.status.is_server_error() => reason().into(),
        None => format!("{}, {}", reason(), foreign()),
    };
    ErrorResponse { status: response.status.as_u16(), code: text(error, "code"), message }
}

/// A text of the backend's, cut to what fits in a message.
fn text(value: &Value, name: &str) -> Option<String> {
    let text = value.get(name)?.as_str()?;
    Some(text.chars().filter(|c| !c.is_control()).take(200).collect())
}

/// The innermost error says what happened ("Connection refused"), the outer ones only where.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// True if a token sent to this URL could be read on its way: neither TLS nor this machine.
pub fn exposes_tokens(backend_url: &str) -> bool {
    let Ok(uri) = backend_url.trim().parse::<Uri>() else { return false };
    uri.scheme_str() == Some("http") && !is_this_machine(uri.host().unwrap_or_default())
}

/// Whether a URL's host is this machine under one of its own names.
fn is_this_machine(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
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
