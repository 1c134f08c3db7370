//! The uploader's state behind its mutex: which crops wait, which are in flight, and what is sent or spooled next. No I/O
//! and no clock of its own, so that transitions can be tested by themselves.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use http::StatusCode;

pub(super) use super::batch::{Batch, PendingUpload};
use super::{
    BackendStatus, Crop, DropPolicy, RuntimeSettings,
    circuit_breaker::{CircuitBreaker, Permit},
    spool::{SpoolCounts, SpoolEntry, SpoolId},
};

#[cfg(test)]
mod properties;

/// Maximum number of crops that are spooled and synced together.
const SPOOL_GROUP: usize = 32;

/// Time until the disk is tried again after a failed write.
const SPOOL_RETRY: Duration = Duration::from_secs(10);

/// What a worker does next.
#[derive(Debug)]
pub(super) enum NextAction {
    Send(Batch),
    /// Nothing before this time, unless something changes.
    WaitUntil(Instant),
    /// Nothing until something changes.
    Wait,
}

/// What the spool's thread does next.
#[derive(Debug)]
pub(super) enum SpoolTask {
    Store(Vec<PendingUpload>),
    Read(usize),
    Delete(Vec<SpoolId>),
    /// Nothing before this time, unless something changes.
    WaitUntil(Instant),
    Wait,
    Stop,
}

/// Result of [`State::try_push`].
#[derive(Debug)]
pub(super) enum TryPush {
    Queued,
    /// A crop was dropped, this one or an older one.
    Dropped,
    /// The queue is full, and the policy is to block.
    Full(Crop),
}

/// Result of [`State::fail`].
#[derive(Debug)]
pub(super) struct Failed {
    /// How long nothing is sent.
    pub retry_in: Duration,
    /// Crops that are not sent again; they still count until [`State::finish_settling`].
    pub given_up: Vec<PendingUpload>,
}

#[derive(Debug, Default)]
struct SpoolState {
    counts: SpoolCounts,
    /// Settled crops whose files are to be deleted.
    settled: Vec<SpoolId>,
    /// Number of crops that the spool's thread is storing.
    storing: usize,
    /// Set after a failed write: not before this time again.
    broken_until: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct State {
    pub settings: Arc<RuntimeSettings>,
    /// Live crops.
    queue: VecDeque<PendingUpload>,
    /// Crops read from the spool, to be sent when no live ones wait.
    ready: VecDeque<PendingUpload>,
    in_flight: HashMap<u64, Vec<PendingUpload>>,
    /// Number of settled live crops that are not yet reported to the observer.
    settling: usize,
    next_batch: u64,
    spool_batches: usize,
    max_spool_batches: usize,
    breaker: CircuitBreaker,
    spool: Option<SpoolState>,
    /// The stream has ended: no batch waits to fill.
    pub draining: bool,
    /// All live crops are spooled.
    pub spill_all: bool,
    pub interrupted: bool,
    closed: bool,
}

impl State {
    /// Takes the counts of the spool, if there is one.
    pub fn new(settings: RuntimeSettings, workers: usize, spool: Option<SpoolCounts>) -> Self {
        Self {
            settings: Arc::new(settings),
            queue: VecDeque::new(),
            ready: VecDeque::new(),
            in_flight: HashMap::new(),
            settling: 0,
            next_batch: 0,
            spool_batches: 0,
            // One worker is reserved for live crops.
            max_spool_batches: workers.saturating_sub(1).max(1),
            breaker: CircuitBreaker::default(),
            spool: spool.map(|counts| SpoolState { counts, ..SpoolState::default() }),
            draining: false,
            spill_all: false,
            interrupted: false,
            closed: false,
        }
    }

    pub fn has_spool(&self) -> bool {
        self.spool.is_some()
    }

    pub fn spool_counts(&self) -> SpoolCounts {
        self.spool.as_ref().map(|spool| spool.counts).unwrap_or_default()
    }

    /// Returns the number of live crops in memory: waiting, in flight, being settled or being spooled.
    pub fn live(&self) -> usize {
        let in_flight: usize = self.in_flight.values().map(|crops| live(crops)).sum();
        self.queue.len() + in_flight + self.settling + self.storing()
    }

    fn storing(&self) -> usize {
        self.spool.as_ref().map_or(0, |spool| spool.storing)
    }

