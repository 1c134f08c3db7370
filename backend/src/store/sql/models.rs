//! Trained models, the people they know, and which one is active.

use std::time::Duration;

use diesel::{
    dsl::{exists, max, not},
    prelude::*,
    result::{DatabaseErrorKind, Error},
};

use super::{
    AnyConnection, Database, MAX_VARIABLES,
    leases::{Lease, renew},
    schema::{active_model, model_people, models, people},
    signals::{Topic, notify_other_processes},
};
use crate::{
    domain::{Micros, ModelCalibration, now},
    store::StoreError,
};

#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = models)]
pub struct ModelRow {
    /// Counts up from 1.
    pub version: i64,
    /// The network whose embeddings it takes.
    pub embedder: String,
    pub blob_key: String,
    /// SHA-256 of its bytes, hexadecimal.
    pub sha256: String,
    /// The number of people it knows.
    pub people: i64,
    /// The number of images it was trained on.
    pub images: i64,
    /// Duration of the training, milliseconds.
    pub duration_ms: i64,
    /// The time of the training.
    pub created_at: Micros,
    /// How its threshold was calibrated, JSON; absent from models of earlier versions.
    pub calibration: Option<String>,
}

/// A model to store; its blob is stored already.
pub struct NewModel {
    /// The network whose embeddings it takes.
    pub embedder: &'static str,
    pub blob_key: String,
    /// SHA-256 of its bytes, hexadecimal.
    pub sha256: String,
    /// Row ids of the people it knows.
    pub people: Vec<i64>,
    /// The number of images it was trained on.
    pub images: i64,
    /// Duration of the training, milliseconds.
    pub duration_ms: i64,
    /// How its threshold was calibrated, JSON without names; absent if it knows nobody.
    pub calibration: Option<String>,
}

impl ModelRow {
    /// Returns how the model's threshold was calibrated; `None` for models of earlier versions and models without
    /// people.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn calibration(&self) -> Result<Option<ModelCalibration>, StoreError> {
        let read = self.calibration.as_deref().map(serde_json::from_str).transpose();
        read.map_err(|error| StoreError::Damaged(format!("the calibration of a model: {error}")))
    }
}

impl Database {
    /// Returns the active model, if any.
    ///
    /// # Errors
    /// The database fails.
    pub async fn active_model(&self) -> Result<Option<ModelRow>, StoreError> {
        self.read(|connection| {
            Ok(active_model::table
                .inner_join(models::table)
                .select(ModelRow::as_select())
                .first::<ModelRow>(connection)
                .optional()?)
        })
        .await
    }

    /// Returns all models, the newest first, and the version of the active one.
    ///
    /// # Errors
    /// The database fails.
    pub async fn models(&self) -> Result<(Vec<ModelRow>, Option<i64>), StoreError> {
        self.read(|connection| {
            let rows = models::table
                .order(models::version.desc())
                .select(ModelRow::as_select())
                .load::<ModelRow>(connection)?;
            Ok((rows, active_version(connection)?))
        })
        .await
    }

    /// Returns a model by its version.
    ///
    /// # Errors
    /// [`StoreError::ModelNotFound`].
    pub async fn model(&self, version: i64) -> Result<ModelRow, StoreError> {
        self.read(move |connection| {
            models::table
                .find(version)
                .select(ModelRow::as_select())
                .first::<ModelRow>(connection)
                .optional()?
                .ok_or(StoreError::ModelNotFound)
        })
        .await
    }

    /// Stores a model under the next version and activates it, where `holder` still has the trainer's lease. Returns its
    /// version.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`].
    pub async fn add_active_model(
        &self,
        model: NewModel,
        holder: &str,
        ttl: Duration,
    ) -> Result<i64, StoreError> {
        let holder = holder.to_owned();
        let version = self
            .write(move |connection| {
                if !renew(connection, Lease::Trainer, &holder, ttl)? {
                    return Err(StoreError::LeaseLost);
                }
                let version = last_version(connection)? + 1;
                diesel::insert_into(models::table)
                    .values((
                        models::version.eq(version),
                        models::embedder.eq(model.embedder),
                        models::blob_key.eq(&model.blob_key),
                        models::sha256.eq(&model.sha256),
                        models::people.eq(i64::try_from(model.people.len()).unwrap_or(i64::MAX)),
                        models::images.eq(model.images),
                        models::duration_ms.eq(model.duration_ms),
                        models::created_at.eq(now()),
                        models::calibration.eq(&model.calibration),
                    ))
                    .execute(connection)?;
                // Many rows a statement: a large gallery would take as many round trips as it has people.
                for people in model.people.chunks(MAX_VARIABLES) {
                    let rows: Vec<String> =
                        people.iter().map(|person| format!("({version},{person})")).collect();
                    let insert =
                        format!("INSERT INTO model_people (version, person_id) VALUES {}", rows.join(","));
                    diesel::sql_query(insert).execute(connection)?;
                }
                activate(connection, version)?;
                Ok(version)
            })
            .await?;
        self.signals.notify(Topic::Model);
        Ok(version)
    }

