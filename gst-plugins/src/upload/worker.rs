//! Workers: each takes the next batch, sends it, and handles the outcome.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{
    BackendStatus, Backoff, Event, Stats,
    connection::Traffic,
    event::{Counters, Reporter},
    service::{ErrorResponse, RequestOutcome, Service},
    state::{Batch, Failed, NextAction, State, count},
    traces::{Attempt, Tracer},
};

/// Shared by the uploader, its workers and the spool's thread.
pub(super) struct Shared {
    pub backoff: Backoff,
    pub service: Service,
    /// Until the uploader stops.
    pub tracer: Mutex<Option<Arc<Tracer>>>,
    pub reporter: Reporter,
    pub traffic: Arc<Traffic>,
    pub counters: Counters,
    pub state: Mutex<State>,
    /// Signalled when crops have left the queue or were settled, and when those who wait must check again.
    pub changed: Condvar,
    /// Signalled when the spool's thread may have a task.
    pub spool_wanted: Condvar,
    /// Has a permit when there is something to send.
    pub filled: Notify,
    /// Signalled when the interval of the statistics may have changed.
    pub settings_changed: Notify,
}

impl Shared {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        // Every critical section leaves the state consistent, so a panic elsewhere doesn't corrupt it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn stats(&self) -> Stats {
        let (queued, spool) = {
            let state = self.lock();
            (count(state.live()), state.spool_counts())
        };
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            queued,
            sent: load(&self.counters.sent),
            failed: load(&self.counters.failed),
            dropped: load(&self.counters.dropped),
            spooled: spool.stored,
            spool_files: spool.files,
            spool_bytes: spool.bytes,
            spool_dropped: spool.dropped,
            spool_damaged: spool.damaged,
            spool_errors: load(&self.counters.spool_errors),
            requests: load(&self.counters.requests),
            retries: load(&self.counters.retries),
            bytes: load(&self.traffic.written),
            bytes_received: load(&self.traffic.read),
            image_bytes: load(&self.counters.image_bytes),
        }
    }

    /// Wakes all who wait, to check again.
    pub fn wake(&self) {
        self.filled.notify_waiters();
        // A permit, for a worker that is about to wait.
        self.filled.notify_one();
        self.spool_wanted.notify_one();
        self.changed.notify_all();
    }

    /// Reports the statistics at the configured interval, forever.
    pub async fn report_stats(&self) {
        loop {
            let settings_changed = self.settings_changed.notified();
            let interval = self.lock().settings.stats_interval;
            if interval.is_zero() {
                settings_changed.await;
                continue;
            }
            tokio::select! {
                () = settings_changed => (),
                () = tokio::time::sleep(interval) => self.reporter.report(Event::Stats(self.stats())),
            }
        }
    }

    /// Runs a worker, forever.
    pub async fn run_worker(&self) {
        loop {
            let batch = self.next_batch().await;
            self.deliver(batch).await;
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
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        if batch.is_retry() {
            self.counters.retries.fetch_add(1, Ordering::Relaxed);
        }
        let settings = Arc::clone(&self.lock().settings);
        let outcome = self.service.send(&batch.crops, &settings, attempt.as_ref()).await;
        if let (Some(tracer), Some(attempt)) = (&tracer, &attempt) {
            tracer.record_attempt(attempt, &batch.crops, outcome.http_status());
            match &outcome {
                RequestOutcome::Accepted(_) => tracer.record_result(attempt, &batch.crops, true),
                RequestOutcome::Rejected(_) if batch.crops.len() == 1 => {
                    tracer.record_result(attempt, &batch.crops, false);
                }
                _ => (),
            }
        }
        self.handle(batch, outcome);
    }

    fn handle(&self, batch: Batch, outcome: RequestOutcome) {
        match outcome {
            RequestOutcome::Accepted(response) => {
                self.settle(batch, |batch| {
                    self.reporter.accepted(&batch.crops, &response, &self.counters);
                });
            }
            RequestOutcome::Rejected(_) if batch.crops.len() > 1 => {
                self.lock().split(batch);
                self.wake();
                self.reporter.healthy();
            }
            RequestOutcome::Rejected(error) => {
                self.settle(batch, |batch| self.reporter.rejected(&batch.crops, &error, &self.counters));
            }
            // A server closes idle connections, sometimes just as a request is written to one. That is no outage.
            RequestOutcome::ConnectionClosed(_) if !batch.is_retry() => {
                self.lock().resend(batch);
                self.wake();
            }
            RequestOutcome::ConnectionClosed(reason) => {
                self.fail(batch, BackendStatus::Unavailable, &ErrorResponse::no_response(reason), None);
            }
            RequestOutcome::Retry { status, error, retry_after } => {
                self.fail(batch, status, &error, retry_after);
            }
        }
    }

    /// Settles a batch and reports it, unless the uploader was stopped meanwhile.
    fn settle(&self, mut batch: Batch, report: impl FnOnce(&Batch)) {
        if !self.lock().settle(&mut batch) {
            return;
        }
        self.wake();
        self.reporter.healthy();
        report(&batch);
        self.lock().finish_settling(&batch.crops);
        self.wake();
    }

    fn fail(
        &self,
        batch: Batch,
        status: BackendStatus,
        error: &ErrorResponse,
        retry_after: Option<Duration>,
    ) {
        let wait = |failures| retry_after.unwrap_or_else(|| self.backoff.delay(failures));
        let failed = self.lock().fail(batch, status, error.status, Instant::now(), wait);
        let Some(Failed { retry_in, given_up }) = failed else { return };
        self.wake();
        self.reporter.unhealthy(status, error, retry_in);
        if !given_up.is_empty() {
            self.reporter.rejected(&given_up, error, &self.counters);
            self.lock().finish_settling(&given_up);
            self.wake();
        }
    }
}
