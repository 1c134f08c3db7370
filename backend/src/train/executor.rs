//! What the jobs do.

use std::{
    collections::{HashMap, HashSet},
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use facepipe_identify::{IdentifyError, Model, Sample, TrainOptions};
use facepipe_shared::hex;
use paperclip::actix::Apiv2Schema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::pairs::same_pictures;
use crate::{
    person_id::PersonId,
    recognise::{ModelLoader, PictureError, Pipeline, VersionedModel, load_tested},
    store::{
        Blobs, Database, StoreError, ledger, now,
        sql::{EnrolledImage, EnrolledPerson, Job, JobKind, Lease, NewModel, TrainingImage},
    },
};

/// Images that are read, computed and written together: few, so that a job that is to end does so soon.
const CHUNK: usize = 4;

/// What a training made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Apiv2Schema)]
pub struct TrainingResult {
    /// The new model's version; it answers from now on.
    #[openapi(minimum = 1, example = "7")]
    pub model_version: i64,
    /// The embedder whose embeddings it takes.
    #[openapi(example = "mobilefacenet")]
    pub embedder: String,
    /// People that it tells apart.
    #[openapi(minimum = 0, example = "10")]
    pub people: i64,
    /// Images that it was trained on.
    #[openapi(minimum = 0, example = "60")]
    pub images: i64,
    /// People who are not in the model: no picture of them can be used. `people_left_out` says who.
    #[openapi(minimum = 0, example = "1")]
    pub people_without_embeddings: i64,
    /// Images that could not be used: no face was found on them, or their bytes are damaged. Always 0 where the
    /// stored embeddings were taken.
    #[openapi(minimum = 0, example = "0")]
    pub images_left_out: i64,
    /// Images that were left out since another person has nearly the same picture: nobody can tell whom it shows.
    #[serde(default)]
    #[openapi(minimum = 0, example = "2")]
    pub images_in_conflict: i64,
    /// Who is not in the model, by Face ID, the first 100 of `people_without_embeddings`.
    #[serde(default)]
    pub people_left_out: Vec<LeftOut>,
    /// Which images those of `images_in_conflict` are, the most similar first, at most 100 pairs. Erase the one of each
    /// that does not show its person.
    #[serde(default)]
    pub conflicts: Vec<Conflict>,
    /// How long it took, milliseconds.
    #[openapi(minimum = 0, example = "412")]
    pub duration_ms: i64,
}

/// Entries of a result's list at most.
const LISTED: usize = 100;

/// Somebody who is not in a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Apiv2Schema)]
pub struct LeftOut {
    /// What `/people/{person_id}` takes.
    #[openapi(example = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c")]
    pub person_id: String,
    /// The name that the person has now. Null for one who was erased since.
    #[openapi(example = "Ada Lovelace")]
    pub face_id: Option<String>,
    /// The person's images when it was trained, with a face or without.
    #[openapi(minimum = 0, example = "0")]
    pub images: i64,
    #[openapi(example = "no_images")]
    pub reason: WhyLeftOut,
}

/// Why somebody is not in a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Apiv2Schema)]
#[serde(rename_all = "snake_case")]
pub enum WhyLeftOut {
    /// Nothing is enrolled.
    NoImages,
    /// No enrolled image has an embedding of the model's embedder.
    NoEmbeddings,
    /// Another person has the same pictures.
    InConflict,
}

/// Two images of different people that are nearly the same picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Apiv2Schema)]
pub struct Conflict {
    /// The two.
    pub images: Vec<ConflictingImage>,
    /// Cosine between their embeddings.
    #[openapi(minimum = -1, maximum = 1, example = "1")]
    pub similarity: f32,
}

/// An image that is nearly the same picture as another person's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Apiv2Schema)]
pub struct ConflictingImage {
    /// What `/images/{image_id}` takes.
    #[openapi(example = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c")]
    pub image_id: String,
    /// Whom it is enrolled under, as `/people/{person_id}` takes it.
    #[openapi(example = "018f4c9a-0d2f-7e4a-8b3c-6e7f8a9b0c1d")]
    pub person_id: String,
    /// The name that the person has now. Null for one who was erased since.
    #[openapi(example = "Ada Lovelace")]
    pub face_id: Option<String>,
}

impl TrainingResult {
    /// Everybody whom the result is about: id, and where the name is to be put. Results are kept without names, so that
    /// an erasure and a renaming reach them.
    pub fn people_named(&mut self) -> impl Iterator<Item = (&str, &mut Option<String>)> {
        let left_out =
            self.people_left_out.iter_mut().map(|left| (left.person_id.as_str(), &mut left.face_id));
        let conflicting = self.conflicts.iter_mut().flat_map(|conflict| &mut conflict.images);
        left_out.chain(conflicting.map(|image| (image.person_id.as_str(), &mut image.face_id)))
    }
}

/// What computing the embeddings anew made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Apiv2Schema)]
pub struct EmbeddingResult {
    /// The network that made them.
    #[openapi(example = "mobilefacenet")]
    pub embedder: String,
    /// Images that have one now.
    #[openapi(minimum = 0, example = "60")]
    pub images: i64,
    /// Images that have none: no face was found on them, or their bytes are damaged.
    #[openapi(minimum = 0, example = "0")]
    pub images_left_out: i64,
    /// How long it took, milliseconds.
    #[openapi(minimum = 0, example = "412")]
    pub duration_ms: i64,
}

/// Why a job came to no result.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// It was asked to end.
    #[error("ended")]
    Aborted(AbortReason),
    /// Two images show the same face, under two people.
    #[error(
        "images {first} and {second} have the same embedding but belong to two people: erase one of them, then train \
         again"
    )]
    Conflict {
        /// The one image's id.
        first: String,
        /// The other's.
        second: String,
    },
    /// The embeddings cannot be trained on.
    #[error(transparent)]
    Identify(#[from] IdentifyError),
    /// Rows or blobs.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Anything else that went wrong.
    #[error("{0}")]
    Internal(String),
}

