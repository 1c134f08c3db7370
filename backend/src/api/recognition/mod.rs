//! `/face-recognition`: recognises the faces of images, stores them, or sends them to the external API.

mod form;
mod results;

pub use form::{MAX_CHARACTERS, characters, corners, per_image};
pub use results::{BoundingBox, Decision, ImageError, ImageNote};

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use actix_web::{http::header::HeaderName, web};
use bytes::Bytes;
use facepipe_vision::DecodeError;
use paperclip::actix::api_v2_operation;

use self::{
    form::{ImageFields, RecognitionForm, RecognitionRequest, required},
    results::{Face, NotStored, RecognitionBody, Results, Sent, SentResults, Stored, StoredResults},
};
use super::{
    State,
    auth::Caller,
    form::{Form, TextPart},
    response::{JsonResponse, NoContent},
    rfc3339,
};
use crate::{
    access::Principal,
    domain::{EmbeddingSum, IdentifiedFace, Micros, TrackRef, now, people_of},
    error::ApiError,
    recognise::{ImageResult, RecogniseError, UploadedImage, VersionedModel},
    request_id::RequestId,
    store::sql::{Fusion, IdempotentCall, NewPicture, NewUploads, TrackedFace, Upload},
    unknowns,
};

/// Minimum time between two warnings about capture times that were replaced.
const CLOCK_WARNING_INTERVAL: Duration = Duration::from_secs(600);

/// Recognises the faces of images
///
/// Stores nothing. Images with the same `run_id` and `track_id` are decided together, from their mean embedding. Where no
/// image of the request can be read, the response is the first image's error.
#[api_v2_operation]
pub async fn get_results(
    state: web::Data<State>,
    Caller(principal): Caller,
    Form(form): Form<RecognitionForm>,
) -> Result<JsonResponse<Results>, ApiError> {
    let request = RecognitionRequest::read(form, &state.config.recognition)?;
    let mut recognised =
        recognise(&state, request.images.into_iter().enumerate().collect(), request.top_k).await?;
    decide_tracks(&state, &request.details, &mut recognised, request.top_k).await?;
    let errors = recognised.errors_beside_others(request.details.len())?;
    let people = people_of(recognised.images.iter().flat_map(|(_, faces)| faces));
    let face_ids = state.database.face_ids(people).await?;
    let faces = recognised
        .images
        .iter()
        .flat_map(|(image, found)| found.iter().map(|face| Face::new(*image, face, &face_ids)))
        .collect();
    let body = RecognitionBody::new(recognised.model_version, NotStored {}, faces, errors, recognised.notes);
    let body = body.seen_by(&principal);
    Ok(JsonResponse::new(Results(body)).headers([recognised.timing]))
}

/// Recognises the faces of images and stores a detection of each
///
/// Crops of one track (the same `camera_id`, `run_id` and `track_id`) are decided together with those stored before, from their
/// mean embedding weighted by quality; where an image shows several faces, the main one is the track's, or else the largest.
/// Earlier detections of the track follow the decision. An image with a key that was stored before gets its first response,
/// and nothing is stored again. Where no image of the request can be read, the response is the first image's error.
///
/// The token of a camera fixes `camera_id`, which the form may then leave out, and keys are its own. Unless it may see names,
/// faces have their `decision` without name, predictions and score.
#[api_v2_operation]
pub async fn store_results(
    state: web::Data<State>,
    Caller(principal): Caller,
    Form(form): Form<RecognitionForm>,
) -> Result<JsonResponse<StoredResults, 201>, ApiError> {
    let outcome = |stored, repeated| Stored { stored, repeated };
    let (body, timing) =
        recognise_and_store(&state, &principal, form, IdempotentCall::StoreResults, outcome).await?;
    Ok(JsonResponse::new(StoredResults(body)).headers([timing]))
}

