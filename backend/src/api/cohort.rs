//! `/cohort`: embeddings of strangers, against which a gallery is calibrated.

use actix_web::web;
use facepipe_identify::open_set::{RULE_OF_THREE, strangers_needed};
use facepipe_vision::DecodeError;
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::{Deserialize, Serialize};

use super::{
    State,
    form::{Form, FormField, FormFields, ImagePart},
    parse_time,
    recognition::{ImageError, ImageNote, timing},
    response::JsonResponse,
    rfc3339,
};
use crate::{
    domain::{CohortSource, IdentifiedFace, now},
    error::ApiError,
    recognise::{ImageResult, UploadedImage},
    store::sql::{self, CohortFilter, NewCohortMember},
};

/// Pictures of strangers.
#[derive(Default, Apiv2Schema)]
pub struct CohortForm {
    /// 1 to 64 pictures of people who are not enrolled: JPEG, PNG, WebP, BMP or GIF, each at most 10 MiB and 50 million
    /// pixels (all can be configured). Their EXIF orientation is applied. Of several faces on one, the main one counts.
    image: Vec<ImagePart>,
}

impl FormFields for CohortForm {
    fn field(&mut self, name: &str) -> Option<FormField<'_>> {
        (name == "image").then_some(FormField::Images(&mut self.image))
    }
}

/// What became of a picture: `added`; `already_there`, where the cohort has an embedding of the same picture; `refused`,
/// for which `errors` has the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Apiv2Schema)]
#[serde(rename_all = "snake_case")]
pub enum CohortOutcome {
    Added,
    AlreadyThere,
    Refused,
}

/// What was added to the cohort.
#[derive(Serialize, Apiv2Schema)]
pub struct AddedToCohort {
    /// The network that computed the embeddings.
    #[openapi(example = "mobilefacenet")]
    embedder: &'static str,
    /// Pictures whose embedding was added.
    #[openapi(minimum = 0, example = "1")]
    added: usize,
    /// Pictures that the cohort has an embedding of.
    #[openapi(minimum = 0, example = "0")]
    already_there: usize,
    /// Pictures without a face.
    #[openapi(minimum = 0, example = "0")]
    no_face: usize,
    /// Pictures that cannot be read.
    #[openapi(minimum = 0, example = "0")]
    unreadable: usize,
    /// Embeddings by this embedder that the cohort has now, of all sources.
    #[openapi(minimum = 0, example = "1000")]
    total: i64,
    /// For each picture, in the order of the request.
    results: Vec<CohortOutcome>,
    /// For each picture that was refused; absent where none was.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<ImageError>,
    /// Remarks on pictures that could be read; absent for most requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<ImageNote>,
}

/// The cohort: how many embeddings of strangers it has. Nothing else is known of them.
#[derive(Serialize, Apiv2Schema)]
pub struct Cohort {
    /// The server's embedder: only its embeddings are used.
    #[openapi(example = "mobilefacenet")]
    embedder: &'static str,
    /// Embeddings by this embedder.
    #[openapi(minimum = 0, example = "1000")]
    total: i64,
    /// The smallest false positive identification rate that so many strangers can show with 95 % confidence: 3 in their
    /// number. The cohort is large enough for a target that is not below. Null where there are fewer than 3.
    #[openapi(minimum = 0, maximum = 1, example = "0.003")]
    measurable_fpir: Option<f64>,
    /// The share of strangers who may be named, for which trainings calibrate (setting `target_fpir`).
    #[openapi(minimum = 0, maximum = 1, example = "0.01")]
    target_fpir: f64,
    /// Whether the cohort can show with 95 % confidence that the target is met: whether `measurable_fpir` is not above it.
    #[openapi(example = "true")]
    large_enough: bool,
    /// By embedder and source.
    groups: Vec<CohortGroup>,
    /// Whether unknown faces of the cameras are added (setting `cohort_from_cameras`).
    #[openapi(example = "false")]
    from_cameras: bool,
    /// How many embeddings from cameras are kept: further ones replace the oldest (setting `cohort_max`).
    #[openapi(minimum = 1, example = "5000")]
    max_from_cameras: u32,
    /// Days for which embeddings from cameras are kept (setting `detections_max_age_days`). Null where that is forever.
    #[openapi(minimum = 1, example = "30")]
    camera_max_age_days: Option<u32>,
}

