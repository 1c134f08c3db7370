//! Does jobs: trainings, the recomputation of embeddings, clustering of unknown faces and searches for people in the past.

use std::{
    collections::HashSet,
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use facepipe_identify::{
    IdentifyError,
    open_set::{CalibrationOptions, ImpostorTable},
};
use facepipe_shared::hex;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    TrainerOptions,
    pairs::PairFinder,
    progress::{AbortReason, Progress},
    results::{EmbeddingResult, TrainingResult},
    training::{
        ConflictingPair, TrainedModel, TrainingData, describe_calibration, describe_conflicts, fit,
        people_left_out, split_conflicts,
    },
};
use crate::{
    cohort::{self, CohortEmbedder},
    domain::{Job, JobKind, ModelCalibration},
    model_loader::ModelLoader,
    recognise::{EmbeddedFace, ImageError, MatchThreshold, Pipeline},
    store::{
        Blobs, Database, StoreError, ledger,
        sql::{EnrolledImage, Lease, NewEmbedding, NewModel, TrainingImage},
    },
    unknowns::{self, ReclusteringError, ReclusteringResult},
};

/// Images that are read, computed and written together: few, so that a job stops soon when it must.
const CHUNK: usize = 4;
/// How often a job tries again to lock the dataset, and the pause in between.
const LOCK_RETRIES: u32 = 60;
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Why a job has no result.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// It was asked to stop.
    #[error("ended")]
    Aborted(AbortReason),
    /// Two images of different people show the same face.
    #[error(
        "images {first} and {second} have the same embedding but belong to two people: erase one of them, then train \
         again"
    )]
    Conflict {
        /// The id of one image.
        first: String,
        /// The id of the other.
        second: String,
    },
    /// The embeddings cannot be trained on.
    #[error(transparent)]
    Identify(#[from] IdentifyError),
    /// Unknown faces could not be clustered: clusters changed each time before the result could be stored.
    #[error("unknown people were changed again and again meanwhile: try again later")]
    ClustersChanged,
    /// No model can answer.
    #[error("there is no usable model: train first")]
    NoModel,
    /// Rows or blobs failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Anything else that went wrong.
    #[error("{0}")]
    Internal(String),
}

impl From<ReclusteringError> for JobError {
    fn from(error: ReclusteringError) -> Self {
        match error {
            ReclusteringError::Store(error) => error.into(),
            ReclusteringError::Identify(error) => error.into(),
            ReclusteringError::Changed => Self::ClustersChanged,
            ReclusteringError::Interrupted => Self::Internal(error.to_string()),
        }
    }
}

/// A job that is being done.
pub struct RunningJob<'a> {
    pub job: &'a Job,
    /// The holder of the trainer's lease.
    pub holder: &'a str,
    /// When it was started.
    pub started: Instant,
    /// How far it is, and whether it must stop.
    pub progress: Arc<Progress>,
}

/// Does jobs in one process.
pub struct JobExecutor {
    pub(super) database: Database,
    blobs: Blobs,
    /// Activates new models in this process.
    pub loader: Arc<ModelLoader>,
    pipeline: Arc<Pipeline>,
    /// How long a lease lasts unless it is renewed.
    lease: Duration,
    /// Cosine from which images of two people are the same picture.
    same_picture: f32,
    /// Distance up to which two clusters of unknown faces are one.
    max_distance: f32,
    /// The share of strangers that a model may name.
    target_fpir: f64,
    pairs: Arc<PairFinder>,
    /// The score from which a face is known.
    pub(super) threshold: MatchThreshold,
    /// Whether stored unknown faces are searched for people that a training adds.
    search_past: bool,
}

impl JobExecutor {
    /// Creates the executor of jobs with the options of the trainer.
    pub fn new(
        database: Database,
        blobs: Blobs,
        loader: Arc<ModelLoader>,
        pipeline: Arc<Pipeline>,
        options: TrainerOptions,
    ) -> Self {
        let TrainerOptions { lease, same_picture, max_distance, threshold, search_past, target_fpir, .. } =
            options;
        Self {
            database,
            blobs,
            loader,
            pipeline,
            lease,
            same_picture,
            max_distance,
            target_fpir,
            pairs: Arc::default(),
            threshold,
            search_past,
        }
    }

