//! `/dataset`: whom the server knows.

use actix_multipart::form::MultipartForm;
use actix_web::{HttpResponse, Responder, http::header, web};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    State, face_id,
    form::{Form, ImagePart},
    recognition::BoundingBox,
    rfc3339,
};
use crate::{
    config::ErasedDetections,
    error::ApiError,
    face_id::FaceId,
    store::{Blobs, StoreError, sql::NewImage},
};

#[derive(Serialize)]
struct Dataset {
    people: Vec<Entry>,
    meta: Meta,
}

#[derive(Serialize)]
struct Entry {
    face_id: String,
    images: i64,
}

#[derive(Serialize)]
struct Meta {
    total: usize,
}

#[derive(Serialize)]
struct PersonImages {
    face_id: String,
    images: Vec<Image>,
    meta: Meta,
}

#[derive(Serialize)]
struct Image {
    image_id: String,
    bytes: i64,
    created_at: String,
}

/// Body of a renaming.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Renaming {
    /// The new Face ID.
    face_id: String,
}

#[derive(Serialize)]
struct Added {
    face_id: String,
}

#[derive(Serialize)]
struct AddedImage {
    face_id: String,
    image_id: String,
    embedder: &'static str,
    bounding_box: BoundingBox,
    detection_confidence: f32,
}

/// Form of an enrolment.
#[derive(MultipartForm)]
pub struct EnrolmentForm {
    image: Vec<ImagePart>,
}

/// Every Face ID with its number of images.
pub async fn list(state: web::Data<State>) -> Result<impl Responder, ApiError> {
    let rows = state.database.people().await?;
    let people: Vec<Entry> =
        rows.into_iter().map(|row| Entry { face_id: row.face_id, images: row.images }).collect();
    let meta = Meta { total: people.len() };
    Ok(web::Json(Dataset { people, meta }))
}

/// The images of a person, the oldest first.
pub async fn images(state: web::Data<State>, path: web::Path<String>) -> Result<impl Responder, ApiError> {
    let id = face_id(path)?;
    let rows = state.database.images(&id).await?;
    let images = rows
        .into_iter()
        .map(|row| Ok(Image { image_id: row.id, bytes: row.bytes, created_at: rfc3339(row.created_at)? }))
        .collect::<Result<Vec<_>, ApiError>>()?;
    let meta = Meta { total: images.len() };
    Ok(web::Json(PersonImages { face_id: id.to_string(), images, meta }))
}

/// An enrolled picture, byte by byte as it was sent.
pub async fn image(
    state: web::Data<State>,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, ApiError> {
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
    Ok(HttpResponse::Ok()
        .content_type(format.to_mime_type())
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .body(bytes))
}

/// Erases an enrolled picture and its embedding. The model that answers forgets it with the next training.
pub async fn erase_image(
    state: web::Data<State>,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, ApiError> {
    let (id, image_id) = path.into_inner();
    let id = FaceId::try_from(id)?;
    let key = state.database.erase_image(&id, &image_id).await?;
    // Should the blob stay, the next sweep removes it; until then the erasure is not complete.
    let erased = state.blobs.delete(&key).await;
    state.database.forget_erased().await?;
    erased?;
    Ok(HttpResponse::NoContent().finish())
}

/// Gives a person another Face ID. Answers of the active model and all detections have it at once: they refer to
/// the person, not to the name.
pub async fn rename(
    state: web::Data<State>,
    path: web::Path<String>,
    body: web::Json<Renaming>,
) -> Result<impl Responder, ApiError> {
    let id = face_id(path)?;
    let new = FaceId::try_from(body.into_inner().face_id)?;
    state.database.rename_person(&id, &new).await?;
    // The old name may have been the reason.
    state.database.forget_erased().await?;
    Ok(web::Json(Added { face_id: new.to_string() }))
}

/// Adds a person without images.
pub async fn add(state: web::Data<State>, path: web::Path<String>) -> Result<HttpResponse, ApiError> {
    let id = face_id(path)?;
    state.database.add_person(&id).await?;
    Ok(HttpResponse::Created().json(Added { face_id: id.to_string() }))
}

/// Adds a picture of a person's face and its embedding: both, or nothing.
pub async fn add_image(
    state: web::Data<State>,
    path: web::Path<String>,
    Form(form): Form<EnrolmentForm>,
) -> Result<HttpResponse, ApiError> {
    let id = face_id(path)?;
    let person = state.database.person(&id).await?;
    let images = form.image.len();
    if images > 1 {
        return Err(ApiError::TooManyImages { images, max: 1 });
    }
    let bytes = form.image.into_iter().next().ok_or(ApiError::ImageMissing)?.0?;
    // Not for nothing: recognition takes a while, and the dataset may be locked.
    state.database.dataset_unlocked().await?;
    let size = i64::try_from(bytes.len()).map_err(|error| ApiError::Internal(error.into()))?;
    let recognised = state.recogniser.recognise(vec![bytes.clone()]).await?;
    let mut faces = recognised.pictures.into_iter().next().ok_or(ApiError::ImageMissing)??;
    if faces.len() > 1 {
        return Err(ApiError::SeveralFaces { image: 0, faces: faces.len() });
    }
    let face = faces.pop().ok_or(ApiError::NoFace { image: 0 })?;

    let image_id = Uuid::now_v7().to_string();
    let blob_key = Blobs::image_key(person, &image_id);
    let embedder = state.recogniser.embedder();
    let image = NewImage {
        id: image_id.clone(),
        blob_key: blob_key.clone(),
        bytes: size,
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
    };
    Ok(HttpResponse::Created().json(added))
}

/// Erases a person: images, embeddings, name. From now on no answer names that person.
pub async fn erase(state: web::Data<State>, path: web::Path<String>) -> Result<HttpResponse, ApiError> {
    let id = face_id(path)?;
    let blobs =
        state.database.erase_person(&id, state.config.erase_detections == ErasedDetections::Delete).await?;
    let mut failure = None;
    for key in blobs {
        if let Err(error) = state.blobs.delete(&key).await {
            failure = Some(error);
        }
    }
    state.database.forget_erased().await?;
    match failure {
        // The rows are gone, so the next sweep removes what is left; until then the erasure is not complete.
        Some(error) => Err(error.into()),
        None => Ok(HttpResponse::NoContent().insert_header((header::CACHE_CONTROL, "no-store")).finish()),
    }
}
