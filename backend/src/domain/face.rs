//! A face with its prediction by the model, and the identity that follows from it.

use std::collections::HashSet;

pub use facepipe_vision::{FaceQuality, QualityComponent};
use serde::{Deserialize, Serialize};

/// A face that was detected, embedded and identified. People are row ids: names are looked up when a response is written,
/// so that an erased person is never named.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IdentifiedFace {
    /// Left, top, right, bottom in pixels of the upright image.
    pub bounding_box: [f32; 4],
    /// Probability of a face, 0 to 1.
    pub detection_confidence: f32,
    /// Whether the decision is for the most probable person: the score reaches the threshold, and nobody else is nearer.
    pub known: bool,
    /// Cosine to the mean embedding of the most probable person; absent without a model or without people in it.
    pub score: Option<f32>,
    /// The score from which the person is known.
    pub threshold: f32,
    /// The most probable people and their probabilities among all enrolled people, highest first: as many as the request
    /// asked for.
    pub predictions: Vec<(i64, f32)>,
    /// The L2-normalised embedding; not part of idempotency records.
    #[serde(skip)]
    pub embedding: Vec<f32>,
    /// The number of crops from which it was decided: those of its track, 1 without one.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub crops: i64,
    /// How well it can be recognised; not part of idempotency records.
    #[serde(skip)]
    pub quality: FaceQuality,
}

fn one() -> i64 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_one(crops: &i64) -> bool {
    *crops == 1
}

/// The model's decision about an embedding: of a face, or the mean of a track.
#[derive(Debug, Clone, PartialEq)]
pub struct FaceDecision {
    /// Whether it is for the most probable person.
    pub known: bool,
    /// Cosine to the mean embedding of the most probable person; absent without a model or without people in it.
    pub score: Option<f32>,
    /// The score from which the person is known.
    pub threshold: f32,
    /// People and their probabilities, highest first.
    pub predictions: Vec<(i64, f32)>,
}

/// The weighted sum of the embeddings of a track's crops.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EmbeddingSum {
    /// The sum; empty without a crop.
    pub sum: Vec<f32>,
    /// The sum of the weights.
    pub weight: f32,
}

impl EmbeddingSum {
    /// Adds a face with its weight.
    pub fn add(&mut self, face: &IdentifiedFace) {
        let weight = face.weight();
        self.sum.resize(face.embedding.len(), 0.0);
        self.sum.iter_mut().zip(&face.embedding).for_each(|(sum, x)| *sum += weight * x);
        self.weight += weight;
    }

    /// Returns the mean embedding, L2-normalised. If the embeddings cancel each other out, it is all zeros.
    pub fn mean(&self) -> Vec<f32> {
        let norm = self.sum.iter().map(|x| x * x).sum::<f32>().sqrt();
        let norm = if norm > 0.0 { norm } else { 1.0 };
        self.sum.iter().map(|x| x / norm).collect()
    }
}

/// Returns the inner product; the cosine of two L2-normalised embeddings.
pub fn cosine(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}

/// The face of an enrolled image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EnrolledFace {
    /// Left, top, right, bottom in pixels of the upright image.
    pub bounding_box: [f32; 4],
    /// How well it can be recognised.
    pub quality: FaceQuality,
}

/// Returns the row ids of the people in the predictions of faces.
pub fn people_of<'a>(faces: impl IntoIterator<Item = &'a IdentifiedFace>) -> HashSet<i64> {
    faces.into_iter().flat_map(|face| &face.predictions).map(|(person, _)| *person).collect()
}

/// The identity of a face, given who is enrolled.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedIdentity {
    /// The row id of the person, where the person is known.
    pub person: Option<i64>,
    /// Cosine to the mean embedding of the first of `predictions`, where it was measured.
    pub score: Option<f32>,
    /// The predictions without erased people. Their probabilities are conditional: those among the people who are still
    /// enrolled.
    pub predictions: Vec<(i64, f32)>,
}

/// Minimum size of unknown faces that keep their embedding: the shorter side of the box in pixels of the image. Embeddings of
/// smaller faces resemble each other: faces of 10 to 17 pixels of different people in the backgrounds of LFW's photographs
/// were grouped together.
pub const MIN_UNKNOWN_SIZE: f32 = 24.0;

/// The weight of the worst face, so that a track of such faces has a mean, too.
const MIN_WEIGHT: f32 = 0.01;

impl IdentifiedFace {
    /// Returns the face's weight in its track, 0.01 to 1, derived from its quality.
    pub fn weight(&self) -> f32 {
        self.quality.weight().max(MIN_WEIGHT)
    }

    /// Returns the present decision.
    pub fn decision(&self) -> FaceDecision {
        FaceDecision {
            known: self.known,
            score: self.score,
            threshold: self.threshold,
            predictions: self.predictions.clone(),
        }
    }

    /// Replaces the decision by one from this number of crops of its track.
    pub fn decide(&mut self, decision: FaceDecision, crops: i64) {
        let FaceDecision { known, score, threshold, predictions } = decision;
        (self.known, self.score, self.threshold, self.predictions) = (known, score, threshold, predictions);
        self.crops = crops;
    }