    /// Returns true if a live crop is neither in flight nor on disk.
    pub fn has_unsent_live(&self) -> bool {
        !self.queue.is_empty() || self.storing() > 0
    }

    /// Returns the number of crops that are not settled, and of files that are not yet deleted.
    pub fn pending(&self) -> u64 {
        count(self.live()).saturating_add(self.spool_counts().files)
    }

    /// Queues a crop. `can_block`: the caller can wait until there is space.
    pub fn try_push(&mut self, crop: Crop, can_block: bool, now: Instant) -> TryPush {
        if self.closed {
            return TryPush::Dropped;
        }
        let full = self.queue.len() >= self.settings.max_queue.max(1);
        let mut outcome = TryPush::Queued;
        match self.settings.drop_policy {
            _ if !full => (),
            DropPolicy::Oldest => {
                self.queue.pop_front();
                outcome = TryPush::Dropped;
            }
            DropPolicy::Newest => return TryPush::Dropped,
            DropPolicy::Block if can_block => return TryPush::Full(crop),
            DropPolicy::Block => (),
        }
        self.queue.push_back(PendingUpload::new(crop, now));
        outcome
    }

    /// Returns what the next free worker does: live crops first, then those of the spool.
    pub fn next(&mut self, now: Instant) -> NextAction {
        let is_probe = match self.breaker.permit(now) {
            Permit::WaitUntil(time) => return NextAction::WaitUntil(time),
            Permit::Wait => return NextAction::Wait,
            Permit::Probe => true,
            Permit::Send => false,
        };
        let due = self.live_due_at(now);
        if due.is_some_and(|due| due <= now) {
            return NextAction::Send(self.take_batch(false, is_probe));
        }
        if !self.ready.is_empty() && self.spool_batches < self.max_spool_batches {
            return NextAction::Send(self.take_batch(true, is_probe));
        }
        due.map_or(NextAction::Wait, NextAction::WaitUntil)
    }

    /// Returns when the front of the queue is to be sent: now if its batch cannot grow any more, else after `batch_delay`.
    fn live_due_at(&self, now: Instant) -> Option<Instant> {
        let first = self.queue.front()?;
        let len = self.batch_len(&self.queue);
        let complete = len >= self.settings.batch_size.max(1) || len < self.queue.len();
        if complete || self.draining || first.send_alone || first.attempts > 0 {
            return Some(now);
        }
        Some(first.queued_at.checked_add(self.settings.batch_delay).unwrap_or(now))
    }

    /// Returns how many crops from the front share a request.
    fn batch_len(&self, queue: &VecDeque<PendingUpload>) -> usize {
        let Some(first) = queue.front() else { return 0 };
        let others = queue.iter().skip(1).take(self.settings.batch_size.max(1) - 1);
        1 + others.take_while(|pending| first.can_share_request_with(pending)).count()
    }

    fn take_batch(&mut self, from_spool: bool, is_probe: bool) -> Batch {
        let crops: Vec<PendingUpload> = if from_spool {
            let len = self.batch_len(&self.ready);
            self.spool_batches += 1;
            self.ready.drain(..len).collect()
        } else {
            let len = self.batch_len(&self.queue);
            self.queue.drain(..len).collect()
        };
        let id = self.next_batch;
        self.next_batch = self.next_batch.wrapping_add(1);
        self.in_flight.insert(id, crops.clone());
        if is_probe {
            self.breaker.begin_probe(id);
        }
        Batch { id, crops, from_spool, is_probe }
    }

    /// Returns true if there is more to send now.
    pub fn has_unsent(&self) -> bool {
        !self.queue.is_empty() || !self.ready.is_empty()
    }

    /// Ends a request. Returns false if the uploader was closed meanwhile, and the crops are no longer the request's.
    fn end_request(&mut self, batch: &mut Batch) -> bool {
        if self.in_flight.remove(&batch.id).is_none() {
            return false;
        }
        if batch.from_spool {
            self.spool_batches = self.spool_batches.saturating_sub(1);
        }
        batch.is_probe = self.breaker.end_probe(batch.id);
        true
    }

    /// Ends a request whose crops are all settled: accepted, or rejected for good. They still count until
    /// [`finish_settling`](Self::finish_settling). Returns false if the uploader was closed meanwhile.
    pub fn settle(&mut self, batch: &mut Batch) -> bool {
        if !self.end_request(batch) {
            return false;
        }
        self.settling += live(&batch.crops);
        self.breaker.record_success();
        true
    }