    /// Activates a model.
    ///
    /// # Errors
    /// [`StoreError::ModelNotFound`].
    pub async fn activate_model(&self, version: i64) -> Result<(), StoreError> {
        self.write(move |connection| {
            let found: Option<i64> =
                models::table.find(version).select(models::version).first(connection).optional()?;
            found.ok_or(StoreError::ModelNotFound)?;
            match activate(connection, version) {
                // Removed in the meantime.
                Err(error) if is_foreign_key_violation(&error) => Err(StoreError::ModelNotFound),
                outcome => outcome,
            }
        })
        .await?;
        self.signals.notify(Topic::Model);
        Ok(())
    }

    /// Removes the row of a model. Returns the key of its blob, which must be deleted too.
    ///
    /// # Errors
    /// [`StoreError::ModelNotFound`]; [`StoreError::ModelActive`].
    pub async fn remove_model(&self, version: i64) -> Result<String, StoreError> {
        self.write(move |connection| {
            let blob: Option<String> =
                models::table.find(version).select(models::blob_key).first(connection).optional()?;
            let blob = blob.ok_or(StoreError::ModelNotFound)?;
            if active_version(connection)? == Some(version) {
                return Err(StoreError::ModelActive);
            }
            match remove(connection, &[version]) {
                Ok(()) => Ok(blob),
                // Activated in the meantime.
                Err(error) if is_foreign_key_violation(&error) => Err(StoreError::ModelActive),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Returns whether the active model knows an erased person.
    ///
    /// # Errors
    /// The database fails.
    pub async fn active_model_knows_erased(&self) -> Result<bool, StoreError> {
        self.read(|connection| {
            let active = active_version(connection)?.unwrap_or(0);
            let erased =
                model_people::table.filter(model_people::version.eq(active)).filter(not(person_exists()));
            Ok(diesel::select(exists(erased)).get_result(connection)?)
        })
        .await
    }

    /// Removes the rows of all models but the active one that know an erased person. Returns the keys of their blobs, which
    /// must be deleted too.
    ///
    /// # Errors
    /// The database fails.
    pub async fn purge_models(&self) -> Result<Vec<String>, StoreError> {
        self.write(|connection| {
            let active = active_version(connection)?.unwrap_or(0);
            let mut doomed: Vec<i64> = model_people::table
                .filter(not(person_exists()))
                .filter(model_people::version.ne(active))
                .select(model_people::version)
                .distinct()
                .load(connection)?;
            // Models from before their people were recorded.
            let unrecorded: Vec<i64> = models::table
                .left_join(model_people::table)
                .filter(model_people::person_id.is_null())
                .filter(models::people.gt(0))
                .filter(models::version.ne(active))
                .select(models::version)
                .load(connection)?;
            doomed.extend(unrecorded);
            let blobs = models::table
                .filter(models::version.eq_any(&doomed))
                .select(models::blob_key)
                .load(connection)?;
            remove(connection, &doomed)?;
            Ok(blobs)
        })
        .await
    }

    /// Returns the keys of all blobs that models refer to.
    ///
    /// # Errors
    /// The database fails.
    pub async fn model_blob_keys(&self) -> Result<Vec<String>, StoreError> {
        self.read(|connection| Ok(models::table.select(models::blob_key).load(connection)?)).await
    }
}

/// Returns whether the person of a row of `model_people` exists. Does not use `eq_any`: in a large gallery PostgreSQL
/// reads the whole table of people for each row.
#[diesel::dsl::auto_type]
fn person_exists() -> _ {
    exists(people::table.filter(people::id.eq(model_people::person_id)))
}

/// Returns the greatest version that any model ever had.
fn last_version(connection: &mut AnyConnection) -> Result<i64, StoreError> {
    let there: Option<i64> = models::table.select(max(models::version)).first(connection)?;
    let removed: Option<i64> =
        active_model::table.select(active_model::removed_version).first(connection).optional()?;
    Ok(there.max(removed).unwrap_or(0))
}

/// Removes rows of models and records the greatest of their versions, so that it is not reused: detections refer to the
/// model that identified them. A model is active, since the only model cannot be removed.
fn remove(connection: &mut AnyConnection, versions: &[i64]) -> Result<(), StoreError> {
    if let Some(greatest) = versions.iter().max() {
        diesel::update(active_model::table.filter(active_model::removed_version.lt(greatest)))
            .set(active_model::removed_version.eq(greatest))
            .execute(connection)?;
    }
    diesel::delete(models::table.filter(models::version.eq_any(versions))).execute(connection)?;
    Ok(())
}

fn is_foreign_key_violation(error: &StoreError) -> bool {
    matches!(error, StoreError::Database(Error::DatabaseError(DatabaseErrorKind::ForeignKeyViolation, _)))
}

fn active_version(connection: &mut AnyConnection) -> Result<Option<i64>, StoreError> {
    Ok(active_model::table.select(active_model::version).first(connection).optional()?)
}

fn activate(connection: &mut AnyConnection, version: i64) -> Result<(), StoreError> {
    let changed =
        diesel::update(active_model::table).set(active_model::version.eq(version)).execute(connection)?;
    if changed == 0 {
        diesel::insert_into(active_model::table)
            .values((active_model::slot.eq(1), active_model::version.eq(version)))
            .execute(connection)?;
    }
    notify_other_processes(connection, Topic::Model)?;
    Ok(())
}