/// Recognises the faces of images and sends a message about each to the external API
///
/// The messages are sent after the response, each until the external API (setting `results_url`) accepts it or it is too
/// old: JSON with `face_id` (null for an unknown face), `confidence`, `camera_id`, `location`, `timestamp` and `key`,
/// which is the image's key and the face's number. An image with a key that was sent before gets its first response, and
/// nothing is sent again. Crops of one track are decided together, as store-results does: a message has the decision of all
/// crops so far. Where no image of the request can be read, the response is the first image's error.
///
/// The token of a camera is treated as by store-results; the `key` of its messages begins with a digest of the image's key.
#[api_v2_operation]
pub async fn send_results(
    state: web::Data<State>,
    Caller(principal): Caller,
    Form(form): Form<RecognitionForm>,
) -> Result<JsonResponse<SentResults, 202>, ApiError> {
    if state.config.results.results_url.is_none() {
        return Err(ApiError::ResultsUrlMissing);
    }
    let outcome = |sent, repeated| Sent { sent, repeated };
    let (body, timing) =
        recognise_and_store(&state, &principal, form, IdempotentCall::SendResults, outcome).await?;
    Ok(JsonResponse::new(SentResults(body)).headers([timing]))
}

/// A header.
type Header = (HeaderName, String);

/// Recognises the faces of a form and stores them for `call`. `outcome` takes the number of faces and of repeated images.
async fn recognise_and_store<Outcome>(
    state: &State,
    principal: &Principal,
    form: RecognitionForm,
    call: IdempotentCall,
    outcome: impl FnOnce(usize, usize) -> Outcome,
) -> Result<(RecognitionBody<Outcome>, Header), ApiError> {
    let received_at = now();
    let camera_id = camera_of(form.camera_id.as_ref(), principal)?;
    let location = required("location", form.location.as_ref(), 0)?;
    let mut request = RecognitionRequest::read(form, &state.config.recognition)?;
    for details in &mut request.details {
        details.key = details.key.take().map(|key| principal.own_key(&key));
    }
    request.images.iter_mut().flatten().for_each(|image| image.is_from_camera = true);

    let keys = request.details.iter().filter_map(|details| details.key.clone()).collect();
    let known = state.database.answered_keys(call, keys).await?;
    let is_known = |details: &ImageFields| details.key.as_ref().is_some_and(|key| known.contains(key));
    let keeps_pictures = call == IdempotentCall::StoreResults && state.config.unknowns.unknown_pictures;
    let files: HashMap<usize, Bytes> = request
        .images
        .iter()
        .enumerate()
        .filter(|_| keeps_pictures)
        .filter_map(|(index, image)| Some((index, image.as_ref().ok()?.bytes.clone())))
        .collect();
    let fresh = request
        .images
        .into_iter()
        .enumerate()
        .zip(&request.details)
        .filter_map(|(image, details)| (!is_known(details)).then_some(image))
        .collect();
    let recognised = recognise(state, fresh, request.top_k).await?;
    let errors = recognised.errors_beside_others(request.details.len())?;

    let plausible = state.config.retention.plausible_times();
    let failed: HashSet<usize> = errors.iter().map(|error| error.image).collect();
    let mut faces_of: HashMap<usize, Vec<IdentifiedFace>> = recognised.images.into_iter().collect();
    let mut pictures: HashMap<usize, Vec<Option<NewPicture>>> = HashMap::new();
    for (index, faces) in &faces_of {
        if let Some(file) = files.get(index) {
            let limits = state.config.recognition.decode_limits();
            pictures.insert(*index, unknowns::keep(&state.blobs, file.clone(), faces, limits).await);
        }
    }
    let (images, uploads): (Vec<usize>, Vec<Upload>) = request
        .details
        .into_iter()
        .enumerate()
        .filter(|(image, _)| !failed.contains(image))
        .map(|(image, details)| {
            let faces = faces_of.remove(&image).unwrap_or_default();
            let time = plausible.resolve(details.captured_at, received_at);
            let track = details.track().zip(recognised.track_faces.get(&image).copied());
            let tracked = track.map(|(track, face)| TrackedFace { track, face });
            let ImageFields { track_id, frame_box, key, .. } = details;
            let pictures = pictures.remove(&image).unwrap_or_default();
            (image, Upload { key, time, track_id, tracked, frame_box, faces, pictures })
        })
        .unzip();
    warn_of_clocks(state, &camera_id, &uploads);
    let stored = state
        .database
        .store_uploads(NewUploads {
            call,
            top_k: request.top_k,
            fusion: fusion(state, recognised.model, request.top_k),
            keep_unknown_embeddings: state.config.recognition.keep_unknown_embeddings,
            camera_id,
            location,
            received_at,
            request_id: RequestId::current().map(|id| id.to_string()),
            embedder: state.recogniser.embedder(),
            model_version: recognised.model_version,
            uploads,
        })
        // A commit that failed may have taken effect nevertheless: a sweep removes pictures that no row refers to.
        .await?;
    unknowns::delete_blobs(&state.blobs, &stored.unused_pictures).await;

    let repeated = stored.uploads.iter().filter(|upload| upload.repeated).count();
    let first_version = stored.uploads.first().and_then(|upload| upload.record.model_version);
    let faces: Vec<Face> = images
        .into_iter()
        .zip(&stored.uploads)
        .flat_map(|(image, upload)| upload.record.faces.iter().map(move |face| (image, face)))
        .map(|(image, face)| Face::new(image, face, &stored.face_ids))
        .collect();
    let model_version =
        if repeated < stored.uploads.len() { recognised.model_version } else { first_version };
    let outcome = outcome(faces.len(), repeated);
    let body = RecognitionBody::new(model_version, outcome, faces, errors, recognised.notes);
    Ok((body.seen_by(principal), recognised.timing))
}

