//! `/dataset`: enrolled people and their images.

use actix_web::{http::header, web};
use bytes::Bytes;
use facepipe_shared::hex;
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    ListMeta, State,
    face_choice::FaceChoice,
    face_id,
    form::{Form, FormField, FormFields, ImagePart, TextPart},
    page,
    quality::{ImageFace, Quality},
    recognition::{BoundingBox, ImageNote},
    response::{ImageContent, JsonResponse, NoContent},
    rfc3339, trail,
    warnings::{Warning, doubts},
};
use crate::{
    domain::{EnrolledFace, FaceId, Person, PersonRef},
    error::ApiError,
    recognise::UploadedImage,
    store::{
        Blobs, StoreError, ledger,
        sql::{self, NewImage, PendingErasure},
    },
    train::{Conflict, ConflictingImage},
};

/// The enrolled people.
#[derive(Serialize, Apiv2Schema)]
pub struct Dataset {
    /// All of them by their Face IDs, or with `limit` a page in the order of their enrolment.
    people: Vec<Entry>,
    /// Images of different people that are nearly the same picture, as the enrolments and the last training found them,
    /// the most similar first, at most 100 pairs. A training leaves both of a pair out: erase the one that does not show
    /// its person.
    conflicts: Vec<Conflict>,
    meta: DatasetMeta,
}

/// Metadata of the people, or of a page of them.
#[derive(Serialize, Apiv2Schema)]
pub struct DatasetMeta {
    /// Enrolled people, on all pages.
    #[openapi(minimum = 0, example = "1")]
    total: i64,
    /// The `cursor` of the next page. Null on the last one, and without `limit`.
    #[openapi(example = "0000000000000000000000000000002ac3d9f0a1b2c4d5e6")]
    next_cursor: Option<String>,
}