/// The embeddings of one embedder from one source.
#[derive(Serialize, Apiv2Schema)]
pub struct CohortGroup {
    /// The network that computed them.
    #[openapi(example = "mobilefacenet")]
    embedder: String,
    /// Where they come from: `uploaded`, or `camera`.
    #[openapi(example = "uploaded")]
    source: &'static str,
    /// How many they are.
    #[openapi(minimum = 1, example = "1000")]
    embeddings: i64,
    /// Whether they are used: whether the server has this embedder. Others are kept for when it has theirs again.
    #[openapi(example = "true")]
    used: bool,
    /// When the oldest was uploaded or captured.
    #[openapi(example = "2024-05-01T09:31:00Z")]
    oldest_at: String,
    /// When the newest was uploaded or captured.
    #[openapi(example = "2024-05-06T07:08:09Z")]
    newest_at: String,
}

/// Query of an erasure.
#[derive(Deserialize, Apiv2Schema)]
#[serde(deny_unknown_fields)]
pub struct CohortErasureQuery {
    /// Only embeddings from this source.
    source: Option<String>,
    /// Only embeddings by this embedder.
    embedder: Option<String>,
    /// Only embeddings that were uploaded or captured before this time, RFC 3339. A `+` is sent as `%2B`.
    before: Option<String>,
}

/// What was erased from the cohort.
#[derive(Serialize, Apiv2Schema)]
pub struct ErasedFromCohort {
    /// Embeddings that were erased.
    #[openapi(minimum = 0, example = "1000")]
    erased: usize,
    /// Embeddings that the cohort still has, of all embedders.
    #[openapi(minimum = 0, example = "0")]
    left: i64,
}

