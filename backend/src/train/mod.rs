//! Jobs: trainings and the computing anew of embeddings. They wait in the database, and one process of the deployment
//! does them, one after the other, beside recognition.

mod executor;
mod pairs;

pub use executor::{Conflict, ConflictingImage, EmbeddingResult, LeftOut, TrainingResult, WhyLeftOut};

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinHandle};
use uuid::Uuid;

use crate::{
    metrics::Metrics,
    recognise::{ModelLoader, Pipeline},
    store::{
        Blobs, Database, StoreError,
        sql::{Job, JobDirective, JobKind, JobOutcome, Lease, Topic},
    },
};
use executor::{AbortReason, JobError, JobExecutor, Progress};

/// How often the progress of a job is written down, and looked whether it is to end.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);

/// What is told of a failure whose reason is nobody's business but the administrator's.
pub const INTERNAL: &str = "internal error";

/// How often a waiting request looks whether its job ended, should it miss the signal.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Takes jobs and reports their end; clones share it.
#[derive(Clone)]
pub struct Trainer {
    shared: Arc<Shared>,
}

/// How the trainer goes about it.
#[derive(Debug, Clone, Copy)]
pub struct TrainerOptions {
    /// How often it looks for jobs, should it miss the signal.
    pub poll: Duration,
    /// How long after the end of a process that did a job another one takes it up.
    pub lease: Duration,
    /// Cosine between the embeddings of two people's images from which they are the same picture.
    pub same_picture: f32,
}

struct Shared {
    database: Database,
    executor: JobExecutor,
    options: TrainerOptions,
    /// Names this process in leases.
    holder: String,
    metrics: Arc<Metrics>,
    stop: watch::Sender<bool>,
}

impl Trainer {
    /// Takes jobs; [`start`](Self::start) has this process do some.
    pub fn new(
        database: Database,
        blobs: Blobs,
        loader: Arc<ModelLoader>,
        pipeline: Arc<Pipeline>,
        options: TrainerOptions,
        metrics: Arc<Metrics>,
    ) -> Self {
        let executor =
            JobExecutor::new(database.clone(), blobs, loader, pipeline, options.lease, options.same_picture);
        let (holder, stop) = (Uuid::new_v4().to_string(), watch::Sender::new(false));
        Self { shared: Arc::new(Shared { database, executor, options, holder, metrics, stop }) }
    }

    /// Starts the task that does the jobs, beginning with those that another process left.
    pub fn start(&self) -> JoinHandle<()> {
        let runner = self.clone();
        tokio::spawn(async move { runner.run().await })
    }

    /// Ends the task after the job that it is at.
    pub fn stop(&self) {
        self.shared.stop.send_replace(true);
    }

    /// Gives the lease back in the middle of a job, so that another process takes the job up at once.
    pub async fn give_up(&self) {
        let _ = self.shared.database.release_lease(Lease::Trainer, &self.shared.holder).await;
    }

    /// Asks for a job.
    ///
    /// # Errors
    /// The database fails.
    pub async fn enqueue(&self, kind: JobKind) -> Result<Job, StoreError> {
        self.shared.database.add_job(kind).await
    }

    /// Waits until a job ended, and until the model that it made answers here. `None` where there is no such job.
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
        let mut stop = shared.stop.subscribe();
        let mut changes = shared.database.changes(Topic::Jobs);
        while !*stop.borrow() {
            match self.next_job().await {
                Ok(Some(job)) => self.run_job(&job).await,
                Ok(None) => tokio::select! {
                    _ = changes.changed() => (),
                    () = tokio::time::sleep(shared.options.poll) => (),
                    _ = stop.changed() => (),
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
        // Looking costs less than taking the lease.
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
        let outcome = {
            let work = self.shared.executor.run(job, holder, &progress);
            tokio::pin!(work);
            let mut beat = tokio::time::interval(REPORT_INTERVAL.min(options.lease / 3));
            let mut heard = Instant::now();
            loop {
                tokio::select! {
                    outcome = &mut work => break outcome,
                    _ = beat.tick() => {
                        match database.report_job(&job.id, holder, options.lease, progress.images()).await {
                            Ok(order) => {
                                heard = Instant::now();
                                match order {
                                    JobDirective::Continue => (),
                                    JobDirective::Cancel => progress.abort(AbortReason::Cancelled),
                                    JobDirective::LeaseLost => progress.abort(AbortReason::LeaseLost),
                                }
                            }
                            Err(error) => {
                                tracing::warn!(%error, "cannot write down a job's progress");
                                if heard.elapsed() > options.lease {
                                    progress.abort(AbortReason::LeaseLost);
                                }
                            }
                        }
                    }
                }
            }
        };
        let (id, kind) = (&job.id, job.kind.as_str());
        let outcome = match outcome {
            Ok(result) => JobOutcome::Done(result),
            Err(JobError::Aborted(AbortReason::Cancelled)) => {
                tracing::info!(job = id, kind, "a job was cancelled");
                JobOutcome::Cancelled
            }
            // The job stays marked as running until the lease has ended, and is then taken up again.
            Err(
                error @ (JobError::Aborted(AbortReason::LeaseLost)
                | JobError::Store(StoreError::LeaseLost | StoreError::Unavailable(_))),
            ) => {
                tracing::warn!(job = id, kind, %error, "gave a job up, to be taken up again");
                return;
            }
            Err(JobError::Aborted(AbortReason::Unblocked)) => {
                tracing::warn!(job = id, kind, "a job ended because the dataset was unblocked");
                JobOutcome::Failed("the dataset was unblocked before the job was done".into())
            }
            Err(error @ (JobError::Identify(_) | JobError::Conflict { .. })) => {
                tracing::error!(job = id, kind, %error, "a job failed");
                JobOutcome::Failed(error.to_string())
            }
            Err(error @ (JobError::Store(_) | JobError::Internal(_))) => {
                tracing::error!(job = id, kind, %error, "a job failed");
                JobOutcome::Failed(INTERNAL.into())
            }
        };
        let _ = database.report_job(&job.id, holder, options.lease, progress.images()).await;
        let status = outcome.status();
        match database.finish_job(&job.id, holder, options.lease, outcome).await {
            Ok(true) => metrics.job_finished(job.kind, status),
            // Somebody else took it up.
            Ok(false) => (),
            Err(error) => tracing::error!(job = job.id, %error, "cannot write down the end of a job"),
        }
        if let Err(error) = database.release_lease(Lease::Trainer, holder).await {
            tracing::warn!(%error, "cannot give the trainer's lease back");
        }
    }
}
