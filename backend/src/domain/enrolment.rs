//! Doubts about an image that is being enrolled: whether it shows its person.

use super::{IdentifiedFace, cosine};

/// How like an embedding is to those of one person.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OwnSimilarity {
    /// Cosine to the mean of the person's other embeddings.
    pub similarity: f32,
    /// The similarity below which the image is unlike them.
    pub threshold: f32,
}

impl IdentifiedFace {
    /// Returns the person other than `own` that the active model recognises in this face, and the score; `None` if it
    /// recognises nobody, or `own`.
    pub fn looks_like_another(&self, own: i64) -> Option<(i64, f32)> {
        let (person, _) = *self.predictions.first()?;
        (self.known && person != own).then_some((person, self.score?))
    }
}

/// Compares an embedding with the other embeddings of its person, all of length 1. `one_to_one` is the embedder's threshold for
/// two faces of one person. `None` without others.
pub fn similarity_to_own(embedding: &[f32], others: &[Vec<f32>], one_to_one: f32) -> Option<OwnSimilarity> {
    let mut sum = vec![0.0_f32; embedding.len()];
    for other in others {
        sum.iter_mut().zip(other).for_each(|(sum, value)| *sum += value);
    }
    let length = sum.iter().map(|value| value * value).sum::<f32>().sqrt();
    if !length.is_normal() {
        return None;
    }
    let similarity = (cosine(&sum, embedding) / length).clamp(-1.0, 1.0);
    Some(OwnSimilarity { similarity, threshold: one_to_one })
}
