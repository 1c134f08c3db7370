//! `/face-recognition`: who is on pictures, and remembering who was seen.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use actix_web::{http::header::HeaderName, web};
use facepipe_vision::{DecodeError, DecodeNote};
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::Serialize;
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

use super::{
    State,
    answer::{Answer, NoContent},
    form::{Form, FormField, FormFields, ImagePart, TextPart},
    rfc3339,
};
use crate::{
    domain::{IdentifiedFace, Micros, now, to_micros},
    error::{ApiError, ErrorDetail},
    recognise::{Picture, SeenPicture},
    request_id::RequestId,
    store::sql::{IdempotentCall, NewUploads, Upload},
};

/// At most so often the log tells of a capture time that does not count.
const CLOCKS_TOLD_EVERY: Duration = Duration::from_secs(600);

/// Characters of `camera_id`, `location` and `key` at most.
const MAX_CHARACTERS: usize = 200;

/// Pictures in which faces are looked for. What stands in the form once for each image stands there in the order of
/// the images, empty where it says nothing, or not at all.
#[derive(Default, Apiv2Schema)]
pub struct RecognitionForm {
    /// 1 to 64 pictures: JPEG, PNG, WebP, BMP or GIF, each at most 10 MiB and 50 million pixels (all can be
    /// configured). Their EXIF orientation is applied.
    image: Vec<ImagePart>,
    /// Which camera took them: 1 to 200 characters, no control characters.
    #[openapi(example = "gate-1")]
    camera_id: Option<TextPart>,
    /// Where the camera stands: at most 200 characters, no control characters.
    #[openapi(example = "Lobby")]
    location: Option<TextPart>,
    /// For each image when it was taken, RFC 3339. The time of arrival by default, and where this is more than 5 minutes
    /// ahead of it or 30 days behind it (both can be configured).
    #[openapi(example = "[]")]
    captured_at: Vec<TextPart>,
    /// For each image the face's number in the camera's video, a whole number.
    #[openapi(example = "[]")]
    track_id: Vec<TextPart>,
    /// For each image where it lies in the camera's frame: `left,top,right,bottom` in pixels. Such an image counts as cut
    /// out around a face: faces whose side is less than about 0.15 of its shorter side are not looked for.
    #[openapi(example = "[]")]
    r#box: Vec<TextPart>,
    /// For each image what tells it from all others, 1 to 200 characters: sent again with the same key, it gets its
    /// first answer and is not stored or sent again.
    #[openapi(example = "[]")]
    key: Vec<TextPart>,
}

impl FormFields for RecognitionForm {
    fn field(&mut self, name: &str) -> Option<FormField<'_>> {
        Some(match name {
            "image" => FormField::Images(&mut self.image),
            "camera_id" => FormField::Text(&mut self.camera_id),
            "location" => FormField::Text(&mut self.location),
            "captured_at" => FormField::Texts(&mut self.captured_at),
            "track_id" => FormField::Texts(&mut self.track_id),
            "box" => FormField::Texts(&mut self.r#box),
            "key" => FormField::Texts(&mut self.key),
            _ => return None,
        })
    }
}

/// Corners in pixels. The box of a face that the picture's edge cuts reaches out of it, by 0.3 of its side at most.
#[derive(Serialize, Apiv2Schema)]
pub struct BoundingBox {
    /// From the left side of the picture.
    #[openapi(example = "112.5")]
    left: f32,
    /// From the top of the picture.
    #[openapi(example = "64")]
    top: f32,
    /// From the left side of the picture.
    #[openapi(example = "208")]
    right: f32,
    /// From the top of the picture.
    #[openapi(example = "186.5")]
    bottom: f32,
}

impl From<[f32; 4]> for BoundingBox {
    fn from([left, top, right, bottom]: [f32; 4]) -> Self {
        Self { left, top, right, bottom }
    }
}

/// What an answer says beside its faces where no model is there to name them.
const NO_MODEL: &str = "no model trained yet: POST /model/optimized-train";

/// The faces of the pictures.
#[derive(Serialize, Apiv2Schema)]
pub struct Results {
    /// The model that identified them. Null where nothing was trained yet.
    #[openapi(minimum = 1, example = "7")]
    model_version: Option<i64>,
    /// Which call trains, where nothing was trained yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[openapi(example = "no model trained yet: POST /model/optimized-train")]
    notice: Option<String>,
    /// By image, none for an image without a face.
    faces: Vec<Face>,
    /// Images that could not be read beside others that could.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<ImageError>,
    /// What is to be said of images that could be read; absent for most requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<ImageNote>,
}