    /// Records that the observer knows of settled crops: what is left to do is to delete their files.
    pub fn finish_settling(&mut self, crops: &[PendingUpload]) {
        self.settling = self.settling.saturating_sub(live(crops));
        if let Some(spool) = &mut self.spool {
            spool.settled.extend(crops.iter().filter_map(|pending| pending.spooled));
        }
    }

    /// Ends a request that the backend rejected as a whole: its crops are sent again one by one, so that a bad one does
    /// not affect the others.
    pub fn split(&mut self, mut batch: Batch) {
        if self.end_request(&mut batch) {
            self.breaker.record_success();
            batch.record_attempt(false);
            batch.split();
            self.requeue(batch);
        }
    }

    /// Ends a request on a stale connection: it is sent again at once.
    pub fn resend(&mut self, mut batch: Batch) {
        if self.end_request(&mut batch) {
            batch.record_attempt(false);
            self.requeue(batch);
        }
    }

    /// Ends a request that failed: nothing is sent for the time that `wait` gives for the number of failures before. What
    /// is not given up is sent again. `http_status` is 0 if there was no response. Returns `None` if the uploader was
    /// closed meanwhile.
    pub fn fail(
        &mut self,
        mut batch: Batch,
        status: BackendStatus,
        http_status: u16,
        now: Instant,
        wait: impl FnOnce(u32) -> Duration,
    ) -> Option<Failed> {
        if !self.end_request(&mut batch) {
            return None;
        }
        batch.record_attempt(http_status == StatusCode::INTERNAL_SERVER_ERROR);
        // A proxy that rejects large requests may accept small ones.
        if http_status == StatusCode::PAYLOAD_TOO_LARGE {
            batch.split();
        }
        let unavailable = status != BackendStatus::Busy;
        let retry_in = self.breaker.record_failure(batch.is_probe, unavailable, now, wait);
        // With a spool a crop can wait forever, and a rejected token is never a crop's fault.
        let is_unlimited = self.has_spool() || status == BackendStatus::Unauthorized;
        let given_up = batch.give_up(self.settings.retries.filter(|_| !is_unlimited));
        self.settling += live(&given_up);
        self.requeue(batch);
        Some(Failed { retry_in, given_up })
    }

    /// Puts crops back where they came from.
    fn requeue(&mut self, batch: Batch) {
        let queue = if batch.from_spool { &mut self.ready } else { &mut self.queue };
        for pending in batch.crops.into_iter().rev() {
            queue.push_front(pending);
        }
    }

    /// Returns what the spool's thread does next.
    pub fn next_spool_task(&mut self, now: Instant) -> SpoolTask {
        let spill_len = self.spill_len();
        let batch_size = self.settings.batch_size.max(1);
        let ready_space = (2 * batch_size).saturating_sub(self.ready.len());
        let Some(spool) = &mut self.spool else { return SpoolTask::Stop };
        if !spool.settled.is_empty() {
            return SpoolTask::Delete(std::mem::take(&mut spool.settled));
        }
        let broken_until = spool.broken_until.filter(|&until| now < until);
        if spill_len > 0 && broken_until.is_none() {
            let crops: Vec<PendingUpload> = self.queue.drain(..spill_len.min(SPOOL_GROUP)).collect();
            spool.storing = crops.len();
            return SpoolTask::Store(crops);
        }
        if self.closed {
            return SpoolTask::Stop;
        }
        if ready_space >= batch_size && spool.counts.unclaimed > 0 {
            return SpoolTask::Read(ready_space);
        }
        match broken_until {
            Some(until) if spill_len > 0 => SpoolTask::WaitUntil(until),
            _ => SpoolTask::Wait,
        }
    }

    /// Returns how many crops from the front of the queue are to be spooled: all during an outage, and those beyond half
    /// the queue if the backend is too slow.
    fn spill_len(&self) -> usize {
        if self.spool.is_none() {
            return 0;
        }
        let is_outage = self.breaker.is_unavailable_after(self.settings.retries.unwrap_or(0));
        if self.closed || self.spill_all || is_outage {
            return self.queue.len();
        }
        self.queue.len().saturating_sub(self.settings.max_queue.div_ceil(2))
    }

