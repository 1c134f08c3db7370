//! People of the dataset.

use super::{FaceId, PersonId};

/// Selects a person, as calls do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PersonRef {
    /// By name.
    FaceId(FaceId),
    /// By id.
    Id(PersonId),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// Row id, by which everything else refers to the person.
    pub row: i64,
    /// The public id.
    pub id: PersonId,
    /// The Face ID, normalised.
    pub face_id: String,
}

/// A person and the number of the person's images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnrolledPerson {
    /// Row id.
    pub row: i64,
    /// The public id.
    pub id: PersonId,
    /// Enrolled images, with an embedding or without.
    pub images: i64,
}