    /// Does a job. Returns its result as JSON.
    ///
    /// # Errors
    /// [`JobError`].
    pub async fn run(&self, running: &RunningJob<'_>) -> Result<String, JobError> {
        let job = running.job;
        let json = match job.kind {
            JobKind::OptimizedTrain => {
                let data = self.stored_embeddings(&running.progress).await?;
                serde_json::to_string(&self.train(running, data).await?)
            }
            JobKind::Train => {
                let data = self.computed_embeddings(&running.progress).await?;
                serde_json::to_string(&self.train(running, data).await?)
            }
            JobKind::GenerateEmb => {
                let result = self.recompute_embeddings(running).await;
                // The lease is released also after a failure; a lost one stays with its new holder.
                let released = self.database.release_lease(Lease::Dataset, &job.id).await;
                let result = result?;
                released?;
                serde_json::to_string(&result)
            }
            JobKind::ReclusterUnknowns => serde_json::to_string(&self.recluster(running).await?),
            JobKind::SearchPast => serde_json::to_string(&self.search_past(running).await?),
        };
        json.map_err(|error| JobError::Internal(error.to_string()))
    }

    /// Clusters all unknown faces together again.
    async fn recluster(&self, running: &RunningJob<'_>) -> Result<ReclusteringResult, JobError> {
        let progress = Arc::clone(&running.progress);
        let report = move |done: usize, all: usize| {
            progress.set_total(all);
            progress.advance_to(done);
            match progress.abort_reason() {
                Some(_) => ControlFlow::Break(()),
                None => ControlFlow::Continue(()),
            }
        };
        let by = (self.embedder(), self.max_distance);
        let holder = (running.job.id.as_str(), self.lease);
        match unknowns::recluster(&self.database, by, holder, Arc::new(report)).await {
            Err(error) => {
                running.progress.ensure_not_aborted()?;
                Err(error.into())
            }
            Ok(result) => {
                tracing::info!(
                    job = running.job.id,
                    unknowns = result.unknowns,
                    before = result.unknowns_before,
                    tracks = result.tracks,
                    detections_moved = result.detections_moved,
                    duration_ms = result.duration_ms,
                    "clustered all unknown faces together again"
                );
                Ok(result)
            }
        }
    }

