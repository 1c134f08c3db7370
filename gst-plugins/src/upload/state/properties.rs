//! Property tests: in whatever order crops come, requests end and the disk fails, each crop is in exactly one place, no crop
//! is settled twice, and nothing is sent while the circuit breaker forbids it.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use proptest::{prelude::*, sample::Index};
use time::OffsetDateTime;
use uuid::Uuid;

use super::*;
use crate::{crop::Encoding, upload::Camera};

/// Back-off after each failure.
const WAIT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
enum Step {
    Push {
        camera: u8,
        is_tracked: bool,
    },
    /// A free worker takes a batch.
    Send,
    Accept(Index),
    Reject(Index),
    Fail(Index, BackendStatus, u16),
    CloseConnection(Index),
    /// The spool's thread takes a task.
    StartSpoolTask,
    /// The disk has stored so many crops, all or fewer.
    FinishStoring(Index),
    Advance(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = any::<Index>;
    let failure = prop_oneof![
        Just((BackendStatus::Busy, 429)),
        Just((BackendStatus::Unavailable, 0)),
        Just((BackendStatus::Unavailable, 413)),
        Just((BackendStatus::Unavailable, 500)),
        Just((BackendStatus::Unauthorized, 401)),
    ];
    let step = prop_oneof![
        8 => (0..2_u8, any::<bool>()).prop_map(|(camera, is_tracked)| Step::Push { camera, is_tracked }),
        8 => Just(Step::Send),
        2 => index().prop_map(Step::Accept),
        2 => index().prop_map(Step::Reject),
        4 => (index(), failure).prop_map(|(batch, (status, http))| Step::Fail(batch, status, http)),
        1 => index().prop_map(Step::CloseConnection),
        4 => Just(Step::StartSpoolTask),
        3 => index().prop_map(Step::FinishStoring),
        4 => (1..3000_u64).prop_map(Step::Advance),
    ];
    prop::collection::vec(step, 0..120)
}

fn settings() -> impl Strategy<Value = RuntimeSettings> {
    let policy = prop_oneof![Just(DropPolicy::Oldest), Just(DropPolicy::Newest), Just(DropPolicy::Block)];
    (1..5_usize, 1..9_usize, 0..100_u64, prop::option::of(0..3_u32), policy).prop_map(
        |(batch_size, max_queue, delay, retries, drop_policy)| RuntimeSettings {
            batch_size,
            max_queue,
            batch_delay: Duration::from_millis(delay),
            retries,
            drop_policy,
            ..RuntimeSettings::default()
        },
    )
}

/// The state, and around it what workers, the spool's thread and the disk hold.
struct World {
    state: State,
    now: Instant,
    workers: usize,
    batches: Vec<Batch>,
    storing: Option<Vec<PendingUpload>>,
    unclaimed: BTreeMap<SpoolId, SpoolEntry>,
    claimed: HashSet<SpoolId>,
    pushed: Vec<Uuid>,
    /// Accepted, rejected or given up.
    settled: HashSet<Uuid>,
    dropped: HashSet<Uuid>,
    /// When requests are possible again after the last failure.
    open_until: Option<Instant>,
    /// Id of the batch that was sent after that, before any success.
    probe: Option<u64>,
}

impl World {
    fn new(settings: RuntimeSettings, workers: usize, has_spool: bool) -> Self {
        Self {
            state: State::new(settings, workers, has_spool.then(SpoolCounts::default)),
            now: Instant::now(),
            workers,
            batches: Vec::new(),
            storing: None,
            unclaimed: BTreeMap::new(),
            claimed: HashSet::new(),
            pushed: Vec::new(),
            settled: HashSet::new(),
            dropped: HashSet::new(),
            open_until: None,
            probe: None,
        }
    }

    fn counts(&self) -> SpoolCounts {
        let unclaimed = count(self.unclaimed.len());
        SpoolCounts { files: unclaimed + count(self.claimed.len()), unclaimed, ..SpoolCounts::default() }
    }

