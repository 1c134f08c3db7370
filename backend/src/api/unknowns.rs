//! `/unknowns`: people who are not enrolled, as groups of their faces.

use actix_web::web;
use image::ImageFormat;
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::{Deserialize, Deserializer, Serialize};

use super::{
    State,
    detections::{self, Detection, time_range},
    model::{self, Started, TrainQuery},
    page::{self, LIST_LIMIT, PageMeta, limit_of},
    response::{ImageContent, JsonResponse, NoContent},
    rfc3339, trail,
};
use crate::{
    domain::{self, FaceId, JobKind, UnknownFilter, UnknownId, UnknownOrder, UnknownPosition},
    error::ApiError,
    store::{StoreError, ledger, sql},
    unknowns,
};

/// Query of the list.
#[derive(Deserialize, Apiv2Schema)]
#[serde(deny_unknown_fields)]
pub struct UnknownsQuery {
    /// Only those whom the camera with this id has seen.
    camera: Option<String>,
    /// Only those who were seen at this time or later, RFC 3339. A `+` is sent as `%2B`. With `camera`, by that camera.
    from: Option<String>,
    /// Only those who were seen before this time, RFC 3339. With `camera`, by that camera.
    to: Option<String>,
    /// Only those who are ignored (`true`), only the others (`false`, the default), or `all`.
    ignored: Option<String>,
    /// Only those with at least so many detections; the setting `unknown_min_faces` by default.
    min_faces: Option<String>,
    /// `last_seen`, the default, or `faces`: the most recent or the most frequent first.
    sort: Option<String>,
    /// Entries of a page, 100 by default.
    limit: Option<String>,
    /// `next_cursor` of the page before, with otherwise the same query.
    cursor: Option<String>,
}

/// Query of an unknown person.
#[derive(Deserialize, Apiv2Schema)]
#[serde(deny_unknown_fields)]
pub struct UnknownQuery {
    /// Detections of a page, 100 by default.
    limit: Option<String>,
    /// `next_cursor` of the page before, with otherwise the same query.
    cursor: Option<String>,
}

/// A page of unknown people.
#[derive(Serialize, Apiv2Schema)]
pub struct Unknowns {
    /// In the order of `sort`.
    unknowns: Vec<Unknown>,
    meta: PageMeta,
}

/// An unknown person: a group of unknown faces that resemble each other.
#[derive(Serialize, Apiv2Schema)]
pub struct Unknown {
    /// What `/unknowns/{unknown_id}` takes. The id of a group that is merged into another one leads to that one.
    #[openapi(example = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c")]
    unknown_id: String,
    /// Detections of the group.
    #[openapi(minimum = 1, example = "12")]
    faces: i64,
    /// Tracks that they are of; a detection without a track counts as one.
    #[openapi(minimum = 1, example = "4")]
    tracks: i64,
    /// When the first of them was captured.
    #[openapi(example = "2024-05-04T17:01:02Z")]
    first_seen: String,
    /// When the last of them was captured.
    #[openapi(example = "2024-05-06T07:08:09.25Z")]
    last_seen: String,
    /// The cameras that have seen the person, the latest first.
    cameras: Vec<UnknownCamera>,
    /// The `id` of the detection that is most like all of them.
    #[openapi(example = "42")]
    representative: i64,
    /// Whether the list leaves the person out unless asked for.
    #[openapi(example = "false")]
    ignored: bool,
    /// Whether the group was merged or split by hand: grouping all faces together again keeps its faces together.
    #[openapi(example = "false")]
    pinned: bool,
    /// When the group was made.
    #[openapi(example = "2024-05-04T17:01:03Z")]
    created_at: String,
}

