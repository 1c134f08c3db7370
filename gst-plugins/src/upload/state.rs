//! What waits, what is under way, and who may send next: the uploader's state behind its mutex. No I/O, so that
//! the order of things can be tested by itself.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Crop, DropPolicy, RuntimeSettings,
    spool::{SpoolCounts, SpoolEntry, SpoolId},
};

/// Crops that go to the spool together, to be synced together.
const SPOOL_GROUP: usize = 32;

/// A disk that refused is tried again after this time.
const SPOOL_RETRY: Duration = Duration::from_secs(10);

/// After so many answers 500 a crop is sent by itself: it may be what the backend fails on.
const SUSPICIOUS: u32 = 3;

/// A crop that waits for the backend.
#[derive(Debug, Clone)]
pub(super) struct PendingUpload {
    pub crop: Crop,
    queued_at: Instant,
    /// It was in a request since then.
    was_sent: bool,
    /// Requests that it was part of.
    pub attempts: u32,
    /// Those of them that the backend answered with 500.
    pub internal_errors: u32,
    /// An earlier run has left it on the spool.
    pub earlier_run: bool,
    /// To be sent by itself.
    pub send_alone: bool,
    /// Its file, if it is from the spool.
    pub spooled: Option<SpoolId>,
}

impl PendingUpload {
    fn new(crop: Crop) -> Self {
        Self {
            crop,
            queued_at: Instant::now(),
            was_sent: false,
            attempts: 0,
            internal_errors: 0,
            earlier_run: false,
            send_alone: false,
            spooled: None,
        }
    }

    fn from_spool(id: SpoolId, spooled: SpoolEntry) -> Self {
        let SpoolEntry { crop, attempts, internal_errors, earlier_run } = spooled;
        let send_alone = internal_errors >= SUSPICIOUS;
        Self { attempts, internal_errors, earlier_run, send_alone, spooled: Some(id), ..Self::new(crop) }
    }

    /// Since when it waits in memory.
    #[cfg(feature = "traces")]
    pub fn queued_at(&self) -> Instant {
        self.queued_at
    }

    /// Whether it was in no request since it began to wait.
    #[cfg(feature = "traces")]
    pub fn is_first_attempt(&self) -> bool {
        !self.was_sent
    }

    /// Fields are matched to the pictures by their order, so a request's crops either all have a field or all lack
    /// it; and a request names one camera.
    fn can_share_request_with(&self, other: &Self) -> bool {
        let (one, other_crop) = (&self.crop, &other.crop);
        !self.send_alone
            && !other.send_alone
            && one.track_id.is_some() == other_crop.track_id.is_some()
            && one.bounding_box.is_some() == other_crop.bounding_box.is_some()
            && one.camera == other_crop.camera
    }
}

/// A request to be made.
#[derive(Debug)]
pub(super) struct Batch {
    id: u64,
    pub crops: Vec<PendingUpload>,
    from_spool: bool,
    /// It asks whether the backend is well again, while nothing else is sent.
    probe: bool,
}

impl Batch {
    /// True if a crop of it was sent before.
    pub fn is_retry(&self) -> bool {
        self.crops.iter().any(|pending| pending.attempts > 0)
    }
}

/// What a worker is to do.
#[derive(Debug)]
pub(super) enum NextAction {
    Send(Batch),
    /// Nothing before this time, unless something changes.
    WaitUntil(Instant),
    /// Nothing until something changes.
    Wait,
}

/// What the spool's thread is to do.
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

/// How queueing a crop ended.
#[derive(Debug)]
pub(super) enum TryPush {
    Queued,
    /// A crop gave way, this one or an older one.
    Dropped,
    /// There is no room, and the policy is to wait for it.
    Full(Crop),
}

/// Closed after a failure, until the back-off has passed and one request has found the backend well.
#[derive(Debug, Default)]
struct CircuitBreaker {
    open_until: Option<Instant>,
    /// Failures in a row.
    failures: u32,
    /// The backend is away, not just busy.
    away: bool,
    probing: bool,
}