    pub(super) fn embedder(&self) -> &'static str {
        self.pipeline.embedder().name()
    }

    /// Returns the stored embeddings, on which a training continues from the active model.
    async fn stored_embeddings(&self, progress: &Progress) -> Result<TrainingData, JobError> {
        let set = self.database.training_set(self.embedder()).await?;
        progress.set_total(set.images.len());
        let (images, people, previous) = (set.images, set.people, self.loader.active());
        Ok(TrainingData { images, people, images_left_out: 0, previous })
    }

    /// Computes the embeddings of all images, on which a training starts from scratch, without storing them; for images
    /// without a picture, returns the stored ones.
    async fn computed_embeddings(&self, progress: &Progress) -> Result<TrainingData, JobError> {
        let (enrolled, people) = self.database.enrolled_images().await?;
        progress.set_total(enrolled.len());
        let (enrolled, without): (Vec<_>, Vec<_>) =
            enrolled.into_iter().partition(EnrolledImage::has_picture);
        let mut images = self.embeddings_without_pictures(&without).await?;
        let mut images_left_out = count(without.len() - images.len())?;
        progress.advance(without.len());
        for chunk in enrolled.chunks(CHUNK) {
            progress.ensure_not_aborted()?;
            for (image, face) in chunk.iter().zip(self.embed(chunk).await?) {
                match face {
                    Some(EmbeddedFace { embedding, .. }) => {
                        images.push(TrainingImage { id: image.id.clone(), person: image.person, embedding });
                    }
                    None => images_left_out += 1,
                }
            }
            progress.advance(chunk.len());
        }
        Ok(TrainingData { images, people, images_left_out, previous: None })
    }

    /// Returns the stored embeddings of images without a picture.
    async fn embeddings_without_pictures(
        &self,
        images: &[EnrolledImage],
    ) -> Result<Vec<TrainingImage>, JobError> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let ids: HashSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
        let mut stored = self.database.training_set(self.embedder()).await?.images;
        stored.retain(|image| ids.contains(image.id.as_str()));
        Ok(stored)
    }

    /// Trains a model, then stores and activates it.
    async fn train(&self, running: &RunningJob<'_>, data: TrainingData) -> Result<TrainingResult, JobError> {
        let TrainingData { images, people, images_left_out, previous } = data;
        let with_embeddings: HashSet<i64> = images.iter().map(|image| image.person).collect();
        let (progress, same_picture) = (Arc::clone(&running.progress), self.same_picture);
        let pairs = Arc::clone(&self.pairs);
        let (images, conflicts) =
            blocking(move || split_conflicts(images, &pairs, same_picture, &progress)).await??;
        // Conflicts are stored also if the training fails, since they may be the reason.
        self.store_conflicts(&conflicts.pairs).await?;
        let cohort_embedder = CohortEmbedder::of(self.pipeline.embedder());
        let images = Arc::new(images);
        cohort::remove_enrolled(&self.database, cohort_embedder, Arc::clone(&images)).await?;
        let images = Arc::unwrap_or_clone(images);
        let (embedder, progress) = (self.embedder(), Arc::clone(&running.progress));
        let default_threshold = self.pipeline.embedder().default_threshold();
        let (cohort, target_fpir) = (self.database.cohort(embedder).await?, self.target_fpir);
        let trained = blocking(move || {
            let table = ImpostorTable::of(embedder);
            let calibration = CalibrationOptions { target_fpir, default_threshold, table, cohort: &cohort };
            fit(embedder, images, previous.as_deref(), &calibration, &progress)
        })
        .await??;
        running.progress.ensure_not_aborted()?;

        let (people_left_out, without_embeddings) =
            people_left_out(&people, &with_embeddings, &trained.people);
        let in_conflict = conflicts.images;
        let conflicts = describe_conflicts(&conflicts.pairs, &people);
        let (known, images) = (count(trained.people.len())?, count(trained.images)?);
        let calibration =
            trained.calibration.as_ref().map(|calibration| describe_calibration(calibration, &people));
        let before = self.database.people_of_active_model().await?;
        let new: Vec<i64> =
            trained.people.iter().copied().filter(|person| !before.contains(person)).collect();
        let (model_version, duration_ms) = self.publish(running, trained, calibration.as_ref()).await?;
        if self.search_past
            && let Err(error) = self.database.search_past_of(new, embedder).await
        {
            tracing::warn!(%error, "cannot queue the search of stored unknown faces for new people");
        }
        let result = TrainingResult {
            model_version,
            embedder: embedder.to_owned(),
            people: known,
            images,
            people_without_embeddings: count(without_embeddings)?,
            images_left_out,
            images_in_conflict: count(in_conflict)?,
            people_left_out,
            conflicts,
            calibration,
            duration_ms,
        };
        tracing::info!(
            job = running.job.id,
            model_version,
            people = result.people,
            images = result.images,
            people_left_out = result.people_without_embeddings,
            images_in_conflict = result.images_in_conflict,
            threshold = result.calibration.as_ref().map(|calibration| calibration.threshold),
            cohort = result.calibration.as_ref().map(|calibration| calibration.cohort),
            duration_ms,
            "trained a model"
        );
        Ok(result)
    }

    /// Stores a model, activates it, and removes the models that know erased people. Returns its version and the time that
    /// the job took until it was stored, milliseconds.
    async fn publish(
        &self,
        running: &RunningJob<'_>,
        trained: TrainedModel,
        calibration: Option<&ModelCalibration>,
    ) -> Result<(i64, i64), JobError> {
        let TrainedModel { bytes, people, images, .. } = trained;
        let calibration = calibration.map(serde_json::to_string).transpose();
        let calibration = calibration.map_err(|error| JobError::Internal(error.to_string()))?;
        let sha256 = hex(&Sha256::digest(&bytes));
        let blob_key = Blobs::model_key(&Uuid::now_v7().to_string());
        self.blobs.put(&blob_key, Bytes::from(bytes)).await?;
        let duration_ms = milliseconds(running.started.elapsed());
        let row = NewModel {
            embedder: self.embedder(),
            blob_key: blob_key.clone(),
            sha256,
            people,
            images: count(images)?,
            duration_ms,
            calibration,
        };
        let version = match self.database.add_active_model(row, running.holder, self.lease).await {
            Ok(version) => version,
            Err(error) => {
                let _ = self.blobs.delete(&blob_key).await;
                return Err(error.into());
            }
        };
        self.loader.refresh().await?;
        match ledger::purge_models(&self.database, &self.blobs).await {
            Ok(0) => (),
            Ok(models) => tracing::info!(models, "removed models that knew somebody who was erased"),
            Err(error) => tracing::error!(
                %error,
                "cannot remove models that know somebody who was erased; the next training will"
            ),
        }
        Ok((version, duration_ms))
    }

    async fn store_conflicts(&self, conflicts: &[ConflictingPair]) -> Result<(), JobError> {
        let row = |pair: &ConflictingPair| {
            let [(first, _), (second, _)] = &pair.images;
            (first.clone(), second.clone(), pair.similarity)
        };
        let rows = conflicts.iter().map(row).collect();
        Ok(self.database.replace_similar(rows).await?)
    }

    /// Recomputes and stores the embeddings of all images; the dataset is locked meanwhile.
    async fn recompute_embeddings(&self, running: &RunningJob<'_>) -> Result<EmbeddingResult, JobError> {
        let RunningJob { job, progress, .. } = running;
        self.lock_dataset(running).await?;
        let embedder = self.embedder();
        let (images, _) = self.database.enrolled_images().await?;
        progress.set_total(images.len());
        // An embedding without a picture cannot be computed again: that of this embedder stays.
        let (images, without): (Vec<_>, Vec<_>) = images.into_iter().partition(EnrolledImage::has_picture);
        let mut kept = self.embeddings_without_pictures(&without).await?.len();
        let mut left_out = without.len() - kept;
        progress.advance(without.len());
        for chunk in images.chunks(CHUNK) {
            progress.ensure_not_aborted()?;
            let embeddings = self.renewing_lock(running, self.embed(chunk)).await?;
            let found = embeddings.iter().filter(|embedding| embedding.is_some()).count();
            let rows = chunk
                .iter()
                .zip(embeddings)
                .map(|(image, face)| NewEmbedding {
                    image: image.id.clone(),
                    face: face.map(|EmbeddedFace { face, embedding }| (face, embedding)),
                })
                .collect();
            match self.database.replace_embeddings(embedder, rows, &job.id, self.lease).await {
                Err(StoreError::LeaseLost) => return Err(JobError::Aborted(AbortReason::Unblocked)),
                outcome => outcome?,
            }
            kept += found;
            left_out += chunk.len() - found;
            progress.advance(chunk.len());
        }
        self.database.scrub_journal().await?;
        let result = EmbeddingResult {
            embedder: embedder.to_owned(),
            images: count(kept)?,
            images_left_out: count(left_out)?,
            duration_ms: milliseconds(running.started.elapsed()),
        };
        tracing::info!(
            job = job.id,
            images = result.images,
            left_out = result.images_left_out,
            duration_ms = result.duration_ms,
            "recomputed the embeddings"
        );
        Ok(result)
    }

    /// Locks the dataset under the job's id, so that a job that is resumed has the lock at once.
    async fn lock_dataset(&self, RunningJob { job, progress, .. }: &RunningJob<'_>) -> Result<(), JobError> {
        for attempt in 0..=LOCK_RETRIES {
            if self.database.acquire_lease(Lease::Dataset, &job.id, self.lease).await? {
                return Ok(());
            }
            progress.ensure_not_aborted()?;
            if attempt < LOCK_RETRIES {
                tokio::time::sleep(LOCK_RETRY_INTERVAL).await;
            }
        }
        Err(JobError::Internal("the dataset's lease does not become free".into()))
    }

    /// Renews the lock of the dataset until `work` is done.
    async fn renewing_lock<T>(
        &self,
        RunningJob { job, progress, .. }: &RunningJob<'_>,
        work: impl Future<Output = Result<T, JobError>>,
    ) -> Result<T, JobError> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                outcome = &mut work => return outcome,
                () = tokio::time::sleep(self.lease / 3) => {
                    if let Ok(false) = self.database.renew_lease(Lease::Dataset, &job.id, self.lease).await {
                        progress.abort(AbortReason::Unblocked);
                    }
                }
            }
        }
    }

    /// Returns the enrolled face of each image; `None` if it is not found, the image was erased meanwhile, or its bytes are
    /// damaged.
    async fn embed(&self, images: &[EnrolledImage]) -> Result<Vec<Option<EmbeddedFace>>, JobError> {
        let mut files = Vec::with_capacity(images.len());
        for image in images {
            files.push(match self.blobs.get(&image.blob_key).await {
                Ok(bytes) => Some((image.id.clone(), image.face_box, bytes)),
                Err(StoreError::Blob(object_store::Error::NotFound { .. })) => None,
                Err(error) => return Err(error.into()),
            });
        }
        let pipeline = Arc::clone(&self.pipeline);
        blocking(move || {
            let embed = |file: &Option<(String, Option<[f32; 4]>, Bytes)>| {
                let Some((id, face_box, bytes)) = file else { return Ok(None) };
                match pipeline.embed_enrolled_face(bytes.clone(), *face_box) {
                    Ok(face) => Ok(face),
                    Err(ImageError::Decode(error)) => {
                        tracing::warn!(image = id, %error, "an enrolled image is damaged");
                        Ok(None)
                    }
                    Err(ImageError::Vision(error)) => Err(JobError::Internal(error.to_string())),
                }
            };
            files.iter().map(embed).collect()
        })
        .await?
    }
}

pub(super) fn count(n: usize) -> Result<i64, JobError> {
    i64::try_from(n).map_err(|error| JobError::Internal(error.to_string()))
}

pub(super) fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

pub(super) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JobError> {
    tokio::task::spawn_blocking(call).await.map_err(|error| JobError::Internal(error.to_string()))
}
