//! Examples of the errors that each kind of call may respond with, for the API's document. Their codes, statuses and
//! details come from the table.

use std::time::Duration;

use anyhow::anyhow;
use facepipe_vision::DecodeError;

use super::{ApiError, FaceField};
use crate::{
    domain::{FaceQuality, InvalidFaceId, JobFailure, PersonId},
    model_loader::ModelProblem,
    recognise::Rotation,
    shares::Limit,
};

/// Makes an example.
pub type Example = fn() -> ApiError;

/// Calls that use the database, as nearly all do.
pub const ROWS: &[Example] =
    &[|| ApiError::DatabaseUnavailable(String::new()), || ApiError::Internal(anyhow!("in the log only"))];

/// Calls that the audit log records.
pub const AUDITED: &[Example] = &[|| ApiError::AuditUnavailable("in the log only".into())];
/// Calls that the audit log records, and that otherwise need no database.
pub const AUDITED_ALONE: &[Example] = &[
    || ApiError::DatabaseUnavailable(String::new()),
    || ApiError::AuditUnavailable("in the log only".into()),
];
/// Calls that write.
pub const FULL: &[Example] = &[|| ApiError::StorageFull("in the log only".into())];
/// Calls that change the dataset.
pub const CHANGE: &[Example] = &[
    || ApiError::DatasetLocked { retry_after: Duration::from_secs(10) },
    || ApiError::StorageFull("in the log only".into()),
];

/// Calls that may wait for a job.
pub const JOB: &[Example] = &[
    || {
        ApiError::JobFailed {
        reason: JobFailure::Explained("images 018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c and 018f4c9b-0d2f-7e4a-8b3c-6e7f8a9b0c1d have the same \
                 embedding but belong to two people: erase one of them, then train again"
            .into()),
    }
    },
    || ApiError::JobFailed { reason: JobFailure::Internal },
    || ApiError::JobCancelled,
];
/// The call that activates a model.
pub const MODELS: &[Example] = &[
    || ApiError::ModelNotFound,
    || {
        ApiError::ModelUnusable(ModelProblem::Embedder {
            model: "mobilefacenet".into(),
            server: "inception-resnet-v1",
        })
    },
    || ApiError::ModelUnusable(ModelProblem::Unusable("its bytes are not those that were written".into())),
];

/// A Face ID in the path, the query or the body.
pub const FACE_ID: &[Example] = &[|| InvalidFaceId::TooLong(65).into()];
/// Paths with an id other than a Face ID.
pub const PATH: &[Example] = &[|| InvalidFaceId::Encoding.into()];
/// Calls that add or rename a person.
pub const EXISTS: &[Example] = &[|| ApiError::PersonExists { person_id: Some(PersonId::from_row(1, 0)) }];
/// Calls about a person.
pub const PERSON: &[Example] = &[|| ApiError::PersonNotFound];
/// Calls about a person's image.
pub const PERSON_IMAGE: &[Example] = &[|| ApiError::PersonNotFound, || ApiError::ImageNotFound];

/// Calls with the parameter `wait`.
pub const QUERY: &[Example] =
    &[|| ApiError::InvalidQuery("wait is \"perhaps\", it must be \"true\" or \"false\"".into())];
/// Calls that select the rows that they erase.
pub const SELECTION: &[Example] =
    &[|| ApiError::InvalidQuery("source is \"internet\", it must be \"uploaded\" or \"camera\"".into())];
/// Lists in pages, with a time range.
pub const PAGE: &[Example] = &[
    || ApiError::InvalidQuery("limit is \"many\", it must be a whole number".into()),
    || ApiError::InvalidTimeRange { from: "2024-05-07T00:00:00Z".into(), to: "2024-05-06T00:00:00Z".into() },
    || ApiError::LimitOutOfRange { limit: "5000".into(), max: 1000 },
    || ApiError::InvalidCursor,
];

/// Lists in pages without a time range.
pub const LIMIT: &[Example] = &[
    || ApiError::InvalidQuery("limit is \"many\", it must be a whole number".into()),
    || ApiError::LimitOutOfRange { limit: "5000".into(), max: 1000 },
    || ApiError::InvalidCursor,
];