/// The faces of the pictures, each stored as a detection.
#[derive(Serialize, Apiv2Schema)]
pub struct StoredResults {
    /// The model that identified them. Null where nothing was trained yet.
    #[openapi(minimum = 1, example = "7")]
    model_version: Option<i64>,
    /// Which call trains, where nothing was trained yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[openapi(example = "no model trained yet: POST /model/optimized-train")]
    notice: Option<String>,
    /// Detections that hold for the request's images.
    #[openapi(minimum = 0, example = "1")]
    stored: usize,
    /// Images whose key was known: their faces are the first answer's, and nothing was stored again.
    #[openapi(minimum = 0, example = "0")]
    repeated: usize,
    /// By image, none for an image without a face.
    faces: Vec<Face>,
    /// Images that could not be read beside others that could.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<ImageError>,
    /// What is to be said of images that could be read; absent for most requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<ImageNote>,
}

/// The faces of the pictures, each on its way to the external API.
#[derive(Serialize, Apiv2Schema)]
pub struct SentResults {
    /// The model that identified them. Null where nothing was trained yet.
    #[openapi(minimum = 1, example = "7")]
    model_version: Option<i64>,
    /// Which call trains, where nothing was trained yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[openapi(example = "no model trained yet: POST /model/optimized-train")]
    notice: Option<String>,
    /// Faces of the request's images that were accepted for sending.
    #[openapi(minimum = 0, example = "1")]
    sent: usize,
    /// Images whose key was known: their faces are the first answer's, and nothing is sent again.
    #[openapi(minimum = 0, example = "0")]
    repeated: usize,
    /// By image, none for an image without a face.
    faces: Vec<Face>,
    /// Images that could not be read beside others that could.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<ImageError>,
    /// What is to be said of images that could be read; absent for most requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<ImageNote>,
}

/// A face on a picture and whom it shows.
#[derive(Serialize, Apiv2Schema)]
struct Face {
    /// Which of the request's images, from 0.
    #[openapi(minimum = 0, example = "0")]
    image: usize,
    bounding_box: BoundingBox,
    /// Probability that it is a face.
    #[openapi(minimum = 0, maximum = 1, example = "0.996")]
    detection_confidence: f32,
    /// The first of `all_predictions`. Null where there is none.
    top_prediction: Option<Prediction>,
    /// Whether it shows the person of `top_prediction`, or nobody who is enrolled. Unknown where the score does not reach the
    /// threshold, and where somebody else's mean embedding is nearer and no name has a probability of 0.5.
    decision: Decision,
    /// Cosine to the mean embedding of the person of `top_prediction`. Null where no model measured it.
    #[openapi(minimum = -1, maximum = 1, example = "0.8125")]
    score: Option<f32>,
    /// What the score must reach for a known face.
    #[openapi(minimum = -1, maximum = 1, example = "0.355")]
    threshold: f32,
    /// Everybody whom the model knows, the most probable first.
    all_predictions: Vec<Prediction>,
}

/// How probable a name is.
#[derive(Clone, Serialize, Apiv2Schema)]
struct Prediction {
    /// A Face ID.
    #[openapi(example = "Ada Lovelace")]
    label: String,
    /// Its probability among all names, which sum up to 1.
    #[openapi(minimum = 0, maximum = 1, example = "0.875")]
    confidence: f32,
}

/// Whether a face shows somebody who is enrolled.
#[derive(Serialize, Apiv2Schema)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    Known,
    Unknown,
}

/// An image that has no answer, beside others that do.
#[derive(Serialize, Apiv2Schema)]
struct ImageError {
    /// Which of the request's images, from 0.
    #[openapi(minimum = 0, example = "1")]
    image: usize,
    error: ErrorDetail,
}

/// What is to be said of an image that could be read although something is wrong with its file.
#[derive(Serialize, Apiv2Schema)]
pub struct ImageNote {
    /// Which of the request's images, from 0.
    #[openapi(minimum = 0, example = "0")]
    image: usize,
    /// Stable, for programs. `jpeg_end_missing`: a JPEG has all of its pixels and no end marker; whatever sent it cut off
    /// its last bytes.
    #[openapi(example = "jpeg_end_missing")]
    code: &'static str,
    /// For people.
    #[openapi(example = "the JPEG has no end marker; its pixels are complete")]
    message: String,
}

