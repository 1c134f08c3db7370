//! Recognition: a bounded queue in front of one worker thread that takes whatever waits as one batch.
//!
//! Nobody waits for a batch to fill: while the worker computes, the next one gathers by itself. A request that finds
//! the queue full is turned away at once, and one whose client has gone is skipped.

mod active;
mod face;
mod loader;
mod pipeline;

pub use active::{ActiveModel, VersionedModel, load_tested};
pub use face::IdentifiedFace;
pub use loader::{ModelLoader, ModelProblem};
pub use pipeline::{Picture, PictureError, Pipeline};

use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use facepipe_identify::IdentifyError;
use facepipe_vision::{DecodeError, Face, VisionError};
use image::RgbImage;
use opentelemetry::{
    Context,
    trace::{SpanContext, TraceContextExt as _},
};
use rayon::prelude::*;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use active::identify;
use pipeline::FoundFaces;

use crate::{
    metrics::{Metrics, Refused, Stage},
    traces::{self, Step},
};

/// Hands pictures to the worker; clones share it.
#[derive(Clone)]
pub struct Recogniser {
    jobs: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
    capacity: u32,
    budget: Duration,
    pace: Arc<Pace>,
    embedder: &'static str,
    metrics: Arc<Metrics>,
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum RecogniseError {
    /// Too much waits already.
    #[error("{waiting} images wait for {wait:?}, at most {capacity} may and for {budget:?}")]
    Busy {
        /// Images that wait or are being computed.
        waiting: usize,
        /// Images that may.
        capacity: u32,
        /// How long the last of them waits, at the pace of the last batches.
        wait: Duration,
        /// How long it may.
        budget: Duration,
        /// When it is worth to ask again.
        retry_after: Duration,
    },
    /// The network failed.
    #[error("recognition failed: {0}")]
    Vision(#[from] VisionError),
    /// The model failed.
    #[error("identification failed: {0}")]
    Identify(#[from] IdentifyError),
    /// The worker gave up on the batch.
    #[error("recognition was cut off")]
    Interrupted,
}

/// The answer to one request.
pub struct Recognised {
    /// The model that was asked, for all of the request's faces.
    pub model_version: Option<i64>,
    /// Picture by picture, in the order of the request.
    pub pictures: Vec<Result<Vec<IdentifiedFace>, DecodeError>>,
    /// From the request's arrival to the beginning of its batch.
    pub queued: Duration,
    /// From there to the answer.
    pub computed: Duration,
}

struct Job {
    pictures: Vec<Picture>,
    reply: oneshot::Sender<Result<Recognised, RecogniseError>>,
    arrived: Instant,
    /// Where it is traced.
    trace: Option<Context>,
    /// Held until the answer is there: what is being computed counts too.
    room: OwnedSemaphorePermit,
}

impl Recogniser {
    /// Starts the worker. `capacity`: images that may wait or be computed at a time; `budget`: how long they may take
    /// together, at the pace of the last ones; `batch`: images that the worker takes at a time. The worker ends when the last clone is dropped and the queue is empty.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        pipeline: Arc<Pipeline>,
        active: Arc<ActiveModel>,
        threshold: f32,
        capacity: u32,
        budget: Duration,
        batch: usize,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let pace = Arc::new(Pace::default());
        let embedder = pipeline.embedder().name();
        let (pace_of_worker, metrics_of_worker) = (Arc::clone(&pace), Arc::clone(&metrics));
        let worker =
            Worker { pipeline, active, threshold, batch, pace: pace_of_worker, metrics: metrics_of_worker };
        thread::Builder::new().name("recognise".into()).spawn(move || worker.run(&queue))?;
        let room = Arc::new(Semaphore::new(usize::try_from(capacity).unwrap_or(Semaphore::MAX_PERMITS)));
        Ok(Self { jobs, room, capacity, budget, pace, embedder, metrics })
    }

    /// The embedder's name.
    pub fn embedder(&self) -> &'static str {
        self.embedder
    }

    /// Finds, embeds and identifies the faces on the pictures of one request.
    ///
    /// # Errors
    /// [`RecogniseError::Busy`] at once where the queue is full; else what went wrong.
    pub async fn recognise(&self, pictures: Vec<Picture>) -> Result<Recognised, RecogniseError> {
        // What nobody waits for any more is refused before it costs anything. As below, a request that has the queue to
        // itself gets in, however long it takes.
        let waiting = self.waiting();
        if waiting > 0 && self.pace.time_for(waiting) > self.budget {
            return Err(self.busy(Refused::QueueSlow));
        }
        // A request larger than the queue gets in when it has the queue to itself.
        let size = u32::try_from(pictures.len()).unwrap_or(u32::MAX).min(self.capacity);
        let room =
            Arc::clone(&self.room).try_acquire_many_owned(size).map_err(|_| self.busy(Refused::QueueFull))?;
        let (reply, answer) = oneshot::channel();
        let job = Job { pictures, reply, arrived: Instant::now(), trace: traces::current(), room };
        self.jobs.send(job).map_err(|_| RecogniseError::Interrupted)?;
        answer.await.map_err(|_| RecogniseError::Interrupted)?
    }

    /// Images that wait or are being computed.
    pub fn waiting(&self) -> usize {
        usize::try_from(self.capacity).unwrap_or(usize::MAX).saturating_sub(self.room.available_permits())
    }

    /// Images that may.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    fn busy(&self, reason: Refused) -> RecogniseError {
        self.metrics.refused(reason);
        let waiting = self.waiting();
        RecogniseError::Busy {
            waiting,
            capacity: self.capacity,
            wait: self.pace.time_for(waiting),
            budget: self.budget,
            retry_after: self.pace.retry_after(waiting),
        }
    }
}

