//! Recognition: a bounded queue of images in front of as many workers as the networks have CPU threads.
//!
//! No request waits for a batch to fill: while the workers compute, the next images queue up, and a worker that becomes
//! idle takes its share of them. A request that finds the queue full is rejected at once, and one whose client has left
//! is skipped.

mod active;
mod pipeline;
mod queue;
mod throughput;
mod worker;

pub use active::{ActiveModel, MatchThreshold, VersionedModel, load_tested};
pub use pipeline::{EmbeddedFace, ImageError, Pipeline, Rotation, UploadedImage};

use std::{sync::Arc, thread, time::Duration};

use facepipe_identify::IdentifyError;
use facepipe_vision::{
    DecodeError, DecodeNote, VisionError, main_face, main_face::Candidate, main_or_largest,
};
use tokio::sync::{Semaphore, oneshot};

use self::{queue::Queue, throughput::ThroughputEstimator, worker::Worker};
use crate::{
    domain::{FaceDecision, IdentifiedFace},
    metrics::{Metrics, Rejection},
};

/// Hands images to the workers; clones share the queue.
#[derive(Clone)]
pub struct Recogniser {
    queue: Arc<QueueHandle>,
    /// One permit per image that may be queued or processed at a time.
    permits: Arc<Semaphore>,
    capacity: u32,
    budget: Duration,
    threshold: MatchThreshold,
    throughput: Arc<ThroughputEstimator>,
    embedder: &'static str,
    metrics: Arc<Metrics>,
}