impl ImageNote {
    /// Of an image of this number in its request.
    pub fn new(image: usize, note: DecodeNote) -> Self {
        Self { image, code: note.code(), message: note.to_string() }
    }
}

/// Who is on the pictures
///
/// Stores nothing. Where no image of the request can be read, the first image's error is the answer.
#[api_v2_operation]
pub async fn get_results(
    state: web::Data<State>,
    Form(form): Form<RecognitionForm>,
) -> Result<Answer<Results>, ApiError> {
    let request = Request::read(form, state.config.max_images)?;
    let answers = recognise(&state, request.images.into_iter().enumerate().collect()).await?;
    let errors = answers.errors_beside_others(request.details.len())?;
    let face_ids = state.database.face_ids().await?;
    let faces = answers
        .pictures
        .iter()
        .flat_map(|(image, found)| found.iter().map(|face| Face::new(*image, face, &face_ids)))
        .collect();
    let model_version = answers.model_version;
    let results =
        Results { model_version, notice: notice(model_version), faces, errors, notes: answers.notes };
    Ok(Answer::new(results).headers([answers.timing]))
}

/// Who is on the pictures, and a detection of each face in the database
///
/// A picture whose key was stored before gets its first answer, and nothing is stored again. Where no image of the
/// request can be read, the first image's error is the answer.
#[api_v2_operation]
pub async fn store_results(
    state: web::Data<State>,
    Form(form): Form<RecognitionForm>,
) -> Result<Answer<StoredResults, 201>, ApiError> {
    let kept = keep(&state, form, IdempotentCall::StoreResults).await?;
    let Kept { model_version, repeated, faces, errors, notes, timing } = kept;
    let (stored, notice) = (faces.len(), notice(model_version));
    let results = StoredResults { model_version, notice, stored, repeated, faces, errors, notes };
    Ok(Answer::new(results).headers([timing]))
}

/// Who is on the pictures, and a message to the external API about each face
///
/// The messages are sent after the answer, each until the external API (setting `results_url`) takes it or it is too
/// old: JSON with `face_id` (null for an unknown face), `confidence`, `camera_id`, `location`, `timestamp` and `key`,
/// which is the picture's key and the face's number. A picture whose key was sent before gets its first answer, and
/// nothing is sent again. Where no image of the request can be read, the first image's error is the answer.
#[api_v2_operation]
pub async fn send_results(
    state: web::Data<State>,
    Form(form): Form<RecognitionForm>,
) -> Result<Answer<SentResults, 202>, ApiError> {
    if state.config.results_url.is_none() {
        return Err(ApiError::ResultsUrlMissing);
    }
    let kept = keep(&state, form, IdempotentCall::SendResults).await?;
    let Kept { model_version, repeated, faces, errors, notes, timing } = kept;
    let (sent, notice) = (faces.len(), notice(model_version));
    let results = SentResults { model_version, notice, sent, repeated, faces, errors, notes };
    Ok(Answer::new(results).headers([timing]))
}

/// What holds for the faces of a request after they were kept.
struct Kept {
    model_version: Option<i64>,
    repeated: usize,
    faces: Vec<Face>,
    errors: Vec<ImageError>,
    notes: Vec<ImageNote>,
    timing: (HeaderName, String),
}

