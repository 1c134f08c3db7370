//! `/images`: images by their ids, without their person's.

use actix_web::web;
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::Serialize;

use super::{
    State,
    dataset::{SimilarImage, finish_erasure, image_content},
    quality::ImageFace,
    response::{ImageContent, NoContent},
    rfc3339, trail,
};
use crate::error::ApiError;

/// An enrolled image with its details.
#[derive(Serialize, Apiv2Schema)]
pub struct ImageDetails {
    /// The image's id.
    #[openapi(example = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c")]
    image_id: String,
    /// The person's id, as `/people/{person_id}` takes it.
    #[openapi(example = "018f4c9a-0d2f-7e4a-8b3c-6e7f8a9b0c1d")]
    person_id: String,
    /// The name under which the person is enrolled.
    #[openapi(example = "Ada Lovelace")]
    face_id: String,
    /// Its size; 0 where there is no picture, only the embedding of an unknown person's face.
    #[openapi(minimum = 0, example = "48213")]
    bytes: i64,
    /// SHA-256 of its bytes, hexadecimal. Null for an image that was enrolled before the server kept digests, and from an
    /// unknown person's faces.
    #[openapi(example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    sha256: Option<String>,
    /// When it was enrolled.
    #[openapi(example = "2024-05-01T09:31:00Z")]
    created_at: String,
    /// The face that was enrolled. Null for an image that was enrolled before the server kept it, until its embedding is
    /// recomputed (`POST /model/generate-emb`).
    face: Option<ImageFace>,
    /// Its embeddings, by embedder; none where no face was found on it.
    embeddings: Vec<Embedding>,
    /// Images of other people that are nearly the same picture, the most similar first. A training leaves all of them
    /// out.
    similar: Vec<SimilarImage>,
}

/// An embedding of an image.
#[derive(Serialize, Apiv2Schema)]
struct Embedding {
    /// The network that made it.
    #[openapi(example = "mobilefacenet")]
    embedder: String,
    /// When it was made.
    #[openapi(example = "2024-05-01T09:31:00Z")]
    created_at: String,
}

fn missing(error: ApiError) -> ApiError {
    match error {
        ApiError::ImageNotFound => ApiError::NoSuchImage,
        other => other,
    }
}

/// An image, its person and its details
#[api_v2_operation]
pub async fn get(
    state: web::Data<State>,
    image_id: web::Path<String>,
) -> Result<web::Json<ImageDetails>, ApiError> {
    let image = state.database.image(&image_id).await.map_err(|error| missing(error.into()))?;
    trail::belongs_to(image.person.id);
    let embeddings = image
        .embeddings
        .into_iter()
        .map(|(embedder, created_at)| Ok(Embedding { embedder, created_at: rfc3339(created_at)? }))
        .collect::<Result<Vec<_>, ApiError>>()?;
    Ok(web::Json(ImageDetails {
        image_id: image.row.id,
        person_id: image.person.id.to_string(),
        face_id: image.person.face_id,
        bytes: image.row.bytes,
        sha256: image.row.sha256,
        created_at: rfc3339(image.row.created_at)?,
        face: image.row.face.map(ImageFace::from),
        embeddings,
        similar: image.similar.into_iter().map(SimilarImage::from).collect(),
    }))
}

/// The bytes of an enrolled image as they were uploaded
///
/// As `GET /dataset/{id}/image/{image_id}` has it, without a name in the address.
#[api_v2_operation]
pub async fn content(state: web::Data<State>, image_id: web::Path<String>) -> Result<ImageContent, ApiError> {
    let key = async || {
        let image = state.database.image(&image_id).await?;
        trail::belongs_to(image.person.id);
        Ok::<_, ApiError>(image.blob_key)
    };
    image_content(&state, key).await.map_err(missing)
}

/// Erases an enrolled image and its embeddings, by its id alone
///
/// The active model contains it until the next training.
#[api_v2_operation]
pub async fn erase(state: web::Data<State>, image_id: web::Path<String>) -> Result<NoContent, ApiError> {
    // If the erasure fails, the audit log's entries about the person still include this call.
    if let Ok(image) = state.database.image(&image_id).await {
        trail::belongs_to(image.person.id);
    }
    let erased = state.database.erase_image_row(&image_id).await?.ok_or(ApiError::NoSuchImage)?;
    finish_erasure(&state, &erased).await?;
    Ok(NoContent::new())
}