/// Query of the people.
#[derive(Deserialize, Apiv2Schema)]
#[serde(deny_unknown_fields)]
pub struct PeopleQuery {
    /// Entries of a page. Without it, the response has everybody.
    limit: Option<String>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// A person of the dataset.
#[derive(Serialize, Apiv2Schema)]
#[openapi(rename = "DatasetEntry")]
struct Entry {
    /// What `/people/{person_id}` takes.
    #[openapi(example = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c")]
    person_id: String,
    /// The name under which the person is enrolled.
    #[openapi(example = "Ada Lovelace")]
    face_id: String,
    /// Enrolled images.
    #[openapi(minimum = 0, example = "3")]
    images: i64,
    /// Those of them that a training on the stored embeddings uses: with an embedding, and not nearly the same as another
    /// person's. Without any, the next model does not know the person.
    #[openapi(minimum = 0, example = "3")]
    usable_images: i64,
    /// The id of an older person whose name counts as the same: both were there before the server's rule of names was, and
    /// each is found by the exact text of the name, the older one by every other form of it, too. Renaming either ends
    /// that. Null where no other name counts as the same.
    #[openapi(example = "018f4c9a-0d2f-7e4a-8b3c-6e7f8a9b0c1d")]
    same_name_as: Option<String>,
}

/// The images of a person.
#[derive(Serialize, Apiv2Schema)]
pub struct PersonImages {
    /// What `/people/{person_id}` takes.
    #[openapi(example = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c")]
    person_id: String,
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
}

/// A person's Face ID. In a body, so that no log of addresses has it.
#[derive(Deserialize, Apiv2Schema)]
#[serde(deny_unknown_fields)]
pub struct PersonName {
    /// The Face ID.
    #[openapi(example = "Ada Lovelace")]
    face_id: String,
}

impl PersonName {
    /// Returns the checked name.
    ///
    /// # Errors
    /// It is no Face ID.
    pub fn checked(self) -> Result<FaceId, ApiError> {
        Ok(FaceId::try_from(self.face_id)?)
    }
}

/// A renaming.
#[derive(Deserialize, Apiv2Schema)]
#[serde(deny_unknown_fields)]
pub struct Renaming {
    /// The new Face ID.
    #[openapi(example = "Ada Byron")]
    face_id: String,
}

/// A person that was added, renamed or found.
#[derive(Serialize, Apiv2Schema)]
#[openapi(rename = "NamedPerson")]
pub struct Added {
    /// What `/people/{person_id}` takes.
    #[openapi(example = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c")]
    person_id: String,
    /// The name under which the person is enrolled.
    #[openapi(example = "Ada Lovelace")]
    face_id: String,
}

/// The image that was enrolled.
#[derive(Serialize, Apiv2Schema)]
pub struct AddedImage {
    /// What `/people/{person_id}` takes.
    #[openapi(example = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c")]
    person_id: String,
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
    quality: Quality,
    /// Remarks on the image's file; absent for most images.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<ImageNote>,
    /// Where other people have nearly the same picture; also the first of `warnings`.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<Warning>,
    /// Reasons to doubt that the image shows its person; absent for most images.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<Warning>,
}

/// An image of another person that is nearly the same picture.
#[derive(Clone, Serialize, Apiv2Schema)]
pub struct SimilarImage {
    /// What `/images/{image_id}` takes.
    #[openapi(example = "018f4c9b-0d2f-7e4a-8b3c-6e7f8a9b0c1d")]
    image_id: String,
    /// The person's id, as `/people/{person_id}` takes it.
    #[openapi(example = "018f4c9a-0d2f-7e4a-8b3c-6e7f8a9b0c1d")]
    person_id: String,
    /// The name under which that person is enrolled.
    #[openapi(example = "Ada Byron")]
    face_id: String,
    /// Cosine between the embeddings of the two images.
    #[openapi(minimum = -1, maximum = 1, example = "0.995")]
    similarity: f32,
}

/// Maximum number of images in a warning.
const SIMILAR_LISTED: usize = 10;

impl From<sql::SimilarImage> for SimilarImage {
    fn from(image: sql::SimilarImage) -> Self {
        Self {
            image_id: image.image_id,
            person_id: image.person.id.to_string(),
            face_id: image.person.face_id,
            similarity: image.similarity,
        }
    }
}

/// An enrolment.
#[derive(Default, Apiv2Schema)]
pub struct EnrolmentForm {
    /// A picture of the person: JPEG, PNG, WebP, BMP or GIF, at most 10 MiB and 50 million pixels (both can be configured).
    /// Its EXIF orientation is applied. Where it shows several faces, the main one is enrolled, which is the nearest to the
    /// centre and clearly the largest.
    image: Vec<ImagePart>,
    /// Which face to enrol, by its place: `left,top,right,bottom` in pixels of the upright image.
    #[openapi(example = "112,64,208,186")]
    r#box: Option<TextPart>,
    /// Which face to enrol, by its position among the `boxes` of the error `several_faces`, from 0. Not together with `box`.
    #[openapi(example = "0")]
    face: Option<TextPart>,
}

impl FormFields for EnrolmentForm {
    fn field(&mut self, name: &str) -> Option<FormField<'_>> {
        Some(match name {
            "image" => FormField::Images(&mut self.image),
            "box" => FormField::Text(&mut self.r#box),
            "face" => FormField::Text(&mut self.face),
            _ => return None,
        })
    }
}

/// Every Face ID with its number of images
///
/// With `limit` in pages, in the order of enrolment; `conflicts` are on the first one.
#[api_v2_operation]
pub async fn list(
    state: web::Data<State>,
    query: web::Query<PeopleQuery>,
) -> Result<web::Json<Dataset>, ApiError> {
    everybody(&state, query.into_inner()).await
}

/// Returns the enrolled people, or a page of them.
pub async fn everybody(state: &State, query: PeopleQuery) -> Result<web::Json<Dataset>, ApiError> {
    const SCOPE: &str = "people";
    let PeopleQuery { limit, cursor } = query;
    let position = |text: String| page::position_of(&text, SCOPE).ok_or(ApiError::InvalidCursor);
    let after = cursor.map(position).transpose()?.map(|position| page::halves(position).1);
    let is_first = after.is_none();
    let embedder = state.recogniser.embedder();
    let (rows, total, next_cursor) = if limit.is_none() && is_first {
        let rows = state.database.people(embedder).await?;
        let total = i64::try_from(rows.len()).unwrap_or(i64::MAX);
        (rows, total, None)
    } else {
        let limit = limit.map_or(Ok(page::LIST_LIMIT), page::limit_of)?;
        // One row more shows whether there is a next page.
        let (rows, total) =
            state.database.people_after(embedder, after.unwrap_or(0), i64::from(limit) + 1).await?;
        let (rows, more) = page::cut(rows, limit);
        let last = rows.last().filter(|_| more);
        let next = last.map(|(row, _)| page::cursor_of(page::joined(0, *row), SCOPE));
        (rows.into_iter().map(|(_, row)| row).collect(), total, next)
    };
    let pairs = if is_first { state.database.similar_pairs(CONFLICTS_LISTED).await?.0 } else { Vec::new() };
    let people: Vec<Entry> = rows
        .into_iter()
        .map(|row| Entry {
            person_id: row.person.id.to_string(),
            face_id: row.person.face_id,
            images: row.images,
            usable_images: row.usable_images,
            same_name_as: row.same_name_as.map(|id| id.to_string()),
        })
        .collect();
    let image = |(image_id, person): (String, Person)| ConflictingImage {
        image_id,
        person_id: person.id.to_string(),
        face_id: Some(person.face_id),
    };
    let conflicts = pairs
        .into_iter()
        .map(|pair| Conflict { images: pair.images.map(image).into(), similarity: pair.similarity })
        .collect();
    Ok(web::Json(Dataset { people, conflicts, meta: DatasetMeta { total, next_cursor } }))
}

/// Maximum number of conflicts in the list of people.
const CONFLICTS_LISTED: i64 = 100;

/// The images of a person, the oldest first
#[api_v2_operation]
pub async fn images(
    state: web::Data<State>,
    path: web::Path<String>,
) -> Result<web::Json<PersonImages>, ApiError> {
    images_of(&state, &PersonRef::FaceId(face_id(path)?)).await
}

/// Returns the images of a person.
pub async fn images_of(state: &State, who: &PersonRef) -> Result<web::Json<PersonImages>, ApiError> {
    let (person, rows) = state.database.images(who).await?;
    let images = rows
        .into_iter()
        .map(|row| {
            let created_at = rfc3339(row.created_at)?;
            let face = row.face.map(ImageFace::from);
            Ok(Image { image_id: row.id, bytes: row.bytes, sha256: row.sha256, created_at, face })
        })
        .collect::<Result<Vec<_>, ApiError>>()?;
    let meta = ListMeta { total: images.len() };
    Ok(web::Json(PersonImages { person_id: person.id.to_string(), face_id: person.face_id, images, meta }))
}

/// The bytes of an enrolled image as they were uploaded
#[api_v2_operation]
pub async fn image(
    state: web::Data<State>,
    path: web::Path<(String, String)>,
) -> Result<ImageContent, ApiError> {
    let (id, image_id) = path.into_inner();
    let who = PersonRef::FaceId(FaceId::try_from(id)?);
    image_content(&state, async || Ok(state.database.image_blob_key(&who, &image_id).await?)).await
}

/// Returns the enrolled image whose key `key` looks up in its row.
pub async fn image_content(
    state: &State,
    key: impl AsyncFn() -> Result<String, ApiError>,
) -> Result<ImageContent, ApiError> {
    let blob_key = key().await?;
    if !sql::has_picture(&blob_key) {
        return Err(ApiError::NoPicture);
    }
    let bytes = match state.blobs.get(&blob_key).await {
        Err(error @ StoreError::Blob(object_store::Error::NotFound { .. })) => {
            // The image may have been erased since its row was read; then the row is gone, too.
            key().await?;
            return Err(error.into());
        }
        outcome => outcome?,
    };
    // Enrolment accepts only formats that are recognised by their first bytes.
    let format =
        image::guess_format(&bytes).map_err(|_| StoreError::Damaged("an image of no known format".into()))?;
    Ok(ImageContent { bytes, format })
}

/// Erases an enrolled image and its embedding
///
/// The active model contains it until the next training.
#[api_v2_operation]
pub async fn erase_image(
    state: web::Data<State>,
    path: web::Path<(String, String)>,
) -> Result<NoContent, ApiError> {
    let (id, image_id) = path.into_inner();
    let who = PersonRef::FaceId(FaceId::try_from(id)?);
    let erased = state.database.erase_image(&who, &image_id).await?;
    finish_erasure(&state, &erased).await?;
    Ok(NoContent::new())
}

/// Finishes an erasure: blobs and the ledger.
pub async fn finish_erasure(state: &State, erased: &PendingErasure) -> Result<(), ApiError> {
    let finished = ledger::finish(&state.blobs, erased).await;
    state.database.scrub_journal().await?;
    Ok(finished?)
}

/// Gives a person another Face ID
///
/// Results of the active model and all detections have it at once: they refer to the person, not to the name.
#[api_v2_operation]
pub async fn rename(
    state: web::Data<State>,
    path: web::Path<String>,
    body: web::Json<Renaming>,
) -> Result<web::Json<Added>, ApiError> {
    rename_to(&state, &PersonRef::FaceId(face_id(path)?), body.into_inner()).await
}

/// Renames a person.
pub async fn rename_to(
    state: &State,
    who: &PersonRef,
    renaming: Renaming,
) -> Result<web::Json<Added>, ApiError> {
    let new = FaceId::try_from(renaming.face_id)?;
    let person = state.database.rename_person(who, &new).await?;
    // The old name may have to leave the database's journal, too.
    state.database.scrub_journal().await?;
    Ok(web::Json(person.into()))
}

/// Adds a person without images
#[api_v2_operation]
pub async fn add(
    state: web::Data<State>,
    path: web::Path<String>,
) -> Result<JsonResponse<Added, 201>, ApiError> {
    let person = state.database.add_person(&face_id(path)?).await?;
    trail::is_about_person(person.id);
    Ok(JsonResponse::new(person.into()))
}

/// Enrols an image of a person's face with its embedding: both, or nothing
///
/// The person can be recognised after the next training. Of several faces, the main one is enrolled: the largest and the
/// nearest to the centre, with 1.25 times the area of every other one that the detector is sure of. Without one, the image is
/// rejected with 422 `several_faces`, unless `box` or `face` says which one it is. The response has the face's `quality`, and
/// `warnings` where it looks like another person or unlike the person's other images. An image with the bytes of an enrolled
/// one is rejected with 409 and the `image_id` and `person_id` of that one: `duplicate_image` where the person has it,
/// `image_of_another` where another person does. One that is nearly the same as another person's (a copy in another size or
/// quality) is accepted with a `warning`: a training leaves both out, until one of them is erased.
#[api_v2_operation]
pub async fn add_image(
    state: web::Data<State>,
    path: web::Path<String>,
    Form(form): Form<EnrolmentForm>,
) -> Result<JsonResponse<AddedImage, 201>, ApiError> {
    enrol(&state, &PersonRef::FaceId(face_id(path)?), form).await
}

/// Enrols an image of a person.
pub async fn enrol(
    state: &State,
    who: &PersonRef,
    form: EnrolmentForm,
) -> Result<JsonResponse<AddedImage, 201>, ApiError> {
    let person = state.database.person(who).await?;
    let images = form.image.len();
    if images > 1 {
        return Err(ApiError::TooManyImages { images, max: 1 });
    }
    let choice = FaceChoice::read(form.r#box.as_ref(), form.face.as_ref())?;
    let bytes = form.image.into_iter().next().ok_or(ApiError::ImageMissing)?.0?;
    // These checks precede recognition, which takes a while: the image may be a duplicate, or the dataset locked.
    let sha256 = digest(bytes.clone()).await?;
    state.database.ensure_image_is_new(person.row, &sha256).await?;
    state.database.dataset_unlocked().await?;
    let size = i64::try_from(bytes.len()).map_err(|error| ApiError::Internal(error.into()))?;
    let result = state.recogniser.recognise(vec![UploadedImage::with_required_face(bytes.clone())]).await?;
    let (face, notes) = choice.take(result.images.into_iter().next().ok_or(ApiError::ImageMissing)??, 0)?;
    let min = state.config.dataset.min_quality;
    if u32::from(face.quality.score()) < min {
        return Err(ApiError::QualityTooLow { quality: face.quality, min });
    }

    let image_id = Uuid::now_v7().to_string();
    let blob_key = Blobs::image_key(person.row, &image_id);
    let embedder = state.recogniser.embedder();
    let similar = state
        .database
        .similar_images(
            person.row,
            embedder,
            face.embedding.clone(),
            state.same_picture_threshold,
            SIMILAR_LISTED,
        )
        .await?;
    let copied: Vec<i64> = similar.iter().map(|image| image.person.row).collect();
    let doubts = doubts(state, &person, &face, &copied).await?;
    let image = NewImage {
        id: image_id.clone(),
        blob_key: blob_key.clone(),
        bytes: size,
        sha256,
        embedder,
        face: EnrolledFace { bounding_box: face.bounding_box, quality: face.quality },
        embedding: face.embedding,
    };
    // The blob is written first: a row always has its blob, and the next sweep removes a blob without a row.
    state.blobs.put(&blob_key, bytes).await?;
    if let Err(error) = state.database.add_image(person.row, image).await {
        if let Err(left) = state.blobs.delete(&blob_key).await {
            tracing::error!(error = %left, "cannot delete the blob of an image that was not enrolled");
        }
        return Err(error.into());
    }
    trail::is_about_image(&image_id, person.id);
    if !similar.is_empty() {
        let pair = |other: &sql::SimilarImage| (image_id.clone(), other.image_id.clone(), other.similarity);
        if let Err(error) = state.database.record_similar(similar.iter().map(pair).collect()).await {
            tracing::warn!(%error, "cannot store which images are nearly the same; the next training does");
        }
    }
    let warning = Warning::of_similar(similar);
    let warnings = warning.clone().into_iter().chain(doubts).collect();
    let added = AddedImage {
        person_id: person.id.to_string(),
        face_id: person.face_id,
        image_id,
        embedder,
        bounding_box: face.bounding_box.into(),
        detection_confidence: face.detection_confidence,
        quality: face.quality.into(),
        notes: notes.into_iter().map(|note| ImageNote::new(0, note)).collect(),
        warning,
        warnings,
    };
    Ok(JsonResponse::new(added))
}

/// Returns the SHA-256 digest, hexadecimal. Runs on a blocking thread: large images take milliseconds.
async fn digest(bytes: Bytes) -> Result<String, ApiError> {
    let digest = tokio::task::spawn_blocking(move || hex(&Sha256::digest(&bytes)));
    digest.await.map_err(|error| ApiError::Internal(error.into()))
}

/// Erases a person: images, embeddings, name
///
/// From now on no response names that person, even after the database is restored from an older backup. The same Face ID
/// may be enrolled again.
#[api_v2_operation]
pub async fn erase(state: web::Data<State>, path: web::Path<String>) -> Result<NoContent, ApiError> {
    erase_whom(&state, &PersonRef::FaceId(face_id(path)?)).await
}

/// Erases a person.
pub async fn erase_whom(state: &State, who: &PersonRef) -> Result<NoContent, ApiError> {
    let with_detections = state.config.retention.erases_detections();
    let erased = state.database.erase_person(who, with_detections).await?;
    finish_erasure(state, &erased).await?;
    Ok(NoContent::new().header(header::CACHE_CONTROL, "no-store"))
}

impl From<Person> for Added {
    fn from(person: Person) -> Self {
        Self { person_id: person.id.to_string(), face_id: person.face_id }
    }
}
