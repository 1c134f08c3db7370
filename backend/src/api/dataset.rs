//! `/dataset`: whom the server knows.

use actix_web::{http::header, web};
use bytes::Bytes;
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    ListMeta, State,
    answer::{Answer, NoContent, Picture},
    face_id,
    form::{Form, FormField, FormFields, ImagePart},
    recognition::{BoundingBox, ImageNote},
    rfc3339,
};
use crate::{
    config::ErasedDetections,
    error::ApiError,
    face_id::FaceId,
    hex::hex,
    recognise::Picture as RecognisedPicture,
    store::{Blobs, StoreError, ledger, sql::NewImage},
};

/// Whom the server knows.
#[derive(Serialize, Apiv2Schema)]
pub struct Dataset {
    /// By their Face IDs.
    people: Vec<Entry>,
    meta: ListMeta,
}

/// A person of the dataset.
#[derive(Serialize, Apiv2Schema)]
#[openapi(rename = "DatasetEntry")]
struct Entry {
    /// The name under which the person is enrolled.
    #[openapi(example = "Ada Lovelace")]
    face_id: String,
    /// Enrolled images.
    #[openapi(minimum = 0, example = "3")]
    images: i64,
}

/// The images of a person.
#[derive(Serialize, Apiv2Schema)]
pub struct PersonImages {
    /// The name under which the person is enrolled.
    #[openapi(example = "Ada Lovelace")]
    face_id: String,
    /// The oldest first.
    images: Vec<Image>,
    meta: ListMeta,
}

/// An enrolled image.
#[derive(Serialize, Apiv2Schema)]
struct Image {
    /// What `/dataset/{id}/image/{image_id}` takes.
    #[openapi(example = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c")]
    image_id: String,
    /// Its size.
    #[openapi(minimum = 1, example = "48213")]
    bytes: i64,
    /// SHA-256 of its bytes, hexadecimal. Null for an image that was enrolled before the server kept digests.
    #[openapi(example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    sha256: Option<String>,
    /// When it was enrolled.
    #[openapi(example = "2024-05-01T09:31:00Z")]
    created_at: String,
}

/// A renaming.
#[derive(Deserialize, Apiv2Schema)]
#[serde(deny_unknown_fields)]
pub struct Renaming {
    /// The new Face ID.
    #[openapi(example = "Ada Byron")]
    face_id: String,
}

/// The person that was added or renamed.
#[derive(Serialize, Apiv2Schema)]
#[openapi(rename = "NamedPerson")]
pub struct Added {
    /// The name under which the person is enrolled.
    #[openapi(example = "Ada Lovelace")]
    face_id: String,
}

/// The image that was enrolled.
#[derive(Serialize, Apiv2Schema)]
pub struct AddedImage {
    /// The name under which the person is enrolled.
    #[openapi(example = "Ada Lovelace")]
    face_id: String,
    /// What `/dataset/{id}/image/{image_id}` takes.
    #[openapi(example = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c")]
    image_id: String,
    /// The network whose embedding was stored.
    #[openapi(example = "mobilefacenet")]
    embedder: &'static str,
    bounding_box: BoundingBox,
    /// Probability that it is a face.
    #[openapi(minimum = 0, maximum = 1, example = "0.996")]
    detection_confidence: f32,
    /// What is to be said of the image's file; absent for most images.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<ImageNote>,
}

/// An enrolment.
#[derive(Default, Apiv2Schema)]
pub struct EnrolmentForm {
    /// A picture of exactly one face: JPEG, PNG, WebP, BMP or GIF, at most 10 MiB and 50 million pixels (both can be
    /// configured). Its EXIF orientation is applied.
    image: Vec<ImagePart>,
}

impl FormFields for EnrolmentForm {
    fn field(&mut self, name: &str) -> Option<FormField<'_>> {
        (name == "image").then_some(FormField::Images(&mut self.image))
    }
}

/// Every Face ID with its number of images
#[api_v2_operation]
pub async fn list(state: web::Data<State>) -> Result<web::Json<Dataset>, ApiError> {
    let rows = state.database.people().await?;
    let people: Vec<Entry> =
        rows.into_iter().map(|row| Entry { face_id: row.face_id, images: row.images }).collect();
    let meta = ListMeta { total: people.len() };
    Ok(web::Json(Dataset { people, meta }))
}

/// The images of a person, the oldest first
#[api_v2_operation]
pub async fn images(
    state: web::Data<State>,
    path: web::Path<String>,
) -> Result<web::Json<PersonImages>, ApiError> {
    let id = face_id(path)?;
    let rows = state.database.images(&id).await?;
    let images = rows
        .into_iter()
        .map(|row| {
            let created_at = rfc3339(row.created_at)?;
            Ok(Image { image_id: row.id, bytes: row.bytes, sha256: row.sha256, created_at })
        })
        .collect::<Result<Vec<_>, ApiError>>()?;
    let meta = ListMeta { total: images.len() };
    Ok(web::Json(PersonImages { face_id: id.to_string(), images, meta }))
}

/// An enrolled picture, byte by byte as it was sent
#[api_v2_operation]
pub async fn image(state: web::Data<State>, path: web::Path<(String, String)>) -> Result<Picture, ApiError> {
    let (id, image_id) = path.into_inner();
    let id = FaceId::try_from(id)?;
    let key = state.database.image_blob_key(&id, &image_id).await?;
    let bytes = match state.blobs.get(&key).await {
        Err(error @ StoreError::Blob(object_store::Error::NotFound { .. })) => {
            // Erased between the look at its row and this one: then the row is gone as well.
            state.database.image_blob_key(&id, &image_id).await?;
            return Err(error.into());
        }
        outcome => outcome?,
    };
    // Enrolment took nothing but pictures of a format that is known by its first bytes.
    let format =
        image::guess_format(&bytes).map_err(|_| StoreError::Damaged("an image of no known format".into()))?;
    Ok(Picture { bytes, format })
}