    fn push(&mut self, camera: u8, is_tracked: bool) {
        let crop = Crop {
            image: Bytes::from_static(b"x"),
            encoding: Encoding::Jpeg,
            camera: Arc::new(Camera { id: camera.to_string(), location: String::new() }),
            captured_at: OffsetDateTime::UNIX_EPOCH,
            track_id: is_tracked.then_some(1),
            run_id: is_tracked.then(Uuid::nil),
            bounding_box: None,
            area: None,
            key: Uuid::now_v7(),
        };
        let key = crop.key;
        let oldest = self.state.queue.front().map(|pending| pending.crop.key);
        match self.state.try_push(crop, true, self.now) {
            TryPush::Queued => (),
            TryPush::Dropped if self.state.settings.drop_policy == DropPolicy::Oldest => {
                assert!(self.dropped.insert(oldest.unwrap()));
            }
            TryPush::Dropped => assert!(self.dropped.insert(key)),
            // Its owner keeps it.
            TryPush::Full(crop) => return assert_eq!(crop.key, key),
        }
        self.pushed.push(key);
    }

    fn send(&mut self) {
        if self.batches.len() >= self.workers {
            return;
        }
        let NextAction::Send(batch) = self.state.next(self.now) else { return };
        if let Some(until) = self.open_until {
            assert!(self.now >= until, "sent while the breaker is open");
            assert_eq!(self.probe, None, "a second probe in flight");
            self.probe = Some(batch.id);
        }
        assert!((1..=self.state.settings.batch_size).contains(&batch.crops.len()));
        let first = &batch.crops[0];
        assert!(
            batch.crops.len() == 1 || batch.crops.iter().all(|other| first.can_share_request_with(other))
        );
        assert!(batch.crops.iter().all(|pending| pending.is_live() != batch.from_spool));
        self.batches.push(batch);
        let from_spool = self.batches.iter().filter(|batch| batch.from_spool).count();
        assert!(from_spool <= self.workers.saturating_sub(1).max(1), "no worker is left for live crops");
    }

    fn end(&mut self, index: impl FnOnce(usize) -> usize) -> Option<Batch> {
        if self.batches.is_empty() {
            return None;
        }
        let batch = self.batches.swap_remove(index(self.batches.len()));
        self.probe.take_if(|probe| *probe == batch.id);
        Some(batch)
    }

    fn settle(&mut self, crops: &[PendingUpload]) {
        for pending in crops {
            assert!(self.settled.insert(pending.crop.key), "settled twice");
        }
        self.state.finish_settling(crops);
    }

    fn succeed(&mut self) {
        (self.open_until, self.probe) = (None, None);
    }

    fn accept(&mut self, mut batch: Batch) {
        assert!(self.state.settle(&mut batch));
        self.succeed();
        self.settle(&batch.crops);
    }

    fn start_spool_task(&mut self) {
        if self.storing.is_some() {
            return;
        }
        match self.state.next_spool_task(self.now) {
            SpoolTask::Store(crops) => self.storing = Some(crops),
            SpoolTask::Read(wanted) => {
                let mut entries = Vec::new();
                while entries.len() < wanted
                    && let Some((id, entry)) = self.unclaimed.pop_first()
                {
                    assert!(self.claimed.insert(id));
                    entries.push((id, entry));
                }
                self.state.finish_reading(entries, self.counts(), self.now);
            }
            SpoolTask::Delete(ids) => {
                for id in ids {
                    assert!(self.claimed.remove(&id), "deleted before it was claimed, or twice");
                }
                self.state.set_spool_counts(self.counts());
            }
            SpoolTask::WaitUntil(time) => assert!(time > self.now),
            SpoolTask::Wait | SpoolTask::Stop => (),
        }
    }

    fn finish_storing(&mut self, stored: usize) {
        let Some(crops) = self.storing.take() else { return };
        for pending in crops.iter().take(stored) {
            let id = SpoolId::of(&pending.crop);
            assert!(self.unclaimed.insert(id, pending.to_spool()).is_none(), "stored twice");
        }
        let counts = self.counts();
        self.state.finish_storing(crops, stored, counts, self.now);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Push { camera, is_tracked } => self.push(camera, is_tracked),
            Step::Send => self.send(),
            Step::Accept(index) => {
                if let Some(batch) = self.end(|len| index.index(len)) {
                    self.accept(batch);
                }
            }
            Step::Reject(index) => match self.end(|len| index.index(len)) {
                None => (),
                Some(batch) if batch.crops.len() == 1 => self.accept(batch),
                Some(batch) => {
                    self.state.split(batch);
                    self.succeed();
                }
            },
            Step::Fail(index, status, http_status) => {
                if let Some(batch) = self.end(|len| index.index(len)) {
                    let failed = self.state.fail(batch, status, http_status, self.now, |_| WAIT).unwrap();
                    if !failed.retry_in.is_zero() {
                        (self.open_until, self.probe) = (Some(self.now + failed.retry_in), None);
                    }
                    assert!(failed.given_up.is_empty() || status != BackendStatus::Unauthorized);
                    self.settle(&failed.given_up);
                }
            }
            Step::CloseConnection(index) => {
                if let Some(batch) = self.end(|len| index.index(len)) {
                    self.state.resend(batch);
                }
            }
            Step::StartSpoolTask => self.start_spool_task(),
            Step::FinishStoring(index) => {
                let stored = self.storing.as_ref().map_or(0, |crops| index.index(crops.len() + 1));
                self.finish_storing(stored);
            }
            Step::Advance(milliseconds) => self.now += Duration::from_millis(milliseconds),
        }
    }

