//! Jobs: trainings, the recomputation of embeddings, clustering of unknown faces and searches for people in the past. They
//! wait in the database, and one process of the deployment does them, one after the other, beside recognition.

mod executor;
mod pairs;
mod past;
mod progress;
mod results;
mod training;

pub use results::{
    Conflict, ConflictingImage, EmbeddingResult, LeftOut, PastSearchResult, TrainingResult, WhyLeftOut,
};

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    domain::{Job, JobFailure, JobKind, JobOutcome, PersonRef},
    metrics::Metrics,
    model_loader::ModelLoader,
    recognise::{MatchThreshold, Pipeline},
    store::{
        Blobs, Database, StoreError,
        sql::{JobDirective, Lease, Topic},
    },
};
use executor::{JobError, JobExecutor, RunningJob};
use progress::{AbortReason, Progress};

/// How often the progress of a job is reported, and the answer says whether the job must stop.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);

/// How often a waiting request looks for the end of its job in case it misses the signal, and the pause after a failed
/// call of the database.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Queues jobs and waits for their end; clones share it.
#[derive(Clone)]
pub struct Trainer {
    shared: Arc<Shared>,
}

/// Settings of the trainer.
#[derive(Debug, Clone, Copy)]
pub struct TrainerOptions {
    /// How often it looks for jobs in case it misses the signal.
    pub poll: Duration,
    /// How long after a crash in the middle of a job another process resumes it.
    pub lease: Duration,
    /// Cosine from which images of two people are the same picture.
    pub same_picture: f32,
    /// Distance up to which two clusters of unknown faces are one.
    pub max_distance: f32,
    /// The share of strangers that a model may name, above 0 and below 1.
    pub target_fpir: f64,
    /// The score from which a face is known.
    pub threshold: MatchThreshold,
    /// Whether stored unknown faces are searched for people that a training adds.
    pub search_past: bool,
}

struct Shared {
    database: Database,
    executor: JobExecutor,
    options: TrainerOptions,
    /// The name of this process in leases.
    holder: String,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
}

