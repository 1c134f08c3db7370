//! Everything that a request can be answered with instead of what was asked for. Each error has one status, one code
//! that never changes, and a sentence that names the field and the limit.

use std::time::Duration;

use actix_web::{
    HttpResponse, ResponseError,
    http::{StatusCode, header},
};
use facepipe_vision::DecodeError;
use paperclip::actix::Apiv2Schema;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    domain::{InvalidFaceId, JobFailure, PersonId},
    model_loader::ModelProblem,
    recognise::{RecogniseError, Rotation},
    request_id::RequestId,
    store::StoreError,
};

/// What went wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No such path.
    #[error("there is nothing at this path")]
    NotFound,
    /// No guide is installed where this server looks for it.
    #[error(
        "no guide is installed on this server (setting guide_dir): the package facepipe-backend brings it, and \
         `make docs` builds it from the source; /docs has the API"
    )]
    GuideNotInstalled,
    /// Another process of the deployment serves this call.
    #[error("this server's role is {role}, this call is for one whose role is {served_by} or all")]
    OtherRole {
        /// This server's role.
        role: &'static str,
        /// The role that the call belongs to.
        served_by: &'static str,
    },
    /// The server is about to stop.
    #[error("this server is about to stop: send requests to another one")]
    Draining,
    /// The path is there, the method isn't.
    #[error("this path does not take {method}, it takes {allowed}")]
    MethodNotAllowed {
        /// What was tried.
        method: String,
        /// What the path takes.
        allowed: String,
    },
    /// No token, or one that the server does not know.
    #[error("this server needs a token that it knows, as `Authorization: Bearer <token>`")]
    Unauthorized,
    /// A token of another role.
    #[error("a camera's token allows POST to /face-recognition only, this needs an admin's")]
    Forbidden,
    /// The path's Face ID is none.
    #[error(transparent)]
    InvalidFaceId(#[from] InvalidFaceId),
    /// The query string cannot be read.
    #[error("the query string cannot be read: {0}")]
    InvalidQuery(String),
    /// A time range has nothing in it.
    #[error("`from` ({from}) is not before `to` ({to}): `from` belongs to the range, `to` does not")]
    InvalidTimeRange {
        /// Its beginning, as it was sent.
        from: String,
        /// Its end, as it was sent.
        to: String,
    },
    /// A page has too many or too few entries.
    #[error("limit is {limit}, it must be 1 to {max}")]
    LimitOutOfRange {
        /// What was sent.
        limit: String,
        /// Entries allowed.
        max: u32,
    },
    /// A cursor that no answer to this query has given.
    #[error(
        "cursor is none that an answer to this query gave: send `next_cursor` as it is, with otherwise the same query"
    )]
    InvalidCursor,
    /// A person of this Face ID is there, or of one that counts as the same.
    #[error(
        "a person with this Face ID exists already, or with one that differs only in capital and small letters, spaces \
         or the kind of apostrophe"
    )]
    PersonExists {
        /// The person, unless that one came at the same moment.
        person_id: Option<PersonId>,
    },
    /// No person of this Face ID or id is there.
    #[error("there is no person with this Face ID or person id")]
    PersonNotFound,
    /// The person has no image of this id.
    #[error("this person has no image with this id")]
    ImageNotFound,
    /// The person has an image of the same bytes.
    #[error("this person has this very image already, as {image_id}")]
    DuplicateImage {
        /// Its id.
        image_id: String,
        /// The person's.
        person_id: PersonId,
    },
    /// Another person has an image of the same bytes.
    #[error(
        "this very image is enrolled under another person, {person_id}, as {image_id}: it shows one of the two, so erase \
         it there or leave it there"
    )]
    ImageOfAnother {
        /// Its id.
        image_id: String,
        /// That other person's.
        person_id: PersonId,
    },
    /// No image of this id is there, whosever.
    #[error("there is no image with this id")]
    NoSuchImage,
    /// The person was never detected.
    #[error("this person has not been seen yet")]
    NeverSeen,
    /// No job of this id is there.
    #[error("there is no job with this id")]
    JobNotFound,
    /// The job has ended.
    #[error("this job has ended already")]
    JobEnded,
    /// The job that was waited for was cancelled.
    #[error("the job was cancelled")]
    JobCancelled,
    /// No model of this version is there.
    #[error("there is no model of this version")]
    ModelNotFound,
    /// The model answers.
    #[error(
        "this model is the one that answers: have another one answer first, with POST /model/{{version}}/activate"
    )]
    ModelActive,
    /// No detection of this id is there.
    #[error("there is no detection with this id")]
    DetectionNotFound,
    /// The model cannot be the one that answers.
    #[error("{0}")]
    ModelUnusable(ModelProblem),
    /// The dataset must not change now.
    #[error(
        "the dataset is locked while its embeddings are computed anew: try again in {} s, or end it with \
         POST /debug/unblock-dataset",
        retry_seconds(*retry_after)
    )]
    DatasetLocked {
        /// When the lock ends unless it is renewed.
        retry_after: Duration,
    },
    /// The body is not a form.
    #[error("the body must be multipart/form-data with a file part `image`")]
    UnsupportedMediaType,
    /// The body is not JSON by its content type.
    #[error("the body must be application/json")]
    JsonExpected,
    /// The body is not the JSON that the call takes.
    #[error("the JSON body cannot be read: {0}")]
    MalformedJson(String),
    /// The form breaks off or is not one.
    #[error("the form cannot be read: {0}")]
    MalformedForm(String),
    /// The form is too large altogether.
    #[error("the request is larger than {max} bytes")]
    RequestTooLarge {
        /// Bytes allowed.
        max: usize,
    },
    /// The client stopped sending.
    #[error("the request did not arrive within {seconds} seconds")]
    RequestTimeout {
        /// Seconds allowed.
        seconds: u64,
    },
    /// A text field is required.
    #[error("the field `{field}` is missing")]
    FieldMissing {
        /// Its name.
        field: &'static str,
    },
    /// A text field has a wrong value.
    #[error("the field `{field}` {reason}")]
    InvalidField {
        /// Its name.
        field: String,
        /// What it must be.
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
        /// Parts allowed.
        max: usize,
    },
    /// The picture cannot be used.
    #[error(transparent)]
    Image(#[from] DecodeError),
    /// One of two pictures cannot be used.
    #[error("image {image} (of 0 and 1) cannot be used: {error}")]
    OneImage {
        /// Which one.
        image: usize,
        /// Why.
        error: DecodeError,
    },
    /// There are not two pictures to compare.
    #[error("the form has {images} parts `image`, exactly 2 are compared")]
    TwoImagesExpected {
        /// Parts received.
        images: usize,
    },
    /// There is nowhere to send results to.
    #[error(
        "this server has no external API to send results to: set results_url (--results-url, FACEPIPE_RESULTS_URL)"
    )]
    ResultsUrlMissing,
    /// Nobody on the picture.
    #[error("image {image} (counted from 0) shows no face, it must show exactly one{}", how_to_turn(*turned))]
    NoFace {
        /// Which of the request's images.
        image: usize,
        /// How it must be turned to show one.
        turned: Option<Rotation>,
    },
    /// More than one person on the picture.
    #[error(
        "image {image} (counted from 0) shows {} faces, it must show exactly one; they are at {}",
        faces.len(), places(faces)
    )]
    SeveralFaces {
        /// Which of the request's images.
        image: usize,
        /// Faces found: left, top, right, bottom in pixels of the upright picture, and how probable each is.
        faces: Vec<([f32; 4], f32)>,
    },
    /// The queue is full, or too slow.
    #[error(
        "{waiting} images wait already, for about {} ms; at most {capacity} may, and for at most {} ms: try again in {} s",
        wait.as_millis(), budget.as_millis(), retry_after.as_secs()
    )]
    TooBusy {
        /// Images that wait.
        waiting: usize,
        /// Images that may.
        capacity: u32,
        /// How long the last of them waits, as far as can be told.
        wait: Duration,
        /// How long it may.
        budget: Duration,
        /// When to try again.
        retry_after: Duration,
    },
    /// The job that was waited for failed.
    #[error("the job failed: {reason}")]
    JobFailed {
        /// Why, naming nobody.
        reason: JobFailure,
    },
    /// The disk is full.
    #[error("the server has no room to store this")]
    StorageFull(String),
    /// The database is away.
    #[error("the database cannot be reached, try again in {DATABASE_RETRY_S} s")]
    DatabaseUnavailable(String),
    /// Our mistake; the log has it, the answer doesn't.
    #[error("internal error")]
    Internal(#[source] anyhow::Error),
}

