//! Keeps the active model of every replica in step with the database.

use std::{sync::Arc, time::Duration};

use facepipe_shared::hex;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    recognise::{ActiveModel, VersionedModel, load_tested},
    store::{
        Blobs, Database, StoreError,
        sql::{ModelRow, Topic},
    },
};

/// Loads models and activates them in this process.
pub struct ModelLoader {
    database: Database,
    blobs: Blobs,
    active: Arc<ActiveModel>,
    embedder: &'static str,
    /// The version that could not be loaded, so that this is logged once. The mutex serialises refreshes, so that the
    /// version read last is the active one.
    refused: Mutex<Option<i64>>,
}

/// Why a model cannot be used by this server.
#[derive(Debug, thiserror::Error)]
pub enum ModelProblem {
    /// The model is of another embedder.
    #[error("the model takes embeddings of {model}, this server computes those of {server}")]
    Embedder {
        /// The model's embedder.
        model: String,
        /// The server's embedder.
        server: &'static str,
    },
    /// The model's file is missing or damaged.
    #[error("the model's file cannot be used: {0}")]
    Unusable(String),
}

impl ModelLoader {
    /// Creates a loader of models for embeddings of `embedder`.
    pub fn new(database: Database, blobs: Blobs, active: Arc<ActiveModel>, embedder: &'static str) -> Self {
        Self { database, blobs, active, embedder, refused: Mutex::new(None) }
    }

    /// Returns the active model.
    pub fn active(&self) -> Option<Arc<VersionedModel>> {
        self.active.get()
    }

    /// Activates the model that the database names. A model that cannot be loaded leaves the previous one active, or none at
    /// the start, and is logged: people can still be enrolled, and a training repairs it.
    ///
    /// # Errors
    /// The database fails.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let mut refused = self.refused.lock().await;
        let Some(row) = self.database.active_model().await? else { return Ok(()) };
        let version = row.version;
        if self.active.get().is_some_and(|model| model.version == version) || *refused == Some(version) {
            return Ok(());
        }
        match self.load(&row).await {
            Ok(model) => {
                self.active.set(model);
                *refused = None;
                tracing::info!(model_version = version, "this model answers from now on");
            }
            Err(problem) => {
                *refused = Some(version);
                tracing::error!(model_version = version, %problem, "the active model cannot answer: train again");
            }
        }
        Ok(())
    }

    /// Loads a model and tests it.
    ///
    /// # Errors
    /// [`ModelProblem`].
    pub async fn load(&self, row: &ModelRow) -> Result<VersionedModel, ModelProblem> {
        if row.embedder != self.embedder {
            return Err(ModelProblem::Embedder { model: row.embedder.clone(), server: self.embedder });
        }
        let unusable = |problem: String| ModelProblem::Unusable(problem);
        let bytes = self.blobs.get(&row.blob_key).await.map_err(|error| unusable(error.to_string()))?;
        if hex(&Sha256::digest(&bytes)) != row.sha256 {
            return Err(unusable("its bytes are not those that were written".into()));
        }
        let (version, created_at) = (row.version, row.created_at);
        let loaded = tokio::task::spawn_blocking(move || load_tested(&bytes)).await;
        let model = loaded
            .map_err(|error| unusable(error.to_string()))?
            .map_err(|error| unusable(error.to_string()))?;
        let calibration = row.calibration().unwrap_or_else(|error| {
            tracing::error!(model_version = version, %error, "the embedder's fixed threshold counts: train again");
            None
        });
        Ok(VersionedModel { version, created_at, model, calibration })
    }

    /// Follows the database until `stop` is set: on a signal, and at least every `interval`.
    pub async fn follow(&self, interval: Duration, stop: CancellationToken) {
        let mut changes = self.database.changes(Topic::Model);
        while !stop.is_cancelled() {
            tokio::select! {
                _ = changes.changed() => (),
                () = tokio::time::sleep(interval) => (),
                () = stop.cancelled() => return,
            }
            if let Err(error) = self.refresh().await {
                tracing::warn!(%error, "cannot look which model is active");
            }
        }
    }
}
