//! State that a running job shares with its reporter: its progress, and whether it must stop.

use std::sync::{
    OnceLock,
    atomic::{AtomicI64, Ordering},
};

use super::executor::JobError;

/// Why a job must stop before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortReason {
    /// A client cancelled it.
    Cancelled,
    /// Another process may be doing the job by now.
    LeaseLost,
    /// The dataset was unblocked.
    Unblocked,
}

/// The progress of a job.
pub struct Progress {
    done: AtomicI64,
    /// Negative until the images are counted.
    total: AtomicI64,
    abort: OnceLock<AbortReason>,
}

impl Default for Progress {
    fn default() -> Self {
        Self { done: AtomicI64::new(0), total: AtomicI64::new(-1), abort: OnceLock::new() }
    }
}

impl Progress {
    /// Returns the number of images done, and of all images once they are counted.
    pub fn images(&self) -> (i64, Option<i64>) {
        let total = self.total.load(Ordering::Relaxed);
        (self.done.load(Ordering::Relaxed), (total >= 0).then_some(total))
    }

    /// Asks the job to stop. The first reason stays.
    pub fn abort(&self, reason: AbortReason) {
        let _ = self.abort.set(reason);
    }

    /// Returns why the job must stop, if it must.
    pub fn abort_reason(&self) -> Option<AbortReason> {
        self.abort.get().copied()
    }

    /// Fails where the job must stop.
    ///
    /// # Errors
    /// [`JobError::Aborted`].
    pub fn ensure_not_aborted(&self) -> Result<(), JobError> {
        self.abort_reason().map_or(Ok(()), |reason| Err(JobError::Aborted(reason)))
    }

    /// Sets the number of images of the job.
    pub fn set_total(&self, images: usize) {
        self.total.store(i64::try_from(images).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Counts further images as done.
    pub fn advance(&self, images: usize) {
        self.done.fetch_add(i64::try_from(images).unwrap_or(0), Ordering::Relaxed);
    }

    /// Counts at least so many images as done.
    pub fn advance_to(&self, images: usize) {
        self.done.fetch_max(i64::try_from(images).unwrap_or(0), Ordering::Relaxed);
    }
}
