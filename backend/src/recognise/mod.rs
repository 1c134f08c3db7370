//! Recognition: a bounded queue of pictures in front of as many workers as the networks have threads on the processor.
//!
//! Nobody waits for a batch to fill: while the workers compute, the next ones gather by themselves, and a worker that is
//! done takes its share of them. A request that finds the queue full is turned away at once, and one whose client has gone
//! is skipped.

mod active;
mod pace;
mod pipeline;
mod queue;
mod worker;

pub use active::{ActiveModel, VersionedModel, load_tested};
pub use pipeline::{Picture, PictureError, Pipeline, Rotation};

use std::{sync::Arc, thread, time::Duration};

use facepipe_identify::IdentifyError;
use facepipe_vision::{DecodeError, DecodeNote, VisionError};
use tokio::sync::{Semaphore, oneshot};

use self::{pace::Pace, queue::Queue, worker::Worker};
use crate::{
    domain::IdentifiedFace,
    metrics::{Metrics, Refused},
};

/// Hands pictures to the workers; clones share them.
#[derive(Clone)]
pub struct Recogniser {
    queue: Arc<Entrance>,
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
    /// A worker gave up on the batch.
    #[error("recognition was cut off")]
    Interrupted,
}

/// The answer to one request.
pub struct Recognised {
    /// The model that was asked, for all of the request's faces.
    pub model_version: Option<i64>,
    /// Picture by picture, in the order of the request.
    pub pictures: Vec<Result<SeenPicture, DecodeError>>,
    /// From the request's arrival until a worker took up its first picture.
    pub queued: Duration,
    /// From there to the answer.
    pub computed: Duration,
}

/// What is said of one picture.
#[derive(Default)]
pub struct SeenPicture {
    /// Its faces.
    pub faces: Vec<IdentifiedFace>,
    /// What is to be said of its file.
    pub notes: Vec<DecodeNote>,
    /// How it must be turned to show a face, where it shows none and [`Picture::must_show_face`] is set.
    pub turned: Option<Rotation>,
}

/// What goes in comes to the workers. They end when it is dropped and the queue is empty.
struct Entrance(Arc<Queue>);

impl Drop for Entrance {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Recogniser {
    /// Starts the workers. `capacity`: images that may wait or be computed at a time; `budget`: how long they may take
    /// together, at the pace of the last ones; `batch`: images that a worker takes at a time. The workers end when the last
    /// clone is dropped and the queue is empty.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(
        pipeline: Arc<Pipeline>,
        active: Arc<ActiveModel>,
        threshold: f32,
        capacity: u32,
        budget: Duration,
        batch: usize,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let workers = pipeline.workers();
        let queue = Arc::new(Queue::new(workers));
        let entrance = Arc::new(Entrance(Arc::clone(&queue)));
        let pace = Arc::new(Pace::default());
        let embedder = pipeline.embedder().name();
        let worker = Worker {
            queue,
            pipeline,
            active,
            threshold,
            batch,
            pace: Arc::clone(&pace),
            metrics: Arc::clone(&metrics),
        };
        for number in 0..workers {
            let worker = worker.clone();
            thread::Builder::new().name(format!("recognise-{number}")).spawn(move || worker.run())?;
        }
        let room = Arc::new(Semaphore::new(usize::try_from(capacity).unwrap_or(Semaphore::MAX_PERMITS)));
        Ok(Self { queue: entrance, room, capacity, budget, pace, embedder, metrics })
    }

    /// The embedder's name.
    pub fn embedder(&self) -> &'static str {
        self.embedder
    }

    /// Finds, embeds and identifies the faces on the pictures of one request, of which there is at least one.
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
        self.queue.0.push(pictures, reply, room);
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
