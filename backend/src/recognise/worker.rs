//! What a worker does with the pictures that it takes: find the faces, embed them, and answer the requests that are whole.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use facepipe_identify::IdentifyError;
use facepipe_vision::{DecodeError, VisionError, with_intra_op_parallelism, without_intra_op_parallelism};
use image::RgbImage;

use super::{
    ActiveModel, Picture, PictureError, Pipeline, RecogniseError, Recognised, SeenPicture, VersionedModel,
    active::identify,
    pace::Pace,
    pipeline::FoundFaces,
    queue::{Computed, Embedded, Queue, Request, Turn, Waiting},
};
use crate::{
    metrics::{Metrics, Stage},
    traces::{Step, record_embedding},
};

/// One of those that share a queue.
#[derive(Clone)]
pub struct Worker {
    /// Where pictures come from.
    pub queue: Arc<Queue>,
    /// The networks.
    pub pipeline: Arc<Pipeline>,
    /// The model that answers.
    pub active: Arc<ActiveModel>,
    /// Score from which a face is known.
    pub threshold: f32,
    /// Pictures at a time, at most.
    pub batch: usize,
    /// What others are told of how fast it goes.
    pub pace: Arc<Pace>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl Worker {
    /// Works until the queue is closed and empty.
    pub fn run(&self) {
        while let Some(turn) = self.queue.take(self.batch) {
            let pictures = turn.pictures.len();
            // A panic in a decoder or a network must not end recognition for everybody else: whoever waits for one of the
            // batch's pictures is told, and the worker goes on.
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let compute = || self.compute(&turn);
                let on_all_threads = turn.on_all_threads && self.pipeline.on_processor();
                if on_all_threads {
                    with_intra_op_parallelism(compute)
                } else {
                    without_intra_op_parallelism(compute)
                }
            }));
            match outcome {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => tracing::error!(pictures, %error, "a batch could not be embedded"),
                Err(_) => tracing::error!(pictures, "a batch was given up after a panic"),
            }
            for waiting in &turn.pictures {
                waiting.request.answer(Err(RecogniseError::Interrupted));
            }
        }
    }

    fn compute(&self, turn: &Turn<'_>) -> Result<(), VisionError> {
        let begun = Instant::now();
        self.metrics.batch(turn.pictures.len());
        for Waiting { request, .. } in &turn.pictures {
            if request.begin(begun, &self.active) {
                let queued = begun.duration_since(request.arrived);
                self.metrics.queued(queued);
                Step::new("queue", request.arrived, queued)
                    .count("facepipe.images", request.pictures.len())
                    .record(request.trace.as_ref());
            }
        }
        let found: Vec<_> =
            turn.pictures.iter().filter_map(|waiting| Some((waiting, self.find_faces(waiting)?))).collect();

        // Clients go while others' faces are looked for, too.
        let mut awaited: Vec<_> =
            found.into_iter().filter(|(waiting, _)| waiting.request.is_awaited()).collect();
        let crops: Vec<RgbImage> = awaited
            .iter_mut()
            .filter_map(|(_, found)| found.as_mut().ok())
            .flat_map(|found| std::mem::take(&mut found.crops))
            .collect();
        let mut requests: Vec<&Arc<Request>> = awaited.iter().map(|(waiting, _)| &waiting.request).collect();
        requests.dedup_by(|a, b| Arc::ptr_eq(a, b));
        let mut embeddings = Vec::with_capacity(crops.len());
        for chunk in crops.chunks(self.batch.max(1)) {
            let embedding = Instant::now();
            embeddings.extend(self.pipeline.embedder().embed(chunk)?);
            let took = embedding.elapsed();
            self.metrics.stage(Stage::Embed, took);
            let traced = requests.iter().filter_map(|request| request.trace.as_ref());
            record_embedding(traced, requests.len(), embedding, took, chunk.len());
        }

        let mut embeddings = embeddings.into_iter();
        for (waiting, found) in awaited {
            let faces = found.map(|FoundFaces { faces, notes, turned, .. }| {
                let faces = faces.into_iter().zip(embeddings.by_ref()).collect();
                Embedded { faces, notes, turned }
            });
            if let Some(computed) = waiting.request.computed(waiting.number, faces) {
                self.answer(&waiting.request, computed);
            }
        }
        let side_by_side = if turn.on_all_threads { 1 } else { self.queue.workers() };
        self.pace.measured(turn.pictures.len(), begun.elapsed(), side_by_side);
        Ok(())
    }

    /// The faces of a picture; `None` where nobody waits for them any more.
    fn find_faces(&self, waiting: &Waiting) -> Option<Result<FoundFaces, PictureError>> {
        let request = &waiting.request;
        let picture: &Picture = request.pictures.get(waiting.number)?;
        if !request.is_awaited() {
            return None;
        }
        let found = match self.pipeline.find_faces(picture) {
            Ok(found) => found,
            Err(error) => return Some(Err(error)),
        };
        let (begun, decoded, detected) = found.took;
        let trace = request.trace.as_ref();
        Step::new("decode", begun, decoded).record(trace);
        Step::new("detect", begun + decoded, detected)
            .count("facepipe.faces", found.faces.len())
            .record(trace);
        self.metrics.stage(Stage::Decode, decoded);
        self.metrics.stage(Stage::Detect, detected);
        Some(Ok(found))
    }

    fn answer(&self, request: &Request, computed: Computed) {
        let Computed { begun, faces } = computed;
        let classifying = Instant::now();
        let pictures = faces
            .into_iter()
            .map(|picture| self.identify(picture, begun.model.as_deref()))
            .collect::<Result<_, RecogniseError>>();
        let took = classifying.elapsed();
        self.metrics.stage(Stage::Classify, took);
        Step::new("classify", classifying, took).record(request.trace.as_ref());
        request.answer(pictures.map(|pictures| Recognised {
            model_version: begun.model.as_ref().map(|model| model.version),
            pictures,
            queued: begun.at.duration_since(request.arrived),
            computed: begun.at.elapsed(),
        }));
    }

    fn identify(
        &self,
        picture: Result<Embedded, PictureError>,
        model: Option<&VersionedModel>,
    ) -> Result<Result<SeenPicture, DecodeError>, RecogniseError> {
        match picture {
            Ok(Embedded { faces, notes, turned }) => {
                let faces = faces
                    .into_iter()
                    .map(|(face, embedding)| identify(model, &face, embedding, self.threshold))
                    .collect::<Result<_, IdentifyError>>()?;
                Ok(Ok(SeenPicture { faces, notes, turned }))
            }
            Err(PictureError::Decode(error)) => Ok(Err(error)),
            Err(PictureError::Vision(error)) => Err(error.into()),
        }
    }
}