/// A camera that has seen an unknown person.
#[derive(Serialize, Apiv2Schema)]
pub struct UnknownCamera {
    /// The camera.
    #[openapi(example = "gate-1")]
    camera_id: String,
    /// Its detections of the person.
    #[openapi(minimum = 1, example = "12")]
    faces: i64,
    /// When it captured the last of them.
    #[openapi(example = "2024-05-06T07:08:09.25Z")]
    last_seen: String,
}

/// An unknown person with a page of detections.
#[derive(Serialize, Apiv2Schema)]
pub struct UnknownDetails {
    unknown: Unknown,
    /// The newest first.
    detections: Vec<Detection>,
    /// Pictures of faces of the group, the newest first, 100 at most: those that are kept (setting `unknown_pictures`).
    pictures: Vec<UnknownPicture>,
    meta: PageMeta,
}

/// A picture of an unknown face.
#[derive(Serialize, Apiv2Schema)]
pub struct UnknownPicture {
    /// The `id` of its detection, with which `/unknowns/{unknown_id}/pictures/{detection_id}` has the picture.
    #[openapi(example = "42")]
    detection_id: i64,
    /// Its size.
    #[openapi(minimum = 1, example = "8213")]
    bytes: i64,
    /// When it was stored.
    #[openapi(example = "2024-05-06T07:08:09Z")]
    created_at: String,
}

/// The groups to be merged into another one.
#[derive(Deserialize, Apiv2Schema)]
#[serde(deny_unknown_fields)]
pub struct UnknownsToMerge {
    /// Their ids, 1 to 100.
    #[openapi(example = "018f4c9b-0d2f-7e4a-8b3c-6e7f8a9b0c1d")]
    unknown_ids: Vec<String>,
}

/// The detections of another person in a group.
#[derive(Deserialize, Apiv2Schema)]
#[serde(deny_unknown_fields)]
pub struct DetectionsToSplit {
    /// Their ids, 1 to 1000, and not all of the group.
    #[openapi(example = "42")]
    detections: Vec<i64>,
}

/// A group that was split.
#[derive(Serialize, Apiv2Schema)]
pub struct SplitUnknown {
    remaining: Unknown,
    new: Unknown,
}

/// The name for an unknown person.
#[derive(Deserialize, Apiv2Schema)]
#[serde(deny_unknown_fields)]
pub struct UnknownName {
    /// The name under which the person will be enrolled.
    #[openapi(example = "Ada Lovelace")]
    face_id: String,
    /// Whether the faces are added to the person who has this name already. Otherwise, the default, such a name is refused.
    #[openapi(example = "false")]
    #[serde(default, deserialize_with = "not_null")]
    add_to_existing: Option<bool>,
}

/// Reads a field that may be left out, and may not be null: an `Option` alone would take that.
fn not_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// An unknown person who became an enrolled one.
#[derive(Serialize, Apiv2Schema)]
pub struct NamedUnknown {
    /// What `/people/{person_id}` takes.
    #[openapi(example = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c")]
    person_id: String,
    /// The name under which the person is enrolled.
    #[openapi(example = "Ada Lovelace")]
    face_id: String,
    /// Whether the person was added, rather than somebody who was enrolled before.
    #[openapi(example = "true")]
    new_person: bool,
    /// Images that were enrolled.
    #[openapi(minimum = 0, example = "6")]
    images: usize,
    /// Those of them that have a picture.
    #[openapi(minimum = 0, example = "0")]
    images_with_picture: usize,
    /// Detections that have the name now.
    #[openapi(minimum = 0, example = "12")]
    detections: usize,
    /// The training that was started. Null where the group had this name before.
    #[openapi(example = "018f4c9b-0d2f-7e4a-8b3c-6e7f8a9b0c1d")]
    job_id: Option<String>,
}

/// Maximum number of groups that are merged by a call.
const MAX_MERGED: usize = 100;
/// Maximum number of detections that are moved by a call.
const MAX_SPLIT: usize = 1000;
/// Maximum number of pictures that are listed.
const MAX_PICTURES: i64 = 100;

