//! The table of errors: a stable code, a status and details for each. Codes never change.

use std::time::Duration;

use actix_web::http::StatusCode;
use facepipe_vision::DecodeError;
use serde_json::{Value, json};

use super::ApiError::{self, *};
use crate::{
    access::{Scope, Scopes},
    domain::{FaceQuality, JobFailure},
    model_loader::ModelProblem,
    recognise::Rotation,
};

/// An error in the form that programs need.
pub struct Row {
    /// The stable code.
    pub code: &'static str,
    /// The response's status.
    pub status: StatusCode,
    /// The values of the message.
    pub details: Option<Value>,
}

macro_rules! table {
    ($($error:pat => $code:literal, $status:ident $(, $details:expr)?;)+) => {
        /// The codes of all errors; several errors may share one.
        #[cfg(test)]
        pub const CODES: &[&str] = &[$($code),+];

        impl ApiError {
            fn own_row(&self) -> Row {
                match self {
                    $($error => Row::new($code, StatusCode::$status)$(.with($details))?,)+
                }
            }
        }
    };
}

table! {
    NotFound | GuideNotInstalled => "not_found", NOT_FOUND;
    OtherRole { role, served_by } => "other_role", NOT_FOUND, json!({ "role": role, "served_by": served_by });
    Draining => "draining", SERVICE_UNAVAILABLE;
    MethodNotAllowed { allowed, .. } => "method_not_allowed", METHOD_NOT_ALLOWED, json!({ "allowed": allowed });
    Unauthorized(problem) => "unauthorized", UNAUTHORIZED, json!({ "reason": problem.reason() });
    Forbidden { needed, has } =>
        "forbidden", FORBIDDEN, json!({ "needs_any_of": names(*needed), "has": names(*has) });
    ForeignHost => "foreign_host", FORBIDDEN;
    ForeignOrigin => "foreign_origin", FORBIDDEN;
    OtherCamera { own, sent } => "other_camera", FORBIDDEN, json!({ "camera_id": own, "sent": sent });
    PrincipalExists => "principal_exists", CONFLICT;
    PrincipalNotFound => "principal_not_found", NOT_FOUND;
    TokenNotFound => "token_not_found", NOT_FOUND;
    FirstPrincipal => "first_principal", CONFLICT;

    InvalidQuery(_) => "invalid_query", BAD_REQUEST;
    InvalidTimeRange { from, to } => "invalid_time_range", BAD_REQUEST, json!({ "from": from, "to": to });
    LimitOutOfRange { limit, max } =>
        "limit_out_of_range", BAD_REQUEST, json!({ "limit": limit, "min": 1, "max": max });
    InvalidCursor => "invalid_cursor", BAD_REQUEST;
    UnsupportedMediaType | JsonExpected => "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE;
    MalformedJson(_) => "malformed_json", BAD_REQUEST;
    MalformedForm(_) => "malformed_form", BAD_REQUEST;
    RequestTooLarge { max } => "request_too_large", PAYLOAD_TOO_LARGE, json!({ "max_bytes": max });
    RequestTimeout { seconds } => "request_timeout", REQUEST_TIMEOUT, json!({ "max_seconds": seconds });
    FieldMissing { field } => "field_missing", BAD_REQUEST, json!({ "field": field });
    InvalidField { field, .. } => "invalid_field", BAD_REQUEST, json!({ "field": field });

    ImageMissing => "image_missing", BAD_REQUEST, json!({ "field": "image" });
    TooManyImages { images, max } =>
        "too_many_images", BAD_REQUEST, json!({ "images": images, "max_images": max });
    TwoImagesExpected { images } =>
        "two_images_expected", BAD_REQUEST, json!({ "images": images, "expected": 2 });
    Image(DecodeError::Empty) | OneImage { error: DecodeError::Empty, .. } => "image_empty", BAD_REQUEST;
    Image(DecodeError::TooManyBytes { bytes, max })
    | OneImage { error: DecodeError::TooManyBytes { bytes, max }, .. } =>
        "image_too_large", PAYLOAD_TOO_LARGE, json!({ "bytes": bytes, "max_bytes": max });
    Image(DecodeError::TooManyPixels { width, height, max })
    | OneImage { error: DecodeError::TooManyPixels { width, height, max }, .. } =>
        "image_too_large", PAYLOAD_TOO_LARGE, json!({ "width": width, "height": height, "max_pixels": max });
    Image(DecodeError::TooFewBytes { bytes, width, height, min })
    | OneImage { error: DecodeError::TooFewBytes { bytes, width, height, min }, .. } =>
        "image_implausible", UNPROCESSABLE_ENTITY,
        json!({ "bytes": bytes, "width": width, "height": height, "min_bytes": min });
    Image(DecodeError::FrameTooSmall { frame, canvas })
    | OneImage { error: DecodeError::FrameTooSmall { frame, canvas }, .. } =>
        "image_implausible", UNPROCESSABLE_ENTITY, json!({ "frame": frame, "canvas": canvas });
    Image(DecodeError::UnknownFormat | DecodeError::Corrupt(_))
    | OneImage { error: DecodeError::UnknownFormat | DecodeError::Corrupt(_), .. } =>
        "image_unreadable", UNPROCESSABLE_ENTITY;
    NoFace { image, turned } =>
        "no_face", UNPROCESSABLE_ENTITY,
        json!({ "image": image, "faces": 0, "turned": turned.map(Rotation::degrees) });
    SeveralFaces { image, faces } =>
        "several_faces", UNPROCESSABLE_ENTITY,
        json!({ "image": image, "faces": faces.len(), "boxes": boxes(faces) });
    NoSuchFace { image, field, faces } =>
        "no_such_face", UNPROCESSABLE_ENTITY,
        json!({ "image": image, "field": field.name(), "faces": faces.len(), "boxes": boxes(faces) });
    QualityTooLow { quality, min } =>
        "quality_too_low", UNPROCESSABLE_ENTITY, json!({ "quality": quality_values(quality), "min_quality": min });
    TooBusy { waiting, capacity, wait, budget, .. } =>
        "too_busy", TOO_MANY_REQUESTS,
        json!({
            "waiting": waiting,
            "capacity": capacity,
            "wait_ms": millis(*wait),
            "budget_ms": millis(*budget),
        });

    ShareExceeded { limit, max, .. } =>
        "share_exceeded", TOO_MANY_REQUESTS, json!({ "limit": limit.name(), "max": max });
    Overloaded { limit, max, .. } =>
        "overloaded", SERVICE_UNAVAILABLE, json!({ "limit": limit.name(), "max": max });
    TooManyPixels { pixels, max } =>
        "too_many_pixels", PAYLOAD_TOO_LARGE, json!({ "pixels": pixels, "max_pixels": max });

    InvalidFaceId(_) => "invalid_face_id", BAD_REQUEST;
    PersonExists { person_id: None } => "person_exists", CONFLICT;
    PersonExists { person_id: Some(person_id) } =>
        "person_exists", CONFLICT, json!({ "person_id": person_id.to_string() });
    PersonNotFound => "person_not_found", NOT_FOUND;
    PersonNotInModel => "person_not_in_model", CONFLICT;
    NoPicture => "no_picture", NOT_FOUND;
    ImageNotFound | NoSuchImage => "image_not_found", NOT_FOUND;
    DuplicateImage { image_id, person_id } =>
        "duplicate_image", CONFLICT, json!({ "image_id": image_id, "person_id": person_id.to_string() });
    ImageOfAnother { image_id, person_id } =>
        "image_of_another", CONFLICT, json!({ "image_id": image_id, "person_id": person_id.to_string() });
    NeverSeen => "never_seen", NOT_FOUND;
    DetectionNotFound => "detection_not_found", NOT_FOUND;
    UnknownNotFound => "unknown_not_found", NOT_FOUND;
    DatasetLocked { .. } => "dataset_locked", LOCKED;

    JobNotFound => "job_not_found", NOT_FOUND;
    JobEnded => "job_ended", CONFLICT;
    JobCancelled => "job_cancelled", CONFLICT;
    JobFailed { reason: JobFailure::Explained(_) } => "job_failed", CONFLICT;
    JobFailed { reason: JobFailure::Internal } => "job_failed", INTERNAL_SERVER_ERROR;
    ModelNotFound => "model_not_found", NOT_FOUND;
    ModelActive => "model_active", CONFLICT;
    ModelUnusable(ModelProblem::Embedder { model, server }) =>
        "embedder_mismatch", CONFLICT, json!({ "model_embedder": model, "embedder": server });
    ModelUnusable(ModelProblem::Unusable(_)) => "model_unusable", CONFLICT;
    ResultsUrlMissing => "results_url_missing", CONFLICT;

    StorageFull(_) => "storage_full", INSUFFICIENT_STORAGE;
    DatabaseUnavailable(_) => "database_unavailable", SERVICE_UNAVAILABLE;
    AuditUnavailable(_) => "audit_unavailable", SERVICE_UNAVAILABLE;
    Internal(_) => "internal", INTERNAL_SERVER_ERROR;
}