    /// Resolves the identity, leaving out people who are not enrolled any more.
    ///
    /// A face whose most probable person was erased is unknown: the cosine to the next one was never measured, and most
    /// likely the face is of the erased person.
    pub fn resolve(&self, enrolled: impl Fn(i64) -> bool) -> ResolvedIdentity {
        let mut predictions: Vec<(i64, f32)> =
            self.predictions.iter().copied().filter(|(person, _)| enrolled(*person)).collect();
        if predictions.len() < self.predictions.len() {
            let sum = |predictions: &[(i64, f32)]| predictions.iter().map(|(_, p)| p).sum::<f32>();
            let listed = sum(&predictions);
            let erased = sum(&self.predictions) - listed;
            // The probability that remains for everybody else, listed or not; rounding may make it less than the sum of
            // those listed.
            let remaining = (1.0 - erased).max(listed);
            if remaining > 0.0 {
                predictions.iter_mut().for_each(|(_, p)| *p /= remaining);
            }
        }
        let first = self.predictions.first().map(|(person, _)| *person).filter(|person| enrolled(*person));
        ResolvedIdentity {
            person: first.filter(|_| self.known),
            score: self.score.filter(|_| first.is_some()),
            predictions,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn face() -> IdentifiedFace {
        IdentifiedFace {
            bounding_box: [0.0, 0.0, 10.0, 10.0],
            detection_confidence: 0.99,
            known: true,
            score: Some(0.8),
            threshold: 0.355,
            predictions: vec![(7, 0.5), (3, 0.375), (9, 0.125)],
            embedding: Vec::new(),
            crops: 1,
            quality: FaceQuality::default(),
        }
    }

    #[test]
    fn a_better_crop_counts_more_in_the_mean() {
        // All of the same size; the sharpness differs, and in the last one the pose.
        let good = FaceQuality {
            size: 112.0,
            sharpness: 60.0,
            yaw: 0.0,
            pitch: 0.0,
            roll: 0.0,
            brightness: 0.5,
            detection_confidence: 0.99,
        };
        let crop = |quality: FaceQuality, embedding: [f32; 2]| IdentifiedFace {
            quality,
            embedding: embedding.to_vec(),
            ..face()
        };
        let mut sum = EmbeddingSum::default();
        sum.add(&crop(good, [1.0, 0.0]));
        sum.add(&crop(FaceQuality { sharpness: 20.0 / 3.0, ..good }, [0.0, 1.0]));
        let near = |one: f32, other: f32| (one - other).abs() < 1e-5;
        assert!(near(sum.sum[0], 0.75) && near(sum.sum[1], 0.25) && near(sum.weight, 1.0), "{sum:?}");
        let mean = sum.mean();
        assert!(near(mean[0], 3.0 * mean[1]) && near(mean[0].hypot(mean[1]), 1.0));
        let profile = crop(FaceQuality { yaw: 90.0, ..good }, [1.0, 0.0]);
        assert_eq!(profile.weight(), MIN_WEIGHT, "a track of bad crops has a mean, too");
    }

    #[test]
    fn records_of_single_crops_stay_as_they_were() {
        let json = serde_json::to_string(&face()).unwrap();
        assert!(!json.contains("crops"), "{json}");
        assert_eq!(serde_json::from_str::<IdentifiedFace>(&json).unwrap(), face());
        let together = IdentifiedFace { crops: 3, ..face() };
        let json = serde_json::to_string(&together).unwrap();
        assert_eq!(serde_json::from_str::<IdentifiedFace>(&json).unwrap(), together);
    }

    #[test]
    fn everybody_enrolled_changes_nothing() {
        let identity = face().resolve(|_| true);
        assert_eq!(
            identity,
            ResolvedIdentity { person: Some(7), score: Some(0.8), predictions: face().predictions }
        );
    }

    #[test]
    fn the_face_of_an_erased_person_is_unknown() {
        let identity = face().resolve(|person| person != 7);
        assert_eq!(
            identity,
            ResolvedIdentity { person: None, score: None, predictions: vec![(3, 0.75), (9, 0.25)] }
        );
    }

    #[test]
    fn an_erased_person_further_down_is_left_out() {
        let identity = face().resolve(|person| person != 3);
        assert_eq!(
            identity,
            ResolvedIdentity { person: Some(7), score: Some(0.8), predictions: vec![(7, 0.8), (9, 0.2)] }
        );
    }

    #[test]
    fn probabilities_of_a_part_of_the_people_stay_those_among_all() {
        // The people who are not listed have 0.5 together.
        let face = IdentifiedFace { predictions: vec![(7, 0.25), (3, 0.125), (9, 0.125)], ..face() };
        assert_eq!(face.resolve(|_| true).predictions, face.predictions);
        let identity = face.resolve(|person| person != 7);
        // 1/8 of the rest without the erased person's 1/4.
        assert_eq!(identity.predictions, [(3, 0.125 / 0.75), (9, 0.125 / 0.75)]);
    }

    #[test]
    fn whoever_is_left_beside_a_certain_prediction_has_a_probability() {
        let face = IdentifiedFace { predictions: vec![(7, 1.0), (3, 1e-20), (9, 0.0)], ..face() };
        assert_eq!(face.resolve(|person| person != 7).predictions, [(3, 1.0), (9, 0.0)]);
        let face = IdentifiedFace { predictions: vec![(7, 1.0), (9, 0.0)], ..face };
        assert_eq!(face.resolve(|person| person != 7).predictions, [(9, 0.0)]);
    }

    #[test]
    fn below_the_threshold_nobody_is_named() {
        let identity = IdentifiedFace { known: false, ..face() }.resolve(|_| true);
        assert_eq!((identity.person, identity.score), (None, Some(0.8)));
    }
}
