//! What waits, what is under way, and who may send next: the uploader's state behind its mutex. No I/O, so that
//! the order of things can be tested by itself.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Crop, DropPolicy, Tuning,
    spool::{SpoolCounts, SpoolId, Spooled},
};

/// Crops that go to the spool together, to be synced together.
const SPOOL_GROUP: usize = 32;

/// A disk that refused is tried again after this time.
const SPOOL_RETRY: Duration = Duration::from_secs(10);

/// After so many answers 500 a crop is sent by itself: it may be what the backend fails on.
const SUSPICIOUS: u32 = 3;

/// A crop that waits for the backend.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pub crop: Crop,
    since: Instant,
    /// It was in a request since then.
    requested: bool,
    /// Requests that it was part of.
    pub attempts: u32,
    /// Those of them that the backend answered with 500.
    pub internal_errors: u32,
    /// An earlier run has left it on the spool.
    pub earlier_run: bool,
    /// To be sent by itself.
    pub alone: bool,
    /// Its file, if it is from the spool.
    pub spooled: Option<SpoolId>,
}

impl Waiting {
    fn new(crop: Crop) -> Self {
        Self {
            crop,
            since: Instant::now(),
            requested: false,
            attempts: 0,
            internal_errors: 0,
            earlier_run: false,
            alone: false,
            spooled: None,
        }
    }

    fn from_spool(id: SpoolId, spooled: Spooled) -> Self {
        let Spooled { crop, attempts, internal_errors, earlier_run } = spooled;
        let alone = internal_errors >= SUSPICIOUS;
        Self { attempts, internal_errors, earlier_run, alone, spooled: Some(id), ..Self::new(crop) }
    }

    /// Since when it waits in memory.
    #[cfg(feature = "traces")]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Whether it was in no request since it began to wait.
    #[cfg(feature = "traces")]
    pub fn first_time(&self) -> bool {
        !self.requested
    }

    /// Fields are matched to the pictures by their order, so a request's crops either all have a field or all lack
    /// it; and a request names one camera.
    fn fits(&self, other: &Self) -> bool {
        let (one, other_crop) = (&self.crop, &other.crop);
        !self.alone
            && !other.alone
            && one.track_id.is_some() == other_crop.track_id.is_some()
            && one.bounding_box.is_some() == other_crop.bounding_box.is_some()
            && one.camera == other_crop.camera
    }
}

/// A request to be made.
#[derive(Debug)]
pub(super) struct Job {
    id: u64,
    pub crops: Vec<Waiting>,
    from_spool: bool,
    /// It asks whether the backend is well again, while nothing else is sent.
    probe: bool,
}

impl Job {
    /// True if a crop of it was sent before.
    pub fn repeats(&self) -> bool {
        self.crops.iter().any(|waiting| waiting.attempts > 0)
    }
}

/// What a worker is to do.
#[derive(Debug)]
pub(super) enum Next {
    Send(Job),
    /// Nothing before this time, unless something changes.
    At(Instant),
    /// Nothing until something changes.
    Wait,
}

/// What the spool's thread is to do.
#[derive(Debug)]
pub(super) enum SpoolWork {
    Store(Vec<Waiting>),
    Read(usize),
    Forget(Vec<SpoolId>),
    /// Nothing before this time, unless something changes.
    WaitUntil(Instant),
    Wait,
    End,
}

/// How queueing a crop ended.
#[derive(Debug)]
pub(super) enum Queued {
    Waits,
    /// A crop gave way, this one or an older one.
    Dropped,
    /// There is no room, and the policy is to wait for it.
    Full(Crop),
}