#[derive(Debug, Default)]
struct SpoolState {
    counts: SpoolCounts,
    /// Settled, files to be deleted.
    settled: Vec<SpoolId>,
    /// Crops with the spool's thread.
    storing: usize,
    /// The disk refused; not before this time again.
    broken_until: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct State {
    pub settings: Arc<RuntimeSettings>,
    queue: VecDeque<PendingUpload>,
    /// Read from the spool, to be sent when nothing live waits.
    ready: VecDeque<PendingUpload>,
    in_flight: HashMap<u64, Vec<PendingUpload>>,
    /// Live crops that are answered, which their observer is being told.
    settling: usize,
    next_batch: u64,
    spool_batches: usize,
    max_spool_batches: usize,
    breaker: CircuitBreaker,
    spool: Option<SpoolState>,
    /// The stream has ended: nothing waits for company.
    pub draining: bool,
    /// Everything goes to the spool.
    pub spill_all: bool,
    pub interrupted: bool,
    closed: bool,
}

impl State {
    /// `spool` is what it holds, if there is one.
    pub fn new(settings: RuntimeSettings, workers: usize, spool: Option<SpoolCounts>) -> Self {
        Self {
            settings: Arc::new(settings),
            queue: VecDeque::new(),
            ready: VecDeque::new(),
            in_flight: HashMap::new(),
            settling: 0,
            next_batch: 0,
            spool_batches: 0,
            // One worker is left for live crops.
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

    /// What the spool holds.
    pub fn spool_counts(&self) -> SpoolCounts {
        self.spool.as_ref().map(|spool| spool.counts).unwrap_or_default()
    }

    /// Live crops in memory: pending, under way, or on their way to the spool.
    pub fn live(&self) -> usize {
        let under_way: usize = self.in_flight.values().map(|crops| live(crops)).sum();
        self.queue.len() + under_way + self.settling + self.storing()
    }

    fn storing(&self) -> usize {
        self.spool.as_ref().map_or(0, |spool| spool.storing)
    }

    /// True if a live crop is neither under way nor on disk.
    pub fn has_unsent_live(&self) -> bool {
        !self.queue.is_empty() || self.storing() > 0
    }

    /// Crops that the backend has not answered, and files that are not yet deleted.
    pub fn pending(&self) -> u64 {
        count(self.live()).saturating_add(self.spool_counts().files)
    }

    /// `can_block`: whoever brings it can wait for room.
    pub fn try_push(&mut self, crop: Crop, can_block: bool) -> TryPush {
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
        self.queue.push_back(PendingUpload::new(crop));
        outcome
    }

    /// What the next free worker does: live crops first, then those of the spool.
    pub fn next(&mut self, now: Instant) -> NextAction {
        let probe = match self.breaker.open_until {
            Some(until) if now < until => return NextAction::WaitUntil(until),
            Some(_) if self.breaker.probing => return NextAction::Wait,
            open => open.is_some(),
        };
        let due = self.live_due_at(now);
        if due.is_some_and(|due| due <= now) {
            return NextAction::Send(self.take_batch(false, probe));
        }
        if !self.ready.is_empty() && self.spool_batches < self.max_spool_batches {
            return NextAction::Send(self.take_batch(true, probe));
        }
        due.map_or(NextAction::Wait, NextAction::WaitUntil)
    }

    /// When the front of the queue is to be sent: at once if its request is as full as it can become, else after
    /// `batch_delay`.
    fn live_due_at(&self, now: Instant) -> Option<Instant> {
        let first = self.queue.front()?;
        let company = self.batch_len(&self.queue);
        let complete = company >= self.settings.batch_size.max(1) || company < self.queue.len();
        if complete || self.draining || first.send_alone || first.attempts > 0 {
            return Some(now);
        }
        Some(first.queued_at.checked_add(self.settings.batch_delay).unwrap_or(now))
    }

    /// How many from the front share a request.
    fn batch_len(&self, queue: &VecDeque<PendingUpload>) -> usize {
        let Some(first) = queue.front() else { return 0 };
        let others = queue.iter().skip(1).take(self.settings.batch_size.max(1) - 1);
        1 + others.take_while(|pending| first.can_share_request_with(pending)).count()
    }

    fn take_batch(&mut self, from_spool: bool, probe: bool) -> Batch {
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
        self.breaker.probing |= probe;
        Batch { id, crops, from_spool, probe }
    }

    /// True if there is more to send now.
    pub fn has_unsent(&self) -> bool {
        !self.queue.is_empty() || !self.ready.is_empty()
    }

    /// A request has ended. False if the uploader was closed meanwhile, and the crops are no longer the request's.
    pub fn complete(&mut self, batch: &Batch) -> bool {
        if self.in_flight.remove(&batch.id).is_none() {
            return false;
        }
        if batch.from_spool {
            self.spool_batches = self.spool_batches.saturating_sub(1);
        }
        if batch.probe {
            self.breaker.probing = false;
        }
        true
    }

    /// The backend has answered well: whoever waits may send.
    pub fn record_success(&mut self) {
        self.breaker = CircuitBreaker::default();
    }

    /// The backend has failed or is busy: nobody sends for `wait`, or for what `back_off` says of the number of
    /// failures. What other requests meet that were under way then counts for nothing new.
    pub fn record_failure(
        &mut self,
        batch: &Batch,
        now: Instant,
        away: bool,
        wait: impl FnOnce(u32) -> Duration,
    ) -> Duration {
        if !batch.probe && self.breaker.open_until.is_some_and(|until| now < until) {
            return Duration::ZERO;
        }
        let wait = wait(self.breaker.failures);
        self.breaker = CircuitBreaker {
            open_until: Some(now.checked_add(wait).unwrap_or(now)),
            failures: self.breaker.failures.saturating_add(1),
            away,
            probing: false,
        };
        wait
    }

    /// Crops of a request that is to be repeated go back to where they came from.
    pub fn requeue(&mut self, batch: Batch) {
        let queue = if batch.from_spool { &mut self.ready } else { &mut self.queue };
        for mut pending in batch.crops.into_iter().rev() {
            pending.send_alone |= pending.internal_errors >= SUSPICIOUS;
            pending.was_sent = true;
            queue.push_front(pending);
        }
    }

    /// The backend has taken or refused these crops. They still count until [`finish_settling`](Self::finish_settling).
    pub fn begin_settling(&mut self, crops: &[PendingUpload]) {
        self.settling += live(crops);
    }

    /// The observer knows of these crops: nothing is left to do for them but to delete their files.
    pub fn finish_settling(&mut self, crops: &[PendingUpload]) {
        self.settling = self.settling.saturating_sub(live(crops));
        if let Some(spool) = &mut self.spool {
            spool.settled.extend(crops.iter().filter_map(|pending| pending.spooled));
        }
    }

    /// What the spool's thread does next.
    pub fn next_spool_task(&mut self, now: Instant) -> SpoolTask {
        let spill_len = self.spill_len();
        let room_for_ready = (2 * self.settings.batch_size.max(1)).saturating_sub(self.ready.len());
        let batch = self.settings.batch_size.max(1);
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
        if room_for_ready >= batch && spool.counts.unclaimed > 0 {
            return SpoolTask::Read(room_for_ready);
        }
        match broken_until {
            Some(until) if spill_len > 0 => SpoolTask::WaitUntil(until),
            _ => SpoolTask::Wait,
        }
    }

    /// How many crops from the front of the queue belong on disk: all while the backend is away, and those beyond
    /// half the queue when it cannot keep up.
    fn spill_len(&self) -> usize {
        if self.spool.is_none() {
            return 0;
        }
        // `retries` says for how many repetitions the crops stay in memory.
        let away = self.breaker.away && self.breaker.failures > self.settings.retries.unwrap_or(0);
        if self.closed || self.spill_all || away {
            return self.queue.len();
        }
        self.queue.len().saturating_sub(self.settings.max_queue.div_ceil(2))
    }

    /// The spool's thread has stored the first `stored` of the crops; the others, if any, return to the queue.
    /// True if this is the first failure in a row.
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
        let first = failed && spool.broken_until.is_none();
        spool.broken_until = failed.then(|| now.checked_add(SPOOL_RETRY).unwrap_or(now));
        first
    }

    /// The spool's thread has read these.
    pub fn finish_reading(&mut self, crops: Vec<(SpoolId, SpoolEntry)>, counts: SpoolCounts) {
        self.ready.extend(crops.into_iter().map(|(id, spooled)| PendingUpload::from_spool(id, spooled)));
        self.set_spool_counts(counts);
    }

    pub fn set_spool_counts(&mut self, counts: SpoolCounts) {
        if let Some(spool) = &mut self.spool {
            spool.counts = counts;
        }
    }

    /// Takes nothing more. Live crops that are under way are what waits longest, and go to the spool with the
    /// others.
    pub fn close(&mut self) {
        self.closed = true;
        let mut batches: Vec<(u64, Vec<PendingUpload>)> = self.in_flight.drain().collect();
        batches.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
        for pending in batches.into_iter().flat_map(|(_, crops)| crops.into_iter().rev()) {
            if pending.spooled.is_none() {
                self.queue.push_front(pending);
            }
        }
        self.ready.clear();
        if let Some(spool) = &mut self.spool {
            spool.broken_until = None;
        }
    }

    /// Gives up what no spool has taken; returns how many crops these were.
    pub fn discard_unsent(&mut self) -> u64 {
        let left = count(self.queue.len());
        self.queue.clear();
        left
    }
}

fn live(crops: &[PendingUpload]) -> usize {
    crops.iter().filter(|pending| pending.spooled.is_none()).count()
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
            bounding_box: None,
            key: Uuid::now_v7(),
        }
    }

