//! Trainings: jobs of the database, done one after the other beside recognition.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use facepipe_identify::{Model, Sample, TrainOptions};
use paperclip::actix::Apiv2Schema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};
use uuid::Uuid;

use crate::{
    recognise::{ActiveModel, load_tested},
    store::{
        Blobs, Database, StoreError,
        sql::{Job, JobStatus, NewModel},
    },
};

/// The kind of the job that trains on the stored embeddings.
pub const OPTIMIZED_TRAIN: &str = "optimized-train";

/// How often a waiting request looks whether its job ended, should it miss the signal.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What a training made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Apiv2Schema)]
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
    /// People who are not in the model: they have no embedding of this embedder.
    #[openapi(minimum = 0, example = "0")]
    pub people_without_embeddings: i64,
    /// How long it took, milliseconds.
    #[openapi(minimum = 0, example = "412")]
    pub duration_ms: i64,
}

/// Takes jobs and reports their end; clones share it.
#[derive(Clone)]
pub struct Trainer {
    shared: Arc<Shared>,
}

struct Shared {
    database: Database,
    blobs: Blobs,
    active: Arc<ActiveModel>,
    embedder: &'static str,
    wake: Notify,
    ended: watch::Sender<()>,
    stop: watch::Sender<bool>,
}

impl Trainer {
    /// Starts the task that does the jobs, beginning with those that an earlier process left.
    pub fn start(
        database: Database,
        blobs: Blobs,
        active: Arc<ActiveModel>,
        embedder: &'static str,
    ) -> (Self, JoinHandle<()>) {
        let (ended, stop) = (watch::Sender::new(()), watch::Sender::new(false));
        let shared = Arc::new(Shared { database, blobs, active, embedder, wake: Notify::new(), ended, stop });
        let trainer = Self { shared };
        let runner = trainer.clone();
        (trainer, tokio::spawn(async move { runner.run().await }))
    }

    /// Ends the task after the job that it is at.
    pub fn stop(&self) {
        self.shared.stop.send_replace(true);
    }

    /// Asks for a training on the stored embeddings. Returns the job's id.
    ///
    /// # Errors
    /// The database fails.
    pub async fn enqueue(&self) -> Result<String, StoreError> {
        let id = self.shared.database.add_job(OPTIMIZED_TRAIN).await?;
        self.shared.wake.notify_one();
        Ok(id)
    }

    /// Waits until a job ended. `None` where there is no such job.
    ///
    /// # Errors
    /// The database fails.
    pub async fn wait(&self, id: &str) -> Result<Option<Job>, StoreError> {
        let mut ended = self.shared.ended.subscribe();
        loop {
            match self.shared.database.job(id.to_owned()).await? {
                Some(job) if matches!(job.status, JobStatus::Queued | JobStatus::Running) => {
                    let _ = tokio::time::timeout(LOOK_AGAIN, ended.changed()).await;
                }
                other => return Ok(other),
            }
        }
    }

    async fn run(&self) {
        let mut stop = self.shared.stop.subscribe();
        match self.shared.database.requeue_abandoned_jobs().await {
            Ok(0) => (),
            Ok(jobs) => tracing::warn!(jobs, "took up jobs again that an earlier process left"),
            Err(error) => tracing::error!(%error, "cannot look for abandoned jobs"),
        }
        while !*stop.borrow() {
            match self.shared.database.claim_job().await {
                Ok(Some(job)) => self.run_job(job).await,
                Ok(None) => tokio::select! {
                    () = self.shared.wake.notified() => (),
                    _ = stop.changed() => (),
                },
                Err(error) => {
                    tracing::error!(%error, "cannot take a job");
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
            }
        }
    }

    async fn run_job(&self, job: Job) {
        let outcome = match self.train().await {
            Ok(result) => {
                tracing::info!(
                    job = job.id,
                    model_version = result.model_version,
                    people = result.people,
                    images = result.images,
                    duration_ms = result.duration_ms,
                    "trained a model"
                );
                serde_json::to_string(&result).map_err(|error| error.to_string())
            }
            Err(error) => {
                tracing::error!(job = job.id, error = format!("{error:#}"), "a training failed");
                Err(format!("{error:#}"))
            }
        };
        if let Err(error) = self.shared.database.finish_job(job.id, outcome).await {
            tracing::error!(%error, "cannot write down the end of a job");
        }
        self.shared.ended.send_replace(());
    }

    async fn train(&self) -> anyhow::Result<TrainingResult> {
        let shared = &self.shared;
        let begun = Instant::now();
        let set = shared.database.training_set(shared.embedder).await?;
        let embedder = shared.embedder;
        let (bytes, people, images) = tokio::task::spawn_blocking(move || {
            // Labels are row ids: the model's file names nobody, and a renamed person needs no training.
            let samples: Vec<Sample> = set
                .images
                .into_iter()
                .map(|image| Sample { label: image.person.to_string(), embedding: image.embedding })
                .collect();
            let model = Model::train(embedder, &samples, &TrainOptions::default())?;
            anyhow::Ok((model.to_bytes(), model.labels().len(), samples.len()))
        })
        .await??;
        let sha256 = hex(&Sha256::digest(&bytes));
        let blob_key = Blobs::model_key(&Uuid::now_v7().to_string());
        let bytes = Bytes::from(bytes);
        shared.blobs.put(&blob_key, bytes.clone()).await?;
        // Tried from the bytes that a restart would read, before it becomes the one that answers.
        let tested = load_tested(0, &bytes)?;
        let (people, images) = (i64::try_from(people)?, i64::try_from(images)?);
        let duration_ms = i64::try_from(begun.elapsed().as_millis())?;
        let row = NewModel { embedder, blob_key: blob_key.clone(), sha256, people, images, duration_ms };
        let version = match shared.database.add_active_model(row).await {
            Ok(version) => version,
            Err(error) => {
                let _ = shared.blobs.delete(&blob_key).await;
                return Err(error.into());
            }
        };
        shared.active.set(crate::recognise::VersionedModel { version, ..tested });
        Ok(TrainingResult {
            model_version: version,
            embedder: embedder.to_owned(),
            people,
            images,
            people_without_embeddings: set.people - people,
            duration_ms,
        })
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