    fn check(&self) {
        let keys = |crops: &mut dyn Iterator<Item = &PendingUpload>| -> Vec<Uuid> {
            crops.map(|pending| pending.crop.key).collect()
        };
        let mut found = keys(&mut self.state.queue.iter());
        found.extend(keys(&mut self.state.ready.iter()));
        found.extend(keys(&mut self.batches.iter().flat_map(|batch| &batch.crops)));
        found.extend(keys(&mut self.storing.iter().flatten()));
        found.extend(self.unclaimed.values().map(|entry| entry.crop.key));
        found.extend(&self.settled);
        found.extend(&self.dropped);
        found.sort();
        let mut pushed = self.pushed.clone();
        pushed.sort();
        assert_eq!(found, pushed, "each crop is in exactly one place");

        let in_flight = self.batches.iter().map(|batch| live(&batch.crops)).sum::<usize>();
        let storing = self.storing.as_ref().map_or(0, Vec::len);
        assert_eq!(self.state.live(), self.state.queue.len() + in_flight + storing);
    }

    /// Lets a healthy backend and disk do all that is left.
    fn drain(&mut self) {
        self.state.draining = true;
        for _ in 0..10 * (self.pushed.len() + 2) {
            if self.state.pending() == 0 {
                return;
            }
            self.now += Duration::from_secs(60);
            while let Some(batch) = self.end(|_| 0) {
                self.accept(batch);
            }
            self.send();
            self.start_spool_task();
            self.finish_storing(usize::MAX);
            self.check();
        }
        panic!("{} crops are still pending", self.state.pending());
    }

    /// Stops as the uploader does: requests are aborted, and the spool's thread ends its work.
    fn close(&mut self) {
        self.state.close();
        for mut batch in std::mem::take(&mut self.batches) {
            assert!(!self.state.settle(&mut batch), "its crops are no longer the request's");
        }
        self.finish_storing(usize::MAX);
        loop {
            match self.state.next_spool_task(self.now) {
                SpoolTask::Store(crops) => {
                    self.storing = Some(crops);
                    self.finish_storing(usize::MAX);
                }
                SpoolTask::Delete(ids) => assert!(ids.iter().all(|id| self.claimed.remove(id))),
                SpoolTask::Stop => break,
                other => panic!("{other:?}"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_crop_is_lost_or_settled_twice(
        settings in settings(), workers in 1..5_usize, has_spool: bool, steps in steps(),
    ) {
        let mut world = World::new(settings, workers, has_spool);
        for step in steps {
            world.step(step);
            world.check();
        }
        world.drain();
        prop_assert_eq!(world.settled.len() + world.dropped.len(), world.pushed.len());
        prop_assert!(world.unclaimed.is_empty() && world.claimed.is_empty());
    }

    #[test]
    fn closing_spools_or_counts_every_unsettled_crop(
        settings in settings(), workers in 1..5_usize, has_spool: bool, steps in steps(),
    ) {
        let mut world = World::new(settings, workers, has_spool);
        for step in steps {
            world.step(step);
        }
        world.close();
        let discarded = world.state.discard_unsent();
        prop_assert!(!has_spool || discarded == 0);
        let on_disk = world.unclaimed.len() + world.claimed.len();
        let known = count(world.settled.len() + world.dropped.len() + on_disk) + discarded;
        prop_assert_eq!(known, count(world.pushed.len()));
    }
}
