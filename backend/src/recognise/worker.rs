//! A worker: takes batches of images, finds and embeds their faces, and answers the requests that are complete.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use facepipe_identify::IdentifyError;
use facepipe_vision::{DecodeError, VisionError, with_intra_op_parallelism, without_intra_op_parallelism};
use image::RgbImage;

use super::{
    ActiveModel, ImageError, ImageResult, MatchThreshold, Pipeline, RecogniseError, RecognitionResult,
    VersionedModel,
    active::identify,
    pipeline::{FoundFaces, Timings},
    queue::{Batch, CompletedRequest, DetectedFace, EmbeddedFaces, Queue, QueueEntry, Request},
    throughput::ThroughputEstimator,
};
use crate::{
    metrics::{Metrics, Stage},
    traces::{Step, record_embedding},
};

/// A worker; its clones share the queue.
#[derive(Clone)]
pub struct Worker {
    /// Where images come from.
    pub queue: Arc<Queue>,
    pub pipeline: Arc<Pipeline>,
    /// The model that answers.
    pub active: Arc<ActiveModel>,
    /// Score from which a face is known.
    pub threshold: MatchThreshold,
    /// Maximum number of images in a batch.
    pub batch_images: usize,
    /// Measures how long images take.
    pub throughput: Arc<ThroughputEstimator>,
    /// The process's counters.
    pub metrics: Arc<Metrics>,
}

impl Worker {
    /// Processes batches until the queue is closed and empty.
    pub fn run(&self) {
        while let Some(batch) = self.queue.next_batch(self.batch_images) {
            let images = batch.entries.len();
            // A panic in a decoder or a network fails the requests of this batch and no others.
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let compute = || self.process(&batch);
                let on_all_threads = batch.on_all_threads && self.pipeline.runs_on_cpu();
                if on_all_threads {
                    with_intra_op_parallelism(compute)
                } else {
                    without_intra_op_parallelism(compute)
                }
            }));
            match outcome {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => tracing::error!(images, %error, "embedding a batch failed"),
                Err(_) => tracing::error!(images, "processing a batch panicked"),
            }
            for entry in &batch.entries {
                entry.request.respond(Err(RecogniseError::Interrupted));
            }
        }
    }

    fn process(&self, batch: &Batch<'_>) -> Result<(), VisionError> {
        let started = Instant::now();
        self.metrics.batch(batch.entries.len());
        for QueueEntry { request, .. } in &batch.entries {
            if request.start(started, &self.active) {
                let queued = started.duration_since(request.arrived);
                self.metrics.queued(queued);
                Step::new("queue", request.arrived, queued)
                    .count("facepipe.images", request.images.len())
                    .record(request.trace.as_ref());
            }
        }
        let found: Vec<_> =
            batch.entries.iter().filter_map(|entry| Some((entry, self.find_faces(entry)?))).collect();

        for (entry, found) in &found {
            if let Ok(found) = found {
                self.queue.charge_faces(entry.request.client, found.faces.len());
            }
        }
        // Clients may have left during detection.
        let mut awaited: Vec<_> = found.into_iter().filter(|(entry, _)| entry.request.is_awaited()).collect();
        let crops: Vec<RgbImage> = awaited
            .iter_mut()
            .filter_map(|(_, found)| found.as_mut().ok())
            .flat_map(|found| std::mem::take(&mut found.crops))
            .collect();
        let mut requests: Vec<&Arc<Request>> = awaited.iter().map(|(entry, _)| &entry.request).collect();
        requests.dedup_by(|a, b| Arc::ptr_eq(a, b));
        let mut embeddings = Vec::with_capacity(crops.len());
        for chunk in crops.chunks(self.batch_images.max(1)) {
            // Nobody may be left after the chunks before.
            if !requests.iter().any(|request| request.is_awaited()) {
                return Ok(());
            }
            let embedding = Instant::now();
            embeddings.extend(self.pipeline.embedder().embed(chunk)?);
            let took = embedding.elapsed();
            self.metrics.stage(Stage::Embed, took);
            let traced = requests.iter().filter_map(|request| request.trace.as_ref());
            record_embedding(traced, requests.len(), embedding, took, chunk.len());
        }

        let mut embeddings = embeddings.into_iter();
        for (entry, found) in awaited {
            let faces = found.map(|FoundFaces { faces, qualities, size, notes, turned, .. }| {
                let faces = faces
                    .into_iter()
                    .zip(qualities)
                    .zip(embeddings.by_ref())
                    .map(|((detection, quality), embedding)| DetectedFace { detection, quality, embedding })
                    .collect();
                EmbeddedFaces { faces, size, notes, turned }
            });
            if let Some(completed) = entry.request.complete(entry.index, faces) {
                self.respond(&entry.request, completed);
            }
        }
        let parallel_workers = if batch.on_all_threads { 1 } else { self.queue.workers() };
        self.throughput.record(batch.cost(), started.elapsed(), parallel_workers);
        Ok(())
    }

    /// Finds the faces of an image. Returns `None` where the client has left.
    fn find_faces(&self, entry: &QueueEntry) -> Option<Result<FoundFaces, ImageError>> {
        let request = &entry.request;
        let image = request.images.get(entry.index)?;
        if !request.is_awaited() {
            return None;
        }
        let found = match self.pipeline.find_faces(image) {
            Ok(found) => found,
            Err(error) => return Some(Err(error)),
        };
        let Timings { started, decoded, detected } = found.timings;
        let trace = request.trace.as_ref();
        Step::new("decode", started, decoded).record(trace);
        Step::new("detect", started + decoded, detected)
            .count("facepipe.faces", found.faces.len())
            .record(trace);
        self.metrics.stage(Stage::Decode, decoded);
        self.metrics.stage(Stage::Detect, detected);
        Some(Ok(found))
    }

    fn respond(&self, request: &Request, completed: CompletedRequest) {
        let CompletedRequest { started, faces } = completed;
        let classifying = Instant::now();
        let images = faces
            .into_iter()
            .map(|image| self.identify(image, started.model.as_deref(), request.top_k))
            .collect::<Result<_, RecogniseError>>();
        let took = classifying.elapsed();
        self.metrics.stage(Stage::Classify, took);
        Step::new("classify", classifying, took).record(request.trace.as_ref());
        request.respond(images.map(|images| RecognitionResult {
            model: started.model.clone(),
            images,
            queued: started.at.duration_since(request.arrived),
            processed: started.at.elapsed(),
        }));
    }

    fn identify(
        &self,
        image: Result<EmbeddedFaces, ImageError>,
        model: Option<&VersionedModel>,
        top_k: usize,
    ) -> Result<Result<ImageResult, DecodeError>, RecogniseError> {
        match image {
            Ok(EmbeddedFaces { faces, size, notes, turned }) => {
                let threshold = self.threshold.of(model);
                let faces = faces
                    .into_iter()
                    .map(|face| identify(model, face, threshold, top_k))
                    .collect::<Result<_, IdentifyError>>()?;
                Ok(Ok(ImageResult { faces, size, notes, turned }))
            }
            Err(ImageError::Decode(error)) => Ok(Err(error)),
            Err(ImageError::Vision(error)) => Err(error.into()),
        }
    }
}