/// A number with the digits that answers write of it.
fn decimal(number: f32) -> Value {
    number.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

fn how_to_turn(turned: Option<Rotation>) -> String {
    turned.map_or_else(String::new, |turn| {
        format!(
            "; turned clockwise by {} degrees it shows one: send it upright, or with the EXIF orientation that says so",
            turn.degrees()
        )
    })
}

/// Boxes that a message names at most.
const NAMED_BOXES: usize = 4;

/// Boxes for people, in whole pixels.
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

const DATABASE_RETRY_S: u64 = 2;

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Whole seconds, as `Retry-After` has them.
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
    /// The values of the message, for programs. Which there are depends on the code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
    /// The request's id, as the header X-Request-Id has it: by it the server's log is searched.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[openapi(example = "0190f5a2-7c1e-7b6e-9a51-3d1c5b0f8e11")]
    pub request_id: Option<String>,
}

impl ApiError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound | Self::GuideNotInstalled => "not_found",
            Self::OtherRole { .. } => "other_role",
            Self::Draining => "draining",
            Self::MethodNotAllowed { .. } => "method_not_allowed",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::InvalidFaceId(_) => "invalid_face_id",
            Self::InvalidQuery(_) => "invalid_query",
            Self::InvalidTimeRange { .. } => "invalid_time_range",
            Self::LimitOutOfRange { .. } => "limit_out_of_range",
            Self::InvalidCursor => "invalid_cursor",
            Self::PersonExists { .. } => "person_exists",
            Self::PersonNotFound => "person_not_found",
            Self::ImageNotFound | Self::NoSuchImage => "image_not_found",
            Self::DuplicateImage { .. } => "duplicate_image",
            Self::ImageOfAnother { .. } => "image_of_another",
            Self::NeverSeen => "never_seen",
            Self::JobNotFound => "job_not_found",
            Self::JobEnded => "job_ended",
            Self::JobCancelled => "job_cancelled",
            Self::ModelNotFound => "model_not_found",
            Self::ModelActive => "model_active",
            Self::DetectionNotFound => "detection_not_found",
            Self::ModelUnusable(ModelProblem::Embedder { .. }) => "embedder_mismatch",
            Self::ModelUnusable(ModelProblem::Unusable(_)) => "model_unusable",
            Self::DatasetLocked { .. } => "dataset_locked",
            Self::UnsupportedMediaType | Self::JsonExpected => "unsupported_media_type",
            Self::MalformedJson(_) => "malformed_json",
            Self::MalformedForm(_) => "malformed_form",
            Self::RequestTooLarge { .. } => "request_too_large",
            Self::RequestTimeout { .. } => "request_timeout",
            Self::FieldMissing { .. } => "field_missing",
            Self::InvalidField { .. } => "invalid_field",
            Self::ImageMissing => "image_missing",
            Self::TooManyImages { .. } => "too_many_images",
            Self::Image(DecodeError::Empty) => "image_empty",
            Self::Image(DecodeError::TooManyBytes { .. } | DecodeError::TooManyPixels { .. }) => {
                "image_too_large"
            }
            Self::Image(DecodeError::UnknownFormat | DecodeError::Corrupt(_)) => "image_unreadable",
            Self::ResultsUrlMissing => "results_url_missing",
            Self::OneImage { error, .. } => Self::Image(error.clone()).code(),
            Self::TwoImagesExpected { .. } => "two_images_expected",
            Self::NoFace { .. } => "no_face",
            Self::SeveralFaces { .. } => "several_faces",
            Self::TooBusy { .. } => "too_busy",
            Self::JobFailed { .. } => "job_failed",
            Self::StorageFull(_) => "storage_full",
            Self::DatabaseUnavailable(_) => "database_unavailable",
            Self::Internal(_) => "internal",
        }
    }

    fn details(&self) -> Value {
        match self {
            Self::OtherRole { role, served_by } => json!({ "role": role, "served_by": served_by }),
            Self::MethodNotAllowed { allowed, .. } => json!({ "allowed": allowed }),
            Self::InvalidTimeRange { from, to } => json!({ "from": from, "to": to }),
            Self::LimitOutOfRange { limit, max } => json!({ "limit": limit, "min": 1, "max": max }),
            Self::RequestTooLarge { max } => json!({ "max_bytes": max }),
            Self::RequestTimeout { seconds } => json!({ "max_seconds": seconds }),
            Self::FieldMissing { field } => json!({ "field": field }),
            Self::InvalidField { field, .. } => json!({ "field": field }),
            Self::ImageMissing => json!({ "field": "image" }),
            Self::TooManyImages { images, max } => json!({ "images": images, "max_images": max }),
            Self::Image(DecodeError::TooManyBytes { bytes, max }) => {
                json!({ "bytes": bytes, "max_bytes": max })
            }
            Self::Image(DecodeError::TooManyPixels { width, height, max }) => {
                json!({ "width": width, "height": height, "max_pixels": max })
            }
            Self::OneImage { image, error } => match Self::Image(error.clone()).details() {
                Value::Object(mut details) => {
                    details.insert("image".into(), json!(image));
                    details.into()
                }
                _ => json!({ "image": image }),
            },
            Self::TwoImagesExpected { images } => json!({ "images": images, "expected": 2 }),
            Self::NoFace { image, turned } => {
                json!({ "image": image, "faces": 0, "turned": turned.map(Rotation::degrees) })
            }
            Self::SeveralFaces { image, faces } => {
                let boxes: Vec<Value> = faces
                    .iter()
                    .map(|([left, top, right, bottom], confidence)| {
                        json!({
                            "bounding_box": {
                                "left": decimal(*left), "top": decimal(*top),
                                "right": decimal(*right), "bottom": decimal(*bottom),
                            },
                            "detection_confidence": decimal(*confidence),
                        })
                    })
                    .collect();
                json!({ "image": image, "faces": faces.len(), "boxes": boxes })
            }
            Self::TooBusy { waiting, capacity, wait, budget, .. } => json!({
                "waiting": waiting,
                "capacity": capacity,
                "wait_ms": millis(*wait),
                "budget_ms": millis(*budget),
            }),
            Self::PersonExists { person_id: Some(person_id) } => {
                json!({ "person_id": person_id.to_string() })
            }
            Self::DuplicateImage { image_id, person_id } | Self::ImageOfAnother { image_id, person_id } => {
                json!({ "image_id": image_id, "person_id": person_id.to_string() })
            }
            Self::ModelUnusable(ModelProblem::Embedder { model, server }) => {
                json!({ "model_embedder": model, "embedder": server })
            }
            Self::NotFound
            | Self::GuideNotInstalled
            | Self::Draining
            | Self::Unauthorized
            | Self::Forbidden
            | Self::ResultsUrlMissing
            | Self::JobEnded
            | Self::JobCancelled
            | Self::ModelNotFound
            | Self::ModelActive
            | Self::DetectionNotFound
            | Self::ModelUnusable(ModelProblem::Unusable(_))
            | Self::DatasetLocked { .. }
            | Self::InvalidFaceId(_)
            | Self::InvalidQuery(_)
            | Self::InvalidCursor
            | Self::PersonExists { person_id: None }
            | Self::PersonNotFound
            | Self::ImageNotFound
            | Self::NoSuchImage
            | Self::NeverSeen
            | Self::JobNotFound
            | Self::UnsupportedMediaType
            | Self::JsonExpected
            | Self::MalformedJson(_)
            | Self::MalformedForm(_)
            | Self::Image(DecodeError::Empty | DecodeError::UnknownFormat | DecodeError::Corrupt(_))
            | Self::JobFailed { .. }
            | Self::StorageFull(_)
            | Self::DatabaseUnavailable(_)
            | Self::Internal(_) => Value::Null,
        }
    }

    /// What the client reads.
    pub fn detail(&self) -> ErrorDetail {
        let details = Some(self.details()).filter(|details| !details.is_null());
        ErrorDetail { code: self.code(), message: self.to_string(), details, request_id: None }
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::NotFound
            | Self::GuideNotInstalled
            | Self::OtherRole { .. }
            | Self::PersonNotFound
            | Self::ImageNotFound
            | Self::NoSuchImage
            | Self::NeverSeen
            | Self::JobNotFound
            | Self::ModelNotFound
            | Self::DetectionNotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::InvalidFaceId(_)
            | Self::InvalidQuery(_)
            | Self::InvalidTimeRange { .. }
            | Self::LimitOutOfRange { .. }
            | Self::InvalidCursor
            | Self::MalformedForm(_)
            | Self::MalformedJson(_)
            | Self::FieldMissing { .. }
            | Self::InvalidField { .. }
            | Self::ImageMissing
            | Self::TooManyImages { .. }
            | Self::TwoImagesExpected { .. }
            | Self::Image(DecodeError::Empty) => StatusCode::BAD_REQUEST,
            Self::OneImage { error, .. } => Self::Image(error.clone()).status_code(),
            Self::PersonExists { .. }
            | Self::DuplicateImage { .. }
            | Self::ImageOfAnother { .. }
            | Self::ResultsUrlMissing
            | Self::JobEnded
            | Self::JobCancelled
            | Self::ModelActive
            | Self::ModelUnusable(_) => StatusCode::CONFLICT,
            Self::JobFailed { reason: JobFailure::Explained(_) } => StatusCode::CONFLICT,
            Self::DatasetLocked { .. } => StatusCode::LOCKED,
            Self::StorageFull(_) => StatusCode::INSUFFICIENT_STORAGE,
            Self::UnsupportedMediaType | Self::JsonExpected => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::RequestTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::RequestTooLarge { .. }
            | Self::Image(DecodeError::TooManyBytes { .. } | DecodeError::TooManyPixels { .. }) => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            Self::Image(DecodeError::UnknownFormat | DecodeError::Corrupt(_))
            | Self::NoFace { .. }
            | Self::SeveralFaces { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooBusy { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Draining | Self::DatabaseUnavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::JobFailed { reason: JobFailure::Internal } | Self::Internal(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    fn error_response(&self) -> HttpResponse {
        match self {
            Self::Internal(cause) => tracing::error!(error = format!("{cause:#}"), "a request failed"),
            Self::DatabaseUnavailable(cause) => tracing::error!(error = cause, "the database is away"),
            Self::StorageFull(cause) => tracing::error!(error = cause, "no room is left"),
            _ => (),
        }
        let mut response = HttpResponse::build(self.status_code());
        match self {
            Self::MethodNotAllowed { allowed, .. } => {
                response.insert_header((header::ALLOW, allowed.as_str()));
            }
            Self::Unauthorized => {
                response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
            }
            Self::TooBusy { retry_after, .. } => {
                response.insert_header((header::RETRY_AFTER, retry_after.as_secs()));
            }
            Self::DatasetLocked { retry_after } => {
                response.insert_header((header::RETRY_AFTER, retry_seconds(*retry_after)));
            }
            Self::Draining | Self::DatabaseUnavailable(_) => {
                response.insert_header((header::RETRY_AFTER, DATABASE_RETRY_S));
            }
            // The rest of the request is not read, so the connection cannot be used again.
            Self::RequestTimeout { .. } | Self::RequestTooLarge { .. } => {
                response.force_close();
            }
            _ => (),
        }
        let request_id = RequestId::current().map(|id| id.to_string());
        response.json(ErrorBody { error: ErrorDetail { request_id, ..self.detail() } })
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::PersonExists { person_id } => Self::PersonExists { person_id },
            StoreError::PersonNotFound => Self::PersonNotFound,
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
            StoreError::DatasetLocked { retry_after } => Self::DatasetLocked { retry_after },
            StoreError::Full(cause) => Self::StorageFull(cause),
            StoreError::Unavailable(cause) => Self::DatabaseUnavailable(cause),
            StoreError::LeaseLost
            | StoreError::Database(_)
            | StoreError::Blob(_)
            | StoreError::Damaged(_)
            | StoreError::Interrupted => Self::Internal(error.into()),
        }
    }
}

impl From<RecogniseError> for ApiError {
    fn from(error: RecogniseError) -> Self {
        match error {
            RecogniseError::Busy { waiting, capacity, wait, budget, retry_after } => {
                Self::TooBusy { waiting, capacity, wait, budget, retry_after }
            }
            RecogniseError::Vision(_) | RecogniseError::Identify(_) | RecogniseError::Interrupted => {
                Self::Internal(error.into())
            }
        }
    }
}
