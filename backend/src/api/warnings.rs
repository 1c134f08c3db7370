//! Warnings about images that are enrolled nevertheless. They name people to the administrator who enrols, never in a log.

use paperclip::actix::Apiv2Schema;
use serde::Serialize;

use super::{State, dataset::SimilarImage};
use crate::{
    domain::{IdentifiedFace, Person, similarity_to_own},
    error::ApiError,
    store::sql,
};

const SIMILAR: &str = "nearly the same picture is enrolled under another person: a training leaves both out, since nobody \
                       can tell whom they show; erase the one that does not show its person";
const ANOTHER: &str = "the face looks like another enrolled person's: check that the picture is of the right person, and that \
                       one person is not enrolled twice";
const UNLIKE_OWN: &str = "the face is unlike the person's other pictures: check that the picture is of the right person, and \
                          the other pictures, too";

/// A problem of an image that was enrolled nevertheless.
#[derive(Clone, Serialize, Apiv2Schema)]
#[openapi(rename = "EnrolmentWarning")]
pub struct Warning {
    /// Stable, for programs. `similar_image`: nearly the same picture as another person's, `looks_like_another`: the active
    /// model recognises another person in it, `unlike_own_images`: unlike the person's other images.
    #[openapi(example = "similar_image")]
    code: &'static str,
    /// For people.
    #[openapi(example = "nearly the same picture is enrolled under another person: …")]
    message: String,
    /// For `similar_image`, the images of others, the most similar first; else empty.
    images: Vec<SimilarImage>,
    /// For `looks_like_another`, that person.
    #[serde(skip_serializing_if = "Option::is_none")]
    person: Option<OtherPerson>,
    /// For all but `similar_image`: cosine to the mean embedding of the other person, or to that of the person's other images.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[openapi(minimum = -1, maximum = 1, example = "0.5")]
    similarity: Option<f32>,
    /// The similarity from which, or below which, this is warned of.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[openapi(minimum = -1, maximum = 1, example = "0.375")]
    threshold: Option<f32>,
}

/// The person whom an image looks like.
#[derive(Clone, Serialize, Apiv2Schema)]
pub struct OtherPerson {
    /// What `/people/{person_id}` takes.
    #[openapi(example = "018f4c9a-0d2f-7e4a-8b3c-6e7f8a9b0c1d")]
    person_id: String,
    /// The name under which that person is enrolled.
    #[openapi(example = "Ada Byron")]
    face_id: String,
}

impl Warning {
    /// Returns the warning about images of others that are nearly the same picture; `None` without any.
    pub fn of_similar(similar: Vec<sql::SimilarImage>) -> Option<Self> {
        (!similar.is_empty()).then(|| Self {
            images: similar.into_iter().map(SimilarImage::from).collect(),
            ..Self::new("similar_image", SIMILAR)
        })
    }

    fn new(code: &'static str, message: &str) -> Self {
        Self {
            code,
            message: message.to_owned(),
            images: Vec::new(),
            person: None,
            similarity: None,
            threshold: None,
        }
    }
}

/// Returns reasons to doubt that a face shows the person under whom it is about to be enrolled. `copied` has the people
/// whose picture it is a copy of; another warning names them already.
///
/// # Errors
/// The database fails.
pub async fn doubts(
    state: &State,
    person: &Person,
    face: &IdentifiedFace,
    copied: &[i64],
) -> Result<Vec<Warning>, ApiError> {
    let mut warnings = Vec::new();
    let another = face.looks_like_another(person.row).filter(|(other, _)| !copied.contains(other));
    if let Some((row, score)) = another
        && let Some(other) = state.database.person_of_row(row).await?
    {
        warnings.push(Warning {
            person: Some(OtherPerson { person_id: other.id.to_string(), face_id: other.face_id }),
            similarity: Some(score),
            threshold: Some(face.threshold),
            ..Warning::new("looks_like_another", ANOTHER)
        });
    }
    let own = state.database.embeddings_of(person.row, state.recogniser.embedder()).await?;
    if let Some(own) = similarity_to_own(&face.embedding, &own, state.verify_threshold)
        && own.similarity < own.threshold
    {
        warnings.push(Warning {
            similarity: Some(own.similarity),
            threshold: Some(own.threshold),
            ..Warning::new("unlike_own_images", UNLIKE_OWN)
        });
    }
    Ok(warnings)
}
