//! The parts of the API's document that the types of handlers cannot express: parameters, headers, amendments of
//! schemas, and the introduction.
//!
//! A new call needs `#[api_v2_operation]` on its handler, `Apiv2Schema` on the types of its query, body and response
//! (with a doc comment and an example on each field), and an entry in the table of routes. A test names what is missing.

use std::collections::BTreeMap;

use paperclip::{actix::OperationModifier as _, v2::models::DefaultSchemaRaw};
use serde_json::{Value, json};

use super::super::{
    ListMeta,
    audit::{AuditObject, AuditPrincipal, BrokenEntry},
    cohort::{CohortGroup, CohortOutcome},
    dataset::{DatasetMeta, SimilarImage},
    detections::TimeBasis,
    jobs::Progress,
    page::PageMeta,
    proposals::Proposal,
    quality::{ImageFace, Quality},
    recognition::{BoundingBox, Decision},
    unknowns::{Unknown, UnknownCamera, UnknownPicture},
    warnings::{OtherPerson, Warning},
};
use crate::{
    access::{PrincipalKind, Scope},
    domain::{
        AlikePair, AuditAction, CalibrationMethod, CohortSource, ErrorRate, JobKind, JobStatus,
        ModelCalibration, ModelWarning, ModelWarningCode, PersonReference,
    },
    error::{ErrorBody, ErrorDetail, examples::Example},
    train::{
        Conflict, ConflictingImage, EmbeddingResult, LeftOut, PastSearchResult, TrainingResult, WhyLeftOut,
    },
    unknowns::ReclusteringResult,
};

/// The introduction.
pub const DESCRIPTION: &str = "\
Face recognition over HTTP: enrol people, train, recognise faces on images, store who was seen where and when.

**Responses** are JSON unless said otherwise. Every error has the form of `Error`: a `code` that never changes, a \
`message` that names the field and the limit, and the message's values as `details`. The response to \
an unknown path is 404 `not_found`, to a method that a path does not take 405 `method_not_allowed` with the header \
`Allow`. Every path that takes GET takes HEAD. A field that this document does not know may be added to a response at any time.

**Faces.** Where one face of an image counts and it shows several, the main face does: the largest and the nearest to the centre, \
with 1.25 times the area of every other one that the detector is sure of. Where there is none, the error `several_faces` has `boxes` \
in its `details`: of each face the `bounding_box`, in pixels of the image after its EXIF orientation was applied, and the \
`detection_confidence`. The field `face` says which of them counts by its position in that list, from 0, and the field `box` by \
its place, as `left,top,right,bottom`. Where it shows none, the details of `no_face` have `turned`: by how many degrees (90, 180 or 270) \
the image must be turned clockwise to show a face, or null where that does not help. The response to an image that could be \
read although its file is defective has `notes`: `jpeg_end_missing` means that a JPEG was cut off after its last pixel. \
Every call rejects an image that lacks pixels, with `image_unreadable`, and one whose header states far more pixels than its data \
can have, with `image_implausible`.

**Limits of clients.** Nobody's requests keep those of others out: a client that exceeds its share gets 429 (`share_exceeded`, \
`too_busy`), and while all clients together exceed what the server takes, some get 503 (`overloaded`). Both have `Retry-After`, and \
`details` with the `limit` and its maximum.

**Request ids.** Every response has the header `X-Request-Id`, and the body of an error the same as `request_id`, for \
searching the server's log. It is the request's own, where that has 1 to 128 letters, digits, `-`, `_` and `.`. A request \
may have `traceparent` (W3C Trace Context).

**Connections** are kept for a while after a response, as its header `Keep-Alive: timeout=75` announces in seconds (setting \
`keep_alive_s`). A client that has sent its request may close its side of the connection and read the response.

**Browsers.** Scripts of other origins may make calls where the setting `cors_origins` names the origin of their page.

**Names and ids.** A person has a Face ID, a name in any script, and a `person_id`, which never changes and says nothing \
of anybody. Two Face IDs that differ only in Unicode's forms, in capital and small letters, in spaces or in the kind of \
apostrophe are one person's. Every call with a Face ID in its address has a twin below `/people/{person_id}`, which keeps \
names out of the logs of proxies.

**Times** are RFC 3339. Responses have them in UTC; requests may have any offset, and a fraction down to microseconds.

