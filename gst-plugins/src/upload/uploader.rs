//! The uploader as the sink knows it: push, drain, stop.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use tokio::{runtime::Runtime, sync::Notify, task::JoinHandle};

use super::{
    Crop, KeyPin, Observer, RuntimeSettings, Spool, Stats, TlsOptions, Token, UploadConfig, UploadError,
    config::exposes_tokens,
    connection::{self, Traffic},
    event::{Counters, Reporter},
    request::RequestBuilder,
    service::Service,
    state::{State, TryPush, count},
    traces::Tracer,
    worker::Shared,
};

/// How long [`Uploader::drain`] waits, after its limit, until what is left is spooled.
const SPILL_LIMIT: Duration = Duration::from_secs(5);

/// Result of [`Uploader::drain`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainOutcome {
    /// All crops are settled.
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

/// Result of [`Uploader::push`].
#[derive(Debug)]
pub enum PushOutcome {
    /// The crop is queued.
    Queued,
    /// The queue was full, and a crop was dropped.
    Dropped,
    /// [`Uploader::interrupt`] was called while the queue was full.
    Interrupted(Crop),
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waited {
    Fulfilled,
    TimedOut,
    Interrupted,
}

/// Uploads crops in the background. Stops when dropped.
pub struct Uploader {
    shared: Arc<Shared>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    spool: Mutex<Option<thread::JoinHandle<()>>>,
}

impl Uploader {
    /// Checks the configuration and starts the workers. Does not connect yet. Crops that an earlier run spooled are sent.
    ///
    /// # Errors
    ///
    /// A backend URL, collector URL, token file, CA file or spool that cannot be used, and a lack of root certificates or
    /// threads.
    pub fn start(config: UploadConfig, observer: Observer) -> Result<Self, UploadError> {
        let requests = RequestBuilder::new(&config.backend_url, config.endpoint)?;
        if let (None, Some(path)) = (&config.settings.token, &config.settings.token_file) {
            Token::read(path).map_err(|error| UploadError::TokenFile { path: path.clone(), error })?;
        }
        let pins = config.pinned_sha256.as_deref().map(KeyPin::parse_all).transpose()?.unwrap_or_default();
        let is_https = requests.uri().scheme_str() == Some("https");
        if !pins.is_empty() && !is_https {
            return Err(UploadError::PinWithoutTls(config.backend_url));
        }
        if config.client_cert.is_some() && !is_https {
            return Err(UploadError::CertWithoutTls(config.backend_url));
        }
        let may_send_token = config.allow_insecure_token || !exposes_tokens(&config.backend_url);
        let has_token = config.settings.token.is_some() || config.settings.token_file.is_some();
        if has_token && !may_send_token {
            return Err(UploadError::InsecureToken(config.backend_url));
        }
        let traffic = Arc::new(Traffic::default());
        let tls = TlsOptions {
            ca_file: config.ca_file.clone(),
            pins,
            client_cert: config.client_cert.clone(),
            client_key: config.client_key.clone(),
        };
        let client = connection::client(requests.uri(), &tls, Arc::clone(&traffic))?;
        let runtime = runtime()?;
        let tracer = config
            .otlp_endpoint
            .as_deref()
            .map(|endpoint| {
                let (ca_file, runtime) = (config.ca_file.clone(), runtime.handle().clone());
                Tracer::start(endpoint, ca_file, runtime, Arc::clone(&observer))
            })
            .transpose()?;
        let spool = config.spool.as_ref().map(Spool::open).transpose()?;
        let workers = config.workers.max(1);
        let shared = Arc::new(Shared {
            backoff: config.backoff,
            service: Service::new(client, requests, may_send_token),
            tracer: Mutex::new(tracer.map(Arc::new)),
            reporter: Reporter::new(observer),
            traffic,
            counters: Counters::default(),
            state: Mutex::new(State::new(config.settings, workers, spool.as_ref().map(Spool::counts))),
            changed: Condvar::new(),
            spool_wanted: Condvar::new(),
            filled: Notify::new(),
            settings_changed: Notify::new(),
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
                runtime.spawn(async move { shared.run_worker().await })
            })
            .collect();
        let stats = Arc::clone(&shared);
        tasks.push(runtime.spawn(async move { stats.report_stats().await }));
        Ok(Self { shared, tasks: Mutex::new(tasks), spool: Mutex::new(spool) })
    }

