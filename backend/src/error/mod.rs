//! The errors of the API: each has a message that names the field and the limit, and a row in [`table`] with its code,
//! status and details. [`examples`] has the errors of each kind of call, for the API's document.

pub mod examples;
mod table;

#[cfg(test)]
pub use table::CODES;

use std::{fmt, time::Duration};

use actix_web::{
    HttpResponse, ResponseError,
    http::{StatusCode, header},
};
use facepipe_vision::{DecodeError, main_face::MIN_AREA_RATIO};
use paperclip::actix::Apiv2Schema;
use serde::Serialize;
use serde_json::Value;

use self::table::Row;
use crate::{
    access::{Scopes, TokenProblem},
    domain::{FaceQuality, InvalidFaceId, JobFailure, PersonId, QualityComponent},
    model_loader::ModelProblem,
    recognise::{RecogniseError, Rotation},
    request_id::RequestId,
    shares::Limit,
    store::StoreError,
};

/// An error response.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No route matches the path.
    #[error("there is nothing at this path")]
    NotFound,
    /// `guide_dir` has no guide.
    #[error(
        "no guide is installed on this server (setting guide_dir): the package facepipe-backend brings it, and \
         `make docs` builds it from the source; /docs has the API"
    )]
    GuideNotInstalled,
    /// Servers of another role serve this call.
    #[error("this server's role is {role}, this call is for one whose role is {served_by} or all")]
    OtherRole {
        /// This server's role.
        role: &'static str,
        /// The role that the call belongs to.
        served_by: &'static str,
    },
    /// The server is shutting down.
    #[error("this server is about to stop: send requests to another one")]
    Draining,
    /// The path does not take the method.
    #[error("this path does not take {method}, it takes {allowed}")]
    MethodNotAllowed {
        /// The request's method.
        method: String,
        /// The methods that the path takes.
        allowed: String,
    },
    /// No token, or one that is not accepted.
    #[error("{0}")]
    Unauthorized(TokenProblem),
    /// The token does not allow the call.
    #[error("this call needs {}, and this token has {}", scope_names(*needed, " or "), scope_names(*has, ", "))]
    Forbidden {
        /// Scopes; the call needs one of them.
        needed: Scopes,
        /// The token's scopes.
        has: Scopes,
    },
    /// A request to a server without tokens that does not come from its own machine.
    #[error(
        "this server has no tokens, so that it takes requests for its own machine only, and this one is for another host \
         (header Host) or came through a proxy: make a token (`facepipe-backend access add-admin NAME`), or start with \
         --insecure"
    )]
    ForeignHost,
    /// A request to a server without tokens from a page of another origin.
    #[error(
        "this server has no tokens, so that it takes no requests from pages of other origins (header Origin): make a token \
         (`facepipe-backend access add-admin NAME`), or allow the origin (setting cors_origins)"
    )]
    ForeignOrigin,
    /// A camera's token with the id of another camera.
    #[error(
        "this token is for the camera {own:?}, and the field `camera_id` says {sent:?}: leave the field out"
    )]
    OtherCamera {
        /// The token's.
        own: String,
        /// The form's.
        sent: String,
    },
    /// A principal has this name.
    #[error("a camera, person or program with this name has access already")]
    PrincipalExists,
    /// No principal has this id.
    #[error("there is no camera, person or program with this id")]
    PrincipalNotFound,
    /// No token has this id.
    #[error("there is no token with this id")]
    TokenNotFound,
    /// The first principal of a server without tokens could not administer it.
    #[error(
        "from the first principal on, every request needs a token: the first one must have the scope `admin`, and get a token \
         with it (field `token`), or nobody could administer the server"
    )]
    FirstPrincipal,
    /// Not a valid Face ID.
    #[error(transparent)]
    InvalidFaceId(#[from] InvalidFaceId),
    /// The query string cannot be read.
    #[error("the query string cannot be read: {0}")]
    InvalidQuery(String),
    /// An empty time range.
    #[error("`from` ({from}) is not before `to` ({to}): `from` belongs to the range, `to` does not")]
    InvalidTimeRange {
        /// Its beginning, as sent.
        from: String,
        /// Its end, as sent.
        to: String,
    },
    /// A page size out of range.
    #[error("limit is {limit}, it must be 1 to {max}")]
    LimitOutOfRange {
        /// The value, as sent.
        limit: String,
        /// The largest allowed number.
        max: u32,
    },
    /// A cursor of another query, or not a cursor.
    #[error(
        "cursor is none that an answer to this query gave: send `next_cursor` as it is, with otherwise the same query"
    )]
    InvalidCursor,
    /// A person has this Face ID, or one that counts as the same.
    #[error(
        "a person with this Face ID exists already, or with one that differs only in capital and small letters, spaces \
         or the kind of apostrophe"
    )]
    PersonExists {
        /// That person; `None` where a concurrent request added it.
        person_id: Option<PersonId>,
    },
    /// No person has this Face ID or id.
    #[error("there is no person with this Face ID or person id")]
    PersonNotFound,
    /// The person has no image of this id.
    #[error("this person has no image with this id")]
    ImageNotFound,
    /// The person has an image with the same bytes.
    #[error("this person has this very image already, as {image_id}")]
    DuplicateImage {
        /// Its id.
        image_id: String,
        /// The person's.
        person_id: PersonId,
    },
    /// Another person has an image with the same bytes.
    #[error(
        "this very image is enrolled under another person, {person_id}, as {image_id}: it shows one of the two, so erase \
         it there or leave it there"
    )]
    ImageOfAnother {
        /// Its id.
        image_id: String,
        /// That other person's id.
        person_id: PersonId,
    },
    /// No person has an image of this id.
    #[error("there is no image with this id")]
    NoSuchImage,
    /// The person was never detected.
    #[error("this person has not been seen yet")]
    NeverSeen,
    /// No job has this id.
    #[error("there is no job with this id")]
    JobNotFound,
    /// The job has ended.
    #[error("this job has ended already")]
    JobEnded,
    /// The awaited job was cancelled.
    #[error("the job was cancelled")]
    JobCancelled,
    /// No model has this version.
    #[error("there is no model of this version")]
    ModelNotFound,
    /// The model is the active one.
    #[error(
        "this model is the one that answers: have another one answer first, with POST /model/{{version}}/activate"
    )]
    ModelActive,
    /// No detection has this id.
    #[error("there is no detection with this id")]
    DetectionNotFound,
    /// The active model does not know the person.
    #[error("the active model does not know this person yet: train first")]
    PersonNotInModel,
    /// The image has no picture.
    #[error(
        "there is no picture: of an unknown face, none is kept or it was too old; an image that was enrolled from one has an embedding only"
    )]
    NoPicture,
    /// No cluster of unknown faces has this id.
    #[error("there is no unknown person with this id")]
    UnknownNotFound,
    /// The model cannot be activated.
    #[error("{0}")]
    ModelUnusable(ModelProblem),
    /// A job has locked the dataset.
    #[error(
        "the dataset is locked while its embeddings are recomputed: try again in {} s, or end it with \
         POST /debug/unblock-dataset",
        retry_seconds(*retry_after)
    )]
    DatasetLocked {
        /// When the lock expires unless it is renewed.
        retry_after: Duration,
    },
    /// The body is not a form.
    #[error("the body must be multipart/form-data with a file part `image`")]
    UnsupportedMediaType,
    /// The content type is not JSON.
    #[error("the body must be application/json")]
    JsonExpected,
    /// The JSON body does not parse.
    #[error("the JSON body cannot be read: {0}")]
    MalformedJson(String),
    /// The form is truncated or malformed.
    #[error("the form cannot be read: {0}")]
    MalformedForm(String),
    /// The body is too large.
    #[error("the request is larger than {max} bytes")]
    RequestTooLarge {
        /// Maximum, bytes.
        max: usize,
    },
    /// The body did not arrive in time.
    #[error("the request did not arrive within {seconds} seconds")]
    RequestTimeout {
        /// Maximum, seconds.
        seconds: u64,
    },
    /// A required field is missing.
    #[error("the field `{field}` is missing")]
    FieldMissing {
        /// Its name.
        field: &'static str,
    },
    /// A field has an invalid value.
    #[error("the field `{field}` {reason}")]
    InvalidField {
        /// Its name.
        field: String,
        /// The problem, and the values that are allowed.
        reason: String,
    },
    /// No part `image`.
    #[error("the form has no file part `image`")]
    ImageMissing,
    /// Too many parts `image`.
    #[error("the form has {images} parts `image`, at most {max} are allowed")]
    TooManyImages {
        /// Parts received.
        images: usize,
        /// The largest allowed number.
        max: usize,
    },
    /// The image cannot be decoded.
    #[error(transparent)]
    Image(#[from] DecodeError),
    /// One of two images cannot be decoded.
    #[error("image {image} (of 0 and 1) cannot be used: {error}")]
    OneImage {
        /// Which one.
        image: usize,
        /// Why.
        error: DecodeError,
    },
    /// Not exactly two images to compare.
    #[error("the form has {images} parts `image`, exactly 2 are compared")]
    TwoImagesExpected {
        /// Parts received.
        images: usize,
    },
    /// No external API is configured.
    #[error(
        "this server has no external API to send results to: set results_url (--results-url, FACEPIPE_RESULTS_URL)"
    )]
    ResultsUrlMissing,
    /// The image shows no face.
    #[error("image {image} (counted from 0) shows no face, it must show one{}", how_to_turn(*turned))]
    NoFace {
        /// Which of the request's images.
        image: usize,
        /// The rotation under which it shows one.
        turned: Option<Rotation>,
    },
    /// The image shows several faces, but no clear main one.
    #[error(
        "image {image} (counted from 0) shows {} faces, and none is clearly the main one: the largest and the nearest to the \
         centre, with {MIN_AREA_RATIO} times the area of every other; send a picture of one person, or say which face counts \
         with `face` (its position in this list, from 0) or `box`; they are at {}",
        faces.len(), places(faces)
    )]
    SeveralFaces {
        /// Which of the request's images.
        image: usize,
        /// The faces: left, top, right, bottom in pixels of the upright image, and the probability of each.
        faces: Vec<([f32; 4], f32)>,
    },
    /// The image shows no face where the request says.
    #[error(
        "{field}, but image {image} (counted from 0) shows no such face; it shows {}, at {}",
        counted(faces.len()), places(faces)
    )]
    NoSuchFace {
        /// Which of the request's images.
        image: usize,
        /// The request's field and its value.
        field: FaceField,
        /// The faces that it shows, as in [`Self::SeveralFaces`].
        faces: Vec<([f32; 4], f32)>,
    },
    /// The face is of too low a quality to be enrolled.
    #[error(
        "the quality of the face is {} of 100, it must be at least {min} (setting min_quality): {}",
        quality.score(), advice(quality)
    )]
    QualityTooLow {
        /// The measured quality.
        quality: FaceQuality,
        /// Minimum of its score.
        min: u32,
    },
    /// The queue is full or too slow.
    #[error(
        "{waiting} images wait already, for about {} ms; at most {capacity} may, and for at most {} ms: try again in {} s",
        wait.as_millis(), budget.as_millis(), retry_after.as_secs()
    )]
    TooBusy {
        /// Images that are queued or being processed.
        waiting: usize,
        /// Maximum of those.
        capacity: usize,
        /// How long the last of them waits, estimated.
        wait: Duration,
        /// Maximum of that.
        budget: Duration,
        /// When to try again.
        retry_after: Duration,
    },
    /// The client exceeded its share of the server.
    #[error("at most {max} {} are allowed: try again in {} s", limit.describe(), retry_seconds(*retry_after))]
    ShareExceeded {
        /// Which limit.
        limit: Limit,
        /// Its maximum.
        max: u64,
        /// When to try again.
        retry_after: Duration,
    },
    /// All clients together exceeded a limit of the server.
    #[error(
        "this server is overloaded, at most {max} {} are allowed: try again in {} s",
        limit.describe(), retry_seconds(*retry_after)
    )]
    Overloaded {
        /// Which limit.
        limit: Limit,
        /// Its maximum.
        max: u64,
        /// When to try again.
        retry_after: Duration,
    },
    /// The images of a request have too many pixels together.
    #[error(
        "the request's images have {pixels} pixels together, at most {max} are allowed: send fewer at a time"
    )]
    TooManyPixels {
        /// Pixels of all images.
        pixels: u64,
        /// Maximum.
        max: u64,
    },
    /// The awaited job failed.
    #[error("the job failed: {reason}")]
    JobFailed {
        /// Why, without names.
        reason: JobFailure,
    },
    /// The disk is full.
    #[error("the server has no room to store this")]
    StorageFull(String),
    /// The database cannot be reached.
    #[error("the database cannot be reached, try again in {RETRY_S} s")]
    DatabaseUnavailable(String),
    /// The call cannot be recorded in the audit log.
    #[error(
        "the audit log cannot be written, and what it cannot record is refused: try again in {RETRY_S} s"
    )]
    AuditUnavailable(String),
    /// A failure of the server, which is logged and not part of the response.
    #[error("internal error")]
    Internal(#[source] anyhow::Error),
}