    /// Ends a [`SpoolTask::Store`] that has stored the first `stored` of the crops; the others, if any, return to the
    /// queue. Returns true if this is the first failure in a row.
    pub fn finish_storing(
        &mut self,
        crops: Vec<PendingUpload>,
        stored: usize,
        counts: SpoolCounts,
        now: Instant,
    ) -> bool {
        let failed = stored < crops.len();
        for pending in crops.into_iter().skip(stored).rev() {
            self.queue.push_front(pending);
        }
        let Some(spool) = &mut self.spool else { return false };
        spool.storing = 0;
        spool.counts = counts;
        let is_first = failed && spool.broken_until.is_none();
        spool.broken_until = failed.then(|| now.checked_add(SPOOL_RETRY).unwrap_or(now));
        is_first
    }

    /// Ends a [`SpoolTask::Read`].
    pub fn finish_reading(&mut self, entries: Vec<(SpoolId, SpoolEntry)>, counts: SpoolCounts, now: Instant) {
        self.ready.extend(entries.into_iter().map(|(id, entry)| PendingUpload::from_spool(id, entry, now)));
        self.set_spool_counts(counts);
    }

    pub fn set_spool_counts(&mut self, counts: SpoolCounts) {
        if let Some(spool) = &mut self.spool {
            spool.counts = counts;
        }
    }

    /// Accepts no more crops. Live crops in flight are the oldest, and are spooled with the others.
    pub fn close(&mut self) {
        self.closed = true;
        let mut batches: Vec<(u64, Vec<PendingUpload>)> = self.in_flight.drain().collect();
        batches.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
        for pending in batches.into_iter().flat_map(|(_, crops)| crops.into_iter().rev()) {
            if pending.is_live() {
                self.queue.push_front(pending);
            }
        }
        self.ready.clear();
        if let Some(spool) = &mut self.spool {
            spool.broken_until = None;
        }
    }

    /// Discards what was not spooled; returns the number of these crops.
    pub fn discard_unsent(&mut self) -> u64 {
        let left = count(self.queue.len());
        self.queue.clear();
        left
    }
}

fn live(crops: &[PendingUpload]) -> usize {
    crops.iter().filter(|pending| pending.is_live()).count()
}

pub(super) fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;
    use crate::crop::Encoding;

    const PAUSE: Duration = Duration::from_secs(1);

    fn crop() -> Crop {
        Crop {
            image: Bytes::from_static(b"x"),
            encoding: Encoding::Jpeg,
            camera: Arc::default(),
            captured_at: OffsetDateTime::UNIX_EPOCH,
            track_id: None,
            run_id: None,
            bounding_box: None,
            area: None,
            key: Uuid::now_v7(),
        }
    }

    fn settings() -> RuntimeSettings {
        RuntimeSettings {
            batch_size: 1,
            batch_delay: Duration::ZERO,
            max_queue: 8,
            ..RuntimeSettings::default()
        }
    }

    fn state(spool: Option<SpoolCounts>) -> State {
        State::new(settings(), 2, spool)
    }

    /// Returns a state with so many live crops, and so many read from the spool.
    fn filled(live: usize, ready: usize, now: Instant) -> State {
        let mut state = state((ready > 0).then(SpoolCounts::default));
        (0..live).for_each(|_| drop(state.try_push(crop(), true, now)));
        for _ in 0..ready {
            let entry = SpoolEntry { crop: crop(), attempts: 0, internal_errors: 0, earlier_run: false };
            let id = SpoolId::of(&entry.crop);
            state.finish_reading(vec![(id, entry)], SpoolCounts::default(), now);
        }
        state
    }

    fn send(state: &mut State, now: Instant) -> Batch {
        match state.next(now) {
            NextAction::Send(batch) => batch,
            other => panic!("{other:?}"),
        }
    }

    /// Fails a request with a back-off that grows by [`PAUSE`] per failure.
    fn fail(state: &mut State, batch: Batch, now: Instant) -> Duration {
        let wait = |failures| PAUSE * (failures + 1);
        state.fail(batch, BackendStatus::Unavailable, 503, now, wait).unwrap().retry_in
    }

    #[test]
    fn live_crops_go_first_and_one_worker_is_reserved_for_them() {
        let now = Instant::now();
        let mut state = filled(1, 3, now);
        assert!(!send(&mut state, now).from_spool);
        let mut from_spool = send(&mut state, now);
        assert!(from_spool.from_spool);
        assert!(matches!(state.next(now), NextAction::Wait), "the second worker waits for live crops");
        state.try_push(crop(), true, now);
        assert!(!send(&mut state, now).from_spool);
        assert!(state.settle(&mut from_spool));
        assert!(send(&mut state, now).from_spool);
    }

