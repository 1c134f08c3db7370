//! The queue of images, whichever requests they belong to, and the progress of each request.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use facepipe_vision::{DecodeError, DecodeNote, Face, FaceQuality};
use tokio::sync::oneshot;

use super::{
    ActiveModel, ImageError, RecogniseError, RecognitionResult, Rotation, UploadedImage, VersionedModel,
    throughput::ThroughputEstimator,
};
use crate::{
    metrics::Rejection,
    shares::{Limit, Share, ShareKey},
    traces::{self, Trace},
};

/// A face on an image with its embedding.
pub struct DetectedFace {
    /// Box, landmarks and probability.
    pub detection: Face,
    /// How well it can be recognised.
    pub quality: FaceQuality,
    /// The L2-normalised embedding.
    pub embedding: Vec<f32>,
}

/// The faces of one image with their embeddings.
#[derive(Default)]
pub struct EmbeddedFaces {
    pub faces: Vec<DetectedFace>,
    /// Width and height of the image, upright.
    pub size: [u32; 2],
    /// Remarks on the image's file.
    pub notes: Vec<DecodeNote>,
    /// The rotation under which the image shows a face, where it shows none as it is.
    pub turned: Option<Rotation>,
}

type Responder = oneshot::Sender<Result<RecognitionResult, RecogniseError>>;

/// What an image costs beside its pixels, in pixels: embedding and identifying a face.
const IMAGE_COST: u64 = 100_000;
/// Pixels of a batch beyond which no further image is taken: a small image does not wait for many large ones to be answered.
const BATCH_PIXELS: u64 = 4_000_000;
/// Clients without waiting images that are remembered, so that they do not gain by pausing.
const MAX_IDLE_LANES: usize = 4096;

/// How the queue is bounded.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    /// Images that are queued or processed at a time.
    pub images: usize,
    /// The same of one client.
    pub client_images: usize,
    /// Pixels of the images that are queued or processed at a time.
    pub pixels: u64,
    /// Pixels of one request.
    pub request_pixels: u64,
    /// Time that the images before a client's newest one may take, at the current throughput.
    pub budget: Duration,
    /// Time that an image may wait.
    pub deadline: Duration,
}

/// A queue of images. Clients that have images waiting are served in proportion to their weights, counted in pixels
/// (start-time fair queueing: Goyal, Vin, Cheng 1996); the images of one client in the order of their arrival.
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    workers: usize,
    limits: QueueLimits,
    throughput: Arc<ThroughputEstimator>,
    accounts: Arc<Mutex<Accounts>>,
}

#[derive(Default)]
struct State {
    lanes: HashMap<ShareKey, Lane>,
    /// The virtual time: that of the image that was taken last.
    clock: u64,
    /// Workers that hold a batch.
    busy: usize,
    closed: bool,
}

/// The waiting images of one client.
struct Lane {
    entries: VecDeque<QueueEntry>,
    /// The virtual time at which its next image is due.
    time: u64,
    weight: u64,
}

/// What is queued or being processed, in all and by client. Locked after [`State`] where both are.
#[derive(Default)]
struct Accounts {
    total: Occupied,
    clients: HashMap<ShareKey, Occupied>,
}

/// A part of the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Occupied {
    images: usize,
    pixels: u64,
    cost: u64,
}

impl Occupied {
    fn add(&mut self, other: Self) {
        self.images = self.images.saturating_add(other.images);
        self.pixels = self.pixels.saturating_add(other.pixels);
        self.cost = self.cost.saturating_add(other.cost);
    }

    fn remove(&mut self, other: Self) {
        self.images = self.images.saturating_sub(other.images);
        self.pixels = self.pixels.saturating_sub(other.pixels);
        self.cost = self.cost.saturating_sub(other.cost);
    }
}

/// A request's part of the queue, until it is answered.
struct Occupancy {
    accounts: Arc<Mutex<Accounts>>,
    client: ShareKey,
    occupied: Occupied,
}

impl Drop for Occupancy {
    fn drop(&mut self) {
        let mut accounts = lock(&self.accounts);
        accounts.total.remove(self.occupied);
        if let Some(client) = accounts.clients.get_mut(&self.client) {
            client.remove(self.occupied);
            if client.images == 0 {
                accounts.clients.remove(&self.client);
            }
        }
    }
}