/// Unknown people, the most recent first
///
/// Unknown faces with an embedding (setting `keep_unknown_embeddings`) are grouped soon after they are stored (setting
/// `group_unknowns`): those that resemble each other are one person's. No group becomes an enrolled person by itself.
#[api_v2_operation]
pub async fn list(
    state: web::Data<State>,
    query: web::Query<UnknownsQuery>,
) -> Result<web::Json<Unknowns>, ApiError> {
    let UnknownsQuery { camera, from, to, ignored, min_faces, sort, limit, cursor } = query.into_inner();
    let (from, to) = time_range(from, to)?;
    let limit = limit.map_or(Ok(LIST_LIMIT), limit_of)?;
    let min_faces = match min_faces {
        None => i64::from(state.config.unknowns.unknown_min_faces),
        Some(text) => text.parse().ok().filter(|faces| *faces >= 1).ok_or_else(|| {
            ApiError::InvalidQuery(format!("min_faces is {text:?}, it must be a whole number from 1"))
        })?,
    };
    let filter = UnknownFilter { camera_id: camera, from, to, ignored: ignored_of(ignored)?, min_faces };
    let order = order_of(sort)?;
    let scope = format!("unknowns {order:?} {filter:?}");
    let position = |text: String| {
        let (value, row) =
            page::position_of(&text, &scope).map(page::halves).ok_or(ApiError::InvalidCursor)?;
        Ok::<_, ApiError>(UnknownPosition { value, row })
    };
    let after = cursor.map(position).transpose()?;
    // One row more shows whether there is a next page.
    let rows = state.database.unknowns(filter, order, after, i64::from(limit) + 1).await?;
    let (rows, more) = page::cut(rows, limit);
    let last = rows.last().filter(|_| more).map(|last| order.position(last));
    let next_cursor =
        last.map(|UnknownPosition { value, row }| page::cursor_of(page::joined(value, row), &scope));
    let unknowns = rows.into_iter().map(Unknown::try_from).collect::<Result<_, _>>()?;
    Ok(web::Json(Unknowns { unknowns, meta: PageMeta { next_cursor } }))
}

/// An unknown person with the person's detections, the newest first
#[api_v2_operation]
pub async fn get(
    state: web::Data<State>,
    path: web::Path<String>,
    query: web::Query<UnknownQuery>,
) -> Result<web::Json<UnknownDetails>, ApiError> {
    let UnknownQuery { limit, cursor } = query.into_inner();
    let unknown = state.database.unknown(unknown_id(&path)?).await?;
    let (detections, next_cursor) = detections::of_unknown(&state, unknown.row, limit, cursor).await?;
    let pictures = state.database.unknown_pictures(unknown.row, MAX_PICTURES).await?;
    let picture = |picture: sql::UnknownPicture| {
        let created_at = rfc3339(picture.created_at)?;
        Ok(UnknownPicture { detection_id: picture.detection, bytes: picture.bytes, created_at })
    };
    let pictures = pictures.into_iter().map(picture).collect::<Result<_, ApiError>>()?;
    let (unknown, meta) = (unknown.try_into()?, PageMeta { next_cursor });
    Ok(web::Json(UnknownDetails { unknown, detections, pictures, meta }))
}

/// The picture of an unknown face
///
/// Where it is kept (setting `unknown_pictures`), until it is too old (`unknown_max_age_hours`).
#[api_v2_operation]
pub async fn picture(
    state: web::Data<State>,
    path: web::Path<(String, String)>,
) -> Result<ImageContent, ApiError> {
    let (unknown, detection) = path.into_inner();
    let row = state.database.unknown(unknown_id(&unknown)?).await?.row;
    let detection = detection.parse().map_err(|_| ApiError::DetectionNotFound)?;
    let key = state.database.unknown_picture_key(row, detection).await?.ok_or(ApiError::NoPicture)?;
    let bytes = match state.blobs.get(&key).await {
        // The picture has become too old in the meantime.
        Err(StoreError::Blob(object_store::Error::NotFound { .. })) => return Err(ApiError::NoPicture),
        bytes => bytes?,
    };
    Ok(ImageContent { bytes, format: ImageFormat::Jpeg })
}