    #[test]
    fn an_incomplete_batch_is_due_after_batch_delay_and_a_complete_one_at_once() {
        let now = Instant::now();
        let mut state =
            State::new(RuntimeSettings { batch_size: 2, batch_delay: PAUSE, ..settings() }, 2, None);
        state.try_push(crop(), true, now);
        let due = now + PAUSE;
        assert!(matches!(state.next(now), NextAction::WaitUntil(time) if time == due));
        assert!(matches!(state.next(due - PAUSE / 2), NextAction::WaitUntil(time) if time == due));
        assert_eq!(send(&mut state, due).crops.len(), 1);
        (0..2).for_each(|_| drop(state.try_push(crop(), true, now)));
        assert_eq!(send(&mut state, now).crops.len(), 2, "it is full");
        state.try_push(crop(), true, now);
        state.draining = true;
        assert_eq!(send(&mut state, now).crops.len(), 1, "no more will come");
    }

    #[test]
    fn after_a_failure_only_the_probes_outcome_counts() {
        let now = Instant::now();
        let mut state = filled(4, 0, now);
        let (first, straggler) = (send(&mut state, now), send(&mut state, now));
        assert_eq!(fail(&mut state, first, now), PAUSE);
        assert_eq!(fail(&mut state, straggler, now), Duration::ZERO, "it met the same failure");
        assert!(matches!(state.next(now), NextAction::WaitUntil(time) if time == now + PAUSE));

        let later = now + PAUSE;
        let probe = send(&mut state, later);
        assert!(matches!(state.next(later), NextAction::Wait), "others wait for its outcome");
        assert_eq!(fail(&mut state, probe, later), 2 * PAUSE);
        let later = later + 2 * PAUSE;
        let mut probe = send(&mut state, later);
        assert!(state.settle(&mut probe));
        assert!(matches!(state.next(later), NextAction::Send(_)));
        assert!(matches!(state.next(later), NextAction::Send(_)));
    }

    #[test]
    fn requeued_crops_keep_their_order() {
        let now = Instant::now();
        let mut state = filled(4, 0, now);
        let order: Vec<Uuid> = state.queue.iter().map(|pending| pending.crop.key).collect();
        let (first, _second) = (send(&mut state, now), send(&mut state, now));
        state.resend(first);
        assert_eq!(state.live(), 4);
        let waiting: Vec<Uuid> = state.queue.iter().map(|pending| pending.crop.key).collect();
        assert_eq!(waiting, [order[0], order[2], order[3]]);
        state.close();
        let mut returned: Vec<Uuid> = state.queue.iter().map(|pending| pending.crop.key).collect();
        returned.sort();
        assert_eq!(returned, order, "crops in flight when it was closed are not lost");
        assert_eq!(state.discard_unsent(), 4);
    }

    #[test]
    fn a_half_full_queue_and_an_outage_fill_the_spool() {
        let now = Instant::now();
        let mut state = state(Some(SpoolCounts::default()));
        (0..4).for_each(|_| drop(state.try_push(crop(), true, now)));
        assert!(matches!(state.next_spool_task(now), SpoolTask::Wait));
        (0..3).for_each(|_| drop(state.try_push(crop(), true, now)));
        assert!(matches!(state.next_spool_task(now), SpoolTask::Store(crops) if crops.len() == 3));
        state.finish_storing(Vec::new(), 0, SpoolCounts::default(), now);

        let batch = send(&mut state, now);
        fail(&mut state, batch, now);
        let SpoolTask::Store(crops) = state.next_spool_task(now) else { panic!("nothing to store") };
        assert_eq!(crops.len(), 4);

        // After a disk error crops stay in memory for a while.
        assert!(state.finish_storing(crops, 1, SpoolCounts::default(), now), "reported");
        assert_eq!(state.live(), 3);
        assert!(matches!(state.next_spool_task(now), SpoolTask::WaitUntil(_)));
        let SpoolTask::Store(crops) = state.next_spool_task(now + SPOOL_RETRY) else {
            panic!("not tried again")
        };
        assert!(!state.finish_storing(crops, 0, SpoolCounts::default(), now), "reported before");
    }
}