/// The faces of one picture and their embeddings.
type EmbeddedFaces = Vec<(Face, Vec<f32>)>;

struct Worker {
    pipeline: Arc<Pipeline>,
    active: Arc<ActiveModel>,
    threshold: f32,
    batch: usize,
    pace: Arc<Pace>,
    metrics: Arc<Metrics>,
}

impl Worker {
    fn run(&self, queue: &mpsc::Receiver<Job>) {
        while let Ok(first) = queue.recv() {
            let mut images = first.pictures.len();
            let mut jobs = vec![first];
            while images < self.batch
                && let Ok(next) = queue.try_recv()
            {
                images += next.pictures.len();
                jobs.push(next);
            }
            jobs.retain(|job| !job.reply.is_closed());
            // A panic in a decoder or a network must not end recognition for everybody else: the batch's requests
            // see their reply dropped, and the worker goes on.
            match catch_unwind(AssertUnwindSafe(|| self.answer(jobs))) {
                Ok(Ok(())) => (),
                Ok(Err(error)) => tracing::error!(images, %error, "a batch could not be embedded"),
                Err(_) => tracing::error!(images, "a batch was given up after a panic"),
            }
        }
    }

    fn answer(&self, jobs: Vec<Job>) -> Result<(), VisionError> {
        let begun = Instant::now();
        let model = self.active.get();
        let pictures: Vec<(&Job, &Picture)> =
            jobs.iter().flat_map(|job| job.pictures.iter().map(move |picture| (job, picture))).collect();
        let count = pictures.len();
        let enough_for_all = count >= rayon::current_num_threads();
        if count > 0 {
            self.metrics.batch(count);
        }
        for job in &jobs {
            let queued = begun.duration_since(job.arrived);
            self.metrics.queued(queued);
            Step::new("queue", job.arrived, queued)
                .count("facepipe.images", job.pictures.len())
                .record(job.trace.as_ref());
        }
        let mut found: Vec<Result<FoundFaces, PictureError>> = pictures
            .into_par_iter()
            .map(|(job, picture)| {
                if job.reply.is_closed() {
                    return Ok(FoundFaces::default());
                }
                let found = self.pipeline.find_faces(picture, enough_for_all)?;
                if let Some((begun, decoded, detected)) = found.took {
                    let trace = job.trace.as_ref();
                    Step::new("decode", begun, decoded).record(trace);
                    Step::new("detect", begun + decoded, detected)
                        .count("facepipe.faces", found.faces.len())
                        .record(trace);
                    self.metrics.stage(Stage::Decode, decoded);
                    self.metrics.stage(Stage::Detect, detected);
                }
                Ok(found)
            })
            .collect();

        let crops: Vec<RgbImage> =
            found.iter_mut().flatten().flat_map(|faces| mem::take(&mut faces.crops)).collect();
        let mut embeddings = Vec::with_capacity(crops.len());
        for chunk in crops.chunks(self.batch) {
            let embedding = Instant::now();
            embeddings.extend(self.pipeline.embedder().embed(chunk)?);
            let took = embedding.elapsed();
            self.metrics.stage(Stage::Embed, took);
            trace_embedding(&jobs, embedding, took, chunk.len());
        }
        let mut embeddings = embeddings.into_iter();
        let embedded: Vec<Result<EmbeddedFaces, PictureError>> = found
            .into_iter()
            .map(|picture| picture.map(|found| found.faces.into_iter().zip(embeddings.by_ref()).collect()))
            .collect();

        let mut embedded = embedded.into_iter();
        for job in jobs {
            let of_job: Vec<_> = embedded.by_ref().take(job.pictures.len()).collect();
            let classifying = Instant::now();
            let pictures = of_job
                .into_iter()
                .map(|picture| self.identify(picture, model.as_deref()))
                .collect::<Result<_, RecogniseError>>();
            let took = classifying.elapsed();
            self.metrics.stage(Stage::Classify, took);
            Step::new("classify", classifying, took).record(job.trace.as_ref());
            let answer = pictures.map(|pictures| Recognised {
                model_version: model.as_ref().map(|m| m.version),
                pictures,
                queued: begun.duration_since(job.arrived),
                computed: begun.elapsed(),
            });
            // Room is made first: whoever has an answer may ask again at once.
            let Job { reply, room, .. } = job;
            drop(room);
            // Whoever asked may be gone by now; then there is nobody to tell.
            let _ = reply.send(answer);
        }
        self.pace.measured(count, begun.elapsed());
        Ok(())
    }

