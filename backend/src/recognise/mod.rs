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
pub use queue::QueueLimits;

use std::{sync::Arc, thread, time::Duration};

use facepipe_identify::IdentifyError;
use facepipe_vision::{
    DecodeError, DecodeLimits, DecodeNote, VisionError, main_face, main_face::Candidate, main_or_largest,
    pixels_to_decode,
};
use tokio::sync::{Semaphore, oneshot};

use self::{
    queue::{CheckedImage, Queue},
    throughput::ThroughputEstimator,
    worker::Worker,
};
use crate::{
    domain::{FaceDecision, IdentifiedFace},
    metrics::{Metrics, Rejection},
    shares::{Limit, Share},
};

/// Hands images to the workers; clones share the queue.
#[derive(Clone)]
pub struct Recogniser {
    queue: Arc<QueueHandle>,
    /// One permit for each worker: no more requests have their headers read at a time.
    header_permits: Arc<Semaphore>,
    active: Arc<ActiveModel>,
    threshold: MatchThreshold,
    decode_limits: DecodeLimits,
    camera_limits: DecodeLimits,
    embedder: &'static str,
    metrics: Arc<Metrics>,
}

/// The bounds of the queue and the settings that decide about a face.
#[derive(Debug, Clone, Copy)]
pub struct RecogniserOptions {
    /// Minimum cosine of a known face.
    pub threshold: MatchThreshold,
    /// How the queue is bounded.
    pub limits: QueueLimits,
    /// The limits of images.
    pub decode_limits: DecodeLimits,
    /// The limits of images that cameras send.
    pub camera_limits: DecodeLimits,
    /// Maximum number of images in a worker's batch.
    pub batch_images: usize,
}

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
pub enum RecogniseError {
    /// The queue is full, or too slow.
    #[error("{waiting} images wait for {wait:?}, at most {capacity} may and for {budget:?}")]
    Busy {
        /// Which of them.
        reason: Rejection,
        /// Images that are queued or being processed.
        waiting: usize,
        /// Maximum number of those.
        capacity: usize,
        /// How long the last of them waits, at the current throughput.
        wait: Duration,
        /// Maximum of that.
        budget: Duration,
        /// When to try again.
        retry_after: Duration,
    },
    /// A limit of the queue other than those.
    #[error("more than {max} {}", limit.describe())]
    Exceeded {
        /// Which one.
        limit: Limit,
        /// Its maximum.
        max: u64,
        /// When to try again.
        retry_after: Duration,
    },
    /// The images of the request have too many pixels together.
    #[error("the request's images have {pixels} pixels, at most {max} are allowed")]
    TooManyPixels {
        /// Pixels of all images.
        pixels: u64,
        /// Maximum.
        max: u64,
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
        let RecogniserOptions { threshold, limits, decode_limits, camera_limits, batch_images } = options;
        let workers = pipeline.workers();
        let throughput = Arc::new(ThroughputEstimator::default());
        let queue = Arc::new(Queue::new(workers, limits, Arc::clone(&throughput)));
        let handle = Arc::new(QueueHandle(Arc::clone(&queue)));
        let embedder = pipeline.embedder().name();
        let worker = Worker {
            queue,
            pipeline,
            active: Arc::clone(&active),
            threshold,
            batch_images,
            throughput,
            metrics: Arc::clone(&metrics),
        };
        for number in 0..workers {
            let worker = worker.clone();
            thread::Builder::new().name(format!("recognise-{number}")).spawn(move || worker.run())?;
        }
        let header_permits = Arc::new(Semaphore::new(workers.max(1)));
        Ok(Self {
            queue: handle,
            header_permits,
            active,
            threshold,
            decode_limits,
            camera_limits,
            embedder,
            metrics,
        })
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
    /// The images' headers are read first: those that cannot be decoded cost nothing more, and the pixels of the others
    /// decide whether there is room for them.
    ///
    /// # Errors
    /// [`RecogniseError::TooManyPixels`], [`RecogniseError::Busy`] and [`RecogniseError::Exceeded`] before anything is decoded,
    /// or while the images wait; otherwise the failure.
    pub async fn recognise_top_k(
        &self,
        images: Vec<UploadedImage>,
        top_k: usize,
    ) -> Result<RecognitionResult, RecogniseError> {
        let result = self.admit(images, top_k).await;
        match &result {
            Err(RecogniseError::Busy { reason, .. }) => self.metrics.rejected(*reason),
            Err(RecogniseError::Exceeded { limit, .. }) => self.metrics.rejected(Rejection::Exceeded(*limit)),
            Err(RecogniseError::TooManyPixels { .. }) => self.metrics.rejected(Rejection::RequestPixels),
            _ => (),
        }
        result
    }

    async fn admit(
        &self,
        images: Vec<UploadedImage>,
        top_k: usize,
    ) -> Result<RecognitionResult, RecogniseError> {
        let images = self.check_headers(images).await?;
        let pixels = images.iter().filter_map(|(_, pixels)| pixels.as_ref().ok());
        let (count, pixels) =
            pixels.fold((0, 0_u64), |(count, sum), pixels| (count + 1, sum.saturating_add(*pixels)));
        let max = self.queue.0.limits().request_pixels;
        if pixels > max && count > 1 {
            return Err(RecogniseError::TooManyPixels { pixels, max });
        }
        if count == 0 {
            let images = images.into_iter().filter_map(|(_, pixels)| Some(Err(pixels.err()?))).collect();
            let (queued, processed) = Default::default();
            return Ok(RecognitionResult { model: self.active.get(), images, queued, processed });
        }
        let (responder, response) = oneshot::channel();
        self.queue.0.push(Share::current(), images, top_k, responder)?;
        response.await.map_err(|_| RecogniseError::Interrupted)?
    }

    /// Reads the headers of images, outside of the threads that handle HTTP.
    async fn check_headers(&self, images: Vec<UploadedImage>) -> Result<Vec<CheckedImage>, RecogniseError> {
        let (limits, camera_limits) = (self.decode_limits, self.camera_limits);
        let permit = Arc::clone(&self.header_permits).acquire_owned().await;
        let permit = permit.map_err(|_| RecogniseError::Interrupted)?;
        let check = move || {
            // Kept until the headers are read, even where the client leaves meanwhile.
            let _permit = permit;
            let check = |image: UploadedImage| {
                let limits = if image.is_from_camera { &camera_limits } else { &limits };
                let pixels = pixels_to_decode(&image.bytes, limits);
                (image, pixels)
            };
            images.into_iter().map(check).collect()
        };
        tokio::task::spawn_blocking(check).await.map_err(|_| RecogniseError::Interrupted)
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
        self.queue.0.waiting()
    }

    /// Returns the maximum of [`waiting`](Self::waiting).
    pub fn capacity(&self) -> usize {
        self.queue.0.limits().images
    }

    /// Returns the pixels of the images that are queued or being processed.
    pub fn waiting_pixels(&self) -> u64 {
        self.queue.0.waiting_pixels()
    }
}
