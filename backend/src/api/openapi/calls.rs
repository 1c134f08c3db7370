//! What types cannot say about the API: which errors a call may be answered with, the limits of parameters, headers,
//! and the words around it all.
//!
//! A new call needs `#[api_v2_operation]` on its handler, `Apiv2Schema` on the types of its query, body and answer
//! (with a doc comment and an example on each field), and an entry in [`CALLS`]. A test names what is missing.

use std::{collections::BTreeMap, time::Duration};

use anyhow::anyhow;
use facepipe_vision::DecodeError;
use paperclip::{actix::OperationModifier as _, v2::models::DefaultSchemaRaw};
use serde_json::{Value, json};

use super::super::{
    ListMeta,
    dataset::{SimilarImage, Warning},
    detections::TimeBasis,
    jobs::Progress,
    page::PageMeta,
    recognition::{BoundingBox, Decision},
};
use crate::{
    domain::{InvalidFaceId, JobFailure, JobKind, JobStatus, PersonId},
    error::{ApiError, ErrorBody, ErrorDetail},
    model_loader::ModelProblem,
    recognise::Rotation,
    train::{Conflict, ConflictingImage, EmbeddingResult, LeftOut, TrainingResult, WhyLeftOut},
};

/// What stands above all calls.
pub const DESCRIPTION: &str = "\
Face recognition over HTTP: enrol people, train, ask who is on a picture, store who was seen where and when.

**Answers** are JSON unless said otherwise. Every error has the form of `Error`: a `code` that never changes, a \
`message` that names the field and the limit, and the message's values as `details`. A path that does not exist is \
answered with 404 `not_found`, a method that a path does not take with 405 `method_not_allowed` and the header \
`Allow`. HEAD is answered wherever GET is, the same without the body. A field that this document does not know may be added to an answer at any time.

**Faces.** Where a picture must show exactly one face and shows several, the error `several_faces` has `boxes` in its \
`details`: of each face the `bounding_box`, in pixels of the picture after its EXIF orientation was applied, and the \
`detection_confidence`. Where it shows none, the details of `no_face` have `turned`: by how many degrees (90, 180 or 270) \
the picture must be turned clockwise to show a face, or null where that does not help. Of a picture that was read although \
something is wrong with its file, an answer has `notes`: `jpeg_end_missing` says that a JPEG was cut off after its last \
pixel. One that lacks pixels is refused by every call, with `image_unreadable`.

**Request ids.** Every answer has the header `X-Request-Id`, and an error's body the same as `request_id`: by it the \
server's log is searched. It is the request's own, where that has 1 to 128 letters, digits, `-`, `_` and `.`. A request \
may have `traceparent` (W3C Trace Context).

**Connections** are kept for a while after an answer, as its header `Keep-Alive: timeout=75` says in seconds (setting \
`keep_alive_s`). A client that has sent its request may close its side of the connection and read the answer.

**Browsers.** Scripts of other origins may make calls where the setting `cors_origins` names the origin of their page.

**Names and ids.** A person has a Face ID, a name in any script, and a `person_id`, which never changes and says nothing \
of anybody. Two Face IDs that differ only in Unicode's forms, in capital and small letters, in spaces or in the kind of \
apostrophe are one person's. What has a Face ID in its address has a twin below `/people/{person_id}`, for whoever does not \
want names in the logs of proxies.

**Times** are RFC 3339. Answers give them in UTC; requests may have any offset, and a fraction down to microseconds.

**Pages.** Lists that can be long come in pages: `meta.next_cursor` is what gets the next one, and null on the last.

**Limits** of images and requests are those of the default configuration; errors name those of the running server.

**Tokens.** Where the server has a file of tokens (setting `token_file`), a request needs one of them as \
`Authorization: Bearer <token>`: a camera's for POST to `/face-recognition/…`, an admin's for everything else. Without \
one that the server knows, the answer is 401 `unauthorized`; where a camera's does not do, 403 `forbidden`. This \
document, `/`, `/docs`, `/startupz`, `/livez` and `/readyz` need none. Where the server has no such file, whoever can reach it can \
use it.

**Roles.** A deployment may have servers that answer `/face-recognition/…` and others that answer the rest (setting \
`role`). A call that the other ones serve is answered with 404 `other_role`.";