/// Names scopes in a message.
fn scope_names(scopes: Scopes, separator: &str) -> String {
    let names: Vec<String> = scopes.iter().map(|scope| format!("`{}`", scope.name())).collect();
    match names.as_slice() {
        [] => "no scope".into(),
        [name] => format!("the scope {name}"),
        names => format!("the scopes {}", names.join(separator)),
    }
}

/// The field of a request that says which face of an image counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FaceField {
    /// `face`: its position among the detected faces, from 0.
    Face(usize),
    /// `box`: its place, left, top, right, bottom in pixels.
    Box([f32; 4]),
}

impl FaceField {
    /// Returns the name of the field.
    pub fn name(self) -> &'static str {
        match self {
            Self::Face(_) => "face",
            Self::Box(_) => "box",
        }
    }
}

impl fmt::Display for FaceField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Face(face) => write!(f, "the field `face` is {face}"),
            Self::Box([left, top, right, bottom]) => {
                write!(f, "the field `box` is {left},{top},{right},{bottom}")
            }
        }
    }
}

fn counted(faces: usize) -> String {
    if faces == 1 {
        "1 face (number 0)".into()
    } else {
        format!("{faces} faces (numbers 0 to {})", faces - 1)
    }
}

/// Returns advice on the factor that lowers the quality of a face most.
fn advice(quality: &FaceQuality) -> String {
    let FaceQuality { size, sharpness, yaw, pitch, brightness, detection_confidence, .. } = quality;
    match quality.weakest() {
        QualityComponent::Size => {
            format!("it is {size:.0} pixels wide or high; send a picture in which it has 80 or more")
        }
        QualityComponent::Sharpness => {
            format!("its sharpness is {sharpness:.0}; send a picture that is in focus, without motion blur")
        }
        QualityComponent::Pose => format!(
            "the head is turned (yaw {yaw:.0}, pitch {pitch:.0} degrees); send a picture that shows it from the front"
        ),
        QualityComponent::Brightness => {
            let problem = if *brightness < 0.5 { "dark" } else { "bright" };
            format!(
                "it is too {problem} (brightness {brightness:.2} of 1); send a picture with even light on the face"
            )
        }
        QualityComponent::DetectionConfidence => format!(
            "the detector is only {detection_confidence:.2} sure that it is a face; send a picture that shows all of it"
        ),
    }
}