/// Recognises the faces of a form and keeps them for what `call` does with them.
async fn keep(state: &State, form: RecognitionForm, call: IdempotentCall) -> Result<Kept, ApiError> {
    let received_at = now();
    let camera_id = required("camera_id", form.camera_id.as_ref(), 1)?;
    let location = required("location", form.location.as_ref(), 0)?;
    let request = Request::read(form, state.config.max_images)?;

    let keys = request.details.iter().filter_map(|details| details.key.clone()).collect();
    let known = state.database.answered_keys(call, keys).await?;
    let is_known = |details: &Details| details.key.as_ref().is_some_and(|key| known.contains(key));
    let fresh = request
        .images
        .into_iter()
        .enumerate()
        .zip(&request.details)
        .filter_map(|(image, details)| (!is_known(details)).then_some(image))
        .collect();
    let answers = recognise(state, fresh).await?;
    let errors = answers.errors_beside_others(request.details.len())?;

    let plausible = state.config.plausible_times();
    let failed: HashSet<usize> = errors.iter().map(|error| error.image).collect();
    let mut pictures: HashMap<usize, Vec<IdentifiedFace>> = answers.pictures.into_iter().collect();
    let (images, uploads): (Vec<usize>, Vec<Upload>) = request
        .details
        .into_iter()
        .enumerate()
        .filter(|(image, _)| !failed.contains(image))
        .map(|(image, details)| {
            let faces = pictures.remove(&image).unwrap_or_default();
            let time = plausible.resolve(details.captured_at, received_at);
            let Details { track_id, frame_box, key, .. } = details;
            (image, Upload { key, time, track_id, frame_box, faces })
        })
        .unzip();
    warn_of_clocks(state, &camera_id, &uploads);
    let stored = state
        .database
        .store_uploads(NewUploads {
            call,
            keep_unknown_embeddings: state.config.keep_unknown_embeddings,
            camera_id,
            location,
            received_at,
            request_id: RequestId::current().map(|id| id.to_string()),
            embedder: state.recogniser.embedder(),
            model_version: answers.model_version,
            uploads,
        })
        .await?;

    let repeated = stored.uploads.iter().filter(|upload| upload.repeated).count();
    let first_version = stored.uploads.first().and_then(|upload| upload.record.model_version);
    let faces = images
        .into_iter()
        .zip(&stored.uploads)
        .flat_map(|(image, upload)| upload.record.faces.iter().map(move |face| (image, face)))
        .map(|(image, face)| Face::new(image, face, &stored.face_ids))
        .collect();
    Ok(Kept {
        model_version: if repeated < stored.uploads.len() { answers.model_version } else { first_version },
        repeated,
        faces,
        errors,
        notes: answers.notes,
        timing: answers.timing,
    })
}

/// Counts capture times that do not count, and tells of them from time to time.
fn warn_of_clocks(state: &State, camera_id: &str, uploads: &[Upload]) {
    static TOLD: Mutex<Option<Instant>> = Mutex::new(None);
    let replaced: Vec<Micros> = uploads.iter().filter_map(|upload| upload.time.claimed_at).collect();
    let Some(claimed) = replaced.first() else { return };
    for _ in &replaced {
        state.metrics.time_replaced();
    }
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if told.is_none_or(|at| at.elapsed() >= CLOCKS_TOLD_EVERY) {
        *told = Some(Instant::now());
        tracing::warn!(
            camera_id,
            captured_at = rfc3339(*claimed).ok(),
            "a capture time is too far from its arrival to count: the arrival does. Is that camera's clock right? Old \
             recordings keep their own time with captured_at_max_behind_days"
        );
    }
}

fn notice(model_version: Option<i64>) -> Option<String> {
    model_version.is_none().then(|| NO_MODEL.to_owned())
}

/// Reads the form as the other calls do, and discards it
///
/// For measurements of the network and of clients.
#[api_v2_operation]
pub async fn dry_run(
    state: web::Data<State>,
    Form(form): Form<RecognitionForm>,
) -> Result<NoContent, ApiError> {
    Request::read(form, state.config.max_images)?;
    Ok(NoContent::new())
}

/// The images of a form and what it says of each, in the same order.
struct Request {
    images: Vec<Result<Picture, DecodeError>>,
    details: Vec<Details>,
}

/// What the sender says of one image.
#[derive(Default)]
struct Details {
    captured_at: Option<Micros>,
    track_id: Option<i64>,
    frame_box: Option<[f32; 4]>,
    key: Option<String>,
}