/// The groups of calls: name and description.
pub const TAGS: &[(&str, &str)] = &[
    (DATASET, "Whom the server knows: people and the pictures of their faces."),
    (MODEL, "Training, which makes of the dataset what recognition uses."),
    (RECOGNITION, "Who is on a picture."),
    (DATABASE, "Who was seen where and when."),
    (SERVER, "The server itself."),
    (DEBUG, "For whoever looks into a deployment."),
];

const DATASET: &str = "Dataset";
const MODEL: &str = "Model";
const RECOGNITION: &str = "Face recognition";
const DATABASE: &str = "Database";
const SERVER: &str = "Server";
const DEBUG: &str = "Debugging";

/// An error as its call may answer it.
pub type Sample = fn() -> ApiError;

/// What types don't say about a call.
pub struct Call {
    /// In capitals.
    pub method: &'static str,
    /// Its parameters in braces.
    pub path: &'static str,
    /// One of [`TAGS`].
    pub tag: &'static str,
    /// Every error that it may be answered with, by groups that calls share.
    pub errors: &'static [&'static [Sample]],
    /// Status and name, one of [`headers`], of what successful answers have beside their body.
    pub headers: &'static [(u16, &'static str)],
    /// Status, media type and example of a second form of the answer, a text.
    pub also: &'static [(u16, &'static str, &'static str)],
    /// Form fields that this call needs and others with the same form don't.
    pub required: &'static [&'static str],
    /// What can be called with what a successful answer says.
    pub links: &'static [Link],
    /// Whether it needs no token.
    pub open: bool,
}

/// A call that another one's answer leads to.
pub struct Link {
    /// The answer's status.
    pub status: u16,
    /// Method, in capitals, and path of the call.
    pub to: (&'static str, &'static str),
    /// Each of its parameters, and where in the answer its value stands: a runtime expression of OpenAPI.
    pub parameters: &'static [(&'static str, &'static str)],
}

const fn call(
    method: &'static str,
    path: &'static str,
    tag: &'static str,
    errors: &'static [&'static [Sample]],
) -> Call {
    Call { method, path, tag, errors, headers: &[], also: &[], required: &[], links: &[], open: false }
}

