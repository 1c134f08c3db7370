//! Proposals: unknown faces of the past that may be of a person who was enrolled later.

use super::{Micros, Person, StoredDetection};

#[derive(Debug, Clone)]
pub struct Proposal {
    /// Row id.
    pub id: i64,
    /// The proposed person.
    pub person: Person,
    /// The unknown face.
    pub detection: StoredDetection,
    /// Cosine of the face to the person's mean embedding.
    pub score: f32,
    /// The model that found it.
    pub model_version: i64,
    /// Whether it was refused, so that it is not made again.
    pub refused: bool,
    /// When it was made.
    pub created_at: Micros,
}
