//! Work in the background: training, sending results, following changes, sweeping, retention, filling the cohort and
//! clustering unknown faces.

use std::{sync::Arc, time::Duration};

use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::Services;
use crate::{
    access::AccessControl,
    audit::run_trimming,
    cohort::{CohortEmbedder, run_filling},
    config::Config,
    outbox::{self, OutboxOptions},
    private_files,
    store::{
        access_follower::follow_access, retention::run_retention, sweep::run_sweeps,
        track_expiry::run_track_expiry,
    },
    tls::ServerTls,
    train::Trainer,
    unknowns::{ClusteringOptions, run_clustering, run_picture_retention},
};

/// The running tasks.
pub struct Background {
    stop: CancellationToken,
    trainer: Trainer,
    /// Where this process does jobs.
    training: Option<JoinHandle<()>>,
    /// Where there is an external API.
    sending: Option<JoinHandle<()>>,
    /// Where the audit log is kept.
    writing_audit: Option<JoinHandle<()>>,
    /// All others. A `JoinSet` rather than tokio-util's `TaskTracker`, which cannot abort a task that takes too long.
    others: JoinSet<()>,
}

impl Background {
    /// Starts the tasks of the process's role.
    ///
    /// # Errors
    /// The database fails, or the HTTP client of the external API cannot be made.
    pub async fn start(
        config: &Config,
        services: &Services,
        writing_audit: Option<JoinHandle<()>>,
        access: &Arc<AccessControl>,
        tls: Option<Arc<ServerTls>>,
    ) -> anyhow::Result<Self> {
        let Services { database, blobs, pipeline, loader, trainer, metrics, stop, .. } = services;
        private_files::mend_in_background(config.private_paths()?, stop.clone());
        let mut others = JoinSet::new();
        let poll = config.deployment.poll_interval();
        others.spawn({
            let (loader, stop) = (Arc::clone(loader), stop.clone());
            async move { loader.follow(poll, stop).await }
        });
        if let Some(file) = access.file() {
            others.spawn(Arc::clone(file).watch(stop.clone()));
        }
        if let Some(tls) = tls {
            others.spawn(tls.watch(stop.clone()));
        }
        others.spawn(follow_access(database.clone(), Arc::clone(access), stop.clone()));
        let (mut training, mut sending) = (None, None);
        if config.deployment.role.manages() {
            training = Some(trainer.start());
            others.spawn(run_sweeps(
                database.clone(),
                blobs.clone(),
                config.storage.sweep(),
                Arc::clone(metrics),
                stop.clone(),
            ));
            others.spawn(run_retention(
                database.clone(),
                config.retention.options(),
                Arc::clone(metrics),
                stop.clone(),
            ));
            others.spawn(run_filling(
                database.clone(),
                CohortEmbedder::of(pipeline.embedder()),
                config.cohort.options(),
                Arc::clone(metrics),
                stop.clone(),
            ));
            others.spawn(run_picture_retention(
                database.clone(),
                blobs.clone(),
                config.unknowns.picture_max_age(),
                stop.clone(),
            ));
            if config.unknowns.group_unknowns {
                let embedder = services.pipeline.embedder();
                let options = ClusteringOptions {
                    embedder: embedder.name(),
                    dimensions: embedder.dimensions(),
                    max_distance: services.max_distance,
                    regroup_hour: config.unknowns.unknown_regroup_hour,
                    poll,
                    lease: config.deployment.lease(),
                };
                others.spawn(run_clustering(database.clone(), options, Arc::clone(metrics), stop.clone()));
            }
            // The task also runs without a window, since an earlier start may have had one.
            others.spawn(run_track_expiry(
                database.clone(),
                config.recognition.track_window(),
                Arc::clone(metrics),
                stop.clone(),
            ));
            // Where the log is off as well: it may have been on before.
            others.spawn(run_trimming(database.clone(), config.audit.max_age(), stop.clone()));
            sending = start_sending(config, services).await?;
        }
        Ok(Self { stop: stop.clone(), trainer: trainer.clone(), training, sending, writing_audit, others })
    }

    /// Tells all tasks to end and waits until they have, `patience` at most. The next start, or another server, resumes
    /// aborted work.
    pub async fn stop(mut self, patience: Duration) {
        self.stop.cancel();
        let training = async {
            if let Some(training) = self.training
                && tokio::time::timeout(patience, training).await.is_err()
            {
                self.trainer.release_lease().await;
                tracing::warn!("stopped during a job; it will be resumed");
            }
        };
        let sending = async {
            if let Some(sending) = self.sending
                && tokio::time::timeout(patience, sending).await.is_err()
            {
                tracing::warn!("stopped while results were being sent; they will be sent again");
            }
        };
        let auditing = async {
            if let Some(writing) = self.writing_audit
                && tokio::time::timeout(patience, writing).await.is_err()
            {
                tracing::warn!(
                    "stopped while the audit log was being written: refusals of the last minute may be missing"
                );
            }
        };
        let others = async {
            let all = async { while self.others.join_next().await.is_some() {} };
            if tokio::time::timeout(patience, all).await.is_err() {
                self.others.shutdown().await;
                tracing::warn!("stopped during work in the background; the next start resumes it");
            }
        };
        tokio::join!(training, sending, auditing, others);
    }
}

/// Starts sending results to the external API. Without one, drops results that are too old for any.
async fn start_sending(config: &Config, services: &Services) -> anyhow::Result<Option<JoinHandle<()>>> {
    let Services { database, metrics, stop, .. } = services;
    let max_age = config.results.max_age();
    let Some(url) = config.results.results_url()? else {
        let results = database.drop_messages_older_than(max_age, Vec::new()).await?;
        if results > 0 {
            metrics.outbox_dropped(results);
            tracing::warn!(results, "dropped old results: there is no external API (setting results_url)");
        }
        return Ok(None);
    };
    let options = OutboxOptions {
        url,
        max_age,
        timeout: config.results.timeout(),
        poll: config.deployment.poll_interval(),
        lease: config.deployment.lease(),
    };
    Ok(Some(outbox::start(database.clone(), options, Arc::clone(metrics), stop.clone())?))
}