/// The bounds of the queue and the settings that decide about a face.
#[derive(Debug, Clone, Copy)]
pub struct RecogniserOptions {
    /// Minimum cosine of a known face.
    pub threshold: MatchThreshold,
    /// Maximum number of images that are queued or processed at a time.
    pub capacity: u32,
    /// Maximum time that the queued images may take, at the current throughput.
    pub budget: Duration,
    /// Maximum number of images in a worker's batch.
    pub batch_images: usize,
}

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
pub enum RecogniseError {
    /// The queue is full, or too slow.
    #[error("{waiting} images wait for {wait:?}, at most {capacity} may and for {budget:?}")]
    Busy {
        /// Images that are queued or being processed.
        waiting: usize,
        /// Maximum number of those.
        capacity: u32,
        /// How long the last of them waits, at the current throughput.
        wait: Duration,
        /// Maximum of that.
        budget: Duration,
        /// When to try again.
        retry_after: Duration,
    },
    /// A network failed.
    #[error("recognition failed: {0}")]
    Vision(#[from] VisionError),
    /// The model failed.
    #[error("identification failed: {0}")]
    Identify(#[from] IdentifyError),
    /// A worker failed on the batch.
    #[error("recognition was interrupted")]
    Interrupted,
}

/// The result of one request.
pub struct RecognitionResult {
    /// The model that identified all of the request's faces; `None` before the first training.
    pub model: Option<Arc<VersionedModel>>,
    /// By image, in the order of the request.
    pub images: Vec<Result<ImageResult, DecodeError>>,
    /// From the request's arrival until a worker started its first image.
    pub queued: Duration,
    /// From the start of its first image to the result.
    pub processed: Duration,
}

/// The result of one image.
#[derive(Default)]
pub struct ImageResult {
    pub faces: Vec<IdentifiedFace>,
    /// Its width and height, upright.
    pub size: [u32; 2],
    /// Remarks on its file.
    pub notes: Vec<DecodeNote>,
    /// The rotation under which it shows a face, where it shows none as it is and
    /// [`UploadedImage::must_show_face`] is set.
    pub turned: Option<Rotation>,
}

impl ImageResult {
    /// Returns the position of the main face in `faces`, by the rule of [`main_face`]; `None` if there is no face, or
    /// no main one.
    pub fn main_face(&self) -> Option<usize> {
        main_face(&self.candidates(), self.size)
    }

    /// Returns the position of the main face in `faces`, or else of the largest; `None` if there is no face.
    pub fn main_or_largest_face(&self) -> Option<usize> {
        main_or_largest(&self.candidates(), self.size)
    }

    fn candidates(&self) -> Vec<Candidate> {
        self.faces.iter().map(|face| (face.bounding_box.into(), face.detection_confidence)).collect()
    }
}

/// The sending end of the queue. The workers end once it is dropped and the queue is empty.
struct QueueHandle(Arc<Queue>);

impl Drop for QueueHandle {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Recogniser {
    /// Starts the workers. They end once the last clone is dropped and the queue is empty.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(
        pipeline: Arc<Pipeline>,
        active: Arc<ActiveModel>,
        options: RecogniserOptions,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let RecogniserOptions { threshold, capacity, budget, batch_images } = options;
        let workers = pipeline.workers();
        let queue = Arc::new(Queue::new(workers));
        let handle = Arc::new(QueueHandle(Arc::clone(&queue)));
        let throughput = Arc::new(ThroughputEstimator::default());
        let embedder = pipeline.embedder().name();
        let worker = Worker {
            queue,
            pipeline,
            active,
            threshold,
            batch_images,
            throughput: Arc::clone(&throughput),
            metrics: Arc::clone(&metrics),
        };
        for number in 0..workers {
            let worker = worker.clone();
            thread::Builder::new().name(format!("recognise-{number}")).spawn(move || worker.run())?;
        }
        let permits = Arc::new(Semaphore::new(usize::try_from(capacity).unwrap_or(Semaphore::MAX_PERMITS)));
        Ok(Self { queue: handle, permits, capacity, budget, threshold, throughput, embedder, metrics })
    }

    /// Returns the embedder's name.
    pub fn embedder(&self) -> &'static str {
        self.embedder
    }

    /// Finds, embeds and identifies the faces on the images of one request, at least one. Each face gets at most one
    /// prediction.
    ///
    /// # Errors
    /// As [`recognise_top_k`](Self::recognise_top_k).
    pub async fn recognise(&self, images: Vec<UploadedImage>) -> Result<RecognitionResult, RecogniseError> {
        self.recognise_top_k(images, 1).await
    }

    /// Finds, embeds and identifies the faces on the images of one request, at least one. Each face gets its `top_k` most
    /// probable predictions.
    ///
    /// # Errors
    /// [`RecogniseError::Busy`] at once where the queue is full or too slow; otherwise the failure.
    pub async fn recognise_top_k(
        &self,
        images: Vec<UploadedImage>,
        top_k: usize,
    ) -> Result<RecognitionResult, RecogniseError> {
        // Rejected before it costs anything. A request that has the queue to itself is accepted, however long it takes.
        let waiting = self.waiting();
        if waiting > 0 && self.throughput.time_for(waiting) > self.budget {
            return Err(self.busy(Rejection::QueueSlow));
        }
        // A request that is larger than the queue is accepted if it has the queue to itself.
        let size = u32::try_from(images.len()).unwrap_or(u32::MAX).min(self.capacity);
        let permit = Arc::clone(&self.permits)
            .try_acquire_many_owned(size)
            .map_err(|_| self.busy(Rejection::QueueFull))?;
        let (responder, response) = oneshot::channel();
        self.queue.0.push(images, top_k, responder, permit);
        response.await.map_err(|_| RecogniseError::Interrupted)?
    }

    /// Decides about the mean embedding of several crops as about the embedding of one, with the `top_k` most probable people.
    ///
    /// # Errors
    /// The embedding does not fit the model.
    pub fn decide(
        &self,
        model: Option<&VersionedModel>,
        embedding: &[f32],
        top_k: usize,
    ) -> Result<FaceDecision, RecogniseError> {
        Ok(active::decide(model, embedding, self.threshold.of(model), top_k)?)
    }

    /// Returns the number of images that are queued or being processed.
    pub fn waiting(&self) -> usize {
        usize::try_from(self.capacity).unwrap_or(usize::MAX).saturating_sub(self.permits.available_permits())
    }

    /// Returns the maximum number of images that are queued or being processed.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    fn busy(&self, reason: Rejection) -> RecogniseError {
        self.metrics.rejected(reason);
        let waiting = self.waiting();
        RecogniseError::Busy {
            waiting,
            capacity: self.capacity,
            wait: self.throughput.time_for(waiting),
            budget: self.budget,
            retry_after: self.throughput.retry_after(waiting),
        }
    }
}