/// Returns the camera of a form; the token of a camera determines it, and the form can only repeat it.
fn camera_of(sent: Option<&TextPart>, principal: &Principal) -> Result<String, ApiError> {
    let Some(own) = &principal.camera_id else { return required("camera_id", sent, 1) };
    match sent.map(|part| part.0.as_str()) {
        Some(other) if !other.is_empty() && other != own => Err(ApiError::OtherCamera {
            own: own.clone(),
            sent: other.chars().take(MAX_CHARACTERS).collect(),
        }),
        _ => Ok(own.clone()),
    }
}

/// Counts capture times that were replaced by the time of arrival, and logs one of them now and then.
fn warn_of_clocks(state: &State, camera_id: &str, uploads: &[Upload]) {
    static LAST_WARNING: Mutex<Option<Instant>> = Mutex::new(None);
    let replaced: Vec<Micros> = uploads.iter().filter_map(|upload| upload.time.claimed_at).collect();
    let Some(claimed) = replaced.first() else { return };
    for _ in &replaced {
        state.metrics.time_replaced();
    }
    let mut last_warning = LAST_WARNING.lock().unwrap_or_else(PoisonError::into_inner);
    if last_warning.is_none_or(|at| at.elapsed() >= CLOCK_WARNING_INTERVAL) {
        *last_warning = Some(Instant::now());
        tracing::warn!(
            camera_id,
            captured_at = rfc3339(*claimed).ok(),
            "a capture time is too far from its arrival to count: the arrival does. Is that camera's clock right? Old \
             recordings keep their own time with captured_at_max_behind_days"
        );
    }
}

/// Validates the form as the other calls do, and discards it
///
/// For measuring the network and clients.
#[api_v2_operation]
pub async fn dry_run(
    state: web::Data<State>,
    Form(form): Form<RecognitionForm>,
) -> Result<NoContent, ApiError> {
    RecognitionRequest::read(form, &state.config.recognition)?;
    Ok(NoContent::new())
}

/// The results of a request's images.
struct RecognisedImages {
    model_version: Option<i64>,
    model: Option<Arc<VersionedModel>>,
    /// Index in the request and faces.
    images: Vec<(usize, Vec<IdentifiedFace>)>,
    /// By index in the request, the position of the face that belongs to an image's track: the main one, or else the
    /// largest.
    track_faces: HashMap<usize, usize>,
    errors: Vec<(usize, DecodeError)>,
    notes: Vec<ImageNote>,
    /// `Server-Timing`.
    timing: Header,
}