/// Erases an enrolled picture and its embedding
///
/// The model that answers forgets it with the next training.
#[api_v2_operation]
pub async fn erase_image(
    state: web::Data<State>,
    path: web::Path<(String, String)>,
) -> Result<NoContent, ApiError> {
    let (id, image_id) = path.into_inner();
    let id = FaceId::try_from(id)?;
    let erased = state.database.erase_image(&id, &image_id).await?;
    let finished = ledger::finish(&state.blobs, &erased).await;
    state.database.forget_erased().await?;
    finished?;
    Ok(NoContent::new())
}

/// Gives a person another Face ID
///
/// Answers of the active model and all detections have it at once: they refer to the person, not to the name.
#[api_v2_operation]
pub async fn rename(
    state: web::Data<State>,
    path: web::Path<String>,
    body: web::Json<Renaming>,
) -> Result<web::Json<Added>, ApiError> {
    let id = face_id(path)?;
    let new = FaceId::try_from(body.into_inner().face_id)?;
    state.database.rename_person(&id, &new).await?;
    // The old name may have been the reason.
    state.database.forget_erased().await?;
    Ok(web::Json(Added { face_id: new.to_string() }))
}

/// Adds a person without images
#[api_v2_operation]
pub async fn add(state: web::Data<State>, path: web::Path<String>) -> Result<Answer<Added, 201>, ApiError> {
    let id = face_id(path)?;
    state.database.add_person(&id).await?;
    Ok(Answer::new(Added { face_id: id.to_string() }))
}

/// Adds a picture of a person's face and its embedding: both, or nothing
///
/// The person can be recognised after the next training. A picture that the person has already, byte by byte, is
/// refused with 409 `duplicate_image` and the `image_id` under which it is there.
#[api_v2_operation]
pub async fn add_image(
    state: web::Data<State>,
    path: web::Path<String>,
    Form(form): Form<EnrolmentForm>,
) -> Result<Answer<AddedImage, 201>, ApiError> {
    let id = face_id(path)?;
    let person = state.database.person(&id).await?;
    let images = form.image.len();
    if images > 1 {
        return Err(ApiError::TooManyImages { images, max: 1 });
    }
    let bytes = form.image.into_iter().next().ok_or(ApiError::ImageMissing)?.0?;
    // Not for nothing: recognition takes a while, and the picture may be there already, or the dataset be locked.
    let sha256 = digest(bytes.clone()).await?;
    if let Some(image_id) = state.database.image_with_digest(person, &sha256).await? {
        return Err(ApiError::DuplicateImage { image_id });
    }
    state.database.dataset_unlocked().await?;
    let size = i64::try_from(bytes.len()).map_err(|error| ApiError::Internal(error.into()))?;
    let recognised = state.recogniser.recognise(vec![RecognisedPicture::of_a_face(bytes.clone())]).await?;
    let (face, notes) =
        recognised.pictures.into_iter().next().ok_or(ApiError::ImageMissing)??.only_face(0)?;

    let image_id = Uuid::now_v7().to_string();
    let blob_key = Blobs::image_key(person, &image_id);
    let embedder = state.recogniser.embedder();
    let image = NewImage {
        id: image_id.clone(),
        blob_key: blob_key.clone(),
        bytes: size,
        sha256,
        embedder,
        embedding: face.embedding,
    };
    // First the blob: a row never lacks its blob, and the next sweep removes a blob without a row.
    state.blobs.put(&blob_key, bytes).await?;
    if let Err(error) = state.database.add_image(person, image).await {
        if let Err(left) = state.blobs.delete(&blob_key).await {
            tracing::error!(error = %left, "an image that was not enrolled is left in the blob store");
        }
        return Err(error.into());
    }
    let added = AddedImage {
        face_id: id.to_string(),
        image_id,
        embedder,
        bounding_box: face.bounding_box.into(),
        detection_confidence: face.detection_confidence,
        notes: notes.into_iter().map(|note| ImageNote::new(0, note)).collect(),
    };
    Ok(Answer::new(added))
}

/// SHA-256, hexadecimal, away from the threads that speak HTTP: large pictures take milliseconds.
async fn digest(bytes: Bytes) -> Result<String, ApiError> {
    let digest = tokio::task::spawn_blocking(move || hex(&Sha256::digest(&bytes)));
    digest.await.map_err(|error| ApiError::Internal(error.into()))
}

/// Erases a person: images, embeddings, name
///
/// From now on no answer names that person, also where the database is restored from an older backup. The same Face ID
/// may be enrolled again.
#[api_v2_operation]
pub async fn erase(state: web::Data<State>, path: web::Path<String>) -> Result<NoContent, ApiError> {
    let id = face_id(path)?;
    let with_detections = state.config.erase_detections == ErasedDetections::Delete;
    let erased = state.database.erase_person(&id, with_detections).await?;
    let finished = ledger::finish(&state.blobs, &erased).await;
    state.database.forget_erased().await?;
    finished?;
    Ok(NoContent::new().header(header::CACHE_CONTROL, "no-store"))
}