/// Calls with a JSON body.
pub const JSON: &[Example] = &[
    || ApiError::JsonExpected,
    || ApiError::MalformedJson("missing field `face_id` at line 1 column 2".into()),
    || ApiError::RequestTooLarge { max: 16 * 1024 },
    || ApiError::RequestTimeout { seconds: 30 },
];

/// Calls with a form.
pub const FORM: &[Example] = &[
    || ApiError::UnsupportedMediaType,
    || ApiError::MalformedForm("Multipart boundary is not found".into()),
    || ApiError::RequestTooLarge { max: 64 * 1024 * 1024 },
    || ApiError::RequestTimeout { seconds: 30 },
    || ApiError::ShareExceeded {
        limit: Limit::BytesInFlight,
        max: 128 * 1024 * 1024,
        retry_after: Duration::from_secs(1),
    },
    || ApiError::Overloaded {
        limit: Limit::TotalBytesInFlight,
        max: 256 * 1024 * 1024,
        retry_after: Duration::from_secs(1),
    },
];
/// Forms with images that are only counted.
pub const IMAGE_PARTS: &[Example] =
    &[|| ApiError::ImageMissing, || ApiError::TooManyImages { images: 65, max: 64 }];
/// Forms with images that are decoded.
pub const IMAGE: &[Example] = &[
    || ApiError::ImageMissing,
    || ApiError::TooManyImages { images: 65, max: 64 },
    || DecodeError::Empty.into(),
    || DecodeError::TooManyBytes { bytes: 12_582_912, max: 10 * 1024 * 1024 }.into(),
    || DecodeError::UnknownFormat.into(),
    || DecodeError::FrameTooSmall { frame: [1, 1], canvas: [7071, 7071] }.into(),
];
/// Forms with fields about their images.
pub const DETAILS: &[Example] = &[|| ApiError::InvalidField {
    field: "captured_at".into(),
    reason: "is not a time as RFC 3339 has it, e.g. 2024-05-06T07:08:09.25Z".into(),
}];
/// Calls that enrol an image.
pub const DUPLICATE: &[Example] = &[
    || ApiError::DuplicateImage {
        image_id: "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c".into(),
        person_id: PersonId::from_row(1, 0),
    },
    || ApiError::ImageOfAnother {
        image_id: "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c".into(),
        person_id: PersonId::from_row(2, 0),
    },
];
/// Calls about an image by its id alone.
pub const NO_IMAGE: &[Example] = &[|| ApiError::NoSuchImage];
/// Images in which one face counts.
pub const ONE_FACE: &[Example] = &[
    || ApiError::NoFace { image: 0, turned: Some(Rotation::Right) },
    || ApiError::SeveralFaces {
        image: 0,
        faces: vec![([112.5, 64.0, 208.0, 186.5], 0.996), ([320.0, 71.25, 402.5, 180.0], 0.988)],
    },
    || ApiError::NoSuchFace {
        image: 0,
        field: FaceField::Face(2),
        faces: vec![([112.5, 64.0, 208.0, 186.5], 0.996), ([320.0, 71.25, 402.5, 180.0], 0.988)],
    },
    || ApiError::InvalidField {
        field: "box".into(),
        reason: "is not left,top,right,bottom in pixels with left < right and top < bottom".into(),
    },
];
/// Images that are enrolled.
pub const QUALITY: &[Example] = &[|| ApiError::QualityTooLow {
    quality: FaceQuality {
        size: 31.5,
        sharpness: 12.25,
        yaw: 4.5,
        pitch: -7.0,
        roll: 1.5,
        brightness: 0.375,
        detection_confidence: 0.996,
    },
    min: 30,
}];
/// Forms with two images.
pub const TWO_IMAGES: &[Example] = &[
    || ApiError::TwoImagesExpected { images: 3 },
    || ApiError::OneImage { image: 1, error: DecodeError::Empty },
    || ApiError::OneImage {
        image: 0,
        error: DecodeError::TooManyBytes { bytes: 12_582_912, max: 10 * 1024 * 1024 },
    },
    || ApiError::OneImage { image: 1, error: DecodeError::UnknownFormat },
    || ApiError::OneImage {
        image: 1,
        error: DecodeError::FrameTooSmall { frame: [1, 1], canvas: [7071, 7071] },
    },
];
/// Calls that run the networks.
pub const QUEUE: &[Example] = &[
    || ApiError::TooBusy {
        waiting: 250,
        capacity: 256,
        wait: Duration::from_millis(5100),
        budget: Duration::from_millis(5000),
        retry_after: Duration::from_secs(6),
    },
    || ApiError::TooManyPixels { pixels: 340_000_000, max: 300_000_000 },
    || ApiError::Overloaded {
        limit: Limit::QueuePixels,
        max: 400_000_000,
        retry_after: Duration::from_secs(6),
    },
];
/// The call that shows a model.
pub const MODEL_READ: &[Example] = &[|| ApiError::ModelNotFound];
/// The call that removes a model.
pub const MODEL_REMOVAL: &[Example] = &[|| ApiError::ModelNotFound, || ApiError::ModelActive];
/// The call that shows a job.
pub const NO_JOB: &[Example] = &[|| ApiError::JobNotFound];
/// The call that cancels a job.
pub const JOB_END: &[Example] = &[|| ApiError::JobNotFound, || ApiError::JobEnded];
/// Calls that need the camera's id and location.
pub const CAMERA: &[Example] = &[|| ApiError::FieldMissing { field: "camera_id" }];
/// The call that sends results.
pub const SEND: &[Example] =
    &[|| ApiError::FieldMissing { field: "camera_id" }, || ApiError::ResultsUrlMissing];