impl RecognisedImages {
    /// Returns the errors of single images.
    ///
    /// # Errors
    /// The first of them, if no image of the request has a result.
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

/// Recognises the images that could be read, given with their index in the request. Each face gets its `top_k` most probable
/// predictions.
async fn recognise(
    state: &State,
    images: Vec<(usize, Result<UploadedImage, DecodeError>)>,
    top_k: usize,
) -> Result<RecognisedImages, ApiError> {
    let (mut indices, mut readable, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    for (index, image) in images {
        match image {
            Ok(image) => {
                indices.push(index);
                readable.push(image);
            }
            Err(error) => errors.push((index, error)),
        }
    }
    let mut recognised = RecognisedImages {
        model_version: None,
        model: None,
        images: Vec::new(),
        track_faces: HashMap::new(),
        errors,
        notes: Vec::new(),
        timing: timing(Duration::ZERO, Duration::ZERO),
    };
    if readable.is_empty() {
        return Ok(recognised);
    }
    let result = state.recogniser.recognise_top_k(readable, top_k).await?;
    recognised.model_version = result.model.as_ref().map(|model| model.version);
    recognised.model = result.model;
    recognised.timing = timing(result.queued, result.processed);
    for (index, image) in indices.into_iter().zip(result.images) {
        match image {
            Ok(image) => {
                if let Some(face) = image.main_or_largest_face() {
                    recognised.track_faces.insert(index, face);
                }
                let ImageResult { faces, notes, .. } = image;
                recognised.notes.extend(notes.into_iter().map(|note| ImageNote::new(index, note)));
                faces.iter().for_each(|face| state.metrics.face(face.known));
                recognised.images.push((index, faces));
            }
            Err(error) => recognised.errors.push((index, error)),
        }
    }
    recognised.errors.sort_by_key(|(index, _)| *index);
    Ok(recognised)
}

/// Returns how to decide the crops of a track together, with the model that identified the request's faces; `None` if
/// that is switched off.
fn fusion(state: &State, model: Option<Arc<VersionedModel>>, top_k: usize) -> Option<Fusion> {
    let window = state.config.recognition.track_window()?;
    let recogniser = state.recogniser.clone();
    let decide = move |embedding: &[f32]| {
        recogniser.decide(model.as_deref(), embedding, top_k).map_err(|error| error.to_string())
    };
    let window = Micros::try_from(window.as_micros()).unwrap_or(Micros::MAX);
    Some(Fusion { window, decide: Arc::new(decide) })
}

/// Decides together about the images of one request that are crops of one track.
async fn decide_tracks(
    state: &State,
    details: &[ImageFields],
    recognised: &mut RecognisedImages,
    top_k: usize,
) -> Result<(), ApiError> {
    if state.config.recognition.track_window().is_none() {
        return Ok(());
    }
    // Positions of images and faces.
    let mut tracks: HashMap<TrackRef, Vec<(usize, usize)>> = HashMap::new();
    for (position, (image, _)) in recognised.images.iter().enumerate() {
        if let Some(track) = details.get(*image).and_then(ImageFields::track)
            && let Some(face) = recognised.track_faces.get(image)
        {
            tracks.entry(track).or_default().push((position, *face));
        }
    }
    tracks.retain(|_, crops| crops.len() > 1);
    if tracks.is_empty() {
        return Ok(());
    }
    let tracks: Vec<(Vec<(usize, usize)>, EmbeddingSum)> = tracks
        .into_values()
        .map(|crops| {
            let mut sum = EmbeddingSum::default();
            for (image, face) in &crops {
                let face = recognised.images.get(*image).and_then(|(_, faces)| faces.get(*face));
                face.into_iter().for_each(|face| sum.add(face));
            }
            (crops, sum)
        })
        .collect();
    let (recogniser, model) = (state.recogniser.clone(), recognised.model.clone());
    let decided = actix_web::web::block(move || {
        let decide = |(crops, sum): (Vec<(usize, usize)>, EmbeddingSum)| {
            Ok((crops, recogniser.decide(model.as_deref(), &sum.mean(), top_k)?))
        };
        tracks.into_iter().map(decide).collect::<Result<Vec<_>, RecogniseError>>()
    });
    let decided = decided.await.map_err(|_| RecogniseError::Interrupted)??;
    for (crops, decision) in decided {
        let number = i64::try_from(crops.len()).unwrap_or(i64::MAX);
        for (image, face) in crops {
            let face = recognised.images.get_mut(image).and_then(|(_, faces)| faces.get_mut(face));
            face.into_iter().for_each(|face| face.decide(decision.clone(), number));
        }
    }
    Ok(())
}

/// Returns the header `Server-Timing`: how long a request was queued and processed.
pub fn timing(queued: Duration, processed: Duration) -> Header {
    let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let durations = format!("queue;dur={:.1}, recognise;dur={:.1}", ms(queued), ms(processed));
    (HeaderName::from_static("server-timing"), durations)
}