/// Every call, in the order of [`TAGS`].
pub const CALLS: &[Call] = &[
    call("GET", "/dataset", DATASET, &[ROWS]),
    call("GET", "/dataset/{id}", DATASET, &[FACE_ID, PERSON, ROWS]),
    call("POST", "/dataset/{id}", DATASET, &[FACE_ID, EXISTS, CHANGE, ROWS]),
    call("PATCH", "/dataset/{id}", DATASET, &[FACE_ID, JSON, PERSON, EXISTS, CHANGE, ROWS]),
    Call {
        headers: &[(204, "Cache-Control")],
        ..call("DELETE", "/dataset/{id}", DATASET, &[FACE_ID, PERSON, CHANGE, ROWS])
    },
    Call {
        links: &[
            Link { status: 201, to: ("GET", "/dataset/{id}/image/{image_id}"), parameters: ENROLLED },
            Link { status: 201, to: ("DELETE", "/dataset/{id}/image/{image_id}"), parameters: ENROLLED },
            Link {
                status: 201,
                to: ("GET", "/images/{image_id}"),
                parameters: &[("image_id", "$response.body#/image_id")],
            },
        ],
        ..call(
            "POST",
            "/dataset/{id}/image",
            DATASET,
            &[FACE_ID, PERSON, FORM, IMAGE, DUPLICATE, ONE_FACE, QUEUE, CHANGE, ROWS],
        )
    },
    Call {
        headers: &[(200, "Cache-Control"), (200, "X-Content-Type-Options")],
        ..call("GET", "/dataset/{id}/image/{image_id}", DATASET, &[FACE_ID, PERSON_IMAGE, ROWS])
    },
    call("DELETE", "/dataset/{id}/image/{image_id}", DATASET, &[FACE_ID, PERSON_IMAGE, CHANGE, ROWS]),
    call("GET", "/people", DATASET, &[ROWS]),
    call("POST", "/people", DATASET, &[FACE_ID, JSON, EXISTS, CHANGE, ROWS]),
    call("POST", "/people/search", DATASET, &[FACE_ID, JSON, PERSON, ROWS]),
    call("GET", "/people/{person_id}", DATASET, &[PATH, PERSON, ROWS]),
    call("PATCH", "/people/{person_id}", DATASET, &[FACE_ID, JSON, PERSON, EXISTS, CHANGE, ROWS]),
    Call {
        headers: &[(204, "Cache-Control")],
        ..call("DELETE", "/people/{person_id}", DATASET, &[PATH, PERSON, CHANGE, ROWS])
    },
    call(
        "POST",
        "/people/{person_id}/images",
        DATASET,
        &[PATH, PERSON, FORM, IMAGE, DUPLICATE, ONE_FACE, QUEUE, CHANGE, ROWS],
    ),
    call("GET", "/images/{image_id}", DATASET, &[PATH, NO_IMAGE, ROWS]),
    Call {
        headers: &[(200, "Cache-Control"), (200, "X-Content-Type-Options")],
        ..call("GET", "/images/{image_id}/content", DATASET, &[PATH, NO_IMAGE, ROWS])
    },
    call("DELETE", "/images/{image_id}", DATASET, &[PATH, NO_IMAGE, CHANGE, ROWS]),
    job("/model/optimized-train"),
    job("/model/train"),
    job("/model/generate-emb"),
    call("GET", "/model", MODEL, &[ROWS]),
    call("POST", "/model/{version}/activate", MODEL, &[PATH, MODELS, FULL, ROWS]),
    call(
        "DELETE",
        "/model/{version}",
        MODEL,
        &[PATH, &[|| ApiError::ModelNotFound, || ApiError::ModelActive], FULL, ROWS],
    ),
    call("GET", "/jobs", MODEL, &[LIMIT, ROWS]),
    call("GET", "/jobs/{job_id}", MODEL, &[PATH, &[|| ApiError::JobNotFound], ROWS]),
    call(
        "DELETE",
        "/jobs/{job_id}",
        MODEL,
        &[PATH, &[|| ApiError::JobNotFound, || ApiError::JobEnded], FULL, ROWS],
    ),
    Call {
        headers: &[(200, "Server-Timing")],
        ..call("GET", "/face-recognition/get-results", RECOGNITION, &[FORM, IMAGE, DETAILS, QUEUE, ROWS])
    },
    Call {
        headers: &[(200, "Server-Timing")],
        ..call("POST", "/face-recognition/get-results", RECOGNITION, &[FORM, IMAGE, DETAILS, QUEUE, ROWS])
    },
    Call {
        headers: &[(201, "Server-Timing")],
        required: &["camera_id", "location"],
        ..call(
            "POST",
            "/face-recognition/store-results",
            RECOGNITION,
            &[FORM, IMAGE, &[|| ApiError::FieldMissing { field: "camera_id" }], DETAILS, QUEUE, FULL, ROWS],
        )
    },
    Call {
        headers: &[(202, "Server-Timing")],
        required: &["camera_id", "location"],
        ..call(
            "POST",
            "/face-recognition/send-results",
            RECOGNITION,
            &[
                FORM,
                IMAGE,
                &[|| ApiError::FieldMissing { field: "camera_id" }, || ApiError::ResultsUrlMissing],
                DETAILS,
                QUEUE,
                FULL,
                ROWS,
            ],
        )
    },
    Call {
        headers: &[(200, "Server-Timing")],
        ..call("POST", "/face-recognition/verify", RECOGNITION, &[FORM, TWO_IMAGES, ONE_FACE, QUEUE])
    },
    call("POST", "/face-recognition/dry-run", RECOGNITION, &[FORM, IMAGE_PARTS, DETAILS]),
    call("GET", "/database/people", DATABASE, &[ROWS]),
    Call {
        headers: &[(200, "Vary"), (200, "X-Next-Cursor")],
        also: &[(
            200,
            "text/csv",
            "id,captured_at,received_at,camera_id,location,face_id,confidence,score,threshold,detection_confidence,\
             model_version,track_id,left,top,right,bottom,person_id,claimed_at,time_basis\n\
             42,2024-05-06T07:08:09.25Z,2024-05-06T07:08:10.5Z,gate-1,Lobby,Ada Lovelace,0.875,0.8125,0.355,0.996,\
             7,12,112.5,64.0,208.0,186.5,018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c,,claim\n",
        )],
        ..call("GET", "/database/detections", DATABASE, &[PAGE, FACE_ID, PERSON, ROWS])
    },
    call(
        "GET",
        "/database/detections/{detection_id}",
        DATABASE,
        &[PATH, &[|| ApiError::DetectionNotFound], ROWS],
    ),
    call(
        "DELETE",
        "/database/detections/{detection_id}",
        DATABASE,
        &[PATH, &[|| ApiError::DetectionNotFound], FULL, ROWS],
    ),
    call("GET", "/database/{id}/track", DATABASE, &[PAGE, FACE_ID, PERSON, ROWS]),
    call(
        "GET",
        "/database/{id}/last-known-location",
        DATABASE,
        &[FACE_ID, PERSON, &[|| ApiError::NeverSeen], ROWS],
    ),
    call("GET", "/people/{person_id}/track", DATABASE, &[PAGE, PATH, PERSON, ROWS]),
    call(
        "GET",
        "/people/{person_id}/last-known-location",
        DATABASE,
        &[PATH, PERSON, &[|| ApiError::NeverSeen], ROWS],
    ),
    call("GET", "/cameras", DATABASE, &[ROWS]),
    Call {
        open: true,
        headers: &[(200, "Vary"), (307, "Location"), (307, "Vary")],
        ..call("GET", "/", SERVER, &[])
    },
    Call { open: true, ..call("GET", "/startupz", SERVER, &[]) },
    Call { open: true, ..call("GET", "/livez", SERVER, &[]) },
    Call { open: true, ..call("GET", "/readyz", SERVER, &[&[|| ApiError::Draining], ROWS]) },
    Call { open: true, ..call("GET", "/openapi.json", SERVER, &[]) },
    call("GET", "/debug/IP", DEBUG, &[]),
    call("GET", "/debug/node-name", DEBUG, &[]),
    call("POST", "/debug/unblock-dataset", DEBUG, &[FULL, ROWS]),
];