/// Closed after a failure, until the back-off has passed and one request has found the backend well.
#[derive(Debug, Default)]
struct Gate {
    closed_until: Option<Instant>,
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
    pub tuning: Arc<Tuning>,
    queue: VecDeque<Waiting>,
    /// Read from the spool, to be sent when nothing live waits.
    ready: VecDeque<Waiting>,
    in_flight: HashMap<u64, Vec<Waiting>>,
    /// Live crops that are answered, which their observer is being told.
    settling: usize,
    next_job: u64,
    spool_jobs: usize,
    max_spool_jobs: usize,
    gate: Gate,
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
    pub fn new(tuning: Tuning, workers: usize, spool: Option<SpoolCounts>) -> Self {
        Self {
            tuning: Arc::new(tuning),
            queue: VecDeque::new(),
            ready: VecDeque::new(),
            in_flight: HashMap::new(),
            settling: 0,
            next_job: 0,
            spool_jobs: 0,
            // One worker is left for live crops.
            max_spool_jobs: workers.saturating_sub(1).max(1),
            gate: Gate::default(),
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

    /// Live crops in memory: waiting, under way, or on their way to the spool.
    pub fn live(&self) -> usize {
        let under_way: usize = self.in_flight.values().map(|crops| live(crops)).sum();
        self.queue.len() + under_way + self.settling + self.storing()
    }

    fn storing(&self) -> usize {
        self.spool.as_ref().map_or(0, |spool| spool.storing)
    }

    /// True if a live crop is neither under way nor on disk.
    pub fn has_live_waiting(&self) -> bool {
        !self.queue.is_empty() || self.storing() > 0
    }

    /// Crops that the backend has not answered, and files that are not yet deleted.
    pub fn pending(&self) -> u64 {
        count(self.live()).saturating_add(self.spool_counts().files)
    }

    /// `may_wait`: whoever brings it can wait for room.
    pub fn push(&mut self, crop: Crop, may_wait: bool) -> Queued {
        if self.closed {
            return Queued::Dropped;
        }
        let full = self.queue.len() >= self.tuning.max_queue.max(1);
        let mut pushed = Queued::Waits;
        match self.tuning.drop_policy {
            _ if !full => (),
            DropPolicy::Oldest => {
                self.queue.pop_front();
                pushed = Queued::Dropped;
            }
            DropPolicy::Newest => return Queued::Dropped,
            DropPolicy::Block if may_wait => return Queued::Full(crop),
            DropPolicy::Block => (),
        }
        self.queue.push_back(Waiting::new(crop));
        pushed
    }

    /// What the next free worker does: live crops first, then those of the spool.
    pub fn next(&mut self, now: Instant) -> Next {
        let probe = match self.gate.closed_until {
            Some(until) if now < until => return Next::At(until),
            Some(_) if self.gate.probing => return Next::Wait,
            closed => closed.is_some(),
        };
        let due = self.live_due(now);
        if due.is_some_and(|due| due <= now) {
            return Next::Send(self.job(false, probe));
        }
        if !self.ready.is_empty() && self.spool_jobs < self.max_spool_jobs {
            return Next::Send(self.job(true, probe));
        }
        due.map_or(Next::Wait, Next::At)
    }

    /// When the front of the queue is to be sent: at once if its request is as full as it can become, else after
    /// `batch_delay`.
    fn live_due(&self, now: Instant) -> Option<Instant> {
        let first = self.queue.front()?;
        let company = self.run(&self.queue);
        let complete = company >= self.tuning.batch_size.max(1) || company < self.queue.len();
        if complete || self.draining || first.alone || first.attempts > 0 {
            return Some(now);
        }
        Some(first.since.checked_add(self.tuning.batch_delay).unwrap_or(now))
    }

    /// How many from the front share a request.
    fn run(&self, queue: &VecDeque<Waiting>) -> usize {
        let Some(first) = queue.front() else { return 0 };
        let others = queue.iter().skip(1).take(self.tuning.batch_size.max(1) - 1);
        1 + others.take_while(|waiting| first.fits(waiting)).count()
    }

    fn job(&mut self, from_spool: bool, probe: bool) -> Job {
        let crops: Vec<Waiting> = if from_spool {
            let run = self.run(&self.ready);
            self.spool_jobs += 1;
            self.ready.drain(..run).collect()
        } else {
            let run = self.run(&self.queue);
            self.queue.drain(..run).collect()
        };
        let id = self.next_job;
        self.next_job = self.next_job.wrapping_add(1);
        self.in_flight.insert(id, crops.clone());
        self.gate.probing |= probe;
        Job { id, crops, from_spool, probe }
    }

    /// True if there is more to send now.
    pub fn has_more(&self) -> bool {
        !self.queue.is_empty() || !self.ready.is_empty()
    }

    /// A request has ended. False if the uploader was closed meanwhile, and the crops are no longer the request's.
    pub fn finish(&mut self, job: &Job) -> bool {
        if self.in_flight.remove(&job.id).is_none() {
            return false;
        }
        if job.from_spool {
            self.spool_jobs = self.spool_jobs.saturating_sub(1);
        }
        if job.probe {
            self.gate.probing = false;
        }
        true
    }

    /// The backend has answered well: whoever waits may send.
    pub fn open_gate(&mut self) {
        self.gate = Gate::default();
    }

    /// The backend has failed or is busy: nobody sends for `wait`, or for what `back_off` says of the number of
    /// failures. What other requests meet that were under way then counts for nothing new.
    pub fn close_gate(
        &mut self,
        job: &Job,
        now: Instant,
        away: bool,
        wait: impl FnOnce(u32) -> Duration,
    ) -> Duration {
        if !job.probe && self.gate.closed_until.is_some_and(|until| now < until) {
            return Duration::ZERO;
        }
        let wait = wait(self.gate.failures);
        self.gate = Gate {
            closed_until: Some(now.checked_add(wait).unwrap_or(now)),
            failures: self.gate.failures.saturating_add(1),
            away,
            probing: false,
        };
        wait
    }

    /// Crops of a request that is to be repeated go back to where they came from.
    pub fn give_back(&mut self, job: Job) {
        let queue = if job.from_spool { &mut self.ready } else { &mut self.queue };
        for mut waiting in job.crops.into_iter().rev() {
            waiting.alone |= waiting.internal_errors >= SUSPICIOUS;
            waiting.requested = true;
            queue.push_front(waiting);
        }
    }

    /// The backend has taken or refused these crops. They still count until [`settled`](Self::settled).
    pub fn settle(&mut self, crops: &[Waiting]) {
        self.settling += live(crops);
    }

    /// The observer knows of these crops: nothing is left to do for them but to delete their files.
    pub fn settled(&mut self, crops: &[Waiting]) {
        self.settling = self.settling.saturating_sub(live(crops));
        if let Some(spool) = &mut self.spool {
            spool.settled.extend(crops.iter().filter_map(|waiting| waiting.spooled));
        }
    }

    /// What the spool's thread does next.
    pub fn spool_work(&mut self, now: Instant) -> SpoolWork {
        let to_spill = self.to_spill();
        let room_for_ready = (2 * self.tuning.batch_size.max(1)).saturating_sub(self.ready.len());
        let batch = self.tuning.batch_size.max(1);
        let Some(spool) = &mut self.spool else { return SpoolWork::End };
        if !spool.settled.is_empty() {
            return SpoolWork::Forget(std::mem::take(&mut spool.settled));
        }
        let broken_until = spool.broken_until.filter(|&until| now < until);
        if to_spill > 0 && broken_until.is_none() {
            let crops: Vec<Waiting> = self.queue.drain(..to_spill.min(SPOOL_GROUP)).collect();
            spool.storing = crops.len();
            return SpoolWork::Store(crops);
        }
        if self.closed {
            return SpoolWork::End;
        }
        if room_for_ready >= batch && spool.counts.unread > 0 {
            return SpoolWork::Read(room_for_ready);
        }
        match broken_until {
            Some(until) if to_spill > 0 => SpoolWork::WaitUntil(until),
            _ => SpoolWork::Wait,
        }
    }

    /// How many crops from the front of the queue belong on disk: all while the backend is away, and those beyond
    /// half the queue when it cannot keep up.
    fn to_spill(&self) -> usize {
        if self.spool.is_none() {
            return 0;
        }
        // `retries` says for how many repetitions the crops stay in memory.
        let away = self.gate.away && self.gate.failures > self.tuning.retries.unwrap_or(0);
        if self.closed || self.spill_all || away {
            return self.queue.len();
        }
        self.queue.len().saturating_sub(self.tuning.max_queue.div_ceil(2))
    }

    /// The spool's thread has stored the first `stored` of the crops; the others, if any, return to the queue.
    /// True if this is the first failure in a row.
    pub fn stored(&mut self, crops: Vec<Waiting>, stored: usize, counts: SpoolCounts, now: Instant) -> bool {
        let failed = stored < crops.len();
        for waiting in crops.into_iter().skip(stored).rev() {
            self.queue.push_front(waiting);
        }
        let Some(spool) = &mut self.spool else { return false };
        spool.storing = 0;
        spool.counts = counts;
        let first = failed && spool.broken_until.is_none();
        spool.broken_until = failed.then(|| now.checked_add(SPOOL_RETRY).unwrap_or(now));
        first
    }

    /// The spool's thread has read these.
    pub fn read(&mut self, crops: Vec<(SpoolId, Spooled)>, counts: SpoolCounts) {
        self.ready.extend(crops.into_iter().map(|(id, spooled)| Waiting::from_spool(id, spooled)));
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
        let mut jobs: Vec<(u64, Vec<Waiting>)> = self.in_flight.drain().collect();
        jobs.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
        for waiting in jobs.into_iter().flat_map(|(_, crops)| crops.into_iter().rev()) {
            if waiting.spooled.is_none() {
                self.queue.push_front(waiting);
            }
        }
        self.ready.clear();
        if let Some(spool) = &mut self.spool {
            spool.broken_until = None;
        }
    }

    /// Gives up what no spool has taken; returns how many crops these were.
    pub fn give_up(&mut self) -> u64 {
        let left = count(self.queue.len());
        self.queue.clear();
        left
    }
}

fn live(crops: &[Waiting]) -> usize {
    crops.iter().filter(|waiting| waiting.spooled.is_none()).count()
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
            picture: Bytes::from_static(b"x"),
            encoding: Encoding::Jpeg,
            camera: Arc::default(),
            captured_at: OffsetDateTime::UNIX_EPOCH,
            track_id: None,
            bounding_box: None,
            key: Uuid::now_v7(),
        }
    }