**Pages.** Lists that can be long come in pages: `meta.next_cursor` is what gets the next one, and null on the last.

**Limits** of images and requests are those of the default configuration; errors name those of the running server.

**Tokens.** Where the server has a file of tokens (setting `token_file`), a request needs one of them as \
`Authorization: Bearer <token>`: a camera's for POST to `/face-recognition/…`, an admin's for everything else. Without \
a known one, the response is 401 `unauthorized`; where a camera's does not suffice, 403 `forbidden`. This \
document, `/`, `/docs`, `/startupz`, `/livez` and `/readyz` need none. Where the server has no such file, everybody who can reach it can \
use it.

**Roles.** A deployment may have servers for `/face-recognition/…` and others for the rest (setting `role`). The response \
to a call that the others serve is 404 `other_role`.";

/// The groups of calls: name and description.
pub const TAGS: &[(&str, &str)] = &[
    (DATASET, "Enrolled people and the images of their faces."),
    (MODEL, "Training models on the dataset, and the cohort against which they are calibrated."),
    (RECOGNITION, "Recognising the faces of images."),
    (DATABASE, "Detections: who was seen where and when."),
    (UNKNOWNS, "Unknown people: who was seen and is not enrolled."),
    (ACCESS, "Cameras, people and programs that may use the server, and their tokens."),
    (AUDIT, "The audit log: who looked at whom, and who did what."),
    (SERVER, "The server itself."),
    (DEBUG, "Diagnosing a deployment."),
];

pub const DATASET: &str = "Dataset";
pub const MODEL: &str = "Model";
pub const RECOGNITION: &str = "Face recognition";
pub const DATABASE: &str = "Database";
pub const UNKNOWNS: &str = "Unknown people";
pub const AUDIT: &str = "Audit";
pub const SERVER: &str = "Server";
pub const ACCESS: &str = "Access";
pub const DEBUG: &str = "Debugging";

/// The document's entry of a call beyond the types of its handler.
pub struct Call {
    /// One of [`TAGS`].
    pub tag: &'static str,
    /// Every error that it may respond with, in groups that calls share.
    pub errors: &'static [&'static [Example]],
    /// Status and name, one of [`headers`], of further headers of successful responses.
    pub headers: &'static [(u16, &'static str)],
    /// Status, media type and example of a second form of the response, a text.
    pub also: &'static [(u16, &'static str, &'static str)],
    /// Form fields that are required by this call and not by others with the same form.
    pub required: &'static [&'static str],
    /// Calls that take values of a successful response.
    pub links: &'static [Link],
}

/// A call that takes values of another one's response.
pub struct Link {
    /// The response's status.
    pub status: u16,
    /// Method, in capitals, and path of the call.
    pub to: (&'static str, &'static str),
    /// Its parameters, each with an OpenAPI runtime expression for its value in the response.
    pub parameters: &'static [(&'static str, &'static str)],
}

/// Returns a call with a tag and errors, and nothing else.
pub const fn call(tag: &'static str, errors: &'static [&'static [Example]]) -> Call {
    Call { tag, errors, headers: &[], also: &[], required: &[], links: &[] }
}

/// The rule of Face IDs for ASCII; beyond it, all visible characters are allowed.
const FACE_ID_PATTERN: &str = r"^[^\x00-\x1f%+./<->@\\\x7f][^\x00-\x1f%/<>\\\x7f]{0,63}$";

fn face_id() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": 64, "pattern": FACE_ID_PATTERN })
}

