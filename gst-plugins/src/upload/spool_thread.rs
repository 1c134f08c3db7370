//! The spool's thread: it alone waits for the disk.

use std::{
    sync::{PoisonError, atomic::Ordering},
    time::Instant,
};

use super::{
    Event, Spool, SpoolEntry, StoreError,
    state::{PendingUpload, SpoolTask},
    worker::Shared,
};

impl Shared {
    /// Carries out the spool's tasks until the uploader is closed and nothing is left to store.
    pub(super) fn run_spool(&self, mut spool: Spool) {
        let mut damage_reported = false;
        while let Some(task) = self.next_spool_task() {
            match task {
                SpoolTask::Stop | SpoolTask::Wait | SpoolTask::WaitUntil(_) => (),
                SpoolTask::Store(crops) => self.store(&mut spool, crops),
                SpoolTask::Read(count) => {
                    let entries = spool.claim(count);
                    self.lock().finish_reading(entries, spool.counts(), Instant::now());
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
                    "{damaged} files on the spool are damaged, as after a power failure; they are renamed to *.damaged \
                     and counted as spool-damaged"
                );
                self.reporter.report(Event::SpoolProblem { reason });
            }
        }
    }

    /// Waits for a task that takes the disk; `None` at the end.
    fn next_spool_task(&self) -> Option<SpoolTask> {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            match state.next_spool_task(now) {
                SpoolTask::Stop => return None,
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
                task => return Some(task),
            }
        }
    }

    fn store(&self, spool: &mut Spool, crops: Vec<PendingUpload>) {
        let entries: Vec<SpoolEntry> = crops.iter().map(PendingUpload::to_spool).collect();
        let (stored, error) = match spool.store(&entries) {
            Ok(()) => (crops.len(), None),
            Err(StoreError { stored, error }) => (stored, Some(error)),
        };
        let is_first = self.lock().finish_storing(crops, stored, spool.counts(), Instant::now());
        if let Some(error) = error {
            self.counters.spool_errors.fetch_add(1, Ordering::Relaxed);
            if is_first {
                let reason = format!("the spool cannot be written: {error}; crops stay in memory meanwhile");
                self.reporter.report(Event::SpoolProblem { reason });
            }
        }
    }
}