/// Adds strangers to the cohort, by pictures of them
///
/// Only the embedding of each picture's main face is stored: no picture, no name, and nothing by which a picture can be
/// found again. The same picture counts once, also in another size or quality. Pictures without a face, and those that
/// cannot be read, are reported and do not keep the others out.
#[api_v2_operation]
pub async fn add(
    state: web::Data<State>,
    Form(form): Form<CohortForm>,
) -> Result<JsonResponse<AddedToCohort>, ApiError> {
    let (images, max) = (form.image.len(), state.config.recognition.max_images);
    match images {
        0 => return Err(ApiError::ImageMissing),
        _ if images > max => return Err(ApiError::TooManyImages { images, max }),
        _ => (),
    }
    let (mut positions, mut readable, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    for (position, part) in form.image.into_iter().enumerate() {
        match part.0 {
            Ok(bytes) => {
                positions.push(position);
                readable.push(UploadedImage::with_required_face(bytes));
            }
            Err(error) => errors.push(refused(position, error)),
        }
    }
    let (mut recognised, mut durations) = (Vec::new(), Default::default());
    if !readable.is_empty() {
        let result = state.recogniser.recognise(readable).await?;
        (recognised, durations) = (result.images, (result.queued, result.processed));
    }
    let (mut no_face, mut notes, mut faces) = (0, Vec::new(), Vec::new());
    for (position, image) in positions.into_iter().zip(recognised) {
        match image {
            Ok(mut image) => {
                notes.extend(image.notes.drain(..).map(|note| ImageNote::new(position, note)));
                let turned = image.turned;
                match main_face(image) {
                    Some(face) => faces.push((position, face.embedding)),
                    None => {
                        no_face += 1;
                        let error = ApiError::NoFace { image: position, turned };
                        errors.push(ImageError { image: position, error: error.detail() });
                    }
                }
            }
            Err(error) => errors.push(refused(position, error)),
        }
    }
    errors.sort_by_key(|error| error.image);

    let embedder = state.recogniser.embedder();
    let (positions, embeddings): (Vec<usize>, Vec<Vec<f32>>) = faces.into_iter().unzip();
    let created_at = now();
    let new = embeddings.into_iter().map(|embedding| NewCohortMember { embedding, created_at }).collect();
    let added = state.database.upload_cohort(embedder, new, state.same_picture_threshold).await?;
    let mut results = vec![CohortOutcome::Refused; images];
    for (position, added) in positions.into_iter().zip(added) {
        if let Some(result) = results.get_mut(position) {
            *result = if added { CohortOutcome::Added } else { CohortOutcome::AlreadyThere };
        }
    }
    let count = |outcome: CohortOutcome| results.iter().filter(|result| **result == outcome).count();
    let body = AddedToCohort {
        embedder,
        added: count(CohortOutcome::Added),
        already_there: count(CohortOutcome::AlreadyThere),
        no_face,
        unreadable: errors.len() - no_face,
        total: total(&state.database.cohort_counts().await?, embedder),
        results,
        errors,
        notes,
    };
    Ok(JsonResponse::new(body).headers([timing(durations.0, durations.1)]))
}

/// How many embeddings the cohort has, and what fills it
#[api_v2_operation]
pub async fn show(state: web::Data<State>) -> Result<web::Json<Cohort>, ApiError> {
    let embedder = state.recogniser.embedder();
    let counts = state.database.cohort_counts().await?;
    let total = total(&counts, embedder);
    let group = |count: sql::CohortCount| {
        Ok::<_, ApiError>(CohortGroup {
            used: count.embedder == embedder,
            embedder: count.embedder,
            source: count.source.name(),
            embeddings: count.embeddings,
            oldest_at: rfc3339(count.oldest)?,
            newest_at: rfc3339(count.newest)?,
        })
    };
    let target_fpir = state.config.recognition.target_fpir;
    Ok(web::Json(Cohort {
        embedder,
        total,
        measurable_fpir: measurable_fpir(total),
        target_fpir,
        large_enough: usize::try_from(total).is_ok_and(|total| total >= strangers_needed(target_fpir)),
        groups: counts.into_iter().map(group).collect::<Result<_, _>>()?,
        from_cameras: state.config.cohort.cohort_from_cameras,
        max_from_cameras: state.config.cohort.cohort_max,
        camera_max_age_days: state.config.retention.detections_max_age_days,
    }))
}

/// Erases the cohort, or a part of it
///
/// The active model keeps its threshold until the next training.
#[api_v2_operation]
pub async fn erase(
    state: web::Data<State>,
    query: web::Query<CohortErasureQuery>,
) -> Result<web::Json<ErasedFromCohort>, ApiError> {
    let erased = state.database.erase_cohort(filter(query.into_inner())?).await?;
    if erased > 0 {
        state.database.scrub_journal().await?;
    }
    let left = state.database.cohort_counts().await?.iter().map(|count| count.embeddings).sum();
    Ok(web::Json(ErasedFromCohort { erased, left }))
}

fn filter(query: CohortErasureQuery) -> Result<CohortFilter, ApiError> {
    let source = |name: String| {
        CohortSource::from_name(&name).ok_or_else(|| {
            ApiError::InvalidQuery(format!("source is {name:?}, it must be \"uploaded\" or \"camera\""))
        })
    };
    let before = |text: String| {
        parse_time(&text).map_err(|reason| {
            ApiError::InvalidQuery(format!("before is {text:?}, which {reason} (a + is sent as %2B)"))
        })
    };
    Ok(CohortFilter {
        source: query.source.map(source).transpose()?,
        embedder: query.embedder,
        before: query.before.map(before).transpose()?,
    })
}

/// Returns the number of embeddings that the cohort has by an embedder.
fn total(counts: &[sql::CohortCount], embedder: &str) -> i64 {
    counts.iter().filter(|count| count.embedder == embedder).map(|count| count.embeddings).sum()
}

/// Returns the lowest FPIR that so many strangers can show, by the rule of three: if none of n strangers is named, the
/// rate is at most 3 in n, with 95 % confidence.
fn measurable_fpir(strangers: i64) -> Option<f64> {
    let strangers = f64::from(u32::try_from(strangers).ok()?);
    (strangers >= RULE_OF_THREE).then(|| RULE_OF_THREE / strangers)
}

fn refused(image: usize, error: DecodeError) -> ImageError {
    ImageError { image, error: ApiError::from(error).detail() }
}

/// Returns the face that represents a picture: the main one, or else the largest. Its identity does not matter, as long
/// as it is one stranger's.
fn main_face(mut image: ImageResult) -> Option<IdentifiedFace> {
    let position = image.main_or_largest_face()?;
    Some(image.faces.swap_remove(position))
}