impl Request {
    fn read(form: RecognitionForm, max: usize) -> Result<Self, ApiError> {
        match form.image.len() {
            0 => return Err(ApiError::ImageMissing),
            n if n > max => return Err(ApiError::TooManyImages { images: n, max }),
            _ => (),
        }
        let count = form.image.len();
        let captured_at = per_image("captured_at", &form.captured_at, count, moment)?;
        let track_id = per_image("track_id", &form.track_id, count, track)?;
        let frame_box = per_image("box", &form.r#box, count, corners)?;
        let key = per_image("key", &form.key, count, |text| characters(text, 1).map(|()| text.to_owned()))?;
        let mut keys = HashSet::new();
        if !key.iter().flatten().all(|key| keys.insert(key)) {
            return Err(invalid("key", "has the same value for two images of one request"));
        }
        // Where a picture lies in its camera's frame is said of those that were cut out of it.
        let images = form
            .image
            .into_iter()
            .zip(&frame_box)
            .map(|(part, frame_box)| {
                part.0.map(|bytes| Picture { cut_out: frame_box.is_some(), ..bytes.into() })
            })
            .collect();
        let details = captured_at
            .into_iter()
            .zip(track_id)
            .zip(frame_box)
            .zip(key)
            .map(|(((captured_at, track_id), frame_box), key)| Details {
                captured_at,
                track_id,
                frame_box,
                key,
            })
            .collect();
        Ok(Self { images, details })
    }
}

/// What recognition says of a request's images.
struct Answers {
    model_version: Option<i64>,
    /// Number in the request, and the faces.
    pictures: Vec<(usize, Vec<IdentifiedFace>)>,
    errors: Vec<(usize, DecodeError)>,
    notes: Vec<ImageNote>,
    /// How long the request waited and how long it was computed, as `Server-Timing`.
    timing: (HeaderName, String),
}

impl Answers {
    /// The errors of single images. Where no image of the request has an answer, the first error is the request's.
    fn errors_beside_others(&self, images: usize) -> Result<Vec<ImageError>, ApiError> {
        if let Some((_, first)) = self.errors.first()
            && self.errors.len() == images
        {
            return Err(first.clone().into());
        }
        let describe = |(image, error): &(usize, DecodeError)| ImageError {
            image: *image,
            error: ApiError::from(error.clone()).detail(),
        };
        Ok(self.errors.iter().map(describe).collect())
    }
}

async fn recognise(
    state: &State,
    images: Vec<(usize, Result<Picture, DecodeError>)>,
) -> Result<Answers, ApiError> {
    let (mut numbers, mut readable, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    for (number, image) in images {
        match image {
            Ok(picture) => {
                numbers.push(number);
                readable.push(picture);
            }
            Err(error) => errors.push((number, error)),
        }
    }
    let mut answers = Answers {
        model_version: None,
        pictures: Vec::new(),
        errors,
        notes: Vec::new(),
        timing: timing(Duration::ZERO, Duration::ZERO),
    };
    if readable.is_empty() {
        return Ok(answers);
    }
    let recognised = state.recogniser.recognise(readable).await?;
    answers.model_version = recognised.model_version;
    answers.timing = timing(recognised.queued, recognised.computed);
    for (number, picture) in numbers.into_iter().zip(recognised.pictures) {
        match picture {
            Ok(SeenPicture { faces, notes, .. }) => {
                answers.notes.extend(notes.into_iter().map(|note| ImageNote::new(number, note)));
                faces.iter().for_each(|face| state.metrics.face(face.known));
                answers.pictures.push((number, faces));
            }
            Err(error) => answers.errors.push((number, error)),
        }
    }
    answers.errors.sort_by_key(|(number, _)| *number);
    Ok(answers)
}

/// How long a request waited and how long it was computed, as `Server-Timing`.
pub fn timing(queued: Duration, computed: Duration) -> (HeaderName, String) {
    let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let durations = format!("queue;dur={:.1}, recognise;dur={:.1}", ms(queued), ms(computed));
    (HeaderName::from_static("server-timing"), durations)
}

impl Face {
    fn new(image: usize, face: &IdentifiedFace, face_ids: &HashMap<i64, String>) -> Self {
        let identity = face.resolve(|person| face_ids.contains_key(&person));
        let all_predictions: Vec<Prediction> = identity
            .predictions
            .iter()
            .filter_map(|(person, confidence)| {
                Some(Prediction { label: face_ids.get(person)?.clone(), confidence: *confidence })
            })
            .collect();
        Self {
            image,
            bounding_box: face.bounding_box.into(),
            detection_confidence: face.detection_confidence,
            top_prediction: all_predictions.first().cloned(),
            decision: if identity.person.is_some() { Decision::Known } else { Decision::Unknown },
            score: identity.score,
            threshold: face.threshold,
            all_predictions,
        }
    }
}

/// One value for each image: those of the form, where an empty one stands for none; or none at all.
fn per_image<T>(
    field: &str,
    parts: &[TextPart],
    images: usize,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<Option<T>>, ApiError> {
    // A browser sends a field that nobody filled in, once, whatever the number of images.
    if parts.iter().all(|part| part.0.is_empty()) {
        return Ok((0..images).map(|_| None).collect());
    }
    if parts.len() != images {
        let reason = format!(
            "stands in the form {} times beside {images} images: give it for each image in the same order (empty for \
             none), or not at all",
            parts.len()
        );
        return Err(invalid(field, reason));
    }
    let value = |part: &TextPart| match part.0.as_str() {
        "" => Ok(None),
        text => parse(text).map(Some).map_err(|reason| invalid(field, reason)),
    };
    parts.iter().map(value).collect()
}

fn required(field: &'static str, part: Option<&TextPart>, least: usize) -> Result<String, ApiError> {
    let text = &part.ok_or(ApiError::FieldMissing { field })?.0;
    characters(text, least).map_err(|reason| invalid(field, reason))?;
    Ok(text.clone())
}

fn characters(text: &str, least: usize) -> Result<(), String> {
    let count = text.chars().count();
    if !(least..=MAX_CHARACTERS).contains(&count) {
        return Err(format!("has {count} characters, it must have {least} to {MAX_CHARACTERS}"));
    }
    match text.chars().find(|c| c.is_control()) {
        Some(control) => Err(format!("has the control character {control:?}")),
        None => Ok(()),
    }
}

/// A moment of a field or a query.
pub fn moment(text: &str) -> Result<Micros, String> {
    let moment = OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| "is not a time as RFC 3339 has it, e.g. 2024-05-06T07:08:09.25Z".to_owned())?;
    // Answers have it in UTC, where the year must not leave RFC 3339's range either.
    moment
        .checked_to_offset(UtcOffset::UTC)
        .filter(|utc| (0..=9999).contains(&utc.year()))
        .map(to_micros)
        .ok_or_else(|| "is in UTC not in the years 0 to 9999".to_owned())
}

fn track(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| "is not a whole number".to_owned())
}

fn corners(text: &str) -> Result<[f32; 4], String> {
    let wrong = || "is not left,top,right,bottom in pixels with left < right and top < bottom".to_owned();
    let numbers: Vec<f32> =
        text.split(',').map(|n| n.trim().parse()).collect::<Result<_, _>>().map_err(|_| wrong())?;
    let [left, top, right, bottom] = numbers.try_into().map_err(|_| wrong())?;
    let finite = [left, top, right, bottom].iter().all(|n: &f32| n.is_finite());
    if finite && left < right && top < bottom { Ok([left, top, right, bottom]) } else { Err(wrong()) }
}

fn invalid(field: &str, reason: impl Into<String>) -> ApiError {
    ApiError::InvalidField { field: field.to_owned(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_four_corners_in_order() {
        assert_eq!(corners("1,2, 3.5,4"), Ok([1.0, 2.0, 3.5, 4.0]));
        for wrong in ["1,2,3", "1,2,3,4,5", "3,2,1,4", "1,4,3,2", "1,2,NaN,4", "1,2,inf,4", "a,b,c,d"] {
            assert!(corners(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn moments_are_those_that_answers_can_give() {
        assert_eq!(moment("1970-01-01T01:00:00.25+01:00"), Ok(250_000));
        assert!(moment("0000-01-01T00:00:00Z").is_ok() && moment("9999-12-31T23:59:59.999999Z").is_ok());
        for outside in ["0000-01-01T00:59:59+01:00", "9999-12-31T23:00:00-01:00"] {
            assert!(moment(outside).unwrap_err().contains("0 to 9999"), "{outside}");
        }
        for none in ["", "2024-05-06", "2024-05-06T07:08:09", "2024-02-30T07:08:09Z", "now"] {
            assert!(moment(none).unwrap_err().contains("RFC 3339"), "{none}");
        }
    }

    #[test]
    fn values_belong_to_images_by_their_order() {
        let parts = |texts: &[&str]| texts.iter().map(|t| TextPart((*t).into())).collect::<Vec<_>>();
        assert_eq!(per_image("track_id", &parts(&["7", ""]), 2, track).unwrap(), [Some(7), None]);
        assert_eq!(per_image("track_id", &[], 2, track).unwrap(), [None, None]);
        assert_eq!(per_image("track_id", &parts(&[""]), 2, track).unwrap(), [None, None]);
        let error = per_image("track_id", &parts(&["7"]), 2, track).unwrap_err().to_string();
        assert!(error.contains("track_id") && error.contains("1 times beside 2 images"), "{error}");
    }
}