/// Calls about a detection.
pub const NO_DETECTION: &[Example] = &[|| ApiError::DetectionNotFound];
/// The call that searches a person among unknown faces.
pub const NOT_IN_MODEL: &[Example] = &[|| ApiError::PersonNotInModel];
/// Calls for the bytes of an image.
pub const NO_PICTURE: &[Example] = &[|| ApiError::NoPicture];
/// Calls that select proposals.
pub const SELECTED: &[Example] = &[|| ApiError::InvalidField {
    field: "proposals".into(),
    reason: "has 0 entries, it must have 1 to 10000".into(),
}];
/// Calls about an unknown person.
pub const NO_UNKNOWN: &[Example] = &[|| ApiError::UnknownNotFound];
/// The call that merges unknown people.
pub const UNKNOWN_IDS: &[Example] = &[|| ApiError::InvalidField {
    field: "unknown_ids".into(),
    reason: "has the id of this very group, or of one that was merged into it".into(),
}];
/// The call that divides an unknown person.
pub const UNKNOWN_FACES: &[Example] = &[|| ApiError::InvalidField {
    field: "detections".into(),
    reason: "has 43, which is no detection of this group".into(),
}];
/// Calls about a person's last location.
pub const NEVER_SEEN: &[Example] = &[|| ApiError::NeverSeen];
/// Calls with a token that may be one camera's.
pub const OWN_CAMERA: &[Example] =
    &[|| ApiError::OtherCamera { own: "gate-1".into(), sent: "gate-2".into() }];
/// Calls about a principal.
pub const NO_PRINCIPAL: &[Example] = &[|| ApiError::PrincipalNotFound];
/// Calls about a token.
pub const NO_TOKEN: &[Example] = &[|| ApiError::TokenNotFound];
/// Calls that name a principal.
pub const PRINCIPAL_EXISTS: &[Example] = &[|| ApiError::PrincipalExists];
/// The call that adds a principal.
pub const FIRST_PRINCIPAL: &[Example] = &[|| ApiError::FirstPrincipal];
/// Calls with the values of a principal or a token.
pub const ACCESS_FIELDS: &[Example] = &[|| ApiError::InvalidField {
    field: "scopes".into(),
    reason: "has \"write\", which is no scope: there are upload, recognise, read, enrol, operate and admin"
        .into(),
}];
/// Readiness.
pub const DRAINING: &[Example] = &[|| ApiError::Draining];