    fn state(spool: Option<SpoolCounts>) -> State {
        let tuning = Tuning { batch_size: 1, batch_delay: Duration::ZERO, max_queue: 8, ..Tuning::default() };
        State::new(tuning, 2, spool)
    }

    /// With so many crops waiting, and the spool's `ready` ones.
    fn filled(live: usize, ready: usize) -> State {
        let mut state = state((ready > 0).then(SpoolCounts::default));
        (0..live).for_each(|_| drop(state.push(crop(), true)));
        for _ in 0..ready {
            let spooled = Spooled { crop: crop(), attempts: 0, internal_errors: 0, earlier_run: false };
            let id = SpoolId::of(&spooled.crop);
            state.read(vec![(id, spooled)], SpoolCounts::default());
        }
        state
    }

    fn send(state: &mut State, now: Instant) -> Job {
        match state.next(now) {
            Next::Send(job) => job,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn live_crops_go_first_and_a_worker_is_kept_for_them() {
        let now = Instant::now() + PAUSE;
        let mut state = filled(1, 3);
        assert!(!send(&mut state, now).from_spool);
        let from_spool = send(&mut state, now);
        assert!(from_spool.from_spool);
        assert!(matches!(state.next(now), Next::Wait), "the second worker waits for live crops");
        state.push(crop(), true);
        assert!(!send(&mut state, now).from_spool);
        assert!(state.finish(&from_spool));
        assert!(send(&mut state, now).from_spool);
    }

    #[test]
    fn after_a_failure_one_request_asks_and_only_its_answer_counts() {
        let now = Instant::now() + PAUSE;
        let mut state = filled(4, 0);
        let (first, straggler) = (send(&mut state, now), send(&mut state, now));
        let fail = |state: &mut State, job: Job, now| {
            assert!(state.finish(&job));
            let wait = state.close_gate(&job, now, true, |failures| PAUSE * (failures + 1));
            state.give_back(job);
            wait
        };
        assert_eq!(fail(&mut state, first, now), PAUSE);
        assert_eq!(fail(&mut state, straggler, now), Duration::ZERO, "it met the same failure");
        assert!(matches!(state.next(now), Next::At(time) if time == now + PAUSE));

        let later = now + PAUSE;
        let probe = send(&mut state, later);
        assert!(matches!(state.next(later), Next::Wait), "others wait for its answer");
        assert_eq!(fail(&mut state, probe, later), 2 * PAUSE);
        let later = later + 2 * PAUSE;
        let probe = send(&mut state, later);
        assert!(state.finish(&probe));
        state.open_gate();
        assert!(matches!(state.next(later), Next::Send(_)));
        assert!(matches!(state.next(later), Next::Send(_)));
    }

    #[test]
    fn crops_return_to_their_place() {
        let now = Instant::now() + PAUSE;
        let mut state = filled(4, 0);
        let order: Vec<Uuid> = state.queue.iter().map(|waiting| waiting.crop.key).collect();
        let (first, _second) = (send(&mut state, now), send(&mut state, now));
        assert!(state.finish(&first));
        state.give_back(first);
        assert_eq!(state.live(), 4);
        state.close();
        let mut returned: Vec<Uuid> = state.queue.iter().map(|waiting| waiting.crop.key).collect();
        returned.sort();
        assert_eq!(returned, order, "what was under way when it was closed is not lost");
        assert_eq!(state.give_up(), 4);
    }

    #[test]
    fn a_queue_that_is_half_full_and_an_absent_backend_fill_the_spool() {
        let now = Instant::now() + PAUSE;
        let mut state = state(Some(SpoolCounts::default()));
        (0..4).for_each(|_| drop(state.push(crop(), true)));
        assert!(matches!(state.spool_work(now), SpoolWork::Wait));
        (0..3).for_each(|_| drop(state.push(crop(), true)));
        assert!(matches!(state.spool_work(now), SpoolWork::Store(crops) if crops.len() == 3));
        state.stored(Vec::new(), 0, SpoolCounts::default(), now);

        let job = send(&mut state, now);
        assert!(state.finish(&job));
        state.close_gate(&job, now, true, |_| PAUSE);
        state.give_back(job);
        let SpoolWork::Store(crops) = state.spool_work(now) else { panic!("nothing to store") };
        assert_eq!(crops.len(), 4);

        // A disk that refuses keeps them in memory for a while.
        assert!(state.stored(crops, 1, SpoolCounts::default(), now), "told");
        assert_eq!(state.live(), 3);
        assert!(matches!(state.spool_work(now), SpoolWork::WaitUntil(_)));
        let SpoolWork::Store(crops) = state.spool_work(now + SPOOL_RETRY) else { panic!("not tried again") };
        assert!(!state.stored(crops, 0, SpoolCounts::default(), now), "told before");
    }
}
