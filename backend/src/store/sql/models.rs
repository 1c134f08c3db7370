//! Trained models, and which one answers.

use diesel::{dsl::max, prelude::*};

use super::{
    Database,
    schema::{active_model, models},
};
use crate::store::{StoreError, now};

/// The row of a model.
pub struct ModelRow {
    /// Counts up from 1.
    pub version: i64,
    /// Which network's embeddings it takes.
    pub embedder: String,
    /// Where its bytes are.
    pub blob_key: String,
    /// SHA-256 of its bytes, hexadecimal.
    pub sha256: String,
}

/// A model to be stored, whose bytes are in the blob store already.
pub struct NewModel {
    /// Which network's embeddings it takes.
    pub embedder: &'static str,
    /// Where its bytes are.
    pub blob_key: String,
    /// SHA-256 of its bytes, hexadecimal.
    pub sha256: String,
    /// People that it tells apart.
    pub people: i64,
    /// Images that it was trained on.
    pub images: i64,
    /// How long the training took.
    pub duration_ms: i64,
}

impl Database {
    /// The model that answers, if one was trained.
    ///
    /// # Errors
    /// The database fails.
    pub async fn active_model(&self) -> Result<Option<ModelRow>, StoreError> {
        self.read(|connection| {
            let row = active_model::table
                .inner_join(models::table)
                .select((models::version, models::embedder, models::blob_key, models::sha256))
                .first::<(i64, String, String, String)>(connection)
                .optional()?;
            Ok(row.map(|(version, embedder, blob_key, sha256)| ModelRow {
                version,
                embedder,
                blob_key,
                sha256,
            }))
        })
        .await
    }

    /// Stores a model under the next version and makes it the one that answers. Returns its version.
    ///
    /// # Errors
    /// The database fails.
    pub async fn add_active_model(&self, model: NewModel) -> Result<i64, StoreError> {
        self.write(move |connection| {
            let last: Option<i64> = models::table.select(max(models::version)).first(connection)?;
            let version = last.unwrap_or(0) + 1;
            diesel::insert_into(models::table)
                .values((
                    models::version.eq(version),
                    models::embedder.eq(model.embedder),
                    models::blob_key.eq(&model.blob_key),
                    models::sha256.eq(&model.sha256),
                    models::people.eq(model.people),
                    models::images.eq(model.images),
                    models::duration_ms.eq(model.duration_ms),
                    models::created_at.eq(now()),
                ))
                .execute(connection)?;
            let changed = diesel::update(active_model::table)
                .set(active_model::version.eq(version))
                .execute(connection)?;
            if changed == 0 {
                diesel::insert_into(active_model::table)
                    .values((active_model::slot.eq(1), active_model::version.eq(version)))
                    .execute(connection)?;
            }
            Ok(version)
        })
        .await
    }
}