/// A call that begins a job.
const fn job(path: &'static str) -> Call {
    Call {
        headers: &[(200, "Location"), (202, "Location")],
        links: &[Link {
            status: 202,
            to: ("GET", "/jobs/{job_id}"),
            parameters: &[("job_id", "$response.body#/job_id")],
        }],
        ..call("POST", path, MODEL, &[QUERY, JOB, FULL, ROWS])
    }
}

/// Where an enrolled image is.
const ENROLLED: &[(&str, &str)] =
    &[("id", "$response.body#/face_id"), ("image_id", "$response.body#/image_id")];

/// Of calls that look at the database, as nearly all do.
const ROWS: &[Sample] =
    &[|| ApiError::DatabaseUnavailable(String::new()), || ApiError::Internal(anyhow!("in the log only"))];

/// Of calls that write.
const FULL: &[Sample] = &[|| ApiError::StorageFull("in the log only".into())];
/// Of calls that change the dataset.
const CHANGE: &[Sample] = &[
    || ApiError::DatasetLocked { retry_after: Duration::from_secs(10) },
    || ApiError::StorageFull("in the log only".into()),
];

/// Of calls that wait for a job.
const JOB: &[Sample] = &[
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
/// Of calls that have a model answer.
const MODELS: &[Sample] = &[
    || ApiError::ModelNotFound,
    || {
        ApiError::ModelUnusable(ModelProblem::Embedder {
            model: "mobilefacenet".into(),
            server: "inception-resnet-v1",
        })
    },
    || ApiError::ModelUnusable(ModelProblem::Unusable("its bytes are not those that were written".into())),
];

const FACE_ID: &[Sample] = &[|| InvalidFaceId::TooLong(65).into()];
/// Of paths with another id.
const PATH: &[Sample] = &[|| InvalidFaceId::Encoding.into()];
const EXISTS: &[Sample] = &[|| ApiError::PersonExists { person_id: Some(PersonId::from_row(1, 0)) }];
const PERSON: &[Sample] = &[|| ApiError::PersonNotFound];
const PERSON_IMAGE: &[Sample] = &[|| ApiError::PersonNotFound, || ApiError::ImageNotFound];

const QUERY: &[Sample] =
    &[|| ApiError::InvalidQuery("wait is \"perhaps\", it must be \"true\" or \"false\"".into())];
/// Of lists that come in pages.
const PAGE: &[Sample] = &[
    || ApiError::InvalidQuery("limit is \"many\", it must be a whole number".into()),
    || ApiError::InvalidTimeRange { from: "2024-05-07T00:00:00Z".into(), to: "2024-05-06T00:00:00Z".into() },
    || ApiError::LimitOutOfRange { limit: "5000".into(), max: 1000 },
    || ApiError::InvalidCursor,
];

/// Of lists that come in pages and go by no time.
const LIMIT: &[Sample] = &[
    || ApiError::InvalidQuery("limit is \"many\", it must be a whole number".into()),
    || ApiError::LimitOutOfRange { limit: "5000".into(), max: 1000 },
    || ApiError::InvalidCursor,
];

/// Of calls with a JSON body.
const JSON: &[Sample] = &[
    || ApiError::JsonExpected,
    || ApiError::MalformedJson("missing field `face_id` at line 1 column 2".into()),
    || ApiError::RequestTooLarge { max: 16 * 1024 },
    || ApiError::RequestTimeout { seconds: 30 },
];

/// Of calls with a form.
const FORM: &[Sample] = &[
    || ApiError::UnsupportedMediaType,
    || ApiError::MalformedForm("Multipart boundary is not found".into()),
    || ApiError::RequestTooLarge { max: 64 * 1024 * 1024 },
    || ApiError::RequestTimeout { seconds: 30 },
];
/// Of forms whose pictures are only counted.
const IMAGE_PARTS: &[Sample] =
    &[|| ApiError::ImageMissing, || ApiError::TooManyImages { images: 65, max: 64 }];
/// Of forms whose pictures are looked at.
const IMAGE: &[Sample] = &[
    || ApiError::ImageMissing,
    || ApiError::TooManyImages { images: 65, max: 64 },
    || DecodeError::Empty.into(),
    || DecodeError::TooManyBytes { bytes: 12_582_912, max: 10 * 1024 * 1024 }.into(),
    || DecodeError::UnknownFormat.into(),
];
/// Of forms with something to say about their pictures.
const DETAILS: &[Sample] = &[|| ApiError::InvalidField {
    field: "captured_at".into(),
    reason: "is not a time as RFC 3339 has it, e.g. 2024-05-06T07:08:09.25Z".into(),
}];
const DUPLICATE: &[Sample] = &[
    || ApiError::DuplicateImage {
        image_id: "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c".into(),
        person_id: PersonId::from_row(1, 0),
    },
    || ApiError::ImageOfAnother {
        image_id: "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c".into(),
        person_id: PersonId::from_row(2, 0),
    },
];
const NO_IMAGE: &[Sample] = &[|| ApiError::NoSuchImage];
const ONE_FACE: &[Sample] = &[
    || ApiError::NoFace { image: 0, turned: Some(Rotation::Right) },
    || ApiError::SeveralFaces {
        image: 0,
        faces: vec![([112.5, 64.0, 208.0, 186.5], 0.996), ([320.0, 71.25, 402.5, 180.0], 0.988)],
    },
];
/// Of forms with two pictures.
const TWO_IMAGES: &[Sample] = &[
    || ApiError::TwoImagesExpected { images: 3 },
    || ApiError::OneImage { image: 1, error: DecodeError::Empty },
    || ApiError::OneImage {
        image: 0,
        error: DecodeError::TooManyBytes { bytes: 12_582_912, max: 10 * 1024 * 1024 },
    },
    || ApiError::OneImage { image: 1, error: DecodeError::UnknownFormat },
];
/// Of calls that wait for the networks.
const QUEUE: &[Sample] = &[|| ApiError::TooBusy {
    waiting: 250,
    capacity: 256,
    wait: Duration::from_millis(5100),
    budget: Duration::from_millis(5000),
    retry_after: Duration::from_secs(6),
}];

/// A Face ID as far as ASCII goes; beyond it, whatever can be seen is allowed.
const FACE_ID_PATTERN: &str = r"^[^\x00-\x1f%+./<->@\\\x7f][^\x00-\x1f%/<>\\\x7f]{0,63}$";

fn face_id() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": 64, "pattern": FACE_ID_PATTERN })
}