/// Why a job is to end before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortReason {
    /// Somebody asked for it.
    Cancelled,
    /// Another process may be doing the job by now.
    LeaseLost,
    /// The dataset was unblocked.
    Unblocked,
}

/// What the job and whoever reports about it share.
pub struct Progress {
    done: AtomicI64,
    /// Negative before the images were counted.
    total: AtomicI64,
    /// 0 to go on, else an [`AbortReason`].
    end: AtomicU8,
}

impl Default for Progress {
    fn default() -> Self {
        Self { done: AtomicI64::new(0), total: AtomicI64::new(-1), end: AtomicU8::new(0) }
    }
}

impl Progress {
    /// Images done, and images altogether once they are counted.
    pub fn images(&self) -> (i64, Option<i64>) {
        let total = self.total.load(Ordering::Relaxed);
        (self.done.load(Ordering::Relaxed), (total >= 0).then_some(total))
    }

    /// Asks the job to end. The first reason stays.
    pub fn abort(&self, reason: AbortReason) {
        let reason = match reason {
            AbortReason::Cancelled => 1,
            AbortReason::LeaseLost => 2,
            AbortReason::Unblocked => 3,
        };
        let _ = self.end.compare_exchange(0, reason, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Whether the job is to end.
    pub fn abort_reason(&self) -> Option<AbortReason> {
        match self.end.load(Ordering::Relaxed) {
            1 => Some(AbortReason::Cancelled),
            2 => Some(AbortReason::LeaseLost),
            3 => Some(AbortReason::Unblocked),
            _ => None,
        }
    }

    fn start(&self, images: usize) {
        self.total.store(i64::try_from(images).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    fn advance(&self, images: usize) {
        self.done.fetch_add(i64::try_from(images).unwrap_or(0), Ordering::Relaxed);
    }

    fn ensure_not_aborted(&self) -> Result<(), JobError> {
        self.abort_reason().map_or(Ok(()), |end| Err(JobError::Aborted(end)))
    }
}

/// What jobs work with.
pub struct JobExecutor {
    database: Database,
    blobs: Blobs,
    /// Has a new model answer.
    pub loader: Arc<ModelLoader>,
    pipeline: Arc<Pipeline>,
    lease: Duration,
    /// Cosine from which images of two people are the same picture.
    same_picture: f32,
}

/// What a model is made of.
struct Samples {
    images: Vec<TrainingImage>,
    /// Everybody in the dataset.
    people: Vec<EnrolledPerson>,
    left_out: i64,
}

/// Images of two people that are the same picture, and whose they are.
struct ConflictingPair {
    images: [(String, i64); 2],
    similarity: f32,
}

impl JobExecutor {
    /// For the jobs of one process. `lease`: how long leases last unless they are renewed. `same_picture`: cosine from
    /// which images of two people are the same picture.
    pub fn new(
        database: Database,
        blobs: Blobs,
        loader: Arc<ModelLoader>,
        pipeline: Arc<Pipeline>,
        lease: Duration,
        same_picture: f32,
    ) -> Self {
        Self { database, blobs, loader, pipeline, lease, same_picture }
    }

    /// Does a job. Returns its result as JSON.
    ///
    /// # Errors
    /// Whatever kept it from being done.
    pub async fn run(&self, job: &Job, holder: &str, progress: &Arc<Progress>) -> Result<String, JobError> {
        let begun = Instant::now();
        let json = match job.kind {
            JobKind::OptimizedTrain => {
                let set = self.database.training_set(self.embedder()).await?;
                let samples = Samples { images: set.images, people: set.people, left_out: 0 };
                progress.start(samples.images.len());
                serde_json::to_string(&self.train(samples, begun, job, holder, progress, true).await?)
            }
            JobKind::Train => {
                let samples = self.compute_samples(progress).await?;
                serde_json::to_string(&self.train(samples, begun, job, holder, progress, false).await?)
            }
            JobKind::GenerateEmb => {
                let result = self.generate(begun, job, progress).await;
                // Given back whatever came of it; a lease that is lost is not ours to give.
                let released = self.database.release_lease(Lease::Dataset, &job.id).await;
                let result = result?;
                released?;
                serde_json::to_string(&result)
            }
        };
        json.map_err(|error| JobError::Internal(error.to_string()))
    }

    fn embedder(&self) -> &'static str {
        self.pipeline.embedder().name()
    }

    /// Trains, stores the model, has it answer, and removes the models that know somebody who was erased.
    async fn train(
        &self,
        samples: Samples,
        begun: Instant,
        job: &Job,
        holder: &str,
        progress: &Arc<Progress>,
        counts: bool,
    ) -> Result<TrainingResult, JobError> {
        let embedder = self.embedder();
        let Samples { images, people: enrolled, left_out } = samples;
        let with_embeddings: HashSet<i64> = images.iter().map(|image| image.person).collect();
        let (watched, same_picture) = (Arc::clone(progress), self.same_picture);
        let (images, contradictions) =
            blocking(move || without_contradictions(images, same_picture, &watched)).await??;
        self.note(&contradictions).await?;
        let watched = Arc::clone(progress);
        // Where embeddings were computed anew, everything else is, too.
        let previous = if counts { self.loader.active() } else { None };
        let (bytes, people, images) =
            blocking(move || fit(embedder, images, previous.as_deref(), &watched, counts)).await??;
        progress.ensure_not_aborted()?;

        let sha256 = hex(&Sha256::digest(&bytes));
        let blob_key = Blobs::model_key(&Uuid::now_v7().to_string());
        // Tried from the bytes that every replica will read, before it becomes the one that answers.
        load_tested(0, now(), &bytes)?;
        self.blobs.put(&blob_key, Bytes::from(bytes)).await?;
        let known = people.len();
        let number = |n: usize| i64::try_from(n).map_err(|error| JobError::Internal(error.to_string()));
        let in_model: HashSet<i64> = people.iter().copied().collect();
        let mut people_left_out: Vec<LeftOut> = enrolled
            .iter()
            .filter(|person| !in_model.contains(&person.row))
            .map(|person| left_out_person(person, &with_embeddings))
            .collect();
        let people_without_embeddings = number(people_left_out.len())?;
        people_left_out.truncate(LISTED);
        let in_conflict: HashSet<&str> = contradictions
            .iter()
            .flat_map(|contradiction| contradiction.images.iter().map(|(image, _)| image.as_str()))
            .collect();
        let result = TrainingResult {
            model_version: 0,
            embedder: embedder.to_owned(),
            people: number(known)?,
            images: number(images)?,
            people_without_embeddings,
            images_left_out: left_out,
            images_in_conflict: number(in_conflict.len())?,
            people_left_out,
            conflicts: conflicts(&contradictions, &enrolled),
            duration_ms: milliseconds(begun.elapsed()),
        };
        let TrainingResult { images, duration_ms, .. } = result;
        let row = NewModel { embedder, blob_key: blob_key.clone(), sha256, people, images, duration_ms };
        let version = match self.database.add_active_model(row, holder, self.lease).await {
            Ok(version) => version,
            Err(error) => {
                let _ = self.blobs.delete(&blob_key).await;
                return Err(error.into());
            }
        };
        self.loader.refresh().await?;
        self.purge().await;
        let result = TrainingResult { model_version: version, ..result };
        tracing::info!(
            job = job.id,
            model_version = version,
            people = result.people,
            images = result.images,
            people_left_out = result.people_without_embeddings,
            images_in_conflict = result.images_in_conflict,
            duration_ms,
            "trained a model"
        );
        Ok(result)
    }

    /// Writes down which images contradict each other, for whoever mends the dataset; also where nothing comes of the
    /// training.
    async fn note(&self, contradictions: &[ConflictingPair]) -> Result<(), JobError> {
        let pair = |contradiction: &ConflictingPair| {
            let [(first, _), (second, _)] = &contradiction.images;
            (first.clone(), second.clone(), contradiction.similarity)
        };
        let pairs = contradictions.iter().take(NOTED).map(pair).collect();
        Ok(self.database.replace_similar(pairs).await?)
    }

    /// Models that know an erased person have done their service once another one answers.
    async fn purge(&self) {
        match ledger::purge_models(&self.database, &self.blobs).await {
            Ok(0) => (),
            Ok(models) => tracing::info!(models, "removed models that knew somebody who was erased"),
            Err(error) => tracing::error!(
                %error,
                "cannot remove models that know somebody who was erased; the next training will"
            ),
        }
    }

    /// The embeddings of all images, computed and not stored.
    async fn compute_samples(&self, progress: &Arc<Progress>) -> Result<Samples, JobError> {
        let (images, people) = self.database.enrolled_images().await?;
        progress.start(images.len());
        let mut samples = Samples { images: Vec::with_capacity(images.len()), people, left_out: 0 };
        for chunk in images.chunks(CHUNK) {
            progress.ensure_not_aborted()?;
            for (image, embedding) in chunk.iter().zip(self.embed(chunk).await?) {
                match embedding {
                    Some(embedding) => samples.images.push(TrainingImage {
                        id: image.id.clone(),
                        person: image.person,
                        embedding,
                    }),
                    None => samples.left_out += 1,
                }
            }
            progress.advance(chunk.len());
        }
        Ok(samples)
    }

    /// Computes all embeddings anew and stores them, while nothing of the dataset may change.
    async fn generate(
        &self,
        begun: Instant,
        job: &Job,
        progress: &Arc<Progress>,
    ) -> Result<EmbeddingResult, JobError> {
        // A job that died held the lease under its own id, so it is ours again.
        let mut tries = 0;
        while !self.database.acquire_lease(Lease::Dataset, &job.id, self.lease).await? {
            progress.ensure_not_aborted()?;
            tries += 1;
            if tries > 60 {
                return Err(JobError::Internal("the dataset's lease does not become free".into()));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let embedder = self.embedder();
        let (images, _) = self.database.enrolled_images().await?;
        progress.start(images.len());
        let (mut kept, mut left_out) = (0, 0);
        for chunk in images.chunks(CHUNK) {
            progress.ensure_not_aborted()?;
            let embeddings = self.renewing(progress, job, self.embed(chunk)).await?;
            let found = embeddings.iter().filter(|embedding| embedding.is_some()).count();
            let rows = chunk.iter().map(|image| image.id.clone()).zip(embeddings).collect();
            match self.database.replace_embeddings(embedder, rows, &job.id, self.lease).await {
                Err(StoreError::LeaseLost) => return Err(JobError::Aborted(AbortReason::Unblocked)),
                outcome => outcome?,
            }
            kept += found;
            left_out += chunk.len() - found;
            progress.advance(chunk.len());
        }
        self.database.scrub_journal().await?;
        let number = |n: usize| i64::try_from(n).map_err(|error| JobError::Internal(error.to_string()));
        let result = EmbeddingResult {
            embedder: embedder.to_owned(),
            images: number(kept)?,
            images_left_out: number(left_out)?,
            duration_ms: milliseconds(begun.elapsed()),
        };
        tracing::info!(
            job = job.id,
            images = result.images,
            left_out = result.images_left_out,
            duration_ms = result.duration_ms,
            "computed the embeddings anew"
        );
        Ok(result)
    }

    /// Puts off the end of the dataset's lease while `work` takes its time.
    async fn renewing<T>(
        &self,
        progress: &Progress,
        job: &Job,
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

    /// The embedding of the largest face of each image; none where there is no face, where the image was erased
    /// meanwhile, or where its bytes are damaged.
    async fn embed(&self, images: &[EnrolledImage]) -> Result<Vec<Option<Vec<f32>>>, JobError> {
        let mut pictures = Vec::with_capacity(images.len());
        for image in images {
            pictures.push(match self.blobs.get(&image.blob_key).await {
                Ok(bytes) => Some((image.id.clone(), bytes)),
                Err(StoreError::Blob(object_store::Error::NotFound { .. })) => None,
                Err(error) => return Err(error.into()),
            });
        }
        let pipeline = Arc::clone(&self.pipeline);
        blocking(move || {
            let embed = |picture: &Option<(String, Bytes)>| {
                let Some((id, bytes)) = picture else { return Ok(None) };
                match pipeline.embed_largest_face(bytes.clone()) {
                    Ok(embedding) => Ok(embedding),
                    Err(PictureError::Decode(error)) => {
                        tracing::warn!(image = id, %error, "an enrolled image is damaged");
                        Ok(None)
                    }
                    Err(PictureError::Vision(error)) => Err(JobError::Internal(error.to_string())),
                }
            };
            pictures.iter().map(embed).collect()
        })
        .await?
    }
}

/// Pairs of images that are written down at most.
const NOTED: usize = 10_000;

/// The images that show one person each as far as can be told, and those that are two people's, the most similar first.
fn without_contradictions(
    images: Vec<TrainingImage>,
    same_picture: f32,
    progress: &Progress,
) -> Result<(Vec<TrainingImage>, Vec<ConflictingPair>), JobError> {
    let compared: Vec<(i64, &[f32])> =
        images.iter().map(|image| (image.person, image.embedding.as_slice())).collect();
    let pairs = same_pictures(&compared, same_picture, &|| progress.abort_reason().is_none());
    let mut pairs =
        pairs.ok_or_else(|| JobError::Aborted(progress.abort_reason().unwrap_or(AbortReason::Cancelled)))?;
    pairs.sort_by(|one, other| other.similarity.total_cmp(&one.similarity));
    let side = |place: usize| images.get(place).map(|image| (image.id.clone(), image.person));
    let contradictions = pairs
        .iter()
        .filter_map(|pair| {
            let images = [side(pair.first)?, side(pair.second)?];
            Some(ConflictingPair { images, similarity: pair.similarity })
        })
        .collect();
    let out: HashSet<usize> = pairs.iter().flat_map(|pair| [pair.first, pair.second]).collect();
    let kept = images.into_iter().enumerate().filter(|(place, _)| !out.contains(place));
    Ok((kept.map(|(_, image)| image).collect(), contradictions))
}

fn left_out_person(person: &EnrolledPerson, with_embeddings: &HashSet<i64>) -> LeftOut {
    let reason = if person.images == 0 {
        WhyLeftOut::NoImages
    } else if with_embeddings.contains(&person.row) {
        WhyLeftOut::InConflict
    } else {
        WhyLeftOut::NoEmbeddings
    };
    LeftOut { person_id: person.id.to_string(), face_id: None, images: person.images, reason }
}

fn conflicts(contradictions: &[ConflictingPair], enrolled: &[EnrolledPerson]) -> Vec<Conflict> {
    let ids: HashMap<i64, PersonId> = enrolled.iter().map(|person| (person.row, person.id)).collect();
    let image = |(image_id, person): &(String, i64)| {
        let person_id = ids.get(person)?.to_string();
        Some(ConflictingImage { image_id: image_id.clone(), person_id, face_id: None })
    };
    let conflict = |contradiction: &ConflictingPair| {
        let images = contradiction.images.iter().map(image).collect::<Option<Vec<_>>>()?;
        Some(Conflict { images, similarity: contradiction.similarity })
    };
    contradictions.iter().take(LISTED).filter_map(conflict).collect()
}

/// The model's bytes, the people that it knows, and the number of images. It starts from what `previous` came to. With
/// `counts`, people that are trained count as progress; else the images were counted before.
fn fit(
    embedder: &'static str,
    images: Vec<TrainingImage>,
    previous: Option<&VersionedModel>,
    progress: &Progress,
    counts: bool,
) -> Result<(Vec<u8>, Vec<i64>, usize), JobError> {
    // Labels are row ids: the model's file names nobody, and a renamed person needs no training.
    let (ids, samples): (Vec<String>, Vec<Sample>) = images
        .into_iter()
        .map(|TrainingImage { id, person, embedding }| (id, Sample { label: person.to_string(), embedding }))
        .unzip();
    let watch = |done: usize| {
        if counts {
            progress.done.fetch_max(i64::try_from(done).unwrap_or(0), Ordering::Relaxed);
        }
        match progress.abort_reason() {
            Some(_) => ControlFlow::Break(()),
            None => ControlFlow::Continue(()),
        }
    };
    let options = TrainOptions::default();
    let trained = match previous {
        Some(previous) => previous.model.retrain(embedder, &samples, &options, &watch),
        None => Model::train_with_progress(embedder, &samples, &options, &watch),
    };
    let model = match trained {
        Ok(model) => model,
        Err(IdentifyError::Cancelled) => {
            return Err(JobError::Aborted(progress.abort_reason().unwrap_or(AbortReason::Cancelled)));
        }
        Err(IdentifyError::Conflict { first, second }) => {
            let id = |position: usize| ids.get(position).cloned().unwrap_or_default();
            return Err(JobError::Conflict { first: id(first), second: id(second) });
        }
        Err(error) => return Err(error.into()),
    };
    let person =
        |label: &String| label.parse().map_err(|_| JobError::Internal("a label that is no row id".into()));
    let people = model.labels().iter().map(person).collect::<Result<_, _>>()?;
    Ok((model.to_bytes(), people, samples.len()))
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Result<T, JobError> {
    tokio::task::spawn_blocking(call).await.map_err(|error| JobError::Internal(error.to_string()))
}