fn how_to_turn(turned: Option<Rotation>) -> String {
    turned.map_or_else(String::new, |turn| {
        format!(
            "; turned clockwise by {} degrees it shows one: send it upright, or with the EXIF orientation that says so",
            turn.degrees()
        )
    })
}

/// Maximum number of boxes in a message.
const NAMED_BOXES: usize = 4;

/// Formats boxes for a message, in whole pixels.
fn places(faces: &[([f32; 4], f32)]) -> String {
    let named = faces.iter().take(NAMED_BOXES);
    let mut text: Vec<String> = named
        .map(|([left, top, right, bottom], confidence)| {
            format!("{left:.0},{top:.0},{right:.0},{bottom:.0} (confidence {confidence:.2})")
        })
        .collect();
    if faces.len() > NAMED_BOXES {
        text.push(format!("{} more in the details", faces.len() - NAMED_BOXES));
    }
    format!("{} (left,top,right,bottom in pixels)", text.join("; "))
}

/// `Retry-After` while the database cannot be reached, and while the server is shutting down.
const RETRY_S: u64 = 2;

/// Returns the delay in whole seconds, as in `Retry-After`.
fn retry_seconds(wait: Duration) -> u64 {
    wait.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)
}

/// The body of every error.
#[derive(Debug, Serialize, Apiv2Schema)]
#[openapi(rename = "Error")]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Serialize, Apiv2Schema)]
pub struct ErrorDetail {
    /// Stable, for programs.
    #[openapi(example = "person_not_found")]
    pub code: &'static str,
    /// For people.
    #[openapi(example = "there is no person with this Face ID or person id")]
    pub message: String,
    /// The values of the message, for programs; they depend on the code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
    /// The request's id, as in the header X-Request-Id, for searching the server's log.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[openapi(example = "0190f5a2-7c1e-7b6e-9a51-3d1c5b0f8e11")]
    pub request_id: Option<String>,
}