    fn identify(
        &self,
        picture: Result<EmbeddedFaces, PictureError>,
        model: Option<&VersionedModel>,
    ) -> Result<Result<Vec<IdentifiedFace>, DecodeError>, RecogniseError> {
        match picture {
            Ok(faces) => {
                let identified = faces
                    .into_iter()
                    .map(|(face, embedding)| identify(model, &face, embedding, self.threshold))
                    .collect::<Result<_, IdentifyError>>()?;
                Ok(Ok(identified))
            }
            Err(PictureError::Decode(error)) => Ok(Err(error)),
            Err(PictureError::Vision(error)) => Err(error.into()),
        }
    }
}

/// A batch is embedded for all of its requests at once: each has the span, with links to the others.
fn trace_embedding(jobs: &[Job], begun: Instant, took: Duration, faces: usize) {
    let traced: Vec<(&Context, SpanContext)> = jobs
        .iter()
        .filter_map(|job| job.trace.as_ref())
        .map(|trace| (trace, trace.span().span_context().clone()))
        .collect();
    for (trace, own) in &traced {
        let others = traced.iter().map(|(_, other)| other).filter(|other| *other != own).cloned();
        Step::new("embed", begun, took)
            .count("facepipe.batch.faces", faces)
            .count("facepipe.batch.requests", jobs.len())
            .linked(others)
            .record(Some(trace));
    }
}

/// How long an image takes, as a moving average: what a client that was turned away is told to wait.
#[derive(Default)]
struct Pace {
    micros_per_image: AtomicU64,
}

impl Pace {
    fn measured(&self, images: usize, took: Duration) {
        let Some(sample) = u64::try_from(images).ok().and_then(|n| micros(took).checked_div(n)) else {
            return;
        };
        // Only the worker writes, so nothing is lost between the load and the store.
        let before = self.micros_per_image.load(Ordering::Relaxed);
        let after = if before == 0 { sample } else { (before * 7 + sample) / 8 };
        self.micros_per_image.store(after, Ordering::Relaxed);
    }

    /// How long `images` take; nothing before any was measured.
    fn time_for(&self, images: usize) -> Duration {
        let images = u64::try_from(images).unwrap_or(u64::MAX);
        Duration::from_micros(self.micros_per_image.load(Ordering::Relaxed).saturating_mul(images))
    }

    /// When they will be done, in whole seconds as `Retry-After` has them, 1 to 30.
    fn retry_after(&self, images: usize) -> Duration {
        Duration::from_secs(micros(self.time_for(images)).div_ceil(1_000_000).clamp(1, 30))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_follows_what_images_take() {
        let pace = Pace::default();
        assert_eq!((pace.time_for(1000), pace.retry_after(1000)), (Duration::ZERO, Duration::from_secs(1)));
        pace.measured(10, Duration::from_millis(505));
        assert_eq!(pace.time_for(100), Duration::from_millis(5050));
        assert_eq!(pace.retry_after(100), Duration::from_secs(6));
        assert_eq!(pace.retry_after(1_000_000), Duration::from_secs(30));
        pace.measured(0, Duration::from_secs(9));
        assert_eq!(pace.time_for(100), Duration::from_millis(5050));
    }
}