    /// Queues a crop. Returns at once, unless the queue is full and the policy is
    /// [`DropPolicy::Block`](super::DropPolicy::Block).
    pub fn push(&self, mut crop: Crop) -> PushOutcome {
        let shared = &self.shared;
        let mut state = shared.lock();
        let outcome = loop {
            match state.try_push(crop, true, Instant::now()) {
                TryPush::Queued => break PushOutcome::Queued,
                TryPush::Dropped => break PushOutcome::Dropped,
                TryPush::Full(back) if state.interrupted => return PushOutcome::Interrupted(back),
                TryPush::Full(back) => {
                    crop = back;
                    state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        };
        drop(state);
        self.pushed(matches!(outcome, PushOutcome::Dropped));
        outcome
    }

    /// Queues a crop without blocking, beyond the queue's capacity if the policy is
    /// [`DropPolicy::Block`](super::DropPolicy::Block).
    pub fn push_nonblocking(&self, crop: Crop) {
        let outcome = self.shared.lock().try_push(crop, false, Instant::now());
        self.pushed(matches!(outcome, TryPush::Dropped));
    }

    fn pushed(&self, dropped: bool) {
        self.shared.counters.dropped.fetch_add(dropped.into(), Ordering::Relaxed);
        self.shared.filled.notify_one();
        self.shared.spool_wanted.notify_one();
    }

    /// Changes the settings. Requests in flight keep the old ones.
    pub fn update_settings(&self, settings: RuntimeSettings) {
        self.shared.lock().settings = Arc::new(settings);
        self.shared.filled.notify_waiters();
        self.shared.settings_changed.notify_one();
        self.shared.spool_wanted.notify_one();
        self.shared.changed.notify_all();
    }

    /// Waits until every crop is settled, those on the spool included, at most `limit`. If that is reached, crops left in
    /// memory are spooled, if there is a spool.
    pub fn drain(&self, limit: Duration) -> DrainOutcome {
        let shared = &self.shared;
        shared.lock().draining = true;
        shared.filled.notify_waiters();
        let waited = self.wait_until(limit, |state| state.pending() == 0);
        let timed_out = waited == Waited::TimedOut;
        if timed_out && shared.lock().has_spool() {
            shared.lock().spill_all = true;
            shared.spool_wanted.notify_one();
            // Crops in flight are still being sent; they return to the queue if that fails.
            self.wait_until(SPILL_LIMIT.min(limit), |state| !state.has_unsent_live());
        }
        let mut state = shared.lock();
        state.draining = false;
        state.spill_all = false;
        match waited {
            Waited::Fulfilled => DrainOutcome::Empty,
            Waited::Interrupted => DrainOutcome::Interrupted,
            Waited::TimedOut => {
                let left = count(state.live());
                DrainOutcome::TimedOut { left, spooled: state.pending().saturating_sub(left) }
            }
        }
    }

    fn wait_until(&self, limit: Duration, is_fulfilled: impl Fn(&State) -> bool) -> Waited {
        let start = Instant::now();
        let mut state: MutexGuard<'_, State> = self.shared.lock();
        loop {
            if state.interrupted {
                return Waited::Interrupted;
            }
            if is_fulfilled(&state) {
                return Waited::Fulfilled;
            }
            let Some(left) = limit.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) else {
                return Waited::TimedOut;
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

    /// Returns the current counts.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Aborts requests in flight, spools the crops that are left, or drops and counts them, and returns the final counts.
    /// Waits for the disk, not for the network. Crops pushed afterwards are dropped.
    pub fn stop(&self) -> Stats {
        let shared = &self.shared;
        for task in std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner)) {
            task.abort();
        }
        shared.lock().close();
        shared.spool_wanted.notify_one();
        shared.changed.notify_all();
        if let Some(spool) = self.spool.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // If that thread has panicked, what it has not stored is counted below.
            let _ = spool.join();
        }
        let left = shared.lock().discard_unsent();
        shared.counters.dropped.fetch_add(left, Ordering::Relaxed);
        // Dropping the last reference sends the spans that are left.
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

/// Returns the runtime that all sinks of the process share.
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
