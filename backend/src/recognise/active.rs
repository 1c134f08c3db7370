//! The model that answers, swapped as a whole while requests run.

use std::sync::{Arc, PoisonError, RwLock};

use facepipe_identify::{Decision, Identification, IdentifyError, Model};
use facepipe_vision::Face;

use crate::domain::{IdentifiedFace, Micros};

/// A trained model and its version.
pub struct VersionedModel {
    /// Its row's version.
    pub version: i64,
    /// When it was made.
    pub created_at: Micros,
    /// Labels are row ids of people.
    pub model: Model,
}

/// Holds the model that answers. Readers take their own reference, so a swap waits for nobody and nobody sees half
/// of it.
#[derive(Default)]
pub struct ActiveModel {
    current: RwLock<Option<Arc<VersionedModel>>>,
}

impl ActiveModel {
    /// The model of this moment, `None` before the first training.
    pub fn get(&self) -> Option<Arc<VersionedModel>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on `model` answers.
    pub fn set(&self, model: VersionedModel) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(model));
    }
}

/// Reads a model's bytes and identifies one embedding with it.
///
/// # Errors
/// The bytes are damaged, or the model cannot identify.
pub fn load_tested(bytes: &[u8]) -> Result<Model, IdentifyError> {
    let model = Model::from_bytes(bytes)?;
    if !model.labels().is_empty() {
        let mut probe = vec![0.0; model.dimensions()];
        if let Some(first) = probe.first_mut() {
            *first = 1.0;
        }
        model.identify(&probe, 1.0)?;
    }
    Ok(model)
}

/// What `model` says of a face; without a model, or without people in it, the face is unknown.
///
/// # Errors
/// The embedding does not fit the model.
pub fn identify(
    model: Option<&VersionedModel>,
    face: &Face,
    embedding: Vec<f32>,
    threshold: f32,
) -> Result<IdentifiedFace, IdentifyError> {
    let answer = match model {
        Some(versioned) if !versioned.model.labels().is_empty() => {
            Some(versioned.model.identify(&embedding, threshold)?)
        }
        _ => None,
    };
    let predictions = answer.as_ref().map(people).unwrap_or_default();
    let corners = face.bounding_box;
    Ok(IdentifiedFace {
        bounding_box: [corners.left, corners.top, corners.right, corners.bottom],
        detection_confidence: face.confidence,
        known: answer.as_ref().is_some_and(|a| a.decision == Decision::Known),
        score: answer.and_then(|a| a.score),
        threshold,
        predictions,
        embedding,
    })
}

/// The people of an answer, the one it decided for first.
fn people(answer: &Identification) -> Vec<(i64, f32)> {
    // Labels are written by the trainer as decimal row ids; anything else would be nobody's.
    let mut people: Vec<(i64, f32)> =
        answer.all.iter().filter_map(|p| Some((p.label.parse().ok()?, p.confidence))).collect();
    let top = answer.top.as_ref().and_then(|top| top.label.parse::<i64>().ok());
    if let Some(position) = people.iter().position(|(person, _)| Some(*person) == top) {
        people.get_mut(..=position).unwrap_or_default().rotate_right(1);
    }
    people
}