/// Merges groups that are of the same unknown person
///
/// The group of the address keeps its id, and whether it is ignored; the ids of the others lead to it from then on. Grouping
/// all faces together again does not divide it.
#[api_v2_operation]
pub async fn merge(
    state: web::Data<State>,
    path: web::Path<String>,
    body: web::Json<UnknownsToMerge>,
) -> Result<web::Json<Unknown>, ApiError> {
    let into = unknown_id(&path)?;
    let ids = body.into_inner().unknown_ids;
    ensure_number("unknown_ids", ids.len(), MAX_MERGED)?;
    let parse = |id: &String| {
        UnknownId::parse(id).ok_or_else(|| ApiError::InvalidField {
            field: "unknown_ids".into(),
            reason: format!("has {id:?}, which is no id of an unknown person"),
        })
    };
    let others = ids.iter().map(parse).collect::<Result<_, _>>()?;
    let merged = state.database.merge_unknowns(into, others).await?;
    Ok(web::Json(merged.try_into()?))
}

/// Moves detections of a group to a new one, since they show somebody else
///
/// The two stay apart from then on. The new one is not ignored.
#[api_v2_operation]
pub async fn split(
    state: web::Data<State>,
    path: web::Path<String>,
    body: web::Json<DetectionsToSplit>,
) -> Result<JsonResponse<SplitUnknown, 201>, ApiError> {
    let id = unknown_id(&path)?;
    let faces = body.into_inner().detections;
    ensure_number("detections", faces.len(), MAX_SPLIT)?;
    let divided = state.database.divide_unknown(id, faces).await?;
    let (remaining, new) = (divided.remaining.try_into()?, divided.new.try_into()?);
    Ok(JsonResponse::new(SplitUnknown { remaining, new }))
}

/// Makes an unknown person an enrolled one
///
/// Enrols up to ten of the group's best faces, starts a training (`job_id`), and puts the name to the group's detections, whose
/// `confidence`, `score` and `model_version` are null then. The group is gone; naming it so again responds with the same person and
/// changes nothing. Where no pictures of unknown faces are kept, the new images have embeddings only: another embedder cannot
/// use them, and `GET /images/{image_id}/content` responds 404 `no_picture`.
#[api_v2_operation]
pub async fn name(
    state: web::Data<State>,
    path: web::Path<String>,
    body: web::Json<UnknownName>,
) -> Result<web::Json<NamedUnknown>, ApiError> {
    let id = unknown_id(&path)?;
    let UnknownName { face_id, add_to_existing } = body.into_inner();
    let name = FaceId::try_from(face_id)?;
    let named = state.database.name_unknown(id, &name, add_to_existing.unwrap_or(false)).await?;
    trail::belongs_to(named.person.id);
    unknowns::delete_blobs(&state.blobs, &named.blobs).await;
    if named.job.is_some() {
        // The named faces' embeddings were removed from their detections.
        state.database.scrub_journal_of_detections().await?;
    }
    Ok(web::Json(NamedUnknown {
        person_id: named.person.id.to_string(),
        face_id: named.person.face_id,
        new_person: named.is_new,
        images: named.images,
        images_with_picture: named.pictures,
        detections: named.detections,
        job_id: named.job,
    }))
}

/// Has the list leave out an unknown person
///
/// The person stays ignored when seen again.
#[api_v2_operation]
pub async fn ignore(
    state: web::Data<State>,
    path: web::Path<String>,
) -> Result<web::Json<Unknown>, ApiError> {
    let unknown = state.database.ignore_unknown(unknown_id(&path)?, true).await?;
    Ok(web::Json(unknown.try_into()?))
}