/// An image to be queued, and the pixels that decoding it costs; an error where its header says that it cannot be decoded.
pub type CheckedImage = (UploadedImage, Result<u64, DecodeError>);

/// One image of a request.
pub struct QueueEntry {
    /// The request that it belongs to.
    pub request: Arc<Request>,
    /// Its index in the request.
    pub index: usize,
    /// Its pixels.
    pub pixels: u64,
}

/// The images that a worker processes together. The worker counts as busy until this is dropped.
pub struct Batch<'a> {
    /// The images, of any requests.
    pub entries: Vec<QueueEntry>,
    /// Whether nothing else is queued or running, so that all threads should share this batch.
    pub on_all_threads: bool,
    queue: &'a Queue,
}

impl Batch<'_> {
    /// Returns what the batch costs, in pixels.
    pub fn cost(&self) -> u64 {
        self.entries.iter().fold(0, |sum, entry| sum.saturating_add(cost_of(entry.pixels)))
    }
}

/// Returns what an image costs, in pixels.
fn cost_of(pixels: u64) -> u64 {
    pixels.saturating_add(IMAGE_COST)
}

impl Queue {
    /// Makes a queue for this number of workers.
    pub fn new(workers: usize, limits: QueueLimits, throughput: Arc<ThroughputEstimator>) -> Self {
        let (state, accounts) = (Mutex::default(), Arc::default());
        Self { state, changed: Condvar::new(), workers, limits, throughput, accounts }
    }

    /// Returns the number of workers.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Returns how it is bounded.
    pub fn limits(&self) -> &QueueLimits {
        &self.limits
    }

    /// Returns the number of images that are queued or being processed.
    pub fn waiting(&self) -> usize {
        lock(&self.accounts).total.images
    }

    /// Returns the pixels of those.
    pub fn waiting_pixels(&self) -> u64 {
        lock(&self.accounts).total.pixels
    }