/// The parameters of paths and queries: schema, example, and the description of those in paths (a query's stand at
/// its type).
pub fn parameters() -> Vec<(&'static str, Value)> {
    let time =
        |example: &str| json!({ "schema": { "type": "string", "format": "date-time" }, "example": example });
    vec![
        (
            "id",
            json!({
                "description": "Face ID, what the person is called, in any script: 1 to 64 characters (Unicode code points in \
                                normalisation form C, in which names are kept; white space around it is taken away). Not \
                                `/`, `\\\\`, `%`, `<`, `>`, control characters and those that nothing is to be seen of, but \
                                for joiners within words; not beginning with `.`, `=`, `+` or `@`. Capital and small letters \
                                do not tell two people apart (setting `face_ids_ignore_case`).",
                "schema": face_id(),
                "example": "Ada Lovelace",
            }),
        ),
        (
            "person_id",
            json!({
                "description": "What stands for a person where a name must not: as enrolments and lists of people have it.",
                "schema": { "type": "string", "format": "uuid" },
                "example": "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c",
            }),
        ),
        (
            "image_id",
            json!({
                "description": "As the enrolment answered it, and the person's list of images has it.",
                "schema": { "type": "string", "minLength": 1 },
                "example": "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c",
            }),
        ),
        (
            "version",
            json!({
                "description": "Which model, as `/model` lists them.",
                "schema": { "type": "integer", "format": "int64", "minimum": 1 },
                "example": 7,
            }),
        ),
        (
            "job_id",
            json!({
                "description": "As the call that began the job answered it.",
                "schema": { "type": "string", "minLength": 1 },
                "example": "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c",
            }),
        ),
        (
            "detection_id",
            json!({
                "description": "The detection's `id`.",
                "schema": { "type": "integer", "format": "int64", "minimum": 1 },
                "example": 42,
            }),
        ),
        (
            "status",
            json!({
                "schema": { "type": "string", "enum": JobStatus::ALL.map(JobStatus::as_str) },
                "example": "running",
            }),
        ),
        ("wait", json!({ "schema": { "type": "boolean", "default": false }, "example": true })),
        ("person", json!({ "schema": face_id(), "example": "Ada Lovelace" })),
        ("camera", json!({ "schema": { "type": "string" }, "example": "gate-1" })),
        ("location", json!({ "schema": { "type": "string" }, "example": "Lobby" })),
        ("from", time("2024-05-06T00:00:00Z")),
        ("to", time("2024-05-07T00:00:00Z")),
        ("after", json!({ "schema": { "type": "integer", "format": "int64", "minimum": 0 }, "example": 42 })),
        ("limit", json!({ "schema": { "type": "integer", "minimum": 1, "maximum": 1000 }, "example": 100 })),
        ("cursor", json!({ "schema": { "type": "string", "pattern": "^[0-9a-f]{48}$" } })),
    ]
}

