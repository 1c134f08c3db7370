//! The active model, replaced atomically while requests run.

use std::sync::{Arc, PoisonError, RwLock};

use facepipe_identify::{Decision, Identification, IdentifyError, Model};

use super::queue::DetectedFace;
use crate::domain::{FaceDecision, IdentifiedFace, Micros, ModelCalibration};

/// A trained model and its version.
pub struct VersionedModel {
    /// The version of its row.
    pub version: i64,
    /// When it was made.
    pub created_at: Micros,
    /// Labels are row ids of people.
    pub model: Model,
    /// How its threshold was calibrated, if it was.
    pub calibration: Option<ModelCalibration>,
}

/// The score from which a face is known.
#[derive(Debug, Clone, Copy)]
pub struct MatchThreshold {
    /// The configured one, which counts for every model.
    pub configured: Option<f32>,
    /// The embedder's, for models that were not calibrated.
    pub default: f32,
}

impl MatchThreshold {
    /// Returns the score from which `model` recognises a face.
    pub fn of(self, model: Option<&VersionedModel>) -> f32 {
        let calibrated = || Some(model?.calibration.as_ref()?.match_threshold());
        self.configured.or_else(calibrated).unwrap_or(self.default)
    }
}

/// Holds the active model. Readers clone an `Arc`, so that replacing the model does not block them.
#[derive(Default)]
pub struct ActiveModel {
    current: RwLock<Option<Arc<VersionedModel>>>,
}

impl ActiveModel {
    /// Returns the active model; `None` before the first training.
    pub fn get(&self) -> Option<Arc<VersionedModel>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes `model` the active one.
    pub fn set(&self, model: VersionedModel) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(model));
    }
}

/// Reads a model and runs it once.
///
/// # Errors
/// The bytes are damaged, or the model fails.
pub fn load_tested(bytes: &[u8]) -> Result<Model, IdentifyError> {
    let model = Model::from_bytes(bytes)?;
    if !model.labels().is_empty() {
        let mut probe = vec![0.0; model.dimensions()];
        if let Some(first) = probe.first_mut() {
            *first = 1.0;
        }
        model.identify(&probe, 1.0, 1)?;
    }
    Ok(model)
}

/// Identifies a face, with its `top_k` most probable people; without a model, or without people in it, the face is unknown.
///
/// # Errors
/// The embedding does not fit the model.
pub fn identify(
    model: Option<&VersionedModel>,
    face: DetectedFace,
    threshold: f32,
    top_k: usize,
) -> Result<IdentifiedFace, IdentifyError> {
    let DetectedFace { detection, quality, embedding } = face;
    let FaceDecision { known, score, threshold, predictions } = decide(model, &embedding, threshold, top_k)?;
    Ok(IdentifiedFace {
        bounding_box: detection.bounding_box.into(),
        detection_confidence: detection.confidence,
        known,
        score,
        threshold,
        predictions,
        embedding,
        crops: 1,
        quality,
    })
}

/// Decides about the embedding of a face, or the mean of a track's; without a model, or without people in it, the face is
/// unknown.
///
/// # Errors
/// The embedding does not fit the model.
pub fn decide(
    model: Option<&VersionedModel>,
    embedding: &[f32],
    threshold: f32,
    top_k: usize,
) -> Result<FaceDecision, IdentifyError> {
    let identification = match model {
        Some(versioned) if !versioned.model.labels().is_empty() => {
            Some(versioned.model.identify(embedding, threshold, top_k)?)
        }
        _ => None,
    };
    let predictions = identification.as_ref().map(people).unwrap_or_default();
    Ok(FaceDecision {
        known: identification.as_ref().is_some_and(|i| i.decision == Decision::Known),
        score: identification.and_then(|i| i.score),
        threshold,
        predictions,
    })
}

/// Returns the people of an identification, the top one first.
fn people(identification: &Identification) -> Vec<(i64, f32)> {
    // The trainer writes labels as decimal row ids; anything else belongs to nobody.
    identification.all.iter().filter_map(|p| Some((p.label.parse().ok()?, p.confidence))).collect()
}