impl Row {
    fn new(code: &'static str, status: StatusCode) -> Self {
        Self { code, status, details: None }
    }

    fn with(self, details: Value) -> Self {
        Self { details: Some(details), ..self }
    }
}

impl ApiError {
    /// Returns the error's row of the table.
    pub fn row(&self) -> Row {
        let mut row = self.own_row();
        if let OneImage { image, .. } = self {
            match &mut row.details {
                Some(Value::Object(details)) => drop(details.insert("image".into(), json!(image))),
                _ => row.details = Some(json!({ "image": image })),
            }
        }
        row
    }
}

fn boxes(faces: &[([f32; 4], f32)]) -> Vec<Value> {
    let face = |([left, top, right, bottom], confidence): &([f32; 4], f32)| {
        json!({
            "bounding_box": {
                "left": decimal(*left), "top": decimal(*top), "right": decimal(*right), "bottom": decimal(*bottom),
            },
            "detection_confidence": decimal(*confidence),
        })
    };
    faces.iter().map(face).collect()
}

fn quality_values(quality: &FaceQuality) -> Value {
    json!({
        "score": quality.score(),
        "size": decimal(quality.size),
        "sharpness": decimal(quality.sharpness),
        "yaw": decimal(quality.yaw),
        "pitch": decimal(quality.pitch),
        "roll": decimal(quality.roll),
        "brightness": decimal(quality.brightness),
        "detection_confidence": decimal(quality.detection_confidence),
    })
}

/// Returns a number with the digits of its `f32`, not those of the nearest `f64`.
fn decimal(number: f32) -> Value {
    number.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

fn names(scopes: Scopes) -> Vec<&'static str> {
    scopes.iter().map(Scope::name).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