/// The headers of answers; those of `required` stand in every answer of their status.
pub fn headers() -> Vec<(&'static str, Value)> {
    let text = |required: bool, description: &str, example: &str| {
        let schema = json!({ "type": "string" });
        json!({ "required": required, "description": description, "schema": schema, "example": example })
    };
    vec![
        ("Allow", text(true, "The methods that this path takes.", "GET, POST")),
        ("Cache-Control", text(true, "That nothing keeps it.", "no-store")),
        (
            "Location",
            text(true, "Where the job is, or the page.", "/jobs/018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c"),
        ),
        (
            "Retry-After",
            json!({
                "required": true,
                "description": "Seconds after which to try again.",
                "schema": { "type": "integer", "minimum": 0 },
                "example": 2,
            }),
        ),
        (
            "Server-Timing",
            text(
                true,
                "How long the request waited and how long it was computed, milliseconds.",
                "queue;dur=0.4, recognise;dur=38.1",
            ),
        ),
        ("WWW-Authenticate", text(true, "That a token is needed.", "Bearer")),
        ("Vary", text(true, "That the form depends on `Accept`.", "accept")),
        ("X-Content-Type-Options", text(true, "That the type is as it says.", "nosniff")),
        (
            "X-Next-Cursor",
            text(
                false,
                "`next_cursor`, where there is a next page.",
                "000617c5a5b3a6d0000000000000002ac3d9f0a1b2c4d5e6",
            ),
        ),
    ]
}