impl Trainer {
    /// Creates a trainer, which queues jobs; after [`start`](Self::start), this process also does them.
    pub fn new(
        database: Database,
        blobs: Blobs,
        loader: Arc<ModelLoader>,
        pipeline: Arc<Pipeline>,
        options: TrainerOptions,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Self {
        let executor = JobExecutor::new(database.clone(), blobs, loader, pipeline, options);
        let holder = Uuid::new_v4().to_string();
        Self { shared: Arc::new(Shared { database, executor, options, holder, metrics, stop }) }
    }

    /// Starts the task that does jobs, first those that another process left unfinished.
    pub fn start(&self) -> JoinHandle<()> {
        let runner = self.clone();
        tokio::spawn(async move { runner.run().await })
    }

    /// Releases the lease in the middle of a job, so that another process resumes the job at once.
    pub async fn release_lease(&self) {
        let _ = self.shared.database.release_lease(Lease::Trainer, &self.shared.holder).await;
    }

    /// Queues a search of stored unknown faces for a person.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`], [`StoreError::PersonNotInModel`].
    pub async fn search_past(&self, who: &PersonRef) -> Result<Job, StoreError> {
        self.shared.database.search_past(who).await
    }

    /// Queues a job.
    ///
    /// # Errors
    /// The database fails.
    pub async fn enqueue(&self, kind: JobKind) -> Result<Job, StoreError> {
        self.shared.database.add_job(kind).await
    }

    /// Waits until a job has ended and its model is active in this process. `None` where no job has this id.
    ///
    /// # Errors
    /// The database fails.
    pub async fn wait(&self, id: &str) -> Result<Option<Job>, StoreError> {
        let mut changes = self.shared.database.changes(Topic::Jobs);
        loop {
            match self.shared.database.job(id).await? {
                Some(job) if !job.status.has_ended() => {
                    let _ = tokio::time::timeout(RETRY_INTERVAL, changes.changed()).await;
                }
                ended => {
                    self.shared.executor.loader.refresh().await?;
                    return Ok(ended);
                }
            }
        }
    }

    async fn run(&self) {
        let shared = &self.shared;
        let mut changes = shared.database.changes(Topic::Jobs);
        while !shared.stop.is_cancelled() {
            match self.next_job().await {
                Ok(Some(job)) => self.run_job(&job).await,
                Ok(None) => tokio::select! {
                    _ = changes.changed() => (),
                    () = tokio::time::sleep(shared.options.poll) => (),
                    () = shared.stop.cancelled() => (),
                },
                Err(error) => {
                    tracing::error!(%error, "cannot take a job");
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
            }
        }
    }

    async fn next_job(&self) -> Result<Option<Job>, StoreError> {
        let Shared { database, options, holder, .. } = &*self.shared;
        // Looking for jobs costs less than acquiring the lease.
        if !database.has_open_jobs().await?
            || !database.acquire_lease(Lease::Trainer, holder, options.lease).await?
        {
            return Ok(None);
        }
        let job = database.claim_job(holder, options.lease).await?;
        if job.is_none() {
            database.release_lease(Lease::Trainer, holder).await?;
        }
        Ok(job)
    }

    async fn run_job(&self, job: &Job) {
        let Shared { database, options, holder, metrics, .. } = &*self.shared;
        let progress = Arc::new(Progress::default());
        let result = self.execute(job, &progress).await;
        // A job that this process cannot finish stays marked as running, until the next holder of the lease resumes it.
        if let Some(outcome) = outcome_of(job, result) {
            let _ = database.report_job(&job.id, holder, options.lease, progress.images()).await;
            let status = outcome.status();
            match database.finish_job(&job.id, holder, options.lease, outcome).await {
                Ok(true) => metrics.job_finished(job.kind, status),
                // Another process has resumed it.
                Ok(false) => (),
                Err(error) => tracing::error!(job = job.id, %error, "cannot record the end of a job"),
            }
        }
        self.return_lease().await;
    }

    /// Does a job while reporting its progress.
    async fn execute(&self, job: &Job, progress: &Arc<Progress>) -> Result<String, JobError> {
        let Shared { database, executor, options, holder, .. } = &*self.shared;
        let progress = Arc::clone(progress);
        let running = RunningJob { job, holder, started: Instant::now(), progress };
        let progress = &running.progress;
        let work = executor.run(&running);
        tokio::pin!(work);
        let mut reports = tokio::time::interval(REPORT_INTERVAL.min(options.lease / 3));
        let mut reported = Instant::now();
        loop {
            tokio::select! {
                result = &mut work => return result,
                _ = reports.tick() => {
                    match database.report_job(&job.id, holder, options.lease, progress.images()).await {
                        Ok(directive) => {
                            reported = Instant::now();
                            match directive {
                                JobDirective::Continue => (),
                                JobDirective::Cancel => progress.abort(AbortReason::Cancelled),
                                JobDirective::LeaseLost => progress.abort(AbortReason::LeaseLost),
                            }
                        }
                        Err(error) => {
                            tracing::warn!(%error, "cannot record the progress of a job");
                            if reported.elapsed() > options.lease {
                                progress.abort(AbortReason::LeaseLost);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Releases the lease as soon as the database answers, so that no process waits for the end of a lease whose holder
    /// does nothing; one that has ended meanwhile needs no release.
    async fn return_lease(&self) {
        let Shared { database, options, holder, stop, .. } = &*self.shared;
        let started = Instant::now();
        while let Err(error) = database.release_lease(Lease::Trainer, holder).await {
            tracing::warn!(%error, "cannot release the trainer's lease yet");
            if stop.is_cancelled() || started.elapsed() > options.lease {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY_INTERVAL) => (),
                () = stop.cancelled() => return,
            }
        }
    }
}

/// Returns the outcome of a job that has ended; `None` for one that must be resumed.
fn outcome_of(job: &Job, result: Result<String, JobError>) -> Option<JobOutcome> {
    let (id, kind) = (&job.id, job.kind.as_str());
    Some(match result {
        Ok(result) => JobOutcome::Done(result),
        Err(JobError::Aborted(AbortReason::Cancelled)) => {
            tracing::info!(job = id, kind, "a job was cancelled");
            JobOutcome::Cancelled
        }
        Err(
            error @ (JobError::Aborted(AbortReason::LeaseLost)
            | JobError::Store(StoreError::LeaseLost | StoreError::Unavailable(_))),
        ) => {
            tracing::warn!(job = id, kind, %error, "abandoned a job, which will be resumed");
            return None;
        }
        Err(JobError::Aborted(AbortReason::Unblocked)) => {
            tracing::warn!(job = id, kind, "a job ended because the dataset was unblocked");
            let reason = "the dataset was unblocked before the job was done";
            JobOutcome::Failed(JobFailure::Explained(reason.into()))
        }
        Err(
            error @ (JobError::Identify(_)
            | JobError::Conflict { .. }
            | JobError::ClustersChanged
            | JobError::NoModel),
        ) => {
            tracing::error!(job = id, kind, %error, "a job failed");
            JobOutcome::Failed(JobFailure::Explained(error.to_string()))
        }
        Err(error @ (JobError::Store(_) | JobError::Internal(_))) => {
            tracing::error!(job = id, kind, %error, "a job failed");
            JobOutcome::Failed(JobFailure::Internal)
        }
    })
}