    fn state(spool: Option<SpoolCounts>) -> State {
        let settings = RuntimeSettings {
            batch_size: 1,
            batch_delay: Duration::ZERO,
            max_queue: 8,
            ..RuntimeSettings::default()
        };
        State::new(settings, 2, spool)
    }

    /// With so many crops pending, and the spool's `ready` ones.
    fn filled(live: usize, ready: usize) -> State {
        let mut state = state((ready > 0).then(SpoolCounts::default));
        (0..live).for_each(|_| drop(state.try_push(crop(), true)));
        for _ in 0..ready {
            let spooled = SpoolEntry { crop: crop(), attempts: 0, internal_errors: 0, earlier_run: false };
            let id = SpoolId::of(&spooled.crop);
            state.finish_reading(vec![(id, spooled)], SpoolCounts::default());
        }
        state
    }

    fn send(state: &mut State, now: Instant) -> Batch {
        match state.next(now) {
            NextAction::Send(batch) => batch,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn live_crops_go_first_and_one_worker_is_reserved_for_them() {
        let now = Instant::now() + PAUSE;
        let mut state = filled(1, 3);
        assert!(!send(&mut state, now).from_spool);
        let from_spool = send(&mut state, now);
        assert!(from_spool.from_spool);
        assert!(matches!(state.next(now), NextAction::Wait), "the second worker waits for live crops");
        state.try_push(crop(), true);
        assert!(!send(&mut state, now).from_spool);
        assert!(state.complete(&from_spool));
        assert!(send(&mut state, now).from_spool);
    }

    #[test]
    fn after_a_failure_only_the_probes_outcome_counts() {
        let now = Instant::now() + PAUSE;
        let mut state = filled(4, 0);
        let (first, straggler) = (send(&mut state, now), send(&mut state, now));
        let fail = |state: &mut State, batch: Batch, now| {
            assert!(state.complete(&batch));
            let wait = state.record_failure(&batch, now, true, |failures| PAUSE * (failures + 1));
            state.requeue(batch);
            wait
        };
        assert_eq!(fail(&mut state, first, now), PAUSE);
        assert_eq!(fail(&mut state, straggler, now), Duration::ZERO, "it met the same failure");
        assert!(matches!(state.next(now), NextAction::WaitUntil(time) if time == now + PAUSE));

        let later = now + PAUSE;
        let probe = send(&mut state, later);
        assert!(matches!(state.next(later), NextAction::Wait), "others wait for its answer");
        assert_eq!(fail(&mut state, probe, later), 2 * PAUSE);
        let later = later + 2 * PAUSE;
        let probe = send(&mut state, later);
        assert!(state.complete(&probe));
        state.record_success();
        assert!(matches!(state.next(later), NextAction::Send(_)));
        assert!(matches!(state.next(later), NextAction::Send(_)));
    }

    #[test]
    fn requeued_crops_keep_their_order() {
        let now = Instant::now() + PAUSE;
        let mut state = filled(4, 0);
        let order: Vec<Uuid> = state.queue.iter().map(|pending| pending.crop.key).collect();
        let (first, _second) = (send(&mut state, now), send(&mut state, now));
        assert!(state.complete(&first));
        state.requeue(first);
        assert_eq!(state.live(), 4);
        state.close();
        let mut returned: Vec<Uuid> = state.queue.iter().map(|pending| pending.crop.key).collect();
        returned.sort();
        assert_eq!(returned, order, "what was under way when it was closed is not lost");
        assert_eq!(state.discard_unsent(), 4);
    }

    #[test]
    fn a_half_full_queue_and_an_outage_fill_the_spool() {
        let now = Instant::now() + PAUSE;
        let mut state = state(Some(SpoolCounts::default()));
        (0..4).for_each(|_| drop(state.try_push(crop(), true)));
        assert!(matches!(state.next_spool_task(now), SpoolTask::Wait));
        (0..3).for_each(|_| drop(state.try_push(crop(), true)));
        assert!(matches!(state.next_spool_task(now), SpoolTask::Store(crops) if crops.len() == 3));
        state.finish_storing(Vec::new(), 0, SpoolCounts::default(), now);

        let batch = send(&mut state, now);
        assert!(state.complete(&batch));
        state.record_failure(&batch, now, true, |_| PAUSE);
        state.requeue(batch);
        let SpoolTask::Store(crops) = state.next_spool_task(now) else { panic!("nothing to store") };
        assert_eq!(crops.len(), 4);

        // A disk that refuses keeps them in memory for a while.
        assert!(state.finish_storing(crops, 1, SpoolCounts::default(), now), "reported");
        assert_eq!(state.live(), 3);
        assert!(matches!(state.next_spool_task(now), SpoolTask::WaitUntil(_)));
        let SpoolTask::Store(crops) = state.next_spool_task(now + SPOOL_RETRY) else {
            panic!("not tried again")
        };
        assert!(!state.finish_storing(crops, 0, SpoolCounts::default(), now), "reported before");
    }
}
