//! A face on a picture and what the model says of it, before names are put to it.

use serde::{Deserialize, Serialize};

/// A face that was found, embedded and identified. People are row ids: names are looked up when an answer is
/// written, so that an erased person is named in none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IdentifiedFace {
    /// Left, top, right, bottom in pixels of the upright picture.
    pub bounding_box: [f32; 4],
    /// Probability that it is a face, 0 to 1.
    pub detection_confidence: f32,
    /// Whether it shows the most probable person: the score reaches the threshold, and nothing contradicts it.
    pub known: bool,
    /// Cosine to the mean embedding of the most probable person; absent without a model or without people in it.
    pub score: Option<f32>,
    /// What the score must reach.
    pub threshold: f32,
    /// People and their probabilities, highest first, summing up to 1.
    pub predictions: Vec<(i64, f32)>,
    /// The L2-normalised embedding. Not part of stored answers.
    #[serde(skip)]
    pub embedding: Vec<f32>,
}

/// What may be said of a face, given who is still enrolled.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedIdentity {
    /// Whom it shows, if that person is known.
    pub person: Option<i64>,
    /// Cosine to the mean embedding of the first of `predictions`, where it was measured.
    pub score: Option<f32>,
    /// As in the face, without those who are enrolled no more; the rest sums up to 1.
    pub predictions: Vec<(i64, f32)>,
}

impl IdentifiedFace {
    /// Leaves out people who are no more enrolled.
    ///
    /// A face whose most probable person was erased is unknown: the cosine to the next one was never measured, and most
    /// likely it shows the erased one.
    pub fn resolve(&self, enrolled: impl Fn(i64) -> bool) -> ResolvedIdentity {
        let mut predictions: Vec<(i64, f32)> =
            self.predictions.iter().copied().filter(|(person, _)| enrolled(*person)).collect();
        if predictions.len() < self.predictions.len() {
            let sum: f32 = predictions.iter().map(|(_, probability)| probability).sum();
            if sum > 0.0 {
                predictions.iter_mut().for_each(|(_, probability)| *probability /= sum);
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
        }
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
    fn below_the_threshold_nobody_is_named() {
        let identity = IdentifiedFace { known: false, ..face() }.resolve(|_| true);
        assert_eq!((identity.person, identity.score), (None, Some(0.8)));
    }
}