    /// Queues the images of a request, of which at least one can be decoded. Images being processed count towards the bounds,
    /// too, until the request is answered. Where the queue is full, newer requests of clients that have more in it than this
    /// one make room for it, and are answered as busy.
    ///
    /// # Errors
    /// There is no room, or the client's images take too long; nothing is queued.
    pub fn push(
        &self,
        share: Share,
        images: Vec<CheckedImage>,
        top_k: usize,
        responder: Responder,
    ) -> Result<(), RecogniseError> {
        let pixels: Vec<(usize, u64)> = images
            .iter()
            .enumerate()
            .filter_map(|(index, (_, pixels))| Some((index, *pixels.as_ref().ok()?)))
            .collect();
        let sum = pixels.iter().fold(0_u64, |sum, (_, pixels)| sum.saturating_add(*pixels));
        // A request that is larger than the queue is accepted where it is alone.
        let occupied = Occupied {
            images: pixels.len().min(self.limits.images).min(self.limits.client_images),
            pixels: sum.min(self.limits.pixels),
            cost: pixels.iter().fold(0, |sum, (_, pixels)| sum.saturating_add(cost_of(*pixels))),
        };
        let mut state = self.state();
        let occupancy = self.occupy(&mut state, share.key, occupied)?;
        let request = Arc::new(Request::new(images, top_k, responder, occupancy));
        let clock = state.clock;
        let lane = state.lanes.entry(share.key).or_insert_with(|| Lane::new(clock));
        lane.weight = u64::from(share.weight.max(1));
        if lane.entries.is_empty() {
            lane.time = lane.time.max(clock);
        }
        lane.entries.extend(pixels.into_iter().map(|(index, pixels)| QueueEntry {
            request: Arc::clone(&request),
            index,
            pixels,
        }));
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Takes a part of the queue for a client.
    fn occupy(
        &self,
        state: &mut State,
        client: ShareKey,
        new: Occupied,
    ) -> Result<Occupancy, RecogniseError> {
        let limits = &self.limits;
        {
            let accounts = lock(&self.accounts);
            let own = accounts.clients.get(&client).copied().unwrap_or_default();
            let is_bounded = limits.client_images < limits.images;
            if is_bounded && own.images > 0 && own.images + new.images > limits.client_images {
                return Err(RecogniseError::Exceeded {
                    limit: Limit::WaitingImages,
                    max: u64::try_from(limits.client_images).unwrap_or(u64::MAX),
                    retry_after: self.throughput.retry_after(own.cost),
                });
            }
            // Each of the others is served as much as this client before its turn. One with nothing in the queue is accepted,
            // however long it takes.
            let ahead = accounts
                .clients
                .values()
                .fold(0_u64, |sum, other| sum.saturating_add(other.cost.min(own.cost)));
            if self.throughput.time_for(ahead) > limits.budget {
                return Err(self.busy(&accounts, Rejection::QueueSlow, ahead));
            }
        }
        loop {
            let mut accounts = lock(&self.accounts);
            let (exceeded, measure): (_, fn(&Occupied) -> u64) =
                if accounts.total.images + new.images > limits.images {
                    (Rejection::QueueFull, |occupied| u64::try_from(occupied.images).unwrap_or(u64::MAX))
                } else if accounts.total.pixels.saturating_add(new.pixels) > limits.pixels {
                    (Rejection::Exceeded(Limit::QueuePixels), |occupied| occupied.pixels)
                } else {
                    accounts.total.add(new);
                    accounts.clients.entry(client).or_default().add(new);
                    return Ok(Occupancy { accounts: Arc::clone(&self.accounts), client, occupied: new });
                };
            let of = |key: &ShareKey| accounts.clients.get(key).map_or(0, measure);
            let own = of(&client).saturating_add(measure(&new));
            let lanes = state.lanes.iter().filter(|(key, lane)| **key != client && !lane.entries.is_empty());
            let largest = lanes.map(|(key, _)| (of(key), *key)).max().filter(|(theirs, _)| *theirs > own);
            let busy = match exceeded {
                Rejection::Exceeded(limit) => RecogniseError::Exceeded {
                    limit,
                    max: limits.pixels,
                    retry_after: self.throughput.retry_after(accounts.total.cost),
                },
                reason => self.busy(&accounts, reason, accounts.total.cost),
            };
            let Some((_, key)) = largest else { return Err(busy) };
            let displaced = self.busy(&accounts, Rejection::Displaced, accounts.total.cost);
            drop(accounts);
            state.displace_newest(key, displaced);
        }
    }

    fn busy(&self, accounts: &Accounts, reason: Rejection, ahead: u64) -> RecogniseError {
        RecogniseError::Busy {
            reason,
            waiting: accounts.total.images,
            capacity: self.limits.images,
            wait: self.throughput.time_for(ahead),
            budget: self.limits.budget,
            retry_after: self.throughput.retry_after(ahead),
        }
    }

    /// Charges a client for the faces of one of its images: [`cost_of`] an image has one face.
    pub fn charge_faces(&self, client: ShareKey, faces: usize) {
        let more = u64::try_from(faces).unwrap_or(u64::MAX).saturating_sub(1).saturating_mul(IMAGE_COST);
        if more > 0 {
            let mut state = self.state();
            let clock = state.clock;
            let lane = state.lanes.entry(client).or_insert_with(|| Lane::new(clock));
            lane.time = lane.time.saturating_add(more / lane.weight);
        }
    }

    /// Announces that nothing more will be pushed.
    pub fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// Waits for images and takes one worker's share of them, at most `max`. Returns `None` once the queue is closed and
    /// empty.
    pub fn next_batch(&self, max: usize) -> Option<Batch<'_>> {
        let mut state = self.state();
        let waiting = loop {
            let waiting = state.remove_finished(self.limits.deadline);
            if waiting > 0 {
                break waiting;
            }
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        let share = waiting.div_ceil(self.workers).clamp(1, max.max(1));
        let (mut entries, mut pixels) = (Vec::new(), 0_u64);
        while entries.len() < share
            && let Some(entry) =
                state.take_next(|next| pixels == 0 || pixels.saturating_add(next) <= BATCH_PIXELS)
        {
            pixels = pixels.saturating_add(entry.pixels.max(1));
            entries.push(entry);
        }
        state.busy += 1;
        let on_all_threads = entries.len() == waiting && state.busy == 1;
        Some(Batch { entries, on_all_threads, queue: self })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock(accounts: &Mutex<Accounts>) -> MutexGuard<'_, Accounts> {
    accounts.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lane {
    fn new(time: u64) -> Self {
        Self { entries: VecDeque::new(), time, weight: 1 }
    }
}

impl State {
    /// Removes images of clients that left, and answers requests that have waited too long. Returns the number of images
    /// that wait.
    fn remove_finished(&mut self, deadline: Duration) -> usize {
        let (mut waiting, now) = (0, Instant::now());
        for lane in self.lanes.values_mut() {
            lane.entries.retain(|QueueEntry { request, .. }| {
                if now.saturating_duration_since(request.arrived) >= deadline {
                    request.respond(Err(RecogniseError::Exceeded {
                        limit: Limit::Deadline,
                        max: deadline.as_secs(),
                        retry_after: Duration::from_secs(1),
                    }));
                }
                request.is_awaited()
            });
            waiting += lane.entries.len();
        }
        if waiting == 0 && self.busy == 0 {
            self.lanes.clear();
        } else {
            let (clock, crowded) = (self.clock, self.lanes.len() > MAX_IDLE_LANES);
            self.lanes.retain(|_, lane| !lane.entries.is_empty() || (lane.time > clock && !crowded));
        }
        waiting
    }

    /// Takes the image that is due, if its pixels are acceptable.
    fn take_next(&mut self, accept: impl FnOnce(u64) -> bool) -> Option<QueueEntry> {
        let due = self.lanes.iter_mut().filter(|(_, lane)| !lane.entries.is_empty());
        let (_, lane) = due.min_by_key(|(key, lane)| (lane.time, **key))?;
        if !accept(lane.entries.front()?.pixels) {
            return None;
        }
        let entry = lane.entries.pop_front()?;
        self.clock = self.clock.max(lane.time);
        lane.time = lane.time.saturating_add((cost_of(entry.pixels) / lane.weight).max(1));
        Some(entry)
    }

    /// Answers the newest request of a client, and removes its images.
    fn displace_newest(&mut self, client: ShareKey, answer: RecogniseError) {
        let Some(lane) = self.lanes.get_mut(&client) else { return };
        let Some(newest) = lane.entries.back().map(|entry| Arc::clone(&entry.request)) else { return };
        lane.entries.retain(|entry| !Arc::ptr_eq(&entry.request, &newest));
        newest.respond(Err(answer));
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.queue.state().busy -= 1;
    }
}

/// A request with images that are queued or being processed.
pub struct Request {
    /// Whose it is.
    pub client: ShareKey,
    pub images: Vec<UploadedImage>,
    /// Predictions of each face.
    pub top_k: usize,
    /// When it was queued.
    pub arrived: Instant,
    /// The trace that its spans belong to.
    pub trace: Option<Trace>,
    progress: Mutex<Progress>,
}

struct Progress {
    /// `None` once the request is answered.
    responder: Option<(Responder, Occupancy)>,
    started: Option<Started>,
    /// By image.
    faces: Vec<Result<EmbeddedFaces, ImageError>>,
    unfinished: usize,
}

/// The time at which processing of a request's first image started, and the model that was active then.
#[derive(Clone)]
pub struct Started {
    pub at: Instant,
    /// Identifies all of the request's faces; `None` before the first training.
    pub model: Option<Arc<VersionedModel>>,
}

/// A request with all of its images processed.
pub struct CompletedRequest {
    /// When the first image was started.
    pub started: Started,
    /// By image.
    pub faces: Vec<Result<EmbeddedFaces, ImageError>>,
}

impl Request {
    fn new(images: Vec<CheckedImage>, top_k: usize, responder: Responder, occupancy: Occupancy) -> Self {
        let mut unfinished = 0;
        let (images, faces) = images
            .into_iter()
            .map(|(image, pixels)| match pixels {
                Ok(_) => {
                    unfinished += 1;
                    (image, Ok(EmbeddedFaces::default()))
                }
                Err(error) => (image, Err(error.into())),
            })
            .unzip();
        let client = occupancy.client;
        let progress = Progress { responder: Some((responder, occupancy)), started: None, faces, unfinished };
        let trace = traces::current();
        Self { client, images, top_k, arrived: Instant::now(), trace, progress: Mutex::new(progress) }
    }

    /// Returns whether the client still waits for the response.
    pub fn is_awaited(&self) -> bool {
        self.progress().responder.as_ref().is_some_and(|(responder, _)| !responder.is_closed())
    }

    /// Records that processing of one of the images starts. Returns whether it is the first of them.
    pub fn start(&self, at: Instant, active: &ActiveModel) -> bool {
        let mut progress = self.progress();
        let first = progress.started.is_none();
        progress.started.get_or_insert_with(|| Started { at, model: active.get() });
        first
    }

    /// Records the result of one image. Returns all results once the last one is there.
    pub fn complete(
        &self,
        index: usize,
        faces: Result<EmbeddedFaces, ImageError>,
    ) -> Option<CompletedRequest> {
        let mut progress = self.progress();
        *progress.faces.get_mut(index)? = faces;
        progress.unfinished = progress.unfinished.checked_sub(1)?;
        if progress.unfinished > 0 {
            return None;
        }
        let started = progress.started.clone()?;
        Some(CompletedRequest { started, faces: mem::take(&mut progress.faces) })
    }

    /// Sends the response, unless one was sent before.
    pub fn respond(&self, result: Result<RecognitionResult, RecogniseError>) {
        let responder = self.progress().responder.take();
        if let Some((responder, occupancy)) = responder {
            // First, so that a client that sends its next request at once finds the capacity free.
            drop(occupancy);
            // Fails where the client has gone.
            let _ = responder.send(result);
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, thread};

    use super::*;
    use crate::shares::AddressKey;

    type ResponseReceiver = oneshot::Receiver<Result<RecognitionResult, RecogniseError>>;

    const LIMITS: QueueLimits = QueueLimits {
        images: 100,
        client_images: 100,
        pixels: 100_000_000,
        request_pixels: 100_000_000,
        budget: Duration::from_secs(1000),
        deadline: Duration::from_secs(1000),
    };

    fn queue(workers: usize, limits: QueueLimits) -> Queue {
        Queue::new(workers, limits, Arc::default())
    }

    fn client(number: u8) -> Share {
        let address = IpAddr::from([192, 0, 2, number]);
        Share { key: ShareKey::Address(AddressKey::from(address)), weight: 1 }
    }

    fn push_as(
        queue: &Queue,
        share: Share,
        images: usize,
        pixels: u64,
    ) -> Result<ResponseReceiver, RecogniseError> {
        let (responder, response) = oneshot::channel();
        let images = (0..images).map(|_| (bytes::Bytes::new().into(), Ok(pixels))).collect();
        // `top_k` tells the requests of these tests apart.
        let number = match share.key {
            ShareKey::Address(_) => (1..=255).find(|number| client(*number).key == share.key).unwrap(),
            _ => 0,
        };
        queue.push(share, images, usize::from(number), responder).map(|()| response)
    }

    fn push(queue: &Queue, images: usize) -> ResponseReceiver {
        push_as(queue, Share::INTERNAL, images, 0).unwrap()
    }

    /// Takes everything that waits in batches of one; returns the clients in their order.
    fn order(queue: &Queue) -> Vec<usize> {
        let mut order = Vec::new();
        while queue.state().remove_finished(LIMITS.deadline) > 0 {
            let batch = queue.next_batch(1).unwrap();
            order.extend(batch.entries.iter().map(|entry| entry.request.top_k));
        }
        order
    }

    fn indices(batch: &Batch<'_>) -> Vec<usize> {
        batch.entries.iter().map(|entry| entry.index).collect()
    }

    #[test]
    fn each_worker_takes_a_share_of_the_queue() {
        let queue = queue(2, LIMITS);
        let _large = push(&queue, 5);
        let first = queue.next_batch(16).unwrap();
        assert_eq!((indices(&first), first.on_all_threads), (vec![0, 1, 2], false));
        let second = queue.next_batch(16).unwrap();
        assert_eq!((indices(&second), second.on_all_threads), (vec![3], false));
        drop(first);
        let third = queue.next_batch(16).unwrap();
        // Another worker is still busy.
        assert_eq!((indices(&third), third.on_all_threads), (vec![4], false));
        drop((second, third));
        let _alone = push(&queue, 1);
        assert!(queue.next_batch(16).unwrap().on_all_threads);
    }

    #[test]
    fn clients_pay_for_all_faces_of_their_images() {
        let queue = queue(1, LIMITS);
        let _responses = [1, 2].map(|number| push_as(&queue, client(number), 4, 0).unwrap());
        let first = queue.next_batch(1).unwrap();
        assert_eq!(first.entries[0].request.top_k, 1);
        queue.charge_faces(first.entries[0].request.client, 11);
        drop(first);
        assert_eq!(order(&queue), [2, 2, 2, 2, 1, 1, 1]);
    }

    #[test]
    fn a_batch_is_no_larger_than_its_limit() {
        let queue = queue(1, LIMITS);
        let _response = push(&queue, 5);
        assert_eq!(indices(&queue.next_batch(2).unwrap()), [0, 1]);
        assert_eq!(indices(&queue.next_batch(0).unwrap()), [2]);
    }

    #[test]
    fn images_of_clients_that_left_are_skipped() {
        let queue = queue(2, LIMITS);
        drop(push(&queue, 3));
        let _awaited = push(&queue, 1);
        let batch = queue.next_batch(16).unwrap();
        assert_eq!(indices(&batch), [0]);
        assert!(batch.entries[0].request.is_awaited());
        queue.close();
        assert!(queue.next_batch(16).is_none());
    }

    #[test]
    fn a_request_is_complete_with_its_last_image() {
        let queue = queue(1, LIMITS);
        let mut response = push(&queue, 2);
        let batch = queue.next_batch(16).unwrap();
        let request = &batch.entries[0].request;
        let active = ActiveModel::default();
        let started = Instant::now();
        assert!(request.start(started, &active) && !request.start(Instant::now(), &active));
        assert!(request.complete(1, Ok(EmbeddedFaces::default())).is_none());
        let whole = request.complete(0, Ok(EmbeddedFaces::default())).unwrap();
        assert_eq!((whole.started.at, whole.faces.len()), (started, 2));
        request.respond(Err(RecogniseError::Interrupted));
        assert!(matches!(response.try_recv(), Ok(Err(RecogniseError::Interrupted))));
        assert!(!request.is_awaited());
    }

    #[test]
    fn waiting_workers_are_woken() {
        let queue = Arc::new(queue(2, LIMITS));
        let worker = thread::spawn({
            let queue = Arc::clone(&queue);
            move || (queue.next_batch(16).map(|batch| indices(&batch)), queue.next_batch(16).is_none())
        });
        let _response = push(&queue, 1);
        queue.close();
        assert_eq!(worker.join().unwrap(), (Some(vec![0]), true));
    }

    #[test]
    fn clients_take_turns_whatever_they_have_waiting() {
        let queue = queue(1, LIMITS);
        let _waiting =
            [(1, 6), (2, 3), (3, 1)].map(|(number, images)| push_as(&queue, client(number), images, 0));
        assert_eq!(order(&queue), [1, 2, 3, 1, 2, 1, 2, 1, 1, 1]);
    }

    #[test]
    fn turns_are_counted_in_pixels_and_weighted() {
        let queue = queue(1, LIMITS);
        // 1,000,000 against 200,000 pixels, with those that every image counts.
        let _large = push_as(&queue, client(1), 2, 900_000).unwrap();
        let _small = push_as(&queue, client(2), 12, 100_000).unwrap();
        let turns = order(&queue);
        assert_eq!(turns, [1, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 2, 2]);
        let heavy = Share { weight: 3, ..client(3) };
        let _heavy = push_as(&queue, heavy, 9, 0).unwrap();
        let _light = push_as(&queue, client(4), 3, 0).unwrap();
        let turns = order(&queue);
        let first: Vec<_> = turns.iter().take(8).collect();
        assert_eq!(first.iter().filter(|client| ***client == 3).count(), 6, "{turns:?}");
    }

    #[test]
    fn a_client_that_pauses_gains_nothing() {
        let queue = queue(1, LIMITS);
        let _others = push_as(&queue, client(2), 4, 0).unwrap();
        // Sends its next image as soon as one is taken.
        let mut order = Vec::new();
        for _ in 0..8 {
            let _next = push_as(&queue, client(1), 1, 400_000).unwrap();
            let batch = queue.next_batch(1).unwrap();
            let taken = batch.entries[0].request.top_k;
            order.push(taken);
            if taken == 2 && order.iter().filter(|client| **client == 2).count() == 4 {
                break;
            }
        }
        // Five times the cost of the other's images.
        assert_eq!(order, [1, 2, 2, 2, 2]);
    }

    #[test]
    fn a_batch_has_images_of_several_clients_and_few_pixels() {
        let queue = queue(1, LIMITS);
        let _crops = [1, 2, 3, 4].map(|number| push_as(&queue, client(number), 4, 60_000).unwrap());
        let batch = queue.next_batch(16).unwrap();
        assert_eq!(batch.entries.len(), 16);
        assert_eq!(batch.cost(), 16 * 160_000);
        drop(batch);
        let _large = push_as(&queue, client(1), 2, 12_000_000).unwrap();
        let _small = push_as(&queue, client(2), 2, 60_000).unwrap();
        let of = |batch: Batch<'_>| batch.entries.iter().map(|entry| entry.request.top_k).collect::<Vec<_>>();
        let batches = [queue.next_batch(16), queue.next_batch(16), queue.next_batch(16)];
        assert_eq!(batches.map(|batch| of(batch.unwrap())), [vec![1], vec![2, 2], vec![1]]);
    }

    #[test]
    fn a_full_queue_makes_room_for_clients_below_their_share() {
        let queue = queue(2, QueueLimits { images: 10, ..LIMITS });
        let mut older = push_as(&queue, client(1), 5, 0).unwrap();
        let mut newer = push_as(&queue, client(1), 5, 0).unwrap();
        // The same client has no more room.
        let Err(RecogniseError::Busy { reason, waiting, .. }) = push_as(&queue, client(1), 1, 0) else {
            panic!()
        };
        assert_eq!((reason, waiting), (Rejection::QueueFull, 10));
        let _other = push_as(&queue, client(2), 3, 0).unwrap();
        let displaced = newer.try_recv().unwrap();
        assert!(matches!(displaced, Err(RecogniseError::Busy { reason: Rejection::Displaced, .. })));
        assert!(older.try_recv().is_err());
        assert_eq!(queue.waiting(), 8);
        // With it, this one would have more than those that are there.
        assert!(push_as(&queue, client(3), 6, 0).is_err());
        let _third = push_as(&queue, client(3), 2, 0).unwrap();
        assert_eq!((queue.waiting(), order(&queue).len()), (10, 10));
    }

    #[test]
    fn pixels_and_images_of_one_client_are_bounded() {
        let queue = queue(1, QueueLimits { pixels: 1000, client_images: 3, ..LIMITS });
        let exceeded = |outcome: Result<ResponseReceiver, RecogniseError>| match outcome {
            Err(RecogniseError::Exceeded { limit, max, .. }) => (limit, max),
            _ => panic!(),
        };
        let first = push_as(&queue, client(1), 2, 300).unwrap();
        assert_eq!(exceeded(push_as(&queue, client(1), 2, 0)), (Limit::WaitingImages, 3));
        assert_eq!(exceeded(push_as(&queue, client(2), 1, 700)), (Limit::QueuePixels, 1000));
        let _other = push_as(&queue, client(2), 1, 400).unwrap();
        assert_eq!(queue.waiting_pixels(), 1000);
        // Once its client has left, the next worker frees its part.
        drop(first);
        assert_eq!(queue.state().remove_finished(LIMITS.deadline), 1);
        assert_eq!((queue.waiting_pixels(), queue.waiting()), (400, 1));
        drop(queue.next_batch(1));
        // Larger than the queue, but alone.
        let queue = self::queue(1, QueueLimits { pixels: 1000, client_images: 3, ..LIMITS });
        let _large = push_as(&queue, client(1), 5, 1000).unwrap();
        assert_eq!((queue.waiting(), queue.waiting_pixels()), (3, 1000));
    }

    #[test]
    fn requests_are_answered_after_their_deadline() {
        let queue = queue(1, QueueLimits { deadline: Duration::ZERO, ..LIMITS });
        let mut late = push(&queue, 2);
        queue.close();
        assert!(queue.next_batch(1).is_none());
        let Ok(Err(RecogniseError::Exceeded { limit, .. })) = late.try_recv() else { panic!() };
        assert_eq!((limit, queue.waiting()), (Limit::Deadline, 0));
    }
}