/// How tokens are sent.
pub fn token_scheme() -> Value {
    json!({
        "type": "http",
        "scheme": "bearer",
        "description": "A token of the server's `token_file`. A server that has none takes requests without.",
    })
}

/// Types that no call takes or answers as they are, and that stand within others as fields only: paperclip does not
/// tell their doc comments from those of the fields.
pub const TYPES: &[fn(&mut BTreeMap<String, DefaultSchemaRaw>)] = &[
    ErrorBody::update_definitions,
    ErrorDetail::update_definitions,
    ListMeta::update_definitions,
    PageMeta::update_definitions,
    BoundingBox::update_definitions,
    Decision::update_definitions,
    TimeBasis::update_definitions,
    JobKind::update_definitions,
    JobStatus::update_definitions,
    Progress::update_definitions,
    TrainingResult::update_definitions,
    LeftOut::update_definitions,
    WhyLeftOut::update_definitions,
    Conflict::update_definitions,
    ConflictingImage::update_definitions,
    EmbeddingResult::update_definitions,
    Warning::update_definitions,
    SimilarImage::update_definitions,
];

/// The headers of errors, by status.
pub const ERROR_HEADERS: &[(u16, &str)] = &[
    (401, "WWW-Authenticate"),
    (405, "Allow"),
    (423, "Retry-After"),
    (429, "Retry-After"),
    (503, "Retry-After"),
];

/// What derived schemas lack: type, property (empty for the type itself, `*` for every type that has a text of that
/// name) and what is to be merged in, where null removes.
pub fn amendments() -> Vec<(&'static str, &'static str, Value)> {
    let time = || json!({ "format": "date-time" });
    vec![
        ("*", "captured_at", time()),
        ("*", "claimed_at", time()),
        ("*", "created_at", time()),
        ("*", "finished_at", time()),
        ("*", "last_seen", time()),
        ("*", "received_at", time()),
        ("*", "started_at", time()),
        (
            "Job",
            "result",
            json!({
                "type": null,
                "anyOf": [
                    { "$ref": "#/components/schemas/TrainingResult" },
                    { "$ref": "#/components/schemas/EmbeddingResult" },
                ],
            }),
        ),
        ("Conflict", "images", json!({ "minItems": 2, "maxItems": 2 })),
        ("Image", "sha256", json!({ "pattern": "^[0-9a-f]{64}$" })),
        ("ImageDetails", "sha256", json!({ "pattern": "^[0-9a-f]{64}$" })),
        ("Renaming", "", json!({ "additionalProperties": false })),
        ("Renaming", "face_id", face_id()),
        ("PersonName", "", json!({ "additionalProperties": false })),
        ("PersonName", "face_id", face_id()),
        // Several are read in order to be refused by their number.
        ("EnrolmentForm", "image", json!({ "type": "string", "format": "binary", "items": null })),
        ("RecognitionForm", "image", json!({ "minItems": 1 })),
        ("VerificationForm", "image", json!({ "minItems": 2, "maxItems": 2 })),
        ("Verification", "faces", json!({ "minItems": 2, "maxItems": 2 })),
    ]
}

/// Properties that are left out where there is nothing to say, though their type is no `Option`, and those that a
/// usual answer, such as an example, does not have.
pub const OFTEN_ABSENT: &[(&str, &str)] = &[
    ("AddedImage", "warning"),
    ("Job", "error"),
    ("RecognitionForm", "captured_at"),
    ("AddedImage", "notes"),
    ("Verification", "notes"),
    ("RecognitionForm", "track_id"),
    ("RecognitionForm", "box"),
    ("RecognitionForm", "key"),
    ("Results", "errors"),
    ("Results", "notice"),
    ("Results", "notes"),
    ("SentResults", "errors"),
    ("SentResults", "notice"),
    ("SentResults", "notes"),
    ("StoredResults", "errors"),
    ("StoredResults", "notice"),
    ("StoredResults", "notes"),
];