impl ApiError {
    /// Returns the stable code of the error.
    pub fn code(&self) -> &'static str {
        self.row().code
    }

    /// Returns the details for the response's body.
    pub fn detail(&self) -> ErrorDetail {
        let Row { code, details, .. } = self.row();
        ErrorDetail { code, message: self.to_string(), details, request_id: None }
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.row().status
    }

    fn error_response(&self) -> HttpResponse {
        match self {
            Self::Internal(cause) => tracing::error!(error = format!("{cause:#}"), "a request failed"),
            Self::DatabaseUnavailable(cause) => {
                tracing::error!(error = cause, "the database cannot be reached")
            }
            Self::AuditUnavailable(cause) => {
                tracing::error!(error = cause, "refused what the audit log cannot record")
            }
            Self::StorageFull(cause) => tracing::error!(error = cause, "the storage is full"),
            _ => (),
        }
        let Row { code, status, details } = self.row();
        let mut response = HttpResponse::build(status);
        match self {
            Self::MethodNotAllowed { allowed, .. } => {
                response.insert_header((header::ALLOW, allowed.as_str()));
            }
            Self::Unauthorized(_) => {
                response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
            }
            Self::TooBusy { retry_after, .. } => {
                response.insert_header((header::RETRY_AFTER, retry_after.as_secs()));
            }
            Self::DatasetLocked { retry_after } => {
                response.insert_header((header::RETRY_AFTER, retry_seconds(*retry_after)));
            }
            Self::ShareExceeded { limit, retry_after, .. } | Self::Overloaded { limit, retry_after, .. } => {
                response.insert_header((header::RETRY_AFTER, retry_seconds(*retry_after)));
                if limit.leaves_body_unread() {
                    response.force_close();
                }
            }
            Self::Draining | Self::DatabaseUnavailable(_) | Self::AuditUnavailable(_) => {
                response.insert_header((header::RETRY_AFTER, RETRY_S));
            }
            // The rest of the request is not read, so the connection cannot be used again.
            Self::RequestTimeout { .. } | Self::RequestTooLarge { .. } => {
                response.force_close();
            }
            _ => (),
        }
        let request_id = RequestId::current().map(|id| id.to_string());
        response
            .json(ErrorBody { error: ErrorDetail { code, message: self.to_string(), details, request_id } })
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::PersonExists { person_id } => Self::PersonExists { person_id },
            StoreError::PersonNotFound => Self::PersonNotFound,
            StoreError::PersonNotInModel => Self::PersonNotInModel,
            StoreError::ImageNotFound => Self::ImageNotFound,
            StoreError::DuplicateImage { image_id, person_id } => {
                Self::DuplicateImage { image_id, person_id }
            }
            StoreError::ImageOfAnother { image_id, person_id } => {
                Self::ImageOfAnother { image_id, person_id }
            }
            StoreError::ModelNotFound => Self::ModelNotFound,
            StoreError::ModelActive => Self::ModelActive,
            StoreError::DetectionNotFound => Self::DetectionNotFound,
            StoreError::UnknownNotFound => Self::UnknownNotFound,
            StoreError::ClusterConflict(conflict) => {
                Self::InvalidField { field: conflict.field().to_owned(), reason: conflict.to_string() }
            }
            StoreError::PrincipalExists => Self::PrincipalExists,
            StoreError::PrincipalNotFound => Self::PrincipalNotFound,
            StoreError::TokenNotFound => Self::TokenNotFound,
            StoreError::DatasetLocked { retry_after } => Self::DatasetLocked { retry_after },
            StoreError::Full(cause) => Self::StorageFull(cause),
            StoreError::Unavailable(cause) => Self::DatabaseUnavailable(cause),
            StoreError::LeaseLost
            | StoreError::ClustersChanged
            | StoreError::Database(_)
            | StoreError::Blob(_)
            | StoreError::Damaged(_)
            | StoreError::Undecided(_)
            | StoreError::Interrupted => Self::Internal(error.into()),
        }
    }
}

impl From<RecogniseError> for ApiError {
    fn from(error: RecogniseError) -> Self {
        match error {
            RecogniseError::Busy { waiting, capacity, wait, budget, retry_after, .. } => {
                Self::TooBusy { waiting, capacity, wait, budget, retry_after }
            }
            RecogniseError::Exceeded { limit: limit @ Limit::WaitingImages, max, retry_after } => {
                Self::ShareExceeded { limit, max, retry_after }
            }
            RecogniseError::Exceeded { limit, max, retry_after } => {
                Self::Overloaded { limit, max, retry_after }
            }
            RecogniseError::TooManyPixels { pixels, max } => Self::TooManyPixels { pixels, max },
            RecogniseError::Vision(_) | RecogniseError::Identify(_) | RecogniseError::Interrupted => {
                Self::Internal(error.into())
            }
        }
    }
}