/// Returns the parameters of paths and queries: schema, example, and the description of those in paths (queries have
/// theirs at their type).
pub fn parameters() -> Vec<(&'static str, Value)> {
    let time =
        |example: &str| json!({ "schema": { "type": "string", "format": "date-time" }, "example": example });
    vec![
        (
            "id",
            json!({
                "description": "Face ID, what the person is called, in any script: 1 to 64 characters (Unicode code points in \
                                normalisation form C, in which names are kept; white space around it is taken away). Not \
                                `/`, `\\\\`, `%`, `<`, `>`, control characters and invisible ones, except for joiners \
                                within words; not beginning with `.`, `=`, `+` or `@`. Capital and small letters \
                                do not tell two people apart (setting `face_ids_ignore_case`).",
                "schema": face_id(),
                "example": "Ada Lovelace",
            }),
        ),
        (
            "person_id",
            json!({
                "description": "The person's id, which says nothing about the person; enrolments and lists of people have it.",
                "schema": { "type": "string", "format": "uuid" },
                "example": "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c",
            }),
        ),
        (
            "image_id",
            json!({
                "description": "The image's id; enrolments and lists of images have it.",
                "schema": { "type": "string", "minLength": 1 },
                "example": "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c",
            }),
        ),
        (
            "version",
            json!({
                "description": "The version of a model, as `/model` lists them.",
                "schema": { "type": "integer", "format": "int64", "minimum": 1 },
                "example": 7,
            }),
        ),
        (
            "job_id",
            json!({
                "description": "The job's id, from the response that started it.",
                "schema": { "type": "string", "minLength": 1 },
                "example": "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c",
            }),
        ),
        (
            "principal_id",
            json!({
                "description": "The id of a camera, person or program, as `/access/principals` lists them.",
                "schema": { "type": "integer", "format": "int64", "minimum": 1 },
                "example": 7,
            }),
        ),
        (
            "token_id",
            json!({
                "description": "The token's id, as the tokens of a principal list it.",
                "schema": { "type": "integer", "format": "int64", "minimum": 1 },
                "example": 17,
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
            "unknown_id",
            json!({
                "description": "The unknown person's id, as `/unknowns` lists them, or of a group that was merged into that \
                                person's.",
                "schema": { "type": "string", "format": "uuid" },
                "example": "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c",
            }),
        ),
        ("since", time("2024-05-06T00:00:00Z")),
        ("until", time("2024-05-07T00:00:00Z")),
        (
            "action",
            json!({
                "schema": { "type": "string", "enum": AuditAction::ALL.map(AuditAction::name) },
                "example": "look",
            }),
        ),
        ("principal", json!({ "schema": { "type": "string" }, "example": "7" })),
        (
            "object",
            json!({ "schema": { "type": "string" }, "example": "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c" }),
        ),
        (
            "order",
            json!({
                "schema": { "type": "string", "enum": ["newest", "oldest"], "default": "newest" },
                "example": "oldest",
            }),
        ),
        (
            "ignored",
            json!({
                "schema": { "type": "string", "enum": ["true", "false", "all"], "default": "false" },
                "example": "all",
            }),
        ),
        (
            "decided",
            json!({
                "schema": { "type": "string", "enum": ["proposed", "refused"], "default": "proposed" },
                "example": "refused",
            }),
        ),
        ("min_faces", json!({ "schema": { "type": "integer", "minimum": 1 }, "example": 3 })),
        (
            "sort",
            json!({
                "schema": { "type": "string", "enum": ["last_seen", "faces"], "default": "last_seen" },
                "example": "faces",
            }),
        ),
        (
            "status",
            json!({
                "schema": { "type": "string", "enum": JobStatus::ALL.map(JobStatus::as_str) },
                "example": "running",
            }),
        ),
        (
            "source",
            json!({
                "schema": { "type": "string", "enum": CohortSource::ALL.map(CohortSource::name) },
                "example": "camera",
            }),
        ),
        ("embedder", json!({ "schema": { "type": "string" }, "example": "mobilefacenet" })),
        ("before", time("2024-05-06T00:00:00Z")),
        ("wait", json!({ "schema": { "type": "boolean", "default": false }, "example": true })),
        ("person", json!({ "schema": face_id(), "example": "Ada Lovelace" })),
        ("camera", json!({ "schema": { "type": "string" }, "example": "gate-1" })),
        ("location", json!({ "schema": { "type": "string" }, "example": "Lobby" })),
        ("from", time("2024-05-06T00:00:00Z")),
        ("to", time("2024-05-07T00:00:00Z")),
        ("after", json!({ "schema": { "type": "integer", "format": "int64", "minimum": 0 }, "example": 42 })),
        (
            "revised_after",
            json!({ "schema": { "type": "integer", "format": "int64", "minimum": 0 }, "example": 7 }),
        ),
        ("decision", json!({ "schema": { "type": "string", "enum": ["known", "unknown"] } })),
        ("limit", json!({ "schema": { "type": "integer", "minimum": 1, "maximum": 1000 }, "example": 100 })),
        ("cursor", json!({ "schema": { "type": "string", "pattern": "^[0-9a-f]{48}$" } })),
    ]
}

/// Returns the kinds of stored principals.
fn kinds() -> Value {
    json!({ "enum": PrincipalKind::STORED.map(PrincipalKind::name) })
}

/// Returns the rule of principals' names for ASCII; no control characters at all are allowed.
fn principal_name() -> Value {
    json!({ "minLength": 1, "maxLength": 200, "pattern": "^[^\\x00-\\x20\\x7f]([^\\x00-\\x1f\\x7f]*[^\\x00-\\x20\\x7f])?$" })
}

/// Returns the schema of a list of scopes.
fn scopes(at_least: usize) -> Value {
    json!({ "minItems": at_least, "items": { "type": "string", "enum": Scope::ALL.map(Scope::name) }, "example": ["upload"] })
}

/// Returns the headers of responses; `required` ones are in every response of their status.
pub fn headers() -> Vec<(&'static str, Value)> {
    let text = |required: bool, description: &str, example: &str| {
        let schema = json!({ "type": "string" });
        json!({ "required": required, "description": description, "schema": schema, "example": example })
    };
    vec![
        ("Allow", text(true, "The methods that this path takes.", "GET, POST")),
        ("Cache-Control", text(true, "Not to be cached.", "no-store")),
        (
            "Location",
            text(true, "The job's address, or the page's.", "/jobs/018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c"),
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
                "How long the request was queued and processed, milliseconds.",
                "queue;dur=0.4, recognise;dur=38.1",
            ),
        ),
        ("WWW-Authenticate", text(true, "Required: a bearer token.", "Bearer")),
        ("Vary", text(true, "The format depends on `Accept`.", "accept")),
        ("X-Content-Type-Options", text(true, "The type must not be guessed.", "nosniff")),
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

/// Returns the security scheme, which says how clients send tokens.
pub fn token_scheme() -> Value {
    json!({
        "type": "http",
        "scheme": "bearer",
        "description": "A token of a camera, a program or a person, or one of the server's `token_file`. Each call says which \
                        scope the token must have; `admin` has all. A server without any token takes requests from its own \
                        machine without.",
    })
}

/// Types that are only fields of others: paperclip does not distinguish their doc comments from those of the fields.
pub const TYPES: &[fn(&mut BTreeMap<String, DefaultSchemaRaw>)] = &[
    ErrorBody::update_definitions,
    ErrorDetail::update_definitions,
    ListMeta::update_definitions,
    DatasetMeta::update_definitions,
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
    CohortGroup::update_definitions,
    CohortOutcome::update_definitions,
    ReclusteringResult::update_definitions,
    PastSearchResult::update_definitions,
    Proposal::update_definitions,
    Unknown::update_definitions,
    UnknownCamera::update_definitions,
    ModelCalibration::update_definitions,
    CalibrationMethod::update_definitions,
    ErrorRate::update_definitions,
    ModelWarning::update_definitions,
    ModelWarningCode::update_definitions,
    AlikePair::update_definitions,
    PersonReference::update_definitions,
    UnknownPicture::update_definitions,
    Warning::update_definitions,
    SimilarImage::update_definitions,
    ImageFace::update_definitions,
    Quality::update_definitions,
    OtherPerson::update_definitions,
    AuditPrincipal::update_definitions,
    AuditObject::update_definitions,
    BrokenEntry::update_definitions,
];

/// The headers of errors, by status.
pub const ERROR_HEADERS: &[(u16, &str)] = &[
    (401, "WWW-Authenticate"),
    (405, "Allow"),
    (423, "Retry-After"),
    (429, "Retry-After"),
    (503, "Retry-After"),
];

/// Returns amendments of derived schemas: type (`*` for every type with a text of that name), property (empty for the
/// type itself), and the value to merge in, where null removes.
pub fn amendments() -> Vec<(&'static str, &'static str, Value)> {
    let time = || json!({ "format": "date-time" });
    vec![
        ("*", "captured_at", time()),
        ("*", "claimed_at", time()),
        ("*", "expires_at", time()),
        ("*", "last_used_at", time()),
        ("*", "created_at", time()),
        ("*", "finished_at", time()),
        ("*", "first_captured_at", time()),
        ("*", "first_seen", time()),
        ("*", "last_captured_at", time()),
        ("*", "last_seen", time()),
        ("*", "newest_at", time()),
        ("*", "oldest_at", time()),
        ("*", "received_at", time()),
        ("*", "revised_at", time()),
        ("*", "started_at", time()),
        ("*", "updated_at", time()),
        (
            "Job",
            "result",
            json!({
                "type": null,
                "anyOf": [
                    { "$ref": "#/components/schemas/TrainingResult" },
                    { "$ref": "#/components/schemas/EmbeddingResult" },
                    { "$ref": "#/components/schemas/ReclusteringResult" },
                    { "$ref": "#/components/schemas/PastSearchResult" },
                ],
            }),
        ),
        ("Conflict", "images", json!({ "minItems": 2, "maxItems": 2 })),
        ("Image", "sha256", json!({ "pattern": "^[0-9a-f]{64}$" })),
        ("ImageDetails", "sha256", json!({ "pattern": "^[0-9a-f]{64}$" })),
        ("NewPrincipal", "", json!({ "additionalProperties": false })),
        ("NewPrincipal", "kind", kinds()),
        ("NewPrincipal", "name", principal_name()),
        ("NewPrincipal", "camera_id", principal_name()),
        ("NewPrincipal", "scopes", scopes(1)),
        ("NewToken", "", json!({ "additionalProperties": false })),
        ("NewToken", "name", json!({ "maxLength": 200 })),
        ("NewToken", "scopes", scopes(1)),
        ("PrincipalUpdate", "", json!({ "additionalProperties": false })),
        ("PrincipalUpdate", "name", principal_name()),
        ("PrincipalUpdate", "camera_id", principal_name()),
        ("PrincipalUpdate", "scopes", scopes(1)),
        ("Rotation", "", json!({ "additionalProperties": false })),
        ("Principal", "kind", kinds()),
        ("Principal", "scopes", scopes(0)),
        ("AccessToken", "scopes", scopes(0)),
        ("IssuedToken", "scopes", scopes(0)),
        ("IssuedToken", "token", json!({ "pattern": "^fp_[0-9a-f]{72}$" })),
        ("UnknownName", "", json!({ "additionalProperties": false })),
        ("UnknownName", "face_id", face_id()),
        ("Proposal", "decided", json!({ "enum": ["proposed", "refused"] })),
        ("ProposalSelection", "", json!({ "additionalProperties": false })),
        ("ProposalSelection", "proposals", json!({ "minItems": 1, "maxItems": 10000 })),
        ("UnknownsToMerge", "", json!({ "additionalProperties": false })),
        ("UnknownsToMerge", "unknown_ids", json!({ "minItems": 1, "maxItems": 100 })),
        ("DetectionsToSplit", "", json!({ "additionalProperties": false })),
        ("DetectionsToSplit", "detections", json!({ "minItems": 1, "maxItems": 1000 })),
        ("Renaming", "", json!({ "additionalProperties": false })),
        ("Renaming", "face_id", face_id()),
        ("PersonName", "", json!({ "additionalProperties": false })),
        ("PersonName", "face_id", face_id()),
        // The handler reads several, to reject them with their number.
        ("EnrolmentForm", "image", json!({ "type": "string", "format": "binary", "items": null })),
        ("CohortForm", "image", json!({ "minItems": 1 })),
        ("CohortGroup", "source", json!({ "enum": CohortSource::ALL.map(CohortSource::name) })),
        ("RecognitionForm", "image", json!({ "minItems": 1 })),
        ("VerificationForm", "image", json!({ "minItems": 2, "maxItems": 2 })),
        ("Verification", "faces", json!({ "minItems": 2, "maxItems": 2 })),
    ]
}

/// Properties that are left out where they are empty, though their type is no `Option`, and those that a usual response
/// does not have.
pub const OFTEN_ABSENT: &[(&str, &str)] = &[
    ("AddedImage", "warning"),
    ("Job", "error"),
    ("Results", "names_withheld"),
    ("StoredResults", "names_withheld"),
    ("SentResults", "names_withheld"),
    ("RecognitionForm", "captured_at"),
    ("AddedImage", "notes"),
    ("AddedToCohort", "errors"),
    ("AddedImage", "warnings"),
    ("VerificationForm", "box"),
    ("VerificationForm", "face"),
    ("AddedToCohort", "notes"),
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
