//! What the uploader reports to its observer, and the counts it keeps.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    Crop,
    service::{Accepted, ErrorResponse},
    state::{PendingUpload, count},
};

/// Why crops wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendStatus {
    /// The backend is healthy but overloaded.
    Busy,
    /// It cannot be reached, fails, or is not at this address (`away` on the bus).
    Unavailable,
    /// It rejects the token.
    Unauthorized,
}

/// What happened, as reported to the observer.
#[derive(Debug, Clone)]
pub enum Event {
    /// The backend accepted a crop.
    Accepted {
        /// The crop.
        crop: Crop,
        /// HTTP status, 200 to 299.
        status: u16,
        /// Version of the model that the backend used.
        model_version: Option<String>,
        /// The faces that the backend found on this crop, as its API describes them; empty if the call returns none.
        faces: Vec<Value>,
        /// True for a crop that an earlier run spooled: its track id is not one of this run.
        earlier_run: bool,
    },
    /// The backend rejected a crop for good, or its retries are used up.
    Rejected {
        /// The crop.
        crop: Crop,
        /// HTTP status of the last response; 0 if there was none. A crop that is rejected while others of its request
        /// are accepted has their status.
        status: u16,
        /// The backend's error code, if it gave one.
        code: Option<String>,
        /// The backend's error message, or why there was no response.
        message: String,
        /// True if the previous crop was not rejected: the moment to warn, once.
        first: bool,
    },
    /// Crops wait for the backend. Reported once per status until the backend is healthy again.
    BackendUnhealthy {
        /// Why crops wait.
        status: BackendStatus,
        /// HTTP status of the response; `None` if there was none.
        http_status: Option<u16>,
        /// What went wrong.
        reason: String,
        /// How long nothing is sent.
        retry_in: Duration,
    },
    /// The backend is healthy again.
    BackendRecovered {
        /// Time since it became unhealthy.
        after: Duration,
        /// True if it was never more than busy.
        was_busy: bool,
    },
    /// The spool cannot be written, or has damaged files. Reported once until it works again.
    SpoolProblem {
        /// What went wrong.
        reason: String,
    },
    /// The trace collector did not accept spans. Reported once until it accepts some.
    SpansLost {
        /// What went wrong.
        reason: String,
    },
    /// The counts, as often as [`RuntimeSettings::stats_interval`](super::RuntimeSettings::stats_interval) says.
    Stats(Stats),
}

/// Receives every [`Event`], on a thread of the uploader: it must not block.
pub type Observer = Arc<dyn Fn(Event) + Send + Sync>;

/// Counts since the uploader was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Crops in memory now, waiting or in a request.
    pub queued: u64,
    /// Crops that the backend accepted.
    pub sent: u64,
    /// Crops that the backend rejected, or whose retries were used up.
    pub failed: u64,
    /// Crops dropped from a full queue, or left when the uploader was stopped.
    pub dropped: u64,
    /// Crops that were spooled.
    pub spooled: u64,
    /// Crops on the spool now.
    pub spool_files: u64,
    /// Size of the spool's files now, in bytes.
    pub spool_bytes: u64,
    /// Crops dropped from a full spool.
    pub spool_dropped: u64,
    /// Damaged files that were found on the spool.
    pub spool_damaged: u64,
    /// Failed writes to the spool.
    pub spool_errors: u64,
    /// Requests started, retries included.
    pub requests: u64,
    /// Requests with crops that were sent before.
    pub retries: u64,
    /// Bytes written to the network: bodies, headers, and TLS where it is used.
    pub bytes: u64,
    /// Bytes read from the network.
    pub bytes_received: u64,
    /// Bytes of the images that the backend accepted.
    pub image_bytes: u64,
}

/// The counts that are kept outside the state and the spool.
#[derive(Default)]
pub(super) struct Counters {
    pub sent: AtomicU64,
    pub failed: AtomicU64,
    pub dropped: AtomicU64,
    pub spool_errors: AtomicU64,
    pub requests: AtomicU64,
    pub retries: AtomicU64,
    pub image_bytes: AtomicU64,
}

/// Turns the outcome of requests into events, and remembers what was reported.
pub(super) struct Reporter {
    observer: Observer,
    reported: Mutex<Reported>,
}

#[derive(Default)]
struct Reported {
    unhealthy_since: Option<Instant>,
    busy: bool,
    unavailable: bool,
    unauthorized: bool,
    rejecting: bool,
}

impl Reporter {
    pub fn new(observer: Observer) -> Self {
        Self { observer, reported: Mutex::default() }
    }

    fn reported(&self) -> MutexGuard<'_, Reported> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn report(&self, event: Event) {
        (self.observer)(event);
    }

    /// Reports and counts crops of an accepted request: each as accepted, or as rejected by itself.
    pub fn accepted(&self, crops: &[PendingUpload], response: &Accepted, counters: &Counters) {
        for (pending, result) in crops.iter().zip(response.per_crop(crops.len())) {
            let faces = match result {
                Ok(faces) => faces,
                Err(error) => {
                    self.rejected(std::slice::from_ref(pending), &error, counters);
                    continue;
                }
            };
            counters.sent.fetch_add(1, Ordering::Relaxed);
            counters.image_bytes.fetch_add(count(pending.crop.image.len()), Ordering::Relaxed);
            self.reported().rejecting = false;
            self.report(Event::Accepted {
                crop: pending.crop.clone(),
                status: response.status.as_u16(),
                model_version: response.model_version(),
                faces,
                earlier_run: pending.earlier_run,
            });
        }
    }

    /// Reports and counts crops that are rejected or given up.
    pub fn rejected(&self, crops: &[PendingUpload], error: &ErrorResponse, counters: &Counters) {
        counters.failed.fetch_add(count(crops.len()), Ordering::Relaxed);
        for PendingUpload { crop, .. } in crops.iter().cloned() {
            let first = !std::mem::replace(&mut self.reported().rejecting, true);
            let ErrorResponse { status, code, message } = error.clone();
            self.report(Event::Rejected { crop, status, code, message, first });
        }
    }

    /// Reports an unhealthy backend, once per status until it is healthy again.
    pub fn unhealthy(&self, status: BackendStatus, error: &ErrorResponse, retry_in: Duration) {
        let was_reported = {
            let mut reported = self.reported();
            reported.unhealthy_since.get_or_insert_with(Instant::now);
            let reported = match status {
                BackendStatus::Busy => &mut reported.busy,
                BackendStatus::Unavailable => &mut reported.unavailable,
                BackendStatus::Unauthorized => &mut reported.unauthorized,
            };
            std::mem::replace(reported, true)
        };
        if was_reported {
            return;
        }
        let http_status = Some(error.status).filter(|&status| status > 0);
        let reason = match (status, http_status) {
            (BackendStatus::Unavailable, Some(http_status)) => {
                format!("answers {http_status}: {}", error.message)
            }
            _ => error.message.clone(),
        };
        self.report(Event::BackendUnhealthy { status, http_status, reason, retry_in });
    }

    /// Reports a recovery if the backend was unhealthy.
    pub fn healthy(&self) {
        let ended = {
            let mut reported = self.reported();
            let rejecting = reported.rejecting;
            std::mem::replace(&mut *reported, Reported { rejecting, ..Reported::default() })
        };
        if let Some(since) = ended.unhealthy_since {
            let was_busy = !ended.unavailable && !ended.unauthorized;
            self.report(Event::BackendRecovered { after: since.elapsed(), was_busy });
        }
    }
}
