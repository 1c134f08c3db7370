//! The queue of images, whichever requests they belong to, and the progress of each request.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use facepipe_vision::{DecodeNote, Face, FaceQuality};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    ActiveModel, ImageError, RecogniseError, RecognitionResult, Rotation, UploadedImage, VersionedModel,
};
use crate::traces::{self, Trace};

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

/// A queue of images: first come, first served.
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    workers: usize,
}

#[derive(Default)]
struct State {
    entries: VecDeque<QueueEntry>,
    /// Workers that hold a batch.
    busy: usize,
    closed: bool,
}

/// One image of a request.
pub struct QueueEntry {
    /// The request that it belongs to.
    pub request: Arc<Request>,
    /// Its index in the request.
    pub index: usize,
}

/// The images that a worker processes together. The worker counts as busy until this is dropped.
pub struct Batch<'a> {
    /// The images, of any requests.
    pub entries: Vec<QueueEntry>,
    /// Whether nothing else is queued or running, so that all threads should share this batch.
    pub on_all_threads: bool,
    queue: &'a Queue,
}

impl Queue {
    /// Makes a queue for this number of workers.
    pub fn new(workers: usize) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), workers }
    }

    /// Returns the number of workers.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Appends the images of a request. `permit` is held until the request is answered, so that images being processed
    /// count towards the capacity, too.
    pub fn push(
        &self,
        images: Vec<UploadedImage>,
        top_k: usize,
        responder: Responder,
        permit: OwnedSemaphorePermit,
    ) {
        let request = Arc::new(Request::new(images, top_k, responder, permit));
        let entries =
            (0..request.images.len()).map(|index| QueueEntry { request: Arc::clone(&request), index });
        self.state().entries.extend(entries);
        self.changed.notify_all();
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
        loop {
            state.entries.retain(|entry| entry.request.is_awaited());
            if !state.entries.is_empty() {
                break;
            }
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let share = state.entries.len().div_ceil(self.workers).clamp(1, max.max(1));
        let entries = state.entries.drain(..share).collect();
        state.busy += 1;
        let on_all_threads = state.entries.is_empty() && state.busy == 1;
        Some(Batch { entries, on_all_threads, queue: self })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.queue.state().busy -= 1;
    }
}

/// A request with images that are queued or being processed.
pub struct Request {
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
    responder: Option<(Responder, OwnedSemaphorePermit)>,
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
    fn new(
        images: Vec<UploadedImage>,
        top_k: usize,
        responder: Responder,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let unfinished = images.len();
        let faces = (0..unfinished).map(|_| Ok(EmbeddedFaces::default())).collect();
        let progress = Progress { responder: Some((responder, permit)), started: None, faces, unfinished };
        let trace = traces::current();
        Self { images, top_k, arrived: Instant::now(), trace, progress: Mutex::new(progress) }
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
        if let Some((responder, permit)) = responder {
            // First, so that a client that sends its next request at once finds the capacity free.
            drop(permit);
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
    use std::thread;

    use tokio::sync::Semaphore;

    use super::*;

    type ResponseReceiver = oneshot::Receiver<Result<RecognitionResult, RecogniseError>>;

    fn push(queue: &Queue, images: usize) -> ResponseReceiver {
        let (responder, response) = oneshot::channel();
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        queue.push((0..images).map(|_| bytes::Bytes::new().into()).collect(), 1, responder, permit);
        response
    }

    fn indices(batch: &Batch<'_>) -> Vec<usize> {
        batch.entries.iter().map(|entry| entry.index).collect()
    }

    #[test]
    fn each_worker_takes_a_share_of_the_queue() {
        let queue = Queue::new(2);
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
    fn a_batch_is_no_larger_than_its_limit() {
        let queue = Queue::new(1);
        let _response = push(&queue, 5);
        assert_eq!(indices(&queue.next_batch(2).unwrap()), [0, 1]);
        assert_eq!(indices(&queue.next_batch(0).unwrap()), [2]);
    }

    #[test]
    fn images_of_clients_that_left_are_skipped() {
        let queue = Queue::new(2);
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
        let queue = Queue::new(1);
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
        let queue = Arc::new(Queue::new(2));
        let worker = thread::spawn({
            let queue = Arc::clone(&queue);
            move || (queue.next_batch(16).map(|batch| indices(&batch)), queue.next_batch(16).is_none())
        });
        let _response = push(&queue, 1);
        queue.close();
        assert_eq!(worker.join().unwrap(), (Some(vec![0]), true));
    }
}