/// Has the list include an unknown person again
#[api_v2_operation]
pub async fn stop_ignoring(
    state: web::Data<State>,
    path: web::Path<String>,
) -> Result<web::Json<Unknown>, ApiError> {
    let unknown = state.database.ignore_unknown(unknown_id(&path)?, false).await?;
    Ok(web::Json(unknown.try_into()?))
}

/// Erases an unknown person: the group and the embeddings of its faces
///
/// The detections stay without embeddings, or are deleted where the setting `erase_detections` says so. Restoring an older
/// backup does not bring the group back. Seen again, the person is a new one.
#[api_v2_operation]
pub async fn erase(state: web::Data<State>, path: web::Path<String>) -> Result<NoContent, ApiError> {
    let with_detections = state.config.retention.erases_detections();
    let erased = state.database.erase_unknown(unknown_id(&path)?, with_detections).await?;
    state.database.scrub_journal_of_unknowns().await?;
    ledger::finish(&state.blobs, &erased).await?;
    Ok(NoContent::new())
}

/// Groups all unknown faces together again
///
/// Done every night (setting `unknown_regroup_hour`). Groups keep their ids where they keep most of their faces, those that
/// are ignored stay so, and what was merged or split by hand stays so. Responds 202 with a queued job, or with
/// `wait=true` 200 with the job and its result.
#[api_v2_operation]
pub async fn regroup(state: web::Data<State>, query: web::Query<TrainQuery>) -> Result<Started, ApiError> {
    model::start(&state, &query, JobKind::ReclusterUnknowns).await
}

/// Reads the id of a path; no unknown person has an invalid one.
fn unknown_id(path: &str) -> Result<UnknownId, ApiError> {
    UnknownId::parse(path).ok_or(ApiError::UnknownNotFound)
}

fn ignored_of(text: Option<String>) -> Result<Option<bool>, ApiError> {
    match text.as_deref() {
        None | Some("false") => Ok(Some(false)),
        Some("true") => Ok(Some(true)),
        Some("all") => Ok(None),
        Some(other) => Err(ApiError::InvalidQuery(format!(
            "ignored is {other:?}, it must be \"true\", \"false\" or \"all\""
        ))),
    }
}

fn order_of(text: Option<String>) -> Result<UnknownOrder, ApiError> {
    match text.as_deref() {
        None | Some("last_seen") => Ok(UnknownOrder::LastSeen),
        Some("faces") => Ok(UnknownOrder::Faces),
        Some(other) => {
            Err(ApiError::InvalidQuery(format!("sort is {other:?}, it must be \"last_seen\" or \"faces\"")))
        }
    }
}

/// Checks the number of entries of a list.
pub fn ensure_number(field: &str, number: usize, max: usize) -> Result<(), ApiError> {
    if (1..=max).contains(&number) {
        return Ok(());
    }
    let reason = format!("has {number} entries, it must have 1 to {max}");
    Err(ApiError::InvalidField { field: field.to_owned(), reason })
}

impl TryFrom<domain::Unknown> for Unknown {
    type Error = ApiError;

    fn try_from(row: domain::Unknown) -> Result<Self, ApiError> {
        let camera = |camera: domain::UnknownCamera| {
            let last_seen = rfc3339(camera.last_seen)?;
            Ok(UnknownCamera { camera_id: camera.camera_id, faces: camera.faces, last_seen })
        };
        Ok(Self {
            unknown_id: row.id.to_string(),
            faces: row.faces,
            tracks: row.tracks,
            first_seen: rfc3339(row.first_seen)?,
            last_seen: rfc3339(row.last_seen)?,
            cameras: row.cameras.into_iter().map(camera).collect::<Result<_, ApiError>>()?,
            representative: row.representative,
            ignored: row.ignored,
            pinned: row.pinned,
            created_at: rfc3339(row.created_at)?,
        })
    }
}
