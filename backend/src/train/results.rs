//! The results of jobs, as rows and responses have them. Rows are written without names, so that a renaming and an erasure
//! reach the results of earlier jobs, too.

use std::collections::{HashMap, HashSet};

use paperclip::actix::Apiv2Schema;
use serde::{Deserialize, Serialize};

use crate::domain::ModelCalibration;

/// The result of a training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Apiv2Schema)]
pub struct TrainingResult {
    /// Version of the new model, which is active from now on.
    #[openapi(minimum = 1, example = "7")]
    pub model_version: i64,
    /// The network whose embeddings the model takes.
    #[openapi(example = "mobilefacenet")]
    pub embedder: String,
    /// People whom the model knows.
    #[openapi(minimum = 0, example = "10")]
    pub people: i64,
    /// Images that the model was trained on.
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
    /// The threshold that the training chose, and what is to be expected of it. Null where the model knows nobody.
    #[serde(default)]
    pub calibration: Option<ModelCalibration>,
    /// Duration, milliseconds.
    #[openapi(minimum = 0, example = "412")]
    pub duration_ms: i64,
}

/// The result of a search of stored unknown faces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Apiv2Schema)]
pub struct PastSearchResult {
    /// People who were searched for.
    #[openapi(minimum = 0, example = "1")]
    pub people: i64,
    /// Unknown faces that were compared.
    #[openapi(minimum = 0, example = "2048")]
    pub faces: i64,
    /// New proposals.
    #[openapi(minimum = 0, example = "17")]
    pub proposals: i64,
    /// The model that compared them.
    #[openapi(minimum = 1, example = "7")]
    pub model_version: i64,
    /// Duration, milliseconds.
    #[openapi(minimum = 0, example = "35")]
    pub duration_ms: i64,
}

/// A person who is not in a model.
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

/// Why a person is not in a model.
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
    /// Returns the ids of all people in the result.
    pub fn person_ids(&self) -> HashSet<String> {
        let mut ids = self.calibration.as_ref().map(ModelCalibration::person_ids).unwrap_or_default();
        ids.extend(self.people_left_out.iter().map(|left| left.person_id.clone()));
        let conflicting = self.conflicts.iter().flat_map(|conflict| &conflict.images);
        ids.extend(conflicting.map(|image| image.person_id.clone()));
        ids
    }

    /// Gives the people in the result their names, by id.
    pub fn name_people(&mut self, names: &HashMap<String, String>) {
        for left in &mut self.people_left_out {
            left.face_id = names.get(&left.person_id).cloned();
        }
        for image in self.conflicts.iter_mut().flat_map(|conflict| &mut conflict.images) {
            image.face_id = names.get(&image.person_id).cloned();
        }
        if let Some(calibration) = &mut self.calibration {
            calibration.name_people(names);
        }
    }
}

/// The result of recomputing the embeddings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Apiv2Schema)]
pub struct EmbeddingResult {
    /// The network that computed them.
    #[openapi(example = "mobilefacenet")]
    pub embedder: String,
    /// Images that have one now.
    #[openapi(minimum = 0, example = "60")]
    pub images: i64,
    /// Images that have none: no face was found on them, or their bytes are damaged.
    #[openapi(minimum = 0, example = "0")]
    pub images_left_out: i64,
    /// Duration, milliseconds.
    #[openapi(minimum = 0, example = "412")]
    pub duration_ms: i64,
}
